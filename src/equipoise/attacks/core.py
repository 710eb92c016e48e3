"""What an attack is, and how it leaves the model.

Attacks are guests: parameters, their gradients, the mode of every module, the statistics of
BatchNorm and the global random state are the same after an attack as before.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from equipoise.attacks.inputs import check_inputs
from equipoise.draws import Draws, KeyedDraws
from equipoise.errors import UserError, short
from equipoise.execution.compiled import Step
from equipoise.execution.form import Fast, as_is
from equipoise.execution.outputs import ask
from equipoise.execution.passes import Network, frozen, gradient, outside_inference
from equipoise.parsing import MOST
from equipoise.threat import NORMS, Norm, Threat

_SHORT = (torch.bfloat16, torch.float16)


class Attack(Protocol):
    """Searches, within a threat, for inputs that a model misclassifies.

    A method ``cost(norm)`` may give a rough number of the gradient evaluations an image: plans
    show it (:func:`cost`).
    """

    def __call__(
        self, model: nn.Module, x: Tensor, y: Tensor, threat: Threat, *, draws: Draws | None = None
    ) -> Tensor:
        """Return the strongest ``x_adv`` found for every example, fooled or not.

        Arguments:
            model: From inputs within the threat's range to logits, with shape (B, K).
            x: The clean inputs, with shape (B, ...).
            y: The labels, int64, with shape (B,).
            threat: The ball and the range that ``x_adv`` has to stay in.
            draws: The randomness; by default it is keyed by the examples with seed 0.

        Returns:
            Inputs with the shape and dtype of ``x``, within the threat.
        """
        ...


def cost(attack: Attack, norm: Norm) -> float:
    """Return a rough number of the gradient evaluations an image that an attack takes.

    An attack says it by a method ``cost(norm)``; one that does not counts as one.
    """
    own: Callable[[Norm], float] | None = getattr(attack, "cost", None)
    return 1.0 if own is None else own(norm)


def uncounted(attack: object, *names: str) -> list[str]:
    """Return what is wrong with settings that count something, a sentence each."""
    problems = []
    for name in names:
        value = getattr(attack, name)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            problems.append(f"{name} must be at least 1 and whole, got {short(value)}")
        elif value > MOST:
            problems.append(f"{name} must be at most {MOST}, got {short(value)}")
    return problems


def wrong_norms(norms: Sequence[str]) -> list[str]:
    """Return what is wrong with the norms for which an attack is to be defined."""
    if norms and not set(norms) - set(NORMS):
        return []
    return [f"norms must be some of {', '.join(NORMS)}, got {norms!r}"]


def refuse(problems: Sequence[str]) -> None:
    """Raise a UserError with all problems, where there are any."""
    if problems:
        raise UserError("; ".join(problems))


def check_threat(attack: Any, threat: Threat) -> None:
    """Raise a UserError for a threat whose norm is none of the attack's ``norms``."""
    if threat.norm not in attack.norms:
        raise UserError(f"{attack} is defined for {', '.join(attack.norms)}, not {threat.norm}")


def prepared(
    attack: Any, x: Any, y: Any, threat: Threat, draws: Draws | None = None
) -> tuple[Tensor, Tensor, Draws]:
    """Return inputs, labels and randomness for a call of an attack.

    Raises:
        UserError: If the attack is not defined for the threat, or cannot work with the inputs.
    """
    check_threat(attack, threat)
    x, y = check_inputs(x, y, threat, stacklevel=4)
    return x.detach(), y, KeyedDraws.of(x) if draws is None else draws


@contextmanager
def guest(model: nn.Module) -> Iterator[Fast]:
    """Use a model in eval mode with frozen parameters, and leave it as it was.

    What is yielded answers with logits whatever the model returns, and leaves its input alone.
    """
    form = as_is(model)
    form.unsure = True
    modules = dict.fromkeys([*form.exact.modules(), *form.search.modules()])
    modes = [(module, module.training) for module in modules]
    training = form.exact.training
    device = next((p.device.type for p in form.exact.parameters()), "cpu")
    exact = torch.autocast(device, enabled=False)  # the caller's is not for the search's own sums
    with outside_inference(), exact, frozen(form.exact, form.search):
        try:
            form.exact.eval()
            form.search.eval()
            yield form
        finally:
            if training:
                form.exact.train()  # takes back what its own eval() has done, like merged weights
            for module, mode in modes:
                module.training = mode


def stepping(model: nn.Module, step: Step) -> Step:
    """Return a step of a search as a function of all but the model, compiled where it is to be.

    Arguments:
        model: The model that is searched.
        step: See :meth:`equipoise.execution.Fast.take`.
    """
    return partial(as_is(model).take, step)


def input_gradient(
    model: Network, x: Tensor, objective: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """Run one forward and one backward pass with respect to the input alone.

    The losses are summed, so that no example's gradient depends on the size of the batch. Where
    a gradient is not finite it counts as zero. Every model that has a gradient gives it: the
    input is copied, ``torch.inference_mode`` is left, and where ``torch.autograd.grad`` is
    refused ``backward`` is called, which leaves nothing behind on parameters.

    Arguments:
        model: The model, frozen; inside a compiled step, what is compiled.
        x: The inputs, with shape (B, ...).
        objective: From logits, with shape (B, K), to losses, with shape (B,).

    Returns:
        The logits, the losses and the gradients of the losses, detached.

    Raises:
        NoGradient: If the model answers and has no gradient.
    """
    if isinstance(model, nn.Module):
        return as_is(model).gradient(x, objective)
    return gradient(model, x, objective)


def input_gradients(
    model: nn.Module, x: Tensor, objectives: Callable[[Tensor], Tensor]
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the losses and gradients of several objectives, after one forward pass for all.

    Arguments:
        model: The model, frozen.
        x: The inputs, with shape (B, ...).
        objectives: From logits, with shape (B, K), to losses, with shape (B, R).

    Raises:
        NoGradient: If the model answers and has no gradient.
    """
    done, points = 0, x.detach().requires_grad_(True)
    try:
        with torch.enable_grad():
            logits = model(points)
            losses = objectives(logits.float() if logits.dtype in _SHORT else logits)
    except Exception:
        input_gradient(model, x, partial(_column, objectives, 0))  # says what is missing
        raise
    columns = losses.unbind(1)
    try:
        for done, column in enumerate(columns):
            more = done < len(columns) - 1
            with torch.autocast(x.device.type, enabled=False):
                (grad,) = torch.autograd.grad(column.sum(), points, retain_graph=more)
            yield column.detach(), torch.nan_to_num(grad, nan=0.0, posinf=0.0, neginf=0.0)
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception:  # the form fails, or there are checkpoints, or there is no gradient
        for at in range(done, len(columns)):
            yield input_gradient(model, x, partial(_column, objectives, at))[1:]


def _column(objectives: Callable[[Tensor], Tensor], at: int, logits: Tensor) -> Tensor:
    return objectives(logits)[:, at]


def averaged(model: nn.Module, x: Tensor, passes: int) -> Tensor:
    """Return the logarithm of the class probabilities averaged over several passes, (B, K)."""
    total = sum(ask(model, x).double().softmax(1) for _ in range(passes))
    return (torch.as_tensor(total) / passes).log().to(x.dtype)


def misclassified(model: nn.Module, x_adv: Tensor, logits: Tensor, y: Tensor) -> Tensor:
    """Tell which points are misclassified, with shape (B,): see :func:`confirmed`.

    Arguments:
        model: The model that is searched.
        x_adv: The points, with shape (B, ...).
        logits: What ``model`` returned for them, with shape (B, K).
        y: The labels, with shape (B,).
    """
    return confirmed(model, x_adv, logits.argmax(1) != y, y)


def confirmed(model: nn.Module, x_adv: Tensor, wrong: Tensor, y: Tensor) -> Tensor:
    """Tell which of the points that a search takes for misclassified are so, with shape (B,).

    Where ``model`` is the search form of a model, these points are shown to the model itself,
    whose answer counts: a search that ends there must not end in vain.

    Arguments:
        model: The model that is searched.
        x_adv: The points, with shape (B, ...).
        wrong: Which of them ``model`` misclassifies, with shape (B,).
        y: The labels, with shape (B,).
    """
    if not isinstance(model, Fast) or model.search is model.exact:
        return wrong
    rows = wrong.nonzero()[:, 0]
    if not len(rows):
        return wrong
    sure = wrong.clone()
    sure[rows] = model.decide(x_adv[rows]).argmax(1) != y[rows]
    return sure
