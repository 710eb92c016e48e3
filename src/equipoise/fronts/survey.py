"""Measuring a front: point by point, each kept as soon as it is there."""

__all__ = ["DEFAULT", "FARTHEST", "Subject", "Watch", "check", "survey"]

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from safetensors.torch import save
from torch import Tensor, nn

from equipoise.attacks.core import refuse
from equipoise.data import draw
from equipoise.errors import UserError
from equipoise.evaluation import Protocol
from equipoise.fronts.barrier import Barrier, barrier
from equipoise.fronts.choice import following, initial
from equipoise.fronts.held_out import HeldOut
from equipoise.fronts.ledger import FOLDER, Ledger
from equipoise.fronts.line import BatchNorms, Ends, reestimated
from equipoise.fronts.measure import Measured, Question, measure, retried
from equipoise.fronts.points import Point
from equipoise.fronts.record import FILE, Mark, Other, Record
from equipoise.store.digests import model_digest
from equipoise.store.runs import Run
from equipoise.terminal.progress import AttackProgress
from equipoise.threat import Threat

# Quick and close to AutoAttack, where more steps of PGD are not: of 300 held-out images at
# gamma = 0.4, 0.7 and 1 of short A3GT runs it left 5.3, 17.0 and 36.0 % on MNIST (eps 0.3; PGD-100
# 8.3, 31.3 and 47.7, AutoAttack 4.7, 13.7 and 32.0) and 57.3, 64.0 and 66.0 % on Fashion-MNIST
# (0.1; PGD-100 60.0, 65.0 and 66.7), for 7 to 56 gradients an image instead of 83 to 93.
DEFAULT = ("apgd-ce-20", "apgd-t-20(targets=3)")
FARTHEST = 1.0  # how far beyond an end a model may be
SHOWN = 8  # images of a gallery
PICTURES = f"{FOLDER}/gallery.safetensors"


def _silent(*_: Any) -> None:
    """Tell nobody."""


@dataclass(frozen=True)
class Watch:
    """Who is told how a measurement goes on.

    Arguments:
        advance: Told how far an attack is, after every batch.
        say: Told of each point that was measured, or was known: a sentence.
        warn: Told of what is wrong.
    """

    advance: Callable[[AttackProgress], None] = _silent
    say: Callable[[str], None] = _silent
    warn: Callable[[str], None] = _silent


@dataclass(frozen=True)
class Subject:
    """What is measured: the ends, and the images, on the device of the search.

    Arguments:
        run: The folder that keeps what is measured.
        ends: The ends.
        images: The images.
        batchnorm: Statistics of BatchNorm: averaged, or estimated anew.
    """

    run: Run
    ends: Ends
    images: HeldOut
    batchnorm: BatchNorms

    def model(self, gamma: float, threat: Threat, seed: int) -> nn.Module:
        """Return the model at a place of the line, on the device of the images."""
        model = self.ends.model(gamma).to(self.images.train.y.device)
        if self.batchnorm == "estimate" and gamma not in (0, 1):
            return reestimated(model, gamma, self.images.train, threat, seed)
        return model


def check(points: int, beyond: float) -> None:
    """Refuse numbers of models, and distances beyond the ends, that will not do.

    Raises:
        UserError: With all that is wrong.
    """
    problems = []
    if not 0 <= beyond <= FARTHEST:
        problems.append(f"beyond must lie in [0, {FARTHEST:g}], got {beyond}")
    if points < 3:
        problems.append(f"points must be at least 3 (both ends and the middle), got {points}")
    refuse(problems)


def survey(
    subject: Subject,
    protocol: Protocol,
    marks: Sequence[Mark],
    others: Sequence[Run],
    watch: Watch,
    *,
    points: int = 9,
    beyond: float = 0.0,
) -> Record:
    """Measure a front and keep it; what is known already is not measured again.

    Arguments:
        subject: What is measured.
        protocol: How each model is attacked; norm and radius are by default those of the training.
        marks: Places that are measured in any case.
        others: Runs whose kept models are measured as the front is.
        watch: Who is told how it goes on.
        points: How many models are measured at most.
        beyond: How far to go beyond the ends; 0: not.

    Returns:
        The front, which is also written to the run folder.

    Raises:
        UserError: If what was asked for does not fit images or models.
    """
    check(points, beyond)
    work = _Work(subject, protocol, watch)
    places = initial([mark.gamma for mark in marks], beyond)
    if len(places) > points:
        raise UserError(
            f"points must be at least {len(places)}, for {', '.join(f'{p:g}' for p in places)}, "
            f"got {points}"
        )
    for gamma in places:
        work.at(gamma)
    while len(work.points) < points:
        gamma_or_none = following(work.points)
        if gamma_or_none is None:
            watch.say("neighbours hardly differ any more: no further point is worth its price")
            break
        work.at(gamma_or_none)
    work.settle()
    beside = tuple(work.other(run) for run in others)
    record = work.record(marks, beside)
    subject.run.write_json(FILE, record.content())
    return record


class _Work:
    """A front while it is measured."""

    def __init__(self, subject: Subject, protocol: Protocol, watch: Watch) -> None:
        self.subject, self.watch = subject, watch
        images = subject.images
        trained, held_out = images.recipe.threat(images.dataset.eps), images.validation
        self.protocol = protocol.complete(trained.norm, trained.eps)
        if not self.protocol.names:
            raise UserError("expected at least one attack, got none")
        n = protocol.n
        if n is not None and n > len(held_out):
            raise UserError(f"n must lie in 1..{len(held_out)} held-out images, got {n}")
        drawn, self.sample = draw(held_out, n, first=protocol.first)
        self.question = Question(x=drawn.pixels(), y=drawn.y, protocol=self.protocol)
        self.identity = self.question.identity()
        self.ledger = Ledger(subject.run, watch.warn)
        self.known: dict[float, Measured] = {}
        self.digests: dict[float, str] = {}

    @property
    def points(self) -> list[Point]:
        """What was measured, by gamma."""
        return [self._point(gamma) for gamma in sorted(self.known)]

    def at(self, gamma: float) -> None:
        """Measure the model at a place, or take what is known of it, and keep it."""
        model = self._model(gamma)
        self.digests[gamma] = model_digest(model)
        self.known[gamma] = self._measured(model, gamma, self._neighbours(gamma), f"{gamma:g}")

    def settle(self) -> None:
        """Try what was found last at the neighbours that were measured before."""
        for gamma in sorted(self.known):
            before = self.known[gamma]
            after = retried(self._model(gamma), self.question, before, self._neighbours(gamma))
            if after is not before:
                self.ledger.write(self._identity(gamma), after)
                self.known[gamma] = after

    def other(self, run: Run) -> Other:
        """Return another run's kept model, measured on the same images."""
        model = run.model().to(self.question.x.device)
        identity = self.identity | {"model": model_digest(model)}
        found = self._kept(model, identity, {}, str(run.path))
        method = str(run.read_json("config.json").get("method", ""))
        return Other(str(run.path), method, self._counts(found, 0.0, identity))

    def record(self, marks: Sequence[Mark], others: tuple[Other, ...]) -> Record:
        """Return the front as far as it was measured."""
        subject, q, threat = self.subject, self.question, self.protocol.threat
        first, last = subject.ends.content()
        clean, robust = self._barriers()
        return Record(
            ends=subject.ends.names,
            sha256=(first["sha256"], last["sha256"]),
            norm=threat.norm,
            eps=threat.eps,
            attacks=self.protocol.names,
            n=len(q.y),
            sample=self.sample,
            data=str(self.identity["data"]),
            batchnorm=subject.batchnorm,
            seed=self.protocol.seed,
            points=tuple(self.points),
            marks=tuple(marks),
            others=others,
            clean_barrier=clean,
            robust_barrier=robust,
            gallery=self._gallery(),
            classes=subject.images.dataset.classes,
        )

    def _barriers(self) -> tuple[Barrier | None, Barrier | None]:
        clean = {gamma: found.correct.numpy() for gamma, found in self.known.items()}
        robust = {gamma: found.robust.numpy() for gamma, found in self.known.items()}
        return barrier(clean), barrier(robust)

    def _model(self, gamma: float) -> nn.Module:
        return self.subject.model(gamma, self.protocol.threat, self.protocol.seed)

    def _neighbours(self, gamma: float) -> dict[str, Tensor]:
        """Return the examples of the nearest measured point on either side."""
        below = max((g for g in self.known if g < gamma), default=None)
        above = min((g for g in self.known if g > gamma), default=None)
        near = sorted((g for g in (below, above) if g is not None), key=lambda g: abs(g - gamma))
        return {f"gamma {g:g}": self.known[g].x_adv for g in near}

    def _identity(self, gamma: float) -> dict[str, Any]:
        return self.identity | {"model": self.digests[gamma]}

    def _measured(
        self, model: nn.Module, gamma: float, neighbours: dict[str, Tensor], name: str
    ) -> Measured:
        return self._kept(model, self._identity(gamma), neighbours, f"gamma = {name}")

    def _kept(
        self, model: nn.Module, identity: dict[str, Any], neighbours: dict[str, Tensor], what: str
    ) -> Measured:
        """Return what is known of a model, after measuring it where nothing is."""
        found, how = self.ledger.find(identity), "known"
        if found is None:
            found = measure(model, self.question, neighbours, self.watch.advance)
            self.ledger.write(identity, found)
            how = f"{found.seconds:.1f} s"
        n, correct, robust = len(found.correct), int(found.correct.sum()), int(found.robust.sum())
        self.watch.say(
            f"{what}: clean {correct / n:.2%}, robust {robust / n:.2%}; {found.transferred} of "
            f"{correct} fooled by neighbours' examples, {found.searched} searched  [{how}]"
        )
        return found

    def _point(self, gamma: float) -> Point:
        return self._counts(self.known[gamma], gamma, self._identity(gamma))

    def _counts(self, found: Measured, gamma: float, identity: dict[str, Any]) -> Point:
        return Point(
            gamma=gamma,
            n=len(found.correct),
            clean=int(found.correct.sum()),
            robust=int(found.robust.sum()),
            transferred=found.transferred,
            searched=found.searched,
            forwards=found.forwards,
            backwards=found.backwards,
            seconds=found.seconds,
            sha256=str(identity["model"]),
            file=self.ledger.name(identity),
        )

    def _gallery(self) -> str:
        """Write the first image of each class in turn, for the report; return the file."""
        y = self.question.y.cpu().numpy()
        turn = np.array([int((y[:i] == label).sum()) for i, label in enumerate(y)])
        rows = np.lexsort((np.arange(len(y)), y, turn))[:SHOWN].copy()
        x = self.question.x.cpu()
        tensors = {"rows": _tensor(rows), "x": x[rows].contiguous(), "y": _tensor(y[rows])}
        payload = save(tensors)
        self.subject.run.write(PICTURES, lambda file: file.write(payload))
        return PICTURES


def _tensor(values: Any) -> Tensor:
    from torch import from_numpy

    return from_numpy(np.ascontiguousarray(values, np.int64))
