"""The processes of torchrun that share a training: all that is said to torch.distributed.

What the processes say to one another goes over gloo; gradients and the sums of BatchNorm of CUDA
models over NCCL. Each process has all learners; of a learner that others train it gets the state
at the end of each round, and before a state is saved. So everything that is decided from the
learners is decided alike in all processes, and only the first one writes.
"""

import io
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from datetime import timedelta
from typing import Any, NoReturn, TypeVar

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed.rendezvous import rendezvous

from equipoise.draws import GeneratorDraws, PartDraws
from equipoise.errors import RunError, UserError, one_line
from equipoise.objectives.core import Batch
from equipoise.training.batchnorm import Together
from equipoise.training.ranks import Crew, Division, Ranks
from equipoise.training.watch import Interrupted

T = TypeVar("T")
PATIENCE = timedelta(days=7)  # a process that has ended is noticed at once
SECONDS = 1.0  # between two agreements, about
LOST = "another process has ended, so all end; what was saved is kept"
QUEUE = 4  # batches that are on their way to another process


_JOINED: list["Processes"] = []  # the others, while this one is among them


class Lost(RunError):
    """Another process has ended."""


def several() -> bool:
    """Return whether this is one of several processes of torchrun."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and "RANK" in os.environ


def restarted() -> bool:
    """Return whether torchrun has started the processes again after one had failed."""
    return _attempt() > 0


def _attempt() -> int:
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


@contextmanager
def together() -> Iterator[Ranks]:
    """Join the other processes of torchrun, if there are any; an error in one ends all.

    The first one that fails says why, and which it is; the others end without a word.
    """
    if not several() or _JOINED:
        yield _JOINED[0] if _JOINED else Ranks()
        return
    ranks = Processes()
    _JOINED.append(ranks)
    try:
        yield ranks
    except (UserError, RunError) as error:
        ranks.ended(error)
    except KeyboardInterrupt:
        if ranks.first:
            raise
        raise SystemExit(130) from None
    else:
        with suppress(Exception):
            dist.destroy_process_group()
    finally:
        _JOINED.clear()


class Processes(Ranks):
    """The processes of torchrun, of which this is one.

    Raises:
        UserError: If they cannot be reached.
    """

    def __init__(self) -> None:
        try:
            store, self.rank, self.size = next(rendezvous("env://", timeout=PATIENCE))
            prefix = f"attempt {_attempt()}"  # the store of torchrun outlives a restart
            self.store = dist.PrefixStore(prefix, store)  # type: ignore[attr-defined]
            backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
            dist.init_process_group(
                backend,
                timeout=PATIENCE,
                store=self.store,
                rank=self.rank,
                world_size=self.size,
            )
        except (RuntimeError, ValueError) as error:
            raise UserError(
                f"cannot reach the other processes: start all with torchrun ({one_line(error)})"
            ) from None
        self.local = int(os.environ.get("LOCAL_RANK", self.rank))
        self.said = False
        self.division = Division({}, "data", "")
        self.crews: dict[str, Crew] = {}
        self.steps, self.next, self.since = 0, 1, time.monotonic()
        self.sent: list[tuple[dist.Work | None, Tensor]] = []

    # What all do together

    def meet(self, work: Callable[[], T]) -> T:
        """Do something in every process; if it fails in one, all end, and the first says why."""
        done, said = None, ""
        try:
            done = work()
        except (UserError, RunError) as error:
            said = f"{2 if isinstance(error, UserError) else 1}{error}"
        every = self._texts(said)
        failed = {rank: text for rank, text in enumerate(every) if text}
        if failed:
            texts = [*failed.values()]
            same = len(texts) == self.size and len(set(texts)) == 1
            name = "" if same else f"rank {', '.join(map(str, failed))}: "
            self._end(name + texts[0][1:], UserError if texts[0][0] == "2" else RunError)
        return done  # type: ignore[return-value]

    def compare(self, facts: Callable[[], Mapping[str, str]]) -> None:
        """Raise a UserError that names the ranks whose facts are not those of the first one."""
        first, *others = (json.loads(text) for text in self._texts(json.dumps({**facts()})))
        for key in dict.fromkeys(key for facts in (first, *others) for key in facts):
            values = [str(facts.get(key)) for facts in (first, *others)]
            differ = [rank for rank, value in enumerate(values) if value != values[0]]
            if differ:
                there = values[differ[0]]
                named = f": {there}, not {values[0]}" if len(there + values[0]) < 80 else ""
                ranks = ", ".join(map(str, differ))
                self._end(f"rank {ranks} has another {key} than rank 0{named}", UserError)

    def divide(self, division: Division) -> None:
        """Let each process train what a division says."""
        self.division = division
        for name, ranks in division.crews.items():
            self.crews[name] = Sharing(self) if len(ranks) > 1 else Crew()

    def crew(self, name: str) -> Crew:
        """Return the processes that train a learner."""
        return self.crews[name]

    def trains(self, name: str) -> bool:
        """Return whether this process trains a learner."""
        return self.rank in self.division.crews[name]

    def agreed(self, stop: bool, save: bool, *, now: bool = False) -> tuple[bool, bool]:
        """Return whether all stop and save at this step: they ask one another once a second."""
        self.steps += 1
        if self.steps < self.next and not now:
            return False, False
        step = (time.monotonic() - self.since) / self.steps
        asked = torch.tensor([stop, save and self.first, step], dtype=torch.float64)
        self.call(dist.all_reduce, asked, dist.ReduceOp.MAX)
        self.steps, self.since = 0, time.monotonic()
        self.next = max(1, int(SECONDS / max(float(asked[2]), 1e-3)))
        return bool(asked[0]), bool(asked[1])

    # The state of learners that others have trained

    def told(self, name: str, state: Callable[[], Mapping[str, Any]]) -> Mapping[str, Any] | None:
        """Return the state of a learner that another process has trained; else None."""
        self._arrived()
        crew = self.division.crews[name]
        if len(crew) == self.size:
            self._same(name, state()["model"])
            return None
        buffer = io.BytesIO()
        if self.trains(name):
            torch.save(state(), buffer)
        content = self._broadcast(buffer.getbuffer(), crew[0])
        if self.trains(name):
            return None
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)  # type: ignore[no-any-return]

    def _same(self, name: str, weights: Mapping[str, Tensor]) -> None:
        """Raise a RunError if a learner is not the same in all processes that have trained it."""
        sums = [w.double().nan_to_num().sum() for w in weights.values() if w.is_floating_point()]
        every = self.gathered(torch.stack(sums).cpu())
        if not all(torch.equal(one, every[0]) for one in every):
            raise RunError(
                f"the processes have different weights of the {name} learner: use machines of one "
                "kind, or --parallel learners; what was saved is kept"
            )

    def fill(self, name: str, tensors: Sequence[Tensor]) -> None:
        """Fill tensors of a learner with those of the process that has trained it."""
        crew = self.division.crews[name]
        if len(crew) == self.size:
            return
        for dtype in dict.fromkeys(tensor.dtype for tensor in tensors):
            some = [tensor for tensor in tensors if tensor.dtype == dtype]
            flat = torch.cat([tensor.detach().reshape(-1) for tensor in some]).cpu()
            self.call(dist.broadcast, flat, crew[0])
            if not self.trains(name):
                unpack(flat, some)

    def send(self, name: str, tensors: Sequence[Tensor]) -> None:
        """Send tensors to the process that trains a learner."""
        for tensor in tensors:
            copy = tensor.detach().cpu().contiguous().clone()
            self.sent.append((self.call(dist.isend, copy, self.division.crews[name][0]), copy))
        while len(self.sent) > QUEUE * len(tensors):
            self._wait(self.sent.pop(0)[0])

    def receive(self, name: str, like: Sequence[Tensor]) -> list[Tensor]:
        """Return tensors that the process that trains a learner has sent, in the same order."""
        found = [torch.empty(x.shape, dtype=x.dtype) for x in like]
        for tensor in found:
            self.call(dist.recv, tensor, self.division.crews[name][0])
        return [tensor.to(x.device) for tensor, x in zip(found, like, strict=True)]

    def each(self, n: int, work: Callable[[int], Tensor], like: Tensor) -> list[Tensor]:
        """Return what ``work`` gives for 0 to n - 1; each is done by one of the processes."""
        own = [work(k) for k in range(self.rank, n, self.size)]
        own += [torch.zeros_like(like)] * (-(-n // self.size) - len(own))
        if not own:
            return []
        every = self.gathered(torch.stack(own))
        return [every[k % self.size][k // self.size] for k in range(n)]

    # Over the wire

    def call(self, function: Callable[..., T], *arguments: Any) -> T:
        """Call a function of torch.distributed; if a process has ended, raise Lost."""
        try:
            return function(*arguments)
        except RuntimeError as error:
            raise Lost(LOST) from error

    def gathered(self, tensor: Tensor) -> Tensor:
        """Return the tensors of all processes, of one shape, stacked."""
        every = tensor.new_empty(self.size, *tensor.shape)
        self.call(dist.all_gather, list(every.unbind()), tensor.contiguous())
        return every

    def _wait(self, work: "dist.Work | None") -> None:
        if work is not None:
            self.call(work.wait)

    def _arrived(self) -> None:
        """Wait until all that was sent has arrived."""
        while self.sent:
            self._wait(self.sent.pop(0)[0])

    def _broadcast(self, content: bytes | memoryview, source: int) -> bytes:
        size = torch.tensor([len(content)])
        self.call(dist.broadcast, size, source)
        data = torch.empty(int(size), dtype=torch.uint8)
        if self.rank == source:
            data.copy_(torch.frombuffer(bytearray(content), dtype=torch.uint8))
        self.call(dist.broadcast, data, source)
        return data.numpy().tobytes()

    def _texts(self, text: str) -> list[str]:
        """Return the texts of all processes."""
        own = text.encode()
        lengths = self.gathered(torch.tensor([len(own)]))[:, 0].tolist()
        data = torch.zeros(max(*lengths, 1), dtype=torch.uint8)
        data[: len(own)] = torch.tensor(list(own), dtype=torch.uint8)
        every = self.gathered(data)
        return [bytes(row[:n].tolist()).decode() for row, n in zip(every, lengths, strict=True)]

    # The end

    def ended(self, error: UserError | RunError) -> NoReturn:
        """Raise an error of this process, if it is the first to end; else end without a word."""
        if self.said:
            raise error
        kind = UserError if isinstance(error, UserError) else RunError
        if isinstance(error, Interrupted):
            self._end(str(error), kind)
        speaker = self._speaker(self.rank if isinstance(error, Lost) else 0)
        if speaker != self.rank:
            self._follow(speaker, kind)
        raise kind(f"rank {self.rank}: {error}") from None

    def _end(self, said: str, kind: type[UserError] | type[RunError]) -> NoReturn:
        """Raise an error that all processes know of in the first one."""
        if not self.first:
            self._follow(0, kind)
        self.said = True
        raise kind(said)

    def _speaker(self, otherwise: int) -> int:
        """Return the process that was the first to fail: it says why.

        Arguments:
            otherwise: The one that does if the store has ended, as the first process has.
        """
        try:
            return int(self.store.compare_set("speaker", "", str(self.rank)))
        except RuntimeError:
            return otherwise

    def _follow(self, speaker: int, kind: type[UserError] | type[RunError]) -> NoReturn:
        """End without a word, but not before the process that says why: torchrun ends all then."""
        with suppress(RuntimeError):
            dist.recv(torch.zeros(1), speaker)  # nothing is sent: it fails once that one has ended
        raise SystemExit(2 if kind is UserError else 1)


class Sharing(Crew):
    """All processes train a learner, each on its part of every batch.

    Arguments:
        ranks: The processes.
    """

    def __init__(self, ranks: Processes) -> None:
        self.ranks = ranks

    def rows(self, n: int) -> slice:
        """Return which of ``n`` images this process has."""
        rank, size = self.ranks.rank, self.ranks.size
        return slice(n * rank // size, n * (rank + 1) // size)

    def part(self, batch: Batch) -> tuple[Batch, float]:
        """Return the part of a batch that this process trains on, and its share of the batch."""
        n, rows = len(batch.y), self.rows(len(batch.y))
        return batch.take(rows), (rows.stop - rows.start) / n

    def draws(self, draws: GeneratorDraws, n: int) -> GeneratorDraws:
        """Return the source of the random numbers of that part of a batch of ``n`` images."""
        return PartDraws(draws.generator, n, self.rows(n))

    def whole(self, part: Tensor, n: int) -> Tensor:
        """Return a tensor for all ``n`` images of a batch that has the rows of this process."""
        tensor = part.new_zeros(n, *part.shape[1:])
        tensor[self.rows(n)] = part
        return tensor

    def one_batch(self) -> AbstractContextManager[object]:
        """Let BatchNorm in training see the parts of all processes as one batch in a block."""
        return Together(self.ranks.gathered, self._add)

    def add(self, weights: Iterable[nn.Parameter], *sums: Tensor) -> None:
        """Add up the gradients of weights, and sums, over the processes, in place."""
        tensors = [*(w.grad for w in weights if w.grad is not None), *sums]
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        self._add(flat)
        unpack(flat, tensors)

    def _add(self, tensor: Tensor) -> None:
        self.ranks.call(dist.all_reduce, tensor)


@torch.no_grad()
def unpack(flat: Tensor, tensors: Sequence[Tensor]) -> None:
    """Copy the parts of a tensor with shape (N,) to tensors with N elements together."""
    parts = torch.split(flat, [tensor.numel() for tensor in tensors])
    for tensor, part in zip(tensors, parts, strict=True):
        tensor.copy_(part.view(tensor.shape))
