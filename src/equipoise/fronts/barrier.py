r"""The barrier between two ends: whether they lie in one basin.

With :math:`A(\gamma)` the accuracy of :math:`(1 - \gamma) \theta_n + \gamma \theta_r`, it is the
largest drop below the straight line between the ends,

.. math:: B = \max_{0 < \gamma < 1} \; (1 - \gamma) A(0) + \gamma A(1) - A(\gamma),

of clean accuracy and of robust accuracy. Frankle et al. take the largest error on the line less
the mean error of the two ends, which is the same where the ends are equally good; ends that are
meant to differ, as here, need the straight line.

References:
    | Linear Mode Connectivity and the Lottery Ticket Hypothesis (Frankle et al., 2020)
    | https://arxiv.org/abs/1912.05671
    | Robust Fine-tuning of Zero-shot Models, WiSE-FT (Wortsman et al., 2022)
    | https://arxiv.org/abs/2109.01903
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Verdicts = NDArray[np.bool_]

ALPHA = 0.05


@dataclass(frozen=True)
class Barrier:
    """The deepest place between two ends, in one of the accuracies.

    Arguments:
        gamma: Where it is.
        drop: By how much the accuracy there is below the straight line between the ends; below
            0 it is above the line.
        low: The lower end of the drop's 95 % interval, for these images.
        high: The upper end.
    """

    gamma: float
    drop: float
    low: float
    high: float

    @property
    def seen(self) -> bool:
        """Whether these images tell the drop from none."""
        return self.low > 0


def barrier(verdicts: Mapping[float, Verdicts]) -> Barrier | None:
    r"""Return the largest drop below the straight line between the ends.

    The drop at :math:`\gamma` is a mean over images of
    :math:`(1 - \gamma) v_0 + \gamma v_1 - v_\gamma` with :math:`v` the verdicts, 0 or 1; its
    interval is the normal one of that mean, so that what images have in common cancels. For the
    deepest of m places it is taken at the level 0.05 / m, since it is the deepest of m.

    Arguments:
        verdicts: Which images are classified correctly, by gamma, each with shape (n,).

    Returns:
        The barrier; None where an end or all that is between was not measured.
    """
    from scipy.special import ndtri

    if not {0.0, 1.0} <= set(verdicts):
        return None
    first, last = (verdicts[end].astype(np.float64) for end in (0.0, 1.0))
    between = {gamma: verdict for gamma, verdict in verdicts.items() if 0 < gamma < 1}
    z = -float(ndtri(ALPHA / 2 / max(len(between), 1)))
    found = []
    for gamma, verdict in between.items():
        below = (1 - gamma) * first + gamma * last - verdict
        drop, half = float(below.mean()), z * float(below.std()) / math.sqrt(len(below))
        found.append(Barrier(gamma, drop, drop - half, drop + half))
    return max(found, key=lambda one: one.drop, default=None)


def in_words(clean: Barrier | None, robust: Barrier | None) -> str:
    """Return in a sentence whether a barrier stands between the ends, and how high it is."""
    if clean is None or robust is None:
        return "The barrier between the ends is not known: nothing was measured between them."
    seen = [
        f"{100 * b.drop:.1f} points of {kind} accuracy at gamma = {b.gamma:g} (95 % interval "
        f"{100 * b.low:.1f} to {100 * b.high:.1f})"
        for kind, b in (("clean", clean), ("robust", robust))
        if b.seen
    ]
    if seen:
        return (
            f"A barrier stands between the ends: {' and '.join(seen)} below the straight line "
            "between them."
        )
    most = max(0.0, clean.drop, robust.drop)
    return (
        "No barrier between the ends: nowhere more than "
        f"{100 * most:.1f} points below the straight line between them, in clean or robust "
        "accuracy, and no more than these images leave open."
    )
