"""What would be read as data: splits, classes, sizes, bad files, and a picture of some images."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from matplotlib import get_data_path
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from equipoise import data
from equipoise.data import collection
from equipoise.data.core import Dataset, Images
from equipoise.data.decoded import decoded
from equipoise.data.reading import Reading, is_own
from equipoise.report.runs_reader import AUGMENTED
from equipoise.store import files
from equipoise.store.runs import Run
from equipoise.terminal.progress import Console
from equipoise.terminal.table import output, rich_table
from equipoise.training.augment import Augment

ROWS, COLUMNS = 10, 4  # classes and images of each in the picture
TILE = 64  # pixels: smaller images are enlarged to about this
SHOWN = 5  # sizes and modes that are named
NAMES = 20  # files that are listed
FEW, SMALL = 3, 640  # classes and largest side of the picture in a run folder


def show_data(
    name: str,
    reading: Reading,
    *,
    data_dir: Path | None = None,
    augment: str = "data",
    out: Path | None = None,
    console: Console,
) -> None:
    """Print what a name of data stands for; draw some images as they are and augmented.

    Arguments:
        name: As for :func:`equipoise.data.load`.
        reading: How images in files are read; files that cannot be read are listed.
        data_dir: The folder of the data.
        augment: The augmentation, as in a recipe.
        out: Where the picture is written; None: there is none.
        console: Where lines and progress are shown.

    Raises:
        UserError: If it cannot be read as data.
    """
    dataset = data.load(name, data_dir, reading=_lenient(name, reading), console=console)
    terminal, parts = output(), _parts(dataset)
    counts = {split: Counter(part.y.tolist()) for split, part in parts.items()}
    rows = [
        (str(k), label, *(f"{counts[split][k]:,}" for split in parts))
        for k, label in enumerate(dataset.classes)
    ]
    total = ("", "all", *(f"{len(part):,}" for part in parts.values()))
    columns = ["output", "class", *parts]
    terminal.print(rich_table(dataset.name, columns, [*rows, total], numbers=[*parts]))
    for line in _lines(dataset, name, reading):
        terminal.print(line, markup=False, soft_wrap=True)
    if out is not None:
        picture = sheet(dataset, Augment.named(augment, dataset))
        files.write(out, lambda file: picture.save(file, format="PNG"))
        line = f"written: {out} (left: as read; right: with augment={augment})"
        terminal.print(line, markup=False)


def _lenient(name: str, reading: Reading) -> Reading:
    """Return the same reading, where files that cannot be read are skipped."""
    pictures = is_own(name, data.DATASETS) and Path(name).suffix.lower() != ".npz"
    return replace(reading, on_bad_image="skip") if pictures else reading


def _parts(dataset: Dataset) -> dict[str, Images]:
    every = {"train": dataset.train, "validation": dataset.validation, "test": dataset.test}
    return {split: part for split, part in every.items() if part is not None and len(part)}


def _lines(dataset: Dataset, name: str, reading: Reading) -> Iterator[str]:
    shape = " x ".join(map(str, (dataset.channels, *dataset.size)))
    yield f"images of {shape} values; usual radius {dataset.eps:.4g} (Linf); {dataset.source}"
    lenient = _lenient(name, reading)
    if not dataset.inputs:
        return
    index = decoded(collection.listed(name, reading), lenient, None).index
    for what in ("sizes", "modes"):
        common = [f"{count:,} of {kind}" for kind, count in [*index[what].items()][:SHOWN]]
        others = " and others" if len(index[what]) > SHOWN else ""
        yield f"{what} of the files: {', '.join(common)}{others}"
    for what, text in (("between", "in two splits"), ("within", "in one split")):
        count, pairs = index["duplicates"][what]
        yield f"copies {text}: {count:,}{''.join(f'; {pair!r}' for pair in pairs)}"
    yield f"files that cannot be read: {len(index['bad']):,}"
    for file, why in [*index["bad"].items()][:NAMES]:
        yield f"  {file!r}: {why}"


def keep_sheet(run: Run, dataset: Dataset, augment: Augment) -> None:
    """Write a small picture of augmented training images to a run folder, for its report."""
    if augment != Augment():
        picture = sheet(dataset, augment, FEW)
        picture.thumbnail((SMALL, SMALL))
        run.write(AUGMENTED, lambda file: picture.save(file, format="PNG"))


def sheet(dataset: Dataset, augment: Augment, rows: int = ROWS) -> Image.Image:
    """Return a picture: for each class some images, and the same images augmented."""
    part = dataset.train if len(dataset.train) else dataset.test
    height, width = dataset.size
    scale = max(1, TILE // max(height, width))
    high, wide, edge = height * scale + 4, width * scale + 4, 120
    labels = [k for k in range(len(dataset.classes)) if bool((part.y == k).any())][:rows]
    picture = Image.new("RGB", (edge + wide * 2 * COLUMNS, high * len(labels)), "white")
    draw = ImageDraw.Draw(picture)
    for row, k in enumerate(labels):
        index = (part.y == k).nonzero()[:COLUMNS, 0]
        place = 4, row * high + high // 2 - 6
        draw.text(place, dataset.classes[k][:18], fill="black", font=font())
        as_read = part.pixels(index)
        changed = augment(part.x[index], torch.Generator().manual_seed(k))
        for column, x in enumerate([*_padded(as_read), *_padded(changed)]):
            if x is not None:
                tile = _tile(x).resize((width * scale, height * scale), Image.Resampling.NEAREST)
                picture.paste(tile, (edge + column * wide, row * high + 2))
    return picture


def font() -> ImageFont.FreeTypeFont:
    """Return a font with accents, Greek and Cyrillic, which that of Pillow does not have."""
    return ImageFont.truetype(Path(get_data_path()) / "fonts/ttf/DejaVuSans.ttf", 11)


def _padded(x: Tensor) -> list[Tensor | None]:
    return [*x, *[None] * (COLUMNS - len(x))]


def _tile(x: Tensor) -> Image.Image:
    """Return an image (C, H, W) in [0, 1] as a picture; of other than 3 channels the first."""
    shown = x if len(x) == 3 else x[:1].expand(3, -1, -1)
    return Image.fromarray((shown * 255).round().byte().permute(1, 2, 0).contiguous().numpy())
