"""From the plan of a comparison to its runs, with all that can be refused before the start."""

__all__ = ["Shelf", "items", "refuse_others"]

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from equipoise import data
from equipoise.data import Dataset, draw
from equipoise.errors import UserError
from equipoise.jobs.device import choose_device
from equipoise.plans.comparison import MANY_ROUNDS, Entry, Plan
from equipoise.plans.runs import Item
from equipoise.sample import Sample
from equipoise.settings import recipe as recipes
from equipoise.settings.recipe import Recipe
from equipoise.settings.split import Split
from equipoise.store.runs import is_free
from equipoise.threat import Threat


class Shelf:
    """Data sets, each of them read once."""

    def __init__(self) -> None:
        self._read: dict[tuple[str, str | None], Dataset] = {}
        self._drawn: dict[tuple[int, int | None, bool], Sample] = {}

    def load(self, name: str, data_dir: str | Path | None) -> Dataset:
        """Return a data set; see :func:`equipoise.data.load`."""
        place = None if data_dir is None else str(Path(data_dir).expanduser().absolute())
        if (name, place) not in self._read:
            path = Path(name).expanduser() if name.endswith(".npz") else name
            self._read[name, place] = data.load(path, place)
        return self._read[name, place]

    def sample(self, dataset: Dataset, n: int | None, first: bool) -> Sample:
        """Return which test images of a data set of the shelf are taken."""
        key = (id(dataset), n, first)
        if key not in self._drawn:
            self._drawn[key] = draw(dataset.test, n, first=first)[1]
        return self._drawn[key]


def items(plan: Plan, out: Path, data_dir: Path | None, shelf: Shelf | None = None) -> list[Item]:
    """Return the runs of a plan: every entry with the first seed, then with the next.

    Arguments:
        plan: The plan.
        out: The folder of the comparison.
        data_dir: The folder of the data; by default that of the recipes.
        shelf: What other plans have read, to be read no more.

    Raises:
        UserError: If data, rounds or device will not do, with every error at once.
    """
    shelf = shelf or Shelf()
    problems: list[str] = []
    first = []
    for entry in plan.entries:
        try:
            first.append(_item(plan, entry, out, data_dir, shelf))
        except UserError as error:
            if str(error) not in problems:
                problems.append(str(error))
    if problems:
        raise UserError("; ".join(problems))
    return [
        replace(item, recipe=replace(item.recipe, seed=seed))
        for seed in plan.seeds
        for item in first
    ]


def _item(
    plan: Plan,
    entry: Entry,
    out: Path,
    data_dir: Path | None,
    shelf: Shelf,
) -> Item:
    unbounded = plan.budget is not None and entry.rounds is None
    recipe = entry.recipe(rounds=MANY_ROUNDS if unbounded else None)
    if data_dir is not None:
        recipe = replace(recipe, data_dir=str(data_dir.expanduser().absolute()))
    dataset = shelf.load(recipe.data, recipe.data_dir)
    choose_device(recipe.device)
    images = len(Split.of(recipe, dataset, torch.device("cpu")).train)
    images = (images // recipe.batch_size or 1) * recipe.batch_size
    threat = recipe.threat(dataset.eps)
    cost = entry.cost or _cost(recipe, threat)
    if unbounded:
        assert plan.budget is not None
        rounds = max(1, math.floor(plan.budget / (cost * images) + 0.5))
        recipe = replace(entry.recipe(rounds=rounds), data_dir=recipe.data_dir)
    n = plan.judging.n
    if n is not None and n > len(dataset.test):
        raise UserError(f"evaluate.n must lie in 1..{len(dataset.test)}, got {n}")
    sample = shelf.sample(dataset, n, plan.judging.first)
    judging = replace(plan.judging, n=sample.n).complete(threat.norm, threat.eps)
    return Item(
        entry=entry.name,
        recipe=recipe,
        out=out,
        judging=judging,
        sample=sample,
        images=images,
        gradients=recipe.rounds * cost * images,
    )


def _cost(recipe: Recipe, threat: Threat) -> float:
    """Return the gradient evaluations that an image takes in a round."""
    cost: float = recipe.settings.build(threat, recipe.rounds).cost(recipe.rounds)
    return cost


def refuse_others(found: Sequence[Item]) -> None:
    """Refuse folders that hold something else than this plan makes.

    Raises:
        UserError: Saying of each in what it differs.
    """
    other, problems = dict[str, list[str]](), []
    for item in found:
        folder = item.run.path
        if (folder / "recipe.yaml").is_file():
            there = recipes.read(folder / "recipe.yaml")
            changed = _differences(there, item.recipe)
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
