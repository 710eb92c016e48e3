"""What an evaluation found: numbers from its verdicts, checks, costs, and whether it ended."""

__all__ = ["Evaluation", "Finding", "read_evaluations"]

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from equipoise.parsing import reason
from equipoise.plugins import command
from equipoise.report.records_reader import Record, record
from equipoise.sample import Sample
from equipoise.store import verdicts
from equipoise.store.finding import STATUSES, Finding
from equipoise.store.sealed import weights_digest
from equipoise.store.verdicts import FOLDER, RECORDS, UNREADABLE, WORST, read


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """One evaluation: one model, one threat, one sample of the test images.

    Its records are counted from its sealed verdicts.
    """

    name: str
    path: Path
    threat: tuple[str, float]
    n: int
    sample: Sample | None
    finished: bool
    weights: str
    model_sha256: str
    records: tuple[Record, ...]
    findings: tuple[Finding, ...]
    memory: int
    versions: Mapping[str, Any]
    distances: tuple[int, float, float] | None  # of fooled images: number, median, largest
    attacks: tuple[str, ...]
    classes: tuple[str, ...]

    @property
    def complete(self) -> tuple[Record, ...]:
        """The complete records: of an interrupted one neither ensembles nor the worst case."""
        if self.finished:
            return self.records
        return tuple(r for r in self.records if not r.stages and r.attack != WORST)


def read_evaluations(run: Path, notes: list[str]) -> tuple[Evaluation, ...]:
    """Return the evaluations of the weights that a run folder has now.

    Arguments:
        run: The run folder.
        notes: What is damaged, or of other weights, is added here; it stops nothing.
    """
    found: list[Evaluation] = []
    paths = sorted((run / FOLDER).glob("*.safetensors"))
    for path in paths:
        where = f"`{FOLDER}/{path.name}`"
        try:
            evaluation = _evaluation(path, read(path))
        except UNREADABLE as error:
            notes.append(f"{where} is damaged ({reason(error)}): its numbers are left out.")
            continue
        if _present(run, evaluation.weights) in (None, evaluation.model_sha256):
            found.append(evaluation)
        else:
            notes.append(
                f"{where} is of other weights than the run has now: its numbers are left out. "
                f"Evaluate the run again: `{command('evaluate', run)}`."
            )
    if not paths and (run / RECORDS).is_file():
        notes.append(f"`{RECORDS}` has no sealed evaluation to it: its numbers are left out.")
    return tuple(found)


def _present(run: Path, weights: str) -> str | None:
    """Return the SHA-256 of weights as they are now; None: there are none to compare with."""
    path = run / f"{weights}.safetensors"
    return weights_digest(path) if path.is_file() else None


def _evaluation(path: Path, found: verdicts.Evaluation) -> Evaluation:
    judged = found.verdicts
    weights = str(found.about.get("weights") or "model")
    keys = ("model_sha256", "data_sha256", "sample")
    about = {key: found.about.get(key) for key in keys} | {"weights": weights}
    sample = found.about.get("sample")
    return Evaluation(
        name=path.stem,
        path=path,
        threat=(judged.norm, round(judged.eps, 9)),
        n=len(judged.y),
        sample=Sample.of_content(sample) if sample else None,
        finished=found.finished,
        weights=weights,
        model_sha256=str(found.about["model_sha256"]),
        records=tuple(record({**line.content(), **about}) for line in judged.records()),
        findings=_findings(found.findings),
        memory=found.memory,
        versions=dict(found.origin.get("versions") or {}),
        distances=_distances(found),
        attacks=tuple(judged.told),
        classes=tuple(judged.classes),
    )


def _findings(values: Sequence[Finding]) -> tuple[Finding, ...]:
    return tuple(sorted(values, key=lambda finding: STATUSES.index(finding.status)))


def _distances(found: verdicts.Evaluation) -> tuple[int, float, float] | None:
    far = found.distance[found.verdicts.correct & ~found.verdicts.robust]
    far = far[np.isfinite(far)]
    return (len(far), float(np.median(far)), float(far.max())) if len(far) else None
