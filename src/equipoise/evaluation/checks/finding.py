"""What a check says: a status, one line of what was seen, one line of what to do.

A count is judged by the exact interval of its proportion, so that one odd example among a hundred
raises no alarm, and the same share of a thousand does.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from equipoise.measures.statistics import interval
from equipoise.store.finding import Finding, Status

# The name of each check, and its number in the list of automatic checks. Before the attacks, on
# a few examples, after the attacks, and of an attack itself.
CHECKS: dict[str, str] = {
    "eps-zero": "C1",
    "eval-mode": "C2",
    "repeatable": "C2",
    "logits": "C3",
    "range": "C4",
    "outputs": "C3",
    "search-form": "C25",
    "gradients": "C6",
    "saturation": "C6",
    "smooth": "C7",
    "dynamic": "C8",
    "few-classes": "C23",
    "randomised": "C24",
    "logit-scale": "C6",
    "one-step": "C9",
    "more-steps": "C10",
    "restarts": "C10",
    "monotone": "C11",
    "unbounded": "C12",
    "black-box": "C13",
    "noise": "C14",
    "masking": "C19",
    "constraint": "C5",
    "black-box-full": "C13",
    "transfer": "C15",
    "lost": "C16",
    "masking-full": "C19",
    "control": "C20",
    "attack-eps-zero": "C1",
    "attack-constraint": "C5",
    "attack-reach": "C5",
    "attack-ascent": "C9",
    "attack-steps": "C10",
    "attack-blind": "C14",
    "attack-lost": "C16",
}


def finding(
    check: str,
    status: Status,
    message: str,
    remedy: str = "",
    meaning: str = "",
    /,
    **measured: float,
) -> Finding:
    """Return the finding of a check; remedy and meaning are dropped where all is well.

    Arguments:
        check: The name of the check.
        status: Its status.
        message: What was seen.
        remedy: What to do about it.
        meaning: What it means; it continues the sentence.
        measured: The numbers; what is not finite is left out.
    """
    kept = {name: float(value) for name, value in measured.items() if math.isfinite(value)}
    return Finding(
        check=check,
        code=CHECKS[check],
        status=status,
        message=" ".join((message if status == "ok" else message + meaning).split()),
        remedy="" if status == "ok" else " ".join(remedy.split()),
        measured=kept,
    )


def graded(count: int, n: int, *, amber: float, red: float = 1.0) -> Status:
    """Return the status of a count that should be zero, from the interval of its proportion.

    Arguments:
        count: How many examples speak against the model or the attack.
        n: How many were looked at.
        amber: The proportion that is tolerated; beyond it, with confidence, is a warning.
        red: The same for a failure.
    """
    least = interval(count, n)[0]
    if least > red:
        return "failed"
    return "warning" if least > amber else "ok"


def plural(n: int, noun: str = "example") -> str:
    """Return a number with its noun."""
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def listed(positions: Tensor | Sequence[object], most: int = 5) -> str:
    """Return positions or names in words, at most a few of them."""
    values = positions.tolist() if isinstance(positions, torch.Tensor) else list(positions)
    shown = ", ".join(str(value) for value in values[:most])
    return f"{shown}, ..." if len(values) > most else shown
