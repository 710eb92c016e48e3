"""Curves as inline SVG that follows the page: its colours, its type, its light or dark theme.

Matplotlib draws with stand-in colours, one for each colour of the page; the stand-ins are then
replaced by CSS variables, so that one drawing serves both themes. No text that a user has
written enters a drawing: names stand in legends, which the page sets as HTML.
"""

__all__ = ["Figure", "Key", "Panel", "Style", "curves", "eps_sweep", "style_of_run"]

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from io import StringIO
from typing import Any

import matplotlib
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator

from equipoise.report import wording
from equipoise.report.results import CLEAN, WORST, sweep
from equipoise.report.runs_reader import Record, Round, Run

_INK, _MUTED, _FAINT = "#f1a000", "#f1a001", "#f1a002"
_SERIES = tuple(f"#f1b00{i}" for i in range(6))
_VARIABLES = {_INK: "--ink", _MUTED: "--muted", _FAINT: "--rule"} | {
    colour: f"--series-{i}" for i, colour in enumerate(_SERIES)
}
_DRAWING: Any = {  # newer matplotlib types the keys one by one
    "font.family": ["DejaVu Sans"],
    "font.size": 11.0,
    "svg.fonttype": "none",
    "svg.hashsalt": "equipoise",
    "text.parse_math": False,
    "axes.unicode_minus": True,
    "savefig.bbox": None,
    "savefig.dpi": "figure",
}
_STEPS = [1, 2, 5, 10]
_STRIP = 0.07  # height of the strip of weights, as a share of the drawing


@dataclass(frozen=True)
class Style:
    """How one line is drawn: a colour of the page, dashes that differ too, a marker."""

    colour: str
    dashes: tuple[float, ...] = ()
    marker: str = "o"
    width: float = 1.6

    @property
    def variable(self) -> str:
        """The CSS variable of the colour."""
        return _VARIABLES[self.colour]

    @property
    def dasharray(self) -> str:
        """The dashes as SVG writes them."""
        return " ".join(f"{d * self.width:g}" for d in self.dashes) or "none"


@dataclass(frozen=True)
class Key:
    """An entry of a legend: a line (with its style) or a sign (``start``, ``handover``, ...)."""

    label: str
    style: Style | None = None
    sign: str = "line"


@dataclass(frozen=True)
class Panel:
    """One drawing with its title."""

    title: str
    svg: Markup


@dataclass(frozen=True)
class Figure:
    """Drawings that belong together, below one legend."""

    id: str
    caption: str
    keys: tuple[Key, ...]
    panels: tuple[Panel, ...]


_RUN_STYLES = (
    Style(_SERIES[0], (), "o"),
    Style(_SERIES[1], (5, 2), "s"),
    Style(_SERIES[2], (1.5, 1.5), "^"),
    Style(_SERIES[3], (6, 2, 1.5, 2), "D"),
    Style(_SERIES[4], (3, 1.5), "v"),
    Style(_SERIES[5], (8, 3), "P"),
)
_UNDEFENDED = Style(_MUTED, (2, 2), "X")
_LEARNERS = {"clean": Style(_SERIES[0], (4, 1.5)), "robust": Style(_SERIES[1], (1.5, 1.2))}
_MORE_LEARNERS = (
    Style(_SERIES[2], (6, 2, 1.5, 2)),
    Style(_SERIES[3], (3, 1.5)),
    Style(_SERIES[4], (8, 3)),
)
_GLOBAL = Style(_INK, (), width=2.2)


def style_of_run(runs: Sequence[Run]) -> dict[str, Style]:
    """Return one style for each run, the same in all figures of a report."""
    defended = [run.name for run in runs if not run.undefended]
    plain = [run.name for run in runs if run.undefended]
    # A second undefended run takes a colour of its own.
    coloured = [*defended, *plain[1:]]
    styles = {name: _RUN_STYLES[i % len(_RUN_STYLES)] for i, name in enumerate(coloured)}
    return styles | dict.fromkeys(plain[:1], _UNDEFENDED)


def curves(run: Run, identity: str) -> Figure | None:
    """Return how a run's losses and accuracies went, or None where nothing was logged.

    Arguments:
        run: The run.
        identity: The id of the figure on its page.
    """
    if not run.rounds:
        return None
    lines = _lines(run)
    drawn = [
        _curve_panel(run, lines, title, key, identity)
        for title, key in (
            ("Clean accuracy, validation", "clean_accuracy"),
            ("Robust accuracy, validation", "robust_accuracy"),
            ("Training loss", "loss"),
            ("Clean loss, validation", "clean_loss"),
            ("Robust loss, validation", "robust_loss"),
            ("Learning rate", "lr"),
        )
    ]
    panels = tuple(panel for panel in drawn if panel)
    caption = "By round. Accuracies are measured on held-out validation images."
    return Figure(identity, caption, _curve_keys(run, lines), panels) if panels else None


_Line = tuple[Style, Callable[[Round], Mapping[str, float]]]


def _lines(run: Run) -> dict[str, _Line]:
    more = iter(_MORE_LEARNERS * (1 + len(run.learners) // len(_MORE_LEARNERS)))
    found: dict[str, _Line] = {}
    for name in run.learners:

        def learner(r: Round, name: str = name) -> Mapping[str, float]:
            return r.learners.get(name, {})

        found[name] = (_LEARNERS.get(name) or next(more), learner)
    if any(set(r.merged.items()) - set(own.items()) for r, own in _only(run)):
        found["average" if len(run.learners) == 1 else "global"] = (_GLOBAL, lambda r: r.merged)
    return found


def _only(run: Run) -> list[tuple[Round, Mapping[str, float]]]:
    """Return every round with what its only learner measured, which may be all there is."""
    return [
        (r, next(iter(r.learners.values())) if len(r.learners) == 1 else {}) for r in run.rounds
    ]


def _curve_keys(run: Run, lines: Mapping[str, _Line]) -> tuple[Key, ...]:
    keys = [
        Key(f"{name} learner" if name in run.learners else name, s)
        for name, (s, _) in lines.items()
    ]
    if run.start.round is not None:
        keys.append(Key(f"merging starts, t′ = {run.start.round}", sign="start"))
    if run.handovers:
        keys.append(Key("hand-over", sign="handover"))
    if run.kept_round is not None:
        keys.append(Key(f"kept, round {run.kept_round}", sign="kept"))
    if _has_strip(run):
        keys.append(Key("strip: share of each learner in the global one", sign="strip"))
    return tuple(keys)


def _has_strip(run: Run) -> bool:
    return len(run.learners) > 1 and any(r.weights for r in run.rounds)


def _curve_panel(
    run: Run, lines: Mapping[str, _Line], title: str, key: str, identity: str
) -> Panel | None:
    rounds = [r.number for r in run.rounds]
    values = {
        name: [read(r).get(key, math.nan) for r in run.rounds] for name, (_, read) in lines.items()
    }
    values = {name: v for name, v in values.items() if not all(map(math.isnan, v))}
    if not values:
        return None
    accuracy = key.endswith("accuracy")
    with matplotlib.rc_context(_DRAWING):
        canvas, axes = _axes(360, 232, bottom=0.145 + (_STRIP if _has_strip(run) else 0))
        for name, series in values.items():
            _line(axes, rounds, series, lines[name][0], markers=len(rounds) <= 16)
        _scale(axes, [v for s in values.values() for v in s if not math.isnan(v)], accuracy)
        _moments(axes, run)
        bottom = _strip(canvas, run, lines) if _has_strip(run) else axes
        _round_axis(axes, bottom, run)
        heading = f"{title} (log scale)" if axes.get_yscale() == "log" else title
        return Panel(heading, _svg(canvas, f"{identity}-{key}", _spoken(title, values, accuracy)))


def _axes(width: float, height: float, bottom: float) -> tuple[Canvas, Axes]:
    canvas = Canvas(figsize=(width / 72, height / 72), dpi=72)
    canvas.patch.set_visible(False)
    left = 44 / width
    axes = canvas.add_axes((left, bottom, 0.985 - left, 0.95 - bottom))
    _plain(axes)
    axes.grid(axis="y", color=_FAINT, linewidth=0.8)
    return canvas, axes


def _plain(axes: Axes) -> None:
    axes.patch.set_visible(False)
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(_MUTED)
        spine.set_linewidth(0.8)
    axes.tick_params(colors=_MUTED, labelcolor=_MUTED, width=0.8, length=3, labelsize=11)
    axes.tick_params(axis="y", length=0)


def _line(
    axes: Axes, x: Sequence[float], y: Sequence[float], style: Style, *, markers: bool
) -> None:
    (line,) = axes.plot(x, y, color=style.colour, linewidth=style.width, clip_on=False)
    if style.dashes:
        line.set_dashes(style.dashes)
    line.set_dash_capstyle("butt")
    if markers:
        axes.plot(
            x,
            y,
            linestyle="none",
            color=style.colour,
            marker=style.marker,
            markersize=3.6,
            clip_on=False,
        )


def _scale(axes: Axes, values: Sequence[float], accuracy: bool) -> None:
    if accuracy:
        low, high = math.floor(20 * min(values)) / 20, math.ceil(20 * max(values)) / 20
        if high - low < 0.1:
            low, high = (low, low + 0.1) if low <= 0.9 else (0.9, 1.0)
        axes.set_ylim(max(0.0, low), min(1.0, high))
        axes.yaxis.set_major_locator(MaxNLocator(5, steps=_STEPS))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{100 * v:.3g} %"))
    elif min(values) > 0 and max(values) > 30 * min(values):
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
        axes.yaxis.set_minor_formatter(FuncFormatter(lambda _v, _p: ""))
        axes.tick_params(axis="y", which="minor", length=0)
    else:
        axes.set_ylim(min(0.0, *values), max(1.05 * max(values), 1e-9))
        axes.yaxis.set_major_locator(MaxNLocator(5, steps=_STEPS))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:.3g}"))


def _moments(axes: Axes, run: Run) -> None:
    floor = axes.get_xaxis_transform()
    if run.start.round is not None:
        axes.axvline(run.start.round, color=_MUTED, linewidth=1, dashes=(3, 3), zorder=1)
    axes.plot(
        run.handovers,
        [0.025] * len(run.handovers),
        transform=floor,
        linestyle="none",
        marker="|",
        markersize=7,
        markeredgewidth=1.2,
        color=_MUTED,
        clip_on=False,
    )
    if run.kept_round is not None:
        axes.plot(
            [run.kept_round],
            [1.03],
            transform=floor,
            linestyle="none",
            marker="v",
            markersize=7,
            color=_INK,
            clip_on=False,
        )


def _round_axis(axes: Axes, bottom: Axes, run: Run) -> None:
    numbers = [r.number for r in run.rounds]
    first, last = min(numbers), max(run.planned, *numbers)
    pad = 0.5 if _has_strip(run) else max(0.02 * (last - first), 0.2)
    axes.set_xlim(first - pad, last + pad)
    for each in {axes, bottom}:
        each.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1, steps=_STEPS))
    if bottom is not axes:
        axes.tick_params(axis="x", labelbottom=False)
        bottom.set_xlim(*axes.get_xlim())


def _strip(canvas: Canvas, run: Run, lines: Mapping[str, _Line]) -> Axes:
    left, _, width, _ = canvas.axes[0].get_position().bounds
    strip = canvas.add_axes((left, 0.115, width, _STRIP))
    _plain(strip)
    strip.set_yticks([])
    strip.spines["bottom"].set_visible(False)
    numbers = [r.number for r in run.rounds]
    # One outline for each learner: a bar for each round would show seams between the bars.
    edges = [number + side for number in numbers for side in (-0.5, 0.5)]
    floor = [0.0] * len(edges)
    for name in run.learners:
        share = [r.weights.get(name, 0.0) for r in run.rounds for _ in range(2)]
        top = [a + b for a, b in zip(floor, share, strict=True)]
        strip.fill_between(edges, floor, top, color=lines[name][0].colour, linewidth=0)
        floor = top
    strip.set_ylim(0, max(1.0, *floor))
    return strip


def _spoken(title: str, values: Mapping[str, Sequence[float]], accuracy: bool) -> str:
    def last(series: Sequence[float]) -> str:
        value = [v for v in series if not math.isnan(v)][-1]
        return wording.percent(value) if accuracy else f"{value:.3g}"

    ends = wording.join([f"{name} at {last(series)}" for name, series in values.items()])
    return f"{title}, by round; it ends with {ends}."


def eps_sweep(runs: Sequence[Run], identity: str) -> Figure | None:
    """Return accuracy against budget, one panel a norm, or None where nothing was attacked."""
    norms = sorted({r.norm for run in runs for r in run.records if r.threat and r.norm})
    styles = style_of_run(runs)
    panels: list[Panel] = []
    shown: set[str] = set()
    for norm in norms:
        measure, found = sweep(runs, norm)
        if found:
            title = f"{_measured(measure)}, {wording.norm_text(norm)}"
            panels.append(_sweep_panel(title, found, styles, f"{identity}-{norm}"))
            shown.update(found)
    if not panels:
        return None
    keys = tuple(Key(run.name, styles[run.name]) for run in runs if run.name in shown)
    caption = "Bands are 95 % intervals; lines join measured points; eps = 0 is clean accuracy."
    return Figure(identity, caption, keys, tuple(panels))


def _measured(measure: str) -> str:
    named = {WORST: "Worst case of the attacks", "": "Strongest attack of each run"}
    return named.get(measure) or f"Under {measure}"


def _sweep_panel(
    title: str,
    found: Mapping[str, Mapping[float, Record]],
    styles: Mapping[str, Style],
    identity: str,
) -> Panel:
    with matplotlib.rc_context(_DRAWING):
        canvas, axes = _axes(400, 250, bottom=0.165)
        for name, by_eps in found.items():
            eps, accuracy = list(by_eps), [r.accuracy for r in by_eps.values()]
            _line(axes, eps, accuracy, styles[name], markers=True)
            bounds = [r.interval or (r.accuracy, r.accuracy) for r in by_eps.values()]
            low, high = zip(*bounds, strict=True)
            axes.fill_between(eps, low, high, color=styles[name].colour, alpha=0.15, linewidth=0)
        axes.set_ylim(0, 1)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{100 * v:.0f} %"))
        _eps_axis(axes, sorted({eps for by_eps in found.values() for eps in by_eps}))
        return Panel(title, _svg(canvas, identity, _spoken_sweep(title, found)))


def _eps_axis(axes: Axes, budgets: Sequence[float]) -> None:
    span = max(budgets[-1] - budgets[0], 1e-12)
    axes.set_xlim(budgets[0] - 0.02 * span, budgets[-1] + 0.04 * span)
    ticks: list[float] = []
    for eps in reversed(budgets):
        if not ticks or ticks[-1] - eps > 0.12 * span:
            ticks.append(eps)
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: wording.eps_text(v)))
    axes.set_xlabel("eps", color=_MUTED, fontsize=11, labelpad=3)


def _spoken_sweep(title: str, found: Mapping[str, Mapping[float, Record]]) -> str:
    def where(eps: float, record: Record) -> str:
        return "clean" if record.attack == CLEAN else wording.eps_text(eps)

    told = [
        f"{name}: "
        + ", ".join(f"{where(eps, r)} {wording.percent(r.accuracy)}" for eps, r in by_eps.items())
        for name, by_eps in found.items()
    ]
    return f"{title}, accuracy against eps. {'; '.join(told)}."


def _svg(canvas: Canvas, identity: str, spoken: str) -> Markup:
    target = StringIO()
    canvas.savefig(target, format="svg", metadata={"Date": None})
    drawing = target.getvalue()
    body = drawing[drawing.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>\s*|<style.*?</style>\s*", "", body, flags=re.DOTALL)
    view = re.search(r'viewBox="([^"]+)"', body)
    assert view is not None, "matplotlib writes a viewBox"
    body = body[body.index(">") + 1 :]
    body = re.sub(r' id="([^"]+)"', rf' id="{identity}-\1"', body)
    body = re.sub(r'xlink:href="#([^"]+)"', rf'href="#{identity}-\1"', body)
    body = re.sub(r"url\(#([^)]+)\)", rf"url(#{identity}-\1)", body)
    body = re.sub(r"font: ([\d.]+)px [^;\"]+", r"font-size: \1px", body)
    body = re.sub(r"font-family: [^;\"]+; ?", "", body)
    for colour, variable in _VARIABLES.items():
        body = body.replace(colour, f"var({variable})")
    head = f'<svg viewBox="{view[1]}" role="img" aria-label="{escape(spoken)}">'
    return Markup(head + body)  # noqa: S704 - drawn here, from numbers alone
