r"""Catastrophic overfitting: a model that learned to fool a weak attack, and it alone.

Training against a single step can go well for many rounds and fail within one: the loss surface
bends so that the step leads nowhere, the training loss falls, and any other attack succeeds. So
every learner with a weak attack is probed at the end of each round, on the same held-out images
with the same draws: :math:`p_t` is its accuracy under PGD with 20 steps, :math:`q_t` that on the
inputs which its own attack finds. With b the earlier round of the largest p, round t is one of
collapse if

.. math:: p_t < \tfrac12 \, p_b \, \min(1, q_t / q_b), \qquad \min(p_b, q_t) > 1.5 \, c

where c is the accuracy of the best constant answer, 1 / K for K balanced classes.

Each part keeps out a false alarm. *Half of the best*: on 256 images the accuracy of a sound
training moves by a few percent from round to round. *The best above chance*: a model that at
first gives one answer only has an accuracy of c, whatever the attack, and loses it as it learns.
*Less than its own attack leaves*: a model that merely got worse, by a large learning rate or a
hand-over, is less robust to its own attack, too, by about the same factor; only one that overfits
to its attack loses against PGD alone. *Its own attack above chance*: the accuracies of a model
that diverged are next to nothing, and so are not compared. The training loss would show less: it
is a mean over a round in which the weights changed, on images that were augmented and labels that
may be smoothed.

References:
    | Fast Is Better than Free: Revisiting Adversarial Training (Wong et al., 2020)
    | https://arxiv.org/abs/2001.03994
    | Understanding and Improving Fast Adversarial Training (Andriushchenko and Flammarion, 2020)
    | https://arxiv.org/abs/2007.02617
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from equipoise.attacks.core import guest
from equipoise.attacks.pgd import PGD
from equipoise.draws import KeyedDraws
from equipoise.objectives.core import Batch, Objective
from equipoise.training.learner import Learner

Accuracies = Mapping[str, float]

MOST = 3  # rollbacks in a run
FALLEN = 0.5  # of the best that is a collapse
ABOVE_CHANCE = 1.5  # times the best constant answer, that the best must be


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
        nowhere = torch.full_like(self.y, -1)  # these images are not of the training set
        batch = Batch(self.x, self.y, nowhere, progress)
        with guest(model):
            strong = self.attack(model, self.x, self.y, threat, draws=self._draws())
            own = objective.attacked(model, batch, self._draws())
            return {
                "probe": self._accuracy(model, strong),
                "probe_own": self._accuracy(model, own),
            }

    @property
    def chance(self) -> float:
        """Return the accuracy of the best constant answer: 1 / K where classes are balanced."""
        return float(self.y.bincount().max()) / len(self.y)

    def _draws(self) -> KeyedDraws:
        return KeyedDraws.of(self.x, self.seed)

    @torch.no_grad()
    def _accuracy(self, model: nn.Module, x: Tensor) -> float:
        return float((model(x).argmax(1) == self.y).double().mean())


class Probes(NamedTuple):
    """The results of the probes at the end of a round.

    Arguments:
        accuracies: Those of each probed learner.
        falls: For each learner that collapsed in the round its accuracies, and its best ones.
        seconds: How long it took.
    """

    accuracies: Mapping[str, Accuracies] = {}
    falls: Mapping[str, Accuracies] = {}
    seconds: float = 0.0


def probed(
    probe: Probe,
    learners: Sequence[Learner],
    history: Sequence[Mapping[str, Any]],
    progress: float,
) -> Probes:
    """Probe every learner that may overfit to its attack, at the progress of the last step."""
    began = time.perf_counter()
    accuracies, falls = {}, {}
    for learner in learners:
        if learner.watched(progress):
            name = learner.name
            accuracies[name] = probe(learner.model, learner.objective, progress)
            fall = collapse(history, name, accuracies[name], probe.chance)
            if fall is not None:
                falls[name] = fall
    return Probes(accuracies, falls, time.perf_counter() - began)


def lost(
    t: int,
    probes: Probes,
    measures: Mapping[str, str],
    spent: Mapping[str, int],
    seconds: float,
) -> dict[str, Any]:
    """Return the record of a round ``t`` that is taken back, whose steps took ``seconds``.

    ``measures`` says for each learner that collapsed how its attack was made stronger.
    """
    return {
        "to": t - 1,
        "learners": probes.falls,
        "measures": measures,
        "gradient_evaluations": spent,
        "seconds": {"train": seconds, "validation": probes.seconds},
    }


def collapse(
    history: Sequence[Mapping[str, Any]], name: str, now: Accuracies, chance: float
) -> Accuracies | None:
    """Return how a learner collapsed in the round after ``history``; None if it did not.

    A learner that collapsed before and did not recover since does not collapse again.

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
    """Return how a learner fell by the rule of the module; None if it did not."""
    if not before:
        return None
    t, best = max(before, key=lambda record: record[1]["probe"])
    kept = best["probe"] * min(best["probe_own"], now["probe_own"])
    fell = now["probe"] * best["probe_own"] < FALLEN * kept  # times q_b, which may be 0
    if not fell or min(best["probe"], now["probe_own"]) <= ABOVE_CHANCE * chance:
        return None
    marks = {"best": best["probe"], "best_own": best["probe_own"], "best_round": t}
    return {"probe": now["probe"], "probe_own": now["probe_own"], **marks}


def described(name: str, t: int, fall: Accuracies) -> str:
    """Return in a sentence that a learner collapsed in round ``t``; see :func:`collapse`."""
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
