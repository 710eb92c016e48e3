r"""Merging learners into one global model (the paper's Eq. 4 and 8).

.. math:: \theta_g \leftarrow \alpha' \theta_g
          + (1 - \alpha') (\gamma \theta_r + (1 - \gamma) \theta_n)

once a step. This is linear in the learners, so each learner can carry its own share

.. math:: A_i \leftarrow \alpha' A_i + (1 - \alpha') w_i \theta_i,
          \qquad \theta_g = \sum_i A_i,

where one of the shares begins as :math:`\theta_0` and the others at zero, and does not need the
other learners until a hand-over. (That is a result of this project. The paper's "asynchronous"
means that learners are trained independently up to an adaptive t'; Generalist's is fixed.)
Everything that the text leaves open is a field here; ``docs/decisions.md`` lists the readings.

References:
    | A3GT: An Adaptive Asynchronous Generalized Adversarial Training Method (He et al., 2024)
    | https://doi.org/10.3390/electronics13204052
    | Generalist: Decoupling Natural and Robust Generalization (Wang and Wang, 2023)
    | https://arxiv.org/abs/2303.13813
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal

import torch
from torch import Tensor, nn

from equipoise.attacks.core import refuse
from equipoise.errors import Count, UserError, out_of_range
from equipoise.objectives.core import Knots
from equipoise.parsing import MOST
from equipoise.training.start import AnyStart, Stable

State = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Merge:
    r"""The rule that makes one model of several learners, as a recipe sets it.

    Arguments:
        gamma: The robust learner's weight at evenly spread places; one number: everywhere; None:
            1, as long as it is not chosen.
        more_gamma: The weights of further learners, likewise. The clean learner has the rest.
        anchor: Whether gamma runs from t' on (``start``: its progress is 0 up to t' and 1 at the
            end, so that with gamma(0) = 1 the first merge has the weights of the robust learner
            alone) or from the first round (``clock``, as in the Generalist code).
        horizon: How far back the weight average looks, in rounds: with S steps a round it keeps
            alpha' = 1 - 1/(horizon S) of itself a step, never less than 0; 0: no average.
        warmup: Whether the decay is at most (s + 1) / (s + 10) at step s; a global model that is
            formed at t' needs none.
        global_from: Whether the global model is averaged from the ``first-step`` on (the
            Generalist code) or formed at ``start``, t', as the mix of the learners (the paper's
            text). Up to t' it is then the mix at any time.
        average_every: Whether the global model is averaged after every ``step`` (the Generalist
            code), after every ``round``, or after each round that hands over (``handover``, the
            paper's Eq. 8). Running averages of learners take every step.
        batches: Whether each learner draws its ``own`` minibatches (the paper: the learners are
            independent), or all get the same augmented ones, those of the first (``shared``, the
            Generalist code).
        source: Whether the learners' ``weights`` are merged (the paper's Eq. 4) or their running
            ``average`` (the Generalist code).
        every: The rounds between two hand-overs of the global weights, c; None: no hand-overs.
        count: Whether t mod c counts ``rounds`` (the paper) or those ``since-start``.
        inclusive: Whether there is a hand-over at t' itself: the paper's formula says t > t', its
            text and the Generalist code say t >= t'. If t' is found at the end of its round,
            hand-overs after every step begin with a later round.
        granularity: Hand over at the end of a ``round`` (the paper) or after every ``step`` of it
            (the Generalist code).
        momentum: Whether the optimisers ``keep`` their momentum at a hand-over or ``zero`` it.
        batchnorm: ``average`` the statistics, ``estimate`` them on a mix of the learners' inputs,
            in proportion to their weights, or train with those that are given, ``frozen``.
        start: The rule for t'.
    """

    gamma: Annotated[float | tuple[float, ...], "[0, 1]"] | None = (1.0, 1.0, 1.0, 0.4)
    more_gamma: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    anchor: Literal["start", "clock"] = "start"
    horizon: Annotated[float, f"[0, {MOST}]"] = 2.5
    warmup: bool = True
    global_from: Literal["first-step", "start"] = "first-step"
    average_every: Literal["step", "round", "handover"] = "step"
    batches: Literal["own", "shared"] = "own"
    source: Literal["weights", "average"] = "weights"
    every: Count | None = 5
    count: Literal["rounds", "since-start"] = "since-start"
    inclusive: bool = True
    granularity: Literal["round", "step"] = "round"
    momentum: Literal["keep", "zero"] = "keep"
    batchnorm: Literal["average", "estimate", "frozen"] = "average"
    start: AnyStart = field(default_factory=Stable)

    def __post_init__(self) -> None:
        problems = out_of_range(self)
        problems += [
            f"more_gamma.{name} must lie in [0, 1], got {list(values)}"
            for name, values in self.more_gamma.items()
            if not values or not all(0 <= value <= 1 for value in values)
        ]
        if self.batchnorm == "estimate" and self.granularity == "step":
            problems.append(
                "batchnorm=estimate with granularity=step would estimate after every step; choose "
                "granularity=round"
            )
        refuse([*problems, *self._unfit_readings()])
        names, limit = sorted(self.knots()), getattr(self.start, "threshold", None)
        if isinstance(limit, Mapping) and sorted(limit) != names:
            raise UserError(f"start.threshold must name each of {names}, got {sorted(limit)}")

    def _unfit_readings(self) -> list[str]:
        problems = []
        if self.average_every != "step" and self.granularity == "step":
            problems.append(
                "granularity=step would hand over the same global model after every step with "
                f"average_every={self.average_every}; choose granularity=round"
            )
        if self.average_every == "handover" and self.every is None:
            problems.append("average_every=handover needs hand-overs: give every")
        if self.average_every == "handover" and self.global_from == "first-step":
            problems.append(
                "average_every=handover would average the initial weights; choose "
                "global_from=start"
            )
        if self.global_from == "start" and self.start.rule == "never":
            problems.append(
                "global_from=start never forms a global model with start.rule=never; choose "
                "global_from=first-step"
            )
        return problems

    @property
    def gammas(self) -> tuple[float, ...]:
        """Return the values of gamma."""
        gamma = 1.0 if self.gamma is None else self.gamma
        return gamma if isinstance(gamma, tuple) else (gamma,)

    @property
    def averages(self) -> bool:
        """Return whether the global model is an average over steps."""
        return self.horizon > 0

    def knots(self) -> dict[str, Knots]:
        """Return the weights of all learners over the progress; the clean learner has the rest."""
        given = {"robust": Knots(self.gammas)}
        given |= {name: Knots(tuple(values)) for name, values in self.more_gamma.items()}
        places = sorted({place for knots in given.values() for place in knots.places})
        left = tuple(1 - sum(knots(place) for knots in given.values()) for place in places)
        if min(left) < -1e-9:
            raise UserError(
                "gamma and more_gamma may sum to at most 1 everywhere; the clean learner has the "
                f"rest, here {min(left):.3g}: set gamma, too, like gamma=[1, 0.4]"
            )
        clean = Knots(tuple(max(value, 0.0) for value in left), tuple(places))
        return {"clean": clean, **given}

    def progress(self, t: int, rounds: int, start: int | None) -> float:
        """Return the progress of gamma in round ``t`` (from 1), with :math:`t'` = start."""
        if self.anchor == "clock":
            return t / rounds
        if start is None or t <= start or rounds <= start:
            return 0.0
        return (t - start) / (rounds - start)

    def due(self, t: int, start: int | None) -> bool:
        r"""Return whether round ``t`` hands over: :math:`\mathcal{B}(t, t', c)`, t' = start."""
        if self.every is None or start is None or t < start:
            return False
        if t == start and not self.inclusive:
            return False
        counted = t if self.count == "rounds" else t - start
        return counted % self.every == 0

    def decay(self, updates: float) -> float:
        r"""Return :math:`\alpha'` of an average with so many updates a round."""
        return max(0.0, 1 - 1 / (self.horizon * updates)) if self.averages else 0.0

    def memory(self, update: int, updates: float) -> float:
        """Return the decay at an update, counted from 0 over the whole training.

        Arguments:
            update: The update.
            updates: The updates a round.
        """
        decay = self.decay(updates)
        return min(decay, (update + 1) / (update + 10)) if self.warmup else decay

    def kept(self, t: int, step: int, steps: int, start: int | None) -> float | None:
        """Return how much of itself the global model keeps after a step; None: it stays as it is.

        Arguments:
            t: The round, from 1.
            step: The step of the round, from 0.
            steps: The steps of a round.
            start: t'; None: not found before this round.
        """
        if self.average_every != "step" and step + 1 < steps:
            return None
        if self.global_from == "start" and (start is None or t <= start):
            return 0.0
        if self.average_every == "handover":
            return self.decay(1 / (self.every or 1)) if self.due(t, start) else None
        update, updates = ((t - 1) * steps + step, steps)
        if self.average_every == "round":
            update, updates = t - 1, 1
        first = self.global_from == "first-step"
        return self.memory(update, updates) if first else self.decay(updates)


def averaged_names(model: nn.Module) -> list[str]:
    """Return the names in a model's state that are merged: parameters and BatchNorm statistics.

    Other buffers are constants, like the normalisation's, or counters: they are copied.
    """
    statistics = {
        f"{name}.{key}".lstrip(".")
        for name, module in model.named_modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm)
        for key, buffer in module.named_buffers(recurse=False)
        if buffer.is_floating_point()
    }
    weights = model.named_parameters(remove_duplicate=False)  # tied ones under all their names
    return [*(name for name, _ in weights), *sorted(statistics)]


class Share:
    """One learner's part of the global weights, and its running average if that is merged.

    Arguments:
        start: The learner's initial state.
        names: The entries of it that are merged.
        average: Whether the running average is merged rather than the weights.
    """

    def __init__(self, start: Mapping[str, Tensor], names: Sequence[str], average: bool) -> None:
        self.parts = {name: torch.zeros_like(start[name]) for name in names}
        self.average = {name: start[name].clone() for name in names} if average else {}

    @torch.no_grad()
    def carry(self, start: Mapping[str, Tensor]) -> None:
        """Start from the initial weights; exactly one share does."""
        for name, part in self.parts.items():
            part.copy_(start[name])

    @torch.no_grad()
    def add(
        self, state: Mapping[str, Tensor], memory: float, weight: float, kept: float | None
    ) -> None:
        """Take one step of the moving averages with the learner's current state.

        Arguments:
            state: That state.
            memory: The decay of the running average, if there is any.
            weight: The weight of the learner.
            kept: The decay of the part; None: it stays as it is.
        """
        parts, values = list(self.parts.values()), [state[name] for name in self.parts]
        if self.average:
            average = list(self.average.values())
            torch._foreach_lerp_(average, values, 1 - memory)
            values = average
        if kept is None:
            return
        torch._foreach_mul_(parts, kept)
        torch._foreach_add_(parts, values, alpha=(1 - kept) * weight)

    def state_dict(self) -> dict[str, State]:
        """Return what a resumed run needs."""
        return {"parts": dict(self.parts), "average": dict(self.average)}

    def load_state_dict(self, state: Mapping[str, State]) -> None:
        """Restore a saved share."""
        for name, part in self.parts.items():
            part.copy_(state["parts"][name])
        for name, value in self.average.items():
            value.copy_(state["average"][name])


def total(shares: Iterable[Share], others: Mapping[str, Tensor]) -> State:
    """Return the global weights: the sum of every learner's share.

    Arguments:
        shares: The shares of the learners.
        others: A state with all entries; those in no share are copied from it.
    """
    first, *rest = shares
    parts = {name: part.clone() for name, part in first.parts.items()}
    for share in rest:
        for name, part in share.parts.items():
            parts[name].add_(part)
    return {name: parts[name] if name in parts else v.clone() for name, v in others.items()}
