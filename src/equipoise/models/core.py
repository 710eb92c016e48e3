"""Parts of every model: normalisation as the first layer, a stem and a trunk."""

from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812


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


class MapLinear(nn.Linear):
    """A linear layer of a feature map, in either memory layout.

    It is ``Linear(C * H * W, out_features)`` of the flattened map. Flattening would copy a
    channels-last map and change the layout of its gradient; the weights are reordered instead.

    Arguments:
        channels: C.
        side: The height and width (H, W).
        out_features: The features of the output.
    """

    def __init__(self, channels: int, side: tuple[int, int], out_features: int) -> None:
        super().__init__(channels * side[0] * side[1], out_features)
        self.window = (channels, *side)

    def forward(self, x: Tensor) -> Tensor:
        """Return features of shape (B, out_features) for maps of shape (B, C, H, W)."""
        if x.is_contiguous():
            return F.linear(x.flatten(1), self.weight, self.bias)
        return F.linear(self.channels_last(x), self.channels_last(self.maps), self.bias)

    @property
    def maps(self) -> Tensor:
        """Return the weights as maps, of shape (out_features, C, H, W)."""
        return self.weight.view(-1, *self.window)

    @staticmethod
    def channels_last(maps: Tensor) -> Tensor:
        """Return maps as rows of shape (B, H * W * C): a view of those with channels last."""
        return maps.permute(0, 2, 3, 1).flatten(1)


class Classifier(nn.Module):
    """A network from images in [0, 1], with shape (B, C, H, W), to logits, with shape (B, K).

    It is ``trunk`` after ``stem``; the stem holds the normalisation and the first convolution,
    which is all that YOPO differentiates in its inner loop.
    """

    normalize: nn.Module
    conv1: nn.Module

    def stem(self, x: Tensor) -> Tensor:
        """Return the output of the first convolution."""
        out: Tensor = self.conv1(self.normalize(x))
        return out

    @abstractmethod
    def trunk(self, h: Tensor) -> Tensor:
        """Return the logits for an output of the stem."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        return self.trunk(self.stem(x))
