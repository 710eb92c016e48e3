"""Horizontal bars: a name at the left, a number at the right, intervals as whiskers."""

__all__ = ["Bar", "bars"]

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import FuncFormatter, MaxNLocator
from matplotlib.transforms import ScaledTranslation

from equipoise.report.content import Picture
from equipoise.report.palette import Palette
from equipoise.report.pictures import STEPS, axes_at, blank, safe
from equipoise.report.wording import count

_WIDTH, _ROW, _FLOOR = 400.0, 25.0, 24.0  # points
_LETTER = 6.7  # points, a letter of the drawings' type at its widest common width
_LONGEST = 22  # letters of a name


@dataclass(frozen=True)
class Bar:
    """One bar.

    Arguments:
        name: What stands at its left.
        value: Its length, on the scale of the panel.
        text: What stands at its right.
        clean: Whether it is of unperturbed images.
        interval: The ends of its whisker.
        lost: A paler part beyond its end: what has just been lost.
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

    Arguments:
        title: The title of the picture.
        rows: The bars, from above.
        most: The length of the scale: 1 for shares, which are shown in percent, or a number of
            images.
        identity: The id of the drawing on its page.
        spoken: What the drawing shows, in words.
    """

    def draw(palette: Palette) -> Canvas:
        left = 10 + _LETTER * max(len(safe(bar.name, _LONGEST)) for bar in rows)
        right = _gap(rows) + 4 + _LETTER * max(len(bar.text) for bar in rows)
        canvas = blank(palette, _WIDTH, _ROW * len(rows) + _FLOOR)
        place = (left, _FLOOR, _WIDTH - left - right, _ROW * len(rows))
        axes = axes_at(canvas, palette, place, grid="x", size=11)
        for i, bar in enumerate(rows):
            _draw(axes, palette, i, bar, _gap(rows))
        axes.set_xlim(0, most)
        axes.set_ylim(len(rows) - 0.45, -0.55)
        axes.set_yticks(range(len(rows)), [safe(bar.name, _LONGEST) for bar in rows])
        for label in axes.get_yticklabels():
            label.set_color(palette.ink)
        axes.xaxis.set_major_locator(MaxNLocator(5, steps=STEPS, integer=most > 1))
        axes.xaxis.set_major_formatter(FuncFormatter(_percent if most == 1 else _count))
        return canvas

    return Picture(identity, title, draw, spoken)


def _draw(axes: Axes, palette: Palette, place: int, bar: Bar, gap: float) -> None:
    colour = palette.series[0 if bar.clean else 1]
    axes.barh(place, bar.value, height=0.56, color=colour, linewidth=0)
    if bar.lost:
        axes.barh(
            place, bar.lost, left=bar.value, height=0.56, color=colour, alpha=0.28, linewidth=0
        )
    ink: dict[str, Any] = {"color": palette.ink, "linestyle": "none", "clip_on": False}
    if bar.interval:
        both = [place, place]
        axes.plot(bar.interval, both, color=palette.ink, linewidth=1.1, clip_on=False)
        axes.plot(bar.interval, both, **ink, marker="|", markersize=7, markeredgewidth=1.1)
    side = axes.get_yaxis_transform()
    if bar.lowest:
        shifted = side + _shifted(axes, 10)
        axes.plot([1], [place], **ink, transform=shifted, marker="<", markersize=6)
    axes.text(
        1,
        place,
        bar.text,
        transform=side + _shifted(axes, gap),
        color=palette.ink,
        verticalalignment="center_baseline",
    )


def _gap(rows: Sequence[Bar]) -> float:
    """Return the space before the numbers in points; the mark of the lowest stands in it."""
    return 19.0 if any(bar.lowest for bar in rows) else 11.0


def _shifted(axes: Axes, points: float) -> ScaledTranslation:
    figure = axes.figure
    assert figure is not None, "the axes are in a drawing"
    return ScaledTranslation(points / 72, 0, figure.dpi_scale_trans)


def _percent(value: float, _place: object) -> str:
    return f"{100 * value:.0f} %"


def _count(value: float, _place: object) -> str:
    return count(round(value))
