"""Boxes drawn on pictures, and the report's sections about detection."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from tlray.figures import charts
from tlray.tasks.detection.metrics import coco, match_objects

BOX_COLOURS = ("#0072b2", "#d55e00", "#007a5a", "#a0488b", "#806b00", "#444444", "#5b2a91", "#b3261e")


def figures(
    rows: Sequence[dict[str, Any]], labels: Sequence[str], num_shots: int = 24
) -> list[charts.Section]:
    """Average precision and curves by class, and the pictures with most mistakes."""
    if not rows:
        return []
    threshold = rows[0]["threshold"]
    ap_TC, _, curve_RC = coco(rows, len(labels))
    truth_C, predicted_C, correct_C = (np.zeros(len(labels), int) for _ in range(3))
    mistakes = []
    for number, row in enumerate(rows):
        detections = [o for o in row["objects"] if o[1] >= threshold]
        match = match_objects(detections, row["truth"], row.get("ignored", ()))
        for true_object in row["truth"]:
            truth_C[true_object[0]] += 1
        for detection, correct, ignored in zip(detections, match.correct, match.ignored, strict=True):
            predicted_C[detection[0]] += not ignored
            correct_C[detection[0]] += int(correct)
        num_false = int((~match.correct & ~match.ignored).sum())
        mistakes.append((int((~match.found).sum()), num_false, int(match.correct.sum()), number))
    order = sorted(
        range(len(labels)), key=lambda c: (truth_C[c] == 0, float(np.nan_to_num(ap_TC[:, c].mean())))
    )
    shown, recall_R = [c for c in order if truth_C[c]], np.linspace(0, 1, 101).tolist()
    cells = [
        [
            labels[c],
            *(float(v) if truth_C[c] else None for v in (ap_TC[:, c].mean(), ap_TC[0, c])),
            float(correct_C[c] / predicted_C[c]) if predicted_C[c] else None,
            float(correct_C[c] / truth_C[c]) if truth_C[c] else None,
            int(truth_C[c]),
        ]
        for c in order
    ]
    lines = [
        charts.Line(labels[c], curve_RC[:, c].tolist(), recall_R)
        if i < 4
        else charts.Line("others", curve_RC[:, c].tolist(), recall_R, "faded")
        for i, c in enumerate(shown[:40])
    ]
    numbers = ("AP", "AP at IoU 0.5", "precision", "recall")
    columns = [
        charts.Column("class"),
        *(charts.Column(n, 3, most=1) for n in numbers),
        charts.Column("objects"),
    ]
    mistakes.sort(key=lambda m: (-m[0] - m[1], m[3]))
    wrong = [m for m in mistakes if m[0] + m[1]]
    return [
        charts.Section(
            "Classes",
            "AP: average precision over IoU 0.5 to 0.95, as COCO counts it. Curves, precision and recall: at "
            f"IoU 0.5, the latter two of detections that score {threshold:.2f} or more. Weakest first.",
            [charts.curves(lines, "precision", "recall")] if lines else [],
            [charts.Table(columns, cells)],
        ),
        charts.Section(
            "Most mistakes",
            f"{len(wrong)} of {len(rows)} pictures have a missed object or a false detection; most of both "
            "first. Full lines: detections with their scores. Dashed: the true objects.",
            shots=[
                charts.Shot(n, [("missed", str(missed)), ("false", str(false)), ("found", str(found))])
                for missed, false, found, n in wrong[:num_shots]
            ],
        ),
    ]


class Pen:
    """Draws boxes and their names on a picture, with lines in proportion to its size."""

    def __init__(self, picture: Image.Image) -> None:
        side = max(picture.size)
        self.canvas = ImageDraw.Draw(picture)
        self.size = picture.size
        self.width = max(1, round(side / 240))
        self.font = ImageFont.load_default(max(9, side / 30))

    def box(
        self, box: Sequence[float], colour: str, dashed: bool = False, above: str = "", below: str = ""
    ) -> None:
        x0, y0, x1, y1 = (float(v) for v in box)
        ends = [(x0, y0, x1, y0), (x1, y0, x1, y1), (x1, y1, x0, y1), (x0, y1, x0, y0)]
        for side in ends:
            self._line(side, "black", self.width + 2, 0)  # a rim that shows on any background
            self._line(side, colour, self.width, 5 * self.width if dashed else 0)
        if above:
            self._text(x0, y0, above, colour, "white", -1)
        if below:
            self._text(x0, y1, below, colour, "black", 0)

    def _line(self, ends: tuple[float, ...], colour: str, width: int, dash: int) -> None:
        start, stop = np.array(ends[:2]), np.array(ends[2:])
        length = float(np.abs(stop - start).sum())
        for at in np.arange(0, length, 2 * dash) if dash else (0.0,):
            end = min(1.0, (at + dash) / max(length, 1e-9)) if dash else 1.0
            a, b = start + (stop - start) * at / max(length, 1e-9), start + (stop - start) * end
            self.canvas.line([*a.tolist(), *b.tolist()], fill=colour, width=width)

    def _text(self, x: float, y: float, text: str, background: str, ink: str, lines_down: int) -> None:
        """Text on a filled rectangle at (x, y), moved where it would leave the picture."""
        _, _, w, h = self.canvas.textbbox((0, 0), text, font=self.font)
        x = min(max(0.0, x), max(0.0, self.size[0] - w))
        y = min(max(0.0, y + lines_down * h), max(0.0, self.size[1] - h))
        self.canvas.rectangle([x, y, x + w, y + h], fill=background)
        self.canvas.text((x, y), text, fill=ink, font=self.font)
