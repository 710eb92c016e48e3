"""The logits of any model, whatever type it returns.

A model may change its input in place, so it gets a copy; it may use ``view``, so the copy is
contiguous. It may return a tensor, an object or a dict with ``logits``, or a tuple that begins
with them.
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
    """A plain function as a module.

    Arguments:
        function: From inputs with shape (B, ...) to logits.
    """

    def __init__(self, function: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Any:
        """Return the result of the function."""
        return self.function(x)


def as_module(model: Any) -> nn.Module:
    """Return a model as a module; a plain function is wrapped in one.

    Raises:
        UserError: If it cannot be called with inputs.
    """
    if isinstance(model, nn.Module):
        return model
    if isinstance(model, type):
        name = model.__name__
        raise UserError(f"expected a model, got the class {name}; make a model: {name}()")
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
    """Return the logits of a model for a copy of the inputs.

    Arguments:
        model: From inputs to logits, or to something that holds them.
        x: The inputs, with shape (B, ...).
        memory_format: The memory layout of the copy.

    Returns:
        Logits with shape (B, K), or any other tensor that the model returned.

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
    """Return in words which output is used as logits; empty if the model returns a tensor.

    Arguments:
        model: The model, in eval mode.
        x: One input, with shape (1, ...).
    """
    out = model(x.clone(memory_format=torch.contiguous_format))
    if not isinstance(out, Tensor):
        return f"the model returns {type(out).__name__}{_logits_in(out)[1]}"
    if out.ndim == 1 and len(x) == 1:
        return "for one input the model returns logits without a batch axis: the axis is added"
    return ""


def own(model: nn.Module) -> bool:
    """Return whether all layers of a model are torch's or this project's, without hooks.

    Such a model does not change its input, returns logits and has no state but its tensors.
    """
    return type(model).__module__.startswith(_HOUSE[1]) and all(
        type(module).__module__.startswith(_HOUSE)
        and not any(getattr(module, hooks) for hooks in _HOOKS)
        and "parametrizations" not in module._modules
        and "forward" not in module.__dict__
        for module in model.modules()
    )


def _logits_in(out: Any) -> tuple[Tensor, str]:
    """Return the tensor in an output, and a description of its place in the output."""
    if isinstance(out, Tensor):
        return out, ""
    if isinstance(out, np.ndarray):
        return torch.from_numpy(out), ": it is used as logits"
    named = out.get("logits") if isinstance(out, Mapping) else getattr(out, "logits", None)
    if named is not None:
        return _logits_in(named)[0], ": its 'logits' are used"
    if isinstance(out, tuple | list) and out:
        words = f" of {len(out)} parts: the first is used as logits"
        return _logits_in(out[0])[0], words
    held = f" with {', '.join(map(str, list(out)[:5]))}" if isinstance(out, Mapping) else ""
    raise UserError(
        f"the model returns {type(out).__name__}{held}; expected a tensor of logits (B, K), an "
        "object or a dict with 'logits', or a tuple that begins with them: wrap the model in a "
        "function that returns its logits"
    )
