r"""The form of a model in which attacks search: quick, while the judge stays exact.

A point counts as fooled only where the model itself, in float32, says so. The search may
therefore run in any arithmetic: in bfloat16, with channels last, with BatchNorm folded into the
convolution before it. :class:`Fast` holds such a copy beside the model it was made of.

What is folded is found by running the model once: a BatchNorm whose input is the very output of
a convolution that ran once. Whether that output went elsewhere too cannot be seen, so the folded
copy is kept only if it returns what the model returns. The last linear layer stays in float32:
attacks live on small differences of logits, and it costs next to nothing. The gradient of a
strided first layer is taken by :mod:`equipoise.strided`.
"""

__all__ = ["PRECISIONS", "Fast", "Precision", "choose_precision", "fast"]

import copy
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from equipoise.strided import Strided

Precision = Literal["auto", "float32", "bfloat16"]

PRECISIONS: tuple[Precision, ...] = ("auto", "float32", "bfloat16")

_CLOSE = 1e-4  # how far a folded copy may be from its model, relative to the largest logit


class Fast(nn.Module):
    """A model in the form in which it is searched, and the exact model behind it.

    It counts the examples that pass forward and backward through it.

    Arguments:
        model: The exact model.
        search: What is run in its place.
        precision: The arithmetic of the search, ``"float32"`` or ``"bfloat16"``.
        passes: The forward passes of an exact answer: see :class:`equipoise.evaluation.Judge`.
    """

    def __init__(
        self, model: nn.Module, search: nn.Module, precision: str, passes: int = 1
    ) -> None:
        super().__init__()
        self.passes = passes
        self.search = search
        self.precision = precision
        self.forwards = self.backwards = 0
        self._exact = (model,)  # in a tuple: it is no part of this module

    @property
    def exact(self) -> nn.Module:
        """Return the model itself."""
        return self._exact[0]

    def forward(self, x: Tensor) -> Tensor:
        """Return logits for inputs of shape (B, ...), for the search alone."""
        self.forwards += len(x)
        if x.requires_grad:
            x.register_hook(self._count)  # type: ignore[no-untyped-call]
        low = self.precision == "bfloat16"
        with torch.autocast(x.device.type, torch.bfloat16, enabled=low):
            logits: Tensor = self.search(x)
        return logits

    def decide(self, x: Tensor) -> Tensor:
        """Return the exact logits of inputs of shape (B, ...), without a gradient."""
        self.forwards += len(x) * self.passes
        with torch.no_grad(), torch.autocast(x.device.type, enabled=False), _eval(self.exact):
            logits: Tensor = self.exact(x)
            if self.passes > 1:
                more = (self.exact(x).softmax(1) for _ in range(self.passes - 1))
                logits = sum(more, logits.softmax(1)).log()
        return logits

    def spent(self) -> tuple[int, int]:
        """Return the examples that went forward and backward since it was last asked."""
        spent = self.forwards, self.backwards
        self.forwards = self.backwards = 0
        return spent

    def _count(self, grad: Tensor) -> None:
        self.backwards += len(grad)


def fast(model: nn.Module, x: Tensor, precision: Precision = "auto", *, passes: int = 1) -> Fast:
    """Return the search form of a model; the model itself is not changed.

    A model that cannot be copied, or whose copy cannot run in the arithmetic, is searched as it
    is, in float32.

    Arguments:
        model: From inputs of shape (B, ...) to logits, on the device of ``x``.
        x: A few inputs, to see how the model runs.
        precision: ``"float32"``, ``"bfloat16"``, or ``"auto"``: see :func:`choose_precision`.
        passes: The forward passes of an exact answer.
    """
    chosen = choose_precision(x.device) if precision == "auto" else precision
    if x.dtype != torch.float32:
        return Fast(model, model, "float32", passes)
    try:
        search = copy.deepcopy(model).eval()
    except Exception:  # whatever a stranger's model holds
        return Fast(model, model, "float32", passes)
    for parameter in search.parameters():
        parameter.requires_grad_(False)
    with suppress(Exception), torch.no_grad(), _eval(model):
        search = _folded(search, model, x[:8])
    if x.ndim == 4:
        search = search.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if chosen == "bfloat16":
        _shorten(search, x[:8])
    for name, module in list(search.named_modules()):
        if name and Strided.suits(module):
            _replace(search, name, Strided(module))
    form = Fast(model, search, chosen, passes)
    try:
        with torch.no_grad():
            works = bool(torch.isfinite(form(x[:8])).all())
    except Exception:  # an operation without this arithmetic or layout
        works = False
    form.forwards = 0
    return form if works else Fast(model, model, "float32", passes)


def choose_precision(device: torch.device) -> Literal["float32", "bfloat16"]:
    """Return the arithmetic that is quick on a device: bfloat16 where the processor has it."""
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.get_device_capability(device) >= (8, 0) else "float32"
    short = torch.cpu.get_capabilities().get("avx512_bf16", False)
    return "bfloat16" if short else "float32"


@contextmanager
def _eval(model: nn.Module) -> Iterator[None]:
    modes = [(module, module.training) for module in model.modules() if module.training]
    for module, _ in modes:
        module.training = False
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def _folded(search: nn.Module, model: nn.Module, x: Tensor) -> nn.Module:
    """Return a copy with BatchNorm folded into convolutions, or ``search`` where that fails."""
    pairs = _pairs(search, x)
    if not pairs:
        return search
    folded = copy.deepcopy(search)
    for conv, norm in pairs:
        before, after = folded.get_submodule(conv), folded.get_submodule(norm)
        _replace(folded, conv, fuse_conv_bn_eval(before, after))  # type: ignore[type-var,arg-type]
        _replace(folded, norm, nn.Identity())
    expected, got = model(x), folded(x)
    same = bool(((got - expected).abs() <= _CLOSE * expected.abs().max()).all())
    return folded if same else search


def _pairs(model: nn.Module, x: Tensor) -> list[tuple[str, str]]:
    """Return the names of convolutions and of the BatchNorms that read just what they wrote."""
    wrote: dict[int, tuple[str, Tensor]] = {}
    runs: dict[str, int] = {}
    pairs: list[tuple[str, str]] = []
    hooks = []

    def watch(name: str, module: nn.Module) -> None:
        def after(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            runs[name] = runs.get(name, 0) + 1
            if isinstance(module, nn.Conv2d):
                wrote[id(output)] = name, output  # kept alive: ids are not given twice
            elif id(inputs[0]) in wrote:
                pairs.append((wrote[id(inputs[0])][0], name))

        hooks.append(module.register_forward_hook(after))

    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d | nn.BatchNorm2d):
            watch(name, module)
    try:
        model(x)
    finally:
        for hook in hooks:
            hook.remove()
    return [(a, b) for a, b in pairs if runs[a] == runs[b] == 1]


def _shorten(model: nn.Module, x: Tensor) -> None:
    """Keep the weights of convolutions and linear layers in bfloat16, but for the last one."""
    with torch.no_grad():
        try:
            classes = model(x).shape[-1]
        except Exception:
            classes = -1
    heads = [n for n, m in model.named_modules() if _is_linear(m) and m.out_features == classes]
    for name, module in list(model.named_modules()):
        if name in heads[-1:] and name:
            _replace(model, name, _Full(module))
        elif isinstance(module, nn.Conv2d | nn.Linear):
            module.to(torch.bfloat16)


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear)


class _Full(nn.Module):
    """A linear layer that computes in float32 whatever the arithmetic around it."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            out: Tensor = self.inner(x.float())
        return out


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, module)
