"""Images that fooled a model and images that did not, from the tensors of an evaluation.

The images are not chosen by eye but by the rules of :mod:`equipoise.report.selection`. Files are
opened lazily and only the images that are shown are read.
"""

__all__ = ["LARGE", "Example", "Gallery", "Group", "gallery", "image_uri", "png"]

import base64
import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open

from equipoise.parsing import reason
from equipoise.report.evaluations_reader import Evaluation
from equipoise.report.results import Threat
from equipoise.report.runs_reader import Run
from equipoise.report.selection import attack_names, selections
from equipoise.report.wording import norm_text, threat_text
from equipoise.store.sealed import read_arrays
from equipoise.store.verdicts import UNREADABLE, read

LARGE = 96  # pixels; above, fewer images are shown and they are not enlarged
_KNOWN = {  # of each image
    *("y", "clean_prediction", "adversarial_prediction"),
    *("margin", "distance", "broken_by"),
}
_COLD, _PAPER, _WARM = (0, 92, 160), (246, 246, 244), (200, 70, 0)

Pixels = NDArray[np.float64]
Bytes = NDArray[np.uint8]


@dataclass(frozen=True)
class Example:
    """One image before and after an attack, as data URIs, with what the model made of it."""

    index: int
    truth: str
    before: str
    after: str
    clean: str
    noise: str
    adversarial: str
    note: str = ""


@dataclass(frozen=True)
class Group:
    """Images of one kind: how many there are, and by which rule these are shown."""

    name: str
    number: str
    rule: str
    extreme: bool
    examples: tuple[Example, ...]


@dataclass(frozen=True)
class Gallery:
    """The images of one run at one budget."""

    id: str
    threat: str
    norm: str
    attacks: tuple[str, ...]
    groups: tuple[Group, ...]
    finished: bool
    scale: float
    signed: bool
    size: tuple[int, int]
    pixelated: bool


def gallery(run: Run, threat: Threat | None, identity: str) -> Gallery | str | None:
    """Return the images of a run.

    Arguments:
        run: The run.
        threat: The budget that is wanted; without images of it, the largest one is shown.
        identity: The id of the gallery on its page.

    Returns:
        The gallery; one line saying why there is none; or None where no images were stored.
    """
    if not run.evaluations:
        return None
    best = max(run.evaluations, key=lambda evaluation: _rank(evaluation, threat))
    try:
        judged = read(best.path).verdicts
        known = {"correct": judged.correct, "robust": judged.robust}
        known |= read_arrays(best.path, lambda name: name in _KNOWN)[1]
        with safe_open(str(best.path), framework="np") as file:
            return _gallery(_Stored(best, known, file, best.classes or run.classes), identity)
    except UNREADABLE as error:
        return f"The stored images could not be read ({reason(error)}); evaluate the run again."


def _rank(evaluation: Evaluation, wanted: Threat | None) -> tuple[object, ...]:
    shown, attacked = evaluation.threat == wanted, bool(evaluation.attacks)
    finished, name = evaluation.finished, evaluation.name
    return attacked, shown, evaluation.threat[1], finished, evaluation.n, name


@dataclass(frozen=True)
class _Stored:
    """An evaluation, what is known of each of its images, and the open file of the images."""

    evaluation: Evaluation
    known: Mapping[str, NDArray[Any]]
    file: Any
    classes: Sequence[str]

    def image(self, name: str, index: int) -> Pixels:
        stored = np.asarray(self.file.get_slice(name)[index : index + 1])[0]
        pixels: Pixels = np.nan_to_num(stored.astype(np.float64))
        return pixels / 255 if stored.dtype == np.uint8 else pixels

    def difference(self, index: int) -> Pixels:
        return self.image("x_adv", index) - self.image("x", index)

    def label(self, key: str, index: int) -> str:
        label = int(self.known[key][index])
        return self.classes[label] if 0 <= label < len(self.classes) else f"class {label}"


def png(image: Bytes) -> bytes:
    """Return an image as a PNG file.

    Arguments:
        image: Grey values of shape (H, W), or colours of shape (H, W, 3).
    """
    height, width = image.shape[:2]
    rows = np.ascontiguousarray(image).reshape(height, -1)
    raw = np.insert(rows, 0, 0, axis=1).tobytes()  # each row starts with its filter: none
    header = struct.pack(">IIBBBBB", width, height, 8, 0 if image.ndim == 2 else 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(raw, 9)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )


def image_uri(pixels: NDArray[Any]) -> str:
    """Return an image as a data URI.

    Arguments:
        pixels: The image in [0, 1], with shape (C, H, W).
    """
    return _uri(_colours(np.nan_to_num(np.asarray(pixels, np.float64))))


def _gallery(stored: _Stored, identity: str) -> Gallery:
    evaluation = stored.evaluation
    _, channels, height, width = stored.file.get_slice("x").get_shape()
    chosen = selections(stored.known, 2 if max(height, width) > LARGE else 1)
    scale = _scale(stored, [i for kind in chosen for i in kind.indices])
    attacks = attack_names(evaluation.attacks)

    def examples(indices: Sequence[int]) -> tuple[Example, ...]:
        return tuple(_example(stored, index, attacks, scale) for index in indices)

    return Gallery(
        id=identity,
        threat=threat_text(*evaluation.threat),
        norm=norm_text(evaluation.threat[0]),
        attacks=attacks,
        groups=tuple(
            Group(c.name, c.number, c.rule, c.extreme, examples(c.indices)) for c in chosen
        ),
        finished=evaluation.finished,
        scale=scale,
        signed=channels == 1,
        size=(width, height),
        pixelated=max(height, width) <= LARGE,
    )


def _note(stored: _Stored, index: int, attacks: Sequence[str]) -> str:
    """Return what broke an image first, and how far and by how much."""
    margin, distance, by = (
        stored.known[key][index] for key in ("margin", "distance", "broken_by")
    )
    if margin == np.inf:
        return "no perturbed image was found"
    first = f"broken first by {attacks[int(by)]}; " if 0 <= by < len(attacks) else ""
    sign = f"{abs(margin):.3g}" if margin >= 0 else f"\u2212{abs(margin):.3g}"
    return f"{first}distance {distance:.3g}, margin {sign}"


def _scale(stored: _Stored, indices: Sequence[int]) -> float:
    """Return the factor that brings the largest change of a pixel to half the range."""
    norm, eps = stored.evaluation.threat
    largest = max((float(np.abs(stored.difference(i)).max()) for i in indices), default=0.0)
    reach = eps if norm == "linf" else largest
    return 0.5 / reach if reach > 0 else 1.0


def _example(stored: _Stored, index: int, attacks: Sequence[str], scale: float) -> Example:
    return Example(
        index=index,
        truth=stored.label("y", index),
        before=stored.label("clean_prediction", index),
        after=stored.label("adversarial_prediction", index),
        clean=_uri(_colours(stored.image("x", index))),
        noise=_uri(_noise(stored.difference(index) * scale)),
        adversarial=_uri(_colours(stored.image("x_adv", index))),
        note=_note(stored, index, attacks),
    )


def _colours(pixels: Pixels) -> Bytes:
    values: Bytes = np.rint(255 * np.clip(pixels, 0, 1)).astype(np.uint8)
    return values.transpose(1, 2, 0) if values.shape[0] == 3 else np.asarray(values[0])


def _noise(change: Pixels) -> Bytes:
    if change.shape[0] == 3:
        return _colours(change + 0.5)
    share = np.clip(2 * change[0], -1, 1)[..., None]
    paper, warm, cold = (np.asarray(c, np.float64) for c in (_PAPER, _WARM, _COLD))
    mixed = paper + np.abs(share) * (np.where(share > 0, warm, cold) - paper)
    return np.asarray(np.rint(mixed), np.uint8)


def _uri(image: Bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png(image)).decode("ascii")
