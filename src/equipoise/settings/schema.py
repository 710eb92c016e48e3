"""From a mapping of settings to validated dataclasses: the constructors are the schema.

Groups of settings may be of several kinds (``start`` is a rule for t', ``robust`` and ``clean``
are learners of an objective): a tag in the group names the kind, and its constructor's defaults
are laid under what is given.
"""

__all__ = [
    "TAGS",
    "TEXT",
    "collect",
    "lay",
    "plain",
    "settings_of",
    "tag_of",
    "validate",
    "written_out",
]

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, fields
from difflib import get_close_matches
from functools import cache
from typing import Any

from pydantic import TypeAdapter, ValidationError

from equipoise.errors import FOREIGN, UserError, nearest, short
from equipoise.objectives import Robust
from equipoise.parsing import number
from equipoise.settings.kinds import Settings
from equipoise.settings.methods import MethodRow, learners

TAGS = {"start": "rule", "clean": "objective", "robust": "objective"}
"""The groups that are of several kinds, and the setting that names the kind."""

WORDS = {"rule": "rule for start", "objective": "objective"}

TEXT = (
    "method",
    "data",
    "data_dir",
    "model",
    "norm",
    "validation_attack",
    "keep",
    "device",
    "on_collapse",
)
"""The settings that are text: what looks like a number in them is none."""

ROLES = ("clean", "robust")


def settings_of(
    row: MethodRow, given: Mapping[str, Any], names: Sequence[str]
) -> tuple[Settings | None, list[str]]:
    """Return the settings of a method and all that is wrong with them, a sentence each.

    Arguments:
        row: The method.
        given: What was given, groups as mappings.
        names: The other names that exist beside them, to suggest.
    """
    problems: list[str] = []
    given = written_out(given, row, names)
    usual = row()
    known = usual.to_dict()
    values = {name: getattr(usual, name) for name in row.settings.fixed}
    groups = [group for group in TAGS if group in known]
    for group in groups:
        values[group], known[group] = _group(
            group, TAGS[group], row.kinds(group), known[group], given.get(group, {}), problems
        )
    rest = {key: value for key, value in given.items() if key not in groups}
    if "more" in known and isinstance(rest.get("more"), Mapping):
        kinds = {name: kind for name, kind in learners().items() if issubclass(kind, Robust)}
        first = asdict(next(iter(kinds.values()))())
        values["more"] = {
            name: _group(f"more.{name}", "objective", kinds, first, its, problems)[0]
            for name, its in rest.pop("more").items()
        }
    if "more_gamma" in known and isinstance(rest.get("more_gamma"), Mapping):
        known["more_gamma"] = dict.fromkeys(rest["more_gamma"])
    problems += _unknown(rest, known, names)
    left = {key: value for key, value in known.items() if key not in values}
    merged = lay(left, {key: value for key, value in rest.items() if key in left})
    return validate(row.settings, values | merged, problems), problems


def _group(
    path: str,
    tag: str,
    kinds: Mapping[str, type],
    usual: dict[str, Any],
    given: Any,
    problems: list[str],
) -> tuple[Any, dict[str, Any]]:
    """Return a group of settings, and the defaults of its kind.

    Arguments:
        path: Where the group stands.
        tag: The setting that names its kind.
        kinds: The kinds by their names.
        usual: The group's defaults.
        given: What was given for it: settings, the name of a kind, or the round of a start.
        problems: Sentences are added to it.
    """
    given, name = number(given), usual[tag]
    if isinstance(given, str):
        given = {tag: given}
    elif tag == "rule" and isinstance(given, int | float) and not isinstance(given, bool):
        given = {"rule": "fixed", "round" if isinstance(given, int) else "fraction": given}
    if not isinstance(given, Mapping):
        rules = f"{path}: expected a rule ({', '.join(kinds)}) or a round, got {short(given)}"
        first = f"{path} is a group of settings; set {path}.{next(iter(usual))} and so on"
        problems.append(rules if tag == "rule" else first)
        given = {}
    elif str(given.get(tag, name)) in kinds:
        name = str(given.get(tag, name))
    else:
        problems.append(nearest(str(given[tag]), kinds, WORDS[tag]))
        given = {}
    kind = kinds[name]
    defaults = usual if name == usual[tag] else asdict(kind())
    problems += _unknown(given, defaults, (), f"{path}.")
    merged = lay(defaults, {key: value for key, value in given.items() if key in defaults})
    return validate(kind, merged, problems, f"{path}.") or kind(), defaults


def written_out(
    given: Mapping[str, Any], row: MethodRow, names: Collection[str] = ()
) -> dict[str, Any]:
    """Return settings with their short forms written out, so that they can be laid over others.

    A kind that stands for its group becomes the group (``robust=trades``), and a setting that
    only one of the method's learners has, or else may have, goes to that learner (``beta=6``).

    Arguments:
        given: The settings.
        row: The method.
        names: The names that are not settings of a method.

    Raises:
        UserError: If a setting is given in both forms, or may belong to two learners.
    """
    known = set(row().to_dict())
    result = {key: dict(v) if isinstance(v, Mapping) else v for key, v in given.items()}
    for group, tag in TAGS.items():
        if group in known and isinstance(result.get(group), str):
            result[group] = {tag: result[group]}
    of = {
        role: {f.name for kind in row.kinds(role).values() for f in fields(kind)}
        for role in ROLES
        if role in known
    }
    for key in [key for key in result if key not in known and key not in names]:
        roles = [role for role, its in of.items() if key in its]
        here = [role for role in roles if key in _present(row, role, result)]
        roles = here or roles
        if len(roles) > 1:
            either = " or ".join(f"{role}.{key}" for role in roles)
            raise UserError(f"{key!r} may be {either}: say which")
        inner = result.setdefault(roles[0], {}) if roles else None
        if isinstance(inner, dict):
            if key in inner:
                raise UserError(f"{key} is given twice: as {key} and as {roles[0]}.{key}")
            inner[key] = result.pop(key)
    return result


def _present(row: MethodRow, role: str, given: Mapping[str, Any]) -> set[str]:
    """Return the settings of the kind of learner that is given, or else the usual one."""
    group = given.get(role)
    named = group.get("objective") if isinstance(group, Mapping) else None
    name = named or getattr(row(), role).objective
    kind = row.kinds(role).get(name)
    return set() if kind is None else {f.name for f in fields(kind)}


def tag_of(path: Sequence[str]) -> str | None:
    """Return the tag of the group at a path, like ("more", "l2"), if it is of several kinds."""
    if len(path) == 2 and path[0] == "more":
        return "objective"
    return TAGS.get(path[0]) if len(path) == 1 else None


def lay(default: dict[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Lay what is given over the defaults, group by group; text becomes numbers."""
    result = dict(default)
    for key, value in given.items():
        usual = default.get(key)
        if isinstance(usual, dict) and isinstance(value, Mapping):
            result[key] = lay(usual, value)
        elif key in TEXT and not isinstance(usual, dict):
            result[key] = value
        else:
            result[key] = [number(v) for v in value] if isinstance(value, list) else number(value)
    return result


def _unknown(
    given: Mapping[str, Any], known: Mapping[str, Any], others: Sequence[str], path: str = ""
) -> list[str]:
    """Return a line for each key that does not exist, with the nearest one that does."""
    problems = []
    for key, value in given.items():
        where = f"{path}{key}"
        if key not in known:
            inner = [name for group in ROLES for name in known.get(group, ()) if not path]
            options = [*known, *others]
            usual = _usual(key, path, known, others)
            close = (
                [usual]
                if usual
                else get_close_matches(str(key), [*options, *inner], n=1, cutoff=0.5)
            )
            hint = f"; did you mean {path}{close[0]}?" if close else ""
            if usual.startswith("--"):
                hint = f": it is an option, {usual}"
            hint = hint or f" (known: {', '.join(options)})"
            owners = "" if usual else _owners(key, path, known)
            problems.append(f"unknown setting {where!r}{owners or hint}")
        elif isinstance(known[key], Mapping) and isinstance(value, Mapping):
            problems += _unknown(value, known[key], (), f"{where}.")
        elif isinstance(known[key], Mapping) and known[key]:
            first = next(iter(known[key]))
            problems.append(f"{where} is a group of settings; set {where}.{first} and so on")
    return problems


def _usual(key: str, path: str, known: Mapping[str, Any], others: Sequence[str]) -> str:
    """Return our name of a setting that is called otherwise elsewhere, or an empty string."""
    ours = next((name for name, theirs in FOREIGN.items() if str(key).lower() in theirs), "")
    if ours.startswith("--"):
        return "" if path else ours
    groups = [known[role] for role in ROLES if isinstance(known.get(role), Mapping)]
    if ours in known or ours in others or any(ours in group for group in groups):
        return ours
    attacks = [group.get("attack") for group in (known, *groups)]
    inner = any(isinstance(attack, Mapping) and ours in attack for attack in attacks)
    return f"attack.{ours}" if inner else ""


def _owners(key: str, path: str, known: Mapping[str, Any]) -> str:
    """Return in words which learners have a setting, if some have it."""
    if not path and key in ROLES:
        return f": this method has no {key} learner"
    owners = [
        name for name, kind in learners().items() if any(f.name == key for f in fields(kind))
    ]
    learner = path.startswith(("robust.", "clean.", "more.")) or not set(ROLES).isdisjoint(known)
    if not owners or not learner or path.count(".") > 2:
        return ""
    few = ", ".join(owners) if len(owners) < 8 else "robust learners"
    return f": only {few} have it"


def validate(schema: type, values: Mapping[str, Any], problems: list[str], path: str = "") -> Any:
    """Return the validated object, or None and its problems.

    Arguments:
        schema: The dataclass.
        values: What it is to be made of.
        problems: Sentences are added to it, one for each problem that is new.
        path: Where the values stand, with a dot at its end.
    """
    cleaned = {key: value if key in TEXT else number(value) for key, value in values.items()}
    try:
        found = _adapter(schema).validate_python(cleaned)
        misread = [f"{path}{line}" for line in _misread(cleaned, found)]
        problems += [line for line in misread if line not in problems]
        return None if misread else found
    except ValidationError as error:
        for item in error.errors():
            where = path + ".".join(str(part) for part in item["loc"] if not _is_kind(part))
            where = where.removesuffix(".")
            text = str(item["msg"]).removeprefix("Value error, ")
            value = "" if item["type"] == "value_error" else f", got {short(item['input'])}"
            line = f"{where}: {text}{value}" if where else f"{text}{value}"
            if line not in problems:
                problems.append(line)
        wrong = {item["loc"][0] for item in error.errors() if item["loc"]}
        if wrong & set(values):  # what has the right type may still be out of range
            fit = {key: value for key, value in values.items() if key not in wrong}
            validate(schema, fit, problems, path)
    return None


def _misread(given: Any, found: Any, path: str = "") -> Iterator[str]:
    """Yield a line for each number that was made of something that is none, like ``yes``."""
    if isinstance(found, int | float) and not isinstance(found, bool):
        if isinstance(given, bool | str):
            yield f"{path}: expected a number like 10, 0.1 or 8/255, got {short(given)}"
    elif isinstance(given, Mapping):
        for key, value in given.items():
            inner = found.get(key) if isinstance(found, Mapping) else getattr(found, key, None)
            yield from _misread(value, inner, f"{path}.{key}" if path else str(key))
    elif isinstance(given, list | tuple) and isinstance(found, list | tuple):
        for value, inner in zip(given, found, strict=True):
            yield from _misread(value, inner, path)


@cache  # making one takes far longer than using it, and a plan of a hundred runs makes few
def _adapter(schema: type) -> TypeAdapter[Any]:
    return TypeAdapter(schema)


def _is_kind(part: Any) -> bool:
    """Tell a name that a union adds to the place of an error: no setting has such a name."""
    return isinstance(part, str) and (not part.isidentifier() or part in ("int", "float"))


def collect(problems: list[str], attempt: Callable[[], object]) -> None:
    """Try something; add what a user has to know of its failure to the problems."""
    try:
        attempt()
    except UserError as error:
        if str(error) not in problems:
            problems.append(str(error))


def plain(value: Any) -> Any:
    """Return a value as YAML writes it: lists for tuples."""
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value
