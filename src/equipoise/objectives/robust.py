"""What the objectives have in common that train on adversarial inputs."""

__all__ = ["STARTS", "Robust", "exact"]

import math
from abc import abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn

from equipoise.attacks.core import check_threat, guest
from equipoise.attacks.pgd import NOISE, PGD, Ascended
from equipoise.draws import Draws
from equipoise.errors import UserError
from equipoise.execution import fast
from equipoise.objectives.core import Batch, Objective
from equipoise.objectives.friendly import Tau, friendly
from equipoise.objectives.labels import Labels
from equipoise.objectives.options import Options, climbed
from equipoise.threat import Threat, fraction

STARTS = {
    "uniform": "a uniform point of the ball",
    "zero": "x",
    "noise": f"x + {NOISE:g} N(0, 1)",
}


class Robust(Objective):
    r"""An objective with an inner attack.

    A subclass says what is lost on a batch once the adversarial inputs are found. The attack
    searches the model's quick form (:func:`equipoise.execution.fast`) in eval mode;
    ``attack.keep`` says which iterate is trained on, in all papers here the last; with ``tau``
    no other can be had.

    Arguments:
        threat: What the adversarial inputs may be.
        attack: How they are searched for.
        tau: The budget of friendly training, of which the search may spend so many steps on an
            example that is misclassified already; None: all steps are taken.
        omega: The noise that friendly training adds to each step.
        options: What is added to the objective.
    """

    monitor = "robust_loss"
    both = False  # whether clean inputs are trained on, too

    def __init__(
        self,
        *,
        threat: Threat,
        attack: PGD,
        tau: Tau | None = None,
        omega: float = 0.0,
        options: Options | None = None,
    ) -> None:
        super().__init__()
        self.threat: Threat = threat
        self.attack = attack
        self.tau = tau
        self.omega = omega
        self.options = options or Options()
        self._spent = 0
        self._climbed = False
        check_threat(attack, threat)
        self._check()

    def _check(self) -> None:
        """Raise a UserError for settings that do not go together."""
        attack = self.attack
        if self.tau is not None and (attack.restarts > 1 or attack.momentum is not None):
            raise UserError("a search with tau takes neither attack.restarts nor attack.momentum")
        if self.tau is not None and attack.keep == "best":
            raise UserError("a search with tau ends where it stops: set attack.keep=last")
        if not (math.isfinite(self.omega) and self.omega >= 0):
            raise UserError(f"omega must be a finite number >= 0, got {self.omega}")
        if self.omega and self.tau is None:
            raise UserError("omega is the noise of a search with tau; set tau, or omega=0")
        if self.options.cutmix and (attack.loss != "ce" or attack.confidence is not None):
            raise UserError(
                "with cutmix the attack climbs the cross-entropy of the mixed label: "
                "attack.loss=margin and attack.confidence do not fit it"
            )

    @abstractmethod
    def loss(
        self, model: nn.Module, batch: Batch, labels: Labels, draws: Draws
    ) -> Callable[[], Tensor]:
        """Search for adversarial inputs; return the loss on them as a function of the weights.

        All randomness is drawn before the function is called: it may be called twice.

        Arguments:
            model: The model, in training mode.
            batch: The batch, of which ``x`` is augmented.
            labels: What the classes are taken to be.
            draws: The randomness.
        """

    @property
    @abstractmethod
    def passes(self) -> int:
        """Return the forward and backward passes of the loss."""

    def forward(self, model: nn.Module, batch: Batch, draws: Draws) -> Iterator[Tensor]:
        """Yield the loss."""
        x, labels = self.options.applied(batch, draws)
        loss = self.loss(model, batch._replace(x=x), labels, draws)
        self._climbed = self.options.awp > 0 and batch.progress >= self.options.awp_from
        if self._climbed:
            with climbed(model, loss, self.options.awp):
                yield loss()
        else:
            yield loss()

    def attacked(self, model: nn.Module, batch: Batch, draws: Draws) -> Tensor:
        """Return what the inner attack finds for every example."""
        return self.search(model, batch, Labels(batch.y), draws)

    def inputs(self, model: nn.Module, batch: Batch, draws: Draws) -> Tensor:
        """Return adversarial inputs; every other example is clean where both are trained on."""
        x_adv = self.attacked(model, batch, draws)
        if not self.both:
            return x_adv
        odd = (torch.arange(len(x_adv), device=x_adv.device) % 2 == 1).view(-1, 1, 1, 1)
        return torch.where(odd, x_adv, batch.x)

    def search(self, model: nn.Module, batch: Batch, labels: Labels, draws: Draws) -> Tensor:
        """Return adversarial inputs for a batch, and keep them as ``found``."""
        form = fast(model, execution=self.execution)
        exactly = torch.autocast(batch.x.device.type, enabled=False)  # the form has its own
        with self.stopwatch.inner("attack"), exactly, guest(form):
            self.found = self._searched(form, batch, labels, draws)
        return self.found

    def _searched(self, form: nn.Module, batch: Batch, labels: Labels, draws: Draws) -> Tensor:
        x, y = batch.x, labels.y
        losses = self.ascended(form, x, labels)
        if self.tau is None:
            return self.stronger.search(form, x, y, self.threat, draws, losses)
        x_adv, self._spent = friendly(
            form,
            x,
            y,
            self.threat,
            draws,
            attack=self.attack,
            losses=losses,
            tau=self.tau(batch.progress) + self.level,
            omega=self.omega,
        )
        return x_adv

    def ascended(self, model: nn.Module, x: Tensor, labels: Labels) -> Ascended:
        """Return what the attack maximises: see :meth:`PGD.search`. By default its own loss."""
        del model, x
        if labels.other is None:
            return lambda logits, index: self.attack.losses(logits, labels.y[index])
        sharp = labels.sharp()
        return lambda logits, index: sharp.take(index).cross_entropy(logits)

    # What it costs, and how strong it is

    @property
    def stronger(self) -> PGD:
        """Return the attack, with twice the steps for each time it was made stronger."""
        if self.level == 0:
            return self.attack
        return replace(self.attack, steps=self.attack.steps << self.level)

    @property
    def searching(self) -> int:
        """Return the gradient evaluations of a search, an image, at most."""
        attack = self.attack if self.tau is not None else self.stronger
        return attack.steps * attack.restarts

    @property
    def shares(self) -> bool:
        """Tell whether adversarial inputs are found before an update: others may follow."""
        return self.searching > 0

    @property
    def updating(self) -> int:
        """Return the gradient evaluations of the loss, an image."""
        return self.passes * (2 if self.options.awp else 1)

    @property
    def cost(self) -> int:
        """Return the steps of the attack and the passes of the loss."""
        return self.searching + self.updating

    def evaluations(self, n: int) -> int:
        """Return the gradient evaluations of the last update, which had ``n`` examples."""
        search = self.searching * n if self.tau is None else self._spent
        return search + self.passes * (2 if self._climbed else 1) * n

    def weak(self, progress: float) -> bool:
        """Tell whether it takes a single step, or stops at the first success."""
        if self.tau is not None:
            return self.tau(progress) + self.level == 0
        return self.searching > 0 and self.stronger.steps == 1

    def strengthen(self) -> str:
        """Double the steps, or let friendly training go a step further."""
        self.level += 1
        if self.tau is not None:
            return f"tau is {self.level} larger from here on"
        return f"the inner attack takes {self.stronger.steps} steps from here on"

    # In words

    def formula(self) -> list[str]:
        """Return the loss, the attack and the options, with the settings resolved."""
        search = self.search_terms() if self.searching else []
        return [*self.terms(), *search, *self.options.formula()]

    @abstractmethod
    def terms(self) -> list[str]:
        """Return the loss as a formula with its numbers."""

    ascends = "CE(f(x'), y)"

    def search_terms(self) -> list[str]:
        """Return what the attack does, with its numbers."""
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
        return lines + self._friendly_terms()

    def _friendly_terms(self) -> list[str]:
        if self.tau is None:
            return []
        values, places = self.tau.values, self.tau.places
        stages = ", ".join(
            f"{v + self.level} from {p:.3g}" for v, p in zip(values, places, strict=True)
        )
        noise = f", noise {self.omega:g} a step" if self.omega else ""
        return [f"     ends tau steps after the first success; tau over progress: {stages}{noise}"]


def exact(logits: Tensor) -> Tensor:
    """Return logits in at least float32: losses are differences of them."""
    return logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits
