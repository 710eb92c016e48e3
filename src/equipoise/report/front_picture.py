"""The picture of a front: clean against robust accuracy of every model between two ends."""

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas

from equipoise.fronts.record import FrontRecord, Point
from equipoise.report import pictures, wording
from equipoise.report.content import Picture
from equipoise.report.palette import Palette, Style, style_of
from equipoise.store.files import write

HALO = "halo"  # the names of the rings that a page shows around a point: halo-0, halo-1, ...
_FRONT = Style(1, (), "o", 1.8)
_SIZE = (420, 310)


def picture(record: FrontRecord, *, halos: bool = False, name: str = "front") -> Picture:
    """Return the picture of a front, with ``halos`` a ring around each point: ``halo-0``, ..."""
    threat = wording.threat_text(record.norm, record.eps)
    caption = (
        f"Every point of the line is one model, measured on {record.images} "
        f"({threat}; {record.attack}); whiskers are 95 % intervals for these images."
    )
    far = [other for other in record.others if other not in _near(record)]
    if far:
        others = [f"{_short(other.name)} ({_pair(other)})" for other in far]
        caption += f" Far less robust and not drawn: {wording.join(others)}."
    return Picture(
        name,
        f"Clean against robust accuracy between {record.ends[0]} and {record.ends[1]}",
        lambda palette: _draw(palette, record, halos),
        _spoken(record),
        caption,
    )


def write_picture(record: FrontRecord, folder: Path) -> tuple[Path, Path]:
    """Draw a front as ``front.svg`` and ``front.png`` in a folder, and return the files."""
    drawn = picture(record)
    svg, png = folder / "front.svg", folder / "front.png"
    write(svg, pictures.svg_file(drawn))
    write(png, pictures.png_file(drawn))
    return svg, png


def _draw(palette: Palette, record: FrontRecord, halos: bool) -> Canvas:
    width, height = _SIZE
    canvas = pictures.blank(palette, width, height)
    axes = pictures.axes_at(
        canvas, palette, (52, 44, width - 64, height - 58), grid="both", size=11
    )
    x = [point.robust_accuracy for point in record.points]
    y = [point.clean_accuracy for point in record.points]
    pictures.line(axes, palette, x, y, _FRONT)
    busy = pictures.along(zip(x, y, strict=True))
    for point in record.points:
        busy += _cross(axes, _FRONT.of(palette), point)
    places, names = _named(record)
    for point in record.points:
        if point.mark:
            _ring(axes, palette.ink, point, size=12, width=1.4)
    for i, other in enumerate(_near(record)):
        style = style_of(other.method, i)
        busy += _cross(axes, style.of(palette), other)
        at_other = [other.robust_accuracy], [other.clean_accuracy]
        pictures.point(axes, palette, *at_other, style, size=8.5)
    if halos:
        for i, point in enumerate(record.points):
            _ring(axes, palette.ink, point, size=17, width=2.4, name=f"{HALO}-{i}")
    pictures.plane(axes)
    pictures.put_labels(axes, names, places, [palette.ink] * len(names), busy)
    axes.set_xlabel(f"robust accuracy ({record.attack})", color=palette.muted, fontsize=11)
    axes.set_ylabel("clean accuracy", color=palette.muted, fontsize=11)
    return canvas


def _named(record: FrontRecord) -> tuple[list[tuple[float, float]], list[str]]:
    """Return the points that have a name: the ends, the marks, other runs."""
    by_gamma = {point.gamma: point for point in record.points}
    named: list[tuple[Point, str]] = []
    for gamma, end in zip((0.0, 1.0), record.ends, strict=True):
        if gamma in by_gamma:
            named.append((by_gamma[gamma], _short(end)))
    named += [(point, f"gamma {point.gamma:g}") for point in record.points if point.mark]
    named += [(other, _short(other.name)) for other in _near(record)]
    return [(p.robust_accuracy, p.clean_accuracy) for p, _ in named], [name for _, name in named]


def _near(record: FrontRecord) -> list[Point]:
    """Return the other runs that are drawn: one far less robust would leave the front no room."""
    least = min((point.robust_accuracy for point in record.points), default=0.0)
    return [other for other in record.others if 2 * other.robust_accuracy >= least]


def _pair(point: Point) -> str:
    clean, robust = map(wording.percent, (point.clean_accuracy, point.robust_accuracy))
    return f"{clean} clean, {robust} robust"


def _short(name: str) -> str:
    return name.rstrip("/").rpartition("/")[2] or name


def _cross(axes: Axes, colour: str, point: Point) -> list[tuple[float, float]]:
    at = point.robust_accuracy, point.clean_accuracy
    return pictures.cross(axes, colour, at, point.robust_interval, point.clean_interval)


def _ring(
    axes: Axes, colour: str, point: Point, *, size: float, width: float, name: str = ""
) -> None:
    (ring,) = axes.plot(
        [point.robust_accuracy],
        [point.clean_accuracy],
        linestyle="none",
        marker="o",
        markersize=size,
        markerfacecolor="none",
        markeredgecolor=colour,
        markeredgewidth=width,
        clip_on=False,
        zorder=6,
    )
    if name:
        ring.set_gid(name)


def _spoken(record: FrontRecord) -> str:
    points = [f"gamma {point.gamma:g}: {_pair(point)}" for point in record.points]
    others = [f"{_short(other.name)}: {_pair(other)}" for other in record.others]
    return f"Clean against robust accuracy. {'; '.join([*points, *others])}."
