"""The weights that a run folder holds, by name, and mixes of its learners' weights.

=================  ==========================================================================
model              the kept global model
last               the global model of the last round
round-005          the global model after round 5; ``round-5`` is the same
learner-clean      what the merge took from a learner at the end of the training
gamma-0.4          0.4 of the learner robust and 0.6 of the learner clean, mixed when asked for
=================  ==========================================================================
"""

import math
import re
from collections.abc import Mapping, Sequence
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
    """Return the name of a learner's weights; signs that no file name has are written out."""
    return f"{LEARNER}{quote(name, safe=' ')}"


def stored(folder: Path) -> list[str]:
    """Return the names of the weights that lie in a folder: global, by round, by learner."""
    found = {path.stem for path in folder.glob("*.safetensors")}
    rounds = [(int(known[1]), name) for name in found if (known := ROUND.fullmatch(name))]
    return [
        *(name for name in GLOBAL if name in found),
        *(name for t, name in sorted(rounds) if name == round_name(t)),
        *sorted(name for name in found if name.startswith(LEARNER)),
    ]


def canonical(which: str) -> str:
    """Return the full name of weights, like round-005 of round-5 and gamma-0.4 of gamma-.40.

    Raises:
        UserError: If it is a mix that is none.
    """
    if known := ROUND.fullmatch(which):
        return round_name(int(known[1]))
    if not which.startswith(GAMMA):
        return which
    gamma = _number(which.removeprefix(GAMMA))
    if not 0 <= gamma <= 1:
        raise UserError(
            f"expected a mix of the learners like gamma-0.4, of 0 (clean) to 1 (robust), got "
            f"{which!r}"
        )
    return f"{GAMMA}{int(gamma) if gamma in (0, 1) else gamma!r}"


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def gamma_of(which: str) -> float | None:
    """Return how much of a mix the robust learner is; None of what is no mix."""
    return float(which.removeprefix(GAMMA)) if which.startswith(GAMMA) else None


def mixable(there: Sequence[str]) -> bool:
    """Tell whether the stored weights are those of exactly the learners that are mixed."""
    return [name for name in there if name.startswith(LEARNER)] == [*PAIR]


def refusal(which: str, there: Sequence[str]) -> str:
    """Return the message for weights that a folder lacks, with what it has.

    Arguments:
        which: The full name that was asked for.
        there: The names that are stored.
    """
    if which.startswith(GAMMA):
        return (
            f"{which} mixes {' and '.join(PAIR)}, which only a finished run of exactly these two "
            f"learners has; there is {', '.join(there)}"
        )
    mixes = [f"{GAMMA}0.4"] if mixable(there) else []
    return nearest(which, [*there, *mixes], "weights")


def mix(
    clean: Mapping[str, Tensor], robust: Mapping[str, Tensor], gamma: float
) -> dict[str, Tensor]:
    r"""Return :math:`(1 - \gamma) \theta_n + \gamma \theta_r`, computed in float64.

    Both ends are exact. Integers, which count, are the robust learner's; at 0 the clean one's.

    Arguments:
        clean: The state of the clean learner.
        robust: The state of the robust learner, with the same entries.
        gamma: How much the robust learner counts, in [0, 1].
    """
    if gamma in (0, 1):  # -0.0 + 0.0 would lose its sign
        return dict(robust if gamma else clean)
    return {
        name: ((1 - gamma) * clean[name].double() + gamma * value.double()).to(value.dtype)
        if value.is_floating_point()
        else value
        for name, value in robust.items()
    }
