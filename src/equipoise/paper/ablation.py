"""Figure 5: the schedule of gamma times c, the rounds between two hand-overs."""

__all__ = ["Setting", "blocks", "columns_of", "grid", "schedule"]

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.patches import Rectangle

from equipoise.paper.findings import CLEAN, ENSEMBLE, Findings, Panel, Row
from equipoise.paper.measures import average, cell, compare, half_width, standing
from equipoise.paper.phrases import MARKED, attack_name, capital, figure, plural, spread_item
from equipoise.report import pictures, wording
from equipoise.report.content import Block, Cell, Column, Picture, Table, file_name
from equipoise.report.palette import Palette

PAPERS_GAMMA, PAPERS_C = (1.0, 1.0, 1.0, 0.4), 5


@dataclass(frozen=True, order=True)
class Setting:
    """A schedule of gamma, and c."""

    gamma: tuple[float, ...]
    every: int

    @property
    def text(self) -> str:
        """Return it as sentences have it."""
        return f"gamma {schedule(self.gamma)}, c = {self.every}"


Grid = dict[Setting, list[Row]]


def schedule(gamma: Sequence[float]) -> str:
    """Return a schedule as the paper writes it: ``(1, 1, 1, 0.4)``; a constant as a number."""
    text = ", ".join(f"{value:g}" for value in gamma)
    return f"({text})" if len(gamma) > 1 else text


def grid(findings: Findings, panel: Panel) -> Grid:
    """Return the rows of each setting, the paper's schedule first and small c first."""
    made: Grid = {}
    for row in findings.of(panel):
        gamma, every = row.settings.get("gamma"), row.settings.get("every")
        if isinstance(gamma, list | tuple) and isinstance(every, int):
            setting = Setting(tuple(float(value) for value in gamma), every)
            made.setdefault(setting, []).append(row)

    def order(setting: Setting) -> tuple[bool, list[float], int]:
        return setting.gamma != PAPERS_GAMMA, [-v for v in setting.gamma], setting.every

    return {setting: made[setting] for setting in sorted(made, key=order)}


def columns_of(found: Grid) -> list[str]:
    """Return clean accuracy and the attacks that Figure 5 shows, one of a kind, where present."""
    run = dict.fromkeys(name for rows in found.values() for row in rows for name in row.correct)
    kinds = (CLEAN, "pgd", "cw", ENSEMBLE)
    chosen = (next((name for name in run if name.startswith(kind)), "") for kind in kinds)
    return [name for name in chosen if name]


def blocks(findings: Findings) -> list[Block]:
    """Return the heat maps, the table and what they say, panel by panel."""
    made: list[Block] = []
    for panel in findings.panels:
        found = grid(findings, panel)
        name = file_name(findings.experiment, panel.name if len(findings.panels) > 1 else "")
        if not found:
            made.append(f"{panel.title}: no setting has been evaluated yet.")
            continue
        made.append(_picture(found, panel, name))
        made.append(_table(found, panel, f"{name}-settings"))
        made.append(_said(found))
    return made


def _picture(found: Grid, panel: Panel, name: str) -> Picture:
    attacks = columns_of(found)
    told = []
    for attack in attacks:
        best, value = _best(found, attack)
        told.append(f"{attack_name(attack)} best with {best.text}, {wording.percent(value)}")
    return Picture(
        name,
        f"gamma and c, {panel.title}",
        lambda palette: _draw(palette, found, attacks),
        f"Accuracy by schedule of gamma and by c. {'; '.join(told)}.",
        "Accuracy in percent; the darker, the higher within its map; framed: the highest. "
        + _marks(found),
    )


def _marks(found: Grid) -> str:
    bare = [setting for setting, rows in found.items() if _bare(rows)]
    if not bare:
        return "Every setting had a hand-over."
    return "A star marks settings without any hand-over: there c plays no part."


def _bare(rows: Sequence[Row]) -> bool:
    return all(row.handovers == [] for row in rows)


def _mean(rows: Sequence[Row], attack: str) -> float | None:
    known = cell(rows, attack)
    return known.mean if known else None


def _best(found: Grid, attack: str) -> tuple[Setting, float]:
    values = {s: mean for s, rows in found.items() if (mean := _mean(rows, attack)) is not None}
    top = max(values, key=lambda setting: values[setting])
    return top, values[top]


def _draw(palette: Palette, found: Grid, attacks: Sequence[str]) -> Canvas:
    gammas = list(dict.fromkeys(setting.gamma for setting in found))
    every = sorted({setting.every for setting in found})
    names = 20 + 6.4 * max(len(schedule(gamma)) for gamma in gammas)
    wide, high = 46.0 * len(every), 30.0 * len(gammas)
    columns = min(2, len(attacks))
    rows = -(-len(attacks) // columns)
    step = names + wide + 24
    canvas = pictures.blank(palette, step * columns, rows * (high + 66))
    for i, attack in enumerate(attacks):
        left = step * (i % columns) + names
        bottom = (rows - 1 - i // columns) * (high + 66) + 40
        axes = pictures.axes_at(canvas, palette, (left, bottom, wide, high), grid="")
        _map(axes, palette, found, attack, gammas, every)
    return canvas


def _map(
    axes: Axes,
    palette: Palette,
    found: Grid,
    attack: str,
    gammas: Sequence[tuple[float, ...]],
    every: Sequence[int],
) -> None:
    values = {setting: _mean(rows, attack) for setting, rows in found.items()}
    known = [value for value in values.values() if value is not None]
    low, high = (min(known), max(known)) if known else (0.0, 1.0)
    for row, gamma in enumerate(gammas):
        for column, c in enumerate(every):
            setting = Setting(gamma, c)
            value = values.get(setting)
            bare = setting in found and _bare(found[setting])
            _tile(axes, palette, (column, row), value, (low, high), "*" if bare else "")
    axes.set_xlim(-0.5, len(every) - 0.5)
    axes.set_ylim(len(gammas) - 0.5, -0.5)
    axes.set_xticks(range(len(every)), [str(c) for c in every])
    axes.set_yticks(range(len(gammas)), [schedule(gamma) for gamma in gammas])
    axes.tick_params(axis="x", length=0)
    axes.spines["bottom"].set_visible(False)
    for label in axes.get_yticklabels():
        label.set_color(palette.ink)
    axes.set_xlabel("c", color=palette.muted, fontsize=10, labelpad=0)
    axes.set_title(attack_name(attack), color=palette.ink, fontsize=10.5, loc="left")


def _tile(
    axes: Axes,
    palette: Palette,
    at: tuple[int, int],
    value: float | None,
    ends: tuple[float, float],
    sign: str,
) -> None:
    x, y = at
    low, high = ends
    if value is None:
        axes.text(x, y, "-", ha="center", va="center", color=palette.muted, fontsize=10)
        return
    share = (value - low) / (high - low) if high > low else 0.5
    top = value == high
    corner, colour = (x - 0.46, y - 0.44), palette.series[0]
    axes.add_patch(Rectangle(corner, 0.92, 0.88, color=colour, alpha=0.05 + 0.42 * share, lw=0))
    if top:
        frame = Rectangle(corner, 0.92, 0.88, fill=False, edgecolor=palette.ink, lw=1.6)
        axes.add_patch(frame)
    text = figure(value) + sign
    weight = "bold" if top else "normal"
    axes.text(
        x, y, text, ha="center", va="center", color=palette.ink, fontsize=10, fontweight=weight
    )


def _table(found: Grid, panel: Panel, name: str) -> Table:
    attacks = columns_of(found)
    every = list(dict.fromkeys([*attacks, *_others(found, attacks)]))
    marks = {
        attack: standing({s.text: rows for s, rows in found.items()}, attack) for attack in every
    }
    rows = []
    records: list[tuple[object, ...]] = [
        ("gamma", "c", "seeds", "n", "t_start", "handovers", *every)
    ]
    for setting, mine in found.items():
        handed = [len(row.handovers) for row in mine if row.handovers is not None]
        starts = [row.t_start for row in mine]
        rows.append(
            (
                Cell(schedule(setting.gamma)),
                Cell(str(setting.every), setting.every),
                Cell(", ".join("never" if t is None else str(t) for t in starts)),
                Cell(f"{average(handed):g}", average(handed)) if handed else Cell(),
                *(spread_item(cell(mine, a), marks[a].get(setting.text, "")) for a in every),
            )
        )
        records.append(
            (
                schedule(setting.gamma),
                setting.every,
                " ".join(str(row.seed) for row in mine),
                min(row.n for row in mine),
                " ".join("" if t is None else str(t) for t in starts),
                " ".join(map(str, handed)),
                *(_mean(mine, attack) for attack in every),
            )
        )
    columns = (Column("gamma", False), Column("c"), Column("t′"), Column("hand-overs"))
    heads = tuple(Column(attack_name(attack)) for attack in every)
    notes = (MARKED, "Hand-overs are counted by the rule of the recipe.")
    title = f"gamma, c and what became of them, {panel.title}"
    return Table(name, title, (*columns, *heads), tuple(rows), notes, tuple(records))


def _others(found: Grid, attacks: Sequence[str]) -> list[str]:
    run = dict.fromkeys(name for rows in found.values() for row in rows for name in row.correct)
    return [
        name for name in run if name not in attacks and not name.startswith(("apgd", "fab", "squ"))
    ]


def _said(found: Grid) -> str:
    sentences = [*(_effect(found, attack) for attack in columns_of(found)), _noise(found)]
    bare = [setting.text for setting, rows in found.items() if _bare(rows)]
    if bare:
        few = f" ({'; '.join(bare)})" if len(bare) < 4 else ""
        sentences.append(
            f"No hand-over fell into the training of {plural(len(bare), 'setting')}{few}: the "
            "learners stayed apart there."
        )
    return " ".join(sentences)


def _effect(found: Grid, attack: str) -> str:
    best, top = _best(found, attack)
    ties = sum(_mean(rows, attack) == top for rows in found.values()) - 1
    also = f" and {plural(ties, 'other')}" if ties else ""
    text = f"{capital(attack_name(attack))} accuracy is highest, {wording.percent(top)}, with "
    text += best.text + also
    if len(found) < 2:
        return f"{text}; there is nothing yet to compare it with."
    papers = found.get(Setting(PAPERS_GAMMA, PAPERS_C))
    if papers and _mean(papers, attack) != top:
        gap = compare(papers, found[best], attack)
        if gap.pairs:
            apart = "" if gap.relation == "behind" else ", not told apart"
            text += f"; the paper's setting is {-100 * gap.mean:.1f} points below{apart}"
    by_c = _range(found, attack, lambda setting: setting.gamma)
    by_gamma = _range(found, attack, lambda setting: setting.every)
    return (
        f"{text}. At one gamma, c moves it by {100 * by_c:.1f} points at most; at one c, gamma by "
        f"{100 * by_gamma:.1f}."
    )


def _noise(found: Grid) -> str:
    """Return how wide the intervals are, beside which ranges are to be read."""
    cells = [
        known
        for attack in columns_of(found)
        for rows in found.values()
        if (known := cell(rows, attack))
    ]
    widest = max(half_width(known.mean, known.n) for known in cells)
    return f"The 95 % intervals reach up to {100 * widest:.1f} points to either side."


def _range(found: Grid, attack: str, fixed: Callable[[Setting], object]) -> float:
    """Return the widest range of accuracies where one of the two settings is fixed."""
    groups: dict[object, list[float]] = {}
    for setting, rows in found.items():
        mean = _mean(rows, attack)
        if mean is not None:
            groups.setdefault(fixed(setting), []).append(mean)
    return max((max(group) - min(group) for group in groups.values()), default=0.0)
