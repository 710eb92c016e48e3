"""Lines against eps: one large picture, or several small ones below one legend."""

__all__ = ["Series", "draw", "draw_small", "series", "spoken"]

from collections.abc import Mapping

from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import FuncFormatter, MaxNLocator

from equipoise.report import pictures
from equipoise.report.palette import Palette, Style, style_of
from equipoise.report.pictures import STEPS

Series = dict[str, tuple[list[float], list[float]]]  # by entry: eps and values


def series(scores: Mapping[str, Mapping[float, Mapping[str, float]]], key: str) -> Series:
    """Return the values of one part by entry, where they are known."""
    made = {}
    for entry, by_eps in scores.items():
        known = [(eps, parts[key]) for eps, parts in by_eps.items() if key in parts]
        if known:
            made[entry] = ([eps for eps, _ in known], [value for _, value in known])
    return made


def draw(palette: Palette, lines: Series, hero: str, noise: Mapping[float, float]) -> Canvas:
    """Return the lines as one picture, and below it how they differ from one of them.

    Arguments:
        palette: The colours.
        lines: The lines.
        hero: The one that the others are compared with, if it is there.
        noise: By eps, what is no difference to it.
    """
    below = 170 if hero in lines and len(lines) > 1 else 0
    canvas = pictures.blank(palette, 720, 300 + below)
    axes = pictures.axes_at(canvas, palette, (52, 42 + below, 514, 244))
    looks = _lines(axes, palette, lines)
    if below:
        axes.set_xlabel("")
        _differences(canvas, palette, lines, hero, noise)
    pictures.legend(canvas, palette, looks, (582, 286 + below))
    return canvas


def _differences(
    canvas: Canvas, palette: Palette, lines: Series, hero: str, noise: Mapping[float, float]
) -> None:
    own = dict(zip(*lines[hero], strict=True))
    less = {
        entry: [(e, v - own[e]) for e, v in zip(eps, values, strict=True) if e in own]
        for entry, (eps, values) in lines.items()
    }
    known = {entry: pairs for entry, pairs in less.items() if pairs}
    axes = pictures.axes_at(canvas, palette, (52, 42, 514, 128))
    places = [eps for eps in own if eps in noise]
    band = [noise[eps] for eps in places]
    colour = palette.muted
    axes.fill_between(places, [-v for v in band], band, color=colour, alpha=0.13, linewidth=0)
    _lines(axes, palette, {e: ([x for x, _ in p], [y for _, y in p]) for e, p in known.items()})
    axes.set_ylim(auto=True)
    axes.autoscale(axis="y")
    title = f"score less that of {pictures.safe(hero)}; grey: within the noise of the images"
    axes.set_title(title, color=palette.ink, fontsize=10, loc="left")


def draw_small(palette: Palette, panels: Mapping[str, Series]) -> Canvas:
    """Return some pictures, three in a row, with one legend."""
    rows = -(-(len(panels) + 1) // 3)
    canvas = pictures.blank(palette, 720, 224 * rows)
    looks: dict[str, Style] = {}
    for i, (title, lines) in enumerate(panels.items()):
        left, bottom = 240 * (i % 3) + 44, 224 * (rows - 1 - i // 3) + 42
        axes = pictures.axes_at(canvas, palette, (left, bottom, 184, 150))
        looks |= _lines(axes, palette, lines, small=True)
        axes.set_title(title, color=palette.ink, fontsize=10, loc="left", x=-0.2)
    last = len(panels)
    corner = (240 * (last % 3) + 30, 224 * (rows - last // 3) - 18)
    pictures.legend(canvas, palette, looks, corner)
    return canvas


def _lines(
    axes: Axes, palette: Palette, lines: Series, *, small: bool = False
) -> dict[str, Style]:
    looks = {}
    for place, (entry, (eps, values)) in enumerate(lines.items()):
        looks[entry] = style_of(entry, place)
        pictures.line(axes, palette, eps, values, looks[entry], markers=not small)
    values = [value for _, some in lines.values() for value in some]
    axes.margins(0.03, 0.08)
    axes.xaxis.set_major_locator(MaxNLocator(5 if small else 9, steps=STEPS))
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=STEPS))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:.4g}"))
    axes.set_xlabel("eps", color=palette.muted, fontsize=10, labelpad=2)
    return looks


def spoken(title: str, lines: Series, form: str) -> str:
    """Return a picture in words: where each line begins and ends."""
    told = [
        f"{entry} from {form.format(values[0])} at {eps[0]:g} to {form.format(values[-1])} at "
        f"{eps[-1]:g}"
        for entry, (eps, values) in lines.items()
    ]
    return f"{title} against eps. {'; '.join(told)}."
