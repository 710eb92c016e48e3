"""Checks of an attack: C1, C5, C9, C10, C14 and C16.

Most checks run at a small fraction of eps: there hardly any example is fooled, so that every
search continues to its end, and the model is nearly linear, so that a search along its gradients
is far better than noise of the same length.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, is_dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from equipoise.attacks.core import Attack
from equipoise.draws import KeyedDraws
from equipoise.evaluation.checks.finding import (
    CHECKS,
    attempts,
    finding,
    plural,
    sign_test,
    skipped,
)
from equipoise.evaluation.checks.model import Divided, preserved, sampled
from equipoise.evaluation.judge import correct_of, exact_of, logits_of
from equipoise.losses import margin
from equipoise.store.finding import Finding, Status
from equipoise.threat import NORMS, Threat

SHOWN = 32  # examples
ALONE = 6  # examples that are attacked one at a time
SMALL = 1 / 20  # of eps
TINY = 1 / 1000  # of eps
WINDOWS = ((0.15, 0.45), (0.4, 0.7), (0.65, 0.95))  # of the way to the border of the ball
FEWEST = 7  # examples that a sign test needs to be significant
SURE = 0.01  # the level of significance
FULL = 0.8  # the share of eps that a search should use where nothing was fooled
GROWTH = 1.4  # of the passes when the steps double: there are a few passes besides the steps
TRIAL = {"steps": 10, "queries": 20}  # short searches
LONGEST = {"steps": 50, "queries": 300}  # longer searches are shortened
_SURE, _NEXT, _OTHERS = 0.0, -2.0, -6.0  # a trap's logits of the label, the next class, all others
_INSIDE = 2.5  # added to the next class inside the trap

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
    """Check an attack on a sound model, for example before a new attack is trusted.

    Arguments:
        attack: The attack.
        model: From inputs to logits, with useful gradients; it is left as it was.
        x: The inputs, on the device of the model, with shape (N, ...).
        y: The labels, with shape (N,).
        threat: What the attack may change, with eps > 0.
        seed: The seed of all that is random.
        name: The name of the attack; it is added to the names of the checks, after a colon.

    Returns:
        A finding for each check; an error of the attack is a finding, too.

    Raises:
        Exception: As the model raises it.
    """
    findings = _audited(attack, exact_of(model), x, y, threat, seed)
    return [replace(f, check=f"{f.check}:{name}" if name else f.check) for f in findings]


def _audited(
    attack: Attack, model: nn.Module, x: Tensor, y: Tensor, threat: Threat, seed: int
) -> list[Finding]:
    if threat.norm not in getattr(attack, "norms", NORMS) or threat.eps == 0:
        return skipped(CHECKED, f"the attack is not for {threat!r}")
    with preserved(model, seed, x.device):
        rows = sampled(x, correct_of(model, x, y), SHOWN, seed)
        if not len(rows):
            return skipped(CHECKED, "no example is classified correctly")
        # Losses saturate with huge logits, which is no fault of the attack.
        soft = Divided.to_one(model, x[rows], y[rows])
        trial = _Trial(attack, soft, x[rows], y[rows], threat, seed)
        return attempts(
            {
                "attack-eps-zero": lambda: _eps_zero(trial),
                "attack-constraint": lambda: _constraint(trial),
                "attack-reach": lambda: _reach(trial),
                "attack-steps": lambda: _steps(trial),
                "attack-ascent": lambda: _ascent(trial),
                "attack-blind": lambda: _blind(trial),
                "attack-lost": lambda: _lost(trial),
            }
        )


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
        """Return the points of the attack for all examples at a share of eps."""
        draws = KeyedDraws.of(self.x, self.seed).child("audit")
        x, y = self.x.clone(), self.y.clone()
        return (attack or self.attack)(self.model, x, y, self.at(share), draws=draws)

    @cached_property
    def small(self) -> Tensor:
        """Return the points of the attack for all examples at a small eps."""
        return self.run(SMALL)

    def margins(self, x: Tensor) -> Tensor:
        """Return the largest other logit minus that of the label, with shape (N,)."""
        return margin(logits_of(self.model, x), self.y).double()

    def with_count(self, numbers: dict[str, int]) -> tuple[str, Attack] | None:
        """Return the name of the field that counts steps, and the attack with another number."""
        if not is_dataclass(self.attack):
            return None
        names = {field.name for field in fields(self.attack) if field.init}
        name = next((name for name in numbers if name in names), None)
        changed: Any = None if name is None else replace(self.attack, **{name: numbers[name]})
        return None if name is None else (name, changed)


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
        return finding("attack-reach", "skipped", f"only {plural(n)} stay correct at a small eps")
    share = trial.threat.distance(trial.x, x_adv)[left] / trial.at(SMALL).eps
    median = float(share.median())
    message = f"on examples that it does not fool it uses {median:.2g} of eps (median of {n})"
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
    with _watched(trial.model) as seen:
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
    meaning, remedy = f": {name} does not count the steps", f"let the loop run {name} times"
    return finding("attack-steps", status, message, remedy, meaning, **measured)


def _ascent(trial: _Trial) -> Finding:
    change = trial.margins(trial.small) - trial.margins(trial.x)
    up, down, n = int((change > 0).sum()), int((change < 0).sum()), len(trial.x)
    message = f"the margin of the label falls on {up} of {n} examples and grows on {down}"
    measured = {"up": up, "down": down, "n": n}
    status: Status = "ok" if down <= up or sign_test(down, up) >= SURE else "failed"
    meaning, remedy = ": it steps in the wrong direction", "step along the gradient of the loss"
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
        return finding("attack-blind", "skipped", f"{plural(n)} are too few")
    gained = trial.margins(x_adv) - trial.margins(_noise(trial, lengths))
    won, lost = int((gained > 0).sum()), int((gained < 0).sum())
    message = f"it beats noise of the same length on {won} of {len(gained)} examples"
    measured = {"won": won, "lost": lost, "n": len(gained)}
    status: Status = "ok" if sign_test(won, lost) < SURE else "failed"
    meaning = ": its moves do not follow the model"
    return finding("attack-blind", status, message, remedy, meaning, **measured)


def _noise(trial: _Trial, lengths: Tensor) -> Tensor:
    """Return random points at given distances from the inputs."""
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
            trap = _Trap(x, y, classes, trial.threat, window)
            draws = KeyedDraws.of(x, trial.seed).child("audit")
            with _watched(trap) as seen:
                x_adv = trial.attack(trap, x.clone(), y.clone(), trial.threat, draws=draws)
            if _passed(seen, x, y, trial.threat):
                passed += 1
                lost += int(bool(correct_of(trap, x_adv, y)))
    if not passed:
        return finding("attack-lost", "skipped", "no search passed a trap")
    message = f"{lost} of {passed} searches that met a misclassified point returned another"
    status: Status = "failed" if lost else "ok"
    remedy = "keep the best point so far, not the last point"
    return finding("attack-lost", status, message, remedy, passed=passed, lost=lost)


class _Trap(nn.Module):
    r"""Misclassifies one example on the way to the border of its ball, and not at the border.

    The loss grows with the progress :math:`t = \langle w, v - x \rangle / s` of a point v along
    a direction w away from the nearer end of the range; s is the largest that the ball allows. The
    next class has the largest logit only where t lies in the window.
    """

    def __init__(
        self, x: Tensor, y: Tensor, classes: int, threat: Threat, window: tuple[float, float]
    ) -> None:
        super().__init__()
        self.x, self.window = x, window
        middle = (threat.low + threat.high) / 2
        away = torch.where(x < middle, 1.0, -1.0).to(x.dtype)
        dual = {"linf": "l1", "l2": "l2", "l1": "linf"}[threat.norm]
        self.w = away / (threat.eps * Threat.lengths(away, dual))  # type: ignore[arg-type]
        label = int(y)
        logits = torch.full((classes,), _OTHERS, dtype=x.dtype, device=x.device)
        logits[label], logits[(label + 1) % classes] = _SURE, _NEXT
        self.logits = logits
        self.next = torch.arange(classes, device=x.device) == (label + 1) % classes

    def forward(self, x: Tensor) -> Tensor:
        """Return logits for points with shape (B, ...)."""
        t = (self.w * (x - self.x)).flatten(1).sum(1)
        inside = (t >= self.window[0]) & (t <= self.window[1])
        lead = t + _INSIDE * inside
        return self.logits + lead[:, None] * self.next


@contextmanager
def _watched(model: nn.Module) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Collect the inputs and outputs of a model."""
    seen: list[tuple[Tensor, Tensor]] = []

    def hook(_: nn.Module, inputs: tuple[Any, ...], out: Any) -> None:
        seen.append((inputs[0].detach(), out.detach()))

    handle = model.register_forward_hook(hook)
    try:
        yield seen
    finally:
        handle.remove()


def _passed(seen: list[tuple[Tensor, Tensor]], x: Tensor, y: Tensor, threat: Threat) -> bool:
    """Return whether an allowed point among inputs of a model was misclassified."""
    return any(
        bool(((margin(out, y.expand(len(out))) > 0) & threat.contains(x.expand_as(v), v)).any())
        for v, out in seen
    )
