"""From plans to tasks, with all that can be refused before anything is started."""

__all__ = ["Datasets", "merged", "refuse_others", "tasks"]

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from equipoise import data
from equipoise.data import Dataset
from equipoise.errors import UserError
from equipoise.jobs.device import choose_device
from equipoise.plans.plan import MANY_ROUNDS, Entry, Judging, Plan
from equipoise.plans.task import PlannedEvaluation, PlannedFront, Task
from equipoise.sample import Sample
from equipoise.settings import recipe as recipes
from equipoise.settings.recipe import Recipe, Split
from equipoise.store.runs import is_free
from equipoise.store.weight_names import round_name


class Datasets:
    """Datasets and samples of them, each read once."""

    def __init__(self) -> None:
        self._read: dict[tuple[str, str | None], Dataset] = {}
        self._drawn: dict[tuple[int, int | None, bool], Sample] = {}

    def load(self, name: str, data_dir: str | Path | None) -> Dataset:
        """Return a dataset; see :func:`equipoise.data.load`."""
        place = None if data_dir is None else str(Path(data_dir).expanduser().absolute())
        if (name, place) not in self._read:
            path = Path(name).expanduser() if name.endswith(".npz") else name
            self._read[name, place] = data.load(path, place)
        return self._read[name, place]

    def sample(self, dataset: Dataset, n: int | None, first: bool) -> Sample:
        """Return which test images of a dataset are taken.

        Raises:
            UserError: If it has not so many.
        """
        if n is not None and n > len(dataset.test):
            raise UserError(f"evaluate.n must lie in 1..{len(dataset.test)}, got {n}")
        key = (id(dataset), n, first)
        if key not in self._drawn:
            self._drawn[key] = data.draw(dataset.test, n, first=first)[1]
        return self._drawn[key]


def tasks(plan: Plan, out: Path, data_dir: Path | None, datasets: Datasets) -> list[Task]:
    """Return the tasks of a plan: every entry with the first seed, then with the next.

    Arguments:
        plan: The plan.
        out: The folder of the run folders.
        data_dir: The folder of the data; by default that of the recipes.
        datasets: What other plans have read, to be read no more.

    Raises:
        UserError: If data, rounds or device will not do, with every error at once.
    """
    problems, first = list[str](), list[Task]()
    for entry in plan.entries:
        try:
            first.append(_task(plan, entry, out, data_dir, datasets))
        except UserError as error:
            if str(error) not in problems:
                problems.append(str(error))
    if problems:
        raise UserError("; ".join(problems))
    return [_seeded(task, seed) for seed in plan.seeds for task in first]


def _seeded(task: Task, seed: int) -> Task:
    recipe = replace(task.recipe, seed=seed)
    task = replace(task, recipe=recipe)
    every = (replace(each, folder=task.run.path, recipe=recipe) for each in task.evaluations)
    return replace(task, evaluations=tuple(every))


def _task(plan: Plan, entry: Entry, out: Path, data_dir: Path | None, datasets: Datasets) -> Task:
    unbounded = plan.budget is not None and entry.rounds is None
    recipe = entry.recipe(rounds=MANY_ROUNDS if unbounded else None)
    if data_dir is not None:
        recipe = replace(recipe, data_dir=str(data_dir.expanduser().absolute()))
    dataset = datasets.load(recipe.data, recipe.data_dir)
    choose_device(recipe.device)
    images = len(Split.of(recipe, dataset, torch.device("cpu")).train)
    images = (images // recipe.batch_size or 1) * recipe.batch_size
    threat = recipe.threat(dataset.eps)
    cost = entry.cost or recipe.settings.build(threat).cost(recipe.rounds)
    if unbounded:
        assert plan.budget is not None
        rounds = max(1, math.floor(plan.budget / (cost * images) + 0.5))
        recipe = replace(entry.recipe(rounds=rounds), data_dir=recipe.data_dir)
    protocol = plan.judging.protocol
    sample = datasets.sample(dataset, protocol.n, protocol.first)
    return Task(
        plan=plan.name,
        entry=entry.name,
        recipe=recipe,
        out=out,
        evaluations=tuple(_evaluations(plan.judging, recipe, threat.eps, sample)),
        images=images,
        gradients=float(recipe.rounds * cost * images),
    )


def _evaluations(
    judging: Judging, recipe: Recipe, eps: float, sample: Sample
) -> Iterable[PlannedEvaluation]:
    """Yield the evaluations of a training, by radius and weights."""
    protocol = replace(judging.protocol, norm=recipe.norm, n=sample.n)
    for radius in [radius for radius in judging.eps if radius > 0] or [eps]:
        for weights in _weights(judging.weights, recipe):
            planned = PlannedEvaluation(
                folder=Path(),  # follows from the seed
                recipe=recipe,
                protocol=replace(protocol, eps=radius),
                weights=weights,
                sample=sample,
            )
            if judging.points is None:
                yield planned
            elif weights == "model":
                yield PlannedFront(**vars(planned), points=judging.points)


def _weights(asked: Sequence[str], recipe: Recipe) -> list[str]:
    """Return the names of the weights that are judged of one training."""
    mixed = {*recipe.settings.knots()} == {"clean", "robust"}
    every = recipe.snapshots
    rounds = [round_name(t) for t in range(every, recipe.rounds, every)] if every else []
    names = [n for name in asked for n in (rounds if name == "rounds" else [name])]
    return [name for name in names if mixed or not name.startswith("gamma-")]


def merged(every: Iterable[Task]) -> list[Task]:
    """Return every training once, with all its evaluations; all of the first seed come first.

    So what is broken off has something of every plan.
    """
    found = dict[Path, Task]()
    for task in every:
        known = found.setdefault(task.run.path, task)
        new = (each for each in task.evaluations if each not in known.evaluations)
        found[task.run.path] = replace(known, evaluations=(*known.evaluations, *new))
    return sorted(found.values(), key=lambda task: task.recipe.seed)


def refuse_others(every: Sequence[Task]) -> None:
    """Refuse folders that hold something else than these tasks make.

    Raises:
        UserError: Saying of each in what it differs.
    """
    other, problems = dict[str, list[str]](), list[str]()
    for task in every:
        folder = task.run.path
        if (folder / "recipe.yaml").is_file():
            there = recipes.read(folder / "recipe.yaml")
            changed = _differences(there, task.recipe)
            if changed:
                other.setdefault("; ".join(changed), []).append(str(folder))
        elif not is_free(folder):
            problems.append(f"{folder} is not a run folder, and not empty")
    problems += [f"another recipe is in {', '.join(f)} ({what})" for what, f in other.items()]
    if problems:
        raise UserError(f"{'; '.join(problems)}: choose another --out, or remove what differs")


def _differences(there: Mapping[str, Any], recipe: Recipe) -> list[str]:
    """Return in what a run's recipe differs, but for where the data are.

    What the plan leaves open is filled in when a training begins.
    """
    here = recipe.to_dict()
    if recipe.data.endswith(".npz"):
        here["data"] = str(Path(recipe.data).expanduser().resolve())
    open_ = {key for key in ("eps", "keep") if here[key] is None} | {"data_dir"}
    open_ |= {key for key in ("precision", "update", "layout") if here[key] == "auto"}
    left = {key: value for key, value in here.items() if key not in open_}
    return recipes.differences({k: v for k, v in there.items() if k not in open_}, left)
