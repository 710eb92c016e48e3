"""More rounds for a finished training; the finished run stays, whole, in a folder of its own.

In this order, so that a process that is killed at any time loses nothing: the finished run is
copied, the state and then the recipe get the new number of rounds, and what belongs to the former
model alone (summary, evaluations, front, learners) is removed beside its copy.
"""

import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from equipoise.errors import RunError, UserError
from equipoise.plugins import command
from equipoise.settings import earlier
from equipoise.settings import recipe as recipes
from equipoise.settings.longer import longer, what_becomes
from equipoise.settings.recipe import Recipe
from equipoise.settings.schema import differences
from equipoise.store import files
from equipoise.store.runs import Run

FINISHED = "finished-"
STAYS: tuple[str, ...] = ("recipe.yaml", "provenance.json", "config.json", "log.jsonl")
STAYS += ("model.safetensors", "last.safetensors", "tensorboard", "wandb")
FORMER = "former_recipe"
"""In ``state.pt`` until the first save of a longer training: the recipe before."""


def prolong(run: Run, rounds: int, say: Callable[[str], None]) -> None:
    """Give a finished training more rounds; nothing is trained yet.

    Arguments:
        run: Its folder, locked.
        rounds: The new number of rounds, those that are done included.
        say: Shows a line of what becomes of learning rate, t' and gamma.

    Raises:
        UserError: If the training is not finished, or has as many rounds.
    """
    state = run.read_state(say)
    old = recipes.stored(run)
    if state is not None and state["recipe"].get("rounds") == rounds:
        settle(run, state)  # asked for before, and stopped
        return
    written = recipes.read(run.path / "recipe.yaml")
    if earlier.outdated(written):
        raise UserError(f"{run.path} was made by an earlier version: it cannot be trained longer")
    if not run.read_json("summary.json").get("finished"):
        raise UserError(
            f"{run.path} is not finished: first {command('train', '--resume', run.path)}, then "
            "give it more rounds"
        )
    if state is None:
        raise UserError(f"{run.path} has no readable state from which it could go on")
    history = state["history"]
    done, start = len(history), history[-1]["start"]["round"]
    new = longer(old, rounds, done, start)
    kept = run.path / f"{FINISHED}{done:03d}"
    if not kept.exists():
        _copy(run.path, kept)
    run.write_state({**state, "recipe": new.to_dict(), FORMER: old.to_dict()})
    settle(run, run.read_state(say) or {})
    say(f"the finished run of {done} rounds, its evaluations and its front: {kept}")
    for line in what_becomes(new, done, start):
        say(line)


def settle(run: Run, state: Mapping[str, Any]) -> Recipe:
    """Return the recipe of a run; finish what a killed :func:`prolong` has left.

    Arguments:
        run: The folder, locked.
        state: Its state.
    """
    there = recipes.stored(run)
    if FORMER not in state:
        return there
    new = recipes.parse(earlier.renewed(state["recipe"], run))
    if not differences(state[FORMER], there.to_dict()):
        run.write("recipe.yaml", new.to_yaml())
        there = new
    if not differences(new.to_dict(), there.to_dict()):
        _clear(run.path)
    return there


def _copy(folder: Path, to: Path) -> None:
    """Copy a finished run, without the state of its training and earlier finished runs."""

    def left_out(where: str, names: list[str]) -> list[str]:
        top = Path(where) == folder
        return [
            name
            for name in names
            if name.startswith(".") or (top and name.startswith((FINISHED, "state")))
        ]

    try:
        with files.whole(to) as work:
            shutil.copytree(folder, work, ignore=left_out, copy_function=_same)
    except (OSError, shutil.Error) as error:
        raise RunError(f"cannot copy the finished run to {to}: {error}") from None


def _same(source: str, to: str) -> None:
    """Link a file that is only ever replaced; copy one that lines are added to."""
    if source.endswith(".jsonl"):
        shutil.copy2(source, to)
        return
    try:
        os.link(source, to)
    except OSError:  # not every file system has links
        shutil.copy2(source, to)


def _clear(folder: Path) -> None:
    """Remove what belongs to the finished model alone; a copy of it is there."""
    for path in folder.iterdir():
        name = path.name
        if name in STAYS or name.startswith((".", "state", "round-", FINISHED)):
            continue
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
