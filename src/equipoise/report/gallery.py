"""Clean and adversarial images of an evaluation, chosen by rules and not by eye.

Files are opened lazily and only the images that are shown are read.
"""

import base64
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray
from PIL import Image
from safetensors import safe_open

from equipoise.parsing import reason
from equipoise.report.content import LARGE, Block, Card, Section, Shot
from equipoise.report.results import Threat
from equipoise.report.runs_reader import AUGMENTED, RunData
from equipoise.report.wording import count, join, norm_text, threat_text
from equipoise.store.records import stage_of
from equipoise.store.sealed import read_arrays
from equipoise.store.verdicts import UNREADABLE, Evaluation, read

FOOLED, ROBUST, EXTREME = 8, 4, 8  # images
_READ = {  # of each image
    *("y", "clean_prediction", "adversarial_prediction"),
    *("margin", "distance", "broken_by"),
}
_COLD, _PAPER, _WARM = (0, 92, 160), (246, 246, 244), (200, 70, 0)

Pixels = NDArray[np.float64]
Bytes = NDArray[np.uint8]
Rule = tuple[str, str, str, list[int]]  # name, how many there are, the rule, the images


def gallery(run: RunData, threat: Threat | None) -> Section | str | None:
    """Return the images of a run; a line on why they cannot be read; or None if there are none.

    Without images of the wanted threat, those of the largest radius are shown.
    """
    if not run.evaluations:
        return None
    best = max(run.evaluations, key=lambda evaluation: _rank(evaluation, threat))
    try:
        judged = read(best.path).verdicts
        values = {"correct": judged.correct, "robust": judged.robust}
        values |= read_arrays(best.path, lambda name: name in _READ)[1]
        with safe_open(str(best.path), framework="np") as file:
            if "x" not in file.keys():  # noqa: SIM118 - it is no dict
                return "The images of a large evaluation can be shown when it is finished."
            return _gallery(
                run.name, _Stored(best, values, file, best.verdicts.classes or run.classes)
            )
    except UNREADABLE as error:
        return f"The stored images could not be read ({reason(error)}); evaluate the run again."


def _rank(evaluation: Evaluation, wanted: Threat | None) -> tuple[object, ...]:
    shown, attacked = evaluation.threat == wanted, bool(evaluation.verdicts.outcomes)
    finished, name = evaluation.finished, evaluation.name
    return attacked, shown, evaluation.threat[1], finished, evaluation.n, name


@dataclass(frozen=True)
class _Stored:
    """An evaluation, the stored values of each of its images, and their open file."""

    evaluation: Evaluation
    values: Mapping[str, NDArray[Any]]
    file: Any
    classes: Sequence[str]

    def image(self, name: str, index: int) -> Pixels:
        stored = np.asarray(self.file.get_slice(name)[index : index + 1])[0]
        pixels: Pixels = np.nan_to_num(stored.astype(np.float64))
        return pixels / 255 if stored.dtype == np.uint8 else pixels

    def difference(self, index: int) -> Pixels:
        return self.image("x_adv", index) - self.image("x", index)

    def label(self, key: str, index: int) -> str:
        label = int(self.values[key][index])
        return self.classes[label] if 0 <= label < len(self.classes) else f"class {label}"


# Which images


def _rules(values: Mapping[str, NDArray[Any]], share: int) -> tuple[list[Rule], list[Rule]]:
    """Return the typical and the extreme images; ``share`` divides how many are shown."""
    y, correct, robust = values["y"], values["correct"], values["robust"]
    margin = np.nan_to_num(values["margin"], nan=-np.inf, posinf=np.inf)
    fooled, few = correct & ~robust, EXTREME // share**2
    typical = [
        _typical("Fooled", y, fooled, FOOLED // share),
        _typical("Robust", y, correct & robust, ROBUST // share),
    ]
    extreme = [*_ends(np.flatnonzero(fooled), margin, values["broken_by"], few)]
    return typical, [*extreme, *_nearly(np.flatnonzero(correct & robust), margin, few)]


def _typical(name: str, y: NDArray[Any], mask: NDArray[np.bool_], most: int) -> Rule:
    """Take the first of every class, then the second of every class, and so on."""
    turns = Counter[int]()
    order: list[tuple[int, int, int]] = []
    for index in np.flatnonzero(mask):
        label = int(y[index])
        order.append((turns[label], label, int(index)))
        turns[label] += 1
    indices = [index for _, _, index in sorted(order)[:most]]
    shown = f", {len(indices)} shown" if 0 < len(indices) < len(order) else ""
    rule = "The first image of every class in turn, in the order in which they were evaluated."
    return name, f"{count(len(order))} of {count(len(y))}{shown}", rule, indices


def _ends(
    where: NDArray[np.intp], margin: NDArray[np.float64], broken_by: NDArray[Any], most: int
) -> Iterator[Rule]:
    """Take the two ends of the fooled images; no image is in both."""
    most = min(most, len(where) // 2)
    order = where[np.lexsort((where, margin[where], broken_by[where]))]
    number = f"{most} of {count(len(where))} fooled images"
    first = "By the attack that fooled the model first, {}; then by the margin, {}."
    if most:
        easy = first.format("early attacks before late ones", "low before high")
        yield "Easiest to fool", number, easy, [*map(int, order[:most])]
        hard = first.format("late attacks before early ones", "the closest to 0 before others")
        yield "Hardest to fool", number, hard, [*map(int, order[::-1][:most])]


def _nearly(where: NDArray[np.intp], margin: NDArray[np.float64], most: int) -> Iterator[Rule]:
    where = where[np.isfinite(margin[where])]
    order = where[np.lexsort((where, margin[where]))][:most]
    if len(order):
        number = f"{len(order)} of {count(len(where))} robust images"
        rule = "By the margin that the attacks left, the closest to 0 before others."
        yield "Nearly fooled", number, rule, [*map(int, order)]


# Cards


def attack_names(keys: Sequence[str]) -> tuple[str, ...]:
    """Return the shown names of attacks: of a stage its own, unless another attack has it."""
    short = [stage_of(key)[1] or key for key in keys]
    return tuple(
        name if short.count(name) == 1 else key for name, key in zip(short, keys, strict=True)
    )


def _gallery(name: str, stored: _Stored) -> Section:
    evaluation = stored.evaluation
    _, channels, height, width = stored.file.get_slice("x").get_shape()
    typical, extreme = _rules(stored.values, 2 if max(height, width) > LARGE else 1)
    scale = _scale(stored, [i for rule in (*typical, *extreme) for i in rule[3]])
    attacks = attack_names([*evaluation.verdicts.outcomes])

    def groups(rules: Sequence[Rule]) -> list[Section]:
        sections = []
        for title, number, rule, indices in rules:
            cards = tuple(_card(stored, i, attacks, scale) for i in indices)
            sections.append(Section(title, [rule, cards] if cards else ["None."], small=number))
        return sections

    colours = "red is brighter, blue darker" if channels == 1 else "grey is no change"
    text = (
        f"Found by {join(attacks) if attacks else 'the evaluation'}. The difference is magnified "
        f"{scale:.3g} times: {colours}. Of each image the allowed point with the lowest margin is "
        "shown. The margin is the output for the true class less the largest other one: below 0 "
        f"the model is fooled. Distances are in {norm_text(evaluation.threat[0])}."
    )
    if not evaluation.finished:
        text += " The evaluation was interrupted: not every attack has been run on every image."
    ends = Section("The easiest and the hardest images", groups(extreme), folded=True)
    blocks: list[Block] = [text, *groups(typical), *([ends] if extreme else [])]
    tag = "" if evaluation.finished else "interrupted"
    return Section(name, blocks, small=threat_text(*evaluation.threat), tag=tag)


def _card(stored: _Stored, index: int, attacks: Sequence[str], scale: float) -> Card:
    names = [stored.label(k, index) for k in ("y", "clean_prediction", "adversarial_prediction")]
    x, x_adv = (stored.image(name, index) for name in ("x", "x_adv"))
    return pair(index, x, x_adv, names, scale, _note(stored, index, attacks))


def pair(
    index: int, x: Pixels, x_adv: Pixels, names: Sequence[str], scale: float, note: str
) -> Card:
    """Return the card of an image in [0, 1], with shape (C, H, W), and a changed one.

    Arguments:
        index: The place of the image.
        x: The clean image.
        x_adv: The changed image.
        names: Its true class, and the predicted ones of both images.
        scale: By how much their difference is magnified.
        note: A line below it.
    """
    truth, before, after = names
    clean, noise, adversarial = _colours(x), _noise((x_adv - x) * scale), _colours(x_adv)
    shots = (
        Shot(_uri(clean), f"image {index}, {truth}", "clean", before, before != truth),
        Shot(_uri(noise), f"difference of image {index}", f"difference × {scale:.2g}"),
        Shot(_uri(adversarial), f"image {index}, attacked", "adversarial", after, after != truth),
    )
    return Card(index, truth, shots, (x.shape[2], x.shape[1]), note)


def _note(stored: _Stored, index: int, attacks: Sequence[str]) -> str:
    """Return which attack fooled the model first, how far the image is and by how much."""
    margin, distance, by = (
        stored.values[key][index] for key in ("margin", "distance", "broken_by")
    )
    if margin == np.inf:
        return "no perturbed image was found"
    first = f"fooled first by {attacks[int(by)]}; " if 0 <= by < len(attacks) else ""
    sign = f"{abs(margin):.3g}" if margin >= 0 else f"\u2212{abs(margin):.3g}"
    return f"{first}distance {distance:.3g}, margin {sign}"


def _scale(stored: _Stored, indices: Sequence[int]) -> float:
    """Return the factor that brings the largest change of a pixel to half the range."""
    norm, eps = stored.evaluation.threat
    largest = max((float(np.abs(stored.difference(i)).max()) for i in indices), default=0.0)
    reach = eps if norm == "linf" else largest
    return 0.5 / reach if reach > 0 else 1.0


# Training images


def augmented(runs: Sequence[RunData]) -> list[Section]:
    """Return the pictures of augmented training images that run folders hold, each once."""
    shown: dict[str, Section] = {}
    for run in runs:
        file = run.path / AUGMENTED
        if not file.is_file():
            continue
        try:
            uri = _uri(np.asarray(Image.open(file).convert("RGB")))
        except (OSError, ValueError, Image.DecompressionBombError) as error:
            shown[""] = Section("Augmentation", [f"{file} cannot be read ({reason(error)})."])
            continue
        words = f"Training images of {run.recipe.get('data')}"
        html = Markup(  # escapes what it is given
            '<figure class="figure"><img src="{}" alt="{}" style="max-width:100%"><figcaption>'
            "{}: on the left as they are read, on the right as the training sees them, with other "
            "random changes in each round (augment={}).</figcaption></figure>"
        )
        html = html.format(uri, words, words, run.recipe.get("augment", "data"))
        shown.setdefault(uri, Section("Augmentation", [html], small=run.name))
    return [*shown.values()]


# Images as data


def image_uri(pixels: NDArray[Any]) -> str:
    """Return an image in [0, 1], with shape (C, H, W), as a data URI."""
    return _uri(_colours(np.nan_to_num(np.asarray(pixels, np.float64))))


def _colours(pixels: Pixels) -> Bytes:
    values: Bytes = np.rint(255 * np.clip(pixels, 0, 1)).astype(np.uint8)
    return values.transpose(1, 2, 0) if values.shape[0] == 3 else np.asarray(values[0])


def _noise(change: Pixels) -> Bytes:
    if change.shape[0] == 3:
        return _colours(change + 0.5)
    share = np.clip(2 * change[0], -1, 1)[..., None]
    paper, warm, cold = (np.asarray(c, np.float64) for c in (_PAPER, _WARM, _COLD))
    mixed = paper + np.abs(share) * (np.where(share > 0, warm, cold) - paper)
    return np.asarray(np.rint(mixed), np.uint8)


def _uri(image: Bytes) -> str:
    file = BytesIO()
    Image.fromarray(image).save(file, "png", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode("ascii")
