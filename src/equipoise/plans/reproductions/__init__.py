"""The paper's tables and figures as plans.

``SCALE.yaml`` has pools of trainings, each the beginning of a plan (:mod:`equipoise.plans.plan`),
and for every experiment one or several plans: the name of a ``pool``, and the keys that it adds.
Experiments share the trainings of a pool.
"""

__all__ = ["EXPERIMENTS", "SCALES", "plans"]

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from equipoise.errors import UserError, nearest
from equipoise.plans.plan import Plan, parse

SCALES = ("smoke", "cpu", "full")
EXPERIMENTS = {
    "table2": "clean and robust accuracy of every method under every attack",
    "table3": "the same on MNIST and SVHN, and on MNIST at 0.3",
    "fig2": "clean against AutoAttack accuracy, along training and along the final gamma",
    "fig3": "CMMR against eps",
    "fig4": "CMMR as a radar at four radii",
    "fig5": "the ablation over gamma and c",
    "controls": "does the round t' of the first merge matter?",
    "front": "one a3gt run against one training for each trade-off",
    "settings": "do the defaults of a3gt suit other datasets and networks?",
}
SLICE = {"rounds": 2, "limit": 320, "validation": 64, "batch_size": 64, "width": 0.125}
SLICE_N = 8


def plans(
    scale: str,
    experiments: Sequence[str],
    *,
    only: Sequence[str] = (),
    slice_: bool = False,
    files: Mapping[str, Path] | None = None,
) -> dict[str, list[Plan]]:
    """Return the plans of some experiments, by the names of these.

    Arguments:
        scale: A name of :data:`SCALES`.
        experiments: Names of :data:`EXPERIMENTS`, or ``all``.
        only: Names of entries, with ``*`` for any ending; empty: all. Plans without them are
            left out.
        slice_: Whether trainings and evaluations are cut down to a trial.
        files: ``.npz`` files that replace datasets, by the names of these.

    Raises:
        UserError: If a name is unknown.
    """
    if scale not in SCALES:
        raise UserError(nearest(scale, SCALES, "scale"))
    for name in experiments:
        if name not in (*EXPERIMENTS, "all"):
            raise UserError(nearest(name, [*EXPERIMENTS, "all"], "experiment"))
    content = _content(scale)
    pools = _with_files(content["pools"], files or {})
    made = {
        name: [_plan(pools, given, slice_) for given in content[name]]
        for name in EXPERIMENTS
        if name in experiments or "all" in experiments
    }
    names = dict.fromkeys(e.name for some in made.values() for plan in some for e in plan.entries)
    for pattern in only:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise UserError(nearest(pattern, names, "entry"))
    chosen = {name: [plan.only(only or "*") for plan in some] for name, some in made.items()}
    nonempty = {name: [plan for plan in some if plan.entries] for name, some in chosen.items()}
    return {name: some for name, some in nonempty.items() if some}


@cache
def _content(scale: str) -> Mapping[str, Any]:
    text = resources.files(__name__).joinpath(f"{scale}.yaml").read_text(encoding="utf-8")
    content: Mapping[str, Any] = yaml.safe_load(text)
    return content


def _with_files(pools: Mapping[str, Any], files: Mapping[str, Path]) -> Mapping[str, Any]:
    """Return the pools with files instead of datasets, and their names in the titles."""
    changed = dict(pools)
    datasets = {name: pool["base"]["data"] for name, pool in pools.items()}
    for data, file in files.items():
        if data not in datasets.values():
            raise UserError(
                nearest(data, dict.fromkeys(datasets.values()), "dataset of this scale")
            )
        for name in (name for name in pools if datasets[name] == data):
            pool = pools[name]
            base, title = {**pool["base"], "data": str(file)}, f"{pool['title']} ({file.name})"
            changed[name] = {**pool, "base": base, "title": title}
            if pool.get("published"):
                changed[name]["published"] = data
    return changed


def _plan(pools: Mapping[str, Any], given: Mapping[str, Any], slice_: bool) -> Plan:
    whole = {**pools[given["pool"]], **given}
    name = whole.pop("pool")
    return parse(_slice(whole) if slice_ else whole, name)


def _slice(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return a plan cut down to a trial: short trainings, one seed, few images, few models."""
    over = SLICE | ({"snapshots": 1} if "snapshots" in given["base"] else {})
    cut = {key: value for key, value in given.items() if key != "budget"}
    entries = given.get("entries", {}).items()
    cut["entries"] = {n: {k: v for k, v in e.items() if k != "cost"} | over for n, e in entries}
    cut["grids"] = [{**g, "entry": {**g["entry"], **over}} for g in given.get("grids", ())]
    cut["seeds"] = given["seeds"][:1]
    judged = {**given["evaluate"], "n": SLICE_N}
    mixes = [name for name in judged.get("weights", ()) if name.startswith("gamma-")]
    if mixes:
        judged["weights"] = [w for w in judged["weights"] if w not in mixes[1:-1]]
    if "eps" in judged:
        judged["eps"] = [judged["eps"][0], judged["eps"][-1]]
    cut["evaluate"] = judged
    return cut
