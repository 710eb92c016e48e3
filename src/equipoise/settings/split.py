"""The images of a training: those it trains on, and those it measures itself on."""

from typing import NamedTuple

import torch
from torch import Tensor

from equipoise.data.core import Dataset, Images, stratified_split
from equipoise.errors import UserError
from equipoise.training.learner import derived_seed


class Split(NamedTuple):
    """The training images, cut to the recipe's limit, and the held-out ones.

    These are the data's own validation images, as many as the recipe holds out, or else a part of
    the training images: the same for every seed, unless ``subset=seed``. The reserve is always a
    part of the training images; without one, the other images are the same.
    """

    train: Images
    validation: Images
    reserve: Images

    @classmethod
    def of(
        cls,
        dataset: Dataset,
        device: torch.device,
        *,
        limit: int | None,
        subset_seed: int,
        validation: int,
        batch_size: int,
        reserve: int = 0,
    ) -> "Split":
        """Return the images of a recipe on a device; the settings are those of the recipe.

        Raises:
            UserError: If they are too few for the recipe.
        """
        images = dataset.train
        if not len(images):
            raise UserError(f"{dataset.name} has test images only: there is nothing to train on")
        least = 2 * len(dataset.classes)
        if limit is not None and limit < least:
            raise UserError(f"limit must be at least {least}, two images a class, got {limit}")
        if limit is not None and limit < len(images):
            classes = len(dataset.classes)
            images = images.take(proportional(images, limit, classes, subset_seed))
        seed, own = derived_seed(0, "validation"), dataset.validation
        reserve = held_out(reserve, len(images))
        if own is None:
            rest, held = stratified_split(images.y, held_out(validation, len(images)), seed)
            images, own = images.take(rest), images.take(held)
        elif validation < len(own):
            own = own.take(proportional(own, validation, len(dataset.classes)))
        reserved = images.take(slice(0))
        if reserve:
            rest, kept = stratified_split(images.y, reserve, derived_seed(0, "reserve"))
            images, reserved = images.take(rest), images.take(kept)
        if len(images) < batch_size:
            raise UserError(
                f"batch_size={batch_size} is more than the {len(images)} training images"
            )
        return cls(images.to(device), own.to(device), reserved.to(device))


def held_out(validation: int, images: int) -> int:
    """Return how many of so many images are held out, where ``validation`` are asked for."""
    return max(min(validation, images // 5), min(validation, 1))


def proportional(images: Images, limit: int, classes: int, seed: int = 0) -> Tensor:
    """Return the positions of ``limit`` images, in proportion to the classes."""
    if limit > len(images) - classes:
        return torch.arange(len(images))
    return stratified_split(images.y, limit, derived_seed(seed, "limit"))[1]
