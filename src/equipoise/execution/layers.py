"""Layers that say what others say, for a model whose weights are not learnt: quicker ways.

A layer becomes such a one by a change of its class, as torch's parametrisations do it: it keeps
its weights, its hooks and all its attributes, and is an instance of what it was.
"""

__all__ = ["Affine", "Folded", "Full", "Layer", "Mapped", "become", "plain", "quicker"]

from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from equipoise.execution.strided import Strided
from equipoise.models.core import MapLinear, Normalize


class Layer(Protocol):
    """A layer that is in part made from its own weights."""

    def prepare(self) -> None:
        """Make what it needs."""

    def refresh(self) -> None:
        """Follow its weights, which have changed."""


class Folded(nn.BatchNorm2d):
    """A norm that the convolution before it has already applied."""

    def forward(self, x: Tensor) -> Tensor:
        """Return what it is given, with shape (B, C, H, W)."""
        return x


class Full(nn.Module):
    """A linear layer that computes in float32 whatever the arithmetic around it."""

    def forward(self, x: Tensor) -> Tensor:
        """Return features in float32 for features of shape (B, ...)."""
        with torch.autocast(x.device.type, enabled=False):
            out: Tensor = super().forward(x.float())  # of the layer that it is
        return out


class Affine(Normalize):
    """The normalisation of the first layer as one product and sum: a pass fewer over images."""

    factor: Tensor
    shift: Tensor

    def prepare(self) -> None:
        """Make room for the factor and the shift."""
        self.register_buffer("factor", torch.empty_like(self.std))
        self.register_buffer("shift", torch.empty_like(self.std))

    @torch.no_grad()
    def refresh(self) -> None:
        """Follow its mean and deviation, which may have changed."""
        torch.reciprocal(self.std, out=self.factor)
        torch.mul(self.mean, -self.factor, out=self.shift)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise images with shape (B, C, H, W)."""
        return torch.addcmul(self.shift, x, self.factor)


class Mapped(MapLinear):
    """A linear layer of maps that have their channels last, with its weights in that order."""

    ordered: Tensor

    def prepare(self) -> None:
        """Make room for the weights in order."""
        self.register_buffer("ordered", torch.empty_like(self.weight))

    @torch.no_grad()
    def refresh(self) -> None:
        """Follow its weights, which have changed."""
        self.ordered.copy_(self.channels_last(self.maps))

    def forward(self, x: Tensor) -> Tensor:
        """Return features of shape (B, out_features) for maps of shape (B, C, H, W)."""
        return F.linear(self.channels_last(x), self.ordered, self.bias)


def quicker(model: nn.Module, layout: str) -> list[Layer]:
    """Let the layers that have a quicker way take it; return them, to be refreshed."""
    made: list[Layer] = []
    for name, module in list(model.named_modules()):
        kind = _quicker(module, layout) if name else None
        if kind is not None:
            become(module, kind)
            module.prepare()
            made.append(module)
    return made


def _quicker(module: nn.Module, layout: str) -> type[nn.Module] | None:
    if type(module) is Normalize:
        return Affine
    if type(module) is MapLinear and layout == "channels_last":
        return Mapped
    if type(module) is nn.Conv2d and plain(module) and Strided.suits(module):
        return Strided
    return None


def plain(module: nn.Module) -> bool:
    """Tell whether the weights of a layer are its own parameters, and no computed ones."""
    return "weight" in module._parameters and "parametrizations" not in module._modules


def become(module: nn.Module, kind: type[nn.Module]) -> None:
    """Let a layer be of another kind: a class of its own class, or one to put before it."""
    if not issubclass(kind, type(module)):
        kind = type(kind.__name__, (kind, type(module)), {})
    object.__setattr__(module, "__class__", kind)
