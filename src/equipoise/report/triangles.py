"""A front between three ends: a triangle of its models for each accuracy, and a table."""

import math
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas

from equipoise.fronts.record import CORRUPTIONS, FrontRecord, Point, shares
from equipoise.report import pictures
from equipoise.report.content import Block, Cell, Column, Figure, Picture, Section, Table
from equipoise.report.palette import Palette
from equipoise.report.wording import join, percent, threat_text

_SIDE = 168  # points of a panel
_HIGH = math.sqrt(3) / 2
_CORNERS = ((0.0, 0.0), (1.0, 0.0), (0.5, _HIGH))  # of the clean, the robust and the third end
_SIZE = 22  # of the disc of a model


def triangles(record: FrontRecord, name: str = "front") -> Picture:
    """Return the picture of a front between three ends: the better a model, the darker."""
    assert record.also is not None
    first, second = (threat_text(*pair) for pair in ((record.norm, record.eps), record.also))
    second = CORRUPTIONS if CORRUPTIONS in record.threats else second
    clean, robust, third = record.ends
    caption = (
        f"Every disc is one model, a mix of the three ends in the corners: {clean} (left), "
        f"{robust} (right) and {third} (top). The number is its accuracy in percent on "
        f"{record.images}, under {record.attack} in {first} and in {second}; both: of images "
        "that survive all. The darker, the better within a panel; ringed: the best one."
    )
    return Picture(
        name,
        f"Accuracies of mixes of {join(record.ends)}",
        lambda palette: _draw(palette, record),
        f"{join(_names(record))}. " + "; ".join(f"{point.words}" for point in record.points) + ".",
        caption,
    )


def section(name: str, record: FrontRecord, identity: str) -> Section:
    """Return the section of a page on a front between three ends.

    Arguments:
        name: The name of the run.
        record: The front.
        identity: The id of the picture on the page.
    """
    lead = (
        f"{record.words} Each model is a mix of the weights of three ends, and a trade-off that "
        "can be chosen after the training: `equipoise pick`. Measured on held-out training "
        "images; no test images were used."
    )
    drawn = triangles(record, identity)
    figure = Figure(f"figure-{identity}", drawn.caption, (), (drawn,))
    blocks: list[Block] = [figure, lead, _table(name, record)]
    return Section(name, blocks, small=f"front between {join(record.ends)}")


def _table(name: str, record: FrontRecord) -> Table:
    """Return the table of a front between three ends."""
    rows = tuple(
        (
            Cell(" ".join(f"{share:.2f}" for share in shares(point.place))),
            *(Cell(percent(count / point.n), count / point.n) for count in _counts(point)),
        )
        for point in record.points
    )
    heads = (f"weights of {', '.join(record.ends)}", *_names(record))
    columns = tuple(Column(head, number=i > 0) for i, head in enumerate(heads))
    return Table("front", f"Measured models of {name}", columns, rows)


def _names(record: FrontRecord) -> tuple[str, ...]:
    return ("clean", *(f"robust, {name}" for name in record.threats), "robust, both")


def _counts(point: Point) -> tuple[int, ...]:
    third = 0 if point.third is None else point.third.robust
    return point.clean, point.robust, third, point.union


def _draw(palette: Palette, record: FrontRecord) -> Canvas:
    names = _names(record)
    canvas = pictures.blank(palette, len(names) * _SIDE, _SIDE + 16)
    for i, name in enumerate(names):
        place = (i * _SIDE + 16, 14, _SIDE - 32, _SIDE - 32)
        axes = pictures.axes_at(canvas, palette, place, grid="")
        counts = [_counts(point)[i] for point in record.points]
        _panel(axes, palette, record.points, counts)
        if i == 0:
            _name_corners(axes, palette, record.ends)
        axes.set_title(name, color=palette.ink, fontsize=11)
    return canvas


def _panel(axes: Axes, palette: Palette, points: tuple[Point, ...], counts: list[int]) -> None:
    """Draw a disc for each model, with its accuracy in percent."""
    axes.set_axis_off()
    axes.set_aspect("equal")
    axes.set(xlim=(-0.12, 1.12), ylim=(-0.12, _HIGH + 0.12))
    xs, ys = zip(*(_CORNERS[i] for i in (0, 1, 2, 0)), strict=True)
    axes.plot(xs, ys, color=palette.faint, linewidth=1.2, zorder=1)
    least, most = min(counts), max(counts)
    for point, count in zip(points, counts, strict=True):
        weights = shares(point.place)
        x, y = (
            sum(weight * corner[d] for weight, corner in zip(weights, _CORNERS, strict=True))
            for d in (0, 1)
        )
        shade = 0.08 + 0.5 * (count - least) / max(most - least, 1)
        disc: Any = {"marker": "o", "markersize": _SIZE, "color": palette.series[0], "zorder": 2}
        axes.plot([x], [y], alpha=shade, markeredgewidth=0, clip_on=False, **disc)
        if count == most:
            disc |= {"markerfacecolor": "none", "color": palette.ink, "zorder": 3}
            axes.plot([x], [y], markeredgewidth=1.4, clip_on=False, **disc)
        text = f"{100 * count / point.n:.0f}"
        axes.text(x, y, text, ha="center", va="center", color=palette.ink, fontsize=9, zorder=4)


def _name_corners(axes: Axes, palette: Palette, ends: tuple[str, ...]) -> None:
    places = ((0.0, -0.15, "center"), (1.0, -0.15, "center"), (0.62, _HIGH + 0.03, "left"))
    for (x, y, side), end in zip(places, ends, strict=True):
        name = pictures.safe(end.rstrip("/").rpartition("/")[2], 16).removeprefix("learner-")
        axes.text(x, y, name, ha=side, va="top", color=palette.muted, fontsize=9)
