"""Inputs and labels as tensors, from arrays, lists, a data set or a loader."""

import warnings
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from equipoise.errors import UserError
from equipoise.execution.passes import outside_inference
from equipoise.threat import ROUNDING, SLIGHT, Threat

_PAIRS = "a DataLoader or a Dataset of (input, label)"


def examples(x: Any, y: Any) -> tuple[Tensor, Tensor]:
    """Return inputs and labels as tensors; a loader or a data set is read to its end.

    Arguments:
        x: The inputs, or a loader or a data set of inputs and labels.
        y: The labels; None with a loader or a data set.

    Raises:
        UserError: If they cannot be read as inputs and labels.
    """
    loaded = isinstance(x, DataLoader | Dataset)
    if loaded and y is not None:
        raise UserError(f"expected no y with {type(x).__name__}, which has the labels")
    if not loaded and y is None:
        raise UserError(f"expected labels y, or {_PAIRS} in the place of x and y")
    if not loaded:
        return tensors(x, y)
    pairs = list(_pairs(x))
    if not pairs:
        raise UserError(f"{type(x).__name__} holds no examples")
    join = torch.cat if isinstance(x, DataLoader) else torch.stack
    try:
        return join([one for one, _ in pairs]), join([label for _, label in pairs])
    except RuntimeError as error:
        raise UserError(f"the inputs of {type(x).__name__} differ in shape ({error})") from None


def tensors(x: Any, y: Any) -> tuple[Tensor, Tensor]:
    """Return inputs and labels as tensors that can take part in a gradient.

    Arguments:
        x: Inputs as a tensor, an array or a list, with shape (N, ...). Arrays of float64, which
            is NumPy's default, become what torch has by default.
        y: Labels as a tensor, an array or a list, with shape (N,).

    Raises:
        UserError: If they cannot be read so.
    """
    if isinstance(x, DataLoader | Dataset):
        raise UserError(
            f"an attack takes tensors x and y, got {type(x).__name__}; loop over its batches, or "
            "give it to eq.evaluate"
        )
    x, y = _tensor(x, "x"), _labels(y)
    with outside_inference():
        return (x.clone() if x.is_inference() else x), (y.clone() if y.is_inference() else y)


def check_inputs(x: Any, y: Any, threat: Threat, *, stacklevel: int = 3) -> tuple[Tensor, Tensor]:
    """Return inputs and labels as tensors; what leaves the range by rounding is at its border.

    Arguments:
        x: The inputs, as a tensor, an array or a list, with shape (B, ...).
        y: The labels, likewise, int64, with shape (B,).
        threat: The range.
        stacklevel: Whose line a warning names, as for :func:`warnings.warn`.

    Raises:
        UserError: For inputs or labels that no attack can work with.
    """
    x, y = tensors(x, y)
    if not x.is_floating_point():
        raise UserError(f"expected x as floats within the range, got {x.dtype}; divide by 255?")
    if y.ndim != 1 or y.dtype != torch.int64:
        got = f"{y.dtype} of shape {tuple(y.shape)}"
        remedy = "one-hot labels need y.argmax(1), others y.long()"
        raise UserError(f"expected labels as int64 of shape ({len(x)},), got {got}; {remedy}")
    if len(x) != len(y):
        raise UserError(f"expected a label for each input, got {len(x)} inputs, {len(y)} labels")
    if not bool(torch.isfinite(x).all()):
        raise UserError("x holds NaN or infinite values; clean the data first")
    if not x.numel():
        return x, y
    least, most = x.detach().min().item(), x.detach().max().item()
    low, high = torch.tensor([threat.low, threat.high], dtype=x.dtype).tolist()  # rounded as x is
    out = max(low - least, most - high)
    if out <= 0:
        return x, y
    share, box = out / (threat.high - threat.low), f"[{threat.low:g}, {threat.high:g}]"
    if share <= ROUNDING:
        warnings.warn(
            f"x leaves {box} by {out:.2g}, as rounding does: it was set to the border",
            stacklevel=stacklevel,
        )
        return x.clamp(threat.low, threat.high), y
    remedy = f"x.clamp({threat.low:g}, {threat.high:g}) brings it back"
    if share > SLIGHT:
        remedy = "undo the normalisation of the inputs and make it the model's first layer"
    raise UserError(
        f"expected x within {box}, got [{least:.4g}, {most:.4g}], out by {out:.2g}; {remedy}"
    )


def _pairs(data: "DataLoader[Any] | Dataset[Any]") -> Iterator[tuple[Tensor, Tensor]]:
    items = data if isinstance(data, DataLoader) else _items(data)
    for item in items:
        if not isinstance(item, tuple | list) or len(item) != 2:
            raise UserError(f"expected {_PAIRS}, got items of {_described(item)}")
        yield _tensor(item[0], "an input"), _labels(item[1])


def _items(data: "Dataset[Any]") -> Iterable[Any]:
    if not hasattr(data, "__len__"):
        raise UserError(f"{type(data).__name__} has no length; give a DataLoader of it")
    return (data[i] for i in range(len(data)))


def _tensor(value: Any, what: str) -> Tensor:
    """Return a tensor, an array or a list as a tensor."""
    if isinstance(value, Tensor):
        return value
    if isinstance(value, list | tuple) and value and isinstance(value[0], Tensor):
        value = torch.stack(list(value)) if len({v.shape for v in value}) == 1 else value
    try:
        found = torch.as_tensor(
            value if isinstance(value, Tensor) else np.asarray(value, order="C")
        )
    except (TypeError, ValueError, RuntimeError):
        raise UserError(
            f"expected {what} as a tensor or an array of numbers, got {_described(value)}"
        ) from None
    return found.to(torch.get_default_dtype()) if found.dtype == torch.float64 else found


def _labels(value: Any) -> Tensor:
    """Return labels as a tensor; whole numbers that are no tensor become int64."""
    if isinstance(value, Tensor):
        return value
    found = _tensor(value, "labels y")
    whole = not (found.is_floating_point() or found.is_complex() or found.dtype == torch.bool)
    return found.long() if whole else found


def _described(value: Any) -> str:
    name = type(value).__name__
    return f"{name} of {len(value)} parts" if isinstance(value, tuple | list | dict) else name
