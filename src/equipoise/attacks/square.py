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
is small, a pass tries several of them: the same search, in fewer passes.

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
_BLOCK = 64  # the most queries that are planned at a time
_PLANNED = 2**17  # the most pixels of these, which fit in a processor's cache
_ROOM = {"cpu": (192, 2**17)}  # the images, and pixels, up to which a larger pass saves time
_ROOM_ELSEWHERE = (512, 2**22)


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

    def alike(self, step: int, pixels: int) -> int:
        """Return how many queries from a step on to plan at once: all windows are of one size."""
        share = self.share(step - 1)
        most = min(_BLOCK, self.queries - step, int(_PLANNED // max(share * pixels, 1)))
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
        self.turns = torch.zeros_like(self.rows)  # how many planned queries each has made
        self.made = self.kept = 1  # the queries of the last plan, and how many were kept

    def run(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return points, with shape (B, ...), whether they are misclassified, and their scores.

        Scores are minus the margins.
        """
        attack, x, pixels = self.attack, self.x, self.x[0].numel()
        first = self.draws.uniform(_blank(x, self.moves.start_numbers))
        fooled, self.scores = self._judge(self.moves.start(first), self.y)
        self._leave(fooled.nonzero()[:, 0])
        step = 1
        while step < attack.queries and len(self.rows):
            count = attack.alike(step, len(self.rows) * pixels)
            ahead = min(attack.ahead, self.made // max(self.kept, 1))
            self._plan(count, attack.share(step - 1))
            room = _room(pixels, x.device)
            if min(ahead, room // len(self.rows)) < 2:
                self._together(count)
            else:
                while len(due := (self.turns < count).nonzero()[:, 0]):
                    self._query(due, count, max(1, min(ahead, room // len(due))))
            step += count
        self._record(slice(None))
        return self.points, self.fooled, self.results

    def _plan(self, count: int, share: float) -> None:
        """Plan the next queries of every example, with windows that cover a share of it."""
        self.draws, self.x = self.draws.select(self.rest), self.x[self.rest]
        self.rest = torch.arange(len(self.rest), device=self.rest.device)
        noise = self.draws.uniform(_blank(self.x, count, self.moves.numbers))
        self.moves.plan(noise.transpose(0, 1), share)
        self.turns = torch.zeros_like(self.rows)
        self.made, self.kept = count * len(self.rows), 0

    def _together(self, count: int) -> None:
        """Make all queries that are planned, one of every example at a time."""
        for turn in range(count):
            if not len(self.rows):
                return
            points = self.moves.propose(slice(None), turn)
            fooled, scores = self._judge(points, self.y)
            better = (fooled | (scores > self.scores)).nonzero()[:, 0]
            self._keep(points, fooled, scores, better, better)

    def _query(self, due: Tensor, count: int, ahead: int) -> None:
        """Try the next queries of the examples that have some left, and keep the first better."""
        turns = self.turns[due, None] + torch.arange(ahead, device=due.device)
        planned = turns < count
        owners = due[:, None].expand_as(turns)[planned]
        points = self.moves.propose(owners, turns[planned])
        fooled, scores = self._judge(points, self.y[owners])
        better = torch.zeros_like(planned)
        better[planned] = fooled | (scores > self.scores[owners])
        first, kept, tried = better.int().argmax(1), better.any(1), planned.sum(1)
        self.turns[due] += torch.where(kept, first + 1, tried)
        chosen = (tried.cumsum(0) - tried + first)[kept]
        self._keep(points, fooled, scores, chosen, due[kept])

    def _keep(
        self, points: Tensor, fooled: Tensor, scores: Tensor, chosen: Tensor, examples: Tensor
    ) -> None:
        """Make the chosen points the best ones of some examples; those fooled leave."""
        if not len(chosen):
            return
        self.kept += len(chosen)
        self.moves.accept(points, chosen, examples)
        self.scores[examples] = scores[chosen]
        self._leave(examples[fooled[chosen]])

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
        self.turns, self.rest = self.turns[rest], self.rest[rest]
        self.moves.take(rest)

    def _record(self, which: Tensor | slice) -> None:
        """Write the best points of some of the searched examples into the results."""
        rows = self.rows[which]
        self.points[rows] = self.moves.best[which].view(-1, *self.points.shape[1:])
        self.results[rows] = self.scores[which]


def _blank(x: Tensor, *shape: int) -> Tensor:
    """Return an empty float32 tensor for draws, also for inputs of shorter floats."""
    return x.new_empty((len(x), *shape), dtype=torch.float32)
