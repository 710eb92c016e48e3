"""Measuring a front: which models are measured, and their evaluations on held-out images."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import dist
from typing import Any

import torch
from torch import Tensor, nn

from equipoise.data.sampling import draw
from equipoise.errors import RunError, UserError
from equipoise.evaluation.evaluate import evaluate_by
from equipoise.evaluation.outcome import TRANSFER
from equipoise.evaluation.protocol import Protocol
from equipoise.evaluation.result import Result
from equipoise.evaluation.saving import evaluate_and_save
from equipoise.evaluation.stored import FRONT, Store
from equipoise.fronts.barrier import barrier
from equipoise.fronts.held_out import HeldOut, gallery
from equipoise.fronts.line import BatchNorms, Ends, model_at
from equipoise.fronts.record import (
    CORRUPTIONS,
    FILE,
    FrontRecord,
    Place,
    Point,
    Third,
    following,
    in_place,
    shares,
)
from equipoise.settings.explanation import QUICK
from equipoise.store.digests import model_digest, tensor_digest
from equipoise.store.runs import Run
from equipoise.terminal.progress import Console, TimeUp

# Quick, and close to AutoAttack: on 300 held-out images at gamma = 0.4, 0.7 and 1 of short A3GT
# runs the robust accuracy is 5.3, 17.0 and 36.0 % on MNIST (eps 0.3; under PGD-100 8.3, 31.3 and
# 47.7, under AutoAttack 4.7, 13.7 and 32.0) and 57.3, 64.0 and 66.0 % on Fashion-MNIST (eps 0.1;
# under PGD-100 60.0, 65.0 and 66.7), with 7 to 56 gradients an image; PGD-100 takes 83 to 93.
DEFAULT = QUICK
PARTS = f"{FRONT}/shards"  # the folder of what is measured on parts of the images


class Survey:
    """Measures a front and stores it; stored evaluations are not repeated.

    Arguments:
        run: The run folder that it is stored in.
        ends: The two models.
        images: The images of the run, on the device of the search.
        protocol: How each model is attacked, with its threat.
        batchnorm: Statistics of BatchNorm between the ends: averaged, or estimated.
        console: Where progress is shown.
        also: With a third end: how each model is attacked besides, in the threat of that end.
        part: For a part of the images what its files say of it: ``shard``, its number and that of
            the parts, and ``front``, what the front is of; None: all images.

    Raises:
        UserError: If the protocol does not fit the images.
    """

    def __init__(
        self,
        run: Run,
        ends: Ends,
        images: HeldOut,
        protocol: Protocol,
        batchnorm: BatchNorms,
        console: Console,
        also: Protocol | None = None,
        *,
        part: Mapping[str, Any] | None = None,
    ) -> None:
        self.run, self.ends, self.images, self.part = run, ends, images, part
        self.batchnorm, self.console = batchnorm, console
        self.protocol = replace(protocol, individual=False, strongest=True, checks=False)
        held_out = images.validation
        if not protocol.names:
            raise UserError("expected at least one attack, got none")
        if protocol.n is not None and protocol.n > len(held_out):
            raise UserError(f"n must lie in 1..{len(held_out)} held-out images, got {protocol.n}")
        drawn, self.sample = draw(held_out, protocol.n, first=protocol.first)
        self.x, self.y, self.n = drawn.pixels(), drawn.y, len(drawn)
        self.origin = {"split": "validation", "sample": self.sample.content()}
        self.key = self.protocol.key(self.x.device) | {
            "data_sha256": tensor_digest(self.x),
            "labels_sha256": tensor_digest(self.y),
        }
        if part is not None:  # checks and audits are of all images
            self.protocol = replace(self.protocol, part=True)
            number, of = part["shard"]
            self.x, self.y = self.x[number - 1 :: of], self.y[number - 1 :: of]
        self.results: dict[Place, Result] = {}
        self.digests: dict[Place, str] = {}  # of the weights
        parts = run, ends, images
        self.also = None if also is None else Survey(*parts, also, batchnorm, console, part=part)

    def measure(self, places: Sequence[Place], others: Sequence[Run]) -> None:
        """Measure models in this order, and those of other runs; nothing is counted or written.

        Raises:
            TimeUp: If the time is over; the models that are measured are stored.
        """
        try:
            for place in places:
                self._measure(place)
            for run in others:
                self._other(run)
        except TimeUp as stop:
            stop.finished = len(self.results)
            raise

    def stores(self, places: Sequence[Place], others: Sequence[Run]) -> list[Store]:
        """Return the places of the evaluations of models, in both threats where there are two."""
        models = [*map(self._model, places), *(run.model() for run in others)]
        digests = dict.fromkeys(map(model_digest, models))
        every = [self] if self.also is None else [self, self.also]
        return [survey._store(digest) for survey in every for digest in digests]

    def front(
        self,
        places: Sequence[Place],
        points: int,
        marks: Mapping[float, str],
        others: Sequence[Run],
    ) -> FrontRecord:
        """Measure a front, and write it to the run folder.

        Arguments:
            places: The models that are measured first; between three ends all.
            points: The largest number of models to measure.
            marks: Values of gamma with a meaning.
            others: Runs whose kept models are measured in the same way.

        Raises:
            TimeUp: If the time is over; the models that are measured are written.
        """
        places = self._with_earlier(places, points)
        if len(places) > points:
            raise UserError(
                f"points must be at least {len(places)}, for gamma = "
                f"{', '.join(f'{place[0]:g}' for place in places)}, got {points}"
            )
        compared: list[Point] = []
        try:
            self._measure_all(places, points)
            compared += map(self._other, others)
        except TimeUp as stop:
            if self.results:
                self._write(marks, compared)
            stop.finished = len(self.results)
            raise
        return self._write(marks, compared)

    def _with_earlier(self, places: Sequence[Place], points: int) -> list[Place]:
        """Return the first models with those of an earlier front of these ends, if all fit in."""
        earlier = FrontRecord.read(self.run.path)
        known = self._conditions()
        if self.also is not None or earlier is None:  # between three ends it is an even grid
            return [*places]
        if any(getattr(earlier, key) != known[key] for key in known):
            return [*places]
        outside = max(max(places)[0] - 1, 0.0)
        inside = [p.place for p in earlier.points if -outside <= p.gamma <= 1 + outside]
        every = dict.fromkeys([*places, *inside])
        return [*every] if len(every) <= points else [*places]

    def _conditions(self) -> Mapping[str, Any]:
        """Return what models of a front have in common, as fields of its record."""
        threat = None if self.also is None else self.also.protocol.threat
        return {
            "ends": self.ends.names,
            "sha256": tuple(end["sha256"] for end in self.ends.content()),
            "also": None if threat is None else (threat.norm, threat.eps),
            "norm": self.protocol.threat.norm,
            "eps": self.protocol.threat.eps,
            "attacks": self.protocol.names,
            "n": len(self.y),
            "sample": self.sample,
            "data": self.key["data_sha256"],
            "batchnorm": self.batchnorm,
            "seed": self.protocol.seed,
        }

    def _measure_all(self, places: Sequence[Place], points: int) -> None:
        """Measure the first models, and then between the neighbours that differ most."""
        for place in places:
            self._measure(place)
        while self.also is None and len(self.results) < points:
            following_gamma = following([self._point(place) for place in self.results])
            if following_gamma is None:
                self.console.say("no further points: the accuracies of neighbours hardly differ")
                break
            self._measure((following_gamma,))

    def _write(self, marks: Mapping[float, str], others: Sequence[Point]) -> FrontRecord:
        """Write the measured models as a front."""
        for place in sorted(self.results):
            self._retry(place)
        record = self._record(marks, others)
        self.run.write_json(FILE, record.content())
        return record

    def _measure(self, place: Place) -> None:
        model, examples = self._model(place), self._neighbours(place)
        self.digests[place] = digest = model_digest(model)
        result = self._evaluated(model, digest, examples, self._name(place))
        if self.also is not None:  # first: a point is there once it is measured in both threats
            self.also._measure(place)
        self.results[place] = result

    def _name(self, place: Place) -> str:
        threat = f"{self.protocol.threat.norm}, eps = {self.protocol.threat.eps:g}"
        which = CORRUPTIONS if CORRUPTIONS in self.protocol.names else threat
        return in_place(place) if len(place) == 1 else f"{in_place(place)}, {which}"

    def _retry(self, place: Place) -> None:
        """Try the adversarial examples of neighbours that were measured after this place."""
        if self.also is not None:
            self.also._retry(place)
        result, digest = self.results[place], self.digests[place]
        tried = evaluate_by(
            replace(self.protocol, attacks=()),
            self._model(place),
            self.x,
            self.y,
            begun=result,
            others=self._neighbours(place),
            warm=True,
        )
        if not torch.equal(tried.robust, result.robust):
            self.results[place] = tried
            about = {**self._about(digest), "finished": True}
            self._store(digest).write(tried, self.x, about, self.origin)

    def _other(self, run: Run) -> Point:
        """Evaluate another run's kept model on the same images."""
        model, name = run.model().to(self.x.device), str(run.path)
        digest = model_digest(model)
        result = self._evaluated(model, digest, {}, name)
        method = str(run.read_json("config.json").get("method", ""))
        point = self._counted(result, digest, name=name, method=method)
        if self.also is None:
            return point
        return self._joined(point, result, self.also._evaluated(model, digest, {}, name))

    def _point(self, place: Place, mark: str = "") -> Point:
        result, digest = self.results[place], self.digests[place]
        point = self._counted(result, digest, place[0], mark=mark)
        if self.also is None:
            return point
        return self._joined(point, result, self.also.results[place], place[1])

    def _joined(self, point: Point, result: Result, second: Result, weight: float = 0.0) -> Point:
        """Return a point with its measurement in the threat of the third end."""
        assert self.also is not None
        there, here = self.also._counted(second, point.sha256), self.protocol.threat.norm
        changed = CORRUPTIONS in self.also.protocol.names
        norm = CORRUPTIONS if changed else str(self.also.protocol.threat.norm)
        third = Third(
            weight=weight,
            threat="third" if norm == here else norm,
            robust=there.robust,
            union=int((result.robust & second.robust).sum()),
            file=there.file,
        )
        costs = ("transferred", "searched", "forwards", "backwards", "seconds")
        both = {name: getattr(point, name) + getattr(there, name) for name in costs}
        return replace(point, third=third, **both)

    def _record(self, marks: Mapping[float, str], others: Sequence[Point]) -> FrontRecord:
        line = {} if self.also else {place[0]: result for place, result in self.results.items()}
        correct = {gamma: result.correct.numpy() for gamma, result in line.items()}
        robust = {gamma: result.robust.numpy() for gamma, result in line.items()}
        return FrontRecord(
            **self._conditions(),
            points=tuple(self._point(p, marks.get(p[0], "")) for p in sorted(self.results)),
            others=tuple(others),
            clean_barrier=barrier(correct),
            robust_barrier=barrier(robust),
            gallery=gallery(self.run, self.x, self.y),
            classes=self.images.dataset.classes,
        )

    def _model(self, place: Place) -> nn.Module:
        threat, seed = self.protocol.threat, self.protocol.seed
        return model_at(self.ends, place, self.batchnorm, self.images.train, threat, seed)

    def _neighbours(self, place: Place) -> dict[str, Tensor]:
        """Return the adversarial examples of the nearest measured models.

        Between two ends that is one on each side, between three ends the three nearest ones.
        """
        if len(place) == 1:
            below = max((p for p in self.results if p < place), default=None)
            above = min((p for p in self.results if p > place), default=None)
            near = sorted(filter(None, (below, above)), key=lambda p: dist(p, place))
        else:
            others = [p for p in sorted(self.results) if p != place]
            near = sorted(others, key=lambda p: dist(shares(p), shares(place)))[:3]
        return {f"gamma {' '.join(f'{w:g}' for w in p)}": self.results[p].x_adv for p in near}

    def _store(self, model: str) -> Store:
        whole = Store.by_key(self.run, self.key | {"model_sha256": model})
        if self.part is None:
            return whole
        number, of = self.part["shard"]
        return Store(self.run, f"{whole.name}-{number}-of-{of}", PARTS)

    def _measured(self, store: Store) -> tuple[bool, Result] | None:
        """Return a stored result, and whether it is finished; None: there is no sound one."""
        try:
            about, result, _ = store.read()
        except UserError as error:
            if store.path.exists():
                self.console.warn(f"{error}: the model is measured again")
            return None
        return bool(about["finished"]), result

    def _whole(self, model: str) -> Result | None:
        """Return what an earlier front of all images has of a part of them; None: nothing."""
        if self.part is None:
            return None
        stored = self._measured(Store.by_key(self.run, self.key | {"model_sha256": model}))
        number, of = self.part["shard"]
        return stored[1].at(slice(number - 1, None, of)) if stored and stored[0] else None

    def _evaluated(
        self, model: nn.Module, digest: str, neighbours: Mapping[str, Tensor], name: str
    ) -> Result:
        """Return the stored result of a model, or evaluate it; neighbours' examples come first."""
        store = self._store(digest)
        finished, before = self._measured(store) or (False, None)
        known = before if finished else self._whole(digest)
        if known is not None:
            result, how = known, "stored"
        else:
            result = evaluate_and_save(
                self.protocol,
                model,
                self.x,
                self.y,
                store=store,
                about=self._about(digest),
                origin=self.origin,
                console=self.console,
                before=before,
                resume=before is not None,
                others=neighbours,
                warm=True,
            )
            how = f"{sum(outcome.seconds for outcome in result.outcomes.values()):.1f} s"
        if failed := [finding for finding in result.findings if finding.status == "failed"]:
            raise RunError(f"{failed[0].message}; {failed[0].remedy}")
        point = self._counted(result, digest)
        self.console.say(
            f"{name}: clean {point.clean_accuracy:.2%}, robust {point.robust_accuracy:.2%}; of "
            f"{point.clean} correct images, {point.transferred} misclassified with neighbours' "
            f"examples, {point.searched} attacked  [{how}]"
        )
        return result

    def _about(self, digest: str) -> dict[str, Any]:
        """Return what identifies the evaluation of a model."""
        sample = {"n": self.n, "sample": self.sample.content(), **(self.part or {})}
        model = {"weights": "model", "model_sha256": digest}
        return {**self.key, **sample, **model, "asked": self.protocol.content()}

    def _counted(self, result: Result, digest: str, gamma: float = 0.0, **more: Any) -> Point:
        searches = [one for name, one in result.outcomes.items() if name != TRANSFER]
        warm = result.outcomes.get(TRANSFER)
        return Point(
            gamma=gamma,
            n=len(result.y),
            clean=int(result.correct.sum()),
            robust=int(result.robust.sum()),
            by_class=result.counted.by_class,
            transferred=int(warm.broken.sum()) if warm else 0,
            searched=int(searches[0].attacked.sum()) if searches else 0,
            forwards=sum(outcome.forwards for outcome in searches),
            backwards=sum(outcome.backwards for outcome in searches),
            seconds=sum(outcome.seconds for outcome in result.outcomes.values()),
            sha256=digest,
            file=str(self._store(digest).path.relative_to(self.run.path)),
            **more,
        )
