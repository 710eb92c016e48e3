r"""Layers that compute the same as others in less time, for a model whose weights are not trained.

A layer is replaced by changing its class, as torch's parametrisations do: it keeps its weights,
its hooks and all its attributes, and stays an instance of its former class.

A BatchNorm that reads just what a convolution wrote is folded into it: with the statistics
:math:`\mu, \sigma^2` and the weights :math:`g, b` of the norm

.. math:: s = g / \sqrt{\sigma^2 + \epsilon}, \qquad w' = s \, w, \qquad b' = b + s (c - \mu)

for a convolution of weights :math:`w` and bias :math:`c`. Running the model once shows where that
is so.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from equipoise.models.core import MapLinear, Normalize

_LONG = torch.int64, torch.int32
FEW, FEW_SHORT = 4, 16  # input channels, in float32 and in bfloat16


class Layer(Protocol):
    """A layer with buffers that are computed from its weights."""

    def refresh(self) -> None:
        """Compute them from the current weights."""


def _keep(layer: nn.Module, name: str, value: Tensor) -> None:
    """Put a value into a buffer of a layer, in place where the buffer exists."""
    if name in layer._buffers:
        layer.get_buffer(name).copy_(value)
    else:
        layer.register_buffer(name, value.clone(memory_format=torch.preserve_format))


class Folded(nn.BatchNorm2d):
    """A norm that is already applied by the convolution before it."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the input, with shape (B, C, H, W)."""
        return x


class Full(nn.Module):
    """A linear layer that computes in float32, also under autocast."""

    def forward(self, x: Tensor) -> Tensor:
        """Return features in float32 for features of shape (B, ...)."""
        with torch.autocast(x.device.type, enabled=False):
            out: Tensor = super().forward(x.float())  # of its former class
        return out


class Affine(Normalize):
    """The normalisation of the first layer as one product and sum: one pass less over images."""

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
        """Return whether a layer is a square strided convolution of a few channels."""
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

    A pixel's channels, and those of its neighbours in a row, move as one block, and within it as
    the longest numbers that fit: short blocks of short numbers take several times as long.
    """
    n, _, h, w = phases.shape
    blocks = phases.permute(0, 2, 3, 1).reshape(n, h, w, s, -1)
    size = blocks.shape[-1] * blocks.element_size()
    wide = next((kind for kind in _LONG if size % kind.itemsize == 0), blocks.dtype)
    moved = blocks.view(wide).transpose(2, 3).contiguous().view(blocks.dtype)
    return moved.view(n, s * h, s * w, -1).permute(0, 3, 1, 2)


def _phases(weight: Tensor, s: int) -> Tensor:
    """Return the weights of the convolutions of the gradient, (s s C, O, T, T)."""
    outputs, inputs, k, _ = weight.shape
    t = -(-k // s)
    padded = F.pad(weight, (0, s * t - k, 0, s * t - k))
    split = padded.view(outputs, inputs, t, s, t, s).flip(2, 4)
    phases = split.permute(3, 5, 1, 0, 2, 4).reshape(s * s * inputs, outputs, t, t)
    return phases.contiguous(memory_format=torch.channels_last)


def quicker(model: nn.Module, layout: str) -> list[Layer]:
    """Change the layers that have a quicker class to it; return those that must be refreshed."""
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
    """Return whether the weights of a layer are parameters of it rather than computed."""
    return "weight" in module._parameters and "parametrizations" not in module._modules


def become(module: nn.Module, kind: type[nn.Module]) -> None:
    """Change a layer's class to ``kind``, a subclass of it or a class to put before it."""
    if not issubclass(kind, type(module)):
        kind = type(kind.__name__, (kind, type(module)), {})
    object.__setattr__(module, "__class__", kind)


@dataclass(frozen=True)
class Fold:
    """A convolution of the copy, and the convolution and norm of the model that it replaces."""

    names: tuple[str, str]
    target: nn.Conv2d
    conv: tuple[Tensor, Tensor | None]
    norm: tuple[Tensor, Tensor, Tensor | None, Tensor | None]
    epsilon: float

    def refresh(self) -> None:
        """Compute the folded weights again."""
        weight, bias = self.conv
        mean, variance, factor, shift = self.norm
        scale = torch.rsqrt(variance + self.epsilon)
        if factor is not None:
            scale = scale * factor
        self.target.weight.copy_(weight * scale.view(-1, 1, 1, 1))
        moved = (-mean if bias is None else bias - mean) * scale
        assert self.target.bias is not None
        self.target.bias.copy_(moved if shift is None else moved + shift)


def fold(search: nn.Module, model: nn.Module, pairs: list[tuple[str, str]]) -> list[Fold]:
    """Fold the norms of ``search``, a copy of ``model`` or the model itself."""
    folds = []
    for names in pairs:
        conv, norm = (model.get_submodule(name) for name in names)
        assert isinstance(conv, nn.Conv2d)
        assert isinstance(norm, nn.BatchNorm2d)
        assert norm.running_mean is not None
        assert norm.running_var is not None
        written = conv.weight, conv.bias
        target = search.get_submodule(names[0])
        assert isinstance(target, nn.Conv2d)
        target.bias = nn.Parameter(norm.running_mean.detach().clone(), requires_grad=False)
        statistics = norm.running_mean, norm.running_var, norm.weight, norm.bias
        fold = Fold(names, target, written, statistics, norm.eps)
        fold.refresh()
        become(search.get_submodule(names[1]), Folded)
        folds.append(fold)
    return folds


def scatter(model: nn.Module) -> None:
    """Give every BatchNorm statistics and weights of its own, so that each has an effect."""
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if not isinstance(module, nn.BatchNorm2d):
            continue
        for tensor, low, high in (
            (module.running_mean, -0.5, 0.5),
            (module.running_var, 0.7, 1.4),
            (module.weight, 0.7, 1.3),
            (module.bias, -0.5, 0.5),
        ):
            if tensor is not None:
                drawn = torch.rand(tensor.shape, generator=generator) * (high - low) + low
                tensor.copy_(drawn)


def pairs(model: nn.Module, run: Callable[[], object]) -> list[tuple[str, str]]:
    """Return the names of convolutions and of the BatchNorms that read just what they wrote.

    Arguments:
        model: The model, in eval mode.
        run: Runs it once.
    """
    wrote: dict[int, tuple[str, Tensor]] = {}
    runs: dict[str, int] = {}
    candidates: list[tuple[str, str]] = []

    def after(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        name = names[module]
        runs[name] = runs.get(name, 0) + 1
        if isinstance(module, nn.Conv2d):
            wrote[id(output)] = name, output  # kept alive: ids are not given twice
        elif id(inputs[0]) in wrote:
            candidates.append((wrote[id(inputs[0])][0], name))

    names = {
        module: name
        for name, module in model.named_modules()
        if _simple(module, nn.Conv2d) or _has_statistics(module)
    }
    watched(run, names, after)
    return [(a, b) for a, b in candidates if runs[a] == runs[b] == 1]


def watched(
    run: Callable[[], object],
    layers: Iterable[nn.Module],
    hook: Callable[[nn.Module, tuple[Tensor, ...], Tensor], None],
) -> None:
    """Run a model once, and call a function after each of some layers."""
    hooks = [layer.register_forward_hook(hook) for layer in layers]
    try:
        run()
    finally:
        for handle in hooks:
            handle.remove()


def _has_statistics(module: nn.Module) -> bool:
    """Return whether a layer is a BatchNorm that can be folded."""
    return _simple(module, nn.BatchNorm2d) and module.running_mean is not None


def _simple(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Return whether a layer has exactly this class, without hooks or parametrisations."""
    watched = module._forward_hooks or module._forward_pre_hooks
    return type(module) is kind and not watched and "parametrizations" not in module._modules
