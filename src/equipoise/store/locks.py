"""Locks between processes: one of them works, the others wait or stop with an error.

A lock is a hidden file. With ``flock`` it ends when the process that holds it, and all child
processes with its handle, have ended. On other systems :mod:`filelock` is used: on Windows it does
the same. Where a file system has no ``flock``, the file names the process, which touches it
regularly: a dead process of this machine loses the lock at once, one of another machine, or one
that was halted, after ``LEASE_SECONDS``.
"""

import errno
import os
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from equipoise.errors import UserError

if TYPE_CHECKING:
    from filelock import BaseFileLock

try:
    import fcntl
except ImportError:  # not on this system
    fcntl = None  # type: ignore[assignment]

LOOK_SECONDS = 0.05
LEASE_SECONDS = 60.0
SOFT_SECONDS = 0.2  # the file of a dead process is removed at the second look
WITHOUT_FLOCK = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)  # some network file systems


class Busy(UserError):
    """Another process has the lock."""


_Held = tuple[tuple[int, ...], Callable[[], object]]


@contextmanager
def locked(
    path: Path, busy: str, *, wait: float = 0.0, waiting: Callable[[], object] | None = None
) -> Iterator[tuple[int, ...]]:
    """Keep other processes out while the block runs.

    Arguments:
        path: The file of the lock, in an existing folder; it is removed at the end.
        busy: The message if another process has the lock.
        wait: How many seconds to wait for it.
        waiting: Called once if it has to wait.

    Yields:
        Handles for child processes, which then hold the lock, too; empty on systems without them.

    Raises:
        Busy: If another process has the lock.
        UserError: If the file cannot be made.
    """
    until = time.monotonic() + wait
    while (held := _take(path)) is None:
        if time.monotonic() >= until:
            raise Busy(busy)
        if waiting is not None:
            waiting()
            waiting = None
        time.sleep(LOOK_SECONDS)
    handles, release = held
    try:
        yield handles
    finally:
        release()


def free_of_locks(folder: Path) -> bool:
    """Return whether a folder has no files, except locks and incomplete files."""
    names = (path.name for path in folder.iterdir())
    return all(name.startswith(".") and name.endswith((".lock", ".part")) for name in names)


def _take(path: Path) -> _Held | None:
    """Return the handles of the lock and the function that ends it; None: it is not free."""
    try:
        return _by_file(path) if fcntl is None else _by_flock(path)
    except OSError as error:
        raise UserError(f"cannot write to {path.parent}: {error.strerror}; use another") from None


def _by_flock(path: Path) -> _Held | None:
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(handle).st_nlink:  # 0: another process has just removed it
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
    path.unlink(missing_ok=True)  # before the handle is closed: the lock is still held
    os.close(handle)


def _by_file(path: Path) -> _Held | None:
    lock = _file_lock(path.absolute())
    if lock.is_locked:  # by this process: it would be taken twice
        return None
    try:
        lock.acquire(timeout=SOFT_SECONDS, poll_interval=SOFT_SECONDS / 4)
    except TimeoutError:
        return None
    return (), lock.release


@cache
def _file_lock(path: Path) -> "BaseFileLock":
    """Return the lock of a file, always the same: it remembers how long another one is silent."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns where there is no flock
        import filelock
    if fcntl is None:
        return filelock.FileLock(path, thread_local=False)
    return filelock.SoftFileLease(path, lease_duration=LEASE_SECONDS, thread_local=False)
