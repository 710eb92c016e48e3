"""``results.json``: the results of the tasks of one or several plans (``docs/formats.md``).

It has a row for each trained model, weights, radius and attack, with a bit for each image: whether
it is classified correctly. So intervals and paired tests can be computed without the runs. At
radius 0 the verdicts of every attack are the clean ones.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from equipoise.attacks.ensemble import Ensemble
from equipoise.measures.cmmr import Parts, pack_credits
from equipoise.measures.over_attacks import OverAttacks
from equipoise.plans.plan import Plan
from equipoise.plans.task import Counted, PlannedEvaluation, PlannedFront, Task, merged
from equipoise.sample import Sample
from equipoise.store import weight_names as names
from equipoise.store.records import WORST
from equipoise.store.runs import Run
from equipoise.store.scores import Scores, contents, scores
from equipoise.store.verdicts import Flags

FILE, FORMAT = "results.json", 2

Row = dict[str, Any]


@dataclass
class Experiment:
    """The plans of one file of results, with their tasks.

    Arguments:
        name: Its name.
        title: Its title.
        folder: The folder of its results.
        command: The command that makes it.
        parts: Plans, each with its tasks: trainings, each with the evaluations of that plan.
        problems: Sentences about plans that are left out.
        scale: The scale of a reproduction.
        failures: The reasons of failed tasks, by their names.
        write_tables: Called with the experiment and its results after these were written.
    """

    name: str
    title: str
    folder: Path
    command: str
    parts: Sequence[tuple[Plan, Sequence[Task]]] = ()
    problems: Sequence[str] = ()
    scale: str = ""
    failures: dict[str, str] = field(default_factory=dict)
    write_tables: Callable[["Experiment", Row], object] = lambda experiment, content: None
    _rows: dict[int, list[Row]] = field(default_factory=dict, repr=False)

    @property
    def tasks(self) -> list[Task]:
        """Return its trainings, each once."""
        return merged(task for _, tasks in self.parts for task in tasks)

    @property
    def evaluations(self) -> int:
        """Return the number of planned evaluations."""
        return sum(len(task.evaluations) for _, tasks in self.parts for task in tasks)

    def write(self) -> Row:
        """Write ``results.json`` and the tables of it; return its content."""
        content = self.results()
        text = json.dumps(content, separators=(",", ":")).replace('{"panel"', '\n{"panel"')
        Run(self.folder).write(FILE, text + "\n")
        self.write_tables(self, content)
        return content

    def results(self) -> Row:
        """Return the content of ``results.json``."""
        every = [(plan, task) for plan, tasks in self.parts for task in tasks]
        results = [row for plan, task in every for row in self.rows(plan, task)]
        keys = ("panel", "entry", "seed", "weights", "eps", "attack")
        once = {tuple(row[key] for key in keys): row for row in results}
        judged = {(row["panel"], row["entry"], row["seed"]) for row in results}
        trained = {(_panel_name(plan), t.entry, t.recipe.seed): t for plan, t in every}
        panels = dict.fromkeys(plan.name for plan, _ in self.parts)
        return {
            "format": FORMAT,
            "experiment": self.name,
            "scale": self.scale,
            "title": self.title,
            "command": self.command,
            "planned": self.evaluations,
            "missing": [*self.problems, *self._missing()],
            "panels": [_panel([p for p in self.parts if p[0].name == name]) for name in panels],
            "trainings": [_training(key[0], trained[key]) for key in trained if key in judged],
            "results": list(once.values()),
        }

    def rows(self, plan: Plan, task: Task) -> list[Row]:
        """Return the rows of a task's finished evaluations, cached if the task is finished."""
        if id(task) in self._rows or not task.trained:
            return self._rows.get(id(task), [])
        finished = [each for each in task.evaluations if each.finished]
        ended = len(finished) == len(task.evaluations)
        open_weights = {each.weights for each in task.evaluations if not each.finished}
        whole = [e for e in finished if plan.cmmr and e.weights not in open_weights]
        stored = [each.stored() for each in whole]  # a sweep needs all radii of its weights
        by_name = scores(evaluation for evaluation in stored if evaluation is not None)
        rows = [
            row
            for each in finished
            for row in _rows(plan, task, each, by_name.get(each.store.name))
        ]
        if ended and task.name not in self.failures:
            self._rows[id(task)] = rows
        return rows

    def _missing(self) -> Iterator[str]:
        """Yield a line for each task that is not finished."""
        for task in self.tasks:
            training, evaluation = task.state()
            if evaluation != "done":
                state = f"training {training}, evaluation {evaluation}"
                yield f"{task.name}: {self.failures.get(task.name, state)}"


def _panel_name(plan: Plan) -> str:
    return plan.name or "comparison"


def _panel(parts: Sequence[tuple[Plan, Sequence[Task]]]) -> Row:
    """Return the description of a panel."""
    (plan, tasks), task = parts[0], parts[0][1][0]
    recipe, protocol = task.recipe, task.evaluations[0].protocol
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
        "eps": list(plan.eps or [protocol.threat.eps]),
        "n": protocol.n,
        "sample": sample.content() if sample else None,
        "split": "test" if plan.points is None else "held-out",
        "attacks": _attacks(task.evaluations[0]),
        "entries": list(dict.fromkeys(e.name for plan, _ in parts for e in plan.entries)),
        "seeds": list(plan.seeds),
        "budget": plan.budget,
        "images": task.images,
        "facts": _origin_facts([t.run.read_json("provenance.json") for t in done]),
    }


def _sample(evaluation: PlannedEvaluation) -> Sample | None:
    """Return the images of an evaluation; None: it is a front that is not measured yet."""
    if not isinstance(evaluation, PlannedFront):
        return evaluation.sample
    front = evaluation.front()
    return front.sample if front is not None else None


def _attacks(evaluation: PlannedEvaluation) -> list[str]:
    """Return the attacks in the order of the columns: stages before their ensemble."""
    if isinstance(evaluation, PlannedFront):
        return [WORST]
    protocol, columns = evaluation.protocol, dict[str, None]()
    for name, attack in protocol.named.items():
        if isinstance(attack, Ensemble) and protocol.individual:
            columns |= dict.fromkeys(attack.stages(protocol.threat.norm))
        columns[name] = None
    return list(columns)


def _training(panel: str, task: Task) -> Row:
    """Return the row of a trained model."""
    rounds, data = task.rounds(), Path(task.recipe.data).name
    summary = task.run.read_json("summary.json")
    return {
        "panel": panel,
        "entry": task.entry,
        "method": task.recipe.method,
        "seed": task.recipe.seed,
        "rounds": len(rounds),
        "t_start": rounds[-1].get("start", {}).get("round") if rounds else None,
        **{key: summary.get(key) for key in ("gradient_evaluations", "regime")},
        "seconds": sum(record["seconds"]["train"] for record in rounds),
        "settings": {**task.recipe.to_dict(), "data": data, "data_dir": None},
    }


def _rows(
    plan: Plan, task: Task, evaluation: PlannedEvaluation, score: Scores | None
) -> Iterator[Row]:
    """Yield the rows of one evaluation, also for radius 0 if the plan has it."""
    sample = _sample(evaluation)
    model: Row = {"panel": _panel_name(plan), "entry": task.entry, "seed": task.recipe.seed}
    verdicts = None if isinstance(evaluation, PlannedFront) else evaluation.verdicts()
    audit = verdicts.audit if verdicts else None
    for weights, counted in evaluation.counted():
        number, clean = names.ROUND.fullmatch(weights), counted["clean"][0]
        of = {"round": int(number[1]) if number else None, "gamma": names.gamma_of(weights)}
        radii: dict[float, Counted] = {evaluation.protocol.threat.eps: counted}
        if 0 in plan.eps:
            radii[0.0] = dict.fromkeys(counted, (clean, 0.0))
        for radius, attacks in radii.items():
            for name, (flags, seconds) in attacks.items():
                row = model | {"weights": weights, "eps": radius, "attack": name, "n": len(flags)}
                row |= {"sample": sample.sha256 if sample else "", "correct": int(flags.sum())}
                bits = np.packbits(flags.astype(np.uint8)).tobytes().hex()
                row |= {"bits": bits, **of, "seconds": seconds}
                if name == WORST and radius and audit is not None:
                    row["audit"] = audit.content() | {"near": list(audit.near)}
                if name == WORST and score is not None:
                    row |= _scored(score if radius else _unattacked(clean, score[1]))
                yield row


def _unattacked(clean: Flags, over: OverAttacks | None) -> Scores:
    """Return the scores at radius 0, where every attack leaves the clean accuracy."""
    of_each = tuple(clean.astype(float).tolist())
    parts = Parts(len(clean), 0, float(clean.mean()), 0.0, credits=of_each)
    return parts, OverAttacks(dict.fromkeys(over.attacks, parts)) if over else None


def _scored(score: Scores) -> Row:
    """Return the fields of scores, with the credits of the images."""
    named = zip(("credits", "credits2"), score, strict=True)
    return {**contents(score), **{key: pack_credits(s.credits) for key, s in named if s}}


def _origin_facts(origins: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return device and versions of trainings in lines, from their provenance."""
    lines: dict[str, dict[str, None]] = {}
    for origin in origins:
        commit = origin.get("git_commit")
        changed = " with changes" if origin.get("git_dirty") else ""
        facts = {
            "device": origin.get("device"),
            "threads": origin.get("threads"),
            "versions": f"equipoise {origin.get('equipoise')}, torch {origin.get('torch')}",
            "git commit": f"{commit[:12]}{changed}" if commit else "not from a checkout",
        }
        for key, value in facts.items():
            lines.setdefault(key, {})[str(value)] = None
    return [f"{key}: {'; '.join(values)}" for key, values in lines.items()]
