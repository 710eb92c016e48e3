r"""The common part of objectives that train on adversarial inputs, and weight perturbation.

Adversarial weight perturbation (AWP) moves the weights up the loss, a layer at a time and in
proportion to its length,

.. math:: w_l \leftarrow w_l + \gamma \, \|w_l\| \, g_l / \|g_l\|,

takes the gradient there, and restores the weights before the step. Deviations from the authors'
code: the direction is the gradient itself, not the step of a proxy network with an optimiser of
its own (one step of plain SGD, scaled to the same length, is the gradient); the statistics of
BatchNorm do not see the first of the two passes, as the proxy's did not count.

References:
    | Adversarial Weight Perturbation Helps Robust Generalization (Wu et al., 2020)
    | https://arxiv.org/abs/2004.05884
"""

from abc import abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from equipoise.attacks.core import check_threat
from equipoise.attacks.pgd import NOISE, PGD, Ascended
from equipoise.draws import Draws
from equipoise.errors import NotNegative, Part, UserError
from equipoise.execution.form import fast, guest
from equipoise.execution.passes import restored
from equipoise.objectives.core import Batch, Loss, Objective, smoothing_line
from equipoise.objectives.labels import Labels, cut, erase
from equipoise.threat import Norm, Threat, fraction

STARTS = {
    "uniform": "a uniform point of the ball",
    "zero": "x",
    "noise": f"x + {NOISE:g} N(0, 1)",
    "signs": "x + eps/2 random signs",
}


def inner_attack(*, steps: int = 10, step_factor: float = 2.5) -> PGD:
    """Return the attack of adversarial training: the last iterate of PGD-10."""
    return PGD(steps=steps, step_factor=step_factor, keep="last")


def noise_attack() -> PGD:
    """Return PGD-10 from x + 0.001 N(0, 1), the attack of TRADES and MART."""
    return PGD(steps=10, start="noise", keep="last")


@dataclass(frozen=True, kw_only=True)
class Robust(Objective):
    r"""A learner of adversarial images, with the options of all such learners.

    A subclass defines the loss on a batch once the adversarial inputs are found. The attack
    searches the model's quick form (:func:`equipoise.execution.fast`) in eval mode;
    ``attack.keep`` says which iterate is trained on, in all papers here the last.

    Arguments:
        norm: The norm of its own threat; None: the recipe's.
        eps: The radius of its own threat; None: the recipe's.
        attack: The inner attack.
        label_smoothing: The part of a label that is spread evenly over all classes; attacks use
            the label without smoothing, except that of YOPO, which is part of its update.
        awp: Adversarial weight perturbation: how far, in lengths of the weights; 0: none. 0.005
            to 0.01 is usual.
        awp_from: The progress from which on weights are perturbed.
        cutmix: The probability that a part of an image is replaced by that of another image.
        erasing: The probability that a part of an image is noise.
    """

    monitor: ClassVar[Literal["clean_loss", "robust_loss"]] = "robust_loss"
    ascends: ClassVar[str] = "CE(f(x'), y)"
    """What the search maximises, in words."""

    norm: Norm | None = None
    eps: float | None = None
    attack: PGD = field(default_factory=inner_attack)
    awp: NotNegative = 0.0
    awp_from: Part = 0.0
    cutmix: Part = 0.0
    erasing: Part = 0.0

    def problems(self) -> list[str]:
        """Return the errors in the settings, a sentence each."""
        problems = super().problems()
        if self.cutmix and (self.attack.loss != "ce" or self.attack.confidence is not None):
            problems.append(
                "with cutmix the attack climbs the cross-entropy of the mixed label: "
                "attack.loss=margin and attack.confidence do not fit it"
            )
        return problems

    def against(self, threat: Threat) -> Threat:
        """Return the learner's threat if the training's is ``threat``."""
        if self.norm not in (None, threat.norm) and self.eps is None:
            raise UserError(f"norm={self.norm} of a learner needs a radius of its own: eps")
        eps = threat.eps if self.eps is None else self.eps
        own = replace(threat, norm=self.norm or threat.norm, eps=eps)  # of its own class
        check_threat(self.attack, own)
        return own

    @property
    def threat(self) -> Threat:
        """Return the threat of the adversarial inputs."""
        threat, reach = self.state.threat, self.state.reach
        assert threat is not None
        return threat if reach == 1 else replace(threat, eps=reach * threat.eps)

    @abstractmethod
    def loss(self, model: nn.Module, batch: Batch, labels: Labels, draws: Draws) -> Loss:
        """Search for adversarial inputs; return the loss on them as a function of the weights.

        All randomness is drawn before the function is called: it may be called twice.

        Arguments:
            model: The model, in training mode.
            batch: The batch, of which ``x`` is augmented.
            labels: The labels, possibly smoothed or mixed.
            draws: The randomness.
        """

    @abstractmethod
    def terms(self) -> list[str]:
        """Return the loss as a formula with its numbers."""

    @property
    def kind(self) -> Literal["clean", "adversarial", "both"]:
        """Return the kind of inputs in the loss."""
        return "adversarial"

    @property
    def passes(self) -> int:
        """Return the forward and backward passes of the loss: one for each kind of inputs."""
        return 2 if self.kind == "both" else 1

    def ascended(self, model: nn.Module, batch: Batch, labels: Labels) -> Ascended:
        """Return the loss that the attack maximises: see :meth:`PGD.search`."""
        del model, batch
        if labels.other is None:
            return lambda logits, index: self.attack.losses(logits, labels.y[index])
        sharp = labels.sharp()
        return lambda logits, index: sharp.take(index).cross_entropy(logits)

    @property
    def undivided(self) -> str:
        """Return why a batch cannot be divided between processes; empty: it can."""
        if self.cutmix:
            return "cutmix mixes the images of a batch"
        if self.awp:
            return "awp perturbs the weights by the gradient of a whole batch"
        if self.attack.restarts > 1:
            return "attack.restarts draws for the images of a batch that are not yet fooled"
        return super().undivided

    @property
    def several(self) -> bool:
        """Whether the loss is taken at perturbed weights."""
        return self.awp > 0

    def losses(self, model: nn.Module, batch: Batch, draws: Draws) -> Iterator[Tensor]:
        """Yield the loss, with ``awp`` on perturbed weights."""
        x, labels = self.changed(batch, draws)
        loss = self.loss(model, batch._replace(x=x), labels, draws)
        self.state.climbed = self.awp > 0 and batch.progress >= self.awp_from
        if self.state.climbed:
            with climbed(model, loss, self.awp):
                yield loss()
        else:
            yield loss()

    def changed(self, batch: Batch, draws: Draws) -> tuple[Tensor, Labels]:
        """Return the inputs and labels of a batch with smoothing, CutMix and erasing applied."""
        x, labels = batch.x, Labels(batch.y, smoothing=self.label_smoothing, weight=batch.weight)
        if self.cutmix:
            x, labels = cut(x, labels, self.cutmix, draws)
        if self.erasing:
            x = erase(x, self.erasing, draws)
        return x, labels

    def attacked(self, model: nn.Module, batch: Batch, draws: Draws) -> Tensor:
        """Return the result of the inner attack for every example."""
        return self.search(model, batch, Labels(batch.y), draws)

    def inputs(self, model: nn.Module, batch: Batch, draws: Draws) -> Tensor:
        """Return adversarial inputs; every other example is clean where both are trained on."""
        if self.kind == "clean":
            return batch.x
        x_adv = self.attacked(model, batch, draws)
        if self.kind == "adversarial":
            return x_adv
        odd = (torch.arange(len(x_adv), device=x_adv.device) % 2 == 1).view(-1, 1, 1, 1)
        return torch.where(odd, x_adv, batch.x)

    def search(self, model: nn.Module, batch: Batch, labels: Labels, draws: Draws) -> Tensor:
        """Return adversarial inputs for a batch, and keep them as ``state.adversarial``."""
        form = fast(model, execution=self.state.execution)
        exactly = torch.autocast(batch.x.device.type, enabled=False)  # the form has its own
        with self.state.stopwatch.inner("attack"), exactly, guest(form):
            x_adv = self.searched(form, batch, labels, draws)
        self.state.adversarial = x_adv
        return x_adv

    def searched(self, form: nn.Module, batch: Batch, labels: Labels, draws: Draws) -> Tensor:
        """Return the results of the attack on the search form of a model."""
        losses = self.ascended(form, batch, labels)
        return self.stronger.search(form, batch.x, labels.y, self.threat, draws, losses)

    @property
    def stronger(self) -> PGD:
        """Return the attack, with twice the steps for each time it was made stronger."""
        if self.level == 0:
            return self.attack
        return replace(self.attack, steps=self.attack.steps << self.level)

    @property
    def searching(self) -> int:
        """Return the gradient evaluations of the search before an update, per image, at most."""
        return 0 if self.kind == "clean" else self.stronger.steps * self.stronger.restarts

    @property
    def cost(self) -> int:
        """Return the steps of the attack and the passes of the loss, per image, at most."""
        return self.searching + self.passes * (2 if self.awp else 1)

    @property
    def varies(self) -> bool:
        """Return whether an update may take fewer passes than its cost."""
        return self.awp_from > 0

    def evaluations(self, n: int) -> int:
        """Return the gradient evaluations of the last update, which had ``n`` examples."""
        return self.searching * n + self.passes * (2 if self.state.climbed else 1) * n

    def weak(self, progress: float) -> bool:
        """Return whether the attack takes a single step."""
        del progress
        return self.searching > 0 and self.stronger.steps == 1

    def strengthen(self) -> str:
        """Double the steps."""
        self.state.level += 1
        return f"the inner attack takes {self.stronger.steps} steps from here on"

    def formula(self) -> list[str]:
        """Return the loss, the attack and the options, with the settings resolved."""
        search = [] if self.kind == "clean" else self.search_terms()
        return [*self.terms(), *search, *self._options()]

    def search_terms(self) -> list[str]:
        """Return a description of the attack, with its numbers."""
        attack = self.stronger
        loss = self.ascends if attack.loss == "ce" else "the margin of f(x')"
        length = fraction(attack.step_length(self.threat))
        lines = [
            f"x' = {attack.steps} steps of {length} up {loss} from {STARTS[attack.start]},",
            f"     within {self.threat}; model in eval mode",
        ]
        if attack.confidence is not None:
            lines.append(f"     a loss beyond {attack.confidence:g} is not worth more")
        if attack.momentum is not None:
            lines.append(f"     momentum {attack.momentum:g}")
        if attack.restarts > 1:
            lines.append(f"     {attack.restarts} restarts")
        if attack.keep == "best":
            lines.append("     the best iterate counts: misclassified ones first, then by loss")
        return lines

    def _options(self) -> list[str]:
        lines = smoothing_line(self.label_smoothing)
        if self.awp:
            since = f" from progress {self.awp_from:g} on" if self.awp_from else ""
            lines.append(
                f"weights: the gradient is taken at w + {self.awp:g} |w| g/|g|, layer by layer"
                f"{since} (adversarial weight perturbation)"
            )
        if self.cutmix:
            lines.append(f"images: CutMix with probability {self.cutmix:g}")
        if self.erasing:
            lines.append(f"images: random erasing with probability {self.erasing:g}")
        return lines


@dataclass(frozen=True, kw_only=True)
class TwoSided(Robust):
    """A learner of clean and adversarial images.

    By default both pass forward as one batch. In the authors' codes they pass separately: then
    BatchNorm normalises each kind by its own statistics in training, and both by the same running
    statistics afterwards, with which the model was never trained. In three pairs of trainings of
    TRADES on Fashion-MNIST, eps 0.1, one batch was 3.0, 0.9 and 0.2 points more robust
    (docs/log.md, entry 8).

    Arguments:
        joint: Whether both pass forward as one batch; False: first the clean inputs, then the
            adversarial ones, as in the authors' codes.
    """

    joint: bool = True

    @property
    def kind(self) -> Literal["clean", "adversarial", "both"]:
        """Return ``both``: clean and adversarial inputs are in the loss."""
        return "both"

    def logits(self, model: nn.Module, x: Tensor, x_adv: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logits of clean and of adversarial inputs, in at least float32."""
        if not self.joint:
            return exact(model(x)), exact(model(x_adv))
        both = exact(model(torch.cat((x, x_adv))))
        return both[: len(x)], both[len(x) :]

    def formula(self) -> list[str]:
        """Return the formula of :class:`Robust`, and how the inputs pass forward."""
        how = "as one batch" if self.joint else "one after the other"
        passing = [f"x and x' pass forward {how}"] if self.kind == "both" else []
        return [*super().formula(), *passing]


def exact(logits: Tensor) -> Tensor:
    """Return logits in at least float32: losses are differences of them."""
    return logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits


@contextmanager
def climbed(model: nn.Module, loss: Callable[[], Tensor], gamma: float) -> Iterator[None]:
    """Perturb the weights towards a larger loss while the block runs: see the module.

    Arguments:
        model: The model; convolutions and linear layers are moved, not biases and norms.
        loss: The loss at the present weights.
        gamma: How far, in lengths of the weights.
    """
    weights: list[Tensor] = [p for p in model.parameters() if p.ndim > 1 and p.requires_grad]
    before = [p.detach().clone() for p in weights]
    with restored(model):  # BatchNorm's statistics
        grads = torch.autograd.grad(loss(), weights, allow_unused=True)
    with torch.no_grad():
        for weight, grad in zip(weights, grads, strict=True):
            if grad is not None:
                scale = gamma * weight.norm() / grad.norm().clamp_min(1e-20)
                weight.add_(grad * torch.nan_to_num(scale))
    try:
        yield
    finally:
        with torch.no_grad():
            torch._foreach_copy_(weights, before)
