"""Evaluations in shards: each machine attacks a part of the images, and joining gives the whole.

Shard k of N has every N-th image of the sample, from the k-th on, and a file of its own: no two
shards share a lock. Randomness is keyed by the image, so an image gets the verdict that it gets in
one evaluation of all (in float32). Checks look at all images: they follow when the shards are
joined. Audits draw from all that are left (:mod:`equipoise.jobs.audit_shards`).
"""

import os
import re
from collections.abc import Mapping, Sequence, Set
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from equipoise.data.rows import empty
from equipoise.errors import RunError, UserError
from equipoise.evaluation.outcome import COSTS, Outcome
from equipoise.evaluation.result import Result
from equipoise.evaluation.stored import Store
from equipoise.plugins import command
from equipoise.store.runs import Run
from equipoise.store.verdicts import FOLDER

SHARDS = f"{FOLDER}/shards"
MOST = 10_000
_OWN = ("shard", "finished", "asked", "batch_size")  # what need not be the same in all shards
_PARTS = ("y", "prediction", "x_adv", "margin", "adversarial_prediction", "distance")


class Shard(NamedTuple):
    """A part of the images of an evaluation.

    Arguments:
        number: Which part, from 1.
        of: The number of parts.
    """

    number: int
    of: int

    @classmethod
    def parse(cls, text: str) -> "Shard":
        """Return the shard of a text like ``3/8``.

        Raises:
            UserError: If it is none.
        """
        match = re.fullmatch(r"(\d{1,5})/(\d{1,5})", text.strip())
        number, of = (int(match[1]), int(match[2])) if match else (0, 0)
        if not 1 <= number <= of <= MOST:
            raise UserError(f"--shard expects K/N with 1 <= K <= N, like 3/8, got {text!r}")
        return cls(number, of)

    @classmethod
    def here(cls) -> "Shard | None":
        """Return the shard of a process of torchrun; None: it is not one of several."""
        size = int(os.environ.get("WORLD_SIZE", "1"))
        return cls(int(os.environ.get("RANK", "0")) + 1, size) if size > 1 else None

    @property
    def rows(self) -> slice:
        """Which images it has, as positions in the sample."""
        return slice(self.number - 1, None, self.of)

    def __str__(self) -> str:
        return f"shard {self.number} of {self.of}"

    def check(self, n: int) -> None:
        """Raise a UserError if there are too few images for so many shards."""
        if n < self.of:
            raise UserError(f"there are only {n} images for {self.of} shards: take fewer shards")

    def done(self, store: Store, about: Mapping[str, Any]) -> bool:
        """Return whether it is finished.

        Raises:
            UserError: If what is stored is a shard of another evaluation, or is damaged.
        """
        if not store.path.is_file():
            return False
        there = store.about()
        if names := differing(there, about):
            raise UserError(f"{store.path} is of another evaluation (another {names}): remove it")
        return bool(there["finished"])

    def store(self, whole: Store) -> Store:
        """Return the place of this part of an evaluation."""
        return Store(whole.run, f"{whole.name}-{self.number}-of-{self.of}", SHARDS)


class Part(NamedTuple):
    """A shard as it is stored.

    Arguments:
        shard: Which part it is.
        about: What the evaluation is of, and its options.
        result: The verdicts on its images.
    """

    shard: Shard
    about: Mapping[str, Any]
    result: Result


def are_there(run: Run) -> bool:
    """Return whether a run folder has shards of an evaluation."""
    return any((run.path / SHARDS).glob("*.safetensors"))


def stored(folder: Path) -> dict[str, list[Part]]:
    """Return the complete sets of shards in a run folder, by the name of the evaluation.

    Raises:
        UserError: If there are none, one is damaged, or they are not of one evaluation.
        RunError: If shards are missing or not finished; the message names them.
    """
    run, found = Run(folder), dict[str, list[Part]]()
    for path in sorted((run.path / SHARDS).glob("*.safetensors")):
        match = re.fullmatch(r"(.+)-(\d+)-of-(\d+)", path.stem)
        if match is None:
            raise UserError(f"{path} is no shard: its name does not end in -K-of-N")
        about, result, _ = Store(run, path.stem, SHARDS).read()
        shard = Shard.parse("/".join(map(str, about.get("shard", (0, 0)))))
        if (str(shard.number), str(shard.of)) != match.groups()[1:]:
            raise UserError(f"{path} holds {shard}: it was renamed")
        found.setdefault(match[1], []).append(Part(shard, about, result))
    if not found:
        raise UserError(
            f"there are no shards in {run.path / SHARDS}; make them with: "
            f"{command('evaluate', run.path, '--shard', '1/2')} (or front), or copy them there"
        )
    for name, parts in found.items():
        _check(run, name, parts)
    return found


def _check(run: Run, name: str, parts: Sequence[Part]) -> None:
    """Raise an error if parts are not all shards of one evaluation."""
    first, *others = parts
    for part in others:
        if part.shard.of != first.shard.of:
            raise UserError(
                f"{name} has shards of {first.shard.of} and of {part.shard.of}: remove those of "
                f"one kind from {run.path / SHARDS}"
            )
        if names := differing(first.about, part.about):
            raise UserError(
                f"{first.shard} and {part.shard} of {name} are not of one evaluation: they have "
                f"another {names}"
            )
    done = {part.shard.number for part in parts if part.about["finished"]}
    begun = {part.shard.number for part in parts}
    if message := lacking(done, begun, first.shard.of):
        raise RunError(f"{name}: {message}")


def lacking(done: Set[int], begun: Set[int], of: int) -> str:
    """Return in words which of so many shards are missing or not finished; empty: none."""
    left = [k for k in range(1, of + 1) if k not in done]
    if not left:
        return ""
    states = (f"{k} ({'not finished' if k in begun else 'missing'})" for k in left[:20])
    return (
        f"of {of} shards there are {len(done)}; {', '.join(states)}: "
        f"repeat the command of these with --shard {left[0]}/{of}"
    )


def differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """Return in words in what two shards are not of one evaluation; empty: they are."""
    first, second = ({**about["asked"], **about} for about in (one, other))
    keys = {*first, *second} - {*_OWN}
    differs = [key for key in keys if first.get(key) != second.get(key)]
    return " and ".join(key.removesuffix("_sha256") for key in sorted(differs))


def joined(parts: Sequence[Part]) -> Result:
    """Return the result on all images, from those on the images of all shards.

    Costs are summed. The checks have not run: an evaluation that continues it makes them.
    """
    ordered = sorted(parts, key=lambda part: part.shard)
    results = [part.result for part in ordered]
    shards = [part.shard for part in ordered]

    def whole(tensors: Sequence[Tensor]) -> Tensor:
        values = empty((sum(map(len, tensors)), *tensors[0].shape[1:]), tensors[0].dtype)
        for shard, tensor in zip(shards, tensors, strict=True):
            values[shard.rows] = tensor
        return values

    def outcome(name: str) -> Outcome:
        begun = [r.outcomes.get(name) or Outcome.begun(r.correct) for r in results]
        model = next(r.outcomes[name] for r in results if name in r.outcomes)
        drawn = [o.distortion for o in begun if o.distortion is not None]
        return replace(
            model,
            verdict=whole([o.verdict for o in begun]),
            attacked=whole([o.attacked for o in begun]),
            distortion=whole(drawn) if len(drawn) == len(begun) else None,
            finished=all(o.finished for o in begun),
            notes=tuple(dict.fromkeys(chain.from_iterable(o.notes for o in begun))),
            **{key: sum(getattr(o, key) for o in begun) for key in COSTS},
        )

    names = dict.fromkeys(chain.from_iterable(r.outcomes for r in results))
    values: dict[str, Any] = {key: whole([getattr(r, key) for r in results]) for key in _PARTS}
    return replace(
        results[0],
        **values,
        outcomes={name: outcome(name) for name in names},
        findings=(),
        memory=max(r.memory for r in results),
        audit=None,
    )
