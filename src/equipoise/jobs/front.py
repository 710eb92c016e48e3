"""Measuring the front between two ends, and picking a model from it, as jobs."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from equipoise.errors import RunError, UserError
from equipoise.evaluation.protocol import Protocol
from equipoise.fronts.front import Front
from equipoise.fronts.line import BatchNorms, learners
from equipoise.fronts.picking import Picked
from equipoise.fronts.record import FILE, FrontRecord
from equipoise.fronts.survey import DEFAULT
from equipoise.jobs import signals
from equipoise.jobs.device import choose_device, deterministic
from equipoise.jobs.estimate import about, pace, whole
from equipoise.jobs.front_shards import measure_part
from equipoise.jobs.shards import Shard
from equipoise.plugins import command
from equipoise.report.front import write_picture
from equipoise.store.runs import Run, is_free
from equipoise.terminal.progress import Console, TimeUp


def measure_front(
    path: str | Path,
    protocol: Protocol | None = None,
    *,
    ends: Sequence[str] | None = None,
    others: Sequence[str | Path] = (),
    batchnorm: BatchNorms | None = None,
    data_dir: str | Path | None = None,
    device: str = "auto",
    console: Console | None = None,
    points: int | None = None,
    beyond: float = 0.0,
    limit: float | None = None,
    shard: Shard | None = None,
    **fields: Any,
) -> FrontRecord | None:
    """Measure the front of a run on its held-out images, and draw it.

    Each finished point is kept, so that an interruption loses at most one point; the same call
    continues. A front that has used up its time is recorded with the points that it has.

    Arguments:
        path: The run folder.
        protocol: As for :meth:`equipoise.fronts.front.Front.measure`, as are the last three.
        ends: As for :class:`equipoise.fronts.front.Front`; None: the run's learners.
        others: Run folders whose kept models are measured, too.
        batchnorm: Statistics of BatchNorm: averaged, or estimated anew; None: as for the class.
        data_dir: The folder of the data; by default that of the training.
        device: ``auto``, ``cpu`` or ``cuda``.
        console: Where progress is shown; by default nowhere.
        points: The largest number of models that are measured; None: 9, between three ends 15.
        beyond: How far beyond the ends gamma may go.
        limit: The seconds after which it stops; None: no limit.
        shard: The part of the held-out images on which models are measured here, for
            :func:`equipoise.jobs.front_shards.join_front`; None: all.
        fields: Other fields of the protocol.

    Returns:
        The front, as in ``front.json``; None: a part of the images was measured.

    Raises:
        UserError: If ends, images or settings are invalid, or another process measures there.
    """
    console = console or Console(quiet=True)
    asked = replace(protocol or Protocol(attacks=DEFAULT), **fields)
    deterministic()
    front = Front(
        path,
        ends=learners(Run.open(path)) if ends is None else ends,
        batchnorm=batchnorm,
        data_dir=data_dir,
        device=choose_device(device),
    )
    points = front.most(points, beyond)  # before the images are read
    front.run.again = command("front", front.run.path)
    images = front.images
    part = "" if shard is None else f"{shard} of "
    console.say(
        f"{part}the front of {front.run.path} between {' and '.join(front.ends.names)}, on "
        f"held-out images ({len(images.validation)} of "
        f"{len(images.train) + len(images.validation)}); no test images are used"
    )
    asked = _foreseen(front, asked, points, limit, 1 if shard is None else shard.of, console)
    kept = f"the finished points are kept; {front.run.again} with the same options continues"
    with signals.interrupting(), console.progress(), console.within(limit):
        try:
            given: dict[str, Any] = {"points": points, "beyond": beyond, "others": others}
            if shard is not None:
                measure_part(front, shard, asked, **given, console=console)
                return None
            front.measure(asked, **given, console=console)
        except TimeUp as stop:
            if not stop.finished:
                raise RunError(f"the time was over before a point was measured; {kept}") from None
            console.say(f"the time is over after {stop.finished} points; {kept}")
            if shard is not None:
                return None
        except KeyboardInterrupt:
            console.say(kept)
            raise
    return drawn(front.record, front.run, console)


def drawn(record: FrontRecord, run: Run, console: Console) -> FrontRecord:
    """Draw a measured front, and say where it is written; return it."""
    files = write_picture(record, run.path)
    console.say(f"written: {run.path / FILE}, {', '.join(map(str, files))}")
    return record


def _foreseen(
    front: Front,
    protocol: Protocol,
    points: int,
    limit: float | None,
    parts: int,
    console: Console,
) -> Protocol:
    """Say about how long a front will take; return its protocol, with a limit in small batches."""
    images, attacks = front.images, [*protocol.named.values()]
    usual = images.recipe.threat(images.dataset.eps)
    every = front.ends.protocols(protocol, usual, images.dataset.eps)
    threat = every[0].threat
    held_out = images.validation
    size = protocol.batch(held_out.x[:1])
    some = held_out.take(slice(size))
    model = front.ends.robust.model.to(front.device)
    n = points * (protocol.n or len(held_out)) * len(every) // parts
    most = whole(attacks, threat.norm, n)
    timed = pace(model, some.pixels(), some.y, threat, protocol.execution, most)
    if timed is None:
        return protocol
    if told := about(*timed.needed(attacks, threat.norm, n)):
        console.say(f"this takes {told} on this machine, less what is measured already")
    if limit is None:
        return protocol
    return replace(protocol, batch_size=timed.batch(attacks, threat.norm, size, limit))


def mark(path: Path, gamma: float, meaning: str) -> None:
    """Ring one model of a measured front in its record and its picture, and no other one."""
    record = FrontRecord.read(path)
    if record is not None:
        points = (replace(p, mark=meaning if p.gamma == gamma else "") for p in record.points)
        marked = replace(record, points=tuple(points))
        Run(path).write_json(FILE, marked.content())
        write_picture(marked, path)


def pick(
    path: str | Path,
    out: str | Path,
    *,
    ends: Sequence[str] | None = None,
    batchnorm: BatchNorms | None = None,
    data_dir: str | Path | None = None,
    device: str = "auto",
    model: nn.Module | str | None = None,
    trust: bool = False,
    console: Console | None = None,
    **constraint: Any,
) -> Picked:
    """Write the best measured model that meets a constraint as a finished run folder.

    Arguments:
        path: The run folder of the front.
        out: The new folder.
        ends: As for :class:`equipoise.fronts.front.Front`; None: as measured.
        batchnorm: Statistics of BatchNorm; None: as measured.
        data_dir: The folder of the data; by default that of the training.
        device: ``auto``, ``cpu`` or ``cuda``.
        model: For a model of the user's own: the model, or ``package.module:function``.
        trust: Whether to run the code that the folder names.
        console: Where the choice is shown; by default nowhere.
        constraint: As for :meth:`equipoise.fronts.front.Front.pick`.

    Returns:
        The picked model.

    Raises:
        UserError: If the constraint is invalid, nothing was measured, or ``out`` exists.
        RunError: If no measured model meets the constraint; nothing is written.
    """
    console = console or Console(quiet=True)
    place = Path(out)
    if not is_free(place):
        raise UserError(f"{place} exists; choose another --out, or remove it")
    deterministic()
    Run.open(path).allow(model, trust=trust, warn=console.warn)
    if isinstance(constraint.get("standard"), str | Path):
        Run.open(constraint["standard"]).allow(trust=trust, warn=console.warn)
    front = Front(
        path, ends=ends, batchnorm=batchnorm, data_dir=data_dir, device=choose_device(device)
    )
    picked = front.pick(**constraint)
    run = picked.write(place)
    console.say(f"picked {picked.choice}")
    if picked.choice.bound is not None:
        console.say(f"constraint: {picked.choice.constraint}")
    console.say(f"{run.path}/model.safetensors; next: {command('evaluate', run.path)}")
    return picked
