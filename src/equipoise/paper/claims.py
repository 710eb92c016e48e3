"""The paper's claims (``paper.yaml``), judged on the long table.

A claim holds if the numbers show it beyond the noise of the images, and does not hold if they show
its opposite. Otherwise it is undecided, or not measured where an entry or attack is missing.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import numpy as np

from equipoise.paper import measures
from equipoise.paper.ablation import PAPERS_GAMMA, grid, setting_text, shown_attacks, top
from equipoise.paper.accuracy import A3GT, papers_radius
from equipoise.paper.measures import Relation, Rows, average, group
from equipoise.paper.prose import prose
from equipoise.paper.results import AUTOATTACK, CLEAN, PanelInfo, Results
from equipoise.paper.scores import entry_scores, noise
from equipoise.paper.starts import StartRule, rules
from equipoise.paper.training import line_gaps, lines
from equipoise.parsing import load

EXPERIMENTS: Mapping[str, Any] = load(
    files(str(__package__)).joinpath("paper.yaml").read_text(encoding="utf-8")
)
HOLDS, FAILS = "holds here", "does not hold here"
UNDECIDED, UNMEASURED = "undecided", "not measured"
VERDICTS = (HOLDS, FAILS, UNDECIDED, UNMEASURED)
Pair = tuple[Relation, Relation]  # how two entries stand, and how the claim says they stand
Judged = tuple[str, str]  # the verdict, and its numbers in a sentence


@dataclass(frozen=True)
class Judgement:
    """A claim, where it was judged, the verdict and its numbers in a sentence."""

    claim: Mapping[str, Any]
    where: str
    verdict: str
    numbers: str


def judge_all(results: Results) -> list[Judgement]:
    """Return every claim of an experiment, judged on every panel that it is about."""
    judgements = []
    for claim in EXPERIMENTS[results.experiment].get("claims", []):
        fields = ("id", "section", "text", "data", "judge")
        arguments = {key: value for key, value in claim.items() if key not in fields}
        data = claim.get("data", "")
        panels = [panel for panel in results.panels if data in ("", panel.data)]
        if not panels:
            judgements.append(Judgement(claim, "", UNMEASURED, prose("unmeasured", data=data)))
        for panel in panels:
            radius = results.experiment != "table3" or papers_radius(panel.eps)
            where = prose("where", panel=panel, data=data or "cifar10", radius=radius)
            judge = _JUDGES[claim["judge"]]
            verdict, numbers = judge(panel, results.of(panel), **arguments)
            judgements.append(Judgement(claim, where, verdict, numbers))
    return judgements


def decide(pairs: Sequence[Pair]) -> str:
    """Return the verdict on a claim from how pairs of entries stand and should stand."""
    if any(pair in (("ahead", "behind"), ("behind", "ahead")) for pair in pairs):
        return FAILS
    if not pairs or any(stand == "unknown" for stand, _ in pairs):
        return UNMEASURED
    return HOLDS if all(stand == wanted for stand, wanted in pairs) else UNDECIDED


def _wanted(behind: Sequence[str], ahead: Sequence[str]) -> dict[str, Relation]:
    return {**dict.fromkeys(behind, "behind"), **dict.fromkeys(ahead, "ahead")}


def _beyond_noise(gap: tuple[float, float] | None) -> Relation:
    """Return how an entry stands to another, by a difference and its noise."""
    if gap is None:
        return "unknown"
    difference, width = gap
    if abs(difference) <= width:
        return "level"
    return "ahead" if difference > 0 else "behind"


def _strongest(rows: Rows) -> dict[Any, Rows]:
    """Return the rows of each entry at the largest radius."""
    rows = rows[rows["weights"] == "model"]
    return group(rows[rows["eps"] == max(measures.radii(rows), default=0.0)], "entry")


def _ranks(
    panel: PanelInfo,
    rows: Rows,
    attacks: Sequence[str],
    behind: Sequence[str] = (),
    ahead: Sequence[str] = (),
) -> Judged:
    """Judge whether A3GT is behind some entries and ahead of those others that were planned."""
    entries = _strongest(rows)
    ahead = [entry for entry in ahead if entry in panel.entries]
    wanted = _wanted(behind, ahead)
    pairs, shown = dict[str, list[Pair]](), {}
    for attack in (measures.named(panel.attacks, start) for start in attacks):
        hero = entries.get(A3GT)
        relations = {e: measures.stands(hero, entries.get(e), attack) for e in wanted}
        pairs[attack] = [(relations[entry], wish) for entry, wish in wanted.items()]
        compared = (A3GT, *wanted)
        shown[attack] = {e: measures.accuracies(entries.get(e), attack) for e in compared}
    verdicts = {attack: decide(some) for attack, some in pairs.items()}
    every = [pair for some in pairs.values() for pair in some]
    return decide(every), prose("ranks", verdicts=verdicts, shown=shown)


def _no_accuracy(panel: PanelInfo, rows: Rows, entry: str) -> Judged:
    """Judge whether an entry has no accuracy under any attack, on every seed."""
    of_entry = _strongest(rows).get(entry)
    shown = {attack: measures.accuracies(of_entry, attack) for attack in panel.attacks}
    verdict = UNMEASURED if None in shown.values() or not shown else HOLDS
    if any(accuracy and max(accuracy.values) > 0 for accuracy in shown.values()):
        verdict = FAILS
    return verdict, prose("no_accuracy", shown=shown, entry=entry)


def _equal_robustness(_panel: PanelInfo, rows: Rows, entry: str, others: Sequence[str]) -> Judged:
    """Judge whether an entry has more clean accuracy than others where both are as robust."""
    by_entry = lines(rows, "training")
    gaps = line_gaps(by_entry, entry)
    pairs, shown = list[Pair](), {}
    for other in others:
        if other not in gaps:
            pairs.append(("unknown", "ahead"))
            continue
        hero = by_entry[entry]
        highest = [max(models["clean"]) for models in group(hero, "seed").values()]
        width = measures.Accuracies(tuple(highest), min(hero["n"])).half_width
        signs = {np.sign(gap) for _, gap in gaps[other]}
        level, gap = map(average, zip(*gaps[other], strict=True))
        pairs.append((_beyond_noise((gap, width)) if len(signs) == 1 else "level", "ahead"))
        shown[other] = gap, level, width
    return decide(pairs), prose("equal_robustness", entry=entry, shown=shown, others=others)


def _scores(
    _panel: PanelInfo,
    rows: Rows,
    low: float,
    high: float,
    behind: Sequence[str] = (),
    ahead: Sequence[str] = (),
) -> Judged:
    """Judge A3GT's mean score over radii above 0, from ``low`` to below ``high``."""
    radii = [eps for eps in measures.radii(rows) if low - 1e-6 < eps < high - 1e-6]
    wanted = _wanted(behind, ahead)
    gaps = {method: _gap(rows, method, radii) for method in wanted}
    pairs = [(_beyond_noise(gaps[method]), wish) for method, wish in wanted.items()]
    return decide(pairs), prose("score_gaps", shown=gaps)


def _leads(_panel: PanelInfo, rows: Rows, ahead: Sequence[str], radii: Sequence[float]) -> Judged:
    """Judge whether A3GT's score is ahead of others at each of some radii."""
    shown, pairs = {}, list[Pair]()
    for wish in radii:
        measured = [eps for eps in {*rows["eps"]} if abs(eps - wish) < 1e-6]
        shown[wish] = {method: _gap(rows, method, measured) for method in ahead}
        pairs += [(_beyond_noise(gap), "ahead") for gap in shown[wish].values()]
    return decide(pairs), prose("leads", shown=shown)


def _gap(rows: Rows, method: str, radii: Sequence[float]) -> tuple[float, float] | None:
    """Return A3GT's mean score minus another's at the radii that both have, and its noise."""
    scores = entry_scores(rows)
    hero, other = scores.get(A3GT, {}), scores.get(method, {})
    shared = [eps for eps in radii if eps in hero and eps in other]
    if not shared:
        return None
    widths = noise(rows, A3GT, method)
    # The radii share their images, so a mean over them is no surer than one of them.
    width = average([widths[eps] for eps in shared])
    return average([hero[eps]["score"] - other[eps]["score"] for eps in shared]), width


def _best_setting(_panel: PanelInfo, rows: Rows, attack: str, c: int | None = None) -> Judged:
    """Judge whether the paper's gamma is ahead: with a c of every other setting; else the best.

    Without c the best setting of that gamma is compared with the best one of another gamma.
    """
    settings = grid(rows)
    attack = measures.named(shown_attacks(settings), attack)
    settings = {s: some for s, some in settings.items() if measures.accuracies(some, attack)}
    papers = {s: r for s, r in settings.items() if s[0] == PAPERS_GAMMA and c in (None, s[1])}
    others = {s: r for s, r in settings.items() if s not in papers and (c or s[0] != PAPERS_GAMMA)}
    if not papers or not others:
        return UNMEASURED, prose("unmeasured", data="")
    (own, mean), (other, highest) = top(papers, attack), top(others, attack)
    rivals = list(others.values()) if c else [others[other]]
    pairs: list[Pair] = [(measures.stands(papers[own], r, attack), "ahead") for r in rivals]
    behind = sum(pair == ("ahead", "ahead") for pair in pairs)
    names = {"own": setting_text(own), "other": setting_text(other)}
    blanks = {"mean": mean, "highest": highest, "rivals": len(pairs), "behind": behind}
    return decide(pairs), prose("best_setting", attack=attack, **names, **blanks)


def _adaptive_start(_panel: PanelInfo, rows: Rows) -> Judged:
    """Judge whether the adaptive start is ahead in one accuracy and behind in none."""
    every = rules(rows)
    hero = next((rule for rule in every if rule.kind == "stable"), None)
    preset = [rule for rule in every if rule.kind == "fixed"]
    if hero is None or not preset:
        return UNMEASURED, prose("unmeasured", data="")
    relations = [_in_both(hero, rule) for rule in preset]
    shown = [(rule, measures.both_accuracies(rule.rows)) for rule in (hero, *preset)]
    verdict = decide([(relation, "ahead") for relation in relations])
    return verdict, prose("adaptive", shown=shown, relations=relations)


def _in_both(hero: StartRule, other: StartRule) -> Relation:
    """Return how a rule stands to another in clean and AutoAttack accuracy together."""
    both = {measures.stands(hero.rows, other.rows, a) for a in (CLEAN, AUTOATTACK)}
    if "unknown" in both:
        return "unknown"
    if both >= {"ahead", "behind"} or both == {"level"}:
        return "level"
    return "ahead" if "ahead" in both else "behind"


def _no_presets(_panel: PanelInfo, rows: Rows) -> Judged:
    """Judge whether the paper's rule gives the same t' whatever its own settings are."""
    tried = [rule for rule in rules(rows) if rule.kind == "threshold"]
    if len(tried) < 2:
        return UNMEASURED, prose("unmeasured", data="")
    same = len({rule.starts for rule in tried}) == 1
    return HOLDS if same else FAILS, prose("no_presets", tried=tried)


_JUDGES: Mapping[str, Callable[..., Judged]] = {
    "ranks": _ranks,
    "no_accuracy": _no_accuracy,
    "equal_robustness": _equal_robustness,
    "scores": _scores,
    "leads": _leads,
    "best_setting": _best_setting,
    "adaptive_start": _adaptive_start,
    "no_presets": _no_presets,
}
