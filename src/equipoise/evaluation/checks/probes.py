"""Small attacks whose results must agree: C6, C9 to C14 and C19.

Gradients are masked where a weaker search fools examples that a stronger one does not. A plain
search (:data:`BASE`) attacks some correct examples. Each probe then attacks the examples that are
still robust under the searches that it must not beat, so that probes of a sound model cost next to
nothing. The examples that a probe fools are graded by the interval of their proportion among all
examples of the probe.
"""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from equipoise.attacks.apgd import APGDT
from equipoise.attacks.core import Attack
from equipoise.attacks.pgd import PGD, for_verdicts
from equipoise.attacks.square import Square
from equipoise.draws import KeyedDraws
from equipoise.evaluation.checks.finding import attempts, finding, graded, listed, skipped
from equipoise.evaluation.checks.gradients import reachable
from equipoise.evaluation.checks.model import Divided, preserved, sampled
from equipoise.evaluation.judge import Judge, correct_of, exact_of
from equipoise.execution.form import guest
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

SHARE = 5  # one of so many examples of the evaluation is probed
FEWEST = 8  # examples that are probed at least
TRIES = 250  # draws of noise, and queries of Square, for each example that is probed
MOST_TRIES = 1000  # the maximum for one example
BATCH = 250  # points with noise in one pass
DEAREST = 100  # steps times restarts of the longest search that is doubled

# Tolerated shares; a lower end of the interval above one of them is a warning.
RARE, UNBEATEN, LUCKY, OFTEN = 0.002, 0.005, 0.01, 0.05
FEW = 0.1  # of the examples: more are not attacked again


class _Probed:
    """Some correct examples, and which of them attacks with gradients have fooled so far."""

    def __init__(
        self, model: nn.Module, x: Tensor, y: Tensor, rows: Tensor, threat: Threat, seed: int,
        passes: int,
    ) -> None:  # fmt: skip
        self.model, self.x, self.y, self.rows, self.threat = model, x, y, rows, threat
        self.passes = passes
        self.draws = KeyedDraws.of(x, seed).child("probes")
        self.fooled = torch.zeros_like(y, dtype=torch.bool)
        self.searches: dict[str, Tensor] = {}
        self.repeats = Judge(exact_of(model), passes=passes).repeats(x)

    def fools(
        self, attack: Attack, among: Tensor, name: str, *, threat: Threat | None = None,
        model: nn.Module | None = None,
    ) -> Tensor:  # fmt: skip
        """Return which of some examples an attack fools, with shape (N,).

        ``name`` is that of its random numbers, ``model`` another model for the search.
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

    def more(
        self, attack: Attack, among: Tensor, name: str, model: nn.Module | None = None
    ) -> Tensor:
        """Return which of some examples an attack fools, and note them."""
        fooled = self.fools(attack, among, name, model=model)
        self.fooled |= fooled
        return fooled

    def broken(self, attack: PGD) -> Tensor:
        """Return which examples a plain search fools; each search runs once."""
        key = repr(attack)
        if key not in self.searches:
            self.searches[key] = self.more(attack, torch.ones_like(self.fooled), "base")
        return self.searches[key]

    def finding(
        self,
        check: str,
        flags: Tensor,
        message: str,
        meaning: str,
        remedy: str = "run attacks without gradients (square) and one made for this defence",
        /,
        *,
        amber: float,
        red: float = 1.0,
        **measured: float,
    ) -> Finding:
        """Return the finding on the flagged examples, of which there should be none.

        In texts ``{count}`` and ``{n}`` are the number of flagged and of all examples, and
        ``{where}`` the rows of the flagged examples in the inputs of :func:`probes`.
        """
        count, n = int(flags.sum()), len(self.y)
        values = {"count": count, "n": n, "where": f"rows {listed(self.rows[flags])}"}
        message, meaning = message.format(**values), meaning.format(**values)
        status = graded(count, n, amber=amber, red=red)
        return finding(check, status, message, remedy, meaning, count=count, n=n, **measured)


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
    """Attack a few correct examples with several small attacks, and compare their results.

    Arguments:
        model: From inputs to logits, or its search form; it is left as it was.
        x: The inputs, on the device of the model, with shape (N, ...).
        y: The labels, with shape (N,).
        threat: What attacks may change.
        seed: The seed of all that is random in the probes.
        subset: The largest number of examples that are probed; at most a fifth of all.
        attacks: The attacks of the evaluation: the longest PGD of them is repeated with twice the
            steps, and with twice the restarts.
        passes: The forward passes of a verdict, for a random model.

    Returns:
        A finding for each check; an error in a check is its finding. Positions in messages are
        rows of ``x``.
    """
    if threat.eps == 0:
        return skipped(NAMES, "eps is 0: there is nothing to search")
    with preserved(exact_of(model), seed, x.device):
        try:
            correct = correct_of(model, x, y, passes=passes)
            rows = sampled(x, correct, min(subset, max(len(x) // SHARE, FEWEST)), seed)
        except Exception:  # before() reports it
            return skipped(NAMES, "the model fails on the inputs")
        if not len(rows):
            return skipped(NAMES, "no example is classified correctly")
        probe = _Probed(model, x[rows], y[rows], rows, threat, seed, passes)
        if reachable(exact_of(model), probe.x[:FEWEST], probe.y[:FEWEST]):
            findings = _white_box(probe, attacks or {})
        else:
            findings = skipped(NAMES[:-2], "there are no gradients to search with")
        left = ~probe.fooled  # for both: neither gains from the other
        return findings + attempts(
            {"noise": lambda: _noise(probe, left), "black-box": lambda: _square(probe, left)}
        )


def _white_box(probe: _Probed, attacks: Mapping[str, Attack]) -> list[Finding]:
    searches = [
        attack for attack in attacks.values()
        if isinstance(attack, PGD) and attack.steps * attack.restarts <= DEAREST
    ]  # fmt: skip
    longest = max(searches, key=lambda attack: attack.steps * attack.restarts, default=WIDE)
    return attempts(
        {
            "one-step": lambda: _one_step(probe),
            "masking": lambda: _masking(probe),
            "more-steps": lambda: _more(probe, longest, "steps"),
            "restarts": lambda: _more(probe, longest, "restarts"),
            "logit-scale": lambda: _logit_scale(probe),
            "monotone": lambda: _monotone(probe),
            "unbounded": lambda: _unbounded(probe),
        }
    )


def _one_step(probe: _Probed) -> Finding:
    """C9: whether one step fools examples that a search of many steps does not."""
    worse = probe.more(ONE_STEP, ~probe.broken(BASE), "one step")
    message = f"one step fools {{count}} of {{n}} examples that {BASE.steps} steps do not"
    meaning = " ({where}): steps follow misleading gradients"
    return probe.finding("one-step", worse, message, meaning, amber=LUCKY, red=OFTEN)


def _masking(probe: _Probed) -> Finding:
    """C19: whether PGD on the margin fools many examples that PGD on cross-entropy does not."""
    left, wide = ~probe.broken(BASE), probe.broken(WIDE)
    more = left & wide
    gap = (int(more.sum()) - int((~left & ~wide).sum())) / len(probe.y)
    return probe.finding(
        "masking",
        more,
        "PGD on the margin fools {count} of {n} examples that PGD on cross-entropy does not",
        f", the accuracy is {100 * gap:.0f} points lower: cross-entropy is masked",
        "do not rely on attacks on cross-entropy alone: use apgd-dlr, apgd-t or cw-inf",
        amber=OFTEN,
        gap=gap,
    )


def _more(probe: _Probed, attack: PGD, what: str) -> Finding:
    """C10: whether twice the steps or restarts of a search fool many more examples."""
    left = ~probe.broken(attack)
    many: int = getattr(attack, what)
    longer = replace(attack, steps=2 * many) if what == "steps" else attack
    more = probe.more(longer, left, f"twice the {what}")
    return probe.finding(
        "more-steps" if what == "steps" else "restarts",
        more,
        f"{2 * many} {what} in place of {many} fool {{count}} more of {{n}} examples "
        f"(PGD on {attack.loss})",
        ": the search has not converged",
        f"raise the {what} until the accuracy does not fall, or use adaptive attacks (autoattack)",
        amber=OFTEN,
    )


def _logit_scale(probe: _Probed) -> Finding:
    """C6: whether cross-entropy fools many more examples if logits are divided by a constant."""
    divided = Divided.to_one(probe.model, probe.x, probe.y)
    more = probe.more(BASE, ~probe.broken(BASE), "base", divided)
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
    probe.fooled |= small
    return probe.finding(
        "monotone",
        small | large,
        "{count} of {n} examples are fooled with a smaller eps but not with one twice as large",
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
    draws = _tries(left)
    fooled = _missed(probe, _by_noise(probe, left, draws))
    return _blind(probe, "noise", fooled, left, f"{draws} draws of noise fool", draws=draws)


def _square(probe: _Probed, left: Tensor) -> Finding:
    """C13: whether a search without gradients fools examples that those with gradients do not."""
    queries = _tries(left)
    with guest(exact_of(probe.model)):
        fooled = probe.fools(Square(queries=queries, rescale=True), left, "square")
        fooled = _missed(probe, fooled)
    what = f"Square with {queries} queries fools"
    return _blind(probe, "black-box", fooled, left, what, queries=queries)


def _blind(
    probe: _Probed, check: str, fooled: Tensor, left: Tensor, what: str, **measured: float
) -> Finding:
    message = f"{what} {{count}} of {{n}} examples that gradients do not"
    if not bool(left.any()):
        message = f"gradients fool every example: none is left for the check {check}"
    meaning = " ({where}): gradients are masked or mislead"
    measured |= {"left": int(left.sum())}
    return probe.finding(check, fooled, message, meaning, amber=RARE, red=OFTEN, **measured)


def _missed(probe: _Probed, fooled: Tensor) -> Tensor:
    """Return which of a few examples long searches with gradients do not fool either.

    A short search misses an example now and then on a sound model, too.
    """
    few = int(fooled.sum()) <= FEW * len(fooled)
    if few and reachable(exact_of(probe.model), probe.x[:1], probe.y[:1]):
        fooled = fooled & ~probe.fools(LONG, fooled, "long")
        fooled = fooled & ~probe.fools(LONGEST, fooled, "longest")
    return fooled


def _tries(left: Tensor) -> int:
    """Return the number of tries for each example; the total number is fixed."""
    return min(MOST_TRIES, TRIES * len(left) // max(int(left.sum()), 1))


def _by_noise(probe: _Probed, left: Tensor, draws: int) -> Tensor:
    """Return which examples noise fools, in turn uniform in the ball and at its corners."""
    fooled, rows = torch.zeros_like(left), left.nonzero()[:, 0]
    source = probe.draws.child("noise").select(rows)
    while draws and len(rows):
        x, y = probe.x[rows], probe.y[rows]
        draws -= (many := min(2 * max(BATCH // (2 * len(rows)), 1), draws))
        noise = [source.uniform(x) for _ in range(many)]
        noise[1::2] = [(part >= 0.5).to(x.dtype) for part in noise[1::2]]
        points = probe.threat.start(torch.cat([x] * many), torch.cat(noise))
        right = correct_of(probe.model, points, y.repeat(many), passes=probe.passes)
        hit = ~right.view(many, -1).all(0)
        fooled[rows[hit]] = True
        source, rows = source.select(~hit), rows[~hit]
    return fooled
