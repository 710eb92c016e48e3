"""The regret of the default: what the best setting of each place has more."""

__all__ = ["Gains", "said", "table"]

from collections.abc import Mapping, Sequence
from statistics import median

from equipoise.paper.curves import DEFAULT, Gain, foreseen
from equipoise.paper.findings import Panel
from equipoise.paper.measures import average
from equipoise.paper.phrases import figure, margin, plural, words
from equipoise.report.content import Cell, Column, Table, file_name

BAR = 0.01  # the median regret, in robust accuracy, that the default may have
Gains = Mapping[Panel, Mapping[int, Sequence[Gain]]]  # by seed, the most first


def table(gains: Gains, experiment: str) -> Table:
    """Return the best setting of every panel and seed, and what the other seeds would choose."""
    rows, records = [], [_REGRET_HEAD]
    for panel, by_seed in gains.items():
        told = foreseen(by_seed)
        for seed, some in by_seed.items():
            best, chosen = some[0], told.get(seed)
            better = best.value > 0
            interval = f"[{' to '.join(map(margin, best.interval))}]" if best.interval else ""
            rows.append(
                (
                    Cell(panel.title),
                    Cell(str(seed)),
                    Cell(str(len(some) + 1)),
                    Cell(best.entry if better else "the default"),
                    Cell(figure(best.value), best.value, interval) if better else Cell("0.0", 0.0),
                    *_chosen(chosen),
                )
            )
            ends = best.interval or (None, None)
            blind = (chosen.entry, chosen.value) if chosen else (None, None)
            records.append(
                (panel.name, seed, len(some) + 1, best.entry, best.value, *ends, *blind)
            )
    heads = ("where", "seed", "settings", "best setting", "regret", "others' choice", "its gain")
    names = ("where", "best setting", "others' choice")
    columns = tuple(Column(head, head not in names) for head in heads)
    note = (
        "Regret: points of robust accuracy that the best setting has more than the default, in "
        "the mean over the clean accuracies that both reach; in square brackets the 95 % interval "
        "of that difference. The best is chosen after the fact among settings that differ by "
        "chance, too, so that regrets err to the high side."
    )
    other = (
        "Others' choice: the setting that is best with the other seeds, and what it has more "
        "than the default with this one. It is not chosen by what it is measured on, so that "
        "chance does not help it."
    )
    return Table(
        file_name(experiment, "regret"),
        "Regret of the default",
        columns,
        tuple(rows),
        (note, other),
        tuple(records),
    )


def _chosen(chosen: Gain | None) -> tuple[Cell, Cell]:
    if chosen is None:
        return Cell(), Cell()
    if chosen.entry == DEFAULT:
        return Cell("the default"), Cell("0.0", 0.0)
    return Cell(chosen.entry), Cell(margin(chosen.value), chosen.value)


_REGRET_HEAD: tuple[object, ...] = (
    *("panel", "seed", "settings", "best_other", "gain", "gain_low", "gain_high"),
    *("others_choice", "others_choice_gain"),
)


def said(gains: Gains) -> str:
    """Return whether the bar is reached, in words."""
    found = [max(some[0].value, 0.0) for by_seed in gains.values() for some in by_seed.values()]
    panels = sum(bool(by_seed) for by_seed in gains.values())
    middle = median(found)
    verb = "is" if middle <= BAR else "is not"
    return (
        f"Over {plural(panels, 'panel')} with their seeds, {plural(len(found), 'case')} in all, "
        f"the median regret of the default is {figure(middle)} points of robust "
        f"accuracy at equal clean accuracy, the largest {figure(max(found))}. At most "
        f"one point in the median {verb} reached.{_told(gains)}"
    )


def _told(gains: Gains) -> str:
    """Return what the choices of the other seeds say of the default."""
    blind = [gain.value for by_seed in gains.values() for gain in foreseen(by_seed).values()]
    if not blind:
        return ""
    better = sum(value > 0 for value in blind)
    return (
        f" Who chooses by the other seeds gains {margin(median(blind))} points in the median of "
        f"{plural(len(blind), 'case')}, {margin(average(blind))} in the mean, and is better off "
        f"than with the default in {words(better)}."
    )
