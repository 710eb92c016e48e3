"""Training as a job: from a recipe to a run folder that can be interrupted and resumed."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from equipoise import data, plugins
from equipoise.data.core import Dataset
from equipoise.errors import UserError
from equipoise.jobs.choice import choose_gamma, in_lines
from equipoise.jobs.prolong import prolong, settle
from equipoise.jobs.show_data import keep_sheet
from equipoise.jobs.summary import cost_lines, kept_line, measured, summary, write_learners
from equipoise.jobs.together import again, folder, terminal
from equipoise.jobs.trackers import Rounds, Tracker
from equipoise.jobs.training_job import TrainingJob
from equipoise.models import origin
from equipoise.plugins import command
from equipoise.settings import earlier
from equipoise.settings import recipe as recipes
from equipoise.settings.recipe import Recipe
from equipoise.settings.schema import differences
from equipoise.store.digests import model_digest
from equipoise.store.runs import PICKED, Run
from equipoise.terminal.progress import Console
from equipoise.training import processes
from equipoise.training.ranks import Ranks

OnRound = Callable[[Mapping[str, Any]], object]


def train(
    recipe: Recipe | str,
    out: str | Path,
    *,
    model: nn.Module | str | None = None,
    dataset: Dataset | None = None,
    console: Console | None = None,
    track: Sequence[str | Tracker] = (),
    on_round: OnRound | None = None,
    parallel: str = "auto",
    **settings: Any,
) -> Run:
    """Train what a recipe describes, in a new run folder.

    Example:
        >>> run = eq.train("a3gt", "runs/x", model=net, data="photos/", rounds=20)

    Arguments:
        recipe: What to train; or the name of a method, with settings of a recipe.
        out: The run folder; it must not exist, or be empty.
        model: The model to start from, in place of the recipe's; it is copied. Its folder cannot
            build it again: whoever reads the folder later gives the model again. With the name of
            a method also the name of a model.
        dataset: The data in place of the recipe's, likewise.
        console: Where progress is shown; by default nowhere.
        track: Trackers, by name or as objects: see :mod:`equipoise.jobs.trackers`.
        on_round: Called with the record of each round (epoch), a line of ``log.jsonl``.
        parallel: Under torchrun, what its processes divide: ``data``, ``learners`` or ``auto``.
        settings: With the name of a method: data, weights and other settings of a recipe.

    Returns:
        The run, with the kept model and all its records.

    Raises:
        UserError: If the recipe, the data or the folder does not fit; nothing was started.
        RunError: If the training failed or was interrupted; the folder can be resumed.
    """
    out, trackers = Path(out), Rounds(track, on_round)
    _refuse_picked(out)
    if isinstance(model, str):
        model, settings = None, {**settings, "model": model}
    recipe = recipes.of(recipe, settings)
    with processes.together() as ranks, ExitStack() as held:
        console, run = terminal(console, ranks), folder(out, ranks)
        if again(run):
            if dataset is not None:
                data.give(dataset)
            run.allow(model, warn=console.warn)
            job = _continued(run, console, ranks, held, parallel=parallel)
        else:
            recipe = replace(
                recipe,
                model=recipe.model if model is None else origin.name_of(model),
                data=recipe.data if dataset is None else data.give(dataset),
            )
            # before the folder: it may fail
            job = ranks.meet(lambda: TrainingJob(run, recipe, console, ranks, parallel, model))
            ranks.compare(job.facts)
            ranks.lead(lambda: _begin(job, held))
        return _trained(job, trackers)


def _trained(job: TrainingJob, trackers: Rounds) -> Run:
    """Train to the end, and return the run."""
    if job.run_to_end(trackers if job.ranks.first else Rounds()):
        job.ranks.lead(lambda: _finish(job))
    return job.run


def _finish(job: TrainingJob) -> None:
    """Write the summary, the learners and the choice of gamma; say what there is."""
    write_learners(job.run, job.training)
    run, choice = job.run, None
    if job.recipe.settings.chooses:
        choice = choose_gamma(run, job.training, job.recipe, job.console)
    content = summary(job.training, job.rule, choice)
    if job.recipe.reserve:
        alone = replace(job.validate, ranks=Ranks())
        content["measured"] = measured(run, alone, job.split)
    content["sha256"] = {name: model_digest(run.model(name)) for name in run.weights()}
    job.run.write_json("summary.json", content)
    for warning in content["warnings"]:
        job.console.warn(warning)
    kept = job.training.history[content["kept_round"] - 1]
    round_ = kept_line(kept, job.rule, classes=job.unequal)
    for line in in_lines(choice) if choice else [round_]:
        job.console.say(line)
    job.console.say(f"the model: {job.run.path}/model.safetensors")
    for line in cost_lines(content):
        job.console.say(line)
    if choice:
        pick = command("pick", job.run.path, *job.words)
        job.console.say(f"another one: {pick} --min-clean 0.9")
    job.console.say(f"next: {command('evaluate', job.run.path, *job.words)}")


def _begin(job: TrainingJob, held: ExitStack) -> None:
    """Make the folder of a new training, and lock it."""
    path = job.run.path
    if (path / "recipe.yaml").is_file():
        there = recipes.parse(earlier.renewed(recipes.read(path / "recipe.yaml"), job.run))
        changed = differences(there.to_dict(), job.recipe.to_dict())
        if changed:
            raise UserError(
                f"{path} belongs to another recipe ({'; '.join(changed)}): choose another"
            )
    held.enter_context(job.run.lock())
    Run.create(path, job.recipe.to_yaml())
    job.run.write_json("provenance.json", job.provenance())
    keep_sheet(job.run, job.dataset, job.training.augment)


def resume(
    path: str | Path,
    *,
    rounds: int | None = None,
    model: nn.Module | str | None = None,
    dataset: Dataset | None = None,
    trust: bool = False,
    console: Console | None = None,
    track: Sequence[str | Tracker] = (),
    on_round: OnRound | None = None,
    parallel: str = "auto",
) -> Run:
    """Continue an interrupted training; it ends with the weights of an uninterrupted one.

    Arguments:
        path: The run folder.
        rounds: For a finished training: the new number of rounds, those that are done included.
            See :mod:`equipoise.settings.longer`.
        model: For a training on a model of the user's own: the model, or package.module:function.
        dataset: For a training on data that were given from Python: the data.
        trust: Whether to run the code that the folder names.
        console: Where progress is shown; by default nowhere.
        track: Trackers, which may be others than before.
        on_round: Called with the record of each further round.
        parallel: Under torchrun, what its processes divide; it may be others than before.
    """
    path, trackers = Run.open(path).path, Rounds(track, on_round)
    _refuse_picked(path)
    with processes.together() as ranks, ExitStack() as held:
        console, run = terminal(console, ranks), folder(path, ranks)
        run.allow(model, trust=trust, warn=console.warn)
        if dataset is not None:
            data.give(dataset)
        job = _continued(run, console, ranks, held, rounds, parallel)
        return _trained(job, trackers)


def _continued(
    run: Run,
    console: Console,
    ranks: Ranks,
    held: ExitStack,
    rounds: int | None = None,
    parallel: str = "auto",
) -> TrainingJob:
    """Return a training in the state that was saved; its folder is locked."""
    ranks.lead(lambda: _prepare(run, rounds, console, held))
    job = ranks.meet(lambda: _restored(run, console, ranks, parallel))
    ranks.compare(job.facts)
    return job


def _prepare(run: Run, rounds: int | None, console: Console, held: ExitStack) -> None:
    """Lock a folder whose training goes on, and give it more rounds if that is asked for."""
    held.enter_context(run.lock())
    finished = run.read_json("summary.json").get("finished")
    old = earlier.outdated(recipes.read(run.path / "recipe.yaml"))
    if old and not finished:
        raise UserError(
            f"{run.path} was begun by an earlier version ({old}): finish it with that "
            "version, or train anew"
        )
    if rounds is not None:
        prolong(run, rounds, console.say)
    settle(run, run.read_state(lambda line: None) or {})


def _restored(run: Run, console: Console, ranks: Ranks, parallel: str) -> TrainingJob:
    """Return a training with its saved state; without a readable one it begins anew."""
    state = run.read_state(console.warn)
    begun = {} if state is None else run.read_json("config.json")
    recipe = recipes.stored(run)
    origin.check_given(recipe.model)
    job = TrainingJob(run, recipe, console, ranks, parallel, None, begun)
    before = run.read_json("provenance.json")
    if not before:
        run.write_json("provenance.json", job.provenance())
    job.compare(before)
    if state is None:
        console.warn(f"{run.path} has no readable state: starting from the beginning")
    else:
        trained = recipes.parse(earlier.renewed(state["recipe"], run))
        changed = differences(trained.to_dict(), job.recipe.to_dict())
        if changed:
            raise UserError(
                f"recipe.yaml was changed after {run.path} was started ({'; '.join(changed)})"
            )
        job.training.load_state_dict(state)
    line = plugins.changed(before.get("import"), plugins.imported())
    if line:
        console.warn(f"{run.path}: {line}")
        run.write_json("provenance.json", {**before, "resumed_with": plugins.imported()})
    return job


def _refuse_picked(folder: Path) -> None:
    """Raise a UserError for the folder of a picked model, which no training made."""
    if (folder / PICKED).is_file():
        raise UserError(
            f"{folder} holds a model that was picked from a front (see {PICKED}), not a training: "
            "train with another --out, or pick again"
        )
