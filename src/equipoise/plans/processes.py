"""Commands as child processes on this machine.

Of all processes that share a folder, one runs the commands of a log: it holds a lock next to the
log until its command has ended.
"""

import os
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from equipoise.plans import child_process
from equipoise.store.locks import Busy, locked

BUSY = 75  # EX_TEMPFAIL of sysexits.h: nothing failed, and the command can be tried again
LOST = -1000


class LocalProcesses:
    """Child processes on this machine, which end with this process.

    Arguments:
        slots: How many run at a time, each with its share of the threads.
    """

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self.running: dict[str, tuple[subprocess.Popen[bytes], ExitStack]] = {}
        self.busy: dict[str, int] = {}
        self.terminated = set[str]()  # a second SIGTERM would end a command without saving

    def submit(
        self, name: str, words: Sequence[str], log: Path, environment: Mapping[str, str]
    ) -> None:
        """Start a command; see ``Executor.submit``."""
        given = os.environ.get("OMP_NUM_THREADS", "")
        cores = int(given) if given.isdigit() else os.cpu_count() or 1
        threads = {"OMP_NUM_THREADS": str(max(1, cores // self.slots))}
        started = start(words, log, {**threads, **environment})
        if started is None:
            self.busy[name] = BUSY
        else:
            self.running[name] = started
            self.terminated.discard(name)

    def poll(self) -> dict[str, int]:
        """Return the commands that have ended; see ``Executor.poll``."""
        ended, self.busy = self.busy, {}
        for name, (process, lock) in list(self.running.items()):
            code = process.poll()
            if code is not None:
                lock.close()
                del self.running[name]
                ended[name] = code
        return ended

    def stop(self, *, now: bool = False) -> None:
        """End the commands; see ``Executor.stop``."""
        for name, (process, _) in self.running.items():
            if now:
                process.kill()
            elif name not in self.terminated:
                self.terminated.add(name)
                process.terminate()


def start(
    words: Sequence[str],
    log: Path,
    environment: Mapping[str, str],
    *,
    folder: str | None = None,
    remark: str = "",
) -> tuple[subprocess.Popen[bytes], ExitStack] | None:
    """Start ``equipoise WORDS`` as a child process, and note it in its log.

    Arguments:
        words: The command.
        log: The file to which its output is added.
        environment: Environment variables of the command, with those of this process.
        folder: Its current folder; None: that of this process.
        remark: Stands next to the command in the log.

    Returns:
        The process, and what ends the lock on its log; None: another process has that lock.
    """
    lock = ExitStack()
    try:
        handles = lock.enter_context(locked(lock_of(log), "busy"))
    except Busy:
        return None
    line = f"$ {shlex.join(['equipoise', *words])}"
    with log.open("a", encoding="utf-8") as file:
        file.write(f"{line}  # {remark}\n" if remark else f"{line}\n")
    return spawn(words, log, environment, handles, folder), lock


def lock_of(log: Path) -> Path:
    """Return the lock that whoever runs a command with this log holds."""
    return log.with_name(f".{log.stem}.lock")


def note(log: Path, line: str) -> None:
    """Add a line to a log."""
    with log.open("a", encoding="utf-8") as file:
        file.write(f"equipoise: {line}\n")


def spawn(
    words: Sequence[str],
    log: Path,
    environment: Mapping[str, str],
    lock: tuple[int, ...],
    folder: str | None,
) -> subprocess.Popen[bytes]:
    """Start ``equipoise WORDS``, which ends with this process and holds the handles of a lock."""
    command = (sys.executable, "-P", child_process.__file__, str(os.getpid()), *words)
    with log.open("ab") as file:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            cwd=folder,
            env=os.environ | environment,
            process_group=0,  # Ctrl-C reaches this process only, which stops the others
            pass_fds=lock,
        )
