"""Horizontal bars as inline SVG: a name at the left, a number at the right, whiskers between."""

__all__ = ["Bar", "bars"]

from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import FuncFormatter, MaxNLocator
from matplotlib.transforms import ScaledTranslation

from equipoise.report.drawing import (
    ATTACKED,
    DRAWING,
    FAINT,
    INK,
    STEPS,
    UNPERTURBED,
    Panel,
    plain,
    to_svg,
)
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


def bars(title: str, rows: Sequence[Bar], most: float, identity: str, spoken: str) -> Panel:
    """Return a panel of bars, one below the other.

    Arguments:
        title: The title of the panel.
        rows: The bars, from above.
        most: The length of the scale: 1 for shares, which are shown in percent, or a number of
            images.
        identity: The id of the drawing on its page.
        spoken: What the drawing says, for those who cannot see it.
    """
    with matplotlib.rc_context(DRAWING):
        canvas, axes = _axes(rows)
        for place, bar in enumerate(rows):
            _draw(axes, place, bar, _gap(rows))
        axes.set_xlim(0, most)
        axes.set_ylim(len(rows) - 0.45, -0.55)
        axes.set_yticks(range(len(rows)), [_plain_name(bar.name) for bar in rows])
        for label in axes.get_yticklabels():
            label.set_color(INK)
        axes.xaxis.set_major_locator(MaxNLocator(5, steps=STEPS, integer=most > 1))
        axes.xaxis.set_major_formatter(FuncFormatter(_percent if most == 1 else _count))
        return Panel(title, to_svg(canvas, identity, spoken))


def _axes(rows: Sequence[Bar]) -> tuple[Canvas, Axes]:
    left = 10 + _LETTER * max(len(_plain_name(bar.name)) for bar in rows)
    right = _gap(rows) + 4 + _LETTER * max(len(bar.text) for bar in rows)
    height = _ROW * len(rows) + _FLOOR
    canvas = Canvas(figsize=(_WIDTH / 72, height / 72), dpi=72)
    canvas.patch.set_visible(False)
    axes = canvas.add_axes(
        (left / _WIDTH, _FLOOR / height, 1 - (left + right) / _WIDTH, 1 - _FLOOR / height)
    )
    plain(axes)
    axes.grid(axis="x", color=FAINT, linewidth=0.8)
    return canvas, axes


def _draw(axes: Axes, place: int, bar: Bar, gap: float) -> None:
    colour = UNPERTURBED if bar.clean else ATTACKED
    axes.barh(place, bar.value, height=0.56, color=colour, linewidth=0)
    if bar.lost:
        axes.barh(
            place, bar.lost, left=bar.value, height=0.56, color=colour, alpha=0.28, linewidth=0
        )
    if bar.interval:
        low, high = bar.interval
        axes.plot([low, high], [place, place], color=INK, linewidth=1.1, clip_on=False)
        axes.plot(
            [low, high],
            [place, place],
            linestyle="none",
            marker="|",
            markersize=7,
            markeredgewidth=1.1,
            color=INK,
            clip_on=False,
        )
    side = axes.get_yaxis_transform()
    if bar.lowest:
        axes.plot(
            [1],
            [place],
            transform=side + _shifted(axes, 10),
            linestyle="none",
            marker="<",
            markersize=6,
            color=INK,
            clip_on=False,
        )
    axes.text(
        1,
        place,
        bar.text,
        transform=side + _shifted(axes, gap),
        color=INK,
        verticalalignment="center_baseline",
    )


def _gap(rows: Sequence[Bar]) -> float:
    """Return the space before the numbers in points; the mark of the lowest stands in it."""
    return 19.0 if any(bar.lowest for bar in rows) else 11.0


def _shifted(axes: Axes, points: float) -> ScaledTranslation:
    figure = axes.figure
    assert figure is not None, "the axes are in a drawing"
    return ScaledTranslation(points / 72, 0, figure.dpi_scale_trans)


def _plain_name(name: str) -> str:
    """Return a name that any font can show, short enough to stand beside a bar."""
    safe = "".join(c if c.isascii() and c.isprintable() else "?" for c in name)
    return safe if len(safe) <= _LONGEST else f"{safe[: _LONGEST - 3]}..."


def _percent(value: float, _place: object) -> str:
    return f"{100 * value:.0f} %"


def _count(value: float, _place: object) -> str:
    return count(round(value))
