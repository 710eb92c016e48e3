"""Writing a card: what is stored of a run and its evaluations, for strangers to check."""

import inspect
import json
import sys
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch

from equipoise.card import claims, describe, envelope, pack
from equipoise.card.pack import Pack
from equipoise.card.pages import pages
from equipoise.card.schema import FILE, CardPack, ModelCard, load, parse
from equipoise.errors import RunError, UserError
from equipoise.evaluation.stored import Store
from equipoise.jobs import verify_stored
from equipoise.jobs.target_model import open_folder
from equipoise.models import MODELS
from equipoise.models.origin import is_own
from equipoise.plugins import command, source
from equipoise.sample import digests
from equipoise.store import files
from equipoise.store.audit import check_nonce
from equipoise.store.runs import OWN, Run
from equipoise.store.sealed import file_digest, weights_digest
from equipoise.store.verdicts import UNREADABLE, Evaluation, read
from equipoise.store.weight_names import canonical
from equipoise.terminal.progress import Console
from equipoise.version import __version__

BYTE = np.float32(255)


def write_card(
    path: str | Path,
    out: str | Path,
    *,
    which: str = "model",
    key: Path | None = None,
    date: str | None = None,
    console: Console | None = None,
) -> ModelCard:
    """Write the card of a model: all its evaluations, and their adversarial examples.

    Nothing is measured, and the same run has the same card to the bit.

    Arguments:
        path: The run folder.
        out: The folder of the card, a new one.
        which: The weights, by a name as for :meth:`equipoise.store.runs.Run.model`.
        key: The file of a private key; None: the card is not signed.
        date: A date for the card; None: it has none.
        console: Where progress is shown; by default nowhere.

    Raises:
        UserError: If there is no evaluation, or the folder of the card is not free.
        RunError: If what is stored does not follow from the verdicts.
    """
    console = console or Console(quiet=True)
    run, which = open_folder(path), canonical(which)
    if key is not None:
        envelope.sign({}, {}, key)  # first: a wrong key costs no time
    stores = [store for store in Store.all(run) if store.about()["weights"] == which]
    if not stores:
        again = command("evaluate", run.path, *(["--weights", which] if which != "model" else []))
        raise UserError(f"{run.path} holds no evaluation of its weights {which}; run: {again}")
    with files.whole(Path(out)) as folder:
        card = _written(run, which, stores, folder, key, date, console)
    for problem in card.problems:
        console.warn(problem)
    return card


def _written(
    run: Run,
    which: str,
    stores: Sequence[Store],
    folder: Path,
    key: Path | None,
    date: str | None,
    console: Console,
) -> ModelCard:
    """Write the files of a card."""
    evaluations, packs, shape, grids = [], [], (0,), set[str | None]()
    for store in stores:
        evaluation, made, grid = _packed(store)
        content = made.content()
        file = f"pack/{store.name}.safetensors"
        files.write(folder / file, content)
        evaluations.append(evaluation)
        packs.append(_described(evaluation, made, file, content))
        shape, grids = made.examples.shape[1:], grids | {grid}
        console.say(f"{store.name}: {evaluation.n} images, {len(made.examples)} examples")
    model = _model(run, which, evaluations)
    grid = grids.pop() if len(grids) == 1 else None
    card = describe.card_of(run.path, model, shape, grid, evaluations, packs, date)
    written = {FILE: json.dumps(card.content, indent=1).encode() + b"\n"}
    try:
        parse(written[FILE])
    except ValueError as error:
        raise UserError(f"no card can be made of {run.path}: {error}") from None
    written |= pages(card)
    if key is not None:
        roots = {each.name: each.pack.root for each in card.evaluations}
        predicate = {"format": card.format, "complete": card.complete, "roots": roots}
        written[envelope.FILE] = envelope.sign(claims.subjects_of(card, written), predicate, key)
    for name, content in written.items():
        files.write(folder / name, content)
    return card


def write_excerpt(
    path: Path, out: Path, *, examples: int, nonce: str, console: Console | None = None
) -> ModelCard:
    """Write a card with some of the examples, whose paths lead to the roots of the whole card.

    Arguments:
        path: The folder of a card with all examples.
        out: The folder of the excerpt, a new one.
        examples: How many examples of each evaluation are taken.
        nonce: Any text; it determines which ones.
        console: Where progress is shown; by default nowhere.

    Raises:
        UserError: If there is no such card, or the folder is not free.
    """
    console, card = console or Console(quiet=True), load(path)
    if examples < 1:
        raise UserError(f"--examples must be at least 1, got {examples}")
    check_nonce(nonce)
    with files.whole(out) as folder:
        for each in card.evaluations:
            every, _ = pack.read(path, each)
            if every.paths is not None:
                raise UserError(f"{path} is an excerpt itself; take one of the whole card")
            part = every.excerpt(examples, nonce)
            files.write(folder / each.pack.file, part.content())
            console.say(f"{each.name}: {len(part.examples)} of {len(every.examples)} examples")
        for name in (FILE, envelope.FILE, *pages(card)):  # nothing else that lies there
            if (path / name).is_file():
                files.write(folder / name, (path / name).read_bytes())
    return card


def _packed(store: Store) -> tuple[Evaluation, Pack, str | None]:
    """Return an evaluation, its pack, and the grid of its images, all checked."""
    if store.busy:
        raise UserError(f"{store.name} is being evaluated; make the card when it has ended")
    about, result, tensors = store.read()
    if "x" not in tensors:
        raise UserError(f"{store.name} is large and not finished: finish it first")
    if wrong := verify_stored.claims(store, about, result, tensors):
        raise RunError(f"no card is made of what was changed: {store.name}: {'; '.join(wrong)}")
    try:
        evaluation = read(store.path)
    except UNREADABLE as error:
        raise UserError(f"{store.path} is damaged ({error})") from None
    x, first = tensors["x"].numpy(), describe.broken_by(evaluation.verdicts)
    examples = result.x_adv[torch.from_numpy(first >= 0)].numpy()
    made = Pack.of(
        digests(x), result.y.numpy(), result.prediction.numpy(), first, digests(examples), examples
    )
    nearest = np.rint(x * BYTE)
    on_grid = bool((nearest / BYTE == x).all())
    return evaluation, made, "1/255" if on_grid else None


def _described(evaluation: Evaluation, made: Pack, file: str, content: bytes) -> CardPack:
    verdicts, about = evaluation.verdicts, evaluation.about
    threat = describe.threat_of(verdicts.norm, verdicts.eps)
    names = list(verdicts.outcomes)
    given = evaluation.name, threat, evaluation.model_sha256, about["data_sha256"], names
    (root,) = made.roots(evaluation.n, pack.head(*given))
    return CardPack(
        file=file,
        sha256=sha256(content).hexdigest(),
        root=root.hex(),
        images=evaluation.n,
        examples=len(made.examples),
    )


def _model(run: Run, which: str, evaluations: list[Evaluation]) -> dict[str, Any]:
    """Return the fields of :class:`equipoise.card.schema.CardModel`."""
    evaluated = {each.model_sha256 for each in evaluations}
    own, trained = run.read_json(OWN), (run.path / "recipe.yaml").is_file()
    config = run.read_json("config.json")
    file = run.path / f"{which}.safetensors"
    if trained and file.is_file():
        evaluated |= {weights_digest(file)}
    if len(evaluated) > 1:
        raise UserError(
            f"the weights {which} of {run.path} have changed since they were evaluated; evaluate "
            f"them again: {command('evaluate', run.path)}"
        )
    weights = Path(str(own.get("weights"))) if own.get("weights") else None
    name, spec = str(config.get("model")), str(own.get("model"))
    versions = evaluations[-1].versions
    code, function = versions.get("source"), not trained or is_own(name)
    return {
        "weights": which,
        "sha256": evaluated.pop(),
        "file": (file.name if file.is_file() else None) if trained else weights and weights.name,
        "file_sha256": (file_digest(file) if file.is_file() else None)
        if trained
        else own.get("weights_sha256"),
        "kind": "function" if function else "registered",
        "source": name if trained else spec,
        "settings": None if function else config.get("settings"),
        "code": _recorded(code) if function else code_of(name),
        "package": f"equipoise {__version__}",
    }


def code_of(name: str) -> dict[str, str] | None:
    """Return the source file of a registered network, as it is now."""
    if name not in MODELS:
        return None
    make = MODELS[name][0]
    module = inspect.getmodule(getattr(make, "func", make))
    now = source(module.__name__) if module and module.__name__ in sys.modules else None
    return now and {"file": Path(now["file"]).name, "sha256": now["sha256"], "recorded": "card"}


def _recorded(made: Any) -> dict[str, str] | None:
    """Return the source file of a user's own model, as it was when it was evaluated."""
    if not isinstance(made, Mapping) or "file" not in made:
        return None
    name, digest = Path(str(made["file"])).name, str(made["sha256"])
    return {"file": name, "sha256": digest, "recorded": "evaluation"}
