r"""The threat model: the norm and size of perturbations, and the range of inputs.

A :class:`Threat` has everything that depends on the norm, so that attacks work for every norm.

The projection is the exact Euclidean projection onto the *intersection* of the ball
:math:`\{v : \|v - x\|_p \le \epsilon\}` and the range :math:`[low, high]^d`. Projecting first onto
the ball and then onto the range would leave L1 and L2 budgets partly unused at the border.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

import torch
from torch import Tensor

from equipoise.errors import UserError

Norm = Literal["linf", "l2", "l1"]

NORMS: tuple[Norm, ...] = ("linf", "l2", "l1")

# Values within [-1, 1] have rounding errors of at most 2^-25 each; the judge tolerates them.
TOLERANCE = 1e-6
TOGETHER = 1 << 24  # values that are compared at a time, in float64

ROUNDING = 1e-6  # of the range: the most by which rounding moves inputs out of it
SLIGHT = 0.01  # of the range: the most by which filters and compression do


@dataclass(frozen=True)
class Threat:
    r"""All perturbations of size at most ``eps`` that stay in the range of the input.

    Example:
        >>> Threat("linf", 8 / 255)
        Linf(8/255)

    In all methods ``x`` are clean inputs in the range, and ``x_adv`` are other points; both have
    shape (B, ...).

    Arguments:
        norm: ``"linf"``, ``"l2"`` or ``"l1"``.
        eps: The radius :math:`\epsilon`, in units of the input range; 0 allows nothing.
        low: The smallest value of an input.
        high: The largest value of an input.

    Raises:
        UserError: If the norm is unknown, or a number is not finite or out of range.
    """

    norm: Norm
    eps: float
    low: float = 0.0
    high: float = 1.0

    def __post_init__(self) -> None:
        if self.norm not in NORMS:
            raise UserError(f"norm must be one of {', '.join(NORMS)}, got {self.norm!r}")
        for name in ("low", "high"):
            object.__setattr__(self, name, _finite(getattr(self, name), name))
        if not self.low < self.high:
            raise UserError(f"low must be below high, got [{self.low}, {self.high}]")
        object.__setattr__(self, "eps", _finite(_radius(self.eps), "eps"))
        if self.eps < 0:
            raise UserError(f"eps must be a finite number >= 0, got {self.eps}")
        span = self.high - self.low
        if self.norm == "linf" and self.eps > span:
            hint = f"; did you mean {self.eps:g}/255?" if self.eps == int(self.eps) else ""
            raise UserError(f"eps must lie in [0, {span:g}], got {self.eps:g}{hint}")

    def __repr__(self) -> str:
        name = {"linf": "Linf", "l2": "L2", "l1": "L1"}[self.norm]
        span = "" if (self.low, self.high) == (0, 1) else f", low={self.low}, high={self.high}"
        return f"{name}({fraction(self.eps)}{span})"

    def project(self, x: Tensor, x_adv: Tensor) -> Tensor:
        """Return the points of the ball and the range that are nearest to ``x_adv``."""
        return self.projector(x)(x_adv)

    def projector(self, x: Tensor) -> Callable[[Tensor], Tensor]:
        """Return the projection for clean inputs ``x``, for use in many steps."""
        if self.norm != "linf":
            return lambda x_adv: self._nearest(x, x_adv)
        lower, upper = self.ends(x)
        return lambda x_adv: torch.clamp(x_adv, lower, upper)

    def ends(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the lowest and the highest values of a Linf ball within the range.

        They are rounded towards ``x``: rounding x + eps to the nearest number would leave the
        ball, by up to 8e-6 on a range of 0..255.
        """
        lower, upper = (
            towards(x, (x.double() + move).to(x.dtype), self.eps) for move in (-self.eps, self.eps)
        )
        return lower.clamp_(min=self.low), upper.clamp_(max=self.high)

    def _nearest(self, x: Tensor, x_adv: Tensor) -> Tensor:
        """Project onto a ball of L2 or L1."""
        delta = (x_adv - x).flatten(1)
        room = torch.where(delta > 0, self.high - x.flatten(1), x.flatten(1) - self.low)
        size = delta.abs()
        fit = _fit_l2 if self.norm == "l2" else _fit_l1
        moved = torch.copysign(fit(size, room, self.eps), delta).view_as(x)
        projected = (x + moved).clamp_(self.low, self.high)
        # The rounding of x + moved may add up to more than the budget.
        return towards(x, projected, moved.abs().double())

    def ascent(self, grad: Tensor) -> Tensor:
        r"""Return a step of length one in the direction in which a loss grows.

        It is :math:`\mathrm{sign}(g)` for Linf, :math:`g / \|g\|_2` for L2 and
        :math:`g / \|g\|_\infty` for L1, where the projection makes the perturbation sparse. A zero
        gradient gives a zero step. ``grad`` has shape (B, ...).
        """
        if self.norm == "linf":
            return grad.sign()
        tiny = torch.finfo(grad.dtype).tiny
        grad = grad / self.lengths(grad, "linf").clamp_min(tiny)  # squares stay in range
        return grad if self.norm == "l1" else grad / self.lengths(grad, "l2").clamp_min(tiny)

    def start(self, x: Tensor, noise: Tensor) -> Tensor:
        """Return random starting points in the ball and the range.

        For Linf they are uniform in the ball; for L2 and L1 they have the full radius, in a random
        direction. ``noise`` are numbers in [0, 1), with the shape of ``x``.
        """
        direction = 2 * noise - 1
        if self.norm != "linf":
            direction = direction / self.lengths(direction, self.norm).clamp_min(1e-12)
        return self.project(x, x + self.eps * direction)

    def distance(self, x: Tensor, x_adv: Tensor) -> Tensor:
        """Return the size of each perturbation in this norm, in float64, with shape (B,)."""
        if parts := _parts(x, x_adv):
            return torch.cat([self.distance(*part) for part in parts])
        delta = x_adv.double() - x.double()
        return self.lengths(delta, self.norm).flatten()

    def contains(self, x: Tensor, x_adv: Tensor) -> Tensor:
        """Return which points are finite, in the range and in the ball, as booleans (B,).

        The distance is computed in float64; the ball has a :meth:`tolerance`, the range has none.
        """
        if x.shape != x_adv.shape:
            raise UserError(f"expected x_adv of shape {tuple(x.shape)}, got {tuple(x_adv.shape)}")
        if parts := _parts(x, x_adv):
            return torch.cat([self.contains(*part) for part in parts])
        flat = x_adv.flatten(1)
        inside = ((flat >= self.low) & (flat <= self.high)).all(dim=1)  # NaN compares false
        radius = self.eps + self.tolerance(x, x_adv) if self.eps > 0 else 0.0
        return inside & (self.distance(x, x_adv) <= radius)

    def tolerance(self, x: Tensor, x_adv: Tensor) -> Tensor:
        """Return the tolerance of the radius for rounding errors, float64 with shape (B,).

        It is 1e-6, times eps if eps > 1, or times the width of a range narrower than 1. Floats
        above 1 have larger gaps: on a range beyond [-1, 1] half the gap to the next float is added
        for each moved value, in the norm.
        """
        least = TOLERANCE * max(min(1.0, self.high - self.low), self.eps)
        if self.low >= -1 and self.high <= 1:
            return torch.full((len(x),), least, dtype=torch.float64, device=x.device)
        size = torch.maximum(x.abs(), x_adv.abs())
        gap = torch.nextafter(size, torch.full_like(size, torch.inf)).double() - size.double()
        rounding = torch.where(x_adv != x, gap / 2, 0.0)
        return least + self.lengths(rounding, self.norm).flatten()

    @staticmethod
    def lengths(delta: Tensor, norm: Norm) -> Tensor:
        """Return the norm of each example, with shape (B, 1, ...) to broadcast."""
        order = {"linf": math.inf, "l2": 2, "l1": 1}[norm]
        lengths: Tensor = torch.linalg.vector_norm(delta.flatten(1), ord=order, dim=1)
        return lengths.view(-1, *[1] * (delta.ndim - 1))


def _parts(x: Tensor, x_adv: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Return both in parts that are measured one after the other; none: they are few."""
    if x.numel() <= TOGETHER or len(x) < 2 or len(x) != len(x_adv):
        return []
    size = max(1, TOGETHER // x[0].numel())
    return [*zip(torch.split(x, size), torch.split(x_adv, size), strict=True)]


def Linf(eps: float | str) -> Threat:  # noqa: N802 - named like the norm
    """Every pixel may move by at most ``eps``."""
    return Threat("linf", _radius(eps))


def L2(eps: float | str) -> Threat:  # noqa: N802
    """The perturbation may have a Euclidean length of at most ``eps``."""
    return Threat("l2", _radius(eps))


def L1(eps: float | str) -> Threat:  # noqa: N802
    """The absolute values of the perturbation may sum to at most ``eps``."""
    return Threat("l1", _radius(eps))


def _radius(eps: float | str) -> float:
    """Return a radius, which may be text such as 8/255."""
    try:
        if isinstance(eps, bool):
            raise ValueError
        return float(Fraction(eps)) if isinstance(eps, str) else eps
    except (ValueError, ZeroDivisionError):
        raise UserError(f"eps must be a number such as 0.03 or 8/255, got {eps!r}") from None


def _finite(value: object, name: str) -> float:
    """Return a finite number; other kinds of floats, such as NumPy's, become Python's."""
    try:
        number = value if isinstance(value, int | float) else float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, RuntimeError):
        number = math.nan
    if isinstance(value, bool | str) or not math.isfinite(number):
        least = " >= 0" if name == "eps" else ""
        raise UserError(f"{name} must be a finite number{least}, got {value!r}")
    return number


def towards(x: Tensor, moved: Tensor, most: Tensor | float) -> Tensor:
    """Return moved values, changed to the next float towards x if farther than ``most`` from it.

    Arguments:
        x: The clean values.
        moved: The rounded sums of x and the moves, with the shape of ``x``.
        most: The lengths of the moves, in float64.
    """
    over = (moved.double() - x.double()).abs() > most
    return torch.where(over, torch.nextafter(moved, x), moved)


def fraction(eps: float) -> str:
    """Return the usual text of a radius: 8/255 or 0.1."""
    decimal, parts = f"{eps:g}", round(eps * 255)
    fits = 0 < eps < 1 and math.isclose(parts / 255, eps, rel_tol=1e-9)
    return f"{parts}/255" if fits and len(decimal) > len("0.25") else decimal


def _fit_l2(size: Tensor, room: Tensor, eps: float) -> Tensor:
    """Shrink ``size`` (B, D) to min(s size, room) with the largest s <= 1 that fits ``eps``.

    The length grows with s. Starting below the solution, each pass solves for s with the
    coordinates that are at the border so far; s only grows, so a few passes suffice.
    """
    s = (eps / torch.linalg.vector_norm(size, dim=1, keepdim=True).clamp_min(1e-30)).clamp_max(1)
    for _ in range(size.shape[1] + 1):
        full = s * size >= room
        used = torch.where(full, room, 0).square().sum(1, keepdim=True)
        free = torch.where(full, 0, size).square().sum(1, keepdim=True)
        grown = ((eps**2 - used).clamp_min(0) / free.clamp_min(1e-30)).sqrt().clamp_max(1)
        grown = torch.maximum(s, grown)
        if (grown <= s * (1 + 1e-7)).all():
            break
        s = grown
    return torch.minimum(s * size, room)


def _fit_l1(size: Tensor, room: Tensor, eps: float) -> Tensor:
    """Shrink ``size`` (B, D) to clip(size - t, 0, room) with the smallest t >= 0 that fits eps.

    The sum falls with t and is piecewise linear: Newton steps in a bracket, which is halved if a
    step leaves it, find t exactly without a sort.
    """
    dtype, size, room = size.dtype, size.double(), room.double()
    low = torch.zeros_like(size[:, :1])
    high = size.amax(1, keepdim=True)
    t = low.clone()
    for _ in range(100):
        left = (size - t).clamp_min(0)
        excess = torch.minimum(left, room).sum(1, keepdim=True) - eps
        over = excess > 1e-12 * eps
        low, high = torch.where(over, t, low), torch.where(over, high, t)
        met = (excess.abs() <= 1e-12 * eps) | (high - low <= 1e-15) | ((t <= 0) & ~over)
        if met.all():
            break
        slope = ((left > 0) & (left < room)).sum(1, keepdim=True)
        newton = t + excess / slope.clamp_min(1)
        inside = (newton > low) & (newton < high) & (slope > 0)
        t = torch.where(met, t, torch.where(inside, newton, (low + high) / 2))
    fitted = torch.minimum((size - high).clamp_min(0), room)
    return fitted.to(dtype)
