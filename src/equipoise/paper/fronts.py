"""One run against many: the front of a run of two branches beside a training for each point."""

__all__ = ["BAR", "ONE_RUN", "RIVAL", "Family", "Gap", "blocks", "families", "gap"]

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

import numpy as np
from matplotlib.figure import Figure as Canvas
from numpy.typing import NDArray

from equipoise.errors import UserError
from equipoise.measures.statistics import hypervolume
from equipoise.paper.findings import CLEAN, ENSEMBLE, Findings, Panel, Row
from equipoise.paper.measures import cell
from equipoise.paper.phrases import area_item, number_item, plural, seeds, spread_item
from equipoise.paper.training_curves import Line, joined
from equipoise.report import pictures, wording
from equipoise.report.content import Block, Cell, Column, Picture, Table, file_name
from equipoise.report.palette import Palette, Style

BAR = 1 / 3  # of the gradient evaluations of the rival's trainings
ONE_RUN, RIVAL = "one run", "mixed AT"
_BOTH = (CLEAN, ENSEMBLE)
_DRAWN = 1000  # resamples of the images
# Which entries stand for an idea, and what tells its points apart: a setting, or the mix.
_FAMILIES = {
    ONE_RUN: ("a3gt-front", "gamma"),
    RIVAL: ("mix-at-*", "weight"),
    "TRADES": ("trades-*", "beta"),
    "averaged PGD-AT": ("pgd-at-averaged", ""),
    "A3GT": ("a3gt", ""),
    "Generalist": ("generalist", ""),
}
_SYMBOLS = {"gamma": "gamma", "weight": "w", "beta": "beta"}
_LOOKS = {
    ONE_RUN: Style(1, (), "o", 2.4),
    RIVAL: Style(2, (3, 1.5), "v"),
    "TRADES": Style(3, (5, 2), "D"),
    "averaged PGD-AT": Style(2, (), ">"),
    "A3GT": Style("ink", (), "h"),
    "Generalist": Style(0, (), "s"),
}


@dataclass(frozen=True)
class Family:
    """Models that stand for one way to a front.

    Arguments:
        name: Its name.
        dial: What its points are told apart by; nothing of a single one.
        rows: By seed, the model at each place.
    """

    name: str
    dial: str
    rows: Mapping[int, Mapping[float, Row]]

    @property
    def line(self) -> Line:
        """Return its points, of the seeds that have most of them."""
        return joined(self.name, self.rows)

    def at(self, place: float) -> list[Row]:
        """Return the models of all seeds at a place."""
        return [rows[place] for rows in self.rows.values() if place in rows]

    def whole(self) -> list[int]:
        """Return the seeds that have every point that another one has."""
        every = {place for rows in self.rows.values() for place in rows}
        return sorted(seed for seed, rows in self.rows.items() if set(rows) == every)

    def trainings(self, seed: int) -> dict[str, Row]:
        """Return a model of each training of a seed."""
        return {row.entry: row for row in self.rows[seed].values()}

    def cost(self, seed: int) -> float | None:
        """Return the gradient evaluations of all trainings of a seed; None: not all are known."""
        found = [row.gradient_evaluations for row in self.trainings(seed).values()]
        known = [value for value in found if value is not None]
        return sum(known) if len(known) == len(found) else None


@dataclass(frozen=True)
class Gap:
    """How the area of the one run differs from its rival's, on one seed.

    Arguments:
        seed: The seed.
        areas: The area of the one run, and of the rival.
        interval: The 95 % interval of their difference, of resampled images; None where there
            are no verdicts.
        share: The gradient evaluations of the one run, as a share of the rival's.
    """

    seed: int
    areas: tuple[float, float]
    interval: tuple[float, float] | None
    share: float | None

    @property
    def difference(self) -> float:
        """Return the one run's area less the rival's."""
        return self.areas[0] - self.areas[1]


def families(findings: Findings, panel: Panel) -> list[Family]:
    """Return the families of a panel that have a model with both accuracies."""
    rows = [row for row in findings.of(panel, weights=None) if {*_BOTH} <= {*row.correct}]
    made = []
    for name, (pattern, dial) in _FAMILIES.items():
        placed: dict[int, dict[float, Row]] = {}
        for row in rows:
            if fnmatchcase(row.entry, pattern):
                placed.setdefault(row.seed, {}).setdefault(_place(row, dial), row)
        if placed:
            made.append(Family(name, dial, placed))
    return made


def _place(row: Row, dial: str) -> float:
    """Return what tells a model apart from the others of its family."""
    if not dial:
        return 0.0
    if dial == "gamma" and row.gamma is not None:
        return row.gamma
    own = row.settings if dial == "gamma" else row.settings.get("robust", {})
    value = own.get(dial) if isinstance(own, Mapping) else None
    if not isinstance(value, int | float):
        raise UserError(
            f"the findings hold no {dial} of {row.entry}, seed {row.seed}; make them again with "
            "`equipoise reproduce front`"
        )
    return float(value)


def gap(one: Family, rival: Family, classes: int) -> list[Gap]:
    """Return how two families differ, on every seed on which both are whole.

    Arguments:
        one: The one run.
        rival: The other.
        classes: How many classes there are: chance is one of them.
    """
    made = []
    for seed in sorted({*one.whole()} & {*rival.whole()}):
        pair = [list(family.rows[seed].values()) for family in (one, rival)]
        areas = [_area(_shares(rows), classes) for rows in pair]
        mine, its = one.cost(seed), rival.cost(seed)
        share = mine / its if mine is not None and its else None
        made.append(Gap(seed, (areas[0], areas[1]), _interval(pair, classes), share))
    return made


def _shares(rows: Sequence[Row]) -> list[tuple[float, float]]:
    return [(row.correct[CLEAN] / row.n, row.correct[ENSEMBLE] / row.n) for row in rows]


def _area(points: Iterable[tuple[float, float]], classes: int) -> float:
    return hypervolume(list(points), (1 / classes, 0.0))


def _interval(pair: Sequence[Sequence[Row]], classes: int) -> tuple[float, float] | None:
    """Return the 95 % interval of a difference of areas over images drawn with replacement."""
    rows = [row for some in pair for row in some]
    n = rows[0].n
    if any({*_BOTH} - {*row.verdicts} or row.n != n for row in rows):
        return None
    drawn = np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), _DRAWN) / n
    first, second = (_resampled(some, drawn, classes) for some in pair)
    low, high = np.quantile(first - second, (0.025, 0.975))
    return float(low), float(high)


def _resampled(
    rows: Sequence[Row], drawn: NDArray[np.float64], classes: int
) -> NDArray[np.float64]:
    """Return the area of some models for each drawing of images."""
    clean, robust = (drawn @ np.stack([row.verdicts[a] for row in rows], 1) for a in _BOTH)
    pairs = zip(clean.tolist(), robust.tolist(), strict=True)
    return np.array([_area(zip(*points, strict=True), classes) for points in pairs])


def blocks(findings: Findings) -> list[Block]:
    """Return the picture, the areas, the points and what they say, panel by panel."""
    made: list[Block] = []
    for panel in findings.panels:
        own = panel.name.removeprefix(f"{findings.experiment}-")
        name = file_name(findings.experiment, own if len(findings.panels) > 1 else "")
        found = families(findings, panel)
        if not found:
            made.append(f"{panel.title}: nothing has been judged yet.")
            continue
        made.append(_picture(found, panel, name))
        made.append(_areas(found, panel, f"{name}-area"))
        made.append(_points(found, panel, f"{name}-points"))
        by_name = {family.name: family for family in found}
        if ONE_RUN in by_name and RIVAL in by_name:
            gaps = gap(by_name[ONE_RUN], by_name[RIVAL], panel.classes)
            made.append(_said(by_name[ONE_RUN], by_name[RIVAL], gaps, panel))
    return made


def _picture(found: Sequence[Family], panel: Panel, name: str) -> Picture:
    told = [
        f"{family.name} "
        + ", ".join(f"{wording.percent(c)} and {wording.percent(r)}" for c, r in family.line.means)
        for family in found
    ]
    dials = [
        f"{family.name}: {_SYMBOLS[family.dial]}" for family in found if family.dial in _SYMBOLS
    ]
    several = max(len(family.line.seeds) for family in found) > 1
    return Picture(
        name,
        f"One run against many, {panel.title}",
        lambda palette: _draw(palette, found),
        f"Clean and AutoAttack accuracy. {'; '.join(told)}.",
        f"Beside a point what it was made with ({'; '.join(dials)})."
        + (" Points are means over the seeds." if several else " One seed."),
    )


def _draw(palette: Palette, found: Sequence[Family]) -> Canvas:
    canvas = pictures.blank(palette, 720, 400)
    axes = pictures.axes_at(canvas, palette, (58, 46, 500, 340), grid="both")
    labels: list[str] = []
    points: list[tuple[float, float]] = []
    colours: list[str] = []
    busy: list[tuple[float, float]] = []
    for family in found:
        look, line = _LOOKS[family.name], family.line
        busy += pictures.along((r, c) for c, r in line.means)
        robust, clean = [r for _, r in line.means], [c for c, _ in line.means]
        pictures.line(axes, palette, robust, clean, look)
        if family.dial:
            labels += [f"{place:g}" for place in line.along]
            points += list(zip(robust, clean, strict=True))
            colours += [look.of(palette)] * len(line.along)
    pictures.plane(axes)
    pictures.put_labels(axes, labels, points, colours, busy)
    axes.set_xlabel("accuracy under AutoAttack", color=palette.muted, fontsize=10)
    axes.set_ylabel("clean accuracy", color=palette.muted, fontsize=10)
    shown = {family.name: _LOOKS[family.name] for family in found}
    for family in found:
        if len(family.line.means) == 1:  # a point has no line
            shown[family.name] = replace(shown[family.name], width=0)
    pictures.legend(canvas, palette, shown, (580, 380))
    return canvas


def _areas(found: Sequence[Family], panel: Panel, name: str) -> Table:
    rows, records = [], [_AREA_HEAD]
    for family in found:
        whole = family.whole()
        values = [_area(_shares([*family.rows[s].values()]), panel.classes) for s in whole]
        cost = [family.cost(seed) for seed in whole]
        rows.append(
            (
                Cell(family.name),
                Cell(seeds(whole, panel.seeds)),
                number_item([float(len(family.trainings(s))) for s in whole], "{:.0f}"),
                number_item([float(len(family.rows[s])) for s in whole], "{:.0f}"),
                number_item(cost),
                area_item(values),
            )
        )
        records += [
            (family.name, seed, len(family.trainings(seed)), len(family.rows[seed]), spent, area)
            for seed, spent, area in zip(whole, cost, values, strict=True)
        ]
    heads = ("trainings", "models", "gradient evaluations", "area")
    columns = (Column("family", False), Column("seeds", False), *map(Column, heads))
    note = (
        "Area of (clean, AutoAttack) accuracy that the models of a seed dominate, both as "
        f"fractions, above ({1 / panel.classes:.3g}, 0): chance on clean images, none under "
        "attack; in brackets its range over the seeds. A family of several models can cover more "
        "by their number alone."
    )
    return Table(name, f"Areas, {panel.title}", columns, tuple(rows), (note,), tuple(records))


_AREA_HEAD: tuple[object, ...] = (
    *("family", "seed", "trainings", "models", "gradient_evaluations", "area"),
)


def _points(found: Sequence[Family], panel: Panel, name: str) -> Table:
    rows, records = [], [_POINTS_HEAD]
    for family in found:
        for place in sorted({p for known in family.rows.values() for p in known}):
            mine = family.at(place)
            dial = f"{_SYMBOLS[family.dial]} = {place:g}" if family.dial else ""
            rows.append(
                (
                    Cell(family.name),
                    Cell(dial),
                    Cell(seeds([row.seed for row in mine], panel.seeds)),
                    *(spread_item(cell(mine, attack)) for attack in _BOTH),
                )
            )
            records += [
                (family.name, dial, row.seed, row.n, *map(row.accuracy, _BOTH), row.t_start)
                for row in mine
            ]
    heads = ("family", "made with", "seeds", "clean", "AutoAttack")
    columns = tuple(Column(head, i > 2) for i, head in enumerate(heads))
    note = (
        "Accuracy in percent; in round brackets the range over the seeds, in square ones the "
        "exact 95 % interval of one seed's images. No model was chosen: what the points are made "
        "with was fixed beforehand."
    )
    title = f"Every model, {panel.title}"
    return Table(name, title, columns, tuple(rows), (note,), tuple(records))


_POINTS_HEAD: tuple[object, ...] = (
    *("family", "made_with", "seed", "n", "clean", "autoattack", "t_branch"),
)


def _said(one: Family, rival: Family, gaps: Sequence[Gap], panel: Panel) -> str:
    if not gaps:
        return f"{panel.title}: no seed has all models of both {ONE_RUN} and {RIVAL} yet."
    told = "; ".join(_of_seed(found) for found in gaps)
    models = [len(family.rows[gaps[0].seed]) for family in (one, rival)]
    text = (
        f"{panel.title}: the area of {plural(models[0], 'mix', 'mixes')} of one run, less that of "
        f"{plural(models[1], 'mixed AT model')}: {told}"
    )
    if any(found.interval for found in gaps):
        text += " (in brackets 95 % intervals, of resampled images)"
    shares = [found.share for found in gaps if found.share is not None]
    if not shares:
        return f"{text}."
    cheap = len(shares) == len(gaps) and max(shares) <= BAR
    reached = sum(found.difference >= 0 for found in gaps)
    text += (
        f". It took {_range(shares)} % of their gradient evaluations. At least their area, for a "
        "third of their evaluations or fewer, is "
    )
    if not cheap:
        return f"{text}not reached: it took more."
    return f"{text}reached on {_how_often(reached, len(gaps), len(panel.seeds))}."


def _how_often(reached: int, found: int, planned: int) -> str:
    if not reached:
        return "no seed"
    if reached < found:
        return f"{reached} of {plural(found, 'seed')}"
    there = f"the {plural(found, 'seed')} there {'is' if found == 1 else 'are'}"
    return there if found < planned else "every seed"


def _range(shares: Sequence[float]) -> str:
    low, high = (f"{100 * share:.0f}" for share in (min(shares), max(shares)))
    return low if low == high else f"{low} to {high}"


def _of_seed(found: Gap) -> str:
    text = f"{found.difference:+.4f}".replace("-", "−")
    if found.interval:
        low, high = (f"{value:+.4f}".replace("-", "−") for value in found.interval)
        text += f" ({low} to {high})"
    return f"seed {found.seed} {text}"
