"""Corruptions as an attack, as an objective, and as the third end of a front."""

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

import equipoise as eq
import zoo
from equipoise.attacks import parse as attack_named
from equipoise.attacks.corruptions import WorstCorruption
from equipoise.data.corruptions import STRENGTHS, corrupted
from equipoise.data.sampling import drawn_again
from equipoise.draws import GeneratorDraws, KeyedDraws
from equipoise.errors import UserError
from equipoise.execution import Execution
from equipoise.fronts.record import CORRUPTIONS
from equipoise.jobs.front import measure_front
from equipoise.jobs.train import train
from equipoise.objectives.core import Batch
from equipoise.objectives.corrupted import Corrupted
from equipoise.settings.recipe import parse
from equipoise.store.digests import model_digest
from equipoise.store.runs import load
from equipoise.threat import L2, Linf
from problems import digits

EXACT = Execution(precision="float32")


@pytest.fixture(scope="module")
def some():
    x, y = digits()
    return x[zoo.TRAINED_ON :][:60], y[zoo.TRAINED_ON :][:60]


def right_on_all(model, x, y, severity):
    """Return where a model is right on the clean image and on every kind, one after the other."""
    inputs = [x, *(corrupted(x, kind, severity, KeyedDraws.of(x)) for kind in STRENGTHS)]
    with torch.no_grad():
        return torch.stack([model(z).argmax(1) == y for z in inputs]).all(0)


# The attack


@pytest.mark.parametrize("severity", [3, 5])
def test_an_image_is_robust_if_the_model_is_right_on_every_kind(some, severity):
    model, (x, y) = zoo.undefended(), some
    result = eq.evaluate(model, x, y, threat=eq.Linf(1), attacks=f"corruptions-{severity}")
    assert torch.equal(result.robust, right_on_all(model, x, y, severity))
    assert 0 < int(result.robust.sum()) < int(result.correct.sum())


def test_what_it_returns_is_one_of_the_corrupted_images_in_any_batch(some):
    model, (x, y) = zoo.undefended(), some
    attack = attack_named("corruptions-4")
    found = attack(model, x, y, Linf(1))
    kinds = torch.stack([corrupted(x, kind, 4, KeyedDraws.of(x)) for kind in STRENGTHS])
    same = (kinds == found).flatten(2).all(2)
    assert same.any(0).all()
    halves = [attack(model, x[part], y[part], Linf(1)) for part in (slice(30), slice(30, None))]
    assert torch.equal(torch.cat(halves), found)


@pytest.mark.parametrize("threat", [Linf(0.5), Linf(8 / 255), eq.Threat("linf", 1, -1.0, 1.0)])
def test_a_small_ball_is_refused_with_what_to_give(some, threat):
    with pytest.raises(UserError, match="must be linf with eps=1"):
        WorstCorruption()(zoo.undefended(), *some, threat)


def test_other_norms_and_severities_are_refused(some):
    with pytest.raises(UserError, match="defined for linf, not l2"):
        WorstCorruption()(zoo.undefended(), *some, L2(1))
    for name in ("corruptions-6", "corruptions(severity=0)", "corruptions(severity=2.5)"):
        with pytest.raises(UserError, match="severity must be 1 to 5"):
            attack_named(name)


# The objective


def a_batch(some):
    x, y = some
    return Batch(x, y, torch.arange(len(y)), 0.5)


def test_the_loss_is_that_of_clean_and_of_corrupted_images(some):
    model, batch = zoo.undefended().eval(), a_batch(some)
    objective = Corrupted(weight=0.3).bind(Linf(0.1))
    draws = [GeneratorDraws(torch.Generator().manual_seed(7)) for _ in range(2)]
    (loss,) = objective.losses(model, batch, draws[0])
    changed = objective.attacked(model, batch, draws[1])
    by_hand = (cross_entropy(model(z), batch.y) for z in (batch.x, changed))
    clean, other = by_hand
    torch.testing.assert_close(loss, 0.7 * clean + 0.3 * other)


def test_every_image_gets_a_kind_and_a_severity_of_its_own():
    x = torch.rand(1, 3, 8, 8).expand(600, 3, 8, 8).contiguous()
    batch = Batch(x, torch.zeros(600, dtype=torch.int64), torch.arange(600), 0.5)
    source = GeneratorDraws(torch.Generator().manual_seed(0))
    made = Corrupted(severity=2).bind(Linf(0.1)).attacked(zoo.undefended(), batch, source)
    fixed = {
        (kind, severity): corrupted(x[:1], kind, severity, source)[0]
        for kind in STRENGTHS
        for severity in (1, 2, 3)
        if kind != "gaussian-noise"
    }
    counts = {key: int((made == value).flatten(1).all(1).sum()) for key, value in fixed.items()}
    noisy = 600 - sum(counts.values())
    assert all(30 <= n <= 90 for (_, severity), n in counts.items() if severity < 3)
    assert all(n == 0 for (_, severity), n in counts.items() if severity == 3)
    assert 80 <= noisy <= 160


def test_it_has_no_threat_and_is_validated_on_clean_images():
    assert Corrupted().against(Linf(0.1)) is None
    recipe = parse({"method": "corrupted", "data": "digits"})
    assert recipe.settings.build(Linf(0.1)).cost(10) == 2
    with pytest.raises(UserError, match="severity must lie in"):
        parse({"method": "corrupted", "severity": 6})


# The third end

TINY = {
    "method": "a3gt", "data": "digits", "rounds": 3, "width": 0.25, "limit": 300, "validation": 60,
    "batch_size": 40, "gamma": 0.5, "eps": 0.1, "validation_attack": "pgd-1",
    "robust": {"attack": {"steps": 2}}, "trunk": {"attack": {"steps": 2}},
    "more": {"weather": "corrupted"},
}  # fmt: skip


@pytest.fixture(scope="module")
def fronted(tmp_path_factory):
    run = train(parse(TINY), tmp_path_factory.mktemp("weather") / "run")
    return run, measure_front(run.path, attacks="pgd-3", points=6, execution=EXACT)


def test_each_mix_is_counted_as_models_are_on_every_kind(fronted):
    run, record = fronted
    front = eq.Front(run.path)
    assert front.ends.names == ("learner-clean", "learner-robust", "learner-weather")
    assert record.threats == ("linf", CORRUPTIONS)
    images, _ = drawn_again(front.images.validation, record.n, record.sample)
    for point in record.points:
        model, third = front.model(point.place), point.third
        robust = right_on_all(model, images.pixels(), images.y, 3)
        assert third is not None
        assert third.robust == int(robust.sum())
        assert third.union <= min(third.robust, point.robust)
    assert len({point.third.robust for point in record.points if point.third}) > 1
    assert CORRUPTIONS in str(record)
    assert "eps = 1;" not in str(record)


def test_a_model_is_picked_by_its_accuracy_on_corruptions(fronted, tmp_path):
    run, record = fronted
    most = max(point.third.robust for point in record.points if point.third)
    picked = eq.Front(run.path).pick(min_robust=f"linf=0,{CORRUPTIONS}={most / record.n / 4}")
    bound = picked.choice.bound
    assert bound is not None
    assert f"robust accuracy ({CORRUPTIONS})" in str(picked.choice.constraint)
    there = picked.write(tmp_path / "picked")
    assert np.isclose(there.read_json("picked.json")["front"]["also"][1], 1.0)
    assert model_digest(load(there.path)) == model_digest(picked.model)
