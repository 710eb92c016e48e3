"""Curves as inline SVG that follows the page: its colours, its type, its light or dark theme.

Matplotlib draws with stand-in colours, one for each colour of the page; the stand-ins are then
replaced by CSS variables, so that one drawing serves both themes. No text that a user has
written enters a drawing as it is: names stand in legends, which the page sets as HTML, and the
names of bars are reduced to short plain ASCII.
"""

__all__ = [
    "ATTACKED",
    "DRAWING",
    "FAINT",
    "GLOBAL",
    "INK",
    "LEARNERS",
    "MORE_LEARNERS",
    "MUTED",
    "SERIES",
    "STEPS",
    "STRIP",
    "UNPERTURBED",
    "Figure",
    "Key",
    "Panel",
    "Style",
    "draw_line",
    "new_axes",
    "plain",
    "set_scale",
    "style_of_run",
    "to_svg",
]

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from io import StringIO
from typing import Any

from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import FuncFormatter, MaxNLocator

from equipoise.report.runs_reader import Run

INK, MUTED, FAINT = "#f1a000", "#f1a001", "#f1a002"
SERIES = tuple(f"#f1b00{i}" for i in range(6))
_VARIABLES = {INK: "--ink", MUTED: "--muted", FAINT: "--rule"} | {
    colour: f"--series-{i}" for i, colour in enumerate(SERIES)
}
DRAWING: Any = {  # newer matplotlib types the keys one by one
    "font.family": ["DejaVu Sans"],
    "font.size": 11.0,
    "svg.fonttype": "none",
    "svg.hashsalt": "equipoise",
    "text.parse_math": False,
    "axes.unicode_minus": True,
    "savefig.bbox": None,
    "savefig.dpi": "figure",
}
STEPS = [1, 2, 5, 10]
STRIP = 0.07  # height of the strip of weights, as a share of the drawing


@dataclass(frozen=True)
class Style:
    """How one line is drawn: a colour of the page, dashes that differ too, a marker."""

    colour: str
    dashes: tuple[float, ...] = ()
    marker: str = "o"
    width: float = 1.6

    @property
    def variable(self) -> str:
        """The CSS variable of the colour."""
        return _VARIABLES[self.colour]

    @property
    def dasharray(self) -> str:
        """The dashes as SVG writes them."""
        return " ".join(f"{d * self.width:g}" for d in self.dashes) or "none"


@dataclass(frozen=True)
class Key:
    """An entry of a legend: a line (with its style) or a sign (``start``, ``handover``, ...)."""

    label: str
    style: Style | None = None
    sign: str = "line"


@dataclass(frozen=True)
class Panel:
    """One drawing with its title."""

    title: str
    svg: Markup


@dataclass(frozen=True)
class Figure:
    """Drawings that belong together, below one legend."""

    id: str
    caption: str
    keys: tuple[Key, ...]
    panels: tuple[Panel, ...]


_RUN_STYLES = (
    Style(SERIES[0], (), "o"),
    Style(SERIES[1], (5, 2), "s"),
    Style(SERIES[2], (1.5, 1.5), "^"),
    Style(SERIES[3], (6, 2, 1.5, 2), "D"),
    Style(SERIES[4], (3, 1.5), "v"),
    Style(SERIES[5], (8, 3), "P"),
)
_UNDEFENDED = Style(MUTED, (2, 2), "X")
LEARNERS = {"clean": Style(SERIES[0], (4, 1.5)), "robust": Style(SERIES[1], (1.5, 1.2))}
MORE_LEARNERS = (
    Style(SERIES[2], (6, 2, 1.5, 2)),
    Style(SERIES[3], (3, 1.5)),
    Style(SERIES[4], (8, 3)),
)
GLOBAL = Style(INK, (), width=2.2)
UNPERTURBED, ATTACKED = SERIES[0], SERIES[1]  # accuracy, as in the table of classes


def style_of_run(runs: Sequence[Run]) -> dict[str, Style]:
    """Return one style for each run, the same in all figures of a report."""
    defended = [run.name for run in runs if not run.undefended]
    plain = [run.name for run in runs if run.undefended]
    # A second undefended run takes a colour of its own.
    coloured = [*defended, *plain[1:]]
    styles = {name: _RUN_STYLES[i % len(_RUN_STYLES)] for i, name in enumerate(coloured)}
    return styles | dict.fromkeys(plain[:1], _UNDEFENDED)


def new_axes(width: float, height: float, bottom: float) -> tuple[Canvas, Axes]:
    """Return a drawing of a size in points, with axes above ``bottom``, as a share of it."""
    canvas = Canvas(figsize=(width / 72, height / 72), dpi=72)
    canvas.patch.set_visible(False)
    left = 44 / width
    axes = canvas.add_axes((left, bottom, 0.985 - left, 0.95 - bottom))
    plain(axes)
    axes.grid(axis="y", color=FAINT, linewidth=0.8)
    return canvas, axes


def plain(axes: Axes) -> None:
    """Leave of the frame only the line below."""
    axes.patch.set_visible(False)
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(MUTED)
        spine.set_linewidth(0.8)
    axes.tick_params(colors=MUTED, labelcolor=MUTED, width=0.8, length=3, labelsize=11)
    axes.tick_params(axis="y", length=0)


def draw_line(
    axes: Axes, x: Sequence[float], y: Sequence[float], style: Style, *, markers: bool
) -> None:
    """Draw one line, with its points marked where that is wanted."""
    (line,) = axes.plot(x, y, color=style.colour, linewidth=style.width, clip_on=False)
    if style.dashes:
        line.set_dashes(style.dashes)
    line.set_dash_capstyle("butt")
    if markers:
        axes.plot(
            x,
            y,
            linestyle="none",
            color=style.colour,
            marker=style.marker,
            markersize=3.6,
            clip_on=False,
        )


def set_scale(axes: Axes, values: Sequence[float], accuracy: bool) -> None:
    """Choose the scale: percent for accuracies, logarithmic for values far apart."""
    if accuracy:
        low, high = math.floor(20 * min(values)) / 20, math.ceil(20 * max(values)) / 20
        if high - low < 0.1:
            low, high = (low, low + 0.1) if low <= 0.9 else (0.9, 1.0)
        axes.set_ylim(max(0.0, low), min(1.0, high))
        axes.yaxis.set_major_locator(MaxNLocator(5, steps=STEPS))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{100 * v:.3g} %"))
    elif min(values) > 0 and max(values) > 30 * min(values):
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
        axes.yaxis.set_minor_formatter(FuncFormatter(lambda _v, _p: ""))
        axes.tick_params(axis="y", which="minor", length=0)
    else:
        axes.set_ylim(min(0.0, *values), max(1.05 * max(values), 1e-9))
        axes.yaxis.set_major_locator(MaxNLocator(5, steps=STEPS))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:.3g}"))


def to_svg(canvas: Canvas, identity: str, spoken: str) -> Markup:
    """Return a drawing as inline SVG with a spoken description."""
    target = StringIO()
    canvas.savefig(target, format="svg", metadata={"Date": None})
    drawing = target.getvalue()
    body = drawing[drawing.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>\s*|<style.*?</style>\s*", "", body, flags=re.DOTALL)
    view = re.search(r'viewBox="([^"]+)"', body)
    assert view is not None, "matplotlib writes a viewBox"
    body = body[body.index(">") + 1 :]
    body = re.sub(r' id="([^"]+)"', rf' id="{identity}-\1"', body)
    body = re.sub(r'xlink:href="#([^"]+)"', rf'href="#{identity}-\1"', body)
    body = re.sub(r"url\(#([^)]+)\)", rf"url(#{identity}-\1)", body)
    body = re.sub(r"font: ([\d.]+)px [^;\"]+", r"font-size: \1px", body)
    body = re.sub(r"font-family: [^;\"]+; ?", "", body)
    for colour, variable in _VARIABLES.items():
        body = body.replace(colour, f"var({variable})")
    head = f'<svg viewBox="{view[1]}" role="img" aria-label="{escape(spoken)}">'
    return Markup(head + body)  # noqa: S704 - drawn here, from numbers alone
