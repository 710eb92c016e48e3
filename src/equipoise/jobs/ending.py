"""How a training ended: which round is kept, by what rule, what went wrong, and the learners."""

__all__ = ["RULES", "summary", "write_learners"]

from collections.abc import Callable, Mapping
from typing import Any

from equipoise.runs import Run
from equipoise.training import Training
from equipoise.training.collapse import warnings
from equipoise.weights import learner_name

RULES: dict[str, tuple[str, Callable[[Mapping[str, float]], float]]] = {
    "balanced": (
        "the round with the highest mean of clean and robust validation accuracy",
        lambda m: m["clean_accuracy"] + m["robust_accuracy"],
    ),
    "robust": (
        "the round with the highest robust validation accuracy",
        lambda m: m["robust_accuracy"],
    ),
    "clean": (
        "the round with the highest clean validation accuracy",
        lambda m: m["clean_accuracy"],
    ),
    "last": ("the last round", lambda m: 0.0),
}


def summary(training: Training, keep: str) -> dict[str, Any]:
    """Return what ``summary.json`` says of a training that is over, but for checksums.

    Arguments:
        training: The training.
        keep: The rule for the kept round, of :data:`RULES`.
    """
    history = training.history
    handovers = [record["round"] for record in history if record["handover"]]
    apart = training.method.merge.handover.every is not None and not handovers
    never = (
        "never synchronised: the learners were trained apart to the end and their average need "
        f"not be good at anything ({history[-1]['start']['reason']})"
    )
    return {
        "finished": True,
        "rounds": len(history),
        "stopped_early": training.stopped_early,
        "kept_round": max(record["round"] for record in history if record["kept"]),
        "rule": RULES[keep][0],
        "start": history[-1]["start"],
        "handovers": handovers,
        "warnings": ([never] if apart else []) + warnings(history),
        "gradient_evaluations": sum(record["gradient_evaluations"] for record in history),
        "seconds": sum(sum(record["seconds"].values()) for record in history),
    }


def write_learners(run: Run, training: Training) -> None:
    """Write what the merge takes from each of several learners, at the end of the training.

    After a last round of ``rounds`` that hands nothing over they are what was merged. Where the
    training stopped early after a hand-over, or handed over after every step, each is the global
    model.
    """
    if len(training.learners) > 1:
        for name, learner in training.learners.items():
            run.write_model(f"{learner_name(name)}.safetensors", learner.merged_part())
