"""Files of a report appear whole or not at all."""

__all__ = ["write"]

import os
import tempfile
from pathlib import Path

from equipoise.errors import UserError


def write(out: Path, content: str | bytes) -> None:
    """Write a file beside its place and move it there.

    Arguments:
        out: The file; its folder is made if need be.
        content: What it holds; text is written as UTF-8.

    Raises:
        UserError: where it cannot be written; then nothing has changed.
    """
    temporary = ""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=out.parent, prefix=f".{out.name}.")
        with os.fdopen(handle, "wb") as file:
            file.write(content.encode("utf-8") if isinstance(content, str) else content)
        os.chmod(temporary, 0o644)
        os.replace(temporary, out)
    except OSError as error:
        if temporary:
            Path(temporary).unlink(missing_ok=True)
        reason = error.strerror or str(error)
        raise UserError(f"cannot write {out} ({reason}); choose another file") from error
