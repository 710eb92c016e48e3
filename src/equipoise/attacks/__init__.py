"""The attacks by name: ``"pgd-20"`` is ``PGD(steps=20)``, ``"pgd-20(restarts=5)"`` has options."""

__all__ = [
    "APGD",
    "APGDCE",
    "APGDDLR",
    "APGDT",
    "ATTACKS",
    "FAB",
    "FABT",
    "FGSM",
    "MIFGSM",
    "PGD",
    "Attack",
    "Audited",
    "AutoAttack",
    "CWInf",
    "CarliniWagnerL2",
    "MarginAscent",
    "Noise",
    "Square",
    "check_norms",
    "cost",
    "parse",
    "parse_list",
    "split_names",
    "without_clean",
]

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from equipoise.attacks.apgd import APGD, APGDCE, APGDDLR, APGDT
from equipoise.attacks.carlini_wagner import CarliniWagnerL2
from equipoise.attacks.core import Attack, cost
from equipoise.attacks.corruptions import WorstCorruption
from equipoise.attacks.ensemble import Audited, AutoAttack
from equipoise.attacks.fab import FAB, FABT
from equipoise.attacks.margin import MarginAscent, Noise
from equipoise.attacks.pgd import FGSM, MIFGSM, PGD, CWInf
from equipoise.attacks.square import Square
from equipoise.errors import UserError, nearest, short
from equipoise.parsing import number, share
from equipoise.threat import NORMS

ATTACKS: dict[str, tuple[Callable[..., Attack], str]] = {
    "fgsm": (FGSM, "one signed gradient step of size eps (Linf, L2)"),
    "pgd": (PGD, "projected gradient ascent from a random start; pgd-K takes K steps"),
    "mi-fgsm": (MIFGSM, "momentum iterative FGSM, the papers' MIA; mi-fgsm-K (Linf, L2)"),
    "cw-inf": (CWInf, "PGD on the Carlini-Wagner margin, the papers' C&W; cw-inf-K (Linf)"),
    "cw-l2": (CarliniWagnerL2, "the smallest L2 perturbation by Carlini and Wagner; cw-l2-K (L2)"),
    "apgd-ce": (APGDCE, "Auto-PGD on the cross-entropy: its own step sizes, 100 steps"),
    "apgd-dlr": (APGDDLR, "Auto-PGD on the difference of logits ratio, blind to their scale"),
    "apgd-t": (APGDT, "Auto-PGD towards each of the 9 nearest classes"),
    "fab": (FAB, "the smallest perturbation across the nearest boundary"),
    "fab-t": (FABT, "the same towards each of the 9 nearest classes"),
    "square": (Square, "random squares, without gradients; square-K takes K queries (5000)"),
    "noise": (Noise, "random points at the full radius"),
    "corruptions": (WorstCorruption, "the worst of noise, blur, JPEG, ...; corruptions-S (eps=1)"),
    "margin": (MarginAscent, "ascent on the margin, towards the nearest classes; margin-K"),
    "audited": (
        Audited,
        "a cheap search, audited by autoattack: audited(within=1%, budget=100%)",
    ),
    "autoattack": (AutoAttack, "the standard ensemble: apgd-ce, apgd-t, fab-t, square"),
    "autoattack-plus": (
        partial(AutoAttack, version="plus"),
        "the same with restarts, and apgd-dlr and fab",
    ),
    "autoattack-rand": (
        partial(AutoAttack, version="rand"),
        "for random models: apgd-ce and apgd-dlr with 20 passes a step",
    ),
}

_COUNTED = ("steps", "queries", "severity")  # what the number in a name counts

_SPEC = re.compile(r"(?P<name>[a-z][a-z0-9-]*?)(-(?P<steps>\d+))?(\((?P<options>.*)\))?")


def parse(spec: str) -> Attack:
    """Return the attack with a name and options.

    Example:
        >>> parse("pgd-20(restarts=5, step_size=2/255)").restarts
        5

    Arguments:
        spec: A name of :data:`ATTACKS`, with ``-K`` for K steps and options in brackets.

    Raises:
        UserError: If the name or an option is unknown, with the nearest valid name.
    """
    match = _SPEC.fullmatch(spec.strip().lower())
    if match is None:
        raise UserError(f"cannot read the attack {short(spec)}; write it like pgd-20(restarts=5)")
    if match["name"] not in ATTACKS:
        raise UserError(nearest(match["name"], ATTACKS, "attack"))
    options = _options(match["options"] or "")
    make = ATTACKS[match["name"]][0]
    known = inspect.signature(make).parameters
    if match["steps"]:
        counted = next((name for name in _COUNTED if name in known), "steps")
        if counted in options:
            raise UserError(f"{short(spec)} gives {counted} twice: in the name and as an option")
        options[counted] = number(match["steps"])
    problems = [
        nearest(key, known, f"option of {match['name']}")
        if known
        else f"{match['name']} has no options, got {key}"
        for key in options
        if key not in known
    ]
    problems += [
        f"{key} must be a number, got {value}"
        for key, value in options.items()
        if isinstance(value, bool) and key in known and "bool" not in str(known[key].annotation)
    ]
    if problems:
        raise UserError("; ".join(problems))
    return make(**options)


def parse_list(specs: str | Sequence[str]) -> dict[str, Attack]:
    """Return attacks by the names that were given; all errors at once.

    Arguments:
        specs: Names as for :func:`parse`; in a string, separated by commas.
    """
    attacks, errors = {}, []
    for spec in split_names(specs):
        try:
            attacks[spec] = parse(spec)
        except UserError as error:
            errors.append(str(error))
    if errors:
        raise UserError("; ".join(errors))
    return attacks


def split_names(specs: str | Sequence[str]) -> list[str]:
    """Return the names in a list, or in a string with commas, in lower case.

    Raises:
        UserError: If a string names nothing.
    """
    if isinstance(specs, str):
        if not specs.strip(" ,"):
            raise UserError(
                "expected names of attacks like pgd-20, or clean for the clean accuracy alone, "
                f"got {specs!r}"
            )
        specs = re.split(r",(?![^()]*\))", specs)
    return [spec.strip().lower() for spec in specs if spec.strip()]


def without_clean(specs: str | Sequence[str]) -> list[str]:
    """Return the names of attacks in a list, without ``clean`` (the clean accuracy)."""
    return [spec for spec in split_names(specs) if spec != "clean"]


def check_norms(attacks: Mapping[str, Attack], norm: str) -> None:
    """Raise a UserError with every attack that is not defined for a norm."""
    problems = [
        f"{name} is defined for {', '.join(norms)}, not {norm}"
        for name, attack in attacks.items()
        for norms in [getattr(attack, "norms", NORMS)]
        if norm not in norms
    ]
    if problems:
        raise UserError("; ".join(problems))


def _options(text: str) -> dict[str, Any]:
    options: dict[str, Any] = {}
    for item in filter(None, (item.strip() for item in text.split(","))):
        key, equals, value = item.partition("=")
        if not equals or not value.strip():
            raise UserError(f"cannot read the option {short(item)}; write it like restarts=5")
        if key.strip() in options:
            raise UserError(f"the option {key.strip()} is given twice")
        given = value.strip()
        options[key.strip()] = share(given, key.strip()) if given.endswith("%") else number(given)
    return options
