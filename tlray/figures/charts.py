"""Plots of the report, and the types that make up its sections.

A plot is a small SVG (bytes) in the style of svg.py; no meaning depends on colour alone. matplotlib is
imported when the first plot is drawn.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from tlray.figures.svg import BLUE, GRID, INK, PAPER, RED, SERIES, SKY, SOFT, Plot, short_text, to_svg

MATRIX_CLASSES = 30  # with more classes, the most confused pairs are shown in place of a matrix


@dataclass(frozen=True)
class Column:
    """A column of a table. With ``most``, a bar behind each number shows its share of that."""

    name: str
    digits: int | None = None
    most: float | None = None


@dataclass(frozen=True)
class Table:
    """A table. Cells are text, numbers or None (shown as a dash); ``mark``: index of the highlighted row."""

    columns: Sequence[Column]
    rows: Sequence[Sequence[Any]]
    mark: int | None = None


@dataclass(frozen=True)
class Shot:
    """A picture, or two side by side. ``row`` and ``beside`` are indices of evaluation rows, ``lines`` the
    caption as (name, text)."""

    row: int
    lines: Sequence[tuple[str, str]]
    beside: int | None = None

    @property
    def rows(self) -> tuple[int, ...]:
        return (self.row,) if self.beside is None else (self.row, self.beside)


@dataclass(frozen=True)
class Section:
    """A section of the report without HTML: its plots, then tables, then pictures."""

    title: str
    caption: str = ""
    svgs: Sequence[bytes] = ()
    tables: Sequence[Table] = ()
    shots: Sequence[Shot] = ()


@dataclass(frozen=True)
class Line:
    """A curve over ``x``, by default epochs 1, 2, ...; None and NaN are gaps.

    Each ``main`` curve has its own colour; ``other`` and ``faded`` ones are drawn behind them, and those with
    the same label share one entry of the legend.
    """

    label: str
    y: Sequence[float | None]
    x: Sequence[float] | None = None
    kind: Literal["main", "other", "faded"] = "main"


@dataclass(frozen=True)
class Point:
    """A trial of a search: its values of two settings, and its result."""

    x: Any
    y: Any
    value: float
    stopped: bool = False


def classification(
    truth: Sequence[int],
    prediction: Sequence[int],
    probability: Sequence[float],
    labels: Sequence[str],
    num_shots: int = 24,
) -> list[Section]:
    """Sections about single-label predictions: confusion, classes, calibration, worst mistakes.

    ``probability`` (0..1) is that of the predicted class. Without rows there are no sections.
    """
    if not truth:
        return []
    correct_N = np.asarray(truth) == np.asarray(prediction)
    svg, ece = reliability(probability, correct_N.tolist())
    pairs = _confused(truth, prediction, labels)
    wrong = sorted(np.flatnonzero(~correct_N).tolist(), key=lambda i: -probability[i])
    table = Table(
        [Column("truth"), Column("predicted"), Column("pictures"), Column("share of class", 3, most=1)],
        [[a, b, n, share] for a, b, n, share in pairs[:10]],
    )
    classes = per_class(truth, prediction, labels)
    return [
        Section(
            "Confusion",
            f"{int(correct_N.sum())} of {len(truth)} right. "
            + (
                "A row is a true class, a column a predicted class; blue is right, orange wrong, "
                "stronger is a greater share of the row."
                if len(labels) <= MATRIX_CLASSES
                else f"With {len(labels)} classes: the pairs most often confused."
            ),
            [confusion_matrix(truth, prediction, labels)],
            [table] if pairs else [],
        ),
        Section(
            "Classes",
            "Precision: the share of a class's predictions that are right. Recall: the share of its pictures "
            "that were recognised. Weakest first; a dash where a class was never predicted or never occurs.",
            tables=[
                Table(
                    [Column("class")]
                    + [Column(name, 3, most=1) for name in ("precision", "recall", "f1")]
                    + [Column("pictures")],
                    [
                        [c["label"], c["precision"], c["recall"], c["f1"], c["support"]]
                        for c in sorted(classes, key=lambda c: math.inf if c["f1"] is None else c["f1"])
                    ],
                )
            ],
        ),
        Section(
            "Calibration",
            f"How often the model is right, by its probability. Expected calibration error {ece:.3f} over "
            "ten bins (arXiv 1706.04599); a bar below the line: the model is overconfident.",
            [svg],
        ),
        Section(
            "Worst mistakes",
            f"{len(wrong)} of {len(truth)} wrong, highest probability first. Sometimes the label is wrong.",
            shots=[
                Shot(
                    i,
                    [
                        ("truth", labels[truth[i]]),
                        ("predicted", labels[prediction[i]]),
                        ("probability", f"{probability[i]:.3f}"),
                    ],
                )
                for i in wrong[:num_shots]
            ],
        ),
    ]


def per_class(truth: Sequence[int], prediction: Sequence[int], labels: Sequence[str]) -> list[dict[str, Any]]:
    """For each label: label, precision, recall, f1 (0..1, None where it is 0 / 0), support (rows)."""
    counts_CC = _counts(truth, prediction, len(labels))
    correct_C, predicted_C, truth_C = np.diag(counts_CC), counts_CC.sum(0), counts_CC.sum(1)
    return [
        {
            "label": label,
            "precision": float(correct_C[i] / predicted_C[i]) if predicted_C[i] else None,
            "recall": float(correct_C[i] / truth_C[i]) if truth_C[i] else None,
            "f1": float(2 * correct_C[i] / total) if (total := predicted_C[i] + truth_C[i]) else None,
            "support": int(truth_C[i]),
        }
        for i, label in enumerate(labels)
    ]


def confusion_matrix(
    truth: Sequence[int], prediction: Sequence[int], labels: Sequence[str], max_classes: int = MATRIX_CLASSES
) -> bytes:
    """SVG: counts by truth and prediction; with more than ``max_classes`` the 20 most confused pairs."""
    if len(labels) > max_classes:
        return _pairs_plot(_confused(truth, prediction, labels)[:20])
    from matplotlib.patches import Rectangle

    counts_CC, n = _counts(truth, prediction, len(labels)), len(labels)
    cell = 0.42 if n <= 12 else 0.34 if n <= 20 else 0.27  # inches
    with Plot(max(n * cell, 1.2), max(n * cell, 1.2)) as (figure, axes):
        share_CC = counts_CC / np.maximum(counts_CC.sum(1, keepdims=True), 1)
        for i, j in np.argwhere(counts_CC > 0):
            share = float(share_CC[i, j])
            colour, alpha = (BLUE, 0.08 + 0.92 * share) if i == j else (RED, min(1.0, 0.1 + 1.8 * share))
            axes.add_patch(Rectangle((j - 0.47, i - 0.47), 0.94, 0.94, facecolor=colour, alpha=alpha, lw=0))
            size = 8.5 if counts_CC[i, j] < 1000 and n <= 12 else 7 if n <= 20 else 5.5
            axes.text(
                j, i, str(counts_CC[i, j]), ha="center", va="center_baseline", fontsize=size,
                color=PAPER if alpha > 0.5 else INK,
            )  # fmt: skip
        ends = np.arange(n + 1) - 0.5
        axes.hlines(ends, -0.5, n - 0.5, color=GRID, lw=0.5)
        axes.vlines(ends, -0.5, n - 0.5, color=GRID, lw=0.5)
        axes.set(xlim=(-0.5, n - 0.5), ylim=(n - 0.5, -0.5), xlabel="predicted", ylabel="true")
        names = [short_text(name) for name in labels]
        axes.set_xticks(range(n), names, rotation=45, ha="right", rotation_mode="anchor")
        axes.set_yticks(range(n), names)
        axes.tick_params(length=0, labelcolor=INK)
        axes.spines[:].set_visible(False)
        return to_svg(figure)


def reliability(
    probability: Sequence[float], correct: Sequence[bool], num_bins: int = 10
) -> tuple[bytes, float]:
    """SVG of accuracy by predicted probability in equal bins, and the expected calibration error (0..1).

    ECE = sum over bins of share of rows x |accuracy - mean probability| (Guo et al., arXiv 1706.04599,
    equation 3). NaN without rows.
    """
    p_N, correct_N = np.asarray(probability, float), np.asarray(correct, float)
    bin_N = np.clip((p_N * num_bins).astype(int), 0, num_bins - 1)
    rows = np.bincount(bin_N, minlength=num_bins)
    used = rows > 0
    accuracy = np.bincount(bin_N, correct_N, num_bins)[used] / rows[used]
    confidence = np.bincount(bin_N, p_N, num_bins)[used] / rows[used]
    share = rows / max(len(p_N), 1)
    ece = float((share[used] * np.abs(accuracy - confidence)).sum()) if len(p_N) else math.nan
    middle, width = (np.arange(num_bins) + 0.5) / num_bins, 0.92 / num_bins
    with Plot(3.4, 3.3, 2, height_ratios=[4, 1]) as (figure, (top, below)):
        # A bin of few rows means little, and is drawn fainter.
        for x, y, weight in zip(
            middle[used], accuracy, np.sqrt(rows[used] / max(rows.max(), 1)), strict=True
        ):
            top.bar(x, y, width, color=BLUE, alpha=0.12 + 0.68 * float(weight), lw=0)
        top.vlines(
            confidence, np.minimum(accuracy, confidence), np.maximum(accuracy, confidence), color=RED, lw=2
        )
        top.plot([0, 1], [0, 1], color=SOFT, lw=1, ls=(0, (3, 2)))
        top.plot(confidence, confidence, ls="", marker="o", ms=3.2, color=RED)
        top.set(xlim=(0, 1), ylim=(0, 1), ylabel="share that was right")
        top.tick_params(labelbottom=False)
        top.grid(axis="y")
        top.set_title(f"ECE {ece:.3f}", loc="left", fontsize=8.5, color=SOFT)
        below.bar(middle, share, width, color=SOFT, alpha=0.55, lw=0)
        below.set(xlim=(0, 1), xlabel="predicted probability", ylabel="rows")
        below.set_yticks([0, float(share.max() or 1)], ["0", f"{share.max():.0%}"])
        return to_svg(figure), ece


def curves(lines: Sequence[Line], ylabel: str, xlabel: str = "epoch", log: bool = False) -> bytes:
    """SVG: curves; the range of the vertical axis is that of the curves that are not faded."""
    from matplotlib.ticker import MaxNLocator

    with Plot(3.5, 2.45) as (figure, axes):
        figure.subplots_adjust(left=0.125, right=0.985, top=0.89, bottom=0.16)  # plots side by side line up
        in_range: list[float] = []
        styles = {id(line): SERIES[i % 4] for i, line in enumerate(x for x in lines if x.kind == "main")}
        named: set[str] = set()
        behind = [line for kind in ("faded", "other") for line in lines if line.kind == kind]
        for line in behind + [line for line in lines if line.kind == "main"][::-1]:
            y = np.array([math.nan if value is None else float(value) for value in line.y])
            y[~np.isfinite(y) | (log & (y <= 0))] = math.nan
            if not np.isfinite(y).any():
                continue
            x = np.arange(1, len(y) + 1) if line.x is None else np.asarray(line.x, float)
            last = int(np.flatnonzero(np.isfinite(y))[-1])
            if line.kind == "main":
                colour, dashes = styles[id(line)]
                style: dict[str, Any] = {"color": colour, "ls": dashes, "zorder": 4}
            elif line.kind == "other":
                style = {"color": SKY, "lw": 1, "alpha": 0.6, "zorder": 3}
            else:
                style = {"color": SOFT, "lw": 0.9, "alpha": 0.55, "zorder": 2}
            label = "_" if line.label in named else short_text(line.label, 28)
            named.add(line.label)
            axes.plot(x, y, label=label, **style)
            # The dot shows where a trial was stopped, and makes a run of one epoch visible.
            axes.plot(x[last], y[last], marker="o", ms=3.4, **style)
            if line.kind != "faded":
                in_range += y[np.isfinite(y)].tolist()
        if log:
            axes.set_yscale("log")
        elif in_range:
            low, high = min(in_range), max(in_range)
            space = 0.1 * (high - low) or 0.05 * abs(high) or 0.1
            # One diverged trial must not flatten the others.
            shown = axes.get_ylim()
            room = 1.2 * (high - low) or space
            axes.set_ylim(max(shown[0], low - room) - space / 2, min(shown[1], high + room) + space / 2)
        axes.set(xlabel=xlabel, ylabel=short_text(ylabel))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=7))
        axes.grid(axis="y")
        handles, names = axes.get_legend_handles_labels()
        if len(handles) > 1:
            axes.legend(
                handles[::-1], names[::-1], loc="lower left", bbox_to_anchor=(-0.04, 1.0), ncols=4,
                borderpad=0, borderaxespad=0.2, handlelength=1.5, columnspacing=0.9, handletextpad=0.4,
                fontsize=7.6,
            )  # fmt: skip
        return to_svg(figure, tight=False)


def heatmap(points: Sequence[Point], xlabel: str, ylabel: str, value: str, maximise: bool = True) -> bytes:
    """SVG of a result over two settings, with all values as text and the best one framed.

    With few distinct values of x it is a grid; a cell shows its best trial, and how many there were. With
    more numbers along x it shows dots, on a log scale where they span more than a factor of 20. y is a list
    of levels, in the order of ``points``. A trial that was stopped early is in brackets.
    """
    from matplotlib.patches import Rectangle

    points = [point for point in points if math.isfinite(point.value)]
    levels = list(dict.fromkeys(point.y for point in points))
    numeric = all(isinstance(p.x, (int, float)) and not isinstance(p.x, bool) for p in points)
    xs = list(dict.fromkeys(point.x for point in points))
    xs = sorted(xs) if numeric else xs
    grid = len(xs) <= 8 or not numeric
    sign = 1 if maximise else -1
    ranked = sorted(sign * point.value for point in points) or [0.0]
    span = (ranked[-1] - ranked[0]) or 1.0
    width = max(2.6, 0.75 * len(xs)) if grid else 6.4
    with Plot(width, max(1.0, (0.44 if grid else 0.7) * len(levels))) as (figure, axes):
        spread = numeric and not grid and min(xs) > 0 and max(xs) / min(xs) > 20
        if spread:
            axes.set_xscale("log")
        cells: dict[tuple[Any, Any], list[Point]] = {}
        for point in points:
            cells.setdefault((point.x, point.y), []).append(point)
        heights = {} if grid else _heights(cells, spread, 0.4 / width)
        for (x, y), trials in cells.items():
            top = max(trials, key=lambda point: sign * point.value)
            shade = (sign * top.value - ranked[0]) / span
            alpha, row = 0.07 + 0.88 * shade**1.5, levels.index(y)
            best = sign * top.value == ranked[-1]
            text = f"({top.value:.3f})" if top.stopped else f"{top.value:.3f}"
            if grid:
                column = xs.index(x)
                box = (column - 0.46, row - 0.44)
                axes.add_patch(Rectangle(box, 0.92, 0.88, facecolor=BLUE, alpha=alpha, lw=0))
                if best:
                    axes.add_patch(Rectangle(box, 0.92, 0.88, fill=False, edgecolor=RED, lw=2, zorder=3))
                many = f" ×{len(trials)}" if len(trials) > 1 else ""  # noqa: RUF001
                axes.text(
                    column, row, text + many, ha="center", va="center_baseline", fontsize=8,
                    weight="bold" if best else "normal", color=PAPER if alpha > 0.5 else INK,
                )  # fmt: skip
            else:
                axes.plot(x, row, marker="o", ms=8, color=BLUE, alpha=alpha, mew=0)
                ring = {"ms": 9, "mec": RED, "mew": 2} if best else {"ms": 8, "mec": BLUE, "mew": 0.7}
                axes.plot(x, row, marker="o", mfc="none", **ring)
                axes.annotate(
                    text, (x, row), (0, heights[x, y]), textcoords="offset points", ha="center", va="center",
                    fontsize=7,
                    weight="bold" if best else "normal",
                )  # fmt: skip
        if grid:
            axes.set_xticks(range(len(xs)), [short_text(_number(x)) for x in xs])
            axes.set_xlim(-0.5, max(len(xs), 1) - 0.5)
        axes.set_yticks(range(len(levels)), [short_text(_number(y)) for y in levels])
        axes.set_ylim(-0.6, max(len(levels), 1) - 0.4)
        axes.set(xlabel=short_text(xlabel, 40), ylabel=short_text(ylabel, 40))
        axes.set_title(short_text(value, 40), loc="left", fontsize=8.5, color=SOFT)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        axes.grid(not grid)
        return to_svg(figure)


def _heights(places: Iterable[tuple[Any, Any]], log: bool, room: float) -> dict[tuple[Any, Any], int]:
    """Offsets (points) of labels above or below their dots, so that neighbours in a row do not overlap.

    ``room``: a label's width as a share of the plot's.
    """
    position = {place: math.log(place[0]) if log else float(place[0]) for place in places}
    span = (max(position.values(), default=0.0) - min(position.values(), default=0.0)) or 1.0
    ends: dict[tuple[Any, int], float] = {}
    heights = {}
    for place in sorted(position, key=lambda place: position[place]):
        x = position[place] / span
        free = [h for h in (11, -11, 20, -20) if x - ends.get((place[1], h), -math.inf) >= room]
        heights[place] = free[0] if free else 11
        ends[place[1], heights[place]] = x
    return heights


def scatter(points: Sequence[tuple[float, float, str]], xlabel: str, ylabel: str) -> bytes:
    """SVG: points (x, y, name), each with its name beside it."""
    with Plot(3.5, 2.45) as (figure, axes):
        axes.plot([x for x, _, _ in points], [y for _, y, _ in points], ls="", marker="o", ms=4, color=BLUE)
        middle = (min(x for x, _, _ in points) + max(x for x, _, _ in points)) / 2
        for x, y, name in points:
            side, shift = ("left", 5) if x <= middle else ("right", -5)
            axes.annotate(
                short_text(name), (x, y), (shift, 3), textcoords="offset points", ha=side, fontsize=7.6,
                color=SOFT,
            )  # fmt: skip
        axes.set(xlabel=short_text(xlabel), ylabel=short_text(ylabel))
        axes.margins(0.12)
        axes.grid()
        return to_svg(figure)


def stage_bar(stages: Sequence[tuple[str, float]]) -> bytes:
    """SVG: a bar for each stage, in the order in which they ran; seconds >= 0."""
    total = sum(seconds for _, seconds in stages) or 1.0
    names = [(name, s, f"{duration(s)}  ·  {s / total:.0%}") for name, s in stages]
    return _bars(names, BLUE)


def duration(seconds: float) -> str:
    """Seconds as text: ``0.4 s``, ``42 s``, ``12.3 min``, ``2 h 05 min``."""
    if not math.isfinite(seconds):
        return "?"
    if seconds < 59.5:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    if seconds < 3597:  # 59.95 min and more round to an hour
        return f"{seconds / 60:.1f} min"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min"


def _counts(truth: Sequence[int], prediction: Sequence[int], num_classes: int) -> np.ndarray:
    """(C, C) int64: rows by true and predicted class."""
    # Equal to scikit-learn's confusion_matrix, which a test shows; importing that takes seconds.
    assert len(truth) == len(prediction)
    counts_CC = np.zeros((num_classes, num_classes), np.int64)
    np.add.at(counts_CC, (np.asarray(truth, np.int64), np.asarray(prediction, np.int64)), 1)
    return counts_CC


def _confused(
    truth: Sequence[int], prediction: Sequence[int], labels: Sequence[str]
) -> list[tuple[str, str, int, float]]:
    """(true label, predicted label, rows, share of the true class) of mistakes, most rows first."""
    counts_CC = _counts(truth, prediction, len(labels))
    truth_C = counts_CC.sum(1)
    pairs = [(i, j) for i, j in np.argwhere(counts_CC > 0) if i != j]
    pairs.sort(key=lambda ij: (-counts_CC[ij], *ij))
    counted = ((labels[i], labels[j], int(counts_CC[i, j]), int(truth_C[i])) for i, j in pairs)
    return [(true, predicted, n, n / rows) for true, predicted, n, rows in counted]


def _pairs_plot(pairs: Sequence[tuple[str, str, int, float]]) -> bytes:
    bars = [(f"{a[:18]} → {b[:18]}", float(n), f"{n}  ·  {share:.0%} of class") for a, b, n, share in pairs]
    return _bars(bars or [("no mistakes", 0.0, "0")], RED)


def _bars(items: Sequence[tuple[str, float, str]], colour: str) -> bytes:
    """SVG: horizontal bars (name, length, text), with the text beside the bar."""
    with Plot(3.4, 0.26 * max(len(items), 1) + 0.05) as (figure, axes):
        longest = max((value for _, value, _ in items), default=0.0) or 1.0
        for row, (_, value, text) in enumerate(items):
            length = value / longest
            axes.barh(row, length, 0.62, color=colour, alpha=0.85, lw=0)
            axes.text(length + 0.02, row, short_text(text, 40), va="center_baseline", fontsize=8, color=SOFT)
        axes.set_yticks(range(len(items)), [short_text(name, 40) for name, _, _ in items])
        axes.tick_params(length=0, labelcolor=INK, labelbottom=False)
        axes.set(ylim=(max(len(items), 1) - 0.5, -0.5), xlim=(0, 1))
        axes.spines[:].set_visible(False)
        return to_svg(figure)


def _number(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
