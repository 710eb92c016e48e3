r"""What any robust objective may add: perturbed weights, cut and erased images.

Adversarial weight perturbation climbs the loss in the weights, a layer at a time and in
proportion to its length,

.. math:: w_l \leftarrow w_l + \gamma \, \|w_l\| \, g_l / \|g_l\|,

takes the gradient there, and goes back before the step. Deviations from the authors' code: the
direction is the gradient itself, not the step of a proxy network with an optimiser of its own
(one step of plain SGD, scaled to the same length, is the gradient); the statistics of BatchNorm
do not see the first of the two passes, as the proxy's did not count.

References:
    | Adversarial Weight Perturbation Helps Robust Generalization (Wu et al., 2020)
    | https://arxiv.org/abs/2004.05884
    | CutMix (Yun et al., 2019), https://arxiv.org/abs/1905.04899; with adversarial training:
    | Data Augmentation Can Improve Robustness (Rebuffi et al., 2021), arXiv:2111.05328
    | Random Erasing Data Augmentation (Zhong et al., 2017), https://arxiv.org/abs/1708.04896
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from equipoise.draws import Draws
from equipoise.execution.passes import restored
from equipoise.objectives.labels import Labels

ERASED_AREA = (0.02, 0.33)
ERASED_RATIO = (0.3, 3.3)


@contextmanager
def climbed(model: nn.Module, loss: Callable[[], Tensor], gamma: float) -> Iterator[None]:
    """Keep the weights where the loss is larger while the block runs: see the module.

    Arguments:
        model: The model; convolutions and linear layers are moved, not biases and norms.
        loss: The loss at the present weights.
        gamma: How far, in lengths of the weights.
    """
    weights: list[Tensor] = [p for p in model.parameters() if p.ndim > 1 and p.requires_grad]
    held = [p.detach().clone() for p in weights]
    with restored(model):  # BatchNorm's statistics
        grads = torch.autograd.grad(loss(), weights, allow_unused=True)
    with torch.no_grad():
        for weight, grad in zip(weights, grads, strict=True):
            if grad is not None:
                scale = gamma * weight.norm() / grad.norm().clamp_min(1e-20)
                weight.add_(grad * torch.nan_to_num(scale))
    try:
        yield
    finally:
        with torch.no_grad():
            torch._foreach_copy_(weights, held)


def _numbers(draws: Draws, x: Tensor, count: int) -> list[Tensor]:
    """Return ``count`` uniform numbers for each example, each of shape (B, 1, 1, 1)."""
    numbers = draws.uniform(x.new_empty(len(x), count))
    return [column.view(-1, 1, 1, 1) for column in numbers.unbind(1)]


def _box(x: Tensor, tall: Tensor, wide: Tensor, row: Tensor, column: Tensor) -> Tensor:
    """Return the pixels of boxes, cut at the border, as booleans with shape (B, 1, H, W).

    Heights, widths and centres have shape (B, 1, 1, 1), as parts of the image's.
    """
    height, width = x.shape[2:]
    rows = torch.arange(height, device=x.device).view(1, 1, -1, 1) + 0.5
    columns = torch.arange(width, device=x.device).view(1, 1, 1, -1) + 0.5
    down = (rows - row * height).abs() <= tall * height / 2
    across = (columns - column * width).abs() <= wide * width / 2
    return down & across


def cut(x: Tensor, labels: Labels, chance: float, draws: Draws) -> tuple[Tensor, Labels]:
    """Return images with a box of another one (CutMix); the labels count by area.

    Arguments:
        x: The images, with shape (B, C, H, W).
        labels: Their labels.
        chance: The probability that an image is changed.
        draws: The randomness.
    """
    share, row, column, lot = _numbers(draws, x, 4)
    order = draws.uniform(x.new_empty(len(x))).argsort()
    side = (1 - share).sqrt()
    box = _box(x, side, side, row, column) & (lot < chance)
    mixed = torch.where(box, x[order], x)
    kept = 1 - box.float().mean((1, 2, 3))
    y, other = labels.y, labels.y[order]
    major = kept >= 0.5
    whole = Labels(
        torch.where(major, y, other),
        torch.where(major, other, y),
        torch.where(major, kept, 1 - kept),
        labels.smoothing,
    )
    return mixed, whole


def erase(x: Tensor, chance: float, draws: Draws) -> Tensor:
    """Return images of which a box is noise (random erasing).

    Arguments:
        x: The images, with shape (B, C, H, W).
        chance: The probability that an image is changed.
        draws: The randomness.
    """
    area, ratio, row, column, lot = _numbers(draws, x, 5)
    area = ERASED_AREA[0] + (ERASED_AREA[1] - ERASED_AREA[0]) * area
    low, high = (math.log(value) for value in ERASED_RATIO)
    ratio = (low + (high - low) * ratio).exp()
    box = _box(x, (area * ratio).sqrt(), (area / ratio).sqrt(), row, column) & (lot < chance)
    return torch.where(box, draws.uniform(x), x)
