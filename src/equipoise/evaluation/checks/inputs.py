"""Checks of what a model is given: C1 and C4."""

__all__ = ["eps_zero", "in_range", "scaling"]

import math
from dataclasses import replace

from torch import Tensor, nn

from equipoise.attacks.pgd import PGD
from equipoise.draws import KeyedDraws
from equipoise.evaluation.checks.finding import Finding, finding, plural
from equipoise.evaluation.checks.model import logits_of
from equipoise.threat import Threat

NARROW = 0.05  # a share of the range that images fill many times over
BETTER = 0.1  # accuracy that another scaling must win to be worth a warning
SURE = 0.01


def in_range(x: Tensor, threat: Threat) -> Finding:
    """C4: whether the inputs lie in the range of the threat, and fill it."""
    low, high = float(x.min()), float(x.max())
    mean, std = float(x.double().mean()), float(x.double().std(correction=0))
    box = f"[{threat.low:g}, {threat.high:g}]"
    measured = {"low": low, "high": high, "mean": mean, "std": std}
    if not math.isfinite(low + high):
        return finding("range", "failed", "the inputs hold NaN or infinite values", "clean them")
    seen = f"the inputs lie in [{low:.4g}, {high:.4g}]"
    if low < threat.low or high > threat.high:
        guess, remedy = _outside(x, mean, std)
        message = f"{seen}, not in {box}: {guess}; eps {threat.eps:g} means something else there"
        return finding("range", "failed", message, remedy, **measured)
    share = (high - low) / (threat.high - threat.low)
    if share < NARROW:
        message = f"{seen}, {share:.1%} of {box}: eps {threat.eps:g} is large beside them"
        return finding("range", "warning", message, "divide by 255 once, not twice", **measured)
    return finding("range", "ok", f"{seen} within {box}; the threat is {threat!r}", **measured)


def _outside(x: Tensor, mean: float, std: float) -> tuple[str, str]:
    if float(x.max()) > 2 and bool((x == x.round()).all()):
        return "they look like bytes", "divide by 255"
    if float(x.min()) < 0 and abs(mean) < 0.5 and 0.5 < std < 2:
        return "they look normalised by the loader", "make normalisation the model's first layer"
    return "they have another scale", "bring them into the range, and scaling into the model"


def scaling(model: nn.Module, x: Tensor, y: Tensor, threat: Threat) -> Finding:
    """C4: whether the model expects inputs of another scale than it is given.

    The accuracy is compared with that on inputs scaled as loaders do it; each is one pass.

    Arguments:
        model: The model.
        x: Some inputs, with shape (N, ...).
        y: Their labels, with shape (N,).
        threat: Its range.
    """
    unit = (x - threat.low) / (threat.high - threat.low)
    axes = [0, *range(2, x.ndim)]
    mean = unit.mean(axes, keepdim=True)
    std = unit.std(axes, correction=0, keepdim=True).clamp_min(1e-3)
    others = {"0..255": 255 * unit, "-1..1": 2 * unit - 1, "mean 0, std 1": (unit - mean) / std}
    here = logits_of(model, x).argmax(1) == y
    accuracy = float(here.double().mean())
    for name, scaled in others.items():
        there = logits_of(model, scaled.to(x)).argmax(1) == y
        won, lost = int((there & ~here).sum()), int((here & ~there).sum())
        if won - lost >= BETTER * len(x) and sign_test(won, lost) < SURE:
            message = (
                f"accuracy is {accuracy:.0%} as given but {float(there.double().mean()):.0%} on "
                f"inputs scaled to {name}: the model expects those"
            )
            remedy = f"make the scaling to {name} the model's first layer"
            return finding("range", "failed", message, remedy, accuracy=accuracy, won=won)
    message = f"accuracy is {accuracy:.0%}, and no usual scaling of the inputs raises it"
    return finding("range", "ok", message, accuracy=accuracy)


def sign_test(wins: int, losses: int) -> float:
    """Return how likely so many wins are where wins and losses are equally likely."""
    n = wins + losses
    likely: float = sum(math.comb(n, k) for k in range(wins, n + 1)) / 2**n
    return likely


def eps_zero(model: nn.Module, x: Tensor, y: Tensor, threat: Threat, seed: int) -> Finding:
    """C1: whether without a budget inputs and answers stay as they are."""
    draws = KeyedDraws.of(x, seed).child("eps zero")
    before = logits_of(model, x).argmax(1)
    x_adv = PGD(steps=1)(model, x, y, replace(threat, eps=0.0), draws=draws)
    moved = int((x_adv != x).flatten(1).any(1).sum())
    other = int((logits_of(model, x_adv).argmax(1) != before).sum())
    measured = {"moved": moved, "other": other}
    if moved or other:
        message = (
            f"with eps 0 {plural(moved)} of {len(x)} moved and {other} got another answer: "
            "something other than the attack changes the accuracy"
        )
        remedy = "let model and attack return the same for the same inputs"
        return finding("eps-zero", "failed", message, remedy, **measured)
    message = f"with eps 0 all {len(x)} answers are the clean ones"
    return finding("eps-zero", "ok", message, **measured)
