"""The page: all of a report in reading order, as one HTML file that loads nothing, or Markdown."""

from collections.abc import Mapping, Sequence
from itertools import compress
from pathlib import Path

from equipoise.errors import UserError
from equipoise.plugins import command
from equipoise.report import figures, wording
from equipoise.report.checks import cautions, check_sections
from equipoise.report.content import Block, Cell, Column, Section, Table
from equipoise.report.corruptions import corruption_sections
from equipoise.report.formats import environment, markdown_sections, markdown_text
from equipoise.report.front import panel
from equipoise.report.gallery import augmented, gallery
from equipoise.report.results import (
    EvaluatedRun,
    Threat,
    best,
    headline,
    headline_rows,
    result_sections,
)
from equipoise.report.runs_reader import RunData, read_runs
from equipoise.report.scores import score_section
from equipoise.report.stages import stage_sections
from equipoise.store.files import refuse_foreign, write

_MANY = 24  # classes; of more, those with the lowest accuracy are shown
_MANY_RUNS = 6  # of more, the headline names the best, and what each run has of its own is folded
_EXAMPLES = 3


def build(runs: Sequence[Path], out: Path, *, cmmr: bool = False) -> Path:
    """Write the report on some runs as one HTML file, or its tables as Markdown.

    The HTML file holds its style, its figures and its images, and loads nothing from outside.
    Equal run folders give equal bytes. It appears whole or not at all.

    Arguments:
        runs: Folders that ``equipoise train`` or ``equipoise evaluate`` wrote; evaluated or not,
            finished or not.
        out: The file to write: Markdown if its name ends with ``.md``. A missing folder is made.
        cmmr: Whether to show the composite scores of :mod:`equipoise.measures.cmmr`.

    Returns:
        The file that was written.

    Raises:
        UserError: where a folder is missing, is no run, or holds a damaged file, or where
            ``out`` is a folder.
    """
    out = Path(out)
    if out.is_dir():
        raise UserError(f"{out} is a folder; name the file to write, e.g. {out / 'report.html'}")
    refuse_foreign(out, b"# " if out.suffix == ".md" else b"<!DOCTYPE html>")
    write(out, (_markdown if out.suffix == ".md" else _html)(read_runs(runs), cmmr))
    return out


def failed_checks(runs: Sequence[Path]) -> list[str]:
    """Return the failed checks of all evaluations of some run folders, in words."""
    return [
        f"{run.name}, {evaluation.name}: {finding.check}"
        for run in read_runs(runs)
        for evaluation in run.evaluations
        for finding in evaluation.findings
        if finding.status == "failed"
    ]


def _html(runs: Sequence[RunData], cmmr: bool) -> str:
    rows = headline_rows(runs)
    galleries = _galleries(runs, rows)
    return (
        environment()
        .get_template("page.html.j2")
        .render(
            title=_title(runs),
            headline=_headline(runs, rows),
            overview=_overview(runs, rows, galleries),
            cautions=cautions(runs, rows),
            sections=[
                *_evaluations(runs, rows, cmmr),
                *_training(runs, pictures=True),
                *_classes(list(rows.values())),
                *_folded(runs, "Images", "gallery", _EYE, galleries),
                _provenance(runs),
            ],
        )
    )


def _markdown(runs: Sequence[RunData], cmmr: bool) -> str:
    rows = headline_rows(runs)
    parts = [f"# {markdown_text(_title(runs))}\n"]
    parts += [f"{markdown_text(sentence)}\n" for sentence in _headline(runs, rows)]
    for names, title, text in cautions(runs, rows):
        of = f"{wording.join(names)}: " if names else ""
        parts.append(f"- **{markdown_text(title)}**: {markdown_text(of + text)}\n")
    sections = [*_evaluations(runs, rows, cmmr), *_training(runs, pictures=False), *_own(runs)]
    return "\n".join([*parts, markdown_sections(sections)])


def _title(runs: Sequence[RunData]) -> str:
    many = len(runs) > _MANY_RUNS
    return "Report on " + (f"{len(runs)} runs" if many else wording.join([r.name for r in runs]))


def _headline(runs: Sequence[RunData], rows: Mapping[str, EvaluatedRun]) -> list[str]:
    sentences = (best if len(runs) > _MANY_RUNS else headline)(list(rows.values()))
    fronts = {Path(str(run.picked["from"])).resolve() for run in runs if "from" in run.picked}
    for run in runs:
        if run.name not in rows and run.path.resolve() not in fronts:
            trained = f"was trained for {len(run.rounds)} of {run.planned} rounds"
            if not run.rounds:
                trained = "has not logged a round" if run.trained else "was not trained here"
            text = f"{run.name} {trained} and has not been evaluated; evaluate it with"
            sentences.append(f"{text} `{command('evaluate', run.path)}`.")
    return [*sentences, *filter(None, map(_promise, runs if len(runs) <= _MANY_RUNS else ()))]


def _promise(run: RunData) -> str:
    """Return what a picked model promises on images like those that it was picked by."""
    constraint, bound = run.picked.get("constraint") or {}, run.picked.get("bound")
    if bound is None or "in_words" not in constraint:
        return ""
    n = run.picked.get("compared") or run.picked.get("n")
    how = "promised with 95 % confidence" if run.picked.get("met", True) else "not promised"
    return f"{run.name} was picked for {constraint['in_words']}: {how}, from {n} held-out images."


def _folded(
    runs: Sequence[RunData], title: str, identity: str, lead: str, parts: Sequence[Section]
) -> list[Section]:
    """Return the parts of all runs as one section; of many runs they are folded."""
    if not parts:
        return []
    inner = parts
    if len(runs) > _MANY_RUNS:
        inner = [Section(f"All {len(runs)} runs", parts, folded=True)]
    return [Section(title, [lead, *inner], id=identity)]


# The top of the page: pictures first


def _overview(
    runs: Sequence[RunData], rows: Mapping[str, EvaluatedRun], galleries: Sequence[Section]
) -> list[Block]:
    panels = (panel(run, f"front-{i}") for i, run in enumerate(runs))
    fronts = [front for front in panels if front]
    figure = figures.overview(runs, rows, "fig-overview", bars=not fronts)
    examples = _examples(rows, galleries)
    return [*([figure] if figure else []), *fronts, *([examples] if examples else [])]


def _examples(rows: Mapping[str, EvaluatedRun], galleries: Sequence[Section]) -> Section | None:
    """Return three adversarial examples of the first defended run that has some."""
    undefended = {name for name, row in rows.items() if row.run.undefended}
    for images in sorted(galleries, key=lambda images: images.title in undefended):
        fooled = next((block for block in images.blocks if isinstance(block, Section)), None)
        for cards in fooled.blocks if fooled else ():
            if isinstance(cards, tuple):
                small = f"{images.title}, {images.small}"
                return Section("Adversarial examples", [cards[:_EXAMPLES]], small=small)
    return None


# Sections


def _threats(
    runs: Sequence[RunData], rows: Mapping[str, EvaluatedRun]
) -> dict[str, Threat | None]:
    """Return the threat that is shown first of each run: that of the headline."""
    common = next((row.threat for row in rows.values() if row.threat), None)
    return {run.name: rows[run.name].threat if run.name in rows else common for run in runs}


def _evaluations(
    runs: Sequence[RunData], rows: Mapping[str, EvaluatedRun], cmmr: bool
) -> list[Section]:
    """Return results, stages and checks, of each run the threat of the headline first."""
    results, shown = result_sections(runs), _threats(runs, rows)
    stages = [
        section
        for i, run in enumerate(runs)
        for section in stage_sections(run, shown[run.name], f"fig-stages-{i}")
    ]
    checks = [section for run in runs for section in check_sections(run, shown[run.name])]
    return [
        *([Section("Results", [_SHARE, *results], id="results")] if results else []),
        *([score_section(runs)] if cmmr else []),
        *_folded(runs, "Ensembles, stage by stage", "stages", _STAGES, stages),
        *_folded(runs, "Checks and cost", "checks", _CHECKS, checks),
        *corruption_sections(runs),
    ]


_SHARE = (
    "Share of images that are classified correctly. The small figures are exact 95 % intervals "
    "for the number of images; they do not cover differences between seeds. ● is the highest of "
    "its column, its interval apart from all others; ○ is the highest, but its interval overlaps "
    "another."
)
_STAGES = (
    "The attacks of an ensemble run in turn, each on the images that are still classified "
    "correctly. “Alone” is the accuracy under one attack by itself."
)
_CHECKS = (
    "Every evaluation runs checks for causes of too high accuracies: masked gradients, attacks "
    "that stop too early, images outside the threat."
)
_EYE = "Chosen by a rule, not by eye. The class that the model predicts is below each image."


def _training(runs: Sequence[RunData], *, pictures: bool) -> list[Section]:
    trained = [run for run in runs if run.trained]
    if not trained:
        return []
    heads = ("run", "method", "seed", "rounds", "kept", "gradient evaluations", "seconds", "t′")
    columns = tuple(Column(head, i > 1) for i, head in enumerate((*heads, "hand-overs")))
    table = Table("training", "Training", columns, tuple(map(_training_row, trained)))
    curves = [_curves(run, f"fig-curves-{i}") for i, run in enumerate(trained)] if pictures else []
    if len(runs) > _MANY_RUNS and curves:
        curves = [Section(f"All {len(runs)} runs", curves, folded=True)]
    images = augmented(trained) if pictures else []
    return [Section("Training", [table, *curves, *images], id="training")]


def _training_row(run: RunData) -> tuple[Cell, ...]:
    numbers = (
        len(run.rounds),
        run.kept_round,
        run.gradient_evaluations or None,
        run.seconds or None,
        run.start[0] if len(run.learners) > 1 else None,
        len(run.handovers) or None,
    )
    return (
        Cell(run.name, small="" if run.finished else "not finished"),
        Cell(run.method or wording.MISSING),
        Cell(run.seed or wording.MISSING),
        *(Cell() if n is None else Cell(wording.large(n), n) for n in numbers),
    )


def _curves(run: RunData, identity: str) -> Section:
    facts = {"Merging": _merging(run), "Regime": run.regime, "Model kept": kept(run)}
    facts = {name: text for name, text in (facts | {"Picked": _picked(run)}).items() if text}
    figure = figures.curves(run, identity)
    blocks = [facts, figure or "No round has been logged, so there are no curves."]
    return Section(run.name, blocks, tag="" if run.finished else "not finished")


def _merging(run: RunData) -> str:
    if len(run.learners) < 2:
        return ""
    start, reason = run.start
    never = "never started" if run.finished else "has not started"
    when = never if start is None else f"starts at t′ = {start}"
    why = f" ({reason})" if reason else ""
    after = f"; hand-overs after {wording.join(list(map(str, run.handovers)))}"
    return f"{wording.join(run.learners)}; {when}{why}{after if run.handovers else ''}"


def kept(run: RunData) -> str:
    """Return which round's weights are the model, and by which rule."""
    if run.kept_round is None:
        return ""
    rule = run.summary.get("rule")
    of = f"{run.planned}"
    if run.summary.get("stopped_early"):
        of = f"{len(run.rounds)} (stopped early; {run.planned} were planned)"
    by = f", {rule}" if rule else ""
    return f"round {run.kept_round} of {of}{by}; chosen without test images"


def _picked(run: RunData) -> str:
    """Return from which front a model was picked, and by which constraint."""
    if not run.picked:
        return ""
    constraint = run.picked.get("constraint") or {}
    text = f"from the front of {run.picked.get('from')}: {run.picked.get('in_words')}"
    stated = isinstance(constraint, dict)
    return f"{text}. Constraint: {constraint.get('in_words')}" if stated else text


def _classes(rows: Sequence[EvaluatedRun]) -> list[Section]:
    judged = [row for row in rows if any(r.per_class for r in (row.clean, row.attacked) if r)]
    if not judged:
        return []
    accuracies = [r.per_class if r else {} for row in judged for r in (row.attacked, row.clean)]
    present = dict.fromkeys(name for by_class in accuracies for name in by_class)
    ordered = [name for row in judged for name in row.run.classes if name in present]
    names = list(dict.fromkeys([*ordered, *present]))
    lead = []
    if len(names) > _MANY:
        lead = [f"The {_MANY} classes with the lowest accuracy; {len(names) - _MANY} are higher."]
        lowest = {n: min(by_class.get(n, 1.0) for by_class in accuracies) for n in names}
        names = sorted(names, key=lowest.__getitem__)[:_MANY]
    heads = [f"{row.run.name}, {what}" for row in judged for what in ("attacked", "clean")]
    columns = (Column("class", number=False), *map(Column, heads))
    cells = (
        (Cell(name), *(_share(by_class.get(name)) for by_class in accuracies)) for name in names
    )
    table = Table("classes", "Accuracy by class", columns, tuple(cells))
    figure = figures.classes(judged[:_MANY_RUNS], names, "fig-classes")
    numbers = Section("Accuracy by class as numbers", [table], folded=True)
    return [Section("Classes", [*lead, figure, numbers], id="classes")]


def _share(value: float | None) -> Cell:
    return Cell(wording.percent(value), value)


def _galleries(runs: Sequence[RunData], rows: Mapping[str, EvaluatedRun]) -> list[Section]:
    threats = _threats(runs, rows)
    images = [(run.name, gallery(run, threats[run.name])) for run in runs]
    return [
        Section(name, [shown]) if isinstance(shown, str) else shown
        for name, shown in images
        if shown is not None
    ]


def _own(runs: Sequence[RunData]) -> list[Section]:
    """Return where models of the user's own come from."""
    small = "a model of your own, not trained here"
    return [Section(run.name, [_own_facts(run)], small=small) for run in runs if not run.trained]


def _own_facts(run: RunData) -> dict[str, str]:
    names = {
        "model": "Model",
        "weights": "Weights",
        "weights_sha256": "SHA-256 of the weights",
        "data": "Data",
        "data_dir": "Folder of the data",
    }
    facts = {name: f"`{run.own[key]}`" for key, name in names.items() if run.own.get(key)}
    for name, key in (("code", "source"), ("imported file", "import")):
        file = run.own.get(key)
        if isinstance(file, Mapping):
            facts[wording.capital(name)] = f"`{file.get('file')}`"
            facts[f"SHA-256 of the {name}"] = f"`{file.get('sha256')}`"
    facts.setdefault("Weights", "those that the import itself loads; no file was given")
    return facts


def _provenance(runs: Sequence[RunData]) -> Section:
    blocks: list[Block] = list(_own(runs))
    for title, trees in (
        ("Recipe, fully resolved", [run.recipe for run in runs]),
        ("Model", [run.config for run in runs]),
        ("Provenance: versions, device, data, seed, commit", [run.provenance for run in runs]),
    ):
        table = _side_by_side(title, runs, trees)
        values = [{cell.text for cell in row[1:]} - {wording.MISSING} for row in table.rows]
        differing = tuple(compress(table.rows, (len(texts) > 1 for texts in values)))
        if title.startswith("Recipe") and differing:
            blocks.append(
                Table("settings", "Settings in which runs differ", table.columns, differing)
            )
        if table.rows:
            blocks.append(Section(title, [table], folded=True))
    return Section("Recipe and provenance", blocks, id="provenance")


def _side_by_side(
    title: str, runs: Sequence[RunData], trees: Sequence[Mapping[str, object]]
) -> Table:
    """Return the settings of all runs in one table; those that differ are marked."""
    flat = [dict(wording.flatten(tree)) for tree in trees]
    rows = []
    for name in dict.fromkeys(name for settings in flat for name in settings):
        values = [settings.get(name, wording.MISSING) for settings in flat]
        mark = "differs" if len(set(values)) > 1 else ""
        rows.append((Cell(name), *(Cell(value, mark=mark) for value in values)))
    heads = ("setting", *(run.name for run in runs))
    return Table("settings", title, tuple(Column(h, number=False) for h in heads), tuple(rows))
