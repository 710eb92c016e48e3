"""Checks of the inputs of a model: C1 and C4."""

import math
from dataclasses import replace

from torch import Tensor, nn

from equipoise.attacks.pgd import PGD
from equipoise.data.rows import is_large, pieces
from equipoise.draws import KeyedDraws
from equipoise.evaluation.checks.finding import finding, plural, sign_test
from equipoise.evaluation.judge import correct_of, logits_of
from equipoise.models.core import Normalize
from equipoise.models.normalisation import NAMED
from equipoise.store.finding import Finding, Status
from equipoise.threat import Threat

NARROW = 0.05  # a share of the range that is far too small for images
BETTER = 0.1  # the gain in accuracy for which another scaling is reported
SURE = 0.01


def in_range(x: Tensor, threat: Threat) -> Finding:
    """C4: whether the inputs lie in the range of the threat, and fill it."""
    low, high = float(x.min()), float(x.max())
    mean, std = moments(x)
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
        message = f"{seen}, {share:.1%} of {box}: eps {threat.eps:g} is large compared to them"
        remedy = "check whether they were scaled twice, or set the range of the threat"
        return finding("range", "warning", message, remedy, **measured)
    return finding("range", "ok", f"{seen} within {box}; the threat is {threat!r}", **measured)


def moments(x: Tensor) -> tuple[float, float]:
    """Return mean and standard deviation of all values, in float64; of many part by part."""
    if not is_large(x):
        return float(x.double().mean()), float(x.double().std(correction=0))
    mean = sum(float(part.double().sum()) for _, part in pieces(x)) / x.numel()
    square = sum(float((part.double() - mean).square().sum()) for _, part in pieces(x))
    return mean, math.sqrt(square / x.numel())


def _outside(x: Tensor, mean: float, std: float) -> tuple[str, str]:
    if _bytes(x):
        return "they look like bytes", "scale them into the range, or set the range of the threat"
    if float(x.min()) < 0 and abs(mean) < 0.5 and 0.5 < std < 2:
        return "they look normalised by the loader", "make normalisation the model's first layer"
    return "they have another scale", "scale them into the range, and back inside the model"


def _bytes(x: Tensor) -> bool:
    return float(x.max()) > 2 and bool((x == x.round()).all())


def scaling(model: nn.Module, x: Tensor, y: Tensor, threat: Threat, seen: Finding) -> Finding:
    """C4: whether the model expects inputs of another scale.

    The accuracy is compared with that on inputs with the usual scalings of loaders, one pass for
    each; ``seen`` is the finding of :func:`in_range`, and returned where no scaling is better.
    """
    here = correct_of(model, x, y)
    accuracy = float(here.double().mean())
    tried = {
        name: (correct_of(model, scaled.to(x), y), remedy)
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
    """Return the inputs in every usual scaling by its name, each with a remedy.

    The first of several equally good scalings is reported: the more specific ones come first.
    """
    if seen.status == "failed":
        return {"0..1": (x / 255, "divide by 255")} if _bytes(x) else {}
    unit = (x - threat.low) / (threat.high - threat.low)
    first = "make the scaling to {} the model's first layer"
    scalings = {}
    if isinstance(model, nn.Sequential) and len(model) and isinstance(model[0], Normalize):
        undone = unit * model[0].std + model[0].mean
        remedy = "remove the normalisation in front of the model: --normalise none"
        scalings["the scale before its first layer"] = (undone, remedy)
    if seen.status == "warning":
        scalings["255 times as much"] = (255 * x, "divide by 255 once, not twice")
    for key, constants in NAMED.items():
        if x.ndim > 2 and len(constants.mean) == x.shape[1]:
            name = "-1..1" if key.startswith("half") else f"{key}'s mean and std"
            shape = [1, -1, *[1] * (x.ndim - 2)]
            center, scale = (unit.new_tensor(part).view(shape) for part in constants)
            remedy = f"{first.format(name)}: --normalise {key}"
            scalings[name] = ((unit - center) / scale, remedy)
    axes = [0, *range(2, x.ndim)]
    mean = unit.mean(axes, keepdim=True)
    std = unit.std(axes, correction=0, keepdim=True).clamp_min(1e-3)
    rest = {"-1..1": 2 * unit - 1, "0..255": 255 * unit, "mean 0, std 1": (unit - mean) / std}
    return scalings | {n: (v, first.format(n)) for n, v in rest.items() if n not in scalings}


def eps_zero(model: nn.Module, x: Tensor, y: Tensor, threat: Threat, seed: int) -> Finding:
    """C1: whether inputs and predictions stay the same with eps 0."""
    draws = KeyedDraws.of(x, seed).child("eps zero")
    before = logits_of(model, x).argmax(1)
    x_adv = PGD(steps=1)(model, x, y, replace(threat, eps=0.0), draws=draws)
    moved = int((x_adv != x).flatten(1).any(1).sum())
    other = int((logits_of(model, x_adv).argmax(1) != before).sum())
    measured = {"moved": moved, "other": other}
    if moved or other:
        message = (
            f"with eps 0 {plural(moved)} of {len(x)} moved and {other} got another prediction: "
            "something other than the attack changes the accuracy"
        )
        remedy = "let model and attack return the same for the same inputs"
        return finding("eps-zero", "failed", message, remedy, **measured)
    message = f"with eps 0 all {len(x)} predictions are those of the clean inputs"
    return finding("eps-zero", "ok", message, **measured)
