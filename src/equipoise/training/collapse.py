r"""Catastrophic overfitting: a model that is robust to its own weak inner attack alone.

Training against a single step can go well for many rounds and fail within one: the loss surface
bends so that the step leads nowhere, the training loss falls, and any other attack succeeds. So
every learner with a weak attack is probed at the end of each round, on the same held-out images
with the same draws: :math:`p_t` is its accuracy under PGD with 20 steps, :math:`q_t` that under
its own inner attack. With b the earlier round of the largest p, the learner collapsed in round t
if

.. math:: p_t < \tfrac12 \, p_b \, \min(1, q_t / q_b), \qquad \min(p_b, q_t) > 1.5 \, c

where c is the accuracy of the best constant answer, 1 / K for K balanced classes.

Each part avoids a false alarm. *Half of the best*: on 256 images the accuracy varies by a few
percent from round to round. *The factor* :math:`q_t / q_b`: a model that got worse as a whole, by
a large learning rate or a hand-over, is less robust to its own attack, too, by about the same
factor. *The best above chance*: a model that at first gives the same answer everywhere has an
accuracy of c under any attack, and loses it as it learns. *Its own attack above chance*: the
accuracies of a model that diverged are near zero and not comparable. The training loss shows
less: it is a mean over a round in which the weights changed, on augmented images and possibly
smoothed labels.

References:
    | Fast Is Better than Free: Revisiting Adversarial Training (Wong et al., 2020)
    | https://arxiv.org/abs/2001.03994
    | Understanding and Improving Fast Adversarial Training (Andriushchenko and Flammarion, 2020)
    | https://arxiv.org/abs/2007.02617
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn

from equipoise.attacks.pgd import PGD
from equipoise.draws import KeyedDraws
from equipoise.execution.form import guest
from equipoise.objectives.core import Batch, Objective
from equipoise.training.learner import Learner

Accuracies = Mapping[str, float]

MOST = 3  # rollbacks in a run
FALLEN = 0.5  # a smaller part of the best accuracy is a collapse
ABOVE_CHANCE = 1.5  # times the accuracy of the best constant answer


@dataclass(frozen=True, kw_only=True)
class Probe:
    """A stronger attack on a few held-out images, the same in every round.

    Arguments:
        x: The images in [0, 1], with shape (N, C, H, W).
        y: Their labels, with shape (N,).
        attack: The attack.
        seed: The seed of the draws, which are keyed by the images.
    """

    x: Tensor
    y: Tensor
    attack: PGD = field(default_factory=lambda: PGD(steps=20, keep="first"))
    seed: int = 0

    def __call__(self, model: nn.Module, objective: Objective, progress: float) -> Accuracies:
        """Return the accuracies ``probe``, p, and ``probe_own``, q, of a model at a progress."""
        threat = objective.state.threat
        assert threat is not None
        no_index = torch.full_like(self.y, -1)  # these images are not in the training set
        batch = Batch(self.x, self.y, no_index, progress)
        draws = (KeyedDraws.of(self.x, self.seed) for _ in range(2))
        with guest(model):
            strong = self.attack(model, self.x, self.y, threat, draws=next(draws))
            own = objective.attacked(model, batch, next(draws))
            with torch.no_grad():
                right = [model(x).argmax(1) == self.y for x in (strong, own)]
        probe, probe_own = (float(correct.double().mean()) for correct in right)
        return {"probe": probe, "probe_own": probe_own}

    @property
    def chance(self) -> float:
        """Return the accuracy of the best constant answer: 1 / K where classes are balanced."""
        return float(self.y.bincount().max()) / len(self.y)


class Probes(NamedTuple):
    """The results of the probes at the end of a round.

    Arguments:
        accuracies: Those of each probed learner.
        falls: For each learner that collapsed in the round the result of :func:`collapse`.
        seconds: How long the probes took.
    """

    accuracies: Mapping[str, Accuracies] = {}
    falls: Mapping[str, Accuracies] = {}
    seconds: float = 0.0

    @classmethod
    def of(
        cls,
        probe: Probe,
        learners: Sequence[Learner],
        history: Sequence[Mapping[str, Any]],
        progress: float,
    ) -> Self:
        """Probe every learner that may overfit to its attack, at the progress of the last step."""
        began = time.perf_counter()
        accuracies = {
            learner.name: probe(learner.model, learner.objective, progress)
            for learner in learners
            if learner.watched(progress)
        }
        falls = {k: collapse(history, k, now, probe.chance) for k, now in accuracies.items()}
        collapsed = {name: fall for name, fall in falls.items() if fall is not None}
        return cls(accuracies, collapsed, time.perf_counter() - began)


def collapse(
    history: Sequence[Mapping[str, Any]], name: str, now: Accuracies, chance: float
) -> Accuracies | None:
    """Return the accuracies of a learner that collapsed in the round after ``history``, else None.

    A learner that collapsed in the round before, too, is not reported again.

    Arguments:
        history: The records of the rounds before.
        name: The learner.
        now: Its accuracies in the round.
        chance: The accuracy of the best constant answer.

    Returns:
        The accuracies, and ``best``, ``best_own`` and ``best_round``.
    """
    before = [
        (record["round"], record["learners"][name])
        for record in history
        if "probe" in record["learners"].get(name, {})
    ]
    already = before and _fallen(before[:-1], before[-1][1], chance)
    return None if already else _fallen(before, now, chance)


def _fallen(
    before: Sequence[tuple[int, Accuracies]], now: Accuracies, chance: float
) -> Accuracies | None:
    """Return the accuracies of a learner that collapsed by the rule of the module, else None."""
    if not before:
        return None
    t, best = max(before, key=lambda record: record[1]["probe"])
    kept = best["probe"] * min(best["probe_own"], now["probe_own"])
    fell = now["probe"] * best["probe_own"] < FALLEN * kept  # both sides times q_b, perhaps 0
    if not fell or min(best["probe"], now["probe_own"]) <= ABOVE_CHANCE * chance:
        return None
    return {
        "probe": now["probe"],
        "probe_own": now["probe_own"],
        "best": best["probe"],
        "best_own": best["probe_own"],
        "best_round": t,
    }


def described(name: str, t: int, fall: Accuracies) -> str:
    """Return a sentence about a learner that collapsed in round ``t``: see :func:`collapse`."""
    return (
        f"catastrophic overfitting: after round {t} the {name} learner is robust to PGD-20 on "
        f"{fall['probe']:.1%} of the probe images ({fall['best']:.1%} after round "
        f"{fall['best_round']:.0f}), but to its own inner attack on {fall['probe_own']:.1%}"
    )


def warnings(history: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a sentence for each collapse in the records of a training."""
    lines = []
    for record in history:
        for back in record.get("rollbacks", ()):
            for name, fall in back["learners"].items():
                again = f"trained again from round {back['to']} on: {back['measures'][name]}"
                lines.append(f"{described(name, record['round'], fall)}; {again}")
        for name, fall in record.get("collapse", {}).items():
            lines.append(f"{described(name, record['round'], fall)}; {REMEDY}")
    return lines


REMEDY = "take more inner steps, a smaller eps, or on_collapse=rollback"
