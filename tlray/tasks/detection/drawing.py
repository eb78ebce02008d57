"""What people see: boxes over pictures, and the report's figures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from tlray.figures import charts
from tlray.tasks.detection.metrics import coco, hits

BOX_COLOURS = ("#0072b2", "#d55e00", "#007a5a", "#a0488b", "#806b00", "#444444", "#5b2a91", "#b3261e")


def figures(
    rows: Sequence[dict[str, Any]], labels: Sequence[str], num_shots: int = 24
) -> list[charts.Section]:
    if not rows:
        return []
    threshold = rows[0]["threshold"]
    ap_TC, _, curve_RC = coco(rows, len(labels))
    there, said, right = (np.zeros(len(labels), int) for _ in range(3))
    worst = []
    for number, row in enumerate(rows):
        sure = [o for o in row["objects"] if o[1] >= threshold]
        hit, taken, aside = hits(sure, row["truth"], row.get("ignored", ()))
        for t in row["truth"]:
            there[t[0]] += 1
        for o, h, out in zip(sure, hit, aside, strict=True):
            said[o[0]] += not out
            right[o[0]] += int(h)
        worst.append((int((~taken).sum()), int((~hit & ~aside).sum()), int(hit.sum()), number))
    order = sorted(
        range(len(labels)), key=lambda c: (there[c] == 0, float(np.nan_to_num(ap_TC[:, c].mean())))
    )
    shown, recall_R = [c for c in order if there[c]], np.linspace(0, 1, 101).tolist()
    cells = [
        [
            labels[c],
            *(float(v) if there[c] else None for v in (ap_TC[:, c].mean(), ap_TC[0, c])),
            float(right[c] / said[c]) if said[c] else None,
            float(right[c] / there[c]) if there[c] else None,
            int(there[c]),
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
    worst.sort(key=lambda w: (-w[0] - w[1], w[3]))
    wrong = [w for w in worst if w[0] + w[1]]
    return [
        charts.Section(
            "Classes",
            "AP: average precision over IoU 0.5 to 0.95, as COCO counts it. Curves, precision and recall: at "
            f"IoU 0.5, the latter two of finds with a score of {threshold:.2f} or more. Weakest first.",
            [charts.curves(lines, "precision", "recall")] if lines else [],
            [charts.Table(columns, cells)],
        ),
        charts.Section(
            "Most mistakes",
            f"{len(wrong)} of {len(rows)} pictures with an object missed or a find that is none, most of "
            "both first. Full lines: what was found, with its score. Dashed: what is there.",
            shots=[
                charts.Shot(n, [("missed", str(missed)), ("false", str(false)), ("found", str(found))])
                for missed, false, found, n in wrong[:num_shots]
            ],
        ),
    ]


class Pen:
    """Boxes and their names over a picture, as thick as it is large."""

    def __init__(self, picture: Image.Image) -> None:
        side = max(picture.size)
        self.on = ImageDraw.Draw(picture)
        self.size = picture.size
        self.width = max(1, round(side / 240))
        self.font = ImageFont.load_default(max(9, side / 30))

    def box(
        self, box: Sequence[float], colour: str, dashed: bool = False, above: str = "", below: str = ""
    ) -> None:
        x0, y0, x1, y1 = (float(v) for v in box)
        ends = [(x0, y0, x1, y0), (x1, y0, x1, y1), (x1, y1, x0, y1), (x0, y1, x0, y0)]
        for side in ends:
            self._line(side, "black", self.width + 2, 0)  # seen on any ground
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
            self.on.line([*a.tolist(), *b.tolist()], fill=colour, width=width)

    def _text(self, x: float, y: float, text: str, ground: str, ink: str, up: int) -> None:
        """On a ground of its own, moved so that it stays in the picture."""
        _, _, w, h = self.on.textbbox((0, 0), text, font=self.font)
        x = min(max(0.0, x), max(0.0, self.size[0] - w))
        y = min(max(0.0, y + up * h), max(0.0, self.size[1] - h))
        self.on.rectangle([x, y, x + w, y + h], fill=ground)
        self.on.text((x, y), text, fill=ink, font=self.font)
