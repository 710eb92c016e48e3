"""Whether a form of a model says what the model says."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from equipoise.execution.outputs import ask
from equipoise.execution.passes import Network, differentiated, seeded
from equipoise.losses import margin

# How far logits, without their mean, may be apart, relative to the largest; and how far the
# directions of the gradients of a batch, as one minus their cosine. Short arithmetic rounds to
# 2^-9 in every layer.
_LOGITS = {"float32": 1e-3, "bfloat16": 0.15}
_GRADIENTS = {"float32": 0.02, "bfloat16": 0.3}
_ROUNDING = 1e-5  # of the largest logit, in float32


def apart(form: Network, precision: str, model: nn.Module, x: Tensor, *, gradients: bool) -> str:
    """Return in words how the answers of a form and of its model differ, or nothing.

    Arguments:
        form: The form.
        precision: Its arithmetic.
        model: The model, in eval mode.
        x: A few inputs, with shape (B, ...).
        gradients: Whether to compare gradients, too.

    Raises:
        Exception: Whatever either of them raises, also that there is no gradient.
    """

    def exact(x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return ask(model, x)

    with torch.no_grad():
        mine, theirs = (_same_draws(network, x).double() for network in (form, exact))
    if mine.shape != theirs.shape or mine.ndim != 2:
        return f"it returns logits of shape {tuple(mine.shape)}, not {tuple(theirs.shape)}"
    level = theirs.abs().max()
    mine, theirs = (z - z.mean(1, keepdim=True) for z in (mine, theirs))
    largest = (mine - theirs).abs().max()
    if not bool(largest <= _LOGITS[precision] * theirs.abs().max() + _ROUNDING * level):
        return f"its logits differ by {largest / theirs.abs().max():.2g} of the largest"
    return (
        _slopes_apart(form, precision, exact, x, theirs.argmax(1, keepdim=True))
        if gradients
        else ""
    )


def astray(form: Network, precision: str, x: Tensor, y: Tensor, lead: Tensor) -> bool:
    """Tell whether a form answers otherwise than its model at some points.

    Arguments:
        form: The form.
        precision: Its arithmetic.
        x: The points, with shape (B, ...).
        y: The labels, with shape (B,).
        lead: By how much the label leads for the model, finite, with shape (B,).
    """
    with torch.no_grad():
        logits = form(x).double()
    centred = (logits - logits.mean(1, keepdim=True)).abs().amax()
    allowed = 2 * (_LOGITS[precision] * centred + _ROUNDING * logits.abs().amax())
    return not bool(((-margin(logits, y) - lead).abs() <= allowed).all())


def _slopes_apart(form: Network, precision: str, exact: Network, x: Tensor, top: Tensor) -> str:
    """Return in words how the gradients differ, or nothing."""

    def lead(logits: Tensor) -> Tensor:
        return logits.gather(1, top)[:, 0] - logits.mean(1)

    wanted, got = (_slope(network, x, lead) for network in (exact, form))
    if not bool(wanted.any()) and not bool(got.any()):
        return ""
    cosine = torch.nn.functional.cosine_similarity(got, wanted, dim=0, eps=1e-300)
    if bool(cosine >= 1 - _GRADIENTS[precision]):
        return ""
    return f"its gradients point elsewhere (cosine {float(cosine):.2f})"


def _slope(network: Network, x: Tensor, objective: Callable[[Tensor], Tensor]) -> Tensor:
    with seeded(0, x.device):
        found = differentiated(network, x, objective, [False, True])
    return found[2].double().flatten()


def _same_draws(network: Network, x: Tensor) -> Tensor:
    with seeded(0, x.device):
        return network(x)
