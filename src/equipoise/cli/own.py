"""A file of the user's own, run before a command: it may add to the tables of names."""

__all__ = ["VARIABLE", "run"]

import importlib.util
import os
import sys
from pathlib import Path

from equipoise.errors import UserError

VARIABLE = "EQUIPOISE_IMPORT"


def run(path: Path) -> None:
    """Run a Python file as a module of its own name, here and in the processes of a command.

    Raises:
        UserError: If it is not there, or fails.
    """
    path = path.absolute()
    there = getattr(sys.modules.get(path.stem), "__file__", None)
    if path.stem in sys.modules and there != str(path):
        raise UserError(
            f"--import {path}: a module {path.stem!r} is there already; rename the file"
        )
    spec = importlib.util.spec_from_file_location(path.stem, path) if path.is_file() else None
    if spec is None or spec.loader is None:
        raise UserError(f"--import {path}: expected a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise UserError(f"--import {path}: {type(error).__name__}: {error}") from error
    os.environ[VARIABLE] = str(path)
