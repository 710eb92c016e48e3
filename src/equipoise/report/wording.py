"""How numbers and names are written in a report: the only place where percent exists."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from equipoise.measures.statistics import outwards
from equipoise.sample import Sample

MISSING = "–"
_SPACE = "\u00a0"  # no-break: a number and its unit stay on one line
NORMS = {"linf": "L∞", "l2": "L2", "l1": "L1"}


def percent(fraction: float | None) -> str:
    """Return a fraction as percent to one decimal, e.g. ``81.2 %``.

    Only an exact 0 or 1 may read as 0.0 % or 100.0 %; what would round to them gets a second
    decimal, and beyond that a sign.
    """
    if fraction is None or not math.isfinite(fraction):
        return MISSING
    value = 100 * fraction
    for digits in (1, 2):
        text = f"{value:.{digits}f}"
        if float(text) not in (0.0, 100.0) or value in (0.0, 100.0):
            return f"{text}{_SPACE}%"
    return f"{'<' if value < 50 else '>'}{_SPACE}{'0.01' if value < 50 else '99.99'}{_SPACE}%"


def interval(bounds: tuple[float, float] | None) -> str:
    """Return an interval of fractions in percent, rounded outwards, e.g. ``79.9–82.4``."""
    if bounds is None:
        return ""
    low, high = outwards(bounds)
    return f"{low:.1f}–{high:.1f}"


def eps_text(eps: float) -> str:
    """Return a radius: as a fraction like ``8/255`` if it is one, else as a decimal."""
    if math.isclose(eps, round(eps, 3), rel_tol=0, abs_tol=1e-9):
        return f"{round(eps, 3):g}"
    steps = round(255 * eps)
    if 0 < steps <= 255 and abs(255 * eps - steps) < 1e-4:
        return f"{steps}/255"
    return f"{eps:.4g}"


def images_text(n: int, sample: Sample | None) -> str:
    """Return how many images were evaluated, and which, e.g. ``a sample of 500 of 10,000``."""
    if sample is None or sample.n == sample.of:
        return f"n{_SPACE}={_SPACE}{count(n)}"
    what = "the first" if sample.seed is None else "a sample of"
    return f"{what} {count(n)} of {count(sample.of)}"


def norm_text(norm: str) -> str:
    """Return a norm as it is printed: ``linf`` is L∞."""
    return NORMS.get(norm, norm)


def threat_text(norm: str, eps: float) -> str:
    """Return a threat as it is printed, e.g. ``L∞, eps = 8/255``."""
    return f"{norm_text(norm)}, eps{_SPACE}={_SPACE}{eps_text(eps)}"


def count(number: int) -> str:
    """Return a whole number with its thousands apart, e.g. ``10,000``."""
    return f"{number:,}"


def large(number: float) -> str:
    """Return a big count in words, e.g. ``7.8 million``."""
    for size, word in ((1e12, "trillion"), (1e9, "billion"), (1e6, "million")):
        if number >= size:
            return f"{number / size:.3g}{_SPACE}{word}"
    return count(round(number))


def duration(seconds: float) -> str:
    """Return a time in its two largest units, e.g. ``6 min 40 s``."""
    if seconds < 10:
        return f"{seconds:.1f}{_SPACE}s"
    whole = round(seconds)
    units = ((whole // 3600, "h"), (whole // 60 % 60, "min"), (whole % 60, "s"))
    parts = [f"{n}{_SPACE}{unit}" for n, unit in units]
    first = next((i for i, (n, _) in enumerate(units) if n), 2)
    return " ".join(parts[first : first + 2])


def join(words: Sequence[str]) -> str:
    """Return words as a list in a sentence: ``a, b and c``."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def capital(text: str) -> str:
    """Return a text with a capital at its beginning."""
    return text[:1].upper() + text[1:]


def closed(text: str) -> str:
    """Return a sentence with a full stop at its end, if it has no end yet."""
    return f"{text}." if text and not text.endswith((".", "!", "?")) else text


def setting(name: str, value: object) -> str:
    """Return the value of one setting, spelled as in a recipe."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, float):
        return eps_text(value) if name.rpartition(".")[2] == "eps" else f"{value:.6g}"
    if isinstance(value, list):
        return ", ".join(setting(name, item) for item in value) or MISSING
    return str(value)


def flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield the settings of a nested mapping as dotted names with printed values."""
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            yield from flatten(value, f"{name}.")
        else:
            yield name, MISSING if isinstance(value, Mapping) else setting(name, value)
