"""The search of the fast adaptive boundary attack: see :mod:`equipoise.attacks.fab`."""

import math
from dataclasses import dataclass, fields, replace
from typing import Self

import torch
from torch import Tensor, nn

from equipoise.attacks.core import guest, input_gradient, input_gradients, misclassified
from equipoise.attacks.fab_projections import project
from equipoise.draws import Draws
from equipoise.execution.form import Fast
from equipoise.losses import margin
from equipoise.threat import Norm, Threat

_DUAL: dict[Norm, Norm] = {"linf": "l1", "l2": "l2", "l1": "linf"}
_ORDER: dict[Norm, float] = {"linf": math.inf, "l2": 2, "l1": 1}
_SHORTEST = 1e-8  # the floor under the lengths of moves
_NEAR_MISS = 1.5  # in radii: how far a point may be for the exact model to go on from it
_LEAST_SLOPE = 1e-12  # the floor under the lengths of gradients


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


@dataclass(frozen=True)
class _Nearest:
    """The results for each example of the batch; they change as the search goes on."""

    points: Tensor  # the points to return, with the shape of x
    distance: Tensor  # how far a misclassified one is, infinite where there is none, (N,)
    score: Tensor  # the margin of the others, (N,)

    def put(self, index: Tensor, points: Tensor, distance: Tensor, score: Tensor) -> None:
        """Set the points, with shape (B, D), of the examples ``index``."""
        self.points[index] = points.view(-1, *self.points.shape[1:])
        self.distance[index] = distance
        self.score[index] = score


@dataclass(kw_only=True)
class BoundarySearch:
    """One run of the attack.

    Arguments:
        model: The model, frozen.
        threat: The norm, the radius and the range.
        nearest: Whether the nearest point is wanted; else any within the radius ends the search.
        steps: This and the following are settings of :class:`equipoise.attacks.FAB`.
    """

    model: nn.Module
    threat: Threat
    nearest: bool
    steps: int
    restarts: int
    targets: int | None
    alpha_max: float
    eta: float
    beta: float

    @property
    def limit(self) -> float:
        """Return the distance up to which points are shown to the exact model."""
        if self.nearest:
            return math.inf
        threat = self.threat
        largest = max(1.0, abs(threat.low), abs(threat.high))  # floats round by their size
        return threat.eps * (1 + 1e-5) + 1e-5 * largest

    def __call__(self, x: Tensor, y: Tensor, draws: Draws) -> _Nearest:
        """Return the points that were found for inputs of shape (N, ...)."""
        self.shape = x.shape[1:]
        logits = self.model(x)
        wrong = misclassified(self.model, x, logits, y)
        distance = torch.zeros(y.shape, dtype=x.dtype, device=x.device)
        distance[~wrong] = math.inf
        found = _Nearest(x.clone(), distance, torch.full_like(distance, -math.inf))
        rivals = self._rivals(logits, y)
        for restart in range(self.restarts):
            rest = (distance > 0 if self.nearest else distance.isinf()).nonzero()[:, 0]
            if not len(rest):
                break
            rows = self._rows(x[rest], y[rest], rivals[rest], rest)
            if restart:
                source = draws.child(f"restart {restart}").select(rest)
                rows = self._scattered(rows, distance[rest], source)
            rows = self._run(rows, self.steps, found)
            if self.nearest:
                self._keep_nearest(rows, found)
            else:
                self._keep_strongest(self._refined(rows, found), found)
        return found

    def _rivals(self, logits: Tensor, y: Tensor) -> Tensor:
        """Return the other classes, the highest logit first, with shape (N, R)."""
        others = logits.float().scatter(1, y[:, None], -math.inf)
        count = logits.shape[1] - 1
        return others.topk(min(self.targets or count, count), dim=1).indices

    def _rows(self, x: Tensor, y: Tensor, rivals: Tensor, index: Tensor) -> _BoundaryRows:
        """Return the rows of some examples, all at x."""
        x = x.reshape(len(x), 1, -1)
        count = 1 if self.targets is None else rivals.shape[1]
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

    def _run(self, rows: _BoundaryRows, steps: int, found: _Nearest) -> _BoundaryRows:
        """Take steps; return the rows of the examples that are still searched for."""
        for _ in range(steps):
            rows = self._judged(replace(rows, point=self._moved(rows)), found)
            if not len(rows.index):
                break
        return rows

    def _refined(self, rows: _BoundaryRows, found: _Nearest) -> _BoundaryRows:
        """Search on with the exact model, from near misses of its search form.

        The two forms have their boundaries in slightly different places, and this attack stays
        at the boundary. Each example takes a few steps from the nearest of its points.
        """
        model = self.model
        if not isinstance(model, Fast) or model.search is model.exact or not len(rows.index):
            return rows
        least, which = rows.size.min(1)
        near = (least <= _NEAR_MISS * self.threat.eps).nonzero()[:, 0]
        exact = Fast(model.exact, model.exact, "float32")
        search = replace(self, model=exact)
        search.shape = self.shape
        with guest(model.exact):
            search._run(rows.narrowed(near, which[near]), max(self.steps // 5, 1), found)
        model.forwards += exact.forwards
        model.backwards += exact.backwards
        return rows.take(found.distance[rows.index].isinf())

    def _moved(self, rows: _BoundaryRows) -> Tensor:
        """Return the next iterates, with shape (B, T, D)."""
        threat = self.threat
        value, w = self._plane(rows)
        behind = torch.nan_to_num(value + torch.linalg.vecdot(rows.x - rows.point, w))
        both = torch.stack([rows.point, rows.x.expand_as(rows.point)])
        values = torch.stack([value, behind])
        moves = project(both, w, values, threat.norm, low=threat.low, high=threat.high)
        near, far = _lengths(moves, threat.norm).clamp_min(_SHORTEST)
        alpha = (near / (near + far)).clamp_max(self.alpha_max)
        beyond = both.add_(moves, alpha=self.eta)
        return torch.lerp(beyond[0], beyond[1], alpha).clamp_(threat.low, threat.high)

    def _plane(self, rows: _BoundaryRows) -> tuple[Tensor, Tensor]:
        """Return z_s - z_y at the iterates, with shape (B, T), and its gradient, (B, T, D)."""
        points, y = self._inputs(rows.point), rows.labels[:, None]
        if self.targets is None:
            value, w = _nearest_plane(self.model, points, y, rows.rivals, self.threat.norm)
        else:
            s = rows.rivals.reshape(-1, 1)
            _, value, w = input_gradient(
                self.model, points, lambda z: (z.gather(1, s) - z.gather(1, y))[:, 0]
            )
        value = torch.nan_to_num(value, nan=0.0, posinf=0.0, neginf=0.0)
        return value.to(w.dtype).view(rows.size.shape), w.reshape(rows.point.shape)

    def _judged(self, rows: _BoundaryRows, found: _Nearest) -> _BoundaryRows:
        """Keep what the iterates are worth, draw the misclassified ones back, drop the done."""
        points, y = self._inputs(rows.point), rows.labels
        logits = self.model(points)
        size = _lengths(rows.point - rows.x, self.threat.norm).flatten()
        wrong = logits.argmax(1) != y
        nearer = wrong & (size < rows.size.flatten())
        asked = (nearer if self.nearest else wrong & (size <= self.limit)).nonzero()[:, 0]
        sure = asked[misclassified(self.model, points[asked], logits[asked], y[asked])]
        wrong[asked] = False
        wrong[sure] = True
        kept = sure if self.nearest else nearer.nonzero()[:, 0]
        rows.best.flatten(0, 1)[kept] = rows.point.flatten(0, 1)[kept]
        rows.size.view(-1)[kept] = size[kept]
        share = torch.ones_like(size)
        share[wrong] = self.beta
        point = torch.lerp(rows.x, rows.point, share.view(*rows.size.shape, 1))
        if not self.nearest and len(sure):
            done = self._done(rows, sure, size, found)
            return replace(rows, point=point).take(~done)
        return replace(rows, point=point)

    def _done(self, rows: _BoundaryRows, sure: Tensor, size: Tensor, found: _Nearest) -> Tensor:
        """Put the nearest allowed of the points ``sure`` into ``found``; return whose they are."""
        x = rows.x[sure // rows.size.shape[1], 0]
        allowed = sure[self.threat.contains(x, rows.point.flatten(0, 1)[sure])]
        sizes = torch.full_like(size, math.inf)
        sizes[allowed] = size[allowed]
        least, which = sizes.view(rows.size.shape).min(1)
        done = least.isfinite()
        points = rows.point[done, which[done]]
        found.put(rows.index[done], points, least[done], least[done].neg())
        return done

    def _keep_nearest(self, rows: _BoundaryRows, found: _Nearest) -> None:
        """Keep the nearest point of each example if it is nearer than the one so far."""
        least, which = rows.size.min(1)
        nearer = least < found.distance[rows.index]
        points, index = rows.best[nearer, which[nearer]], rows.index[nearer]
        found.put(index, points, least[nearer], found.score[index])

    def _keep_strongest(self, rows: _BoundaryRows, found: _Nearest) -> None:
        """Keep of each example the strongest of the points, brought into the threat."""
        if not len(rows.index):
            return
        ends = torch.where(rows.size.isfinite()[..., None], rows.best, rows.point)
        x = rows.x.expand_as(ends).flatten(0, 1)
        ends = self.threat.project(x, ends.flatten(0, 1))
        inputs, y = self._inputs(ends), rows.labels
        model = self.model
        logits = model.decide(inputs) if isinstance(model, Fast) else model(inputs)
        wrong = logits.argmax(1) != y
        score = torch.nan_to_num(margin(logits, y), nan=-math.inf).to(found.score.dtype)
        score = torch.where(wrong, math.inf, score).view(rows.size.shape)
        most, which = score.max(1)
        better = (most > found.score[rows.index]).nonzero()[:, 0]
        chosen = better * score.shape[1] + which[better]
        distance = self.threat.distance(x[chosen], ends[chosen]).to(found.distance.dtype)
        distance = distance.masked_fill(~wrong[chosen], math.inf)
        found.put(rows.index[better], ends[chosen], distance, most[better])

    def _inputs(self, rows: Tensor) -> Tensor:
        return rows.reshape(-1, *self.shape)


def _nearest_plane(
    model: nn.Module, points: Tensor, y: Tensor, rivals: Tensor, norm: Norm
) -> tuple[Tensor, Tensor]:
    """Return z_s - z_y, (B,), and its gradient for the rival whose hyperplane is nearest."""
    least = points.new_full((len(points),), math.inf)
    value, w = torch.zeros_like(least), torch.zeros_like(points)
    planes = input_gradients(model, points, lambda z: z.gather(1, rivals) - z.gather(1, y))
    for far, grad in planes:
        length = _lengths(grad.flatten(1), _DUAL[norm])[:, 0]
        distance = far.abs() / length.clamp_min(_LEAST_SLOPE)
        nearer = (distance < least).nonzero()[:, 0]
        least[nearer] = distance[nearer].to(least.dtype)
        value[nearer] = far[nearer].to(value.dtype)
        w[nearer] = grad[nearer]
    return value, w.detach()


def _lengths(delta: Tensor, norm: Norm) -> Tensor:
    """Return the norm of tensors (..., D), with shape (..., 1)."""
    if norm == "linf":  # quicker than the general function
        return delta.abs().amax(-1, keepdim=True)
    lengths: Tensor = torch.linalg.vector_norm(delta, ord=_ORDER[norm], dim=-1, keepdim=True)
    return lengths
