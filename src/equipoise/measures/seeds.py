r"""Differences between trainings: what holds over their seeds and over the images.

A difference of two methods is measured on k seeds, on the same n images. Its variance is that of a
hierarchical bootstrap: seeds are drawn with replacement, and images, the same ones for all seeds,
because all models see the same. Seeds drawn from k seeds scatter too little, by
:math:`(k - 1) / k` in variance; this is made up for. The part of the
trainings is known by few seeds, and so uncertain itself; the error is used with Student's t, whose
degrees of freedom are Satterthwaite's,

.. math:: f \left(\frac{V_{images} + V_{training}}{V_{training}}\right)^2

where f are those of the trainings' part: k - 1, or more where it is pooled over comparisons of one
method with several others (:func:`pooled`).

References:
    | An Approximate Distribution of Estimates of Variance Components (Satterthwaite, 1946)
    | https://doi.org/10.2307/3002019
    | The Pigeonhole Bootstrap (Owen, 2007), https://doi.org/10.1214/07-AOAS122
    | A Simple Sequentially Rejective Multiple Test Procedure (Holm, 1979)
    | https://www.jstor.org/stable/4615733
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from equipoise.errors import UserError

RESAMPLES = 2000
_MANY = 1e6  # degrees of freedom; from there on t is the normal distribution to six digits


@dataclass(frozen=True)
class Difference:
    """A difference over seeds.

    Arguments:
        mean: Its mean over the seeds, a fraction.
        images: The variance of the mean by the images.
        training: Its variance by the trainings; infinite for one seed.
        freedom: The degrees of freedom of that by the trainings.
        seeds: How many seeds there are.
        n: The number of images of each.
    """

    mean: float
    images: float
    training: float
    freedom: float
    seeds: int
    n: int

    @property
    def error(self) -> float:
        """Return the standard error of the mean."""
        return math.sqrt(self.images + self.training)

    @property
    def _t(self) -> float:
        """Return the degrees of freedom of the error."""
        if self.training == 0:
            return _MANY
        return min(_MANY, self.freedom * (1 + self.images / self.training) ** 2)

    def interval(self, confidence: float = 0.95) -> tuple[float, float]:
        """Return the interval of the mean by Student's t."""
        from scipy.special import stdtrit

        half = self.error and float(stdtrit(self._t, (1 + confidence) / 2)) * self.error
        return self.mean - half, self.mean + half

    @property
    def p(self) -> float:
        """Return the probability of so large a difference, either way, if there were none."""
        from scipy.special import stdtr

        if self.mean == 0 or self.error == 0:
            return float(self.mean == 0)
        return 2 * float(stdtr(self._t, -abs(self.mean) / self.error))

    def within(self, margin: float) -> bool:
        """Return whether it is at most a margin either way: two one-sided tests, 5 % each."""
        low, high = self.interval(0.9)
        return -margin <= low and high <= margin


@lru_cache(2)
def draws(n: int) -> NDArray[np.float32]:
    """Return how often each of n images is in a sample, of shape (1 + resamples, n).

    The first row has every image once; the others are drawn with replacement, the same ones in
    every call. In float32, in which sums of so few are exact.
    """
    drawn = np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), RESAMPLES)
    counts = np.concatenate([np.ones((1, n)), drawn]).astype(np.float32)
    counts.flags.writeable = False
    return counts


def over_seeds(values: NDArray[np.float64], n: int) -> Difference:
    """Return a difference over seeds from those on resampled images.

    Example:
        >>> values = np.tile([0.02, 0.03, 0.04], (2001, 1))  # the images make no difference
        >>> found = over_seeds(values, n=1000)
        >>> round(found.mean, 3), round(found.images, 9), found.freedom
        (0.03, 0.0, 2)

    Arguments:
        values: The difference on each seed, of shape (1 + resamples, seeds): the first row on the
            images themselves, each other row on images drawn anew (:func:`draws`), the same for
            all seeds.
        n: The number of images.

    Raises:
        UserError: If there is no seed or no resample.
    """
    if values.ndim != 2 or len(values) < 2 or not values.shape[1]:
        raise UserError(f"expected values of shape (1 + resamples, seeds), got {values.shape}")
    drawn, k, mean = values[1:], values.shape[1], float(values[0].mean())
    images = drawn.mean(1)
    chosen = np.random.default_rng(0).integers(k, size=drawn.shape)
    seeds = np.take_along_axis(drawn, chosen, 1).mean(1) - images
    training = float(seeds.var()) * k / (k - 1) if k > 1 else math.inf
    return Difference(mean, float(images.var()), training, max(k - 1, 1), k, n)


def pooled(differences: Sequence[Difference]) -> list[Difference]:
    """Return the differences of one method to m others with what all say of the training noise.

    The variance of a seed is the mean of all; a difference whose own is larger keeps its own. If
    all methods are equally noisy, the mean has 4 m / (m + 3) times the degrees of freedom of one:
    the m differences share the noise of the one method.
    """
    if not differences:
        return []
    m = len(differences)
    variance = sum(each.training * each.seeds for each in differences) / m
    freedom = 4 * m / (m + 3) * min(each.freedom for each in differences)
    return [
        replace(each, training=max(each.training, variance / each.seeds), freedom=freedom)
        for each in differences
    ]


def holm(p: Sequence[float]) -> list[float]:
    """Return the p-values of a family, adjusted for its size by Holm's step-down method.

    Example:
        >>> holm([0.01, 0.04, 0.03])
        [0.03, 0.06, 0.06]
    """
    values: NDArray[Any] = np.asarray(p, dtype=np.float64)
    order = np.argsort(values, kind="stable")
    steps = values[order] * (len(values) - np.arange(len(values)))
    adjusted = np.empty_like(values)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(steps))
    return [float(value) for value in adjusted]
