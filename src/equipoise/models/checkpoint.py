"""Files of weights: the tensors to load, and the names of a model that they fit."""

import pickle
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
    "shadow",  # usual for the weights of an average
)
"""The usual keys of the weights in files; averages (above) are tried first."""

WRAPPERS = frozenset({"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
"""Parts that DataParallel, ``torch.compile`` and others add to names, at any place."""

DEEPEST = 4  # keys in keys


def read_state(path: Path, key: str, say: Callable[[str], None]) -> dict[str, Tensor]:
    """Return the tensors of a weights file by name.

    Arguments:
        path: safetensors, or a file of ``torch.save`` that holds tensors only.
        key: The key, or the beginning of the names, of the wanted weights; empty: the usual ones.
        say: Shows a line if one of several weights was chosen.

    Raises:
        UserError: If the file cannot be read safely, or holds no such weights.
    """
    content = _content(path)
    if key:
        content = _chosen(content, key, path)
    for _ in range(DEEPEST):
        usual = [name for name in (*AVERAGES, *KEYS) if _holds(content.get(name))]
        if not usual:
            break
        if usual[1:]:
            what = "the average" if usual[0] in AVERAGES else "of several weights"
            say(
                f"{path}: {what} {usual[0]} is taken, not {' or '.join(usual[1:])}; "
                f"--weights {path}:{usual[1]} takes that"
            )
        content = content[usual[0]]
    state = _tensors(content)
    if not state:
        inner = [str(name) for name, value in content.items() if isinstance(value, Mapping)]
        hint = f"; name the weights: --weights {path}:{inner[0]}" if inner else ""
        raise UserError(
            f"{path} holds no tensors under their names; it has {few(map(str, content))}{hint}"
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
            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise UserError(
            f"{path} is damaged or holds more than tensors, which is not read for safety; save "
            "model.state_dict() alone, or as safetensors"
        ) from None
    except Exception as error:  # a file that is no pickle can raise nearly anything
        raise UserError(f"cannot read weights from {path}: {one_line(error)}") from None
    if not isinstance(content, Mapping):
        raise UserError(f"{path} holds {type(content).__name__}; expected a state_dict")
    return content


def _tensors(content: Mapping[Any, Any]) -> dict[str, Tensor]:
    return {str(name): value for name, value in content.items() if isinstance(value, Tensor)}


def _holds(value: Any, depth: int = DEEPEST) -> bool:
    """Return whether a value is a state, or holds one under a usual key."""
    if not isinstance(value, Mapping) or depth < 0:
        return False
    inner = (value[key] for key in (*AVERAGES, *KEYS) if key in value)
    return bool(_tensors(value)) or any(_holds(each, depth - 1) for each in inner)


def _chosen(content: Mapping[Any, Any], key: str, path: Path) -> Mapping[Any, Any]:
    """Return the mapping under a key, or the tensors whose names begin with it."""
    places: list[Mapping[Any, Any]] = [content]
    start = f"{key.rstrip('.')}."
    for _ in range(DEEPEST):
        for place in places:
            if isinstance(place.get(key), Mapping):
                return place[key]  # type: ignore[no-any-return]
        for place in places:
            named = {n: t for n, t in _tensors(place).items() if n.startswith(start)}
            if named:
                return {name.removeprefix(start): value for name, value in named.items()}
        inner = [value for place in places for value in place.values()]
        places = [value for value in inner if isinstance(value, Mapping)]
    keys = [str(name) for name, value in content.items() if isinstance(value, Mapping)]
    keys = keys or sorted({str(name).partition(".")[0] for name in content})
    raise UserError(f"{path} has no weights {key!r}; it has {few(keys)}")


@dataclass(frozen=True)
class Fit:
    """A match of names of a file with names of a model.

    Arguments:
        prefix: The text before the names in the file.
        place: The submodule that they belong to, with a dot at its end; empty: the whole model.
        names: From names of the model to names of the file, without the parts of wrappers.
    """

    prefix: str
    place: str
    names: Mapping[str, str]

    @property
    def averaged(self) -> bool:
        """Whether the prefix names averages."""
        words = self.prefix.lower().replace(".", "_").split("_")
        return any(word in ("ema", "swa", "averaged", "average", "avg") for word in words)


def unwrapped(names: Iterable[str]) -> dict[str, str]:
    """Return each name without the parts of wrappers, and from it to the full name."""
    full = list(names)
    bare = [".".join(part for part in name.split(".") if part not in WRAPPERS) for name in full]
    if len(set(bare)) < len(full):
        bare = full  # these parts are not from wrappers
    return dict(zip(bare, full, strict=True))


def best_fit(
    model: nn.Module, state: Mapping[str, Tensor], wanted: Mapping[str, Tensor]
) -> list[Fit]:
    """Return the fits of a state with most equal names and shapes; several if it is a tie.

    ``wanted`` are the tensors of the model; all names are without the parts of wrappers.
    """
    fits: dict[tuple[tuple[str, str], ...], Fit] = {}
    for place in _places(model):
        inner = {name.removeprefix(place) for name in wanted if name.startswith(place)}
        for prefix in _prefixes(state, inner):
            names = {place + name: prefix + name for name in inner if prefix + name in state}
            fits.setdefault(tuple(sorted(names.items())), Fit(prefix, place, names))

    def score(fit: Fit) -> tuple[int, int]:
        right = [wanted[a].shape == state[b].shape for a, b in fit.names.items()]
        return sum(right), len(right)

    most = max(map(score, fits.values()), default=(0, 0))
    return [fit for fit in fits.values() if score(fit) == most]


def _prefixes(state: Iterable[str], inner: set[str]) -> Iterable[str]:
    """Return the texts before names of ``inner`` in a file, in its order."""
    parts = [name.split(".") for name in state]
    cuts = [(names[:cut], ".".join(names[cut:])) for names in parts for cut in range(len(names))]
    return dict.fromkeys(
        "".join(f"{part}." for part in head) for head, tail in cuts if tail in inner
    )


def _places(model: nn.Module) -> list[str]:
    """Return the prefixes of the submodules that hold all learnt parameters; empty: the model."""
    learnt = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    kept = [
        bare
        for bare, full in unwrapped(model.state_dict()).items()
        if full in learnt or full.endswith(("running_mean", "running_var"))
    ]
    parts = kept[0].split(".")[:-1] if kept else []
    heads = ["".join(f"{part}." for part in parts[:cut]) for cut in range(len(parts) + 1)]
    return [head for head in heads if all(name.startswith(head) for name in kept)]


def few(every: Iterable[str]) -> str:
    """Return the first three names, and the number of the others."""
    names = list(every)
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
