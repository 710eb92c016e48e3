"""The rules for t': on numbers worked out by hand, and what must hold for all numbers."""

import pytest
import torch

from equipoise.errors import UserError
from equipoise.training import Fixed, Never, Stable, Threshold
from equipoise.training.start import AnyStart, Verdict

FALLING = [2.0, 1.5, 1.2, 1.1, 1.05, 1.04, 1.035, 1.034, 1.0335, 1.0333]


def found(rule: AnyStart, losses: list[float], rounds: int = 100) -> int | None:
    return rule({"robust": losses}, rounds).rounds["robust"]


def noisy(seed: int, rounds: int = 40) -> list[float]:
    """Return a loss that falls towards 1 with noise."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(rounds, generator=generator, dtype=torch.float64) * 0.05
    times = torch.arange(rounds, dtype=torch.float64)
    speed = 0.05 + 0.4 * float(torch.rand((), generator=generator))
    return (1 + torch.exp(-speed * times) + noise).tolist()


def falling(seed: int, rounds: int = 40) -> list[float]:
    """Return a loss that falls in steps of random size."""
    generator = torch.Generator().manual_seed(seed)
    steps = torch.rand(rounds, generator=generator, dtype=torch.float64).square()
    return (10 - (steps * 0.9 ** torch.arange(rounds)).cumsum(0)).tolist()


# The verdict


def test_the_start_is_the_latest_of_the_learners_rounds():
    assert Verdict({"clean": 3, "robust": 7}, {}).round == 7
    assert Verdict({"clean": 9, "robust": 7, "l2": 8}, {}).round == 9


def test_there_is_no_start_before_every_learner_is_stable():
    assert Verdict({"clean": 3, "robust": None}, {}).round is None
    assert Verdict({"clean": None, "robust": None}, {}).round is None
    assert Verdict({}, {}).round is None


# Threshold: the paper's Eq. 7


def test_threshold_is_met_after_that_many_rounds_in_a_row():
    rule = Threshold(threshold=0.5, patience=3)
    #         1    2    3    4    5    6    7     8     9    10
    losses = [0.9, 0.4, 0.4, 0.6, 0.4, 0.3, 0.49, 0.48, 2.0, 0.1]
    assert found(rule, losses) == 7  # rounds 5, 6 and 7; the row 2, 3 was cut by 4
    assert found(rule, losses[:6]) is None
    assert found(rule, losses[:7]) == 7


def test_threshold_itself_is_not_below_the_threshold():
    assert found(Threshold(threshold=0.5, patience=1), [0.5, 0.5, 0.5]) is None
    assert found(Threshold(threshold=0.5, patience=1), [0.5, 0.4999, 0.5]) == 2


def test_each_learner_is_latched_on_its_own():
    history = {
        "clean": [0.4, 0.4, 3.0, 3.0, 3.0, 3.0],  # stable at 2, whatever comes after
        "robust": [2.0, 2.0, 2.0, 0.4, 0.4, 0.4],  # stable at 5, when clean is high again
    }
    verdict = Threshold(threshold=0.5, patience=2)(history, 6)
    assert verdict.rounds == {"clean": 2, "robust": 5}
    assert verdict.round == 5
    assert set(verdict.reasons) == {"clean", "robust"}


def test_threshold_may_never_be_met_and_says_how_near_it_came():
    history = {"clean": [0.4, 0.4, 0.4], "robust": [2.0, 1.25, 1.5]}
    verdict = Threshold(threshold=0.5, patience=3)(history, 3)
    assert verdict.rounds == {"clean": 3, "robust": None}
    assert verdict.round is None
    assert "1.25" in verdict.reasons["robust"]


def test_thresholds_of_their_own_for_learners():
    history = {"clean": [0.4, 0.2, 0.2], "robust": [1.4, 1.1, 1.3]}
    rule = Threshold(threshold={"clean": 0.3, "robust": 1.2}, patience=1)
    assert rule(history, 3).rounds == {"clean": 2, "robust": 2}
    with pytest.raises(UserError, match="robust"):
        Threshold(threshold={"clean": 0.3})(history, 3)


@pytest.mark.parametrize("patience", [1, 2, 5])
def test_threshold_with_patience_is_never_met_before_so_many_rounds(patience):
    assert found(Threshold(threshold=1, patience=patience), [0.0] * 10) == patience


# Fixed and Never


def test_fixed_is_known_before_the_first_round():
    history = {"clean": [], "robust": []}
    assert Fixed(round=4)(history, 10).rounds == {"clean": 4, "robust": 4}
    assert Fixed(round=4)(history, 10).round == 4


def test_fixed_takes_a_part_of_all_rounds():
    assert Fixed()({"robust": []}, 120).round == 75  # the Generalist code: 75 of 120
    assert Fixed(fraction=0.5)({"robust": []}, 9).round == 5  # the nearest; halves go up
    assert Fixed(fraction=0.0)({"robust": []}, 9).round == 1
    assert Fixed(fraction=1.0)({"robust": []}, 9).round == 9
    assert Fixed(round=3, fraction=0.9)({"robust": []}, 10).round == 3


def test_never_is_never():
    for n in (0, 1, 50):
        verdict = Never()({"clean": [0.0] * n, "robust": [0.0] * n}, 50)
        assert verdict.rounds == {"clean": None, "robust": None}
        assert verdict.round is None
        assert "never" in verdict.reasons["clean"]


# Stable


def test_stable_on_a_falling_loss_worked_out_by_hand():
    # Medians of the last three: 2, 1.75 (of two), then each value one round late:
    #   round     1     2     3    4    5    6     7     8
    #   median    2  1.75   1.5  1.2  1.1  1.05  1.04  1.035
    # The last three rounds brought, and a tenth of all the gain is:
    #   round 4   2    - 1.2   = .8    against .08
    #   round 5   1.75 - 1.1   = .65   against .09
    #   round 6   1.5  - 1.05  = .45   against .095
    #   round 7   1.2  - 1.04  = .16   against .096
    #   round 8   1.1  - 1.035 = .065  against .0965: stable
    rule = Stable(window=3, ratio=0.1, deadline=1.0)
    assert found(rule, FALLING) == 8
    assert found(rule, FALLING[:7]) is None
    # With half of the gain round 6 is the first: .45 < .475
    assert found(Stable(window=3, ratio=0.5, deadline=1.0), FALLING) == 6
    # With a window of 1, round 5 is the first below a tenth .. 1.2 - 1.1 = .1 is not below .09,
    # round 6: 1.1 - 1.05 = .05 is below .095
    assert found(Stable(window=1, ratio=0.1, deadline=1.0), FALLING) == 6


def test_one_wild_round_does_not_count():
    # A spike in round 5 makes the medians 2, 1.75, 1.5, 1.2, 1.2, 1.1, 1.04, 1.035, 1.034, ...
    #   round 8:  1.2 - 1.035  = .165  against .0965
    #   round 9:  1.1 - 1.034  = .066  against .0966: stable, one round later than without it
    rule = Stable(window=3, ratio=0.1, deadline=1.0)
    spike = [*FALLING[:4], 3.0, *FALLING[5:]]
    assert found(rule, spike) == 9
    # One lucky round brings nothing at all: round 6 is as the hand-made table has it.
    assert found(rule, [*FALLING[:5], 0.2, *FALLING[6:8]]) == 8


def test_a_loss_that_only_rises_waits_for_the_deadline():
    rising = [1 + 0.1 * t for t in range(20)]
    rule = Stable(window=3, ratio=0.1, deadline=0.6)
    assert found(rule, rising[:11], rounds=20) is None
    verdict = rule({"robust": rising[:12]}, 20)
    assert verdict.round == 12
    assert "deadline" in verdict.reasons["robust"]


def test_a_loss_that_falls_and_rises_again_is_stable():
    # Medians 3, 2.5, 2, 1.5, 1.5, 1.6, ...: over the window of 2 at round 6 it rose.
    losses = [3.0, 2.0, 1.5, 1.4, 1.6, 1.9, 2.2]
    assert found(Stable(window=2, ratio=0.1, deadline=1.0), losses) == 6


def test_a_constant_loss_waits_for_the_deadline():
    assert found(Stable(deadline=0.5), [1.0] * 4, rounds=10) is None
    assert found(Stable(deadline=0.5), [1.0] * 10, rounds=10) == 5


@pytest.mark.parametrize("seed", range(20))
def test_scale_and_offset_of_a_loss_do_not_matter(seed):
    rule, losses = Stable(), noisy(seed)
    expected = found(rule, losses, 60)
    for scale, offset in ((1000.0, 0.0), (1e-3, 0.0), (1.0, -50.0), (37.0, 12.0)):
        assert found(rule, [scale * loss + offset for loss in losses], 60) == expected


def test_scale_invariance_is_not_vacuous():
    rounds = {found(Stable(deadline=1.0), noisy(seed), 60) for seed in range(20)}
    assert len(rounds) > 3


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("deadline", [0.1, 0.6, 1.0])
def test_stable_is_never_later_than_the_deadline_and_known_at_it(seed, deadline):
    losses = noisy(seed)
    last = int(deadline * 40)
    t = found(Stable(deadline=deadline), losses, 40)
    assert t is not None
    assert t <= last
    assert found(Stable(deadline=deadline), losses[: t - 1], 40) is None


@pytest.mark.parametrize("window", [1, 2, 3, 5])
@pytest.mark.parametrize("seed", range(10))
def test_stable_is_never_before_its_window(seed, window):
    t = found(Stable(window=window, deadline=1.0), noisy(seed), 40)
    assert t is not None
    assert t > window


def test_the_deadline_may_lie_before_the_window():
    assert found(Stable(window=5, deadline=0.1), [1.0], 10) == 1


@pytest.mark.parametrize("seed", range(20))
def test_a_longer_window_never_starts_earlier_on_a_falling_loss(seed):
    losses = falling(seed)
    rounds = [found(Stable(window=w, deadline=1.0), losses, 41) or 99 for w in range(1, 8)]
    assert rounds == sorted(rounds)
    assert rounds[0] < rounds[-1]


@pytest.mark.parametrize("seed", range(20))
def test_a_larger_ratio_never_starts_later(seed):
    losses = noisy(seed)
    ratios = (0.02, 0.05, 0.1, 0.2, 0.4, 0.8)
    rounds = [found(Stable(ratio=ratio, deadline=1.0), losses, 41) or 99 for ratio in ratios]
    assert rounds == sorted(rounds, reverse=True)


@pytest.mark.parametrize("rule", [Stable(), Stable(window=1), Threshold(threshold=1.3)])
@pytest.mark.parametrize("seed", range(5))
def test_what_was_found_never_changes_as_rounds_are_added(rule, seed):
    losses = noisy(seed)
    verdicts = [found(rule, losses[:n], 40) for n in range(41)]
    first = next(i for i, t in enumerate(verdicts) if t is not None)
    assert verdicts[first] == first  # found at the end of that very round
    assert set(verdicts[first:]) == {first}


def test_the_deadline_is_counted_without_rounding_errors():
    assert 0.29 * 100 < 29  # what floating point makes of it
    assert found(Stable(deadline=0.29), [1.0] * 100, 100) == 29


# What cannot be meant


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Fixed(round=0), "round"),
        (lambda: Fixed(round=-3), "round"),
        (lambda: Fixed(fraction=1.5), "fraction"),
        (lambda: Fixed(fraction=float("nan")), "fraction"),
        (lambda: Threshold(patience=0), "patience"),
        (lambda: Threshold(threshold=0.0), "threshold"),
        (lambda: Threshold(threshold=float("nan")), "threshold"),
        (lambda: Threshold(threshold={"clean": 1.0, "robust": -1.0}), "threshold"),
        (lambda: Stable(window=0), "window"),
        (lambda: Stable(ratio=0.0), "ratio"),
        (lambda: Stable(ratio=1.0), "ratio"),
        (lambda: Stable(ratio=float("nan")), "ratio"),
        (lambda: Stable(deadline=0.0), "deadline"),
        (lambda: Stable(deadline=1.01), "deadline"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(make, message):
    with pytest.raises(UserError, match=message):
        make()
