"""Where the commands of tasks run: an interface of three calls, and child processes here."""

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from equipoise.plans import child_process
from equipoise.plans.task import Task


class Executor(Protocol):
    """Runs commands of tasks, several at a time; a task has one command at a time."""

    @property
    def slots(self) -> int:
        """Return how many commands run at a time."""

    def submit(self, task: Task, words: Sequence[str]) -> None:
        """Start ``equipoise WORDS``, whose output is added to the task's log."""

    def poll(self) -> dict[str, int]:
        """Return the exit codes of commands that have ended since the last call, by task name.

        The code of a command that a signal ended is the signal's number, negative.
        """

    def stop(self, *, now: bool = False) -> None:
        """Terminate every command once, so that it saves and ends; ``now``: kill them all."""


class LocalProcesses:
    """Child processes on this machine, which end with this process.

    Arguments:
        slots: How many run at a time, each with its share of the threads.
        lock: Handles of the lock on the folder, which the processes hold until they end.
    """

    def __init__(self, slots: int, lock: tuple[int, ...]) -> None:
        self.slots, self.lock = slots, lock
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        self.terminated = set[str]()  # a second SIGTERM would end a command without saving

    def submit(self, task: Task, words: Sequence[str]) -> None:
        """Start a command; see :meth:`Executor.submit`."""
        given = os.environ.get("OMP_NUM_THREADS", "")
        cores = int(given) if given.isdigit() else os.cpu_count() or 1
        environment = {"OMP_NUM_THREADS": str(max(1, cores // self.slots))}
        if task.recipe.data_dir is not None:  # also if the run was begun with another folder
            environment["EQUIPOISE_DATA"] = task.recipe.data_dir
        self.running[task.name] = spawn(words, task.log, environment, self.lock)
        self.terminated.discard(task.name)

    def poll(self) -> dict[str, int]:
        """Return the commands that have ended; see :meth:`Executor.poll`."""
        codes = {name: process.poll() for name, process in self.running.items()}
        ended = {name: code for name, code in codes.items() if code is not None}
        for name in ended:
            del self.running[name]
        return ended

    def stop(self, *, now: bool = False) -> None:
        """End the commands; see :meth:`Executor.stop`."""
        for name, process in self.running.items():
            if now:
                process.kill()
            elif name not in self.terminated:
                self.terminated.add(name)
                process.terminate()


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
