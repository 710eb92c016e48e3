"""The reproduction as files: pictures, tables, Markdown and one page without outside requests."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from jinja2 import Environment

from equipoise.errors import UserError
from equipoise.paper import ablation, accuracy, fronts, scores, settings, starts, training
from equipoise.paper.claims import EXPERIMENTS, VERDICTS, judge_all
from equipoise.paper.measures import Rows
from equipoise.paper.prose import facts, prose
from equipoise.paper.results import PanelInfo, Results, read
from equipoise.paper.tables import csv_table, latex_table
from equipoise.report.content import Block, Picture, Table, file_name
from equipoise.report.formats import markdown_table
from equipoise.report.html import environment
from equipoise.report.pictures import png_file, svg_file
from equipoise.store.files import write

_CLASSES = dict(zip(VERDICTS, ("holds", "fails", "open", "open"), strict=True))
_MAKERS: dict[str, Callable[[PanelInfo, Rows, str], list[Block]]] = {
    "table2": accuracy.blocks,
    "table3": accuracy.blocks,
    "fig2": training.blocks,
    "fig3": scores.curves,
    "fig4": scores.radars,
    "fig5": ablation.blocks,
    "controls": starts.blocks,
    "front": fronts.blocks,
}


def build(folder: Path) -> Path:
    """Write the results of the experiments of a folder as tables, pictures and one page.

    Reads ``EXPERIMENT/results.json`` of each experiment that is there. Beside it go
    ``EXPERIMENT.md``, a CSV and a LaTeX file a table, an SVG and a PNG file a picture; into the
    folder go ``results.md`` and, last, ``index.html``. Everything is made before anything is
    written, and every file is written whole or not at all. Equal results give equal bytes.

    Arguments:
        folder: The folder of a scale.

    Returns:
        ``index.html``.

    Raises:
        UserError: where there are no results, where some are damaged or of an unknown format, or
            where a file cannot be written.
    """
    folder = Path(folder)
    paths = [folder / name / "results.json" for name in EXPERIMENTS]
    found = [read(path) for path in paths if path.is_file()]
    if not found:
        raise UserError(
            f"expected EXPERIMENT/results.json in {folder}, found none; "
            "make them with `equipoise reproduce`"
        )
    scales = ", ".join(dict.fromkeys(results.scale for results in found if results.scale))
    title = "A3GT, reproduced" + (f" at scale {scales}" if scales else "")
    for path, content in _files(title, [_section(results) for results in found]).items():
        write(folder / path, content)
    return folder / "index.html"


def _section(results: Results) -> dict[str, Any]:
    """Return what the templates need of an experiment."""
    name, panels, blocks = results.experiment, [], list[Block]()
    several = len(results.panels) > 1 or name.startswith("table")
    for panel in results.panels:
        rows = results.of(panel, weights=None)
        panels.append((panel, sorted({*rows["n"]}), sorted({*rows["seed"]})))
        if name in _MAKERS:
            own = panel.name.removeprefix(f"{name}-") if several else ""
            blocks += _MAKERS[name](panel, rows, file_name(name, own))
    return {
        "name": name,
        "title": EXPERIMENTS[name]["title"],
        "about": EXPERIMENTS[name]["about"],
        "judgements": judge_all(results),
        "blocks": _distinct(blocks or settings.blocks(results)),
        "facts": facts(results=results, panels=panels),
        "missing": results.missing,
    }


def _distinct(blocks: Sequence[Block]) -> list[Block]:
    """Return the blocks with file names of their own: panels may be named alike for a file."""
    seen: dict[str, int] = {}
    made: list[Block] = []
    for block in blocks:
        if isinstance(block, Table | Picture):
            count = seen[block.name] = seen.get(block.name, 0) + 1
            block = replace(block, name=f"{block.name}-{count}") if count > 1 else block
        made.append(block)
    return made


def _files(title: str, sections: Sequence[Mapping[str, Any]]) -> dict[str, str | bytes]:
    """Return all files by their paths, the page last."""
    made: dict[str, str | bytes] = {}
    templates = _templates()
    for section in sections:
        path = f"{section['name']}/"
        for block in section["blocks"]:
            if isinstance(block, Table):
                made[f"{path}{block.name}.csv"] = csv_table(block)
                made[f"{path}{block.name}.tex"] = latex_table(block)
            elif isinstance(block, Picture):
                made[f"{path}{block.name}.svg"] = svg_file(block)
                made[f"{path}{block.name}.png"] = png_file(block)
        markdown = templates.get_template("paper.md.j2").render(title="", sections=[section])
        made[f"{path}{section['name']}.md"] = _plain(markdown)
    verdicts = [judged.verdict for section in sections for judged in section["judgements"]]
    tally = prose("tally", counts={verdict: verdicts.count(verdict) for verdict in _CLASSES})
    blanks = {"title": title, "sections": sections, "tally": tally}
    made["results.md"] = _plain(templates.get_template("paper.md.j2").render(**blanks))
    html = environment(str(__package__)).get_template("paper.html.j2")
    made["index.html"] = html.render(**blanks, classes=_CLASSES)
    return made


def _templates() -> Environment:
    found = environment(str(__package__)).overlay(autoescape=False)
    found.filters["markdown"] = lambda table, brief: markdown_table(table, brief=brief)
    found.filters["anchor"] = lambda title: "".join(
        letter for letter in title.lower().replace(" ", "-") if letter.isalnum() or letter == "-"
    )
    return found


def _plain(text: str) -> str:
    return text.replace("\u00a0", " ")
