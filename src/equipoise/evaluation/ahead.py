"""Images that were attacked ahead of an audit, in shards.

Which images an audit draws follows from its nonce and from what the search left, so every shard
can attack its part of them before the audit runs. The audit then takes over what it asks for, in
its own order. What it does not ask for, because something was found earlier, does not count.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from equipoise.errors import UserError
from equipoise.evaluation.result import Ahead
from equipoise.evaluation.stored import Store
from equipoise.store.runs import Run
from equipoise.store.verdicts import FOLDER

AHEAD = f"{FOLDER}/shards/audit"


def path_of(whole: Store, stage: str, rows: Sequence[int]) -> Store:
    """Return the place of what a stage finds on some images ahead of an audit."""
    short = stage.rpartition("/")[2]
    return Store.by_key(whole.run, {"rows": [*rows]}, AHEAD, f"{whole.name}-{short}-")


def read(
    run: Run, name: str, about: Mapping[str, Any], warn: Callable[[str], None]
) -> dict[str, list[Ahead]]:
    """Return what was attacked ahead of the audit of an evaluation, by stage.

    Arguments:
        run: The run folder.
        name: The name of the evaluation.
        about: What the evaluation is of; files of another one are left out, with a warning.
        warn: Shows a sentence.

    Raises:
        UserError: If a file is damaged.
    """
    found: dict[str, list[Ahead]] = {}
    for path in sorted((run.path / AHEAD).glob(f"{name}-*.safetensors")):
        there, result, _ = Store(run, path.stem, AHEAD).read()
        same = ("model_sha256", "data_sha256", "labels_sha256", "norm", "eps", "weights")
        if any(there.get(key) != about.get(key) for key in same):
            warn(f"{path} is of another evaluation: it does not count")
            continue
        stage, rows = str(there.get("stage")), torch.tensor(there.get("rows", []))
        if len(rows) != len(result.y):
            raise UserError(f"{path} is damaged (its rows are not those of its images); remove it")
        if stage in result.outcomes:
            every = found.setdefault(stage, [])
            known = [each.rows[each.outcome.attacked] for each in every]
            new = ~torch.isin(rows, torch.cat(known)) if known else torch.ones_like(rows).bool()
            every.append(Ahead(rows[new], result.at(new), result.at(new).outcomes[stage]))
    return found
