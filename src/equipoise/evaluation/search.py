"""An evaluation while it runs: batch by batch, with all results so far."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from math import ceil

import torch
from torch import Tensor

from equipoise.attacks.core import Attack
from equipoise.attacks.pgd import for_verdicts
from equipoise.data.rows import copied, is_large, pieces
from equipoise.draws import KeyedDraws
from equipoise.errors import RunError, UserError, one_line
from equipoise.evaluation.checks.finding import finding
from equipoise.evaluation.judge import Judge, Ruling, misfit
from equipoise.evaluation.outcome import COSTS, TRANSFER, Outcome, Stage
from equipoise.evaluation.result import Ahead, Result
from equipoise.execution.form import Fast, fast
from equipoise.execution.passes import NoGradient
from equipoise.execution.policy import Execution
from equipoise.losses import margin
from equipoise.measures.distortion import MEASURES, measured
from equipoise.stopwatch import peak_memory
from equipoise.store.audit import Audit
from equipoise.store.finding import Finding
from equipoise.store.provenance import machine
from equipoise.terminal.progress import AttackProgress
from equipoise.threat import Threat

NEAR = 0.04  # of the clean margin; rounding moved the result of a search by up to 0.03 of it


class Search:
    """The evaluation of one model under one threat.

    bfloat16 is too coarse for the last steps to a decision boundary. Where a search in bfloat16
    leaves an example with a margin below :data:`NEAR` of its margin at the clean input, the attack
    runs on it again in float32.

    Arguments:
        judge: Decides, for the model.
        x: The inputs, with shape (N, ...), on the device of the model.
        y: The labels, with shape (N,).
        threat: What the attacks may change.
        execution: The arithmetic, layout and compilation of the search.
        strongest: Whether PGD continues to the point with the largest loss.
        classes: The names of the classes; may be empty.
    """

    def __init__(
        self,
        judge: Judge,
        x: Tensor,
        y: Tensor,
        threat: Threat,
        execution: Execution,
        strongest: bool,
        classes: Sequence[str],
    ) -> None:
        self.judge, self.x, self.y, self.classes = judge, x, y, classes
        self.threat, self.seed, self.execution = threat, judge.seed, execution
        self.form: Fast = fast(judge.model, x, execution, passes=judge.passes)
        self.strongest = strongest or execution.compile
        self.measures = strongest and x.ndim == 4  # the distortion of each attack's own points
        self.k = 0
        self.repeats = True  # whether the model gives the same output again
        self.clean_margin = torch.zeros(len(x), dtype=torch.float64, device=x.device)
        self.prediction = y
        self.x_adv = copied(x)
        self.answer = y.clone()
        self.margin = torch.full((len(x),), torch.inf, dtype=torch.float64, device=x.device)
        self.distance = torch.zeros_like(self.margin)
        self.outcomes: dict[str, Outcome] = {}
        self.findings: dict[str, Finding] = {}
        self.skipped: list[str] = []  # attacks that need gradients where there are none
        self.audit: Audit | None = None
        self.ahead: Mapping[str, Sequence[Ahead]] = {}  # what is taken over, by stage
        self.taken: set[Ahead] = set()
        self.wanting: dict[str, list[int]] | None = None  # in place of attacks, what they are for
        self.bfloat16 = self.form.precision != "float32"

    def look(self, begun: Result | None) -> None:
        """Classify the clean inputs, refuse outputs that cannot be logits, and take over results.

        Arguments:
            begun: The result of an interrupted evaluation.
        """
        try:
            logits = self.judge.logits(self.x)
        except (UserError, MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            raise RunError(f"the model fails on the clean images ({one_line(error)})") from error
        if taken := self.judge.taken(self.x[:1]):
            self.note([finding("outputs", "ok", taken)])
        if problem := misfit(logits, self.y, len(self.classes) or None):
            raise UserError(problem)
        self.k = logits.shape[1]
        self.repeats = self.judge.repeats(self.x)
        self.strongest = self.strongest or not self.repeats
        self.prediction = logits.argmax(1)
        self.clean_margin = -margin(logits, self.y).double()
        self.answer = self.prediction.clone()
        if begun is None:
            return
        if begun.x_adv.shape != self.x.shape or not torch.equal(begun.y, self.y.cpu()):
            raise UserError("the interrupted evaluation is of other inputs or labels")
        device = self.x.device
        values = begun.margin, begun.adversarial_prediction, begun.distance
        self.margin, self.answer, self.distance = (v.to(device, copy=True) for v in values)
        for start, part in pieces(begun.x_adv):  # where no point was found, it is the input
            found = self.margin[start : start + len(part)] < torch.inf
            self.x_adv[start : start + len(part)][found] = part.to(device)[found]
        self.note(begun.findings)
        self.audit = begun.audit
        self.outcomes = {
            name: o.to(device)
            for name, o in begun.outcomes.items()
            if o.made.get("seed", self.seed) == self.seed  # others are of an earlier evaluation
        }

    def note(self, findings: Sequence[Finding]) -> None:
        """Keep findings; a later finding of a check replaces an earlier one."""
        self.findings |= {each.check: each for each in findings}

    @property
    def correct(self) -> Tensor:
        """Whether each clean input is classified correctly, with shape (N,)."""
        return self.prediction == self.y

    @property
    def robust(self) -> Tensor:
        """Whether each example is robust under all attacks so far, with shape (N,)."""
        robust = self.correct
        for outcome in self.outcomes.values():
            robust = robust & outcome.verdict
        return robust

    def run(
        self, stage: Stage, wanted: Tensor | None = None, *, last: bool = True
    ) -> Iterator[AttackProgress]:
        """Run one attack on its examples, a batch at a time.

        Arguments:
            stage: The attack.
            wanted: Which examples it attacks, with shape (N,); None: as the stage says.
            last: Whether it has then attacked all its examples.
        """
        outcome, settings = self._begin(stage), self._settings(stage.attack)
        outcome = self.outcomes.setdefault(stage.name, outcome)
        if wanted is not None:  # more images than those of an earlier audit
            outcome = self.outcomes[stage.name] = replace(outcome, finished=False)
        wanted = self._wanted(stage) if wanted is None else wanted
        if outcome.settings != settings:
            raise UserError(
                f"{stage.name} was begun as {outcome.settings}, not as {settings}: start a new "
                "evaluation without --resume"
            )
        total = int(wanted.sum())
        if outcome.finished:  # margins are others by now, so that a share would be another one
            wanted = torch.zeros_like(wanted)
        for ahead in self.ahead.get(stage.name, ()):
            if ahead.fits(outcome):
                outcome, wanted = self._take(ahead, wanted, outcome)
                self.outcomes[stage.name] = outcome
        if self.wanting is not None:
            rows = (wanted & ~outcome.attacked).nonzero()[:, 0].tolist()
            self.wanting.setdefault(stage.name, []).extend(rows)
            wanted = torch.zeros_like(wanted)
        for index, form in self._batches(stage, wanted):
            if len(index):
                outcome = self._attack(stage.attack, index, form, outcome)
                self.outcomes[stage.name] = outcome
                yield self._progress(stage.name, int((wanted & outcome.attacked).sum()), total)
        self.outcomes[stage.name] = replace(outcome, finished=last or outcome.finished)
        yield self._progress(stage.name, total, total)

    def _take(self, ahead: Ahead, wanted: Tensor, outcome: Outcome) -> tuple[Outcome, Tensor]:
        """Take over what was found ahead on the wanted examples; return which are left."""
        rows, own = ahead.rows.to(wanted.device), ahead.outcome.to(wanted.device)
        new = own.attacked & wanted[rows] & ~outcome.attacked[rows]
        index, found = rows[new], ahead.result.at(new.cpu())
        answer, margins = found.adversarial_prediction.to(index), found.margin.to(index.device)
        self._keep(index, found.x_adv.to(self.x), margins, answer)
        parts = {}
        for name in ("verdict", "attacked", "distortion"):
            mine, theirs = getattr(outcome, name), getattr(own, name)
            if mine is not None and theirs is not None:
                parts[name] = mine.index_copy(0, index, theirs[new])
        outcome = replace(outcome, **parts)
        if ahead not in self.taken:  # its costs count once
            costs = {key: getattr(outcome, key) + getattr(own, key) for key in COSTS}
            outcome = replace(outcome, **costs)
        self.taken.add(ahead)
        left = wanted.clone()
        left[rows[own.attacked]] = False
        return outcome, left

    def _wanted(self, stage: Stage) -> Tensor:
        """Return which examples an attack attacks, with shape (N,)."""
        wanted = self.correct
        for name in stage.after:
            if name in self.outcomes:  # else it was skipped
                wanted = wanted & self.outcomes[name].verdict
        if stage.share < 1:  # the same after a resume: margins have only become smaller
            rows = wanted.nonzero()[:, 0]
            smallest = self.margin[rows].argsort(stable=True, dim=0)[
                : ceil(stage.share * len(rows))
            ]
            wanted = torch.zeros_like(wanted)
            wanted[rows[smallest]] = True
        return wanted

    def _batches(self, stage: Stage, wanted: Tensor) -> Iterator[tuple[Tensor, Fast]]:
        """Return the rows of each batch of an attack, and the form of the model to search in."""
        size = together(stage.attack, self.k, self.judge.batch_size)
        for batch in torch.split(wanted.nonzero()[:, 0], size):
            # The batches after a resume are those of an uninterrupted run.
            yield batch[~self.outcomes[stage.name].attacked[batch]], self.form
        outcome = self.outcomes[stage.name]
        if self.bfloat16 and not outcome.finished:
            near = wanted & outcome.attacked & outcome.verdict
            near &= self.margin < NEAR * self.clean_margin
            for batch in torch.split(near.nonzero()[:, 0], size):
                if len(batch):  # the float32 form is made only if it is needed
                    yield batch, self.full

    def skip(self, stage: Stage, error: NoGradient) -> None:
        """Leave out an attack that gets no gradients of the model, and note it.

        Its verdicts up to then are kept.
        """
        outcome = self.outcomes[stage.name]
        if not bool(outcome.attacked.any()):
            del self.outcomes[stage.name]
        self.skipped.append(stage.name)
        message = f"{error.seen}; left out: {', '.join(self.skipped)}"
        count = len(self.skipped)
        self.note([finding("gradients", "failed", message, error.remedy, skipped=count)])

    def transfer(self, others: Mapping[str, Tensor], ensemble: str = "") -> None:
        """Try adversarial examples of other models, by their source, on the robust examples."""
        start, robust = time.perf_counter(), self.robust
        settings = f"points from {', '.join(others)}"
        before = self.outcomes.get(TRANSFER, Outcome.begun(self.correct))
        outcome = replace(before, settings=settings, ensemble=ensemble)
        for points in others.values():
            if points.shape != self.x.shape:
                raise UserError(
                    f"expected points of shape {tuple(self.x.shape)} from other models, got "
                    f"{tuple(points.shape)}"
                )
            x_adv = points.to(self.x)
            near = robust & outcome.verdict & self.threat.contains(self.x, x_adv)
            index = near.nonzero()[:, 0]
            size = self.judge.batch_size if is_large(self.x) else max(len(index), 1)
            for some in torch.split(index, size) if len(index) else ():
                outcome, _ = self._decide(some, x_adv[some], outcome)
        seconds = before.seconds + time.perf_counter() - start
        self.outcomes[TRANSFER] = replace(outcome, finished=True, seconds=seconds)

    def _begin(self, stage: Stage) -> Outcome:
        notes = stage.attack.notes(self.k) if hasattr(stage.attack, "notes") else ()
        search = {
            "seed": self.seed,
            "precision": self.form.precision,
            "layout": self.execution.layout,
            "compile": self.execution.compile,
            "batch_size": self.judge.batch_size,
            "strongest": self.strongest,
        }
        values = torch.full((len(self.y), len(MEASURES)), torch.nan, dtype=torch.float64)
        return Outcome.begun(
            self.correct,
            distortion=values.to(self.x.device) if self.measures else None,
            ensemble=stage.ensemble,
            settings=self._settings(stage.attack),
            notes=tuple(notes),
            made=search | machine(str(self.x.device)),
        )

    def _settings(self, attack: Attack) -> str:
        how = "searched in bfloat16, near a boundary in float32 too"
        return f"{attack}, {how}" if self.bfloat16 else f"{attack}"

    def _attack(self, attack: Attack, index: Tensor, form: Fast, outcome: Outcome) -> Outcome:
        start = time.perf_counter()
        x_adv = self._propose(attack, index, form)
        outcome, ruling = self._decide(index, x_adv, outcome)
        right = (~ruling.fooled).nonzero()[:, 0]
        if self.repeats and form.misled(x_adv[right], self.y[index[right]], ruling.margin[right]):
            x_adv = self._propose(attack, index[right], form)
            outcome, _ = self._decide(index[right], x_adv, outcome)
        forwards, backwards = form.spent()
        if form.given_up:
            message = f"the model itself is searched, not its faster form: {form.given_up}"
            self.note([finding("search-form", "ok", message)])
        return replace(
            outcome,
            forwards=outcome.forwards + forwards,
            backwards=outcome.backwards + backwards,
            seconds=outcome.seconds + time.perf_counter() - start,
        )

    def _decide(self, index: Tensor, x_adv: Tensor, outcome: Outcome) -> tuple[Outcome, Ruling]:
        """Judge points for some of the examples, and keep the strongest."""
        x, y = self.x[index], self.y[index]
        allowed = self.judge.admit(x, x_adv, self.threat)
        ruling = self.judge.rule(x_adv, y)
        fooled = allowed & ruling.fooled
        verdict, attacked = outcome.verdict.clone(), outcome.attacked.clone()
        verdict[index] = ~fooled
        attacked[index] = True
        margins = torch.where(allowed, ruling.margin, torch.inf)
        self._keep(index, x_adv, margins, ruling.answer)
        values = outcome.distortion
        if values is not None:
            values = values.clone()
            values[index] = torch.nan
            found = measured(x[fooled], x_adv[fooled])
            values[index[fooled]] = torch.stack([*found.values()], 1)
        decided = replace(
            outcome,
            distortion=values,
            verdict=verdict,
            attacked=attacked,
            rejected=outcome.rejected + int((~allowed).sum()),
            nonfinite=outcome.nonfinite + int((allowed & ~ruling.finite).sum()),
        )
        return decided, ruling

    def _keep(self, index: Tensor, x_adv: Tensor, margins: Tensor, answer: Tensor) -> None:
        """Keep points that have a smaller margin than those so far."""
        better = margins < self.margin[index]
        rows = index[better]
        self.x_adv[rows], self.margin[rows] = x_adv[better], margins[better]
        self.answer[rows] = answer[better]
        self.distance[rows] = self.threat.distance(self.x[rows], x_adv[better])

    def _propose(self, attack: Attack, index: Tensor, form: Fast) -> Tensor:
        """Return the points of an attack for some examples, in the judge's dtype.

        The attack gets copies, so that it cannot change the inputs of the judge.
        """
        x, y = self.x[index], self.y[index]
        draws = KeyedDraws.of(x, self.seed).child(str(attack))
        attack = attack if self.strongest else for_verdicts(attack)
        return attack(form, x.clone(), y.clone(), self.threat, draws=draws).to(x)

    @cached_property
    def full(self) -> Fast:
        """Return the search form in float32."""
        execution = replace(self.execution, precision="float32")
        return fast(self.judge.model, self.x, execution, passes=self.judge.passes)

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

    def result(self) -> Result:
        """Return the result so far, on the CPU."""
        cpu = torch.device("cpu")
        result = Result(
            threat=self.threat,
            y=self.y.cpu(),
            prediction=self.prediction.cpu(),
            # The search continues to write into its own; of many there is no second copy.
            x_adv=self.x_adv if is_large(self.x_adv) else self.x_adv.cpu().clone(),
            margin=self.margin.cpu().clone(),
            adversarial_prediction=self.answer.cpu().clone(),
            distance=self.distance.cpu().clone(),
            outcomes={name: o.to(cpu) for name, o in self.outcomes.items()},
            findings=tuple(self.findings.values()),
            seed=self.seed,
            passes=self.judge.passes,
            precision="bfloat16" if self.bfloat16 else "float32",
            memory=peak_memory(),
            classes=self.classes,
            audit=self.audit,
        )
        return result.recounted()


def together(attack: Attack, classes: int, batch_size: int) -> int:
    """Return how many examples are attacked together, so that their rows fill a batch."""
    rows = attack.rows_per_example(classes) if hasattr(attack, "rows_per_example") else 1
    return max(1, batch_size // rows)
