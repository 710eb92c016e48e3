"""docs/adding.md is true: its files run as they stand; what they add keeps to the contracts."""

import contextlib
import importlib
import io
import math
import os
import re
import runpy
import shlex
import sys
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import click
import pytest
import torch
import typer

import naive
import test_attacks
import test_methods
import test_models
import test_objective_contract
import test_objectives
import test_recipe
from blobs import SCHEDULED
from equipoise import Linf, UserError, cli, data, evaluate
from equipoise.attacks import ATTACKS, FGSM, parse
from equipoise.data import DATASETS
from equipoise.jobs.train import resume, train
from equipoise.models import MODELS
from equipoise.settings.explanation import explain
from equipoise.settings.methods import METHODS
from equipoise.settings.recipe import Recipe
from equipoise.settings.recipe import parse as recipe
from equipoise.store.runs import Run
from equipoise.terminal.progress import Console
from problems import held_out, small_net
from test_recipe import refused

TEXT = (Path(__file__).parents[1] / "docs" / "adding.md").read_text(encoding="utf-8")
TABLES: tuple[dict[str, Any], ...] = (METHODS, ATTACKS, DATASETS, MODELS)
QUICK = {
    "data": "digits",
    "rounds": 2,
    "width": 0.25,
    "limit": 250,
    "validation": 40,
    "batch_size": 25,
    "validation_attack": "pgd-2",
    "attack": {"steps": 2},
}


class Page(NamedTuple):
    """What the files of the page made."""

    own: ModuleType
    used: dict[str, Any]
    printed: str
    folder: Path


@contextlib.contextmanager
def tables_kept() -> Iterator[None]:
    kept = [dict(table) for table in TABLES]
    try:
        yield
    finally:
        for table, before in zip(TABLES, kept, strict=True):
            table.clear()
            table.update(before)


def written(name: str, folder: Path) -> Path:
    """Write one of the page's files from its blocks."""
    blocks = re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL)
    mine = [block for block in blocks if block.startswith(f"# {name}\n")]
    assert mine
    (folder / name).write_text("\n".join(mine), encoding="utf-8")
    return folder / name


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    folder, before = tmp_path_factory.mktemp("adding"), Path.cwd()
    written("own.py", folder)
    use = written("use.py", folder)
    printed = io.StringIO()
    with tables_kept(), pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        own = importlib.import_module("own")
        os.chdir(folder)
        try:
            with contextlib.redirect_stdout(printed):
                used = runpy.run_path(str(use))
        finally:
            os.chdir(before)
        try:
            yield Page(own, used, printed.getvalue(), folder)
        finally:
            del sys.modules["own"]


def score(**more: Any) -> Recipe:
    return recipe({"method": "score", **QUICK, **more})


# --- the page ---


def test_every_block_belongs_to_a_file():
    blocks = re.findall(r"```python\n(.*?)\n", TEXT)
    assert set(blocks) == {"# own.py", "# use.py"}


def test_the_page_runs_as_it_stands(page):
    runs = {path.name for path in (page.folder / "runs").iterdir()}
    assert runs == {"score", "a3gt-score", "pair", "stripes"}
    assert all(
        Run.open(page.folder / "runs" / r).read_json("summary.json")["finished"] for r in runs
    )
    audited = [line.split() for line in page.printed.splitlines() if line.startswith("attack-")]
    assert len(audited) == 7
    assert {line[1] for line in audited} == {"ok"}
    result = page.used["result"]
    assert result.robust_accuracy == pytest.approx(float(page.printed.splitlines()[-2]))
    assert 0 < result.robust_accuracy < result.clean_accuracy


def test_what_the_page_names_exists():
    root = Path(__file__).parents[1]
    for path in re.findall(r"`(tests/\w+\.py)`", TEXT):
        assert (root / path).is_file(), path
    for path in re.findall(
        r"`(attacks/__init__\.py|objectives/self_adaptive\.py|settings/methods\.py)`", TEXT
    ):
        assert (root / "src" / "equipoise" / path).is_file(), path
    assert {"EVERY", "BY_HAND", "BUDGETS", "NARROW"} <= set(re.findall(r"`([A-Z_]+)`", TEXT))
    for module, name in (
        (test_objective_contract, "EVERY"),
        (test_objectives, "BY_HAND"),
        (test_attacks, "BUDGETS"),
        (test_models, "NARROW"),
    ):
        assert isinstance(getattr(module, name), dict)


def test_the_commands_of_the_page_can_be_given(page):
    begin = "equipoise --import own.py "
    lines = [line for line in TEXT.splitlines() if line.startswith(begin)]
    assert len(lines) >= 4
    group = typer.main.get_command(cli.app)
    for line in lines:
        context = click.Context(group)
        name, command, rest = group.resolve_command(context, shlex.split(line)[3:])
        assert command.make_context(name, rest, parent=context).params


def test_the_file_is_imported_before_a_command(page, command):
    words = "explain score beta=3 --data stripes"
    assert f"equipoise --import own.py {words}\n" in TEXT
    ended = command("--import", "own.py", *words.split(), cwd=page.folder)
    assert ended.code == 0, ended.err
    assert "3 |p(x') - p(x)|^2" in ended.out
    assert "Linf(0.1)" in ended.out
    by_variable = command(
        "list", "methods", "score", env={"EQUIPOISE_IMPORT": str(page.folder / "own.py")}
    )
    assert by_variable.code == 0
    assert "objective: score" in by_variable.out
    assert command("explain", "score").code == 2


def test_a_file_that_fails_is_said_in_a_line(command, tmp_path):
    (tmp_path / "own.py").write_text("1 / 0\n")
    ended = command("--import", "own.py", "list", cwd=tmp_path)
    assert ended.code == 2
    assert "own.py: ZeroDivisionError" in ended.line
    (tmp_path / "random.py").write_text("")
    ended = command("--import", "random.py", "list", cwd=tmp_path)
    assert ended.code == 2
    assert "'random'" in ended.line
    ended = command("--import", "none.py", "list", cwd=tmp_path)
    assert ended.code == 2
    assert "expected a Python file" in ended.line


# --- the objective ---


class Stopped(Console):
    """Stops a training after its first round, as a kill would."""

    def round(self, record: Any, *, classes: bool = False) -> None:
        raise KeyboardInterrupt


def test_the_objective_resumes_to_the_same_bits(page, tmp_path):
    whole = train(score(), tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(score(), tmp_path / "parts", console=Stopped(quiet=True))
    parts = Run.open(tmp_path / "parts")
    assert not parts.read_json("summary.json").get("finished")
    resume(tmp_path / "parts")
    for which in ("model", "last"):
        one, other = whole.model(which).state_dict(), parts.model(which).state_dict()
        assert all(torch.equal(value, other[key]) for key, value in one.items())


def test_the_objective_is_one_of_any_learner(page):
    there = Run.open(page.folder / "runs" / "a3gt-score")
    assert "objective: score" in (there.path / "recipe.yaml").read_text()
    log = (there.path / "log.jsonl").read_text().splitlines()
    assert len(log) == 2
    given = recipe({"method": "a3gt", "robust": {"objective": "score", "beta": 2}, **QUICK})
    robust = given.settings.build(Linf(0.1)).learners["robust"]
    assert isinstance(robust, page.own.SCORE)
    assert robust == page.own.SCORE(beta=2, attack=robust.attack)
    assert "2 |p(x') - p(x)|^2" in "\n".join(explain(given))
    more = {
        "more": {"l2": {"objective": "score", "norm": "l2", "eps": 1}},
        "more_gamma": {"l2": [0, 0.2]},
        "gamma": [1, 0.6],
    }
    given = recipe(SCHEDULED | QUICK | more)
    assert isinstance(given.settings.build(Linf(0.1)).learners["l2"], page.own.SCORE)


def test_settings_of_the_objective_are_validated(page):
    assert score(beta=2).settings.robust.beta == 2
    assert score(robust={"beta": "5/2"}).settings.robust.beta == 2.5
    assert "did you mean beta" in refused("bta=2", method="score")
    assert "beta" in refused("beta=0", method="score")
    assert "beta" in refused("beta=much", method="score")
    assert "attack.start" in refused("attack.start=zero", method="score")
    assert "attack.loss" in refused("attack.loss=margin", method="score")
    assert "robust.weight" in refused("robust.weight=1", method="score")
    assert "score" in refused("robust=scor", method="a3gt")


def by_hand(clean: Any, robust: Any, y: Any, target: Any) -> Any:
    del y
    p, q = (naive.log_p(logits).exp() for logits in (clean, robust))
    return (((p - target) ** 2).sum(1) + 4 * ((q - p) ** 2).sum(1)).mean()


@pytest.mark.parametrize("classes", [2, 10])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_is_the_one_by_hand(page, monkeypatch, classes, smoothing):
    monkeypatch.setitem(test_objectives.BY_HAND, "score", (page.own.SCORE, 2, by_hand))
    test_objectives.test_the_loss_and_its_gradients_are_those_by_hand(
        "score", classes, 3.0, smoothing
    )
    test_objectives.test_the_loss_in_float32_is_that_in_float64("score")


def test_without_a_radius_it_is_the_squared_error_of_clean_training(page):
    batch, net = naive.batch(), naive.model("plain")
    objective = naive.bound(page.own.SCORE, Linf(0.0), attack=naive.inner(), beta=7.0)
    found = naive.backward(objective, net, batch, naive.Tape())
    with torch.no_grad():
        answers = net(batch.x).softmax(1)
    error = (answers - naive.onehot(batch.y, 10)).square().sum(1).mean()
    assert float(found) == pytest.approx(float(error), rel=1e-6)


def test_the_search_moves_the_answer_away_from_the_clean_one(page):
    batch, net = naive.batch(), small_net()
    objective = naive.bound(page.own.SCORE, attack=naive.inner(10))
    x_adv = objective.search(net, batch, page.own.Labels(batch.y), naive.Tape())
    noise = Linf(0.1).start(batch.x, naive.Tape().uniform(batch.x))
    with torch.no_grad():
        clean, far, near = (net(z).softmax(1) for z in (batch.x, x_adv, noise))
    moved, jittered = ((p - clean).square().sum(1).mean() for p in (far, near))
    assert float(moved) > 2 * float(jittered)


CONTRACT = [
    "test_all_options_combine_or_are_refused",
    "test_searching_in_bfloat16_hardly_changes_the_loss",
    "test_a_search_leaves_the_model_as_it_was",
    "test_an_update_neither_uses_nor_changes_the_global_random_state",
    "test_the_state_is_saved_and_goes_on",
]


@pytest.mark.parametrize("name", CONTRACT)
def test_the_objective_keeps_to_the_contract(page, monkeypatch, name):
    monkeypatch.setitem(test_objective_contract.EVERY, "score", (page.own.SCORE, {}))
    getattr(test_objective_contract, name)("score")


METHOD = [
    "test_stopped_in_a_round_and_resumed_it_ends_with_the_same_bits",
    "test_bfloat16_is_close_to_float32",
    "test_the_batch_is_left_alone_and_the_loss_is_the_one_reported",
    "test_the_evaluations_that_are_logged_are_those_that_were_made",
]


@pytest.mark.parametrize("name", METHOD)
def test_the_method_keeps_to_the_contract(page, name):
    getattr(test_methods, name)("score")


def test_the_method_trains_and_is_documented_like_the_others(page, tmp_path, capsys):
    test_methods.test_trains_two_rounds_on_digits_by_its_name("score", tmp_path)
    test_methods.test_channels_and_models_without_batchnorm("score", "plain", 3)
    test_recipe.test_the_settings_of_a_method_are_listed_with_their_defaults("score", capsys)
    test_recipe.test_every_setting_is_documented()


# --- the attack ---


ATTACK = [
    "test_results_are_allowed_new_and_moved",
    "test_zero_radius_returns_x",
    "test_a_model_without_gradient_does_no_harm",
    "test_attacks_leave_no_trace",
    "test_memory_layout_does_not_matter",
]
THREATS = [pytest.param(test_attacks.SMALL[norm], id=norm) for norm in ("linf", "l2")]


@pytest.mark.parametrize("threat", THREATS)
@pytest.mark.parametrize("name", ATTACK)
def test_the_attack_keeps_to_the_contract(page, name, threat):
    getattr(test_attacks, name)("odi", threat)


@pytest.mark.parametrize("threat", THREATS)
def test_the_attack_keeps_to_the_contract_with_odd_models_and_inputs(page, threat):
    for bad in (torch.nan, torch.inf, -torch.inf):
        test_attacks.test_a_model_that_returns_no_numbers_does_no_harm("odi", threat, bad)
    for fails_at in (1, 2):
        test_attacks.test_attacks_leave_no_trace_when_the_model_raises("odi", threat, fails_at)
    for shape in ((3, 5, 9), (7,)):
        for dtype in (torch.float32, torch.float64):
            test_attacks.test_any_shape_and_float_type_works("odi", threat, shape, dtype)
    for classes in (2, 5):
        test_attacks.test_no_attack_breaks_a_provably_robust_point("odi", threat, classes)
    test_attacks.test_norms_without_a_definition_are_refused("odi")


@pytest.mark.parametrize("threat", THREATS)
def test_the_attack_breaks_whatever_one_step_breaks(page, threat):
    net, (x, y) = deepcopy(small_net()), held_out(150)
    before = deepcopy(net.state_dict())
    x_adv = parse("odi-10(restarts=2)")(net, x, y, threat)
    assert bool(threat.contains(x, x_adv).all())
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    one_step = net(FGSM()(net, x, y, threat)).argmax(1) != y
    fooled = net(x_adv).argmax(1) != y
    assert int(fooled.sum()) > int(one_step.sum())
    alone = net(parse("odi-10")(net, x, y, threat)).argmax(1) != y
    assert bool((fooled >= alone).all())


def test_the_verdicts_of_the_attack_depend_neither_on_batch_nor_order(page):
    net, (x, y) = small_net(), held_out(90)
    threat, attacks = Linf(0.06), ["odi-5(restarts=2)"]
    order = torch.randperm(90, generator=torch.Generator().manual_seed(0))
    whole, parts, mixed = (
        evaluate(
            net, x[rows], y[rows], threat=threat, attacks=attacks, batch_size=size, checks=False
        )
        for rows, size in ((order.sort().values, 90), (order.sort().values, 7), (order, 90))
    )
    verdicts = whole.verdicts[attacks[0]]
    assert 0 < int(verdicts.sum()) < 90
    assert torch.equal(parts.verdicts[attacks[0]], verdicts)
    assert torch.equal(mixed.verdicts[attacks[0]], verdicts[order])


@pytest.mark.parametrize("options", ["steps=0", "ahead=0", "restarts=1.5"])
def test_options_of_the_attack_are_refused_by_name(page, options):
    with pytest.raises(UserError, match=options.partition("=")[0]):
        parse(f"odi({options})")
    with pytest.raises(UserError, match="did you mean 'odi'"):
        parse("odii")
    with pytest.raises(UserError, match="did you mean 'ahead'"):
        parse("odi(ahed=2)")


# --- the datasets and the model ---


def test_the_stripes_can_be_told_apart_up_to_their_contrast_alone(page):
    stripes, own = data.load("stripes"), page.own
    x = stripes.test.pixels()
    assert stripes.sha256 == data.load("stripes").sha256
    assert stripes.train.y.bincount().tolist() == [500] * 4
    grey, contrast = own.GREY / 255, own.CONTRAST / 255
    assert math.isclose(contrast, 0.2, rel_tol=1e-9)
    assert bool(Linf(contrast).contains(x, torch.full_like(x, grey)).all())
    just_below = x + (grey - x).sign() * 0.199
    assert torch.equal(just_below > grey, x > grey)
    lines = ((x[:, :, :, :1] == x).all(dim=(1, 2, 3)), (x[:, :, :1] == x).all(dim=(1, 2, 3)))
    for k, constant in enumerate(lines):  # along rows, along columns
        assert torch.equal(constant, stripes.test.y == k)


def test_the_data_sets_are_trained_on(page):
    stripes, pair = (Run.open(page.folder / "runs" / name) for name in ("stripes", "pair"))
    about = stripes.read_json("provenance.json")["data"]
    assert about["classes"] == ["rows", "columns", "rising", "falling"]
    assert about["sha256"] == data.load("stripes").sha256
    assert pair.read_json("provenance.json")["data"]["classes"] == ["three", "eight"]
    assert pair.read_json("config.json")["threat"]["eps"] == pytest.approx(0.15)


def test_the_model_is_the_one_that_was_named(page):
    run = Run.open(page.folder / "runs" / "stripes")
    model = run.model()
    assert type(model) is page.own.SmallCNNGN
    assert not any(isinstance(m, torch.nn.modules.batchnorm._BatchNorm) for m in model.modules())
    assert [name for name, _ in model.named_buffers()] == ["normalize.mean", "normalize.std"]


MODEL = [
    "test_forward_is_the_trunk_after_the_stem",
    "test_the_stem_is_normalisation_and_one_convolution",
    "test_normalisation_is_the_first_layer",
    "test_every_parameter_takes_part",
    "test_width_scales_the_number_of_features",
    "test_the_narrowest_model_still_works_or_is_refused",
]


@pytest.mark.parametrize("name", MODEL)
def test_the_model_keeps_to_the_contract(page, monkeypatch, name):
    monkeypatch.setitem(test_models.NARROW, "small-cnn-gn", 0.5)
    getattr(test_models, name)("small-cnn-gn")
