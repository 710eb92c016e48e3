"""The report on an evaluation: stages, checks, cost, hard and easy images, models of one's own."""

import json
import os
import re
from pathlib import Path

import numpy as np
import pytest

from browser import browser
from equipoise.errors import UserError
from equipoise.measures.statistics import interval
from equipoise.report import build, failed_checks
from equipoise.report.bars import Bar, bars
from equipoise.report.checks import cautions, check_sections
from equipoise.report.content import Figure, Table
from equipoise.report.gallery import attack_names, gallery
from equipoise.report.pictures import inline
from equipoise.report.results import headline, headline_rows
from equipoise.report.runs_reader import read_run, read_runs
from equipoise.report.stages import stage_sections
from judgements import judge
from test_report import (
    HOSTILE,
    groups_in,
    images,
    make_run,
    page,
    record,
    text_of,
    write_json,
)

STAGES = ("apgd-ce", "apgd-t", "fab-t", "square")
LEFT = (880, 860, 855, 855)  # of 1000, after each stage; 975 are correct without attack


# --- evaluations -----------------------------------------------------------------------------


def stage(name, entered, robust, *, n=1000, alone=None, **more):
    line = {"attack": name, "entered": entered, "broken": entered - robust, "robust": robust}
    line |= {"accuracy": robust / n, "interval": list(interval(robust, n)), "alone": alone}
    line |= {"settings": f"{name}()", "notes": [], "finished": True, "seconds": 2.5}
    return line | {"forwards": 1000 * entered, "backwards": 500 * entered} | more


def ensemble(*, individual=True, name="autoattack", n=1000, left=LEFT, **more):
    left = [n * found // 1000 for found in left]
    entered = (975 * n // 1000, *left)
    alone = (0.88, 0.871, 0.873, 0.9) if individual else (0.88, None, None, None)
    stages = [
        stage(s, e, r, n=n, alone=a)
        for s, e, r, a in zip(STAGES, entered, left, alone, strict=False)
    ]
    cost = {"forwards": 3_570_000, "backwards": 1_785_000, "seconds": 10.0}
    last = left[-1] / n
    return (
        record(name, last, n=n, stages=stages, interval=list(interval(left[-1], n))) | cost | more
    )


def judged(*, individual=True, eps=0.15, n=1000, **more):
    """All records of an evaluation by pgd-20 and AutoAttack."""
    whole = ensemble(individual=individual, eps=eps, n=n)
    single = record("pgd-20", 0.9, eps=eps, n=n, forwards=30_000, backwards=15_000, seconds=75.0)
    found = [record("clean", 0.975, eps=eps, n=n), single]
    names = ["pgd-20", "autoattack"]
    if individual:
        found += [record(s["attack"], s["alone"], eps=eps, n=n) for s in whole["stages"]]
        names = ["pgd-20", *STAGES, "autoattack"]
    worst = record(
        "worst-case", 0.855, eps=eps, n=n, attacks=names, passes=1, precision="bfloat16"
    )
    return [{**r, "seed": 7, **more} for r in (*found, whole, worst)]


def finding(check, status="ok", message="all is well", remedy=""):
    said = {"check": check, "code": "C1", "status": status, "message": message}
    return said | {"remedy": remedy, "measured": {}}


def evaluate(run, *, eps=0.15, n=1000, findings=(), records=(), **options):
    """Write what an evaluation leaves; without records a clean one."""
    records = records or [record("clean", 0.975, eps=eps, n=n)]
    judge(run, *records, findings=findings, **options)


def evaluated(root, name="a3gt", *, findings=(), individual=True, **options):
    run = make_run(root, name, method="a3gt", eps=())
    evaluate(run, records=judged(individual=individual), findings=findings, **options)
    return run


def pictured(root, **options):
    """A run with 60 images, of which those that are fooled are broken by attack after attack."""
    run = make_run(root, "a3gt", eps=())
    images(run / "evaluations" / "linf-0.15-n60.safetensors", **options)
    return run


def own(root, name="mine", weights="net.pt"):
    run = root / name
    run.mkdir()
    sha = "cd" * 32 if weights else None
    about = {"format": 1, "model": "nets.robust:load", "weights": weights, "weights_sha256": sha}
    write_json(run / "own-model.json", {**about, "data": "digits", "data_dir": None})
    return run


def told(*folders):
    runs = read_runs(folders)
    return {title: (names, text) for names, title, text in cautions(runs, headline_rows(runs))}


def first_stages(run, shown=("linf", 0.15)):
    return stage_sections(read_run(run), shown, "fig-stages-0")[0]


def figure_of(run):
    return next(b for b in first_stages(run).blocks if isinstance(b, Figure))


def remarks_of(run):
    return [b for b in first_stages(run).blocks if isinstance(b, str)]


def cells(row):
    return [f"{c.text} {c.small}".strip().replace("\u00a0", " ") for c in row]


# --- stages ----------------------------------------------------------------------------------


@pytest.mark.slow
def test_stages_are_a_table_with_a_total(tmp_path):
    html = page(evaluated(tmp_path), out=tmp_path / "report.html")
    (table,) = [b for b in first_stages(tmp_path / "a3gt").blocks if isinstance(b, Table)]
    heads = [column.head for column in table.columns]
    assert heads[:5] == ["stage", "attacked", "broken", "robust so far", "alone"]
    assert heads[5:] == ["seconds", "forward", "backward", "settings"]
    assert cells(table.rows[1]) == [
        *(
            "apgd-t",
            "880",
            "20",
            "86.0 % 83.6–88.1",
            "87.1 %",
            "2.5",
            "880,000",
            "440,000",
            "apgd-t()",
        )
    ]
    assert cells(table.foot) == [
        *(
            "AutoAttack",
            "975",
            "120",
            "85.5 % 83.1–87.7",
            "–",
            "10.0",
            "3,570,000",
            "1,785,000",
            "",
        )
    ]
    text = text_of(html[html.index('id="stages"') :])
    assert all(part in text for part in ("880,000", "3,570,000", "83.1–87.7"))


def test_the_figure_says_in_words_what_it_shows(tmp_path):
    alone, left = figure_of(evaluated(tmp_path)).panels
    spoken = alone.spoken.replace("\u00a0", " ")
    assert "pgd-20 90.0 %; apgd-ce 88.0 %; apgd-t 87.1 %; fab-t 87.3 %; square 90.0 %" in spoken
    assert "autoattack 85.5 %; worst-case 85.5 %." in spoken
    assert spoken.endswith("Lowest of the single attacks: apgd-t.")
    spoken = left.spoken
    assert "975 of 1000 are correct without attack; apgd-ce breaks 95 and leaves 880" in spoken


def test_what_is_not_known_alone_is_not_drawn(tmp_path):
    run = evaluated(tmp_path, individual=False)
    spoken = figure_of(run).panels[0].spoken
    assert "apgd-ce" in spoken
    assert "square" not in spoken
    (remark,) = remarks_of(run)
    assert remark.startswith("apgd-t, fab-t and square ")
    assert "--individual" in remark


def test_notes_of_a_stage_are_remarks(tmp_path):
    run = evaluated(tmp_path)
    whole = ensemble()
    whole["stages"][1]["notes"] = ["3 classes: the margin replaces dlr"]
    judge(run, whole)
    assert "apgd-t: 3 classes: the margin replaces dlr." in remarks_of(run)


def test_an_ensemble_after_other_attacks_does_not_speak_for_itself(tmp_path):
    run = evaluated(tmp_path)
    whole = ensemble(individual=False)
    whole["stages"][0]["alone"] = None
    judge(run, whole)
    figure = figure_of(run)
    assert len(figure.panels) == 1
    spoken = figure.panels[0].spoken
    assert "autoattack" not in spoken
    assert "worst-case" in spoken
    assert "read the worst case" in told(run)["Ensemble after other attacks"][1]


def test_the_shown_budget_comes_first_and_others_are_folded(tmp_path):
    run = evaluated(tmp_path)
    judge(run, *judged(eps=0.05), *judged(n=200))
    first, rest = stage_sections(read_run(run), ("linf", 0.15), "f")
    where = [s.small.replace("\u00a0", " ") for s in (first, *rest.blocks)]
    assert where == [
        "AutoAttack, L∞, eps = 0.15, n = 1,000",
        "AutoAttack, L∞, eps = 0.15, n = 200",
        "AutoAttack, L∞, eps = 0.05, n = 1,000",
    ]
    assert (first.folded, rest.folded) == (False, True)


def test_several_ensembles_are_told_apart(tmp_path):
    run = evaluated(tmp_path)
    judge(run, *judged(), ensemble(name="autoattack-plus"))
    first, rest = stage_sections(read_run(run), ("linf", 0.15), "f")
    titles = [s.small.partition(",")[0] for s in (first, *rest.blocks)]
    assert titles == ["AutoAttack", "AutoAttack-plus"]


def test_a_stage_and_an_attack_of_the_same_name_are_two_bars(tmp_path):
    run = evaluated(tmp_path, individual=False)
    judge(run, record("apgd-ce", 0.9))
    spoken = figure_of(run).panels[0].spoken
    assert "apgd-ce 90.0" in spoken
    assert "autoattack/apgd-ce 88.0" in spoken


def test_verdicts_name_the_ensemble(tmp_path):
    def verdict(run):
        return headline(list(headline_rows(read_runs([run])).values()))[0].replace("\u00a0", " ")

    run = evaluated(tmp_path)
    assert "under AutoAttack and pgd-20 (L∞, eps = 0.15" in verdict(run)
    assert "worst-case accuracy 85.5 %" in verdict(run)
    judge(run, record("fgsm", 0.9), record("worst-case", 0.8))
    assert "worst-case accuracy 80.0 %" in verdict(run)
    assert "under 6 attacks, AutoAttack among them" in verdict(run)


def test_without_an_ensemble_there_are_no_stages(tmp_path):
    html = page(make_run(tmp_path, "a3gt"), out=tmp_path / "report.html")
    assert 'id="stages"' not in html
    assert 'href="#stages"' not in html
    assert "Incomplete file" not in html


# --- evaluations that were interrupted or damaged ----------------------------------------------


def test_an_interrupted_evaluation_is_shown_as_far_as_it_came(tmp_path):
    run = make_run(tmp_path, "my run", method="a3gt", eps=())
    partial = ensemble(left=LEFT[:2])
    partial["stages"][1] |= {"finished": False, "alone": None}
    evaluate(run, records=[*judged()[:2], partial], finished=False)
    assert {r.attack for r in read_run(run).records} == {"clean", "pgd-20"}
    assert first_stages(run).tag == "interrupted"
    assert remarks_of(run)[0].startswith("Interrupted during apgd-t")
    _, caution = told(run)["Evaluation not finished"]
    assert f"`equipoise evaluate '{run}' --resume`" in caution
    html = page(run, out=tmp_path / "report.html")
    assert html.count('<span class="tag">interrupted</span>') == 2  # stages and images
    assert "every attack" in text_of(html)


def test_an_evaluation_that_ended_is_no_caution(tmp_path):
    assert "Evaluation not finished" not in told(evaluated(tmp_path))


def test_a_damaged_evaluation_is_a_note(tmp_path):
    run = evaluated(tmp_path)
    (path,) = (run / "evaluations").glob("*.safetensors")
    path.write_bytes(path.read_bytes()[:-1])
    note = told(run)["Incomplete file"][1]
    assert "evaluations/linf-0.15-n1000.safetensors` is damaged" in note
    assert "AutoAttack" not in text_of(page(run, out=tmp_path / "report.html"))


def test_weights_of_the_last_round_give_way_to_the_kept(tmp_path):
    run = evaluated(tmp_path)
    last = [record("clean", 0.975, n=5000, weights="last")]
    evaluate(run, records=last, findings=[finding("lost", "failed", "gone")])
    assert [e.n for e in read_run(run).evaluations] == [1000]
    assert "Check failed: lost" not in told(run)
    assert gallery(read_run(run), ("linf", 0.15)).tag == ""


# --- checks and cost ---------------------------------------------------------------------------

MIXED = (
    finding("range"),
    finding("control", "skipped", "no other model is known"),
    finding("steps", "warning", "more steps fool 9 more", "use more steps"),
    finding("black-box", "failed", "square fooled 14 that gradients did not", "look at the model"),
    finding("logits"),
)


@pytest.mark.slow
def test_what_failed_comes_first_with_its_remedy(tmp_path):
    (checked,) = check_sections(read_run(evaluated(tmp_path, findings=MIXED)), ("linf", 0.15))
    alarms, rest, _ = checked.blocks
    assert alarms == {
        "Failed: black-box (C1)": "square fooled 14 that gradients did not. Look at the model.",
        "Warning: steps (C1)": "more steps fool 9 more. Use more steps.",
    }
    assert rest.title == "2 checks passed, 1 skipped"
    assert list(rest.blocks[0]) == ["range", "logits", "control"]
    html = page(tmp_path / "a3gt", out=tmp_path / "report.html")
    assert html.count('<dt class="alarm">') == 2
    text = text_of(html[html.index('id="checks"') :])
    assert text.index("Failed: black-box (C1)") < text.index("2 checks passed, 1 skipped")


def test_failed_checks_lead_the_cautions_with_the_name_of_the_run(tmp_path):
    one = evaluated(tmp_path, "one", findings=MIXED)
    two = evaluated(tmp_path, "two", findings=[finding("lost", "failed", "2 points are gone")])
    found = told(one, two)
    assert list(found)[:3] == [
        "Check failed: black-box",
        "Check failed: lost",
        "Check warns: steps",
    ]
    assert found["Check failed: black-box"][0] == ("one",)
    assert found["Check failed: lost"][1] == "2 points are gone."
    assert found["Check warns: steps"][1] == "more steps fool 9 more. Use more steps.", (
        "no budget is said where there is one evaluation"
    )


def test_failed_checks_stand_in_the_headline(tmp_path):
    def verdict(*runs):
        return headline(list(headline_rows(read_runs(runs)).values()))[0].replace("\u00a0", " ")

    sound, doubtful = evaluated(tmp_path, "one"), evaluated(tmp_path, "two", findings=MIXED)
    assert "cannot be trusted" not in verdict(sound)
    assert "cannot be trusted (failed check: black-box)" in verdict(doubtful)
    assert failed_checks([sound]) == []
    assert failed_checks([sound, doubtful]) == ["two, linf-0.15-n1000: black-box"]
    text = build([doubtful], tmp_path / "t.md").read_text(encoding="utf-8")
    assert "cannot be trusted (failed check: black-box)" in text.partition("##")[0]
    (line, *_) = [json.loads(x) for x in (doubtful / "records.jsonl").read_text().splitlines()]
    assert line["failed"] == ["black-box"]


@pytest.mark.slow
def test_strict_is_exit_code_1_where_a_check_failed(command, tmp_path):
    sound, doubtful = evaluated(tmp_path, "one"), evaluated(tmp_path, "two", findings=MIXED)
    out = tmp_path / "page.html"
    assert command("report", sound, "--out", out, "--strict").code == 0
    assert command("report", sound, doubtful, "--out", out).code == 0
    out.unlink()
    ended = command("report", sound, doubtful, "--out", out, "--strict")
    assert (ended.code, out.is_file()) == (1, True), "the page is written all the same"
    assert "two, linf-0.15-n1000: black-box" in ended.line


def test_a_check_that_objects_at_several_budgets_speaks_once(tmp_path):
    run = evaluated(tmp_path, findings=MIXED)
    evaluate(run, eps=0.05, findings=[finding("steps", "warning", "more steps fool 3 more")])
    text = told(run)["Check warns: steps"][1].replace("\u00a0", " ")
    assert text == (
        "at L∞, eps = 0.15, n = 1,000: more steps fool 9 more. Use more steps. "
        "The same holds for another evaluation: see Checks and cost."
    )


def test_no_checks_are_said(tmp_path):
    html = page(evaluated(tmp_path), out=tmp_path / "report.html")
    assert "No check was made" in text_of(html[html.index('id="checks"') :])


def test_cost_and_how_to_check_again(tmp_path):
    run = evaluated(tmp_path, "my run")
    (checked,) = check_sections(read_run(run), None)
    facts = {name: text.replace("\u00a0", " ") for name, text in checked.blocks[-1].items()}
    assert facts == {
        "Distances": "of 120 fooled images: median 0.15, largest 0.15 (L∞, eps = 0.15)",
        "Passes": "3.6 million images forward, 1.8 million backward",
        "Time": "1 min 25 s in the attacks",
        "Peak memory": "400 MiB",
        "Precision": "searched in bfloat16; every verdict is by 1 forward pass in float32",
        "Seed": "7",
        "Device": "cpu (an example)",
        "Command": "`equipoise evaluate r --attacks autoattack`",
        "Check it again": f"`equipoise verify '{run}'`",
    }


def test_what_findings_and_stages_say_is_escaped(tmp_path):
    bad = finding("<b>x</b>", "failed", HOSTILE, "<i>run</i> `<u>`")
    run = evaluated(tmp_path, findings=[bad, finding("range", message="<em>fine</em>")])
    whole = ensemble(name=f"autoattack-{HOSTILE}")
    whole["stages"][0] |= {"attack": HOSTILE, "settings": "<s>", "notes": ["<q>"]}
    judge(run, whole, record(f"{HOSTILE * 2}", 0.9))
    html = page(run, out=tmp_path / "report.html")
    for raw in ("<script>alert", "<b>x", "<i>run", "<u>", "<em>fine", "<s>", "<q>"):
        assert raw not in html
    ids = re.findall(r'\sid="([^"]+)"', html)
    assert len(ids) == len(set(ids))
    used = re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', html)
    assert {a or b for a, b in used} <= set(ids)
    defined = set(re.findall(r"(--[\w-]+):", html))
    assert set(re.findall(r"var\((--[\w-]+)\)", html)) <= defined


# --- bars ------------------------------------------------------------------------------------


def test_names_of_bars_are_short_plain_ascii():
    long = "square(queries=20000, p_init=0.8)"
    svg = inline(bars("t", [Bar(HOSTILE, 0.5, "50 %"), Bar(long, 1.0, "100 %")], 1, "f", "spoken"))
    assert "袋" not in svg
    assert "square(queries=2000..." in svg
    assert "&lt;script&gt;" in svg
    assert "#f1" not in svg


def test_bars_are_drawn_to_scale():
    rows = [Bar("a", 40, "40", lost=20), Bar("b", 80, "80", interval=(70, 90), lowest=True)]
    svg = inline(bars("t", rows, 100, "f", "spoken"))
    paths = [
        [float(x) for x in re.findall(r"[ML] ([\d.]+) ", d)]
        for d in re.findall(r'<g id="f-patch_\d+">\s*<path d="([^"]+)"', svg)
    ]
    widths = [max(xs) - min(xs) for xs in paths]
    kept, lost, second = widths[1:4] if len(widths) > 4 else widths[:3]
    assert kept == pytest.approx(2 * lost, rel=1e-4)
    assert second == pytest.approx(2 * kept, rel=1e-4)


# --- easy and hard images ----------------------------------------------------------------------


def indices(group):
    return [card.index for card in group[1]]


def groups_of(run):
    return groups_in(gallery(read_run(run), ("linf", 0.15)))


def test_easiest_and_hardest_follow_their_rules(tmp_path):
    groups = groups_of(pictured(tmp_path))
    fooled = [i for i in range(60) if i % 11 and i % 3]
    # Margins fall with the index here, and the attack that broke an image is its index modulo 5.
    assert indices(groups["Easiest to fool"]) == sorted(fooled, key=lambda i: (i % 5, -i))[:8]
    assert indices(groups["Hardest to fool"]) == sorted(fooled, key=lambda i: (-(i % 5), i))[:8]
    robust = [i for i in range(60) if i % 11 and not i % 3]
    assert indices(groups["Nearly fooled"]) == robust[:8]
    assert groups["Nearly fooled"][0] == f"8 of {len(robust)} robust images"


def test_below_an_image_stands_what_was_measured(tmp_path):
    groups = groups_of(pictured(tmp_path))
    first = groups["Hardest to fool"][1][0]
    assert first.index == 4
    assert first.note == "fooled first by square; distance 0.15, margin \u22120.05"
    assert groups["Nearly fooled"][1][0].note == "distance 0.15, margin 0.08"


def test_no_image_is_both_easiest_and_hardest(tmp_path):
    run = pictured(tmp_path, few={1, 2, 4, 5, 7})
    groups = groups_of(run)
    easy, hard = indices(groups["Easiest to fool"]), indices(groups["Hardest to fool"])
    assert len(easy) == len(hard) == 2
    assert not {*easy} & {*hard}
    assert groups["Easiest to fool"][0] == "2 of 5 fooled images"


def test_where_nothing_was_found_nothing_is_nearly_fooled(tmp_path):
    run = pictured(tmp_path, few=set(), margin=np.full(60, np.inf))
    groups = groups_of(run)
    assert set(groups) == {"Fooled", "Robust"}
    assert groups["Robust"][1][0].note == "no perturbed image was found"


@pytest.mark.slow
def test_of_large_images_fewer_are_shown(tmp_path):
    run = pictured(tmp_path, shape=(3, 128, 128), n=40)
    sizes = [len(cards) for _, cards in groups_of(run).values()]
    assert sizes == [4, 2, 2, 2, 2]


def test_the_images_of_the_largest_evaluation_at_the_budget_are_shown(tmp_path):
    run = pictured(tmp_path)
    images(run / "evaluations" / "linf-0.15-n30.safetensors", n=30)
    images(run / "evaluations" / "linf-0.3-n60.safetensors", eps=0.3)
    shown = gallery(read_run(run), ("linf", 0.15))
    assert shown.small.replace("\u00a0", " ") == "L∞, eps = 0.15"
    assert "of 60" in groups_in(shown)["Fooled"][0]
    assert "pgd-20, apgd-ce, apgd-t, fab-t and square" in shown.blocks[0]


def test_stages_keep_the_name_of_their_ensemble_where_another_has_theirs():
    assert attack_names(["a", "e/a", "e/b"]) == ("a", "e/a", "b")


# --- models of one's own ---------------------------------------------------------------------


def test_a_model_of_ones_own_was_not_trained_here(tmp_path):
    run = own(tmp_path)
    evaluate(run, records=judged())
    html = page(run, out=tmp_path / "report.html")
    text = text_of(html)
    assert "mine: worst-case accuracy 85.5 %" in text
    for word in ("Training has not finished", "One seed", "no curves", 'href="#training"'):
        assert word not in html
    assert 'id="training"' not in html
    facts = html[html.index('id="provenance"') :]
    for said in ("nets.robust:load", "net.pt", "cd" * 32, "digits"):
        assert f"<dd><code>{said}</code></dd>" in facts
    assert "evaluate one on the same data" in told(run)["No undefended model to compare with"][1]


def test_a_model_of_ones_own_beside_a_training(tmp_path):
    mine = own(tmp_path, weights=None)
    html = page(mine, evaluated(tmp_path), out=tmp_path / "report.html")
    training = html[html.index('id="training"') : html.index('id="classes"')]
    assert "<h3>mine" not in training
    assert "<h3>a3gt" in training
    text = text_of(html)
    assert "mine was not trained here and has not been evaluated" in text
    assert "those that the import itself loads" in text
    assert "SHA-256 of the weights" not in text


def test_a_damaged_description_of_a_model_is_refused(tmp_path):
    run = own(tmp_path)
    (run / "own-model.json").write_text("{", encoding="utf-8")
    with pytest.raises(UserError, match=r"own-model\.json is damaged"):
        build([run], tmp_path / "report.html")


# --- Markdown, browser -------------------------------------------------------------------------


def test_markdown_has_stages_and_what_the_checks_object_to(tmp_path):
    runs = [evaluated(tmp_path, findings=MIXED), own(tmp_path)]
    text = build(runs, tmp_path / "t.md").read_text(encoding="utf-8")
    assert "### a3gt, AutoAttack, L∞, eps = 0.15, n = 1,000" in text
    assert (
        "| apgd-t | 880 | 20 | 86.0 % 83.6–88.1 | 87.1 % | 2.5 | 880,000 | 440,000 | apgd-t() |"
        in text
    )
    assert "2 checks passed, 1 skipped" in text
    assert "- **Failed: black-box (C1)**: square fooled 14 that gradients did not. Look at" in text
    assert "- **Model**: `nets.robust:load`" in text
    assert "| mine |" not in text, "it has no training"


@pytest.mark.slow
@pytest.mark.browser
def test_in_a_browser(tmp_path):
    run = evaluated(tmp_path, "a-run-with-a-very-long-name-" * 3, findings=MIXED)
    out = build([run, own(tmp_path)], tmp_path / "report.html")
    with browser() as view:
        for width in (400, 1280):
            for dark in (False, True):
                view.show(out, width=width, dark=dark)
                assert view.console() == []
                assert view.ask("document.documentElement.scrollWidth") <= width
                panels = "[...document.querySelectorAll('#stages svg[role=img]')]"
                widths = view.ask(f"{panels}.map(s => s.getBoundingClientRect().width)")
                assert len(widths) == 2
                assert all(w > 250 for w in widths)
                texts = "[...document.querySelectorAll('#stages svg[role=img] text')]"
                right = view.ask(f"Math.max(...{texts}.map(t => t.getBoundingClientRect().right))")
                left = view.ask(f"Math.min(...{texts}.map(t => t.getBoundingClientRect().left))")
                assert 0 <= left < right <= width
                if shots := os.environ.get("EQUIPOISE_SCREENSHOTS"):
                    theme = "dark" if dark else "light"
                    view.screenshot(Path(shots) / f"stages-{width}-{theme}.png")
