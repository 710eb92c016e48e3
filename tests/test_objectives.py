"""Objectives: their losses and the gradients of these against formulas written out."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from scipy.stats import beta, kstest
from torch import Tensor, nn

import naive
from equipoise.errors import UserError
from equipoise.objectives import Batch, Objective
from equipoise.objectives.adversarial import Adversarial
from equipoise.objectives.gat import GAT
from equipoise.objectives.iat import IAT
from equipoise.objectives.mart import MART
from equipoise.objectives.mixed import Mixed
from equipoise.objectives.self_adaptive import SelfAdaptive
from equipoise.objectives.standard import Standard
from equipoise.objectives.trades import TRADES
from equipoise.threat import Linf
from naive import Tape, backward, bound, inner

THREAT = Linf(0.1)
COUNT = 9


class Stub(nn.Module):
    """Answers with given logits: each kind of an update's inputs with the next of them.

    A search is answered by none of them.
    """

    def __init__(self, *tables: Tensor) -> None:
        super().__init__()
        self.tables = nn.ParameterList([nn.Parameter(table.clone()) for table in tables])
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:  # away from what is given, so that the search moves
            shape = (x[0].numel(), self.tables[0].shape[1])
            return x.flatten(1) @ torch.arange(shape[0] * shape[1]).to(x).sin().view(shape)
        return torch.cat([self.answered(part) for part in x.split(COUNT)])

    def answered(self, x: Tensor) -> Tensor:
        self.seen.append(x.detach().clone())
        return self.tables[len(self.seen) - 1] + 0 * x.sum()


def tables(count: int, classes: int, scale: float, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shape = (COUNT, classes)
    return [
        scale * (2 * torch.rand(shape, generator=generator, dtype=torch.float64) - 1)
        for _ in range(count)
    ]


def right(logits: Tensor, y: Tensor) -> Tensor:
    return (naive.log_p(logits).exp() * naive.onehot(y, logits.shape[1])).sum(1)


def boosted(logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
    return naive.ce(logits, target) + naive.boost(logits, y)


def apart(logits: Tensor, other: Tensor) -> Tensor:
    return ((naive.log_p(logits).exp() - naive.log_p(other).exp()) ** 2).sum(1)


def mart_by_hand(clean: Tensor, robust: Tensor, y: Tensor, target: Tensor) -> Tensor:
    weighted = naive.kl(clean, robust) * (1.0000001 - right(clean, y))
    return (boosted(robust, y, target) + 2.5 * weighted).mean()


def adapted_by_hand(clean: Tensor, robust: Tensor, y: Tensor, target: Tensor) -> Tensor:
    # float32, as soft labels are kept in it
    soft = 0.7 * target.float() + 0.3 * naive.log_p(clean.detach()).exp().float()
    weights = soft.double().max(1).values
    weights = weights / weights.mean()
    main = (weights * naive.ce(clean, soft.double())).mean()
    return main + 3 * naive.kl(clean, robust).mean()


Losses = Callable[..., Tensor]
BY_HAND: dict[str, tuple[Callable[..., Objective], int, Losses]] = {
    "adversarial": (Adversarial, 1, lambda a, y, t: naive.ce(a, t).mean()),
    "trades": (
        lambda **kw: TRADES(beta=6.0, **kw),
        2,
        lambda c, a, y, t: naive.ce(c, t).mean() + 6 * naive.kl(c, a).mean(),
    ),
    "trades, beta 0": (
        lambda **kw: TRADES(beta=0.0, **kw),
        1,
        lambda c, y, t: naive.ce(c, t).mean(),
    ),
    "mart": (lambda **kw: MART(beta=2.5, **kw), 2, mart_by_hand),
    "mart, beta 0": (
        lambda **kw: MART(beta=0.0, **kw),
        1,
        lambda a, y, t: boosted(a, y, t).mean(),
    ),
    "mixed": (
        lambda **kw: Mixed(weight=0.3, **kw),
        2,
        lambda c, a, y, t: 0.7 * naive.ce(c, t).mean() + 0.3 * naive.ce(a, t).mean(),
    ),
    "mixed, 0": (lambda **kw: Mixed(weight=0.0, **kw), 1, lambda c, y, t: naive.ce(c, t).mean()),
    "mixed, 1": (lambda **kw: Mixed(weight=1.0, **kw), 1, lambda a, y, t: naive.ce(a, t).mean()),
    "gat": (
        lambda **kw: GAT(beta=7.0, **kw),
        2,
        lambda c, a, y, t: (naive.ce(c, t) + 7 * apart(c, a)).mean(),
    ),
    "iat, 0": (
        lambda **kw: IAT(mixup=0.0, **kw),
        2,
        lambda c, a, y, t: (naive.ce(c, t) + naive.ce(a, t)).mean() / 2,
    ),
    "self-adaptive": (
        lambda **kw: SelfAdaptive(beta=3.0, onset=0.5, memory=0.7, **kw),
        2,
        adapted_by_hand,
    ),
}


def stubbed(classes: int) -> Batch:
    x = torch.rand(COUNT, 1, 4, 4, generator=torch.Generator().manual_seed(5)).double()
    return Batch(x, torch.arange(COUNT) * 7 % classes, torch.arange(COUNT), 0.5)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("scale", [3.0, 60.0])
@pytest.mark.parametrize("classes", [2, 5, 100])
@pytest.mark.parametrize("name", BY_HAND)
def test_the_loss_and_its_gradients_are_those_by_hand(name, classes, scale, smoothing):
    make, count, by_hand = BY_HAND[name]
    given = tables(count, classes, scale)
    batch = stubbed(classes)
    objective = bound(make, attack=inner(start="noise"), label_smoothing=smoothing)
    objective.prepare(batch.y, classes)
    model = Stub(*given)
    found = backward(objective, model, batch, Tape())
    assert len(model.seen) == count

    target = naive.smooth(batch.y, classes, smoothing)
    leaves = [table.requires_grad_(True) for table in given]
    expected = by_hand(*leaves, batch.y, target)
    grads = torch.autograd.grad(expected, leaves)
    torch.testing.assert_close(found, expected.detach(), rtol=2e-7, atol=1e-9)
    for parameter, grad in zip(model.tables, grads, strict=True):
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad, grad, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", BY_HAND)
def test_the_loss_in_float32_is_that_in_float64(name):
    make, count, _ = BY_HAND[name]
    given, batch = tables(count, 10, 12.0, seed=2), stubbed(10)
    reported, gradients = [], []
    for dtype in (torch.float64, torch.float32):
        objective = bound(make, attack=inner(start="noise"))
        objective.prepare(batch.y, 10)
        model = Stub(*(table.to(dtype) for table in given))
        reported.append(backward(objective, model, batch._replace(x=batch.x.to(dtype)), Tape()))
        gradients.append(torch.cat([p.grad.flatten().double() for p in model.tables]))
    assert reported[1].dtype == torch.float32
    # MART's boost near certainty: an error of 2^-24 in 1.0001 - p >= 1e-4.
    torch.testing.assert_close(reported[1].double(), reported[0], rtol=1e-5, atol=2e-4)
    torch.testing.assert_close(gradients[1], gradients[0], rtol=2e-3, atol=1e-5)


def test_each_input_meets_its_own_part_of_the_loss():
    # The stub remembers what it was shown: the clean batch first, then what the search found.
    batch = stubbed(5)
    for name, (make, count, _) in BY_HAND.items():
        objective = bound(make, attack=inner(start="noise"))
        objective.prepare(batch.y, 5)
        model = Stub(*tables(count, 5, 3.0))
        backward(objective, model, batch, Tape())
        clean = [torch.equal(x, batch.x) for x in model.seen]
        alone = [name in ("trades, beta 0", "mixed, 0")]
        assert clean == ([True, False] if count == 2 else alone), name
        assert all(bool(THREAT.contains(batch.x, x).all()) for x in model.seen)


def test_the_weight_of_mart_and_the_clean_answers_carry_gradients():
    # Without the weight's or p(x)'s share the clean gradient would be another one.
    clean, robust = (t.requires_grad_(True) for t in tables(2, 5, 3.0))
    y = stubbed(5).y
    p, weight = naive.log_p(clean).exp(), 1.0000001 - right(clean, y)
    gap = naive.log_p(clean) - naive.log_p(robust)
    held = (p * gap).sum(1) * weight.detach() + (p.detach() * gap.detach()).sum(1) * weight
    (both,) = torch.autograd.grad(2.5 * held.mean(), clean)
    model = Stub(clean.detach(), robust.detach())
    backward(bound(MART, beta=2.5, attack=inner()), model, stubbed(5), Tape())
    assert both.abs().max() > 0.01
    torch.testing.assert_close(model.tables[0].grad, both)


# Labels that are mixed, or that learn


@pytest.mark.parametrize("a", [1.0, 0.5])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_interpolated_training_mixes_inputs_and_labels_alike(a, smoothing):
    batch, given = stubbed(5), tables(2, 5, 3.0)
    tape = Tape()
    objective = bound(IAT, mixup=a, attack=inner(), label_smoothing=smoothing)
    model = Stub(*given)
    found = backward(objective, model, batch, tape)
    start, *lots = tape.taken
    assert len(lots) == 4
    x_adv = naive.ascend(
        model.eval(), batch.x, (batch.x + 0.1 * (2 * start - 1)).clamp(0, 1),
        lambda z: naive.ce(z, batch.y), THREAT, steps=3, length=2.5 * 0.1 / 3,
    )  # fmt: skip
    target = naive.smooth(batch.y, 5, smoothing)
    expected = torch.zeros((), dtype=torch.float64)
    leaves = [table.requires_grad_(True) for table in given]
    for x, logits, unit, order, seen in zip(
        (batch.x, x_adv), leaves, lots[::2], lots[1::2], model.seen, strict=True
    ):
        # Beta(1, 1) is uniform, Beta(1/2, 1/2) the arcsine law
        share = float(unit) if a == 1 else float(torch.sin(torch.pi / 2 * unit) ** 2)
        with_whom = torch.tensor(sorted(range(COUNT), key=order.tolist().__getitem__))
        torch.testing.assert_close(seen, share * x + (1 - share) * x[with_whom], rtol=0, atol=1e-6)
        mixed = share * target + (1 - share) * target[with_whom]
        expected = expected + naive.ce(logits, mixed).mean() / 2
    grads = torch.autograd.grad(expected, leaves)
    assert float(found) == pytest.approx(float(expected.detach()), rel=1e-6)
    for parameter, grad in zip(model.tables, grads, strict=True):
        torch.testing.assert_close(parameter.grad, grad, rtol=1e-5, atol=1e-7)


def test_the_shares_of_interpolation_have_their_beta_distribution():
    unit = torch.linspace(0.0005, 0.9995, 1000)
    for a in (0.5, 1.0, 3.0):
        objective = bound(IAT, mixup=a, attack=inner())
        shares = torch.cat([objective._share(u[None]) for u in unit])
        assert kstest(shares.numpy(), beta(a, a).cdf).statistic < 2e-3
        assert 0 <= float(objective._share(torch.zeros(1))) < 1e-3


def adaptive(**settings: Any) -> Any:
    usual: dict[str, Any] = {"attack": inner(start="noise"), "beta": 3.0}
    return bound(SelfAdaptive, **usual | settings)


def test_soft_labels_learn_for_their_own_image_from_the_onset_on():
    batch, given = stubbed(5), tables(2, 5, 3.0)
    index = torch.tensor([4, 20, 3, 11, 0, 17, 8, 9, 30])
    y = torch.arange(40) % 5
    y[index] = batch.y
    objective = adaptive(onset=0.5, memory=0.7)
    objective.prepare(y, 5)
    expected = naive.onehot(y, 5)
    answer = naive.log_p(given[0]).exp()
    for progress, learns in ((0.0, False), (0.499, False), (0.5, True), (0.9, True)):
        backward(objective, Stub(*given), batch._replace(index=index, progress=progress), Tape())
        if learns:
            expected[index] = 0.7 * expected[index] + 0.3 * answer
        torch.testing.assert_close(objective.soft.double(), expected, rtol=1e-6, atol=1e-7)
        assert not objective.soft.requires_grad
    torch.testing.assert_close(objective.soft.sum(1), torch.ones(40))


def test_soft_labels_learn_once_a_visit_from_the_weights_themselves():
    # Perturbed weights ask for the loss twice; what the labels learn is the first answer.
    batch, net = naive.batch(), naive.model("plain")
    objective = adaptive(onset=0.0, memory=0.5, awp=0.5)
    objective.prepare(batch.y, 10)
    with torch.no_grad():
        answer = naive.log_p(net(batch.x).double()).exp()
    backward(objective, net, batch, Tape())
    expected = 0.5 * naive.onehot(batch.y, 10) + 0.5 * answer
    torch.testing.assert_close(objective.soft.double(), expected, rtol=1e-5, atol=1e-6)


def test_soft_labels_need_the_training_set():
    with pytest.raises(UserError, match="prepare"):
        backward(adaptive(), naive.model(), naive.batch(), Tape())


def test_standard_training_is_the_mean_cross_entropy():
    batch, (given,) = stubbed(5), tables(1, 5, 3.0)
    for part in (0.0, 0.3):
        model = Stub(given)
        found = backward(bound(Standard, label_smoothing=part), model, batch, Tape())
        expected = naive.ce(given, naive.smooth(batch.y, 5, part)).mean()
        assert float(found) == pytest.approx(float(expected), rel=1e-7)
        assert torch.equal(model.seen[0], batch.x)
    assert torch.equal(Standard().inputs(model, batch, Tape()), batch.x)
