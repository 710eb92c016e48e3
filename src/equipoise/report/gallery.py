"""Images that fooled a model and images that did not, from the tensors of an evaluation.

The images are not chosen by eye: of each verdict the first of every class in turn, in the order
of the data. Files are opened lazily and only the images that are shown are read.
"""

__all__ = ["Example", "Gallery", "gallery", "png"]

import base64
import json
import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from equipoise.report.results import CLEAN, Threat
from equipoise.report.runs_reader import Run
from equipoise.report.wording import threat_text

FOOLED, WITHSTOOD = 8, 4
_LARGE = 96  # pixels; above, fewer images are shown and they are not enlarged
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


@dataclass(frozen=True)
class Gallery:
    """The images of one run at one budget."""

    id: str
    threat: str
    attacks: tuple[str, ...]
    groups: tuple[tuple[str, int, tuple[Example, ...]], ...]
    total: int
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
    found: dict[Path, Threat] = {}
    try:
        for path in run.evaluations:
            with safe_open(str(path), framework="np") as file:
                found[path] = _threat(file.metadata() or {})
        if not found:
            return None
        path = max(found, key=lambda p: (found[p] == threat, found[p][1], p.name))
        with safe_open(str(path), framework="np") as file:
            return _gallery(file, found[path], run.classes, identity)
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        reason = f"{error}".splitlines()[0] if f"{error}" else type(error).__name__
        return f"The stored images could not be read ({reason}); evaluate the run again."


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


def _threat(metadata: Mapping[str, str]) -> Threat:
    return str(metadata["norm"]), round(float(metadata["eps"]), 9)


def _gallery(file: Any, threat: Threat, known: Sequence[str], identity: str) -> Gallery:
    metadata = file.metadata() or {}
    classes = json.loads(metadata.get("classes") or "[]") or list(known)
    y, correct = file.get_tensor("y"), file.get_tensor("correct").astype(bool)
    robust = file.get_tensor("robust").astype(bool)
    _, channels, height, width = file.get_slice("x").get_shape()
    share = 2 if max(height, width) > _LARGE else 1
    groups = [(correct & ~robust, FOOLED // share), (correct & robust, WITHSTOOD // share)]
    chosen = [_in_turn(y, mask, most) for mask, most in groups]
    scale = _scale(file, threat, [i for indices in chosen for i in indices])
    names = ("Fooled", "Withstood")
    return Gallery(
        id=identity,
        threat=threat_text(*threat),
        attacks=tuple(str(a) for a in json.loads(metadata.get("attacks") or "[]") if a != CLEAN),
        groups=tuple(
            (name, int(mask.sum()), tuple(_example(file, i, classes, scale) for i in indices))
            for name, (mask, _), indices in zip(names, groups, chosen, strict=True)
        ),
        total=len(y),
        scale=scale,
        signed=channels == 1,
        size=(width, height),
        pixelated=max(height, width) <= _LARGE,
    )


def _in_turn(y: NDArray[Any], mask: NDArray[np.bool_], most: int) -> list[int]:
    """Return the first of every class, then the second of every class, and so on."""
    where = np.flatnonzero(mask)
    turns: dict[int, int] = {}
    order: list[tuple[int, int, int]] = []
    for index in where:
        label = int(y[index])
        turns[label] = turns.get(label, -1) + 1
        order.append((turns[label], label, int(index)))
    return [index for _, _, index in sorted(order)[:most]]


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
