"""Data sets: by name from a verified copy, or any ``.npz`` file.

``load("mnist")`` looks for the published files, in this order, in the folder that is given (and
its subfolder of the set's name), in ``$EQUIPOISE_DATA`` (likewise), in ``./data/<name>``, in
``~/.cache/equipoise/<name>``, and where Debian installs a set. The first complete copy is read;
its checksums must be the published ones, or it is refused (``unverified=True``, or
``EQUIPOISE_UNVERIFIED=1``, accepts it and says so in ``Dataset.source``). Nothing is downloaded
unless :func:`get` is called.

To add a set, write a module with its :class:`Source` and add a line to ``DATASETS``.
"""

__all__ = [
    "DATASETS",
    "Dataset",
    "Images",
    "Source",
    "Status",
    "crop_flip",
    "draw",
    "drawn_again",
    "get",
    "image_digests",
    "load",
    "status",
    "stratified_split",
]

import os
from dataclasses import dataclass
from pathlib import Path

from equipoise.data import cifar, digits, mnist, npz, svhn
from equipoise.data.core import Dataset, Images, crop_flip, stratified_split
from equipoise.data.fetch import download
from equipoise.data.published import Remote, Source
from equipoise.data.sampling import draw, drawn_again, image_digests
from equipoise.errors import UserError, nearest


@dataclass(frozen=True)
class Status:
    """Whether a data set is on this computer.

    Arguments:
        name: The name of the set.
        looked: The places that were looked at, in order.
        copy: Which verified copy was found, in words; empty if none.
        problem: Why a copy that is there was refused; empty if none.
    """

    name: str
    looked: tuple[Path, ...]
    copy: str = ""
    problem: str = ""

    @property
    def remedy(self) -> str:
        """How to get the set; empty if it is there."""
        return "" if self.copy else _remedy(self.name)


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
) -> Dataset:
    """Return a data set.

    Arguments:
        name_or_path: A name in ``DATASETS``, or the path of a ``.npz`` file
            (see :mod:`equipoise.data.npz`).
        data_dir: A folder to look in first.
        unverified: Whether to accept a copy with unknown checksums; None asks the environment
            variable ``EQUIPOISE_UNVERIFIED``.

    Raises:
        UserError: If the set is unknown, not there, malformed or not the published one.
    """
    name = str(name_or_path)
    if name not in DATASETS:
        if Path(name).suffix != ".npz":
            raise UserError(f"{nearest(name, DATASETS, 'data set')}, or the path of a .npz file")
        return npz.read(Path(name))
    if unverified is None:
        unverified = os.environ.get("EQUIPOISE_UNVERIFIED", "") not in {"", "0"}
    source = DATASETS[name]
    return source.read(_complete(name, data_dir), unverified)


def status(data_dir: str | Path | None = None) -> list[Status]:
    """Return for every data set whether a verified copy is there; reads every copy it finds.

    Arguments:
        data_dir: A folder to look in first.
    """
    return [_status(name, data_dir) for name in DATASETS]


def get(
    name: str,
    data_dir: str | Path | None = None,
    *,
    base: str | None = None,
    progress: bool = True,
) -> Path:
    """Download a data set and verify it; what is there already is not downloaded again.

    Arguments:
        name: A name in ``DATASETS``.
        data_dir: Goes to ``data_dir/<name>``; by default to ``$EQUIPOISE_DATA/<name>``, or without
            that to ``~/.cache/equipoise/<name>``.
        base: Another http(s) folder to take the same files from.
        progress: Whether to show progress on standard error.

    Returns:
        The folder with the verified files.

    Raises:
        UserError: If there is nothing to download, or nowhere to put it.
        RunError: If a transfer fails, or what arrives is not the published file.
    """
    if name not in DATASETS:
        raise UserError(nearest(name, DATASETS, "data set"))
    source = DATASETS[name]
    if source.remote is None:
        raise UserError(f"{name} comes with a dependency of equipoise: nothing to download")
    root = data_dir or os.environ.get("EQUIPOISE_DATA") or _cache()
    folder = Path(root).expanduser() / name
    if not _verified(source, folder):
        _download(source.remote, folder, base, progress)
        source.read(folder, False)
    return folder


def _status(name: str, data_dir: str | Path | None) -> Status:
    source, looked = DATASETS[name], tuple(_places(name, data_dir))
    if source.remote is not None and all(source.missing(place) for place in looked):
        return Status(name, looked)
    try:
        return Status(name, looked, copy=source.read(_complete(name, data_dir), False).source)
    except UserError as error:
        return Status(name, looked, problem=str(error))


def _verified(source: Source, folder: Path) -> bool:
    try:
        return not source.missing(folder) and bool(source.read(folder, False))
    except UserError:
        return False


def _download(remote: Remote, folder: Path, base: str | None, progress: bool) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot create {folder}: {error.strerror or error}") from error
    address = (base or remote.base).rstrip("/")
    for file, expected in remote.files.items():
        download(
            f"{address}/{file}",
            folder / file,
            expected,
            gunzip=remote.gunzip,
            largest=remote.largest,
            progress=progress,
        )


def _complete(name: str, data_dir: str | Path | None) -> Path:
    """Return the first place that holds a complete copy."""
    source, places = DATASETS[name], _places(name, data_dir)
    if source.remote is None:
        return Path()
    for place in places:
        if not source.missing(place):
            return place
    looked = "; ".join(f"{place} ({_lack(source, place)})" for place in places)
    raise UserError(f"{name} is not there; {_remedy(name)}. Looked in: {looked}")


def _lack(source: Source, place: Path) -> str:
    if not place.exists():
        return "does not exist"
    first, *others = source.missing(place)
    return f"lacks {first}" + (f" and {len(others)} more" if others else "")


def _places(name: str, data_dir: str | Path | None) -> list[Path]:
    source = DATASETS[name]
    if source.remote is None:
        return []
    places = []
    for root in (data_dir, os.environ.get("EQUIPOISE_DATA")):
        if root:
            folder = Path(root).expanduser()
            places += [folder, folder / name] if folder.is_dir() else [folder]
    places += [Path("data") / name, _cache() / name, *source.folders]
    return list(dict.fromkeys(places))


def _cache() -> Path:
    return Path.home() / ".cache" / "equipoise"


def _remedy(name: str) -> str:
    return f"run `equipoise data get {name} --yes`, or name its folder with `--data-dir DIR`"
