"""Reproducing: the plans, the runs they share, what is found; the smallest scale end to end."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from equipoise.data import draw, load
from equipoise.errors import UserError
from equipoise.plans.plan import parse
from equipoise.plans.prepare import Datasets, tasks
from equipoise.plans.reproductions import EXPERIMENTS, SCALES, plans
from equipoise.plans.results import Experiment
from equipoise.plans.task import merged
from forks import FORKED

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(2400),  # trainings in processes of their own, on any machine
]


def anew(*words, cwd):
    """Run a command in processes that start anew, as a user does."""
    run = (sys.executable, "-m", "equipoise", *map(str, words))
    return subprocess.run(run, cwd=cwd, capture_output=True, text=True, timeout=2200)


def of_scale(scale, names=("all",), **options):
    """Return the plans of some experiments in one list."""
    return [plan for some in plans(scale, names, **options).values() for plan in some]


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("slice_", [False, True])
def test_every_plan_is_one_of_valid_recipes(scale, slice_):
    assert {*plans(scale, ["all"], slice_=slice_)} == set(EXPERIMENTS)
    for plan in of_scale(scale, slice_=slice_):
        for entry in plan.entries:
            rounds = entry.rounds or 7
            recipe = entry.recipe(rounds=rounds, seed=plan.seeds[0])
            assert recipe.rounds == (2 if slice_ else rounds)


@pytest.mark.parametrize("scale", SCALES)
def test_entries_of_one_pool_are_one_recipe_in_every_experiment(scale):
    settings = {}
    for plan in of_scale(scale):
        for entry in plan.entries:
            key = plan.name, entry.name
            assert settings.setdefault(key, entry.settings) == entry.settings
            assert settings[key] is not None


def test_the_papers_methods_attacks_and_controls_are_there():
    *papers, table2 = of_scale("cpu", ["table2"])
    seeds = {entry.name: plan.seeds for plan in papers for entry in plan.entries}
    baselines = {"standard", "fat", "iat", "generalist", "a3gt", "a3gt-paper", "trades"}
    asked = baselines | {"pgd-at", "pgd-at-best", "pgd-at-averaged", "mix-at-25", "mix-at-50"}
    assert asked <= {*seeds}
    headline = ("pgd-at", "pgd-at-averaged", "mix-at-25", "mix-at-50", "generalist", "a3gt")
    assert {seeds[name] for name in headline} == {(0, 1, 2)}
    names = {entry.name for entry in table2.entries}
    assert asked - {"pgd-at-best"} | {"mart", "sat", "yopo"} <= names
    assert table2.seeds == (0, 1)
    ablation = [entry.settings for entry in of_scale("cpu", ["fig5"])[0].entries]
    assert {settings["every"] for settings in ablation} == {1, 3, 5, 10, 20}
    assert any(tuple(settings["gamma"]) == (1, 1, 1, 0.4) for settings in ablation)
    starts = [entry.settings for entry in of_scale("cpu", ["controls"])[0].entries]
    fractions = {s["start"].get("fraction") for s in starts if "start" in s}
    assert {0.25, 0.5, 0.625, 0.75} <= fractions
    grid = [s["start"] for s in starts if s["start"]["rule"] == "threshold"]
    assert len({(start["threshold"], start["patience"]) for start in grid}) == len(grid) == 9


@pytest.mark.parametrize(
    ("scale", "names", "expected"),
    [("tiny", ["table2"], "did you mean"), ("smoke", ["table4"], "did you mean 'table")],
)
def test_unknown_names_are_refused_with_the_nearest(scale, names, expected):
    with pytest.raises(UserError, match=expected if scale == "smoke" else "unknown scale"):
        plans(scale, names)


def test_only_some_entries():
    chosen = plans("cpu", ["all"], only=["a3gt", "mix-at-*"])
    assert [e.name for e in chosen["fig4"][0].entries] == ["a3gt"]
    assert [e.name for e in chosen["table2"][0].entries] == ["mix-at-25", "mix-at-50", "a3gt"]
    assert set(chosen) == set(EXPERIMENTS) - {"fig5", "controls", "settings"}
    with pytest.raises(UserError, match="did you mean 'a3gt'"):
        plans("cpu", ["table2"], only=["agt"])


def smoke(names, folder):
    """Return the tasks of some experiments at the smallest scale, plan by plan."""
    every = of_scale("smoke", names)
    return [(plan, tasks(plan, folder / plan.name, Datasets())) for plan in every]


def test_runs_are_shared_and_every_evaluation_stands_once(tmp_path):
    every = merged(task for _, some in smoke(["fig2", "fig3", "fig4"], tmp_path) for task in some)
    by_name = {task.name: task for task in every}
    assert len(every) == len(by_name) == 5
    radii = [each.protocol.eps for each in by_name["digits/trades-seed0"].evaluations]
    assert radii == [0.04, 0.08, 0.12, 0.16]
    mixed = by_name["along-training/a3gt-seed0"]
    weights = [each.weights for each in mixed.evaluations]
    assert weights == ["model", "round-002", "gamma-0", "gamma-0.5", "gamma-1"]
    alone = by_name["along-training/pgd-at-seed0"]
    assert [each.weights for each in alone.evaluations] == ["model", "round-002"]
    assert mixed.done() == 0
    assert mixed.step()[0] == "train"


# Before any run: what is planned, and what it is reckoned to take. The numbers are those of the
# plans of version 0.1.0; a change of a plan changes them.
PLANNED = {
    "table2": (14, 14, 1_288_757),
    "table3": (4, 4, 363_243),
    "fig2": (2, 7, 429_147),
    "fig3": (3, 12, 98_048),
    "fig4": (3, 12, 98_048),
    "fig5": (4, 4, 357_355),
    "controls": (6, 6, 536_032),
    "front": (3, 5, 368_101),
    "settings": (2, 2, 36_504),
}


@pytest.mark.parametrize("name", PLANNED)
def test_what_a_plan_takes_is_counted(name, tmp_path):
    experiment = Experiment(name, "", tmp_path, "", smoke([name], tmp_path))
    cost = round(sum(task.cost for task in experiment.tasks))
    assert (len(experiment.tasks), experiment.evaluations, cost) == PLANNED[name]


def test_of_a_front_every_mix_is_judged_and_of_others_the_model(tmp_path):
    experiment = Experiment("front", "", tmp_path, "", smoke(["front"], tmp_path))
    judged = {task.entry: [e.weights for e in task.evaluations] for task in experiment.tasks}
    assert judged == {
        "a3gt-front": ["model", "gamma-0", "gamma-1"],
        "mix-at-10": ["model"],
        "mix-at-90": ["model"],
    }
    content = experiment.results()
    assert [panel["entries"] for panel in content["panels"]] == [list(judged)]
    assert content["planned"] == 5


def test_the_run_with_the_front_has_a_third_of_what_five_trainings_take(tmp_path):
    for plan in of_scale("cpu", ["front"]):
        assert plan.budget is not None
        for entry in plan.entries:
            if entry.name == "a3gt-front":
                recipe = entry.recipe()
                method = recipe.settings.build(recipe.threat(0.1))
                images = recipe.limit - recipe.validation
                mixed = 5 * 7 * 12 * images
                assert method.cost(recipe.rounds) * images * recipe.rounds <= mixed / 3


def test_a_grid_names_what_it_is_made_of():
    grid = {
        "name": "g{gamma}-l{start.threshold}",
        "entry": {"method": "a3gt-paper", "start": {"rule": "threshold"}},
        "over": {"gamma": [[1, 0.4], [0.5]], "start.threshold": [0.5, 1.5]},
    }
    base, judged = {"data": "digits", "rounds": 4}, {"attacks": "fgsm"}
    plan = parse({"base": base, "grids": [grid], "evaluate": judged})
    entries = {entry.name: entry.settings for entry in plan.entries}
    assert list(entries) == ["g1-0.4-l0.5", "g1-0.4-l1.5", "g0.5-l0.5", "g0.5-l1.5"]
    assert entries["g0.5-l1.5"]["start"]["threshold"] == 1.5
    assert entries["g1-0.4-l0.5"]["start"]["threshold"] == 0.5


def test_a_file_stands_in_for_a_data_set(command, tmp_path):
    file = tmp_path / "mine.npz"
    chosen = of_scale("cpu", ["settings"], files={"mnist": file})
    titles = {plan.title for plan in chosen}
    assert "MNIST, eps 0.3, small CNN (mine.npz)" in titles
    assert "Fashion-MNIST, eps 0.1, small CNN" in titles
    data = {plan.name: {e.settings["data"] for e in plan.entries} for plan in chosen}
    assert data["settings-mnist"] == data["settings-mnist-resnet"] == {str(file)}
    assert data["settings-fashion-mnist"] == {"fashion-mnist"}
    published = of_scale("full", ["table2"], files={"cifar10": file})[0].entries
    usual = of_scale("full", ["table2"])[0].entries
    assert [{**e.settings, "data": "cifar10"} for e in published] == [e.settings for e in usual]
    with pytest.raises(UserError, match="did you mean 'mnist'"):
        plans("cpu", ["settings"], files={"mnst": file})
    done = command("reproduce", "settings", "--plan", "--data", "mnist", cwd=tmp_path)
    assert done.code == 2
    assert "expected --data NAME=FILE.npz" in done.err
    words = ("reproduce", "settings", "--scale", "cpu", "--plan", "--data", f"mnist={file}")
    done = command(*words, cwd=tmp_path)
    assert done.code == 2
    assert f"cannot read {file}" in done.err.strip().splitlines()[-1]


@pytest.fixture(scope="module")
def made(command, tmp_path_factory):
    """Figure 3 at the smallest scale."""
    where = tmp_path_factory.mktemp("reproduce")
    done = command("reproduce", "fig3", "--workers", 2, before=FORKED, cwd=where)
    assert done.code == 0, done.err
    return where / "runs/reproduce/smoke", done


def test_a_figure_from_recipe_to_page(made):
    folder, done = made
    assert "3 runs, 0 of them done" in " ".join(done.out.split())
    assert (folder / "index.html").is_file()
    assert (folder / "results.md").is_file()
    content = json.loads((folder / "fig3/results.json").read_text(encoding="utf-8"))
    assert content["missing"] == []
    results = content["results"]
    rows = [row for row in results if row["attack"] == "worst-case"]
    clean = {(r["entry"], r["eps"]): r["correct"] for r in results if r["attack"] == "clean"}
    assert len(rows) == len(clean) == 3 * 5
    _, sample = draw(load("digits").test, 64)
    assert content["panels"][0]["sample"] == sample.content()
    assert {row["sample"] for row in results} == {sample.sha256}
    for row in results:
        bits = np.unpackbits(np.frombuffer(bytes.fromhex(row["bits"]), np.uint8))[: row["n"]]
        assert bits.sum() == row["correct"]
    assert all(0 <= row["cmmr"]["score"] <= 1 for row in rows)
    at_zero = [row for row in rows if row["eps"] == 0]
    assert len(at_zero) == 3
    assert all(row["cmmr"]["score"] == clean[row["entry"], 0] / row["n"] for row in at_zero)
    lines = [
        json.loads(line)
        for path in folder.parent.rglob("trades-*/records.jsonl")
        for line in path.read_text(encoding="utf-8").splitlines()
    ]
    shown = {r["eps"]: r["cmmr"] for r in lines if r["attack"] == "worst-case"}
    assert shown == {r["eps"]: r["cmmr"] for r in rows if r["entry"] == "trades" and r["eps"]}
    by_eps = sorted((r["eps"], r["cmmr"]["score"]) for r in rows if r["entry"] == "trades")
    scores = [score for _, score in by_eps]
    assert scores == sorted(scores, reverse=True)


def test_a_repeated_command_does_nothing_again_and_runs_are_reused(command, made):
    folder, _ = made
    before = {path: path.stat().st_mtime_ns for path in Path(folder).rglob("*.safetensors")}
    words = ("reproduce", "fig3", "fig4", "--workers", 2)
    again = command(*words, before=FORKED, cwd=folder.parents[2])
    assert again.code == 0, again.err
    assert "3 runs, 3 of them done." in " ".join(again.out.split())
    after = {path: path.stat().st_mtime_ns for path in Path(folder).rglob("*.safetensors")}
    assert after == before
    assert (folder / "fig4/results.json").is_file()


# Of each experiment what it needs; that every method can be trained is tested elsewhere.
SOME = "trades,a3gt,start-at-1,gamma-0.5-c1,a3gt-front,mix-at-10"


@pytest.mark.long
def test_every_experiment_at_the_smallest_scale_from_recipe_to_page(command, made):
    folder, _ = made
    words = ("reproduce", "all", "--only", SOME, "--workers", 2)
    done = command(*words, before=FORKED, cwd=folder.parents[2])
    assert done.code == 0, done.err
    page = (folder / "index.html").read_text(encoding="utf-8")
    for name in EXPERIMENTS:
        content = json.loads((folder / name / "results.json").read_text(encoding="utf-8"))
        assert content["missing"] == []
        assert content["results"]
        assert list((folder / name).glob("*.csv")) + list((folder / name).glob("*.svg"))
        assert f'id="{name}' in page


@pytest.mark.long
def test_of_settings_the_fronts_are_measured_on_held_out_images_and_kept(command, made):
    folder, _ = made
    words = ("reproduce", "settings", "--only", "a3gt-front")
    done = command(*words, before=FORKED, cwd=folder.parents[2])
    assert done.code == 0, done.err
    content = json.loads((folder / "settings/results.json").read_text(encoding="utf-8"))
    run = folder / "trainings/settings-digits/a3gt-front-seed0"
    record = json.loads((run / "front.json").read_text(encoding="utf-8"))
    assert content["panels"][0]["split"] == "held-out"
    assert content["panels"][0]["sample"] == record["sample"]
    counts = {(row["gamma"], row["attack"]): row["correct"] for row in content["results"]}
    assert {row["sample"] for row in content["results"]} == {record["sample"]["sha256"]}
    assert counts == {
        (point["gamma"], attack): point[key]
        for point in record["points"]
        for attack, key in (("clean", "clean"), ("worst-case", "robust"))
    }
    files = [run / point["file"] for point in record["points"]]
    measured = {path: path.stat().st_mtime_ns for path in files}
    files[0].unlink()  # what is kept of one model; the others stay
    again = command(*words, before=FORKED, cwd=folder.parents[2])
    assert again.code == 0, again.err
    assert "1 runs, 0 of them done" in " ".join(again.out.split())
    repeated_times = {path: path.stat().st_mtime_ns for path in files}
    assert repeated_times[files[0]] != measured[files[0]]
    repeated = json.loads((run / "front.json").read_text(encoding="utf-8"))
    for first, second in zip(record["points"], repeated["points"], strict=True):
        assert (first["clean"], first["sha256"]) == (second["clean"], second["sha256"])


def test_missing_data_are_said_and_the_rest_goes_on(command, tmp_path):
    nowhere = {"EQUIPOISE_DATA": str(tmp_path)}
    words = ("reproduce", "table3", "--scale", "full", "--plan")
    done = command(*words, cwd=tmp_path, env=nowhere)
    assert done.code == 2
    assert "SVHN, eps 8/255 is left out" in done.line


@pytest.mark.long
def test_the_scale_of_the_paper_runs_as_a_slice(tmp_path):
    stand_ins = Path(__file__).with_name("stand_ins.py")
    words = ("reproduce", "table2", "--scale", "full", "--slice", "--only", "a3gt")
    done = anew("--import", stand_ins, *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "runs/reproduce/full-slice"
    content = json.loads((folder / "table2/results.json").read_text(encoding="utf-8"))
    assert content["missing"] == []
    assert {row["entry"] for row in content["results"]} == {"a3gt"}
    assert {row["settings"]["model"] for row in content["trainings"]} == {"resnet-18"}
    assert {row["rounds"] for row in content["trainings"]} == {2}
    assert (folder / "index.html").is_file()


def test_learners_are_merged_as_the_authors_merge_theirs():
    """Path while gamma < 1, spacing of hand-overs, effective gamma, weight decay: theirs are
    6.88, 1.96, .43 and 3.5e-3 / 5e-4; shorter trainings reach a part of the path."""
    images = {"fashion-mnist": 18_944, "mnist-8-255": 8960, "many-rounds": 4480}
    seen = []
    for plan in of_scale("cpu", ["table2", "table3", "fig5"]):
        for entry in plan.entries:
            scheduled = entry.name in ("generalist", "gamma-1-1-1-0.4-c5")
            if plan.name not in images or not scheduled:
                continue
            steps = images[plan.name] // entry.settings["batch_size"]
            rounds = entry.rounds or round(plan.budget / (12 * images[plan.name]))
            recipe = entry.recipe(rounds=rounds)
            method = recipe.settings.build(recipe.threat(0.1))
            regime = method.regime(rounds, steps, method.merge.start.latest(rounds))
            assert 4.5 < regime.path["robust"] < 8
            assert regime.spacing == 2
            assert 0.39 < regime.gamma["robust"] < 0.45
            assert regime.weight_decay == {"clean": 5e-4, "robust": 3.5e-3}
            seen.append(plan.name)
    assert sorted(seen) == sorted(images)
