r"""Square: a random search without gradients, by windows of a shrinking size.

Each query changes one window of the best point so far and keeps the change if the margin
:math:`z_y - \max_{i \ne y} z_i` falls, or if the point is misclassified. Step i of the search
(from 0) has windows that cover the share :math:`p` of the image:

==============  ====  ====  =====  =====  ======  ======  ======  ======  ======  ======
i up to           10    50    200    500    1000    2000    4000    6000    8000  beyond
p_init / p         1     2      4      8      16      32      64     128     256     512
==============  ====  ====  =====  =====  ======  ======  ======  ======  ======  ======

Deviations from the authors' later code (of AutoAttack), none of which makes the search weaker:

- Every example has its own windows and signs, keyed by the example; that code shares them in a
  batch. So no verdict depends on the batch.
- The last row and column of windows can be reached.
- A window too large for the shorter side of an image keeps its area by growing along the longer
  one. Vectors (B, D) are lines, (B, 1, 1, D), and their windows intervals.
- The first tiles for L2 and L1 cover as much of the image as whole tiles can, in the middle.
- A point counts as misclassified by its largest logit, as everywhere here.

``queries`` counts the points that are tried of an example, the first one included. Where a batch
is small, a pass tries several of them: the same search, in fewer passes. For Linf a point that is
the best one itself, or that was refused since that was found, takes no pass, unless the model's
answers are random: it would be refused again.

References:
    | Square Attack: a query-efficient black-box adversarial attack via random search
    | (Andriushchenko, Croce, Flammarion and Hein, 2020), https://arxiv.org/abs/1912.00049
    | Mind the box: l1-APGD for sparse adversarial attacks on image classifiers
    | (Croce and Hein, 2021), https://arxiv.org/abs/2103.01208
"""

import math
from bisect import bisect_left
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor, nn

from equipoise.attacks.core import prepared, refuse, uncounted, wrong_norms
from equipoise.attacks.square_windows import Grid, Pyramids, Signs
from equipoise.draws import Draws
from equipoise.errors import out_of_range
from equipoise.execution.form import Fast, guest, misclassified
from equipoise.losses import margin
from equipoise.threat import Norm, Threat

_HALVED_AFTER = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)  # steps
_FULL = 10_000  # the number of queries for which the schedule was made
_BLOCKS = 64, 1024  # how many queries are planned at a time, of many examples and of one
_TABLE = 2**14  # the most queries of all examples together, beyond the first of these
_PLANNED = 2**17  # the most pixels of these, which fit in a processor's cache
_ROOM = {"cpu": (1024, 2**18)}  # the images, and pixels, up to which a larger pass saves time
_ROOM_ELSEWHERE = (1024, 2**22)
_FEW, _SAME = 8, 1e-4  # points that are asked twice, and the largest change of an answer, relative


@dataclass(frozen=True, kw_only=True)
class Square:
    """The Square attack.

    Arguments:
        queries: The number of points tried of an example that is not fooled, in each restart.
        p_init: The share of the image that the first windows cover, in (0, 1].
        restarts: How often to search; all but the first only for examples not yet fooled.
        rescale: Whether the schedule is stretched to ``queries`` from the 10 000 for which it
            was made. AutoAttack does not stretch it.
        ahead: How many queries of an example one pass may try if the batch is small; 1: one. It
            affects the time alone.
        norms: The norms for which the attack is defined.
    """

    queries: int = 5000
    p_init: Annotated[float, "(0, 1]"] = 0.8
    restarts: int = 1
    rescale: bool = False
    ahead: int = 16
    norms: tuple[Norm, ...] = ("linf", "l2", "l1")

    def __post_init__(self) -> None:
        problems = uncounted(self, "queries", "restarts", "ahead")
        problems += out_of_range(self)
        if not isinstance(self.rescale, bool):
            problems.append(f"rescale must be true or false, got {self.rescale!r}")
        refuse(problems + wrong_norms(self.norms))

    def cost(self, norm: Norm) -> float:
        """Return a rough number of the gradient evaluations an image."""
        return self.restarts * (1 + self.queries / 3)  # a query is a forward pass

    def __call__(
        self, model: nn.Module, x: Tensor, y: Tensor, threat: Threat, *, draws: Draws | None = None
    ) -> Tensor:
        """Return the strongest ``x_adv`` found for every example: see :class:`Attack`."""
        x, y, draws = prepared(self, x, y, threat, draws)
        if not x.numel() or threat.eps == 0:
            return x.clone()
        with guest(model) as model, torch.no_grad():
            source = draws.child("restart 0")
            points, fooled, scores = _RandomSearch(self, model, x, y, threat, source).run()
            for restart in range(1, self.restarts):
                rest = (~fooled).nonzero()[:, 0]
                if not len(rest):
                    break
                source = draws.child(f"restart {restart}").select(rest)
                again = _RandomSearch(self, model, x[rest], y[rest], threat, source).run()
                better = again[1] | (again[2] > scores[rest])
                for kept, new in zip((points, fooled, scores), again, strict=True):
                    kept[rest[better]] = new[better]
        return points

    def share(self, step: int) -> float:
        """Return the share of the image that the windows of a step cover, counted from 0."""
        if self.rescale:
            step = step * _FULL // self.queries
        return math.ldexp(self.p_init, -bisect_left(_HALVED_AFTER, step))

    def alike(self, step: int, examples: int, pixels: int) -> int:
        """Return how many queries from a step on to plan at once: all windows are of one size.

        Arguments:
            step: The first of them.
            examples: How many examples are searched.
            pixels: The pixels of one.
        """
        share = self.share(step - 1)
        block = min(max(_TABLE // examples, _BLOCKS[0]), _BLOCKS[1])
        planned = int(_PLANNED // max(share * pixels * examples, 1))
        most = min(block, self.queries - step, planned)
        last = next((i for i in range(1, most) if self.share(step - 1 + i) != share), most)
        return max(1, last)


def _room(pixels: int, device: torch.device) -> int:
    """Return up to how many images of so many pixels a larger pass saves time."""
    most, size = _ROOM.get(device.type, _ROOM_ELSEWHERE)
    return min(most, size // pixels)


class _RandomSearch:
    """One search; examples leave as soon as they are fooled.

    A pass tries several queries of an example at a time, each from the best point so far; the
    first that is kept ends its turn, and those after it are tried again from there. So the search
    is that of one query after the other, in fewer and larger passes.
    """

    def __init__(
        self, attack: Square, model: Fast, x: Tensor, y: Tensor, threat: Threat, draws: Draws
    ) -> None:
        kind = Signs if threat.norm == "linf" else Pyramids
        self.moves: Signs | Pyramids = kind(x.flatten(1), Grid.of(x.shape[1:]), threat)
        self.attack, self.model, self.draws, self.x, self.y = attack, model, draws, x, y
        self.points = torch.empty_like(x, memory_format=torch.contiguous_format)
        self.fooled = torch.zeros_like(y, dtype=torch.bool)
        self.results = torch.full(y.shape, -torch.inf, dtype=torch.float64, device=x.device)
        self.rows = torch.arange(len(x), device=x.device)  # the positions of what is searched
        self.rest = self.rows  # the same, in ``x``
        self.scores = self.results  # of what is searched
        self.due = self.fooled[None][:0]  # which planned queries are to be made, (queries, B)
        self.made = self.kept = 1  # the queries of the last plan, and how many were kept
        self.skips = False  # whether a query that was refused would be refused again

    def run(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return points, with shape (B, ...), whether they are misclassified, and their scores.

        Scores are minus the margins.
        """
        attack, x, pixels = self.attack, self.x, self.x[0].numel()
        first = self.draws.uniform(_blank(x, self.moves.start_numbers))
        fooled, self.scores = self._judge(self.moves.start(first), self.y)
        self.skips = isinstance(self.moves, Signs) and self._repeats(self.moves.best[:_FEW])
        self._leave(fooled.nonzero()[:, 0])
        step = 1
        while step < attack.queries and len(self.rows):
            count = attack.alike(step, len(self.rows), pixels)
            ahead = min(attack.ahead, self.made // max(self.kept, 1))
            self._plan(count, attack.share(step - 1))
            while busy := self._due():
                self._query(max(1, min(ahead, round(_room(pixels, x.device) / busy))))
            step += count
        self._record(slice(None))
        return self.points, self.fooled, self.results

    def _plan(self, count: int, share: float) -> None:
        """Plan the next queries of every example, with windows that cover a share of it."""
        self.draws, self.x = self.draws.select(self.rest), self.x[self.rest]
        self.rest = torch.arange(len(self.rest), device=self.rest.device)
        noise = self.draws.uniform(_blank(self.x, count, self.moves.numbers))
        self.moves.plan(noise.transpose(0, 1), share)
        self.due = torch.ones(count, len(self.rest), dtype=torch.bool, device=self.rest.device)
        self.made = self.kept = 0

    def _due(self) -> int:
        """Leave out the queries that would change nothing; return how many examples have some."""
        if self.skips and isinstance(self.moves, Signs):
            self.due &= self.moves.fresh()
        return int(self.due.any(0).sum())

    def _query(self, ahead: int) -> None:
        """Try the next queries of each example, and keep its first better one."""
        asked = self.due & (self.due.cumsum(0) <= ahead)
        turns, owners = asked.nonzero(as_tuple=True)
        points = self.moves.propose(owners, turns)
        fooled, scores = self._judge(points, self.y[owners])
        self.due &= ~asked
        self.made += len(owners)
        if isinstance(self.moves, Signs):
            self.moves.refuse(owners, turns)
        better = (fooled | (scores > self.scores[owners])).nonzero()[:, 0]
        if not len(better):
            return
        count = len(self.due)
        first = torch.full_like(self.rows, count)
        first.scatter_reduce_(0, owners[better], turns[better], "amin")
        chosen = better[turns[better] == first[owners[better]]]
        examples = owners[chosen]
        self.kept += len(chosen)
        self.moves.accept(points, chosen, examples)
        self.scores[examples] = scores[chosen]
        every = torch.arange(count, device=first.device)[:, None]
        self.due[:, examples] = every > first[examples]
        self._leave(examples[fooled[chosen]])

    def _repeats(self, points: Tensor) -> bool:
        """Return whether the model gives the same answers to some points again."""
        points = points.view(-1, *self.points.shape[1:])
        first, second = (self.model(points).float() for _ in range(2))
        return bool(((first - second).abs() <= _SAME * first.abs().amax()).all())

    def _judge(self, points: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return which points are misclassified, and minus their margins; NaN counts as lowest."""
        points = points.view(-1, *self.points.shape[1:])
        logits = self.model(points)
        if logits.dtype in (torch.bfloat16, torch.float16):
            logits = logits.float()  # margins are differences of logits: they need the digits
        scores = torch.nan_to_num(margin(logits, y).double(), nan=-torch.inf)
        return misclassified(self.model, points, logits, y), scores

    def _leave(self, examples: Tensor) -> None:
        """Record the examples that are fooled, and continue with the others alone."""
        if not len(examples):
            return
        fooled = torch.zeros_like(self.rows, dtype=torch.bool)
        fooled[examples] = True
        self._record(fooled)
        self.fooled[self.rows[fooled]] = True
        rest = (~fooled).nonzero()[:, 0]
        self.rows, self.y, self.scores = self.rows[rest], self.y[rest], self.scores[rest]
        self.due, self.rest = self.due[:, rest], self.rest[rest]
        self.moves.take(rest)

    def _record(self, which: Tensor | slice) -> None:
        """Write the best points of some of the searched examples into the results."""
        rows = self.rows[which]
        self.points[rows] = self.moves.best[which].view(-1, *self.points.shape[1:])
        self.results[rows] = self.scores[which]


def _blank(x: Tensor, *shape: int) -> Tensor:
    """Return an empty float32 tensor for draws, also for inputs of shorter floats."""
    return x.new_empty((len(x), *shape), dtype=torch.float32)
