"""Results as tables: a row a model, and over the seeds a row an entry, weights and radius."""

__all__ = ["csv_rows", "facts", "markdown", "models", "summary"]

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from equipoise.plans.results import Experiment, Row
from equipoise.plans.task import PlannedFront, Task
from equipoise.store.verdicts import WORST
from equipoise.terminal.table import escape_markdown, markdown_rows

MISSING = "-"
_MODEL = ("entry", "method", "weights", "eps")
_COSTS = {"gradient_evaluations": "{:,.0f}", "training_seconds": "{:.1f}"}
_COSTS |= {"evaluation_seconds": "{:.1f}"}


def models(content: Row) -> list[Row]:
    """Return a row a model, of one seed: accuracies by attack, CMMR and costs."""
    trained = {(row["entry"], row["seed"]): row for row in content["trainings"]}
    found: dict[tuple[Any, ...], Row] = {}
    for row in content["results"]:
        training = trained[row["entry"], row["seed"]]
        model = {key: (row | training)[key] for key in (*_MODEL, "seed", "rounds")}
        made = found.setdefault(tuple(model.values()), model)
        made[row["attack"]] = row["correct"] / row["n"]
        if row["attack"] == WORST:
            made |= {"cmmr": row["cmmr"]["score"]} if "cmmr" in row else {}
            made["gradient_evaluations"] = training["gradient_evaluations"]
            made["training_seconds"] = training["seconds"]
            made["evaluation_seconds"] = row["seconds"]
    return list(found.values())


def _columns(rows: Sequence[Row]) -> tuple[list[str], list[str]]:
    """Return the columns that say which model it is, where there are several, and the shares."""
    several = [key for key in ("weights", "eps") if len({row[key] for row in rows}) > 1]
    every = dict.fromkeys(key for row in rows for key in row)
    shares = [key for key in every if key not in (*_MODEL, *_COSTS, "seed", "rounds")]
    if len(shares) == 3 and WORST in shares:  # clean, and one attack that is the worst case
        shares.remove(WORST)
    return several, shares


def _grouped(experiment: Experiment, rows: Sequence[Row]) -> list[tuple[Row, list[Row]]]:
    """Return the rows of all seeds of each model; none of an entry that has no results."""
    plan, tasks = experiment.parts[0]
    recipes = {task.entry: task.recipe for task in tasks}
    groups = []
    for entry in plan.entries:
        own = [row for row in rows if row["entry"] == entry.name]
        found: dict[tuple[Any, ...], list[Row]] = {}
        for row in own:
            found.setdefault((row["weights"], row["eps"]), []).append(row)
        places = list(dict.fromkeys(row["weights"] for row in own))
        ordered = sorted(found, key=lambda key: (places.index(key[0]), key[1]))
        groups += [(found[key][0], found[key]) for key in ordered]
        if not own:
            recipe = recipes[entry.name]
            none = {"entry": entry.name, "method": recipe.method, "rounds": recipe.rounds}
            groups.append((none | {"weights": MISSING, "eps": MISSING}, []))
    return groups


def summary(
    experiment: Experiment, rows: Sequence[Row], *, runs: bool = False
) -> tuple[list[str], list[list[str]]]:
    """Return heads and cells of the table: means over the seeds, in brackets their range.

    Arguments:
        experiment: What the rows are of.
        rows: The models.
        runs: Whether each seed has a row of its own.
    """
    several, shares = _columns(rows)
    groups, planned = _grouped(experiment, rows), len(experiment.parts[0][0].seeds)
    if runs:
        groups = [
            (row | {"entry": f"{row['entry']}-seed{row['seed']}"}, [row])
            for _, seeds in groups
            for row in seeds
        ]
    cells = []
    for model, seeds in groups:
        lost = "" if runs or len(seeds) == planned else f" ({planned - len(seeds)} missing)"
        there = ", ".join(str(row["seed"]) for row in seeds)
        line = [model["entry"], model["method"], f"{there}{lost}".strip()]
        line.append(_span([row["rounds"] for row in seeds or [model]]))
        cells.append([*line, *(str(model[key]) for key in several), *_numbers(shares, seeds)])
    heads = ["run", "method", "seed"] if runs else ["entry", "method", "seeds"]
    costs = [name.replace("_", " ") for name in _COSTS]
    return [*heads, "rounds", *several, *shares, *costs], cells


def _numbers(shares: Iterable[str], rows: Sequence[Row]) -> list[str]:
    """Return the cells of accuracies, CMMR and costs of one model."""
    cells = [_spread([row[name] for row in rows if name in row]) for name in shares]
    costs = [(text, [row[name] for row in rows]) for name, text in _COSTS.items()]
    return cells + [text.format(_mean(v)) if v else MISSING for text, v in costs]


def markdown(experiment: Experiment, content: Row) -> str:
    """Return the table, the facts, what is missing and the table of every run as Markdown."""
    rows = models(content)
    parts = [
        f"## {escape_markdown(experiment.title)}\n",
        markdown_rows(*summary(experiment, rows)),
        "".join(f"- {escape_markdown(line)}\n" for line in facts(experiment, content)),
    ]
    if content["missing"]:
        missing = (f"- {escape_markdown(line)}\n" for line in content["missing"])
        parts.append("Missing:\n\n" + "".join(missing))
    if rows:
        runs = markdown_rows(*summary(experiment, rows, runs=True))
        parts.append(f"### Single runs\n\n{runs}")
    return "\n".join(parts)


def csv_rows(experiment: Experiment, rows: Sequence[Row]) -> list[list[object]]:
    """Return the table for programs: fractions, with the lowest and highest of the seeds."""
    several, shares = _columns(rows)
    head: list[object] = ["entry", "method", "seeds", "rounds", *several]
    head += [f"{name}{end}" for name in shares for end in ("", " lowest", " highest")]
    lines = [[*head, *_COSTS]]
    for model, seeds in _grouped(experiment, rows):
        line: list[object] = [model["entry"], model["method"]]
        line += [" ".join(str(row["seed"]) for row in seeds)]
        line += [_span([row["rounds"] for row in seeds or [model]])]
        line += [model[key] for key in several]
        for name in shares:
            values = [row[name] for row in seeds if name in row]
            line += [_mean(values), min(values), max(values)] if values else ["", "", ""]
        line += [_mean([row[name] for row in seeds]) if seeds else "" for name in _COSTS]
        lines.append(line)
    return lines


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
    entries: dict[str, dict[str, None]] = {}
    for task in tasks:
        entries.setdefault(fact(task), {})[task.entry] = None
    if len(entries) == 1:
        return next(iter(entries))
    return "; ".join(f"{value} ({', '.join(names)})" for value, names in entries.items())


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _spread(values: Sequence[float]) -> str:
    if not values:
        return MISSING
    low, high = f"{100 * min(values):.1f}", f"{100 * max(values):.1f}"
    return f"{100 * _mean(values):.1f}" + (f" ({low}..{high})" if len(values) > 1 else "")


def _span(values: Sequence[int]) -> str:
    """Return a number, or from which to which; a training may end before its last round."""
    low, high = min(values), max(values)
    return str(low) if low == high else f"{low}..{high}"
