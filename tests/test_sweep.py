"""Sweeps: spaces and their errors; held-out images alone; the journal; a kill; the front."""

import json
import re
import shutil
import signal
import time
from dataclasses import replace

import numpy as np
import pytest
import yaml

from equipoise.errors import UserError
from equipoise.measures.statistics import interval, outwards
from equipoise.plans import space as spaces
from equipoise.plans import sweep_results, trials
from equipoise.plans.sweep import _sweep, sweep
from equipoise.plans.trials import Journal, Trial
from equipoise.report.trials import picture
from equipoise.settings import recipe
from equipoise.settings.methods import METHODS
from equipoise.settings.split import Split
from equipoise.terminal.progress import Console
from forks import FORKED
from test_formats import described, fields

TINY = {
    "method": "pgd-at",
    "data": "digits",
    "width": 0.25,
    "rounds": 2,
    "limit": 300,
    "validation": 50,
    "batch_size": 40,
    "robust": {"attack": {"steps": 1}},
    "validation_attack": "pgd-1",
}
SPACE = {
    "lr": {"low": 0.01, "high": 0.3, "log": True},
    "robust.label_smoothing": {"low": 0, "high": 0.2, "step": 0.1},
    "keep": ["last", "robust"],
}
BASE = {"method": "pgd-at"}


# The space


def test_a_range_of_whole_numbers_is_one_of_numbers_where_the_setting_may_have_them():
    space = spaces.parse(
        {
            "rounds": {"low": 5, "high": 20},
            "weight_decay": {"low": 0, "high": 1},
            "robust": {"attack": {"steps": {"low": 1, "high": 10, "step": 4}}},
            "lr": {"low": "1/100", "high": 0.3, "log": True},
            "keep": ["last", "none"],
        },
        BASE,
    )
    assert {name: str(dimension) for name, dimension in space.items()} == {
        "rounds": "5 to 20, whole numbers",
        "weight_decay": "0 to 1",
        "robust.attack.steps": "1 to 9, in steps of 4",
        "lr": "0.01 to 0.3, logarithmic",
        "keep": "last, none",
    }
    assert isinstance(space["rounds"].low, int)
    assert isinstance(space["weight_decay"].low, float)
    assert space["keep"].choices == ("last", None)


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"lr": {"low": 2, "high": 1}}, "lr: low must be below high, got low: 2, high: 1"),
        ({"lr": {"low": 0, "high": 1, "log": True}}, "lr: log: true needs low above 0, got 0"),
        ({"keep": []}, "keep: expected at least one value, got []"),
        ({"keep": ["last", "last"]}, "keep: 'last' is given twice"),
        ({"lr": 0.1}, "lr: expected a list like [1, 3, 6], or a range like {low: 1, high: 6}"),
        ({"lr": {"low": 0.1}}, "lr: a range has low and high, high is missing"),
        ({"lr": {"low": "a", "high": 1}}, "lr: low: expected a number, got 'a'"),
        ({"lr": {"low": float("nan"), "high": 1}}, "lr: low: expected a number, got nan"),
        ({"lr": {"low": 1, "high": 2, "lgo": True}}, "lr: unknown key of a range 'lgo'; did you"),
        ({"lr": {"low": 1, "high": 2, "log": "x"}}, "lr: log: expected true or false, got 'x'"),
        ({"lr": {"low": 1, "high": 2, "step": 3}}, "lr: step must be above 0 and at most"),
        ({"lr": {"low": 1, "high": 2, "log": True, "step": 1}}, "lr: give only one of log: true"),
        ({"batch_size": [1, 64]}, "batch_size must be a finite number >= 2, got 1"),
        ({"eps": [0.1, 0.2]}, "eps: all trials need the same, to be compared"),
        ({"robust.eps": [0.1, 0.2]}, "robust.eps: all trials need the same, to be compared"),
        ({"data": ["mnist"]}, "data: all trials need the same, to be compared"),
        ({"seed": [1, 2]}, "seed: the best of several seeds is luck"),
        ({"rounds": [1, 2]}, "rounds: it is given as key=value, too; leave out one of them"),
        ({"robust.label_smoothing": [0, 0.1]}, "robust.label_smoothing: it is given as key=value"),
        ({"lr": [0.1], "robust.lr": [0.2]}, "lr is given twice: as lr and as robust.lr"),
        ({}, "the space is empty"),
    ],
)
def test_a_wrong_space_is_answered_in_one_line(given, line):
    with pytest.raises(UserError) as caught:
        spaces.parse(given, BASE, fixed=["rounds", "label_smoothing"])
    assert str(caught.value).startswith(line)


def test_everything_that_is_wrong_with_a_space_is_said_at_once_with_what_can_be_searched(tmp_path):
    path = tmp_path / "space.yaml"
    path.write_text("robust.bta: {low: 2, high: 1}\nlrr: [1]\nkeep: [no]\nhorizon: []\n")
    with pytest.raises(UserError) as caught:
        spaces.read(path, BASE)
    text = str(caught.value)
    for part in (
        "robust.bta: low must be below high",
        "unknown setting 'robust.bta'",
        "unknown setting 'lrr'",
        "keep: Input should be",
        "horizon: expected at least one value",
    ):
        assert text.count(part) == 1, text
    searched = text.partition("settings that can be searched: ")[2].split(", ")
    assert {"rounds", "robust.lr", "robust.attack.steps", "horizon"} <= {*searched}
    assert not {"data", "eps", "robust.eps", "seed", "validation"} & {*searched}


def test_a_setting_of_another_objective_can_be_searched_together_with_the_objective():
    given = {"robust.objective": ["trades", "mart"], "robust.beta": {"low": 1, "high": 6}}
    assert {*spaces.parse(given, {"method": "generalist"})} == {*given}


@pytest.mark.parametrize("method", METHODS)
def test_every_method_has_a_usual_space(method):
    space = spaces.usual({"method": method})
    assert {"lr", "weight_decay"} <= {*space}
    assert "lr" not in spaces.usual({"method": method}, fixed=["robust.lr"])
    for pick in (0, -1):
        values = {name: dimension.probes[pick] for name, dimension in space.items()}
        assert spaces.recipe_with({"method": method}, values).method == method


# Held-out images


def test_the_reserve_is_apart_and_changes_no_other_held_out_image():
    given = recipe.parse(TINY)
    dataset = given.dataset()
    without = given.split(dataset, "cpu")
    split = replace(given, reserve=40).split(dataset, "cpu")
    assert isinstance(split, Split)
    assert (len(without.reserve), len(split.reserve), len(split.train)) == (0, 40, 210)
    assert np.array_equal(split.validation.x, without.validation.x)

    def rows(images):
        return {row.tobytes() for row in images.x.numpy()}

    assert rows(split.train) | rows(split.reserve) == rows(without.train)
    assert not rows(split.reserve) & (rows(split.train) | rows(split.validation))


def test_a_training_with_a_reserve_counts_both_parts_with_the_kept_model(command, tmp_path):
    words = [f"{k}={v}" for k, v in TINY.items() if k not in ("method", "robust")]
    ended = command(
        "train", "pgd-at", *words, "attack.steps=1", "reserve=40", "--out", tmp_path / "r"
    )
    assert ended.code == 0, ended.err
    summary = json.loads((tmp_path / "r" / "summary.json").read_text())
    log = (tmp_path / "r" / "log.jsonl").read_text().splitlines()
    kept = json.loads(log[summary["kept_round"] - 1])["global"]
    counted = summary["measured"]["validation"]
    assert counted["n"] == 50
    assert counted["clean"] == round(50 * kept["clean_accuracy"])
    assert counted["robust"] == round(50 * kept["robust_accuracy"])
    reserve = summary["measured"]["reserve"]
    assert reserve["n"] == 40
    assert 0 <= reserve["robust"] <= reserve["clean"] <= 40


def _made(tmp_path, given=TINY, fixed=()):
    path = tmp_path / "space.yaml"
    path.write_text(yaml.safe_dump(SPACE))
    return _sweep(given, path, tmp_path, fixed, 4, "equipoise sweep", Console(quiet=True))


def test_the_commands_of_a_sweep_only_train(tmp_path):
    made = _made(tmp_path)
    task = made.task(
        Trial(7, {"lr": 0.1, "robust.label_smoothing": 0.1, "keep": "last"}, "open", {})
    )
    recipe_file, folder = tmp_path / "recipes" / "007.yaml", tmp_path / "trials" / "007"
    assert task.step() == ["train", str(recipe_file), "--out", str(folder)]
    assert task.evaluations == ()
    assert task.recipe.reserve == TINY["validation"]  # as many, if nothing is said
    assert _made(tmp_path, TINY | {"reserve": 0}).recipe.reserve == TINY["validation"]
    with pytest.raises(UserError, match="give reserve=N"):
        _made(tmp_path, TINY | {"reserve": 0}, ["reserve"])
    assert task.recipe.settings.learners["robust"].lr == 0.1
    assert {*made.digests} == {"train_x", "train_y"}  # a journal does not know the test images


# Results


def counted(clean, robust, n=100):
    return {"n": n, "clean": clean, "robust": robust}


HEAD = {
    "method": "pgd-at", "command": "equipoise sweep", "planned": 4, "norm": "linf", "eps": 0.1,
    "attack": "pgd-10", "settings": {}, "images": {},
    "space": {"robust.lr": {"low": 0.001, "high": 0.2, "log": True, "step": None}},
}  # fmt: skip
DONE = [
    Trial(
        0,
        {"robust.lr": 0.15},
        "complete",
        {"validation": counted(90, 30), "reserve": counted(88, 27)},
    ),
    Trial(
        1,
        {"robust.lr": 0.2},
        "complete",
        {"validation": counted(80, 50), "reserve": counted(78, 47)},
    ),
    Trial(
        2,
        {"robust.lr": 0.01},
        "complete",
        {"validation": counted(79, 50), "reserve": counted(99, 99)},
    ),
    Trial(3, {"robust.lr": 0.02}, "failed", {}, "the loss is not finite"),
]


def test_the_front_is_chosen_on_validation_images_and_reported_on_the_reserve(tmp_path):
    content = sweep_results.write(tmp_path, HEAD, DONE, {})
    assert [row["front"] for row in content["trials"]] == [True, True, False, False]
    assert json.loads((tmp_path / "sweep.json").read_text()) == content
    assert fields(content) - described("The folder of a sweep") == {"robust.lr"}
    text = (tmp_path / "table.md").read_text()
    low, high = outwards(interval(47, 100))
    assert f"47.0 ({low:.1f}..{high:.1f})" in text
    assert "robust.lr: the whole front lies near high: 0.2; try a wider range" in text
    assert "trial 3 failed: the loss is not finite" in text
    assert "| trial | lr | clean, search |" in text
    assert "2.0 points lower (clean) and 3.0 points lower (robust)" in text
    sweep_results.write_front(tmp_path, content, lambda settings: f"lr: {settings['robust.lr']}\n")
    assert {path.name for path in (tmp_path / "front").iterdir()} == {"000.yaml", "001.yaml"}
    assert yaml.safe_load((tmp_path / "front" / "001.yaml").read_text()) == {"lr": 0.2}
    assert (tmp_path / "front.svg").read_text().count("<svg") == 1
    assert "trial 1: 78.0 % clean, 47.0 % robust" in picture(content).spoken.replace("\xa0", " ")
    sweep_results.write_front(
        tmp_path, sweep_results.write(tmp_path, HEAD, DONE[:1], {}), lambda settings: "lr: 1\n"
    )
    assert [path.name for path in (tmp_path / "front").iterdir()] == ["000.yaml"]


def test_without_optuna_a_sweep_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(trials, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'equipoise\[sweep\]'"):
        sweep(TINY, None, tmp_path / "out", trials=4, command="", console=Console(quiet=True))
    assert not (tmp_path / "out").exists()


# With Optuna


def searched(path, most, stop=99):
    """Return the settings of trials by number; after ``stop`` of them the process is killed."""
    journal = Journal(path, spaces.parse(SPACE, BASE), 3, {"a": 1})
    found = {}
    for i in range(stop):
        left = [trial for trial in journal.trials() if trial.state == "open"]
        trial = left[0] if left else journal.ask(most)
        if trial is None:
            break
        found[trial.number] = trial.settings
        if i < stop - 1:
            counts = counted(int(100 * trial.settings["lr"]), 50 - trial.number)
            journal.tell(trial.number, {"validation": counts, "reserve": counts})
            journal.tell(trial.number, None, "told twice")
    return found


@pytest.mark.extras
def test_a_search_that_is_killed_goes_on_as_if_it_had_not_been(tmp_path):
    whole = searched(tmp_path / "whole.log", 16)
    assert [*whole] == [*range(16)]
    path = tmp_path / "journal.log"
    parts = searched(path, 16, stop=5)
    with path.open("ab") as file:
        file.write(b'{"op_code')  # killed while it wrote
    parts |= searched(path, 16, stop=9)
    parts |= searched(path, 16)
    assert parts == whole
    assert len({tuple(map(str, settings.values())) for settings in whole.values()}) == 16
    journal = Journal(path, spaces.parse(SPACE, BASE), 3, {"a": 1})
    assert {trial.state for trial in journal.trials()} == {"complete"}
    assert journal.ask(16) is None
    assert journal.trials()[5].measured["reserve"]["robust"] == 45


@pytest.mark.extras
def test_a_journal_that_is_damaged_or_of_another_sweep_is_refused(tmp_path):
    path = tmp_path / "journal.log"
    searched(path, 3)
    space = spaces.parse(SPACE, BASE)
    with pytest.raises(UserError, match=r"of another sweep \(a: 1 there, 2 here\)"):
        Journal(path, space, 3, {"a": 2})
    lines = path.read_text().splitlines(keepends=True)
    for wrong, what in (("garbage\n", "line 4 is not JSON"), ('{"op_code": 77}\n', "is damaged")):
        path.write_text("".join([*lines[:3], wrong, *lines[4:]]))
        with pytest.raises(UserError, match=what):
            Journal(path, space, 3, {"a": 1})


def asked(tmp_path, out, *more, trials=4):
    """Return the words of a small sweep."""
    path = tmp_path / "space.yaml"
    path.write_text(yaml.safe_dump(SPACE))
    words = [f"{k}={v}" for k, v in TINY.items() if k not in ("method", "robust")]
    words += ["attack.steps=1", "--space", path, "--trials", trials, "--out", out]
    return ("sweep", "pgd-at", *words, *more)


def states(out):
    content = json.loads((out / "sweep.json").read_text())
    return [
        (t["number"], t["settings"], t.get("validation"), t["state"]) for t in content["trials"]
    ]


@pytest.fixture(scope="module")
def swept(command, tmp_path_factory):
    """Return the folder of a sweep by one worker, and what it said."""
    folder = tmp_path_factory.mktemp("swept")
    ended = command(*asked(folder, folder / "out"), before=FORKED, cwd=folder)
    assert ended.code == 0, ended.err
    return folder / "out", ended


@pytest.mark.extras
def test_a_sweep_ends_in_a_front_whose_recipes_train_its_models(command, swept, tmp_path):
    out, ended = swept
    assert len(states(out)) == 4
    for part in (
        "Front of 4 trials",
        "No test image was used",
        "recipes of the front",
        "--attacks",
    ):
        assert part in ended.out
    member = next((out / "front").glob("*.yaml"))
    again = command("train", member, "--out", tmp_path / "again")
    assert again.code == 0, again.err
    weights = [
        folder / "model.safetensors"
        for folder in (tmp_path / "again", out / "trials" / member.stem)
    ]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    repeated = command(*asked(tmp_path, out), before=FORKED)
    assert repeated.code == 0, repeated.err
    assert len(states(out)) == 4  # nothing was left to do


@pytest.mark.extras
def test_a_sweep_that_is_killed_goes_on_to_the_same_trials(command, swept, tmp_path):
    out = tmp_path / "out"
    running = command.start(*asked(tmp_path, out), before=FORKED)
    running.reaches("1/4")
    running.signal(signal.SIGKILL)
    assert running.wait().code == -signal.SIGKILL
    ended = command(*asked(tmp_path, out), before=FORKED)
    assert ended.code == 0, ended.err
    assert states(out) == states(swept[0])


@pytest.mark.extras
def test_two_processes_share_a_sweep_and_count_no_trial_twice(command, tmp_path):
    out = tmp_path / "out"
    both = [command.start(*asked(tmp_path, out, trials=6), before=FORKED) for _ in range(2)]
    ended = [running.wait() for running in both]
    assert [each.code for each in ended] == [0, 0], [each.err for each in ended]
    assert [number for number, *_, state in states(out) if state == "complete"] == [*range(6)]
    for log in (out / "logs").glob("*.log"):
        assert log.read_text().count("$ equipoise train") == 1
    assert sum(each.err.count("/6  trial") for each in ended) == 6


@pytest.mark.extras
def test_other_settings_are_refused_and_more_trials_are_added(command, swept, tmp_path):
    out = shutil.copytree(swept[0], tmp_path / "out")
    ended = command(*asked(tmp_path, out, "eps=0.2"), before=FORKED)
    assert ended.code == 2
    assert "of another sweep (settings.eps: None there, 0.2 here)" in ended.err
    ended = command(*asked(tmp_path, out, trials=5), before=FORKED)
    assert ended.code == 0, ended.err
    assert states(out)[:4] == states(swept[0])
    assert len(states(out)) == 5


@pytest.mark.extras
def test_a_sweep_of_which_all_trials_diverge_ends_with_one_line(command, tmp_path):
    words = asked(tmp_path, tmp_path / "out", trials=9)
    (tmp_path / "space.yaml").write_text("lr: {low: 1.0e+20, high: 1.0e+21}\n")
    ended = command(*words, "--quiet", before=FORKED)
    assert ended.code == 1
    assert "no trial has succeeded: " in ended.line
    assert "not finite" in ended.line
    assert [state for *_, state in states(tmp_path / "out")] == ["failed"] * 3  # then it stops


@pytest.mark.extras
def test_settings_that_were_tried_are_not_trained_again(command, tmp_path):
    words = asked(tmp_path, tmp_path / "out", trials=5)
    (tmp_path / "space.yaml").write_text("keep: [last, robust]\n")
    ended = command(*words, before=FORKED)
    assert ended.code == 0, ended.err
    found = [state for *_, state in states(tmp_path / "out")]
    assert (found.count("complete"), found.count("failed")) == (2, 3)
    assert "failed: it has the same settings as trial 0" in ended.out


@pytest.mark.extras
def test_a_folder_of_something_else_is_refused(tmp_path, command):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    ended = command("sweep", "pgd-at", "--data", "digits", "--out", tmp_path / "out")
    assert (ended.code, "is not the folder of a sweep" in ended.line) == (2, True)
    ended = command("sweep", "pgd-at", "reserve=0", "--out", tmp_path / "other", "--trials", 0)
    assert (ended.code, "--trials must be at least 1" in ended.line) == (2, True)


@pytest.mark.extras
def test_a_sweep_that_is_stopped_saves_and_shows_the_front_so_far(command, tmp_path):
    running = command.start(*asked(tmp_path, tmp_path / "out"), before=FORKED)
    running.reaches("1/4")
    time.sleep(0.05)
    running.signal(signal.SIGTERM)
    ended = running.wait()
    assert ended.code == 1
    assert "SIGTERM: stopped; " in ended.err
    assert re.search("Front of [1-3] trials", ended.out)


@pytest.mark.extras
def test_a_dry_run_shows_space_cost_and_first_settings_and_writes_nothing(
    command, swept, tmp_path
):
    ended = command(*asked(tmp_path, tmp_path / "out", "--dry-run"))
    assert ended.code == 0, ended.err
    assert "lr                       0.01 to 0.3, logarithmic" in ended.out
    assert "4 runs, 0 of them done" in ended.out
    assert f"{states(swept[0])[0][1]['lr']:.3g}" in ended.out
    assert not (tmp_path / "out").exists()


@pytest.mark.extras
def test_the_test_images_change_nothing(command, tmp_path):
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 256, (300, 8, 8), np.uint8), np.arange(300) % 5
    results = []
    for i, test in enumerate(
        (rng.integers(0, 256, (50, 8, 8), np.uint8), np.zeros((9, 8, 8), np.uint8))
    ):
        np.savez(
            tmp_path / "own.npz",
            x_train=x,
            y_train=y,
            x_test=test,
            y_test=np.arange(len(test)) % 5,
        )
        words = [
            word
            for word in asked(tmp_path, tmp_path / f"out{i}", trials=2)
            if word != "data=digits"
        ]
        ended = command(*words, "eps=0.1", "--data", tmp_path / "own.npz", before=FORKED)
        assert ended.code == 0, ended.err
        results.append(states(tmp_path / f"out{i}"))
    assert results[0] == results[1]
