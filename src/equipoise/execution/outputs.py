"""The logits of any model: whatever it returns, and whatever it does to its input.

A model may work in place, so it is given a copy; it may use ``view``, so the copy is contiguous.
It may return a tensor, an object or a dict with ``logits``, or a tuple that begins with them.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from equipoise.errors import UserError

_HOUSE = ("torch.nn.", "equipoise.models.")
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


class Function(nn.Module):
    """A plain function in the place of a model.

    Arguments:
        function: From inputs with shape (B, ...) to logits.
    """

    def __init__(self, function: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Any:
        """Return what the function returns."""
        return self.function(x)


def as_module(model: Any) -> nn.Module:
    """Return a model as a module, which a plain function becomes.

    Raises:
        UserError: If it cannot be called with inputs.
    """
    if isinstance(model, nn.Module):
        return model
    if isinstance(model, type):
        name = model.__name__
        raise UserError(f"expected a model, got the class {name}; make one of it: {name}()")
    if not callable(model):
        raise UserError(
            f"expected a model or a function from inputs to logits, got {type(model).__name__}"
        )
    return Function(model)


def ask(
    model: Callable[[Tensor], Any],
    x: Tensor,
    memory_format: torch.memory_format = torch.contiguous_format,
) -> Tensor:
    """Return the logits of a model, which is given a copy of the inputs.

    Arguments:
        model: From inputs to logits, or to something that holds them.
        x: The inputs, with shape (B, ...).
        memory_format: How the copy lies in memory.

    Returns:
        Logits with shape (B, K), or what else the model returned as a tensor.

    Raises:
        UserError: If the output holds no tensor of floating point.
    """
    out, _ = _logits_in(model(x.clone(memory_format=memory_format)))
    if out.is_quantized:
        out = out.dequantize()
    if not out.is_floating_point():
        raise UserError(
            f"the model returns {str(out.dtype).removeprefix('torch.')} of shape "
            f"{tuple(out.shape)}; expected logits in floating point: return them as they are "
            "before argmax or rounding"
        )
    return out[None] if out.ndim == 1 and len(x) == 1 else out


def said(model: nn.Module, x: Tensor) -> str:
    """Return in words what is taken for the logits of a model; empty where it returns a tensor.

    Arguments:
        model: The model, in eval mode.
        x: One input, with shape (1, ...).
    """
    out = model(x.clone(memory_format=torch.contiguous_format))
    if not isinstance(out, Tensor):
        return f"the model returns {type(out).__name__}{_logits_in(out)[1]}"
    if out.ndim == 1 and len(x) == 1:
        return "for one input the model returns logits without a batch axis: it is put back"
    return ""


def own(model: nn.Module) -> bool:
    """Tell whether a model is one of this project's own, layer by layer and without hooks.

    Such a model leaves its input alone, returns logits and has no switch.
    """
    return type(model).__module__.startswith(_HOUSE[1]) and all(
        type(module).__module__.startswith(_HOUSE)
        and not any(getattr(module, hooks) for hooks in _HOOKS)
        and "parametrizations" not in module._modules
        and "forward" not in module.__dict__
        for module in model.modules()
    )


def _logits_in(out: Any) -> tuple[Tensor, str]:
    """Return the tensor in an output, and in words which part of the output it is."""
    if isinstance(out, Tensor):
        return out, ""
    if isinstance(out, np.ndarray):
        return torch.from_numpy(out), ": it is taken for the logits"
    named = out.get("logits") if isinstance(out, Mapping) else getattr(out, "logits", None)
    if named is not None:
        return _logits_in(named)[0], ": its 'logits' are taken"
    if isinstance(out, tuple | list) and out:
        words = f" of {len(out)} parts: the first is taken for the logits"
        return _logits_in(out[0])[0], words
    held = f" with {', '.join(map(str, list(out)[:5]))}" if isinstance(out, Mapping) else ""
    raise UserError(
        f"the model returns {type(out).__name__}{held}; expected a tensor of logits (B, K), an "
        "object or a dict with 'logits', or a tuple that begins with them: wrap the model in a "
        "function that returns its logits"
    )
