"""The random augmentation of training images, as a recipe names it."""

from typing import NamedTuple

import torch
from torch import Tensor

from equipoise.data.augment import jitter, resized_crop
from equipoise.data.core import Dataset, crop_flip, to_unit
from equipoise.errors import UserError, nearest


class Augment(NamedTuple):
    """The random augmentation of training images.

    Arguments:
        pad: The largest shift of a crop, in pixels.
        flip: Whether images are mirrored at random.
        scale: The least share of the area that a random resized crop keeps; 1: there is none.
        jitter: How far factors of brightness, contrast and saturation are from 1 at most.
    """

    pad: int = 0
    flip: bool = False
    scale: float = 1.0
    jitter: float = 0.0

    @classmethod
    def named(cls, words: str, dataset: Dataset) -> "Augment":
        """Return the augmentation that a recipe names.

        Arguments:
            words: ``data`` (as the dataset has it), ``none``, ``small``, ``large``, or some of
                :data:`CHANGES` with commas between them.
            dataset: The data.

        Raises:
            UserError: If there is no such change.
        """
        if words == "data":
            return cls(dataset.pad, dataset.flip)
        chosen = changes(words)
        pad = dataset.pad or max(1, min(dataset.size) // 8)
        return cls(
            pad if "crop" in chosen else 0,
            "flip" in chosen,
            LEAST_AREA if "resized-crop" in chosen else 1.0,
            JITTER if "jitter" in chosen else 0.0,
        )

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Return a batch of images, bytes or floats, as augmented floats in [0, 1]."""
        x = to_unit(crop_flip(x, self.pad, self.flip, generator))
        if self.scale < 1:
            x = resized_crop(x, self.scale, generator)
        return jitter(x, self.jitter, generator) if self.jitter else x


CHANGES = ("crop", "resized-crop", "flip", "jitter")
PRESETS = {"none": "", "small": "crop,flip", "large": "resized-crop,flip,jitter"}
"""What is usual for small images, like CIFAR-10, and for photos of 64 pixels and more."""

LEAST_AREA = 0.25  # of the random resized crop
JITTER = 0.4


def changes(words: str) -> list[str]:
    """Return the changes of :data:`CHANGES` that words for :meth:`Augment.named` name.

    Raises:
        UserError: If there is no such change.
    """
    chosen = [word.strip() for word in PRESETS.get(words, words).split(",") if word.strip()]
    for word in chosen:
        if word not in CHANGES and words != "data":
            raise UserError(nearest(word, [*CHANGES, *PRESETS, "data"], "augmentation"))
    return chosen
