"""How learners take their steps: what is trained, at which radius, and with which gradient.

From weights that are not robust, a robust loss at the full radius from the first step on impedes
the adaptation: the radius grows slowly instead (``eps_ramp``). A new head on trained features
would at first send them random gradients: it is trained alone first (``probe``).

References:
    | Rethinking the Epsilon in Adversarial Fine-tuning (epsilon scheduling), arXiv:2509.23325
    | Fine-Tuning can Distort Pretrained Features (Kumar et al., 2022), arXiv:2202.10054
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor, nn

from equipoise.attacks.core import refuse
from equipoise.data.core import Images
from equipoise.errors import Count, Part, UserError, out_of_range
from equipoise.models.head import heads
from equipoise.objectives.core import Batch, Objective
from equipoise.parsing import MOST

BETA = 0.999  # the second beta of AdamW
Balance = Literal["none", "loss", "sampling"]
BatchNorm = nn.modules.batchnorm._BatchNorm


@dataclass(frozen=True, kw_only=True)
class Updates:
    """How learners take their steps. By default every step is what the objective says.

    Arguments:
        eps_ramp: The part of all steps over which the radius of training attacks grows evenly from
            0 to eps; 0: it is eps from the first step on. Validation always uses eps.
        probe: The first rounds in which only the head is trained, on fixed features: the other
            weights and the statistics of BatchNorm stay as they are.
        backbone_lr: A factor on the learning rate of all weights but those of the head.
        accumulate: Into how many parts a batch is cut, which pass one after the other and need
            less memory; their gradients are summed, so that a step is one of ``batch_size``
            images.
        clip: The largest length of the gradient; a longer one is scaled to it. None: no limit.
        balance: For classes of unequal size: ``loss`` weighs each image by the inverse size of
            its class, ``sampling`` draws images of all classes equally often.
    """

    eps_ramp: Part = 0.0
    probe: Annotated[int, f"[0, {MOST}]"] = 0
    backbone_lr: Annotated[float, "(0, inf)"] = 1.0
    accumulate: Count = 1
    clip: Annotated[float, "(0, inf)"] | None = None
    balance: Balance = "none"

    def __post_init__(self) -> None:
        refuse(out_of_range(self))

    def unfit(self, learners: Mapping[str, Objective], rounds: int, batch_size: int) -> list[str]:
        """Return the reasons why this does not fit a training, a sentence each.

        Arguments:
            learners: The objectives of the learners.
            rounds: How many rounds it has.
            batch_size: The images of a step.
        """
        problems = []
        if self.probe >= rounds:
            problems.append(
                f"probe={self.probe} leaves no round of {rounds} in which more than the head is "
                "trained: set a smaller one, or more rounds"
            )
        if 2 * self.accumulate > max(batch_size, 2):
            problems.append(
                f"accumulate={self.accumulate} needs parts of two images or more, and batch_size "
                f"is {batch_size}"
            )
        whole = [name for name, learner in learners.items() if not learner.divisible]
        if whole and (self.probe or self.accumulate > 1):
            problems.append(
                f"{whole[0]}: {learners[whole[0]].objective} updates all weights with the passes "
                "that search: probe and accumulate do not fit it"
            )
        return problems

    @property
    def divides(self) -> bool:
        """Return whether the head and the other weights are treated differently."""
        return self.probe > 0 or self.backbone_lr != 1

    def head(self, model: nn.Module, images: Images) -> list[str]:
        """Return the names of the weights of a model's head; empty where they are not needed.

        Raises:
            UserError: If they are needed and cannot be found.
        """
        if not self.divides:
            return []
        names = heads(model, images.pixels(slice(0, 2)), type(model).__name__)
        if not names:
            raise UserError(
                f"probe and backbone_lr need the head of {type(model).__name__}, and none of its "
                "layers makes the logits alone: leave them out"
            )
        inside = [(name, model.get_submodule(name)) for name in names]
        return [f"{name}.{key}" for name, layer in inside for key, _ in layer.named_parameters()]

    def reach(self, progress: float) -> float:
        """Return the part of eps that training attacks have at a progress."""
        return min(1.0, progress / self.eps_ramp) if self.eps_ramp else 1.0

    def parts(self, batch: Batch) -> Iterator[tuple[Batch, float]]:
        """Yield the parts of a batch that pass one after the other, and their shares of it."""
        n = len(batch.y)
        if self.accumulate == 1:
            yield batch, 1.0
            return
        for index in torch.arange(n, device=batch.y.device).chunk(self.accumulate):
            yield batch.take(index), len(index) / n

    def weights(self, y: Tensor) -> Tensor | None:
        """Return the weight of each image in the loss, of mean 1; None: all have the same.

        Arguments:
            y: The labels of the training set, with shape (N,).
        """
        return inverse(y) if self.balance == "loss" else None

    def order(self, y: Tensor, generator: torch.Generator) -> Tensor:
        """Return the order of the images in a round, with shape (N,).

        Arguments:
            y: The labels of the training set.
            generator: Draws it.
        """
        n = len(y)
        if self.balance == "sampling":
            return torch.multinomial(inverse(y), n, replacement=True, generator=generator)
        return torch.randperm(n, generator=generator, device=y.device)

    def optimizer(
        self, objective: Objective, model: nn.Module, head: Collection[nn.Parameter]
    ) -> torch.optim.Optimizer:
        """Return the optimiser of a learner; ``scale`` of a group is a factor on its rate.

        Arguments:
            objective: The learner's objective, which has its settings, and may have parameters.
            model: The model.
            head: The weights of its head, where they are treated differently.
        """
        own = list(objective.state.parameters())
        groups: list[dict[str, object]] = [{"params": [*model.parameters(), *own]}]
        if self.divides:  # apart for a probe, too: a group's weights have their momentum together
            chosen = {id(weight) for weight in head}
            body = [weight for weight in model.parameters() if id(weight) not in chosen]
            groups = [{"params": [*head, *own]}, {"params": body, "scale": self.backbone_lr}]
        if objective.optimizer == "adamw":
            return torch.optim.AdamW(
                groups,
                lr=objective.step_size,
                betas=(objective.momentum, BETA),
                weight_decay=objective.weight_decay,
                fused=True,
            )
        return torch.optim.SGD(
            groups,
            lr=objective.step_size,
            momentum=objective.momentum,
            weight_decay=objective.weight_decay,
            nesterov=objective.nesterov and objective.momentum > 0,
            fused=True,
        )

    def clipped(self, optimizer: torch.optim.Optimizer) -> None:
        """Scale the gradient of all weights to the largest length, if it is longer."""
        if self.clip is not None:
            weights = [weight for group in optimizer.param_groups for weight in group["params"]]
            nn.utils.clip_grad_norm_(weights, self.clip)


def inverse(y: Tensor) -> Tensor:
    """Return weights of images in inverse proportion to the sizes of their classes, of mean 1."""
    sizes = y.bincount()
    weights = (1 / sizes)[y]
    return weights / weights.mean()


MOMENTA = ("momentum_buffer", "exp_avg")


def without_momentum(optimizer: torch.optim.Optimizer) -> None:
    """Set the momentum of an optimiser to zero."""
    for state in optimizer.state.values():
        for name in MOMENTA:
            if state.get(name) is not None:
                state[name].zero_()
