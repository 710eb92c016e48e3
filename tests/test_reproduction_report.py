"""The report of a reproduction: findings in; tables, pictures, verdicts and one page out."""

import copy
import csv
import itertools
import json
import os
import re
import subprocess
import sys
from math import comb
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

import findings as synthetic
from browser import browser
from equipoise.errors import UserError
from equipoise.measures.cmmr import pack_credits
from equipoise.measures.statistics import hypervolume, interval
from equipoise.paper import ablation, claims, fronts, measures, scores, settings
from equipoise.paper import page as reproduction
from equipoise.paper.claims import EXPERIMENTS
from equipoise.paper.measures import Accuracies, accuracies, best_marks, group, paired, relation
from equipoise.paper.prose import facts
from equipoise.paper.results import read
from equipoise.report import palette, pictures
from equipoise.sample import Sample

TABLE = "table2-fashion-mnist"


def put_all(folder, contents):
    for content in contents.values():
        synthetic.put(folder, content)
    return folder


@pytest.fixture(scope="module")
def given():
    return synthetic.everything()


@pytest.fixture(scope="module")
def whole(given, tmp_path_factory):
    folder = put_all(tmp_path_factory.mktemp("reproduction"), given)
    assert reproduction.build(folder) == folder / "index.html"
    return folder


def text(path):
    return path.read_text(encoding="utf-8")


def records(path):
    return list(csv.DictReader(text(path).splitlines()))


def rows_of(content, entry, seed=None, **more):
    wanted = {"entry": entry, "weights": "model", **more}
    found = [r for r in content["rows"] if all(r[k] == v for k, v in wanted.items())]
    return [r for r in found if seed is None or r["seed"] == seed]


def flags(row, attack):
    packed = np.frombuffer(bytes.fromhex(row["verdicts"][attack]), np.uint8)
    return np.unpackbits(packed)[: row["n"]].astype(bool)


def exact(first, second):
    """McNemar's two-sided p, by the sum over all splits at least as uneven."""
    n = first + second
    far = [k for k in range(n + 1) if abs(2 * k - n) >= abs(first - second)]
    return sum(comb(n, k) for k in far) / 2**n


# --- files -----------------------------------------------------------------------------------


def test_every_file_is_there_and_every_link_leads_to_one(whole):
    for name in EXPERIMENTS:
        assert (whole / name / f"{name}.md").is_file()
    for picture in (
        "fig2/fig2",
        "fig3/fig3",
        "fig4/fig4",
        "fig5/fig5",
        "controls/controls",
        "front/front",
        "settings/settings-fronts",
    ):
        drawn = ElementTree.fromstring(text(whole / f"{picture}.svg"))  # noqa: S314
        assert drawn.tag.endswith("svg")
        assert (whole / f"{picture}.png").read_bytes().startswith(b"\x89PNG")
    links = re.findall(r"\]\(([^)#][^)]*)\)", text(whole / "results.md"))
    assert len(links) > 20
    assert [link for link in links if not (whole / link).is_file()] == []
    anchors = re.findall(r'href="([^"#:]+)"', text(whole / "index.html"))
    assert len(anchors) > 40
    assert [a for a in anchors if not (whole / a).is_file()] == []


@pytest.mark.long
def test_equal_findings_give_equal_bytes(whole, given, tmp_path):
    again = put_all(tmp_path, given)
    reproduction.build(again)
    files = sorted(p.relative_to(whole) for p in whole.rglob("*") if p.is_file())
    assert files == sorted(p.relative_to(again) for p in again.rglob("*") if p.is_file())
    assert [f for f in files if (whole / f).read_bytes() != (again / f).read_bytes()] == []


def test_names_of_attacks_may_have_spaces(tmp_path):
    content = json.dumps(synthetic.everything()["table2"])
    named = json.loads(content.replace(synthetic.ATTACKS[0], "pgd(steps=20, restarts=2)"))
    reproduction.build(synthetic.put(tmp_path, named))
    heads = records(tmp_path / "table2" / f"{TABLE}.csv")[0].keys()
    assert "pgd(steps=20, restarts=2)_lowest" in heads


def test_without_pandas_the_package_is_named_in_one_line():
    code = "import sys; sys.modules['pandas'] = None; from equipoise import cli; cli.main()"
    words = (sys.executable, "-c", code, "reproduce", "fig3", "--plan")
    done = subprocess.run(words, check=False, capture_output=True, text=True)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "pip install 'equipoise[paper]'" in line


def test_torch_is_not_imported():
    code = "import sys, equipoise.paper; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == "False\n"


def test_pictures_on_white_have_the_colours_of_the_light_theme(whole):
    css = text(Path(palette.__file__).with_name("page.css"))
    light = dict(re.findall(r"(--[\w-]+): (#\w+);", css.split("@media")[0]))
    file = palette.FILE
    assert [light[f"--series-{i}"] for i in range(6)] == list(file.series)
    own = (file.ink, file.muted, file.faint)
    assert (light["--ink"], light["--muted"], light["--rule"]) == own
    drawn = text(whole / "fig3/fig3.svg")
    assert "#f1" not in drawn
    assert "#ffffff" in drawn
    inline = text(whole / "index.html")
    assert "#f1a0" not in inline
    assert "#f1b0" not in inline


# --- tables ----------------------------------------------------------------------------------


def test_numbers_of_table_2_are_those_of_the_findings(whole, given):
    content = given["table2"]
    found = {row["entry"]: row for row in records(whole / f"table2/{TABLE}.csv")}
    assert list(found) == list(synthetic.ENTRIES)
    for entry, row in found.items():
        mine = rows_of(content, entry)
        for attack in ("clean", "pgd-20", "autoattack"):
            shares = [r["correct"][attack] / 500 for r in mine]
            mean = sum(shares) / 3
            assert float(row[attack]) == pytest.approx(mean)
            assert float(row[f"{attack}_lowest"]) == min(shares)
            assert float(row[f"{attack}_highest"]) == max(shares)
            low, high = interval(round(mean * 500), 500)
            assert float(row[f"{attack}_low95"]) == pytest.approx(low)
            assert float(row[f"{attack}_high95"]) == pytest.approx(high)
        assert (row["n"], row["seeds"]) == ("500", "0 1 2")


def test_markdown_and_latex_have_the_same_numbers(whole, given):
    shares = [r["correct"]["autoattack"] / 500 for r in rows_of(given["table2"], "a3gt")]
    mean, low, high = (f"{100 * v:.1f}" for v in (sum(shares) / 3, min(shares), max(shares)))
    markdown = next(x for x in text(whole / "table2/table2.md").splitlines() if "| a3gt |" in x)
    assert f"*{mean}* ({low}..{high}) " in markdown
    latex = text(whole / f"table2/{TABLE}.tex")
    line = next(x for x in latex.splitlines() if x.startswith("a3gt &"))
    assert f"\\textit{{{mean}}} {{\\scriptsize ({low}..{high}) [" in line
    assert latex.count("\\toprule") == latex.count("\\bottomrule") == 1
    head = next(x for x in latex.splitlines() if x.startswith("entry &"))
    assert head.count(" & ") == line.count(" & ") == 15


def test_pairs_are_counted_image_by_image(whole, given):
    content = given["table2"]
    found = records(whole / f"table2/{TABLE}-pairs.csv")
    rivals = ("generalist", "pgd-at-averaged", "mix-at-25", "mix-at-50")
    assert len(found) == len(rivals) * 2 * 3
    for row in found:
        seed, attack = int(row["seed"]), row["attack"]
        (ours,) = rows_of(content, "a3gt", seed)
        (other,) = rows_of(content, row["against"], seed)
        a, b = flags(ours, attack), flags(other, attack)
        counts = int((a & ~b).sum()), int((b & ~a).sum())
        assert (int(row["only_a3gt"]), int(row["only_other"])) == counts
        assert float(row["p"]) == pytest.approx(exact(*counts))
        assert float(row["difference"]) == pytest.approx(a.mean() - b.mean())


def test_areas_are_of_the_seeds_that_a_family_shares(whole, given):
    content = given["table2"]
    row = next(r for r in records(whole / f"table2/{TABLE}-area.csv") if r["family"] == "mixed AT")
    members = row["entries"].split()
    assert set(members) == {"standard", "pgd-at-averaged", "mix-at-25", "mix-at-50"}
    areas = []
    for seed in (0, 1, 2):
        mine = [rows_of(content, m, seed)[0]["correct"] for m in members]
        points = [(c["clean"] / 500, c["autoattack"] / 500) for c in mine]
        areas.append(hypervolume(points, (0.1, 0.0)))
    assert float(row["area"]) == pytest.approx(sum(areas) / 3)
    assert float(row["area_lowest"]) == pytest.approx(min(areas))


def test_the_papers_numbers_have_a_difference_only_on_their_own_ground(whole):
    other = records(whole / f"table2/{TABLE}-paper.csv")
    assert {r["entry"] for r in other} == {"standard", "fat", "iat"}
    assert all(r["difference"] == "" for r in other)
    same = records(whole / "table3/table3-mnist-8-255-paper.csv")
    assert [(r["attack"], r["paper"]) for r in same] == [
        ("clean", "0.992"),
        ("mi-fgsm-20", "0.963"),
        ("pgd-20", "0.9613"),
    ]
    assert all(
        float(r["difference"]) == pytest.approx(float(r["here"]) - float(r["paper"])) for r in same
    )
    wide = records(whole / "table3/table3-mnist-0.3-paper.csv")
    assert all(r["difference"] == "" for r in wide)


def test_one_run_is_compared_with_many_by_the_area_of_each_seed(whole, given):
    found = records(whole / "front/front-area.csv")
    members = {"one run": ["a3gt-front"], "TRADES": ["trades-1", "trades-6"]}
    members["mixed AT"] = [f"mix-at-{w}" for w in synthetic.WEIGHTS]
    for family, entries in members.items():
        mine = [r for r in given["front"]["rows"] if r["entry"] in entries]
        for seed in (0, 1, 2):
            of_seed = [r for r in mine if r["seed"] == seed]
            counts = [r["correct"] for r in of_seed]
            points = [(c["clean"] / 500, c["autoattack"] / 500) for c in counts]
            (row,) = (r for r in found if (r["family"], r["seed"]) == (family, str(seed)))
            assert float(row["area"]) == pytest.approx(hypervolume(points, (0.1, 0.0)))
            assert (int(row["trainings"]), int(row["models"])) == (len(entries), len(of_seed))
            spent = {r["entry"]: r["gradient_evaluations"] for r in of_seed}
            assert float(row["gradient_evaluations"]) == sum(spent.values())


def of_front(content, tmp_path):
    here = read(synthetic.put(tmp_path, content) / "front/results.json")
    found = fronts.families(here.of(here.panels[0]))
    return fronts.differences(found[fronts.ONE_RUN], found[fronts.RIVAL], 10)


@pytest.mark.slow
def test_the_interval_of_a_difference_of_areas_is_that_of_resampled_images(given, tmp_path):
    gaps = of_front(given["front"], tmp_path)
    assert list(gaps["seed"]) == [0, 1, 2]
    content, rng = given["front"]["rows"], np.random.default_rng(5)
    for gap in gaps.itertuples():
        mine = [r for r in content if r["seed"] == gap.seed]
        drawn = []
        for _ in range(400):
            images = rng.integers(500, size=500)
            areas = []
            for start in ("a3gt-front", "mix-at"):
                rows = [r for r in mine if r["entry"].startswith(start)]
                both = [
                    [flags(r, a)[images].mean() for a in ("clean", "autoattack")] for r in rows
                ]
                areas.append(hypervolume([tuple(map(float, p)) for p in both], (0.1, 0.0)))
            drawn.append(areas[0] - areas[1])
        assert (gap.low, gap.high) == pytest.approx(np.quantile(drawn, (0.025, 0.975)), abs=0.004)
        assert gap.low < gap.difference < gap.high


@pytest.mark.parametrize(
    ("share", "robust"), [(3_000_000, 500), (4_000_000, 500), (3_000_000, 300)]
)
def test_one_run_is_compared_with_many_by_area_and_cost(given, tmp_path, share, robust):
    content = copy.deepcopy(given["front"])
    for row in content["rows"]:
        if row["entry"] == "a3gt-front":
            row["gradient_evaluations"] = share
            synthetic.change(row, "autoattack", min(robust, row["correct"]["clean"]))
    gaps = of_front(content, tmp_path)
    assert list(gaps["share"]) == [share / (5 * 2062080)] * 3
    assert all((gap >= 0) == (robust == 500) for gap in gaps["difference"])


def test_models_of_a_family_with_one_setting_alone_are_refused(given, tmp_path):
    content = copy.deepcopy(given["front"])
    for row in content["rows"]:
        if row["entry"].startswith("trades"):
            row["settings"] = {"beta": 6}
    with pytest.raises(UserError, match="no beta of trades-1, seed 0; make them again"):
        reproduction.build(synthetic.put(tmp_path, content))


def test_a_seed_that_lacks_a_model_is_not_compared(given, tmp_path):
    content = copy.deepcopy(given["front"])
    content["rows"] = [r for r in content["rows"] if (r["entry"], r["seed"]) != ("mix-at-30", 1)]
    assert list(of_front(content, tmp_path)["seed"]) == [0, 2]
    reproduction.build(tmp_path)
    found = records(tmp_path / "front/front-area.csv")
    assert [r["seed"] for r in found if r["family"] == "mixed AT"] == ["0", "2"]


def robust_at(points, clean):
    """The most robust of all models that are clean enough, mixes of two neighbours included."""
    best = 0.0
    for (c0, r0), (c1, r1) in itertools.pairwise(sorted(points)):
        for share in np.linspace(0, 1, 501):
            if c0 + share * (c1 - c0) >= clean - 1e-9:
                best = max(best, r0 + share * (r1 - r0))
    return best


def test_a_setting_is_compared_with_the_default_at_equal_clean_accuracy(whole, given):
    rows = [r for r in given["settings"]["rows"] if r["panel"] == "settings-mnist"]

    def points(entry, seed):
        mine = [r for r in rows if (r["entry"], r["seed"]) == (entry, seed)]
        return [(r["correct"]["clean"] / 500, r["correct"]["worst-case"] / 500) for r in mine]

    found = records(whole / "settings/settings-mnist.csv")
    assert len(found) == 6
    for row in found:
        entry, seed = row["setting"], int(row["seed"])
        mine, default = points(entry, seed), points("a3gt-front", seed)
        assert float(row["area"]) == pytest.approx(hypervolume(mine, (0.1, 0.0)))
        most_clean, most_robust = max(mine), max(mine, key=lambda point: point[1])
        assert (float(row["clean_end_clean"]), float(row["robust_end_robust"])) == pytest.approx(
            (most_clean[0], most_robust[1])
        )
        if entry == "a3gt-front":
            assert row["gain"] == ""
            continue
        ends = [max(some, key=lambda point: point[1])[0] for some in (mine, default)]
        levels = np.linspace(min(ends), min(max(mine)[0], max(default)[0]), 200)
        more = [robust_at(mine, c) - robust_at(default, c) for c in levels]
        assert float(row["gain"]) == pytest.approx(np.mean(more), abs=0.002)
    worst = records(whole / "settings/settings-regret.csv")
    assert [(r["panel"], r["seed"]) for r in worst] == [
        (f"settings-{data}", seed) for data in ("fashion-mnist", "mnist") for seed in "01"
    ]
    for row in worst:
        rivals = [r for r in found if r["seed"] == row["seed"] and r["gain"]]
        best = max(rivals, key=lambda r: float(r["gain"]))
        assert (row["best_other"], row["gain"]) == (best["setting"], best["gain"])
        assert float(row["gain_low"]) < float(row["gain"]) < float(row["gain_high"])


def test_the_choice_of_the_other_seeds_is_not_made_by_what_it_is_measured_on(whole):
    gains = {
        (r["panel"], r["seed"], r["setting"]): float(r["gain"] or 0)
        for data in ("fashion-mnist", "mnist")
        for r in records(whole / f"settings/settings-{data}.csv")
        for r["panel"] in [f"settings-{data}"]
    }
    rows = records(whole / "settings/settings-regret.csv")
    for row in rows:
        other = {"0": "1", "1": "0"}[row["seed"]]
        there = {
            e: v for (panel, seed, e), v in gains.items() if (panel, seed) == (row["panel"], other)
        }
        best = max(there.values())
        assert there[row["others_choice"]] == best
        here = gains[row["panel"], row["seed"], row["others_choice"]]
        assert float(row["others_choice_gain"]) == here <= max(float(row["gain"]), 0)
    assert len({row["others_choice"] for row in rows}) > 1


def test_the_choice_of_others_is_a_mean_over_them_and_may_lose():
    def chosen(**by_seed):
        rows = [(s, entry, gain) for s, some in by_seed.items() for entry, gain in some.items()]
        return settings.chosen_by_others(pd.DataFrame(rows, columns=["seed", "entry", "gain"]))

    found = chosen(p={"a": 0.04, "b": -0.01}, q={"a": -0.02, "b": 0.02}, r={"a": 0.01, "b": -0.03})
    assert found == {"p": ("a3gt-front", 0.0), "q": ("a", -0.02), "r": ("a", 0.01)}
    assert chosen(p={"a": 0.04}) == {}
    assert chosen(p={"a": 0.04, "c": 0.5}, q={"a": 0.01})["q"] == ("a", 0.01)


def test_the_order_of_the_scores_is_compared_for_every_pair_and_weight(whole, given):
    mine = [row for row in given["fig3"]["rows"] if row["eps"] == 0.16]
    points = [
        (row["cmmr"]["accuracy"], row["cmmr"]["success"] * row["cmmr"]["distortion"])
        for row in mine
    ]
    assert len(points) == 7
    found = scores.entry_scores(read(whole / "fig3/results.json").table)
    at_eps = scores.at(found, 0.16)
    for weight in (0.0, 0.5, 1.0):
        expected = [a + weight * b for a, b in points]
        assert [scores.weighted(p, weight) for p in at_eps.values()] == pytest.approx(expected)
    turned = {"a": (0.5, 0.1), "b": (0.4, 0.9), "c": (0.3, 0.0)}
    parts = {
        e: {"accuracy": a, "score": a + 0.25 * d, "distortion": d} for e, (a, d) in turned.items()
    }
    assert (
        scores.reordered(parts, lambda p: p["accuracy"]) == 1
    )  # b is ahead of a by its distortion
    assert scores.reordered(parts, scores.co_equal) == 0
    assert scores.co_equal({"accuracy": 1.0, "score": 1.0}) == 1
    text_of = text(whole / "fig3/fig3.md")
    assert "at eps 0.16, of 21: " in text_of
    assert (whole / "fig3/fig3-weights.svg").is_file()


def credited(seed, entry, each, eps=0.1):
    """A row with verdicts that the credits follow from: 1 where an image is robust."""
    more = {"weights": "model", "attack": "worst-case", "sample": "", "n": len(each)}
    flags = {"flags": each == 1, "accuracy": float((each == 1).mean())}
    return {"seed": seed, "entry": entry, "eps": eps, **more, **flags, "cmmr_credits": each}


def test_the_noise_of_credits_that_are_0_or_1_is_that_of_accuracies():
    draw = np.random.default_rng(0)
    models = [credited(0, entry, draw.integers(0, 2, 80).astype(float)) for entry in "ab"]
    rows = pd.DataFrame(models, dtype=object)
    rows = pd.concat([rows.assign(attack="pgd-20"), rows])
    by_accuracy = scores.noise(rows.drop(columns="cmmr_credits"), "a", "b")
    assert scores.noise(rows, "a", "b") == pytest.approx(by_accuracy)
    assert by_accuracy.keys() == {0.1}


@pytest.mark.parametrize("seeds", [1, 3])
def test_the_interval_of_a_score_difference_covers_the_difference_on_all_images(seeds):
    """Models are fixed, images are drawn: 1.96 errors cover it in 95 of 100 draws."""
    draw = np.random.default_rng(seeds)
    images, n, draws = 200_000, 250, 800
    hard = draw.random(images)  # shared by all models, so that their credits go together
    pools = {}
    for entry, shift in (("a", 0.0), ("b", 0.06)):
        for seed in range(seeds):
            level = hard + shift + 0.15 * draw.standard_normal(images)
            took = 0.5 * draw.beta(5, 4, images)
            pools[entry, seed] = np.select([level < 0.6, level < 0.85], [1.0, took], 0.0)
    gaps = [pools["a", seed].mean() - pools["b", seed].mean() for seed in range(seeds)]
    covered = 0
    rows = pd.DataFrame([credited(s, entry, pool[:n]) for (entry, s), pool in pools.items()])
    for _ in range(draws):
        drawn = draw.integers(0, images, n)
        rows["cmmr_credits"] = [pool[drawn] for pool in pools.values()]
        a, b = (rows[rows["entry"] == entry] for entry in "ab")
        width = measures.score_half_width(a, b, "cmmr_credits")
        found = np.mean([*a["cmmr_credits"]]) - np.mean([*b["cmmr_credits"]])
        covered += abs(found - np.mean(gaps)) <= width
    assert 0.93 <= covered / draws <= 0.97


def over_attacks(row, draw):
    """The fields of a result with credits and a score over attacks that agree with its score."""
    right = np.unpackbits(np.frombuffer(bytes.fromhex(row["bits"]), np.uint8))[: row["n"]] * 1.0
    of_each = np.where(right == 1, 1.0, 0.4 * draw.random(row["n"]))
    content = {**row["cmmr"], "score": float(of_each.mean())}
    attacks = {
        name: {**content, "score": content["score"] + more}
        for name, more in (("pgd-20", 0.01), ("mi-fgsm-20", 0.02), ("autoattack", -0.03))
    }
    ends = [parts["score"] for parts in attacks.values()]
    over = {"version": "cmmr-2", "score": content["score"], "accuracy": content["accuracy"]}
    over |= {"lowest": min(ends), "highest": max(ends), "attacks": attacks}
    packed = pack_credits(of_each)
    return {"cmmr": content, "cmmr2": over, "credits": packed, "credits2": packed}


@pytest.mark.long
def test_figures_3_and_4_show_both_scores_where_both_are_stored(given, tmp_path):
    draw = np.random.default_rng(0)
    for name in ("fig3", "fig4"):
        content = synthetic.converted(given[name])
        for row in content["results"]:
            if row["attack"] == "worst-case":
                row |= over_attacks(row, draw)
        place = tmp_path / name
        place.mkdir()
        (place / "results.json").write_text(json.dumps(content), encoding="utf-8")
    reproduction.build(tmp_path)
    page = text(tmp_path / "fig3/fig3.md")
    assert "from the credits of the images" in page
    assert "credits of the images are not stored" not in page
    mean = np.mean([r["cmmr2"]["score"] for r in content["results"] if r.get("cmmr2")])
    assert 0 < mean < 1
    for name in ("fig3", "fig4"):
        assert (tmp_path / f"{name}/{name}-cmmr-2.svg").is_file()
        found = records(tmp_path / f"{name}/{name}-cmmr-2-scores.csv")
        assert [r["attack"] for r in found[:4]] == ["mean", "pgd-20", "mi-fgsm-20", "autoattack"]
        assert len(found) == 4 * 7 * 17
    row = next(r for r in content["results"] if r["eps"] == 0.16 and r.get("cmmr2"))
    spread = f"{row['cmmr2']['lowest']:.3f} to {row['cmmr2']['highest']:.3f}"
    assert f"{row['cmmr2']['score']:.3f} {spread}" in text(tmp_path / "fig4/fig4.md")
    row["credits"] = row["credits"][4:] + "0000"
    place = tmp_path / "fig4/results.json"
    place.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(UserError, match="the credits are not those of the score cmmr"):
        read(place)


def test_without_credits_the_noise_is_that_of_accuracies_and_the_page_says_so(whole):
    page = text(whole / "fig3/fig3.md")
    assert "since the credits of the images are not stored" in page
    assert "CMMR (cmmr-2)" not in page
    assert not (whole / "fig3/fig3-cmmr-2.svg").exists()


# --- partial findings ------------------------------------------------------------------------


def test_nothing_found_yet_is_a_page_all_the_same(given, tmp_path):
    empty = {n: {**c, "rows": [], "missing": ["all of it"]} for n, c in given.items()}
    out = put_all(tmp_path, empty)
    assert reproduction.build(out).stat().st_size > 5000
    verdicts = {row["verdict"] for row in records(out / "table3/table3-claims.csv")}
    assert verdicts == {claims.UNMEASURED, claims.ELSEWHERE}


def test_what_is_missing_is_named_and_the_rest_is_shown(given, tmp_path):
    content = copy.deepcopy(given["table2"])
    line = "fashion-mnist/mart-seed2: training to do, evaluation to do"
    content["missing"] = [line]
    kept = []
    for row in content["rows"]:
        if row["entry"] == "generalist" or (row["entry"] == "mart" and row["seed"] == 2):
            continue
        if row["entry"] == "fat":
            row["verdicts"] = {k: v for k, v in row["verdicts"].items() if k != "fab-t"}
        kept.append(row)
    content["rows"] = kept
    page = text(reproduction.build(synthetic.put(tmp_path, content)))
    assert line in page
    assert "0, 1 (1 missing)" in page
    assert "– (3 missing)" in page
    found = {row["entry"]: row for row in records(tmp_path / f"table2/{TABLE}.csv")}
    assert found["generalist"]["clean"] == "" == found["fat"]["fab-t"]
    assert found["mart"]["seeds"] == "0 1"
    (row,) = (r for r in records(tmp_path / "table2/table2-claims.csv") if r["claim"] == "fab-t")
    assert (row["stands"], row["difference"]) == ("unknown", "")


@pytest.mark.slow
@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_part_of_the_rows_makes_a_page(given, experiment, tmp_path):
    for i, share in enumerate((1, 2, 5, 9)):
        content = given[experiment]
        some = content["rows"][:: max(1, len(content["rows"]) // share)]
        out = synthetic.put(tmp_path / str(i), {**content, "rows": some})
        assert reproduction.build(out).stat().st_size > 5000


def test_one_seed_has_no_range_but_an_interval(given, tmp_path):
    content = copy.deepcopy(given["table2"])
    content["rows"] = [r for r in content["rows"] if r["seed"] == 0]
    reproduction.build(synthetic.put(tmp_path, content))
    lines = text(tmp_path / "table2/table2.md").splitlines()
    line = next(x for x in lines if x.startswith("| iat"))
    assert ".." not in line
    assert "\\[" in line


# --- damage ----------------------------------------------------------------------------------


def first(content, **more):
    content["results"][0].update(more)


DAMAGES = {
    "format": (lambda c: c.update(format=1), r"expected format 2, got 1; make it again"),
    "place": (lambda c: c.update(experiment="fig9"), r"expected the experiment table2, got"),
    "panels": (lambda c: c.pop("panels"), r"panels: Field required"),
    "count": (lambda c: first(c, correct=7), r"7 correct, but bits of"),
    "bits": (lambda c: first(c, bits="ff"), r"not of 500 images"),
    "hex": (lambda c: first(c, bits="zz"), r"non-hexadecimal"),
    "stranger": (lambda c: first(c, panel="cifar10"), r"no training, of"),
    "panel": (lambda c: c["trainings"][0].update(panel="x"), r"panel 'x'"),
    "training": (lambda c: c["trainings"].pop(), r"no training, of"),
    "twice": (lambda c: c["results"].append(c["results"][0]), r"same model"),
    "n": (lambda c: first(c, n=0), r"results.0.n: .*, got 0"),
    "results": (lambda c: c.update(results="all"), r"results: .*, got 'all'"),
    "eps": (lambda c: first(c, eps=None), r"results.0.eps: .*, got None"),
    "split": (lambda c: c["panels"][0].update(split="train"), r"split: .*, got 'train'"),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_damaged_findings_are_named_in_one_line(given, tmp_path, kind):
    change, message = DAMAGES[kind]
    place = tmp_path / "table2" / "results.json"
    place.parent.mkdir()
    content = synthetic.converted(given["table2"])
    change(content)
    place.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(UserError, match=message) as caught:
        reproduction.build(tmp_path)
    assert "\n" not in str(caught.value)
    assert str(place) in str(caught.value)
    assert [p.name for p in tmp_path.rglob("*") if p.is_file()] == ["results.json"]


def test_a_file_cut_short_and_a_folder_without_findings(tmp_path):
    with pytest.raises(UserError, match="equipoise reproduce"):
        reproduction.build(tmp_path)
    (tmp_path / "fig2").mkdir()
    (tmp_path / "fig2" / "results.json").write_text('{"format": 2, "exper', encoding="utf-8")
    with pytest.raises(UserError, match="is damaged"):
        reproduction.build(tmp_path)


def test_what_findings_hold_is_escaped(given, tmp_path):
    content = copy.deepcopy(given["table2"])
    content["panels"][0]["title"] = "<script>alert(1)</script> | _x_ & 100 %"
    content["missing"] = ["<img src=x>"]
    page = text(reproduction.build(synthetic.put(tmp_path, content)))
    assert "<script>alert" not in page
    assert "<img src=x>" not in page
    assert "&lt;img src=x&gt;" in page


# --- measures --------------------------------------------------------------------------------


def test_a_mean_has_the_interval_of_one_seed():
    found = Accuracies((0.5, 0.7), 100)
    assert found.mean == pytest.approx(0.6)
    assert found.interval == interval(60, 100)


def test_close_to_the_best_is_what_is_not_significantly_behind_it(tmp_path):
    shares = {"a3gt": {"clean": 0.9}, "fat": {"clean": 0.898}, "iat": {"clean": 0.8}}
    entries = group(synthetic.constructed(tmp_path, "table2", shares).table, "entry")
    a3gt, fat, iat = (entries[name] for name in ("a3gt", "fat", "iat"))
    assert best_marks(entries, "clean") == {"a3gt": "best", "fat": "close"}
    assert relation(paired(a3gt, iat, "clean")) == "ahead"
    assert relation(paired(iat, a3gt, "clean")) == "behind"
    assert relation(paired(a3gt, fat, "pgd-20")) == "unknown"
    assert accuracies(a3gt, "pgd-20") is None


def test_results_on_other_images_are_not_paired(tmp_path):
    found = synthetic.constructed(
        tmp_path, "table2", {"a3gt": {"clean": 0.9}, "iat": {"clean": 0.8}}
    )
    entries = group(found.table, "entry")
    other = entries["iat"].assign(sample="of other images")
    assert len(paired(entries["a3gt"], entries["iat"], "clean"))
    assert paired(entries["a3gt"], other, "clean").empty
    assert len(paired(other, other, "clean"))


@pytest.mark.parametrize(
    ("sample", "stated"),
    [
        (None, "n = 2,000 test images, the first ones"),
        ((2000, 5000, 2), "a stratified sample of 2,000 of 5,000 test images, seed 2"),
        ((2000, 5000, None), "the first 2,000 of 5,000 test images"),
        ((60, 500, 2), "n = 2,000 test images, stratified samples"),
    ],
)
def test_the_images_of_a_panel_are_named(tmp_path, sample, stated):
    found = synthetic.constructed(tmp_path, "table2", {"a3gt": {"clean": 0.9}})
    if sample is not None:
        keys = dict(zip(("n", "of", "seed"), sample, strict=True))
        update = {"sample": Sample(sha256="", **keys)}
        panel = found.panels[0].model_copy(update=update)
        found = found.model_copy(update={"panels": (panel,)})
    panels = [(found.panels[0], [2000], [0, 1])]
    assert facts(results=found, panels=panels)["Images"].startswith(stated)


def test_merges_are_counted_by_the_recipe():
    settings = {"every": 5, "count": "since-start", "inclusive": True}
    others = ({}, {"count": "rounds"}, {"count": "rounds", "inclusive": False}, {})
    starts = (7, 7, 10, None)
    merges = [
        ablation.merges(settings | other, start, 20)
        for start, other in zip(starts, others, strict=True)
    ]
    assert merges == [[7, 12, 17], [10, 15, 20], [15, 20], []]
    assert ablation.merges({}, 7, 20) is None


def test_start_rules_are_grouped(whole):
    rows = records(whole / "controls/controls-rules.csv")
    assert [r["kind"] for r in rows] == ["stable"] + ["fixed"] * 4 + ["never"] + ["threshold"] * 6
    assert sum(r["kind"] == "threshold" and r["t_start"] == "" for r in rows) == 2


def test_settings_of_the_ablation_have_the_papers_schedule_first(whole, given, tmp_path):
    found = read(synthetic.put(tmp_path, given["fig5"]) / "fig5" / "results.json")
    grid = ablation.grid(found.table)
    assert next(iter(grid)) == ((1.0, 1.0, 1.0, 0.4), 1)
    assert len(grid) == 20
    rows = records(whole / "fig5/fig5-settings.csv")
    # t' = 25 with c = 20, and no multiple of 20 between it and round 30
    assert [r["c"] for r in rows if r["handovers"] == "0"] == ["20"] * 4


# --- the page --------------------------------------------------------------------------------


def test_the_page_asks_for_nothing_from_outside(whole):
    page = text(whole / "index.html")
    assert "default-src 'none'" in page
    assert re.findall(r"<(?:link|script|img)[^>]+(?:src|href)=\"(?!data:)[^\"]*", page) == []
    ids = re.findall(r'\sid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    for name in EXPERIMENTS:
        assert f'href="#{name}"' in page
        assert f'id="{name}"' in page


def test_the_claims_stand_on_top_as_a_table_without_a_count(whole):
    page, markdown = text(whole / "index.html"), text(whole / "results.md")
    head = "| claim | setting | what was found | verdict |"
    assert page.index('<section id="claims">') < page.index('<section id="table2">')
    assert markdown.index(head) < markdown.index("## Table 2")
    assert markdown.count(head) == 1
    assert "all but FAB-T are taken" in page.split('<section id="table2">')[0]
    assert text(whole / "table2/table2.md").count(head) == 1
    assert not re.search(r"(holds|does not hold|undecided)( here)?: \d", page + markdown)


@pytest.mark.browser
def test_in_a_browser(whole):
    out = whole / "index.html"
    with browser() as view:
        for width in (400, 1280):
            for dark in (False, True):
                view.show(out, width=width, dark=dark)
                assert view.console() == []
                asked = [url for url in view.requests() if not url.startswith("data:")]
                assert asked == [out.resolve().as_uri()]
                assert view.ask("document.documentElement.scrollWidth") <= width
                drawn = "[...document.querySelectorAll('.chart svg')].map(s => s.clientHeight)"
                assert len(view.ask(drawn)) == 12
                assert min(view.ask(drawn)) > 150
                if shots := os.environ.get("EQUIPOISE_SCREENSHOTS"):
                    theme = "dark" if dark else "light"
                    view.screenshot(Path(shots) / f"reproduction-{width}-{theme}.png")
        table = "document.querySelector('#table2 .sortable')"
        first = f"{table}.querySelector('tbody th').textContent"
        before = view.ask(first)
        view.ask(f"{table}.querySelectorAll('thead button')[3].focus()")
        view.ask("document.activeElement.click()")
        assert view.ask(f"{table}.querySelector('[aria-sort]').ariaSort") == "descending"
        assert (before, view.ask(first)) == ("standard", "mart")
        view.ask("document.activeElement.click()")
        assert view.ask(f"{table}.querySelector('[aria-sort]').ariaSort") == "ascending"
        assert view.ask(first) == "standard"


def test_names_stand_beside_their_points_and_on_no_line():
    lines = [
        [(0.245, 0.978), (0.449, 0.974), (0.592, 0.972), (0.691, 0.969), (0.746, 0.966)],
        [(0.055, 0.971), (0.442, 0.965), (0.606, 0.959), (0.643, 0.951), (0.633, 0.941)],
        [(0.577, 0.946), (0.621, 0.927), (0.581, 0.914), (0.517, 0.899), (0.422, 0.894)],
    ]
    canvas = pictures.blank(palette.FILE, 720, 400)
    axes = pictures.axes_at(canvas, palette.FILE, (58, 46, 500, 340))
    for line in lines:
        axes.plot(*zip(*line, strict=True))
    points = [point for line in lines for point in line]
    busy = [place for line in lines for place in pictures.along(line)]
    pictures.put_labels(axes, ["0.1", "0.3", "0.5", "0.7", "0.9"] * 3, points, ["k"] * 15, busy)
    drawn = FigureCanvasAgg(canvas)
    drawn.draw()
    boxes = [text.get_window_extent(drawn.get_renderer()) for text in axes.texts]
    assert len(boxes) == 15
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
    assert not any(b.contains(*dot) for b in boxes for dot in axes.transData.transform(busy))
