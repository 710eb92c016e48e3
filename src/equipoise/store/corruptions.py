"""Accuracy on corrupted images as it is stored: a predicted class for each image and corruption.

All its numbers are counted from these predictions. No torch is imported.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from equipoise.errors import UserError
from equipoise.measures.statistics import interval
from equipoise.parsing import reason
from equipoise.sample import Sample
from equipoise.store.sealed import read_arrays
from equipoise.store.verdicts import UNREADABLE
from equipoise.terminal.table import TextTable

FOLDER = "corruptions"
FORMAT = 1
NOT_DONE, NOT_FINITE = -1, -2  # in place of a predicted class
SHOWN = (1, 3, 5)  # severities of the example images
NOT = (
    "Corruptions are no attack: they are the same for every model, and nothing searches for the "
    "worst one. They never count in the robust accuracy."
)


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class Corruptions:
    """The predictions of a model on corrupted images.

    Arguments:
        strengths: The kinds of corruptions; of each the strengths at severities 1, 2, ...
        y: The labels, with shape (N,).
        clean_prediction: The predicted classes of the images themselves, with shape (N,).
        prediction: The predicted classes of the corrupted images, with shape (kinds, severities,
            N); :data:`NOT_DONE` where there is none yet, :data:`NOT_FINITE` where the output was
            not finite.
        image: The first image, ``uint8`` with shape (C, H, W).
        examples: The same image corrupted, of each kind at the severities :data:`SHOWN`, with
            shape (kinds, 3, C, H, W).
        classes: The names of the classes, or nothing.
        seed: The seed of the noise.
        about: Model, images and versions.
    """

    strengths: Mapping[str, Sequence[float]]
    y: NDArray[Any]
    clean_prediction: NDArray[Any]
    prediction: NDArray[Any]
    image: NDArray[np.uint8]
    examples: NDArray[np.uint8]
    classes: Sequence[str] = ()
    seed: int = 0
    about: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Raise a ValueError if types or shapes are wrong."""
        counts = {len(values) for values in self.strengths.values()}
        if len(counts) != 1 or min(counts) < max(SHOWN) or not len(self.y):
            raise ValueError("expected images, and corruptions of equally many severities")
        shape = (len(self.strengths), *counts, *self.y.shape)
        for part, wanted in (
            (self.y, shape[2:]),
            (self.clean_prediction, shape[2:]),
            (self.prediction, shape),
        ):
            if part.dtype != np.int64 or part.shape != wanted or part.ndim not in (1, 3):
                raise ValueError(f"expected whole numbers of shape {wanted}")
        if min(self.y.min(), self.clean_prediction.min(), self.prediction.min() + 2) < 0:
            raise ValueError("expected labels and classes from 0")
        pictures = len(self.strengths), len(SHOWN), *self.image.shape
        if self.image.shape[:1] not in ((1,), (3,)) or self.examples.shape != pictures:
            raise ValueError("expected example images")
        if {self.image.dtype, self.examples.dtype} != {np.dtype(np.uint8)} or not self.image.size:
            raise ValueError("expected example images as bytes")

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of corruptions."""
        return tuple(self.strengths)

    @property
    def severities(self) -> range:
        """The severities, from 1."""
        return range(1, self.prediction.shape[1] + 1)

    @property
    def n(self) -> int:
        """The number of images."""
        return len(self.y)

    @property
    def done(self) -> NDArray[np.bool_]:
        """Which corruptions are measured, with shape (kinds, severities)."""
        return np.asarray((self.prediction != NOT_DONE).all(2))

    @property
    def finished(self) -> bool:
        """Whether all corruptions are measured."""
        return bool(self.done.all())

    @property
    def clean(self) -> int:
        """The number of images that are classified correctly without a corruption."""
        return int((self.clean_prediction == self.y).sum())

    @property
    def correct(self) -> NDArray[Any]:
        """How many images are classified correctly, with shape (kinds, severities)."""
        return np.asarray((self.prediction == self.y).sum(2))

    @property
    def accuracy(self) -> NDArray[np.float64]:
        """The accuracies, with shape (kinds, severities); NaN where it is not measured yet."""
        return np.where(self.done, self.correct / self.n, np.nan)

    @property
    def by_kind(self) -> dict[str, float]:
        """The mean accuracy of each kind over its severities; NaN if some are missing."""
        return dict(zip(self.kinds, self.accuracy.mean(1).tolist(), strict=True))

    @property
    def by_severity(self) -> list[float]:
        """The mean accuracy at each severity over the kinds; NaN if some are missing."""
        return [float(value) for value in self.accuracy.mean(0)]

    @property
    def mean(self) -> float:
        """The mean accuracy over all kinds and severities; NaN if some are missing."""
        return float(self.accuracy.mean())

    @property
    def weights(self) -> str:
        """The name of the weights."""
        return str(self.about.get("weights") or "model")

    @property
    def images(self) -> str:
        """The images in words."""
        sample = self.about.get("sample")
        return Sample.of_content(sample).words("test images") if sample else f"{self.n:,} images"

    @property
    def sentence(self) -> str:
        """The result in a sentence."""
        if not self.finished:
            return f"{int(self.done.sum())} of {self.done.size} corruptions are measured"
        return (
            f"mean accuracy {self.mean:.2%} over {self.done.size} corruptions "
            f"({self.clean / self.n:.2%} without)"
        )

    def __repr__(self) -> str:
        return self.shown().text()

    def _repr_html_(self) -> str:
        return self.shown().html()

    def shown(self) -> TextTable:
        """Return the accuracies as a table: a row for each kind."""
        rows = [
            (kind, *map(_percent, (*values, self.by_kind[kind])))
            for kind, values in zip(self.kinds, self.accuracy.tolist(), strict=True)
        ]
        rows.append(("mean", *map(_percent, (*self.by_severity, self.mean))))
        header = ("corruption", *(f"severity {s}" for s in self.severities), "mean")
        notes = [f"Without a corruption {self.clean / self.n:.2%} are classified correctly."]
        notes += [] if self.finished else [f"Not finished: {self.sentence}."]
        return TextTable(f"Corruptions: accuracy, {self.images}", header, rows, [*notes, NOT])

    def content(self) -> dict[str, Any]:
        """Return the result as plain values; accuracies that are not measured are None."""
        rows = [
            {
                "corruption": kind,
                "severity": severity,
                "strength": self.strengths[kind][severity - 1],
                "correct": int(self.correct[k, severity - 1]),
                "accuracy": float(self.accuracy[k, severity - 1]),
                "interval": list(interval(int(self.correct[k, severity - 1]), self.n)),
            }
            for k, kind in enumerate(self.kinds)
            for severity in self.severities
            if self.done[k, severity - 1]
        ]
        return {
            "format": FORMAT,
            **self.about,
            "n": self.n,
            "finished": self.finished,
            "clean_accuracy": self.clean / self.n,
            "mean": _or_none(self.mean),
            "by_corruption": {kind: _or_none(value) for kind, value in self.by_kind.items()},
            "corruptions": rows,
            "seed": self.seed,
        }

    # The file

    @property
    def arrays(self) -> dict[str, NDArray[Any]]:
        """The arrays of the file."""
        return {name: np.ascontiguousarray(getattr(self, name)) for name in _ARRAYS}

    @property
    def metadata(self) -> dict[str, str]:
        """The metadata of the file, without its checksums."""
        said = {"strengths": {kind: list(values) for kind, values in self.strengths.items()}}
        said |= {name: getattr(self, name) for name in ("classes", "seed", "finished")}
        return {"format": str(FORMAT), "corruptions": json.dumps({**said, "about": self.about})}

    @classmethod
    def read(cls, path: Path) -> "Corruptions":
        """Return a stored result.

        Raises:
            UserError: If it cannot be read.
        """
        try:
            metadata, arrays = read_arrays(path)
            if metadata["format"] != str(FORMAT):
                raise ValueError(f"expected format {FORMAT}, got {metadata['format']}")
            said = json.loads(metadata["corruptions"])
            Sample.of_content(said["about"]["sample"])
            return cls(
                **{name: arrays[name] for name in _ARRAYS},
                strengths={str(k): tuple(map(float, v)) for k, v in said["strengths"].items()},
                classes=tuple(map(str, said["classes"])),
                seed=int(said["seed"]),
                about=dict(said["about"]),
            )
        except UNREADABLE as error:
            why = reason(error)
            raise UserError(f"{path} is damaged ({why}); remove it and measure again") from None


_ARRAYS = ("y", "clean_prediction", "prediction", "image", "examples")


def files(folder: Path) -> list[Path]:
    """Return the files of a run folder with results on corrupted images, by name."""
    return sorted((folder / FOLDER).glob("*.safetensors"))


def file_name(sample: Sample, which: str) -> str:
    """Return the name of the file for a sample and the name of the weights."""
    ending = "" if which == "model" else f"-{which}"
    return f"n{sample.n}-{sample.short}{ending}.safetensors"


def _percent(share: float) -> str:
    return "–" if np.isnan(share) else f"{share:.2%}"


def _or_none(share: float) -> float | None:
    return None if np.isnan(share) else share
