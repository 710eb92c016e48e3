"""Figure 5: the schedule of gamma times c, the rounds between two merges."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from equipoise.paper import figures, measures
from equipoise.paper.measures import Rows
from equipoise.paper.prose import prose
from equipoise.paper.results import AUTOATTACK, CLEAN, WORST, PanelInfo
from equipoise.paper.tables import Line, mean_cell, spread_cells, table
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

    settings = sorted({key for key in keys if key is not None}, key=order)
    return {setting: rows[[key == setting for key in keys]] for setting in settings}


def _setting(settings: Mapping[str, Any]) -> Setting | None:
    gamma, every = settings.get("gamma"), settings.get("every")
    if isinstance(gamma, list) and isinstance(every, int):
        return tuple(map(float, gamma)), every
    return None


def merges(
    settings: Mapping[str, Any], t_start: int | None, rounds: int | None
) -> list[int] | None:
    """Return the rounds with a merge, by the recipe and t'; None if they are not known."""
    every = settings.get("every")
    if t_start is None or not isinstance(every, int) or rounds is None:
        return None if t_start is not None else []
    first = t_start + (0 if settings.get("inclusive", True) else 1)
    origin = 0 if settings.get("count") == "rounds" else t_start
    return [t for t in range(first, rounds + 1) if (t - origin) % every == 0]


def _merges(rows: Rows) -> list[list[int] | None]:
    models = rows[rows["attack"] == WORST][["settings", "t_start", "rounds"]]
    return [merges(*values) for values in models.itertuples(index=False)]


def shown_attacks(settings: Grid) -> list[str]:
    """Return clean accuracy and the attacks that Figure 5 shows, one of a kind, where present."""
    attacks = _attacks(settings)
    chosen = [measures.named(attacks, kind) for kind in (CLEAN, "pgd", "cw", AUTOATTACK)]
    return [name for name in chosen if name in attacks]


def _attacks(settings: Grid) -> list[str]:
    every = (name for rows in settings.values() for name in measures.evaluated(rows))
    return list(dict.fromkeys(every))


def means(settings: Grid, attack: str) -> dict[Setting, float]:
    """Return the mean accuracy of each setting that was attacked so."""
    every = {setting: measures.accuracies(rows, attack) for setting, rows in settings.items()}
    return {setting: accuracies.mean for setting, accuracies in every.items() if accuracies}


def top(settings: Grid, attack: str) -> tuple[Setting, float]:
    """Return the setting with the highest accuracy, and that accuracy."""
    return max(means(settings, attack).items(), key=lambda item: item[1])


def blocks(panel: PanelInfo, rows: Rows, name: str) -> list[Block]:
    """Return the heat maps, the table and the effect of both settings."""
    settings = grid(rows)
    if not settings:
        return [prose("nothing", title=panel.title)]
    attacks = shown_attacks(settings)
    widths = [
        accuracies.half_width
        for attack in attacks
        for models in settings.values()
        if (accuracies := measures.accuracies(models, attack))
    ]
    unmerged = [s for s, models in settings.items() if all(m == [] for m in _merges(models))]
    return [
        _picture(settings, attacks, unmerged, panel, name),
        _table(settings, attacks, panel, f"{name}-settings"),
        prose(
            "ablation",
            effects=[_effect(settings, attack) for attack in attacks],
            settings=len(settings),
            half=max(widths),
            unmerged=[setting_text(setting) for setting in unmerged],
        ),
    ]


def _picture(
    settings: Grid,
    attacks: Sequence[str],
    unmerged: Sequence[Setting],
    panel: PanelInfo,
    name: str,
) -> Picture:
    tiles = {setting: (schedule(setting[0]), str(setting[1])) for setting in settings}
    maps = {a: {tiles[s]: mean for s, mean in means(settings, a).items()} for a in attacks}
    rows = list(dict.fromkeys(row for row, _ in tiles.values()))
    columns = [str(c) for c in sorted({c for _, c in settings})]
    stars = [tiles[setting] for setting in unmerged]
    best = {attack: top(settings, attack) for attack in attacks}
    return Picture(
        name,
        f"gamma and c, {panel.title}",
        lambda palette: figures.heat_maps(palette, maps, rows, columns, stars),
        prose("spoken_best", best={a: (setting_text(s), mean) for a, (s, mean) in best.items()}),
        prose("ablation_caption", stars=stars),
    )


def _effect(settings: Grid, attack: str) -> dict[str, Any]:
    values = means(settings, attack)
    best, highest = top(settings, attack)
    papers = (PAPERS_GAMMA, PAPERS_C)
    pairs = measures.paired(settings.get(papers), settings[best], attack)
    columns = ["gamma", "c", "mean"]
    frame = pd.DataFrame([(*setting, mean) for setting, mean in values.items()], columns=columns)
    groups = (frame.groupby(by)["mean"] for by in ("gamma", "c"))
    by_c, by_gamma = (float((means.max() - means.min()).max()) for means in groups)
    compared = len(pairs) and values.get(papers) != highest
    return {
        "attack": attack,
        "best": setting_text(best),
        "highest": highest,
        "ties": sum(mean == highest for mean in values.values()) - 1,
        "gap": pairs["difference"].mean() if compared else None,
        "relation": measures.relation(pairs),
        "by_c": by_c,
        "by_gamma": by_gamma,
    }


def _table(settings: Grid, attacks: Sequence[str], panel: PanelInfo, name: str) -> Table:
    whole = [a for a in _attacks(settings) if not a.startswith(("apgd", "fab", "squ"))]
    attacks = list(dict.fromkeys([*attacks, *whole]))
    cells, lines, data = spread_cells(settings, attacks), list[Line](), []
    for (gamma, c), rows in settings.items():
        models = rows[rows["attack"] == WORST]
        counts = [len(rounds) for rounds in _merges(rows) if rounds is not None]
        starts = [*models["t_start"]]
        lines.append(
            {
                "gamma": schedule(gamma),
                "c": Cell(str(c), c),
                "t′": Cell(", ".join("never" if t is None else str(t) for t in starts)),
                "merges": mean_cell(counts, "{:g}".format),
                **cells[gamma, c],
            }
        )
        texts = [" ".join("" if v is None else str(v) for v in some) for some in (starts, counts)]
        seeds = " ".join(map(str, models["seed"]))
        values = (cell.value for cell in cells[gamma, c].values())
        data.append((schedule(gamma), c, seeds, min(models["n"]), *texts, *values))
    head = [*["gamma", "c", "seeds", "n", "t_start", "handovers"], *attacks]
    notes = (prose("marks_note"), "Merges are counted by the rule of the recipe.")
    return table(name, f"gamma and c, {panel.title}", lines, head, data, *notes)
