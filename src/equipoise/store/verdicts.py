"""The verdicts of an evaluation, and the records that follow from them and from nothing else.

Every number that is shown of an evaluation, in a table, in JSON, in ``records.jsonl`` or in a
report, is counted here from the verdicts on each image. No torch is imported.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError

from equipoise.errors import UserError
from equipoise.measures import cmmr
from equipoise.sample import Sample
from equipoise.store.finding import Finding
from equipoise.store.records import WORST, Record, stage_of
from equipoise.store.sealed import read_arrays

FOLDER = "evaluations"
RECORDS = "records.jsonl"
_DISTORTION = "distortion."
_COUNTED = ("y", "clean_prediction", "distance", "verdict.", "attacked.", _DISTORTION)
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


@dataclass(frozen=True, kw_only=True)
class Verdicts:
    """The verdicts of several attacks on one model under one threat.

    Arguments:
        norm: The norm of the threat.
        eps: Its radius.
        y: The labels, with shape (N,).
        correct: Which clean inputs are classified correctly, with shape (N,).
        verdict: Whether each image stays correct, by attack, each with shape (N,); a stage
            of an ensemble is named ``ensemble/stage``.
        attacked: Which images it attacked, by attack, each with shape (N,).
        told: Everything else of an attack, as :attr:`equipoise.evaluation.Outcome.told` has it.
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
        """Return which images stay correct under every attack, with shape (N,)."""
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
        """Return which images stay correct, by attack, each with shape (N,).

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
        the others of its ensemble did; the ensemble's record has its stages either way.
        """
        whole = self.whole
        found = [self._record("clean", self.correct, [])]
        for name, told in self.told.items():
            ensemble = told["ensemble"]
            if name in whole and (not ensemble or all(map(self.alone, self.stages(ensemble)))):
                made = told.get("made", {})
                how = {key: made[key] for key in ("precision", "seed") if key in made}
                shown = self._shown(name) if ensemble else name
                found.append(self._record(shown, self.verdict[name], [name], **how))
        found += [self._ensemble(name) for name in self.ensembles]
        if whole:
            names = dict.fromkeys(told["ensemble"] or name for name, told in self.told.items())
            found.append(self._record(WORST, self.robust, [*self.told], attacks=tuple(names)))
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
        names, left = self.stages(ensemble), self.correct
        stages = []
        for name in names:
            entered, left = left, left & self.verdict[name]
            alone = float(self.verdict[name].mean()) if self.alone(name) else None
            counts = {"entered": int(entered.sum()), "alone": alone}
            stages.append(self._record(stage_of(name)[1] or name, left, [name], **counts))
        return self._record(ensemble, left, names, stages=tuple(stages))

    def _record(self, attack: str, verdict: Flags, names: Sequence[str], **more: Any) -> Record:
        """Return a record of the attacks that are named."""
        usual = {"passes": self.passes, "precision": self.precision, "seed": self.seed}
        return Record(
            attack=attack,
            norm=self.norm,
            eps=self.eps,
            verdict=verdict,
            y=self.y,
            classes=self.classes,
            outcomes=tuple(self.told[name] for name in names),
            **{**usual, **more},
        )


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """A stored evaluation as far as its numbers go: one model, one threat, one sample of images.

    Arguments:
        path: Its file.
        about: What it is of: weights, images, threat, and what was asked for.
        origin: Where it was made, for its records: split, weights, checksums, versions.
        verdicts: The verdicts.
        findings: The answers of its checks.
        memory: The most memory the process held, in bytes.
        distance: How far each perturbed image is from the clean one, with shape (N,).
        distortion: What :mod:`equipoise.measures.distortion` measured of each perturbed image, by
            measure, each with shape (N,); nothing where that was not asked for.
        dimensions: How many values an image has; 0 where no distortion was measured.
    """

    path: Path
    about: Mapping[str, Any]
    origin: Mapping[str, Any]
    verdicts: Verdicts
    findings: Sequence[Finding]
    memory: int
    distance: NDArray[Any]
    distortion: Mapping[str, NDArray[np.float64]]
    dimensions: int = 0

    @property
    def name(self) -> str:
        """The name of its file, without the ending."""
        return self.path.stem

    @property
    def finished(self) -> bool:
        """Whether it was run to its end."""
        return bool(self.about.get("finished"))

    @property
    def failed(self) -> list[str]:
        """The checks that failed: with one of them the numbers cannot be trusted."""
        return [finding.check for finding in self.findings if finding.status == "failed"]

    @property
    def threat(self) -> tuple[str, float]:
        """The norm and the radius."""
        return self.verdicts.norm, round(self.verdicts.eps, 9)

    @property
    def n(self) -> int:
        """How many images there are."""
        return len(self.verdicts.y)

    @property
    def sample(self) -> Sample | None:
        """Which images they are, where that is said."""
        sample = self.about.get("sample")
        return Sample.of_content(sample) if sample else None

    @property
    def split(self) -> str:
        """The part of the data that the images are of."""
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
    def versions(self) -> Mapping[str, Any]:
        """What it was made with: versions, device, command."""
        return self.origin.get("versions") or {}

    @property
    def attacks(self) -> tuple[str, ...]:
        """The names of its attacks; of stages of an ensemble ``ensemble/stage``."""
        return tuple(self.verdicts.told)

    @property
    def classes(self) -> Sequence[str]:
        """The names of the classes, or nothing."""
        return self.verdicts.classes

    @cached_property
    def records(self) -> Sequence[Record]:
        """The records, which are counted from the verdicts."""
        return self.verdicts.records()

    @property
    def complete(self) -> list[Record]:
        """The complete records: of an interrupted one neither ensembles nor the worst case."""
        return [r for r in self.records if self.finished or not (r.stages or r.attack == WORST)]

    @property
    def fooled(self) -> NDArray[Any]:
        """How far the images that fooled the model are from the clean ones."""
        broken = self.verdicts.correct & ~self.verdicts.robust
        distances: NDArray[Any] = self.distance[broken & np.isfinite(self.distance)]
        return distances

    def lines(self, score: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
        """Return its records as ``records.jsonl`` has them.

        Arguments:
            score: The composite score of its worst case, one of :func:`scores`.
        """
        more = {**self.origin, "evaluation": self.name, "finished": self.finished}
        more["failed"] = self.failed
        found = [{**record.content(), **more} for record in self.records]
        for line in found:
            if score is not None and line["attack"] == WORST:
                line["cmmr"] = dict(score)
        return found


def read(path: Path) -> Evaluation:
    """Return a sealed evaluation.

    Raises:
        Exception: One of :data:`UNREADABLE`, if it is not there, or not as it was written.
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
        told=outcomes,
        seed=int(metadata["seed"]),
        passes=int(metadata["passes"]),
        precision=metadata["precision"],
        classes=tuple(json.loads(metadata["classes"])),
    )
    return Evaluation(
        path=path,
        about=dict(json.loads(metadata["about"])),
        origin=dict(json.loads(metadata["origin"])),
        verdicts=verdicts,
        findings=tuple(map(Finding.of, json.loads(metadata["findings"]))),
        memory=int(metadata["memory"]),
        distance=arrays["distance"],
        distortion={
            name.removeprefix(_DISTORTION): values
            for name, values in arrays.items()
            if name.startswith(_DISTORTION)
        },
        dimensions=int(metadata.get("dimensions", 0)),
    )


def scores(evaluations: Iterable[Evaluation]) -> dict[str, dict[str, Any]]:
    """Return the composite scores of evaluations by their names, as plain values.

    Those of one model on the same images in one norm are a sweep: what fooled the model within a
    small radius counts in the larger ones. Only finished evaluations whose distortions were
    measured have a score.

    Source: :mod:`equipoise.measures.cmmr`.
    """
    sweeps: dict[tuple[object, ...], list[Evaluation]] = {}
    for each in evaluations:
        if each.finished and each.distortion:
            images = each.sample.sha256 if each.sample else each.about["data_sha256"]
            same = each.weights, each.model_sha256, images, each.n, each.verdicts.norm
            sweeps.setdefault(same, []).append(each)
    found: dict[str, dict[str, Any]] = {}
    for some in sweeps.values():
        correct, norm = some[0].verdicts.correct.tolist(), some[0].verdicts.norm
        radii = {
            e.verdicts.eps: {"robust": e.verdicts.robust.tolist()}
            | {name: values.tolist() for name, values in e.distortion.items()}
            for e in some
        }
        try:
            parts = cmmr.sweep(correct, radii, norm=norm, dimensions=some[0].dimensions)
        except UserError:  # values that nobody measured; `equipoise verify` names them
            continue
        found |= {each.name: parts[each.verdicts.eps].to_dict() for each in some}
    return found


def all_lines(folder: Path) -> list[dict[str, Any]]:
    """Return the records of all sealed evaluations of a run folder, by evaluation and attack.

    One that cannot be read has none.
    """
    found: list[Evaluation] = []
    for path in sorted((folder / FOLDER).glob("*.safetensors")):
        try:
            evaluation = read(path)
            if evaluation.records:  # counted here, so that a damaged file is left out
                found.append(evaluation)
        except UNREADABLE:
            continue
    known = scores(found)
    return [line for each in found for line in each.lines(known.get(each.name))]
