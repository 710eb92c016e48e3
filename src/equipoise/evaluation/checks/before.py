"""The checks before any attack: cheap, and enough to refuse most broken set-ups."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from equipoise.errors import one_line
from equipoise.evaluation.checks import inputs, outputs
from equipoise.evaluation.checks.finding import attempts, finding, skipped
from equipoise.evaluation.checks.gradients import gradients, reachable, smooth
from equipoise.evaluation.checks.model import preserved, sampled
from equipoise.evaluation.judge import exact_of, logits_of
from equipoise.store.finding import Finding
from equipoise.threat import Threat

SCALED = 200  # examples on which scalings of the inputs are compared
SHOWN = 64  # examples for the other checks
FEW = 16  # examples for checks of many passes


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
        threat: What attacks may change.
        seed: The seed of all that is random in the checks.
        classes: The number of classes; None: unknown.
        original_training: Whether the model was handed over in training mode.
        passes: The forward passes of a verdict, for a random model.

    Returns:
        A finding for each check; an error in a check is its finding.
    """
    model = exact_of(model)
    findings = attempts({"range": lambda: inputs.in_range(x, threat)})
    rows = sampled(x, torch.ones_like(y, dtype=torch.bool), SCALED, seed)
    some, labels = x[rows], y[rows]
    with preserved(model, seed, x.device) as changed:
        try:
            out = logits_of(model, some)
            findings.append(outputs.logits(out, labels, classes))
        except Exception as error:  # a user's model may raise anything
            message = f"the model fails on these inputs: {one_line(error)}"
            return [*findings, finding("logits", "failed", message, "run it on them by hand")]
        k = out.shape[1] if out.ndim == 2 and len(out) == len(labels) else 0
        if k < 2 or int(labels.max()) >= k:
            return findings
        findings.append(outputs.few_classes(k))
        findings += attempts({"class-order": lambda: outputs.class_order(out, labels)})
        if bool(some.isfinite().all()):
            given = findings[0]
            scaled = {"range": lambda: inputs.scaling(model, some, labels, threat, given)}
            findings[:1] = attempts(scaled)
        correct = out.argmax(1) == labels
        rows = sampled(some, correct if bool(correct.any()) else ~correct, SHOWN, seed)
        some, labels = some[rows], labels[rows]
        findings += _forward(model, some, passes, changed, original_training)
        random = any(f.check == "randomised" and f.status != "ok" for f in findings)
        return findings + _backward(model, some, labels, threat, seed, random)


def _forward(
    model: nn.Module, x: Tensor, passes: int, changed: Callable[[], set[str]], training: bool
) -> list[Finding]:
    """Return the findings of checks that need forward passes alone: C2, C8 and C24."""
    findings = attempts({"randomised": lambda: outputs.randomised(model, x, passes)})
    random = findings[0].status != "ok"
    return findings + attempts(
        {
            "dynamic": lambda: outputs.dynamic(model, x[:FEW], changed),
            "repeatable": lambda: outputs.repeatable(model, x, random),
            "eval-mode": lambda: outputs.eval_mode(model, changed, training),
        }
    )


def _backward(
    model: nn.Module, x: Tensor, y: Tensor, threat: Threat, seed: int, random: bool
) -> list[Finding]:
    """Return the findings of checks that need gradients: C1, C6 and C7."""
    findings = attempts({"gradients": lambda: gradients(model, x, y, threat, seed)})
    few, labels = x[:FEW], y[:FEW]
    checks = {
        "smooth": lambda: smooth(model, few, labels, threat, seed),
        "eps-zero": lambda: inputs.eps_zero(model, few, labels, threat, seed),
    }
    if not reachable(model, x[:1], y[:1]):
        return findings + skipped(checks, "there are no gradients")
    return findings + (skipped(checks, "the model is random") if random else attempts(checks))
