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

from collections.abc import Collection, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from torch import Tensor, nn

from equipoise.attacks.core import refuse
from equipoise.errors import Count, UserError, out_of_range
from equipoise.objectives.core import Knots
from equipoise.parsing import MOST
from equipoise.training.shares import Share, averaged_names, total
from equipoise.training.start import AnyStart, Stable


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

    def over(
        self,
        learners: Mapping[str, nn.Module],
        *,
        rounds: int,
        steps: int,
        trunk: str | None = None,
    ) -> "Merging":
        """Return the merge of learners that are trained in a loop of your own.

        Arguments:
            learners: The models by name: ``clean``, ``robust``, those of ``more_gamma``, and the
                trunk; all of one architecture, and the same weights.
            rounds: How many rounds (epochs) the training has in all.
            steps: The steps of a round.
            trunk: The learner that trains alone until t'; then the others start from it. None: all
                train from the start.

        Raises:
            UserError: If the names do not fit, or the rule needs the training images.
        """
        return Merging(self, learners, rounds, steps, trunk)


class Merging:
    """A global model of learners that are trained in a loop of your own.

    It is made by :meth:`Merge.over`, and gives the weights that a training of equipoise gives.

    Arguments:
        rule: The rule; the next arguments are those of :meth:`Merge.over`.
    """

    def __init__(
        self,
        rule: Merge,
        learners: Mapping[str, nn.Module],
        rounds: int,
        steps: int,
        trunk: str | None,
    ) -> None:
        self.rule, self.rounds, self.steps, self.trunk = rule, rounds, steps, trunk
        self.knots, self.learners = rule.knots(), dict(learners)
        wanted = {*self.knots, *([trunk] if trunk else [])}
        if set(self.learners) != wanted:
            raise UserError(f"expected learners {sorted(wanted)}, got {sorted(self.learners)}")
        if rule.batchnorm == "estimate" or rounds < 1 or steps < 1:
            raise UserError(
                "expected a round and a step at least, and batchnorm=average or frozen"
            )
        average = rule.source == "average"
        self.shares = {
            name: Share(model.state_dict(), averaged_names(model), average)
            for name, model in self.learners.items()
        }
        carrier = trunk or max(self.knots, key=lambda name: self.knots[name](0.0))
        self.shares[carrier].carry(self.learners[carrier].state_dict())
        self.done = 0
        self.losses: dict[str, list[float]] = {name: [] for name in self.knots}
        self.start = rule.start(self.losses, rounds).round

    @property
    def round(self) -> int:
        """The round of the next step, from 1."""
        return self.done // self.steps + 1

    @property
    def active(self) -> list[str]:
        """The names of the learners to train in the round of the next step."""
        names = [name for name in self.learners if name in self.knots]
        return [str(self.trunk)] if self._alone else names

    @property
    def _alone(self) -> bool:
        """Whether only the trunk is trained."""
        return self.trunk is not None and (self.start is None or self.round <= self.start)

    @property
    def weights(self) -> dict[str, float]:
        """The weight of each learner in the round of the next step."""
        if self._alone:
            return {str(self.trunk): 1.0}
        progress = self.rule.progress(self.round, self.rounds, self.start)
        return {name: knots(progress) for name, knots in self.knots.items()}

    def update(self) -> None:
        """Take a step of the averages: to be called when all active learners have taken theirs."""
        t, step, active, weights = self.round, self.done % self.steps, self.active, self.weights
        memory = self.rule.memory(self.done, self.steps)
        once = self.trunk is not None and self.rule.source == "average"
        kept = 0.0 if once else self.rule.kept(t, step, self.steps, self.start)
        for name, share in self.shares.items():
            state = self.learners[name].state_dict()
            share.add(state, memory if name in active else 1.0, weights.get(name, 0.0), kept)
        if self.rule.granularity == "step" and self.rule.due(t, self.start):
            self._hand_over(active)
        self.done += 1

    def end_round(self, losses: Mapping[str, float] | None = None) -> bool:
        """End a round: find t', hand the global weights over, or let the branches start.

        Arguments:
            losses: The loss of each learner in this round, for rules that look at it.

        Returns:
            Whether learners got other weights. Their optimisers are yours: the momentum stays, or
            is that of the trunk, if you carry it over.

        Raises:
            UserError: If it is not called after the last step of a round.
        """
        t, rest = divmod(self.done, self.steps)
        if rest or not t:
            raise UserError(f"a round has {self.steps} steps, and {rest} of this one were taken")
        for name, loss in (losses or {}).items():
            if name in self.losses:
                self.losses[name].append(loss)
        self.start = self.rule.start(self.losses, self.rounds).round
        if self.trunk is not None and self.start == t < self.rounds:
            for name in self.active:
                self.learners[name].load_state_dict(self.learners[self.trunk].state_dict())
                self.shares[name].average = deepcopy(self.shares[self.trunk].average)
            return True
        due = self.rule.granularity == "round" and self.rule.due(t, self.start)
        if due and t < self.rounds:
            self._hand_over(self.active)
        return due and t < self.rounds

    def _hand_over(self, names: Collection[str]) -> None:
        state = self._state()
        for name in names:
            self.learners[name].load_state_dict(state)

    def _state(self) -> Mapping[str, Tensor]:
        first = next(iter(self.learners.values()))
        return total(self.shares.values(), first.state_dict())

    @property
    def model(self) -> nn.Module:
        """The global model, a new one in eval mode."""
        model = deepcopy(next(iter(self.learners.values())))
        model.load_state_dict(self._state())
        return model.eval()

    def learner(self, name: str) -> nn.Module:
        """Return a learner as it is merged, in eval mode: with its running average, if any."""
        model = deepcopy(self.learners[name])
        model.load_state_dict(model.state_dict() | self.shares[name].average)
        return model.eval()

    def state_dict(self) -> Mapping[str, Any]:
        """Return what a loop needs to go on, without the learners."""
        shares = {name: share.state_dict() for name, share in self.shares.items()}
        return {"shares": shares, "done": self.done, "losses": self.losses}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a saved state."""
        for name, share in self.shares.items():
            share.load_state_dict(state["shares"][name])
        self.done = state["done"]
        self.losses = {name: [*losses] for name, losses in state["losses"].items()}
        self.start = self.rule.start(self.losses, self.rounds).round
