"""The answer of one check of an evaluation. No torch is imported."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Self, get_args

Status = Literal["failed", "warning", "ok", "skipped"]

STATUSES: tuple[Status, ...] = get_args(Status)  # in the order in which they are shown
ALARMS: tuple[Status, ...] = ("failed", "warning")


@dataclass(frozen=True, kw_only=True, repr=False)
class Finding:
    """The answer of one check.

    Arguments:
        check: The name of the check, one of
            :data:`equipoise.evaluation.checks.finding.CHECKS`; of an attack that has a name, with
            that after a colon.
        code: Its number in the list of automatic checks.
        status: ``"ok"``; ``"warning"``: the number may be too good; ``"failed"``: it cannot be
            trusted; ``"skipped"``: the question does not arise or cannot be answered.
        message: What was seen and what it means, in one line.
        remedy: What to do about it, in one line; empty where there is nothing to do.
        measured: The numbers behind it, all finite.
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
        """Whether the number that was checked may be wrong."""
        return self.status in ALARMS

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> Self:
        """Return the finding that plain values describe.

        Raises:
            KeyError, TypeError, ValueError: If they describe none.
        """
        finding = cls(**content)
        if finding.status not in STATUSES:
            raise ValueError(f"unknown status {finding.status}")
        return finding
