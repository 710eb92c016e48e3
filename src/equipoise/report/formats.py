"""Content as HTML, by templates, and as Markdown."""

import re
from collections.abc import Mapping, Sequence

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from equipoise.report import wording
from equipoise.report.content import Block, Cell, Section, Table
from equipoise.report.pictures import inline
from equipoise.terminal.table import escape_markdown, markdown_rows


def environment(*packages: str) -> Environment:
    """Return the templates and assets of some packages and of this one, with all filters."""
    loader = ChoiceLoader([PackageLoader(name, "") for name in (*packages, str(__package__))])
    environment = Environment(
        loader=loader,
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )

    def asset(name: str) -> Markup:
        return Markup(loader.get_source(environment, name)[0])  # noqa: S704 - our own file

    environment.globals["asset"] = asset
    environment.filters |= {
        "capital": wording.capital,
        "count": wording.count,
        "drawn": inline,
        "join_words": wording.join,
        "sentence": _sentence,
    }
    return environment


def _sentence(text: str) -> Markup:
    """Return text as HTML: `code` between backticks, percentages set off."""
    safe = str(escape(text))
    safe = re.sub(r"`([^`]+)`", _html_code, safe)
    safe = re.sub(r"(?<![\d.,])(\d+\.\d+\u00a0%)", r"<strong>\1</strong>", safe)
    return Markup(safe)  # noqa: S704 - escaped above


def _html_code(match: re.Match[str]) -> str:
    # Browsers break a line after any hyphen, even between the two of an option.
    options = re.sub(r"(?<=\s)-\S+", r'<span class="option">\g<0></span>', match[1])
    return f"<code>{options}</code>"


def markdown_table(table: Table, *, brief: bool = False) -> str:
    """Return a table as Markdown, if ``brief`` without the intervals of cells with a range.

    The best of a column is bold, and cells close to it are in italics.
    """
    lines = [*table.rows, *([table.foot] if table.foot else [])]
    cells = [[_markdown_cell(cell, brief) for cell in row] for row in lines]
    heads = [column.head for column in table.columns]
    numbers = [column.head for column in table.columns if column.number]
    return markdown_rows(heads, cells, numbers=numbers, escaped=True)


def _markdown_cell(cell: Cell, brief: bool) -> str:
    around = {"best": "**", "close": "*"}.get(cell.mark, "")
    text = f"{around}{escape_markdown(cell.text)}{around}"
    small = cell.small.split("\n")[:1] if brief else cell.small.split("\n")
    return " ".join(filter(None, [text, *map(escape_markdown, small)]))


def markdown_text(text: str) -> str:
    """Return text as Markdown that shows it, but for `code` between backticks."""
    # Code with signs of HTML in it stays escaped: not every reader of Markdown shows it as text.
    return re.sub(r"\\`([^`&]+?)\\`", _markdown_code, escape_markdown(text))


def _markdown_code(match: re.Match[str]) -> str:
    return "`" + re.sub(r"\\([\\|*_\[\]])", r"\1", match[1]) + "`"


def markdown_sections(sections: Sequence[Section], level: int = 2) -> str:
    """Return sections as Markdown: paragraphs, facts and tables, without pictures and images."""
    parts = (_section(section, level) for section in sections)
    return "\n".join(filter(None, parts))


def _section(section: Section, level: int) -> str:
    blocks = [text for block in section.blocks if (text := _block(block, level + 1))]
    tag = f" ({section.tag})" if section.tag else ""
    small = f", {section.small}" if section.small else ""
    head = f"{'#' * level} {markdown_text(f'{section.title}{small}{tag}')}\n"
    return "\n".join([head, *blocks]) if blocks else ""


def _block(block: Block, level: int) -> str:
    if isinstance(block, Section):
        return _section(block, level)
    if isinstance(block, Table):
        notes = "".join(f"\n{markdown_text(note)}\n" for note in block.notes)
        return markdown_table(block) + notes
    if isinstance(block, Mapping):
        return "".join(f"- **{markdown_text(k)}**: {markdown_text(v)}\n" for k, v in block.items())
    return f"{markdown_text(block)}\n" if type(block) is str else ""
