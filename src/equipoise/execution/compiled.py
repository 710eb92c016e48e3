"""A network that is searched, compiled: its answers, and whole steps of a search around them.

Compiled alone, a network is two graphs, one for each direction, and every operation of a step
around them (the loss, the sign, the projection) is a call of its own. Compiled as one, a step
keeps nothing that it does not need; on CUDA all of it is recorded once and then replayed.
"""

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from equipoise.errors import UserError

Step = Callable[..., tuple[Tensor, ...]]
"""From a network, the points that are searched and anything else to tensors."""

LIMIT = 64  # graphs of one step, over all networks, norms and settings in a process


class Compiled:
    """A network and the steps of searches of it, each compiled when it is first needed.

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
        """Return what a step returns, as one graph.

        Arguments:
            step: A function of a network, ``x`` and ``rest``. Where it looks at values, or calls
                what is not to be compiled, there are two graphs.
            x: The points, with shape (B, ...), which take part in no gradient.
            rest: What else the step is given.

        Raises:
            UserError: If the step cannot be compiled.
        """
        from torch._dynamo import config  # seconds to import, which only compiling is to pay

        with config.patch(trace_autograd_ops=True, recompile_limit=LIMIT):
            if x.device.type != "cuda":
                found: tuple[Tensor, ...] = self._called(step, None, self.network, x, *rest)
                return found
            torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
            found = self._called(step, "reduce-overhead", self.network, x, *rest)
            return tuple(tensor.clone() for tensor in found)  # the next replay overwrites them

    def _called(self, function: Callable[..., Any], mode: str | None, *given: Any) -> Any:
        """Call a function, compiled; at first say why that cannot be, if it cannot."""
        if function in self._functions:
            return self._functions[function](*given)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of the compiler's own parts
                compiled = torch.compile(function, mode=mode)
                found = compiled(*given)
        except (UserError, MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            why = " ".join(str(error).split("\n")[:2]).strip()  # the second says what is missing
            raise UserError(
                f"compile=on: torch.compile cannot run here ({why}); it needs a C++ compiler on "
                "a CPU and Triton on a GPU; use compile=off"
            ) from None
        self._functions[function] = compiled
        return found
