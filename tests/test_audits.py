"""Bounds from random checks of a finite population: known values, and exact coverage."""

import doctest
import random

import pytest

from equipoise.errors import UserError
from equipoise.measures import audits
from equipoise.measures.audits import most_failures, most_failures_together

# (items, checked, failed) -> the fixed and the anytime-valid bound
BY_HAND = {
    (600, 30, 0): (55, 59),
    (600, 60, 0): (27, 30),
    (600, 100, 0): (16, 18),
    (600, 150, 0): (10, 12),
    (600, 200, 0): (7, 8),
    (600, 300, 0): (4, 5),
    (600, 60, 1): (44, 62),
    (600, 100, 1): (26, 36),
    (5000, 100, 0): (146, 167),
    (5000, 500, 1): (45, 67),
    (5000, 1000, 1): (21, 33),
}


@pytest.mark.parametrize(("counts", "bounds"), BY_HAND.items())
def test_bounds_have_their_known_values(counts, bounds):
    assert (most_failures(*counts, anytime=False), most_failures(*counts)) == bounds


@pytest.mark.parametrize("anytime", [True, False])
def test_nothing_checked_excludes_nothing_and_a_full_count_is_exact(anytime):
    assert most_failures(40, 0, 0, anytime=anytime) == 40
    assert most_failures(0, 0, 0, anytime=anytime) == 0
    for failed in range(21):
        assert most_failures(20, 20, failed, anytime=anytime) == failed


@pytest.mark.parametrize("failures", [0, 1, 2, 5, 10, 20, 40, 119, 120])
def test_the_anytime_bound_is_right_at_every_look_at_once(failures):
    """Sum the probability of all orders in which it was below the truth at some look."""
    items = 120
    never_wrong = {0: 1.0}  # number of failures seen so far -> probability
    for m in range(items):
        after: dict[int, float] = {}
        for k, probability in never_wrong.items():
            fails = (failures - k) / (items - m)
            for seen, chance in ((k + 1, fails), (k, 1 - fails)):
                if chance > 0 and most_failures(items, m + 1, seen) >= failures:
                    after[seen] = after.get(seen, 0.0) + probability * chance
        never_wrong = after
    assert never_wrong.get(failures, 0.0) >= 0.95


@pytest.mark.parametrize("counts", [(10, 11, 0), (10, 5, 6), (10, 5, -1)])
def test_counts_that_contradict_each_other_are_refused(counts):
    with pytest.raises(UserError, match="failed <= checked <= items"):
        most_failures(*counts)


@pytest.mark.parametrize("confidence", [0.0, 1.0, float("nan")])
def test_a_confidence_outside_the_open_interval_is_refused(confidence):
    with pytest.raises(UserError, match="confidence"):
        most_failures(10, 5, 0, confidence)


def test_the_examples_of_the_documentation_run():
    outcome = doctest.testmod(audits)
    assert (outcome.failed, outcome.attempted) == (0, 3)


def test_bounds_together_have_their_known_values():
    assert most_failures_together([(600, 42, 0, 1.0)] * 14) == 42
    assert most_failures_together([(600, 600, 3, 1.0)]) == 3
    assert most_failures_together([(10, 0, 0, 1.0)]) == 10
    assert most_failures_together([(600, 60, 0, 1.0)]) < most_failures(600, 60, 0)


@pytest.mark.parametrize("failures", [(3, 0, 0, 0), (6, 6, 6, 6), (40, 1, 0, 2), (0, 0, 0, 25)])
def test_the_bound_together_covers_the_total(failures):
    generator = random.Random(0)  # noqa: S311
    items, trials, held = 200, 200, 0
    for _ in range(trials):
        strata = []
        for failing in failures:
            drawn = generator.sample(range(items), 40)
            strata.append((items, 40, sum(row < failing for row in drawn), 1.0))
        held += sum(failures) <= most_failures_together(strata)
    assert held / trials >= 0.95
