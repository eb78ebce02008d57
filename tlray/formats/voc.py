"""Pascal VOC: ``Annotations/*.xml`` beside ``JPEGImages``, splits in ``ImageSets/Main/{train,val,test}.txt``.

A picture is found by the name of its .xml file. Where there are lists, what stands in none is left aside;
trainval.txt counts only where neither train.txt nor val.txt is there. Pixels are numbered from 1 and both
corners belong to the box (VOC development kit), so a box from 1 to the width spans the whole picture.
"""

from __future__ import annotations

import posixpath
from collections import Counter
from xml.etree import ElementTree

import pyarrow as pa
from pyarrow import fs as pafs

from tlray.errors import DataError
from tlray.formats import Boxes, is_picture, objects_table, read_all, text_of, walk

_LISTS = {"train": "train", "val": "validation", "test": "test", "trainval": "train"}  # file -> split
_SIDES = ("xmin", "ymin", "xmax", "ymax")


def fits(fs: pafs.FileSystem, root: str) -> int:
    """3 (surer than folders and tables) where both of VOC's folders are."""
    folders = (posixpath.join(root, name) for name in ("Annotations", "JPEGImages"))
    return 3 * all(fs.get_file_info(path).type == pafs.FileType.Directory for path in folders)


def index(fs: pafs.FileSystem, root: str) -> pa.Table:
    """Table of (path, split, objects), sorted by path; boxes are (x, y, width, height) in px.

    Raises DataError for .xml that cannot be read or lacks something, and for lists that name a picture
    twice or one that is not there.
    """
    told = walk(fs, posixpath.join(root, "Annotations"))
    names = {posixpath.splitext(path)[0]: path for path in told if path.endswith(".xml")}
    if not names:
        raise DataError(f"{root}/Annotations: no .xml file; accepted: one for each picture")
    shown = filter(is_picture, walk(fs, posixpath.join(root, "JPEGImages")))
    pictures = {posixpath.splitext(path)[0]: f"JPEGImages/{path}" for path in shown}
    splits = _splits(fs, root, set(names))
    wanted = sorted(splits) if splits else sorted(names)
    files = [posixpath.join(root, "Annotations", names[name]) for name in wanted]
    rows = [
        # A picture that is missing is listed too, so that the report names it.
        (pictures.get(name, f"JPEGImages/{name}.jpg"), splits.get(name), _objects(file, data))
        for name, file, data in zip(wanted, files, read_all(fs, files), strict=True)
    ]
    ignored = Counter({"in no list of ImageSets/Main": len(set(names) - set(wanted))})
    ignored["pictures without .xml"] = len(set(pictures) - set(names))
    return objects_table(rows, ignored)


def _splits(fs: pafs.FileSystem, root: str, names: set[str]) -> dict[str, str]:
    """Picture's name -> split; empty where there are no lists."""
    folder = posixpath.join(root, "ImageSets", "Main")
    there = set(walk(fs, folder))
    lists = [name for name in _LISTS if f"{name}.txt" in there]
    if len({"train", "val"} & set(lists)):
        lists = [name for name in lists if name != "trainval"]
    paths = [posixpath.join(folder, f"{name}.txt") for name in lists]
    found: dict[str, tuple[str, str]] = {}
    for part, path, data in zip(lists, paths, read_all(fs, paths), strict=True):
        for number, line in enumerate(text_of(path, data).splitlines(), 1):
            name = line.split()[0] if line.split() else ""  # lists of one class have a second column
            where = f"{path} line {number}: {name!r}"
            if not name:
                continue
            if name in found:
                raise DataError(f"{where} stands in {found[name][1]}, too; accepted: once in all lists")
            if name not in names:
                raise DataError(f"{where} has no Annotations/{name}.xml; accepted: pictures with one")
            found[name] = (_LISTS[part], f"{part}.txt line {number}")
    return {name: split for name, (split, _) in found.items()}


def _objects(file: str, data: bytes) -> Boxes:
    try:
        tree = ElementTree.fromstring(data)
    except (ElementTree.ParseError, LookupError, ValueError) as error:  # the latter two: of its encoding
        at = getattr(error, "position", None)
        place = f" line {at[0]}, column {at[1]}" if at else ""
        raise DataError(f"{file}{place}: no valid XML; accepted: a VOC annotation") from None
    boxes = []
    for number, item in enumerate(tree.findall("object"), 1):
        name = (item.findtext("name") or "").strip()
        where = f"{file}: object {number}" + (f" ({name})" if name else "")
        if not name:
            raise DataError(f"{where}: no <name>; accepted: the name of a class")
        sides = []
        for side in _SIDES:
            text = item.findtext(f"bndbox/{side}")
            try:
                sides.append(float(text or ""))
            except ValueError:
                said = f"no <{side}>" if text is None else f"<{side}> = {text!r}"
                raise DataError(
                    f"{where}: {said}; accepted: a <bndbox> of {', '.join(_SIDES)} in px"
                ) from None
        x0, y0, x1, y1 = sides
        boxes.append((name, [x0 - 1, y0 - 1, x1 - x0 + 1, y1 - y0 + 1]))
    return boxes
