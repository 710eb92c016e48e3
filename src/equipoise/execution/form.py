"""The form of a model in which attacks search: fast, while verdicts come from the model itself.

A point counts as fooled only if the model itself, in float32, misclassifies it. The search may
therefore run in any arithmetic and any layout: :class:`Fast` holds the model and a
:class:`~equipoise.execution.copies.Twin`, a copy in that form. A copy that fails, or whose answers
differ from the model's, is dropped, and the search continues with the model.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from equipoise.errors import UserError, one_line
from equipoise.execution.compiled import Compiled, Step
from equipoise.execution.copies import Twin, copy_of, kept_copies, run
from equipoise.execution.outputs import as_module, ask, own
from equipoise.execution.passes import (
    Differentiated,
    Network,
    NoGradient,
    differentiated,
    evaluating,
    frozen,
    gradient,
    outside_inference,
)
from equipoise.execution.policy import Execution

_T = TypeVar("_T")
_SHORT = (torch.bfloat16, torch.float16)


class Fast(nn.Module):
    """A model in the form in which it is searched, and the exact model behind it.

    It counts the examples that pass forward and backward through it.

    Arguments:
        model: The exact model.
        search: What is run in its place.
        precision: The arithmetic of the search, ``"float32"`` or ``"bfloat16"``.
        passes: The forward passes of an exact answer: see :class:`equipoise.evaluation.Judge`.
        execution: The form that was asked for; None: ``search`` stays as it is.
    """

    def __init__(
        self,
        model: nn.Module,
        search: nn.Module,
        precision: str,
        passes: int = 1,
        execution: Execution | None = None,
    ) -> None:
        super().__init__()
        self.passes = passes
        self.search = search
        self.precision = precision
        self.execution = execution
        self.forwards = self.backwards = 0
        self.twin: Twin | None = None
        self.waiting: Execution | None = None  # the form to make from the first inputs
        self.unsure = False  # whether the model may have changed since it was last compared
        self.given_up = ""  # why the model itself is searched, in words
        self._ways = [False, True]  # values of ``backward`` that may work: see differentiated()
        self._exact = (model,)  # in a tuple: it is no submodule

    @property
    def exact(self) -> nn.Module:
        """Return the model itself."""
        return self._exact[0]

    @property
    def compiled(self) -> Compiled | None:
        """Return the compiled form, where it is compiled."""
        return None if self.twin is None else self.twin.compiled

    def forward(self, x: Tensor) -> Tensor:
        """Return logits for inputs of shape (B, ...), for the search alone.

        Raises:
            UserError: If the model's output has no logits.
        """
        self._update(x)
        logits = self._or_exact(lambda: self._answer(x))
        self.forwards += len(x)
        if x.requires_grad:
            x.register_hook(self._count)  # type: ignore[no-untyped-call]
        if logits.ndim != 2 or len(logits) != len(x):
            raise UserError(
                f"expected logits of shape ({len(x)}, K) from the model, got {tuple(logits.shape)}"
            )
        return logits

    def gradient(self, x: Tensor, objective: Callable[[Tensor], Tensor]) -> Differentiated:
        """Return logits, losses and their gradients: see :func:`input_gradient`."""
        return self._or_exact(lambda: self._gradient(x, objective))

    def take(self, step: Step, x: Tensor, *rest: Any) -> tuple[Tensor, ...]:
        """Return the results of a step of a search, compiled as a whole where the form is.

        Arguments:
            step: A function of a module, points and ``rest``, which runs one forward and one
                backward pass of the module at the points.
            x: The points, with shape (B, ...).
            rest: Further arguments of the step.

        Raises:
            UserError: If the step is to be compiled and cannot be.
        """
        self._update(x)
        return self._or_exact(lambda: self._taken(step, x, *rest))

    def decide(self, x: Tensor) -> Tensor:
        """Return the exact logits of inputs of shape (B, ...), without a gradient."""
        self.forwards += len(x) * self.passes
        with torch.no_grad(), torch.autocast(x.device.type, enabled=False), evaluating(self.exact):
            exact = partial(ask, self.exact)
            logits = exact(x) if self.twin is None else self.twin.batched(exact, x)
            if self.passes > 1:
                more = (ask(self.exact, x).softmax(1) for _ in range(self.passes - 1))
                logits = sum(more, logits.softmax(1)).log()
        return logits

    def confirmed(
        self,
        x_adv: Tensor,
        wrong: Tensor,
        y: Tensor,
        decide: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor:
        """Return which of the points that a search takes for misclassified are so, (B,).

        The answer of the exact model counts: an example must not leave the search because of a
        point that will not be counted as fooled.

        Arguments:
            x_adv: The points, with shape (B, ...).
            wrong: Which of them the search form misclassifies, with shape (B,).
            y: The labels, with shape (B,).
            decide: From points to the exact logits; None: :meth:`decide`.
        """
        if self.search is self.exact:
            return wrong
        if not len(rows := wrong.nonzero()[:, 0]):
            return wrong
        sure = wrong.clone()
        sure[rows] = (decide or self.decide)(x_adv[rows]).argmax(1) != y[rows]
        return sure

    def spent(self) -> tuple[int, int]:
        """Return the examples that passed forward and backward since the last call."""
        spent = self.forwards, self.backwards
        self.forwards = self.backwards = 0
        return spent

    def follow(self, twin: Twin | str) -> None:
        """Search a copy of the model, or the model itself for the given reason."""
        if isinstance(twin, Twin):
            self.twin, self.search, self.precision = twin, twin.search, twin.precision
        else:
            self.twin, self.search, self.precision = None, self.exact, "float32"
            self.given_up = twin

    def misled(self, x: Tensor, y: Tensor, lead: Tensor) -> bool:
        """Return whether the form's answers differ from the model's where a search has ended.

        If so, the model itself is searched from then on.

        Arguments:
            x: The points, with shape (B, ...).
            y: Their labels, with shape (B,).
            lead: By how much the label leads for the model, finite, with shape (B,).
        """
        if self.twin is None or own(self.exact) or not len(x):
            return False
        self.forwards += len(x)
        why = "its answers differ from the model's at points that the search reached"
        try:
            misled = self.twin.misleads(x, y, lead)
        except Exception as error:
            misled, why = True, one_line(error, 200)
        if misled:
            self._give_up(why)
        return misled

    def _answer(self, x: Tensor) -> Tensor:
        if self.compiled is not None:
            return self.compiled.answer(x)
        if self.twin is not None:
            return self.twin.answer(self.search, x)
        with evaluating(self.search):
            return run(self.search, x, self.precision)

    def _gradient(self, x: Tensor, objective: Callable[[Tensor], Tensor]) -> Differentiated:
        if self._ways == [False]:
            return differentiated(self, x, objective, self._ways)
        with frozen(self.search, self.exact):
            return differentiated(self, x, objective, self._ways)

    def _taken(self, step: Step, x: Tensor, *rest: Any) -> tuple[Tensor, ...]:
        if self.compiled is None:
            return step(self, x, *rest)
        self.forwards += len(x)
        self.backwards += len(x)
        return self.compiled.take(step, x, *rest)

    def _count(self, grad: Tensor | None) -> None:
        if grad is not None:  # an operation without a backward pass gives none
            self.backwards += len(grad)

    def _or_exact(self, run: Callable[[], _T]) -> _T:
        """Return the result of a function; where the form fails in it, that with the model."""
        try:
            return run()
        except Exception as error:
            refused = isinstance(error, UserError) and not isinstance(error, NoGradient)
            short = isinstance(error, MemoryError | torch.OutOfMemoryError)
            if self.search is self.exact or refused or short:
                raise
            self._give_up(one_line(error, 200))
        return run()

    def _give_up(self, why: str) -> None:
        """Search the model itself from now on."""
        self._ways = [False, True]
        self.follow(why)
        if self.execution is not None:
            kept_copies(self.exact)[self.execution] = why

    def _update(self, x: Tensor) -> None:
        """Make the copy if there is none yet, or again if its answers differ from the model's."""
        if self.waiting is not None:
            execution, self.waiting = self.waiting, None
            self.follow(copy_of(self.exact, x, execution))
        elif self.unsure and self.twin and self.execution and self.twin.differs(self.exact, x):
            kept_copies(self.exact).pop(self.execution, None)
            self.follow(copy_of(self.exact, x, self.execution))
        self.unsure = False


def as_is(model: Any) -> Fast:
    """Return a model that is searched as it is, or the search form that it is already."""
    if isinstance(model, Fast):
        return model
    model = as_module(model)
    return Fast(model, model, "float32")


def fast(
    model: nn.Module,
    x: Tensor | None = None,
    execution: Execution | None = None,
    *,
    passes: int = 1,
) -> Fast:
    """Return the search form of a model; the model itself is not changed.

    The copy is made once for a model, from its first inputs. Later calls return a form with the
    same copy and the model's current weights, which costs a pass over the weights: call it once
    for every attack in a training. Changes of anything else (a switch, a mask) are noticed, too,
    by a few logits at the first batch of every attack: then the copy is made again.

    A model that cannot be copied, or whose copy fails or gives other answers, is searched as it
    is, contiguous and in float32; ``given_up`` then has the reason.

    Arguments:
        model: From inputs of shape (B, ...) to logits.
        x: A few inputs on the model's device, to see how it runs; None: the first that come.
        execution: The arithmetic, the layout and the compilation; None: the fastest on the
            device, not compiled.
        passes: The forward passes of an exact answer.

    Example:
        >>> x_adv = eq.attacks.PGD(steps=10)(eq.fast(model), x, y, threat)
    """
    if isinstance(model, Fast):
        return model
    model = as_module(model)
    execution = execution or Execution()
    form, kept = Fast(model, model, "float32", passes, execution), kept_copies(model)
    twin = None if x is not None else kept.get(execution)
    if isinstance(twin, Twin) and twin.follows(model):
        twin.refresh()
    elif not isinstance(twin, str):
        kept.pop(execution, None)
        if x is None:
            form.waiting = execution
            return form
        twin = copy_of(model, x, execution)
    form.follow(twin)
    return form


@contextmanager
def guest(model: nn.Module) -> Iterator[Fast]:
    """Use a model in eval mode with frozen parameters, and leave it as it was.

    The form that is yielded returns logits whatever the model returns, and keeps its input.
    """
    form = as_is(model)
    form.unsure = True
    if form.twin is not None:
        form.twin.last = 0  # so that an attack gives the same bits whatever ran before
    modes = {m: m.training for m in (*form.exact.modules(), *form.search.modules())}
    device = next((p.device.type for p in form.exact.parameters()), "cpu")
    exact = torch.autocast(device, enabled=False)  # the caller's is not for the search's own sums
    with outside_inference(), exact, frozen(form.exact, form.search):
        try:
            form.exact.eval()
            form.search.eval()
            yield form
        finally:
            if modes[form.exact]:
                form.exact.train()  # undoes what its own eval() has done, like merging weights
            for module, mode in modes.items():
                module.training = mode


def input_gradient(
    model: Network, x: Tensor, objective: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """Run one forward and one backward pass with respect to the input alone.

    The losses are summed, so that no example's gradient depends on the size of the batch. Where
    a gradient is not finite it counts as zero. Every model that has a gradient gives it: the
    input is copied, ``torch.inference_mode`` is left, and where ``torch.autograd.grad`` is
    refused ``backward`` is called, which leaves nothing on parameters.

    Arguments:
        model: The model, frozen; inside a compiled step, the network that is compiled.
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

    def alone(at: int) -> tuple[Tensor, Tensor]:
        _, losses, grad = input_gradient(model, x, lambda logits: objectives(logits)[:, at])
        return losses, grad

    done, points = 0, x.detach().requires_grad_(True)
    try:
        with torch.enable_grad():
            logits = model(points)
            losses = objectives(logits.float() if logits.dtype in _SHORT else logits)
    except Exception:
        alone(0)  # raises NoGradient where that is the reason
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
            yield alone(at)


def misclassified(model: nn.Module, x_adv: Tensor, logits: Tensor, y: Tensor) -> Tensor:
    """Return which points are misclassified, with shape (B,): see :meth:`Fast.confirmed`.

    Arguments:
        model: The model that is searched.
        x_adv: The points, with shape (B, ...).
        logits: What ``model`` returned for them, with shape (B, K).
        y: The labels, with shape (B,).
    """
    wrong = logits.argmax(1) != y
    return model.confirmed(x_adv, wrong, y) if isinstance(model, Fast) else wrong
