"""The benchmark as a job: everything in turn, a file that is always up to date, tables."""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console as Terminal

from benchmarks import attack, evaluate, growth, memory, results, train
from benchmarks.case import MODELS, Case
from benchmarks.evaluate import Judged
from benchmarks.stranger import STRANGER
from benchmarks.timing import LEAST_SECONDS, Side, alternate
from benchmarks.work import useful_flops
from equipoise.errors import RunError, UserError, nearest
from equipoise.execution import Execution
from equipoise.execution.policy import has_bfloat16
from equipoise.jobs.device import choose_device
from equipoise.store.files import write
from equipoise.store.provenance import provenance
from equipoise.terminal.progress import Console

FORMAT = 2
WHATS = ("attack", "train", "evaluate", "growth")
SUITE_MODELS = ("small-cnn", "resnet-18")
SUITE_BATCH = 32  # of the larger networks: the suite should end before one has lost patience
SUITE_IMAGES = 250
DEFAULT = {"attack": attack.SIDES, "train": ("ours", "plain loop")}
DEFAULT |= {"evaluate": ("ours", "ours-checked", "pyautoattack")}

_ROOMS: Mapping[str, Any] = {"attack": attack, "train": train, "evaluate": evaluate}
_JUDGED = ("run", "norm", "images", "data_dir")  # what only an evaluation has
_SHARED = ("device", "execution", "seed")

Order = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Bench:
    """One benchmark.

    Arguments:
        what: One of :data:`WHATS`.
        title: It in words.
        case: What it is measured on.
        sides: Those that take part; ours is the first.
    """

    what: str
    title: str
    case: Case | Judged
    sides: Sequence[str] = ("ours",)


def plan(what: str | None = None, sides: Sequence[str] = (), **given: Any) -> list[Bench]:
    """Return what is to be done, in order.

    Arguments:
        what: One of :data:`WHATS`; None: the suite of all but growth.
        sides: Those that take part besides ours; by default those of :data:`DEFAULT`.
        given: Fields of :class:`Case` and :class:`Judged` that are to be other than by default.

    Raises:
        UserError: If something asked for is not possible.
    """
    _check(what, sides, given)
    judged = {name: given.pop(name) for name in _JUDGED if name in given}
    shared = {name: given[name] for name in _SHARED if name in given}
    if what == "growth":
        model = given.pop("model", "resnet-18")
        width = 0.25 if model == "resnet-18" else 1.0
        case = Case.of(model, **{"width": width, "batch_size": 16, "steps": 2} | given)
        return [Bench(what=what, title=f"growth of PGD, {case.title}", case=case)]
    benches = []
    for name in [what] if what else WHATS[:3]:
        taking_part = tuple(dict.fromkeys(("ours", *(sides or DEFAULT[name]))))
        if name == "evaluate":
            own = ("eps", "batch_size") if what else ()
            own_values = {key: given[key] for key in own if key in given}
            standing = {} if what else {"images": SUITE_IMAGES}
            of_run = Judged(**standing | judged | shared | own_values)
            title = f"AutoAttack, {of_run.title}"
            benches.append(Bench(what=name, title=title, case=of_run, sides=taking_part))
            continue
        for model in _models(what, name, given):
            small = {} if what or model == "small-cnn" else {"batch_size": SUITE_BATCH}
            case = Case.of(model, **small | {k: v for k, v in given.items() if k != "model"})
            method = "A3GT" if case.learners == 2 else "PGD-AT"
            step = "" if name == "attack" else f"a step of {method}, "
            title = f"{step}PGD-{case.steps}, {case.title}, batch {case.batch_size}"
            case = train.case_of(case) if name == "train" else case
            benches.append(Bench(what=name, title=title, case=case, sides=taking_part))
    return benches


def _models(what: str | None, name: str, given: Mapping[str, Any]) -> Sequence[str]:
    if "model" in given:
        return [given["model"]]
    if what is not None:
        return ["small-cnn"]
    return [*SUITE_MODELS, STRANGER] if name == "attack" else SUITE_MODELS


def _check(what: str | None, sides: Sequence[str], given: Mapping[str, Any]) -> None:
    """Refuse what does not exist, and what has no meaning for what is measured."""
    model = given.get("model", "small-cnn")
    if what is not None and what not in WHATS:
        raise UserError(nearest(what, WHATS, "--what"))
    if model not in MODELS:
        raise UserError(nearest(model, MODELS, "model"))
    if model == STRANGER and what not in ("attack", "growth"):
        raise UserError(f"--model {STRANGER} needs --what attack or growth: it is not trained")
    if given.get("learners", 2) not in (1, 2):
        raise UserError(f"--learners must be 1 or 2, got {given['learners']}")
    for name in ("run", "norm", "images"):
        if name in given and what not in (None, "evaluate"):
            option = "RUN" if name == "run" else f"--{name}"
            raise UserError(f"{option} is for --what evaluate, not for {what}")
    if sides and what not in _ROOMS:
        raise UserError(f"--sides needs --what {', '.join(_ROOMS)}: each has its own")
    for name in sides:
        if name not in _ROOMS[str(what)].SIDES:
            raise UserError(nearest(name, _ROOMS[str(what)].SIDES, "side"))


def memory_of(order: Order) -> int:
    """Return the bytes that a side needs: what the process for it does.

    Arguments:
        order: ``what`` is measured, the ``side``, the ``case`` as plain values, and ``threads``.
    """
    torch.set_num_threads(order["threads"])
    case = (Judged if order["what"] == "evaluate" else Case)(**order["case"])
    make = _ROOMS[order["what"]].sides
    few = case.smaller()
    side: Side = make(few, few.build(), [order["side"]])[0][0]
    (side.warm or side.run)()
    problem = case.build()

    def work() -> None:
        make(case, problem, [order["side"]])[0][0].run()

    return memory.peak_of(work, choose_device(case.device))


def run(
    benches: Sequence[Bench],
    out: Path,
    *,
    repeats: int = 5,
    threads: int | None = None,
    measure: Callable[[Order], int] | None = memory.measured,
    cpu_time: bool = False,
    terminal: Terminal,
    console: Console,
) -> dict[str, Any]:
    """Measure; the file holds at any moment what was measured so far.

    Arguments:
        benches: What is measured.
        out: The JSON file; a former one there is replaced. A figure of growth stands beside it.
        repeats: How often each side is timed.
        threads: The threads of a CPU; None: torch's choice.
        measure: From an order to the memory of a side, in bytes; None: memory is not measured.
        cpu_time: Whether seconds are those of the processor in this process, not of the wall.
        terminal: Where tables are shown.
        console: Where progress is shown.

    Returns:
        What the file holds.

    Raises:
        UserError: If it cannot be done; nothing was started.
    """
    if out.is_dir():
        raise UserError(f"--out {out} is a folder; expected a file, like {out}/bench.json")
    device = choose_device(benches[0].case.device)
    if cpu_time and device.type != "cpu":
        raise UserError("--cpu-time is for a CPU: a GPU works while the processor waits")
    for name, value in (("-n", repeats), ("--threads", threads)):
        if value is not None and value < 1:
            raise UserError(f"{name} must be at least 1, got {value}")
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads or before)
        clock = time.process_time if cpu_time else time.perf_counter
        return _Job(out, device, repeats, measure, clock, terminal, console).run(benches)
    finally:
        torch.set_num_threads(before)


class _Job:
    """A benchmark on its way."""

    def __init__(
        self,
        out: Path,
        device: torch.device,
        repeats: int,
        measure: Callable[[Order], int] | None,
        clock: Callable[[], float],
        terminal: Terminal,
        console: Console,
    ) -> None:
        self.out, self.device, self.repeats, self.measure = out, device, repeats, measure
        self.clock, self.terminal, self.console = clock, terminal, console
        self.content: dict[str, Any] = {}

    def run(self, benches: Sequence[Bench]) -> dict[str, Any]:
        """Do everything; what was measured stays, whatever happens."""
        execution: Execution = benches[0].case.execution
        self.content = {
            "format": FORMAT,
            "provenance": provenance(str(self.device), benches[0].case.seed),
            "execution": str(execution.resolved(self.device)),
            "asked": asdict(execution),
            "resolved": asdict(execution.resolved(self.device)),
            "repeats": self.repeats,
            "cpu_time": self.clock is time.process_time,
            "benches": [],
            "targets": [],
            "finished": False,
        }
        results.show_setting(self.terminal, self.content)
        try:
            for bench in benches:
                record = {"what": bench.what, "title": bench.title, "case": asdict(bench.case)}
                self.content["benches"].append(record)
                (self._grow if bench.what == "growth" else self._compare)(bench, record)
                results.show_bench(self.terminal, record)
        except BaseException:
            self._write()
            self.console.say(f"what was measured until here: {self.out}")
            raise
        self.content["finished"] = True
        self._write()
        results.show_targets(self.terminal, self.content["targets"])
        self.console.say(f"all numbers: {self.out}")
        return self.content

    def _write(self) -> None:
        done = [bench for bench in self.content["benches"] if "sides" in bench]
        self.content["targets"] = results.targets(done)
        write(self.out, json.dumps(self.content, indent=2) + "\n")

    def _compare(self, bench: Bench, record: dict[str, Any]) -> None:
        """Time all sides in turn, then measure the memory of each."""
        problem, flops = bench.case.build(), None
        if isinstance(bench.case, Case):
            flops = useful_flops(problem.model, problem.x, problem.y)
            record["useful_flops_an_image"] = flops
            record["has_bfloat16"] = has_bfloat16(self.device)
        sides: list[Side]
        sides, absent = _ROOMS[bench.what].sides(bench.case, problem, bench.sides, flops)
        record |= {"sides": {}, "absent": absent}
        self.console.say(f"{bench.title}: {', '.join(side.name for side in sides)}")
        least = 0.0 if bench.what == "evaluate" else LEAST_SECONDS
        for _ in alternate(sides, self.repeats, self.device, clock=self.clock, least=least):
            self._note(record, sides)
        for side in sides:
            if bench.what == "attack":
                side.notes["loss"] = attack.loss_of(problem, side.last)
            side.peak = self._memory(bench.what, side.name, bench.case)
            self._note(record, sides)

    def _note(self, record: dict[str, Any], sides: Sequence[Side]) -> None:
        """Put what was measured so far into the file; say so after each repeat."""
        done = [side for side in sides if side.last is not None]
        if record["what"] == "evaluate":
            evaluate.compare(done)
            record["sentences"] = evaluate.sentences(done)
        repeats = {len(side.seconds) for side in sides}
        record["sides"] = {side.name: side.record(sides[0]) for side in sides}
        self._write()
        if len(repeats) == 1 and all(side.peak is None for side in sides):
            times = ", ".join(f"{side.name} {side.seconds[-1]:.3g} s" for side in sides)
            self.console.say(f"  {repeats.pop()}/{self.repeats}: {times}")

    def _memory(self, what: str, side: str, case: Case | Judged) -> int | None:
        """Return the memory of a side; where it cannot be measured, say so and go on."""
        if self.measure is None:
            return None
        order = {"what": what, "side": side, "case": asdict(case)}
        try:
            return self.measure(order | {"threads": torch.get_num_threads()})
        except (RunError, OSError, ValueError) as error:
            self.console.warn(str(error))
            return None

    def _grow(self, bench: Bench, record: dict[str, Any]) -> None:
        """Measure our PGD along each axis."""
        assert isinstance(bench.case, Case)
        record |= {"axes": [], "faster": []}
        for name in growth.AXES:
            points: list[tuple[int, list[float], int | None]] = []
            record["axes"].append({})
            for count, case in growth.cases(name, bench.case):
                (ours,), _ = attack.sides(case, case.build(), ["ours"])
                for _ in alternate([ours], self.repeats, self.device, clock=self.clock):
                    pass
                points.append((count, ours.seconds, self._memory("attack", "ours", case)))
                record["axes"][-1] = growth.axis_record(name, points)
                median = record["axes"][-1]["points"][-1]["seconds"]["median"]
                self.console.say(f"  {name} {count:,}: {median:.3g} s")
                self._write()
        record["faster"] = growth.sentences(record["axes"])
        drawn = self.out.with_suffix(".svg")
        write(drawn, growth.figure(record["axes"], bench.title))
        record["figure"] = drawn.name
        self.console.say(f"figure: {drawn}")
