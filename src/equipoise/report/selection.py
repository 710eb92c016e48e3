"""Which images are shown: by rules, not by eye."""

__all__ = ["Selection", "attack_names", "selections"]

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from equipoise.report.wording import count
from equipoise.store.verdicts import stage_of

FOOLED, WITHSTOOD, EXTREME = 8, 4, 8  # images
_IN_TURN = "The first image of every class in turn, in the order in which they were evaluated."


@dataclass(frozen=True)
class Selection:
    """Images of one kind: its name, how many there are, the rule, and whether it ranks them."""

    name: str
    number: str
    rule: str
    indices: tuple[int, ...]
    extreme: bool = True


def selections(known: Mapping[str, NDArray[Any]], share: int) -> tuple[Selection, ...]:
    """Return the images to show of an evaluation.

    Arguments:
        known: What is known of each image, by name.
        share: By what the numbers of images are divided; 1 for small images.
    """
    y, correct, robust = known["y"], known["correct"], known["robust"]
    margin = np.nan_to_num(known["margin"], nan=-np.inf, posinf=np.inf)
    few = EXTREME // share**2
    return (
        _typical("Fooled", y, correct & ~robust, FOOLED // share),
        _typical("Withstood", y, correct & robust, WITHSTOOD // share),
        *_fooled(np.flatnonzero(correct & ~robust), margin, known["broken_by"], few),
        *_nearly(np.flatnonzero(correct & robust), margin, few),
    )


def attack_names(keys: Sequence[str]) -> tuple[str, ...]:
    """Return attacks as they are shown: a stage of an ensemble by its own name if it is free."""
    short = [stage_of(key)[1] or key for key in keys]
    return tuple(
        name if short.count(name) == 1 else key for name, key in zip(short, keys, strict=True)
    )


def _typical(name: str, y: NDArray[Any], mask: NDArray[np.bool_], most: int) -> Selection:
    """Take the first of every class, then the second of every class, and so on."""
    turns: dict[int, int] = {}
    order: list[tuple[int, int, int]] = []
    for index in np.flatnonzero(mask):
        label = int(y[index])
        turns[label] = turns.get(label, -1) + 1
        order.append((turns[label], label, int(index)))
    indices = tuple(index for _, _, index in sorted(order)[:most])
    shown = f", {len(indices)} shown" if 0 < len(indices) < len(order) else ""
    return Selection(
        name, f"{count(len(order))} of {count(len(y))}{shown}", _IN_TURN, indices, extreme=False
    )


def _fooled(
    where: NDArray[np.intp], margin: NDArray[np.float64], broken_by: NDArray[Any], most: int
) -> list[Selection]:
    """Take the two ends of the fooled: none is in both, and what is left between is not shown."""
    most = min(most, len(where) // 2)
    if not most:
        return []
    order = where[np.lexsort((where, margin[where], broken_by[where]))]
    number = f"{most} of {count(len(where))} that were fooled"
    return [
        Selection(
            "Easiest to fool",
            number,
            "By the attack that broke an image first, the earliest attack before later ones; then "
            "by the margin, the lowest before higher ones.",
            tuple(map(int, order[:most])),
        ),
        Selection(
            "Hardest to fool",
            number,
            "By the attack that broke an image first, the latest attack before earlier ones; then "
            "by the margin, the closest to 0 before others.",
            tuple(map(int, order[::-1][:most])),
        ),
    ]


def _nearly(where: NDArray[np.intp], margin: NDArray[np.float64], most: int) -> list[Selection]:
    where = where[np.isfinite(margin[where])]
    order = where[np.lexsort((where, margin[where]))][:most]
    if not len(order):
        return []
    return [
        Selection(
            "Nearly fooled",
            f"{len(order)} of {count(len(where))} that withstood",
            "By the margin that the attacks left, the closest to 0 before others.",
            tuple(map(int, order)),
        )
    ]
