"""Checks of what a model returns: C2, C3, C8, C23 and C24."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from equipoise.attacks.core import guest
from equipoise.evaluation.checks.finding import finding, listed, plural
from equipoise.evaluation.checks.model import kind_of, logits_of
from equipoise.evaluation.judge import misfit
from equipoise.store.finding import Finding, Status

PASSES = 5  # how often the same inputs are shown
ALONE = 8  # how many inputs are shown one at a time
CLOSE = 1e-4  # the rounding of float32, relative to the largest logit
CLOSE_SHORT = 1e-2  # the same where kernels depend on the size of the batch
PROBABLE = 1e-5  # how close to probabilities outputs must be to be taken for them


def logits(out: Tensor, y: Tensor, classes: int | None) -> Finding:
    """C3: whether the outputs are finite logits, one for each class.

    Arguments:
        out: What the model returned, with shape (N, K).
        y: The labels, with shape (N,).
        classes: The number of classes, where it is known.
    """
    if problem := misfit(out, y, classes):
        return finding("logits", "failed", problem, "return one logit a class, (N, K)")
    broken = int((~torch.isfinite(out).all(1)).sum())
    if broken:
        message = f"the outputs on {broken} of {len(out)} inputs are NaN or infinite"
        return finding("logits", "failed", message, "check weights and normalisation", n=broken)
    low, high = float(out.min()), float(out.max())
    within = low >= -PROBABLE and high <= 1 + PROBABLE
    if within and bool(((out.sum(1) - 1).abs() <= PROBABLE).all()):
        message = (
            "the model returns probabilities, not logits: gradients vanish behind a softmax "
            "and the accuracy looks too good"
        )
        return finding("logits", "failed", message, "remove the last softmax", low=low, high=high)
    if within and low < 0.05 and high > 0.95:
        message = f"all outputs lie in [{low:.3g}, {high:.3g}], as behind a sigmoid: it saturates"
        return finding(
            "logits", "warning", message, "return what goes into it", low=low, high=high
        )
    message = f"finite logits of {out.shape[1]} classes in [{low:.3g}, {high:.3g}]"
    return finding("logits", "ok", message, low=low, high=high)


def few_classes(k: int) -> Finding:
    """C23: which losses of the attacks are defined for so few classes."""
    if k >= 4:
        return finding("few-classes", "ok", f"{k} classes: every loss is defined", classes=k)
    loss = "the margin takes the place of DLR" if k == 2 else "DLR is used untargeted"
    targets = plural(k - 1, "wrong class").replace("classs", "classes")
    message = f"{k} classes: {loss}, targeted attacks have {targets}"
    return finding("few-classes", "ok", message, classes=k)


def randomised(model: nn.Module, x: Tensor, passes: int) -> Finding:
    """C24: whether the model answers the same inputs in the same way.

    Arguments:
        model: The model.
        x: A few inputs, with shape (N, ...).
        passes: Over how many passes verdicts are averaged.
    """
    outs = [logits_of(model, x) for _ in range(PASSES)]
    apart = max(_apart(outs[0], out) for out in outs[1:])
    answers = torch.stack([out.argmax(1) for out in outs])
    moved = int((answers != answers[0]).any(0).sum())
    if apart <= CLOSE:
        message = f"{PASSES} passes agree to {apart:.1g} of the largest logit"
        return finding("randomised", "ok", message, apart=apart)
    message = (
        f"the model is randomised: {PASSES} passes over the same inputs differ by {apart:.2g} of "
        f"the largest logit, and the answer on {moved} of {len(x)} inputs"
    )
    if passes > 1:
        message += f"; verdicts are of the average of {passes} passes"
        remedy = "more passes give the attacks better gradients and the verdicts less luck"
        return finding("randomised", "warning", message, remedy, apart=apart, moved=moved)
    message += "; a verdict of one pass is luck"
    remedy = "average over passes in attacks and verdicts, or switch the noise off"
    return finding("randomised", "failed", message, remedy, apart=apart, moved=moved)


def eval_mode(model: nn.Module, changed: Callable[[], set[str]], came_training: bool) -> Finding:
    """C2: whether ``eval()`` reaches every layer, and statistics stay as they are.

    Arguments:
        model: The model, after it was run.
        changed: Names its tensors that have changed.
        came_training: Whether it was handed over in training mode.
    """
    buffers = sorted(changed() & set(dict(model.named_buffers())))
    with guest(model):
        stuck = [
            f"{n or 'model'} ({type(m).__name__})" for n, m in model.named_modules() if m.training
        ]
    remedy = "let train(False) reach every layer: a layer in training mode sees the batch"
    if buffers:
        message = f"a forward pass changed {listed(buffers, 3)}: it is in training mode"
        return finding("eval-mode", "failed", message, remedy, changed=len(buffers))
    if stuck:
        message = f"after eval() still in training mode: {listed(stuck, 3)}"
        return finding("eval-mode", "warning", message, remedy, stuck=len(stuck))
    came = "came in training mode, was evaluated in" if came_training else "is in"
    return finding("eval-mode", "ok", f"the model {came} eval mode; no statistics move")


def repeatable(model: nn.Module, x: Tensor, random: bool) -> Finding:
    """C2: whether logits are the same whatever else is in the batch.

    Arguments:
        model: The model.
        x: A few inputs, with shape (N, ...).
        random: Whether the model is known to be randomised.
    """
    if random:
        return finding("repeatable", "skipped", "a randomised model never repeats itself")
    together = logits_of(model, x)
    few = x[:ALONE]
    remedy = "let no layer look at the batch (BatchNorm in training mode does)"
    try:
        alone = logits_of(model, few, batch_size=1)
    except Exception as error:  # BatchNorm in training mode refuses a single value a channel
        message = f"the model fails on a single input: {kind_of(error)}"
        return finding("repeatable", "failed", message, remedy)
    apart = _apart(together[: len(few)], alone)
    limit = CLOSE if x.device.type == "cpu" else CLOSE_SHORT
    message = (
        f"logits of single inputs and of a batch of {len(x)} differ by {apart:.1g} of the "
        "largest logit"
    )
    status: Status = "ok" if apart <= limit else "failed"
    meaning = ": the answer depends on the batch"
    return finding("repeatable", status, message, remedy, meaning, apart=apart)


def dynamic(model: nn.Module, x: Tensor, changed: Callable[[], set[str]]) -> Finding:
    """C8: whether a forward pass computes gradients or changes parameters.

    Without gradients around it, no operation of an ordinary model keeps a tensor for a backward
    pass.

    Arguments:
        model: The model.
        x: A few inputs, with shape (N, ...).
        changed: Names its tensors that have changed.
    """
    packed, unpacked = [0], [0]

    def pack(tensor: Tensor) -> Tensor:
        packed[0] += 1
        return tensor

    def unpack(tensor: Tensor) -> Tensor:
        unpacked[0] += 1
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        logits_of(model, x)
    parameters = sorted(changed() & set(dict(model.named_parameters())))
    remedy = "attack the loop itself (differentiate through it, or adapt to its fixed point)"
    measured = {"saved": packed[0], "used": unpacked[0], "changed": len(parameters)}
    if parameters:
        message = f"a forward pass changed the parameters {listed(parameters, 3)}"
        return finding("dynamic", "failed", message, remedy, **measured)
    if unpacked[0]:
        message = "a forward pass computes gradients: the defence optimises at test time"
        return finding("dynamic", "failed", message, remedy, **measured)
    if packed[0]:
        message = "a forward pass switches gradients on: the defence may optimise at test time"
        return finding("dynamic", "warning", message, remedy, **measured)
    message = "forward passes compute no gradients and change no parameters"
    return finding("dynamic", "ok", message, **measured)


def _apart(a: Tensor, b: Tensor) -> float:
    """Return the largest difference of logits, relative to the largest logit of the input."""
    scale = a.abs().amax(1, keepdim=True).clamp_min(1e-12)
    return float(((a - b).abs() / scale).nan_to_num(nan=1.0, posinf=1.0).max())
