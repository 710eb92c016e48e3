"""The record of each attack, and the columns of results, which are declared only here.

``records.jsonl``, the tables on the terminal and those of a report have :data:`RESULT_COLUMNS` and
:data:`STAGE_COLUMNS`. No torch is imported.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from equipoise.measures.by_class import unequal
from equipoise.measures.statistics import interval, outwards

WORST = "worst-case"
BALANCED = "balanced"  # a field that records of earlier versions lack
_STAGE = re.compile(r"(.+)/([a-z][a-z0-9-]*)")

Flags = NDArray[np.bool_]


def stage_of(name: str) -> tuple[str, str]:
    """Return the ensemble and the stage in the name of an attack; empty if it is no stage.

    Example:
        >>> stage_of("autoattack/fab-t"), stage_of("pgd-2(step_size=2/255)")
        (('autoattack', 'fab-t'), ('', ''))
    """
    match = _STAGE.fullmatch(name)
    return (match[1], match[2]) if match else ("", "")


@dataclass(frozen=True, kw_only=True)
class Record:
    """The result of one attack (or ``clean``, or ``worst-case``) at one radius.

    Arguments:
        attack: The name of the attack.
        norm: The norm of the threat.
        eps: Its radius.
        verdict: Which images are classified correctly under the attack, with shape (N,); for a
            stage of an ensemble, under all stages up to it.
        y: The labels, with shape (N,).
        classes: The names of the classes, by label, or nothing.
        outcomes: The stored outcomes of its attacks; empty for ``clean``.
        stages: For an ensemble: its stages.
        attacks: For the worst case: its attacks and ensembles.
        entered: For a stage: the number of images that it attacked.
        broken: For a stage: how many of these it broke.
        alone: For a stage: the accuracy under it alone; None if it attacked only some of the
            correct images.
        passes: The number of forward passes of a verdict.
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
    broken: int = 0
    alone: float | None = None
    passes: int = 1
    precision: str = "float32"
    seed: int = 0

    @property
    def n(self) -> int:
        """The number of images."""
        return len(self.verdict)

    @property
    def robust(self) -> int:
        """The number of images that are classified correctly."""
        return int(self.verdict.sum())

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
        """The number of images by class, and how many of them are classified correctly."""
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
    def balanced(self) -> float:
        """The mean over the classes of their accuracies: each class counts the same."""
        return sum(self.per_class.values()) / max(len(self.per_class), 1)

    @property
    def unequal(self) -> bool:
        """Whether the classes differ so much in size that the balanced accuracy is shown, too."""
        return unequal(n for n, _ in self.counts.values())

    @property
    def worst_class(self) -> tuple[str, float] | None:
        """The name and the accuracy of the class with the lowest one."""
        return min(self.per_class.items(), key=lambda item: item[1], default=None)

    @property
    def threat(self) -> tuple[str, float] | None:
        """Norm and radius; None at radius 0."""
        return (self.norm, round(self.eps, 9)) if self.eps else None

    @property
    def finished(self) -> bool:
        """Whether all attacks are finished."""
        return all(outcome["finished"] for outcome in self.outcomes)

    @property
    def entire(self) -> bool:
        """Whether its first stage attacked all correct images, or it has no stages."""
        first = self.stages[0] if self.stages else None
        return first is None or first.alone is not None or not first.finished

    @property
    def settings(self) -> str:
        """The settings of a single attack."""
        return str(self._single.get("settings", ""))

    @property
    def notes(self) -> tuple[str, ...]:
        """The changes of a single attack for this model, in sentences."""
        return tuple(self._single.get("notes", ()))

    @property
    def warnings(self) -> tuple[str, ...]:
        """The problems of a single attack, in sentences."""
        outcome, warnings = self._single, list[str]()
        if rejected := outcome.get("rejected"):
            warnings.append(f"{rejected} points were outside the threat and did not count")
        if nonfinite := outcome.get("nonfinite"):
            warnings.append(
                f"the model's output is NaN or infinite on {nonfinite} points; they count as "
                "misclassified"
            )
        if outcome and not outcome["finished"]:
            warnings.append("interrupted: not all examples were attacked")
        return tuple(warnings)

    @property
    def seconds(self) -> float:
        """The time of the attacks."""
        return round(sum(float(outcome["seconds"]) for outcome in self.outcomes), 3)

    @property
    def forwards(self) -> int:
        """The number of images that passed forward through the model."""
        return sum(int(outcome["forwards"]) for outcome in self.outcomes)

    @property
    def backwards(self) -> int:
        """The number of images that passed backward through the model."""
        return sum(int(outcome["backwards"]) for outcome in self.outcomes)

    @property
    def _single(self) -> Mapping[str, Any]:
        """The stored outcome of a single attack; empty for several."""
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
        title: Its head in a table; empty: no table shows it.
        text: Its text in a table, from a record as plain values.
        value: Its value in JSON, from a :class:`Record`; None: the attribute of that name.
        optional: Whether it is left out of records in which it is empty.
    """

    name: str
    title: str = ""
    text: Callable[[Mapping[str, Any]], str] = lambda record: ""
    value: Callable[[Record], Any] | None = None
    optional: bool = False

    def of(self, record: Record) -> Any:
        """Return its value in a record, as JSON can hold it."""
        value = self.value(record) if self.value else getattr(record, self.name)
        return list(value) if isinstance(value, tuple) else value


def shown(columns: Sequence[ResultColumn], record: Mapping[str, Any]) -> dict[str, str]:
    """Return the row of a record (or stage), as plain values, in a table: texts by head."""
    return {column.title: column.text(record) for column in columns if column.title}


def _content(record: Record, columns: Sequence[ResultColumn]) -> dict[str, Any]:
    values = ((column, column.of(record)) for column in columns)
    return {column.name: value for column, value in values if value or not column.optional}


def _per_class(record: Record) -> dict[str, dict[str, float]]:
    return {
        name: {"n": n, "robust": correct, "accuracy": correct / n}
        for name, (n, correct) in record.counts.items()
    }


def _name_text(record: Mapping[str, Any]) -> str:
    attacks = record.get("attacks")
    return f"{WORST} of {len(attacks)}" if attacks else str(record["attack"])


def _interval_text(record: Mapping[str, Any]) -> str:
    low, high = outwards(record["interval"])
    return f"{low:.1f}% .. {high:.1f}%"


def _worst_text(record: Mapping[str, Any]) -> str:
    worst = record["worst_class"]
    return f"{worst['name']}: {worst['accuracy']:.1%}" if worst else ""


def _seconds_text(record: Mapping[str, Any]) -> str:
    return f"{record['seconds']:.1f}" if record["seconds"] else ""


def _alone_text(stage: Mapping[str, Any]) -> str:
    return "" if stage["alone"] is None else f"{stage['alone']:.2%}"


RESULT_COLUMNS: list[ResultColumn] = [
    ResultColumn("attack", "attack", _name_text),
    *map(ResultColumn, ("settings", "norm", "eps", "n", "robust")),
    ResultColumn("accuracy", "accuracy", lambda r: f"{r['accuracy']:.2%}"),
    ResultColumn("interval", "95 % interval", _interval_text),
    ResultColumn(BALANCED, BALANCED, lambda r: f"{r[BALANCED]:.2%}" if BALANCED in r else ""),
    ResultColumn("per_class", value=_per_class),
    ResultColumn(
        "worst_class",
        "worst class",
        _worst_text,
        lambda r: r.worst_class and dict(zip(("name", "accuracy"), r.worst_class, strict=True)),
    ),
    ResultColumn("seconds", "seconds", _seconds_text),
    *map(ResultColumn, ("forwards", "backwards", "passes", "precision")),
    *map(ResultColumn, ("seed", "notes", "warnings")),
    ResultColumn("attacks", optional=True),
    ResultColumn(
        "stages",
        value=lambda r: [_content(stage, STAGE_COLUMNS) for stage in r.stages],
        optional=True,
    ),
]
"""The columns of the results of an evaluation, a record for each attack."""

STAGE_COLUMNS: list[ResultColumn] = [
    ResultColumn("attack", "stage", lambda r: str(r["attack"])),
    ResultColumn("entered", "attacked", lambda r: f"{r['entered']:,}"),
    ResultColumn("broken", "broken", lambda r: f"{r['broken']:,}"),
    ResultColumn("robust"),
    ResultColumn("accuracy", "robust so far", lambda r: f"{r['accuracy']:.2%}"),
    ResultColumn("interval"),
    ResultColumn("alone", "alone", _alone_text),
    *map(ResultColumn, ("settings", "notes", "finished")),
    ResultColumn("seconds", "seconds", lambda r: f"{r['seconds']:.1f}"),
    ResultColumn("forwards", "forward", lambda r: f"{r['forwards']:,}"),
    ResultColumn("backwards", "backward", lambda r: f"{r['backwards']:,}"),
]
"""The columns of the stages of an ensemble."""
