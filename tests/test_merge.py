"""The merge: weights, hand-overs, and the global model against the naive formula."""

import math

import pytest
import torch

from equipoise.errors import UserError
from equipoise.objectives.standard import Standard
from equipoise.training import Knots, Merge
from equipoise.training.method import Method, check_weights
from equipoise.training.shares import Share, State, total
from naive import bound

GAMMA = {"robust": Knots((1.0, 1.0, 1.0, 0.4)), "clean": Knots((0.0, 0.0, 0.0, 0.6))}


# How much each learner counts


class Weights:
    """The weights of learners that a test names, as a method has them."""

    def __init__(self, knots: dict[str, Knots], anchor: str = "start") -> None:
        check_weights(knots)
        self.knots, self.merge = knots, merge(anchor=anchor)

    def at(self, t: int, rounds: int, start: int | None) -> dict[str, float]:
        learners = dict.fromkeys(self.knots, bound(Standard))
        method = Method(learners=learners, knots=self.knots, merge=self.merge)
        return method.weights(t, rounds, start)


def merge(**settings: object) -> Merge:
    return Merge(**settings)  # type: ignore[arg-type]


def test_the_clock_has_the_values_of_the_generalist_code():
    weights = Weights(knots=GAMMA, anchor="clock")
    gamma = {t: weights.at(t, 120, 75)["robust"] for t in range(1, 121)}
    assert [gamma[t] for t in range(1, 81)] == pytest.approx([1.0] * 80)
    found = [gamma[t] for t in range(85, 121, 5)]
    assert found == pytest.approx([0.925, 0.85, 0.775, 0.7, 0.625, 0.55, 0.475, 0.4])
    assert weights.at(100, 120, None) == weights.at(100, 120, 3)  # whatever t' is


@pytest.mark.parametrize("start", [1, 5, 20, 29])
def test_anchored_at_the_start_gamma_is_one_there_and_ends_as_it_should(start):
    weights = Weights(knots=GAMMA, anchor="start")
    assert weights.at(start, 30, start) == {"robust": 1.0, "clean": 0.0}
    assert weights.at(30, 30, start)["robust"] == pytest.approx(0.4)
    for t in range(1, start + 1):
        assert weights.at(t, 30, start) == {"robust": 1.0, "clean": 0.0}


def test_anchored_at_the_start_the_clock_runs_from_there():
    weights = Weights(knots=GAMMA, anchor="start")
    # t' = 6 of 36: places 6, 16, 26, 36; three quarters of the way is round 28.5
    assert weights.at(16, 36, 6)["robust"] == pytest.approx(1.0)
    assert weights.at(26, 36, 6)["robust"] == pytest.approx(1.0)
    assert weights.at(31, 36, 6)["robust"] == pytest.approx(0.7)
    assert weights.at(31, 36, 6)["clean"] == pytest.approx(0.3)


def test_anchored_without_a_start_the_first_value_holds():
    weights = Weights(knots=GAMMA, anchor="start")
    assert all(weights.at(t, 30, None) == {"robust": 1.0, "clean": 0.0} for t in range(1, 31))
    assert weights.at(30, 30, 30) == {"robust": 1.0, "clean": 0.0}


@pytest.mark.parametrize("anchor", ["start", "clock"])
@pytest.mark.parametrize("start", [None, 1, 7, 20])
def test_weights_sum_to_one_in_every_round(anchor, start):
    knots = {"a": Knots((0.2, 0.7)), "b": Knots((0.5, 0.2, 0.1)), "c": Knots((0.3, 0.35, 0.2))}
    weights = Weights(knots=knots, anchor=anchor)
    for t in range(1, 21):
        found = weights.at(t, 20, start)
        assert sum(found.values()) == pytest.approx(1, abs=1e-9)
        assert min(found.values()) >= 0


@pytest.mark.parametrize(
    "knots",
    [
        {"robust": Knots((1.0,)), "clean": Knots((0.1,))},
        {"robust": Knots((0.5,)), "clean": Knots((0.4,))},
        {"robust": Knots((1.0, 0.4)), "clean": Knots((0.0, 0.5))},
        {"robust": Knots((1.5,)), "clean": Knots((-0.5,))},
        # one at both ends, but not at the knot of one of them in between
        {"robust": Knots((1.0, 0.0, 1.0)), "clean": Knots((0.0, 0.0))},
    ],
)
def test_weights_that_do_not_sum_to_one_are_refused(knots):
    with pytest.raises(UserError, match="sum to 1"):
        Weights(knots=knots)


def test_weights_are_also_checked_to_the_left_of_a_jump():
    jump = Knots((0.0, 0.9, 0.5, 0.5), at=(0.0, 0.5, 0.5, 1.0))
    with pytest.raises(UserError, match="sum to 1"):
        Weights(knots={"robust": Knots((1.0, 1.0, 0.5, 0.5), at=jump.at), "clean": jump})


# When the learners go on from the global weights


def due(start: int | None, rounds: int = 20, **settings: object) -> set[int]:
    return {t for t in range(1, rounds + 1) if merge(**settings).due(t, start)}


@pytest.mark.parametrize(
    ("every", "count", "inclusive", "start", "expected"),
    [
        (5, "rounds", True, 10, {10, 15, 20}),
        (5, "rounds", False, 10, {15, 20}),
        (5, "rounds", True, 12, {15, 20}),
        (5, "rounds", False, 12, {15, 20}),
        (5, "since-start", True, 12, {12, 17}),
        (5, "since-start", False, 12, {17}),
        (5, "since-start", True, 16, {16}),
        (5, "since-start", False, 16, set()),
        (5, "since-start", True, 20, {20}),
        (5, "rounds", True, 20, {20}),
        (5, "rounds", False, 20, set()),
        (1, "rounds", True, 17, {17, 18, 19, 20}),
        (1, "rounds", False, 17, {18, 19, 20}),
        (1, "since-start", True, 17, {17, 18, 19, 20}),
        (1, "since-start", False, 17, {18, 19, 20}),
        (1, "rounds", True, 1, set(range(1, 21))),
        (30, "rounds", True, 1, set()),
        (30, "since-start", True, 4, {4}),
    ],
)
def test_hand_overs_are_due(every, count, inclusive, start, expected):
    assert due(start, every=every, count=count, inclusive=inclusive) == expected


@pytest.mark.parametrize("count", ["rounds", "since-start"])
@pytest.mark.parametrize("inclusive", [True, False])
@pytest.mark.parametrize(("every", "start"), [(None, 3), (5, None), (1, None), (None, None)])
def test_without_a_start_or_a_period_none_is_due(count, inclusive, every, start):
    assert due(start, every=every, count=count, inclusive=inclusive) == set()


def test_the_generalist_code_hands_over_in_ten_epochs():
    expected = {75, 80, 85, 90, 95, 100, 105, 110, 115, 120}
    assert due(75, rounds=120, every=5, count="rounds", inclusive=True) == expected


@pytest.mark.parametrize("every", [0, -1])
def test_a_period_below_one_is_refused(every):
    with pytest.raises(UserError, match="every"):
        Merge(every=every)


# The memory


def test_the_memory_grows_in():
    memory = merge(horizon=2.5).memory
    assert [memory(s, 400) for s in range(4)] == pytest.approx([1 / 10, 2 / 11, 3 / 12, 4 / 13])
    assert memory(8989, 400) < 0.999
    assert memory(8990, 400) == 0.999
    assert memory(10**6, 400) == 0.999


def test_the_horizon_is_the_mean_age_of_what_is_averaged_in_rounds():
    for horizon, steps in ((2.5, 8), (0.5, 100), (1000 / 391, 391)):
        decay = merge(horizon=horizon).decay(steps)
        ages = sum(age * (1 - decay) * decay**age for age in range(200 * steps))
        assert (ages + 1) / steps == pytest.approx(horizon)


def test_without_warm_up_the_memory_is_the_decay_and_never_negative():
    assert {merge(horizon=2.5, warmup=False).memory(s, 4) for s in (0, 1, 100)} == {0.9}
    assert merge(horizon=1 / 0.95).memory(0, 1) == pytest.approx(0.05)
    assert merge(horizon=0.1).decay(4) == merge(horizon=0.0).memory(0, 4) == 0.0
    assert 0.99 < merge(horizon=10_000_000).decay(10_000) < 1


@pytest.mark.parametrize("horizon", [-0.1, 1e8, math.inf, math.nan])
def test_a_horizon_that_cannot_be_meant_is_refused(horizon):
    with pytest.raises(UserError, match="horizon"):
        merge(horizon=horizon)


# The global model

NAMES = ("clean", "robust", "l2")


def random_state(generator: torch.Generator, dtype: torch.dtype = torch.float64) -> State:
    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=dtype)

    return {
        "conv.weight": normal(4, 3, 2, 2),
        "bn.running_mean": normal(4),
        "bn.num_batches_tracked": torch.randint(100, (), generator=generator),
        "scale": normal(1)[0],
        "table": torch.randint(9, (3, 2), generator=generator),
    }


def through_shares(
    start: State, steps: list[tuple[float, dict[str, float], dict[str, State]]], average: bool
) -> list[State]:
    shares = {name: Share(start, floats(start), average) for name in NAMES}
    shares[NAMES[-1]].carry(start)
    results = []
    for memory, weights, states in steps:
        for name, share in shares.items():
            share.add(states[name], memory, weights.get(name, 0.0), memory)
        results.append(total(shares.values(), start))
    return results


def naively(
    start: State, steps: list[tuple[float, dict[str, float], dict[str, State]]], average: bool
) -> list[State]:
    """G <- d G + (1 - d) sum_i w_i T_i, with T the learners or their running averages."""
    world = {k: v.clone() for k, v in start.items()}
    averages = {name: {k: v.clone() for k, v in start.items()} for name in NAMES}
    results = []
    for d, weights, states in steps:
        for key in start:
            if not start[key].is_floating_point():
                continue
            for name in NAMES:
                averages[name][key] = d * averages[name][key] + (1 - d) * states[name][key]
            source = averages if average else states
            mix = sum(weights.get(name, 0.0) * source[name][key] for name in NAMES)
            world[key] = d * world[key] + (1 - d) * mix
        results.append({k: v.clone() for k, v in world.items()})
    return results


def floats(state: State) -> list[str]:
    return [name for name, value in state.items() if value.is_floating_point()]


def random_steps(
    seed: int, weights: Weights, *, dtype: torch.dtype = torch.float64, decay: float = 0.9
) -> tuple[State, list[tuple[float, dict[str, float], dict[str, State]]]]:
    generator = torch.Generator().manual_seed(seed)
    horizon = 1 / (1 - decay) if decay else 0.0
    memory = merge(horizon=horizon).memory
    start = random_state(generator, dtype)
    steps = []
    for s in range(60):
        at = weights.at(s // 5 + 1, 12, 4)
        states = {name: random_state(generator, dtype) for name in NAMES}
        steps.append((memory(s, 1), at, states))
    return start, steps


THREE = Weights(
    knots={
        "clean": Knots((0.0, 0.5, 0.2)),
        "robust": Knots((1.0, 0.25, 0.5)),
        "l2": Knots((0.0, 0.25, 0.3)),
    }
)


@pytest.mark.parametrize("average", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_the_shares_add_up_to_the_naive_formula(seed, average):
    start, steps = random_steps(seed, THREE)
    kept = {k: v.clone() for k, v in start.items()}
    found, expected = through_shares(start, steps, average), naively(start, steps, average)
    for one, other in zip(found, expected, strict=True):
        for key in start:
            torch.testing.assert_close(one[key], other[key], rtol=1e-12, atol=1e-12)
    assert all(torch.equal(start[key], kept[key]) for key in start)  # the start is not touched


@pytest.mark.parametrize("average", [False, True])
def test_float32_agrees_to_its_rounding_with_a_long_memory(average):
    start, steps = random_steps(7, THREE, dtype=torch.float32, decay=0.999)
    found, expected = through_shares(start, steps, average), naively(start, steps, average)
    for one, other in zip(found, expected, strict=True):
        assert one["conv.weight"].dtype == torch.float32
        torch.testing.assert_close(one["conv.weight"], other["conv.weight"], rtol=0, atol=2e-6)


def test_entries_that_are_no_floats_are_those_of_the_start():
    start, steps = random_steps(1, THREE)
    for state in through_shares(start, steps, False):
        for key in ("bn.num_batches_tracked", "table"):
            assert torch.equal(state[key], start[key])
            assert state[key].dtype == torch.int64


def running(name: str, steps: list, start: State, key: str) -> torch.Tensor:
    value = start[key]
    for d, _, states in steps:
        value = d * value + (1 - d) * states[name][key]
    return value


@pytest.mark.parametrize(("gamma", "name"), [(1.0, "robust"), (0.0, "clean")])
def test_gamma_one_is_the_robust_average_and_zero_the_clean_one(gamma, name):
    knots = {"robust": Knots((gamma,)), "clean": Knots((1 - gamma,))}
    start, steps = random_steps(2, Weights(knots=knots))
    result = through_shares(start, steps, False)[-1]
    for key in ("conv.weight", "bn.running_mean", "scale"):
        torch.testing.assert_close(
            result[key], running(name, steps, start, key), rtol=1e-12, atol=1e-12
        )
    other = "clean" if name == "robust" else "robust"
    assert not torch.allclose(result["scale"], running(other, steps, start, "scale"))


def test_no_memory_is_the_last_weights():
    knots = {"robust": Knots((1.0,)), "clean": Knots((0.0,))}
    start, steps = random_steps(3, Weights(knots=knots), decay=0.0)
    for (_, _, states), found in zip(steps, through_shares(start, steps, False), strict=True):
        assert torch.equal(found["conv.weight"], states["robust"]["conv.weight"])


def test_a_share_goes_on_from_where_it_was_saved():
    start, steps = random_steps(4, THREE)
    for average in (False, True):
        whole, part = Share(start, floats(start), average), Share(start, floats(start), average)
        for memory, weights, states in steps[:20]:
            whole.add(states["robust"], memory, weights["robust"], memory)
            part.add(states["robust"], memory, weights["robust"], memory)
        fresh = Share(start, floats(start), average)
        fresh.load_state_dict(part.state_dict())
        for memory, weights, states in steps[20:]:
            whole.add(states["robust"], memory, weights["robust"], memory)
            fresh.add(states["robust"], memory, weights["robust"], memory)
        assert all(torch.equal(part, fresh.parts[name]) for name, part in whole.parts.items())
        if average:
            assert whole.average
            assert all(torch.equal(v, fresh.average[name]) for name, v in whole.average.items())
