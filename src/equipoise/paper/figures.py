"""Drawings of the paper's figures: planes of accuracies, lines against eps, radars, heat maps."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, MaxNLocator

from equipoise.measures.statistics import front
from equipoise.paper.measures import Accuracies, Pair
from equipoise.report import pictures
from equipoise.report.palette import Palette, Style, style_of
from equipoise.report.pictures import STEPS

Labelled = Mapping[str, Pair]  # by label, (clean, robust) accuracy
Series = Mapping[str, Mapping[float, float]]  # by entry, values by eps


def _name(axes: Axes, palette: Palette, below: str, left: str = "", title: str = "") -> None:
    """Write the names of both axes and the title."""
    axes.set_xlabel(below, color=palette.muted, fontsize=10)
    axes.set_ylabel(left, color=palette.muted, fontsize=10)
    axes.set_title(pictures.safe(title, 60), color=palette.ink, fontsize=10, loc="left")


def planes(
    palette: Palette,
    panels: Mapping[str, Mapping[str, Labelled]],
    styles: Mapping[str, Style],
    *,
    robust: str = "AutoAttack accuracy",
    columns: int = 2,
) -> Canvas:
    """Return lines in planes of clean (upwards) and robust accuracy, one legend for all."""
    columns = min(columns, len(panels))
    rows = -(-len(panels) // columns)
    wide, high = {1: (480, 350), 2: (380, 330)}.get(columns, (270, 260))
    canvas = pictures.blank(palette, wide * columns + 160, high * rows)
    every = pictures.axes_in(canvas, palette, len(panels), columns, grid="both")
    for place, (axes, (title, lines)) in enumerate(zip(every, panels.items(), strict=True)):
        for name, points in lines.items():
            clean, x = zip(*points.values(), strict=True)
            marked = bool(styles[name].marker)
            pictures.line(axes, palette, x, clean, styles[name], markers=marked)
        pictures.plane(axes)
        _name(axes, palette, robust, "" if place % columns else "clean accuracy", title)
    drawn = {name for lines in panels.values() for name in lines}
    pictures.legend(canvas, palette, {n: style for n, style in styles.items() if n in drawn})
    pictures.settle(canvas)
    for axes, lines in zip(every, panels.values(), strict=True):
        _label(axes, palette, lines, styles)
    return canvas


def _label(
    axes: Axes, palette: Palette, lines: Mapping[str, Labelled], styles: Mapping[str, Style]
) -> None:
    """Write labels next to points; of many, next to the first, the middle and the last."""
    labels, points, colours, busy = list[str](), list[Pair](), list[str](), list[Pair]()
    for name, line in lines.items():
        places = [(robust, clean) for clean, robust in line.values()]
        busy += pictures.along(places)
        last = len(places) - 1
        for i in range(last + 1) if last < 6 else sorted({0, last // 2, last}):
            label = list(line)[i]
            if label and styles[name].marker:
                labels.append(label)
                points.append(places[i])
                colours.append(styles[name].of(palette))
    pictures.put_labels(axes, labels, points, colours, busy)


def scatter(palette: Palette, entries: Mapping[str, Sequence[Accuracies]], hero: str) -> Canvas:
    """Return entries as points with intervals; far less robust ones in a part of their own."""
    means = {entry: (robust.mean, clean.mean) for entry, (clean, robust) in entries.items()}
    most = max(robust for robust, _ in means.values())
    low = [entry for entry, (robust, _) in means.items() if 2 * robust < most]
    parts = [part for part in (low, [e for e in entries if e not in low]) if part]
    canvas = pictures.blank(palette, 660, 400)
    canvas.set_layout_engine("constrained", w_pad=0.08, h_pad=0.08)
    ratios = [1.0, 4.5][-len(parts) :]
    every = canvas.subplots(1, len(parts), sharey=True, squeeze=False, width_ratios=ratios)[0]
    for axes, part in zip(every, parts, strict=True):
        pictures.plain(axes, palette, grid="both")
        for entry in part:
            style, (clean, robust) = style_of(entry, list(entries).index(entry)), entries[entry]
            pictures.cross(axes, style.of(palette), means[entry], robust.interval, clean.interval)
            x, y = means[entry]
            pictures.point(axes, palette, [x], [y], style, size=11 if entry == hero else 8.5)
        pictures.plane(axes)
    if len(parts) > 1:
        left, right = every[0].get_xlim()
        every[0].set_xlim(left, max(right, left + 0.08))
        every[0].xaxis.set_major_locator(MaxNLocator(2, steps=STEPS))
        every[1].tick_params(axis="y", labelleft=False)
    every[-1].set_xlabel("AutoAttack accuracy", color=palette.muted, fontsize=10)
    every[0].set_ylabel("clean accuracy", color=palette.muted, fontsize=10)
    pictures.settle(canvas)
    for axes, part in zip(every, parts, strict=True):
        _front(axes, palette, list(means.values()))
        places = [means[entry] for entry in part]
        pictures.put_labels(axes, part, places, [palette.ink] * len(part))
    return canvas


def _front(axes: Axes, palette: Palette, points: Sequence[Pair]) -> None:
    """Draw the border of what some (robust, clean) accuracies dominate."""
    steps = sorted(points[i] for i in front(points))
    x, y = [-1.0], [steps[0][1]]
    for (robust, clean), (_, following) in zip(steps, [*steps[1:], (0.0, -1.0)], strict=True):
        x += [robust, robust]
        y += [clean, following]
    limits = axes.get_xlim(), axes.get_ylim()
    axes.plot(x, y, color=palette.muted, linewidth=1, dashes=(1.5, 1.5), zorder=1)
    axes.set(xlim=limits[0], ylim=limits[1])


def _lines(
    axes: Axes,
    palette: Palette,
    lines: Series,
    title: str,
    *,
    markers: bool = True,
    below: str = "eps",
) -> dict[str, Style]:
    styles = {entry: style_of(entry, place) for place, entry in enumerate(lines)}
    for entry, values in lines.items():
        x, y = list(values), list(values.values())
        pictures.line(axes, palette, x, y, styles[entry], markers=markers)
    axes.margins(0.03, 0.08)
    for axis, most in ((axes.xaxis, 9 if markers else 5), (axes.yaxis, 5)):
        axis.set_major_locator(MaxNLocator(most, steps=STEPS))
        axis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:.4g}"))
    _name(axes, palette, below, title=title)
    return styles


def against_eps(
    palette: Palette, lines: Series, hero: str, noise: Mapping[float, float]
) -> Canvas:
    """Return lines against eps, and below them their differences to one of them."""
    compared = hero in lines and len(lines) > 1
    canvas = pictures.blank(palette, 720, 470 if compared else 300)
    every = pictures.axes_in(canvas, palette, 2 if compared else 1)
    styles = _lines(every[0], palette, lines, "score")
    if compared:
        own = lines[hero]
        gaps = {
            entry: {eps: value - own[eps] for eps, value in values.items() if eps in own}
            for entry, values in lines.items()
        }
        places = [eps for eps in own if eps in noise]
        band = [noise[eps] for eps in places]
        below = [-width for width in band]
        every[1].fill_between(places, below, band, color=palette.muted, alpha=0.13, linewidth=0)
        title = f"score minus that of {hero}; grey: noise of the images"
        _lines(every[1], palette, {entry: gap for entry, gap in gaps.items() if gap}, title)
    pictures.legend(canvas, palette, styles)
    return canvas


def parts(palette: Palette, panels: Mapping[str, Series], below: str = "eps") -> Canvas:
    """Return small pictures of lines, three in a row, with one legend."""
    canvas = pictures.blank(palette, 820, 220 * -(-len(panels) // 3))
    every = pictures.axes_in(canvas, palette, len(panels), min(3, len(panels)))
    styles: dict[str, Style] = {}
    for axes, (title, lines) in zip(every, panels.items(), strict=True):
        styles |= _lines(axes, palette, lines, title, markers=False, below=below)
    pictures.legend(canvas, palette, styles)
    return canvas


def radar(palette: Palette, charts: Mapping[str, Mapping[str, Pair]]) -> Canvas:
    """Return radar charts of one scale, two in a row."""
    rows, columns = -(-len(charts) // 2), min(2, len(charts))
    canvas = pictures.blank(palette, 430 * columns + 170, 300 * rows)  # room for names
    canvas.set_layout_engine("constrained", h_pad=0.1, w_pad=0.1)
    polar: Any = {"projection": "polar"}
    every = canvas.subplots(rows, columns, squeeze=False, subplot_kw=polar).ravel()
    for axes in every[len(charts) :]:
        axes.set_axis_off()
    most = max(max(pair) for chart in charts.values() for pair in chart.values())
    styles = {"score": Style(1, (), "", 2.0), "accuracy under attack": Style(0, (4, 2), "", 1.5)}
    for axes, (title, chart) in zip(every, charts.items(), strict=False):
        angles = [2 * math.pi * i / len(chart) for i in range(len(chart))]
        pictures.plain(axes, palette, grid="both")
        axes.spines["polar"].set_visible(False)
        axes.set(theta_offset=math.pi / 2, theta_direction=-1)
        axes.set(ylim=(0, max(0.2, math.ceil(5 * most) / 5)))
        axes.yaxis.set_major_locator(MaxNLocator(4, steps=STEPS))
        axes.tick_params(axis="y", labelsize=8)
        axes.set_xticks(angles, [])
        outside = 1.06 * axes.get_ylim()[1]
        for angle, name in zip(angles, chart, strict=True):
            x = math.sin(angle)
            side = "center" if abs(x) < 0.1 else "left" if x > 0 else "right"
            font: Any = {"ha": side, "va": "center", "color": palette.ink, "fontsize": 10}
            axes.text(angle, outside, pictures.safe(name), **font)
        for i, style in enumerate(styles.values()):
            values = [pair[i] for pair in chart.values()]
            closed = [*angles, angles[0]], [*values, values[0]]
            pictures.line(axes, palette, *closed, style, markers=False)
            if not i:
                axes.fill(angles, values, color=style.of(palette), alpha=0.1, linewidth=0)
        _name(axes, palette, "", title=title)
    pictures.legend(canvas, palette, styles)
    return canvas


def heat_maps(
    palette: Palette,
    maps: Mapping[str, Mapping[tuple[str, str], float]],
    rows: Sequence[str],
    columns: Sequence[str],
    stars: Sequence[tuple[str, str]],
) -> Canvas:
    """Return heat maps of accuracies, two in a row."""
    across = min(2, len(maps))
    down = -(-len(maps) // across)
    wide = 60 * len(columns) + 7 * max(map(len, rows)) + 30
    canvas = pictures.blank(palette, wide * across, (32 * len(rows) + 66) * down)
    every = pictures.axes_in(canvas, palette, len(maps), across, grid="")
    for place, (axes, (title, values)) in enumerate(zip(every, maps.items(), strict=True)):
        low, high = min(values.values()), max(values.values())
        for (row, column), value in values.items():
            x, y = columns.index(column), rows.index(row)
            share = (value - low) / (high - low) if high > low else 0.5
            tile: Any = {"xy": (x - 0.46, y - 0.44), "width": 0.92, "height": 0.88}
            shade = 0.05 + 0.42 * share
            axes.add_patch(Rectangle(**tile, color=palette.series[0], alpha=shade, lw=0))
            if value == high:
                axes.add_patch(Rectangle(**tile, fill=False, edgecolor=palette.ink, lw=1.6))
            text = f"{100 * value:.1f}" + "*" * ((row, column) in stars)
            weight = "bold" if value == high else "normal"
            font: Any = {"color": palette.ink, "fontsize": 10, "fontweight": weight}
            axes.text(x, y, text, ha="center", va="center", **font)
        axes.set(xlim=(-0.5, len(columns) - 0.5), ylim=(len(rows) - 0.5, -0.5))
        axes.set_xticks(range(len(columns)), columns)
        axes.set_yticks(range(len(rows)), [] if place % across else rows)
        axes.tick_params(length=0)
        axes.spines["bottom"].set_visible(False)
        _name(axes, palette, "c", "" if place % across else "gamma", title)
    return canvas


def intervals(
    palette: Palette,
    rows: Sequence[tuple[str, str, Sequence[Accuracies | None]]],
) -> Canvas:
    """Return clean and AutoAttack accuracies with their intervals, a row each, in groups."""
    canvas = pictures.blank(palette, 760, 21 * (len(rows) + len({row[0] for row in rows})) + 70)
    (axes,) = pictures.axes_in(canvas, palette, 1, grid="x")
    styles = {"clean": Style(0, (), "o"), "AutoAttack": Style(1, (), "s")}
    names: list[str] = []
    for group, members in groupby(rows, key=lambda row: row[0]):
        names.append(f"{group}:")
        for _, name, pair in members:
            for accuracy, style in zip(pair, styles.values(), strict=True):
                if accuracy:
                    at = accuracy.mean, float(len(names))
                    pictures.whiskers(axes, style.of(palette), at, accuracy.interval, up=False)
                    pictures.point(axes, palette, [at[0]], [at[1]], style, size=6.5)
            names.append(pictures.safe(name, 48))
    axes.set(ylim=(len(names) - 0.5, -0.5))
    axes.set_yticks(range(len(names)), names, color=palette.ink)
    for label in axes.get_yticklabels():
        if label.get_text().endswith(":"):
            label.set_fontweight("bold")
    pictures.percent_axis(axes.xaxis)
    _name(axes, palette, "accuracy")
    plain_styles = {name: replace(style, width=0) for name, style in styles.items()}
    pictures.legend(canvas, palette, plain_styles)
    return canvas
