"""Which runs can stand beside a front: those that have held out the same images."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from equipoise import data
from equipoise.data.core import Dataset, Images
from equipoise.errors import UserError
from equipoise.settings import recipe as recipes
from equipoise.settings.recipe import Recipe, Split
from equipoise.store.runs import Run

_SPLIT = ("data", "limit", "validation")  # what decides which images are held out


@dataclass(frozen=True, eq=False)
class HeldOut:
    """The images of a run: those it was trained on, and those it has held out.

    Arguments:
        recipe: The run's recipe.
        dataset: Its data.
        train: The images it was trained on.
        validation: The images it has held out; of these a front is measured.
    """

    recipe: Recipe
    dataset: Dataset
    train: Images
    validation: Images

    @classmethod
    def of(cls, run: Run, data_dir: str | Path | None, device: torch.device) -> "HeldOut":
        """Read the images of a run.

        Raises:
            UserError: If they are not found, or are not those it was trained on.
        """
        recipe = recipes.stored(run)
        dataset = data.load(recipe.data, data_dir or recipe.data_dir)
        trained = run.read_json("provenance.json").get("data", {}).get("sha256")
        if trained and trained != dataset.sha256:
            raise UserError(
                f"{run.path} was trained on other data than is found now (checksums differ)"
            )
        split = Split.of(recipe, dataset, device)
        return cls(recipe, dataset, split.train, split.validation)


def same_images(run: Run, others: Sequence[Run]) -> None:
    """Refuse runs that may have learned what another one has held out.

    Which images are held out follows from the data and from two settings of the recipe alone.

    Arguments:
        run: The run whose held-out images are used.
        others: The runs whose models are measured on them.

    Raises:
        UserError: If one was trained on other data, or held out other images.
    """
    mine, problems = _split_of(run), []
    for other in others:
        if other.path.resolve() == run.path.resolve():
            continue
        theirs = _split_of(other)
        different = [
            f"{key} {theirs[key]} there, {mine[key]} here"
            for key in mine
            if mine[key] != theirs[key]
        ]
        if different:
            problems.append(f"{other.path} ({'; '.join(different)})")
    if problems:
        raise UserError(
            f"the images that {run.path} has held out may have been learned by "
            f"{', '.join(problems)}: choose runs with the same {', '.join(_SPLIT)}"
        )


def _split_of(run: Run) -> dict[str, object]:
    recipe = recipes.stored(run)
    content = run.read_json("provenance.json").get("data", {}).get("sha256", {})
    split: dict[str, object] = {key: getattr(recipe, key) for key in _SPLIT}
    known = {key: content.get(key) for key in ("train_x", "train_y") if key in content}
    return split | {"checksums": known} if known else split
