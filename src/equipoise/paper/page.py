"""The reproduction as files: pictures, tables, Markdown and one page that asks for nothing."""

__all__ = ["build"]

from collections.abc import Mapping, Sequence
from pathlib import Path

from markupsafe import Markup

from equipoise.errors import UserError
from equipoise.paper.findings import EXPERIMENTS, Findings, read
from equipoise.paper.judging import FAILS, HOLDS, OPEN
from equipoise.paper.overview import markdown, section_markdown, tally
from equipoise.paper.sections import Section, section
from equipoise.report.content import Picture, Table
from equipoise.report.formats import csv_table, latex_table
from equipoise.report.html import environment
from equipoise.report.pictures import inline, png_file, svg_file
from equipoise.store.files import write

_CLASSES = {HOLDS: "holds", FAILS: "fails", OPEN: "open"}


def build(folder: Path) -> Path:
    """Write what the experiments of a folder found, as tables, pictures and one page.

    Reads ``EXPERIMENT/results.json`` of each experiment that is there. Beside it go
    ``EXPERIMENT.md``, a CSV and a LaTeX file a table, an SVG and a PNG file a picture; into the
    folder go ``results.md`` and, last, ``index.html``. Everything is made before anything is
    written, and every file is written whole or not at all. Equal findings give equal bytes.

    Arguments:
        folder: The folder of a scale.

    Returns:
        ``index.html``.

    Raises:
        UserError: where there are no findings, where some are damaged or of an unknown format,
            or where a file cannot be written.
    """
    folder = Path(folder)
    paths = [folder / name / "results.json" for name in EXPERIMENTS]
    found = [read(path) for path in paths if path.is_file()]
    if not found:
        raise UserError(
            f"expected EXPERIMENT/results.json in {folder}, found none; "
            "make them with `equipoise reproduce`"
        )
    sections = [section(findings) for findings in found]
    for path, content in _files(found, sections).items():
        write(folder / path, content)
    return folder / "index.html"


def _files(found: Sequence[Findings], sections: Sequence[Section]) -> dict[str, str | bytes]:
    """Return all files by their paths, the page last."""
    made: dict[str, str | bytes] = {}
    for each in sections:
        for block in each.blocks:
            if isinstance(block, Table):
                made[f"{each.name}/{block.name}.csv"] = csv_table(block)
                made[f"{each.name}/{block.name}.tex"] = latex_table(block)
            elif isinstance(block, Picture):
                made[f"{each.name}/{block.name}.svg"] = svg_file(block)
                made[f"{each.name}/{block.name}.png"] = png_file(block)
        made[f"{each.name}/{each.name}.md"] = section_markdown(each)
    title = _title(found)
    made["results.md"] = markdown(title, sections)
    made["index.html"] = _html(title, sections)
    return made


def _title(found: Sequence[Findings]) -> str:
    scales = ", ".join(dict.fromkeys(findings.scale for findings in found if findings.scale))
    return "A3GT, reproduced" + (f" at scale {scales}" if scales else "")


def _html(title: str, sections: Sequence[Section]) -> str:
    pictures: Mapping[str, Markup] = {
        f"{each.name}/{block.name}": inline(block)
        for each in sections
        for block in each.blocks
        if isinstance(block, Picture)
    }
    verdicts = [(_CLASSES[v], v) for v in (HOLDS, FAILS, OPEN)]
    return (
        environment(str(__package__))
        .get_template("reproduction.html.j2")
        .render(
            title=title,
            tally=tally(sections),
            sections=sections,
            pictures=pictures,
            verdicts=verdicts,
            classes=_CLASSES,
        )
    )
