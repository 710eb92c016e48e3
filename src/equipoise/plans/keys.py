"""Keys of a plan, each checked by its type; and those of ``resources``."""

import re
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, PositiveInt, TypeAdapter, ValidationError

from equipoise.errors import UserError, nearest, short
from equipoise.parsing import number, seconds

EXPECTED = {
    "bool_type": "expected true or false",
    "dict_type": "expected a mapping",
    "int_type": "expected a whole number",
    "list_type": "expected a list",
    "string_type": "expected text",
}


def checked_keys(
    given: Mapping[str, Any], kinds: Mapping[str, Any], path: str, problems: list[str]
) -> dict[str, Any]:
    """Return the valid values of a mapping; add the errors of the others to the problems."""
    what = f"key of {path.removesuffix('.') or 'a plan'}"
    problems += [nearest(str(key), kinds, what) for key in given if key not in kinds]
    values = dict[str, Any]()
    for key in given:
        if key in kinds and given[key] is not None:
            try:
                value = TypeAdapter(kinds[key]).validate_python(given[key], strict=True)
                values[key] = tuple(value) if isinstance(value, list) else value
            except ValidationError as error:
                for item in error.errors():
                    inside = item["loc"] if isinstance(given[key], list | dict) else ()
                    where = ".".join(map(str, (f"{path}{key}", *inside)))
                    complete = item["type"] == "value_error"  # its message has the value
                    got = "" if complete else f", got {short(item['input'])}"
                    message = EXPECTED.get(item["type"], item["msg"])
                    problems.append(f"{where}: {message.removeprefix('Value error, ')}{got}")
    return values


def _gigabytes(value: Any) -> float:
    match = re.fullmatch(r"([0-9.]+)\s*([MGT])i?B?", str(value).strip(), re.IGNORECASE)
    size = number(match[1]) if match else None
    if match is None or not isinstance(size, int | float) or not size > 0:
        raise UserError(f"expected a size like 16G or 500M, got {short(value)}")
    return float(size) * {"M": 2**-10, "G": 1, "T": 2**10}[match[2].upper()]


_Word = Annotated[str, Field(pattern=r"^[\w.:&|*@/-]+$")]
RESOURCES = {
    **dict.fromkeys(("partition", "account", "qos", "constraint"), _Word),
    "time": Annotated[float, BeforeValidator(lambda value: seconds(str(value), "a job"))],
    "memory": Annotated[float, BeforeValidator(_gigabytes)],
    "cpus": PositiveInt,
    "gpus": Annotated[int, Field(ge=0)],
}
"""What a command needs, by the keys of ``resources``: time in seconds, memory in GiB."""


def resources(text: str | None, on: str) -> dict[str, Any]:
    """Return what ``--resources`` gives, like ``partition=gpu,time=2h,gpus=1``.

    Raises:
        UserError: With every error at once.
    """
    if text is None:
        return {}
    if on.partition(":")[0] not in ("slurm", "ray"):
        raise UserError(f"--resources are for --on slurm and --on ray, not for {on}")
    problems = list[str]()
    pairs = [part.partition("=") for part in text.split(",") if part.strip()]
    problems += [f"expected NAME=VALUE, got {key!r}" for key, equals, _ in pairs if not equals]
    given = {key.strip(): number(value) for key, equals, value in pairs if equals}
    values = checked_keys(given, RESOURCES, "resources.", problems)
    if problems:
        raise UserError(f"--resources: {'; '.join(problems).replace('resources.', '')}")
    return values
