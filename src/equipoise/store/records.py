"""What was measured under each attack, and the one declaration of the columns of results.

A column of results is declared here and nowhere else: ``records.jsonl``, the tables on the
terminal and those of a report have what :data:`RESULT_COLUMNS` and :data:`STAGE_COLUMNS` say.
No torch is imported.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from equipoise.measures.statistics import interval

WORST = "worst-case"
_STAGE = re.compile(r"(.+)/([a-z][a-z0-9-]*)")

Flags = NDArray[np.bool_]


def stage_of(name: str) -> tuple[str, str]:
    """Return the ensemble and the stage that the name of an attack is of; of others nothing.

    Example:
        >>> stage_of("autoattack/fab-t"), stage_of("pgd-2(step_size=2/255)")
        (('autoattack', 'fab-t'), ('', ''))
    """
    known = _STAGE.fullmatch(name)
    return (known[1], known[2]) if known else ("", "")


@dataclass(frozen=True, kw_only=True)
class Record:
    """What was measured under one attack (or ``clean``, or ``worst-case``) at one radius.

    Arguments:
        attack: The name of the attack.
        norm: The norm of the threat.
        eps: Its radius.
        verdict: Which images are classified correctly under the attack, with shape (N,); of a
            stage of an ensemble, under all stages up to it.
        y: The labels, with shape (N,).
        classes: The names of the classes, by label, or nothing.
        outcomes: What is stored of each attack behind the record; of ``clean`` nothing.
        stages: Of an ensemble its stages.
        attacks: Of the worst case the attacks and ensembles behind it.
        entered: Of a stage the number of images that were classified correctly before it.
        alone: Of a stage the accuracy under it alone; None: it did not attack all correct images.
        passes: The forward passes of a verdict.
        precision: The arithmetic of the search.
        seed: The seed of the attacks.
    """

    attack: str
    norm: str
    eps: float
    verdict: Flags
    y: NDArray[Any]
    classes: Sequence[str] = ()
    outcomes: tuple[Mapping[str, Any], ...] = ()
    stages: tuple["Record", ...] = ()
    attacks: tuple[str, ...] = ()
    entered: int = 0
    alone: float | None = None
    passes: int = 1
    precision: str = "float32"
    seed: int = 0

    @property
    def n(self) -> int:
        """How many images there are."""
        return len(self.verdict)

    @property
    def robust(self) -> int:
        """How many images are classified correctly."""
        return int(self.verdict.sum())

    @property
    def broken(self) -> int:
        """How many images a stage broke."""
        return self.entered - self.robust

    @property
    def accuracy(self) -> float:
        """The share of all images that are classified correctly."""
        return self.robust / self.n if self.n else 0.0

    @property
    def interval(self) -> tuple[float, float]:
        """The exact 95 % interval of the accuracy."""
        return interval(self.robust, self.n)

    @property
    def counts(self) -> dict[str, tuple[int, int]]:
        """By class how many images there are, and how many of them are classified correctly."""
        table = {}
        for label in np.unique(self.y).tolist():
            of_class = self.verdict[self.y == label]
            name = self.classes[label] if self.classes else str(label)
            table[name] = len(of_class), int(of_class.sum())
        return table

    @property
    def per_class(self) -> dict[str, float]:
        """The accuracy by class."""
        return {name: correct / n for name, (n, correct) in self.counts.items()}

    @property
    def worst_class(self) -> tuple[str, float] | None:
        """The name and the accuracy of the class with the lowest one."""
        return min(self.per_class.items(), key=lambda item: item[1], default=None)

    @property
    def threat(self) -> tuple[str, float] | None:
        """Norm and radius; None where nothing was perturbed."""
        return (self.norm, round(self.eps, 9)) if self.eps else None

    @property
    def finished(self) -> bool:
        """Whether the attacks attacked all images that they were to attack."""
        return all(outcome["finished"] for outcome in self.outcomes)

    @property
    def entire(self) -> bool:
        """Whether it is a measure by itself: a first stage attacked all correct images."""
        first = self.stages[0] if self.stages else None
        return first is None or first.alone is not None or not first.finished

    @property
    def settings(self) -> str:
        """The settings of a single attack, in words."""
        return str(self._single.get("settings", ""))

    @property
    def notes(self) -> tuple[str, ...]:
        """What had to be changed in a single attack for the model, in sentences."""
        return tuple(self._single.get("notes", ()))

    @property
    def warnings(self) -> tuple[str, ...]:
        """What went wrong in a single attack, in sentences."""
        return tuple(_warnings(self._single)) if self._single else ()

    @property
    def seconds(self) -> float:
        """The time that the attacks took."""
        return round(sum(float(outcome["seconds"]) for outcome in self.outcomes), 3)

    @property
    def forwards(self) -> int:
        """How many images passed forward through the model."""
        return sum(int(outcome["forwards"]) for outcome in self.outcomes)

    @property
    def backwards(self) -> int:
        """How many images passed backward through the model."""
        return sum(int(outcome["backwards"]) for outcome in self.outcomes)

    @property
    def _single(self) -> Mapping[str, Any]:
        """What is stored of the one attack behind the record; of several nothing."""
        single = len(self.outcomes) == 1 and not self.stages and not self.attacks
        return self.outcomes[0] if single else {}

    def content(self) -> dict[str, Any]:
        """Return the record as plain values."""
        return _content(self, RESULT_COLUMNS)


@dataclass(frozen=True)
class ResultColumn:
    """One column of the results of an evaluation.

    Arguments:
        name: Its key in ``records.jsonl``.
        value: Its value, as JSON can hold it, from a :class:`Record`.
        title: Its head in a table; empty: no table shows it.
        text: Its text in a table, from a record as plain values.
        optional: Whether a record in which it is empty leaves it out.
    """

    name: str
    value: Callable[[Record], Any]
    title: str = ""
    text: Callable[[Mapping[str, Any]], str] = lambda record: ""
    optional: bool = False


def shown(columns: Sequence[ResultColumn], record: Mapping[str, Any]) -> dict[str, str]:
    """Return what a table shows of a record: the text of each column by its head.

    Arguments:
        columns: :data:`RESULT_COLUMNS` or :data:`STAGE_COLUMNS`.
        record: The record as plain values; of a stage that of its ensemble's ``stages``.
    """
    return {column.title: column.text(record) for column in columns if column.title}


def _content(record: Record, columns: Sequence[ResultColumn]) -> dict[str, Any]:
    values = {column.name: column.value(record) for column in columns}
    optional = {column.name for column in columns if column.optional}
    return {name: value for name, value in values.items() if value or name not in optional}


def _per_class(record: Record) -> dict[str, dict[str, float]]:
    return {
        name: {"n": n, "robust": correct, "accuracy": correct / n}
        for name, (n, correct) in record.counts.items()
    }


def _worst_class(record: Record) -> dict[str, Any] | None:
    worst = record.worst_class
    return worst and {"name": worst[0], "accuracy": worst[1]}


def _warnings(outcome: Mapping[str, Any]) -> list[str]:
    warnings = []
    if outcome["rejected"]:
        warnings.append(f"{outcome['rejected']} points were outside the threat and did not count")
    if outcome["nonfinite"]:
        warnings.append(
            f"the model's output is NaN or infinite on {outcome['nonfinite']} points; they count "
            "as misclassified"
        )
    if not outcome["finished"]:
        warnings.append("interrupted: not all examples were attacked")
    return warnings


def _name(record: Mapping[str, Any]) -> str:
    attacks = record.get("attacks")
    return f"{WORST} of {len(attacks)}" if attacks else str(record["attack"])


def _bounds(record: Mapping[str, Any]) -> str:
    low, high = record["interval"]
    return f"{low:.1%} .. {high:.1%}"


def _worst_text(record: Mapping[str, Any]) -> str:
    worst = record["worst_class"]
    return f"{worst['name']} {worst['accuracy']:.1%}" if worst else ""


def _seconds(record: Mapping[str, Any]) -> str:
    return f"{record['seconds']:.1f}" if record["seconds"] else ""


RESULT_COLUMNS: list[ResultColumn] = [
    ResultColumn("attack", lambda r: r.attack, "attack", _name),
    ResultColumn("settings", lambda r: r.settings),
    ResultColumn("norm", lambda r: r.norm),
    ResultColumn("eps", lambda r: r.eps),
    ResultColumn("n", lambda r: r.n),
    ResultColumn("robust", lambda r: r.robust),
    ResultColumn("accuracy", lambda r: r.accuracy, "accuracy", lambda r: f"{r['accuracy']:.2%}"),
    ResultColumn("interval", lambda r: list(r.interval), "95 % interval", _bounds),
    ResultColumn("per_class", _per_class),
    ResultColumn("worst_class", _worst_class, "worst class", _worst_text),
    ResultColumn("seconds", lambda r: r.seconds, "seconds", _seconds),
    ResultColumn("forwards", lambda r: r.forwards),
    ResultColumn("backwards", lambda r: r.backwards),
    ResultColumn("passes", lambda r: r.passes),
    ResultColumn("precision", lambda r: r.precision),
    ResultColumn("seed", lambda r: r.seed),
    ResultColumn("notes", lambda r: list(r.notes)),
    ResultColumn("warnings", lambda r: list(r.warnings)),
    ResultColumn("attacks", lambda r: list(r.attacks), optional=True),
    ResultColumn(
        "stages", lambda r: [_content(stage, STAGE_COLUMNS) for stage in r.stages], optional=True
    ),
]
"""The columns of the results of an evaluation, a record an attack."""

STAGE_COLUMNS: list[ResultColumn] = [
    ResultColumn("attack", lambda r: r.attack, "stage", lambda r: str(r["attack"])),
    ResultColumn("entered", lambda r: r.entered, "attacked", lambda r: f"{r['entered']:,}"),
    ResultColumn("broken", lambda r: r.broken, "broken", lambda r: f"{r['broken']:,}"),
    ResultColumn("robust", lambda r: r.robust),
    ResultColumn(
        "accuracy", lambda r: r.accuracy, "robust so far", lambda r: f"{r['accuracy']:.2%}"
    ),
    ResultColumn("interval", lambda r: list(r.interval)),
    ResultColumn(
        "alone",
        lambda r: r.alone,
        "alone",
        lambda r: "" if r["alone"] is None else f"{r['alone']:.2%}",
    ),
    ResultColumn("settings", lambda r: r.settings),
    ResultColumn("notes", lambda r: list(r.notes)),
    ResultColumn("finished", lambda r: r.finished),
    ResultColumn("seconds", lambda r: r.seconds, "seconds", lambda r: f"{r['seconds']:.1f}"),
    ResultColumn("forwards", lambda r: r.forwards, "forward", lambda r: f"{r['forwards']:,}"),
    ResultColumn("backwards", lambda r: r.backwards, "backward", lambda r: f"{r['backwards']:,}"),
]
"""The columns of the stages of an ensemble."""
