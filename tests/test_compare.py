"""Comparisons: plans and their errors, the table; what a kill, a failure, a repeat leave."""

import copy
import csv
import json
import shutil
import signal
import time
from pathlib import Path

import pytest
import yaml

from equipoise import data
from equipoise.cli import options
from equipoise.errors import UserError
from equipoise.paper.results import ResultRow
from equipoise.plans import engine, executor
from equipoise.plans.plan import parse, read
from equipoise.plans.prepare import Datasets, tasks
from equipoise.plans.task import merged
from equipoise.settings import recipe
from equipoise.terminal.progress import Console
from forks import FORKED

ROOT = Path(__file__).parents[1]

PLAN = {
    "title": "Two methods",
    "base": {
        "data": "digits",
        "width": 0.25,
        "limit": 300,
        "validation": 60,
        "batch_size": 40,
        "validation_attack": "pgd-2",
    },
    "budget": 1500,  # of 240 images a round: two rounds of pgd-at, whose image costs three
    "seeds": [0, 1],
    "entries": {"standard": {"rounds": 2}, "averaged": {"method": "pgd-at", "horizon": 1.5}},
    "evaluate": {"attacks": "pgd-2,fgsm", "n": 100},
}
PLAN["entries"]["averaged"]["attack"] = {"steps": 2}


def changed(**parts):
    """Return the plan with groups changed; None takes a group out."""
    plan = copy.deepcopy(PLAN)
    for key, value in parts.items():
        if isinstance(value, dict) and key != "entries":
            plan[key] |= value
        else:
            plan[key] = value
    return {key: value for key, value in plan.items() if value is not None}


def write(folder, plan=PLAN):
    path = folder / "plan.yaml"
    path.write_text(yaml.safe_dump(plan, sort_keys=False))
    return path


def contents(folder):
    """Return every file below a folder but those that are written at each end."""
    return {
        path.relative_to(folder): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in folder.rglob("*")
        if path.is_file() and path.parent != folder
    }


def records(run):
    """Return the latest record of each attack."""
    lines = (run / "records.jsonl").read_text().splitlines()
    return {record["attack"]: record for record in map(json.loads, lines)}


def results(out):
    """Return the trainings and the results, without the times in them."""
    content = json.loads((out / "results.json").read_text())
    rows = [*content["trainings"], *content["results"]]
    return [{k: v for k, v in row.items() if k not in ("seconds", "settings")} for row in rows]


def accuracies(out):
    """Return the accuracies by entry, seed and attack."""
    rows = json.loads((out / "results.json").read_text())["results"]
    return {(r["entry"], r["seed"], r["attack"]): r["correct"] / r["n"] for r in rows}


@pytest.fixture(scope="module")
def compared(command, tmp_path_factory):
    """Return the folder of a comparison of two methods with two seeds, and what it said."""
    folder = tmp_path_factory.mktemp("compared")
    out = folder / "out"
    ended = command(
        "compare", write(folder), "--out", out, "--workers", 2, before=FORKED, cwd=folder
    )
    assert ended.code == 0, ended.err
    return out, ended


@pytest.fixture
def again(compared, tmp_path):
    """Return a copy of that folder."""
    return Path(shutil.copytree(compared[0], tmp_path / "out"))


# Plans


def test_everything_that_is_wrong_with_a_plan_is_said_at_once():
    plan = {
        "tilte": "x",
        "base": {"batchsize": 3, "seed": 1},
        "budget": "much",
        "seeds": [0, 0],
        "entries": {"a3gtt": {"cost": -1}, "pgd-at": {"eps": 8}, "a/b": {}, "standard": 3},
        "evaluate": {"attacks": "pdg-3", "m": 3, "n": 0, "eps": -1, "precision": "float16"},
    }
    with pytest.raises(UserError) as caught:
        parse(plan)
    for text in (
        "unknown key of a plan 'tilte'; did you mean 'title'",
        "base.seed: the seeds are those of `seeds`",
        "budget: expected a number above 0, got 'much'",
        "seeds: expected different whole numbers like [0, 1], got [0, 0]",
        "entries.a3gtt.cost: expected a number above 0, got -1",
        "a3gtt: unknown method 'a3gtt'; did you mean 'a3gt'",
        "'batchsize'; did you mean batch_size",
        "eps must lie in [0, 1], got 8",
        "got 'a/b'",
        "entries.standard: expected a mapping, got 3",
        "unknown attack 'pdg'; did you mean 'pgd'",
        "key of evaluate 'm'",
        "evaluate.n: ",
        "got 0",
        "evaluate.eps: expected radii >= 0, one of them > 0, got -1",
        "evaluate.precision: ",
    ):
        assert text in str(caught.value), text


@pytest.mark.parametrize(
    ("plan", "text"),
    [
        (changed(entries=None), "entries: expected at least one method"),
        (changed(entries={}), "entries: expected at least one method"),
        (changed(entries=["a3gt"]), "entries: expected a mapping, got ['a3gt']"),
        (changed(evaluate=None), "evaluate.attacks: expected at least one attack"),
        (changed(evaluate={"attacks": "clean"}), "pgd-100,autoattack, got 'clean'"),
        (changed(evaluate={"attacks": None}), "evaluate.attacks: expected at least one attack"),
        (changed(evaluate={"individual": 3}), "individual: expected true or false, got 3"),
        (changed(base={"rounds": 3}), "base.rounds or budget"),
        (changed(base={"gama": [1]}), "every entry: unknown setting 'gama'"),
        (changed(seeds=3), "seeds: expected different whole numbers like [0, 1], got 3"),
        (changed(title=3), "title: expected text, got 3"),
        (
            changed(evaluate={"eps": 0}),
            "evaluate.eps: expected radii >= 0, one of them > 0, got 0",
        ),
        (changed(evaluate={"weights": "best"}), "evaluate.weights: expected names like model"),
        (changed(evaluate={"weights": ["gamma-2"]}), "gamma-2"),
        (changed(evaluate={"points": 1}), "evaluate.points: "),
        (changed(only=["avraged"]), "did you mean 'averaged'"),
        (changed(grids=[{"name": "a"}]), "grids: expected a list of name, entry and over"),
        (changed(published=True), "no published settings for 'digits'"),
        (changed(evaluate={"eps": [0.1, 8]}), "evaluate.eps: eps must lie in [0, 1], got 8"),
        (
            changed(base={"norm": "l2", "eps": 1.0}, evaluate={"attacks": "cw-inf-2"}),
            "linf, not l2",
        ),
    ],
)
def test_a_plan_is_refused_in_words(plan, text):
    with pytest.raises(UserError, match=r".") as caught:
        parse(plan)
    assert text in str(caught.value)


def test_a_name_that_is_given_twice_is_not_dropped_in_silence(tmp_path):
    path = tmp_path / "plan.yaml"
    text = "base: &b {eps: 0.1}\nentries:\n  standard: {<<: *b, eps: 0.2}\n"
    path.write_text(f"{text}evaluate: {{attacks: fgsm}}\n")
    assert read(path).entries[0].settings["eps"] == 0.2  # merging is no repetition
    path.write_text(f"{text}  standard: {{eps: 0.3}}\nevaluate: {{attacks: fgsm}}\n")
    with pytest.raises(UserError, match="'standard' is given twice"):
        read(path)
    path.write_text("entries: [")
    with pytest.raises(UserError, match=r"plan\.yaml"):
        read(path)
    with pytest.raises(UserError, match=r"nothing\.yaml"):
        read(tmp_path / "nothing.yaml")


def test_an_entry_lies_over_the_base_group_by_group():
    plan = changed(base={"robust": {"lr": 0.2, "momentum": 0.5}}, budget=None)
    del plan["entries"]["standard"]
    plan["entries"]["averaged"]["robust"] = {"lr": 0.1}
    parsed = parse(plan).entries[0].recipe(seed=3)
    assert (parsed.method, parsed.seed, parsed.rounds) == ("pgd-at", 3, recipe.Recipe.rounds)
    assert (parsed.settings.robust.lr, parsed.settings.robust.momentum) == (0.1, 0.5)


def test_commands_of_a_plan_give_a_network_of_ones_own_again(tmp_path, monkeypatch):
    plan = changed(budget=None, base={"model": "nets:make", "width": 1}, entries={"standard": {}})
    (task, *_) = tasks(parse(plan), tmp_path, Datasets())
    assert "--model" not in task.step()  # the recipe names it, which is the plan's
    monkeypatch.setattr(type(task), "begun", True)
    assert task.step()[-2:] == ["--model", "nets:make"]
    monkeypatch.setattr(type(task), "trained", True)
    words = task.step()
    assert words[:1] == ["evaluate"]
    assert words[words.index("--model") + 1] == "nets:make"


def test_everything_in_a_list_of_models_is_judged_and_grids_are_written_out(tmp_path):
    plan = changed(budget=None, evaluate={"eps": [0, 0.1, "1/5"], "weights": ["model", "rounds"]})
    plan["base"] |= {"snapshots": 2, "rounds": 5}
    grid = {"name": "h{horizon}", "entry": {"method": "pgd-at"}, "over": {"horizon": [0.5, 2.5]}}
    plan |= {"entries": {}, "grids": [grid], "only": ["h2.5", "h*"], "seeds": [0]}
    planned = tasks(parse(plan), tmp_path, Datasets())
    assert [task.entry for task in planned] == ["h2.5", "h0.5"]
    assert [(e.protocol.eps, e.weights) for e in planned[0].evaluations] == [
        (eps, which) for eps in (0.1, 0.2) for which in ("model", "round-002", "round-004")
    ]
    assert len(merged([*planned, *planned])) == len(planned)


@pytest.mark.parametrize("path", sorted(ROOT.glob("comparisons/*.yaml")), ids=str)
def test_the_plans_of_the_house_are_valid(path):
    plan = read(path)
    assert all(entry.recipe().keep == "last" for entry in plan.entries)


def test_the_comparison_of_the_house_has_every_kind_of_method():
    plan = read(ROOT / "comparisons/fashion-mnist.yaml")
    names = {entry.name for entry in plan.entries}
    assert {"standard", "pgd-at", "trades", "mart", "fat", "yopo", "a3gt"} <= names


# The whole way


@pytest.mark.slow
def test_the_table_has_the_numbers_of_the_records(compared):
    out, ended = compared
    rows = list(csv.DictReader((out / "table.csv").read_text().splitlines()))
    assert [row["entry"] for row in rows] == ["standard", "averaged"]
    for row in rows:
        of_seeds = [records(out / f"{row['entry']}-seed{seed}") for seed in (0, 1)]
        for attack in ("clean", "pgd-2", "fgsm", "worst-case"):
            values = [record[attack]["accuracy"] for record in of_seeds]
            assert float(row[attack]) == pytest.approx(sum(values) / 2)
            assert float(row[f"{attack} lowest"]) == min(values)
            assert float(row[f"{attack} highest"]) == max(values)
            text = f"{50 * sum(values):.1f} ({100 * min(values):.1f}..{100 * max(values):.1f})"
            assert text in (out / "table.md").read_text()
    summary = json.loads((out / "averaged-seed1" / "summary.json").read_text())
    log = [json.loads(x) for x in (out / "averaged-seed1" / "log.jsonl").read_text().splitlines()]
    rows = json.loads((out / "results.json").read_text())["trainings"]
    (row,) = [r for r in rows if (r["entry"], r["seed"]) == ("averaged", 1)]
    assert row["gradient_evaluations"] == summary["gradient_evaluations"] == 2 * 240 * 3
    assert row["rounds"] == len(log) == 2
    assert row["seconds"] == pytest.approx(sum(r["seconds"]["train"] for r in log))
    assert "4/4  " in ended.err
    assert "averaged-seed1: clean " in ended.err


@pytest.mark.slow
def test_the_table_says_what_it_is_of_and_where_from(compared):
    out, ended = compared
    text = (out / "table.md").read_text()
    for fact in (
        "## Two methods",
        "| averaged | pgd-at | 0, 1 | 2 |",
        "100 of 500 images of digits, seed 2",
        "round: 240",
        "model: small-cnn, width 0.25",
        "threat of the attacks: Linf(0.15)",
        "attacks: pgd-2, fgsm",
        "budget: 1,500 ",
        "device: cpu",
        "git commit: ",
        "equipoise compare ",
        "| averaged-seed1 | pgd-at | 1 | 2 |",
    ):
        assert fact in text, fact
    assert "averaged" in ended.out
    assert "averaged-seed1" in (out / "report.html").read_text()


@pytest.mark.slow
def test_its_runs_are_runs_like_any_other(command, compared):
    run = compared[0] / "averaged-seed0"
    ended = command("verify", run)
    assert ended.code == 0, ended.err
    assert "verified" in ended.err
    settings = recipe.read(run / "recipe.yaml")
    assert (settings["method"], settings["horizon"], settings["rounds"]) == ("pgd-at", 1.5, 2)


@pytest.mark.slow
def test_a_comparison_with_both_scores_stores_the_credits_of_the_images(command, tmp_path):
    three = "pgd-3,mi-fgsm-3,autoattack"
    given = {"attacks": three, "n": 10, "eps": [0, 0.1], "cmmr": True}
    plan = changed(entries={"standard": {"rounds": 9}}, seeds=[0], evaluate=given, budget=None)
    out = tmp_path / "out"
    ended = command("compare", write(tmp_path, plan), "--out", out, "-q", before=FORKED)
    assert ended.code == 0, ended.err
    rows = json.loads((out / "results.json").read_text())["results"]
    clean = next(row["correct"] / 10 for row in rows if row["attack"] == "clean")
    found = {row["eps"]: ResultRow(**row) for row in rows if row["attack"] == "worst-case"}
    for eps, row in found.items():
        for credits_of, score in (("cmmr_credits", row.cmmr), ("cmmr2_credits", row.cmmr2)):
            assert row.scores[credits_of].mean() == pytest.approx(score["score"], abs=1e-5)
        assert list(row.cmmr2["attacks"]) == three.split(",")
        assert (row.cmmr2["score"] == pytest.approx(clean)) == (eps == 0)
    heads = (out / "table.csv").read_text().splitlines()[0]
    assert {"cmmr", "cmmr-2"} <= set(heads.split(","))
    line = records(out / "standard-seed0")["worst-case"]
    assert {key: line[key] for key in ("cmmr", "cmmr2")} == {
        "cmmr": found[0.1].cmmr,
        "cmmr2": found[0.1].cmmr2,
    }


@pytest.mark.slow
def test_a_repeated_comparison_does_nothing_again(command, compared, again):
    before, rows = contents(again), results(again)
    ended = command("compare", write(again.parent), "--out", again, "-q", before=FORKED)
    assert (ended.code, ended.err) == (0, "")
    assert contents(again) == before
    assert results(again) == rows


@pytest.mark.slow
def test_another_protocol_judges_again_but_trains_nothing(command, again):
    plan = write(again.parent, changed(seeds=[1], evaluate={"n": 50, "individual": False}))
    states = {path: path.stat().st_mtime_ns for path in again.rglob("state.pt")}
    ended = command("compare", plan, "--out", again, "--workers", 2, before=FORKED)
    assert ended.code == 0, ended.err
    assert {path: path.stat().st_mtime_ns for path in again.rglob("state.pt")} == states
    assert " 50 of 500 " in ended.out
    for entry in ("standard", "averaged"):
        staged, table = records(again / f"{entry}-seed1")["staged"], accuracies(again)
        assert table[entry, 1, "worst-case"] == staged["accuracy"]
        assert table[entry, 1, "pgd-2 and before"] == staged["stages"][0]["accuracy"]
    before = contents(again)
    assert command("compare", plan, "--out", again, "-q", before=FORKED).code == 0
    assert contents(again) == before


@pytest.mark.slow
def test_a_plan_that_is_only_shown_touches_nothing(command, again, tmp_path):
    plan = write(tmp_path)
    shutil.rmtree(again / "standard-seed1")
    before = contents(tmp_path)
    ended = command("compare", plan, "--out", again, "--plan")
    assert ended.code == 0, ended.err
    lines = {line.split()[0]: line.split()[1:] for line in ended.out.splitlines() if line.strip()}
    assert lines["averaged-seed0"] == ["2", "1,440", "done", "done"]
    assert lines["standard-seed1"] == ["2", "480", "to", "do", "to", "do"]
    assert "4 runs, 3 of them done" in ended.out
    assert "780 gradient evaluations" in ended.out
    assert contents(tmp_path) == before
    ended = command("compare", plan, "--out", tmp_path / "new", "--plan")
    assert (ended.code, (tmp_path / "new").exists()) == (0, False)


@pytest.mark.slow
def test_folders_of_another_recipe_are_refused_before_anything_starts(command, again):
    shutil.rmtree(again / "standard-seed0")
    (again / "standard-seed1" / "recipe.yaml").unlink()
    plan = changed()
    plan["entries"]["averaged"] |= {"horizon": 1, "cost": 6}
    before = contents(again)
    ended = command("compare", write(again.parent, plan), "--out", again)
    assert ended.code == 2
    folders = f"{again / 'averaged-seed0'}, {again / 'averaged-seed1'}"
    what = "horizon: 1.5 there, 1.0 here; rounds: 2 there, 1 here"
    assert f"another recipe is in {folders} ({what})" in ended.line
    assert f"{again / 'standard-seed1'} is not a run folder" in ended.line
    assert contents(again) == before


@pytest.mark.parametrize(
    ("plan", "words", "text"),
    [
        (changed(), ["--workers", "0"], "--workers must be at least 1, got 0"),
        (changed(evaluate={"n": 9999}), [], "evaluate.n must lie in 1..500 images, got 9999"),
        (changed(base={"batch_size": 500}), [], "batch_size=500 is more than the 240"),
        (changed(base={"data": "nothing.npz"}), [], "nothing.npz"),
        (changed(base={"device": "cuda:99"}), [], "cuda"),
    ],
)
def test_what_cannot_be_compared_is_a_line(command, tmp_path, plan, words, text):
    ended = command("compare", write(tmp_path, plan), "--out", tmp_path / "out", *words)
    assert ended.code == 2
    assert text in ended.line
    assert not (tmp_path / "out").exists()


# Failures, kills, signals


@pytest.mark.slow
def test_a_run_that_fails_is_named_and_stops_no_other(command, compared, tmp_path):
    plan = changed(seeds=[0])
    del plan["entries"]["averaged"]
    bad = {"method": "standard", "clean": {"lr": 1e9}, "rounds": 2}
    plan["entries"] = {"bad": bad} | plan["entries"]
    out = tmp_path / "out"
    ended = command("compare", write(tmp_path, plan), "--out", out, before=FORKED)
    assert ended.code == 1
    last = ended.err.strip().splitlines()[-1]
    assert last.startswith(
        "equipoise: 1 of 2 runs failed: bad-seed0: training failed: the loss is not"
    )
    assert (out / "logs" / "bad-seed0.log").read_text().strip().endswith("clean.lr=3.3e+08")
    assert "| bad | standard | (1 missing) | 2 | - |" in (out / "table.md").read_text()
    assert "- bad-seed0: training failed: the loss is not finite" in (out / "table.md").read_text()
    kept = [r for r in results(compared[0]) if (r["entry"], r["seed"]) == ("standard", 0)]
    assert results(out) == kept


def longer():
    """Return a plan that takes long enough to be stopped on the way."""
    plan = changed(seeds=[0], budget=None, evaluate={"attacks": "fgsm,pgd-200"})
    for entry in plan["entries"].values():
        entry["rounds"] = 6
    return plan


def wait_for(condition, seconds=60):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.002)


def lines(path):
    return len(path.read_text().splitlines()) if path.exists() else 0


@pytest.fixture(scope="module")
def undisturbed(command, tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    ended = command("compare", write(folder, longer()), "--out", folder / "out", before=FORKED)
    assert ended.code == 0, ended.err
    return results(folder / "out")


@pytest.mark.slow
def test_killed_and_repeated_it_goes_on(command, undisturbed, tmp_path):
    plan, out = write(tmp_path, longer()), tmp_path / "out"
    last = out / "averaged-seed0"
    _, sample = data.draw(data.load("digits").test, 100)
    begun = (
        last / "log.jsonl",
        last / "evaluations" / f"linf-0.15-n100-{sample.short}.json",
    )
    for number, place in enumerate(begun):
        running = command.start("compare", plan, "--out", out, before=FORKED)
        wait_for(lambda place=place: lines(place) >= 2)
        running.signal(signal.SIGKILL)
        assert running.wait().code == -signal.SIGKILL
        assert not (last / "summary.json").exists() or number == 1
    kept = contents(out / "standard-seed0")
    ended = command("compare", plan, "--out", out, before=FORKED)
    assert ended.code == 0, ended.err
    assert contents(out / "standard-seed0") == kept
    assert results(out) == undisturbed
    log = (out / "logs" / "averaged-seed0.log").read_text()
    assert f"$ equipoise train --resume {last}" in log
    again = next(line for line in reversed(log.splitlines()) if line.startswith("$ "))
    assert again.startswith("$ equipoise evaluate ")  # in which it was killed, too
    assert " --resume " in again
    assert " --device auto" in again
    assert (out / "logs" / "standard-seed0.log").read_text().count("$ ") == 2


@pytest.mark.slow
def test_an_evaluation_whose_checks_are_left_is_not_at_its_end(again):
    (task, *_) = tasks(parse(changed(seeds=[1])), again, Datasets())
    assert task.step() is None
    store, (evaluation,) = task.evaluations[0].store, task.evaluations
    about, result, tensors = store.read()
    store.write(result, tensors["x"], about | {"finished": False}, {})
    assert not evaluation.finished
    assert "--resume" in task.step()
    asked = about["asked"] | {"attacks": ["pgd-2", "fgsm", "square-9"]}  # another evaluation's
    store.write(result, tensors["x"], about | {"finished": False, "asked": asked}, {})
    assert evaluation.finished


@pytest.mark.slow
def test_the_processes_of_one_that_was_killed_save_and_end(command, tmp_path):
    plan, out = write(tmp_path, longer()), tmp_path / "out"
    run = out / "averaged-seed0"
    running = command.start("compare", plan, "--out", out, "--workers", 2, before=FORKED)
    wait_for(lambda: lines(run / "log.jsonl") >= 1)
    running.signal(signal.SIGKILL)
    running.wait()
    log = out / "logs" / "averaged-seed0.log"
    wait_for(lambda: "equipoise: SIGTERM: stopped " in log.read_text())
    assert not (run / "summary.json").exists()


@pytest.mark.slow
def test_a_signal_saves_every_run_and_says_how_to_go_on(command, undisturbed, tmp_path):
    plan, out = write(tmp_path, longer()), tmp_path / "out"
    words = ["compare", plan, "--out", out, "--workers", 2]
    for rounds, number in ((1, signal.SIGINT), (3, signal.SIGTERM)):
        running = command.start(*words, before=FORKED)
        wait_for(lambda rounds=rounds: lines(out / "averaged-seed0" / "log.jsonl") >= rounds)
        running.signal(number)
        ended = running.wait()
        assert ended.code == 1
        last = ended.err.strip().splitlines()[-1]
        assert last.startswith(f"equipoise: {number.name}: stopped with ")
        assert last.endswith(f" equipoise compare {plan} --out {out} --workers 2")
        # Nothing is left behind: what was running has said that it is saved.
        log = (out / "logs" / "averaged-seed0.log").read_text()
        assert "equipoise: SIGTERM: stopped " in log.splitlines()[-1]
    ended = command(*words, before=FORKED)
    assert ended.code == 0, ended.err
    assert results(out) == undisturbed


@pytest.mark.slow
def test_two_comparisons_in_one_folder_share_the_work(command, undisturbed, tmp_path):
    plan, out = write(tmp_path, longer()), tmp_path / "out"
    quick = f"{FORKED}\nengine.AGAIN_SECONDS = 0.1"
    first = command.start("compare", plan, "--out", out, before=quick)
    wait_for(lambda: lines(out / "standard-seed0" / "log.jsonl") >= 1)
    second = command("compare", plan, "--out", out, before=quick)
    assert second.code == 0, second.err
    assert f"another process works in {out}, too: each run is done once" in second.err
    ended = first.wait()
    assert ended.code == 0, ended.err
    assert results(out) == undisturbed
    for name in ("standard", "averaged"):
        text = (out / "logs" / f"{name}-seed0.log").read_text()
        assert [line.split()[2] for line in text.splitlines() if line.startswith("$ ")] == [
            "train",
            "evaluate",
        ]
    assert not [*out.rglob(".*.lock")]


@pytest.mark.slow
def test_what_was_cut_off_before_there_was_a_run_is_no_obstacle(command, tmp_path):
    out = tmp_path / "out"
    (out / "standard-seed0").mkdir(parents=True)
    (out / "standard-seed0" / ".recipe.yaml.part").write_text("met")
    plan = changed(seeds=[0], evaluate={"attacks": "fgsm", "n": 20})
    del plan["entries"]["averaged"]
    ended = command("compare", write(tmp_path, plan), "--out", out, "-q", before=FORKED)
    assert (ended.code, ended.err) == (0, "")
    attacks = [attack for _, _, attack in accuracies(out)]
    assert attacks == ["clean", "fgsm", "worst-case"]
    head = next(csv.reader((out / "table.csv").read_text().splitlines()))
    assert "worst-case" not in head  # of one attack it is the same


@pytest.mark.long
def test_with_processes_of_its_own_and_their_share_of_the_threads(command, tmp_path):
    plan = changed(seeds=[0], evaluate={"attacks": "fgsm", "n": 20})
    plan["entries"] = {"a": {"method": "standard", "rounds": 1}}
    out = tmp_path / "out"
    plan = write(tmp_path, plan)
    share = {"OMP_NUM_THREADS": "2"}
    ended = command("compare", plan, "--out", out, "--workers", 2, env=share)
    assert ended.code == 0, ended.err
    origin = json.loads((out / "a-seed0" / "provenance.json").read_text())
    assert origin["threads"] == 1
    assert origin["command"].startswith("equipoise train ")
    assert "threads: 1" in ended.out


class AtOnce:
    """An executor whose commands all end in the next poll."""

    slots = 2

    def __init__(self):
        self.started = []

    def submit(self, name, words, log, environment):
        self.started.append(name)

    def poll(self):
        ended, self.started = dict.fromkeys(self.started, 1), []
        return ended

    def stop(self, *, now=False):
        pass


@pytest.mark.timeout(60)
def test_an_error_after_two_commands_have_ended_together_ends_the_plan(tmp_path, monkeypatch):
    planned = tasks(parse(changed(seeds=[0])), tmp_path, Datasets())
    scheduler = engine.Scheduler(AtOnce(), planned, [], tmp_path, Console(quiet=True))

    def full(task, code):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(engine, "_last_line", full)
    with pytest.raises(OSError, match="No space left"):
        scheduler.work()
    assert scheduler.running == {}


@pytest.mark.parametrize(
    ("on", "workers", "text"),
    [
        ("local:2", 2, "--workers 2 is --on local:2: give one of them"),
        ("local:0", None, "expected at least one process in --on, like local:2, got 'local:0'"),
        ("local", None, "expected --on local:N, slurm, .* got 'local'"),
        ("clowd:2", None, "expected --on local:N, slurm, .* got 'clowd:2'"),
    ],
)
def test_a_place_that_is_none_is_refused_in_words(on, workers, text):
    with pytest.raises(UserError, match=text):
        executor.of(options.place(on, workers))
    assert executor.of(options.place(None, 3)).slots == executor.of("local:3").slots == 3
