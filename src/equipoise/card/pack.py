"""The pack of a card: for each image a row of 96 bytes, for each successful attack its example.

A row has, little-endian: the number of the image (8 bytes), its checksum (32), its label (8), the
class that the model predicts for it (8), the position of the first attack that broke it, or -1
(8), and the checksum of its adversarial example, or zeros (32). The rows are those of a Merkle
tree: an excerpt with some rows, their examples and their paths to the root can be checked alone.
"""

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load, save

from equipoise.card import merkle
from equipoise.card.schema import CardEvaluation, CardThreat
from equipoise.errors import UserError, one_line

ROW = np.dtype(
    [
        *(("index", "<i8"), ("image", "V32"), ("label", "<i8"), ("prediction", "<i8")),
        *(("broken_by", "<i8"), ("example", "V32")),
    ]
)
NONE = bytes(32)
_PATHS = "paths"


@dataclass(frozen=True, eq=False)
class Pack:
    """Rows and examples of one evaluation, all of them or an excerpt.

    Arguments:
        rows: The rows, of type :data:`ROW`, with shape (K,).
        examples: The adversarial examples, with shape (M, ...), in the order of the rows that have
            one.
        paths: For an excerpt: the neighbours of each row on its way to the root, with shape
            (K, D, 32); None: these are all rows.
    """

    rows: NDArray[Any]
    examples: NDArray[np.float32]
    paths: NDArray[np.uint8] | None = None

    @classmethod
    def of(
        cls,
        images: Sequence[bytes],
        labels: NDArray[Any],
        predictions: NDArray[Any],
        broken_by: NDArray[Any],
        points: Sequence[bytes],
        examples: NDArray[np.float32],
    ) -> "Pack":
        """Return the pack of an evaluation of N images, M of which are broken.

        Arguments:
            images: The checksums of the images.
            labels: Their labels, with shape (N,).
            predictions: The model's classes for them.
            broken_by: The position of the first attack that broke each, or -1.
            points: The checksums of the M adversarial examples.
            examples: The adversarial examples, with shape (M, ...).
        """
        rows = np.zeros(len(labels), ROW)
        broken = broken_by >= 0
        rows["index"] = np.arange(len(labels))
        rows["image"] = np.frombuffer(b"".join(images), "V32")
        rows["label"], rows["prediction"], rows["broken_by"] = labels, predictions, broken_by
        rows["example"][broken] = np.frombuffer(b"".join(points), "V32")
        return cls(rows, examples)

    @property
    def broken(self) -> NDArray[np.bool_]:
        """Which rows have an example, with shape (K,)."""
        return np.asarray(self.rows["broken_by"] >= 0)

    @property
    def listed(self) -> list[bytes]:
        """The rows as bytes."""
        return [row.tobytes() for row in self.rows]

    def content(self) -> bytes:
        """Return the file of the pack; the same pack has the same bytes."""
        tensors: dict[str, NDArray[Any]] = {
            "rows": self.rows.view(np.uint8).reshape(-1, ROW.itemsize),
            "examples": np.ascontiguousarray(self.examples),
        }
        return bytes(save(tensors if self.paths is None else {**tensors, _PATHS: self.paths}))

    def drawn(self, count: int, nonce: str) -> "Pack":
        """Return the rows of ``count`` examples, drawn by a text; of all if there are fewer."""
        broken = self.broken.nonzero()[0].tolist()
        places = sorted(random.Random(nonce).sample(range(len(broken)), min(count, len(broken))))  # noqa: S311
        rows = [broken[place] for place in places]
        paths = None if self.paths is None else self.paths[rows]
        return Pack(self.rows[rows], self.examples[places], paths)

    def excerpt(self, count: int, nonce: str) -> "Pack":
        """Return the rows of ``count`` examples, drawn by a text, with their paths to the root."""
        part = self.drawn(count, nonce)
        levels, index = merkle.levels(self.listed), part.rows["index"].tolist()
        paths = np.zeros((len(index), len(levels) - 1, 32), np.uint8)
        for place, row in enumerate(index):
            for level, node in enumerate(merkle.path(levels, row)):
                paths[place, level] = np.frombuffer(node, np.uint8)
        return replace(part, paths=paths)

    def roots(self, count: int, head: bytes) -> set[bytes]:
        """Return the roots that follow from the rows; a sound pack has one.

        Arguments:
            count: The number of images of the evaluation.
            head: See :func:`head`.
        """
        if self.paths is None:
            trees = {merkle.root(self.listed)}
        else:
            given = zip(self.listed, self.rows["index"].tolist(), self.paths, strict=True)
            trees = {merkle.climb(row, i, count, [*map(bytes, path)]) for row, i, path in given}
        return {sha256(b"\2" + head + tree).digest() for tree in trees}


def head(
    name: str, threat: CardThreat, model_sha256: str, inputs_sha256: str, attacks: Sequence[str]
) -> bytes:
    """Return the checksum of what the rows are of: it is part of the root."""
    content = {
        "name": name,
        "threat": [threat.kind, threat.size, threat.unit, threat.low, threat.high],
        "model_sha256": model_sha256,
        "inputs_sha256": inputs_sha256,
        "attacks": [*attacks],
    }
    return sha256(json.dumps(content, sort_keys=True).encode()).digest()


def read(folder: Path, evaluation: CardEvaluation) -> tuple[Pack, str]:
    """Return the pack of an evaluation of a card, and the checksum of its file.

    Raises:
        UserError: If it is missing, or is no pack.
    """
    path = folder / evaluation.pack.file
    if not path.is_file():
        raise UserError(f"{path} is missing: a card needs the pack of each evaluation")
    try:
        with safe_open(path, "np"):  # reads the header alone: a file that is too long ends here
            content = path.read_bytes()
        tensors = load(content)
        rows, examples = tensors.pop("rows"), tensors.pop("examples")
        paths = tensors.pop(_PATHS, None)
        if tensors:
            raise ValueError("it holds other tensors, too")
        if rows.dtype != np.uint8 or rows.ndim != 2 or rows.shape[1] != ROW.itemsize:
            raise ValueError(f"its rows are {rows.dtype} {rows.shape}")
        if examples.dtype != np.float32 or examples.ndim < 2:
            raise ValueError(f"its examples are {examples.dtype} {examples.shape}")
        pack = Pack(rows.view(ROW)[:, 0], examples, paths)
        _refuse(pack, evaluation)
    except (SafetensorError, LookupError, ValueError, TypeError, OSError) as error:
        raise UserError(f"{path} is damaged or has missing pieces: {one_line(error)}") from None
    return pack, sha256(content).hexdigest()


def _refuse(pack: Pack, evaluation: CardEvaluation) -> None:
    """Raise a ValueError if the parts of a pack do not fit each other."""
    index, paths, n = pack.rows["index"], pack.paths, evaluation.data.n
    if not len(index) and evaluation.pack.examples:
        raise ValueError("it has no rows")
    if paths is None and len(index) != n:
        raise ValueError(f"it has {len(index)} rows for {n} images")
    if not all(0 <= i < n for i in index.tolist()):
        raise ValueError(f"its rows are not of {n} images")
    if paths is not None and (paths.dtype != np.uint8 or paths.shape[::2] != (len(index), 32)):
        raise ValueError("the paths of its rows do not fit")
    if len(pack.examples) != int(pack.broken.sum()):
        raise ValueError(f"it has {len(pack.examples)} examples for {pack.broken.sum()} images")
