"""The modes in which a model runs, and the gradient of a loss with respect to its inputs."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn

from equipoise.errors import UserError, one_line

Network = Callable[[Tensor], Tensor]
"""From inputs of shape (B, ...) to logits."""

Differentiated = tuple[Tensor, Tensor, Tensor]
"""Logits, losses and the gradients of the losses, detached."""


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put every module of a model in eval mode, and back in the mode it was in."""
    modes = [module for module in model.modules() if module.training]
    for module in modes:
        module.training = False
    try:
        yield
    finally:
        for module in modes:
            module.training = True


@contextmanager
def frozen(*models: nn.Module) -> Iterator[None]:
    """Make parameters of some models require no gradient, and restore those that did."""
    wanted = [
        parameter
        for model in models
        for parameter in model.parameters()
        if parameter.requires_grad and not parameter.is_inference()
    ]
    for parameter in wanted:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in wanted:
            parameter.requires_grad_(True)


@contextmanager
def restored(model: nn.Module) -> Iterator[None]:
    """Restore the buffers of a model, which layers in training mode change."""
    dense = [b for b in model.buffers() if b.layout == torch.strided and not b.is_inference()]
    before = [(buffer, buffer.clone()) for buffer in dense]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in before:
                if not torch.equal(buffer, value):
                    buffer.copy_(value)


def outside_inference() -> AbstractContextManager[object]:
    """Leave ``torch.inference_mode``, in which there are no gradients, for a while."""
    if torch.is_inference_mode_enabled():
        return torch.inference_mode(False)
    return nullcontext()


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed the global random state, from which random models draw, and restore it after."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


class NoGradient(UserError):
    """A model answers, but no gradient of its answers can be computed.

    Arguments:
        error: The error of the attempt.
    """

    remedy = "use an attack without gradients (square)"

    def __init__(self, error: Exception) -> None:
        why = one_line(error, 200)
        self.seen = f"no gradient of the model's output reaches its input ({why})"
        super().__init__(f"{self.seen}; {self.remedy}")


def padded(network: Network, x: Tensor) -> Tensor:
    """Return logits of inputs, (B, ...), from a batch whose size is rounded up.

    On a CPU the kernels are prepared anew for every size of a batch, which takes as long as
    several passes of a small network. There are eight sizes an octave; the last input is repeated.

    Arguments:
        network: From inputs to logits, each of its own input alone.
        x: The inputs, at least one.
    """
    n = len(x)
    more = -n % max(1, 2 ** (n.bit_length() - 4))
    if not more:
        return network(x)
    return network(torch.cat([x, x[-1:].detach().expand(more, *x.shape[1:])]))[:n]


def gradient(network: Network, x: Tensor, objective: Callable[[Tensor], Tensor]) -> Differentiated:
    """Run one forward and one backward pass with respect to the input alone.

    The losses are summed, so that no example's gradient depends on the size of the batch. Where
    a gradient is not finite it counts as zero.

    Arguments:
        network: From inputs to logits, frozen.
        x: The inputs, with shape (B, ...).
        objective: From logits, with shape (B, K), to losses, with shape (B,).
    """
    x, logits, losses = _answered(network, x, objective)
    return _detached(logits, losses, _grad(losses, x, backward=False))


def differentiated(
    network: Network,
    x: Tensor,
    objective: Callable[[Tensor], Tensor],
    ways: list[bool],
) -> Differentiated:
    """Return the same by the function of autograd that the network supports.

    Checkpoints with ``use_reentrant=True`` refuse ``torch.autograd.grad`` and allow ``backward``.

    Arguments:
        network: From inputs to logits, frozen.
        x: The inputs, with shape (B, ...).
        objective: From logits, with shape (B, K), to losses, with shape (B,).
        ways: Which values of ``backward`` to try, in order; only the one that works is left.

    Raises:
        NoGradient: If the network answers and has no gradient.
        Exception: The error of a network that does not answer either.
    """
    with outside_inference():
        x, first = x.clone() if x.is_inference() else x, None
        for backward in list(ways):
            try:
                point, logits, losses = _answered(network, x, objective)
            except (UserError, MemoryError, torch.OutOfMemoryError):
                raise
            except Exception as error:
                _blame(network, x, objective)
                raise NoGradient(error) from error
            try:
                results = _detached(logits, losses, _grad(losses, point, backward))
            except (MemoryError, torch.OutOfMemoryError):
                raise
            except Exception as error:
                first = first or error
            else:
                ways[:] = [backward]
                return results
    assert first is not None
    raise NoGradient(first) from first


def _answered(
    network: Network, x: Tensor, objective: Callable[[Tensor], Tensor]
) -> Differentiated:
    """Return the inputs, which require a gradient, and their logits and losses."""
    with torch.enable_grad():
        x = x.detach().requires_grad_(True)
        logits = network(x)
        if logits.dtype in (torch.bfloat16, torch.float16):
            logits = logits.float()  # losses are differences of logits: they need the digits
        return x, logits, objective(logits)


def _grad(losses: Tensor, x: Tensor, backward: bool) -> Tensor:
    """Return the gradient, computed outside any autocast."""
    with torch.enable_grad(), torch.autocast(x.device.type, enabled=False):
        if not backward:
            return torch.autograd.grad(losses.sum(), x)[0]
        losses.sum().backward()  # type: ignore[no-untyped-call]
        assert x.grad is not None
        return x.grad


def _detached(logits: Tensor, losses: Tensor, grad: Tensor) -> Differentiated:
    grad = torch.nan_to_num(grad, nan=0.0, posinf=0.0, neginf=0.0)
    return logits.detach(), losses.detach(), grad


def _blame(network: Network, x: Tensor, objective: Callable[[Tensor], Tensor]) -> None:
    """Return if a network fails whenever a gradient is required, and only then.

    Raises:
        Exception: The error of a network that also fails without one, or that failed by chance.
    """
    with torch.no_grad():
        objective(network(x))
    try:
        _answered(network, x, objective)
    except Exception:
        return
    raise  # it failed by chance: raise the error that is being handled
