"""The bound of a paired drop: against a slow reference, and how often it covers."""

import math
from functools import cache

import numpy as np
import pytest
from scipy.special import gammaln, xlogy

from equipoise.errors import UserError
from equipoise.measures.paired import drop_bound, images_needed, p_value
from equipoise.measures.statistics import interval


@cache
def every_bound(n):
    """Return all outcomes of n images, lost and gained, with their bounds."""
    outcomes = [(b, c) for b in range(n + 1) for c in range(n + 1 - b)]
    return np.array(outcomes).T, np.array([drop_bound(b, c, n) for b, c in outcomes])


def probabilities(lost, gained, n, p_lost, p_gained):
    same = n - lost - gained
    ways = gammaln(n + 1) - gammaln(lost + 1) - gammaln(gained + 1) - gammaln(same + 1)
    rest = max(1 - p_lost - p_gained, 0.0)
    return np.exp(ways + xlogy(lost, p_lost) + xlogy(gained, p_gained) + xlogy(same, rest))


def score(b, c, n, drop):
    """Tango's score; the most likely share of gained images is searched on a grid."""

    def likelihood(q):
        rest = np.maximum(1 - 2 * q - drop, 0)
        return xlogy(b, q + drop) + xlogy(c, q) + xlogy(n - b - c, rest)

    low, high = max(0.0, -drop), (1 - drop) / 2
    for _ in range(6):
        grid = np.linspace(low, high, 401)
        best = grid[likelihood(grid).argmax()]
        step = grid[1] - grid[0]
        low, high = max(grid[0], best - step), min(grid[-1], best + step)
    return (b - c - n * drop) / math.sqrt(n * (2 * best + drop * (1 - drop)))


@pytest.mark.slow
@pytest.mark.parametrize(("b", "c", "n"), [(0, 0, 9), (3, 1, 12), (1, 4, 12), (6, 6, 14)])
@pytest.mark.parametrize("drop", [0.05, 0.21, -0.1])
def test_the_p_value_is_that_of_all_outcomes_one_by_one(b, c, n, drop):
    outcomes, _ = every_bound(n)
    wanted = score(b, c, n, drop)
    below = np.array([score(*pair, n, drop) <= wanted + 1e-6 for pair in outcomes.T])
    low, high = interval(b + c, n, 0.999)
    shares = np.linspace(max(low, abs(drop)), max(high, abs(drop)), 41)
    sums = [
        probabilities(*outcomes, n, (share + drop) / 2, (share - drop) / 2)[below].sum()
        for share in shares
    ]
    assert p_value(b, c, n, drop) == pytest.approx(min(1, max(sums) + 0.001), abs=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("n", [6, 20])
def test_the_bound_covers_whatever_the_true_shares_are(n):
    (lost, gained), bounds = every_bound(n)
    least = 1.0
    for p_lost in np.linspace(0, 0.7, 51):
        for p_gained in np.linspace(0, 1 - p_lost, 31):
            chance = probabilities(lost, gained, n, p_lost, p_gained)
            least = min(least, chance[bounds >= p_lost - p_gained - 1e-6].sum())
    assert 0.95 <= least < 0.96  # at least as promised, and not much more


@pytest.mark.parametrize(("p_lost", "p_gained"), [(0.03, 0.01), (0.06, 0.05), (0.004, 0.0)])
def test_the_bound_covers_in_a_simulation(p_lost, p_gained):
    n, repeats = 500, 2000
    shares = [p_lost, p_gained, 1 - p_lost - p_gained]
    drawn = np.random.default_rng(0).multinomial(n, shares, repeats)
    drop = p_lost - p_gained
    pairs, counts = np.unique(drawn[:, :2], axis=0, return_counts=True)
    # The bound is at least the drop where the test of that drop does not reject it.
    covered = [p_value(b, c, n, drop) > 0.05 for b, c in pairs.tolist()]
    assert counts[covered].sum() / repeats > 0.95 - 3 * math.sqrt(0.05 * 0.95 / repeats)
    sample = pairs[:: max(len(pairs) // 12, 1)].tolist()
    assert [drop_bound(b, c, n) >= drop for b, c in sample] == [
        p_value(b, c, n, drop) > 0.05 for b, c in sample
    ]


def test_more_lost_raises_the_bound_and_more_gained_lowers_it():
    for n in (6, 20):
        (lost, gained), bounds = every_bound(n)
        table = np.full((n + 1, n + 1), np.nan)
        table[lost, gained] = bounds
        rises, falls = np.diff(table, axis=0), np.diff(table, axis=1)
        assert (rises[~np.isnan(rises)] > -1e-6).all()
        assert (falls[~np.isnan(falls)] < 1e-6).all()


def test_without_differences_the_bound_is_that_of_a_proportion():
    for n in (20, 149, 1000, 10_000):
        exact = interval(0, n, 0.90)[1]
        assert exact <= drop_bound(0, 0, n) < 1.01 * exact + 1e-6


def test_a_large_sample_is_quick_and_near_the_normal_bound():
    bound = drop_bound(210, 200, 10_000)
    assert bound == pytest.approx(0.001 + 1.645 * math.sqrt(410) / 10_000, rel=0.01)


@pytest.mark.parametrize(
    ("b", "c", "n", "margin"), [(31, 19, 1000, 0.02), (0, 0, 60, 0.02), (5, 6, 100, 0.0)]
)
def test_the_number_of_images_that_would_decide_decides(b, c, n, margin):
    assert drop_bound(b, c, n) > margin
    m = images_needed(b, c, n, margin)
    assert m is not None
    assert drop_bound(-(-b * m // n), c * m // n, m) <= margin + 1e-6
    fewer = round(0.9 * m)
    assert drop_bound(-(-b * fewer // n), c * fewer // n, fewer) > margin


@pytest.mark.parametrize(("b", "c"), [(30, 10), (31, 10), (200, 0)])
def test_no_number_decides_where_the_observed_drop_is_the_margin_or_more(b, c):
    assert images_needed(b, c, 1000, 0.02) is None


@pytest.mark.parametrize("counts", [(0, 0, 0), (-1, 0, 5), (3, 3, 5), (0, 6, 5)])
def test_impossible_counts_are_refused(counts):
    with pytest.raises(UserError, match="expected lost"):
        drop_bound(*counts)


@pytest.mark.parametrize("confidence", [0.0, 1.0, -1, float("nan")])
def test_an_impossible_confidence_is_refused(confidence):
    with pytest.raises(UserError, match="confidence"):
        drop_bound(1, 1, 10, confidence)
