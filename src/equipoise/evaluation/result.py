"""What an evaluation found: a verdict an example and attack, and all that follows from them."""

__all__ = ["Result"]

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import torch
from torch import Tensor

from equipoise.errors import UserError
from equipoise.metrics import interval
from equipoise.threat import Threat


@dataclass(frozen=True, kw_only=True)
class Result:
    """The verdicts of several attacks on one model under one threat.

    Arguments:
        threat: What the attacks were allowed.
        y: The labels, with shape (N,).
        prediction: The answers on clean inputs, with shape (N,).
        x_adv: For each example the allowed point with the smallest margin that any attack
            found, with shape (N, ...); where the clean input is misclassified it is that input.
        margin: By how much ``x_adv`` is classified correctly, with shape (N,); infinite where
            there was no attack or nothing allowed was found.
        adversarial_prediction: The answers on ``x_adv``, with shape (N,).
        verdicts: For each attack whether each example withstood it, with shape (N,).
        settings: For each attack its settings, in words.
        seconds: For each attack the time it took.
        rejected: For each attack how many of its points were not allowed.
        seed: The seed of the attacks' randomness.
        classes: The names of the classes, or nothing.
    """

    threat: Threat
    y: Tensor
    prediction: Tensor
    x_adv: Tensor
    margin: Tensor
    adversarial_prediction: Tensor
    verdicts: Mapping[str, Tensor]
    settings: Mapping[str, str] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    rejected: Mapping[str, int] = field(default_factory=dict)
    seed: int = 0
    classes: Sequence[str] = ()

    @property
    def correct(self) -> Tensor:
        """Tell which clean inputs are classified correctly, with shape (N,)."""
        return self.prediction == self.y

    @property
    def robust(self) -> Tensor:
        """Tell which examples withstood every attack, with shape (N,)."""
        robust = self.correct.clone()
        for verdict in self.verdicts.values():
            robust &= verdict
        return robust

    @property
    def clean_accuracy(self) -> float:
        """Return the accuracy on clean inputs, in [0, 1]."""
        return _mean(self.correct)

    @property
    def robust_accuracy(self) -> float:
        """Return the accuracy under the worst of the attacks for each example, in [0, 1]."""
        if not self.verdicts:
            raise UserError("no attack was run, so nothing is known of the robust accuracy")
        return _mean(self.robust)

    def joined(self, before: "Result | None") -> "Result":
        """Return these verdicts together with those of an earlier result on the same points.

        The worst case is then that of all attacks, and of two points the stronger one is kept.
        """
        if before is None:
            return self
        stronger = before.margin < self.margin
        mask = stronger.view(-1, *[1] * (self.x_adv.ndim - 1))
        return replace(
            self,
            verdicts={**before.verdicts, **self.verdicts},
            margin=torch.minimum(before.margin, self.margin),
            x_adv=torch.where(mask, before.x_adv, self.x_adv),
            adversarial_prediction=torch.where(
                stronger, before.adversarial_prediction, self.adversarial_prediction
            ),
        )

    def records(self) -> list[dict[str, Any]]:
        """Return a record for the clean accuracy, each attack and the worst case."""
        rows = {"clean": self.correct, **self.verdicts}
        records = [self._record(name, verdict) for name, verdict in rows.items()]
        if self.verdicts:
            worst = self._record("worst-case", self.robust)
            records.append(worst | {"attacks": list(self.verdicts)})
        return records

    def _record(self, name: str, verdict: Tensor) -> dict[str, Any]:
        n, robust = len(verdict), int(verdict.sum())
        per_class = self._per_class(verdict)
        worst = min(per_class, key=lambda c: per_class[c]["accuracy"], default=None)
        warnings = []
        if self.rejected.get(name):
            warnings.append(
                f"{self.rejected[name]} points were outside the threat and did not count"
            )
        return {
            "attack": name,
            "settings": self.settings.get(name, ""),
            "norm": self.threat.norm,
            "eps": self.threat.eps,
            "n": n,
            "robust": robust,
            "accuracy": robust / n if n else 0.0,
            "interval": list(interval(robust, n)),
            "per_class": per_class,
            "worst_class": worst and {"name": worst, "accuracy": per_class[worst]["accuracy"]},
            "seconds": round(self.seconds.get(name, 0.0), 3),
            "seed": self.seed,
            "warnings": warnings,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
        }

    def _per_class(self, verdict: Tensor) -> dict[str, dict[str, Any]]:
        table = {}
        for label in torch.unique(self.y).tolist():
            name = self.classes[label] if self.classes else str(label)
            mine = verdict[self.y == label]
            table[name] = {"n": len(mine), "robust": int(mine.sum()), "accuracy": _mean(mine)}
        return table


def _mean(flags: Tensor) -> float:
    return float(flags.double().mean()) if len(flags) else 0.0
