"""Tables 2 and 3: accuracy by attack, A3GT compared image by image, and the paper's numbers."""

import math
from collections.abc import Iterable, Mapping

from equipoise.paper import measures, tradeoff
from equipoise.paper.measures import Rows
from equipoise.paper.prose import prose, seeds_text, signed
from equipoise.paper.results import AUTOATTACK, CLEAN, WORST, PanelInfo
from equipoise.paper.tables import (
    Line,
    Numbers,
    listed_cell,
    number_cell,
    percent_cell,
    points_cell,
    spread_cells,
    table,
)
from equipoise.report import wording
from equipoise.report.content import Block, Cell, Table, file_name

A3GT = "a3gt"
RIVALS = ("generalist", "pgd-at-averaged", "mix-at-25", "mix-at-50", "a3gt-paper")
Entries = Mapping[str, Rows]

# What the paper states in its text: table, dataset, entry, attack (or how its name begins),
# accuracy and section; all of ResNet-18. He et al., A3GT: An Adaptive Asynchronous Generalized
# Adversarial Training Method, Electronics 2024, https://doi.org/10.3390/electronics13204052
ANY = "every attack"
STATED = (
    ("table2", "cifar10", "standard", CLEAN, 0.9152, "4.2"),
    ("table2", "cifar10", "standard", ANY, 0.0, "4.2"),
    ("table2", "cifar10", "fat", "pgd-20", 0.4669, "4.2"),
    ("table2", "cifar10", "iat", CLEAN, 0.846, "4.2"),
    ("table2", "cifar10", "iat", "pgd-20", 0.4083, "4.2"),
    ("table3", "mnist", "a3gt", CLEAN, 0.992, "4.3"),
    ("table3", "mnist", "a3gt", "mi-fgsm", 0.963, "4.3"),
    ("table3", "mnist", "a3gt", "pgd", 0.9613, "4.3"),
    ("table3", "svhn", "a3gt", CLEAN, 0.9431, "4.3"),
    ("table3", "svhn", "a3gt", "mi-fgsm", 0.563, "4.3"),
)


def blocks(panel: PanelInfo, rows: Rows, name: str) -> list[Block]:
    """Return for each radius the accuracies, the comparisons and the trade-off."""
    rows = rows[rows["weights"] == "model"]
    every = measures.radii(rows) or list(panel.eps[:1])
    made: list[Block] = []
    for eps in every:
        mine = rows[rows["eps"] == eps]
        entries = measures.group(mine, "entry")
        own = f"{name}-eps-{file_name(wording.eps_text(eps))}" if len(every) > 1 else name
        title = f"{panel.title}, eps {eps:.4g}" if len(every) > 1 else panel.title
        made.append(_accuracy(panel, mine, own, title))
        made += _beside_paper(name, panel, entries, eps, own)
        made += _pairs(entries, f"{own}-pairs", title)
        made += tradeoff.blocks(panel, entries, own, title)
    return made


def _accuracy(panel: PanelInfo, rows: Rows, name: str, title: str) -> Table:
    attacks = list(dict.fromkeys([CLEAN, *panel.attacks, *measures.evaluated(rows)]))
    entries = dict.fromkeys(panel.entries, rows[:0]) | measures.group(rows, "entry")
    cells, lines, data = spread_cells(entries, attacks), list[Line](), list[Numbers]()
    for entry, mine in entries.items():
        models = mine[mine["attack"] == WORST]
        costs = {head: number_cell(models[column]) for head, column in _COSTS.items()}
        seeds = seeds_text(models["seed"], panel.seeds)
        lines.append({"entry": entry, "seeds": seeds, **cells[entry], **costs})
        known = [measures.accuracies(mine, attack) for attack in attacks]
        numbers = [number for some in known for number in (some.numbers if some else [None] * 5)]
        first = (entry, " ".join(map(str, models["seed"])), min(models["n"], default=None))
        data.append((*first, *numbers, *(cell.value for cell in costs.values())))
    ends = ("", "_lowest", "_highest", "_low95", "_high95")
    head = ["entry", "seeds", "n", *(f"{a}{end}" for a in attacks for end in ends)]
    head += ["gradient_evaluations", "training_seconds", "evaluation_seconds"]
    note = prose("accuracy_note", sizes=sorted({*rows["n"]}), seeds=panel.seeds)
    return table(name, f"Accuracy by attack, {title}", lines, head, data, note)


_COSTS = {
    "gradient evaluations": "gradient_evaluations",
    "training, s": "training_seconds",
    "evaluation, s": "seconds",
}


def _pairs(entries: Entries, name: str, title: str) -> list[Block]:
    lines, data = list[Line](), list[Numbers]()
    for rival in (name for name in RIVALS if name in entries):
        for attack in (CLEAN, AUTOATTACK):
            pairs = measures.paired(entries.get(A3GT), entries[rival], attack)
            if pairs.empty:
                continue
            p = ["<0.001" if p < 0.001 else f"{p:.3f}" for p in pairs["p"]]
            line: Line = {"against": rival, "under": attack}
            line["difference, points"] = points_cell(list(pairs["difference"]))
            line["only a3gt"] = listed_cell(pairs["only_first"])
            line["only other"] = listed_cell(pairs["only_second"])
            line |= {"p": listed_cell(pairs["p"], p), "a3gt is": measures.relation(pairs)}
            lines.append(line)
            columns = ("seed", "difference", "only_first", "only_second", "p")
            rows = zip(*(pairs[column] for column in columns), strict=True)
            data += [(rival, attack, *row) for row in rows]
    if not lines:
        return []
    head = ("against", "attack", "seed", "difference", "only_a3gt", "only_other", "p")
    heading = f"A3GT compared image by image, {title}"
    return [table(name, heading, lines, head, data, prose("pairs_note"))]


def _beside_paper(
    experiment: str, panel: PanelInfo, entries: Entries, eps: float, name: str
) -> list[Block]:
    """Return the paper's numbers beside ours; a difference where data and radius are the same."""
    experiment = experiment.partition("-")[0]
    own = ("table3", panel.data)  # only the numbers of the same dataset, unlike Table 2
    stated = [s for s in STATED if s[0] == experiment and (s[0] == "table2" or s[:2] == own)]
    if not stated:
        return []
    same = panel.data == stated[0][1] and panel.norm == "linf" and papers_radius([eps])
    lines, data = list[Line](), list[Numbers]()
    for _, _, entry, attack, papers, section in stated:
        attack, ours = _ours(attack, panel, entries.get(entry))
        gap = ours - papers if ours is not None and same else None
        lines.append(
            {
                "entry": entry,
                "attack": attack,
                "here, %": Cell("highest " * (attack == ANY) + percent_cell(ours).text, ours),
                "paper, %": Cell(f"{100 * papers:.4g}", papers),
                "difference, points": Cell() if gap is None else Cell(signed(gap, 2), gap),
            }
        )
        data.append((entry, attack, ours, papers, gap, section))
    head = ("entry", "attack", "here", "paper", "difference", "paper_section")
    note = prose(
        "paper_note", panel=panel, same=same, data=stated[0][1], radius=wording.eps_text(eps)
    )
    title = f"Beside the paper's numbers, {panel.title}"
    return [table(f"{name}-paper", title, lines, head, data, note)]


def _ours(stated: str, panel: PanelInfo, rows: Rows | None) -> tuple[str, float | None]:
    """Return the attack that is meant and our accuracy; of every attack the highest."""
    if stated == ANY:
        every = [
            found.mean for name in panel.attacks if (found := measures.accuracies(rows, name))
        ]
        return ANY, max(every, default=None)
    names = (name for name in (CLEAN, *panel.attacks) if name.startswith(stated))
    attack = next(names, stated)
    found = measures.accuracies(rows, attack)
    return attack, found.mean if found else None


def papers_radius(every: Iterable[float]) -> bool:
    """Return whether all radii are the paper's, 8/255."""
    return all(math.isclose(eps, 8 / 255, rel_tol=1e-3) for eps in every)
