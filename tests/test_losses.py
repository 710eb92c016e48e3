"""Losses: against formulas written out here, in float64."""

import math

import pytest
import torch
from torch import Tensor

from equipoise.losses import LOSSES, boost, cross_entropy, kl, margin


def logits_and_labels(classes: int = 5, scale: float = 3.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = scale * torch.randn(20, classes, generator=generator, dtype=torch.float64)
    return logits, torch.randint(classes, (20,), generator=generator)


def slow_cross_entropy(row: list[float], label: int) -> float:
    largest = max(row)
    return math.log(sum(math.exp(z - largest) for z in row)) + largest - row[label]


def slow_margin(row: list[float], label: int) -> float:
    return max(z for i, z in enumerate(row) if i != label) - row[label]


SLOW = {"ce": slow_cross_entropy, "margin": slow_margin}


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("classes", [2, 5, 100])
@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_losses_equal_their_formulas(name, classes, scale):
    logits, y = logits_and_labels(classes, scale)
    expected = [
        SLOW[name](row, label) for row, label in zip(logits.tolist(), y.tolist(), strict=True)
    ]
    assert LOSSES[name](logits, y).tolist() == pytest.approx(expected, abs=1e-10)
    single = LOSSES[name](logits.float(), y)
    assert single.dtype == torch.float32
    assert single.tolist() == pytest.approx(expected, rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_are_right(name):
    logits, y = logits_and_labels()
    assert torch.autograd.gradcheck(LOSSES[name], (logits.requires_grad_(True), y))


@pytest.mark.parametrize("name", LOSSES)
def test_no_example_depends_on_another(name):
    logits, y = logits_and_labels()
    whole = LOSSES[name](logits, y)
    alone = torch.cat([LOSSES[name](logits[i : i + 1], y[i : i + 1]) for i in range(len(y))])
    assert torch.equal(whole, alone)


def test_margin_masks_the_label_instead_of_multiplying_it_away():
    # Multiplying by 1 - onehot would put a zero among the others and win over negative logits.
    logits = torch.tensor([[-1.0, -5.0, -7.0], [-9.0, -5.0, -7.0]])
    y = torch.tensor([0, 0])
    assert margin(logits, y).tolist() == [-4.0, 4.0]


def test_margin_is_positive_exactly_where_misclassified():
    logits, y = logits_and_labels()
    assert torch.equal(margin(logits, y) > 0, logits.argmax(1) != y)


def test_margin_leaves_the_logits_alone():
    logits, y = logits_and_labels()
    copy = logits.clone()
    margin(logits, y)
    assert torch.equal(logits, copy)


def test_margin_gradient_pulls_on_two_logits_alone():
    logits, y = logits_and_labels()
    logits.requires_grad_(True)
    (grad,) = torch.autograd.grad(margin(logits, y).sum(), logits)
    assert (grad.sum(1).abs() < 1e-12).all()
    assert ((grad != 0).sum(1) == 2).all()
    assert (grad.gather(1, y[:, None]) == -1).all()


def test_losses_of_huge_logits_are_finite():
    logits = torch.tensor([[1e30, -1e30, 0.0]])
    assert torch.isfinite(margin(logits, torch.tensor([0]))).all()
    assert cross_entropy(logits, torch.tensor([0])).item() == 0.0


# The parts of TRADES and MART

SCALES = [1.0, 10.0, 60.0]
CLASSES = [2, 3, 10, 100]


def pairs(classes: int, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return two sets of logits up to +-scale, some rows equal, and labels."""
    generator = torch.Generator().manual_seed(classes)
    shape = (12, classes)
    one, other = (
        scale * (2 * torch.rand(shape, generator=generator, dtype=torch.float64) - 1)
        for _ in range(2)
    )
    other[3] = one[3]
    one[4], other[4] = scale, scale
    one[4, 0], other[4, 1] = -scale, -scale
    return one, other, torch.randint(classes, (12,), generator=generator)


def slow_softmax(row: list[float]) -> list[float]:
    largest = max(row)
    parts = [math.exp(z - largest) for z in row]
    return [part / math.fsum(parts) for part in parts]


def slow_log_p(row: list[float], k: int) -> float:
    return -slow_cross_entropy(row, k)


def slow_kl(row: list[float], other: list[float]) -> float:
    p = slow_softmax(row)
    return math.fsum(p[k] * (slow_log_p(row, k) - slow_log_p(other, k)) for k in range(len(row)))


def slow_boosted(row: list[float], label: int) -> float:
    wrong = max(p for k, p in enumerate(slow_softmax(row)) if k != label)
    return slow_cross_entropy(row, label) - math.log(1.0001 - wrong)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("classes", CLASSES)
def test_kl_is_its_formula_in_value_and_in_both_gradients(classes, scale):
    one, other, _ = pairs(classes, scale)
    expected = [slow_kl(a, b) for a, b in zip(one.tolist(), other.tolist(), strict=True)]
    one.requires_grad_(True)
    other.requires_grad_(True)
    values = kl(one, other)
    assert values.tolist() == pytest.approx(expected, rel=1e-12, abs=1e-12)
    assert values[3].item() == pytest.approx(0, abs=1e-14)
    grads = torch.autograd.grad(values.sum(), (one, other))
    for i, (a, b) in enumerate(zip(one.tolist(), other.tolist(), strict=True)):
        p, q = slow_softmax(a), slow_softmax(b)
        left = [p[k] * (slow_log_p(a, k) - slow_log_p(b, k) - expected[i]) for k in range(classes)]
        right = [q[k] - p[k] for k in range(classes)]
        assert grads[0][i].tolist() == pytest.approx(left, rel=1e-9, abs=1e-12)
        assert grads[1][i].tolist() == pytest.approx(right, rel=1e-9, abs=1e-12)
    short = kl(one.detach().float(), other.detach().float())
    assert short.dtype == torch.float32
    assert short.tolist() == pytest.approx(expected, rel=1e-4, abs=1e-5 * scale)


def test_kl_is_not_symmetric_and_its_first_argument_is_the_reference():
    # p nearly certain, q even: KL(p || q) is log 2, KL(q || p) about half of the gap.
    certain, even = torch.tensor([[20.0, 0.0]]).double(), torch.zeros(1, 2).double()
    assert kl(certain, even).item() == pytest.approx(math.log(2), abs=1e-6)
    assert kl(even, certain).item() == pytest.approx(10 - math.log(2), abs=1e-6)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("classes", CLASSES)
def test_boosted_cross_entropy_is_its_formula_in_value_and_gradient(classes, scale):
    logits, _, y = pairs(classes, scale)
    rows = list(zip(logits.tolist(), y.tolist(), strict=True))
    expected = [slow_boosted(row, label) for row, label in rows]
    logits.requires_grad_(True)
    values = cross_entropy(logits, y) + boost(logits, y)
    assert values.tolist() == pytest.approx(expected, rel=1e-10)
    parts = [value - slow_cross_entropy(*row) for value, row in zip(expected, rows, strict=True)]
    assert boost(logits, y).tolist() == pytest.approx(parts, rel=1e-8, abs=1e-10)
    (grad,) = torch.autograd.grad(values.sum(), logits)
    for i, (row, label) in enumerate(rows):
        p = slow_softmax(row)
        wrong = [(p[k], k) for k in range(classes) if k != label]
        largest, at = max(wrong)
        if sum(value == largest for value, _ in wrong) > 1:
            continue  # a kink: any of the largest may take the gradient
        slope = largest / (1.0001 - largest)
        both = [p[k] - (k == label) + slope * ((k == at) - p[k]) for k in range(classes)]
        assert grad[i].tolist() == pytest.approx(both, rel=1e-8, abs=1e-10)
    # 1.0001 - p has an error of 2^-24 in float32, which is a part of at most 6e-4 of 1e-4.
    short = logits.detach().float()
    short = cross_entropy(short, y) + boost(short, y)
    assert short.dtype == torch.float32
    assert short.tolist() == pytest.approx(expected, rel=1e-5, abs=2e-3)


def test_the_boost_ends_where_a_wrong_class_is_certain():
    logits = torch.tensor([[0.0, 90.0], [90.0, 0.0]])
    y = torch.tensor([0, 0])
    assert boost(logits, y).tolist() == pytest.approx([-math.log(1e-4), -math.log(1.0001)], 1e-2)
    assert boost(logits.double(), y)[0].item() == pytest.approx(-math.log(1e-4), rel=1e-9)


@pytest.mark.parametrize("loss", [kl, boost])
def test_the_gradients_of_training_losses_are_those_of_differences(loss):
    one, other, y = pairs(4, 3.0)
    keep = [i for i in range(12) if i not in (3, 4)]  # no ties
    one, other = one[keep].requires_grad_(True), other[keep].requires_grad_(True)
    assert torch.autograd.gradcheck(loss, (one, other if loss is kl else y[keep]))


@pytest.mark.parametrize("loss", [kl, boost])
def test_no_example_of_a_training_loss_depends_on_another(loss):
    one, other, y = pairs(7, 5.0)
    second = other if loss is kl else y
    alone = torch.cat([loss(one[i : i + 1], second[i : i + 1]) for i in range(12)])
    assert torch.equal(loss(one, second), alone)
