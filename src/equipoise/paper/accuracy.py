"""Tables 2 and 3: accuracy by attack, pairs image by image, the paper's numbers, trade-off."""

import math
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase

from equipoise.measures.regime import Regime
from equipoise.measures.statistics import front
from equipoise.paper import figures, measures
from equipoise.paper.measures import Accuracies, Rows, area, average, group, mean_pair, pairs_of
from equipoise.paper.prose import prose, seeds_text, signed
from equipoise.paper.results import AUTOATTACK, CLEAN, WORST, PanelInfo
from equipoise.paper.tables import (
    AREA,
    Line,
    listed_cell,
    mean_cell,
    percent_cell,
    spread_cells,
    table,
)
from equipoise.report import wording
from equipoise.report.content import Block, Cell, Picture, Table, file_name

A3GT = "a3gt"
PAPERS = "a3gt-paper"  # the entry that the paper's claims are about
RIVALS = ("generalist", "pgd-at-averaged", "mix-at-25", "mix-at-50", "a3gt-paper")
FAMILIES = {  # which entries belong together: patterns of their names
    "mixed AT": ("standard", "mix-at-*", "pgd-at-averaged"),
    "A3GT": ("a3gt", "a3gt-paper"),
    "Generalist": ("generalist",),
    "all": ("*",),
}
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
    ("table3", "mnist", PAPERS, CLEAN, 0.992, "4.3"),
    ("table3", "mnist", PAPERS, "mi-fgsm", 0.963, "4.3"),
    ("table3", "mnist", PAPERS, "pgd", 0.9613, "4.3"),
    ("table3", "svhn", PAPERS, CLEAN, 0.9431, "4.3"),
    ("table3", "svhn", PAPERS, "mi-fgsm", 0.563, "4.3"),
)


def blocks(panel: PanelInfo, rows: Rows, name: str) -> list[Block]:
    """Return for each radius the accuracies, the comparisons and the trade-off."""
    rows = rows[rows["weights"] == "model"]
    radii = measures.radii(rows) or list(panel.eps[:1])
    parts: list[Block] = []
    for eps in radii:
        at_eps = rows[rows["eps"] == eps]
        entries = group(at_eps, "entry")
        base, title = name, panel.title
        if len(radii) > 1:
            base = f"{name}-eps-{file_name(wording.eps_text(eps))}"
            title = f"{title}, eps {eps:.4g}"
        parts.append(_accuracy(panel, at_eps, base, title))
        parts += _paper_numbers(name.partition("-")[0], panel, entries, eps, base)
        parts += _regimes(entries, base, title)
        parts += _pairs(entries, base, title)
        parts += _tradeoff(panel, entries, base, title)
    return parts


def _accuracy(panel: PanelInfo, rows: Rows, name: str, title: str) -> Table:
    attacks = list(dict.fromkeys([CLEAN, *panel.attacks, *measures.evaluated(rows)]))
    entries = dict.fromkeys(panel.entries, rows[:0]) | group(rows, "entry")
    cells, lines, data = spread_cells(entries, attacks), list[Line](), []
    for entry, of_entry in entries.items():
        models = of_entry[of_entry["attack"] == WORST]
        costs = {
            "gradient evaluations": mean_cell(models["gradient_evaluations"]),
            "training, s": mean_cell(models["training_seconds"]),
            "evaluation, s": mean_cell(models["seconds"]),
        }
        seeds = seeds_text(models["seed"], panel.seeds)
        lines.append({"entry": entry, "seeds": seeds, **cells[entry], **costs})
        numbers: list[float | None] = []
        for attack in attacks:
            a = measures.accuracies(of_entry, attack)
            numbers += (a.mean, min(a.values), max(a.values), *a.interval) if a else [None] * 5
        seeds_of, n = " ".join(map(str, models["seed"])), min(models["n"], default=None)
        data.append((entry, seeds_of, n, *numbers, *(cell.value for cell in costs.values())))
    ends = ("", "_lowest", "_highest", "_low95", "_high95")
    heads = ["entry", "seeds", "n", *(f"{a}{end}" for a in attacks for end in ends)]
    head = [*heads, "gradient_evaluations", "training_seconds", "evaluation_seconds"]
    note = prose("accuracy_note", sizes=sorted({*rows["n"]}), seeds=panel.seeds)
    return table(name, f"Accuracy by attack, {title}", lines, head, data, note)


def _regimes(entries: Entries, name: str, title: str) -> list[Block]:
    """Return in which regime the learners of each entry were merged; nothing where none were."""
    lines, data = list[Line](), []
    for entry, rows in entries.items():
        stored = [r for r in rows.drop_duplicates("seed")["regime"] if isinstance(r, dict)]
        regimes = list(map(Regime.of, stored))
        if not regimes:
            continue
        numbers = {
            "path while gamma < 1": [r.path.get("robust") for r in regimes],
            "first cycle": [next(iter(r.cycles.get("robust", [])), None) for r in regimes],
            "last cycle": [next(reversed(r.cycles.get("robust", [])), None) for r in regimes],
            "c, horizons": [r.spacing for r in regimes],
            "effective gamma": [r.gamma.get("robust") for r in regimes],
            "weight decay, robust": [r.weight_decay.get("robust") for r in regimes],
            "weight decay, clean": [r.weight_decay.get("clean") for r in regimes],
        }
        cells = {head: mean_cell(values, "{:.3g}".format) for head, values in numbers.items()}
        lines.append({"entry": entry, **cells})
        data.append((entry, *(cell.value for cell in cells.values())))
    if not lines:
        return []
    head = "entry path first_cycle last_cycle spacing gamma weight_decay_robust weight_decay_clean"
    heading = f"In which regime learners are merged, {title}"
    return [table(f"{name}-regime", heading, lines, head, data, prose("regime_note"))]


def _pairs(entries: Entries, name: str, title: str) -> list[Block]:
    lines, data = list[Line](), []
    for rival in (rival for rival in RIVALS if rival in entries):
        for attack in (CLEAN, AUTOATTACK):
            pairs = measures.paired(entries.get(A3GT), entries[rival], attack)
            if pairs.empty:
                continue
            lines.append(
                {
                    "against": rival,
                    "under": attack,
                    "difference, points": mean_cell(pairs["difference"], signed, span=True),
                    "only a3gt": listed_cell(pairs["only_first"]),
                    "only other": listed_cell(pairs["only_second"]),
                    "p": listed_cell(pairs["p"], lambda p: "<0.001" if p < 0.001 else f"{p:.3f}"),
                    "a3gt is": measures.relation(pairs),
                }
            )
            numbers = pairs.drop(columns="n").itertuples(index=False)
            data += [(rival, attack, *row) for row in numbers]
    if not lines:
        return []
    head = "against attack seed difference only_a3gt only_other p"
    heading = f"A3GT compared image by image, {title}"
    return [table(f"{name}-pairs", heading, lines, head, data, prose("pairs_note"))]


def _paper_numbers(
    experiment: str, panel: PanelInfo, entries: Entries, eps: float, name: str
) -> list[Block]:
    """Return the paper's numbers and ours; a difference where data and radius are the same."""
    same_data = ("table3", panel.data)  # Table 3 is of several datasets, Table 2 of one
    stated = [s for s in STATED if s[0] == experiment and (s[0] == "table2" or s[:2] == same_data)]
    if not stated:
        return []
    same = panel.data == stated[0][1] and panel.norm == "linf" and papers_radius([eps])
    lines, data = list[Line](), []
    for _, _, entry, start, papers, section in stated:
        attack, ours = _ours(start, panel, entries.get(entry))
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
    head = "entry attack here paper difference paper_section"
    radius = wording.eps_text(eps)
    note = prose("paper_note", panel=panel, same=same, data=stated[0][1], radius=radius)
    title = f"The paper's numbers and ours, {panel.title}"
    return [table(f"{name}-paper", title, lines, head, data, note)]


def _ours(start: str, panel: PanelInfo, rows: Rows | None) -> tuple[str, float | None]:
    """Return the attack whose name begins so and our accuracy; of every attack the highest."""
    if start == ANY:
        every = [a.mean for name in panel.attacks if (a := measures.accuracies(rows, name))]
        return ANY, max(every, default=None)
    attack = measures.named((CLEAN, *panel.attacks), start)
    accuracies = measures.accuracies(rows, attack)
    return attack, accuracies.mean if accuracies else None


def papers_radius(radii: Iterable[float]) -> bool:
    """Return whether all radii are the paper's, 8/255."""
    return all(math.isclose(eps, 8 / 255, rel_tol=1e-3) for eps in radii)


def _tradeoff(panel: PanelInfo, entries: Entries, name: str, title: str) -> list[Block]:
    """Return clean against AutoAttack accuracy of all entries, and the area of each family."""
    models = {entry: measures.points(rows) for entry, rows in entries.items()}
    models = {entry: of_entry for entry, of_entry in models.items() if len(of_entry)}
    if len(models) < 2:
        return []
    both = {
        entry: [Accuracies(tuple(some[c]), min(some["n"])) for c in ("clean", "robust")]
        for entry, some in models.items()
    }
    means = {entry: mean_pair(of_entry) for entry, of_entry in models.items()}
    highest = max(robust for _, robust in means.values())
    split = any(2 * robust < highest for _, robust in means.values())
    picture = Picture(
        f"{name}-tradeoff",
        f"Clean against AutoAttack accuracy, {title}",
        lambda palette: figures.scatter(palette, both, A3GT),
        prose("spoken", means=means),
        prose("tradeoff_caption", split=split),
    )
    lines, data = list[Line](), []
    for family, patterns in FAMILIES.items():
        members = [e for e in models if any(fnmatchcase(e, pattern) for pattern in patterns)]
        if not members:
            continue
        seeds = [group(models[entry], "seed") for entry in members]
        shared = sorted(set.intersection(*map(set, seeds)))
        areas = [area([pairs_of(of[seed])[0] for of in seeds], panel.classes) for seed in shared]
        leading = [members[i] for i in front([means[entry] for entry in members])]
        lines.append(
            {
                "family": family,
                "entries": Cell(str(len(members)), len(members)),
                "on its front": ", ".join(leading),
                "area": mean_cell(areas, AREA, span=True),
            }
        )
        ends = (average(areas), min(areas), max(areas)) if areas else (None,) * 3
        data.append((family, " ".join(members), " ".join(leading), *ends))
    head = "family entries front area area_lowest area_highest"
    note = prose("area_note", classes=panel.classes)
    title = f"Area below the front, {title}"
    return [picture, table(f"{name}-area", title, lines, head, data, note)]
