"""Models that were not made here: a function to import, and weights in one of the usual forms.

What is understood of a weights file: safetensors, or a file of ``torch.save`` that holds tensors
alone (``weights_only``, nothing is unpickled); the state under ``state_dict``, ``net``, ``model``,
... or by itself, and an average of it first (``state_dict_ema``); names with anything before them
(``model.``, ``net.``, ``1.``), and with what DataParallel and ``torch.compile`` put into them; a
whole model, or the one submodule that holds all of its parameters; and the constants of a
normalisation, like ``mu`` and ``sigma``, which become the model's first layer only where it has
no place for them and does not normalise by itself.
"""

import importlib
import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from types import ModuleType
from typing import Literal

import torch
from torch import Tensor, nn

from equipoise.errors import UserError, one_line
from equipoise.models.checkpoint import Fit, best_fit, few, read_state, unwrapped
from equipoise.models.normalisation import Constants, applied_by, held_in, in_front, pairs

COUNTERS = ("num_batches_tracked", "n_averaged", "steps", "total_ops", "total_params")
LOSSES = ("criterion.", "loss.", "loss_fn.")  # weights of classes, which no model has
Asked = Constants | Literal["none"] | None
"""A normalisation that is asked for, ``"none"`` at all, or None: the file and the model decide."""

MUTE: Callable[[str], None] = lambda line: None  # noqa: E731


def from_here(module: str) -> ModuleType:
    """Import a module that the user names; the current folder is looked in, too."""
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    return importlib.import_module(module)


def import_model(spec: str, load: Callable[[str], ModuleType] = from_here) -> nn.Module:
    """Return the model that ``package.module:function`` returns, or is.

    Arguments:
        spec: A module and in it a function without arguments, a class, or a model.
        load: Imports the module.

    Raises:
        UserError: If it cannot be imported, or gives no model.
    """
    module, colon, name = spec.partition(":")
    if not colon or not module or not name:
        raise UserError(f"expected --model package.module:function, got {spec!r}")
    try:
        made = load(module)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"cannot import {module}: {one_line(error)}") from error
    if not hasattr(made, name):
        known = [key for key, value in vars(made).items() if callable(value) and key[0] != "_"]
        raise UserError(f"{module} has no {name}; it has {', '.join(sorted(known)) or 'nothing'}")
    found = getattr(made, name)
    try:
        model = found if isinstance(found, nn.Module) else found()
    except Exception as error:
        raise UserError(f"{spec} failed: {one_line(error)}; it takes no arguments") from error
    if not isinstance(model, nn.Module):
        raise UserError(f"{spec} returned {type(model).__name__}; expected an nn.Module")
    return model.eval()


def weights_of(source: str | Path) -> tuple[Path, str]:
    """Return the file of ``FILE`` or ``FILE:KEY``, and the key, empty where there is none."""
    text = str(source)
    file, _, key = text.rpartition(":")
    if file and not Path(text).exists() and Path(file).is_file():
        return Path(file), key
    return Path(text), ""


def load_weights(
    model: nn.Module,
    source: str | Path,
    *,
    normalise: Asked = None,
    shape: tuple[int, ...] | None = None,
    say: Callable[[str], None] = MUTE,
) -> nn.Module:
    """Return a model with the weights of a file; all names must fit.

    Arguments:
        model: The model; its parameters are changed.
        source: The file, or ``FILE:KEY`` with the key of the weights in it.
        normalise: Constants to put in front, whatever the file has; ``"none"``: no normalisation
            is put in front; None: that of the file, where the model has none.
        shape: That of an image, (C, H, W); None: not known, and the model is not run to see
            whether it normalises.
        say: Takes the lines that say what was chosen.

    Returns:
        The model in eval mode, behind a normalisation where the file holds one that the model
        lacks.

    Raises:
        UserError: If the file cannot be read safely, or its names or shapes do not fit.
    """
    path, key = weights_of(source)
    state = read_state(path, key, say)
    bare = {name: state[full] for name, full in unwrapped(state).items()}
    asked = "none" if isinstance(normalise, Constants) else normalise
    loading = _Loading(model, path, bare, asked, shape, say)
    first = loading.run()
    if isinstance(normalise, Constants):
        return put_in_front(model, normalise, shape, say).eval()
    return (model if first is None else in_front(model, first)).eval()


def put_in_front(
    model: nn.Module,
    constants: Constants,
    shape: tuple[int, ...] | None = None,
    say: Callable[[str], None] = MUTE,
) -> nn.Module:
    """Return a model behind a normalisation that was asked for, and say so.

    Raises:
        UserError: If the constants do not fit the channels.
    """
    constants.check(_channels(model, shape))
    say(f"the model's first layer is the normalisation by {constants}, as asked for")
    where = held_in(model, constants)
    if shape is not None and applied_by(model, constants, shape):
        say("it applies these constants itself, too: now it normalises twice")
    elif where:
        say(f"it holds these constants already ({where}): if it uses them it normalises twice")
    return in_front(model, constants)


@dataclass
class _Loading:
    """The loading of a state, by names without what wrappers add, into a model."""

    model: nn.Module
    path: Path
    state: dict[str, Tensor]
    normalise: Literal["none"] | None
    shape: tuple[int, ...] | None
    say: Callable[[str], None]

    def __post_init__(self) -> None:
        held = self.model.state_dict()
        self.outside = unwrapped(held)
        self.wanted = {name: held[full] for name, full in self.outside.items()}
        self.learnt = {name for name, _ in self.model.named_parameters(remove_duplicate=False)}

    def run(self) -> Constants | None:
        """Load; return the normalisation that the model lacks."""
        fits = best_fit(self.model, self.state, self.wanted)
        fit = self._one_of(fits)
        given = {name: self.state[inside] for name, inside in fit.names.items()}
        rest = self._rest(fit, fits)
        first, what = self._normalisation(fit, given, rest) or (None, "")
        for name in list(rest):  # what torch converts by itself, like weight_g, or what is refused
            given[fit.place + name.removeprefix(fit.prefix)] = rest[name]
        self._load(fit, given)
        if fit.place:
            self.say(f"the weights of {self.path} are those of {fit.place[:-1]}")
        return first and self._lacking(first, what)

    def _one_of(self, fits: Sequence[Fit]) -> Fit:
        """Return the fit that is meant: they may be copies, or averages next to raw weights."""
        if not fits:
            return Fit("", "", {})
        copies = all(
            one.place == other.place
            and all(self._equal(one.names[name], other.names[name]) for name in one.names)
            for one, other in combinations(fits, 2)
        )
        averages = [fit for fit in fits if fit.averaged]
        if copies:
            return min(fits, key=lambda fit: len(fit.prefix))
        prefixes = [fit.prefix[:-1] or "(no prefix)" for fit in fits]
        if len(averages) == 1:
            raw = [fit.prefix[:-1] for fit in fits if not fit.averaged and fit.prefix]
            other = f"; --weights {self.path}:{raw[0]} takes those" if raw else ""
            self.say(
                f"{self.path}: the average {averages[0].prefix[:-1]} is taken, not the raw "
                f"weights next to it{other}"
            )
            return averages[0]
        raise UserError(
            f"{self.path} holds several weights that fit the model: {', '.join(prefixes)}; "
            f"choose, like --weights {self.path}:{prefixes[-1]}"
        )

    def _equal(self, one: str, other: str) -> bool:
        return torch.equal(self.state[one], self.state[other])

    def _rest(self, fit: Fit, fits: Sequence[Fit]) -> dict[str, Tensor]:
        """Return what of the file has no place in the model and no other explanation."""
        used = {inside for each in fits for inside in each.names.values()}
        rest = {name: value for name, value in self.state.items() if name not in used}
        losses = [name for name in rest if name.startswith(LOSSES)]
        if losses and fit.names:
            self.say(f"{few(losses)} in {self.path} belong to a loss and are left out")
        counters = [name for name in rest if name.rpartition(".")[2] in COUNTERS]
        return {name: rest[name] for name in rest if name not in (*losses, *counters)}

    def _normalisation(
        self, fit: Fit, given: dict[str, Tensor], rest: dict[str, Tensor]
    ) -> tuple[Constants, str] | None:
        """Take the constants of a normalisation out of the rest; return those without a place.

        With them comes what they are called.
        """
        mine = [pair for pair in pairs(rest) if self._at_the_top(pair[0], fit, rest)]
        found = {pair: self._constants(rest[pair[0]], rest[pair[1]]) for pair in mine}
        usable = {pair: constants for pair, constants in found.items() if constants}
        if not usable:
            return None
        (pair, constants), *others = usable.items()
        if any(not constants.equals(other) for _, other in others):
            return None  # which? they stay among the names that do not fit
        for names in usable:
            for name in names:
                rest.pop(name, None)
        what = f"{pair[0]} and {pair[1]} in {self.path}"
        if self.normalise == "none":
            self.say(f"{what} are a normalisation, which is left out as asked for")
            return None
        if self._placed(constants, given, what):
            return None
        return constants, what

    def _lacking(self, constants: Constants, what: str) -> Constants | None:
        """Return constants of the file to put in front of the model, unless it has its own."""
        where = held_in(self.model, constants)
        applied = self.shape is not None and applied_by(self.model, constants, self.shape)
        if where or applied:
            unseen = where and self.shape and not applied
            self.say(
                f"{what} are left out: the model normalises by itself, by "
                f"{where or 'what its forward pass computes'}"
                + ("; that it applies them was not seen: look at the check range" * bool(unseen))
            )
            return None
        self._check(constants, what)
        self.say(
            f"{what} become the model's first layer, the normalisation by {constants}: it has no "
            f"place for them and does not hold them; --normalise none leaves them out"
        )
        return constants

    def _at_the_top(self, name: str, fit: Fit, rest: Mapping[str, Tensor]) -> bool:
        """Tell whether constants stand next to the weights, or in a layer of their own there."""
        place, dot, _ = name.rpartition(".")
        if fit.prefix.startswith(place + dot):
            return True
        alone = sum(other.startswith(place + dot) for other in self.state) == 2
        return alone and place.count(".") <= fit.prefix.count(".")

    @staticmethod
    def _constants(mean: Tensor, std: Tensor) -> Constants | None:
        """Return constants of one value a channel; None of tensors that are something else."""
        flat = all(sum(size != 1 for size in value.shape) <= 1 for value in (mean, std))
        if not flat or mean.numel() != std.numel() or not mean.numel():
            return None
        if not (mean.is_floating_point() and std.is_floating_point()):
            return None
        values = [tuple(value.flatten().double().tolist()) for value in (mean, std)]
        if not all(map(math.isfinite, (*values[0], *values[1]))) or min(values[1]) <= 0:
            return None
        return Constants(*values)

    def _placed(self, constants: Constants, given: dict[str, Tensor], what: str) -> bool:
        """Put constants where the model has a place for them that the file leaves empty."""
        empty = pairs(name for name in self.wanted if name not in given)
        fitting = [
            pair
            for pair in empty
            if all(self.wanted[name].numel() == len(constants.mean) for name in pair)
        ]
        if len(fitting) != 1:
            return False
        for name, values in zip(fitting[0], constants, strict=True):
            there = self.wanted[name]
            given[name] = torch.tensor(values, dtype=torch.float64).view(there.shape)
        self.say(f"{what} are taken for the model's {fitting[0][0]} and {fitting[0][1]}")
        return True

    def _check(self, constants: Constants, what: str) -> None:
        try:
            constants.check(_channels(self.model, self.shape))
        except UserError as error:
            raise UserError(
                f"{what} cannot be the model's first layer: {error}; give --normalise none, or "
                "--mean and --std"
            ) from None

    def _load(self, fit: Fit, given: Mapping[str, Tensor]) -> None:
        odd = [
            name
            for name, value in given.items()
            if name in self.wanted
            and self.wanted[name].is_floating_point()
            and not value.is_floating_point()
        ]
        if odd:
            raise UserError(
                f"{self.path} holds {given[odd[0]].dtype} where the model has floating-point "
                f"numbers ({few(odd)}); save the weights of the model before it was quantised"
            )
        state = {self.outside.get(name, name): value for name, value in given.items()}
        try:
            lacks, strange = self.model.load_state_dict(state, strict=False)
        except RuntimeError as error:
            raise UserError(f"{self.path} does not fit the model: {one_line(error)}") from None
        inside = {full: name for name, full in self.outside.items()}
        missing = [inside[full] for full in lacks if not full.endswith("num_batches_tracked")]
        stays = [name for name in missing if self._may_stay(name, fit)]
        missing = [name for name in missing if name not in stays]
        if missing or strange:
            parts = [f"lacks {few(missing)}"] if missing else []
            parts += [f"has {few(strange)}, which the model has not"] if strange else []
            raise UserError(
                f"{self.path} does not fit the model: it {' and '.join(parts)}"
                f"{self._submodules(fit)}"
            )
        if stays:
            self.say(f"{few(stays)} of the model stay as the function made them")

    def _may_stay(self, name: str, fit: Fit) -> bool:
        """Tell whether a tensor that the file lacks may stay: constants, and what is no weight."""
        last = name.rpartition(".")[2]
        if self.outside[name] in self.learnt or last in ("running_mean", "running_var"):
            return False
        constants = {each for pair in pairs(self.wanted) for each in pair}
        return not name.startswith(fit.place) or name in constants

    def _submodules(self, fit: Fit) -> str:
        """Return in words which submodules the file would fit, where it fits not the model."""

        def shapes(state: Mapping[str, Tensor], prefix: str = "") -> dict[str, torch.Size]:
            weights = {n: value for n, value in state.items() if not n.endswith(COUNTERS)}
            return {n.removeprefix(prefix): value.shape for n, value in weights.items()}

        wanted = shapes(self.state, fit.prefix)
        fitting = [
            place
            for place, module in self.model.named_modules()
            if place and wanted and shapes(module.state_dict()) == wanted
        ]
        if not fitting:
            return ""
        both = f"any of {', '.join(fitting)}" if len(fitting) > 1 else fitting[0]
        return (
            f"; it fits {both}, which would leave the rest as the function made it: load it in "
            "the function"
        )


def _channels(model: nn.Module, shape: tuple[int, ...] | None) -> int | None:
    """Return the channels of the images, or what the first convolution takes; None without one."""
    convolutions = (m for m in model.modules() if isinstance(m, nn.Conv2d))
    return shape[0] if shape else next((m.in_channels for m in convolutions), None)
