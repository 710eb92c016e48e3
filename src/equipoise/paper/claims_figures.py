"""How the claims about the paper's figures, and about the start of the hand-overs, are judged."""

__all__ = [
    "adaptive_beats_preset",
    "ahead_at_equal_robustness",
    "best_gamma",
    "best_setting",
    "leads",
    "no_presets",
    "region",
]

from collections.abc import Callable, Sequence

from equipoise.paper.ablation import PAPERS_GAMMA, Grid, Setting, columns_of, grid
from equipoise.paper.findings import CLEAN, ENSEMBLE, Findings, Panel
from equipoise.paper.judging import FAILS, HOLDS, OPEN, Opinion, decide
from equipoise.paper.measures import Relation, average, cell, compare, half_width
from equipoise.paper.phrases import capital, entry_name, margin, names, plural
from equipoise.paper.scores import RADII, entry_scores, noise
from equipoise.paper.start_rules import Rule, rules
from equipoise.paper.training_curves import equal_robustness, lines
from equipoise.report import wording

Judge = Callable[[Findings, Panel], Opinion]
Wanted = Sequence[tuple[str, Relation]]


def _relation(gap: float, width: float) -> Relation:
    if abs(gap) <= width:
        return "level"
    return "ahead" if gap > 0 else "behind"


# Figure 2


def ahead_at_equal_robustness(hero: str, others: Sequence[str]) -> Judge:
    """Return what judges whether an entry has more clean accuracy where both are as robust."""

    def judge(findings: Findings, panel: Panel) -> Opinion:
        known = {line.entry: line for line in lines(findings, panel, "training")}
        pairs: list[tuple[Relation, Relation]] = []
        told = []
        for other in others:
            found = (
                equal_robustness(known[hero], known[other])
                if hero in known and other in known
                else []
            )
            if not found:
                pairs.append(("unknown", "ahead"))
                continue
            gaps = [gap for _, gap in found]
            best = average([max(c for c, _ in known[hero].seeds[s]) for s in known[hero].seeds])
            same = all(gap > 0 for gap in gaps) or all(gap < 0 for gap in gaps)
            width = half_width(best, known[hero].n)
            pairs.append((_relation(average(gaps), width) if same else "level", "ahead"))
            level = wording.percent(average([level for level, _ in found]))
            told.append(f"{margin(average(gaps))} points to {entry_name(other)} at {level}")
        lost = [o for o, (relation, _) in zip(others, pairs, strict=True) if relation == "unknown"]
        text = f"{entry_name(hero)}'s clean accuracy, {', '.join(told)}" if told else ""
        return _opinion(decide(pairs), text, lost)

    return judge


def _opinion(verdict: str, text: str, lost: Sequence[str]) -> Opinion:
    """Return an opinion, naming what is missing or within the noise."""
    if not text:
        return Opinion(OPEN, "What it takes has not been measured yet.")
    if lost:
        text += f"; not measured: {names(lost)}"
    elif verdict == OPEN:
        text += "; some of it lies within the noise of the images or differs by seed"
    return Opinion(verdict, f"{capital(text)}.")


# Figures 3 and 4


def region(
    low: float,
    high: float,
    *,
    behind: Sequence[str] = (),
    ahead: Sequence[str] = (),
    closed: bool = False,
) -> Judge:
    """Return what judges A3GT's mean score over radii from ``low`` to below ``high``.

    Arguments:
        low: The least radius; 0 itself, which is no attack, is left out.
        high: The greatest radius, which counts only where ``closed``.
        behind: Of which methods the claim says that A3GT is behind.
        ahead: Of which it says that A3GT is ahead.
        closed: Whether the greatest radius counts.
    """
    wanted: Wanted = [*((m, "behind") for m in behind), *((m, "ahead") for m in ahead)]

    def judge(findings: Findings, panel: Panel) -> Opinion:
        scores = entry_scores(findings, panel)
        hero = scores.get("a3gt", {})
        end = high + 1e-6 if closed else high - 1e-6
        radii = [eps for eps in hero if eps > 0 and low - 1e-6 < eps < end]
        verdict, text, lost = _against(findings, panel, wanted, radii)
        if text:
            shown = wording.join([f"{eps:g}" for eps in radii])
            text = f"A3GT's mean score at eps {shown} less that of the other: {text}"
        return _opinion(verdict, text, lost)

    return judge


def _against(
    findings: Findings, panel: Panel, wanted: Wanted, radii: Sequence[float]
) -> tuple[str, str, list[str]]:
    """Return the verdict, the differences in words, and which methods are missing."""
    scores = entry_scores(findings, panel)
    hero = scores.get("a3gt", {})
    pairs: list[tuple[Relation, Relation]] = []
    told, lost = [], []
    for method, relation in wanted:
        other = scores.get(method, {})
        shared = [eps for eps in radii if eps in other]
        if not shared:
            pairs.append(("unknown", relation))
            lost.append(method)
            continue
        gap = average([hero[eps]["score"] - other[eps]["score"] for eps in shared])
        known = noise(findings, panel, "a3gt", method)
        # The radii share their images, so that a mean over them is no surer than one of them.
        width = average([known[eps] for eps in shared])
        pairs.append((_relation(gap, width), relation))
        signed = f"{gap:+.3f}".replace("-", "−")
        told.append(f"{entry_name(method)} {signed} ± {width:.3f}")
    return decide(pairs), ", ".join(told), lost


def leads(others: Sequence[str]) -> Judge:
    """Return what judges whether A3GT's score is above all others at each of four radii."""

    def judge(findings: Findings, panel: Panel) -> Opinion:
        scores = entry_scores(findings, panel)
        wanted: Wanted = [(other, "ahead") for other in others]
        found, told = [], []
        for wish in RADII:
            radii = [eps for eps in scores.get("a3gt", {}) if abs(eps - wish) < 1e-6]
            verdict, text, _ = _against(findings, panel, wanted, radii)
            found.append(verdict)
            if text:
                ranked = sorted(
                    (entry for entry in scores if radii[0] in scores[entry]),
                    key=lambda entry: -scores[entry][radii[0]]["score"],
                )
                place = ranked.index("a3gt") + 1
                told.append(f"place {place} of {len(ranked)} at {wish:g} ({verdict})")
        if not told:
            return _opinion(OPEN, "", ())
        verdict = FAILS if FAILS in found else OPEN
        if set(found) == {HOLDS}:
            verdict = HOLDS
        return Opinion(verdict, f"A3GT has {', '.join(told)}.")

    return judge


# Figure 5


def best_setting(start: str, every: int) -> Judge:
    """Return what judges whether the paper's gamma with some c is ahead of every other setting."""

    def judge(findings: Findings, panel: Panel) -> Opinion:
        found = grid(findings, panel)
        attack = _named(found, start)
        mine = found.get(Setting(PAPERS_GAMMA, every))
        own = cell(mine, attack) if mine else None
        if mine is None or own is None or len(found) < 2:
            return _opinion(OPEN, "", ())
        pairs: list[tuple[Relation, Relation]] = [
            (compare(mine, rows, attack).relation, "ahead")
            for rows in found.values()
            if rows is not mine
        ]
        verdict = decide(pairs)
        top, value = _top(found, attack)
        text = f"that setting has {wording.percent(own.mean)}; the highest, {top.text}, has "
        text += wording.percent(value)
        if value == own.mean:
            text = f"that setting has the highest, {wording.percent(own.mean)}"
        level = sum(relation != "ahead" for relation, _ in pairs)
        if verdict != HOLDS:
            are = plural(level, "is", "are")
            text += f"; of {plural(len(pairs), 'other')} {are} not clearly behind it"
        return Opinion(verdict, f"{capital(text)}.")

    return judge


def best_gamma(start: str) -> Judge:
    """Return what judges whether the best setting of the paper's gamma is ahead of the others."""

    def judge(findings: Findings, panel: Panel) -> Opinion:
        found = grid(findings, panel)
        attack = _named(found, start)
        known = {s: rows for s, rows in found.items() if cell(rows, attack)}
        mine = {s: rows for s, rows in known.items() if s.gamma == PAPERS_GAMMA}
        rest = {s: rows for s, rows in known.items() if s.gamma != PAPERS_GAMMA}
        if not mine or not rest:
            return _opinion(OPEN, "", ())
        (best, high), (other, low) = _top(mine, attack), _top(rest, attack)
        verdict = decide([(compare(mine[best], rest[other], attack).relation, "ahead")])
        text = (
            f"the best with that gamma, c = {best.every}, has {wording.percent(high)}; the best "
            f"of the others, {other.text}, {wording.percent(low)}"
        )
        return _opinion(verdict, text, ())

    return judge


def _named(found: Grid, start: str) -> str:
    return next((name for name in columns_of(found) if name.startswith(start)), start)


def _top(found: Grid, attack: str) -> tuple[Setting, float]:
    values = {s: known.mean for s, rows in found.items() if (known := cell(rows, attack))}
    top = max(values, key=lambda setting: values[setting])
    return top, values[top]


# Controls


def adaptive_beats_preset(findings: Findings, panel: Panel) -> Opinion:
    """Judge whether the adaptive start is better than every preset one.

    Better is ahead on clean images or under AutoAttack, and behind in neither.
    """
    found = rules(findings, panel)
    hero = next((rule for rule in found if rule.kind == "stable"), None)
    preset = [rule for rule in found if rule.kind == "fixed"]
    if hero is None or not preset:
        return _opinion(OPEN, "", ())
    pairs: list[tuple[Relation, Relation]] = [(_both(hero, rule), "ahead") for rule in preset]
    verdict = decide(pairs)
    counts = {r: sum(found == r for found, _ in pairs) for r in ("ahead", "behind")}
    others = ", ".join(f"{rule.text} {_numbers(rule)}" for rule in preset)
    return Opinion(
        verdict,
        f"Of {plural(len(preset), 'preset start')} the adaptive one (t′ = {hero.starts}) is "
        f"better than {_whole(counts['ahead'])} and worse than {_whole(counts['behind'])}: "
        f"{_numbers(hero)}, preset {others}.",
    )


def _whole(count: int) -> str:
    return "none" if count == 0 else str(count)


def _numbers(rule: Rule) -> str:
    known = [(a, cell(rule.rows, a)) for a in (CLEAN, ENSEMBLE)]
    return " / ".join(wording.percent(found.mean) for _, found in known if found)


def _both(hero: Rule, other: Rule) -> Relation:
    relations = {compare(hero.rows, other.rows, a).relation for a in (CLEAN, ENSEMBLE)}
    if "unknown" in relations:
        return "unknown"
    if relations >= {"ahead", "behind"} or relations == {"level"}:
        return "level"
    return "ahead" if "ahead" in relations else "behind"


def no_presets(findings: Findings, panel: Panel) -> Opinion:
    """Judge whether the paper's rule finds the same t' whatever its own settings are."""
    tried = [rule for rule in rules(findings, panel) if rule.kind == "threshold"]
    if len(tried) < 2:
        return _opinion(OPEN, "", ())
    starts = {rule.starts for rule in tried}
    told = ", ".join(f"{rule.text}: {rule.starts}" for rule in tried)
    if len(starts) == 1:
        return Opinion(HOLDS, f"All {len(tried)} settings of l_h and t_num give one t′ ({told}).")
    text = f"the rule has settings of its own, and t′ depends on them ({told})"
    return Opinion(FAILS, f"{capital(text)}.")
