"""An interim view of results as rows of models."""

__all__ = ["CLEAN", "ENSEMBLE", "EXPERIMENTS", "WORST", "Findings", "Panel", "Row", "read"]

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from equipoise.paper import results
from equipoise.paper.results import AUTOATTACK as ENSEMBLE
from equipoise.paper.results import CLEAN, EXPERIMENTS, WORST
from equipoise.paper.results import PanelInfo as Panel

_PARTS = ("score", "accuracy", "success", "distortion", "ass", "mse", "ald2", "psnr")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One model, attacked at one radius.

    Arguments:
        panel: The panel it belongs to.
        entry: Its entry.
        seed: Its seed.
        weights: Which weights of the training: ``model``, ``round-005``, ``gamma-0.4``, ...
        eps: The radius.
        n: The images it was shown.
        sample: The checksum of these images; empty where it is not known.
        correct: By attack, how many it still gets right.
        verdicts: By attack, which ones; may lack what ``correct`` has.
        rounds: The rounds of its training.
        round: The round, of a snapshot.
        gamma: The weight of the robust learner, of learners that were mixed anew.
        t_start: The round t'; None if none was found or none was looked for.
        gradient_evaluations: What the training took.
        training_seconds: How long the training took.
        evaluation_seconds: How long the attacks took.
        settings: The whole recipe of the training.
        cmmr: The composite score and its parts, if it was measured; what is not there is absent.
    """

    panel: str
    entry: str
    seed: int
    weights: str
    eps: float
    n: int
    sample: str
    correct: Mapping[str, int]
    verdicts: Mapping[str, NDArray[np.bool_]]
    rounds: int | None
    round: int | None
    gamma: float | None
    t_start: int | None
    gradient_evaluations: float | None
    training_seconds: float | None
    evaluation_seconds: float | None
    settings: Mapping[str, Any]
    cmmr: Mapping[str, float]

    def accuracy(self, attack: str) -> float | None:
        """Return the share of images that it still gets right, or None."""
        count = self.correct.get(attack)
        return None if count is None else count / self.n

    @property
    def start_rule(self) -> Mapping[str, Any]:
        """Return the settings of the rule for t'; of other methods nothing."""
        rule = self.settings.get("start")
        return rule if isinstance(rule, Mapping) else {}

    @property
    def handovers(self) -> list[int] | None:
        """Return the rounds with a hand-over, by the recipe; None if that cannot be told."""
        every, last = self.settings.get("every"), self.rounds
        if self.t_start is None or not isinstance(every, int) or last is None:
            return None if self.t_start is not None else []
        first = self.t_start + (0 if self.settings.get("inclusive", True) else 1)
        origin = 0 if self.settings.get("count") == "rounds" else self.t_start
        return [t for t in range(first, last + 1) if (t - origin) % every == 0]


@dataclass(frozen=True, kw_only=True)
class Findings:
    """What an experiment found.

    Arguments:
        experiment: Its name, one of ``EXPERIMENTS``.
        scale: The scale it was made at.
        command: The command that makes it.
        planned: How many evaluations there are to be; None if that is not told.
        missing: What is not there yet, a line each.
        panels: Where it was made.
        rows: What was found.
    """

    experiment: str
    scale: str
    command: str
    planned: int | None
    missing: tuple[str, ...]
    panels: tuple[Panel, ...]
    rows: tuple[Row, ...]

    def of(self, panel: Panel, *, weights: str | None = "model") -> list[Row]:
        """Return the rows of a panel, in the order of its entries and seeds.

        Arguments:
            panel: The panel.
            weights: Whose weights; None: all.
        """
        order = {name: i for i, name in enumerate(panel.entries)}
        mine = [r for r in self.rows if r.panel == panel.name and weights in (None, r.weights)]
        return sorted(mine, key=lambda r: (order.get(r.entry, len(order)), r.entry, r.seed, r.eps))


def read(path: Path) -> Findings:
    """Return the findings that a file holds."""
    found = results.read(path)
    rows = []
    keys = ["panel", "entry", "seed", "weights", "eps"]
    for key, mine in found.table.groupby(keys, sort=False):
        panel, entry, seed, weights, eps = cast(tuple[Any, ...], key)
        shown = next(p for p in found.panels if p.name == panel).attacks
        some = mine if WORST in shown else mine[mine["attack"] != WORST]
        one = mine[mine["attack"] == WORST].iloc[0]
        parts = {k: one.get(f"cmmr_{k}") for k in _PARTS}
        score = {k: float(v) for k, v in parts.items() if v is not None and v == v}
        rows.append(
            Row(
                panel=panel,
                entry=entry,
                seed=seed,
                weights=weights,
                eps=eps,
                n=one["n"],
                sample=one["sample"],
                correct=dict(zip(some["attack"], some["correct"], strict=True)),
                verdicts=dict(zip(some["attack"], some["flags"], strict=True)),
                rounds=one["rounds"],
                round=one["round"],
                gamma=one["gamma"],
                t_start=one["t_start"],
                gradient_evaluations=one["gradient_evaluations"],
                training_seconds=one["training_seconds"],
                evaluation_seconds=_seconds(mine),
                settings=one["settings"],
                cmmr=score,
            )
        )
    return Findings(
        experiment=found.experiment,
        scale=found.scale,
        command=found.command,
        planned=found.planned,
        missing=found.missing,
        panels=found.panels,
        rows=tuple(rows),
    )


def _seconds(rows: Any) -> float:
    of = dict(zip(rows["attack"], rows["seconds"], strict=True))
    total = of.pop(WORST, None)
    return float(total) if total is not None else sum(s for s in of.values() if s is not None)
