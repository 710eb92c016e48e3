"""Controls: fixed, adaptive and absolute rules for t', the first round of the merges."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from equipoise.paper import figures, measures
from equipoise.paper.measures import Rows
from equipoise.paper.prose import prose, seeds_text
from equipoise.paper.results import AUTOATTACK, CLEAN, WORST, PanelInfo
from equipoise.paper.tables import Line, Numbers, number_cell, spread_cells, table
from equipoise.report import wording
from equipoise.report.content import Block, Picture, Table

KINDS = {
    "stable": "adaptive",
    "fixed": "at a preset round",
    "never": "never",
    "threshold": "below a loss threshold",
}


@dataclass(frozen=True)
class StartRule:
    """A rule for t' and the runs with it.

    Arguments:
        entry: The entry.
        kind: One of ``KINDS``.
        text: The rule in words.
        order: By what rules of a kind are sorted.
        rows: The rows of its runs.
    """

    entry: str
    kind: str
    text: str
    order: tuple[float, ...]
    rows: Rows

    @property
    def found(self) -> list[int | None]:
        """T' of each run, None where it never started."""
        return list(self.rows[self.rows["attack"] == WORST]["t_start"])

    @property
    def starts(self) -> str:
        """T' of each run, in words."""
        texts = ("never" if t is None else str(t) for t in self.found)
        return ", ".join(dict.fromkeys(texts)) or wording.MISSING


def rules(rows: Rows) -> list[StartRule]:
    """Return the rules of a panel, by their kinds."""
    made = []
    for entry, mine in measures.group(rows[rows["weights"] == "model"], "entry").items():
        first = mine.iloc[0]
        given = first["settings"].get("start") or {}
        kind = str(given.get("rule", "")) if isinstance(given, Mapping) else ""
        if kind in KINDS:
            text, order = _text(kind, given, first["t_start"])
            made.append(StartRule(entry, kind, text, order, mine))
    kinds = list(KINDS)
    return sorted(made, key=lambda rule: (kinds.index(rule.kind), rule.order, rule.entry))


def _text(
    kind: str, given: Mapping[str, Any], t_start: int | None
) -> tuple[str, tuple[float, ...]]:
    if kind == "fixed":
        fixed = given.get("round")
        fraction = f"{float(given.get('fraction', 0.625)):g} of all rounds"
        return fraction if fixed is None else f"round {fixed}", (float(t_start or 0),)
    if kind == "stable":
        window, ratio = given.get("window", 3), given.get("ratio", 0.1)
        return f"level for {window} rounds, ratio {ratio:g}", (0.0,)
    if kind == "never":
        return "no merge at all", (0.0,)
    limit, patience = given.get("threshold", 0.5), given.get("patience", 3)
    if isinstance(limit, Mapping):  # one for each learner
        named = ", ".join(f"{name} {value:g}" for name, value in limit.items())
        return f"l_h {named}, t_num {patience}", (0.0, float(patience))
    return f"l_h {limit:g}, t_num {patience}", (float(limit), float(patience))


def blocks(panel: PanelInfo, rows: Rows, name: str) -> list[Block]:
    """Return the picture, the table and the range over the rules."""
    found = rules(rows)
    if not found:
        return [prose("nothing", title=panel.title)]
    both = [[measures.accuracies(r.rows, attack) for attack in (CLEAN, AUTOATTACK)] for r in found]
    lines = [
        (KINDS[rule.kind], f"{rule.text} (t' {rule.starts})", pair)
        for rule, pair in zip(found, both, strict=True)
    ]
    picture = Picture(
        name,
        f"Accuracy by the rule for t′, {panel.title}",
        lambda palette: figures.intervals(palette, lines),
        prose("spoken_rules", lines=lines),
        prose("starts_caption"),
    )
    return [picture, _table(found, panel, f"{name}-rules"), _summary(found)]


def _table(found: Sequence[StartRule], panel: PanelInfo, name: str) -> Table:
    run = dict.fromkeys(attack for rule in found for attack in measures.evaluated(rule.rows))
    attacks = [attack for attack in run if not attack.startswith(("apgd", "fab", "square"))]
    cells = spread_cells({rule.entry: rule.rows for rule in found}, attacks)
    lines, data = list[Line](), list[Numbers]()
    for rule in found:
        models = rule.rows[rule.rows["attack"] == WORST]
        lines.append(
            {
                "entry": rule.entry,
                "starts": KINDS[rule.kind],
                "rule": rule.text,
                "seeds": seeds_text(models["seed"], panel.seeds),
                "t′": replace(number_cell(rule.found), text=rule.starts),
                **cells[rule.entry],
                "gradient evaluations": number_cell(models["gradient_evaluations"]),
            }
        )
        for seed, mine in measures.group(rule.rows, "seed").items():
            shares = dict(zip(mine["attack"], mine["accuracy"], strict=True))
            known = (rule.entry, rule.kind, rule.text, seed, mine["t_start"].iloc[0])
            data.append((*known, *map(shares.get, attacks)))
    head = ("entry", "kind", "rule", "seed", "t_start", *attacks)
    return table(name, f"Rules for t′, {panel.title}", lines, head, data, prose("marks_note"))


def _summary(found: Sequence[StartRule]) -> str:
    known = [(rule, measures.accuracies(rule.rows, AUTOATTACK)) for rule in found]
    started = [(rule, some) for rule, some in known if some and {*rule.found} != {None}]
    ranked = sorted(started, key=lambda pair: -pair[1].mean)
    ends = [(rule, some.mean) for rule, some in (ranked[0], ranked[-1])] if ranked else []
    return prose(
        "starts",
        started=len(started),
        ends=ends,
        relation=measures.stands(ends[0][0].rows, ends[1][0].rows, AUTOATTACK) if ends else "",
        seeds=max((len(some.values) for _, some in started), default=0),
        span=max((max(some.values) - min(some.values) for _, some in started), default=0),
        thresholds=[rule for rule in found if rule.kind == "threshold"],
        unmerged=[some.mean for rule, some in known if some and {*rule.found} == {None}],
    )
