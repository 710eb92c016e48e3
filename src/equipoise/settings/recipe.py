"""Recipes: what to train, as YAML or ``key=value``, validated before a training starts.

A recipe is flat: it has the fields of :class:`Recipe` and the settings of its method in one
mapping. All errors are reported at once, each with its path; for an unknown key the nearest valid
key is named; numbers may be written as fractions, like ``8/255``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import torch
import yaml

from equipoise import attacks, data
from equipoise.attacks.core import refuse
from equipoise.data import DATASETS
from equipoise.data.core import Dataset
from equipoise.data.reading import LARGEST, SMALLEST, OnBadImage, Reading, Resize, is_given, is_own
from equipoise.data.reading import OWN as OWN_DATA
from equipoise.errors import Count, Part, UserError, nearest, out_of_range, short
from equipoise.execution.policy import Execution, Layout, Precision
from equipoise.models import WIDEST
from equipoise.models.foreign import Asked
from equipoise.models.normalisation import Constants, asked_for
from equipoise.models.origin import problem
from equipoise.parsing import MOST, check_seed, mapping, number
from equipoise.plugins import explained
from equipoise.settings import usual
from equipoise.settings.earlier import FORMER, horizon_of, renewed
from equipoise.settings.methods import METHODS, MethodRow, Settings
from equipoise.settings.schema import (
    ROLES,
    TEXT,
    collect,
    lay,
    plain,
    settings_of,
    tag_of,
    validate,
    written_out,
)
from equipoise.settings.split import Split, held_out
from equipoise.store.runs import Run
from equipoise.threat import Norm, Threat
from equipoise.training.augment import changes
from equipoise.training.updates import Balance, Updates

if TYPE_CHECKING:
    from equipoise.terminal.progress import Console

Keep = Literal["balanced", "robust", "clean", "last"]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What to train, on what, and how long.

    Arguments:
        method: A name of ``equipoise list methods``.
        data: A name of ``equipoise list data``, the path of an .npz file, a folder of images
            (``CLASS/*`` or ``train/CLASS/*``, ``val/...``, ``test/...``), or hf-datasets:NAME.
        data_dir: The folder of the data; None looks in the usual places.
        size: For images in files: their height and width in training; see
            :class:`equipoise.data.Reading`, also for the next five.
        resize: How they get this size: ``crop``, ``pad`` or ``stretch``.
        channels: 1 for grey images, 3 for colour; None: 1 if all files are grey.
        on_bad_image: Whether a file that cannot be read is refused (``refuse``) or left out
            (``skip``).
        labels: A CSV file with the columns path, label and perhaps split.
        classes: A file with the names of the classes in the order of the model's outputs.
        model: A name of ``equipoise list models``, or ``package.module:function``, ``timm:NAME``,
            ``hf:NAME`` (also a folder), ``torchvision:NAME``.
        weights: A file of weights to start from, or FILE:KEY; ``random``: new ones; None: those
            of the library, those that the function gives, or new ones.
        normalise: The normalisation in front of the model: the name of its constants, ``mean`` and
            ``std``, or ``none``; None: that of the weights, or for a model by name of the data.
        width: A factor on the model's number of features.
        norm: The norm of the threat.
        eps: Its radius; None: the usual radius of the dataset.
        rounds: The rounds (epochs): passes over the training images, the paper's E.
        batch_size: The images of a step.
        seed: The seed of everything random.
        limit: How many training images to use, in proportion to the classes; None: all.
        subset: Whether ``limit`` takes the same images for every seed (``fixed``), or others for
            each ``seed``, so that seeds also show what the choice of images changes.
        augment: How training images are changed at random: as the ``data`` have it, ``none``,
            ``small`` (crop with a border, mirrored), ``large`` (random resized crop, mirrored,
            colours), or some of crop, resized-crop, flip, jitter, with commas between them.
        validation: How many of them to hold out; of the data's own validation images, where there
            are some, how many to use.
        validation_attack: The attack on them after each round.
        reserve: How many further training images to hold out that choose nothing, not even the
            kept round: the final model is measured on them, with the same attack.
        keep: Which round's model is kept: the one with the best mean of clean and robust
            validation accuracy (``balanced``), the best ``robust`` or ``clean`` one, or the
            ``last``. None: ``clean`` for a method without a robust learner, else ``balanced``;
            where gamma is chosen at the end it is the last round, and the rule is for patience.
        patience: The rounds without a better round by that rule after which the training ends;
            None: it never ends early.
        snapshots: The rounds between two copies of the global model in the run folder, like
            ``round-005.safetensors``; the last round has one, too. None: only the kept and the
            last model.
        on_collapse: What to do when a probe shows catastrophic overfitting to a weak inner
            attack: ``announce`` it, or ``rollback`` to the round before and continue with a
            stronger attack.
        eps_ramp: The part of all steps over which the radius of training attacks grows from 0 to
            eps, for a start from weights that are not robust; 0: not at all. See
            :class:`equipoise.training.updates.Updates`, also for the next five.
        probe: The first rounds in which only the head is trained.
        backbone_lr: A factor on the learning rate of all weights but those of the head.
        accumulate: Into how many parts a batch is cut, to save memory; their gradients are summed.
        clip: The largest length of the gradient; a longer one is scaled to it. None: no limit.
        balance: For classes of unequal size: ``none``; ``loss`` weighs each image by the inverse
            size of its class; ``sampling`` draws images of all classes equally often.
        device: ``auto``, ``cpu`` or ``cuda``.
        precision: The arithmetic of the inner attacks' search; ``auto``: the fastest on the
            device. See :class:`equipoise.execution.Execution`, also for the next three.
        update: The arithmetic of the matrix products of a training step; ``auto``: that of the
            search.
        layout: How images lie in memory.
        compile: Whether the search is compiled.
        settings: The settings of the method.
    """

    method: str
    data: str = "digits"
    data_dir: str | None = None
    size: Annotated[int, f"[{SMALLEST}, {LARGEST}]"] | None = None
    resize: Resize = "crop"
    channels: Literal[1, 3] | None = None
    on_bad_image: OnBadImage = "refuse"
    labels: str | None = None
    classes: str | None = None
    model: str = "small-cnn"
    weights: str | None = None
    normalise: str | Mapping[str, tuple[float, ...]] | None = None
    width: Annotated[float, f"(0, {WIDEST}]"] = 1
    norm: Norm = "linf"
    eps: float | None = None
    rounds: Annotated[int, f"[1, {MOST}]"] = 20
    batch_size: Annotated[int, "[2, inf)"] = 128
    seed: int = 0
    limit: Count | None = None
    subset: Literal["fixed", "seed"] = "fixed"
    augment: str = "data"
    validation: Count = 1000
    validation_attack: str = "pgd-10"
    reserve: Annotated[int, "[0, inf)"] = 0
    keep: Keep | None = None
    patience: Count | None = None
    snapshots: Count | None = None
    on_collapse: Literal["announce", "rollback"] = "announce"
    eps_ramp: Part = 0.0
    probe: Annotated[int, f"[0, {MOST}]"] = 0
    backbone_lr: Annotated[float, "(0, inf)"] = 1.0
    accumulate: Count = 1
    clip: Annotated[float, "(0, inf)"] | None = None
    balance: Balance = "none"
    device: str = "auto"
    precision: Precision = "auto"
    update: Precision = "float32"
    layout: Layout = "auto"
    compile: bool = False
    settings: Settings = field(repr=False)

    def __post_init__(self) -> None:
        problems = out_of_range(self)
        collect(problems, lambda: check_seed(self.seed))
        if self.norm != "linf" and self.eps is None:
            problems.append(f"norm={self.norm} needs a radius: eps (usual radii are for Linf)")
        if self.keep == "last" and self.patience is not None:
            problems.append(
                f"patience={self.patience} has no effect with keep=last; choose keep=balanced, "
                "robust or clean"
            )
        if self.device not in ("auto", "cpu") and not self.device.startswith("cuda"):
            problems.append(f"device must be auto, cpu or cuda, got {self.device!r}")
        if not (self.data in DATASETS or is_own(self.data, DATASETS) or is_given(self.data)):
            problems.append(f"{nearest(self.data, DATASETS, 'dataset')}, or {OWN_DATA}")
        problems += filter(None, [problem(self.model, self.width)])
        collect(problems, lambda: self.asked)
        attack = [self.validation_attack]
        collect(problems, lambda: attacks.check_norms(attacks.parse_list(attack), self.norm))
        collect(problems, lambda: self.threat(0.0))
        collect(problems, lambda: changes(self.augment))
        if self.settings.chooses and self.keep not in (None, "last") and self.patience is None:
            problems.append(
                f"keep={self.keep} has no effect: gamma is chosen between branches of the last "
                "round; choose keep=last, or give gamma"
            )
        learners, fit = self.settings.learners, (self.rounds, self.batch_size)
        collect(problems, lambda: refuse(self.updates.unfit(learners, *fit)))
        refuse(problems or self.settings.unfit(self.norm, self.rounds))

    @property
    def asked(self) -> Asked:
        """Return the normalisation as :func:`equipoise.models.foreign.load_weights` takes it."""
        named = self.normalise
        return Constants.of(named) if isinstance(named, Mapping) else asked_for(named, None, None)

    @property
    def execution(self) -> Execution:
        """Return how models are run."""
        return Execution(**{f.name: getattr(self, f.name) for f in fields(Execution)})

    @property
    def updates(self) -> Updates:
        """Return how learners take their steps."""
        return Updates(**{f.name: getattr(self, f.name) for f in fields(Updates)})

    @property
    def reading(self) -> Reading:
        """Return how images in files are read."""
        return Reading(**{f.name: getattr(self, f.name) for f in fields(Reading)})

    def dataset(
        self, data_dir: str | Path | None = None, console: "Console | None" = None
    ) -> Dataset:
        """Return the data.

        Arguments:
            data_dir: Their folder; None: that of the recipe.
            console: Where progress is shown, and what was found; by default nowhere.
        """
        place = data_dir or self.data_dir
        return data.load(self.data, place, reading=self.reading, console=console)

    def threat(self, eps: float) -> Threat:
        """Return the threat, with ``eps`` where the recipe gives no radius."""
        return Threat(self.norm, eps if self.eps is None else self.eps)

    def split(self, dataset: Dataset, device: torch.device) -> Split:
        """Return the images to train on and those held out, on a device: see :meth:`Split.of`."""
        names = ("limit", "subset_seed", "validation", "reserve", "batch_size")
        return Split.of(dataset, device, **{name: getattr(self, name) for name in names})

    @property
    def subset_seed(self) -> int:
        """Return the seed that chooses the images of ``limit``."""
        return self.seed if self.subset == "seed" and self.limit is not None else 0

    @property
    def steps(self) -> int | None:
        """Return the steps of a round; None where the size of the data is not known in advance."""
        images = DATASETS[self.data].train if self.data in DATASETS else None
        if images is None:
            return None
        images = min(images, self.limit or images)
        held = held_out(self.validation, images) + held_out(self.reserve, images)
        return (images - held) // self.batch_size or 1

    def to_dict(self) -> dict[str, Any]:
        """Return the recipe as it is written: flat, plain values, fully resolved."""
        own = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "settings"}
        written: dict[str, Any] = plain(own | self.settings.to_dict())
        return written

    def to_yaml(self) -> str:
        """Return the recipe as YAML that :func:`read` reads back."""
        return yaml.safe_dump(self.to_dict(), sort_keys=False, default_flow_style=None)


OWN = sorted({f.name for f in fields(Recipe)} - {"settings"})
"""The settings that every method has."""


def read(path: Path) -> dict[str, Any]:
    """Return the mapping in a YAML file.

    Raises:
        UserError: If it does not exist, is not a mapping, or gives a key twice.
    """
    return mapping(path, "recipe")


def stored(run: Run) -> Recipe:
    """Return the recipe of a run folder.

    Raises:
        UserError: If it cannot be read, or needs a file for ``--import`` that was not given.
    """
    with explained(run.made_with()):
        return parse(renewed(read(run.path / "recipe.yaml"), run))


def overrides(items: Sequence[str]) -> dict[str, Any]:
    """Return ``a.b=c`` items as a nested mapping.

    Raises:
        UserError: For an item that is no ``key=value``, has no value, or is given twice.
    """
    result: dict[str, Any] = {}
    for item in items:
        path, equals, value = item.partition("=")
        if not equals or not path:
            raise UserError(f"expected key=value, got {short(item)}")
        if not value.strip():
            raise UserError(f"{item} has no value; write {path}=none for nothing")
        *parents, key = path.strip().split(".")
        place = result
        for depth, parent in enumerate(parents):
            tag = tag_of(parents[: depth + 1])
            if tag is not None and isinstance(place.get(parent), str):
                place[parent] = {tag: place[parent]}  # robust=trades robust.beta=3
            place = place.setdefault(parent, {})
            if not isinstance(place, dict):
                raise UserError(f"{path}: {parent} is given both as a value and as a group")
        if key in place:
            raise UserError(f"{path} is given twice: as {short(place[key])} and as {short(value)}")
        place[key] = value if not parents and key in TEXT else number(value)
    return result


def combine(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """Lay mappings over one another, group by group; the later ones win.

    Short forms are written out first, where the method is known, so that a later ``beta`` wins
    over an earlier ``robust.beta``, and the reverse.
    """
    method = next((layer["method"] for layer in reversed(layers) if "method" in layer), None)
    row = METHODS.get(method) if isinstance(method, str) else None
    result: dict[str, Any] = {}
    for layer in layers:
        result = lay(result, layer if row is None else written_out(layer, row, OWN))
    return result


def parse(given: Mapping[str, Any]) -> Recipe:
    """Return the recipe that a mapping describes.

    Raises:
        UserError: With every error at once.
    """
    method = given.get("method")
    if method is None:
        raise UserError(f"the recipe has no method (known: {', '.join(METHODS)})")
    row = method_named(method)
    common = {key: value for key, value in given.items() if key in OWN}
    special = {key: value for key, value in given.items() if key not in OWN}
    alpha = special.pop("alpha", None)
    roles = tuple(role for role in ROLES if role in row().to_dict())
    trained = usual.from_weights(common)
    special = written_out(special, row, OWN)
    usual.complete(special, roles, trained=trained)
    chosen, problems = settings_of(row, special, OWN)
    recipe = validate(Recipe, common | {"settings": chosen or row()}, problems)
    if "alpha" in given:
        problems.append(_instead_of(alpha, recipe))
    refuse(problems)
    return cast(Recipe, recipe)


def of(recipe: Recipe | str, settings: Mapping[str, Any]) -> Recipe:
    """Return a recipe; of the name of a method the one with these settings.

    Raises:
        UserError: If settings are given with a recipe, or are wrong.
    """
    if isinstance(recipe, str):
        texts = {key: str(value) for key, value in settings.items() if isinstance(value, Path)}
        return parse(combine({"method": recipe}, {**settings, **texts}))
    if settings:
        raise UserError(f"{', '.join(settings)}: settings go with the name of a method")
    return recipe


def _instead_of(alpha: Any, recipe: Recipe | None) -> str:
    """Return what to write instead of ``alpha``, the decay a step."""
    decay, steps = number(alpha), recipe.steps if recipe else None
    remedy = "alpha is given as the averaging horizon in rounds, horizon = 1/((1 - alpha) S) with "
    if steps is None or not isinstance(decay, int | float) or not 0 <= decay < 1:
        return f"{remedy}S steps a round (0: no average)"
    return f"{remedy}S = {steps} steps a round: horizon={horizon_of(decay, steps):.6g}"


def method_named(name: object) -> MethodRow:
    """Return the method of a name.

    Raises:
        UserError: If there is none.
    """
    if name == FORMER:
        raise UserError(f"{FORMER} is a3gt now: write a3gt, and trunk.weight=w for trunk_weight=w")
    if not isinstance(name, str) or name not in METHODS:
        raise UserError(nearest(str(name), METHODS, "method"))
    return METHODS[name]


def defaults(method: str) -> dict[str, Any]:
    """Return the settings of a method with their defaults, those of all methods first."""
    own = {
        f.name: f.default
        for f in fields(Recipe)
        if f.name not in ("method", "settings") and f.default is not MISSING
    }
    settings: dict[str, Any] = plain(METHODS[method]().to_dict())
    return own | settings
