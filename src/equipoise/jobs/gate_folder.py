"""The evaluations of a run folder for a gate, and which of them is meant. No torch."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Self

from equipoise.errors import UserError, nearest, short
from equipoise.parsing import choice, number, read_mapping, reason
from equipoise.plugins import command
from equipoise.report.wording import NORMS, eps_text
from equipoise.store.pairing import same_images
from equipoise.store.records import WORST, Record
from equipoise.store.verdicts import FOLDER, UNREADABLE, Evaluation, read

CLEAN = "clean"
TRANSFER = "transfer"
OWN_POINTS = "points from an earlier evaluation"  # of an attack that ran again


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Which of the evaluations of a run folder are meant.

    Arguments:
        norm: The norm; None: any.
        eps: The radius; None: any.
        n: The number of images; None: any.
        first: With ``n``: whether they are the first images, not a stratified sample.
        weights: The name of the weights.
    """

    norm: str | None = None
    eps: float | None = None
    n: int | None = None
    first: bool = False
    weights: str = "model"

    def __post_init__(self) -> None:
        if self.first and self.n is None:
            raise UserError("--first: expected -n, the number of images, with it; got none")
        if self.norm is not None:
            choice(self.norm, "--norm", [*NORMS])

    def __contains__(self, evaluation: Evaluation) -> bool:
        """Return whether an evaluation is one of those that are meant."""
        sample, eps = evaluation.sample, evaluation.verdicts.eps
        first = sample is not None and sample.seed is None
        return (
            evaluation.weights == self.weights
            and self.norm in (None, evaluation.verdicts.norm)
            and (self.eps is None or math.isclose(self.eps, eps, rel_tol=1e-5))
            and (self.n is None or (self.n == evaluation.n and self.first == first))
        )

    @property
    def options(self) -> list[str]:
        """The options of ``equipoise evaluate`` that mean the same."""
        words = [] if self.norm is None else ["--norm", self.norm]
        words += [] if self.eps is None else ["--eps", eps_exact(self.eps)]
        words += [] if self.n is None else ["-n", str(self.n)]
        words += ["--first"] if self.first else []
        return words + ([] if self.weights == "model" else ["--weights", self.weights])

    def filled(self, like: Evaluation) -> Self:
        """Return the same with the norm and the radius of an evaluation where it has none."""
        eps = like.verdicts.eps if self.eps is None else self.eps
        return replace(self, norm=like.verdicts.norm, eps=eps)

    @classmethod
    def of(cls, evaluation: Evaluation) -> Self:
        """Return the selection whose options make an evaluation like this one."""
        verdicts, sample = evaluation.verdicts, evaluation.sample
        part = sample if sample and sample.n < sample.of else None
        return cls(
            norm=verdicts.norm,
            eps=verdicts.eps,
            n=part.n if part else None,
            first=part is not None and part.seed is None,
            weights=evaluation.weights,
        )


@dataclass
class Folder:
    """A run folder as a gate sees it.

    Arguments:
        path: The folder.
        evaluations: The evaluations of the weights that it has now.
        notes: What was left out, for messages.
        used: The evaluations that decided something.
    """

    path: Path
    evaluations: list[Evaluation]
    notes: str = ""
    used: list[Evaluation] = field(default_factory=list)

    @classmethod
    def open(cls, path: Path) -> Self:
        """Read a folder.

        Raises:
            UserError: If it holds no evaluation, or one that is damaged.
        """
        if not path.is_dir():
            raise UserError(f"no run folder at {path}")
        found, notes = list[Evaluation](), ""
        for file in sorted((path / FOLDER).glob("*.safetensors")):
            try:
                evaluation = read(file)
                if evaluation.current and evaluation.records:
                    found.append(evaluation)
                else:
                    notes += f"; {file.stem} is of other weights than the folder has now"
            except UNREADABLE as error:
                raise UserError(
                    f"{file} is damaged ({short(reason(error))}): nothing is decided; remove it "
                    "and evaluate again"
                ) from None
        if not found:
            raise UserError(f"{path} holds no evaluation{notes}; run: {command('evaluate', path)}")
        return cls(path, found, notes)

    def choose(self, name: str, selection: Selection) -> Evaluation:
        """Return the one evaluation that has a result and is meant.

        Arguments:
            name: The name of the result: ``clean``, ``worst-case``, an attack or an ensemble.
            selection: Which evaluations are meant.

        Raises:
            UserError: If there is none, or several, or it cannot decide anything.
        """
        meant = [e for e in self.evaluations if e in selection]
        if not meant:
            asked = " ".join(selection.options) or "the weights model"
            line = f"{self.path} has no evaluation with {asked}: it has {self._names()}"
            near = [e for e in self.evaluations if selection.norm in (None, e.verdicts.norm)]
            if near:  # in another norm the radius is unknown
                like = max(near, key=lambda e: name in results(e))
                line += self._to_make(like, selection.filled(like))
            raise UserError(line)
        having = [e for e in meant if name in results(e)]
        if not having:
            known = dict.fromkeys(known for e in meant for known in results(e))
            attack, first = [] if name == WORST else [name], meant[0]
            again = self.evaluate(attack, Selection.of(first), first)
            line = nearest(name, known, "name in --require:")
            if re.sub("[ _]", "-", name.lower()) not in known:  # not only spelled otherwise
                line += f"; if {name} is an attack (equipoise list attacks), to run it: {again}"
            raise UserError(line)
        if name == CLEAN and all(same_images(each, having[0]) for each in having):
            having = sorted(having, key=lambda e: not e.finished)[:1]
        if len(having) > 1:
            names = ", ".join(e.name for e in having)
            raise UserError(
                f"{self.path} has {len(having)} evaluations with {name}: {names}; choose one with "
                "--norm, --eps, -n (and --first), or write the radius into the requirement, like "
                f'"{name}@{eps_exact(having[0].verdicts.eps)}>=0.7"'
            )
        return self._use(having[0])

    def like(self, other: Evaluation) -> Evaluation:
        """Return the evaluation with the images, the threat and the weights of another folder's.

        Raises:
            UserError: If there is none, with the command that makes it.
        """
        same = Selection.of(other)
        ours = [e for e in self.evaluations if e in replace(same, n=None, first=False)]
        ours = sorted((e for e in ours if same_images(e, other)), key=lambda e: not e.finished)
        if not ours:
            images = other.sample.words() if other.sample else f"{other.n:,} images"
            raise UserError(
                f"{self.path} has no evaluation of the same images, threat and weights as "
                f"{other.path} ({images}): it has {self._names()}{self._to_make(other, same)}"
            )
        return self._use(ours[0])

    def _to_make(self, like: Evaluation, selection: Selection) -> str:
        """Return the end of a message: the command that makes an evaluation, or why none can."""
        data, weights = "data_sha256", selection.weights
        if like.origin.get(data) not in {e.origin.get(data) for e in self.evaluations}:
            return "; its test images are others, so no command can make one"
        mixed = weights == "model" or weights.startswith("gamma-")
        if not mixed and not (self.path / f"{weights}.safetensors").is_file():
            return f"; it has no file of the weights {weights}"
        if like.sample and (selection.n or 0) > like.sample.of:
            return f"; there are only {like.sample.of:,} test images"
        return f"; to make one: {self.evaluate(attacks_of(like), selection, like)}"

    def evaluate(
        self, attacks: Sequence[str], selection: Selection, like: Evaluation, *more: str
    ) -> str:
        """Return the command that makes an evaluation like another, with its code."""
        own = read_mapping(self.path / "own-model.json").get("model")
        words = ["--attacks", ",".join(attacks)] if attacks else []
        words += ["--model", str(own)] if own else []
        file = (like.about.get("asked") or {}).get("import")
        return command("evaluate", self.path, *words, *selection.options, *more, made_with=file)

    def _names(self) -> str:
        return ", ".join(e.name for e in self.evaluations) + self.notes

    def _use(self, evaluation: Evaluation) -> Evaluation:
        """Return an evaluation, and remember that it was used.

        Raises:
            UserError: If it is not finished, or was made without its checks.
        """
        same, asked = Selection.of(evaluation), evaluation.about.get("asked") or {}
        if not evaluation.finished:
            again = self.evaluate((), same, evaluation, "--resume")
            raise UserError(
                f"{evaluation.path} is not finished: nothing is decided; continue it: {again}"
            )
        if asked.get("checks") is False:
            again = self.evaluate(attacks_of(evaluation), same, evaluation)
            raise UserError(
                f"{evaluation.path} was made with --no-checks: nothing is decided; run: {again}"
            )
        if evaluation not in self.used:
            self.used.append(evaluation)
        return evaluation


def results(evaluation: Evaluation) -> dict[str, Record]:
    """Return the records by ``clean``, ``worst-case`` and the names of attacks and ensembles."""
    return {record.attack: record for record in evaluation.records}


def attacks_of(evaluation: Evaluation) -> list[str]:
    """Return the names of the attacks and ensembles of an evaluation, without points of others."""
    outcomes = evaluation.verdicts.outcomes.items()
    own = (o["ensemble"] or name for name, o in outcomes if o["ensemble"] or name != TRANSFER)
    return list(dict.fromkeys(own))


def radius(text: str | None, what: str) -> float | None:
    """Return the radius in a text like ``8/255``; None stands for none.

    Raises:
        UserError: If it is none; ``what`` names the option.
    """
    if text is None:
        return None
    eps = number(text)
    if isinstance(eps, bool) or not isinstance(eps, int | float) or not 0 < eps < math.inf:
        raise UserError(f"{what} takes one radius, like 8/255 or 0.1, got {short(text)}")
    return float(eps)


def eps_exact(eps: float) -> str:
    """Return a radius for a command: as a fraction like ``8/255`` where it is one."""
    text = eps_text(eps)
    return text if math.isclose(float(number(text)), eps, rel_tol=1e-9) else repr(eps)
