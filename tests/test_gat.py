"""GAT: an update against the paper's formulas in plain torch, its watch, and what it learns."""

import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import blobs
import naive
from equipoise import train
from equipoise.draws import KeyedDraws
from equipoise.errors import UserError
from equipoise.objectives import Batch, Labels
from equipoise.objectives.gat import GAT
from equipoise.settings.recipe import parse
from equipoise.threat import L1, L2, Linf, Threat
from equipoise.training import Knots, Merge, Method, Never
from naive import Tape, bound

LINF, L2_BALL = Linf(0.15), L2(0.3)


def softmax(z: Tensor) -> Tensor:
    return naive.log_p(z).exp()


def searched(
    net: nn.Module, x: Tensor, y: Tensor, unit: Tensor, weight: float, threat: Threat, steps: int
) -> Tensor:
    """Return x' by the paper, for a network in eval mode and images away from 0 and 1 in L2."""
    clean = softmax(net(x)).detach()
    signs = torch.where(unit < 0.5, -1.0, 1.0).double()
    pixels = x[0].numel()
    length = threat.eps / 2 / (1 if threat.norm == "linf" else pixels**0.5)
    u = (x + length * signs).clamp(0, 1)
    for _ in range(steps):
        u = u.detach().requires_grad_()
        z = net(u)
        gain = naive.ce(z, y) + weight * ((softmax(z) - clean) ** 2).sum(1)
        (grad,) = torch.autograd.grad(gain.sum(), u)
        if threat.norm == "linf":
            u = u.detach() + threat.eps / steps * grad.sign()
            u = torch.minimum(torch.maximum(u, x - threat.eps), x + threat.eps).clamp(0, 1)
        else:
            long = grad.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
            move = u.detach() + threat.eps / steps * grad / long - x
            size = move.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
            u = x + move * (threat.eps / size).clamp(max=1)
    return u.detach()


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("threat", [LINF, L2_BALL], ids=["linf", "l2"])
@pytest.mark.parametrize(
    ("progress", "smoothing", "joint"), [(0.0, 0.0, False), (0.859, 0.0, True), (0.87, 0.4, False)]
)
def test_an_update_is_that_of_the_paper(progress, smoothing, joint, threat, steps):
    weight = 3.0 if progress < 0.86 else 12.0  # four times as much for the last 14 %
    batch = naive.batch(12, progress=progress)
    batch = batch._replace(x=0.35 + 0.3 * batch.x.double() if threat.norm == "l2" else
                           batch.x.double())  # fmt: skip
    net, tape = naive.model(seed=3).double(), Tape()
    settings: dict[str, Any] = {"beta": 3.0, "label_smoothing": smoothing, "joint": joint}
    objective = bound(GAT, threat, **settings)
    if steps == 2:
        objective.strengthen()
    found = naive.backward(objective, net, batch, tape)

    (unit,) = tape.taken
    twin = naive.model(seed=3).double().eval()
    x_adv = searched(twin, batch.x, batch.y, unit, weight, threat, steps)
    torch.testing.assert_close(objective.state.adversarial, x_adv, rtol=0, atol=1e-10)
    assert float((x_adv - batch.x).abs().max()) > 0.02
    twin.train()
    clean, robust = (
        twin(torch.cat([batch.x, x_adv])).chunk(2) if joint else (twin(batch.x), twin(x_adv))
    )
    apart = ((softmax(clean) - softmax(robust)) ** 2).sum(1)
    target = naive.smooth(batch.y, 10, smoothing)
    loss = (naive.ce(clean, target) + weight * apart).mean()
    loss.backward()
    close = 1e-7 if smoothing else 1e-10  # smoothed labels are kept in float32
    torch.testing.assert_close(found, loss.detach(), rtol=close, atol=0)
    for ours, theirs in zip(net.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=close, atol=close)


def test_the_search_for_an_image_does_not_depend_on_the_others():
    net, batch = naive.model(seed=1).double(), naive.batch(10)
    batch = batch._replace(x=batch.x.double())
    objective = bound(GAT, LINF)
    whole = objective.attacked(net, batch, KeyedDraws.of(batch.x))
    for i in (0, 4, 9):
        one = Batch(batch.x[i : i + 1], batch.y[i : i + 1], batch.index[i : i + 1], 0.5)
        alone = objective.attacked(net, one, KeyedDraws.of(one.x))
        torch.testing.assert_close(alone[0], whole[i], rtol=0, atol=1e-12)


def test_the_step_is_another_one_without_the_distance():
    net, batch = naive.model(seed=1), naive.batch(10)
    found = [
        bound(GAT, LINF, beta=beta).search(net, batch, Labels(batch.y), Tape())
        for beta in (1e-6, 1000.0)
    ]
    assert 0.01 < float((found[0] != found[1]).double().mean()) < 0.9


def test_another_norm_is_refused():
    with pytest.raises(UserError, match="l1"):
        bound(GAT, L1(1.0))


def test_a_distance_that_grows_at_places_that_do_not_rise_is_refused():
    with pytest.raises(UserError, match="beta_at"):
        GAT(beta_at=(0.0, 0.5))
    with pytest.raises(UserError, match="beta_factors"):
        GAT(beta_factors=(1.0, 0.0), beta_at=None)
    assert [GAT(beta=2.0).weight(p) for p in (0.0, 0.85, 0.86, 0.99)] == [2, 2, 8, 8]
    assert GAT(beta=2.0, beta_factors=(1.0, 3.0), beta_at=None).weight(0.5) == 4


class Falls:
    """A probe that finds a collapse in round 2, unless the attack has become stronger."""

    chance = 0.25

    def __call__(self, model: nn.Module, objective: Any, progress: float) -> dict[str, float]:
        fell = progress > 0.4 and objective.level == 0
        return {"probe": 0.05 if fell else 0.6, "probe_own": 0.7}


def test_a_collapse_is_taken_back_and_the_search_gets_a_second_step():
    objective = bound(GAT, blobs.THREAT, lr=0.05)
    assert objective.weak(0.5)
    assert objective.cost == 3
    method = Method(
        learners={"robust": objective},
        knots={"robust": Knots((1.0,))},
        merge=Merge(horizon=0.0, every=None, start=Never()),
    )
    job = blobs.training(method, 3, probe=Falls(), on_collapse="rollback")
    job.run()
    assert [len(record.get("rollbacks", ())) for record in job.history] == [0, 1, 0]
    learner = job.learners["robust"].objective
    assert learner.cost == 4
    assert not learner.weak(0.5)
    assert learner.stronger == replace(learner.attack, steps=2)
    assert learner.attack.step_factor == 1  # two steps of eps/2


@pytest.mark.slow
def test_it_learns_digits_at_less_than_two_fifths_of_the_cost(tmp_path):
    results = {}
    for method in ("pgd-at", "gat"):
        given = {"method": method, "data": "digits", "eps": 0.1, "rounds": 12, "width": 0.5}
        more = {"keep": "last", "horizon": 5, "precision": "float32"}
        run = train(parse(given | more), tmp_path / method)
        spent = run.read_json("summary.json")["gradient_evaluations"]
        last = json.loads((run.path / "log.jsonl").read_text().splitlines()[-1])
        results[method] = (spent, last["global"]["robust_accuracy"])
    assert results["gat"][0] <= 0.4 * results["pgd-at"][0]
    assert results["gat"][1] > max(0.5, results["pgd-at"][1] - 0.05)
