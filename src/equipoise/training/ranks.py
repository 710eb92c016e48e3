"""The processes that share a training, as its loop sees them; here one alone.

:mod:`equipoise.training.processes` has the same for several, in terms of torch.distributed.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal, NamedTuple, TypeVar, get_args

from torch import Tensor, nn

from equipoise.draws import GeneratorDraws
from equipoise.errors import UserError
from equipoise.objectives.core import Batch, Objective

T = TypeVar("T")
Parallel = Literal["auto", "data", "learners"]
PARALLEL: tuple[Parallel, ...] = get_args(Parallel)


class Crew:
    """The processes that train one learner: here this one alone."""

    def part(self, batch: Batch) -> tuple[Batch, float]:
        """Return the part of a batch that this process trains on, and its share of the batch."""
        return batch, 1.0

    def draws(self, draws: GeneratorDraws, n: int) -> GeneratorDraws:
        """Return the source of the random numbers of that part of a batch of ``n`` images."""
        del n
        return draws

    def whole(self, part: Tensor, n: int) -> Tensor:
        """Return a tensor for all ``n`` images of a batch that has the rows of this process."""
        del n
        return part

    def one_batch(self) -> AbstractContextManager[object]:
        """Let BatchNorm in training see the parts of all processes as one batch in a block."""
        return nullcontext()

    def add(self, weights: Iterable[nn.Parameter], *sums: Tensor) -> None:
        """Add up the gradients of weights, and sums, over the processes, in place."""


class Ranks:
    """The processes that share a training: here one alone."""

    rank, size, local = 0, 1, 0  # local: its number on its machine

    @property
    def first(self) -> bool:
        """Return whether this process writes the run folder."""
        return self.rank == 0

    def meet(self, work: Callable[[], T]) -> T:
        """Do something in every process; if it fails in one, all end."""
        return work()

    def lead(self, work: Callable[[], object]) -> None:
        """Do something in the first process, while the others wait; if it fails, all end."""
        self.meet(lambda: work() if self.first else None)

    def compare(self, facts: Callable[[], Mapping[str, str]]) -> None:
        """Raise a UserError if facts that must be the same in all processes are not."""

    def divide(self, division: "Division") -> None:
        """Let each process train what a division says."""

    def crew(self, name: str) -> Crew:
        """Return the processes that train a learner."""
        del name
        return Crew()

    def trains(self, name: str) -> bool:
        """Return whether this process trains a learner."""
        del name
        return True

    def agreed(self, stop: bool, save: bool, *, now: bool = False) -> tuple[bool, bool]:
        """Return whether all stop and save at this step; the same in all processes.

        Arguments:
            stop: Whether this process was asked to stop.
            save: Whether it is time to save.
            now: Whether to ask the others at this step in any case.
        """
        del now
        return stop, save

    def told(self, name: str, state: Callable[[], Mapping[str, Any]]) -> Mapping[str, Any] | None:
        """Return the state of a learner that another process has trained; else None.

        Arguments:
            name: The learner.
            state: Returns its state in a process that has trained it.
        """
        del name, state
        return None

    def fill(self, name: str, tensors: Sequence[Tensor]) -> None:
        """Fill tensors of a learner with those of the process that has trained it."""

    def send(self, name: str, tensors: Sequence[Tensor]) -> None:
        """Send tensors to the process that trains a learner."""

    def receive(self, name: str, like: Sequence[Tensor]) -> list[Tensor]:
        """Return tensors that the process that trains a learner has sent, in the same order."""
        del name
        return list(like)

    def each(self, n: int, work: Callable[[int], Tensor], like: Tensor) -> list[Tensor]:
        """Return what ``work`` gives for 0 to n - 1; each is done by one of the processes.

        Arguments:
            n: How many.
            work: Returns a tensor like ``like``, on the CPU.
            like: Its shape and type.
        """
        del like
        return [work(k) for k in range(n)]


class Division(NamedTuple):
    """Which processes train which learner.

    Arguments:
        crews: The ranks of the processes that train each learner.
        parallel: What is divided: ``data`` or ``learners``.
        sentence: The same in words, with what can be gained.
    """

    crews: Mapping[str, Sequence[int]]
    parallel: Parallel
    sentence: str


WHOLE = Division({}, "auto", "")
"""That of one process."""


def divided(
    learners: Mapping[str, Objective], size: int, parallel: str, images: int, parts: int
) -> Division:
    """Divide a training between processes.

    Arguments:
        learners: The objectives of the learners.
        size: The number of processes.
        parallel: ``data``: each has a part of every batch; ``learners``: each trains some
            learners; ``auto``: the data, if the objectives allow it.
        images: The images of a step.
        parts: Into how many parts a batch is cut: see ``accumulate``.

    Raises:
        UserError: If they cannot share it.
    """
    if parallel not in PARALLEL:
        raise UserError(f"--parallel must be one of {', '.join(PARALLEL)}, got {parallel!r}")
    if size == 1:
        return WHOLE
    undivided = [f"{name}: {o.undivided}" for name, o in learners.items() if o.undivided]
    if images // parts < size:
        cut = f" in {parts} parts" if parts > 1 else ""
        undivided.append(f"a step has {images} images{cut}, too few for {size} processes")
    if parallel != "learners" and not undivided:
        sentence = (
            f"{size} processes, each with a part of every batch: equal to one process within "
            "rounding (--parallel data)"
        )
        return Division(dict.fromkeys(learners, range(size)), "data", sentence)
    if parallel == "data":
        raise UserError(f"{undivided[0]}: the batches cannot be divided between processes")
    if size > len(learners):
        most = len(learners)
        ways = f"start {most} with --parallel learners" if most > 1 else "train it in one process"
        if undivided:
            raise UserError(f"{undivided[0]}: {size} processes cannot share it; {ways}")
        raise UserError(
            f"{size} processes are more than the {most} learners of the method; divide the data "
            f"with --parallel data, or {ways}"
        )
    crews = balanced({name: o.cost for name, o in learners.items()}, size)
    loads = [sum(learners[n].cost for n, crew in crews.items() if r in crew) for r in range(size)]
    costs = ", ".join(f"{name} {o.cost}" for name, o in learners.items())
    gain = sum(loads) / max(loads)
    why = f"; the batches are not divided: {undivided[0]}" if undivided else ""
    sentence = (
        f"{size} processes, each with its learners: equal to one process, bit for bit. Gradient "
        f"evaluations of an image: {costs}; at most {gain:.2f} times faster{why}"
    )
    return Division(crews, "learners", sentence)


def balanced(costs: Mapping[str, int], size: int) -> dict[str, Sequence[int]]:
    """Give each learner to the process with the least to do so far, the dearest learner first.

    Example:
        >>> balanced({"clean": 1, "robust": 11}, 2)
        {'clean': [1], 'robust': [0]}
    """
    loads, given = [0] * size, dict[str, Sequence[int]]()
    for name in sorted(costs, key=lambda name: -costs[name]):
        rank = loads.index(min(loads))
        loads[rank] += costs[name]
        given[name] = [rank]
    return {name: given[name] for name in costs}
