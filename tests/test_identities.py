"""Objectives that must be one another: the weights after several steps of a learner.

Both sides have the same name and seed, so their randomness is the same. In float64 where another
order of sums may round another way, and bit for bit where nothing is summed otherwise.
"""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import naive
from equipoise.objectives import Batch, Labels, Objective
from equipoise.objectives.adversarial import Adversarial
from equipoise.objectives.friendly import FAT
from equipoise.objectives.iat import IAT
from equipoise.objectives.mart import MART
from equipoise.objectives.mixed import Mixed
from equipoise.objectives.self_adaptive import SelfAdaptive
from equipoise.objectives.standard import Standard
from equipoise.objectives.trades import TRADES
from equipoise.objectives.yopo import YOPO
from equipoise.threat import L2, Linf, Threat
from equipoise.training import Learner
from naive import ByHand, bound, friendly, inner

STEPS = 4
THREAT = Linf(0.15)
EARLY, LATE = 0.0, 1.0  # of the progress of a training, which ends below 1


def usual(start: str = "uniform", threat: Threat = THREAT, **others: Any) -> dict[str, Any]:
    return {"threat": threat, "attack": inner(STEPS, start), **others}


def plain() -> Any:
    return bound(Standard)


BESIDE = usual("noise")
ALWAYS = {"tau": STEPS, "omega": 0.0}
MIXED = {"cutmix": 0.5, "erasing": 0.5, "label_smoothing": 0.1, "awp": 0.02}

Pair = tuple[Callable[[], Objective], Callable[[], Objective]]
SAME: dict[str, Pair] = {
    "trades(beta=0) is standard": (lambda: bound(TRADES, beta=0.0, **BESIDE), plain),
    "mix-at(0) is standard": (lambda: bound(Mixed, weight=0.0, **usual()), plain),
    "mix-at(0) is standard with smoothed labels": (
        lambda: bound(Mixed, weight=0.0, **usual(label_smoothing=0.2)),
        lambda: bound(Standard, label_smoothing=0.2),
    ),
    "mix-at(1) is pgd-at": (
        lambda: bound(Mixed, weight=1.0, **usual()),
        lambda: bound(Adversarial, **usual()),
    ),
    "mix-at(1) is pgd-at with options": (
        lambda: bound(Mixed, weight=1.0, **usual(**MIXED)),
        lambda: bound(Adversarial, **usual(**MIXED)),
    ),
    "fat(tau=steps) is pgd-at": (
        lambda: bound(FAT, **usual(**ALWAYS)),
        lambda: bound(Adversarial, **usual()),
    ),
    "fat(tau=steps) is pgd-at in L2": (
        lambda: bound(FAT, **usual(threat=L2(1.0), **ALWAYS)),
        lambda: bound(Adversarial, **usual(threat=L2(1.0))),
    ),
    "fat-trades(tau=steps) is trades": (
        lambda: bound(friendly(TRADES), **BESIDE, **ALWAYS),
        lambda: bound(TRADES, **BESIDE),
    ),
    "fat-trades(tau=steps) is trades with options": (
        lambda: bound(friendly(TRADES), **BESIDE, **ALWAYS, **MIXED),
        lambda: bound(TRADES, **BESIDE, **MIXED),
    ),
    "fat-mart(tau=steps) is mart": (
        lambda: bound(friendly(MART), **BESIDE, **ALWAYS),
        lambda: bound(MART, **BESIDE),
    ),
    "iat(mixup=0) is mix-at(1/2)": (
        lambda: bound(IAT, mixup=0.0, **usual()),
        lambda: bound(Mixed, weight=0.5, **usual()),
    ),
    "iat(mixup=0) is mix-at(1/2) with options": (
        lambda: bound(IAT, mixup=0.0, **usual(**MIXED)),
        lambda: bound(Mixed, weight=0.5, **usual(**MIXED)),
    ),
    "self-adaptive before its onset is trades": (
        lambda: bound(SelfAdaptive, onset=LATE, **BESIDE),
        lambda: bound(TRADES, **BESIDE),
    ),
    "self-adaptive of perfect memory is trades": (
        lambda: bound(SelfAdaptive, onset=EARLY, memory=1.0, **BESIDE),
        lambda: bound(TRADES, **BESIDE),
    ),
    "awp=0 changes nothing": (
        lambda: bound(MART, **BESIDE, awp=0.0, awp_from=0.0),
        lambda: bound(MART, **BESIDE),
    ),
    "awp to come changes nothing": (
        lambda: bound(TRADES, **BESIDE, awp=0.3, awp_from=LATE),
        lambda: bound(TRADES, **BESIDE),
    ),
}


def alike(one: Learner, other: Learner, tolerance: float) -> None:
    for key, value in one.model.state_dict().items():
        torch.testing.assert_close(
            value, other.model.state_dict()[key], rtol=tolerance, atol=tolerance
        )
    assert one.loss == pytest.approx(other.loss, rel=1e-6)
    assert torch.equal(one.generator.get_state(), other.generator.get_state())


def learned(learner: Learner, net: nn.Module) -> float:
    """Return how far the weights have moved at most."""
    after = learner.model.state_dict()
    pairs = [(after[k], v) for k, v in net.state_dict().items() if v.is_floating_point()]
    return max(float((a - b).abs().max()) for a, b in pairs)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["batchnorm", "plain"])
@pytest.mark.parametrize("name", SAME)
def test_the_weights_are_the_same(name, kind):
    net = naive.model(kind).double()
    one, other = (naive.trained(make(), net) for make in SAME[name])
    alike(one, other, 1e-9)
    assert learned(one, net) > 0.01


DIFFERENT: dict[str, Pair] = {
    "trades of another beta": (
        lambda: bound(TRADES, beta=1.0, **BESIDE),
        lambda: bound(TRADES, beta=1.5, **BESIDE),
    ),
    "fat stops": (
        lambda: bound(FAT, **usual(tau=0, omega=0.0)),
        lambda: bound(Adversarial, **usual()),
    ),
    "noise moves": (
        lambda: bound(FAT, **usual(tau=STEPS, omega=0.02)),
        lambda: bound(Adversarial, **usual()),
    ),
    "mixup mixes": (
        lambda: bound(IAT, mixup=1.0, **usual()),
        lambda: bound(Mixed, weight=0.5, **usual()),
    ),
    "labels learn": (
        lambda: bound(SelfAdaptive, onset=0.5, **BESIDE),
        lambda: bound(TRADES, **BESIDE),
    ),
    "the stem has a gradient of its own": (
        lambda: bound(YOPO, stem="both", replays=2, **usual()),
        lambda: bound(YOPO, stem="loss", replays=2, **usual()),
    ),
}


@pytest.mark.parametrize("name", DIFFERENT)
def test_the_weights_are_not_the_same(name):
    net = naive.model("plain").double()
    one, other = (naive.trained(make(), net) for make in DIFFERENT[name])
    assert (one.model.conv1.weight - other.model.conv1.weight).abs().max() > 1e-5


# Against losses written out here


def searched(batch: Batch, net: nn.Module, draws: Any, start: str = "uniform") -> Tensor:
    """Return what projected ascent on the cross-entropy finds, in eval mode."""
    if start == "uniform":
        point = batch.x + THREAT.eps * (2 * draws.uniform(batch.x) - 1)
    else:
        point = batch.x + 0.001 * naive.normal(draws.uniform(batch.x)).to(batch.x.dtype)
    lower, upper = (batch.x - THREAT.eps).clamp_min(0), (batch.x + THREAT.eps).clamp_max(1)
    net.eval()
    found = naive.ascend(
        net, batch.x, torch.clamp(point, lower, upper), lambda z: naive.ce(z, batch.y), THREAT,
        steps=STEPS, length=2.5 * THREAT.eps / STEPS,
    )  # fmt: skip
    net.train()
    return found


def madry(net: nn.Module, batch: Batch, draws: Any) -> Iterator[Tensor]:
    yield naive.ce(net(searched(batch, net, draws)), batch.y).mean()


def boosted(net: nn.Module, batch: Batch, draws: Any) -> Iterator[Tensor]:
    logits = net(searched(batch, net, draws, "noise"))
    yield (naive.ce(logits, batch.y) + naive.boost(logits, batch.y)).mean()


def both(net: nn.Module, batch: Batch, draws: Any) -> Iterator[Tensor]:
    x_adv = searched(batch, net, draws)
    clean, robust = net(batch.x), net(x_adv)
    yield (naive.ce(clean, batch.y) + naive.ce(robust, batch.y)).mean() / 2


def together(net: nn.Module, batch: Batch, draws: Any) -> Iterator[Tensor]:
    x_adv = searched(batch, net, draws)
    logits = net(torch.cat([batch.x, x_adv]))
    yield naive.ce(logits, torch.cat([batch.y, batch.y])).mean()


def clean(net: nn.Module, batch: Batch, draws: Any) -> Iterator[Tensor]:
    yield naive.ce(net(batch.x), batch.y).mean()


WRITTEN: dict[str, tuple[Callable[[], Objective], Any]] = {
    "standard": (plain, clean),
    "trades(beta=0)": (lambda: bound(TRADES, beta=0.0, **BESIDE), clean),
    "pgd-at": (lambda: bound(Adversarial, **usual()), madry),
    "mart(beta=0)": (lambda: bound(MART, beta=0.0, **BESIDE), boosted),
    "iat(mixup=0)": (lambda: bound(IAT, mixup=0.0, joint=False, **usual()), both),
    "mix-at(1/2)": (lambda: bound(Mixed, weight=0.5, joint=False, **usual()), both),
    "iat(mixup=0), one batch": (lambda: bound(IAT, mixup=0.0, **usual()), together),
    "mix-at(1/2), one batch": (lambda: bound(Mixed, weight=0.5, **usual()), together),
}


@pytest.mark.parametrize("kind", ["batchnorm", "plain"])
@pytest.mark.parametrize("name", WRITTEN)
def test_the_weights_are_those_of_the_losses_written_out(name, kind):
    net = naive.model(kind).double()
    make, by_hand = WRITTEN[name]
    alike(naive.trained(make(), net), naive.trained(ByHand(by_hand), net), 1e-6)


def divergent(kind: type[TRADES] | type[MART]) -> ByHand:
    """Return TRADES or MART by hand, on the inputs that the objective's search finds."""
    search = bound(kind, **BESIDE)

    def losses(net: nn.Module, batch: Batch, draws: Any) -> Iterator[Tensor]:
        x_adv = search.search(net, batch, Labels(batch.y), draws)
        clean, robust = net(batch.x), net(x_adv)
        gap = naive.kl(clean, robust)
        if kind is TRADES:
            yield (naive.ce(clean, batch.y) + 6 * gap).mean()
            return
        right = (naive.log_p(clean).exp() * naive.onehot(batch.y, 10)).sum(1)
        own = naive.ce(robust, batch.y) + naive.boost(robust, batch.y)
        yield (own + 5 * gap * (1.0000001 - right)).mean()

    return ByHand(losses)


@pytest.mark.parametrize("model", ["batchnorm", "plain"])
@pytest.mark.parametrize("kind", [TRADES, MART])
def test_trades_and_mart_are_written_out_but_for_their_search(kind, model):
    net = naive.model(model).double()
    one = naive.trained(bound(kind, joint=False, **BESIDE), net)
    alike(one, naive.trained(divergent(kind), net), 1e-8)


def test_self_adaptive_labels_are_kept_by_image():
    net = naive.model("plain").double()
    one = naive.trained(
        bound(SelfAdaptive, beta=0.0, onset=0.4, memory=0.7, **BESIDE), net, steps=6
    )
    kept = {}

    def losses(net: nn.Module, batch: Batch, draws: Any) -> Iterator[Tensor]:
        logits = net(batch.x)
        if batch.progress < 0.4:
            yield naive.ce(logits, batch.y).mean()
            return
        p, target = naive.log_p(logits.detach()).exp(), naive.onehot(batch.y, 10)
        rows = [0.7 * kept.get(i, t) + 0.3 * q
                for i, t, q in zip(batch.index.tolist(), target, p, strict=True)]  # fmt: skip
        kept.update(zip(batch.index.tolist(), rows, strict=True))
        soft = torch.stack(rows)
        weights = soft.max(1).values / soft.max(1).values.mean()
        yield (weights * naive.ce(logits, soft)).mean()

    other = naive.trained(ByHand(losses), net, steps=6)
    alike(one, other, 1e-6)
    assert isinstance(one.objective, SelfAdaptive)
    for i, row in kept.items():
        torch.testing.assert_close(one.objective.soft[i].double(), row, rtol=1e-5, atol=1e-6)
    untouched = [i for i in range(72) if i not in kept]
    assert len(kept) == 36
    assert bool((one.objective.soft[untouched].amax(1) == 1).all())


# YOPO


def yopo_start(batch: Batch, draws: Any) -> Tensor:
    return (batch.x + THREAT.eps * (2 * draws.uniform(batch.x) - 1)).clamp(0, 1)


def naive_yopo(m: int, n: int, stem: str) -> ByHand:
    """Return YOPO by gradients of explicit functions, summed by hand."""
    length = 2.5 * THREAT.eps / n

    def losses(net: Any, batch: Batch, draws: Any) -> Iterator[Tensor]:
        parameters = list(net.parameters())
        total = [torch.zeros_like(p) for p in parameters]
        point, first = yopo_start(batch, draws), None
        for _ in range(m):
            hidden = net.stem(point)
            loss = naive.ce(net.trunk(hidden), batch.y).mean()
            first = loss.detach() if first is None else first
            grads = torch.autograd.grad(loss, [*parameters, hidden])
            total = [t + g for t, g in zip(total, grads, strict=False)]
            p = -grads[-1]
            for _ in range(n):
                point = point.detach().requires_grad_()
                (down,) = torch.autograd.grad((net.stem(point) * p).sum(), point)
                moved = point.detach() - length * down.sign()
                point = torch.clamp(moved, *naive.ball(batch.x, THREAT.eps)).clamp(0, 1)
            if stem == "both":
                own = -(net.stem(point) * p).sum()
                grads = torch.autograd.grad(own, parameters, allow_unused=True)
                total = [t if g is None else t + g for t, g in zip(total, grads, strict=True)]
        whole = naive.gradient_of(net, total)
        yield first + whole - whole.detach()

    return ByHand(losses)


@pytest.mark.parametrize("stem", ["both", "loss"])
@pytest.mark.parametrize(("m", "n"), [(1, 1), (1, 3), (3, 1), (3, 2), (5, 3)])
@pytest.mark.parametrize("kind", ["batchnorm", "plain"])
def test_yopo_is_the_naive_algorithm(kind, m, n, stem):
    net = naive.model(kind).double()
    yopo = bound(YOPO, threat=THREAT, attack=inner(n), replays=m, stem=stem)
    one = naive.trained(yopo, net, lr=0.1)
    other = naive.trained(naive_yopo(m, n, stem), net, lr=0.1 / m)
    alike(one, other, 1e-8)
    if kind == "batchnorm":
        assert int(one.model.bn1.num_batches_tracked) == 5 * m


def every_iterate(m: int, stem: str) -> ByHand:
    """Return PGD in the mode of training that trains on each of its m iterates.

    With ``stem="both"`` each iterate's successor adds the gradient of the loss linearised at the
    logits before: of <f(x'), dCE/df(x)>.
    """

    def losses(net: Any, batch: Batch, draws: Any) -> Iterator[Tensor]:
        point = yopo_start(batch, draws)
        for i in range(m):
            yield naive.ce(net(point), batch.y).mean()
            if i == m - 1 and stem == "loss":
                return
            p = naive.log_p(at_rest(net, point)).exp()
            slope = (p - naive.onehot(batch.y, 10)) / len(batch.y)  # of the mean cross-entropy
            point = point.detach().requires_grad_()
            (grad,) = torch.autograd.grad((net(point) * slope).sum(), point)
            moved = point.detach() + 2.5 * THREAT.eps * grad.sign() - batch.x
            point = (batch.x + moved.clamp(-THREAT.eps, THREAT.eps)).clamp(0, 1)
            if stem == "both":
                yield (net(point) * slope).sum()

    return ByHand(losses)


def at_rest(net: nn.Module, point: Tensor) -> Tensor:
    """Return the logits in training mode, with the statistics of BatchNorm left as they are."""
    held = [buffer.clone() for buffer in net.buffers()]
    with torch.no_grad():
        logits: Tensor = net(point)
        for buffer, value in zip(net.buffers(), held, strict=True):
            buffer.copy_(value)
    return logits


@pytest.mark.parametrize("stem", ["both", "loss"])
@pytest.mark.parametrize("m", [1, 4])
@pytest.mark.parametrize("kind", ["batchnorm", "plain"])
def test_yopo_with_the_whole_network_as_its_stem_trains_on_every_iterate(kind, m, stem):
    net = naive.Whole(naive.model(kind).double())
    yopo = bound(YOPO, threat=THREAT, attack=inner(1), replays=m, stem=stem)
    one = naive.trained(yopo, net, lr=0.1)
    alike(one, naive.trained(every_iterate(m, stem), net, lr=0.1 / m), 1e-8)


def test_yopo_with_the_whole_network_as_its_stem_follows_the_steps_of_pgd():
    # The iterates of the plain network, which has no mode, are those of PGD with m - 1 steps.
    net, batch = naive.Whole(naive.model("plain").double()), naive.batch()
    seen: list[Tensor] = []
    trunk = net.trunk

    def watched(h: Tensor) -> Tensor:
        seen.append(h.detach().clone())
        return trunk(h)

    net.trunk = watched
    m, tape = 5, naive.Tape()
    attack = inner(1, step_factor=0.6)
    naive.backward(
        bound(YOPO, threat=THREAT, attack=attack, replays=m, stem="loss"), net, batch, tape
    )
    assert len(seen) == m
    start = (batch.x + THREAT.eps * (2 * tape.taken[0] - 1)).clamp(0, 1)
    for k, logits in enumerate(seen):
        point = naive.ascend(
            net.net, batch.x, start, lambda z: naive.ce(z, batch.y), THREAT,
            steps=k, length=0.6 * THREAT.eps,
        )  # fmt: skip
        torch.testing.assert_close(logits, net.net(point).detach(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("m", "n"), [(1, 1), (3, 2)])
def test_yopo_is_probed_with_the_inputs_it_trains_on(m, n):
    net, batch = naive.model("plain").double().train(), naive.batch()
    yopo, tape = bound(YOPO, threat=THREAT, attack=inner(n), replays=m), naive.Tape()
    seen: list[Tensor] = []
    stem = net.stem

    def watched(x: Tensor) -> Tensor:
        seen.append(x.detach().clone())
        return stem(x)

    net.stem = watched
    naive.backward(yopo, net, batch, tape)
    last = seen[-1]  # of the stem's own gradient, after the last descent
    before = [parameter.grad.clone() for parameter in net.parameters()]
    found = yopo.inputs(net, batch, naive.Tape())
    torch.testing.assert_close(found, last, rtol=1e-9, atol=1e-9)
    assert THREAT.contains(batch.x, found).all()
    assert net.training
    assert all(torch.equal(p.grad, g) for p, g in zip(net.parameters(), before, strict=True))


@pytest.mark.parametrize("kind", ["batchnorm", "plain"])
@pytest.mark.parametrize("make", [TRADES, MART, IAT, Mixed])
def test_one_batch_or_two_differ_by_the_statistics_of_batchnorm_alone(make, kind):
    net = naive.model(kind).double()
    one = naive.trained(bound(make, **BESIDE), net).model.state_dict()
    other = naive.trained(bound(make, joint=False, **BESIDE), net).model.state_dict()
    gap = max(float((one[key] - other[key]).abs().max()) for key in one if "weight" in key)
    assert gap > 1e-3 if kind == "batchnorm" else gap < 1e-9
    if kind == "batchnorm":
        assert (int(one["bn1.num_batches_tracked"]), int(other["bn1.num_batches_tracked"])) == (
            5,
            10,
        )
