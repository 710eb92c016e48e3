"""What an attack is, the checks of its settings, and its inputs as tensors.

Attacks leave the model as it was (:func:`equipoise.execution.form.guest`): parameters, their
gradients, the mode of every module, the statistics of BatchNorm and the global random state.
"""

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from equipoise.draws import Draws, KeyedDraws
from equipoise.errors import UserError, short
from equipoise.execution.passes import outside_inference
from equipoise.parsing import MOST
from equipoise.threat import NORMS, ROUNDING, SLIGHT, Norm, Threat

_CACHED = 2**16  # numbers
_PAIRS = "a DataLoader or a Dataset of (input, label)"


class Attack(Protocol):
    """Searches, within a threat, for inputs that a model misclassifies.

    A method ``cost(norm)`` may return a rough number of gradient evaluations an image
    (:func:`cost`), which plans show.
    """

    def __call__(
        self, model: nn.Module, x: Tensor, y: Tensor, threat: Threat, *, draws: Draws | None = None
    ) -> Tensor:
        """Return the strongest ``x_adv`` found for every example, fooled or not.

        Arguments:
            model: From inputs within the threat's range to logits, with shape (B, K).
            x: The clean inputs, with shape (B, ...).
            y: The labels, int64, with shape (B,).
            threat: The ball and the range that ``x_adv`` has to stay in.
            draws: The randomness; by default it is keyed by the examples with seed 0.

        Returns:
            Inputs with the shape and dtype of ``x``, within the threat.
        """
        ...


def cost(attack: Attack, norm: Norm) -> float:
    """Return the result of an attack's method ``cost(norm)``, by default 1.

    It is a rough number of gradient evaluations an image.
    """
    own: Callable[[Norm], float] | None = getattr(attack, "cost", None)
    return 1.0 if own is None else own(norm)


def uncounted(attack: object, *names: str) -> list[str]:
    """Return the errors in settings that are counts, a sentence each; a default may be None."""
    problems = []
    for name in names:
        value = getattr(attack, name)
        if value is None and getattr(type(attack), name, 0) is None:
            continue
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            problems.append(f"{name} must be at least 1 and whole, got {short(value)}")
        elif value > MOST:
            problems.append(f"{name} must be at most {MOST}, got {short(value)}")
    return problems


def wrong_norms(norms: Sequence[str]) -> list[str]:
    """Return the errors in the norms for which an attack is defined."""
    if norms and not set(norms) - set(NORMS):
        return []
    return [f"norms must be some of {', '.join(NORMS)}, got {norms!r}"]


def refuse(problems: Sequence[str]) -> None:
    """Raise a UserError with all problems, if there are any."""
    if problems:
        raise UserError("; ".join(problems))


def check_threat(attack: Any, threat: Threat) -> None:
    """Raise a UserError for a threat whose norm is none of the attack's ``norms``."""
    if threat.norm not in attack.norms:
        raise UserError(f"{attack} is defined for {', '.join(attack.norms)}, not {threat.norm}")


def prepared(
    attack: Any, x: Any, y: Any, threat: Threat, draws: Draws | None = None
) -> tuple[Tensor, Tensor, Draws]:
    """Return inputs, labels and randomness for a call of an attack.

    Raises:
        UserError: If the attack is not defined for the threat, or cannot work with the inputs.
    """
    check_threat(attack, threat)
    x, y = check_inputs(x, y, threat, stacklevel=4)
    return x.detach(), y, KeyedDraws.of(x) if draws is None else draws


def parts(rows: Tensor) -> list[slice]:
    """Return parts of rows, (R, ...), so small that a few tensors of such rows stay in a cache."""
    count = max(1, _CACHED * len(rows) // max(rows.numel(), 1))
    return [slice(first, first + count) for first in range(0, len(rows), count)]


def examples(x: Any, y: Any) -> tuple[Tensor, Tensor]:
    """Return inputs and labels as tensors; a loader or a dataset is read to its end.

    Arguments:
        x: The inputs, or a loader or a dataset of inputs and labels.
        y: The labels; None with a loader or a dataset.

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
        return join([value for value, _ in pairs]), join([label for _, label in pairs])
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
    """Return inputs and labels as checked tensors, with rounding errors beyond the range removed.

    Arguments:
        x: The inputs, as a tensor, an array or a list, with shape (B, ...).
        y: The labels, likewise, int64, with shape (B,).
        threat: The range.
        stacklevel: That of a warning, see :func:`warnings.warn`.

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
    if not x.numel():
        return x, y
    least, most = x.detach().min().item(), x.detach().max().item()
    if not math.isfinite(least) or not math.isfinite(most):  # NaN is the least and the most
        raise UserError("x holds NaN or infinite values; clean the data first")
    low, high = torch.tensor([threat.low, threat.high], dtype=x.dtype).tolist()  # rounded as x is
    out = max(low - least, most - high)
    if out <= 0:
        return x, y
    share, box = out / (threat.high - threat.low), f"[{threat.low:g}, {threat.high:g}]"
    if share <= ROUNDING:
        warnings.warn(
            f"x leaves {box} by {out:.2g}, a rounding error: it was set to the border",
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
    if not isinstance(data, DataLoader) and not hasattr(data, "__len__"):
        raise UserError(f"{type(data).__name__} has no length; give a DataLoader of it")
    for item in data if isinstance(data, DataLoader) else map(data.__getitem__, range(len(data))):
        if not isinstance(item, tuple | list) or len(item) != 2:
            raise UserError(f"expected {_PAIRS}, got items of {_described(item)}")
        yield _tensor(item[0], "an input"), _labels(item[1])


def _tensor(value: Any, what: str) -> Tensor:
    """Return a tensor, an array or a list as a tensor."""
    if isinstance(value, Tensor):
        return value
    if isinstance(value, list | tuple) and value and isinstance(value[0], Tensor):
        value = torch.stack(list(value)) if len({v.shape for v in value}) == 1 else value
    try:
        tensor = torch.as_tensor(
            value if isinstance(value, Tensor) else np.asarray(value, order="C")
        )
    except (TypeError, ValueError, RuntimeError):
        raise UserError(
            f"expected {what} as a tensor or an array of numbers, got {_described(value)}"
        ) from None
    return tensor.to(torch.get_default_dtype()) if tensor.dtype == torch.float64 else tensor


def _labels(value: Any) -> Tensor:
    """Return labels as a tensor; whole numbers that are no tensor become int64."""
    if isinstance(value, Tensor):
        return value
    labels = _tensor(value, "labels y")
    whole = not (labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool)
    return labels.long() if whole else labels


def _described(value: Any) -> str:
    name = type(value).__name__
    return f"{name} of {len(value)} parts" if isinstance(value, tuple | list | dict) else name
