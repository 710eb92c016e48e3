"""The page of a scan: its numbers, its curve, three images, the checks, and what it is not."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from equipoise.report import wording
from equipoise.report.checks import findings_shown, sentences
from equipoise.report.content import Block, Card, Cell, Column, Figure, Key, Section, Table
from equipoise.report.figures import against_eps
from equipoise.report.formats import environment
from equipoise.report.gallery import Pixels, pair
from equipoise.report.palette import style_of
from equipoise.store.files import write
from equipoise.store.scan import FILE, PAGE, Scan
from equipoise.store.sealed import read_arrays

EASY, HALF = 0.1, 0.5  # shares of the correct images that are left, for the verdict in words
LOW, GUESSED = 0.1, 1.2  # clean accuracies that are no better than guessing; the second by 1/K
EXAMPLES = 3
_READ = ("x", "x_adv", "adversarial_prediction")

NOT = (
    "a scan is not AutoAttack, and no guarantee: a few short attacks on a few images. Longer "
    "attacks fool the same images and more, so every accuracy here is an upper bound, and every "
    "radius as well. Use it to find out quickly that a model is fooled, never to claim that it is "
    "robust."
)


def build(folder: Path) -> Path:
    """Write the page of the scan that is stored in a folder, and return its path.

    Raises:
        UserError: If the scan cannot be read, or the page cannot be written.
    """
    scan = Scan.read(folder / FILE)
    page = folder / PAGE
    about = scan.about or {}
    title = f"Scan of {about.get('model', 'a model')}"
    html = environment().get_template("page.html.j2").render(
        title=title,
        headline=headline(scan),
        overview=_overview(scan, folder / FILE, str(about.get("model", "model"))),
        cautions=_cautions(scan),
        sections=_sections(scan),
    )  # fmt: skip
    write(page, html)
    return page


def headline(scan: Scan) -> list[str]:
    """Return the result in sentences: accuracies, the radius at which half is lost, a verdict."""
    clean, robust = map(wording.percent, (scan.clean_accuracy, scan.robust_accuracy))
    where = wording.threat_text(scan.norm, scan.eps)
    first = (
        f"Of {scan.images}, {clean} are classified correctly, and at most {robust} under attack "
        f"within {where}."
    )
    if scan.failed:
        names = wording.join(scan.failed)
        checks = "checks" if len(scan.failed) > 1 else "check"
        return [first, f"But the numbers cannot be trusted (failed {checks}: {names})."]
    return [first, f"{_verdict(scan)} {_half(scan)}"]


def _verdict(scan: Scan) -> str:
    correct, k = int(scan.correct.sum()), max(len(scan.classes), int(scan.y.max()) + 1)
    if scan.clean_accuracy < max(GUESSED / k, LOW):
        return "It classifies few of these images correctly: look at its weights and inputs first."
    share = int(scan.left(scan.eps).sum()) / correct if correct else 0.0
    if share < EASY:
        return "At this radius the model is easily fooled."
    if share < HALF:
        return "At this radius it is fooled on most of the images that it classifies correctly."
    return "At this radius these short attacks do not fool it on most images."


def _half(scan: Scan) -> str:
    if scan.half_lost is None:
        return scan.half_in_words
    return f"{scan.half_in_words[:-1]}, {scan.half_lost / scan.eps:.2g} times that radius."


def _overview(scan: Scan, path: Path, name: str) -> list[Block]:
    title = f"Accuracy against eps, {wording.norm_text(scan.norm)}"
    style = style_of("", 0)
    curve = against_eps(title, {name: scan.records}, {name: style}, "fig-scan")
    caption = (
        "Each point is an upper bound for this sample; the band is the 95 % interval for drawing "
        "the images. eps = 0 is clean accuracy. An image that is lost at a radius is lost at all "
        f"larger ones. {scan.half_in_words}"
    )
    figure = Figure("fig-scan", caption, (Key(name, style),), (curve,))
    cards = _cards(scan, path)
    return [figure, *([Section("Adversarial examples", [_RULE, cards])] if cards else [])]


_RULE = (
    "Of three classes the first image that is lost, with the nearest misclassified image found. "
    "The difference is magnified."
)


def _cards(scan: Scan, path: Path) -> tuple[Card, ...]:
    arrays = read_arrays(path, lambda name: name in _READ)[1]
    lost = np.flatnonzero(scan.correct & np.isfinite(scan.size))
    within = lost[scan.size[lost] <= scan.eps]
    chosen = {int(scan.y[row]): int(row) for row in reversed(within if len(within) else lost)}
    cards = []
    for row in sorted(chosen.values())[:EXAMPLES]:
        x, x_adv = (_pixels(arrays[name][row]) for name in ("x", "x_adv"))
        labels = scan.y[row], scan.prediction[row], arrays["adversarial_prediction"][row]
        largest = float(np.abs(x_adv - x).max())
        scale = 0.5 / largest if largest > 0 else 1.0
        note = f"distance {scan.size[row]:.3g} ({wording.norm_text(scan.norm)})"
        cards.append(pair(row, x, x_adv, [_name(scan, int(k)) for k in labels], scale, note))
    return tuple(cards)


def _pixels(image: Pixels) -> Pixels:
    return np.nan_to_num(np.asarray(image, np.float64))


def _name(scan: Scan, label: int) -> str:
    return scan.classes[label] if 0 <= label < len(scan.classes) else f"class {label}"


def _cautions(scan: Scan) -> list[tuple[tuple[str, ...], str, str]]:
    titles = {"failed": "Check failed", "warning": "Check warns"}
    said = [
        ((), titles[status], f"{finding.check}: {sentences(finding)}")
        for status in titles
        for finding in scan.findings
        if finding.status == status
    ]
    verdict = (scan.about or {}).get("verdict")
    full = f" The full verdict: `{verdict}`." if verdict else ""
    if not scan.finished:
        again = (scan.about or {}).get("command")
        text = f"not every attack and check was run; `{again}` continues."
        said.append(((), "Not finished", text))
    return [*said, ((), "What this is not", NOT + full)]


def _sections(scan: Scan) -> list[Section]:
    radii = Section("Accuracy against eps", [_radii(scan)], id="radii")
    worst = Section("Worst classes", _worst(scan), id="worst")
    checks = Section("Checks", findings_shown(scan.findings), id="checks")
    return [radii, worst, checks, Section("How it was made", [_facts(scan)], id="made")]


def _radii(scan: Scan) -> Table:
    more = ("balanced",) if scan.unequal else ()
    heads = Column("eps", number=False), *map(Column, ("accuracy", *more, "images left"))
    rows = (
        (
            Cell(wording.eps_text(eps) if eps else "clean", eps),
            Cell(wording.percent(r.accuracy), r.accuracy, wording.interval(r.interval)),
            *(Cell(wording.percent(r.balanced), r.balanced) for _ in more),
            Cell(wording.count(r.robust), r.robust, f"of {wording.count(scan.n)}"),
        )
        for eps, r in scan.records.items()
    )
    return Table("radii", "Accuracy against eps", heads, tuple(rows))


def _worst(scan: Scan) -> Sequence[Block]:
    where = wording.threat_text(scan.norm, scan.eps)
    rows = tuple(
        (Cell(name), Cell(wording.count(before), before), Cell(wording.count(after), after))
        for name, before, after in scan.worst_classes
    )
    if not rows:
        return ["The sample has too few correct images of each class; scan more images with -n."]
    heads = (Column("class", number=False), Column("correct images"), Column("left"))
    few = f"Most is lost of these classes ({where}). So few images say little about a class."
    return [few, Table("worst", f"Worst classes, {where}", heads, rows)]


def _facts(scan: Scan) -> dict[str, str]:
    about, correct = scan.about or {}, wording.count(int(scan.correct.sum()))
    facts = {
        "Images": scan.images,
        "Attacks": "PGD with 10 steps on the margin at each radius, FAB-T with 20 steps and 3 "
        "targets for the nearest points, Square with 100 queries",
        "Fooled by the first attack": f"{wording.count(int(scan.quick.sum()))} of {correct}",
        "Fooled by Square alone": f"{wording.count(int(scan.blind.sum()))} of {correct}",
        "Seed": str(scan.seed),
        "Time": wording.duration(scan.seconds) if scan.seconds else "",
        "Command": f"`{about['command']}`" if about.get("command") else "",
    }
    return {name: text for name, text in facts.items() if text}
