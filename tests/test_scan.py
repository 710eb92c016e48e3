"""A scan: radii that are confirmed and never too small, masked models in red, one page."""

import copy
import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import equipoise as eq
import zoo
from browser import browser
from equipoise.attacks import PGD
from equipoise.draws import KeyedDraws
from equipoise.errors import RunError, UserError
from equipoise.evaluation.scan import FACTORS, Scanner, evaluations, radii_around, scan
from equipoise.jobs import scan as job
from equipoise.jobs.estimate import Pace
from equipoise.jobs.scan import SIZES, affordable, scan_model
from equipoise.jobs.target_model import of_run
from equipoise.report.scan import build, headline
from equipoise.store.finding import Finding
from equipoise.store.scan import FILE, PAGE, Scan
from equipoise.store.sealed import read_arrays
from equipoise.terminal.progress import Console, TimeUp
from equipoise.threat import L2, Linf
from problems import digits

QUIET = Console(quiet=True)
TRAINED = ("a3gt", "rounds=4", "width=0.25", "limit=300", "validation=60", "batch_size=40")


@pytest.fixture(scope="module")
def run(command, tmp_path_factory):
    folder = tmp_path_factory.mktemp("scan") / "run"
    words = ("train", *TRAINED, "attack.steps=2", "--data", "digits", "--out", folder, "eps=0.1")
    assert command(*words).code == 0
    return folder


@pytest.fixture
def some():
    x, y = digits()
    return x[zoo.TRAINED_ON :][:60], y[zoo.TRAINED_ON :][:60]


def made(size, *, eps=0.1, correct=None, y=None, **more):
    """Return a scan with these radii; images that are not correct have another prediction."""
    size = np.array(size, np.float64)
    y = np.arange(len(size)) % 2 if y is None else np.array(y)
    correct = np.ones(len(size), bool) if correct is None else np.array(correct)
    none = np.zeros(len(size), bool)
    return Scan(
        norm="linf", eps=eps, radii=(eps / 2, eps, 2 * eps), y=y, size=size, quick=none,
        prediction=np.where(correct, y, y + 1), blind=none, classes=("cat", "dog", "ox"), **more,
    )  # fmt: skip


# The numbers


def test_numbers_are_counted_from_the_radii():
    found = made([0.05, 0.1, 0.11, np.inf, 0.0], correct=[1, 1, 1, 1, 0])
    assert found.clean_accuracy == 0.8
    assert [found.accuracy(eps) for eps in (0.04, 0.05, 0.1, 0.11, 9)] == [0.8, 0.6, 0.4, 0.2, 0.2]
    assert found.robust_accuracy == 0.4
    assert found.half_lost == 0.1  # of four correct images the second smallest
    assert [r.robust for r in found.records.values()] == [4, 3, 2, 1]
    assert made([0.1, 0.2, 0.3]).half_lost == 0.2
    assert made([0.1, np.inf, np.inf]).half_lost is None
    assert made([0.0], correct=[0]).half_lost is None
    assert "No image" in made([0.0], correct=[0]).half_in_words
    assert "eps = 0.176 at the latest" in made([0.17526, 0.2]).half_in_words  # never rounded down
    assert "eps = 0.1 at the latest" in made([np.float32(0.1)]).half_in_words


def test_the_worst_classes_are_those_of_which_most_is_lost():
    y = [0] * 4 + [1] * 3 + [2] * 2
    found = made([0.05, 0.05, 0.2, 0.2, 0.05, 0.05, 0.2, 0.01, 0.01], y=y)
    assert found.worst_classes == [("dog", 3, 1), ("cat", 4, 2)]  # two oxen say nothing


def test_its_plain_values_are_the_numbers():
    failed = Finding(check="black-box", code="C13", status="failed", message="m", remedy="r")
    content = made([0.05, 0.1, np.inf], findings=(failed,)).content()
    assert [row["correct"] for row in content["radii"]] == [3, 2, 1, 1]
    assert (content["half_lost"], content["failed"]) == (0.1, ["black-box"])
    json.dumps(content, allow_nan=False)


def test_what_it_says_in_a_sentence():
    assert "easily fooled" in headline(made([0.01] * 20))[1]
    assert "on most of the images that it classifies" in headline(made([0.05, 0.06, 0.3]))[1]
    assert "do not fool it on most images" in headline(made([0.05, 0.3, 0.3]))[1]
    wrong = made([0.3] * 3, correct=[1, 0, 0])  # of three classes
    assert "look at its weights and inputs first" in headline(wrong)[1]
    failed = Finding(check="gradients", code="C6", status="failed", message="m")
    said = " ".join(headline(made([0.3] * 3, findings=(failed,))))
    assert "cannot be trusted (failed check: gradients)" in said
    assert "do not fool" not in said


# The search


def test_pgd_starts_where_it_is_told_to(some):
    x, y = some
    model, threat = zoo.undefended(), Linf(0.1)
    strong = PGD(steps=20, loss="margin")(model, x, y, threat)
    fooled = model(strong).argmax(1) != y
    assert fooled.sum() > 10
    short, draws = PGD(steps=1, keep="first"), KeyedDraws.of(x)
    at = short.search(model, x, y, threat, draws, start=strong)
    assert torch.equal(at[fooled], strong[fooled])
    near = short.search(model, x, y, Linf(0.05), draws, start=strong)
    assert bool(Linf(0.05).contains(x, near).all())


@pytest.mark.parametrize("threat", [Linf(0.05), L2(0.5)], ids=str)
def test_no_radius_is_below_the_exact_one_of_a_linear_model(some, threat):
    x, y = some
    x = 0.3 + 0.4 * x  # the borders of the range are too far away to matter
    torch.manual_seed(0)
    layer = nn.Linear(64, 10)
    model = nn.Sequential(nn.Flatten(), layer)
    with torch.no_grad():
        y = model(x).argmax(1)
        logits = model(x).double()
        weights = layer.weight.double()
    gaps = logits.gather(1, y[:, None]) - logits
    steps = (weights[y][:, None] - weights[None]).norm(p=1 if threat.norm == "linf" else 2, dim=2)
    exact = (gaps / steps.clamp_min(1e-12)).masked_fill(gaps == 0, torch.inf).amin(1).numpy()
    found = scan(model, x, y, threat=threat)
    assert found.clean_accuracy == 1
    assert bool((found.size >= exact * (1 - 1e-5)).all())
    assert np.median(found.size / exact) < 1.1


def test_every_radius_has_a_point_and_no_image_comes_back(some):
    x, y = some
    threat = zoo.THREAT
    scanner = Scanner(zoo.undefended(), x, y, threat)
    scanner.run()
    state, found = scanner.state, scanner.result()
    lost = state.size.isfinite() & (state.prediction == y)
    assert lost.sum() > 20
    with torch.no_grad():
        wrong = zoo.undefended()(state.x_adv[lost]).argmax(1)
    assert bool((wrong != y[lost]).all())
    assert torch.equal(wrong, state.answer[lost])
    far = threat.distance(x, state.x_adv)[lost]
    assert bool((far <= state.size[lost] + 1e-6).all())
    accuracies = [found.accuracy(eps) for eps in np.linspace(0, 1, 101)]
    assert accuracies == sorted(accuracies, reverse=True)
    assert found.radii == tuple(factor * 0.1 for factor in FACTORS)
    # An upper bound of what a longer search leaves, and not far from it.
    long = eq.evaluate(
        zoo.undefended(), x, y, threat=threat, attacks="apgd-ce,apgd-t", checks=False
    )
    assert long.robust_accuracy <= found.robust_accuracy <= long.robust_accuracy + 0.05


def test_radii_end_where_the_range_does():
    assert radii_around(Linf(0.5)) == (0.0625, 0.125, 0.25, 0.5, 1.0)
    assert radii_around(L2(2.0))[-1] == 8.0


def test_a_model_of_float64_is_scanned_in_it(some):
    x, y = (values[:16] for values in some)
    double = copy.deepcopy(zoo.undefended()).double()
    assert scan(double, x, y, threat=zoo.THREAT).quick.sum() > 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "check"),
    [
        (zoo.InputQuantised, "gradients"),
        (zoo.JpegLike, "black-box-full"),
        (zoo.LargeLogits, "saturation"),
        (zoo.SoftmaxOutput, "logits"),
        (zoo.Noisy, "randomised"),
        (zoo.TrainMode, "repeatable"),
    ],
)
def test_masked_models_are_in_red(model, check):
    x, y = digits()
    found = scan(model(), x[zoo.TRAINED_ON :][:100], y[zoo.TRAINED_ON :][:100], threat=zoo.THREAT)
    assert check in found.failed


def test_an_honest_model_is_not(some):
    found = scan(zoo.undefended(), *some, threat=zoo.THREAT)
    assert found.finished
    assert [f.check for f in found.findings if f.alarm] == []
    assert found.blind.sum() == 0


def test_without_a_gradient_the_blind_search_is_left(some):
    class Deaf(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = zoo.undefended()

        def forward(self, x):
            return self.net(x.detach())

    found = scan(Deaf(), *some, threat=zoo.THREAT)
    assert "gradients" in found.failed
    assert found.quick.sum() == 0
    assert found.blind.sum() > 0
    assert np.isfinite(found.size).sum() >= found.blind.sum()


def test_the_same_bits_twice_and_the_model_as_it_was(some):
    model = zoo.undefended().train()
    before, state = {k: v.clone() for k, v in model.state_dict().items()}, torch.get_rng_state()
    few = [values[:20] for values in some]
    one, two = (scan(model, *few, threat=zoo.THREAT, seed=3) for _ in range(2))
    assert np.array_equal(one.size, two.size)
    assert one.findings == two.findings
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training
    model.eval()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"threat": Linf(0)}, "a radius above 0"),
        ({"threat": 0.1}, "expected a threat"),
        ({"y": torch.full((60,), 10)}, "labels must lie in 0..9"),
        ({"classes": "ab"}, "the model returns 10 classes, the data has 2"),
        ({"x": torch.rand(0, 1, 8, 8), "y": torch.zeros(0).long()}, "no examples to scan"),
    ],
)
def test_bad_input_is_one_line(some, given, said):
    x, y = some
    words = {"x": x, "y": y, "threat": zoo.THREAT} | given
    with pytest.raises(UserError, match=said):
        scan(zoo.undefended(), **words)


def test_a_model_that_fails_is_one_line(some):
    with pytest.raises(RunError, match="the model fails on the clean images"):
        scan(nn.Linear(3, 3), *some, threat=zoo.THREAT)


# The job


class Stops(Console):
    """A console whose time is over after so many batches."""

    def __init__(self, batches):
        super().__init__(quiet=True)
        self.batches = batches

    def attack(self, state):
        self.batches -= 1
        if self.batches < 0:
            raise TimeUp


@pytest.mark.slow
@pytest.mark.parametrize("batches", [0, 9, 26])
def test_a_scan_that_was_stopped_ends_with_the_same_bits(run, scanned, tmp_path, batches):
    subject = of_run(run, "model", None, QUIET)
    cut, whole = tmp_path, scanned[0]
    first = scan_model(subject, n=60, out=cut, console=Stops(batches))
    assert not first.finished
    assert "Not finished" in repr(first)
    assert "-n 60" in first.about["command"]
    again = scan_model(subject, out=cut, console=QUIET)  # takes the 60 images itself
    assert again.finished
    assert again.seconds >= first.seconds
    one, two = (read_arrays(folder / FILE)[1] for folder in (cut, whole))
    assert one.keys() == two.keys()
    for name, value in one.items():
        assert np.array_equal(value, two[name]), name
    assert Scan.read(cut / FILE).findings == Scan.read(whole / FILE).findings


@pytest.mark.slow
def test_a_scan_of_another_model_or_radius_is_not_continued(run, tmp_path, monkeypatch):
    scan_model(of_run(run, "model", None, QUIET), n=50, out=tmp_path, console=Stops(3))
    monkeypatch.setattr(job, "pace", lambda *given: Pace(1e-9))
    for subject, eps in (("model", 0.2), ("last", None)):
        found = scan_model(of_run(run, subject, None, QUIET), eps=eps, out=tmp_path)
        assert found.n == 200
    (tmp_path / FILE).write_bytes(b"x" * 100)
    assert scan_model(of_run(run, "model", None, QUIET), n=16, out=tmp_path).finished


def test_the_sample_is_as_large_as_the_time_allows():
    attacks = 10 + 80 + 60 + (1 + 100 / 3) + 12
    assert evaluations("linf", 100) == pytest.approx(100 * attacks + 20 * 390)
    assert evaluations("linf", 16) == pytest.approx(16 * attacks + 8 * 390)
    assert evaluations("linf", 10_000) == pytest.approx(10_000 * attacks + 100 * 390)
    minute = 59.9 / evaluations("linf", 100)
    assert affordable(minute, "linf", 60, 500) == 100
    assert affordable(minute / 10, "linf", 60, 500) == 500
    assert affordable(minute / 10, "linf", 60, 200) == 200
    assert affordable(10 * minute, "linf", 60, 500) == SIZES[0]
    assert affordable(10 * minute, "linf", 60, 7) == 7


@pytest.mark.slow
def test_a_slow_model_gets_a_small_sample_and_says_how_long(run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(job, "pace", lambda *given: Pace(0.05))
    subject = of_run(run, "model", None, QUIET)
    found = scan_model(subject, out=tmp_path, console=Console())
    assert found.n == 16
    said = capsys.readouterr().err
    assert "this takes about 3 to 5 min on this machine for 16 images" in said
    assert "the first number comes in about 9 s" in said
    assert re.search(r"after \d+ s: \d+\.\d% of 16 images are classified correctly", said)
    monkeypatch.setattr(job, "pace", lambda *given: Pace(0.01))
    assert scan_model(subject, out=tmp_path / "long", limit=400).n == 100
    shown = scan_model(subject, out=tmp_path / "first", n=16, first=True)
    assert shown.images == "the first 16 of 500 test images"
    assert shown.about["command"].endswith(f"-n 16 --first --out {tmp_path / 'first'}")


# The command and the page


@pytest.fixture(scope="module")
def scanned(command, run):
    ended = command("scan", run, "-n", 60, "--json", run.parent / "scan.json")
    assert ended.code == 0, ended.err
    return run, ended


def test_the_command_prints_a_table_and_writes_a_page(scanned):
    folder, ended = scanned
    found = Scan.read(folder / FILE)
    assert found.n == 60
    assert re.search(r"after \d+ s: ", ended.err)
    assert f"page: {folder / PAGE}" in ended.err
    shown = " ".join(ended.out.split())
    assert f"{found.robust_accuracy:.2%}" in shown
    assert found.half_in_words in shown
    written = json.loads((folder.parent / "scan.json").read_text(encoding="utf-8"))
    assert written == json.loads(json.dumps(found.content()))
    assert written["command"] == f"equipoise scan {folder} -n 60"
    assert written["verdict"].startswith(f"equipoise evaluate {folder} --attacks ")
    page = (folder / PAGE).read_text(encoding="utf-8")
    for text in ("What this is not", "no guarantee", "equipoise evaluate", "Worst classes"):
        assert text in page
    assert page.count("difference × ") == 3


def test_the_same_scan_is_the_same_page(scanned, tmp_path):
    folder, _ = scanned
    (tmp_path / FILE).write_bytes((folder / FILE).read_bytes())
    assert build(tmp_path).read_bytes() == (folder / PAGE).read_bytes()


def test_a_run_is_sound_after_a_scan(command, scanned):
    folder, _ = scanned
    words = ("--attacks", "fgsm", "-n", 20, "--no-checks")
    assert command("evaluate", folder, *words).code == 0
    assert command("verify", folder).code == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--eps", "0.1,0.2"), "one radius"),
        (("--time", "soon"), "--time takes a time like"),
        (("--data", "digits"), "expected a run folder, or --model"),
    ],
)
def test_wrong_options_are_one_line(command, run, words, said):
    ended = command("scan", run, "-q", *words)
    assert (ended.code, ended.out) == (2, "")
    assert said in ended.line


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"eps": 0.0}, "a radius above 0"),
        ({"norm": "l2"}, "give the radius with --eps"),
        ({"n": 0}, "n must lie in 1..500"),
        ({"n": 501}, "n must lie in 1..500"),
        ({"first": True}, "first: expected n"),
    ],
)
def test_wrong_samples_and_radii_are_one_line(run, tmp_path, given, said):
    with pytest.raises(UserError, match=said):
        scan_model(of_run(run, "model", None, QUIET), out=tmp_path, **given)
    assert not (tmp_path / FILE).exists()


MINE = """
import torch
from torch import nn

class Rounded(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    def forward(self, x):
        return self.net((4 * x).round() / 4)
"""


def test_a_model_of_ones_own_and_strict(command, tmp_path):
    (tmp_path / "mine.py").write_text(MINE)
    words = ("scan", "mine:Rounded", "--data", "digits", "-n", 40, "--out", "own", "-q")
    ended = command(*words, "--strict", cwd=tmp_path)
    assert ended.code == 1
    assert "--strict: failed checks: gradients" in ended.err
    assert (tmp_path / "own" / PAGE).is_file()
    found = Scan.read(tmp_path / "own" / FILE)
    assert found.about["command"] == "equipoise scan own --model mine:Rounded -n 40"
    again = found.about["command"].split()[1:]
    assert command(*again, "-q", cwd=tmp_path).code == 0
    assert np.array_equal(Scan.read(tmp_path / "own" / FILE).size, found.size)


def test_a_damaged_scan_is_one_line(scanned, tmp_path):
    content = bytearray((scanned[0] / FILE).read_bytes())
    content[-5] ^= 1
    (tmp_path / FILE).write_bytes(content)
    with pytest.raises(UserError, match=r"is damaged .*; remove it and scan again"):
        build(tmp_path)


@pytest.mark.parametrize(
    "wrong",
    [
        {"size": np.zeros(2)},
        {"y": np.array([0.0, 1.0, 0.0])},
        {"y": np.array([0, 1, 7])},
        {"y": np.array([-1, 1, 0])},
        {"eps": 0.3},
        {"quick": np.zeros((3, 1), bool)},
    ],
    ids=str,
)
def test_a_scan_that_cannot_be_is_refused(wrong):
    with pytest.raises(ValueError, match=r"expected|there are 3 classes"):
        replace(made([0.1, 0.2, 0.3]), **wrong)


def test_names_on_the_page_are_escaped(scanned, tmp_path):
    folder, _ = scanned
    named = replace(Scan.read(folder / FILE), classes=("<script>alert(1)</script>",) * 10)
    assert "<script>" in named.shown().text()
    assert "<script>" not in named.shown().html()


@pytest.mark.browser
def test_the_page_in_a_browser(scanned):
    page = scanned[0] / PAGE
    with browser() as view:
        for width in (400, 1000):
            view.show(page, width=width)
            assert view.console() == []
            asked = [url for url in view.requests() if not url.startswith("data:")]
            assert asked == [page.resolve().as_uri()]
            assert view.ask("document.documentElement.scrollWidth") <= width
            broken = "[...document.images].filter(i => !i.complete || !i.naturalWidth).length"
            assert view.ask(broken) == 0
            assert view.ask("document.querySelectorAll('.card').length") == 3
