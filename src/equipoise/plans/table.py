"""What a comparison found: a row an entry, a row a run, and where the numbers come from."""

__all__ = ["Found", "Row", "collect", "origin_facts"]

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from equipoise.evaluation.protocol import STAGED
from equipoise.plans.comparison import Plan
from equipoise.plans.runs import Item
from equipoise.store.verdicts import WORST
from equipoise.terminal.table import escape_markdown, markdown_rows

MISSING = "-"


@dataclass(frozen=True, kw_only=True)
class Row:
    """The numbers of one run that is trained and judged.

    Arguments:
        entry: The entry it belongs to.
        method: Its method.
        seed: Its seed.
        run: The name of its folder.
        rounds: The rounds it was trained.
        accuracy: The accuracy by attack, in [0, 1]; ``clean`` is without one.
        gradient_evaluations: The gradient evaluations of the training, as they were counted.
        training_seconds: The seconds of the training, without validation.
        evaluation_seconds: The seconds of the attacks.
    """

    entry: str
    method: str
    seed: int
    run: str
    rounds: int
    accuracy: Mapping[str, float]
    gradient_evaluations: float
    training_seconds: float
    evaluation_seconds: float

    @classmethod
    def of(cls, item: Item, verdicts: Mapping[str, Mapping[str, Any]]) -> "Row":
        """Return the row of a run from its records."""
        rounds = item.rounds()
        summary = item.run.read_json("summary.json")
        attacks = [v for name, v in verdicts.items() if name not in ("clean", WORST)]
        return cls(
            entry=item.entry,
            method=item.recipe.method,
            seed=item.recipe.seed,
            run=item.name,
            rounds=len(rounds),
            accuracy=_accuracies(verdicts, item.judging.individual),
            gradient_evaluations=float(summary["gradient_evaluations"]),
            training_seconds=sum(r["seconds"]["train"] for r in rounds),
            evaluation_seconds=sum(v["seconds"] for v in attacks),
        )

    def line(self) -> str:
        """Return the run in one line."""
        told = ", ".join(f"{name} {_percent(v)} %" for name, v in self.accuracy.items())
        seconds = f"{self.training_seconds:.0f} s + {self.evaluation_seconds:.0f} s"
        return f"{self.entry}, seed {self.seed}: {told}  [{seconds}]"


def _accuracies(
    verdicts: Mapping[str, Mapping[str, Any]], individual: bool | None
) -> dict[str, float]:
    """Return the accuracies in the order of the columns; the worst case, if there are several."""
    found: dict[str, float] = {}
    for name, record in verdicts.items():
        stages = record.get("stages", ())
        if name == STAGED:
            found |= {f"{s['attack']} and before": s["accuracy"] for s in stages[:-1]}
        elif individual:
            found |= {f"{name}/{s['attack']}": s["alone"] for s in stages}
        found[name] = record["accuracy"]
    if len(verdicts) == 3:  # clean, one attack, and that attack again as the worst case
        del found[WORST]
    return found


@dataclass(frozen=True, kw_only=True)
class Found:
    """What a comparison has found so far.

    Arguments:
        plan: The plan.
        items: Its runs, in the order of the plan.
        rows: The rows of those that are trained and judged.
        failures: Why runs failed, by name.
        command: The command, as it was given.
    """

    plan: Plan
    items: Sequence[Item]
    rows: Sequence[Row]
    failures: Mapping[str, str]
    command: str

    @property
    def attacks(self) -> list[str]:
        """Return the columns of accuracies."""
        return list(dict.fromkeys(name for row in self.rows for name in row.accuracy))

    @property
    def missing(self) -> list[str]:
        """Return a line for each run that is not in the table."""
        there = {row.run for row in self.rows}
        return [
            f"{i.name}: {self.failures.get(i.name, ', '.join(_state(i)))}"
            for i in self.items
            if i.name not in there
        ]

    def columns(self) -> list[str]:
        """Return the heads of the table of entries."""
        end = ["gradient evaluations", "training, s", "evaluation, s"]
        return ["entry", "method", "seeds", "rounds", *self.attacks, *end]

    def entries(self) -> list[list[str]]:
        """Return the table of entries: means over the seeds, and in brackets their range."""
        return [self._entry(entry.name) for entry in self.plan.entries]

    def _entry(self, name: str) -> list[str]:
        rows = [row for row in self.rows if row.entry == name]
        item = next(item for item in self.items if item.entry == name)
        lost = len(self.plan.seeds) - len(rows)
        seeds = ", ".join(str(row.seed) for row in rows) + (f" ({lost} missing)" if lost else "")
        return [
            name,
            item.recipe.method,
            seeds.strip(),
            _span([row.rounds for row in rows] or [item.recipe.rounds]),
            *(_spread([row.accuracy.get(a) for row in rows]) for a in self.attacks),
            _mean([row.gradient_evaluations for row in rows], "{:,.0f}"),
            _mean([row.training_seconds for row in rows], "{:.1f}"),
            _mean([row.evaluation_seconds for row in rows], "{:.1f}"),
        ]

    def runs(self) -> list[list[str]]:
        """Return the table of runs."""
        return [
            [
                row.run,
                row.method,
                str(row.seed),
                str(row.rounds),
                *(_percent(row.accuracy.get(a)) for a in self.attacks),
                f"{row.gradient_evaluations:,.0f}",
                f"{row.training_seconds:.1f}",
                f"{row.evaluation_seconds:.1f}",
            ]
            for row in self.rows
        ]

    def facts(self) -> list[str]:
        """Return in lines what the numbers are of, and where they come from."""
        several = len(self.plan.seeds) > 1
        spread = "; a mean over the seeds, in brackets their range" if several else ""
        budget = self.plan.budget
        origins = [item.run.read_json("provenance.json") for item in self._finished()]
        facts = {
            "accuracy": f"in percent{spread}",
            "test images": self._each(lambda i: i.sample.words(f"images of {i.recipe.data}")),
            "training images a round": self._each(lambda i: f"{i.images:,}"),
            "model": self._each(lambda i: f"{i.recipe.model}, width {i.recipe.width:g}"),
            "threat of the attacks": self._each(lambda i: str(i.threat)),
            "attacks": ", ".join(self.plan.judging.names) + self._how(),
            "budget": f"{budget:,.0f} gradient evaluations of a training" if budget else "none",
        }
        told = [f"{key}: {value}" for key, value in facts.items() if value]
        return [*told, *origin_facts(origins), f"command: {self.command}"]

    def _finished(self) -> list[Item]:
        there = {row.run for row in self.rows}
        return [item for item in self.items if item.name in there]

    def _how(self) -> str:
        judging = self.plan.judging
        how = {None: "", True: ", each alone", False: ", each on what the others left"}
        return f"{how[judging.individual]}; searched in precision {judging.execution.precision}"

    def _each(self, fact: Callable[[Item], str]) -> str:
        """Return a fact of all entries, or which entries have which."""
        known: dict[str, list[str]] = {}
        for item in self.items:
            names = known.setdefault(fact(item), [])
            if item.entry not in names:
                names.append(item.entry)
        if len(known) == 1:
            return next(iter(known))
        return "; ".join(f"{value} ({', '.join(names)})" for value, names in known.items())

    # As files

    def markdown(self) -> str:
        """Return both tables, the facts and what is missing as Markdown."""
        columns = self.columns()
        parts = [
            f"## {escape_markdown(self.plan.title)}\n",
            markdown_rows(columns, self.entries()),
            "".join(f"- {escape_markdown(line)}\n" for line in self.facts()),
        ]
        if self.missing:
            missing = (f"- {escape_markdown(line)}\n" for line in self.missing)
            parts.append("Missing:\n\n" + "".join(missing))
        if self.rows:
            heads = ["run", "method", "seed", *columns[3:]]
            parts.append(f"### Single runs\n\n{markdown_rows(heads, self.runs())}")
        return "\n".join(parts)

    def csv(self) -> list[list[object]]:
        """Return the table of entries for programs: fractions, with the range of each."""
        ends = ("", " lowest", " highest")
        head: list[object] = ["entry", "method", "seeds", "rounds"]
        head += [f"{attack}{end}" for attack in self.attacks for end in ends]
        head += ["gradient_evaluations", "training_seconds", "evaluation_seconds"]
        return [head, *(self._numbers(entry.name) for entry in self.plan.entries)]

    def _numbers(self, name: str) -> list[object]:
        rows = [row for row in self.rows if row.entry == name]
        item = next(item for item in self.items if item.entry == name)
        line: list[object] = [name, item.recipe.method, " ".join(str(row.seed) for row in rows)]
        line.append(_span([row.rounds for row in rows] or [item.recipe.rounds]))
        for attack in self.attacks:
            values = [row.accuracy[attack] for row in rows if attack in row.accuracy]
            line += [_average(values), min(values), max(values)] if values else ["", "", ""]
        for key in ("gradient_evaluations", "training_seconds", "evaluation_seconds"):
            line.append(_average([getattr(row, key) for row in rows]) if rows else "")
        return line

    def json(self) -> str:
        """Return everything as JSON."""
        content = {
            "format": 1,
            "title": self.plan.title,
            "command": self.command,
            "plan": self.plan.given,
            "facts": self.facts(),
            "missing": self.missing,
            "runs": [asdict(row) for row in self.rows],
        }
        return json.dumps(content, indent=2) + "\n"


def collect(plan: Plan, items: Sequence[Item], failures: Mapping[str, str], command: str) -> Found:
    """Return what there is of a comparison.

    Arguments:
        plan: The plan.
        items: Its runs.
        failures: Why runs failed, by name.
        command: The command, as it was given.
    """
    order = [entry.name for entry in plan.entries]
    ordered = sorted(items, key=lambda item: order.index(item.entry))  # seeds keep their order
    rows = []
    for item in ordered:
        verdicts = item.verdicts() if item.trained else None
        if verdicts is not None:
            rows.append(Row.of(item, verdicts))
    return Found(plan=plan, items=ordered, rows=rows, failures=failures, command=command)


def origin_facts(origins: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return in lines where trainings come from, by their provenance: device and versions."""
    facts = {
        "device": _distinct(f"{o.get('device')}" for o in origins),
        "threads": _distinct(str(o.get("threads")) for o in origins),
        "versions": _distinct(_versions(o) for o in origins),
        "git commit": _distinct(_commit(o) for o in origins),
    }
    return [f"{key}: {value}" for key, value in facts.items() if value]


def _state(item: Item) -> tuple[str, str]:
    training, evaluation = item.state()
    return f"training {training}", f"evaluation {evaluation}"


def _percent(value: float | None) -> str:
    return MISSING if value is None else f"{100 * value:.1f}"


def _average(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _spread(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return MISSING
    mean = _percent(_average(known))
    if len(known) == 1:
        return mean
    return f"{mean} ({_percent(min(known))}..{_percent(max(known))})"


def _span(values: Sequence[int]) -> str:
    """Return a number, or from which to which; a training may end before its last round."""
    low, high = min(values), max(values)
    return str(low) if low == high else f"{low}..{high}"


def _mean(values: Sequence[float], form: str) -> str:
    return form.format(_average(values)) if values else MISSING


def _distinct(values: Iterable[str]) -> str:
    return "; ".join(dict.fromkeys(values))


def _versions(origin: Mapping[str, Any]) -> str:
    return f"equipoise {origin.get('equipoise')}, torch {origin.get('torch')}"


def _commit(origin: Mapping[str, Any]) -> str:
    commit = origin.get("git_commit")
    changed = " with changes" if origin.get("git_dirty") else ""
    return f"{commit[:12]}{changed}" if commit else "not from a checkout"
