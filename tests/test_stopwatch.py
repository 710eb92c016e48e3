"""The stopwatch: parts, parts within parts, and going on from a saved state."""

import time

import pytest

from equipoise import stopwatch
from equipoise.jobs.summary import cost_lines, parts
from equipoise.stopwatch import Stopwatch


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until it is told."""
    now = [0.0]
    monkeypatch.setattr(stopwatch.time, "perf_counter", lambda: now[0])

    def wait(seconds: float) -> None:
        now[0] += seconds

    return wait


def test_a_part_within_a_part_counts_for_itself_alone(clock):
    watch = Stopwatch()
    with watch.part("update"):
        clock(1)
        with watch.inner("attack"):
            clock(10)
        clock(2)
    with watch.part("data"):
        clock(0.5)
    with watch.part("update"):
        clock(4)
    assert watch.sums() == {"update": 7, "attack": 10, "data": 0.5}


def test_an_inner_part_counts_only_within_another(clock):
    watch = Stopwatch()
    with watch.inner("attack"):  # of a validation, say
        clock(3)
    assert watch.sums() == {}


def test_a_part_that_fails_is_counted_and_closed(clock):
    watch = Stopwatch()

    def fails() -> None:
        with watch.part("update"):
            clock(1)
            raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        fails()
    with watch.part("data"):
        clock(2)
    assert watch.sums() == {"update": 1, "data": 2}


def test_it_goes_on_from_sums(clock):
    watch = Stopwatch()
    with watch.part("update"):
        clock(1)
    watch.restart({"update": 5.0, "attack": 2.0})
    with watch.part("update"):
        clock(1)
    assert watch.sums() == {"update": 6, "attack": 2}
    watch.restart()
    assert watch.sums() == {}


def test_it_measures_seconds():
    watch = Stopwatch()
    with watch.part("sleep"):
        time.sleep(0.02)
    assert 0.02 <= watch.sums()["sleep"] < 5


def test_what_a_training_spent_its_time_on():
    rounds = [
        {"parts": {"attack": 6.0, "update": 1.0}, "seconds": {"train": 8.0, "validation": 1.0}},
        {"seconds": {"train": 8.0, "validation": 2.0}},  # of a run that did not count parts yet
    ]
    found = parts(rounds)
    assert list(found.items()) == [("attack", 6.0), ("validation", 3.0), ("update", 1.0)]
    assert cost_lines({"parts": found, "regime": None}) == [
        "10 s: attack 60%, validation 30%, update 10%"
    ]
