"""Losses, searches and models written out: what the objectives are checked against.

Nothing here calls a loss or an objective of the project. The losses are sums and products of
:func:`log_p`; their gradients are what autograd makes of these.
"""

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

import torch
from scipy.stats import norm
from torch import Tensor, nn

from equipoise import models
from equipoise.attacks import PGD
from equipoise.data import Images
from equipoise.draws import GeneratorDraws
from equipoise.execution import Execution
from equipoise.models.core import Classifier, Normalize
from equipoise.objectives import Batch, Objective, Robust
from equipoise.objectives.friendly import Friendly
from equipoise.stopwatch import Stopwatch
from equipoise.threat import Linf, Threat
from equipoise.training import Augment, Learner
from problems import digits

# Losses, (B, K) to (B,)


def log_p(logits: Tensor) -> Tensor:
    shifted = logits - logits.detach().max(dim=1, keepdim=True).values
    return shifted - shifted.exp().sum(1, keepdim=True).log()


def onehot(y: Tensor, classes: int) -> Tensor:
    rows = [[float(k == label) for k in range(classes)] for label in y.tolist()]
    return torch.tensor(rows, dtype=torch.float64)


def smooth(y: Tensor, classes: int, part: float) -> Tensor:
    return (1 - part) * onehot(y, classes) + part / classes


def ce(logits: Tensor, target: Tensor) -> Tensor:
    """Return the cross-entropy with hard labels (B,) or with probabilities (B, K)."""
    target = onehot(target, logits.shape[1]) if target.ndim == 1 else target
    return -(target * log_p(logits)).sum(1)


def kl(logits: Tensor, other: Tensor) -> Tensor:
    return (log_p(logits).exp() * (log_p(logits) - log_p(other))).sum(1)


def boost(logits: Tensor, y: Tensor) -> Tensor:
    p = log_p(logits).exp()
    rows = []
    for i, label in enumerate(y.tolist()):
        others = [p[i, k] for k in range(p.shape[1]) if k != label]
        rows.append(-torch.log(1.0001 - torch.stack(others).max()))
    return torch.stack(rows)


def margin(logits: Tensor, y: Tensor) -> Tensor:
    return torch.stack(
        [
            max(logits[i, k] for k in range(logits.shape[1]) if k != label) - logits[i, label]
            for i, label in enumerate(y.tolist())
        ]
    )


# Randomness


class Tape:
    """Draws that remember what was drawn, and can play it again."""

    def __init__(self, seed: int = 0) -> None:
        self.source = GeneratorDraws(torch.Generator().manual_seed(seed))
        self.taken: list[Tensor] = []

    def uniform(self, x: Tensor) -> Tensor:
        self.taken.append(self.source.uniform(x))
        return self.taken[-1].clone()

    def child(self, name: str) -> "Tape":
        return self

    def select(self, index: Tensor) -> "Tape":
        return self


def normal(unit: Tensor) -> Tensor:
    """Return the normal numbers that belong to uniform ones."""
    return torch.from_numpy(norm.ppf(unit.double().clamp(2.0**-25, 1 - 2.0**-24).numpy()))


# Models


class Plain(Classifier):
    """A small network without BatchNorm."""

    def __init__(self, channels: int = 1, classes: int = 10) -> None:
        super().__init__()
        self.normalize = Normalize([0.5] * channels, [0.5] * channels)
        self.conv1 = nn.Conv2d(channels, 6, 3, stride=2, padding=1)
        self.linear = nn.Linear(6 * 16, classes)

    def stem(self, x: Tensor) -> Tensor:
        return self.conv1(self.normalize(x))

    def trunk(self, h: Tensor) -> Tensor:
        return self.linear(torch.relu(h).flatten(1))


class Whole(nn.Module):
    """A network that is all stem: its trunk returns what it is given."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def stem(self, x: Tensor) -> Tensor:
        return self.net(x)

    def trunk(self, h: Tensor) -> Tensor:
        return h

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


def model(kind: str = "batchnorm", channels: int = 1, classes: int = 10, seed: int = 0) -> Any:
    """Return a small network for 8x8 images, in training mode: ``batchnorm`` or ``plain``."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if kind == "plain":
            return Plain(channels, classes)
        settings = {"channels": channels, "size": (8, 8), "classes": classes, "width": 0.25}
        return models.build("small-cnn", settings)


def batch(count: int = 8, channels: int = 1, classes: int = 10, progress: float = 0.5) -> Batch:
    """Return a batch of digits, or of their patterns in other colours and labels."""
    x, y = digits()
    colours = torch.linspace(1, 0.6, channels).view(1, -1, 1, 1)
    return Batch(x[:count] * colours, y[:count] % classes, torch.arange(count), progress)


# Searches, each example on its own


def ascend(
    net: nn.Module,
    x: Tensor,
    start: Tensor,
    loss: Callable[[Tensor], Tensor],
    threat: Threat,
    *,
    steps: int,
    length: float,
) -> Tensor:
    """Return the last point of projected ascent in the maximum norm, in the mode of the net."""
    point = start
    for _ in range(steps):
        point = point.detach().requires_grad_()
        (grad,) = torch.autograd.grad(loss(net(point)).sum(), point)
        point = point.detach() + length * grad.sign()
        point = torch.clamp(torch.clamp(point, *ball(x, threat.eps)), 0, 1)
    return point.detach()


def ball(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Return the least and the largest floats that are within eps of x."""
    wide = x.double()
    lower, upper = (wide - eps).to(x.dtype), (wide + eps).to(x.dtype)
    lower = torch.where(lower.double() < wide - eps, torch.nextafter(lower, x), lower)
    return lower, torch.where(upper.double() > wide + eps, torch.nextafter(upper, x), upper)


# Training


def backward(objective: Objective, model: nn.Module, batch: Batch, draws: Any) -> Tensor:
    """Take the gradients of an update; return the loss that is reported."""
    reported = None
    for loss in objective.losses(model, batch, draws):
        loss.backward()
        reported = loss.detach() if reported is None else reported
    assert reported is not None
    return reported


@dataclass(frozen=True, kw_only=True)
class Plainly(Objective):
    """An objective without an attack, of which a test says what it needs."""

    def losses(self, model: nn.Module, batch: Batch, draws: Any) -> Any:
        raise NotImplementedError

    def inputs(self, model: nn.Module, batch: Batch, draws: Any) -> Tensor:
        return batch.x

    @property
    def cost(self) -> int:
        return 0

    def formula(self) -> list[str]:
        return []


@dataclass(frozen=True, kw_only=True)
class Written(Plainly):
    """An objective of losses that are written out in a test, as a function of model and batch."""

    by_hand: Callable[[nn.Module, Batch, Any], Any]

    def losses(self, model: nn.Module, batch: Batch, draws: Any) -> Any:
        yield from self.by_hand(model, batch, draws)


def ByHand(losses: Callable[[nn.Module, Batch, Any], Any]) -> Objective:  # noqa: N802
    return Written(by_hand=losses).bind(Linf(0.1))


def bound(kind: Callable[..., Objective], threat: Threat | None = None, **settings: Any) -> Any:
    """Return an objective that is bound to a threat, by default to Linf(0.1)."""
    return kind(**settings).bind(threat or Linf(0.1))


def friendly(kind: type[Robust]) -> type[Any]:
    """Return an objective with the search of friendly adversarial training."""

    class Made(kind, Friendly):  # type: ignore[misc,valid-type]
        omega: float = 0.0

        @property
        def noise(self) -> float:
            return self.omega

    return dataclass(frozen=True, kw_only=True)(Made)


def gradient_of(model: nn.Module, grads: Sequence[Tensor]) -> Tensor:
    """Return a loss that has these gradients in the weights of a model."""
    pairs = zip(model.parameters(), grads, strict=True)
    return torch.stack([(p * g).sum() for p, g in pairs]).sum()


def trained(
    objective: Objective,
    net: nn.Module,
    *,
    steps: int = 5,
    size: int = 12,
    lr: float = 0.1,
) -> Learner:
    """Return a learner after some steps on digits, with progress from 0 to 1."""
    x, y = digits()
    images = Images((x[: steps * size] * 255).round().to(torch.uint8), y[: steps * size])
    sgd: dict[str, Any] = {"lr": lr, "lr_factors": (1.0, 0.5), "lr_at": None}
    threat = objective.state.threat or Linf(0.1)
    own = deepcopy(net)
    learner = Learner(
        "robust",
        replace(objective, **sgd, weight_decay=1e-3).bind(threat),
        own,
        seed=3,
        average=False,
        y=images.y,
        classes=10,
        execution=Execution(precision="float32").resolved("cpu"),
        stopwatch=Stopwatch(),
    )
    learner.begin_round(len(images))
    for step in range(steps):
        at = step / steps
        learner.step(learner.batch(images, Augment(pad=1), size, step, at))
    return learner


def inner(steps: int = 3, start: str = "uniform", **settings: Any) -> PGD:
    """Return a search of which the last iterate counts."""
    return PGD(steps=steps, start=start, keep="last", **settings)  # type: ignore[arg-type]
