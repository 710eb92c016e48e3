"""What any robust objective may add: perturbed weights, cut and erased images, smoothed labels."""

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import naive
from equipoise.objectives import Batch, Labels
from equipoise.objectives.adversarial import Adversarial
from equipoise.objectives.mart import MART
from equipoise.objectives.mixed import Mixed
from equipoise.objectives.robust import climbed
from equipoise.objectives.trades import TRADES
from equipoise.threat import Linf
from naive import Tape, backward, bound, inner

THREAT = Linf(0.1)
GAMMA = 0.05
KINDS = {"adversarial": Adversarial, "trades": TRADES, "mart": MART, "mixed": Mixed}


# Perturbed weights


def robust(name: str = "adversarial", **settings: Any) -> Any:
    apart = {} if name == "adversarial" else {"joint": False}  # as by_hand has it
    return bound(KINDS[name], **{"attack": inner(2, "noise")} | apart | settings)


def by_hand(name: str, net: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor) -> Tensor:
    """Return the loss of an objective on both kinds of inputs, the clean ones first."""
    if name == "adversarial":
        return naive.ce(net(x_adv), y).mean()
    clean, adv = net(x), net(x_adv)
    if name == "trades":
        return naive.ce(clean, y).mean() + 6 * naive.kl(clean, adv).mean()
    if name == "mixed":
        return naive.ce(clean, y).mean() / 2 + naive.ce(adv, y).mean() / 2
    right = (naive.log_p(clean).exp() * naive.onehot(y, 10)).sum(1)
    boosted = naive.ce(adv, y) + naive.boost(adv, y)
    return (boosted + 5 * naive.kl(clean, adv) * (1.0000001 - right)).mean()


def perturbed(name: str, net: nn.Module, *batch: Tensor) -> nn.Module:
    """Return a copy of a network whose weights have climbed by GAMMA of their lengths."""
    proxy, moved = deepcopy(net), deepcopy(net)
    by_hand(name, proxy, *batch).backward()
    with torch.no_grad():
        for old, new in zip(proxy.parameters(), moved.parameters(), strict=True):
            if old.ndim > 1:
                lengths = (old**2).sum().sqrt(), (old.grad**2).sum().sqrt()
                new += GAMMA * lengths[0] / lengths[1] * old.grad
    return moved


def naive_awp(name: str, since: float) -> naive.ByHand:
    """Return the objective on perturbed weights, by copies of the network."""
    plain = robust(name)

    def losses(net: nn.Module, batch: Batch, draws: Any) -> Iterator[Tensor]:
        x_adv = plain.search(net, batch, Labels(batch.y), draws)
        given = batch.x, x_adv, batch.y
        moved = perturbed(name, net, *given) if batch.progress >= since else deepcopy(net)
        loss = by_hand(name, moved, *given)
        grads = torch.autograd.grad(loss, list(moved.parameters()))
        for buffer, value in zip(net.buffers(), moved.buffers(), strict=True):
            buffer.copy_(value)
        whole = naive.gradient_of(net, grads)
        yield loss.detach() + whole - whole.detach()

    return naive.ByHand(losses)


@pytest.mark.slow
@pytest.mark.parametrize("since", [0.0, 0.5])
@pytest.mark.parametrize("kind", ["batchnorm", "plain"])
@pytest.mark.parametrize("name", KINDS)
def test_perturbed_weights_are_those_of_a_copy(name, kind, since):
    net = naive.model(kind).double()
    one = naive.trained(robust(name, awp=GAMMA, awp_from=since), net)
    other = naive.trained(naive_awp(name, since), net)
    without = naive.trained(robust(name), net)
    for key, value in one.model.state_dict().items():
        torch.testing.assert_close(value, other.model.state_dict()[key], rtol=1e-7, atol=1e-9)
    gap = one.model.conv1.weight - without.model.conv1.weight
    assert gap.abs().max() > 1e-4
    assert one.loss == pytest.approx(other.loss, rel=1e-6)
    if kind == "batchnorm":  # a pass an update and input, whatever the perturbation
        passes = 5 * (1 if name == "adversarial" else 2)
        assert int(one.model.bn1.num_batches_tracked) == passes


def test_no_perturbation_changes_nothing():
    net = naive.model()
    one = naive.trained(robust("trades", awp=0.0, awp_from=0.3), net)
    other = naive.trained(robust("trades"), net)
    late = naive.trained(robust("trades", awp=0.5, awp_from=1.0), net)
    for key, value in one.model.state_dict().items():
        assert torch.equal(value, other.model.state_dict()[key]), key
        assert torch.equal(value, late.model.state_dict()[key]), key


class Boom(RuntimeError):
    pass


@pytest.mark.parametrize("at", [1, 2])
def test_weights_are_exactly_what_they_were_if_the_loss_raises(at):
    net, batch = naive.model(), naive.batch()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    calls = []

    def loss() -> Tensor:
        calls.append({k: v.clone() for k, v in net.state_dict().items()})
        if len(calls) == at:
            net.bn1.running_mean.add_(0 if at == 2 else 1)
            raise Boom
        return naive.ce(net(batch.x), batch.y).mean()

    with pytest.raises(Boom), climbed(net, loss, 0.1):
        loss()
    assert len(calls) == at
    for key, value in net.state_dict().items():
        assert torch.equal(value, before[key]), key
    if at == 2:
        assert not torch.equal(calls[1]["conv1.weight"], before["conv1.weight"])
    assert all(p.grad is None for p in net.parameters())
    assert net.training


def test_weights_are_back_before_the_step_and_move_by_gamma_of_their_length():
    net, batch = naive.model(), naive.batch()
    before = {k: v.detach().clone() for k, v in net.named_parameters()}
    with climbed(net, lambda: naive.ce(net(batch.x), batch.y).mean(), 0.1):
        for name, weight in net.named_parameters():
            moved = float((weight - before[name]).detach().norm())
            reach = 0.1 * float(before[name].norm()) if weight.ndim > 1 else 0.0
            assert moved == pytest.approx(reach, rel=1e-4), name
    assert all(torch.equal(p, before[n]) for n, p in net.named_parameters())
    with climbed(net, lambda: 0 * net(batch.x).sum(), 0.1):  # a gradient of zero moves nothing
        assert all(torch.equal(p, before[n]) for n, p in net.named_parameters())


def test_frozen_and_unused_weights_are_not_perturbed():
    net, batch = naive.model(), naive.batch()
    net.conv2.weight.requires_grad_(False)
    net.spare = nn.Linear(3, 3)
    before = {k: v.detach().clone() for k, v in net.named_parameters()}
    with climbed(net, lambda: naive.ce(net(batch.x), batch.y).mean(), 0.1):
        still = [n for n, p in net.named_parameters() if torch.equal(p, before[n])]
    assert {"conv2.weight", "spare.weight"} <= set(still)
    assert "conv1.weight" not in still


# Cut images


def marked(count: int, side: int = 32, channels: int = 3) -> Batch:
    """Return images each of one value, which tells their place, with a class each."""
    values = (torch.arange(count) + 1) / (count + 1)
    x = values.view(-1, 1, 1, 1).expand(count, channels, side, side).clone()
    return Batch(x, torch.arange(count), torch.arange(count), 0.0)


def cut_by_hand(batch: Batch, x: Tensor, i: int) -> tuple[Tensor, int]:
    """Return the pixels of image ``i`` that are foreign, (H, W), and whose they are."""
    own = x[i] == batch.x[i]
    assert bool((own == own[:1]).all())  # in all channels alike
    foreign = ~own[0]
    values = x[i, 0][foreign].unique()
    assert len(values) <= 1
    whose = int((values * (len(batch.y) + 1)).round()) - 1 if len(values) else i
    return foreign, whose


def rectangle(mask: Tensor) -> bool:
    return torch.equal(mask, mask.any(1)[:, None] & mask.any(0)[None])


def test_cut_images_have_the_labels_of_their_pixels():
    batch = marked(200)
    x, labels = robust(cutmix=1.0).changed(batch, Tape())
    assert labels.other is not None
    assert labels.share is not None
    target = labels.target(200).double()
    majorities = 0
    for i in range(200):
        foreign, whose = cut_by_hand(batch, x, i)
        assert rectangle(foreign)
        part = int(foreign.sum()) / 32**2
        expected = (1 - part) * naive.onehot(batch.y[i : i + 1], 200)[0]
        expected += part * naive.onehot(torch.tensor([whose]), 200)[0]
        torch.testing.assert_close(target[i], expected, rtol=0, atol=1e-6)
        assert int(labels.y[i]) == (whose if part > 0.5 else i)
        if len(foreign.unique()) == 2:  # else it may be its own partner
            assert float(labels.share[i]) == pytest.approx(max(part, 1 - part), abs=1e-6)
        majorities += part > 0.5
    assert 20 < majorities < 100
    assert bool((labels.share >= 0.5).all())


def test_cut_images_have_boxes_of_even_areas():
    # A box of area u = 1 - share, u uniform, with its centre anywhere, is cut at the border: of a
    # side s = sqrt(u) there is s - s^2/4 left on average, so E[(s - s^2/4)^2] = 1/2 - 1/5 + 1/48.
    count = 4000
    batch = marked(count, side=24, channels=1)
    x, labels = robust(cutmix=1.0).changed(batch, Tape())
    foreign = (x != batch.x).float().mean((1, 2, 3))
    assert float(foreign.mean()) == pytest.approx(1 / 2 - 1 / 5 + 1 / 48, abs=0.015)
    assert labels.share is not None
    own = torch.where(labels.y == batch.y, labels.share, 1 - labels.share)
    some = foreign > 0  # else it may be its own partner
    torch.testing.assert_close(own[some], 1 - foreign[some], rtol=0, atol=1e-6)
    changed = (x != batch.x)[:, 0].float()
    halves = changed[:, :12].mean(), changed[:, :, :12].mean()
    assert [float(half) for half in halves] == pytest.approx([float(foreign.mean())] * 2, abs=0.02)


@pytest.mark.parametrize("chance", [0.0, 0.3, 1.0])
def test_images_that_are_not_cut_are_untouched(chance):
    count = 2000
    batch = marked(count, side=16, channels=1)
    x, labels = robust(cutmix=chance).changed(batch, Tape())
    changed = (x != batch.x).flatten(1).any(1)
    # 1 in 200 of the boxes is too small to hold the centre of a pixel
    assert float(changed.float().mean()) == pytest.approx(chance, abs=0.04)
    if chance == 0:
        assert labels.other is None
        assert torch.equal(x, batch.x)
    target = labels.target(count)
    assert bool((target[~changed].argmax(1) == batch.y[~changed]).all())
    assert bool((target[~changed].amax(1) == 1).all())


# Erased images


@pytest.mark.parametrize("chance", [0.25, 1.0])
def test_erased_images_hold_a_box_of_noise(chance):
    count, side = 1500, 32
    batch = marked(count, side)
    x, labels = robust(erasing=chance).changed(batch, Tape())
    assert torch.equal(labels.y, batch.y)
    assert labels.other is None
    erased = (x != batch.x).any(1)
    assert float(erased.flatten(1).any(1).float().mean()) == pytest.approx(chance, abs=0.04)
    inside = x[(x != batch.x).all(1, keepdim=True).expand_as(x)]
    assert float(inside.mean()) == pytest.approx(0.5, abs=0.01)
    assert float(inside.var()) == pytest.approx(1 / 12, abs=0.01)
    assert float(x.min()) >= 0
    assert float(x.max()) < 1
    whole = 0
    for mask in erased[erased.flatten(1).any(1)]:
        assert rectangle(mask)
        tall, wide = int(mask.any(1).sum()), int(mask.any(0).sum())
        assert (tall - 1) * (wide - 1) <= 0.33 * side**2
        edges = mask[0].any() | mask[-1].any() | mask[:, 0].any() | mask[:, -1].any()
        if not bool(edges):
            whole += 1
            assert (tall + 1) * (wide + 1) >= 0.02 * side**2
            assert (tall + 1) / (wide - 1) >= 0.3
            assert (tall - 1) / (wide + 1) <= 3.3
    assert whole > 50 * chance


def test_cutting_comes_before_erasing_and_both_before_the_search():
    batch = naive.batch(40)
    seen: list[Tensor] = []

    @dataclass(frozen=True, kw_only=True)
    class Watched(Adversarial):
        def search(self, model: nn.Module, batch: Batch, labels: Labels, draws: Any) -> Tensor:
            seen.extend((batch.x, labels.y))
            return Adversarial.search(self, model, batch, labels, draws)

    objective = bound(Watched, attack=inner(), cutmix=1.0, erasing=1.0)
    backward(objective, naive.model(), batch, Tape())
    cut, labels = robust(cutmix=1.0).changed(batch, tape := Tape())
    erased, _ = robust(erasing=1.0).changed(batch._replace(x=cut), tape)
    assert torch.equal(seen[0], erased)
    assert torch.equal(seen[1], labels.y)


# Labels


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
@pytest.mark.parametrize("classes", [2, 10])
def test_labels_are_their_formula(classes, smoothing):
    generator = torch.Generator().manual_seed(0)
    logits = 5 * torch.randn(8, classes, generator=generator).double()
    y, other = (torch.randint(classes, (8,), generator=generator) for _ in range(2))
    share = torch.rand(8, generator=generator)
    part = share.double()[:, None]
    both = part * naive.onehot(y, classes) + (1 - part) * naive.onehot(other, classes)
    for labels, sharp in (
        (Labels(y, smoothing=smoothing), naive.onehot(y, classes)),
        (Labels(y, other, share, smoothing), both),
    ):
        expected = (1 - smoothing) * sharp + smoothing / classes
        tight = {"rtol": 1e-6, "atol": 1e-6}
        torch.testing.assert_close(labels.target(classes).double(), expected, **tight)
        torch.testing.assert_close(labels.sharp().target(classes).double(), sharp, **tight)
        found = labels.cross_entropy(logits)
        torch.testing.assert_close(found, naive.ce(logits, expected), **tight)
        boosted = naive.ce(logits, expected) + naive.boost(logits, y)
        torch.testing.assert_close(labels.boosted(logits), boosted, **tight)
        index = torch.tensor([5, 0, 5])
        torch.testing.assert_close(
            labels.take(index).target(classes), labels.target(classes)[index]
        )
