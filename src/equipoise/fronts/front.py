"""The front between two ends as one object: measured, asked for a model, picked from."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from shlex import quote
from typing import Any, cast

import torch
from torch import nn

from equipoise.data.sampling import drawn_again
from equipoise.errors import UserError
from equipoise.evaluation.judge import Judge
from equipoise.evaluation.protocol import Protocol
from equipoise.fronts.held_out import HeldOut, same_images
from equipoise.fronts.line import BatchNorms, End, Ends, model_at
from equipoise.fronts.picked import Picked
from equipoise.fronts.picking import Candidate, Choice, Constraint, Flags, Kind, choose
from equipoise.fronts.record import FrontRecord, Point
from equipoise.fronts.survey import DEFAULT, FARTHEST, Survey, check
from equipoise.parsing import lines
from equipoise.plugins import command
from equipoise.store.digests import model_digest, tensor_digest
from equipoise.store.evaluations import FRONT
from equipoise.store.runs import Run
from equipoise.store.verdicts import UNREADABLE, Verdicts, read
from equipoise.store.weight_names import PAIR
from equipoise.terminal.progress import Console
from equipoise.terminal.table import TextTable
from equipoise.threat import Norm, Threat

PAPER = 0.4  # gamma at the end of the paper's training


class Front:
    r"""The models :math:`(1 - \gamma) \theta_n + \gamma \theta_r` between two ends.

    Everything is measured on held-out training images; no test image has a part in it.

    Example:
        >>> front = eq.Front("runs/a3gt")
        >>> front.measure(points=9)
        >>> model = front.pick(min_clean=0.85).model

    Arguments:
        path: The run folder, whose held-out images and threat are used, and which keeps what is
            measured.
        ends: The clean and the robust end: run folders, .safetensors files in them, or weights of
            ``path`` by name. None: those that were measured, or else the run's learners.
        batchnorm: Statistics of BatchNorm between the ends: ``"average"``, or ``"estimate"``
            on a mix of clean and adversarial training images. None: as was measured, or else
            averaged.
        data_dir: The folder of the data; by default that of the training.
        device: Where models are run.

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
        known = FrontRecord.read(self.run.path)
        names = tuple(str(end) for end in ends or (known.ends if known else PAIR))
        if len(names) != 2:
            raise UserError(f"expected two ends, got {len(names)}")
        if batchnorm not in (None, "average", "estimate"):
            raise UserError(f"batchnorm must be average or estimate, got {batchnorm!r}")
        self.own = names == PAIR
        named = (End.named(name, self.run) for name in names)
        self.ends = Ends.of_run(self.run) if self.own else Ends(*named)
        same_images(self.run, [self.ends.clean.run, self.ends.robust.run])
        stored: BatchNorms = "average"
        if known is not None and known.batchnorm == "estimate":
            stored = "estimate"
        self.batchnorm: BatchNorms = batchnorm or stored

    def __repr__(self) -> str:
        return self._shown().text()

    def _repr_html_(self) -> str:
        return self._shown().html()

    def _shown(self) -> TextTable:
        """Return what was measured, or that nothing was; nothing is measured for it."""
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
        """What was measured between these ends.

        Raises:
            UserError: If nothing was.
        """
        known = FrontRecord.read(self.run.path)
        again = f"measure it: {command('front', self.run.path)}"
        if known is None:
            raise UserError(f"{self.run.path} has no measured front; {again}")
        mine = tuple(end["sha256"] for end in self.ends.content())
        if (known.sha256, known.batchnorm) != (mine, self.batchnorm):
            between = "" if self.own else f" --ends {' '.join(map(quote, self.ends.names))}"
            raise UserError(
                f"the front in {self.run.path} is another one (between {' and '.join(known.ends)} "
                f"as they were then, batchnorm={known.batchnorm}); {again}{between}"
            )
        return known

    @property
    def points(self) -> tuple[Point, ...]:
        """What was measured, by gamma."""
        return self.record.points

    @property
    def marks(self) -> dict[float, str]:
        """The places between a run's learners that have a meaning: its own gamma, the paper's."""
        if not self.own:
            return {}
        rounds = lines(self.run.path / "log.jsonl", _robust)
        last = rounds[-1] if rounds else None
        if last is None or not 0 <= last <= 1:
            return {PAPER: "paper's gamma"}
        if abs(last - PAPER) < 1e-9:
            return {PAPER: "gamma of this run's last round, and the paper's"}
        return {float(last): "gamma of this run's last round", PAPER: "paper's gamma"}

    def measure(
        self,
        protocol: Protocol | None = None,
        *,
        points: int = 9,
        beyond: float = 0.0,
        others: Sequence[str | Path] = (),
        console: Console | None = None,
        **fields: Any,
    ) -> tuple[Point, ...]:
        """Measure the front on held-out images; what is known is not measured again.

        Arguments:
            protocol: How each model is attacked; None: by two short multi-step attacks, each on
                what the ones before left, in the threat of the training.
            points: How many models are measured at most.
            beyond: How far to go beyond the ends; 0: not.
            others: Run folders whose kept models are measured beside it.
            console: Where progress is shown; None: nowhere.
            fields: Fields of the protocol that are others: ``eps``, ``n``, ``attacks``, ...

        Returns:
            The points, which are also kept in the run folder.
        """
        check(points, beyond)
        asked = replace(protocol or Protocol(attacks=DEFAULT), **fields)
        runs = [Run.open(other) for other in others]
        same_images(self.run, runs)
        with _place(self.run).lock("measuring the front"):
            images = self.images
            threat = images.recipe.threat(images.dataset.eps)
            survey = Survey(
                self.run,
                self.ends,
                asked.complete(threat.norm, threat.eps),
                held_out=images.validation,
                train=images.train,
                batchnorm=self.batchnorm,
                classes=images.dataset.classes,
                console=console or Console(quiet=True),
            )
            return survey.front(points, beyond, self.marks, runs).points

    def model(self, gamma: float) -> nn.Module:
        r"""Return the model at a place of the line, in eval mode, on the CPU.

        Arguments:
            gamma: 0 is the clean end, 1 the robust one; up to 1 beyond either is allowed.

        Raises:
            UserError: If it lies farther away.
        """
        if not -FARTHEST <= gamma <= 1 + FARTHEST:
            raise UserError(
                f"gamma must lie in [{-FARTHEST:g}, {1 + FARTHEST:g}], 0 being the clean and 1 "
                f"the robust end, got {gamma}"
            )
        if self.batchnorm == "average":
            return self.ends.model(gamma)
        known = self.record
        how = Threat(cast(Norm, known.norm), known.eps), known.seed
        return model_at(self.ends, gamma, self.batchnorm, self.images.train, *how).cpu()

    def pick(
        self,
        *,
        max_clean_drop: float | str | None = None,
        min_clean: float | str | None = None,
        min_robust: float | str | None = None,
        gamma: float | None = None,
        reference: float | str | None = None,
        standard: str | Path | None = None,
    ) -> Picked:
        """Return the best measured model that meets a constraint: see :func:`choose`.

        Arguments:
            max_clean_drop: The most clean accuracy to lose against a reference: ``0.01`` or
                ``"1%"``, as all accuracies here.
            min_clean: The least clean accuracy.
            min_robust: The least robust accuracy.
            gamma: This model, whatever its accuracy.
            reference: With ``max_clean_drop``: the accuracy to lose from.
            standard: With ``max_clean_drop``: a run whose model is the reference. None: a
                standard model that was measured beside the front.

        Raises:
            UserError: If not exactly one of the first four is given, or the reference is missing.
            RunError: If no measured model meets the constraint; it names the nearest one.
        """
        asked: dict[Kind, float | str | None] = {
            "max_clean_drop": max_clean_drop,
            "min_clean": min_clean,
            "min_robust": min_robust,
            "gamma": gamma,
        }
        constraint = Constraint.of(asked, reference, None if standard is None else str(standard))
        if constraint.kind == "gamma":
            point = self._measured_at(constraint.value)
            choice = Choice(constraint, constraint.value, point)
        else:
            record = self.record
            paired: Flags | None = None
            if constraint.kind == "max_clean_drop" and constraint.reference is None:
                constraint, paired = self._standard(constraint, record)
            candidates = []
            for point in record.points:
                found = self._verdicts(point)
                candidates.append(Candidate(point, found.correct, found.robust))
            choice = choose(constraint, candidates, paired)
        return self._picked(choice)

    def _picked(self, choice: Choice) -> Picked:
        model, record = self.model(choice.gamma), FrontRecord.read(self.run.path)
        if choice.point is not None and model_digest(model) != choice.point.sha256:
            raise UserError(
                f"the model at gamma = {choice.gamma:g} is not the one that was measured; measure "
                f"again: {command('front', self.run.path)}"
            )
        origin: dict[str, Any] = {"ends": self.ends.content(), "batchnorm": self.batchnorm}
        if record is not None and choice.point is not None:
            how = record.content()
            keys = ("norm", "eps", "attacks", "n", "sample", "seed", "data", "barrier")
            origin |= {key: how[key] for key in keys}
        return Picked(model, choice, self.run, origin)

    def _measured_at(self, gamma: float) -> Point | None:
        if FrontRecord.read(self.run.path) is None:
            return None
        return next((p for p in self.record.points if abs(p.gamma - gamma) < 1e-9), None)

    def _verdicts(self, point: Point) -> Verdicts:
        try:
            found = read(self.run.path / point.file)
        except UNREADABLE:
            found = None
        if found is None or found.model_sha256 != point.sha256:
            raise UserError(
                f"{self.run.path / point.file}, what was found at gamma = {point.gamma:g}, is "
                f"damaged or gone; measure it again: {command('front', self.run.path)}"
            )
        return found.verdicts

    def _standard(self, constraint: Constraint, record: FrontRecord) -> tuple[Constraint, Flags]:
        """Return which images the reference model has right, and the constraint with its name."""
        if constraint.standard is None:
            other = next((o for o in record.others if o.method == "standard"), None)
            if other is None:
                raise UserError(
                    "--max-clean-drop is a drop against what? Give a standard model with "
                    "--standard runs/standard, or its accuracy with --reference 0.93"
                )
            return replace(constraint, standard=other.name), self._verdicts(other).correct
        run = Run.open(constraint.standard)
        same_images(self.run, [run])
        held_out, _ = drawn_again(self.images.validation, record.n, record.sample)
        if tensor_digest(held_out.pixels()) != record.data:
            raise UserError(
                f"the held-out images are not those that the front in {self.run.path} was "
                f"measured on; measure it again: {command('front', self.run.path)}"
            )
        logits = Judge(run.model().to(self.device)).logits(held_out.pixels())
        return constraint, (logits.argmax(1) == held_out.y).cpu().numpy()


def _robust(value: Mapping[str, Any]) -> float | None:
    """Return the weight of the robust learner in a line of the log; None: it has none."""
    weight = (value.get("weights") or {}).get("robust")
    return None if weight is None else float(weight)


def _place(run: Run) -> Run:
    """Make the folder of what is measured, whose lock keeps other measurements away."""
    folder = Run(run.path / FRONT)
    try:
        folder.path.mkdir(exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write to {folder.path}: {error.strerror}") from None
    return folder
