"""What is to be benched, from what was asked for."""

__all__ = ["WHATS", "Bench", "Options", "plan"]

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks import attack, evaluate, train
from benchmarks.case import MODELS, Case, default_of
from benchmarks.evaluate import Judging
from benchmarks.stranger import STRANGER
from equipoise.errors import UserError, nearest

WHATS = ("attack", "train", "evaluate", "growth")
SUITE_MODELS = ("small-cnn", "resnet-18")
SUITE_BATCH = 32  # of the larger networks: the suite should end before one has lost patience
SUITE_IMAGES = 250

_SIDES = {
    "attack": (attack.SIDES, attack.SIDES),
    "train": (train.SIDES, ("ours", "plain loop")),
    "evaluate": (evaluate.SIDES, ("ours", "ours-checked", "pyautoattack")),
}  # those that there are, and those that are asked for by default


@dataclass(frozen=True, kw_only=True)
class Options:
    """What was asked for; None: what suits.

    Arguments:
        what: One of :data:`WHATS`; None: the suite.
        run: A run folder to evaluate.
        model: The network; its default is small-cnn, and resnet-18 for growth.
        width: The factor on its features; 1, and 0.25 for growth.
        size: The pixels of an image a side.
        channels: The channels of an image.
        classes: The classes.
        batch_size: Images at a time; 64, 16 for growth, 250 for evaluate.
        steps: The steps of PGD; 10, and 2 for growth.
        eps: The radius.
        norm: Of an evaluation.
        images: How many images are evaluated.
        sides: Who takes part besides ours.
        repeats: How often each is timed.
        threads: The threads of a CPU; None: torch's choice.
        device: ``auto``, ``cpu`` or ``cuda``.
        precision: Of our search.
        update: Of our training step; of a train bench alone.
        layout: Likewise.
        compile: Whether it is compiled.
        memory: Whether peak memory is measured.
        seed: Of everything random.
        data_dir: The folder of the data of a run.
    """

    what: str | None = None
    run: Path | None = None
    model: str | None = None
    width: float | None = None
    size: int | None = None
    channels: int | None = None
    classes: int | None = None
    batch_size: int | None = None
    steps: int | None = None
    eps: float | None = None
    norm: str | None = None
    images: int | None = None
    sides: tuple[str, ...] = ()
    repeats: int = 5
    threads: int | None = None
    device: str = "auto"
    precision: str = "auto"
    update: str = "float32"
    layout: str = "auto"
    compile: bool = False
    memory: bool = True
    seed: int = 0
    data_dir: Path | None = None

    def __post_init__(self) -> None:
        if self.what is not None and self.what not in WHATS:
            raise UserError(nearest(self.what, WHATS, "--what"))
        if self.model is not None and self.model not in MODELS:
            raise UserError(nearest(self.model, MODELS, "model"))
        if self.model == STRANGER and self.what not in ("attack", "growth"):
            raise UserError(f"--model {STRANGER} needs --what attack or growth: it is not trained")
        if self.repeats < 1:
            raise UserError(f"-n must be at least 1, got {self.repeats}")
        if self.threads is not None and self.threads < 1:
            raise UserError(f"--threads must be at least 1, got {self.threads}")
        self._check_fit()

    def _check_fit(self) -> None:
        """Refuse what has no meaning for what is benched."""
        evaluates = self.what in (None, "evaluate")
        for name in ("run", "norm", "images"):
            if getattr(self, name) is not None and not evaluates:
                given = "RUN" if name == "run" else f"--{name}"
                raise UserError(f"{given} is for --what evaluate, not for {self.what}")
        if self.sides and self.what not in _SIDES:
            raise UserError(f"--sides needs --what {', '.join(_SIDES)}: each has its own")
        for name in self.sides:
            if name not in _SIDES[str(self.what)][0]:
                raise UserError(nearest(name, _SIDES[str(self.what)][0], "side"))

    def case(self, model: str, **standing: int | float) -> Case:
        """Return what is benched with a network, some of its values standing in for defaults."""
        given = {name: getattr(self, name) for name in ("width", "classes", "batch_size", "steps")}
        own = {name: getattr(self, name) for name in ("channels", "size", "eps")}
        own = {k: default_of(model, k) if v is None else v for k, v in own.items()}
        chosen: dict[str, Any] = standing | {
            name: value for name, value in given.items() if value is not None
        }
        return Case(model=model, update=self.update, **own, **chosen, **self._how())

    def judging(self) -> Judging:
        """Return what is evaluated."""
        suite = SUITE_IMAGES if self.what is None else Judging.images
        return Judging(
            run=None if self.run is None else str(self.run),
            data_dir=None if self.data_dir is None else str(self.data_dir),
            images=suite if self.images is None else self.images,
            norm=self.norm,
            eps=self.eps if self.what == "evaluate" else None,
            batch_size=self._judged_at_a_time(),
            **self._how(),
        )

    def _judged_at_a_time(self) -> int:
        asked = self.batch_size if self.what == "evaluate" else None
        return Judging.batch_size if asked is None else asked

    def _how(self) -> dict[str, Any]:
        names = ("device", "precision", "layout", "compile", "seed")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True, kw_only=True)
class Bench:
    """One thing that is benched.

    Arguments:
        what: One of :data:`WHATS`.
        title: It in words.
        case: On what.
        sides: Who takes part; ours is the first.
    """

    what: str
    title: str
    case: Case | Judging
    sides: Sequence[str] = ("ours",)


def plan(options: Options) -> list[Bench]:
    """Return what is to be done, in order.

    Raises:
        UserError: If something asked for is not possible.
    """
    whats = [options.what] if options.what else ["attack", "train", "evaluate"]
    found = []
    for what in whats:
        if what == "evaluate":
            found.append(_evaluation(options))
        elif what == "growth":
            model = options.model or "resnet-18"
            width = 0.25 if model == "resnet-18" else 1.0
            case = options.case(model, width=width, batch_size=16, steps=2)
            found.append(Bench(what=what, title=f"growth of PGD, {_network(case)}", case=case))
        else:
            asked = [options.model] if options.model else []
            standing = list(SUITE_MODELS) if options.what is None else ["small-cnn"]
            standing += [STRANGER] if (options.what, what) == (None, "attack") else []
            found += [_of_model(options, what, model) for model in asked or standing]
    return found


def _of_model(options: Options, what: str, model: str) -> Bench:
    small = {"batch_size": SUITE_BATCH} if options.what is None and model != "small-cnn" else {}
    case = options.case(model, **small)
    what_it_is = f"PGD-{case.steps}" if what == "attack" else f"a step of A3GT, PGD-{case.steps}"
    return Bench(
        what=what,
        title=f"{what_it_is}, {_network(case)}, batch {case.batch_size}",
        case=case if what == "attack" else train.case_of(case),
        sides=_chosen(options, what),
    )


def _evaluation(options: Options) -> Bench:
    judging = options.judging()
    where = judging.run or "a small network on the digits"
    return Bench(
        what="evaluate",
        title=f"AutoAttack, {where}, {judging.images} images",
        case=judging,
        sides=_chosen(options, "evaluate"),
    )


def _chosen(options: Options, what: str) -> tuple[str, ...]:
    asked = options.sides if options.what == what else ()
    return tuple(dict.fromkeys(("ours", *(asked or _SIDES[what][1]))))


def _network(case: Case) -> str:
    width = "" if case.width == 1 else f" width {case.width:g},"
    return f"{case.model},{width} {case.channels}x{case.size}x{case.size}"


def smaller(case: Case | Judging) -> Case | Judging:
    """Return the least of the same kind: to load libraries and warm them up."""
    if isinstance(case, Judging):
        return replace(case, images=2)
    few = replace(case, batch_size=2, images=None, steps=1)
    return few if case.images is None else train.case_of(few)
