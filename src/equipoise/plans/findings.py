"""From judged runs to ``results.json``: verdicts and measures of one experiment, for the report.

The file holds, for every model and radius, one bit an image and attack, so that intervals and
paired tests can be computed again without the runs.
"""

__all__ = ["FORMAT", "findings", "write"]

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from equipoise.evaluation import Result
from equipoise.measures import cmmr, distortion
from equipoise.plans.fronts import FrontItem
from equipoise.plans.reproductions import EXPERIMENTS, View
from equipoise.plans.runs import Item
from equipoise.plans.table import origin_facts
from equipoise.plans.views import Look
from equipoise.sample import Sample
from equipoise.store import weight_names as names
from equipoise.store.runs import Run
from equipoise.store.verdicts import WORST

FORMAT = 2


def findings(
    experiment: str,
    scale: str,
    found: Sequence[Look],
    *,
    command: str,
    failures: Mapping[str, str],
    problems: Sequence[str] = (),
) -> dict[str, Any]:
    """Return what is known of an experiment.

    Arguments:
        experiment: Its name.
        scale: The scale.
        found: All its evaluations, done or not.
        command: The command that makes it.
        failures: Why trainings or evaluations failed, by the name of the training.
        problems: What else is missing, a sentence each.
    """
    done = [look for look in found if look.item.trained and look.item.verdicts() is not None]
    missing = dict.fromkeys(
        f"{look.name}: {failures.get(look.name) or _state(look.item)}"
        for look in found
        if look not in done
    )
    views = list(dict.fromkeys(look.view.pool for look in found))
    rows: list[dict[str, Any]] = []
    scores = _scores(done)
    for look in done:
        if isinstance(look.item, FrontItem):
            rows += _between(look, look.item)
            continue
        path = look.item.run.path
        rows += [{**row, "cmmr": scores.get((path, row["eps"]))} for row in _rows(look)]
    return {
        "format": FORMAT,
        "experiment": experiment,
        "scale": scale,
        "title": EXPERIMENTS[experiment],
        "command": command,
        "planned": len(found),
        "missing": [*problems, *missing],
        "panels": [_panel([x for x in found if x.view.pool == pool], done) for pool in views],
        "trainings": _trainings(rows),
        "results": [line for row in _once(rows) for line in _results(row)],
    }


def write(folder: Path, content: Mapping[str, Any]) -> None:
    """Write the findings of an experiment whole or not at all."""
    text = json.dumps(content, separators=(",", ":")).replace('{"panel"', '\n{"panel"')
    Run(folder / content["experiment"]).write_text("results.json", text + "\n")


def _state(item: Item) -> str:
    training, evaluation = item.state()
    return f"training {training}, evaluation {evaluation}"


def _panel(mine: Sequence[Look], done: Sequence[Look]) -> dict[str, Any]:
    view, item = mine[0].view, mine[0].item
    sample = _sample(next((look for look in mine if look in done), mine[0]))
    finished = list({x.item.run.path: x.item for x in mine if x in done}.values())
    return {
        "name": view.pool,
        "title": view.plan.title,
        "data": Path(item.recipe.data).name,
        "model": f"{item.recipe.model}, width {item.recipe.width:g}",
        "classes": _classes(finished),
        "norm": item.recipe.norm,
        "eps": list(view.eps or [item.judging.eps]),
        "n": item.judging.n,
        "sample": sample.content() if sample else None,
        "split": "test" if view.front is None else "held-out",
        "attacks": _attacks(view) if view.front is None else [WORST],
        "entries": list(dict.fromkeys(e.name for x in mine for e in x.view.plan.entries)),
        "seeds": list(view.plan.seeds),
        "budget": view.plan.budget,
        "images": item.images,
        "facts": origin_facts([x.run.read_json("provenance.json") for x in finished]),
    }


def _sample(look: Look) -> Sample | None:
    """Return which images an evaluation is of; None: it is a front that is not measured yet."""
    if not isinstance(look.item, FrontItem):
        return look.item.sample
    front = look.item.front()
    return front.sample if front is not None else None


def _classes(items: Sequence[Item]) -> int:
    known = [len(item.run.read_json("config.json").get("classes", ())) for item in items]
    return known[0] if known else 10


def _attacks(view: View) -> list[str]:
    """Return the attacks of a view in the order of the columns, the ensemble behind its stages."""
    asked = list(view.plan.judging.names)
    if "autoattack" in asked and view.plan.judging.individual:
        alone = [name for name in asked if name != "autoattack"]
        first = [name for name in alone if name != "apgd-dlr"]
        second = [name for name in ("apgd-dlr",) if name in alone]
        return [*first, "apgd-ce", *second, "apgd-t", "fab-t", "square", "autoattack"]
    return asked


def _rows(look: Look) -> list[dict[str, Any]]:
    """Return the row of an evaluation; and that of radius 0, where it is asked for."""
    item = look.item
    _, result, _ = item.store.read()
    shown = _verdicts(look, result)
    seconds = sum(o.seconds for o in result.outcomes.values())
    row = _row(look, item.weights, shown, seconds)
    return [row, *([_unattacked(row)] if 0 in look.view.eps else [])]


def _between(look: Look, item: FrontItem) -> list[dict[str, Any]]:
    """Return the rows of the models between two learners."""
    front = item.front()
    assert front is not None, "only what is done is asked for"
    return [
        _row(look, names.canonical(f"gamma-{p.gamma!r}"), item.flags(p), p.seconds)
        for p in front.points
    ]


def _row(
    look: Look, which: str, shown: Mapping[str, NDArray[np.bool_]], seconds: float
) -> dict[str, Any]:
    """Return what is known of one model: of its training, and of what it got right."""
    item = look.item
    summary, rounds = item.run.read_json("summary.json"), item.rounds()
    return {
        "panel": look.view.pool,
        "entry": item.entry,
        "method": item.recipe.method,
        "seed": item.recipe.seed,
        "weights": which,
        "eps": item.judging.eps,
        "n": item.judging.n,
        "sample": sample.sha256 if (sample := _sample(look)) else "",
        "verdicts": {WORST: np.all([*shown.values()], axis=0), **shown},
        "rounds": len(rounds),
        "round": int(known[1]) if (known := names.ROUND.fullmatch(which)) else None,
        "gamma": names.gamma_of(which),
        "t_start": rounds[-1].get("start", {}).get("round") if rounds else None,
        "gradient_evaluations": summary.get("gradient_evaluations"),
        "training_seconds": sum(r["seconds"]["train"] for r in rounds),
        "evaluation_seconds": seconds,
        "settings": {
            **item.recipe.to_dict(),
            "data": Path(item.recipe.data).name,
            "data_dir": None,
        },
    }


def _unattacked(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row at radius 0: every attack leaves the clean accuracy."""
    flags = dict.fromkeys(row["verdicts"], row["verdicts"]["clean"])
    return {**row, "eps": 0.0, "verdicts": flags, "evaluation_seconds": 0.0}


_TRAINING = ("panel", "entry", "method", "seed", "rounds", "t_start", "gradient_evaluations")
_JUDGED = ("panel", "entry", "seed", "weights", "eps", "n", "sample", "round", "gamma")


def _trainings(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return what is known of each training."""
    trained = {(row["panel"], row["entry"], row["seed"]): row for row in rows}
    return [
        {key: row[key] for key in _TRAINING}
        | {"seconds": row["training_seconds"], "settings": row["settings"]}
        for row in trained.values()
    ]


def _results(row: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return a line for each attack on a model; that of the worst case has the time of all."""
    known = {key: row[key] for key in _JUDGED}
    lines = [
        known | {"attack": name, "correct": int(flags.sum()), "bits": _hex(flags), "seconds": None}
        for name, flags in row["verdicts"].items()
    ]
    worst = next(line for line in lines if line["attack"] == WORST)
    worst["seconds"] = row["evaluation_seconds"]
    if row.get("cmmr"):
        worst["cmmr"] = row["cmmr"]
    return lines


def _verdicts(look: Look, result: Result) -> dict[str, NDArray[np.bool_]]:
    """Return who withstood by attack, stages under their own names."""
    found = {name.rpartition("/")[2]: flags for name, flags in result.verdicts.items()}
    wanted = [name for name in _attacks(look.view) if name in found]
    shown = {"clean": result.correct, **{name: found[name] for name in wanted}}
    return {name: flags.cpu().numpy() for name, flags in shown.items()}


def _scores(done: Sequence[Look]) -> dict[tuple[Path, float], dict[str, Any]]:
    """Return the composite scores by run and radius, where every radius of a run is judged.

    They are those of a sweep: what fooled a model within a small ball counts in the larger ones.
    """
    found: dict[tuple[Path, float], dict[str, Any]] = {}
    for path in dict.fromkeys(look.item.run.path for look in done if look.view.cmmr):
        mine = [look for look in done if look.view.cmmr and look.item.run.path == path]
        view, correct, dimensions = mine[0].view, list[bool](), 1
        radii: dict[float, dict[str, Any]] = {}
        for look in mine:
            _, result, tensors = look.item.store.read()
            correct, dimensions = result.correct.tolist(), tensors["x"][0].numel()
            radii[result.threat.eps] = _measured(tensors["x"], result.x_adv, result.robust)
        if 0 in view.eps:
            x = tensors["x"]
            radii[0.0] = _measured(x, x, result.correct)
        if set(view.eps) - set(radii):
            continue
        norm = mine[0].item.recipe.norm
        scores = cmmr.sweep(correct, radii, norm=norm, dimensions=dimensions)
        found |= {(path, eps): parts.to_dict() for eps, parts in scores.items()}
    return found


def _measured(x: Tensor, x_adv: Tensor, robust: Tensor) -> dict[str, Any]:
    raw = {name: measure(x, x_adv).tolist() for name, measure in distortion.MEASURES.items()}
    return {"robust": robust.tolist(), **raw}


def _hex(flags: NDArray[np.bool_]) -> str:
    return np.packbits(flags.astype(np.uint8)).tobytes().hex()


def _once(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Leave out rows that stand there already: radius 0 comes with every other one."""
    known = {(r["panel"], r["entry"], r["seed"], r["weights"], r["eps"]): r for r in rows}
    return list(known.values())
