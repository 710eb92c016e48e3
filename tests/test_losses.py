"""Losses: against formulas written out here, in float64."""

import math

import pytest
import torch
from torch import Tensor

from equipoise.losses import LOSSES, cross_entropy, margin


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
