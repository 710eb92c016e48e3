"""What is measured: a network, images, labels and a threat, made anew from a few plain values."""

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.stranger import STRANGER, ResNet18
from equipoise import models
from equipoise.data.core import Images
from equipoise.errors import UserError
from equipoise.execution import Execution
from equipoise.jobs.device import choose_device
from equipoise.threat import Threat

MODELS = (*models.MODELS, STRANGER)
SMALL = {"channels": 1, "size": 28, "eps": 0.1}  # for small-cnn
LARGE = {"channels": 3, "size": 32, "eps": 8 / 255}


@dataclass(frozen=True, kw_only=True, eq=False)
class Problem:
    """What all sides are given; none of them may change it.

    Arguments:
        model: The network, in eval mode, in float32, in torch's default layout.
        images: The images with their labels.
        threat: The ball and the range.
    """

    model: nn.Module
    images: Images
    threat: Threat

    @cached_property
    def x(self) -> Tensor:
        """The images as floats in [0, 1], with shape (N, C, H, W)."""
        return self.images.pixels()

    @property
    def y(self) -> Tensor:
        """The labels, with shape (N,)."""
        return self.images.y

    def first(self, n: int) -> "Problem":
        """Return the problem with its first ``n`` images alone."""
        return replace(self, images=self.images.take(slice(n)))


@dataclass(frozen=True, kw_only=True)
class Case:
    """A network with random weights on random images, which it labels itself.

    Arguments:
        model: A name of :data:`MODELS`.
        width: The factor on its number of features.
        channels: The channels of an image.
        size: The pixels of an image a side.
        classes: The number of classes.
        batch_size: The images that pass at a time.
        images: The number of images; None: one batch.
        steps: The steps of the attack.
        learners: Those of a training: 2 are A3GT as published, 1 is PGD-AT.
        eps: The Linf radius, in [0, 1].
        device: ``auto``, ``cpu`` or ``cuda``.
        execution: How our sides run it; as plain values, too.
        seed: Of weights, images and labels.
    """

    model: str = "small-cnn"
    width: float = 1.0
    channels: int = 1
    size: int = 28
    classes: int = 10
    batch_size: int = 64
    images: int | None = None
    steps: int = 10
    learners: int = 2
    eps: float = 0.1
    device: str = "auto"
    execution: Execution = field(default_factory=Execution)
    seed: int = 0

    def __post_init__(self) -> None:
        if isinstance(self.execution, dict):
            object.__setattr__(self, "execution", Execution(**self.execution))
        least = {"channels": 1, "classes": 2, "batch_size": 1, "steps": 1, "seed": 0, "images": 1}
        problems = [
            f"{name} must be at least {low}, got {value}"
            for name, low in least.items()
            if (value := getattr(self, name)) is not None and value < low
        ]
        if not 0 < self.eps <= 1:
            problems.append(f"eps must lie in (0, 1], got {self.eps:g}")
        if problems:
            raise UserError("; ".join(problems))

    @classmethod
    def of(cls, model: str, **given: Any) -> "Case":
        """Return a case whose images and radius are those that suit the model by default."""
        return cls(model=model, **(SMALL if model == "small-cnn" else LARGE) | given)

    def execution_of(self, side: str) -> Execution:
        """Return how one of our sides runs it: in float32, or compiled, where its name says so."""
        if side == "ours-compiled":
            return replace(self.execution, compile=True)
        if side != "ours-float32":
            return self.execution
        return replace(self.execution, precision="float32", update="float32")

    def smaller(self) -> "Case":
        """Return the smallest case of the same kind, to load libraries and warm them up."""
        return replace(self, batch_size=2, images=self.images and 2, steps=1)

    @property
    def title(self) -> str:
        """The network in a few words."""
        width = "" if self.width == 1 else f" width {self.width:g},"
        return f"{self.model},{width} {self.channels}x{self.size}x{self.size}"

    def build(self) -> Problem:
        """Return network, images, labels and threat: the same ones each time.

        The global random state is as it was afterwards.

        Raises:
            UserError: If there is no such model or device, or the sizes do not fit.
        """
        device = choose_device(self.device)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            model = self._network().to(device).eval()
        generator = torch.Generator().manual_seed(self.seed)
        shape = (self.images or self.batch_size, self.channels, self.size, self.size)
        pixels = torch.randint(256, shape, generator=generator, dtype=torch.uint8).to(device)
        images = Images(pixels, torch.zeros(len(pixels), dtype=torch.int64, device=device))
        with torch.no_grad():
            parts = torch.split(images.pixels(), self.batch_size)
            labels = torch.cat([model(part).argmax(1) for part in parts])
        return Problem(model=model, images=Images(pixels, labels), threat=Threat("linf", self.eps))

    def _network(self) -> nn.Module:
        if self.model == STRANGER:
            return ResNet18(self.channels, self.classes, self.width)
        size = (self.size, self.size)
        settings = {"channels": self.channels, "size": size, "classes": self.classes}
        return models.build(self.model, settings | {"width": self.width})
