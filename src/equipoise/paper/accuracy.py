"""Tables 2 and 3: accuracy by attack, A3GT compared image by image, and the paper's numbers."""

__all__ = ["A3GT", "RIVALS", "blocks", "papers_radius"]

import math
from collections.abc import Iterable, Mapping, Sequence

from equipoise.paper import tradeoff
from equipoise.paper.measures import (
    Rows,
    accuracies,
    average,
    best_marks,
    evaluated,
    group,
    paired,
    radii,
    relation,
)
from equipoise.paper.prose import prose, seeds_text, signed
from equipoise.paper.results import AUTOATTACK, CLEAN, WORST, PanelInfo
from equipoise.paper.tables import (
    Line,
    Numbers,
    number_cell,
    percent_cell,
    spread_cell,
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
    every = radii(rows) or list(panel.eps[:1])
    made: list[Block] = []
    for eps in every:
        entries = group(rows[rows["eps"] == eps], "entry")
        own = f"{name}-eps-{file_name(wording.eps_text(eps))}" if len(every) > 1 else name
        title = f"{panel.title}, eps {eps:.4g}" if len(every) > 1 else panel.title
        attacks = list(dict.fromkeys([CLEAN, *panel.attacks, *_run(entries.values())]))
        made.append(_accuracy(panel, entries, attacks, own, title))
        if highest := [_highest(entries, attack) for attack in _shown(attacks)]:
            made.append(prose("highest", found=[some for some in highest if some["best"]]))
        made += _beside_paper(name, panel, entries, eps, own)
        made += _pairs(entries, f"{own}-pairs", title)
        made += tradeoff.blocks(panel, entries, own, title)
    return [block for block in made if block]


def _run(entries: Iterable[Rows]) -> list[str]:
    return [name for rows in entries for name in evaluated(rows)]


def _shown(attacks: Sequence[str]) -> list[str]:
    """Return clean accuracy and the strongest attack."""
    return list(dict.fromkeys((CLEAN, AUTOATTACK if AUTOATTACK in attacks else attacks[-1])))


def _accuracy(
    panel: PanelInfo, entries: Entries, attacks: Sequence[str], name: str, title: str
) -> Table:
    order = list(dict.fromkeys([*panel.entries, *entries]))
    marks = {attack: best_marks(entries, attack) for attack in attacks}
    ends = ("", "_lowest", "_highest", "_low95", "_high95")
    head = ["entry", "seeds", "n", *(f"{a}{end}" for a in attacks for end in ends)]
    head += ["gradient_evaluations", "training_seconds", "evaluation_seconds"]
    printed, data = list[Line](), list[Numbers]()
    for entry in order:
        mine = entries.get(entry)
        found = {attack: accuracies(mine, attack) for attack in attacks}
        models = None if mine is None else mine[mine["attack"] == WORST]
        seeds = [] if models is None else list(models["seed"])
        costs = [
            number_cell(() if models is None else models[column])
            for column in ("gradient_evaluations", "training_seconds", "seconds")
        ]
        heads = ("gradient evaluations", "training, s", "evaluation, s")
        printed.append(
            {
                "entry": entry,
                "seeds": seeds_text(seeds, panel.seeds),
                **{a: spread_cell(some, marks[a].get(entry, "")) for a, some in found.items()},
                **dict(zip(heads, costs, strict=True)),
            }
        )
        numbers = [
            number
            for some in found.values()
            for number in (
                (some.mean, min(some.values), max(some.values), *some.interval)
                if some
                else [None] * 5
            )
        ]
        n = None if models is None else min(models["n"])
        data.append((entry, " ".join(map(str, seeds)), n, *numbers, *(c.value for c in costs)))
    sizes = sorted({n for rows in entries.values() for n in rows["n"]})
    note = prose("accuracy_note", sizes=sizes, seeds=panel.seeds)
    return table(name, f"Accuracy by attack, {title}", printed, head, data, note)


def _highest(entries: Entries, attack: str) -> dict[str, object]:
    """Return which entries have the highest accuracy, and those not significantly below."""
    marks = best_marks(entries, attack)
    best = [name for name, mark in marks.items() if mark == "best"]
    return {
        "attack": attack,
        "best": best,
        "close": [name for name, mark in marks.items() if mark == "close"],
        "top": accuracies(entries[best[0]], attack) if best else None,
        "a3gt": accuracies(entries.get(A3GT), attack),
    }


def _pairs(entries: Entries, name: str, title: str) -> list[Block]:
    printed, data = list[Line](), list[Numbers]()
    for rival in (name for name in RIVALS if name in entries):
        for attack in (CLEAN, AUTOATTACK):
            found = paired(entries.get(A3GT), entries[rival], attack)
            if found.empty:
                continue
            gaps = list(found["difference"])
            span = f"({signed(min(gaps))}..{signed(max(gaps))})" if len(gaps) > 1 else ""
            counts = {
                head: Cell(", ".join(map(str, found[column])), average(list(found[column])))
                for head, column in (("only a3gt", "only_first"), ("only other", "only_second"))
            }
            p = ", ".join("<0.001" if p < 0.001 else f"{p:.3f}" for p in found["p"])
            printed.append(
                {
                    "against": rival,
                    "under": attack,
                    "difference, points": Cell(signed(average(gaps)), average(gaps), span),
                    **counts,
                    "p": Cell(p, average(list(found["p"]))),
                    "a3gt is": relation(found),
                }
            )
            columns = ("seed", "difference", "only_first", "only_second", "p")
            data += [
                (rival, attack, *row) for row in zip(*(found[c] for c in columns), strict=True)
            ]
    if not printed:
        return []
    head = ("against", "attack", "seed", "difference", "only_a3gt", "only_other", "p")
    heading = f"A3GT compared image by image, {title}"
    return [table(name, heading, printed, head, data, prose("pairs_note"))]


def _beside_paper(
    experiment: str, panel: PanelInfo, entries: Entries, eps: float, name: str
) -> list[Block]:
    """Return the paper's numbers beside ours; a difference where data and radius are the same."""
    experiment = experiment.partition("-")[0]
    own = ("table3", panel.data)  # only the numbers of the same dataset, unlike Table 2
    lines = [s for s in STATED if s[0] == experiment and (s[0] == "table2" or s[:2] == own)]
    if not lines:
        return []
    same = panel.data == lines[0][1] and panel.norm == "linf" and papers_radius([eps])
    printed, data = list[Line](), list[Numbers]()
    for _, _, entry, stated, papers, section in lines:
        attack, ours = _ours(stated, panel, entries.get(entry))
        gap = ours - papers if ours is not None and same else None
        printed.append(
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
        "paper_note", panel=panel, same=same, data=lines[0][1], radius=wording.eps_text(eps)
    )
    title = f"Beside the paper's numbers, {panel.title}"
    return [table(f"{name}-paper", title, printed, head, data, note)]


def _ours(stated: str, panel: PanelInfo, rows: Rows | None) -> tuple[str, float | None]:
    """Return the attack that is meant and our accuracy; of every attack the highest."""
    if stated == ANY:
        every = [found.mean for name in panel.attacks if (found := accuracies(rows, name))]
        return ANY, max(every, default=None)
    names = (name for name in (CLEAN, *panel.attacks) if name.startswith(stated))
    attack = next(names, stated)
    found = accuracies(rows, attack)
    return attack, found.mean if found else None


def papers_radius(every: Iterable[float]) -> bool:
    """Return whether all radii are the paper's, 8/255."""
    return all(math.isclose(eps, 8 / 255, rel_tol=1e-3) for eps in every)
