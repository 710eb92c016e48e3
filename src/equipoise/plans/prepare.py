"""From plans to tasks, with all checks that are possible before anything is started."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch

from equipoise import data
from equipoise.data.reading import settled
from equipoise.errors import UserError
from equipoise.jobs.device import choose_device
from equipoise.plans.plan import MANY_ROUNDS, Entry, Plan
from equipoise.plans.task import PlannedEvaluation, PlannedFront, Task
from equipoise.sample import Sample
from equipoise.settings import recipe as recipes
from equipoise.settings.earlier import renewed
from equipoise.settings.recipe import Recipe
from equipoise.settings.schema import differences
from equipoise.store.runs import is_free
from equipoise.store.weight_names import round_name


class Datasets:
    """Datasets and samples of their test images, each read once; ``folder``: where they are."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = None if folder is None else str(folder.expanduser().absolute())
        self.load = cache(
            lambda name, place, reading=None: data.load(name, place, reading=reading)
        )
        self.sample = cache(
            lambda n, first, *data_set: data.draw(self.load(*data_set).test, n, first=first)[1]
        )


def tasks(plan: Plan, out: Path, datasets: Datasets) -> list[Task]:
    """Return the tasks of a plan: every entry with the first seed, then with the next.

    Raises:
        UserError: If data, rounds or device cannot be used, with every error at once.
    """
    problems, first = list[str](), list[Task]()
    for entry in plan.entries:
        try:
            first.append(_task(plan, entry, out, datasets))
        except UserError as error:
            problems.append(str(error))
    if problems:
        raise UserError("; ".join(dict.fromkeys(problems)))
    return [_seeded(task, seed) for seed in plan.seeds for task in first]


def _seeded(task: Task, seed: int) -> Task:
    task = replace(task, recipe=replace(task.recipe, seed=seed))
    every = (replace(each, folder=task.run.path) for each in task.evaluations)
    return replace(task, evaluations=tuple(every))


def _task(plan: Plan, entry: Entry, out: Path, datasets: Datasets) -> Task:
    """Return the task of an entry with the first seed."""
    unbounded = plan.budget is not None and entry.rounds is None
    recipe = entry.recipe(rounds=MANY_ROUNDS if unbounded else None)
    recipe = replace(recipe, data_dir=datasets.folder or recipe.data_dir)
    data_set = recipe.data, recipe.data_dir, recipe.reading
    dataset = datasets.load(*data_set)
    choose_device(recipe.device)
    images = len(recipe.split(dataset, torch.device("cpu")).train)
    images = (images // recipe.batch_size or 1) * recipe.batch_size
    threat = recipe.threat(dataset.eps)
    cost = entry.cost or recipe.settings.build(threat).cost(recipe.rounds)
    if unbounded:
        assert plan.budget is not None
        recipe = replace(recipe, rounds=max(1, math.floor(plan.budget / (cost * images) + 0.5)))
    n, first = plan.protocol.n, plan.protocol.first
    try:
        sample = datasets.sample(n, first, *data_set)
    except UserError as error:
        raise UserError(f"evaluate.{error}") from None
    return Task(
        plan=plan.name,
        entry=entry.name,
        recipe=recipe,
        out=out,
        evaluations=tuple(_evaluations(plan, recipe, threat.eps, sample)),
        images=images,
        gradients=float(recipe.rounds * cost * images),
    )


def _evaluations(
    plan: Plan, recipe: Recipe, eps: float, sample: Sample
) -> Iterable[PlannedEvaluation]:
    """Yield the evaluations of a training, by radius and weights."""
    protocol = replace(plan.protocol, norm=recipe.norm, n=sample.n)
    for radius in [radius for radius in plan.eps if radius > 0] or [eps]:
        for weights in _weights(plan.weights, recipe):
            planned = PlannedEvaluation(
                folder=Path(),  # follows from the seed
                protocol=replace(protocol, eps=radius),
                weights=weights,
                sample=sample,
            )
            if plan.points is None:
                yield planned
            elif weights == "model":
                yield PlannedFront(**vars(planned), points=plan.points)


def _weights(given: Sequence[str], recipe: Recipe) -> list[str]:
    """Return the names of the weights of one training that are evaluated."""
    mixed = {*recipe.settings.knots()} == {"clean", "robust"}
    every = recipe.snapshots
    rounds = [round_name(t) for t in range(every, recipe.rounds, every)] if every else []
    names = [n for name in given for n in (rounds if name == "rounds" else [name])]
    return [name for name in names if mixed or not name.startswith("gamma-")]


def refuse_others(every: Sequence[Task]) -> None:
    """Raise a UserError if folders have other content than these tasks make."""
    other, problems = dict[str, list[str]](), list[str]()
    for task in every:
        folder = task.run.path
        if task.begun:
            there = recipes.parse(renewed(recipes.read(folder / "recipe.yaml"), task.run))
            changed = _differences(there.to_dict(), task.recipe)
            if changed:
                other.setdefault("; ".join(changed), []).append(str(folder))
        elif not is_free(folder):
            problems.append(f"{folder} is not a run folder, and not empty")
    problems += [f"another recipe is in {', '.join(f)} ({what})" for what, f in other.items()]
    if problems:
        raise UserError(f"{'; '.join(problems)}: choose another --out, or remove what differs")


def _differences(there: Mapping[str, Any], recipe: Recipe) -> list[str]:
    """Return the differences of a run's recipe, except for the folder of the data.

    Settings that the plan leaves open are filled in when a training begins.
    """
    here = recipe.to_dict()
    here |= {"data": settled(recipe.data, data.DATASETS), **vars(recipe.reading.settled())}
    open_ = {key for key in ("eps", "keep") if here[key] is None} | {"data_dir"}
    open_ |= {key for key in ("precision", "update", "layout") if here[key] == "auto"}
    there, here = ({k: v for k, v in x.items() if k not in open_} for x in (there, here))
    return differences(there, here)
