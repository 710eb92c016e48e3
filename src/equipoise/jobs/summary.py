"""The end of a training: the rule of the kept round, the summary, and the learners' weights."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from equipoise.measures.by_class import classes_in_words
from equipoise.measures.regime import Regime
from equipoise.objectives.core import Knots
from equipoise.settings.split import Split
from equipoise.store.runs import Run
from equipoise.store.weight_names import learner_name
from equipoise.training.collapse import warnings
from equipoise.training.loop import Training
from equipoise.training.validation import Validator

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

UNCHOSEN = (
    "the branches of the last round, mixed at a gamma that is chosen at the end (in the rounds "
    "before, the global model is the robust branch: gamma = 1)"
)


def summary(
    training: Training, rule: str, choice: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return the content of ``summary.json`` of a finished training, without checksums.

    Arguments:
        training: The training.
        rule: The rule for the kept round, in words.
        choice: What gamma was chosen to be, if it was.
    """
    history = training.history
    handovers = [record["round"] for record in history if record["handover"]]
    separate = training.method.merge.every is not None and not handovers
    never = (
        "never synchronised: the learners were trained separately to the end, and their average "
        f"may be useless ({history[-1]['start']['reason']})"
    )
    method, start = training.method, training.start.round
    merged = len(method.knots) > 1
    kept = max(record["round"] for record in history if record["kept"])
    if choice is not None:
        gamma, kept = choice["gamma"], len(history)
        rule = f"the branches of the last round at gamma = {gamma:g}: {choice['rule']}"
        chosen = {"robust": gamma, "clean": 1 - gamma}
        knots = {name: Knots((chosen.get(name, 0.0),)) for name in method.knots}
        method = replace(method, knots=knots)
    spent = choice or {"gradient_evaluations": 0, "seconds": 0.0, "warnings": []}
    ends = [record["rounds"] for record in history]
    longer = sorted({t for t, end in enumerate(ends) if t and end != ends[t - 1]})
    regime = None  # of a longer training: its schedules began anew
    if merged and not longer:
        regime = method.regime(training.rounds, training.steps, start, history)
    return {
        "finished": True,
        "rounds": len(history),
        "stopped_early": training.stopped_early,
        "kept_round": kept,
        "rule": rule,
        "start": history[-1]["start"],
        "handovers": handovers,
        "regime": regime.content() if regime else None,
        "warnings": ([never] if separate else [])
        + warnings(history)
        + (choice or {}).get("warnings", []),
        "gradient_evaluations": spent["gradient_evaluations"]
        + sum(record["gradient_evaluations"] for record in history),
        "seconds": spent["seconds"] + sum(sum(record["seconds"].values()) for record in history),
        "parts": parts(history) | ({"choice of gamma": spent["seconds"]} if choice else {}),
    } | {k: v for k, v in {"choice": choice, "prolonged": longer}.items() if v}


def kept_line(record: Mapping[str, Any], rule: str, *, classes: bool) -> str:
    """Return which round was kept and its accuracies; ``classes``: also those by class."""
    best, of_classes = record["global"], classes_in_words(record["global"]) if classes else ""
    both = f"clean {best['clean_accuracy']:.2%}, robust {best['robust_accuracy']:.2%}"
    more = f"; {of_classes}" if of_classes else ""
    return f"kept round {record['round']} ({rule}): {both} on validation{more}"


def parts(history: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return the seconds of each part of a training, the longest first."""
    sums: dict[str, float] = defaultdict(float)
    for record in history:
        for name, seconds in record.get("parts", {}).items():
            sums[name] += seconds
        sums["validation"] += record["seconds"]["validation"]
    return dict(sorted(sums.items(), key=lambda part: -part[1]))


def cost_lines(content: Mapping[str, Any]) -> list[str]:
    """Return of a summary the reserve and regime in words, and each part's share in the time."""
    sums, regime = content["parts"], content["regime"]
    whole = sum(sums.values()) or 1.0
    shares = (f"{name} {seconds / whole:.0%}" for name, seconds in sums.items())
    lines = Regime.of(regime).lines() if regime else []
    if reserve := content.get("measured", {}).get("reserve"):
        both = ", ".join(f"{key} {reserve[key] / reserve['n']:.2%}" for key in ("clean", "robust"))
        lines = [f"on {reserve['n']} images of the reserve, which chose nothing: {both}", *lines]
    return [*lines, f"{whole:.0f} s: {', '.join(shares)}"]


def measured(run: Run, validate: Validator, split: Split) -> dict[str, dict[str, int]]:
    """Return how many images the kept model classifies correctly, clean and under the attack.

    The validation images chose the model; those of the reserve chose nothing.

    Arguments:
        run: The folder with the kept model.
        validate: Measures models on the validation images.
        split: Has both.
    """
    model, counts = run.model().to(validate.x.device), {}
    for name, images in {"validation": split.validation, "reserve": split.reserve}.items():
        metrics, n = replace(validate, x=images.pixels(), y=images.y)(model), len(images)
        counts[name] = {"n": n} | {
            key: round(n * metrics[f"{key}_accuracy"]) for key in ("clean", "robust")
        }
    return counts


def write_learners(run: Run, training: Training) -> None:
    """Write the weights (or averages) of each of several merged learners, at the end.

    If the last step was a hand-over, each is the global model. A trunk that ended is not written.
    """
    merged = training.method.knots
    for name in merged if len(merged) > 1 else ():
        part = training.learners[name].merged_part()
        run.write_model(f"{learner_name(name)}.safetensors", part)
