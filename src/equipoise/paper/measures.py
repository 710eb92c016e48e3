"""What the numbers of an experiment carry: means over seeds, intervals, and paired comparisons.

All seeds are judged on the same images. So seeds do not multiply the images: the interval of a
mean is that of one seed's n images around it, and two entries are compared seed by seed, on the
same images, with McNemar's exact test.
"""

__all__ = [
    "ALPHA",
    "Accuracies",
    "Comparison",
    "Pair",
    "average",
    "budgets",
    "by_entry",
    "cell",
    "compare",
    "half_width",
    "paired_half_width",
    "standing",
]

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from equipoise.measures.statistics import interval, mcnemar
from equipoise.paper.findings import Row

ALPHA = 0.05  # below this p a difference of one seed counts as seen

Relation = Literal["ahead", "behind", "level", "unknown"]


@dataclass(frozen=True)
class Accuracies:
    """The accuracy of an entry under an attack.

    Arguments:
        values: The accuracy of each seed.
        n: The images of a seed; of several numbers the least.
    """

    values: tuple[float, ...]
    n: int

    @property
    def mean(self) -> float:
        """Return the mean over the seeds."""
        return average(self.values)

    @property
    def lowest(self) -> float:
        """Return the least of the seeds."""
        return min(self.values)

    @property
    def highest(self) -> float:
        """Return the greatest of the seeds."""
        return max(self.values)

    @property
    def interval(self) -> tuple[float, float]:
        """Return the exact 95 % interval of one seed's images at the mean."""
        return interval(round(self.mean * self.n), self.n)


@dataclass(frozen=True)
class Pair:
    """Two entries on one seed: how many images only the one, only the other gets right."""

    seed: int
    difference: float
    only_first: int
    only_second: int
    p: float


@dataclass(frozen=True)
class Comparison:
    """Two entries under one attack, on the seeds that both have.

    Arguments:
        pairs: The comparison of each such seed.
    """

    pairs: tuple[Pair, ...]

    @property
    def mean(self) -> float:
        """Return the mean difference, first less second, as a fraction."""
        return average([pair.difference for pair in self.pairs])

    @property
    def relation(self) -> Relation:
        """Return how the first stands to the second.

        Ahead or behind it is if it is so on every seed, and by McNemar's test on most of them.
        """
        if not self.pairs:
            return "unknown"
        seen = sum(pair.p < ALPHA for pair in self.pairs)
        if 2 * seen <= len(self.pairs):
            return "level"
        if all(pair.difference > 0 for pair in self.pairs):
            return "ahead"
        return "behind" if all(pair.difference < 0 for pair in self.pairs) else "level"


def half_width(accuracy: float, n: int) -> float:
    """Return half the width of the 95 % interval: differences below it are noise."""
    low, high = interval(round(accuracy * n), n)
    return (high - low) / 2


def paired_half_width(first: Sequence[Row], second: Sequence[Row], attack: str) -> float | None:
    """Return half the width of the 95 % interval of a difference on the same images.

    It is 1.96 standard errors of the mean difference of one seed's verdicts, averaged over the
    seeds, which see the same images; None where no seed has the verdicts of both.
    """
    others = {row.seed: row for row in second}
    found = []
    for pair in compare(first, second, attack).pairs:
        n = others[pair.seed].n
        apart = pair.only_first + pair.only_second
        found.append(1.96 * math.sqrt(apart - n * pair.difference**2) / n)
    return average(found) if found else None


def average(values: Sequence[float]) -> float:
    """Return the mean of some numbers."""
    return sum(values) / len(values)


def budgets(rows: Iterable[Row]) -> list[float]:
    """Return the radii above 0, small ones first."""
    return sorted({row.eps for row in rows if row.eps > 0})


def by_entry(rows: Iterable[Row]) -> dict[str, list[Row]]:
    """Return the rows of each entry, in their order."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row.entry, []).append(row)
    return found


def cell(rows: Sequence[Row], attack: str) -> Accuracies | None:
    """Return the accuracy of some seeds of an entry; None where it was not attacked so."""
    known = [row for row in rows if attack in row.correct]
    if not known:
        return None
    return Accuracies(tuple(row.correct[attack] / row.n for row in known), min(r.n for r in known))


def compare(first: Sequence[Row], second: Sequence[Row], attack: str) -> Comparison:
    """Return how two entries differ, on the seeds and images they share."""
    others = {row.seed: row for row in second}
    pairs = []
    for row in first:
        other = others.get(row.seed)
        if other is None or attack not in row.verdicts or attack not in other.verdicts:
            continue
        mine, its = row.verdicts[attack], other.verdicts[attack]
        if len(mine) != len(its) or row.sample != other.sample:
            continue
        found = mcnemar(mine.tolist(), its.tolist())
        gain = (found.only_first - found.only_second) / len(mine)
        pairs.append(Pair(row.seed, gain, found.only_first, found.only_second, found.p))
    return Comparison(tuple(pairs))


def standing(entries: Mapping[str, Sequence[Row]], attack: str) -> dict[str, str]:
    """Return which entries have the highest mean (``best``) or are not told from it (``close``).

    An entry is close to the best if it is not behind it: see ``Comparison.relation``.
    """
    cells = {name: found for name, rows in entries.items() if (found := cell(rows, attack))}
    if len(cells) < 2:
        return {}
    top = max(found.mean for found in cells.values())
    best = [name for name, found in cells.items() if found.mean == top]
    if len(best) == len(cells):
        return {}
    marks = dict.fromkeys(best, "best")
    for name in cells:
        if name in marks:
            continue
        relation = compare(entries[name], entries[best[0]], attack).relation
        if relation in ("level", "ahead"):
            marks[name] = "close"
    return marks
