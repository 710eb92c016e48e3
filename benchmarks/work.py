"""The useful work of a pass, in floating-point operations, counted on the plain model."""

from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.utils.flop_counter import FlopCounterMode


def useful_flops(model: nn.Module, x: Tensor, y: Tensor) -> dict[str, float]:
    """Count the matrix products and convolutions of a pass, for one image.

    All sides of a benchmark are credited with this, whatever they really compute: their
    operations a second then compare like their seconds, and with what the processor could do.

    Arguments:
        model: The model, in eval mode; a copy of it is run.
        x: Two images or more, with shape (B, ...).
        y: Their labels.

    Returns:
        ``attacking``: forward, and backward to the input alone; ``training``: forward, and
        backward to the weights. A multiplication with its addition is two operations.
    """
    model, x, y = deepcopy(model), x[:2], y[:2]
    training = _count(model, x, y)
    model.requires_grad_(False)
    attacking = _count(model, x.clone().requires_grad_(), y)
    return {"attacking": attacking / len(x), "training": training / len(x)}


def _count(model: nn.Module, x: Tensor, y: Tensor) -> int:
    with FlopCounterMode(display=False) as counter, torch.enable_grad():
        torch.autograd.backward(F.cross_entropy(model(x), y))
    return int(counter.get_total_flops())
