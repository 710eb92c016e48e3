"""Data sets of the ``datasets`` library: a saved one, or one in its cache. Nothing is downloaded.

``hf-datasets:NAME`` is a data set of the hub that was downloaded before (``equipoise data get
hf-datasets:NAME --yes``); ``hf-datasets:FOLDER`` one that ``save_to_disk`` wrote. The images are
in the first column of images, the labels in the first one of class labels, or named ``label``.
"""

import io
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO, Any

from equipoise.data.folder import NAMED, Item, Listing
from equipoise.errors import RunError, UserError, one_line

LABELS = ("label", "labels", "fine_label", "class", "target")


def in_hub(name: str) -> Listing:
    """Return the pictures of a data set; see the module.

    Raises:
        UserError: If it is not on this computer, or does not have images and labels.
    """
    library = _library()
    folder = Path(name).expanduser()
    with _explained(name):
        if folder.is_dir():
            found = library.load_from_disk(str(folder))
        else:
            offline = library.DownloadConfig(local_files_only=True)
            with _offline(library):
                found = library.load_dataset(name, download_config=offline)
    listing = Listing(f"hf-datasets:{folder.resolve() if folder.is_dir() else name}")
    splits = dict(found) if isinstance(found, Mapping) else {"train": found}
    for split, part in splits.items():
        if split not in NAMED:
            listing.remarks.append(f"the split {split!r} was left out: it is none of train, ...")
            continue
        listing.items += _items(split, part, library, listing.place)
    return listing


def download(name: str) -> None:
    """Download a data set of the hub to the cache of the library.

    Raises:
        RunError: If the transfer fails.
    """
    library = _library()
    try:
        library.load_dataset(name)
    except Exception as error:  # the library raises nearly anything
        raise RunError(f"hf-datasets:{name} cannot be downloaded: {one_line(error)}") from None


def _library() -> Any:
    try:
        import datasets
    except ImportError:
        raise UserError(
            "hf-datasets:NAME needs the library datasets: pip install 'equipoise[datasets]'"
        ) from None
    datasets.disable_progress_bars()
    return datasets


@contextmanager
def _offline(library: Any) -> Iterator[None]:
    """Keep the library from the network."""
    before = library.config.HF_HUB_OFFLINE
    library.config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        library.config.HF_HUB_OFFLINE = before


@contextmanager
def _explained(name: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # the library raises nearly anything
        raise UserError(
            f"hf-datasets:{name} cannot be read on this computer ({one_line(error, 150)}): "
            f"download it with: equipoise data get hf-datasets:{name} --yes"
        ) from None


def _items(split: str, part: Any, library: Any, place: str) -> Iterator[Item]:
    features = part.features
    images = [key for key, kind in features.items() if isinstance(kind, library.Image)]
    labels = [key for key, kind in features.items() if isinstance(kind, library.ClassLabel)]
    labels += [key for key in LABELS if key in features]
    if not images or not labels:
        raise UserError(
            f"{place} has no column of images, or none of labels: its columns are "
            f"{', '.join(features)}"
        )
    image, label = images[0], labels[0]
    names = getattr(features[label], "names", None)
    part = part.cast_column(image, library.Image(decode=False))
    for row, value in enumerate(part[label]):
        text = names[value] if names else str(value)
        stamp = f"{part._fingerprint} {row}"
        yield Item(f"{split}/{row}", text, NAMED[split], stamp, partial(_open, part, row, image))


def _open(part: Any, row: int, image: str) -> IO[bytes]:
    stored = part[row][image]
    content = stored.get("bytes")
    return io.BytesIO(content) if content is not None else Path(stored["path"]).open("rb")
