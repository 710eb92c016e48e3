"""Values that change during training, as knots with straight lines between them."""

__all__ = ["Knots"]

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from equipoise.errors import UserError


@dataclass(frozen=True)
class Knots:
    r"""A piecewise linear function of progress in [0, 1].

    The paper's :math:`\gamma = (1, 1, 1, 0.4)` are knots at 0, 1/3, 2/3 and 1, as the Generalist
    code interpolates them.

    Example:
        >>> Knots((1.0, 1.0, 1.0, 0.4))(5 / 6)
        0.7

    Arguments:
        values: The values at the knots; one value is a constant.
        at: Where the knots are, from 0 to 1; evenly spread by default.
    """

    values: tuple[float, ...]
    at: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if not self.values:
            raise UserError("a schedule needs at least one value")
        places = self.places
        if not all(math.isfinite(value) for value in self.values):
            raise UserError(f"the values of a schedule must be finite, got {self.values}")
        if not all(0 <= place <= 1 for place in places):
            raise UserError(f"the places of a schedule must lie in [0, 1], got {self.at}")
        if len(places) != len(self.values) or list(places) != sorted(places):
            raise UserError(f"a schedule needs a rising place per value, got {self.at}")

    @property
    def places(self) -> Sequence[float]:
        """Return where the knots are."""
        if self.at is not None:
            return self.at
        last = max(len(self.values) - 1, 1)
        return [i / last for i in range(len(self.values))]

    def __call__(self, progress: float) -> float:
        """Return the value at a progress, the nearest end's outside of [0, 1]."""
        places = self.places
        right = bisect_right(places, progress)
        if right in (0, len(places)):
            return self.values[max(right - 1, 0)]
        start, end = places[right - 1], places[right]
        part = (progress - start) / (end - start)
        return (1 - part) * self.values[right - 1] + part * self.values[right]
