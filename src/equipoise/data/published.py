"""Datasets in published files: read from a folder or an archive, and verified by checksum.

Nothing is written to disk: a ``.gz`` file and an archive are read where they are. Checksums are of
the uncompressed content, so that files that were compressed again are accepted too.
"""

import gzip
import hashlib
import tarfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
import torch

from equipoise.data.core import Dataset, Images
from equipoise.errors import UserError

Array = np.ndarray[tuple[int, ...], np.dtype[Any]]
Parts = list[tuple[str, bytes]]
"""The names of files, for messages, and their contents."""

NOT_WHOLE = (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile)
"""The errors of a gzip file or an archive that is damaged or has another format."""

KINDS = {"sha256": "SHA-256", "sha1": "SHA-1", "md5": "MD5"}


@dataclass(frozen=True, kw_only=True)
class Form:
    """A form in which a dataset is published.

    Arguments:
        title: The name for people.
        files: File names and the checksums of their content, like ``{"a": "sha256:..."}``. Every
            file may also be there as ``NAME.gz``.
        parse: Turns the contents of the files, in this order, into training and test images.
        folder: The subfolder in which the files may be.
        archive: The tar archive in which they may be.
        largest: The most bytes that a file may have, uncompressed.
    """

    title: str
    files: Mapping[str, str]
    parse: Callable[[Parts], tuple[Images, Images]]
    folder: str = ""
    archive: str = ""
    largest: int = 64 << 20

    def find(self, place: Path) -> Path | None:
        """Return the folder or the archive at ``place`` that has all files, or None."""
        folders = [path for path in (place / self.folder, place) if not self.lacking(path)]
        archives = [path for path in (place / self.archive, place) if path.is_file()]
        named = [path for path in archives if path.name == self.archive]
        return next(iter(folders + named), None)

    def lacking(self, folder: Path) -> list[str]:
        """Return the files that a folder lacks."""
        return [file for file in self.files if not _path(folder, file).is_file()]

    def contents(self, container: Path, dataset: str) -> dict[str, bytes]:
        """Return the content of each file in a folder or an archive.

        Raises:
            UserError: If one is missing, damaged or too large.
        """
        contents: dict[str, bytes] = {}
        if container.is_dir():
            for file in self.files:
                path = _path(container, file)
                with _reading(path, "gzip file", dataset), opened(path, path.suffix == ".gz") as f:
                    contents[file] = f.read(self.largest + 1)
                if len(contents[file]) > self.largest:
                    raise UserError(
                        f"{path} is no file of {dataset}: it holds more than {self.largest} "
                        f"bytes; {_again(dataset)}"
                    )
            return contents
        size, most = 0, len(self.files) * self.largest
        with _reading(container, "archive", dataset), tarfile.open(container, "r|*") as tar:
            for member in tar:
                size += member.size
                if size > most:  # checked before it is read or skipped, which takes as long
                    raise UserError(
                        f"{container} is no archive of {dataset}: it holds over {most} bytes"
                    )
                file = member.name.rpartition("/")[2]
                if member.isfile() and file in self.files and member.size <= self.largest:
                    stream = tar.extractfile(member)
                    contents[file] = stream.read() if stream else b""
        if lacking := [file for file in self.files if file not in contents]:
            raise UserError(f"{container} lacks {', '.join(lacking)}")
        return contents


@dataclass(frozen=True, kw_only=True)
class Remote:
    """Where a dataset is published.

    Arguments:
        base: The folder on the server.
        files: File names and checksums, e.g. ``{"a.gz": "sha256:..."}``.
        gunzip: Whether the checksums are of the uncompressed content.
        largest: The bytes of the largest file, uncompressed where the checksums are.
    """

    base: str
    files: Mapping[str, str]
    gunzip: bool = False
    largest: int = 64 << 20


@dataclass(frozen=True, kw_only=True)
class Source:
    """A dataset that has a name. A dataset in files of another arrangement is a subclass.

    Arguments:
        title: The name for people, with the shape.
        n: Training and test images together.
        train: Training images; None: not known before they are read.
        licence: The terms of use.
        eps: The customary Linf radius, in [0, 1].
        make: Returns the dataset, if it needs no files.
        remote: Where its files are published; None: it needs no files.
        folders: Where operating systems install it.
    """

    title: str
    n: int
    train: int | None = None
    licence: str
    eps: float
    make: Callable[[], Dataset] | None = None
    remote: Remote | None = None
    folders: tuple[Path, ...] = ()

    def missing(self, place: Path) -> list[str]:
        """Return the files that a folder lacks; none for a complete copy."""
        return []

    def read(self, place: Path, unverified: bool = False) -> Dataset:
        """Return the dataset.

        Arguments:
            place: The folder with its files.
            unverified: Whether to accept files with an unknown checksum.

        Raises:
            UserError: If a file is missing, malformed or not the published one.
        """
        if self.make is None:
            raise TypeError("a Source takes make, or is a subclass with missing and read")
        return self.make()


@dataclass(frozen=True, kw_only=True)
class Published(Source):
    """A dataset in published files.

    Arguments:
        name: The name by which the dataset is loaded.
        forms: The forms in which it is published; the first complete one is read.
        owners: Checksums of files of the same names, and the dataset that each belongs to.

    The other arguments are those of :class:`equipoise.data.Dataset`.
    """

    name: str
    forms: tuple[Form, ...]
    classes: tuple[str, ...]
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    pad: int = 0
    flip: bool = False
    owners: Mapping[str, str] = field(default_factory=dict)

    def missing(self, place: Path) -> list[str]:
        """Return the files, or the archive, that a folder lacks."""
        if any(form.find(place) for form in self.forms):
            return []
        for form in self.forms:
            for folder in (place / form.folder, place):
                lacking = form.lacking(folder)
                if len(lacking) < len(form.files):
                    return lacking
        first = self.forms[0]
        return [first.archive] if first.archive else list(first.files)

    def read(self, place: Path, unverified: bool = False) -> Dataset:
        """Return the dataset from its files or an archive in a folder, or from an archive."""
        complete = ((form, path) for form in self.forms if (path := form.find(place)))
        form, container = next(complete, (None, place))
        if form is None:
            raise UserError(f"{place} lacks {', '.join(self.missing(place))} of {self.name}")
        contents = form.contents(container, self.name)
        parts = [(f"{container / file}", contents[file]) for file in form.files]
        sums = form.files.values()
        odd = sum(
            not self._verified(content, expected, path, unverified)
            for (path, content), expected in zip(parts, sums, strict=True)
        )
        train, test = form.parse(parts)
        kind = KINDS[next(iter(sums)).partition(":")[0]]
        return Dataset(
            name=self.name,
            train=train,
            test=test,
            classes=self.classes,
            eps=self.eps,
            mean=self.mean,
            std=self.std,
            pad=self.pad,
            flip=self.flip,
            source=f"{form.title}, all files verified by {kind}, from {container}"
            if not odd
            else f"unverified copy of {form.title} ({odd} of {len(parts)} files have an unknown "
            f"checksum), from {container}",
        )

    def _verified(self, content: bytes, expected: str, file: str, unverified: bool) -> bool:
        """Return whether the content of a file is the published one; refuse other content."""
        got = checksum([content], expected)
        owner = self.owners.get(got, self.name)
        if owner != self.name:
            raise UserError(f"{file} is a file of {owner}, not of {self.name}")
        if got != expected and not unverified:
            raise UserError(
                f"{file} is not the published file of {self.name} (cut short or altered): "
                f"expected {expected.replace(':', ' ')}, got {got.partition(':')[2]} over "
                f"{len(content)} bytes; {_again(self.name)}, or load it as it is with "
                "unverified=True (EQUIPOISE_UNVERIFIED=1)"
            )
        return got == expected


@contextmanager
def _reading(path: Path, kind: str, dataset: str) -> Iterator[None]:
    """Raise a UserError if a gzip file or an archive is damaged or cannot be read."""
    try:
        yield
    except NOT_WHOLE as error:
        raise UserError(
            f"{path} is cut short or no {kind} ({error}); {_again(dataset)}"
        ) from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error


def _again(dataset: str) -> str:
    return f"delete it and run `equipoise data get {dataset} --yes`"


def checksum(blocks: Iterable[bytes], like: str) -> str:
    """Return the checksum of ``blocks``, of the kind of ``like``, e.g. ``"sha256:65a5..."``."""
    kind = like.partition(":")[0]
    state = hashlib.new(kind, usedforsecurity=False)  # md5 and sha1 are for identity only
    for block in blocks:
        state.update(block)
    return f"{kind}:{state.hexdigest()}"


def opened(path: Path, gunzip: bool) -> IO[bytes]:
    """Open a file, or the content of a gzip file, to read its bytes."""
    return cast("IO[bytes]", gzip.open(path)) if gunzip else path.open("rb")


def images(x: Array, y: Array, file: str, classes: int) -> Images:
    """Return bytes ``x`` (N, H, W) or (N, C, H, W) and labels ``y`` (N,) as images, checked."""
    if x.ndim not in {3, 4} or y.ndim != 1 or len(x) != len(y) or not len(x):
        raise UserError(
            f"{file}: expected images (N, H, W) or (N, C, H, W) and as many labels (N,), "
            f"got {x.shape} and {y.shape}"
        )
    if y.max() >= classes:
        raise UserError(f"{file}: labels must lie in 0..{classes - 1}, got {y.max()}")
    pixels = np.array(x if x.ndim == 4 else x[:, None], order="C")
    return Images(torch.from_numpy(pixels), torch.from_numpy(y.astype(np.int64)))


def _path(folder: Path, file: str) -> Path:
    """Return the path of a file in a folder: plain, or as ``NAME.gz``."""
    packed = folder / f"{file}.gz"
    return packed if packed.is_file() and not (folder / file).is_file() else folder / file
