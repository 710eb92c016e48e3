"""Loops of a user's own: losses, the search form and the merge, held to the training loop."""

import re
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import equipoise as eq
from blobs import BATCH, THREAT, blobs, branched, measured, new_model, small, training
from equipoise.attacks import PGD
from equipoise.draws import GeneratorDraws
from equipoise.errors import UserError
from equipoise.objectives.adversarial import Adversarial
from equipoise.objectives.core import Batch
from equipoise.objectives.self_adaptive import SelfAdaptive
from equipoise.objectives.standard import Standard
from equipoise.objectives.trades import TRADES
from equipoise.objectives.yopo import YOPO
from equipoise.settings.methods import METHODS
from equipoise.training import Fixed, Method, Stable, Threshold
from equipoise.training.watch import Watch

# --- the merge ---


def same(found, wanted):
    return all(torch.equal(found[key], wanted[key]) for key in wanted)


class Held:
    """A training, and the same merge over copies that take the steps of its learners."""

    def __init__(self, settings, rounds=5):
        method = settings if isinstance(settings, Method) else settings.build(THREAT)
        trunk = method.trunk
        self.rule = replace(method.merge, gamma=0.6) if trunk else method.merge  # as in branched()
        self.changes, self.took = [], []  # whether a round changed learners; who took a step
        self.job = training(method, rounds, validate=measured, watch=Watch(save=self.close))
        self.copies = {name: deepcopy(x.model) for name, x in self.job.learners.items()}
        self.merging = self.rule.over(
            self.copies, rounds=rounds, steps=self.job.steps, trunk=trunk
        )
        train = self.rule.start.losses == "train"
        self.looked_at = {n: "loss" if train else x.monitor for n, x in method.learners.items()}
        for learner in self.job.learners.values():
            learner.step = self.followed(learner, learner.step)
        self.steps_of_round, self.job.steps_of_round = self.job.steps_of_round, self.compared

    def followed(self, learner, step):
        def taken(batch):
            step(batch)
            self.copies[learner.name].load_state_dict(learner.model.state_dict())
            self.took.append(learner.name)

        return taken

    def same_learners(self):
        for name in self.merging.active:
            state = self.job.learners[name].model.state_dict()
            assert same(self.copies[name].state_dict(), state)

    def compared(self, t):
        for _ in self.steps_of_round(t):
            assert sorted(self.took) == sorted(self.merging.active)
            self.took.clear()
            self.merging.update()
            assert same(self.merging.model.state_dict(), self.job.merged_state())
            if self.rule.granularity == "step":
                self.same_learners()
            yield

    def close(self, finished):
        if finished:
            records = self.job.history[-1]["learners"].items()
            losses = {name: record[self.looked_at[name]] for name, record in records}
            self.changes.append(self.merging.end_round(losses))
            if not (self.merging.trunk and self.changes[-1]):  # the loop branches a moment later
                self.same_learners()

    def run(self):
        self.job.run()
        assert self.merging.start == self.job.start.round
        for name in self.merging.active:
            part = self.job.learners[name].merged_part()
            assert same(self.merging.learner(name).state_dict(), part)
        return sum(self.changes)


LOOPS = {
    "generalist": (lambda: METHODS["generalist"](), 0),
    "hand-overs of each round": (lambda: small(every=1), 3),
    "hand-overs of each step": (lambda: small(every=1, granularity="step"), 0),
    "literally": (
        lambda: small("a3gt-paper", every=1, start=Threshold(threshold=9.0, patience=2)),
        2,
    ),
    "stable": (lambda: small(every=1, start=Stable(deadline=0.5)), None),
    "averages": (lambda: small(source="average", every=2), 2),
    "a trunk": (lambda: branched("trunk", 2), 1),
    "averages of a trunk": (lambda: branched("trunk", 2, source="average"), 1),
}


@pytest.mark.parametrize("name", LOOPS)
def test_the_merge_gives_the_weights_of_the_training_loop(name):
    settings, wanted = LOOPS[name]
    changes = Held(settings()).run()
    assert wanted is None or changes == wanted


def test_a_merge_goes_on_from_its_state():
    rule = eq.Merge(gamma=0.5, every=1, start=Fixed(round=1), horizon=1.0)

    def loop(stop):
        torch.manual_seed(0)
        learners = {"clean": new_model(), "robust": new_model()}
        merging = rule.over(learners, rounds=3, steps=2)
        for step in range(6):
            for place, model in enumerate(learners.values()):
                for p in model.parameters():
                    p.data += 0.01 * (step + place)
            merging.update()
            if step == stop:
                saved = (
                    {n: deepcopy(m.state_dict()) for n, m in learners.items()},
                    deepcopy(merging.state_dict()),
                )
                learners = {"clean": new_model(1), "robust": new_model(2)}
                merging = rule.over(learners, rounds=3, steps=2)
                for name, state in saved[0].items():
                    learners[name].load_state_dict(state)
                merging.load_state_dict(saved[1])
            if step % 2:
                assert merging.end_round() == (step < 5)
        return merging.model.state_dict()

    whole = loop(None)
    for stop in (2, 3):
        again = loop(stop)
        assert same(again, whole)


def test_a_merge_that_does_not_fit_is_refused():
    learners = {"clean": new_model(), "robust": new_model()}
    for rule, given, trunk in (
        (eq.Merge(gamma=0.5), {"clean": new_model()}, None),
        (eq.Merge(gamma=0.5), learners, "trunk"),
        (eq.Merge(gamma=0.5, batchnorm="estimate"), learners, None),
    ):
        with pytest.raises(UserError):
            rule.over(given, rounds=3, steps=2, trunk=trunk)
    merging = eq.Merge(gamma=0.5).over(learners, rounds=3, steps=2)
    for _ in range(2):
        with pytest.raises(UserError, match="2 steps"):
            merging.end_round()
        if not merging.done:
            merging.update()


# --- losses ---


@pytest.mark.parametrize(
    "objective",
    [
        Standard(label_smoothing=0.1),
        Adversarial(attack=PGD(steps=2, keep="last"), cutmix=0.5),
        TRADES(attack=PGD(steps=2, keep="last")),
    ],
    ids=["standard", "pgd-at", "trades"],
)
def test_a_loss_is_that_of_the_training_loop(objective):
    images = blobs()
    x, y = images.pixels()[:BATCH], images.y[:BATCH]
    bound, models = objective.bind(THREAT), (new_model(), new_model())
    torch.manual_seed(3)
    loss = bound(models[0].eval(), x, y)
    loss.backward()
    torch.manual_seed(3)
    draws = GeneratorDraws(torch.default_generator)
    batch = Batch(x, y, torch.arange(BATCH), 0.0)
    (wanted,) = objective.bind(THREAT).losses(models[1].train(), batch, draws)
    wanted.backward()
    assert torch.equal(loss, wanted)
    for one, other in zip(*(model.parameters() for model in models), strict=True):
        assert torch.equal(one.grad, other.grad)
    assert models[0].training


def test_what_has_no_single_loss_is_refused():
    x, y = blobs().pixels()[:4], blobs().y[:4]
    for objective in (Standard(), Adversarial(awp=0.01).bind(THREAT), YOPO().bind(THREAT)):
        with pytest.raises(UserError):
            objective(new_model(), x, y)
    with pytest.raises(UserError, match="prepare"):
        replace(SelfAdaptive(), onset=0.0).bind(THREAT)(new_model(), x, y, progress=0.5)


# --- the page ---

PAGE = (Path(__file__).resolve().parent.parent / "docs" / "own-loops.md").read_text("utf-8")
BLOCKS = dict(re.findall(r"```python\n# (\S+)\n(.*?)```", PAGE, flags=re.DOTALL))
MODELS = {"plain", "attack", "merge", "accelerate", "fabric"}


def run(block, **more):
    """Run a block of the page; return what it leaves, with the model that it began with."""
    images, first = blobs(count=64), new_model()
    pairs = torch.utils.data.TensorDataset(images.pixels(), images.y)
    loader = torch.utils.data.DataLoader(pairs, batch_size=16)
    place = {"model": deepcopy(first), "loader": loader, "epochs": 4, **more}
    torch.manual_seed(0)
    exec(BLOCKS[block], place)  # noqa: S102 - it is our own page
    return place, first


def accuracy(model):
    images = blobs(1, 60)
    with torch.no_grad():
        return float((model.eval()(images.pixels()).argmax(1) == images.y).float().mean())


def test_every_block_of_the_page_is_run():
    assert set(BLOCKS) == MODELS | {"trainer"}


@pytest.mark.parametrize("block", ["plain", "attack", "merge"])
def test_the_loops_of_the_page_train(block):
    place, first = run(block)
    assert not same(place["model"].state_dict(), first.state_dict())
    assert accuracy(place["model"]) > accuracy(first)


@pytest.mark.extras
@pytest.mark.filterwarnings("ignore")  # of the libraries' own
@pytest.mark.parametrize("block", ["accelerate", "fabric"])
def test_a_loop_of_a_library_trains_the_same_weights(block):
    wanted, first = (each.state_dict() for each in (run("plain")[0]["model"], new_model()))
    found = run(block)[0]["model"]
    found = getattr(found, "module", found).state_dict()
    if block == "accelerate":
        assert same(found, wanted)
    for key in wanted:  # Fabric wraps the model: its search form rounds in another order
        assert (found[key] - wanted[key]).abs().max() < 0.05
        moved = (found[key] - first[key]).abs().max()
        assert (moved > 0) == (not torch.equal(wanted[key], first[key]))


@pytest.mark.extras
@pytest.mark.filterwarnings("ignore")  # of the library's own
def test_the_trainer_of_transformers_trains(tmp_path, monkeypatch):
    import transformers

    monkeypatch.chdir(tmp_path)
    images = blobs(count=64)
    pairs = zip(images.pixels(), images.y.tolist(), strict=True)
    torch.manual_seed(0)
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        image_size=8, patch_size=4, num_channels=1, num_labels=4,
    )  # fmt: skip
    net = transformers.ViTForImageClassification(config)
    before = deepcopy(net.state_dict())
    dataset = [{"pixel_values": x, "labels": y} for x, y in pairs]
    place, _ = run("trainer", model=net, dataset=dataset)
    assert not same(net.state_dict(), before)
    losses = [line["train_loss"] for line in place["trainer"].state.log_history[-1:]]
    assert all(loss > 0 for loss in losses)
