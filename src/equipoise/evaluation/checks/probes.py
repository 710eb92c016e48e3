"""Small attacks whose results must fit together: C6, C9 to C14 and C19.

Gradients are masked where a weaker search finds what a stronger one misses. A plain search
(:data:`BASE`) leaves survivors among some correct examples. Each probe is then shown the
survivors of the searches that it must not beat, so that a model without any costs next to
nothing; what it finds there is counted, and judged by the interval of its proportion among all
examples of the probe.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import chain

import torch
from torch import Tensor, nn

from equipoise.attacks.apgd import APGDT
from equipoise.attacks.core import Attack, guest
from equipoise.attacks.pgd import PGD, for_verdicts
from equipoise.attacks.square import Square
from equipoise.draws import KeyedDraws
from equipoise.evaluation.checks.finding import finding, graded, listed
from equipoise.evaluation.checks.gradients import reachable
from equipoise.evaluation.checks.model import (
    Divided,
    attempt,
    correct_of,
    exact_of,
    preserved,
    sampled,
)
from equipoise.evaluation.judge import Judge
from equipoise.store.finding import Finding
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


class _Probed:
    """Some correct examples, and which of them attacks with gradients have fooled so far."""

    def __init__(
        self, model: nn.Module, x: Tensor, y: Tensor, rows: Tensor, threat: Threat, seed: int,
        passes: int,
    ) -> None:  # fmt: skip
        self.model, self.x, self.y, self.rows, self.threat = model, x, y, rows, threat
        self.seed, self.passes = seed, passes
        self.draws = KeyedDraws.of(x, seed).child("probes")
        self.found = torch.zeros_like(y, dtype=torch.bool)
        self.known: dict[str, Tensor] = {}
        self.repeats = Judge(exact_of(model), passes=passes).repeats(x)

    @property
    def n(self) -> int:
        """Return how many examples are probed."""
        return len(self.y)

    def fools(
        self, attack: Attack, among: Tensor, name: str, *, threat: Threat | None = None,
        model: nn.Module | None = None,
    ) -> Tensor:  # fmt: skip
        """Return which of some examples an attack fools, with shape (N,).

        Arguments:
            attack: The attack.
            among: Which examples it is shown, with shape (N,).
            name: The name of its random numbers.
            threat: What it is allowed, if something else.
            model: The model it searches, if another; the verdict is that of the model itself.
        """
        rows = among.nonzero()[:, 0]
        fooled = torch.zeros_like(among)
        if len(rows):
            x, y, allowed = self.x[rows], self.y[rows], threat or self.threat
            draws = self.draws.child(name).select(rows)
            attack = for_verdicts(attack) if self.repeats else attack
            x_adv = attack(model or self.model, x, y, allowed, draws=draws)
            inside = allowed.contains(x, x_adv)
            fooled[rows] = inside & ~correct_of(self.model, x_adv, y, passes=self.passes)
        return fooled

    def broken(self, attack: PGD) -> Tensor:
        """Return which examples a plain search fools; each search is made once."""
        key = repr(attack)
        if key not in self.known:
            self.known[key] = self.fools(attack, torch.ones_like(self.found), "base")
            self.found |= self.known[key]
        return self.known[key]

    def where(self, flags: Tensor) -> str:
        """Return in words which rows of the caller's inputs some examples are."""
        return f"rows {listed(self.rows[flags])}" if bool(flags.any()) else "none"

    def finding(
        self,
        check: str,
        flags: Tensor,
        message: str,
        meaning: str,
        remedy: str = _ADAPT,
        *,
        amber: float,
        red: float = 1.0,
        **measured: float,
    ) -> Finding:
        """Return the finding on a number of examples that should be zero.

        Arguments:
            check: The name of the check.
            flags: The examples that speak against model or attack, with shape (N,).
            message: What was seen; ``{count}`` and ``{n}`` stand for their number and that of all.
            meaning: What it means where it is not well; ``{where}`` stands for their rows.
            remedy: What to do then.
            amber: As for :func:`graded`, as is the next.
            red: The share of a failure.
            measured: Further numbers.
        """
        count, n = int(flags.sum()), self.n
        status = graded(count, n, amber=amber, red=red)
        seen, meaning = message.format(count=count, n=n), meaning.format(where=self.where(flags))
        return finding(check, status, seen, remedy, meaning, count=count, n=n, **measured)


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
        probe = _Probed(model, x[rows], y[rows], rows, threat, seed, passes)
        return [*_white_box(probe, attacks or {}), *_black_box(probe)]


def _white_box(probe: _Probed, attacks: Mapping[str, Attack]) -> list[Finding]:
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


def _black_box(probe: _Probed) -> list[Finding]:
    # Both are shown what every search with gradients left; neither profits from the other.
    left = ~probe.found
    found = attempt("noise", lambda: _noise(probe, left))
    return found + attempt("black-box", lambda: _square(probe, left))


def _one_step(probe: _Probed) -> Finding:
    """C9: whether one step fools examples that a search of many steps does not."""
    worse = probe.fools(ONE_STEP, ~probe.broken(BASE), "one step")
    probe.found |= worse
    message = f"one step fools {{count}} of {{n}} examples that {BASE.steps} steps do not"
    meaning = " ({where}): steps follow misleading gradients"
    return probe.finding("one-step", worse, message, meaning, amber=LUCKY, red=OFTEN)


def _masking(probe: _Probed) -> Finding:
    """C19: whether the margin fools many that cross-entropy, equally long, does not."""
    left, wide = ~probe.broken(BASE), probe.broken(WIDE)
    more = left & wide
    gap = (int(more.sum()) - int((~left & ~wide).sum())) / probe.n
    return probe.finding(
        "masking",
        more,
        "PGD on the margin fools {count} of {n} examples that cross-entropy leaves",
        f", the accuracy is {100 * gap:.0f} points lower: cross-entropy is masked",
        "do not rely on attacks on cross-entropy alone: use apgd-dlr, apgd-t or cw-inf",
        amber=OFTEN,
        gap=gap,
    )


def _longest(attacks: Mapping[str, Attack]) -> PGD:
    """Return the search that is asked whether it is long enough."""
    known = [
        attack for attack in attacks.values()
        if isinstance(attack, PGD) and attack.steps * attack.restarts <= DEAREST
    ]  # fmt: skip
    return max(known, key=lambda attack: attack.steps * attack.restarts, default=WIDE)


def _more(probe: _Probed, attack: PGD, what: str) -> Finding:
    """C10: whether twice as much of a search fools many more examples."""
    left = ~probe.broken(attack)
    many: int = getattr(attack, what)
    longer = replace(attack, steps=2 * many) if what == "steps" else attack
    more = probe.fools(longer, left, f"twice the {what}")
    probe.found |= more
    return probe.finding(
        "more-steps" if what == "steps" else "restarts",
        more,
        f"{2 * many} {what} in place of {many} fool {{count}} more of {{n}} examples "
        f"(PGD on {attack.loss})",
        ": the search has not converged",
        f"raise the {what} until the accuracy stays, or use attacks that adapt (autoattack)",
        amber=OFTEN,
    )


def _logit_scale(probe: _Probed) -> Finding:
    """C6: whether cross-entropy fools many more once logits are divided by a constant."""
    divided = Divided.to_one(probe.model, probe.x, probe.y)
    more = probe.fools(BASE, ~probe.broken(BASE), "base", model=divided)
    probe.found |= more
    return probe.finding(
        "logit-scale",
        more,
        f"logits divided by {divided.divisor:.3g} let cross-entropy fool {{count}} more of {{n}} "
        "examples",
        ": their scale hides the gradient",
        "use attacks that do not depend on the scale (apgd-dlr, apgd-t, cw-inf)",
        amber=OFTEN,
        red=2 * OFTEN,
        divisor=divided.divisor,
    )


def _monotone(probe: _Probed) -> Finding:
    """C11: whether a smaller eps fools examples that a larger one does not."""
    here, threat = probe.broken(WIDE), probe.threat
    small = probe.fools(WIDE, ~here, "half eps", threat=replace(threat, eps=threat.eps / 2))
    double = 2 * threat.eps
    wide = min(double, threat.high - threat.low) if threat.norm == "linf" else double
    large = here & ~probe.fools(WIDE, here, "twice eps", threat=replace(threat, eps=wide))
    probe.found |= small
    return probe.finding(
        "monotone",
        small | large,
        "{count} of {n} examples fall to a smaller eps but not to one twice as large",
        " ({where}): searches get stuck",
        amber=LUCKY,
        red=OFTEN,
        half=int(small.sum()),
        double=int(large.sum()),
    )


def _unbounded(probe: _Probed) -> Finding:
    """C12: whether a search without bounds fools everything."""
    threat, size = probe.threat, probe.x[0].numel()
    span = threat.high - threat.low
    eps = {"linf": span, "l2": span * size**0.5, "l1": span * size}[threat.norm]
    everywhere = replace(threat, eps=max(eps, threat.eps))
    left = ~probe.broken(WIDE)
    left &= ~probe.fools(UNBOUNDED, left, "unbounded", threat=everywhere)
    message = "a search without bounds leaves {count} of {n} examples"
    meaning = " ({where}): it does not follow the model"
    return probe.finding("unbounded", left, message, meaning, amber=UNBEATEN, red=UNBEATEN)


def _noise(probe: _Probed, left: Tensor) -> Finding:
    """C14: whether noise within the threat fools examples that searches do not."""
    draws = _tries(probe, left)
    fooled = _missed(probe, _by_noise(probe, left, draws))
    message = f"{draws} draws of noise fool {{count}} of {{n}} examples that gradients do not"
    if not bool(left.any()):
        message = "gradients fool every example, so that none is left to noise"
    return probe.finding(
        "noise",
        fooled,
        message,
        " ({where}): gradients mislead",
        amber=RARE,
        red=OFTEN,
        left=int(left.sum()),
        draws=draws,
    )


def _missed(probe: _Probed, fooled: Tensor) -> Tensor:
    """Tell which of a few examples long searches with gradients do not fool either.

    A short search misses an example now and then on an honest model, too.
    """
    if int(fooled.sum()) > FEW * probe.n:
        return fooled
    if not reachable(exact_of(probe.model), probe.x[:1], probe.y[:1]):
        return fooled
    fooled = fooled & ~probe.fools(LONG, fooled, "long")
    return fooled & ~probe.fools(LONGEST, fooled, "longest")


def _tries(probe: _Probed, left: Tensor) -> int:
    """Return how many tries each example gets, so that all together have a fixed price."""
    return min(MOST_TRIES, TRIES * probe.n // max(int(left.sum()), 1))


def _by_noise(probe: _Probed, left: Tensor, draws: int) -> Tensor:
    """Return which examples noise fools: by turns uniform in the ball and at its corners."""
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


def _square(probe: _Probed, left: Tensor) -> Finding:
    """C13: whether a search without gradients fools examples that those with them do not."""
    queries = _tries(probe, left)
    attack = Square(queries=queries, rescale=True)
    with guest(exact_of(probe.model)):
        fooled = _missed(probe, probe.fools(attack, left, "square"))
    message = (
        f"Square with {queries} queries fools {{count}} of {{n}} examples that gradients do not"
    )
    if not bool(left.any()):
        message = "gradients fool every example, so that none is left to Square"
    return probe.finding(
        "black-box",
        fooled,
        message,
        " ({where}): gradients are masked",
        amber=RARE,
        red=OFTEN,
        left=int(left.sum()),
        queries=queries,
    )
