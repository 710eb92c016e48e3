"""Files of weights: which of their tensors are meant, and which names of a model they fit."""

import pickle
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from equipoise.errors import UserError, one_line

AVERAGES = (
    "state_dict_ema",
    "model_ema",
    "ema_model",
    "ema_state_dict",
    "model_state_dict_ema",
    "model_ema_state_dict",
    "ema",
    "swa_state_dict",
    "swa_model",
    "averaged_model",
    "EMA",
    "callbacks",  # of Lightning, where one of them keeps an average
)
KEYS = (
    "state_dict",
    "net",
    "model",
    "model_state_dict",
    "module",
    "network",
    "params",
    "weights",
    "shadow",  # what many averages call their weights
)
"""The keys under which files have the weights: averages of them first, as they are meant."""

WRAPPERS = frozenset({"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
"""What DataParallel, ``torch.compile`` and others put into names, at any place."""

DEEPEST = 4  # keys in keys


def read_state(path: Path, key: str, say: Callable[[str], None]) -> dict[str, Tensor]:
    """Return the tensors of a weights file by name.

    Arguments:
        path: safetensors, or a file of ``torch.save`` that holds tensors alone.
        key: The key, or the beginning of the names, of the weights that are meant; empty: the
            usual ones.
        say: Takes a line that says which weights were taken where there are several.

    Raises:
        UserError: If it cannot be read safely, or holds no weights there.
    """
    found = _content(path)
    if key:
        found, begun = _chosen(found, key, path)
        if begun:
            return begun
    found = _usual(found, path, say)
    state = _tensors(found)
    if not state:
        there = [str(name) for name, value in found.items() if isinstance(value, Mapping)]
        hint = f"; name the weights: --weights {path}:{there[0]}" if there else ""
        raise UserError(
            f"{path} holds no tensors under their names; it has "
            f"{few([str(name) for name in found])}{hint}"
        )
    odd = [name for name, value in state.items() if value.is_complex()]
    if odd:
        raise UserError(f"{path} holds complex weights ({few(odd)}); expected real ones")
    return state


def _content(path: Path) -> Mapping[Any, Any]:
    if path.is_dir():
        raise UserError(f"{path} is a folder; name the file of weights in it")
    if not path.is_file():
        raise UserError(f"there is no file {path}")
    if path.suffix == ".json":
        raise UserError(
            f"{path} holds no weights; if it is the index of several files of weights, save "
            "them as one"
        )
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
    except Exception as error:  # what is no pickle can raise nearly anything
        raise UserError(f"cannot read weights from {path}: {one_line(error)}") from None
    if not isinstance(found, Mapping):
        raise UserError(f"{path} holds {type(found).__name__}; expected a state_dict")
    return found


def _tensors(found: Mapping[Any, Any]) -> dict[str, Tensor]:
    return {str(name): value for name, value in found.items() if isinstance(value, Tensor)}


def _holds(value: Any, depth: int = DEEPEST) -> bool:
    """Tell whether something is a state, or holds one under a usual key."""
    if not isinstance(value, Mapping) or depth < 0:
        return False
    inner = (value[key] for key in (*AVERAGES, *KEYS) if key in value)
    return bool(_tensors(value)) or any(_holds(each, depth - 1) for each in inner)


def _usual(found: Mapping[Any, Any], path: Path, say: Callable[[str], None]) -> Mapping[Any, Any]:
    """Return the mapping that holds the weights, below the usual keys."""
    for _ in range(DEEPEST):
        known = [key for key in (*AVERAGES, *KEYS) if _holds(found.get(key))]
        if not known:
            break
        taken, *others = known
        if others:
            what = "the average" if taken in AVERAGES else "of several weights"
            say(
                f"{path}: {what} {taken} is taken, not {' or '.join(others)}; "
                f"--weights {path}:{others[0]} takes that"
            )
        found = found[taken]
    return found


def _chosen(
    found: Mapping[Any, Any], key: str, path: Path
) -> tuple[Mapping[Any, Any], dict[str, Tensor]]:
    """Return the mapping under a key, or the tensors whose names begin with it."""
    places: list[Mapping[Any, Any]] = [found]
    for _ in range(DEEPEST):
        for place in places:
            if isinstance(place.get(key), Mapping):
                return place[key], {}
        for place in places:
            begin = f"{key.rstrip('.')}."
            state = {
                name.removeprefix(begin): value
                for name, value in _tensors(place).items()
                if name.startswith(begin)
            }
            if state:
                return {}, state
        inner = [value for place in places for value in place.values()]
        places = [value for value in inner if isinstance(value, Mapping)]
    keys = [str(name) for name, value in found.items() if isinstance(value, Mapping)]
    there = keys or sorted({str(name).partition(".")[0] for name in found})
    raise UserError(f"{path} has no weights {key!r}; it has {few(there)}")


@dataclass(frozen=True)
class Fit:
    """How names of a file fit those of a model.

    Arguments:
        prefix: What stands before the names in the file.
        place: The submodule they belong to, with a dot at its end; empty: the whole model.
        names: The file's name of each of the model's; both without what wrappers add.
    """

    prefix: str
    place: str
    names: Mapping[str, str]

    @property
    def averaged(self) -> bool:
        """Tell whether the prefix says that these are averages."""
        words = self.prefix.lower().replace(".", "_").split("_")
        return any(word in ("ema", "swa", "averaged", "average", "avg") for word in words)


def unwrapped(names: Iterable[str]) -> dict[str, str]:
    """Return names without what wrappers have put into them, and where each comes from."""
    found: dict[str, str] = {}
    for name in names:
        bare = ".".join(part for part in name.split(".") if part not in WRAPPERS)
        if bare in found:
            return {name: name for name in names}  # then these parts mean something
        found[bare] = name
    return found


def best_fit(
    model: nn.Module, state: Mapping[str, Tensor], wanted: Mapping[str, Tensor]
) -> list[Fit]:
    """Return the ways in which most names and shapes fit; several where it is a tie.

    Arguments:
        model: The model.
        state: The tensors of the file, by name without wrappers.
        wanted: Those of the model, likewise.
    """
    fits: dict[tuple[tuple[str, str], ...], Fit] = {}
    for place in _places(model, wanted):
        inner = {name.removeprefix(place) for name in wanted if name.startswith(place)}
        for prefix in _prefixes(state, inner):
            names = {place + name: prefix + name for name in inner if prefix + name in state}
            fits.setdefault(tuple(sorted(names.items())), Fit(prefix, place, names))

    def score(fit: Fit) -> tuple[int, int]:
        right = [wanted[a].shape == state[b].shape for a, b in fit.names.items()]
        return sum(right), len(right)

    most = max(map(score, fits.values()), default=(0, 0))
    return [fit for fit in fits.values() if score(fit) == most]


def _prefixes(state: Iterable[str], inner: set[str]) -> Counter[str]:
    """Return what stands before names in a file, and how often."""
    found: Counter[str] = Counter()
    for name in state:
        parts = name.split(".")
        for cut in range(len(parts)):
            if ".".join(parts[cut:]) in inner:
                found[".".join(parts[:cut]) + "." if cut else ""] += 1
    return found


def _places(model: nn.Module, wanted: Mapping[str, Tensor]) -> list[str]:
    """Return the whole model and the submodules that hold all of its parameters, as prefixes.

    Weights of any other submodule would leave the rest as the function made it.
    """
    bare = unwrapped(model.state_dict().keys())
    names = {inside: outside for outside, inside in bare.items()}
    learnt = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    learnt |= {name for name in names if name.endswith(("running_mean", "running_var"))}
    kept = [names[name] for name in learnt if name in names]
    places = {""}
    for name in kept[:1]:
        parts = name.split(".")
        heads = [".".join(parts[:cut]) + "." for cut in range(1, len(parts))]
        places |= {head for head in heads if all(other.startswith(head) for other in kept)}
    return sorted(places, key=len)


def few(names: list[str]) -> str:
    """Return a few names in words, and how many more there are."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
