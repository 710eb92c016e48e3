"""One learner: a model with its objective, optimiser and randomness."""

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from hashlib import blake2b
from typing import Any

import torch
from torch import Tensor, nn

from equipoise.data.core import Images
from equipoise.draws import GeneratorDraws
from equipoise.errors import RunError
from equipoise.execution.form import guest
from equipoise.execution.policy import Execution
from equipoise.objectives.core import Batch, Objective
from equipoise.stopwatch import Stopwatch
from equipoise.training.augment import Augment
from equipoise.training.method import Method
from equipoise.training.ranks import Crew, Ranks
from equipoise.training.shares import Share, averaged_names
from equipoise.training.updates import BatchNorm, Updates, without_momentum

NEVER = 2.0**31  # larger than the number of any step


class Learner:
    """A model with its objective, optimiser, data order, randomness and share of the merge.

    Arguments:
        name: Its name; with the seed it determines its randomness.
        objective: The loss with its settings, bound to its threat.
        model: The model to train, in place.
        seed: The seed of the training.
        average: Whether its running average is merged rather than its weights.
        y: The labels of the training set, on the device, with shape (N,).
        classes: The number of classes.
        execution: The form in which it is searched and updated, resolved.
        stopwatch: Measures the time of the parts.
        updates: How it takes its steps.
        head: The weights of the model's head, where ``updates`` treats them differently.
        frozen: Whether the statistics of BatchNorm stay as they are, and are used in training.
        crew: The processes that train it.
    """

    def __init__(
        self,
        name: str,
        objective: Objective,
        model: nn.Module,
        *,
        seed: int,
        average: bool,
        y: Tensor,
        classes: int,
        execution: Execution,
        stopwatch: Stopwatch,
        updates: Updates = Updates(),  # noqa: B008  # frozen
        head: Collection[nn.Parameter] = (),
        frozen: bool = False,
        crew: Crew = Crew(),  # noqa: B008  # it has no state
    ) -> None:
        device = y.device
        self.name = name
        self.model = model
        self.objective = objective
        objective.prepare(y, classes)  # it may make parameters
        objective.state.to(device)
        objective.state.execution, objective.state.stopwatch = execution, stopwatch
        self.schedule = objective.schedule
        self.execution = execution
        self.updates = updates
        self.optimizer = updates.optimizer(objective, model, head)
        self.trained = [w for group in self.optimizer.param_groups for w in group["params"]]
        chosen = {id(weight) for weight in head}
        self.body = [p for p in model.parameters() if p.requires_grad and id(p) not in chosen]
        self.probing = False  # whether only the head is trained
        self.still = [m for m in model.modules() if frozen and isinstance(m, BatchNorm)]
        self.y = y
        self.weights = updates.weights(y)
        self.generator = torch.Generator(device).manual_seed(derived_seed(seed, name))
        self.draws = GeneratorDraws(self.generator)
        self.crew = crew
        self.state = model.state_dict()  # the tensors themselves: they change in place
        self.share = Share(self.state, averaged_names(model), average)
        self.order = torch.empty(0, dtype=torch.int64, device=device)
        self.loss_sum = torch.zeros((), device=device)
        self.broken = torch.full((), NEVER, device=device)
        self.spent = torch.zeros((), dtype=torch.int64, device=device)
        self.steps = 0
        self.since = 0.0  # the progress at which its schedule began

    def begin_round(self, n: int) -> None:
        """Draw the order of ``n`` images for a new round and reset the round's sums."""
        self.order = self.updates.order(self.y[:n], self.generator)
        self.loss_sum.zero_()
        self.broken.fill_(NEVER)
        self.spent.zero_()
        self.steps = 0

    def batch(self, images: Images, augment: Augment, size: int, step: int, at: float) -> Batch:
        """Return the augmented batch of a step, ``at`` a progress."""
        index = self.order[step * size : (step + 1) * size]
        x = augment(images.x[index], self.generator)
        weight = None if self.weights is None else self.weights[index]
        return Batch(x, images.y[index], index, at, None, weight)

    def probe(self, probing: bool) -> None:
        """Train only the head from now on, or everything again."""
        if probing != self.probing:
            self.probing = probing
            for weight in self.body:
                weight.requires_grad_(not probing)

    @contextmanager
    def ramped(self, progress: float) -> Iterator[None]:
        """Let the attacks in a block have the radius of a progress."""
        if not self.updates.eps_ramp:
            yield
            return
        state = self.objective.state
        state.reach = self.updates.reach(progress)
        try:
            yield
        finally:
            state.reach = 1.0

    def step(self, batch: Batch) -> None:
        """Take one step of the optimiser; add the reported loss to the round's sum."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr(batch.progress) * group.get("scale", 1.0)
        self.model.train(not self.probing)
        for norm in self.still:
            norm.eval()
        reports, found = list[Tensor](), list[Tensor]()
        spent = torch.zeros_like(self.spent)
        for whole, share in self.updates.parts(batch):
            part, of_whole = self.crew.part(whole)
            draws = self.crew.draws(self.draws, len(whole.y))
            reports.append(self._add_gradient(part, share * of_whole, draws))
            spent += self.objective.evaluations(len(part.y))
            x_adv = self.objective.state.adversarial
            found += [] if x_adv is None else [self.crew.whole(x_adv, len(whole.y))]
        if found:  # another learner may follow
            self.objective.state.adversarial = found[0] if len(found) == 1 else torch.cat(found)
        reported = reports[0] if len(reports) == 1 else torch.stack(reports).sum()
        self.crew.add(self.trained, reported, spent)
        self.updates.clipped(self.optimizer)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.spent += spent
        self.loss_sum += reported
        self.steps += 1
        bad = torch.where(torch.isfinite(reported), NEVER, float(self.steps))
        self.broken = torch.minimum(self.broken, bad)

    def _add_gradient(self, batch: Batch, share: float, draws: GeneratorDraws) -> Tensor:
        """Add the gradient of a part of a batch; return its share of the reported loss."""
        reported: Tensor | None = None
        with self.ramped(batch.progress), self.crew.one_batch():
            for loss in self._losses(batch, draws):
                part = loss if share == 1 else share * loss
                part.backward()  # type: ignore[no-untyped-call]
                reported = part.detach() if reported is None else reported
        assert reported is not None
        return reported

    def _losses(self, batch: Batch, draws: GeneratorDraws) -> Iterator[Tensor]:
        """Yield the objective's losses, computed in the arithmetic of updates."""
        losses = self.objective.losses(self.model, batch, draws)
        low = self.execution.update == "bfloat16"
        while True:
            with torch.autocast(batch.x.device.type, torch.bfloat16, enabled=low):
                loss = next(losses, None)
            if loss is None:
                return
            yield loss

    def lr(self, progress: float) -> float:
        """Return the learning rate at a progress."""
        way = max(0.0, progress - self.since) / (1 - self.since)
        return self.objective.step_size * self.schedule(way)

    @property
    def loss(self) -> float:
        """Return the mean of the round's losses so far, on the training inputs."""
        return float(self.loss_sum) / max(self.steps, 1)

    @property
    def evaluations(self) -> int:
        """Return the gradient evaluations of the round so far."""
        return int(self.spent)

    def watched(self, progress: float) -> bool:
        """Return whether it may overfit to its attack: it is weak, or was made stronger before."""
        objective = self.objective
        attacked = objective.state.threat is not None
        return attacked and (objective.level > 0 or objective.weak(progress))

    @property
    def finite(self) -> bool:
        """Return whether all weights and statistics are finite."""
        floats = [value for value in self.state.values() if value.is_floating_point()]
        return bool(torch.stack([torch.isfinite(value).all() for value in floats]).all())

    def continue_from(self, other: "Learner", since: float = 0.0) -> None:
        """Continue as a branch from another learner's weights, running average and momentum.

        The settings of its optimiser stay its own. Its attack is made as strong as the other's
        was at the end.

        Arguments:
            other: The trunk, of the same architecture.
            since: The progress at which its schedule begins.
        """
        self.model.load_state_dict(other.model.state_dict())
        weights = list(self.model.parameters())
        for here, there in zip(weights, other.model.parameters(), strict=True):
            if there in other.optimizer.state:  # not before its first step
                self.optimizer.state[here] = deepcopy(other.optimizer.state[there])
        self.objective.state.level = max(self.objective.level, other.objective.level)
        self.since = since
        self.share.average = {name: value.clone() for name, value in other.share.average.items()}

    def load_global(self, state: Mapping[str, Tensor], momentum: str) -> None:
        """Continue from the global weights: the hand-over."""
        self.model.load_state_dict(state)
        if momentum == "zero":
            without_momentum(self.optimizer)

    def merged_part(self) -> dict[str, Tensor]:
        """Return its part in the merge: its weights, or its running average.

        The statistics of BatchNorm are its own, too, even if the global model's are estimated.
        """
        return self.state | self.share.average

    def state_dict(self) -> dict[str, Any]:
        """Return everything that a resumed run needs."""
        return {
            "model": self.model.state_dict(),
            "objective": self.objective.state.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "generator": self.generator.get_state(),
            "share": self.share.state_dict(),
            **{name: getattr(self, name) for name in (*_TENSORS, *_PLAIN)},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a saved state."""
        self.model.load_state_dict(state["model"])
        self.objective.state.load_state_dict(state["objective"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.generator.set_state(state["generator"].cpu())
        self.share.load_state_dict(state["share"])
        for name in _TENSORS:
            setattr(self, name, state[name].to(self.order.device))
        for name in _PLAIN:
            setattr(self, name, state[name])


_TENSORS = ("order", "loss_sum", "broken", "spent")
_PLAIN = ("steps", "since")


def learners_of(
    method: Method,
    model: nn.Module,
    images: Images,
    *,
    seed: int,
    execution: Execution,
    stopwatch: Stopwatch,
    updates: Updates,
    ranks: Ranks,
) -> dict[str, Learner]:
    """Return the learners of a method, each with a copy of the initial model.

    Arguments:
        method: The method.
        model: The initial model.
        images: The training images, on the device.
        seed: See :class:`Learner`, also for the next three.
        execution: The form in which they are searched and updated.
        stopwatch: Measures the time of the parts.
        updates: How they take their steps.
        ranks: The processes of the training.
    """
    classes, head, learners = width(model, images), updates.head(model, images), {}
    for name, objective in method.learners.items():
        own = deepcopy(model)
        learners[name] = Learner(
            name,
            objective,
            own,
            seed=seed,
            average=method.merge.source == "average",
            y=images.y,
            classes=classes,
            execution=execution,
            stopwatch=stopwatch,
            updates=updates,
            head=[own.get_parameter(path) for path in head],
            frozen=method.merge.batchnorm == "frozen",
            crew=ranks.crew(name),
        )
    return learners


def fetch(learners: Mapping[str, Learner], ranks: Ranks) -> None:
    """Get the learners that other processes have trained."""
    for name, learner in learners.items():
        state = ranks.told(name, learner.state_dict)
        if state is not None:
            learner.load_state_dict(state)


def fetch_shares(learners: Mapping[str, Learner], ranks: Ranks) -> None:
    """Get what is merged of the learners that other processes have trained, and their counters."""
    for name, learner in learners.items():
        parts = learner.share.parts
        others = [value for key, value in learner.state.items() if key not in parts]
        ranks.fill(name, [*parts.values(), *others])


def check_finite(learners: Collection[Learner], where: str, *, weights: bool) -> None:
    """Raise a RunError if a loss of the round, or with ``weights`` a weight, is not finite."""
    first = min(learners, key=lambda learner: float(learner.broken))
    if float(first.broken) < NEVER:
        raise not_finite(first, "loss is", where)
    for learner in learners:
        if weights and not learner.finite:
            raise not_finite(learner, "weights are", where)


def not_finite(learner: Learner, what: str, where: str) -> RunError:
    """Return the error with the name of the learner and the remedy."""
    named = learner.name in ("clean", "robust", "trunk")
    name = learner.name if named else f"more.{learner.name}"
    lr = learner.objective.lr / 3
    return RunError(
        f"the {what} not finite for the {learner.name} learner in {where}; the last saved state "
        f"is kept. Use a lower learning rate in a new run: {name}.lr={lr:.2g}"
    )


def width(model: nn.Module, images: Images) -> int:
    """Return the number of a model's logits."""
    with guest(model), torch.no_grad():
        return int(model(images.pixels(slice(0, 1))).shape[1])


def derived_seed(seed: int, *names: str | int) -> int:
    """Return a seed derived from a seed and names, different for all names."""
    path = "/".join(map(str, (seed, *names)))
    return int.from_bytes(blake2b(path.encode(), digest_size=7).digest(), "little")
