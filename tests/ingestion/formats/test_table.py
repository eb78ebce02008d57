"""Tables of pictures: as spreadsheets, pandas, Kaggle, Roboflow, Hugging Face and others write them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tlray.errors import DataError
from tlray.ingestion import formats
from tlray.ingestion.formats import table
from tlray.ingestion.formats.base import Index
from tlray.ingestion.formats.listing import Listing

LETTERS = "abcdefgh"


def lay(root: Path, pictures: Sequence[str] = (), **files: str | bytes) -> Listing:
    """A folder with pictures, and with files whose names have __ for a slash and _dot_ for a dot."""
    for name in pictures:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")
    for name, text in files.items():
        place = root / name.replace("__", "/").replace("_dot_", ".")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(text if isinstance(text, bytes) else text.encode())
    return Listing.open(str(root))


def one(root: Path, text: str | bytes, pictures: Sequence[str] = "", name: str = "labels.csv") -> Listing:
    """A table beside a.jpg, b.jpg, ... h.jpg, or other pictures."""
    return lay(root, pictures or [f"{c}.jpg" for c in LETTERS], **{name.replace(".", "_dot_"): text})


def rows(listing: Listing, column: str = "label") -> list[tuple[Any, ...]]:
    index = table.index(listing, column)
    return [tuple(row.values()) for row in index.table.to_pylist()]


def labels(listing: Listing, column: str = "label") -> dict[str, Any]:
    return {row["path"]: row[column] for row in table.index(listing, column).table.to_pylist()}


def notes(index: Index) -> Mapping[str, tuple[str, int]]:
    return {f.kind: (f.severity, f.count) for f in index.findings}


def plain(header: str, cells: Sequence[str]) -> str:
    return "\n".join([header, *(f"{c}.jpg,{cell}" for c, cell in zip(LETTERS, cells, strict=False))]) + "\n"


# ---- which files, which columns


def test_path_label_and_split(tmp_path: Path) -> None:
    text = "path,label,split,more\nb.jpg,dog,val,1\nsub/a.jpg, cat ,train,2\nc.jpg,dog,,3\n"
    listing = one(tmp_path, text, ["b.jpg", "c.jpg", "sub/a.jpg"])
    assert rows(listing) == [
        ("b.jpg", "validation", "dog"), ("c.jpg", None, "dog"), ("sub/a.jpg", "train", "cat"),
    ]  # fmt: skip
    assert notes(table.index(listing, "label")) == {"unused_column": ("info", 1), "no_split": ("warning", 1)}
    assert rows(Listing.open(str(tmp_path / "labels.csv"))) == rows(listing)
    assert formats.load("csv") is table  # the older name


@pytest.mark.parametrize(
    "header",
    ["file,label", "image,class", "filename,category", "Path,Label", "image_id,breed", "file_name,label",
     "ImageId,Species", "img_path,target", "id,y", "name,diagnosis", "Image Index,emotion",
     "id_code,label_name"],
)  # fmt: skip
@pytest.mark.parametrize("sign", [",", ";", "\t", "|"])
def test_names_of_columns_and_separators(tmp_path: Path, header: str, sign: str) -> None:
    text = plain(header, ["cat", "dog"] * 4).replace(",", sign)
    listing = one(tmp_path, text)
    look = table.look(listing)
    assert look is not None and not look.lacks and len(look.pictures) == 8
    assert labels(listing) == {f"{c}.jpg": ["cat", "dog"][n % 2] for n, c in enumerate(LETTERS)}


def test_the_path_column_is_known_by_its_cells(tmp_path: Path) -> None:
    text = "id,label,where\n" + "".join(f"{n},{'xy'[n % 2]},{c}.jpg\n" for n, c in enumerate(LETTERS))
    assert labels(one(tmp_path, text)) == {f"{c}.jpg": "xy"[n % 2] for n, c in enumerate(LETTERS)}


@pytest.mark.parametrize("habit", ["bom", "crlf", "utf-16", "quotes", "blank lines", "trailing", "cr"])
def test_habits_of_files(tmp_path: Path, habit: str) -> None:
    text = plain("path,label", ["hübsch", "nett"] * 4)
    data = {
        "bom": b"\xef\xbb\xbf" + text.encode(),
        "crlf": text.replace("\n", "\r\n").encode(),
        "cr": text.replace("\n", "\r").encode(),
        "utf-16": text.encode("utf-16"),
        "quotes": "\n".join(
            ",".join(f'"{cell}"' for cell in line.split(",")) for line in text.splitlines()
        ).encode(),
        "blank lines": text.replace("\n", "\n\n").encode(),
        "trailing": text.replace("\n", ",\n").encode(),
    }[habit]
    assert labels(one(tmp_path, data)) == {
        f"{c}.jpg": ["hübsch", "nett"][n % 2] for n, c in enumerate(LETTERS)
    }


def test_a_line_above_the_header(tmp_path: Path) -> None:
    for line in ("sep=;", "# exported", "\n# exported\n"):
        text = line + "\n" + plain("path,label", ["x", "y"] * 4).replace(",", ";")
        assert labels(one(tmp_path, text))["b.jpg"] == "y"
    with pytest.raises(DataError, match=r"row 5: split = 'odd'"):
        table.index(one(tmp_path, "# a\n\npath,label,split\na.jpg,x,train\nb.jpg,y,odd\n"), "label")


def test_no_header(tmp_path: Path) -> None:
    listing = one(tmp_path, plain("a.jpg,cat", ["cat", "dog"] * 4).split("\n", 1)[1])
    assert len(rows(listing)) == 8
    assert labels(listing)["b.jpg"] == "dog"


def test_names_with_commas_and_numbers_as_names(tmp_path: Path) -> None:
    listing = one(tmp_path, 'image,label\n"b, c.jpg",007\nd.jpg,x1\n', ["b, c.jpg", "d.jpg"])
    assert rows(listing) == [("b, c.jpg", None, "007"), ("d.jpg", None, "x1")]


def test_hugging_face_imagefolder(tmp_path: Path) -> None:
    metadata = "file_name,label\n0001.png,cat\n0002.png,dog\n"
    pictures = [f"{split}/{n:04}.png" for split in ("train", "test") for n in (1, 2)]
    listing = lay(tmp_path, pictures, train__metadata_dot_csv=metadata, test__metadata_dot_csv=metadata)
    assert rows(listing) == [
        ("test/0001.png", "test", "cat"), ("test/0002.png", "test", "dog"),
        ("train/0001.png", "train", "cat"), ("train/0002.png", "train", "dog"),
    ]  # fmt: skip


def test_hugging_face_metadata_jsonl_and_parquet(tmp_path: Path) -> None:
    said = [{"file_name": f"{n}.png", "label": n % 2, "note": {"x": 1}} for n in range(4)]
    text = "".join(json.dumps(row) + "\n" for row in said)
    pictures = [f"train/{n}.png" for n in range(4)]
    listing = lay(tmp_path / "a", pictures, train__metadata_dot_jsonl=text)
    assert labels(listing) == {f"train/{n}.png": str(n % 2) for n in range(4)}
    (tmp_path / "b" / "train").mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(said), tmp_path / "b" / "train" / "metadata.parquet")
    assert labels(lay(tmp_path / "b", pictures)) == labels(listing)


def test_hugging_face_objects(tmp_path: Path) -> None:
    said = [
        {"file_name": "0.png", "objects": {"bbox": [[302.0, 109.0, 73.0, 52.0]], "categories": ["car"]}},
        {"file_name": "1.png", "objects": {"bbox": [], "categories": []}},
    ]
    text = "".join(json.dumps(row) + "\n" for row in said)
    listing = lay(tmp_path, ["0.png", "1.png"], metadata_dot_jsonl=text)
    look = table.look(listing)
    assert look is not None and set(look.gives) == {"objects"}
    assert labels(listing, "objects") == {
        "0.png": {"bbox": [[302.0, 109.0, 73.0, 52.0]], "category": ["car"]},
        "1.png": {"bbox": [], "category": []},
    }


def test_kaggle_ids_without_ending_and_a_test_without_labels(tmp_path: Path) -> None:
    pictures = [f"train/{c * 8}.jpg" for c in LETTERS] + [f"test/{c * 7}.jpg" for c in LETTERS]
    breeds = "id,breed\n" + "".join(f"{c * 8},{['pug', 'husky'][n % 2]}\n" for n, c in enumerate(LETTERS))
    submission = "id,pug,husky\n" + "".join(f"{c * 7},0.5,0.5\n" for c in LETTERS)
    listing = lay(tmp_path, pictures, labels_dot_csv=breeds, sample_submission_dot_csv=submission)
    index = table.index(listing, "label")
    assert index.table.num_rows == 8
    assert set(index.table["label"].to_pylist()) == {"pug", "husky"}
    assert notes(index) == {"no_label": ("info", 8)}
    assert index.ignored == {"pictures in no table": 8}


def test_kaggle_numbers_in_both_folders(tmp_path: Path) -> None:
    pictures = [f"{split}/{n}.png" for split in ("train", "test") for n in range(1, 9)]
    text = "id,label\n" + "".join(f"{n},{['frog', 'truck'][n % 2]}\n" for n in range(1, 9))
    listing = lay(tmp_path / "a", pictures, trainLabels_dot_csv=text)
    assert set(labels(listing)) == {f"train/{n}.png" for n in range(1, 9)}
    listing = lay(tmp_path / "b", pictures, labels_dot_csv=text)
    with pytest.raises(DataError, match=r"row 2: id = '1' names 2 pictures \(test/1\.png, train/1\.png\)"):
        table.index(listing, "label")


def test_lists_of_path_and_label(tmp_path: Path) -> None:
    pictures = [f"images/my pic {n}.jpg" for n in range(6)]
    lists = {
        "meta__train_dot_txt": "".join(f"images/my pic {n}.jpg {n % 2}\n" for n in range(4)),
        "meta__val_dot_txt": "".join(f"images/my pic {n}.jpg {n % 2}\n" for n in (4, 5)),
        "meta__classes_dot_txt": "cat\ndog\n",
    }
    index = table.index(lay(tmp_path, pictures, **lists), "label")
    assert index.names == {"label": ["cat", "dog"]}
    assert index.table["split"].to_pylist() == ["train"] * 4 + ["validation"] * 2
    assert index.table["label"].to_pylist() == ["cat", "dog"] * 3


def test_labels_in_one_table_and_splits_in_lists(tmp_path: Path) -> None:
    files = {"train_dot_txt": "a.jpg\nb.jpg\nc.jpg\n", "val_dot_txt": "d\n"}
    listing = lay(
        tmp_path, [f"{c}.jpg" for c in "abcde"], labels_dot_csv=plain("path,label", "xyxyx"), **files
    )
    assert rows(listing) == [
        ("a.jpg", "train", "x"), ("b.jpg", "train", "y"), ("c.jpg", "train", "x"),
        ("d.jpg", "validation", "y"),
    ]  # fmt: skip
    assert notes(table.index(listing, "label"))["in_no_list"] == ("warning", 1)


def test_lists_alone_are_other_layouts(tmp_path: Path) -> None:
    pictures = ["images/a.jpg", "images/b.jpg"]
    assert table.look(lay(tmp_path, pictures, train_dot_txt="images/a.jpg\nimages/b.jpg\n")) is None


@pytest.mark.parametrize(
    "header", ["filename,width,height,class,xmin,ymin,xmax,ymax", "image,xmin,ymin,xmax,ymax,label"]
)
def test_tables_of_boxes_are_another_layout(tmp_path: Path, header: str) -> None:
    cells = {"filename": "a.jpg", "image": "a.jpg", "class": "cat", "label": "cat"}
    line = ",".join(cells.get(name, "1") for name in header.split(","))
    assert table.look(one(tmp_path, f"{header}\n{line}\n")) is None


def test_several_tables(tmp_path: Path) -> None:
    listing = lay(
        tmp_path / "a", [f"{c}.jpg" for c in LETTERS],
        cats_dot_csv="path,label\na.jpg,cat\nb.jpg,cat\n", dogs_dot_csv="path,label\nc.jpg,dog\n",
    )  # fmt: skip
    assert labels(listing) == {"a.jpg": "cat", "b.jpg": "cat", "c.jpg": "dog"}
    listing = lay(
        tmp_path / "b", ["a.jpg", "b.jpg"],
        one_dot_csv="path,label\na.jpg,cat\nb.jpg,dog\n", two_dot_csv="path,label\na.jpg,dog\nb.jpg,dog\n",
    )  # fmt: skip
    with pytest.raises(DataError, match=r"two\.csv row 2: 'a\.jpg' stands in one\.csv row 2 too"):
        table.index(listing, "label")
    assert labels(Listing.open(str(tmp_path / "b" / "two.csv"))) == {"a.jpg": "dog", "b.jpg": "dog"}


@pytest.mark.parametrize("order", ["{path} {label}", "{label}  {path}"])
def test_lists_whose_paths_and_labels_hold_blanks(tmp_path: Path, order: str) -> None:
    said = {"my cat 1.jpg": "black cat", "my dog 2.jpg": "dog", "3 b.jpg": "black cat", "4.jpg": "new york"}
    text = "\n".join(order.format(path=path, label=label) for path, label in said.items())
    assert labels(one(tmp_path, text, list(said), "list.txt")) == said


def test_celeba(tmp_path: Path) -> None:
    names = [f"{n:06}.jpg" for n in range(1, 7)]
    listing = lay(
        tmp_path / "a",
        [f"img_align_celeba/{name}" for name in names],
        list_attr_celeba_dot_csv="image_id,Bald,Male\n"
        + "".join(f"{x},1,{1 - 2 * (n % 2)}\n" for n, x in enumerate(names)),
        list_eval_partition_dot_csv="image_id,partition\n"
        + "".join(f"{x},{n // 2}\n" for n, x in enumerate(names)),
    )
    index = table.index(listing, "labels")
    assert index.table["split"].to_pylist() == ["train"] * 2 + ["validation"] * 2 + ["test"] * 2
    assert index.table["labels"].to_pylist() == [["Bald", "Male"], ["Bald"]] * 3
    listing = lay(
        tmp_path / "b", names, identity_CelebA_dot_txt="".join(f"{x} {n % 3}\n" for n, x in enumerate(names)),
        list_attr_dot_txt="6\nBald Male\n" + "".join(f"{x}  1 -1\n" for x in names),
    )  # fmt: skip
    index = table.index(listing, "label")
    assert index.names == {"label": ["0", "1", "2"]}
    assert notes(index) == {"unread_file": ("warning", 1)}  # nothing is passed over in silence


def test_the_whole_beside_its_splits(tmp_path: Path) -> None:
    text = plain("path,label", "xyxyxyxy")
    head, lines = text.split("\n", 1)
    first, second = lines.splitlines()[:6], lines.splitlines()[6:]
    listing = lay(
        tmp_path, [f"{c}.jpg" for c in LETTERS], all_dot_csv=text,
        train_dot_csv="\n".join([head, *first]), test_dot_csv="\n".join([head, *second]),
    )  # fmt: skip
    index = table.index(listing, "label")
    assert index.table["split"].to_pylist() == ["train"] * 6 + ["test"] * 2
    assert notes(index) == {"repeated_table": ("info", 1)}


# ---- paths


@pytest.mark.parametrize(
    "start", ["C:\\data\\", "/home/ann/data/", "https://host.example/data/", "D:/x/", "..\\data\\", "./"]
)
def test_paths_of_other_machines(tmp_path: Path, start: str) -> None:
    text = plain("path,label", "xyxyxyxy").replace("\n", f"\n{start}").removesuffix(start)
    index = table.index(one(tmp_path, text), "label")
    assert index.table["path"].to_pylist() == [f"{c}.jpg" for c in LETTERS]
    assert set(notes(index)) == (set() if start == "./" else {"path_elsewhere"})


def test_absolute_paths_below_the_root_and_quoted_names(tmp_path: Path) -> None:
    text = (
        f"path,label\n{tmp_path}/x/a.jpg,dog\nfile://{tmp_path}/b.jpg,dog\nmy%20pic.jpg,cat\nX\\D.JPG,cat\n"
    )
    index = table.index(one(tmp_path, text, ["x/a.jpg", "b.jpg", "my pic.jpg", "x/d.jpg"]), "label")
    assert index.table["path"].to_pylist() == ["b.jpg", "my pic.jpg", "x/a.jpg", "x/d.jpg"]
    assert notes(index) == {"path_quoted": ("info", 1), "path_backslash": ("info", 1)}


def test_zeros_that_a_spreadsheet_lost(tmp_path: Path) -> None:
    pictures = [f"{n:05}.jpg" for n in range(1, 7)]
    text = "id,label\n" + "".join(f"{n},{'xy'[n % 2]}\n" for n in range(1, 7))
    index = table.index(one(tmp_path, text, pictures), "label")
    assert index.table["path"].to_pylist() == pictures
    assert notes(index) == {"zeros_lost": ("info", 6)}


def test_the_longest_tail_decides(tmp_path: Path) -> None:
    text = "path,label\nC:\\d\\one\\a.jpg,x\nC:\\d\\two\\a.jpg,y\nC:\\d\\two\\b.jpg,y\n"
    listing = one(tmp_path, text, ["one/a.jpg", "two/a.jpg", "two/b.jpg"])
    assert labels(listing) == {"one/a.jpg": "x", "two/a.jpg": "y", "two/b.jpg": "y"}


def test_two_paths_that_lead_to_one_picture(tmp_path: Path) -> None:
    text = "path,label\nC:\\one\\a.jpg,x\nC:\\two\\a.jpg,x\nC:\\two\\b.jpg,y\n"
    with pytest.raises(DataError, match=r"row 3: .*both lead to a\.jpg; accepted: paths of pictures"):
        table.index(one(tmp_path, text), "label")


def test_a_path_of_train_is_not_that_of_val(tmp_path: Path) -> None:
    text = "path,label\ntrain/a.jpg,x\nval/b.jpg,y\nval/a.jpg,y\nval/c.jpg,x\n"
    index = table.index(one(tmp_path, text, ["val/a.jpg", "val/b.jpg", "val/c.jpg"]), "label")
    assert index.table["path"].to_pylist() == ["train/a.jpg", "val/a.jpg", "val/b.jpg", "val/c.jpg"]
    assert notes(index)["missing_picture"] == ("warning", 1)  # it is named in the report, and left out


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("../{}.jpg", "with / between folders"),
        ("C:\\data\\{}.jpg", "this one is a Windows path"),
        ("/etc/{}.jpg", "begins at another machine's root"),
        ("s3://bucket/{}.jpg", "begins at another machine's root"),
        ("pics/{}.jpg", "with / between folders"),
    ],
)
def test_pictures_that_are_not_there(tmp_path: Path, path: str, says: str) -> None:
    text = "path,label\n" + "".join(f"{path.format(f'z{n}')},{'xy'[n % 2]}\n" for n in range(4))
    listing = one(tmp_path, text)
    look = table.look(listing)
    assert look is not None and says in look.lacks and "none of those pictures is there" in look.lacks
    with pytest.raises(DataError, match=r"labels\.csv: none of those pictures is there") as error:
        table.index(listing, "label")
    assert says in str(error.value) and "\n" not in str(error.value)


# ---- splits


@pytest.mark.parametrize(
    ("header", "cells", "splits"),
    [
        ("split", ["train", "Val", "TEST", "dev"], ["train", "validation", "test", "validation"]),
        ("Usage", ["Training", "PublicTest", "PrivateTest"], ["train", "validation", "test"]),
        ("is_valid", ["False", "True", "False", "True"], ["train", "validation", "train", "validation"]),
        ("data set", ["train", "valid", "test", "train"], ["train", "validation", "test", "train"]),
        ("fold", ["0", "1", "2", "3"], [None] * 4),  # folds are no splits
        ("is_test", ["0", "1", "0", "0"], ["train", "test", "train", "train"]),
    ],
)  # fmt: skip
def test_columns_of_splits(
    tmp_path: Path, header: str, cells: Sequence[str], splits: Sequence[str | None]
) -> None:
    text = plain(f"path,label,{header}", [f"{'xy'[n % 2]},{cell}" for n, cell in enumerate(cells)])
    assert table.index(one(tmp_path, text), "label").table["split"].to_pylist() == splits


def test_splits_by_the_folders_of_the_pictures(tmp_path: Path) -> None:
    pictures = ["Train/a.jpg", "Train/b.jpg", "valid/c.jpg"]
    text = "path,label\n" + "".join(f"{path},{n % 2}\n" for n, path in enumerate(pictures))
    listing = one(tmp_path, text, pictures)
    assert table.index(listing, "label").table["split"].to_pylist() == ["train", "train", "validation"]


# ---- several classes


@pytest.mark.parametrize(
    ("cells", "found"),
    [
        (["cat|dog", "", " dog | cat |dog"], [["cat", "dog"], [], ["dog", "cat"]]),
        (['"cat;dog"', "cat", '""'], [["cat", "dog"], ["cat"], []]),
        (['"cat,dog"', "cat", "bird"], [["cat", "dog"], ["cat"], ["bird"]]),
        (['"a;b, c|dog"', '"a;b, c"', "x"], [["a;b, c", "dog"], ["a;b, c"], ["x"]]),
        (["\"['cat', 'dog']\"", "['dog']", "[]"], [["cat", "dog"], ["dog"], []]),
        (["\"['cat' 'dog']\"", "['dog']", "[]"], [["cat", "dog"], ["dog"], []]),  # as numpy writes them
        (['"[""cat"", ""it\'s""]"', "[]", '"[""cat""]"'], [["cat", "it's"], [], ["cat"]]),
        (['"{cat,dog}"', "{dog}", "{}"], [["cat", "dog"], ["dog"], []]),
        (['"[cat, dog]"', "[dog]", "[]"], [["cat", "dog"], ["dog"], []]),
        (
            ["clear primary", "clear", "haze primary", "haze"],
            [["clear", "primary"], ["clear"], ["haze", "primary"], ["haze"]],
        ),
        (["black cat", "cat", "dog"], [["black cat"], ["cat"], ["dog"]]),
        (["new york|rome", "rome", "new york"], [["new york", "rome"], ["rome"], ["new york"]]),
        (["cat|None", "dog", "nan"], [["cat"], ["dog"], []]),
    ],
)
def test_several_classes_in_a_cell(tmp_path: Path, cells: Sequence[str], found: Any) -> None:
    index = table.index(one(tmp_path, plain("Path,Labels", cells)), "labels")
    assert index.table["labels"].to_pylist() == found
    assert str(index.table.schema.field("labels").type) == "list<item: string>"


@pytest.mark.parametrize("cell", ["[__import__('os')]", "['a' + 'b']", "['x' for x in y]"])
def test_no_code_in_lists_is_run(tmp_path: Path, cell: str) -> None:
    with pytest.raises(DataError, match=r"row 2: labels = .*: no list, as in other rows"):
        table.index(one(tmp_path, plain("path,labels", [cell, "['x']"])), "labels")


def test_blanks_that_belong_to_names(tmp_path: Path) -> None:
    listing = one(tmp_path, plain("path,labels", ["golden retriever", "border collie", "golden retriever"]))
    index = table.index(listing, "label")
    assert index.table["label"].to_pylist() == ["golden retriever", "border collie", "golden retriever"]
    assert notes(index)["blank_in_class"][0] == "warning"


def test_a_label_that_is_several(tmp_path: Path) -> None:
    index = table.index(
        one(tmp_path, plain("path,Finding Labels", ["A|B", "A", "B|C", "No Finding"])), "label"
    )
    assert index.table.column_names == ["path", "split", "labels"]
    assert index.table["labels"].to_pylist() == [["A", "B"], ["A"], ["B", "C"], ["No Finding"]]
    one(tmp_path, plain("path,label", ['"x,y"', "x", "y", '"x,z"', "z"]))
    assert table.index(Listing.open(str(tmp_path)), "label").table.column_names == ["path", "split", "labels"]


def test_class_names_with_commas(tmp_path: Path) -> None:
    cells = ['"tench, Tinca tinca"', '"goldfish, Carassius auratus"'] * 4
    index = table.index(one(tmp_path, plain("path,label", cells)), "label")
    assert set(index.table["label"].to_pylist()) == {"tench, Tinca tinca", "goldfish, Carassius auratus"}
    assert notes(index) == {"separator_in_class": ("info", 2)}


def test_lists_of_jsonl_and_parquet(tmp_path: Path) -> None:
    said = [
        {"file_name": f"{c}.jpg", "tags": tags}
        for c, tags in zip("abc", (["x", "y"], [], ["y"]), strict=True)
    ]
    listing = one(tmp_path / "a", "".join(json.dumps(row) + "\n" for row in said), name="t.jsonl")
    expected = {"a.jpg": ["x", "y"], "b.jpg": [], "c.jpg": ["y"]}
    assert labels(listing, "labels") == expected
    lay(tmp_path / "b", ["a.jpg", "b.jpg", "c.jpg"])
    pq.write_table(pa.Table.from_pylist(said), tmp_path / "b" / "t.parquet")
    assert labels(Listing.open(str(tmp_path / "b")), "labels") == expected


def test_one_row_for_each_class(tmp_path: Path) -> None:
    text = "ImageID,LabelName\na,cat\na,dog\nb,cat\nc,dog\n"
    listing = one(tmp_path, text)
    assert labels(listing, "labels") == {"a.jpg": ["cat", "dog"], "b.jpg": ["cat"], "c.jpg": ["dog"]}
    with pytest.raises(DataError, match=r"row 3: 'a\.jpg' stands in row 2 too.*--task multilabel"):
        table.index(listing, "label")


def test_label_and_labels_beside_each_other(tmp_path: Path) -> None:
    found = table.index(one(tmp_path, "path,label,labels\na.jpg,dog,wet|big\nb.jpg,cat,big\n"), "label")
    assert found.table.to_pylist()[0] == {
        "path": "a.jpg",
        "split": None,
        "label": "dog",
        "labels": ["wet", "big"],
    }


def test_a_single_label_where_several_are_wanted(tmp_path: Path) -> None:
    listing = one(tmp_path, plain("path,label", "xy"))
    assert labels(listing, "labels") == {"a.jpg": ["x"], "b.jpg": ["y"]}


# ---- columns of 0 and 1


def test_columns_of_0_and_1_are_classes(tmp_path: Path) -> None:
    text = "path,split,Red,blue,score\nb.jpg,val,1,1,7\na.jpg,train,0,0,1\nc.jpg,train,0,1,0\n"
    listing = one(tmp_path, text)
    assert labels(listing, "labels") == {"a.jpg": [], "b.jpg": ["Red", "blue"], "c.jpg": ["blue"]}
    expected = {"unused_column": ("warning", 1), "no_label": ("warning", 5)}  # most scores are 0 and 1
    assert notes(table.index(listing, "labels")) == expected


def test_roboflow_multi_label(tmp_path: Path) -> None:
    text = "filename, Cat, Dog, Old Bird\n" + "x{0}_jpg.rf.1.jpg, 1, 1, 0\ny{0}_jpg.rf.2.jpg, 0, 1, 0\n"
    splits = ("train", "valid", "test")
    files = {f"{split}___classes_dot_csv": text.format(split) for split in splits}
    pictures = [f"{s}/{name.format(s)}" for s in splits for name in ("x{}_jpg.rf.1.jpg", "y{}_jpg.rf.2.jpg")]
    index = table.index(
        lay(tmp_path, pictures, **{k.replace("___", "__" + "_"): v for k, v in files.items()}), "labels"
    )
    assert index.table["labels"].to_pylist() == [["Cat", "Dog"], ["Dog"]] * 3
    assert index.table["split"].to_pylist() == ["test"] * 2 + ["train"] * 2 + ["validation"] * 2
    assert notes(index) == {"class_never": ("warning", 1)}


@pytest.mark.parametrize(
    ("yes", "no"), [("1", "0"), ("1.0", "0.0"), ("True", "False"), ("yes", "no"), ("1", "-1"), ("1", "")]
)
def test_ways_to_say_yes_and_no(tmp_path: Path, yes: str, no: str) -> None:
    cells = [f"{yes},{no}", f"{no},{no}", f"{yes},{yes}", f"{no},{yes}"]
    index = table.index(one(tmp_path, plain("path,x,y", cells)), "labels")
    assert index.table["labels"].to_pylist() == [["x"], [], ["x", "y"], ["y"]]
    expected = {"-1": {"minus_is_no"}, "": {"empty_is_no"}}.get(no, set())
    assert set(notes(index)) - {"no_label"} == expected


def test_words_among_0_and_1(tmp_path: Path) -> None:
    listing = one(tmp_path, plain("path,cat,dog,bird", ["1,0,0", "0,1,x", "1,1,1", "0,1,0"] * 2))
    with pytest.raises(DataError, match=r"row 3: bird = 'x' \(2 times in this column\)"):
        table.index(listing, "labels")


def test_pairs_of_pictures(tmp_path: Path) -> None:
    pictures = [f"{side}/p{n}.jpg" for side in "ab" for n in range(8)]
    text = "left,right,label\n" + "".join(f"a/p{n}.jpg,b/p{n}.jpg,{n % 2}\n" for n in range(8))
    with pytest.raises(DataError, match=r"columns right and left both hold names of pictures; accepted"):
        table.index(one(tmp_path, text, pictures), "label")


def test_objects_are_no_classes(tmp_path: Path) -> None:
    text = "".join(json.dumps({"image": f"{c}.jpg", "label": {"name": "x"}}) + "\n" for c in LETTERS)
    with pytest.raises(DataError, match=r"t\.jsonl row 1: label = .*: an object; accepted"):
        table.index(one(tmp_path, text, name="t.jsonl"), "label")


@pytest.mark.parametrize(("odd", "times"), [("-1", 1), ("2", 1), ("maybe", 1)])
def test_an_odd_value_among_0_and_1(tmp_path: Path, odd: str, times: int) -> None:
    cells = ["0,0,0", "1,0,1", "0,1,0", f"1,1,{odd}", "0,0,0", "1,0,1", "0,1,0", "1,1,0"]
    says = rf"row 5: bird = '{odd}' \({times} times in this column\).*accepted: 0 or 1"
    with pytest.raises(DataError, match=says):
        table.index(one(tmp_path, plain("path,cat,dog,bird", cells)), "labels")


def test_chexpert(tmp_path: Path) -> None:
    header = "Path,Sex,Age,Frontal/Lateral,AP/PA,Edema,Fracture"
    cells = [
        "Female,68,Frontal,AP,1.0,",
        "Male,31,Lateral,,0.0,1.0",
        "Female,70,Frontal,PA,,0.0",
        "Male,8,Frontal,AP,1.0,1.0",
    ]
    index = table.index(one(tmp_path, plain(header, cells)), "labels")
    assert index.table["labels"].to_pylist() == [["Edema"], ["Fracture"], [], ["Edema", "Fracture"]]
    assert notes(index)["empty_is_no"] == ("warning", 2)
    assert notes(index)["unused_column"] == ("info", 4)
    cells[2] = "Female,70,Frontal,PA,-1.0,0.0"
    with pytest.raises(DataError, match=r"row 4: Edema = '-1\.0' .*uncertain"):
        table.index(one(tmp_path, plain(header, cells * 2)), "labels")


def test_one_class_in_every_row_is_a_classification_too(tmp_path: Path) -> None:
    index = table.index(
        one(tmp_path, plain("image,MEL,NV,BCC", ["1.0,0.0,0.0", "0.0,1.0,0.0", "0.0,0.0,1.0"])), "label"
    )
    assert index.table["label"].to_pylist() == ["MEL", "NV", "BCC"]
    assert index.table["labels"].to_pylist() == [["MEL"], ["NV"], ["BCC"]]


def test_lists_of_zeros_and_ones_have_no_names(tmp_path: Path) -> None:
    text = plain("path,labels", ['"[0, 1, 0]"', '"[1, 1, 0]"'])
    with pytest.raises(DataError, match="lists of 3 zeros and ones without the names of the classes"):
        table.index(one(tmp_path, text), "labels")


def test_which_of_flags_and_words_is_not_guessed(tmp_path: Path) -> None:
    cells = ["pug,1,0", "husky,0,1", "pug,0,1", "husky,1,1"]
    listing = one(tmp_path, plain("path,sort,vaccinated,sold", cells))
    look = table.look(listing)
    assert look is not None and "vaccinated, sold hold 0 and 1, and sort holds words" in look.lacks


# ---- numbers, names, missing values


@pytest.mark.parametrize(
    ("header", "cells", "says"),
    [
        ("path,age", ["31", "42", "17", "55", "31"], "none of the columns age is known as one"),
        ("path,score", ["0.1", "0.2", "0.3", "0.9"], "none of the columns score"),
        ("path,number", ["1", "2", "3", "4"], "none of the columns number"),
        ("path,checked", ["0", "1", "0", "1"], "none of the columns checked"),
        ("path,caption", ["a cat", "a dog", "a bird", "a fish"], "none of the columns caption"),
        ("path,a,b", ["x,p", "y,q", "x,p", "y,p"], "a, b may each be the column of labels"),
        ("path,class,breed", ["x,p", "y,q", "x,p", "x,q"], "columns class and breed may each be the labels"),
    ],
)  # fmt: skip
def test_columns_that_are_not_guessed(tmp_path: Path, header: str, cells: Sequence[str], says: str) -> None:
    listing = one(tmp_path, plain(header, cells))
    look = table.look(listing)
    assert look is not None and says in look.lacks
    with pytest.raises(DataError, match=says) as error:
        table.index(listing, "label")
    assert "call the right one label" in str(error.value) or "called label" in str(error.value)


def test_the_one_column_of_words(tmp_path: Path) -> None:
    cells = [f"{['pug', 'husky'][n % 2]},{30 + n},{n}.5" for n in range(8)]
    index = table.index(one(tmp_path, plain("path,sort,age,price", cells)), "label")
    assert set(index.table["label"].to_pylist()) == {"pug", "husky"}
    assert notes(index)["label_column"] == ("info", 1)


def test_the_one_column_of_few_numbers(tmp_path: Path) -> None:
    index = table.index(one(tmp_path, plain("id,has_cactus", "10110101")), "label")
    assert index.names == {"label": ["0", "1"]}
    assert notes(index) == {"label_column": ("info", 1)}


def test_a_measure_is_no_class(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"row 3: target = 3\.7: a measure, no class"):
        table.index(one(tmp_path, plain("path,target", ["3", "3.7", "1.5"])), "label")


def test_numbers_and_their_names_in_another_column(tmp_path: Path) -> None:
    cells = ["10,cat", "2,dog", "10,cat", "2,dog"]
    index = table.index(one(tmp_path, plain("path,class_id,class_name", cells)), "label")
    assert index.table["label"].to_pylist() == ["cat", "dog", "cat", "dog"]
    index = table.index(one(tmp_path, plain("path,label,name", cells)), "label")
    assert index.table["label"].to_pylist() == ["cat", "dog", "cat", "dog"]


@pytest.mark.parametrize(
    ("name", "text", "names"),
    [
        ("classes.txt", "cat\ndog\n", ["cat", "dog"]),
        ("classes.txt", "0 cat\n1 dog\n", ["cat", "dog"]),
        ("labels.txt", "cat,0\ndog,1\n", ["cat", "dog"]),
        (
            "synset_words.txt",
            "n01 tench, Tinca tinca\nn02 goldfish\n",
            ["n01 tench, Tinca tinca", "n02 goldfish"],
        ),
        ("signnames.csv", "ClassId,SignName\n0,Stop\n1,Yield\n", ["Stop", "Yield"]),
        ("label_num_to_disease_map.json", '{"0": "Blight", "1": "Healthy"}', ["Blight", "Healthy"]),
        ("class_names.json", '["cat", "dog"]', ["cat", "dog"]),
        ("class_to_idx.json", '{"cat": 0, "dog": 1}', ["cat", "dog"]),
    ],
)
def test_numbers_and_their_names_in_another_file(
    tmp_path: Path, name: str, text: str, names: Sequence[str]
) -> None:
    listing = lay(
        tmp_path, [f"{c}.jpg" for c in LETTERS],
        **{"train_dot_csv": plain("image_id,label", "01010101"), name.replace(".", "_dot_"): text},
    )  # fmt: skip
    index = table.index(listing, "label")
    assert index.names == {"label": names}
    assert index.table["label"].to_pylist() == list(names) * 4


def test_names_that_do_not_fit_the_numbers(tmp_path: Path) -> None:
    numbers = plain("path,label", "12121212")
    listing = one(tmp_path, numbers)
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    index = table.index(Listing.open(str(tmp_path)), "label")
    assert index.names == {"label": ["cat", "dog"]}  # counted from 1
    assert notes(index)["classes_from_one"] == ("info", 1)
    (tmp_path / "classes.txt").write_text("cat\n")
    index = table.index(listing, "label")
    assert index.names == {"label": ["1", "2"]}
    (tmp_path / "classes.txt").write_text("0 crane\n1 tench\n2 crane\n")
    index = table.index(Listing.open(str(tmp_path)), "label")
    assert index.names == {"label": ["crane 0", "tench", "crane 2"]}  # as ImageNet's cranes
    assert notes(index)["class_name_twice"] == ("warning", 1)
    assert notes(index)["class_never"] == ("warning", 1)


def test_numbers_in_their_order_with_gaps(tmp_path: Path) -> None:
    index = table.index(one(tmp_path, plain("path,label", ["10", "2", "1.0", "2.0", "1", "10"])), "label")
    assert index.names == {"label": ["1", "2", "10"]}
    assert notes(index)["gaps_in_classes"] == ("warning", 7)
    assert notes(index)["number_as_float"] == ("info", 2)


def test_a_class_for_every_picture(tmp_path: Path) -> None:
    pictures = [f"{n}.jpg" for n in range(20)]
    text = "file_name,label\n" + "".join(f"{x},a picture of thing {x}\n" for x in pictures)
    index = table.index(one(tmp_path, text, pictures), "label")
    assert notes(index)["class_for_every_picture"] == ("warning", 20)


def test_numbers_that_count_the_pictures_are_no_classes(tmp_path: Path) -> None:
    pictures = [f"crow/{n}x.jpg" for n in range(1, 21)]
    files = {
        "images_dot_txt": "".join(f"{n} {path}\n" for n, path in enumerate(pictures, 1)),
        "image_class_labels_dot_txt": "".join(f"{n} {1 + n // 11}\n" for n in range(1, 21)),
    }
    with pytest.raises(DataError, match="none of the columns id is known as one of labels"):
        rows(lay(tmp_path / "cub", pictures, **files))
    text = "".join(f"{c}.jpg {n % 2 + 1}\n" for n, c in enumerate(LETTERS))
    pictures = [f"{c}.jpg" for c in LETTERS]
    listing = lay(tmp_path / "list", pictures, list_dot_txt=text, class_labels_dot_txt="1 4\n2 5\n")
    index = table.index(listing, "label")
    assert index.names == {"label": ["1", "2"]}  # two numbers a line name no class


def test_a_column_of_splits_without_a_header(tmp_path: Path) -> None:
    splits = ["TRAIN", "VALIDATION", "TEST", "TRAIN"] * 2
    text = "".join(f"{split},gs://bucket/{LETTERS[n]}.jpg,{'ab'[n // 4]}\n" for n, split in enumerate(splits))
    assert rows(one(tmp_path, text))[:3] == [
        ("a.jpg", "train", "a"), ("b.jpg", "validation", "a"), ("c.jpg", "test", "a"),
    ]  # fmt: skip


def test_true_and_false_are_classes(tmp_path: Path) -> None:
    lay(tmp_path, ["a.jpg", "b.jpg"])
    pq.write_table(pa.table({"file": ["a.jpg", "b.jpg"], "label": [True, False]}), tmp_path / "t.parquet")
    assert labels(Listing.open(str(tmp_path))) == {"a.jpg": "True", "b.jpg": "False"}


def test_minus_one_and_one_are_two_classes(tmp_path: Path) -> None:
    index = table.index(one(tmp_path, plain("path,y", ["-1", "1", "1", "-1"])), "label")
    assert index.names == {"label": ["-1", "1"]}


@pytest.mark.parametrize("cell", ["", "nan", "NULL", "None", "?", "-1"])
def test_rows_without_a_label(tmp_path: Path, cell: str) -> None:
    names = [f"{n}.jpg" for n in range(40)]
    lines = [f"{name},{n % 2}" for n, name in enumerate(names)]
    lines[7] = f"7.jpg,{cell}"
    index = table.index(one(tmp_path / "few", "\n".join(["path,label", *lines]), names), "label")
    assert index.table.num_rows == 39
    assert notes(index) == {"row_without_label": ("warning", 1)}
    lines[8] = f"8.jpg,{cell}"
    lines[9] = f"9.jpg,{cell}"
    said = "label is empty" if not cell else f"label '{cell}' is no class".replace("?", r"\?")
    with pytest.raises(DataError, match=rf"row 9: {said} \(.* 3 times in 40 rows\); accepted: the name of"):
        table.index(one(tmp_path / "many", "\n".join(["path,label", *lines]), names), "label")


def test_a_test_table_whose_labels_are_hidden(tmp_path: Path) -> None:
    listing = lay(
        tmp_path, [f"{c}.jpg" for c in LETTERS], train_dot_csv="path,label\na.jpg,0\nb.jpg,1\n",
        test_dot_csv="path,label\nc.jpg,-1\nd.jpg,-1\n",
    )  # fmt: skip
    index = table.index(listing, "label")
    assert index.table["path"].to_pylist() == ["a.jpg", "b.jpg"]
    assert notes(index)["split_without_labels"] == ("warning", 2)


# ---- mistakes


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("path,label,split\na.jpg,dog,trian\n", "row 2: split = 'trian'; accepted: train, validation, test"),
        (
            "path,label\na.jpg,dog\nb.jpg,dog\n./a.jpg,cat\n",
            "row 4: 'a.jpg' stands in row 2 too, with another",
        ),
        ("path,label,split\na.jpg,x,train\na.jpg,x,test\n", "row 3: 'a.jpg' is in test, in row 2 in train"),
        ("path,label\na.jpg,dog\nb.jpg,dog,x\n", r"row 3: no valid table \(3 cells, the header has 2\)"),
        ('path,label\na.jpg,dog\nb.jpg,"dog\nc.jpg,cat\n', "row 3: no valid table"),
        ("path,label\n", "it has no rows below the header"),
        ("path,label,label\na.jpg,x,y\n", "two columns 'label'"),
        ("path,labels\na.jpg,\nb.jpg,\n", "no row has a class"),
        ("path,label\na.jpg,\n", "row 2: label is empty"),
        (b"path,label\na.jpg,caf\xe9\nb.jpg,x\n", "line 2: no text in UTF-8"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, text: str | bytes, says: str) -> None:
    one(tmp_path, text)
    with pytest.raises(DataError, match=says) as error:
        table.index(Listing.open(str(tmp_path / "labels.csv")), "label")
    assert "\n" not in str(error.value)
    assert "labels.csv" in str(error.value)


def test_a_row_twice_is_taken_once(tmp_path: Path) -> None:
    index = table.index(one(tmp_path, "path,label\na.jpg,x\nb.jpg,y\na.jpg,x\n"), "label")
    assert index.table.num_rows == 2
    assert notes(index)["row_twice"] == ("warning", 1)


def test_a_line_that_is_no_json(tmp_path: Path) -> None:
    text = '{"file_name": "a.jpg", "label": "x"}\n{"file_name": "b.jpg", "label": "y"}\n{oops\n'
    with pytest.raises(DataError, match=r"t\.jsonl line 3: no JSON"):
        table.index(one(tmp_path, text, name="t.jsonl"), "label")


def test_tables_of_something_else(tmp_path: Path) -> None:
    listing = one(tmp_path, "day,visitors\nMon,3\nTue,4\n", name="visits.csv")
    assert table.look(listing) is None
    look = table.look(Listing.open(str(tmp_path / "visits.csv")))
    assert look is not None and "none of them holds names of pictures that are there" in look.lacks


def test_a_table_with_columns_that_may_run_code_is_refused(tmp_path: Path) -> None:
    lay(tmp_path, ["a.jpg", "b.jpg"])
    kind = pa.opaque(pa.binary(), "payload", "somebody")
    odd = pa.ExtensionArray.from_storage(kind, pa.array([b"x", b"y"]))
    pq.write_table(
        pa.table({"file": ["a.jpg", "b.jpg"], "label": ["x", "y"], "odd": odd}), tmp_path / "t.parquet"
    )
    with pytest.raises(DataError, match=r"t\.parquet column 'odd': extension type arrow\.opaque"):
        table.index(Listing.open(str(tmp_path)), "label")


def test_a_long_table_is_known_by_its_beginning(tmp_path: Path) -> None:
    pictures = [f"pics/{n:06}.jpg" for n in range(6000)]
    text = "path,label\n" + "".join(f"{path},{n % 3}\n" for n, path in enumerate(pictures))
    listing = Listing(str(tmp_path), [*pictures, "labels.csv"])
    (tmp_path / "labels.csv").write_text(text)
    look = table.look(listing)
    assert look is not None and len(look.pictures) == 6000
    assert table.index(listing, "label").table.num_rows == 6000


# ---- among the other formats


@pytest.fixture
def ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "names", lambda: ["arrow", "folder", "lfw", "table", "webdataset"])


@pytest.mark.usefixtures("ours")
def test_found_among_the_others(tmp_path: Path) -> None:
    pictures = [f"{kind}/p{n}.jpg" for kind in ("cat", "dog") for n in range(8)]
    text = "path,label\n" + "".join(f"{path},{n % 2}\n" for n, path in enumerate(pictures))
    assert formats.find(one(tmp_path / "a", text, pictures))[0] == "table"
    listing = one(tmp_path / "b", "day,visitors\nMon,3\n", pictures, name="visits.csv")
    assert formats.find(listing)[0] == "folder"  # that table is about something else
    people = [f"lfw/{name}_{n:04}.jpg" for name in ("Aaron_Eckhart", "Abdullah_Gul") for n in (1, 2)]
    assert formats.find(lay(tmp_path / "c", people))[0] == "lfw"
    text = "path,height\n" + "".join(f"{path},{n}.5\n" for n, path in enumerate(pictures))
    with pytest.raises(
        DataError, match=r"nearest layout: table \(.*none of the columns height is known"
    ) as error:
        formats.find(one(tmp_path / "d", text, pictures))
    assert "\n" not in str(error.value)


@pytest.mark.usefixtures("ours")
def test_only_what_gives_the_labels_that_are_wanted(tmp_path: Path) -> None:
    listing = one(tmp_path, plain("path,label", "xyxyxyxy"))
    assert formats.find(listing, ["labels"])[0] == "table"
    with pytest.raises(DataError):
        formats.find(listing, ["objects"])


def test_a_class_called_as_a_picture_is_no_row(tmp_path: Path) -> None:
    pictures = [f"{n:06d}.jpg" for n in range(1, 9)]
    text = "filename,3,cat\n" + "".join(f"{path},{n % 2},{n // 2 % 2}\n" for n, path in enumerate(pictures))
    index = table.index(one(tmp_path, text, pictures), "labels")
    assert index.table["labels"].to_pylist()[:4] == [[], ["3"], ["cat"], ["3", "cat"]]


def test_words_for_no_value_in_lists(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    index = table.index(one(tmp_path / "a", plain("path,labels", ["cat|null", "dog", "null"])), "labels")
    assert index.table["labels"].to_pylist() == [["cat"], ["dog"], []]
    assert [f.examples for f in index.findings if f.kind == "null_label"] == [["null: 2"]]
    text = "\"['null', 'cat']\""
    index = table.index(one(tmp_path / "b", plain("path,labels", [text, "['cat']", "[]"])), "labels")
    assert index.table["labels"].to_pylist() == [["null", "cat"], ["cat"], []]
    assert [f.examples for f in index.findings if f.kind == "class_called_null"] == [["null: 1"]]
    text = plain("path,labels", ['"[NULL,cat]"', "[cat]", "[dog]"])
    index = table.index(one(tmp_path / "c", text), "labels")
    assert index.table["labels"].to_pylist() == [["cat"], ["cat"], ["dog"]]


# ---- JSON


@pytest.mark.parametrize(
    "content",
    [
        {f"{c}.jpg": "cat" if n % 2 else "dog" for n, c in enumerate(LETTERS)},
        {c: "cat" if n % 2 else "dog" for n, c in enumerate(LETTERS)},
        [{"image": f"{c}.jpg", "label": "cat" if n % 2 else "dog"} for n, c in enumerate(LETTERS)],
        {"dog": [f"{c}.jpg" for c in LETTERS[::2]], "cat": [f"{c}.jpg" for c in LETTERS[1::2]]},
    ],
)
def test_json_of_pictures_and_labels(tmp_path: Path, content: Any) -> None:
    listing = one(tmp_path, json.dumps(content, indent=1), name="labels.json")
    assert formats.find(listing)[0] == "table"
    assert labels(listing) == {f"{c}.jpg": ["dog", "cat"][n % 2] for n, c in enumerate(LETTERS)}


def test_json_of_several_labels(tmp_path: Path) -> None:
    content = {f"{c}.jpg": ["cat", "dog"][: 1 + n % 2] for n, c in enumerate(LETTERS)}
    listing = one(tmp_path, json.dumps(content), name="labels.json")
    assert labels(listing, "labels") == {name: value for name, value in content.items()}


@pytest.mark.parametrize(
    "content",
    [{"0": "cat", "1": "dog"}, [{"id": 0, "name": "cat"}], {"lr": 0.1}, [1, 2], [], "a", {"a.jpg": {"x": 1}}],
)
def test_other_json_is_no_table(tmp_path: Path, content: Any) -> None:
    assert table.look(one(tmp_path, json.dumps(content), name="more.json")) is None


def test_json_that_ends_early(tmp_path: Path) -> None:
    text = json.dumps([{"image": f"{c}.jpg", "label": "cat"} for c in LETTERS])[:-1]
    with pytest.raises(DataError, match=r"labels\.json: no JSON \(.*\); accepted: valid JSON"):
        table.index(one(tmp_path, text, name="labels.json"), "label")
