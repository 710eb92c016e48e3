"""The paper's claims, in our words, each with what judges it on the findings."""

__all__ = ["CLAIMS", "Claim", "Judged", "judged"]

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from equipoise.paper import claims_figures as figures
from equipoise.paper.findings import CLEAN, ENSEMBLE, EXPERIMENTS, Findings, Panel
from equipoise.paper.judging import (
    OPEN,
    Entries,
    Opinion,
    best,
    best_on_most,
    second,
    withstands_nothing,
    worse,
)
from equipoise.paper.measures import budgets, by_entry
from equipoise.paper.paper import DATA, papers_radius

Judge = Callable[[Findings, Panel], Opinion]
_DEFENCES = ("fat", "iat", "generalist")
_BASELINES = (*_DEFENCES, "trades", "pgd-at", "yopo")


@dataclass(frozen=True)
class Claim:
    """A claim of the paper.

    Arguments:
        experiment: Where it belongs.
        section: Where the paper makes it.
        text: What it says, in our words.
        judge: What judges it on one panel.
        data: The data set it is about.
        strict: Whether it is judged on that data set alone.
    """

    experiment: str
    section: str
    text: str
    judge: Judge
    data: str = "cifar10"
    strict: bool = False


@dataclass(frozen=True)
class Judged:
    """A claim and what was found on one panel; without a panel it was measured nowhere."""

    claim: Claim
    opinion: Opinion
    where: str


def judged(findings: Findings) -> tuple[Judged, ...]:
    """Return every claim of an experiment, judged on every panel that it is about."""
    made = []
    for claim in CLAIMS:
        if claim.experiment != findings.experiment:
            continue
        panels = [p for p in findings.panels if not claim.strict or p.data == claim.data]
        if not panels:
            lost = f"on {DATA[claim.data]} " if claim.strict else ""
            opinion = Opinion(OPEN, f"Nothing has been measured {lost}here.")
            made.append(Judged(claim, opinion, ""))
        made += [Judged(claim, claim.judge(findings, p), _where(claim, p)) for p in panels]
    return tuple(made)


def _where(claim: Claim, panel: Panel) -> str:
    """Return where a claim was judged, and of what the paper makes it."""
    papers = []
    if panel.data != claim.data:
        papers.append(DATA[claim.data])
    if not panel.model.startswith("resnet-18"):
        papers.append("ResNet-18")
    if claim.experiment == "table3" and not papers_radius(panel.eps):
        papers.append("eps 8/255")
    return f"{panel.title} (the paper: {', '.join(papers)})" if papers else panel.title


def _strongest(findings: Findings, panel: Panel) -> Entries:
    """Return the rows of each entry at the panel's largest radius."""
    rows = findings.of(panel)
    radius = max(budgets(rows), default=0.0)
    return by_entry(row for row in rows if row.eps == radius)


def _attack(panel: Panel, start: str) -> str:
    return next((name for name in panel.attacks if name.startswith(start)), start)


def _planned(panel: Panel, entries: Sequence[str]) -> list[str]:
    return [entry for entry in entries if entry in panel.entries]


def _nothing_withstood(findings: Findings, panel: Panel) -> Opinion:
    return withstands_nothing(_strongest(findings, panel), "standard", panel.attacks)


def _second_clean(findings: Findings, panel: Panel) -> Opinion:
    entries = _strongest(findings, panel)
    return second(entries, "a3gt", "standard", _planned(panel, _DEFENCES), CLEAN)


def _seven(findings: Findings, panel: Panel) -> Opinion:
    named = ("pgd-20", "mi-fgsm", "apgd-ce", "apgd-dlr", "apgd-t", "square", ENSEMBLE)
    attacks = [_attack(panel, name) for name in named]
    others = _planned(panel, _DEFENCES)
    return best_on_most(_strongest(findings, panel), "a3gt", others, attacks)


def _fab(findings: Findings, panel: Panel) -> Opinion:
    return worse(_strongest(findings, panel), "a3gt", "generalist", _attack(panel, "fab"))


def _best(start: str) -> Judge:
    def judge(findings: Findings, panel: Panel) -> Opinion:
        others = _planned(panel, _BASELINES)
        return best(_strongest(findings, panel), "a3gt", others, _attack(panel, start))

    return judge


def _second_to_trades(findings: Findings, panel: Panel) -> Opinion:
    others = [entry for entry in _planned(panel, _BASELINES) if entry != "trades"]
    entries = _strongest(findings, panel)
    return second(entries, "a3gt", "trades", others, _attack(panel, "pgd"))


_THIRD = partial(Claim, "table3", "section 4.3", strict=True)
_AHEAD = figures.ahead_at_equal_robustness
_REGION = figures.region
_OTHERS = ("trades", "sat", "yopo", "fat-trades", "fat-mart")

CLAIMS: tuple[Claim, ...] = (
    Claim(
        "table2",
        "section 4.2",
        "The clean model has 0 % accuracy under every attack.",
        _nothing_withstood,
    ),
    Claim(
        "table2",
        "section 4.2",
        "A3GT's clean accuracy is second only to the clean model's.",
        _second_clean,
    ),
    Claim(
        "table2",
        "section 4.2",
        "A3GT is the most robust of FAT, IAT, Generalist and A3GT under seven attacks "
        "(which ones is not stated; all but FAB-T are taken).",
        _seven,
    ),
    Claim("table2", "section 4.2", "A3GT is less robust than Generalist under FAB-T.", _fab),
    _THIRD("A3GT has the highest clean accuracy on MNIST.", _best(CLEAN), "mnist"),
    _THIRD("A3GT is the most robust under MIA on MNIST.", _best("mi-fgsm"), "mnist"),
    _THIRD("A3GT is the most robust under PGD on MNIST.", _best("pgd"), "mnist"),
    _THIRD("A3GT has the highest clean accuracy on SVHN.", _best(CLEAN), "svhn"),
    _THIRD("A3GT is the most robust under MIA on SVHN.", _best("mi-fgsm"), "svhn"),
    _THIRD("A3GT is second to TRADES under PGD on SVHN.", _second_to_trades, "svhn"),
    Claim(
        "fig2",
        "section 4.3",
        "At equal robust accuracy A3GT keeps more clean accuracy than Generalist, FAT and PGD-AT.",
        _AHEAD("a3gt", ("generalist", "fat", "pgd-at")),
    ),
    Claim(
        "fig2",
        "section 4.3",
        "Generalist balances the two better than FAT and PGD-AT.",
        _AHEAD("generalist", ("fat", "pgd-at")),
    ),
    Claim(
        "fig3",
        "section 4.4",
        "Below eps 0.03 A3GT is slightly below TRADES and Self-Adaptive Training.",
        _REGION(0.0, 0.03, behind=("trades", "sat")),
    ),
    Claim(
        "fig3",
        "section 4.4",
        "From eps 0.03 to below 0.08 A3GT is second only to FAT-TRADES.",
        _REGION(0.03, 0.08, behind=("fat-trades",), ahead=("trades", "sat", "yopo", "fat-mart")),
    ),
    Claim(
        "fig3",
        "section 4.4",
        "From eps 0.08 to 0.13 A3GT is above every other method.",
        _REGION(0.08, 0.13, ahead=_OTHERS, closed=True),
    ),
    Claim(
        "fig3",
        "section 4.4",
        "Above eps 0.13 A3GT is second only to YOPO and Self-Adaptive Training.",
        _REGION(0.1301, 1.0, behind=("yopo", "sat"), ahead=("trades", "fat-trades", "fat-mart")),
    ),
    Claim(
        "fig4",
        "section 4.4",
        "A3GT leads at eps 0.04, 0.08, 0.12 and 0.16 (section 4.4 says otherwise of 0.04 and 0.16 "
        "where it describes Figure 3).",
        figures.leads(_OTHERS),
    ),
    Claim(
        "fig5",
        "section 4.5.1",
        "Clean accuracy is best with gamma (1, 1, 1, 0.4) and c = 5.",
        figures.best_setting(CLEAN, 5),
    ),
    Claim(
        "fig5",
        "section 4.5.1",
        "PGD accuracy is best with the same gamma and c = 1.",
        figures.best_setting("pgd", 1),
    ),
    Claim(
        "fig5",
        "section 4.5.1",
        "C&W accuracy is best with the same gamma.",
        figures.best_gamma("cw"),
    ),
    Claim(
        "fig5",
        "section 4.5.1",
        "AutoAttack accuracy is best with the same gamma.",
        figures.best_gamma(ENSEMBLE),
    ),
    Claim(
        "controls",
        "abstract, section 3.3",
        "A start that adapts to the learners serves better than a preset one.",
        figures.adaptive_beats_preset,
    ),
    Claim(
        "controls",
        "abstract, section 5",
        "The rule for t′ does away with preset hyper-parameters.",
        figures.no_presets,
    ),
)
_OWN = {"front", "settings"}
assert {claim.experiment for claim in CLAIMS} == {*EXPERIMENTS} - _OWN, "all but our own"
