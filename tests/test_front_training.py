"""a3gt: a trunk that parts into a robust branch and a clean one that follows it."""

from copy import deepcopy
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from blobs import (
    BATCH,
    STEPS,
    THREAT,
    State,
    finished,
    measured,
    same,
    through_a_file,
    training,
    weights_of,
    without_times,
)
from equipoise.attacks.core import refuse
from equipoise.errors import UserError
from equipoise.objectives import Batch
from equipoise.objectives.adversarial import Adversarial
from equipoise.objectives.friendly import FAT
from equipoise.objectives.gat import GAT
from equipoise.objectives.mixed import Following, Mixed
from equipoise.objectives.robust import inner_attack
from equipoise.objectives.standard import Standard
from equipoise.objectives.trades import TRADES
from equipoise.objectives.yopo import YOPO
from equipoise.settings import recipe
from equipoise.settings.explanation import explain
from equipoise.settings.methods import A3GT, METHODS
from equipoise.store.weight_names import mix
from equipoise.threat import Threat
from equipoise.training import (
    Fixed,
    Interrupted,
    Method,
    Training,
    Watch,
)
from equipoise.training.collapse import Probe, Probes

QUICK = inner_attack(steps=2)


def front(**settings: Any) -> Any:
    """Return settings with short searches that part after round 2."""
    usual = {
        "trunk": Mixed(attack=QUICK),
        "robust": Mixed(weight=0.9, attack=QUICK),
        "clean": Following(weight=0.1),
        "start": Fixed(round=2),
        "horizon": 1.25,
        "gamma": 0.5,
    }
    return METHODS["a3gt"](**(usual | settings))


# What it is


def listening(job: Training) -> dict[str, list[tuple[Batch, Tensor | None]]]:
    """Let the learners of a training note what they are given, and what they found."""
    noted: dict[str, list[tuple[Batch, Tensor | None]]] = {name: [] for name in job.learners}
    for name, learner in job.learners.items():
        step = learner.step

        def noting(batch: Batch, name: str = name, step: Any = step) -> None:
            step(batch)
            noted[name].append((batch, job.learners[name].objective.state.adversarial))

        learner.step = noting  # type: ignore[method-assign]
    return noted


@pytest.mark.slow
def test_the_clean_branch_is_given_the_very_tensors_that_the_robust_one_found():
    job = training(front(), 4)
    noted = listening(job)
    job.run()
    assert len(noted["trunk"]) == len(noted["robust"]) == len(noted["clean"]) == 2 * STEPS
    for (led, found), (batch, own) in zip(noted["robust"], noted["clean"], strict=True):
        assert batch.adversarial is found
        assert batch.x is led.x
        assert batch.y is led.y
        assert own is None
        assert found is not None
        assert THREAT.contains(batch.x, found).all()
        assert not torch.equal(found, batch.x)


def plain_step(model: nn.Module, buffers: list[Tensor], x: Tensor, loss: Any, lr: float) -> None:
    """Take a step of SGD with Nesterov momentum 0.9 and weight decay 5e-4, written out."""
    model.train()
    parameters = list(model.parameters())
    grads = torch.autograd.grad(loss(model(x)), parameters)
    with torch.no_grad():
        for p, g, v in zip(parameters, grads, buffers, strict=True):
            g = g + 5e-4 * p
            v.mul_(0.9).add_(g)
            p.sub_(lr * (g + 0.9 * v))


@pytest.mark.parametrize("weight", [0.0, 0.1])
def test_the_ends_are_those_of_a_loop_written_out(weight):
    method = front(clean=Following(weight=weight)).build(THREAT)
    job = training(method, 4)
    parted: dict[str, Any] = {}

    def announce(sentence: str) -> None:
        if "from the trunk" in sentence:
            for name in ("robust", "clean"):
                learner = job.learners[name]
                momentum = [
                    learner.optimizer.state[p]["momentum_buffer"].clone()
                    for p in learner.model.parameters()
                ]
                average = {k: value.clone() for k, value in learner.share.average.items()}
                parted[name] = deepcopy(learner.model), momentum, average

    job.watch = Watch(announce=announce)
    noted = listening(job)
    job.run()
    for name, w in (("robust", 0.9), ("clean", weight)):
        model, momentum, average = parted[name]
        learner = job.learners[name]
        for step, (batch, _) in enumerate(noted[name], 2 * STEPS):
            found = noted["robust"][step - 2 * STEPS][1]
            assert found is not None
            x = torch.cat((batch.x, found)) if w else batch.x

            def loss(logits: Tensor, batch: Batch = batch, w: float = w) -> Tensor:
                ce = nn.functional.cross_entropy
                clean = ce(logits[: len(batch.y)], batch.y)
                return (1 - w) * clean + w * ce(logits[len(batch.y) :], batch.y) if w else clean

            plain_step(model, momentum, x, loss, learner.lr(step / (4 * STEPS)))
            memory = min(0.8, (step + 1) / (step + 10))
            for key, value in average.items():
                value.mul_(memory).add_((1 - memory) * model.state_dict()[key])
        assert average
        for key, value in average.items():
            ours = learner.merged_part()[key]
            assert torch.allclose(ours, value, rtol=1e-4, atol=1e-5), (name, key)


def test_the_whole_training_is_a_plain_loop_bit_for_bit():
    job = training(front(clean=Following(weight=0.25)), 4)
    start = deepcopy(job.learners["trunk"].model)
    noted = listening(job)
    job.run()

    def optimiser(model: nn.Module) -> torch.optim.SGD:
        sgd = {"momentum": 0.9, "weight_decay": 5e-4, "nesterov": True, "fused": True}
        return torch.optim.SGD(model.parameters(), lr=1.0, **sgd)

    def trained(name: str, w: float, model: nn.Module, sgd: Any, average: State, s: int) -> None:
        leader = "robust" if name == "clean" else name
        for (batch, _), (_, found) in zip(noted[name], noted[leader], strict=True):
            sgd.param_groups[0]["lr"] = job.learners[name].lr(s / (4 * STEPS))
            clean, robust = model.train()(torch.cat((batch.x, found))).chunk(2)
            ce = nn.functional.cross_entropy
            loss = (1 - w) * ce(clean, batch.y) + w * ce(robust, batch.y)
            sgd.zero_grad()
            loss.backward()
            sgd.step()
            memory = min(0.8, (s + 1) / (s + 10))
            for key, value in average.items():
                value.lerp_(model.state_dict()[key], 1 - memory)
            s += 1

    sgd = optimiser(start)
    average = {key: start.state_dict()[key].clone() for key in job.learners["trunk"].share.parts}
    trained("trunk", 0.5, start, sgd, average, 0)
    ends = {}
    for name, w in (("robust", 0.9), ("clean", 0.25)):
        branch = deepcopy(start)
        own = optimiser(branch)
        for here, there in zip(branch.parameters(), start.parameters(), strict=True):
            own.state[here] = deepcopy(sgd.state[there])
        ends[name] = {key: value.clone() for key, value in average.items()}
        trained(name, w, branch, own, ends[name], 2 * STEPS)
        for key, value in branch.state_dict().items():
            assert torch.equal(job.learners[name].state[key], value), (name, key)
    for name, mean in {"trunk": average, **ends}.items():
        part = job.learners[name].merged_part()
        assert all(torch.equal(part[key], value) for key, value in mean.items()), name


@pytest.mark.parametrize("gamma", [0.0, 0.3, 1.0])
def test_the_global_model_is_the_mix_of_the_two_averages(gamma):
    job = training(front(gamma=gamma), 4)
    job.run()
    ends = {name: job.learners[name].merged_part() for name in ("clean", "robust")}
    expected = mix(ends["clean"], ends["robust"], gamma)
    for key, value in job.merged_state().items():
        if value.is_floating_point():
            assert torch.allclose(value, expected[key], atol=1e-6), key
    assert not torch.equal(ends["clean"]["fc1.weight"], ends["robust"]["fc1.weight"])


def test_until_it_parts_the_global_model_is_the_average_of_the_trunk():
    states: list[tuple[State, State]] = []
    job = training(front(), 4)
    job.watch = Watch(
        save=lambda finished: states.append(
            (
                {k: v.clone() for k, v in job.merged_state().items()},
                {k: v.clone() for k, v in job.learners["trunk"].merged_part().items()},
            )
        )
    )
    job.run()
    for world, trunk in states[:2]:
        for key, value in trunk.items():
            if value.is_floating_point():
                assert torch.allclose(world[key], value, atol=1e-6), key
    assert [record["weights"] for record in job.history] == [
        {"trunk": 1.0},
        {"trunk": 1.0},
        {"clean": 0.5, "robust": 0.5},
        {"clean": 0.5, "robust": 0.5},
    ]


# When it parts


@pytest.mark.parametrize(("rule", "parted"), [(Fixed(round=2), 3), (Fixed(fraction=0.5), 4)])
def test_it_parts_in_the_round_after_the_rule_has_spoken(rule, parted):
    job = training(front(start=rule), 6)
    said: list[str] = []
    job.watch = Watch(announce=said.append)
    job.run()
    trained = [sorted(record["learners"]) for record in job.history]
    assert trained == [["trunk"]] * (parted - 1) + [["clean", "robust"]] * (7 - parted)
    assert any(f"round {parted}: " in line and "trunk" in line for line in said)
    assert any("the branches may start" in line for line in said)


def test_a_restarted_schedule_begins_at_the_branch_and_ends_with_the_training():
    schedule = {"lr_factors": (1.0, 0.0), "lr_at": (0.0, 1.0)}
    robust = Mixed(weight=0.9, attack=QUICK, **schedule)  # type: ignore[arg-type]

    def rates(restart: bool) -> list[float]:
        job = training(front(trunk=robust, robust=robust, restart=restart), 4)
        rates: list[float] = []
        step = job.learners["robust"].step

        def noting(batch: Batch) -> None:
            step(batch)
            rates.append(job.learners["robust"].optimizer.param_groups[0]["lr"])

        job.learners["robust"].step = noting  # type: ignore[method-assign]
        job.run()
        return rates

    n = 4 * STEPS
    on = [0.05 * (1 - s / n) for s in range(2 * STEPS, n)]
    anew = [0.05 * (1 - s / (2 * STEPS)) for s in range(2 * STEPS)]
    assert rates(False) == pytest.approx(on)
    assert rates(True) == pytest.approx(anew)


def test_a_round_of_the_trunk_is_not_kept_in_the_place_of_the_front():
    worth = [0.9, 0.8, 0.3, 0.2]  # of the global model, a round each

    def value(metrics: dict[str, float]) -> float:
        return metrics["clean_accuracy"]

    def validate(model: nn.Module, threat: Threat | None) -> dict[str, float]:
        names = ("clean_accuracy", "robust_accuracy", "clean_loss", "robust_loss")
        found = dict.fromkeys(names, 0.5)
        if threat is None and model is not job.learners["clean"].model:
            found["clean_accuracy"] = worth[len(job.history)]
        return found

    job = training(front(), 4, validate=validate, value=value)
    job.run()
    assert [record["kept"] for record in job.history] == [True, False, True, False]


# What a branch takes over, and what stays its own


def test_a_branch_keeps_the_settings_of_its_own_sgd():
    robust = Mixed(weight=0.9, attack=QUICK, momentum=0.5, weight_decay=0.0, nesterov=False)
    job = training(front(robust=robust), 3)
    job.run()
    (group,) = job.learners["robust"].optimizer.param_groups
    assert (group["momentum"], group["weight_decay"], group["nesterov"]) == (0.5, 0.0, False)
    for name in ("trunk", "clean"):
        (group,) = job.learners[name].optimizer.param_groups
        assert (group["momentum"], group["weight_decay"], group["nesterov"]) == (0.9, 5e-4, True)


def test_an_attack_that_was_made_stronger_stays_so_behind_the_branch():
    job = training(front(), 4)
    job.learners["trunk"].objective.strengthen()
    job.run()
    robust = job.learners["robust"].objective
    assert isinstance(robust, Mixed)
    assert robust.level == 1
    assert robust.stronger.steps == 4


def test_a_round_that_is_taken_back_at_the_branch_parts_again(monkeypatch):
    job = training(front(), 4)
    job.on_collapse = "rollback"
    falls = iter([False, False, True])

    def probed(*_: object) -> Probes:
        fallen = {"robust": object()} if next(falls, False) else {}
        return Probes(falls=fallen)  # type: ignore[arg-type]

    monkeypatch.setattr(Probes, "of", probed)
    job.probe = Probe(x=job.images.pixels(), y=job.images.y)
    monkeypatch.setattr("equipoise.training.loop.described", lambda *a: "fooled")
    said: list[str] = []
    job.watch = Watch(announce=said.append)
    job.run()
    assert sum("from the trunk" in line for line in said) == 2
    assert len(job.history) == 4
    assert job.learners["robust"].objective.level == 1
    assert job.learners["trunk"].objective.level == 0


# What it costs


def test_the_search_is_paid_once():
    job = training(front(), 4)
    job.run()
    n = STEPS * BATCH
    spent = [
        {name: x["gradient_evaluations"] for name, x in r["learners"].items()} for r in job.history
    ]
    assert spent[0] == {"trunk": 4 * n}
    assert spent[3] == {"robust": 4 * n, "clean": 2 * n}
    method = front().build(THREAT)
    total = sum(sum(record.values()) for record in spent)
    assert method.cost(4) * 4 * n == total


@pytest.mark.parametrize(
    ("settings", "rounds", "cost"),
    [({}, 4, (2 * 4 + 2 * 6) / 4), ({"clean": Following(weight=0.0)}, 4, 4.5)],
)
def test_the_planned_cost_is_a_mean_over_the_rounds(settings, rounds, cost):
    assert front(**settings).build(THREAT).cost(rounds) == cost


def test_without_a_trunk_the_planned_cost_is_the_sum_over_the_learners():
    method = recipe.parse({"method": "generalist", "data": "digits"}).settings.build(THREAT)
    assert method.cost(30) == sum(o.cost for o in method.learners.values()) == 12


# Going on

RESUMED = [
    front(),
    front(start=Fixed(round=1), restart=True),
    front(gamma=None, trunk=GAT(), more={"l2": Mixed(norm="l2", eps=0.5, attack=QUICK)}),
    front(clean=Mixed(weight=0.1, attack=QUICK), batchnorm="estimate"),
]


@pytest.mark.slow
@pytest.mark.parametrize("index", range(len(RESUMED)))
@pytest.mark.parametrize("stop", [0, 2 * STEPS - 1, 2 * STEPS, 3 * STEPS + 1])
def test_stopped_before_at_and_behind_the_branch_the_bits_are_the_same(index, stop):
    whole = finished(RESUMED[index], 4, validate=measured)
    saved: list[Any] = []
    job = training(RESUMED[index], 4, validate=measured)
    steps: list[int] = []
    job.watch = Watch(
        step=steps.append,
        stop=lambda: len(steps) > stop,
        save=lambda finished: saved.append(through_a_file(job.state_dict())),
    )
    with pytest.raises(Interrupted):
        job.run()
    again = training(deepcopy(RESUMED[index]), 4, validate=measured)
    again.load_state_dict(saved[-1])
    again.run()
    assert same(weights_of(again), weights_of(whole))
    assert without_times(again.history) == without_times(whole.history)


def test_the_average_of_the_trunk_stays_what_it_was_at_the_branch():
    averages: list[State] = []
    job = training(front(), 4)

    def save(finished: bool) -> None:
        part = job.learners["trunk"].merged_part()
        averages.append({name: value.clone() for name, value in part.items()})

    job.watch = Watch(save=save)
    job.run()
    assert same({"trunk": averages[1]}, {"trunk": averages[3]})
    assert not same({"trunk": averages[0]}, {"trunk": averages[1]})


def test_until_gamma_is_chosen_the_global_model_is_the_robust_average():
    job = finished(front(gamma=None), 4)
    robust = job.learners["robust"].merged_part()
    for key, value in job.merged_state().items():
        assert torch.equal(value, robust[key]) or not value.is_floating_point(), key
    assert job.history[-1]["weights"] == {"clean": 0.0, "robust": 1.0}


def test_a_further_branch_starts_from_the_trunk_and_changes_no_other_one():
    l2 = Mixed(norm="l2", eps=0.5, attack=QUICK)
    with_it, without = finished(front(more={"l2": l2}), 4), finished(front(), 4)
    assert sorted(with_it.history[-1]["learners"]) == ["clean", "l2", "robust"]
    assert with_it.history[-1]["weights"]["l2"] == 0.0
    ours, theirs = weights_of(with_it), weights_of(without)
    assert same({name: ours[name] for name in theirs}, theirs)
    assert not torch.equal(ours["l2"]["fc1.weight"], ours["robust"]["fc1.weight"])


# What is refused


@pytest.mark.parametrize(
    ("settings", "rounds", "said"),
    [
        ({"start": Fixed(round=4)}, 4, "set an earlier start"),
        ({"more": {"trunk": Mixed()}}, 4, "needs a name other than trunk, robust, clean, global"),
        ({"gamma": (1.0, 0.4)}, 4, "generalist and a3gt-paper have a schedule of gamma"),
        ({"max_clean_drop": 0.02}, 4, "give only one of gamma, max_clean_drop and min_clean"),
        ({"min_clean": 0.9}, 4, "give only one of"),
        ({"gamma": None, "min_clean": 0.9, "max_clean_drop": 0.02}, 4, "give only one of"),
        ({}, 1, "at least 2"),
        ({"robust": YOPO()}, 4, "robust has no adversarial inputs"),
        ({"robust": Mixed(weight=0.0)}, 4, "robust has no adversarial inputs"),
        ({"robust": Adversarial(cutmix=0.5)}, 4, "robust changes its images"),
        ({"robust": Adversarial(erasing=0.5)}, 4, "robust changes its images"),
    ],
)
def test_what_cannot_part_or_lead_is_refused(settings, rounds, said):
    with pytest.raises(UserError, match=said):
        refuse(front(**settings).unfit("linf", rounds))


@pytest.mark.parametrize(
    "robust", [Adversarial(attack=QUICK), FAT(attack=QUICK), Mixed(weight=1.0, attack=QUICK)]
)
def test_whoever_searches_can_lead(robust):
    job = training(front(robust=robust), 3)
    job.run()
    assert job.history[-1]["learners"]["clean"]["gradient_evaluations"] == 2 * STEPS * BATCH


def test_the_clean_branch_may_learn_by_itself():
    job = training(front(clean=Standard()), 3)
    noted = listening(job)
    job.run()
    assert all(batch.adversarial is None for batch, _ in noted["clean"])
    x = [batch.x for batch, _ in noted["robust"]]
    assert not all(torch.equal(a, b.x) for a, (b, _) in zip(x, noted["clean"], strict=True))


def followed(leader: str, order: tuple[str, ...]) -> Method:
    class Led(Following):
        follows = leader

    method: Method = front().build(THREAT)
    learners = {**method.learners, "clean": Led().bind(THREAT)}
    return replace(method, learners={name: learners[name] for name in order})


@pytest.mark.parametrize(
    ("leader", "order"),
    [
        ("nobody", ("trunk", "robust", "clean")),
        ("robust", ("trunk", "clean", "robust")),
        ("clean", ("trunk", "robust", "clean")),
    ],
)
def test_nobody_follows_whoever_comes_later_or_never(leader, order):
    with pytest.raises(UserError, match=r"clean follows .*, which is no learner before it"):
        followed(leader, order)


@pytest.mark.parametrize("weight", [-0.1, 1.0, float("nan")])
def test_a_weight_that_leaves_nothing_clean_is_refused(weight):
    with pytest.raises(UserError, match=r"weight must lie in \[0, 1\)"):
        Following(weight=weight)


@pytest.mark.parametrize("value", [-0.1, 1.1])
def test_a_share_that_is_none_is_refused(value):
    with pytest.raises(UserError, match=r"gamma must lie in \[0, 1\]"):
        front(gamma=value)
    with pytest.raises(UserError, match=r"min_clean must lie in \[0, 1\]"):
        front(gamma=None, min_clean=value)


@pytest.mark.parametrize("trunk", [GAT(), TRADES(attack=QUICK), FAT(attack=QUICK)])
def test_any_robust_objective_can_be_the_trunk(trunk):
    job = finished(front(trunk=trunk), 3)
    spent = [record["gradient_evaluations"] for record in job.history]
    assert spent[0] == pytest.approx(trunk.cost * STEPS * BATCH, rel=0.5)
    assert spent[2] == 6 * STEPS * BATCH


# As a user meets it


def settings_of(**given: Any) -> A3GT:
    found = recipe.parse({"method": "a3gt", "data": "digits", **given})
    assert isinstance(found.settings, A3GT)
    assert recipe.parse(found.to_dict()) == found
    return found.settings


def test_its_recipe_says_all_of_it_and_is_read_again():
    found = settings_of(clean={"weight": 0.2}, start=0.5)
    assert found.clean == Following(weight=0.2)
    assert found.start == Fixed(fraction=0.5)
    assert settings_of().start == Fixed(fraction=0.7)
    assert settings_of(clean={"objective": "mix-at"}).clean == Mixed()
    assert settings_of(trunk="gat", robust={"objective": "trades"}).trunk == GAT()
    assert settings_of().chooses
    assert not settings_of(gamma=0.5).chooses


def test_a_setting_without_the_name_of_a_learner_is_that_of_all_that_have_it():
    found = settings_of(attack={"steps": 3}, lr=0.02, robust="trades", beta=3)
    assert [x.attack.steps for x in (found.trunk, found.robust)] == [3, 3]  # type: ignore[attr-defined]
    assert [x.lr for x in (found.trunk, found.robust, found.clean)] == [0.02] * 3
    assert isinstance(found.robust, TRADES)
    assert found.robust.beta == 3
    for name in ("weight", "objective"):
        with pytest.raises(UserError, match=f"'{name}' may be .*trunk.{name}: give the full name"):
            settings_of(**{name: 0.5})


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"method": "a3gt-front"}, "a3gt-front is a3gt now"),
        ({"start": "stable"}, "unknown rule for start 'stable' .known: fixed."),
        ({"trunk_weight": 0.3}, "'trunk_weight'; it is trunk.weight now"),
        ({"anchor": "clock"}, "'anchor': only generalist, a3gt-paper have it"),
        ({"every": 5}, "'every': only generalist, a3gt-paper have it"),
        ({"more_gamma": {"l2": [0.1]}}, "only generalist, a3gt-paper have it"),
        ({"gamma": [1, 0.4]}, "generalist and a3gt-paper have a schedule of gamma"),
        ({"keep": "balanced"}, "keep=balanced has no effect: gamma is chosen"),
    ],
)
def test_what_it_was_before_is_refused_with_what_to_write(given, said):
    with pytest.raises(UserError, match=said):
        settings_of(**given)
    settings_of(keep="balanced", patience=3)
    settings_of(keep="balanced", gamma=0.4)


def test_explain_says_what_parts_when_and_who_follows_whom():
    given = {"method": "a3gt", "data": "digits", "start": 0.5}
    text = "\n".join(explain(recipe.parse(given)))
    assert "up to t' there is one learner, the trunk; then robust and clean go on" in text
    assert "clean is trained on the batches of robust, and on the x' found for it" in text
    assert "t' = 10, which is fixed" in text
    assert "0.75 CE(f(x), y) + 0.25 CE(f(x'), y)" in text


def test_the_branch_is_continuous():
    states: list[Tensor] = []
    job = training(front(gamma=0.7), 4)
    job.watch = Watch(step=lambda images: states.append(job.merged_state()["fc1.weight"].clone()))
    job.run()
    steps = [float((b - a).abs().max()) for a, b in pairwise(states)]
    assert steps[2 * STEPS - 1] < 5 * max(steps[: 2 * STEPS - 1])
