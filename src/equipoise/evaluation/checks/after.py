"""Checks of what an evaluation found: C5, C13, C15, C16, C19 and C20."""

from collections.abc import Iterable, Mapping
from functools import reduce
from operator import or_

import torch
from torch import Tensor, nn

from equipoise.evaluation.checks.finding import finding, graded, listed, plural
from equipoise.evaluation.checks.model import correct_of, exact_of, preserved
from equipoise.measures.statistics import interval
from equipoise.store.finding import Finding
from equipoise.threat import Threat

RARE, OFTEN = 0.002, 0.05  # shares that are tolerated, see each check

# Attacks by the beginning of the last part of their names, weaker ones of a loss left out.
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
    """Check what the attacks of an evaluation found, without the model.

    Arguments:
        verdicts: For each attack by name (``"autoattack/apgd-ce"`` for a stage) whether each
            example withstood it, with shape (N,).
        correct: Which clean inputs are classified correctly, with shape (N,).
        attacked: For each attack which examples it was run on; by default the correct ones.
        rejected: For each attack how many of its points were outside the threat.
        margin: By how much the strongest point that was kept of each example is classified
            correctly, with shape (N,); infinite where there is none.
        distance: How far that point is from its input, in the norm of the threat, with shape (N,).
        threat: What attacks were allowed.
        control: An undefended model's verdicts on the same inputs at the same eps, with shape
            (N,), or its robust accuracy in [0, 1].

    Returns:
        A finding for each check.
    """
    shown = {name: correct & (attacked or {}).get(name, correct) for name in verdicts}
    broken = {name: shown[name] & ~verdict for name, verdict in verdicts.items()}
    robust = correct & ~_any(broken.values(), correct)
    return [
        _constraint(rejected or {}, distance, threat),
        _black_box(broken, shown, correct),
        _lost(broken, margin, correct),
        _masking(broken, shown, correct),
        _control(control, robust),
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
        seen = f"; the farthest kept point is {float(distance.max()):.6g} away ({threat!r})"
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
    """C13: whether attacks without gradients fooled what those with gradients did not."""
    blind = [name for name in broken if _family(name) == "black-box"]
    sighted = [name for name in broken if name not in blind]
    if not blind or not sighted:
        what = "without" if sighted else "with"
        return finding("black-box-full", "skipped", f"no attack {what} gradients was run")
    fair = _any((shown[name] for name in sighted), correct)
    white = _any((broken[name] for name in sighted), correct)
    only = fair & ~white & _any((broken[name] for name in blind), correct)
    count, n = int(only.sum()), int(correct.sum())
    status = graded(count, n, amber=RARE, red=OFTEN)
    message = f"{' and '.join(blind)} fooled {count} of {n} examples that gradients did not"
    remedy = "look for a layer without a useful gradient; attack it with a smooth stand-in"
    meaning = f" (rows {listed(only.nonzero()[:, 0])}): gradients are masked"
    return finding("black-box-full", status, message, remedy, meaning, count=count, n=n)


def _lost(broken: Mapping[str, Tensor], margin: Tensor | None, correct: Tensor) -> Finding:
    """C16: whether a misclassified point is kept of each example that some attack broke."""
    if margin is None or not broken:
        return finding("lost", "skipped", "no points were kept")
    lost = _any(broken.values(), correct) & (margin > 0)
    count = int(lost.sum())
    if count:
        message = (
            f"{plural(count)} counted as fooled (rows {listed(lost.nonzero()[:, 0])}), but the "
            "kept point is classified correctly"
        )
        remedy = "keep the strongest point so far, not the last one"
        return finding("lost", "failed", message, remedy, count=count)
    return finding("lost", "ok", "a misclassified point is kept of each fooled example", count=0)


def _masking(
    broken: Mapping[str, Tensor], shown: Mapping[str, Tensor], correct: Tensor
) -> Finding:
    """C19: whether margins fooled many that cross-entropy did not."""
    groups = {
        family: [name for name in broken if _family(name) == family]
        for family in ("cross-entropy", "margin")
    }
    if not all(groups.values()):
        missing = next(family for family, names in groups.items() if not names)
        return finding(
            "masking-full", "skipped", f"no long attack on {missing} was run to compare"
        )
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
    """C20: what an undefended model scores at the same eps on the same inputs."""
    n = len(robust)
    if control is None:
        message = "it is not known how an undefended model fares at this eps"
        remedy = "evaluate an undefended model on the same inputs at the same eps"
        return finding("control", "skipped", message, remedy)
    if not n:
        return finding("control", "skipped", "there are no examples")
    twin = float(control.double().mean()) if isinstance(control, Tensor) else float(control)
    own = float(robust.double().mean())
    message = f"an undefended model is right on {twin:.1%} at this eps, this one on {own:.1%}"
    measured = {"control": twin, "robust": own, "n": n}
    high = interval(round(twin * n), n)[1]
    if own > 0.01 and interval(round(twin * n), n)[0] > 0.01 and own <= high:
        message += ": the defence shows no gain, or eps is too small to tell"
        remedy = "raise eps, or evaluate more examples"
        return finding("control", "warning", message, remedy, **measured)
    return finding("control", "ok", message, **measured)


def transfer(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    threat: Threat,
    others: Mapping[str, Tensor],
    withstood: Tensor,
    *,
    seed: int = 0,
) -> tuple[Finding, Tensor]:
    """C15: whether points made against other models fool examples that withstood.

    Each costs one forward pass on the examples that withstood.

    Arguments:
        model: The model; it is left as it was.
        x: The inputs, with shape (N, ...).
        y: The labels, with shape (N,).
        threat: What is allowed; points outside it do not count.
        others: Points for the same inputs by the name of where they are from, with the shape of
            ``x``; e.g. of the undefended twin, or of another run.
        withstood: Which examples withstood every attack with gradients, with shape (N,).
        seed: The seed of a randomised model.

    Returns:
        The finding, and which of the examples were fooled, with shape (N,).
    """
    fooled = torch.zeros_like(withstood)
    by: list[str] = []
    with preserved(exact_of(model), seed, x.device):
        for name, points in others.items():
            if points.shape != x.shape:
                continue
            points = points.to(x)
            rows = (withstood & ~fooled & threat.contains(x, points)).nonzero()[:, 0]
            if len(rows):
                hit = rows[~correct_of(model, points[rows], y[rows])]
                fooled[hit] = True
                by += [f"{len(hit)} by {name}"] if len(hit) else []
    return _transferred(fooled, by, others), fooled


def _transferred(fooled: Tensor, by: list[str], others: Mapping[str, Tensor]) -> Finding:
    count, n = int(fooled.sum()), len(fooled)
    if not others:
        message = "no points made against other models were at hand"
        remedy = "evaluate an undefended model on the same inputs first"
        return finding("transfer", "skipped", message, remedy)
    status = graded(count, n, amber=RARE, red=OFTEN)
    message = f"points from {' and '.join(others)} fool {count} of {n} examples that withstood"
    remedy = "count them as fooled, and attack with more steps, restarts and other losses"
    meaning = f" ({', '.join(by)}; rows {listed(fooled.nonzero()[:, 0])}): gradients mislead"
    return finding("transfer", status, message, remedy, meaning, count=count, n=n)
