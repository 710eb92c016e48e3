"""Does one setting of a front serve everywhere? Each is set beside the default, at equal clean."""

__all__ = ["blocks"]

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from matplotlib.figure import Figure as Canvas

from equipoise.paper import regret
from equipoise.paper.curves import DEFAULT, Curve, Curves, Gain, curves, mean, regrets
from equipoise.paper.findings import Findings, Panel
from equipoise.paper.measures import average
from equipoise.paper.phrases import area_item, figure, margin, seeds
from equipoise.report import pictures, wording
from equipoise.report.content import Block, Cell, Column, Picture, Table, file_name
from equipoise.report.palette import Palette, Style, style_of


def blocks(findings: Findings) -> list[Block]:
    """Return the picture, what each setting gave, the regret, and what that says."""
    panels = {panel: found for panel in findings.panels if (found := curves(findings, panel))}
    if not panels:
        return ["Nothing has been measured yet."]
    gains = {panel: regrets(found) for panel, found in panels.items()}
    made: list[Block] = [_picture(panels, findings.experiment)]
    for panel, found in panels.items():
        made.append(_settings(panel, found, gains[panel]))
    if any(gains.values()):
        made += [regret.table(gains, findings.experiment), regret.said(gains)]
    return made


def _picture(panels: Mapping[Panel, Curves], experiment: str) -> Picture:
    told = [
        f"{panel.title}: "
        + ", ".join(f"{entry} {_span(by_seed.values())}" for entry, by_seed in found.items())
        for panel, found in panels.items()
    ]
    return Picture(
        file_name(experiment, "fronts"),
        "The front of every setting",
        lambda palette: _draw(palette, panels),
        f"Robust against clean accuracy. {'; '.join(told)}.",
        "At a clean accuracy (upwards) the highest robust accuracy of the models that are at "
        "least as clean; a mean over the seeds of a setting, as far as all of them reach.",
    )


def _span(some: Iterable[Curve]) -> str:
    found = [curve.ends for curve in some]
    clean = average([most for (most, _), _ in found])
    robust = average([most for _, (_, most) in found])
    return f"up to {wording.percent(clean)} clean or {wording.percent(robust)} robust"


def _draw(palette: Palette, panels: Mapping[Panel, Curves]) -> Canvas:
    names = list(dict.fromkeys(entry for found in panels.values() for entry in found))
    looks = {entry: _look(entry, place) for place, entry in enumerate(names)}
    rows = -(-(len(panels) + 1) // 3)
    canvas = pictures.blank(palette, 740, 260 * rows)
    for i, (panel, found) in enumerate(panels.items()):
        left, bottom = 246 * (i % 3) + 50, 260 * (rows - 1 - i // 3) + 44
        axes = pictures.axes_at(canvas, palette, (left, bottom, 184, 180), grid="both")
        for entry in sorted(found, key=lambda entry: entry == DEFAULT):
            clean, robust = mean(found[entry].values())
            pictures.line(axes, palette, robust, clean, looks[entry], markers=False)
        pictures.plane(axes)
        title = panel.title.partition(" (")[0]  # a file's name is too long here
        axes.set_title(title, color=palette.ink, fontsize=10, loc="left", x=-0.22)
        axes.set_xlabel("robust accuracy", color=palette.muted, fontsize=10, labelpad=2)
    last = len(panels)
    corner = (246 * (last % 3) + 30, 260 * (rows - last // 3) - 18)
    pictures.legend(canvas, palette, looks, corner)
    return canvas


def _look(entry: str, place: int) -> Style:
    look = Style("ink", (), "o", 2.6) if entry == DEFAULT else style_of(entry, place)
    return replace(look, marker="")  # points are not marked


def _settings(panel: Panel, found: Curves, gains: Mapping[int, Sequence[Gain]]) -> Table:
    rows, records = [], [_SETTINGS_HEAD]
    for entry, by_seed in found.items():
        ends = [curve.ends for curve in by_seed.values()]
        areas = {seed: curve.area(panel.classes) for seed, curve in by_seed.items()}
        mine = {seed: g.value for seed, some in gains.items() for g in some if g.entry == entry}
        starts = sorted({c.rows[0].t_start for c in by_seed.values()} - {None}, key=str)
        rows.append(
            (
                Cell(entry),
                Cell(seeds(list(by_seed), panel.seeds)),
                Cell(", ".join(map(str, starts)) or wording.MISSING),
                *(_end([pair[i] for pair in ends]) for i in (0, 1)),
                area_item([*areas.values()]),
                _margin([*mine.values()]) if entry != DEFAULT else Cell("the default"),
            )
        )
        records += [
            (entry, seed, curve.rows[0].n, *curve.ends[0], *curve.ends[1], areas[seed], t, more)
            for seed, curve in by_seed.items()
            for t, more in [(curve.rows[0].t_start, mine.get(seed))]
        ]
    columns = (
        *(Column(head, False) for head in ("setting", "seeds", "parts after round")),
        *map(Column, ("clean end", "robust end", "area", "robust, at equal clean")),
    )
    area = f"Area above ({1 / panel.classes:.3g}, 0) that the measured models dominate."
    notes = (_ENDS, f"{area} {_LAST}")
    name = file_name("settings", panel.name.removeprefix("settings-"))
    return Table(
        name, f"Every setting, {panel.title}", columns, tuple(rows), notes, tuple(records)
    )


_ENDS = (
    "Clean / robust accuracy in percent of the model with the highest clean and of that with the "
    "highest robust accuracy, on held-out images, means over the seeds."
)
_LAST = (
    "In the last column the points of robust accuracy that a setting has more than the default, "
    "in the mean over the clean accuracies that both reach, and of several seeds their range."
)
_SETTINGS_HEAD: tuple[object, ...] = (
    *("setting", "seed", "n", "clean_end_clean", "clean_end_robust"),
    *("robust_end_clean", "robust_end_robust", "area", "t_branch", "gain"),
)


def _end(ends: Sequence[tuple[float, float]]) -> Cell:
    clean, robust = (average([end[i] for end in ends]) for i in (0, 1))
    return Cell(f"{figure(clean)} / {figure(robust)}", clean)


def _margin(values: Sequence[float]) -> Cell:
    if not values:
        return Cell()
    mean = average(values)
    several = f"({margin(min(values))}..{margin(max(values))})" if len(values) > 1 else ""
    return Cell(margin(mean), mean, several)
