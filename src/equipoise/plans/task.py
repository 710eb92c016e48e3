"""One training of a plan with all its evaluations: its progress, and its next command."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from equipoise.attacks.core import cost
from equipoise.errors import UserError
from equipoise.evaluation.protocol import STAGED, Protocol
from equipoise.evaluation.stored import FRONT, Store
from equipoise.fronts.record import FrontRecord, following
from equipoise.models.origin import words
from equipoise.parsing import lines
from equipoise.sample import Sample
from equipoise.settings.recipe import Recipe
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
        folder: The run folder of the training, which may not exist yet.
        protocol: How the weights are attacked, with norm, radius and number of images.
        weights: Their name, as for :meth:`equipoise.store.runs.Run.model`.
        sample: The test images.
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
        """Return the store of the evaluation."""
        return Store.of(self.run, self.protocol.threat, self.sample, self.weights)

    @property
    def cost(self) -> float:
        """Return roughly how many gradient evaluations it takes."""
        attacks = self.protocol.named.values()
        return self.sample.n * sum(cost(each, self.protocol.threat.norm) for each in attacks)

    @property
    def finished(self) -> bool:
        """Return whether it is finished."""
        return self.verdicts() is not None

    def verdicts(self) -> Verdicts | None:
        """Return the verdicts of its attacks; None: it is not finished."""
        stored, individual = self.stored(), self.protocol.individual
        if stored is None or (not stored.finished and self._alike(stored)):
            return None  # all attacks may be finished, and the checks not
        names = [STAGED] if individual is False else self.protocol.names
        verdicts = stored.verdicts.only(names)
        finished = {
            name
            for name, outcome in verdicts.outcomes.items()
            if outcome["finished"]
            and outcome["made"].get("seed") == 0
            and self._searches_in(outcome["made"].get("precision"))
        }
        complete = (
            {stage.name for stage in self.protocol.stages} <= finished
            and {*names} <= {record.attack for record in verdicts.records()}
            and not (individual and not all(map(verdicts.alone, verdicts.outcomes)))
        )
        return verdicts if complete else None

    def counted(self) -> Iterator[tuple[str, Counted]]:
        """Yield the name of each model that was evaluated, with its verdicts by attack.

        A stage of an ensemble has an entry if every stage attacked all correct images. If all
        attacks are stages, an entry has the images that are correct under it and those before it.
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
        """Return how many gradient evaluations of it are done."""
        if self.finished:
            return self.cost
        stored = self.stored()
        parts = stored.verdicts.outcomes.values() if stored else ()
        return float(min(sum(part["backwards"] for part in parts), self.cost))

    def words(self) -> list[str]:
        """Return the command that starts or continues it: the words after ``equipoise``."""
        words = ["evaluate", str(self.folder), "--strongest", *self._protocol_words()]
        if self.weights != "model":
            words += ["--weights", self.weights]
        if self.protocol.individual is not None:
            words.append("--individual" if self.protocol.individual else "--staged")
        stored = self.stored()
        if stored and stored.about.get("version") == __version__ and self._alike(stored):
            words.append("--resume")
        return words

    def _protocol_words(self) -> list[str]:
        protocol = self.protocol
        options = {
            "--attacks": ",".join(protocol.names),
            "--eps": repr(protocol.eps),
            "-n": str(protocol.n),
            "--precision": protocol.execution.precision,
        }
        if protocol.batch_size is not None:
            options["--batch-size"] = str(protocol.batch_size)
        return [*chain(*options.items()), *(["--first"] if protocol.first else [])]

    def stored(self) -> Evaluation | None:
        """Return the stored evaluation of these weights, images and threat; None: none."""
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

    def _alike(self, stored: Evaluation) -> bool:
        """Return whether a stored evaluation has the same protocol."""
        asked, protocol = stored.about.get("asked", {}), self.protocol
        keys = ("attacks", "individual", "seed", "passes")
        same = [*map(asked.get, keys)] == [list(protocol.names), protocol.individual, 0, None]
        return same and self._searches_in(stored.verdicts.precision)

    def _searches_in(self, precision: str | None) -> bool:
        return self.protocol.execution.precision in ("auto", precision)


@dataclass(frozen=True, kw_only=True)
class PlannedFront(PlannedEvaluation):
    """The models between two learners, measured on held-out images by ``equipoise front``.

    Arguments:
        points: The largest number of models.
    """

    points: int

    def front(self) -> FrontRecord | None:
        """Return the measured front; None: there is none with this protocol."""
        try:
            record = FrontRecord.read(self.folder)
            digests = tuple(self.run.digest(name) for name in PAIR)
        except UserError:
            return None  # `equipoise front` reports the damage
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
        """Return roughly how many gradient evaluations all points take."""
        return self.points * super().cost

    def counted(self) -> Iterator[tuple[str, Counted]]:
        """Yield the name of each measured mix, with its clean and its worst-case verdicts.

        Raises:
            UserError: If the stored evaluation of a mix is damaged.
        """
        record = self.front()
        for point in record.points if record else ():
            path = self.folder / point.file
            try:
                verdicts = read(path).verdicts
            except UNREADABLE:
                raise UserError(
                    f"{path} is damaged; remove it and repeat the command, which measures that "
                    "model again"
                ) from None
            worst = verdicts.robust, point.seconds
            yield (
                canonical(f"gamma-{point.gamma!r}"),
                {"clean": (verdicts.correct, 0.0), WORST: worst},
            )

    def done(self) -> float:
        """Return how many gradient evaluations of it are done."""
        stored = len(list((self.folder / FRONT).glob("*.safetensors")))
        return self.cost if self.finished else self.cost * min(1.0, stored / self.points)

    def words(self) -> list[str]:
        """Return the command that starts or continues it: the words after ``equipoise``."""
        words = ["--ends", *PAIR, *self._protocol_words()]  # though a run may have a third end
        return ["front", str(self.folder), *words, "--points", str(self.points)]


@dataclass(frozen=True, kw_only=True)
class Task:
    """One training with all its evaluations, in a run folder of its own.

    Arguments:
        plan: The name of its plan; empty for the only plan of a folder.
        entry: The name of its entry.
        recipe: The recipe of the training.
        out: The parent of the run folder.
        evaluations: The evaluations of the trained model, each once.
        images: The number of training images of a round (epoch).
        gradients: The expected gradient evaluations of the training.
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
        """Return its name, which is unique."""
        return f"{self.plan}/{self.run.path.name}" if self.plan else self.run.path.name

    @property
    def run(self) -> Run:
        """Return the run folder, which may not exist yet."""
        return Run(self.out / f"{self.entry}-seed{self.recipe.seed}")

    @property
    def log(self) -> Path:
        """Return the file with the output of its commands."""
        return self.out / "logs" / f"{self.run.path.name}.log"

    def rounds(self) -> list[dict[str, Any]]:
        """Return the records of the rounds in the log, each round once.

        Raises:
            UserError: If a line of the log is damaged.
        """
        logged = lines(self.run.path / "log.jsonl", lambda r: {**r, "round": int(r["round"])})
        return list({record["round"]: record for record in logged}.values())

    @property
    def trained(self) -> bool:
        """Return whether the training is finished."""
        return bool(self.run.read_json("summary.json").get("finished"))

    @property
    def begun(self) -> bool:
        """Return whether the training has begun."""
        return (self.run.path / "recipe.yaml").is_file()

    def step(self) -> list[str] | None:
        """Return the next command, the words after ``equipoise``; None: all is finished."""
        folder = self.run.path
        if not self.trained:
            new = [str(self.out / "recipes" / f"{folder.name}.yaml"), "--out", str(folder)]
            own = words(self.recipe.model)
            return ["train", *(["--resume", str(folder), *own] if self.begun else new)]
        evaluation = next((each for each in self.evaluations if not each.finished), None)
        if evaluation is None:
            return None
        place = [] if self.recipe.data_dir is None else ["--data-dir", self.recipe.data_dir]
        place += words(self.recipe.model)
        return [*evaluation.words(), "--device", self.recipe.device, *place]

    def prepare(self) -> None:
        """Make the folder of the log, and for a new training the file of its recipe."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        folder = self.run.path
        if not self.begun:
            for part in folder.glob(".*.part"):  # of a training that was killed at its start
                part.unlink()
            Run(self.out / "recipes").write(f"{folder.name}.yaml", self.recipe.to_yaml())

    @property
    def cost(self) -> float:
        """Return roughly how many gradient evaluations training and evaluations take."""
        return self.gradients + sum(evaluation.cost for evaluation in self.evaluations)

    def done(self) -> float:
        """Return how many gradient evaluations are done."""
        if not self.trained:
            return self.gradients * min(1.0, len(self.rounds()) / self.recipe.rounds)
        return self.gradients + sum(evaluation.done() for evaluation in self.evaluations)

    def state(self) -> tuple[str, str]:
        """Return the state of the training and of the evaluations, in words."""
        if not self.trained:
            rounds = f"{len(self.rounds())} of {self.recipe.rounds} rounds"
            return rounds if self.begun else "to do", "to do"
        finished, every = sum(each.finished for each in self.evaluations), len(self.evaluations)
        part = f"{finished} of {every}" if finished else "to do"
        if not finished and any(each.done() for each in self.evaluations):
            part = "begun"
        return "done", "done" if finished == every else part


def merged(every: Iterable[Task]) -> list[Task]:
    """Return every training once, with all its evaluations, sorted by seed.

    So a plan that is interrupted has results of every entry.
    """
    by_folder = dict[Path, Task]()
    for task in every:
        first = by_folder.setdefault(task.run.path, task)
        both = tuple(dict.fromkeys((*first.evaluations, *task.evaluations)))
        by_folder[task.run.path] = replace(first, evaluations=both)
    return sorted(by_folder.values(), key=lambda task: task.recipe.seed)
