"""Tests, fronts and areas against counting them out."""

import doctest

import numpy as np
import pytest
from scipy.stats import binomtest

from equipoise.errors import UserError
from equipoise.measures import statistics
from equipoise.measures.statistics import Discordance, front, hypervolume, mcnemar


def verdicts(both, first, second, neither):
    pairs = [(True, True)] * both + [(True, False)] * first
    pairs += [(False, True)] * second + [(False, False)] * neither
    pairs = [pairs[i] for i in np.random.default_rng(both).permutation(len(pairs))]
    return [a for a, _ in pairs], [b for _, b in pairs]


@pytest.mark.parametrize(("first", "second"), [(1, 0), (5, 5), (0, 9), (13, 2), (40, 61), (3, 4)])
def test_mcnemar_is_the_binomial_test_of_the_pairs_that_differ(first, second):
    found = mcnemar(*verdicts(30, first, second, 8))
    assert (found.only_first, found.only_second) == (first, second)
    expected = binomtest(first, first + second).pvalue
    assert found.p == pytest.approx(expected, rel=1e-12)
    swapped = mcnemar(*reversed(verdicts(30, first, second, 8)))
    assert swapped == Discordance(second, first, found.p)


def test_mcnemar_of_many_images_stays_exact():
    found = mcnemar(*verdicts(0, 1900, 2100, 0))
    assert found.p == pytest.approx(binomtest(1900, 4000).pvalue, rel=1e-9)
    assert mcnemar(*verdicts(0, 5000, 0, 0)).p == 0.0  # 2 ** -4999 is no float


def test_mcnemar_without_a_difference_says_nothing():
    assert mcnemar(*verdicts(12, 0, 0, 5)) == Discordance(0, 0, 1.0)
    assert mcnemar([], []) == Discordance(0, 0, 1.0)


def test_mcnemar_of_different_images_is_refused():
    with pytest.raises(UserError, match="same images, got 2 and 1"):
        mcnemar([True, False], [True])


def clouds():
    draw = np.random.default_rng(0)
    for n in range(12):
        for _ in range(20):
            # Few values, so that many coordinates and points are equal.
            yield [(int(a) / 5, int(b) / 5) for a, b in draw.integers(0, 6, (n, 2))]


def dominates(a, b):
    return a[0] >= b[0] and a[1] >= b[1] and a != b


def test_front_is_what_no_other_point_dominates():
    for points in clouds():
        found = front(points)
        expected = [
            i for i, point in enumerate(points) if not any(dominates(o, point) for o in points)
        ]
        assert sorted(found) == expected
        assert found == sorted(found, key=lambda i: (points[i][0], i))


def test_hypervolume_is_the_number_of_cells_below_a_point():
    reference = (0.2, 0.4)
    centres = [(i + 0.5) / 5 for i in range(5)]
    for points in clouds():
        cells = [(a, b) for a in centres for b in centres if a > 0.2 and b > 0.4]
        below = sum(any(p[0] > a and p[1] > b for p in points) for a, b in cells)
        assert hypervolume(points, reference) == pytest.approx(below / 25)


def test_hypervolume_counts_no_point_that_is_not_above_the_reference_in_both():
    assert hypervolume([]) == 0
    assert hypervolume([(0.0, 0.9), (0.9, 0.0), (-1.0, -1.0)]) == 0
    assert hypervolume([(0.9, 0.5), (5.0, 0.4)], (0.5, 0.4)) == pytest.approx(0.04)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_coordinates_that_are_no_numbers_are_refused(bad):
    with pytest.raises(UserError, match="finite"):
        front([(0.1, 0.2), (bad, 0.1)])
    with pytest.raises(UserError, match="finite"):
        hypervolume([(0.1, 0.2)], (bad, 0.0))


def test_doctests():
    assert doctest.testmod(statistics) == (0, 5)
