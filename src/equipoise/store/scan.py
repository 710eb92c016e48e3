"""A scan as it is stored: for each image the smallest radius found at which it is lost.

All its numbers are counted from these radii and from the clean predictions. No torch is imported.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import ROUND_CEILING, Context
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from equipoise.errors import UserError
from equipoise.parsing import reason
from equipoise.sample import Sample
from equipoise.store.finding import Finding
from equipoise.store.records import BALANCED, RESULT_COLUMNS, Record
from equipoise.store.sealed import read_arrays
from equipoise.store.verdicts import UNREADABLE
from equipoise.terminal.table import TextTable, accuracy

FILE, PAGE = "scan.safetensors", "scan.html"
FORMAT = 1
FEWEST = 3  # correct images of a class; of fewer, its accuracy under attack says nothing
WORST = 3  # classes
_COUNTED = ("y", "clean_prediction", "size", "quick", "blind")


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class Scan:
    """How soon the correct images of a sample are lost: an upper bound of the robust accuracy.

    Arguments:
        norm: The norm of the perturbations.
        eps: The radius that the scan is about.
        radii: The radii at which images were attacked, from small to large.
        y: The labels, with shape (N,).
        prediction: The predicted classes of the clean images, with shape (N,).
        size: The smallest radius found at which each image is misclassified, float64 with shape
            (N,): 0 where the clean image is; infinite where none was found.
        quick: Which images the first short attack fooled, with shape (N,).
        blind: Which images only the search without gradients fooled at ``eps``, with shape (N,).
        classes: The names of the classes, by label, or nothing.
        findings: The findings of the checks.
        seed: The seed of the attacks.
        finished: Whether all attacks and checks were run.
        seconds: The time it took.
        about: Model, images and command.
    """

    norm: str
    eps: float
    radii: tuple[float, ...]
    y: NDArray[Any]
    prediction: NDArray[Any]
    size: NDArray[np.float64]
    quick: NDArray[np.bool_]
    blind: NDArray[np.bool_]
    classes: Sequence[str] = ()
    findings: Sequence[Finding] = ()
    seed: int = 0
    finished: bool = True
    seconds: float = 0.0
    about: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        """Raise a ValueError if labels or shapes are wrong."""
        parts = (self.prediction, self.size, self.quick, self.blind)
        if self.y.ndim != 1 or not len(self.y) or any(p.shape != self.y.shape for p in parts):
            raise ValueError("expected a value for each image")
        if self.y.dtype.kind != "i" or not 0 <= self.y.min() <= self.y.max() < 10**6:
            raise ValueError(f"expected whole numbers from 0 as labels, got {self.y.dtype}")
        if self.classes and int(self.y.max()) >= len(self.classes):
            raise ValueError(f"there are {len(self.classes)} classes, and a larger label")
        if self.eps not in self.radii or self.size.dtype.kind != "f":
            raise ValueError("expected its radius among the radii")

    @property
    def n(self) -> int:
        """The number of images."""
        return len(self.y)

    @property
    def correct(self) -> NDArray[np.bool_]:
        """Which clean images are classified correctly, with shape (N,)."""
        return np.asarray(self.prediction == self.y)

    @property
    def clean_accuracy(self) -> float:
        """The share of clean images that are classified correctly."""
        return float(self.correct.mean())

    @property
    def robust_accuracy(self) -> float:
        """The share of images for which no adversarial example was found at ``eps``."""
        return self.accuracy(self.eps)

    def left(self, eps: float) -> NDArray[np.bool_]:
        """Return which correct images were not lost at a radius, with shape (N,)."""
        return np.asarray(self.correct & (self.size > eps))

    def accuracy(self, eps: float) -> float:
        """Return the share of images that were not lost at a radius: it never grows with it."""
        return float(self.left(eps).mean())

    @property
    def half_lost(self) -> float | None:
        """The smallest radius found at which half of the correct images are lost.

        It is one of the images' own radii, not interpolated, and an upper bound: other attacks
        may need less. None: fewer than half were lost at all radii.
        """
        sizes = np.sort(self.size[self.correct])
        half = sizes[(len(sizes) + 1) // 2 - 1] if len(sizes) else np.inf
        return float(half) if np.isfinite(half) else None

    @property
    def failed(self) -> list[str]:
        """The checks that failed; if there are any, the numbers cannot be trusted."""
        return [finding.check for finding in self.findings if finding.status == "failed"]

    @property
    def records(self) -> dict[float, Record]:
        """The results by radius, that of the clean images at 0."""
        return {
            eps: Record(
                attack="scan" if eps else "clean",
                norm=self.norm,
                eps=eps,
                verdict=self.left(eps) if eps else self.correct,
                y=self.y,
                classes=self.classes,
                seed=self.seed,
            )
            for eps in (0.0, *self.radii)
        }

    @property
    def unequal(self) -> bool:
        """Whether the classes differ in size."""
        return self.records[0.0].unequal

    @property
    def worst_classes(self) -> list[tuple[str, int, int]]:
        """The classes of which most is lost at ``eps``: name, correct images, images left."""
        before, after = self.records[0.0].counts, self.records[self.eps].counts
        rows = [(name, before[name][1], after[name][1]) for name in before]
        rows = [row for row in rows if row[1] >= FEWEST]
        return sorted(rows, key=lambda row: (row[2] / row[1], -row[1]))[:WORST]

    @property
    def sample(self) -> Sample | None:
        """Which images they are; None if that is not known."""
        content = (self.about or {}).get("sample")
        return Sample.of_content(content) if content else None

    def __repr__(self) -> str:
        return self.shown().text()

    def _repr_html_(self) -> str:
        return self.shown().html()

    def shown(self) -> TextTable:
        """Return the scan as a table: a row for each radius."""
        more = RESULT_COLUMNS if self.unequal else []
        columns = [column for column in more if column.name in (BALANCED, "worst_class")]
        rows = [
            (
                f"{eps:.4g}" if eps else "clean",
                *accuracy(record.robust, self.n)[:2],
                *(column.text(record.content()) for column in columns),
                f"{record.robust} of {self.n}",
            )
            for eps, record in self.records.items()
        ]
        heads = (column.title for column in columns)
        header = ("eps", "accuracy", "95 % interval", *heads, "images")
        title = f"Scan: {self.norm}, {self.images}"
        return TextTable(title, header, rows, tuple(self.notes))

    @property
    def images(self) -> str:
        """The images in words."""
        return self.sample.words("test images") if self.sample else f"{self.n:,} images"

    @property
    def half_in_words(self) -> str:
        """A sentence: by which radius half of the correct images are lost."""
        if not self.correct.any():
            return "No image is classified correctly."
        if self.half_lost is None:
            return f"At eps = {self.radii[-1]:.4g} fewer than half of the images are lost."
        radius = float(Context(3, ROUND_CEILING).create_decimal(f"{self.half_lost:.6g}"))
        return f"Half of the correct images are lost at eps = {radius:.3g} at the latest."

    @property
    def notes(self) -> list[str]:
        """What the numbers do not show by themselves, a sentence each."""
        notes = [self.half_in_words]
        worst = (f"{name} ({after} of {before})" for name, before, after in self.worst_classes)
        if listed := ", ".join(worst):
            notes.append(f"Worst classes, images left at eps = {self.eps:.4g}: {listed}.")
        notes += [
            f"{finding.status}: {finding.check}: {finding.message}; {finding.remedy}"
            for status in ("failed", "warning")
            for finding in self.findings
            if finding.status == status
        ]
        if not self.finished:
            notes.append("Not finished: not every attack and check was run.")
        notes.append(
            "A scan is not AutoAttack, and no guarantee: every accuracy is an upper bound."
        )
        if verdict := (self.about or {}).get("verdict"):
            notes.append(f"The full verdict, with a bound: {verdict}")
        return notes

    def content(self) -> dict[str, Any]:
        """Return the scan as plain values."""
        rows = [
            {
                "eps": eps,
                "correct": record.robust,
                "accuracy": record.accuracy,
                "interval": list(record.interval),
            }
            for eps, record in self.records.items()
        ]
        worst = [
            {"name": name, "correct": before, "left": after}
            for name, before, after in self.worst_classes
        ]
        return {
            "format": FORMAT,
            **(self.about or {}),
            "norm": self.norm,
            "eps": self.eps,
            "n": self.n,
            "radii": rows,
            "half_lost": self.half_lost,
            "worst_classes": worst,
            "failed": self.failed,
            "findings": [finding.record() for finding in self.findings],
            "seed": self.seed,
            "finished": self.finished,
            "seconds": self.seconds,
        }

    @classmethod
    def read(cls, path: Path) -> "Scan":
        """Return a stored scan.

        Raises:
            UserError: If it cannot be read.
        """
        try:
            metadata, arrays = read_arrays(path, lambda name: name in _COUNTED)
            said = json.loads(metadata["scan"])
            return cls(
                norm=str(said["norm"]),
                eps=float(said["eps"]),
                radii=tuple(map(float, said["radii"])),
                y=arrays["y"],
                prediction=arrays["clean_prediction"],
                size=arrays["size"],
                quick=arrays["quick"],
                blind=arrays["blind"],
                classes=tuple(said["classes"]),
                findings=tuple(map(Finding.of, said["findings"])),
                seed=int(said["seed"]),
                finished=bool(said["finished"]),
                seconds=float(said["seconds"]),
                about=dict(said["about"]),
            )
        except UNREADABLE as error:
            why = reason(error)
            raise UserError(f"{path} is damaged ({why}); remove it and scan again") from None
