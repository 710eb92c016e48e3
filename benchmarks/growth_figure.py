"""The figure of growth: seconds and memory along each axis, both scales logarithmic."""

__all__ = ["picture"]

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import FuncFormatter, NullFormatter

from equipoise.report.content import Picture
from equipoise.report.palette import Palette, Style
from equipoise.report.pictures import axes_at, blank, line

_WIDE, _HIGH = 150.0, 120.0  # of a panel, in points
_LEFT, _BETWEEN, _TOP, _LOW = 58.0, 50.0, 46.0, 40.0
_ROWS = (("seconds", "exponent", Style(0)), ("MiB", "memory_exponent", Style(1, (), "s")))
_GUIDE = Style("muted", (2, 2), "", 1.0)


def picture(axes: Sequence[Mapping[str, Any]], title: str) -> Picture:
    """Return growth as a picture.

    Arguments:
        axes: Records of :func:`benchmarks.growth.axis_record`.
        title: What was benched.
    """

    def draw(palette: Palette) -> Canvas:
        rows = [row for row in _ROWS if any(_values(axis, row[0])[1] for axis in axes)]
        width = _LEFT + len(axes) * (_WIDE + _BETWEEN)
        height = _TOP + len(rows) * (_HIGH + _LOW)
        canvas = blank(palette, width, height)
        canvas.text(
            10 / width,
            1 - 16 / height,
            f"{title}; dashed: linear",
            color=palette.ink,
            fontsize=11,
            va="center",
        )
        for column, axis in enumerate(axes):
            for number, row in enumerate(rows):
                left = _LEFT + column * (_WIDE + _BETWEEN)
                bottom = height - _TOP - (number + 1) * _HIGH - number * _LOW
                place = axes_at(canvas, palette, (left, bottom, _WIDE, _HIGH), grid="both")
                _panel(place, palette, axis, row, last=row is rows[-1])
        return canvas

    spoken = f"{title}: " + "; ".join(f"{a['axis']}: power {_said(a['exponent'])}" for a in axes)
    return Picture("growth", title, draw, spoken)


def _panel(
    place: Axes,
    palette: Palette,
    axis: Mapping[str, Any],
    row: tuple[str, str, Style],
    *,
    last: bool,
) -> None:
    what, key, look = row
    counts, values = _values(axis, what)
    place.set_xscale("log")
    place.set_yscale("log")
    for scale in (place.xaxis, place.yaxis):
        scale.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
        scale.set_minor_formatter(NullFormatter())
    place.set_title(
        f"{what}, power {_said(axis[key])}", color=palette.ink, fontsize=10, loc="left"
    )
    if last:
        place.set_xlabel(axis["axis"], color=palette.ink, fontsize=10)
    if values:
        line(place, palette, counts, values, look)
        linear = [values[-1] * count / counts[-1] for count in counts]
        line(place, palette, counts, linear, _GUIDE, markers=False)


def _values(axis: Mapping[str, Any], what: str) -> tuple[list[float], list[float]]:
    """Return the counts of an axis and what was found there, as far as it was."""
    pairs = []
    for point in axis["points"]:
        found = point["seconds"]["median"] if what == "seconds" and point["seconds"] else None
        if what == "MiB" and point["peak_memory"]:
            found = point["peak_memory"] / 2**20
        if found:
            pairs.append((float(point["count"]), float(found)))
    return [count for count, _ in pairs], [found for _, found in pairs]


def _said(power: float | None) -> str:
    return "unknown" if power is None else f"{power:.2f}"
