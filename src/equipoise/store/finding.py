"""The result of one check of an evaluation. No torch is imported."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Self, get_args

Status = Literal["failed", "warning", "ok", "skipped"]

STATUSES: tuple[Status, ...] = get_args(Status)  # in the order in which they are shown


@dataclass(frozen=True, kw_only=True, repr=False)
class Finding:
    """The result of one check.

    Arguments:
        check: The name of the check, one of
            :data:`equipoise.evaluation.checks.finding.CHECKS`; for a check of a named attack,
            followed by a colon and that name.
        code: Its number in the list of automatic checks.
        status: ``"ok"``; ``"warning"``: the accuracy may be too high; ``"failed"``: it cannot be
            trusted; ``"skipped"``: the check does not apply or was not possible.
        message: The observation and its meaning, in one line.
        remedy: What to do, in one line; empty if nothing is to be done.
        measured: The measured numbers, all finite.
    """

    check: str
    code: str
    status: Status
    message: str
    remedy: str = ""
    measured: Mapping[str, float] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"Finding({self.status}: {self.check}: {self.message})"

    def record(self) -> dict[str, Any]:
        """Return the finding for a JSON file."""
        return asdict(self)

    @property
    def alarm(self) -> bool:
        """Whether the accuracy may be wrong."""
        return self.status in ("failed", "warning")

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> Self:
        """Return the finding of :meth:`record`; raise a TypeError or ValueError if it is none."""
        finding = cls(**content)
        if finding.status not in STATUSES:
            raise ValueError(f"unknown status {finding.status}")
        return finding
