"""Intervals, tests, fronts and areas."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from equipoise.errors import UserError

Point = tuple[float, float]


@dataclass(frozen=True)
class Discordance:
    """On how many of the same images two models differ.

    Arguments:
        only_first: How many images only the first model classifies correctly.
        only_second: How many images only the second model classifies correctly.
        p: The probability of a split at least as uneven, if the models were equally good.
    """

    only_first: int
    only_second: int
    p: float


def interval(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return the exact (Clopper-Pearson) interval of a proportion.

    Example:
        >>> interval(0, 100)[1] < 0.037
        True

    Arguments:
        successes: The number of successes.
        n: The number of trials; for 0 the interval is (0, 1).
        confidence: The least probability with which the interval covers the truth.

    References:
        | The Use of Confidence or Fiducial Limits (Clopper and Pearson, 1934)
        | https://doi.org/10.1093/biomet/26.4.404
    """
    from scipy.special import betaincinv  # scipy.stats has it, too, and takes a second to import

    if n == 0:
        return 0.0, 1.0
    tail = (1 - confidence) / 2
    low = 0.0 if successes == 0 else float(betaincinv(successes, n - successes + 1, tail))
    high = 1.0 if successes == n else float(betaincinv(successes + 1, n - successes, 1 - tail))
    return low, high


def outwards(bounds: tuple[float, float], digits: int = 1) -> tuple[float, float]:
    """Return an interval of fractions in percent, rounded outwards to some decimals.

    Example:
        >>> outwards((0.7, 0.71234))
        (70.0, 71.3)
    """
    (low, high), of = bounds, 10**digits
    shift = 1e-6  # keeps 0.7 (70.00000000000001 in floating point) at 70.0
    return math.floor(100 * of * low + shift) / of, math.ceil(100 * of * high - shift) / of


def mcnemar(a: Sequence[bool], b: Sequence[bool]) -> Discordance:
    """Return on how many images two models differ, with the exact two-sided test.

    Images that both models or neither classify correctly are left out. If the models are equally
    good, each other image favours either model with the same probability; the sum is taken in
    whole numbers, without an approximation.

    Example:
        >>> mcnemar([True] * 6 + [False] * 4, [False] * 6 + [True, False, False, False])
        Discordance(only_first=6, only_second=1, p=0.125)

    Arguments:
        a: Whether the first model classifies each image correctly.
        b: The same for the second model, on the same images in the same order.

    Returns:
        The counts and p, which is 1 where the models never differ.

    Raises:
        UserError: If the verdicts are not of the same number of images.

    References:
        | Note on the Sampling Error of the Difference Between Correlated Proportions or
        | Percentages (McNemar, 1947)
        | https://doi.org/10.1007/BF02295996
    """
    if len(a) != len(b):
        raise UserError(
            f"expected verdicts on the same images, got {len(a)} and {len(b)}; "
            "evaluate both models on the same images"
        )
    first = sum(bool(x) and not y for x, y in zip(a, b, strict=True))
    second = sum(bool(y) and not x for x, y in zip(a, b, strict=True))
    n = first + second
    tail = term = 1
    for k in range(min(first, second)):
        term = term * (n - k) // (k + 1)
        tail += term
    return Discordance(first, second, min(1.0, 2 * tail / 2**n))


def front(points: Sequence[Point]) -> list[int]:
    """Return which points no other point dominates, both coordinates maximised.

    A point dominates another if it is at least as good in both and better in one; of equal points
    none dominates the other, so all are kept.

    Example:
        >>> front([(0.9, 0.5), (0.8, 0.6), (0.8, 0.4), (0.7, 0.7)])
        [3, 1, 0]

    Arguments:
        points: The points, e.g. (clean accuracy, robust accuracy).

    Returns:
        Their indices, by the first coordinate, the least first; equal points as they were given.

    Raises:
        UserError: If a coordinate is not a finite number.
    """
    _check(points)
    order = sorted(range(len(points)), key=lambda i: (*points[i], -i), reverse=True)
    kept: list[int] = []
    for i in order:
        best = points[kept[-1]] if kept else (math.inf, -math.inf)
        if points[i][1] > best[1] or points[i] == best:
            kept.append(i)
    return sorted(kept, key=lambda i: (points[i][0], i))


def hypervolume(points: Sequence[Point], reference: Point = (0.0, 0.0)) -> float:
    """Return the area that the points dominate, both coordinates maximised.

    Example:
        >>> hypervolume([(1.0, 0.5), (0.5, 1.0)])
        0.75

    Arguments:
        points: The points; of none the area is 0.
        reference: Where the area begins: a point that is not above it in both coordinates adds
            nothing.

    Returns:
        The area, in the product of the coordinates' units.

    Raises:
        UserError: If a coordinate is not a finite number.
    """
    _check([*points, reference])
    left, bottom = reference
    inside = [point for point in points if point[0] > left and point[1] > bottom]
    area = 0.0
    for x, y in (inside[i] for i in reversed(front(inside))):
        area += (x - left) * (y - bottom)
        bottom = y
    return area


def _check(points: Sequence[Point]) -> None:
    for point in points:
        if not all(map(math.isfinite, point)):
            raise UserError(f"expected finite coordinates, got {point}; leave such points out")
