"""The searches of training: what they climb, where they start, and where friendly ones stop."""

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import naive
from equipoise.attacks import PGD
from equipoise.draws import KeyedDraws
from equipoise.errors import UserError
from equipoise.objectives import Batch, Labels
from equipoise.objectives.adversarial import Adversarial
from equipoise.objectives.friendly import FAT, friendly
from equipoise.objectives.mart import MART
from equipoise.objectives.trades import TRADES
from equipoise.threat import L1, L2, Linf, Threat
from naive import Tape, inner
from naive import friendly as friendly_kind
from problems import held_out, small_net

THREAT = Linf(0.2)
STEPS = 6
Losses = Callable[[Tensor, Tensor], Tensor]


def problem(count: int = 24) -> tuple[nn.Module, Tensor, Tensor]:
    """Return a trained network in float64 with digits, some labels wrong to begin with."""
    x, y = held_out(count)
    y = y.clone()
    y[::7] = (y[::7] + 1) % 10
    return deepcopy(small_net()).double().eval(), x.double(), y


# PGD on losses of the caller


class Numbered(nn.Module):
    """Answers with the number of an example, which its first pixel tells, and a linear logit."""

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(1)
        return torch.stack([(flat[:, 0] * 100).round(), flat[:, 1:].sum(1), 0 * flat[:, 0]], 1)


@pytest.mark.slow
def test_losses_of_the_caller_meet_the_positions_of_their_examples():
    x = torch.rand(10, 1, 2, 4, generator=torch.Generator().manual_seed(0))
    x[:, 0, 0, 0] = torch.arange(10) / 100
    y = torch.arange(10) % 3
    seen: list[list[int]] = []

    def losses(logits: Tensor, index: Tensor) -> Tensor:
        assert logits[:, 0].round().tolist() == index.tolist()
        seen.append(index.tolist())
        signs = torch.where(index % 2 == 0, 1.0, -1.0)
        return signs * logits[:, 1]

    threat = Linf(0.004)
    attack = PGD(steps=2, restarts=3, start="zero", step_factor=2)
    found = attack.search(Numbered(), x, y, threat, KeyedDraws.of(x), losses)
    wrong = Numbered()(x).argmax(1) != y
    assert 0 < int(wrong.sum()) < 10
    rest = (~wrong).nonzero()[:, 0].tolist()
    assert seen[0] == list(range(10))
    assert seen[-1] == rest
    sign = torch.where(torch.arange(10) % 2 == 0, 1.0, -1.0).view(-1, 1, 1)
    moved = (x[:, 0] + 0.004 * sign).clamp(0, 1)
    torch.testing.assert_close(found[:, 0].flatten(1)[:, 1:], moved.flatten(1)[:, 1:])


@pytest.mark.slow
@pytest.mark.parametrize("start", ["uniform", "zero", "noise", "signs"])
def test_a_search_with_losses_is_the_naive_one(start):
    net, x, y = problem()
    tape = Tape()
    weights = torch.linspace(0.5, 2, len(x)).double()
    target = naive.smooth(y, 10, 0.3)

    def losses(logits: Tensor, index: Tensor) -> Tensor:
        return weights[index] * naive.ce(logits, target[index])

    found = inner(STEPS, start).search(net, x, y, THREAT, tape, losses)
    expected = naive.ascend(
        net, x, started(x, start, THREAT, tape), lambda z: losses(z, torch.arange(len(x))),
        THREAT, steps=STEPS, length=2.5 * THREAT.eps / STEPS,
    )  # fmt: skip
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    assert (found - x).abs().max() > 0.15


def started(x: Tensor, start: str, threat: Threat, tape: Tape) -> Tensor:
    """Return the start by hand, for the first numbers on a tape."""
    if start == "uniform":
        point = x + threat.eps * (2 * tape.taken[0] - 1)
    elif start == "noise":
        point = x + 0.001 * naive.normal(tape.taken[0])
    elif start == "signs":
        point = x + threat.eps / 2 * (1 - 2 * (tape.taken[0] < 0.5).double())
    else:
        return x
    return torch.clamp(torch.clamp(point - x, -threat.eps, threat.eps) + x, 0, 1)


@pytest.mark.parametrize("threat", [Linf(0.1), Linf(0.0005), L2(0.003)])
def test_the_start_beside_x_is_small_and_within_the_threat(threat):
    _, x, _ = problem()
    attack, tape = inner(start="noise"), Tape()
    point = attack.start_at(x, threat, tape)
    assert bool(threat.contains(x, point).all())
    assert bool(((point != x).flatten(1).sum(1) > 5).all())
    if threat == Linf(0.1):
        assert 0.0005 < (point - x).std() < 0.001  # a part of the noise leaves the range
        torch.testing.assert_close(point, started(x, "noise", threat, tape))


@pytest.mark.parametrize("threat", [Linf(0.2), L2(0.4), L1(2.0)])
def test_random_signs_are_half_way_to_the_border_of_the_ball(threat):
    x = torch.full((2000, 1, 3, 3), 0.5)
    moved = PGD(start="signs").start_at(x, threat, Tape()) - x
    size = moved.flatten(1).norm(p=float(threat.norm[1:]), dim=1)
    torch.testing.assert_close(size, torch.full_like(size, threat.eps / 2))
    assert len(moved.abs().unique()) <= 2  # rounded upwards and downwards
    assert abs(float((moved > 0).double().mean()) - 0.5) < 0.015


@pytest.mark.parametrize("threat", [THREAT, L2(1.0)])
@pytest.mark.parametrize("objective", ["pgd-at", "mart", "trades"])
def test_each_objective_climbs_its_own_loss(objective, threat):
    net, x, y = problem()
    net.train()
    kinds = {"pgd-at": Adversarial, "mart": MART, "trades": TRADES}
    attack, tape = inner(STEPS, "noise"), Tape()
    found = naive.bound(kinds[objective], threat, attack=attack).search(
        net, Batch(x, y, torch.arange(len(x)), 0.0), Labels(y, smoothing=0.2), tape
    )
    net.eval()
    clean = net(x).detach()

    def loss(logits: Tensor) -> Tensor:
        return naive.kl(clean, logits) if objective == "trades" else naive.ce(logits, y)

    if threat is THREAT:
        start = started(x, "noise", threat, tape)
        length = 2.5 * threat.eps / STEPS
        expected = naive.ascend(net, x, start, loss, threat, steps=STEPS, length=length)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    assert bool(threat.contains(x, found).all())
    assert bool((loss(net(found)) > loss(net(x)))[torch.arange(len(x)) % 7 != 0].all())


def test_mixed_labels_are_climbed_without_their_smoothing():
    net, x, y = problem()
    other, share = y.flip(0), torch.linspace(0.5, 1, len(y))
    labels, tape = Labels(y, other, share, smoothing=0.2), Tape()
    batch = Batch(x, y, torch.arange(len(x)), 0.0)
    found = naive.bound(Adversarial, THREAT, attack=inner(STEPS)).search(net, batch, labels, tape)
    part = share.double()[:, None]
    target = part * naive.onehot(y, 10) + (1 - part) * naive.onehot(other, 10)
    expected = naive.ascend(
        net, x, started(x, "uniform", THREAT, tape), lambda z: naive.ce(z, target),
        THREAT, steps=STEPS, length=2.5 * THREAT.eps / STEPS,
    )  # fmt: skip
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


# Friendly searches


def one_by_one(
    net: nn.Module, x: Tensor, y: Tensor, start: Tensor, noise: list[Tensor], losses: Losses,
    *, tau: int, steps: int, length: float, threat: Threat, omega: float,
) -> tuple[Tensor, int, list[int]]:  # fmt: skip
    """Search as the paper says, an example at a time within each step.

    Returns the points, the gradients taken, and the steps that each example took.
    """
    points, budget = [row.clone() for row in start], [tau] * len(x)
    stopped, taken, spent = [False] * len(x), [0] * len(x), 0
    for k in range(steps):
        moving = 0
        for i in range(len(x)):
            if stopped[i]:
                continue
            spent += 1
            point = points[i][None].detach().requires_grad_()
            logits = net(point)
            if int(logits.argmax()) != int(y[i]):
                if budget[i] == 0:
                    stopped[i] = True
                    continue
                budget[i] -= 1
            (grad,) = torch.autograd.grad(losses(logits, torch.tensor([i])).sum(), point)
            way = grad.sign() if threat.norm == "linf" else grad / grad.norm()
            moved = point.detach() + length * way
            if omega:
                moved = moved + omega * naive.normal(noise[k][moving])
            moving += 1
            points[i] = threat.project(x[i : i + 1], moved)[0]
            taken[i] += 1
    return torch.stack(points), spent, taken


CASES: list[tuple[int, str, str, Threat, float]] = [
    (0, "uniform", "ce", THREAT, 0.0),
    (1, "uniform", "ce", THREAT, 0.0),
    (3, "uniform", "ce", THREAT, 0.0),
    (STEPS, "uniform", "ce", THREAT, 0.0),
    (0, "noise", "kl", THREAT, 0.0),
    (2, "noise", "kl", THREAT, 0.0),
    (0, "zero", "ce", Linf(0.03), 0.0),
    (1, "uniform", "ce", L2(1.5), 0.0),
    (0, "uniform", "ce", THREAT, 0.02),
    (1, "uniform", "ce", THREAT, 0.02),
]


@pytest.mark.parametrize(("tau", "start", "loss", "threat", "omega"), CASES)
def test_friendly_searches_are_the_naive_ones(tau, start, loss, threat, omega):
    net, x, y = problem()
    clean = net(x).detach()

    def losses(logits: Tensor, index: Tensor) -> Tensor:
        if loss == "kl":
            return naive.kl(clean[index], logits)
        return naive.ce(logits, y[index])

    attack, tape = inner(STEPS, start), Tape()
    found, spent = friendly(
        net, x, y, threat, tape, attack=attack, losses=losses, tau=tau, omega=omega
    )
    noise = [] if start == "zero" else tape.taken[1:]
    first = attack.start_at(x, threat, Tape())
    expected, count, taken = one_by_one(
        net, x, y, first, noise, losses, tau=tau, steps=STEPS,
        length=attack.step_length(threat), threat=threat, omega=omega,
    )  # fmt: skip
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-9)
    assert spent == count
    assert bool(threat.contains(x, found).all())
    assert tau == STEPS or min(taken) < max(taken)  # some stop and some go on
    fooled = net(first).argmax(1) != y
    if tau == 0:  # the start is all that such an example gets
        assert torch.equal(found[fooled], first[fooled])
        assert [taken[i] for i in fooled.nonzero()[:, 0].tolist()] == [0] * int(fooled.sum())
        assert int(fooled.sum()) >= 3
    assert spent < STEPS * len(x) if tau < STEPS else spent == STEPS * len(x)


def test_a_friendly_search_does_not_depend_on_the_other_examples():
    net, x, y = problem()
    settings: dict[str, Any] = {"attack": inner(STEPS, "zero"), "tau": 1}
    whole, spent = friendly(
        net, x, y, THREAT, Tape(),
        losses=lambda logits, index: naive.ce(logits, y[index]), **settings,
    )  # fmt: skip
    parts, counts = [], 0
    for i in range(len(x)):
        label = y[i : i + 1]
        part, count = friendly(
            net, x[i : i + 1], label, THREAT, Tape(),
            losses=lambda logits, index, label=label: naive.ce(logits, label[index]), **settings,
        )  # fmt: skip
        parts.append(part)
        counts += count
    torch.testing.assert_close(whole, torch.cat(parts), rtol=1e-7, atol=1e-9)
    assert counts == spent


@pytest.mark.slow
@pytest.mark.parametrize("kind", [Adversarial, TRADES, MART])
def test_the_budget_follows_the_progress_and_grows_when_strengthened(kind):
    net, x, y = problem()
    tau, places = (0, 2, 4), (0.0, 0.25, 0.75)
    clean = net(x).detach()

    def losses(logits: Tensor, index: Tensor) -> Tensor:
        return naive.kl(clean[index], logits) if kind is TRADES else naive.ce(logits, y[index])

    spent: dict[tuple[float, int], int] = {}
    for level in (0, 1, 2):
        for progress in (0.0, 0.2499, 0.25, 0.5, 0.75, 0.99):
            objective = friendly_kind(kind)(
                attack=inner(STEPS, "noise"), tau=tau, tau_at=places
            ).bind(THREAT)
            for _ in range(level):
                objective.strengthen()
            batch = Batch(x, y, torch.arange(len(x)), progress)
            objective.search(net, batch, Labels(y), Tape())
            spent[progress, level] = int(objective.evaluations(len(x))) - objective.passes * len(x)
            reached = [v for v, at in zip(tau, places, strict=True)
                       if at <= progress]  # fmt: skip
            first = inner(STEPS, "noise").start_at(x, THREAT, Tape())
            _, expected, _ = one_by_one(
                net, x, y, first, [], losses, tau=reached[-1] + level, steps=STEPS,
                length=2.5 * THREAT.eps / STEPS, threat=THREAT, omega=0.0,
            )  # fmt: skip
            assert spent[progress, level] == expected
    assert spent[0.0, 0] < spent[0.25, 0] < spent[0.99, 0]


def test_budgets_are_constant_between_their_places():
    even = FAT(tau=(5, 0, 2), tau_at=None)
    assert [even.budget(i / 12) for i in range(12)] == [5] * 4 + [0] * 4 + [2] * 4
    assert FAT(tau=7).budget(0.0) == FAT(tau=7).budget(0.999) == 7
    uneven = FAT(tau=(0, 1, 2), tau_at=(0.0, 50 / 120, 90 / 120))
    assert [uneven.budget(t / 120) for t in (0, 49, 50, 89, 90, 119)] == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize(
    ("values", "at"),
    [
        ((), None),
        ((-1,), None),
        ((1,), ()),
        ((1, 2), (0.0,)),
        ((1, 2), (0.1, 0.5)),
        ((1, 2), (0.0, 1.0)),
        ((1, 2, 3), (0.0, 0.7, 0.2)),
        ((1,), (float("nan"),)),
    ],
)
def test_budgets_that_cannot_be_meant_are_refused(values, at):
    with pytest.raises(UserError, match="tau"):
        FAT(tau=values, tau_at=at)
