"""The learners' shares of the global weights: see :mod:`equipoise.training.merge`."""

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

State = dict[str, Tensor]


def averaged_names(model: nn.Module) -> list[str]:
    """Return the names in a model's state that are merged: parameters and BatchNorm statistics.

    Other buffers are constants, like the normalisation's, or counters: they are copied.
    """
    statistics = {
        f"{name}.{key}".lstrip(".")
        for name, module in model.named_modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm)
        for key, buffer in module.named_buffers(recurse=False)
        if buffer.is_floating_point()
    }
    weights = model.named_parameters(remove_duplicate=False)  # tied ones under all their names
    return [*(name for name, _ in weights), *sorted(statistics)]


class Share:
    """One learner's part of the global weights, and its running average if that is merged.

    Arguments:
        start: The learner's initial state.
        names: The entries of it that are merged.
        average: Whether the running average is merged rather than the weights.
    """

    def __init__(self, start: Mapping[str, Tensor], names: Sequence[str], average: bool) -> None:
        self.parts = {name: torch.zeros_like(start[name]) for name in names}
        self.average = {name: start[name].clone() for name in names} if average else {}

    @torch.no_grad()
    def carry(self, start: Mapping[str, Tensor]) -> None:
        """Start from the initial weights; exactly one share does."""
        for name, part in self.parts.items():
            part.copy_(start[name])

    @torch.no_grad()
    def add(
        self, state: Mapping[str, Tensor], memory: float, weight: float, kept: float | None
    ) -> None:
        """Take one step of the moving averages with the learner's current state.

        Arguments:
            state: That state.
            memory: The decay of the running average, if there is any.
            weight: The weight of the learner.
            kept: The decay of the part; None: it stays as it is.
        """
        parts, values = list(self.parts.values()), [state[name] for name in self.parts]
        if self.average:
            average = list(self.average.values())
            torch._foreach_lerp_(average, values, 1 - memory)
            values = average
        if kept is None:
            return
        torch._foreach_mul_(parts, kept)
        torch._foreach_add_(parts, values, alpha=(1 - kept) * weight)

    def state_dict(self) -> dict[str, State]:
        """Return what a resumed run needs."""
        return {"parts": dict(self.parts), "average": dict(self.average)}

    def load_state_dict(self, state: Mapping[str, State]) -> None:
        """Restore a saved share."""
        for name, part in self.parts.items():
            part.copy_(state["parts"][name])
        for name, value in self.average.items():
            value.copy_(state["average"][name])


def total(shares: Iterable[Share], others: Mapping[str, Tensor]) -> State:
    """Return the global weights: the sum of every learner's share.

    Arguments:
        shares: The shares of the learners.
        others: A state with all entries; those in no share are copied from it.
    """
    first, *rest = shares
    parts = {name: part.clone() for name, part in first.parts.items()}
    for share in rest:
        for name, part in share.parts.items():
            parts[name].add_(part)
    return {name: parts[name] if name in parts else v.clone() for name, v in others.items()}
