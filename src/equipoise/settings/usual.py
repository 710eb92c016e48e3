"""What a learner's settings are if they are not given: they depend on optimiser and start."""

from collections.abc import Iterator, Mapping, MutableMapping
from typing import Any

from equipoise.errors import UserError, nearest

USUAL: dict[tuple[str, bool], dict[str, float]] = {
    ("adamw", False): {"lr": 0.001, "weight_decay": 0.01},
    ("adamw", True): {"lr": 0.0001, "weight_decay": 0.01},
}
"""By the optimiser, and whether the training starts from given weights: other defaults.

SGD has 0.05 in both cases: features that are not robust have to change, and at 0.01 trainings from
such weights were less robust and less accurate (docs/log.md, entry 24).
"""

SCHEDULES: dict[str, dict[str, Any]] = {
    "piecewise": {
        "lr_factors": [0.1, 1.0, 0.1, 0.005],
        "lr_at": [0.0, 0.1, 0.667, 1.0],
        "lr_curve": "linear",
    },
    "cosine": {"lr_factors": [0.1, 1.0, 0.0], "lr_at": [0.0, 0.1, 1.0], "lr_curve": "cosine"},
}
"""The short forms of the schedule of a learning rate."""


def groups(given: Mapping[str, Any], roles: tuple[str, ...]) -> Iterator[MutableMapping[str, Any]]:
    """Yield the groups of settings of the learners, those of further learners too."""
    more = given.get("more")
    further = more.values() if isinstance(more, Mapping) else ()
    for group in [*(given.get(role) for role in roles), *further]:
        if isinstance(group, dict):
            yield group


def scheduled(group: MutableMapping[str, Any]) -> None:
    """Write out the short form ``schedule`` in the settings of a learner.

    Raises:
        UserError: If there is no such schedule.
    """
    if "schedule" not in group:
        return
    name = str(group.pop("schedule"))
    if name not in SCHEDULES:
        raise UserError(nearest(name, SCHEDULES, "schedule"))
    for key, value in SCHEDULES[name].items():
        group.setdefault(key, value)


def from_weights(given: Mapping[str, Any]) -> bool:
    """Return whether a recipe's training starts from weights that are given."""
    weights, model = given.get("weights"), str(given.get("model", ""))
    if weights is not None:
        return bool(weights != "random")
    return model.startswith(("timm:", "hf:", "torchvision:"))


def complete(given: MutableMapping[str, Any], roles: tuple[str, ...], *, trained: bool) -> None:
    """Add to settings what learners usually have, where it is not given.

    Arguments:
        given: The settings, written out.
        roles: The learners that the method has.
        trained: Whether the training starts from given weights.
    """
    for role in roles:
        given.setdefault(role, {})
    for group in groups(given, roles):
        for key, value in USUAL.get((str(group.get("optimizer", "sgd")), trained), {}).items():
            group.setdefault(key, value)
