r"""Merging learners into one global model (the paper's Eq. 4 and 8).

.. math:: \theta_g \leftarrow \alpha' \theta_g
          + (1 - \alpha') (\gamma \theta_r + (1 - \gamma) \theta_n)

once a step. This is linear in the learners, so each learner can carry its own share

.. math:: A_i \leftarrow \alpha' A_i + (1 - \alpha') w_i \theta_i,
          \qquad \theta_g = \sum_i A_i,

where one of the shares begins as :math:`\theta_0` and the others at zero, and needs nothing of
the others until weights are handed back. That is the paper's "asynchronous", exactly. Whatever
the text leaves open is a field here; ``docs/decisions.md`` lists the readings.

References:
    | A3GT: An Adaptive Asynchronous Generalized Adversarial Training Method (He et al., 2024)
    | https://doi.org/10.3390/electronics13204052
    | Generalist: Decoupling Natural and Robust Generalization (Wang and Wang, 2023)
    | https://arxiv.org/abs/2303.13813
"""

__all__ = ["Handover", "Merge", "Share", "State", "Weights", "averaged_names", "total"]

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from equipoise.errors import UserError
from equipoise.training.schedule import Knots
from equipoise.training.start import Never, Start

State = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Weights:
    r"""How much each learner counts in a round; two learners count gamma and 1 - gamma.

    Arguments:
        knots: For each learner its weight over the progress; together they are one.
        anchor: ``"start"``: progress runs from 0 at :math:`t'` to 1 at the end, and is 0
            before, so that the first merge of learners that were trained apart follows one of
            them alone where :math:`\gamma(0) = 1`. ``"clock"``: it runs from the first round
            on, as the Generalist code has it.
    """

    knots: Mapping[str, Knots]
    anchor: Literal["start", "clock"] = "start"

    def __post_init__(self) -> None:
        places = {place for knots in self.knots.values() for place in knots.places}
        just_left = {place - 1e-9 for place in places if place > 0}  # of a jump
        for place in sorted(places | just_left):
            weights = [knots(place) for knots in self.knots.values()]
            if abs(sum(weights) - 1) > 1e-6 or min(weights) < 0:
                raise UserError(f"the learners' weights must be >= 0 and sum to 1, got {weights}")

    def at(self, t: int, rounds: int, start: int | None) -> dict[str, float]:
        """Return the weights in round ``t`` (from 1) of ``rounds``, with :math:`t'` = start."""
        if self.anchor == "clock":
            progress = t / rounds
        elif start is None or t <= start or rounds <= start:
            progress = 0.0
        else:
            progress = (t - start) / (rounds - start)
        return {name: knots(progress) for name, knots in self.knots.items()}


@dataclass(frozen=True, kw_only=True)
class Handover:
    r"""When the learners go on from the global weights: :math:`\mathcal{B}(t, t', c)`.

    Arguments:
        every: :math:`c`, in rounds; None: never.
        count: What is divided by c: the round ``t`` itself (``"rounds"``, the paper's
            :math:`t \bmod c`) or the rounds since the start (``"since-start"``).
        inclusive: Whether :math:`t = t'` counts: the paper's formula says :math:`t > t'`, its
            text and the Generalist code say :math:`t \ge t'`. Where t' is found at the end of
            its round, a hand-over after every step begins with a later round.
        granularity: At the end of such a ``"round"`` (the paper), or after every ``"step"`` of
            it (the Generalist code).
        momentum: What becomes of the optimisers' momentum: ``"keep"`` or ``"zero"``.
    """

    every: int | None = None
    count: Literal["rounds", "since-start"] = "since-start"
    inclusive: bool = True
    granularity: Literal["round", "step"] = "round"
    momentum: Literal["keep", "zero"] = "keep"

    def __post_init__(self) -> None:
        if self.every is not None and self.every < 1:
            raise UserError(f"every must be at least 1 round, got {self.every}")

    def due(self, t: int, start: int | None) -> bool:
        """Tell whether round ``t`` hands over, with :math:`t'` = start."""
        if self.every is None or start is None or t < start:
            return False
        if t == start and not self.inclusive:
            return False
        counted = t if self.count == "rounds" else t - start
        return counted % self.every == 0


@dataclass(frozen=True, kw_only=True)
class Merge:
    r"""The rule that makes one model of several learners.

    Arguments:
        weights: How much each learner counts.
        alpha: :math:`\alpha'`, the memory of the global model, per step; 0 is no averaging.
        warmup: Whether the memory grows in, as :math:`\min(\alpha', (s + 1)/(s + 10))`.
        source: What is merged: the learners' ``"weights"`` (the paper's Eq. 4) or their running
            ``"average"`` (the Generalist code).
        twice: Whether running averages, when they are merged, are averaged once more, as in the
            Generalist code; else the global model is their weighted sum at the moment.
        start: The rule for :math:`t'`.
        handover: When the learners go on from the global weights.
        batchnorm: Statistics of the global model: ``"average"`` of the learners', or
            ``"estimate"`` on a mix of the learners' own inputs, weighted as they are.
    """

    weights: Weights
    alpha: float = 0.0
    warmup: bool = True
    source: Literal["weights", "average"] = "weights"
    twice: bool = True
    start: Start = field(default_factory=Never)
    handover: Handover = field(default_factory=Handover)
    batchnorm: Literal["average", "estimate"] = "average"

    def __post_init__(self) -> None:
        if self.batchnorm == "estimate" and self.handover.granularity == "step":
            raise UserError(
                "batchnorm=estimate would be estimated after every step; choose granularity=round"
            )
        if not 0 <= self.alpha < 1:
            raise UserError(f"alpha must lie in [0, 1), got {self.alpha}")
        if not self.twice and self.source != "average":
            raise UserError(
                "weights are averaged once, or never: twice=false is for source=average"
            )

    def memory(self, step: int) -> float:
        r"""Return :math:`\alpha'` at a step, counted from 0 over the whole training."""
        return min(self.alpha, (step + 1) / (step + 10)) if self.warmup else self.alpha

    def kept(self, memory: float) -> float:
        """Return how much of the global model stays in a step with such a memory."""
        return memory if self.twice else 0.0


def averaged_names(model: nn.Module) -> list[str]:
    """Return what of a model's state is merged: parameters and BatchNorm statistics.

    Other buffers are constants, like the normalisation's, or count: they are copied.
    """
    statistics = {
        f"{name}.{key}".lstrip(".")
        for name, module in model.named_modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm)
        for key, buffer in module.named_buffers(recurse=False)
        if buffer.is_floating_point()
    }
    return [*(name for name, _ in model.named_parameters()), *sorted(statistics)]


class Share:
    """One learner's part of the global weights, and its running average where that is merged.

    Arguments:
        start: The learner's initial state.
        names: The entries of it that are merged.
        average: Whether the running average is merged rather than the weights.
    """

    def __init__(self, start: Mapping[str, Tensor], names: Sequence[str], average: bool) -> None:
        self.names = list(names)
        self.parts = [torch.zeros_like(start[name]) for name in self.names]
        self.average = [start[name].clone() for name in self.names] if average else None

    @torch.no_grad()
    def carry(self, start: Mapping[str, Tensor]) -> None:
        """Begin with the initial weights, which are in one of all shares."""
        for name, part in zip(self.names, self.parts, strict=True):
            part.copy_(start[name])

    @torch.no_grad()
    def add(
        self, state: Mapping[str, Tensor], memory: float, weight: float, kept: float | None = None
    ) -> None:
        """Take one step: forget the past and add the learner's present state.

        Arguments:
            state: That state.
            memory: What the running average keeps of itself, if there is one.
            weight: How much the learner counts.
            kept: What the part keeps of itself; None: as the average.
        """
        kept = memory if kept is None else kept
        values = [state[name] for name in self.names]
        if self.average is not None:
            torch._foreach_lerp_(self.average, values, 1 - memory)
            values = self.average
        torch._foreach_mul_(self.parts, kept)
        torch._foreach_add_(self.parts, values, alpha=(1 - kept) * weight)

    def state_dict(self) -> dict[str, State]:
        """Return what a resumed run needs."""
        averages = {} if self.average is None else dict(zip(self.names, self.average, strict=True))
        return {"parts": dict(zip(self.names, self.parts, strict=True)), "average": averages}

    def load_state_dict(self, state: Mapping[str, State]) -> None:
        """Go on from a saved share."""
        for name, part in zip(self.names, self.parts, strict=True):
            part.copy_(state["parts"][name])
        for name, value in zip(self.names, self.average or (), strict=self.average is not None):
            value.copy_(state["average"][name])


def total(shares: Iterable[Share], others: Mapping[str, Tensor]) -> State:
    """Return the global weights: the sum of every learner's share.

    Arguments:
        shares: The shares of the learners.
        others: A state with all entries; those that no share has are taken from it.
    """
    first, *rest = shares
    parts = {name: part.clone() for name, part in zip(first.names, first.parts, strict=True)}
    for share in rest:
        for name, part in zip(share.names, share.parts, strict=True):
            parts[name].add_(part)
    return {name: parts[name] if name in parts else v.clone() for name, v in others.items()}
