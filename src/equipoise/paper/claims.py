"""The paper's claims (``paper.yaml``), judged on the long table by the rules of docs/claims.md."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from typing import Any

import numpy as np

from equipoise.measures.seeds import Difference, holm, pooled
from equipoise.measures.statistics import interval
from equipoise.paper import measures
from equipoise.paper.ablation import PAPERS_GAMMA, grid, schedule, setting_text, shown_attacks
from equipoise.paper.accuracy import PAPERS, papers_radius
from equipoise.paper.measures import Accuracies, Relation, Rows, group
from equipoise.paper.prose import prose
from equipoise.paper.results import AUTOATTACK, CLEAN, WORST, PanelInfo, Results
from equipoise.paper.starts import rules
from equipoise.paper.tables import Line, table
from equipoise.paper.training import line_gaps, lines
from equipoise.parsing import load
from equipoise.report.content import Table

EXPERIMENTS: Mapping[str, Any] = load(
    files(str(__package__)).joinpath("paper.yaml").read_text(encoding="utf-8")
)
HOLDS, FAILS, LEVEL, UNDECIDED = "holds", "does not hold", "level", "undecided"
UNMEASURED = "not judged here: not measured"
FEW_SEEDS = "not judged here: fewer than three seeds"
ELSEWHERE = "not judged here: another setting"
SMOKE = "not judged here: scale smoke"
OUR_OWN = "not judged here: our own definition"
SEEDS, ALPHA = 3, 0.05  # the fewest seeds of a comparison; the level of a claim's family
MARGIN = 0.02  # two entries are level if they differ by no more
NO_ACCURACY = 0.01  # less than this is no accuracy


@dataclass(frozen=True)
class Comparison:
    """How a claim says one entry stands to another under an attack, and what was found."""

    attack: str
    first: str
    second: str
    wanted: Relation
    found: Difference | None = None
    p: float = 1.0  # adjusted for all comparisons of the claim

    @property
    def stands(self) -> Relation:
        """Return how the entries stand; ``open`` is neither told apart nor shown to be level."""
        if self.found is None or self.found.seeds < SEEDS:
            return "unknown"
        if self.p <= ALPHA:
            return "ahead" if self.found.mean > 0 else "behind"
        return "level" if self.found.within(MARGIN) else "open"


@dataclass(frozen=True)
class Judgement:
    """A claim, the panel it was judged on, its verdict, and what was found in words."""

    claim: Mapping[str, Any]
    panel: PanelInfo | None
    verdict: str
    found: str = ""
    comparisons: tuple[Comparison, ...] = ()


Judged = Sequence[Comparison] | tuple[str, str]  # comparisons, or a verdict and its numbers


def judge_all(results: Results) -> list[Judgement]:
    """Return every claim of an experiment, judged on every panel that it is about."""
    judgements = []
    for claim in EXPERIMENTS[results.experiment].get("claims", []):
        data = claim.get("data", "")
        panels = [panel for panel in results.panels if data in ("", panel.data)]
        if not panels:
            judgements.append(Judgement(claim, None, UNMEASURED))
        for panel in panels:
            judged = judge(claim, panel, results.of(panel))
            if results.scale == "smoke":
                judged = replace(judged, verdict=SMOKE)
            judgements.append(judged)
    return judgements


def judge(claim: Mapping[str, Any], panel: PanelInfo, rows: Rows) -> Judgement:
    """Return a claim, judged on a panel."""
    fields = ("id", "section", "text", "data", "judge", "joint")
    arguments = {key: value for key, value in claim.items() if key not in fields}
    judged = _JUDGES[claim["judge"]](panel, rows, **arguments)
    comparisons: tuple[Comparison, ...] = ()
    if isinstance(judged, tuple):
        verdict, found = judged
    else:
        comparisons = tuple(_adjusted(judged))
        verdict = decide(comparisons, joint=claim.get("joint", False))
        found = prose("compared", comparisons=comparisons)
    here = panel.data == data_of(claim) and panel.norm == "linf" and papers_radius(panel.eps)
    if not here and verdict != OUR_OWN:
        verdict = ELSEWHERE
    return Judgement(claim, panel, verdict, found, comparisons)


def data_of(claim: Mapping[str, Any]) -> str:
    """Return the dataset that the paper makes a claim about."""
    return str(claim.get("data", "cifar10"))


def _adjusted(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """Return the comparisons of a claim with the noise and the p-values of the whole family."""
    found = {i: c.found for i, c in enumerate(comparisons) if c.found and c.found.seeds >= SEEDS}
    for attack in {c.attack for c in comparisons}:
        family = [i for i in found if comparisons[i].attack == attack]
        found |= zip(family, pooled([found[i] for i in family]), strict=True)
    p = dict(zip(found, holm([each.p for each in found.values()]), strict=True))
    return [
        replace(c, found=found.get(i, c.found), p=p.get(i, 1.0)) for i, c in enumerate(comparisons)
    ]


def decide(comparisons: Sequence[Comparison], *, joint: bool = False) -> str:
    """Return the verdict on a claim from all of its comparisons.

    With ``joint`` those with one entry are one: ahead in one accuracy and behind in none.
    """
    stands: dict[Any, set[Relation]] = {}
    wanted: dict[Any, Relation] = {}
    for place, each in enumerate(comparisons):
        key = each.second if joint else place
        stands.setdefault(key, set()).add(each.stands)
        wanted[key] = each.wanted
    pairs = {(_in_all(stands[key]), wanted[key]) for key in wanted}
    if pairs & {("ahead", "behind"), ("behind", "ahead")}:
        return FAILS
    if not pairs or any(stand == "unknown" for stand, _ in pairs):
        few = comparisons and all(each.found for each in comparisons)
        return FEW_SEEDS if few else UNMEASURED
    if all(stand == wish for stand, wish in pairs):
        return HOLDS
    return LEVEL if all(stand in ("level", wish) for stand, wish in pairs) else UNDECIDED


def _in_all(stands: set[Relation]) -> Relation:
    """Return how an entry stands to another in several accuracies together."""
    if len(stands) == 1:
        return next(iter(stands))
    for sign, opposite in (("ahead", "behind"), ("behind", "ahead")):
        if sign in stands and not stands & {opposite, "unknown"}:
            return sign
    return "unknown" if "unknown" in stands else "open"


def _compared(first: Rows | None, second: Rows | None, attack: str) -> Difference | None:
    by_seed = measures.differences(first, second, attack)
    return measures.over_seeds(by_seed, first)


def _ranks(
    panel: PanelInfo,
    rows: Rows,
    attacks: Sequence[str],
    behind: Sequence[str] = (),
    ahead: Sequence[str] = (),
) -> Judged:
    """Compare the paper's A3GT with entries that it should be behind or ahead of."""
    entries = _strongest(rows)
    wanted: dict[str, Relation] = {
        **dict.fromkeys(behind, "behind"),
        **dict.fromkeys(ahead, "ahead"),
    }
    return [
        Comparison(attack, PAPERS, e, wish, _compared(entries.get(PAPERS), entries.get(e), attack))
        for attack in (measures.named(panel.attacks, start) for start in attacks)
        for e, wish in wanted.items()
    ]


def _strongest(rows: Rows) -> dict[Any, Rows]:
    """Return the rows of each entry at the largest radius."""
    rows = rows[rows["weights"] == "model"]
    return group(rows[rows["eps"] == max(measures.radii(rows), default=0.0)], "entry")


def _no_accuracy(panel: PanelInfo, rows: Rows, entry: str) -> Judged:
    """Judge whether an entry has less than 1 % accuracy under every attack, on every seed."""
    of_entry = _strongest(rows).get(entry)
    shown = {attack: measures.accuracies(of_entry, attack) for attack in panel.attacks}
    known = [accuracies for accuracies in shown.values() if accuracies]
    found = prose("no_accuracy", shown=shown, entry=entry)
    if not known or len(known) < len(shown):
        return UNMEASURED, found
    if min(len(accuracies.values) for accuracies in known) < SEEDS:
        return FEW_SEEDS, found

    def ends(accuracies: Accuracies, confidence: float) -> tuple[float, float]:
        """Return the lowest end and the highest end of the intervals of all seeds."""
        n = accuracies.n
        every = [interval(round(share * n), n, confidence) for share in accuracies.values]
        return min(low for low, _ in every), max(high for _, high in every)

    if any(ends(each, 1 - ALPHA / len(known))[0] > NO_ACCURACY for each in known):
        return FAILS, found
    none = all(ends(each, 1 - ALPHA)[1] < NO_ACCURACY for each in known)
    return HOLDS if none else UNDECIDED, found


def _equal_robustness(_panel: PanelInfo, rows: Rows, entry: str, others: Sequence[str]) -> Judged:
    """Compare the clean accuracy of an entry with that of others where both are as robust."""
    gaps = line_gaps(lines(rows, "training"), entry)
    by_seed = {e: {seed: gap for seed, (_, gap) in gaps.get(e, {}).items()} for e in others}
    return [
        Comparison(CLEAN, entry, other, "ahead", measures.over_seeds(by_seed[other], rows))
        for other in others
    ]


def _best_setting(_panel: PanelInfo, rows: Rows, attack: str, c: int | None = None) -> Judged:
    """Compare the paper's gamma, with a c, with every other setting; else with every other gamma.

    Without c it is the mean over the c of both: the best of many settings is high by chance.
    """
    settings = grid(rows)
    attack = measures.named(shown_attacks(settings), attack)
    if c is not None:
        own = PAPERS_GAMMA, c
        return [
            Comparison(
                attack,
                setting_text(own),
                setting_text(other),
                "ahead",
                _compared(settings.get(own), of_other, attack),
            )
            for other, of_other in settings.items()
            if other != own
        ]
    comparisons = []
    for gamma in dict.fromkeys(gamma for gamma, _ in settings if gamma != PAPERS_GAMMA):
        pairs = [
            measures.differences(settings.get((PAPERS_GAMMA, every)), models, attack)
            for (other, every), models in settings.items()
            if other == gamma
        ]
        measured = [by_seed for by_seed in pairs if by_seed]
        shared = set.intersection(*map(set, measured)) if measured else set()
        means = {s: np.mean([by_seed[s] for by_seed in measured], 0) for s in sorted(shared)}
        first, second = (f"gamma {schedule(each)}" for each in (PAPERS_GAMMA, gamma))
        found = measures.over_seeds(means, rows)
        comparisons.append(Comparison(attack, first, second, "ahead", found))
    return comparisons


def _adaptive_start(_panel: PanelInfo, rows: Rows) -> Judged:
    """Compare the adaptive start with each preset one, in clean and AutoAttack accuracy."""
    every = rules(rows)
    hero = next((rule for rule in every if rule.kind == "stable"), None)
    return [
        Comparison(a, hero.entry, rule.entry, "ahead", _compared(hero.rows, rule.rows, a))
        for rule in every
        for a in (CLEAN, AUTOATTACK)
        if hero and rule.kind == "fixed"
    ]


def _no_presets(_panel: PanelInfo, rows: Rows) -> Judged:
    """Judge whether the paper's rule gives the same t' whatever its own settings are."""
    tried = [rule for rule in rules(rows) if rule.kind == "threshold"]
    starts: dict[int, list[int | None]] = {}
    for rule in tried:
        runs = rule.rows[rule.rows["attack"] == WORST]
        for seed, start in zip(runs["seed"], runs["t_start"], strict=True):
            starts.setdefault(seed, []).append(start)
    found = prose("no_presets", tried=tried)
    if len(tried) < 2:
        return UNMEASURED, found
    whole = [len({*some}) == 1 for some in starts.values() if len(some) == len(tried)]
    if len(whole) < SEEDS:
        return FEW_SEEDS, found
    return HOLDS if all(whole) else UNDECIDED if any(whole) else FAILS, found


_JUDGES: Mapping[str, Callable[..., Judged]] = {
    "ranks": _ranks,
    "no_accuracy": _no_accuracy,
    "equal_robustness": _equal_robustness,
    "best_setting": _best_setting,
    "adaptive_start": _adaptive_start,
    "no_presets": _no_presets,
    "nothing": lambda *_: (OUR_OWN, ""),
}


def claims_table(judgements: Sequence[Judgement], name: str) -> Table | None:
    """Return the claims of an experiment as a table; None if it judges none."""
    rows, data = list[Line](), []
    for each in judgements:
        claim, panel = each.claim, each.panel
        radius = claim["judge"] == "nothing" or (panel and papers_radius(panel.eps))
        where = prose("where", panel=panel, data=data_of(claim), radius=radius) if panel else ""
        text = f"{claim['text']} (section {claim['section']})"
        rows.append(
            {
                "claim": text,
                "setting": where,
                "what was found": each.found,
                "verdict": each.verdict,
            }
        )
        start = claim["id"], panel.name if panel else "", each.verdict
        numbers = map(_numbers, each.comparisons or (None,))
        data += [(*start, *some) for some in numbers]
    head = "claim panel verdict attack first second wanted stands difference low95 high95 "
    head += "low90 high90 p p_adjusted seeds n"
    note = prose("claims_note")
    return table(name, "Claims of the paper", rows, head, data, note) if rows else None


def _numbers(comparison: Comparison | None) -> tuple[Any, ...]:
    if comparison is None:
        return (None,) * 14
    c, found = comparison, comparison.found
    names = c.attack, c.first, c.second, c.wanted, c.stands
    if found is None:
        return (*names, *(None,) * 9)
    ends = (end if found.seeds > 1 else None for at in (0.95, 0.9) for end in found.interval(at))
    return (*names, found.mean, *ends, found.p, c.p, found.seeds, found.n)
