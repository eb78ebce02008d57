"""Which class each value of a set of masks is, decided from the values and counts of all of them.

Nothing is guessed in silence: what is plain is read, and said; what may mean two things is refused with
the values, their shares, and what is accepted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa

from tlray.errors import DataError
from tlray.findings import SHOWN, Finding
from tlray.masks import AS_STORED, UNKNOWN, MaskCode, ids_of

TABLES = (
    "classes.txt (`value name` a line), labelmap.txt, class_dict.csv or label_colors.txt (name and r, g, b)"
)
"""Tables beside the masks that say which class a value or a colour is."""

_SENTINELS = {-1: UNKNOWN, 65535: UNKNOWN}  # how "no class" is written where a value has more than 8 bits
_VOID_COLOUR = 0xE0E0C0  # Pascal VOC's borders, in no table
_RAMPS = 0.2  # of a mask's steps: from here on its edges were smoothed
_FEW = 5  # values below which a ramp may be a thin border between two areas
_POLES = (32, 223)  # of smoothed black and white nearly all pixels lie outside of these
_NEAR_POLES = 0.8
_LEVEL = 0.02  # share of a value between the poles that makes it a level of its own
_GREY_GAP = 16  # values that lie at least so far apart are grey levels, not ids
_MUCH_UNKNOWN = 0.3  # share of all pixels above which training suffers
_UNLISTED = 0.1  # share of pixels of colours in no table above which the table is another one


@dataclass(frozen=True)
class Decision:
    """``names`` by id; ``rows`` as given, their mask_values and mask_counts by id now (255: unknown), and
    kind and reason set where a mask cannot be used."""

    code: MaskCode
    names: list[str]
    rows: pa.Table
    findings: list[Finding]


@dataclass
class _Masks:
    """All masks at once: pixels by value, and what stands out."""

    source: str
    rows: list[dict[str, Any]]
    names: list[str] | None
    kinds: list[str | None]
    reasons: list[str | None]
    findings: list[Finding]

    def usable(self) -> list[int]:
        return [i for i, kind in enumerate(self.kinds) if kind is None]

    def leave_out(self, row: int, kind: str, reason: str) -> None:
        self.kinds[row], self.reasons[row] = kind, reason

    def note(
        self, severity: Any, kind: str, message: str, examples: Sequence[str] = (), count: int = 1
    ) -> None:
        self.findings.append(Finding(severity, kind, count, message, list(examples)[:SHOWN]))

    def pixels(self, column: str = "mask_values") -> Counter[int]:
        """Pixels of each value in the usable masks."""
        total: Counter[int] = Counter()
        for i in self.usable():
            for value, count in zip(self.rows[i][column], self.rows[i]["mask_counts"], strict=True):
                total[value] += count
        return total


_SEEN = (
    "mask_values", "mask_counts", "mask_colours", "mask_distinct", "mask_form", "mask_format", "mask_between",
    "mask_steps", "mask_reason",
)  # fmt: skip


def decide(source: str, rows: pa.Table, names: Sequence[str] | None, given: MaskCode | None) -> Decision:
    """The code of a set of masks.

    ``rows``: path, kind, reason and the columns ``mask_*`` as first seen, raw values; ``names``: of the ids,
    where the layout gives them; ``given``: what the layout says of the values. Raises DataError where the
    masks cannot be understood, or show fewer than two classes.
    """
    columns = ["path", "kind", "reason", *_SEEN]
    masks = _Masks(
        source, rows.select(columns).to_pylist(), list(names) if names else None,
        rows["kind"].to_pylist(), rows["reason"].to_pylist(), [],
    )  # fmt: skip
    for i in masks.usable():
        if masks.rows[i]["mask_values"] is None:
            reason = masks.rows[i]["mask_reason"] or "its mask cannot be read"
            masks.leave_out(i, "mask_unreadable", f"its mask: {reason}")
    if not masks.usable():
        return Decision(given or AS_STORED, masks.names or [], _with(rows, masks, {}), [])
    code, found_names = _code(masks, given or AS_STORED)
    ids = _ids(masks, code, found_names)
    _check_classes(masks, ids, found_names)
    return Decision(code, found_names, _with(rows, masks, ids), masks.findings)


def _code(masks: _Masks, given: MaskCode) -> tuple[MaskCode, list[str]]:
    if given.objects:
        return given, _two_names(masks)
    if all(masks.rows[i]["mask_form"] == "outlines" for i in masks.usable()):
        return given, masks.names or _numbers(masks.pixels())
    if given.colours is not None:
        by_colour = _fits_colours(masks, given.colours)
        if by_colour:
            return _of_colours(masks, replace(given, by_colour=True)), masks.names or []
    else:
        _no_colours(masks)
    _same_palettes(masks)
    smoothed = _smoothed(masks)
    if smoothed is not None:
        return smoothed, _two_names(masks)
    return _of_values(masks, given)


# ---- colours


def _fits_colours(masks: _Masks, table: Mapping[int, int]) -> bool:
    """Whether the table of colours explains the masks better than their values as ids do."""
    usable = masks.usable()
    if any(masks.rows[i]["mask_form"] == "colour" for i in usable):
        return True
    colours, values = masks.pixels("mask_colours"), masks.pixels()
    known = len(masks.names or table)
    by_colour = sum(count for colour, count in colours.items() if colour in table)
    by_value = sum(count for value, count in values.items() if 0 <= value < known or value == UNKNOWN)
    palettes = all(masks.rows[i]["mask_form"] == "palette" for i in usable)
    return by_colour > by_value or (by_colour == by_value and palettes)


def _of_colours(masks: _Masks, code: MaskCode) -> MaskCode:
    """The code with VOC's border colour as unknown; colours in no table are a finding, or too many."""
    table = {_VOID_COLOUR: UNKNOWN, **(code.colours or {})}
    pixels = masks.pixels("mask_colours")
    total = sum(pixels.values())
    unlisted = Counter({colour: count for colour, count in pixels.items() if colour not in table})
    if unlisted:
        share = sum(unlisted.values()) / total
        seen = [f"{_rgb(c)} {n / total:.1%}" for c, n in unlisted.most_common(4)]
        if share > _UNLISTED:
            lossy = " (JPEG changes colours: store masks as PNG)" if _any_jpeg(masks) else ""
            raise DataError(
                f"{masks.source}: {share:.1%} of the masks' pixels have a colour that the table of colours "
                f"does not list: {', '.join(seen)}{lossy}; accepted: "
                f"{', '.join(_rgb(c) for c in list(table)[1:6])} ..."
            )
        masks.note(
            "warning", "mask_colours",
            f"colours in no table, taken as unknown: {share:.2%} of all mask pixels", seen, len(unlisted),
        )  # fmt: skip
    return replace(code, colours=table)


def _no_colours(masks: _Masks) -> None:
    """Without a table of colours: refuse masks in colours, or leave out the few among masks of ids."""
    usable = masks.usable()
    coloured = [i for i in usable if masks.rows[i]["mask_form"] == "colour"]
    if not coloured:
        return
    if 2 * len(coloured) > len(usable):
        pixels: Counter[int] = Counter()
        for i in coloured:
            pixels.update(dict(zip(masks.rows[i]["mask_colours"], masks.rows[i]["mask_counts"], strict=True)))
        total, most = sum(pixels.values()), max(masks.rows[i]["mask_distinct"] for i in coloured)
        seen = ", ".join(f"{_rgb(c)} {n / total:.1%}" for c, n in pixels.most_common(4))
        what = f"{most} colours in one, as photographs have" if most > 256 else f"colours ({seen})"
        raise DataError(
            f"{masks.source}: {len(coloured)} of {len(usable)} masks, such as that of "
            f"{masks.rows[coloured[0]]['path']}, hold {what} and no table says which class a colour is; "
            f"accepted: masks of class ids, or a table beside them: {TABLES}"
        )
    for i in coloured:
        masks.leave_out(i, "mask_unreadable", "its mask is in colours; accepted: one class id a pixel")


def _same_palettes(masks: _Masks) -> None:
    """Refuse palettes that differ from mask to mask: a position means nothing then."""
    colour_at: dict[int, tuple[int, str]] = {}
    for i in masks.usable():
        row = masks.rows[i]
        if row["mask_form"] != "palette":
            continue
        for position, colour in zip(row["mask_values"], row["mask_colours"], strict=True):
            first = colour_at.setdefault(position, (colour, row["path"]))
            if first[0] != colour:
                raise DataError(
                    f"{masks.source}: palettes differ between masks: position {position} is "
                    f"{_rgb(first[0])} in that of {first[1]} and {_rgb(colour)} in that of {row['path']}; "
                    f"accepted: one palette, or a table of colours: {TABLES}"
                )


# ---- smoothed edges


def _smoothed(masks: _Masks) -> MaskCode | None:
    """A threshold where masks of black and white were smoothed; DataError where other masks were."""
    usable = masks.usable()
    edged = [i for i in usable if masks.rows[i]["mask_steps"]]
    smooth = [i for i in edged if _is_smooth(masks.rows[i])]
    if not smooth:
        return None
    if 2 * len(smooth) <= len(edged):
        for i in smooth:
            masks.leave_out(i, "mask_smoothed", f"{_smoothing(masks.rows[i])}; accepted: class ids")
        return None
    pixels = masks.pixels()
    total = sum(pixels.values())
    near = sum(n for value, n in pixels.items() if not _POLES[0] < value < _POLES[1])
    level = any(n > _LEVEL * total for value, n in pixels.items() if _POLES[0] < value < _POLES[1])
    two = masks.names is None or len(masks.names) <= 2
    if two and 250 <= max(pixels) <= 255 and near >= _NEAR_POLES * total and not level:
        masks.note(
            "warning", "mask_smoothed",
            f"{len(smooth)} masks of black and white have smoothed edges ({len(pixels)} grey values, by a "
            "resize or by JPEG): from 128 on a pixel is the object",
            [masks.rows[i]["path"] for i in smooth], len(smooth),
        )  # fmt: skip
        return MaskCode(threshold=128)
    rare = sum(1 for n in pixels.values() if n <= 0.05 * total)
    raise DataError(
        f"{masks.source}: {len(smooth)} of {len(usable)} masks hold grey values along their edges that are "
        f"no classes: {len(pixels)} values from {min(pixels)} to {max(pixels)}, {rare} of them rare, as a "
        "resize with smoothing or JPEG leaves them; accepted: PNG of class ids, resized by nearest neighbour"
    )


def _is_smooth(row: Mapping[str, Any]) -> bool:
    values = row["mask_values"]
    sparse = row["mask_distinct"] < (max(values) - min(values)) / 2
    if row["mask_format"] == "JPEG" and row["mask_distinct"] > 2 and sparse:
        return True
    ramps: bool = row["mask_between"] >= _RAMPS * row["mask_steps"]
    return ramps and row["mask_distinct"] >= _FEW and bool(sparse or row["mask_distinct"] > 32)


def _smoothing(row: Mapping[str, Any]) -> str:
    return f"its mask has {row['mask_distinct']} grey values that blend into one another along edges"


# ---- grey values and palette positions


def _of_values(masks: _Masks, given: MaskCode) -> tuple[MaskCode, list[str]]:
    """The code of masks whose values are few and clean."""
    pixels = masks.pixels()
    sentinels = {value: UNKNOWN for value in _SENTINELS if value in pixels}
    if sentinels == {65535: UNKNOWN} and set(pixels) <= {0, 65535}:
        pixels[255], sentinels = pixels.pop(65535), {65535: 1}  # black and white in 16 bits
    for value in sentinels:
        pixels.pop(value, None)
        if sentinels[value] == UNKNOWN:
            masks.note("info", "mask_sentinel", f"{value} in masks is taken as unknown")
    _leave_out_large(masks, sentinels)
    if given.values is not None:
        return _listed_values(masks, given.values, sentinels), masks.names or []
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
    known = values - {UNKNOWN}
    if masks.names is not None and len(masks.names) == 1 and known <= {0, 1}:
        masks.names = _two_names(masks)
        masks.note("info", "mask_names", f"one class name for two ids: 0 is taken as {masks.names[0]!r}")
    code = MaskCode(values={**{v: v for v in range(256)}, **sentinels}) if sentinels else AS_STORED
    return code, masks.names or _numbers(pixels)


def _leave_out_large(masks: _Masks, sentinels: Mapping[int, int]) -> None:
    for i in masks.usable():
        odd = [v for v in masks.rows[i]["mask_values"] if not 0 <= v <= 255 and v not in sentinels]
        if odd:
            masks.leave_out(
                i, "mask_values", f"value {odd[0]} in its mask; accepted: class ids from 0 to 255"
            )


def _listed_values(masks: _Masks, table: Mapping[int, int], sentinels: Mapping[int, int]) -> MaskCode:
    """A table of values holds for all; other values than 255 leave their mask out."""
    for i in masks.usable():
        odd = [
            v for v in masks.rows[i]["mask_values"] if v not in table and v != UNKNOWN and v not in sentinels
        ]
        if odd:
            seen = ", ".join(map(str, sorted(table)[:8]))
            masks.leave_out(
                i, "mask_values", f"value {odd[0]} in its mask, in no table; accepted: {seen}, 255"
            )
    if all(value == number for value, number in table.items()) and not sentinels:
        return AS_STORED
    return MaskCode(values={UNKNOWN: UNKNOWN, **sentinels, **table})


def _black_and_white(masks: _Masks) -> list[str] | None:
    """Names where masks hold 0 and 255 alone; None where a list of three names or more speaks against it."""
    if masks.names is not None and len(masks.names) > 2:
        return None
    names = _two_names(masks)
    masks.note(
        "info", "mask_black_and_white",
        f"masks hold 0 and 255 alone: 0 is taken as {names[0]!r}, 255 as {names[1]!r}",
        count=len(masks.usable()),
    )  # fmt: skip
    return names


def _mixed_habits(masks: _Masks, values: set[int]) -> None:
    """Refuse 0 and 1 in some masks beside 0 and 255 in others: 255 is the object there, or unknown."""
    if values != {0, 1, UNKNOWN}:
        return
    with_one = [i for i in masks.usable() if 1 in masks.rows[i]["mask_values"]]
    with_unknown = [i for i in masks.usable() if UNKNOWN in masks.rows[i]["mask_values"]]
    if with_one and with_unknown and not set(with_one) & set(with_unknown):
        one, other = masks.rows[with_one[0]]["path"], masks.rows[with_unknown[0]]["path"]
        raise DataError(
            f"{masks.source}: {len(with_one)} masks hold 0 and 1 (that of {one}), {len(with_unknown)} others "
            f"0 and 255 (that of {other}): 255 is the object or unknown; accepted: the same in all masks"
        )


def _grey_levels(masks: _Masks, values: set[int]) -> tuple[dict[int, int], list[str]] | None:
    """Values far apart are grey levels that stand for classes: numbered in order where that is plain."""
    known = sorted(values - {UNKNOWN})
    everything = sorted(values)
    if masks.names is not None and len(masks.names) == len(everything) and everything[-1] >= len(everything):
        if _far_apart(everything):
            names = masks.names
            _say_levels(masks, everything, names)
            return {value: number for number, value in enumerate(everything)}, names
        return None
    if masks.names is not None or len(known) < 2 or not _far_apart(known):
        return None
    if UNKNOWN in values:
        total = sum(masks.pixels().values())
        seen = ", ".join(f"{v} ({masks.pixels()[v] / total:.1%})" for v in everything)
        raise DataError(
            f"{masks.source}: masks hold the grey values {seen}, which are no class ids, and 255 may be a "
            "class or unknown; accepted: ids 0, 1, 2, ... with 255 for unknown, or a table beside the masks: "
            f"{TABLES}"
        )
    names = [str(value) for value in known]
    _say_levels(masks, known, names)
    return {**{value: number for number, value in enumerate(known)}, UNKNOWN: UNKNOWN}, names


def _say_levels(masks: _Masks, levels: Sequence[int], names: Sequence[str]) -> None:
    pairs = [f"{value}: {name}" for value, name in zip(levels, names, strict=True)]
    masks.note(
        "warning", "mask_levels",
        f"masks hold {len(levels)} grey values far apart, taken as {len(levels)} classes in that order",
        pairs, len(levels),
    )  # fmt: skip


def _far_apart(values: Sequence[int]) -> bool:
    return len(values) >= 2 and int(np.diff(values).min()) >= _GREY_GAP


def _no_jpeg(masks: _Masks, binary: bool) -> None:
    """JPEG keeps black and white where it is clean; of ids that differ by 1 it keeps nothing."""
    if binary:
        return
    for i in masks.usable():
        if masks.rows[i]["mask_format"] == "JPEG":
            masks.leave_out(
                i, "mask_jpeg", "its mask is a JPEG, which does not keep class ids; accepted: PNG"
            )


def _rgb(colour: int) -> str:
    return f"({colour >> 16 & 255}, {colour >> 8 & 255}, {colour & 255})"


def _any_jpeg(masks: _Masks) -> bool:
    return any(masks.rows[i]["mask_format"] == "JPEG" for i in masks.usable())


# ---- names and results


def _two_names(masks: _Masks) -> list[str]:
    """Names of nothing and of the object."""
    names = masks.names or ["object"]
    return ["background", names[0]] if len(names) == 1 else list(names)


def _numbers(pixels: Iterable[int]) -> list[str]:
    """Nobody named the ids: their numbers are their names."""
    most = max((value for value in pixels if 0 <= value < UNKNOWN), default=-1)
    return [str(number) for number in range(most + 1)]


def _ids(masks: _Masks, code: MaskCode, names: Sequence[str]) -> dict[int, dict[int, int]]:
    """Row -> pixels of each id, 255 being unknown; masks with ids above the names are left out."""
    found: dict[int, dict[int, int]] = {}
    for i in masks.usable():
        row = masks.rows[i]
        values, colours = (np.array(row[name], np.int32) for name in ("mask_values", "mask_colours"))
        if code.objects:
            numbers = values.tolist()
        else:
            numbers = ids_of(values, colours, row["mask_form"], code).tolist()
        pixels: Counter[int] = Counter()
        for number, count in zip(numbers, row["mask_counts"], strict=True):
            pixels[number] += count
        odd = sorted(number for number in pixels if number != UNKNOWN and not 0 <= number < len(names))
        if odd:
            first = (
                f"; accepted: 0 ({names[0]}) to {len(names) - 1} ({names[-1]}), 255 for unknown"
                if names
                else ""
            )
            masks.leave_out(i, "mask_values", f"id {odd[0]} in its mask, of {len(names)} class names{first}")
        found[i] = dict(sorted(pixels.items()))
    return found


def _check_classes(masks: _Masks, ids: Mapping[int, Mapping[int, int]], names: Sequence[str]) -> None:
    """Share of unknown pixels as a finding. Raises DataError where fewer than two classes occur."""
    total: Counter[int] = Counter()
    for i in masks.usable():
        total.update(ids[i])
    if not total:
        return
    everything = sum(total.values())
    unknown = total.pop(UNKNOWN, 0) / everything
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


def _with(rows: pa.Table, masks: _Masks, ids: Mapping[int, Mapping[int, int]]) -> pa.Table:
    values = [list(ids[i]) if i in ids else None for i in range(rows.num_rows)]
    counts = [list(ids[i].values()) if i in ids else None for i in range(rows.num_rows)]
    for name, column in (("mask_values", values), ("mask_counts", counts), ("kind", masks.kinds),
                         ("reason", masks.reasons)):  # fmt: skip
        at = rows.column_names.index(name)
        rows = rows.set_column(at, name, pa.array(column, rows.schema.field(name).type))
    return rows
