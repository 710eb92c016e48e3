r"""The barrier between two ends: it shows whether they lie in one basin.

With :math:`A(\gamma)` the accuracy of :math:`(1 - \gamma) \theta_n + \gamma \theta_r`, it is the
largest drop below the straight line between the ends,

.. math:: B = \max_{0 < \gamma < 1} \; (1 - \gamma) A(0) + \gamma A(1) - A(\gamma),

of clean accuracy and of robust accuracy. Frankle et al. subtract the mean error of the two ends
from the largest error on the line, which is the same if the ends are equally accurate; here they
are meant to differ.

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
    """The largest drop between two ends, in clean or in robust accuracy.

    Arguments:
        gamma: Where it is.
        drop: Accuracy on the straight line between the ends minus accuracy of the model.
        low: The lower end of the drop's 95 % interval.
        high: The upper end.
    """

    gamma: float
    drop: float
    low: float
    high: float

    @property
    def seen(self) -> bool:
        """Whether the drop is significant: its interval lies above 0."""
        return self.low > 0


def barrier(verdicts: Mapping[float, Verdicts]) -> Barrier | None:
    r"""Return the largest drop below the straight line between the ends.

    The drop at :math:`\gamma` is a mean over images of
    :math:`(1 - \gamma) v_0 + \gamma v_1 - v_\gamma` with :math:`v` the verdicts, 0 or 1; its
    interval is the normal one of that mean. As the largest of m drops it has the level 0.05 / m.

    Arguments:
        verdicts: Which images are classified correctly, by gamma, each with shape (n,).

    Returns:
        The barrier; None if an end, or every model between them, was not measured.
    """
    from scipy.special import ndtri

    if not {0.0, 1.0} <= set(verdicts):
        return None
    first, last = (verdicts[end].astype(np.float64) for end in (0.0, 1.0))
    between = {gamma: verdict for gamma, verdict in verdicts.items() if 0 < gamma < 1}
    z = -float(ndtri(ALPHA / 2 / max(len(between), 1)))
    drops = []
    for gamma, verdict in between.items():
        below = (1 - gamma) * first + gamma * last - verdict
        drop, half = float(below.mean()), z * float(below.std()) / math.sqrt(len(below))
        drops.append(Barrier(gamma, drop, drop - half, drop + half))
    return max(drops, key=lambda barrier: barrier.drop, default=None)


def in_words(clean: Barrier | None, robust: Barrier | None) -> str:
    """Return a sentence: whether there is a barrier between the ends, and how large it is."""
    if clean is None or robust is None:
        return "There is no estimate of the barrier: no model between the ends was measured."
    seen = [
        f"{100 * b.drop:.1f} points of {kind} accuracy at gamma = {b.gamma:g} (95 % interval "
        f"{100 * b.low:.1f} to {100 * b.high:.1f})"
        for kind, b in (("clean", clean), ("robust", robust))
        if b.seen
    ]
    if seen:
        return (
            f"There is a barrier between the ends: {' and '.join(seen)} below the straight line "
            "between them."
        )
    largest = 100 * max(0.0, clean.drop, robust.drop)
    return (
        "No barrier was detected between the ends: the largest drop of clean or robust accuracy "
        f"below the straight line between them is {largest:.1f} points, which is not significant."
    )
