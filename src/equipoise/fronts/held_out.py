"""The images of a run, a few of them for pictures, and the check that other runs held them out."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors.numpy import save
from torch import Tensor, nn

from equipoise.data.core import Dataset, Images
from equipoise.errors import UserError
from equipoise.evaluation.judge import Judge
from equipoise.evaluation.stored import FRONT
from equipoise.settings import recipe as recipes
from equipoise.settings.recipe import Recipe
from equipoise.store.runs import Run
from equipoise.store.verdicts import Flags

BATCH = 500  # images that are floats at a time
SHOWN = 8  # images of a gallery
PICTURES = f"{FRONT}/gallery.safetensors"
CONTENT = ("train_x", "train_y", "validation_x", "validation_y")
_SPLIT = ("data", "limit", "subset_seed", "validation")  # what decides which images are held out


def right(model: nn.Module, images: Images) -> Flags:
    """Return which images a model classifies correctly; it is moved to their device."""
    judge, parts = Judge(model.to(images.y.device)), list[Tensor]()
    for first in range(0, len(images), BATCH):
        some = images.take(slice(first, first + BATCH))
        parts.append((judge.logits(some.pixels()).argmax(1) == some.y).cpu())
    return torch.cat(parts).numpy()


class HeldOut(NamedTuple):
    """The recipe and the data of a run, its training images and its held-out images."""

    recipe: Recipe
    dataset: Dataset
    train: Images
    validation: Images

    @classmethod
    def of(cls, run: Run, data_dir: str | Path | None, device: torch.device) -> "HeldOut":
        """Read the images of a run.

        Raises:
            UserError: If the data are missing, or are not those of the training.
        """
        recipe = recipes.stored(run)
        dataset = recipe.dataset(data_dir)
        trained = run.read_json("provenance.json").get("data", {}).get("sha256")
        if trained and trained != dataset.sha256:
            raise UserError(
                f"{run.path} was trained on other data than those of {recipe.data} now (the "
                "checksums differ)"
            )
        split = recipe.split(dataset, device)
        return cls(recipe, dataset, split.train, split.validation)


def same_images(run: Run, others: Sequence[Run]) -> None:
    """Refuse runs that may have been trained on the held-out images of a run.

    Which images are held out follows from the data and from a few settings of the recipe alone.

    Arguments:
        run: The run whose held-out images are used.
        others: The runs whose models are measured on them.

    Raises:
        UserError: If one was trained on other data, or held out other images.
    """
    here, problems = _split_of(run), []
    for other in others:
        if other.path.resolve() == run.path.resolve():
            continue
        there = _split_of(other)
        different = [
            f"{key} {there[key]} there, {value} here"
            for key, value in here.items()
            if there.get(key, value) != value
        ]
        if different:
            problems.append(f"{other.path} ({'; '.join(different)})")
    if problems:
        raise UserError(
            f"held-out images of {run.path} may be training images of {', '.join(problems)}: "
            "choose runs with the same data, limit, validation and, with subset=seed, seed"
        )


def _split_of(run: Run) -> dict[str, object]:
    """Return what decides which images a run holds out, with the checksums of its data."""
    recipe = recipes.stored(run)
    digests = run.read_json("provenance.json").get("data", {}).get("sha256", {})
    split: dict[str, object] = {key: getattr(recipe, key) for key in _SPLIT}
    checksums = {key: digests[key] for key in CONTENT if key in digests}
    return split | {"checksums": checksums} if checksums else split


def gallery(run: Run, x: Tensor, y: Tensor) -> str:
    """Write a few images of different classes for the report of a front; return the file."""
    images, labels = x.cpu().numpy(), y.cpu().numpy().astype(np.int64)
    turn = np.array([int((labels[:i] == label).sum()) for i, label in enumerate(labels)])
    rows = np.lexsort((np.arange(len(labels)), labels, turn))[:SHOWN].copy()
    content = {"rows": rows, "x": np.ascontiguousarray(images[rows]), "y": labels[rows].copy()}
    payload = save(content)
    run.write(PICTURES, lambda file: file.write(payload))
    return PICTURES
