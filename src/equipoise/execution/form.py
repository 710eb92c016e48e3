"""The form of a model in which attacks search: quick, while the judge stays exact.

A point counts as fooled only where the model itself, in float32, says so. The search may
therefore run in any arithmetic and any layout: :class:`Fast` holds a model in that form, a
:class:`~equipoise.execution.folded_copy.Twin` next to the model itself. A form that fails, or
answers otherwise than the model, is given up, and the search goes on with the model.
"""

import copy
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from equipoise.errors import UserError, one_line
from equipoise.execution.agreement import apart, astray
from equipoise.execution.compiled import Compiled, Step
from equipoise.execution.folded_copy import Twin, convolves, few, run
from equipoise.execution.outputs import Function, as_module, ask, own
from equipoise.execution.passes import (
    Differentiated,
    NoGradient,
    differentiated,
    evaluating,
    frozen,
    outside_inference,
)
from equipoise.execution.policy import Execution, Layout

_T = TypeVar("_T")


class Fast(nn.Module):
    """A model in the form in which it is searched, and the exact model behind it.

    It counts the examples that pass forward and backward through it.

    Arguments:
        model: The exact model.
        search: What is run in its place.
        precision: The arithmetic of the search, ``"float32"`` or ``"bfloat16"``.
        passes: The forward passes of an exact answer: see :class:`equipoise.evaluation.Judge`.
        execution: The form that was asked for; None: ``search`` is as it is to be.
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
        self.waiting: Execution | None = None  # the form to take when inputs come
        self.unsure = False  # whether the model may have changed since it was last compared
        self.given_up = ""  # why the model is searched as it is, in words
        self._ways = [False, True]  # of differentiating it, that may work
        self._exact = (model,)  # in a tuple: it is no part of this module

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
            UserError: If they are no logits.
        """
        self._look(x)
        logits = self._kept_up(lambda: self._answer(x))
        self.forwards += len(x)
        if x.requires_grad:
            x.register_hook(self._count)  # type: ignore[no-untyped-call]
        if logits.ndim != 2 or len(logits) != len(x):
            raise UserError(
                f"expected logits of shape ({len(x)}, K) from the model, got {tuple(logits.shape)}"
            )
        return logits

    def gradient(self, x: Tensor, objective: Callable[[Tensor], Tensor]) -> Differentiated:
        """Return logits, losses and their gradients: see :func:`equipoise.execution.gradient`.

        Arguments:
            x: The inputs, with shape (B, ...).
            objective: From logits, with shape (B, K), to losses, with shape (B,).

        Raises:
            NoGradient: If the model answers and has no gradient.
        """
        return self._kept_up(lambda: self._gradient(x, objective))

    def take(self, step: Step, x: Tensor, *rest: Any) -> tuple[Tensor, ...]:
        """Return what a step of a search returns, compiled as a whole where the form is.

        Arguments:
            step: A function of a module, points and ``rest``, which runs one forward and one
                backward pass of the module at the points.
            x: The points, with shape (B, ...).
            rest: What else the step is given.

        Raises:
            UserError: If the step is to be compiled and cannot be.
        """
        self._look(x)
        return self._kept_up(lambda: self._taken(step, x, *rest))

    def decide(self, x: Tensor) -> Tensor:
        """Return the exact logits of inputs of shape (B, ...), without a gradient."""
        self.forwards += len(x) * self.passes
        with torch.no_grad(), torch.autocast(x.device.type, enabled=False), evaluating(self.exact):
            logits = ask(self.exact, x)
            if self.passes > 1:
                more = (ask(self.exact, x).softmax(1) for _ in range(self.passes - 1))
                logits = sum(more, logits.softmax(1)).log()
        return logits

    def spent(self) -> tuple[int, int]:
        """Return the examples that went forward and backward since it was last asked."""
        spent = self.forwards, self.backwards
        self.forwards = self.backwards = 0
        return spent

    def follow(self, twin: Twin | str) -> None:
        """Search a copy of the model, or the model itself and say why."""
        if isinstance(twin, Twin):
            self.twin, self.search, self.precision = twin, twin.search, twin.precision
        else:
            self.twin, self.search, self.precision = None, self.exact, "float32"
            self.given_up = twin

    def misled(self, x: Tensor, y: Tensor, lead: Tensor) -> bool:
        """Tell whether a form answers otherwise than the model where a search has ended.

        The model is then searched as it is from here on.

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
            found = astray(self.twin, self.twin.precision, x, y, lead)
        except Exception as error:
            found, why = True, one_line(error, 200)
        if found:
            self._give_up(why)
        return found

    def _answer(self, x: Tensor) -> Tensor:
        if self.compiled is not None:
            return self.compiled.answer(x)
        if self.twin is not None:
            return run(self.search, x, self.precision, self.twin.memory_format)
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
        if grad is not None:  # an operation without a backward pass hands nothing on
            self.backwards += len(grad)

    def _kept_up(self, run: Callable[[], _T]) -> _T:
        """Return what a function returns; where the form fails in it, with the model instead."""
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
        """Search the model as it is from here on."""
        self._ways = [False, True]
        self.follow(why)
        if self.execution is not None:
            _kept(self.exact)[self.execution] = why

    def _look(self, x: Tensor) -> None:
        """Take the form that waits for inputs, or see whether it still answers as the model."""
        if self.waiting is not None:
            execution, self.waiting = self.waiting, None
            self.follow(_twin(self.exact, x, execution))
        elif self.unsure and self.twin is not None and not own(self.exact):
            self._compare(self.twin, x)
        self.unsure = False

    def _compare(self, twin: Twin, x: Tensor) -> None:
        """Make the form anew where it answers otherwise than the model does now."""
        if self.execution is not None and _differ(twin, self.exact, x):
            _kept(self.exact).pop(self.execution, None)
            self.follow(_twin(self.exact, x, self.execution))


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

    The form is made once for a model, when it sees its first inputs. Later calls return the same
    one with the model's present weights, which costs a pass over the weights: call it once for
    every attack in a training. What is no parameter or buffer (a switch, a mask) is followed, too:
    at the first batch of every attack a few logits of the form are compared with the model's, and
    where they differ the form is made anew.

    A model that cannot be copied, or whose copy fails or answers otherwise, is searched as it is,
    contiguous and in float32; ``given_up`` then says why.

    Arguments:
        model: From inputs of shape (B, ...) to logits.
        x: A few inputs on the model's device, to see how it runs; None: the first that come.
        execution: The arithmetic, the layout and the compilation; None: what the device is
            quick at.
        passes: The forward passes of an exact answer.

    Example:
        >>> x_adv = eq.attacks.PGD(steps=10)(eq.fast(model), x, y, threat)
    """
    if isinstance(model, Fast):
        return model
    model = as_module(model)
    execution = execution or Execution()
    form = Fast(model, model, "float32", passes, execution)
    kept = _kept(model)
    if x is not None:
        kept.pop(execution, None)
        form.follow(_twin(model, x, execution))
        return form
    twin = kept.get(execution)
    if twin is None or (isinstance(twin, Twin) and not twin.follows(model)):
        kept.pop(execution, None)
        form.waiting = execution
        return form
    if isinstance(twin, Twin):
        twin.refresh()
    form.follow(twin)
    return form


_TWINS: WeakKeyDictionary[nn.Module, dict[Execution, Twin | str]] = WeakKeyDictionary()


def _kept(model: nn.Module) -> dict[Execution, Twin | str]:
    """Return the forms of a model that were made before, or why it has none."""
    try:
        return _TWINS.setdefault(model, {})
    except TypeError:  # a module that cannot be a key
        return {}


def _twin(model: nn.Module, x: Tensor, execution: Execution) -> Twin | str:
    """Return a copy of a model in a form, and keep it; or why there is none that works.

    Nothing is said of a model that no form would make quicker.
    """
    if x.dtype != torch.float32 or isinstance(model, Function):
        return ""
    with outside_inference(), frozen(model), evaluating(model):
        x = few(x)
        found: Twin | str = ""
        for layout in _layouts(model, x, execution):
            found = _tried(model, x, replace(execution, layout=layout).resolved(x.device))
            if isinstance(found, Twin):
                break
    _kept(model)[execution] = found
    return found


def _layouts(model: nn.Module, x: Tensor, execution: Execution) -> list[Layout]:
    """Return the layouts in which a form of a model is to be tried, in order."""
    if execution.layout != "auto":
        return [execution.layout]
    if own(model):
        return ["channels_last"]
    with suppress(Exception), torch.no_grad():
        if x.ndim == 4 and convolves(model, x):
            return ["channels_last", "contiguous"]
    return ["contiguous"]


def _tried(model: nn.Module, x: Tensor, execution: Execution) -> Twin | str:
    """Return a form that works on some inputs, or why it does not."""
    try:
        twin = Twin(model, x, execution)
        if not twin.gains:
            return ""
        if not own(model):
            exact = copy.deepcopy(model) if twin.freed else model
            return apart(twin, twin.precision, exact, x, gradients=True) or twin
        with torch.no_grad():
            return twin if bool(torch.isfinite(twin(x)).all()) else "its answers are not finite"
    except NoGradient:  # every search that follows one says so
        return ""
    except Exception as error:  # whatever the model raises, or an operation does not support
        return one_line(error, 200)


def _differ(twin: Twin, model: nn.Module, x: Tensor) -> bool:
    """Tell whether a form answers otherwise than its model does now, or fails."""
    try:
        with evaluating(model):
            return bool(apart(twin, twin.precision, model, few(x), gradients=False))
    except Exception:
        return True
