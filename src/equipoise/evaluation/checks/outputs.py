"""Checks of the outputs of a model: C2, C3, C8, C23 and C24."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from equipoise.errors import one_line
from equipoise.evaluation.checks.finding import finding, listed, plural, sign_test, skipped
from equipoise.evaluation.judge import logits_of, misfit
from equipoise.execution.form import guest
from equipoise.store.finding import Finding, Status

PASSES = 5  # forward passes over the same inputs
ALONE = 8  # inputs that are passed one at a time
FITS = 0.5  # the least accuracy of another order of the outputs that is reported
UNLIKELY = 0.001
CLOSE = 1e-4  # the rounding of float32, relative to the largest logit
CLOSE_SHORT = 1e-2  # the same where kernels depend on the size of the batch
PROBABLE = 1e-5  # the largest difference of outputs from probabilities


def logits(out: Tensor, y: Tensor, classes: int | None) -> Finding:
    """C3: whether outputs with shape (N, K) are finite logits, one for each class."""
    if problem := misfit(out, y, classes):
        remedy = "return one finite logit for each class; for NaN check weights and normalisation"
        return finding("logits", "failed", problem, remedy)
    low, high = float(out.min()), float(out.max())
    status: Status = "ok"
    message, remedy = f"finite logits of {out.shape[1]} classes in [{low:.3g}, {high:.3g}]", ""
    within = low >= -PROBABLE and high <= 1 + PROBABLE
    if within and bool(((out.sum(1) - 1).abs() <= PROBABLE).all()):
        message = (
            "the model returns probabilities, not logits: gradients vanish behind a softmax, and "
            "the accuracy looks too good"
        )
        status, remedy = "failed", "remove the last softmax"
    elif within and low < 0.05 and high > 0.95:
        message = f"all outputs lie in [{low:.3g}, {high:.3g}], as behind a sigmoid: it saturates"
        status, remedy = "warning", "return the values before the sigmoid"
    return finding("logits", status, message, remedy, low=low, high=high)


def few_classes(k: int) -> Finding:
    """C23: which losses of the attacks are defined for so few classes."""
    if k >= 4:
        return finding("few-classes", "ok", f"{k} classes: every loss is defined", classes=k)
    loss = "the margin replaces DLR" if k == 2 else "DLR is used untargeted"
    targets = plural(k - 1, "wrong class").replace("classs", "classes")
    message = f"{k} classes: {loss}, targeted attacks have {targets}"
    return finding("few-classes", "ok", message, classes=k)


def randomised(model: nn.Module, x: Tensor, passes: int) -> Finding:
    """C24: whether a few inputs have the same outputs in every pass.

    ``passes`` is the number of forward passes over which verdicts are averaged.
    """
    outs = [logits_of(model, x) for _ in range(PASSES)]
    apart = max(_apart(outs[0], out) for out in outs[1:])
    predictions = torch.stack([out.argmax(1) for out in outs])
    moved = int((predictions != predictions[0]).any(0).sum())
    if apart <= CLOSE:
        message = f"{PASSES} passes differ by at most {apart:.1g} of the largest logit"
        return finding("randomised", "ok", message, apart=apart)
    message = (
        f"the model is random: {PASSES} passes over the same inputs differ by {apart:.2g} of the "
        f"largest logit, and in the prediction on {moved} of {len(x)} inputs"
    )
    if passes > 1:
        message += f"; verdicts are of the average of {passes} passes"
        remedy = "more passes give the attacks better gradients, and the verdicts less chance"
        return finding("randomised", "warning", message, remedy, apart=apart, moved=moved)
    message += "; a verdict of one pass is chance"
    remedy = "average over passes in attacks and verdicts (--passes), or switch the noise off"
    return finding("randomised", "failed", message, remedy, apart=apart, moved=moved)


def eval_mode(model: nn.Module, changed: Callable[[], set[str]], came_training: bool) -> Finding:
    """C2: whether ``eval()`` reaches every layer, and forward passes change no statistics."""
    buffers = sorted(changed() & set(dict(model.named_buffers())))
    with guest(model):
        stuck = [
            f"{n or 'model'} ({type(m).__name__})" for n, m in model.named_modules() if m.training
        ]
    remedy = "let train(False) reach every layer: a layer in training mode depends on the batch"
    if buffers:
        message = f"a forward pass changed {listed(buffers, 3)}: it is in training mode"
        return finding("eval-mode", "failed", message, remedy, changed=len(buffers))
    if stuck:
        message = f"after eval() still in training mode: {listed(stuck, 3)}"
        return finding("eval-mode", "warning", message, remedy, stuck=len(stuck))
    came = "came in training mode, was evaluated in" if came_training else "is in"
    return finding("eval-mode", "ok", f"the model {came} eval mode; no statistics change")


def repeatable(model: nn.Module, x: Tensor, random: bool) -> Finding:
    """C2: whether the logits of an input are the same in every batch."""
    if random:
        return skipped(["repeatable"], "the outputs of a random model always differ")[0]
    together, few = logits_of(model, x), x[:ALONE]
    remedy = "let no layer depend on the batch (BatchNorm in training mode does)"
    try:
        alone = logits_of(model, few, batch_size=1)
    except Exception as error:  # BatchNorm in training mode refuses a single value for a channel
        message = f"the model fails on a single input: {one_line(error)}"
        return finding("repeatable", "failed", message, remedy)
    apart = _apart(together[: len(few)], alone)
    limit = CLOSE if x.device.type == "cpu" else CLOSE_SHORT
    message = (
        f"logits of single inputs and of a batch of {len(x)} differ by {apart:.1g} of the "
        "largest logit"
    )
    status: Status = "ok" if apart <= limit else "failed"
    meaning = ": the prediction depends on the batch"
    return finding("repeatable", status, message, remedy, meaning, apart=apart)


def dynamic(model: nn.Module, x: Tensor, changed: Callable[[], set[str]]) -> Finding:
    """C8: whether a forward pass computes gradients or changes parameters.

    Without gradients, no operation of an ordinary model saves a tensor for a backward pass.
    """
    saved, used = [], []

    def pack(tensor: Tensor) -> Tensor:
        saved.append(1)
        return tensor

    def unpack(tensor: Tensor) -> Tensor:
        used.append(1)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        logits_of(model, x)
    parameters = sorted(changed() & set(dict(model.named_parameters())))
    status: Status = "failed" if parameters or used else "warning" if saved else "ok"
    message = "forward passes compute no gradients and change no parameters"
    if parameters:
        message = f"a forward pass changed the parameters {listed(parameters, 3)}"
    elif used:
        message = "a forward pass computes gradients: the defence optimises at test time"
    elif saved:
        message = "a forward pass switches gradients on: the defence may optimise at test time"
    remedy = "attack the loop itself (differentiate through it, or adapt to its fixed point)"
    measured = {"saved": len(saved), "used": len(used), "changed": len(parameters)}
    return finding("dynamic", status, message, remedy, **measured)


def class_order(logits: Tensor, y: Tensor) -> list[Finding]:
    """C27: whether the labels are numbered in another order than the outputs.

    The order of the outputs that fits best is found on every second example, and tried on the
    others; there is a finding only where it is right far more often.
    """
    from scipy.optimize import linear_sum_assignment

    predicted, k = logits.argmax(1).cpu(), logits.shape[1]
    labels = y.cpu()
    counts = torch.zeros(k, k, dtype=torch.int64)
    ones = torch.ones(len(labels[::2]), dtype=torch.int64)
    counts.index_put_((labels[::2], predicted[::2]), ones, accumulate=True)
    _, outputs = linear_sum_assignment(counts.numpy(), maximize=True)
    order, rest = torch.from_numpy(outputs), labels[1::2]
    here, there = predicted[1::2] == rest, predicted[1::2] == order[rest]
    won, lost = int((there & ~here).sum()), int((here & ~there).sum())
    right, wrong = float(there.double().mean()), float(here.double().mean())
    if right < FITS or wrong > right / 2 or sign_test(won, lost) >= UNLIKELY:
        return []
    present = sorted(set(labels.tolist()))
    moved = [
        f"{label} is output {int(order[label])}" for label in present if order[label] != label
    ]
    message = (
        f"accuracy is {wrong:.0%} with the classes as they are numbered, and {right:.0%} in "
        f"another order of the outputs: label {listed(moved)}"
    )
    remedy = "number the classes as the model does: --classes FILE has their names in its order"
    measured = {"accuracy": wrong, "reordered": right, "won": won}
    return [finding("class-order", "failed", message, remedy, **measured)]


def _apart(a: Tensor, b: Tensor) -> float:
    """Return the largest difference of logits, relative to the largest logit of the input."""
    scale = a.abs().amax(1, keepdim=True).clamp_min(1e-12)
    return float(((a - b).abs() / scale).nan_to_num(nan=1.0, posinf=1.0).max())
