"""The training loop of every method.

A round (epoch) is one pass over the training images. The learners take their steps in turn,
independently of one another; the global model is the sum of their shares at any step. At the end
of a round learners with a weak attack are probed; if one has collapsed, the round may be rolled
back. Then the global model and the learners are validated and the rule for t' is applied; if a
hand-over is due before the next round, the learners continue from the global weights.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from dataclasses import InitVar, dataclass, field
from typing import Any, Literal

import torch
from torch import nn

from equipoise.data.core import Images
from equipoise.execution.outputs import own
from equipoise.execution.policy import Execution
from equipoise.stopwatch import Stopwatch
from equipoise.threat import Threat
from equipoise.training import batchnorm, collapse, ending
from equipoise.training.augment import Augment
from equipoise.training.batches import Batches
from equipoise.training.collapse import Probe, Probes, described
from equipoise.training.learner import (
    Learner,
    check_finite,
    derived_seed,
    fetch,
    fetch_shares,
    learners_of,
    not_finite,
)
from equipoise.training.method import Method
from equipoise.training.randomness import GlobalRandom
from equipoise.training.ranks import Ranks
from equipoise.training.shares import State, total
from equipoise.training.start import Verdict
from equipoise.training.updates import Updates
from equipoise.training.validation import METRICS
from equipoise.training.watch import Interrupted, Watch

Metrics = dict[str, float]

CHECK_EVERY = 50  # steps between checks of the losses, each of which waits for the device


@dataclass(kw_only=True)
class Training:
    """A training with all its state.

    Arguments:
        method: What to train.
        model: The initial model, of which every learner and the global model start as copies.
        images: The training images, on the device.
        rounds: The number of passes over them, the paper's E.
        batch_size: The images of a step; the last incomplete batch of a round is dropped (other
            images each round).
        seed: The seed of everything random.
        validate: From a model and its threat (None: all threats) to ``clean_accuracy``,
            ``robust_accuracy``, ``clean_loss`` and ``robust_loss`` on held-out images.
        value: From such metrics of the global model to the number that is best when largest.
        augment: The random augmentation of the images.
        watch: The callbacks.
        probe: Checks for catastrophic overfitting; None: there is no check.
        on_collapse: What follows a collapse: ``"announce"`` only reports it, ``"rollback"`` also
            restores the round before and makes the attack stronger, at most three times.
        execution: The form in which models are searched and updated.
        updates: How the learners take their steps.
        patience: The rounds without a larger value after which the training ends; None: never.
            Rounds before the first hand-over, or before the branches start, do not count. The
            schedules stay those of ``rounds``.
        ranks: The processes that share the training.
    """

    method: Method
    model: InitVar[nn.Module]
    images: Images
    rounds: int
    batch_size: int
    seed: int
    validate: Callable[[nn.Module, Threat | None], Metrics]
    value: Callable[[Metrics], float]
    augment: Augment = field(default_factory=Augment)
    watch: Watch = field(default_factory=Watch)
    probe: Probe | None = None
    on_collapse: Literal["announce", "rollback"] = "announce"
    patience: int | None = None
    execution: Execution = field(default_factory=Execution)
    updates: Updates = field(default_factory=Updates)
    ranks: Ranks = field(default_factory=Ranks)

    def __post_init__(self, model: nn.Module) -> None:
        device = self.images.x.device
        self.execution = self.execution.resolved(device, own=own(model))
        self.stopwatch = Stopwatch(device)
        model = model.to(device).to(memory_format=self.execution.memory_format)  # type: ignore[call-overload]
        self.learners = learners_of(
            self.method,
            model,
            self.images,
            seed=self.seed,
            execution=self.execution,
            stopwatch=self.stopwatch,
            updates=self.updates,
            ranks=self.ranks,
        )
        drawn = self.images, self.augment, self.batch_size
        self.batches = Batches(self.method, self.learners, *drawn, self.ranks)
        self.learners[self.method.carrier].share.carry(model.state_dict())
        self.done, self.seconds = 0, 0.0
        self.history: list[dict[str, Any]] = []
        self.taken_back: list[dict[str, Any]] = []  # the rollbacks of the current round
        self.sound: dict[str, Any] | None = None  # the end of the last round, for a rollback
        self.steps = len(self.images) // self.batch_size or 1
        self.randomness = GlobalRandom(device, derived_seed(self.seed, "global"))

    def run(self) -> None:
        """Train from the current state to the end."""
        with self.randomness.running():
            while not self.over:
                t = len(self.history) + 1
                self._train_round(t)
                probes = Probes()
                if self.probe is not None:
                    probes = Probes.of(self.probe, self._active(t), self.history, self._end(t))
                if probes.falls and self.sound is not None and self._rollbacks < collapse.MOST:
                    self._go_back(t, probes)
                    continue
                self.history.append(self._close_round(t, probes))
                self.done, self.taken_back = 0, []
                self._keep_sound()
                self.watch.save(True)
                if not self.over and self.ranks.agreed(self.watch.stop(), False, now=True)[0]:
                    raise Interrupted(f"stopped after round {t} of {self.rounds}")
            if self.stopped_early:
                self.watch.announce(
                    f"stopped early after round {len(self.history)} of {self.rounds}: "
                    f"no improvement in {self.patience} rounds"
                )

    def _train_round(self, t: int) -> None:
        began = time.perf_counter()
        for _ in self.steps_of_round(t):
            self._after_step(t, began)
        fetch(self.learners, self.ranks)
        self._check_sound(t, weights=True)
        self.seconds += time.perf_counter() - began

    def steps_of_round(self, t: int) -> Iterator[None]:
        """Take the remaining steps of round ``t``, one for each item of the iterator."""
        start = self.start.round
        weights, active = self._weights(t), self._active(t)
        own_learners = [x for x in self.learners.values() if self.ranks.trains(x.name)]
        for learner in active:
            learner.probe(t <= self.updates.probe)
        each_step = self.method.due(t, "step", start)
        if self.done == 0:
            self._begin_round(t, active)
        for step in range(self.done, self.steps):
            progress = (t - 1 + step / self.steps) / self.rounds
            memory = self.method.merge.memory((t - 1) * self.steps + step, self.steps)
            kept = self.method.kept(t, step, self.steps, start)
            for learner in own_learners:
                if learner in active:
                    self._train(learner, active, step, progress)
                with self.stopwatch.part("averaging"):
                    past = memory if learner in active else 1.0  # a trunk's average ends at t'
                    learner.share.add(learner.state, past, weights.get(learner.name, 0.0), kept)
            self.done = step + 1
            if each_step:
                with self.stopwatch.part("averaging"):
                    fetch_shares(self.learners, self.ranks)
                    self._hand_over(weights, t)
            yield

    def _train(self, learner: Learner, active: list[Learner], step: int, progress: float) -> None:
        with self.stopwatch.part("data"):
            batch = self.batches.of(learner, active, step, progress)
        with self.stopwatch.part("update"):
            learner.step(batch)
        self.batches.stepped(learner, active)

    def _begin_round(self, t: int, active: list[Learner]) -> None:
        trunk, start = self.method.trunk, self.start.round
        added = ending.before(self.history, self.rounds)
        if trunk is not None and start == t - 1:
            since = start / self.rounds if self.method.restart else 0.0
            for learner in active:
                if learner.name != trunk:
                    learner.continue_from(self.learners[trunk], since)
            self.watch.announce(f"round {t}: the branches start from the trunk")
        for learner in active:
            if added and added == t - 1:
                learner.since = added / self.rounds  # its schedule begins anew
            learner.begin_round(len(self.images))

    def _after_step(self, t: int, began: float) -> None:
        """Report the step; check the losses, save and stop if that is due."""
        self.watch.step(self.batch_size)
        if self.done % CHECK_EVERY == 0:
            self._check_sound(t)
        stop, save = self.ranks.agreed(self.watch.stop(), self.watch.save_due())
        if stop or save:
            fetch(self.learners, self.ranks)
            self._check_sound(t, weights=True)
            self.seconds += time.perf_counter() - began
            self.watch.save(False)
            self.seconds -= time.perf_counter() - began
        if stop:
            raise Interrupted(f"stopped in round {t} of {self.rounds}, step {self.done}")

    def _check_sound(self, t: int, *, weights: bool = False) -> None:
        check_finite(self.learners.values(), f"round {t} of {self.rounds}", weights=weights)

    def _close_round(self, t: int, probes: Probes) -> dict[str, Any]:
        """Validate, decide on t', hand over, and return the record of the round."""
        began, before = time.perf_counter(), self.start
        weights = self._weights(t)
        learners = {x.name: self._learner_record(x, t, probes) for x in self._active(t)}
        merged = self.merged(weights, t)
        merge = self.method.merge
        alone = len(self.learners) == 1 and not merge.averages and merge.batchnorm != "estimate"
        only = next(iter(learners.values()))
        same = {k: only[k] for k in METRICS if k in only} if alone else None
        record: dict[str, Any] = {
            "round": t,
            "rounds": self.rounds,
            "learners": learners,
            "global": same or self.validate(merged, None),
            "weights": weights,
        }
        verdict = self.method.verdict([*self.history, record], self.rounds)
        for sentence in self.method.said(verdict, t):
            self.watch.announce(sentence)
        due = t < self.rounds and self.method.due(t, "round", verdict.round)
        if due:
            self._hand_over(weights, t)
        validation = probes.seconds + time.perf_counter() - began
        lost = [back["seconds"] for back in self.taken_back]
        record |= {
            "start": {
                "round": verdict.round,
                "learners": dict(verdict.rounds),
                "reason": "; ".join(f"{name}: {why}" for name, why in verdict.reasons.items()),
            },
            "handover": due or self.method.due(t, "step", before.round),
            # at least as good as all before: of equal rounds the latest is kept
            "kept": self.value(record["global"])
            >= ending.best(self.history, self.value, set(learners)),
            "gradient_evaluations": sum(x["gradient_evaluations"] for x in learners.values()),
            "seconds": {
                "train": self.seconds + sum(back["train"] for back in lost),
                "validation": validation + sum(back["validation"] for back in lost),
            },
            "parts": self.stopwatch.sums(),
            "images_per_second": self.steps * self.batch_size / max(self.seconds, 1e-9),
        }
        self.seconds = 0.0
        self.stopwatch.restart()
        for name, fall in probes.falls.items():
            self.watch.warn(f"{described(name, t, fall)}; {collapse.REMEDY}")
        notes = {"rollbacks": self.taken_back, "collapse": probes.falls}
        return record | {name: value for name, value in notes.items() if value}

    def _learner_record(self, learner: Learner, t: int, probes: Probes) -> dict[str, float]:
        lost = sum(back["gradient_evaluations"][learner.name] for back in self.taken_back)
        record = {
            "loss": learner.loss,
            "lr": learner.lr(self._end(t)),
            "gradient_evaluations": learner.evaluations + lost,
            **self.validate(learner.model, learner.objective.state.threat),
            **probes.accuracies.get(learner.name, {}),
        }
        if not all(math.isfinite(value) for value in record.values()):
            raise not_finite(learner, "validation loss is", f"round {t} of {self.rounds}")
        return record

    def _end(self, t: int) -> float:
        """Return the progress of the last step of a round."""
        return (t - 1 / self.steps) / self.rounds

    # Early stopping and rollbacks

    @property
    def over(self) -> bool:
        """Return whether the training has ended."""
        return len(self.history) >= self.rounds or self.stopped_early

    @property
    def stopped_early(self) -> bool:
        """Return whether the training ended after ``patience`` rounds without improvement."""
        settled = self.method.settled(len(self.history), self.start.round)
        return ending.stopped_early(self.history, self.rounds, self.value, self.patience, settled)

    @property
    def _rollbacks(self) -> int:
        before = sum(len(record.get("rollbacks", ())) for record in self.history)
        return before + len(self.taken_back)

    def _go_back(self, t: int, probes: Probes) -> None:
        """Restore the end of the round before; make the attacks of collapsed learners stronger."""
        assert self.sound is not None
        spent = {learner.name: learner.evaluations for learner in self._active(t)}
        self._load_learners(deepcopy(self.sound))
        measures = {name: self.learners[name].objective.strengthen() for name in probes.falls}
        again = "rollback", t, self._rollbacks + 1
        for name, learner in self.learners.items():
            learner.generator.manual_seed(derived_seed(self.seed, name, *again))
        torch.manual_seed(derived_seed(self.seed, "global", *again))
        self.taken_back.append(
            {
                "to": t - 1,
                "learners": probes.falls,
                "measures": measures,
                "gradient_evaluations": spent,
                "seconds": {"train": self.seconds, "validation": probes.seconds},
            }
        )
        self.done, self.seconds = 0, 0.0
        self._keep_sound()  # with the attacks as they are now
        self.watch.step(-self.steps * self.batch_size)
        for name, fall in probes.falls.items():
            self.watch.warn(f"{described(name, t, fall)}; back to round {t - 1}: {measures[name]}")

    def _keep_sound(self) -> None:
        """Keep the state at the end of a round for a rollback."""
        if self.on_collapse == "rollback":
            self.sound = deepcopy(self._learners_state())

    @property
    def start(self) -> Verdict:
        """Return the verdict of the rule for t' on the rounds so far."""
        return self.method.verdict(self.history, self.rounds)

    def _weights(self, t: int) -> dict[str, float]:
        """Return the weight of each learner in round ``t``."""
        start = self.start.round
        return self.method.weights(t, ending.planned(self.history, self.rounds, start), start)

    def _hand_over(self, weights: Mapping[str, float], t: int) -> None:
        state = self.merged(weights, t).state_dict()
        for learner in self._active(t):
            learner.load_global(state, self.method.merge.momentum)

    def _active(self, t: int) -> list[Learner]:
        """Return the learners that train in round ``t``."""
        return [self.learners[name] for name in self.method.active(t, self.start.round)]

    def merged_state(self) -> State:
        """Return the current global weights."""
        shares = [learner.share for learner in self.learners.values()]
        first = next(iter(self.learners.values())).state
        return total(shares, first)

    def merged(self, weights: Mapping[str, float], t: int) -> nn.Module:
        """Return the current global model, in eval mode.

        Arguments:
            weights: The weight of each learner, for statistics that are re-estimated.
            t: The round.
        """
        model = deepcopy(next(iter(self.learners.values())).model)
        model.load_state_dict(self.merged_state())
        if self.method.merge.batchnorm == "estimate" and batchnorm.has_batchnorm(model):
            # The same seed at the end of a round, whether or not ``done`` was reset to 0.
            seed = derived_seed(self.seed, "batchnorm", t, self.done % self.steps)
            of = self.images, self.batch_size, seed, t / self.rounds
            batchnorm.estimate_on(model, self.learners, weights, *of)
        return model.eval()

    def state_dict(self) -> dict[str, Any]:
        """Return everything that a resumed run needs, as tensors and plain values."""
        return self._learners_state() | {
            "parts": self.stopwatch.sums(),
            "rng": self.randomness.state(),
            **{name: getattr(self, name) for name in _PLAIN},
        }

    def _learners_state(self) -> dict[str, Any]:
        return {"learners": {name: x.state_dict() for name, x in self.learners.items()}}

    def _load_learners(self, state: Mapping[str, Any]) -> None:
        for name, learner in self.learners.items():
            learner.load_state_dict(state["learners"][name])

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a saved state."""
        self._load_learners(state)
        for name in _PLAIN:
            setattr(self, name, state[name])
        self.stopwatch.restart(state["parts"])
        self.randomness.load(state["rng"])


_PLAIN = ("done", "history", "seconds", "taken_back", "sound")
