"""The paper's tables and figures as plans: which trainings, judged how.

``SCALE.yaml`` beside this file names pools of trainings, and for every experiment its views: of a
pool some entries and seeds, and how they are judged. A pool is written like the plan of a
comparison (:mod:`equipoise.plans.comparison`); what is new in it:

==============  ==============================================================================
published       entries lie over the published settings of their methods for the pool's data
grids           entries made of all combinations of some settings
==============  ==============================================================================

and in a view:

==============  ==============================================================================
entries         names of the pool's entries, with ``*`` for any ending; all by default
eps             radii of the attacks; 0 is the clean accuracy
snapshots       judge the global model of every round that the training kept, too
gammas          judge new mixes of the last weights of a clean and a robust learner, too
cmmr            compute the composite score of :mod:`equipoise.measures.cmmr`
front           measure so many models between the two learners, as ``equipoise front`` does: on
                held-out training images instead of test images
==============  ==============================================================================
"""

__all__ = ["EXPERIMENTS", "SCALES", "View", "views"]

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from importlib import resources
from itertools import product
from pathlib import Path
from typing import Any

import yaml

from equipoise.errors import UserError, nearest
from equipoise.plans import comparison
from equipoise.plans.comparison import Plan
from equipoise.settings import recipe as recipes

SCALES = {
    "smoke": "digits, minutes: shows that everything runs",
    "cpu": "Fashion-MNIST and MNIST with a small CNN, hours on two cores",
    "full": "CIFAR-10, MNIST and SVHN with ResNet-18, as in the paper: days on a GPU",
}
EXPERIMENTS = {
    "table2": "clean and robust accuracy of every method under every attack",
    "table3": "the same on MNIST and SVHN, and on MNIST at 0.3",
    "fig2": "clean against AutoAttack accuracy, along training and along the final gamma",
    "fig3": "CMMR against eps",
    "fig4": "CMMR as a radar at four radii",
    "fig5": "the ablation over gamma and c",
    "controls": "does it matter when the learners are synchronised?",
    "front": "does one run hold the front of many trainings?",
    "settings": "does one setting of a front serve all data sets and networks?",
}
SLICE = {"rounds": 2, "limit": 576, "validation": 64, "batch_size": 64, "width": 0.125}
SLICE_N = 8


@dataclass(frozen=True, kw_only=True)
class View:
    """What an experiment looks at: some trainings of a pool, and how they are judged.

    Arguments:
        experiment: The experiment.
        pool: The name of the pool.
        plan: Its entries of this view, their seeds and how they are judged.
        eps: The radii of the attacks; none: that of the training.
        snapshots: Whether kept global models of earlier rounds are judged, too.
        gammas: New mixes of two learners that are judged.
        cmmr: Whether the composite score is computed.
        front: How many models between two learners are measured on held-out images, instead of
            any on test images; None: the other way round.
    """

    experiment: str
    pool: str
    plan: Plan
    eps: tuple[float, ...] = ()
    snapshots: bool = False
    gammas: tuple[float, ...] = ()
    cmmr: bool = False
    front: int | None = None


def views(
    scale: str,
    experiments: Sequence[str],
    *,
    only: Sequence[str] = (),
    slice_: bool = False,
    files: Mapping[str, Path] | None = None,
) -> list[View]:
    """Return what some experiments look at.

    Arguments:
        scale: A name of :data:`SCALES`.
        experiments: Names of :data:`EXPERIMENTS`, or ``all``.
        only: Names of entries, with ``*`` for any ending; none: all. Views that have none of
            them are left out.
        slice_: Whether trainings and evaluations are cut down to a trial.
        files: ``.npz`` files that are taken in the place of a data set, by its name.

    Raises:
        UserError: If a name is unknown.
    """
    if scale not in SCALES:
        raise UserError(nearest(scale, SCALES, "scale"))
    for name in experiments:
        if name not in (*EXPERIMENTS, "all"):
            raise UserError(nearest(name, [*EXPERIMENTS, "all"], "experiment"))
    content = _content(scale)
    pools = _replaced(content["pools"], files or {})
    wanted = [n for n in EXPERIMENTS if n in experiments or "all" in experiments]
    every = [(name, given) for name in wanted for given in content[name]]
    entries = [_chosen(given, pools, slice_) for _, given in every]
    kept = [{n: e for n, e in found.items() if _named(n, only or "*")} for found in entries]
    known = dict.fromkeys(name for found in entries for name in found)
    for pattern in only:
        if not any(fnmatchcase(name, pattern) for name in known):
            raise UserError(nearest(pattern, known, "entry"))
    return [
        _view(name, given, pools[given["pool"]], found, slice_)
        for (name, given), found in zip(every, kept, strict=True)
        if found
    ]


@cache
def _content(scale: str) -> Mapping[str, Any]:
    text = resources.files(__name__).joinpath(f"{scale}.yaml").read_text(encoding="utf-8")
    content: Mapping[str, Any] = yaml.safe_load(text)
    return content


def _replaced(pools: Mapping[str, Any], files: Mapping[str, Path]) -> Mapping[str, Any]:
    """Return the pools with files in the place of data sets, of which their titles tell."""
    known = dict.fromkeys(pool["base"]["data"] for pool in pools.values())
    for name in files:
        if name not in known:
            raise UserError(nearest(name, known, "data set of this scale"))
    return {
        name: {**pool, "file": files[data], "title": f"{pool['title']} ({files[data].name})"}
        if (data := pool["base"]["data"]) in files
        else pool
        for name, pool in pools.items()
    }


def _named(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _chosen(
    given: Mapping[str, Any], pools: Mapping[str, Any], slice_: bool
) -> dict[str, dict[str, Any]]:
    """Return the entries of a view, in its order."""
    entries = _entries(pools[given["pool"]], slice_)
    patterns = given.get("entries", ["*"])
    assert all(any(fnmatchcase(n, p) for n in entries) for p in patterns), patterns
    return {n: entries[n] for p in patterns for n in entries if fnmatchcase(n, p)}


def _view(
    experiment: str,
    given: Mapping[str, Any],
    pool: Mapping[str, Any],
    entries: Mapping[str, Any],
    slice_: bool,
) -> View:
    judged, seeds = dict(given["evaluate"]), given["seeds"]
    if slice_:
        judged["n"], seeds = SLICE_N, seeds[:1]
    plan: dict[str, Any] = {
        "title": pool["title"],
        "entries": entries,
        "seeds": seeds,
        "evaluate": judged,
    }
    if "budget" in pool and not slice_:
        plan["budget"] = pool["budget"]
    return View(
        experiment=experiment,
        pool=given["pool"],
        plan=comparison.parse(plan),
        eps=_cut(given.get("eps", ()), slice_),
        snapshots=given.get("snapshots", False),
        gammas=_cut(given.get("gammas", ()), slice_),
        cmmr=given.get("cmmr", False),
        front=given.get("front"),
    )


def _cut(values: Sequence[float], slice_: bool) -> tuple[float, ...]:
    """Return values; of a slice the ends alone."""
    return tuple(values[:1]) + tuple(values[-1:]) if slice_ and len(values) > 2 else tuple(values)


def _entries(pool: Mapping[str, Any], slice_: bool) -> dict[str, dict[str, Any]]:
    """Return the entries of a pool, everything that lies under them included."""
    named = dict(pool.get("entries", {}))
    for grid in pool.get("grids", ()):
        named |= dict(_grid(grid))
    return {name: _entry(name, own, pool, slice_) for name, own in named.items()}


def _entry(
    name: str, own: Mapping[str, Any], pool: Mapping[str, Any], slice_: bool
) -> dict[str, Any]:
    own = dict(own)
    cost = own.pop("cost", None)
    settings = recipes.combine({"method": name}, pool["base"], own)
    if pool.get("published"):
        settings = recipes.published(settings["method"], pool["base"]["data"]).under(settings)
    if "file" in pool:
        settings |= {"data": str(pool["file"])}
    if slice_:
        settings |= SLICE | ({"snapshots": 1} if "snapshots" in settings else {})
    return settings | ({"cost": cost} if cost is not None and not slice_ else {})


def _grid(grid: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield an entry for each combination of a grid, with its name."""
    keys = list(grid["over"])
    for values in product(*grid["over"].values()):
        name, entry = grid["name"], dict(grid["entry"])
        for key, value in zip(keys, values, strict=True):
            *parents, last = key.split(".")
            place = entry
            for parent in parents:
                place[parent] = dict(place[parent])
                place = place[parent]
            place[last] = value
            name = name.replace(f"{{{key}}}", _short(value))
        yield name, entry


def _short(value: Any) -> str:
    """Return a value as a part of a name."""
    return "-".join(map(str, value)) if isinstance(value, list) else str(value)
