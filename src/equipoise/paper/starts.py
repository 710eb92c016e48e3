"""Controls: fixed, adaptive and absolute rules for t', the first round of the merges."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from equipoise.paper import figures, measures
from equipoise.paper.measures import Rows
from equipoise.paper.prose import prose, seeds_text
from equipoise.paper.results import AUTOATTACK, WORST, PanelInfo
from equipoise.paper.tables import Line, mean_cell, spread_cells, table
from equipoise.report import wording
from equipoise.report.content import Block, Picture, Table

KINDS = {
    "stable": "adaptive",
    "fixed": "at a preset round",
    "never": "never",
    "threshold": "below a loss threshold",
}


class StartRule(NamedTuple):
    """A rule for t': its kind (of ``KINDS``), its text, its place in its kind, its runs."""

    entry: str
    kind: str
    text: str
    order: tuple[float, ...]
    rows: Rows

    @property
    def rounds(self) -> list[int | None]:
        """T' of each run, None where it never started."""
        return list(self.rows[self.rows["attack"] == WORST]["t_start"])

    @property
    def starts(self) -> str:
        """T' of each run, in words."""
        texts = ("never" if t is None else str(t) for t in self.rounds)
        return ", ".join(dict.fromkeys(texts)) or wording.MISSING


def rules(rows: Rows) -> list[StartRule]:
    """Return the rules of a panel, by their kinds."""
    every = []
    for entry, models in measures.group(rows[rows["weights"] == "model"], "entry").items():
        first = models.iloc[0]
        start = first["settings"].get("start") or {}
        kind = str(start.get("rule", "")) if isinstance(start, Mapping) else ""
        if kind in KINDS:
            text, order = _text(kind, start, first["t_start"])
            every.append(StartRule(entry, kind, text, order, models))
    kinds = list(KINDS)
    return sorted(every, key=lambda rule: (kinds.index(rule.kind), rule.order, rule.entry))


def _text(
    kind: str, start: Mapping[str, Any], t_start: int | None
) -> tuple[str, tuple[float, ...]]:
    """Return a rule in words, and its place among the rules of its kind."""
    if kind == "fixed":
        fixed = start.get("round")
        fraction = f"{float(start.get('fraction', 0.625)):g} of all rounds"
        return fraction if fixed is None else f"round {fixed}", (float(t_start or 0),)
    if kind == "stable":
        window, ratio = start.get("window", 3), start.get("ratio", 0.1)
        return f"level for {window} rounds, ratio {ratio:g}", (0.0,)
    if kind == "never":
        return "no merge at all", (0.0,)
    limit, patience = start.get("threshold", 0.5), start.get("patience", 3)
    if isinstance(limit, Mapping):  # one for each learner
        named = ", ".join(f"{name} {value:g}" for name, value in limit.items())
        return f"l_h {named}, t_num {patience}", (0.0, float(patience))
    return f"l_h {limit:g}, t_num {patience}", (float(limit), float(patience))


def blocks(panel: PanelInfo, rows: Rows, name: str) -> list[Block]:
    """Return the picture, the table and the range over the rules."""
    every = rules(rows)
    if not every:
        return [prose("nothing", title=panel.title)]
    lines = [
        (KINDS[rule.kind], f"{rule.text} (t' {rule.starts})", measures.both_accuracies(rule.rows))
        for rule in every
    ]
    picture = Picture(
        name,
        f"Accuracy by the rule for t′, {panel.title}",
        lambda palette: figures.intervals(palette, lines),
        prose("spoken_rules", lines=lines),
        prose("starts_caption"),
    )
    return [picture, _table(every, panel, f"{name}-rules"), _summary(every)]


def _table(every: Sequence[StartRule], panel: PanelInfo, name: str) -> Table:
    attacks = dict.fromkeys(attack for rule in every for attack in measures.evaluated(rule.rows))
    shown = [attack for attack in attacks if not attack.startswith(("apgd", "fab", "square"))]
    cells = spread_cells({rule.entry: rule.rows for rule in every}, shown)
    lines, data = list[Line](), []
    for rule in every:
        models = rule.rows[rule.rows["attack"] == WORST]
        lines.append(
            {
                "entry": rule.entry,
                "starts": KINDS[rule.kind],
                "rule": rule.text,
                "seeds": seeds_text(models["seed"], panel.seeds),
                "t′": replace(mean_cell(rule.rounds), text=rule.starts),
                **cells[rule.entry],
                "gradient evaluations": mean_cell(models["gradient_evaluations"]),
            }
        )
        for seed, of_seed in measures.group(rule.rows, "seed").items():
            accuracies = dict(zip(of_seed["attack"], of_seed["accuracy"], strict=True))
            numbers = (seed, of_seed["t_start"].iloc[0], *map(accuracies.get, shown))
            data.append((rule.entry, rule.kind, rule.text, *numbers))
    head = [*["entry", "kind", "rule", "seed", "t_start"], *shown]
    return table(name, f"Rules for t′, {panel.title}", lines, head, data, prose("marks_note"))


def _summary(every: Sequence[StartRule]) -> str:
    measured = [(rule, a) for rule in every if (a := measures.accuracies(rule.rows, AUTOATTACK))]
    never = [a.mean for rule, a in measured if {*rule.rounds} == {None}]
    started = [(rule, a) for rule, a in measured if {*rule.rounds} != {None}]
    started.sort(key=lambda pair: -pair[1].mean)
    ends = [(rule, a.mean) for rule, a in (started[0], started[-1])] if started else []
    return prose(
        "starts",
        started=len(started),
        ends=ends,
        relation=measures.stands(ends[0][0].rows, ends[1][0].rows, AUTOATTACK) if ends else "",
        seeds=max((len(a.values) for _, a in started), default=0),
        span=max((max(a.values) - min(a.values) for _, a in started), default=0),
        thresholds=[rule for rule in every if rule.kind == "threshold"],
        unmerged=never,
    )
