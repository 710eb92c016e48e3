"""Means over seeds, intervals, and paired comparisons of models on the same images.

All seeds are evaluated on the same images, so seeds do not multiply the images: the interval of a
mean is that of n images around it, and two entries are compared seed by seed, image by image, with
McNemar's exact test.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from equipoise.measures import seeds
from equipoise.measures.seeds import Difference
from equipoise.measures.statistics import hypervolume, interval, mcnemar
from equipoise.paper.results import AUTOATTACK, CLEAN, WORST

ALPHA = 0.05  # a difference of one seed with a smaller p counts as significant

Rows = pd.DataFrame  # rows of the long table
Pair = tuple[float, float]  # clean and robust accuracy
Relation = Literal["ahead", "behind", "level", "open", "unknown"]
Resampled = dict[int, NDArray[np.float64]]  # by seed, as measures.seeds.over_seeds takes them


@dataclass(frozen=True)
class Accuracies:
    """The accuracy of each seed, as fractions of n images (the least n of the seeds)."""

    values: tuple[float, ...]
    n: int

    @property
    def mean(self) -> float:
        """The mean over the seeds."""
        return average(self.values)

    @property
    def interval(self) -> tuple[float, float]:
        """The exact 95 % interval of n images at the mean."""
        return interval(round(self.mean * self.n), self.n)

    @property
    def half_width(self) -> float:
        """Half the width of the interval."""
        low, high = self.interval
        return (high - low) / 2


def average(values: Sequence[float]) -> float:
    """Return the mean of some numbers."""
    return sum(values) / len(values)


def group(rows: Rows, column: str) -> dict[Any, Rows]:
    """Return the rows of each value of a column, in the order of their first appearance."""
    return dict(iter(rows.groupby(column, sort=False)))


def radii(rows: Rows) -> list[float]:
    """Return the radii above 0, in ascending order."""
    return sorted({eps for eps in rows["eps"] if eps > 0})


def evaluated(rows: Rows) -> list[str]:
    """Return the attacks of some rows, without the worst case."""
    return [name for name in dict.fromkeys(rows["attack"]) if name != WORST]


def named(attacks: Iterable[str], start: str) -> str:
    """Return the first attack whose name begins with some text, or that text."""
    return next((name for name in attacks if name.startswith(start)), start)


def accuracies(rows: Rows | None, attack: str) -> Accuracies | None:
    """Return the accuracies of one entry under an attack; None without a result."""
    if rows is None or attack not in set(rows["attack"]):
        return None
    chosen = rows[rows["attack"] == attack]
    return Accuracies(tuple(chosen["accuracy"]), min(chosen["n"]))


def both_accuracies(rows: Rows) -> list[Accuracies | None]:
    """Return the clean accuracies of one entry and those under AutoAttack."""
    return [accuracies(rows, attack) for attack in (CLEAN, AUTOATTACK)]


def paired(first: Rows | None, second: Rows | None, attack: str) -> pd.DataFrame:
    """Return how two entries differ on each seed whose images are the same.

    Returns:
        A row a seed: ``difference`` of their accuracies, first minus second, the numbers of
        images that ``only_first`` and ``only_second`` classify correctly, McNemar's ``p``, and
        ``n``.
    """
    differences = []
    for seed, a, b in _same_images(first, second, attack):
        test = mcnemar(a.tolist(), b.tolist())
        gap = (test.only_first - test.only_second) / len(a)
        differences.append((seed, gap, test.only_first, test.only_second, test.p, len(a)))
    columns = ["seed", "difference", "only_first", "only_second", "p", "n"]
    return pd.DataFrame(differences, columns=columns)


def _same_images(
    first: Rows | None, second: Rows | None, attack: str, values: str = "flags"
) -> list[tuple[int, NDArray[Any], NDArray[Any]]]:
    """Return the seeds on which two entries have the same images, with the values of both."""
    if first is None or second is None or values not in first:
        return []
    keys = ["seed", "sample", "n"]
    a, b = (
        rows[(rows["attack"] == attack) & rows[values].notna()][[*keys, values]]
        for rows in (first, second)
    )
    pairs = a.merge(b, on=keys)
    return list(zip(pairs["seed"], pairs[f"{values}_x"], pairs[f"{values}_y"], strict=True))


def differences(first: Rows | None, second: Rows | None, attack: str) -> Resampled:
    """Return by seed how the accuracies of two entries differ, first minus second.

    Returns:
        For each seed whose images are the same the difference on them and on resampled images.
    """
    return {
        seed: seeds.draws(len(a)) @ (a.astype(np.float32) - b) / np.float64(len(a))
        for seed, a, b in _same_images(first, second, attack)
    }


def over_seeds(by_seed: Resampled, rows: Rows | None) -> Difference | None:
    """Return a difference over the seeds; ``rows`` have its number of images."""
    if rows is None or not by_seed:
        return None
    return seeds.over_seeds(np.stack([*by_seed.values()], 1), min(rows["n"]))


def relation(pairs: pd.DataFrame) -> Relation:
    """Return how the first entry of a paired comparison stands to the second.

    Ahead or behind means: on every seed, and significantly on more than half of them. This is of
    the models that were trained; what is said of methods needs :func:`over_seeds`.
    """
    if pairs.empty:
        return "unknown"
    if 2 * (pairs["p"] < ALPHA).sum() <= len(pairs):
        return "open"
    if (pairs["difference"] > 0).all():
        return "ahead"
    return "behind" if (pairs["difference"] < 0).all() else "open"


def stands(first: Rows | None, second: Rows | None, attack: str) -> Relation:
    """Return how an entry stands to another one under an attack."""
    return relation(paired(first, second, attack))


def best_marks(entries: Mapping[Any, Rows], attack: str) -> dict[Any, str]:
    """Return which entries have the highest mean (``best``) or are not behind it (``close``)."""
    means = {name: a.mean for name, rows in entries.items() if (a := accuracies(rows, attack))}
    best = [name for name, mean in means.items() if mean == max(means.values())]
    if len(best) == len(means):
        return {}
    marks = dict.fromkeys(best, "best")
    for name in set(means) - set(best):
        if stands(entries[name], entries[best[0]], attack) in ("open", "ahead"):
            marks[name] = "close"
    return marks


def paired_half_width(pairs: pd.DataFrame) -> float:
    """Return half the width of the 95 % interval of a difference on the same images.

    It is 1.96 standard errors of the difference of one seed, averaged over the seeds, which have
    the same images.
    """
    discordant, n = pairs["only_first"] + pairs["only_second"], pairs["n"]
    return float((1.96 * (discordant - n * pairs["difference"] ** 2) ** 0.5 / n).mean())


def score_half_width(first: Rows, second: Rows, credits_of: str) -> float | None:
    """Return half the width of the 95 % interval of the difference of two scores.

    It is 1.96 standard errors of the mean difference of credits on the same images, where an
    image has its mean over the seeds. It is of these models on other images, not of other seeds.

    Arguments:
        first: The rows of an entry at one radius.
        second: Those of another one.
        credits_of: The column of the credits.

    Returns:
        Half the width; None if no seed has the credits of both on the same images.
    """
    gaps = [a - b for _, a, b in _same_images(first, second, WORST, credits_of)]
    if not gaps:
        return None
    gap = np.mean([each for each in gaps if len(each) == len(gaps[0])], 0)
    return float(1.96 * gap.std() / len(gap) ** 0.5)


def points(rows: Rows, robust: str = AUTOATTACK) -> Rows:
    """Return the models that have both accuracies: the clean one and that under an attack.

    Returns:
        The clean rows, with ``clean`` and ``robust`` accuracy, ``flags`` of the clean images and
        ``robust_flags``.
    """
    keys = ["panel", "entry", "seed", "weights", "eps", "n"]
    attacked = rows[rows["attack"] == robust][[*keys, "accuracy", "flags"]]
    attacked = attacked.rename(columns={"accuracy": "robust", "flags": "robust_flags"})
    clean = rows[rows["attack"] == CLEAN].rename(columns={"accuracy": "clean"})
    return clean.merge(attacked, on=keys)


def pairs_of(models: Rows) -> list[Pair]:
    """Return the (clean, robust) accuracies of :func:`points`."""
    return list(zip(models["clean"], models["robust"], strict=True))


def mean_pair(models: Rows) -> Pair:
    """Return the means of the (clean, robust) accuracies of :func:`points`."""
    return average(list(models["clean"])), average(list(models["robust"]))


def area(accuracies: Iterable[Pair], classes: int) -> float:
    """Return the area that (clean, robust) accuracies dominate, above chance and above 0."""
    return hypervolume(list(accuracies), (1 / classes, 0.0))


def resampled(models: Rows, count: int = seeds.RESAMPLES) -> NDArray[np.float64]:
    """Return the (clean, robust) accuracies of :func:`points` on images drawn with replacement.

    The drawings are the same for all models with the same number of images.

    Returns:
        Accuracies of shape (1 + count, models, 2), the first ones of the images themselves.
    """
    n = models["n"].iloc[0]
    drawn = seeds.draws(n)[: 1 + count]
    flags = (np.stack(list(models[column])) for column in ("flags", "robust_flags"))
    counts = np.stack([each.astype(np.float32) @ drawn.T for each in flags], -1)
    return np.asarray(counts.transpose(1, 0, 2) / np.float64(n))
