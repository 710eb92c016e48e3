"""The training images of a recipe, split into those trained on and those held out."""

__all__ = ["Split", "proportional"]

from dataclasses import dataclass

import torch
from torch import Tensor

from equipoise.data import Dataset, Images, stratified_split
from equipoise.errors import UserError
from equipoise.settings.recipe import Recipe
from equipoise.training.learner import derived_seed


@dataclass
class Split:
    """The training images, cut to the recipe's limit and split into two.

    The held-out images are the same for every seed.
    """

    train: Images
    validation: Images

    @classmethod
    def of(cls, recipe: Recipe, dataset: Dataset, device: torch.device) -> "Split":
        """Return the images of a recipe on a device.

        Raises:
            UserError: If they are too few for the recipe.
        """
        images = dataset.train
        least = 2 * len(dataset.classes)
        if recipe.limit is not None and recipe.limit < least:
            raise UserError(
                f"limit must be at least {least}, two images a class, got {recipe.limit}"
            )
        if recipe.limit is not None and recipe.limit < len(images):
            images = images.take(proportional(images, recipe.limit, len(dataset.classes)))
        held_out = max(min(recipe.validation, len(images) // 5), 1)
        rest, held = stratified_split(images.y, held_out, derived_seed(0, "validation"))
        if len(rest) < recipe.batch_size:
            raise UserError(
                f"batch_size={recipe.batch_size} is more than the {len(rest)} training images"
            )
        return cls(images.take(rest).to(device), images.take(held).to(device))


def proportional(images: Images, limit: int, classes: int) -> Tensor:
    """Return the positions of so many images, in proportion of the classes."""
    if limit > len(images) - classes:
        return torch.arange(len(images))
    return stratified_split(images.y, limit, derived_seed(0, "limit"))[1]
