"""Catastrophic overfitting: told from what only looks like it, announced, and taken back."""

import json
from copy import deepcopy
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from blobs import (
    BATCH,
    STEPS,
    THREAT,
    blobs,
    constant,
    new_model,
    same,
    through_a_file,
    training,
    weights_of,
    without_times,
)
from equipoise import data, models
from equipoise.attacks import PGD
from equipoise.data import Images
from equipoise.draws import KeyedDraws
from equipoise.execution import Execution
from equipoise.jobs import train as job_module
from equipoise.jobs import training_job
from equipoise.objectives import Batch
from equipoise.objectives.adversarial import Adversarial
from equipoise.objectives.standard import Standard
from equipoise.objectives.trades import TRADES
from equipoise.objectives.yopo import YOPO
from equipoise.settings.recipe import parse
from equipoise.terminal.progress import round_line
from equipoise.threat import Linf
from equipoise.training import (
    Interrupted,
    Knots,
    Merge,
    Method,
    Never,
    Probe,
    Training,
    Watch,
)
from equipoise.training.collapse import collapse, warnings
from naive import bound

FAST = PGD(steps=1, step_factor=1, start="zero", keep="last")

# The rule


def alarms(series: list[tuple[float, float]], chance: float = 0.1) -> list[int]:
    """Return the rounds of collapse in a series of accuracies: under PGD, on its own inputs."""
    history: list[dict[str, Any]] = []
    found = []
    for t, (probe, own) in enumerate(series, 1):
        now = {"probe": probe, "probe_own": own}
        if collapse(history, "robust", now, chance) is not None:
            found.append(t)
        history.append({"round": t, "learners": {"robust": now}})
    return found


@pytest.mark.parametrize(
    ("series", "expected"),
    [
        ([(0.23, 0.42), (0.06, 0.47), (0.02, 0.45)], [2]),  # measured: FGSM, see below
        ([(0.5, 0.6), (0.6, 0.7), (0.29, 0.9)], [3]),
        ([(0.5, 0.6), (0.6, 0.7), (0.31, 0.9)], []),
        ([(0.5, 0.6), (0.1, 0.9), (0.4, 0.6), (0.1, 0.9)], [2, 4]),  # recovered between
        ([(0.5, 0.6), (0.1, 0.9), (0.2, 0.9), (0.0, 0.9)], [2]),  # once, as long as it lasts
        ([(0.5, 0.6), (0.2, 0.35)], []),  # its own attack breaks it, too
        ([(0.5, 0.6), (0.1, 0.35)], [2]),  # less than PGD does
        ([(0.28, 0.39), (0.15, 0.24), (0.0, 0.01)], []),  # measured: diverged
        ([(0.14, 0.4), (0.0, 0.9)], []),  # never above chance
        ([(0.16, 0.4), (0.07, 0.5)], [2]),
        ([(0.2, 0.0), (0.05, 0.5)], []),
        ([(0.0, 0.9)], []),  # nothing to compare with
        ([], []),
    ],
)
def test_collapse_is_told_from_noise(series, expected):
    assert alarms(series) == expected


def test_one_answer_for_all_is_no_robustness_to_be_lost():
    # 0.3 of the images are of one class: that is what a constant answer withstands.
    assert alarms([(0.3, 0.3), (0.1, 0.5)], chance=0.3) == []
    probe = Probe(x=torch.zeros(10, 1, 2, 2), y=torch.tensor([0, 0, 0, 1, 1, 2, 3, 4, 5, 6]))
    assert probe.chance == pytest.approx(0.3)


def test_rounds_without_a_probe_do_not_count():
    now = {"probe": 0.1, "probe_own": 0.9}
    history = [
        {"round": 1, "learners": {"robust": {"probe": 0.6, "probe_own": 0.6}}},
        {"round": 2, "learners": {"robust": {}}},
        {"round": 3, "learners": {"clean": {}}},
    ]
    fall = collapse(history, "robust", now, 0.1)
    assert fall == now | {"best": 0.6, "best_own": 0.6, "best_round": 1}
    assert collapse(history, "clean", now, 0.1) is None


# The probe


def test_the_probe_is_pgd_20_and_the_learners_own_attack_on_the_same_draws():
    model, images = new_model(), blobs(1, 24)
    x, y = images.pixels(), images.y
    objective = bound(Adversarial, THREAT, attack=PGD(steps=1, keep="last"))
    model.train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    found = Probe(x=x, y=y)(model, objective, 0.5)
    assert model.training
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert found == Probe(x=x, y=y)(model, objective, 0.5)
    model.eval()
    for key, attack in (("probe", PGD(steps=20)), ("probe_own", objective.attack)):
        adversarial = attack(model, x, y, THREAT, draws=KeyedDraws.of(x))
        expected = float((model(adversarial).argmax(1) == y).double().mean())
        assert found[key] == pytest.approx(expected)


class Scripted:
    """A probe that finds what a script says, by round and by how often it was strengthened."""

    chance = 0.25

    def __init__(self, rounds: int, script: dict[int, dict[int, tuple[float, float]]]) -> None:
        self.rounds, self.script = rounds, script
        self.asked: list[int] = []

    def __call__(self, model: nn.Module, objective: Any, progress: float) -> dict[str, float]:
        t = int(progress * self.rounds) + 1
        self.asked.append(t)
        probe, own = self.script.get(objective.level, {}).get(t, (0.6, 0.7))
        return {"probe": probe, "probe_own": own}


def weak(attack: PGD = FAST, **others: Any) -> Method:
    """Return adversarial training with one step, beside a clean learner."""
    learners = {
        "clean": bound(Standard, THREAT, **SGD),
        "robust": bound(Adversarial, THREAT, attack=attack, **SGD),
    }
    knots = {"clean": Knots((0.5,)), "robust": Knots((0.5,))}
    usual: dict[str, Any] = {"horizon": 2.5, "every": None, "start": Never()}
    return Method(learners=learners, knots=knots, merge=Merge(**usual | others))


LOW = (0.05, 0.9)
SGD: dict[str, Any] = {"lr": 0.05, "lr_factors": (1.0, 0.3), "lr_at": None}
ROUNDS = 4


def scripted(
    script: dict[int, dict[int, tuple[float, float]]], *, rounds: int = ROUNDS, **others: Any
) -> Training:
    usual: dict[str, Any] = {"on_collapse": "rollback", "probe": Scripted(rounds, script)}
    return training(weak(), rounds, **usual | others)


@pytest.mark.parametrize("kind", [TRADES, YOPO, Adversarial])
def test_the_probe_looks_at_attacked_images_alone(kind):
    start = {"start": "noise"} if kind is TRADES else {}
    objective = bound(kind, THREAT, attack=PGD(steps=1, keep="last", **start))
    images, model = blobs(1, 24), new_model().eval()
    probe = Probe(x=images.pixels(), y=images.y)
    found = probe(model, objective, 0.5)
    batch = Batch(probe.x, probe.y, torch.zeros_like(probe.y), 0.5)
    with torch.no_grad():  # as where statistics are estimated
        x_adv = objective.attacked(model, batch, KeyedDraws.of(probe.x, 0))
        own = float((model(x_adv).argmax(1) == probe.y).double().mean())
    assert found["probe_own"] == own
    assert bool((x_adv != probe.x).flatten(1).any(1).all())


def test_several_starts_of_one_step_are_weak_too():
    several = bound(Adversarial, THREAT, attack=PGD(steps=1, restarts=3, keep="last"))
    assert several.weak(0.5)


@pytest.mark.slow
def test_only_learners_that_may_fool_their_attack_are_probed():
    job = scripted({})
    job.run()
    assert job.probe.asked == [1, 2, 3, 4]
    for record in job.history:
        assert record["learners"]["robust"]["probe"] == 0.6
        assert "probe" not in record["learners"]["clean"]
        assert "probe 60.00%" in round_line(record)
    strong = training(weak(PGD(steps=2, keep="last")), 2, probe=Scripted(2, {}))
    strong.run()
    assert strong.probe.asked == []
    strong.learners["robust"].objective.strengthen()  # it was weak once: watched from then on
    assert strong.learners["robust"].watched(0.5)


def test_probes_count_as_validation_and_change_nothing():
    one, other = scripted({}), scripted({}, probe=None, on_collapse="announce")
    one.run()
    other.run()
    assert same(weights_of(one), weights_of(other))
    assert other.history[0]["learners"]["robust"].keys().isdisjoint({"probe", "probe_own"})


# Announcing


def test_a_collapse_is_announced_once_and_recorded():
    said: list[str] = []
    script = {0: {2: LOW, 3: LOW}}
    job = scripted(script, on_collapse="announce", watch=Watch(warn=said.append))
    job.run()
    (sentence,) = said
    assert sentence.startswith("catastrophic overfitting: after round 2 the robust learner")
    for part in ("PGD-20 on 5.0%", "60.0% after round 1", "attack on 90.0%", "on_collapse"):
        assert part in sentence
    assert [sorted(record.get("collapse", {})) for record in job.history] == [
        [],
        ["robust"],
        [],
        [],
    ]
    assert job.history[1]["collapse"]["robust"] == {
        "probe": 0.05,
        "probe_own": 0.9,
        "best": 0.6,
        "best_own": 0.7,
        "best_round": 1,
    }
    assert warnings(job.history) == said
    assert "collapsed" in round_line(job.history[1])
    assert job.sound is None  # no copy of the state where none is asked for
    json.dumps(job.history)


def test_in_the_first_round_there_is_nothing_to_go_back_to():
    said: list[str] = []
    job = scripted({0: {1: LOW}}, watch=Watch(warn=said.append))
    job.run()
    assert said == []
    assert not any("rollbacks" in record for record in job.history)


# Going back


def test_a_rollback_restores_everything_and_goes_on_with_more_steps():
    job = scripted({0: {3: LOW}})
    ends: list[dict[str, Any]] = []
    begins: list[dict[str, Any]] = []

    def look(images: int) -> None:
        if images < 0:
            begins.append(deepcopy(job.state_dict()))

    steps: list[int] = []
    job.watch = Watch(
        step=lambda images: (steps.append(images), look(images)),
        save=lambda finished_round: ends.append(deepcopy(job.state_dict())),
    )
    job.run()
    (begin,) = begins
    end = ends[1]  # of round 2
    for name in ("clean", "robust"):
        one, other = begin["learners"][name], end["learners"][name]
        for key, value in other["model"].items():
            assert torch.equal(one["model"][key], value), key
        for key, value in other["share"]["parts"].items():
            assert torch.equal(one["share"]["parts"][key], value), key
        for index, held in other["optimizer"]["state"].items():
            found = one["optimizer"]["state"][index]["momentum_buffer"]
            assert torch.equal(found, held["momentum_buffer"])
        assert not torch.equal(one["generator"], other["generator"])
    assert begin["done"] == 0
    assert begin["history"] == end["history"]
    assert job.learners["robust"].objective.level == 1
    assert job.learners["robust"].objective.stronger.steps == 2
    assert job.learners["clean"].objective.level == 0
    assert sum(steps) == ROUNDS * STEPS * BATCH
    assert min(steps) == -STEPS * BATCH


def test_what_was_lost_is_counted_and_named():
    said: list[str] = []
    job = scripted({0: {3: LOW}}, watch=Watch(warn=said.append))
    job.run()
    images = STEPS * BATCH
    spent = [record["learners"]["robust"]["gradient_evaluations"] for record in job.history]
    assert spent == [2 * images, 2 * images, (2 + 3) * images, 3 * images]
    clean = [record["learners"]["clean"]["gradient_evaluations"] for record in job.history]
    assert clean == [images, images, 2 * images, images]
    assert [record["gradient_evaluations"] for record in job.history] == [
        a + b for a, b in zip(spent, clean, strict=True)
    ]
    (back,) = job.history[2]["rollbacks"]
    assert back["to"] == 2
    assert back["learners"]["robust"]["probe"] == 0.05
    assert back["gradient_evaluations"] == {"clean": images, "robust": 2 * images}
    assert back["measures"] == {"robust": "the inner attack takes 2 steps from here on"}
    for key, seconds in back["seconds"].items():
        assert 0 < seconds <= job.history[2]["seconds"][key] or key == "validation"
    assert "trained again" in round_line(job.history[2])
    assert len(said) == 1
    assert "back to round 2: the inner attack takes 2 steps" in said[0]
    (kept,) = warnings(job.history)
    assert "trained again from round 2 on: the inner attack takes 2 steps" in kept
    assert not any("rollbacks" in job.history[t] for t in (0, 1, 3))
    json.dumps(job.history)


@dataclass(frozen=True, kw_only=True)
class Remembering(Adversarial):
    """Remembers the positions of the images that it is given."""

    orders: list[Tensor] = field(default_factory=list)

    def losses(self, model: nn.Module, batch: Batch, draws: Any) -> Any:
        self.orders.append(batch.index.clone())
        yield from Adversarial.losses(self, model, batch, draws)


def test_the_round_is_not_repeated_as_it_was():
    method = weak()
    objective = bound(Remembering, THREAT, attack=FAST, **SGD)
    changed = replace(method, learners={**method.learners, "robust": objective})
    probe = Scripted(3, {0: {2: LOW}, 1: {2: LOW}})
    training(changed, 3, probe=probe, on_collapse="rollback").run()
    orders = [
        tuple(torch.cat(objective.orders[t * STEPS : (t + 1) * STEPS]).tolist()) for t in range(5)
    ]
    assert len(set(orders)) == 5  # round 1, round 2 three times, round 3


def test_three_rollbacks_are_the_most():
    said: list[str] = []
    script = {level: dict.fromkeys(range(2, 7), LOW) for level in range(9)}
    job = scripted(script, rounds=5, watch=Watch(warn=said.append))
    job.run()
    assert [len(record.get("rollbacks", ())) for record in job.history] == [0, 3, 0, 0, 0]
    assert job.learners["robust"].objective.level == 3
    assert job.learners["robust"].objective.stronger.steps == 8
    assert job.history[1]["collapse"].keys() == {"robust"}
    assert len(said) == 4
    assert "on_collapse" in said[-1]
    assert len(warnings(job.history)) == 4


def test_rollbacks_of_several_rounds_are_counted_together():
    script = {0: {2: LOW}, 1: {3: LOW}, 2: {4: LOW}, 3: {5: LOW}}
    job = scripted(script, rounds=5)
    job.run()
    assert [len(record.get("rollbacks", ())) for record in job.history] == [0, 1, 1, 1, 0]
    assert "collapse" in job.history[4]


def untimed(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return records without the seconds, also of what was taken back."""
    records = without_times(deepcopy(history))
    for record in records:
        for back in record.get("rollbacks", ()):
            del back["seconds"]
    return records


@pytest.mark.slow
@pytest.mark.parametrize("stops", [(2 * STEPS + 1,), (3 * STEPS,), (3 * STEPS + 2,), (5, 9, 14)])
def test_interrupted_in_a_round_that_collapses_the_bits_are_the_same(stops):
    script = {0: {3: LOW}, 1: {4: LOW}}
    whole = scripted(script)
    whole.run()
    assert [len(record.get("rollbacks", ())) for record in whole.history] == [0, 0, 1, 1]
    job, steps, saved = scripted(script), 0, []

    def count(images: int) -> None:
        nonlocal steps
        steps += images > 0

    for stop in stops:
        job.watch = Watch(
            step=count,
            stop=lambda stop=stop: steps >= stop,
            save=lambda finished, job=job: saved.append(through_a_file(job.state_dict())),
        )
        with pytest.raises(Interrupted):
            job.run()
        job = scripted(script)  # another process
        job.load_state_dict(saved[-1])
    job.watch = Watch(step=count)
    job.run()
    assert steps == 6 * STEPS
    assert same(weights_of(job), weights_of(whole))
    assert untimed(job.history) == untimed(whole.history)
    assert job.learners["robust"].objective.level == 2


def test_a_lost_process_goes_back_as_it_would_have():
    # Killed right after the rollback, before anything was saved: the last state is of round 2.
    script = {0: {3: LOW}}
    states: list[Any] = []
    whole = scripted(script)
    whole.watch = Watch(save=lambda finished: states.append(through_a_file(whole.state_dict())))
    whole.run()
    job = scripted(script)
    job.load_state_dict(states[1])
    job.run()
    assert same(weights_of(job), weights_of(whole))
    assert untimed(job.history) == untimed(whole.history)


# A true collapse: a single step of FGSM on digits of 16 x 16 pixels


@lru_cache
def digits(scale: int) -> tuple[Images, Images]:
    """Return the digits, enlarged: those to train on, and 128 held out."""
    every = data.load("digits").train
    x = nn.functional.interpolate(every.pixels(), scale_factor=scale, mode="bilinear")
    images = Images((x * 255).round().to(torch.uint8), every.y)
    return images.take(slice(128, None)), images.take(slice(0, 128))


def trained(model: nn.Module, attack: PGD, lr: Knots, **others: Any) -> Training:
    """Train against an attack on digits, of 16 x 16 pixels and within 0.21 unless told."""
    scale, eps = others.pop("scale", 2), others.pop("eps", 0.21)
    train, held_out = digits(scale)
    sgd = {"lr": 1.0, "lr_factors": lr.values, "lr_at": lr.at}
    objective = bound(Adversarial, Linf(eps), attack=attack, **sgd)
    usual: dict[str, Any] = {
        "method": Method(
            learners={"robust": objective},
            knots={"robust": Knots((1.0,))},
            merge=Merge(horizon=0.0, every=None, start=Never()),
        ),
        "model": deepcopy(model),
        "images": train,
        "rounds": 4,
        "batch_size": 32,
        "seed": 0,
        "validate": constant,
        "value": lambda metrics: 0.0,
        "execution": Execution(precision="float32"),
        "probe": Probe(x=held_out.pixels(), y=held_out.y),
    }
    job = Training(**usual | others)
    job.run()
    return job


def initial(side: int) -> nn.Module:
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        return models.build("small-cnn", {"channels": 1, "size": (side, side), "classes": 10})


@pytest.fixture(scope="module")
def robust_model():
    """A model that was trained against several steps: robust, as far as this goes."""
    several, lr = PGD(steps=4, keep="last"), Knots((0.01, 0.1, 0.05))
    job = trained(initial(16), several, lr, rounds=9, batch_size=64)
    assert "probe" not in job.history[0]["learners"]["robust"]
    return job.learners["robust"].model


def probes(job: Training) -> list[float]:
    return [record["learners"]["robust"]["probe"] for record in job.history]


@pytest.mark.slow
def test_fgsm_collapses_and_a_rollback_saves_it(robust_model):
    said: list[str] = []
    watch = Watch(warn=said.append)
    lost = trained(robust_model, FAST, Knots((0.05,)), watch=watch)
    assert said
    assert min(probes(lost)[1:]) < 0.1 < max(probes(lost))
    own = [record["learners"]["robust"]["probe_own"] for record in lost.history]
    assert min(own) > 0.3  # it would seem to learn

    saved = trained(robust_model, FAST, Knots((0.05,)), on_collapse="rollback")
    assert sum(len(record.get("rollbacks", ())) for record in saved.history) >= 1
    assert min(probes(saved)) > 0.15
    assert sum(probes(saved)[1:]) > 2 * sum(probes(lost)[1:])  # one round alone varies


@pytest.mark.slow
@pytest.mark.parametrize("lr", [0.05, 0.2])
def test_an_honest_single_step_raises_no_alarm(lr):
    said: list[str] = []
    settings: dict[str, Any] = {"scale": 1, "eps": 0.15, "rounds": 8}
    job = trained(initial(8), FAST, Knots((lr,)), watch=Watch(warn=said.append), **settings)
    assert max(probes(job)) > 0.45
    assert said == []
    assert warnings(job.history) == []


# In a run folder


def test_a_run_folder_tells_of_a_collapse(tmp_path, monkeypatch, capsys):
    class Falling(Probe):
        def __call__(self, model: nn.Module, objective: Any, progress: float) -> Any:
            assert len(self.y) <= 256
            low = progress > 1 / 3 and objective.level == 0
            return dict(zip(("probe", "probe_own"), LOW if low else (0.6, 0.7), strict=True))

    monkeypatch.setattr(training_job, "Probe", Falling)
    given = {"method": "pgd-at", "limit": 120, "batch_size": 16, "rounds": 3, "width": 0.25}
    settings = {"robust": {"attack": {"steps": 1}}, "validation_attack": "pgd-1"}
    console = job_module.Console()
    console.quiet = True
    for mode in ("announce", "rollback"):
        recipe = parse(given | settings | {"on_collapse": mode})
        run = job_module.train(recipe, tmp_path / mode, console=console)
        summary = run.read_json("summary.json")
        (warning,) = summary["warnings"]
        assert warning.startswith("catastrophic overfitting: after round 2 the robust learner")
        lines = (run.path / "log.jsonl").read_text().splitlines()
        record = json.loads(lines[1])
        assert ("collapse" in record) == (mode == "announce")
        assert ("rollbacks" in record) == (mode == "rollback")
        total = sum(json.loads(line)["gradient_evaluations"] for line in lines)
        assert summary["gradient_evaluations"] == total
        assert "WARNING: catastrophic" in capsys.readouterr().err
