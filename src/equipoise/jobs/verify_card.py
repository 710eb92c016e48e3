"""Verifying a card: from nothing but the card, the model and the images.

Each point has a name: what fails is named, and what was not checked is said. Without the model the
signature, checksums, roots and counts are checked; with it every row, and the examples are judged
again as in :mod:`equipoise.jobs.verify`.
"""

import re
import secrets
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from equipoise import data, plugins
from equipoise.card import claims, envelope, pack
from equipoise.card.pack import Pack
from equipoise.card.pages import pages
from equipoise.card.schema import FILE, CardEvaluation, ModelCard, load
from equipoise.data.core import Dataset, Images
from equipoise.data.reading import Reading, is_own
from equipoise.data.sampling import drawn_again
from equipoise.errors import RunError, UserError, short
from equipoise.evaluation.judge import Judge, ties
from equipoise.jobs.device import choose_device, deterministic
from equipoise.jobs.target_model import own_model
from equipoise.jobs.verify_card_audit import repeat, replay
from equipoise.jobs.verify_stored import missing_stages
from equipoise.models.normalisation import Constants
from equipoise.models.origin import is_own as is_own_model
from equipoise.sample import digests
from equipoise.store.audit import check_nonce
from equipoise.store.digests import model_digest, tensor_digest
from equipoise.store.runs import OWN, Run
from equipoise.terminal.progress import Console
from equipoise.threat import NORMS, Threat
from equipoise.version import __version__


@dataclass
class CardVerified:
    """The verification of a card.

    Arguments:
        card: The card.
        problems: The problems of each point that was checked, by its name; none if it holds.
        unchecked: Why a point was not checked, by its name.
        examples: How many examples were judged again.
        ties: How many of them are misclassified by less than rounding.
    """

    card: ModelCard
    problems: dict[str, list[str]] = field(default_factory=dict)
    unchecked: dict[str, str] = field(default_factory=dict)
    examples: int = 0
    ties: int = 0

    def check(self, name: str, found: Iterable[str]) -> None:
        """Note the problems of a point."""
        self.problems.setdefault(name, []).extend(found)

    @property
    def wrong(self) -> list[str]:
        """The problems, each with the name of its point."""
        return [f"{name}: {line}" for name, lines in self.problems.items() for line in lines]

    def lines(self) -> Iterator[str]:
        """Yield a line for each point, and for each evaluation if all points hold."""
        for name, found in self.problems.items():
            yield f"{name}: {'; '.join(found) or 'holds'}"
        for name, why in self.unchecked.items():
            yield f"{name}: NOT CHECKED, {why}"
        if "examples" in self.problems:
            by = f", {self.ties} of them by less than rounding" if self.ties else ""
            yield f"{self.examples} examples were judged again: they fool the model{by}"
        for each in self.card.evaluations if not self.wrong else ():
            if worst := each.worst:
                more = f"; {each.audit['sentence']}" if each.audit else ""
                yield (
                    f"{each.name}: robust accuracy at most {worst.accuracy:.2%} "
                    f"({worst.robust} of {worst.n}), {each.threat.kind} {each.threat.size}{more}"
                )


class Given(NamedTuple):
    """The model and the images that a stranger has."""

    model: nn.Module
    dataset: Dataset
    device: torch.device
    batch_size: int
    source: Iterable[str]  # the problems of its code


def verify_card(
    folder: str | Path,
    *,
    key: Path | None = None,
    model: str | None = None,
    weights: str | None = None,
    trust: bool = False,
    data_name: str | None = None,
    data_dir: str | Path | None = None,
    device: str = "auto",
    batch_size: int = 500,
    examples: int | None = None,
    nonce: str | None = None,
    audit: str | None = None,
    console: Console | None = None,
) -> CardVerified:
    """Verify a card.

    Arguments:
        folder: The folder of the card.
        key: The file of the public key; None: the signature is not checked.
        model: A run folder with the weights, or ``package.module:function``; None: the card is
            checked without its model.
        weights: For a function: the file of its weights, or FILE:KEY.
        trust: For a run folder of a function of the user's own: whether to run that function.
        data_name: The data, a name or an .npz file; None: those that the card names.
        data_dir: The folder of the data.
        device: ``auto``, ``cpu`` or ``cuda``.
        batch_size: The size of a batch.
        examples: How many examples of each evaluation are judged again; None: all.
        nonce: Text that determines which examples are drawn; None: random, and shown.
        audit: The nonce with which each audit is repeated; None: they are not.
        console: Where progress is shown; by default nowhere.

    Raises:
        UserError: If the card cannot be read, or what is given does not fit it.
        RunError: If a point does not hold; it is named.
    """
    console, folder = console or Console(quiet=True), Path(folder)
    if examples is not None and examples < 1:
        raise UserError(f"--examples must be at least 1, got {examples}")
    check_nonce(nonce)
    check_nonce(audit)
    if model is None and {weights, data_name, examples, audit} != {None}:
        raise UserError("--weights, --data, --examples, --audit: give the model with --model")
    card = load(folder)
    if audit is not None and not any(e.audit for e in card.evaluations):
        raise UserError("--audit repeats the audit of a card: this one has no audit")
    packs = {each.name: pack.read(folder, each) for each in card.evaluations}
    verified = CardVerified(card)
    for line in card.problems:
        console.warn(f"on top of the card: {line}")
    _alone(verified, folder, packs, key)
    if model is None:
        for name in ("weights", "source", "images", "examples"):
            verified.unchecked[name] = "give the model with --model"
    elif not verified.wrong:
        spec = model, weights, data_name, data_dir
        given = _given(card, spec, choose_device(device), batch_size, trust=trust)
        _with_model(verified, packs, given, examples, nonce, audit, console)
    for line in verified.lines():
        console.say(line)
    if verified.wrong:
        raise RunError(f"NOT VERIFIED: {'. '.join(verified.wrong)}")
    return verified


def _alone(verified: CardVerified, folder: Path, packs: claims.Packs, key: Path | None) -> None:
    """Check what needs no model."""
    card = verified.card
    verified.check("checksum", claims.checksum((folder / FILE).read_bytes()))
    if key is None:
        signed = (folder / envelope.FILE).is_file()
        none = f"the card has none (no {envelope.FILE}): anybody can have made it"
        verified.unchecked["signature"] = "give the public key with --key" if signed else none
    else:
        verified.check("signature", claims.signature(card, folder, key))
    verified.check("pack", claims.packs(card, packs))
    verified.check("root", claims.roots(card, packs))
    verified.check("counts", claims.counts(card, packs))
    verified.check("attacks", [*claims.attacks(card), *_stages(card)])
    audits = [*claims.audits(card)]
    if audits or any(each.audit for each in card.evaluations):
        verified.check("audit", audits)
    else:
        verified.unchecked["audit"] = "the card has none"
    if _same_version(card):
        verified.check("limits", claims.limits(card))
        verified.check("pages", () if verified.wrong else _pages(card, folder))
    else:
        verified.unchecked["limits and pages"] = f"they are of {card.model.package}"
    if any(each.paths is not None for each, _ in packs.values()):
        verified.unchecked["other images"] = "this is an excerpt of the card"


def _with_model(
    verified: CardVerified,
    packs: claims.Packs,
    given: Given,
    examples: int | None,
    nonce: str | None,
    audit: str | None,
    console: Console,
) -> None:
    """Check what needs the model and the images."""
    deterministic()
    verified.check("weights", _weights(verified.card, given))
    verified.check("source", given.source)
    if verified.card.model.kind == "registered" and not _same_version(verified.card):
        verified.unchecked["file of the network"] = f"it is of {verified.card.model.package}"
    if verified.wrong:
        return
    drawn_by = secrets.token_hex(4) if nonce is None else nonce
    for each in verified.card.evaluations:
        chosen = packs[each.name][0]
        if examples is not None:
            chosen = chosen.drawn(examples, drawn_by)
            console.say(f"{each.name}: {len(chosen.examples)} drawn, nonce {drawn_by}")
        test = _judged(verified, each, chosen, given)
        if each.audit and test and not verified.wrong:
            x, y = test.pixels(), test.y
            found = [*replay(each, x, y)]
            if audit is not None and not found:
                again = repeat(each, given.model, x.to(given.device), y, audit, console)
                console.say(f"{each.name}: {again}")
                found += again.problems
            verified.check("audit", [f"{each.name}: {line}" for line in found])


def _pages(card: ModelCard, folder: Path) -> Iterator[str]:
    """Yield which pages and exports do not show what the card says."""
    for name, text in pages(card).items():
        path = folder / name
        if path.is_file() and path.read_bytes() != text:
            yield f"{name} does not follow from {FILE}"


def _stages(card: ModelCard) -> Iterator[str]:
    """Yield which ensembles lack a stage."""
    for each in card.evaluations:
        left_out = any(f.check == "gradients" and f.status == "failed" for f in each.checks)
        names = [attack.name for attack in each.attacks]
        if each.finished and not left_out and each.threat.kind in NORMS:
            lines = missing_stages(names, each.threat.kind)
            yield from (f"{each.name}: {line}" for line in lines)


def _given(
    card: ModelCard,
    spec: tuple[str, str | None, str | None, str | Path | None],
    device: torch.device,
    batch_size: int,
    *,
    trust: bool,
) -> Given:
    """Return the stranger's model and images."""
    model, weights, name, data_dir = spec
    named = card.evaluations[0].data.name
    if name is None and named not in data.DATASETS:
        raise UserError(f"the card is of the data {named}: give them with --data FILE.npz")
    name = named if name is None else name
    if Path(model).is_dir():
        if weights is not None:
            raise UserError(f"{model} is a run folder, which has its weights: leave --weights out")
        run = Run.open(model, ("config.json", OWN))
        if own := run.read_json(OWN):
            file = f" --weights {short(own['weights'])}" if own.get("weights") else ""
            made = plugins.in_words(own.get("source"))
            raise UserError(
                f"{model} was made with a model of its owner ({made}), and no code is run because "
                f"a folder names it: look at it, then give --model {short(own.get('model'))}{file}"
            )
        config = run.read_json("config.json")
        reading = Reading.of(config.get("inputs", {})) if is_own(name, data.DATASETS) else None
        run.allow(trust=trust, warn=warnings.warn)
        loaded = run.model(card.model.weights)
        dataset, network = data.load(name, data_dir, reading=reading), str(config.get("model"))
        source = _network(card, network, config.get("settings"))
        if is_own_model(network):
            source = _function(card, plugins.source(network.partition(":")[0]))
    else:
        if not re.fullmatch(r"[\w.]+:\w+", model):
            raise UserError(f"expected a run folder or package.module:function, got {model!r}")
        asked = card.inputs.normalise
        normalise = Constants.of(asked) if isinstance(asked, dict) else asked
        if weights is not None and Path(weights).is_dir():  # trained here, on this function
            run = Run.open(weights, ("config.json",))
            run.allow(model, warn=warnings.warn)
            loaded, dataset = run.model(card.model.weights), data.load(name, data_dir)
        else:
            loaded, dataset = own_model(model, weights, normalise, name, data_dir)
        source = _function(card, plugins.source(model.partition(":")[0]))
    return Given(loaded.to(device), dataset, device, batch_size, [*source])


def _network(card: ModelCard, name: Any, settings: Any) -> Iterator[str]:
    if card.model.kind != "registered":
        yield f"the card is of {card.model.source}, not of a network of a run folder"
    elif (name, settings) != (card.model.source, card.model.settings):
        yield f"the network is {name} with other settings than the {card.model.source} of the card"
    elif card.model.code and _same_version(card):
        from equipoise.jobs.card import code_of

        now = code_of(card.model.source)
        if now is None or now["sha256"] != card.model.code.sha256:
            yield f"{card.model.code.file} is another file than that of the card"


def _same_version(card: ModelCard) -> bool:
    return card.model.package == f"equipoise {__version__}"


def _function(card: ModelCard, now: dict[str, str] | None) -> Iterator[str]:
    if card.model.code is None:
        yield "the card has no checksum of the model's source file"
    elif now is None or now["sha256"] != card.model.code.sha256:
        file = now["file"] if now else "no file"
        yield f"{file} is not the {card.model.code.file} of the card"


def _weights(card: ModelCard, given: Given) -> Iterator[str]:
    if model_digest(given.model) != card.model.sha256:
        load = "; if its function does not load them, give --weights FILE"
        more = load if card.model.kind == "function" else ""
        yield f"the weights of the model are not those of the card{more}"


def _judged(
    verified: CardVerified, each: CardEvaluation, chosen: Pack, given: Given
) -> Images | None:
    """Check the images of an evaluation, and judge its examples again.

    Returns:
        The images, if they are those of the card.
    """
    try:
        test, sample = drawn_again(given.dataset.test, each.data.n, each.data.sample)
    except (UserError, TypeError, ValueError, OverflowError) as error:
        verified.check("images", [f"{each.name}: its images cannot be drawn ({error})"])
        return None
    problems = list(_images(each, chosen, test.pixels(), test.y, sample == each.data.sample))
    verified.check("images", [f"{each.name}: {line}" for line in problems])
    if problems:
        return None
    if each.threat.kind not in NORMS:
        verified.unchecked["examples"] = f"threats of the kind {each.threat.kind} are unknown here"
        return None
    rows = torch.from_numpy(chosen.rows["index"].astype(np.int64))
    x, y = test.pixels()[rows].to(given.device), test.y[rows].to(given.device)
    judge = Judge(given.model, given.batch_size, seed=each.seed)
    if not judge.repeats(x):
        judge = replace(judge, passes=each.passes)
    found = _examples(verified, each, chosen, x, y, judge)
    verified.check("examples", [f"{each.name}: {line}" for line in found])
    return test


def _images(each: CardEvaluation, chosen: Pack, x: Tensor, y: Tensor, same: bool) -> Iterator[str]:
    """Compare the stranger's images with the rows of the card."""
    index = chosen.rows["index"]
    mine = digests(x.numpy()[index])
    other = sum(a != b for a, b in zip(mine, chosen.rows["image"].tolist(), strict=True))
    if other:
        yield f"{other} images are not those of the card"
    labels = int((y.numpy()[index] != chosen.rows["label"]).sum())
    if labels:
        yield f"{labels} labels are not those of the card"
    sums = tensor_digest(x), tensor_digest(y)
    if not same or sums != (each.data.inputs_sha256, each.data.labels_sha256):
        yield "the sample is not that of the card"
    if chosen.examples.shape[1:] != x.shape[1:]:
        yield f"its examples have the shape {chosen.examples.shape[1:]}, not {tuple(x.shape[1:])}"


def _examples(
    verified: CardVerified, each: CardEvaluation, chosen: Pack, x: Tensor, y: Tensor, judge: Judge
) -> Iterator[str]:
    # One in a hundred predictions of a random model may differ.
    slack = 0 if judge.repeats(x) else max(1, len(y) // 100)
    clean = judge.logits(x)
    predicted = torch.from_numpy(chosen.rows["prediction"].astype(np.int64))
    changed = int(((clean.argmax(1).cpu() != predicted) & ~ties(clean)).sum())
    if changed > slack:
        yield f"the clean predictions differ on {changed} images"
    broken = torch.from_numpy(chosen.broken)
    x, y, x_adv = x[broken], y[broken], torch.from_numpy(chosen.examples).to(x)
    if not len(y):
        return
    threat = Threat(each.threat.kind, each.threat.eps, each.threat.low, each.threat.high)  # type: ignore[arg-type]
    outside = int((~judge.admit(x, x_adv, threat)).sum())
    if outside:
        yield f"{outside} examples are outside the threat {threat}"
    if (threat.low, threat.high) != (0, 1):
        yield f"its range is [{threat.low}, {threat.high}], and images have values in [0, 1]"
    ruling, tie = judge.rule(x_adv, y), ties(judge.logits(x_adv))
    correct = int((~ruling.fooled.cpu() & ~tie).sum())
    if correct > slack:
        yield f"{correct} examples are classified correctly"
    verified.examples += len(y)
    verified.ties += int(tie.sum())
