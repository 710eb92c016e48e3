"""The verdicts of an evaluation, from which every number in files, tables and reports is counted.

No torch is imported.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError

from equipoise.measures.by_class import by_class
from equipoise.sample import Sample
from equipoise.store.audit import Audit
from equipoise.store.finding import Finding
from equipoise.store.records import WORST, Record, stage_of
from equipoise.store.sealed import are_current, read_arrays

FOLDER = "evaluations"
RECORDS = "records.jsonl"
_DISTORTION = "distortion."
OWN = "own_distortion."  # of the points of one attack
_COUNTED = (
    *("y", "clean_prediction", "distance", "margin"),
    *("verdict.", "attacked.", _DISTORTION, OWN),
)
UNREADABLE = (
    OSError,
    SafetensorError,
    LookupError,
    AttributeError,
    TypeError,
    ValueError,
    RecursionError,
)
"""The exceptions of reading an evaluation."""

Flags = NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class Verdicts:
    """The verdicts of several attacks on one model under one threat.

    Arguments:
        norm: The norm of the threat.
        eps: Its radius.
        y: The labels, with shape (N,).
        correct: Which clean inputs are classified correctly, with shape (N,).
        verdict: Whether each image is classified correctly, by attack, each with shape (N,); a
            stage of an ensemble is named ``ensemble/stage``.
        attacked: Whether each image was attacked, by attack, each with shape (N,).
        outcomes: The other fields of :class:`equipoise.evaluation.Outcome`, by attack.
        seed: The seed of the attacks.
        passes: The number of forward passes of a verdict.
        precision: The arithmetic of the search.
        classes: The names of the classes, or nothing.
        audit: The audit by AutoAttack; None: there was none.
    """

    norm: str
    eps: float
    y: NDArray[Any]
    correct: Flags
    verdict: Mapping[str, Flags]
    attacked: Mapping[str, Flags]
    outcomes: Mapping[str, Mapping[str, Any]]
    seed: int = 0
    passes: int = 1
    precision: str = "float32"
    classes: Sequence[str] = ()
    audit: Audit | None = None

    def __post_init__(self) -> None:
        """Raise a ValueError if types or shapes are wrong."""
        flags = [("clean images", self.correct), *self.verdict.items(), *self.attacked.items()]
        for name, value in flags:
            if value.dtype != np.bool_ or value.shape != self.y.shape:
                raise ValueError(
                    f"expected a verdict for each image of {name}, got {value.dtype} {value.shape}"
                )
        if self.y.ndim != 1 or self.y.dtype.kind != "i":
            raise ValueError(f"expected whole numbers as labels, got {self.y.dtype}")

    @property
    def robust(self) -> Flags:
        """Return which images are classified correctly under every attack, with shape (N,)."""
        return self._all(self.verdict)

    @property
    def by_class(self) -> dict[str, float]:
        """Return accuracies by class, where classes differ in size."""
        return by_class(self.y, self.correct, self.robust)

    @property
    def ensembles(self) -> tuple[str, ...]:
        """Return the names of the ensembles that were run."""
        names = (str(outcome["ensemble"]) for outcome in self.outcomes.values())
        return tuple(dict.fromkeys(name for name in names if name))

    def stages(self, ensemble: str) -> list[str]:
        """Return the names of the stages of an ensemble, in their order."""
        return [name for name, outcome in self.outcomes.items() if outcome["ensemble"] == ensemble]

    @property
    def costs(self) -> dict[str, tuple[int, int]]:
        """Return for each attack its passes (backward ones count twice), and its images."""
        return {
            name: (o["forwards"] + 2 * o["backwards"], int(self.attacked[name].sum()))
            for name, o in self.outcomes.items()
        }

    def alone(self, name: str) -> bool:
        """Return whether an attack attacked every correct image."""
        return bool((self.attacked[name] | ~self.correct).all())

    @property
    def whole(self) -> dict[str, Flags]:
        """Return which images are classified correctly, by attack, each with shape (N,).

        There is an entry for each attack that attacked all correct images, and one for each
        ensemble: the worst of its stages.
        """
        single = {name: self.verdict[name] for name in self.outcomes if self.alone(name)}
        return single | {name: self._all(self.stages(name)) for name in self.ensembles}

    def only(self, names: Iterable[str]) -> "Verdicts":
        """Return the verdicts of some of the attacks and ensembles."""
        wanted = {*names}
        outcomes = {
            name: outcome
            for name, outcome in self.outcomes.items()
            if (outcome["ensemble"] or name) in wanted or name in wanted
        }
        return replace(
            self, outcomes=outcomes, verdict={name: self.verdict[name] for name in outcomes}
        )

    def records(self) -> list[Record]:
        """Return a record for the clean accuracy, each attack and the worst case.

        A stage of an ensemble has a record of its own if every stage of that ensemble attacked
        all correct images; the record of the ensemble has its stages in any case.
        """
        whole = self.whole
        records = [self._record("clean", self.correct, [])]
        for name, outcome in self.outcomes.items():
            ensemble = outcome["ensemble"]
            if name in whole and (not ensemble or all(map(self.alone, self.stages(ensemble)))):
                made = outcome.get("made", {})
                how = {key: made[key] for key in ("precision", "seed") if key in made}
                shown = self._shown(name) if ensemble else name
                records.append(self._record(shown, self.verdict[name], [name], **how))
        records += [self._ensemble(name) for name in self.ensembles]
        if whole:
            names = dict.fromkeys(
                outcome["ensemble"] or name for name, outcome in self.outcomes.items()
            )
            records.append(
                self._record(WORST, self.robust, [*self.outcomes], attacks=tuple(names))
            )
        return records

    def _all(self, names: Iterable[str]) -> Flags:
        left = self.correct.copy()
        for name in names:
            left &= self.verdict[name]
        return left

    def _shown(self, name: str) -> str:
        """Return the name of a stage without its ensemble, if no other attack has that name."""
        short = stage_of(name)[1]
        taken = [n for n in self.outcomes if n == short or n.endswith(f"/{short}")]
        return short if short and len(taken) == 1 else name

    def _ensemble(self, ensemble: str) -> Record:
        """Return the record of an ensemble, with its stages."""
        names, left = self.stages(ensemble), self.correct
        stages = []
        for name in names:
            entered, left = left, left & self.verdict[name]
            alone = float(self.verdict[name].mean()) if self.alone(name) else None
            broken = int(entered.sum()) - int(left.sum())
            if self.audit is not None or not self.outcomes[name]["finished"]:
                entered = entered & self.attacked[name]  # an audit attacks some of them alone
            counts = {"entered": int(entered.sum()), "broken": broken, "alone": alone}
            stages.append(self._record(stage_of(name)[1] or name, left, [name], **counts))
        return self._record(ensemble, left, names, stages=tuple(stages))

    def _record(self, attack: str, verdict: Flags, names: Sequence[str], **more: Any) -> Record:
        """Return a record of some attacks."""
        usual = {"passes": self.passes, "precision": self.precision, "seed": self.seed}
        return Record(
            attack=attack,
            norm=self.norm,
            eps=self.eps,
            verdict=verdict,
            y=self.y,
            classes=self.classes,
            outcomes=tuple(self.outcomes[name] for name in names),
            **{**usual, **more},
        )


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """A stored evaluation without its images: one model, one threat, one sample of images.

    Arguments:
        path: Its file.
        about: Its description: weights, images, threat, and the protocol.
        origin: Split, weights, checksums and versions.
        verdicts: The verdicts.
        findings: The findings of its checks.
        memory: The most memory the process held, in bytes.
        distance: The size of each perturbation in the norm of the threat, with shape (N,).
        distortion: The values of :mod:`equipoise.measures.distortion` for each perturbed image, by
            measure, each with shape (N,); empty if they were not measured.
        own: The same of the points of single attacks where they fool, by attack, each with shape
            (N, 4) in the order of :data:`equipoise.measures.cmmr.RAW`.
        dimensions: The number of values of an image; 0 if no distortion was measured.
    """

    path: Path
    about: Mapping[str, Any]
    origin: Mapping[str, Any]
    verdicts: Verdicts
    findings: Sequence[Finding]
    memory: int
    distance: NDArray[Any]
    distortion: Mapping[str, NDArray[np.float64]]
    own: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)
    dimensions: int = 0

    @property
    def name(self) -> str:
        """The name of its file, without the ending."""
        return self.path.stem

    @property
    def finished(self) -> bool:
        """Whether it is finished."""
        return bool(self.about.get("finished"))

    @property
    def failed(self) -> list[str]:
        """The checks that failed; if there are any, the numbers cannot be trusted."""
        return [finding.check for finding in self.findings if finding.status == "failed"]

    @property
    def threat(self) -> tuple[str, float]:
        """The norm and the radius."""
        return self.verdicts.norm, round(self.verdicts.eps, 9)

    @property
    def n(self) -> int:
        """The number of images."""
        return len(self.verdicts.y)

    @property
    def sample(self) -> Sample | None:
        """Which images they are; None if that is not stored."""
        sample = self.about.get("sample")
        return Sample.of_content(sample) if sample else None

    @property
    def split(self) -> str:
        """The split of the images."""
        return str(self.origin.get("split", "test"))

    @property
    def weights(self) -> str:
        """The name of the weights."""
        return str(self.about.get("weights") or "model")

    @property
    def model_sha256(self) -> str:
        """The checksum of the weights."""
        return str(self.about["model_sha256"])

    @property
    def current(self) -> bool:
        """Whether its run folder has the same weights now, or does not hold them in a file."""
        return are_current(self.path.parents[1], self.weights, self.model_sha256)

    @property
    def versions(self) -> Mapping[str, Any]:
        """Versions, device and command."""
        return self.origin.get("versions") or {}

    @cached_property
    def records(self) -> Sequence[Record]:
        """The records, counted from the verdicts."""
        return self.verdicts.records()

    @property
    def complete(self) -> list[Record]:
        """The records without, if it is not finished, ensembles and the worst case."""
        return [r for r in self.records if self.finished or not (r.stages or r.attack == WORST)]

    @property
    def fooled(self) -> NDArray[Any]:
        """The size of the perturbation of each successful adversarial example."""
        broken = self.verdicts.correct & ~self.verdicts.robust
        distances: NDArray[Any] = self.distance[broken & np.isfinite(self.distance)]
        return distances

    def lines(self, scores: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
        """Return its records for ``records.jsonl``; ``scores`` are its composite scores."""
        more = {**self.origin, "evaluation": self.name, "finished": self.finished}
        more["failed"] = self.failed
        lines = [{**record.content(), **more} for record in self.records]
        for line in lines:
            if line["attack"] == WORST:
                line |= scores or {}
        return lines


def read(path: Path) -> Evaluation:
    """Return a sealed evaluation.

    Raises:
        Exception: One of :data:`UNREADABLE`, if it is missing or damaged.
    """
    metadata, arrays = read_arrays(path, lambda name: name.startswith(_COUNTED))
    outcomes = json.loads(metadata["outcomes"])
    verdicts = Verdicts(
        norm=metadata["norm"],
        eps=float(metadata["eps"]),
        y=arrays["y"],
        correct=arrays["clean_prediction"] == arrays["y"],
        verdict={name: arrays[f"verdict.{name}"] for name in outcomes},
        attacked={name: arrays[f"attacked.{name}"] for name in outcomes},
        outcomes=outcomes,
        seed=int(metadata["seed"]),
        passes=int(metadata["passes"]),
        precision=metadata["precision"],
        classes=tuple(json.loads(metadata["classes"])),
    )
    if stored := json.loads(metadata.get("audit", "null")):
        audit = Audit.of(stored)
        counts = verdicts.correct, verdicts.robust, arrays["margin"], verdicts.costs
        verdicts = replace(verdicts, audit=audit.counted(*counts))
    return Evaluation(
        path=path,
        about=dict(json.loads(metadata["about"])),
        origin=dict(json.loads(metadata["origin"])),
        verdicts=verdicts,
        findings=tuple(map(Finding.of, json.loads(metadata["findings"]))),
        memory=int(metadata["memory"]),
        distance=arrays["distance"],
        distortion=_of(arrays, _DISTORTION),
        own=_of(arrays, OWN),
        dimensions=int(metadata.get("dimensions", 0)),
    )


def _of(arrays: Mapping[str, NDArray[Any]], start: str) -> dict[str, NDArray[Any]]:
    """Return the arrays whose names begin with a text, by the rest of their names."""
    return {n.removeprefix(start): values for n, values in arrays.items() if n.startswith(start)}
