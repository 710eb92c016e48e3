"""Models of other projects: a function to import, and weights in one of the usual forms.

Accepted weights: safetensors, or a file of ``torch.save`` that holds tensors only; under a usual
key (an average of the weights first), or under none; with any prefix before the names
(``model.``, ``1.``) and the parts that DataParallel and ``torch.compile`` add; of the whole model,
or of the one submodule that holds all of its parameters. Constants of a normalisation in the file,
like ``mu`` and ``sigma``, become the model's first layer only if the model has no place for them
and does not normalise by itself.
"""

import importlib
import os
import sys
from collections.abc import Callable, Mapping, Sequence
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
STATISTICS = ("running_mean", "running_var")
Asked = Constants | Literal["none"] | None
"""The wanted normalisation: constants, ``"none"``, or None: the file and the model decide."""

MUTE: Callable[[str], None] = lambda line: None  # noqa: E731


def from_here(module: str) -> ModuleType:
    """Import a module that the user names; the current folder is searched, too."""
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    return importlib.import_module(module)


def import_model(spec: str, load: Callable[[str], ModuleType] = from_here) -> nn.Module:
    """Return the model that ``package.module:function`` returns (or a class, or a model there).

    Raises:
        UserError: If it cannot be imported, or gives no model.
    """
    name, colon, attribute = spec.partition(":")
    if not colon or not name or not attribute:
        raise UserError(f"expected --model package.module:function, got {spec!r}")
    try:
        module = load(name)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"cannot import {name}: {one_line(error)}") from error
    if not hasattr(module, attribute):
        usable = sorted(key for key, value in vars(module).items() if callable(value))
        public = ", ".join(key for key in usable if key[0] != "_") or "nothing"
        raise UserError(f"{name} has no {attribute}; it has {public}")
    model = getattr(module, attribute)
    try:
        model = model if isinstance(model, nn.Module) else model()
    except Exception as error:
        raise UserError(f"{spec} failed: {one_line(error)}; it takes no arguments") from error
    if not isinstance(model, nn.Module):
        raise UserError(f"{spec} returned {type(model).__name__}; expected an nn.Module")
    return model.eval()


def weights_of(source: str | Path) -> tuple[Path, str]:
    """Return the file of ``FILE`` or ``FILE:KEY``, and the key, empty if there is none."""
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
            is put in front; None: that of the file, if the model has none.
        shape: That of an image, (C, H, W); None: unknown, and the model is not run to see whether
            it normalises.
        say: Shows a line about each choice that was made.

    Returns:
        The model in eval mode, behind a normalisation if the file holds one that the model lacks.

    Raises:
        UserError: If the file cannot be read safely, or its names or shapes do not fit.
    """
    path, key = weights_of(source)
    state = read_state(path, key, say)
    bare = {name: state[full] for name, full in unwrapped(state).items()}
    first = _Loading(model, path, bare, shape, say).run(normalise is None)
    if isinstance(normalise, Constants):
        return put_in_front(model, normalise, shape, say).eval()
    return (model if first is None else in_front(model, first)).eval()


def put_in_front(
    model: nn.Module,
    constants: Constants,
    shape: tuple[int, ...] | None = None,
    say: Callable[[str], None] = MUTE,
) -> nn.Module:
    """Return a model behind a normalisation that the user gave, and say so.

    Raises:
        UserError: If the constants do not fit the channels.
    """
    constants.check(_channels(model, shape))
    say(f"the model's first layer is the normalisation by {constants}, as requested")
    where = held_in(model, constants)
    if shape is not None and applied_by(model, constants, shape):
        say("the model also applies these constants itself: now it normalises twice")
    elif where:
        say(
            f"the model already holds these constants ({where}): if it uses them it normalises "
            "twice"
        )
    return in_front(model, constants)


class _Loading:
    """Loads a state, with names without the parts of wrappers, into a model."""

    def __init__(
        self,
        model: nn.Module,
        path: Path,
        state: dict[str, Tensor],
        shape: tuple[int, ...] | None,
        say: Callable[[str], None],
    ) -> None:
        self.model, self.path, self.state, self.shape, self.say = model, path, state, shape, say
        held = model.state_dict()
        self.outside = unwrapped(held)
        self.wanted = {name: held[full] for name, full in self.outside.items()}
        self.learnt = {name for name, _ in model.named_parameters(remove_duplicate=False)}

    def run(self, normalise: bool) -> Constants | None:
        """Load; return the normalisation that the model lacks, if one is wanted."""
        fits = best_fit(self.model, self.state, self.wanted)
        fit = self._chosen(fits)
        given = {name: self.state[inside] for name, inside in fit.names.items()}
        rest = self._rest(fit, fits)
        constants = self._normalisation(fit, rest)
        source = ""
        if constants is not None:
            source = f"{' and '.join(constants[1])} in {self.path}"
            if not normalise:
                self.say(f"{source} are a normalisation, which is left out as requested")
        lacking = constants[0] if constants and normalise else None
        if lacking and self._placed(lacking, given, source):
            lacking = None
        for name in rest:  # either torch converts it, like weight_g, or it is refused
            given[fit.place + name.removeprefix(fit.prefix)] = rest[name]
        self._load(fit, given)
        if fit.place:
            self.say(f"the weights of {self.path} are those of {fit.place[:-1]}")
        return lacking and self._lacking(lacking, source)

    def _chosen(self, fits: Sequence[Fit]) -> Fit:
        """Return the best of equal fits: any of copies, or an average instead of raw weights."""
        if not fits:
            return Fit("", "", {})
        if all(
            a.place == b.place
            and all(torch.equal(self.state[a.names[n]], self.state[b.names[n]]) for n in a.names)
            for a, b in combinations(fits, 2)
        ):
            return min(fits, key=lambda fit: len(fit.prefix))
        averages = [fit for fit in fits if fit.averaged]
        prefixes = [fit.prefix[:-1] or "(no prefix)" for fit in fits]
        if len(averages) != 1:
            raise UserError(
                f"{self.path} holds several weights that fit the model: {', '.join(prefixes)}; "
                f"choose, like --weights {self.path}:{prefixes[-1]}"
            )
        raw = [fit.prefix[:-1] for fit in fits if not fit.averaged and fit.prefix]
        hint = f"; --weights {self.path}:{raw[0]} takes those" if raw else ""
        self.say(
            f"{self.path}: the average {averages[0].prefix[:-1]} is taken, not the raw weights "
            f"next to it{hint}"
        )
        return averages[0]

    def _rest(self, fit: Fit, fits: Sequence[Fit]) -> dict[str, Tensor]:
        """Return the tensors of the file that have no place in the model and are not ignored."""
        used = {inside for each in fits for inside in each.names.values()}
        rest = {name: value for name, value in self.state.items() if name not in used}
        losses = [name for name in rest if name.startswith(LOSSES)]
        if losses and fit.names:
            self.say(f"{few(losses)} in {self.path} belong to a loss and are left out")
        return {
            name: value
            for name, value in rest.items()
            if name not in losses and name.rpartition(".")[2] not in COUNTERS
        }

    def _normalisation(
        self, fit: Fit, rest: dict[str, Tensor]
    ) -> tuple[Constants, tuple[str, str]] | None:
        """Take the constants of a normalisation, with their names, out of ``rest``."""
        usable = {
            pair: constants
            for pair in pairs(rest)
            if self._at_the_top(pair[0], fit)
            and (constants := Constants.of_tensors(*map(rest.__getitem__, pair)))
        }
        if not usable:
            return None
        (pair, constants), *others = usable.items()
        if any(not constants.equals(other) for _, other in others):
            return None  # ambiguous: they stay among the names that do not fit
        for name in {name for names in usable for name in names}:
            del rest[name]
        return constants, pair

    def _lacking(self, constants: Constants, source: str) -> Constants | None:
        """Return constants of the file to put in front of the model, unless it has its own."""
        where = held_in(self.model, constants)
        applied = self.shape is not None and applied_by(self.model, constants, self.shape)
        if where or applied:
            unseen = where and self.shape and not applied
            self.say(
                f"{source} are left out: the model normalises by itself, by "
                f"{where or 'what its forward pass computes'}"
                + ("; whether it applies them is not known: see the check range" * bool(unseen))
            )
            return None
        try:
            constants.check(_channels(self.model, self.shape))
        except UserError as error:
            raise UserError(
                f"{source} cannot be the model's first layer: {error}; give --normalise none, or "
                "--mean and --std"
            ) from None
        self.say(
            f"{source} become the model's first layer, the normalisation by {constants}: the "
            "model has no place for them and does not hold them; --normalise none leaves them out"
        )
        return constants

    def _at_the_top(self, name: str, fit: Fit) -> bool:
        """Return whether constants are next to the weights, or in a layer of their own there."""
        place, dot, _ = name.rpartition(".")
        alone = sum(other.startswith(place + dot) for other in self.state) == 2
        return fit.prefix.startswith(place + dot) or (
            alone and place.count(".") <= fit.prefix.count(".")
        )

    def _placed(self, constants: Constants, given: dict[str, Tensor], source: str) -> bool:
        """Put constants into the model's own place for them, if the file leaves it empty."""
        fitting = [
            pair
            for pair in pairs(name for name in self.wanted if name not in given)
            if all(self.wanted[name].numel() == len(constants.mean) for name in pair)
        ]
        if len(fitting) != 1:
            return False
        for name, values in zip(fitting[0], constants, strict=True):
            given[name] = torch.tensor(values, dtype=torch.float64).view_as(self.wanted[name])
        self.say(f"{source} are taken for the model's {' and '.join(fitting[0])}")
        return True

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
        unchanged = [name for name in missing if self._may_stay(name, fit)]
        missing = [name for name in missing if name not in unchanged]
        if missing or strange:
            parts = [f"lacks {few(missing)}"] if missing else []
            parts += [f"has {few(strange)}, which the model does not have"] if strange else []
            raise UserError(
                f"{self.path} does not fit the model: it {' and '.join(parts)}"
                f"{self._submodules(fit)}"
            )
        if unchanged:
            self.say(f"{few(unchanged)} of the model stay as the function made them")

    def _may_stay(self, name: str, fit: Fit) -> bool:
        """Return whether the file may lack a tensor: a constant, or outside the loaded part."""
        if self.outside[name] in self.learnt or name.rpartition(".")[2] in STATISTICS:
            return False
        return not name.startswith(fit.place) or any(name in pair for pair in pairs(self.wanted))

    def _submodules(self, fit: Fit) -> str:
        """Return the part of a message that names the submodules which the file would fit."""

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
        names = f"any of {', '.join(fitting)}" if len(fitting) > 1 else fitting[0]
        return (
            f"; it fits {names}, which would leave the rest as the function made it: load it in "
            "the function"
        )


def _channels(model: nn.Module, shape: tuple[int, ...] | None) -> int | None:
    """Return the channels of the images, or of the first convolution; None without one."""
    convolutions = (m for m in model.modules() if isinstance(m, nn.Conv2d))
    return shape[0] if shape else next((m.in_channels for m in convolutions), None)
