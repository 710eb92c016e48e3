"""Measuring the front between two ends as a job: point by point, kept in the run folder."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from equipoise.evaluation.protocol import Protocol
from equipoise.fronts.front import Front
from equipoise.fronts.line import BatchNorms
from equipoise.fronts.record import FILE, FrontRecord
from equipoise.fronts.survey import DEFAULT, check
from equipoise.jobs import signals
from equipoise.jobs.device import choose_device, deterministic
from equipoise.plugins import command
from equipoise.report.front_picture import write_picture
from equipoise.store.weight_names import PAIR
from equipoise.terminal.progress import Console


def measure_front(
    path: str | Path,
    protocol: Protocol | None = None,
    *,
    ends: Sequence[str] | None = None,
    others: Sequence[str | Path] = (),
    batchnorm: BatchNorms = "average",
    data_dir: str | Path | None = None,
    device: str = "auto",
    console: Console | None = None,
    points: int = 9,
    beyond: float = 0.0,
    **fields: Any,
) -> FrontRecord:
    """Measure the front of a run on its held-out images, and draw it.

    Each point is kept when it is finished, so that an interruption costs no more than the one
    that is being measured; the same call goes on.

    Arguments:
        path: The run folder.
        protocol: As for :meth:`equipoise.fronts.front.Front.measure`, as are the last three.
        ends: As for :class:`equipoise.fronts.front.Front`; None: the run's learners.
        others: Run folders whose kept models are measured beside it.
        batchnorm: Statistics of BatchNorm: averaged, or estimated anew.
        data_dir: The folder of the data; by default that of the training.
        device: ``auto``, ``cpu`` or ``cuda``.
        console: Where progress is shown; by default nowhere.
        points: How many models are measured at most.
        beyond: How far to go beyond the ends.
        fields: Fields of the protocol that are others.

    Returns:
        The front, as ``front.json`` has it.

    Raises:
        UserError: If ends, images or settings will not do, or another process measures there.
    """
    console = console or Console(quiet=True)
    check(points, beyond)  # what will not do is said before anything is read
    asked = replace(protocol or Protocol(attacks=DEFAULT), **fields)
    deterministic()
    front = Front(
        path,
        ends=ends or PAIR,
        batchnorm=batchnorm,
        data_dir=data_dir,
        device=choose_device(device),
    )
    front.run.again = command("front", front.run.path)
    images = front.images
    console.say(
        f"the front of {front.run.path} between {' and '.join(front.ends.names)}, on held-out "
        f"images ({len(images.validation)} of {len(images.train) + len(images.validation)}); "
        "test images have no part in it"
    )
    with signals.interrupting(), console.progress():
        try:
            front.measure(asked, points=points, beyond=beyond, others=others, console=console)
        except KeyboardInterrupt:
            console.say(
                "what was measured is kept; the same command goes on: "
                f"{command('front', front.run.path)} ..."
            )
            raise
    record = front.record
    files = write_picture(record, front.run.path)
    console.say(f"written: {front.run.path / FILE}, {', '.join(map(str, files))}")
    return record
