"""Datasets: by name from a verified copy, or any ``.npz`` file.

``load("mnist")`` searches the given folder (and its subfolder ``mnist``), ``$EQUIPOISE_DATA``
(likewise), ``./data/mnist``, ``~/.cache/equipoise/mnist``, and where Debian installs a dataset. It
reads the first complete copy, whose checksums must be the published ones. Only :func:`get`
downloads. To add a dataset, write a module with its :class:`Source` and a line in ``DATASETS``.
"""

__all__ = [
    "DATASETS",
    "Dataset",
    "Images",
    "Reading",
    "Source",
    "Status",
    "crop_flip",
    "draw",
    "drawn_again",
    "get",
    "give",
    "image_digests",
    "load",
    "status",
    "stratified_split",
]

import hashlib
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from equipoise.data import cifar, collection, digits, mnist, npz, svhn
from equipoise.data.core import Dataset, Images, crop_flip, stratified_split
from equipoise.data.fetch import download
from equipoise.data.published import Source
from equipoise.data.reading import GIVEN, OWN, Reading, is_given, is_own
from equipoise.data.sampling import draw, drawn_again, image_digests
from equipoise.errors import UserError, nearest

if TYPE_CHECKING:
    from equipoise.terminal.progress import Console


@dataclass(frozen=True)
class Status:
    """Whether a dataset is on this computer.

    Arguments:
        name: The name of the dataset.
        looked: The places that were searched, in order.
        copy: A description of the verified copy; empty if there is none.
        problem: Why an existing copy was refused; empty if none was.
    """

    name: str
    looked: tuple[Path, ...]
    copy: str = ""
    problem: str = ""

    @property
    def remedy(self) -> str:
        """How to get the dataset; empty if it is there."""
        return "" if self.copy else _remedy(self.name)


CACHE = "~/.cache/equipoise"
_given: dict[str, Dataset] = {}

DATASETS: dict[str, Source] = {
    "digits": digits.DIGITS,
    "mnist": mnist.MNIST,
    "fashion-mnist": mnist.FASHION_MNIST,
    "cifar10": cifar.CIFAR10,
    "svhn": svhn.SVHN,
}


def load(
    name_or_path: str | Path,
    data_dir: str | Path | None = None,
    *,
    unverified: bool | None = None,
    reading: Reading | None = None,
    console: "Console | None" = None,
) -> Dataset:
    """Return a dataset.

    Arguments:
        name_or_path: A name in ``DATASETS``, the path of a ``.npz`` file (see
            :mod:`equipoise.data.npz`), a folder of images or a ``.csv`` file (see
            :mod:`equipoise.data.folder`), or ``hf-datasets:NAME``.
        data_dir: A folder that is searched first.
        unverified: Whether to accept a copy with unknown checksums, which ``Dataset.source`` then
            says; None: whether the environment variable ``EQUIPOISE_UNVERIFIED`` is set.
        reading: How images in files are read.
        console: Where progress is shown, and what was found; by default nowhere.

    Raises:
        UserError: If the dataset is unknown, absent, malformed or not the published one.
    """
    name, reading = str(name_or_path), reading or Reading()
    if name in _given:
        return _given[name]
    if is_given(name):
        raise UserError(f"the data {name} were given from Python: give them again, as dataset=")
    if not is_own(name, DATASETS) and name not in DATASETS:
        raise UserError(f"{nearest(name, DATASETS, 'dataset')}, or {OWN}")
    pictures = name not in DATASETS and Path(name).suffix.lower() != ".npz"
    if not pictures and reading.given():
        raise UserError(f"{', '.join(reading.given())}: only for images in files, not for {name}")
    if pictures:
        return collection.read(name, reading, console)
    if name not in DATASETS:
        return npz.read(Path(name).expanduser(), console)
    if unverified is None:
        unverified = os.environ.get("EQUIPOISE_UNVERIFIED", "") not in {"", "0"}
    return DATASETS[name].read(_complete(name, _places(name, data_dir)), unverified)


def give(dataset: Dataset) -> str:
    """Allow data from Python to be loaded in this process; return the name for recipes."""
    content = "".join(sorted(dataset.sha256.values()))
    name = f"{GIVEN}{dataset.name}-{hashlib.sha256(content.encode()).hexdigest()[:12]}"
    _given[name] = dataset
    return name


def status(data_dir: str | Path | None = None) -> list[Status]:
    """Return the state of every dataset; reads and verifies each copy.

    Arguments:
        data_dir: A folder that is searched first.
    """

    def state(name: str, source: Source) -> Status:
        places = tuple(_places(name, data_dir))
        if source.remote is not None and all(map(source.missing, places)):
            return Status(name, places)
        try:
            return Status(name, places, copy=source.read(_complete(name, places)).source)
        except UserError as error:
            return Status(name, places, problem=str(error))

    return [state(name, source) for name, source in DATASETS.items()]


def get(
    name: str,
    data_dir: str | Path | None = None,
    *,
    base: str | None = None,
    progress: bool = True,
) -> Path:
    """Download a dataset and verify it; files that are there already are not downloaded again.

    Arguments:
        name: A name in ``DATASETS``.
        data_dir: The files go to ``data_dir/<name>``; by default to ``$EQUIPOISE_DATA/<name>``, or
            without that to ``~/.cache/equipoise/<name>``.
        base: Another http(s) folder that has the same files.
        progress: Whether to show progress on standard error.

    Returns:
        The folder with the verified files.

    Raises:
        UserError: If there is nothing to download, or the folder cannot be created.
        RunError: If a transfer fails, or the server does not send the published file.
    """
    if name not in DATASETS:
        raise UserError(nearest(name, DATASETS, "dataset"))
    source = DATASETS[name]
    if source.remote is None:
        raise UserError(f"{name} comes with a dependency of equipoise: nothing to download")
    root = data_dir or os.environ.get("EQUIPOISE_DATA") or CACHE
    folder = Path(root).expanduser() / name
    with suppress(UserError):
        if not source.missing(folder) and source.read(folder):
            return folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot create {folder}: {error.strerror or error}") from error
    address = (source.remote.base if base is None else base).rstrip("/")
    options: dict[str, Any] = {
        "gunzip": source.remote.gunzip,
        "largest": source.remote.largest,
        "progress": progress,
    }
    for file, expected in source.remote.files.items():
        download(f"{address}/{file}", folder / file, expected, **options)
    source.read(folder)
    return folder


def _complete(name: str, places: Sequence[Path]) -> Path:
    """Return the first place that holds a complete copy."""
    source = DATASETS[name]
    if source.remote is None:
        return Path()
    problems = []
    for place in places:
        missing = source.missing(place)
        if not missing:
            return place
        more = f" and {len(missing) - 1} more" if missing[1:] else ""
        problem = f"lacks {missing[0]}{more}" if place.exists() else "does not exist"
        problems.append(f"{place} ({problem})")
    raise UserError(f"{name} is not there; {_remedy(name)}. Looked in: {'; '.join(problems)}")


def _places(name: str, data_dir: str | Path | None) -> list[Path]:
    if DATASETS[name].remote is None:
        return []
    places = []
    for root in (data_dir, os.environ.get("EQUIPOISE_DATA")):
        if root:
            folder = Path(root).expanduser()
            places += [folder, folder / name] if folder.is_dir() else [folder]
    places += [Path("data") / name, Path(CACHE).expanduser() / name, *DATASETS[name].folders]
    return list(dict.fromkeys(places))


def _remedy(name: str) -> str:
    return f"run `equipoise data get {name} --yes`, or name its folder with `--data-dir DIR`"
