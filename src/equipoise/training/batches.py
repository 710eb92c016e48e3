"""The batches of the learners in a step: drawn, shared, or another learner's adversarial ones."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from equipoise.data.core import Images
from equipoise.objectives.core import Batch
from equipoise.training.augment import Augment
from equipoise.training.learner import Learner
from equipoise.training.method import Method
from equipoise.training.ranks import Ranks


class Batches:
    """The batches of the current step.

    A learner may get the batch of another one, its leader: as it was drawn, or, if it follows the
    leader, with the adversarial inputs that the leader has found. If another process trains the
    leader, it sends them.

    Arguments:
        method: The method.
        learners: Its learners.
        images: The training images.
        augment: Their augmentation.
        size: The images of a batch.
        ranks: The processes of the training.
    """

    def __init__(
        self,
        method: Method,
        learners: Mapping[str, Learner],
        images: Images,
        augment: Augment,
        size: int,
        ranks: Ranks,
    ) -> None:
        self.method, self.learners, self.images = method, learners, images
        self.augment, self.size, self.ranks = augment, size, ranks
        self.drawn: dict[str, Batch] = {}

    def of(self, learner: Learner, active: Sequence[Learner], step: int, at: float) -> Batch:
        """Return the batch of a learner.

        Arguments:
            learner: The learner.
            active: The learners of the round.
            step: The step of the round.
            at: The progress of the training.
        """
        leader = self.method.leader(learner.name, active[0].name)
        if leader is None:
            batch = learner.batch(self.images, self.augment, self.size, step, at)
        elif self.ranks.trains(leader):
            x_adv = self.learners[leader].objective.state.adversarial
            batch = self.drawn[leader]._replace(adversarial=x_adv)
        else:
            batch = self._received(learner, leader, at)
        self.drawn[learner.name] = batch
        self._pass_on(learner, active, after=False)
        return batch

    def stepped(self, learner: Learner, active: Sequence[Learner]) -> None:
        """Send on what a learner has found in its step."""
        self._pass_on(learner, active, after=True)

    def _pass_on(self, leader: Learner, active: Sequence[Learner], *, after: bool) -> None:
        """Send a batch to the learners of other processes that need it, before or after a step."""
        for learner in active:
            led = self.method.leader(learner.name, active[0].name) == leader.name
            if led and _follows(learner) == after and not self.ranks.trains(learner.name):
                batch, x_adv = self.drawn[leader.name], leader.objective.state.adversarial
                found = [x_adv] if after and x_adv is not None else []
                self.ranks.send(learner.name, [batch.x, batch.index, *found])

    def _received(self, learner: Learner, leader: str, at: float) -> Batch:
        n = min(self.size, len(self.images))
        x = torch.empty_like(self.images.pixels(slice(0, n)))
        like: list[Tensor] = [x, self.learners[leader].order[:n]]
        if _follows(learner):
            like.append(x)
        x, index, *found = self.ranks.receive(leader, like)
        weight = None if learner.weights is None else learner.weights[index]
        return Batch(x, self.images.y[index], index, at, found[0] if found else None, weight)


def _follows(learner: Learner) -> bool:
    return learner.objective.follows is not None
