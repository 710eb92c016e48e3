"""What a training starts from: the data, the recipe with what depends on them, and the model."""

from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import asdict, replace
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from equipoise import attacks, data, models
from equipoise.data.core import Dataset
from equipoise.data.reading import absolute, settled
from equipoise.errors import UserError
from equipoise.jobs.device import choose_device, cuda_devices
from equipoise.models import MODELS, begin, origin
from equipoise.models.foreign import MUTE
from equipoise.models.normalisation import Constants
from equipoise.models.origin import Origin
from equipoise.settings.recipe import Recipe
from equipoise.terminal.progress import Console
from equipoise.threat import Threat
from equipoise.training.learner import derived_seed
from equipoise.training.method import Method


def resolve(recipe: Recipe, console: Console) -> tuple[Recipe, Dataset, Method]:
    """Load the data; return the recipe with what depends on them filled in, and its method."""
    dataset = recipe.dataset(console=console)
    threat = recipe.threat(dataset.eps)
    method = recipe.settings.build(threat)
    for learner_threat in threats_of(method, threat):
        attack = {recipe.validation_attack: attacks.parse(recipe.validation_attack)}
        attacks.check_norms(attack, learner_threat.norm)
    robust = any(o.state.threat is not None for o in method.learners.values())
    at_end = recipe.settings.chooses and recipe.patience is None
    device = choose_device(recipe.device)
    execution = recipe.execution.resolved(device, own=models.house(recipe.model))
    resolved = replace(
        recipe,
        data=settled(recipe.data, data.DATASETS),
        data_dir=None if recipe.data_dir is None else absolute(recipe.data_dir),
        **vars(recipe.reading.settled()),
        model=origin.absolute(recipe.model),
        weights=origin.absolute_weights(recipe.weights),
        eps=threat.eps,
        keep=recipe.keep or ("last" if at_end else "balanced" if robust else "clean"),
        **asdict(execution),
    )
    if dataset.validation is None and recipe.validation > max(
        len(dataset.train), Recipe.validation
    ):
        raise UserError(
            f"validation={recipe.validation} is more than the {len(dataset.train)} training "
            "images of the data; at most a fifth of them is held out"
        )
    return resolved, dataset, method


def threats_of(method: Method, threat: Threat) -> tuple[Threat, ...]:
    """Return the different threats of a method's objectives, that of the recipe first."""
    threats = [objective.state.threat for objective in method.learners.values()]
    different = dict.fromkeys(each for each in threats if each is not None)
    return tuple(sorted(different, key=lambda each: each != threat)) or (threat,)


def initial_model(
    recipe: Recipe,
    dataset: Dataset,
    given: nn.Module | None = None,
    begun: Mapping[str, Any] = MappingProxyType({}),
    say: Callable[[str], None] = MUTE,
) -> tuple[nn.Module, Mapping[str, Any]]:
    """Return the model that a training starts from, and what ``config.json`` says of it.

    Arguments:
        recipe: The recipe.
        dataset: Its data.
        given: The model, if it was given from Python.
        begun: The ``config.json`` of a training that continues from its state, whose weights
            count; empty: the training is new.
        say: Shows a line about each choice that was made.

    Raises:
        UserError: If model, weights and data do not fit.
    """
    settings = dataset.settings | {"width": recipe.width}
    with begin.seeded(derived_seed(recipe.seed, "model"), cuda_devices()):
        if recipe.model in MODELS:
            return _by_name(recipe, settings, begun, say)
        if begun:
            again = Origin.of(begun.get("origin"))
            return again.build(), {"settings": settings, "origin": begun["origin"]}
        model, about = begin.begin(
            recipe.model,
            shape=(dataset.channels, *dataset.size),
            classes=len(dataset.classes),
            weights=recipe.weights,
            normalise=recipe.asked,
            given=given,
            say=say,
        )
    return model, {"settings": settings, "origin": about.content()}


def _by_name(
    recipe: Recipe, given: Mapping[str, Any], begun: Mapping[str, Any], say: Callable[[str], None]
) -> tuple[nn.Module, Mapping[str, Any]]:
    asked, settings = recipe.asked, dict(given)
    if asked == "none":
        settings |= {"mean": [0.0] * settings["channels"], "std": [1.0] * settings["channels"]}
    elif isinstance(asked, Constants):
        settings |= asked.check(settings["channels"]).content()
    model = models.build(recipe.model, settings)
    if recipe.weights in (None, origin.RANDOM):
        return model, {"settings": settings}
    if "origin" in begun:
        return model, {"settings": settings, "origin": begun["origin"]}
    x = torch.rand(2, settings["channels"], *settings["size"])
    front = deepcopy(model.normalize.state_dict())
    remarks: list[str] = []
    begin.load(model, str(recipe.weights), x, recipe.model, None, remarks.append)
    if asked is not None:
        model.normalize.load_state_dict(front)
    for line in remarks:
        say(line)
    weights = {"weights": begin.described(recipe.weights), "remarks": remarks}
    return model, {"settings": settings, "origin": weights}
