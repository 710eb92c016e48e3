"""Radar charts: an axis a method."""

__all__ = ["draw"]

import math
from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas

from equipoise.report import pictures
from equipoise.report.palette import Palette

Chart = Mapping[str, tuple[float, float]]  # by method: score and accuracy
_SIDE, _ROOM = 290.0, 60.0  # points: a chart, and the room for names around it


def draw(palette: Palette, charts: Mapping[str, Chart]) -> Canvas:
    """Return some charts of one scale, two in a row.

    Arguments:
        palette: The colours.
        charts: By title, score and accuracy of each method.
    """
    top = max(value for chart in charts.values() for pair in chart.values() for value in pair)
    top = max(0.2, math.ceil(5 * top) / 5)
    columns = min(2, len(charts))
    rows = -(-len(charts) // columns)
    wide, high = _SIDE + 70, _SIDE - 20
    canvas = pictures.blank(palette, wide * columns, high * rows + 24)
    for i, (title, chart) in enumerate(charts.items()):
        left = wide * (i % columns) + _ROOM + 35
        bottom = high * (rows - 1 - i // columns) + 50
        side = _SIDE - 2 * _ROOM
        axes = pictures.axes_at(canvas, palette, (left, bottom + 4, side, side), grid="")
        _chart(axes, palette, chart, top)
        axes.set_title(title, color=palette.ink, fontsize=11, y=1.15, fontweight="bold")
    _key(canvas, palette)
    return canvas


def _chart(axes: Axes, palette: Palette, chart: Chart, top: float) -> None:
    axes.set_axis_off()
    axes.set_xlim(-1, 1)
    axes.set_ylim(-1, 1)
    angles = [math.pi / 2 - 2 * math.pi * i / len(chart) for i in range(len(chart))]
    for part in (0.25, 0.5, 0.75, 1.0):
        _polygon(axes, angles, [part] * len(chart), palette.faint, 0.8)
    for angle, name in zip(angles, chart, strict=True):
        x, y = math.cos(angle), math.sin(angle)
        axes.plot([0, x], [0, y], color=palette.faint, linewidth=0.8, clip_on=False, zorder=1)
        side = "center" if abs(x) < 0.2 else ("left" if x > 0 else "right")
        strong = "bold" if name == "a3gt" else "normal"
        axes.text(
            1.1 * x,
            1.1 * y,
            pictures.safe(name),
            ha=side,
            va="center",
            color=palette.ink,
            fontsize=9.5,
            fontweight=strong,
        )
    axes.text(0.03, 1.0, f"{top:g}", color=palette.muted, fontsize=8.5, va="top", ha="left")
    scores = [score / top for score, _ in chart.values()]
    accuracies = [accuracy / top for _, accuracy in chart.values()]
    _polygon(axes, angles, accuracies, palette.series[0], 1.5, (4, 2))
    _polygon(axes, angles, scores, palette.series[1], 2.0)
    across = [r * math.cos(a) for r, a in zip(scores, angles, strict=True)]
    up = [r * math.sin(a) for r, a in zip(scores, angles, strict=True)]
    axes.fill(across, up, color=palette.series[1], alpha=0.1, linewidth=0, zorder=2)


def _polygon(
    axes: Axes,
    angles: Sequence[float],
    radii: Sequence[float],
    colour: str,
    width: float,
    dashes: tuple[float, ...] = (),
) -> None:
    points = [(r * math.cos(a), r * math.sin(a)) for r, a in zip(radii, angles, strict=True)]
    x, y = zip(*points, points[0], strict=True)
    (drawn,) = axes.plot(x, y, color=colour, linewidth=width, clip_on=False, zorder=3)
    if dashes:
        drawn.set_dashes(dashes)


def _key(canvas: Canvas, palette: Palette) -> None:
    axes = pictures.axes_at(canvas, palette, (24, 4, 300, 16), grid="")
    axes.set_axis_off()
    axes.set_xlim(0, 300)
    axes.set_ylim(0, 16)
    for left, label, colour, dashes in (
        (0, "score", palette.series[1], ()),
        (90, "accuracy under attack", palette.series[0], (4, 2)),
    ):
        (drawn,) = axes.plot([left, left + 26], [8, 8], color=colour, linewidth=2)
        if dashes:
            drawn.set_dashes(dashes)
        axes.text(left + 32, 8, label, va="center", color=palette.ink, fontsize=10)
