"""Where a model comes from, and what builds it again.

A model is given as a name of :data:`equipoise.models.MODELS`, as ``package.module:function``, as
a library's (``timm:NAME``, ``hf:NAME``, ``torchvision:NAME``), or from Python as an object, which
is recorded as ``python:CLASS-DIGEST``. An :class:`Origin` is what a run folder keeps of it.

A folder never makes this process run a function that it names: :func:`give` says for each text
that the user gave what makes the model, and only that is run.
"""

import hashlib
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from equipoise import plugins
from equipoise.errors import UserError, nearest, one_line
from equipoise.execution.outputs import ask
from equipoise.models import MODELS, MOST_CLASSES, head, library
from equipoise.models.core import Normalize
from equipoise.models.foreign import (
    from_here,
    import_model,
)
from equipoise.models.normalisation import Constants

RANDOM = "random"
"""In place of a file of weights: those that the model is made with, drawn from the seed."""

PYTHON = "python:"
FORMS = "package.module:function, timm:NAME, hf:NAME or torchvision:NAME"
Say = Callable[[str], None]

_given: dict[str, Callable[[], nn.Module]] = {}


class Logits(nn.Module):
    """A model of another project, from images in [0, 1] to a tensor of logits.

    Arguments:
        network: The model; it may return an object or a dict with ``logits``.
        normalize: The normalisation in front of it; None: none.
    """

    def __init__(self, network: nn.Module, normalize: nn.Module | None = None) -> None:
        super().__init__()
        self.normalize = normalize
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        """Return logits of shape (B, K) for images of shape (B, C, H, W)."""
        return ask(self.network, x if self.normalize is None else self.normalize(x))


@dataclass(frozen=True, kw_only=True)
class Origin:
    """What a run folder keeps of a model's origin.

    Arguments:
        model: The model as the user gave it.
        classes: The number of its outputs.
        heads: The names of the layers that were replaced to have so many outputs.
        normalise: The normalisation in front; None: none.
        config: What builds a library's model again.
        source: The file of the code of a function, and its SHA-256; None: no code of the user's.
        packages: The versions of the packages that the model comes from.
        weights: The file of the initial weights, the key in it and its SHA-256; None: none.
        remarks: What was said about how model, weights and normalisation were read.
    """

    model: str
    classes: int
    heads: tuple[str, ...] = ()
    normalise: Constants | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    source: Mapping[str, str] | None = None
    packages: Mapping[str, str] = field(default_factory=dict)
    weights: Mapping[str, str] | None = None
    remarks: tuple[str, ...] = ()

    def content(self) -> Mapping[str, Any]:
        """Return it as plain values."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        values["normalise"] = self.normalise and self.normalise.content()
        return values | {key: list(values[key]) for key in ("heads", "remarks")}

    @classmethod
    def of(cls, written: Any) -> "Origin":
        """Return it from plain values.

        Raises:
            UserError: If they describe no model.
        """
        try:
            given = {f.name: written[f.name] for f in fields(cls)}
            given |= {key: tuple(map(str, given[key])) for key in ("heads", "remarks")}
            given["normalise"] = given["normalise"] and Constants.of(given["normalise"])
            origin = cls(**given)
            fits = type(origin.classes) is int and 1 <= origin.classes <= MOST_CLASSES
        except (KeyError, TypeError):
            fits = False
        if not fits or not isinstance(origin.config, Mapping):
            raise UserError("origin does not describe a model")
        return origin

    def build(self) -> nn.Module:
        """Return the model again, with any weights, in eval mode.

        Raises:
            UserError: If it needs code that the user has not given.
        """
        if library.library_of(self.model):
            network = library.again(self.model, self.config)
        elif self.model in _given:
            network = copied(_given[self.model](), self.model)
        else:
            raise UserError(refusal(self.model, self.source))
        if self.heads:
            head.replace(network, self.heads, self.classes)
        return Logits(network, self.normalise and Normalize(*self.normalise)).eval()


def problem(model: str, width: float) -> str:
    """Return what is wrong with a model and its width in a recipe; empty: nothing."""
    if model in MODELS:
        return ""
    if _is_function(model) or library.library_of(model):
        return f"width is for models by name, not for {model}" if width != 1 else ""
    if model.endswith((".pt2", ".pt", ".pth", ".safetensors")):
        return f"{model} is a file: give its weights as weights=FILE, with model={FORMS}"
    return nearest(model, MODELS, "model")


def given(name: str) -> bool:
    """Return whether a name in a recipe is that of an object of Python: a model, or data."""
    return name.startswith(PYTHON)


def absolute(model: str) -> str:
    """Return the same model, with a folder of transformers as an absolute path."""
    name = model.partition(":")[2]
    if library.library_of(model) == "hf" and Path(name).expanduser().is_dir():
        return f"hf:{Path(name).expanduser().resolve()}"
    return model


def absolute_weights(weights: str | None) -> str | None:
    """Return the same weights, FILE or FILE:KEY as an absolute path."""
    none = weights in (None, RANDOM)
    return weights if none else str(Path(str(weights)).expanduser().resolve())


def _is_function(model: str) -> bool:
    module, colon, function = model.partition(":")
    fits = function.replace("-", "_").isidentifier() and module.replace(".", "_").isidentifier()
    return bool(colon) and fits


def is_own(model: str) -> bool:
    """Return whether a model needs code of the user's own: a function, or an object of Python."""
    return model not in MODELS and not library.library_of(model)


def check_given(model: str) -> None:
    """Raise a UserError for a model of the user's own that was not given in this process.

    To be called where a recipe comes from a folder: what it names is not run.
    """
    if is_own(model) and model not in _given:
        raise UserError(refusal(model, None))


def words(model: str) -> tuple[str, ...]:
    """Return the options of a command that needs a recipe's model again."""
    return ("--model", model) if is_own(model) and not given(model) else ()


def give(model: str, make: Callable[[], nn.Module] | None = None) -> None:
    """Allow a model of the user's own in this process.

    Arguments:
        model: The text that folders have.
        make: What makes the model; None: the function that the text names.
    """
    _given[model] = partial(import_model, model) if make is None else make


def name_of(model: nn.Module) -> str:
    """Return the text for an object of Python: its class, and a digest of its layers."""
    kind = type(model)
    digest = hashlib.sha256(f"{kind.__module__}.{kind.__qualname__}\n{model!r}".encode())
    for name, value in model.state_dict().items():
        shape = "" if is_lazy(value) else tuple(getattr(value, "shape", ()))
        digest.update(f"\n{name} {shape}".encode())
    return f"{PYTHON}{kind.__name__}-{digest.hexdigest()[:12]}"


def refusal(model: str, source: Mapping[str, Any] | None) -> str:
    """Return why a model of the user's own is not made because a folder names it."""
    if given(model):
        return (
            f"the folder's model was given from Python ({model.removeprefix(PYTHON)}): give it "
            "again, as model=..., or as --model package.module:function"
        )
    return (
        f"the folder's model is {model} ({plugins.in_words(source)}), and no code is run "
        f"because a folder names it: look at it, then add --trust, or --model {model}"
    )


def allow(origin: Origin, model: nn.Module | str | None, *, trust: bool) -> str:
    """Allow the model of a folder as far as the user gave it; return a warning, or nothing.

    Arguments:
        origin: What the folder keeps.
        model: The model again, or ``package.module:function``; None: not given.
        trust: Whether the code that the folder names may be run.

    Raises:
        UserError: If another model is given, or there is no such code.
    """
    if isinstance(model, nn.Module):
        name = name_of(model)
        if given(origin.model) and name != origin.model:
            raise UserError(f"the model of the folder is {origin.model}, and this is {name}")
        give(origin.model, lambda: model)
        return ""
    if not is_own(origin.model):
        now = library.package_versions(origin.model)
        before = {key: origin.packages.get(key, "unknown") for key in now}
        changed = [f"{key} was {before[key]} and is {now[key]}" for key in now]
        return "" if now == before else f"{'; '.join(changed)}: the model may be another"
    load: Callable[[str], ModuleType] = from_here
    spec = model
    if spec is None:
        file = (origin.source or {}).get("file")
        if not trust or file is None:
            return ""
        load, spec = plugins.trusted_module(Path(str(file))), origin.model
    network = import_model(spec, load)
    give(origin.model, lambda: network)
    return plugins.changed(origin.source, plugins.source(spec.partition(":")[0]))


def made(model: str, instance: nn.Module | None) -> nn.Module:
    """Return a copy of a model of the user's own, in eval mode, on the CPU.

    Arguments:
        model: The text that the user gave.
        instance: The model itself; None: the text makes it, or it was given before.

    Raises:
        UserError: If it cannot be made or copied.
    """
    if instance is not None:
        kept = copied(instance, model).cpu()
        give(model, lambda: kept)
    elif model not in _given:
        if model.startswith(PYTHON):
            raise UserError(f"{model} was given from Python: give it again, as model=")
        give(model)
    return copied(_given[model](), model).cpu().eval()


def copied(model: nn.Module, name: str) -> nn.Module:
    """Return a copy of a model; every learner needs its own.

    Raises:
        UserError: If it cannot be copied, or trained.
    """
    if isinstance(model, torch.jit.ScriptModule):
        raise UserError(f"{name} is TorchScript: train the model that it was made of")
    if any(map(is_lazy, model.parameters())):
        raise UserError(f"{name} has lazy layers: run it once on an image before it is given")
    try:
        return deepcopy(model)
    except Exception as error:
        raise UserError(
            f"{name} cannot be copied, and every learner needs a copy: its weights have to be "
            f"plain parameters (prune.remove, remove_weight_norm): {one_line(error, 120)}"
        ) from None
