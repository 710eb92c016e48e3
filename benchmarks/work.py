"""The useful work of a pass, in floating-point operations, counted on the plain model."""

__all__ = ["Work", "work_of"]

from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.utils.flop_counter import FlopCounterMode

FEW = 2  # images on which it is counted


@dataclass(frozen=True)
class Work:
    """The operations of one image; a multiplication with its addition is two.

    Arguments:
        attacking: Forward, and backward to the input alone.
        training: Forward, and backward to the weights.
    """

    attacking: float
    training: float


def work_of(model: nn.Module, x: Tensor, y: Tensor) -> Work:
    """Count the matrix products and convolutions of a pass.

    All sides of a bench are credited with this, whatever they really compute: their operations a
    second then compare like their seconds, and with what the processor could do.

    Arguments:
        model: The model, in eval mode; a copy of it is run.
        x: Images, with shape (B, ...); two suffice.
        y: Their labels.
    """
    model, x, y = deepcopy(model), x[:FEW], y[:FEW]
    training = _count(model, x, y)
    for weight in model.parameters():
        weight.requires_grad_(False)
    return Work(_count(model, x.clone().requires_grad_(), y) / len(x), training / len(x))


def _count(model: nn.Module, x: Tensor, y: Tensor) -> int:
    with FlopCounterMode(display=False) as counter, torch.enable_grad():
        torch.autograd.backward(F.cross_entropy(model(x), y))
    return int(counter.get_total_flops())
