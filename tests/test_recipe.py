"""Recipes: there and back, overridden, and refused with every error at once."""

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from blobs import SCHEDULED
from equipoise.attacks import PGD
from equipoise.cli.listing import write_settings
from equipoise.data import load
from equipoise.errors import UserError
from equipoise.objectives.friendly import FAT
from equipoise.objectives.trades import TRADES
from equipoise.parsing import number
from equipoise.settings import recipe
from equipoise.settings.earlier import horizon_of
from equipoise.settings.methods import METHODS, Scheduled, learners
from equipoise.settings.recipe import (
    Recipe,
    combine,
    defaults,
    overrides,
    parse,
    read,
)
from equipoise.settings.schema import differences
from equipoise.threat import L2, Linf
from equipoise.training import Fixed, Never, Stable, Threshold


def base_of(method: str) -> dict[str, Any]:
    return {"method": method} if method else SCHEDULED


def refused(*items: str, method: str = "") -> str:
    with pytest.raises(UserError) as error:
        parse(combine(base_of(method), overrides(list(items))))
    message = str(error.value)
    assert "\n" not in message
    return message


def given(*items: str, method: str = "") -> Recipe:
    return parse(combine(base_of(method), overrides(list(items))))


def having(setting: str) -> str:
    """Return the objectives that have a setting, as a message lists them."""
    kinds = learners().items()
    return ", ".join(name for name, kind in kinds if setting in {f.name for f in fields(kind)})


# There and back


@pytest.mark.parametrize("method", METHODS)
def test_every_method_builds_and_its_defaults_come_back(method, tmp_path):
    one = parse({"method": method})
    built = one.settings.build(Linf(0.1))
    assert set(built.knots) <= set(built.learners)
    assert one.settings == METHODS[method]()
    path = tmp_path / "recipe.yaml"
    path.write_text(one.to_yaml())
    other = parse(read(path))
    assert other == one
    assert other.to_dict() == one.to_dict()
    assert parse({"method": method, **defaults(method)}) == one


@pytest.mark.parametrize(
    "items",
    [
        ("eps=8/255", "rounds=7", "gamma=[1, 0.5]", "every=none", "robust.lr=1e-2"),
        ("start.rule=threshold", "start.threshold=0.25", "start.patience=5"),
        ("start.rule=threshold", "start.threshold.clean=0.3", "start.threshold.robust=1.2"),
        ("start=4",),
        ("start=never", "attack.steps=3", "attack.step_size=2/255", "attack.restarts=2"),
        (
            "clean.lr_at=none",
            "clean.lr_factors=[1, 0.1]",
            "keep=last",
            "limit=500",
            "norm=l2",
            "eps=1",
        ),
    ],
)
def test_what_was_asked_for_comes_back(items, tmp_path):
    one = given(*items)
    path = tmp_path / "recipe.yaml"
    path.write_text(one.to_yaml())
    other = parse(read(path))
    assert other == one
    assert differences(one.to_dict(), other.to_dict()) == []
    assert one != given()


def test_a_recipe_is_fully_resolved():
    plain = given().to_dict()
    assert set(plain) >= {f.name for f in fields(Recipe)} - {"settings"}
    assert plain["start"] == {
        "rule": "stable",
        "window": 3,
        "ratio": 0.1,
        "deadline": 0.6,
        "losses": "held-out",
    }
    assert plain["robust"]["attack"]["steps"] == 10
    assert plain["robust"]["objective"] == "pgd-at"
    assert plain["robust"]["lr"] == 0.05
    yaml.safe_dump(plain)  # nothing in it but plain values


# Overrides


def test_fractions_and_numbers_are_numbers():
    one = given("eps=8/255", "robust.lr=1e-2", "rounds=9", "attack.step_size=.5/255")
    assert one.eps == 8 / 255
    assert one.settings.robust.lr == 0.01
    assert one.rounds == 9
    assert one.settings.robust.attack.step_size == 0.5 / 255
    assert given("gamma=[1, 1/2, .25]").settings.gamma == (1.0, 0.5, 0.25)
    assert given("every=none").settings.every is None


def test_fractions_in_yaml_too(tmp_path):
    (tmp_path / "r.yaml").write_text("method: pgd-at\neps: 8/255\nrobust: {lr: 1/20}\n")
    one = parse(read(tmp_path / "r.yaml"))
    assert one.eps == 8 / 255
    assert one.settings.robust.lr == 0.05


def test_later_layers_win_group_by_group():
    base = {"method": "a3gt", "robust": {"lr": 0.1, "momentum": 0.5}, "rounds": 3}
    one = parse(combine(base, {"rounds": 4}, overrides(["robust.lr=0.2", "clean.lr=0.3"])))
    assert one.rounds == 4
    assert one.settings.robust.lr == 0.2
    assert one.settings.robust.momentum == 0.5
    assert one.settings.clean.lr == 0.3
    assert one.settings.clean.momentum == 0.9
    assert base == {"method": "a3gt", "robust": {"lr": 0.1, "momentum": 0.5}, "rounds": 3}


@pytest.mark.parametrize("item", ["rounds", "=3", "", "--rounds"])
def test_overrides_are_key_and_value(item):
    with pytest.raises(UserError, match="expected key=value"):
        overrides([item])


def test_a_value_is_no_group():
    with pytest.raises(UserError, match="both as a value and as a group"):
        overrides(["robust=3", "robust.lr=2"])
    assert "robust is a group of settings" in refused("robust=3")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("8/255", 8 / 255),
        (" 1 / 4 ", 0.25),
        ("1e-3", 0.001),
        ("1E3", 1000.0),
        (".5", 0.5),
        ("-2", -2),
        ("none", None),
        ("Null", None),
        ("true", True),
        ("[1, .4]", [1, 0.4]),
        ("mnist", "mnist"),
        ("8/0", "8/0"),
        ("a/b.npz", "a/b.npz"),
    ],
)
def test_values_as_people_write_them(text, value):
    found = number(text)
    assert found == value
    assert type(found) is type(value)


# The rule for t'


def test_start_may_be_a_name_a_round_or_a_part():
    assert given("start=never").settings.start == Never()
    assert given("start=threshold").settings.start == Threshold()
    assert given("start=8").settings.start == Fixed(round=8)
    assert given("start=0.5").settings.start == Fixed(fraction=0.5)
    assert given("start=5/8").settings.start == Fixed(fraction=0.625)
    assert given().settings.start == Stable()


def test_changing_the_rule_takes_the_defaults_of_that_rule():
    one = given("start.rule=threshold", "start.patience=7")
    assert one.settings.start == Threshold(patience=7)
    assert given("start.window=5").settings.start == Stable(window=5)
    assert given("start.rule=fixed", "start.round=3", method="a3gt-paper").settings.start == Fixed(
        round=3
    )
    assert given("start.threshold=0.2", method="a3gt-paper").settings.start == Threshold(
        threshold=0.2
    )


def test_settings_of_another_rule_are_unknown():
    message = refused("start.threshold=0.3")  # the rule is still "stable"
    assert "start.threshold" in message
    message = refused("start.rule=threshold", "start.widow=3")
    assert "start.widow" in message
    assert "did you mean 'threshold'?" in refused("start=treshold")
    assert "did you mean 'stable'?" in refused("start.rule=stabel")


def test_a_start_that_cannot_be_meant_is_refused():
    assert "start.round" in refused("start=50", "rounds=20")
    assert "start" in refused("start=0")
    assert "start" in refused("start=1.5")
    assert "start" in refused("start=[1, 2]")
    assert "start.window" in refused("start.window=0")


@pytest.mark.parametrize("thresholds", [["clean"], ["clean", "rubost"], ["robust", "other"]])
def test_thresholds_for_each_learner_are_checked_before_anything_starts(thresholds):
    items = [f"start.threshold.{name}=0.3" for name in thresholds]
    assert "threshold" in refused("start.rule=threshold", *items)


# Errors


def test_all_errors_come_at_once_with_the_nearest_names():
    message = refused(
        "eps=8",
        "rouds=3",
        "robust.lrr=0.1",
        "robust.lr=-1",
        "data=minst",
        "model=resnet-19",
        "norm=linff",
        "keep=bset",
        "validation_attack=pdg-10",
        "rounds=0",
    )
    expected = (
        "8/255",
        "did you mean rounds?",
        "robust.lrr",
        "did you mean robust.lr?",
        "lr must be a finite number > 0, got -1",
        "did you mean 'mnist'?",
        "did you mean 'resnet-18'?",
        "norm",
        "keep",
        "did you mean 'pgd'?",
        "rounds must lie in [1, 10000000]",
    )
    assert [text for text in expected if text not in message] == []


def test_an_unknown_method_is_refused_with_the_nearest():
    assert "did you mean 'a3gt'?" in refused(method="a3tg")
    assert "did you mean 'pgd-at'?" in refused(method="pgdat")
    with pytest.raises(UserError, match="no method"):
        parse({})
    assert "unknown method" in refused(method=["a3gt"])


@pytest.mark.parametrize(
    ("items", "text"),
    [
        (["eps=8"], "did you mean 8/255"),
        (["eps=-0.1"], "eps"),
        (["eps=.nan"], "eps"),
        (["eps=nan"], "eps"),
        (["eps=.inf"], "eps"),
        (["eps=big"], "eps"),
        (["robust.lr=.nan"], "lr"),
        (["robust.lr=-0.1"], "lr"),
        (["robust.lr=0"], "lr"),
        (["robust.lr=fast"], "robust.lr"),
        (["clean.momentum=-1"], "momentum"),
        (["clean.weight_decay=.nan"], "weight_decay"),
        (["robust.lr_factors=[1, .nan]"], "finite"),
        (["robust.lr_factors=[1, -1]", "robust.lr_at=none"], "factor"),
        (["robust.lr_factors=[]"], "at least one"),
        (["robust.lr_factors=[1, 2]"], "place"),  # lr_at has four
        (["rounds=1.5"], "rounds"),
        (["rounds=.nan"], "rounds"),
        (["rounds=many"], "rounds"),
        (["rounds=-1"], "rounds"),
        (["batch_size=0"], "batch_size"),
        (["seed=-1"], "seed"),
        (["limit=0"], "limit"),
        (["validation=0"], "validation"),
        (["width=0"], "width"),
        (["width=.nan"], "width"),
        (["width=.inf"], "width"),
        (["attack.steps=0"], "steps"),
        (["attack.steps=2.5"], "attack.steps"),
        (["attack.step_size=-1"], "step_size"),
        (["attack.start=randm"], "attack.start"),
        (["attack.loss=xent"], "attack.loss"),
        (["gamma=[1, 2]"], "gamma"),
        (["gamma=[1, .nan]"], "gamma"),
        (["gamma=[]"], "gamma"),
        (["horizon=.inf"], "horizon"),
        (["horizon=-0.1"], "horizon"),
        (["every=0"], "every"),
        (["every=1.5"], "every"),
        (["anchor=middle"], "anchor"),
        (["batchnorm=estimated"], "batchnorm"),
        (["device=gpu"], "device"),
        (["validation_attack=pgd-0"], "steps"),
        (["validation_attack=pgd-20(restrats=2)"], "restrats"),
        (["validation_attack=pgd-20(start=randm)"], "start"),
        (["validation_attack=pgd-20(restarts=1.5)"], "restarts"),
        (["validation_attack=mi-fgsm-5", "norm=l1"], "l1"),
        (["data=x.pdf"], "dataset"),
        (["foo.bar=3"], "foo"),
    ],
)
def test_what_cannot_be_meant_is_refused(items, text):
    assert text in refused(*items)


def test_a_setting_of_another_method_is_unknown_here():
    assert "gamma" in refused("gamma=[1]", method="standard")
    assert "robust" in refused("robust.lr=0.1", method="standard")
    assert "start" in refused("start=3", method="pgd-at")


def test_the_path_of_an_npz_is_a_data_set():
    assert given("data=a/b.npz").data == "a/b.npz"


# Files


def test_files_that_are_no_recipes_are_refused(tmp_path):
    with pytest.raises(UserError, match="no recipe at"):
        read(tmp_path / "nothing.yaml")
    for name, text in (("list", "- a\n- b\n"), ("empty", ""), ("text", "hello")):
        (tmp_path / name).write_text(text)
        with pytest.raises(UserError, match="expected a mapping"):
            read(tmp_path / name)
    (tmp_path / "broken").write_text("a: [1, 2\nb: }")
    with pytest.raises(UserError, match="cannot read the recipe") as error:
        read(tmp_path / "broken")
    assert "\n" not in str(error.value)
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\x00\x9f")
    with pytest.raises(UserError, match="cannot read the recipe"):
        read(tmp_path / "bytes")
    with pytest.raises(UserError, match="cannot read the recipe"):
        read(tmp_path)


def test_keys_that_are_no_names_are_unknown(tmp_path):
    (tmp_path / "r.yaml").write_text("method: a3gt\n3: 4\ntrue: 1\n")
    with pytest.raises(UserError, match="unknown setting '3'"):
        parse(read(tmp_path / "r.yaml"))


def test_differences_are_named():
    one, other = given("robust.lr=0.1"), given("robust.lr=0.2", "rounds=3")
    assert differences(one.to_dict(), other.to_dict()) == [
        "robust.lr: 0.1 there, 0.2 here",
        "rounds: 20 there, 3 here",
    ]


# Methods and their settings


def test_the_readings_of_the_papers_are_the_defaults_of_their_methods():
    paper = parse({"method": "a3gt-paper"}).settings
    assert isinstance(paper, Scheduled)
    assert (paper.anchor, paper.count, paper.inclusive) == ("clock", "rounds", False)
    assert (paper.gamma, paper.every) == ((1.0, 1.0, 1.0, 0.4), 5)
    assert paper.start == Threshold()
    generalist = parse({"method": "generalist"}).settings
    assert isinstance(generalist, Scheduled)
    assert (generalist.source, generalist.granularity) == ("average", "step")
    assert generalist.start == Fixed(fraction=0.625)
    assert generalist.inclusive
    assert paper.robust.attack == generalist.robust.attack == PGD(steps=10, keep="last")


@pytest.mark.parametrize("method", METHODS)
def test_the_settings_of_a_method_are_listed_with_their_defaults(method, capsys):
    write_settings(method)
    listed = capsys.readouterr().out
    for name, value in defaults(method).items():
        assert f"{name}:" in listed
        if isinstance(value, dict):
            assert all(f"{key}:" in listed for key in value)
    text = listed[listed.index("method: ") :]
    assert parse(yaml.safe_load(text)) == parse({"method": method})


def test_settings_of_an_unknown_method_are_refused():
    with pytest.raises(UserError, match="did you mean 'generalist'"):
        write_settings("generalis")


def test_every_setting_is_documented():
    for method, row in METHODS.items():
        for settings in (row(), *row().learners.values()):
            names = [f.name for f in fields(settings)]
            documented = "".join(base.__doc__ or "" for base in type(settings).__mro__)
            assert [name for name in names if f"{name}:" not in documented] == [], method
    names = [f.name for f in fields(Recipe)]
    assert [name for name in names if f"{name}:" not in (recipe.Recipe.__doc__ or "")] == []


@pytest.mark.parametrize(
    ("words", "remedy"),
    [
        (["a3gt", "alpha=0.995", "data=cifar10"], "S = 382 steps a round: horizon=0.52356"),
        (
            ["pgd-at", "alpha=0.9", "limit=500", "validation=100"],
            "S = 3 steps a round: horizon=3.3",
        ),
        (["generalist", "alpha=0"], "horizon=0"),
        (
            ["mix-at", "alpha=0.99", "data=own.npz"],
            "1/((1 - alpha) S) with S steps a round (0: no",
        ),
        (["mix-at", "alpha=much"], "1/((1 - alpha) S) with S steps a round (0: no"),
    ],
)
def test_a_decay_a_step_is_answered_with_its_horizon(words, remedy):
    message = refused(*words[1:], method=words[0])
    assert message.startswith("alpha is given as the averaging horizon in rounds, horizon = ")
    assert remedy in message


def test_the_remedy_is_the_same_decay():
    given = parse({"method": "a3gt", "data": "cifar10"})
    assert given.steps == 49_000 // 128
    for decay in (0.9, 0.995, 0.999):
        merge = replace(given.settings, horizon=horizon_of(decay, given.steps))
        assert merge.decay(given.steps) == pytest.approx(decay, rel=1e-12)


def test_the_steps_of_a_round_are_known_without_the_data():
    for changed in ({}, {"limit": 300}, {"validation": 60}, {"limit": 100, "batch_size": 200}):
        given = parse({"method": "standard", **changed})
        if "batch_size" in changed:
            assert given.steps == 1
            continue
        split = given.split(load("digits"), torch.device("cpu"))
        assert given.steps == len(split.train) // given.batch_size
    assert parse({"method": "standard", "data": "own.npz"}).steps is None


@pytest.mark.parametrize("path", sorted(Path("recipes").rglob("*.yaml")), ids=str)
def test_recipes_of_the_project_are_valid(path):
    assert parse(read(path)).rounds > 0


def test_a_key_given_twice_is_not_dropped_in_silence(tmp_path):
    (tmp_path / "r.yaml").write_text("method: a3gt\nrobust: {lr: 0.1}\nrobust: {momentum: 0}\n")
    with pytest.raises(UserError, match=r"'robust' is given twice \(lines 2 and 3\)"):
        read(tmp_path / "r.yaml")


# Learners by objective


def test_a_learner_may_have_any_objective():
    one = given("robust.objective=trades", "robust.beta=3")
    assert one.settings.robust == TRADES(beta=3.0)
    assert one.settings.robust.attack.start == "noise"  # the objective's own default
    assert given("robust=fat", "tau=1").settings.robust == FAT(tau=1)
    robust = one.settings.build(Linf(0.1)).learners["robust"]
    assert isinstance(robust, TRADES)
    assert robust.beta == 3


def test_settings_of_a_learner_may_stand_at_the_top():
    short, long = (
        given("beta=2", "attack.steps=4", method="trades"),
        given("robust.beta=2", "robust.attack.steps=4", method="trades"),
    )
    assert short == long
    assert given("lr=0.2", method="standard").settings.clean.lr == 0.2
    assert given("precision=bfloat16").precision == "bfloat16"
    both = given("lr=0.2").settings
    assert (both.clean.lr, both.robust.lr) == (0.2, 0.2)
    assert "did you mean beta?" in refused("bta=3", method="trades")


@pytest.mark.parametrize(
    ("layers", "beta"),
    [
        (({"beta": 3}, {"robust": {"beta": 5}}), 5),
        (({"robust": {"beta": 5}}, {"beta": 3}), 3),
        (({"robust": "trades", "beta": 4}, {"robust": {"lr": 0.1}}), 4),
        (({"beta": 3}, {"beta": 2}), 2),
    ],
)
def test_later_layers_win_in_either_form(layers, beta):
    one = parse(combine({"method": "trades"}, *layers))
    assert one.settings.robust.beta == beta


def test_what_is_given_twice_is_refused():
    assert "beta is given twice" in refused("beta=3", "robust.beta=4", method="trades")
    with pytest.raises(UserError, match="lr is given twice: as 1 and as '2'"):
        overrides(["lr=1", "lr=2"])


@pytest.mark.parametrize(
    ("method", "item", "words"),
    [
        ("pgd-at", "beta=3", f"only {having('beta')} have it"),
        ("pgd-at", "joint=true", f"only {having('joint')} have it"),
        ("standard", "awp=0.1", "only robust learners have it"),
        ("standard", "robust.lr=1", "this method has no robust learner"),
        ("a3gt", "more.l2=tradez", "did you mean 'trades'?"),
        ("trades", "lr_factors=[1, 0.1]", "lr_at=none spreads them evenly"),
        ("fat", "tau=[0, 1]", "tau_at=none spreads them evenly"),
        ("generalist", "more.l2=trades", "for instance gamma=[1, 0.4] more_gamma.l2=[0, 0.3]"),
        ("pgd-at", "robust.eps=8", "robust: eps must lie in [0, 1], got 8; did you mean 8/255?"),
    ],
)
def test_messages_have_the_remedy(method, item, words):
    assert words in refused(item, method=method)


def test_all_that_is_wrong_with_options_is_said_at_once():
    message = refused("awp=-1", "cutmix=2", "awp_from=3", method="pgd-at")
    assert all(word in message for word in ("awp must", "cutmix must", "awp_from must"))


def test_further_learners_have_short_forms_too():
    long = ("more.l2.objective=trades", "more.l2.norm=l2", "more.l2.eps=1", "more_gamma.l2=[0]")
    assert given("more.l2=trades", *long[1:]) == given(*long)


def test_every_objective_suits_a_learner_of_several():
    for name, kind in learners().items():
        if name not in ("standard", "corrupted"):
            one = given(f"robust={name}")
            assert type(one.settings.robust) is kind
            assert parse(one.to_dict()) == one
            new = given(f"trunk={name}", f"robust={name}", "clean=mix-at", method="a3gt")
            assert type(new.settings.trunk) is type(new.settings.robust) is kind
            assert parse(new.to_dict()) == new


def test_three_learners_with_threats_of_their_own(tmp_path):
    items = ("more.l2.objective=trades", "more.l2.norm=l2", "more.l2.eps=1.5")
    one = given(*items, "more_gamma.l2=[0, 0, 0, 0.3]", "more.l2.beta=2")
    path = tmp_path / "r.yaml"
    path.write_text(one.to_yaml())
    assert parse(read(path)) == one
    method = one.settings.build(Linf(0.1))
    assert list(method.learners) == ["clean", "robust", "l2"]
    assert method.learners["robust"].state.threat == Linf(0.1)
    assert method.learners["l2"].state.threat == L2(1.5)
    assert one.settings.more["l2"].beta == 2
    for t in range(1, 13):
        weights = method.weights(t, 12, 4)
        assert sum(weights.values()) == pytest.approx(1)
    assert method.weights(12, 12, 4) == pytest.approx({"clean": 0.3, "robust": 0.4, "l2": 0.3})


@pytest.mark.parametrize(
    ("items", "words"),
    [
        (("more.l2.norm=l2", "more.l2.eps=1"), "more_gamma must name a weight"),
        (("more.l2.norm=l2", "more_gamma.l2=[0]"), "needs a radius of its own"),
        (("more.l2.eps=1", "more_gamma.l2=[0.5]"), "sum to at most 1"),
        (("more.clean.eps=1", "more_gamma.clean=[0]", "gamma=[0.5]"), "other than clean"),
        (("more.l2.bta=1", "more_gamma.l2=[0]"), "unknown setting 'more.l2.bta'"),
        (("robust=tradse",), "did you mean 'trades'?"),
        (("robust.objective=trades", "robust.beta=-1"), "beta must be a finite number"),
        (("robust.objective=trades", "robust.tau=1"), "unknown setting 'robust.tau'"),
        (("robust=fat", "robust.tau=-1"), "tau must be"),
        (("robust=yopo", "robust.awp=0.01"), "awp does not fit"),
        (("robust=sat", "robust.cutmix=0.5"), "cutmix does not fit"),
        (("robust.cutmix=2",), "cutmix must lie in [0, 1]"),
    ],
)
def test_what_cannot_be_meant_of_learners_is_refused(items, words):
    assert words in refused(*items)


@pytest.mark.parametrize("name", ["trades", "mart", "fat-trades", "fat-mart", "sat"])
def test_who_begins_beside_the_image(name):
    one = given(method=name).settings
    assert one.robust.attack == PGD(steps=10, start="noise", keep="last")
    assert one.robust.joint
    assert hasattr(one.robust, "tau") == name.startswith("fat")


def test_a_single_guided_step_begins_at_random_signs():
    one = given("beta=5", method="gat").settings
    attack = {"steps": 1, "step_factor": 1, "start": "signs", "keep": "last"}
    assert one.robust.attack == PGD(**attack, norms=("linf", "l2"))
    assert one.robust.beta == 5
    assert "gat" in given("robust=gat", "robust.beta=5").settings.robust.objective


def test_friendly_training_begins_anywhere():
    one = given(method="fat").settings.robust
    assert one.attack == PGD(steps=10, keep="last")
    assert (one.budgets, one.noise) == ((0, 1, 2), 0.001)


def test_a_method_of_one_objective_keeps_it():
    assert "unknown objective 'mart'" in refused("robust=mart", method="trades")
