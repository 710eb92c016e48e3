"""Files that are written whole or not at all. No torch."""

import errno
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from equipoise.errors import RunError, UserError
from equipoise.store.locks import locked

_FULL = (errno.ENOSPC, errno.EDQUOT)
_PLACE = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.EEXIST}
_PLACE |= {errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP}


def write(
    path: Path,
    content: str | bytes | Callable[[BinaryIO], object],
    *,
    keep: Path | None = None,
    again: str = "",
) -> None:
    """Write a temporary file, flush it, and rename it to the file's name.

    Arguments:
        path: The file; its folder is made if necessary.
        content: The content; text is written as UTF-8, a function is called with the open file.
        keep: The new path of the file that is replaced; None: it is not kept.
        again: The command that continues after a full disk, for the message.

    Raises:
        UserError: If no file can be written there.
        RunError: If the disk is full or fails. The former file is intact.
    """
    temporary = path.with_name(f".{path.name}.part")
    if path.exists() and not path.is_file():  # not even a device is replaced
        raise UserError(f"cannot write {path}: it is no file; choose another path")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            if callable(content):
                content(file)
            else:
                file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        if keep is not None and path.exists():
            path.replace(keep)
        temporary.replace(path)
    except OSError as error:
        with suppress(OSError):  # its folder may be missing
            temporary.unlink()
        raise _failure(error, path, again) from None


@contextmanager
def whole(out: Path) -> Iterator[Path]:
    """Make a new file or folder, which is there whole or not at all.

    Yields:
        The path at which the block makes it; it is renamed at the end, and removed after an error.

    Raises:
        UserError: If something is there, or nothing can be made there.
    """
    try:
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise UserError(f"{out} exists; choose another --out")
        out = out.absolute()
        work, lock = out.with_name(f".{out.name}.part"), out.with_name(f".{out.name}.lock")
        out.parent.mkdir(parents=True, exist_ok=True)
        with locked(lock, f"another process writes {out}; choose another --out"):
            _remove(work)
            try:
                yield work
                work.replace(out)
            finally:
                _remove(work)
    except OSError as error:
        raise UserError(f"cannot write {out}: {error.strerror}; choose another --out") from None


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def refuse_foreign(path: Path, *begins: bytes) -> None:
    """Refuse to replace a file that begins in none of these ways.

    Raises:
        UserError: If there is one: it may be somebody's weights or recipe.
    """
    if path.is_file() and path.stat().st_size:
        with path.open("rb") as file:
            start = file.read(max(map(len, begins)))
        if not start.startswith(begins):
            raise UserError(f"{path} exists and is another kind of file; choose another path")


def append_line(path: Path, content: Mapping[str, Any], again: str = "") -> None:
    """Append an object to a file of JSON lines; a line cut by a crash is dropped first."""
    try:
        with path.open("ab+") as file:
            file.seek(0)
            data = file.read()
            whole = data.rfind(b"\n") + 1
            if whole < len(data) and _is_json(data[whole:]):
                file.write(b"\n")
            else:
                file.truncate(whole)
            file.write((json.dumps(content) + "\n").encode())
    except OSError as error:
        raise _failure(error, path, again) from None


def _is_json(text: bytes) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _failure(error: OSError, path: Path, again: str) -> UserError | RunError:
    """Return the error of a failed write, with its remedy."""
    if error.errno in _FULL:
        command = f" with: {again}" if again else ""
        return RunError(
            f"the disk is full: {path} was not written; the former file is intact. Free some "
            f"space and continue{command}"
        )
    if error.errno in _PLACE:
        return UserError(f"cannot write {path}: {error.strerror}; choose another path")
    return RunError(f"cannot write {path}: {error.strerror}; the former file is intact")
