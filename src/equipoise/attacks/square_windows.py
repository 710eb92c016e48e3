r"""The proposals of the Square attack: windows of an image, changed at random.

Inputs are flat here, (B, D) with D = c h w: a window is a set of positions in them, the same
rectangle in every channel, at a different place for each example.

For Linf, a window takes :math:`x \pm \epsilon`, with one sign a channel. For L2 and L1 it
receives, in each channel, the *mass* (the sum of :math:`|\delta|^p`) of two windows and a share
of what is left of the budget, laid out as a pair of pyramids of opposite signs

.. math:: \eta_{ij} = \sum_{k = d_{ij}}^{m} (k + 1)^{-a}, \qquad
          d_{ij} = \max(|i - \lfloor r/2 \rfloor|, |j - \lfloor q/2 \rfloor|)

on each half, of r x q pixels, of the window, with m the largest of the two halved sides and
a = 2 for L2, a = 4 for L1; each half weighs the same. That uses the budget exactly, up to the
range. For L1 with c channels a window takes c times the mass, and the projection removes the
excess everywhere: that makes the perturbation sparse, without which the search is far weaker.
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple, Self

import torch
from torch import Tensor

from equipoise.threat import Threat, towards

Size = tuple[int, int]  # height and width of a window, in pixels

_TILES = 5  # the first perturbation is laid out as this many pyramids a side
_TINY = 1e-30
_SIGNS, _REMEMBERED = 8, 2**14  # the most channels and squares of which refused ones are kept


class Grid(NamedTuple):
    """How an input is laid out: channels, height and width."""

    channels: int
    height: int
    width: int

    @classmethod
    def of(cls, shape: Sequence[int]) -> Self:
        """Return the layout of an example: (D,) is a line, (H, W) one channel, (C, ..., W) all."""
        if len(shape) < 3:
            return cls(1, math.prod(shape[:-1]), shape[-1])
        return cls(shape[0], math.prod(shape[1:-1]), shape[-1])

    def corners(self, noise: Tensor, size: Size) -> tuple[Tensor, Tensor]:
        """Return rows and columns, (..., 1), of windows that fit, from numbers, (..., 2)."""
        rows = (noise[..., :1] * (self.height - size[0] + 1)).long()
        columns = (noise[..., 1:] * (self.width - size[1] + 1)).long()
        return rows, columns

    def positions(self, corner: tuple[Tensor, Tensor], size: Size) -> Tensor:
        """Return where the pixels of windows lie, (..., c h w), channel by channel."""
        rows, columns = corner
        return rows * self.width + columns + _offsets(self, size, rows.device)


def window_size(share: float, grid: Grid, *, pyramids: bool = False) -> Size:
    """Return height and width of the windows that cover a share of the image.

    Windows are squares; a square too large for the shorter side becomes a rectangle of the same
    area, so that on a line it is an interval.

    Arguments:
        share: The share of the pixels, in (0, 1].
        grid: The layout of the image.
        pyramids: Whether the sides are odd and at least 3 where they fit, as for L2 and L1.
    """

    def side(length: float) -> int:
        return max(round(length), 3) // 2 * 2 + 1 if pyramids else max(round(length), 1)

    area = share * grid.height * grid.width
    length = math.sqrt(area)
    height, width = side(length), side(length)
    if length > grid.height:
        height, width = grid.height, side(area / grid.height)
    elif length > grid.width:
        height, width = side(area / grid.width), grid.width
    return min(height, grid.height), min(width, grid.width)


class Signs:
    """Linf: vertical stripes at first, then squares, all at the border of the ball.

    It holds the ``best`` points so far, with shape (B, D). An example's first point takes
    ``start_numbers`` numbers in [0, 1), and each of its proposals ``numbers``.

    Arguments:
        x: The clean inputs, with shape (B, D).
        grid: Their layout.
        threat: The ball and the range.
    """

    def __init__(self, x: Tensor, grid: Grid, threat: Threat) -> None:
        self.best, self.grid = x, grid
        self.numbers = 2 + grid.channels
        self.start_numbers = grid.channels * grid.width
        self.index = self.squares = x.new_empty((0, len(x), 0))
        self.lower, self.upper = threat.ends(x)
        self.size: Size = (0, 0)
        self.changing = torch.empty((0, len(x)), dtype=torch.bool, device=x.device)
        self.code = self.changing.long()
        self.refused = self.changing.T
        self.remembers = grid.channels <= _SIGNS and _codes(grid) <= _REMEMBERED

    def start(self, noise: Tensor) -> Tensor:
        """Return the first points, (B, D), from numbers with shape (B, start_numbers).

        They are stripes: one sign for each channel and column.
        """
        channels, height, width = self.grid
        up = (noise >= 0.5).view(-1, channels, 1, width).expand(-1, -1, height, -1).flatten(1)
        self.best = torch.where(up, self.upper, self.lower)
        return self.best

    def plan(self, noise: Tensor, share: float) -> None:
        """Place the next squares and compute their pixels, which do not depend on the best points.

        Arguments:
            noise: Numbers in [0, 1), with shape (queries, B, numbers).
            share: The share of the image that a square covers.
        """
        size = window_size(share, self.grid)
        rows, columns = corner = self.grid.corners(noise[..., :2], size)
        self.index = self.grid.positions(corner, size)
        signs = noise[..., 2:] >= 0.5
        up = signs.repeat_interleave(size[0] * size[1], dim=-1)
        ends = torch.cat([self.lower, self.upper], dim=1).expand(len(noise), -1, -1)
        self.squares = ends.gather(2, self.index + up * self.lower.shape[1])
        self.changing = self._changes(slice(None))
        if not self.remembers:
            return
        powers = 2 ** torch.arange(self.grid.channels, device=signs.device)
        place = (rows * self.grid.width + columns)[..., 0]
        self.code = place * 2**self.grid.channels + (signs * powers).sum(-1)
        if size != self.size:
            self.size = size
            self.refused = signs.new_zeros((len(self.best), _codes(self.grid)))

    def fresh(self) -> Tensor:
        """Return which planned queries are worth a pass, with shape (queries, B).

        Not those that change nothing, and not those that were refused since the best point was
        found: they would be refused again.
        """
        if not self.remembers:
            return self.changing
        return self.changing & ~self.refused.gather(1, self.code.T).T

    def propose(self, examples: Tensor, turns: Tensor) -> Tensor:
        """Return points, (N, D), with a new square, of one sign in each channel.

        Arguments:
            examples: The examples, with shape (N,).
            turns: The numbers of the planned queries, with shape (N,).
        """
        index, squares = self.index[turns, examples], self.squares[turns, examples]
        return self.best[examples].scatter_(1, index, squares)

    def refuse(self, examples: Tensor, turns: Tensor) -> None:
        """Note proposals that are no better, or that are accepted next."""
        if self.remembers:
            self.refused[examples, self.code[turns, examples]] = True

    def accept(self, points: Tensor, chosen: Tensor, examples: Tensor) -> None:
        """Keep some of the points of the last proposal.

        Arguments:
            points: All of them, with shape (N, D).
            chosen: Those to keep, positions with shape (K,).
            examples: The examples they belong to, with shape (K,), each at most once.
        """
        self.best[examples] = points[chosen]
        self.changing[:, examples] = self._changes(examples)
        if self.remembers:
            self.refused[examples] = False

    def take(self, rows: Tensor) -> None:
        """Continue with some examples alone."""
        self.best, self.lower, self.upper, self.refused = (
            state[rows] for state in (self.best, self.lower, self.upper, self.refused)
        )
        self.index, self.squares, self.changing, self.code = (
            plan[:, rows] for plan in (self.index, self.squares, self.changing, self.code)
        )

    def _changes(self, examples: Tensor | slice) -> Tensor:
        """Return which squares differ from the best points of some examples, (queries, N)."""
        index = self.index[:, examples]
        now = self.best[examples].expand(len(index), -1, -1).gather(2, index)
        return (now != self.squares[:, examples]).any(-1)


class Pyramids:
    """L2 and L1: tiles of pyramids at first; then mass moves between windows.

    Arguments and methods are those of :class:`Signs`.
    """

    def __init__(self, x: Tensor, grid: Grid, threat: Threat) -> None:
        self.x, self.best = x, x
        self.grid, self.threat = grid, threat
        self.power = 2 if threat.norm == "l2" else 1
        self.numbers = 5 + grid.channels
        self.tile = max(grid.height // _TILES, 1), max(grid.width // _TILES, 1)
        self.tiles = grid.height // self.tile[0], grid.width // self.tile[1]
        self.start_numbers = math.prod(self.tiles) * (1 + grid.channels)
        self.spent = self.tried = torch.zeros(len(x), 1, dtype=torch.float64, device=x.device)
        self.noise = x.new_empty((0, len(x), self.numbers))
        self.share = 1.0

    def start(self, noise: Tensor) -> Tensor:
        """Return tiles, each with one orientation and a sign for each channel."""
        (channels, height, width), tile = self.grid, self.tile
        count = math.prod(self.tiles)
        turned, up = noise[:, :count] >= 0.5, noise[:, count:] >= 0.5
        pattern = self._pattern(tile, turned.flatten()).view(len(noise), 1, *self.tiles, *tile)
        sign = _sign(up).view(len(noise), channels, *self.tiles, 1, 1)
        tiled = (pattern * sign).transpose(3, 4)
        sides = self.tiles[0] * tile[0], self.tiles[1] * tile[1]
        top, left = (height - sides[0]) // 2, (width - sides[1]) // 2
        delta = noise.new_zeros(len(noise), channels, height, width, dtype=torch.float64)
        inner = delta[:, :, top : top + sides[0], left : left + sides[1]]
        inner.copy_(tiled.reshape(inner.shape))
        self.best = self._fill(delta.flatten(1))
        self.spent = self._mass(self.best.double() - self.x.double())
        return self.best

    def plan(self, noise: Tensor, share: float) -> None:
        """Keep the numbers: the moves of mass depend on the best points."""
        self.noise, self.share = noise, share

    def propose(self, examples: Tensor, turns: Tensor) -> Tensor:
        """Return points with the mass of two windows, and unspent mass, in the first."""
        noise, clean, best = self.noise[turns, examples], self.x[examples], self.best[examples]
        size = window_size(self.share, self.grid, pyramids=True)
        first, second = (self.grid.corners(noise[:, i : i + 2], size) for i in (0, 2))
        at, x, delta = self._look(clean, best, first, size)
        at_second, x_second, delta_second = self._look(clean, best, second, size)
        apart = ~_covered(second, first, size).view(len(x), 1, -1)
        taken = self._mass(delta) + self._mass(delta_second * apart)
        spent = self.spent[examples]
        delta = self._laid_out(delta, taken, spent, noise[:, 4:], size)
        points = best.scatter(1, at_second, x_second.flatten(1))
        if self.power == 1 and self.grid.channels > 1:
            pixels = (x.double() + delta).to(x.dtype)
            points = self.threat.project(clean, points.scatter_(1, at, pixels.flatten(1)))
            self.tried = self._mass(points.double() - clean.double())
            return points
        moved = self._write(x, delta)
        gained = self._mass(moved.double() - x.double()) - taken
        self.tried = spent + gained.sum(1)
        return points.scatter_(1, at, moved.flatten(1))

    def accept(self, points: Tensor, chosen: Tensor, examples: Tensor) -> None:
        """Keep proposed points."""
        self.best[examples] = points[chosen]
        self.spent[examples] = self.tried[chosen]

    def take(self, rows: Tensor) -> None:
        """Continue with some examples alone."""
        self.x, self.best, self.spent = self.x[rows], self.best[rows], self.spent[rows]
        self.noise = self.noise[:, rows]

    def _laid_out(
        self, delta: Tensor, taken: Tensor, spent: Tensor, noise: Tensor, size: Size
    ) -> Tensor:
        """Return the new perturbations of windows, (B, c, n), from the old ones and the mass."""
        channels = self.grid.channels
        left = self.threat.eps**self.power - spent[:, :, None]
        target = (left / channels + taken).clamp_min(0)
        if self.power == 1:
            target = target * channels
        pattern = self._pattern(size, noise[:, 0] >= 0.5)[:, None]
        shape = pattern * _sign(noise[:, 1:] >= 0.5)[:, :, None]
        shape = shape + delta / self._root(self._mass(delta))
        return shape * self._root(target / self._mass(shape).clamp_min(_TINY))

    def _fill(self, delta: Tensor) -> Tensor:
        """Return allowed points along perturbations, (B, D), that use up the budget."""
        norm = self.threat.lengths(delta, self.threat.norm).clamp_min(_TINY)
        scale = self.threat.eps / norm
        if self.power == 1:
            scale = scale.clamp_min(1)  # too much mass: the projection makes it sparse
        return self.threat.project(self.x, self.x + (scale * delta).to(self.x.dtype))

    def _look(
        self, clean: Tensor, best: Tensor, corner: tuple[Tensor, Tensor], size: Size
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return positions, (B, c n), clean pixels and perturbations, (B, c, n), of windows."""
        index = self.grid.positions(corner, size)
        x = clean.gather(1, index)
        delta = best.gather(1, index).double() - x.double()
        shape = len(x), self.grid.channels, -1
        return index, x.view(shape), delta.view(shape)

    def _write(self, x: Tensor, delta: Tensor) -> Tensor:
        """Return perturbed pixels within the range, rounded towards the clean ones."""
        clean = x.double()
        moved = (clean + delta).clamp_(self.threat.low, self.threat.high).to(x.dtype)
        return towards(x, moved, delta.abs())

    def _pattern(self, size: Size, turned: Tensor) -> Tensor:
        return pyramids(size, self.power, turned.device)[turned.long()]

    def _mass(self, delta: Tensor) -> Tensor:
        size = delta.square() if self.power == 2 else delta.abs()
        return size.sum(-1, keepdim=True)

    def _root(self, mass: Tensor) -> Tensor:
        return (mass.sqrt() if self.power == 2 else mass).clamp_min(_TINY)


def _codes(grid: Grid) -> int:
    """Return how many squares of one size an input has at most, with their signs."""
    return int(grid.height * grid.width * 2**grid.channels)


@lru_cache(maxsize=128)
def _offsets(grid: Grid, size: Size, device: torch.device) -> Tensor:
    """Return where the pixels of a window lie, (c h w,), as seen from its corner."""
    channel = torch.arange(grid.channels)[:, None, None]
    row, column = torch.arange(size[0])[:, None], torch.arange(size[1])
    return (channel * grid.height * grid.width + row * grid.width + column).flatten().to(device)


@lru_cache(maxsize=128)
def pyramids(size: Size, power: int, device: torch.device) -> Tensor:
    """Return the pair of pyramids, one above the other and side by side, of mass one.

    Arguments:
        size: Height and width of the window.
        power: 2 for L2, 1 for L1: the exponent in the mass.
        device: The device of the result.

    Returns:
        Float64 with shape (2, height width).
    """
    above = _pair(size, power)
    sideways = _pair((size[1], size[0]), power).T
    return torch.stack([above.flatten(), sideways.flatten()]).to(device)


def _pair(size: Size, power: int) -> Tensor:
    upper = size[0] // 2
    halves = [_pyramid((upper, size[1]), power), -_pyramid((size[0] - upper, size[1]), power)]
    return _of_mass_one(torch.cat([half for half in halves if half.numel()]), power)


def _pyramid(size: Size, power: int) -> Tensor:
    middle = size[0] // 2, size[1] // 2
    row = (torch.arange(size[0]) - middle[0]).abs()[:, None]
    column = (torch.arange(size[1]) - middle[1]).abs()
    steps = torch.arange(max(middle) + 1)
    terms = (steps + 1.0).double() ** (-2 if power == 2 else -4)
    reached = steps >= torch.maximum(row, column)[..., None]
    return _of_mass_one((terms * reached).sum(-1), power)


def _of_mass_one(pattern: Tensor, power: int) -> Tensor:
    return pattern / pattern.abs().pow(power).sum().pow(1 / power) if pattern.numel() else pattern


def _covered(corner: tuple[Tensor, Tensor], by: tuple[Tensor, Tensor], size: Size) -> Tensor:
    """Return which pixels of windows, (B, h, w), lie in other windows of the same size."""

    def along(at: Tensor, other: Tensor, side: int) -> Tensor:
        apart = at - other + torch.arange(side, device=at.device)
        return (apart >= 0) & (apart < side)

    rows, columns = (along(*ends) for ends in zip(corner, by, size, strict=True))
    return rows[:, :, None] & columns[:, None, :]


def _sign(up: Tensor) -> Tensor:
    return 2.0 * up.double() - 1
