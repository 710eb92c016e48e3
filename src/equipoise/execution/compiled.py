"""Compilation of a network that is searched, and of whole steps of a search.

A network compiled alone is two graphs, one for each direction, and the other operations of a step
(the loss, the sign, the projection) are separate calls. A step compiled as a whole stores less;
on CUDA it is recorded once and then replayed.
"""

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from equipoise.errors import UserError

Step = Callable[..., tuple[Tensor, ...]]
"""From a network, the current points and further arguments to tensors."""

LIMIT = 64  # graphs of one step, over all networks, norms and settings in a process


class Compiled:
    """A network and the steps of its searches, each compiled at its first call.

    Arguments:
        network: From inputs of shape (B, ...) to logits. Its weights may change in place.
    """

    def __init__(self, network: Callable[[Tensor], Tensor]) -> None:
        self.network = network
        self._functions: dict[Any, Callable[..., Any]] = {}

    def answer(self, x: Tensor) -> Tensor:
        """Return logits for inputs of shape (B, ...).

        Raises:
            UserError: If the network cannot be compiled.
        """
        logits: Tensor = self._called(self.network, None, x)
        return logits

    def take(self, step: Step, x: Tensor, *rest: Any) -> tuple[Tensor, ...]:
        """Return the results of a step, compiled as one graph.

        Arguments:
            step: A function of a network, ``x`` and ``rest``. A branch on values, or a call that
                cannot be compiled, splits the graph.
            x: The points, with shape (B, ...), which take part in no gradient.
            rest: Further arguments of the step.

        Raises:
            UserError: If the step cannot be compiled.
        """
        from torch._dynamo import config  # takes seconds to import

        with config.patch(trace_autograd_ops=True, recompile_limit=LIMIT):
            if x.device.type != "cuda":
                results: tuple[Tensor, ...] = self._called(step, None, self.network, x, *rest)
                return results
            torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
            results = self._called(step, "reduce-overhead", self.network, x, *rest)
            return tuple(tensor.clone() for tensor in results)  # the next replay overwrites them

    def _called(self, function: Callable[..., Any], mode: str | None, *arguments: Any) -> Any:
        """Call a function, compiled; raise a UserError if it cannot be compiled."""
        if function in self._functions:
            return self._functions[function](*arguments)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # from the compiler itself
                compiled = torch.compile(function, mode=mode)
                result = compiled(*arguments)
        except (UserError, MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            why = " ".join(str(error).split("\n")[:2]).strip()  # the second names what is missing
            raise UserError(
                f"compile=on: torch.compile cannot run here ({why}); it needs a C++ compiler on "
                "a CPU and Triton on a GPU; use compile=off"
            ) from None
        self._functions[function] = compiled
        return result
