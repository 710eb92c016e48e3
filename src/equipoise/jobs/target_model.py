"""The model to evaluate, of a run or of the user, with its test images."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from equipoise import data, plugins
from equipoise.data.core import Dataset
from equipoise.data.reading import HUB, Reading
from equipoise.errors import UserError
from equipoise.models import begin, library, origin
from equipoise.models.foreign import (
    MUTE,
    Asked,
    from_here,
    import_model,
    load_weights,
    put_in_front,
    weights_of,
)
from equipoise.models.library import library_of, package_versions
from equipoise.models.normalisation import Constants
from equipoise.models.programs import is_program, read_program
from equipoise.plugins import command
from equipoise.settings import recipe
from equipoise.store.runs import OWN, Run, is_free
from equipoise.store.sealed import file_digest
from equipoise.store.weight_names import canonical
from equipoise.terminal.progress import Console
from equipoise.threat import Norm

WAIT_SECONDS = 10.0
Load = Callable[[str], ModuleType]


@dataclass(frozen=True)
class Subject:
    """A model to evaluate.

    Arguments:
        run: The folder of the results.
        model: The model, in eval mode, on the CPU.
        dataset: The data; only its test images are used.
        norm: The default norm.
        eps: The default radius in that norm.
        which: The name of the weights: ``"model"`` for the kept ones; see
            :mod:`equipoise.store.weight_names`.
        source: The file of the code of the user's own model, and its SHA-256; None: none.
        given: The options that ``equipoise evaluate`` needs besides the folder.
    """

    run: Run
    model: nn.Module
    dataset: Dataset
    norm: Norm
    eps: float
    which: str = "model"
    source: dict[str, str] | None = None
    given: tuple[str, ...] = ()

    @property
    def resuming(self) -> str:
        """The command that continues an interrupted evaluation."""
        named = () if self.which == "model" else ("--weights", self.which)
        return command("evaluate", self.run.path, *self.given, *named, "--resume")


def open_folder(path: str | Path) -> Run:
    """Return the folder of a training, or of an evaluation of a user's own model."""
    return Run.open(path, ("recipe.yaml", OWN))


def of_run(
    path: str | Path,
    which: str,
    data_dir: str | Path | None,
    console: Console,
    *,
    model: nn.Module | str | None = None,
    trust: bool = False,
    dataset: Dataset | None = None,
) -> Subject:
    """Return the model of a folder of a training or of an earlier evaluation.

    Without ``trust`` no code is run because a folder names it.

    Arguments:
        path: The folder.
        which: The weights, by a name as for :meth:`equipoise.store.runs.Run.model`.
        data_dir: The folder of the data; None: that of the training.
        console: Where warnings are shown.
        model: For a model of the user's own: ``package.module:function``, or the model, again.
        trust: Whether to run the code that the folder names instead.
        dataset: For a training on data that were given from Python: the data.

    Raises:
        UserError: If there is no model, its data are missing or have changed, or the folder needs
            code that the user has not given.
    """
    run = open_folder(path)
    made = run.made_with()
    if dataset is not None:
        data.give(dataset)
    if (run.path / "recipe.yaml").is_file():
        run.allow(model, trust=trust, warn=console.warn)
        given: tuple[str, ...] = ("--trust",) if trust else ()
        given = ("--model", model) if isinstance(model, str) else given
        return _trained(run, which, data_dir, console, given)
    if trust:
        plugins.run_trusted(made, console.warn)
    if which != "model":
        raise UserError(
            f"{run.path} holds evaluations of a model of your own: it has no weights {which!r}"
        )
    spec = None if model is None else str(model)
    with plugins.explained(made):
        return _again(run, data_dir, console, spec, trust)


def _trained(
    run: Run,
    which: str,
    data_dir: str | Path | None,
    console: Console,
    given: tuple[str, ...],
) -> Subject:
    model, which = run.model(which), canonical(which)  # first: a wrong name loads no data
    settings = recipe.stored(run)
    dataset = settings.dataset(data_dir, console)
    trained = run.read_json("provenance.json").get("data", {}).get("sha256")
    if trained and trained != dataset.sha256:
        raise UserError(f"the data have changed since {run.path} was trained (checksums differ)")
    if not run.read_json("summary.json").get("finished"):
        this = "its best model so far" if which == "model" else which
        console.warn(
            f"the training {run.path} is not finished; this is {this}. "
            f"Continue with: {command('train', '--resume', run.path, *given)}"
        )
    if line := plugins.changed(run.made_with(), plugins.imported()):
        console.warn(f"{run.path}: {line}")
    threat = settings.threat(dataset.eps)
    spec = given[1] if given[1:] else settings.model
    own = origin.is_own(settings.model)
    source = plugins.source(spec.partition(":")[0]) if own else None
    return Subject(run, model, dataset, threat.norm, threat.eps, which, source, given)


def of_model(
    spec: str,
    *,
    weights: str | Path | None,
    data_name: str,
    data_dir: str | Path | None,
    out: Path | None,
    normalise: Asked = None,
    trust: bool = False,
    reading: Reading | None = None,
    console: Console | None = None,
) -> Subject:
    """Return a model of the user's own, with a folder for its results.

    Arguments:
        spec: ``package.module:function``, ``timm:NAME``, ``hf:NAME``, ``torchvision:NAME``, or
            the path of a program of ``torch.export`` or TorchScript.
        weights: A file of weights, or FILE:KEY; None: the function loads them itself, or they are
            those of the library.
        data_name: A dataset's name, or another one for :func:`equipoise.data.load`.
        data_dir: The folder of the data.
        out: The folder of the results; by default ``runs/`` with the function's name.
        normalise: As for :func:`equipoise.models.foreign.load_weights`.
        trust: Whether a program, which can run code while it is read, may be read.
        reading: How images in files are read.
        console: Shows how data, weights and normalisation were read; the folder's
            ``own-model.json`` has the lines on the last two, too.

    Raises:
        UserError: If model, weights or data are invalid, or the folder holds something else.
    """
    file, key = (None, "") if weights is None else weights_of(weights)
    spec = origin.absolute(str(Path(spec).expanduser().resolve()) if is_program(spec) else spec)
    remarks: list[str] = []
    console, reading = console or Console(quiet=True), (reading or Reading()).settled()
    how: dict[str, Any] = {"reading": reading, "console": console, "say": remarks.append}
    how["trust"] = trust
    model, dataset = own_model(spec, weights, normalise, data_name, data_dir, **how)
    folder = Path("runs") / re.sub(r"[^\w.-]+", ".", spec).strip(".") if out is None else out
    named = data_name in data.DATASETS or data_name.startswith(HUB)
    about = {
        "format": 1,
        "model": spec,
        "weights": str(file.absolute()) if file else None,
        "weights_key": key,
        "weights_sha256": file_digest(file) if file else None,
        "normalise": normalise.content() if isinstance(normalise, Constants) else normalise,
        "data": data_name if named else str(Path(data_name).absolute()),
        "data_dir": str(data_dir) if data_dir else None,
    } | ({"reading": reading.given()} if reading.given() else {})
    source = _source(spec)
    run = Run(folder)
    with run.lock("making it ready", "own", wait=WAIT_SECONDS):
        if is_free(folder):
            code = {"source": source, "import": plugins.imported()}
            code |= {"packages": package_versions(spec)} if library_of(spec) else {}
            run.write_json(OWN, {**about, **code, "remarks": remarks})
        stored = run.read_json(OWN)
    if not stored or any(stored.get(key) != about.get(key) for key in {*about, "reading"}):
        raise UserError(f"{folder} holds something else; choose another --out")
    for line in filter(None, [*remarks, plugins.changed(stored.get("source"), source)]):
        console.say(line)
    given = ("--model", spec, *(["--trust"] if is_program(spec) else []))
    return Subject(run, model, dataset, "linf", dataset.eps, source=source, given=given)


def _again(
    run: Run, data_dir: str | Path | None, console: Console, given: str | None, trust: bool
) -> Subject:
    about = run.read_json(OWN)
    missing = [key for key in ("model", "weights", "data") if key not in about]
    if missing:
        raise UserError(f"{run.path / OWN} is damaged: it lacks {', '.join(missing)}")
    spec, load = _trusted(run, about, trust) if given is None else (given, from_here)
    weights = Path(about["weights"]) if about["weights"] else None
    if weights and weights.is_file() and file_digest(weights) != about.get("weights_sha256"):
        raise UserError(f"{weights} has changed since {run.path} was evaluated")
    asked = about.get("normalise")
    normalise = Constants.of(asked) if isinstance(asked, dict) else asked
    file = f"{weights}:{about['weights_key']}" if about.get("weights_key") else weights
    place = data_dir or about["data_dir"]
    how: dict[str, Any] = {"reading": _reading(run, about), "console": console, "load": load}
    how["trust"] = trust
    model, dataset = own_model(spec, file, normalise, about["data"], place, **how)
    source = _source(spec)
    if line := plugins.changed(about.get("source"), source):
        console.warn(f"{run.path}: {line}")
    options: tuple[str, ...] = ("--trust",) if given is None else ("--model", spec)
    options = () if given is None and library_of(spec) else options
    return Subject(run, model, dataset, "linf", dataset.eps, source=source, given=options)


def _reading(run: Run, about: Mapping[str, Any]) -> Reading:
    try:
        return Reading(**about.get("reading", {}))
    except TypeError:
        raise UserError(f"{run.path / OWN} is damaged: {about['reading']!r:.100}") from None


def _trusted(run: Run, about: Mapping[str, Any], trust: bool) -> tuple[str, Load]:
    """Return the name of the model that a trusted folder names, and a function to import it."""
    spec, made = str(about["model"]), about.get("source")
    if library_of(spec) or (trust and is_program(spec)):
        return spec, from_here
    if not is_program(spec) and not re.fullmatch(r"[\w.]+:\w+", spec):
        raise UserError(f"{run.path / OWN} is damaged: its model is no package.module:function")
    if not trust:
        raise UserError(
            f"{run.path} was made with --model {spec} ({plugins.in_words(made)}), and no code is "
            f"run because a folder names it: look at it, then add --trust, or --model {spec}"
        )
    if not isinstance(made, Mapping) or "file" not in made:
        raise UserError(f"{run.path} does not have the file of {spec}: add --model {spec}")
    return spec, plugins.trusted_module(Path(str(made["file"])))


def own_model(
    spec: str,
    weights: str | Path | None,
    normalise: Asked,
    data_name: str,
    data_dir: Any,
    say: Callable[[str], None] = MUTE,
    load: Load = from_here,
    trust: bool = False,
    reading: Reading | None = None,
    console: Console | None = None,
) -> tuple[nn.Module, Dataset]:
    """Return a model of the user's own, and its data; the arguments are those of `of_model`."""
    dataset = data.load(data_name, data_dir, reading=reading, console=console)
    shape, first = (dataset.channels, *dataset.size), None
    how: dict[str, Any] = {"shape": shape, "say": say}
    if library_of(spec):
        made = library.make(spec, shape, pretrained=weights is None)
        network, first = made.network.eval(), made.constants
    elif is_program(spec):
        network = read_program(Path(spec).expanduser(), trust=trust)
    else:
        network = import_model(spec, load)
    model = network
    if weights is not None:
        model = load_weights(network, weights, normalise=normalise, **how)
    elif isinstance(normalise, Constants):
        model = put_in_front(network, normalise, **how)
    front = begin.of_library(first, normalise, shape, say) if model is network else None
    return (model if front is None else nn.Sequential(front, model).eval()).cpu(), dataset


def _source(spec: str) -> dict[str, str] | None:
    """Return the file that a model's code is in, and its SHA-256; None: no file of the user's."""
    if is_program(spec):
        return {"file": spec, "sha256": file_digest(Path(spec).expanduser())}
    return None if library_of(spec) else plugins.source(spec.partition(":")[0])
