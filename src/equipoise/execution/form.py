"""The form of a model in which attacks search: quick, while the judge stays exact.

A point counts as fooled only where the model itself, in float32, says so. The search may
therefore run in any arithmetic and any layout: :class:`Fast` holds a model in that form, a
:class:`~equipoise.execution.twin.Twin`, beside the model itself.
"""

__all__ = ["Fast", "fast"]

from contextlib import suppress
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from equipoise.execution.compiled import Compiled, Step
from equipoise.execution.modes import evaluating
from equipoise.execution.policy import Execution
from equipoise.execution.twin import Twin, run


class Fast(nn.Module):
    """A model in the form in which it is searched, and the exact model behind it.

    It counts the examples that pass forward and backward through it.

    Arguments:
        model: The exact model.
        search: What is run in its place.
        precision: The arithmetic of the search, ``"float32"`` or ``"bfloat16"``.
        passes: The forward passes of an exact answer: see :class:`equipoise.evaluation.Judge`.
    """

    def __init__(
        self, model: nn.Module, search: nn.Module, precision: str, passes: int = 1
    ) -> None:
        super().__init__()
        self.passes = passes
        self.search = search
        self.precision = precision
        self.forwards = self.backwards = 0
        self.compiled: Compiled | None = None
        self.waiting: Execution | None = None  # the form to take when inputs come
        self._exact = (model,)  # in a tuple: it is no part of this module

    @property
    def exact(self) -> nn.Module:
        """Return the model itself."""
        return self._exact[0]

    def forward(self, x: Tensor) -> Tensor:
        """Return logits for inputs of shape (B, ...), for the search alone."""
        if self.waiting is not None:
            self._prepare(x)
        self.forwards += len(x)
        if x.requires_grad:
            x.register_hook(self._count)  # type: ignore[no-untyped-call]
        if self.compiled is not None:
            return self.compiled.answer(x)
        return run(self.search, x, self.precision)

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
        if self.waiting is not None:
            self._prepare(x)
        if self.compiled is None:
            return step(self, x, *rest)
        self.forwards += len(x)
        self.backwards += len(x)
        return self.compiled.take(step, x, *rest)

    def decide(self, x: Tensor) -> Tensor:
        """Return the exact logits of inputs of shape (B, ...), without a gradient."""
        self.forwards += len(x) * self.passes
        with torch.no_grad(), torch.autocast(x.device.type, enabled=False), evaluating(self.exact):
            logits: Tensor = self.exact(x)
            if self.passes > 1:
                more = (self.exact(x).softmax(1) for _ in range(self.passes - 1))
                logits = sum(more, logits.softmax(1)).log()
        return logits

    def spent(self) -> tuple[int, int]:
        """Return the examples that went forward and backward since it was last asked."""
        spent = self.forwards, self.backwards
        self.forwards = self.backwards = 0
        return spent

    def _count(self, grad: Tensor) -> None:
        self.backwards += len(grad)

    def _prepare(self, x: Tensor) -> None:
        """Take the form that was waiting for inputs to be seen."""
        assert self.waiting is not None
        twin = _twin(self.exact, x, self.waiting)
        self.waiting = None
        if twin is not None:
            self.follow(twin)

    def follow(self, twin: Twin) -> None:
        """Search a copy of the model."""
        self.search, self.precision, self.compiled = twin.search, twin.precision, twin.compiled


def fast(
    model: nn.Module,
    x: Tensor | None = None,
    execution: Execution | None = None,
    *,
    passes: int = 1,
) -> Fast:
    """Return the search form of a model; the model itself is not changed.

    The form is made once for a model, when it sees its first inputs. Whoever asks again gets the
    same one with the model's present weights, which costs a pass over the weights: ask once for
    every attack in a training. What is not a tensor (a rate, a switch) is as it was at first;
    with ``x`` the form is made anew.

    A model that cannot be copied, or whose copy cannot run so, is searched as it is, in float32.

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
    execution = execution or Execution()
    form = Fast(model, model, "float32", passes)
    kept = _kept(model)
    if x is not None:
        kept.pop(execution, None)
        twin = _twin(model, x, execution)
    else:
        twin = kept.get(execution)
        if execution not in kept or (twin is not None and not twin.follows(model)):
            kept.pop(execution, None)
            form.waiting = execution
            return form
        if twin is not None:
            twin.refresh()
    if twin is not None:
        form.follow(twin)
    return form


_TWINS: WeakKeyDictionary[nn.Module, dict[Execution, Twin | None]] = WeakKeyDictionary()


def _kept(model: nn.Module) -> dict[Execution, Twin | None]:
    """Return the forms of a model that were made before; None of one that it cannot have."""
    try:
        return _TWINS.setdefault(model, {})
    except TypeError:  # a module that cannot be a key
        return {}


def _twin(model: nn.Module, x: Tensor, execution: Execution) -> Twin | None:
    """Return a copy of a model in a form, and keep it; None where there is none that works."""
    if x.dtype != torch.float32:
        return None
    twin = None
    with suppress(Exception):  # whatever a stranger's model does, or an operation lacks
        twin = Twin(model, x, execution.resolved(x.device))
        with torch.no_grad():
            works = bool(torch.isfinite(twin(x[:8])).all())
        twin = twin if works else None
    _kept(model)[execution] = twin
    return twin
