"""What an engine runs for a command, on any machine that shares the folder of its log."""

import os
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from equipoise.errors import UserError
from equipoise.plans.processes import BUSY, LOST, lock_of, note, start
from equipoise.store.locks import Busy, locked

LOOK_SECONDS = 0.5
GRACE_SECONDS = 5.0  # for a command that was told to stop by others
SAVING_SECONDS = 60.0
NOW = "now"  # in the file of a request to stop: the command is killed


def work(
    words: Sequence[str], log: str, environment: Mapping[str, str], folder: str, token: str
) -> int:
    """Run ``equipoise WORDS`` until it ends, and return its exit code.

    It ends early if the file of :func:`stop_file` names the token.

    Arguments:
        words: The command.
        log: The file to which its output is added.
        environment: Environment variables of the command.
        folder: The current folder of the command.
        token: A text that is unique to this call. Engines repeat a call whose machine was lost,
            but the command may have begun its work by then: it is not run a second time.

    Returns:
        The exit code; ``BUSY``: another process runs a command with this log; ``LOST``: this call
        is a repetition.

    Raises:
        UserError: If this machine does not have the folders.
    """
    path, host = Path(log), socket.gethostname()
    for each in (path.parent, Path(folder)):
        if not each.is_dir():
            raise UserError(f"{each} is not on {host}: all machines must share it")
    if begun(path, token):
        note(path, f"the engine repeats a command on {host}: it was lost where it ran before")
        return LOST
    started = start(words, path, environment, folder=folder, remark=f"on {host}, {token}")
    if started is None:
        return BUSY
    process, lock = started
    with lock:
        try:
            return _until_it_ends(process, stop_file(path), token)
        finally:
            _end(process)


def begun(log: Path, token: str) -> bool:
    """Return whether the call with this token has started its command."""
    text = log.read_text(encoding="utf-8", errors="replace") if log.is_file() else ""
    return any(line.endswith(f", {token}") for line in text.splitlines())


def stop_file(log: Path) -> Path:
    """Return the file that asks to stop the command of a log."""
    return log.with_name(f".{log.stem}.stop")


def idle(log: Path) -> bool:
    """Return whether no process runs a command with this log."""
    try:
        with locked(lock_of(log), "busy"):
            return True
    except Busy:
        return False


def _until_it_ends(process: "subprocess.Popen[bytes]", stop: Path, token: str) -> int:
    asked = False
    while (code := process.poll()) is None:
        time.sleep(LOOK_SECONDS)
        with suppress(OSError, UnicodeDecodeError):
            wanted = stop.read_text(encoding="utf-8").split()
            if wanted == [token, NOW]:
                process.kill()
            elif wanted == [token] and not asked:
                asked = True
                process.terminate()
    return code


def _end(process: "subprocess.Popen[bytes]") -> None:
    """End a command that still runs, as this call is being ended: it saves."""
    for seconds, act in ((GRACE_SECONDS, process.terminate), (SAVING_SECONDS, process.kill)):
        with suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
            return
        act()
    process.wait()


def environment_here() -> dict[str, str]:
    """Return the environment variables that commands need on other machines, too."""
    names = ("EQUIPOISE_DATA", "EQUIPOISE_IMPORT")
    return {name: os.environ[name] for name in names if name in os.environ}
