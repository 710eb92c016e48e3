"""The checks before any attack: cheap, and enough to refuse most broken set-ups."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from equipoise.evaluation.checks import inputs, outputs
from equipoise.evaluation.checks.finding import finding
from equipoise.evaluation.checks.gradients import gradients, reachable, smooth
from equipoise.evaluation.checks.model import (
    attempt,
    exact_of,
    kind_of,
    logits_of,
    preserved,
    sampled,
)
from equipoise.store.finding import Finding
from equipoise.threat import Threat

SCALED = 200  # examples on which scalings of the inputs are compared
SHOWN = 64  # examples that the other checks look at
FEW = 16  # examples for what costs many passes each


def before(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    threat: Threat,
    *,
    seed: int = 0,
    classes: int | None = None,
    original_training: bool = False,
    passes: int = 1,
) -> list[Finding]:
    """Check a model, its inputs and its gradients before it is attacked: C1-C4, C6-C8, C23, C24.

    Arguments:
        model: From inputs to logits; it is left as it was, and so is the global random state.
        x: The inputs, on the device of the model, with shape (N, ...), N >= 1.
        y: The labels, with shape (N,).
        threat: What attacks will be allowed.
        seed: The seed of all that is random in the checks.
        classes: The number of classes, where it is known.
        original_training: Whether the model was handed over in training mode.
        passes: Over how many passes of a randomised model verdicts are averaged.

    Returns:
        A finding for each check, none of them an exception.
    """
    model = exact_of(model)
    found = attempt("range", lambda: inputs.in_range(x, threat))
    some = sampled(x, torch.ones_like(y, dtype=torch.bool), SCALED, seed)
    x, y = x[some], y[some]
    with preserved(model, seed, x.device) as changed:
        try:
            out = logits_of(model, x)
            found.append(outputs.logits(out, y, classes))
        except Exception as error:  # whatever a stranger's model raises
            message = f"the model fails on these inputs: {kind_of(error)}"
            return [*found, finding("logits", "failed", message, "run it on them by hand")]
        if out.ndim != 2 or len(out) != len(y) or out.shape[1] < 2 or int(y.max()) >= out.shape[1]:
            return found
        found.append(outputs.few_classes(out.shape[1]))
        if bool(x.isfinite().all()):
            found[:1] = attempt("range", lambda: inputs.scaling(model, x, y, threat, found[0]))
        correct = out.argmax(1) == y
        shown = sampled(x, correct if bool(correct.any()) else ~correct, SHOWN, seed)
        x, y = x[shown], y[shown]
        found += _forward(model, x, passes, changed, original_training)
        unsteady = any(f.check == "randomised" and f.status != "ok" for f in found)
        return found + _slopes(model, x, y, threat, seed, unsteady)


def _forward(
    model: nn.Module,
    x: Tensor,
    passes: int,
    changed: Callable[[], set[str]],
    original_training: bool,
) -> list[Finding]:
    """Return what forward passes tell: C2, C8 and C24."""
    found = attempt("randomised", lambda: outputs.randomised(model, x, passes))
    unsteady = found[0].status != "ok"
    found += attempt("dynamic", lambda: outputs.dynamic(model, x[:FEW], changed))
    found += attempt("repeatable", lambda: outputs.repeatable(model, x, unsteady))
    return found + attempt(
        "eval-mode", lambda: outputs.eval_mode(model, changed, original_training)
    )


def _slopes(
    model: nn.Module, x: Tensor, y: Tensor, threat: Threat, seed: int, unsteady: bool
) -> list[Finding]:
    """Return what needs gradients: C1, C6 and C7."""
    found = attempt("gradients", lambda: gradients(model, x, y, threat, seed))
    known = reachable(model, x[:1], y[:1])
    few, labels = x[:FEW], y[:FEW]
    if not known or unsteady:
        why = "the model is randomised" if known else "there are no gradients"
        return [*found, *(finding(name, "skipped", why) for name in ("smooth", "eps-zero"))]
    found += attempt("smooth", lambda: smooth(model, few, labels, threat, seed))
    found += attempt("eps-zero", lambda: inputs.eps_zero(model, few, labels, threat, seed))
    return found
