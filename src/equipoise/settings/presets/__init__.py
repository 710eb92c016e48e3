"""The published settings of every method, a file for each dataset.

A file has ``base``, the settings that all its methods share, ``deviations``, what differs from
the authors' trainings in all of them, and for each of its ``methods``:

* ``source``: whose settings they are, and what of them;
* ``deviations``: what differs from that source, and why;
* ``settings``: the settings, as a recipe has them; those of ``base`` lie under them.

Only what a paper or its code says is called published; what stands in for a value that nobody
has published is named among the deviations.
"""

__all__ = ["DATA", "Preset", "presets", "published"]

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

import yaml

from equipoise.errors import UserError, nearest
from equipoise.settings.schema import lay

DATA = ("cifar10", "svhn", "mnist")
"""The datasets that have presets."""


@dataclass(frozen=True, kw_only=True)
class Preset:
    """The published settings of a method for a dataset.

    Arguments:
        method: The method.
        data: The dataset.
        source: Whose settings they are, a sentence.
        deviations: What differs from the source, a sentence each; first what is its own.
        settings: The settings, to lie under those of a recipe.
    """

    method: str
    data: str
    source: str
    deviations: tuple[str, ...]
    settings: Mapping[str, Any]

    def lines(self) -> list[str]:
        """Return the source and the deviations as text."""
        return [f"published settings: {self.source}", *(f"  - {line}" for line in self.deviations)]

    def under(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return these settings with the given ones over them, group by group.

        A given rule for t' replaces another one with all its settings.

        Arguments:
            given: Settings with their short forms written out, as ``recipe.combine`` returns them.
        """
        settings, start = lay({}, self.settings), given.get("start")
        if isinstance(start, Mapping) and "start" in settings:
            own = settings["start"]["rule"]
            if start.get("rule", own) != own:
                del settings["start"]
        return lay(settings, given)


def published(method: str, data: str) -> Preset:
    """Return the published settings of a method for a dataset.

    Arguments:
        method: A name of ``equipoise list methods``.
        data: One of ``DATA``.

    Raises:
        UserError: If there are none, with those that exist.
    """
    if data not in DATA:
        raise UserError(
            f"there are no published settings for {data!r} "
            f"(there are for: {', '.join(DATA)}); see equipoise list presets"
        )
    known = {preset.method: preset for preset in presets(data)}
    if method not in known:
        close = nearest(method, known, "method with published settings")
        raise UserError(f"{close}; without --published a method has its own defaults")
    return known[method]


@cache
def presets(data: str) -> tuple[Preset, ...]:
    """Return all presets of a dataset, in the order of its file."""
    text = resources.files(__name__).joinpath(f"{data}.yaml").read_text(encoding="utf-8")
    content = yaml.safe_load(text)
    return tuple(
        Preset(
            method=method,
            data=data,
            source=entry["source"],
            deviations=(*entry["deviations"], *content["deviations"]),
            settings={"method": method, **content["base"], **entry["settings"]},
        )
        for method, entry in content["methods"].items()
    )
