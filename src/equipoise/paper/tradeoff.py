"""Clean against AutoAttack accuracy: the points of all entries, their front and its area."""

__all__ = ["FAMILIES", "blocks"]

from collections.abc import Mapping
from fnmatch import fnmatchcase

from equipoise.measures.statistics import front
from equipoise.paper import figures
from equipoise.paper.measures import Accuracies, Rows, area, average, group, pairs_of, points
from equipoise.paper.prose import prose
from equipoise.paper.results import PanelInfo
from equipoise.paper.tables import Line, Numbers, area_cell, table
from equipoise.report.content import Block, Cell, Picture, Table

# Which entries belong together: patterns of their names.
FAMILIES = {
    "mixed AT": ("standard", "mix-at-*", "pgd-at-averaged"),
    "A3GT": ("a3gt",),
    "Generalist": ("generalist",),
    "all": ("*",),
}
Means = Mapping[str, tuple[float, float]]  # by entry, (clean, robust) accuracy


def blocks(panel: PanelInfo, entries: Mapping[str, Rows], name: str, title: str) -> list[Block]:
    """Return the picture, the areas and the front; nothing without two entries."""
    models = {entry: points(rows) for entry, rows in entries.items()}
    models = {entry: some for entry, some in models.items() if len(some)}
    if len(models) < 2:
        return []
    both = {
        e: (
            Accuracies(tuple(m["clean"]), min(m["n"])),
            Accuracies(tuple(m["robust"]), min(m["n"])),
        )
        for e, m in models.items()
    }
    means = {entry: (clean.mean, robust.mean) for entry, (clean, robust) in both.items()}
    leading = [list(means)[i] for i in front(list(means.values()))]
    clean, robust = means.get("a3gt", (2.0, 2.0))
    above = [
        entry
        for entry, (c, r) in means.items()
        if (c, r) != (clean, robust) and c >= clean and r >= robust
    ]
    most = max(robust for _, robust in means.values())
    picture = Picture(
        f"{name}-tradeoff",
        f"Clean against AutoAttack accuracy, {title}",
        lambda palette: figures.scatter(palette, both, "a3gt"),
        prose("spoken", means=means),
        prose("tradeoff_caption", split=any(2 * robust < most for _, robust in means.values())),
    )
    return [
        picture,
        _areas(panel, models, means, f"{name}-area", title),
        prose("tradeoff", leading=leading, above=above),
    ]


def _areas(
    panel: PanelInfo, models: Mapping[str, Rows], means: Means, name: str, title: str
) -> Table:
    printed, data = list[Line](), list[Numbers]()
    for family, patterns in FAMILIES.items():
        members = [e for e in models if any(fnmatchcase(e, pattern) for pattern in patterns)]
        if not members:
            continue
        by_seed = [
            {seed: pairs_of(rows)[0] for seed, rows in group(models[e], "seed").items()}
            for e in members
        ]
        shared = set.intersection(*map(set, by_seed))
        areas = [area([of[seed] for of in by_seed], panel.classes) for seed in sorted(shared)]
        leading = [members[i] for i in front([means[entry] for entry in members])]
        printed.append(
            {
                "family": family,
                "entries": Cell(str(len(members)), len(members)),
                "on its front": ", ".join(leading),
                "area": area_cell(areas),
            }
        )
        ends = (average(areas), min(areas), max(areas)) if areas else (None,) * 3
        data.append((family, " ".join(members), " ".join(leading), *ends))
    head = ("family", "entries", "front", "area", "area_lowest", "area_highest")
    note = prose("area_note", classes=panel.classes)
    heading = f"Area below the front, {title}"
    return table(name, heading, printed, head, data, note)
