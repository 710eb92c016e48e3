"""Recipes of earlier versions: what shows them, and the same settings in today's words."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from equipoise.objectives.mixed import Mixed
from equipoise.store.runs import Run

FORMER = "a3gt-front"
"""What ``a3gt`` was called in earlier versions, whose ``a3gt`` had a schedule of gamma."""

GONE: tuple[str, ...] = ("anchor", "average_every", "batches", "count", "every", "global_from")
GONE += ("granularity", "inclusive", "momentum", "more_gamma", "source")
"""Settings of a schedule of gamma, which ``a3gt-front`` wrote and ``a3gt`` does not have."""

SCHEDULED = {"anchor": "start", "batches": "own", "count": "since-start", "granularity": "round"}
SCHEDULED |= {"source": "weights", "start": "stable"}
"""What a former ``a3gt`` had, where the defaults of ``generalist`` are others."""


def outdated(given: Mapping[str, Any]) -> str:
    """Return what shows that a run is of an earlier version, in words; empty: nothing does."""
    if given.get("method") == FORMER:
        return f"method {FORMER}, which is a3gt now"
    if given.get("method") == "a3gt" and {"anchor", "granularity"} & {*given}:
        return "an a3gt with a schedule of gamma; generalist and a3gt-paper have one"
    if given.get("method") == "a3gt" and _waits(given):
        return "start.rule=stable; the branches of a3gt start at a fixed round"
    return "alpha in place of horizon" if "alpha" in given else ""


def renewed(given: Mapping[str, Any], run: Run) -> dict[str, Any]:
    """Return the recipe of a run, of an earlier version too, for :func:`recipe.parse`.

    Earlier versions had ``alpha``, the decay a step of the weight average, for ``horizon``. Their
    ``a3gt`` merged two learners with a schedule of gamma, as ``generalist`` does; their
    ``a3gt-front`` is ``a3gt`` now, whose branches may have waited for stable losses.
    """
    new, alpha, old = dict(given), given.get("alpha"), outdated(given)
    if FORMER in old:
        shared = {f.name for f in fields(Mixed)} - {"objective", "weight"}
        trunk = {key: value for key, value in new["robust"].items() if key in shared}
        weight = new.pop("trunk_weight", Mixed.weight)
        new.setdefault("trunk", {"objective": "mix-at", "weight": weight, **trunk})
        new = {key: value for key, value in new.items() if key not in GONE} | {"method": "a3gt"}
    elif "schedule" in old:
        new = SCHEDULED | new | {"method": "generalist"}
    if new.get("method") == "a3gt" and _waits(new):
        new["start"] = {"round": run.read_json("summary.json").get("start", {}).get("round")}
    size = given.get("batch_size")
    if isinstance(alpha, int | float) and 0 <= alpha < 1 and isinstance(size, int) and size > 0:
        images = run.read_json("provenance.json").get("data", {}).get("train", 0)
        del new["alpha"]
        new["horizon"] = horizon_of(alpha, int(images) // size or 1)
    return new


def _waits(given: Mapping[str, Any]) -> bool:
    """Return whether the start waits for stable losses."""
    start = given.get("start")
    return isinstance(start, Mapping) and start.get("rule") == "stable"


def horizon_of(alpha: float, steps: int) -> float:
    """Return the averaging horizon, in rounds of so many steps, of a decay a step."""
    return 1 / ((1 - alpha) * steps) if alpha else 0.0
