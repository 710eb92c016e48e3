"""Where to measure next: few places at first, then more where the front bends or falls."""

from collections.abc import Sequence
from itertools import pairwise

from equipoise.fronts.record import Point

FINEST = 1 / 64  # of the line: closer places say nothing new
LEAST = 0.01  # a smaller step of accuracy between neighbours is not worth a measurement


def initial(marked: Sequence[float], beyond: float) -> list[float]:
    """Return the places that are measured whatever they show, the ends first.

    The middle comes next, where a barrier would stand, then the places that are marked (a run's
    own gamma), then those beyond the ends.

    Arguments:
        marked: Places of interest.
        beyond: How far to go beyond the ends; 0: not.
    """
    places = [1.0, 0.0, 0.5, *marked]
    if beyond > 0:
        places += [1 + beyond, -beyond]
    return list(dict.fromkeys(places))


def following(points: Sequence[Point]) -> float | None:
    r"""Return the next place: the middle of the neighbours that differ most.

    Neighbours :math:`i, j` differ by :math:`\max(|A_i - A_j|, |R_i - R_j|)`, A clean and R robust
    accuracy; of equally different ones the farthest apart are parted, then those nearest to the
    robust end. Neighbours that are closer than twice :data:`FINEST`, or differ by no more than
    :data:`LEAST`, are not parted.

    Arguments:
        points: What was measured, in any order.

    Returns:
        The place, or None where nothing is left to learn.
    """
    order = sorted(points, key=lambda point: point.gamma)
    pairs = [
        (difference(a, b), b.gamma - a.gamma, a.gamma)
        for a, b in pairwise(order)
        if difference(a, b) > LEAST and b.gamma - a.gamma >= 2 * FINEST - 1e-12
    ]
    if not pairs:
        return None
    _, width, left = max(pairs)
    return round(left + width / 2, 6)


def difference(a: Point, b: Point) -> float:
    """Return how far two points are apart in the coordinate in which they differ more."""
    clean = abs(a.clean_accuracy - b.clean_accuracy)
    return max(clean, abs(a.robust_accuracy - b.robust_accuracy))
