"""Where commands run: an interface of three calls, and what the text of ``--on`` stands for."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

from equipoise.errors import UserError
from equipoise.plans.engines import ENGINES, connection
from equipoise.plans.futures import Futures
from equipoise.plans.processes import LocalProcesses

FORMS = "local:N, slurm, dask[:ADDRESS], ray[:ADDRESS] or module:factory"


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
        was not started, as another process runs a command with this log. ``LOST``: the engine lost
        it; the last line of the log says why.
        """

    def stop(self, *, now: bool = False) -> None:
        """Terminate every command once, so that it saves and ends; ``now``: kill them all.

        No command is submitted after that.
        """


def of(text: str, resources: Mapping[str, Any] = MappingProxyType({})) -> Executor:
    """Return the executor that the text of ``--on`` names.

    An engine is connected at the first command.

    Arguments:
        text: The text.
        resources: What each command needs: :data:`equipoise.plans.engines.RESOURCES`.

    Raises:
        UserError: If it names none, or a package is missing.
    """
    kind, colon, rest = text.partition(":")
    if kind == "local" and rest.isdecimal():
        if int(rest) < 1:
            raise UserError(f"expected at least one process in --on, like local:2, got {text!r}")
        return LocalProcesses(int(rest))
    if kind in ENGINES and (rest or not colon):
        return Futures(text, connection(kind, rest, resources))
    if kind != "local" and rest.isidentifier() and kind.replace(".", "_").isidentifier():
        return Futures(text, connection("", text, resources))
    raise UserError(f"expected --on {FORMS}, got {text!r}")
