"""Joining the shards of an evaluation as a job."""

from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch

from equipoise import plugins
from equipoise.errors import RunError, UserError, one_line
from equipoise.evaluation.protocol import Protocol
from equipoise.jobs.evaluate import Evaluations, evaluate_run
from equipoise.jobs.shards import Part, joined, stored
from equipoise.jobs.target_model import Subject
from equipoise.terminal.progress import Console


def together() -> bool:
    """Wait until all processes of torchrun have come here; return whether this is the first one.

    Raises:
        RunError: If one of them has ended, so that torchrun ends all.
    """
    group = torch.distributed
    group.init_process_group("gloo", timeout=timedelta(days=7))
    try:
        group.barrier()
        return group.get_rank() == 0
    except RuntimeError as error:
        raise RunError(f"another process has ended: {one_line(error)}") from None
    finally:
        group.destroy_process_group()


def join_run(
    folder: str | Path,
    subject_of: Callable[[str], Subject],
    *,
    device: str = "auto",
    console: Console | None = None,
) -> list[dict[str, Any]]:
    """Join the shards in a run folder to whole evaluations, check them, and audit where asked.

    The verdicts are those of one evaluation of all images. The shards stay; joining them again
    changes nothing.

    Arguments:
        folder: The run folder.
        subject_of: From the name of weights to the model with its test images.
        device: ``auto``, ``cpu`` or ``cuda``.
        console: Where progress is shown; by default nowhere.

    Returns:
        The records of these evaluations, as of :func:`evaluate_run`.

    Raises:
        UserError: If shards are damaged or not of one evaluation, or the model or the images are
            not those that they are of.
        RunError: If shards are missing or not finished; the message names them.
    """
    console = console or Console(quiet=True)
    records: list[dict[str, Any]] = []
    for parts in stored(Path(folder)).values():
        about = parts[0].about
        subject = subject_of(about["weights"])
        with plugins.explained(about["asked"].get("import")):
            protocol = Protocol.of(about["asked"])
        _join(subject, protocol, about, parts, console, device)
        one = {"norm": about["norm"], "n": about["n"], "first": about["sample"]["seed"] is None}
        records += evaluate_run(
            subject,
            Protocol(**one),
            eps=[float(about["eps"])],
            resume=True,
            device=device,
            console=console,
        )
    return records


def _join(
    subject: Subject,
    protocol: Protocol,
    about: Mapping[str, Any],
    parts: list[Part],
    console: Console,
    device: str,
) -> None:
    """Write an evaluation that is complete but for its checks and its audit."""
    threat = protocol.threat
    job = Evaluations(subject, protocol, [threat], console, (), False, device)
    store, identity = job.store(threat), job.identity(threat)
    differs = [key for key, value in identity.items() if about.get(key) != value]
    if differs:
        names = " and ".join(key.removesuffix("_sha256") for key in differs)
        raise UserError(f"the shards of {store.name} were made with another {names}")
    with store.lock():
        before = job.before(store, identity)
        result = joined(parts).joined(before)
        content = {k: v for k, v in about.items() if k != "shard"} | {"finished": False}
        store.write(result, job.x, content, job.origin)
    console.say(f"{store.name}: {len(parts)} shards joined")
