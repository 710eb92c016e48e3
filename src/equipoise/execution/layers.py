"""Layers that return what others return, quicker, for a model whose weights are not learnt.

A layer becomes such a one by a change of its class, as torch's parametrisations do it: it keeps
its weights, its hooks and all its attributes, and is an instance of what it was.
"""

from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from equipoise.models.core import MapLinear, Normalize

FEW, FEW_SHORT = 4, 16  # input channels, in float32 and in bfloat16


class Layer(Protocol):
    """A layer that keeps something that is computed from its own weights."""

    def refresh(self) -> None:
        """Compute it from the layer's current weights."""


def _keep(layer: nn.Module, name: str, value: Tensor) -> None:
    """Put a value into a buffer of a layer, in place where the buffer exists."""
    if name in layer._buffers:
        layer.get_buffer(name).copy_(value)
    else:
        layer.register_buffer(name, value.clone(memory_format=torch.preserve_format))


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

    @torch.no_grad()
    def refresh(self) -> None:
        """Compute the factor and the shift from the current mean and deviation."""
        _keep(self, "factor", torch.reciprocal(self.std))
        _keep(self, "shift", self.mean * -self.factor)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise images with shape (B, C, H, W)."""
        return torch.addcmul(self.shift, x, self.factor)


class Mapped(MapLinear):
    """A linear layer of maps that have their channels last, with its weights in that order."""

    ordered: Tensor

    @torch.no_grad()
    def refresh(self) -> None:
        """Put the current weights in order."""
        _keep(self, "ordered", self.channels_last(self.maps))

    def forward(self, x: Tensor) -> Tensor:
        """Return features of shape (B, out_features) for maps of shape (B, C, H, W)."""
        return F.linear(self.channels_last(x), self.ordered, self.bias)


class Strided(nn.Conv2d):
    r"""A strided convolution of few channels, where only the gradient of its input is needed.

    For a convolution :math:`y_i = \sum_u w_u \, x_{s i + u - p}` the gradient at input :math:`j`
    is :math:`\sum_i w_{j + p - s i} \, g_i`. With :math:`j + p = s q + r` it is, for every phase
    :math:`r < s` apart, an ordinary convolution of :math:`g` with the weights
    :math:`w_{s t + r}`; the phases are then interleaved. Libraries compute the gradient of a layer
    with one or three input channels as slowly as one with sixteen; as a convolution from many
    channels to :math:`s^2` times the few it takes a third of the time on a CPU. In bfloat16 it is
    quicker still with sixteen channels.
    """

    phases: Tensor

    @staticmethod
    def suits(conv: nn.Module) -> bool:
        """Tell whether a layer is a square strided convolution of a few channels."""
        if not isinstance(conv, nn.Conv2d) or isinstance(conv.padding, str):
            return False
        square = len({*conv.stride}) == len({*conv.padding}) == len({*conv.kernel_size}) == 1
        plain = conv.groups == 1 and {*conv.dilation} == {1} and conv.padding_mode == "zeros"
        few = FEW_SHORT if conv.weight.dtype == torch.bfloat16 else FEW
        return square and plain and conv.in_channels <= few and conv.stride[0] > 1

    @torch.no_grad()
    def refresh(self) -> None:
        """Compute the weights of the phases from the current weights."""
        _keep(self, "phases", _phases(self.weight, int(self.stride[0])))

    def forward(self, x: Tensor) -> Tensor:
        """Return the convolution of images with shape (B, C, H, W)."""
        out: Tensor = _Convolution.apply(  # type: ignore[no-untyped-call]
            x.to(self.weight.dtype),
            self.weight,
            self.bias,
            self.phases,
            int(self.stride[0]),
            int(self.padding[0]),
        )
        return out


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, phases: Tensor, s: int, p: int
    ) -> Tensor:
        ctx.save_for_backward(phases)
        ctx.geometry = s, p, x.shape[2], x.shape[3]
        return F.conv2d(x, weight, bias, stride=s, padding=p)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None, None, None]:
        (phases,) = ctx.saved_tensors
        s, p, height, width = ctx.geometry
        every = _interleaved(F.conv2d(grads[0], phases, padding=phases.shape[-1] - 1), s)
        lack = [max(0, p + size - every.shape[d]) for d, size in ((3, width), (2, height))]
        if any(lack):  # the last rows of the input that no window reached
            every = F.pad(every, (0, lack[0], 0, lack[1]))
        every = every[:, :, p : p + height, p : p + width]
        whole = every.contiguous(memory_format=torch.channels_last)
        return whole, None, None, None, None, None


def _interleaved(phases: Tensor, s: int) -> Tensor:
    """Return images (B, C, s H, s W) of their phases (B, s s C, H, W), channels last.

    A pixel's channels, and those of its neighbours in a row, move as one block.
    """
    n, _, h, w = phases.shape
    blocks = phases.permute(0, 2, 3, 1).reshape(n, h, w, s, -1)
    return blocks.transpose(2, 3).reshape(n, s * h, s * w, -1).permute(0, 3, 1, 2)


def _phases(weight: Tensor, s: int) -> Tensor:
    """Return the weights of the convolutions of the gradient, (s s C, O, T, T)."""
    outputs, inputs, k, _ = weight.shape
    t = -(-k // s)
    padded = F.pad(weight, (0, s * t - k, 0, s * t - k))
    split = padded.view(outputs, inputs, t, s, t, s).flip(2, 4)
    phases = split.permute(3, 5, 1, 0, 2, 4).reshape(s * s * inputs, outputs, t, t)
    return phases.contiguous(memory_format=torch.channels_last)


def quicker(model: nn.Module, layout: str) -> list[Layer]:
    """Let the layers that have a quicker way take it; return them, to be refreshed."""
    made: list[Layer] = []
    for name, module in list(model.named_modules()):
        kind = _quicker(module, layout) if name else None
        if kind is not None:
            become(module, kind)
            module.refresh()
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
