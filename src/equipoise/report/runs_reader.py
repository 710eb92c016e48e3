"""Run folders as data for reports, read once and checked, without a model."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from equipoise.errors import UserError
from equipoise.measures.regime import Regime
from equipoise.parsing import checked, lines, load, read_mapping, reason
from equipoise.plugins import command
from equipoise.store import corruptions
from equipoise.store.corruptions import Corruptions
from equipoise.store.records import Record
from equipoise.store.sealed import are_current
from equipoise.store.verdicts import FOLDER, RECORDS, UNREADABLE, Evaluation, read

_OWN = "own-model.json"  # describes a model that was not trained here
_PICKED = "picked.json"  # states from which front a model was picked, and why
_HARDENING, _HARDENED = "harden.json", "hardened"  # of a hardening: its record, its model
AUGMENTED = "augmentation.png"  # some training images, as read and as augmented
_SIGNS = ("recipe.yaml", "log.jsonl", _OWN)


Numbers = Mapping[str, float]
Start = tuple[int | None, str]  # round t' from which the learners are merged (or None), and why


@dataclass(frozen=True, kw_only=True)
class Round:
    """One round of training; metrics are from the validation split, losses from training."""

    number: int
    planned: int
    learners: Mapping[str, Numbers]
    merged: Numbers
    weights: Numbers
    start: Start
    handover: bool
    kept: bool
    gradient_evaluations: float
    seconds: float


@dataclass(frozen=True, kw_only=True)
class RunData:
    """The content of one run folder. Parts that are not there yet are empty, never an error."""

    path: Path
    name: str
    recipe: Mapping[str, Any]
    provenance: Mapping[str, Any]
    config: Mapping[str, Any]
    rounds: tuple[Round, ...]
    summary: Mapping[str, Any]  # checked; empty before the end of the training
    others: tuple[str, ...]  # the weights of evaluations that the report leaves out
    evaluations: tuple[Evaluation, ...]
    corruptions: tuple[Corruptions, ...]
    own: Mapping[str, Any]
    picked: Mapping[str, Any]
    notes: tuple[str, ...]

    @property
    def records(self) -> tuple[Record, ...]:
        """The complete records of all evaluations."""
        return tuple(record for evaluation in self.evaluations for record in evaluation.complete)

    @property
    def regime(self) -> str:
        """The numbers that say in which regime learners were merged; empty where none were."""
        return str(self.summary.get("regime", ""))

    @property
    def trained(self) -> bool:
        """Whether it is a training; else the model is the user's own and was only evaluated."""
        return bool(self.recipe) or not self.own

    @property
    def method(self) -> str:
        """Name of the method, or empty."""
        return str(self.recipe.get("method") or "")

    @property
    def undefended(self) -> bool:
        """Whether this is the undefended model that the others are compared with."""
        return self.method == "standard"

    @property
    def threat(self) -> tuple[str, float] | None:
        """The threat it was trained against."""
        norm, eps = self.recipe.get("norm"), self.recipe.get("eps")
        if isinstance(norm, str) and isinstance(eps, int | float) and eps:
            return norm, round(float(eps), 9)
        return None

    @property
    def seed(self) -> str | None:
        """The seed, from the recipe or else from the provenance."""
        seed = self.recipe.get("seed", self.provenance.get("seed"))
        return None if seed is None else str(seed)

    @property
    def learners(self) -> tuple[str, ...]:
        """Names of the learners, in the order of the log."""
        return tuple(dict.fromkeys(name for r in self.rounds for name in r.learners))

    @property
    def planned(self) -> int:
        """The planned rounds of the training; 0 if they are not stated."""
        rounds = self.rounds[-1].planned if self.rounds else self.recipe.get("rounds")
        return rounds if isinstance(rounds, int) else 0

    @property
    def finished(self) -> bool:
        """Whether the training is finished."""
        return bool(self.summary.get("finished"))

    @property
    def warnings(self) -> tuple[str, ...]:
        """The warnings of the training."""
        return tuple(self.summary.get("warnings", ()))

    @property
    def start(self) -> Start:
        """When merging began, from the summary or else from the last round."""
        logged: Start = self.rounds[-1].start if self.rounds else (None, "")
        start: Start = self.summary.get("start") or logged
        return start

    @property
    def kept_round(self) -> int | None:
        """The round whose weights are the model, or None."""
        logged = next((r.number for r in reversed(self.rounds) if r.kept), None)
        kept: int | None = self.summary.get("kept_round", logged)
        return kept

    @property
    def handovers(self) -> tuple[int, ...]:
        """Rounds at whose end the learners took over the global weights."""
        logged = tuple(r.number for r in self.rounds if r.handover)
        rounds: tuple[int, ...] = self.summary.get("handovers", logged)
        return rounds

    @property
    def gradient_evaluations(self) -> float:
        """The cost of the training: gradients of a loss in the inputs or the weights."""
        logged = sum(r.gradient_evaluations for r in self.rounds)
        return float(self.summary.get("gradient_evaluations") or logged)

    @property
    def seconds(self) -> float:
        """How long the training took."""
        return float(self.summary.get("seconds") or sum(r.seconds for r in self.rounds))

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names, from the model's description or else from the data's."""
        data = self.provenance.get("data")
        lists = self.config.get("classes"), data.get("classes") if isinstance(data, dict) else 0
        names = next((names for names in lists if isinstance(names, list)), [])
        return tuple(str(name) for name in names)


def read_runs(folders: Sequence[Path]) -> tuple[RunData, ...]:
    """Read run folders, each once, with names that differ.

    Raises:
        UserError: where a folder is missing, is no run, or holds a damaged file.
    """
    if not folders:
        raise UserError("no run to report on; give at least one folder, e.g. runs/a3gt")
    inner = (f / _HARDENED if (f / _HARDENING).is_file() else f for f in map(Path, folders))
    unique = list({folder.resolve(): folder for folder in inner}.values())
    runs = [read_run(folder) for folder in unique]
    depth = 1
    while len({run.name for run in runs}) < len(runs):
        depth += 1
        runs = [replace(r, name="/".join(r.path.resolve().parts[-depth:])) for r in runs]
    return tuple(runs)


def read_run(folder: Path) -> RunData:
    """Read one run folder.

    Raises:
        UserError: where the folder is missing, is no run, or holds a damaged file.
    """
    if not folder.is_dir():
        raise UserError(f"no run folder at {folder}; train one, or check the name under runs/")
    if not any((folder / sign).is_file() for sign in _SIGNS):
        raise UserError(
            f"{folder} is not a run folder: it has none of {', '.join(_SIGNS)}; "
            "give a folder that `equipoise train` or `equipoise evaluate` wrote"
            + f"; a comparison's runs are {folder}/*-seed*"
            * (folder / "results.json").is_file()
        )
    notes: list[str] = []
    summary = read_mapping(folder / "summary.json")
    every, corrupted = _evaluations(folder, notes), _corruptions(folder, notes)
    # The kept weights, else those of the last round: numbers of an earlier round or of a learner
    # are never reported as those of the model.
    evaluated = {e.weights for e in every} | {each.weights for each in corrupted}
    weights = "last" if "last" in evaluated and "model" not in evaluated else "model"
    return RunData(
        path=folder,
        name=folder.resolve().name,
        recipe=read_mapping(folder / "recipe.yaml", load),
        provenance=read_mapping(folder / "provenance.json"),
        config=read_mapping(folder / "config.json"),
        rounds=_rounds(lines(folder / "log.jsonl", _round, notes)),
        summary=checked(folder / "summary.json", _summary, summary) if summary else {},
        others=tuple(dict.fromkeys(e.weights for e in every if e.weights != weights)),
        evaluations=tuple(e for e in every if e.weights == weights),
        corruptions=tuple(each for each in corrupted if each.weights == weights),
        own=read_mapping(folder / _OWN),
        picked=read_mapping(folder / _PICKED),
        notes=tuple(notes),
    )


def _evaluations(run: Path, notes: list[str]) -> list[Evaluation]:
    """Return the evaluations of the weights that a folder has now; add notes on all others."""
    current: list[Evaluation] = []
    paths = sorted((run / FOLDER).glob("*.safetensors"))
    for path in paths:
        where = f"`{FOLDER}/{path.name}`"
        try:
            evaluation = read(path)
        except UNREADABLE as error:
            notes.append(f"{where} is damaged ({reason(error)}): its numbers are left out.")
            continue
        if evaluation.current:
            current.append(evaluation)
        else:
            notes.append(
                f"{where} is of other weights than the run has now: its numbers are left out. "
                f"Evaluate the run again: `{command('evaluate', run)}`."
            )
    if not paths and (run / RECORDS).is_file():
        notes.append(f"`{RECORDS}` has no sealed evaluation to it: its numbers are left out.")
    return current


def _corruptions(run: Path, notes: list[str]) -> list[Corruptions]:
    """Return what was measured on corrupted images with the weights that a folder has now."""
    current: list[Corruptions] = []
    for path in corruptions.files(run):
        again = f"`{command('evaluate', run, '--corruptions')}`"
        try:
            stored = Corruptions.read(path)
            if are_current(run, stored.weights, str(stored.about.get("model_sha256"))):
                current.append(stored)
            else:
                where = f"`{corruptions.FOLDER}/{path.name}`"
                notes.append(f"{where} is of other weights than the run has now: run {again}.")
        except (UserError, *UNREADABLE) as error:
            notes.append(f"{reason(error)}: its numbers are left out.")
    return current


def _numbers(value: Mapping[str, Any] | None) -> Numbers:
    """Return the finite numbers of a mapping."""
    pairs = (value or {}).items()
    return {k: float(v) for k, v in pairs if isinstance(v, int | float) and math.isfinite(v)}


def _start(value: Mapping[str, Any] | None) -> Start:
    value = value or {}
    number = value.get("round")
    return None if number is None else int(number), str(value.get("reason") or "")


def _round(value: Mapping[str, Any]) -> Round:
    number = int(value["round"])
    return Round(
        number=number,
        planned=max(int(value.get("rounds") or 0), number),
        learners={str(k): _numbers(v) for k, v in (value.get("learners") or {}).items()},
        merged=_numbers(value.get("global")),
        weights=_numbers(value.get("weights")),
        start=_start(value.get("start")),
        handover=bool(value.get("handover")),
        kept=bool(value.get("kept")),
        gradient_evaluations=float(value.get("gradient_evaluations") or 0),
        seconds=sum(_numbers(value.get("seconds")).values()),
    )


def _rounds(rounds: list[Round]) -> tuple[Round, ...]:
    # A resumed run may log a round twice; the later line is the one that counts.
    by_number = {r.number: r for r in rounds}
    return tuple(by_number[number] for number in sorted(by_number))


def _summary(value: Mapping[str, Any]) -> dict[str, Any]:
    numbers, rounds = _numbers(value), value.get("handovers")
    summary: dict[str, Any] = {
        "finished": bool(value.get("finished")),
        "stopped_early": bool(value.get("stopped_early")),
        "rule": str(value.get("rule") or ""),
        "regime": "; ".join(Regime.of(value["regime"]).lines()) if value.get("regime") else "",
        "warnings": [str(w) for w in value.get("warnings") or ()],
        "gradient_evaluations": numbers.get("gradient_evaluations"),
        "seconds": numbers.get("seconds"),
        "kept_round": int(numbers["kept_round"]) if "kept_round" in numbers else None,
        "start": _start(value["start"]) if value.get("start") else None,
        "handovers": None if rounds is None else tuple(int(r) for r in rounds),
    }
    return {name: content for name, content in summary.items() if content is not None}
