"""The plan of a comparison: many methods, trained and judged under one protocol, as YAML.

``base`` is laid under every entry; an entry is a recipe but for its seed, with ``method`` by
default its own name; ``budget`` gives the rounds where an entry does not. Everything that is
wrong is said at once, and unknown keys are refused, as in a recipe.
"""

__all__ = ["Entry", "Plan", "parse", "read"]

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from equipoise.attacks import check_norms, parse_list, without_clean
from equipoise.errors import UserError, nearest
from equipoise.evaluation import Protocol
from equipoise.execution import PRECISIONS, Execution
from equipoise.parsing import mapping, number
from equipoise.settings import recipe as recipes
from equipoise.settings.recipe import Recipe
from equipoise.threat import Threat

MANY_ROUNDS = 1_000_000  # a recipe is checked before its rounds are known: behind every start
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One method of a comparison with its settings.

    Arguments:
        name: Its name in the table and in its run folders.
        settings: Its recipe as it is given, that of the base included.
        cost: The gradient evaluations an image and round that the budget reckons with; None:
            those of the objectives.
    """

    name: str
    settings: Mapping[str, Any]
    cost: float | None = None

    @property
    def rounds(self) -> int | None:
        """Return the rounds that are given; None: they follow from the budget."""
        return self.settings.get("rounds")

    def recipe(self, *, rounds: int | None = None, seed: int = 0) -> Recipe:
        """Return the recipe of one run; ``rounds`` where none are given, or the recipes' own."""
        settings = {k: v for k, v in self.settings.items() if k != "rounds" or v is not None}
        given = {"rounds": rounds} if rounds is not None else {}
        return recipes.parse({**given, **settings, "seed": seed})


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is compared.

    Arguments:
        entries: The methods, in the order of the table.
        judging: How their models are evaluated.
        seeds: The seeds with which each is trained.
        budget: The gradient evaluations of a training; None: the recipes say the rounds.
        title: What stands above the table.
        given: The plan as it was written.
    """

    entries: tuple[Entry, ...]
    judging: Protocol
    seeds: tuple[int, ...] = (0,)
    budget: float | None = None
    title: str = "Comparison"
    given: Mapping[str, Any] = field(default_factory=dict, repr=False)


def read(path: Path) -> Plan:
    """Return the plan in a YAML file.

    Raises:
        UserError: If it is not there or not a plan, with every error at once.
    """
    return parse(mapping(path, "plan"))


def parse(given: Mapping[str, Any]) -> Plan:
    """Return the plan that a mapping describes.

    Raises:
        UserError: With every error at once.
    """
    known = ("title", "base", "budget", "seeds", "entries", "evaluate")
    problems = _unknown(given, known, "key of a comparison")
    base = _mapping(given.get("base"), "base", problems)
    if "seed" in base:
        problems.append("base.seed: the seeds are those of `seeds`")
    budget = _positive(given.get("budget"), "budget", problems)
    if budget is not None and "rounds" in base:
        problems.append("expected base.rounds or budget, got both; leave one out")
    judging = _judging(_mapping(given.get("evaluate"), "evaluate", problems), problems)
    entries = _entries(given.get("entries"), base, judging, problems)
    seeds = _seeds(given.get("seeds", [0]), problems)
    title = given.get("title", Plan.title)
    if not isinstance(title, str):
        problems.append(f"title: expected text, got {title!r}")
    if problems:
        raise UserError("; ".join(problems))
    return Plan(
        entries=entries,
        judging=judging,
        seeds=seeds,
        budget=budget,
        title=title,
        given=given,
    )


def _entries(
    given: Any, base: Mapping[str, Any], judging: Protocol, problems: list[str]
) -> tuple[Entry, ...]:
    """Return the entries, each of them with a recipe that is valid."""
    named = _mapping(given, "entries", problems)
    if not named and isinstance(given, Mapping | None):
        problems.append("entries: expected at least one method, like `pgd-at: {}`")
    found, wrong = [], dict[str, list[str]]()
    for name, over in named.items():
        entry = _entry(name, over, base, problems)
        if entry is None:
            continue
        found.append(entry)
        try:
            rounds = entry.rounds if entry.rounds is not None else MANY_ROUNDS
            norm = entry.recipe(rounds=rounds).norm
            if judging.attacks:
                check_norms(judging.named, norm)
        except UserError as error:
            wrong.setdefault(str(error), []).append(entry.name)
    for message, names in wrong.items():
        every = len(names) == len(named) > 1
        problems.append(f"{'every entry' if every else ', '.join(names)}: {message}")
    return tuple(found)


def _entry(name: Any, given: Any, base: Mapping[str, Any], problems: list[str]) -> Entry | None:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        problems.append(
            f"entries: expected a name of letters, digits, dots and hyphens, got {name!r}"
        )
        return None
    own = dict(_mapping(given, f"entries.{name}", problems))
    if "seed" in own:
        problems.append(f"entries.{name}.seed: the seeds are those of `seeds`")
    cost = _positive(own.pop("cost", None), f"entries.{name}.cost", problems)
    settings = recipes.combine({"method": name}, base, own)
    settings.pop("seed", None)
    return Entry(name=name, settings=settings, cost=cost)


def _judging(given: Mapping[str, Any], problems: list[str]) -> Protocol:
    """Return how the models are evaluated; without what is wrong, which is added to problems."""
    known = ("attacks", "n", "first", "eps", "precision", "batch_size", "individual")
    problems += _unknown(given, known, "key of evaluate")
    attacks = _attacks(given.get("attacks"), problems)
    n = _whole(given.get("n"), "evaluate.n", 1, problems)
    size = _whole(given.get("batch_size"), "evaluate.batch_size", 1, problems)
    eps = _positive(given.get("eps"), "evaluate.eps", problems)
    precision, individual = given.get("precision", "auto"), given.get("individual")
    first = given.get("first", False)
    if not isinstance(first, bool):
        problems.append(f"evaluate.first: expected true or false, got {first!r}")
    if precision not in PRECISIONS:
        problems.append(f"evaluate: {nearest(str(precision), PRECISIONS, 'precision')}")
    if not isinstance(individual, bool | None):
        problems.append(f"evaluate.individual: expected true or false, got {individual!r}")
    sound = True
    try:
        Threat("linf", eps or 0.0)
    except UserError as error:
        problems.append(f"evaluate.eps: {error}")
        sound = False
    return Protocol(
        attacks=attacks,
        n=n,
        first=first is True,
        eps=eps if sound else None,
        execution=Execution(precision=precision if precision in PRECISIONS else "auto"),
        batch_size=size or Protocol.batch_size,
        individual=individual if isinstance(individual, bool) else None,
    )


def _attacks(given: Any, problems: list[str]) -> tuple[str, ...]:
    several = isinstance(given, list) and all(isinstance(item, str) for item in given)
    if not isinstance(given, str) and not several:
        what = "nothing" if given is None else repr(given)
        problems.append(f'evaluate.attacks: expected names like "pgd-100,autoattack", got {what}')
        return ()
    try:
        names = tuple(dict.fromkeys(without_clean(given)))
        parse_list(names)
    except UserError as error:
        problems.append(f"evaluate.attacks: {error}")
        return ()
    if not names:
        problems.append(f"evaluate.attacks: expected at least one attack, got {given!r}")
    return names


def _seeds(given: Any, problems: list[str]) -> tuple[int, ...]:
    sound = isinstance(given, list) and all(type(item) is int and item >= 0 for item in given)
    if not sound or not given or len(set(given)) < len(given):
        problems.append(f"seeds: expected different whole numbers like [0, 1], got {given!r}")
        return ()
    return tuple(given)


def _mapping(given: Any, where: str, problems: list[str]) -> Mapping[str, Any]:
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        problems.append(f"{where}: expected a mapping, got {given!r}")
        return {}
    return given


def _positive(given: Any, where: str, problems: list[str]) -> float | None:
    value = number(given)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        problems.append(f"{where}: expected a number above 0, got {given!r}")
        return None
    return float(value)


def _whole(given: Any, where: str, least: int, problems: list[str]) -> int | None:
    if given is None or (type(given) is int and given >= least):
        return given
    problems.append(f"{where}: expected a whole number of at least {least}, got {given!r}")
    return None


def _unknown(given: Mapping[str, Any], known: Sequence[str], what: str) -> list[str]:
    return [nearest(str(key), known, what) for key in given if key not in known]
