"""Comparing: many methods, trained and evaluated under one protocol, in one table.

A row has the means over all seeds of an entry, weights and radius; a second table has the runs.
"""

import csv
import io
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

from equipoise.errors import UserError
from equipoise.measures.statistics import outwards
from equipoise.plans import plan as plans
from equipoise.plans.engine import run_plans
from equipoise.plans.keys import resources as needed
from equipoise.plans.prepare import Datasets, tasks
from equipoise.plans.results import Experiment, Row
from equipoise.plans.task import PlannedFront, Task
from equipoise.report.page import build
from equipoise.store.audit import Audit, missed_together
from equipoise.store.records import WORST
from equipoise.store.runs import Run
from equipoise.terminal.progress import Console
from equipoise.terminal.table import escape_markdown, markdown_rows, output, rich_table

MISSING = "-"
_COSTS = {
    "gradient_evaluations": "{:,.0f}",
    "training_seconds": "{:.1f}",
    "evaluation_seconds": "{:.1f}",
}
_Columns = Mapping[str, list[float]]
"""The values of one row, by column: a value for each seed."""


def compare(
    path: Path,
    out: Path,
    *,
    on: str = "local:1",
    resources: str | None = None,
    data_dir: Path | None = None,
    plan_only: bool = False,
    command: str,
    console: Console,
) -> None:
    """Train and evaluate the models of a plan, and make one table; continue what was begun.

    The arguments are the options of ``equipoise compare``, and the command that repeats it.

    Raises:
        UserError: If plan, data or folder cannot be used; nothing was started.
        RunError: If runs failed or a signal stopped it; all results are kept.
    """
    plan = plans.read(path)
    parts = [(plan, tasks(plan, out, Datasets(data_dir)))]
    experiment = Experiment("comparison", plan.title, out, command, parts, write_tables=_write)

    def ended(interrupted: bool) -> None:
        if not interrupted:
            _report(experiment, console)

    run_plans(
        [experiment],
        out,
        title=plan.title,
        on=on,
        resources={**plan.resources, **needed(resources, on)},
        plan_only=plan_only,
        console=console,
        ended=ended,
    )


def _write(experiment: Experiment, content: Row) -> None:
    """Write the table of the results."""
    folder, buffer = Run(experiment.folder), io.StringIO()
    rows = table(experiment, content, numbers=True)
    csv.writer(buffer, lineterminator="\n").writerows(rows)
    folder.write("table.md", markdown(experiment, content))
    folder.write("table.csv", buffer.getvalue())


def _report(experiment: Experiment, console: Console) -> None:
    """Write the report of all finished runs, and show the table."""
    out, content = experiment.folder, experiment.results()
    runs = [out / f"{row['entry']}-seed{row['seed']}" for row in content["trainings"]]
    try:
        if runs:
            page = build(runs, out / "report.html")
            console.say(f"report: {page}; table: {out / 'table.md'}")
    except UserError as error:
        console.warn(f"the report was not written: {error}")
    terminal = output()
    heads, *rows = table(experiment, content)
    terminal.print(rich_table(experiment.title, heads, rows, numbers=heads[2:]))
    missing = (f"MISSING: {line}" for line in content["missing"])
    for line in (*facts(experiment, content), *missing):
        terminal.print(line, soft_wrap=True)


def table(
    experiment: Experiment, content: Row, *, runs: bool = False, numbers: bool = False
) -> list[list[str]]:
    """Return the results as a table, its heads first: means over the seeds, and their range.

    Arguments:
        experiment: The experiment.
        content: The content of ``results.json``.
        runs: Whether each run has its own row.
        numbers: Whether accuracies are fractions, with the lowest and highest in their own
            columns, for programs; otherwise they are percentages.
    """
    lines = _lines(experiment, content, runs)
    several = [i for i in (2, 3) if len({key[i] for key, values in lines if values["seed"]}) > 1]
    columns = dict.fromkeys(name for _, values in lines for name in values)
    shares = [name for name in columns if name not in ("seed", "rounds", *_COSTS)]
    if len(shares) == 3 and WORST in shares:  # of one attack, the worst case is the same
        shares.remove(WORST)
    heads = ["run" if runs else "entry", "method", "seed" if runs else "seeds", "rounds"]
    heads += [("weights", "eps")[i - 2] for i in several]
    ends = ("", " lowest", " highest") if numbers else ("",)
    heads += [f"{name}{end}" for name in shares for end in ends]
    rows = [heads + [name if numbers else name.replace("_", " ") for name in _COSTS]]
    seeds = 1 if runs else len(experiment.parts[0][0].seeds)
    for key, values in lines:
        row = [key[0], key[1], _seeds(values["seed"], seeds, numbers), _span(values["rounds"])]
        row += [str(key[i]) for i in several]
        for name in shares:
            row += _fractions(values[name]) if numbers else [_percentages(values[name])]
        for name, text in _COSTS.items():
            mean = fmean(values[name]) if values[name] else None
            empty = "" if numbers else MISSING
            row.append(empty if mean is None else str(mean) if numbers else text.format(mean))
        rows.append(row)
    return rows


def _lines(
    experiment: Experiment, content: Row, runs: bool
) -> list[tuple[tuple[str, str, str, Any], _Columns]]:
    """Return for each row entry or run, method, weights and radius, and its values by column."""
    trained = {(row["entry"], row["seed"]): row for row in content["trainings"]}
    plan, tasks = experiment.parts[0]
    lines: dict[tuple[str, str, str, Any], dict[str, list[float]]] = {}
    places = list(dict.fromkeys(row["weights"] for row in content["results"]))
    for entry in plan.entries:
        rows = [row for row in content["results"] if row["entry"] == entry.name]
        rows.sort(key=lambda r: (places.index(r["weights"]), r["eps"], runs and r["seed"]))
        for row in rows:
            training = trained[entry.name, row["seed"]]
            name = f"{entry.name}-seed{row['seed']}" if runs else entry.name
            key = name, training["method"], row["weights"], row["eps"]
            values = lines.setdefault(key, defaultdict(list))
            values[row["attack"]].append(row["correct"] / row["n"])
            if row["attack"] == WORST:
                if "cmmr" in row:
                    values["cmmr"].append(row["cmmr"]["score"])
                if "cmmr2" in row:
                    values["cmmr-2"].append(row["cmmr2"]["score"])
                values["seed"].append(row["seed"])
                values["rounds"].append(training["rounds"])
                values["gradient_evaluations"].append(training["gradient_evaluations"])
                values["training_seconds"].append(training["seconds"])
                values["evaluation_seconds"].append(row["seconds"])
        if not rows and not runs:
            recipe = next(task.recipe for task in tasks if task.entry == entry.name)
            key = entry.name, recipe.method, MISSING, MISSING
            lines[key] = defaultdict(list, rounds=[recipe.rounds])
    return list(lines.items())


def markdown(experiment: Experiment, content: Row) -> str:
    """Return the table, the facts, the missing runs and the table of single runs as Markdown."""

    def lines(texts: Sequence[str]) -> str:
        return "".join(f"- {escape_markdown(text)}\n" for text in texts)

    heads, *rows = table(experiment, content)
    parts = [f"## {escape_markdown(experiment.title)}\n", markdown_rows(heads, rows)]
    parts.append(lines(facts(experiment, content)))
    if content["missing"]:
        parts.append(f"Missing:\n\n{lines(content['missing'])}")
    if content["results"]:
        heads, *rows = table(experiment, content, runs=True)
        parts.append(f"### Single runs\n\n{markdown_rows(heads, rows)}")
    return "\n".join(parts)


def facts(experiment: Experiment, content: Row) -> list[str]:
    """Return in lines the protocol, data and origin of the numbers."""
    plan, tasks = experiment.parts[0]
    protocol, budget = plan.protocol, plan.budget
    spread = "; mean over the seeds (lowest..highest)" if len(plan.seeds) > 1 else ""
    images = {
        None: "",
        True: ", each on all images",
        False: ", each on images that are robust so far",
    }
    attacks = f"{', '.join(protocol.names)}{images[protocol.individual]}"
    about = {
        "accuracy": f"in percent{spread}",
        "test images": _each(tasks, _images),
        "training images per round": _each(tasks, lambda task: f"{task.images:,}"),
        "model": _each(tasks, lambda t: f"{t.recipe.model}, width {t.recipe.width:g}"),
        "threat of the attacks": _each(
            tasks,
            lambda t: ", ".join(dict.fromkeys(str(e.protocol.threat) for e in t.evaluations)),
        ),
        "attacks": f"{attacks}; searched in precision {protocol.execution.precision}",
        "budget": f"{budget:,.0f} gradient evaluations for each training" if budget else "none",
    }
    if audits := _audits(content):
        _, more = outwards((0, missed_together(audits)), 2)
        models = f"{len(audits)} model{'s' * (len(audits) > 1)}"
        about["audit"] = (
            f"{sum(a.audited for a in audits):,} of {sum(a.survivors for a in audits):,} images "
            f"that the searches left on {models} went through AutoAttack, "
            f"{sum(a.missed for a in audits) or 'none'} missed; AutoAttack's accuracies are on "
            f"average at most {more:.2f} points lower (95%, together)"
        )
    lines = [f"{key}: {value}" for key, value in about.items()]
    return [*lines, *content["panels"][0]["facts"], f"command: {experiment.command}"]


def _audits(content: Row) -> list[Audit]:
    """Return the audits of all rows."""
    audits = []
    for row in content["results"]:
        if "audit" in row:
            stored = {key: value for key, value in row["audit"].items() if key != "near"}
            counts = {"n": row["n"], "robust": row["correct"], "near": tuple(row["audit"]["near"])}
            audits.append(replace(Audit.of(stored), **counts))
    return audits


def _images(task: Task) -> str:
    evaluation = task.evaluations[0]
    if isinstance(evaluation, PlannedFront):
        return f"none; {evaluation.protocol.n:,} held-out training images of {task.recipe.data}"
    return evaluation.sample.words(f"images of {task.recipe.data}")


def _each(tasks: Sequence[Task], fact: Callable[[Task], str]) -> str:
    """Return a fact of all entries; if it differs, each value with its entries."""
    entries: dict[str, dict[str, None]] = {}
    for task in tasks:
        entries.setdefault(fact(task), {})[task.entry] = None
    if len(entries) == 1:
        return next(iter(entries))
    return "; ".join(f"{value} ({', '.join(names)})" for value, names in entries.items())


def _seeds(seeds: Sequence[float], planned: int, numbers: bool) -> str:
    text = (" " if numbers else ", ").join(map(str, seeds))
    missing = f" ({planned - len(seeds)} missing)" if len(seeds) < planned else ""
    return text if numbers else f"{text}{missing}".strip()


def _fractions(values: Sequence[float]) -> list[str]:
    return [*map(str, (fmean(values), min(values), max(values)))] if values else ["", "", ""]


def _percentages(values: Sequence[float]) -> str:
    if not values:
        return MISSING
    low, high = f"{100 * min(values):.1f}", f"{100 * max(values):.1f}"
    return f"{100 * fmean(values):.1f}" + (f" ({low}..{high})" if len(values) > 1 else "")


def _span(values: Sequence[float]) -> str:
    """Return a number or a range; a training may end before its last round."""
    low, high = min(values), max(values)
    return str(low) if low == high else f"{low}..{high}"
