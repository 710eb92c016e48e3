"""The training loop: the only one, for every method, in plain sight.

A round is one pass over the training images. The learners take their steps side by side but
know nothing of one another; the global model is the sum of their shares at any moment. At the
end of a round the global model and the learners are validated, the rule for t' is asked, and
where a hand-over is due the learners go on from the global weights.
"""

__all__ = ["Interrupted", "Training", "Watch"]

import math
import time
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from equipoise.data.core import Images
from equipoise.draws import GeneratorDraws
from equipoise.errors import RunError
from equipoise.objectives import Batch
from equipoise.training import batchnorm
from equipoise.training.learner import Augment, Learner, derived_seed
from equipoise.training.merge import State, total
from equipoise.training.method import Method
from equipoise.training.start import Verdict

Metrics = dict[str, float]

CHECK_EVERY = 50  # steps between looks at the losses, each of which waits for the device
ESTIMATE_BATCHES = 20


class Interrupted(RunError):
    """The training was asked to stop, and its state is saved."""


def _nothing(*_: object) -> None:
    """Do nothing."""


@dataclass(kw_only=True)
class Watch:
    """What the loop tells its surroundings, and what it asks them.

    Arguments:
        step: Called after each step with the number of images of the step.
        announce: Called with a sentence when something happens that a user must know.
        save: Called with ``finished_round`` when the state should be saved.
        stop: Asked after each step whether to save and stop.
        save_due: Asked after each step whether to save within the round.
    """

    step: Callable[[int], None] = _nothing
    announce: Callable[[str], None] = _nothing
    save: Callable[[bool], None] = _nothing
    stop: Callable[[], bool] = lambda: False
    save_due: Callable[[], bool] = lambda: False


@dataclass(kw_only=True)
class Training:
    """A training with all its state.

    Arguments:
        method: What to train.
        model: The initial model; every learner and the global model start as copies of it.
        images: The training images, on the device.
        rounds: The number of passes over them, the paper's E.
        batch_size: The images of a step; the rest of a round that fills no batch is left out,
            another one each round.
        seed: The seed of everything random.
        validate: From a model to ``clean_accuracy``, ``robust_accuracy``, ``clean_loss`` and
            ``robust_loss`` on held-out images.
        value: From such metrics of the global model to the number that is best when largest.
        augment: What is done to the images at random.
        watch: The surroundings.
    """

    method: Method
    model: nn.Module
    images: Images
    rounds: int
    batch_size: int
    seed: int
    validate: Callable[[nn.Module], Metrics]
    value: Callable[[Metrics], float]
    augment: Augment = field(default_factory=Augment)
    watch: Watch = field(default_factory=Watch)

    def __post_init__(self) -> None:
        device = self.images.x.device
        self.model = self.model.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        average = self.method.merge.source == "average"
        self.learners = {
            name: Learner(
                name, spec, deepcopy(self.model), seed=self.seed, device=device, average=average
            )
            for name, spec in self.method.learners.items()
        }
        self.origin = deepcopy(self.model.state_dict())
        self.left = 1.0
        self.done = 0
        self.history: list[dict[str, Any]] = []
        self.seconds = 0.0
        self.steps = len(self.images) // self.batch_size or 1
        self._rng: tuple[Tensor, list[Tensor]] | None = None  # None: running, or not begun

    def run(self) -> None:
        """Train to the end, from wherever the state is."""
        with torch.random.fork_rng(self._cuda()):
            self._restore_rng()
            try:
                for t in range(len(self.history) + 1, self.rounds + 1):
                    self._train_round(t)
                    self.history.append(self._close_round(t))
                    self.done = 0
                    self.watch.save(True)
                    if t < self.rounds and self.watch.stop():
                        raise Interrupted(f"stopped after round {t} of {self.rounds}")
            finally:
                self._rng = self._global_rng()

    def _train_round(self, t: int) -> None:
        began = time.perf_counter()
        start = self.start.round
        weights = self.method.weights(t, self.rounds, start)
        active = [self.learners[name] for name in self.method.active(t)]
        each_step = self._due(t, "step")
        if self.done == 0:
            self._begin_round(t, active)
        for step in range(self.done, self.steps):
            progress = (t - 1 + step / self.steps) / self.rounds
            memory = self.method.merge.memory((t - 1) * self.steps + step)
            for learner in self.learners.values():
                if learner in active:
                    batch = learner.batch(
                        self.images, self.augment, self.batch_size, step, progress
                    )
                    learner.step(batch)
                weight = weights.get(learner.name, 0.0)
                learner.share.add(learner.state, memory, weight)
            self.left *= memory
            self.done = step + 1
            if each_step:
                self._hand_over(weights, t)
            self._look(t, began)
        self._check_sound(t, weights=True)
        self.seconds += time.perf_counter() - began

    def _begin_round(self, t: int, active: list[Learner]) -> None:
        branch = self.method.branch
        if branch is not None and t == branch.round + 1:
            for learner in active:
                if learner.name != branch.trunk:
                    learner.continue_from(self.learners[branch.trunk])
            self.watch.announce(f"round {t}: the learners part from the trunk {branch.trunk!r}")
        for learner in active:
            learner.begin_round(len(self.images))

    def _look(self, t: int, began: float) -> None:
        """Report the step; check, save and stop where that is due."""
        self.watch.step(self.batch_size)
        if self.done % CHECK_EVERY == 0:
            self._check_sound(t)
        stop = self.watch.stop()
        if stop or self.watch.save_due():
            self._check_sound(t, weights=True)
            self.seconds += time.perf_counter() - began
            self.watch.save(False)
            self.seconds -= time.perf_counter() - began
        if stop:
            raise Interrupted(f"stopped in round {t} of {self.rounds}, step {self.done}")

    def _check_sound(self, t: int, *, weights: bool = False) -> None:
        """Raise a RunError if a loss, or on demand a weight, is not finite."""
        learners = list(self.learners.values())
        first = min(learners, key=lambda learner: learner.broken_step)
        if first.broken_step <= self.steps:
            raise self._broken(first, "loss is", t)
        for learner in learners:
            if weights and not learner.finite:
                raise self._broken(learner, "weights are", t)

    def _broken(self, learner: Learner, what: str, t: int) -> RunError:
        return RunError(
            f"the {what} not finite for the {learner.name} learner in round {t} of "
            f"{self.rounds}; the last good state is kept. Lower its learning rate in a new run: "
            f"{learner.name}.lr={learner.spec.lr / 3:.2g}"
        )

    def _close_round(self, t: int) -> dict[str, Any]:
        """Validate, decide on t', hand over, and return the record of the round."""
        began = time.perf_counter()
        before = self.start
        weights = self.method.weights(t, self.rounds, before.round)
        active = self.method.active(t)
        learners = {name: self._learner_record(self.learners[name], t) for name in active}
        for name, metrics in learners.items():
            if not all(math.isfinite(value) for value in metrics.values()):
                raise self._broken(self.learners[name], "validation loss is", t)
        merged = self.merged(weights, t)
        alone = len(self.learners) == 1 and self.method.merge.alpha == 0
        metrics = {k: learners[active[0]][k] for k in _METRICS} if alone else self.validate(merged)
        record: dict[str, Any] = {
            "round": t,
            "rounds": self.rounds,
            "learners": learners,
            "global": metrics,
            "weights": weights,
        }
        verdict = self._verdict([*self.history, record])
        self._announce(verdict, t)
        due = self._due(t, "round", verdict)
        if due:
            self._hand_over(weights, t)
        record |= {
            "start": {
                "round": verdict.round,
                "learners": dict(verdict.rounds),
                "reason": "; ".join(f"{name}: {why}" for name, why in verdict.reasons.items()),
            },
            "handover": due or self._due(t, "step", before),
            "kept": self._is_best(metrics),
            "gradient_evaluations": self._gradient_evaluations(active),
            "seconds": {"train": self.seconds, "validation": time.perf_counter() - began},
            "images_per_second": self.steps * self.batch_size / max(self.seconds, 1e-9),
        }
        self.seconds = 0.0
        return record

    def _learner_record(self, learner: Learner, t: int) -> dict[str, float]:
        progress = (t - 1 / self.steps) / self.rounds
        record = {"loss": learner.loss, "lr": learner.lr(progress)}
        return record | self.validate(learner.model)

    def _gradient_evaluations(self, active: list[str]) -> int:
        costs = (self.learners[name].objective.cost for name in active)
        return sum(costs) * self.steps * self.batch_size

    def _is_best(self, metrics: Metrics) -> bool:
        """Tell whether a round is at least as good as all before: of equal ones the latest."""
        values = [self.value(record["global"]) for record in self.history]
        return self.value(metrics) >= max(values, default=-torch.inf)

    # Starting, merging, handing over

    @property
    def start(self) -> Verdict:
        """Return what the rule for t' says of the rounds so far."""
        return self._verdict(self.history)

    def _verdict(self, history: list[dict[str, Any]]) -> Verdict:
        """Ask the rule for t' about each learner that is merged.

        While learners share a trunk, the trunk's losses count for each of them.
        """
        rule = self.method.merge.start
        losses: dict[str, list[float]] = {name: [] for name in self.method.merge.weights.knots}
        for name, values in losses.items():
            key = "loss" if rule.losses == "train" else self.learners[name].objective.monitor
            for record in history:
                present = record["learners"]
                values.append(present.get(name, next(iter(present.values())))[key])
        return rule(losses, self.rounds)

    def _announce(self, verdict: Verdict, t: int) -> None:
        symbols = {"clean": "t_n", "robust": "t_r"}
        for name, found in verdict.rounds.items():
            if found == t:
                symbol, why = symbols.get(name, "t"), verdict.reasons[name]
                self.watch.announce(f"{symbol} = {t}: the {name} learner counts as stable ({why})")
        if verdict.round == t:
            self.watch.announce(f"t' = {t}: hand-over may begin")

    def _due(self, t: int, granularity: str, verdict: Verdict | None = None) -> bool:
        handover = self.method.merge.handover
        start = (verdict or self.start).round
        return handover.granularity == granularity and handover.due(t, start)

    def _hand_over(self, weights: Mapping[str, float], t: int) -> None:
        state = self.merged(weights, t).state_dict()
        for name in self.method.active(t):
            self.learners[name].load_global(state, self.method.merge.handover.momentum)

    def merged_state(self) -> State:
        """Return the global weights at this moment."""
        state = total(self.origin, self.left, [x.share for x in self.learners.values()])
        first = next(iter(self.learners.values())).state
        merged = set(next(iter(self.learners.values())).share.names)
        return state | {k: v.clone() for k, v in first.items() if k not in merged}

    def merged(self, weights: Mapping[str, float], t: int) -> nn.Module:
        """Return the global model at this moment, in eval mode; it is the same object each time.

        Arguments:
            weights: How much each learner counts, for statistics that are re-estimated.
            t: The round.
        """
        self.model.load_state_dict(self.merged_state())
        wanted = self.method.merge.batchnorm == "estimate"
        if wanted and batchnorm.has_batchnorm(self.model):
            device = self.images.x.device
            # At the end of a round, before and after its steps are counted back, it is one model.
            seed = derived_seed(self.seed, "batchnorm", t, self.done % self.steps)
            generator = torch.Generator(device).manual_seed(seed)
            batches = self._some_batches(generator, t / self.rounds)
            draws = GeneratorDraws(generator)
            batchnorm.estimate(self.model, self.learners, weights, batches, draws)
        return self.model.eval()

    def _some_batches(self, generator: torch.Generator, progress: float) -> Iterator[Batch]:
        n, size = len(self.images), self.batch_size
        order = torch.randperm(n, generator=generator, device=generator.device)
        for step in range(min(ESTIMATE_BATCHES, self.steps)):
            index = order[step * size : (step + 1) * size]
            yield Batch(self.images.pixels(index), self.images.y[index], index, progress)

    # Saving

    def state_dict(self) -> dict[str, Any]:
        """Return everything that a resumed run needs, as tensors and plain values."""
        return {
            "learners": {name: x.state_dict() for name, x in self.learners.items()},
            "origin": self.origin,
            "left": self.left,
            "done": self.done,
            "history": self.history,
            "seconds": self.seconds,
            "rng": self._rng or self._global_rng(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved state."""
        for name, learner in self.learners.items():
            learner.load_state_dict(state["learners"][name])
        for name, value in state["origin"].items():
            self.origin[name].copy_(value)
        self.left = state["left"]
        self.done = state["done"]
        self.history = state["history"]
        self.seconds = state["seconds"]
        self._rng = (state["rng"][0], list(state["rng"][1]))

    def _cuda(self) -> list[int]:
        device = self.images.x.device
        return [device.index or 0] if device.type == "cuda" else []

    def _global_rng(self) -> tuple[Tensor, list[Tensor]]:
        return torch.get_rng_state(), [torch.cuda.get_rng_state(i) for i in self._cuda()]

    def _restore_rng(self) -> None:
        """Go on with the saved global random state, or begin with the seed's."""
        if self._rng is None:
            torch.manual_seed(derived_seed(self.seed, "global"))
            return
        torch.set_rng_state(self._rng[0].cpu())
        for index, rng in zip(self._cuda(), self._rng[1], strict=True):
            torch.cuda.set_rng_state(rng.cpu(), index)
        self._rng = None


_METRICS = ("clean_accuracy", "robust_accuracy", "clean_loss", "robust_loss")
