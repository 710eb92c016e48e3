"""The result of a hardening, read from its folder."""

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import nn

from equipoise.errors import UserError
from equipoise.fronts.record import FrontRecord
from equipoise.measures.by_class import classes_in_words
from equipoise.measures.statistics import outwards
from equipoise.store.runs import HARDENED, HARDENING, Run
from equipoise.store.scan import Scan
from equipoise.store.verdicts import Verdicts
from equipoise.terminal.table import TextTable, accuracy
from equipoise.threat import Threat

DATA = "data.npz"
ORIGINAL, TRAINING = "original", "training"
SHOWN = (0.5, 1, 2)  # times the radius in question: what is said of the scan
PHASES = ("scan", "plan", "training", "front", "pick", "evaluation", "report")


class Hardened:
    """A hardened model with what was measured of it and of the original.

    Arguments:
        path: The folder of the hardening.

    Raises:
        UserError: If the hardening is not finished.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.record = Run(path).read_json(HARDENING)
        if "result" not in self.record:
            raise UserError(f"the hardening in {path} is not finished: the same call goes on")

    @property
    def result(self) -> Mapping[str, Any]:
        """The counts on test images, and whether the floor is promised."""
        return dict(self.record["result"])

    @property
    def run(self) -> Run:
        """The run folder of the hardened model."""
        return Run.open(self.path / HARDENED)

    @cached_property
    def model(self) -> nn.Module:
        """The hardened model, in eval mode, on the CPU."""
        return self.run.model()

    @property
    def front(self) -> FrontRecord | None:
        """The front that it was picked from, measured on held-out images."""
        return FrontRecord.read(self.path / TRAINING)

    @property
    def promised(self) -> bool:
        """Whether the clean floor is promised, with 95 % confidence, from held-out images."""
        return bool(self.result["promised"])

    @property
    def clean_accuracy(self) -> float:
        """The share of test images that the hardened model classifies correctly."""
        return float(self.result[HARDENED]["clean"] / self.result["n"])

    @property
    def robust_accuracy(self) -> float:
        """The share of test images that are robust under an audited search: an upper bound."""
        return float(self.result[HARDENED]["robust"] / self.result["n"])

    def shown(self) -> TextTable:
        """Return both models as a table, on the same test images."""
        result, asked = self.result, self.record["asked"]
        n, rows = result["n"], []
        for name in (ORIGINAL, HARDENED):
            clean, robust = (accuracy(result[name][key], n) for key in ("clean", "robust"))
            at_least = result[name]["robust_at_least"]
            least = "" if at_least is None else f"{outwards((at_least, 1))[0]:.1f}%"
            rows.append((name, *clean[:2], *robust[:2], least, ""))
        threat = Threat(asked["recipe"]["norm"], asked["eps"])
        _, most = outwards((0, max(result["drop_at_most"], 0)), 2)
        header = ("", "clean", "95 % interval", "robust", "95 % interval", "at least", "")
        lost, gained = result["lost"], result["gained"]
        classes = [(name, classes_in_words(result[name])) for name in (ORIGINAL, HARDENED)]
        notes = (
            *(f"{name}, clean / robust: {words}." for name, words in classes if words),
            f"{result['promise']}.",
            (
                f"On test images: {lost} lost and {gained} gained, a loss of "
                f"{100 * (lost - gained) / n:.2f} points of clean accuracy; with 95 % confidence "
                f"it is at most {most:.2f}."
            ),
        )
        return TextTable(f"{threat}, {n:,} test images, audited", header, rows, notes)

    def __repr__(self) -> str:
        return self.shown().text()

    def _repr_html_(self) -> str:
        return self.shown().html()


def promise(picked: Mapping[str, Any], drop: float) -> str:
    """Return in words whether the floor is promised; if not, what would help.

    Arguments:
        picked: The content of ``picked.json``.
        drop: The largest allowed loss of clean accuracy.
    """
    n, floor = picked["compared"], f"a loss of at most {100 * drop:g} points of clean accuracy"
    if picked.get("met", True):
        return f"{floor} is promised with 95 % confidence, from {n:,} held-out images"
    needed = picked.get("needed")
    remedy = (
        f"about {needed:,} held-out images would do, if the models differ from the original as "
        f"they do on these {n:,} (validation=, or more images in photos/val)"
        if needed
        else f"more held-out images would not do: on these {n:,} every model lost more; allow a "
        "larger loss, train longer (rounds=), or against a smaller eps"
    )
    return f"FLOOR NOT PROMISED: {floor} cannot be promised; {remedy}"


def said_of(scan: Scan) -> Mapping[str, Any]:
    """Return what a hardening says of a scan."""
    radii = [eps for eps in scan.radii if round(eps / scan.eps, 6) in SHOWN]
    return {
        "n": scan.n,
        "clean": scan.clean_accuracy,
        "robust": [[eps, scan.accuracy(eps)] for eps in radii],
        "seconds": scan.seconds,
    }


def counted(verdicts: Verdicts) -> Mapping[str, Any]:
    """Return how many images a model classifies correctly, and how many robustly."""
    audit = verdicts.audit
    return {
        "clean": int(verdicts.correct.sum()),
        "robust": int(verdicts.robust.sum()),
        "robust_at_least": None if audit is None else audit.lower,
        **verdicts.by_class,
    }
