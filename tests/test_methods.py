"""The contract of every method: it trains, resumes bit for bit, and reports the loss it says."""

import io
import math
from collections.abc import Iterator
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from blobs import SCHEDULED
from equipoise import data, models
from equipoise.cli.listing import write_catalogue, write_settings
from equipoise.data import Images
from equipoise.execution import Execution, fast
from equipoise.jobs.train import train
from equipoise.models.core import Classifier
from equipoise.objectives import Objective
from equipoise.settings.explanation import explain, price
from equipoise.settings.methods import METHODS, learners
from equipoise.settings.recipe import Recipe, parse
from equipoise.store.runs import Run
from equipoise.threat import Linf
from equipoise.training import Interrupted, Training, Watch

BATCH, ROUNDS = 25, 2
SHORT = {"attack.steps": 2}
QUICK: dict[str, dict[str, Any]] = {
    "standard": {},
    "corrupted": {},
    "yopo": {"replays": 2, "attack": {"steps": 2}},
    "sat": {"onset": 0.3, "attack": {"steps": 2}},
    "generalist": {"attack": {"steps": 2}, "every": 1, "horizon": 1.25},
    "a3gt": {"attack": {"steps": 2}, "horizon": 1.25},
    "a3gt-paper": {"attack": {"steps": 2}, "every": 1, "horizon": 1.25, "start": 1},
}
THREE = SCHEDULED | {
    "robust": {"objective": "trades", "attack": {"steps": 2}},
    "more": {"l2": {"objective": "mart", "norm": "l2", "eps": 0.5, "attack": {"steps": 2}}},
    "gamma": [1, 0.4],
    "more_gamma": {"l2": [0, 0.3]},
    "every": 1,
    "horizon": 1.25,
}
ALL = [*METHODS, "three"]
CLEAN = ("standard", "corrupted")  # without an attack
FEWEST = {"a3gt": 2}  # rounds, of methods that need more than one


class Plain(Classifier):
    """A network without BatchNorm."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, 6, 3, stride=2, padding=1)
        self.linear = nn.Linear(6 * 16, 10)

    def stem(self, x: Tensor) -> Tensor:
        return self.conv(x - 0.5)

    def trunk(self, h: Tensor) -> Tensor:
        return self.linear(F.relu(h).flatten(1))


def recipe(method: str, **more: Any) -> Recipe:
    given = dict(THREE) if method == "three" else {"method": method}
    given |= QUICK.get(method, {} if method == "three" else {"attack": {"steps": 2}})
    return parse(given | {"rounds": ROUNDS} | more)


def images(channels: int = 1, count: int = 110) -> Images:
    some = data.load("digits").train.take(slice(0, count))
    return Images(some.x.repeat(1, channels, 1, 1), some.y)


def new_model(kind: str, channels: int) -> nn.Module:
    torch.manual_seed(0)
    if kind == "plain":
        return Plain(channels)
    settings = {"channels": channels, "size": (8, 8), "classes": 10, "width": 0.25}
    settings |= {"mean": [0.5] * channels, "std": [0.5] * channels}
    return models.build("small-cnn", settings)


def constant(model: nn.Module, threat: object = None) -> dict[str, float]:
    del model, threat
    names = ("clean_accuracy", "robust_accuracy", "clean_loss", "robust_loss")
    return dict.fromkeys(names, 0.5)


def training(given: Recipe, kind: str = "small-cnn", channels: int = 1, **more: Any) -> Training:
    with torch.random.fork_rng([]):
        model = new_model(kind, channels)
    usual: dict[str, Any] = {
        "method": given.settings.build(Linf(0.1)),
        "model": model,
        "images": images(channels),
        "rounds": given.rounds,
        "batch_size": BATCH,
        "seed": 0,
        "validate": constant,
        "value": lambda m: m["clean_accuracy"],
        "execution": Execution(precision="float32"),
    }
    return Training(**usual | more)


def weights(job: Training) -> list[Tensor]:
    states = [learner.state for learner in job.learners.values()] + [job.merged_state()]
    return [value.clone() for state in states for value in state.values()]


def through_a_file(state: Any) -> Any:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.slow
@pytest.mark.parametrize("method", ALL)
def test_trains_two_rounds_on_digits_by_its_name(method, tmp_path):
    more = {"width": 0.25, "limit": 250, "validation": 40, "batch_size": BATCH}
    given = recipe(method, data="digits", validation_attack="pgd-2", keep="last", **more)
    run = train(given, tmp_path / "run")
    summary = run.read_json("summary.json")
    assert summary["finished"]
    model = Run.open(tmp_path / "run").model()
    assert all(torch.isfinite(p).all() for p in model.parameters())
    lines = (tmp_path / "run" / "log.jsonl").read_text().splitlines()
    assert len(lines) == ROUNDS
    assert parse({**given.to_dict(), "data": "digits"}).settings == given.settings


@pytest.mark.slow
@pytest.mark.parametrize("method", ALL)
def test_stopped_in_a_round_and_resumed_it_ends_with_the_same_bits(method):
    given = recipe(method)
    whole = training(given)
    whole.run()
    seen = []

    def stop() -> bool:
        seen.append(1)
        return len(seen) == 6  # in the second round

    saved: list[Any] = []
    first = training(given, watch=Watch(stop=stop, save=lambda done: saved.append(first)))
    with pytest.raises(Interrupted):
        first.run()
    second = training(given)
    second.load_state_dict(through_a_file(first.state_dict()))
    second.run()
    assert all(torch.equal(a, b) for a, b in zip(weights(whole), weights(second), strict=True))
    for name in whole.learners:
        states = [job.learners[name].objective.state.state_dict() for job in (whole, second)]
        state, other = states
        tensors = [(v, other[k]) for k, v in state.items() if isinstance(v, Tensor)]
        assert all(torch.equal(a, b) for a, b in tensors)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", ["small-cnn", "plain"])
@pytest.mark.parametrize("method", ALL)
def test_channels_and_models_without_batchnorm(method, kind, channels):
    job = training(recipe(method), kind, channels)
    before = weights(job)
    job.run()
    after = weights(job)
    assert all(torch.isfinite(value).all() for value in after)
    assert any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize("method", [name for name in ALL if name not in (*CLEAN, "three")])
def test_bfloat16_is_close_to_float32(method):
    losses = {}
    for precision in ("float32", "bfloat16"):
        given = recipe(method, rounds=FEWEST.get(method, 1))
        job = training(given, execution=Execution(precision=precision))
        job.run()
        losses[precision] = job.history[-1]["learners"]["robust"]["loss"]
        assert all(torch.isfinite(value).all() for value in weights(job))
        assert all(v.dtype != torch.bfloat16 for v in job.learners["robust"].state.values())
    assert losses["bfloat16"] == pytest.approx(losses["float32"], rel=0.05)


class Watched:
    """Notes what goes into an objective and what comes out of it."""

    def __init__(self, inner: Objective) -> None:
        self.inner = inner
        self.first: list[float] = []
        self.orders: list[Tensor] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def losses(self, model: nn.Module, batch: Any, draws: Any) -> Iterator[Tensor]:
        x, y, index = batch.x.clone(), batch.y.clone(), batch.index.clone()
        for number, loss in enumerate(self.inner.losses(model, batch, draws)):
            if number == 0:
                self.first.append(float(loss.detach()))
            yield loss
        assert torch.equal(batch.x, x)
        assert torch.equal(batch.y, y)
        assert torch.equal(batch.index, index)
        self.orders.append(index)


@pytest.mark.parametrize("method", ALL)
def test_the_batch_is_left_alone_and_the_loss_is_the_one_reported(method):
    job = training(recipe(method, rounds=FEWEST.get(method, 1)))
    watched = {}
    for name, learner in job.learners.items():
        learner.objective = watched[name] = Watched(learner.objective)  # type: ignore[assignment]
    job.run()
    pool = images()
    for name, seen in watched.items():
        (reported,) = (r["learners"][name]["loss"] for r in job.history if name in r["learners"])
        assert reported == pytest.approx(sum(seen.first) / len(seen.first), rel=1e-5)
        order = torch.cat(seen.orders)
        leader = job.method.leader(name, next(iter(watched)))
        drawn = job.learners[leader or name].order
        assert torch.equal(order, drawn[: len(order)])
        assert len(order) == len(pool) // BATCH * BATCH


@pytest.mark.parametrize("method", ALL)
def test_the_evaluations_that_are_logged_are_those_that_were_made(method):
    job = training(recipe(method, rounds=FEWEST.get(method, 1)))
    counted = dict.fromkeys(job.learners, 0)

    def count(name: str, model: nn.Module) -> None:
        def after(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            if output.requires_grad:
                counted[name] += len(output)

        model.register_forward_hook(after)

    job.learners = {name: job.learners[name] for name in job.learners}
    for name, learner in job.learners.items():
        count(name, learner.model)
        # A model with hooks is looked at once, with gradients, before a form of it is searched.
        fast(learner.model, images(1).pixels(slice(BATCH)), learner.execution)
        counted[name] = 0
    job.run()
    if method == "yopo":  # it goes through stem and trunk, not through forward
        counted = {"robust": 2 * job.steps * BATCH}
    logged = sum(record["gradient_evaluations"] for record in job.history)
    assert logged == sum(counted.values())


@pytest.mark.parametrize("objective", [name for name in learners() if name not in CLEAN])
def test_statistics_are_estimated_with_any_objective(objective):
    given = SCHEDULED | {"robust": {"objective": objective, "attack": {"steps": 2}}}
    more = {"batchnorm": "estimate", "rounds": 2, "start": 1, "every": 1, "gamma": [0.5]}
    job = training(parse(given | more))
    job.run()
    assert all(torch.isfinite(value).all() for value in weights(job))


@pytest.mark.parametrize("method", METHODS)
def test_explained_with_its_numbers(method):
    given = recipe(method, eps=8 / 255)
    text = "\n".join(explain(given))
    assert METHODS[method].paper in text
    assert f"{given.rounds} rounds" in text
    if method not in CLEAN:
        assert "8/255" in text
        changed = recipe(method, eps=4 / 255)
        assert "4/255" in "\n".join(explain(changed))
    built = given.settings.build(Linf(8 / 255))
    for objective in built.learners.values():
        assert all(line in text for line in objective.formula())
    total = built.cost(2)
    if built.trunk is None:
        assert total == sum(o.cost for o in built.learners.values())
    assert f"{total:g} gradient evaluation{'s' * (total > 1)} an image" in text


def test_the_catalogue_says_what_a_user_needs(capsys):
    write_catalogue("methods")
    shown = capsys.readouterr().out
    for name, row in METHODS.items():
        assert name in shown
        assert row.paper.split(",")[0] in shown
        assert math.isfinite(price(name))
    assert price("trades") == 12
    assert price("yopo") == 5
    write_settings("trades")
    shown = capsys.readouterr().out
    for word in ("beta", "label_smoothing", "lr_factors", "horizon", "awp", "objective: trades"):
        assert word in shown


def test_three_learners_with_one_weight_zero_are_two():
    usual = SCHEDULED | {"rounds": 3, "horizon": 1.25, "every": 1, "start": 1}
    two = training(parse(usual))
    given = {"more": {"l2": {"norm": "l2", "eps": 0.5}}, "more_gamma": {"l2": [0]}}
    three = training(parse(usual | given))
    two.run()
    three.run()
    for key, value in two.merged_state().items():
        assert torch.equal(value, three.merged_state()[key])
    for name in ("clean", "robust"):
        for key, value in two.learners[name].state.items():
            assert torch.equal(value, three.learners[name].state[key])
    initial = deepcopy(training(parse(usual)).merged_state())
    assert any(not torch.equal(value, initial[key]) for key, value in two.merged_state().items())
