"""A data set of pictures of the user's own: their classes, splits, and what was noticed."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from equipoise.data.core import Dataset, Images, labels_digest
from equipoise.data.decoded import Decoded, decoded
from equipoise.data.folder import ORDER, Listing, in_csv, in_folder
from equipoise.data.pictures import inputs
from equipoise.data.reading import HUB, Reading
from equipoise.errors import UserError, nearest, short

if TYPE_CHECKING:
    from equipoise.terminal.progress import Console

LARGE = 64  # pixels a side: from here on the customary radius is 4/255
SHOWN = 12  # classes that a line names


def read(name: str, reading: Reading, console: "Console | None" = None) -> Dataset:
    """Return the data set in a folder, a CSV file or ``hf-datasets:NAME``.

    Raises:
        UserError: If it cannot be read as images with labels.
        RunError: If the disk is full.
    """
    listing = listed(name, reading)
    made = decoded(listing, reading, console)
    items = [item for item in listing.items if item.name not in made.index["bad"]]
    labels = [item.label for item in items]
    names, outputs = classes(labels, reading)
    y = torch.tensor([outputs[label] for label in labels], dtype=torch.int64)
    parts = {split: _part(made, split, y) for split in ORDER}
    remarks = list(listing.remarks)
    if parts["train"] is None and parts["test"] is None:
        parts["test"], parts["validation"] = parts["validation"], None
        remarks.append("there are validation images only: they are taken for testing")
    test = parts["test"]
    train = made.images(slice(0, 0), y) if parts["train"] is None else parts["train"]
    if test is None:
        raise UserError(f"{listing.place} has no test images that can be read")
    if len(train) and not reading.classes:
        _refuse_absent(names, train.y, listing.place)
    for line in _lines(made, parts, names, reading, remarks):
        if console:
            console.say(line)
    for line in _warnings(made, parts, names, listing.place):
        if console:
            console.warn(line)
    _, channels, height, width = made.index["shape"]
    every = {"train": train, "validation": parts["validation"], "test": test}
    return Dataset(
        name=_short_name(name),
        train=train,
        test=test,
        validation=parts["validation"],
        classes=names,
        eps=8 / 255 if max(height, width) <= LARGE else 4 / 255,
        pad=min(height, width) // 8,
        mean=tuple(made.index.get("mean", (0.5,) * channels)),
        std=tuple(made.index.get("std", (0.5,) * channels)),
        source=_source(made, every, listing.place),
        sha256=_checksums(made, every, len(names)),
        inputs=inputs((height, width), made.index["mode"], reading),
    )


def listed(name: str, reading: Reading) -> Listing:
    """Return the pictures that a name of data stands for, in their splits.

    Raises:
        UserError: If there are none.
    """
    if name.startswith(HUB):
        from equipoise.data.hub import in_hub

        listing = in_hub(name.removeprefix(HUB))
    else:
        path = Path(name).expanduser().resolve()
        if path.suffix.lower() == ".csv":
            listing = in_csv(path, path.parent)
        elif not path.is_dir():
            raise UserError(f"there is no folder {path} (of images, as data)")
        elif reading.labels is not None:
            listing = in_csv(Path(reading.labels).expanduser().resolve(), path)
        else:
            listing = in_folder(path)
    return listing.checked()


def _short_name(name: str) -> str:
    return Path(name.removeprefix(HUB)).expanduser().resolve().stem


def _part(made: Decoded, split: str, y: Tensor) -> Images | None:
    where = made.split(split)
    return None if where is None else made.images(where, y)


def _checksums(made: Decoded, parts: Mapping[str, Images | None], classes: int) -> dict[str, str]:
    """Return the fingerprint of the content, whose images need not be read for it."""
    sums = {}
    for split, part in parts.items():
        if part is None:
            continue
        only = split == "test" and made.split("test") is None  # validation images, for testing
        sums[f"{split}_x"] = made.index["sha256"]["validation_x" if only else f"{split}_x"]
        sums[f"{split}_y"] = labels_digest(part.y, classes)
    return sums


def classes(labels: list[str], reading: Reading) -> tuple[tuple[str, ...], Mapping[str, int]]:
    """Return the names of the classes by output, and the output of each label.

    Raises:
        UserError: If the file of the classes cannot be read, or lacks one.
    """
    if reading.classes is None:
        every = sorted(set(labels))
        names = tuple(" ".join(label.split()) for label in every)  # a name may have line breaks
        return names, {label: k for k, label in enumerate(every)}
    names, outputs = _from_file(Path(reading.classes).expanduser())
    for label in sorted(set(labels)):
        if label not in outputs:
            raise UserError(
                f"{reading.classes}: {nearest(label, outputs, 'class')[:300]}; it has to name "
                "every class of the images, in the order of the outputs of the model"
            )
    return names, outputs


def _from_file(path: Path) -> tuple[tuple[str, ...], dict[str, int]]:
    """Return the names by output, and the output of each name and further name.

    The file has a name in each line, or is JSON: a list of names, an object from names to outputs,
    or one from outputs to a name or to a list of names.
    """
    wanted = "expected a name of a class in each line, or JSON from outputs to names"
    try:
        text = path.read_text(encoding="utf-8-sig")
        content: Any = json.loads(text) if path.suffix.lower() == ".json" else text.splitlines()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from None
    except ValueError as error:
        raise UserError(f"{path} is no text of class names ({error}): {wanted}") from None
    if isinstance(content, dict):
        if all(type(value) is int for value in content.values()):
            pairs = [(output, name) for name, output in content.items()]
        else:
            pairs = [(int(k), v) for k, v in content.items() if k.isdecimal()]
        content = [names for _, names in sorted(pairs)]
        if [output for output, _ in sorted(pairs)] != list(range(len(content))):
            raise UserError(f"{path}: outputs must be 0..K-1, each once: {wanted}")
    if not isinstance(content, list):
        raise UserError(f"{path}: {wanted}")
    groups = [each if isinstance(each, list) else [each] for each in content]
    names = [[str(name).strip() for name in group] for group in groups]
    names = names if path.suffix.lower() == ".json" else [each for each in names if each[0]]
    outputs = {name: k for k, group in enumerate(names) for name in group}
    if len(names) < 2 or not all(names) or len(outputs) != sum(map(len, names)):
        raise UserError(f"{path}: class names must be two or more, all different: {wanted}")
    return tuple(group[-1] for group in names), outputs


def _refuse_absent(names: tuple[str, ...], y: Tensor, place: str) -> None:
    there = set(y.tolist())
    absent = [name for k, name in enumerate(names) if k not in there]
    if absent:
        raise UserError(
            f"{place} has no training images of {len(absent)} of {len(names)} classes, like "
            f"{short(absent[0])}: add some, remove the class, or name all classes in a file "
            "(classes=FILE)"
        )


def _source(made: Decoded, parts: Mapping[str, Images | None], place: str) -> str:
    sizes = [f"{len(part):,} {split}" for split, part in parts.items() if part is not None]
    _, *shape = made.index["shape"]
    return f"{', '.join(sizes)} images of {' x '.join(map(str, shape))} from {place}"


def _lines(
    made: Decoded,
    parts: Mapping[str, Images | None],
    names: tuple[str, ...],
    reading: Reading,
    remarks: list[str],
) -> Iterator[str]:
    """Yield what was read, and how."""
    _, channels, height, width = made.index["shape"]
    sizes = [f"{len(part):,} {split}" for split, part in parts.items() if part is not None]
    colour = "grey" if channels == 1 else "colour"
    how = f", {reading.resize}" if len(made.index["sizes"]) > 1 or reading.size else ""
    yield f"images: {', '.join(sizes)}; {colour}, {height} x {width} pixels{how}"
    shown = ", ".join(f"{k} {name}" for k, name in [*enumerate(names)][:SHOWN])
    more = f" and {len(names) - SHOWN:,} more" if len(names) > SHOWN else ""
    order = f"in the order of {reading.classes}" if reading.classes else "sorted by name"
    yield f"classes by output, {order}: {shown}{more}"
    yield from remarks
    for what, count in made.index["remarks"].items():
        yield f"{count:,} images are {what}"
    count, pairs = made.index["duplicates"]["within"]
    if count:
        yield f"{count:,} images are there twice in one split, like {short(pairs[0])}"


def _warnings(
    made: Decoded, parts: Mapping[str, Images | None], names: tuple[str, ...], place: str
) -> Iterator[str]:
    """Yield what may make numbers wrong."""
    if bad := made.index["bad"]:
        first, why = next(iter(bad.items()))
        yield f"{len(bad):,} images in {place} were skipped, like {short(first)} ({why})"
    count, pairs = made.index["duplicates"]["between"]
    if count:
        yield (
            f"{count:,} images are the same in two splits, like {short(pairs[0])}: results on "
            "them say too much; remove the copies"
        )
    count, pairs = made.index["duplicates"]["labels"]
    if count:
        yield f"{count:,} images are there with two labels, like {short(pairs[0])}"
    every = {k for part in parts.values() if part is not None for k in part.y.tolist()}
    for split, part in parts.items():
        absent = every - set(part.y.tolist()) if part is not None else set()
        if absent:
            named, count = short(names[min(absent)]), len(absent)
            yield f"there are no {split} images of {count} of {len(every)} classes, like {named}"
