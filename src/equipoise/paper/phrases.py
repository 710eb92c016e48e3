"""How entries, differences and probabilities are written in sentences and tables."""

__all__ = [
    "MARKED",
    "area_item",
    "attack_name",
    "capital",
    "difference",
    "entry_name",
    "figure",
    "margin",
    "names",
    "number_item",
    "plural",
    "probability",
    "seeds",
    "span",
    "spread_item",
    "words",
]

from collections.abc import Iterable, Sequence

from equipoise.paper.measures import Accuracies, Comparison
from equipoise.report import wording
from equipoise.report.content import Cell

_ENTRIES = {
    "standard": "the clean model",
    "pgd-at": "PGD-AT",
    "pgd-at-averaged": "averaged PGD-AT",
    "mix-at-25": "mixed AT (w = 0.25)",
    "mix-at-50": "mixed AT (w = 0.5)",
    "trades": "TRADES",
    "mart": "MART",
    "fat": "FAT",
    "fat-trades": "FAT-TRADES",
    "fat-mart": "FAT-MART",
    "iat": "IAT",
    "yopo": "YOPO",
    "sat": "Self-Adaptive Training",
    "generalist": "Generalist",
    "a3gt-paper": "A3GT with the paper's absolute threshold",
    "a3gt": "A3GT",
}
_ATTACKS = {
    "clean": "clean",
    "mi-fgsm-20": "MIA-20",
    "cw-inf-30": "C&W-30",
    "fab-t": "FAB-T",
    "square": "Square",
    "autoattack": "AutoAttack",
}
MARKED = (
    "Accuracy in percent, in square brackets the exact 95 % interval of one seed's images; bold "
    "is the highest of a column, italic what McNemar's exact test does not tell from it."
)
_NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


def entry_name(entry: str) -> str:
    """Return the name of an entry as a sentence has it."""
    return _ENTRIES.get(entry, entry)


def attack_name(attack: str) -> str:
    """Return the name of an attack as it is printed."""
    return _ATTACKS.get(attack) or (attack.upper() if attack.isascii() else attack)


def names(entries: Iterable[str]) -> str:
    """Return entries as a list in a sentence."""
    return wording.join([entry_name(entry) for entry in entries])


def words(number: int) -> str:
    """Return a small whole number as a word."""
    return _NUMBERS[number] if 0 <= number < len(_NUMBERS) else wording.count(number)


def plural(number: int, noun: str, several: str = "") -> str:
    """Return a number with its noun: ``one seed``, ``three radii``."""
    return f"{words(number)} {noun if number == 1 else several or f'{noun}s'}"


def capital(text: str) -> str:
    """Return a sentence with a capital at its start."""
    return text[:1].upper() + text[1:]


def figure(fraction: float | None) -> str:
    """Return a fraction in percent without the sign, for tables that say so."""
    return wording.percent(fraction).replace("\u00a0%", "")


def margin(fraction: float, digits: int = 1) -> str:
    """Return a difference in points with its sign, e.g. ``+1.2``."""
    text = f"{100 * fraction:+.{digits}f}"
    if float(text) == 0:
        return f"{0:.{digits}f}"
    return text.replace("-", "−")


def difference(comparison: Comparison, what: str) -> str:
    """Return a difference in a sentence: ``1.2 points more clean accuracy``.

    Arguments:
        comparison: The two entries, the first one being spoken of.
        what: What they differ in.
    """
    points = 100 * comparison.mean
    if abs(points) < 0.05:
        return f"the same {what}"
    size = f"{abs(points):.1f} points {'more' if points > 0 else 'less'} {what}"
    if comparison.relation == "level":
        return f"{size} (not told apart)"
    return f"{size} (on every seed)" if len(comparison.pairs) > 1 else size


def probability(p: float) -> str:
    """Return a probability as tables have it."""
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def seeds(found: Sequence[int], planned: Sequence[int]) -> str:
    """Return the seeds there are, and how many of those planned are not there."""
    lost = len(set(planned) - set(found))
    text = ", ".join(map(str, sorted(set(found))))
    if not lost:
        return text or wording.MISSING
    return f"{text} ({lost} missing)" if text else f"{wording.MISSING} ({lost} missing)"


def span(low: float, high: float) -> str:
    """Return a range of fractions in percent, e.g. ``68.1..70.3``."""
    return f"{figure(low)}..{figure(high)}"


def spread_item(found: Accuracies | None, mark: str = "") -> Cell:
    """Return a mean in percent, below it the range over seeds and the interval."""
    if found is None:
        return Cell()
    small = [f"({span(found.lowest, found.highest)})"] if len(found.values) > 1 else []
    small.append(f"[{wording.interval(found.interval)}]")
    return Cell(figure(found.mean), found.mean, "\n".join(small), mark)


def area_item(values: Sequence[float]) -> Cell:
    """Return the mean of some areas, below it their range; nothing of none."""
    if not values:
        return Cell()
    mean = sum(values) / len(values)
    span = f"({min(values):.4f}..{max(values):.4f})" if len(values) > 1 else ""
    return Cell(f"{mean:.4f}", mean, span)


def number_item(values: Iterable[float | None], form: str = "{:,.0f}") -> Cell:
    """Return the mean of what is known of some numbers."""
    known = [value for value in values if value is not None]
    if not known:
        return Cell()
    mean = sum(known) / len(known)
    return Cell(form.format(mean), mean)
