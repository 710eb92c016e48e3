"""Makes findings: a status, one line with the observation, and one line with the remedy.

A count is graded by the exact confidence interval of its proportion: one odd example of a hundred
is no alarm, ten of a thousand are.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor

from equipoise.errors import one_line
from equipoise.measures.statistics import interval
from equipoise.store.finding import Finding, Status

# The name of each check, and its number in the list of automatic checks: before the attacks, on
# a few examples, after the attacks, and of an attack itself.
CHECKS: dict[str, str] = {
    "eps-zero": "C1",
    "eval-mode": "C2",
    "repeatable": "C2",
    "logits": "C3",
    "range": "C4",
    "class-order": "C27",
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
    "screens": "C26",
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
    """Return the finding of a check; with the status ok without remedy and meaning.

    Arguments:
        check: The name of the check.
        status: Its status.
        message: The observation.
        remedy: What to do about it.
        meaning: What the observation means; it continues the message.
        measured: The numbers; those that are not finite are left out.
    """
    return Finding(
        check=check,
        code=CHECKS[check],
        status=status,
        message=" ".join((message if status == "ok" else message + meaning).split()),
        remedy="" if status == "ok" else " ".join(remedy.split()),
        measured={name: float(v) for name, v in measured.items() if math.isfinite(v)},
    )


def skipped(checks: Iterable[str], why: str) -> list[Finding]:
    """Return findings of checks that were not run."""
    return [finding(check, "skipped", why) for check in checks]


def attempts(checks: Mapping[str, Callable[[], Finding | Sequence[Finding]]]) -> list[Finding]:
    """Run checks by their names; an error in a check becomes its finding."""
    findings: list[Finding] = []
    for check, run in checks.items():
        try:
            result = run()
        except Exception as error:  # a user's model may raise anything
            message = f"the check broke off: {one_line(error)}"
            remedy = "run the model on these inputs by hand to see the whole error"
            result = finding(check, "warning", message, remedy)
        findings += [result] if isinstance(result, Finding) else result
    return findings


def graded(count: int, n: int, *, amber: float, red: float = 1.0) -> Status:
    """Return the status of a count that should be zero, from the interval of its proportion.

    Arguments:
        count: The number of examples that indicate a fault.
        n: The number of examples that were checked.
        amber: The tolerated proportion; a lower bound above it is a warning.
        red: A lower bound above this proportion is a failure.
    """
    least = interval(count, n)[0]
    if least > red:
        return "failed"
    return "warning" if least > amber else "ok"


def sign_test(wins: int, losses: int) -> float:
    """Return the probability of so many wins if wins and losses are equally likely."""
    n = wins + losses
    return float(sum(math.comb(n, k) for k in range(wins, n + 1)) / 2**n)


def plural(n: int, noun: str = "example") -> str:
    """Return a number with its noun."""
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def listed(positions: Tensor | Sequence[object], most: int = 5) -> str:
    """Return the first positions or names, separated by commas."""
    values = positions.tolist() if isinstance(positions, torch.Tensor) else list(positions)
    shown = ", ".join(str(value) for value in values[:most])
    return f"{shown}, ..." if len(values) > most else shown
