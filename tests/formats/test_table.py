"""Tables of pictures."""

from __future__ import annotations

from pathlib import Path

import pytest
from pyarrow import fs as pafs

from tlray import formats
from tlray.errors import DataError
from tlray.formats import csv

FS = pafs.LocalFileSystem()


def table(tmp_path: Path, text: str, name: str = "labels.csv") -> str:
    (tmp_path / name).write_text(text, encoding="utf-8")
    return str(tmp_path / name)


def rows(root: str) -> list[tuple[str, str | None, str]]:
    return [(r["path"], r["split"], r["label"]) for r in csv.index(FS, root).to_pylist()]


def test_path_label_and_split(tmp_path: Path) -> None:
    path = table(tmp_path, "path,label,split,more\nb.jpg,dog,val,1\nsub/a.jpg, cat ,train,2\nc.jpg,dog,,3\n")
    expected = [("b.jpg", "validation", "dog"), ("c.jpg", None, "dog"), ("sub/a.jpg", "train", "cat")]
    assert rows(path) == expected
    assert rows(str(tmp_path)) == expected  # the folder that holds just this table


@pytest.mark.parametrize("column", ["file", "image", "filename", "Path"])
@pytest.mark.parametrize("sign", [",", ";", "\t"])
def test_names_of_the_column_and_separators(tmp_path: Path, column: str, sign: str) -> None:
    path = table(tmp_path, f'\ufeff{column}{sign}"label"\n"b, c.jpg"{sign}007\n')
    assert rows(path) == [("b, c.jpg", None, "007")]  # a class is text, whatever it looks like


def test_absolute_paths_below_the_table(tmp_path: Path) -> None:
    path = table(tmp_path, f"path,label\n{tmp_path}/x/a.jpg,dog\nfile://{tmp_path}/b.jpg,dog\n./c.jpg,dog\n")
    assert [r[0] for r in rows(path)] == ["b.jpg", "c.jpg", "x/a.jpg"]


@pytest.mark.parametrize("path", ["../a.jpg", "x/../../a.jpg", "/etc/a.jpg", "s3://bucket/a.jpg"])
def test_paths_outside_are_refused(tmp_path: Path, path: str) -> None:
    with pytest.raises(DataError, match=r"row 3: path = .*accepted: a path below"):
        csv.index(FS, table(tmp_path, f"path,label\nb.jpg,dog\n{path},dog\n"))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("picture,label\na,b\n", r"no column 'path' among picture, label; accepted: path\|file"),
        ("path,klass\na,b\n", "no column 'label' among path, klass"),
        ("path,label\n", "no rows below the header"),
        ("path,label\na.jpg,\n", "row 2: label is empty"),
        ("path,label,split\na.jpg,dog,trian\n", "row 2: split = 'trian'; accepted: train, validation, test"),
        ("path,label\na.jpg,dog\nb.jpg,dog\n./a.jpg,cat\n", "row 4: 'a.jpg' stands in row 2 too"),
        ("path,label\na.jpg,dog\nb.jpg,dog,x\n", "no valid table"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(DataError, match=says) as error:
        csv.index(FS, table(tmp_path, text))
    assert "\n" not in str(error.value)
    assert "labels.csv" in str(error.value)


def test_which_table(tmp_path: Path) -> None:
    table(tmp_path, "path,label\na.jpg,dog\n", "a.csv")
    named = table(tmp_path, "path,label\nb.jpg,dog\n", "b.csv")
    with pytest.raises(DataError, match=r"tables found: a\.csv, b\.csv; accepted"):
        csv.index(FS, str(tmp_path))
    assert rows(named) == [("b.jpg", None, "dog")]


def test_surer_than_folders(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.jpg").write_bytes(b"x")
    other = table(tmp_path, "name,score\na,1\n", "scores.csv")
    assert formats.find(FS, str(tmp_path)) == "folder"  # that table is about something else
    assert formats.find(FS, other) == "csv"  # but it was named
    Path(other).unlink()
    table(tmp_path, "path,label\nimages/a.jpg,dog\n")
    assert formats.find(FS, str(tmp_path)) == "csv"


def several(root: str) -> list[tuple[str, list[str]]]:
    return [(r["path"], r["labels"]) for r in csv.index(FS, root).to_pylist()]


@pytest.mark.parametrize(
    ("cells", "found"),
    [
        (["cat|dog", "", " dog | cat |dog"], [["cat", "dog"], [], ["dog", "cat"]]),
        (['"cat;dog"', "cat", '""'], [["cat", "dog"], ["cat"], []]),
        (['"cat,dog"', "cat", "bird"], [["cat", "dog"], ["cat"], ["bird"]]),
        (
            ['"a;b, c|dog"', '"a;b, c"', "x"],
            [["a;b, c", "dog"], ["a;b, c"], ["x"]],
        ),  # | leaves the others alone
    ],
)
def test_several_classes_in_a_cell(tmp_path: Path, cells: list[str], found: list[list[str]]) -> None:
    lines = [f"{n}.jpg,{cell}" for n, cell in enumerate(cells)]
    path = table(tmp_path, "\n".join(["Path,Labels", *lines]) + "\n")
    assert several(path) == [(f"{n}.jpg", names) for n, names in enumerate(found)]
    index = csv.index(FS, path)
    assert index.column_names == ["path", "split", "labels"]
    assert str(index.schema.field("labels").type) == "list<item: string>"
    assert formats.find(FS, str(tmp_path)) == "csv"


def test_columns_of_0_and_1_are_classes(tmp_path: Path) -> None:
    path = table(
        tmp_path, "path,split,Red,blue,score\nb.jpg,val,1,1,7\na.jpg,train,0,0,1\nc.jpg,train,0,1,0\n"
    )
    assert several(path) == [("a.jpg", []), ("b.jpg", ["Red", "blue"]), ("c.jpg", ["blue"])]
    assert formats.find(FS, str(tmp_path)) == "csv"


def test_one_flag_is_no_class(tmp_path: Path) -> None:
    path = table(tmp_path, "path,checked\na.jpg,1\nb.jpg,0\n")
    assert csv.fits(FS, str(tmp_path)) == 0
    with pytest.raises(
        DataError, match=r"no column 'label' among path, checked; accepted: .*columns of 0 and 1"
    ):
        csv.index(FS, path)


def test_label_and_labels_beside_each_other(tmp_path: Path) -> None:
    found = csv.index(FS, table(tmp_path, "path,label,labels\na.jpg,dog,wet|big\n")).to_pylist()
    assert found == [{"path": "a.jpg", "split": None, "label": "dog", "labels": ["wet", "big"]}]


def test_tables_without_any_class_or_with_a_column_twice(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no row has a class"):
        csv.index(FS, table(tmp_path, "path,labels\na.jpg,\nb.jpg,\n"))
    with pytest.raises(DataError, match="two columns 'label'"):
        csv.index(FS, table(tmp_path, "path,label,Label\na.jpg,x,y\n"))
