"""A training in several processes of torchrun as a job: what each of them does, writes and says.

The first process writes the run folder and shows progress; the others read the folder, so all
must see it, and write and say nothing.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor, nn

from equipoise.errors import UserError
from equipoise.execution.passes import evaluating
from equipoise.jobs.device import cuda_devices
from equipoise.settings.recipe import Recipe
from equipoise.store.provenance import command_line
from equipoise.store.runs import Run
from equipoise.terminal.progress import Console
from equipoise.training.method import Method
from equipoise.training.processes import restarted
from equipoise.training.ranks import Division, Ranks, divided


class Unwritten(Run):
    """A run folder that another process writes."""

    @contextmanager
    def lock(self, *arguments: object, **options: object) -> Iterator[tuple[int, ...]]:
        """Do nothing: the first process has the lock."""
        del arguments, options
        yield ()

    def write(
        self, name: str, content: str | bytes | Callable[[BinaryIO], object], keep: str = ""
    ) -> None:
        """Write nothing."""

    def append_line(self, name: str, content: object) -> None:
        """Write nothing."""

    def write_state(self, state: object) -> None:
        """Write nothing."""

    def write_model(self, name: str, state: object) -> None:
        """Write nothing."""


def folder(path: str | Path, ranks: Ranks) -> Run:
    """Return a run folder, which the first process alone writes."""
    return Run(path) if ranks.first else Unwritten(path)


def terminal(console: Console | None, ranks: Ranks) -> Console:
    """Return where a process shows progress and warnings: the others than the first nowhere."""
    console = console or Console(quiet=True)
    if not ranks.first:
        console.quiet = console.rich.quiet = True
    return console


def device_of(name: str, ranks: Ranks) -> str:
    """Return the name of the device of a process: each has a GPU of its own.

    Raises:
        UserError: If there are fewer GPUs than processes on this machine.
    """
    count = len(cuda_devices())
    if ranks.size == 1 or name == "cpu" or (name == "auto" and not count):
        return name
    if ranks.local >= count:
        raise UserError(
            f"there is no GPU {ranks.local}: torch has {count} CUDA devices; start as many "
            "processes with --nproc-per-node, or use --device cpu"
        )
    torch.cuda.set_device(ranks.local)
    return f"cuda:{ranks.local}"


def shared_out(
    method: Method,
    recipe: Recipe,
    n: int,
    x: Tensor,
    model: nn.Module,
    parallel: str,
    ranks: Ranks,
) -> Division:
    """Divide a training between its processes.

    Arguments:
        method: The method.
        recipe: The recipe.
        n: The number of training images.
        x: Some of them.
        model: The model.
        parallel: What is to be divided: see :func:`divided`.
        ranks: The processes.

    Raises:
        UserError: If they cannot share it.
    """
    images = min(recipe.batch_size, n)
    division = divided(method.learners, ranks.size, parallel, images, recipe.updates.accumulate)
    if ranks.size == 1:
        return division
    if draws_itself(model, x):
        raise UserError(
            f"{recipe.model} draws random numbers of its own (dropout?), which would not be those "
            "of one process: train it in one process, or without them"
        )
    ranks.divide(division)
    return division


def draws_itself(model: nn.Module, x: Tensor) -> bool:
    """Return whether a model uses torch's random numbers, in training or in eval mode."""
    model = deepcopy(model).train()
    with torch.random.fork_rng(), torch.no_grad():
        before = torch.get_rng_state(), [torch.cuda.get_rng_state(i) for i in cuda_devices()]
        model(x)
        with evaluating(model):
            model(x)
        after = torch.get_rng_state(), [torch.cuda.get_rng_state(i) for i in cuda_devices()]
    pairs = zip((before[0], *before[1]), (after[0], *after[1]), strict=True)
    return not all(torch.equal(old, new) for old, new in pairs)


def again(run: Run) -> bool:
    """Return whether torchrun has started this command again, and its training can go on."""
    began = run.read_json("provenance.json").get("command")
    return restarted() and began == command_line() and (run.path / "state.pt").is_file()
