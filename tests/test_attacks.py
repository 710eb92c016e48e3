"""Attacks: against exact answers, against slow references, and as guests."""

import copy
import random
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

import equipoise as eq
import zoo
from equipoise.attacks import ATTACKS, FGSM, MIFGSM, PGD, Attack, CWInf, parse, parse_list
from equipoise.attacks.core import check_inputs
from equipoise.draws import GeneratorDraws, KeyedDraws
from equipoise.errors import UserError
from equipoise.threat import L1, L2, Linf, Threat
from problems import digits, held_out, linear_problem, small_layers, small_net

THREATS = [Linf(0.02), Linf(0.1), L2(0.2), L2(0.6), L1(0.5), L1(2.0)]
SMALL = {"linf": Linf(0.1), "l2": L2(0.7), "l1": L1(3.0)}


def threats_of(attack: PGD) -> list[Threat]:
    return [SMALL[norm] for norm in attack.norms]


ENSEMBLES = [name for name in ATTACKS if name.startswith("autoattack")]  # tested by themselves

# Fewer steps than by default: what is tested here does not depend on how strong an attack is.
BUDGETS = {
    "square": "square-60",
    "apgd-ce": "apgd-ce-12",
    "apgd-dlr": "apgd-dlr-12",
    "apgd-t": "apgd-t-12",
    "fab": "fab-10",
    "fab-t": "fab-t-10",
    "cw-l2": "cw-l2-20(binary_search_steps=3)",
}


def quick(name: str) -> Attack:
    """Return an attack by name, with a small budget."""
    return parse(BUDGETS.get(name, name))


CASES = [
    pytest.param(name, threat, id=f"{name}-{threat.norm}")
    for name in ATTACKS
    if name not in (*ENSEMBLES, "corruptions")  # which needs eps = 1: test_corruption_end.py
    for threat in threats_of(parse(name))
]


def patient(threat: Threat, **options: object) -> PGD:
    """Return a PGD with steps that are long enough to reach the optimum of a linear loss."""
    step_size = 0.25 * threat.eps if threat.norm == "linf" else 5 * threat.eps
    return PGD(steps=60, step_size=step_size, **options)


def counted(model: nn.Module) -> list[int]:
    """Return a list to which the batch size of every forward pass is appended."""
    sizes: list[int] = []
    model.register_forward_hook(lambda _module, inputs, _out: sizes.append(len(inputs[0])))
    return sizes


def losses_at(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    with torch.no_grad():
        return F.cross_entropy(model(x).double(), y, reduction="none")


class Refusing(nn.Module):
    """A model that fails for a batch without images, as `x.view(x.size(0), -1)` does."""

    def __init__(self) -> None:
        super().__init__()
        self.net = zoo.undefended()

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x.view(x.size(0), -1).view(x.shape))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "threat"), [case for case in CASES if "audited" not in case.id])
def test_no_model_is_asked_about_no_images(name, threat):
    x, y = digits()
    x, y = x[zoo.TRAINED_ON :][:8], y[zoo.TRAINED_ON :][:8]
    model, attack, short = Refusing(), quick(name), 0.02 if threat.norm == "linf" else 0.1
    with pytest.raises(RuntimeError, match="0 elements"):
        model(x[:0])
    for eps in (short / 20, short):
        for labels in (y, (y + 1) % 10):  # all are right, and all are wrong
            within, attacks = replace(threat, eps=eps), {name: attack}
            found = eq.evaluate(model, x, labels, threat=within, attacks=attacks, checks=False)
            assert found.finished


# --- exact answers ---


@pytest.mark.parametrize("threat", THREATS, ids=repr)
@pytest.mark.parametrize("loss", ["ce", "margin"])
@pytest.mark.parametrize("start", ["zero", "uniform"])
def test_pgd_attains_the_exact_worst_case(threat, loss, start):
    problem = linear_problem(0)
    exact = problem.worst(threat)
    x_adv = patient(threat, loss=loss, start=start)(problem.model, problem.x, problem.y, threat)
    attained = problem.attained(x_adv)
    decided = exact.abs() > 1e-5
    assert decided.sum() > 50
    assert torch.equal((attained > 0)[decided], problem.robust(threat)[decided])
    assert ((attained - exact).abs() <= 1e-4 * exact.abs()).all()
    assert problem.robust(threat).float().mean() not in (0, 1)


@pytest.mark.parametrize("threat", THREATS, ids=repr)
def test_pgd_attains_the_exact_worst_case_in_single_precision(threat):
    problem = linear_problem(1, dtype=torch.float32)
    exact = problem.worst(threat)
    x_adv = patient(threat, loss="margin")(problem.model, problem.x, problem.y, threat)
    assert (problem.attained(x_adv) - exact).abs().max() <= 1e-3
    assert threat.contains(problem.x, x_adv).all()


@pytest.mark.slow
@pytest.mark.parametrize("threat", THREATS, ids=repr)
def test_pgd_attains_the_exact_worst_case_one_example_at_a_time(threat):
    problem = linear_problem(2, count=12)
    attack = patient(threat, loss="margin", start="zero")
    rows = [
        attack(problem.model, problem.x[i : i + 1], problem.y[i : i + 1], threat)
        for i in range(12)
    ]
    assert (problem.attained(torch.cat(rows)) - problem.worst(threat)).abs().max() <= 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("threat", THREATS, ids=repr)
def test_restarts_find_the_exact_verdict_among_four_classes(threat):
    # The worst class is not known beforehand, so that a single search may end in another one.
    problem = linear_problem(0, classes=4)
    attack = patient(threat, loss="margin", restarts=20)
    attained = problem.attained(attack(problem.model, problem.x, problem.y, threat))
    exact = problem.worst(threat)
    decided = exact.abs() > 1e-5
    assert torch.equal((attained > 0)[decided], (exact > 0)[decided])
    assert (attained >= exact - 1e-9).all()


@pytest.mark.parametrize(("name", "threat"), CASES)
@pytest.mark.parametrize("classes", [2, 5])
def test_no_attack_breaks_a_provably_robust_point(name, threat, classes):
    problem = linear_problem(3, classes=classes, count=100)
    for eps in (threat.eps / 4, threat.eps):
        smaller = replace(threat, eps=eps)
        x_adv = quick(name)(problem.model, problem.x, problem.y, smaller)
        attained = problem.attained(x_adv)
        assert (attained >= problem.worst(smaller) - 1e-9).all()
        assert (attained[problem.robust(smaller)] > 0).all()
        assert smaller.contains(problem.x, x_adv).all()


@pytest.mark.parametrize("threat", THREATS, ids=repr)
def test_default_steps_come_close_to_the_worst_case(threat):
    # Of the fall of the margin that is possible, the default settings find nine tenths.
    problem = linear_problem(0)
    x_adv = PGD(steps=100)(problem.model, problem.x, problem.y, threat)
    clean = problem.attained(problem.x)
    share = (clean - problem.attained(x_adv)) / (clean - problem.worst(threat))
    assert share.min() >= 0.9


# --- slow references and identities ---


@pytest.mark.slow
@pytest.mark.parametrize("threat", [Linf(0.1), L2(0.7)], ids=repr)
def test_fgsm_is_one_step_of_pgd_from_zero(threat):
    net, (x, y) = small_net(), held_out(60)
    pgd = PGD(steps=1, step_size=threat.eps, start="zero", keep="last")
    assert torch.equal(FGSM()(net, x, y, threat), pgd(net, x, y, threat))


def test_fgsm_is_its_formula():
    net, (x, y) = small_net(), held_out(60)
    leaf = x.clone().requires_grad_(True)
    (grad,) = torch.autograd.grad(F.cross_entropy(net(leaf), y, reduction="sum"), leaf)
    expected = (x + 0.1 * grad.sign()).clamp(0, 1)
    assert (FGSM()(net, x, y, Linf(0.1)) - expected).abs().max() <= 1e-6


def slow_linf(
    net: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    start: Tensor,
    steps: int,
    step_size: float,
    eps: float,
    momentum: float | None,
    loss: Callable[[Tensor, Tensor], Tensor],
) -> list[Tensor]:
    """Return every iterate of a signed ascent, computed one example after the other."""
    iterates = [start.clone()] + [torch.empty_like(x) for _ in range(steps)]
    for i in range(len(x)):
        g = torch.zeros_like(x[i])
        point = start[i]
        for k in range(steps):
            leaf = point.clone().requires_grad_(True)
            value = loss(net(leaf[None])[0], y[i])
            (grad,) = torch.autograd.grad(value, leaf)
            g = grad if momentum is None else momentum * g + grad / grad.abs().sum()
            point = point + step_size * torch.sign(g)
            point = torch.clamp(torch.clamp(point, x[i] - eps, x[i] + eps), 0, 1)
            iterates[k + 1][i] = point
    return iterates


def strongest(net: nn.Module, iterates: list[Tensor], y: Tensor, loss) -> Tensor:
    """Return of each example the iterate to keep: misclassified ones first, then by loss."""
    kept = iterates[0].clone()
    for i in range(len(y)):
        with torch.no_grad():
            outs = [net(points[i][None])[0] for points in iterates]
        ranks = [(bool(z.argmax() != y[i]), float(loss(z, y[i]))) for z in outs]
        kept[i] = iterates[ranks.index(max(ranks))][i]
    return kept


def slow_ce(z: Tensor, label: Tensor) -> Tensor:
    return z.logsumexp(0) - z[label]


def slow_cw(confidence: float) -> Callable[[Tensor, Tensor], Tensor]:
    def loss(z: Tensor, label: Tensor) -> Tensor:
        other = torch.cat([z[:label], z[label + 1 :]]).max()
        return -torch.maximum(z[label] - other, z.new_tensor(-confidence))

    return loss


@pytest.mark.parametrize("steps", [1, 4, 10])
@pytest.mark.parametrize("momentum", [1.0, 0.5])
def test_mi_fgsm_is_its_formula(steps, momentum):
    net, (x, y) = copy.deepcopy(small_net()).double(), held_out(20)
    x, eps = x.double(), 0.1
    iterates = slow_linf(
        net, x, y, start=x, steps=steps, step_size=eps / steps, eps=eps,
        momentum=momentum, loss=slow_ce,
    )  # fmt: skip
    attack = MIFGSM(steps=steps, momentum=momentum)
    last = replace(attack, keep="last")(net, x, y, Linf(eps))
    assert (last - iterates[-1]).abs().max() <= 1e-9
    best = attack(net, x, y, Linf(eps))
    assert (best - strongest(net, iterates, y, slow_ce)).abs().max() <= 1e-9


@pytest.mark.parametrize("steps", [1, 7])
@pytest.mark.parametrize("confidence", [50.0, 0.5])
def test_cw_inf_is_its_formula(steps, confidence):
    net, (x, y) = copy.deepcopy(small_net()).double(), held_out(20)
    x, eps = x.double(), 0.1
    start = Linf(eps).start(x, KeyedDraws.of(x).child("restart 0").uniform(x))
    iterates = slow_linf(
        net, x, y, start=start, steps=steps, step_size=2.5 * eps / steps, eps=eps,
        momentum=None, loss=slow_cw(confidence),
    )  # fmt: skip
    attack = CWInf(steps=steps, confidence=confidence)
    last = replace(attack, keep="last")(net, x, y, Linf(eps))
    assert (last - iterates[-1]).abs().max() <= 1e-9
    best = attack(net, x, y, Linf(eps))
    assert (best - strongest(net, iterates, y, slow_cw(confidence))).abs().max() <= 1e-9


@pytest.mark.parametrize("threat", SMALL.values(), ids=repr)
@pytest.mark.parametrize("keep", ["best", "last"])
def test_more_restarts_are_never_worse(threat, keep):
    net, (x, y) = small_net(), held_out(80)
    results = [
        PGD(steps=3, restarts=restarts, keep=keep)(net, x, y, threat) for restarts in (1, 2, 4)
    ]
    for fewer, more in pairwise(results):
        fooled_fewer, fooled_more = (net(points).argmax(1) != y for points in (fewer, more))
        assert (fooled_more >= fooled_fewer).all()
        same = fooled_more == fooled_fewer
        worse = losses_at(net, more, y) < losses_at(net, fewer, y) - 1e-6
        assert not (same & worse).any()


@pytest.mark.parametrize("threat", SMALL.values(), ids=repr)
def test_best_is_never_worse_than_last(threat):
    net, (x, y) = small_net(), held_out(80)
    for steps in (1, 3, 10):
        best, last = (PGD(steps=steps, keep=keep)(net, x, y, threat) for keep in ("best", "last"))
        fooled_best, fooled_last = (net(points).argmax(1) != y for points in (best, last))
        assert (fooled_best >= fooled_last).all()
        worse = losses_at(net, best, y) < losses_at(net, last, y) - 1e-6
        assert not ((fooled_best == fooled_last) & worse).any()


def test_results_do_not_depend_on_the_batch():
    net, (x, y) = copy.deepcopy(small_net()).double(), held_out(30)
    x = x.double()
    for threat in SMALL.values():
        attack = PGD(steps=5, restarts=3)
        whole = attack(net, x, y, threat)
        parts = [attack(net, x[i : i + 7], y[i : i + 7], threat) for i in range(0, 30, 7)]
        assert (torch.cat(parts) - whole).abs().max() <= 1e-6


def test_draws_decide_the_random_start():
    net, (x, y) = small_net(), held_out(20)
    attack, threat = PGD(steps=1, keep="last"), Linf(0.1)
    default = attack(net, x, y, threat)
    assert torch.equal(attack(net, x, y, threat, draws=KeyedDraws.of(x, seed=0)), default)
    assert not torch.equal(attack(net, x, y, threat, draws=KeyedDraws.of(x, seed=1)), default)
    once, again = (
        attack(net, x, y, threat, draws=GeneratorDraws(torch.Generator().manual_seed(1)))
        for _ in range(2)
    )
    assert torch.equal(once, again)
    assert not torch.equal(once, default)


# --- cost ---


@pytest.mark.parametrize(("keep", "extra"), [("last", 0), ("best", 1)])
@pytest.mark.parametrize("steps", [1, 6])
def test_forward_passes_are_what_the_steps_say(keep, extra, steps):
    net, (x, y) = copy.deepcopy(small_net()), held_out(30)
    sizes = counted(net)
    PGD(steps=steps, keep=keep)(net, x, y, Linf(0.05))
    assert sizes == [30] * (steps + extra)


def test_fgsm_takes_one_forward_pass():
    net, (x, y) = copy.deepcopy(small_net()), held_out(30)
    sizes = counted(net)
    FGSM()(net, x, y, Linf(0.05))
    assert sizes == [30]


def test_restarts_run_on_survivors_alone():
    net, (x, y) = copy.deepcopy(small_net()), held_out(100)
    threat = Linf(0.1)
    survivors = []
    for restarts in (1, 2):
        x_adv = PGD(steps=2, restarts=restarts)(net, x, y, threat)
        survivors.append(int((net(x_adv).argmax(1) == y).sum()))
    assert 0 < survivors[1] <= survivors[0] < 100
    sizes = counted(net)
    PGD(steps=2, restarts=3)(net, x, y, threat)
    assert sizes == [100] * 3 + [survivors[0]] * 3 + [survivors[1]] * 3


def test_no_restart_runs_once_everything_is_fooled():
    net, (x, y) = copy.deepcopy(small_net()), held_out(20)
    sizes = counted(net)
    PGD(steps=5, restarts=50)(net, x, y, Linf(0.9))
    assert len(sizes) == 6


# --- what comes back ---


@pytest.mark.parametrize(("name", "threat"), CASES)
def test_results_are_allowed_new_and_moved(name, threat):
    net, (x, y) = small_net(), held_out(40)
    before = x.clone()
    x_adv = quick(name)(net, x, y, threat)
    assert threat.contains(x, x_adv).all()
    assert x_adv.shape == x.shape
    assert x_adv.dtype == x.dtype
    assert not x_adv.requires_grad
    assert torch.equal(x, before)
    assert x_adv.data_ptr() != x.data_ptr()
    # Every example is searched, also those that are wrong to begin with; attacks that look for
    # the nearest point may find one that is very near, and have nothing to look for there.
    nearest = name in ("fab", "fab-t", "cw-l2")
    searched = net(x).argmax(1) == y if nearest else torch.ones_like(y, dtype=torch.bool)
    moved = threat.distance(x, x_adv) > (0 if nearest else 0.1 * threat.eps)
    assert moved[searched].all()


@pytest.mark.parametrize(("name", "threat"), CASES)
def test_zero_radius_returns_x(name, threat):
    net, (x, y) = small_net(), held_out(20)
    assert torch.equal(quick(name)(net, x, y, replace(threat, eps=0.0)), x)


@pytest.mark.parametrize(("name", "threat"), CASES)
def test_a_model_without_gradient_does_no_harm(name, threat):
    class Flat(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1)[:, :3] * 0 + torch.tensor([1.0, 2.0, 0.0])

    x, _ = held_out(10)
    y = torch.arange(10) % 3
    x_adv = quick(name)(Flat(), x, y, threat)
    assert threat.contains(x, x_adv).all()


@pytest.mark.parametrize(("name", "threat"), CASES)
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_a_model_that_returns_no_numbers_does_no_harm(name, threat, bad):
    class Broken(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            logits = x.flatten(1)[:, :4] * torch.tensor([1.0, -2.0, 3.0, 0.5])
            ill = (x.flatten(1).sum(1) * 1e4).long() % 2 == 0
            return torch.where(ill[:, None], logits * bad, logits)

    x, y = held_out(12)
    x = (x * 0.8 + 0.1).clone()
    x_adv = quick(name)(Broken(), x, y % 4, threat)
    assert threat.contains(x, x_adv).all()


def test_huge_logits_still_move_every_example():
    problem = linear_problem(4, dtype=torch.float32)
    with torch.no_grad():
        problem.model.weight *= 1e12
        problem.model.bias *= 1e12
    for threat in (Linf(0.05), L2(0.3), L1(1.0)):
        x_adv = PGD(steps=3, loss="margin", start="zero")(
            problem.model, problem.x, problem.y, threat
        )
        assert (threat.distance(problem.x, x_adv) > 0.5 * threat.eps).all(), threat


def test_an_empty_batch_comes_back_empty():
    net, (x, y) = small_net(), held_out(5)
    for name, threat in (("pgd", L1(1.0)), ("fgsm", L2(1.0)), ("cw-inf", Linf(0.1))):
        assert quick(name)(net, x[:0], y[:0], threat).shape == (0, 1, 8, 8)


# --- guests ---


def lived_in_net() -> nn.Sequential:
    """Return a net in use: mixed modes, a frozen parameter, gradients on some parameters."""
    net = small_layers(1)
    x, y = held_out(30)
    with torch.random.fork_rng(devices=[]):
        F.cross_entropy(net(x), y).backward()
    net.train()
    net[1].eval()
    net[6].eval()
    net[0].bias.requires_grad_(False)
    net[8].bias.grad = None
    return net


def state_of(net: nn.Module) -> dict[str, object]:
    return {
        "parameters": {name: p.detach().clone() for name, p in net.named_parameters()},
        "identities": [id(p) for p in net.parameters()],
        "wanted": [p.requires_grad for p in net.parameters()],
        "grads": {
            n: None if p.grad is None else p.grad.clone() for n, p in net.named_parameters()
        },
        "buffers": {name: b.clone() for name, b in net.named_buffers()},
        "modes": [module.training for module in net.modules()],
        "torch": torch.get_rng_state(),
        "numpy": np.random.get_state()[1].copy(),  # noqa: NPY002 - the global state is the point
        "python": random.getstate(),
        "grad enabled": torch.is_grad_enabled(),
    }


def assert_same(before: object, after: object) -> None:
    if isinstance(before, dict):
        assert before.keys() == after.keys()
        for key in before:
            assert_same(before[key], after[key])
    elif isinstance(before, Tensor):
        assert torch.equal(before, after)
    elif isinstance(before, np.ndarray):
        assert np.array_equal(before, after)
    else:
        assert before == after


@pytest.mark.parametrize(("name", "threat"), CASES)
def test_attacks_leave_no_trace(name, threat):
    net, (x, y) = lived_in_net(), held_out(16)
    assert {module.training for module in net.modules()} == {True, False}
    before = state_of(net)
    quick(name)(net, x, y, threat)
    assert_same(before, state_of(net))


@pytest.mark.parametrize(("name", "threat"), CASES)
@pytest.mark.parametrize("fails_at", [1, 2])
def test_attacks_leave_no_trace_when_the_model_raises(name, threat, fails_at):
    net, (x, y) = lived_in_net(), held_out(16)
    calls = []

    def fail(_module: nn.Module, _inputs: object) -> None:
        calls.append(1)
        if len(calls) == fails_at:
            raise RuntimeError("the model failed")

    handle = net[3].register_forward_pre_hook(fail)
    before = state_of(net)
    if name in ("fgsm", "noise") and fails_at == 2:  # they call the model once
        quick(name)(net, x, y, threat)
    else:
        with pytest.raises(RuntimeError, match="the model failed"):
            quick(name)(net, x, y, threat)
    assert_same(before, state_of(net))
    handle.remove()


def test_attacks_see_the_model_in_eval_mode():
    net, (x, y) = lived_in_net(), held_out(16)
    modes = set()
    net[6].register_forward_hook(lambda module, _inputs, _out: modes.add(module.training))
    net[5].register_forward_hook(lambda module, _inputs, _out: modes.add(module.training))
    PGD(steps=2)(net, x, y, Linf(0.1))
    assert modes == {False}


def test_attacks_work_where_gradients_are_off():
    net, (x, y) = small_net(), held_out(10)
    expected = PGD(steps=3)(net, x, y, Linf(0.1))
    with torch.no_grad():
        assert torch.equal(PGD(steps=3)(net, x, y, Linf(0.1)), expected)
        assert not torch.is_grad_enabled()


def test_inputs_that_want_gradients_keep_none():
    net, (x, y) = small_net(), held_out(10)
    x = x.clone().requires_grad_(True)
    x_adv = PGD(steps=3)(net, x, y, Linf(0.1))
    assert x.grad is None
    assert not x_adv.requires_grad


# --- shapes and types ---


@pytest.mark.parametrize(("name", "threat"), CASES)
@pytest.mark.parametrize("shape", [(1, 6, 6), (3, 5, 9), (7,)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_any_shape_and_float_type_works(name, threat, shape, dtype):
    problem = linear_problem(5, classes=3, shape=shape, count=8, dtype=dtype)
    x_adv = quick(name)(problem.model, problem.x, problem.y, threat)
    assert x_adv.dtype == dtype
    assert x_adv.shape == problem.x.shape
    assert threat.contains(problem.x, x_adv).all()
    lower = problem.attained(x_adv) < problem.attained(problem.x)
    assert lower.any() if name == "noise" else lower.all()  # noise ascends nothing


@pytest.mark.parametrize(("name", "threat"), CASES)
def test_memory_layout_does_not_matter(name, threat):
    problem = linear_problem(6, classes=3, shape=(3, 5, 9), count=8)
    x = problem.x.to(memory_format=torch.channels_last)
    found = quick(name)(problem.model, x, problem.y, threat)
    expected = quick(name)(problem.model, problem.x, problem.y, threat)
    assert (found - expected).abs().max() <= 1e-9


# --- what is refused ---


@pytest.mark.parametrize("name", ATTACKS)
def test_norms_without_a_definition_are_refused(name):
    attack = parse(name)
    net, (x, y) = small_net(), held_out(4)
    for norm in set(SMALL) - set(attack.norms):
        with pytest.raises(UserError, match=f"not {norm}"):
            attack(net, x, y, SMALL[norm])


def test_the_table_says_which_norms_are_defined():
    norms = {name: parse(name).norms for name in ATTACKS}
    assert norms["pgd"] == ("linf", "l2", "l1")
    assert norms["fgsm"] == norms["mi-fgsm"] == ("linf", "l2")
    assert norms["cw-inf"] == ("linf",)


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (torch.zeros(2, 1, 4, 4, dtype=torch.uint8), torch.zeros(2).long(), "divide by 255"),
        (torch.zeros(2, 1, 4, 4), torch.eye(10)[:2], "argmax"),
        (torch.zeros(2, 1, 4, 4), torch.zeros(2, dtype=torch.int32), "int64"),
        (torch.zeros(2, 1, 4, 4), torch.zeros(3).long(), "2 inputs, 3 labels"),
        (torch.full((2, 1, 4, 4), torch.nan), torch.zeros(2).long(), "NaN"),
        (torch.full((2, 1, 4, 4), 1.1), torch.zeros(2).long(), "undo the normalisation"),
        (torch.full((2, 1, 4, 4), -0.5), torch.zeros(2).long(), "undo the normalisation"),
    ],
)
def test_inputs_that_cannot_be_meant_are_refused(x, y, message):
    with pytest.raises(UserError, match=message):
        check_inputs(x, y, Linf(0.1))
    with pytest.raises(UserError, match=message):
        PGD(steps=1)(small_net(), x, y, Linf(0.1))


@pytest.mark.parametrize(
    "options",
    [
        {"steps": 0},
        {"restarts": 0},
        {"step_size": -1.0},
        {"step_size": float("nan")},
        {"momentum": -0.1},
        {"confidence": float("inf")},
        {"loss": "hinge"},
        {"start": "middle"},
        {"keep": "bset"},
        {"norms": ("l0",)},
    ],
    ids=str,
)
def test_options_that_cannot_be_meant_are_refused(options):
    (name,) = options
    with pytest.raises(UserError, match=name.rstrip("s")):
        PGD(**options)


# --- names ---


def test_names_stand_for_attacks():
    assert parse("pgd-20") == PGD(steps=20)
    assert parse("pgd") == PGD()
    assert parse("fgsm") == FGSM()
    assert parse("mi-fgsm-7") == MIFGSM(steps=7)
    assert parse("cw-inf-30") == CWInf(steps=30)
    assert parse(" PGD-5 ") == PGD(steps=5)
    spec = "pgd-20(restarts=5, step_size=2/255, start=zero, loss=margin, momentum=none)"
    assert parse(spec) == PGD(steps=20, restarts=5, step_size=2 / 255, start="zero", loss="margin")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("pdg-20", "did you mean 'pgd'"),
        ("cw-inv", "did you mean 'cw-inf'"),
        ("pgd-20(restart=5)", "did you mean 'restarts'"),
        ("pgd-20(stepsize=0.1)", "did you mean 'step_size'"),
        ("fgsm-3", "steps"),
        ("pgd-0", "steps must be at least 1"),
        ("pgd-20(restarts)", "restarts=5"),
        ("pgd-20(restarts=5", "cannot read the attack"),
        ("", "cannot read the attack"),
    ],
)
def test_unknown_names_and_options_are_refused_with_the_nearest(spec, message):
    with pytest.raises(UserError) as refused:
        parse(spec)
    assert message in str(refused.value)


@pytest.mark.parametrize(
    "spec", ["pgd(steps=2.5)", "pgd(steps=many)", "pgd(restarts=1.5)", "pgd(step_size=big)"]
)
def test_option_values_of_the_wrong_kind_are_refused_by_name(spec):
    option = spec[4 : spec.index("=")]
    with pytest.raises(UserError) as refused:
        parse(spec)
    assert f"{option} must be" in str(refused.value)


def test_lists_keep_order_and_commas_inside_brackets():
    attacks = parse_list("fgsm, pgd-20(restarts=5, step_size=2/255),cw-inf-3")
    assert list(attacks) == ["fgsm", "pgd-20(restarts=5, step_size=2/255)", "cw-inf-3"]
    assert attacks["pgd-20(restarts=5, step_size=2/255)"] == PGD(
        steps=20, restarts=5, step_size=2 / 255
    )
    assert parse_list(["pgd-2", "fgsm"]) == {"pgd-2": PGD(steps=2), "fgsm": FGSM()}
    assert parse_list([]) == {}
    for nothing in ("", " , "):
        with pytest.raises(UserError, match="pgd-20"):
            parse_list(nothing)


def test_all_errors_of_a_list_come_at_once():
    with pytest.raises(UserError) as refused:
        parse_list("pdg, fgsm, cw-inv(steps=3), pgd-0")
    for part in ("'pgd'", "'cw-inf'", "steps must be at least 1"):
        assert part in str(refused.value)
