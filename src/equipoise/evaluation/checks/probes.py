"""Small attacks whose results must fit together: C6, C9 to C14 and C19.

Gradients are masked where a weaker search finds what a stronger one misses. A plain search
(:data:`BASE`) leaves survivors among some correct examples. Each probe is then shown the
survivors of the searches that it must not beat, so that a model without any costs next to
nothing; what it finds there is counted, and judged by the interval of its proportion among all
examples of the probe.
"""

__all__ = ["BASE", "probes"]

from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import chain

import torch
from torch import Tensor, nn

from equipoise.attacks.apgd import APGDT
from equipoise.attacks.core import Attack, guest
from equipoise.attacks.pgd import PGD
from equipoise.attacks.square import Square
from equipoise.evaluation.checks.finding import Finding, finding, graded, judged
from equipoise.evaluation.checks.gradients import reachable
from equipoise.evaluation.checks.model import (
    Divided,
    attempt,
    correct_of,
    exact_of,
    preserved,
    sampled,
)
from equipoise.evaluation.checks.probe import Probe
from equipoise.threat import Threat

NAMES = (
    "one-step",
    "masking",
    "more-steps",
    "restarts",
    "logit-scale",
    "monotone",
    "unbounded",
    "noise",
    "black-box",
)

BASE = PGD(steps=20)
WIDE = PGD(steps=20, loss="margin")
ONE_STEP = PGD(steps=1, step_factor=1, start="zero")
LONG = PGD(steps=100, loss="margin", restarts=2)
LONGEST = APGDT()
UNBOUNDED = PGD(steps=40, loss="margin")

SHARE = 5  # one example in so many of the evaluation is probed
FEWEST = 8
TRIES = 250  # draws of noise, and queries of Square, for each example that is probed
MOST_TRIES = 1000  # the most for one example
DEAREST = 100  # steps times restarts of a search that may be doubled

# Shares that are tolerated; a warning needs the lower end of the interval beyond them.
RARE, UNBEATEN, LUCKY, OFTEN = 0.002, 0.005, 0.01, 0.05
FEW = 0.1  # of the examples: no more are searched again
_ADAPT = "run attacks without gradients (square) and one made for this defence"


def probes(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    threat: Threat,
    *,
    seed: int = 0,
    subset: int = 100,
    attacks: Mapping[str, Attack] | None = None,
    passes: int = 1,
) -> list[Finding]:
    """Attack a few correct examples in several small ways, and compare what is found.

    Arguments:
        model: From inputs to logits, or its search form; it is left as it was.
        x: The inputs, on the device of the model, with shape (N, ...).
        y: The labels, with shape (N,).
        threat: What attacks are allowed.
        seed: The seed of all that is random in the probes.
        subset: The most examples that are probed; at most a fifth of all.
        attacks: The attacks of the evaluation: of those that are PGD the longest is asked
            whether it has enough steps and restarts.
        passes: Over how many passes of a randomised model verdicts are averaged.

    Returns:
        A finding for each check, none of them an exception. Positions in messages are rows of
        ``x``.
    """
    if threat.eps == 0:
        return [finding(name, "skipped", "eps is 0: there is nothing to search") for name in NAMES]
    with preserved(exact_of(model), seed, x.device):
        try:
            correct = correct_of(model, x, y, passes=passes)
            rows = sampled(x, correct, min(subset, max(len(x) // SHARE, FEWEST)), seed)
        except Exception:  # before() says what is wrong with such a model
            return [finding(name, "skipped", "the model fails on the inputs") for name in NAMES]
        if not len(rows):
            return [
                finding(name, "skipped", "no example is classified correctly") for name in NAMES
            ]
        probe = Probe(model, x[rows], y[rows], rows, threat, seed, passes)
        return [*_white_box(probe, attacks or {}), *_black_box(probe)]


def _white_box(probe: Probe, attacks: Mapping[str, Attack]) -> list[Finding]:
    if not reachable(exact_of(probe.model), probe.x[:FEWEST], probe.y[:FEWEST]):
        why = "there are no gradients to search with"
        return [finding(name, "skipped", why) for name in NAMES[:-2]]
    checks: dict[str, Callable[[], Finding]] = {
        "one-step": lambda: _one_step(probe),
        "masking": lambda: _masking(probe),
        "more-steps": lambda: _more(probe, _longest(attacks), "steps"),
        "restarts": lambda: _more(probe, _longest(attacks), "restarts"),
        "logit-scale": lambda: _logit_scale(probe),
        "monotone": lambda: _monotone(probe),
        "unbounded": lambda: _unbounded(probe),
    }
    return list(chain.from_iterable(attempt(name, run) for name, run in checks.items()))


def _black_box(probe: Probe) -> list[Finding]:
    # Both are shown what every search with gradients left; neither profits from the other.
    left = ~probe.found
    found = attempt("noise", lambda: _noise(probe, left))
    return found + attempt("black-box", lambda: _square(probe, left))


def _one_step(probe: Probe) -> Finding:
    """C9: whether one step fools examples that a search of many steps does not."""
    left = ~probe.broken(BASE)
    worse = probe.fools(ONE_STEP, left, "one step")
    probe.found |= worse
    count, n = int(worse.sum()), probe.n
    status = graded(count, n, amber=LUCKY, red=OFTEN)
    message = f"one step fools {count} of {n} examples that {BASE.steps} steps do not"
    return judged(
        "one-step",
        status,
        message,
        f" ({probe.where(worse)}): steps follow misleading gradients",
        _ADAPT,
        count=count,
        n=n,
    )


def _masking(probe: Probe) -> Finding:
    """C19: whether the margin fools many that cross-entropy, equally long, does not."""
    left = ~probe.broken(BASE)
    more = left & probe.broken(WIDE)
    less = ~left & ~probe.broken(WIDE)
    count, n = int(more.sum()), probe.n
    gap = (count - int(less.sum())) / n
    status = graded(count, n, amber=OFTEN)
    message = f"PGD on the margin fools {count} of {n} examples that cross-entropy leaves"
    measured = {"count": count, "n": n, "gap": gap}
    remedy = "do not rely on attacks on cross-entropy alone: use apgd-dlr, apgd-t or cw-inf"
    return judged(
        "masking",
        status,
        message,
        f", the accuracy is {100 * gap:.0f} points lower: cross-entropy is masked",
        remedy,
        **measured,
    )


def _longest(attacks: Mapping[str, Attack]) -> PGD:
    """Return the search that is asked whether it is long enough."""
    known = [
        attack for attack in attacks.values()
        if isinstance(attack, PGD) and attack.steps * attack.restarts <= DEAREST
    ]  # fmt: skip
    return max(known, key=lambda attack: attack.steps * attack.restarts, default=WIDE)


def _more(probe: Probe, attack: PGD, what: str) -> Finding:
    """C10: whether twice as much of a search fools many more examples."""
    left = ~probe.broken(attack)
    many: int = getattr(attack, what)
    longer = replace(attack, steps=2 * many) if what == "steps" else attack
    more = probe.fools(longer, left, f"twice the {what}")
    probe.found |= more
    count, n = int(more.sum()), probe.n
    check = "more-steps" if what == "steps" else "restarts"
    message = (
        f"{2 * many} {what} in place of {many} fool {count} more of {n} examples "
        f"(PGD on {attack.loss})"
    )
    status = graded(count, n, amber=OFTEN)
    remedy = f"raise the {what} until the accuracy stays, or use attacks that adapt (autoattack)"
    return judged(
        check, status, message, ": the search has not converged", remedy, count=count, n=n
    )


def _logit_scale(probe: Probe) -> Finding:
    """C6: whether cross-entropy fools many more once logits are divided by a constant."""
    left = ~probe.broken(BASE)
    divided = Divided.to_one(probe.model, probe.x, probe.y)
    more = probe.fools(BASE, left, "base", model=divided)
    gap = divided.divisor
    probe.found |= more
    count, n = int(more.sum()), probe.n
    status = graded(count, n, amber=OFTEN, red=2 * OFTEN)
    message = f"logits divided by {gap:.3g} let cross-entropy fool {count} more of {n} examples"
    remedy = "use attacks that do not depend on the scale (apgd-dlr, apgd-t, cw-inf)"
    return judged(
        "logit-scale",
        status,
        message,
        ": their scale hides the gradient",
        remedy,
        count=count,
        n=n,
        divisor=gap,
    )


def _monotone(probe: Probe) -> Finding:
    """C11: whether a smaller eps fools examples that a larger one does not."""
    here = probe.broken(WIDE)
    half = replace(probe.threat, eps=probe.threat.eps / 2)
    small = probe.fools(WIDE, ~here, "half eps", threat=half)
    span = probe.threat.high - probe.threat.low
    double = 2 * probe.threat.eps
    wide = min(double, span) if probe.threat.norm == "linf" else double
    large = here & ~probe.fools(WIDE, here, "twice eps", threat=replace(probe.threat, eps=wide))
    probe.found |= small
    worse = small | large
    count, n = int(worse.sum()), probe.n
    status = graded(count, n, amber=LUCKY, red=OFTEN)
    message = f"{count} of {n} examples fall to a smaller eps but not to one twice as large"
    measured = {"count": count, "n": n, "half": int(small.sum()), "double": int(large.sum())}
    return judged(
        "monotone",
        status,
        message,
        f" ({probe.where(worse)}): searches get stuck",
        _ADAPT,
        **measured,
    )


def _unbounded(probe: Probe) -> Finding:
    """C12: whether a search without bounds fools everything."""
    span = probe.threat.high - probe.threat.low
    size = probe.x[0].numel()
    eps = {"linf": span, "l2": span * size**0.5, "l1": span * size}[probe.threat.norm]
    everywhere = replace(probe.threat, eps=max(eps, probe.threat.eps))
    left = ~probe.broken(WIDE)
    left &= ~probe.fools(UNBOUNDED, left, "unbounded", threat=everywhere)
    count, n = int(left.sum()), probe.n
    status = graded(count, n, amber=UNBEATEN, red=UNBEATEN)
    message = f"a search without bounds leaves {count} of {n} examples"
    return judged(
        "unbounded",
        status,
        message,
        f" ({probe.where(left)}): it does not follow the model",
        _ADAPT,
        count=count,
        n=n,
    )


def _noise(probe: Probe, left: Tensor) -> Finding:
    """C14: whether noise within the threat fools examples that searches do not."""
    draws = _tries(probe, left)
    fooled = _missed(probe, _by_noise(probe, left, draws))
    count, n = int(fooled.sum()), probe.n
    status = graded(count, n, amber=RARE, red=OFTEN)
    message = f"{draws} draws of noise fool {count} of {n} examples that gradients do not"
    measured = {"count": count, "n": n, "left": int(left.sum()), "draws": draws}
    if not bool(left.any()):
        message = "gradients fool every example, so that none is left to noise"
    return judged(
        "noise",
        status,
        message,
        f" ({probe.where(fooled)}): gradients mislead",
        _ADAPT,
        **measured,
    )


def _missed(probe: Probe, fooled: Tensor) -> Tensor:
    """Tell which of a few examples long searches with gradients do not fool either.

    A short search misses an example now and then on an honest model, too.
    """
    if int(fooled.sum()) > FEW * probe.n:
        return fooled
    if not reachable(exact_of(probe.model), probe.x[:1], probe.y[:1]):
        return fooled
    fooled = fooled & ~probe.fools(LONG, fooled, "long")
    return fooled & ~probe.fools(LONGEST, fooled, "longest")


def _tries(probe: Probe, left: Tensor) -> int:
    """Return how many tries each example gets, so that all together have a fixed price."""
    return min(MOST_TRIES, TRIES * probe.n // max(int(left.sum()), 1))


def _by_noise(probe: Probe, left: Tensor, draws: int) -> Tensor:
    """Tell whom noise fools: by turns uniform in the ball and, where it has them, at corners."""
    fooled = torch.zeros_like(left)
    rows = left.nonzero()[:, 0]
    source = probe.draws.child("noise").select(rows)
    for turn in range(0, draws, 2):
        if not len(rows):
            break
        x, y = probe.x[rows], probe.y[rows]
        noise = [source.uniform(x), (source.uniform(x) >= 0.5).to(x.dtype)][: draws - turn]
        points = torch.cat([probe.threat.start(x, part) for part in noise])
        right = correct_of(probe.model, points, y.repeat(len(noise)), passes=probe.passes)
        hit = ~right.view(len(noise), -1).all(0)
        fooled[rows[hit]] = True
        source, rows = source.select(~hit), rows[~hit]
    return fooled


def _square(probe: Probe, left: Tensor) -> Finding:
    """C13: whether a search without gradients fools examples that those with them do not."""
    queries = _tries(probe, left)
    attack = Square(queries=queries, rescale=True)
    with guest(exact_of(probe.model)):
        fooled = _missed(probe, probe.fools(attack, left, "square"))
    count, n = int(fooled.sum()), probe.n
    status = graded(count, n, amber=RARE, red=OFTEN)
    message = f"Square with {queries} queries fools {count} of {n} examples that gradients do not"
    measured = {"count": count, "n": n, "left": int(left.sum()), "queries": queries}
    if not bool(left.any()):
        message = "gradients fool every example, so that none is left to Square"
    return judged(
        "black-box",
        status,
        message,
        f" ({probe.where(fooled)}): gradients are masked",
        _ADAPT,
        **measured,
    )
