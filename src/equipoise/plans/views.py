"""The runs of a reproduction: trainings that several experiments share, each judged often."""

__all__ = ["Chain", "Look", "chains", "looks"]

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from equipoise.plans.fronts import FrontItem
from equipoise.plans.overview import Shelf
from equipoise.plans.overview import items as plan_items
from equipoise.plans.reproductions import View
from equipoise.plans.runs import Item, Step
from equipoise.settings.recipe import Recipe
from equipoise.store import weight_names as names


@dataclass(frozen=True)
class Look:
    """One evaluation of one training, for one experiment.

    Arguments:
        view: What it is a part of.
        item: The training, and how it is judged.
    """

    view: View
    item: Item

    @property
    def name(self) -> str:
        """Return the training with its pool."""
        return f"{self.view.pool}/{self.item.name}"


@dataclass(frozen=True)
class Chain:
    """A training with all its evaluations: worked off one after the other.

    Arguments:
        items: The training, with each of its evaluations; nothing twice.
    """

    items: tuple[Item, ...]

    @property
    def first(self) -> Item:
        """Return the training with its first evaluation."""
        return self.items[0]

    @property
    def name(self) -> str:
        """Return its name."""
        return f"{self.first.out.name}/{self.first.name}"

    @property
    def recipe(self) -> Recipe:
        """Return what is trained."""
        return self.first.recipe

    @property
    def log(self) -> Path:
        """Return the file that its commands write to."""
        return self.first.log

    @property
    def done(self) -> bool:
        """Tell whether nothing is left to do."""
        return self.step() is None

    @property
    def total(self) -> float:
        """Return its work, in gradient evaluations."""
        return self.first.gradients + sum(item.evaluation for item in self.items)

    def step(self) -> Step | None:
        """Return what is to be done next; None: nothing."""
        return next((step for item in self.items if (step := item.step()) is not None), None)

    def prepare(self) -> None:
        """Make what the next step needs."""
        self.first.prepare()

    def work(self) -> float:
        """Return how much of it is done, in gradient evaluations."""
        if not self.first.trained:
            return self.first.work()
        return self.first.gradients + sum(i.work() - i.gradients for i in self.items)


def looks(
    view: View, folder: Path, data_dir: Path | None, shelf: Shelf | None = None
) -> list[Look]:
    """Return every evaluation of a view.

    Arguments:
        view: The view.
        folder: The folder of the pools.
        data_dir: The folder of the data; by default that of the recipes.
        shelf: What other views have read, to be read no more.
    """
    found = []
    for item in plan_items(view.plan, folder / view.pool, data_dir, shelf):
        if view.front is not None:
            found.append(Look(view, FrontItem.of(item, view.front)))
            continue
        radii: list[float | None] = [eps for eps in view.eps if eps > 0]
        for eps in radii or [item.judging.eps]:
            for which in _weights(view, item):
                judging = replace(item.judging, eps=eps)
                found.append(Look(view, replace(item, judging=judging, weights=which)))
    return found


def _weights(view: View, item: Item) -> list[str]:
    """Return the names of the weights of a training that a view judges."""
    recipe, chosen = item.recipe, ["model"]
    if view.snapshots and recipe.snapshots:
        rounds = range(recipe.snapshots, recipe.rounds, recipe.snapshots)
        chosen += [names.round_name(t) for t in rounds]
    merge = recipe.settings.build(recipe.threat(0.1), recipe.rounds).merge
    if view.gammas and {*merge.weights.knots} == {"clean", "robust"}:
        chosen += [names.canonical(f"gamma-{gamma:g}") for gamma in view.gammas]
    return chosen


def chains(found: Iterable[Look]) -> list[Chain]:
    """Return every training once, with all that is looked at: all of the first seed come first.

    So a reproduction that is broken off has something of every panel.
    """
    grouped: dict[Path, list[Item]] = {}
    for look in found:
        items = grouped.setdefault(look.item.run.path, [])
        if look.item not in items:
            items.append(look.item)
    every = [Chain(tuple(items)) for items in grouped.values()]
    return sorted(every, key=lambda chain: chain.recipe.seed)
