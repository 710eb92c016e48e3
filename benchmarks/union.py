"""A front between three ends against trainings on the union of both threats, at equal gradients.

    python benchmarks/union.py runs/union --data fashion-mnist

One run of ``a3gt`` has a clean branch, one robust in Linf and one robust in L2; its models are
measured on held-out images. The rivals are single trainings of ``union-at``: mixed adversarial
training on, for each image, the worse of the results of two attacks, one in each threat. An update
of ``union-at`` takes 22 gradient evaluations an image; the run of ``a3gt`` takes 12 before its
branches start and 26 after, 17.6 on average: so 8 rounds take the gradients of 10. All searches
have 10 steps; fewer would make each of them cheaper alike.

The objective is not among those of the package. It is the maximum of Tramer and Boneh, 2019
(https://arxiv.org/abs/1904.13000), section 2, mixed with clean images.
"""

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

import equipoise as eq
from equipoise.draws import Draws
from equipoise.jobs.front import measure_front
from equipoise.objectives.core import Batch
from equipoise.objectives.labels import Labels
from equipoise.objectives.mixed import Mixed
from equipoise.settings import methods, recipe
from equipoise.store.runs import Run
from equipoise.terminal.progress import Console
from equipoise.threat import Threat

ROUNDS = {"a3gt": 10, "union-at": 8}
RADII = {"fashion-mnist": (0.1, 1.5), "mnist": (0.3, 2.0), "digits": (0.15, 0.8)}


@dataclass(frozen=True, kw_only=True)
class Union(Mixed):
    """Mixed adversarial training on the worse of an Linf and an L2 attack.

    Arguments:
        radius: The radius of the L2 attack.
    """

    objective: str = "union-at"
    radius: float = 1.5

    def searched(self, form: nn.Module, batch: Batch, labels: Labels, draws: Draws) -> Tensor:
        """Return for each image the result of the attack that has the higher loss."""
        losses, index = self.ascended(form, batch, labels), torch.arange(len(batch.y))
        found = []
        for threat in (self.threat, Threat("l2", self.radius)):
            x_adv = self.stronger.search(form, batch.x, labels.y, threat, draws, losses)
            with torch.no_grad():
                found.append((x_adv, losses(form(x_adv), index)))
        (first, loss), (second, other) = found
        return torch.where((other > loss).view(-1, 1, 1, 1), second, first)

    @property
    def searching(self) -> int:
        """Return the gradient evaluations of both searches."""
        return 2 * super().searching


methods.METHODS["union-at"] = methods.one(Union, "", "robust.weight", horizon=2.5)


def main() -> None:
    """Train what is not trained yet, measure all models, and print them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("out", type=Path, help="where the runs go")
    parser.add_argument("--data", default="fashion-mnist", choices=RADII)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit", type=int, default=6000, help="training and held-out images")
    given = parser.parse_args()
    eps, radius = RADII[given.data]
    common = {
        "data": given.data, "eps": eps, "seed": given.seed, "limit": given.limit,
        "validation": given.limit // 6, "batch_size": 128, "keep": "last",
    }  # fmt: skip
    search = {"attack": {"steps": 10}}
    robust = {"objective": "mix-at", "weight": 0.9, **search}
    three = {"trunk": {**robust, "weight": 0.5}, "robust": robust, "start": {"fraction": 0.6}}
    l2 = {**robust, "norm": "l2", "eps": radius}
    asked = {"three": {"method": "a3gt", "gamma": 0.5, **three, "more": {"l2": l2}}}
    for weight in (0.5, 0.9):
        union = {"weight": weight, "radius": radius, **search}
        asked[f"union-{weight:g}"] = {"method": "union-at", "robust": union}
    paths = {name: given.out / name for name in asked}
    for name, settings in asked.items():
        rounds = ROUNDS[str(settings["method"])]
        if not (paths[name] / "summary.json").is_file():
            eq.train(recipe.parse({**common, **settings, "rounds": rounds}), paths[name])
        spent = Run.open(paths[name]).read_json("summary.json").get("gradient_evaluations")
        sys.stdout.write(f"{name}: {rounds} rounds, {spent} gradient evaluations\n")
    three, *rivals = paths.values()
    record = measure_front(three, others=rivals, console=Console(quiet=True))
    assert record is not None, "all held-out images were measured"
    record.shown().show()


if __name__ == "__main__":
    main()
