"""What the paper states in its text; its tables and figures are not at hand.

He et al., A3GT: An Adaptive Asynchronous Generalized Adversarial Training Method, Electronics
2024, 13, 4052, https://doi.org/10.3390/electronics13204052
"""

__all__ = ["ABOUT", "DATA", "PAPER", "TITLES", "Stated", "blocks", "papers_radius"]

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from equipoise.paper.findings import CLEAN, Panel, Row
from equipoise.paper.measures import by_entry, cell
from equipoise.paper.phrases import attack_name, figure, margin
from equipoise.report import wording
from equipoise.report.content import Block, Cell, Column, Table, file_name

ANY = "every attack"
_EPS = 8 / 255


@dataclass(frozen=True)
class Stated:
    """A number of the paper's text.

    Arguments:
        experiment: The table it belongs to.
        data: The data set.
        entry: The entry it is of.
        attack: ``clean``, ``every attack``, or how the attack's name begins.
        accuracy: The accuracy, a fraction.
        section: Where it stands.
    """

    experiment: str
    data: str
    entry: str
    attack: str
    accuracy: float
    section: str


# All of ResNet-18. The radius of Table 2 is not stated; 8/255, that of section 4.3, is taken.
PAPER = (
    Stated("table2", "cifar10", "standard", CLEAN, 0.9152, "4.2"),
    Stated("table2", "cifar10", "standard", ANY, 0.0, "4.2"),
    Stated("table2", "cifar10", "fat", "pgd-20", 0.4669, "4.2"),
    Stated("table2", "cifar10", "iat", CLEAN, 0.846, "4.2"),
    Stated("table2", "cifar10", "iat", "pgd-20", 0.4083, "4.2"),
    Stated("table3", "mnist", "a3gt", CLEAN, 0.992, "4.3"),
    Stated("table3", "mnist", "a3gt", "mi-fgsm", 0.963, "4.3"),
    Stated("table3", "mnist", "a3gt", "pgd", 0.9613, "4.3"),
    Stated("table3", "svhn", "a3gt", CLEAN, 0.9431, "4.3"),
    Stated("table3", "svhn", "a3gt", "mi-fgsm", 0.563, "4.3"),
)
DATA = {"cifar10": "CIFAR-10", "mnist": "MNIST", "svhn": "SVHN"}

TITLES = {
    "table2": "Table 2: attacks",
    "table3": "Table 3: data sets",
    "fig2": "Figure 2: clean against robust accuracy",
    "fig3": "Figure 3: CMMR against eps",
    "fig4": "Figure 4: CMMR at four radii",
    "fig5": "Figure 5: gamma and c",
    "controls": "Controls: when to start",
    "front": "One run, the whole front",
    "settings": "One default for every front",
}
ABOUT = {
    "table2": "The paper compares an undefended model, FAT, IAT, Generalist and A3GT on CIFAR-10 "
    "with a ResNet-18 under eight attacks (section 4.2).",
    "table3": "The paper repeats the comparison on MNIST and SVHN at eps 8/255 (section 4.3).",
    "fig2": "The paper draws clean against AutoAttack accuracy along training for Generalist, "
    "FAT, PGD-AT (“Madry”) and A3GT (section 4.3).",
    "fig3": "The paper draws CMMR, a composite of accuracy and distortion, against eps for A3GT "
    "and five defences (section 4.4). Its formula is not published; the score here, cmmr-1, is a "
    "definition of our own, so its parts stand beside it and none of its numbers compares with "
    "one of the paper's.",
    "fig4": "The paper shows the same scores as radar charts at eps 0.04, 0.08, 0.12 and 0.16 "
    "(section 4.4). What its axes are cannot be recovered; here an axis is a method.",
    "fig5": "The paper varies the schedule of gamma, the robust learner's weight, and c, the "
    "rounds between two hand-overs, and looks at clean accuracy, PGD, C&W and AutoAttack "
    "(section 4.5).",
    "controls": "Not in the paper: what its adaptive start t′ is worth. The same training "
    "starts to hand over at fixed rounds, never, by the paper's absolute threshold on the loss "
    "(l_h, for t_num rounds), and by the scale-free rule that is the default here.",
    "front": "Not in the paper: a run of a3gt-front holds two branches of one trunk, and every "
    "mix of their weights is a model (docs/fronts.md). Five of its mixes stand beside a training "
    "of mixed AT, or of TRADES, for each point of a front, and beside single models.",
    "settings": "Not in the paper: whether a3gt-front needs to be tuned. One setting at a time is "
    "changed, and the front of the run is measured on held-out training images, so that no test "
    "image has a part in what becomes the default (docs/fronts.md).",
}


def blocks(experiment: str, panel: Panel, rows: Sequence[Row], eps: float) -> list[Block]:
    """Return the paper's numbers beside ours; nothing where its text states none.

    Arguments:
        experiment: The table.
        panel: Where ours were made.
        rows: Our rows at one radius.
        eps: That radius.
    """
    entries = by_entry(rows)
    lines = [s for s in PAPER if s.experiment == experiment and _belongs(s, panel)]
    if not lines:
        return []
    name = file_name(experiment, panel.name, "paper")
    records, shown = [_HEAD], []
    for stated in lines:
        attack, ours = _ours(stated, panel, entries.get(stated.entry, ()))
        gap = (
            ours - stated.accuracy
            if ours is not None and _comparable(stated, panel, eps)
            else None
        )
        most = " at most" if stated.attack == ANY else ""
        shown.append(
            (
                Cell(stated.entry),
                Cell(attack_name(attack) if attack != ANY else ANY),
                Cell(figure(ours) + most, ours) if ours is not None else Cell(),
                Cell(f"{100 * stated.accuracy:.4g}", stated.accuracy),
                Cell(margin(gap, 2), gap) if gap is not None else Cell(),
            )
        )
        records.append((stated.entry, attack, ours, stated.accuracy, gap, stated.section))
    where = ", ".join(dict.fromkeys(DATA[stated.data] for stated in lines))
    heads = ("entry", "attack", "here, %", f"paper ({where}, ResNet-18), %", "difference, points")
    columns = tuple(Column(head, i > 1) for i, head in enumerate(heads))
    notes = (_note(lines[0], panel, eps),)
    title = f"Beside the paper's numbers, {panel.title}"
    return [Table(name, title, columns, tuple(shown), notes, tuple(records))]


_HEAD: tuple[object, ...] = ("entry", "attack", "here", "paper", "difference", "paper_section")


def _belongs(stated: Stated, panel: Panel) -> bool:
    """Return whether a number is shown: in Table 3 beside its own data set alone."""
    return stated.experiment == "table2" or stated.data == panel.data


def _ours(stated: Stated, panel: Panel, rows: Sequence[Row]) -> tuple[str, float | None]:
    """Return which of our attacks it is, and our accuracy; of every attack the highest."""
    if stated.attack == ANY:
        every = [found.mean for name in panel.attacks if (found := cell(rows, name))]
        return ANY, max(every, default=None)
    names = (name for name in (CLEAN, *panel.attacks) if name.startswith(stated.attack))
    attack = next(names, stated.attack)
    ours = cell(rows, attack)
    return attack, ours.mean if ours else None


def _comparable(stated: Stated, panel: Panel, eps: float) -> bool:
    return stated.data == panel.data and panel.norm == "linf" and papers_radius([eps])


def papers_radius(radii: Iterable[float]) -> bool:
    """Return whether all radii are the paper's, 8/255."""
    return all(math.isclose(eps, _EPS, rel_tol=1e-3) for eps in radii)


def _note(stated: Stated, panel: Panel, eps: float) -> str:
    network = "" if panel.model.startswith("resnet-18") else f" The network here is {panel.model}."
    if _comparable(stated, panel, eps):
        radius = " The text names no radius for Table 2; 8/255 is taken, that of its Table 3."
        return (
            "The same data set and radius as in the paper."
            + (radius if stated.experiment == "table2" else "")
            + network
            + " The paper's training settings are not stated."
        )
    here = f"{panel.data} at {wording.threat_text(panel.norm, eps)}"
    return (
        f"No difference is given: the paper's numbers are of {DATA[stated.data]} at eps 8/255, "
        f"those here of {here}.{network}"
    )
