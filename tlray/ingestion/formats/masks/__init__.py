"""Pictures and masks with the same name; a mask has a class for every pixel.

    images/a.jpg + masks/a.png             any of their names in any case, splits above or below
    train/a.jpg + trainannot/a.png         a folder's name and the same with a word for masks
    a.jpg + a_mask.png                     _gt, _label, _seg, _L ..., mask_a; in one folder or two
    JPEGImages/ + SegmentationClass/       with ImageSets/Segmentation/train.txt (Pascal VOC, CVAT)
    leftImg8bit/ + gtFine/*_labelIds.png   Cityscapes
    id/images/a.png + id/masks/*.png       a mask for each object, several for a picture

A table may say which class a value or a colour is (`masks.names`); what the values mean is
decided from all masks together (`tlray.ingestion.mask_codes`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from tlray.data import masks, schema
from tlray.errors import DataError, PictureError, StorageError
from tlray.ingestion.findings import finding
from tlray.ingestion.formats.base import Index, Look, table
from tlray.ingestion.formats.listing import Listing
from tlray.ingestion.formats.masks import names as naming
from tlray.ingestion.formats.masks import pairs as pairing
from tlray.ingestion.formats.masks import splits as splitting

GIVES: tuple[str, ...] = (schema.MASK,)
_SAMPLE = 4  # masks that are read to tell them from photographs
_FEW_COLOURS = 64  # different values that a mask may have; a photograph has more
_LEAST_PAIRED = 0.5  # share of the masks that must have a picture; fewer may have one by chance


def look(listing: Listing) -> Look | None:
    """Pictures that have a mask; a few masks are read to tell them from photographs."""
    if listing.named and listing.named not in naming.tables(listing):
        return None
    pairs = pairing.find(listing)
    num_masks = sum(map(len, pairs.masks_of.values())) + len(pairs.masks_alone)
    if not num_masks or not (pairs.masks_of or (pairs.by_words and pairs.pictures_alone)):
        return None
    used = [path for paths in pairs.masks_of.values() for path in paths]
    files = [*used, *pairs.masks_alone, *naming.tables(listing), *splitting.lists(listing)]
    summary = f"{len(pairs.masks_of)} pictures with masks"
    lacks = ""
    if len(used) < _LEAST_PAIRED * num_masks:
        lacks = (
            f"only {len(used)} of {num_masks} masks have a picture of the same name, as images/a.jpg beside "
            "masks/a.png or masks/a_mask.png"
        )
    elif not _are_masks(listing, used):
        lacks = f"its masks, as {used[0]}, look like photographs or cannot be read"
    if lacks and not pairs.by_words:
        return None
    return Look(summary, list(pairs.masks_of), files, lacks)


def index(listing: Listing, column: str) -> Index:
    """Table of (path, split, mask). Raises DataError where no picture has a mask, or one has two."""
    pairs = pairing.find(listing)
    if pairs.doubts:
        raise DataError(f"{listing.root}: {pairs.doubts[0]}")
    if not pairs.masks_of:
        raise DataError(
            f"{listing.root}: no picture has a mask; accepted: images/a.jpg beside masks/a.png, or a.jpg "
            "beside a_mask.png"
        )
    splits, unlisted = splitting.find(listing, pairs)
    splitting.check_validation(listing, pairs, splits)
    rows: list[dict[str, Any]] = [
        {
            "path": path,
            "split": splits.get(path) or None,
            schema.MASK: {"paths": sorted(paths), "shapes": None},
        }
        for path, paths in pairs.masks_of.items()
        if path not in unlisted
    ]
    class_table = naming.read(listing, naming.tables(listing))
    code = class_table.code if class_table is not None else None
    if pairs.objects:
        code = replace(code or masks.AS_STORED, objects=True)
    ignored = {"other view of masks": len(pairs.others)} if pairs.others else {}
    return Index(
        table(rows, schema.MASK),
        names={schema.MASK: class_table.names} if class_table is not None else {},
        mask_code=code,
        ignored=ignored,
        findings=[
            *finding("warning", "picture_without_mask", sorted(pairs.pictures_alone),
                     "{n} pictures without mask (left out)"),
            *finding("warning", "mask_without_picture", sorted(pairs.masks_alone),
                     "{n} masks without picture (left out)"),
            *finding("warning", "picture_in_no_list", sorted(unlisted),
                     "{n} pictures with masks are in no list of a split (left out)"),
        ],
    )  # fmt: skip


def _are_masks(listing: Listing, paths: Sequence[str]) -> bool:
    """Whether any of a few masks has few different values, unlike photographs."""
    ordered = sorted(paths)
    for path in ordered[:: max(1, len(ordered) // _SAMPLE)][:_SAMPLE]:
        try:
            statistics = masks.seen([listing.read(path)], None, masks.AS_STORED, (0, 0))
        except (PictureError, StorageError):
            continue
        counts = sorted(statistics["mask_counts"], reverse=True)
        # A JPEG of a mask has many values, but nearly all of its pixels have one of a few.
        mostly_few_values = sum(counts[:16]) >= 0.8 * statistics["mask_width"] * statistics["mask_height"]
        if (
            statistics["mask_form"] == "palette"
            or statistics["mask_distinct"] <= _FEW_COLOURS
            or mostly_few_values
        ):
            return True
    return False
