"""Controls: what it is worth to find t', the first round of the hand-overs, by itself."""

__all__ = ["Rule", "blocks", "rules"]

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.transforms import ScaledTranslation

from equipoise.paper.findings import CLEAN, ENSEMBLE, Findings, Panel, Row
from equipoise.paper.measures import average, by_entry, cell, compare, standing
from equipoise.paper.phrases import MARKED, attack_name, number_item, plural, seeds, spread_item
from equipoise.report import pictures, wording
from equipoise.report.content import Block, Cell, Column, Picture, Table, file_name
from equipoise.report.palette import Palette, Style

GROUPS = {
    "stable": "adaptive",
    "fixed": "at a preset round",
    "never": "never",
    "threshold": "below a loss threshold",
}
_CLEAN_STYLE, _ROBUST_STYLE = Style(0, (), "o"), Style(1, (), "s")


@dataclass(frozen=True)
class Rule:
    """A rule for t' and the runs that followed it.

    Arguments:
        entry: The entry.
        kind: ``stable``, ``fixed``, ``never`` or ``threshold``.
        text: The rule in words.
        rows: Its runs.
        order: By what rules of a kind are sorted.
    """

    entry: str
    kind: str
    text: str
    rows: tuple[Row, ...]
    order: tuple[float, ...]

    @property
    def started(self) -> list[int]:
        """Return t' of each run that found one."""
        return [row.t_start for row in self.rows if row.t_start is not None]

    @property
    def starts(self) -> str:
        """Return t' of each run."""
        found = ["never" if row.t_start is None else str(row.t_start) for row in self.rows]
        return ", ".join(dict.fromkeys(found)) or wording.MISSING


def rules(findings: Findings, panel: Panel) -> list[Rule]:
    """Return the rules of a panel, by their kinds."""
    made = []
    for entry, rows in by_entry(findings.of(panel)).items():
        given = rows[0].start_rule
        kind = str(given.get("rule", ""))
        if kind in GROUPS:
            text, order = _WORDS[kind](rows[0])
            made.append(Rule(entry, kind, text, tuple(rows), order))
    kinds = list(GROUPS)
    return sorted(made, key=lambda rule: (kinds.index(rule.kind), rule.order, rule.entry))


def _fixed(row: Row) -> tuple[str, tuple[float, ...]]:
    given = row.start_rule
    at = float(row.t_start or 0)
    if given.get("round") is not None:
        return f"round {given['round']}", (at,)
    return f"{float(given.get('fraction', 0.625)):g} of all rounds", (at,)


def _threshold(row: Row) -> tuple[str, tuple[float, ...]]:
    limit, patience = row.start_rule.get("threshold", 0.5), row.start_rule.get("patience", 3)
    if not isinstance(limit, int | float):  # one for each learner
        named = ", ".join(f"{name} {value:g}" for name, value in limit.items())
        return f"l_h {named}, t_num {patience}", (0.0, float(patience))
    return f"l_h {limit:g}, t_num {patience}", (float(limit), float(patience))


def _stable(row: Row) -> tuple[str, tuple[float, ...]]:
    window, ratio = row.start_rule.get("window", 3), row.start_rule.get("ratio", 0.1)
    return f"level for {window} rounds, ratio {ratio:g}", (0.0,)


def _never(_row: Row) -> tuple[str, tuple[float, ...]]:
    return "no hand-over at all", (0.0,)


_WORDS: dict[str, Callable[[Row], tuple[str, tuple[float, ...]]]] = {
    "stable": _stable,
    "fixed": _fixed,
    "never": _never,
    "threshold": _threshold,
}


def blocks(findings: Findings) -> list[Block]:
    """Return the table, the picture and what they say, panel by panel."""
    made: list[Block] = []
    for panel in findings.panels:
        found = rules(findings, panel)
        name = file_name(findings.experiment, panel.name if len(findings.panels) > 1 else "")
        if not found:
            made.append(f"{panel.title}: no rule has been evaluated yet.")
            continue
        made.append(_picture(found, panel, name))
        made.append(_table(found, panel, f"{name}-rules"))
        made.append(_said(found))
    return made


def _attacks(found: Sequence[Rule]) -> list[str]:
    run = dict.fromkeys(name for rule in found for row in rule.rows for name in row.correct)
    stages = ("apgd", "fab", "square")
    return [name for name in run if not name.startswith(stages)]


def _picture(found: Sequence[Rule], panel: Panel, name: str) -> Picture:
    told = []
    for rule in found:
        values = [(a, cell(rule.rows, a)) for a in (CLEAN, ENSEMBLE)]
        shown = ", ".join(f"{attack_name(a)} {wording.percent(v.mean)}" for a, v in values if v)
        told.append(f"{GROUPS[rule.kind]}, {rule.text}: t' {rule.starts}, {shown}")
    return Picture(
        name,
        f"Accuracy by the rule for t′, {panel.title}",
        lambda palette: _draw(palette, found),
        f"Accuracy by the rule for t'. {'; '.join(told)}.",
        "Dots: clean accuracy; squares: AutoAttack; whiskers: 95 % intervals of one seed's "
        "images. At the right, the rounds at which hand-overs began.",
    )


def _draw(palette: Palette, found: Sequence[Rule]) -> Canvas:
    kinds = list(dict.fromkeys(rule.kind for rule in found))
    places, heads, at = [], [], 0.0
    for kind in kinds:
        heads.append((at, GROUPS[kind]))
        at += 0.95
        for _ in [rule for rule in found if rule.kind == kind]:
            places.append(at)
            at += 0.95
        at += 0.25
    height = 20.0 * at + 52
    canvas = pictures.blank(palette, 720, height)
    axes = pictures.axes_at(canvas, palette, (220, 32, 420, height - 52), grid="x")
    for where, rule in zip(places, found, strict=True):
        _row(palette, axes, where, rule)
    for where, text in heads:
        _beside(axes, palette, -214, where, text, bold=True)
    axes.set_ylim(at, -0.6)
    axes.set_yticks([])
    axes.margins(x=0.03)
    pictures.percent_axis(axes.xaxis)
    _beside(axes, palette, 432, -0.3, "t'", bold=True)
    looks = {"clean": _CLEAN_STYLE, "AutoAttack": _ROBUST_STYLE}
    for left, (text, look) in zip((0, 70), looks.items(), strict=True):
        _beside(axes, palette, left + 14, -0.3, text)
        mark = ScaledTranslation((left + 5) / 72, 0, canvas.dpi_scale_trans)
        axes.plot(
            [0],
            [-0.3],
            transform=axes.get_yaxis_transform() + mark,
            color=look.of(palette),
            marker=look.marker,
            markersize=6.5,
            markeredgewidth=0,
            linestyle="none",
            clip_on=False,
        )
    return canvas


def _row(palette: Palette, axes: Axes, where: float, rule: Rule) -> None:
    for attack, look in ((CLEAN, _CLEAN_STYLE), (ENSEMBLE, _ROBUST_STYLE)):
        known = cell(rule.rows, attack)
        if known:
            colour = look.of(palette)
            pictures.whiskers(axes, colour, (known.mean, where), known.interval, up=False)
            pictures.point(axes, palette, [known.mean], [where], look, size=6.5)
    _beside(axes, palette, -204, where, rule.text)
    _beside(axes, palette, 432, where, rule.starts)


def _beside(
    axes: Axes, palette: Palette, x: float, y: float, text: str, *, bold: bool = False
) -> None:
    axes.annotate(
        pictures.safe(text),
        (0, y),
        xycoords=axes.get_yaxis_transform(),
        xytext=(x, 0),
        textcoords="offset points",
        va="center_baseline",
        color=palette.ink,
        fontsize=10,
        fontweight="bold" if bold else "normal",
        annotation_clip=False,
    )


def _table(found: Sequence[Rule], panel: Panel, name: str) -> Table:
    attacks = _attacks(found)
    marks = {a: standing({rule.entry: rule.rows for rule in found}, a) for a in attacks}
    rows = []
    records: list[tuple[object, ...]] = [("entry", "kind", "rule", "seed", "t_start", *attacks)]
    for rule in found:
        rows.append(
            (
                Cell(rule.entry),
                Cell(GROUPS[rule.kind]),
                Cell(rule.text),
                Cell(seeds([row.seed for row in rule.rows], panel.seeds)),
                Cell(rule.starts, average(rule.started) if rule.started else None),
                *(spread_item(cell(rule.rows, a), marks[a].get(rule.entry, "")) for a in attacks),
                number_item(row.gradient_evaluations for row in rule.rows),
            )
        )
        records += [
            (rule.entry, rule.kind, rule.text, row.seed, row.t_start, *map(row.accuracy, attacks))
            for row in rule.rows
        ]
    heads = ("entry", "starts", "rule", "seeds")
    columns = (
        *(Column(head, False) for head in heads),
        Column("t′"),
        *(Column(attack_name(attack)) for attack in attacks),
        Column("gradient evaluations"),
    )
    title = f"Rules for t′, {panel.title}"
    return Table(name, title, columns, tuple(rows), (MARKED,), tuple(records))


def _said(found: Sequence[Rule]) -> str:
    attack = ENSEMBLE if any(cell(rule.rows, ENSEMBLE) for rule in found) else CLEAN
    merged = [rule for rule in found if rule.started and cell(rule.rows, attack)]
    sentences = [_spread(merged, attack)] if len(merged) > 1 else []
    never = [rule for rule in found if not rule.started]
    lost = [rule for rule in never if rule.kind == "threshold"]
    tried = [rule for rule in found if rule.kind == "threshold"]
    if lost:
        verb = "starts" if len(lost) == 1 else "start"
        sentences.append(
            f"Of the paper's rule, {plural(len(lost), 'setting')} of {len(tried)} never {verb}."
        )
    elif tried:
        sentences.append("With every threshold tried the paper's rule starts.")
    values = [known.mean for rule in never if (known := cell(rule.rows, attack))]
    if values and merged:
        sentences.append(
            f"Without any hand-over {attack_name(attack)} accuracy is {_between(values)}."
        )
    return " ".join(sentences) or "There is too little yet to compare."


def _spread(merged: Sequence[Rule], attack: str) -> str:
    cells = {rule.entry: known for rule in merged if (known := cell(rule.rows, attack))}
    best = max(merged, key=lambda rule: cells[rule.entry].mean)
    worst = min(merged, key=lambda rule: cells[rule.entry].mean)
    width = cells[best.entry].mean - cells[worst.entry].mean
    what = "AutoAttack accuracy" if attack == ENSEMBLE else "clean accuracy"
    text = (
        f"Over the {plural(len(merged), 'rule')} that started, {what} has a range of "
        f"{100 * width:.1f} points, from {_of(worst)} to {_of(best)}"
    )
    several = [known.highest - known.lowest for known in cells.values() if len(known.values) > 1]
    if several:
        text += f"; over the seeds of one rule, of up to {100 * max(several):.1f}"
    else:
        text += "; of one seed each, so how much a seed alone moves it is not known here"
    found = compare(best.rows, worst.rows, attack)
    if found.pairs:
        apart = "are" if found.relation == "ahead" else "are not"
        text += f". On the same images the two ends {apart} told apart"
    return f"{text}."


def _of(rule: Rule) -> str:
    return f"“{rule.text}” (t′ = {rule.starts})"


def _between(values: Sequence[float]) -> str:
    low, high = wording.percent(min(values)), wording.percent(max(values))
    return low if low == high else f"{low} to {high}"
