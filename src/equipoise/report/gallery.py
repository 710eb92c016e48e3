"""Images that fooled a model and images that did not, from the tensors of an evaluation.

The images are not chosen by eye but by the rules of :mod:`equipoise.report.selection`. Files are
opened lazily and only the images that are shown are read.
"""

__all__ = ["LARGE", "Example", "Gallery", "Group", "gallery", "image_uri", "png"]

import base64
import json
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from equipoise.report.reading import reason
from equipoise.report.records_reader import told
from equipoise.report.results import CLEAN, Threat
from equipoise.report.runs_reader import Run
from equipoise.report.selection import attack_names, selections
from equipoise.report.wording import norm_text, threat_text

LARGE = 96  # pixels; above, fewer images are shown and they are not enlarged
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
    measured: bool
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
    try:
        found = [_Stored.read(path) for path in run.examples]
        weights = told({stored.weights for stored in found})
        found = [stored for stored in found if stored.weights == weights]
        if not found:
            return None
        best = max(found, key=lambda stored: stored.rank(threat))
        with safe_open(str(best.path), framework="np") as file:
            return _gallery(file, best, run.classes, identity)
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        return f"The stored images could not be read ({reason(error)}); evaluate the run again."


@dataclass(frozen=True)
class _Stored:
    """A file of images: its budget, how many they are, of which weights, and whether whole."""

    path: Path
    threat: Threat
    n: int
    weights: str
    finished: bool

    @classmethod
    def read(cls, path: Path) -> "_Stored":
        with safe_open(str(path), framework="np") as file:
            metadata = file.metadata() or {}
            n = int(file.get_slice("y").get_shape()[0])
        about = json.loads(metadata.get("about") or "{}")
        threat = str(metadata["norm"]), round(float(metadata["eps"]), 9)
        weights, finished = about.get("weights") or "model", bool(about.get("finished", True))
        return cls(path, threat, n, weights, finished)

    def rank(self, wanted: Threat | None) -> tuple[object, ...]:
        shown = self.threat == wanted
        return shown, self.threat[1], self.finished, self.n, self.path.name


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


def _gallery(file: Any, stored: _Stored, known: Sequence[str], identity: str) -> Gallery:
    metadata = file.metadata() or {}
    classes = json.loads(metadata.get("classes") or "[]") or list(known)
    _, channels, height, width = file.get_slice("x").get_shape()
    chosen = selections(file, 2 if max(height, width) > LARGE else 1)
    scale = _scale(file, stored.threat, [i for kind in chosen for i in kind.indices])
    outcomes = attack_names([*json.loads(metadata.get("outcomes") or "{}")])
    attacks = outcomes or json.loads(metadata.get("attacks") or "[]")

    def examples(indices: Sequence[int]) -> tuple[Example, ...]:
        notes = [_note(file, index, outcomes) for index in indices]
        return tuple(
            replace(_example(file, index, classes, scale), note=note)
            for index, note in zip(indices, notes, strict=True)
        )

    return Gallery(
        id=identity,
        threat=threat_text(*stored.threat),
        norm=norm_text(stored.threat[0]),
        attacks=tuple(str(a) for a in attacks if a != CLEAN),
        groups=tuple(
            Group(c.name, c.number, c.rule, c.extreme, examples(c.indices)) for c in chosen
        ),
        finished=stored.finished,
        measured="margin" in file.keys(),  # noqa: SIM118 - not a mapping
        scale=scale,
        signed=channels == 1,
        size=(width, height),
        pixelated=max(height, width) <= LARGE,
    )


def _note(file: Any, index: int, attacks: Sequence[str]) -> str:
    """Return what broke an image first, and how far and by how much; nothing in old files."""
    if not {"margin", "distance", "broken_by"} <= set(file.keys()):
        return ""
    margin, distance, by = (
        file.get_slice(key)[index : index + 1][0] for key in ("margin", "distance", "broken_by")
    )
    if margin == np.inf:
        return "no perturbed image was found"
    first = f"broken first by {attacks[int(by)]}; " if 0 <= by < len(attacks) else ""
    sign = f"{abs(margin):.3g}" if margin >= 0 else f"\u2212{abs(margin):.3g}"
    return f"{first}distance {distance:.3g}, margin {sign}"


def _image(file: Any, name: str, index: int) -> Pixels:
    stored = np.asarray(file.get_slice(name)[index : index + 1])[0]
    pixels: Pixels = np.nan_to_num(stored.astype(np.float64))
    return pixels / 255 if stored.dtype == np.uint8 else pixels


def _difference(file: Any, index: int) -> Pixels:
    return _image(file, "x_adv", index) - _image(file, "x", index)


def _scale(file: Any, threat: Threat, indices: Sequence[int]) -> float:
    """Return the factor that brings the largest change of a pixel to half the range."""
    norm, eps = threat
    largest = max((float(np.abs(_difference(file, i)).max()) for i in indices), default=0.0)
    reach = eps if norm == "linf" else largest
    return 0.5 / reach if reach > 0 else 1.0


def _example(file: Any, index: int, classes: Sequence[object], scale: float) -> Example:
    def name(key: str) -> str:
        label = int(file.get_slice(key)[index : index + 1][0])
        return str(classes[label]) if 0 <= label < len(classes) else f"class {label}"

    return Example(
        index=index,
        truth=name("y"),
        before=name("clean_prediction"),
        after=name("adversarial_prediction"),
        clean=_uri(_colours(_image(file, "x", index))),
        noise=_uri(_noise(_difference(file, index) * scale)),
        adversarial=_uri(_colours(_image(file, "x_adv", index))),
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
