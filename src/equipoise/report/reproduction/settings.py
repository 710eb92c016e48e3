"""Does one setting of a front serve everywhere? Every setting beside the default, at equal clean.

A front is read as a curve: at a clean accuracy, the highest robust accuracy of the models that
are at least as clean, straight between neighbours of which none is better in both.
"""

__all__ = ["DEFAULT", "Curve", "Gain", "blocks", "curves", "foreseen", "gain", "regrets"]

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np
from matplotlib.figure import Figure as Canvas
from numpy.typing import NDArray

from equipoise.metrics import front, hypervolume
from equipoise.report import wording
from equipoise.report.reproduction import pictures, tradeoff
from equipoise.report.reproduction.content import (
    Block,
    Column,
    Item,
    Picture,
    Table,
    Text,
    file_name,
)
from equipoise.report.reproduction.findings import CLEAN, WORST, Findings, Panel, Row
from equipoise.report.reproduction.measures import average, by_entry
from equipoise.report.reproduction.palette import Look, Palette, look_of
from equipoise.report.reproduction.phrases import area_item, figure, margin, plural, seeds, words

DEFAULT = "a3gt-front"
BAR = 0.01  # the median regret, in robust accuracy, that the default may have
_BOTH = (CLEAN, WORST)
_LEVELS = 101
_DRAWN = 200  # resamples of the images
Curves = Mapping[str, Mapping[int, "Curve"]]


@dataclass(frozen=True)
class Curve:
    """The models between the learners of one run.

    Arguments:
        rows: The models, by gamma.
    """

    rows: tuple[Row, ...]

    @property
    def points(self) -> NDArray[np.float64]:
        """Return their (clean, robust) accuracies, of shape (models, 2)."""
        return np.array([[row.correct[a] / row.n for a in _BOTH] for row in self.rows])

    @property
    def ends(self) -> tuple[tuple[float, float], tuple[float, float]]:
        """Return the model with the highest clean and that with the highest robust accuracy."""
        best = _best(self.points)
        return _pair(best[-1]), _pair(best[0])

    def resampled(self, drawn: NDArray[np.int64]) -> NDArray[np.float64] | None:
        """Return the points on images drawn anew; None where there are no verdicts."""
        if any({*_BOTH} - {*row.verdicts} for row in self.rows):
            return None
        columns = [np.stack([row.verdicts[a] for row in self.rows]) @ drawn.T for a in _BOTH]
        return np.stack(columns, -1).transpose(1, 0, 2) / self.rows[0].n


@dataclass(frozen=True)
class Gain:
    """What another setting has more robust accuracy than the default, at equal clean accuracy.

    Arguments:
        entry: The setting.
        value: The mean over the clean accuracies that both reach, as a fraction.
        interval: Its 95 % interval, of resampled images; None where there are no verdicts.
    """

    entry: str
    value: float
    interval: tuple[float, float] | None = None


def _pair(point: NDArray[np.float64]) -> tuple[float, float]:
    return float(point[0]), float(point[1])


def _best(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the points that no other one dominates, the least clean first."""
    return points[front([_pair(point) for point in points])]


def _at(points: NDArray[np.float64], levels: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the robust accuracy of a curve at clean accuracies that it reaches."""
    best = _best(points)
    return np.interp(levels, best[:, 0], best[:, 1])


def _more(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    """Return how much more robust the first curve is at equal clean accuracy, in the mean.

    The clean accuracies go from that of the less clean of the two robust ends to the highest that
    both reach.
    """
    mine, its = _best(one), _best(other)
    low, high = min(mine[0, 0], its[0, 0]), min(mine[-1, 0], its[-1, 0])
    levels = np.linspace(low, high, _LEVELS)
    return float((_at(mine, levels) - _at(its, levels)).mean())


def curves(findings: Findings, panel: Panel) -> dict[str, dict[int, Curve]]:
    """Return the fronts of a panel by setting and seed."""
    made: dict[str, dict[int, Curve]] = {}
    for entry, rows in by_entry(findings.of(panel, weights=None)).items():
        placed: dict[int, list[Row]] = {}
        for row in rows:
            if row.gamma is not None and {*_BOTH} <= {*row.correct}:
                placed.setdefault(row.seed, []).append(row)
        ordered = {
            seed: Curve(tuple(sorted(some, key=lambda row: row.gamma or 0)))
            for seed, some in placed.items()
        }
        if ordered:
            made[entry] = ordered
    return made


def gain(entry: str, other: Curve, default: Curve) -> Gain:
    """Return what a setting has more than the default.

    Arguments:
        entry: The setting.
        other: Its front.
        default: The front of the default, with the same seed and images.
    """
    value = _more(other.points, default.points)
    n = default.rows[0].n
    drawn = np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), _DRAWN)
    both = [curve.resampled(drawn) for curve in (other, default)]
    if both[0] is None or both[1] is None or other.rows[0].n != n:
        return Gain(entry, value)
    found = [_more(mine, its) for mine, its in zip(both[0], both[1], strict=True)]
    low, high = np.quantile(found, (0.025, 0.975))
    return Gain(entry, value, (float(low), float(high)))


def regrets(found: Curves) -> dict[int, list[Gain]]:
    """Return by seed what the other settings have more than the default, the most first."""
    made = {}
    for seed, default in found.get(DEFAULT, {}).items():
        others = [
            gain(entry, by_seed[seed], default)
            for entry, by_seed in found.items()
            if entry != DEFAULT and seed in by_seed
        ]
        if others:
            made[seed] = sorted(others, key=lambda gain: -gain.value)
    return made


def foreseen(gains: Mapping[int, Sequence[Gain]]) -> dict[int, Gain]:
    """Return by seed what the setting that the other seeds would choose gains with this one.

    Unlike the best one of :func:`regrets` it is not chosen by what it is measured on, so that
    chance does not help it; it may be worse than the default.

    Arguments:
        gains: The result of :func:`regrets`; a seed that is alone is left out.
    """
    values = {seed: {g.entry: g.value for g in some} for seed, some in gains.items()}
    made = {}
    for seed, here in values.items():
        others = [there for other, there in values.items() if other != seed]
        if others:
            shared = set.intersection(*map(set, [here, *others]))
            means = {DEFAULT: 0.0} | {
                entry: average([there[entry] for there in others]) for entry in sorted(shared)
            }
            best = max(means, key=lambda entry: means[entry])
            made[seed] = Gain(best, here.get(best, 0.0))
    return made


def blocks(findings: Findings) -> list[Block]:
    """Return the picture, what each setting gave, the regret, and what that says."""
    panels = {panel: found for panel in findings.panels if (found := curves(findings, panel))}
    if not panels:
        return [Text("Nothing has been measured yet.")]
    gains = {panel: regrets(found) for panel, found in panels.items()}
    made: list[Block] = [_picture(panels, findings.experiment)]
    for panel, found in panels.items():
        made.append(_settings(panel, found, gains[panel]))
    if any(gains.values()):
        made += [_regret(gains, findings.experiment), Text(_said(gains))]
    return made


def _picture(panels: Mapping[Panel, Curves], experiment: str) -> Picture:
    told = [
        f"{panel.title}: "
        + ", ".join(f"{entry} {_span(by_seed.values())}" for entry, by_seed in found.items())
        for panel, found in panels.items()
    ]
    return Picture(
        file_name(experiment, "fronts"),
        "The front of every setting",
        lambda palette: _draw(palette, panels),
        f"Robust against clean accuracy. {'; '.join(told)}.",
        "At a clean accuracy (upwards) the highest robust accuracy of the models that are at "
        "least as clean; a mean over the seeds of a setting, as far as all of them reach.",
    )


def _span(some: Iterable[Curve]) -> str:
    found = [curve.ends for curve in some]
    clean = average([most for (most, _), _ in found])
    robust = average([most for _, (_, most) in found])
    return f"up to {wording.percent(clean)} clean or {wording.percent(robust)} robust"


def _draw(palette: Palette, panels: Mapping[Panel, Curves]) -> Canvas:
    names = list(dict.fromkeys(entry for found in panels.values() for entry in found))
    looks = {entry: _look(entry, place) for place, entry in enumerate(names)}
    rows = -(-(len(panels) + 1) // 3)
    canvas = pictures.blank(palette, 740, 260 * rows)
    for i, (panel, found) in enumerate(panels.items()):
        left, bottom = 246 * (i % 3) + 50, 260 * (rows - 1 - i // 3) + 44
        axes = pictures.axes_at(canvas, palette, (left, bottom, 184, 180), grid="both")
        for entry in sorted(found, key=lambda entry: entry == DEFAULT):
            clean, robust = _mean(found[entry].values())
            pictures.line(axes, palette, robust, clean, looks[entry], markers=False)
        tradeoff.plane(axes)
        title = panel.title.partition(" (")[0]  # a file's name is too long here
        axes.set_title(title, color=palette.ink, fontsize=10, loc="left", x=-0.22)
        axes.set_xlabel("robust accuracy", color=palette.muted, fontsize=10, labelpad=2)
    last = len(panels)
    corner = (246 * (last % 3) + 30, 260 * (rows - last // 3) - 18)
    pictures.legend(canvas, palette, looks, corner)
    return canvas


def _look(entry: str, place: int) -> Look:
    return Look("ink", (), "o", 2.6) if entry == DEFAULT else look_of(entry, place)


def _mean(some: Iterable[Curve]) -> tuple[list[float], list[float]]:
    """Return the clean accuracies that some curves all reach, and the mean robust ones there."""
    every = [curve.points for curve in some]
    best = [_best(points) for points in every]
    levels = np.linspace(min(b[0, 0] for b in best), min(b[-1, 0] for b in best), _LEVELS)
    robust = np.mean([_at(points, levels) for points in every], 0)
    return levels.tolist(), robust.tolist()


def _settings(panel: Panel, found: Curves, gains: Mapping[int, Sequence[Gain]]) -> Table:
    rows, records = [], [_SETTINGS_HEAD]
    for entry, by_seed in found.items():
        ends = [curve.ends for curve in by_seed.values()]
        areas = {seed: _area(curve, panel) for seed, curve in by_seed.items()}
        mine = {seed: g.value for seed, some in gains.items() for g in some if g.entry == entry}
        starts = sorted({c.rows[0].t_start for c in by_seed.values()} - {None}, key=str)
        rows.append(
            (
                Item(entry),
                Item(seeds(list(by_seed), panel.seeds)),
                Item(", ".join(map(str, starts)) or wording.MISSING),
                *(_end([pair[i] for pair in ends]) for i in (0, 1)),
                area_item([*areas.values()]),
                _margin([*mine.values()]) if entry != DEFAULT else Item("the default"),
            )
        )
        records += [
            (entry, seed, curve.rows[0].n, *curve.ends[0], *curve.ends[1], areas[seed], t, more)
            for seed, curve in by_seed.items()
            for t, more in [(curve.rows[0].t_start, mine.get(seed))]
        ]
    columns = (
        *(Column(head, False) for head in ("setting", "seeds", "parts after round")),
        *map(Column, ("clean end", "robust end", "area", "robust, at equal clean")),
    )
    area = f"Area above ({1 / panel.classes:.3g}, 0) that the measured models dominate."
    notes = (_ENDS, f"{area} {_LAST}")
    name = file_name("settings", panel.name.removeprefix("settings-"))
    return Table(
        name, f"Every setting, {panel.title}", columns, tuple(rows), notes, tuple(records)
    )


_ENDS = (
    "Clean / robust accuracy in percent of the model with the highest clean and of that with the "
    "highest robust accuracy, on held-out images, means over the seeds."
)
_LAST = (
    "In the last column the points of robust accuracy that a setting has more than the default, "
    "in the mean over the clean accuracies that both reach, and of several seeds their range."
)
_SETTINGS_HEAD: tuple[object, ...] = (
    *("setting", "seed", "n", "clean_end_clean", "clean_end_robust"),
    *("robust_end_clean", "robust_end_robust", "area", "t_branch", "gain"),
)


def _area(curve: Curve, panel: Panel) -> float:
    return hypervolume([_pair(point) for point in curve.points], (1 / panel.classes, 0.0))


def _end(ends: Sequence[tuple[float, float]]) -> Item:
    clean, robust = (average([end[i] for end in ends]) for i in (0, 1))
    return Item(f"{figure(clean)} / {figure(robust)}", clean)


def _margin(values: Sequence[float]) -> Item:
    if not values:
        return Item()
    mean = average(values)
    several = f"({margin(min(values))}..{margin(max(values))})" if len(values) > 1 else ""
    return Item(margin(mean), mean, several)


def _regret(gains: Mapping[Panel, Mapping[int, Sequence[Gain]]], experiment: str) -> Table:
    rows, records = [], [_REGRET_HEAD]
    for panel, by_seed in gains.items():
        told = foreseen(by_seed)
        for seed, some in by_seed.items():
            best, chosen = some[0], told.get(seed)
            better = best.value > 0
            interval = f"[{' to '.join(map(margin, best.interval))}]" if best.interval else ""
            rows.append(
                (
                    Item(panel.title),
                    Item(str(seed)),
                    Item(str(len(some) + 1)),
                    Item(best.entry if better else "the default"),
                    Item(figure(best.value), best.value, interval) if better else Item("0.0", 0.0),
                    *_chosen(chosen),
                )
            )
            ends = best.interval or (None, None)
            blind = (chosen.entry, chosen.value) if chosen else (None, None)
            records.append(
                (panel.name, seed, len(some) + 1, best.entry, best.value, *ends, *blind)
            )
    heads = ("where", "seed", "settings", "best setting", "regret", "others' choice", "its gain")
    names = ("where", "best setting", "others' choice")
    columns = tuple(Column(head, head not in names) for head in heads)
    note = (
        "Regret: points of robust accuracy that the best setting has more than the default, in "
        "the mean over the clean accuracies that both reach; in square brackets the 95 % interval "
        "of that difference. The best is chosen after the fact among settings that differ by "
        "chance, too, so that regrets err to the high side."
    )
    other = (
        "Others' choice: the setting that is best with the other seeds, and what it has more "
        "than the default with this one. It is not chosen by what it is measured on, so that "
        "chance does not help it."
    )
    return Table(
        file_name(experiment, "regret"),
        "Regret of the default",
        columns,
        tuple(rows),
        (note, other),
        tuple(records),
    )


def _chosen(chosen: Gain | None) -> tuple[Item, Item]:
    if chosen is None:
        return Item(), Item()
    if chosen.entry == DEFAULT:
        return Item("the default"), Item("0.0", 0.0)
    return Item(chosen.entry), Item(margin(chosen.value), chosen.value)


_REGRET_HEAD: tuple[object, ...] = (
    *("panel", "seed", "settings", "best_other", "gain", "gain_low", "gain_high"),
    *("others_choice", "others_choice_gain"),
)


def _said(gains: Mapping[Panel, Mapping[int, Sequence[Gain]]]) -> str:
    found = [max(some[0].value, 0.0) for by_seed in gains.values() for some in by_seed.values()]
    panels = sum(bool(by_seed) for by_seed in gains.values())
    middle = median(found)
    verb = "is" if middle <= BAR else "is not"
    return (
        f"Over {plural(panels, 'panel')} with their seeds, {plural(len(found), 'case')} in all, "
        f"the median regret of the default is {figure(middle)} points of robust "
        f"accuracy at equal clean accuracy, the largest {figure(max(found))}. At most "
        f"one point in the median {verb} reached.{_told(gains)}"
    )


def _told(gains: Mapping[Panel, Mapping[int, Sequence[Gain]]]) -> str:
    """Return what the choices of the other seeds say of the default."""
    blind = [gain.value for by_seed in gains.values() for gain in foreseen(by_seed).values()]
    if not blind:
        return ""
    better = sum(value > 0 for value in blind)
    return (
        f" Who chooses by the other seeds gains {margin(median(blind))} points in the median of "
        f"{plural(len(blind), 'case')}, {margin(average(blind))} in the mean, and is better off "
        f"than with the default in {words(better)}."
    )
