"""Results as records: what is written to JSON, shown in tables and drawn in a report."""

__all__ = ["ensemble_record", "records"]

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import torch
from torch import Tensor

from equipoise.evaluation.outcome import Outcome
from equipoise.evaluation.result import Result
from equipoise.metrics import interval


def records(result: Result) -> list[dict[str, Any]]:
    """Return a record for the clean accuracy, each attack and the worst case.

    A stage of an ensemble has a record of its own where it attacked all correct examples as the
    others of its ensemble did; the ensemble's record tells of its stages either way.
    """
    verdicts = result.verdicts
    found = [_record(result, "clean", result.correct, None)]
    for name, outcome in result.outcomes.items():
        if name in verdicts and (not outcome.ensemble or _alone(result, outcome.ensemble)):
            shown = _shown(result, name) if outcome.ensemble else name
            found.append(_record(result, shown, outcome.verdict, outcome))
    found += [ensemble_record(result, name) for name in result.ensembles]
    if verdicts:
        worst = _record(result, "worst-case", result.robust, None)
        names = [o.ensemble or name for name, o in result.outcomes.items()]
        found.append(
            worst | {"attacks": [*dict.fromkeys(names)]} | _cost(list(result.outcomes.values()))
        )
    return found


def ensemble_record(result: Result, ensemble: str) -> dict[str, Any]:
    """Return the record of an ensemble, with its stages."""
    stages, left = result.stages(ensemble), result.correct
    told = []
    for name, outcome in stages.items():
        entered, left = left, left & outcome.verdict
        told.append(
            {
                "attack": name.partition("/")[2] or name,
                "entered": int(entered.sum()),
                "broken": int((entered & ~left).sum()),
                "robust": int(left.sum()),
                "accuracy": _mean(left),
                "interval": list(interval(int(left.sum()), len(left))),
                "alone": _mean(outcome.verdict) if outcome.alone(result.correct) else None,
                "settings": outcome.settings,
                "notes": list(outcome.notes),
                "finished": outcome.finished,
            }
            | _cost([outcome])
        )
    record = _record(result, ensemble, left, None)
    return record | {"stages": told} | _cost(list(stages.values()))


def _alone(result: Result, ensemble: str) -> bool:
    return all(o.alone(result.correct) for o in result.stages(ensemble).values())


def _shown(result: Result, name: str) -> str:
    """Return the name under which an attack is shown: a stage's own where it is not taken."""
    short = name.partition("/")[2]
    taken = [n for n in result.outcomes if n == short or n.endswith(f"/{short}")]
    return short if short and len(taken) == 1 else name


def _cost(outcomes: list[Outcome]) -> dict[str, Any]:
    return {
        "seconds": round(sum(o.seconds for o in outcomes), 3),
        "forwards": sum(o.forwards for o in outcomes),
        "backwards": sum(o.backwards for o in outcomes),
    }


def _record(result: Result, name: str, verdict: Tensor, outcome: Outcome | None) -> dict[str, Any]:
    n, robust = len(verdict), int(verdict.sum())
    per_class = _per_class(result, verdict)
    worst = min(per_class, key=lambda c: per_class[c]["accuracy"], default=None)
    return {
        "attack": name,
        "settings": outcome.settings if outcome else "",
        "norm": result.threat.norm,
        "eps": result.threat.eps,
        "n": n,
        "robust": robust,
        "accuracy": robust / n if n else 0.0,
        "interval": list(interval(robust, n)),
        "per_class": per_class,
        "worst_class": worst and {"name": worst, "accuracy": per_class[worst]["accuracy"]},
        **_cost([outcome] if outcome else []),
        "passes": result.passes,
        "precision": result.precision,
        "seed": result.seed,
        "notes": list(outcome.notes) if outcome else [],
        "warnings": _warnings(outcome),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _warnings(outcome: Outcome | None) -> list[str]:
    if outcome is None:
        return []
    said = []
    if outcome.rejected:
        said.append(f"{outcome.rejected} points were outside the threat and did not count")
    if outcome.nonfinite:
        said.append(
            f"the model's output is NaN or infinite on {outcome.nonfinite} points; they count as "
            "misclassified"
        )
    if not outcome.finished:
        said.append("interrupted: not all examples were attacked")
    return said


def _per_class(result: Result, verdict: Tensor) -> Mapping[str, dict[str, Any]]:
    table = {}
    for label in torch.unique(result.y).tolist():
        name = result.classes[label] if result.classes else str(label)
        mine = verdict[result.y == label]
        table[name] = {"n": len(mine), "robust": int(mine.sum()), "accuracy": _mean(mine)}
    return table


def _mean(flags: Tensor) -> float:
    return float(flags.double().mean()) if len(flags) else 0.0
