"""Trackers: programs that draw the rounds of trainings, like TensorBoard and MLflow.

A tracker that fails costs one warning, never the training. Each round (epoch) is logged once, also
where a training was interrupted and continued.
"""

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from equipoise.errors import UserError, nearest, one_line
from equipoise.report.wording import flatten
from equipoise.store.runs import Run

PROJECT = "equipoise"
Settings = Mapping[str, str]


class Tracker(Protocol):
    """What a tracker does; one of your own may be given to ``eq.train``."""

    def start(self, run: Path, identity: str, settings: Settings, first: int) -> None:
        """Begin, or go on.

        Arguments:
            run: The run folder.
            identity: The same whenever this training is continued.
            settings: The settings of the recipe, by their dotted names.
            first: The first round that will be logged.
        """

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Log the numbers of a round."""

    def end(self) -> None:
        """Close what was opened."""


class TensorBoard:
    """Event files in the folder ``tensorboard`` of the run."""

    def start(self, run: Path, identity: str, settings: Settings, first: int) -> None:
        """Open a new file; what others hold from round ``first`` on is hidden."""
        del identity
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(run / "tensorboard"), purge_step=first)
        table = "\n".join(f"    {name}: {value}" for name, value in settings.items())
        self.writer.add_text("recipe", table)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Write a scalar for each number."""
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def end(self) -> None:
        """Close the file."""
        self.writer.close()


class MLflow:
    """A run in the experiment ``equipoise``, at the place of ``MLFLOW_TRACKING_URI``."""

    def start(self, run: Path, identity: str, settings: Settings, first: int) -> None:
        """Find the run of this training, or create one."""
        del first
        from mlflow import MlflowClient

        self.client = MlflowClient()
        there = self.client.get_experiment_by_name(PROJECT)
        place = there.experiment_id if there else self.client.create_experiment(PROJECT)
        runs = self.client.search_runs([place], f"tags.{PROJECT} = '{identity}'")
        new = not runs
        if new:
            runs = [self.client.create_run(place, tags={PROJECT: identity}, run_name=run.name)]
        self.run = runs[0].info.run_id
        for name, value in settings.items() if new else ():
            self.client.log_param(self.run, _plain(name), value[:500])

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Log each number as a metric."""
        for name, value in values.items():
            self.client.log_metric(self.run, _plain(name), value, step=step)

    def end(self) -> None:
        """End the run."""
        self.client.set_terminated(self.run)


class WeightsAndBiases:
    """A run in the project ``equipoise`` of Weights & Biases, or of Trackio, which has its calls.

    Arguments:
        package: ``wandb`` or ``trackio``.
    """

    def __init__(self, package: str) -> None:
        self.package = package

    def start(self, run: Path, identity: str, settings: Settings, first: int) -> None:
        """Begin a run, or resume it."""
        del first
        more = {"id": identity, "dir": str(run)} if self.package == "wandb" else {}
        name = run.name if self.package == "wandb" else f"{run.name}-{identity[:8]}"
        module = import_module(self.package)
        self.module = module
        module.init(project=PROJECT, name=name, config=dict(settings), resume="allow", **more)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Log the numbers."""
        self.module.log(dict(values), step=step)

    def end(self) -> None:
        """End the run."""
        self.module.finish()


TRACKERS: dict[str, Callable[[], Tracker]] = {
    "tensorboard": TensorBoard,
    "wandb": lambda: WeightsAndBiases("wandb"),
    "mlflow": MLflow,
    "trackio": lambda: WeightsAndBiases("trackio"),
}
"""The trackers by name; each name is also that of its package, and of the extra."""


def tracker(which: str | Tracker) -> Tracker:
    """Return a tracker by its name, or an own one as it is.

    Raises:
        UserError: If there is no such tracker, or its package is missing.
    """
    if not isinstance(which, str):
        return which
    if which not in TRACKERS:
        raise UserError(nearest(which, TRACKERS, "tracker"))
    if find_spec(which) is None:
        raise UserError(f"--track {which} needs a package more: pip install 'equipoise[{which}]'")
    return TRACKERS[which]()


class Rounds:
    """Passes each round of a training on to trackers, and to a function.

    Arguments:
        track: Names of trackers, or trackers.
        on_round: Called with the record of a round, a line of ``log.jsonl``, once it is saved. An
            error in it ends the training, which can be resumed.

    Raises:
        UserError: If there is no such tracker, or its package is missing.
    """

    def __init__(
        self,
        track: Sequence[str | Tracker] = (),
        on_round: Callable[[Mapping[str, Any]], object] | None = None,
    ) -> None:
        self.trackers = [tracker(which) for which in track]
        self.on_round = on_round
        self.warn: Callable[[str], None] = lambda line: None

    @contextmanager
    def running(
        self, run: Run, settings: Mapping[str, Any], first: int, warn: Callable[[str], None]
    ) -> Iterator[None]:
        """Start the trackers, and end them after the block.

        Arguments:
            run: The run folder.
            settings: The recipe.
            first: The first round that will be passed on.
            warn: Shows a line about a tracker that failed.
        """
        self.warn = warn
        begun = run.read_json("provenance.json").get("started")
        identity = hashlib.sha256(f"{run.path.resolve()} {begun}".encode()).hexdigest()[:32]
        given = dict(flatten(settings))
        self._each(lambda each: each.start(run.path, identity, given, first))
        try:
            yield
        finally:
            self._each(lambda each: each.end())

    def pass_on(self, record: Mapping[str, Any]) -> None:
        """Pass a round on."""
        values = dict(numbers(record))
        self._each(lambda each: each.log(record["round"], values))
        if self.on_round is not None:
            self.on_round(record)

    def _each(self, do: Callable[[Tracker], None]) -> None:
        """Do something with each tracker; one that fails is not used again."""
        for each in [*self.trackers]:
            try:
                do(each)
            except Exception as error:  # of whatever kind: it is another program
                self.trackers.remove(each)
                name = getattr(each, "package", type(each).__name__)
                self.warn(f"{name} failed and is not used further: {one_line(error)}")


def numbers(record: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """Yield the numbers of a record by names like ``global/clean_accuracy``; no flags."""
    for key, value in record.items():
        if isinstance(value, Mapping):
            yield from numbers(value, f"{prefix}{key}/")
        elif type(value) in (int, float) and prefix + key not in ("round", "rounds"):
            yield f"{prefix}{key}", float(value)


def _plain(name: str) -> str:
    """Return a name with the characters that MLflow takes."""
    return re.sub(r"[^\w\-./ ]", "_", name)
