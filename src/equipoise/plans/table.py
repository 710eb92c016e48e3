"""Results as one table: a row an entry, weights and radius; means over the seeds."""

__all__ = ["csv_rows", "facts", "finished_line", "markdown", "terminal_table"]

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from equipoise.plans.results import Experiment
from equipoise.plans.task import PlannedFront, Task
from equipoise.store.verdicts import WORST
from equipoise.terminal.table import escape_markdown, markdown_rows, rich_table

if TYPE_CHECKING:
    from rich.table import Table

MISSING = "-"
_COSTS = {
    "gradient evaluations": ("gradient_evaluations", "{:,.0f}"),
    "training, s": ("training_seconds", "{:.1f}"),
    "evaluation, s": ("evaluation_seconds", "{:.1f}"),
}


@dataclass(frozen=True, kw_only=True)
class TableLine:
    """One row of the table.

    Arguments:
        entry: The entry.
        method: Its method.
        seeds: The seeds whose results are there.
        rounds: The rounds of each training; of none those that are planned.
        weights: Which weights of a run.
        eps: The radius; None where there are no results.
        values: By column the value of each seed: accuracies by attack, CMMR and costs.
    """

    entry: str
    method: str
    seeds: Sequence[int]
    rounds: Sequence[int]
    weights: str = MISSING
    eps: float | None = None
    values: Mapping[str, Sequence[float]]


def _lines(experiment: Experiment, content: Mapping[str, Any], each: bool) -> list[TableLine]:
    """Return the rows of the table; ``each``: of every seed apart."""
    trained = {(row["entry"], row["seed"]): row for row in content["trainings"]}
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in content["results"]:
        key = row["entry"], row["seed"] if each else None, row["weights"], row["eps"]
        groups.setdefault(key, []).append(row)
    lines = []
    plan, tasks = experiment.parts[0]
    for entry in plan.entries:
        for key, rows in groups.items():
            if key[0] == entry.name:
                lines.append(_line(rows, trained))
        if not each and not any(key[0] == entry.name for key in groups):
            recipe = next(task.recipe for task in tasks if task.entry == entry.name)
            rounds, method = [recipe.rounds], recipe.method
            lines.append(
                TableLine(entry=entry.name, method=method, seeds=(), rounds=rounds, values={})
            )
    return lines


def _line(
    rows: Sequence[Mapping[str, Any]], trained: Mapping[tuple[str, int], Mapping[str, Any]]
) -> TableLine:
    first = rows[0]
    seeds = list(dict.fromkeys(row["seed"] for row in rows))
    trainings = [trained[first["entry"], seed] for seed in seeds]
    attacks = dict.fromkeys(row["attack"] for row in rows)
    values: dict[str, Sequence[float]] = {
        name: [row["correct"] / row["n"] for row in rows if row["attack"] == name]
        for name in attacks
    }
    if len(attacks) == 3:  # clean, one attack, and that attack again as the worst case
        values.pop(WORST, None)
    worst = [row for row in rows if row["attack"] == WORST]
    values["cmmr"] = [row["cmmr"]["score"] for row in worst if "cmmr" in row]
    values["gradient_evaluations"] = [row["gradient_evaluations"] for row in trainings]
    values["training_seconds"] = [row["seconds"] for row in trainings]
    values["evaluation_seconds"] = [row["seconds"] for row in worst]
    return TableLine(
        entry=first["entry"],
        method=trainings[0]["method"],
        seeds=seeds,
        rounds=[row["rounds"] for row in trainings],
        weights=first["weights"],
        eps=first["eps"],
        values={name: numbers for name, numbers in values.items() if numbers},
    )


def _shares(lines: Sequence[TableLine]) -> list[str]:
    """Return the columns that are parts of one: accuracies by attack, and CMMR."""
    costs = {name for name, _ in _COSTS.values()}
    return [n for n in dict.fromkeys(n for line in lines for n in line.values) if n not in costs]


def _models(lines: Sequence[TableLine]) -> list[str]:
    """Return the columns that say which model it is, where there are several of a training."""
    several = {name: {getattr(x, name) for x in lines if x.seeds} for name in ("weights", "eps")}
    return [name for name, values in several.items() if len(values) > 1]


def _heads(lines: Sequence[TableLine]) -> list[str]:
    return ["method", "seeds", "rounds", *_models(lines), *_shares(lines), *_COSTS]


def _cells(line: TableLine, lines: Sequence[TableLine], seeds: int) -> list[str]:
    """Return a row as text, but for its name: means over the seeds, in brackets their range."""
    lost = f" ({seeds - len(line.seeds)} missing)" if len(line.seeds) < seeds else ""
    of = {"weights": line.weights, "eps": MISSING if line.eps is None else f"{line.eps:g}"}
    costs = [(line.values.get(key, ()), text) for key, text in _COSTS.values()]
    return [
        line.method,
        (", ".join(map(str, line.seeds)) + lost).strip(),
        _span(line.rounds),
        *(of[name] for name in _models(lines)),
        *(_spread(line.values.get(name, ())) for name in _shares(lines)),
        *(text.format(_mean(values)) if values else MISSING for values, text in costs),
    ]


def _table(
    experiment: Experiment, content: Mapping[str, Any], each: bool = False
) -> tuple[list[str], list[list[str]]]:
    """Return the heads and rows of the table as text."""
    lines = _lines(experiment, content, each)
    seeds = 1 if each else len(experiment.parts[0][0].seeds)
    rows = [
        [f"{x.entry}-seed{x.seeds[0]}" if each else x.entry, *_cells(x, lines, seeds)]
        for x in lines
    ]
    return ["run" if each else "entry", *_heads(lines)], rows


def terminal_table(experiment: Experiment, content: Mapping[str, Any]) -> "Table":
    """Return the table for a terminal."""
    heads, rows = _table(experiment, content)
    return rich_table(experiment.title, heads, rows, numbers=heads[2:])


def markdown(experiment: Experiment, content: Mapping[str, Any]) -> str:
    """Return the table, the facts, what is missing and the table of every run as Markdown."""
    lines = "".join(f"- {escape_markdown(line)}\n" for line in facts(experiment, content))
    parts = [
        f"## {escape_markdown(experiment.title)}\n",
        markdown_rows(*_table(experiment, content)),
        lines,
    ]
    if content["missing"]:
        missing = (f"- {escape_markdown(line)}\n" for line in content["missing"])
        parts.append("Missing:\n\n" + "".join(missing))
    if content["results"]:
        runs = markdown_rows(*_table(experiment, content, each=True))
        parts.append(f"### Single runs\n\n{runs}")
    return "\n".join(parts)


def csv_rows(experiment: Experiment, content: Mapping[str, Any]) -> list[list[object]]:
    """Return the table for programs: fractions, with the lowest and highest of the seeds."""
    lines = _lines(experiment, content, each=False)
    shares, models = _shares(lines), _models(lines)
    costs = [name for name, _ in _COSTS.values()]
    head: list[object] = ["entry", "method", "seeds", "rounds", *models]
    head += [f"{name}{end}" for name in shares for end in ("", " lowest", " highest")]
    rows = [[*head, *costs]]
    for line in lines:
        row: list[object] = [line.entry, line.method, " ".join(map(str, line.seeds))]
        row += [_span(line.rounds), *(getattr(line, name) for name in models)]
        for name in shares:
            values = line.values.get(name, ())
            row += [_mean(values), min(values), max(values)] if values else ["", "", ""]
        row += [_mean(v) if (v := line.values.get(name)) else "" for name in costs]
        rows.append(row)
    return rows


def facts(experiment: Experiment, content: Mapping[str, Any]) -> list[str]:
    """Return in lines what the numbers are of, and where they come from."""
    plan, tasks = experiment.parts[0]
    protocol, budget = plan.judging.protocol, plan.budget
    spread = "; a mean over the seeds, in brackets their range" if len(plan.seeds) > 1 else ""
    how = {None: "", True: ", each alone", False: ", each on what the others left"}
    attacks = f"{', '.join(protocol.names)}{how[protocol.individual]}"
    known = {
        "accuracy": f"in percent{spread}",
        "test images": _each(tasks, _images),
        "training images a round": _each(tasks, lambda task: f"{task.images:,}"),
        "model": _each(tasks, lambda t: f"{t.recipe.model}, width {t.recipe.width:g}"),
        "threat of the attacks": _each(tasks, _threats),
        "attacks": f"{attacks}; searched in precision {protocol.execution.precision}",
        "budget": f"{budget:,.0f} gradient evaluations of a training" if budget else "none",
    }
    lines = [f"{key}: {value}" for key, value in known.items()]
    return [*lines, *content["panels"][0]["facts"], f"command: {experiment.command}"]


def _images(task: Task) -> str:
    evaluation = task.evaluations[0]
    if isinstance(evaluation, PlannedFront):
        return f"none; {evaluation.protocol.n:,} held-out training images of {task.recipe.data}"
    return evaluation.sample.words(f"images of {task.recipe.data}")


def _threats(task: Task) -> str:
    return ", ".join(dict.fromkeys(str(each.protocol.threat) for each in task.evaluations))


def _each(tasks: Sequence[Task], fact: Callable[[Task], str]) -> str:
    """Return a fact of all entries, or which entries have which."""
    names: dict[str, list[str]] = {}
    for task in tasks:
        having = names.setdefault(fact(task), [])
        if task.entry not in having:
            having.append(task.entry)
    if len(names) == 1:
        return next(iter(names))
    return "; ".join(f"{value} ({', '.join(having)})" for value, having in names.items())


def finished_line(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return what was found of one training in a line; of several models only their number."""
    models = {(row["weights"], row["eps"]) for row in rows}
    if len(models) > 1:
        return f"{len(models)} models and radii judged"
    accuracies = [f"{row['attack']} {_percent(row['correct'] / row['n'])} %" for row in rows]
    return ", ".join(accuracies)


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _spread(values: Sequence[float]) -> str:
    if not values:
        return MISSING
    around = f" ({_percent(min(values))}..{_percent(max(values))})" if len(values) > 1 else ""
    return f"{_percent(_mean(values))}{around}"


def _span(values: Sequence[int]) -> str:
    """Return a number, or from which to which; a training may end before its last round."""
    low, high = min(values), max(values)
    return str(low) if low == high else f"{low}..{high}"
