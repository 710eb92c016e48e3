"""What must hold of a card without its model: checksums, roots, counts and the signature."""

import json
import math
from collections.abc import Iterator, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from equipoise.card import describe, envelope
from equipoise.card.pack import Pack, head
from equipoise.card.schema import FILE, CardCount, CardEvaluation, CardResult, ModelCard
from equipoise.errors import one_line
from equipoise.report.wording import NORMS
from equipoise.sample import digests
from equipoise.store.audit import evaluation_digest
from equipoise.store.sealed import is_sealed
from equipoise.store.verdicts import Verdicts

CLOSE = 1e-9  # the tolerance for numbers from another version of a library
AUDITED = "audited"  # the ensemble that has an audit
WEIGHTS = "weights"  # a subject of the statement

Packs = Mapping[str, tuple[Pack, str]]
"""The pack of each evaluation, and the checksum of its file, by the evaluation's name."""


def subjects_of(card: ModelCard, files: Mapping[str, bytes]) -> dict[str, dict[str, str]]:
    """Return what a signature of a card is about: its files, its packs and its weights.

    Arguments:
        card: The card.
        files: The content of ``card.json`` and of other files that are written with it, by name.
    """
    weights = {envelope.MODEL_DIGEST: card.model.sha256}
    if card.model.file_sha256:
        weights["sha256"] = card.model.file_sha256
    subjects = {name: {"sha256": sha256(text).hexdigest()} for name, text in files.items()}
    subjects |= {each.pack.file: {"sha256": each.pack.sha256} for each in card.evaluations}
    return subjects | {WEIGHTS: weights}


def checksum(text: bytes) -> Iterator[str]:
    """Yield whether ``card.json`` is not as it was written."""
    if not is_sealed(json.loads(text)):
        yield f"{FILE} is not as it was written: its checksum is another one"


def signature(card: ModelCard, folder: Path, key: Path) -> Iterator[str]:
    """Yield what is wrong with the signature, and which signed files are other ones now."""
    problem, subjects = envelope.opened(folder, envelope.public_key(key))
    if problem:
        yield problem
        return
    present = [name for name in subjects if _plain(name) and (folder / name).is_file()]
    files = {name: (folder / name).read_bytes() for name in {FILE, *present}}
    expected = subjects_of(card, files)
    for name, digest in expected.items():
        if subjects.get(name) != digest:
            yield f"{name} is not what was signed"
    for name in subjects:
        if name not in expected:
            yield f"{name} was signed and is missing"


def _plain(name: str) -> bool:
    return name == Path(name).name


def packs(card: ModelCard, given: Packs) -> Iterator[str]:
    """Yield which packs are not as they were written, and which examples are not their own."""
    for each in card.evaluations:
        pack, digest = given[each.name]
        if pack.paths is None and digest != each.pack.sha256:
            yield f"{each.pack.file} is not as it was written: its checksum is another one"
        points = pack.rows["example"][pack.broken].tolist()
        changed = sum(a != b for a, b in zip(points, digests(pack.examples), strict=True))
        if changed:
            yield f"{changed} examples of {each.name} are not those of its rows"


def roots(card: ModelCard, given: Packs) -> Iterator[str]:
    """Yield which rows do not have the root of the card, with its threat, model and attacks."""
    for each in card.evaluations:
        names = [attack.name for attack in each.attacks]
        what = each.name, each.threat, card.model.sha256, each.data.inputs_sha256, names
        found = given[each.name][0].roots(each.data.n, head(*what))
        if found - {bytes.fromhex(each.pack.root)}:
            yield (
                f"the rows of {each.name} are not those of its root, or its threat, model, images "
                "or attacks are others"
            )


def counts(card: ModelCard, given: Packs) -> Iterator[str]:
    """Yield which numbers of the card do not follow from its verdicts."""
    found = describe.problems(card.evaluations, card.training)
    if (list(card.problems), card.complete) != (found, not found):
        yield "what stands on top does not follow from the evaluations"
    for each in card.evaluations:
        yield from (f"{each.name}: {line}" for line in _counted(each, given[each.name][0]))


def _counted(each: CardEvaluation, pack: Pack) -> Iterator[str]:
    rows, chosen = pack.rows, pack.rows["index"]
    labels = np.zeros(each.data.n, np.int64)
    labels[chosen] = rows["label"]
    if labels.min() < 0 or labels.max() >= (len(each.data.classes) or math.inf):
        yield "labels are not those of its classes"
        return
    verdicts = _verdicts(each, labels)
    first = describe.broken_by(verdicts)
    if (verdicts.correct[chosen] != (rows["label"] == rows["prediction"])).any():
        yield "the clean verdicts are not those of its rows"
    if (first[chosen] != rows["broken_by"]).any():
        yield "the verdicts of the attacks are not those of its rows"
    if (int((first >= 0).sum()), each.data.n) != (each.pack.examples, each.pack.images):
        yield "its pack has other counts"
    for place, attack in enumerate(each.attacks):
        if int((first == place).sum()) != attack.broken_first:
            yield f"{attack.name} broke {int((first == place).sum())} images first"
    expected = map(CardResult.model_validate, describe.results(verdicts.records()))
    wanted = {result.attack: result for result in expected}
    if [result.attack for result in each.results] != [*wanted]:
        yield f"expected results of {', '.join(wanted)}"
        return
    for result in each.results:
        if not _same(result, wanted[result.attack], pack.paths is None):
            yield f"the result of {result.attack} does not follow from the verdicts"


def _verdicts(each: CardEvaluation, labels: NDArray[np.int64]) -> Verdicts:
    return Verdicts(
        norm=each.threat.kind,
        eps=each.threat.eps,
        y=labels,
        correct=each.flags(each.correct),
        verdict={attack.name: each.flags(attack.robust) for attack in each.attacks},
        attacked={attack.name: each.flags(attack.attacked) for attack in each.attacks},
        outcomes={attack.name: attack.model_dump() for attack in each.attacks},
        classes=each.data.classes,
    )


def _same(a: CardResult, b: CardResult, every: bool) -> bool:
    """Return whether two results agree; with ``every`` in their classes, too."""
    if not every:
        return _near(a, b)
    if a.per_class.keys() != b.per_class.keys():
        return False
    return _near(a, b) and all(_near(v, b.per_class[k]) for k, v in a.per_class.items())


def _near(a: CardCount, b: CardCount) -> bool:
    numbers = zip((a.accuracy, *a.interval), (b.accuracy, *b.interval), strict=True)
    close = all(math.isclose(x, y, rel_tol=CLOSE, abs_tol=CLOSE) for x, y in numbers)
    return (a.n, a.robust) == (b.n, b.robust) and close


def audits(card: ModelCard) -> Iterator[str]:
    """Yield which audits are of something else, or have bounds that do not follow from them."""
    for each in card.evaluations:
        if each.audit is None:
            if any(a.ensemble.partition("(")[0] == AUDITED for a in each.attacks):
                yield f"{each.name}: {AUDITED} has no audit"
            continue
        try:
            audit = describe.audit_in(each.audit)
            same = _plain_text(describe.audit_of(audit)) == _plain_text(each.audit)
            digest = evaluation_digest(
                model=card.model.sha256,
                data=each.data.inputs_sha256,
                labels=each.data.labels_sha256,
                norm=each.threat.kind,
                eps=each.threat.eps,
                seed=audit.made({a.name: a.made for a in each.attacks}).get("seed", each.seed),
            )
        except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError) as error:
            yield f"{each.name}: its audit cannot be read: {one_line(error)}"
            continue
        robust = each.worst.robust if each.worst else 0
        if (audit.n, audit.robust, audit.digest) != (each.data.n, robust, digest):
            yield f"{each.name}: its audit is that of another evaluation"
        if not same:
            yield f"{each.name}: the bounds of its audit do not follow from its rounds"


def _plain_text(content: Mapping[str, Any]) -> str:
    return json.dumps(content, sort_keys=True)


def limits(card: ModelCard) -> Iterator[str]:
    """Yield what does not say what the numbers mean in the words of this version."""
    if card.limits != describe.LIMITS:
        yield "the limits of the numbers are not those that every card has"
    if card.inputs.not_recorded != describe.NOT_RECORDED:
        yield "what is not recorded of the inputs is not what every card says"
    for each in card.evaluations:
        known = describe.threat_of(each.threat.kind, each.threat.eps)
        if each.threat.kind in NORMS and each.threat != known:
            yield f"{each.name}: unit, range or terms of its threat are not those of {known.kind}"


def attacks(card: ModelCard) -> Iterator[str]:
    """Yield which attacks were asked for and are missing."""
    for each in card.evaluations:
        ran = {name for attack in each.attacks for name in (attack.name, attack.ensemble)}
        left_out = any(f.check == "gradients" and f.status == "failed" for f in each.checks)
        asked: Any = each.protocol.get("attacks")
        names = map(str, asked) if isinstance(asked, list) else ()
        missing = [name for name in names if not {name, name.partition("(")[0]} & ran]
        if each.finished and missing and not left_out:
            yield f"{each.name}: {', '.join(missing)} was asked for, and is not there"
