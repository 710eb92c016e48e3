"""Commands on an engine: anything with ``submit``, like ``concurrent.futures``.

The engine decides when and where a command runs. The machines share the folders of the runs, and
a request to stop is a file there, as no engine can send a signal to what runs.
"""

import math
import os
import re
import secrets
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from equipoise.errors import RunError, UserError
from equipoise.plans import remote
from equipoise.plans.processes import LOST, note

_ERROR = re.compile(r"[\w.]*(Error|Exception|Exit|Interrupt)\b")


class Future(Protocol):
    """What an engine returns for a call: a future of ``concurrent.futures``, or alike."""

    def done(self) -> bool:
        """Return whether the call has ended."""

    def result(self) -> int:
        """Return what the call returned, or raise its error."""

    def cancel(self) -> object:
        """Take the call back, if it has not begun."""


@dataclass(frozen=True)
class Engine:
    """A connected engine.

    Arguments:
        submit: Takes a function and its arguments, and returns a future.
        close: Ends the connection.
    """

    submit: Callable[..., Future]
    close: Callable[[], object]


@dataclass(frozen=True)
class _Call:
    future: Future
    log: Path
    token: str


class Futures:
    """Commands on an engine; see :class:`equipoise.plans.executor.Executor`.

    Arguments:
        name: The text of ``--on``.
        connect: Connects the engine; its argument is a folder for files of the engine.
    """

    slots = sys.maxsize
    """All commands are submitted: the engine decides how many run at a time."""

    def __init__(self, name: str, connect: Callable[[Path], Engine]) -> None:
        self.name, self.connect = name, connect
        self.engine: Engine | None = None
        self.calls: dict[str, _Call] = {}
        self.dropped: dict[str, int] = {}
        self.used = False  # whether it has taken a command
        self.stopping = math.inf  # since when, in seconds

    def submit(
        self, name: str, words: Sequence[str], log: Path, environment: Mapping[str, str]
    ) -> None:
        """Submit a command.

        Raises:
            UserError: If the engine cannot be reached.
            RunError: If it was reached before, and does not take this command.
        """
        log, token = log.absolute(), secrets.token_hex(4)
        environment = {**remote.environment_here(), **environment}
        folder, call = os.getcwd(), (remote.work, tuple(words), str(log), environment)
        if self.engine is None:
            self.engine = self.connect(log.parent)
        try:
            future = self.engine.submit(*call, folder, token)
        except Exception as error:
            line = f"--on {self.name} takes no command: {reason(error)}"
            if self.used:
                raise RunError(f"{line}; what is done is kept: repeat the command") from None
            raise UserError(line) from None
        self.used = True
        self.calls[name] = _Call(future, log, token)

    def poll(self) -> dict[str, int]:
        """Return the commands that have ended; see :class:`equipoise.plans.executor.Executor`."""
        ended, self.dropped = self.dropped, {}
        for name, call in list(self.calls.items()):
            if call.future.done() or self._abandoned(call):
                ended[name] = self._code(call)
                self._forget(name)
        return ended

    def stop(self, *, now: bool = False) -> None:
        """End the commands; those that the engine has not begun are taken back."""
        asked = self.calls if now or self.stopping == math.inf else {}
        for name, call in list(asked.items()):
            if begun := remote.begun(call.log, call.token):
                text = f"{call.token} {remote.NOW}" if now else call.token
                remote.stop_file(call.log).write_text(text, encoding="utf-8")
            if now or not begun:
                call.future.cancel()
                self.dropped[name] = LOST
                del self.calls[name]
        self.stopping = min(self.stopping, time.monotonic())
        self._close_at_the_end()

    def _abandoned(self, call: _Call) -> bool:
        """Return whether a command that was told to stop runs no more, though its future waits."""
        long_ago = time.monotonic() > self.stopping + remote.SAVING_SECONDS
        return long_ago and remote.idle(call.log)

    def _forget(self, name: str) -> None:
        remote.stop_file(self.calls.pop(name).log).unlink(missing_ok=True)
        self._close_at_the_end()

    def _close_at_the_end(self) -> None:
        if self.stopping < math.inf and not self.calls and self.engine is not None:
            self.engine.close()
            self.engine = None

    def _code(self, call: _Call) -> int:
        """Return the exit code of a command that has ended, or was lost."""
        try:
            return call.future.result() if call.future.done() else LOST
        except Exception as error:
            note(call.log, f"lost by --on {self.name}: {reason(error)}")
            return LOST


def reason(error: BaseException) -> str:
    """Return an error in a line: its first one, or the error of the last traceback in it."""
    lines = [line.strip() for line in str(error).splitlines() if any(map(str.isalnum, line))]
    if any(line.startswith("Traceback ") for line in lines):
        traced = [line for line in lines if _ERROR.match(line)]
        return (traced or lines)[-1][:300]
    return ": ".join([type(error).__name__, *lines[:1]])[:300]
