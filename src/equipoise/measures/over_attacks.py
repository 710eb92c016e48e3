"""The score ``cmmr-2``: the mean of ``cmmr-1`` under PGD, MI-FGSM and AutoAttack, each alone.

docs/cmmr.md gives the reasons.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from equipoise.measures.cmmr import SCORE_COLUMNS, Parts, score_texts

VERSION = "cmmr-2"

FAMILIES = {
    "PGD": r"pgd(?:-(\d+))?(?:\(.*\))?",
    "MI-FGSM": r"mi-fgsm(?:-(\d+))?(?:\(.*\))?",
    "AutoAttack": r"autoattack()",
}
"""The attacks of ``cmmr-2``, with the pattern of their names; a group has the steps."""

NEEDED = (
    "It needs PGD, MI-FGSM and AutoAttack in one evaluation (Linf or L2), each on all images: "
    "--attacks pgd-20,mi-fgsm-20,autoattack --cmmr, without --staged."
)
"""What to do where a score has no ``cmmr-2``."""


@dataclass(frozen=True)
class OverAttacks:
    """The score over attacks and the scores that it is the mean of.

    Arguments:
        attacks: The score under each attack, by its name.
    """

    attacks: Mapping[str, Parts]

    @property
    def scores(self) -> list[float]:
        """Return the score under each attack."""
        return [parts.score for parts in self.attacks.values()]

    @property
    def score(self) -> float:
        """Return the mean of the scores, in [0, 1]."""
        return sum(self.scores) / len(self.attacks)

    @property
    def credits(self) -> tuple[float, ...]:
        """Return the mean credit of each example over the attacks."""
        return tuple(np.mean([parts.credits for parts in self.attacks.values()], 0).tolist())

    def to_dict(self) -> dict[str, Any]:
        """Return the score, its spread, the mean accuracy and the score of each attack."""
        return {
            "version": VERSION,
            "score": self.score,
            "lowest": min(self.scores),
            "highest": max(self.scores),
            "accuracy": sum(p.accuracy for p in self.attacks.values()) / len(self.attacks),
            "attacks": {name: parts.to_dict() for name, parts in self.attacks.items()},
        }


def attack_texts(content: Mapping[str, Any] | None) -> dict[str, list[str]]:
    """Return what a table shows of a ``cmmr-2``: by row, the mean and each attack, its texts.

    Arguments:
        content: The score, as :meth:`OverAttacks.to_dict` has it; None: there is none.
    """
    if content is None:
        return {}
    score, lowest, highest = (f"{content[key]:.3f}" for key in ("score", "lowest", "highest"))
    mean = f"{score} ({lowest} to {highest})"
    texts = [mean, f"{content['accuracy']:.3f}", *[""] * (len(SCORE_COLUMNS) - 2)]
    of_attacks = content["attacks"].items()
    return {"mean": texts} | {name: [*score_texts(each).values()] for name, each in of_attacks}


def members(names: Iterable[str]) -> tuple[str, ...]:
    """Return the attacks of ``cmmr-2`` among some: one of each family.

    Of several of a family it is the one with the most steps.

    Example:
        >>> members(["fgsm", "pgd-20", "pgd-100", "mi-fgsm-20", "autoattack"])
        ('pgd-100', 'mi-fgsm-20', 'autoattack')

    Returns:
        Their names; none, if a family has none.
    """
    chosen: dict[str, tuple[int, str]] = {}
    for name in names:
        for family, pattern in FAMILIES.items():
            if match := re.fullmatch(pattern, name):
                given = int(match[1] or 0), name
                chosen[family] = max(chosen.get(family, given), given)
    return tuple(chosen[family][1] for family in FAMILIES) if len(chosen) == 3 else ()
