"""What an evaluation left beside its images: checks, costs, distances, and whether it ended."""

__all__ = ["Distances", "Evaluation", "Finding", "read_evaluations"]

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from equipoise.report.reading import budget, numbers, reason
from equipoise.report.records_reader import Record, record, told
from equipoise.sample import Sample

_WORST = "worst-case"
_STATUSES = ("failed", "warning", "ok", "skipped")


@dataclass(frozen=True, kw_only=True)
class Finding:
    """The answer of one check: ``failed``, ``warning``, ``ok`` or ``skipped``, and why."""

    check: str
    code: str
    status: str
    message: str
    remedy: str


@dataclass(frozen=True)
class Distances:
    """How far the images that fooled the model lie from the clean ones, in the threat's norm."""

    fooled: int
    median: float
    largest: float


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """One evaluation: one model, one threat, one sample of the test images."""

    name: str
    threat: tuple[str, float]
    n: int
    sample: Sample | None
    finished: bool
    weights: str
    records: tuple[Record, ...]
    findings: tuple[Finding, ...]
    memory: int
    versions: Mapping[str, Any]
    distances: Distances | None

    @property
    def whole(self) -> Record | None:
        """The record of all attacks together, with what they cost."""
        return next((r for r in self.records if r.attack == _WORST), None)


def read_evaluations(folder: Path, notes: list[str]) -> tuple[Evaluation, ...]:
    """Return the evaluations of a run, of the weights that a report tells of.

    Arguments:
        folder: The folder with ``NAME.json`` beside ``NAME.safetensors``.
        notes: What is damaged or missing is added here; it stops nothing.
    """
    found: list[Evaluation] = []
    for path in sorted(folder.glob("*.json")):
        where = f"{folder.name}/{path.name}"
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            found.append(_evaluation(path, content))
        except (OSError, AttributeError, KeyError, TypeError, ValueError) as error:
            notes.append(
                f"`{where}` is damaged ({reason(error)}): its checks and costs are left out."
            )
    notes += _lonely(folder)
    weights = told({evaluation.weights for evaluation in found})
    return tuple(evaluation for evaluation in found if evaluation.weights == weights)


def _lonely(folder: Path) -> list[str]:
    """Return a note for each file of examples whose summary is missing."""
    notes = []
    for path in sorted(folder.glob("*.safetensors")):
        # Files that say nothing of what they are of come from before there were summaries.
        if not path.with_suffix(".json").is_file() and "about" in _metadata(path):
            where = f"{folder.name}/{path.stem}.json"
            notes.append(f"`{where}` is missing: its checks and costs are left out.")
    return notes


def _metadata(path: Path) -> Mapping[str, str]:
    try:
        with safe_open(str(path), framework="np") as file:
            return file.metadata() or {}
    except (OSError, SafetensorError):
        return {}


def _evaluation(path: Path, content: Mapping[str, Any]) -> Evaluation:
    about = content["about"]
    eps = budget(about["eps"])
    if eps is None:
        raise ValueError(f"eps is {about['eps']}")
    weights = str(about.get("weights") or "model")
    given = {"weights": weights, "sample": about.get("sample")}
    origin = content.get("origin") or {}
    return Evaluation(
        name=path.stem,
        threat=(str(about["norm"]), round(eps, 9)),
        n=int(about["n"]),
        sample=Sample.of_content(about["sample"]) if about.get("sample") else None,
        finished=bool(about.get("finished")),
        weights=weights,
        records=tuple(record({**given, **r}) for r in content.get("records") or ()),
        findings=_findings(content.get("findings") or ()),
        memory=int(numbers(content).get("memory", 0)),
        versions=dict(origin.get("versions") or {}),
        distances=_distances(path.with_suffix(".safetensors")),
    )


def _findings(values: Sequence[Mapping[str, Any]]) -> tuple[Finding, ...]:
    found = [
        Finding(
            check=str(value["check"]),
            code=str(value.get("code") or ""),
            status=str(value["status"]),
            message=str(value.get("message") or ""),
            remedy=str(value.get("remedy") or ""),
        )
        for value in values
    ]
    unknown = {finding.status for finding in found} - {*_STATUSES}
    if unknown:
        raise ValueError(f"unknown status {', '.join(sorted(unknown))}")
    return tuple(sorted(found, key=lambda finding: _STATUSES.index(finding.status)))


def _distances(path: Path) -> Distances | None:
    try:
        with safe_open(str(path), framework="np") as file:
            if "distance" not in file.keys():  # noqa: SIM118 - not a mapping
                return None
            correct, robust = file.get_tensor("correct"), file.get_tensor("robust")
            far = file.get_tensor("distance")[correct.astype(bool) & ~robust.astype(bool)]
    except (OSError, SafetensorError, ValueError, TypeError, IndexError):
        return None  # what is wrong with the images is said where they would be shown
    far = far[np.isfinite(far)]
    return Distances(len(far), float(np.median(far)), float(far.max())) if len(far) else None
