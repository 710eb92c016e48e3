"""The loop: against a naive re-implementation, resumed, branched, interrupted and broken."""

from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, field, fields, replace
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from blobs import (
    BATCH,
    COUNT,
    EPS,
    SCHEDULED,
    STEPS,
    THREAT,
    State,
    blobs,
    branched,
    constant,
    finished,
    measured,
    new_model,
    same,
    small,
    through_a_file,
    training,
    weights_of,
    without_times,
)
from equipoise.attacks import PGD
from equipoise.data import Dataset, Images
from equipoise.draws import KeyedDraws
from equipoise.errors import RunError, UserError
from equipoise.jobs import summary as ending
from equipoise.jobs.train import resume, train
from equipoise.objectives import Batch, Objective
from equipoise.objectives.adversarial import Adversarial
from equipoise.objectives.standard import Standard
from equipoise.report.page import kept
from equipoise.report.runs_reader import read_run
from equipoise.settings.methods import Scheduled
from equipoise.settings.recipe import parse
from equipoise.terminal.progress import Console
from equipoise.threat import L2, Linf, Threat
from equipoise.training import (
    Fixed,
    Interrupted,
    Knots,
    Merge,
    Method,
    Never,
    Stable,
    Threshold,
    Training,
    Watch,
)
from equipoise.training.batchnorm import estimate
from equipoise.training.validation import Validator
from naive import ball

# A naive re-implementation: two models, two optimisers by hand, averages over full states


class Tape:
    """Remembers the noise that is drawn through it."""

    def __init__(self, draws: Any, noise: list[Tensor]) -> None:
        self.draws, self.noise = draws, noise

    def uniform(self, x: Tensor) -> Tensor:
        self.noise.append(self.draws.uniform(x).clone())
        return self.noise[-1]

    def child(self, name: str) -> "Tape":
        return Tape(self.draws.child(name), self.noise)

    def select(self, index: Tensor) -> "Tape":
        return Tape(self.draws.select(index), self.noise)


@dataclass(frozen=True, kw_only=True)
class RecordedClean(Standard):
    batches: list[Batch] = field(default_factory=list)

    def losses(self, model: nn.Module, batch: Batch, draws: Any) -> Iterator[Tensor]:
        self.batches.append(Batch(batch.x.clone(), batch.y.clone(), batch.index, batch.progress))
        yield from Standard.losses(self, model, batch, draws)


@dataclass(frozen=True, kw_only=True)
class RecordedRobust(Adversarial):
    batches: list[Batch] = field(default_factory=list)
    noise: list[Tensor] = field(default_factory=list)

    def losses(self, model: nn.Module, batch: Batch, draws: Any) -> Iterator[Tensor]:
        self.batches.append(Batch(batch.x.clone(), batch.y.clone(), batch.index, batch.progress))
        yield from Adversarial.losses(self, model, batch, Tape(draws, self.noise))


def like(kind: type[Objective], objective: Objective, /, **more: Any) -> Any:
    """Return an objective of a kind, with the settings of another one, bound to the threat."""
    shared = {f.name for f in fields(kind)} & {f.name for f in fields(objective)}
    settings = {name: getattr(objective, name) for name in shared}
    return kind(**settings | more).bind(THREAT)


def recorded(settings: Scheduled, rounds: int) -> Method:
    """Return a method whose objectives remember what they were given."""
    method = settings.build(THREAT)
    learners = {
        "clean": like(RecordedClean, method.learners["clean"]),
        "robust": like(RecordedRobust, method.learners["robust"]),
    }
    return replace(method, learners=learners)


def naive_pgd(model: nn.Module, x: Tensor, y: Tensor, noise: Tensor, steps: int) -> Tensor:
    model.eval()
    point = (x + EPS * (2 * noise - 1)).clamp(0, 1)
    for _ in range(steps):
        point = point.detach().requires_grad_()
        (grad,) = torch.autograd.grad(nn.functional.cross_entropy(model(point), y), point)
        point = point.detach() + 2.5 * EPS / steps * grad.sign()
        point = torch.clamp(torch.clamp(point, *ball(x, EPS)), 0, 1)
    return point.detach()


class NaiveLearner:
    def __init__(self, model: nn.Module, learning: Objective) -> None:
        self.model, self.learning = deepcopy(model), learning
        self.velocity: list[Tensor] = []

    def step(self, x: Tensor, y: Tensor, progress: float) -> None:
        places = np.linspace(0, 1, len(self.learning.lr_factors))
        lr = self.learning.lr * float(np.interp(progress, places, self.learning.lr_factors))
        self.model.train()
        loss = nn.functional.cross_entropy(self.model(x), y)
        parameters = list(self.model.parameters())
        grads = torch.autograd.grad(loss, parameters)
        mu = self.learning.momentum
        with torch.no_grad():
            grads = [
                g + self.learning.weight_decay * p for g, p in zip(grads, parameters, strict=True)
            ]
            old = self.velocity or [torch.zeros_like(g) for g in grads]
            self.velocity = [mu * v + g for v, g in zip(old, grads, strict=True)]
            for p, g, v in zip(parameters, grads, self.velocity, strict=True):
                p -= lr * (g + mu * v if self.learning.nesterov else v)

    def floats(self) -> State:
        return {k: v.clone() for k, v in self.model.state_dict().items() if v.is_floating_point()}

    def go_on_from(self, world: State, momentum: str) -> None:
        self.model.load_state_dict(world, strict=False)
        if momentum == "zero":
            self.velocity = []


def naive_gamma(settings: Scheduled, t: int, rounds: int, start: int) -> float:
    progress = t / rounds
    if settings.anchor == "start":
        progress = max(0.0, (t - start) / (rounds - start))
    return float(np.interp(progress, np.linspace(0, 1, len(settings.gamma)), settings.gamma))


def naive_sync(settings: Scheduled, t: int, start: int) -> bool:
    after = t >= start if settings.inclusive else t > start
    counted = t if settings.count == "rounds" else t - start
    return settings.every is not None and after and counted % settings.every == 0


def naive_kept(settings: Scheduled, s: int, steps: int, start: int, d: float) -> float:
    """Return what theta_g keeps of itself after step s; all of it where it is not updated."""
    t, last = s // steps + 1, s % steps == steps - 1
    if settings.global_from == "start" and t <= start:  # not formed yet: the mix at any time
        return 0.0
    if settings.average_every == "step":
        alpha = max(0.0, 1 - 1 / (settings.horizon * steps)) if settings.horizon else 0.0
        return d if settings.global_from == "first-step" else alpha
    if not last:
        return 1.0
    if settings.average_every == "round":
        alpha = max(0.0, 1 - 1 / settings.horizon)
        warm = settings.warmup and settings.global_from == "first-step"
        return min(alpha, t / (t + 9)) if warm else alpha
    alpha = max(0.0, 1 - (settings.every or 1) / settings.horizon)
    return alpha if naive_sync(settings, t, start) else 1.0


def naively(
    settings: Scheduled, method: Method, model: nn.Module, rounds: int, start: int
) -> tuple[dict[str, State], int]:
    """Return the final weights, and how often the learners were handed the global ones."""
    clean, robust = (method.learners[name] for name in ("clean", "robust"))
    assert isinstance(clean, RecordedClean)
    assert isinstance(robust, RecordedRobust)
    learners = {
        "clean": NaiveLearner(model, settings.clean),
        "robust": NaiveLearner(model, settings.robust),
    }
    world = learners["clean"].floats()
    running = {name: learner.floats() for name, learner in learners.items()}
    steps, handed = len(clean.batches) // rounds, 0
    for s, (x, y, *_) in enumerate(clean.batches):
        t, progress = s // steps + 1, s / (steps * rounds)
        learners["clean"].step(x, y, progress)
        if settings.batches == "own":
            x, y = robust.batches[s].x, robust.batches[s].y
        x_adv = naive_pgd(
            learners["robust"].model, x, y, robust.noise[s], settings.robust.attack.steps
        )
        learners["robust"].step(x_adv, y, progress)
        alpha = 1 - 1 / (settings.horizon * steps) if settings.horizon else 0.0
        d = min(alpha, (s + 1) / (s + 10)) if settings.warmup else alpha
        gamma = naive_gamma(settings, t, rounds, start)
        now = {name: learner.floats() for name, learner in learners.items()}
        for name in learners:
            for k in world:
                running[name][k] = d * running[name][k] + (1 - d) * now[name][k]
        source = running if settings.source == "average" else now
        kept = naive_kept(settings, s, steps, start, d)
        for k in world:
            mix = gamma * source["robust"][k] + (1 - gamma) * source["clean"][k]
            world[k] = kept * world[k] + (1 - kept) * mix
        closing = s % steps == steps - 1 and t < rounds  # of a round that another one follows
        if naive_sync(settings, t, start) and (settings.granularity == "step" or closing):
            handed += 1
            for learner in learners.values():
                learner.go_on_from(world, settings.momentum)
    return {name: learner.floats() for name, learner in learners.items()} | {
        "global": world
    }, handed


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "rounds", "handed"),
    [
        (small(), 5, 2),  # rounds 2 and 4
        (small(source="average", momentum="zero"), 4, 1),  # round 2; after 4 comes nothing
        (small(granularity="step"), 5, 2 * STEPS),
        (small(granularity="step", source="average", momentum="zero", every=1), 3, 2 * STEPS),
        (small(anchor="clock", gamma=(1.0, 0.2, 0.6), count="rounds", inclusive=False), 6, 1),
        (small(anchor="clock", gamma=(0.5,), warmup=False, horizon=0.625, every=1), 4, 2),
        (small(horizon=0.0, gamma=(0.7, 0.3), every=1), 4, 2),
        (small("generalist", start=Fixed(round=3), every=3), 6, 2 * STEPS),
        # Eq. 8, literally: formed at t' = 2, updated and handed over in rounds 4 and 6.
        (small("a3gt-paper", start=Fixed(round=2), horizon=3.0), 7, 2),
        (small("a3gt-paper", start=Fixed(round=2), horizon=1.0, gamma=(0.7, 0.3)), 6, 1),
        (small("a3gt-paper", start=Fixed(round=2), inclusive=True, horizon=9.0, every=1), 5, 3),
        (small(global_from="start", gamma=(0.7, 0.2)), 5, 2),
        (small(global_from="start", source="average", granularity="step", every=1), 4, 3 * STEPS),
        (small(average_every="round", gamma=(0.7, 0.2), horizon=2.0), 5, 2),
        (small(average_every="round", global_from="start", source="average", horizon=4.0), 5, 2),
        (small(average_every="round", warmup=False, every=None, horizon=4.0), 4, 0),
        (small(batches="shared"), 5, 2),
    ],
)
def test_the_loop_is_the_naive_algorithm(settings, rounds, handed):
    # In float64, so that no sign of a gradient hangs on the rounding of another order of sums.
    model = new_model().double()
    method = recorded(settings, rounds)
    job = finished(method, rounds, model=deepcopy(model))
    start = settings.start.round
    expected, found_handed = naively(settings, method, model, rounds, start)
    assert found_handed == handed
    found = weights_of(job)
    for who, state in expected.items():
        for key, value in state.items():
            torch.testing.assert_close(found[who][key], value, rtol=1e-9, atol=1e-9)
    moved = (found["global"]["conv1.weight"] - model.state_dict()["conv1.weight"]).abs().max()
    assert moved > 1e-3


def test_batches_visit_each_image_at_most_once_a_round_in_new_orders():
    method = recorded(small(), 3)
    finished(method, 3)
    orders = []
    for name in ("clean", "robust"):
        batches = method.learners[name].batches
        assert len(batches) == 3 * STEPS
        for t in range(3):
            seen = torch.cat([b.index for b in batches[t * STEPS : (t + 1) * STEPS]])
            assert len(set(seen.tolist())) == len(seen) == STEPS * BATCH
            orders.append(tuple(seen.tolist()))
        for batch in batches:
            assert torch.equal(batch.x, blobs().pixels(batch.index))
            assert torch.equal(batch.y, blobs().y[batch.index])
    assert len(set(orders)) == 6  # by round and by learner


def test_the_last_incomplete_batch_is_another_one_each_round():
    method = recorded(small(), 4)
    finished(method, 4)
    batches = method.learners["clean"].batches
    left_out = [
        frozenset(range(COUNT))
        - set(torch.cat([b.index for b in batches[t * STEPS : (t + 1) * STEPS]]).tolist())
        for t in range(4)
    ]
    assert all(len(left) == COUNT % BATCH for left in left_out)
    assert len(set(left_out)) == 4


# Seeds


def test_the_same_seed_gives_the_same_bits():
    one, other = (finished(small(), validate=measured) for _ in range(2))
    assert same(weights_of(one), weights_of(other))
    assert without_times(one.history) == without_times(other.history)


def test_another_seed_gives_another_model():
    one, other = weights_of(finished(small())), weights_of(finished(small(), seed=1))
    for who in one:
        assert not torch.equal(one[who]["conv1.weight"], other[who]["conv1.weight"])


def test_the_global_random_state_is_neither_used_nor_changed():
    with torch.random.fork_rng([]):
        torch.manual_seed(123)
        before = torch.get_rng_state()
        one = finished(small())
        assert torch.equal(torch.get_rng_state(), before)
        torch.manual_seed(456)
        assert same(weights_of(one), weights_of(finished(small())))


def test_the_initial_model_is_not_trained():
    model = new_model()
    finished(small(), model=deepcopy(model))
    job = training(small(), model=model)
    initial = {k: v.clone() for k, v in model.state_dict().items()}
    for name, learner in job.learners.items():
        assert all(torch.equal(learner.state[k], v) for k, v in initial.items()), name
    assert all(torch.equal(job.merged_state()[k], v) for k, v in initial.items())


def test_shared_batches_are_the_very_same_images_for_both_learners():
    method = recorded(small(batches="shared"), 3)
    finished(method, 3)
    clean, robust = (method.learners[name].batches for name in ("clean", "robust"))
    assert len(clean) == len(robust) == 3 * STEPS
    for one, other in zip(clean, robust, strict=True):
        assert torch.equal(one.x, other.x)
        assert torch.equal(one.y, other.y)
        assert torch.equal(one.index, other.index)


def test_up_to_the_start_the_global_model_is_the_mix_and_between_hand_overs_it_stays():
    seen: list[dict[str, State]] = []
    job = training(small("a3gt-paper", start=Fixed(round=2), every=2, gamma=(0.7,)), 5)
    job.watch = Watch(save=lambda finished: seen.append(weights_of(job)))
    job.run()

    def weight(t: int, who: str) -> Tensor:
        return seen[t - 1][who]["conv1.weight"]

    for t in (1, 2):
        mix = 0.7 * weight(t, "robust") + 0.3 * weight(t, "clean")
        torch.testing.assert_close(weight(t, "global"), mix)
    assert torch.equal(weight(3, "global"), weight(2, "global"))
    assert not torch.equal(weight(4, "global"), weight(3, "global"))
    assert torch.equal(weight(4, "global"), weight(4, "clean"))  # handed over
    assert torch.equal(weight(5, "global"), weight(4, "global"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"average_every": "handover"}, "would average the initial weights; choose global_from="),
        (
            {"average_every": "handover", "global_from": "start", "every": None},
            "needs hand-overs: give every",
        ),
        ({"average_every": "round", "granularity": "step"}, "choose granularity=round"),
        ({"global_from": "start", "start": Never()}, "choose global_from=first-step"),
    ],
)
def test_readings_that_make_no_sense_together_are_refused_in_a_line(settings, message):
    with pytest.raises(UserError, match=message) as caught:
        small(**settings)
    assert "\n" not in str(caught.value)


# Identities


def test_a3gt_started_at_a_round_is_generalist_with_the_same_readings():
    readings = {"anchor": "clock", "source": "average", "count": "rounds", "granularity": "step"}
    readings |= {"batches": "shared"}
    one = finished(small(**readings), 5)
    other = finished(small("generalist", start=Fixed(round=2)), 5)
    assert same(weights_of(one), weights_of(other))
    assert without_times(one.history) == without_times(other.history)


def scripted(losses: list[float]) -> Any:
    """Return a validation whose clean loss goes down a list, a place a round."""
    calls: list[int] = []

    def validate(model: nn.Module, threat: Threat | None = None) -> dict[str, float]:
        calls.append(0)
        loss = losses[(len(calls) - 1) // 3]  # two learners and the global model a round
        return constant(model) | {"clean_loss": loss, "robust_loss": loss}

    return validate


def test_a_rule_that_finds_a_round_is_the_same_as_fixing_it():
    # Medians 9, 5.5, 2, 1.9, 1.9: with a window of 1 round 4 is the first: .1 < .71
    rule = Stable(window=1, ratio=0.1, deadline=1.0)
    found = finished(small(start=rule), 6, validate=scripted([9, 2, 1.9, 1.9, 1.8, 1.7]))
    assert found.start.round == 4
    assert [record["start"]["round"] for record in found.history] == [None] * 3 + [4] * 3
    assert [record["round"] for record in found.history if record["handover"]] == [4]
    fixed = finished(small(start=Fixed(round=4)), 6)
    assert same(weights_of(found), weights_of(fixed))


def test_the_training_loss_decides_for_the_papers_rule():
    rule = Threshold(threshold=100.0, patience=3)
    job = finished(small(start=rule, every=1), 5)
    assert job.start.round == 3
    assert [record["round"] for record in job.history if record["handover"]] == [3, 4]
    never = finished(small(start=replace(rule, threshold=1e-9)), 4)
    assert never.start.round is None
    assert not any(record["handover"] for record in never.history)


def test_never_and_no_period_train_learners_that_know_nothing_of_one_another():
    one = weights_of(finished(small(start=Never())))
    other = weights_of(finished(small(every=None)))
    assert same({"clean": one["clean"]}, {"clean": other["clean"]})
    assert same({"robust": one["robust"]}, {"robust": other["robust"]})
    slow = replace(small().clean, lr=0.001)
    third = weights_of(finished(small(start=Never(), clean=slow)))
    assert same({"robust": one["robust"]}, {"robust": third["robust"]})
    assert not same({"clean": one["clean"]}, {"clean": third["clean"]})


def test_gamma_one_is_adversarial_training_with_averaging():
    settings = parse({"method": "pgd-at", "horizon": 1.25}).settings
    at = replace(settings, robust=small().robust).build(THREAT)
    one = weights_of(finished(at))
    other = weights_of(finished(small(gamma=(1.0,), start=Never())))
    assert same({"robust": one["robust"]}, {"robust": other["robust"]})
    for key, value in one["global"].items():
        if value.is_floating_point():
            assert torch.equal(value, other["global"][key]), key


def test_the_first_hand_over_anchored_at_the_start_follows_the_robust_learner_alone():
    seen: list[dict[str, State]] = []
    settings = small(start=Fixed(round=2), every=1)
    job = training(settings, 3)
    job.watch = Watch(save=lambda finished: seen.append(weights_of(job)))
    job.run()
    alone = training(small(gamma=(1.0,), start=Never()), 3)
    apart: list[dict[str, State]] = []
    alone.watch = Watch(save=lambda finished: apart.append(weights_of(alone)))
    alone.run()
    robust = apart[1]["global"]["conv1.weight"]  # nothing of the clean learner is in it
    assert torch.equal(seen[1]["clean"]["conv1.weight"], robust)
    assert torch.equal(seen[1]["robust"]["conv1.weight"], robust)
    assert not torch.equal(seen[2]["clean"]["conv1.weight"], apart[2]["global"]["conv1.weight"])


# The hand-over


def test_handing_over_after_every_step_makes_learners_and_global_model_one():
    together: list[tuple[int, bool]] = []
    job = training(small(granularity="step", every=2, start=Fixed(round=2)), 5)

    def look(images: int) -> None:
        states = weights_of(job)
        one = all(
            torch.equal(states[name][key], states["global"][key])
            for name in ("clean", "robust")
            for key in states["global"]
        )
        together.append((len(job.history) + 1, one))

    job.watch = Watch(step=look)
    job.run()
    assert len(together) == 5 * STEPS
    assert all(one == (t in (2, 4)) for t, one in together)
    assert [record["handover"] for record in job.history] == [False, True, False, True, False]


@pytest.mark.parametrize("momentum", ["keep", "zero"])
def test_momentum_at_a_hand_over_is_kept_or_zeroed(momentum):
    buffers: list[list[Tensor]] = []
    job = training(small(momentum=momentum), 3)

    def look(finished: bool) -> None:
        held = job.learners["robust"].optimizer.state.values()
        buffers.append([state["momentum_buffer"].clone() for state in held])

    job.watch = Watch(save=look)
    job.run()
    assert [record["handover"] for record in job.history] == [False, True, False]
    assert all(float(b.abs().max()) > 0 for b in buffers[0] if b.numel() > 8)
    at_handover = max(float(b.abs().max()) for b in buffers[1])
    assert at_handover == 0 if momentum == "zero" else at_handover > 0
    assert max(float(b.abs().max()) for b in buffers[2]) > 0


def test_validation_sees_the_learners_before_the_hand_over():
    seen: list[Tensor] = []

    def validate(model: nn.Module, threat: Threat | None = None) -> dict[str, float]:
        seen.append(model.state_dict()["conv1.weight"].clone())
        return constant(model)

    finished(small(), 2, validate=validate)
    clean, robust, world = seen[3:6]  # of round 2, at whose end the weights are handed over
    assert not torch.equal(clean, world)
    assert not torch.equal(robust, world)


# BatchNorm


def test_estimating_statistics_changes_nothing_but_them():
    average = finished(small(start=Never()), 3)
    estimated = finished(small(start=Never(), batchnorm="estimate"), 3)
    weights = average.history[-1]["weights"]
    one = {k: v.clone() for k, v in average.merged(weights, 3).state_dict().items()}
    model = estimated.merged(weights, 3)
    other = model.state_dict()
    for key in one:
        if "running" in key:
            assert not torch.equal(one[key], other[key]), key
        elif "num_batches" not in key:
            assert torch.equal(one[key], other[key]), key
    assert {module.training for module in model.modules()} == {False}
    assert {model.bn1.momentum, model.bn2.momentum} == {0.1}


@dataclass(frozen=True, kw_only=True)
class Spy(Standard):
    """Counts the images that it is asked for; remembers the statistics of the model then."""

    counts: list[int] = field(default_factory=list)
    means: list[Tensor] = field(default_factory=list)

    @property
    def images(self) -> int:
        return sum(self.counts)

    def inputs(self, model: nn.Module, batch: Batch, draws: Any) -> Tensor:
        self.counts.append(len(batch.y))
        self.means.append(model.get_buffer("bn1.running_mean").clone())
        return batch.x


def spied() -> tuple[Training, nn.Module, dict[str, Spy]]:
    job = finished(small(), 2)
    spies = {"clean": Spy(), "robust": Spy()}
    for name, spy in spies.items():
        job.learners[name].objective = spy
    return job, job.merged({"clean": 0.5, "robust": 0.5}, 2), spies


def some_batches(count: int = 5) -> list[Batch]:
    images = blobs(3, 100)
    parts = torch.arange(100).split(20)[:count]
    return [Batch(images.pixels(i), images.y[i], i, 0.5) for i in parts]


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ({"clean": 0.0, "robust": 1.0}, {"clean": 0, "robust": 100}),
        ({"clean": 1.0, "robust": 0.0}, {"clean": 100, "robust": 0}),
        ({"clean": 0.3, "robust": 0.7}, {"clean": 30, "robust": 70}),
        ({"robust": 0.55, "clean": 0.45}, {"clean": 45, "robust": 55}),
    ],
)
def test_statistics_are_estimated_on_inputs_in_proportion_of_the_weights(weights, expected):
    job, model, spies = spied()
    estimate(model, job.learners, weights, some_batches(), job.learners["clean"].draws)
    assert {name: spy.images for name, spy in spies.items()} == expected


def test_estimated_statistics_are_the_means_over_the_batches():
    job, model, _ = spied()
    batches = some_batches()
    weights = {"clean": 0.5, "robust": 0.5}
    estimate(model, job.learners, weights, batches, job.learners["clean"].draws)
    with torch.no_grad():
        features = [model.stem(batch.x).transpose(0, 1).flatten(1) for batch in batches]
    mean = torch.stack([f.mean(1) for f in features]).mean(0)
    var = torch.stack([f.var(1) for f in features]).mean(0)
    torch.testing.assert_close(model.bn1.running_mean, mean)
    torch.testing.assert_close(model.bn1.running_var, var)


def test_attacks_never_meet_a_model_without_statistics():
    job, model, spies = spied()
    weights = {"clean": 0.0, "robust": 1.0}
    estimate(model, job.learners, weights, some_batches(), job.learners["clean"].draws)
    assert all(bool(mean.abs().sum() > 0) for mean in spies["robust"].means)


@pytest.mark.parametrize("batchnorm", ["average", "estimate"])
def test_the_model_that_is_saved_is_the_one_that_was_validated(batchnorm):
    validated: list[State] = []
    saved: list[State] = []

    def validate(model: nn.Module, threat: Threat | None = None) -> dict[str, float]:
        validated.append({k: v.clone() for k, v in model.state_dict().items()})
        return constant(model)

    job = training(small(batchnorm=batchnorm, every=1), 3, validate=validate)

    def save(finished: bool) -> None:  # as jobs/train.py does
        record = job.history[-1]
        state = job.merged(record["weights"], record["round"]).state_dict()
        saved.append({k: v.clone() for k, v in state.items()})

    job.watch = Watch(save=save)
    job.run()
    for t, state in enumerate(saved):
        for key, value in validated[3 * t + 2].items():
            if value.is_floating_point():
                assert torch.equal(state[key], value), (t + 1, key)


# Branches


@pytest.mark.parametrize("source", ["weights", "average"])
@pytest.mark.parametrize("trunk", ["robust", "mixed"])
def test_learners_are_one_until_they_part_and_then_differ(trunk, source):
    at_parting: list[dict[str, Any]] = []
    job = training(branched(trunk, 2, source=source), 4)

    def parting(sentence: str) -> None:
        if "from the trunk" in sentence:
            at_parting.append(deepcopy({n: x.state_dict() for n, x in job.learners.items()}))

    job.watch = Watch(announce=parting)
    job.run()
    (states,) = at_parting
    for name in ("clean", "robust"):
        for key, value in states[trunk]["model"].items():
            assert torch.equal(states[name]["model"][key], value), key
        held = states[name]["optimizer"]["state"]
        for index, buffer in states[trunk]["optimizer"]["state"].items():
            assert torch.equal(held[index]["momentum_buffer"], buffer["momentum_buffer"])
        for key, value in states[trunk]["share"]["average"].items():
            assert torch.equal(states[name]["share"]["average"][key], value)
    final = weights_of(job)
    assert not same({"": final["clean"]}, {"": final["robust"]})
    assert [sorted(record["learners"]) for record in job.history] == [
        [trunk],
        [trunk],
        ["clean", "robust"],
        ["clean", "robust"],
    ]
    assert [record["weights"] for record in job.history][:2] == [{trunk: 1.0}] * 2


def test_after_parting_each_learner_moves_on_its_own():
    # With a learning rate of zero after the branch the learners stay what the trunk was.
    states: list[dict[str, State]] = []
    job = training(branched("robust", 2, last_lr=0.0), 4)
    job.watch = Watch(save=lambda finished: states.append(weights_of(job)))
    job.run()
    trunk = states[1]["robust"]
    for name in ("clean", "robust"):
        for key, value in states[3][name].items():
            if key.endswith(("weight", "bias")):
                assert torch.equal(value, trunk[key]), (name, key)
    assert not torch.equal(states[1]["clean"]["fc1.weight"], trunk["fc1.weight"])


def test_the_trunk_alone_is_the_training_of_one_learner():
    job = training(branched("robust", 3), 3)
    job.run()
    method = branched("robust", 3)
    alone = Method(
        learners={"robust": method.learners["robust"]},
        knots={"robust": Knots((1.0,))},
        merge=Merge(horizon=1.25, every=None, start=Never()),
    )
    other = weights_of(finished(alone, 3))
    found = weights_of(job)
    for key, value in other["global"].items():
        if value.is_floating_point():
            assert torch.equal(found["global"][key], value), key


def test_a_branch_is_continuous_for_the_global_model():
    states: list[dict[str, State]] = []
    job = training(branched("mixed", 2), 4)
    job.watch = Watch(step=lambda images: states.append(weights_of(job)))
    job.run()
    steps = [
        float((b["global"]["fc1.weight"] - a["global"]["fc1.weight"]).abs().max())
        for a, b in pairwise(states)
    ]
    assert steps[2 * STEPS - 1] < 5 * max(steps[: 2 * STEPS - 1])


@pytest.mark.parametrize(
    "make",
    [
        lambda: replace(branched("robust", 2), trunk="nobody"),
        lambda: replace(
            branched("robust", 2),
            learners={"clean": branched("robust", 2).learners["clean"]},
            trunk=None,
        ),
    ],
)
def test_learners_that_do_not_exist_are_refused(make):
    with pytest.raises(UserError, match=r"nobody|do not exist"):
        make()


# Interrupting and resuming

RESUMED: list[Scheduled | Method] = [
    small(),
    small(source="average", granularity="step", momentum="zero"),
    small(batchnorm="estimate", every=1),
    small(start=Stable(window=1, deadline=0.5)),
    branched("mixed", 2),
    small("a3gt-paper", start=Stable(window=1, deadline=0.5), horizon=3.0, every=1),
    small(global_from="start", average_every="round", source="average", batches="shared"),
]


@pytest.mark.slow
@pytest.mark.parametrize("index", range(len(RESUMED)))
@pytest.mark.parametrize("seed", range(2))
def test_stopped_at_random_steps_and_resumed_the_bits_are_the_same(index, seed):
    rounds = 4
    whole = finished(RESUMED[index], rounds, validate=measured)
    generator = torch.Generator().manual_seed(100 * index + seed)
    stops = sorted(torch.randperm(rounds * STEPS - 1, generator=generator)[:3].tolist())
    job = training(RESUMED[index], rounds, validate=measured)
    steps = 0

    def count(images: int) -> None:
        nonlocal steps
        steps += 1

    saved: list[Any] = []
    for stop in stops:
        job.watch = Watch(
            step=count,
            stop=lambda stop=stop: steps > stop,
            save=lambda finished, job=job: saved.append(through_a_file(job.state_dict())),
        )
        with pytest.raises(Interrupted, match="round"):
            job.run()
        assert steps == stop + 1
        # another process: other objects, another global random state
        job = training(deepcopy(RESUMED[index]), rounds, validate=measured)
        job.load_state_dict(saved[-1])
    job.watch = Watch(step=count)
    job.run()
    assert steps == rounds * STEPS
    assert same(weights_of(job), weights_of(whole))
    assert without_times(job.history) == without_times(whole.history)


def test_a_state_that_was_saved_is_not_changed_by_going_on():
    states: list[tuple[Any, Any]] = []
    job = training(small(), 3)

    def save(finished: bool) -> None:
        state = job.state_dict()
        states.append((through_a_file(state), state))

    job.watch = Watch(save=save)
    job.run()
    again = training(small(), 3)
    again.load_state_dict(states[0][0])
    again.run()
    assert same(weights_of(again), weights_of(job))


def test_an_interrupted_training_goes_on_in_the_same_object():
    whole = finished(small(), 3)
    job = training(small(), 3)
    steps: list[int] = []
    job.watch = Watch(step=steps.append, stop=lambda: len(steps) == STEPS + 2)
    with pytest.raises(Interrupted):
        job.run()
    job.watch = Watch()
    job.run()
    assert same(weights_of(job), weights_of(whole))


# What goes wrong


def finite(state: Any) -> bool:
    if isinstance(state, Tensor):
        return not state.is_floating_point() or bool(torch.isfinite(state).all())
    if isinstance(state, Mapping):
        return all(finite(value) for value in state.values())
    return True


@pytest.mark.parametrize("name", ["clean", "robust"])
def test_a_loss_that_explodes_names_the_learner_and_the_round(name):
    saved: list[bool] = []
    wild = replace(getattr(small(), name), lr=1e20)
    job = training(small(**{name: wild}), 4)
    job.watch = Watch(save=lambda f: saved.append(finite(job.state_dict()["learners"])))
    with pytest.raises(
        RunError, match=rf"not finite for the {name} learner in round 1 of 4"
    ) as error:
        job.run()
    assert f"{name}.lr=3.3e+19" in str(error.value)
    assert saved == []
    assert job.history == []


@dataclass(frozen=True, kw_only=True)
class Breaks(Standard):
    """Is well until one step, whose loss is finite and whose gradient is not."""

    at: int
    calls: list[int] = field(default_factory=list)

    def losses(self, model: nn.Module, batch: Batch, draws: Any) -> Iterator[Tensor]:
        for loss in Standard.losses(self, model, batch, draws):
            self.calls.append(1)
            if len(self.calls) == self.at:
                loss.register_hook(lambda grad: grad * torch.nan)
            yield loss


@pytest.mark.parametrize("at", [2 * STEPS - 1, 2 * STEPS])
def test_the_last_good_state_stays_wherever_in_a_round_a_learner_breaks(at):
    method = small().build(THREAT)
    broken = like(Breaks, method.learners["clean"], at=at)
    job = training(replace(method, learners={**method.learners, "clean": broken}), 4)
    saved: list[bool] = []
    job.watch = Watch(save=lambda f: saved.append(finite(job.state_dict()["learners"])))
    with pytest.raises(RunError, match="not finite for the clean learner in round"):
        job.run()
    assert saved
    assert all(saved)


def test_learners_without_weights_or_numbers_are_refused():
    for name, value in (("lr", 0.0), ("lr", -1.0), ("lr", float("nan")), ("momentum", -0.1)):
        with pytest.raises(UserError, match=name):
            Standard(**{name: value})


# Validation and the kept round


def unique_images(count: int) -> Dataset:
    """Return a dataset in which every image is another one."""
    ids = torch.arange(count)
    x = torch.stack([ids // 256, ids % 256], 1)[:, None, :, None].expand(-1, 1, 2, 8)
    x = x.repeat_interleave(4, 2).to(torch.uint8)
    images = Images(x.contiguous(), ids % 7)
    return Dataset(
        name="unique",
        train=images.take(slice(0, count * 4 // 5)),
        test=images.take(slice(count * 4 // 5, count)),
        classes=tuple("abcdefg"),
        mean=(0.5,),
        std=(0.5,),
        eps=0.1,
        pad=0,
        flip=False,
        source="made here",
        sha256={},
    )


def identities(images: Images) -> set[tuple[int, int]]:
    pairs = [(int(x[0, 0, 0]), int(x[0, 4, 0])) for x in images.x]
    assert len(set(pairs)) == len(pairs)
    return set(pairs)


@pytest.mark.parametrize("limit", [None, 100, 333])
@pytest.mark.parametrize("validation", [1, 40, 1000])
def test_validation_never_overlaps_training_or_test(limit, validation):
    dataset = unique_images(1000)
    chosen = parse(
        {"method": "a3gt", "limit": limit, "validation": validation, "batch_size": 16, "seed": 3}
    )
    split = chosen.split(dataset, torch.device("cpu"))
    train, held = identities(split.train), identities(split.validation)
    n = limit or len(dataset.train)
    assert not train & held
    assert not (train | held) & identities(dataset.test)
    assert len(held) == min(validation, n // 5)
    assert len(train) + len(held) == n
    if len(held) >= 7:
        counts = torch.bincount(split.validation.y, minlength=7)
        assert int(counts.max() - counts.min()) <= 1
    # the same for every seed and method: seeds of training are compared on the same images
    other = replace(chosen, seed=8).split(dataset, torch.device("cpu"))
    assert identities(other.validation) == held


def test_a_subset_of_its_own_for_each_seed():
    dataset = unique_images(1000)

    def images(seed: int, subset: str) -> tuple[set[tuple[int, int]], set[tuple[int, int]]]:
        given = {"method": "pgd-at", "limit": 300, "validation": 40, "batch_size": 16}
        recipe = parse({**given, "seed": seed, "subset": subset})
        split = recipe.split(dataset, torch.device("cpu"))
        return identities(split.train), identities(split.validation)

    assert images(0, "seed") == images(0, "fixed") == images(1, "fixed")
    train, held = images(1, "seed")
    assert images(1, "seed") == (train, held)
    assert not train & held
    before, held_before = images(0, "seed")
    assert 0.2 < len((train | held) & (before | held_before)) / 300 < 0.55  # by chance 0.375
    whole = {"method": "pgd-at", "subset": "seed"}
    assert parse({**whole, "seed": 4}).subset_seed == 0  # without a limit there is no choice


def test_kept_is_the_best_round_and_of_equal_ones_the_latest():
    values = iter([0.3, 0.6, 0.5, 0.6, 0.2])

    def validate(model: nn.Module, threat: Threat | None = None) -> dict[str, float]:
        calls.append(0)
        accuracy = next(values) if len(calls) % 3 == 0 else 0.9  # the global model's
        return constant(model) | {"clean_accuracy": accuracy, "robust_accuracy": 0.0}

    calls: list[int] = []
    job = finished(small(), 5, validate=validate)
    assert [record["kept"] for record in job.history] == [True, True, False, True, False]


def test_records_say_what_happened():
    job = finished(small(), 4, validate=measured)
    assert [record["round"] for record in job.history] == [1, 2, 3, 4]
    last = job.history[-1]
    assert last["weights"]["robust"] == pytest.approx(0.4)
    # one clean update, and two steps of PGD with an update, an image
    assert last["gradient_evaluations"] == (1 + 3) * STEPS * BATCH
    assert last["learners"]["clean"].keys() >= {"loss", "lr", "clean_accuracy", "robust_loss"}
    assert last["start"]["round"] == 2
    assert last["start"]["learners"] == {"clean": 2, "robust": 2}
    assert job.history[0]["start"]["round"] == 2  # known from the beginning
    lr = 0.1 * float(np.interp((4 - 1 / STEPS) / 4, [0, 0.5, 1], [0.5, 1.0, 0.2]))
    assert last["learners"]["clean"]["lr"] == pytest.approx(lr)


def test_t_prime_is_announced_once():
    said: list[str] = []
    rule = Stable(window=1, ratio=0.1, deadline=0.5)
    finished(small(start=rule), 6, validate=scripted([9.0] * 6), watch=Watch(announce=said.append))
    starts = [sentence for sentence in said if sentence.startswith("t' =")]
    assert starts == ["t' = 3: hand-overs may begin"]
    assert sum("t_n = 3" in sentence for sentence in said) == 1
    assert sum("t_r = 3" in sentence for sentence in said) == 1


def test_a_batch_larger_than_the_set_is_one_step_of_all():
    job = finished(small(), 2, batch_size=1000)
    assert job.steps == 1
    assert job.learners["clean"].optimizer.state


# What an objective tells of itself


@dataclass(frozen=True, kw_only=True)
class Friendly(Standard):
    """Spends another number of gradient evaluations each time, as a number or a tensor."""

    kind: type
    calls: list[int] = field(default_factory=list)
    prepared: list[tuple[int, int]] = field(default_factory=list)

    def prepare(self, y: Tensor, classes: int) -> None:
        assert not self.prepared
        self.prepared.append((len(y), classes))
        self.state.register_buffer("seen", torch.zeros(len(y), classes))
        self.state.register_parameter("head", nn.Parameter(torch.ones(3)))

    def losses(self, model: nn.Module, batch: Batch, draws: Any) -> Iterator[Tensor]:
        self.calls.append(1)
        self.state.seen[batch.index, batch.y] += 1  # type: ignore[operator]
        for loss in Standard.losses(self, model, batch, draws):
            yield loss + self.state.get_parameter("head").square().sum()

    def evaluations(self, n: int) -> Tensor | int:
        spent = n + 7 * len(self.calls)
        return torch.tensor(spent) if self.kind is Tensor else spent


def friendly(kind: type) -> Method:
    method: Method = small(every=None).build(THREAT)
    clean = like(Friendly, method.learners["clean"], kind=kind)
    return replace(method, learners={**method.learners, "clean": clean})


@pytest.mark.parametrize("kind", [int, Tensor])
def test_gradient_evaluations_are_those_that_were_spent(kind):
    job = finished(friendly(kind), 2)
    for t, record in enumerate(job.history):
        calls = range(t * STEPS + 1, (t + 1) * STEPS + 1)
        clean, robust = sum(BATCH + 7 * c for c in calls), 3 * STEPS * BATCH
        spent = {name: x["gradient_evaluations"] for name, x in record["learners"].items()}
        assert spent == {"clean": clean, "robust": robust}
        assert record["gradient_evaluations"] == clean + robust
        assert type(record["gradient_evaluations"]) is int


def test_evaluations_of_a_round_survive_an_interruption():
    job = training(friendly(Tensor), 2)
    saved: list[Any] = []
    job.watch = Watch(
        stop=lambda: job.done == 2, save=lambda f: saved.append(through_a_file(job.state_dict()))
    )
    with pytest.raises(Interrupted):
        job.run()
    calls = job.learners["clean"].objective.calls
    job = training(friendly(Tensor), 2)
    job.load_state_dict(saved[-1])
    job.learners["clean"].objective.calls.extend(calls)  # no state of the objective's
    job.run()
    whole = finished(friendly(Tensor), 2)
    assert without_times(job.history) == without_times(whole.history)
    assert torch.equal(
        job.learners["clean"].objective.state.seen, whole.learners["clean"].objective.state.seen
    )


def test_objectives_are_prepared_once_before_the_optimiser():
    model = new_model().train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    job = training(friendly(int), 2, model=model)
    objective = job.learners["clean"].objective
    assert objective.prepared == [(COUNT, 4)]
    assert objective.state.seen.shape == (COUNT, 4)
    trained = job.learners["clean"].optimizer.param_groups[0]["params"]
    assert any(parameter is objective.state.head for parameter in trained)
    assert model.training
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


# Several threats


def several() -> tuple[Method, dict[str, Threat | None]]:
    """Return a method with learners against Linf and L2, and who is against what."""
    learning: dict[str, Any] = {"lr": 0.05, "attack": PGD(steps=1, keep="last")}
    settings = small(
        more={"l2": Adversarial(norm="l2", eps=0.4, **learning)},
        gamma=(0.5,),
        more_gamma={"l2": (0.3,)},
    )
    return settings.build(THREAT), {"clean": None, "robust": THREAT, "l2": L2(0.4)}


def test_a_learner_is_validated_under_its_own_threat_and_the_global_model_under_all():
    method, against = several()
    asked: list[Threat | None] = []

    def validate(model: nn.Module, threat: Threat | None = None) -> dict[str, float]:
        asked.append(threat)
        return constant(model) | {"robust_accuracy": {None: 0.1, THREAT: 0.2}.get(threat, 0.3)}

    job = finished(method, 2, validate=validate)
    assert asked == [*against.values(), None] * 2
    found = {name: x["robust_accuracy"] for name, x in job.history[0]["learners"].items()}
    assert found == {"clean": 0.1, "robust": 0.2, "l2": 0.3}


def validator(*threats: Threat) -> Validator:
    images = blobs(1, 40)
    return Validator(
        x=images.pixels(), y=images.y, threats=threats, attack=PGD(steps=3), batch_size=17
    )


def judged(model: nn.Module, threat: Threat) -> tuple[Tensor, Tensor]:
    """Return which of the images withstand the attack in a threat, and their losses."""
    images = blobs(1, 40)
    x, y = images.pixels(), images.y
    found = []
    for part in torch.arange(40).split(17):
        draws = KeyedDraws.of(x[part], 0)
        adversarial = PGD(steps=3)(model, x[part], y[part], threat, draws=draws)
        found.append(model(adversarial).detach())
    logits = torch.cat(found)
    return logits.argmax(1) == y, nn.functional.cross_entropy(logits, y, reduction="none")


def test_of_several_threats_an_image_withstands_all_and_the_largest_loss_counts():
    threats = Linf(0.06), L2(0.36)
    model = finished(small(every=None), 8).learners["clean"].model.eval()
    robust, losses = zip(*(judged(model, threat) for threat in threats), strict=True)
    assert bool((robust[0] != robust[1]).any())  # else nothing is told apart
    assert bool((losses[0] > losses[1]).any())
    assert bool((losses[0] < losses[1]).any())
    found = validator(*threats)(model)
    assert found["robust_accuracy"] == pytest.approx(
        float((robust[0] & robust[1]).double().mean())
    )
    largest = torch.maximum(*losses).double().mean()
    assert found["robust_loss"] == pytest.approx(float(largest), rel=1e-6)
    for threat, withstood, loss in zip(threats, robust, losses, strict=True):
        alone = validator(*threats)(model, threat)
        assert alone == validator(threat)(model)
        assert alone["robust_accuracy"] == pytest.approx(float(withstood.double().mean()))
        assert alone["robust_loss"] == pytest.approx(float(loss.double().mean()), rel=1e-6)
        assert alone["clean_loss"] == found["clean_loss"]


def test_validation_needs_a_threat():
    with pytest.raises(UserError, match="at least one threat"):
        validator()


# Ending early


def valued(values: list[float], rounds: int = 8, **others: Any) -> Training:
    """Return a training whose global model has these values, a round each."""

    def validate(model: nn.Module, threat: Threat | None = None) -> dict[str, float]:
        accuracy = values[len(job.history)]
        return constant(model) | {"clean_accuracy": accuracy, "robust_accuracy": 0.0}

    job = training(others.pop("method", small(every=None)), rounds, validate=validate, **others)
    return job


RISE = [0.1, 0.5, 0.4, 0.5, 0.3, 0.9, 0.9, 0.9]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("patience", "done"), [(None, 8), (1, 3), (2, 4), (3, 5), (4, 8), (100, 8)]
)
def test_so_many_rounds_without_a_better_one_end_the_training(patience, done):
    said: list[str] = []
    job = valued(RISE, patience=patience, watch=Watch(announce=said.append))
    job.run()
    assert len(job.history) == done
    assert job.over
    assert job.stopped_early == (done < 8)
    assert sum(f"stopped early after round {done} of 8" in s for s in said) == (done < 8)
    assert [r["learners"]["clean"]["lr"] for r in job.history] == [
        r["learners"]["clean"]["lr"] for r in whole_rise().history[:done]
    ]


@lru_cache
def whole_rise() -> Training:
    job = valued(RISE)
    job.run()
    return job


def test_a_tie_is_nothing_better_though_the_later_round_is_kept():
    job = valued([0.5] * 8, patience=3)
    job.run()
    assert len(job.history) == 4
    assert all(record["kept"] for record in job.history)


@pytest.mark.slow
@pytest.mark.parametrize("stop", [2 * STEPS, 4 * STEPS + 1, 5 * STEPS - 1])
def test_an_early_end_is_the_same_after_an_interruption(stop):
    job = valued(RISE, patience=3)
    steps: list[int] = []
    saved: list[Any] = []
    job.watch = Watch(
        step=steps.append,
        stop=lambda: len(steps) >= stop,
        save=lambda f: saved.append(through_a_file(job.state_dict())),
    )
    with pytest.raises(Interrupted):
        job.run()
    again = valued(RISE, patience=3)
    again.load_state_dict(saved[-1])
    again.run()
    assert len(again.history) == 5
    assert again.stopped_early
    whole = valued(RISE, patience=3)
    whole.run()
    assert same(weights_of(again), weights_of(whole))
    again.run()  # it is at its end
    assert len(again.history) == 5


def test_patience_waits_for_the_first_hand_over_and_for_the_branch():
    late = valued([0.5] * 8, method=small(start=Fixed(round=4)), patience=2)
    late.run()
    assert len(late.history) == 6
    never = valued([0.5] * 8, method=small(start=Threshold(threshold=1e-9)), patience=2)
    never.run()
    assert len(never.history) == 8
    control = valued([0.5] * 8, method=small(start=Never()), patience=2)
    control.run()
    assert len(control.history) == 3
    parted = valued([0.5] * 8, method=branched("mixed", 3), patience=2)
    parted.run()
    assert len(parted.history) == 6


# As a job

TINY = {"limit": 120, "batch_size": 16, "width": 0.25, "validation_attack": "pgd-1"}


def test_a_job_that_ended_early_says_so_and_is_finished(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(ending.RULES, "robust", ("the script's", lambda metrics: 0.5))
    given = {"method": "pgd-at", "rounds": 6, "keep": "robust", "patience": 2}
    recipe = parse(given | TINY | {"robust": {"attack": {"steps": 2}}})
    run = train(recipe, tmp_path / "run", console=Console())
    summary = run.read_json("summary.json")
    assert summary["stopped_early"] is True
    assert summary["rounds"] == 3
    assert summary["kept_round"] == 3
    assert "stopped early after round 3 of 6" in capsys.readouterr().err
    before = {path.name: path.read_bytes() for path in run.path.iterdir()}
    resume(run.path, console=Console())
    assert "is finished: 3 of 6 rounds, stopped early" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in run.path.iterdir()} == before
    (run.path / "summary.json").unlink()  # killed just before its end
    resume(run.path, console=Console())
    assert run.read_json("summary.json") == summary
    read = read_run(run.path)
    assert read.summary["stopped_early"]
    assert "round 3 of 3 (stopped early; 6 were planned)" in kept(read)


def test_patience_without_anything_to_wait_for_is_refused():
    with pytest.raises(UserError, match=r"patience=2 .* keep=last"):
        parse({"method": "pgd-at", "keep": "last", "patience": 2} | TINY)


def three_threats(attack: str) -> Any:
    tiny = {"attack": {"steps": 1}}
    settings = SCHEDULED | {
        "rounds": 2,
        "robust": {"norm": "l2", "eps": 0.5, **tiny},
        "more": {"linf": {"objective": "pgd-at", **tiny}},
        "more_gamma": {"linf": [0.2]},
        "gamma": [0.6],
    }
    return parse(settings | TINY | {"validation_attack": attack})


def test_a_job_validates_under_the_threats_of_its_learners(tmp_path, capsys):
    run = train(three_threats("pgd-1"), tmp_path / "run", console=Console())
    config = run.read_json("config.json")
    assert config["threat"] == {"norm": "linf", "eps": 0.15}
    assert config["threats"] == [config["threat"], {"norm": "l2", "eps": 0.5}]
    said = capsys.readouterr().err
    assert "clean on clean images, robust L2(0.5), linf Linf(0.15)" in said
    plain = train(parse({"method": "standard", "rounds": 1} | TINY), tmp_path / "plain")
    assert "threats" not in plain.read_json("config.json")


def test_the_validation_attack_must_be_defined_for_all_threats(tmp_path):
    with pytest.raises(UserError, match="cw-inf-2 is defined for linf, not l2"):
        train(three_threats("cw-inf-2"), tmp_path / "run")
    assert not (tmp_path / "run").exists()
