"""The drawing kit of all pictures, and how they become SVG for the page, SVG files and PNG.

On the page, no text that a user has written enters a drawing as it is: names stand in legends,
which the page sets as HTML, or are reduced to short plain ASCII (:func:`safe`).
"""

import re
from collections.abc import Iterable, Sequence
from io import BytesIO, StringIO
from itertools import pairwise
from typing import Any

import matplotlib
import numpy as np
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure as Canvas
from matplotlib.lines import Line2D
from matplotlib.text import Text
from matplotlib.ticker import FuncFormatter, MaxNLocator
from matplotlib.transforms import Bbox
from numpy.typing import NDArray

from equipoise.report.content import Picture
from equipoise.report.palette import FILE, PAGE, VARIABLES, Palette, Style

Place = tuple[float, float, float, float]  # left, bottom, width, height in points
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
STEPS = [1, 2, 5, 10]  # between the ticks of an axis
_DPI = 150
_LONGEST = 34  # letters of a name


def blank(palette: Palette, width: float, height: float) -> Canvas:
    """Return an empty drawing of a size in points."""
    canvas = Canvas(figsize=(width / 72, height / 72), dpi=72)
    canvas.patch.set_visible(palette.paper is not None)
    canvas.patch.set_facecolor(palette.paper or "none")
    return canvas


def axes_at(
    canvas: Canvas, palette: Palette, place: Place, *, grid: str = "y", size: float = 10
) -> Axes:
    """Return axes at a place; for ``grid`` and ``size`` see :func:`plain`."""
    width, height = 72 * canvas.get_figwidth(), 72 * canvas.get_figheight()
    left, bottom, wide, high = place
    axes = canvas.add_axes((left / width, bottom / height, wide / width, high / height))
    plain(axes, palette, grid=grid, size=size)
    return axes


def axes_in(
    canvas: Canvas, palette: Palette, count: int, columns: int = 1, *, grid: str = "y"
) -> list[Axes]:
    """Return axes in rows and columns, which are arranged so that no text overlaps."""
    canvas.set_layout_engine("constrained", h_pad=0.08, w_pad=0.08, hspace=0.06, wspace=0.04)
    every = list(canvas.subplots(-(-count // columns), columns, squeeze=False).ravel())
    for axes in every:
        plain(axes, palette, grid=grid)
    for axes in every[count:]:
        axes.set_axis_off()
    return every[:count]


def settle(canvas: Canvas) -> None:
    """Fix the places of the axes, so that labels can be put next to points."""
    FigureCanvasAgg(canvas)
    with matplotlib.rc_context(DRAWING):
        canvas.draw_without_rendering()
    canvas.set_layout_engine("none")


def plain(axes: Axes, palette: Palette, *, grid: str = "y", size: float = 10) -> None:
    """Remove the frame of axes except the line below.

    There are lines along the axes that ``grid`` names (``x``, ``y``, ``both`` or none); ``size``
    is that of the labels in points.
    """
    axes.patch.set_visible(False)
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(palette.muted)
        spine.set_linewidth(0.8)
    axes.tick_params(
        colors=palette.muted, labelcolor=palette.muted, width=0.8, length=3, labelsize=size
    )
    axes.tick_params(axis="y", length=0)
    if grid:
        which: Any = grid
        axes.grid(axis=which, color=palette.faint, linewidth=0.8)


def percent_axis(axis: Any) -> None:
    """Write an axis of shares in percent."""
    axis.set_major_locator(MaxNLocator(6, steps=STEPS))
    axis.set_major_formatter(FuncFormatter(lambda v, _: f"{100 * v:.3g} %"))


def line(
    axes: Axes,
    palette: Palette,
    x: Sequence[float],
    y: Sequence[float],
    style: Style,
    *,
    markers: bool = True,
) -> None:
    """Draw a line, with markers at its points if ``markers`` is true."""
    colour = style.of(palette)
    (drawn,) = axes.plot(x, y, color=colour, linewidth=style.width, clip_on=False, zorder=3)
    if style.dashes:
        drawn.set_dashes(style.dashes)
        drawn.set_dash_capstyle("butt")
    if markers:
        point(axes, palette, x, y, style, size=4.8)


def point(
    axes: Axes,
    palette: Palette,
    x: Sequence[float],
    y: Sequence[float],
    style: Style,
    *,
    size: float,
) -> None:
    """Draw the marker of an entry at some points."""
    look: Any = {"linestyle": "none", "color": style.of(palette), "marker": style.marker}
    axes.plot(x, y, markersize=size, markeredgewidth=0, clip_on=False, zorder=4, **look)


def whiskers(
    axes: Axes, colour: str, at: tuple[float, float], ends: tuple[float, float], *, up: bool
) -> None:
    """Draw an interval through a point, upright or level."""
    x, y = at
    across, along = ((x, x), ends) if up else (ends, (y, y))
    axes.plot(across, along, color=colour, linewidth=1.0, alpha=0.4, clip_on=False, zorder=2)


def cross(
    axes: Axes,
    colour: str,
    at: tuple[float, float],
    level: tuple[float, float],
    upright: tuple[float, float],
) -> list[tuple[float, float]]:
    """Draw both intervals of a point; return places along them, where names should not be."""
    whiskers(axes, colour, at, level, up=False)
    whiskers(axes, colour, at, upright, up=True)
    x, y = at
    return along((end, y) for end in level) + along((x, end) for end in upright)


def legend(canvas: Canvas, palette: Palette, styles: dict[str, Style]) -> None:
    """Draw a legend at the right of all axes."""
    handles = []
    for style in styles.values():
        look: Any = {"color": style.of(palette), "linewidth": style.width, "marker": style.marker}
        look |= {"linestyle": (0, style.dashes) if style.dashes else "-"}
        handles.append(Line2D([], [], markersize=5, markeredgewidth=0, **look))
    drawn = canvas.legend(
        handles,
        [safe(name) for name in styles],
        loc="outside right upper",
        frameon=False,
        handlelength=2.6,
        labelspacing=0.45,
        fontsize=10,
    )
    for text in drawn.get_texts():
        text.set_color(palette.ink)


def put_labels(
    axes: Axes,
    names: Sequence[str],
    points: Sequence[tuple[float, float]],
    colours: Sequence[str],
    busy: Sequence[tuple[float, float]] = (),
) -> None:
    """Write names next to points, each where it covers least; none at a ``busy`` place."""
    canvas = axes.figure
    assert isinstance(canvas, Canvas), "the axes are in a drawing"
    axes.autoscale_view()  # limits that are not given are set late, and move every place
    renderer: Any = FigureCanvasAgg(canvas).get_renderer()  # type: ignore[no-untyped-call]
    dots = axes.transData.transform(np.reshape([*points, *busy], (-1, 2)))
    taken = np.hstack([dots - 4, dots + 4])
    room = np.reshape(axes.get_window_extent(renderer).expanded(1.04, 1.04).extents, (1, 4))
    for name, at, colour in zip(names, points, colours, strict=True):
        tried = []
        for step, side in enumerate(_SIDES):
            text = _label(axes, colour, safe(name), at, side)
            box = text.get_window_extent(renderer)
            cost = _overlap(box, taken) + 3 * (box.width * box.height - _overlap(box, room)) + step
            tried.append((cost, step, box))
            text.remove()
        _, best, box = min(tried, key=lambda trial: trial[:2])
        _label(axes, colour, safe(name), at, _SIDES[best])
        taken = np.vstack([taken, box.extents])


def along(points: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return places along a line through points, where names should not be."""
    return [
        (x0 + (x1 - x0) * i / 12, y0 + (y1 - y0) * i / 12)
        for (x0, y0), (x1, y1) in pairwise(points)
        for i in range(13)
    ]


_SIDES: tuple[tuple[float, float, str], ...] = (
    (7, 0, "left"),
    (-7, 0, "right"),
    (5, 10, "left"),
    (5, -10, "left"),
    (-5, 10, "right"),
    (-5, -10, "right"),
    (0, 12, "center"),
    (0, -12, "center"),
    (9, 20, "left"),
    (9, -20, "left"),
    (-9, 20, "right"),
    (-9, -20, "right"),
    (12, 30, "left"),
    (12, -30, "left"),
)


def _label(axes: Axes, colour: str, name: str, at: Any, side: tuple[float, float, str]) -> Text:
    dx, dy, aligned = side
    look: Any = {"ha": aligned, "va": "center_baseline", "color": colour, "fontsize": 9.5}
    look |= {"textcoords": "offset points", "annotation_clip": False, "zorder": 5}
    return axes.annotate(name, at, xytext=(dx, dy), **look)


def _overlap(box: Bbox, others: NDArray[np.float64]) -> float:
    """Return the area that a box shares with others, one (x0, y0, x1, y1) in each row."""
    low, high = np.maximum(box.min, others[:, :2]), np.minimum(box.max, others[:, 2:])
    return float((high - low).clip(0).prod(1).sum())


def safe(name: str, longest: int = _LONGEST) -> str:
    """Return a name that any font can show, short enough for a drawing."""
    plain = "".join(c if c.isascii() and c.isprintable() else "?" for c in name)
    return plain if len(plain) <= longest else f"{plain[: longest - 3]}..."


def _svg(picture: Picture, palette: Palette) -> str:
    """Return a picture as SVG without its metadata."""
    target = StringIO()
    with matplotlib.rc_context(DRAWING):
        picture.draw(palette).savefig(target, format="svg", metadata={"Date": None})
    return re.sub(r"<metadata>.*?</metadata>\s*", "", target.getvalue(), flags=re.DOTALL)


def inline(picture: Picture) -> Markup:
    """Return a picture as SVG that follows the themes of the page."""
    drawing = _svg(picture, PAGE)
    view = re.search(r'<svg[^>]*viewBox="([^"]+)"[^>]*>', drawing)
    assert view is not None, "matplotlib writes a viewBox"
    body = re.sub(r"<style.*?</style>\s*", "", drawing[view.end() :], flags=re.DOTALL)
    body = re.sub(r' id="([^"]+)"', rf' id="{picture.name}-\1"', body)
    body = re.sub(r'xlink:href="#([^"]+)"', rf'href="#{picture.name}-\1"', body)
    body = re.sub(r"url\(#([^)]+)\)", rf"url(#{picture.name}-\1)", body)
    body = re.sub(r"font: ([\d.]+)px [^;\"]+", r"font-size: \1px", body)
    body = re.sub(r"font-family: [^;\"]+; ?", "", body)
    for colour, variable in VARIABLES.items():
        body = body.replace(colour, f"var({variable})")
    head = f'<svg viewBox="{view[1]}" role="img" aria-label="{escape(picture.spoken)}">'
    return Markup(head + body)  # noqa: S704 - drawn here, from numbers alone


def svg_file(picture: Picture) -> str:
    """Return a picture as an SVG file on white."""
    fonts = "'DejaVu Sans', Verdana, sans-serif"
    return re.sub(r"'DejaVu Sans'(?=[;\"])", fonts, _svg(picture, FILE))


def png_file(picture: Picture) -> bytes:
    """Return a picture as a PNG file on white."""
    target = BytesIO()
    with matplotlib.rc_context({**DRAWING, "savefig.dpi": _DPI}):
        picture.draw(FILE).savefig(target, format="png", dpi=_DPI, metadata={"Software": None})
    return target.getvalue()


def plane(axes: Axes) -> None:
    """Name the axes of a plane of clean accuracy (upwards) and robust accuracy."""
    percent_axis(axes.xaxis)
    percent_axis(axes.yaxis)
    axes.margins(0.06, 0.08)
