"""MNIST and Fashion-MNIST: four idx files, plain or gzipped.

An idx file is big-endian: two zero bytes, the type (8: unsigned byte), the number of dimensions,
each dimension as a 32-bit integer, then the values in C order. Checksums are of the *uncompressed*
content: those of the ``.gz`` files depend on the gzip header, which mirrors rewrite.

References: Y. LeCun et al., Gradient-based learning applied to document recognition, 1998;
H. Xiao et al., Fashion-MNIST, arXiv:1708.07747.
"""

__all__ = ["FASHION_MNIST", "MNIST", "Idx", "parse_idx"]

import gzip
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np
import torch

from equipoise.data.core import Dataset, Images, digest, verified
from equipoise.errors import UserError

Bytes = np.ndarray[tuple[int, ...], np.dtype[np.uint8]]

LARGEST = 64 << 20  # bytes of a file, uncompressed; the largest real one has 47 MB


@dataclass(frozen=True, kw_only=True)
class Idx:
    """A data set in four idx files.

    Arguments:
        name: The name by which the set is loaded.
        title: The name for people.
        checksums: File name (without ``.gz``) to the checksum of the uncompressed content; in the
            order training images, training labels, test images, test labels.
        classes: The names of the classes.
        mean: Mean of the training pixels.
        std: Their standard deviation.
        eps: The customary Linf radius.
    """

    name: str
    title: str
    checksums: Mapping[str, str]
    classes: tuple[str, ...]
    mean: float
    std: float
    eps: float

    def missing(self, place: Path) -> list[str]:
        """Return the files that ``place`` lacks."""
        return [file for file in self.checksums if _path(place, file) is None]

    def read(self, place: Path, unverified: bool = False) -> Dataset:
        """Return the set from the folder ``place``.

        Raises:
            UserError: If a file is missing, malformed or not the published one.
        """
        known, arrays = zip(
            *(self._array(place, file, unverified) for file in self.checksums), strict=True
        )
        train_x, train_y, test_x, test_y = arrays
        train = self._images(train_x, train_y, f"the training files in {place}")
        test = self._images(test_x, test_y, f"the test files in {place}")
        state = (
            f"{self.title}, all files verified by SHA-256, from {place}"
            if all(known)
            else f"unverified copy of {self.title} ({known.count(False)} of {len(known)} files "
            f"have an unknown checksum), from {place}"
        )
        return Dataset(
            name=self.name,
            train=train,
            test=test,
            classes=self.classes,
            mean=(self.mean,),
            std=(self.std,),
            eps=self.eps,
            source=state,
        )

    def _array(self, place: Path, file: str, unverified: bool) -> tuple[bool, Bytes]:
        path = _path(place, file)
        if path is None:
            raise UserError(f"{place} lacks {file} (or {file}.gz) of {self.name}")
        content = _content(path, self.name)
        for other in (MNIST, FASHION_MNIST):
            mine = other.checksums[file] == self.checksums[file]
            if not mine and _is(content, other.checksums[file]):
                raise UserError(f"{path} is a file of {other.name}, not of {self.name}")
        known = verified(content, self.checksums[file], str(path), self.name, unverified)
        return known, parse_idx(content, str(path))

    def _images(self, x: Bytes, y: Bytes, what: str) -> Images:
        if x.ndim != 3 or y.ndim != 1 or len(x) != len(y) or not len(x):
            raise UserError(
                f"{what}: expected images (N, H, W) and as many labels (N,), "
                f"got {x.shape} and {y.shape}"
            )
        if y.max() >= len(self.classes):
            raise UserError(
                f"{what}: labels must lie in 0..{len(self.classes) - 1}, got {y.max()}"
            )
        return Images(torch.from_numpy(x[:, None]), torch.from_numpy(y.astype(np.int64)))


def parse_idx(content: bytes, what: str) -> Bytes:
    """Return the array in an uncompressed idx file of unsigned bytes.

    Arguments:
        content: The bytes of the file.
        what: The name of the file, for messages.

    Raises:
        UserError: If the magic number is wrong or the length is not what the header says.
    """
    if len(content) < 4 or content[:3] != b"\0\0\x08" or not 1 <= content[3] <= 4:
        raise UserError(
            f"{what} is not an idx file of bytes: it starts with "
            f"{content[:4].hex() or 'nothing'}, expected 000008 and "
            "the number of dimensions (1 to 4)"
        )
    start = 4 + 4 * content[3]
    if len(content) < start:
        raise UserError(f"{what} is cut short: it ends within its header")
    shape = struct.unpack(f">{content[3]}I", content[4:start])
    if len(content) - start != prod(shape):
        raise UserError(
            f"{what} is cut short or has a tail: its header announces {prod(shape)} bytes "
            f"{shape}, it has {len(content) - start}"
        )
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape).copy()


def _path(place: Path, file: str) -> Path | None:
    found = (path for path in (place / file, place / f"{file}.gz") if path.is_file())
    return next(found, None)


def _content(path: Path, name: str) -> bytes:
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            content: bytes = file.read(LARGEST + 1)
            if len(content) > LARGEST:
                raise UserError(
                    f"{path} is no file of {name}: it holds more than {LARGEST} bytes; delete it "
                    f"and run `equipoise data get {name} --yes`"
                )
            return content
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(
            f"{path} is cut short or no gzip file ({error}); delete it and run "
            f"`equipoise data get {name} --yes`"
        ) from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error


def _is(content: bytes, checksum: str) -> bool:
    algorithm, _, expected = checksum.partition(":")
    return digest([content], algorithm) == expected


MNIST = Idx(
    name="mnist",
    title="MNIST",
    checksums={
        "train-images-idx3-ubyte": (
            "sha256:ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db"
        ),
        "train-labels-idx1-ubyte": (
            "sha256:65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5"
        ),
        "t10k-images-idx3-ubyte": (
            "sha256:0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7"
        ),
        "t10k-labels-idx1-ubyte": (
            "sha256:ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2"
        ),
    },
    classes=tuple("0123456789"),
    mean=0.1307,
    std=0.3081,
    eps=0.3,
)

FASHION_MNIST = Idx(
    name="fashion-mnist",
    title="Fashion-MNIST",
    checksums={
        "train-images-idx3-ubyte": (
            "sha256:c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888"
        ),
        "train-labels-idx1-ubyte": (
            "sha256:bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9"
        ),
        "t10k-images-idx3-ubyte": (
            "sha256:5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b"
        ),
        "t10k-labels-idx1-ubyte": (
            "sha256:0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34"
        ),
    },
    classes=(
        "T-shirt/top",
        "trouser",
        "pullover",
        "dress",
        "coat",
        "sandal",
        "shirt",
        "sneaker",
        "bag",
        "ankle boot",
    ),
    mean=0.2860,
    std=0.3530,
    eps=0.1,
)
