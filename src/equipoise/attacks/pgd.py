r"""Projected gradient ascent and the attacks that are settings of it.

.. math:: x_{k+1} = \Pi\bigl(x_k + \alpha \, \mathrm{ascent}(g_k)\bigr), \qquad
          g_k = \mu \, g_{k-1} + \nabla \ell(x_k) / \|\nabla \ell(x_k)\|_1

with :math:`\Pi` the exact projection onto the ball and the range. Without momentum :math:`g_k`
is the gradient itself.

==================  ============================================================================
FGSM                one step of size eps from x
PGD-k               k steps from a random start, cross-entropy
MI-FGSM-k           k steps of eps/k from x, momentum 1, gradients divided by their L1 norm
CW-inf-k            k steps on the margin :math:`-\max(z_y - \max_{i \ne y} z_i, -\kappa)`
==================  ============================================================================

Deviations from the authors' codes: the Generalist evaluation ignores the number of steps and
always takes ten, starts MI-FGSM at random and divides by the mean of the gradient; here the number
of steps is used, MI-FGSM starts at x as in its paper, and a zero gradient is a zero step rather
than NaN. Starts are clipped to the range before the first gradient. By default the best iterate
counts; the papers' codes use ``keep="last"``.

Points that a search form (:func:`equipoise.fast`) misclassifies are confirmed by the model itself.
With ``keep="best"`` that is the strongest point, after the last step; if the model classifies it
correctly, the example is searched again from the same start, and every point that would be the
best so far is checked. With ``keep="first"`` every point is checked, until the model misclassifies
one. Both fool the same examples as if all points were checked.

References:
    | Explaining and Harnessing Adversarial Examples (Goodfellow et al., 2015)
    | https://arxiv.org/abs/1412.6572
    | Towards Deep Learning Models Resistant to Adversarial Attacks (Madry et al., 2018)
    | https://arxiv.org/abs/1706.06083
    | Boosting Adversarial Attacks with Momentum (Dong et al., 2018)
    | https://arxiv.org/abs/1710.06081
    | Towards Evaluating the Robustness of Neural Networks (Carlini and Wagner, 2017)
    | https://arxiv.org/abs/1608.04644
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Annotated, Literal, NamedTuple, Self

import torch
from torch import Tensor, nn

from equipoise.attacks.core import Attack, prepared, refuse, uncounted, wrong_norms
from equipoise.draws import Draws, normal
from equipoise.errors import NotNegative, Part, out_of_range
from equipoise.execution.form import Fast, guest, input_gradient
from equipoise.execution.passes import Network
from equipoise.losses import LOSSES
from equipoise.threat import Norm, Threat

Ascended = Callable[[Tensor, Tensor], Tensor]
"""From logits and the positions of their examples in a batch to losses."""


def located(losses: Ascended, index: Tensor) -> Callable[[Tensor], Tensor]:
    """Return losses for the examples at some positions, as a function of logits alone."""
    return lambda logits: losses(logits, index)


@dataclass(frozen=True, kw_only=True)
class PGD:
    r"""Projected gradient ascent on a loss.

    Arguments:
        steps: The number of steps; each is one forward and one backward pass.
        step_size: The length :math:`\alpha` of a step, in units of the input; by default
            ``step_factor`` eps / steps.
        step_factor: The default length of a step, in units of eps / steps.
        restarts: How often to search; all but the first only for examples not yet fooled.
        start: Where to start: ``"uniform"`` in the ball, at x (``"zero"``), close to x
            (``"noise"``): at x + 0.001 N(0, 1), in units of the range, as TRADES does, whose
            loss has no gradient at x, or half-way to the border in a random direction with
            equal coordinates (``"signs"``), as GAT does.
        loss: ``"ce"`` or ``"margin"``.
        confidence: :math:`\kappa`: the largest margin loss that counts. None: no limit.
        momentum: :math:`\mu`; None follows the gradient itself.
        keep: Which iterate counts: the ``"best"`` (misclassified first, then the largest loss;
            one forward pass more, for the last iterate), the ``"first"`` that is misclassified
            (the example then leaves the search; where there is none, the largest loss), or the
            ``"last"``.
        norms: The norms for which the attack is defined.
    """

    steps: int = 20
    step_size: Annotated[float, "(0, inf)"] | None = None
    step_factor: Annotated[float, "(0, inf)"] = 2.5
    restarts: int = 1
    start: Literal["uniform", "zero", "noise", "signs"] = "uniform"
    loss: Literal["ce", "margin"] = "ce"
    confidence: NotNegative | None = None
    momentum: Part | None = None
    keep: Literal["best", "first", "last"] = "best"
    norms: tuple[Norm, ...] = ("linf", "l2", "l1")

    def __post_init__(self) -> None:
        problems = uncounted(self, "steps", "restarts")
        problems += out_of_range(self)
        for name, choices in _CHOICES.items():
            value = getattr(self, name)
            if value not in choices:
                problems.append(f"{name} must be one of {', '.join(choices)}, got {value!r}")
        refuse(problems + wrong_norms(self.norms))

    def cost(self, norm: Norm) -> float:
        """Return a rough number of the gradient evaluations an image."""
        return float(self.steps * self.restarts)

    def __call__(
        self, model: nn.Module, x: Tensor, y: Tensor, threat: Threat, *, draws: Draws | None = None
    ) -> Tensor:
        """Return the strongest ``x_adv`` found for every example: see :class:`Attack`."""
        x, y, draws = prepared(self, x, y, threat, draws)
        return self.search(model, x, y, threat, draws) if len(x) else x.clone()

    def search(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        threat: Threat,
        draws: Draws,
        losses: Ascended | None = None,
        start: Tensor | None = None,
    ) -> Tensor:
        """Return the same without checking the inputs.

        A check waits for the device; training does it once, when the data are read.

        Arguments:
            model: This and the next four arguments are those of :class:`Attack`.
            x: The clean inputs.
            y: The labels.
            threat: The ball and the range.
            draws: The randomness.
            losses: Maximised in place of ``loss``: from logits, with shape (N, K), and the
                positions of their examples in the batch, with shape (N,), to losses (N,).
            start: Points from which the first search starts, with the shape of ``x``; they are
                projected. None: as the setting ``start`` says.
        """
        losses = losses or (lambda logits, index: self.losses(logits, y[index]))
        every, x = torch.arange(len(y), device=y.device), x.detach()
        with guest(model) as model, torch.no_grad():
            source = draws.child("restart 0")
            at = self.start_at(x, threat, source) if start is None else threat.project(x, start)
            x_adv, score = self._search(model, x, y, at, threat, losses, every)
            for restart in range(1, self.restarts):
                rest = (~score.fooled).nonzero()[:, 0]
                if not len(rest):
                    break
                source = draws.child(f"restart {restart}").select(rest)
                at = self.start_at(x[rest], threat, source)
                again, scores = self._search(model, x[rest], y[rest], at, threat, losses, rest)
                _keep(x_adv, score, rest, again, scores)
        return x_adv

    def start_at(self, x: Tensor, threat: Threat, draws: Draws) -> Tensor:
        """Return where the search starts, within the threat."""
        if self.start == "uniform":
            return threat.start(x, draws.uniform(x))
        if self.start == "noise":
            noise = NOISE * (threat.high - threat.low) * normal(draws, x)
            return threat.project(x, x + noise)
        if self.start == "signs":
            signs = torch.where(draws.uniform(x) < 0.5, -1.0, 1.0).to(x)
            length = threat.eps / 2
            return threat.project(x, x + length * signs / threat.lengths(signs, threat.norm))
        return x.clone()

    def step_length(self, threat: Threat) -> float:
        """Return the length of a step against a threat."""
        if self.step_size is not None:
            return self.step_size
        return self.step_factor * threat.eps / self.steps

    def losses(self, logits: Tensor, y: Tensor) -> Tensor:
        """Return what is maximised, with shape (B,)."""
        losses = LOSSES[self.loss](logits, y)
        return losses if self.confidence is None else losses.clamp_max(self.confidence)

    def _search(
        self,
        model: Fast,
        x: Tensor,
        y: Tensor,
        start: Tensor,
        threat: Threat,
        losses: Ascended,
        index: Tensor,
    ) -> "tuple[Tensor, _Score]":
        """Search once for the inputs at some positions in the batch; return points and scores."""
        if self.keep == "first":
            return self._shown(model, x, y, start, threat, losses, index)
        best, score = self._all_steps(model, x, y, start, threat, located(losses, index))
        if self.keep == "last" and self.restarts == 1:
            return best, score
        sure = model.confirmed(best, score.fooled, y)
        refused = (score.fooled & ~sure).nonzero()[:, 0]
        score = _Score(sure, score.losses)
        if len(refused) and self.keep == "best":
            parts = x[refused], y[refused], start[refused]
            again, scores = self._shown(model, *parts, threat, losses, index[refused])
            _keep(best, score, refused, again, scores)
        return best, score

    def _all_steps(
        self,
        model: Fast,
        x: Tensor,
        y: Tensor,
        start: Tensor,
        threat: Threat,
        losses: Callable[[Tensor], Tensor],
    ) -> "tuple[Tensor, _Score]":
        """Take all steps; return the points kept, and their scores by the model searched alone."""
        x_adv, best, score = start, start, _Score.lowest(y)
        direction = torch.zeros_like(x)
        settings = threat, self.step_length(threat), self.momentum
        project = threat.projector(x)
        for _ in range(self.steps):
            logits, values, direction, moved = model.take(
                _step, x_adv, direction, losses, project, *settings
            )
            if self.keep == "best":
                best, score = _better(best, score, x_adv, _Score.of(logits, values, y))
            x_adv = moved
        if self.keep == "last" and self.restarts == 1:
            return x_adv, score
        logits = model(x_adv)
        last = _Score.of(logits, losses(logits), y)
        return (x_adv, last) if self.keep == "last" else _better(best, score, x_adv, last)

    def _shown(
        self,
        model: Fast,
        x: Tensor,
        y: Tensor,
        start: Tensor,
        threat: Threat,
        losses: Ascended,
        index: Tensor,
    ) -> "tuple[Tensor, _Score]":
        """Search once; the exact model checks every point that would be the best so far.

        With ``keep="first"`` an example leaves the search at its first confirmed point.
        """
        best, score = start.clone(), _Score.lowest(y)
        rows, point, direction = torch.arange(len(y), device=y.device), start, torch.zeros_like(x)
        settings = threat, self.step_length(threat), self.momentum
        project = threat.projector(x)
        for taken in range(self.steps + 1):
            here = located(losses, index[rows])
            if taken < self.steps:
                logits, values, direction, moved = model.take(
                    _step, point, direction, here, project, *settings
                )
            else:
                logits = moved = model(point)
                values = here(logits)
            scores = _Score.of(logits, values, y[rows])
            checked = scores.fooled & scores.beats(score.take(rows))
            scores = _Score(model.confirmed(point, checked, y[rows]), scores.losses)
            _keep(best, score, rows, point, scores)
            point = moved
            left = (~scores.fooled).nonzero()[:, 0]
            if self.keep == "first" and not len(left):
                break
            if self.keep == "first" and len(left) < len(rows):
                rows, point, direction = rows[left], moved[left], direction[left]
                project = threat.projector(x[rows])
        return best, score


def FGSM() -> PGD:  # noqa: N802 - the attack's name
    """Return the fast gradient sign method: one step of size eps."""
    return PGD(steps=1, step_factor=1, start="zero", keep="last", norms=("linf", "l2"))


def MIFGSM(*, steps: int = 10, momentum: float = 1.0) -> PGD:  # noqa: N802
    """Return the momentum iterative method of Dong et al. (2018), the papers' MIA."""
    return PGD(steps=steps, step_factor=1, start="zero", momentum=momentum, norms=("linf", "l2"))


def CWInf(*, steps: int = 30, confidence: float = 50.0) -> PGD:  # noqa: N802
    """Return projected ascent on the margin of Carlini and Wagner, the papers' C&W."""
    return PGD(steps=steps, loss="margin", confidence=confidence, norms=("linf",))


def for_verdicts(attack: Attack) -> Attack:
    """Return an attack that fools the same examples, each of which leaves once it is fooled.

    It returns the first misclassified points rather than the strongest. Not for a random model
    (which would be fooled by chance) or a compiled one (compiled again for each batch size).
    """
    if type(attack) is PGD and attack.keep == "best":
        return replace(attack, keep="first")
    return attack


NOISE = 0.001  # the standard deviation of the start close to x, in units of the range

_CHOICES = {
    "start": ("uniform", "zero", "noise", "signs"),
    "loss": tuple(LOSSES),
    "keep": ("best", "first", "last"),
}


def _step(
    model: Network,
    x_adv: Tensor,
    direction: Tensor,
    losses: Callable[[Tensor], Tensor],
    project: Callable[[Tensor], Tensor],
    threat: Threat,
    length: float,
    momentum: float | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return logits, losses, the direction of the step and the point where it ends."""
    logits, values, grad = input_gradient(model, x_adv, losses)
    if momentum is not None:
        scale = Threat.lengths(grad, "l1").clamp_min(torch.finfo(grad.dtype).tiny)
        grad = momentum * direction + grad / scale
    moved = torch.add(x_adv, threat.ascent(grad), alpha=length)
    return logits, values, grad, project(moved)


class _Score(NamedTuple):
    """How strong points are: misclassified ones first, then by loss."""

    fooled: Tensor
    losses: Tensor

    @classmethod
    def lowest(cls, y: Tensor) -> Self:
        """Return the lowest scores, one for each label."""
        losses = torch.full(y.shape, -torch.inf, dtype=torch.float64, device=y.device)
        return cls(torch.zeros_like(y, dtype=torch.bool), losses)

    @classmethod
    def of(cls, logits: Tensor, losses: Tensor, y: Tensor) -> Self:
        """Return the scores of points; a loss that is NaN comes last."""
        return cls(logits.argmax(1) != y, torch.nan_to_num(losses.double(), nan=-torch.inf))

    def beats(self, other: Self) -> Tensor:
        """Return which points are stronger, with shape (B,)."""
        same = self.fooled == other.fooled
        return (self.fooled & ~other.fooled) | (same & (self.losses > other.losses))

    def take(self, index: Tensor) -> Self:
        """Return the scores of some points."""
        return type(self)(self.fooled[index], self.losses[index])


def _better(best: Tensor, score: _Score, x_adv: Tensor, scores: _Score) -> tuple[Tensor, _Score]:
    better = scores.beats(score)
    mask = better.view(-1, *[1] * (x_adv.ndim - 1))
    chosen = (torch.where(better, new, old) for new, old in zip(scores, score, strict=True))
    return torch.where(mask, x_adv, best), _Score(*chosen)


def _keep(best: Tensor, score: _Score, rows: Tensor, x_adv: Tensor, scores: _Score) -> None:
    """Replace weaker points and their scores at some positions, in place."""
    better = scores.beats(score.take(rows)).nonzero()[:, 0]
    best[rows[better]] = x_adv[better]
    for kept, new in zip(score, scores, strict=True):
        kept[rows[better]] = new[better]
