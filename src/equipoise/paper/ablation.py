"""Figure 5: the schedule of gamma times c, the rounds between two merges."""

from collections.abc import Mapping, Sequence
from typing import Any

from equipoise.paper import figures, measures
from equipoise.paper.measures import Rows
from equipoise.paper.prose import prose
from equipoise.paper.results import AUTOATTACK, CLEAN, WORST, PanelInfo
from equipoise.paper.tables import Line, Numbers, number_cell, spread_cells, table
from equipoise.report.content import Block, Cell, Picture, Table

PAPERS_GAMMA, PAPERS_C = (1.0, 1.0, 1.0, 0.4), 5
Setting = tuple[tuple[float, ...], int]  # the schedule of gamma, and c
Grid = Mapping[Setting, Rows]


def schedule(gamma: Sequence[float]) -> str:
    """Return a schedule as the paper writes it: ``(1, 1, 1, 0.4)``; a constant as a number."""
    text = ", ".join(f"{value:g}" for value in gamma)
    return f"({text})" if len(gamma) > 1 else text


def setting_text(setting: Setting) -> str:
    """Return a setting as sentences have it."""
    return f"gamma {schedule(setting[0])}, c = {setting[1]}"


def grid(rows: Rows) -> dict[Setting, Rows]:
    """Return the rows of each setting, the paper's schedule first and small c first."""
    rows = rows[rows["weights"] == "model"]
    keys = [_setting(settings) for settings in rows["settings"]]

    def order(setting: Setting) -> tuple[bool, list[float], int]:
        return setting[0] != PAPERS_GAMMA, [-value for value in setting[0]], setting[1]

    found = sorted({key for key in keys if key is not None}, key=order)
    return {setting: rows[[key == setting for key in keys]] for setting in found}


def _setting(settings: Mapping[str, Any]) -> Setting | None:
    gamma, every = settings.get("gamma"), settings.get("every")
    if isinstance(gamma, list) and isinstance(every, int):
        return tuple(map(float, gamma)), every
    return None


def merges(
    settings: Mapping[str, Any], t_start: int | None, rounds: int | None
) -> list[int] | None:
    """Return the rounds with a merge, by the recipe; None if that is not known.

    Arguments:
        settings: The settings of the training.
        t_start: The round t', if one was found.
        rounds: The rounds of the training.
    """
    every = settings.get("every")
    if t_start is None or not isinstance(every, int) or rounds is None:
        return None if t_start is not None else []
    first = t_start + (0 if settings.get("inclusive", True) else 1)
    origin = 0 if settings.get("count") == "rounds" else t_start
    return [t for t in range(first, rounds + 1) if (t - origin) % every == 0]


def _merges(rows: Rows) -> list[list[int] | None]:
    models = rows[rows["attack"] == WORST]
    columns = (models[name] for name in ("settings", "t_start", "rounds"))
    return [merges(*values) for values in zip(*columns, strict=True)]


def shown_attacks(found: Grid) -> list[str]:
    """Return clean accuracy and the attacks that Figure 5 shows, one of a kind, where present."""
    run = _run(found)
    kinds = (CLEAN, "pgd", "cw", AUTOATTACK)
    chosen = (next((name for name in run if name.startswith(kind)), "") for kind in kinds)
    return [name for name in chosen if name]


def _run(found: Grid) -> list[str]:
    return list(
        dict.fromkeys(name for rows in found.values() for name in measures.evaluated(rows))
    )


def means(found: Grid, attack: str) -> dict[Setting, float]:
    """Return the mean accuracy of each setting that was attacked so."""
    known = {setting: measures.accuracies(rows, attack) for setting, rows in found.items()}
    return {setting: some.mean for setting, some in known.items() if some}


def top(found: Grid, attack: str) -> tuple[Setting, float]:
    """Return the setting with the highest accuracy, and that accuracy."""
    values = means(found, attack)
    best = max(values, key=lambda setting: values[setting])
    return best, values[best]


def blocks(panel: PanelInfo, rows: Rows, name: str) -> list[Block]:
    """Return the heat maps, the table and the effect of both settings."""
    found = grid(rows)
    if not found:
        return [prose("nothing", title=panel.title)]
    attacks = shown_attacks(found)
    cells = [
        some for a in attacks for mine in found.values() if (some := measures.accuracies(mine, a))
    ]
    unmerged = [s for s, mine in found.items() if all(some == [] for some in _merges(mine))]
    return [
        _picture(found, attacks, unmerged, panel, name),
        _table(found, attacks, panel, f"{name}-settings"),
        prose(
            "ablation",
            effects=[_effect(found, attack) for attack in attacks],
            settings=len(found),
            half=max(measures.half_width(some.mean, some.n) for some in cells),
            unmerged=[setting_text(setting) for setting in unmerged],
        ),
    ]


def _picture(
    found: Grid, attacks: Sequence[str], unmerged: Sequence[Setting], panel: PanelInfo, name: str
) -> Picture:
    def tile(setting: Setting) -> tuple[str, str]:
        return schedule(setting[0]), str(setting[1])

    maps = {a: {tile(s): mean for s, mean in means(found, a).items()} for a in attacks}
    rows = list(dict.fromkeys(schedule(gamma) for gamma, _ in found))
    columns = [str(c) for c in sorted({c for _, c in found})]
    stars = [tile(setting) for setting in unmerged]
    best = {attack: top(found, attack) for attack in attacks}
    return Picture(
        name,
        f"gamma and c, {panel.title}",
        lambda palette: figures.heat_maps(palette, maps, rows, columns, stars),
        prose("spoken_best", best={a: (setting_text(s), mean) for a, (s, mean) in best.items()}),
        prose("ablation_caption", stars=stars),
    )


def _effect(found: Grid, attack: str) -> dict[str, Any]:
    values = means(found, attack)
    best, highest = top(found, attack)
    papers = (PAPERS_GAMMA, PAPERS_C)
    pairs = measures.paired(found.get(papers), found[best], attack)
    ranges = []
    for fixed in (0, 1):
        groups: dict[object, list[float]] = {}
        for setting, mean in values.items():
            groups.setdefault(setting[fixed], []).append(mean)
        ranges.append(max(max(some) - min(some) for some in groups.values()))
    return {
        "attack": attack,
        "best": setting_text(best),
        "highest": highest,
        "ties": sum(mean == highest for mean in values.values()) - 1,
        "gap": None
        if pairs.empty or values.get(papers) == highest
        else pairs["difference"].mean(),
        "relation": measures.relation(pairs),
        "by_c": ranges[0],
        "by_gamma": ranges[1],
    }


def _table(found: Grid, attacks: Sequence[str], panel: PanelInfo, name: str) -> Table:
    stages = ("apgd", "fab", "squ")
    every = list(dict.fromkeys([*attacks, *(a for a in _run(found) if not a.startswith(stages))]))
    cells, lines, data = spread_cells(found, every), list[Line](), list[Numbers]()
    for (gamma, c), mine in found.items():
        models = mine[mine["attack"] == WORST]
        counts = [len(some) for some in _merges(mine) if some is not None]
        starts = [*models["t_start"]]
        lines.append(
            {
                "gamma": schedule(gamma),
                "c": Cell(str(c), c),
                "t′": Cell(", ".join("never" if t is None else str(t) for t in starts)),
                "merges": number_cell(counts, "{:g}"),
                **cells[gamma, c],
            }
        )
        texts = [" ".join("" if v is None else str(v) for v in some) for some in (starts, counts)]
        seeds = " ".join(map(str, models["seed"]))
        shares = (cell.value for cell in cells[gamma, c].values() if isinstance(cell, Cell))
        data.append((schedule(gamma), c, seeds, min(models["n"]), *texts, *shares))
    head = ("gamma", "c", "seeds", "n", "t_start", "handovers", *every)
    notes = (prose("marks_note"), "Merges are counted by the rule of the recipe.")
    return table(name, f"gamma and c, {panel.title}", lines, head, data, *notes)
