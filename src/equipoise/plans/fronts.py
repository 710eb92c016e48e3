"""Fronts as evaluations of a reproduction: measured on held-out images by ``equipoise front``."""

__all__ = ["FrontItem"]

from dataclasses import dataclass, fields
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from equipoise.errors import UserError
from equipoise.fronts.choice import following
from equipoise.fronts.ledger import FOLDER, Ledger
from equipoise.fronts.points import Point
from equipoise.fronts.record import Record
from equipoise.plans.runs import Item
from equipoise.sample import Sample
from equipoise.store.verdicts import WORST
from equipoise.store.weight_names import PAIR


@dataclass(frozen=True, kw_only=True)
class FrontItem(Item):
    """A training of two learners, with the models between them as its evaluation.

    Arguments:
        points: How many of them are measured at most.
    """

    points: int

    @classmethod
    def of(cls, item: Item, points: int) -> Self:
        """Return a training that is judged by its front."""
        given = {f.name: getattr(item, f.name) for f in fields(item)}
        return cls(**given, points=points)

    def front(self) -> Record | None:
        """Return the measured front; None: it is not there as it is asked for."""
        try:
            known = Record.read(self.run.path)
            digests = tuple(self.run.digest(name) for name in PAIR)
        except UserError:
            return None  # the command that measures says what is damaged
        if known is None:
            return None
        judging = self.judging
        models = (PAIR, digests, "average") == (known.ends, known.sha256, known.batchnorm)
        threat = (self.recipe.norm, judging.eps) == (known.norm, known.eps)
        how = (judging.names, judging.n) == (known.attacks, known.n)
        if not (models and threat and how and self._drawn(known.sample)):
            return None
        enough = len(known.points) >= self.points or following(known.points) is None
        whole = all((self.run.path / point.file).is_file() for point in known.points)
        return known if enough and whole else None

    def verdicts(self) -> dict[str, dict[str, Any]] | None:
        """Return the whole front as the worst case of its attacks; None: it is not at its end."""
        known = self.front()
        return None if known is None else {WORST: known.content()}

    def flags(self, point: Point) -> dict[str, NDArray[np.bool_]]:
        """Return which images a model of the front gets right: clean, and under every attack.

        Raises:
            UserError: If what was kept of it is damaged.
        """
        found = Ledger(self.run).read(point.file)
        if found is None:
            raise UserError(
                f"{self.run.path / point.file} is damaged; remove it and repeat the command: "
                "that model is measured again"
            )
        return {"clean": found[1].correct.numpy(), WORST: found[1].robust.numpy()}

    @property
    def evaluation(self) -> float:
        """Return a rough number of the gradient evaluations of all points."""
        return self.points * super().evaluation

    def work(self) -> float:
        """Return how much of training and front is done, in gradient evaluations."""
        if not self.trained:
            return super().work()
        if self.front() is not None:
            return self.gradients + self.evaluation
        there = len(list((self.run.path / FOLDER).glob("*.safetensors")))
        return self.gradients + self.evaluation * min(1.0, there / self.points)

    def state(self) -> tuple[str, str]:
        """Return in words how far training and front are."""
        if not self.trained or self.front() is not None:
            return super().state()
        return "done", "begun" if (self.run.path / FOLDER).is_dir() else "to do"

    def _drawn(self, sample: Sample | None) -> bool:
        """Tell whether a run's held-out images were chosen as is asked for."""
        if sample is None:
            return False
        return sample.n == sample.of or (sample.seed is None) == self.judging.first

    def _evaluate(self) -> tuple[str, ...]:
        return "front", str(self.run.path), *self._how(), "--points", str(self.points)
