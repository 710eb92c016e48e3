"""A step of A3GT or PGD-AT side by side: ours, and the loop that one would write oneself."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from functools import partial
from itertools import count
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from benchmarks import peers
from benchmarks.attack import plain_pgd
from benchmarks.case import Case, Problem
from benchmarks.timing import Side
from equipoise.data.core import Images
from equipoise.execution import Execution
from equipoise.settings import recipe
from equipoise.training import Training

PLAIN = ("plain loop", "plain loop bfloat16")
SIDES = ("ours", "ours-float32", "ours-compiled", *PLAIN)
ALPHA = 0.995
GAMMA = 0.7
BATCHES = 8  # batches of different images, which come again and again
SGD = {"lr": 0.01, "momentum": 0.9, "weight_decay": 5e-4, "nesterov": True}


def case_of(case: Case) -> Case:
    """Return what a training is measured on: several batches of images."""
    return replace(case, images=BATCHES * case.batch_size)


def sides(
    case: Case,
    problem: Problem,
    names: Sequence[str] = ("ours", "plain loop"),
    flops: Mapping[str, float] | None = None,
) -> tuple[list[Side], dict[str, str]]:
    """Return the sides that train, and how to install those that are not there; a run is a step.

    Arguments:
        case: What is measured; see :func:`case_of`.
        problem: What it is made of; networks of both sides start as copies of its model.
        names: Some of :data:`SIDES`.
        flops: What a pass is credited with, see :func:`benchmarks.work.useful_flops`.
    """
    modules, absent = peers.found(["torchattacks"] if {*PLAIN} & {*names} else [])
    gradients = case.batch_size * (case.steps + case.learners)  # of the attack, and of updates
    work = None
    if flops is not None:
        image = case.steps * flops["attacking"] + case.learners * flops["training"]
        work = round(case.batch_size * image)
    made = []
    for name in names:
        if name in PLAIN:
            how = "torchattacks.PGD" if modules else "PGD written out"
            short = name.endswith("bfloat16")
            run: Callable[[], None] = plain_loop(case, problem, modules, short=short).step
            arithmetic = "autocast to bfloat16" if short else "float32"
            about = f"{how}, {arithmetic}"
            about += ", averages in a Python loop" if case.learners == 2 else ""
        else:
            execution = case.execution_of(name)
            run = partial(next, steps(training(case, problem, execution)))
            about = str(execution.resolved(problem.x.device))
        made.append(Side(name=name, run=run, about=about, gradients=gradients, flops=work))
    return made, absent


def training(case: Case, problem: Problem, execution: Execution) -> Training:
    """Return our training, at its beginning, with a learning rate that stays."""
    sgd = SGD | {"lr_factors": [1.0], "lr_at": None}
    attack = {"steps": case.steps}
    two = {
        "method": "generalist",
        "source": "weights",
        "granularity": "round",
        "batches": "own",
        "start": "never",
        "horizon": 1 / ((1 - ALPHA) * BATCHES),
        "warmup": False,
        "gamma": [GAMMA],
        "clean": dict(sgd),
        "robust": {"objective": "pgd-at", "attack": attack, **sgd},
    }
    settings = (two if case.learners == 2 else {"method": "pgd-at", "attack": attack, **sgd}) | {
        "rounds": 1_000_000,  # more than anybody waits for
        "batch_size": case.batch_size,
        "seed": case.seed,
    }
    parsed = recipe.parse(settings)
    return Training(
        method=parsed.settings.build(problem.threat),
        model=deepcopy(problem.model),
        images=problem.images,
        rounds=parsed.rounds,
        batch_size=parsed.batch_size,
        seed=parsed.seed,
        validate=lambda model, threat: {},
        value=lambda metrics: 0.0,
        execution=execution,
    )


def steps(trained: Training) -> Iterator[None]:
    """Take one step after the other, round after round, without what comes between rounds."""
    for t in count(1):
        yield from trained.steps_of_round(t)
        trained.done = 0


def plain_loop(
    case: Case, problem: Problem, modules: Mapping[str, ModuleType], *, short: bool = False
) -> "PlainLoop":
    """Return the plain loop, with torchattacks where it is installed."""
    make = plain_pgd
    if "torchattacks" in modules:
        make = partial(peers.torchattacks_pgd, modules["torchattacks"])
    step_size = 2.5 * problem.threat.eps / case.steps
    attack = partial(make, threat=problem.threat, steps=case.steps, step_size=step_size)
    images, model = problem.images, problem.model
    how = attack, case.batch_size, case.seed
    return PlainLoop(model, images, *how, learners=case.learners, short=short)


class PlainLoop:
    r"""Two networks and their average, as one writes that down.

    A step finds adversarial images on the robust network, takes a step of SGD with it on these
    and one with the clean network on the clean images, and averages, entry by entry of the state,

    .. math:: \theta_g \leftarrow \alpha \theta_g
              + (1 - \alpha) (\gamma \theta_r + (1 - \gamma) \theta_n).

    With one learner there is the robust network alone. Everything is in the layout that torch has
    by default.

    Arguments:
        model: Where all three start; it is not changed.
        images: The training images.
        attack: From the robust network to the attack on it, that is from images and labels to
            adversarial images.
        batch_size: The images of a step.
        seed: Of the order of the images.
        learners: 2, or 1.
        short: Whether torch's autocast to bfloat16 is on; else all is in float32.
        alpha: The memory of the average, a step.
        gamma: The weight of the robust network.
    """

    def __init__(
        self,
        model: nn.Module,
        images: Images,
        attack: Callable[[nn.Module], peers.Peer],
        batch_size: int,
        seed: int = 0,
        *,
        learners: int = 2,
        short: bool = False,
        alpha: float = ALPHA,
        gamma: float = GAMMA,
    ) -> None:
        self.images, self.batch_size, self.alpha, self.gamma = images, batch_size, alpha, gamma
        self.robust, self.clean = deepcopy(model), deepcopy(model)
        self.average = deepcopy(model).eval()
        sgd: Any = SGD
        self.robust_sgd = torch.optim.SGD(self.robust.parameters(), **sgd)
        self.clean_sgd = torch.optim.SGD(self.clean.parameters(), **sgd)
        self.attack = attack(self.robust)
        self.learners, self.short = learners, short
        self.generator = torch.Generator().manual_seed(seed)
        self.rest = torch.empty(0, dtype=torch.int64)

    def step(self) -> None:
        """Take one step of both networks, and average."""
        index = self._next()
        x, y = self.images.pixels(index), self.images.y[index]
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.short):
            x_adv = self.attack(x, y)
            _update(self.robust, self.robust_sgd, x_adv, y)
            if self.learners == 2:
                _update(self.clean, self.clean_sgd, x, y)
        if self.learners == 2:
            self.merge()

    @torch.no_grad()
    def merge(self) -> None:
        """Average; what is not a floating-point number is the robust network's."""
        robust, clean = self.robust.state_dict(), self.clean.state_dict()
        for name, value in self.average.state_dict().items():
            if value.is_floating_point():
                both = self.gamma * robust[name] + (1 - self.gamma) * clean[name]
                value.copy_(self.alpha * value + (1 - self.alpha) * both)
            else:
                value.copy_(robust[name])

    def _next(self) -> Tensor:
        """Return the positions of the next batch, in an order that is drawn for each pass."""
        if len(self.rest) < self.batch_size:
            self.rest = torch.randperm(len(self.images), generator=self.generator)
        index, self.rest = self.rest[: self.batch_size], self.rest[self.batch_size :]
        return index.to(self.images.y.device)


def _update(model: nn.Module, sgd: torch.optim.SGD, x: Tensor, y: Tensor) -> None:
    model.train()
    loss = F.cross_entropy(model(x), y)
    sgd.zero_grad()
    torch.autograd.backward(loss)
    sgd.step()
