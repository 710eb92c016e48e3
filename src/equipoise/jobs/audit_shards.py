"""The audit of an evaluation in shards: each machine attacks its part of the images that it draws.

This follows the search: it needs the files of all its shards. Which images the audit will ask for
is found by running it without attacks, where what is unknown counts as robust. Joining runs the
audit itself; it takes over what is there, and attacks what is not.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from equipoise import plugins
from equipoise.errors import RunError, UserError
from equipoise.evaluation import ahead
from equipoise.evaluation.evaluate import evaluate_by
from equipoise.evaluation.protocol import Protocol
from equipoise.evaluation.saving import evaluate_and_save
from equipoise.evaluation.stored import Store
from equipoise.jobs import signals
from equipoise.jobs.evaluate import Evaluations
from equipoise.jobs.join import together
from equipoise.jobs.shards import Part, Shard, joined, stored
from equipoise.jobs.target_model import Subject
from equipoise.terminal.progress import Console, TimeUp

ROUNDS = 3  # after which joining does what the misses of an audit ask for


def audit_parts(
    folder: str | Path,
    subject_of: Callable[[str], Subject],
    shard: Shard,
    *,
    alone: bool,
    limit: float | None = None,
    since: float = 0.0,
    device: str = "auto",
    console: Console | None = None,
) -> bool:
    """Attack a part of all audits; under torchrun all processes do so, until nothing is missing.

    Arguments:
        folder: As for :func:`audit_part`, as are the next two and the last two.
        subject_of: The model of an evaluation.
        shard: The part of the images.
        alone: Whether no torchrun runs the other shards.
        limit: The seconds after which it stops; None: no limit.
        since: When they began, by :func:`time.monotonic`.
        device: ``auto``, ``cpu`` or ``cuda``.
        console: Where progress is shown; by default nowhere.

    Returns:
        Whether this process joins the shards.
    """
    first = not alone and together()
    for _ in range(ROUNDS):
        rest = None if limit is None else max(limit - (time.monotonic() - since), 0.0)
        given: dict[str, Any] = {"limit": rest, "device": device, "console": console}
        lacked = audit_part(folder, subject_of, shard, **given)
        if alone or not lacked:
            break
        first = together()
    return first


def audit_part(
    folder: str | Path,
    subject_of: Callable[[str], Subject],
    shard: Shard,
    *,
    limit: float | None = None,
    device: str = "auto",
    console: Console | None = None,
) -> bool:
    """Attack a part of the images that the audits of all evaluations in shards will ask for.

    An interrupted call is continued by the same one.

    Arguments:
        folder: The run folder, with the files of all shards.
        subject_of: As for :func:`equipoise.jobs.join.join_run`.
        shard: The part of the images that is attacked here.
        limit: The seconds after which it stops; None: no limit.
        device: ``auto``, ``cpu`` or ``cuda``.
        console: Where progress is shown; by default nowhere.

    Returns:
        Whether any shard lacked images before. It is the same for all shards that have the same
        files.

    Raises:
        UserError: If shards are damaged or not of one evaluation.
    """
    console = console or Console(quiet=True)
    try:
        every = stored(Path(folder))
    except RunError as missing:
        console.say(
            f"an audit follows the searches of all shards ({missing}); with their files here the "
            "same command attacks its part of the audit"
        )
        return False
    lacked = False
    for parts in every.values():
        about = parts[0].about
        with plugins.explained(about["asked"].get("import")):
            protocol = Protocol.of(about["asked"])
        if protocol.audited is None or parts[0].shard.of != shard.of:
            continue
        subject = subject_of(about["weights"])
        job = Evaluations(
            subject, protocol, [protocol.threat], Console(quiet=True), (), False, device
        )
        with signals.interrupting(), console.progress(), console.within(limit):
            try:
                lacked = _attack(job, parts, shard, console) or lacked
            except TimeUp:
                console.say(f"the time is over: the audit of {shard} is not finished")
    return lacked


def _attack(job: Evaluations, parts: Sequence[Part], shard: Shard, console: Console) -> bool:
    """Attack the part of one evaluation; return whether images were missing before."""
    threat, about, asked = job.threats[0], parts[0].about, job.protocol
    whole, identity = job.store(threat), job.identity(threat)
    if names := [key for key, value in identity.items() if about.get(key) != value]:
        named = " and ".join(key.removesuffix("_sha256") for key in names)
        raise UserError(f"the shards of {whole.name} were made with another {named}")
    before = job.before(whole, identity)
    if before is not None and before.audit is not None and before.audit.finished:
        return False
    begun, others = joined(parts).joined(before), job.others(threat, None)[0]
    missing: list[dict[str, list[int]]] = []
    tried: set[str] = set()
    while True:
        found = ahead.read(job.subject.run, whole.name, identity, console.warn)
        wanting: dict[str, list[int]] = {}
        evaluate_by(
            replace(asked, checks=False),
            job.model,
            job.x,
            job.y,
            begun=begun,
            others=others,
            warm=True,
            ahead=found,
            wanting=wanting,
            classes=job.subject.dataset.classes,
        )
        missing.append(wanting)
        own = {
            stage: [r for r in rows if r % shard.of == shard.number - 1]
            for stage, rows in wanting.items()
        }
        todo = [
            (stage, rows, ahead.path_of(whole, stage, rows)) for stage, rows in own.items() if rows
        ]
        todo = [(stage, rows, store) for stage, rows, store in todo if store.name not in tried]
        if not todo:
            break
        stage, rows, store = todo[0]
        tried.add(store.name)
        console.say(f"{shard}, audit: {stage} on {len(rows)} images")
        _run(job, stage, rows, store, {**about, "stage": stage, "rows": rows}, console)
    console.say(f"the audit of {shard} is done; then: {plugins.command('join', whole.run.path)}")
    return any(missing[0].values())


def _run(
    job: Evaluations,
    stage: str,
    rows: list[int],
    store: Store,
    about: Mapping[str, Any],
    console: Console,
) -> None:
    """Run one stage of an audit, or of its search, on some of the images."""
    asked, index = job.protocol, torch.tensor(rows, device=job.y.device)
    assert asked.audited is not None, "see audit_part"
    name, _, spec = asked.audited
    norm = asked.threat.norm
    attacks = {each.name: each.attack for each in asked.stages}
    audits = [*spec.auditor(norm).items(), *spec.probes(norm).items()]
    attacks |= {f"{name}/{short}": attack for short, attack in audits}
    with store.lock():
        before = store.read()[1] if store.path.is_file() else None
        evaluate_and_save(
            replace(
                asked, attacks={stage: attacks[stage]}, individual=None, nonce=None, checks=False
            ),
            job.model,
            job.x[index],
            job.y[index],
            store=store,
            about=about,
            origin=job.origin,
            console=console,
            before=before,
            resume=before is not None,
            again="the same command",
            advance=lambda progress: console.attack(replace(progress, finished=False)),
            classes=job.subject.dataset.classes,
        )
