"""From findings to sections: claims, tables, pictures, facts and what is missing."""

__all__ = ["Section", "section"]

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from equipoise.paper import (
    ablation,
    accuracy,
    fronts,
    scores,
    settings,
    start_rules,
    training_curves,
)
from equipoise.paper.claims import Judged, judged
from equipoise.paper.findings import Findings, Panel, Row
from equipoise.paper.paper import ABOUT, TITLES
from equipoise.paper.phrases import capital
from equipoise.report import wording
from equipoise.report.content import Block, Picture, Table


@dataclass(frozen=True)
class Section:
    """All that is said of one experiment.

    Arguments:
        name: The experiment.
        title: Its title.
        about: What the paper shows there.
        claims: What the paper claims and what was found.
        blocks: Tables, pictures and sentences, in reading order.
        facts: Where the numbers come from: name and text.
        missing: What is not there yet, a line each.
    """

    name: str
    title: str
    about: str
    claims: tuple[Judged, ...] = ()
    blocks: tuple[Block, ...] = ()
    facts: tuple[tuple[str, str], ...] = ()
    missing: tuple[str, ...] = ()


_MAKERS: dict[str, Callable[[Findings], list[Block]]] = {
    "table2": accuracy.blocks,
    "table3": accuracy.blocks,
    "fig2": training_curves.blocks,
    "fig3": scores.curves,
    "fig4": scores.radars,
    "fig5": ablation.blocks,
    "controls": start_rules.blocks,
    "front": fronts.blocks,
    "settings": settings.blocks,
}


def section(findings: Findings) -> Section:
    """Return all that is said of an experiment."""
    name = findings.experiment
    return Section(
        name=name,
        title=TITLES[name],
        about=ABOUT[name],
        claims=judged(findings),
        blocks=_distinct(_MAKERS[name](findings)),
        facts=tuple(_facts(findings)),
        missing=findings.missing,
    )


def _distinct(blocks: Sequence[Block]) -> tuple[Block, ...]:
    """Return the blocks with file names of their own: panels may be named alike for a file."""
    seen: dict[str, int] = {}
    made: list[Block] = []
    for block in blocks:
        if isinstance(block, Table | Picture):
            count = seen[block.name] = seen.get(block.name, 0) + 1
            if count > 1:
                block = _renamed(block, f"{block.name}-{count}")
        made.append(block)
    return tuple(made)


def _renamed(block: Table | Picture, name: str) -> Table | Picture:
    return replace(block, name=name)


def _facts(findings: Findings) -> list[tuple[str, str]]:
    facts = [("Command", f"`{findings.command}`")] if findings.command else []
    facts.append(("Scale", findings.scale or wording.MISSING))
    if findings.planned is not None:
        lost = f", {len(findings.missing)} missing" if findings.missing else ", none missing"
        facts.append(("Evaluations", f"{wording.count(findings.planned)} planned{lost}"))
    for panel in findings.panels:
        rows = findings.of(panel, weights=None)
        head = panel.title if len(findings.panels) > 1 else ""
        facts += [
            (f"{head}: {key}" if head else capital(key), text) for key, text in _of(panel, rows)
        ]
    return facts


_IMAGES = {
    "test": ("test images", "images of the test set", "the same for all seeds"),
    "held-out": (
        "held-out images",
        "held-out images of the training set",
        "in no training, the same for all seeds; no test images",
    ),
}  # the key of a fact, what the images are called, and what else is said of them


def _which(panel: Panel, sizes: Sequence[int]) -> tuple[str, str]:
    """Return which images the models of a panel were judged on, as a fact."""
    key, images, more = _IMAGES[panel.split]
    if not sizes:
        told = f"all {images}"
    elif panel.sample is not None and [*sizes] == [panel.sample.n]:
        told = panel.sample.words(images)
    else:
        first = panel.sample is None or panel.sample.seed is None
        counts = wording.join([wording.count(size) for size in sizes])
        told = f"{'the first' if first else 'samples of'} {counts} {images}"
    return key, f"{told}, {more}"


def _of(panel: Panel, rows: Sequence[Row]) -> list[tuple[str, str]]:
    sizes = sorted({row.n for row in rows}) or ([panel.n] if panel.n else [])
    found = sorted({row.seed for row in rows})
    told = ", ".join(map(str, found)) or "none yet"
    planned = ", ".join(map(str, panel.seeds))
    radii = ", ".join(wording.eps_text(eps) for eps in panel.eps) or wording.MISSING
    facts = [
        ("data", f"{panel.data}, {panel.classes} classes"),
        ("model", panel.model or wording.MISSING),
        ("threat", f"{wording.norm_text(panel.norm)}, eps {radii}"),
        _which(panel, sizes),
        ("seeds", told if found == sorted(panel.seeds) else f"{told} (planned: {planned})"),
    ]
    if panel.images:
        facts.append(("training images a round", wording.count(panel.images)))
    budget = f"{wording.large(panel.budget)} gradient evaluations" if panel.budget else "none"
    facts.append(("budget of a training", budget))
    for fact in panel.facts:
        key, colon, text = fact.partition(": ")
        facts.append((key, text) if colon else ("fact", fact))
    return facts
