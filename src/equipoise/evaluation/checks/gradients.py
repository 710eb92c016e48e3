"""Checks of the gradients that attacks follow: C6 and C7."""

import torch
from torch import Tensor, nn

from equipoise.draws import KeyedDraws
from equipoise.errors import one_line
from equipoise.evaluation.checks.finding import finding, graded
from equipoise.evaluation.judge import logits_of
from equipoise.execution.form import guest, input_gradient
from equipoise.losses import Loss, cross_entropy, margin
from equipoise.store.finding import Finding, Status
from equipoise.threat import Threat

ZEROS = 0.01  # the share of zero gradients that is tolerated
DIRECTIONS = 8
STEP = 1e-3  # of the range: float32 still resolves the difference of two logits
ALIGNED = 0.9  # the smallest cosine of measured and computed changes
NOISE = 20  # changes below this multiple of the rounding of the logits are ignored

_REMEDY = (
    "attack with a differentiable stand-in for that layer (its backward pass as the identity), "
    "and rely on attacks without gradients (square)"
)


def gradients(model: nn.Module, x: Tensor, y: Tensor, threat: Threat, seed: int) -> list[Finding]:
    """C6: whether gradients reach the inputs, and cross-entropy does not underflow."""
    try:
        ce, wide = (_zero(model, x, y, loss) for loss in (cross_entropy, margin))
    except Exception as error:  # a graph that is cut, or an operation without a backward pass
        message = f"no gradient reaches the inputs: {one_line(error)}"
        return [finding("gradients", "failed", message, _REMEDY)]
    return [_zeros(model, x, wide, threat, seed), _saturation(model, x, y, ce & ~wide)]


def reachable(model: nn.Module, x: Tensor, y: Tensor) -> bool:
    """Return whether gradients can be computed at all."""
    try:
        _zero(model, x, y, margin)
    except Exception:  # gradients() reports it
        return False
    return True


def _zero(model: nn.Module, x: Tensor, y: Tensor, loss: Loss) -> Tensor:
    with guest(model):
        grad = input_gradient(model, x, lambda z: loss(z, y))[2]
    return (grad == 0).flatten(1).all(1)


def _zeros(model: nn.Module, x: Tensor, zero: Tensor, threat: Threat, seed: int) -> Finding:
    count, n = int(zero.sum()), len(x)
    message = f"the gradient of the margin is zero on {count} of {n} inputs"
    if graded(count, n, amber=ZEROS) == "ok":
        return finding("gradients", "ok", message, zeros=count, n=n)
    noise = KeyedDraws.of(x, seed).child("gradients").uniform(x)
    apart = (logits_of(model, threat.start(x, noise)) - logits_of(model, x)).abs().amax(1)
    alive = int((apart > 0)[zero].sum())
    if alive:
        why = f", but noise moves the logits of {alive} of them: a layer is not differentiable"
        remedy = _REMEDY
    else:
        why = ", and noise does not move the logits: the output does not depend on these inputs"
        remedy = "check that the model is the trained one"
    return finding("gradients", "failed", message, remedy, why, zeros=count, n=n, alive=alive)


def _saturation(model: nn.Module, x: Tensor, y: Tensor, lost: Tensor) -> Finding:
    count, n = int(lost.sum()), len(x)
    gap = float(margin(logits_of(model, x), y).abs().double().median())
    measured = {"zeros": count, "n": n, "gap": gap}
    if graded(count, n, amber=ZEROS) == "ok":
        message = f"cross-entropy does not underflow; the median gap of two logits is {gap:.3g}"
        return finding("saturation", "ok", message, **measured)
    message = (
        f"the gradient of cross-entropy underflows to zero on {count} of {n} inputs, the gradient "
        f"of the margin does not: the logits are so large (median gap {gap:.3g}) that softmax "
        "saturates"
    )
    remedy = "use attacks on the margin or on DLR, or divide the logits by a constant"
    return finding("saturation", "failed", message, remedy, **measured)


def smooth(model: nn.Module, x: Tensor, y: Tensor, threat: Threat, seed: int) -> Finding:
    """C7: whether margins change along random directions as their gradients predict."""
    step = STEP * (threat.high - threat.low)
    x = x.clamp(threat.low + step, threat.high - step)
    with guest(model):
        out, _, grad = input_gradient(model, x, lambda z: margin(z, y))
    draws = KeyedDraws.of(x, seed).child("smooth")
    measured, computed = [], []
    for _ in range(DIRECTIONS):
        move = step * (2 * (draws.uniform(x) >= 0.5).to(x.dtype) - 1)
        up, down = (margin(logits_of(model, x + s * move), y) for s in (1, -1))
        measured.append((up - down).double())
        computed.append(2 * (grad * move).flatten(1).sum(1).double())
    a, b = torch.stack(measured), torch.stack(computed)
    rounding = torch.finfo(x.dtype).eps * out.abs().amax(1).double()
    clear = torch.maximum(a.abs().amax(0), b.abs().amax(0)) > NOISE * rounding
    if int(clear.sum()) < 4 or not bool(grad.any()):
        message = "the margins move too little to compare them with their gradients"
        return finding("smooth", "skipped", message)
    cosine = (a * b).sum(0) / (a.square().sum(0) * b.square().sum(0)).sqrt().clamp_min(1e-300)
    median = float(cosine[clear].median())
    message = f"measured and computed changes of the margin have a median cosine of {median:.2f}"
    meaning = ": the model jumps, or its gradient is that of another function"
    status: Status = "ok" if median >= ALIGNED else "warning"
    n = int(clear.sum())
    return finding("smooth", status, message, _REMEDY, meaning, cosine=median, n=n)
