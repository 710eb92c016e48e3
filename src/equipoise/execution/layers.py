"""Layers that say what others say, for a model whose weights are not learnt: quicker ways."""

__all__ = ["Affine", "Full", "Layer", "Mapped", "quicker", "replace"]

from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from equipoise.execution.strided import Strided
from equipoise.models.core import MapLinear, Normalize


class Layer(Protocol):
    """What stands in the place of a layer and is made from its weights."""

    def refresh(self) -> None:
        """Follow the layer, whose weights have changed."""


class Full(nn.Module):
    """A linear layer that computes in float32 whatever the arithmetic around it."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        """Return features in float32 for features of shape (B, ...)."""
        with torch.autocast(x.device.type, enabled=False):
            out: Tensor = self.inner(x.float())
        return out


class Affine(nn.Module):
    """The normalisation of the first layer as one product and sum: fewer passes over the images.

    Arguments:
        inner: The layer.
    """

    def __init__(self, inner: Normalize) -> None:
        super().__init__()
        self.inner = inner
        self.register_buffer("factor", torch.empty_like(inner.std))
        self.register_buffer("shift", torch.empty_like(inner.std))

    factor: Tensor
    shift: Tensor

    @torch.no_grad()
    def refresh(self) -> None:
        """Follow the layer, whose mean and deviation may have changed."""
        torch.reciprocal(self.inner.std, out=self.factor)
        torch.mul(self.inner.mean, -self.factor, out=self.shift)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise images with shape (B, C, H, W)."""
        return torch.addcmul(self.shift, x, self.factor)


class Mapped(nn.Module):
    """A linear layer of maps that have their channels last, with its weights in that order.

    Arguments:
        inner: The layer.
    """

    weight: Tensor

    def __init__(self, inner: MapLinear) -> None:
        super().__init__()
        self.inner = inner
        self.register_buffer("weight", torch.empty_like(inner.weight))

    @torch.no_grad()
    def refresh(self) -> None:
        """Follow the weights of the layer, which have changed."""
        self.weight.copy_(self.inner.channels_last(self.inner.maps))

    def forward(self, x: Tensor) -> Tensor:
        """Return features of shape (B, out_features) for maps of shape (B, C, H, W)."""
        return F.linear(self.inner.channels_last(x), self.weight, self.inner.bias)


def quicker(model: nn.Module, layout: str) -> list[Layer]:
    """Put quicker layers in the place of those that have one; return them, to be refreshed."""
    made: list[Layer] = []
    for name, module in list(model.named_modules()):
        layer = _quicker(module, layout) if name else None
        if layer is not None:
            made.append(layer)
            replace(model, name, layer)
    return made


def _quicker(module: nn.Module, layout: str) -> Affine | Mapped | Strided | None:
    if isinstance(module, Normalize):
        return Affine(module)
    if isinstance(module, MapLinear) and layout == "channels_last":
        return Mapped(module)
    if isinstance(module, nn.Conv2d) and Strided.suits(module):
        return Strided(module)
    return None


def replace(model: nn.Module, name: str, module: nn.Module) -> None:
    """Put a module in the place of the one with a name such as ``block.0.conv``."""
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, module)
