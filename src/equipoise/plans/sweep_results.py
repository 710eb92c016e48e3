"""The results of a sweep: ``sweep.json``, a table, a picture, and the recipes of the front.

On which images an accuracy was measured decides what it is worth. On the validation images it is
optimistic: the search kept the settings that did well on them. On the reserve it is not, and its
intervals hold for each trial by itself.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from equipoise.measures.statistics import front, interval, outwards
from equipoise.plans.space import in_words
from equipoise.plans.trials import Trial, accuracies
from equipoise.plugins import command
from equipoise.report.trials import write_picture
from equipoise.store.runs import Run
from equipoise.terminal.table import markdown_rows, rich_table

if TYPE_CHECKING:
    from rich.table import Table

FILE, FORMAT, FRONT = "sweep.json", 1, "front"
EDGE = 0.1  # of a range
MANY = 5  # reasons that are shown
_PAIR = ("clean", "robust")


def write(
    folder: Path, head: Mapping[str, Any], trials: Sequence[Trial], failures: Mapping[int, str]
) -> Mapping[str, Any]:
    """Write ``sweep.json`` and ``table.md``, and return the content of the first.

    Arguments:
        folder: The folder of the sweep.
        head: What all trials have in common.
        trials: The trials of the journal.
        failures: Why trials that are open failed, by their numbers.
    """
    complete = [trial for trial in trials if trial.state == "complete"]
    points = [accuracies(trial.measured["validation"]) for trial in complete]
    best = {complete[i].number for i in front(points)}
    rows = [
        {
            "number": trial.number,
            "state": trial.state,
            "front": trial.number in best,
            "settings": dict(trial.settings),
            **trial.measured,
        }
        | ({"reason": reason} if (reason := failures.get(trial.number, trial.reason)) else {})
        for trial in trials
    ]
    content = {"format": FORMAT, **head, "trials": rows}
    run = Run(folder)
    run.again = head["command"]
    run.write_json(FILE, content)
    heads, *cells = _table(content, rows)
    lines = "".join(f"- {line}\n" for line in in_lines(content))
    title = f"## {len(complete)} trials of {content['method']}\n"
    run.write("table.md", "\n".join([title, markdown_rows(heads, cells), lines]))
    return content


def write_front(
    folder: Path, content: Mapping[str, Any], recipe: Callable[[Mapping[str, Any]], str]
) -> None:
    """Draw the front, and write the recipe of each of its trials to ``front/NUMBER.yaml``.

    Arguments:
        folder: The folder of the sweep.
        content: The content of ``sweep.json``, with a complete trial.
        recipe: Returns the recipe with some values of the searched settings, as YAML.
    """
    write_picture(content, folder)
    members = {f"{trial['number']:03}.yaml": trial for trial in _front(content)}
    for file in (folder / FRONT).glob("*.yaml"):
        if file.name not in members:
            file.unlink()
    for name, trial in members.items():
        clean, robust = (_interval(trial["reserve"], key) for key in _PAIR)
        about = f"# Trial {trial['number']} of a sweep; on reserved images clean {clean} %, "
        about += f"robust {robust} % ({content['attack']})\n"
        Run(folder / FRONT).write(name, about + recipe(trial["settings"]))


def table(content: Mapping[str, Any]) -> "Table":
    """Return a table of the front for a terminal."""
    rows = _front(content)
    heads, *cells = _table(content, rows)
    complete = sum(trial["state"] == "complete" for trial in content["trials"])
    title = f"Front of {complete} trials: accuracies in %, robust under {content['attack']}"
    return rich_table(title, heads, cells, numbers=heads[1:])


def in_lines(content: Mapping[str, Any]) -> list[str]:
    """Return what the numbers are worth, in sentences."""
    members = _front(content)
    if not members:
        return []
    lower = [
        fmean(
            100 * (accuracies(m["validation"])[i] - accuracies(m["reserve"])[i]) for m in members
        )
        for i in range(2)
    ]
    n, reserved = members[0]["validation"]["n"], members[0]["reserve"]["n"]
    search = "by which settings and the front were chosen: the best of many trials is optimistic"
    change = f"{_points(lower[0])} (clean) and {_points(lower[1])} (robust)"
    threat = f"{content['attack']}, {content['norm']}, eps = {content['eps']:g}"
    failed = [trial for trial in content["trials"] if "reason" in trial]
    lines = [f"trial {trial['number']} failed: {trial['reason']}" for trial in failed[:MANY]]
    if len(failed) > MANY:
        lines.append(f"and {len(failed) - MANY} more failed: {FILE} has the reasons")
    return [
        *lines,
        *_edges(content, members),
        f"search: {n:,} held-out images, {search} there",
        f"an accuracy on so many is known to about 1/sqrt(n) = {100 / math.sqrt(n):.0f} points",
        f"reserve: {reserved:,} other held-out images, which chose nothing: the front is {change}",
        "in brackets: 95 % intervals, each for one trial by itself",
        f"robust: under {threat}; a stronger attack finds more. No test image was used",
    ]


def next_commands(content: Mapping[str, Any], folder: Path) -> list[str]:
    """Return where the results are, and the commands that go on with the front."""
    number = f"{_front(content)[-1]['number']:03}"
    recipe, run = folder / FRONT / f"{number}.yaml", folder / "trials" / number
    test = command("evaluate", run, "--attacks", "audited")
    again = command("train", recipe, "seed=1", "--out", f"{folder}-{number}-seed1")
    return [
        f"picture: {folder / 'front.svg'}; all trials: {folder / 'table.md'}",
        f"recipes of the front: {folder / FRONT}; its models: {folder / 'trials'}",
        f"next, for the trial that you choose, like {number}: with test images: {test}",
        f"or trained with another seed: {again}",
    ]


def _front(content: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the trials of the front, the least clean accuracy first."""
    members = [trial for trial in content["trials"] if trial["front"]]
    return sorted(members, key=lambda t: (t["validation"]["clean"], t["number"]))


def _table(content: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Return a table of trials, its heads first."""
    places = ("search", "reserve")
    heads = [
        "trial",
        *_short([*content["space"]]),
        *(f"{key}, {on}" for on in places for key in _PAIR),
    ]
    cells = [heads]
    for trial in rows:
        values = [in_words(trial["settings"][name]) for name in content["space"]]
        found = ["-"] * 4
        if trial["state"] == "complete":
            found = [f"{100 * share:.1f}" for share in accuracies(trial["validation"])]
            found += [_interval(trial["reserve"], key) for key in _PAIR]
        elif "reason" in trial or trial["state"] == "open":
            found[0] = trial["state"]
        cells.append([f"{trial['number']:03}", *values, *found])
    return cells


def _short(names: Sequence[str]) -> list[str]:
    """Return names without their groups, where that leaves them different."""
    last = [name.rpartition(".")[2] for name in names]
    return [end if last.count(end) == 1 else name for name, end in zip(names, last, strict=True)]


def _edges(content: Mapping[str, Any], members: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a line for each setting whose values on the front all lie at one end of its range."""
    lines = []
    for name, values in content["space"].items():
        if "low" not in values:
            continue
        low, high, *at = (values["low"], values["high"], *(m["settings"][name] for m in members))
        if values["log"]:
            low, high, *at = map(math.log, (low, high, *at))
        parts = [(each - low) / (high - low) for each in at]
        end = "low" if max(parts) < EDGE else "high" if min(parts) > 1 - EDGE else ""
        if end:
            value = in_words(values[end])
            lines.append(f"{name}: the whole front lies near {end}: {value}; try a wider range")
    return lines


def _interval(counts: Mapping[str, int], key: str) -> str:
    """Return an accuracy in percent, with its interval."""
    low, high = outwards(interval(counts[key], counts["n"]))
    return f"{100 * counts[key] / counts['n']:.1f} ({low:.1f}..{high:.1f})"


def _points(lower: float) -> str:
    """Return how much lower something is, in words."""
    word = "lower" if lower >= 0 else "higher"
    return f"{abs(lower):.1f} points {word}"
