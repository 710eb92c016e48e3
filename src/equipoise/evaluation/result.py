"""The result of an evaluation: a verdict for each example and attack, and all numbers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from equipoise.data.rows import chosen
from equipoise.errors import UserError
from equipoise.evaluation.outcome import TRANSFER, Outcome
from equipoise.store.audit import Audit
from equipoise.store.corruptions import Corruptions
from equipoise.store.finding import Finding
from equipoise.store.verdicts import Verdicts
from equipoise.terminal.table import TextTable, accuracy
from equipoise.threat import Threat


@dataclass(frozen=True, kw_only=True, repr=False)
class Result:
    """The verdicts of several attacks on one model under one threat.

    Arguments:
        threat: What the attacks were allowed to change.
        y: The labels, with shape (N,).
        prediction: The predicted classes of clean inputs, with shape (N,).
        x_adv: For each example the allowed point with the smallest margin of all attacks, with
            shape (N, ...); the clean input where that is misclassified.
        margin: The logit of the label minus the largest other logit at ``x_adv``, with shape (N,);
            infinite where no attack ran or returned an allowed point.
        adversarial_prediction: The predicted classes of ``x_adv``, with shape (N,).
        distance: The size of each perturbation in the threat's norm, float64, with shape (N,).
        outcomes: The outcome of each attack, in the order they ran; a stage of an ensemble is
            named ``ensemble/stage``.
        findings: The findings of the checks.
        seed: The seed of the attacks' randomness.
        passes: The forward passes of a verdict; several for a model that is random.
        precision: The arithmetic of the search; the judge's is float32.
        memory: The most memory the process has held, in bytes.
        classes: The names of the classes; may be empty.
        audit: The audit of the search by AutoAttack, with bounds; None: none was asked for.
        corruptions: The accuracy on corrupted images, which no other number has a part of; None:
            it was not asked for.
    """

    threat: Threat
    y: Tensor
    prediction: Tensor
    x_adv: Tensor
    margin: Tensor
    adversarial_prediction: Tensor
    distance: Tensor
    outcomes: Mapping[str, Outcome]
    findings: Sequence[Finding] = ()
    seed: int = 0
    passes: int = 1
    precision: str = "float32"
    memory: int = 0
    classes: Sequence[str] = field(default=())
    audit: Audit | None = None
    corruptions: Corruptions | None = None

    @property
    def correct(self) -> Tensor:
        """Which clean inputs are classified correctly, with shape (N,)."""
        return self.prediction == self.y

    @property
    def robust(self) -> Tensor:
        """Which examples stay correct under every attack, with shape (N,)."""
        return torch.from_numpy(self.counted.robust)

    @property
    def verdicts(self) -> dict[str, Tensor]:
        """Return which examples stay correct, by attack, each with shape (N,).

        There is one for every attack that attacked all correct examples, and one for every
        ensemble: the worst of its stages.
        """
        return {name: torch.from_numpy(flags) for name, flags in self.counted.whole.items()}

    @property
    def ensembles(self) -> tuple[str, ...]:
        """Return the names of the ensembles that were run."""
        return self.counted.ensembles

    def stages(self, ensemble: str) -> dict[str, Outcome]:
        """Return the outcomes of the stages of an ensemble, in their order."""
        return {name: self.outcomes[name] for name in self.counted.stages(ensemble)}

    @property
    def broken_by(self) -> list[str]:
        """Return for each example the first attack that broke it, or an empty string."""
        by = [""] * len(self.y)
        for name, outcome in reversed(list(self.outcomes.items())):
            for index in outcome.broken.nonzero()[:, 0].tolist():
                by[index] = name
        return by

    @property
    def finished(self) -> bool:
        """Whether every attack has attacked all its examples, and an audit has ended."""
        audited = self.audit is None or self.audit.finished
        return audited and all(outcome.finished for outcome in self.outcomes.values())

    @property
    def clean_accuracy(self) -> float:
        """Return the accuracy on clean inputs, in [0, 1]."""
        return float(self.correct.double().mean()) if len(self.y) else 0.0

    @property
    def robust_accuracy(self) -> float:
        """Return the accuracy under the worst attack for each example, in [0, 1].

        It is an upper bound: other attacks may fool more examples.
        """
        if not self.outcomes:
            raise UserError("no attack was run, so there is no robust accuracy")
        return float(self.robust.double().mean())

    def joined(self, before: "Result | None") -> "Result":
        """Return these verdicts joined with those of an earlier result on the same points.

        The worst case is then that of all attacks, and the stronger of two points is kept. What
        only a replaced outcome of the same name broke counts as broken by :data:`TRANSFER`.
        """
        if before is None:
            return self
        stronger = before.margin < self.margin
        others = {name: o for name, o in before.outcomes.items() if name not in self.outcomes}
        outcomes = {**others, **self.outcomes}  # in the order in which they ran
        if (old := before.outcomes.get(TRANSFER)) and (new := self.outcomes.get(TRANSFER)):
            known = new.settings in old.settings
            outcomes[TRANSFER] = replace(
                new,
                verdict=old.verdict & new.verdict,
                attacked=old.attacked | new.attacked,
                ensemble=new.ensemble or old.ensemble,  # a stage of an audited search stays one
                settings=old.settings if known else f"{old.settings}; {new.settings}",
            )
        lost = replace(self, outcomes=outcomes).robust & ~before.robust
        if bool(lost.any()):
            points = outcomes.get(TRANSFER) or Outcome.begun(
                self.correct, settings="points from an earlier evaluation", finished=True
            )
            outcomes[TRANSFER] = replace(
                points, verdict=points.verdict & ~lost, attacked=points.attacked | lost
            )
        joined = replace(
            self,
            outcomes=outcomes,
            audit=self.audit or before._untouched(outcomes),
            margin=torch.minimum(before.margin, self.margin),
            x_adv=chosen(stronger, before.x_adv, self.x_adv),
            distance=torch.where(stronger, before.distance, self.distance),
            adversarial_prediction=torch.where(
                stronger, before.adversarial_prediction, self.adversarial_prediction
            ),
        )
        return joined.recounted()

    def _untouched(self, others: Mapping[str, Outcome]) -> Audit | None:
        """Return the audit, unless others have other verdicts than those that it is about."""
        audit, own = self.audit, self.outcomes
        if audit is None:
            return None
        left, now = (
            torch.stack([self.correct, *(some[name].verdict for name in audit.searched)]).all(0)
            for some in (own, others)
        )
        stages = [name for name in audit.stages if name in own]
        pairs = [(left, now), *((own[k].verdict, others[k].verdict) for k in stages)]
        pairs += [(own[k].attacked, others[k].attacked) for k in stages]
        return audit if all(torch.equal(a, b) for a, b in pairs) else None

    def at(self, rows: slice | Tensor) -> "Result":
        """Return the verdicts on some of the images; costs stay those of all."""
        parts = ("y", "prediction", "x_adv", "margin", "adversarial_prediction", "distance")
        outcomes = {
            name: replace(
                o,
                verdict=o.verdict[rows],
                attacked=o.attacked[rows],
                distortion=None if o.distortion is None else o.distortion[rows],
            )
            for name, o in self.outcomes.items()
        }
        some: dict[str, Any] = {name: getattr(self, name)[rows] for name in parts}
        return replace(self, **some, outcomes=outcomes)

    def recounted(self) -> "Result":
        """Return the same with the counts of the audit that follow from the verdicts."""
        if self.audit is None:
            return self
        counted = self.counted
        audit = self.audit.counted(
            counted.correct, counted.robust, self.margin.numpy(), counted.costs
        )
        return replace(self, audit=audit)

    @property
    def counted(self) -> Verdicts:
        """Return the verdicts alone, from which every number is counted."""
        outcomes = self.outcomes.items()
        return Verdicts(
            norm=self.threat.norm,
            eps=self.threat.eps,
            y=self.y.numpy(),
            correct=self.correct.numpy(),
            verdict={name: outcome.verdict.numpy() for name, outcome in outcomes},
            attacked={name: outcome.attacked.numpy() for name, outcome in outcomes},
            outcomes={name: outcome.plain for name, outcome in outcomes},
            seed=self.seed,
            passes=self.passes,
            precision=self.precision,
            classes=self.classes,
            audit=self.audit,
        )

    def __repr__(self) -> str:
        return self._shown().text()

    def _repr_html_(self) -> str:
        return self._shown().html()

    def _shown(self) -> TextTable:
        """Return the result in a few lines: accuracies, and the checks that failed."""
        n = len(self.y)
        counts = {"clean": self.correct, **self.verdicts}
        if self.outcomes:
            counts["worst case"] = self.robust
        rows = [(name, *accuracy(int(flags.sum()), n)) for name, flags in counts.items() if n]
        failed = [finding for finding in self.findings if finding.status == "failed"]
        notes = [f"failed: {finding.check}: {finding.message}" for finding in failed]
        if warnings := sum(finding.status == "warning" for finding in self.findings):
            notes.append(f"{warnings} of the checks warn: see findings")
        if self.audit is not None:
            notes.append(self.audit.sentence)
        if self.corruptions is not None:
            notes.append(f"corruptions, no attack: {self.corruptions.sentence}")
        if not self.finished:
            notes.append("interrupted: not all examples were attacked")
        header = ("attack", "accuracy", "95 % interval", "images")
        return TextTable(f"Result: {self.threat}, n = {n}", header, rows, notes)

    def records(self) -> list[dict[str, Any]]:
        """Return a record for the clean accuracy, each attack and the worst case.

        See :meth:`equipoise.store.verdicts.Verdicts.records`.
        """
        return [record.content() for record in self.counted.records()]


@dataclass(frozen=True, eq=False)
class Ahead:
    """What one attack found on some of the images, ahead of an audit.

    Arguments:
        rows: The positions of these images, with shape (M,).
        result: The verdicts on them, of this attack alone.
        outcome: Its outcome.
    """

    rows: Tensor
    result: Result
    outcome: Outcome

    def fits(self, begun: Outcome) -> bool:
        """Return whether it is the same attack, searched in the same way."""
        how = ("seed", "precision", "strongest")
        same = all(self.outcome.made.get(key) == begun.made.get(key) for key in how)
        return same and self.outcome.settings == begun.settings
