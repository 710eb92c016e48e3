"""One training of a plan with all its evaluations: how far it is, and what to do next."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from equipoise.attacks.core import cost
from equipoise.errors import UserError
from equipoise.evaluation.protocol import STAGED, Protocol
from equipoise.fronts.record import FrontRecord
from equipoise.fronts.survey import following
from equipoise.parsing import lines
from equipoise.sample import Sample
from equipoise.settings.recipe import Recipe
from equipoise.store.evaluations import FRONT, Store
from equipoise.store.records import WORST
from equipoise.store.runs import Run
from equipoise.store.verdicts import UNREADABLE, Evaluation, Verdicts, read
from equipoise.store.weight_names import PAIR, canonical
from equipoise.version import __version__

Counted = Mapping[str, tuple[NDArray[np.bool_], float]]
"""By attack, which images are classified correctly, and the seconds of the attack."""


@dataclass(frozen=True, kw_only=True)
class PlannedEvaluation:
    """One evaluation of weights of a training.

    Arguments:
        folder: The run folder of the training, which need not be there yet.
        protocol: How the weights are attacked, with norm, radius and number of images.
        weights: Their name, as for :meth:`equipoise.store.runs.Run.model`.
        sample: Which test images are taken.
    """

    folder: Path
    protocol: Protocol
    weights: str
    sample: Sample

    @property
    def run(self) -> Run:
        """Return the run folder."""
        return Run(self.folder)

    @property
    def store(self) -> Store:
        """Return where the evaluation is kept."""
        return Store.of(self.run, self.protocol.threat, self.sample, self.weights)

    @property
    def cost(self) -> float:
        """Return a rough number of the gradient evaluations that it takes."""
        protocol = self.protocol
        attacks = protocol.named.values()
        return self.sample.n * sum(cost(attack, protocol.threat.norm) for attack in attacks)

    @property
    def finished(self) -> bool:
        """Return whether it is at its end."""
        return self.verdicts() is not None

    def verdicts(self) -> Verdicts | None:
        """Return the verdicts of its attacks; None: it is not at its end."""
        stored, individual = self.stored(), self.protocol.individual
        if stored is None or (not stored.finished and self._alike(stored)):
            return None  # all attacks may be at their end, and the checks left
        asked = [STAGED] if individual is False else self.protocol.names
        verdicts = stored.verdicts.only(asked)
        done = {name for name, about in verdicts.told.items() if self._done(about)}
        finished = (
            {stage.name for stage in self.protocol.stages} <= done
            and {*asked} <= {record.attack for record in verdicts.records()}
            and not (individual and not all(map(verdicts.alone, verdicts.told)))
        )
        return verdicts if finished else None

    def counted(self) -> Iterator[tuple[str, Counted]]:
        """Yield the name of each model that was judged, with its verdicts by attack.

        A stage of an ensemble is there by its own name where all of them attacked every correct
        image. Where all attacks are stages there is what each has left, with those before it.
        """
        verdicts = self.verdicts()
        counted = dict[str, tuple[NDArray[np.bool_], float]]()
        for record in verdicts.records() if verdicts else ():
            if record.attack == STAGED:  # the same as the worst case
                for stage in record.stages[:-1]:
                    counted[f"{stage.attack} and before"] = stage.verdict, stage.seconds
            else:
                counted[record.attack] = record.verdict, record.seconds
        if counted:
            yield self.weights, counted

    def done(self) -> float:
        """Return how much of it is done, in gradient evaluations."""
        if self.finished:
            return self.cost
        stored = self.stored()
        parts = stored.verdicts.told.values() if stored else ()
        return float(min(sum(part["backwards"] for part in parts), self.cost))

    def begun(self) -> bool:
        """Return whether there is an evaluation of the same kind that can be continued."""
        stored = self.stored()
        if stored is None or stored.about.get("version") != __version__:
            return False
        return self._alike(stored)

    def _alike(self, stored: Evaluation) -> bool:
        """Return whether an evaluation was made with the same protocol."""
        asked = stored.about.get("asked", {})
        return bool(
            asked.get("attacks") == list(self.protocol.names)
            and asked.get("individual") == self.protocol.individual
            and (asked.get("seed"), asked.get("passes")) == (0, None)
            and self._precision in ("auto", stored.verdicts.precision)
        )

    def words(self) -> list[str]:
        """Return the command that continues it: the words after ``equipoise``."""
        words = ["evaluate", str(self.folder), "--strongest", *self._how()]
        if self.weights != "model":
            words += ["--weights", self.weights]
        if self.protocol.individual is not None:
            words.append("--individual" if self.protocol.individual else "--staged")
        return [*words, *(["--resume"] if self.begun() else [])]

    @property
    def _precision(self) -> str:
        return self.protocol.execution.precision

    def _how(self) -> list[str]:
        """Return the options that say how models are attacked."""
        words = ["--attacks", ",".join(self.protocol.names)]
        words += ["--eps", repr(self.protocol.eps), "-n", str(self.protocol.n)]
        words += ["--first"] if self.protocol.first else []
        return [
            *words,
            *("--precision", self._precision, "--batch-size", str(self.protocol.batch_size)),
        ]

    def stored(self) -> Evaluation | None:
        """Return what is kept of these weights, images and threat; None: nothing."""
        threat = self.protocol.threat
        try:
            stored = read(self.store.path)
            digest = self.run.digest(self.weights)
        except (*UNREADABLE, UserError):
            return None
        wanted = {
            "model_sha256": digest,
            "weights": self.weights,
            "sample": self.sample.content(),
            "norm": threat.norm,
            "eps": repr(threat.eps),
        }
        return stored if wanted.items() <= stored.about.items() else None

    def _done(self, about: Mapping[str, Any]) -> bool:
        """Return whether an attack is at its end, and was run as this protocol has it."""
        made = about["made"]
        alike = self._precision in ("auto", made.get("precision"))
        return bool(about["finished"] and made.get("seed") == 0 and alike)


@dataclass(frozen=True, kw_only=True)
class PlannedFront(PlannedEvaluation):
    """The models between two learners, measured on held-out images by ``equipoise front``.

    Arguments:
        points: How many of them are measured at most.
    """

    points: int

    def front(self) -> FrontRecord | None:
        """Return the measured front; None: it is not there as it is asked for."""
        try:
            record = FrontRecord.read(self.folder)
            digests = tuple(self.run.digest(name) for name in PAIR)
        except UserError:
            return None  # the command that measures says what is damaged
        if record is None:
            return None
        sample, protocol = record.sample, self.protocol
        fits = (
            (record.ends, record.sha256, record.batchnorm) == (PAIR, digests, "average")
            and (record.norm, record.eps) == (protocol.norm, protocol.eps)
            and (record.attacks, record.n) == (protocol.names, protocol.n)
            and (sample.n == sample.of or (sample.seed is None) == protocol.first)
            and (len(record.points) >= self.points or following(record.points) is None)
            and all((self.folder / point.file).is_file() for point in record.points)
        )
        return record if fits else None

    @property
    def finished(self) -> bool:
        """Return whether the front is measured."""
        return self.front() is not None

    @property
    def cost(self) -> float:
        """Return a rough number of the gradient evaluations of all points."""
        return self.points * super().cost

    def counted(self) -> Iterator[tuple[str, Counted]]:
        """Yield the mixes that were measured, with what is correct clean and under all attacks.

        Raises:
            UserError: If what was kept of one is damaged.
        """
        record = self.front()
        for point in record.points if record else ():
            path = self.folder / point.file
            try:
                verdicts = read(path).verdicts
            except UNREADABLE:
                raise UserError(
                    f"{path} is damaged; remove it and repeat the command: that model is "
                    "measured again"
                ) from None
            worst = verdicts.robust, point.seconds
            yield (
                canonical(f"gamma-{point.gamma!r}"),
                {"clean": (verdicts.correct, 0.0), WORST: worst},
            )

    def done(self) -> float:
        """Return how much of it is done, in gradient evaluations."""
        there = len(list((self.folder / FRONT).glob("*.safetensors")))
        return self.cost if self.finished else self.cost * min(1.0, there / self.points)

    def words(self) -> list[str]:
        """Return the command that continues it: the words after ``equipoise``."""
        return ["front", str(self.folder), *self._how(), "--points", str(self.points)]


@dataclass(frozen=True, kw_only=True)
class Task:
    """One training with all its evaluations, in a run folder of its own.

    Arguments:
        plan: The name of its plan; empty where that is the only one of a folder.
        entry: The entry it belongs to.
        recipe: What is trained.
        out: The folder that the run folder is in.
        evaluations: What is judged once it is trained, nothing twice.
        images: The training images of a round.
        gradients: The gradient evaluations that the training is expected to take.
    """

    plan: str
    entry: str
    recipe: Recipe
    out: Path
    evaluations: tuple[PlannedEvaluation, ...]
    images: int
    gradients: float

    @property
    def name(self) -> str:
        """Return its name, which no other task has."""
        return f"{self.plan}/{self.run.path.name}" if self.plan else self.run.path.name

    @property
    def run(self) -> Run:
        """Return the run folder, which need not be there yet."""
        return Run(self.out / f"{self.entry}-seed{self.recipe.seed}")

    @property
    def log(self) -> Path:
        """Return the file that its commands write to."""
        return self.out / "logs" / f"{self.run.path.name}.log"

    def rounds(self) -> list[dict[str, Any]]:
        """Return the records of the rounds that are logged, each once.

        Raises:
            UserError: Where a line of the log is damaged.
        """
        return list({r["round"]: r for r in lines(self.run.path / "log.jsonl", _logged)}.values())

    @property
    def trained(self) -> bool:
        """Return whether the training is at its end."""
        return bool(self.run.read_json("summary.json").get("finished"))

    @property
    def begun(self) -> bool:
        """Return whether the run folder was made."""
        return (self.run.path / "recipe.yaml").is_file()

    def step(self) -> list[str] | None:
        """Return the next command, the words after ``equipoise``; None: nothing is left to do."""
        folder = self.run.path
        if not self.trained:
            new = [str(self.out / "recipes" / f"{folder.name}.yaml"), "--out", str(folder)]
            return ["train", *(["--resume", str(folder)] if self.begun else new)]
        left = next((each for each in self.evaluations if not each.finished), None)
        if left is None:
            return None
        place = [] if self.recipe.data_dir is None else ["--data-dir", self.recipe.data_dir]
        return [*left.words(), "--device", self.recipe.device, *place]

    def prepare(self) -> None:
        """Make what the next step needs: a place for its log, and for a new training a recipe."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        folder = self.run.path
        if not self.begun:
            for part in folder.glob(".*.part"):  # killed before there was a run
                part.unlink()
            Run(self.out / "recipes").write_text(f"{folder.name}.yaml", self.recipe.to_yaml())

    @property
    def cost(self) -> float:
        """Return a rough number of the gradient evaluations of training and evaluations."""
        return self.gradients + sum(evaluation.cost for evaluation in self.evaluations)

    def done(self) -> float:
        """Return how much of it is done, in gradient evaluations."""
        if not self.trained:
            return self.gradients * min(1.0, len(self.rounds()) / self.recipe.rounds)
        return self.gradients + sum(evaluation.done() for evaluation in self.evaluations)

    def state(self) -> tuple[str, str]:
        """Return in words how far training and evaluations are."""
        if not self.trained:
            rounds = f"{len(self.rounds())} of {self.recipe.rounds} rounds"
            return rounds if self.begun else "to do", "to do"
        finished, every = sum(each.finished for each in self.evaluations), len(self.evaluations)
        part = f"{finished} of {every}" if finished else "to do"
        return "done", "done" if finished == every else part


def _logged(value: Mapping[str, Any]) -> dict[str, Any]:
    """Return a line of the log, which names its round."""
    return {**value, "round": int(value["round"])}


def merged(every: Iterable[Task]) -> list[Task]:
    """Return every training once, with all its evaluations; all of the first seed come first.

    So a plan that is interrupted has results of every entry.
    """
    by_folder = dict[Path, Task]()
    for task in every:
        first = by_folder.setdefault(task.run.path, task)
        both = tuple(dict.fromkeys((*first.evaluations, *task.evaluations)))
        by_folder[task.run.path] = replace(first, evaluations=both)
    return sorted(by_folder.values(), key=lambda task: task.recipe.seed)
