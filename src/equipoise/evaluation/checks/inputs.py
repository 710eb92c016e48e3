"""Checks of what a model is given: C1 and C4."""

import math
from dataclasses import replace

from torch import Tensor, nn

from equipoise.attacks.pgd import PGD
from equipoise.draws import KeyedDraws
from equipoise.evaluation.checks.finding import finding, plural
from equipoise.evaluation.checks.model import logits_of
from equipoise.models.core import Normalize
from equipoise.models.normalisation import NAMED
from equipoise.store.finding import Finding, Status
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
        remedy = "see whether they were scaled twice, or state their range"
        return finding("range", "warning", message, remedy, **measured)
    return finding("range", "ok", f"{seen} within {box}; the threat is {threat!r}", **measured)


def _outside(x: Tensor, mean: float, std: float) -> tuple[str, str]:
    if _bytes(x):
        return "they look like bytes", "bring them into the range, or state theirs"
    if float(x.min()) < 0 and abs(mean) < 0.5 and 0.5 < std < 2:
        return "they look normalised by the loader", "make normalisation the model's first layer"
    return "they have another scale", "bring them into the range, and scaling into the model"


def _bytes(x: Tensor) -> bool:
    return float(x.max()) > 2 and bool((x == x.round()).all())


def scaling(model: nn.Module, x: Tensor, y: Tensor, threat: Threat, seen: Finding) -> Finding:
    """C4: whether the model expects inputs of another scale than it is given.

    The accuracy is compared with that on inputs scaled as loaders do it, by the constants of the
    usual data sets among others; each is one pass. A scaling is advised only if it is the best of
    all that were tried, and better than none.

    Arguments:
        model: The model.
        x: Some inputs, with shape (N, ...).
        y: Their labels, with shape (N,).
        threat: Its range.
        seen: What :func:`in_range` said of the inputs; returned where no scaling is better.
    """
    here = logits_of(model, x).argmax(1) == y
    accuracy = float(here.double().mean())
    tried = {
        name: (logits_of(model, scaled.to(x)).argmax(1) == y, remedy)
        for name, (scaled, remedy) in _scalings(model, x, threat, seen).items()
    }
    best = max(tried, key=lambda name: int(tried[name][0].sum()), default="")
    if not best:
        return seen
    there, remedy = tried[best]
    won, lost = int((there & ~here).sum()), int((here & ~there).sum())
    if won - lost < BETTER * len(x) or sign_test(won, lost) >= SURE:
        return seen
    status: Status = "warning" if seen.status == "warning" else "failed"
    before = "" if seen.status == "ok" else f"{seen.message}; "
    message = (
        f"{before}accuracy is {accuracy:.0%} as given but {float(there.double().mean()):.0%} on "
        f"inputs scaled to {best}, the best of {plural(len(tried), 'scaling')}: the model expects "
        "those"
    )
    return finding("range", status, message, remedy, accuracy=accuracy, won=won)


def _scalings(
    model: nn.Module, x: Tensor, threat: Threat, seen: Finding
) -> dict[str, tuple[Tensor, str]]:
    """Return the inputs under every usual scaling, by its name, and how to have it.

    Of scalings that serve as well the first is advised: the more definite ones come first.
    """
    if seen.status == "failed":
        return {"0..1": (x / 255, "divide by 255")} if _bytes(x) else {}
    unit = (x - threat.low) / (threat.high - threat.low)
    first = "make the scaling to {} the model's first layer"
    found = {}
    if isinstance(model, nn.Sequential) and len(model) and isinstance(model[0], Normalize):
        undone = unit * model[0].std + model[0].mean
        remedy = "take the normalisation in front of the model away: --normalise none"
        found["what they were before its first layer"] = (undone, remedy)
    if seen.status == "warning":
        found["255 times as much"] = (255 * x, "divide by 255 once, not twice")
    for key, constants in NAMED.items():
        if x.ndim > 2 and len(constants.mean) == x.shape[1]:
            name = "-1..1" if key.startswith("half") else f"{key}'s mean and std"
            shape = [1, -1, *[1] * (x.ndim - 2)]
            center, scale = (unit.new_tensor(part).view(shape) for part in constants)
            remedy = f"{first.format(name)}: --normalise {key}"
            found[name] = ((unit - center) / scale, remedy)
    axes = [0, *range(2, x.ndim)]
    mean = unit.mean(axes, keepdim=True)
    std = unit.std(axes, correction=0, keepdim=True).clamp_min(1e-3)
    rest = {"-1..1": 2 * unit - 1, "0..255": 255 * unit, "mean 0, std 1": (unit - mean) / std}
    return found | {n: (v, first.format(n)) for n, v in rest.items() if n not in found}


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
