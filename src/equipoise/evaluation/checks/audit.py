"""Checks of an attack: does it do what it says? C1, C5, C9, C10, C14 and C16.

Most questions are asked at a small fraction of eps: there hardly any example is fooled, so that
every search goes on to its end, and the model is nearly linear, so that a search that follows it
beats noise of the same length by far.
"""

from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from functools import cached_property
from itertools import chain
from typing import Any

from torch import Tensor, nn

from equipoise.attacks.core import Attack
from equipoise.draws import KeyedDraws
from equipoise.evaluation.checks.finding import CHECKS, finding, plural
from equipoise.evaluation.checks.inputs import sign_test
from equipoise.evaluation.checks.model import (
    Divided,
    attempt,
    correct_of,
    exact_of,
    logits_of,
    preserved,
    sampled,
)
from equipoise.evaluation.checks.trap import Trap, fell, watched
from equipoise.losses import margin
from equipoise.store.finding import Finding, Status
from equipoise.threat import NORMS, Threat

SHOWN = 32  # examples
ALONE = 6  # examples that are attacked one at a time
SMALL = 1 / 20  # of eps
TINY = 1 / 1000
WINDOWS = ((0.15, 0.45), (0.4, 0.7), (0.65, 0.95))  # of the way to the border
FEWEST = 7  # examples with which a sign test can tell anything
SURE = 0.01
FULL = 0.8  # of eps that a search should use where nothing was fooled
GROWTH = 1.4  # of the passes when the steps double: a few passes come on top of the steps
TRIAL = {"steps": 10, "queries": 20}  # short searches
LONGEST = {"steps": 50, "queries": 300}  # longer ones are shortened: it makes no difference here

CHECKED = tuple(name for name in CHECKS if name.startswith("attack-"))


def audit(
    attack: Attack,
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    threat: Threat,
    *,
    seed: int = 0,
    name: str = "",
) -> list[Finding]:
    """Check an attack on a model that is known to be sound, e.g. before trusting a new attack.

    Arguments:
        attack: The attack.
        model: From inputs to logits, with useful gradients; it is left as it was.
        x: The inputs, on the device of the model, with shape (N, ...).
        y: The labels, with shape (N,).
        threat: What the attack is allowed, with eps > 0.
        seed: The seed of all that is random.
        name: The name of the attack: it follows the names of the checks, after a colon, so that
            several attacks can be told apart.

    Returns:
        A finding for each check; an attack that raises is a finding, too.

    Raises:
        Exception: Whatever the model raises.
    """
    found = _audited(attack, exact_of(model), x, y, threat, seed)
    return [replace(each, check=f"{each.check}:{name}" if name else each.check) for each in found]


def _audited(
    attack: Attack, model: nn.Module, x: Tensor, y: Tensor, threat: Threat, seed: int
) -> list[Finding]:
    if threat.norm not in getattr(attack, "norms", NORMS) or threat.eps == 0:
        return [finding(name, "skipped", f"the attack is not for {threat!r}") for name in CHECKED]
    with preserved(model, seed, x.device):
        rows = sampled(x, correct_of(model, x, y), SHOWN, seed)
        if not len(rows):
            why = "no example is classified correctly"
            return [finding(name, "skipped", why) for name in CHECKED]
        # With huge logits losses saturate, which is no fault of the attack.
        soft = Divided.to_one(model, x[rows], y[rows])
        trial = _Trial(attack, soft, x[rows], y[rows], threat, seed)
        checks: dict[str, Callable[[], Finding]] = {
            "attack-eps-zero": lambda: _eps_zero(trial),
            "attack-constraint": lambda: _constraint(trial),
            "attack-reach": lambda: _reach(trial),
            "attack-steps": lambda: _steps(trial),
            "attack-ascent": lambda: _ascent(trial),
            "attack-blind": lambda: _blind(trial),
            "attack-lost": lambda: _lost(trial),
        }
        return list(chain.from_iterable(attempt(name, run) for name, run in checks.items()))


class _Trial:
    """An attack, and correct examples to try it on."""

    def __init__(
        self, attack: Attack, model: nn.Module, x: Tensor, y: Tensor, threat: Threat, seed: int
    ) -> None:
        self.attack, self.model, self.x, self.y, self.threat = attack, model, x, y, threat
        self.seed = seed
        short = self.with_count(LONGEST)
        if short is not None and getattr(attack, short[0]) > LONGEST[short[0]]:
            self.attack = short[1]

    def at(self, share: float) -> Threat:
        """Return the threat with a share of its eps."""
        return replace(self.threat, eps=share * self.threat.eps)

    def run(self, share: float, attack: Attack | None = None) -> Tensor:
        """Return what the attack makes of all examples at a share of eps."""
        draws = KeyedDraws.of(self.x, self.seed).child("audit")
        x, y = self.x.clone(), self.y.clone()
        return (attack or self.attack)(self.model, x, y, self.at(share), draws=draws)

    @cached_property
    def small(self) -> Tensor:
        """Return what the attack makes of all examples at a small eps."""
        return self.run(SMALL)

    def margins(self, x: Tensor) -> Tensor:
        """Return by how much another class leads, with shape (N,)."""
        return margin(logits_of(self.model, x), self.y).double()

    def with_count(self, numbers: dict[str, int]) -> tuple[str, Attack] | None:
        """Return the name of the field that counts steps, and the attack with another number."""
        if not is_dataclass(self.attack):
            return None
        names = {field.name for field in fields(self.attack) if field.init}
        for name, number in numbers.items():
            if name in names:
                changed: Any = replace(self.attack, **{name: number})
                return name, changed
        return None


def _eps_zero(trial: _Trial) -> Finding:
    moved = int((trial.run(0) != trial.x).flatten(1).any(1).sum())
    message = f"with eps 0 it moves {moved} of {len(trial.x)} examples"
    status: Status = "failed" if moved else "ok"
    remedy = "project onto the threat at the end"
    return finding("attack-eps-zero", status, message, remedy, moved=moved)


def _constraint(trial: _Trial) -> Finding:
    x_adv = trial.run(1)
    outside = int((~trial.threat.contains(trial.x, x_adv)).sum())
    ratio = float(trial.threat.distance(trial.x, x_adv).max()) / trial.threat.eps
    measured = {"outside": outside, "n": len(x_adv), "ratio": ratio}
    message = f"its points are at most {ratio:.4g} eps away"
    if not outside:
        return finding("attack-constraint", "ok", message, **measured)
    message = f"{outside} of {len(x_adv)} points lie outside ball or range: {message}"
    remedy = "project every iterate onto ball and range, in units of the inputs"
    return finding("attack-constraint", "failed", message, remedy, **measured)


def _reach(trial: _Trial) -> Finding:
    x_adv = trial.small
    left = correct_of(trial.model, x_adv, trial.y)
    n = int(left.sum())
    if n < FEWEST:
        return finding("attack-reach", "skipped", f"only {plural(n)} withstand a small eps")
    share = trial.threat.distance(trial.x, x_adv)[left] / trial.at(SMALL).eps
    median = float(share.median())
    message = f"where nothing is fooled it uses {median:.2g} of eps (median of {n})"
    meaning = ": eps is in other units (normalised inputs?), or steps are too short"
    remedy = "give eps and steps in units of the inputs, and normalise inside the model"
    status: Status = "ok" if median >= FULL else "failed"
    return finding("attack-reach", status, message, remedy, meaning, share=median, n=n)


def _steps(trial: _Trial) -> Finding:
    short = trial.with_count(TRIAL)
    long = trial.with_count({name: 2 * number for name, number in TRIAL.items()})
    if short is None or long is None:
        return finding("attack-steps", "skipped", "the attack has no number of steps or queries")
    name = short[0]
    with watched(trial.model) as seen:
        trial.run(TINY, short[1])
        few = sum(len(points) for points, _ in seen)
        seen.clear()
        trial.run(TINY, long[1])
        many = sum(len(points) for points, _ in seen)
    n, number = len(trial.x), TRIAL[name]
    message = (
        f"{name} {number} takes {few / n:.1f} forward passes an example, {2 * number} take "
        f"{many / n:.1f}"
    )
    measured = {"few": few / n, "many": many / n}
    status: Status = "ok" if many >= GROWTH * few else "failed"
    meaning, remedy = f": {name} does not mean what it says", f"let the loop run {name} times"
    return finding("attack-steps", status, message, remedy, meaning, **measured)


def _ascent(trial: _Trial) -> Finding:
    change = trial.margins(trial.small) - trial.margins(trial.x)
    up, down, n = int((change > 0).sum()), int((change < 0).sum()), len(trial.x)
    message = f"the lead of the label falls on {up} of {n} examples and grows on {down}"
    measured = {"up": up, "down": down, "n": n}
    status: Status = "ok" if down <= up or sign_test(down, up) >= SURE else "failed"
    meaning, remedy = ": it walks the wrong way", "step along the gradient of the loss"
    return finding("attack-ascent", status, message, remedy, meaning, **measured)


def _blind(trial: _Trial) -> Finding:
    x_adv = trial.small
    lengths = trial.threat.distance(trial.x, x_adv)
    n = int((lengths > 0).sum())
    remedy = "let the loss depend on the points: detach neither them nor the logits"
    if n < min(FEWEST, len(lengths)):
        message = f"it moves {n} of {len(lengths)} examples at a small eps"
        return finding("attack-blind", "failed", message, remedy, moved=n)
    if n < FEWEST:
        return finding("attack-blind", "skipped", f"{plural(n)} tell nothing")
    gained = trial.margins(x_adv) - trial.margins(_noise(trial, lengths))
    won, lost = int((gained > 0).sum()), int((gained < 0).sum())
    message = f"it beats noise of the same length on {won} of {len(gained)} examples"
    measured = {"won": won, "lost": lost, "n": len(gained)}
    status: Status = "ok" if sign_test(won, lost) < SURE else "failed"
    meaning = ": its moves do not follow the model"
    return finding("attack-blind", status, message, remedy, meaning, **measured)


def _noise(trial: _Trial, lengths: Tensor) -> Tensor:
    """Return random points as far from the inputs as others are."""
    draws = KeyedDraws.of(trial.x, trial.seed).child("audit noise")
    far = trial.threat.start(trial.x, (draws.uniform(trial.x) >= 0.5).to(trial.x.dtype))
    reached = trial.threat.distance(trial.x, far).clamp_min(1e-12)
    scale = (lengths / reached).clamp_max(1).to(trial.x.dtype)
    return trial.x + (far - trial.x) * scale.view(-1, *[1] * (trial.x.ndim - 1))


def _lost(trial: _Trial) -> Finding:
    passed = lost = 0
    classes = logits_of(trial.model, trial.x[:1]).shape[1]
    for window in WINDOWS:
        for i in range(min(ALONE, len(trial.x))):
            x, y = trial.x[i : i + 1], trial.y[i : i + 1]
            trap = Trap(x, y, classes, trial.threat, window)
            draws = KeyedDraws.of(x, trial.seed).child("audit")
            with watched(trap) as seen:
                x_adv = trial.attack(trap, x.clone(), y.clone(), trial.threat, draws=draws)
            if fell(seen, x, y, trial.threat):
                passed += 1
                lost += int(bool(correct_of(trap, x_adv, y)))
    if not passed:
        return finding("attack-lost", "skipped", "no search met a trap on its way")
    message = f"of {passed} searches that met a misclassified point {lost} returned another"
    status: Status = "failed" if lost else "ok"
    remedy = "keep the best point so far, not the last one"
    return finding("attack-lost", status, message, remedy, passed=passed, lost=lost)
