"""How learners take their steps: radius, head, optimiser, parts of a batch, gradient, balance."""

from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import naive
from blobs import (
    BATCH,
    COUNT,
    EPS,
    STEPS,
    THREAT,
    blobs,
    branched,
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
from equipoise.draws import GeneratorDraws
from equipoise.errors import UserError
from equipoise.objectives.adversarial import Adversarial
from equipoise.objectives.core import Batch
from equipoise.objectives.standard import Standard
from equipoise.settings import recipe as recipes
from equipoise.settings.explanation import explain
from equipoise.settings.methods import METHODS
from equipoise.settings.schema import ROLES
from equipoise.training.learner import Learner
from equipoise.training.updates import Updates, inverse
from equipoise.training.validation import Validator
from equipoise.training.watch import Interrupted, Watch

EVERYTHING: dict[str, Any] = {
    "eps_ramp": 0.6,
    "probe": 1,
    "backbone_lr": 0.5,
    "accumulate": 2,
    "clip": 1.0,
    "balance": "sampling",
}


def one(*, updates: Updates, model: nn.Module | None = None, rounds: int = 2, **sgd: Any) -> Any:
    """Return a training of one adversarial learner."""
    usual: dict[str, Any] = {"lr": 0.1, "lr_factors": (1.0,), "lr_at": None}
    robust = Adversarial(attack=PGD(steps=2, keep="last"), **usual | sgd)
    more = {} if model is None else {"model": model}
    return training(METHODS["pgd-at"](robust=robust), rounds, updates=updates, **more)


def robust_of(job: Any) -> Learner:
    return job.learners["robust"]


# Resuming


def several(optimizer: str) -> Any:
    settings = branched("mixed", 2)
    for objective in settings.learners.values():
        object.__setattr__(objective, "optimizer", optimizer)
    return settings


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_with_every_setting_a_resumed_training_has_the_same_bits(optimizer):
    updates, rounds = Updates(**EVERYTHING), 4
    whole = finished(several(optimizer), rounds, validate=measured, updates=updates)
    job, steps = training(several(optimizer), rounds, validate=measured, updates=updates), [0]

    def count(images: int) -> None:
        steps[0] += 1

    for stop in (1, STEPS + 1, 2 * STEPS + 1, 3 * STEPS):  # while only the head is trained, too
        saved: list[Any] = []
        job.watch = Watch(
            step=count,
            stop=lambda stop=stop: steps[0] > stop,
            save=lambda finished, job=job, saved=saved: saved.append(
                through_a_file(job.state_dict())
            ),
        )
        with pytest.raises(Interrupted):
            job.run()
        job = training(several(optimizer), rounds, validate=measured, updates=updates)
        job.load_state_dict(saved[-1])
    job.watch = Watch()
    job.run()
    assert same(weights_of(job), weights_of(whole))
    assert without_times(job.history) == without_times(whole.history)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_branches_go_on_with_the_state_of_the_trunks_optimiser(optimizer):
    job = training(several(optimizer), 4)
    steps = [0]
    job.watch = Watch(
        step=lambda images: steps.append(steps.pop() + 1), stop=lambda: steps[0] == 2 * STEPS
    )
    with pytest.raises(Interrupted):
        job.run()
    trunk, clean = job.learners["mixed"], job.learners["clean"]
    clean.continue_from(trunk)
    pairs = zip(clean.model.parameters(), trunk.model.parameters(), strict=True)
    for here, there in pairs:
        mine, theirs = clean.optimizer.state[here], trunk.optimizer.state[there]
        assert mine.keys() == theirs.keys()
        assert "exp_avg_sq" in mine or optimizer == "sgd"
        assert all(torch.equal(mine[key], theirs[key]) for key in mine)


# The radius


def test_the_radius_grows_evenly_and_validation_has_all_of_it(monkeypatch):
    job, found = one(updates=Updates(eps_ramp=0.5)), list[tuple[float, float]]()
    learner = robust_of(job)
    plain = Adversarial.search

    def search(self: Any, model: nn.Module, batch: Batch, *rest: Any) -> Tensor:
        x_adv = plain(self, model, batch, *rest)
        found.append((batch.progress, float((x_adv - batch.x).abs().max())))
        assert self.threat.eps == pytest.approx(min(1, batch.progress / 0.5) * EPS)
        return x_adv

    monkeypatch.setattr(Adversarial, "search", search)
    job.run()
    assert [progress for progress, _ in found] == [i / (2 * STEPS) for i in range(2 * STEPS)]
    for progress, distance in found:
        assert distance == pytest.approx(min(1, progress / 0.5) * EPS, abs=1e-6)
    assert learner.objective.threat.eps == EPS


@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_a_radius_of_zero_leaves_the_images(norm):
    job = training(
        METHODS["pgd-at"](robust=Adversarial(norm=norm, eps=1.0)), updates=Updates(eps_ramp=1.0)
    )
    learner = robust_of(job)
    learner.begin_round(COUNT)
    learner.step(learner.batch(job.images, job.augment, BATCH, 0, 0.0))
    x = learner.batch(job.images, job.augment, BATCH, 0, 0.0).x
    assert torch.equal(learner.objective.state.adversarial, x)


# The head and the rest


def test_in_the_first_rounds_only_the_head_is_trained():
    job = one(updates=Updates(probe=1), rounds=2)
    before = deepcopy(robust_of(job).model.state_dict())
    for _ in job.steps_of_round(1):
        pass
    after = robust_of(job).model.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"linear.weight", "linear.bias"}
    job.done, rounds = 0, job.history
    rounds.append({"round": 1, "rounds": 2, "learners": {"robust": {"clean_loss": 1.0}}})
    rounds[0]["learners"]["robust"] |= {"loss": 1.0, "robust_loss": 1.0}
    middle = deepcopy(after)
    for _ in job.steps_of_round(2):
        pass
    end = robust_of(job).model.state_dict()
    floats = {name for name in before if before[name].is_floating_point()} - {
        "normalize.mean",
        "normalize.std",
    }
    assert {name for name in floats if not torch.equal(middle[name], end[name])} == floats


def test_the_backbone_moves_by_a_part_of_its_step():
    moved = []
    for factor in (1.0, 0.1):
        job = one(updates=Updates(backbone_lr=factor), momentum=0.0, nesterov=False)
        learner = robust_of(job)
        before = {k: v.detach().clone() for k, v in learner.model.named_parameters()}
        learner.begin_round(COUNT)
        learner.step(learner.batch(job.images, job.augment, BATCH, 0, 0.0))
        moved.append({k: v.detach() - before[k] for k, v in learner.model.named_parameters()})
    for name, step in moved[0].items():
        part = 1.0 if name.startswith("linear.") else 0.1
        assert torch.allclose(moved[1][name], part * step, atol=1e-7)


def test_a_model_without_a_head_is_refused():
    class Squared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = new_model()

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x) @ torch.ones(4, 4).tril()

    with pytest.raises(UserError, match="probe and backbone_lr need the head of Squared"):
        one(updates=Updates(probe=1), model=Squared())


def test_frozen_statistics_of_batchnorm_stay_and_are_used():
    job = training(small(batchnorm="frozen"), 2)
    learner = job.learners["clean"]
    before = deepcopy(learner.model.state_dict())
    job.run()
    after = learner.model.state_dict()
    for name, value in before.items():
        still = "running" in name or "num_batches" in name or name.startswith("normalize")
        assert torch.equal(value, after[name]) == still
    batch = learner.batch(job.images, job.augment, BATCH, 0, 0.0)
    learner.model.eval()
    expected = nn.functional.cross_entropy(learner.model(batch.x), batch.y)
    learner.loss_sum.zero_()
    learner.step(batch)
    assert torch.allclose(learner.loss_sum, expected, rtol=1e-5)


# The gradient


@pytest.mark.parametrize("parts", [3, 4])
def test_a_batch_in_parts_has_the_gradient_of_the_whole(parts):
    images, states = blobs(), []
    for accumulate in (1, parts):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 4))
        standard = METHODS["standard"](clean=Standard(lr=0.1, lr_factors=(1.0,), lr_at=None))
        job = training(standard, model=model, updates=Updates(accumulate=accumulate))
        learner = job.learners["clean"]
        learner.begin_round(COUNT)
        learner.step(learner.batch(images, job.augment, BATCH, 0, 0.0))
        states.append((learner.model.state_dict(), learner.loss, learner.evaluations))
    for name, value in states[0][0].items():
        assert torch.allclose(value, states[1][0][name], atol=1e-6)
    assert states[0][1] == pytest.approx(states[1][1], rel=1e-5)
    assert states[0][2] == states[1][2]


def test_a_long_gradient_is_scaled_to_the_largest_length():
    lengths = []
    for clip in (None, 0.01):
        job = one(updates=Updates(clip=clip), momentum=0.0, nesterov=False, weight_decay=0.0)
        learner = robust_of(job)
        before = [p.detach().clone() for p in learner.model.parameters()]
        learner.begin_round(COUNT)
        learner.step(learner.batch(job.images, job.augment, BATCH, 0, 0.0))
        moves = [p.detach() - q for p, q in zip(learner.model.parameters(), before, strict=True)]
        lengths.append(float(torch.cat([m.flatten() for m in moves]).norm()) / 0.1)
    assert lengths[0] > 0.02
    assert lengths[1] == pytest.approx(0.01, rel=1e-3)


# Unequal classes


def test_weights_are_inverse_to_the_sizes_of_classes():
    y = torch.tensor([0, 0, 0, 2])  # class 1 has no images
    assert inverse(y).tolist() == pytest.approx([2 / 3, 2 / 3, 2 / 3, 2.0])


@pytest.mark.parametrize(
    "name", ["standard", "pgd-at", "mix-at", "trades", "mart", "gat", "iat", "fat", "sat"]
)
def test_the_loss_has_the_weights_of_the_images(name):
    """With weights 3 and 1 it is the loss of a batch that has some images three times."""
    settings = METHODS[name]()
    (role,) = settings.learners
    objective = settings.learners[role]
    if name == "iat":
        object.__setattr__(objective, "mixup", 0.0)
    model, batch = naive.Plain().eval(), naive.batch()
    n = len(batch.y)
    weight = torch.where(torch.arange(n) < n // 2, 3.0, 1.0)
    repeated = torch.cat([torch.arange(n // 2).repeat(2), torch.arange(n)])

    def loss(batch: Batch) -> float:
        bound = objective.bind(THREAT)
        bound.prepare(torch.arange(len(batch.y)) % 10, 10)
        object.__setattr__(bound, "search", lambda model, batch, labels, draws: batch.x + 0.01)
        draws = GeneratorDraws(torch.Generator().manual_seed(0))
        return float(next(iter(bound.losses(model, batch, draws))).detach())

    found = loss(batch._replace(weight=weight / weight.mean()))
    assert found == pytest.approx(loss(batch.take(repeated)), rel=1e-5)
    assert found != pytest.approx(loss(batch), rel=1e-5)


def test_sampling_draws_all_classes_equally_often():
    y = torch.tensor([0] * 900 + [1] * 100)
    order = Updates(balance="sampling").order(y, torch.Generator().manual_seed(0))
    assert len(order) == 1000
    assert 430 < int((y[order] == 1).sum()) < 570


def test_balanced_accuracy_and_the_worst_class_of_a_validation():
    class Constant(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.tensor([1.0, 0.0, 0.0]).expand(len(x), 3) + 0 * x.flatten(1)[:, :1]

    x, y = torch.full((8, 1, 2, 2), 0.5), torch.tensor([0] * 6 + [2] * 2)
    found = Validator(x=x, y=y, threats=(THREAT,), attack=PGD(steps=1))(Constant())
    assert found["clean_accuracy"] == 0.75
    assert found["clean_balanced"] == found["robust_balanced"] == 0.5  # class 1 has no images
    assert found["clean_worst_class"] == found["robust_worst_class"] == 0.0


# Recipes


def parsed(*items: str, **given: Any) -> recipes.Recipe:
    return recipes.parse(recipes.combine({"method": "a3gt", **given}, recipes.overrides(items)))


@pytest.mark.parametrize(
    ("items", "lr", "decay"),
    [
        ([], 0.05, 5e-4),
        (["optimizer=adamw"], 0.001, 0.01),
        (["optimizer=adamw", "lr=0.02"], 0.02, 0.01),
    ],
)
def test_the_usual_learning_rate_depends_on_the_optimiser(items, lr, decay):
    recipe = parsed(*items, "more.l2.norm=l2", "more.l2.eps=1")
    for objective in recipe.settings.learners.values():
        if objective is not recipe.settings.learners["l2"] or not items:
            assert (objective.lr, objective.weight_decay) == (lr, decay)
    assert recipes.parse(recipe.to_dict()) == recipe


def test_schedule_is_short_for_factors_places_and_curve():
    recipe = parsed("schedule=cosine", "clean.lr_at=[0, 0.5, 1]")
    trunk, clean = (recipe.settings.learners[name] for name in ("trunk", "clean"))
    assert [trunk.schedule(p) for p in (0.0, 0.1, 0.55, 1.0)] == pytest.approx([0.1, 1, 0.5, 0])
    assert clean.schedule(0.25) == pytest.approx(0.55)
    with pytest.raises(UserError, match="unknown schedule 'cosin'; did you mean 'cosine'"):
        parsed("schedule=cosin")


@pytest.mark.parametrize(
    ("items", "message"),
    [
        (["probe=20"], "probe=20 leaves no round of 20"),
        (["accumulate=65"], "accumulate=65 needs parts of two images"),
        (["trunk=yopo", "probe=1"], "trunk: yopo updates all weights"),
        (["eps_ramp=1.5"], "eps_ramp must lie in"),
        (["clip=0"], "clip must be a finite number > 0"),
        (["optimizer=lion"], "optimizer"),
        (["balance=yes"], "balance"),
    ],
)
def test_settings_that_do_not_fit_are_refused_in_a_line(items, message):
    with pytest.raises(UserError, match=message):
        parsed(*items)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_takes_and_explains_them(method):
    items = [f"{key}={value}" for key, value in EVERYTHING.items()]
    items += ["optimizer=adamw", "schedule=cosine", "batchnorm=frozen", "data=digits"]
    items = [item for item in items if method != "yopo" or item[:5] not in ("probe", "accum")]
    recipe = recipes.parse(recipes.combine({"method": method}, recipes.overrides(items)))
    text = "\n".join(explain(recipe))
    for words in (
        f"by AdamW: lr {0.001 / (5 if method == 'yopo' else 1):g}",
        "a cosine between them",
        "grows from 0 to eps over the first 12",
    ):
        assert words in text
    assert recipes.parse(recipe.to_dict()) == recipe
    assert all(learner.optimizer == "adamw" for learner in recipe.settings.learners.values())
    assert set(ROLES) & set(recipe.to_dict())
