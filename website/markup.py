"""Docstrings of the project, in Sphinx's markup, as Markdown."""

import re
from collections.abc import Callable

Link = Callable[[str], str]
"""From the target of a role (``PGD.search``) to Markdown."""

_ROLE = re.compile(r":(?:class|func|meth|mod|data|attr):`~?([^`]+)`")
_MATH = re.compile(r":math:`([^`]+)`")
_BLOCK = re.compile(
    r"^(?P<indent> *)\.\. math::(?P<first>[^\n]*)\n"
    r"(?P<rest>(?:\n*(?P=indent) +\S[^\n]*(?:\n|\Z))*)",
    re.MULTILINE,
)
_RULE = re.compile(r"^ *=+(?: +=+)+ *$")
_REFERENCE = re.compile(
    r"^( *)\| (?P<title>[^\n]+)\n *\| (?P<address>https?://\S+)$", re.MULTILINE
)


def to_markdown(text: str, link: Link) -> str:
    """Return a docstring as Markdown: roles, formulas, tables and references.

    Arguments:
        text: The docstring, without its indentation.
        link: Makes the Markdown of a role's target.
    """
    text = _BLOCK.sub(_formula, text + "\n").rstrip("\n")
    text = _MATH.sub(lambda match: f"`#!math {_one_line(match[1])}`", text)
    text = _ROLE.sub(lambda match: link(_one_line(match[1])), text)
    text = _REFERENCE.sub(lambda m: f"{m[1]}- [{m['title']}]({m['address']})", text)
    text = re.sub(r"^( *)Example:$", r"\1Examples:", text, flags=re.MULTILINE)
    return _tables(text)


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _formula(match: re.Match[str]) -> str:
    """Return a block of TeX as a fence that ``website.formulas`` draws."""
    indent = match["indent"]
    body = "\n".join(
        indent + line.strip()
        for line in [match["first"], *match["rest"].splitlines()]
        if line.strip()
    )
    return f"\n{indent}```math\n{body}\n{indent}```\n\n"


def _tables(text: str) -> str:
    """Return the text with Markdown tables in the place of simple ones."""
    lines: list[str] = []
    table: list[str] = []
    rules = 0
    source = text.splitlines()
    for number, line in enumerate(source):
        rules += bool(_RULE.match(line))
        if rules:
            table.append(line)
        else:
            lines.append(line)
        following = source[number + 1] if number + 1 < len(source) else ""
        if rules >= 2 and _RULE.match(line) and not following.strip():
            lines += _table(table)
            table, rules = [], 0
    return "\n".join(lines + table)


def _table(table: list[str]) -> list[str]:
    """Return one simple table: its columns are below the runs of ``=``."""
    starts = [match.start() for match in re.finditer("=+", table[0])]
    ends = [*starts[1:], None]
    rows: list[list[str]] = []
    head = 1 if sum(bool(_RULE.match(line)) for line in table) == 3 else 0
    for line in table:
        if _RULE.match(line):
            continue
        cells = [line[a:b].strip() for a, b in zip(starts, ends, strict=True)]
        if cells[0] or not rows:
            rows.append(cells)
        else:  # a row goes on
            rows[-1] = [f"{a} {b}".strip() for a, b in zip(rows[-1], cells, strict=True)]
    if not head:
        rows.insert(0, [""] * len(starts))
    indent = " " * starts[0]
    shown = ["| " + " | ".join(cell.replace("|", r"\|") for cell in row) + " |" for row in rows]
    shown.insert(1, "|" + " --- |" * len(starts))
    return ["", *(indent + row for row in shown), ""]
