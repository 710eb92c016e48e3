"""Carlini and Wagner's L2 attack: against exact distances, and as an attack among others."""

import copy
import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from equipoise.attacks.carlini_wagner import CarliniWagnerL2
from equipoise.errors import UserError
from equipoise.execution import Execution, fast
from equipoise.losses import margin
from equipoise.threat import L2, Linf, Threat
from problems import LinearProblem, held_out, linear_problem, small_net, support

QUICK = CarliniWagnerL2(steps=40, binary_search_steps=4, initial_const=0.1)
THREAT = L2(0.5)


def exact_distances(problem: LinearProblem) -> Tensor:
    """Return the L2 distance of each example to the nearest other class within the box."""
    weight, bias = problem.model.weight.detach(), problem.model.bias.detach()
    x, y = problem.x.flatten(1), problem.y
    nearest = torch.full((len(x),), torch.inf, dtype=torch.float64)
    for k in range(len(bias)):
        direction = weight[k] - weight[y]
        need = -((direction * x).sum(1) + bias[k] - bias[y])[:, None]
        low, high = torch.zeros_like(need), torch.full_like(need, 6.0)
        for _ in range(30):
            middle = (low + high) / 2
            enough = support(direction, x, "l2", middle)[:, None] >= need
            low, high = torch.where(enough, low, middle), torch.where(enough, middle, high)
        distance = torch.where(need <= 0, 0, high)[:, 0]
        nearest = torch.minimum(nearest, torch.where(y == k, torch.inf, distance))
    return nearest


@pytest.mark.slow
@pytest.mark.parametrize("classes", [2, 4])
def test_distances_to_linear_decisions_are_nearly_exact(classes):
    # Adam's first steps are as long for a short way as for a long one: not for the shortest.
    problem = linear_problem(0, classes=classes, count=40)
    exact = exact_distances(problem)
    points, found = CarliniWagnerL2().nearest(problem.model, problem.x, problem.y, THREAT)
    assert (found >= exact * (1 - 1e-6)).all()
    assert (found[exact == 0] == 0).all()
    assert (problem.attained(points) <= 0).all()
    ratio = (found / exact)[exact > 0.15]
    assert len(ratio) >= 15
    assert ratio.mean() <= 1.02
    assert ratio.max() <= 1.1


def test_no_provably_robust_point_is_broken():
    for classes in (2, 5):
        problem = linear_problem(3, classes=classes, count=60)
        for eps in (0.1, 0.4):
            threat = L2(eps)
            x_adv = QUICK(problem.model, problem.x, problem.y, threat)
            attained = problem.attained(x_adv)
            assert threat.contains(problem.x, x_adv).all()
            assert (attained >= problem.worst(threat) - 1e-9).all()
            assert (attained[problem.robust(threat)] > 0).all()
            breakable = problem.worst(threat) < 0
            assert (attained[breakable] < 0).float().mean() > 0.5


@pytest.mark.slow
def test_steps_are_those_of_adam():
    # One example, one descent: the way of torch's own optimiser on the formula of the paper.
    net, (x, y) = copy.deepcopy(small_net()).double(), held_out(1)
    x, c = (0.9 * x + 0.05).double(), 3.0
    w = torch.atanh((2 * x - 1) * 0.999999).requires_grad_(True)
    optimizer = torch.optim.Adam([w], lr=0.03)
    least = math.inf
    for _ in range(60):
        point = (w.tanh() + 1) / 2
        logits = net(point)
        distance = (point - x).square().sum()
        if logits.argmax(1) != y:
            least = min(least, distance.sqrt().item())
        loss = distance + c * (-margin(logits, y)).clamp_min(0).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    attack = CarliniWagnerL2(steps=60, binary_search_steps=1, lr=0.03, initial_const=c)
    assert math.isfinite(least)
    found = attack.nearest(net, x, y, THREAT)[1].item()
    assert found == pytest.approx(least, rel=1e-9)


@pytest.mark.slow
def test_more_effort_is_not_worse():
    net, (x, y) = small_net(), held_out(30)
    distances = [
        replace(QUICK, binary_search_steps=count).nearest(net, x, y, THREAT)[1]
        for count in (1, 3, 6)
    ]
    for fewer, more in pairwise(distances):
        assert (more <= fewer).all()
        assert (more < fewer).any()


def test_confidence_is_the_margin_of_what_is_found():
    net, (x, y) = small_net(), held_out(30)
    timid, sure = (replace(QUICK, confidence=kappa) for kappa in (0.0, 2.0))
    near, far = (attack.nearest(net, x, y, THREAT) for attack in (timid, sure))
    found = far[1].isfinite() & (far[1] > 0)
    assert found.sum() > 20
    assert (margin(net(far[0]), y)[found] >= 2.0).all()
    assert margin(net(near[0]), y)[found].median() < 1.0
    assert (far[1] >= near[1])[found].float().mean() > 0.9


@pytest.mark.parametrize("offset", [0.0, 100.0, -100.0])
def test_the_sign_of_the_logits_does_not_matter(offset):
    problem = linear_problem(4, classes=3, count=20)
    shifted = copy.deepcopy(problem.model)
    with torch.no_grad():
        shifted.bias += offset
    expected = QUICK.nearest(problem.model, problem.x, problem.y, THREAT)[1]
    found = QUICK.nearest(shifted, problem.x, problem.y, THREAT)[1]
    assert torch.allclose(found, expected, rtol=1e-6, atol=1e-9)


# --- what comes back ---


def test_results_are_allowed_and_stronger_than_x():
    net, (x, y) = small_net(), held_out(40)
    before = x.clone()
    x_adv = QUICK(net, x, y, THREAT)
    assert THREAT.contains(x, x_adv).all()
    assert torch.equal(x, before)
    assert x_adv.dtype == x.dtype
    assert not x_adv.requires_grad
    right = net(x).argmax(1) == y
    fooled = net(x_adv).argmax(1) != y
    assert 0.2 < fooled.float().mean() < 1
    assert torch.equal(x_adv[~right], x[~right])
    survivors = right & ~fooled
    assert (margin(net(x_adv), y) > margin(net(x), y))[survivors].all()
    assert (THREAT.distance(x, x_adv) > 0.9 * THREAT.eps)[survivors].all()
    distances = QUICK.nearest(net, x, y, THREAT)[1]
    assert fooled[distances <= THREAT.eps].all()


def test_zero_radius_and_empty_batches_come_back():
    net, (x, y) = small_net(), held_out(10)
    assert torch.equal(QUICK(net, x, y, L2(0.0)), x)
    assert QUICK(net, x[:0], y[:0], THREAT).shape == (0, 1, 8, 8)
    points, distances = QUICK.nearest(net, x[:0], y[:0], THREAT)
    assert points.shape == (0, 1, 8, 8)
    assert distances.shape == (0,)


@pytest.mark.parametrize("shape", [(1, 6, 6), (3, 5, 9), (7,)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("classes", [2, 12])
def test_any_shape_float_type_and_number_of_classes_works(shape, dtype, classes):
    problem = linear_problem(5, classes=classes, shape=shape, count=8, dtype=dtype)
    x_adv = QUICK(problem.model, problem.x, problem.y, THREAT)
    assert x_adv.dtype == dtype
    assert x_adv.shape == problem.x.shape
    assert THREAT.contains(problem.x, x_adv).all()
    assert (problem.attained(x_adv) < problem.attained(problem.x)).all()


def test_memory_layout_does_not_matter():
    problem = linear_problem(6, classes=3, shape=(3, 5, 9), count=8)
    x = problem.x.to(memory_format=torch.channels_last)
    found = QUICK(problem.model, x, problem.y, THREAT)
    assert (found - QUICK(problem.model, problem.x, problem.y, THREAT)).abs().max() <= 1e-9


def test_another_range_works():
    problem = linear_problem(8, classes=3, count=10)

    class Shifted(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return problem.model((x + 1) / 4)

    wide = Threat("l2", 2.0, low=-1.0, high=3.0)
    found = QUICK.nearest(Shifted(), 4 * problem.x - 1, problem.y, wide)[1]
    expected = QUICK.nearest(problem.model, problem.x, problem.y, THREAT)[1]
    assert torch.allclose(found, 4 * expected, rtol=1e-4)


@pytest.mark.slow
def test_results_do_not_depend_on_the_batch():
    net, (x, y) = copy.deepcopy(small_net()).double(), held_out(20)
    x = x.double()
    for run in (lambda *some: QUICK(*some, THREAT), lambda *some: QUICK.nearest(*some, THREAT)[0]):
        whole = run(net, x, y)
        parts = [run(net, x[i : i + 7], y[i : i + 7]) for i in range(0, 20, 7)]
        assert (torch.cat(parts) - whole).abs().max() <= 1e-6


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_a_model_that_returns_no_numbers_does_no_harm(bad):
    class Broken(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            logits = x.flatten(1)[:, :4] * torch.tensor([1.0, -2.0, 3.0, 0.5])
            ill = (x.flatten(1).sum(1) * 1e4).long() % 2 == 0
            return torch.where(ill[:, None], logits * bad, logits)

    x, y = held_out(12)
    x = x * 0.8 + 0.1
    assert THREAT.contains(x, QUICK(Broken(), x, y % 4, THREAT)).all()


# --- cost ---


def counted(net: nn.Module) -> list[int]:
    sizes: list[int] = []
    net.register_forward_hook(lambda _module, inputs, _out: sizes.append(len(inputs[0])))
    return sizes


@pytest.mark.slow
def test_examples_leave_when_they_are_fooled_within_the_radius():
    net, (x, y) = copy.deepcopy(small_net()), held_out(40)
    right = int((net(x).argmax(1) == y).sum())
    left = int((net(QUICK(net, x, y, THREAT)).argmax(1) == y).sum())
    sizes = counted(net)
    QUICK(net, x, y, THREAT)
    assert sizes[0] == 40
    assert sizes[1] == right
    assert max(sizes[-39:]) < right
    assert sizes[-39:] == sorted(sizes[-39:], reverse=True)
    assert left <= sizes[-39]
    spent = sum(sizes)
    sizes.clear()
    QUICK(net, x, y, L2(5.0))
    assert sum(sizes) < spent / 2


def test_a_descent_that_brings_nothing_ends_early():
    class Flat(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1)[:, :3] * 0 + torch.tensor([1.0, 2.0, 0.0])

    net, (x, y) = Flat(), (held_out(6)[0], torch.ones(6).long())
    sizes = counted(net)
    points, distances = CarliniWagnerL2(steps=100, binary_search_steps=2).nearest(
        net, x, y, THREAT
    )
    assert distances.isinf().all()
    assert torch.equal(points, x)
    assert len(sizes) <= 1 + 2 * 21


@pytest.mark.slow
def test_what_the_search_form_finds_fools_the_model():
    net, (x, y) = small_net(), held_out(40)
    form = fast(net, x, Execution(precision="bfloat16"))
    assert form.precision == "bfloat16"
    x_adv = QUICK(form, x, y, THREAT)
    points, distances = QUICK.nearest(form, x, y, THREAT)
    with torch.no_grad():
        fooled = net(x_adv).argmax(1) != y
        assert (net(points).argmax(1) != y)[distances.isfinite()].all()
        expected = net(QUICK(net, x, y, THREAT)).argmax(1) != y
    assert THREAT.contains(x, x_adv).all()
    assert (fooled != expected).sum() <= 2


# --- settings ---


@pytest.mark.parametrize(
    "options",
    [
        {"steps": 0},
        {"binary_search_steps": 2.5},
        {"confidence": -1.0},
        {"lr": 0.0},
        {"initial_const": math.nan},
        {"norms": ("linf",)},
    ],
    ids=str,
)
def test_options_that_cannot_be_meant_are_refused(options):
    (name,) = options
    with pytest.raises(UserError, match=name):
        CarliniWagnerL2(**options)


def test_other_norms_are_refused():
    net, (x, y) = small_net(), held_out(4)
    with pytest.raises(UserError, match="not linf"):
        CarliniWagnerL2()(net, x, y, Linf(0.1))
