"""The reproduction as files: pictures, tables, Markdown and one page without outside requests."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from equipoise.errors import UserError
from equipoise.paper import ablation, accuracy, fronts, scores, settings, starts, training
from equipoise.paper.claims import EXPERIMENTS, claims_table, judge_all
from equipoise.paper.measures import Rows
from equipoise.paper.prose import facts, templates
from equipoise.paper.results import PanelInfo, Results, read
from equipoise.paper.tables import csv_table, latex_table
from equipoise.report.content import Block, Picture, Table, file_name
from equipoise.report.formats import environment
from equipoise.report.pictures import png_file, svg_file
from equipoise.store.files import write

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

    Reads each ``EXPERIMENT/results.json`` in the folder. Next to it go ``EXPERIMENT.md``, a CSV
    and a LaTeX file a table, an SVG and a PNG file a picture; into the folder go ``results.md``
    and, last, ``index.html``. Everything is made before anything is written, and every file is
    written whole or not at all. Equal results give equal bytes.

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
    every = [read(path) for path in paths if path.is_file()]
    if not every:
        raise UserError(
            f"expected EXPERIMENT/results.json in {folder}, got none; "
            "make them with `equipoise reproduce`"
        )
    scales = ", ".join(dict.fromkeys(results.scale for results in every if results.scale))
    title = "A3GT, reproduced" + (f" at scale {scales}" if scales else "")
    for path, content in _files(title, [_section(results) for results in every]).items():
        write(folder / path, content)
    return folder / "index.html"


def _section(results: Results) -> dict[str, Any]:
    """Return the values for the templates of an experiment."""
    name, panels, blocks = results.experiment, [], list[Block]()
    several = len(results.panels) > 1 or name.startswith("table")
    for panel in results.panels:
        rows = results.of(panel)
        panels.append((panel, sorted({*rows["n"]}), sorted({*rows["seed"]})))
        if name in _MAKERS:
            of_panel = panel.name.removeprefix(f"{name}-") if several else ""
            blocks += _MAKERS[name](panel, rows, file_name(name, of_panel))
    claims = claims_table(judge_all(results), f"{name}-claims")
    blocks = _distinct(blocks or settings.blocks(results))
    return {
        "name": name,
        "title": EXPERIMENTS[name]["title"],
        "about": EXPERIMENTS[name]["about"],
        "claims": claims,
        "blocks": [claims, *blocks] if claims else blocks,
        "facts": facts(results=results, panels=panels),
        "missing": results.missing,
    }


def _distinct(blocks: Sequence[Block]) -> list[Block]:
    """Return the blocks with different file names: panels may have names that give the same."""
    uses = Counter[str]()
    distinct: list[Block] = []
    for block in blocks:
        if isinstance(block, Table | Picture):
            uses[block.name] += 1
            count = uses[block.name]
            block = replace(block, name=f"{block.name}-{count}") if count > 1 else block
        distinct.append(block)
    return distinct


def _files(title: str, sections: Sequence[Mapping[str, Any]]) -> dict[str, str | bytes]:
    """Return all files by their paths, the page last."""
    files: dict[str, str | bytes] = {}
    for section in sections:
        for block in section["blocks"]:
            path = f"{section['name']}/{block.name}" if not isinstance(block, str) else ""
            if isinstance(block, Table):
                files |= {f"{path}.csv": csv_table(block), f"{path}.tex": latex_table(block)}
            elif isinstance(block, Picture):
                files |= {f"{path}.svg": svg_file(block), f"{path}.png": png_file(block)}
        files[f"{section['name']}/{section['name']}.md"] = _markdown(sections=[section], title="")
    tables = [section["claims"] for section in sections if section["claims"]]
    rows = tuple(row for table in tables for row in table.rows)
    claims = replace(tables[0], rows=rows) if tables else None
    blanks = {"title": title, "sections": sections, "claims": claims}
    files["results.md"] = _markdown(**blanks)
    html = environment(str(__package__)).get_template("paper.html.j2")
    files["index.html"] = html.render(**blanks)
    return files


def _markdown(**blanks: Any) -> str:
    return templates().get_template("paper.md.j2").render(**blanks).replace("\u00a0", " ")
