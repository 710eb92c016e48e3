"""Noise in the place of datasets that are not here, for ``equipoise --import``."""

import torch

from equipoise import data
from equipoise.data import Dataset, Images, Source
from equipoise.data.core import fingerprint

SHAPES = {"cifar10": (3, 32, 32), "mnist": (1, 28, 28), "svhn": (3, 32, 32)}


def stand_in(name):
    """Return a source of noise, 60 images of each of ten classes, the lighter the later."""
    channels, height, width = SHAPES[name]

    def make():
        draws = torch.Generator().manual_seed(0)
        y = torch.arange(600) % 10
        noise = torch.randint(0, 60, (600, channels, height, width), generator=draws)
        x = (noise + 19 * y.view(-1, 1, 1, 1)).to(torch.uint8)
        train, test = Images(x, y), Images(x[:40].clone(), y[:40].clone())
        return Dataset(
            name=name,
            train=train,
            test=test,
            classes=tuple("0123456789"),
            mean=(0.5,) * channels,
            std=(0.25,) * channels,
            eps=8 / 255,
            pad=4,
            flip=False,
            source="noise",
            sha256=fingerprint(train, test, 10),
        )

    return Source(
        title="Noise",
        n=640,
        licence="none",
        eps=8 / 255,
        make=make,
    )


for name in SHAPES:
    data.DATASETS[name] = stand_in(name)
