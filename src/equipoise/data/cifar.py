"""CIFAR-10: the binary form, the Python form, as folders or as the archives themselves.

Binary: records of 1 label byte and 3,072 pixel bytes (red, green, blue, each 32 x 32 by rows).
Python: one pickle of a dictionary a batch. A pickle can run code, so the reader's unpickler knows
the few names that rebuild a NumPy array and refuses every other one, verified file or not.
Archives are read member by member; nothing is written to disk. Checksums are of the members, so an
archive that was packed again is accepted too.

Reference: A. Krizhevsky, Learning multiple layers of features from tiny images, 2009.
"""

__all__ = [
    "BINARY",
    "CLASSES",
    "PYTHON",
    "Form",
    "missing",
    "parse_binary",
    "parse_python",
    "read",
]

import io
import pickle
import tarfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from equipoise.data.core import Dataset, Images, verified
from equipoise.errors import UserError

Bytes = np.ndarray[tuple[int, ...], np.dtype[np.uint8]]

CLASSES = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)
EPS = 8 / 255
PIXELS = 3 * 32 * 32
ARCHIVE = 256 << 20  # bytes of all members; those of the real one have 185 MB
LARGEST = 64 << 20  # bytes of a member; the largest real one has 31 MB


@dataclass(frozen=True)
class Form:
    """One of the forms in which the set is published.

    Arguments:
        title: The name of the form.
        folder: The folder in the archive.
        archive: The name of the archive.
        files: The batches, training first and the test batch last, with their checksums.
        parse: From the bytes of a batch and its name to (N, 3072) pixels and (N,) labels.
    """

    title: str
    folder: str
    archive: str
    files: Mapping[str, str]
    parse: Callable[[bytes, str], tuple[Bytes, Bytes]]

    @property
    def checked(self) -> str:
        """Return by what the batches are known: no SHA-256 of them was published."""
        kind = next(iter(self.files.values())).partition(":")[0]
        return {"sha1": "SHA-1", "md5": "MD5"}[kind]


def missing(place: Path) -> list[str]:
    """Return what ``place`` lacks: nothing, some batches, or an archive."""
    if _find(place) is not None:
        return []
    for form in (BINARY, PYTHON):
        for folder in (place / form.folder, place):
            lacking = [file for file in form.files if not (folder / file).is_file()]
            if len(lacking) < len(form.files):
                return lacking
    return [BINARY.archive]


def read(place: Path, unverified: bool = False) -> Dataset:
    """Return the set from ``place``.

    Arguments:
        place: A folder with an official folder or archive in it, such a folder, or an archive.
        unverified: Whether to accept batches with an unknown checksum.

    Raises:
        UserError: If a batch is missing, malformed or not the published one.
    """
    found = _find(place)
    if found is None:
        raise UserError(f"{place} lacks {', '.join(missing(place))} of cifar10")
    form, container = found
    contents = _contents(form, container)
    known, parts = [], []
    for file, checksum in form.files.items():
        what = f"{container / file}"
        known.append(verified(contents[file], checksum, what, "cifar10", unverified))
        parts.append(_images(*form.parse(contents.pop(file), what), what))
    train = Images(torch.cat([p.x for p in parts[:-1]]), torch.cat([p.y for p in parts[:-1]]))
    test = parts[-1]
    state = (
        f"CIFAR-10 ({form.title} form), all batches verified by {form.checked}, from {container}"
        if all(known)
        else f"unverified copy of CIFAR-10 ({form.title} form; {known.count(False)} of "
        f"{len(known)} files have an unknown checksum), from {container}"
    )
    return Dataset(
        name="cifar10",
        train=train,
        test=test,
        classes=CLASSES,
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.2470, 0.2435, 0.2616),
        eps=EPS,
        pad=4,
        flip=True,
        source=state,
    )


def parse_binary(content: bytes, what: str) -> tuple[Bytes, Bytes]:
    """Return pixels (N, 3072) and labels (N,) of a binary batch."""
    if not content or len(content) % (1 + PIXELS):
        raise UserError(
            f"{what} is cut short or no CIFAR-10 batch: expected a multiple of "
            f"{1 + PIXELS} bytes, got {len(content)}"
        )
    records = np.frombuffer(content, np.uint8).reshape(-1, 1 + PIXELS)
    return records[:, 1:], records[:, 0]


def parse_python(content: bytes, what: str) -> tuple[Bytes, Bytes]:
    """Return pixels (N, 3072) and labels (N,) of a pickled batch.

    Raises:
        UserError: If the pickle asks for anything but a NumPy array, or is no batch.
    """
    try:
        batch = _Unpickler(io.BytesIO(content), encoding="bytes").load()
    except Exception as error:  # a malformed pickle can raise nearly anything
        raise UserError(f"{what} is not a CIFAR-10 batch: {error}") from error
    try:
        x, y = batch[b"data"], np.asarray(batch[b"labels"])
    except (TypeError, KeyError, ValueError) as error:
        raise UserError(f"{what} is not a CIFAR-10 batch: no data and labels in it") from error
    if not isinstance(x, np.ndarray) or x.dtype != np.uint8 or x.shape != (len(x), PIXELS):
        raise UserError(f"{what} is not a CIFAR-10 batch: data must be uint8 (N, {PIXELS})")
    if y.dtype.kind != "i" or y.ndim != 1 or ((y < 0) | (y > 255)).any():
        raise UserError(f"{what} is not a CIFAR-10 batch: labels must be small integers")
    return x, y.astype(np.uint8)


class _Unpickler(pickle.Unpickler):
    """An unpickler that can rebuild NumPy arrays and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("_codecs", "encode"):
            return _encode
        rebuilds = module in {"numpy.core.multiarray", "numpy._core.multiarray"}
        if rebuilds and name == "_reconstruct":
            return np.ndarray.__reduce__(np.zeros(1, np.uint8))[0]
        if module == "numpy" and name in {"ndarray", "dtype"}:
            return getattr(np, name)
        raise UserError(f"its pickle asks for {module}.{name}, which is refused")


def _encode(text: str, encoding: str) -> bytes:
    """How Python 3 writes bytes in a pickle of protocol 2."""
    if encoding != "latin1":
        raise UserError(f"its pickle asks for the encoding {encoding!r}, which is refused")
    return text.encode("latin1")


def _find(place: Path) -> tuple[Form, Path] | None:
    for form in (BINARY, PYTHON):
        for folder in (place / form.folder, place):
            if all((folder / file).is_file() for file in form.files):
                return form, folder
        for archive in (place / form.archive, place):
            if archive.name == form.archive and archive.is_file():
                return form, archive
    return None


def _contents(form: Form, container: Path) -> dict[str, bytes]:
    try:
        if container.is_dir():
            return {file: _read(container / file) for file in form.files}
        contents = _members(form, container)
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise UserError(
            f"{container} is cut short or no archive ({error}); delete it and run "
            "`equipoise data get cifar10 --yes`"
        ) from error
    except OSError as error:
        raise UserError(f"cannot read {container}: {error}") from error
    if lacking := [file for file in form.files if file not in contents]:
        raise UserError(f"{container} lacks {', '.join(lacking)}")
    return contents


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(LARGEST)


def _members(form: Form, archive: Path) -> dict[str, bytes]:
    contents: dict[str, bytes] = {}
    announced = 0
    with tarfile.open(archive, "r|*") as tar:
        for member in tar:
            announced += member.size
            if announced > ARCHIVE:  # before it is read, or passed over, which takes as long
                raise UserError(
                    f"{archive} is no archive of cifar10: it holds over {ARCHIVE} bytes"
                )
            file = member.name.rpartition("/")[2]
            if member.isfile() and file in form.files and member.size <= LARGEST:
                stream = tar.extractfile(member)
                contents[file] = stream.read() if stream else b""
    return contents


def _images(x: Bytes, y: Bytes, what: str) -> Images:
    if len(x) != len(y) or not len(y):
        raise UserError(f"{what}: {len(x)} images and {len(y)} labels")
    if y.max() >= len(CLASSES):
        raise UserError(f"{what}: labels must lie in 0..9, got {y.max()}")
    pixels = np.array(x).reshape(-1, 3, 32, 32)
    return Images(torch.from_numpy(pixels), torch.from_numpy(y.astype(np.int64)))


BINARY = Form(
    title="binary",
    folder="cifar-10-batches-bin",
    archive="cifar-10-binary.tar.gz",
    files={
        "data_batch_1.bin": "sha1:aadd24acce27caa71bf4b10992e9e7b2d74c2540",
        "data_batch_2.bin": "sha1:c0ba65cce70568cd57b4e03e9ac8d2a5367c1795",
        "data_batch_3.bin": "sha1:1dd00a74ab1d17a6e7d73e185b69dbf31242f295",
        "data_batch_4.bin": "sha1:aab85764eb3584312d3c7f65fd2fd016e36a258e",
        "data_batch_5.bin": "sha1:26e2849e66a845b7f1e4614ae70f4889ae604628",
        "test_batch.bin": "sha1:67eb016db431130d61cd03c7ad570b013799c88c",
    },
    parse=parse_binary,
)

PYTHON = Form(
    title="python",
    folder="cifar-10-batches-py",
    archive="cifar-10-python.tar.gz",
    files={
        "data_batch_1": "md5:c99cafc152244af753f735de768cd75f",
        "data_batch_2": "md5:d4bba439e000b95fd0a9bffe97cbabec",
        "data_batch_3": "md5:54ebc095f3ab1f0389bbae665268c751",
        "data_batch_4": "md5:634d18415352ddfa80567beed471001a",
        "data_batch_5": "md5:482c414d41f54cd18b22e5b47cb7c3cb",
        "test_batch": "md5:40351d587109b95175f43aff81a1287e",
    },
    parse=parse_python,
)
