"""What a hardening does and how long it takes: from a few timed steps of its own training."""

import time
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import asdict, dataclass, fields, replace
from itertools import pairwise
from typing import Any, Self

import torch
from torch import nn

from equipoise.attacks import parse, parse_list
from equipoise.attacks.core import cost
from equipoise.data.core import Dataset, Images
from equipoise.errors import UserError
from equipoise.fronts.survey import DEFAULT
from equipoise.jobs.device import cuda_devices
from equipoise.jobs.estimate import LONG, about, pace, whole
from equipoise.settings.explanation import GRID, MOST_IMAGES
from equipoise.settings.recipe import Recipe
from equipoise.threat import Norm
from equipoise.training.augment import Augment
from equipoise.training.loop import Training

ATTACKS = "audited"
ROUNDS, POINTS, TESTED = 10, 9, 1000  # without --time
FEWEST_ROUNDS, FEWEST_POINTS, FEWEST_TESTED = 2, 5, 100
MOST_ROUNDS = 40
STEPS = 3  # the first one is slower, and is not timed
ATTACKED = 1000  # held-out images, the most; on all of them the clean accuracies are compared
TRIAL_SECONDS = 8.0  # the longest trial
SHARE = 0.5  # of the images of a hardened model that stay robust, and are searched to the end
SPARE = 0.85  # of the time that is given; the rest is for what is not estimated
WIDE = (0.7, 1.3)  # times an estimate: what is said


@dataclass(frozen=True, kw_only=True)
class PhaseTimes:
    """The times of the parts of a hardening on this machine, in seconds.

    Arguments:
        round: A round (epoch) of the training with its validation.
        choice: The choice of gamma at its end.
        point: A model of the front.
        gradient: A gradient evaluation of an image in both evaluations together.
        norm: The norm of the threat.
    """

    round: float
    choice: float
    point: float
    gradient: float
    norm: Norm = "linf"

    def evaluation(self, n: int) -> float:
        """Return the time of both evaluations on n test images."""
        return self.gradient * whole(parse_list([ATTACKS]).values(), self.norm, n)


@dataclass(frozen=True, kw_only=True)
class Planned:
    """What a hardening does, and for how long.

    Arguments:
        rounds: The rounds of the training.
        points: The most models of the front.
        n: The test images of the evaluations.
        training: The seconds of the training, with the choice of gamma at its end.
        front: The seconds of the front.
        evaluation: The seconds of both evaluations.
    """

    rounds: int
    points: int
    n: int
    training: float
    front: float
    evaluation: float

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> Self:
        """Return the plan that plain values describe."""
        return cls(**{field.name: content[field.name] for field in fields(cls)})

    def content(self) -> Mapping[str, Any]:
        """Return the plan as plain values."""
        return asdict(self)

    @property
    def seconds(self) -> float:
        """The time of everything."""
        return self.training + self.front + self.evaluation

    def lines(self) -> list[str]:
        """Return in words what is done and how long it takes."""
        parts = {
            f"train {self.rounds} rounds": self.training,
            f"measure up to {self.points} models on held-out images": self.front,
            f"evaluate both models on {self.n:,} test images": self.evaluation,
        }
        each = "; ".join(f"{what}, {_in_words(seconds)}" for what, seconds in parts.items())
        return [f"plan: {each}", f"in all {_in_words(self.seconds)} on this machine"]


def _in_words(seconds: float) -> str:
    low, high = (factor * seconds for factor in WIDE)
    return about(low, high) or f"less than {max(10, 10 * round(high / 10)):.0f} s"


def plan_for(
    pace: PhaseTimes,
    *,
    rounds: int | None,
    points: int | None,
    n: int | None,
    images: int,
    limit: float | None,
) -> Planned:
    """Return a plan; with a limit one that fits it.

    First the front and the evaluations are cut until they leave half of the time to the training,
    which gets the rest.

    Arguments:
        pace: The times of the parts.
        rounds: The rounds; None: as many as fit.
        points: The points of the front; None: as many as fit.
        n: The test images; None: as many as fit.
        images: The number of all test images.
        limit: The seconds that are left; None: there is no limit.

    Raises:
        UserError: If the smallest plan does not fit.
    """
    tested = min(images, TESTED) if n is None else n
    if limit is None:
        return _planned(pace, rounds or ROUNDS, points or POINTS, tested)
    time = SPARE * limit
    few = min(images, FEWEST_TESTED) if n is None else n
    sizes = [(points or p, t) for p, t in ((POINTS, tested), (7, tested // 2), (7, tested // 4))]
    sizes = [(p, t if n is None else n) for p, t in sizes if t >= few]
    sizes.append((points or FEWEST_POINTS, few))
    for most, test in sizes:
        besides = pace.choice + most * pace.point + pace.evaluation(test)
        if besides <= time / 2:
            break
    fits = int((time - besides) / pace.round)
    if fits < (rounds or FEWEST_ROUNDS):
        least = _planned(pace, rounds or FEWEST_ROUNDS, most, test).seconds / SPARE
        raise UserError(
            f"--time leaves {limit:.0f} s, and the smallest hardening takes "
            f"{about(least, least) or f'about {least:.0f} s'}: give more time, or fewer training "
            "images (limit=)"
        )
    return _planned(pace, rounds or min(fits, MOST_ROUNDS), most, test)


def _planned(pace: PhaseTimes, rounds: int, points: int, n: int) -> Planned:
    return Planned(
        rounds=rounds,
        points=points,
        n=n,
        training=round(rounds * pace.round + pace.choice, 1),
        front=round(points * pace.point, 1),
        evaluation=round(pace.evaluation(n), 1),
    )


def timed(
    recipe: Recipe, model: nn.Module, dataset: Dataset, train: Images, held_out: int
) -> PhaseTimes:
    """Return the times of the parts of a hardening, from timed steps of its training.

    Arguments:
        recipe: The recipe of the training.
        model: The model that it starts from, which is left as it is.
        dataset: The data.
        train: The training images, on the device of the training.
        held_out: The number of held-out images.
    """
    threat = recipe.threat(dataset.eps)
    x, y = train.pixels(slice(recipe.batch_size)), train.y[: recipe.batch_size]
    model = deepcopy(model).to(x.device)
    single = pace(model, x, y, threat, recipe.execution, LONG * 1e9)
    gradient = 0.1 if single is None else single.seconds
    robust = 0.0 if single is None else sum(single.robust) / 2
    method, norm = recipe.settings.build(threat), threat.norm
    first = method.learners[method.carrier].cost
    size = min(recipe.batch_size, int(TRIAL_SECONDS / (STEPS * first * gradient)), len(train))
    step = _step(recipe, model, dataset, train, max(size, 2))
    per_image = method.cost(recipe.rounds) * step / first
    validated = held_out * (cost(parse(recipe.validation_attack), norm) + 1) * gradient
    quick = [*parse_list(DEFAULT).values()]
    chosen = min(held_out, MOST_IMAGES) * len(GRID) if recipe.settings.chooses else 0
    return PhaseTimes(
        round=len(train) * per_image + (len(method.learners) - 0.5) * validated,
        choice=SHARE * gradient * whole(quick, norm, chosen),
        point=gradient * (SHARE * whole(quick, norm, min(held_out, ATTACKED)) + held_out / 3),
        gradient=(SHARE + robust) * gradient,
        norm=norm,
    )


def _step(recipe: Recipe, model: nn.Module, dataset: Dataset, train: Images, size: int) -> float:
    """Return the seconds of a training step of the first learner, for one image."""
    rounds = max(recipe.rounds, FEWEST_ROUNDS)
    nothing: Callable[..., Any] = lambda *_: {}  # noqa: E731
    with torch.random.fork_rng(cuda_devices()):
        trial = Training(
            method=recipe.settings.build(recipe.threat(dataset.eps)),
            model=model,
            images=train.take(slice(min(STEPS * size, len(train)))),
            rounds=rounds,
            batch_size=size,
            seed=0,
            augment=Augment.named(recipe.augment, dataset),
            validate=nothing,
            value=nothing,
            execution=replace(recipe.execution, compile=False),
        )
        marks = [time.perf_counter()]
        with trial.randomness.running():
            marks.extend(time.perf_counter() for _ in trial.steps_of_round(1))
    steps = [after - before for before, after in pairwise(marks)]
    return min(steps[1:] or steps) / size
