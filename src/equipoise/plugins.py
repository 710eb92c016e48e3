"""Code of the user: run when the user asks for it, and recorded in the resulting folders.

A folder records such code by path and SHA-256. Code is never run because a folder records it: the
user gives it with ``--import`` or ``--model``, or gives ``--trust``.
"""

import hashlib
import importlib
import os
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.abc import PathEntryFinder
from importlib.machinery import FileFinder, ModuleSpec, SourceFileLoader
from importlib.util import module_from_spec
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

from equipoise.errors import UserError

VARIABLE = "EQUIPOISE_IMPORT"
"""The environment variable with the path of the user's file, set by ``--import``."""

Source = Mapping[str, Any]
"""A file of code: its path ``file`` and its ``sha256``."""

_run: list[dict[str, str]] = []


def run(path: Path, *, first: bool = True) -> None:
    """Run a Python file as a module of its own name, here and in child processes.

    The text of the file is run, never a compiled file. It can import modules of its folder.

    Arguments:
        path: The file.
        first: Whether modules in its folder hide installed modules of the same name.

    Raises:
        UserError: If it does not exist, or fails.
    """
    path = path.absolute()
    loaded = sys.modules.get(path.stem)
    if loaded is not None and getattr(loaded, "__file__", None) != str(path):
        raise UserError(
            f"--import {path}: a module {path.stem!r} is loaded already; rename the file"
        )
    if not path.is_file() or path.suffix != ".py":
        raise UserError(f"--import {path}: expected a Python file")
    text = path.read_bytes()
    spec = ModuleSpec(path.stem, SourceFileLoader(path.stem, str(path)), origin=str(path))
    spec.has_location = True
    _find(path.parent, first=first)
    module = module_from_spec(spec)
    sys.modules[path.stem] = module
    try:
        exec(compile(text, path, "exec", dont_inherit=True), module.__dict__)  # noqa: S102
    except Exception as error:
        raise UserError(f"--import {path}: {type(error).__name__}: {error}") from error
    os.environ[VARIABLE] = str(path)
    _run.append({"file": str(path), "sha256": hashlib.sha256(text).hexdigest()})


def imported() -> dict[str, str] | None:
    """Return the file that was run last, with its SHA-256; None: no file was run."""
    return dict(_run[-1]) if _run else None


def command(*words: object, made_with: Source | None = None) -> str:
    """Return a shell command for a message, with the ``--import`` of this process or of a folder.

    Example:
        >>> command("evaluate", "runs/my run")
        "equipoise evaluate 'runs/my run'"
    """
    file = os.environ.get(VARIABLE) or (made_with or {}).get("file")
    options = ("--import", file) if file else ()
    return shlex.join(["equipoise", *options, *map(str, words)])


def source(module: str) -> dict[str, str] | None:
    """Return the source file of an imported module; None: it has none."""
    file = getattr(sys.modules.get(module), "__file__", None)
    digest = _digest(file)
    return {"file": str(Path(str(file)).absolute()), "sha256": digest} if digest else None


def in_words(recorded: Source | None) -> str:
    """Return a recorded source for a message: path, SHA-256, and whether it has changed."""
    if not isinstance(recorded, Mapping) or "file" not in recorded:
        return "the file is not recorded"
    file, digest = (_harmless(recorded.get(key)) for key in ("file", "sha256"))
    now = _digest(str(recorded["file"]))
    state = "" if now == digest else ", which is missing" if now is None else f", now {now}"
    return f"{file}, SHA-256 {digest}{state}"


def changed(recorded: object, now: object) -> str:
    """Return a warning if a source differs from the one that a folder records; else nothing.

    Arguments:
        recorded: The source that the folder records; a value that is no mapping counts as none.
        now: The source that is used now.
    """
    if not isinstance(recorded, Mapping) or not isinstance(now, Mapping):
        return ""
    if (first := _harmless(recorded.get("sha256"))) == (last := _harmless(now.get("sha256"))):
        return ""
    before, after = _harmless(recorded.get("file")), _harmless(now.get("file"))
    return f"the code has changed: {before} had SHA-256 {first}, {after} has {last}"


@contextmanager
def explained(recorded: Source | None) -> Iterator[None]:
    """Add the file of code that a folder records, if any, to the errors of the block."""
    try:
        yield
    except UserError as error:
        last = imported()
        if not recorded or (last and last["sha256"] == recorded.get("sha256")):
            raise
        raise UserError(
            f"{error}. This was made with --import ({in_words(recorded)}): read that file, then "
            f"add --trust, or equipoise --import {_harmless(recorded.get('file'))}"
        ) from None


def run_trusted(recorded: Source | None, warn: Callable[[str], None]) -> None:
    """Run the file that a folder records, if any, because the user trusts the folder.

    ``warn`` shows a line if the file has changed.
    """
    if not recorded or any(file["sha256"] == recorded.get("sha256") for file in _run):
        return
    run(Path(str(recorded.get("file"))), first=False)
    if line := changed(recorded, imported()):
        warn(line)


def trusted_module(file: Path) -> Callable[[str], ModuleType]:
    """Return a function that imports a module from the file that a folder records.

    Only the text of files is run, never compiled files.
    """

    def load(name: str) -> ModuleType:
        place = file.parent if file.name == "__init__.py" else file.with_suffix("")
        parts = name.split(".")
        root = place.parents[len(parts) - 1] if len(parts) <= len(place.parents) else place
        if place != root.joinpath(*parts) or not file.is_file():
            raise UserError(f"there is no module {name} at {file}: give it with --model")
        _find(root, first=False)
        module = importlib.import_module(name)
        if Path(str(module.__file__)).resolve() != file.resolve():
            raise UserError(f"another module {name} is loaded already: {module.__file__}")
        return module

    return load


def _find(root: Path, *, first: bool) -> None:
    """Make the modules of a folder importable, as text; ``first``: before installed ones."""
    if str(root) in sys.path:
        return
    finder = FileFinder.path_hook((_Text, [".py"]))

    def hook(path: str) -> PathEntryFinder:
        if not Path(path).is_relative_to(root):
            raise ImportError(path)
        return finder(path)

    sys.path_hooks.insert(0, hook)
    sys.path.insert(0 if first else len(sys.path), str(root))
    for path in [key for key in sys.path_importer_cache if Path(key).is_relative_to(root)]:
        del sys.path_importer_cache[path]


class _Text(SourceFileLoader):
    """Loads the text of a module, never a compiled file."""

    def get_code(self, fullname: str) -> CodeType:
        path = self.get_filename(fullname)
        return compile(self.get_data(path), path, "exec", dont_inherit=True)


def _digest(file: object) -> str | None:
    path = Path(str(file))
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None
    except OSError:
        return None


def _harmless(value: object) -> str:
    """Return text from a file of unknown origin, without control characters."""
    return "".join(c if c.isprintable() else "?" for c in str(value))[:300]
