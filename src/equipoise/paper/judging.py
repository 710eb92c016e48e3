"""Judging a claim: what must be seen for it to hold, to fail, or to stay open.

A claim holds if the numbers show it beyond the noise of the images, and does not hold if they
show its opposite; everything else, and all that has not been measured, cannot be told.
"""

__all__ = [
    "FAILS",
    "HOLDS",
    "OPEN",
    "Opinion",
    "best",
    "best_on_most",
    "decide",
    "second",
    "withstands_nothing",
    "worse",
]

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from equipoise.paper.findings import CLEAN, Row
from equipoise.paper.measures import Relation, cell, compare
from equipoise.paper.phrases import attack_name, capital, entry_name, names
from equipoise.report import wording

HOLDS, FAILS, OPEN = "holds here", "does not hold here", "cannot be told"
Entries = Mapping[str, Sequence[Row]]


@dataclass(frozen=True)
class Opinion:
    """A verdict and the numbers it rests on."""

    verdict: str
    text: str


def decide(relations: Sequence[tuple[Relation, Relation]]) -> str:
    """Return a verdict from what was found and what the claim says, pair by pair.

    Arguments:
        relations: Of each pair how it is, and how it should be (``ahead`` or ``behind``).
    """
    opposite = {("ahead", "behind"), ("behind", "ahead")}
    if any(pair in opposite for pair in relations):
        return FAILS
    return HOLDS if relations and all(a == b for a, b in relations) else OPEN


def _relation(entries: Entries, hero: str, other: str, attack: str) -> Relation:
    return compare(entries.get(hero, ()), entries.get(other, ()), attack).relation


def _told(entries: Entries, order: Sequence[str], attack: str) -> str:
    """Return the accuracies of some entries, high ones first, and who has none."""
    known = {name: found.mean for name in order if (found := cell(entries.get(name, ()), attack))}
    ranked = sorted(known, key=lambda name: -known[name])
    where = "clean" if attack == CLEAN else f"under {attack_name(attack)}"
    told = ", ".join(f"{entry_name(name)} {wording.percent(known[name])}" for name in ranked)
    lost = [name for name in order if name not in known]
    text = f"{where}: {told}" if told else f"{where}: nothing yet"
    return f"{text}; not measured: {names(lost)}" if lost else text


def best(entries: Entries, hero: str, others: Sequence[str], attack: str) -> Opinion:
    """Judge whether an entry is ahead of all others under an attack."""
    found = [_relation(entries, hero, other, attack) for other in others]
    verdict = decide([(relation, "ahead") for relation in found])
    return Opinion(verdict, _sentence(_told(entries, [hero, *others], attack), verdict))


def second(entries: Entries, hero: str, first: str, others: Sequence[str], attack: str) -> Opinion:
    """Judge whether an entry is behind one other and ahead of the rest under an attack."""
    ahead: list[tuple[Relation, Relation]] = [
        (_relation(entries, hero, other, attack), "ahead") for other in others
    ]
    verdict = decide([(_relation(entries, hero, first, attack), "behind"), *ahead])
    text = _told(entries, [hero, first, *others], attack)
    return Opinion(verdict, _sentence(text, verdict))


def worse(entries: Entries, hero: str, other: str, attack: str) -> Opinion:
    """Judge whether an entry is behind another one under an attack."""
    relation = _relation(entries, hero, other, attack)
    verdict = decide([(relation, "behind")])
    return Opinion(verdict, _sentence(_told(entries, [hero, other], attack), verdict))


def best_on_most(
    entries: Entries, hero: str, others: Sequence[str], attacks: Sequence[str]
) -> Opinion:
    """Judge whether an entry is ahead of all others under every one of some attacks."""
    verdicts = {attack: best(entries, hero, others, attack).verdict for attack in attacks}
    by = {v: [a for a in attacks if verdicts[a] == v] for v in (HOLDS, FAILS, OPEN)}
    verdict = FAILS if by[FAILS] else HOLDS if attacks and not by[OPEN] else OPEN
    parts = []
    for key, said in ((HOLDS, "ahead of all under"), (FAILS, "behind another under")):
        if by[key]:
            parts.append(f"{said} {wording.join([attack_name(a) for a in by[key]])}")
    if by[OPEN]:
        parts.append(f"not told apart under {wording.join([attack_name(a) for a in by[OPEN]])}")
    shown = (by[FAILS] or by[OPEN] or by[HOLDS] or [""])[-1]
    if shown:
        parts.append(_told(entries, [hero, *others], shown))
    text = f"{entry_name(hero)} is {'; '.join(parts)}." if parts else "No attack has been run yet."
    return Opinion(verdict, capital(text))


def withstands_nothing(entries: Entries, hero: str, attacks: Sequence[str]) -> Opinion:
    """Judge whether an entry has 0 % under every one of some attacks, on every seed."""
    known = {a: found for a in attacks if (found := cell(entries.get(hero, ()), a))}
    some = {attack: found for attack, found in known.items() if found.highest > 0}
    if some:
        told = ", ".join(f"{attack_name(a)} {wording.percent(c.mean)}" for a, c in some.items())
        return Opinion(FAILS, f"It withstands something under {told}.")
    lost = [attack_name(attack) for attack in attacks if attack not in known]
    if lost or not known:
        what = f" under {wording.join(lost)}" if lost and known else ""
        return Opinion(OPEN, f"It has not been measured{what} yet.")
    size = min(found.n for found in known.values())
    return Opinion(HOLDS, f"No image of {wording.count(size)} withstands any of the attacks.")


def _sentence(text: str, verdict: str) -> str:
    end = " Not told apart by these images and seeds." if verdict == OPEN else ""
    if "not measured" in text or "nothing yet" in text:
        end = ""
    return f"{capital(text)}.{end}"
