"""Small trainings: images of four classes, a model for them, and what tests compare."""

import io
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from equipoise import models
from equipoise.attacks import PGD
from equipoise.data import Images
from equipoise.execution import Execution
from equipoise.objectives.adversarial import Adversarial
from equipoise.objectives.core import Knots, Objective
from equipoise.objectives.standard import Standard
from equipoise.settings.methods import METHODS, Scheduled, Settings
from equipoise.threat import Linf, Threat
from equipoise.training import Fixed, Merge, Method, Training

CLASSES, SIDE, COUNT, BATCH = 4, 8, 70, 16
STEPS = COUNT // BATCH
EPS = 0.1
THREAT = Linf(EPS)
State = dict[str, Tensor]
SCHEDULED: dict[str, Any] = {
    "method": "generalist",
    "anchor": "start",
    "count": "since-start",
    "source": "weights",
    "granularity": "round",
    "batches": "own",
    "start": "stable",
}
"""A recipe of learners that are merged, whose other settings are the defaults of Scheduled."""


def blobs(seed: int = 0, count: int = COUNT) -> Images:
    """Return images of four classes: a bright quarter each, under noise."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(count) % CLASSES
    x = torch.randint(0, 120, (count, 1, SIDE, SIDE), generator=generator)
    for k in range(CLASSES):
        rows, columns = slice(4 * (k // 2), 4 * (k // 2) + 4), slice(4 * (k % 2), 4 * (k % 2) + 4)
        x[y == k, :, rows, columns] += 60
    return Images(x.to(torch.uint8), y)


def new_model(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        settings = {"channels": 1, "size": (SIDE, SIDE), "classes": CLASSES, "width": 0.25}
        return models.build("small-cnn", settings)


def small(method: str = "", **settings: Any) -> Any:
    """Return the settings of a method that is quick and changes quickly; by default Scheduled."""
    schedule: dict[str, Any] = {"lr_factors": (0.5, 1.0, 0.2), "lr_at": None}
    attack = PGD(steps=2, keep="last")
    usual: dict[str, Any] = {
        "clean": Standard(lr=0.1, weight_decay=1e-3, **schedule),
        "robust": Adversarial(lr=0.07, weight_decay=4e-3, attack=attack, **schedule),
        "horizon": 1.25,
        "every": 2,
        "start": Fixed(round=2),
    }
    return (METHODS[method] if method else Scheduled)(**usual | settings)


def branched(trunk: str, round_: int, *, last_lr: float = 1.0, source: str = "weights") -> Method:
    sgd: dict[str, Any] = {
        "lr": 0.05,
        "lr_factors": (1.0, 1.0, last_lr, last_lr),
        "lr_at": (0.0, 0.5, 0.5, 1.0),
    }

    def robust() -> Objective:
        return Adversarial(attack=PGD(steps=2, keep="last"), **sgd).bind(THREAT)

    learners: dict[str, Objective] = {
        "clean": Standard(**sgd).bind(THREAT),
        "robust": robust(),
    }
    if trunk not in learners:
        learners[trunk] = robust()
    merge: dict[str, Any] = {"horizon": 1.25, "source": source, "every": None}
    merge["start"] = Fixed(round=round_)
    return Method(
        learners=learners,
        knots={"clean": Knots((0.4,)), "robust": Knots((0.6,))},
        merge=Merge(**merge),
        trunk=trunk,
    )


def constant(model: nn.Module, threat: Threat | None = None) -> dict[str, float]:
    del model, threat
    names = ("clean_accuracy", "robust_accuracy", "clean_loss", "robust_loss")
    return dict.fromkeys(names, 0.5)


def measured(model: nn.Module, threat: Threat | None = None) -> dict[str, float]:
    """Measure on other blobs than those of the training, in place of a robust accuracy too."""
    images = blobs(1, 40)
    with torch.no_grad():
        dtype = next(model.parameters()).dtype
        logits = model.eval()(images.pixels().to(dtype))
        loss = float(nn.functional.cross_entropy(logits, images.y))
        correct = float((logits.argmax(1) == images.y).double().mean())
    values = {"clean_accuracy": correct, "robust_accuracy": correct / 2}
    return values | {"clean_loss": loss, "robust_loss": 2 * loss}


def training(
    settings: Settings | Method, rounds: int = 4, *, seed: int = 0, **others: Any
) -> Training:
    method = settings if isinstance(settings, Method) else settings.build(THREAT)
    usual: dict[str, Any] = {
        "method": method,
        "model": new_model(),
        "images": blobs(),
        "rounds": rounds,
        "batch_size": BATCH,
        "seed": seed,
        "validate": constant,
        "value": lambda m: m["clean_accuracy"] + m["robust_accuracy"],
        "execution": Execution(precision="float32"),
    }
    return Training(**usual | others)


def finished(*args: Any, **kwargs: Any) -> Training:
    result = training(*args, **kwargs)
    result.run()
    return result


def weights_of(job: Training) -> dict[str, State]:
    """Return the weights of every learner and the global ones."""
    states = {name: learner.model.state_dict() for name, learner in job.learners.items()}
    states["global"] = job.merged_state()
    return {who: {k: v.clone() for k, v in state.items()} for who, state in states.items()}


def same(one: Mapping[str, State], other: Mapping[str, State]) -> bool:
    return one.keys() == other.keys() and all(
        torch.equal(one[who][key], other[who][key]) for who in one for key in one[who]
    )


def through_a_file(state: Any) -> Any:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def without_times(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    skip = ("seconds", "parts", "images_per_second")
    return [{k: v for k, v in record.items() if k not in skip} for record in history]
