r"""Carlini and Wagner's L2 attack: the shortest change, by descent on a penalty.

With :math:`x' = low + (high - low)(\tanh w + 1) / 2`, which cannot leave the range, Adam
minimises

.. math:: \|x' - x\|_2^2 + c \, \max\bigl(\kappa + z_y(x') - \max_{i \ne y} z_i(x'), 0\bigr)

over :math:`w`, with distances in units of the range, and a binary search finds for each example
the smallest :math:`c` that still succeeds. The nearest misclassified iterate counts.

The cost is up to ``binary_search_steps * steps`` forward and backward passes: by default 9 x 200
= 1800, against the authors' 9 x 10000 with a step size of 0.01, with which so few steps would
hardly leave the border of the range, where w is large. No example depends on another: each has
its own :math:`c` and ends its descent when a tenth of the steps lowered the loss too little. In a
search for a point within a radius, an example leaves with its first success.

References:
    | Towards Evaluating the Robustness of Neural Networks (Carlini and Wagner, 2017)
    | https://arxiv.org/abs/1608.04644
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Annotated, Self

import torch
from torch import Tensor, nn

from equipoise.attacks.core import prepared, refuse, uncounted
from equipoise.draws import Draws
from equipoise.errors import NotNegative, out_of_range
from equipoise.execution.form import guest, input_gradient, misclassified
from equipoise.losses import margin
from equipoise.threat import Norm, Threat

_MOMENTS = (0.9, 0.999)  # Adam's
_DAMPING = 1e-8  # Adam's
_WITHIN = 0.999999  # the start stays off the border, where w would be infinite
_PROGRESS = 0.9999  # of the loss: a descent continues if a tenth of its steps go below it
_GROWTH = 10.0  # of c before the first success


@dataclass(frozen=True, kw_only=True)
class CarliniWagnerL2:
    r"""Carlini and Wagner's attack for the L2 norm.

    Arguments:
        steps: The number of steps of each descent; each is one forward and one backward pass.
        binary_search_steps: How many values of c are tried for each example.
        confidence: :math:`\kappa`: the margin from which a point counts as a success.
        lr: The step size of Adam, in units of w.
        initial_const: The first value of c.
        norms: The norms for which the attack is defined.
    """

    steps: int = 200
    binary_search_steps: int = 9
    confidence: NotNegative = 0.0
    lr: Annotated[float, "(0, inf)"] = 0.05
    initial_const: Annotated[float, "(0, inf)"] = 1e-3
    norms: tuple[Norm, ...] = ("l2",)

    def __post_init__(self) -> None:
        problems = uncounted(self, "steps", "binary_search_steps")
        problems += out_of_range(self)
        if tuple(self.norms) != ("l2",):
            problems.append(f"norms must be ('l2',), got {self.norms!r}")
        refuse(problems)

    def cost(self, norm: Norm) -> float:
        """Return a rough number of the gradient evaluations an image."""
        return float(self.steps * self.binary_search_steps)

    def __call__(
        self, model: nn.Module, x: Tensor, y: Tensor, threat: Threat, *, draws: Draws | None = None
    ) -> Tensor:
        """Return the strongest ``x_adv`` found for every example: see :class:`Attack`.

        Without a success within the radius, the nearest misclassified point, or the last point,
        is projected into the threat. The attack draws no random numbers.
        """
        x, y, _ = prepared(self, x, y, threat, draws)
        if not len(x) or threat.eps == 0:
            return x.clone()
        with guest(model) as model, torch.no_grad():
            points, distance = _PenaltySearch(self, model, threat, nearest=False)(x, y)
            beyond = (distance > 0).nonzero()[:, 0]
            points[beyond] = threat.project(x[beyond], points[beyond])
            return points

    def nearest(
        self, model: nn.Module, x: Tensor, y: Tensor, threat: Threat
    ) -> tuple[Tensor, Tensor]:
        """Return the nearest misclassified points at any distance, and their distances.

        Every example takes part in all descents.

        Arguments:
            model: From inputs within the threat's range to logits, with shape (B, K).
            x: The clean inputs, with shape (B, ...).
            y: The labels, int64, with shape (B,).
            threat: The range; its radius does not matter.

        Returns:
            Points with the shape of ``x``, and distances in float64 with shape (B,): zero where
            x itself is misclassified, infinite (and the point x) where no point is misclassified.
        """
        x, y, _ = prepared(self, x, y, threat)
        if not len(x):
            return x.clone(), torch.zeros(0, dtype=torch.float64, device=x.device)
        with guest(model) as model, torch.no_grad():
            points, distance = _PenaltySearch(self, model, threat, nearest=True)(x, y)
        lost = distance.isinf()
        points[lost] = x[lost]
        return points, threat.distance(x, points).masked_fill(lost, math.inf)


@dataclass(frozen=True)
class _Descent:
    """B examples on a descent of the penalised distance, each with its own penalty."""

    index: Tensor  # their positions in the batch, (B,)
    x: Tensor  # the clean inputs, (B, D)
    y: Tensor  # the labels, (B,)
    c: Tensor  # the weights of the penalty, (B, 1)
    w: Tensor  # the variables, (B, D)
    first: Tensor  # Adam's running mean of the gradient, (B, D)
    second: Tensor  # Adam's running mean of its square, (B, D)
    loss: Tensor  # the loss when it was last compared, (B,)

    def take(self, index: Tensor) -> Self:
        """Return some of the examples."""
        return replace(self, **{f.name: getattr(self, f.name)[index] for f in fields(self)})


class _PenaltySearch:
    """One run of the attack, for the nearest point, or for any within the radius."""

    def __init__(
        self, attack: CarliniWagnerL2, model: nn.Module, threat: Threat, *, nearest: bool
    ) -> None:
        self.attack, self.model, self.threat, self.nearest = attack, model, threat, nearest
        self.middle, self.half = (threat.low + threat.high) / 2, (threat.high - threat.low) / 2

    def __call__(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return points with the shape of x, and distances with shape (N,), infinite if none."""
        self.shape = x.shape[1:]
        self.points = x.flatten(1).clone()
        wrong = misclassified(self.model, x, self.model(x), y)
        self.distance = torch.full(y.shape, math.inf, dtype=x.dtype, device=x.device)
        self.distance[wrong] = 0
        self.done = wrong
        c = torch.full_like(self.distance, self.attack.initial_const)
        low, high = torch.zeros_like(c), torch.full_like(c, math.inf)
        for _ in range(self.attack.binary_search_steps):
            rest = (~self.done).nonzero()[:, 0]
            if not len(rest):
                break
            self.succeeded = torch.zeros_like(self.done)
            self._descend(self._start(x.flatten(1)[rest], y[rest], c[rest], rest))
            high = torch.where(self.succeeded, c, high)
            low = torch.where(self.succeeded, low, c)
            c = torch.where(high.isfinite(), (low + high) / 2, _GROWTH * c)
        return self.points.view(x.shape), self.distance

    def _start(self, x: Tensor, y: Tensor, c: Tensor, index: Tensor) -> _Descent:
        w = torch.atanh((x - self.middle) / self.half * _WITHIN)
        zero = torch.zeros_like(x)
        return _Descent(index, x, y, c[:, None], w, zero, zero, torch.full_like(c, math.inf))

    def _descend(self, on: _Descent) -> None:
        """Take the steps of one descent; keep the best iterates."""
        window, unit = max(self.attack.steps // 10, 1), (2 * self.half) ** 2
        for step in range(self.attack.steps):
            tanh = on.w.tanh()
            point = (self.middle + self.half * tanh).clamp_(self.threat.low, self.threat.high)
            logits, penalty, grad = input_gradient(
                self.model, point.view(-1, *self.shape), self._penalty(on.y)
            )
            self._keep(on, point, logits, penalty)
            delta = point - on.x
            loss = delta.square().sum(1) / unit + on.c[:, 0] * penalty
            grad = (2 * delta / unit + on.c * grad.flatten(1)) * self.half * (1 - tanh.square())
            on = self._adam(on, torch.nan_to_num(grad, 0.0, 0.0, 0.0), step + 1)
            stays = ~self.done[on.index]
            if step % window == 0:
                stays &= ~(loss > _PROGRESS * on.loss)
                on = replace(on, loss=loss)
            if not bool(stays.all()):
                on = on.take(stays)
            if not len(on.index):
                break

    def _penalty(self, y: Tensor) -> Callable[[Tensor], Tensor]:
        return lambda logits: (self.attack.confidence - margin(logits, y)).clamp_min(0)

    def _keep(self, on: _Descent, point: Tensor, logits: Tensor, penalty: Tensor) -> None:
        """Keep the points that are nearer than before; mark the finished examples."""
        size = torch.linalg.vector_norm(point - on.x, dim=1)
        before = self.distance[on.index]
        lost = before.isinf().nonzero()[:, 0]
        self.points[on.index[lost]] = point[lost]  # returned where nothing succeeds
        wanted = (size < before) | ~self.succeeded[on.index]
        rows = ((logits.argmax(1) != on.y) & (penalty <= 0) & wanted).nonzero()[:, 0]
        if not len(rows):
            return
        inputs = point[rows].view(-1, *self.shape)
        rows = rows[misclassified(self.model, inputs, logits[rows], on.y[rows])]
        self.succeeded[on.index[rows]] = True
        rows = rows[size[rows] < before[rows]]
        index = on.index[rows]
        self.points[index], self.distance[index] = point[rows], size[rows]
        if not self.nearest:
            self.done[index] = self.threat.contains(on.x[rows], point[rows])

    def _adam(self, on: _Descent, grad: Tensor, step: int) -> _Descent:
        """Return the examples after Adam's step of this number, counted from 1."""
        beta_1, beta_2 = _MOMENTS
        first = torch.lerp(grad, on.first, beta_1)
        second = torch.lerp(grad.square(), on.second, beta_2)
        size = (second / (1 - beta_2**step)).sqrt_().add_(_DAMPING)
        w = torch.addcdiv(on.w, first, size, value=-self.attack.lr / (1 - beta_1**step))
        return replace(on, w=w, first=first, second=second)
