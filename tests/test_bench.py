"""The benchmark: same work for all sides, right numbers from given times; never a time itself."""

import io
import json
import math
import sys
import time
from dataclasses import asdict, replace
from xml.etree import ElementTree as Tree

import pytest
import torch
from rich.console import Console as Terminal
from torch import nn

from benchmarks import attack, evaluate, growth, job, memory, peers, train
from benchmarks.case import Case
from benchmarks.job import plan
from benchmarks.results import targets
from benchmarks.stranger import STRANGER, ResNet18
from benchmarks.timing import Side, alternate, ratios, spread
from benchmarks.work import useful_flops
from equipoise.data.core import Images
from equipoise.errors import RunError, UserError
from equipoise.execution import Execution
from equipoise.terminal.progress import Console
from equipoise.threat import Linf

CPU = torch.device("cpu")
TINY = Case(width=0.125, size=8, batch_size=4, images=6, steps=2, eps=0.1, device="cpu")


def installed(names):
    modules, _ = peers.found(names)
    return modules


@pytest.fixture
def no_peers(monkeypatch):
    def refuse(name):
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(peers, "importlib", type("importlib", (), {"import_module": refuse}))


def run_job(
    out, *, repeats=1, threads=None, measure=lambda order: 7 * 2**20, cpu_time=False, **given
):
    shown = io.StringIO()
    terminal = Terminal(file=shown, width=140)
    try:
        content = job.run(
            plan(**given),
            out,
            repeats=repeats,
            threads=threads,
            measure=measure,
            cpu_time=cpu_time,
            terminal=terminal,
            console=Console(quiet=True),
        )
    finally:
        run_job.shown = shown.getvalue()
    return content


SMALLEST = {"width": 0.125, "size": 8, "batch_size": 2, "steps": 1, "device": "cpu"}


# The same work


def test_a_case_is_the_same_problem_each_time_and_leaves_the_random_state_alone():
    state = torch.get_rng_state()
    one, two = TINY.build(), TINY.build()
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(one.x, two.x)
    assert torch.equal(one.y, two.y)
    for a, b in zip(one.model.parameters(), two.model.parameters(), strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(replace(TINY, seed=1).build().x, one.x)
    assert not one.model.training
    assert torch.equal(one.x, one.images.pixels())
    with torch.no_grad():
        assert torch.equal(one.model(one.x).argmax(1), one.y)  # an attack has work with each


@pytest.mark.parametrize(
    "name",
    [pytest.param(s, marks=pytest.mark.extras) if s in peers.INSTALL else s for s in attack.SIDES],
)
def test_all_sides_attack_the_same_images_within_the_threat(name):
    problem = TINY.build()
    before = problem.x.clone()
    made, absent = attack.sides(TINY, problem, [name])
    if absent:
        pytest.skip(absent[name])
    weights = [weight.clone() for weight in problem.model.parameters()]
    x_adv = made[0].run()
    assert torch.equal(problem.x, before)
    assert x_adv.shape == before.shape
    assert (x_adv - before).abs().max() <= TINY.eps + 1e-6
    assert x_adv.min() >= 0
    assert x_adv.max() <= 1
    gained = attack.loss_of(problem, x_adv) - attack.loss_of(problem, before)
    assert gained == 0 if name == "bare passes" else gained > 0
    assert all(map(torch.equal, weights, problem.model.parameters()))
    assert all(weight.requires_grad for weight in problem.model.parameters())
    assert made[0].gradients == TINY.steps * TINY.images


@pytest.mark.parametrize("name", ["ours", "ours-float32", "bare passes"])
def test_ours_and_bare_passes_run_as_many_passes_in_one_form(name, monkeypatch):
    forms = []

    def watched(*args, **kwargs):
        forms.append(fast(*args, **kwargs))
        return forms[-1]

    fast = attack.fast
    monkeypatch.setattr(attack, "fast", watched)
    case = replace(TINY, execution=Execution(precision="bfloat16"))
    side = attack.sides(case, case.build(), [name])[0][0]
    side.run()
    assert sum(form.backwards for form in forms) == side.gradients
    wanted = "float32" if name == "ours-float32" else "bfloat16"
    assert {form.precision for form in forms} == {wanted}
    assert f"search in {wanted}" in side.about


def test_the_strangers_network_is_the_resnet_18_of_its_paper():
    net = ResNet18()
    # The sum over the layers: 3x3 stem and blocks of 64, 128, 256 and 512, norms, linear.
    assert sum(weight.numel() for weight in net.parameters()) == 11_173_962
    problem = replace(TINY, model=STRANGER, channels=3, width=0.125).build()
    assert problem.model(problem.x).shape == (6, 10)
    (side,), _ = attack.sides(TINY, problem, ["ours"])
    assert attack.loss_of(problem, side.run()) > attack.loss_of(problem, problem.x)


def test_an_evaluation_in_the_bench_does_all_steps(monkeypatch):
    problem, results = TINY.build(), []

    def watched(*args, **kwargs):
        results.append(evaluate_(*args, **kwargs))
        return results[-1]

    evaluate_ = attack.evaluate_by
    monkeypatch.setattr(attack, "evaluate_by", watched)
    side = attack.sides(TINY, problem, ["ours-evaluate"])[0][0]
    side.run()
    assert sum(r.outcomes["pgd"].backwards for r in results) == side.gradients


@pytest.mark.extras
def test_pgd_as_one_writes_it_down_is_that_of_torchattacks():
    if "torchattacks" not in installed(["torchattacks"]):
        pytest.skip(peers.INSTALL["torchattacks"])
    problem = TINY.build()
    how = problem.model, problem.threat, 3, 0.04
    theirs = peers.torchattacks_pgd(installed(["torchattacks"])["torchattacks"], *how)
    found = []
    for run in (attack.plain_pgd(*how), theirs):
        torch.manual_seed(5)
        found.append(run(problem.x, problem.y))
    assert (found[0] - found[1]).abs().max() <= 1e-6
    assert (found[0] - problem.x).abs().max() > 0.5 * TINY.eps


@pytest.mark.slow
def test_the_useful_work_of_a_known_network():
    net = nn.Sequential(nn.Flatten(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
    found = useful_flops(net, torch.rand(4, 1, 2, 3), torch.zeros(4, dtype=torch.int64))
    forward = 2 * (6 * 5 + 5 * 3)
    assert found["attacking"] == forward + 2 * (6 * 5 + 5 * 3)
    assert (
        found["training"] == forward + 2 * (6 * 5 + 5 * 3) + 2 * 5 * 3
    )  # no gradient of the input
    assert all(weight.grad is None for weight in net.parameters())


# Training


def loop(gamma=0.25, alpha=0.9):
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 2, 3, bias=False), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(72, 3)
    )
    images = Images(torch.randint(256, (12, 1, 8, 8), dtype=torch.uint8), torch.arange(12) % 3)
    seen = []

    def attack_on(model):
        def run(x, y):
            seen.append((model, x.clone(), y.clone()))
            return attack.plain_pgd(model, Linf(0.1), 1, 0.1)(x, y)

        return run

    made = train.PlainLoop(net, images, attack_on, 4, alpha=alpha, gamma=gamma)
    return made, net, images, seen


def test_the_plain_loop_averages_as_the_formula_says_and_its_networks_move():
    made, net, _, _ = loop()
    start = {k: v.clone() for k, v in net.state_dict().items()}
    expected = {k: v.double() for k, v in start.items()}
    for _ in range(3):
        made.step()
        robust, clean = made.robust.state_dict(), made.clean.state_dict()
        for key, value in expected.items():
            both = 0.25 * robust[key].double() + 0.75 * clean[key].double()
            expected[key] = 0.9 * value + 0.1 * both
    for key, value in made.average.state_dict().items():
        if key.endswith("num_batches_tracked"):
            assert value == 3
            continue
        assert (value - expected[key]).abs().max() <= 1e-6
        assert not torch.equal(value, start[key])
        assert not torch.equal(made.robust.state_dict()[key], made.clean.state_dict()[key])
    assert all(torch.equal(v, start[k]) for k, v in net.state_dict().items())


def test_the_plain_loop_attacks_its_robust_network_on_every_image_of_a_pass():
    made, _, images, seen = loop()
    for _ in range(3):
        made.step()
    assert all(model is made.robust for model, _, _ in seen)
    every = torch.cat([x for _, x, _ in seen])
    assert {part.numpy().tobytes() for part in every} == {
        part.numpy().tobytes() for part in images.pixels()
    }
    assert made.robust.training


def test_our_step_does_the_work_that_is_credited_and_goes_on_after_a_round():
    case = train.case_of(replace(TINY, batch_size=4))
    assert case.images == 4 * train.BATCHES
    problem = case.build()
    start = {k: v.clone() for k, v in problem.model.state_dict().items()}
    trained = train.training(case, problem, case.execution)
    side = train.sides(case, problem, ["ours"])[0][0]
    steps = train.steps(trained)
    next(steps)
    spent = sum(learner.evaluations for learner in trained.learners.values())
    assert spent == side.gradients == 4 * (case.steps + 2)
    for _ in range(train.BATCHES + 1):
        next(steps)
    assert trained.learners["robust"].steps == 2
    merged = trained.merged_state()
    assert any(not torch.equal(merged[name], value) for name, value in start.items())
    assert all(torch.equal(problem.model.state_dict()[k], v) for k, v in start.items())


def test_both_trainings_have_one_optimiser_and_one_average():
    case = train.case_of(TINY)
    problem = case.build()
    ours = train.training(case, problem, case.execution)
    theirs = train.plain_loop(case, problem, installed(["torchattacks"]))
    for learner in ours.learners.values():
        group = learner.optimizer.param_groups[0]
        for key, value in train.SGD.items():
            assert group[key] == theirs.robust_sgd.param_groups[0][key] == value
        assert learner.lr(0) == learner.lr(0.9) == train.SGD["lr"]
    weights = ours.method.weights(1, ours.rounds, None)
    assert weights["robust"] == theirs.gamma
    assert ours.method.merge.memory(0, ours.steps) == theirs.alpha == train.ALPHA


# Times


def clocked(**costs):
    """Sides that cost so many seconds, the clock that says so, and who ran in which order."""
    now, order = [0.0], []

    def run_of(name, cost):
        def run():
            order.append(name)
            now[0] += cost
            return name

        return run

    made = [Side(name=name, run=run_of(name, cost)) for name, cost in costs.items()]
    return made, lambda: now[0], order


def test_sides_take_turns_and_each_repeat_begins_with_the_next():
    made, clock, order = clocked(ours=1.0, a=2.0, b=4.0)
    assert len(list(alternate(made, 3, CPU, clock=clock, least=0))) == 9
    assert order[:3] == ["ours", "a", "b"]
    assert order[3:] == ["ours", "a", "b", "a", "b", "ours", "b", "ours", "a"]
    assert {side.name: side.seconds for side in made} == {
        "ours": [1.0] * 3,
        "a": [2.0] * 3,
        "b": [4.0] * 3,
    }
    assert made[2].last == "b"


def test_short_work_is_done_several_times_within_one_time():
    made, clock, order = clocked(ours=0.125, a=0.25)
    list(alternate(made, 1, CPU, clock=clock, least=1.0))
    assert [side.loops for side in made] == [8, 8]
    assert order.count("a") == 1 + 8
    assert made[1].seconds == [0.25]


def test_numbers_of_a_side_from_its_times():
    ours = Side(name="ours", run=list, gradients=30, flops=90, seconds=[1.0, 3.0, 2.0])
    theirs = Side(name="a", run=list, seconds=[3.0, 3.0, 8.0])
    assert ratios(theirs.seconds, ours.seconds) == [3.0, 1.0, 4.0]
    assert spread([5.0, 1.0, 2.0]) == {"median": 2.0, "least": 1.0, "most": 5.0}
    assert ours.record(ours)["gradients_per_second"] == 15
    assert ours.record(ours)["flops_per_second"] == 45
    assert theirs.record(ours)["times_ours"] == {
        "pairs": [3.0, 1.0, 4.0],
        "median": 3.0,
        "least": 1.0,
        "most": 4.0,
    }
    assert theirs.record(ours)["gradients_per_second"] is None
    theirs.seconds = [3.0]  # interrupted
    assert theirs.record(ours)["times_ours"]["pairs"] == [3.0]
    theirs.seconds = []
    assert theirs.record(ours)["times_ours"] is None


def bar_record(what, peak=None, **times):
    sides = [
        Side(name=name.replace("_", " "), run=list, seconds=seconds, peak=peak)
        for name, seconds in times.items()
    ]
    found = {side.name: side.record(sides[0]) for side in sides}
    return {"what": what, "title": what, "sides": found, "absent": {}}


def test_targets_compare_with_the_fastest_and_the_leanest_peer():
    record = bar_record(
        "attack", ours=[1.0, 2.0], bare_passes=[0.5, 2.0], torchattacks=[3, 6], foolbox=[2, 5]
    )
    peaks = {"ours": 60, "torchattacks": 100, "foolbox": 40}
    for name, mib in peaks.items():
        record["sides"][name]["peak_memory"] = mib * 2**20
    speed, short, overhead, lean = targets([record])
    assert (speed["wanted"], speed["found"], speed["reached"]) == (1.2, 2.25, True)
    assert (short["wanted"], short["found"], short["reached"]) == (2.3, None, None)
    speed, short = targets([record | {"has_bfloat16": True}])[:2]
    assert (speed["wanted"], speed["found"], speed["reached"]) == (1.2, None, None)
    assert (short["wanted"], short["found"], short["reached"]) == (2.3, 2.25, False)
    speed = targets([record])[0]
    assert speed["target"].endswith("foolbox")
    assert (overhead["wanted"], overhead["found"], overhead["reached"]) == (1.15, 1.5, False)
    assert (lean["found"], lean["reached"]) == (1.5, False)
    record["sides"]["ours"]["peak_memory"] = 3
    record["sides"]["foolbox"]["peak_memory"] = memory.LEAST // 9
    assert targets([record])[-1]["found"] == 1  # too little to be told apart
    fast = bar_record("train", ours=[1.0], plain_loop=[2.5])
    assert targets([fast])[0]["reached"] is True


def test_what_was_not_measured_is_neither_reached_nor_not():
    found = targets([bar_record("evaluate", ours=[1.0])])
    assert [target["reached"] for target in found] == [None, None]
    assert "pyautoattack" in found[0]["target"]
    assert targets([{"what": "growth", "title": "", "axes": []}]) == []


# Verdicts


def judged_robust(name, robust):
    return Side(name=name, run=list, last={"robust": torch.tensor(robust), "alarms": []})


def test_verdicts_are_compared_image_by_image():
    ours = judged_robust("ours", [True, False, True, False])
    theirs = judged_robust("pyautoattack", [True, True, False, False])
    evaluate.compare([ours, theirs])
    assert theirs.notes["robust"] == [0, 1]
    assert theirs.notes["robust_accuracy"] == 0.5
    assert theirs.notes["robust_here_only"] == [1]
    assert theirs.notes["robust_for_first_only"] == [2]
    here, there = evaluate.sentences([ours, theirs])
    assert "[1]" in here
    assert "[2]" in there


def test_a_run_is_judged_on_its_data_against_its_threat(trained):
    judged = evaluate.Judged(run=str(trained), images=7, device="cpu").build()
    assert judged.x.shape == (7, 1, 8, 8)
    assert judged.threat == Linf(0.15)
    other = evaluate.Judged(run=str(trained), images=7, eps=0.5, norm="l2", device="cpu")
    assert other.build().threat.norm == "l2"
    with pytest.raises(UserError, match="norm"):
        replace(other, norm="l3").build()


def test_all_sides_judge_the_same_images(trained):
    case = evaluate.Judged(run=str(trained), images=8, device="cpu")
    judged = case.build()
    made, _ = evaluate.sides(case, judged)
    with torch.no_grad():
        right = judged.model(judged.x).argmax(1) == judged.y
    found = {side.name: side.warm()["robust"] for side in made}
    assert {"ours", "ours-checked", "ours-float32"} <= set(found)
    for robust in found.values():
        assert robust.shape == right.shape
        assert not (robust & ~right).any()
    assert torch.equal(found["ours"], found["ours-checked"])


# Growth


def test_powers_from_known_points():
    counts = [1.0, 2.0, 4.0, 8.0]
    assert growth.exponent(counts, [3 * n**1.5 for n in counts]) == pytest.approx(1.5)
    assert growth.exponent(counts, [1.0, None, 4.0, 0.0]) == pytest.approx(1.0)
    assert growth.exponent([4.0, 4.0], [1.0, 2.0]) is None
    steep = growth.faster(counts, [1.0, 2.0, 4.0, 16.0])
    assert steep == [{"from": 4.0, "to": 8.0, "exponent": pytest.approx(2.0)}]
    assert growth.faster(counts, [5.0, 5.0, 6.0, 11.0]) == []


def axes_of(power):
    return [
        growth.axis_record(
            name,
            [
                (count, [1e-3 * count**power], count * memory.LEAST)
                for count, _ in growth.cases(name, TINY)
            ],
        )
        for name in growth.AXES
    ]


def test_along_an_axis_one_thing_grows_and_all_else_stays():
    changed = {
        "batch size": {"batch_size", "images"},
        "images": {"images"},
        "steps": {"steps"},
        "classes": {"classes"},
        "pixels": {"size"},
    }
    for name in growth.AXES:
        made = growth.cases(name, TINY)
        for _, case in made:
            assert {k for k, v in vars(case).items() if v != getattr(TINY, k)} <= changed[name]
        counts = [count for count, _ in made]
        assert counts == sorted(set(counts))
    assert growth.cases("pixels", TINY)[0][0] == 32 * 32


def test_growth_is_said_in_words():
    assert growth.sentences(axes_of(1.0)) == ["nothing grows faster than linearly"]
    said = growth.sentences(axes_of(1.5))
    assert "time grows faster than linearly from 1 to 2 steps: power 1.50" in said
    assert not any("memory" in sentence for sentence in said)


@pytest.mark.slow
def test_the_figure_of_growth_has_a_panel_for_each_axis():
    drawn = growth.figure(axes_of(1.0), "PGD, small-cnn")
    Tree.fromstring(drawn)  # noqa: S314 - drawn here
    text = "".join(Tree.fromstring(drawn).itertext())  # noqa: S314
    for name in growth.AXES:
        assert name in text
    assert text.count("power 1.00") == 2 * len(growth.AXES)
    without = [
        axis | {"points": [p | {"peak_memory": None} for p in axis["points"]]}
        for axis in axes_of(1.0)
    ]
    assert "MiB" not in growth.figure(without, "PGD")


# The job and its file


@pytest.mark.parametrize("cpu_time", [False, True])
def test_seconds_are_of_the_wall_or_of_the_processor(tmp_path, monkeypatch, cpu_time):
    clocks = []
    monkeypatch.setattr(job, "alternate", lambda *given, clock, **rest: clocks.append(clock) or [])
    monkeypatch.setattr(
        attack, "sides", lambda *given: ([Side(name="ours", run=int, seconds=[1.0])], {})
    )
    monkeypatch.setattr(attack, "loss_of", lambda *given: 0.0)
    content = run_job(
        tmp_path / "b.json", measure=None, cpu_time=cpu_time, what="attack", **SMALLEST
    )
    assert content["cpu_time"] == cpu_time
    assert ("seconds of the processor" in run_job.shown) == cpu_time
    assert clocks == [time.process_time if cpu_time else time.perf_counter]


@pytest.mark.slow
def test_the_file_holds_everything(tmp_path):
    out = tmp_path / "deep" / "bench.json"
    content = run_job(
        out,
        repeats=2,
        threads=1,
        what="attack",
        **SMALLEST,
        execution=Execution(precision="float32"),
    )
    assert json.loads(out.read_text(encoding="utf-8")) == content
    assert content["finished"] is True
    assert content["resolved"]["precision"] == "float32"
    assert content["provenance"]["threads"] == 1
    (bench,) = content["benches"]
    assert bench["case"]["batch_size"] == 2
    assert {"ours", "bare passes", "ours-float32"} <= set(bench["sides"])
    for side in bench["sides"].values():
        assert len(side["times"]) == 2
        assert side["seconds"]["least"] <= side["seconds"]["median"] <= side["seconds"]["most"]
        assert len(side["times_ours"]["pairs"]) == 2
        assert side["peak_memory"] == 7 * 2**20
        assert side["useful_flops"] == 2 * bench["useful_flops_an_image"]["attacking"]
        assert math.isfinite(side["loss"])
    assert len(content["targets"]) == 4
    assert "times ours" in run_job.shown
    assert "1 threads" in run_job.shown


@pytest.mark.slow
def test_a_peer_that_is_missing_is_named_with_its_remedy(tmp_path, no_peers):
    content = run_job(tmp_path / "a.json", what="attack", measure=None, **SMALLEST)
    bench = content["benches"][0]
    assert bench["absent"] == {n: peers.INSTALL[n] for n in ("torchattacks", "foolbox")}
    assert "pip install" in run_job.shown
    assert "not measured" in run_job.shown
    content = run_job(tmp_path / "t.json", what="train", measure=None, **SMALLEST)
    about = content["benches"][0]["sides"]["plain loop"]["about"]
    assert about.startswith("PGD written out")
    assert content["benches"][0]["sides"]["plain loop"]["peak_memory"] is None


def test_an_interruption_keeps_what_was_measured(tmp_path):
    def interrupt(order):
        raise KeyboardInterrupt

    out = tmp_path / "bench.json"
    with pytest.raises(KeyboardInterrupt):
        run_job(out, what="train", measure=interrupt, **SMALLEST)
    content = json.loads(out.read_text(encoding="utf-8"))
    assert content["finished"] is False
    assert len(content["benches"][0]["sides"]["ours"]["times"]) == 1
    assert len(content["targets"]) == 2


def test_memory_that_cannot_be_measured_is_no_failure(tmp_path):
    def fail(order):
        raise RunError("no memory to measure with")

    content = run_job(tmp_path / "bench.json", what="train", measure=fail, **SMALLEST)
    assert content["benches"][0]["sides"]["ours"]["peak_memory"] is None


def test_growth_as_a_job(tmp_path, monkeypatch):
    short = {"steps": lambda case: {n: {"steps": n} for n in (1, 2)}}
    monkeypatch.setattr(growth, "AXES", short)
    out, orders = tmp_path / "growth.json", []

    def measure(order):
        orders.append(order)
        return order["case"]["steps"] * memory.LEAST

    given = {k: v for k, v in SMALLEST.items() if k != "steps"}
    content = run_job(out, what="growth", model="small-cnn", measure=measure, **given)
    (found,) = content["benches"][0]["axes"]
    assert [point["count"] for point in found["points"]] == [1, 2]
    assert found["memory_exponent"] == pytest.approx(1.0)
    assert [order["case"]["steps"] for order in orders] == [1, 2]
    assert out.with_suffix(".svg").read_text(encoding="utf-8").startswith("<?xml")
    assert content["benches"][0]["figure"] == "growth.svg"


def test_the_suite_is_attack_and_train_on_two_networks_and_evaluate():
    found = [(bench.what, getattr(bench.case, "model", None)) for bench in plan()]
    assert found == [
        ("attack", "small-cnn"),
        ("attack", "resnet-18"),
        ("attack", "stranger-resnet-18"),
        ("train", "small-cnn"),
        ("train", "resnet-18"),
        ("evaluate", None),
    ]
    (one,) = plan("attack", model="resnet-18", steps=3)
    assert (one.case.channels, one.case.size, one.case.eps) == (3, 32, 8 / 255)
    assert (one.case.batch_size, one.case.steps) == (64, 3)
    (chosen,) = plan("evaluate", ["ours-float32"])
    assert chosen.sides == ("ours", "ours-float32")
    for bench in plan():
        few = bench.case.smaller()
        assert type(few) is type(bench.case)
        assert few.images is None or few.images <= 2 * train.BATCHES


# Memory


@pytest.mark.slow
def test_the_peak_is_what_was_held_in_between():
    def work():
        held = torch.ones(20 * 2**20)  # 80 MiB
        return float(held.sum())

    work()
    found = memory.peak_of(work, CPU)
    assert 70 * 2**20 <= found <= 130 * 2**20


@pytest.mark.slow
def test_a_process_of_its_own_measures_a_side():
    order = {"what": "attack", "side": "ours", "case": asdict(TINY), "threads": 1}
    assert memory.measured(order) >= 0
    fails = (sys.executable, "-S", "-c", "raise SystemExit('equipoise: out of memory')")
    with pytest.raises(RunError, match="memory of ours could not be measured: equipoise: out of"):
        memory.measured(order, fails)


# The command


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--what", "atack"], "did you mean 'attack'"),
        (["--model", "resnet"], "unknown model 'resnet'"),
        (["-n", "0"], "-n must be at least 1"),
        (["--threads", "0"], "--threads must be at least 1"),
        (["runs/x", "--what", "attack"], "RUN is for --what evaluate"),
        (["--what", "train", "--images", "5"], "--images is for --what evaluate"),
        (["--sides", "foolbox"], "--sides needs --what"),
        (["--what", "train", "--model", "stranger-resnet-18"], "it is not trained"),
        (["--what", "attack", "--sides", "folbox"], "did you mean 'foolbox'"),
        (["--what", "attack", "--eps", "0"], "eps must lie in (0, 1]"),
        (["--eps", "1/255,2/255"], "--eps takes one number"),
        (["--what", "attack", "--steps", "0"], "steps must be at least 1"),
        (["--precision", "float16"], "unknown --precision"),
        (["--layout", "nhwc"], "unknown --layout"),
        (["--update", "half"], "unknown --update"),
        (["--device", "tpu"], "device must be auto, cpu or cuda"),
        (["--what", "evaluate", "--out", "."], "expected a file"),
        (["--speed"], "No such option"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(command, words, said):
    ended = command("bench", *words)
    assert ended.code == 2, ended.err
    assert said in ended.line


@pytest.mark.slow
def test_the_command_prints_a_table_and_writes_its_file(command, tmp_path):
    words = "--what train --width 0.125 --size 8 --batch-size 2 --steps 1 -n 1 --no-memory -q"
    ended = command("bench", *words.split(), "--device", "cpu", cwd=tmp_path)
    assert ended.code == 0, ended.err
    assert "plain loop" in ended.out
    assert ">= 2.5" in ended.out
    assert json.loads((tmp_path / "bench.json").read_text(encoding="utf-8"))["finished"]


@pytest.mark.slow
def test_a_network_of_ones_own_is_measured(command, tmp_path):
    (tmp_path / "nets.py").write_text(
        "from equipoise import models\n"
        "models.MODELS['mine'] = (models.MODELS['small-cnn'][0], 'a network of ones own')\n"
    )
    words = "mine --what attack --width 0.125 --size 8 --channels 1 --batch-size 2 --steps 1"
    rest = "-n 1 --no-memory -q --sides ours --device cpu"
    ended = command("bench", "--import", "nets.py", *words.split(), *rest.split(), cwd=tmp_path)
    assert ended.code == 0, ended.err
    (bench,) = json.loads((tmp_path / "bench.json").read_text(encoding="utf-8"))["benches"]
    assert bench["case"]["model"] == "mine"


@pytest.mark.slow
def test_messages_name_the_command(command):
    assert command("bench", "--speed").line.startswith("python -m benchmarks: ")


def test_help_teaches(command):
    ended = command("bench", "--help")
    assert ended.code == 0
    for word in ("attack", "train", "evaluate", "growth", "torchattacks", "Ctrl-C", "--no-memory"):
        assert word in ended.out
    assert "--memory-of" not in ended.out
