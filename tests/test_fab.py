"""FAB and FAB-T: against exact distances, and as an attack among others."""

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.optimize import brentq, linprog, minimize
from torch import Tensor, nn

from equipoise.attacks import core
from equipoise.attacks.fab import FAB, FABT
from equipoise.attacks.fab_projections import project
from equipoise.draws import KeyedDraws
from equipoise.errors import UserError
from equipoise.execution import Execution, fast
from equipoise.execution.form import misclassified
from equipoise.losses import margin
from equipoise.threat import L1, L2, Linf, Threat
from problems import LinearProblem, held_out, linear_problem, small_net, support

NORMS = ("linf", "l2", "l1")
ORDER = {"linf": math.inf, "l2": 2, "l1": 1}
SMALL = {"linf": Linf(0.1), "l2": L2(0.5), "l1": L1(1.5)}
ATTACKS = [
    pytest.param(FAB(steps=12), id="fab"),
    pytest.param(FABT(steps=12), id="fab-t"),
]


# --- projections ---


def planes(seed: int, count: int, size: int, far: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return points, half of them on the border in part, gradients and values, in float64."""
    generator = torch.Generator().manual_seed(seed)
    points = torch.rand(count, size, generator=generator, dtype=torch.float64)
    points[::2] = (points[::2] * 1.8 - 0.4).clamp(0, 1)
    w = torch.randn(count, size, generator=generator, dtype=torch.float64)
    w[:, :2] = 0
    value = far * torch.randn(count, generator=generator, dtype=torch.float64)
    return points, w, value * w.norm(dim=1)


def reachable(points: Tensor, w: Tensor, value: Tensor) -> Tensor:
    """Tell whether the hyperplane meets the unit box."""
    to_least = torch.where(w > 0, -points, 1 - points)
    to_most = torch.where(w > 0, 1 - points, -points)
    return ((w * to_least).sum(1) <= -value) & (-value <= (w * to_most).sum(1))


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("far", [0.05, 0.5, 5.0])
@pytest.mark.parametrize("size", [5, 90, 900])
def test_projections_end_on_the_plane_or_at_the_border(norm, far, size):
    points, w, value = planes(1, 60, size, far)
    delta = project(points, w, value, norm)
    met = reachable(points, w, value)
    assert met.any() or far == 5.0
    ends = points + delta
    assert ((ends >= -1e-12) & (ends <= 1 + 1e-12)).all()
    assert (delta[:, :2] == 0).all()
    left = (w * delta).sum(1) + value
    assert (left[met].abs() <= 1e-10 * value.abs().max()).all()
    extreme = torch.where((w > 0) == (value > 0)[:, None], 0.0, 1.0).double()
    counts = w != 0
    lost = ~met
    assert ((ends - extreme)[lost][counts[lost]].abs() <= 1e-12).all()


@pytest.mark.parametrize("norm", ["linf", "l1"])
def test_projections_are_the_optimum_of_a_linear_program(norm):
    points, w, value = planes(2, 12, 7, 0.3)
    delta = project(points, w, value, norm)
    met = reachable(points, w, value)
    assert met.sum() >= 8
    for p, g, v, found in zip(points[met], w[met], value[met], delta[met], strict=True):
        size, up, down = len(p), (1 - p).numpy(), p.numpy()
        if norm == "l1":  # delta = plus - minus
            cost = np.ones(2 * size)
            plane = np.concatenate([g.numpy(), -g.numpy()])[None]
            best = linprog(
                cost, A_eq=plane, b_eq=[-v.item()],
                bounds=[(0, u) for u in [*up, *down]],
            )  # fmt: skip
        else:  # |delta_i| <= t
            sides = np.block([[np.eye(size)], [-np.eye(size)]])
            best = linprog(
                np.append(np.zeros(size), 1),
                A_ub=np.hstack([sides, -np.ones((2 * size, 1))]), b_ub=np.zeros(2 * size),
                A_eq=np.append(g.numpy(), 0)[None], b_eq=[-v.item()],
                bounds=[*zip(-down, up, strict=True), (0, None)],
            )  # fmt: skip
        assert best.success
        assert found.norm(ORDER[norm]).item() == pytest.approx(best.fun, abs=1e-9)


def test_the_l2_projection_is_the_root_of_its_dual_problem():
    # The nearest point is clip(-t w) for the t at which it lies on the plane.
    points, w, value = planes(3, 30, 50, 0.3)
    delta = project(points, w, value, "l2")
    met = reachable(points, w, value)
    assert met.sum() >= 20
    for p, g, v, found in zip(points[met], w[met], value[met], delta[met], strict=True):

        def moved(t: float, p: Tensor = p, g: Tensor = g) -> Tensor:
            return torch.minimum(torch.maximum(-t * g, -p), 1 - p)

        t = brentq(lambda t, g=g, v=v: float(g @ moved(t) + v), -1e3, 1e3, xtol=1e-14)
        assert (moved(t) - found).abs().max() <= 1e-9


def test_the_l2_projection_is_the_optimum_of_a_quadratic_program():
    points, w, value = planes(3, 12, 6, 0.3)
    delta = project(points, w, value, "l2")
    met = reachable(points, w, value)
    assert met.sum() >= 8
    for p, g, v, found in zip(points[met], w[met], value[met], delta[met], strict=True):
        best = minimize(
            lambda d: float(d @ d), np.zeros(len(p)), jac=lambda d: 2 * d, method="SLSQP",
            bounds=list(zip((-p).numpy(), (1 - p).numpy(), strict=True)),
            constraints={"type": "eq", "fun": lambda d, g=g, v=v: d @ g.numpy() + v.item()},
        )  # fmt: skip
        assert found.square().sum() <= best.fun + 1e-6
        assert torch.from_numpy(best.x).sub(found).abs().max() <= 1e-3


@pytest.mark.parametrize("norm", NORMS)
def test_projections_do_not_care_for_scale_side_and_range(norm):
    points, w, value = planes(4, 40, 30, 0.3)
    delta = project(points, w, value, norm)
    for factor in (-1.0, 1e-30, 1e30):
        assert (project(points, factor * w, factor * value, norm) - delta).abs().max() <= 1e-12
    wide = project(4 * points - 1, w, 4 * value, norm, low=-1, high=3)
    assert (wide - 4 * delta).abs().max() <= 1e-12
    single = project(points.float(), w.float(), value.float(), norm)
    assert single.dtype == torch.float32
    assert (single - delta).abs().max() <= 1e-5


@pytest.mark.parametrize("norm", NORMS)
def test_one_plane_serves_several_points(norm):
    points, w, value = planes(5, 10, 100, 0.3)
    both, values = torch.stack([points, points.flip(1)]), torch.stack([value, value.neg()])
    found = project(both, w, values, norm)
    for one, v, delta in zip(both, values, found, strict=True):
        assert (project(one, w, v, norm) - delta).abs().max() <= 1e-12


@pytest.mark.parametrize("norm", NORMS)
def test_a_plane_without_gradient_moves_nothing(norm):
    delta = project(torch.rand(3, 8), torch.zeros(3, 8), torch.tensor([1.0, 0.0, -1.0]), norm)
    assert (delta == 0).all()


@pytest.mark.parametrize("threat", [Linf(0.02), L2(0.3), L1(1.0)], ids=repr)
def test_rows_that_are_moved_in_parts_move_alike(monkeypatch, threat):
    net, (x, y) = copy.deepcopy(small_net()).double(), held_out(12)
    points, whole = FABT(steps=8).nearest(net, x.double(), y, threat)
    monkeypatch.setattr(core, "_CACHED", 200)
    again, parts = FABT(steps=8).nearest(net, x.double(), y, threat)
    assert whole.isfinite().sum() > 6
    assert (parts - whole).nan_to_num(0).abs().max() < 1e-9
    assert (again - points).abs().max() < 1e-6


# --- exact answers ---


def exact_distances(problem: LinearProblem, norm: str) -> Tensor:
    """Return the distance of each example to the nearest other class within the box."""
    weight, bias = problem.model.weight.detach(), problem.model.bias.detach()
    x, y = problem.x.flatten(1), problem.y
    nearest = torch.full((len(x),), torch.inf, dtype=torch.float64)
    for k in range(len(bias)):
        direction = weight[k] - weight[y]
        need = -((direction * x).sum(1) + bias[k] - bias[y])[:, None]
        low = torch.zeros_like(need)
        high = low + {"linf": 1, "l2": 6, "l1": 36}[norm]
        for _ in range(30):
            middle = (low + high) / 2
            enough = support(direction, x, norm, middle)[:, None] >= need
            low, high = torch.where(enough, low, middle), torch.where(enough, middle, high)
        distance = torch.where(need <= 0, 0, high)[:, 0]
        nearest = torch.minimum(nearest, torch.where(y == k, torch.inf, distance))
    return nearest


@pytest.mark.slow
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("classes", [2, 4])
def test_distances_to_linear_decisions_are_exact(norm, classes):
    problem = linear_problem(1, classes=classes, count=40)
    exact = exact_distances(problem, norm)
    wrong = exact == 0
    assert 0 < wrong.sum() < 10
    for eta, most in ((1.0002, 1e-3), (1.05, 0.01)):
        found = FABT(steps=40)
        found = replace(found, eta=eta).nearest(
            problem.model, problem.x, problem.y, Threat(norm, 1.0)
        )[1]
        assert found.dtype == torch.float64
        assert (found[wrong] == 0).all()
        ratio = (found / exact)[~wrong]
        assert ratio.min() >= 1 - 1e-6
        assert ratio.max() <= 1 + most


@pytest.mark.slow
@pytest.mark.parametrize("norm", NORMS)
def test_untargeted_fab_finds_the_nearest_of_the_planes(norm):
    # With two classes there is one plane. With four its choice can be the wrong one, rarely.
    for classes, share in ((2, 1.0), (4, 0.85)):
        problem = linear_problem(2, classes=classes, count=40)
        exact = exact_distances(problem, norm)
        found = FAB(steps=40).nearest(problem.model, problem.x, problem.y, Threat(norm, 1.0))[1]
        close = (found >= exact * (1 - 1e-6)) & (found <= exact * 1.01)
        assert close.float().mean() >= share


@pytest.mark.slow
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("factory", [FAB, FABT])
@pytest.mark.parametrize("share", [0.4, 1.0])
def test_verdicts_on_linear_decisions_are_exact(norm, factory, share):
    problem = linear_problem(3, classes=3, count=100)
    exact = exact_distances(problem, norm)
    threat = Threat(norm, share * exact.median().item())
    x_adv = factory(steps=30)(problem.model, problem.x, problem.y, threat)
    attained = problem.attained(x_adv)
    assert (attained >= problem.worst(threat) - 1e-9).all()
    fooled, robust = attained < 0, problem.robust(threat)
    assert not (fooled & robust).any()
    assert 10 < robust.sum() < 90
    missed = ~fooled & ~robust & (exact < 0.999 * threat.eps)
    assert missed.sum() <= (1 if factory is FABT else 5)


# --- a slow reference ---


def slow_fab_t(net, x: Tensor, y: int, target: int, steps: int, beta: float) -> float:
    """Return the Linf distance that one targeted search finds for one example, (1, D)."""
    point, least = x.clone(), math.inf
    for _ in range(steps):
        leaf = point.clone().requires_grad_(True)
        logits = net(leaf)[0]
        value = logits[target] - logits[y]
        (w,) = torch.autograd.grad(value, leaf)
        value = value.detach()[None]
        toward = project(point, w, value, "linf")
        clean = project(x, w, value + (w * (x - point)).sum(), "linf")
        near, far = (max(delta.abs().max().item(), 1e-8) for delta in (toward, clean))
        alpha = min(near / (near + far), 0.1)
        point = ((1 - alpha) * (point + 1.05 * toward) + alpha * (x + 1.05 * clean)).clamp(0, 1)
        if net(point).argmax() != y:
            least = min(least, (point - x).abs().max().item())
            point = x + beta * (point - x)
    return least


@pytest.mark.parametrize("beta", [0.9, 0.5])  # from farther away alpha meets its limit
def test_fab_t_is_its_formula(beta):
    problem = linear_problem(7, classes=4, count=10, shape=(12,))
    linear = problem.model

    def net(x: Tensor) -> Tensor:
        return linear((3 * x).sin())  # not linear: each step has another plane

    class Net(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return net(x)

    x = problem.x
    with torch.no_grad():
        logits = net(x)
    y = logits.argmax(1)
    order = logits.argsort(dim=1, descending=True)
    found = FAB(steps=9, targets=2, beta=beta).nearest(Net(), x, y, Linf(0.5))[1]
    expected = [
        min(slow_fab_t(net, x[i : i + 1], int(y[i]), int(order[i, t]), 9, beta) for t in (1, 2))
        for i in range(len(x))
    ]
    assert (found - torch.tensor(expected, dtype=torch.float64)).abs().max() <= 1e-9


# --- what comes back ---


@pytest.mark.slow
@pytest.mark.parametrize("threat", SMALL.values(), ids=repr)
@pytest.mark.parametrize("attack", ATTACKS)
def test_results_are_allowed_and_stronger_than_x(attack, threat):
    net, (x, y) = small_net(), held_out(60)
    before = x.clone()
    x_adv = attack(net, x, y, threat)
    assert threat.contains(x, x_adv).all()
    assert torch.equal(x, before)
    assert x_adv.shape == x.shape
    assert x_adv.dtype == x.dtype
    assert not x_adv.requires_grad
    right = net(x).argmax(1) == y
    fooled = net(x_adv).argmax(1) != y
    assert 0.2 < fooled.float().mean() < 1
    assert torch.equal(x_adv[~right], x[~right])
    survivors = right & ~fooled
    clean, attacked = margin(net(x), y), margin(net(x_adv), y)
    assert (attacked > clean)[survivors].all()
    assert (threat.distance(x, x_adv) > 0.9 * threat.eps)[survivors].all()


@pytest.mark.slow
@pytest.mark.parametrize("attack", ATTACKS)
def test_the_nearest_points_are_misclassified_and_not_farther_than_the_attacks(attack):
    net, (x, y) = small_net(), held_out(40)
    for threat in SMALL.values():
        points, distances = attack.nearest(net, x, y, threat)
        found = distances.isfinite()
        assert found.float().mean() > 0.9
        assert (net(points).argmax(1) != y)[found].all()
        assert torch.equal(threat.distance(x, points)[found], distances[found])
        assert torch.equal(points[~found], x[~found])
        fooled = net(attack(net, x, y, threat)).argmax(1) != y
        assert fooled[distances <= threat.eps].all()


@pytest.mark.parametrize("attack", ATTACKS)
def test_zero_radius_and_empty_batches_come_back(attack):
    net, (x, y) = small_net(), held_out(20)
    for threat in SMALL.values():
        assert torch.equal(attack(net, x, y, replace(threat, eps=0.0)), x)
        assert attack(net, x[:0], y[:0], threat).shape == (0, 1, 8, 8)
        points, distances = attack.nearest(net, x[:0], y[:0], threat)
        assert points.shape == (0, 1, 8, 8)
        assert distances.shape == (0,)


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("shape", [(1, 6, 6), (3, 5, 9), (7,)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_any_shape_and_float_type_works(attack, norm, shape, dtype):
    problem = linear_problem(5, classes=3, shape=shape, count=8, dtype=dtype)
    x_adv = attack(problem.model, problem.x, problem.y, SMALL[norm])
    assert x_adv.dtype == dtype
    assert x_adv.shape == problem.x.shape
    assert SMALL[norm].contains(problem.x, x_adv).all()
    assert (problem.attained(x_adv) < problem.attained(problem.x)).all()


@pytest.mark.slow
@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("classes", [2, 3, 12])
def test_any_number_of_classes_works(attack, classes):
    problem = linear_problem(6, classes=classes, count=20)
    for threat in SMALL.values():
        x_adv = attack(problem.model, problem.x, problem.y, threat)
        assert threat.contains(problem.x, x_adv).all()
        breakable = exact_distances(problem, threat.norm) < 0.99 * threat.eps
        fooled = problem.attained(x_adv) < 0
        assert breakable.any()
        assert fooled[breakable].float().mean() >= 0.9


@pytest.mark.parametrize("norm", NORMS)
def test_another_range_works(norm):
    problem = linear_problem(8, classes=3, count=20)

    class Shifted(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return problem.model((x + 1) / 4)

    threat = SMALL[norm]
    wide = Threat(norm, 4 * threat.eps, low=-1.0, high=3.0)
    x_adv = FABT(steps=20)(Shifted(), 4 * problem.x - 1, problem.y, wide)
    expected = FABT(steps=20)(problem.model, problem.x, problem.y, threat)
    assert (x_adv - (4 * expected - 1)).abs().max() <= 1e-6


@pytest.mark.parametrize("attack", ATTACKS)
def test_memory_layout_does_not_matter(attack):
    problem = linear_problem(6, classes=3, shape=(3, 5, 9), count=8)
    x = problem.x.to(memory_format=torch.channels_last)
    for threat in SMALL.values():
        found = attack(problem.model, x, problem.y, threat)
        expected = attack(problem.model, problem.x, problem.y, threat)
        assert (found - expected).abs().max() <= 1e-9


@pytest.mark.slow
@pytest.mark.parametrize("attack", ATTACKS)
def test_results_do_not_depend_on_the_batch(attack):
    net, (x, y) = copy.deepcopy(small_net()).double(), held_out(30)
    x, attack = x.double(), replace(attack, restarts=2)
    for threat in SMALL.values():
        whole = attack(net, x, y, threat)
        parts = [attack(net, x[i : i + 7], y[i : i + 7], threat) for i in range(0, 30, 7)]
        assert (torch.cat(parts) - whole).abs().max() <= 1e-6


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_a_model_that_returns_no_numbers_does_no_harm(attack, bad):
    class Broken(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            logits = x.flatten(1)[:, :4] * torch.tensor([1.0, -2.0, 3.0, 0.5])
            ill = (x.flatten(1).sum(1) * 1e4).long() % 2 == 0
            return torch.where(ill[:, None], logits * bad, logits)

    x, y = held_out(12)
    x = x * 0.8 + 0.1
    for threat in SMALL.values():
        x_adv = attack(Broken(), x, y % 4, threat)
        assert threat.contains(x, x_adv).all()


@pytest.mark.parametrize("attack", ATTACKS)
def test_models_without_gradient_do_no_harm(attack):
    class Flat(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1)[:, :3] * 0 + torch.tensor([1.0, 2.0, 0.0])

    x, y = held_out(10)[0], torch.arange(10) % 3
    points, distances = attack.nearest(Flat(), x, y, Linf(0.1))
    assert torch.equal(distances == 0, y != 1)
    assert distances[y == 1].isinf().all()
    assert torch.equal(points, x)


# --- restarts and randomness ---


@pytest.mark.slow
@pytest.mark.parametrize("attack", ATTACKS)
def test_more_restarts_are_never_worse(attack):
    net, (x, y) = small_net(), held_out(30)
    for threat in SMALL.values():
        once, thrice = (
            replace(attack, restarts=restarts).nearest(net, x, y, threat)[1] for restarts in (1, 3)
        )
        assert (thrice <= once).all()
        if threat.norm == "l2":
            assert (thrice < once).float().mean() > 0.1


def test_the_first_search_is_not_random_and_the_others_are():
    net, (x, y) = small_net(), held_out(40)
    zero, one = (KeyedDraws.of(x, seed=seed) for seed in (0, 1))
    for restarts, same in ((1, True), (2, False)):
        attack = FABT(steps=12, restarts=restarts)
        results = [attack.nearest(net, x, y, L2(0.5), draws=draws)[1] for draws in (zero, one)]
        assert torch.equal(*results) == same


def test_restarts_begin_at_half_the_radius_or_half_the_distance():
    net, (x, y) = copy.deepcopy(small_net()), held_out(50)
    x = 0.8 * x + 0.1  # away from the border, so that no start is cut
    right = net(x).argmax(1) == y
    x, y = x[right], y[right]
    seen: list[Tensor] = []
    for norm, eps in (("linf", 0.05), ("l2", 0.15), ("l1", 0.3)):
        threat = Threat(norm, eps)
        attack = FABT(steps=1, targets=9)
        expected = attack.nearest(net, x, y, threat)[1].clamp_max(eps) / 2
        assert (expected == eps / 2).any()
        assert (expected < eps / 2).any()
        handle = net.register_forward_pre_hook(lambda _m, inputs: seen.append(inputs[0].detach()))
        replace(attack, restarts=2).nearest(net, x, y, threat)
        handle.remove()
        start = seen[3]  # after the clean pass and the two of the first step
        radius = threat.distance(x.repeat_interleave(9, 0), start).view(-1, 9)
        assert (radius <= expected[:, None] + 1e-6).all()
        assert (radius >= 0.999 * expected[:, None]).float().mean() > 0.9
        assert len(start.unique(dim=0)) == len(start)
        seen.clear()


# --- cost ---


def counted(net: nn.Module) -> list[int]:
    sizes: list[int] = []
    net.register_forward_hook(lambda _module, inputs, _out: sizes.append(len(inputs[0])))
    return sizes


@pytest.mark.slow
@pytest.mark.parametrize("norm", NORMS)
def test_fooled_examples_leave_with_all_their_targets(norm):
    net, (x, y) = copy.deepcopy(small_net()), held_out(60)
    survivors = int((net(FABT(steps=20)(net, x, y, SMALL[norm])).argmax(1) == y).sum())
    sizes = counted(net)
    FABT(steps=20)(net, x, y, SMALL[norm])
    right = int((net(x).argmax(1) == y).sum())
    assert sizes[0] == 60
    assert sizes[1] == sizes[2] == 9 * right
    steps = sizes[1:41]
    assert steps == sorted(steps, reverse=True)
    assert all(size % 9 == 0 for size in steps)
    assert sizes[41] <= steps[-1]  # the ends, judged once
    assert 9 * survivors <= sizes[41] < steps[0] / 1.5


def test_nothing_runs_once_everything_is_fooled():
    net, (x, y) = copy.deepcopy(small_net()), held_out(20)
    sizes = counted(net)
    FABT(steps=100, restarts=5)(net, x, y, Linf(0.9))
    assert len(sizes) < 20


def test_untargeted_steps_take_one_row_and_one_backward_pass_a_rival():
    net, (x, y) = copy.deepcopy(small_net()), held_out(20)
    right = net(x).argmax(1) == y
    x, y = x[right], y[right]
    form = fast(net, x, Execution(precision="float32"))
    FAB(steps=3).nearest(form, x, y, Linf(0.05))
    assert form.backwards == 3 * 9 * len(x)
    assert FAB().rows_per_example(10) == 1


# --- the search form ---


@pytest.mark.slow
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("attack", ATTACKS)
def test_what_the_search_form_finds_fools_the_model(norm, attack):
    net, (x, y) = small_net(), held_out(60)
    form = fast(net, x, Execution(precision="bfloat16"))
    assert form.precision == "bfloat16"
    judged: list[Tensor] = []
    decide = form.decide
    form.decide = lambda points: judged.append(decide(points)) or judged[-1]
    x_adv = attack(form, x, y, SMALL[norm])
    with torch.no_grad():
        fooled, expected = (
            net(points).argmax(1) != y for points in (x_adv, attack(net, x, y, SMALL[norm]))
        )
    assert SMALL[norm].contains(x, x_adv).all()
    assert judged
    assert (fooled != expected).sum() <= 2
    points, distances = attack.nearest(form, x, y, SMALL[norm])
    assert (net(points).argmax(1) != y)[distances.isfinite()].all()


def test_a_search_form_that_is_wrong_is_not_believed():
    class Wrong(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return 1.0 - small_net()(x) * 0.01

    net, (x, y) = small_net(), held_out(20)
    form = fast(net, x, Execution(precision="float32"))
    form.search = Wrong()
    x_adv = FABT(steps=5)(form, x, y, Linf(1e-4))
    right = net(x).argmax(1) == y
    assert (form(x).argmax(1) != y)[right].any()
    assert not torch.equal(x_adv[right], x[right])
    assert torch.equal(misclassified(form, x_adv, form(x_adv), y), ~right)


# --- settings ---


def test_few_classes_are_noted():
    assert FABT().rows_per_example(10) == 9
    assert FABT().rows_per_example(3) == 2
    assert FABT().notes(10) == FAB().notes(3) == FABT(targets=2).notes(3) == []
    assert FABT().notes(3) == ["FAB-T has 2 targets instead of 9"]
    assert FABT().notes(2) == ["FAB-T has 1 target instead of 9"]
    assert FABT(targets=4, steps=7) == FAB(targets=4, steps=7)


@pytest.mark.parametrize(
    "options",
    [
        {"steps": 0},
        {"restarts": 1.5},
        {"targets": 0},
        {"alpha_max": 1.5},
        {"eta": 0.9},
        {"eta": math.inf},
        {"beta": -0.1},
        {"beta": math.nan},
        {"norms": ("l0",)},
        {"norms": ()},
    ],
    ids=str,
)
def test_options_that_cannot_be_meant_are_refused(options):
    (name,) = options
    with pytest.raises(UserError, match=name):
        FAB(**options)


def test_all_problems_come_at_once_and_other_norms_are_refused():
    with pytest.raises(UserError) as refused:
        FAB(steps=0, eta=0.5, targets="many")
    assert all(name in str(refused.value) for name in ("steps", "eta", "targets"))
    net, (x, y) = small_net(), held_out(4)
    with pytest.raises(UserError, match="not l2"):
        FAB(norms=("linf",))(net, x, y, L2(0.1))
