"""Files that appear whole or not at all. No torch."""

import errno
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from equipoise.errors import RunError, UserError

_FULL = (errno.ENOSPC, errno.EDQUOT)
_PLACE = (PermissionError, NotADirectoryError, IsADirectoryError, FileExistsError)


def write(
    path: Path,
    content: str | bytes | Callable[[BinaryIO], object],
    *,
    keep: Path | None = None,
    again: str = "",
) -> None:
    """Write a file beside its place, flush it, and rename it over what is there.

    Arguments:
        path: The file; its folder is made where there is none.
        content: What it holds; text is written as UTF-8, a function is given the open file.
        keep: The name under which a present file is kept.
        again: The command that goes on after a full disk, for the message.

    Raises:
        UserError: If no file can be written at that place.
        RunError: If the disk is full or fails. What was there before is intact.
    """
    beside = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with beside.open("wb") as file:
            if callable(content):
                content(file)
            else:
                file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        if keep is not None and path.exists():
            path.replace(keep)
        beside.replace(path)
    except OSError as error:
        if not isinstance(error, _PLACE):
            beside.unlink(missing_ok=True)
        raise _failure(error, path, again) from None


def append_line(path: Path, content: Mapping[str, Any], again: str = "") -> None:
    """Append an object to a file of JSON lines; a line cut by a crash is dropped first.

    Arguments:
        path: The file; it is made where there is none.
        content: The object.
        again: As for :func:`write`.
    """
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
    """Return a failure to write as one line with its remedy."""
    if error.errno in _FULL:
        command = f" with: {again}" if again else ""
        return RunError(
            f"the disk is full: {path} was not written, and what was there before is "
            f"intact. Free some space and go on{command}"
        )
    if isinstance(error, _PLACE):
        return UserError(f"cannot write {path}: {error.strerror}; choose another place")
    return RunError(f"cannot write {path}: {error.strerror}; what was there is intact")
