"""Arithmetic, layout and compilation of a model in attacks and training."""

from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch

from equipoise.errors import UserError

Precision = Literal["auto", "float32", "bfloat16"]
Layout = Literal["auto", "channels_last", "contiguous"]

PRECISIONS: tuple[Precision, ...] = get_args(Precision)
LAYOUTS: tuple[Layout, ...] = get_args(Layout)

_CHOICES = {"precision": PRECISIONS, "update": PRECISIONS, "layout": LAYOUTS}


@dataclass(frozen=True, kw_only=True)
class Execution:
    """The arithmetic, the layout and the compilation of everything but verdicts.

    The model itself, in float32, decides which images are fooled.

    Arguments:
        precision: The arithmetic of an attack's search; ``"auto"`` is bfloat16 where the
            processor multiplies matrices in it, else float32.
        update: The arithmetic of the matrix products of a training step; weights, BatchNorm,
            losses and the optimiser are float32 either way. ``"auto"`` is that of the search.
        layout: The memory layout of images; ``"auto"`` is channels last for a model of this
            project. Any other model is trained contiguous, and searched with channels last only if
            its convolutions are faster so and its answers stay the same.
        compile: Whether the search is compiled by torch.compile, a whole step of PGD as one
            graph, which takes time at first, and again for a second size of a batch.
    """

    precision: Precision = "auto"
    update: Precision = "float32"
    layout: Layout = "auto"
    compile: bool = False

    def __post_init__(self) -> None:
        wrong = [
            f"{name} must be one of {', '.join(choices)}, got {getattr(self, name)!r}"
            for name, choices in _CHOICES.items()
            if getattr(self, name) not in choices
        ]
        if wrong:
            raise UserError("; ".join(wrong))

    def resolved(self, device: torch.device | str, *, own: bool = True) -> "Execution":
        """Return the same with every ``"auto"`` replaced by its value on a device.

        Arguments:
            device: The device.
            own: Whether the model is of this project.
        """
        precision = self.precision
        if precision == "auto":
            precision = "bfloat16" if has_bfloat16(torch.device(device)) else "float32"
        update = precision if self.update == "auto" else self.update
        layout = self.layout
        if layout == "auto":
            layout = "channels_last" if own else "contiguous"
        return replace(self, precision=precision, update=update, layout=layout)

    @property
    def memory_format(self) -> torch.memory_format:
        """Return torch's name of the layout."""
        return torch.contiguous_format if self.layout == "contiguous" else torch.channels_last

    def __str__(self) -> str:
        compiled = ", compiled" if self.compile else ""
        return (
            f"search in {self.precision}, updates in {self.update}, "
            f"{self.layout.replace('_', ' ')}{compiled}"
        )


def has_bfloat16(device: torch.device) -> bool:
    """Return whether a device multiplies matrices faster in bfloat16 than in float32."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    flags = torch.cpu.get_capabilities()
    return bool(flags.get("avx512_bf16", False) or flags.get("amx_bf16", False))
