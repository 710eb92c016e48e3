"""An evaluation while it goes on: batch by batch, with everything found so far."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from equipoise.attacks.core import Attack
from equipoise.attacks.pgd import for_verdicts
from equipoise.draws import KeyedDraws
from equipoise.errors import UserError
from equipoise.evaluation.checks.finding import finding
from equipoise.evaluation.judge import Judge, Ruling
from equipoise.evaluation.outcome import Outcome
from equipoise.evaluation.protocol import Protocol, Stage
from equipoise.evaluation.result import Result
from equipoise.execution.form import Fast, fast
from equipoise.execution.passes import NoGradient
from equipoise.losses import margin
from equipoise.store.finding import Finding
from equipoise.store.provenance import machine
from equipoise.terminal.progress import AttackProgress

TRANSFER = "transfer"  # the outcome of points that were made against other models
NEAR = 0.04  # of the clean margin; rounding moved the end of a search by up to 0.03 of it


class Search:
    """The evaluation of one model under one threat.

    Short arithmetic loses the last steps to a boundary that is near: where a search in bfloat16
    has left an example with a margin below :data:`NEAR` of what it was at the clean input, the
    attack runs on it once more in float32.

    Arguments:
        judge: Decides, for the model.
        x: The inputs, with shape (N, ...), on the device of the model.
        y: The labels, with shape (N,).
        protocol: How the model is attacked, with its threat.
        classes: The names of the classes, or nothing.
    """

    def __init__(
        self, judge: Judge, x: Tensor, y: Tensor, protocol: Protocol, classes: Sequence[str]
    ) -> None:
        self.judge, self.x, self.y, self.classes = judge, x, y, classes
        self.threat, self.seed, self.execution = protocol.threat, protocol.seed, protocol.execution
        self.form: Fast = fast(judge.model, x, self.execution, passes=judge.passes)
        self.whole = protocol.strongest or self.execution.compile
        self.k = 0
        self.steady = True  # whether the model repeats its answers
        self.lead = torch.zeros(len(x), dtype=torch.float64, device=x.device)
        self.prediction = y
        self.x_adv = x.clone()
        self.answer = y.clone()
        self.margin = torch.full((len(x),), torch.inf, dtype=torch.float64, device=x.device)
        self.distance = torch.zeros_like(self.margin)
        self.outcomes: dict[str, Outcome] = {}
        self.findings: dict[str, Finding] = {}
        self.skipped: list[str] = []  # attacks that could not follow the model
        self.short = self.form.precision != "float32"

    def look(self, begun: Result | None) -> None:
        """Look at the clean inputs, refuse outputs that cannot be logits, and go on from before.

        Arguments:
            begun: What an interrupted evaluation has found.
        """
        logits = self.judge.logits(self.x)
        if taken := self.judge.taken(self.x[:1]):
            self.note([finding("outputs", "ok", taken)])
        self.judge.check(logits, self.y, len(self.classes) or None)
        self.k = logits.shape[1]
        self.steady = self.judge.repeats(self.x)
        self.whole = self.whole or not self.steady
        self.prediction = logits.argmax(1)
        self.lead = -margin(logits, self.y).double()
        self.answer = self.prediction.clone()
        if begun is None:
            return
        if begun.x_adv.shape != self.x.shape or not torch.equal(begun.y, self.y.cpu()):
            raise UserError("what was begun is of other inputs or labels")
        device = self.x.device
        parts = begun.x_adv, begun.margin, begun.adversarial_prediction, begun.distance
        copies = [part.to(device, copy=True) for part in parts]  # the search writes into them
        self.x_adv, self.margin, self.answer, self.distance = copies
        self.note(begun.findings)
        self.outcomes = {name: _moved(o, device) for name, o in begun.outcomes.items()}

    def note(self, findings: Sequence[Finding]) -> None:
        """Keep what checks have found; a later answer of a check replaces an earlier one."""
        for found in findings:
            self.findings[found.check] = found

    @property
    def correct(self) -> Tensor:
        """Tell which clean inputs are classified correctly, with shape (N,)."""
        return self.prediction == self.y

    @property
    def robust(self) -> Tensor:
        """Return which examples stay correct under everything so far, with shape (N,)."""
        robust = self.correct
        for outcome in self.outcomes.values():
            robust = robust & outcome.verdict
        return robust

    def run(self, stage: Stage) -> Iterator[AttackProgress]:
        """Run one attack on the examples that are its own, a batch at a time."""
        wanted = self.correct
        for name in stage.after:
            if name in self.outcomes:  # else it was skipped
                wanted = wanted & self.outcomes[name].verdict
        outcome = self.outcomes.get(stage.name) or self._begin(stage)
        if outcome.settings != self._settings(stage.attack):
            raise UserError(
                f"{stage.name} was begun as {outcome.settings}, not as "
                f"{self._settings(stage.attack)}: evaluate anew instead of going on"
            )
        self.outcomes[stage.name] = outcome
        rows = wanted.nonzero()[:, 0]
        total, done = len(rows), int((wanted & outcome.attacked).sum())
        for batch in torch.split(rows, self._size(stage.attack)):
            index = batch[~outcome.attacked[batch]]  # the batches of a resume are the same ones
            if not len(index):
                continue
            outcome = self._attack(stage.attack, index, self.form, outcome)
            self.outcomes[stage.name] = outcome
            done += len(index)
            yield self._progress(stage.name, done, total)
        near = self._near(outcome) if not outcome.finished else rows[:0]
        for index in torch.split(near, self._size(stage.attack)) if len(near) else ():
            outcome = self._attack(stage.attack, index, self.full, outcome)
            self.outcomes[stage.name] = outcome
            yield self._progress(stage.name, done, total)
        self.outcomes[stage.name] = replace(outcome, finished=True)
        yield self._progress(stage.name, total, total)

    def skip(self, stage: Stage, error: NoGradient) -> None:
        """Leave an attack out that cannot follow the model, and say so.

        What it has found by then stays; an outcome without any is none.
        """
        outcome = self.outcomes[stage.name]
        if not bool(outcome.attacked.any()):
            del self.outcomes[stage.name]
        self.skipped.append(stage.name)
        message = f"{error.seen}; left out: {', '.join(self.skipped)}"
        count = len(self.skipped)
        self.note([finding("gradients", "failed", message, error.remedy, skipped=count)])

    def transfer(self, others: Mapping[str, Tensor]) -> None:
        """Try points that were made against other models on what is still correct.

        Arguments:
            others: Points for the same inputs by the name of where they are from, with the
                shape of the inputs.
        """
        began, robust = time.perf_counter(), self.robust
        settings = f"points from {', '.join(others)}"
        before = self.outcomes.get(TRANSFER, Outcome.begun(self.correct))
        outcome = replace(before, settings=settings)
        for points in others.values():
            if points.shape != self.x.shape:
                raise UserError(
                    f"expected points of shape {tuple(self.x.shape)} from other models, got "
                    f"{tuple(points.shape)}"
                )
            x_adv = points.to(self.x)
            near = robust & outcome.verdict & self.threat.contains(self.x, x_adv)
            index = near.nonzero()[:, 0]
            if len(index):
                outcome, _ = self._decide(index, x_adv[index], outcome)
        seconds = before.seconds + time.perf_counter() - began
        self.outcomes[TRANSFER] = replace(outcome, finished=True, seconds=seconds)

    def _begin(self, stage: Stage) -> Outcome:
        notes = stage.attack.notes(self.k) if hasattr(stage.attack, "notes") else ()
        return Outcome.begun(
            self.correct,
            ensemble=stage.ensemble,
            settings=self._settings(stage.attack),
            notes=tuple(notes),
            made=self._made(),
        )

    def _made(self) -> dict[str, Any]:
        """Return how and on what an attack searches."""
        return {
            "seed": self.seed,
            "precision": self.form.precision,
            "layout": self.execution.layout,
            "compile": self.execution.compile,
            "batch_size": self.judge.batch_size,
            "strongest": self.whole,
            **machine(str(self.x.device)),
        }

    def _settings(self, attack: Attack) -> str:
        how = "searched in bfloat16, near a boundary in float32 too"
        return f"{attack}, {how}" if self.short else f"{attack}"

    def _size(self, attack: Attack) -> int:
        """Return how many examples are attacked together, so that their rows fill a batch."""
        rows = attack.rows_per_example(self.k) if hasattr(attack, "rows_per_example") else 1
        return max(1, self.judge.batch_size // rows)

    def _near(self, outcome: Outcome) -> Tensor:
        """Return the examples that a search in short arithmetic left near a boundary."""
        if not self.short:
            return torch.empty(0, dtype=torch.int64, device=self.x.device)
        near = outcome.attacked & outcome.verdict & (self.margin < NEAR * self.lead)
        return near.nonzero()[:, 0]

    def _attack(self, attack: Attack, index: Tensor, form: Fast, outcome: Outcome) -> Outcome:
        began = time.perf_counter()
        x_adv = self._propose(attack, index, form)
        outcome, ruling = self._decide(index, x_adv, outcome)
        held = (~ruling.fooled).nonzero()[:, 0]
        if self.steady and form.misled(x_adv[held], self.y[index[held]], ruling.margin[held]):
            x_adv = self._propose(attack, index[held], form)
            outcome, _ = self._decide(index[held], x_adv, outcome)
        forwards, backwards = form.spent()
        if form.given_up:
            message = f"the model itself is searched, not its quicker form: {form.given_up}"
            self.note([finding("search-form", "ok", message)])
        return replace(
            outcome,
            forwards=outcome.forwards + forwards,
            backwards=outcome.backwards + backwards,
            seconds=outcome.seconds + time.perf_counter() - began,
        )

    def _decide(self, index: Tensor, x_adv: Tensor, outcome: Outcome) -> tuple[Outcome, Ruling]:
        """Let the judge decide on points for some of the examples, and keep the strongest."""
        x, y = self.x[index], self.y[index]
        allowed = self.judge.admit(x, x_adv, self.threat)
        ruling = self.judge.rule(x_adv, y)
        fooled = allowed & ruling.fooled
        verdict, attacked = outcome.verdict.clone(), outcome.attacked.clone()
        verdict[index] = ~fooled
        attacked[index] = True
        self._keep(index, x_adv, torch.where(allowed, ruling.margin, torch.inf), ruling.answer)
        decided = replace(
            outcome,
            verdict=verdict,
            attacked=attacked,
            rejected=outcome.rejected + int((~allowed).sum()),
            nonfinite=outcome.nonfinite + int((allowed & ~ruling.finite).sum()),
        )
        return decided, ruling

    def _propose(self, attack: Attack, index: Tensor, form: Fast) -> Tensor:
        """Return what an attack proposes for some examples, in the judge's arithmetic.

        The attack gets copies: whatever it does with them, the judge keeps its own.
        """
        x, y = self.x[index], self.y[index]
        draws = KeyedDraws.of(x, self.seed).child(str(attack))
        attack = attack if self.whole else for_verdicts(attack)
        return attack(form, x.clone(), y.clone(), self.threat, draws=draws).to(x)

    @cached_property
    def full(self) -> Fast:
        """Return the search form in float32."""
        execution = replace(self.execution, precision="float32")
        return fast(self.judge.model, self.x, execution, passes=self.judge.passes)

    def _keep(self, index: Tensor, x_adv: Tensor, margins: Tensor, answer: Tensor) -> None:
        """Keep the allowed points with the smallest margin."""
        better = margins < self.margin[index]
        rows = index[better]
        self.x_adv[rows] = x_adv[better]
        self.margin[rows] = margins[better]
        self.answer[rows] = answer[better]
        self.distance[rows] = self.threat.distance(self.x[rows], x_adv[better])

    def _progress(self, name: str, done: int, total: int) -> AttackProgress:
        outcome = self.outcomes[name]
        return AttackProgress(
            name=name,
            done=done,
            total=total,
            robust=int(self.robust.sum()),
            n=len(self.y),
            finished=outcome.finished,
            seconds=outcome.seconds,
        )

    def result(self, memory: int) -> Result:
        """Return what was found so far, on the CPU."""
        cpu = torch.device("cpu")
        return Result(
            threat=self.threat,
            y=self.y.cpu(),
            prediction=self.prediction.cpu(),
            x_adv=self.x_adv.cpu().clone(),  # the search goes on writing into its own
            margin=self.margin.cpu().clone(),
            adversarial_prediction=self.answer.cpu().clone(),
            distance=self.distance.cpu().clone(),
            outcomes={name: _moved(o, cpu) for name, o in self.outcomes.items()},
            findings=tuple(self.findings.values()),
            seed=self.seed,
            passes=self.judge.passes,
            precision="bfloat16" if self.short else "float32",
            memory=memory,
            classes=self.classes,
        )


def _moved(outcome: Outcome, device: torch.device) -> Outcome:
    return replace(
        outcome, verdict=outcome.verdict.to(device), attacked=outcome.attacked.to(device)
    )
