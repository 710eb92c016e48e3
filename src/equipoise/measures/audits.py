"""What a random sample of checked items says about the items that were not checked.

The items are fixed: whether a checked item fails does not depend on which others are checked.
All bounds are those of a finite population, drawn without replacement.
"""

import math
from bisect import bisect_left
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from equipoise.errors import UserError

PRIOR = (0.3, 30.0)  # beta-binomial: most mass on few failures


def most_failures(
    items: int, checked: int, failed: int, confidence: float = 0.95, *, anytime: bool = True
) -> int:
    r"""Return the upper bound of how many items would fail if all were checked.

    With a number of checks that was fixed beforehand, the bound inverts the hypergeometric
    distribution: the largest :math:`D` with
    :math:`P(\mathrm{Hypergeom}(M, D, m) \le k) > 1 - c`.

    The anytime-valid bound holds for all :math:`m` at once, so one may look after every check and
    stop for any reason. It is the largest :math:`D` whose prior probability is less than
    :math:`1 / (1 - c)` times its posterior probability, with a beta-binomial prior; the ratio is
    that of the probability of :math:`k` failures under the prior to the one under :math:`D`.

    Example:
        >>> most_failures(600, 60, 0, anytime=False), most_failures(600, 60, 0)
        (27, 30)

    Arguments:
        items: How many items there are, M.
        checked: How many of them were checked, m, in random order.
        failed: How many of the checked ones failed, k.
        confidence: The probability with which the bound holds, c.
        anytime: Whether the number of checks may depend on what was seen.

    Returns:
        A number of items from k to M - m + k, the failed ones included.

    Raises:
        UserError: If the counts contradict each other, or the confidence is not in (0, 1).

    References:
        | Confidence sequences for sampling without replacement
        | (Waudby-Smith and Ramdas, 2020), https://arxiv.org/abs/2006.04347
    """
    if not 0 <= failed <= checked <= items:
        raise UserError(
            f"expected 0 <= failed <= checked <= items, got {failed}, {checked} and {items}"
        )
    if not 0 < confidence < 1:
        raise UserError(f"confidence must be in (0, 1), got {confidence}")
    excluded = _excluded_anytime if anytime else _excluded_fixed
    first = max(failed, round(items * failed / checked)) if checked else items
    candidates = range(first, items - checked + failed + 1)
    test = excluded(items, checked, failed, confidence)
    return first + bisect_left(candidates, True, key=test) - 1 if candidates else first


def most_failures_together(
    strata: Sequence[tuple[int, int, int, float]], confidence: float = 0.95
) -> int:
    r"""Return the upper bound of how many items of several populations would fail together.

    The evidence of a sample against D failures is the probability of what was seen under an
    alternative, divided by the one under D. It is a non-negative martingale, so that those of
    independent samples multiply; a total is excluded if each way to divide it has a product of at
    least :math:`1 / (1 - c)`. So the bound is valid at any stop. Nine tenths of the evidence are
    for no failure at all, one tenth for the prior of :func:`most_failures`.

    Example:
        >>> most_failures_together([(600, 60, 0, 1.0)] * 14), 14 * most_failures(600, 60, 0)
        (29, 420)

    Arguments:
        strata: Of each population the items, the checked ones, those of them that failed, and a
            weight in (0, 1] of its evidence: the weights of several samples of one population, of
            which one is chosen by what was seen, sum up to at most 1.
        confidence: The probability with which the bound holds.

    Returns:
        The largest total that is not excluded, the failed ones included.

    References:
        | Confidence sequences for sampling without replacement
        | (Waudby-Smith and Ramdas, 2020), https://arxiv.org/abs/2006.04347
    """
    none = not any(failed for _, _, failed, _ in strata)
    limit = -math.log(1 - confidence) - math.log(0.9 if none else 0.1)
    limit -= math.fsum(math.log(weight) for *_, weight in strata)
    evidence = [_evidence(*stratum[:3], none) for stratum in strata]
    seen, total = sum(failed for _, _, failed, _ in strata), np.zeros(1)
    least = math.fsum(float(values.min()) for values in evidence)
    for values in evidence:
        near = (values - values.min() + least < limit).nonzero()[0]
        last = int(near[-1]) if len(near) else int(values.argmin())
        joined = np.full(len(total) + last, np.inf)
        for d in range(last + 1):  # of all ways to divide a total the one with least evidence
            window = joined[d : d + len(total)]
            np.minimum(window, total + values[d], out=window)
        total = joined
    inside = (total < limit).nonzero()[0]
    return seen + (int(inside[-1]) if len(inside) else int(total.argmin()))


def _evidence(items: int, checked: int, failed: int, none: bool) -> NDArray[np.float64]:
    """Return the logarithm of the evidence against failed, failed + 1, ... failures."""
    a, b = PRIOR
    prior = _log_choose(checked, failed) - _log_beta(a, b)
    prior = 0.0 if none else prior + _log_beta(failed + a, checked - failed + b)
    possible = range(failed, items - checked + failed + 1)
    return np.array([prior - _log_hypergeometric(failed, items, d, checked) for d in possible])


def checks_needed(items: int, most: int, confidence: float = 0.95) -> int:
    """Return how many checks without a failure bound the failures by ``most``, valid at any stop.

    Example:
        >>> checks_needed(600, 10)
        165
    """
    return bisect_left(
        range(items + 1), True, key=lambda m: most_failures(items, m, 0, confidence) <= most
    )


def _excluded_fixed(
    items: int, checked: int, failed: int, confidence: float
) -> Callable[[int], bool]:
    def excluded(failures: int) -> bool:
        terms = (_log_hypergeometric(j, items, failures, checked) for j in range(failed + 1))
        rounding = 1 + 1e-9
        return math.fsum(map(math.exp, terms)) <= (1 - confidence) * rounding

    return excluded


def _excluded_anytime(
    items: int, checked: int, failed: int, confidence: float
) -> Callable[[int], bool]:
    a, b = PRIOR
    shifted = _log_beta(failed + a, checked - failed + b)
    prior = _log_choose(checked, failed) + shifted - _log_beta(a, b)

    def excluded(failures: int) -> bool:
        likelihood = _log_hypergeometric(failed, items, failures, checked)
        return prior - likelihood >= -math.log(1 - confidence)

    return excluded


def _log_hypergeometric(k: int, items: int, failures: int, checked: int) -> float:
    if k > failures or checked - k > items - failures:
        return -math.inf
    ways = _log_choose(failures, k) + _log_choose(items - failures, checked - k)
    return ways - _log_choose(items, checked)


def _log_choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)


def _log_beta(a: float, b: float) -> float:
    return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)
