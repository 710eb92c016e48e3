"""Pictures decoded once, into one file of bytes that is mapped into memory.

The file lies in a folder of its own in ``$EQUIPOISE_CACHE`` (default ``~/.cache/equipoise``), in
``images/``. It grows by a chunk at a time, with a line in ``chunks.jsonl`` for each, so that a
decoding that was killed continues; ``index.json`` stands for a whole one. When the files of the
user have changed, the pictures are decoded anew. Nothing depends on the order of the threads.
"""

import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from torch import Tensor

from equipoise.data.core import Images, fingerprint, moments
from equipoise.data.folder import ORDER, Item, Listing
from equipoise.data.pictures import BadImage, decode, quiet
from equipoise.data.reading import Reading
from equipoise.data.rows import CHUNK, Rows, cache
from equipoise.data.survey import NAMES, THREADS, in_order, refusal, survey
from equipoise.errors import RunError, UserError

if TYPE_CHECKING:
    from equipoise.terminal.progress import Console

FORMAT = 1
IN_MEMORY = 1 << 30  # bytes: fewer are read into memory, more are mapped
HEAVY = 200_000_000  # pixels that are decoded at the same time


@dataclass(frozen=True)
class Decoded:
    """The pictures of a listing as images.

    Arguments:
        x: The images of all splits, one split after the other.
        index: What ``index.json`` says.
    """

    x: Tensor | Rows
    index: Mapping[str, Any]

    def images(self, where: slice, y: Tensor | None = None) -> Images:
        """Return some of the images, with labels ``y``, of shape (N,), of all."""
        y = torch.zeros(len(self.x), dtype=torch.int64) if y is None else y
        return Images(self.x, y).take(where)

    def split(self, name: str) -> slice | None:
        """Return where the images of a split are; None: it has none."""
        sizes = {split: self.index["splits"].get(split, 0) for split in ORDER}
        start = sum(size for split, size in sizes.items() if ORDER[split] < ORDER[name])
        return slice(start, start + sizes[name]) if sizes[name] else None


def cache_folder() -> Path:
    """Return the folder of decoded images."""
    return cache() / "images"


def decoded(listing: Listing, reading: Reading, console: "Console | None") -> Decoded:
    """Return the images of a listing, from the cache if they are there.

    Raises:
        UserError: If pictures cannot be read, or differ in size and no size is given.
        RunError: If the disk is full; what was decoded is kept.
    """
    how = [reading.size, reading.resize, reading.channels]
    place = _digest([listing.place, *how])
    key = _digest([how, *([i.name, i.label, i.split, i.stamp] for i in listing.items)])
    folder = cache_folder() / place[:16]
    cache = _Cache(folder, key, listing, reading, console)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with cache.lock():
            made = cache.read() or cache.make()
        cache.refuse(made.index["bad"])
        return made
    except OSError as error:
        if shutil.disk_usage(_existing(folder)).free < CHUNK:
            raise RunError(
                f"the disk is full: {folder} has what was decoded so far; free some space, or "
                "move it to another disk and set EQUIPOISE_CACHE, and run the same command again"
            ) from None
        raise UserError(
            f"cannot write {error.filename or folder}: {error.strerror}; set EQUIPOISE_CACHE to "
            "a folder for decoded images"
        ) from None


def _existing(path: Path) -> Path:
    return next(place for place in (path, *path.parents) if place.exists())


def _digest(content: object) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


@dataclass
class _Cache:
    """The folder of one decoded data set."""

    folder: Path
    key: str
    listing: Listing
    reading: Reading
    console: "Console | None"

    @property
    def images(self) -> Path:
        return self.folder / "images.u8"

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Wait for another process that decodes the same images."""
        lock = FileLock(self.folder / ".lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            self._say(f"another process is decoding to {self.folder}: waiting for it")
            lock.acquire()
        try:
            yield
        finally:
            lock.release()

    def read(self) -> Decoded | None:
        """Return the decoded images, or None if they are not there or are others."""
        index = _json(self.folder / "index.json")
        if index is None:
            return None
        if index.get("digest") != _digest({k: v for k, v in index.items() if k != "digest"}):
            self._warn(f"{self.folder / 'index.json'} is damaged: the files are decoded again")
            self.discard()
            return None
        if index["key"] != self.key or index["format"] != FORMAT:
            self._say(f"the files of {self.listing.place} have changed: they are decoded again")
            self.discard()
            return None
        decoded = self._open(index)
        state = self.images.stat() if decoded else None
        moved = decoded and state and state.st_mtime_ns != index["mtime"]
        if decoded and moved and _content(decoded) != index["sha256"]:
            decoded = None
        if decoded is None:
            self._warn(f"{self.images} is damaged: the files are decoded again")
            self.discard()
        return decoded

    def _open(self, index: Mapping[str, Any]) -> Decoded | None:
        """Return the images if the file has the right size."""
        shape = tuple(index["shape"])
        size = int(np.prod(shape, dtype=np.int64))
        if not self.images.is_file() or self.images.stat().st_size != size:
            return None
        if size <= IN_MEMORY:
            x = torch.from_numpy(np.fromfile(self.images, np.uint8)).view(shape)
            return Decoded(x, index)
        x = torch.from_file(str(self.images), shared=False, size=size, dtype=torch.uint8)
        return Decoded(Rows(x.view(shape)), index)

    def discard(self) -> None:
        """Remove everything but the lock."""
        for path in self.folder.iterdir():
            if path.name != ".lock":
                path.unlink()

    def make(self) -> Decoded:
        """Decode the files, or the rest of them."""
        with quiet():
            plan = _json(self.folder / "plan.json")
            if plan is None or plan.get("key") != self.key:
                self.discard()
                plan = {"key": self.key, **survey(self.listing, self.reading, self.console)}
                self.refuse(plan["bad"])
                self.folder.joinpath("plan.json").write_text(json.dumps(plan))
            chunks = self._decode(plan)
        return self._finish(plan, chunks)

    def _decode(self, plan: Mapping[str, Any]) -> list[Mapping[str, Any]]:
        """Write the chunks that are missing; return the lines of all."""
        height, width = plan["size"]
        row = height * width * (1 if plan["mode"] == "L" else 3)
        items = [item for item in self.listing.items if item.name not in plan["bad"]]
        chunks, part = self._kept(row), self.folder / "images.part"
        done = sum(chunk["items"] for chunk in chunks)
        needed = (len(items) - done) * row
        if (free := shutil.disk_usage(self.folder).free) < needed + CHUNK:
            raise UserError(
                f"{self.folder} needs {needed / 1e9:.2f} GB for decoded images, and "
                f"{free / 1e9:.2f} GB are free: set EQUIPOISE_CACHE to a folder with more space"
            )
        if done < len(items):
            self._say(
                f"decoding {len(items) - done:,} images once to {self.folder} "
                f"({needed / 1e9:.2f} GB); it continues if it is interrupted"
            )
        threads = max(1, min(THREADS, os.cpu_count() or 1, HEAVY // max(plan["largest"], 1)))
        each = max(16, min(4096, CHUNK // row))

        def pixels(item: Item) -> np.ndarray[Any, Any] | str:
            try:
                return decode(item.open, (height, width), plan["mode"], self.reading.resize)
            except BadImage as error:
                return str(error)

        results = in_order(pixels, items[done:], threads, self.console, "decoding", done, each)
        with part.open("ab") as file, (self.folder / "chunks.jsonl").open("a") as log:
            while batch := list(islice(results, each)):
                good = [x for _, x in batch if not isinstance(x, str)]
                content = b"".join(x.tobytes() for x in good)
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
                line = {
                    "items": len(batch),
                    "bad": {item.name: x for item, x in batch if isinstance(x, str)},
                    "sha256": hashlib.sha256(content).hexdigest(),
                    "images": [hashlib.sha256(x.tobytes()).hexdigest()[:16] for x in good],
                }
                log.write(json.dumps(line) + "\n")
                log.flush()
                chunks.append(line)
        return chunks

    def _kept(self, row: int) -> list[Mapping[str, Any]]:
        """Return the chunks of an earlier process that are whole; cut off what follows them."""
        log, part = self.folder / "chunks.jsonl", self.folder / "images.part"
        kept, end = list[Mapping[str, Any]](), 0
        if log.is_file() and part.is_file():
            with part.open("rb") as file:
                for text in log.read_text().splitlines():
                    chunk = _parsed(text)
                    if chunk is None:
                        break
                    content = file.read(len(chunk["images"]) * row)
                    if hashlib.sha256(content).hexdigest() != chunk["sha256"]:
                        break
                    kept.append(chunk)
                    end += len(content)
        log.write_text("".join(json.dumps(chunk) + "\n" for chunk in kept))
        with part.open("ab") as file:
            file.truncate(end)
        return kept

    def _finish(self, plan: Mapping[str, Any], chunks: Sequence[Mapping[str, Any]]) -> Decoded:
        bad = {**plan["bad"], **{k: v for chunk in chunks for k, v in chunk["bad"].items()}}
        items = [item for item in self.listing.items if item.name not in bad]
        digests = [digest for chunk in chunks for digest in chunk["images"]]
        splits = Counter(item.split for item in items)
        channels = 1 if plan["mode"] == "L" else 3
        index = {name: plan[name] for name in ("key", "mode", "sizes", "modes", "remarks")}
        index |= {
            "format": FORMAT,
            "shape": [len(items), channels, *plan["size"]],
            "splits": dict(splits),
            "bad": bad,
            "duplicates": _duplicates(items, digests),
        }
        (self.folder / "images.part").replace(self.images)
        decoded = self._open(index)
        if decoded is None:
            raise UserError(f"{self.images} does not have the size that it should: run it again")
        if train := decoded.split("train"):
            index["mean"], index["std"] = moments(decoded.images(train).x)
        index["sha256"] = _content(decoded)
        index["mtime"] = self.images.stat().st_mtime_ns
        temporary = self.folder / "index.part"
        temporary.write_text(json.dumps(index | {"digest": _digest(index)}))
        temporary.replace(self.folder / "index.json")
        for name in ("plan.json", "chunks.jsonl"):
            (self.folder / name).unlink()
        return Decoded(decoded.x, index)

    def refuse(self, bad: Mapping[str, str]) -> None:
        """Raise a UserError for files that are no pictures, unless they are to be skipped."""
        if bad and self.reading.on_bad_image == "refuse":
            raise UserError(refusal(self.listing.place, bad, len(self.listing.items)))

    def _say(self, line: str) -> None:
        if self.console:
            self.console.say(line)

    def _warn(self, line: str) -> None:
        if self.console:
            self.console.warn(line)


def _duplicates(items: Sequence[Item], digests: Sequence[str]) -> Mapping[str, Any]:
    """Return how many images are the same, between splits, within one, and of two classes."""
    first: dict[str, Item] = {}
    between, within, labels = list[str](), list[str](), list[str]()
    for item, digest in zip(items, digests, strict=True):
        other = first.setdefault(digest, item)
        if other is item:
            continue
        pair = f"{item.name} = {other.name}"
        (between if other.split != item.split else within).append(pair)
        if other.label != item.label:
            labels.append(pair)
    return {
        "between": [len(between), between[:NAMES]],
        "within": [len(within), within[:NAMES]],
        "labels": [len(labels), labels[:NAMES]],
    }


def _content(decoded: Decoded) -> dict[str, str]:
    """Return the checksums of the images of each split."""
    sums = {}
    for name in ORDER:
        part = decoded.images(decoded.split(name) or slice(0, 0))
        sums[f"{name}_x"] = fingerprint(part, part, 1)["train_x"]
    return sums


def _json(path: Path) -> Mapping[str, Any] | None:
    """Return the object in a file; None: there is none."""
    return _parsed(path.read_text()) if path.is_file() else None


def _parsed(text: str) -> Mapping[str, Any] | None:
    try:
        content = json.loads(text)
    except ValueError:
        return None
    return content if isinstance(content, dict) else None
