"""Reproducing the paper's tables and figures: plans of the package, and a report of them."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from equipoise import data
from equipoise.errors import UserError
from equipoise.paper.page import build
from equipoise.plans.engine import run_plans
from equipoise.plans.keys import resources as needed
from equipoise.plans.plan import Plan
from equipoise.plans.prepare import Datasets, tasks
from equipoise.plans.reproductions import EXPERIMENTS, plans
from equipoise.plans.results import Experiment
from equipoise.terminal.progress import Console


def reproduce(
    experiments: Sequence[str],
    scale: str,
    out: Path,
    *,
    only: Sequence[str] = (),
    files: Mapping[str, Path] | None = None,
    on: str = "local:1",
    resources: str | None = None,
    data_dir: Path | None = None,
    slice_: bool = False,
    plan_only: bool = False,
    command: str,
    console: Console,
) -> Path | None:
    """Make some of the paper's tables and figures; continue what was begun.

    The arguments are the options of ``equipoise reproduce``, and the command that repeats it.

    Returns:
        The page; None with ``plan_only``.

    Raises:
        UserError: If data, names or folder cannot be used; nothing was started.
        RunError: If runs failed or a signal stopped it; all results are kept.
    """
    folder = out / (f"{scale}-slice" if slice_ else scale)
    chosen = plans(scale, experiments, only=only, slice_=slice_, files=files)
    run_plans(
        _experiments(chosen, folder, data_dir, command, console),
        folder,
        title=f"Reproducing, scale {scale}",
        on=on,
        resources=needed(resources, on),
        plan_only=plan_only,
        console=console,
        ended=lambda interrupted: build(folder),
    )
    if plan_only:
        return None
    page = folder / "index.html"
    console.say(f"report: {page}; tables and figures as text: {folder}/results.md")
    return page


def _experiments(
    chosen: Mapping[str, Sequence[Plan]],
    folder: Path,
    data_dir: Path | None,
    command: str,
    console: Console,
) -> list[Experiment]:
    """Return the experiments; a plan without its data is left out with a warning.

    A missing ``.npz`` file is an error.
    """
    made, problems, datasets = list[Experiment](), list[str](), Datasets(data_dir)
    for name, some in chosen.items():
        missing, parts = dict[str, None](), []
        for plan in some:
            dataset = plan.entries[0].settings["data"]
            try:
                datasets.load(dataset, datasets.folder)
            except UserError as error:
                if dataset not in data.DATASETS:
                    raise
                missing[f"{name}: {plan.title} is left out: {error}"] = None
            else:
                parts.append((plan, tasks(plan, folder / "trainings" / plan.name, datasets)))
        problems += missing
        if parts:
            of = EXPERIMENTS[name], folder / name, command, parts, [*missing], folder.name
            made.append(Experiment(name, *of))
    if not made:
        raise UserError("; ".join(problems))
    for line in problems:
        console.warn(line)
    return made
