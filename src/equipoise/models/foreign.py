"""Models that were not made here: a function to import, and weights in one of the usual forms.

What is understood of a weights file: safetensors, or a file of ``torch.save`` that holds tensors
alone (``weights_only``, nothing is unpickled); the state under ``state_dict``, ``net``, ``model``,
``model_state_dict`` or by itself; names with ``module.`` or ``model.`` before them; and the
constants ``mu`` and ``sigma`` of a normalisation, which become the model's first layer where it
has none.
"""

__all__ = ["import_model", "load_weights"]

import importlib
import os
import pickle
import sys
from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from equipoise.errors import UserError
from equipoise.models.core import Normalize

KEYS = ("state_dict", "net", "model", "model_state_dict")
PREFIXES = ("module.", "model.")
CONSTANTS = (("mu", "sigma"), ("mean", "std"))


def import_model(spec: str) -> nn.Module:
    """Return the model that ``package.module:function`` returns, or is.

    The current folder is looked in, too.

    Arguments:
        spec: A module and in it a function without arguments, a class, or a model.

    Raises:
        UserError: If it cannot be imported, or gives no model.
    """
    module, colon, name = spec.partition(":")
    if not colon or not module or not name:
        raise UserError(f"expected --model package.module:function, got {spec!r}")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        made = importlib.import_module(module)
    except Exception as error:
        raise UserError(f"cannot import {module}: {_said(error)}") from error
    if not hasattr(made, name):
        known = [key for key, value in vars(made).items() if callable(value) and key[0] != "_"]
        raise UserError(f"{module} has no {name}; it has {', '.join(sorted(known)) or 'nothing'}")
    found = getattr(made, name)
    try:
        model = found if isinstance(found, nn.Module) else found()
    except Exception as error:
        raise UserError(f"{spec} failed: {_said(error)}; it takes no arguments") from error
    if not isinstance(model, nn.Module):
        raise UserError(f"{spec} returned {type(model).__name__}; expected an nn.Module")
    return model.eval()


def load_weights(model: nn.Module, path: str | Path) -> nn.Module:
    """Return a model with the weights of a file; all names must fit.

    Arguments:
        model: The model; its parameters are changed.
        path: The file.

    Returns:
        The model, behind a normalisation where the file holds one that the model lacks.

    Raises:
        UserError: If the file cannot be read safely, or its names or shapes do not fit.
    """
    state = _stripped(_state(Path(path)), set(model.state_dict()))
    state, first = _normalisation(state, set(model.state_dict()))
    try:
        lacks, strange = model.load_state_dict(state, strict=False)
    except RuntimeError as error:
        raise UserError(f"{path} does not fit the model: {_said(error)}") from None
    lacks = [name for name in lacks if not name.endswith("num_batches_tracked")]
    if lacks or strange:
        parts = [f"lacks {_few(lacks)}"] if lacks else []
        parts += [f"has {_few(strange)}, which the model has not"] if strange else []
        raise UserError(f"{path} does not fit the model: it {' and '.join(parts)}")
    return (nn.Sequential(first, model) if first else model).eval()


def _state(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a weights file by name."""
    if not path.is_file():
        raise UserError(f"there is no file {path}")
    try:
        if path.suffix == ".safetensors":
            found: Any = load_file(path)
        else:
            found = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise UserError(
            f"{path} is damaged or holds more than tensors, which is not read for safety; save "
            "model.state_dict() alone, or as safetensors"
        ) from None
    except (SafetensorError, RuntimeError, OSError, EOFError, ValueError, BadZipFile) as error:
        raise UserError(f"cannot read {path}: {_said(error)}") from None
    for key in KEYS:
        if isinstance(found, Mapping) and isinstance(found.get(key), Mapping):
            found = found[key]
            break
    if not isinstance(found, Mapping):
        raise UserError(f"{path} holds {type(found).__name__}; expected a state_dict")
    state = {str(name): value for name, value in found.items() if isinstance(value, Tensor)}
    if not state:
        raise UserError(f"{path} holds no tensors under their names; it has {_few(list(found))}")
    return state


def _stripped(state: dict[str, Tensor], wanted: set[str]) -> dict[str, Tensor]:
    """Return the state without what wrappers have put before the names."""
    best, fits = state, len(wanted & set(state))
    for first, second in product(("", *PREFIXES), repeat=2):
        shorter = {
            name.removeprefix(first).removeprefix(second): value for name, value in state.items()
        }
        if len(shorter) == len(state) and len(wanted & set(shorter)) > fits:
            best, fits = shorter, len(wanted & set(shorter))
    return best


def _normalisation(
    state: dict[str, Tensor], wanted: set[str]
) -> tuple[dict[str, Tensor], Normalize | None]:
    """Return the rest of the state, and the normalisation that the model has no place for."""
    for mean, std in CONSTANTS:
        names = [
            next((n for n in state if n.rpartition(".")[2] == part and n not in wanted), "")
            for part in (mean, std)
        ]
        if all(names):
            values = [state[name].flatten().float().tolist() for name in names]
            rest = {name: value for name, value in state.items() if name not in names}
            return rest, Normalize(*values)
    return state, None


def _few(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def _said(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]
