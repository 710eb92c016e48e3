"""Templates of pages: where they are found, and how text becomes HTML."""

import re
from importlib.resources import files

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup, escape

from equipoise.report import wording
from equipoise.report.pictures import inline


def environment(*packages: str) -> Environment:
    """Return where templates and assets are found, with the filters of all pages.

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
    safe = re.sub(r"`([^`]+)`", _code, safe)
    safe = re.sub(r"(?<![\d.,])(\d+\.\d+\u00a0%)", r"<strong>\1</strong>", safe)
    return Markup(safe)  # noqa: S704 - escaped above


def _code(found: re.Match[str]) -> str:
    # Browsers break a line after any hyphen, even between the two of an option.
    options = re.sub(r"(?<=\s)-\S+", r'<span class="option">\g<0></span>', found[1])
    return f"<code>{options}</code>"
