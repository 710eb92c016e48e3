r"""Copies of a model in which attacks search: how they are made, kept and compared with it.

A copy has an arithmetic and a layout of its own and follows the model's weights. Each BatchNorm
that reads just what a convolution wrote is folded into that convolution
(:mod:`equipoise.execution.layers`). Whether other layers read the convolution's output, too,
cannot be seen, so folding is kept only if, with random statistics, the folded copy returns what
the unfolded one does. The last linear layer stays in float32: attacks depend on small differences
of logits, and it costs next to nothing.
"""

import copy
from contextlib import suppress
from dataclasses import replace
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from equipoise.errors import one_line
from equipoise.execution import layers
from equipoise.execution.compiled import Compiled
from equipoise.execution.outputs import Function, ask, own
from equipoise.execution.passes import (
    Network,
    NoGradient,
    differentiated,
    evaluating,
    frozen,
    outside_inference,
    padded,
    seeded,
)
from equipoise.execution.policy import Execution, Layout
from equipoise.losses import margin

_CLOSE = 1e-4  # how far a folded copy may be from its model, relative to the largest logit
_FEW = 8  # inputs that show how a model runs
_WIDE = 8  # channels of input from which on a convolution is faster with channels last
_MOST = 0.5  # the share of a model's products in such convolutions from which on the model is

# How far logits, without their mean, may be apart, relative to the largest; and how far the
# directions of the gradients of a batch, as one minus their cosine. Short arithmetic rounds to
# 2^-9 in every layer.
_LOGITS = {"float32": 1e-3, "bfloat16": 0.15}
_GRADIENTS = {"float32": 0.02, "bfloat16": 0.3}
_SEPARATE = 0.02  # how far they may be apart in batches of different sizes
_ROUNDING = 1e-5  # of the largest logit, in float32


class Twin:
    """A copy of a model in the form in which it is searched.

    It holds the model's tensors, not the model, so that it may be kept as long as the model lives.

    Arguments:
        model: The model, on its device; it is not changed.
        x: A few inputs.
        execution: The form, resolved.

    Raises:
        Exception: Any error of a model that cannot be copied, or cannot run in this form.
    """

    def __init__(self, model: nn.Module, x: Tensor, execution: Execution) -> None:
        x = _few(x)
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
        self.folds: list[layers.Fold] = []
        with suppress(Exception), torch.no_grad():
            self._fold(model, x)
        if x.ndim == 4:
            self.search.to(memory_format=execution.memory_format)  # type: ignore[call-overload]
        own_tensors, sources = _tensors(self.search), _tensors(model)
        folded = {f"{f.names[0]}.{key}" for f in self.folds for key in ("weight", "bias")}
        self._sources = [(tensor, tensor.device, tensor.dtype) for tensor in sources.values()]
        followed = [name for name in own_tensors if name in sources and name not in folded]
        self._targets = [own_tensors[name] for name in followed]
        self._followed = [sources[name] for name in followed]
        head = _shortened(self.search, x) if execution.precision == "bfloat16" else None
        self._quick_layers = layers.quicker(self.search, execution.layout)
        if head is not None:
            layers.become(head, layers.Full)
        self.refresh()
        quicker = bool(self.folds or self._quick_layers) or execution.layout == "channels_last"
        self.pads, self.usual, self.last = False, 0, 0
        self.freed = any(tensor.is_inference() for tensor in sources.values())
        self.gains = (
            quicker or self.freed or execution.precision == "bfloat16" or execution.compile
        )

    pads: bool
    """Whether sizes of batches are rounded up: :func:`equipoise.execution.passes.padded`."""
    usual: int
    """The size of the first batch, which is not rounded: a training has no other."""
    last: int
    """The size of the batch before: one that comes again is not rounded; 0 begins an attack."""
    gains: bool
    """Whether anything is faster than in the model, or works where it does not."""
    freed: bool
    """Whether the model was made in inference mode, so that only a copy has a gradient."""

    def __call__(self, x: Tensor) -> Tensor:
        """Return logits for inputs of shape (B, ...)."""
        return self.answer(self.search, x)

    def answer(self, search: Network, x: Tensor) -> Tensor:
        """Return the logits of a network that runs in the form of this copy, (B, K)."""

        def network(x: Tensor) -> Tensor:
            return run(search, x, self.precision, self.memory_format)

        return self.batched(network, x)

    def batched(self, network: Network, x: Tensor) -> Tensor:
        """Return the logits of a network for a batch whose size may be rounded up, (B, K)."""
        known, self.last = len(x) in (self.usual, self.last), len(x)
        return network(x) if known or not self.pads else padded(network, x)

    def follows(self, model: nn.Module) -> bool:
        """Return whether a model still has the tensors that were copied, of the same kind.

        A model that is moved or cast keeps its parameters, but changes their content.
        """
        tensors = list(_tensors(model).values())
        return len(tensors) == len(self._sources) and all(
            tensor is source and tensor.device == device and tensor.dtype == dtype
            for tensor, (source, device, dtype) in zip(tensors, self._sources, strict=True)
        )

    @torch.no_grad()
    def refresh(self) -> None:
        """Copy the model's current weights and statistics."""
        if self._targets:  # some models have no tensors
            torch._foreach_copy_(self._targets, self._followed)
        for part in (*self.folds, *self._quick_layers):
            part.refresh()

    def difference(self, model: nn.Module, x: Tensor, *, gradients: bool) -> str:
        """Return in words how the copy's answers differ from the model's; empty if they agree.

        Arguments:
            model: The model, in eval mode.
            x: A few inputs, with shape (B, ...).
            gradients: Whether to compare gradients, too.

        Raises:
            Exception: Any error of either of them, also that there is no gradient.
        """

        def exact(x: Tensor) -> Tensor:
            with torch.autocast(x.device.type, enabled=False):
                return ask(model, x)

        with torch.no_grad():
            logits, expected = (_same_draws(network, x).double() for network in (self, exact))
        if logits.shape != expected.shape or logits.ndim != 2:
            return f"it returns logits of shape {tuple(logits.shape)}, not {tuple(expected.shape)}"
        level = expected.abs().max()
        logits, expected = (z - z.mean(1, keepdim=True) for z in (logits, expected))
        largest = (logits - expected).abs().max()
        allowed = _LOGITS[self.precision] * expected.abs().max() + _ROUNDING * level
        if not bool(largest <= allowed):
            return f"its logits differ by {largest / expected.abs().max():.2g} of the largest"
        if not gradients:
            return ""
        top = expected.argmax(1, keepdim=True)
        wanted, slope = (_slope(network, x, top) for network in (exact, self))
        if not bool(wanted.any()) and not bool(slope.any()):
            return ""
        cosine = torch.nn.functional.cosine_similarity(slope, wanted, dim=0, eps=1e-300)
        if bool(cosine >= 1 - _GRADIENTS[self.precision]):
            return ""
        return f"its gradients have another direction (cosine {float(cosine):.2f})"

    def misleads(self, x: Tensor, y: Tensor, lead: Tensor) -> bool:
        """Return whether the copy's answers differ from the model's at some points.

        Arguments:
            x: The points, with shape (B, ...).
            y: The labels, with shape (B,).
            lead: By how much the label leads for the model, finite, with shape (B,).
        """
        with torch.no_grad():
            logits = self(x).double()
        centred = (logits - logits.mean(1, keepdim=True)).abs().amax()
        allowed = 2 * (_LOGITS[self.precision] * centred + _ROUNDING * logits.abs().amax())
        return not bool(((-margin(logits, y) - lead).abs() <= allowed).all())

    def differs(self, model: nn.Module, x: Tensor) -> bool:
        """Return whether the copy fails, or its answers differ from the model's now.

        A model of this project has nothing but tensors that changes: it is not compared.
        """
        if own(model):
            return False
        try:
            with evaluating(model):
                return bool(self.difference(model, _few(x), gradients=False))
        except Exception:
            return True

    def _fold(self, model: nn.Module, x: Tensor) -> None:
        with evaluating(model):
            pairs = layers.pairs(model, lambda: ask(model, x))
        if not pairs:
            return
        trial, x = copy.deepcopy(self.search).double(), x.double()
        layers.scatter(trial)
        expected = ask(trial, x)
        layers.fold(trial, trial, pairs)
        if bool(((ask(trial, x) - expected).abs() <= _CLOSE * expected.abs().max()).all()):
            self.folds = layers.fold(self.search, model, pairs)


_TWINS: WeakKeyDictionary[nn.Module, dict[Execution, Twin | str]] = WeakKeyDictionary()


def kept_copies(model: nn.Module) -> dict[Execution, Twin | str]:
    """Return the copies of a model that were made before, or why it has none."""
    try:
        return _TWINS.setdefault(model, {})
    except TypeError:  # a module that cannot be a key
        return {}


def copy_of(model: nn.Module, x: Tensor, execution: Execution) -> Twin | str:
    """Return a copy of a model in a form, and keep it; or why there is none that works.

    The reason is empty for a model that no form would make faster.
    """
    if x.dtype != torch.float32 or isinstance(model, Function):
        return ""
    with outside_inference(), frozen(model), evaluating(model):
        usual, x = len(x), _few(x)
        twin: Twin | str = ""
        for layout in _layouts(model, x, execution):
            twin = _tried(model, x, replace(execution, layout=layout).resolved(x.device))
            if isinstance(twin, Twin):
                twin.usual = usual
                break
    kept_copies(model)[execution] = twin
    return twin


def run(
    search: Network,
    x: Tensor,
    precision: str,
    memory_format: torch.memory_format = torch.contiguous_format,
) -> Tensor:
    """Return the logits of a model in search form, with its matrix products in a precision."""
    with torch.autocast(x.device.type, torch.bfloat16, enabled=precision == "bfloat16"):
        return ask(search, x, memory_format)


def _layouts(model: nn.Module, x: Tensor, execution: Execution) -> list[Layout]:
    """Return the layouts in which a form of a model is to be tried, in order."""
    if execution.layout != "auto":
        return [execution.layout]
    if own(model):
        return ["channels_last"]
    with suppress(Exception), torch.no_grad():
        if x.ndim == 4 and _convolves(model, x):
            return ["channels_last", "contiguous"]
    return ["contiguous"]


def _tried(model: nn.Module, x: Tensor, execution: Execution) -> Twin | str:
    """Return a copy that works on some inputs, or why it does not."""
    try:
        twin = Twin(model, x, execution)
        if not twin.gains:
            return ""
        if not own(model):
            exact = copy.deepcopy(model) if twin.freed else model
            why = twin.difference(exact, x, gradients=True)
        else:
            with torch.no_grad():
                why = "" if bool(torch.isfinite(twin(x)).all()) else "its answers are not finite"
        twin.pads = not why and x.device.type == "cpu" and not execution.compile
        twin.pads = twin.pads and (own(model) or _separate(twin, x))
        return why or twin
    except NoGradient:  # every search reports that
        return ""
    except Exception as error:  # any error of the model, or an operation that is not supported
        return one_line(error, 200)


def _separate(network: Network, x: Tensor) -> bool:
    """Return whether the answers to some inputs stay the same with more inputs in the batch."""
    with torch.no_grad():
        alone, among = (network(part).double() for part in (x, torch.cat([x, x[-1:], x[-1:]])))
    return bool(((among[: len(x)] - alone).abs() <= _SEPARATE * alone.abs().amax()).all())


def _few(x: Tensor) -> Tensor:
    """Return a copy of a few inputs, spread over all: the first ones may be of one kind."""
    return x[:: max(1, len(x) // _FEW)][:_FEW].detach().clone()


def _slope(network: Network, x: Tensor, top: Tensor) -> Tensor:
    """Return the gradients of the lead of the classes ``top``, (B, 1), over the mean logit."""

    def lead(logits: Tensor) -> Tensor:
        return logits.gather(1, top)[:, 0] - logits.mean(1)

    with seeded(0, x.device):
        return differentiated(network, x, lead, [False, True])[2].double().flatten()


def _same_draws(network: Network, x: Tensor) -> Tensor:
    with seeded(0, x.device):
        return network(x)


def _copied(model: nn.Module) -> nn.Module:
    """Return a copy that shares no layers or weights, which ``__deepcopy__`` could make it do."""
    copied: nn.Module = copy.deepcopy(model)
    shared = {*map(id, model.modules())} & {*map(id, copied.modules())}
    if shared or _storages(model) & _storages(copied):
        raise RuntimeError("a copy of the model shares layers or weights with it")
    return copied


def _storages(model: nn.Module) -> set[int]:
    tensors = _tensors(model).values()
    return {tensor.untyped_storage().data_ptr() for tensor in tensors if tensor.numel()}


def _convolves(model: nn.Module, x: Tensor) -> bool:
    """Return whether most of a model's products are in convolutions that channels last speed up.

    Those have many input channels and see all of them. The products are counted, since the time
    of a few passes varies and would change the last bits of a search.
    """
    counts = [0, 0]  # the products of all layers, and of such convolutions

    def count(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        weight = layer.weight
        assert isinstance(weight, Tensor)
        products = output.numel() * weight.shape[1:].numel()
        counts[0] += products
        if isinstance(layer, nn.Conv2d) and layer.groups == 1 and layer.in_channels >= _WIDE:
            counts[1] += products

    kinds = nn.Conv2d | nn.Conv1d | nn.Linear
    counted = [module for module in model.modules() if isinstance(module, kinds)]
    layers.watched(lambda: ask(model, x[:1]), counted, count)
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
        weighted = isinstance(module, nn.Conv2d | nn.Linear) and layers.plain(module)
        if weighted and module is not head:
            module.to(torch.bfloat16)
    return head


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}
