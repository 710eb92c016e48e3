"""The run folder: how its files are written and read; ``docs/formats.md`` lists them.

Every file is written whole or not at all. The state of a training carries the SHA-256 of its
content: if it is damaged, the previous state is used.
"""

import hashlib
import io
import json
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from equipoise import models
from equipoise.errors import RunError, UserError
from equipoise.models.origin import Origin, allow, is_own
from equipoise.parsing import read_mapping
from equipoise.plugins import command, explained, run_trusted
from equipoise.store import files
from equipoise.store import weight_names as names
from equipoise.store.digests import model_digest
from equipoise.store.locks import free_of_locks, locked
from equipoise.store.sealed import file_digest

MAGIC = b"equipoise-state-1\n"
FORMAT = 1
PICKED = "picked.json"
OWN = "own-model.json"  # describes a model that was not trained here
HARDENING, HARDENED = "harden.json", "hardened"  # of a hardening: its record, and its model


class Run:
    """A run folder.

    Arguments:
        path: The folder.
    """

    again = ""
    """The command that continues the work in the folder, for messages."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r})"

    @classmethod
    def create(cls, path: str | Path, recipe: str) -> "Run":
        """Make a new run folder with its recipe, given as YAML.

        Raises:
            UserError: If it exists already, or cannot be written.
        """
        run = cls(path)
        if not is_free(run.path):
            raise UserError(
                f"{path} exists; choose another --out, or continue its training: "
                f"{command('train', '--resume', path)}"
            )
        try:
            run.write("recipe.yaml", recipe)
        except RunError as error:
            raise UserError(str(error)) from None
        return run

    @classmethod
    def open(cls, path: str | Path, signs: Sequence[str] = ("recipe.yaml",)) -> "Run":
        """Open a run folder; of a hardening that of its model.

        Arguments:
            path: The folder.
            signs: File names; a run folder has at least one of these files.

        Raises:
            UserError: If it is not a run folder.
        """
        run = cls(path)
        if not run.path.is_dir():
            raise UserError(f"no run folder at {path}")
        if (run.path / HARDENING).is_file():
            return cls.open(run.path / HARDENED, signs)
        if not any((run.path / sign).is_file() for sign in signs):
            raise UserError(f"{path} is not a run folder: it has no {' and no '.join(signs)}")
        return run

    @contextmanager
    def lock(
        self,
        doing: str = "training",
        name: str = "run",
        wait: float = 0.0,
        waiting: Callable[[], object] | None = None,
    ) -> Iterator[tuple[int, ...]]:
        """Lock the folder; to be called before any file is read that the work depends on.

        Arguments:
            doing: What is done in the folder, for the message.
            name: The name of the lock; locks with different names are independent.
            wait: How many seconds to wait for another process.
            waiting: Called once if it has to wait.

        Yields:
            Handles for child processes, which then hold the lock, too.

        Raises:
            UserError: If another process has the lock, or the folder cannot be written to.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot write to {self.path}: {error.strerror}") from None
        busy = f"another process is {doing} in {self.path}: wait until it has ended, or stop it"
        path = self.path / f".{name}.lock"
        with locked(path, busy, wait=wait, waiting=waiting) as handles:
            yield handles

    # Reading

    def read_json(self, name: str) -> dict[str, Any]:
        """Return the content of a JSON file of the folder; empty if there is no such file."""
        return read_mapping(self.path / name)

    def described(self) -> dict[str, str]:
        """Return the SHA-256 of the file that describes the training or the user's own model."""
        names = (name for name in ("recipe.yaml", OWN) if (self.path / name).is_file())
        return {n: file_digest(self.path / n) for n in names}

    def made_with(self) -> dict[str, Any] | None:
        """Return path and SHA-256 of the ``--import`` file of the folder; None: there was none."""
        for name in ("provenance.json", OWN):
            source = self.read_json(name).get("import")
            if isinstance(source, dict) and "file" in source:
                return source
        return None

    def allow(
        self,
        model: nn.Module | str | None = None,
        *,
        trust: bool = False,
        warn: Callable[[str], None],
    ) -> None:
        """Allow the code of the user's own that the folder needs, in this process.

        Arguments:
            model: The model that was trained on, or ``package.module:function``; None: not given.
            trust: Whether all code that the folder names may be run.
            warn: Shows a line if code has changed since.

        Raises:
            UserError: If a model is given that the folder does not need, or another one.
        """
        if trust:
            run_trusted(self.made_with(), warn)
        written = self.read_json("config.json").get("origin")
        origin = Origin.of(written) if isinstance(written, dict) and "model" in written else None
        if model is not None and not (origin and is_own(origin.model)):
            raise UserError(f"{self.path} has a model of its own: leave --model out")
        if origin and (line := allow(origin, model, trust=trust)):
            warn(f"{self.path}: {line}")

    def read_state(self, announce: Callable[[str], None]) -> dict[str, Any] | None:
        """Return the state of the training; if it is damaged, announce it and use the previous."""
        for name in ("state.pt", "state.previous.pt"):
            path = self.path / name
            if not path.exists():
                continue
            state = _read_state(path)
            if state is not None:
                return state
            spare = name == "state.pt" and (self.path / "state.previous.pt").exists()
            rest = ": using the previous state" if spare else ""
            announce(f"{path} is damaged (truncated or changed){rest}")
        return None

    # Writing

    def write(
        self, name: str, content: str | bytes | Callable[[BinaryIO], object], keep: str = ""
    ) -> None:
        """Write a file of the folder; ``keep`` is the new name of the file that is replaced.

        See :func:`equipoise.store.files.write`.
        """
        kept = self.path / keep if keep else None
        files.write(self.path / name, content, keep=kept, again=self.again)

    def write_json(self, name: str, content: Mapping[str, Any]) -> None:
        """Write a JSON file whole or not at all."""
        self.write(name, json.dumps(content, indent=2) + "\n")

    def write_lines(self, name: str, objects: list[dict[str, Any]]) -> None:
        """Write a file of JSON lines whole or not at all."""
        self.write(name, "".join(json.dumps(item) + "\n" for item in objects))

    def append_line(self, name: str, content: Mapping[str, Any]) -> None:
        """Append an object to a file of JSON lines; a line cut by a crash is dropped first."""
        files.append_line(self.path / name, content, self.again)

    def write_state(self, state: Mapping[str, Any]) -> None:
        """Save the state of the training, and keep the previous one."""
        buffer = io.BytesIO()
        torch.save(state, buffer)
        payload = buffer.getbuffer()
        head = MAGIC + hashlib.sha256(payload).digest()
        parts = (head, payload)
        self.write("state.pt", lambda file: file.writelines(parts), keep="state.previous.pt")

    def write_model(self, name: str, state: Mapping[str, Tensor]) -> None:
        """Write weights as safetensors."""
        values = {key: value.detach().cpu().contiguous() for key, value in state.items()}
        places = Counter(value.data_ptr() for value in values.values())  # of tied weights: copies
        tied = {key: v.clone() for key, v in values.items() if places[v.data_ptr()] > 1}
        self.write(name, save(values | tied))

    # The model

    def weights(self) -> list[str]:
        """Return the names of the weights that are stored."""
        return names.stored(self.path)

    def digest(self, which: str = "model") -> str:
        """Return the SHA-256 of weights: :func:`model_digest` of :meth:`model`."""
        written = self._digests().get(names.canonical(which))
        return model_digest(self.model(which)) if written is None else str(written)

    def _digests(self) -> dict[str, Any]:
        """Return the checksums that were written at the end of the training."""
        written = self.read_json("summary.json").get("sha256", {})
        return written if isinstance(written, dict) else {}

    def model(self, which: str = "model") -> nn.Module:
        """Return a trained model in eval mode.

        Arguments:
            which: ``"model"`` for the kept model, ``"last"`` for that of the last round,
                ``"round-005"`` for that of round 5, ``"learner-clean"`` for a learner, or
                ``"gamma-0.4"`` for a mix of the learners: see :mod:`equipoise.store.weight_names`.

        Raises:
            UserError: If there is no such model, or it is damaged.
        """
        which, stored = names.canonical(which), self.weights()
        gamma = names.gamma_of(which)
        if gamma is not None and names.mixable(stored):
            clean, robust = (self.model(name) for name in names.PAIR)
            clean.load_state_dict(names.mix(clean.state_dict(), robust.state_dict(), gamma))
            return clean
        config = self.read_json("config.json")
        if not stored or not config:
            raise UserError(
                f"{self.path} has no model yet; continue its training: "
                f"{command('train', '--resume', self.path)}"
            )
        if config.get("format") != FORMAT or not {"model", "settings"} <= set(config):
            raise UserError(
                f"{self.path}/config.json does not describe a model: expected format {FORMAT} "
                f"with model and settings, got format {config.get('format')}"
            )
        if which not in stored:
            raise UserError(f"{names.refusal(which, stored)} in {self.path}")
        path = self.path / f"{which}.safetensors"
        with explained(self.made_with()):
            try:
                state = load_file(path)
                self._refuse_misfit(config, state)
                model = self._built(config)
                model.load_state_dict(state)
            except (SafetensorError, RuntimeError, OSError) as error:
                line = " ".join(str(error).split())[:200]
                raise UserError(f"cannot read the weights in {path}: {line}") from None
        written = self._digests().get(which)
        if written is not None and written != model_digest(model):
            raise UserError(f"{path} is damaged: the checksum of its weights is wrong")
        return model.eval()

    def _built(self, config: Mapping[str, Any]) -> nn.Module:
        """Return a new model from the description in ``config.json``."""
        settings = config["settings"]
        if not isinstance(settings, dict):
            raise UserError(f"{self.path}/config.json: settings must be a mapping")
        try:
            if ":" in str(config["model"]):
                return Origin.of(config.get("origin")).build()
            return models.build(config["model"], settings)
        except UserError as error:
            raise UserError(f"{self.path}/config.json: {error}") from None

    def _refuse_misfit(self, config: Mapping[str, Any], state: Mapping[str, Tensor]) -> None:
        """Raise a RuntimeError if the shapes of weights do not fit ``config.json``.

        The model is made without memory for its weights, so that a large number in the file
        cannot exhaust the memory.
        """
        try:
            with torch.device("meta"), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                wanted = self._built(config).state_dict()
        except UserError:
            raise
        except Exception:  # a model of the user's own may not support this device
            return
        for name, value in wanted.items():
            if name in state and state[name].shape != value.shape:
                raise RuntimeError(f"the shape of {name} does not fit config.json")


def load(
    path: str | Path, which: str = "model", *, model: nn.Module | str | None = None
) -> nn.Module:
    """Return a trained model of a run folder, in eval mode, on the CPU.

    Arguments:
        path: The run folder.
        which: The name of the weights, as for :meth:`Run.model`.
        model: For a training on a model of the user's own: the model, or
            ``package.module:function``, again; neither is changed.
    """
    run = Run.open(path)
    if model is not None:
        run.allow(model, warn=warnings.warn)
    return run.model(which)


def is_free(path: Path) -> bool:
    """Return whether a path is free for a new folder: absent, or a folder without real files."""
    return not path.exists() or (path.is_dir() and free_of_locks(path))


def _read_state(path: Path) -> dict[str, Any] | None:
    """Return a saved state; None if it is damaged."""
    data = path.read_bytes()
    start = len(MAGIC) + 32
    digest, payload = data[len(MAGIC) : start], data[start:]
    if not data.startswith(MAGIC) or hashlib.sha256(payload).digest() != digest:
        return None
    return dict(torch.load(io.BytesIO(payload), weights_only=True, map_location="cpu"))
