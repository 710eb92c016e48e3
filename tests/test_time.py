"""``--time``: the best that can be said by then, and about how long something will take."""

import itertools
import json

import pytest
import torch

from equipoise.attacks import cost, parse
from equipoise.errors import RunError, UserError
from equipoise.evaluation.stored import Store
from equipoise.execution.policy import Execution
from equipoise.fronts.record import FrontRecord
from equipoise.jobs.estimate import FEW, Pace, about, dearest, pace, whole
from equipoise.jobs.evaluate import evaluate_run
from equipoise.jobs.front import measure_front
from equipoise.parsing import seconds
from equipoise.store.runs import Run
from equipoise.terminal.progress import Console, TimeUp
from equipoise.threat import Linf

NET = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))


@pytest.fixture(scope="module")
def trained(command, small, tmp_path_factory):
    folder = tmp_path_factory.mktemp("time") / "run"
    words = (
        "train",
        "a3gt",
        *small[1:7],
        "--data",
        "digits",
        "--out",
        folder,
        "eps=0.1",
        "gamma=0.5",
    )
    assert command(*words).code == 0
    return folder


# Times in words


@pytest.mark.parametrize(
    ("text", "value"), [("90s", 90), ("30m", 1800), ("30 min", 1800), ("1.5h", 5400), ("7", 7)]
)
def test_a_time_is_read(text, value):
    assert seconds(text, "--time") == value


@pytest.mark.parametrize(
    "text", ["", "0", "0s", "-5m", "soon", "5d", "1e3s", "1:30", "nan", "1.2.3s"]
)
def test_what_is_no_time_is_one_line(text):
    with pytest.raises(UserError, match="--time takes a time like 90s, 30m or 2h, got"):
        seconds(text, "--time")


@pytest.mark.parametrize("name", ["evaluate", "front"])
def test_a_wrong_time_is_one_line_and_exit_code_2(command, trained, name):
    ended = command(name, trained, "--time", "soon")
    assert (ended.code, ended.out) == (2, "")
    assert "--time takes a time like 90s" in ended.line


# The estimate


def test_an_estimate_is_cost_times_pace():
    timed = Pace(0.01, (0.5, 1.0))
    pgd, auto = parse("pgd-20"), parse("autoattack")
    assert timed.needed([pgd], "linf", 1000) == pytest.approx((100, 200))
    one = 100 + 900 + 900 + 1 + 5000 / 3  # APGD-CE, APGD-T, FAB-T and Square
    assert whole([auto], "linf", 10) == pytest.approx(10 * one)
    assert timed.needed([pgd, auto], "linf", 10)[1] == pytest.approx(0.1 * (20 + one))
    assert timed.needed([], "linf", 10) == (0, 0)


def test_an_audit_is_estimated_by_the_share_that_it_needs():
    few = parse("audited(within=0.1)")
    search = sum(cost(stage, "linf") for stage in few.stages("linf").values())
    audit = sum(cost(stage, "linf") for stage in few.audit("linf").values())
    share = 1 - 0.05 ** (1 / 100)  # without a miss
    assert whole([few], "linf", 1000) == pytest.approx(1000 * (search + share * audit))
    little = parse("audited(budget=0.01)")
    assert whole([little], "linf", 1000) == pytest.approx(1000 * (search + 0.01 * audit))
    assert whole([few], "linf", 1) <= whole([parse("autoattack")], "linf", 1) * 1.2


def test_a_batch_takes_at_most_a_tenth_of_the_time():
    timed, auto = Pace(0.001), parse("autoattack")
    longest = 0.001 * dearest(auto, "linf")  # that of Square
    assert longest == pytest.approx(0.001 * (1 + 5000 / 3))
    assert timed.batch([auto], "linf", 250, 1800) == int(180 / longest) == 107
    assert timed.batch([auto], "linf", 250, 10_000) == 250  # never more than asked for
    assert timed.batch([auto], "linf", 250, 10) == 16  # nor so few that passes are wasted
    assert timed.batch([auto], "linf", 5, 10) == 5


@pytest.mark.parametrize(
    ("least", "most", "said"),
    [
        (0, 59.9, ""),
        (0, 60, "about 30 s to 1 min"),
        (200, 700, "about 3 to 12 min"),
        (715, 725, "about 12 min"),
        (3000, 7200, "about 50 min to 2 h"),
        (7200, 9000, "about 2 to 2.5 h"),
        (40_000, 400_000, "about 11 to 111 h"),
    ],
)
def test_a_range_of_times_in_words(least, most, said):
    assert about(least, most) == said


def test_a_slow_model_is_timed_by_one_pass_and_a_quick_one_by_an_attack():
    x, y = torch.rand(40, 1, 8, 8), torch.arange(40) % 10
    clock = itertools.count(step=100.0)  # each look at the clock is 100 seconds later
    given = x, y, Linf(0.1), Execution()
    slow = pace(NET, *given, 1e9, clock=lambda: next(clock))
    assert slow == Pace(100.0 / FEW)
    clock = itertools.count(step=0.001)
    quick = pace(NET, *given, 1e9, clock=lambda: next(clock))
    assert quick is not None
    assert quick.seconds < 0.001 / 40  # the attack takes more than one evaluation an image
    assert quick.robust[0] >= 0.05
    assert quick.robust[1] <= 1
    clock = itertools.count(step=0.001)
    assert pace(NET, *given, 100, clock=lambda: next(clock)) == Pace(0.001 / FEW)  # a short job
    assert pace(torch.nn.Linear(3, 3), *given, 1e9) is None  # it fails on x


def test_timing_a_model_leaves_random_numbers_and_statistics_alone():
    net = torch.nn.Sequential(
        torch.nn.Conv2d(1, 4, 3), torch.nn.BatchNorm2d(4), *NET[:1], torch.nn.Linear(144, 10)
    ).train()
    before, state = {k: v.clone() for k, v in net.state_dict().items()}, torch.get_rng_state()
    pace(net, torch.rand(9, 1, 8, 8), torch.zeros(9).long(), Linf(0.1), Execution(), 1e9)
    torch.set_rng_state(state)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert net.training


def test_what_takes_long_says_so_beforehand(trained, monkeypatch, capsys):
    monkeypatch.setattr("equipoise.jobs.evaluate.pace", lambda *a: Pace(1.0, (0.5, 1.0)))
    evaluate_run(trained, attacks="pgd-2", n=60, eps=[0.02], checks=False, console=Console())
    assert "this takes about 1 to 2 min on this machine" in capsys.readouterr().err
    monkeypatch.setattr("equipoise.jobs.evaluate.pace", lambda *a: Pace(1e-3))
    evaluate_run(trained, attacks="pgd-2", n=60, eps=[0.02], checks=False, console=Console())
    assert "this takes" not in capsys.readouterr().err


# The limit


def test_a_console_stops_what_has_used_up_its_time():
    clock = itertools.count()
    console = Console(quiet=True)
    console.due()
    with console.within(2, lambda: next(clock)):
        console.due()
        with pytest.raises(TimeUp):
            console.due()
    console.due()
    with console.within(None):
        console.due()


def test_an_evaluation_that_is_out_of_time_says_what_is_known_and_goes_on(command, trained):
    words = ("--attacks", "pgd-3,square-60", "-n", 60, "--eps", 0.1, "--no-checks")
    words = (*words, "--precision", "float32")
    ended = command("evaluate", trained, *words, "--time", "0.000001s", "--json", "out.json")
    assert ended.code == 0, ended.err
    unfinished = "NOT FINISHED: images that were not attacked yet count as robust"
    assert unfinished in " ".join(ended.out.split())
    assert "the time is over: pgd-3 has attacked 16 images, and fooled" in ended.err
    assert f"continue with: equipoise evaluate {trained} --resume" in ended.err
    (store,) = (s for s in Store.all(Run(trained)) if s.name.startswith("linf-0.1-"))
    about, cut, _ = store.read()
    assert not about["finished"]
    assert int(cut.outcomes["pgd-3"].attacked.sum()) == 16
    assert command("evaluate", trained, "--resume", "--no-checks").code == 0
    _, resumed, _ = store.read()
    store.path.unlink()
    # In the batches of the interrupted one, the whole evaluation has the same bits.
    assert command("evaluate", trained, *words, "--batch-size", 16).code == 0
    about, whole_one, _ = store.read()
    assert about["finished"]
    assert torch.equal(resumed.x_adv, whole_one.x_adv)
    assert torch.equal(resumed.margin, whole_one.margin)
    for name, outcome in whole_one.outcomes.items():
        assert torch.equal(outcome.verdict, resumed.outcomes[name].verdict)


class Ends(Console):
    """A console whose time is over when so many models have been measured."""

    def __init__(self, models: int) -> None:
        super().__init__(quiet=True)
        self.models = models

    def attack(self, state) -> None:
        super().attack(state)
        self.models -= state.finished
        if self.models < 0:
            raise TimeUp


def test_a_front_that_is_out_of_time_has_the_points_that_it_measured(trained):
    quick = {"attacks": "pgd-2", "points": 5, "n": 60}
    with pytest.raises(
        RunError, match="before a point was measured; the finished points are kept"
    ):
        measure_front(trained, limit=1e-6, **quick)
    assert FrontRecord.read(trained) is None
    part = measure_front(trained, console=Ends(3), **quick)
    assert len(part.points) == 3
    assert part == FrontRecord.read(trained)
    assert json.loads((trained / "front.json").read_text())["barrier"] == part.words
    assert part.clean_barrier is not None  # both ends and the middle are there
    every = measure_front(trained, **quick)
    assert len(every.points) == 5
    assert {p.sha256 for p in part.points} < {p.sha256 for p in every.points}
