"""Gamma at the end of a training: models between its branches are measured, and one is kept.

The trunk as it was at t', averaged, is the reference for ``max_clean_drop``. What is compared are
point estimates on the same held-out images; ``equipoise pick`` has bounds.
"""

import math
import time
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from typing import Any

from equipoise.data.core import Images
from equipoise.data.sampling import drawn_again
from equipoise.errors import RunError
from equipoise.evaluation.judge import Judge
from equipoise.evaluation.protocol import Protocol
from equipoise.fronts.front import CHOSEN, Front
from equipoise.fronts.line import BatchNorms
from equipoise.fronts.record import FILE, Point
from equipoise.fronts.survey import DEFAULT
from equipoise.jobs import signals
from equipoise.measures.by_class import classes_in_words
from equipoise.report.front import write_picture
from equipoise.settings.explanation import GRID, MOST_IMAGES, choice_in_words
from equipoise.settings.methods import A3GT
from equipoise.settings.recipe import Recipe
from equipoise.store.digests import model_digest
from equipoise.store.runs import Run
from equipoise.store.weight_names import PAIR
from equipoise.terminal.progress import Console
from equipoise.training.learner import Learner
from equipoise.training.loop import Training

FEW = 100  # images with which a choice is coarse


def best(points: Sequence[Point], least: float) -> Point:
    """Return the most robust model whose clean accuracy is at least ``least``.

    Of equally robust ones it is the one with the higher clean accuracy, then the one with the
    smaller gamma. If no model has it, it is the one with the highest clean accuracy, and of these
    the most robust one.
    """
    meeting = [point for point in points if point.clean_accuracy >= least - 1e-9]
    if meeting:
        return max(meeting, key=lambda p: (p.robust, p.clean, -p.gamma))
    return max(points, key=lambda p: (p.clean, p.robust, -p.gamma))


def choose_gamma(
    run: Run, training: Training, recipe: Recipe, console: Console
) -> Mapping[str, Any] | None:
    """Measure models between the branches, keep one as ``model``, and return the choice.

    The learners' weights must be in the run folder. Models that are measured already are not
    measured again, so that a training that was stopped here goes on here.

    Arguments:
        run: The folder of the training.
        training: The training, at its end.
        recipe: Its recipe.
        console: Where progress is shown.

    Returns:
        The content of ``choice`` in ``summary.json``; None if both branches are the same.

    Raises:
        RunError: If it is interrupted; the models that are measured are kept.
    """
    settings = recipe.settings
    assert isinstance(settings, A3GT)
    if model_digest(run.model("learner-clean")) == model_digest(run.model("learner-robust")):
        console.warn("the branches have the same weights: there is no gamma to choose")
        return None
    device = training.images.x.device
    batchnorm: BatchNorms = "estimate" if settings.batchnorm == "estimate" else "average"
    front = Front(run.path, ends=PAIR, batchnorm=batchnorm, device=device)
    validation = front.images.validation
    protocol = Protocol(attacks=DEFAULT)
    if len(validation) > MOST_IMAGES:
        protocol = replace(protocol, n=MOST_IMAGES)
    console.say(
        f"gamma is chosen: {len(GRID)} models between the branches on "
        f"{min(len(validation), MOST_IMAGES)} held-out images, {' then '.join(DEFAULT)}"
    )
    began = time.monotonic()
    try:
        with signals.interrupting(), console.progress():
            points = front.measure(protocol, gammas=GRID, console=console)
    except KeyboardInterrupt:
        raise RunError(
            "stopped while gamma was chosen: the finished models are kept; continue with: "
            f"{run.again}"
        ) from None
    record = front.record
    held_out, _ = drawn_again(validation, record.n, record.sample)
    trunk = _clean_accuracy(training.learners[str(training.method.trunk)], held_out)
    least = trunk - settings.max_clean_drop if settings.min_clean is None else settings.min_clean
    kept = best(points, least)
    marked = tuple(replace(p, mark=CHOSEN if p is kept else "") for p in points)
    run.write_json(FILE, replace(record, points=marked).content())
    write_picture(front.record, run.path)
    run.write_model("model.safetensors", front.model(kept.gamma).state_dict())
    return {
        "gamma": kept.gamma,
        "rule": choice_in_words(settings),
        "trunk_clean_accuracy": trunk,
        "least_clean_accuracy": least,
        "warnings": _warnings(kept, least),
        "n": record.n,
        "attacks": list(record.attacks),
        "points": [
            {
                "gamma": point.gamma,
                "clean_accuracy": point.clean_accuracy,
                "robust_accuracy": point.robust_accuracy,
                **point.by_class,
            }
            for point in points
        ],
        "gradient_evaluations": sum(point.backwards for point in points),
        "seconds": time.monotonic() - began,
    }


def _clean_accuracy(trunk: Learner, images: Images) -> float:
    """Return the clean accuracy of the trunk's running average, which ended at t'."""
    model = deepcopy(trunk.model)
    model.load_state_dict(trunk.merged_part())
    answers = Judge(model.eval()).logits(images.pixels()).argmax(1)
    return int((answers == images.y).sum()) / len(images.y)


def _warnings(kept: Point, least: float) -> list[str]:
    """Return the warnings about a choice, a sentence each."""
    n, missed, found = kept.n, least - kept.clean_accuracy, list[str]()
    if missed > 1e-9:
        found.append(
            f"no model between the branches has {least:.2%} clean accuracy: the most accurate one "
            f"is kept, {100 * missed:.1f} points below"
        )
    if n < FEW:
        found.append(
            f"gamma is chosen on {n} held-out images, where an accuracy is known to about "
            f"1/sqrt(n) = {100 / math.sqrt(n):.0f} points: hold out more (validation=)"
        )
    return found


def in_lines(choice: Mapping[str, Any]) -> list[str]:
    """Return the measured models as the lines of a small table, and the rule."""
    rows = [
        f"  {p['gamma']:<5g}  {p['clean_accuracy']:7.2%}  {p['robust_accuracy']:7.2%}"
        + (f"  {of_classes}" if (of_classes := classes_in_words(p)) else "")
        + ("  kept" if p["gamma"] == choice["gamma"] else "")
        for p in choice["points"]
    ]
    trunk = f"the trunk had {choice['trunk_clean_accuracy']:.2%} clean accuracy"
    return [
        f"  gamma  {'clean':>7}  {'robust':>7}  on {choice['n']} held-out images",
        *rows,
        f"kept gamma = {choice['gamma']:g}: {choice['rule']}; {trunk} (point estimates)",
    ]
