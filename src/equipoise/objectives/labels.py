"""Labels as they are trained on (hard, smoothed, mixed), and images cut (CutMix) or erased.

References:
    | CutMix (Yun et al., 2019), https://arxiv.org/abs/1905.04899; with adversarial training:
    | Data Augmentation Can Improve Robustness (Rebuffi et al., 2021), arXiv:2111.05328
    | Random Erasing Data Augmentation (Zhong et al., 2017), https://arxiv.org/abs/1708.04896
"""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from equipoise.draws import Draws
from equipoise.losses import boost, cross_entropy

ERASED_AREA = (0.02, 0.33)
ERASED_RATIO = (0.3, 3.3)


@dataclass(frozen=True)
class Labels:
    r"""The labels of a batch.

    With smoothing :math:`s` and the label of another image in the part :math:`1 - a` of a mixed
    one, the target is :math:`(1 - s)(a\, e_y + (1 - a)\, e_{y'}) + s / K`.

    Arguments:
        y: The labels, with shape (B,); of a mixed image that of its larger part.
        other: The labels of the smaller parts, with shape (B,); None for whole images.
        share: The part :math:`a` that ``y`` has, with shape (B,).
        smoothing: The part :math:`s` that is spread evenly over all classes.
        weight: The weights of the images in the loss, with shape (B,); None: all have the same.
    """

    y: Tensor
    other: Tensor | None = None
    share: Tensor | None = None
    smoothing: float = 0.0
    weight: Tensor | None = None

    def mean(self, losses: Tensor) -> Tensor:
        """Return the mean of the images' losses, with shape (B,), with their weights."""
        return (losses if self.weight is None else self.weight.to(losses) * losses).mean()

    def sharp(self) -> "Labels":
        """Return the labels without smoothing, which attacks use."""
        return replace(self, smoothing=0.0)

    def take(self, index: Tensor) -> "Labels":
        """Return the labels at some positions."""
        other = None if self.other is None else self.other[index]
        share = None if self.share is None else self.share[index]
        weight = None if self.weight is None else self.weight[index]
        return Labels(self.y[index], other, share, self.smoothing, weight)

    def target(self, classes: int) -> Tensor:
        """Return the labels as probabilities, with shape (B, K)."""
        target = F.one_hot(self.y, classes).float()
        if self.other is not None and self.share is not None:
            share = self.share[:, None].float()
            target = share * target + (1 - share) * F.one_hot(self.other, classes)
        return (1 - self.smoothing) * target + self.smoothing / classes

    def cross_entropy(self, logits: Tensor) -> Tensor:
        """Return the cross-entropies of logits of shape (B, K), with shape (B,)."""
        if self.other is None and self.smoothing == 0:
            return cross_entropy(logits, self.y)
        return cross_entropy(logits, self.target(logits.shape[1]).to(logits.dtype))

    def boosted(self, logits: Tensor) -> Tensor:
        """Return the boosted cross-entropies: see :mod:`equipoise.losses`."""
        return self.cross_entropy(logits) + boost(logits, self.y)


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
    """Return images with a box of another image (CutMix); the labels are weighted by area.

    Arguments:
        x: The images, with shape (B, C, H, W).
        labels: Their labels.
        chance: The probability that an image is changed.
        draws: The randomness.
    """
    share, row, column, chances = _numbers(draws, x, 4)
    order = draws.uniform(x.new_empty(len(x))).argsort()
    side = (1 - share).sqrt()
    box = _box(x, side, side, row, column) & (chances < chance)
    mixed = torch.where(box, x[order], x)
    kept = 1 - box.float().mean((1, 2, 3))
    y, other = labels.y, labels.y[order]
    major = kept >= 0.5
    whole = Labels(
        torch.where(major, y, other),
        torch.where(major, other, y),
        torch.where(major, kept, 1 - kept),
        labels.smoothing,
        labels.weight,
    )
    return mixed, whole


def erase(x: Tensor, chance: float, draws: Draws) -> Tensor:
    """Return images with a box of noise (random erasing).

    Arguments:
        x: The images, with shape (B, C, H, W).
        chance: The probability that an image is changed.
        draws: The randomness.
    """
    area, ratio, row, column, chances = _numbers(draws, x, 5)
    area = ERASED_AREA[0] + (ERASED_AREA[1] - ERASED_AREA[0]) * area
    low, high = (math.log(value) for value in ERASED_RATIO)
    ratio = (low + (high - low) * ratio).exp()
    box = _box(x, (area * ratio).sqrt(), (area / ratio).sqrt(), row, column) & (chances < chance)
    return torch.where(box, draws.uniform(x), x)
