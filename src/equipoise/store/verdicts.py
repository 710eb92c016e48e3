"""The verdicts of an evaluation, and the records that follow from them and from nothing else.

Every number that is shown of an evaluation, in a table, in JSON, in ``records.jsonl`` or in a
report, is counted here from the verdicts on each image. No torch is imported.
"""

__all__ = [
    "FOLDER",
    "RECORDS",
    "UNREADABLE",
    "WORST",
    "Evaluation",
    "Verdicts",
    "all_lines",
    "read",
    "stage_of",
]

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError

from equipoise.measures.statistics import interval
from equipoise.store.sealed import read_arrays

FOLDER = "evaluations"
RECORDS = "records.jsonl"
WORST = "worst-case"
_STAGE = re.compile(r"(.+)/([a-z][a-z0-9-]*)")
UNREADABLE = (
    OSError,
    SafetensorError,
    LookupError,
    AttributeError,
    TypeError,
    ValueError,
    RecursionError,
)
"""What reading an evaluation raises."""

Flags = NDArray[np.bool_]
Record = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Verdicts:
    """Who withstood what: the verdicts of several attacks on one model under one threat.

    Arguments:
        norm: The norm of the threat.
        eps: Its radius.
        y: The labels, with shape (N,).
        correct: Which clean inputs are classified correctly, with shape (N,).
        verdict: Whether each image withstood an attack, by attack, each with shape (N,); a stage
            of an ensemble is named ``ensemble/stage``.
        attacked: Which images it attacked, by attack, each with shape (N,).
        told: What else is known of an attack, as :attr:`equipoise.evaluation.Outcome.told` has it.
        seed: The seed of the attacks' randomness.
        passes: The forward passes of a verdict.
        precision: The arithmetic of the search.
        classes: The names of the classes, or nothing.
    """

    norm: str
    eps: float
    y: NDArray[Any]
    correct: Flags
    verdict: Mapping[str, Flags]
    attacked: Mapping[str, Flags]
    told: Mapping[str, Mapping[str, Any]]
    seed: int = 0
    passes: int = 1
    precision: str = "float32"
    classes: Sequence[str] = ()

    def __post_init__(self) -> None:
        """Refuse verdicts that are none.

        Raises:
            ValueError: If anything but a truth value an image is given.
        """
        flags = [("clean images", self.correct), *self.verdict.items(), *self.attacked.items()]
        for name, value in flags:
            if value.dtype != np.bool_ or value.shape != self.y.shape:
                raise ValueError(f"expected a verdict an image of {name}, got {value.dtype}")
        if self.y.ndim != 1 or self.y.dtype.kind != "i":
            raise ValueError(f"expected whole numbers as labels, got {self.y.dtype}")

    @property
    def robust(self) -> Flags:
        """Tell which images withstood every attack, with shape (N,)."""
        return self._all(self.verdict)

    @property
    def ensembles(self) -> tuple[str, ...]:
        """Return the names of the ensembles that were run."""
        found = (str(told["ensemble"]) for told in self.told.values())
        return tuple(dict.fromkeys(name for name in found if name))

    def stages(self, ensemble: str) -> list[str]:
        """Return the names of the stages of an ensemble, in their order."""
        return [name for name, told in self.told.items() if told["ensemble"] == ensemble]

    def alone(self, name: str) -> bool:
        """Tell whether an attack met every correct image, so that its verdicts stand alone."""
        return bool((self.attacked[name] | ~self.correct).all())

    @property
    def whole(self) -> dict[str, Flags]:
        """Return who withstood, by attack, each with shape (N,).

        There is one for every attack that attacked all correct images, and one for every
        ensemble: the worst of its stages.
        """
        found = {name: self.verdict[name] for name in self.told if self.alone(name)}
        return found | {name: self._all(self.stages(name)) for name in self.ensembles}

    def only(self, names: Iterable[str]) -> "Verdicts":
        """Return the verdicts of some of the attacks and ensembles."""
        wanted = {*names}
        told = {
            name: said
            for name, said in self.told.items()
            if (said["ensemble"] or name) in wanted or name in wanted
        }
        return replace(self, told=told, verdict={name: self.verdict[name] for name in told})

    def records(self) -> list[Record]:
        """Return a record for the clean accuracy, each attack and the worst case.

        A stage of an ensemble has a record of its own where it attacked all correct images as
        the others of its ensemble did; the ensemble's record tells of its stages either way.
        """
        whole = self.whole
        found = [self._record("clean", self.correct, None)]
        for name, told in self.told.items():
            ensemble = told["ensemble"]
            if name in whole and (not ensemble or all(map(self.alone, self.stages(ensemble)))):
                shown = self._shown(name) if ensemble else name
                found.append(self._record(shown, self.verdict[name], told))
        found += [self._ensemble(name) for name in self.ensembles]
        if whole:
            names = [told["ensemble"] or name for name, told in self.told.items()]
            several = {"attacks": [*dict.fromkeys(names)]} | _cost(self.told.values())
            found.append(self._record(WORST, self.robust, None) | several)
        return found

    def _all(self, names: Iterable[str]) -> Flags:
        left = self.correct.copy()
        for name in names:
            left &= self.verdict[name]
        return left

    def _shown(self, name: str) -> str:
        """Return the name under which an attack is shown: a stage's own where it is free."""
        short = stage_of(name)[1]
        taken = [n for n in self.told if n == short or n.endswith(f"/{short}")]
        return short if short and len(taken) == 1 else name

    def _ensemble(self, ensemble: str) -> Record:
        """Return the record of an ensemble, with its stages."""
        stages, left = self.stages(ensemble), self.correct
        listed = []
        for name in stages:
            told = self.told[name]
            entered, left = left, left & self.verdict[name]
            listed.append(
                {
                    "attack": stage_of(name)[1] or name,
                    "entered": int(entered.sum()),
                    "broken": int((entered & ~left).sum()),
                    "robust": int(left.sum()),
                    "accuracy": _mean(left),
                    "interval": list(interval(int(left.sum()), len(left))),
                    "alone": _mean(self.verdict[name]) if self.alone(name) else None,
                    "settings": told["settings"],
                    "notes": list(told["notes"]),
                    "finished": told["finished"],
                }
                | _cost([told])
            )
        cost = _cost(self.told[name] for name in stages)
        return self._record(ensemble, left, None) | {"stages": listed} | cost

    def _record(self, name: str, verdict: Flags, told: Mapping[str, Any] | None) -> Record:
        n, robust = len(verdict), int(verdict.sum())
        per_class = self._per_class(verdict)
        worst = min(per_class, key=lambda c: per_class[c]["accuracy"], default=None)
        made = (told or {}).get("made", {})
        return {
            "attack": name,
            "settings": told["settings"] if told else "",
            "norm": self.norm,
            "eps": self.eps,
            "n": n,
            "robust": robust,
            "accuracy": _mean(verdict),
            "interval": list(interval(robust, n)),
            "per_class": per_class,
            "worst_class": worst and {"name": worst, "accuracy": per_class[worst]["accuracy"]},
            **_cost([told] if told else []),
            "passes": self.passes,
            "precision": made.get("precision", self.precision),
            "seed": made.get("seed", self.seed),
            "notes": list(told["notes"]) if told else [],
            "warnings": _warnings(told) if told else [],
        }

    def _per_class(self, verdict: Flags) -> dict[str, dict[str, Any]]:
        table = {}
        for label in np.unique(self.y).tolist():
            name = self.classes[label] if self.classes else str(label)
            mine = verdict[self.y == label]
            table[name] = {"n": len(mine), "robust": int(mine.sum()), "accuracy": _mean(mine)}
        return table


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """A sealed evaluation as far as its numbers go.

    Arguments:
        name: The name of its file, without the ending.
        about: What it is of: weights, images, threat, and what was asked for.
        origin: Where it was made, for its records: split, weights, checksums, versions.
        verdicts: The verdicts.
        findings: What its checks found.
        memory: The most memory the process held, in bytes.
        distance: How far each perturbed image is from the clean one, with shape (N,).
    """

    name: str
    about: Mapping[str, Any]
    origin: Mapping[str, Any]
    verdicts: Verdicts
    findings: Sequence[Mapping[str, str]]
    memory: int
    distance: NDArray[Any]

    @property
    def finished(self) -> bool:
        """Tell whether it was run to its end."""
        return bool(self.about.get("finished"))

    @property
    def failed(self) -> list[str]:
        """Return the checks that failed: with one of them the numbers cannot be trusted."""
        return [f["check"] for f in self.findings if f["status"] == "failed"]

    def summary(self, digest: str) -> Record:
        """Return what ``NAME.json`` has of it, for people and programs.

        Arguments:
            digest: The SHA-256 of the file of tensors.
        """
        return {
            "format": 1,
            "about": dict(self.about),
            "finished": self.finished,
            "records": self.verdicts.records(),
            "findings": list(self.findings),
            "memory": self.memory,
            "origin": dict(self.origin),
            "examples": {"file": f"{self.name}.safetensors", "sha256": digest},
        }

    def lines(self) -> list[Record]:
        """Return its records as ``records.jsonl`` has them."""
        more = {**self.origin, "evaluation": self.name, "finished": self.finished}
        more["failed"] = self.failed
        return [{**record, **more} for record in self.verdicts.records()]


def read(path: Path) -> Evaluation:
    """Return a sealed evaluation.

    Raises:
        Exception: One of :data:`UNREADABLE`, if it is not there, or not as it was written.
    """
    metadata, arrays = read_arrays(path, _counts)
    outcomes = json.loads(metadata["outcomes"])
    verdicts = Verdicts(
        norm=metadata["norm"],
        eps=float(metadata["eps"]),
        y=arrays["y"],
        correct=arrays["clean_prediction"] == arrays["y"],
        verdict={name: arrays[f"verdict.{name}"] for name in outcomes},
        attacked={name: arrays[f"attacked.{name}"] for name in outcomes},
        told=outcomes,
        seed=int(metadata["seed"]),
        passes=int(metadata["passes"]),
        precision=metadata["precision"],
        classes=tuple(json.loads(metadata["classes"])),
    )
    return Evaluation(
        name=path.stem,
        about=dict(json.loads(metadata["about"])),
        origin=dict(json.loads(metadata["origin"])),
        verdicts=verdicts,
        findings=json.loads(metadata["findings"]),
        memory=int(metadata["memory"]),
        distance=arrays["distance"],
    )


def all_lines(folder: Path) -> list[Record]:
    """Return the records of all sealed evaluations of a run folder, by evaluation and attack.

    One that cannot be read has none.
    """
    found = []
    for path in sorted((folder / FOLDER).glob("*.safetensors")):
        try:
            found += read(path).lines()
        except UNREADABLE:
            continue
    return found


def stage_of(name: str) -> tuple[str, str]:
    """Return the ensemble and the stage that the name of an attack is of; of others nothing.

    Example:
        >>> stage_of("autoattack/fab-t"), stage_of("pgd-2(step_size=2/255)")
        (('autoattack', 'fab-t'), ('', ''))
    """
    known = _STAGE.fullmatch(name)
    return (known[1], known[2]) if known else ("", "")


def _counts(name: str) -> bool:
    """Tell whether an array is one that numbers are counted from."""
    return name in ("y", "clean_prediction", "distance") or name.startswith(
        ("verdict.", "attacked.")
    )


def _cost(told: Iterable[Mapping[str, Any]]) -> Record:
    parts = list(told)
    return {
        "seconds": round(sum(part["seconds"] for part in parts), 3),
        "forwards": sum(part["forwards"] for part in parts),
        "backwards": sum(part["backwards"] for part in parts),
    }


def _warnings(told: Mapping[str, Any]) -> list[str]:
    said = []
    if told["rejected"]:
        said.append(f"{told['rejected']} points were outside the threat and did not count")
    if told["nonfinite"]:
        said.append(
            f"the model's output is NaN or infinite on {told['nonfinite']} points; they count as "
            "misclassified"
        )
    if not told["finished"]:
        said.append("interrupted: not all examples were attacked")
    return said


def _mean(flags: Flags) -> float:
    return int(flags.sum()) / len(flags) if len(flags) else 0.0
