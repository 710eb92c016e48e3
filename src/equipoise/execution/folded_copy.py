r"""A copy of a model in another arithmetic and layout, which follows the model's weights.

In the copy every BatchNorm that reads just what a convolution wrote is folded into that
convolution: with the statistics :math:`\mu, \sigma^2` and the weights :math:`g, b` of the norm

.. math:: s = g / \sqrt{\sigma^2 + \epsilon}, \qquad w' = s \, w, \qquad b' = b + s (c - \mu)

for a convolution of weights :math:`w` and bias :math:`c`. Which they are is found by running
the model once. Whether the convolution's output went elsewhere too cannot be seen so; folding is
kept only if, with statistics drawn at random, the folded copy returns what the unfolded one does.
The last linear layer stays in float32: attacks live on small differences of logits, and it costs
next to nothing. Which layers have a quicker way is in :mod:`equipoise.execution.layers`.
"""

import copy
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from equipoise.execution import layers
from equipoise.execution.compiled import Compiled
from equipoise.execution.outputs import ask
from equipoise.execution.passes import Network, evaluating
from equipoise.execution.policy import Execution

_CLOSE = 1e-4  # how far a folded copy may be from its model, relative to the largest logit
_FEW = 8  # inputs that show how a model runs
_WIDE = 8  # channels of input from which on a convolution is quicker with channels last
_MOST = 0.5  # of the products of a model in such convolutions, from which on the model is


class Twin:
    """A model in the form in which it is searched.

    It holds the model's tensors, not the model: to be kept for as long as the model lives.

    Arguments:
        model: The model, on its device; it is not changed.
        x: A few inputs.
        execution: The form, resolved.

    Raises:
        Exception: Whatever a model raises that cannot be copied, or run in this form.
    """

    def __init__(self, model: nn.Module, x: Tensor, execution: Execution) -> None:
        x = few(x)
        self.precision = execution.precision
        self.memory_format = (
            torch.preserve_format
            if execution.layout == "channels_last"
            else torch.contiguous_format
        )
        self.compiled = Compiled(self) if execution.compile else None
        self.search = _copied(model).eval()
        for parameter in self.search.parameters():
            parameter.requires_grad_(False)
        self.folds: list[_Fold] = []
        with suppress(Exception), torch.no_grad():
            self._fold(model, x)
        if x.ndim == 4:
            self.search.to(memory_format=execution.memory_format)  # type: ignore[call-overload]
        own, theirs = _tensors(self.search), _tensors(model)
        folded = {f"{f.names[0]}.{key}" for f in self.folds for key in ("weight", "bias")}
        self._sources = [(tensor, *_kind(tensor)) for tensor in theirs.values()]
        followed = [name for name in own if name in theirs and name not in folded]
        self._targets = [own[name] for name in followed]
        self._followed = [theirs[name] for name in followed]
        head = _shortened(self.search, x) if execution.precision == "bfloat16" else None
        self._made = layers.quicker(self.search, execution.layout)
        if head is not None:
            layers.become(head, layers.Full)
        self.refresh()
        quicker = bool(self.folds or self._made) or execution.layout == "channels_last"
        self.freed = any(tensor.is_inference() for tensor in theirs.values())
        self.gains = (
            quicker or self.freed or execution.precision == "bfloat16" or execution.compile
        )

    gains: bool
    """Whether anything is quicker than in the model, or works where it does not."""
    freed: bool
    """Whether the model was made in inference mode, so that only a copy has a gradient."""

    def __call__(self, x: Tensor) -> Tensor:
        """Return logits for inputs of shape (B, ...)."""
        return run(self.search, x, self.precision, self.memory_format)

    def follows(self, model: nn.Module) -> bool:
        """Tell whether a model's tensors are still those that were copied, and as they were.

        A model that is moved, or cast, keeps its parameters and changes what is in them.
        """
        theirs = list(_tensors(model).values())
        return len(theirs) == len(self._sources) and all(
            here is there and _kind(here) == tuple(kind)
            for here, (there, *kind) in zip(theirs, self._sources, strict=True)
        )

    @torch.no_grad()
    def refresh(self) -> None:
        """Take over the model's present weights and statistics."""
        if self._targets:  # some models have no tensors
            torch._foreach_copy_(self._targets, self._followed)
        for fold in self.folds:
            fold.refresh()
        for layer in self._made:
            layer.refresh()

    def _fold(self, model: nn.Module, x: Tensor) -> None:
        with evaluating(model):
            pairs = _pairs(model, x)
        if not pairs:
            return
        trial, x = copy.deepcopy(self.search).double(), x.double()
        _scatter(trial)
        expected = ask(trial, x)
        _folds(trial, trial, pairs)
        if bool(((ask(trial, x) - expected).abs() <= _CLOSE * expected.abs().max()).all()):
            self.folds = _folds(self.search, model, pairs)


def _copied(model: nn.Module) -> nn.Module:
    """Return a copy that shares no layers or weights, which ``__deepcopy__`` could make it do."""
    copied: nn.Module = copy.deepcopy(model)
    layers = {*map(id, model.modules())} & {*map(id, copied.modules())}
    if layers or _storages(model) & _storages(copied):
        raise RuntimeError("a copy of the model shares layers or weights with it")
    return copied


def _storages(model: nn.Module) -> set[int]:
    held = _tensors(model).values()
    return {tensor.untyped_storage().data_ptr() for tensor in held if tensor.numel()}


def few(x: Tensor) -> Tensor:
    """Return a copy of a few inputs, spread over all: the first ones may be of one kind."""
    return x[:: max(1, len(x) // _FEW)][:_FEW].detach().clone()


def run(
    search: Network,
    x: Tensor,
    precision: str,
    memory_format: torch.memory_format = torch.contiguous_format,
) -> Tensor:
    """Return the logits of a model in search form, with its matrix products in a precision."""
    with torch.autocast(x.device.type, torch.bfloat16, enabled=precision == "bfloat16"):
        return ask(search, x, memory_format)


@dataclass(frozen=True)
class _Fold:
    """A convolution of the copy, and the convolution and norm that it stands for."""

    names: tuple[str, str]
    target: nn.Conv2d
    conv: tuple[Tensor, Tensor | None]
    norm: tuple[Tensor, Tensor, Tensor | None, Tensor | None]
    epsilon: float

    def refresh(self) -> None:
        """Compute the folded weights anew."""
        weight, bias = self.conv
        mean, variance, factor, shift = self.norm
        scale = torch.rsqrt(variance + self.epsilon)
        if factor is not None:
            scale = scale * factor
        self.target.weight.copy_(weight * scale.view(-1, 1, 1, 1))
        moved = (-mean if bias is None else bias - mean) * scale
        assert self.target.bias is not None
        self.target.bias.copy_(moved if shift is None else moved + shift)


def _folds(search: nn.Module, model: nn.Module, pairs: list[tuple[str, str]]) -> list[_Fold]:
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
        fold = _Fold(names, target, written, statistics, norm.eps)
        fold.refresh()
        layers.become(search.get_submodule(names[1]), layers.Folded)
        folds.append(fold)
    return folds


def _scatter(model: nn.Module) -> None:
    """Give every BatchNorm statistics and weights of its own, so that none does nothing."""
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


def _pairs(model: nn.Module, x: Tensor) -> list[tuple[str, str]]:
    """Return the names of convolutions and of the BatchNorms that read just what they wrote."""
    wrote: dict[int, tuple[str, Tensor]] = {}
    runs: dict[str, int] = {}
    pairs: list[tuple[str, str]] = []

    def after(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        name = names[module]
        runs[name] = runs.get(name, 0) + 1
        if isinstance(module, nn.Conv2d):
            wrote[id(output)] = name, output  # kept alive: ids are not given twice
        elif id(inputs[0]) in wrote:
            pairs.append((wrote[id(inputs[0])][0], name))

    names = {
        module: name
        for name, module in model.named_modules()
        if _simple(module, nn.Conv2d) or _has_statistics(module)
    }
    _watched(model, x, names, after)
    return [(a, b) for a, b in pairs if runs[a] == runs[b] == 1]


def _watched(
    model: nn.Module,
    x: Tensor,
    layers: Iterable[nn.Module],
    hook: Callable[[nn.Module, tuple[Tensor, ...], Tensor], None],
) -> None:
    """Run a model once, and call a function after each of some layers."""
    hooks = [layer.register_forward_hook(hook) for layer in layers]
    try:
        ask(model, x)
    finally:
        for handle in hooks:
            handle.remove()


def _has_statistics(module: nn.Module) -> bool:
    """Tell whether a layer is a BatchNorm that can be folded."""
    return _simple(module, nn.BatchNorm2d) and module.running_mean is not None


def _simple(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Tell whether a layer is of just that kind, without hooks or parametrisations."""
    watched = module._forward_hooks or module._forward_pre_hooks
    return type(module) is kind and not watched and "parametrizations" not in module._modules


def convolves(model: nn.Module, x: Tensor) -> bool:
    """Tell whether most of a model's products are in convolutions that channels last speed up.

    Those are the ones of many channels whose kernels see all of them. What is counted is the same
    whenever it is; the time of a few passes is not, and would change the last bits of a search.

    Arguments:
        model: The model, in eval mode.
        x: A few inputs, with shape (B, ...).
    """
    counts = [0, 0]  # the products of all layers, and of such convolutions

    def count(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        weight = layer.weight
        assert isinstance(weight, Tensor)
        of_each = weight.shape[1:].numel()
        counts[0] += output.numel() * of_each
        if isinstance(layer, nn.Conv2d) and layer.groups == 1 and layer.in_channels >= _WIDE:
            counts[1] += output.numel() * of_each

    kinds = nn.Conv2d | nn.Conv1d | nn.Linear
    _watched(model, x[:1], [m for m in model.modules() if isinstance(m, kinds)], count)
    return counts[1] > _MOST * counts[0]


def _shortened(model: nn.Module, x: Tensor) -> nn.Module | None:
    """Put the weights of all layers but the last linear one in bfloat16; return that one."""
    head, classes = None, -1
    with torch.no_grad(), suppress(Exception):
        classes = ask(model, x).shape[-1]
    for name, module in model.named_modules():
        if name and isinstance(module, nn.Linear) and module.out_features == classes:
            head = module
    for module in list(model.modules()):
        learnt = isinstance(module, nn.Conv2d | nn.Linear) and layers.plain(module)
        if learnt and module is not head:
            module.to(torch.bfloat16)
    return head


def _kind(tensor: Tensor) -> tuple[torch.device, torch.dtype]:
    return tensor.device, tensor.dtype


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}
