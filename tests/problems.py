"""Problems with known answers: what every attack and every evaluation is checked against.

:func:`linear_problem` is a classifier z = W x + b whose worst case on the intersection of a ball
and the unit box is known exactly. For a true class y and another class k the margin
z_y - z_k = <w, x> + c with w = W_y - W_k falls the most along -w:

Linf    every coordinate moves on its own, by at most eps and by at most the room to the border
L1      a fractional knapsack: the budget is spent on the largest |w_i| first, up to the room
L2      delta = clip(t v, -x, 1 - x) for a direction v, with the t at which its length is eps

Everything here is float64 and written from these formulas alone.

:func:`small_net` is a small network with BatchNorm and dropout, trained for a moment on digits.
"""

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor, nn

from equipoise.threat import Threat

NORMS = ("linf", "l2", "l1")
BISECTIONS = 200


def farthest(direction: Tensor, x: Tensor, norm: str, eps: float) -> Tensor:
    """Return the delta that maximises <direction, delta> on the ball and the unit box.

    All tensors are float64 with shape (N, D).
    """
    size = direction.abs()
    room = torch.where(direction > 0, 1 - x, torch.where(direction < 0, x, torch.zeros_like(x)))
    moved = {"linf": _along_linf, "l2": _along_l2, "l1": _along_l1}[norm](size, room, eps)
    return direction.sign() * moved


def support(direction: Tensor, x: Tensor, norm: str, eps: float) -> Tensor:
    """Return the largest <direction, delta> on the ball and the unit box, with shape (N,)."""
    return (direction * farthest(direction, x, norm, eps)).sum(1)


def _along_linf(size: Tensor, room: Tensor, eps: float) -> Tensor:
    return room.clamp_max(eps)


def _along_l1(size: Tensor, room: Tensor, eps: float) -> Tensor:
    order = size.argsort(dim=1, descending=True)
    rooms = room.gather(1, order)
    spent_before = rooms.cumsum(1) - rooms
    taken = torch.minimum((eps - spent_before).clamp_min(0), rooms)
    return torch.zeros_like(size).scatter(1, order, taken)


def _along_l2(size: Tensor, room: Tensor, eps: float) -> Tensor:
    low = torch.zeros_like(size[:, :1])
    high = torch.full_like(low, 1e12)
    for _ in range(BISECTIONS):
        t = (low + high) / 2
        fits = torch.minimum(t * size, room).square().sum(1, keepdim=True) <= eps**2
        low, high = torch.where(fits, t, low), torch.where(fits, high, t)
    return torch.minimum(low * size, room)


class Linear(nn.Module):
    """z = W x + b over flattened images."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(weight), nn.Parameter(bias)

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.weight.T + self.bias


@dataclass(frozen=True)
class LinearProblem:
    """A linear classifier with inputs and labels, and its exact answers."""

    model: Linear
    x: Tensor
    y: Tensor

    def margins(self, threat: Threat) -> Tensor:
        """Return min over the threat of z_y - z_k for each k, with shape (N, K); inf at k = y."""
        weight = self.model.weight.detach().double()
        bias = self.model.bias.detach().double()
        x = self.x.double().flatten(1)
        margins = torch.full((len(x), len(bias)), torch.inf, dtype=torch.float64)
        for k in range(len(bias)):
            difference = weight[self.y] - weight[k]
            clean = (difference * x).sum(1) + bias[self.y] - bias[k]
            worst = clean - support(-difference, x, threat.norm, threat.eps)
            margins[:, k] = torch.where(self.y == k, torch.inf, worst)
        return margins

    def worst(self, threat: Threat) -> Tensor:
        """Return the exact minimal margin of each example, with shape (N,)."""
        return self.margins(threat).amin(1)

    def robust(self, threat: Threat) -> Tensor:
        """Tell which examples no point of the threat can fool, with shape (N,)."""
        return self.worst(threat) > 0

    def attained(self, x_adv: Tensor) -> Tensor:
        """Return the margins that points have, in float64, with shape (N,)."""
        weight, bias = self.model.weight.detach().double(), self.model.bias.detach().double()
        logits = x_adv.double().flatten(1) @ weight.T + bias
        others = logits.clone()
        others[torch.arange(len(logits)), self.y] = -torch.inf
        return logits[torch.arange(len(logits)), self.y] - others.amax(1)


def linear_problem(
    seed: int = 0,
    *,
    classes: int = 2,
    shape: tuple[int, ...] = (1, 6, 6),
    count: int = 60,
    dtype: torch.dtype = torch.float64,
) -> LinearProblem:
    """Return a random problem; a quarter of the pixels lie on the border of the box."""
    generator = torch.Generator().manual_seed(seed)
    size = int(torch.tensor(shape).prod())
    x = (torch.rand(count, size, generator=generator, dtype=torch.float64) * 1.6 - 0.3).clamp(0, 1)
    weight = torch.randn(classes, size, generator=generator, dtype=torch.float64)
    bias = -weight.mul(0.5).sum(1)  # so that every class has its share
    x, weight, bias = x.to(dtype), weight.to(dtype), bias.to(dtype)
    y = (x @ weight.T + bias).argmax(1)
    y[: count // 10] = (y[: count // 10] + 1) % classes  # some are wrong to begin with
    return LinearProblem(Linear(weight, bias), x.view(count, *shape), y)


def small_layers(seed: int) -> nn.Sequential:
    """Return the untrained network for 1x8x8 images and ten classes, in training mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 16, 3, stride=2, padding=1),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.Dropout(0.2),
            nn.Flatten(),
            nn.Linear(256, 10),
        )


@lru_cache
def digits() -> tuple[Tensor, Tensor]:
    """Return the 1797 digits of scikit-learn as (N, 1, 8, 8) in [0, 1], and their labels."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    x = torch.from_numpy(bunch.images).float()[:, None] / 16
    return x, torch.from_numpy(bunch.target).long()


@lru_cache
def small_net(seed: int = 0) -> nn.Sequential:
    """Return the network after 60 steps on the first 1200 digits, in eval mode.

    It is shared by all tests of a session: whoever changes it works on a deep copy.
    """
    net = small_layers(seed)
    x, y = digits()
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # for dropout
        for _ in range(60):
            index = torch.randint(1200, (64,), generator=generator)
            loss = nn.functional.cross_entropy(net(x[index]), y[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return net.eval()


def held_out(count: int) -> tuple[Tensor, Tensor]:
    """Return digits that the small net was not trained on."""
    x, y = digits()
    return x[1200 : 1200 + count], y[1200 : 1200 + count]
