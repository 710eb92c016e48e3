"""The benchmark as a job: every bench in turn, a file that is always up to date, tables."""

__all__ = ["FORMAT", "bench", "memory_of"]

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console as Terminal

from benchmarks import attack, evaluate, growth, memory, table, train
from benchmarks.bars import bars
from benchmarks.case import Case, Problem
from benchmarks.evaluate import Judged, Judging
from benchmarks.growth_figure import picture
from benchmarks.plan import Bench, Options, plan, smaller
from benchmarks.timing import LEAST_SECONDS, Measured, Side, alternate, records
from benchmarks.work import Work, work_of
from equipoise.errors import RunError, UserError
from equipoise.execution import Execution
from equipoise.execution.policy import has_bfloat16
from equipoise.jobs.device import choose_device
from equipoise.report.pictures import svg_file
from equipoise.store.files import write
from equipoise.store.provenance import provenance
from equipoise.terminal.progress import Console

FORMAT = 1

Order = Mapping[str, Any]


def bench(
    options: Options,
    out: Path,
    *,
    terminal: Terminal,
    console: Console,
    measure: Callable[[Order], int] = memory.measured,
) -> dict[str, Any]:
    """Bench what was asked for; the file holds at any moment what was measured so far.

    Arguments:
        options: What was asked for.
        out: The JSON file; a former one there is replaced. A figure of growth stands beside it.
        terminal: Where tables are shown.
        console: Where progress is shown.
        measure: From an order to the memory of a side, in bytes.

    Returns:
        What the file holds.

    Raises:
        UserError: If it cannot be done; nothing was started.
    """
    if out.is_dir():
        raise UserError(f"--out {out} is a folder; expected a file, like {out}/bench.json")
    benches = plan(options)
    device = choose_device(options.device)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(options.threads or threads)
        job = _Job(options, out, device, terminal, console, measure)
        return job.run(benches)
    finally:
        torch.set_num_threads(threads)


def memory_of(order: Order) -> int:
    """Return the bytes that a side needs: what the process for it does.

    Arguments:
        order: ``what`` is benched, the ``side``, the ``case`` as plain values, and ``threads``.
    """
    torch.set_num_threads(order["threads"])
    kind = Judging if order["what"] == "evaluate" else Case
    case = kind(**order["case"])
    few = smaller(case)
    side = _made(order["what"], few, few.build(), [order["side"]])[0][0]
    (side.warm or side.run)()
    subject = case.build()

    def work() -> None:
        _made(order["what"], case, subject, [order["side"]])[0][0].run()

    return memory.peak_of(work, choose_device(case.device))


def _made(
    what: str, case: Any, subject: Any, names: Any, work: Work | None = None
) -> tuple[list[Side], dict[str, str]]:
    """Return the sides of a bench, and how to install those that are not there."""
    if what == "evaluate":
        return evaluate.sides(case, subject, names)
    make = train.sides if what == "train" else attack.sides
    return make(case, subject, names, work)


class _Job:
    """A benchmark on its way."""

    def __init__(
        self,
        options: Options,
        out: Path,
        device: torch.device,
        terminal: Terminal,
        console: Console,
        measure: Callable[[Order], int],
    ) -> None:
        self.options, self.out, self.device = options, out, device
        self.terminal, self.console, self.measure = terminal, console, measure
        execution = Execution(
            precision=options.precision,  # type: ignore[arg-type]  # it is looked at there
            update=options.update,  # type: ignore[arg-type]
            layout=options.layout,  # type: ignore[arg-type]
            compile=options.compile,
        )
        self.content: dict[str, Any] = {
            "format": FORMAT,
            "provenance": provenance(str(device), options.seed),
            "execution": str(execution.resolved(device)),
            "asked": asdict(execution),
            "resolved": asdict(execution.resolved(device)),
            "repeats": options.repeats,
            "benches": [],
            "bars": [],
            "finished": False,
        }

    def run(self, benches: list[Bench]) -> dict[str, Any]:
        """Do everything; what was measured stays, whatever happens."""
        table.show_setting(self.terminal, self.content)
        try:
            for one in benches:
                record = {"what": one.what, "title": one.title, "case": asdict(one.case)}
                self.content["benches"].append(record)
                if one.what == "growth":
                    self._grow(one, record)
                else:
                    self._compare(one, record)
                table.show_bench(self.terminal, record)
        except BaseException:
            self._write()
            self.console.say(f"what was measured until here: {self.out}")
            raise
        self.content["finished"] = True
        self._write()
        table.show_bars(self.terminal, self.content["bars"])
        self.console.say(f"all numbers: {self.out}")
        return self.content

    def _write(self) -> None:
        done = [one for one in self.content["benches"] if "sides" in one]
        self.content["bars"] = bars(done)
        write(self.out, json.dumps(self.content, indent=2) + "\n")

    def _compare(self, one: Bench, record: dict[str, Any]) -> None:
        """Time all sides of a bench in turn, then measure the memory of each."""
        subject = one.case.build()
        work = None
        if isinstance(subject, Problem):
            work = work_of(subject.model, subject.x, subject.y)
            record["useful_flops_an_image"] = vars(work)
            record["has_bfloat16"] = has_bfloat16(self.device)
        sides, absent = _made(one.what, one.case, subject, one.sides, work)
        record |= {"sides": {}, "absent": absent}
        self.console.say(f"{one.title}: {', '.join(side.name for side in sides)}")
        found: dict[str, Measured] = {}
        least = 0.0 if one.what == "evaluate" else LEAST_SECONDS
        for found in alternate(sides, self.options.repeats, self.device, least=least):
            self._note(record, found, subject)
            self._tell(found)
        if one.what == "attack" and isinstance(subject, Problem):
            for measured in found.values():
                measured.found["loss"] = attack.loss_of(subject, measured.last)
        for name, measured in found.items():
            if self.options.memory:
                measured.peak = self._memory(one.what, name, one.case)
            self._note(record, found, subject)

    def _note(
        self,
        record: dict[str, Any],
        found: Mapping[str, Measured],
        subject: Problem | Judged,
    ) -> None:
        """Put what was found so far into the file."""
        if isinstance(subject, Judged):
            done = [measured for measured in found.values() if measured.last is not None]
            for measured in done:
                measured.found |= evaluate.noted(measured.last, len(subject.y))
            evaluate.agreement(done)
            record["said"] = evaluate.sentences(done)
        record["sides"] = records(found)
        self._write()

    def _tell(self, found: Mapping[str, Measured]) -> None:
        done = {len(m.seconds) for m in found.values()}
        if len(done) > 1:
            return
        times = ", ".join(f"{name} {m.seconds[-1]:.3g} s" for name, m in found.items())
        self.console.say(f"  {done.pop()}/{self.options.repeats}: {times}")

    def _memory(self, what: str, side: str, case: Case | Judging) -> int | None:
        """Return the memory of a side; where it cannot be measured, say so and go on."""
        order = {"what": what, "side": side, "case": asdict(case)}
        try:
            return self.measure(order | {"threads": torch.get_num_threads()})
        except (RunError, OSError, ValueError) as error:
            self.console.warn(str(error))
            return None

    def _grow(self, one: Bench, record: dict[str, Any]) -> None:
        """Bench our PGD along each axis."""
        assert isinstance(one.case, Case)
        record |= {"axes": [], "faster": []}
        for axis in growth.AXES.values():
            points = growth.cases(axis, one.case)
            record["axes"].append(growth.axis_record(axis, []))
            for number, (point, case) in enumerate(points, 1):
                sides, _ = attack.sides(case, case.build(), ["ours"])
                for found in alternate(sides, self.options.repeats, self.device):
                    point.times = found["ours"].seconds
                if self.options.memory:
                    point.peak = self._memory("attack", "ours", case)
                self.console.say(f"  {axis.name} {point.count:,}: {point.seconds:.3g} s")
                done = [made for made, _ in points[:number]]
                record["axes"][-1] = growth.axis_record(axis, done)
                self._write()
        record["faster"] = growth.sentences(record["axes"])
        drawn = self.out.with_suffix(".svg")
        write(drawn, svg_file(picture(record["axes"], one.title)))
        record["figure"] = drawn.name
        self.console.say(f"figure: {drawn}")
