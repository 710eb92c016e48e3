"""An evaluation under audit: its screens, and AutoAttack's stages on some of its images."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from equipoise.attacks.core import Attack
from equipoise.attacks.ensemble import Audited
from equipoise.data.sampling import image_digests
from equipoise.errors import RunError
from equipoise.evaluation.audit import Auditing, Replay
from equipoise.evaluation.checks.finding import finding, graded
from equipoise.evaluation.checks.outputs import logits
from equipoise.evaluation.outcome import Stage
from equipoise.evaluation.result import Result
from equipoise.evaluation.search import Search
from equipoise.execution.form import guest, input_gradient
from equipoise.execution.passes import NoGradient
from equipoise.losses import Loss, cross_entropy, margin
from equipoise.measures.statistics import outwards
from equipoise.store.audit import Audit, AuditRound, evaluation_digest
from equipoise.store.digests import model_digest, tensor_digest
from equipoise.store.records import stage_of
from equipoise.terminal.progress import AttackProgress

# The tolerated shares of images; a screen is red where the interval is above.
LONGER = 0.02  # broken by PGD-50 among those that the search left
WITHOUT = 0.01  # broken by 200 queries of Square among those, or without a gradient
MARGIN = 0.5  # broken by the margin among those that cross-entropy left


class Evaluated:
    """An evaluation that is audited while it runs.

    Arguments:
        search: The evaluation, after its search.
        spec: The settings of the audit.
        name: The name of the ensemble, before the names of the stages.
        ensemble: The name of the ensemble in the result.
    """

    def __init__(self, search: Search, spec: Audited, name: str, ensemble: str) -> None:
        self.search, self.spec, self.name, self.ensemble = search, spec, name, ensemble
        norm = search.threat.norm
        self.stages = {n: self._stage(n, a) for n, a in spec.auditor(norm).items()}
        self.probes = {n: self._stage(n, a) for n, a in spec.probes(norm).items()}
        self.images = image_digests(search.x.float())  # as they are stored
        own = {stage.name for stage in (*self.stages.values(), *self.probes.values())}
        self.searched = tuple(each for each in search.outcomes if each not in own)
        robust = search.correct
        for each in self.searched:
            robust = robust & search.outcomes[each].verdict
        self.survivors = robust.nonzero()[:, 0].tolist()
        self.red: dict[str, str] = {}

    def _stage(self, name: str, attack: Attack) -> Stage:
        return Stage(f"{self.name}/{name}", attack, self.ensemble)

    def screens(self, rows: Sequence[int]) -> Iterator[AttackProgress]:
        """Run the screens on some images."""
        left = list(rows)
        for name in self.probes:
            yield from self.attack(name, left)
            left = [row for row in left if row not in self.fallen(name, left)]
        reasons = [*self._longer(rows), *self._entropy(rows), *self._outputs(rows)]
        for stage, reason in reasons:
            self.red.setdefault(stage, reason)
        self._report(len(rows))

    def _longer(self, rows: Sequence[int]) -> Iterator[tuple[str, str]]:
        """Judge what a longer search and one without gradients broke, and zero gradients."""
        n, fell = len(rows), {name: len(self.fallen(name, rows)) for name in self.probes}
        for name, stage, tolerated in (
            ("pgd-50", "apgd-ce", LONGER),
            ("square-200", "square", WITHOUT),
        ):
            if graded(fell[name], n, amber=tolerated) != "ok":
                yield stage, f"{name} broke {fell[name]} of {n} images that the search left"
        zeros = int(self._zero(rows, margin).sum())
        if graded(zeros, n, amber=WITHOUT) != "ok":
            yield "square", f"the margin has no gradient on {zeros} of {n} images"

    def _entropy(self, rows: Sequence[int]) -> Iterator[tuple[str, str]]:
        """Compare cross-entropy with the margin: what they broke, and zero gradients."""
        outcome, n = self.search.outcomes.get(f"{self.name}/margin"), len(rows)
        if outcome is not None:
            count, every = int(outcome.broken.sum()), int(outcome.attacked.sum())
            if graded(count, every, amber=MARGIN) != "ok":
                yield (
                    "apgd-t",
                    f"the margin broke {count} of {every} images that cross-entropy left",
                )
        zero = self._zero(rows, cross_entropy) & ~self._zero(rows, margin)
        if graded(int(zero.sum()), n, amber=WITHOUT) != "ok":
            yield "apgd-t", f"cross-entropy has no gradient on {int(zero.sum())} of {n} images"

    def _outputs(self, rows: Sequence[int]) -> Iterator[tuple[str, str]]:
        """Look whether the outputs are logits, which gradients need."""
        if rows:
            index = torch.tensor(rows, device=self.search.x.device)
            out = self.search.judge.logits(self.search.x[index])
            found = logits(out, self.search.y[index], None)
            if found.status != "ok":
                yield "square", found.message.partition(":")[0]

    def _zero(self, rows: Sequence[int], loss: Loss) -> Tensor:
        """Return on which images a loss has no gradient."""
        index = torch.tensor(rows, dtype=torch.int64, device=self.search.x.device)
        x, y = self.search.x[index], self.search.y[index]
        if not rows:
            return torch.zeros(0, dtype=torch.bool)
        try:
            with guest(self.search.judge.model):
                grad = input_gradient(self.search.judge.model, x, lambda z: loss(z, y))[2]
        except NoGradient:
            return torch.ones(len(rows), dtype=torch.bool)
        return (grad == 0).flatten(1).all(1)

    def _report(self, n: int) -> None:
        """Note the result of the screens as a finding."""
        if not self.red:
            message = f"no screen of the audit is red on {n} images that the search left"
            self.search.note([finding("screens", "ok", message)])
            return
        remedy = f"{' and '.join(self.red)} of AutoAttack ran on all images that were left"
        reason = "; ".join(dict.fromkeys(self.red.values()))
        self.search.note([finding("screens", "warning", reason, remedy)])

    def attack(self, stage: str, rows: Sequence[int]) -> Iterator[AttackProgress]:
        """Run a stage on some images; a stage without gradients is left out, and noted."""
        each = {**self.probes, **self.stages}[stage]
        wanted = torch.zeros_like(self.search.correct)
        wanted[torch.tensor(rows, dtype=torch.int64, device=wanted.device)] = True
        try:
            yield from self.search.run(each, wanted, last=False)
        except NoGradient as error:
            self.search.skip(each, error)

    def fallen(self, stage: str, rows: Sequence[int]) -> set[int]:
        """Return which images a stage broke."""
        names = self.probes if stage == "screens" else (stage,)
        outcomes = [self.search.outcomes.get(f"{self.name}/{name}") for name in names]
        broken = [outcome.broken.tolist() for outcome in outcomes if outcome is not None]
        return {row for row in rows if any(flags[row] for flags in broken)}

    def finish(self) -> None:
        """Mark the outcomes of the audit as finished."""
        for stage in (*self.probes.values(), *self.stages.values()):
            if outcome := self.search.outcomes.get(stage.name):
                self.search.outcomes[stage.name] = replace(outcome, finished=True)


def begun(search: Search, spec: Audited, nonce: str, name: str) -> Audit:
    """Return the audit of an evaluation before its first round.

    Arguments:
        search: The evaluation.
        spec: The settings.
        nonce: The text that determines the random order.
        name: The name of the ensemble, before the names of the stages.
    """
    threat = search.threat
    digest = evaluation_digest(
        model=model_digest(search.judge.model),
        data=tensor_digest(search.x.float()),  # as they are stored
        labels=tensor_digest(search.y),
        norm=threat.norm,
        eps=threat.eps,
        seed=search.seed,
    )
    return Audit(
        nonce=nonce,
        digest=digest,
        within=spec.within,
        budget=spec.budget,
        stages=tuple(f"{name}/{stage}" for stage in spec.auditor(threat.norm)),
    )


def audit(search: Search, spec: Audited, name: str, ensemble: str) -> Iterator[AttackProgress]:
    """Audit an evaluation after its search; ``search.audit`` has the result so far.

    Arguments:
        search: The evaluation, whose audit has begun.
        spec: The settings.
        name: The name before the names of the stages.
        ensemble: The name of the ensemble in the result.
    """
    assert search.audit is not None, "see begun"
    subject = Evaluated(search, spec, name, ensemble)
    log = replace(search.audit, rounds=(), searched=subject.searched)
    auditing = Auditing(subject, log, len(search.y), list(subject.stages))
    for progress in auditing.run():
        search.audit = auditing.log
        yield replace(progress, note=_live(auditing.log, search))
    subject.finish()
    search.audit = auditing.log


def unfounded(result: Result, x: Tensor) -> str:
    """Return why an audit does not follow from its verdicts and its nonce; empty: it does.

    Arguments:
        result: The verdicts, with an audit; of an interrupted one with its rounds so far.
        x: The images, with shape (N, ...).
    """
    log = result.audit
    assert log is not None, "there is no audit"
    outcomes, robust = result.outcomes, result.correct
    if unknown := [name for name in log.searched if name not in outcomes]:
        return f"its audit is about attacks that did not run: {', '.join(unknown)}"
    for name in log.searched:
        robust = robust & outcomes[name].verdict
    probes = [f"{log.ensemble}/{name}" for name in Audited().probes(result.threat.norm)]
    tried = [outcomes[name].broken for name in probes if name in outcomes]
    screened = [outcomes[name].attacked for name in probes if name in outcomes]
    none = torch.zeros_like(robust)
    shown = {stage_of(name)[1]: outcomes.get(name) for name in log.stages}
    first = log.rounds[0] if log.rounds else AuditRound(items=0)
    attacked = {k: (o.attacked if o else none).numpy() for k, o in shown.items()}
    attacked["screens"] = torch.stack([none, *screened]).any(0).numpy()
    if any(f.check == "gradients" and f.status == "failed" for f in result.findings):
        attacked = {"square": attacked["square"]}  # the others were left out, which was noted
    subject = Replay(
        survivors=robust.nonzero()[:, 0].tolist(),
        images=image_digests(x.float()),
        broken={k: o.broken.numpy() for k, o in shown.items() if o}
        | {"screens": torch.stack([none, *tried]).any(0).numpy()},
        attacked=attacked,
        red={} if first.checked else dict.fromkeys(first.widened, first.reason),
    )
    again = Auditing(subject, replace(log, rounds=()), len(result.y), list(shown))
    try:
        for _ in again.run():
            pass
    except RunError as error:
        if log.finished:
            return f"its audit counts images that AutoAttack did not attack: {error}"
    if log.rounds in (again.noted if not log.finished else [again.log.rounds]):
        return ""
    return "its audit does not follow from the verdicts and the nonce"


def _live(log: Audit, search: Search) -> str:
    """Return the counters of an audit that runs, and its bound."""
    if not log.rounds:
        return "audit: screens"
    now = replace(log, n=len(search.y), robust=int(search.robust.sum()))
    least, _ = outwards((now.lower, 1))
    return f"{now.audited} of {now.survivors} audited, {now.missed} missed, >= {least:.1f}%"
