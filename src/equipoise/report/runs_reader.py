"""Run folders as data: everything a report needs, read once and checked, without a model."""

__all__ = ["Record", "Round", "Run", "Start", "Summary", "read_run", "read_runs"]

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import yaml

from equipoise.errors import UserError

Numbers = Mapping[str, float]
T = TypeVar("T")

_SIGNS = ("recipe.yaml", "log.jsonl", "records.jsonl")


@dataclass(frozen=True, kw_only=True)
class Record:
    """What was measured for one attack (or ``clean``, or ``worst-case``) at one budget."""

    attack: str
    n: int
    robust: int
    accuracy: float
    norm: str | None = None
    eps: float | None = None
    split: str = "test"
    settings: str = ""
    interval: tuple[float, float] | None = None
    per_class: Mapping[str, float]
    worst_class: tuple[str, float] | None = None
    attacks: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    model_sha256: str | None = None
    data_sha256: str | None = None
    weights: str = "model"

    @property
    def threat(self) -> tuple[str, float] | None:
        """Norm and budget, or None where nothing was perturbed."""
        return (self.norm, round(self.eps, 9)) if self.norm and self.eps else None


@dataclass(frozen=True, kw_only=True)
class Start:
    """Round t' after which learners are handed the global weights; None: not reached."""

    round: int | None = None
    reason: str = ""


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
class Summary:
    """What the end of training left to say."""

    finished: bool
    kept_round: int | None
    rule: str
    start: Start | None
    handovers: tuple[int, ...] | None
    warnings: tuple[str, ...]
    gradient_evaluations: float | None
    seconds: float | None


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run folder. Parts that are not there yet are empty, never an error."""

    path: Path
    name: str
    recipe: Mapping[str, Any]
    provenance: Mapping[str, Any]
    config: Mapping[str, Any]
    rounds: tuple[Round, ...]
    summary: Summary | None
    records: tuple[Record, ...]
    evaluations: tuple[Path, ...]
    notes: tuple[str, ...]

    @property
    def method(self) -> str:
        """Name of the method, as far as the recipe says it."""
        method = self.recipe.get("method")
        named = method.get("name") if isinstance(method, Mapping) else method
        return str(named) if named else ""

    @property
    def undefended(self) -> bool:
        """Whether this is the plain model that the others are held against."""
        return self.method == "standard"

    @property
    def threat(self) -> tuple[str, float] | None:
        """The threat it was trained against."""
        threat = self.recipe.get("threat")
        source = threat if isinstance(threat, Mapping) else self.recipe
        norm, eps = source.get("norm"), _budget(source.get("eps"))
        return (norm, round(eps, 9)) if isinstance(norm, str) and eps else None

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
        """Rounds the training was to have; 0 where nothing says so."""
        rounds = self.recipe.get("rounds")
        asked = rounds if isinstance(rounds, int) else 0
        return self.rounds[-1].planned if self.rounds else asked

    @property
    def finished(self) -> bool:
        """Whether training came to its end."""
        return self.summary is not None and self.summary.finished

    @property
    def start(self) -> Start:
        """When merging began, from the summary or else from the last round."""
        if self.summary is not None and self.summary.start is not None:
            return self.summary.start
        return self.rounds[-1].start if self.rounds else Start()

    @property
    def kept_round(self) -> int | None:
        """The round whose weights are the model, as far as it is known."""
        if self.summary is not None and self.summary.kept_round is not None:
            return self.summary.kept_round
        return next((r.number for r in reversed(self.rounds) if r.kept), None)

    @property
    def handovers(self) -> tuple[int, ...]:
        """Rounds at whose end the learners took over the global weights."""
        if self.summary is not None and self.summary.handovers is not None:
            return self.summary.handovers
        return tuple(r.number for r in self.rounds if r.handover)

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names, from the model's description or else from the data's."""
        data = self.provenance.get("data")
        known = self.config.get("classes"), data.get("classes") if isinstance(data, dict) else 0
        names = next((c for c in known if isinstance(c, list)), [])
        return tuple(str(name) for name in names)


def read_runs(folders: Sequence[Path]) -> tuple[Run, ...]:
    """Read run folders, each once, with names that tell them apart.

    Arguments:
        folders: Folders that ``equipoise train`` wrote.

    Raises:
        UserError: where a folder is missing, is no run, or holds a damaged file.
    """
    if not folders:
        raise UserError("no run to report on; give at least one folder, e.g. runs/a3gt")
    unique = list({folder.resolve(): folder for folder in map(Path, folders)}.values())
    runs = [read_run(folder) for folder in unique]
    depth = 1
    while len({run.name for run in runs}) < len(runs):
        depth += 1
        runs = [replace(r, name="/".join(r.path.resolve().parts[-depth:])) for r in runs]
    return tuple(runs)


def read_run(folder: Path) -> Run:
    """Read one run folder.

    Raises:
        UserError: where the folder is missing, is no run, or holds a damaged file.
    """
    if not folder.is_dir():
        raise UserError(f"no run folder at {folder}; train one, or check the name under runs/")
    if not any((folder / sign).is_file() for sign in _SIGNS):
        raise UserError(
            f"{folder} is not a run folder: it has none of {', '.join(_SIGNS)}; "
            "give a folder that `equipoise train` wrote"
        )
    notes: list[str] = []
    summary = _mapping(folder / "summary.json", json.loads)
    return Run(
        path=folder,
        name=folder.resolve().name,
        recipe=_mapping(folder / "recipe.yaml", yaml.safe_load),
        provenance=_mapping(folder / "provenance.json", json.loads),
        config=_mapping(folder / "config.json", json.loads),
        rounds=_rounds(_lines(folder / "log.jsonl", _round, notes)),
        summary=_checked(folder / "summary.json", _summary, summary) if summary else None,
        records=_latest(_lines(folder / "records.jsonl", _record, notes)),
        evaluations=tuple(sorted((folder / "evaluations").glob("*.safetensors"))),
        notes=tuple(notes),
    )


def _mapping(path: Path, parse: Callable[[str], object]) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        value = parse(path.read_text(encoding="utf-8"))
    except (ValueError, yaml.YAMLError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{path} is damaged ({reason}); restore it or remove it") from error
    if value is None:  # an empty file: a run that stopped before it began
        return {}
    if not isinstance(value, dict):
        raise UserError(f"{path} must hold a mapping, got {type(value).__name__}; restore it")
    return value


def _lines(path: Path, parse: Callable[[Any], T], notes: list[str]) -> list[T]:
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    found: list[T] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except ValueError as error:
            if number < len(lines):
                raise UserError(
                    f"{path}, line {number} is not JSON; repair or remove it"
                ) from error
            notes.append(f"The last line of {path.name} was cut short and is left out.")
            continue
        found.append(_checked(f"{path}, line {number}", parse, value))
    return found


def _checked(where: object, parse: Callable[[Any], T], value: object) -> T:
    try:
        return parse(value)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise UserError(f"{where} is not as expected ({reason}); repair or remove it") from error


def _budget(value: object) -> float | None:
    if isinstance(value, str):
        top, _, bottom = value.partition("/")
        try:
            return float(top) / float(bottom or 1)
        except (ValueError, ZeroDivisionError):
            return None
    return float(value) if isinstance(value, int | float) else None


def _numbers(value: Mapping[str, Any] | None) -> Numbers:
    pairs = (value or {}).items()
    return {k: float(v) for k, v in pairs if isinstance(v, int | float) and math.isfinite(v)}


def _start(value: Mapping[str, Any] | None) -> Start:
    value = value or {}
    number = value.get("round")
    return Start(round=None if number is None else int(number), reason=value.get("reason") or "")


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
    latest = {r.number: r for r in rounds}
    return tuple(latest[number] for number in sorted(latest))


def _summary(value: Mapping[str, Any]) -> Summary:
    handovers = value.get("handovers")
    numbers = _numbers(value)
    return Summary(
        finished=bool(value.get("finished")),
        kept_round=int(numbers["kept_round"]) if "kept_round" in numbers else None,
        rule=str(value.get("rule") or ""),
        start=_start(value["start"]) if value.get("start") else None,
        handovers=None if handovers is None else tuple(int(r) for r in handovers),
        warnings=tuple(str(w) for w in value.get("warnings") or ()),
        gradient_evaluations=numbers.get("gradient_evaluations"),
        seconds=numbers.get("seconds"),
    )


def _record(value: Mapping[str, Any]) -> Record:
    bounds, worst = value.get("interval"), value.get("worst_class")
    classes = value.get("per_class") or {}
    return Record(
        attack=str(value["attack"]),
        n=int(value["n"]),
        robust=int(value["robust"]),
        accuracy=float(value["accuracy"]),
        norm=value.get("norm"),
        eps=_budget(value.get("eps")),
        split=str(value.get("split") or "test"),
        settings=str(value.get("settings") or ""),
        interval=(float(bounds[0]), float(bounds[1])) if bounds else None,
        per_class={str(k): float(v["accuracy"]) for k, v in classes.items() if v.get("n", 1)},
        worst_class=(str(worst["name"]), float(worst["accuracy"])) if worst else None,
        attacks=tuple(str(a) for a in value.get("attacks") or () if a != "clean"),
        warnings=tuple(str(w) for w in value.get("warnings") or ()),
        model_sha256=value.get("model_sha256"),
        data_sha256=value.get("data_sha256"),
        weights=str(value.get("weights") or "model"),
    )


def _latest(records: list[Record]) -> tuple[Record, ...]:
    """Return the latest of equal records; those of the kept weights, where there are any."""
    kept = [record for record in records if record.weights != "last"]

    def key(record: Record) -> tuple[object, ...]:
        return (record.attack, record.threat, record.n, record.split)

    return tuple({key(record): record for record in kept or records}.values())
