"""Schedules: straight lines between knots."""

import pytest

from equipoise.errors import UserError
from equipoise.objectives.core import Knots


def test_the_papers_gamma_has_the_values_of_the_generalist_code():
    gamma = Knots((1.0, 1.0, 1.0, 0.4))
    expected = [0.925, 0.85, 0.775, 0.70, 0.625, 0.55, 0.475, 0.40]
    found = [gamma(epoch / 120) for epoch in range(85, 121, 5)]
    assert found == pytest.approx(expected, abs=1e-12)
    assert [gamma(epoch / 120) for epoch in (0, 1, 40, 79, 80)] == pytest.approx([1.0] * 5)


def test_values_between_the_knots_lie_on_straight_lines():
    knots = Knots((2.0, 0.0, 6.0), at=(0.0, 0.2, 1.0))
    found = [knots(p) for p in (0.0, 0.05, 0.1, 0.2, 0.4, 0.6, 1.0)]
    assert found == pytest.approx([2.0, 1.5, 1.0, 0.0, 1.5, 3.0, 6.0])


def test_knots_are_met_exactly():
    values = (0.3, 0.7, 0.1, 0.9, 0.2, 0.6, 0.8)
    assert tuple(Knots(values)(i / 6) for i in range(7)) == pytest.approx(values, abs=1e-12)
    places = (0.1, 0.25, 0.3, 0.5, 0.8, 0.9, 0.95)
    assert tuple(Knots(values, at=places)(p) for p in places) == values


def test_one_value_is_a_constant():
    assert {Knots((0.7,))(p) for p in (-1.0, 0.0, 0.3, 1.0, 2.0)} == {0.7}
    assert {Knots((0.7,), at=(0.5,))(p) for p in (0.0, 0.5, 1.0)} == {0.7}


def test_outside_the_nearest_end_counts():
    knots = Knots((1.0, 3.0), at=(0.25, 0.75))
    assert [knots(p) for p in (-5.0, 0.0, 0.25, 0.75, 1.0, 7.0)] == [1.0, 1.0, 1.0, 3.0, 3.0, 3.0]


def test_two_knots_in_one_place_are_a_jump():
    knots = Knots((0.0, 0.0, 1.0, 1.0), at=(0.0, 0.5, 0.5, 1.0))
    assert knots(0.5 - 1e-9) == pytest.approx(0.0)
    assert knots(0.5) == 1.0
    assert knots(0.9) == 1.0


def test_values_never_leave_the_range_of_the_knots():
    for values in ((1.0, 1.0, 1.0, 0.4), (0.1, 0.9, 0.3), (1 / 3, 1 / 3), (0.1, 0.7, 0.7, 0.2)):
        knots = Knots(values)
        found = [knots(i / 997) for i in range(998)]
        slack = 1e-15
        assert min(values) - slack <= min(found)
        assert max(found) <= max(values) + slack


def test_schedules_are_monotone_where_their_knots_are():
    found = [Knots((1.0, 0.8, 0.3, 0.0))(i / 500) for i in range(501)]
    assert found == sorted(found, reverse=True)
    assert len(set(found)) == 501


@pytest.mark.parametrize(
    ("values", "at", "message"),
    [
        ((), None, "at least one value"),
        ((1.0, 0.5), (0.0,), "a rising place per value"),
        ((1.0, 0.5), (1.0, 0.0), "a rising place per value"),
        ((1.0, 0.5, 0.2), (0.0, 0.6, 0.5), "a rising place per value"),
        ((1.0, 0.5, 0.2), (0.0, float("nan"), 1.0), "place"),
        ((1.0, 0.5), (0.0, 120.0), "place"),
        ((1.0, float("nan")), None, "value"),
    ],
    ids=str,
)
def test_schedules_that_cannot_be_meant_are_refused(values, at, message):
    with pytest.raises(UserError, match=message):
        Knots(values, at=at)
