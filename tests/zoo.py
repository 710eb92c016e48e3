"""Models and attacks that are honest, and such that are broken in one known way.

The broken defences wrap a network that knows the digits of scikit-learn. None of them makes it
robust; each makes some attack believe so.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from equipoise.attacks import PGD
from equipoise.draws import Draws, KeyedDraws
from equipoise.execution.form import guest, input_gradient
from equipoise.losses import cross_entropy
from equipoise.models.resnet import ResNet
from equipoise.models.small_cnn import SmallCNN
from equipoise.threat import Linf, Norm, Threat
from problems import digits

THREAT = Linf(0.1)
TRAINED_ON = 1200


@dataclass(frozen=True)
class Case:
    """A model, examples that it was not trained on, and a threat."""

    model: nn.Module
    x: Tensor
    y: Tensor
    threat: Threat


# --- honest models ---


def fitted(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    steps: int,
    threat: Threat | None = None,
    rate: float = 0.01,
) -> nn.Module:
    """Return the model after some steps of Adam, on adversarial examples if there is a threat."""
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    attack = PGD(steps=5, keep="last")
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = rate * (1 - step / steps)
        index = torch.randint(len(x), (64,), generator=generator)
        batch, labels = x[index], y[index]
        if threat is not None:
            batch = attack(model, batch, labels, threat)
        model.train()
        loss = F.cross_entropy(model(batch), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return model.eval()


def made(build: Callable[[], nn.Module], **options: Any) -> nn.Module:
    """Return a network that was built with seed 0 and trained on digits."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build()
    x, y = digits()
    classes = options.pop("classes", 10)
    wanted = (y[:TRAINED_ON] < classes).nonzero()[:, 0]
    return fitted(model, x[wanted], y[wanted], **options)


def small_cnn() -> nn.Module:
    return SmallCNN(size=(8, 8))


def plain_cnn() -> nn.Module:
    """Return a network without BatchNorm."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(512, 10),
    )


def mlp(classes: int = 10) -> nn.Module:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 64), nn.GELU(),
        nn.Linear(64, classes),
    )  # fmt: skip


def digits_below(classes: int) -> tuple[Tensor, Tensor]:
    x, y = digits()
    x, y = x[TRAINED_ON:], y[TRAINED_ON:]
    return x[y < classes], y[y < classes]


@lru_cache
def undefended() -> nn.Module:
    """Return the network that the broken defences wrap."""
    return made(small_cnn, steps=100)


@lru_cache
def defended() -> nn.Module:
    return made(small_cnn, steps=200, threat=Linf(0.15))


def coloured() -> Case:
    """Return a residual network for three channels: five kinds of stripes and blobs."""
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(5, (600,), generator=generator)
    prototypes = F.interpolate(torch.rand(5, 3, 4, 4, generator=generator), size=8)
    x = (prototypes[y] + 0.15 * torch.randn(600, 3, 8, 8, generator=generator)).clamp(0, 1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = ResNet(channels=3, classes=5, width=1 / 8, mean=(0.5,) * 3, std=(0.25,) * 3)
    return Case(fitted(model, x[:500], y[:500], steps=40), x[500:600], y[500:600], Linf(0.2))


HONEST_NAMES = (
    "undefended", "adversarially-trained", "strongly-attacked", "linear", "mlp", "plain-cnn",
    "coloured-resnet", "two-classes", "three-classes", "defended-l2", "defended-l1",
)  # fmt: skip


@lru_cache
def honest(name: str) -> Case:
    """Return an honest model; none of them may raise an alarm."""
    x, y = digits_below(10)
    two, three = digits_below(2), digits_below(3)
    cases: dict[str, Callable[[], Case]] = {
        "undefended": lambda: Case(undefended(), x, y, Linf(0.05)),
        "adversarially-trained": lambda: Case(defended(), x, y, Linf(0.15)),
        "strongly-attacked": lambda: Case(undefended(), x, y, Linf(0.4)),
        "linear": lambda: Case(
            made(lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), steps=200), x, y,
            Linf(0.05),
        ),
        "mlp": lambda: Case(made(mlp, steps=200), x, y, Linf(0.05)),
        "plain-cnn": lambda: Case(made(plain_cnn, steps=100), x, y, THREAT),
        "coloured-resnet": coloured,
        "two-classes": lambda: Case(made(lambda: mlp(2), steps=60, classes=2), *two, Linf(0.2)),
        "three-classes": lambda: Case(
            made(lambda: mlp(3), steps=60, classes=3, threat=Linf(0.1)), *three, Linf(0.2)
        ),
        "defended-l2": lambda: Case(defended(), x, y, Threat("l2", 0.8)),
        "defended-l1": lambda: Case(defended(), x, y, Threat("l1", 4.0)),
    }  # fmt: skip
    return cases[name]()


# --- broken defences ---


class Wrapped(nn.Module):
    """A defence around a copy of the network for digits."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = copy.deepcopy(undefended())

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)


class InputQuantised(Wrapped):
    """Rounds pixels to four levels."""

    def forward(self, x: Tensor) -> Tensor:
        return self.inner((3 * x).round() / 3)


class JpegLike(Wrapped):
    """Rounds the coefficients of the cosine transform of each block of 4x4."""

    def __init__(self) -> None:
        super().__init__()
        k, i = torch.arange(4.0)[:, None], torch.arange(4.0)[None]
        basis = torch.cos(torch.pi * (2 * i + 1) * k / 8) * (0.5**0.5)
        basis[0] = 0.5
        self.register_buffer("basis", basis)
        self.register_buffer("table", 0.2 + 0.1 * (k + i))

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        blocks = x.reshape(b, c, h // 4, 4, w // 4, 4).transpose(3, 4)
        spectrum = self.basis @ blocks @ self.basis.T
        rounded = (spectrum / self.table).round() * self.table
        blocks = self.basis.T @ rounded @ self.basis
        return self.inner(blocks.transpose(3, 4).reshape(b, c, h, w))


class LargeLogits(Wrapped):
    def forward(self, x: Tensor) -> Tensor:
        return 1e4 * self.inner(x)


class SoftmaxOutput(Wrapped):
    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x).softmax(1)


class Winners(nn.Module):
    """Keeps the largest activations of each example and sets the others to zero."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(1)
        k = max(1, round(self.share * flat.shape[1]))
        least = flat.topk(k, dim=1).values[:, -1:]
        return torch.where(flat >= least, flat, 0).view_as(x)


def winners_take_all() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        Winners(0.1),
        nn.Conv2d(16, 32, 3, padding=1),
        Winners(0.1),
        nn.Flatten(),
        nn.Linear(32 * 64, 10),
    )


class Noisy(Wrapped):
    """Adds noise to its input, also at inference."""

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x + 0.1 * torch.randn_like(x))


class TrainMode(Wrapped):
    """Never leaves training mode."""

    def train(self, mode: bool = True) -> "TrainMode":
        super().train(True)
        return self


class Signs(Wrapped):
    """Shows the network nothing but the sign of each pixel's distance from grey."""

    def forward(self, x: Tensor) -> Tensor:
        return self.inner((torch.sign(x - 0.5) + 1) / 2)


DEFENCES: dict[str, Callable[[], nn.Module]] = {
    "input-quantised": InputQuantised,
    "jpeg-like": JpegLike,
    "large-logits": LargeLogits,
    "softmax-output": SoftmaxOutput,
    "winners-take-all": lambda: made(winners_take_all, steps=150, rate=0.003),
    "noisy": Noisy,
    "train-mode": TrainMode,
    "signs": Signs,
}


# --- broken attacks ---


@dataclass(frozen=True, kw_only=True)
class Homemade:
    """Projected gradient ascent as it should be; those below break one thing each."""

    steps: int = 10
    norms: tuple[Norm, ...] = ("linf",)

    def __call__(
        self, model: nn.Module, x: Tensor, y: Tensor, threat: Threat, *, draws: Draws | None = None
    ) -> Tensor:
        draws = KeyedDraws.of(x) if draws is None else draws
        eps = threat.eps
        with guest(model), torch.no_grad():
            x_adv = best = threat.start(x, draws.uniform(x)) if threat.eps else x.clone()
            most = torch.full(y.shape, -torch.inf)
            done = torch.zeros_like(y, dtype=torch.bool)
            for _ in range(self.number()):
                logits, losses, grad = input_gradient(model, x_adv, lambda z: self.loss(z, y))
                best, most, done = self.kept(
                    best, most, done, x_adv, losses, logits.argmax(1) != y
                )
                step = self.towards(grad, eps)
                x_adv = self.bounded(x, x_adv + step, eps)
            logits = model(x_adv)
            wrong = logits.argmax(1) != y
            return self.kept(best, most, done, x_adv, cross_entropy(logits, y), wrong)[0]

    def number(self) -> int:
        return self.steps

    def loss(self, logits: Tensor, y: Tensor) -> Tensor:
        return cross_entropy(logits, y)

    def towards(self, grad: Tensor, eps: float) -> Tensor:
        return eps / 4 * grad.sign()

    def bounded(self, x: Tensor, x_adv: Tensor, eps: float) -> Tensor:
        return torch.minimum(torch.maximum(x_adv, x - eps), x + eps).clamp(0, 1)

    def kept(
        self,
        best: Tensor,
        most: Tensor,
        done: Tensor,
        x_adv: Tensor,
        losses: Tensor,
        wrong: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        better = (wrong & ~done) | ((wrong == done) & (losses > most))
        mask = better.view(-1, *[1] * (x_adv.ndim - 1))
        return torch.where(mask, x_adv, best), torch.where(better, losses, most), done | wrong


class IgnoredSteps(Homemade):
    """Takes ten steps whatever it is told."""

    def number(self) -> int:
        return 10


class LastIterate(Homemade):
    """Returns wherever it is at the end."""

    def kept(
        self,
        best: Tensor,
        most: Tensor,
        done: Tensor,
        x_adv: Tensor,
        losses: Tensor,
        wrong: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        return x_adv, most, done


class NoProjection(Homemade):
    """Stays in the range, but not in the ball."""

    def bounded(self, x: Tensor, x_adv: Tensor, eps: float) -> Tensor:
        return x_adv.clamp(0, 1)


class WrongSign(LastIterate):
    """Goes downhill."""

    def towards(self, grad: Tensor, eps: float) -> Tensor:
        return -eps / 4 * grad.sign()


class DetachedLoss(Homemade):
    """Has a loss that does not depend on the points."""

    def loss(self, logits: Tensor, y: Tensor) -> Tensor:
        return cross_entropy(logits.detach(), y) + 0 * logits.sum(1)


class NormalisedEps(Homemade):
    """Means eps in units of normalised inputs, which are a third as large here."""

    def __call__(
        self, model: nn.Module, x: Tensor, y: Tensor, threat: Threat, *, draws: Draws | None = None
    ) -> Tensor:
        smaller = Threat(threat.norm, threat.eps * 0.3)
        return super().__call__(model, x, y, smaller, draws=draws)


ATTACKS: dict[str, Callable[[], Homemade]] = {
    "ignored-steps": IgnoredSteps,
    "last-iterate": LastIterate,
    "no-projection": NoProjection,
    "wrong-sign": WrongSign,
    "detached-loss": DetachedLoss,
    "normalised-eps": NormalisedEps,
}
