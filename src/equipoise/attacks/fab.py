r"""The fast adaptive boundary attack: the smallest change that alters the decision.

From the iterate :math:`x_k` the decision between the label :math:`y` and a rival :math:`s` is
taken as linear, with :math:`w = \nabla (z_s - z_y)(x_k)`. Both :math:`x_k` and the clean
:math:`x` are projected onto that hyperplane within the range, :math:`x_k + \delta_1` and
:math:`x + \delta_2`, and

.. math:: x_{k+1} = \mathrm{clip}\bigl((1 - \alpha)(x_k + \eta \, \delta_1)
          + \alpha (x + \eta \, \delta_2)\bigr), \qquad
          \alpha = \min\Bigl(\frac{\|\delta_1\|}{\|\delta_1\| + \|\delta_2\|}, \alpha_{max}\Bigr).

A misclassified :math:`x_{k+1}` is kept if it is the nearest so far, and moved back to
:math:`x + \beta (x_{k+1} - x)`. The attack minimises a distance, not a loss: it needs no step
size and does not depend on the scale of the logits.

==========  ====================================================================================
FAB         the rival is the nearest of all classes in each step, which takes K - 1 backward
            passes
FAB-T       one search for each of the rivals with the highest clean logits, all at once
==========  ====================================================================================

Deviations from the authors' code: the targets of an example are searched side by side, and the
first success ends all of them; an example with a misclassified point within the radius is done;
where there is none, the nearest points are projected into the ball and tried there; the
projections need no sort; distances are computed in float64. As there, the final search of the
paper is left out, so that distances are about half a percent too long. Near misses of a model's
search form are continued with the exact model.

References:
    | Minimally distorted Adversarial Examples with a Fast Adaptive Boundary Attack
    | (Croce and Hein, 2020)
    | https://arxiv.org/abs/1907.02044
    | Reliable Evaluation of Adversarial Robustness with an Ensemble of Diverse
    | Parameter-free Attacks (Croce and Hein, 2020), for FAB-T
    | https://arxiv.org/abs/2003.01690
"""

import math
from copy import copy
from dataclasses import dataclass, fields, replace
from typing import Annotated, Self

import torch
from torch import Tensor, nn

from equipoise.attacks.core import parts, prepared, refuse, uncounted, wrong_norms
from equipoise.attacks.fab_projections import project
from equipoise.draws import Draws
from equipoise.errors import Part, out_of_range
from equipoise.execution.form import Fast, guest, input_gradient, input_gradients, misclassified
from equipoise.losses import margin
from equipoise.threat import Norm, Threat

_DUAL: dict[Norm, Norm] = {"linf": "l1", "l2": "l2", "l1": "linf"}
_ORDER: dict[Norm, float] = {"linf": math.inf, "l2": 2, "l1": 1}
_SHORTEST = 1e-8  # the floor under the lengths of moves
_NEAR_MISS = 1.5  # in radii: the largest distance from which the exact model continues
_LEAST_SLOPE = 1e-12  # the floor under the lengths of gradients


@dataclass(frozen=True, kw_only=True)
class FAB:
    r"""The fast adaptive boundary attack, untargeted or against several targets at once.

    Arguments:
        steps: The number of steps; each is one forward and one backward pass, and one more
            forward pass, per target; untargeted it is K - 1 backward passes.
        restarts: How often to search; all but the first from random points at half the radius,
            and only for examples not yet fooled.
        targets: How many of the other classes to search for, those with the highest clean
            logits first; None searches for the nearest.
        alpha_max: The largest weight :math:`\alpha_{max}` of the clean point.
        eta: The length of a move, :math:`\eta`, as a multiple of the way to the hyperplane.
        beta: The share of the distance that is left after a success, :math:`\beta`.
        norms: The norms for which the attack is defined.
    """

    steps: int = 100
    restarts: int = 1
    targets: int | None = None
    alpha_max: Part = 0.1
    eta: Annotated[float, "[1, inf)"] = 1.05
    beta: Part = 0.9
    norms: tuple[Norm, ...] = ("linf", "l2", "l1")

    def __post_init__(self) -> None:
        problems = uncounted(self, "steps", "restarts", "targets")
        refuse([*problems, *out_of_range(self), *wrong_norms(self.norms)])

    def cost(self, norm: Norm) -> float:
        """Return a rough number of the gradient evaluations an image."""
        return float(self.steps * self.restarts * (self.targets or 1))

    def __call__(
        self, model: nn.Module, x: Tensor, y: Tensor, threat: Threat, *, draws: Draws | None = None
    ) -> Tensor:
        """Return the strongest ``x_adv`` found for every example: see :class:`Attack`.

        For an example with no misclassified point within the radius, its nearest points are
        projected into the threat, and the one with the largest margin is returned.
        """
        x, y, draws = prepared(self, x, y, threat, draws)
        if not len(x) or threat.eps == 0:
            return x.clone()
        with guest(model) as model, torch.no_grad():
            return _BoundarySearch(self, model, threat, x, nearest=False)(x, y, draws)[0]

    def nearest(
        self, model: nn.Module, x: Tensor, y: Tensor, threat: Threat, *, draws: Draws | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the nearest misclassified points at any distance, and their distances.

        Every example takes all steps.

        Arguments:
            model: From inputs within the threat's range to logits, with shape (B, K).
            x: The clean inputs, with shape (B, ...).
            y: The labels, int64, with shape (B,).
            threat: The norm and the range; its radius matters to restarts alone.
            draws: The randomness; by default it is keyed by the examples with seed 0.

        Returns:
            Points with the shape of ``x``, and distances in float64 with shape (B,): zero where
            x itself is misclassified, infinite (and the point x) where no point is misclassified.
        """
        x, y, draws = prepared(self, x, y, threat, draws)
        if not len(x):
            return x.clone(), torch.zeros(0, dtype=torch.float64, device=x.device)
        with guest(model) as model, torch.no_grad():
            points, distance = _BoundarySearch(self, model, threat, x, nearest=True)(x, y, draws)
        return points, threat.distance(x, points).masked_fill(distance.isinf(), math.inf)

    def rows_per_example(self, classes: int) -> int:
        """Return how many rows of a batch one example takes."""
        return 1 if self.targets is None else min(self.targets, classes - 1)

    def notes(self, classes: int) -> list[str]:
        """Return the changes of settings for so few classes, in sentences."""
        if self.targets is None or self.targets < classes:
            return []
        rows = self.rows_per_example(classes)
        return [f"FAB-T has {rows} target{'s' * (rows > 1)} instead of {self.targets}"]


def FABT(*, steps: int = 100, restarts: int = 1, targets: int = 9) -> FAB:  # noqa: N802
    """Return targeted FAB: against the ``targets`` highest other classes of the clean logits."""
    return FAB(steps=steps, restarts=restarts, targets=targets)


@dataclass(frozen=True)
class _BoundaryRows:
    """B examples that are searched in T rows each."""

    index: Tensor  # their positions in the batch, (B,)
    x: Tensor  # the clean inputs, (B, 1, D)
    y: Tensor  # the labels, (B,)
    rivals: Tensor  # the classes that are searched for, (B, R); T is R, or 1 untargeted
    point: Tensor  # the iterates, (B, T, D)
    best: Tensor  # the nearest points found, (B, T, D)
    size: Tensor  # their distances, infinite where there is none, (B, T)

    def take(self, index: Tensor) -> Self:
        """Return the rows of some examples."""
        return replace(self, **{f.name: getattr(self, f.name)[index] for f in fields(self)})

    def narrowed(self, index: Tensor, which: Tensor) -> Self:
        """Return some examples with the one row ``which`` of each, from its nearest point."""
        best = self.best[index, which][:, None]
        size = torch.full_like(self.size[index, :1], math.inf)
        rows = replace(self.take(index), point=best, best=best.clone(), size=size)
        if self.point.shape[1] == 1:
            return rows
        return replace(rows, rivals=self.rivals[index, which][:, None])

    @property
    def labels(self) -> Tensor:
        """Return the label of each row, with shape (B T,)."""
        return self.y.repeat_interleave(self.point.shape[1])


class _BoundarySearch:
    """One run of the attack on a frozen model.

    ``points``, ``distance`` and ``score`` hold for each example the point to return, how far it
    is away where it is misclassified (else infinite), and the margin of one that is not.

    Arguments:
        attack: The settings.
        model: The model, frozen.
        threat: The norm, the radius and the range.
        x: The clean inputs, with shape (N, ...).
        nearest: Whether the nearest point is wanted; else any within the radius ends the search.
    """

    def __init__(
        self, attack: FAB, model: Fast, threat: Threat, x: Tensor, *, nearest: bool
    ) -> None:
        self.attack, self.model, self.threat, self.nearest = attack, model, threat, nearest
        self.points = x.clone()
        self.distance = x.new_full((len(x),), math.inf)
        self.score = torch.full_like(self.distance, -math.inf)
        largest = max(1.0, abs(threat.low), abs(threat.high))  # floats round by their size
        self.limit = threat.eps * (1 + 1e-5) + 1e-5 * largest  # beyond it no point is confirmed

    def __call__(self, x: Tensor, y: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
        """Return the points and their distances."""
        logits, distance = self.model(x), self.distance
        distance[misclassified(self.model, x, logits, y)] = 0
        rivals = self._rivals(logits, y)
        for restart in range(self.attack.restarts):
            rest = (distance > 0 if self.nearest else distance.isinf()).nonzero()[:, 0]
            if not len(rest):
                break
            rows = self._rows(x[rest], y[rest], rivals[rest], rest)
            if restart:
                source = draws.child(f"restart {restart}").select(rest)
                rows = self._scattered(rows, distance[rest], source)
            rows = self._run(rows, self.attack.steps)
            if self.nearest:
                self._keep_nearest(rows)
            else:
                self._keep_strongest(self._refined(rows))
        return self.points, distance

    def _rivals(self, logits: Tensor, y: Tensor) -> Tensor:
        """Return the other classes, the highest logit first, with shape (N, R)."""
        others = logits.float().scatter(1, y[:, None], -math.inf)
        count = logits.shape[1] - 1
        return others.topk(min(self.attack.targets or count, count), dim=1).indices

    def _rows(self, x: Tensor, y: Tensor, rivals: Tensor, index: Tensor) -> _BoundaryRows:
        """Return the rows of some examples, all at x."""
        x = x.reshape(len(x), 1, -1)
        count = 1 if self.attack.targets is None else rivals.shape[1]
        point = x.expand(-1, count, -1)
        size = torch.full(point.shape[:2], math.inf, dtype=x.dtype, device=x.device)
        return _BoundaryRows(index, x, y, rivals, point, point.clone(), size)

    def _scattered(self, rows: _BoundaryRows, distance: Tensor, draws: Draws) -> _BoundaryRows:
        """Return the rows at random points, at half the radius or at half the distance."""
        direction = 2 * draws.uniform(rows.point) - 1
        if self.threat.norm != "linf":  # normal numbers, so that no direction is preferred
            direction = torch.erfinv(direction.clamp_min(-1 + 2**-24))
        radius = distance.clamp_max(self.threat.eps)[:, None, None] / 2
        length = _lengths(direction, self.threat.norm).clamp_min(1e-12)
        point = rows.x + radius * direction / length
        return replace(rows, point=point.clamp_(self.threat.low, self.threat.high))

    def _run(self, rows: _BoundaryRows, steps: int) -> _BoundaryRows:
        """Take steps; return the rows of the examples that are still searched."""
        for _ in range(steps):
            rows = self._judged(*self._moved(rows))
            if not len(rows.index):
                break
        return rows

    def _refined(self, rows: _BoundaryRows) -> _BoundaryRows:
        """Continue with the exact model from near misses of its search form.

        The two have slightly different boundaries, and this attack stays at the boundary. Each
        example takes a few steps from the nearest of its points.
        """
        model = self.model
        if model.search is model.exact or not len(rows.index):
            return rows
        least, which = rows.size.min(1)
        near = (least <= _NEAR_MISS * self.threat.eps).nonzero()[:, 0]
        if not len(near):
            return rows
        search = copy(self)  # with the same results
        search.model = exact = Fast(model.exact, model.exact, "float32")
        with guest(model.exact):
            search._run(rows.narrowed(near, which[near]), max(self.attack.steps // 5, 1))
        model.forwards += exact.forwards
        model.backwards += exact.backwards
        return rows.take(self.distance[rows.index].isinf())

    def _moved(self, rows: _BoundaryRows) -> tuple[_BoundaryRows, Tensor]:
        """Return the rows at their next iterates, and how far these are from x, (B, T)."""
        value, w = self._plane(rows)
        point, size = torch.empty_like(w), torch.empty_like(value)
        for part in parts(point):
            x, near, plane = rows.x[part], rows.point[part], (value[part], w[part])
            point[part] = self._stepped(x, near, *plane)
            size[part] = _lengths(point[part] - x, self.threat.norm)[..., 0]
        return replace(rows, point=point), size

    def _stepped(self, x: Tensor, point: Tensor, value: Tensor, w: Tensor) -> Tensor:
        """Return the next iterates of points, (B, T, D), from the plane at each."""
        threat = self.threat
        behind = torch.nan_to_num(value + torch.linalg.vecdot(x - point, w))
        both = torch.stack([point, x.expand_as(point)])
        values = torch.stack([value, behind])
        moves = project(both, w, values, threat.norm, low=threat.low, high=threat.high)
        near, far = _lengths(moves, threat.norm).clamp_min(_SHORTEST)
        alpha = (near / (near + far)).clamp_max(self.attack.alpha_max)
        beyond = both.add_(moves, alpha=self.attack.eta)
        return torch.lerp(beyond[0], beyond[1], alpha).clamp_(threat.low, threat.high)

    def _plane(self, rows: _BoundaryRows) -> tuple[Tensor, Tensor]:
        """Return z_s - z_y at the iterates, with shape (B, T), and its gradient, (B, T, D)."""
        points, y = self._inputs(rows.point), rows.labels[:, None]
        if self.attack.targets is None:
            value, w = self._nearest_plane(points, y, rows.rivals)
        else:
            s = rows.rivals.reshape(-1, 1)
            _, value, w = input_gradient(
                self.model, points, lambda z: (z.gather(1, s) - z.gather(1, y))[:, 0]
            )
        value = torch.nan_to_num(value, nan=0.0, posinf=0.0, neginf=0.0)
        return value.to(w.dtype).view(rows.size.shape), w.reshape(rows.point.shape)

    def _nearest_plane(self, points: Tensor, y: Tensor, rivals: Tensor) -> tuple[Tensor, Tensor]:
        """Return z_s - z_y, (B,), and its gradient for the rival whose hyperplane is nearest."""
        least = points.new_full((len(points),), math.inf)
        value, w = torch.zeros_like(least), torch.zeros_like(points)
        for far, grad in input_gradients(
            self.model, points, lambda z: z.gather(1, rivals) - z.gather(1, y)
        ):
            length = _lengths(grad.flatten(1), _DUAL[self.threat.norm])[:, 0]
            distance = far.abs() / length.clamp_min(_LEAST_SLOPE)
            nearer = (distance < least).nonzero()[:, 0]
            least[nearer] = distance[nearer].to(least.dtype)
            value[nearer] = far[nearer].to(value.dtype)
            w[nearer] = grad[nearer]
        return value, w.detach()

    def _judged(self, rows: _BoundaryRows, size: Tensor) -> _BoundaryRows:
        """Record the iterates, move the misclassified ones back, drop the finished examples."""
        points, y, size = self._inputs(rows.point), rows.labels, size.flatten()
        logits = self.model(points)
        wrong = logits.argmax(1) != y
        nearer = wrong & (size < rows.size.flatten())
        checked = (nearer if self.nearest else wrong & (size <= self.limit)).nonzero()[:, 0]
        sure = checked[misclassified(self.model, points[checked], logits[checked], y[checked])]
        wrong[checked] = False
        wrong[sure] = True
        kept = sure if self.nearest else nearer.nonzero()[:, 0]
        rows.best.flatten(0, 1)[kept] = rows.point.flatten(0, 1)[kept]
        rows.size.view(-1)[kept] = size[kept]
        done = self._done(rows, sure, size) if not self.nearest and len(sure) else None
        share = torch.ones_like(size)
        share[wrong] = self.attack.beta
        share = share.view(*rows.size.shape, 1)
        for part in parts(rows.point):
            torch.lerp(rows.x[part], rows.point[part], share[part], out=rows.point[part])
        return rows if done is None else rows.take(~done)

    def _done(self, rows: _BoundaryRows, sure: Tensor, size: Tensor) -> Tensor:
        """Keep the nearest allowed one of the points ``sure``; return which examples have one."""
        x = rows.x[sure // rows.size.shape[1], 0]
        allowed = sure[self.threat.contains(x, rows.point.flatten(0, 1)[sure])]
        sizes = torch.full_like(size, math.inf)
        sizes[allowed] = size[allowed]
        least, which = sizes.view(rows.size.shape).min(1)
        done = least.isfinite()
        self._put(rows.index[done], rows.point[done, which[done]], least[done], -least[done])
        return done

    def _keep_nearest(self, rows: _BoundaryRows) -> None:
        """Keep the nearest point of each example if it is nearer than the one so far."""
        least, which = rows.size.min(1)
        nearer = least < self.distance[rows.index]
        index = rows.index[nearer]
        self._put(index, rows.best[nearer, which[nearer]], least[nearer], self.score[index])

    def _keep_strongest(self, rows: _BoundaryRows) -> None:
        """Keep the strongest point of each example, projected into the threat."""
        if not len(rows.index):
            return
        ends = torch.where(rows.size.isfinite()[..., None], rows.best, rows.point)
        x = rows.x.expand_as(ends).flatten(0, 1)
        ends = self.threat.project(x, ends.flatten(0, 1))
        inputs, y = self._inputs(ends), rows.labels
        logits = self.model.decide(inputs)
        wrong = logits.argmax(1) != y
        score = torch.nan_to_num(margin(logits, y), nan=-math.inf).to(self.score.dtype)
        score = torch.where(wrong, math.inf, score).view(rows.size.shape)
        most, which = score.max(1)
        better = (most > self.score[rows.index]).nonzero()[:, 0]
        chosen = better * score.shape[1] + which[better]
        distance = self.threat.distance(x[chosen], ends[chosen]).to(self.distance.dtype)
        distance = distance.masked_fill(~wrong[chosen], math.inf)
        self._put(rows.index[better], ends[chosen], distance, most[better])

    def _put(self, index: Tensor, points: Tensor, distance: Tensor, score: Tensor) -> None:
        """Set the results of the examples ``index``, points with shape (B, D)."""
        self.points[index] = self._inputs(points)
        self.distance[index], self.score[index] = distance, score

    def _inputs(self, rows: Tensor) -> Tensor:
        return rows.reshape(-1, *self.points.shape[1:])


def _lengths(delta: Tensor, norm: Norm) -> Tensor:
    """Return the norm of tensors (..., D), with shape (..., 1)."""
    if norm == "linf":  # quicker than the general function
        return delta.abs().amax(-1, keepdim=True)
    lengths: Tensor = torch.linalg.vector_norm(delta, ord=_ORDER[norm], dim=-1, keepdim=True)
    return lengths
