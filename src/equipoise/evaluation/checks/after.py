"""Checks of the results of the attacks: C5, C13, C15, C16, C19 and C20."""

from collections.abc import Iterable, Mapping
from functools import reduce
from operator import or_

import torch
from torch import Tensor, nn

from equipoise.evaluation.checks.finding import finding, graded, listed, plural
from equipoise.evaluation.checks.model import preserved
from equipoise.evaluation.judge import correct_of, exact_of
from equipoise.measures.statistics import interval
from equipoise.store.finding import Finding
from equipoise.threat import Threat

RARE, OFTEN = 0.002, 0.05  # tolerated shares, see each check

# Attacks by the beginning of the last part of their names; attacks that are much weaker than
# others with the same loss are left out.
_BLACK_BOX = ("square", "noise")
_CROSS_ENTROPY = ("apgd-ce", "pgd", "mi-fgsm")
_MARGIN = ("apgd-dlr", "cw-inf")
_ON_MARGIN = ("loss=margin", "loss='margin'", "loss=dlr", "loss='dlr'")


def after(
    verdicts: Mapping[str, Tensor],
    correct: Tensor,
    *,
    attacked: Mapping[str, Tensor] | None = None,
    rejected: Mapping[str, int] | None = None,
    margin: Tensor | None = None,
    distance: Tensor | None = None,
    threat: Threat | None = None,
    control: Tensor | float | None = None,
) -> list[Finding]:
    """Check the results of the attacks of an evaluation, without the model.

    Arguments:
        verdicts: For each attack by name (``"autoattack/apgd-ce"`` for a stage) whether each
            example stays correct, with shape (N,).
        correct: Which clean inputs are classified correctly, with shape (N,).
        attacked: For each attack which examples it attacked; by default the correct ones.
        rejected: For each attack the number of its points outside the threat.
        margin: The margin of the strongest point of each example, with shape (N,); above 0 where
            it is classified correctly, infinite where there is none.
        distance: The distance of that point from its input, in the norm of the threat, with shape
            (N,).
        threat: What attacks may change.
        control: An undefended model's verdicts on the same inputs at the same eps, with shape
            (N,), or its robust accuracy in [0, 1].

    Returns:
        A finding for each check.
    """
    shown = {name: correct & (attacked or {}).get(name, correct) for name in verdicts}
    broken = {name: shown[name] & ~verdict for name, verdict in verdicts.items()}
    return [
        _constraint(rejected or {}, distance, threat),
        _black_box(broken, shown, correct),
        _lost(broken, margin, correct),
        _masking(broken, shown, correct),
        _control(control, correct & ~_any(broken.values(), correct)),
    ]


def _any(flags: Iterable[Tensor], like: Tensor) -> Tensor:
    return reduce(or_, flags, torch.zeros_like(like))


def _constraint(
    rejected: Mapping[str, int], distance: Tensor | None, threat: Threat | None
) -> Finding:
    """C5: whether attacks stayed within the threat."""
    outside = {name: count for name, count in rejected.items() if count}
    measured: dict[str, float] = {"outside": sum(outside.values())}
    seen = ""
    if distance is not None and threat is not None and len(distance):
        measured |= {"distance": float(distance.max()), "eps": threat.eps}
        seen = f"; the largest distance of a kept point is {measured['distance']:.6g} ({threat!r})"
    if outside:
        each = ", ".join(f"{count} of {name}" for name, count in outside.items())
        message = f"points outside the threat did not count: {each}{seen}"
        remedy = "let the attack project onto the ball and the range, in units of the inputs"
        return finding("constraint", "failed", message, remedy, **measured)
    return finding("constraint", "ok", f"all points lie within the threat{seen}", **measured)


def _family(name: str) -> str:
    last = name.rpartition("/")[2].lower().replace(" ", "")
    if last.startswith(_BLACK_BOX):
        return "black-box"
    if last.startswith(_MARGIN) or any(text in last for text in _ON_MARGIN):
        return "margin"
    return "cross-entropy" if last.startswith(_CROSS_ENTROPY) else "other"


def _black_box(
    broken: Mapping[str, Tensor], shown: Mapping[str, Tensor], correct: Tensor
) -> Finding:
    """C13: whether attacks without gradients fooled examples that the others did not."""
    black_box = [name for name in broken if _family(name) == "black-box"]
    others = [name for name in broken if name not in black_box]
    if not black_box or not others:
        what = "without" if others else "with"
        return finding("black-box-full", "skipped", f"no attack {what} gradients was run")
    attacked = _any((shown[name] for name in others), correct)
    by_gradients = _any((broken[name] for name in others), correct)
    only = attacked & ~by_gradients & _any((broken[name] for name in black_box), correct)
    count, n = int(only.sum()), int(correct.sum())
    status = graded(count, n, amber=RARE, red=OFTEN)
    message = f"{' and '.join(black_box)} fooled {count} of {n} examples that the others did not"
    remedy = "look for a layer without a useful gradient; attack with a smooth substitute for it"
    meaning = f" (rows {listed(only.nonzero()[:, 0])}): gradients are masked"
    return finding("black-box-full", status, message, remedy, meaning, count=count, n=n)


def _lost(broken: Mapping[str, Tensor], margin: Tensor | None, correct: Tensor) -> Finding:
    """C16: whether a misclassified point is kept of each example that some attack fooled."""
    if margin is None or not broken:
        return finding("lost", "skipped", "no points were kept")
    lost = _any(broken.values(), correct) & (margin > 0)
    count = int(lost.sum())
    if count:
        message = (
            f"{plural(count)} counted as fooled (rows {listed(lost.nonzero()[:, 0])}), although "
            "the kept point is classified correctly"
        )
        remedy = "keep the strongest point so far, not the last point"
        return finding("lost", "failed", message, remedy, count=count)
    return finding("lost", "ok", "a misclassified point is kept of each fooled example", count=0)


def _masking(
    broken: Mapping[str, Tensor], shown: Mapping[str, Tensor], correct: Tensor
) -> Finding:
    """C19: whether attacks on the margin fooled many examples that cross-entropy did not."""
    groups = {
        family: [name for name in broken if _family(name) == family]
        for family in ("cross-entropy", "margin")
    }
    if not all(groups.values()):
        missing = next(family for family, names in groups.items() if not names)
        return finding("masking-full", "skipped", f"no long attack on {missing} was run")
    ce, wide = (_any((broken[name] for name in names), correct) for names in groups.values())
    seen = _any((shown[name] for name in groups["cross-entropy"]), correct)
    tried = _any((shown[name] for name in groups["margin"]), correct)
    more, less = seen & ~ce & wide, tried & ce & ~wide
    count, n = int(more.sum()), int(correct.sum())
    gap = (count - int(less.sum())) / max(n, 1)
    status = graded(count, n, amber=OFTEN)
    message = f"margin attacks fooled {count} of {n} examples that cross-entropy did not"
    measured = {"count": count, "n": n, "gap": gap}
    remedy = "report the worst case with margin attacks (autoattack), not PGD alone"
    meaning = f" ({100 * gap:.0f} points): cross-entropy is masked on this model"
    return finding("masking-full", status, message, remedy, meaning, **measured)


def _control(control: Tensor | float | None, robust: Tensor) -> Finding:
    """C20: the robust accuracy of an undefended model at the same eps on the same inputs."""
    n = len(robust)
    if control is None:
        message = "there are no results of an undefended model at this eps"
        remedy = "evaluate an undefended model on the same inputs at the same eps"
        return finding("control", "skipped", message, remedy)
    if not n:
        return finding("control", "skipped", "there are no examples")
    undefended = float(control.double().mean()) if isinstance(control, Tensor) else float(control)
    accuracy = float(robust.double().mean())
    message = f"robust accuracy at this eps: {accuracy:.1%}; an undefended model: {undefended:.1%}"
    measured = {"control": undefended, "robust": accuracy, "n": n}
    low, high = interval(round(undefended * n), n)
    if min(accuracy, low) > 0.01 and accuracy <= high:
        message += ": the defence shows no gain, or eps is too small to show it"
        remedy = "raise eps, or evaluate more examples"
        return finding("control", "warning", message, remedy, **measured)
    return finding("control", "ok", message, **measured)


def transfer(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    threat: Threat,
    others: Mapping[str, Tensor],
    robust: Tensor,
    *,
    seed: int = 0,
) -> tuple[Finding, Tensor]:
    """C15: whether adversarial examples of other models fool examples that are still robust.

    Arguments:
        model: The model; it is left as it was. It passes each robust example forward.
        x: The inputs, with shape (N, ...).
        y: The labels, with shape (N,).
        threat: What is allowed; points outside it do not count.
        others: Points for the same inputs by the name of their source (an undefended model, or
            another run), with the shape of ``x``.
        robust: Which examples are robust under every attack with gradients, with shape (N,).
        seed: The seed of a random model.

    Returns:
        The finding, and which of the examples were fooled, with shape (N,).
    """
    fooled, by = torch.zeros_like(robust), list[str]()
    with preserved(exact_of(model), seed, x.device):
        for name, points in others.items():
            if points.shape != x.shape:
                continue
            points = points.to(x)
            rows = (robust & ~fooled & threat.contains(x, points)).nonzero()[:, 0]
            if len(rows):
                hit = rows[~correct_of(model, points[rows], y[rows])]
                fooled[hit] = True
                by += [f"{len(hit)} by {name}"] if len(hit) else []
    if not others:
        message = "there are no adversarial examples of other models"
        remedy = "evaluate an undefended model on the same inputs first"
        return finding("transfer", "skipped", message, remedy), fooled
    count, n = int(fooled.sum()), len(fooled)
    status = graded(count, n, amber=RARE, red=OFTEN)
    message = f"points of {' and '.join(others)} fool {count} of {n} examples that were robust"
    remedy = "count them as fooled, and attack with more steps, restarts and other losses"
    meaning = f" ({', '.join(by)}; rows {listed(fooled.nonzero()[:, 0])}): gradients mislead"
    return finding("transfer", status, message, remedy, meaning, count=count, n=n), fooled
