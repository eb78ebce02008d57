"""Which class each value is in clean masks of a few grey values or palette positions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from tlray.data.masks import AS_STORED, UNKNOWN, MaskCode
from tlray.errors import DataError
from tlray.ingestion.mask_codes.mask_set import TABLES, MaskSet, numbers, two_names

_SENTINELS = {-1: UNKNOWN, 65535: UNKNOWN}  # "no class" in masks of more than 8 bits
_GREY_GAP = 16  # values at least this far apart are grey levels, not ids


def code_of(masks: MaskSet, stated_code: MaskCode) -> tuple[MaskCode, list[str]]:
    """(code, names by id) of clean masks of few values."""
    pixels = masks.pixels()
    sentinels = {value: UNKNOWN for value in _SENTINELS if value in pixels}
    if sentinels == {65535: UNKNOWN} and set(pixels) <= {0, 65535}:
        pixels[255], sentinels = pixels.pop(65535), {65535: 1}  # black and white in 16 bits
    for value in sentinels:
        pixels.pop(value, None)
        if sentinels[value] == UNKNOWN:
            masks.note("info", "mask_sentinel", f"{value} in masks is taken as unknown")
    _leave_out_large(masks, sentinels)
    if stated_code.values is not None:
        return _listed_values(masks, stated_code.values, sentinels), masks.names or []
    values = {value for value in pixels if 0 <= value <= 255}
    if values == {0, UNKNOWN}:
        names = _black_and_white(masks)
        if names is not None:
            _no_jpeg(masks, binary=True)
            return MaskCode(values={0: 0, 255: 1, **sentinels}), names
    _mixed_habits(masks, values)
    levels = _grey_levels(masks, values)
    _no_jpeg(masks, binary=levels is not None and len(levels[0]) == 2)
    if levels is not None:
        return MaskCode(values={**levels[0], **sentinels}), levels[1]
    ids = values - {UNKNOWN}
    if masks.names is not None and len(masks.names) == 1 and ids <= {0, 1}:
        masks.names = two_names(masks)
        masks.note("info", "mask_names", f"one class name for two ids: 0 is taken as {masks.names[0]!r}")
    code = MaskCode(values={**{v: v for v in range(256)}, **sentinels}) if sentinels else AS_STORED
    return code, masks.names or numbers(pixels)


def _leave_out_large(masks: MaskSet, sentinels: Mapping[int, int]) -> None:
    for i in masks.usable():
        invalid = [v for v in masks.rows[i]["mask_values"] if not 0 <= v <= 255 and v not in sentinels]
        if invalid:
            masks.leave_out(
                i, "mask_values", f"value {invalid[0]} in its mask; accepted: class ids from 0 to 255"
            )


def _listed_values(masks: MaskSet, table: Mapping[int, int], sentinels: Mapping[int, int]) -> MaskCode:
    """The code of a table of values; masks with values in no table are left out, but for 255."""
    for i in masks.usable():
        invalid = [
            v for v in masks.rows[i]["mask_values"] if v not in table and v != UNKNOWN and v not in sentinels
        ]
        if invalid:
            accepted = ", ".join(map(str, sorted(table)[:8]))
            masks.leave_out(
                i, "mask_values", f"value {invalid[0]} in its mask, in no table; accepted: {accepted}, 255"
            )
    if all(value == number for value, number in table.items()) and not sentinels:
        return AS_STORED
    return MaskCode(values={UNKNOWN: UNKNOWN, **sentinels, **table})


def _black_and_white(masks: MaskSet) -> list[str] | None:
    """Names for 0 and 255, where masks have no other values; None where there are three names or more."""
    if masks.names is not None and len(masks.names) > 2:
        return None
    names = two_names(masks)
    masks.note(
        "info", "mask_black_and_white",
        f"masks hold 0 and 255 alone: 0 is taken as {names[0]!r}, 255 as {names[1]!r}",
        count=len(masks.usable()),
    )  # fmt: skip
    return names


def _mixed_habits(masks: MaskSet, values: set[int]) -> None:
    """Refuses 0 and 1 in some masks beside 0 and 255 in others, where 255 may be the object or unknown."""
    if values != {0, 1, UNKNOWN}:
        return
    with_one = [i for i in masks.usable() if 1 in masks.rows[i]["mask_values"]]
    with_unknown = [i for i in masks.usable() if UNKNOWN in masks.rows[i]["mask_values"]]
    if with_one and with_unknown and not set(with_one) & set(with_unknown):
        first, second = masks.rows[with_one[0]]["path"], masks.rows[with_unknown[0]]["path"]
        raise DataError(
            f"{masks.source}: {len(with_one)} masks hold 0 and 1 (that of {first}), {len(with_unknown)} "
            f"others 0 and 255 (that of {second}): 255 is the object or unknown; accepted: the same in all "
            "masks"
        )


def _grey_levels(masks: MaskSet, values: set[int]) -> tuple[dict[int, int], list[str]] | None:
    """(value -> id, names) where values far apart are grey levels of classes; None where they are ids."""
    levels = sorted(values - {UNKNOWN})
    all_values = sorted(values)
    if masks.names is not None and len(masks.names) == len(all_values) and all_values[-1] >= len(all_values):
        if _far_apart(all_values):
            names = masks.names
            _say_levels(masks, all_values, names)
            return {value: number for number, value in enumerate(all_values)}, names
        return None
    if masks.names is not None or len(levels) < 2 or not _far_apart(levels):
        return None
    if UNKNOWN in values:
        total = sum(masks.pixels().values())
        examples = ", ".join(f"{v} ({masks.pixels()[v] / total:.1%})" for v in all_values)
        raise DataError(
            f"{masks.source}: masks hold the grey values {examples}, which are no class ids, and 255 may be "
            "a class or unknown; accepted: ids 0, 1, 2, ... with 255 for unknown, or a table beside the "
            f"masks: {TABLES}"
        )
    names = [str(value) for value in levels]
    _say_levels(masks, levels, names)
    return {**{value: number for number, value in enumerate(levels)}, UNKNOWN: UNKNOWN}, names


def _say_levels(masks: MaskSet, levels: Sequence[int], names: Sequence[str]) -> None:
    pairs = [f"{value}: {name}" for value, name in zip(levels, names, strict=True)]
    masks.note(
        "warning", "mask_levels",
        f"masks hold {len(levels)} grey values far apart, taken as {len(levels)} classes in that order",
        pairs, len(levels),
    )  # fmt: skip


def _far_apart(values: Sequence[int]) -> bool:
    return len(values) >= 2 and int(np.diff(values).min()) >= _GREY_GAP


def _no_jpeg(masks: MaskSet, binary: bool) -> None:
    """Leaves out masks in JPEG, which changes ids; clean black and white survives in it."""
    if binary:
        return
    for i in masks.usable():
        if masks.rows[i]["mask_format"] == "JPEG":
            masks.leave_out(
                i, "mask_jpeg", "its mask is a JPEG, which does not keep class ids; accepted: PNG"
            )
