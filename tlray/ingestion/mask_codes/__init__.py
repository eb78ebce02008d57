"""Which class each value in the masks of a source is, decided from the values of all masks and their counts.

What is clear is read and reported. What may have two meanings is refused, with the values, their shares and
what is accepted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from tlray.data.masks import AS_STORED, UNKNOWN, MaskCode, ids_of
from tlray.errors import DataError
from tlray.ingestion.findings import Finding
from tlray.ingestion.mask_codes import colours, smoothing, values
from tlray.ingestion.mask_codes.mask_set import MaskSet, numbers, two_names

_MUCH_UNKNOWN = 0.3  # share of all pixels; with more unknown ones training suffers


@dataclass(frozen=True)
class Decision:
    """What the masks of a source mean."""

    code: MaskCode
    names: list[str]  # by id
    rows: pa.Table  # mask_values and mask_counts by id (255: unknown); kind and reason set for unusable masks
    findings: list[Finding]


_SEEN = (
    "mask_values", "mask_counts", "mask_colours", "mask_distinct", "mask_form", "mask_format", "mask_between",
    "mask_steps", "mask_reason",
)  # fmt: skip


def decide(
    source: str, rows: pa.Table, names: Sequence[str] | None, stated_code: MaskCode | None
) -> Decision:
    """Decide what the values of all masks mean.

    ``rows``: path, kind, reason and the columns of `preflight.INSPECTED_MASK`, with values as stored.
    ``names``: of the ids, where the source states them. ``stated_code``: what the source says about the
    values. Raises DataError where the masks cannot be understood, or show fewer than two classes.
    """
    columns = ["path", "kind", "reason", *_SEEN]
    masks = MaskSet(
        source, rows.select(columns).to_pylist(), list(names) if names else None,
        rows["kind"].to_pylist(), rows["reason"].to_pylist(), [],
    )  # fmt: skip
    for i in masks.usable():
        if masks.rows[i]["mask_values"] is None:
            reason = masks.rows[i]["mask_reason"] or "its mask cannot be read"
            masks.leave_out(i, "mask_unreadable", f"its mask: {reason}")
    if not masks.usable():
        return Decision(stated_code or AS_STORED, masks.names or [], _with(rows, masks, {}), [])
    code, class_names = _code(masks, stated_code or AS_STORED)
    ids = _ids(masks, code, class_names)
    _check_classes(masks, ids, class_names)
    return Decision(code, class_names, _with(rows, masks, ids), masks.findings)


def _code(masks: MaskSet, stated_code: MaskCode) -> tuple[MaskCode, list[str]]:
    if stated_code.objects:
        return stated_code, two_names(masks)
    if all(masks.rows[i]["mask_form"] == "outlines" for i in masks.usable()):
        return stated_code, masks.names or numbers(masks.pixels())
    if stated_code.colours is not None:
        by_colour = colours.fits(masks, stated_code.colours)
        if by_colour:
            return colours.code_of(masks, replace(stated_code, by_colour=True)), masks.names or []
    else:
        colours.without_table(masks)
    colours.same_palettes(masks)
    smoothed = smoothing.code_of(masks)
    if smoothed is not None:
        return smoothed, two_names(masks)
    return values.code_of(masks, stated_code)


def _ids(masks: MaskSet, code: MaskCode, names: Sequence[str]) -> dict[int, dict[int, int]]:
    """Row -> id -> number of pixels (255: unknown); masks with ids that have no name are left out."""
    ids_of_rows: dict[int, dict[int, int]] = {}
    for i in masks.usable():
        row = masks.rows[i]
        if code.objects:
            ids = row["mask_values"]
        else:
            stored, rgb = (np.array(row[name], np.int32) for name in ("mask_values", "mask_colours"))
            ids = ids_of(stored, rgb, row["mask_form"], code).tolist()
        pixels: Counter[int] = Counter()
        for number, count in zip(ids, row["mask_counts"], strict=True):
            pixels[number] += count
        invalid = sorted(number for number in pixels if number != UNKNOWN and not 0 <= number < len(names))
        if invalid:
            accepted = (
                f"; accepted: 0 ({names[0]}) to {len(names) - 1} ({names[-1]}), 255 for unknown"
                if names
                else ""
            )
            masks.leave_out(
                i, "mask_values", f"id {invalid[0]} in its mask, of {len(names)} class names{accepted}"
            )
        ids_of_rows[i] = dict(sorted(pixels.items()))
    return ids_of_rows


def _check_classes(masks: MaskSet, ids: Mapping[int, Mapping[int, int]], names: Sequence[str]) -> None:
    """Notes the share of unknown pixels. Raises DataError where fewer than two classes occur."""
    total: Counter[int] = Counter()
    for i in masks.usable():
        total.update(ids[i])
    if not total:
        return
    num_pixels = sum(total.values())
    unknown = total.pop(UNKNOWN, 0) / num_pixels
    if unknown:
        paths = [masks.rows[i]["path"] for i in masks.usable() if UNKNOWN in ids[i]]
        masks.note(
            "warning" if unknown > _MUCH_UNKNOWN else "info", "unknown_pixels",
            f"{unknown:.1%} of all mask pixels are unknown (they teach and count nothing)", paths, len(paths),
        )  # fmt: skip
    if len(total) < 2:
        only = ", ".join(f"{number} ({names[number]})" for number in total) or "none"
        raw = ", ".join(str(value) for value in sorted(masks.pixels())[:4])
        form = "value" if len(masks.pixels()) == 1 else "values"
        raise DataError(
            f"{masks.source}: masks show fewer than two classes: {only} in {len(masks.usable())} masks "
            f"({form} {raw}); accepted: two classes or more, the background being one"
        )


def _with(rows: pa.Table, masks: MaskSet, ids: Mapping[int, Mapping[int, int]]) -> pa.Table:
    values = [list(ids[i]) if i in ids else None for i in range(rows.num_rows)]
    counts = [list(ids[i].values()) if i in ids else None for i in range(rows.num_rows)]
    for name, column in (("mask_values", values), ("mask_counts", counts), ("kind", masks.kinds),
                         ("reason", masks.reasons)):  # fmt: skip
        position = rows.column_names.index(name)
        rows = rows.set_column(position, name, pa.array(column, rows.schema.field(name).type))
    return rows
