"""A front in shards: each machine measures the models on a part of the held-out images.

The models are a plan that does not depend on results, as no shard knows those of the others: the
ones that are always measured first, and then the middles of the widest gaps. Warm starts are by
image, so that an image gets the verdict that it gets on one machine with the same plan. Joining
puts the parts of each model together, audits where that is asked for, and writes the front; then
``equipoise front`` may add models between those that differ most.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from equipoise.errors import RunError, UserError
from equipoise.evaluation.protocol import Protocol
from equipoise.evaluation.stored import FRONT, Store
from equipoise.fronts.front import Front
from equipoise.fronts.held_out import same_images
from equipoise.fronts.record import FINEST, FrontRecord, Place
from equipoise.fronts.survey import PARTS, Survey
from equipoise.jobs.device import choose_device, deterministic
from equipoise.jobs.shards import Part, Shard, joined, lacking
from equipoise.plugins import command, explained, imported
from equipoise.store.runs import Run
from equipoise.terminal.progress import Console


def spread(first: Sequence[Place], points: int) -> list[Place]:
    """Return the first models, and the middles of the widest gaps, up to a number of models.

    Of equal gaps the one nearest to the robust end is halved first. Between three ends the first
    models are all.

    Raises:
        UserError: If there are more first models.
    """
    places = [*first]
    if len(places) > points:
        gammas = ", ".join(f"{place[0]:g}" for place in places)
        raise UserError(f"points must be at least {len(places)}, for gamma = {gammas}")
    while len(places[0]) == 1 and len(places) < points:
        gaps = [(b[0] - a[0], a[0]) for a, b in pairwise(sorted(places))]
        width, left = max((round(width, 6), left) for width, left in gaps)
        if width < 2 * FINEST - 1e-12:
            break
        places.append((round(left + width / 2, 6),))
    return places


def measure_part(
    front: Front,
    shard: Shard,
    protocol: Protocol,
    *,
    points: int,
    beyond: float,
    others: Sequence[str | Path],
    console: Console,
) -> None:
    """Measure all models of a front on a part of the held-out images; finished ones are kept.

    Raises:
        UserError: If there are too few images, or what is stored is a shard of another front.
        TimeUp: If the time is over.
    """
    runs = [Run.open(other) for other in others]
    same_images(front.run, runs)
    places = spread(front.first(points, beyond), points)
    plan = {
        "ends": front.ends.content(),
        "batchnorm": front.batchnorm,
        "points": [list(place) for place in places],
        "others": [str(other) for other in others],
        "asked": protocol.content() | {"import": imported()},
        "data": front.images.dataset.sha256,
    }
    survey = front.survey(protocol, console, {"shard": [*shard], "front": plan})
    shard.check(survey.n)
    with Run(front.run.path / FRONT).lock(f"measuring {shard}", f"{shard.number}-of-{shard.of}"):
        for store in _files(front.run, shard):
            if names := _differing(store.about()["front"], plan):
                raise UserError(
                    f"{shard} in {store.path.parent} is of another front (another {names}): "
                    f"remove *-{shard.number}-of-{shard.of}.safetensors there"
                )
        survey.measure(places, runs)
    console.say(f"{shard} is done; then: {command('join', front.run.path)}")


def _files(run: Run, shard: Shard | None = None) -> list[Store]:
    ending = "*" if shard is None else f"*-{shard.number}-of-{shard.of}"
    paths = sorted((run.path / PARTS).glob(f"{ending}.safetensors"))
    return [Store(run, path.stem, PARTS) for path in paths]


def _differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """Return in words in what two shards are not of one front; empty: they are."""
    first, second = ({**plan["asked"], **plan, "asked": None} for plan in (one, other))
    keys = {*first, *second} - {"batch_size"}
    return " and ".join(sorted(key for key in keys if first.get(key) != second.get(key)))


def front_is_there(run: Run) -> bool:
    """Return whether a run folder has shards of a front."""
    return bool(_files(run))


def join_front(
    folder: str | Path,
    *,
    data_dir: str | Path | None = None,
    device: str = "auto",
    console: Console | None = None,
) -> FrontRecord:
    """Join the shards of a front in a run folder, and write the front.

    The shards stay; joining them again changes nothing.

    Returns:
        The front.

    Raises:
        UserError: If there are no shards, they are damaged or not of one front, or ends or images
            are not those that they are of.
        RunError: If shards are missing or not finished; the message names them.
    """
    console = console or Console(quiet=True)
    run = Run.open(folder)
    files = [(store, store.about()) for store in _files(run)]
    if not files:
        raise UserError(
            f"there are no shards in {run.path / PARTS}; make them with: "
            f"{command('front', run.path, '--shard', '1/2')}, or copy them there"
        )
    plan, (number, of) = files[0][1]["front"], files[0][1]["shard"]
    for store, about in files:
        if about["shard"][1] != of:
            raise UserError(
                f"{run.path / PARTS} has shards of {of} and of {about['shard'][1]}: remove those "
                "of one kind"
            )
        if names := _differing(plan, about["front"]):
            raise UserError(
                f"{Shard(number, of)} and {Shard(*about['shard'])} of the front in {run.path} are "
                f"not of one front: they have another {names} ({store.path.name})"
            )
    ends = [end["name"] for end in plan["ends"]]
    deterministic()
    given: dict[str, Any] = {"data_dir": data_dir, "device": choose_device(device)}
    front = Front(folder, ends=ends, batchnorm=plan["batchnorm"], **given)
    for what, there, here in (
        ("ends", plan["ends"], front.ends.content()),
        ("data", plan["data"], front.images.dataset.sha256),
    ):
        if there != here:
            raise UserError(f"the shards of the front in {run.path} were made with other {what}")
    with explained(plan["asked"].get("import")):
        survey = front.survey(Protocol.of(plan["asked"]), console)
    places, others = [tuple(place) for place in plan["points"]], [*map(Run.open, plan["others"])]
    with Run(run.path / FRONT).lock("measuring the front"):
        _join(survey, places, others, of, console)
        return survey.front(places, len(places), front.marks, others)


def _join(
    survey: Survey, places: Sequence[Place], others: Sequence[Run], of: int, console: Console
) -> None:
    """Write each model's evaluation on all images, from those on the parts.

    What an earlier front has measured on all images is not touched.
    """
    run, done, begun = survey.run, set(range(1, of + 1)), set[int]()
    wanted = [store for store in survey.stores(places, others) if not store.finished]
    parts = {
        store: [_part(run, store, Shard(k, of)) for k in range(1, of + 1)] for store in wanted
    }
    for every in parts.values():
        there = [part for part in every if part is not None]
        begun |= {part.shard.number for part in there}
        done &= {part.shard.number for part in there if part.about["finished"]}
    if message := lacking(done, begun, of):
        raise RunError(f"the front in {run.path}: {message}")
    for store, every in parts.items():
        there = [part for part in every if part is not None]
        about = {k: v for k, v in there[0].about.items() if k not in ("shard", "front")}
        finished = survey.protocol.audited is None  # else the audit follows
        store.write(joined(there), survey.x, about | {"finished": finished}, survey.origin)
    console.say(f"the front in {run.path}: {of} shards of {len(places)} models joined")


def _part(run: Run, store: Store, shard: Shard) -> Part | None:
    place = Store(run, f"{store.name}-{shard.number}-of-{shard.of}", PARTS)
    if not place.path.is_file():
        return None
    about, result, _ = place.read()
    if tuple(about["shard"]) != shard:
        raise UserError(f"{place.path} holds {Shard(*about['shard'])}: it was renamed")
    return Part(shard, about, replace(result, findings=()))
