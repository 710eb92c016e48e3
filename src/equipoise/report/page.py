"""The page: everything a report says, in reading order, as one HTML file that asks for nothing."""

__all__ = ["ClassTable", "Training", "build", "environment", "failed_checks"]

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup, escape

from equipoise.errors import UserError
from equipoise.plugins import command
from equipoise.report import wording
from equipoise.report.cautions import cautions
from equipoise.report.checks import check_lists
from equipoise.report.content import Figure
from equipoise.report.figures import curves, eps_sweep
from equipoise.report.front_panel import panel
from equipoise.report.gallery import Gallery, gallery
from equipoise.report.markdown import tables
from equipoise.report.pictures import inline
from equipoise.report.records_reader import Record
from equipoise.report.results import Row, best, headline_rows, sections, verdicts
from equipoise.report.runs_reader import Run, read_runs
from equipoise.report.stages import heading, stage_tables
from equipoise.report.writing import write

_MANY = 24  # classes; of more, the worst are shown first
_MANY_RUNS = 6  # of more, a page tells the best at the top and folds what each run has of its own


@dataclass(frozen=True)
class Training:
    """How one run was trained: its curves, and the facts beside them."""

    run: Run
    figure: Figure | None
    facts: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class ClassTable:
    """Accuracy by class; a row has a name and for each run clean and attacked accuracy."""

    runs: tuple[tuple[str, str], ...]
    rows: tuple[tuple[str, tuple[tuple[float | None, float | None], ...]], ...]
    hidden: int


@dataclass(frozen=True)
class SideBySide:
    """Settings of all runs in one table; those that differ are marked."""

    rows: tuple[tuple[str, tuple[str, ...], bool], ...]

    @property
    def differing(self) -> tuple[tuple[str, tuple[str, ...], bool], ...]:
        """The rows in which runs that have the setting disagree."""
        return tuple(row for row in self.rows if len({*row[1]} - {wording.MISSING}) > 1)


def build(runs: Sequence[Path], out: Path) -> Path:
    """Write the report on some runs as one HTML file, or its tables as Markdown.

    The HTML file holds its style, its figures and its images, and asks for nothing from outside.
    Equal run folders give equal bytes. It appears whole or not at all.

    Arguments:
        runs: Folders that ``equipoise train`` or ``equipoise evaluate`` wrote; evaluated or not,
            finished or not.
        out: The file to write; ``.md`` asks for Markdown. Its folder is made if need be.

    Returns:
        The file that was written.

    Raises:
        UserError: where a folder is missing, is no run, or holds a damaged file, or where
            ``out`` is a folder.
    """
    out = Path(out)
    if out.is_dir():
        raise UserError(f"{out} is a folder; name the file to write, e.g. {out / 'report.html'}")
    found = read_runs(runs)
    write(out, tables(found) if out.suffix == ".md" else _render(found))
    return out


def failed_checks(runs: Sequence[Path]) -> list[str]:
    """Return the failed checks of all evaluations that a report on some runs tells of, in words.

    Arguments:
        runs: The run folders.
    """
    return [
        f"{run.name}, {evaluation.name}: {finding.check}"
        for run in read_runs(runs)
        for evaluation in run.evaluations
        for finding in evaluation.findings
        if finding.status == "failed"
    ]


def _render(runs: Sequence[Run]) -> str:
    rows, tables = headline_rows(runs), sections(runs)
    names, many = [run.name for run in runs], len(runs) > _MANY_RUNS
    return (
        environment()
        .get_template("page.html.j2")
        .render(
            _evaluations(runs, rows),
            runs=runs,
            many=many,
            title="Report on " + (f"{len(runs)} runs" if many else wording.join(names)),
            verdicts=(*(best if many else verdicts)(list(rows.values())), *_unjudged(runs, rows)),
            cautions=cautions(runs, rows),
            sections=tables,
            marks=frozenset().union(*(table.marks for table in tables)),
            trainings=[_training(r, f"fig-curves-{i}") for i, r in enumerate(runs) if r.trained],
            sweep=eps_sweep(runs, "fig-eps"),
            fronts=[found for i, r in enumerate(runs) if (found := panel(r, f"front-{i}"))],
            classes=_classes(list(rows.values())),
            recipes=_side_by_side([run.recipe for run in runs]),
            provenances=_side_by_side([run.provenance for run in runs]),
            models=_side_by_side([run.config for run in runs]),
            own=[(run, _own(run)) for run in runs if not run.trained],
        )
    )


def _evaluations(runs: Sequence[Run], rows: Mapping[str, Row]) -> dict[str, object]:
    """Return what the page shows of each run's evaluations, the run's headline budget first."""
    common = next((row.threat for row in rows.values() if row.threat), None)
    stages, checks, pictures = [], [], []
    for i, run in enumerate(runs):
        shown = rows[run.name].threat if run.name in rows else common
        stages.append(stage_tables(run, shown, f"fig-stages-{i}"))
        checks.append((run, check_lists(run, shown)))
        pictures.append((run, gallery(run, shown, f"gallery-{i}")))
    return {
        "stages": [found for found in stages if found],
        "stages_heading": heading([table for found in stages for table in found]),
        "checks": [(run, found) for run, found in checks if found],
        "galleries": [(run, g) for run, g in pictures if isinstance(g, Gallery)],
        "lost": [(run, g) for run, g in pictures if isinstance(g, str)],
    }


def environment(*packages: str) -> Environment:
    """Return where templates and assets are found, with the filters of the house.

    Arguments:
        packages: Where to look for a file before it is looked for in this package.
    """

    def source(name: str) -> str:
        places = [files(package).joinpath(name) for package in (*packages, str(__package__))]
        found = next((place for place in places if place.is_file()), places[-1])
        return found.read_text(encoding="utf-8")

    environment = Environment(
        loader=FunctionLoader(source),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["asset"] = lambda name: Markup(source(name))  # noqa: S704 - our own file
    environment.filters |= {
        "closed": wording.closed,
        "count": wording.count,
        "duration": wording.duration,
        "drawn": inline,
        "interval": wording.interval,
        "percent": wording.percent,
        "opening": lambda text: text[:1].upper() + text[1:],
        "sentence": _sentence,
        "threat": lambda threat: wording.threat_text(*threat),
        "join_words": wording.join,
    }
    return environment


def _sentence(text: str) -> Markup:
    """Return text as HTML: `code` between backticks, percentages set off."""
    safe = str(escape(text))
    safe = re.sub(r"`([^`]+)`", _code, safe)
    safe = re.sub(r"(?<![\d.,])(\d+\.\d+\u00a0%)", r"<strong>\1</strong>", safe)
    return Markup(safe)  # noqa: S704 - escaped above


def _code(found: re.Match[str]) -> str:
    # Browsers break a line after any hyphen, even between the two of an option.
    options = re.sub(r"(?<=\s)-\S+", r'<span class="option">\g<0></span>', found[1])
    return f"<code>{options}</code>"


def _unjudged(runs: Sequence[Run], rows: Mapping[str, Row]) -> list[str]:
    def trained(run: Run) -> str:
        if not run.trained:
            return "was not trained here"
        if not run.rounds:
            return "has not logged a round"
        return f"was trained for {len(run.rounds)} of {run.planned} rounds"

    return [
        f"{run.name} {trained(run)} and has not been evaluated; "
        f"evaluate it with `{command('evaluate', run.path)}`."
        for run in runs
        if run.name not in rows
    ]


def _own(run: Run) -> tuple[tuple[str, str], ...]:
    """Return where a model of the user's own comes from."""
    facts = (
        ("Model", "model"),
        ("Weights", "weights"),
        ("SHA-256 of the weights", "weights_sha256"),
        ("Data", "data"),
        ("Folder of the data", "data_dir"),
    )
    told = [(name, f"`{run.own[key]}`") for name, key in facts if run.own.get(key)]
    for name, key in (("code", "source"), ("imported file", "import")):
        file = run.own.get(key)
        if isinstance(file, Mapping):
            told.append((name.capitalize(), f"`{file.get('file')}`"))
            told.append((f"SHA-256 of the {name}", f"`{file.get('sha256')}`"))
    if not run.own.get("weights"):
        told.insert(1, ("Weights", "those that the import itself loads; no file was named"))
    return tuple(told)


def _training(run: Run, identity: str) -> Training:
    facts = (
        ("Method", run.method),
        ("Learners", wording.join(run.learners) if run.learners else ""),
        ("Merging", _merging(run)),
        ("Hand-overs", _handovers(run)),
        ("Model kept", _kept(run)),
        ("Effort", _effort(run)),
        ("Picked", _picked(run)),
    )
    return Training(run, curves(run, identity), tuple((k, v) for k, v in facts if v))


def _merging(run: Run) -> str:
    if len(run.learners) < 2:
        return ""
    start = run.start
    never = "never started" if run.finished else "has not started"
    when = never if start.round is None else f"starts at t′ = {start.round}"
    return f"{when} ({start.reason})" if start.reason else when


def _handovers(run: Run) -> str:
    if not run.handovers:
        return ""
    some = [str(r) for r in run.handovers]
    if len(some) > 12:
        return f"{len(some)}, from round {some[0]} to round {some[-1]}"
    return f"after {'rounds' if len(some) > 1 else 'round'} {wording.join(some)}"


def _kept(run: Run) -> str:
    if run.kept_round is None:
        return ""
    rule = run.summary.rule if run.summary else ""
    by = f", {rule}" if rule else ""
    of = f"{run.planned}"
    if run.summary and run.summary.stopped_early:
        of = f"{len(run.rounds)} (stopped early; {run.planned} were planned)"
    return f"round {run.kept_round} of {of}{by}; test images had no part in it"


def _picked(run: Run) -> str:
    """Return from what a picked model is, and why it is that one."""
    if not run.picked:
        return ""
    asked = run.picked.get("constraint") or {}
    told = f"from the front of {run.picked.get('from')}: {run.picked.get('in_words')}"
    return f"{told}. Asked for: {asked.get('in_words')}" if isinstance(asked, dict) else told


def _effort(run: Run) -> str:
    logged = sum(r.gradient_evaluations for r in run.rounds), sum(r.seconds for r in run.rounds)
    said = run.summary
    gradients = (said and said.gradient_evaluations) or logged[0]
    seconds = (said and said.seconds) or logged[1]
    parts = (
        f"{wording.large(gradients)} gradient evaluations" if gradients else "",
        wording.duration(seconds) if seconds else "",
    )
    return ", ".join(filter(None, parts))


def _classes(rows: Sequence[Row]) -> ClassTable | None:
    judged = [row for row in rows if any(r.per_class for r in (row.clean, row.attacked) if r)]
    if not judged:
        return None
    pairs = [(_by_class(row.clean), _by_class(row.attacked)) for row in judged]
    present = dict.fromkeys(name for pair in pairs for accuracy in pair for name in accuracy)
    known = [name for row in judged for name in row.run.classes if name in present]
    rest = {
        name: tuple((clean.get(name), attacked.get(name)) for clean, attacked in pairs)
        for name in dict.fromkeys([*known, *present])
    }
    names = list(rest)
    if len(names) > _MANY:
        names = sorted(names, key=lambda name: _lowest(rest[name]))[:_MANY]
    return ClassTable(
        tuple((row.run.name, _under(row)) for row in judged),
        tuple((name, rest[name]) for name in names),
        len(rest) - len(names),
    )


def _by_class(record: Record | None) -> Mapping[str, float]:
    return record.per_class if record else {}


def _lowest(pairs: Sequence[tuple[float | None, float | None]]) -> float:
    return min((v for pair in pairs for v in pair if v is not None), default=1.0)


def _under(row: Row) -> str:
    if row.attacked is None or row.threat is None:
        return "clean"
    return f"{row.attacked.attack}, {wording.threat_text(*row.threat)}"


def _side_by_side(trees: Sequence[Mapping[str, object]]) -> SideBySide:
    flat = [dict(wording.flatten(tree)) for tree in trees]
    names = dict.fromkeys(name for settings in flat for name in settings)
    rows = ((n, tuple(settings.get(n, wording.MISSING) for settings in flat)) for n in names)
    return SideBySide(tuple((name, values, len(set(values)) > 1) for name, values in rows))
