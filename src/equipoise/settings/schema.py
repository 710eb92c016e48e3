"""From a mapping of settings to validated dataclasses: the constructors are the schema.

Some groups of settings have several kinds (``start`` is a rule for t', ``robust`` and ``clean``
are learners of an objective): a tag in the group names the kind, whose defaults hold for the
settings that are not given.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, fields
from difflib import get_close_matches
from functools import cache
from typing import Any

from pydantic import TypeAdapter, ValidationError

from equipoise.errors import FOREIGN, UserError, nearest, short
from equipoise.objectives.corrupted import Corrupted
from equipoise.objectives.robust import Robust
from equipoise.parsing import number
from equipoise.settings import usual
from equipoise.settings.methods import METHODS, MethodRow, Settings, learners

ROLES = ("clean", "robust", "trunk")

TAGS = {"start": "rule"} | dict.fromkeys(ROLES, "objective")
"""The groups with several kinds, and the setting that names the kind."""

WORDS = {"rule": "rule for start", "objective": "objective"}

TEXT = (
    "method",
    "data",
    "data_dir",
    "model",
    "normalise",
    "norm",
    "validation_attack",
    "augment",
    "resize",
    "on_bad_image",
    "labels",
    "classes",
    "keep",
    "device",
    "on_collapse",
    "balance",
)
"""The settings that are text, even where it looks like a number."""

UNLIKE = ("objective", "weight")
"""The settings of learners that have no short form where several learners have them."""


def settings_of(
    row: MethodRow, given: Mapping[str, Any], names: Sequence[str]
) -> tuple[Settings | None, list[str]]:
    """Return the settings of a method and their problems, a sentence each.

    Arguments:
        row: The method.
        given: The given settings, groups as mappings.
        names: The settings that every method has, for suggestions.
    """
    problems: list[str] = []
    given = written_out(given, row, names)
    default = row()
    known = default.to_dict()
    values = {name: getattr(default, name) for name in row.settings.fixed}
    for group in TAGS:
        if group in known:
            value, known[group] = _group(
                group, row.kinds(group), known[group], given.pop(group, {}), problems
            )
            values[group] = value
    more = given.get("more")
    if "more" in known and isinstance(more, Mapping):
        able = (Robust, Corrupted)
        kinds = {name: kind for name, kind in learners().items() if issubclass(kind, able)}
        first = asdict(next(iter(kinds.values()))())
        values["more"] = {
            name: _group(f"more.{name}", kinds, first, learner, problems)[0]
            for name, learner in given.pop("more").items()
        }
    if "more_gamma" in known and isinstance(given.get("more_gamma"), Mapping):
        known["more_gamma"] = dict.fromkeys(given["more_gamma"])
    problems += _unknown(given, known, names)
    rest = {key: value for key, value in known.items() if key not in values}
    merged = lay(rest, {key: value for key, value in given.items() if key in rest})
    return validate(row.settings, values | merged, problems), problems


def _group(
    path: str, kinds: Mapping[str, type], default: dict[str, Any], given: Any, problems: list[str]
) -> tuple[Any, dict[str, Any]]:
    """Return a group of settings and the defaults of its kind; add errors to ``problems``.

    ``given`` may be settings, the name of a kind, or the round of a start.
    """
    tag = TAGS.get(path, "objective")
    given, name = number(given), default[tag]
    if isinstance(given, str):
        given = {tag: given}
    elif tag == "rule" and isinstance(given, int | float) and not isinstance(given, bool):
        given = {"rule": "fixed", "round" if isinstance(given, int) else "fraction": given}
    if not isinstance(given, Mapping):
        rules = f"{path}: expected a rule ({', '.join(kinds)}) or a round, got {short(given)}"
        problems.append(rules if tag == "rule" else _is_group(path, default))
        given = {}
    elif str(given.get(tag, name)) in kinds:
        name = str(given.get(tag, name))
    else:
        problems.append(nearest(str(given[tag]), kinds, WORDS[tag]))
        given = {}
    kind = kinds[name]
    defaults = default if name == default[tag] else asdict(kind())
    problems += _unknown(given, defaults, (), f"{path}.")
    merged = lay(defaults, {key: value for key, value in given.items() if key in defaults})
    return validate(kind, merged, problems, f"{path}.") or kind(), defaults


def written_out(
    given: Mapping[str, Any], row: MethodRow, names: Collection[str] = ()
) -> dict[str, Any]:
    """Return settings with their short forms written out, so that layers can be combined.

    The name of a kind in place of its group becomes the group (``robust=trades``), and a setting
    of the method's learners is given to all of them that have it (``lr=0.05``, ``beta=6``), or
    else can have it; further learners (``more``) are left out.

    Arguments:
        given: The settings.
        row: The method.
        names: The names that are not settings of a method.

    Raises:
        UserError: If a setting is given in both forms, or is one that differs between learners.
    """
    default = row()
    known = default.to_dict()
    result = {key: dict(v) if isinstance(v, Mapping) else v for key, v in given.items()}
    for group, tag in TAGS.items():
        if group in known and isinstance(result.get(group), str):
            result[group] = {tag: result[group]}

    def chosen(role: str) -> str:
        group = result.get(role)
        named = group.get("objective") if isinstance(group, Mapping) else None
        return named or str(getattr(default, role).objective)

    kinds = {role: row.kinds(role) for role in ROLES if role in known}
    for key in [key for key in result if key not in known and key not in names]:
        able = [role for role in kinds if any(key in _names(k) for k in kinds[role].values())]
        having = [role for role in able if key in _names(kinds[role].get(chosen(role)))]
        roles = having or able
        if len(roles) > 1 and key in UNLIKE:
            either = " or ".join(f"{role}.{key}" for role in roles)
            raise UserError(f"{key!r} may be {either}: give the full name")
        groups = [result.setdefault(role, {}) for role in roles]
        if not groups or not all(isinstance(inner, dict) for inner in groups):
            continue
        value = result.pop(key)
        for role, inner in zip(roles, groups, strict=True):
            if key in inner:
                raise UserError(f"{key} is given twice: as {key} and as {role}.{key}")
            inner[key] = value
    for learner in usual.groups(result, ROLES):
        usual.scheduled(learner)
    return result


def _names(kind: type | None) -> set[str]:
    """Return the names of the settings of a kind."""
    return set() if kind is None else {f.name for f in fields(kind)} | {"schedule"}


def tag_of(path: Sequence[str]) -> str | None:
    """Return the tag of the group at a path, like ("more", "l2"), if it has several kinds."""
    if len(path) == 2 and path[0] == "more":
        return "objective"
    return TAGS.get(path[0]) if len(path) == 1 else None


def lay(default: dict[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return defaults replaced by the given settings, group by group; text becomes numbers."""
    result = dict(default)
    for key, value in given.items():
        below = default.get(key)
        if isinstance(below, dict) and isinstance(value, Mapping):
            result[key] = lay(below, value)
        elif key in TEXT and not isinstance(below, dict):
            result[key] = value
        else:
            result[key] = [number(v) for v in value] if isinstance(value, list) else number(value)
    return result


def _unknown(
    given: Mapping[str, Any], known: Mapping[str, Any], others: Sequence[str], path: str = ""
) -> list[str]:
    """Return a line for each unknown key, with the nearest valid key."""
    problems = []
    for key, value in given.items():
        where, group = f"{path}{key}", known.get(key)
        if key not in known:
            problems.append(f"unknown setting {where!r}{_hint(str(key), known, others, path)}")
        elif isinstance(group, Mapping) and isinstance(value, Mapping):
            problems += _unknown(value, group, (), f"{where}.")
        elif isinstance(group, Mapping) and group:
            problems.append(_is_group(where, group))
    return problems


def _is_group(path: str, group: Mapping[str, Any]) -> str:
    return f"{path} is a group of settings; set {path}.{next(iter(group))} and so on"


def _hint(key: str, known: Mapping[str, Any], others: Sequence[str], path: str) -> str:
    """Return a hint for an unknown key, as the end of a sentence."""
    options = [*known, *others]
    groups = [known[role] for role in ROLES if isinstance(known.get(role), Mapping)]
    ours = next((name for name, theirs in FOREIGN.items() if key.lower() in theirs.split()), "")
    if ours.startswith("--") and not path:
        return f": it is an option, {ours}"
    if ours in options or any(ours in group for group in groups):
        return f"; did you mean {path}{ours}?"
    attacks = [group.get("attack") for group in (known, *groups)]
    if any(isinstance(attack, Mapping) and ours in attack for attack in attacks):
        return f"; did you mean {path}attack.{ours}?"
    if key == "trunk_weight":
        return "; it is trunk.weight now"
    if not path and key in ROLES:
        return f": this method has no {key} learner"
    owners = [name for name, kind in learners().items() if key in _names(kind)]
    learner = path.partition(".")[0] in (*ROLES, "more") or bool(groups)
    if owners and learner and path.count(".") <= 2:
        return f": only {', '.join(owners) if len(owners) < 9 else 'robust learners'} have it"
    merged = [name for name, row in METHODS.items() if key in row.settings.offered()]
    if merged and not path:
        return f": only {', '.join(merged)} {'has' if len(merged) == 1 else 'have'} it"
    inner = [name for group in groups for name in group if not path]
    close = get_close_matches(key, [*options, *inner], n=1, cutoff=0.5)
    return f"; did you mean {path}{close[0]}?" if close else f" (known: {', '.join(options)})"


def validate(schema: type, values: Mapping[str, Any], problems: list[str], path: str = "") -> Any:
    """Return the validated object, or None after adding errors to ``problems``.

    Arguments:
        schema: The dataclass.
        values: Its fields.
        problems: A sentence is added to it for each new error.
        path: The path of the values, with a dot at its end.
    """
    cleaned = {key: value if key in TEXT else number(value) for key, value in values.items()}
    try:
        result = _adapter(schema).validate_python(cleaned)
        misread = [f"{path}{line}" for line in _misread(cleaned, result)]
        problems += [line for line in misread if line not in problems]
        return None if misread else result
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
        if wrong & set(values):  # values of the right type may still be out of range
            fit = {key: value for key, value in values.items() if key not in wrong}
            validate(schema, fit, problems, path)
    return None


def _misread(given: Any, result: Any, path: str = "") -> Iterator[str]:
    """Yield a line for each number that was converted from something else, like ``yes``."""
    if isinstance(result, int | float) and not isinstance(result, bool):
        if isinstance(given, bool | str):
            yield f"{path}: expected a number like 10, 0.1 or 8/255, got {short(given)}"
    elif isinstance(given, Mapping):
        for key, value in given.items():
            inner = result.get(key) if isinstance(result, Mapping) else getattr(result, key, None)
            yield from _misread(value, inner, f"{path}.{key}" if path else str(key))
    elif isinstance(given, list | tuple) and isinstance(result, list | tuple):
        for value, inner in zip(given, result, strict=True):
            yield from _misread(value, inner, path)


@cache  # making an adapter takes far longer than using it
def _adapter(schema: type) -> TypeAdapter[Any]:
    return TypeAdapter(schema)


def _is_kind(part: Any) -> bool:
    """Return whether a part of an error's place is a type of a union rather than a setting."""
    return isinstance(part, str) and (not part.isidentifier() or part in ("int", "float"))


def collect(problems: list[str], attempt: Callable[[], object]) -> None:
    """Add the message of a UserError that ``attempt`` raises to the problems."""
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


def differences(old: Mapping[str, Any], new: Mapping[str, Any], path: str = "") -> list[str]:
    """Return the differences between two recipes, a line each."""
    lines = []
    for key in sorted({*old, *new}):
        a, b = old.get(key), new.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            lines += differences(a, b, f"{path}{key}.")
        elif a != b:
            lines.append(f"{path}{key}: {a} there, {b} here")
    return lines
