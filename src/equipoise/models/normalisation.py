"""Normalisation in models of other projects: its constants, in a file or in the model.

A model counts as normalising by itself if one of its modules holds the constants: as a buffer, a
parameter or an attribute (a tensor, a list, a tuple, or inside an object like torchvision's
``Normalize``). Configurations are ignored: those of timm name the constants that the *caller*
applies. It also counts if it computes the normalised colours from images of one colour each.
"""

import functools
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from numbers import Real
from types import CellType, FunctionType, MethodType, ModuleType
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from equipoise.errors import UserError, nearest
from equipoise.execution.passes import evaluating, seeded
from equipoise.models.core import Normalize
from equipoise.parsing import numbers

NEAR = 0.01  # how far normalised colours may lie apart by the digits of the constants
DEEPEST = 4  # levels of objects in objects that are searched
LONGEST = 256  # longer lists are data, not constants
COLOURS = 4  # images of one colour each; several, so that none matches by chance
SAME = 1e-3  # the largest difference between constants that differ in rounding only

_PREFIXES = ("", "new_", "_", "image_", "pixel_", "data_", "norm_", "normalize_")
PAIRS = (
    ("mu", "sigma"),
    *((f"{prefix}mean", f"{prefix}std") for prefix in _PREFIXES),
    ("means", "stds"),
    ("means", "sds"),
    ("mu", "std"),
    ("mean", "sigma"),
)
"""The usual names of the two constants in files and models."""

_MODULE = frozenset(vars(nn.Module()))
_SETTINGS = ("cfg", "config", "hparams", "args", "meta")  # descriptions, not used to compute
_MEANS = ("mean", "mu", "shift", "loc")
_STDS = ("std", "sigma", "sd", "scale", "var")


class Constants(NamedTuple):
    r"""The constants of :math:`(x - \mu) / \sigma`, one value a channel, for inputs in [0, 1]."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def of(cls, written: Mapping[str, Any]) -> "Constants":
        """Return the constants from plain values, as :meth:`content` returns them."""
        try:
            mean, std = (tuple(map(float, written[name])) for name in cls._fields)
        except (KeyError, TypeError, ValueError):
            raise UserError(f"expected a normalisation of mean and std, got {written}") from None
        return cls(mean, std).check()

    @classmethod
    def of_tensors(cls, mean: Tensor, std: Tensor) -> "Constants | None":
        """Return constants of one value a channel; None of tensors that are something else."""
        means, stds = _numbers(mean), _numbers(std)
        floats = mean.is_floating_point() and std.is_floating_point()
        if not floats or len(means) != len(stds) or not means:
            return None
        usable = all(map(math.isfinite, (*means, *stds))) and min(stds) > 0
        return cls(means, stds) if usable else None

    def __str__(self) -> str:
        mean, std = (", ".join(f"{value:.4g}" for value in part) for part in self)
        return f"mean {mean} and std {std}"

    def content(self) -> dict[str, list[float]]:
        """Return the constants as plain values."""
        return {name: list(values) for name, values in self._asdict().items()}

    def equals(self, other: "Constants") -> bool:
        """Return whether two are the same, apart from rounding."""
        return _same(self.mean, other.mean) and _same(self.std, other.std)

    def check(self, channels: int | None = None) -> "Constants":
        """Return the constants.

        Arguments:
            channels: The number of channels of the images; None: unknown.

        Raises:
            UserError: If the numbers of values do not fit, a std is not positive, or a mean is
                outside [0, 1].
        """
        n = len(self.mean)
        if len(self.std) != n or channels not in (None, n):
            raise UserError(
                f"a normalisation takes a mean and a std for each channel, got {n} and "
                f"{len(self.std)} values" + (f" for {channels} channels" if channels else "")
            )
        if not all(math.isfinite(value) for part in self for value in part):
            raise UserError(f"a normalisation takes finite numbers, got {self}")
        if any(value <= 0 for value in self.std):
            raise UserError(f"std must be positive, got {self}")
        if any(not 0 <= value <= 1 for value in self.mean):
            hint = " (divide mean and std by 255?)" if max(self.mean) > 1 else ""
            raise UserError(f"mean must lie in [0, 1], as images do, got {self}{hint}")
        return self


NAMED = {
    "imagenet": Constants((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "cifar10": Constants((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": Constants((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "svhn": Constants((0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970)),
    "clip": Constants((0.4815, 0.4578, 0.4082), (0.2686, 0.2613, 0.2758)),
    "half": Constants((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "mnist": Constants((0.1307,), (0.3081,)),
    "fashion-mnist": Constants((0.2860,), (0.3530,)),
    "half-grey": Constants((0.5,), (0.5,)),
}
"""Constants with a name; ``half`` scales to [-1, 1]."""


def asked_for(
    normalise: str | None, mean: str | None, std: str | None
) -> Constants | Literal["none"] | None:
    """Return the normalisation of the options ``--normalise``, ``--mean`` and ``--std``, or None.

    Raises:
        UserError: If the options are wrong or contradict each other.
    """
    if normalise is not None:
        if mean is not None or std is not None:
            raise UserError("give --normalise, or --mean and --std, not both")
        if normalise == "none":
            return "none"
        if normalise not in NAMED:
            raise UserError(
                nearest(normalise, [*NAMED, "none"], "normalisation")
                + "; others: --mean 0.5,0.5,0.5 --std 0.25,0.25,0.25"
            )
        return NAMED[normalise]
    if mean is None and std is None:
        return None
    if mean is None or std is None:
        raise UserError("--mean and --std belong together: give both")
    return Constants(tuple(numbers(mean, "--mean")), tuple(numbers(std, "--std"))).check()


def in_front(model: nn.Module, constants: Constants) -> nn.Module:
    """Return the model behind a normalisation, in the model's mode, device and arithmetic."""
    first = Normalize(*constants)
    held = next((p for p in model.parameters() if p.is_floating_point()), None)
    if held is not None:
        first = first.to(held.device)
        if held.dtype.itemsize > first.mean.dtype.itemsize:  # never rounded further
            first = first.to(held.dtype)
    return nn.Sequential(first, model).train(model.training)


def pairs(names: Iterable[str]) -> list[tuple[str, str]]:
    """Return the names that are a mean and its std, in the same place."""
    every = set(names)
    split = [(name, *name.rpartition(".")) for name in sorted(every)]
    return [
        (name, place + dot + std)
        for name, place, dot, last in split
        for mean, std in PAIRS
        if last == mean and place + dot + std in every
    ]


def held_in(model: nn.Module, constants: Constants) -> str:
    """Return where a model holds these constants, or an empty string.

    They may be stored times 255, and the std as its reciprocal.
    """
    for place, module in model.named_modules():
        values = list(_values(module, "", DEEPEST, set()))
        for mean in _names_of(values, constants.mean, _MEANS):
            for std in _names_of(values, constants.std, _STDS, inverse=True):
                if mean != std:
                    dot = "." if place else ""
                    return f"{place}{dot}{mean} and {place}{dot}{std}"
    return ""


def applied_by(model: nn.Module, constants: Constants, shape: tuple[int, ...]) -> bool:
    """Return whether a model computes this normalisation of its inputs; False if it fails.

    It is run once, on images of one colour each, which no resizing or cropping changes, of the
    ``shape`` (C, H, W), and the result of every operation is compared with the normalised colours.
    """
    if len(constants.mean) != shape[0]:
        return False
    held = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
    colours = torch.rand(COLOURS, shape[0], generator=torch.Generator().manual_seed(0))
    x = colours.view(COLOURS, -1, *[1] * (len(shape) - 1)).repeat(1, 1, *shape[1:]).to(held)
    mean, std = (torch.tensor(part, dtype=torch.float64) for part in constants)
    watched = _Watched((colours.double() - mean) / std)
    with suppress(Exception), evaluating(model), seeded(0, held.device), torch.no_grad(), watched:
        model(x)
    return watched.met


class _Watched(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Watches whether an operation returns images of the given colours, of shape (B, C)."""

    def __init__(self, colours: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.colours, self.met = colours, False

    def __torch_dispatch__(
        self, operation: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        out = operation(*args, **(kwargs or {}))
        first = out[0] if isinstance(out, tuple) and out else out  # a BatchNorm returns more
        if not self.met and isinstance(first, Tensor) and first.ndim == 4:
            _, a, b, c = (size // 2 for size in first.shape)
            self.met = any(map(self._equals, (first[:, a, b], first[:, :, b, c])))
        return out

    def _equals(self, colours: Tensor) -> bool:
        wanted = self.colours.to(colours.device)
        return colours.shape == wanted.shape and bool(
            ((colours - wanted).abs() <= NEAR * wanted.abs().clamp_min(1)).all()
        )


def _names_of(
    values: Iterable[tuple[str, tuple[float, ...]]],
    wanted: tuple[float, ...],
    words: tuple[str, ...],
    inverse: bool = False,
) -> list[str]:
    """Return the names of the values that are the wanted ones.

    If all channels have the same value the name must fit, too: 0.5 may be anything.
    """
    plain = len(set(wanted)) == 1
    forms = [wanted, tuple(255 * value for value in wanted)]
    if inverse:
        forms += [tuple(1 / value for value in form) for form in forms]
    names = []
    for name, held in values:
        last = name.rpartition(".")[2].lower()
        if plain and not any(word in last for word in words):
            continue
        full = held * len(wanted) if plain and len(held) == 1 else held
        if any(_same(full, form) for form in forms):
            names.append(name)
    return names


def _same(first: tuple[float, ...], second: tuple[float, ...]) -> bool:
    """Return whether numbers are equal, within :data:`SAME` of the larger of 1 and their size."""
    return len(first) == len(second) and all(
        abs(a - b) <= SAME * max(1.0, abs(b)) for a, b in zip(first, second, strict=True)
    )


def _values(
    holder: Any, name: str, depth: int, seen: set[int]
) -> Iterator[tuple[str, tuple[float, ...]]]:
    """Yield the small groups of numbers in an object, with their names."""
    if id(holder) in seen or depth < 0:
        return
    seen.add(id(holder))
    for key, value in _parts(holder):
        if key.lower().endswith(_SETTINGS) or key.startswith("__"):
            continue
        where = f"{name}.{key}" if name else key
        held = _numbers(value)
        if held:
            yield where, held
        else:
            yield from _values(value, where, depth - 1, seen)


def _parts(holder: Any) -> Iterator[tuple[str, Any]]:
    """Yield the members of an object, by name."""
    if isinstance(holder, Mapping | list | tuple) and len(holder) > LONGEST:
        return
    if isinstance(holder, Mapping):
        yield from ((str(key), value) for key, value in holder.items())
    elif isinstance(holder, list | tuple):
        yield from ((str(number), value) for number, value in enumerate(holder))
    elif isinstance(holder, functools.partial):
        yield from _parts(holder.keywords)
        yield from _parts(holder.args)
    elif isinstance(holder, FunctionType):
        cells = zip(holder.__code__.co_freevars, holder.__closure__ or (), strict=True)
        yield from ((key, cell.cell_contents) for key, cell in cells if cell != CellType())
    elif not isinstance(holder, type | ModuleType | MethodType | Tensor | np.ndarray | str):
        yield from _attributes(holder)


def _attributes(holder: Any) -> Iterator[tuple[str, Any]]:
    """Yield the attributes of an object and of its classes, without a module's submodules."""
    module = isinstance(holder, nn.Module)
    if module:
        yield from holder._buffers.items()
        yield from holder._parameters.items()
    for owner in (holder, *type(holder).__mro__):
        package = getattr(owner, "__module__", "").partition(".")[0]
        if owner is not holder and package in ("torch", "builtins", "abc", "typing"):
            continue
        for key, value in list(getattr(owner, "__dict__", {}).items()):
            if not (module and key in _MODULE) and not isinstance(value, property):
                yield key, value


def _numbers(value: Any) -> tuple[float, ...]:
    """Return the numbers of a value with at most 64 of them; of any other value nothing."""
    if isinstance(value, Tensor | np.ndarray):
        if math.prod(value.shape) not in range(1, 65) or sum(d != 1 for d in value.shape) > 1:
            return ()
        value = value.reshape(-1).tolist()
    if isinstance(value, Real) and not isinstance(value, bool):
        return (float(value),)
    if isinstance(value, list | tuple) and 0 < len(value) <= 64:
        values = [v.item() if isinstance(v, Tensor) and v.numel() == 1 else v for v in value]
        if all(isinstance(v, Real) for v in values):
            return tuple(map(float, values))
    return ()
