"""A step of A3GT side by side: ours, and the loop that one would write with torchattacks."""

__all__ = ["ALPHA", "BATCHES", "SIDES", "case_of", "sides"]

from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import replace
from functools import partial
from itertools import count
from typing import Any

from benchmarks import peers
from benchmarks.attack import plain_pgd
from benchmarks.case import Case, Problem
from benchmarks.plain_loop import PlainLoop
from benchmarks.timing import Side
from benchmarks.work import Work
from equipoise.settings import recipe
from equipoise.training import Training

SIDES = ("ours", "ours-float32", "plain loop")
ALPHA = 0.995
BATCHES = 8  # batches of different images, which come again and again
SGD = {"lr": 0.01, "momentum": 0.9, "weight_decay": 5e-4, "nesterov": True}
ROUNDS = 1_000_000  # more than anybody waits for


def case_of(case: Case) -> Case:
    """Return what a training is benched on: several batches of images."""
    return replace(case, images=BATCHES * case.batch_size)


def sides(
    case: Case,
    problem: Problem,
    names: Sequence[str] = ("ours", "plain loop"),
    work: Work | None = None,
) -> tuple[list[Side], dict[str, str]]:
    """Return who trains, and how to install whoever is not there; a run is one step.

    Arguments:
        case: What is benched; see :func:`case_of`.
        problem: What it is made of; networks of both sides start as copies of its model.
        names: Which sides, some of :data:`SIDES`.
        work: What a pass is credited with; None: nothing.
    """
    modules, absent = peers.found(["torchattacks"] if "plain loop" in names else [])
    gradients = case.batch_size * (case.steps + 2)  # of the attack, and one of each network
    flops = None
    if work is not None:
        flops = round(case.batch_size * (case.steps * work.attacking + 2 * work.training))
    made = []
    for name in names:
        if name == "plain loop":
            loop = plain_loop(case, problem, modules)
            how = "torchattacks.PGD" if "torchattacks" in modules else "PGD written out"
            run, about = loop.step, f"{how}, float32, averages in a Python loop"
        else:
            run, about = _ours(case, problem, "float32" if name == "ours-float32" else None)
        made.append(Side(name=name, run=run, about=about, gradients=gradients, flops=flops))
    return made, absent


def plain_loop(case: Case, problem: Problem, modules: dict[str, Any]) -> PlainLoop:
    """Return the plain loop, with torchattacks where it is installed."""
    step_size = 2.5 * problem.threat.eps / case.steps
    make = plain_pgd
    if "torchattacks" in modules:
        make = partial(peers.torchattacks_pgd, modules["torchattacks"])
    return PlainLoop(
        model=problem.model,
        images=problem.images,
        attack=lambda model: make(model, problem.threat, case.steps, step_size),
        sgd=SGD,
        alpha=ALPHA,
        gamma=settings(case)["gamma"][0],
        batch_size=case.batch_size,
        seed=case.seed,
    )


def settings(case: Case) -> dict[str, Any]:
    """Return the recipe of our side: A3GT with a learning rate that stays."""
    sgd = SGD | {"lr_factors": [1.0], "lr_at": None}
    return {
        "method": "a3gt",
        "alpha": ALPHA,
        "warmup": False,
        "gamma": [0.7],
        "clean": dict(sgd),
        "robust": {"objective": "pgd-at", "attack": {"steps": case.steps}, **sgd},
        "rounds": ROUNDS,
        "batch_size": case.batch_size,
        "seed": case.seed,
    }


def training(case: Case, problem: Problem, precision: str | None = None) -> Training:
    """Return our training, at its beginning."""
    found = recipe.parse(settings(case))
    return Training(
        method=found.settings.build(problem.threat),
        model=deepcopy(problem.model),
        images=problem.images,
        rounds=found.rounds,
        batch_size=found.batch_size,
        seed=found.seed,
        validate=lambda model, threat: {},
        value=lambda metrics: 0.0,
        execution=case.execution(precision),
    )


def _ours(case: Case, problem: Problem, precision: str | None) -> tuple[Any, str]:
    steps = _steps(training(case, problem, precision))
    about = str(case.execution(precision).resolved(problem.x.device))
    return partial(next, steps), about


def _steps(trained: Training) -> Iterator[None]:
    """Take one step after the other, round after round, without what comes between rounds."""
    for t in count(1):
        yield from trained.steps_of_round(t)
        trained.done = 0
