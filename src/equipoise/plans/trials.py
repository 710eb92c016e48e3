"""The trials of a sweep in a journal of Optuna, which several processes share.

Every operation appends lines of JSON to ``journal.log``. Whoever asks for a trial or tells its
results holds the lock of the folder. The settings of a trial follow from the seed, its number and
the trials that are finished: a search that was killed goes on as if it had not been.

References:
    | Multiobjective tree-structured Parzen estimator (Ozaki et al., 2020)
    | https://doi.org/10.1145/3377930.3389817
    | Optuna (Akiba et al., 2019), https://doi.org/10.1145/3292500.3330701
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from equipoise.errors import RunError, UserError, one_line
from equipoise.parsing import lines
from equipoise.plans.space import Dimension, Space
from equipoise.settings.schema import differences, plain
from equipoise.training.learner import derived_seed

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

JOURNAL, NAME, ABOUT = "journal.log", "sweep", "about"
RANDOM = 10  # trials with random settings, before others follow from their results
DAMAGE = (ValueError, TypeError, LookupError, AttributeError, AssertionError, RuntimeError)

Counts = dict[str, dict[str, int]]
"""By ``validation`` and ``reserve``: ``n``, and how many images the model classifies correctly,
``clean`` and under the attack (``robust``)."""


@dataclass(frozen=True)
class Trial:
    """A trial as it is in the journal.

    Arguments:
        number: Its number, from 0.
        settings: The values of the searched settings.
        state: ``open`` (running, or interrupted), ``complete`` or ``failed``.
        measured: Of a complete trial: how many images are correct.
        reason: Why it failed.
    """

    number: int
    settings: Mapping[str, Any]
    state: str
    measured: Counts
    reason: str = ""


class Journal:
    """The journal of a folder; None for ``path``: a search in memory, of which nothing is kept.

    Arguments:
        path: The file.
        space: The searched settings.
        seed: The seed of the search.
        about: What the trials have in common; a journal of others is refused.
        locked: Locks the folder against other processes.

    Raises:
        UserError: If the journal is damaged, or of another sweep.
    """

    def __init__(
        self,
        path: Path | None,
        space: Space,
        seed: int,
        about: Mapping[str, Any],
        locked: Callable[[], AbstractContextManager[object]] = nullcontext,
    ) -> None:
        self.path, self.space, self.seed, self.locked = path, space, seed, locked
        self.distributions = {name: _distribution(each) for name, each in space.items()}
        with locked():
            self.study = _study(path)
            there = self.study.user_attrs.get(ABOUT)
            if there is None:
                self.study.set_user_attr(ABOUT, plain(about))
            elif changed := differences(there, plain(about)):
                raise UserError(
                    f"{path} is of another sweep ({'; '.join(changed)}): choose another --out"
                )

    def trials(self) -> list[Trial]:
        """Return the trials by number."""
        notes, trials = self.study.user_attrs, list[Trial]()
        for trial in self.study.get_trials(deepcopy=False):
            if trial.params.keys() != self.space.keys():
                continue  # its process was killed while its settings were drawn
            state = {"COMPLETE": "complete", "FAIL": "failed"}.get(trial.state.name, "open")
            values = {name: self._value(name, trial.params[name]) for name in self.space}
            note = notes.get(str(trial.number), {})
            measured, reason = note.get("measured", {}), note.get("reason", "")
            trials.append(Trial(trial.number, values, state, measured, reason))
        return trials

    def ask(self, most: int) -> Trial | None:
        """Return a new trial; None: there are ``most`` already."""
        from optuna.samplers import TPESampler

        with self._writing():
            count = len(self.trials())
            if count >= most:
                return None
            seed = derived_seed(self.seed, "trial", count) % 2**32
            self.study.sampler = TPESampler(seed=seed, n_startup_trials=RANDOM)
            number = self.study.ask(self.distributions).number
            return next(trial for trial in self.trials() if trial.number == number)

    def tell(self, number: int, measured: Counts | None, reason: str = "") -> None:
        """Note the results of a running trial, once; None: it failed."""
        from optuna.trial import TrialState

        with self._writing():
            if any(trial.number == number and trial.state != "open" for trial in self.trials()):
                return
            note = {"reason": reason} if measured is None else {"measured": measured}
            self.study.set_user_attr(str(number), note)
            if measured is None:
                self.study.tell(number, state=TrialState.FAIL)
            else:
                self.study.tell(number, [*accuracies(measured["validation"])])

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Lock the folder; an error of the disk is one line."""
        try:
            with self.locked():
                yield
        except OSError as error:
            raise RunError(
                f"{self.path} cannot be written ({error.strerror or error}): what has ended is "
                "kept; once that is solved, repeat the command"
            ) from None

    def _value(self, name: str, stored: Any) -> Any:
        """Return the value of a setting from what the journal has."""
        choices = self.space[name].choices
        return choices[[*map(_plain, choices)].index(stored)] if choices else stored


def check_optuna() -> None:
    """Raise a UserError if Optuna is not installed."""
    if find_spec("optuna") is None:
        raise UserError("a sweep needs a package more: pip install 'equipoise[sweep]'")


def accuracies(counts: Mapping[str, int]) -> tuple[float, float]:
    """Return the clean and the robust accuracy."""
    return counts["clean"] / counts["n"], counts["robust"] / counts["n"]


def _study(path: Path | None) -> Any:
    """Return the study in a journal, or a new one."""
    import optuna
    from optuna.storages.journal import JournalFileBackend, JournalStorage

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    both: Any = {"directions": ["maximize", "maximize"], "study_name": NAME}
    if path is None:
        return optuna.create_study(**both)
    _mend(path)
    try:
        storage = JournalStorage(JournalFileBackend(str(path)))
        study = optuna.create_study(storage=storage, load_if_exists=True, **both)
        study.get_trials(deepcopy=False)
    except DAMAGE as error:
        raise UserError(
            f"{path} is damaged ({one_line(error)}): restore it from a copy, or choose another "
            "--out; the runs in it are whole"
        ) from None
    return study


def _mend(path: Path) -> None:
    """Cut off a last line that is incomplete, as a crash leaves it.

    Raises:
        UserError: If another line is no JSON.
    """
    lines(path, lambda line: line)
    content = path.read_bytes() if path.is_file() else b""
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        with path.open("r+b") as file:
            file.truncate(whole)


def _distribution(dimension: Dimension) -> "BaseDistribution":
    """Return the values of a setting as Optuna has them."""
    from optuna.distributions import (
        CategoricalDistribution,
        FloatDistribution,
        IntDistribution,
    )

    if dimension.choices:
        return CategoricalDistribution([*map(_plain, dimension.choices)])
    low, high, log, step = dimension.low, dimension.high, dimension.log, dimension.step
    if isinstance(low, int) and isinstance(high, int):
        return IntDistribution(low, high, log=log, step=int(step or 1))
    return FloatDistribution(low, high, log=log, step=step)


def _plain(value: Any) -> Any:
    """Return a value as Optuna takes it: a list as text."""
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)
