"""What every model shares: normalisation as the first layer, and a stem and a trunk."""

__all__ = ["Classifier", "Normalize"]

from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Normalize(nn.Module):
    r"""Return :math:`(x - \mu) / \sigma` per channel: the first layer, so that attacks see [0, 1].

    Arguments:
        mean: :math:`\mu` of each channel.
        std: :math:`\sigma` of each channel.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise images with shape (B, C, H, W)."""
        return (x - self.mean) / self.std


class Classifier(nn.Module):
    """A network from images in [0, 1], with shape (B, C, H, W), to logits, with shape (B, K).

    It is ``trunk`` after ``stem``; the stem holds the normalisation and the first convolution,
    which is all that YOPO differentiates in its inner loop.
    """

    @abstractmethod
    def stem(self, x: Tensor) -> Tensor:
        """Return the output of the first convolution."""

    @abstractmethod
    def trunk(self, h: Tensor) -> Tensor:
        """Return the logits for an output of the stem."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        return self.trunk(self.stem(x))
