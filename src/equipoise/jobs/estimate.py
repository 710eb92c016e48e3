"""How long a job will take: estimated from a few timed passes of the model before it starts."""

import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

from torch import Tensor, nn

from equipoise.attacks.core import Attack, cost
from equipoise.attacks.ensemble import Audited, Ensemble
from equipoise.attacks.pgd import PGD
from equipoise.evaluation.checks.model import preserved
from equipoise.evaluation.judge import correct_of
from equipoise.execution.form import Fast, fast, input_gradient
from equipoise.execution.policy import Execution
from equipoise.losses import margin
from equipoise.threat import Norm, Threat

Clock = Callable[[], float]

LONG = 60.0  # seconds; an estimate below is not shown
FEW = 8  # images of the first timed pass, and the fewest of the trial attack
TRIAL = PGD(steps=10, loss="margin", keep="first")
TRIAL_SECONDS = 5.0  # the longest trial; where it would take longer there is none
UNSURE = 0.15  # how far the share of robust images in the trial may be from that of all
UNKNOWN = (0.2, 1.0)  # that share where there was no trial
PARTS = 10  # a batch should take at most one in so many parts of the time that is given
LEAST = 16  # images of a batch


@dataclass(frozen=True)
class Pace:
    """How fast a model is searched on this machine.

    Arguments:
        seconds: The time of a gradient evaluation (one pass forward and backward) of one image.
        robust: The least and the largest share of images that are expected to stay robust: these
            are searched to the end, and the others leave early.
    """

    seconds: float
    robust: tuple[float, float] = UNKNOWN

    def needed(self, attacks: Iterable[Attack], norm: Norm, n: int) -> tuple[float, float]:
        """Return the least and the largest time that attacks on ``n`` images may take."""
        most = self.seconds * whole(attacks, norm, n)
        return self.robust[0] * most, self.robust[1] * most

    def batch(self, attacks: Iterable[Attack], norm: Norm, size: int, limit: float) -> int:
        """Return the size of a batch, at most ``size``, so that a job can stop near its limit."""
        longest = self.seconds * max((dearest(attack, norm) for attack in attacks), default=0.0)
        return max(min(size, LEAST), min(size, int(limit / PARTS / max(longest, 1e-12))))


def whole(attacks: Iterable[Attack], norm: Norm, n: int) -> float:
    """Return a rough number of gradient evaluations of attacks on images that all stay robust."""
    return n * sum(_whole(attack, norm, n) for attack in attacks)


def _whole(attack: Attack, norm: Norm, n: int) -> float:
    """Return the evaluations for one of n images; of an ensemble those of all its stages."""
    if isinstance(attack, Audited):
        # Without a miss an audit of this share shows the gap to be at most ``within``.
        share = min(attack.budget, 1 - float(0.05 ** (1 / max(attack.within * n, 1))))
        return _stages(attack.stages(norm), norm) + share * _stages(attack.audit(norm), norm)
    if isinstance(attack, Ensemble):
        return _stages(attack.stages(norm), norm)
    return cost(attack, norm)


def _stages(stages: Mapping[str, Attack], norm: Norm) -> float:
    return sum(cost(stage, norm) for stage in stages.values())


def dearest(attack: Attack, norm: Norm) -> float:
    """Return the evaluations for an image of an attack, or of the longest stage of an ensemble."""
    if isinstance(attack, Ensemble):
        every = attack.audit(norm) if isinstance(attack, Audited) else attack.stages(norm)
        return max(cost(stage, norm) for stage in every.values())
    return cost(attack, norm)


def pace(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    threat: Threat,
    execution: Execution,
    evaluations: float,
    *,
    clock: Clock = time.perf_counter,
) -> Pace | None:
    """Time a model by a pass on a few images, and if need be by a short attack on a batch.

    A pass on a few images is slower by image than one on a batch: where even so the job is short,
    there is no attack. Nothing but the estimate follows from it. The model and the global random
    state are left as they were.

    Arguments:
        model: From inputs to logits.
        x: A batch of inputs, on its device, with shape (N, ...).
        y: Their labels, with shape (N,).
        threat: What the attacks may change.
        execution: The form of the search; it is not compiled here, which takes too long.
        evaluations: The gradient evaluations of the whole job at most.
        clock: Returns the seconds since some moment.

    Returns:
        The pace; None if the model fails or has no gradient, which the evaluation itself reports.
    """
    try:
        with preserved(model, 0, x.device):
            form = fast(model, x, replace(execution, compile=False))
            few = min(FEW, len(x))
            _pass(form, x[:few], y[:few])  # the first one is slower
            start = clock()
            _pass(form, x[:few], y[:few])
            first = Pace((clock() - start) / few)
            some = min(int(TRIAL_SECONDS / max(TRIAL.steps * first.seconds, 1e-9)), len(x))
            if some < FEW or threat.eps == 0 or evaluations * first.seconds < LONG:
                return first
            return _trial(form, x[:some], y[:some], threat, clock)
    except Exception:  # a user's model may raise anything
        return None


def _pass(form: Fast, x: Tensor, y: Tensor) -> None:
    logits, _, _ = input_gradient(form, x, lambda z: margin(z, y))
    logits.sum().item()  # waits for the device


def _trial(form: Fast, x: Tensor, y: Tensor, threat: Threat, clock: Clock) -> Pace:
    form.spent()
    start = clock()
    x_adv = TRIAL(form, x, y, threat)
    x_adv.sum().item()
    seconds = clock() - start
    forwards, backwards = form.spent()
    evaluations = max((forwards + 2 * backwards) / 3, 1.0)  # backward is twice as long
    robust = float(correct_of(form.exact, x_adv, y).double().mean())
    return Pace(seconds / evaluations, (max(robust - UNSURE, 0.05), min(robust + UNSURE, 1.0)))


def about(least: float, most: float) -> str:
    """Return a range of times in words, like ``about 4 to 12 min``; empty if it is short.

    Example:
        >>> about(200, 700), about(700, 720), about(1, 50)
        ('about 3 to 12 min', 'about 12 min', '')
    """
    if most < LONG:
        return ""
    (low, of_low), (high, of_high) = _rounded(max(least, LONG / 2)), _rounded(most)
    if (low, of_low) == (high, of_high):
        return f"about {high} {of_high}"
    between = f"{low} to" if of_low == of_high else f"{low} {of_low} to"
    return f"about {between} {high} {of_high}"


def _rounded(seconds: float) -> tuple[str, str]:
    minutes = seconds / 60
    if minutes < 1:
        return f"{10 * math.ceil(seconds / 10)}", "s"
    if minutes < 90:
        return f"{round(minutes) if minutes < 20 else 5 * round(minutes / 5)}", "min"
    hours = minutes / 60
    return (f"{hours:.2g}" if hours < 10 else f"{hours:.0f}"), "h"
