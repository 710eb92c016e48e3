"""Fronts as curves: at a clean accuracy, the highest robust accuracy there is.

It is that of the models that are at least as clean, straight between neighbours of which none is
better in both.
"""

__all__ = ["DEFAULT", "Curve", "Curves", "Gain", "curves", "foreseen", "gain", "mean", "regrets"]

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from equipoise.measures.statistics import front, hypervolume
from equipoise.paper.findings import CLEAN, WORST, Findings, Panel, Row
from equipoise.paper.measures import average, by_entry

DEFAULT = "a3gt-front"
_BOTH = (CLEAN, WORST)
_LEVELS = 101
_DRAWN = 200  # resamples of the images
Curves = Mapping[str, Mapping[int, "Curve"]]  # by setting and seed


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

    def area(self, classes: int) -> float:
        """Return the area above chance and no robustness that the models dominate."""
        return hypervolume([_pair(point) for point in self.points], (1 / classes, 0.0))

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


def mean(some: Iterable[Curve]) -> tuple[list[float], list[float]]:
    """Return the clean accuracies that some curves all reach, and the mean robust ones there."""
    every = [curve.points for curve in some]
    best = [_best(points) for points in every]
    levels = np.linspace(min(b[0, 0] for b in best), min(b[-1, 0] for b in best), _LEVELS)
    robust = np.mean([_at(points, levels) for points in every], 0)
    return levels.tolist(), robust.tolist()


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
