"""A run of a comparison: how far it is, and what to do next."""

__all__ = ["Item", "Step"]

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from equipoise.attacks import Attack, AutoAttack
from equipoise.errors import UserError
from equipoise.evaluation import Protocol
from equipoise.evaluation.protocol import STAGED
from equipoise.jobs.store import Store
from equipoise.parsing import lines
from equipoise.sample import Sample
from equipoise.settings.recipe import Recipe
from equipoise.store.records import Record
from equipoise.store.runs import Run
from equipoise.store.verdicts import UNREADABLE, WORST, Evaluation, read
from equipoise.threat import Norm, Threat
from equipoise.version import __version__


@dataclass(frozen=True)
class Step:
    """What is to be done next for a run.

    Arguments:
        phase: ``"training"`` or ``"evaluation"``.
        words: The words after ``equipoise``.
    """

    phase: str
    words: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Item:
    """One training of a comparison with its evaluation, in a run folder of its own.

    Arguments:
        entry: The entry it belongs to.
        recipe: What is trained.
        out: The folder of the comparison.
        judging: How it is evaluated, with norm, radius and number of images filled in.
        sample: Which test images it is evaluated on.
        images: The training images of a round.
        gradients: The gradient evaluations that the training is reckoned to take.
        weights: Which of its weights, a name as for :meth:`equipoise.store.runs.Run.model`.
    """

    entry: str
    recipe: Recipe
    out: Path
    judging: Protocol
    sample: Sample
    images: int
    gradients: float
    weights: str = "model"

    @property
    def name(self) -> str:
        """Return the name of the run folder."""
        return f"{self.entry}-seed{self.recipe.seed}"

    @property
    def run(self) -> Run:
        """Return the run folder, which need not be there yet."""
        return Run(self.out / self.name)

    @property
    def log(self) -> Path:
        """Return the file that the commands of this run write to."""
        return self.out / "logs" / f"{self.name}.log"

    @property
    def threat(self) -> Threat:
        """Return what the attacks of the evaluation are allowed."""
        return self.judging.threat

    @property
    def store(self) -> Store:
        """Return where its evaluation is kept."""
        return Store.of(self.run, self.threat, self.sample, self.weights)

    # How far it is

    def rounds(self) -> list[dict[str, Any]]:
        """Return the records of the rounds that are logged, each once."""
        return list({r["round"]: r for r in lines(self.run.path / "log.jsonl", _logged)}.values())

    @property
    def trained(self) -> bool:
        """Tell whether the training is at its end."""
        return bool(self.run.read_json("summary.json").get("finished"))

    def verdicts(self) -> dict[str, dict[str, Any]] | None:
        """Return the records of the evaluation by attack; None: it is not at its end."""
        found = self._judged()
        if found is None:
            return None
        staged = self.judging.individual is False
        asked = [STAGED] if staged else list(self.judging.names)
        mine = found.verdicts.only(asked)
        records = {record["attack"]: record for record in map(Record.content, mine.records())}
        wanted = self.judging.stages
        done = {name for name, told in mine.told.items() if self._done(told)}
        if not {stage.name for stage in wanted} <= done or not {*asked} <= set(records):
            return None
        if self.judging.individual and not all(map(mine.alone, mine.told)):
            return None
        return {name: records[name] for name in ("clean", *asked, WORST)}

    def _judged(self) -> Evaluation | None:
        """Return the evaluation of this model under this protocol as far as it is; None: none."""
        try:
            found = read(self.store.path)
        except UNREADABLE:
            return None
        mine = {
            "model_sha256": self._digest(),
            "weights": self.weights,
            "sample": self.sample.content(),
            "norm": self.recipe.norm,
            "eps": repr(self.judging.eps),
        }
        return found if mine.items() <= found.about.items() else None

    def _done(self, told: Mapping[str, Any]) -> bool:
        """Tell whether an attack is at its end, and was run as this protocol has it."""
        made = told["made"]
        alike = self.judging.execution.precision in ("auto", made.get("precision"))
        return bool(told["finished"] and made.get("seed") == 0 and alike)

    def _digest(self) -> str | None:
        """Return the SHA-256 of the weights that are judged; None: there are none."""
        try:
            return self.run.digest(self.weights)
        except UserError:
            return None

    def _begun(self) -> bool:
        """Tell whether there is an evaluation of the same kind to go on with."""
        found = self._judged()
        if found is None:
            return False  # nothing there, or nothing that could be gone on with
        about = found.about
        asked = about.get("asked", {})
        return bool(
            about.get("version") == __version__
            and asked.get("attacks") == list(self.judging.names)
            and asked.get("individual") == self.judging.individual
            and (asked.get("seed"), asked.get("passes")) == (0, None)
            and self.judging.execution.precision in ("auto", found.verdicts.precision)
        )

    def state(self) -> tuple[str, str]:
        """Return in words how far training and evaluation are."""
        if not self.trained:
            begun = (self.run.path / "recipe.yaml").is_file()
            done = f"{len(self.rounds())} of {self.recipe.rounds} rounds"
            return (done if begun else "to do"), "to do"
        if self.verdicts() is not None:
            return "done", "done"
        return "done", "begun" if self._begun() else "to do"

    # How much it is

    @property
    def evaluation(self) -> float:
        """Return a rough number of the gradient evaluations of the evaluation."""
        prices = (_price(attack, self.recipe.norm) for attack in self.judging.named.values())
        return (self.judging.n or 0) * sum(prices)

    def work(self) -> float:
        """Return how much of training and evaluation is done, in gradient evaluations."""
        if not self.trained:
            return self.gradients * min(1.0, len(self.rounds()) / self.recipe.rounds)
        if self.verdicts() is not None:
            return self.gradients + self.evaluation
        found = self._judged()
        told = found.verdicts.told.values() if found else ()
        done = sum(part["backwards"] for part in told)
        return float(self.gradients + min(done, self.evaluation))

    # What to do next

    def step(self) -> Step | None:
        """Return what is to be done next; None: nothing."""
        if not self.trained:
            return Step("training", self._train())
        if self.verdicts() is None:
            return Step("evaluation", self._evaluate())
        return None

    def _train(self) -> tuple[str, ...]:
        folder = self.run.path
        if (folder / "recipe.yaml").is_file():
            return "train", "--resume", str(folder)
        return "train", str(self.out / "recipes" / f"{self.name}.yaml"), "--out", str(folder)

    def prepare(self) -> None:
        """Make what the next step needs: a place for its log, and for a new training a recipe."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        folder = self.run.path
        if not (folder / "recipe.yaml").is_file():
            for part in folder.glob(".*.part"):  # killed before there was a run
                part.unlink()
            Run(self.out / "recipes").write_text(f"{self.name}.yaml", self.recipe.to_yaml())

    def _evaluate(self) -> tuple[str, ...]:
        judging = self.judging
        words = ["evaluate", str(self.run.path)]
        words += ["--strongest", *self._how()]  # distortions are read from the points
        if self.weights != "model":
            words += ["--weights", self.weights]
        if judging.individual is not None:
            words.append("--individual" if judging.individual else "--staged")
        return *words, *(["--resume"] if self._begun() else [])

    def _how(self) -> list[str]:
        """Return the options that say how models are attacked."""
        judging = self.judging
        words = ["--attacks", ",".join(judging.names)]
        words += ["--eps", repr(judging.eps), "-n", str(judging.n)]
        words += ["--first"] if judging.first else []
        words += ["--precision", judging.execution.precision]
        words += ["--batch-size", str(judging.batch_size)]
        words += ["--device", self.recipe.device]
        if self.recipe.data_dir is not None:
            words += ["--data-dir", self.recipe.data_dir]
        return words


def _price(attack: Attack, norm: Norm) -> float:
    """Return a rough number of the gradient evaluations that an attack takes an image."""
    if isinstance(attack, AutoAttack):  # of its stages the later ones meet what is left
        return sum(_price(stage, norm) for stage in attack.stages(norm).values()) / 2
    factors = ("steps", "restarts", "targets", "binary_search_steps")
    steps = math.prod(getattr(attack, name, None) or 1 for name in factors)
    return float(steps) + getattr(attack, "queries", 0) / 3  # a query is a forward pass


def _logged(value: Mapping[str, Any]) -> dict[str, Any]:
    """Return a line of the log, which names its round."""
    return {**value, "round": int(value["round"])}
