"""``results.json``: what the tasks of one or several plans found, one row a model and attack.

=============  ===============================================================================
format         2
experiment     the name of a table or figure; of a comparison ``comparison``
scale, title   as they are shown
command        the command that makes it
planned        how many evaluations there are to be
missing        what is not there yet, a line each
panels         the plans: data, model, threat, images and attacks
trainings      a row a trained model
results        a row a trained model, weights, radius and attack: how many images are classified
               correctly, and which, a bit each (hexadecimal, ``numpy.packbits``), so that
               intervals and paired tests can be computed again without the runs
=============  ===============================================================================

``attack`` is ``clean``, an attack, a stage of an ensemble by its own name, an ensemble, or
``worst-case``: correct under everything. At radius 0 every attack leaves the clean images.
"""

__all__ = ["FORMAT", "Experiment", "Row", "write_results"]

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from equipoise.attacks import AutoAttack
from equipoise.measures import cmmr
from equipoise.plans.plan import Plan
from equipoise.plans.prepare import merged
from equipoise.plans.task import Counted, PlannedEvaluation, PlannedFront, Task
from equipoise.sample import Sample
from equipoise.store import weight_names as names
from equipoise.store.runs import Run
from equipoise.store.verdicts import WORST, scores

FILE, FORMAT = "results.json", 2

Row = dict[str, Any]


@dataclass
class Experiment:
    """What belongs to one file of results: plans with their tasks.

    Arguments:
        name: Its name.
        title: What it is.
        folder: Where its results go.
        command: The command that makes it.
        parts: Plans, each with its tasks: trainings, each with the evaluations of that plan.
        problems: What is missing beside the tasks, a sentence each.
        scale: The scale, of a reproduction.
        failures: Why tasks failed, by their names.
    """

    name: str
    title: str
    folder: Path
    command: str
    parts: Sequence[tuple[Plan, Sequence[Task]]] = ()
    problems: Sequence[str] = ()
    scale: str = ""
    failures: dict[str, str] = field(default_factory=dict)
    _rows: dict[tuple[int, str], list[Row]] = field(default_factory=dict, repr=False)

    @property
    def tasks(self) -> list[Task]:
        """Return its trainings, each once."""
        return merged(task for _, tasks in self.parts for task in tasks)

    @property
    def evaluations(self) -> int:
        """Return how many evaluations are planned."""
        return sum(len(task.evaluations) for _, tasks in self.parts for task in tasks)

    def results(self) -> Row:
        """Return what there is, as ``results.json`` has it."""
        results = [row for plan, tasks in self.parts for t in tasks for row in self.rows(plan, t)]
        keys = ("panel", "entry", "seed", "weights", "eps", "attack")
        once = {tuple(row[key] for key in keys): row for row in results}
        judged = {(row["panel"], row["entry"], row["seed"]) for row in results}
        trained = [(_panel_name(plan), task) for plan, tasks in self.parts for task in tasks]
        rows = {(name, t.entry, t.recipe.seed): (name, t) for name, t in trained}
        return {
            "format": FORMAT,
            "experiment": self.name,
            "scale": self.scale,
            "title": self.title,
            "command": self.command,
            "planned": self.evaluations,
            "missing": [*self.problems, *self._missing()],
            "panels": [_panel(parts) for parts in self._panels()],
            "trainings": [_training(*rows[key]) for key in rows if key in judged],
            "results": list(once.values()),
        }

    def rows(self, plan: Plan, task: Task) -> list[Row]:
        """Return the rows of a task's finished evaluations; of a finished task they are kept."""
        place = next(i for i, (known, _) in enumerate(self.parts) if known is plan), task.name
        if place in self._rows:
            return self._rows[place]
        if not task.trained:
            return []
        finished = [each for each in task.evaluations if each.finished]
        rows = list[Row]()
        for weights in dict.fromkeys(each.weights for each in finished):
            those = [each for each in finished if each.weights == weights]
            whole = len(those) == sum(each.weights == weights for each in task.evaluations)
            known = _scores(those) if plan.judging.cmmr and whole else {}
            for evaluation in those:
                rows += _rows(plan, task, evaluation, known)
        worst = [row for row in rows if row["attack"] == WORST]
        scored = not plan.judging.cmmr or all("cmmr" in row for row in worst)
        ended = scored and len(finished) == len(task.evaluations)
        if ended and task.name not in self.failures:
            self._rows[place] = rows
        return rows

    def rows_of(self, name: str) -> list[Row]:
        """Return the rows of the finished evaluations of the task of a name."""
        every = ((plan, task) for plan, tasks in self.parts for task in tasks)
        return [row for plan, task in every if task.name == name for row in self.rows(plan, task)]

    def _missing(self) -> Iterator[str]:
        """Yield a line for each task that is not finished."""
        for task in self.tasks:
            training, evaluation = task.state()
            if (training, evaluation) != ("done", "done"):
                state = f"training {training}, evaluation {evaluation}"
                yield f"{task.name}: {self.failures.get(task.name, state)}"

    def _panels(self) -> Iterator[list[tuple[Plan, Sequence[Task]]]]:
        """Yield the plans of each panel: those of one name, with their tasks."""
        for name in dict.fromkeys(plan.name for plan, _ in self.parts):
            yield [part for part in self.parts if part[0].name == name]


def write_results(experiment: Experiment) -> Row:
    """Write the results of an experiment, whole or not at all; return them."""
    content = experiment.results()
    text = json.dumps(content, separators=(",", ":")).replace('{"panel"', '\n{"panel"')
    Run(experiment.folder).write_text(FILE, text + "\n")
    return content


def _panel_name(plan: Plan) -> str:
    return plan.name or "comparison"


def _panel(parts: Sequence[tuple[Plan, Sequence[Task]]]) -> Row:
    """Return what a panel is of."""
    (plan, tasks), task = parts[0], parts[0][1][0]
    judging, recipe = plan.judging, task.recipe
    done = [t for _, some in parts for t in some if any(e.finished for e in t.evaluations)]
    sample = _sample((done or tasks)[0].evaluations[0])
    classes = [len(t.run.read_json("config.json").get("classes", ())) for t in done]
    return {
        "name": _panel_name(plan),
        "title": plan.title,
        "data": Path(recipe.data).name,
        "model": f"{recipe.model}, width {recipe.width:g}",
        "classes": classes[0] if classes else 10,
        "norm": recipe.norm,
        "eps": list(judging.eps or [task.evaluations[0].protocol.eps]),
        "n": task.evaluations[0].protocol.n,
        "sample": sample.content() if sample else None,
        "split": "test" if judging.points is None else "held-out",
        "attacks": _attacks(task.evaluations[0]),
        "entries": list(dict.fromkeys(e.name for plan, _ in parts for e in plan.entries)),
        "seeds": list(plan.seeds),
        "budget": plan.budget,
        "images": task.images,
        "facts": _origin_facts([t.run.read_json("provenance.json") for t in done]),
    }


def _sample(evaluation: PlannedEvaluation) -> Sample | None:
    """Return which images an evaluation is of; None: it is a front that is not measured yet."""
    if not isinstance(evaluation, PlannedFront):
        return evaluation.sample
    front = evaluation.front()
    return front.sample if front is not None else None


def _attacks(evaluation: PlannedEvaluation) -> list[str]:
    """Return the attacks of the results in the order of the columns: stages before ensembles."""
    if isinstance(evaluation, PlannedFront):
        return [WORST]
    protocol = evaluation.protocol
    alone = [
        [*attack.stages(evaluation.recipe.norm), name]
        if isinstance(attack, AutoAttack) and protocol.individual
        else [name]
        for name, attack in protocol.named.items()
    ]
    return list(dict.fromkeys(name for names in alone for name in names))


def _training(panel: str, task: Task) -> Row:
    """Return the row of a trained model."""
    rounds, data = task.rounds(), Path(task.recipe.data).name
    return {
        "panel": panel,
        "entry": task.entry,
        "method": task.recipe.method,
        "seed": task.recipe.seed,
        "rounds": len(rounds),
        "t_start": rounds[-1].get("start", {}).get("round") if rounds else None,
        "gradient_evaluations": task.run.read_json("summary.json").get("gradient_evaluations"),
        "seconds": sum(record["seconds"]["train"] for record in rounds),
        "settings": {**task.recipe.to_dict(), "data": data, "data_dir": None},
    }


def _rows(
    plan: Plan, task: Task, evaluation: PlannedEvaluation, known: Mapping[float, Row]
) -> Iterator[Row]:
    """Yield the rows of one evaluation, and those of radius 0 where that is asked for."""
    eps, sample = evaluation.protocol.threat.eps, _sample(evaluation)
    model: Row = {"panel": _panel_name(plan), "entry": task.entry, "seed": task.recipe.seed}
    for weights, counted in evaluation.counted():
        number = names.ROUND.fullmatch(weights)
        of = {"round": int(number[1]) if number else None, "gamma": names.gamma_of(weights)}
        radii: dict[float, Counted] = {eps: counted}
        if 0 in plan.judging.eps:
            radii[0.0] = dict.fromkeys(counted, (counted["clean"][0], 0.0))
        for radius, attacks in radii.items():
            for name, (flags, seconds) in attacks.items():
                row = model | {"weights": weights, "eps": radius, "attack": name, "n": len(flags)}
                row |= {"sample": sample.sha256 if sample else "", "correct": int(flags.sum())}
                row |= {"bits": _hex(flags), **of, "seconds": seconds}
                if name == WORST and radius in known:
                    row["cmmr"] = known[radius]
                yield row


def _scores(finished: Sequence[PlannedEvaluation]) -> dict[float, Row]:
    """Return the composite scores of one model by radius; at radius 0 it is the clean accuracy.

    Arguments:
        finished: Its evaluations, one for every radius.
    """
    stored = [found for each in finished if (found := each.stored()) is not None]
    known = scores(stored)
    clean = stored[0].verdicts.correct
    unattacked = cmmr.Parts(len(clean), 0, int(clean.sum()) / len(clean), 0.0)
    by_radius = {each.verdicts.eps: known[each.name] for each in stored if each.name in known}
    return {0.0: unattacked.to_dict(), **by_radius} if by_radius else {}


def _hex(flags: NDArray[np.bool_]) -> str:
    return np.packbits(flags.astype(np.uint8)).tobytes().hex()


def _origin_facts(origins: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return in lines where trainings come from, by their provenance: device and versions."""
    lines: dict[str, dict[str, None]] = {}
    for origin in origins:
        commit = origin.get("git_commit")
        changed = " with changes" if origin.get("git_dirty") else ""
        known = {
            "device": origin.get("device"),
            "threads": origin.get("threads"),
            "versions": f"equipoise {origin.get('equipoise')}, torch {origin.get('torch')}",
            "git commit": f"{commit[:12]}{changed}" if commit else "not from a checkout",
        }
        for key, value in known.items():
            lines.setdefault(key, {})[str(value)] = None
    return [f"{key}: {'; '.join(values)}" for key, values in lines.items()]
