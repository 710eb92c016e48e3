"""Accuracy on corrupted images: a table of each run, and one image with its corruptions."""

import math
from collections.abc import Sequence

from equipoise.measures.statistics import interval
from equipoise.report import wording
from equipoise.report.content import Block, Card, Cell, Column, Section, Shot, Table
from equipoise.report.gallery import image_uri
from equipoise.report.runs_reader import RunData
from equipoise.store.corruptions import NOT, NOT_DONE, NOT_FINITE, SHOWN, Corruptions

_FEW = 3  # results; of more, each is folded
_MANY = 8  # results that are shown
_LEAD = (
    f"{NOT} The severities are those of CIFAR-10-C (Hendrycks and Dietterich, 2019). On the same "
    "test images, all models are shown the same corrupted images."
)


def corruption_sections(runs: Sequence[RunData]) -> list[Section]:
    """Return what was measured on corrupted images as one section; nothing if nothing was."""
    every = [
        (run, each) for run in runs for each in sorted(run.corruptions, key=lambda each: -each.n)
    ]
    if not every:
        return []
    blocks: list[Block] = [_LEAD, *([_summary(every)] if len(every) > 1 else [])]
    for run, each in every[:_MANY]:
        tag = "" if each.finished else "not finished"
        content: list[Block] = [_table(run, each), _cards(run, each)]
        folded = len(every) > _FEW or each.n < max(other.n for other in run.corruptions)
        blocks.append(Section(run.name, content, small=each.images, tag=tag, folded=folded))
    return [Section("Corruptions", blocks, id="corruptions")]


def _summary(every: Sequence[tuple[RunData, Corruptions]]) -> Table:
    """Return a row for each result: the means of each kind, and of all."""
    kinds = tuple(dict.fromkeys(kind for _, each in every for kind in each.kinds))
    rows = tuple(
        (
            Cell(run.name, small=each.images),
            _mean(each.clean / each.n),
            *(_mean(each.by_kind.get(kind, math.nan)) for kind in kinds),
            _mean(each.mean),
        )
        for run, each in every
    )
    heads = (Column("run", number=False), *map(Column, ("clean", *kinds, "mean")))
    return Table("corruption-means", "Mean accuracy over the severities", heads, rows)


def _table(run: RunData, each: Corruptions) -> Table:
    rows = tuple(
        (
            Cell(kind),
            *(_cell(each, k, severity - 1) for severity in each.severities),
            _mean(each.by_kind[kind]),
        )
        for k, kind in enumerate(each.kinds)
    )
    severities = (f"severity {severity}" for severity in each.severities)
    heads = (Column("corruption", number=False), *map(Column, (*severities, "mean")))
    foot = (Cell("mean"), *map(_mean, (*each.by_severity, each.mean)))
    clean = f"Without a corruption: {wording.percent(each.clean / each.n)}."
    title = f"Accuracy on corrupted images, {run.name}"
    return Table("corruptions", title, heads, rows, (clean,), foot=foot)


def _cell(each: Corruptions, k: int, s: int) -> Cell:
    if not each.done[k, s]:
        return Cell()
    accuracy, bounds = float(each.accuracy[k, s]), interval(int(each.correct[k, s]), each.n)
    return Cell(wording.percent(accuracy), accuracy, wording.interval(bounds))


def _mean(share: float) -> Cell:
    return Cell() if math.isnan(share) else Cell(wording.percent(share), share)


def _cards(run: RunData, each: Corruptions) -> tuple[Card, ...]:
    """Return the first image of the sample with each kind of corruption."""
    names = each.classes or run.classes

    def name(label: int) -> str:
        words = {NOT_DONE: wording.MISSING, NOT_FINITE: "not finite"}
        return words.get(label) or (names[label] if label < len(names) else f"class {label}")

    truth, before = int(each.y[0]), int(each.clean_prediction[0])
    size = each.image.shape[2], each.image.shape[1]
    clean = Shot(image_uri(each.image / 255), "the image", "clean", name(before), before != truth)
    cards = []
    for k, kind in enumerate(each.kinds):
        shots = [clean]
        for pixels, severity in zip(each.examples[k], SHOWN, strict=True):
            label, alt = int(each.prediction[k, severity - 1, 0]), f"{kind} at severity {severity}"
            wrong = label not in (truth, NOT_DONE)
            shot = Shot(image_uri(pixels / 255), alt, f"severity {severity}", name(label), wrong)
            shots.append(shot)
        note = f"{kind}; the first image of the sample"
        cards.append(Card(0, name(truth), tuple(shots), size, note))
    return tuple(cards)
