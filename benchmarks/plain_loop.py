r"""The peer of our training step: two networks and their average, as one writes that down.

A step finds adversarial images on the robust network, takes a step of SGD with it on these and
one with the clean network on the clean images, and averages, entry by entry of the state,

.. math:: \theta_g \leftarrow \alpha \theta_g
          + (1 - \alpha) (\gamma \theta_r + (1 - \gamma) \theta_n).

Everything is in float32, in the layout that torch has by default.
"""

__all__ = ["PlainLoop"]

from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from equipoise.data.core import Images


@dataclass(kw_only=True)
class PlainLoop:
    """The loop and its three networks.

    Arguments:
        model: Where all three start; it is not changed.
        images: What is trained on.
        attack: From the robust network to the attack on it, that is from images and labels to
            adversarial images.
        sgd: The arguments of both optimisers.
        alpha: The memory of the average, a step.
        gamma: The weight of the robust network.
        batch_size: The images of a step.
        seed: Of the order of the images.
    """

    model: nn.Module
    images: Images
    attack: Callable[[nn.Module], Callable[[Tensor, Tensor], Tensor]]
    sgd: Mapping[str, Any]
    alpha: float
    gamma: float
    batch_size: int
    seed: int = 0

    def __post_init__(self) -> None:
        self.robust, self.clean = deepcopy(self.model), deepcopy(self.model)
        self.average = deepcopy(self.model).eval()
        self.robust_sgd = torch.optim.SGD(self.robust.parameters(), **self.sgd)
        self.clean_sgd = torch.optim.SGD(self.clean.parameters(), **self.sgd)
        self.attacked = self.attack(self.robust)
        self.generator = torch.Generator().manual_seed(self.seed)
        self.rest = torch.empty(0, dtype=torch.int64)

    def step(self) -> None:
        """Take one step of both networks, and average."""
        index = self._next()
        x, y = self.images.pixels(index), self.images.y[index]
        x_adv = self.attacked(x, y)
        _update(self.robust, self.robust_sgd, x_adv, y)
        _update(self.clean, self.clean_sgd, x, y)
        self.merge()

    @torch.no_grad()
    def merge(self) -> None:
        """Average; what is not a floating-point number is the robust network's."""
        robust, clean = self.robust.state_dict(), self.clean.state_dict()
        for name, value in self.average.state_dict().items():
            if value.is_floating_point():
                both = self.gamma * robust[name] + (1 - self.gamma) * clean[name]
                value.copy_(self.alpha * value + (1 - self.alpha) * both)
            else:
                value.copy_(robust[name])

    def _next(self) -> Tensor:
        """Return the positions of the next batch, in an order that is drawn for each pass."""
        if len(self.rest) < self.batch_size:
            self.rest = torch.randperm(len(self.images), generator=self.generator)
        index, self.rest = self.rest[: self.batch_size], self.rest[self.batch_size :]
        return index.to(self.images.y.device)


def _update(model: nn.Module, sgd: torch.optim.SGD, x: Tensor, y: Tensor) -> None:
    model.train()
    loss = F.cross_entropy(model(x), y)
    sgd.zero_grad()
    torch.autograd.backward(loss)
    sgd.step()
