"""What was measured at one place between two ends."""

__all__ = ["Point"]

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

from equipoise.measures.statistics import interval


@dataclass(frozen=True, kw_only=True)
class Point:
    r"""The model :math:`(1 - \gamma) \theta_n + \gamma \theta_r` on the same n held-out images.

    Arguments:
        gamma: How much the robust end counts; outside [0, 1] the line goes on beyond an end.
        n: How many images there are.
        clean: How many of them are classified correctly.
        robust: How many of these withstood every attack.
        transferred: How many were fooled by examples of neighbouring points, before any search.
        searched: How many the first attack was run on: the rest, or the correct ones.
        forwards: Images that passed forward through the model in the searches.
        backwards: Images that passed backward through it.
        seconds: The time the searches took.
        sha256: The checksum of the weights: :func:`equipoise.store.digests.model_digest`.
        file: The file of the verdicts and adversarial examples, from the run folder.
    """

    gamma: float
    n: int
    clean: int
    robust: int
    transferred: int = 0
    searched: int = 0
    forwards: int = 0
    backwards: int = 0
    seconds: float = 0.0
    sha256: str = ""
    file: str = ""

    @property
    def clean_accuracy(self) -> float:
        """The share of images that are classified correctly, in [0, 1]."""
        return self.clean / self.n

    @property
    def robust_accuracy(self) -> float:
        """The share of images that also withstood the attacks, in [0, 1]: an upper bound."""
        return self.robust / self.n

    @property
    def clean_interval(self) -> tuple[float, float]:
        """The exact 95 % interval of the clean accuracy."""
        return interval(self.clean, self.n)

    @property
    def robust_interval(self) -> tuple[float, float]:
        """The exact 95 % interval of the robust accuracy."""
        return interval(self.robust, self.n)

    def content(self) -> dict[str, Any]:
        """Return the point as plain values, accuracies and intervals among them."""
        return asdict(self) | {
            "clean_accuracy": self.clean_accuracy,
            "clean_interval": list(self.clean_interval),
            "robust_accuracy": self.robust_accuracy,
            "robust_interval": list(self.robust_interval),
        }

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> Self:
        """Return the point that plain values describe.

        Raises:
            KeyError: If a value is missing; ``TypeError`` or ``ValueError`` if one will not do.
        """
        kinds = {"file": str, "sha256": str, "gamma": float, "seconds": float}
        given = {f.name: kinds.get(f.name, int)(content[f.name]) for f in fields(cls)}
        point = cls(**given)
        if not 0 <= point.robust <= point.clean <= point.n or point.n < 1:
            raise ValueError(f"counts out of order at gamma = {point.gamma}")
        return point
