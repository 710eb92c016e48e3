"""The names of the weights of a run folder, and mixes of the weights of its learners.

=================  ==========================================================================
model              the kept global model
last               the global model of the last round
round-005          the global model after round 5; ``round-5`` is the same
learner-clean      the weights of a learner in the last merge
gamma-0.4          0.4 of the learner robust and 0.6 of the learner clean
=================  ==========================================================================
"""

import math
import re
from collections.abc import Mapping, Sequence
from functools import reduce
from operator import add
from pathlib import Path
from urllib.parse import quote

from torch import Tensor

from equipoise.errors import UserError, nearest

GLOBAL = ("model", "last")
ROUND = re.compile(r"round-(\d+)")
LEARNER = "learner-"
GAMMA = "gamma-"
PAIR = (f"{LEARNER}clean", f"{LEARNER}robust")


def round_name(t: int) -> str:
    """Return the name of the global model after round ``t``."""
    return f"round-{t:03d}"


def learner_name(name: str) -> str:
    """Return the name of a learner's weights, with characters that file names allow."""
    return f"{LEARNER}{quote(name, safe=' ')}"


def stored(folder: Path) -> list[str]:
    """Return the names of the weights in a folder: global, by round, by learner."""
    names = {path.stem for path in folder.glob("*.safetensors")}
    rounds = [(int(match[1]), name) for name in names if (match := ROUND.fullmatch(name))]
    return [
        *(name for name in GLOBAL if name in names),
        *(name for t, name in sorted(rounds) if name == round_name(t)),
        *sorted(name for name in names if name.startswith(LEARNER)),
    ]


def canonical(which: str) -> str:
    """Return the full name of weights, like round-005 of round-5 and gamma-0.4 of gamma-.40.

    Raises:
        UserError: If gamma is not a number from 0 to 1.
    """
    if match := ROUND.fullmatch(which):
        return round_name(int(match[1]))
    if not which.startswith(GAMMA):
        return which
    try:
        gamma = float(which.removeprefix(GAMMA))
    except ValueError:
        gamma = math.nan
    if not 0 <= gamma <= 1:
        raise UserError(
            f"expected a mix of the learners like gamma-0.4, of 0 (clean) to 1 (robust), got "
            f"{which!r}"
        )
    return f"{GAMMA}{int(gamma) if gamma in (0, 1) else gamma!r}"


def gamma_of(which: str) -> float | None:
    """Return the share of the robust learner in a mix; None if it is no mix."""
    return float(which.removeprefix(GAMMA)) if which.startswith(GAMMA) else None


def mixable(names: Sequence[str]) -> bool:
    """Return whether the two learners of a mix are among the stored weights."""
    return {*PAIR} <= {*names}


def refusal(which: str, names: Sequence[str]) -> str:
    """Return the message for weights that are not among the stored ones."""
    if which.startswith(GAMMA):
        return (
            f"{which} is a mix of {' and '.join(PAIR)}, which only a finished run of these "
            f"learners has; the run has {', '.join(names)}"
        )
    mixes = [f"{GAMMA}0.4"] if mixable(names) else []
    return nearest(which, [*names, *mixes], "weights")


def mix(
    clean: Mapping[str, Tensor], robust: Mapping[str, Tensor], gamma: float
) -> dict[str, Tensor]:
    r"""Return :math:`(1 - \gamma) \theta_n + \gamma \theta_r`, computed in float64.

    Both ends are exact. Integers are those of the robust learner, at gamma 0 of the clean one.

    Arguments:
        clean: The state of the clean learner.
        robust: The state of the robust learner, with the same entries.
        gamma: The share of the robust learner, in [0, 1].
    """
    return weighted([clean, robust], [1 - gamma, gamma])


def weighted(
    states: Sequence[Mapping[str, Tensor]], weights: Sequence[float]
) -> dict[str, Tensor]:
    r"""Return :math:`\sum_i w_i \theta_i`, summed in this order in float64.

    A state with weight 0 has no part in it, so that a state alone is exact. Integers are those of
    the last state that has a part.

    Arguments:
        states: The states, with the same entries.
        weights: Their weights, with the sum 1.
    """
    used = [(state, weight) for state, weight in zip(states, weights, strict=True) if weight]
    last, _ = used[-1]
    if len(used) == 1:  # -0.0 + 0.0 would lose its sign
        return dict(last)
    return {
        name: reduce(add, (weight * state[name].double() for state, weight in used)).to(
            value.dtype
        )
        if value.is_floating_point()
        else value
        for name, value in last.items()
    }
