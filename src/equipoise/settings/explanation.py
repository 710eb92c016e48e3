"""A recipe in words: the loss of each learner with its numbers, and how they are merged."""

import math

import torch

from equipoise.attacks import parse_list
from equipoise.attacks.core import cost
from equipoise.data import DATASETS
from equipoise.errors import UserError
from equipoise.models import house
from equipoise.objectives.core import Objective
from equipoise.parsing import MOST
from equipoise.settings import usual
from equipoise.settings.methods import A3GT, METHODS
from equipoise.settings.recipe import Recipe
from equipoise.threat import Linf, Norm
from equipoise.training.merge import Merge
from equipoise.training.method import Method
from equipoise.training.start import Fixed, Never, Stable, Threshold
from equipoise.training.updates import BETA

NAMES = {"sgd": "SGD", "adamw": "AdamW"}
GRID = (1.0, 0.0, 0.5, 0.25, 0.75)
"""The values of gamma that a choice is made of, in the order in which they are measured."""
QUICK = ("apgd-ce-20", "apgd-t-20(targets=3)")
"""The attacks on these models, each on the images that are still robust."""
MOST_IMAGES = 1000
"""The most held-out images on which gamma is chosen."""

LEGEND = (
    "x: an image, x' the adversarial one, y its label; f: logits, p: their softmax;",
    "CE: cross-entropy; KL: Kullback-Leibler divergence; a gradient evaluation: one image forward",
    "and backward.",
)


def explain(recipe: Recipe) -> list[str]:
    """Return the description of a recipe's training, a line for each fact.

    Arguments:
        recipe: The recipe; by default its radius is the usual one of its dataset.

    Raises:
        UserError: If the radius is not known.
    """
    eps = recipe.eps
    if eps is None:
        if recipe.data not in DATASETS:
            raise UserError(f"there is no usual eps for {recipe.data}: add eps=...")
        eps = DATASETS[recipe.data].eps
    method = recipe.settings.build(recipe.threat(eps))
    row = METHODS[recipe.method]
    lines = [f"{recipe.method}: {row.title}"]
    if row.paper:
        lines.append(f"  paper: {row.paper}")
    for name, objective in method.learners.items():
        lines += ["", *_learner(name, objective, recipe.rounds)]
    lines += _updates(recipe)
    if len(method.learners) > 1 or method.merge.averages:
        lines += ["", *_merge(method, recipe.rounds, recipe.steps)]
    if isinstance(recipe.settings, A3GT) and recipe.settings.chooses:
        lines += _choice(recipe.settings, recipe.norm)
    elif len(method.knots) > 1 and recipe.steps is not None:
        lines += ["", *_regime(method, recipe.rounds, recipe.steps)]
    return [*lines, "", _cost(method, recipe), _execution(recipe), *LEGEND]


def choice_in_words(settings: A3GT) -> str:
    """Return the rule by which gamma is chosen at the end of a training."""
    if settings.min_clean is not None:
        return f"the most robust model with at least {settings.min_clean:.4g} clean accuracy"
    drop = f"at most {settings.max_clean_drop:.4g} of clean accuracy"
    return f"the most robust model that has lost {drop} against the trunk at t'"


def _choice(settings: A3GT, norm: Norm) -> list[str]:
    """Return how gamma is chosen, and what that costs."""
    gammas = ", ".join(f"{gamma:g}" for gamma in sorted(GRID))
    most = sum(cost(attack, norm) for attack in parse_list(QUICK).values())
    return [
        f"  gamma is chosen at the end, of {gammas}: {choice_in_words(settings)};",
        f"  measured on held-out images, {MOST_IMAGES:,} at most, under {', then '.join(QUICK)}:",
        f"  at most {len(GRID) * most:,.0f} gradient evaluations for each of these images",
    ]


def _updates(recipe: Recipe) -> list[str]:
    """Return what of the steps differs from the plain ones, a line each."""
    u, lines = recipe.updates, []
    if u.eps_ramp:
        lines.append(
            f"the radius of training attacks grows from 0 to eps over the first "
            f"{u.eps_ramp * recipe.rounds:.3g} of {recipe.rounds} rounds; validation uses eps"
        )
    if u.probe:
        lines.append(
            f"in the first {u.probe} round{'s' * (u.probe > 1)} only the head is trained, on "
            "fixed features"
        )
    if u.backbone_lr != 1:
        lines.append(f"all weights but those of the head have {u.backbone_lr:g} x the rate")
    if recipe.settings.batchnorm == "frozen":
        lines.append("BatchNorm uses the statistics it was given, in training too")
    if u.accumulate > 1:
        lines.append(f"a batch passes in {u.accumulate} parts, whose gradients are summed")
    if u.clip is not None:
        lines.append(f"a gradient longer than {u.clip:g} is scaled to this length")
    if u.balance == "loss":
        lines.append("an image weighs N / (K n) in the mean: N images, K classes, n in its class")
    if u.balance == "sampling":
        lines.append("images are drawn with replacement, of all classes equally often")
    if usual.from_weights({"weights": recipe.weights, "model": recipe.model}):
        lines.append(
            "the training starts from given weights: where no lr is given it is lower than for "
            "new ones, so that what they have learned is not lost in the first rounds"
        )
    return ["", "steps:", *(f"  {line}" for line in lines)] if lines else []


def _cost(method: Method, recipe: Recipe) -> str:
    total = method.cost(recipe.rounds)
    most = "at most " if any(objective.varies for objective in method.learners.values()) else ""
    return (
        f"cost: {most}{total:.4g} gradient evaluation{'s' * (total > 1)} an image, "
        f"{total * recipe.batch_size:,.0f} a batch of {recipe.batch_size}; {recipe.rounds} rounds"
    )


def _execution(recipe: Recipe) -> str:
    here = torch.cuda.is_available()
    device = recipe.device if recipe.device != "auto" else "cuda" if here else "cpu"
    if device.startswith("cuda") and not here:
        return f"device {device} is not on this machine"
    return f"on this machine: {recipe.execution.resolved(device, own=house(recipe.model))}"


def price(method: str) -> int:
    """Return the gradient evaluations an image that a method takes by default, at most.

    For a method with a trunk it is the mean over the rounds.
    """
    return math.ceil(METHODS[method]().build(Linf(8 / 255)).cost(30))


def _learner(name: str, objective: Objective, rounds: int) -> list[str]:
    nesterov = ", Nesterov" if objective.nesterov and objective.momentum else ""
    rest = f"momentum {objective.momentum:g}{nesterov}, weight decay {objective.weight_decay:g}"
    if objective.optimizer == "adamw":
        betas = f"betas ({objective.momentum:g}, {BETA:g})"
        rest = f"{betas}, weight decay {objective.weight_decay:g} apart from the gradient"
    factors, places = objective.schedule.values, objective.schedule.places
    schedule = ", ".join(f"{value:g}" for value in factors)
    if len(factors) > 1:
        reached = ", ".join(f"{place * rounds:.3g}" for place in places)
        curve = ", a cosine between them" * (objective.lr_curve == "cosine")
        schedule = f"({schedule}) at rounds ({reached}){curve}"
    return [
        f"the {name} learner minimises",
        *(f"  {line}" for line in objective.formula()),
        f"  by {NAMES[objective.optimizer]}: lr {objective.step_size:g} x {schedule}, {rest}",
    ]


def _merge(method: Method, rounds: int, steps: int | None) -> list[str]:
    merge, names = method.merge, list(method.knots)
    mean = "running averages" if merge.source == "average" else "weights"
    parts = f"({' + '.join(f'g_{name} w_{name}' for name in names)})"
    if len(names) == 1:
        parts = f"w_{names[0]}"
    every = {"step": "step s", "round": "round s", "handover": "round that hands over"}
    when = every[merge.average_every]
    first = f"the global model, after every {when}: w <- alpha' w + (1 - alpha') {parts}"
    horizon = _decay(merge, steps)
    if len(names) == 1:
        return [first, horizon]
    if method.averaged_once:
        first = f"the global model: {parts}"
        mean += ", which keep alpha' of themselves a step"
    since = "t'" if merge.anchor == "start" else "the beginning"
    lines = [first, f"  of the learners' {mean}", horizon]
    if merge.global_from == "start":
        lines.append(f"  from t' on; up to then it is {parts} itself")
    if merge.batches == "shared":
        lines.append("  the learners are trained on the same augmented minibatches")
    if merge.gamma is None:
        lines.append("  g_robust = gamma, g_clean = 1 - gamma")
    for name, knots in method.knots.items() if merge.gamma is not None else ():
        values = ", ".join(f"{value:.3g}" for value in knots.values)
        places = ", ".join(f"{place:.3g}" for place in knots.places)
        lines.append(
            f"  g_{name} = ({values}) at ({places}) of the way from {since} to round {rounds}"
        )
    return [*lines, *_branches(method), *_handover(merge, method.trunk is not None, rounds)]


def _decay(merge: Merge, steps: int | None) -> str:
    """Return alpha' in words, that of the global model and that of running averages."""
    if not merge.averages:
        return "  with alpha' = 0: no average (horizon 0)"
    horizon = f"a horizon of {merge.horizon:.5g} rounds"
    warm = ", grown in as (s + 1)/(s + 10)" if merge.warmup else ""
    a_step = f"alpha' = 1 - 1/({merge.horizon:.5g} S), {horizon} of S steps{warm}"
    if steps is not None:
        a_step = f"alpha' = {merge.decay(steps):.4g}, {horizon} of {steps} steps{warm}"
    if merge.average_every == "step":
        return f"  with {a_step}"
    updates = 1 if merge.average_every == "round" else 1 / (merge.every or 1)
    warm = warm if merge.global_from == "first-step" else ""
    own = f"  with alpha' = {merge.decay(updates):.4g}, {horizon}{warm}"
    return own + (f"; in running averages {a_step}" if merge.source == "average" else "")


def _regime(method: Method, rounds: int, steps: int) -> list[str]:
    """Return the numbers of the merge that follow from the schedules and t'."""
    rule, latest = method.merge.start, method.merge.start.latest(rounds)
    if isinstance(rule, Threshold):
        return ["what the schedules make of the merge depends on t', which may never be found"]
    if rounds * steps > MOST:
        return []
    never = isinstance(rule, Never)
    when = "" if never else f", with t' = {latest}"
    when += ", the deadline" if isinstance(rule, Stable) else ""
    lines = method.regime(rounds, steps, None if never else latest).lines()
    return [f"what the schedules make of the merge{when}:", *(f"  {line}" for line in lines)]


def _branches(method: Method) -> list[str]:
    """Return in words when the branches of a trunk start."""
    if method.trunk is None:
        return []
    names = [name for name in method.learners if name != method.trunk]
    parting = f"{' and '.join(names)} go on from its weights, average and momentum"
    lines = [f"up to t' there is one learner, the {method.trunk}; then {parting}"]
    lines += [
        f"  {name} is trained on the batches of {objective.follows}, and on the x' found for it"
        for name, objective in method.learners.items()
        if objective.follows is not None
    ]
    schedules = "their schedules begin there" if method.restart else "their schedules go on"
    return [*lines, f"  {schedules}"]


def _handover(merge: Merge, branched: bool, rounds: int) -> list[str]:
    rule = dict(vars(merge.start))
    name = rule.pop("rule")
    settings = ", ".join(f"{key} {value}" for key, value in rule.items() if value is not None)
    start = f"t' is found by the rule {name!r} ({settings})"
    if isinstance(merge.start, Fixed):
        start = f"t' = {merge.start.latest(rounds)}, which is fixed"
    if merge.every is None:
        shown = branched or merge.global_from == "start"
        return ["the learners are never handed the global weights", *[start] * shown]
    counted = "t" if merge.count == "rounds" else "t - t'"
    since = "t >= t'" if merge.inclusive else "t > t'"
    due = f"rounds with {since} and ({counted}) mod {merge.every} = 0"
    when = f"at the end of {due}, but for the last"
    if merge.granularity == "step":
        when = f"after every step of {due}"
    return [f"the learners go on from the global weights {when}", start]
