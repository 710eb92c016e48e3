"""The report: synthetic run folders in, one self-contained page out."""

import base64
import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from safetensors.numpy import save_file

from browser import browser
from equipoise.errors import UserError
from equipoise.report import build, wording
from equipoise.report.checks import cautions
from equipoise.report.content import Section, Table
from equipoise.report.figures import curves, overview
from equipoise.report.gallery import gallery
from equipoise.report.pictures import inline
from equipoise.report.results import headline, headline_rows, result_sections, sweep
from equipoise.report.runs_reader import read_run, read_runs
from equipoise.store.sealed import weights_digest
from judgements import judge, write

CLASSES = ["T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"]
CLASSES += ["Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"]
HOSTILE = "<script>alert('x')</script> & \"$\\frac{1}{0}$\" 袋"


# --- run folders -----------------------------------------------------------------------------


def write_json(path, value):
    path.write_text(json.dumps(value), encoding="utf-8")


def append(path, *values):
    with path.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(value) + "\n" for value in values)


def recipe(method, *, norm="linf", eps=0.15, rounds=12, seed=0):
    threat = {"norm": norm, "eps": eps}
    robust = {"steps": 10, "step_size": eps / 4, "restarts": 1, "start": "uniform"}
    learning = {"rounds": rounds, "batch_size": 128, "seed": seed, "lr": 0.1}
    common = {"method": method, "data": "fashion-mnist", "model": "small-cnn", **threat}
    return {**common, **learning, "every": 2, "robust": robust}


def provenance(classes):
    data = {"name": "fashion-mnist", "source": "files", "classes": classes}
    data |= {"train": 54000, "validation": 1000, "test": 10000, "sha256": {"t10k": "ab" * 32}}
    versions = {"equipoise": "0.1.0", "python": "3.11.7", "torch": "2.13.0", "numpy": "2.4"}
    machine = {"device": "cpu (an example)", "threads": 2, "platform": "Linux", "seed": 0}
    source = {"git_commit": "0123abcd", "git_dirty": None, "started": "2025-01-02T03:04:05Z"}
    return {**versions, **machine, **source, "command": "equipoise train a3gt", "data": data}


def metrics(t, kind):
    rise = 1 - np.exp(-t / 3)
    clean = {"clean": 0.985, "robust": 0.93, "global": 0.975}[kind] * (0.8 + 0.2 * rise)
    robust = {"clean": 0.03, "robust": 0.80, "global": 0.82}[kind] * (0.3 + 0.7 * rise)
    losses = {"clean_loss": 1.02 - clean, "robust_loss": 4.5 * (1 - robust)}
    return {"clean_accuracy": clean, "robust_accuracy": robust, **losses}


def round_line(t, rounds, learners, start):
    merged = start is not None and t >= start
    share = min(1.0, 0.08 * (t - start)) if merged and start is not None else 0.0
    step = {"lr": 0.1 * (1 - t / rounds), "loss": 1.5 / (t + 1)}
    own = {name: {**step, **metrics(t, name)} for name in learners}
    if "robust" in own:
        own["robust"]["loss"] += 0.4
    weights = {"clean": share, "robust": 1 - share} if len(learners) > 1 else {learners[0]: 1.0}
    began = {
        "round": start if merged else None,
        "reason": "clean: level since 5; robust: deadline",
    }
    line = {"round": t, "rounds": rounds, "learners": own, "global": metrics(t, "global")}
    line |= {"weights": weights, "start": began, "handover": merged and (t - start) % 2 == 0}
    line |= {"kept": t == rounds - 1, "seconds": {"train": 30.1, "validation": 2.0}}
    return line | {"gradient_evaluations": 648000, "images_per_second": 1800.0}


def log(folder, learners, *, rounds=12, until=None, start=7):
    lines = [round_line(t, rounds, learners, start) for t in range(1, (until or rounds) + 1)]
    append(folder / "log.jsonl", *lines)


def summary(learners, *, rounds=12, start=7, warnings=()):
    two = len(learners) > 1
    handovers = list(range(start, rounds + 1, 2)) if two and start else []
    rule = "the round with the highest mean of clean and robust validation accuracy"
    began = {"round": start if two else None, "learners": {}, "reason": "both level"}
    done = {"finished": True, "kept_round": rounds - 1, "rule": rule, "start": began}
    effort = {"gradient_evaluations": 7800000, "seconds": 400.2}
    return {**done, "handovers": handovers, "warnings": list(warnings), **effort}


def record(attack, accuracy, *, n=1000, eps=0.15, norm="linf", classes=CLASSES, **more):
    half = 1.96 * max(accuracy * (1 - accuracy) / n, 1e-9) ** 0.5
    spread = np.linspace(-0.1, 0.1, len(classes))
    shares = {c: float(np.clip(accuracy + d, 0, 1)) for c, d in zip(classes, spread, strict=True)}
    each = n // len(classes)
    per_class = {
        c: {"n": each, "robust": round(each * a), "accuracy": a} for c, a in shares.items()
    }
    worst = min(shares, key=shares.__getitem__)
    line = {"attack": attack, "settings": f"{attack}()", "norm": norm, "eps": eps, "split": "test"}
    line |= {"n": n, "robust": round(n * accuracy), "accuracy": accuracy, "seed": 0}
    line |= {"interval": [max(0.0, accuracy - half), min(1.0, accuracy + half)]}
    line |= {"per_class": per_class, "worst_class": {"name": worst, "accuracy": shares[worst]}}
    line |= {"seconds": 12.1, "created": "2025-01-02T03:04:05Z", "warnings": []}
    return line | {"model_sha256": "aa", "data_sha256": "bb"} | more


def evaluation(clean, worst, *, eps=0.15, **more):
    names = ["pgd-20", "mi-fgsm-10", "apgd-ce", "square-500"]
    alone = [clean - (clean - worst) * (i + 1) / 5 for i in range(4)]
    parts = [record(name, a, eps=eps, **more) for name, a in zip(names, alone, strict=True)]
    last = record("worst-case", worst, eps=eps, attacks=names, **more)
    return [record("clean", clean, eps=eps, **more), *parts, last]


def images(
    path, *, eps=0.15, shape=(1, 28, 28), n=60, classes=CLASSES, kind=np.float32, few=None, **more
):
    rng = np.random.default_rng(0)
    row, column = np.mgrid[: shape[1], : shape[2]] / shape[1]
    y = np.arange(n) % len(classes)
    waves = np.sin(6 * row[None] * (1 + y[:, None, None] / 3)) * np.cos(5 * column[None])
    x = np.repeat((0.5 + 0.45 * waves)[:, None], shape[0], axis=1).astype(np.float32)
    delta = eps * np.sign(rng.standard_normal(x.shape)).astype(np.float32)
    correct, robust = np.arange(n) % 11 != 0, np.arange(n) % 3 == 0
    if few is not None:  # only these are fooled
        robust = ~np.isin(np.arange(n), [*few])
    wrong = (y + 1) % len(classes)
    arrays = {"x": np.rint(255 * x).astype(np.uint8) if kind == np.uint8 else x, "y": y}
    arrays |= {"x_adv": np.clip(x + delta, 0, 1), "clean_prediction": np.where(correct, y, wrong)}
    attacks = [
        "pgd-20",
        *(f"autoattack/{name}" for name in ("apgd-ce", "apgd-t", "fab-t", "square")),
    ]
    outcomes = {}
    for index, name in enumerate(attacks):
        verdict = correct & (robust | (np.arange(n) % 5 != index))
        outcomes[name] = (verdict, correct, {"ensemble": name.rpartition("/")[0]})
    arrays |= {"margin": more.pop("margin")} if "margin" in more else {}
    write(path, arrays, outcomes, eps=eps, classes=classes, **more)


def make_run(
    root,
    name,
    *,
    clean=0.978,
    worst=0.812,
    method=None,
    classes=CLASSES,
    eps=(0.05, 0.1, 0.15),
    n=1000,
    **more,
):
    """A finished and evaluated run."""
    folder = root / name
    folder.mkdir(parents=True)
    method = method or name
    learners = (
        ["clean", "robust"] if method == "a3gt" else [{"standard": "clean"}.get(method, "robust")]
    )
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe(method)), encoding="utf-8")
    write_json(folder / "provenance.json", provenance(classes))
    write_json(folder / "config.json", {"model": "small-cnn", "channels": 1, "classes": classes})
    log(folder, learners)
    write_json(folder / "summary.json", summary(learners))
    for e in eps:
        accuracy = clean - (clean - worst) * e / max(eps)
        judge(folder, *evaluation(clean, accuracy, eps=e, n=n, classes=classes, **more))
    return folder


def page(*runs, out):
    return build(runs, out).read_text(encoding="utf-8")


def text_of(html):
    class Words(HTMLParser):
        def __init__(self):
            super().__init__()
            self.words, self.skip = [], 0

        def handle_starttag(self, tag, _attrs):
            self.skip += tag in ("style", "script")

        def handle_endtag(self, tag):
            self.skip -= tag in ("style", "script")

        def handle_data(self, data):
            if not self.skip:
                self.words.append(data)

    words = Words()
    words.feed(html)
    return " ".join("".join(words.words).split())


def outside(html):
    """Everything the page would fetch, or link to, that is neither inside it nor data."""
    found = re.findall(r"""(?:src|href|srcset|action|data)\s*=\s*["']?([^"'\s>]+)""", html)
    found += re.findall(r"""url\(\s*["']?([^"')]+)""", html)
    found += re.findall(r"@import[^;]+", html)
    return [address for address in found if not address.startswith(("#", "data:"))]


@pytest.fixture
def pair(tmp_path):
    return (
        make_run(tmp_path, "a3gt", n=500),
        make_run(tmp_path, "standard", clean=0.984, worst=0.031, n=500),
    )


# --- numbers as text -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fraction", "text"),
    [
        (0.7321, "73.2 %"),
        (0.7325, "73.2 %"),
        (0.9995, "99.95 %"),
        (0.0001, "0.01 %"),
        (0.0, "0.0 %"),
        (1.0, "100.0 %"),
        (0.999999, "> 99.99 %"),
        (0.000001, "< 0.01 %"),
        (0.05, "5.0 %"),
        (None, "–"),
        (float("nan"), "–"),
    ],
)
def test_percent(fraction, text):
    assert wording.percent(fraction).replace("\u00a0", " ") == text


@pytest.mark.parametrize(
    ("bounds", "text"),
    [((0.72331, 0.74079), "72.3–74.1"), ((0.7, 0.8), "70.0–80.0"), ((0.0, 1.0), "0.0–100.0")],
)
def test_interval_is_rounded_outwards(bounds, text):
    assert wording.interval(bounds) == text


@pytest.mark.parametrize(
    ("eps", "text"),
    [
        (8 / 255, "8/255"),
        (0.0313725, "8/255"),
        (128 / 255, "128/255"),
        (0.1, "0.1"),
        (0.2, "0.2"),
        (0.12345, "0.1235"),
        (0.0, "0"),
        (1.0, "1"),
        (12.0, "12"),
    ],
)
def test_eps_is_a_fraction_of_255_where_it_is_one(eps, text):
    assert wording.eps_text(eps) == text


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (wording.duration(400.2), "6 min 40 s"),
        (wording.duration(3.14), "3.1 s"),
        (wording.duration(7322), "2 h 2 min"),
        (wording.duration(59.9), "1 min 0 s"),
        (wording.large(7_800_000), "7.8 million"),
        (wording.large(648_000), "648,000"),
        (wording.join(["a", "b", "c"]), "a, b and c"),
        (wording.join(["a"]), "a"),
        (wording.threat_text("linf", 8 / 255), "L∞, eps = 8/255"),
        (wording.setting("robust.eps", 4 / 255), "4/255"),
        (wording.setting("lr", 0.1), "0.1"),
        (wording.setting("start", None), "null"),
        (wording.setting("flip", True), "true"),
        (wording.setting("knots", [1, 0.4]), "1, 0.4"),
    ],
)
def test_words(written, expected):
    assert written.replace("\u00a0", " ") == expected


def test_nested_settings_are_dotted():
    tree = {"a": 1, "b": {"c": {"d": None}, "e": {}}}
    assert dict(wording.flatten(tree)) == {"a": "1", "b.c.d": "null", "b.e": "–"}


# --- the page --------------------------------------------------------------------------------


def test_a_pair_of_runs(pair, tmp_path):
    html = page(*pair, out=tmp_path / "deep" / "report.html")
    text = text_of(html)
    first, second = (re.findall(r"[\d.]+ %", s) for s in told_in(html))
    assert (first, second) == (["81.2 %", "97.8 %"], ["3.2 %", "98.4 %"])
    for identity in ("fig-overview", "fig-curves-0", "fig-curves-1", "fig-classes"):
        assert re.search(rf'<figure class="figure[^"]*" id="{identity}" aria-label="[^"]+"', html)
    pictures, tables = html.index('id="fig-overview"'), html.index("<table")
    assert pictures < html.index('class="card"') < tables, "pictures come first"
    for heading in (
        "L∞, eps = 0.05",
        "L∞, eps = 0.1",
        "L∞, eps = 0.15",
        "Training",
        "Classes",
        "Images",
    ):
        assert f"<{heading}<" in re.sub("<h[23]>", "<", html).replace("\u00a0", " ")
    assert "merging starts, t′ = 7" in text
    assert "after 7, 9 and 11" in text
    assert "round 11 of 12, the round with the highest mean of clean and robust valid" in text
    assert "7.8 million 400" in text, "gradient evaluations and seconds"
    assert "robust.step_size" in text
    assert "data.sha256.t10k" in text
    assert "0123abcd" in text


def told_in(html):
    """Return the sentences of the headline."""
    part = html.partition('<div class="verdicts">')[2].partition("</div>")[0]
    return [text_of(s).replace("\u00a0", " ") for s in part.split("</p>")[:-1]]


def test_the_headline_has_both_accuracies_with_n_and_intervals(tmp_path):
    run = make_run(tmp_path, "a3gt", n=500)
    (sentence,) = told_in(page(run, out=tmp_path / "report.html"))
    numbers = re.findall(r"\d+(?:\.\d+)?(?:–\d+\.\d+)?", sentence.partition(":")[2])
    assert numbers == ["81.2", "77.4–84.6", "97.8", "96.0–98.9", "4", "0.15", "500"]


def test_one_run_at_one_radius_shows_its_attacks_as_bars(tmp_path):
    runs = read_runs([make_run(tmp_path, "a3gt", eps=(0.15,))])
    figure = overview(runs, headline_rows(runs), "f")
    spoken = figure.panels[0].spoken.replace("\u00a0", " ")
    names = ("clean", "pgd-20", "mi-fgsm-10", "apgd-ce", "square-500", "worst-case")
    assert re.findall(r"([\w-]+) [\d.]+ %", spoken) == [*names]


def test_several_runs_show_their_trade_off_and_several_radii_a_sweep(pair, tmp_path):
    runs = read_runs(pair)
    tradeoff, eps = overview(runs, headline_rows(runs), "f").panels
    assert "a3gt: 97.8\u00a0% clean, 81.2\u00a0% under attack" in tradeoff.spoken
    assert "0.15 81.2\u00a0%" in eps.spoken
    one = read_runs(pair[:1])
    assert len(overview(one, headline_rows(one), "f").panels) == 1


def test_nothing_comes_from_outside(pair, tmp_path):
    html = page(*pair, out=tmp_path / "report.html")
    assert outside(html) == []
    assert "http" not in re.sub(r'http-equiv="|xmlns(:\w+)?="[^"]+"', "", html)
    assert 'href="data:,"' in html


def test_ids_are_unique_and_references_resolve(pair, tmp_path):
    html = page(*pair, out=tmp_path / "report.html")
    ids = re.findall(r'\sid="([^"]+)"', html)
    assert len(ids) == len(set(ids))
    used = re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', html)
    assert {a or b for a, b in used} <= set(ids)


def test_no_stand_in_colour_is_left(pair, tmp_path):
    html = page(*pair, out=tmp_path / "report.html")
    assert "#f1a0" not in html
    assert "#f1b0" not in html
    defined = set(re.findall(r"(--[\w-]+):", html))
    assert set(re.findall(r"var\((--[\w-]+)\)", html)) <= defined


@pytest.mark.slow
def test_equal_folders_give_equal_bytes(pair, tmp_path):
    assert page(*pair, out=tmp_path / "one.html") == page(*pair, out=tmp_path / "two.html")


def test_no_file_is_left_beside_it(pair, tmp_path):
    out = tmp_path / "out" / "report.html"
    build(pair, out)
    build(pair, out)
    assert [p.name for p in out.parent.iterdir()] == ["report.html"]
    assert out.stat().st_mode & 0o777 == 0o644


def test_what_users_write_is_escaped(tmp_path):
    classes = [HOSTILE, *CLASSES[1:]]
    run = make_run(tmp_path, "a<b>&'\"$x$", method="a3gt", classes=classes)
    judge(run, record("<i>pgd</i>", 0.85, eps=0.15, settings="<u>", classes=classes))
    told = summary(["clean", "robust"], warnings=["<img src=x onerror=alert(1)>"])
    write_json(run / "summary.json", told)
    html = page(run, out=tmp_path / "report.html")
    for raw in ("<script>alert", "<i>pgd", "<u>", "<img src=x", "a<b>"):
        assert raw not in html
    assert "&lt;script&gt;alert" in html
    assert HOSTILE in text_of(html)


@pytest.mark.slow
def test_three_runs_speak_a_sentence_each(tmp_path):
    runs = [make_run(tmp_path, "standard", clean=0.984, worst=0.031), make_run(tmp_path, "a3gt")]
    runs.append(make_run(tmp_path, "pgd-at", clean=0.93, worst=0.78))
    told = headline(list(headline_rows(read_runs(runs)).values()))
    assert [t.partition(":")[0] for t in told] == ["a3gt", "pgd-at", "standard (undefended)"]
    assert len(set(styles_in(page(*runs, out=tmp_path / "r.html")))) == 3


@pytest.mark.slow
def test_of_many_runs_the_best_speak_and_the_rest_is_folded(tmp_path):
    runs = [make_run(tmp_path, "standard", clean=0.984, worst=0.031)]
    for i in range(7):
        name = f"pgd-at-{i}"
        runs.append(make_run(tmp_path, name, method="pgd-at", clean=0.9, worst=0.7 + i / 100))
    html = page(*runs, out=tmp_path / "r.html")
    attacked, clean = told_in(html)
    assert attacked.startswith("Best under attack of 8 runs: pgd-at-6:")
    assert clean.startswith("Best on clean images of 8 runs: standard (undefended):")
    assert html.count("<summary>All 8 runs</summary>") == 3  # trainings, checks and images
    assert "Report on 8 runs" in html


def styles_in(html):
    figure = html[html.index('id="fig-overview"') :]
    legend = figure[figure.index("<ul") : figure.index("</ul>")]
    return re.findall(r"stroke: var\(([\w-]+)\)", legend)


def test_norms_and_255ths(tmp_path):
    run = make_run(tmp_path, "a3gt", eps=(8 / 255,))
    judge(run, record("pgd-20", 0.6, norm="l2", eps=0.5))
    text = text_of(page(run, out=tmp_path / "report.html"))
    assert "L∞, eps = 8/255" in text
    assert "L2, eps = 0.5" in text


# --- results ---------------------------------------------------------------------------------


def test_another_number_of_images_is_another_row(pair, tmp_path):
    judge(pair[0], record("clean", 0.98, n=200), record("pgd-20", 0.125, n=200))
    text = text_of(page(*pair, out=tmp_path / "report.html"))
    assert "12.5 %" in text
    assert "94.4 %" in text


@pytest.mark.slow
def test_what_records_jsonl_says_is_not_read(pair, tmp_path):
    before = page(*pair, out=tmp_path / "report.html")
    path = pair[0] / "records.jsonl"
    path.write_text(path.read_text().replace('"accuracy": 0.812', '"accuracy": 0.999'))
    (summary,) = (pair[0] / "evaluations").glob("linf-0.15-*.json")
    summary.write_text("{}")
    assert page(*pair, out=tmp_path / "again.html") == before


def test_numbers_of_other_weights_are_left_out(tmp_path):
    run = make_run(tmp_path, "a3gt", eps=(0.1,))
    weights = {"w": np.ones((2, 3), np.float32), "b": np.zeros(2, np.float32)}
    save_file(weights, run / "model.safetensors")
    assert read_run(run).records == ()
    assert "is of other weights than the run has now" in titles(run)["Incomplete file"][1]
    path = run / "evaluations" / "linf-0.1-n1000.safetensors"
    images(path, eps=0.1, model_sha256=weights_digest(run / "model.safetensors"))
    assert {r.n for r in read_run(run).records} == {60}


def test_verdicts_that_were_changed_are_left_out(tmp_path):
    run = make_run(tmp_path, "a3gt", eps=(0.1,))
    (path,) = (run / "evaluations").glob("*.safetensors")
    content = bytearray(path.read_bytes())
    head = 8 + int.from_bytes(content[:8], "little")
    place = json.loads(content[8:head])["verdict.pgd-20"]["data_offsets"][0]
    content[head + place] ^= 1
    path.write_bytes(content)
    assert read_run(run).records == ()
    assert "checksum of verdict.pgd-20 differs" in titles(run)["Incomplete file"][1]


def results_of(folders):
    """Return the result tables of a report."""
    found = [block for s in result_sections(read_runs(folders)) for block in s.blocks]
    return [block for block in found if isinstance(block, Table)]


def by_column(table):
    heads = [column.head for column in table.columns]
    return dict(zip(heads, zip(*table.rows, strict=True), strict=True))


def test_best_is_marked_where_intervals_are_apart(tmp_path):
    runs = [make_run(tmp_path, "a", method="a3gt", clean=0.978, worst=0.812)]
    runs.append(make_run(tmp_path, "b", method="pgd-at", clean=0.981, worst=0.70))
    columns = by_column(results_of(runs)[-1])
    assert [cell.mark for cell in columns["worst-case"]] == ["best", ""]
    assert [cell.mark for cell in columns["clean"]] == ["", "close"]
    assert list(columns)[:2] == ["run", "worst-case"], "on a small screen, too"


FIRST = {"n": 500, "of": 10_000, "seed": None, "sha256": "11" * 32}
SAMPLE = {"n": 500, "of": 10_000, "seed": 2, "sha256": "22" * 32}


@pytest.mark.slow
def test_runs_on_other_images_stand_in_tables_of_their_own(tmp_path):
    given = {"a": SAMPLE, "b": SAMPLE, "c": FIRST}
    folders = [
        make_run(tmp_path, name, method="pgd-at", worst=0.5 + i / 5, n=500, sample=sample)
        for i, (name, sample) in enumerate(given.items())
    ]
    found = results_of(folders)[-2:]  # of the largest radius
    rows = {"".join(row[0].text for row in table.rows): table for table in found}
    assert rows.keys() == {"ab", "c"}
    assert not any(cell.mark for row in rows["c"].rows for cell in row)  # it has other images
    text = text_of(page(*folders, out=tmp_path / "report.html"))
    for told in (
        "L∞, eps = 0.15, a stratified sample of 500 of 10,000 images, seed 2",
        "L∞, eps = 0.15, the first 500 of 10,000 images",
        "a sample of 500 of 10,000",
        "Different samples",
        "not drawn: c",
    ):
        assert told in text, told
    written = build(folders, tmp_path / "tables.md").read_text(encoding="utf-8")
    assert "a stratified sample of 500 of 10,000 images, seed 2" in written
    assert "the first 500 of 10,000 images" in written


def test_equal_records_of_other_images_do_not_replace_one_another(tmp_path):
    folder = make_run(tmp_path, "a3gt", n=500, sample=SAMPLE, eps=(0.15,))
    judge(
        folder,
        record("clean", 0.9, n=500, sample=FIRST),
        record("pgd-20", 0.4567, n=500, sample=FIRST),
    )
    found = read_runs([folder])[0].evaluations
    assert {e.sample.seed for e in found} == {2, None}
    assert sum(r.attack == "pgd-20" for e in found for r in e.records) == 2


def headline_of(run):
    (row,) = headline_rows(read_runs([run])).values()
    return row.threat[1], row.evaluation.n


def test_the_headline_is_of_the_radius_of_the_training_or_the_largest_never_the_kindest(tmp_path):
    trained = make_run(tmp_path, "a", method="a3gt", eps=(0.05, 0.1))
    assert headline_of(trained) == (0.1, 1000)
    judge(trained, *evaluation(0.97, 0.1, eps=0.3))
    assert headline_of(trained) == (0.3, 1000)
    judge(trained, *evaluation(0.97, 0.4, eps=0.15, n=200))
    assert headline_of(trained) == (0.15, 200), "that of the training, on as many images as it has"
    judge(trained, record("clean", 0.97, n=5000))
    assert headline_of(trained) == (0.15, 200), "clean images alone say nothing"
    judge(trained, *evaluation(0.97, 0.9, eps=0.5, norm="l2"))
    assert headline_of(trained) == (0.15, 200)
    # Beside another run that was judged at a smaller radius each keeps its own.
    other = make_run(tmp_path, "b", method="pgd-at", eps=(0.05,))
    third = make_run(tmp_path, "c", method="pgd-at", eps=(0.05,))
    rows = headline_rows(read_runs([trained, other, third]))
    assert {name: row.threat[1] for name, row in rows.items()} == {"a": 0.15, "b": 0.05, "c": 0.05}


def test_one_run_has_no_best(tmp_path):
    (table,) = results_of([make_run(tmp_path, "a3gt", eps=(0.15,))])
    assert not any(cell.mark for row in table.rows for cell in row)


def test_radius_0_is_no_budget_beside_others(tmp_path):
    run = make_run(tmp_path, "a3gt", eps=())
    judge(run, record("clean", 0.97, eps=0.0), record("clean", 0.97), record("pgd-20", 0.8))
    (row,) = headline_rows(read_runs([run])).values()
    assert row.clean.accuracy == 0.97
    assert re.findall(r"[\d.]+(?=\u00a0%)", headline([row])[0]) == ["80.0", "97.0"]
    (table,) = results_of([run])
    assert [*by_column(table)][1:-2] == ["worst-case", "clean", "pgd-20"]


def test_only_clean_accuracy(tmp_path):
    run = make_run(tmp_path, "a3gt", eps=())
    judge(run, record("clean", 0.97))
    text = text_of(page(run, out=tmp_path / "report.html"))
    assert "clean accuracy 97.0 % (95.7–98.0), n = 1,000; it has not been attacked" in text


def test_sweep_takes_what_all_runs_share(tmp_path):
    one, two = make_run(tmp_path, "a", eps=()), make_run(tmp_path, "b", eps=())
    judge(one, *evaluation(0.97, 0.8))
    judge(two, record("clean", 0.9), record("pgd-20", 0.5), record("x", 0.1))
    measure, found = sweep(read_runs([one, two]), "linf")
    assert measure == "worst-case"
    assert {n: [r.accuracy for r in by.values()] for n, by in found.items()} == {
        "a": [0.97, 0.8],
        "b": [0.9, 0.1],
    }


# --- cautions --------------------------------------------------------------------------------


def titles(*folders):
    runs = read_runs(folders)
    return {title: (names, text) for names, title, text in cautions(runs, headline_rows(runs))}


def test_cautions_of_a_sound_pair(tmp_path):
    folders = [make_run(tmp_path, "a3gt"), make_run(tmp_path, "standard")]
    assert set(titles(*folders)) == {"One seed"}


def test_cautions(tmp_path):
    run = make_run(tmp_path, "a3gt", n=500)
    told = summary(["clean", "robust"], start=None, warnings=["never synchronised: no level"])
    write_json(run / "summary.json", told)
    path = run / "evaluations" / "linf-0.05-n500.safetensors"
    verdict = np.arange(500) % 2 == 0
    told = {"rejected": 2}
    arrays = {"x": np.zeros((500, 1, 2, 2)), "x_adv": np.zeros((500, 1, 2, 2))}
    arrays |= {"y": np.arange(500) % 10, "clean_prediction": np.arange(500) % 10}
    write(
        path, arrays, {"pgd-20": (verdict, verdict | True, told)}, eps=0.05, model_sha256="other"
    )
    found = titles(run)
    assert set(found) == {
        "Never synchronised",
        "Few images",
        "Warning",
        "More than one model",
        "No undefended model to compare with",
        "One seed",
    }
    assert found["Never synchronised"][1] == "no level."


def test_the_last_round_is_not_the_kept_model(tmp_path):
    run = make_run(tmp_path, "a3gt", eps=())
    judge(run, *evaluation(0.97, 0.8, weights="last"))
    assert "Not the kept model" in titles(run)


def test_never_synchronised_is_noticed_unsaid(tmp_path):
    run = make_run(tmp_path, "a3gt")
    write_json(run / "summary.json", summary(["clean", "robust"], start=None))
    assert "Never synchronised" in titles(run)


def test_repeated_seeds_and_different_images(tmp_path):
    one, two = make_run(tmp_path, "s0", method="a3gt"), make_run(tmp_path, "s1", method="a3gt")
    (two / "recipe.yaml").write_text(yaml.safe_dump(recipe("a3gt", seed=1)), encoding="utf-8")
    assert "One seed" not in titles(one, two)
    judge(two, record("pgd-20", 0.7, eps=0.2, data_sha256="other"))
    assert "Different images" in titles(one, two)


# --- parts that are missing ------------------------------------------------------------------


@pytest.mark.slow
def test_training_without_evaluation(tmp_path):
    run = tmp_path / "my run"
    run.mkdir()
    (run / "recipe.yaml").write_text(yaml.safe_dump(recipe("a3gt")), encoding="utf-8")
    log(run, ["clean", "robust"], until=5)
    html = page(run, out=tmp_path / "report.html")
    text = text_of(html)
    assert "was trained for 5 of 12 rounds and has not been evaluated" in text
    assert f"equipoise evaluate '{run}'" in text
    assert "Training has not finished." in text
    assert 'id="fig-curves-0"' in html
    assert 'id="results"' not in html


def test_a_recipe_alone(tmp_path):
    (tmp_path / "recipe.yaml").write_text("method: a3gt\n", encoding="utf-8")
    text = text_of(page(tmp_path, out=tmp_path / "out" / "report.html"))
    assert "has not logged a round" in text
    assert "no curves" in text


def test_a_run_that_stopped_before_it_began(tmp_path):
    (tmp_path / "recipe.yaml").touch()
    assert "no curves" in text_of(page(tmp_path, out=tmp_path / "out" / "report.html"))


def test_an_evaluation_alone(tmp_path):
    run = tmp_path / "r"
    run.mkdir()
    (run / "recipe.yaml").touch()
    judge(run, record("clean", 0.75), record("pgd-20", 0.5))
    (sentence,) = told_in(page(run, out=tmp_path / "report.html"))
    assert re.findall(r"[\d.]+ %", sentence) == ["50.0 %", "75.0 %"]


def test_records_without_a_sealed_evaluation_are_left_out(tmp_path):
    run = make_run(tmp_path, "a3gt", eps=())
    append(run / "records.jsonl", *evaluation(0.97, 0.8))
    assert read_run(run).records == ()
    assert "has no sealed evaluation" in titles(run)["Incomplete file"][1]


def test_validation_may_be_missing(tmp_path):
    run = tmp_path / "r"
    run.mkdir()
    nothing = dict.fromkeys(metrics(1, "clean"))
    for t in (1, 2):
        line = round_line(t, 2, ["clean"], None)
        line["learners"]["clean"] |= nothing
        append(run / "log.jsonl", line | {"global": None, "weights": None, "start": None})
    figure = curves(read_run(run), "fig-curves-0")
    assert [panel.title for panel in figure.panels] == ["Training loss", "Learning rate"]


def test_three_learners_and_a_single_round(tmp_path):
    run = tmp_path / "r"
    run.mkdir()
    line = round_line(1, 1, ["clean", "robust"], None)
    line["learners"]["l2"] = line["learners"]["robust"]
    line["weights"] = {"clean": 0.2, "robust": 0.3, "l2": 0.5}
    append(run / "log.jsonl", line)
    keys = [key.label for key in curves(read_run(run), "f").keys]
    assert keys[:4] == ["clean learner", "robust learner", "l2 learner", "global"]


def test_a_line_cut_short_is_left_out(tmp_path):
    run = make_run(tmp_path, "a3gt")
    with (run / "log.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"round": 13, "lear')
    assert len(read_run(run).rounds) == 12
    assert "Incomplete file" in titles(run)


def test_a_round_logged_twice_counts_once(tmp_path):
    run = make_run(tmp_path, "a3gt")
    append(
        run / "log.jsonl", round_line(5, 12, ["clean", "robust"], 7) | {"global": {"loss": 9.0}}
    )
    rounds = read_run(run).rounds
    assert [r.number for r in rounds] == list(range(1, 13))
    assert rounds[4].merged == {"loss": 9.0}


def test_runs_of_the_same_name_are_told_apart(tmp_path):
    folders = [make_run(tmp_path / "s0", "a3gt"), make_run(tmp_path / "s1", "a3gt")]
    assert [run.name for run in read_runs([*folders, folders[0]])] == ["s0/a3gt", "s1/a3gt"]


# --- folders that cannot be read -------------------------------------------------------------


def refused(*folders, out):
    with pytest.raises(UserError) as caught:
        build(folders, out)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_unusable_folders_are_refused(tmp_path):
    out = tmp_path / "report.html"
    assert "at least one folder" in refused(out=out)
    assert "no run folder at" in refused(tmp_path / "absent", out=out)
    assert "is not a run folder" in refused(tmp_path, out=out)
    assert not out.exists()


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("log.jsonl", '{"round":\n{"round": 2}\n', "line 1 is not JSON"),
        ("log.jsonl", '{"rounds": 2}\n', "line 1 is not as expected (no 'round')"),
        ("log.jsonl", "[1]\n", "not as expected"),
        ("recipe.yaml", "a: [1\n", "is damaged"),
        ("recipe.yaml", "- 1\n", "must hold a mapping, got list"),
        ("summary.json", "{", "is damaged"),
        ("summary.json", '{"start": 3}', "not as expected"),
        ("provenance.json", "[]", "must hold a mapping"),
    ],
)
def test_damaged_files_are_refused(tmp_path, name, content, words):
    run = make_run(tmp_path, "a3gt")
    (run / name).write_text(content, encoding="utf-8")
    message = refused(run, out=tmp_path / "report.html")
    assert words in message
    assert name in message
    assert re.search("repair|restore", message)


def test_out_must_be_a_file_that_can_be_written(tmp_path):
    run = make_run(tmp_path, "a3gt")
    assert "is a folder" in refused(run, out=tmp_path)
    assert "cannot write" in refused(run, out=run / "recipe.yaml" / "report.html")


# --- images ----------------------------------------------------------------------------------


def pixels_of(uri):
    """Decode the PNG in a data URI."""
    image = np.asarray(Image.open(BytesIO(base64.b64decode(uri.partition("base64,")[2]))))
    return image if image.ndim == 3 else image[..., None]


def gallery_of(tmp_path, threat=("linf", 0.15), **options):
    run = make_run(tmp_path, "a3gt", eps=())
    images(run / "evaluations" / "linf-0.15.safetensors", **options)
    return gallery(read_run(run), threat)


def groups_in(section):
    """Return the cards of every group of a gallery by its title, folded ones included."""
    found = {}
    for block in section.blocks:
        if isinstance(block, Section) and block.folded:
            found |= groups_in(block)
        elif isinstance(block, Section):
            cards = [card for part in block.blocks if isinstance(part, tuple) for card in part]
            found[block.title] = (block.small, cards)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("kind", [np.float32, np.uint8])
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32), (1, 28, 20), (3, 224, 224)])
def test_images_of_any_kind(tmp_path, kind, shape):
    found = gallery_of(tmp_path, kind=kind, shape=shape, n=40)
    large = shape[1] > 96
    groups = groups_in(found)
    few = [len(groups[name][1]) for name in ("Fooled", "Robust")]
    assert few == ([4, 2] if large else [8, 4])
    first = groups["Fooled"][1][0]
    assert first.pixelated is not large
    for shot in first.shots:
        assert pixels_of(shot.uri).shape[:2] == shape[1:]


def test_float_and_uint8_show_the_same_image(tmp_path):
    one = gallery_of(tmp_path / "one", kind=np.float32)
    two = gallery_of(tmp_path / "two", kind=np.uint8)
    first, second = (groups_in(found)["Fooled"][1][0].shots[0] for found in (one, two))
    assert first.uri == second.uri


def test_perturbation_is_scaled_to_eps(tmp_path):
    found = gallery_of(tmp_path)
    noise = groups_in(found)["Fooled"][1][0].shots[1]
    assert float(noise.label.rpartition(" ")[2]) == pytest.approx(0.5 / 0.15, abs=0.05)
    shown = pixels_of(noise.uri).reshape(-1, 3)
    # Where the image leaves room on both sides every pixel changed by eps: two pure colours.
    assert {(200, 70, 0), (0, 92, 160)} <= {tuple(map(int, c)) for c in shown}


def test_images_are_taken_class_by_class_and_told_rightly(tmp_path):
    found = gallery_of(tmp_path)
    (number, fooled), (_, robust) = (groups_in(found)[name] for name in ("Fooled", "Robust"))
    fallen = sum(i % 11 != 0 and i % 3 != 0 for i in range(60))
    assert number == f"{fallen} of 60, 8 shown"
    assert len({card.truth for card in fooled}) == 8
    for card in (*fooled, *robust):
        clean, _, adversarial = card.shots
        assert clean.read == card.truth
        assert not clean.wrong
        assert adversarial.wrong is (card in fooled) is (adversarial.read != card.truth)


def test_another_budget_is_shown_where_the_wanted_one_is_not_stored(tmp_path):
    found = gallery_of(tmp_path, threat=("linf", 0.3))
    assert found.small.replace("\u00a0", " ") == "L∞, eps = 0.15"


def test_unreadable_images_are_said_not_fatal(tmp_path):
    run = make_run(tmp_path, "a3gt", eps=(0.1,))
    (run / "evaluations" / "linf-0.15.safetensors").write_bytes(b"nothing of the kind")
    text = text_of(page(run, out=tmp_path / "report.html"))
    assert "evaluations/linf-0.15.safetensors is damaged" in text
    assert "its numbers are left out" in text


# --- imports, browser ------------------------------------------------------------------------


def test_torch_is_not_imported():
    code = "import sys, equipoise.report; print({'torch', 'matplotlib.pyplot'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == "set()\n"


def test_figures_do_not_touch_global_settings(pair):
    import matplotlib

    before = dict(matplotlib.rcParams)
    runs = read_runs(pair)
    figure = overview(runs, headline_rows(runs), "fig")
    assert all("<svg" in inline(panel) for panel in figure.panels)
    assert dict(matplotlib.rcParams) == before


def test_without_a_browser_the_test_says_what_to_install(monkeypatch):
    monkeypatch.setattr("shutil.which", lambda *_, **__: None)
    monkeypatch.delenv("EQUIPOISE_REQUIRE_BROWSER", raising=False)
    with pytest.raises(pytest.skip.Exception, match="apt-get install chromium chromium-driver"):
        browser().__enter__()
    monkeypatch.setenv("EQUIPOISE_REQUIRE_BROWSER", "1")
    with pytest.raises(pytest.fail.Exception, match="apt-get install chromium chromium-driver"):
        browser().__enter__()


def test_markdown_tables(tmp_path, pair):
    text = build(pair, tmp_path / "tables.md").read_text(encoding="utf-8")
    assert "### L∞, eps = 0.15" in text
    row = next(line for line in text.split("0.15\n")[-1].splitlines() if line.startswith("| a3gt"))
    assert row.startswith("| a3gt | **81.2 %** 77.4–84.6 | 97.8 % 96.0–98.9 |")
    assert row.count("|") == text.split("0.15\n")[-1].splitlines()[1].count("|")
    assert "<html" not in text


@pytest.mark.browser
def test_in_a_browser(pair, tmp_path):
    long = make_run(
        tmp_path, "a-run-with-a-very-long-name-" * 3, method="pgd-at", worst=0.7, n=500
    )
    out = build([*pair, long], tmp_path / "report.html")
    with browser() as view:
        for width in (380, 1400):
            for dark in (False, True):
                view.show(out, width=width, dark=dark)
                assert view.console() == []
                asked = [url for url in view.requests() if not url.startswith("data:")]
                assert asked == [out.resolve().as_uri()]
                assert view.ask("document.documentElement.scrollWidth") <= width
                column = "document.querySelector('#results thead th:nth-child(2)')"
                assert view.ask(f"{column}.textContent").startswith("worst-case")
                assert view.ask(f"{column}.getBoundingClientRect().right") <= width
                figures = "[...document.querySelectorAll('.figure')]"
                boxes = view.ask(f"{figures}.map(f => [f.offsetWidth, f.offsetHeight])")
                assert len(boxes) == 5
                assert all(w > 200 and h > 100 for w, h in boxes)
                broken = "[...document.images].filter(i => !i.complete || !i.naturalWidth).length"
                assert view.ask(broken) == 0
                if shots := os.environ.get("EQUIPOISE_SCREENSHOTS"):
                    theme = "dark" if dark else "light"
                    view.screenshot(Path(shots) / f"report-{width}-{theme}.png")
        first = "document.querySelector('#results tbody th').firstChild.textContent"
        before = view.ask(first)
        view.ask("document.querySelectorAll('#results thead button')[2].click()")
        assert view.ask("document.querySelector('#results [aria-sort]').ariaSort") == "descending"
        assert (before, view.ask(first)) == ("a3gt", "standard")
