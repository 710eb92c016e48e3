"""Measuring one model on held-out images, warm: what fooled its neighbours is tried first."""

__all__ = ["Measured", "Question", "measure", "retried"]

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from equipoise.attacks.inputs import check_inputs
from equipoise.evaluation import Judge, Protocol
from equipoise.evaluation.search import Search
from equipoise.store.digests import tensor_digest
from equipoise.terminal.progress import AttackProgress


@dataclass(frozen=True, kw_only=True, eq=False)
class Question:
    """What every model of a front is asked.

    Arguments:
        x: The held-out images in [0, 1], with shape (n, C, H, W), on the device of the models.
        y: Their labels, with shape (n,).
        protocol: How the models are attacked, with the threat; each attack attacks what withstood
            those before.
    """

    x: Tensor
    y: Tensor
    protocol: Protocol

    def __post_init__(self) -> None:
        check_inputs(self.x, self.y, self.protocol.threat)

    def identity(self) -> dict[str, Any]:
        """Return what an answer depends on beside the weights, as plain values."""
        protocol = self.protocol
        return {
            "data": tensor_digest(self.x),
            "labels": tensor_digest(self.y),
            "norm": protocol.threat.norm,
            "eps": repr(protocol.threat.eps),
            "attacks": [str(attack) for attack in protocol.named.values()],
            "seed": protocol.seed,
            "search": str(protocol.execution.resolved(self.x.device)),
            "format": 1,
        }


@dataclass(frozen=True, kw_only=True)
class Measured:
    """The verdicts on one model, all on the CPU.

    Arguments:
        correct: Who is classified correctly, with shape (n,).
        robust: Who of them withstood everything, with shape (n,).
        prediction: The answers on clean images, with shape (n,).
        adversarial_prediction: The answers on ``x_adv``, with shape (n,).
        x_adv: For each image the allowed point with the smallest margin that was found, with
            shape (n, C, H, W); where the clean image is misclassified it is that image.
        transferred: How many neighbours' examples fooled.
        searched: How many the first attack was run on.
        forwards: Images that passed forward through the model in the searches.
        backwards: Images that passed backward through it.
        seconds: The time that attacks and transfers took.
    """

    correct: Tensor
    robust: Tensor
    prediction: Tensor
    adversarial_prediction: Tensor
    x_adv: Tensor
    transferred: int = 0
    searched: int = 0
    forwards: int = 0
    backwards: int = 0
    seconds: float = 0.0


WARM = "transfer"  # the outcome of neighbours' examples


def measure(
    model: nn.Module,
    question: Question,
    neighbours: Mapping[str, Tensor] | None = None,
    advance: Callable[[AttackProgress], None] = lambda progress: None,
) -> Measured:
    """Return who is classified correctly, and who of them withstands.

    The neighbours' examples are tried first, forward alone: who is fooled by one of them, as the
    model itself says in float32, is not searched. The others are, by the same attacks with the
    same draws as without neighbours, so nobody counts as robust who would not have without
    (but for the rounding of a batch that is made up differently).

    Arguments:
        model: From images to logits, in eval mode.
        question: Images, threat and attacks.
        neighbours: Adversarial examples of models nearby for the same images, by a name, with the
            shape of the images.
        advance: Told how far each attack is, after every batch.
    """
    q, protocol = question, replace(question.protocol, individual=False, strongest=True)
    judge = Judge(model, protocol.batch_size, seed=protocol.seed)
    search = Search(judge, q.x, q.y, protocol, ())
    search.look(None)
    if neighbours:
        search.transfer({name: x_adv.to(q.x) for name, x_adv in neighbours.items()})
    warm = (WARM,) if neighbours else ()
    stages = [replace(stage, after=(*warm, *stage.after)) for stage in protocol.stages]
    for number, stage in enumerate(stages, 1):
        for progress in search.run(stage):
            advance(replace(progress, number=number, stages=len(stages)))
    result = search.result(0)
    outcomes = result.outcomes
    first = outcomes[stages[0].name] if stages else None
    return Measured(
        correct=result.correct,
        robust=result.robust,
        prediction=result.prediction,
        adversarial_prediction=result.adversarial_prediction,
        x_adv=result.x_adv,
        transferred=int(outcomes[WARM].broken.sum()) if WARM in outcomes else 0,
        searched=int(first.attacked.sum()) if first is not None else 0,
        forwards=sum(outcome.forwards for outcome in outcomes.values()),
        backwards=sum(outcome.backwards for outcome in outcomes.values()),
        seconds=sum(outcome.seconds for outcome in outcomes.values()),
    )


def retried(
    model: nn.Module, question: Question, measured: Measured, neighbours: Mapping[str, Tensor]
) -> Measured:
    """Return verdicts with what was found at neighbours since then tried, too.

    Arguments:
        model: The model.
        question: Images and threat.
        measured: The verdicts on it.
        neighbours: Adversarial examples of models nearby, as for :func:`measure`.
    """
    q, protocol = question, question.protocol
    judge = Judge(model, protocol.batch_size, seed=protocol.seed)
    robust, x_adv = measured.robust.clone(), measured.x_adv.clone()
    answer, hits = measured.adversarial_prediction.clone(), 0
    for points in neighbours.values():
        rows = robust.nonzero()[:, 0]
        if not len(rows):
            break
        there = rows.to(q.x.device)
        tried = points[rows].to(q.x)
        ruling = judge.rule(tried, q.y[there])
        fooled = (judge.admit(q.x[there], tried, protocol.threat) & ruling.fooled).cpu()
        hit = rows[fooled]
        robust[hit], x_adv[hit] = False, tried.cpu()[fooled]
        answer[hit] = ruling.answer.cpu()[fooled]
        hits += len(hit)
    if not hits:
        return measured
    return replace(
        measured,
        robust=robust,
        x_adv=x_adv,
        adversarial_prediction=answer,
        transferred=measured.transferred + hits,
    )
