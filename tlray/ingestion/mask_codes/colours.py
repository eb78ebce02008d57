"""Masks in colours or with palettes, and whether a table of colours describes them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

from tlray.data.masks import UNKNOWN, MaskCode
from tlray.errors import DataError
from tlray.ingestion.mask_codes.mask_set import TABLES, MaskSet

_VOID_COLOUR = 0xE0E0C0  # borders in Pascal VOC, which no table lists
_UNLISTED = 0.1  # share of pixels whose colour the table may not list; with more it is of other masks


def fits(masks: MaskSet, table: Mapping[int, int]) -> bool:
    """Whether more pixels have a colour of the table than a value that is an id."""
    usable = masks.usable()
    if any(masks.rows[i]["mask_form"] == "colour" for i in usable):
        return True
    colours, values = masks.pixels("mask_colours"), masks.pixels()
    num_names = len(masks.names or table)
    by_colour = sum(count for colour, count in colours.items() if colour in table)
    by_value = sum(count for value, count in values.items() if 0 <= value < num_names or value == UNKNOWN)
    palettes = all(masks.rows[i]["mask_form"] == "palette" for i in usable)
    return by_colour > by_value or (by_colour == by_value and palettes)


def code_of(masks: MaskSet, code: MaskCode) -> MaskCode:
    """The code with VOC's border colour as unknown. Raises DataError where too many colours are in no
    table."""
    table = {_VOID_COLOUR: UNKNOWN, **(code.colours or {})}
    pixels = masks.pixels("mask_colours")
    total = sum(pixels.values())
    unlisted = Counter({colour: count for colour, count in pixels.items() if colour not in table})
    if unlisted:
        share = sum(unlisted.values()) / total
        examples = [f"{rgb(c)} {n / total:.1%}" for c, n in unlisted.most_common(4)]
        if share > _UNLISTED:
            lossy = " (JPEG changes colours: store masks as PNG)" if _any_jpeg(masks) else ""
            raise DataError(
                f"{masks.source}: {share:.1%} of the masks' pixels have a colour that the table of colours "
                f"does not list: {', '.join(examples)}{lossy}; accepted: "
                f"{', '.join(rgb(c) for c in list(table)[1:6])} ..."
            )
        masks.note(
            "warning", "mask_colours",
            f"colours in no table, taken as unknown: {share:.2%} of all mask pixels", examples, len(unlisted),
        )  # fmt: skip
    return replace(code, colours=table)


def without_table(masks: MaskSet) -> None:
    """For sources without a table of colours: refuses masks in colours, or leaves out a few among masks of
    ids."""
    usable = masks.usable()
    coloured = [i for i in usable if masks.rows[i]["mask_form"] == "colour"]
    if not coloured:
        return
    if 2 * len(coloured) > len(usable):
        pixels: Counter[int] = Counter()
        for i in coloured:
            pixels.update(dict(zip(masks.rows[i]["mask_colours"], masks.rows[i]["mask_counts"], strict=True)))
        total, most = sum(pixels.values()), max(masks.rows[i]["mask_distinct"] for i in coloured)
        examples = ", ".join(f"{rgb(c)} {n / total:.1%}" for c, n in pixels.most_common(4))
        content = f"{most} colours in one, as photographs have" if most > 256 else f"colours ({examples})"
        raise DataError(
            f"{masks.source}: {len(coloured)} of {len(usable)} masks, such as that of "
            f"{masks.rows[coloured[0]]['path']}, hold {content} and no table says which class a colour is; "
            f"accepted: masks of class ids, or a table beside them: {TABLES}"
        )
    for i in coloured:
        masks.leave_out(i, "mask_unreadable", "its mask is in colours; accepted: one class id a pixel")


def same_palettes(masks: MaskSet) -> None:
    """Refuses palettes that differ between masks, since then positions in them mean nothing."""
    colour_at: dict[int, tuple[int, str]] = {}
    for i in masks.usable():
        row = masks.rows[i]
        if row["mask_form"] != "palette":
            continue
        for position, colour in zip(row["mask_values"], row["mask_colours"], strict=True):
            earlier = colour_at.setdefault(position, (colour, row["path"]))
            if earlier[0] != colour:
                raise DataError(
                    f"{masks.source}: palettes differ between masks: position {position} is "
                    f"{rgb(earlier[0])} in that of {earlier[1]} and {rgb(colour)} in that of {row['path']}; "
                    f"accepted: one palette, or a table of colours: {TABLES}"
                )


def rgb(colour: int) -> str:
    return f"({colour >> 16 & 255}, {colour >> 8 & 255}, {colour & 255})"


def _any_jpeg(masks: MaskSet) -> bool:
    return any(masks.rows[i]["mask_format"] == "JPEG" for i in masks.usable())
