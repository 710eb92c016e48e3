"""``results.md``: all sections in reading order, with small tables and links to the pictures."""

__all__ = ["markdown", "section_markdown", "tally"]

from collections.abc import Sequence

from equipoise.paper.claims import Judged
from equipoise.paper.judging import FAILS, HOLDS, OPEN
from equipoise.paper.sections import Section
from equipoise.report.content import Picture, Table
from equipoise.report.formats import markdown_table


def markdown(title: str, sections: Sequence[Section]) -> str:
    """Return all sections as one Markdown document.

    Arguments:
        title: Its title.
        sections: The sections, in reading order.
    """
    lead = [f"# {title}\n", f"{tally(sections)}\n"]
    contents = [f"- [{section.title}](#{_anchor(section.title)})" for section in sections]
    parts = [section_markdown(section, brief=True) for section in sections]
    return "\n".join([*lead, "\n".join(contents) + "\n", *parts])


def tally(sections: Sequence[Section]) -> str:
    """Return in a sentence how the paper's claims fared."""
    claims = [claim for section in sections for claim in section.claims]
    if not claims:
        return "The paper claims nothing of what is here."
    count = {v: sum(c.opinion.verdict == v for c in claims) for v in (HOLDS, FAILS, OPEN)}
    verb = "holds" if count[HOLDS] == 1 else "hold"
    do = "does" if count[FAILS] == 1 else "do"
    judgements = f"{len(claims)} judgement{'s' if len(claims) > 1 else ''}"
    return (
        f"Of {judgements} on the paper's claims, {count[HOLDS]} {verb} here, "
        f"{count[FAILS]} {do} not, and {count[OPEN]} cannot be told."
    )


def section_markdown(section: Section, *, brief: bool = False) -> str:
    """Return a section as Markdown.

    Arguments:
        section: The section.
        brief: Whether tables are to be small, and pictures in a folder of the section's name.
    """
    folder = f"{section.name}/" if brief else ""
    parts = [f"## {section.title}\n", f"{section.about}\n", _claims(section.claims)]
    for block in section.blocks:
        if isinstance(block, Table):
            parts.append(_table(block, folder, brief=brief))
        elif isinstance(block, Picture):
            parts.append(f"### {block.title}\n")
            alt = block.title.replace("[", "(").replace("]", ")")
            parts.append(f"![{alt}]({folder}{block.name}.svg)\n")
            parts.append(f"{block.caption}\n" if block.caption else "")
        elif isinstance(block, str):
            parts.append(f"{_plain(block)}\n")
    if section.missing:
        parts.append(_missing(section.missing, brief=brief))
    facts = "".join(f"- {key}: {_plain(text)}\n" for key, text in section.facts)
    parts.append(
        f"<details><summary>Where the numbers come from</summary>\n\n{facts}\n</details>\n"
    )
    return "\n".join(filter(None, parts))


def _claims(claims: Sequence[Judged]) -> str:
    lines = []
    for claim in claims:
        where = f" *{claim.where}.*" if claim.where else ""
        lines.append(
            f"- **{claim.opinion.verdict}**: {claim.claim.text} ({claim.claim.section})"
            f"{where} {claim.opinion.text}\n"
        )
    return "".join(map(_plain, lines))


def _table(table: Table, folder: str, *, brief: bool) -> str:
    files = ", ".join(f"[{end}]({folder}{table.name}.{end})" for end in ("csv", "tex"))
    notes = "".join(f"{_plain(note)}\n" for note in table.notes)
    shown = markdown_table(table, brief=brief)
    return f"### {table.title}\n\n{shown}\n{notes}\nAs {files}.\n"


def _missing(lines: Sequence[str], *, brief: bool) -> str:
    shown = list(lines[:10]) if brief else list(lines)
    more = len(lines) - len(shown)
    told = "".join(f"- {line}\n" for line in shown) + (f"- and {more} more\n" if more else "")
    return f"Missing:\n\n{told}"


def _anchor(title: str) -> str:
    kept = "".join(c for c in title.lower() if c.isalnum() or c in " -")
    return kept.replace(" ", "-")


def _plain(text: str) -> str:
    return text.replace("\u00a0", " ")
