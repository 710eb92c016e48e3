"""Clean against AutoAttack accuracy: the points of all entries, their front and its area."""

from collections.abc import Mapping
from fnmatch import fnmatchcase

from equipoise.measures.statistics import front
from equipoise.paper import figures
from equipoise.paper.measures import (
    Accuracies,
    Rows,
    area,
    average,
    group,
    mean_pair,
    pairs_of,
    points,
)
from equipoise.paper.prose import prose
from equipoise.paper.results import PanelInfo
from equipoise.paper.tables import Line, Numbers, area_cell, table
from equipoise.report.content import Block, Cell, Picture

# Which entries belong together: patterns of their names.
FAMILIES = {
    "mixed AT": ("standard", "mix-at-*", "pgd-at-averaged"),
    "A3GT": ("a3gt",),
    "Generalist": ("generalist",),
    "all": ("*",),
}


def blocks(panel: PanelInfo, entries: Mapping[str, Rows], name: str, title: str) -> list[Block]:
    """Return the picture and the areas; nothing without two entries that have both accuracies."""
    models = {entry: points(rows) for entry, rows in entries.items()}
    models = {entry: some for entry, some in models.items() if len(some)}
    if len(models) < 2:
        return []
    both = {
        entry: tuple(Accuracies(tuple(some[c]), min(some["n"])) for c in ("clean", "robust"))
        for entry, some in models.items()
    }
    means = {entry: mean_pair(some) for entry, some in models.items()}
    most = max(robust for _, robust in means.values())
    picture = Picture(
        f"{name}-tradeoff",
        f"Clean against AutoAttack accuracy, {title}",
        lambda palette: figures.scatter(palette, both, "a3gt"),
        prose("spoken", means=means),
        prose("tradeoff_caption", split=any(2 * robust < most for _, robust in means.values())),
    )
    lines, data = list[Line](), list[Numbers]()
    for family, patterns in FAMILIES.items():
        members = [e for e in models if any(fnmatchcase(e, pattern) for pattern in patterns)]
        if not members:
            continue
        seeds = [group(models[entry], "seed") for entry in members]
        shared = sorted(set.intersection(*map(set, seeds)))
        areas = [area([pairs_of(of[seed])[0] for of in seeds], panel.classes) for seed in shared]
        leading = [members[i] for i in front([means[entry] for entry in members])]
        line: Line = {"family": family, "entries": Cell(str(len(members)), len(members))}
        lines.append(line | {"on its front": ", ".join(leading), "area": area_cell(areas)})
        ends = (average(areas), min(areas), max(areas)) if areas else (None,) * 3
        data.append((family, " ".join(members), " ".join(leading), *ends))
    head = ("family", "entries", "front", "area", "area_lowest", "area_highest")
    note = prose("area_note", classes=panel.classes)
    return [
        picture,
        table(f"{name}-area", f"Area below the front, {title}", lines, head, data, note),
    ]
