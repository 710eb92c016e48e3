"""The recipe of a finished training that gets more rounds.

The learning rate begins anew for the added rounds: at the end of a training it is nearly zero.
Everything else that is scheduled is over, and stays as it was at the end: places that a recipe
gives as parts of all rounds are written as parts of the new number of them.
"""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from equipoise.errors import UserError
from equipoise.objectives.core import Objective
from equipoise.settings import recipe as recipes
from equipoise.settings.recipe import Recipe
from equipoise.training.start import Fixed

PLACES = ("awp_from", "onset")
LISTS = {"tau_at": "tau", "beta_at": "beta_factors"}


def longer(recipe: Recipe, rounds: int, done: int, start: int | None) -> Recipe:
    """Return the recipe of a finished training with more rounds.

    Arguments:
        recipe: That of the training.
        rounds: The new number of rounds, those that are done included.
        done: How many rounds are done.
        start: t' of the training; None: it has none.

    Raises:
        UserError: If it has as many rounds already.
    """
    if rounds <= max(done, recipe.rounds):
        had = f"{done} of {recipe.rounds}" if done != recipe.rounds else str(done)
        raise UserError(
            f"rounds is the number of all rounds, and the training has had {had}: give more"
        )
    part = recipe.rounds / rounds
    written = recipe.to_dict() | {"rounds": rounds, "eps_ramp": part * recipe.eps_ramp}
    for name, objective in recipe.settings.learners.items():
        group = written["more"][name] if name in written.get("more", {}) else written[name]
        group.update(_moved(objective, part))
    if start is not None and "start" in written and recipe.settings.start.rule != "never":
        fixed = Fixed(round=start, losses=recipe.settings.start.losses)
        written["start"] = asdict(fixed)
    return recipes.parse(written)


def _moved(objective: Objective, part: float) -> Mapping[str, Any]:
    """Return the places of an objective's schedules as parts of more rounds."""
    moved: dict[str, Any] = {}
    for name in PLACES:
        if hasattr(objective, name):
            moved[name] = part * getattr(objective, name)
    for name, values in LISTS.items():
        if hasattr(objective, name):
            count = getattr(objective, values)
            if isinstance(count, int):
                continue
            spread = len(count) - (name == "beta_at") or 1  # tau: steps; beta: lines between
            even = [i / spread for i in range(len(count))]
            moved[name] = [part * place for place in getattr(objective, name) or even]
    return moved


def what_becomes(recipe: Recipe, done: int, start: int | None) -> list[str]:
    """Return what the added rounds make of rate, t' and gamma, a sentence each.

    Arguments:
        recipe: The recipe with more rounds.
        done: How many rounds were done before.
        start: t'; None: there is none.
    """
    settings, more = recipe.settings, recipe.rounds - done
    rate = "the learning rate begins anew for them, with momentum and averages as they are"
    which = f"{more} more round{'s' * (more > 1)}, {done + 1} to {recipe.rounds}"
    lines = [f"{which}: {rate}; other schedules are over"]
    if len(settings.learners) > 1 and start is not None:
        lines.append(f"t' stays {start}: the learners go on from round {done}")
    if settings.chooses:
        lines.append("gamma is chosen anew at the end")
    elif len(settings.learners) > 1:
        lines.append(f"gamma stays {settings.gammas[-1]:g}, its last value")
    if recipe.keep != "last":
        lines.append("the model of before stays the kept one if no added round is better")
    return lines
