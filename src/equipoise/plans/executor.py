"""Where commands run: an interface of three calls, and child processes on this machine.

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
from typing import Protocol

from equipoise.errors import UserError
from equipoise.plans import child_process
from equipoise.store.locks import Busy, locked

BUSY = 75  # EX_TEMPFAIL of sysexits.h: nothing failed, and the command can be tried again
FORMS = "local:N"


class Executor(Protocol):
    """Runs commands, several at a time; one at a time with each name and log."""

    @property
    def slots(self) -> int:
        """Return how many commands may be submitted at a time."""

    def submit(
        self, name: str, words: Sequence[str], log: Path, environment: Mapping[str, str]
    ) -> None:
        """Start ``equipoise WORDS``, whose output is added to the log, in an existing folder."""

    def poll(self) -> dict[str, int]:
        """Return the exit codes of commands that have ended since the last call, by name.

        The code of a command that a signal ended is the signal's number, negative. ``BUSY``: it
        was not started, as another process runs a command with this log.
        """

    def stop(self, *, now: bool = False) -> None:
        """Terminate every command once, so that it saves and ends; ``now``: kill them all."""


def of(text: str) -> Executor:
    """Return the executor that the text of ``--on`` names.

    Raises:
        UserError: If it names none.
    """
    kind, _, rest = text.partition(":")
    if kind != "local" or not rest.isdecimal():
        raise UserError(f"expected --on {FORMS}, like local:2, got {text!r}")
    if int(rest) < 1:
        raise UserError(f"expected at least one process in --on, like local:2, got {text!r}")
    return LocalProcesses(int(rest))


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
        """Start a command; see :meth:`Executor.submit`."""
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
        """Return the commands that have ended; see :meth:`Executor.poll`."""
        ended, self.busy = self.busy, {}
        for name, (process, lock) in list(self.running.items()):
            code = process.poll()
            if code is not None:
                lock.close()
                del self.running[name]
                ended[name] = code
        return ended

    def stop(self, *, now: bool = False) -> None:
        """End the commands; see :meth:`Executor.stop`."""
        for name, (process, _) in self.running.items():
            if now:
                process.kill()
            elif name not in self.terminated:
                self.terminated.add(name)
                process.terminate()


def start(
    words: Sequence[str], log: Path, environment: Mapping[str, str]
) -> tuple[subprocess.Popen[bytes], ExitStack] | None:
    """Start ``equipoise WORDS`` as a child process, and note it in its log.

    Returns:
        The process, and what ends the lock on its log; None: another process has that lock.
    """
    lock = ExitStack()
    try:
        handles = lock.enter_context(locked(log.with_name(f".{log.stem}.lock"), "busy"))
    except Busy:
        return None
    with log.open("a", encoding="utf-8") as file:
        file.write(f"$ {shlex.join(['equipoise', *words])}\n")
    return spawn(words, log, environment, handles), lock


def spawn(
    words: Sequence[str], log: Path, environment: Mapping[str, str], lock: tuple[int, ...]
) -> subprocess.Popen[bytes]:
    """Start ``equipoise WORDS``, which ends with this process and holds the handles of a lock."""
    command = (sys.executable, "-P", child_process.__file__, str(os.getpid()), *words)
    with log.open("ab") as file:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            env=os.environ | environment,
            process_group=0,  # Ctrl-C reaches this process only, which stops the others
            pass_fds=lock,
        )
