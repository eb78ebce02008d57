"""SVG by matplotlib for an HTML page: one style, small, safe, and in the page's own colours.

Colours are those of Okabe and Ito, which are safe for colour-blind readers. They become CSS variables with
a default (``var(--blue, #0072b2)``), so that the page chooses light or dark, and the file also works alone.
Text is stored as text. pyplot's global state is not used.
"""

from __future__ import annotations

import hashlib
import io
import re
import warnings
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK, SOFT, GRID, PAPER = "#1c2127", "#69707a", "#dfe3e8", "#fefefe"
BLUE, RED, GREEN, PURPLE, SKY, ORANGE = "#0072b2", "#d55e00", "#009e73", "#a6508c", "#3d9bd6", "#b27300"
_VARIABLES = {
    INK: "ink", SOFT: "soft", GRID: "grid", PAPER: "paper", BLUE: "blue", RED: "red", GREEN: "green",
    PURPLE: "purple", SKY: "sky", ORANGE: "orange",
}  # fmt: skip
_PX_PER_PT = 1.45  # makes the smallest text as large as the page's small text
SERIES = [(BLUE, "-"), (RED, (0, (4, 1.6))), (GREEN, (0, (1.2, 1.2))), (PURPLE, (0, (5, 1.5, 1, 1.5)))]
_STYLE = {
    "svg.fonttype": "none", "svg.hashsalt": "tlray", "font.family": "DejaVu Sans", "font.size": 8.5,
    "text.color": INK, "axes.labelcolor": SOFT, "axes.edgecolor": GRID, "axes.linewidth": 0.8,
    "axes.labelsize": 8.5, "axes.spines.top": False, "axes.spines.right": False,
    "axes.grid": False, "grid.color": GRID, "grid.linewidth": 0.6, "axes.axisbelow": True,
    "axes.unicode_minus": True, "axes.formatter.useoffset": False,
    "xtick.color": GRID, "ytick.color": GRID, "xtick.labelcolor": SOFT, "ytick.labelcolor": SOFT,
    "xtick.labelsize": 8, "ytick.labelsize": 8, "xtick.major.size": 3, "ytick.major.size": 0,
    "xtick.minor.size": 0, "ytick.minor.size": 0, "legend.frameon": False, "legend.fontsize": 8,
    "lines.linewidth": 1.7, "lines.solid_capstyle": "round", "path.simplify": True,
}  # fmt: skip


def short_text(text: object, most: int = 24) -> str:
    """A user's text for matplotlib: one line, shortened, and not interpreted as a formula."""
    line = " ".join(str(text).split())
    line = line if len(line) <= most else line[: most - 1] + "…"
    return line.replace("$", r"\$")


@dataclass
class Plot:
    """A context in which a figure of a size in inches has our style; changes no global state."""

    width: float
    height: float
    rows: int = 1
    height_ratios: Sequence[float] | None = None
    _stack: ExitStack = field(default_factory=ExitStack)

    def __enter__(self) -> tuple[Figure, Any]:
        import matplotlib
        from matplotlib.figure import Figure

        self._stack.enter_context(warnings.catch_warnings())
        # The browser has the glyphs that matplotlib's font lacks.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        self._stack.enter_context(matplotlib.rc_context(_STYLE))  # type: ignore[arg-type]
        figure = Figure(figsize=(self.width, self.height))
        ratios: Mapping[str, Any] = {"height_ratios": self.height_ratios, "hspace": 0.12}
        axes = figure.subplots(self.rows, 1, gridspec_kw={**ratios} if self.rows > 1 else None)
        # The plotting area fills the figure, and saving adds the labels around it: areas of plots line up.
        figure.subplots_adjust(left=0, right=1, bottom=0, top=1)
        return figure, axes

    def __exit__(self, *exception: object) -> None:
        self._stack.close()


def to_svg(figure: Figure, tight: bool = True) -> bytes:
    """The figure as a small SVG: without metadata, with rounded numbers, CSS variables and unique ids.

    ``tight`` fits the canvas to the drawing; else it has the figure's size.
    """
    buffer = io.BytesIO()
    edges: Any = {"bbox_inches": "tight", "pad_inches": 0.06} if tight else {}
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None}, **edges)
    text = buffer.getvalue().decode()
    prefix = "p" + hashlib.sha256(text.encode()).hexdigest()[:8]
    text = text[text.index("<svg") :]
    # User text is escaped, so a "<" always begins a tag of matplotlib's.
    for part in (r"<!--.*?-->", r"<metadata>.*?</metadata>", r"<style .*?</style>", r"<defs>\s*</defs>"):
        text = re.sub(part, "", text, flags=re.DOTALL)
    text = re.sub(r">\s+<", "><", text)
    used = set(re.findall(r'(?:url\(#|href="#)([^")]+)', "".join(re.findall(r"<[^>]*>", text))))

    def tag(match: re.Match[str]) -> str:
        it = match[0].replace("xlink:href", "href").replace(' xmlns:xlink="http://www.w3.org/1999/xlink"', "")
        it = re.sub(r' id="([^"]*)"', lambda m: f' id="{prefix}{m[1]}"' if m[1] in used else "", it)
        it = re.sub(r'(url\(#|href="#)', lambda m: m[1] + prefix, it)
        it = re.sub(r"font-family: [^;\"]*", "font-family: inherit", it)
        it = re.sub(r"(font: [^;\"]*?px) [^;\"]*", r"\1 inherit", it)
        it = re.sub(r' transform="rotate\(-?0 [^"]*\)"', "", it)
        it = re.sub(r'(width|height)="([\d.]+)pt"', lambda m: f'{m[1]}="{float(m[2]) * _PX_PER_PT:.0f}"', it)
        it = re.sub(r"-?\d+\.\d+", lambda m: f"{float(m[0]):.2f}".rstrip("0").rstrip("."), it)
        it = re.sub(r"#[0-9a-f]{6}\b", lambda m: _variable(m[0]), it)
        return re.sub(r"\s+", " ", it).replace('z "', 'z"').replace("; ", ";").replace(": ", ":")

    text = re.sub(r"<[^>]*>", tag, text)
    text = re.sub(r'<path d="[^"]*" style="fill:none"/>', "", text)  # invisible backgrounds
    text = _flat(text)
    return text.replace("<svg", '<svg font-family="system-ui,sans-serif" stroke-linejoin="round"', 1).encode()


def _flat(text: str) -> str:
    """Remove groups without attributes."""
    kept: list[bool] = []

    def tag(match: re.Match[str]) -> str:
        it = match[0]
        if it == "</g>":
            return it if kept.pop() else ""
        if it.startswith("<g") and not it.endswith("/>") and it[2] in "> ":
            kept.append(it != "<g>")
        return "" if it in ("<g>", "<g/>") else it

    return re.sub(r"<[^>]*>", tag, text)


def _variable(colour: str) -> str:
    name = _VARIABLES.get(colour)
    return f"var(--{name},{colour})" if name else colour
