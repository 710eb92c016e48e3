"""What is benched: a network, images, labels and a threat, made anew from a few plain values."""

__all__ = ["DEFAULTS", "MODELS", "Case", "Problem", "default_of"]

from collections.abc import Mapping
from dataclasses import dataclass
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
_OTHERS = {"channels": 3, "size": 32, "eps": 8 / 255}
DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    name: {"channels": 1, "size": 28, "eps": 0.1} if name == "small-cnn" else _OTHERS
    for name in MODELS
}
LARGEST_EPS = 1.0


def default_of(model: str, name: str) -> Any:
    """Return the channels, the size or the eps that suit a model."""
    return DEFAULTS.get(model, _OTHERS)[name]


@dataclass(frozen=True, kw_only=True)
class Problem:
    """What all sides are given; none of them may change it.

    Arguments:
        model: The network, in eval mode, in float32, as torch lays it out.
        images: The images as bytes, with the labels that the network gives them: an attack has to
            work for each.
        x: The same images as floats in [0, 1], with shape (N, C, H, W).
        threat: The ball and the range.
    """

    model: nn.Module
    images: Images
    x: Tensor
    threat: Threat

    @property
    def y(self) -> Tensor:
        """Return the labels, with shape (N,)."""
        return self.images.y


@dataclass(frozen=True, kw_only=True)
class Case:
    """What to bench on.

    Arguments:
        model: A name of :data:`MODELS`; its weights are as they are drawn at first.
        width: The factor on its number of features.
        channels: The channels of an image.
        size: The pixels of an image a side.
        classes: The number of classes.
        batch_size: The images that pass at a time.
        images: How many images there are; None: one batch.
        steps: The steps of the attack.
        eps: The Linf radius, in [0, 1].
        device: ``auto``, ``cpu`` or ``cuda``.
        precision: Of our search: see :class:`equipoise.execution.Execution`.
        update: Of our training step.
        layout: Likewise.
        compile: Whether our search form is compiled.
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
    eps: float = 0.1
    device: str = "auto"
    precision: str = "auto"
    update: str = "float32"
    layout: str = "auto"
    compile: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        least = {"channels": 1, "classes": 2, "batch_size": 1, "steps": 1, "seed": 0}
        problems = [
            f"{name} must be at least {low}, got {getattr(self, name)}"
            for name, low in least.items()
            if getattr(self, name) < low
        ]
        if self.images is not None and self.images < 1:
            problems.append(f"images must be at least 1, got {self.images}")
        if not 0 < self.eps <= LARGEST_EPS:
            problems.append(f"eps must lie in (0, {LARGEST_EPS:g}], got {self.eps:g}")
        if problems:
            raise UserError("; ".join(problems))
        self.execution()

    def execution(self, precision: str | None = None) -> Execution:
        """Return how we run it, in another precision where one is given."""
        chosen: Any = {
            "precision": precision or self.precision,
            "update": precision or self.update,
            "layout": self.layout,
            "compile": self.compile,
        }
        return Execution(**chosen)

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
        n = self.images or self.batch_size
        shape = (n, self.channels, self.size, self.size)
        pixels = torch.randint(256, shape, generator=generator, dtype=torch.uint8).to(device)
        images = Images(pixels, torch.zeros(n, dtype=torch.int64, device=device))
        with torch.no_grad():
            parts = torch.split(images.pixels(), self.batch_size)
            labels = torch.cat([model(part).argmax(1) for part in parts])
        images = Images(pixels, labels)
        return Problem(
            model=model, images=images, x=images.pixels(), threat=Threat("linf", self.eps)
        )

    def _network(self) -> nn.Module:
        if self.model == STRANGER:
            return ResNet18(self.channels, self.classes, self.width)
        settings = {
            "channels": self.channels,
            "size": (self.size, self.size),
            "classes": self.classes,
            "width": self.width,
        }
        return models.build(self.model, settings)
