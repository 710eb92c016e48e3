"""Trainings in the processes of torchrun against the same trainings in one: a program for tests.

``python -m torch.distributed.run --nproc-per-node 2 tests/ranked.py CASES OUT.json`` writes, for
each case, the largest difference between the weights of all processes and those of one.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

from blobs import (
    BATCH,
    THREAT,
    Training,
    blobs,
    branched,
    new_model,
    small,
    training,
    weights_of,
)
from equipoise.attacks import PGD
from equipoise.execution import Execution
from equipoise.settings.recipe import parse
from equipoise.training import Augment
from equipoise.training.processes import together
from equipoise.training.ranks import Ranks, divided
from equipoise.training.updates import Updates
from equipoise.training.validation import Validator


class Doubled(nn.Module):
    """A small model in float64, for images in float32."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = new_model().double()
        self.middle = nn.BatchNorm1d(4).double()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.middle(self.inner(x.double()))


def job(case: dict[str, Any], ranks: Ranks, parallel: str) -> Training:
    method = case["method"]
    if method == "branched":
        built = branched("trunk", 1)
    elif method == "merged":
        built = small(**case.get("settings", {})).build(THREAT)
    else:
        built = parse({"method": method, **case.get("settings", {})}).settings.build(THREAT)
    updates = Updates(**case.get("updates", {}))
    model = Doubled() if parallel == "data" else new_model()
    ranks.divide(divided(built.learners, ranks.size, parallel, BATCH, updates.accumulate))
    validator = Validator(
        x=blobs(1, 40).pixels(),
        y=blobs(1, 40).y,
        threats=(THREAT,),
        attack=PGD(steps=2),
        batch_size=16,
        ranks=ranks,
        execution=Execution(precision="float32"),
    )
    return training(
        built,
        case.get("rounds", 3),
        ranks=ranks,
        model=model,
        validate=validator,
        augment=Augment(pad=1, flip=True),
        updates=updates,
    )


def apart(one: Training, other: Training) -> float:
    pairs = [
        (mine[name].double(), theirs[name].double())
        for mine, theirs in zip(weights_of(one).values(), weights_of(other).values(), strict=True)
        for name in mine
    ]
    return max(float((a - b).abs().max()) for a, b in pairs)


def records(training: Training) -> list[Any]:
    keys = "learners", "global", "gradient_evaluations"
    return [[record[key] for key in keys] for record in training.history]


def main() -> None:
    cases = json.loads(Path(sys.argv[1]).read_text())
    found = {}
    with together() as ranks:
        for name, case in cases.items():
            shared = job(case, ranks, case["parallel"])
            shared.run()
            alone = job(case, Ranks(), case["parallel"])
            if ranks.first or case.get("all"):
                alone.run()
                same = records(shared) == records(alone)
                found[name] = {"apart": apart(shared, alone), "records": same}
            ranks.lead(lambda: None)
    if ranks.first:
        Path(sys.argv[2]).write_text(json.dumps(found))


main()
