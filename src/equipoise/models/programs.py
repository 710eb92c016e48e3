"""Models as programs in a file: of ``torch.export`` or TorchScript, to be evaluated only.

torch reads both with pickle, which can run code: they are read only if the user trusts them.
"""

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from equipoise.errors import UserError, one_line
from equipoise.execution.outputs import ask

EXPORTED = ".pt2"
SUFFIXES = (EXPORTED, ".pt", ".pth", ".ts", ".jit", ".torchscript")


class Program(nn.Module):
    """A program that was traced, in eval mode, run on as many images as it was traced with.

    Arguments:
        graph: The program.
        batch: The number of images that it takes; None: any.
    """

    def __init__(self, graph: nn.Module, batch: int | None) -> None:
        super().__init__()
        self.graph, self.batch = graph, batch

    def forward(self, x: Tensor) -> Any:
        """Return what the program returns for images of shape (B, C, H, W)."""
        if self.batch is None:
            return self.graph(x)
        parts = []
        for part in torch.split(x, self.batch):
            lacking = self.batch - len(part)
            full = torch.cat([part, part[-1:].expand(lacking, *x.shape[1:])]) if lacking else part
            parts.append(ask(self.graph, full)[: len(part)])
        return torch.cat(parts)


def is_program(model: str) -> bool:
    """Return whether a text is the path of a file that may hold a program."""
    return Path(model).suffix.lower() in SUFFIXES and Path(model).expanduser().is_file()


def read_program(path: Path, *, trust: bool) -> nn.Module:
    """Return the model of a file.

    Raises:
        UserError: If it is not trusted, or holds no program.
    """
    if not trust:
        raise UserError(
            f"{path} is a program that torch reads with pickle, which can run any code: if you "
            "trust who made it, add --trust"
        )
    exported = path.suffix.lower() == EXPORTED
    try:
        if not exported:
            script: nn.Module = torch.jit.load(str(path), map_location="cpu").eval()  # type: ignore[no-untyped-call]
            return script
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch, on what it does itself
            program = torch.export.load(path)
            graph = program.module()
    except Exception as error:
        kind = "program of torch.export" if exported else "TorchScript; weights are for --weights"
        raise UserError(f"{path} holds no {kind}: {one_line(error, 150)}") from None
    warnings.filterwarnings("ignore", message=r".*LeafSpec")  # of torch, in every copy of it
    for module in graph.modules():
        module.training = False
    vars(graph).update(train=lambda mode=True: graph, eval=lambda: graph)  # torch's own raise
    return Program(graph, _batch(program)).eval()


def _batch(program: torch.export.ExportedProgram) -> int | None:
    """Return the number of images that a program was traced with; None: any number."""
    names = program.graph_signature.user_inputs
    values = {node.name: node.meta.get("val") for node in program.graph.nodes}
    shapes = [values[name].shape for name in names if isinstance(values.get(str(name)), Tensor)]
    return shapes[0][0] if shapes and isinstance(shapes[0][0], int) else None
