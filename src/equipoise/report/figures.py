"""The figures of a report: trade-off, accuracy against eps, classes, and training curves."""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator

from equipoise.report import pictures, wording
from equipoise.report.bars import Bar
from equipoise.report.bars import bars as draw_bars
from equipoise.report.content import Figure, Key, Picture
from equipoise.report.palette import GLOBAL, LEARNERS, Palette, Style, style_of
from equipoise.report.pictures import STEPS, axes_at, blank, line
from equipoise.report.results import CLEAN, WORST, EvaluatedRun, judged_alike, rows_of, sweep
from equipoise.report.runs_reader import RunData
from equipoise.report.stages import ATTACKED_KEY, CLEAN_KEY, accuracy_bars
from equipoise.store.records import Record


def curves(run: RunData, identity: str) -> Figure | None:
    """Return a run's losses and accuracies by round, or None where nothing was logged."""
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


_WIDE, _HIGH, _LEFT = 360.0, 232.0, 44.0  # points, of a curve
_SIDE, _TALL = 400.0, 270.0  # points, of a figure at the top
_NAMED = 12  # runs; of more, only the legend has the names
_STRIP = 16.0  # the height of the strip of weights
_Line = tuple[Style, Sequence[Mapping[str, float]]]


def _lines(run: RunData) -> dict[str, _Line]:
    """Return the style of each learner and of the global model, and their values by round."""
    more = (style_of("", place) for place in itertools.count(2))
    lines: dict[str, _Line] = {
        name: (LEARNERS.get(name) or next(more), [r.learners.get(name, {}) for r in run.rounds])
        for name in run.learners
    }
    # With one learner the global model is another model only if it is an average.
    only = [next(iter(r.learners.values())) if len(r.learners) == 1 else {} for r in run.rounds]
    if any(set(r.merged.items()) - set(o.items()) for r, o in zip(run.rounds, only, strict=True)):
        name = "average" if len(run.learners) == 1 else "global"
        lines[name] = GLOBAL, [r.merged for r in run.rounds]
    return lines


def _curve_keys(run: RunData, lines: Mapping[str, _Line]) -> tuple[Key, ...]:
    keys = [
        Key(f"{name} learner" if name in run.learners else name, s)
        for name, (s, _) in lines.items()
    ]
    t_start, kept = run.start[0], run.kept_round
    signs = (
        ("start", f"merging starts, t′ = {t_start}", t_start is not None),
        ("handover", "hand-over", run.handovers),
        ("kept", f"kept, round {kept}", kept is not None),
        ("strip", "strip: share of each learner in the global model", _has_strip(run)),
    )
    return (*keys, *(Key(label, sign=sign) for sign, label, shown in signs if shown))


def _has_strip(run: RunData) -> bool:
    return len(run.learners) > 1 and any(r.weights for r in run.rounds)


def _curve_panel(
    run: RunData, lines: Mapping[str, _Line], title: str, key: str, identity: str
) -> Picture | None:
    rounds = [r.number for r in run.rounds]
    values = {name: [v.get(key, math.nan) for v in every] for name, (_, every) in lines.items()}
    values = {name: v for name, v in values.items() if not all(map(math.isnan, v))}
    if not values:
        return None
    accuracy = key.endswith("accuracy")
    numbers = [v for series in values.values() for v in series if not math.isnan(v)]

    def draw(palette: Palette) -> Canvas:
        canvas = blank(palette, _WIDE, _HIGH)
        low = 33 + (_STRIP if _has_strip(run) else 0)
        place = (_LEFT, low, 0.985 * _WIDE - _LEFT, 0.95 * _HIGH - low)
        axes = axes_at(canvas, palette, place, size=11)
        for name, series in values.items():
            line(axes, palette, rounds, series, lines[name][0], markers=len(rounds) <= 16)
        _set_scale(axes, numbers, accuracy)
        _moments(axes, palette, run)
        bottom = _strip(canvas, palette, run, lines) if _has_strip(run) else axes
        _round_axis(axes, bottom, run)
        return canvas

    heading = title if accuracy or not _far_apart(numbers) else f"{title} (log scale)"
    return Picture(f"{identity}-{key}", heading, draw, _spoken(title, values, accuracy))


def _far_apart(values: Sequence[float]) -> bool:
    return min(values) > 0 and max(values) > 30 * min(values)


def _set_scale(axes: Axes, values: Sequence[float], accuracy: bool) -> None:
    """Choose the scale: percent for accuracies, logarithmic for values far apart."""
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=STEPS))
    if accuracy:
        low, high = math.floor(20 * min(values)) / 20, math.ceil(20 * max(values)) / 20
        if high - low < 0.1:
            low, high = (low, low + 0.1) if low <= 0.9 else (0.9, 1.0)
        axes.set_ylim(max(0.0, low), min(1.0, high))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{100 * v:.3g} %"))
    elif _far_apart(values):
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
        axes.yaxis.set_minor_formatter(FuncFormatter(lambda _v, _p: ""))
        axes.tick_params(axis="y", which="minor", length=0)
    else:
        axes.set_ylim(min(0.0, *values), max(1.05 * max(values), 1e-9))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:.3g}"))


def _moments(axes: Axes, palette: Palette, run: RunData) -> None:
    """Mark the start of merging, the hand-overs and the round that was kept."""
    if run.start[0] is not None:
        axes.axvline(run.start[0], color=palette.muted, linewidth=1, dashes=(3, 3), zorder=1)
    marks: dict[str, Any] = {"linestyle": "none", "markersize": 7, "clip_on": False}
    marks["transform"] = axes.get_xaxis_transform()
    for rounds, height, marker, colour in (
        (list(run.handovers), 0.025, "|", palette.muted),
        ([run.kept_round] if run.kept_round is not None else [], 1.03, "v", palette.ink),
    ):
        axes.plot(rounds, [height] * len(rounds), marker=marker, color=colour, **marks)


def _round_axis(axes: Axes, bottom: Axes, run: RunData) -> None:
    numbers = [r.number for r in run.rounds]
    first, last = min(numbers), max(run.planned, *numbers)
    pad = 0.5 if _has_strip(run) else max(0.02 * (last - first), 0.2)
    axes.set_xlim(first - pad, last + pad)
    for each in {axes, bottom}:
        each.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1, steps=STEPS))
    if bottom is not axes:
        axes.tick_params(axis="x", labelbottom=False)
        bottom.set_xlim(*axes.get_xlim())


def _strip(canvas: Canvas, palette: Palette, run: RunData, lines: Mapping[str, _Line]) -> Axes:
    place = (_LEFT, 26.7, 0.985 * _WIDE - _LEFT, _STRIP)
    strip = axes_at(canvas, palette, place, grid="", size=11)
    strip.set_yticks([])
    strip.spines["bottom"].set_visible(False)
    numbers = [r.number for r in run.rounds]
    # One outline for each learner: a bar for each round would show seams between the bars.
    edges = [number + side for number in numbers for side in (-0.5, 0.5)]
    floor = [0.0] * len(edges)
    for name in run.learners:
        share = [r.weights.get(name, 0.0) for r in run.rounds for _ in range(2)]
        top = [a + b for a, b in zip(floor, share, strict=True)]
        strip.fill_between(edges, floor, top, color=lines[name][0].of(palette), linewidth=0)
        floor = top
    strip.set_ylim(0, max(1.0, *floor))
    return strip


def _spoken(title: str, values: Mapping[str, Sequence[float]], accuracy: bool) -> str:
    def last(series: Sequence[float]) -> str:
        value = [v for v in series if not math.isnan(v)][-1]
        return wording.percent(value) if accuracy else f"{value:.3g}"

    ends = wording.join([f"{name} at {last(series)}" for name, series in values.items()])
    return f"{title}, by round; it ends with {ends}."


# The figures at the top of the page


def overview(
    runs: Sequence[RunData], rows: Mapping[str, EvaluatedRun], identity: str, *, bars: bool = True
) -> Figure | None:
    """Return the first figure of a report, or None where nothing was evaluated.

    Of several runs it is the trade-off between clean accuracy and accuracy under attack, of
    several radii accuracy against eps; of one run at one radius, with ``bars``, the accuracy by
    attack.
    """
    styles = _styles(runs)
    alike = [row for row in judged_alike(list(rows.values())) if row.attacked and row.clean]
    panels = [_tradeoff(alike, styles, f"{identity}-tradeoff")] if len(alike) > 1 else []
    drawn = {row.run.name for row in alike} if panels else set()
    norms = {row.threat[0] for run in runs for row in rows_of(run) if row.threat}
    for norm in sorted(norms):
        measure, by_run = sweep(runs, norm)
        if len({eps for by_eps in by_run.values() for eps in by_eps if eps}) > 1:
            titles = {WORST: "Worst case of the attacks", "": "Strongest attack of each run"}
            title = titles.get(measure) or f"Under {measure}"
            title = f"{title}, {wording.norm_text(norm)}"
            panels.append(against_eps(title, by_run, styles, f"{identity}-{norm}"))
            drawn |= set(by_run)
    if panels:
        keys = tuple(Key(run.name, styles[run.name]) for run in runs if run.name in drawn)
        caption = "Whiskers and bands are 95 % intervals; eps = 0 is clean accuracy."
        others = [name for name in rows if name not in drawn]
        if others:
            caption += f" Evaluated in another way and not drawn: {wording.join(others)}."
        return Figure(identity, caption, keys, tuple(panels))
    first = next(iter(rows.values()), None)
    return accuracy_bars(first, identity) if first and bars else None


def _tradeoff(rows: Sequence[EvaluatedRun], styles: Mapping[str, Style], identity: str) -> Picture:
    pairs = [(row.attacked, row.clean, row.run.name) for row in rows]
    points = [(a, c, name) for a, c, name in pairs if a and c]

    def draw(palette: Palette) -> Canvas:
        canvas = blank(palette, _SIDE, _TALL)
        axes = axes_at(canvas, palette, (50, 44, _SIDE - 64, _TALL - 58), grid="both", size=11)
        busy: list[tuple[float, float]] = []
        for attacked, clean, name in points:
            at, colour = (attacked.accuracy, clean.accuracy), styles[name].of(palette)
            busy += pictures.cross(axes, colour, at, attacked.interval, clean.interval)
            pictures.point(axes, palette, [at[0]], [at[1]], styles[name], size=8.5)
        pictures.plane(axes)
        names = [name for _, _, name in points]
        places = [(a.accuracy, c.accuracy) for a, c, _ in points]
        if len(points) <= _NAMED:
            pictures.put_labels(axes, names, places, [palette.ink] * len(names), busy)
        axes.set_xlabel("accuracy under attack", color=palette.muted, fontsize=11)
        axes.set_ylabel("clean accuracy", color=palette.muted, fontsize=11)
        return canvas

    threat = wording.threat_text(*rows[0].evaluation.threat)
    title = f"Clean accuracy against accuracy under attack, {threat}"
    listed = "; ".join(
        f"{name}: {wording.percent(c.accuracy)} clean, {wording.percent(a.accuracy)} under attack"
        for a, c, name in points
    )
    return Picture(identity, title, draw, f"{title}. {listed}.")


def classes(rows: Sequence[EvaluatedRun], names: Sequence[str], identity: str) -> Figure:
    """Return the accuracy by class of some runs, a panel of bars each."""
    panels = tuple(_class_bars(row, names, f"{identity}-{i}") for i, row in enumerate(rows))
    keys = (ATTACKED_KEY, Key("fooled by the attacks", sign="lost"), CLEAN_KEY)
    return Figure(identity, "Accuracy by class, from 0 to 100 %.", keys, panels)


def _class_bars(row: EvaluatedRun, names: Sequence[str], identity: str) -> Picture:
    drawn = []
    for name in names:
        clean, attacked = (
            record.per_class.get(name) if record else None for record in (row.clean, row.attacked)
        )
        value = clean if attacked is None else attacked
        if value is not None:
            lost = max(0.0, clean - value) if clean is not None else 0.0
            drawn.append(Bar(name, value, wording.percent(value), attacked is None, lost=lost))
    listed = "; ".join(f"{bar.name} {bar.text}" for bar in drawn)
    spoken = f"{row.run.name}, accuracy by class: {listed}."
    return draw_bars(row.run.name, drawn, 1, identity, spoken)


def against_eps(
    title: str,
    by_run: Mapping[str, Mapping[float, Record]],
    styles: Mapping[str, Style],
    identity: str,
) -> Picture:
    """Return the picture of accuracy against eps: by run, and by radius, a record."""

    def draw(palette: Palette) -> Canvas:
        canvas = blank(palette, _SIDE, _TALL)
        axes = axes_at(canvas, palette, (_LEFT, 44, _SIDE - 6 - _LEFT, _TALL - 58), size=11)
        for name, by_eps in by_run.items():
            eps, accuracy = list(by_eps), [r.accuracy for r in by_eps.values()]
            line(axes, palette, eps, accuracy, styles[name])
            low, high = zip(*(r.interval for r in by_eps.values()), strict=True)
            colour = styles[name].of(palette)
            axes.fill_between(eps, low, high, color=colour, alpha=0.15, linewidth=0)
        axes.set_ylim(0, 1)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{100 * v:.0f} %"))
        _eps_axis(axes, sorted({eps for by_eps in by_run.values() for eps in by_eps}))
        axes.set_xlabel("eps", color=palette.muted, fontsize=11, labelpad=3)
        return canvas

    lines = []
    for name, by_eps in by_run.items():
        points = []
        for eps, record in by_eps.items():
            label = "clean" if record.attack == CLEAN else wording.eps_text(eps)
            points.append(f"{label} {wording.percent(record.accuracy)}")
        lines.append(f"{name}: {', '.join(points)}")
    spoken = f"{title}, accuracy against eps. {'; '.join(lines)}."
    return Picture(identity, title, draw, spoken)


def _styles(runs: Sequence[RunData]) -> dict[str, Style]:
    """Return a style for each run; the first undefended run steps back."""
    defended = [run.name for run in runs if not run.undefended]
    undefended = [run.name for run in runs if run.undefended]
    names = [*defended, *undefended[1:]]
    styles = {name: style_of("", place) for place, name in enumerate(names)}
    return styles | {name: style_of("standard", 0) for name in undefended[:1]}


def _eps_axis(axes: Axes, budgets: Sequence[float]) -> None:
    span = max(budgets[-1] - budgets[0], 1e-12)
    axes.set_xlim(budgets[0] - 0.02 * span, budgets[-1] + 0.04 * span)
    ticks: list[float] = []
    for eps in reversed(budgets):
        if not ticks or ticks[-1] - eps > 0.12 * span:
            ticks.append(eps)
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: wording.eps_text(v)))
