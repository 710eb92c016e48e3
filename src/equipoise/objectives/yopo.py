r"""YOPO-m-n: you only propagate once.

The network is a trunk after a stem, its first convolution. From a random start, m times:

1. a full pass forward and backward at :math:`x + \eta` adds the gradient of
   :math:`\mathrm{CE}(f(x + \eta), y)` to that of the weights, and leaves the co-state
   :math:`p = -\partial \mathrm{CE} / \partial h` at the output h of the stem;
2. n steps :math:`\eta \leftarrow \Pi(\eta - \sigma \, \mathrm{ascent}(\nabla_\eta \langle
   h(x + \eta), p \rangle))` differentiate the stem alone;
3. the gradient of :math:`-\langle h(x + \eta), p \rangle` at the last :math:`\eta` is added to
   that of the stem's weights.

Gradients are sums of m, so the learning rate is divided by m. With the whole network as the stem
and n = 1, step 2 is a step of PGD: PGD-AT that trains on every iterate.

As in the authors' code for CIFAR-10 the stem gets both gradients (their code for MNIST tries to
remove one); ``stem="loss"`` leaves out the third step. Deviations: one optimiser, not two;
the start is clipped to the range; the model stays in training mode, as theirs does, and the stem
has no BatchNorm in any model here. Passes through the stem alone are not counted as gradient
evaluations. In ResNet-18 the stem has 0.3 % of the multiplications; in a network of two layers it
is a large part of it, and then YOPO saves nothing: a counted evaluation of YOPO-5-3 on the small
CNN took three to four times as long as one of PGD-AT in bfloat16 (docs/results.md).

References:
    | You Only Propagate Once (Zhang et al., 2019), https://arxiv.org/abs/1905.00877
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from equipoise.attacks.pgd import PGD
from equipoise.draws import Draws
from equipoise.errors import Count, UserError
from equipoise.execution.form import guest
from equipoise.objectives.core import Batch, Loss
from equipoise.objectives.labels import Labels
from equipoise.objectives.robust import STARTS, Robust, exact, inner_attack
from equipoise.threat import fraction


@runtime_checkable
class Parted(Protocol):
    """A model that is a trunk after a stem."""

    def stem(self, x: Tensor) -> Tensor:
        """Return the output of the first layer."""
        ...

    def trunk(self, h: Tensor) -> Tensor:
        """Return the logits for an output of the stem."""
        ...


@dataclass(frozen=True, kw_only=True)
class YOPO(Robust):
    """YOPO-m-n: m full passes an update, each with n steps through the first layer.

    Arguments:
        replays: m, the full passes of an update; the learning rate is divided by it.
        stem: Whether the stem gets ``both`` gradients or only that of the ``loss``.
        attack: Its ``steps`` are n, the steps through the stem in each pass.
    """

    divisible: ClassVar[bool] = False  # one pass serves the search and the update of all weights
    objective: str = "yopo"
    replays: Count = 5
    stem: Literal["both", "loss"] = "both"
    attack: PGD = field(default_factory=lambda: inner_attack(steps=3, step_factor=0.75))

    def problems(self) -> list[str]:
        """Return the errors in the settings, a sentence each."""
        attack, problems = self.attack, super().problems()
        if self.awp:
            problems.append("YOPO trains on every iterate of its attack: awp does not fit it")
        plain = attack.loss == "ce" and attack.confidence is None and attack.momentum is None
        if not plain or attack.restarts > 1 or attack.keep == "best":
            problems.append(
                "YOPO trains on every iterate and follows the gradient of its own loss: "
                "attack.keep=best, attack.loss, attack.confidence, attack.restarts and "
                "attack.momentum have no meaning here"
            )
        return problems

    @property
    def step_size(self) -> float:
        """Return the learning rate divided by m: gradients are sums of m."""
        return self.lr / self.replays

    def losses(self, model: nn.Module, batch: Batch, draws: Draws) -> Iterator[Tensor]:
        """Yield the losses of the m passes, and the stem's own."""
        parted = _parted(model)
        x, labels = self.changed(batch, draws)
        x_adv = self.attack.start_at(x, self.threat, draws)
        for replay in range(self.passes):
            hidden = parted.stem(x_adv)
            hidden.retain_grad()
            loss = labels.mean(labels.cross_entropy(parted.trunk(hidden)))
            # With more passes each gradient has less weight, but the reported loss is the same.
            yield loss.detach() + (loss - loss.detach()) / self._surplus
            assert hidden.grad is not None
            costate = -hidden.grad.detach()
            if replay + 1 < self.passes or self.stem == "both":
                x_adv = self._descend(parted, x, x_adv, costate)
            if self.stem == "both":
                yield -(parted.stem(x_adv) * costate).sum()

    def _descend(self, model: Parted, x: Tensor, x_adv: Tensor, costate: Tensor) -> Tensor:
        """Take the n steps down the Hamiltonian, through the stem alone."""
        length = self.attack.step_length(self.threat)
        low = self.state.execution.resolved(x.device).precision == "bfloat16"
        with self.state.stopwatch.inner("attack"):
            for _ in range(self.attack.steps):
                x_adv = x_adv.detach().requires_grad_(True)
                with torch.autocast(x.device.type, torch.bfloat16, enabled=low):
                    hidden = model.stem(x_adv)
                (grad,) = torch.autograd.grad((exact(hidden) * costate).sum(), x_adv)
                with torch.no_grad():
                    step = length * self.threat.ascent(torch.nan_to_num(grad, 0.0, 0.0, 0.0))
                    x_adv = self.threat.project(x, x_adv - step)
        return x_adv.detach()

    @property
    def several(self) -> bool:
        """Whether an update has several losses: it always has."""
        return True

    def loss(self, model: nn.Module, batch: Batch, labels: Labels, draws: Draws) -> Loss:
        """Return the loss at the end of the passes; an update uses the losses of all passes."""
        x_adv = self.search(model, batch, labels, draws)
        return lambda: labels.mean(labels.cross_entropy(model(x_adv)))

    def search(self, model: nn.Module, batch: Batch, labels: Labels, draws: Draws) -> Tensor:
        """Return the result of the passes, for a model that is not changed."""
        with guest(model), torch.enable_grad():
            parted = _parted(model)
            x_adv = self.attack.start_at(batch.x, self.threat, draws)
            for _ in range(self.passes):
                hidden = parted.stem(x_adv).detach().requires_grad_(True)
                loss = labels.cross_entropy(exact(parted.trunk(hidden))).sum()
                (grad,) = torch.autograd.grad(loss, hidden)
                x_adv = self._descend(parted, batch.x, x_adv, -grad)
        return x_adv

    @property
    def _surplus(self) -> int:
        return 1 << self.level

    @property
    def passes(self) -> int:
        """Return the full passes of an update."""
        return self.replays * self._surplus

    @property
    def searching(self) -> int:
        """Return 0: the passes that search also train, so no other learner can use the results."""
        return 0

    def weak(self, progress: float) -> bool:
        """Return True: the gradient of the trunk is stale in all but the first inner step."""
        del progress
        return True

    def strengthen(self) -> str:
        """Double the full passes; their gradients count half."""
        self.state.level += 1
        return f"{self.passes} full passes from here on"

    def terms(self) -> list[str]:
        """Return the loss."""
        part = "" if self._surplus == 1 else f" / {self._surplus}"
        stem = " + the stem's -<h(x + d), p>" if self.stem == "both" else ""
        return [
            f"sum over {self.passes} passes of: mean over the batch of CE(f(x + d), y){part}{stem}"
        ]

    def search_terms(self) -> list[str]:
        """Return a description of the inner loop."""
        n, length = self.attack.steps, fraction(self.attack.step_length(self.threat))
        return [
            f"d = {n} steps of {length} a pass down <h(x + d), p>, p = -dCE/dh, through the stem",
            f"    h alone, x + d at first {STARTS[self.attack.start]}, within {self.threat}",
            f"the learning rate below is that of the recipe divided by {self.replays}",
        ]


def _parted(model: nn.Module) -> Parted:
    """Return a model that has a stem and a trunk, or raise a UserError."""
    if not isinstance(model, Parted):
        raise UserError(
            "YOPO needs a model with .stem and .trunk, as those of `equipoise list models` have: "
            "choose another method for this one"
        )
    return model
