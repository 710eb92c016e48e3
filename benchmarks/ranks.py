"""Training steps in N processes of one thread against one process of N threads, in turn.

``torchrun --nproc-per-node 2 -m benchmarks.ranks`` prints, for each network, the throughput of the
processes over that of the threads: the median over pairs, with its range.
"""

import argparse
import sys
from collections.abc import Iterator
from statistics import median
from time import perf_counter

import torch

from equipoise import models
from equipoise.data.core import Images
from equipoise.settings.recipe import parse
from equipoise.threat import Linf
from equipoise.training import Training
from equipoise.training.processes import together
from equipoise.training.ranks import Ranks, divided

CASES = {"small-cnn": (1, 28, 1.0), "resnet-18": (3, 32, 0.25)}  # channels, pixels a side, width
CLASSES, BATCH = 10, 128


def steps_of(name: str, method: str, ranks: Ranks, count: int) -> Iterator[None]:
    """Return an iterator whose items are steps of a training on random images.

    Arguments:
        name: The network.
        method: The method.
        ranks: The processes that share it.
        count: The steps.
    """
    channels, side, width = CASES[name]
    settings = {"channels": channels, "size": (side, side), "classes": CLASSES, "width": width}
    torch.manual_seed(0)
    x = torch.randint(0, 256, (count * BATCH, channels, side, side), dtype=torch.uint8)
    built = parse({"method": method}).settings.build(Linf(8 / 255))
    ranks.divide(divided(built.learners, ranks.size, "data", BATCH, 1))
    training = Training(
        method=built,
        model=models.build(name, settings),
        images=Images(x, torch.arange(len(x)) % CLASSES),
        rounds=2,
        batch_size=BATCH,
        seed=0,
        validate=lambda model, threat: {},
        value=lambda metrics: 0.0,
        ranks=ranks,
    )
    return training.steps_of_round(1)


def seconds(steps: Iterator[None], count: int) -> float:
    """Return the seconds of so many steps."""
    began = perf_counter()
    for _ in range(count):
        next(steps)
    return perf_counter() - began


def main() -> None:
    """Measure, and print a line for each network."""
    words = argparse.ArgumentParser(description=__doc__)
    words.add_argument("--method", default="pgd-at")
    words.add_argument("--models", nargs="+", default=list(CASES), choices=list(CASES))
    words.add_argument("--pairs", type=int, default=10)
    words.add_argument("--steps", type=int, default=3, help="steps of each side of a pair")
    asked = words.parse_args()
    total = asked.steps * asked.pairs + 1
    with together() as ranks:
        for name in asked.models:
            shared = steps_of(name, asked.method, ranks, total)
            alone = steps_of(name, asked.method, Ranks(), total) if ranks.first else iter(())
            ratios, rates = [], []
            for pair in range(-1, asked.pairs):  # the first one is a warm-up
                count = asked.steps if pair >= 0 else 1
                torch.set_num_threads(1)
                ranks.lead(lambda: None)
                several = seconds(shared, count)
                torch.set_num_threads(ranks.size)
                one: list[float] = []
                ranks.lead(lambda: one.append(seconds(alone, count)))  # noqa: B023 - called now
                if one and pair >= 0:
                    ratios.append(one[0] / several)
                    rates.append(count * BATCH / several)
            if ranks.first:
                sys.stdout.write(
                    f"{name}, {asked.method}, batch {BATCH}: {ranks.size} processes of one thread "
                    f"have {median(ratios):.2f} of the throughput of one process of {ranks.size} "
                    f"threads ({min(ratios):.2f} to {max(ratios):.2f}, {len(ratios)} pairs; "
                    f"{median(rates):.0f} images/s)\n"
                )


if __name__ == "__main__":
    main()
