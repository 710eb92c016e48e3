"""Files as checked mappings; a damaged file is named."""

__all__ = ["mapping"]

from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from equipoise.errors import UserError
from equipoise.parsing import reason


def mapping(path: Path, parse: Callable[[str], object]) -> dict[str, Any]:
    """Return the mapping that a file holds; of an absent or empty file nothing.

    Arguments:
        path: The file.
        parse: What turns its text into a value.

    Raises:
        UserError: where the file is damaged or holds something else.
    """
    if not path.is_file():
        return {}
    try:
        value = parse(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        raise UserError(f"{path} is damaged ({reason(error)}); restore it or remove it") from error
    if value is None:  # an empty file: a run that stopped before it began
        return {}
    if not isinstance(value, dict):
        raise UserError(f"{path} must hold a mapping, got {type(value).__name__}; restore it")
    return value
