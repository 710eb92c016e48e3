"""Horizontal bars: a name at the left, a number at the right, intervals as whiskers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import FuncFormatter, MaxNLocator

from equipoise.report.content import Picture
from equipoise.report.palette import Palette
from equipoise.report.pictures import STEPS, axes_at, blank, safe

_WIDTH, _ROW, _FLOOR = 400.0, 25.0, 24.0  # points
_LETTER = 6.7  # points, a letter of the drawings' type at its widest common width
_LONGEST = 22  # letters of a name


@dataclass(frozen=True)
class Bar:
    """One bar.

    Arguments:
        name: The text at its left.
        value: Its length, on the scale of the panel.
        text: The text at its right.
        clean: Whether it is of unperturbed images.
        interval: The ends of its whisker.
        lost: The length of a paler part beyond its end: the loss to this attack or stage.
        lowest: Whether it is marked as the lowest.
    """

    name: str
    value: float
    text: str
    clean: bool = False
    interval: tuple[float, float] | None = None
    lost: float = 0.0
    lowest: bool = False


def bars(title: str, rows: Sequence[Bar], most: float, identity: str, spoken: str) -> Picture:
    """Return a picture of bars, one below the other.

    The scale ends at ``most``: 1 for shares, which are shown in percent, or a number of images.
    """
    names = [safe(bar.name, _LONGEST) for bar in rows]
    gap = 19.0 if any(bar.lowest for bar in rows) else 11.0  # the mark of the lowest is in it

    def draw(palette: Palette) -> Canvas:
        left = 10 + _LETTER * max(map(len, names))
        right = gap + 4 + _LETTER * max(len(bar.text) for bar in rows)
        canvas = blank(palette, _WIDTH, _ROW * len(rows) + _FLOOR)
        place = (left, _FLOOR, _WIDTH - left - right, _ROW * len(rows))
        axes = axes_at(canvas, palette, place, grid="x", size=11)
        for i, bar in enumerate(rows):
            _draw(axes, palette, i, bar, gap)
        axes.set_xlim(0, most)
        axes.set_ylim(len(rows) - 0.45, -0.55)
        axes.set_yticks(range(len(rows)), names, color=palette.ink)
        axes.xaxis.set_major_locator(MaxNLocator(5, steps=STEPS, integer=most > 1))
        scale, form = (100, "{:.0f} %") if most == 1 else (1, "{:,.0f}")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: form.format(scale * v)))
        return canvas

    return Picture(identity, title, draw, spoken)


def _draw(axes: Axes, palette: Palette, place: int, bar: Bar, gap: float) -> None:
    colour, ink = palette.series[0 if bar.clean else 1], palette.ink
    axes.barh(place, bar.value, height=0.56, color=colour, linewidth=0)
    if bar.lost:
        shape: dict[str, Any] = {"left": bar.value, "height": 0.56, "linewidth": 0}
        axes.barh(place, bar.lost, color=colour, alpha=0.28, **shape)
    if bar.interval:
        marks: dict[str, Any] = {"marker": "|", "markersize": 7, "markeredgewidth": 1.1}
        axes.plot(bar.interval, [place] * 2, color=ink, linewidth=1.1, clip_on=False, **marks)
    side: dict[str, Any] = {"xycoords": axes.get_yaxis_transform(), "annotation_clip": False}
    side |= {"textcoords": "offset points", "color": ink, "va": "center_baseline"}
    axes.annotate(bar.text, (1, place), xytext=(gap, 0), **side)
    if bar.lowest:
        axes.annotate("\u25c2", (1, place), xytext=(6, 0), **side)
