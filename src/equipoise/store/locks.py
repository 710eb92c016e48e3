"""Locks between processes: one of them works, the others wait or are refused.

A lock is a hidden file beside what it guards. Where the system has ``flock``, the lock ends with
the process that holds it, however that ends, and with those that were handed its handle.
Elsewhere :mod:`filelock` does what the system allows: on Windows the same; else the file holds
the number of the process, and is taken over when that process is gone.
"""

import errno
import os
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from equipoise.errors import UserError

try:
    import fcntl
except ImportError:  # not on this system
    fcntl = None  # type: ignore[assignment]

LOOK_SECONDS = 0.05
SOFT_SECONDS = 0.2  # a file that a dead process left is taken over at the second look
WITHOUT_FLOCK = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)  # some network file systems

_Held = tuple[tuple[int, ...], Callable[[], object]]


@contextmanager
def locked(
    path: Path, busy: str, *, wait: float = 0.0, waiting: Callable[[], object] | None = None
) -> Iterator[tuple[int, ...]]:
    """Keep other processes out while the block runs.

    Arguments:
        path: The file of the lock, in a folder that is there; it is removed at the end.
        busy: What is said when another process has the lock.
        wait: How many seconds to wait for it.
        waiting: Called once when it has to be waited for.

    Yields:
        Handles to hand on to child processes, which then hold the lock, too; none where that
        is not possible.

    Raises:
        UserError: If another process has the lock, or the file cannot be made.
    """
    until, announced = time.monotonic() + wait, waiting is None
    while (held := _take(path)) is None:
        if time.monotonic() >= until:
            raise UserError(busy)
        if not announced and waiting is not None:
            announced = True
            waiting()
        time.sleep(LOOK_SECONDS)
    handles, release = held
    try:
        yield handles
    finally:
        release()


def free_of_locks(folder: Path) -> bool:
    """Tell whether a folder is empty but for locks and what was cut off while it was written."""
    left = (path.name for path in folder.iterdir())
    return all(name.startswith(".") and name.endswith((".lock", ".part")) for name in left)


def _take(path: Path) -> _Held | None:
    """Return the lock with the function that ends it; None: another process has it."""
    try:
        return _by_file(path) if fcntl is None else _by_flock(path)
    except OSError as error:
        raise UserError(f"cannot write to {path.parent}: {error.strerror}") from None


def _by_flock(path: Path) -> _Held | None:
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(handle).st_nlink:  # else whoever had it has removed it meanwhile
            return (handle,), lambda: _end(path, handle)
    except BlockingIOError:
        pass
    except OSError as error:
        if error.errno in WITHOUT_FLOCK:
            _end(path, handle)
            return _by_file(path.with_suffix(".pid.lock"))
        raise
    os.close(handle)
    return None


def _end(path: Path, handle: int) -> None:
    path.unlink(missing_ok=True)  # before the handle is closed: it is still ours
    os.close(handle)


def _by_file(path: Path) -> _Held | None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns where there is no flock
        import filelock
    lock = (filelock.FileLock if fcntl is None else filelock.SoftFileLock)(path)
    try:
        lock.acquire(timeout=SOFT_SECONDS, poll_interval=SOFT_SECONDS / 4)
    except filelock.Timeout:
        return None
    return (), lock.release
