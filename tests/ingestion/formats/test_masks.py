"""Pictures beside masks: the layouts of tools and data sets by their own file names."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tlray.data.image import encode_mask
from tlray.errors import DataError
from tlray.ingestion import formats
from tlray.ingestion.formats import masks
from tlray.ingestion.formats.base import Index
from tlray.ingestion.formats.listing import Listing
from tlray.ingestion.formats.masks import pairs

IDS = encode_mask(np.array([[0, 1], [1, 255]], np.uint8))


def photo(seed: int = 0, kind: str = "JPEG") -> bytes:
    rng, out = np.random.default_rng(seed), io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (24, 32, 3)).astype(np.uint8)).save(out, kind)
    return out.getvalue()


def colours() -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (4, 4), "red").save(out, "PNG")
    return out.getvalue()


def made(folder: Path, files: dict[str, bytes | str]) -> Listing:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data.encode() if isinstance(data, str) else data)
    return Listing.open(str(folder))


def read(listing: Listing) -> Index:
    return masks.index(listing, "mask")


def rows(listing: Listing) -> list[tuple[str, str | None, list[str]]]:
    return [(r["path"], r["split"], r["mask"]["paths"]) for r in read(listing).table.to_pylist()]


PAIRS: list[tuple[str, str, str | None]] = [
    ("images/a.jpg", "masks/a.png", None),
    ("train/images/a.jpg", "train/masks/a.png", "train"),
    ("images/val/a.JPG", "annotations/val/a.PNG", "validation"),
    ("test/images/a.png", "test/labels/a.png", "test"),
    ("Images/a.jpg", "Masks/a.png", None),
    ("imgs/a.jpg", "masks/a.gif", None),
    ("image/a.png", "label/a.png", None),  # U-Net's membrane data
    ("data/image/a.tif", "data/gt/a.tif", None),
    ("original_images/a.jpg", "label_images_semantic/a.png", None),  # semantic drone data set
    ("JPEGImages/2007_000032.jpg", "SegmentationClass/2007_000032.png", None),
    ("VOCdevkit/VOC2012/JPEGImages/a.jpg", "VOCdevkit/VOC2012/SegmentationClass/a.png", None),
    ("train/0001TP_006690.png", "trainannot/0001TP_006690.png", "train"),  # CamVid as SegNet has it
    ("val/0016E5.png", "valannot/0016E5.png", "validation"),
    ("default/a.png", "defaultannot/a.png", None),  # CVAT's CamVid
    ("train/0001TP_006690.png", "train_labels/0001TP_006690_L.png", "train"),  # CamVid of fast.ai and Kaggle
    ("701_StillsRaw_full/0001TP.png", "LabeledApproved_full/0001TP_L.png", None),  # CamVid itself
    ("images/training/ADE_train_00000001.jpg", "annotations/training/ADE_train_00000001.png", "train"),
    ("images/Abyssinian_1.jpg", "annotations/trimaps/Abyssinian_1.png", None),  # Oxford pets
    ("train/fff9b3a5373f_16.jpg", "train_masks/fff9b3a5373f_16_mask.gif", "train"),  # Carvana
    ("train/x.rf.1234.jpg", "train/x.rf.1234_mask.png", "train"),  # Roboflow
    ("leftImg8bit/train/aachen/aachen_000000_000019_leftImg8bit.png",
     "gtFine/train/aachen/aachen_000000_000019_gtFine_labelIds.png", "train"),
    ("train/119_sat.jpg", "train/119_mask.png", "train"),  # DeepGlobe
    ("imagesTr/case_01_0000.png", "labelsTr/case_01.png", "train"),  # nnU-Net
    ("ISIC2018_Task1-2_Training_Input/ISIC_0000000.jpg",
     "ISIC2018_Task1_Training_GroundTruth/ISIC_0000000_segmentation.png", "train"),
    ("COVID/images/COVID-1.png", "COVID/masks/COVID-1.png", None),
    ("images/p0.jpg", "masks/p0_gt.png", None),
    ("images/p0.jpg", "masks/p0-mask.png", None),
    ("images/p0.jpg", "masks/mask_p0.png", None),
    ("images/img_001.png", "masks/mask_001.png", None),
    ("benign (1).png", "benign (1)_mask.png", None),
    ("photos/a.jpg", "photos/a_seg.png", None),
    ("images/Zürich 1.jpg", "masks/Zürich 1.png", None),
]  # fmt: skip


@pytest.mark.parametrize(("picture", "mask", "split"), PAIRS)
def test_layouts(tmp_path: Path, picture: str, mask: str, split: str | None) -> None:
    listing = made(tmp_path, {picture: photo(), mask: IDS, "README.md": b"", ".hidden/a.jpg": b""})
    look = masks.look(listing)
    assert look is not None and look.lacks == ""
    assert list(look.pictures) == [picture] and mask in look.labels
    assert rows(listing) == [(picture, split, [mask])]


def test_it_is_found_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "names", lambda: ["folder", "masks"])
    listing = made(
        tmp_path, {f"images/{n}.jpg": photo(n) for n in range(4)} | {f"masks/{n}.png": IDS for n in range(4)}
    )
    name, look = formats.find(listing)
    assert (name, look.summary) == ("masks", "4 pictures with masks")


@pytest.mark.parametrize(
    ("picture", "masks_"),
    [
        ("{n}/images/{n}.png", ["{n}/masks/a{n}.png", "{n}/masks/b{n}.png"]),  # nuclei, one mask an object
        ("benign/b ({n}).png", ["benign/b ({n})_mask.png"]),  # BUSI: folders that could be classes
    ],
)
def test_masks_are_no_pictures_of_classes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, picture: str, masks_: list[str]
) -> None:
    monkeypatch.setattr(formats, "names", lambda: ["folder", "masks"])
    files: dict[str, bytes | str] = {}
    for n in range(3):
        files[picture.format(n=n)] = photo(n)
        files |= {mask.format(n=n): IDS for mask in masks_}
    assert formats.find(made(tmp_path, {**files, "normal/n.png": photo(9)}))[0] == "masks"


def test_names_of_folders_that_say_nothing(tmp_path: Path) -> None:
    files: dict[str, bytes | str] = {}
    out = io.BytesIO()
    Image.fromarray(np.zeros((24, 32), np.uint8)).save(out, "PNG")
    for n in range(6):
        files |= {f"train/scans/s{n}.jpg": photo(n), f"train/truth2/s{n}.png": out.getvalue()}
        files |= {f"val/scans/v{n}.jpg": photo(n), f"val/truth2/v{n}.png": out.getvalue()}
    found = rows(made(tmp_path, files))
    assert len(found) == 12
    assert found[0] == ("train/scans/s0.jpg", "train", ["train/truth2/s0.png"])
    assert found[-1] == ("val/scans/v5.jpg", "validation", ["val/truth2/v5.png"])


def test_a_mask_of_the_same_name_in_one_folder(tmp_path: Path) -> None:
    listing = made(tmp_path, {"a.jpg": photo(), "a.png": IDS, "b.jpg": photo(1), "b.png": IDS})
    assert rows(listing) == [("a.jpg", None, ["a.png"]), ("b.jpg", None, ["b.png"])]


def test_one_mask_an_object(tmp_path: Path) -> None:
    """Nuclei of the 2018 Data Science Bowl."""
    files: dict[str, bytes | str] = {}
    for picture in ("00ae65", "0a7d30"):
        files[f"stage1_train/{picture}/images/{picture}.png"] = photo()
        files |= {f"stage1_train/{picture}/masks/{n}{picture}.png": IDS for n in ("07a9", "1e48")}
    listing = made(tmp_path, files)
    index = read(listing)
    assert index.mask_code.objects
    assert rows(listing)[0] == (
        "stage1_train/00ae65/images/00ae65.png", None,
        ["stage1_train/00ae65/masks/07a900ae65.png", "stage1_train/00ae65/masks/1e4800ae65.png"],
    )  # fmt: skip
    assert len(index.table) == 2


@pytest.mark.parametrize(
    "parts", [["masks/a/0.png", "masks/a/1.png"], ["masks/a_mask.png", "masks/a_mask_1.png"]]
)
def test_several_masks_of_one_picture(tmp_path: Path, parts: list[str]) -> None:
    listing = made(tmp_path, {"images/a.png": photo(), "images/b.png": photo(1)} | dict.fromkeys(parts, IDS))
    assert rows(listing) == [("images/a.png", None, parts)]
    assert read(listing).mask_code.objects


def test_cityscapes_views_that_are_no_ids_are_passed_over(tmp_path: Path) -> None:
    stem = "gtFine/train/ulm/ulm_1_gtFine"
    views = {f"{stem}_{view}.png": IDS for view in ("color", "instanceIds", "labelIds", "labelTrainIds")}
    listing = made(
        tmp_path,
        {"leftImg8bit/train/ulm/ulm_1_leftImg8bit.png": photo(), **views, f"{stem}_polygons.json": "{}"},
    )
    assert rows(listing)[0][2] == [f"{stem}_labelIds.png"]
    assert read(listing).ignored == {"other view of masks": 3}


def test_what_has_no_partner_is_counted(tmp_path: Path) -> None:
    files: dict[str, bytes | str] = {f"images/{n}.jpg": photo() for n in "abc"}
    index = read(made(tmp_path, files | {f"masks/{n}.png": IDS for n in "abz"}))
    assert index.table["path"].to_pylist() == ["images/a.jpg", "images/b.jpg"]
    assert {(f.kind, f.severity): f.examples for f in index.findings} == {
        ("picture_without_mask", "warning"): ["images/c.jpg"],
        ("mask_without_picture", "warning"): ["masks/z.png"],
    }


# ---- splits by lists


def test_lists_of_voc(tmp_path: Path) -> None:
    files: dict[str, bytes | str] = {}
    for n in range(5):
        files |= {f"JPEGImages/my pic {n}.jpg": photo(n), f"SegmentationClass/my pic {n}.png": IDS}
        files[f"SegmentationObject/my pic {n}.png"] = IDS
    files |= {
        "ImageSets/Segmentation/train.txt": "\ufeffmy pic 0\r\nmy pic 1 \r\n",
        "ImageSets/Segmentation/val.txt": "my pic 2\nmy pic 3\n",
        "ImageSets/Segmentation/trainval.txt": "my pic 0\nmy pic 1\nmy pic 2\nmy pic 3\n",
        "ImageSets/Main/train.txt": "my pic 4\n",
    }
    listing = made(tmp_path, files)
    splits = {path: split for path, split, _ in rows(listing)}
    assert list(splits.values()) == ["train", "train", "validation", "validation"]
    (unlisted,) = read(listing).findings
    assert (unlisted.kind, unlisted.examples) == ("picture_in_no_list", ["JPEGImages/my pic 4.jpg"])
    assert read(listing).ignored == {"other view of masks": 5}


def test_lists_of_pairs_and_of_somebody_elses_paths(tmp_path: Path) -> None:
    files: dict[str, bytes | str] = {f"images/{n}.png": photo() for n in "abc"}
    files |= {f"labels/{n}.png": IDS for n in "abc"}
    files |= {
        "train.txt": "/SegNet/CamVid/images/a.png /SegNet/CamVid/labels/a.png\n",
        "test.txt": "C:\\data\\images\\b.png\n./images/c.png\n",
    }
    assert [row[:2] for row in rows(made(tmp_path, files))] == [
        ("images/a.png", "train"), ("images/b.png", "test"), ("images/c.png", "test"),
    ]  # fmt: skip


def test_a_picture_in_two_lists(tmp_path: Path) -> None:
    files: dict[str, bytes | str] = {
        "images/a.png": photo(),
        "masks/a.png": IDS,
        "train.txt": "a",
        "val.txt": "b\na",
    }
    with pytest.raises(DataError, match=r"line \d: images/a.png is in the list of \w+, too; accepted: one"):
        read(made(tmp_path, files))


def test_trainval_and_test_of_oxford_pets(tmp_path: Path) -> None:
    files: dict[str, bytes | str] = {f"images/Cat_{n}.jpg": photo() for n in range(3)}
    files |= {f"annotations/trimaps/Cat_{n}.png": IDS for n in range(3)}
    files |= {
        "annotations/trainval.txt": "Cat_0 1 1 1\nCat_1 1 1 1\n",
        "annotations/test.txt": "Cat_2 1 1 1\n",
    }
    assert [row[1] for row in rows(made(tmp_path, files))] == ["train", "train", "test"]


# ---- tables


PLAIN: dict[str, bytes | str] = {"images/a.jpg": photo(), "masks/a.png": IDS}


@pytest.mark.parametrize(
    ("table", "text", "names", "code"),
    [
        ("classes.txt", "\ufeffground\r\nbig dog\r\n\r\n", ["ground", "big dog"], None),
        ("classes.txt", "ground\n\ndog\n", ["ground", "1", "dog"], None),  # an empty line keeps its place
        ("classes.txt", "0 ground\n255 dog\n", ["ground", "dog"], {"values": {0: 0, 255: 1}}),
        ("classes.txt", "2: cat\n1: dog\n", ["dog", "cat"], {"values": {1: 0, 2: 1}}),
        ("classes.txt", "'ground'\nsay \"hi\"\nrock'n'roll\n", ["ground", 'say "hi"', "rock'n'roll"], None),
        ("classes.txt", '0 "ground"\n1 say "hi"\n', ["ground", 'say "hi"'], {"values": {0: 0, 1: 1}}),
        ("labelmap.txt", "ground:0,0,0::\n3:128,0,0::\n", ["ground", "3"], {"colours": {0: 0, 0x800000: 1}}),
        ("labelmap.txt", "7:0,0,0::\n3:128,0,0::\n", ["7", "3"], {"colours": {0: 0, 0x800000: 1}}),
        ("train/_classes.csv", "Pixel Value, Class\n0, background\n1, cat\n", ["background", "cat"],
         {"values": {0: 0, 1: 1}}),
        ("labelmap.txt", "# label:color_rgb:parts:actions\nbackground:0,0,0::\ncar:128,0,0::\n",
         ["background", "car"], {"colours": {0: 0, 0x800000: 1}}),
        ("class_dict.csv", "name,r,g,b\nAnimal,64,128,64\nVoid,0,0,0\n", ["Animal", "Void"],
         {"colours": {0x408040: 0, 0: 1}}),
        ("class_dict.csv", 'name, r, g, b\n"paved-area", 128, 64, 128\nunlabeled, 0, 0, 0\n',
         ["paved-area", "unlabeled"], {"colours": {0x804080: 0, 0: 1}}),
        ("label_colors.txt", "64 128 64\tAnimal\n0 0 0\t\tVoid\n", ["Animal", "Void"],
         {"colours": {0x408040: 0, 0: 1}}),
        ("label_colors.txt", "0 0 0 background\n128 0 0 traffic light\n", ["background", "traffic light"],
         {"colours": {0: 0, 0x800000: 1}}),
        ("classes.json", '["ground", "dog"]', ["ground", "dog"], None),
        ("id2label.json", '{"0": "ground", "1": "dog"}', ["ground", "dog"], {"values": {0: 0, 1: 1}}),
        ("labels.json", '{"ground": [0, 0, 0], "dog": [255, 0, 0]}', ["ground", "dog"],
         {"colours": {0: 0, 0xFF0000: 1}}),
    ],
)  # fmt: skip
def test_tables(tmp_path: Path, table: str, text: str, names: list[str], code: dict[str, Any] | None) -> None:
    index = read(made(tmp_path, {**PLAIN, table: text}))
    assert index.names == {"mask": names}
    if code is None:
        assert index.mask_code is None
    else:
        assert {key: getattr(index.mask_code, key) for key in code} == code


def test_a_table_may_be_named_as_the_source(tmp_path: Path) -> None:
    made(tmp_path, {**PLAIN, "classes.txt": "ground\ndog\n"})
    listing = Listing.open(str(tmp_path / "classes.txt"))
    assert masks.look(listing) is not None and read(listing).names == {"mask": ["ground", "dog"]}


# ---- refusals


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({"images/a.jpg": b"", "images/a.png": b"", "masks/a.png": IDS},
         r": images/a\.jpg and images/a\.png: one stem"),
        ({"images/a.jpg": b"", "masks/a.png": IDS, "labels/a.png": IDS},
         r"labels/a\.png and masks/a\.png: two masks of one picture; accepted"),
        ({"classes.txt": b"ground\ncaf\xe9\n"}, r"classes\.txt line 2: no text in UTF-8; accepted"),
        ({"classes.txt": "cat\ndog\ncat\n"}, r"classes\.txt line 3: 'cat' stands in line 1, too; accepted"),
        ({"labelmap.txt": "a:0,0,0::\nb:0,0,0::\n"}, r"labelmap\.txt line 2: colour 0 0 0 stands twice"),
        ({"labelmap.txt": "a:0,0,0::\nb:300,0,0::\n"},
         r"labelmap\.txt line 2: colour \(300, 0, 0\); accepted"),
        ({"train/_classes.csv": "0,a\n1,b\n", "test/_classes.csv": "0,a\n1,c\n"}, "says other classes than"),
        ({"classes.json": "{"}, r"classes\.json: no JSON"),
    ],
)  # fmt: skip
def test_mistakes_name_their_place(tmp_path: Path, files: dict[str, bytes | str], says: str) -> None:
    listing = made(tmp_path, {"images/x.jpg": photo(), "masks/x.png": IDS, **files})
    assert masks.look(listing) is not None  # a look tells nothing of what is wrong
    with pytest.raises(DataError, match=says) as error:
        read(listing)
    assert "\n" not in str(error.value)


def test_nothing_that_has_a_mask(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no picture has a mask; accepted: images"):
        read(made(tmp_path, {"images/a.jpg": b"", "masks/b.png": IDS}))


@pytest.mark.parametrize(
    ("files", "lacks"),
    [
        ({"images/a.jpg": photo(), "masks/b.png": IDS}, "only 0 of 1 masks have a picture of the same name"),
        (
            {"images/a.jpg": photo(), "masks/a.png": IDS, "masks/b.png": IDS, "masks/c.png": IDS},
            "only 1 of 3 masks",
        ),
        ({"images/a.jpg": photo(), "masks/a.png": photo(1, "PNG")}, "masks/a.png, look like photographs"),
        ({"images/a.jpg": photo(), "masks/a.png": b"no picture"}, "cannot be read"),
        ({"images/train/a.jpg": photo(), "masks/test/a.png": IDS}, "only 0 of 1"),
    ],
)
def test_what_a_layout_of_masks_lacks(tmp_path: Path, files: dict[str, bytes | str], lacks: str) -> None:
    look = masks.look(made(tmp_path, files))
    assert look is not None and lacks in look.lacks


@pytest.mark.parametrize(
    "files",
    [
        {"cat/1.jpg": photo(), "dog/1.jpg": photo(1)},
        {"mask/1.jpg": photo(), "no_mask/1.jpg": photo(1)},  # classes of people with and without masks
        {"with_mask/1.jpg": photo(), "without_mask/1.jpg": photo(1)},
        {"train/mask/1.jpg": photo(), "train/helmet/1.jpg": photo(1)},
        {"images/a.jpg": photo(), "labels/a.txt": b"0 .5 .5 1 1", "classes.txt": b"cat"},
        {"images/a.jpg": photo(), "images/a.png": photo(1, "PNG"), "labels/a.txt": b"0 .5 .5 1 1"},
        {"cat/a.jpg": photo(), "cat/a_label.jpg": photo(1)},
        {},
    ],
)
def test_other_layouts_are_left_to_others(tmp_path: Path, files: dict[str, bytes | str]) -> None:
    look = masks.look(made(tmp_path, files))
    assert look is None or look.lacks


def test_many_files_are_quick() -> None:
    import time

    names = [f"images/train/{n % 100}/x{n}.jpg" for n in range(50_000)]
    listing = Listing(
        "nowhere", [*names, *(n.replace("images", "masks").replace(".jpg", ".png") for n in names)]
    )
    started = time.process_time()
    assert len(pairs.find(listing).masks_of) == 50_000
    assert time.process_time() - started < 10


def test_a_validation_split_without_masks_is_refused(tmp_path: Path) -> None:
    files: dict[str, bytes | str] = {"train/images/a.jpg": photo(), "train/masks/a.png": IDS}
    folders = made(tmp_path / "folders", {**files, "val/images/b.jpg": photo(1)})
    with pytest.raises(DataError, match=r"1 pictures of validation, as val/images/b\.jpg, and none has"):
        read(folders)
    assert rows(made(tmp_path / "test", {**files, "test/images/b.jpg": photo(1)}))  # as Kaggle hands it out
    lists = {"JPEGImages/a.jpg": photo(), "SegmentationClass/a.png": IDS, "JPEGImages/b.jpg": photo(1),
             "ImageSets/Segmentation/train.txt": "a\n", "ImageSets/Segmentation/val.txt": "b\n"}  # fmt: skip
    with pytest.raises(DataError, match=r"1 pictures of validation, as JPEGImages/b\.jpg"):
        read(made(tmp_path / "lists", lists))


def test_names_in_a_csv_may_be_quoted_or_numbers(tmp_path: Path) -> None:
    table = 'name,r,g,b\n007,0,0,0\n3,128,0,0\n"a,b",0,128,0\n"say ""hi""","128","128","0"\n#5,0,0,128\n'
    index = read(made(tmp_path, {"images/a.jpg": photo(), "masks/a.png": IDS, "class_dict.csv": table}))
    assert index.names == {"mask": ["007", "3", "a,b", 'say "hi"', "#5"]}
    assert index.mask_code.colours == {0: 0, 0x800000: 1, 0x008000: 2, 0x808000: 3, 0x000080: 4}


@pytest.mark.parametrize(
    ("row", "message"),
    [("cat,128,0", r"class_dict\.csv line 3: 'cat,128,0'; accepted: name,r,g,b"),
     ("cat,128,x,0", r"class_dict\.csv line 3: g = 'x'; accepted: a whole number"),
     ("cat,128,-1,0", r"class_dict\.csv line 3: colour \(128, -1, 0\)")],
)  # fmt: skip
def test_mistakes_in_a_csv_of_colours(row: str, message: str, tmp_path: Path) -> None:
    table = f"name,r,g,b\nnothing,0,0,0\n{row}\n"
    listing = made(tmp_path, {"images/a.jpg": photo(), "masks/a.png": IDS, "class_dict.csv": table})
    with pytest.raises(DataError, match=message):
        read(listing)


@pytest.mark.parametrize("name", ["frame-8", "img_8", "8"])
def test_a_folder_a_picture_may_be_called_by_any_number(name: str, tmp_path: Path) -> None:
    files: dict[str, bytes | str] = {}
    for number, folder in enumerate(["frame-7", name, "frame-10"]):
        files[f"train/{folder}/images/{folder}.jpg"] = photo(number)
        files |= {f"train/{folder}/masks/{number}a{n}.png": IDS for n in range(2)}
    assert [len(paths) for _, _, paths in rows(made(tmp_path, files))] == [2, 2, 2]
