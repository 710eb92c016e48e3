"""Controls: fixed, adaptive and absolute rules for t', the first round of the merges."""

__all__ = ["KINDS", "StartRule", "blocks", "rules"]

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from equipoise.paper import figures
from equipoise.paper.measures import (
    Rows,
    accuracies,
    average,
    best_marks,
    evaluated,
    group,
    paired,
    relation,
)
from equipoise.paper.prose import prose, seeds_text
from equipoise.paper.results import AUTOATTACK, CLEAN, WORST, PanelInfo
from equipoise.paper.tables import Line, Numbers, number_cell, spread_cell, table
from equipoise.report import wording
from equipoise.report.content import Block, Cell, Picture, Table

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
    for entry, mine in group(rows[rows["weights"] == "model"], "entry").items():
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
    both = [[accuracies(r.rows, attack) for attack in (CLEAN, AUTOATTACK)] for r in found]
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
    run = dict.fromkeys(attack for rule in found for attack in evaluated(rule.rows))
    attacks = [attack for attack in run if not attack.startswith(("apgd", "fab", "square"))]
    entries = {rule.entry: rule.rows for rule in found}
    marks = {attack: best_marks(entries, attack) for attack in attacks}
    printed, data = list[Line](), list[Numbers]()
    for rule in found:
        models = rule.rows[rule.rows["attack"] == WORST]
        started = [t for t in rule.found if t is not None]
        accuracy = {
            a: spread_cell(accuracies(rule.rows, a), marks[a].get(rule.entry, "")) for a in attacks
        }
        printed.append(
            {
                "entry": rule.entry,
                "starts": KINDS[rule.kind],
                "rule": rule.text,
                "seeds": seeds_text(models["seed"], panel.seeds),
                "t′": Cell(rule.starts, average(started) if started else None),
                **accuracy,
                "gradient evaluations": number_cell(models["gradient_evaluations"]),
            }
        )
        for seed, mine in group(rule.rows, "seed").items():
            shares = dict(zip(mine["attack"], mine["accuracy"], strict=True))
            known = (rule.entry, rule.kind, rule.text, seed, mine["t_start"].iloc[0])
            data.append((*known, *map(shares.get, attacks)))
    head = ("entry", "kind", "rule", "seed", "t_start", *attacks)
    title, notes = f"Rules for t′, {panel.title}", (prose("marks_note"),)
    return table(name, title, printed, head, data, *notes)


def _summary(found: Sequence[StartRule]) -> str:
    attack = AUTOATTACK if any(accuracies(rule.rows, AUTOATTACK) for rule in found) else CLEAN
    known = {rule.entry: some for rule in found if (some := accuracies(rule.rows, attack))}
    started = [r for r in found if r.entry in known and any(t is not None for t in r.found)]
    never = [rule for rule in found if all(t is None for t in rule.found)]
    ranked = sorted(started, key=lambda rule: -known[rule.entry].mean)
    ends = [(ranked[i], known[ranked[i].entry].mean) for i in (0, -1)] if len(ranked) > 1 else []
    spans = [
        max(known[r.entry].values) - min(known[r.entry].values)
        for r in started
        if len(known[r.entry].values) > 1
    ]
    ahead = bool(ends) and relation(paired(ends[0][0].rows, ends[1][0].rows, attack))
    return prose(
        "starts",
        attack=attack,
        started=len(started),
        ends=ends,
        relation=ahead,
        span=max(spans, default=None),
        thresholds=[rule for rule in found if rule.kind == "threshold"],
        lost=[rule for rule in never if rule.kind == "threshold"],
        unmerged=[known[rule.entry].mean for rule in never if rule.entry in known],
    )
