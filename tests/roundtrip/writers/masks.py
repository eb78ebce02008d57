"""Writers of layouts of masks: ids, palettes, colours with a table, black and white, one mask an object."""

from __future__ import annotations

import io
import posixpath

import numpy as np
import numpy.typing as npt
from PIL import Image

from tests.roundtrip.habits import COMMON, TEXT, Out
from tests.roundtrip.layout import Layout
from tests.roundtrip.truth import Picture
from tests.roundtrip.writers import boxes
from tests.roundtrip.writers.labels import _by_split

HABITS = COMMON - {"nfd"} | {"missing"}
PIXELS = ("auto", "auto", "segmentation")
COLOURS = [(0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0), (0, 0, 128)]
Ids = npt.NDArray[np.uint8]


def png(pixels: npt.NDArray[np.uint8], palette: bool = False) -> bytes:
    """Pixels as a PNG."""
    image = Image.fromarray(pixels)
    if palette:
        image = image.convert("L")
        image = Image.frombytes("P", image.size, image.tobytes())
        image.putpalette([v for colour in COLOURS for v in colour])
    sink = io.BytesIO()
    image.save(sink, "PNG")
    return sink.getvalue()


def _ids(out: Out, picture: Picture) -> Ids:
    return picture.mask_HW(out.truth.classes)


def _colours(out: Out, picture: Picture) -> npt.NDArray[np.uint8]:
    return np.array(COLOURS, np.uint8)[_ids(out, picture)]


def _folders(out: Out, picture: Picture, mask_folder: str = "masks") -> tuple[str, str]:
    """Folders of a picture and of its mask: <split>/images or images/<split>."""
    split, images, masks = out.split(picture), out.folder("images"), out.folder(mask_folder)
    if out.truth.pictures[0].number % 2:
        return posixpath.join(split, images), posixpath.join(split, masks)
    return posixpath.join(images, split), posixpath.join(masks, split)


def _pairs(out: Out, encode: object, mask_folder: str = "masks", suffix: str = "") -> None:
    """Pictures and their masks in parallel folders."""
    for picture in out.truth.pictures:
        folder, masks = _folders(out, picture, mask_folder)
        out.picture(folder, picture)
        if not out.lacks_label(picture):
            out.write(f"{masks}/{out.stem(picture)}{suffix}{out.ending('.png')}", encode(picture))  # type: ignore[operator]
    out.stray(_folders(out, out.truth.pictures[0])[0])


def ids(out: Out) -> None:
    """Class ids in grey; by style another folder name, 2 bits or 16."""
    style = out.truth.pictures[0].number % 3

    def encode(picture: Picture) -> bytes:
        sink = io.BytesIO()
        image = Image.fromarray(_ids(out, picture))
        if style == 1:
            image.save(sink, "PNG", bits=2)
        elif style == 2:
            Image.fromarray(_ids(out, picture).astype(np.uint16)).save(sink, "PNG")
        else:
            image.save(sink, "PNG")
        return sink.getvalue()

    _pairs(out, encode, ["masks", "labels", "annotations"][style])


def ids_named(out: Out) -> None:
    """Class ids, and classes.txt that names them."""
    _pairs(out, lambda picture: png(_ids(out, picture)))
    out.text("classes.txt", list(out.truth.classes), positional=True)


def palette(out: Out) -> None:
    """JPEGImages/ and SegmentationClass/, ids in a palette, lists in ImageSets/Segmentation."""
    for split, pictures in _by_split(out).items():
        for picture in pictures:
            out.picture("JPEGImages", picture)
            if not out.lacks_label(picture):
                out.write(f"SegmentationClass/{out.stem(picture)}.png", png(_ids(out, picture), palette=True))
        if split:
            name = {"validation": "val"}.get(split, split)
            out.text(f"ImageSets/Segmentation/{name}.txt", [out.stem(p) for p in pictures])


def labelmap(out: Out) -> None:
    """CVAT's segmentation mask: colours, and labelmap.txt that names them."""
    for split, pictures in _by_split(out).items():
        for picture in pictures:
            out.picture("JPEGImages", picture)
            if not out.lacks_label(picture):
                out.write(f"SegmentationClass/{out.stem(picture)}.png", png(_colours(out, picture)))
        if split:
            name = {"validation": "val"}.get(split, split)
            out.text(f"ImageSets/Segmentation/{name}.txt", [out.stem(p) for p in pictures])
    colours = [",".join(map(str, colour)) for colour in COLOURS]
    lines = [f"{name}:{colour}::" for name, colour in zip(out.truth.classes, colours, strict=False)]
    out.text("labelmap.txt", ["# label:color_rgb:parts:actions", *lines])


def roboflow_masks(out: Out) -> None:
    """train/x.jpg with train/x_mask.png, and _classes.csv (Pixel Value, Class)."""
    for pictures in _by_split(out).values():
        folder = out.split(pictures[0])
        for picture in pictures:
            out.picture(folder, picture)
            if not out.lacks_label(picture):
                out.write(posixpath.join(folder, f"{out.stem(picture)}_mask.png"), png(_ids(out, picture)))
        rows = [f"{n}, {name}" for n, name in enumerate(out.truth.classes)]
        out.text(posixpath.join(folder, "_classes.csv"), ["Pixel Value, Class", *rows])


def camvid(out: Out) -> None:
    """CamVid as Kaggle has it: train/, train_labels/x_L.png, class_dict.csv."""
    for picture in out.truth.pictures:
        folder = out.split(picture)
        out.picture(folder, picture)
        if not out.lacks_label(picture):
            out.write(f"{folder}_labels/{out.stem(picture)}_L.png", png(_colours(out, picture)))
    rows: list[list[object]] = [["name", "r", "g", "b"]]
    rows += [[name, *colour] for name, colour in zip(out.truth.classes, COLOURS, strict=False)]
    out.csv("class_dict.csv", rows)


def black_and_white(out: Out) -> None:
    """0 and 255: the commonest masks there are."""
    _pairs(out, lambda picture: png(_ids(out, picture) * np.uint8(255)))


def grey_as_rgb(out: Out) -> None:
    """Ids in three equal channels."""
    _pairs(out, lambda picture: png(np.repeat(_ids(out, picture)[:, :, None], 3, axis=2)))


def suffix(out: Out) -> None:
    """masks/x_mask.png."""
    sign = ["_mask", "_gt", "_label"][out.truth.pictures[0].number % 3]
    _pairs(out, lambda picture: png(_ids(out, picture)), suffix=sign)


def one_an_object(out: Out) -> None:
    """<id>/images/<id>.png and <id>/masks/*.png, a mask of 0 and 255 for each object (the nuclei of 2018)."""
    for picture in out.truth.pictures:
        folder = posixpath.join(out.split(picture), out.stem(picture))
        out.picture(f"{folder}/images", picture)
        for n, thing in enumerate(picture.things):
            x, y, w, h = thing.box
            mask = np.zeros((picture.height, picture.width), np.uint8)
            mask[y : y + h, x : x + w] = 255
            out.write(f"{folder}/masks/{picture.number:x}{n:02d}.png", png(mask))
        if not picture.things:
            out.unlabelled.add(picture.sha256)


def coco_masks(out: Out) -> None:
    """COCO's outlines, drawn as masks."""
    boxes.coco_polygons(out)


LAYOUTS = [
    Layout("masks_ids", "mask", ids, HABITS, names="numbers", tasks=PIXELS),
    Layout("masks_named", "mask", ids_named, HABITS | TEXT, tasks=PIXELS),
    Layout(
        "masks_palette", "mask", palette, frozenset({"junk", "missing", "upper_endings"}) | TEXT,
        names="numbers", tasks=PIXELS,
    ),
    Layout(
        "masks_labelmap", "mask", labelmap, frozenset({"junk", "missing"}) | TEXT - {"empty_lines"},
        names="plain", tasks=PIXELS,
    ),
    Layout(
        "masks_roboflow", "mask", roboflow_masks, frozenset({"junk", "missing", "crlf"}), names="plain",
        tasks=PIXELS, splits="given", words=("valid",), same_stems=True,
    ),
    Layout(
        "masks_camvid", "mask", camvid, frozenset({"junk", "missing", "crlf", "bom", "quotes"}), tasks=PIXELS,
        splits="given", words=("val", "valid"), same_stems=True,
    ),
    Layout("masks_0_255", "mask", black_and_white, HABITS, names="free", tasks=PIXELS),
    Layout("masks_rgb", "mask", grey_as_rgb, HABITS, names="numbers", tasks=PIXELS),
    Layout("masks_suffix", "mask", suffix, HABITS, names="numbers", tasks=PIXELS),
    Layout("masks_objects", "mask", one_an_object, frozenset({"junk"}), names="free", tasks=PIXELS),
    Layout(
        "coco_masks", "mask", coco_masks, boxes.JSON - {"gaps"}, names="plain", tasks=("segmentation",)
    ),
]  # fmt: skip
