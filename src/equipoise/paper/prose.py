"""Sentences: templates with blanks, and how numbers are written in them."""

import re
from collections.abc import Iterable
from functools import cache
from typing import Any

from jinja2 import Environment

from equipoise.report import wording
from equipoise.report.formats import environment, markdown_table


def prose(name: str, **blanks: Any) -> str:
    """Return a paragraph of ``prose.j2``: a macro with its arguments."""
    return re.sub(r"[ \n]+", " ", _filled(name, blanks)).strip()


def facts(**blanks: Any) -> dict[str, str]:
    """Return where the numbers of an experiment come from: texts by name."""
    lines = _filled("facts", blanks).splitlines()
    pairs = [line.strip().partition(": ") for line in lines if line.strip()]
    return {wording.capital(name): text for name, _, text in pairs}


def _filled(name: str, blanks: dict[str, Any]) -> str:
    return str(getattr(templates().get_template("prose.j2").module, name)(**blanks))


def signed(fraction: float, digits: int = 1) -> str:
    """Return a difference in percentage points with its sign, e.g. ``+1.2``."""
    text = f"{100 * fraction:+.{digits}f}"
    return f"{0:.{digits}f}" if float(text) == 0 else text.replace("-", "−")


def seeds_text(finished: Iterable[int], planned: Iterable[int]) -> str:
    """Return the seeds with results, and how many of those planned are missing."""
    seeds = sorted({*finished})
    text = ", ".join(map(str, seeds)) or wording.MISSING
    lost = len({*planned} - {*seeds})
    return f"{text} ({lost} missing)" if lost else text


@cache
def templates() -> Environment:
    """Return the templates of prose and of Markdown, with the filters that they use."""
    plain = environment(str(__package__)).overlay(autoescape=False)
    plain.filters |= {
        "signed": signed,
        "eps": wording.eps_text,
        "percent": wording.percent,
        "fraction": lambda value, digits=4: f"{value:+.{digits}f}".replace("-", "−"),
        "general": lambda values: wording.join([f"{value:g}" for value in values]),
        "mean": lambda values: sum(values) / len(values),
        "markdown": lambda table, brief: markdown_table(table, brief=brief),
        "anchor": lambda title: re.sub(r"[^\w-]|_", "", title.lower().replace(" ", "-")),
    }
    return plain
