"""The front between two ends as one object: it measures models and picks one of them."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from math import nan
from pathlib import Path
from shlex import quote
from typing import Any, cast

import torch
from torch import nn

from equipoise.attacks.core import refuse
from equipoise.data.sampling import drawn_again
from equipoise.errors import UserError, nearest
from equipoise.evaluation.protocol import Protocol
from equipoise.evaluation.stored import FRONT
from equipoise.fronts.constraint import Constraint, Kind
from equipoise.fronts.held_out import HeldOut, right, same_images
from equipoise.fronts.line import BATCHNORMS, BatchNorms, Ends, learners, model_at
from equipoise.fronts.picking import Choice, Picked, choose
from equipoise.fronts.record import FrontRecord, Place, Point, initial, lattice, shares
from equipoise.fronts.survey import DEFAULT, Survey
from equipoise.parsing import lines
from equipoise.plugins import command
from equipoise.store.digests import model_digest, tensor_digest
from equipoise.store.runs import Run
from equipoise.store.verdicts import UNREADABLE, Flags, Verdicts, read
from equipoise.store.weight_names import PAIR
from equipoise.terminal.progress import Console
from equipoise.terminal.table import TextTable
from equipoise.threat import Norm, Threat

CHOSEN = "chosen at the end of the training"
FARTHEST = 1.0  # how far beyond an end a model may be
PAPER = 0.4  # gamma at the end of the paper's training


class Front:
    r"""The models :math:`(1 - \gamma) \theta_n + \gamma \theta_r` between two ends.

    Everything is measured on held-out training images, never on test images.

    Example:
        >>> front = eq.Front("runs/a3gt")
        >>> front.measure(points=9)
        >>> model = front.pick(min_clean=0.85).model

    Arguments:
        path: The run folder, whose held-out images and threat are used; the measurements are
            written to it.
        ends: The clean and the robust end, and perhaps a third one, robust in the threat of its
            own training: run folders, .safetensors files in them, or weights of ``path`` by name.
            None: those of the measured front, or else the run's learners.
        batchnorm: Statistics of BatchNorm between the ends: ``"average"``, or ``"estimate"``
            on a mix of clean and adversarial training images. None: as in the measured front, or
            else averaged.
        data_dir: The folder of the data; by default that of the training.
        device: The device that models are run on.

    Raises:
        UserError: If there are no two ends of one architecture.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        ends: Sequence[str | Path] | None = None,
        batchnorm: BatchNorms | None = None,
        data_dir: str | Path | None = None,
        device: str | torch.device = "cpu",
    ) -> None:
        self.run = Run.open(path)
        self.data_dir, self.device = data_dir, torch.device(device)
        record = FrontRecord.read(self.run.path)
        usual = learners(self.run)
        names = tuple(str(end) for end in ends or (record.ends if record else usual))
        if len(names) not in (2, 3):
            raise UserError(f"expected two ends or three, got {len(names)}")
        if batchnorm not in (None, *BATCHNORMS):
            raise UserError(nearest(str(batchnorm), BATCHNORMS, "value of batchnorm"))
        self.own = names == usual
        self.ends = Ends.of(self.run, names)
        same_images(self.run, [end.run for end in self.ends.all])
        three = self.ends.third is not None
        estimated = record is not None and record.batchnorm == "estimate" and not three
        self.batchnorm: BatchNorms = batchnorm or ("estimate" if estimated else "average")
        if three and self.batchnorm == "estimate":
            raise UserError("batchnorm=estimate is for two ends; between three use average")

    def __repr__(self) -> str:
        return self._shown().text()

    def _repr_html_(self) -> str:
        return self._shown().html()

    def _shown(self) -> TextTable:
        """Return the measured front, or a line that says why there is none."""
        try:
            return self.record.shown()
        except UserError as error:
            title = f"Front({str(self.run.path)!r}) between {' and '.join(self.ends.names)}"
            return TextTable(title, notes=(str(error),))

    @cached_property
    def images(self) -> HeldOut:
        """The images of the run, read when they are first needed."""
        return HeldOut.of(self.run, self.data_dir, self.device)

    @property
    def record(self) -> FrontRecord:
        """The measured front between these ends.

        Raises:
            UserError: If it was not measured.
        """
        record = FrontRecord.read(self.run.path)
        again = f"measure it: {command('front', self.run.path)}"
        if record is None:
            raise UserError(f"{self.run.path} has no measured front; {again}")
        digests = tuple(end["sha256"] for end in self.ends.content())
        if (record.sha256, record.batchnorm) != (digests, self.batchnorm):
            clean, robust, *third = map(quote, self.ends.names)
            between = "" if self.own else f" --ends {clean} {robust}"
            between += "" if self.own or not third else f" --third {third[0]}"
            raise UserError(
                f"{self.run.path} has the front of other ends (earlier weights of "
                f"{' and '.join(record.ends)}, batchnorm={record.batchnorm}); {again}{between}"
            )
        return record

    @property
    def points(self) -> tuple[Point, ...]:
        """The measured points, by gamma."""
        return self.record.points

    @property
    def marks(self) -> dict[float, str]:
        """The values of gamma that are measured first, with their meaning.

        Those of the choice at the end of the training; without one that of the run's last round,
        and the paper's.
        """
        if self.ends.names != PAIR:
            return {}
        choice = self.run.read_json("summary.json").get("choice")
        if choice:
            gammas = [float(point["gamma"]) for point in choice["points"]]
            return {gamma: CHOSEN if gamma == choice["gamma"] else "" for gamma in gammas}
        rounds = lines(
            self.run.path / "log.jsonl",
            lambda line: float((line.get("weights") or {}).get("robust", nan)),
        )
        last, meaning = rounds[-1] if rounds else nan, "gamma of this run's last round"
        if abs(last - PAPER) < 1e-9:
            return {PAPER: f"{meaning}, and the paper's"}
        return ({last: meaning} if 0 <= last <= 1 else {}) | {PAPER: "paper's gamma"}

    def measure(
        self,
        protocol: Protocol | None = None,
        *,
        points: int | None = None,
        beyond: float = 0.0,
        others: Sequence[str | Path] = (),
        gammas: Sequence[float] = (),
        console: Console | None = None,
        **fields: Any,
    ) -> tuple[Point, ...]:
        """Measure the front on held-out images; models that were measured are not measured again.

        Arguments:
            protocol: How each model is attacked; None: by two short multi-step attacks, the second
                one on images that are still robust, in the threat of the training.
            points: The largest number of models to measure; None: 9, between three ends 15.
            beyond: How far to go beyond the ends; 0: not.
            others: Run folders whose kept models are also measured.
            gammas: The models to measure, in this order, in place of ``points`` and ``beyond``.
            console: Where progress is shown; None: nowhere.
            fields: Fields of the protocol to replace: ``eps``, ``n``, ``attacks``, ...

        Returns:
            The points, which are also stored in the run folder.
        """
        points = self.most(points, beyond)
        protocol = replace(protocol or Protocol(attacks=DEFAULT), **fields)
        runs = [Run.open(other) for other in others]
        same_images(self.run, runs)
        survey = self.survey(protocol, console or Console(quiet=True))
        with Run(self.run.path / FRONT).lock("measuring the front"):
            first = [(gamma,) for gamma in gammas] or self.first(points, beyond)
            most = len(gammas) or points
            return survey.front(first, most, {} if gammas else self.marks, runs).points

    def survey(
        self, protocol: Protocol, console: Console, part: Mapping[str, Any] | None = None
    ) -> Survey:
        """Return what measures the front; ``part`` is as for :class:`Survey`."""
        images = self.images
        threat = images.recipe.threat(images.dataset.eps)
        protocol, *also = self.ends.protocols(protocol, threat, images.dataset.eps)
        ends = self.run, self.ends
        return Survey(*ends, images, protocol, self.batchnorm, console, *also, part=part)

    def first(self, points: int, beyond: float) -> list[Place]:
        """Return the models that are measured first; between three ends all."""
        if self.ends.third is not None:
            return lattice(points)
        return [(gamma,) for gamma in initial([*self.marks], beyond)]

    def most(self, points: int | None, beyond: float) -> int:
        """Return the largest number of models to measure.

        Raises:
            UserError: If it, or the distance beyond the ends, is not valid.
        """
        three = self.ends.third is not None
        points = (15 if three else 9) if points is None else points
        problems = []
        if not 0 <= beyond <= FARTHEST:
            problems.append(f"beyond must lie in [0, {FARTHEST:g}], got {beyond}")
        if points < 3:
            problems.append(f"points must be at least 3 (both ends and the middle), got {points}")
        refuse(problems)
        if three and beyond:
            raise UserError("beyond is for two ends; between three there are only mixes of them")
        return points

    def model(self, gamma: float | Place) -> nn.Module:
        r"""Return the model at gamma, in eval mode, on the CPU.

        Arguments:
            gamma: 0 is the clean end, 1 the robust one; in [-1, 2]. Between three ends: the
                weights of the robust and the third one.

        Raises:
            UserError: If gamma is outside.
        """
        if self.ends.third is not None:
            place = gamma if isinstance(gamma, tuple) else (gamma,)
            if len(place) != 2 or min(shares(place)) < -1e-9:
                raise UserError(
                    "between three ends a model has the weights (robust, third), both at least 0 "
                    f"and together at most 1, got {gamma}"
                )
            return self.ends.model(*place)
        if isinstance(gamma, tuple):
            raise UserError(f"between two ends a model has one gamma, got {gamma}")
        if not -FARTHEST <= gamma <= 1 + FARTHEST:
            raise UserError(
                f"gamma must lie in [{-FARTHEST:g}, {1 + FARTHEST:g}] (0: the clean end, 1: the "
                f"robust end), got {gamma}"
            )
        if self.batchnorm == "average":
            return self.ends.model(gamma)
        record = self.record
        threat = Threat(cast(Norm, record.norm), record.eps)
        train = self.images.train
        return model_at(self.ends, (gamma,), self.batchnorm, train, threat, record.seed).cpu()

    def pick(
        self,
        *,
        max_clean_drop: float | str | None = None,
        min_clean: float | str | None = None,
        min_worst_class: float | str | None = None,
        min_robust: float | str | None = None,
        gamma: float | None = None,
        reference: float | str | None = None,
        standard: str | Path | nn.Module | None = None,
        nearest: bool = False,
    ) -> Picked:
        """Return the best measured model that meets a constraint: see :func:`choose`.

        Arguments:
            max_clean_drop: The largest loss of clean accuracy against a reference: ``0.01`` or
                ``"1%"``, like all accuracies here.
            min_clean: The smallest clean accuracy.
            min_worst_class: The smallest clean accuracy of every class.
            min_robust: The smallest robust accuracy. Between three ends in all threats, or, like
                ``"linf=0.5"`` or ``"linf=50%,l2=40%"``, by threat; then ``min_clean`` or
                ``max_clean_drop`` may be given besides.
            gamma: The model at this gamma, without a constraint on its accuracy.
            reference: With ``max_clean_drop``: the clean accuracy that is the reference.
            standard: With ``max_clean_drop``: a run whose model is the reference, or a model.
                None: a standard model that was measured with the front.
            nearest: Whether to return the nearest model if none meets the constraint.

        Raises:
            UserError: If not exactly one of the first five is given, or the reference is missing.
            RunError: If no measured model meets the constraint; the message names the nearest one.
        """
        options: dict[Kind, float | str | None] = {
            "max_clean_drop": max_clean_drop,
            "min_clean": min_clean,
            "min_worst_class": min_worst_class,
            "min_robust": min_robust,
            "gamma": gamma,
        }
        given = isinstance(standard, nn.Module)
        versus = "the given model" if given else None if standard is None else str(standard)
        if self.ends.third is None:
            constraint = Constraint.of(options, reference, versus)
        else:
            threats = self.record.threats
            constraint = Constraint.among_three(options, reference, versus, threats)
        if constraint.kind == "gamma":
            measured = FrontRecord.read(self.run.path) is not None
            points = self.points if measured else ()
            point = next((p for p in points if abs(p.gamma - constraint.value) < 1e-9), None)
            choice = Choice(constraint, constraint.value, point)
        else:
            record, paired, clean = self.record, None, list[Flags]()
            if constraint.kind == "max_clean_drop" and constraint.reference is None:
                constraint, paired, clean = self._standard(constraint, record, standard)
            models = [(point, self._verdicts(point)) for point in record.points]
            third = [
                self._verdicts(replace(point, file=point.third.file)).robust
                for point in record.points
                if point.third is not None
            ]
            choice = choose(constraint, models, paired, third, clean=clean, nearest=nearest)
        return self._picked(choice)

    def _picked(self, choice: Choice) -> Picked:
        record, point = FrontRecord.read(self.run.path), choice.point
        model = self.model(choice.gamma if point is None or not point.third else point.place)
        if choice.point is not None and model_digest(model) != choice.point.sha256:
            raise UserError(
                f"the model at {choice.point.where} has changed since it was measured; "
                f"measure it again: {command('front', self.run.path)}"
            )
        origin: dict[str, Any] = {"ends": self.ends.content(), "batchnorm": self.batchnorm}
        if record is not None and choice.point is not None:
            content = record.content()
            keys = ("norm", "eps", "attacks", "n", "sample", "seed", "data", "barrier", "also")
            origin |= {key: content[key] for key in keys if key in content}
        if point is not None and point.third is not None:
            named = zip(self.ends.names, shares(point.place), strict=True)
            origin["weights"] = dict(named)
        return Picked(model, choice, self.run, origin)

    def _verdicts(self, point: Point) -> Verdicts:
        path = self.run.path / point.file
        try:
            evaluation = read(path)
        except UNREADABLE:
            evaluation = None
        if evaluation is None or evaluation.model_sha256 != point.sha256:
            raise UserError(
                f"{path}, the evaluation at {point.where}, is damaged or missing; "
                f"measure it again: {command('front', self.run.path)}"
            )
        return evaluation.verdicts

    def _standard(
        self, constraint: Constraint, record: FrontRecord, standard: object
    ) -> tuple[Constraint, Flags, list[Flags]]:
        """Return the constraint with the reference, and which images that classifies correctly.

        If a sample of the held-out images was attacked: all of them, and the same of each model.
        """
        if constraint.standard is None:
            other = next((o for o in record.others if o.method == "standard"), None)
            if other is None:
                raise UserError(
                    "--max-clean-drop needs a reference: give a standard model with "
                    "--standard runs/standard, or its accuracy with --reference 0.93"
                )
            return replace(constraint, standard=other.name), self._verdicts(other).correct, []
        model = standard
        if not isinstance(model, nn.Module):
            run = Run.open(constraint.standard)
            same_images(self.run, [run])
            model = run.model()
        every = self.images.validation
        held_out, _ = drawn_again(every, record.n, record.sample)
        if tensor_digest(held_out.pixels()) != record.data:
            raise UserError(
                f"the front in {self.run.path} was measured on other held-out images; measure it "
                f"again: {command('front', self.run.path)}"
            )
        if self.ends.third is not None or len(held_out) == len(every):
            return constraint, right(model, held_out), []
        models = (self.model(point.gamma) for point in record.points)
        return constraint, right(model, every), [right(each, every) for each in models]
