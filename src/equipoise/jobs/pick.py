"""Picking a model from a measured front as a job: into a folder like any other run's."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from equipoise import plugins
from equipoise.errors import UserError
from equipoise.fronts.front import Front
from equipoise.fronts.line import BatchNorms
from equipoise.fronts.picking import Picked
from equipoise.jobs.device import choose_device, deterministic
from equipoise.plugins import command
from equipoise.store.runs import Run, is_free
from equipoise.terminal.progress import Console


def pick(
    path: str | Path,
    out: str | Path,
    *,
    ends: Sequence[str] | None = None,
    batchnorm: BatchNorms | None = None,
    data_dir: str | Path | None = None,
    device: str = "auto",
    trust: bool = False,
    console: Console | None = None,
    **constraint: Any,
) -> Picked:
    """Write the best measured model that meets a constraint as the folder of a finished run.

    Arguments:
        path: The run folder of the front.
        out: The folder to make.
        ends: As for :class:`equipoise.fronts.front.Front`; None: those that were measured.
        batchnorm: None: as was measured.
        data_dir: The folder of the data; by default that of the training.
        device: ``auto``, ``cpu`` or ``cuda``.
        trust: Whether to run the file of ``--import`` that the folder names.
        console: Where it is said what was picked; by default nowhere.
        constraint: As for :meth:`equipoise.fronts.front.Front.pick`.

    Returns:
        What was picked.

    Raises:
        UserError: If the constraint will not do, nothing was measured, or ``out`` is there.
        RunError: If no measured model meets the constraint; nothing is written.
    """
    console = console or Console(quiet=True)
    place = Path(out)
    if not is_free(place):
        raise UserError(f"{place} exists; choose another --out, or remove it")
    deterministic()
    if trust:
        plugins.run_trusted(Run.open(path).made_with(), console.warn)
    front = Front(
        path, ends=ends, batchnorm=batchnorm, data_dir=data_dir, device=choose_device(device)
    )
    picked = front.pick(**constraint)
    run = picked.write(place)
    console.say(f"picked {picked.choice}")
    if picked.choice.bound is not None:
        console.say(f"asked for: {picked.choice.constraint}")
    console.say(f"{run.path}/model.safetensors; next: {command('evaluate', run.path)}")
    return picked
