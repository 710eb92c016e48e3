"""Presets: what is published, checked against the numbers of the papers' codes."""

import os
from pathlib import Path

import pytest
import yaml

from equipoise.cli.listing import write_presets
from equipoise.errors import UserError
from equipoise.models import MODELS
from equipoise.objectives import Objective, Robust
from equipoise.objectives.friendly import Friendly
from equipoise.objectives.gat import GAT
from equipoise.objectives.trades import TRADES
from equipoise.parsing import number
from equipoise.settings import recipe
from equipoise.settings.methods import METHODS
from equipoise.settings.presets import DATA, Preset, presets, published
from equipoise.settings.recipe import Recipe, combine, overrides, parse
from equipoise.training.method import Method
from equipoise.training.start import Fixed, Stable, Threshold

EVERY = [preset for data in DATA for preset in presets(data)]
IDS = [f"{preset.data}-{preset.method}" for preset in EVERY]


def trained(preset: Preset, *items: str) -> Recipe:
    given = {"method": preset.method, "data": preset.data}
    return parse(preset.under(combine(given, overrides(list(items)))))


def built(method: str, data: str, *items: str) -> Method:
    one = trained(published(method, data), *items)
    return one.settings.build(one.threat(0.1))


def learner(method: str, data: str) -> Objective:
    learners = built(method, data).learners
    return learners.get("robust") or learners["clean"]


def friendly(method: str, data: str) -> Friendly:
    objective = learner(method, data)
    assert isinstance(objective, Friendly)
    return objective


def rates(method: str, data: str, name: str = "") -> list[float]:
    """Return the learning rate of the first, a middle and the last step of each epoch, if one."""
    rounds = trained(published(method, data)).rounds
    spec = built(method, data).learners[name] if name else learner(method, data)
    found = []
    for t in range(rounds):
        of_round = [
            spec.step_size * spec.schedule((t + step / 389) / rounds) for step in (0, 200, 388)
        ]
        assert of_round == pytest.approx([of_round[0]] * 3)
        found.append(of_round[0])
    return found


def steps(*parts: tuple[int, float]) -> list[float]:
    """Return a learning rate for each epoch: so many of each."""
    return [rate for epochs, rate in parts for _ in range(epochs)]


# All of them


def test_every_data_set_has_presets_of_the_same_methods():
    first, *others = [[preset.method for preset in presets(data)] for data in DATA]
    assert all(methods == first for methods in others)
    assert first == [name for name in METHODS if name in first]
    assert len(first) >= 14


@pytest.mark.parametrize("preset", EVERY, ids=IDS)
def test_a_preset_is_a_recipe_with_a_source(preset):
    one = trained(preset)
    method = one.settings.build(one.threat(0.1))
    assert (one.method, one.data, one.model) == (preset.method, preset.data, "resnet-18")
    assert one.eps == (0.3 if preset.data == "mnist" else 8 / 255)
    for sentence in (preset.source, *preset.deviations):
        assert len(sentence) > 20
        assert sentence.endswith(".")
        assert "\n" not in sentence
    for spec in method.learners.values():
        assert spec.momentum == 0.9
        assert not spec.nesterov
    assert parse(one.to_dict()) == one


@pytest.mark.parametrize("preset", EVERY, ids=IDS)
def test_a_preset_says_nothing_that_no_setting_takes_up(preset):
    """What the file says is what the recipe has: no key is lost, no fraction stays text."""

    def compare(said, has, path):
        for key, value in said.items():
            if isinstance(value, dict):
                compare(value, has[key], f"{path}{key}.")
            else:
                wanted = [number(v) for v in value] if isinstance(value, list) else value
                found = has[key] if isinstance(value, list) else [has[key]]
                wanted = wanted if isinstance(value, list) else [number(value)]
                assert found == wanted, f"{path}{key}"

    compare(preset.settings, trained(preset).to_dict(), "")


@pytest.mark.parametrize("preset", EVERY, ids=IDS)
def test_the_step_of_the_inner_attack_is_absolute(preset):
    attacks = [
        objective.attack
        for objective in trained(preset).settings.learners.values()
        if isinstance(objective, Robust)
    ]
    expected = {"cifar10": (0.007, 2 / 255, 0.00784), "svhn": (1 / 255,), "mnist": (0.01,)}
    whole = (trained(preset).eps,) if preset.method == "gat" else ()  # a single step
    assert all(attack.step_size in (whole or expected[preset.data]) for attack in attacks)
    searching = {"standard": 0, "a3gt": 2}  # trunk and robust branch
    assert len(attacks) == searching.get(preset.method, 1)


def test_models_and_sources_that_sentences_name_exist():
    text = " ".join(sentence for preset in EVERY for sentence in preset.deviations)
    named = {part.split(")")[0] for part in text.split("(model=")[1:]}
    assert named == {"preact-resnet-18", "small-cnn"}
    assert named <= set(MODELS)


# Published facts


@pytest.mark.parametrize(
    ("method", "data", "expected"),
    [
        ("standard", "cifar10", steps((100, 0.1), (50, 0.01), (50, 0.001))),
        ("pgd-at", "cifar10", steps((100, 0.1), (5, 0.01), (5, 0.001))),
        ("pgd-at", "svhn", steps((100, 0.01), (50, 0.001), (50, 0.0001))),
        # "epoch >= 75" in epochs that count from 1: 74 epochs before the drop, two after it
        ("trades", "cifar10", steps((74, 0.1), (2, 0.01))),
        ("trades", "svhn", steps((74, 0.01), (2, 0.001))),
        ("trades", "mnist", steps((54, 0.01), (20, 1e-3), (15, 1e-4), (11, 1e-5))),
        ("mart", "cifar10", steps((74, 0.01), (15, 1e-3), (10, 1e-4), (21, 1e-5))),
        ("fat", "cifar10", steps((59, 0.1), (30, 0.01), (20, 1e-3), (11, 5e-4))),
        ("fat-trades", "cifar10", steps((74, 0.1), (11, 0.01))),
        ("fat-mart", "cifar10", steps((59, 0.1), (30, 0.01), (1, 0.001))),
        ("iat", "cifar10", steps((100, 0.1), (50, 0.01), (50, 0.001))),
        # "epoch in [70, 85]" at the end of epochs that count from 0
        ("gat", "cifar10", steps((71, 0.1), (15, 0.01), (14, 0.001))),
        ("gat", "mnist", steps((26, 0.01), (24, 0.002))),
        ("sat", "cifar10", steps((74, 0.1), (15, 0.01), (10, 1e-3), (1, 1e-4))),
        ("yopo", "cifar10", steps((30, 0.04), (4, 0.004), (2, 4e-4))),
        ("yopo", "svhn", steps((30, 0.004), (4, 4e-4), (2, 4e-5))),
        ("yopo", "mnist", steps((30, 0.002), (5, 2e-4), (4, 2e-5), (1, 2e-6))),
        # half of a sum: twice the learning rate of 0.05 (CIFAR-10) and 0.1 (MNIST)
        ("mix-at", "cifar10", steps((75, 0.1), (15, 0.01), (10, 1e-3), (5, 1e-4))),
        ("mix-at", "mnist", steps((50, 0.2), (5, 0.02), (1, 0.002))),
    ],
)
def test_the_learning_rate_of_every_epoch(method, data, expected):
    assert rates(method, data) == pytest.approx(expected)


@pytest.mark.parametrize("data", DATA)
@pytest.mark.parametrize("method", ["generalist", "a3gt-paper"])
def test_the_learners_of_a_merge_follow_the_lines_of_generalist(method, data):
    for spec in built(method, data).learners.values():
        places = (0, 20 / 120, 40 / 120, 60 / 120, 80 / 120, 100 / 120, 1)
        found = [spec.step_size * spec.schedule(place) for place in places]
        expected = [0.01, 0.01, 0.01, 0.0055, 0.001, 0.00055, 0.0001]
        assert found == pytest.approx(expected)
    merge = built(method, data).merge
    paper = method == "a3gt-paper"  # an update every five rounds
    decay, value = (merge.decay(1 / 5), 0.5) if paper else (merge.decay(391), 0.999)
    assert decay == pytest.approx(value, rel=1e-12)
    assert merge.every == 5
    knots = merge.knots()["robust"]
    assert [knots(t / 120) for t in (1, 40, 80, 100, 120)] == pytest.approx([1, 1, 1, 0.7, 0.4])
    decay = {name: spec.weight_decay for name, spec in built(method, data).learners.items()}
    assert decay == {"clean": 5e-4, "robust": 3.5e-3}


def test_the_rules_for_the_start_of_a_merge():
    starts = {m: built(m, "cifar10").merge.start for m in ("generalist", "a3gt-paper")}
    assert starts["generalist"] == Fixed(fraction=75 / 120)
    assert starts["generalist"]({"clean": [], "robust": []}, 120).round == 75
    assert starts["a3gt-paper"] == Threshold(threshold=0.5, patience=3)


@pytest.mark.parametrize(
    ("method", "ends", "scale"),
    [
        ("fat", {50: 0, 90: 1, 120: 2}, 4),
        ("fat-trades", {30: 0, 50: 1, 70: 2, 85: 3}, 4),
        ("fat-mart", {20: 0, 40: 1, 60: 2, 80: 3, 90: 4}, 4),
    ],
)
def test_the_budget_of_friendly_training_in_every_epoch(method, ends, scale):
    rounds = max(ends)
    expected = [min(b for last, b in ends.items() if t <= last) for t in range(1, rounds + 1)]
    for data in ("cifar10", "svhn"):
        tau = friendly(method, data).budget
        for at in (0.0, 0.999):
            assert [tau((t - 1 + at) / rounds) for t in range(1, rounds + 1)] == expected
    tau = friendly(method, "mnist").budget
    assert [tau((t - 1) / rounds) for t in range(1, rounds + 1)] == [scale * b for b in expected]


def test_the_weight_of_gat_in_every_epoch():
    for data, rounds, parts in (("cifar10", 100, ((86, 10), (14, 40))),
                                ("mnist", 50, ((26, 15), (24, 45)))):  # fmt: skip
        objective = learner("gat", data)
        assert isinstance(objective, GAT)
        found = [objective.weight((t + 0.5) / rounds) for t in range(rounds)]
        assert found == pytest.approx(steps(*parts))


@pytest.mark.parametrize(
    ("method", "data", "name", "value"),
    [
        ("trades", "cifar10", "beta", 6),
        ("trades", "mnist", "beta", 1),
        ("mart", "cifar10", "beta", 5),
        ("fat", "cifar10", "omega", 0.001),
        ("fat-trades", "cifar10", "beta", 6),
        ("fat-mart", "cifar10", "beta", 6),
        ("gat", "cifar10", "beta", 10),
        ("gat", "mnist", "beta", 15),
        ("sat", "cifar10", "beta", 6),
        ("sat", "cifar10", "memory", 0.9),
        ("sat", "cifar10", "onset", 69 / 100),  # from epoch 70 on
        ("iat", "cifar10", "mixup", 1),
        ("yopo", "cifar10", "replays", 5),
        ("yopo", "mnist", "replays", 5),
        ("mix-at", "cifar10", "weight", 0.5),
    ],
)
def test_the_settings_of_an_objective(method, data, name, value):
    assert getattr(learner(method, data), name) == value


@pytest.mark.parametrize(
    ("method", "data", "decay", "batch", "attack"),
    [
        ("pgd-at", "cifar10", 5e-4, 128, (10, 2 / 255, "uniform")),
        ("pgd-at", "svhn", 5e-4, 128, (10, 1 / 255, "uniform")),
        ("pgd-at", "mnist", 0, 128, (40, 0.01, "uniform")),
        ("mix-at", "cifar10", 2.5e-4, 256, (10, 2 / 255, "uniform")),
        ("trades", "cifar10", 2e-4, 128, (10, 0.007, "noise")),
        ("trades", "mnist", 0, 128, (40, 0.01, "noise")),
        ("mart", "cifar10", 3.5e-3, 128, (10, 0.007, "noise")),
        ("fat", "cifar10", 2e-4, 128, (10, 0.007, "uniform")),
        ("fat-trades", "cifar10", 2e-4, 128, (10, 0.007, "noise")),
        ("fat-mart", "cifar10", 2e-4, 128, (10, 0.007, "noise")),
        ("iat", "cifar10", 2e-4, 128, (7, 0.00784, "uniform")),
        ("yopo", "cifar10", 5e-4, 256, (3, 2 / 255, "uniform")),
        ("yopo", "mnist", 5e-4, 256, (10, 0.01, "uniform")),
        ("gat", "cifar10", 5e-4, 64, (1, 8 / 255, "signs")),
        ("gat", "mnist", 5e-4, 64, (1, 0.3, "signs")),
        ("sat", "cifar10", 2e-4, 128, (10, 0.007, "noise")),
        ("generalist", "cifar10", 3.5e-3, 128, (10, 0.007, "uniform")),
    ],
)
def test_weight_decay_batch_and_attack(method, data, decay, batch, attack):
    spec = learner(method, data)
    assert isinstance(spec, Robust)
    found = spec.attack
    assert spec.weight_decay == decay
    assert trained(published(method, data)).batch_size == batch
    assert (found.steps, found.step_size, found.start) == attack
    assert found.keep == "last"


# What the user gives


def test_what_is_given_lies_over_the_preset():
    one = trained(
        published("trades", "cifar10"), "beta=3", "rounds=38", "attack.steps=2", "eps=0.1"
    )
    robust = one.settings.robust
    assert (robust.beta, robust.attack.steps, one.rounds, one.eps) == (3, 2, 38, 0.1)
    assert (robust.lr, robust.attack.step_size, robust.attack.start) == (0.1, 0.007, "noise")
    assert robust.lr_at == (0, 74 / 76, 74 / 76, 1)  # the same part of a shorter training


def test_what_is_given_is_checked_with_the_preset():
    with pytest.raises(UserError, match="did you mean beta"):
        trained(published("trades", "cifar10"), "bta=3")
    with pytest.raises(UserError, match="a rising place per value"):
        trained(published("trades", "cifar10"), "robust.lr_factors=[1]")


@pytest.mark.parametrize(
    ("items", "start"),
    [
        (("start.fraction=0.5",), Fixed(fraction=0.5)),
        (("start=30",), Fixed(round=30)),
        (("start.rule=stable", "start.window=5"), Stable(window=5)),
        (("start.rule=threshold", "start.threshold=0.7"), Threshold(threshold=0.7)),
    ],
)
def test_another_rule_for_the_start_replaces_that_of_the_preset(items, start):
    assert built("generalist", "cifar10", *items).merge.start == start


def test_the_learner_of_a_merge_may_have_another_objective():
    robust = built("generalist", "cifar10", "robust.objective=trades").learners["robust"]
    assert isinstance(robust, TRADES)
    assert robust.beta == 6
    assert robust.weight_decay == 3.5e-3


def test_a_preset_stays_as_it_is():
    before = yaml.safe_dump(dict(published("trades", "cifar10").settings))
    trained(published("trades", "cifar10"), "beta=3", "robust.lr=1")
    assert yaml.safe_dump(dict(published("trades", "cifar10").settings)) == before


def test_what_has_no_preset_is_refused_with_what_has():
    with pytest.raises(UserError, match="there are for: cifar10, svhn, mnist"):
        published("trades", "digits")
    with pytest.raises(UserError, match="did you mean 'trades'"):
        published("tradse", "cifar10")


# On the terminal


def test_the_table_has_a_row_for_each(capsys):
    write_presets(None)
    shown = capsys.readouterr().out
    rows = [
        line.split() for line in shown.splitlines() if line.split()[:1] and line.split()[0] in DATA
    ]
    assert [(row[0], row[1]) for row in rows] == [(p.data, p.method) for p in EVERY]
    first = next(row for row in rows if row[:2] == ["cifar10", "yopo"])
    assert first[2:5] == ["36", "256", "0.2"]
    assert "equipoise train METHOD --data DATA --published" in shown


@pytest.mark.parametrize("name", ["trades", "generalist", "mnist"])
def test_presets_are_shown_in_full(name, capsys):
    write_presets(name)
    shown = capsys.readouterr().out
    mine = [preset for preset in EVERY if name in (preset.method, preset.data)]
    for preset in mine:
        for sentence in (preset.source, *preset.deviations):
            assert sentence in shown
    assert len(mine) == shown.count("method: ")
    text = shown.split("method: ")[1].split("\n\n")[0]
    assert parse(yaml.safe_load(f"method: {text}")) == trained(mine[0])


def test_presets_of_nothing_are_refused(capsys):
    with pytest.raises(UserError, match="did you mean 'cifar10'"):
        write_presets("cifar")
    assert capsys.readouterr().out == ""


def test_the_command_line_knows_presets(command, tmp_path):
    ended = command("list", "presets", "yopo")
    assert ended.code == 0
    assert ended.out.count("published settings: ") == 3
    ended = command("train", "trades", "--published", "--out", tmp_path / "run")
    assert ended.code == 2
    assert "there are for: cifar10, svhn, mnist" in ended.line
    ended = command("train", "--resume", tmp_path, "--published")
    assert ended.code == 2
    assert "--resume" in ended.line
    assert list(tmp_path.iterdir()) == []


DATA_DIR = Path(os.environ.get("EQUIPOISE_DATA") or "../shared/data").resolve()


@pytest.mark.slow
@pytest.mark.data
@pytest.mark.skipif(not (DATA_DIR / "mnist").is_dir(), reason="the datasets are not here")
def test_a_training_begins_with_its_source(command, tmp_path):
    small = ("model=small-cnn", "rounds=2", "limit=60", "batch_size=16", "attack.steps=1")
    ended = command(
        *("train", "trades", "--published", "--data", "mnist", "--data-dir", DATA_DIR),
        *("--out", tmp_path / "run", "width=0.25", "validation_attack=pgd-1", *small),
    )
    assert ended.code == 0, ended.err
    preset = published("trades", "mnist")
    assert ended.err.index(preset.source) < ended.err.index("validation on ")
    assert all(sentence in ended.err for sentence in preset.deviations)
    written = recipe.read(tmp_path / "run" / "recipe.yaml")
    assert written["robust"]["lr_at"][1] == 54 / 100
    assert (written["robust"]["beta"], written["robust"]["attack"]["steps"]) == (1, 1)
    assert (written["model"], written["keep"], written["eps"]) == ("small-cnn", "last", 0.3)
