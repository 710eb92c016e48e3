"""Pictures in folders, or named in a CSV file: which there are, of which class, in which split.

``photos/CLASS/*`` has no splits; ``photos/train/CLASS/*``, ``photos/val/CLASS/*`` and
``photos/test/CLASS/*`` have: each folder at the top is one. Folders in the folder of a class
belong to it, and links are followed. A CSV file has the columns path, label and perhaps split;
paths are relative to the folder.
"""

import csv
import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import IO, NamedTuple

from equipoise.data.core import largest_remainder
from equipoise.data.pictures import SUFFIXES, Open
from equipoise.errors import UserError, short

SPLITS = {
    "train": ("train", "training"),
    "validation": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
}
"""The splits, and the names of their folders."""

NAMED = {name: split for split, names in SPLITS.items() for name in names}
COLUMNS = {
    "path": ("path", "file", "filename", "file_name", "image", "image_path"),
    "label": ("label", "class", "target", "category"),
    "split": ("split", "set", "subset", "partition"),
}
JUNK = {"thumbs.db", "desktop.ini", "__macosx"}
TEST_SHARE = 5  # a fifth is held out for testing where there is no test split


class Item(NamedTuple):
    """A picture: its name, class and split, a stamp that changes with it, and how to open it."""

    name: str
    label: str
    split: str
    stamp: str
    open: Open


@dataclass
class Listing:
    """The pictures of a data set, and what was noticed.

    Arguments:
        place: Where they are, in words.
        items: The pictures.
        remarks: What was noticed, a sentence each.
    """

    place: str
    items: list[Item] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)

    def checked(self) -> "Listing":
        """Return the pictures in their splits, in a fixed random order; missing splits drawn.

        Raises:
            UserError: If there are no pictures, or only one class.
        """
        if not self.items:
            raise UserError(
                f"there are no images in {self.place}: expected CLASS/*.jpg (or .png, .tif, .bmp, "
                f".webp, .gif), or train/CLASS/*.jpg{''.join(f'; {r}' for r in self.remarks)}"
            )
        labels = {item.label for item in self.items}
        if len(labels) == 1:
            raise UserError(
                f"all {len(self.items):,} images in {self.place} are of one class, "
                f"{short(labels.pop())}: a classifier needs two; expected a folder for each class"
            )
        splits = {item.split for item in self.items}
        if "train" in splits and "test" not in splits:
            self.items = list(self._with_test_drawn())
        self.items.sort(key=lambda item: (ORDER[item.split], _hash(item), item.name))
        return self

    def _with_test_drawn(self) -> Iterable[Item]:
        """Yield the items, a fifth of the training images of each class for testing."""
        train = [item for item in self.items if item.split == "train"]
        counts = Counter(item.label for item in train)
        if (most := len(train) - len(counts)) < 1:
            raise UserError(
                f"every class in {self.place} has one image: nothing is left for testing; add "
                "images, or a folder test/"
            )
        labels = sorted(counts)
        count = min(max(1, round(len(train) / TEST_SHARE)), most)
        shares = dict(
            zip(labels, largest_remainder([counts[k] for k in labels], count), strict=True)
        )
        self.remarks.append(
            f"no test images of their own: {count:,} of {len(train):,} were drawn, in proportion "
            "to the classes, the same every time"
        )
        for item in sorted(self.items, key=lambda item: (_hash(item), item.name)):
            if item.split == "train" and shares[item.label]:
                shares[item.label] -= 1
                item = item._replace(split="test")
            yield item


ORDER = {"train": 0, "validation": 1, "test": 2}


def _hash(item: Item) -> bytes:
    return hashlib.blake2b(item.name.encode("utf-8", "surrogateescape"), digest_size=8).digest()


def in_folder(folder: Path) -> Listing:
    """Return the pictures in the folders of the classes.

    Raises:
        UserError: If the folder cannot be read.
    """
    listing, loose = Listing(str(folder)), list[str]()
    try:
        files = sorted(_files(folder))
    except OSError as error:
        raise UserError(f"cannot read {error.filename}: {error.strerror}") from None
    pictures = [path for path in files if path.suffix.lower() in SUFFIXES]
    kinds = Counter(path.suffix.lower() or "no suffix" for path in files)
    other = {kind: count for kind, count in kinds.most_common() if kind not in SUFFIXES}
    tops = {path.relative_to(folder).parts[0] for path in pictures if path.parent != folder}
    split = bool(tops) and all(top.lower() in NAMED for top in tops)
    for path in pictures:
        parts = path.relative_to(folder).parts
        if len(parts) < 2 + split:
            loose.append("/".join(parts))
            continue
        label, where = parts[split], NAMED[parts[0].lower()] if split else "train"
        listing.items.append(_item(path, "/".join(parts), label, where))
    if loose:
        listing.remarks.append(
            f"{len(loose):,} images are in no folder of a class and were left out, "
            f"like {short(loose[0])}"
        )
    if other:
        shown = ", ".join(f"{count:,} {suffix}" for suffix, count in [*other.items()][:4])
        listing.remarks.append(f"files of other kinds were left out: {shown}")
    return listing


def _files(folder: Path) -> Iterable[Path]:
    """Yield the files in a folder and in the folders and links there, each folder once."""
    seen = set()
    for place, folders, names in os.walk(folder, followlinks=True, onerror=_raise):
        state = os.stat(place)
        if (state.st_dev, state.st_ino) in seen:  # a link to a folder above
            folders.clear()
            continue
        seen.add((state.st_dev, state.st_ino))
        folders[:] = sorted(name for name in folders if not _junk(name))
        for name in names:
            path = Path(place, name)
            if not _junk(name) and (path.is_file() or not path.exists()):  # a link to nowhere
                yield path


def _raise(error: OSError) -> None:
    raise error


def _junk(name: str) -> bool:
    return name.startswith(".") or name.lower() in JUNK


def _item(path: Path, name: str, label: str, split: str) -> Item:
    try:
        state = path.stat()
        stamp = f"{state.st_size} {state.st_mtime_ns} {state.st_mode}"
    except OSError:  # a link to nowhere: it is named when it is read
        stamp = "absent"
    return Item(name, label, split, stamp, partial(_open, path))


def _open(path: Path) -> IO[bytes]:
    return path.open("rb")


def in_csv(file: Path, folder: Path) -> Listing:
    """Return the pictures that a CSV file names.

    Raises:
        UserError: If it cannot be read, or lacks a column.
    """
    listing = Listing(f"{folder} by {file}")
    try:
        with file.open(encoding="utf-8-sig", newline="") as stream:
            first = stream.readline()
            stream.seek(0)
            delimiter = max(",;\t", key=first.count)
            rows = list(csv.reader(stream, delimiter=delimiter, strict=True))
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror or error}") from None
    except (csv.Error, UnicodeDecodeError) as error:
        raise UserError(f"{file} is no CSV file in UTF-8: {error}") from None
    columns = _columns(rows[0] if rows else [], file)
    seen: dict[str, tuple[str, str]] = {}
    for number, row in enumerate(rows[1:], 2):
        if not any(row):
            continue
        cells = {key: row[at].strip() for key, at in columns.items() if at < len(row)}
        name, label = cells.get("path", ""), cells.get("label", "")
        given = cells.get("split", "").lower() or "train"
        if not name or not label or given not in NAMED:
            raise UserError(
                f"{file}, line {number}: expected a path, a label and, if there is a column for "
                f"it, one of the splits {', '.join(NAMED)}; got {short(row)}"
            )
        if seen.setdefault(name, (label, given)) != (label, given):
            raise UserError(f"{file}, line {number}: {short(name)} has two labels or splits")
        listing.items.append(_item(folder / name, name, label, NAMED[given]))
    listing.items = list({item.name: item for item in listing.items}.values())
    return listing


def _columns(header: list[str], file: Path) -> Mapping[str, int]:
    """Return the position of each column."""
    names = [name.strip().lower() for name in header]
    found = {
        key: names.index(name)
        for key, known in COLUMNS.items()
        if (name := next((each for each in known if each in names), None)) is not None
    }
    if not {"path", "label"} <= found.keys():
        raise UserError(
            f"{file} needs a first line with the columns path and label, and perhaps split; got "
            f"{short(header)}"
        )
    return found
