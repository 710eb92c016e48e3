"""The evaluation: its API, its judge, and what it refuses."""

import json
import shutil
from collections.abc import Callable
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy.stats import binomtest
from torch import Tensor, nn

import equipoise as eq
import equipoise.evaluation
import equipoise.jobs.train
import problems
from equipoise import data
from equipoise.attacks import ATTACKS
from equipoise.attacks.apgd import APGD
from equipoise.errors import UserError
from equipoise.evaluation import Protocol
from equipoise.jobs.evaluate import evaluate_run
from equipoise.measures.statistics import interval

THREAT = eq.Linf(0.1)

evaluate = partial(eq.evaluate, checks=False)  # they have tests of their own


@pytest.fixture
def model() -> nn.Module:
    return deepcopy(problems.small_net())


def images(count: int = 60) -> tuple[Tensor, Tensor]:
    return problems.held_out(count)


# As the first page of the documentation has it


@pytest.mark.slow
def test_the_api_is_as_it_is_written(trained, monkeypatch):
    (folder := trained.parent / "runs").mkdir(exist_ok=True)
    if not (folder / "X").exists():
        (folder / "X").symlink_to(trained)
    monkeypatch.chdir(trained.parent)
    model = eq.load("runs/X")
    x, y = images(40)
    threat = eq.Linf(8 / 255)
    x_adv = eq.attacks.PGD(steps=20)(model, x, y, threat)
    assert bool(threat.contains(x, x_adv).all())
    result = eq.evaluate(model, x, y, threat=threat, attacks=["pgd-20", "mi-fgsm-10"], seed=0)
    assert 0 < result.robust_accuracy <= result.clean_accuracy <= 1
    assert result.robust.shape == (40,)
    assert result.robust.dtype == torch.bool
    assert result.x_adv.shape == x.shape
    assert result.verdicts["pgd-20"].shape == (40,)
    assert set(result.verdicts) == {"pgd-20", "mi-fgsm-10"}
    assert torch.equal(
        result.robust, result.correct & result.verdicts["pgd-20"] & result.verdicts["mi-fgsm-10"]
    )
    assert result.robust_accuracy == pytest.approx(float(result.robust.float().mean()))


def test_submodules_do_not_shadow_the_functions():
    assert callable(eq.evaluate)
    assert eq.evaluate is equipoise.evaluation.evaluate
    assert eq.train is equipoise.jobs.train.train
    assert set(eq.__all__) <= set(dir(eq))
    for name in eq.__all__:
        assert getattr(eq, name) is not None
    with pytest.raises(AttributeError, match="evaluat"):
        eq.evaluat  # noqa: B018


# The verdicts


def test_the_points_are_what_the_verdicts_say(model):
    x, y = images(200)
    result = evaluate(model, x, y, threat=THREAT, attacks="fgsm,pgd-10,cw-inf-10")
    assert bool(THREAT.contains(x, result.x_adv).all())
    with torch.no_grad():
        clean, adversarial = model(x).argmax(1), model(result.x_adv).argmax(1)
    assert torch.equal(result.prediction, clean)
    assert torch.equal(result.adversarial_prediction, adversarial)
    assert torch.equal(result.robust, (clean == y) & (adversarial == y))
    wrong = clean != y
    assert bool(wrong.any())
    assert torch.equal(result.x_adv[wrong], x[wrong])
    for verdict in result.verdicts.values():
        assert not bool(verdict[wrong].any())
        assert bool((verdict >= result.robust).all())
    assert 0.05 < result.robust_accuracy < result.clean_accuracy - 0.05


def test_each_attack_runs_alone(model):
    x, y = images(100)
    both = evaluate(model, x, y, threat=THREAT, attacks=["pgd-5", "fgsm"])
    for name in ("pgd-5", "fgsm"):
        one = evaluate(model, x, y, threat=THREAT, attacks=[name])
        assert torch.equal(one.verdicts[name], both.verdicts[name])
        assert both.robust_accuracy <= one.robust_accuracy


def test_tiny_images_are_attacked_more_at_a_time(model):
    x, y = images(40)
    shapes = {(1, 8, 8): 1024, (2, 8, 8): 512, (1, 28, 28): 250, (3, 64, 64): 250, (3,): 1024}
    for shape, size in shapes.items():
        assert Protocol().batch(torch.zeros(2, *shape)) == size
    given: dict[int, dict[str, Any]] = {1024: {}, 250: {"batch_size": 250}, 7: {"batch_size": 7}}
    results = {n: evaluate(model, x, y, threat=THREAT, **more) for n, more in given.items()}
    for size, result in results.items():
        assert result.outcomes["pgd-20"].made["batch_size"] == size  # verify repeats it
        assert torch.equal(result.robust, results[250].robust)
    with pytest.raises(UserError, match="steps must be at least 1 and whole, got None"):
        APGD(steps=None)


@pytest.mark.slow
def test_batches_and_order_do_not_change_verdicts(model):
    x, y = images(500)
    attacks = ["pgd-5", "cw-inf-5"]

    def verdicts(size: int, order: Tensor) -> dict[str, Tensor]:
        result = evaluate(
            model, x[order], y[order], threat=THREAT, attacks=attacks, batch_size=size
        )
        back = order.argsort()
        return {name: verdict[back] for name, verdict in result.verdicts.items()}

    natural = torch.arange(500)
    shuffled = torch.randperm(500, generator=torch.Generator().manual_seed(0))
    whole = verdicts(500, natural)
    for size, order in ((37, natural), (1, natural), (37, shuffled), (500, shuffled)):
        for name, verdict in verdicts(size, order).items():
            assert int((verdict != whole[name]).sum()) <= 1, (size, name)


class Noise:
    """Adds keyed noise and remembers it by example; finds nothing on purpose."""

    def __init__(self) -> None:
        self.seen: dict[bytes, Tensor] = {}

    def __call__(
        self, model: nn.Module, x: Tensor, y: Tensor, threat: Any, *, draws: Any
    ) -> Tensor:
        first, child = draws.uniform(x), draws.child("again").uniform(x)
        for example, a, b in zip(x, first, child, strict=True):
            self.seen[example.numpy().tobytes()] = torch.stack([a, b]).clone()
        return threat.start(x, first)

    def __repr__(self) -> str:
        return "Noise()"


def plant(monkeypatch: pytest.MonkeyPatch, attack: Any, name: str = "planted") -> None:
    monkeypatch.setitem(ATTACKS, name, (lambda: attack, "for tests"))


def test_random_draws_are_the_same_in_every_batch_and_order(model, monkeypatch):
    x, y = images(90)
    seen = []
    for size, order in (
        (90, torch.arange(90)),
        (1, torch.arange(90)),
        (7, torch.arange(90).flip(0)),
    ):
        noise = Noise()
        plant(monkeypatch, noise)
        evaluate(model, x[order], y[order], threat=THREAT, attacks="planted", batch_size=size)
        seen.append(noise.seen)
    for other in seen[1:]:
        assert other.keys() == seen[0].keys()
        assert all(torch.equal(other[key], seen[0][key]) for key in other)
    again = Noise()
    plant(monkeypatch, again)
    evaluate(model, x, y, threat=THREAT, attacks="planted", seed=1)
    assert not any(torch.equal(again.seen[key], seen[0][key]) for key in again.seen)


def test_the_same_seed_gives_the_same_bits_whatever_the_global_state(model):
    x, y = images(80)
    results = []
    for state in (1, 2):
        with torch.random.fork_rng([]):
            torch.manual_seed(state)
            results.append(evaluate(model, x, y, threat=THREAT, attacks="pgd-5", seed=3))
    assert torch.equal(results[0].x_adv, results[1].x_adv)
    other = evaluate(model, x, y, threat=THREAT, attacks="pgd-5", seed=4)
    assert not torch.equal(other.x_adv, results[0].x_adv)


def test_eps_zero_is_clean_accuracy_image_by_image(model):
    x, y = images(150)
    result = evaluate(model, x, y, threat=eq.Linf(0), attacks="fgsm,pgd-3,mi-fgsm-3,cw-inf-3")
    for name, verdict in result.verdicts.items():
        assert torch.equal(verdict, result.correct), name
    assert result.robust_accuracy == result.clean_accuracy
    assert torch.equal(result.x_adv, x)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_no_attack_finds_what_is_not_there(norm):
    # A linear classifier, whose worst case is known: no robust example may be called fooled.
    problem = problems.linear_problem(3, classes=3)
    threat = eq.Threat(norm, {"linf": 0.05, "l2": 0.3, "l1": 1.0}[norm])
    result = evaluate(problem.model, problem.x, problem.y, threat=threat, attacks="pgd-40")
    truth = problem.robust(threat)
    assert bool((result.robust >= truth).all())
    assert int((result.robust != truth).sum()) <= 2  # and nearly all that is there is found
    assert 0 < int(truth.sum()) < len(truth) - 6


# An attack that cheats


class Cheat:
    """Returns whatever a function makes of the inputs and labels."""

    def __init__(self, make: Callable[[Tensor, Tensor], Tensor]) -> None:
        self.make = make

    def __call__(
        self, model: nn.Module, x: Tensor, y: Tensor, threat: Any, *, draws: Any
    ) -> Tensor:
        return self.make(x, y)


@pytest.mark.parametrize(
    "make",
    [
        lambda x, y: 1 - x,
        lambda x, y: x + 0.1001 * (0.5 - x).sign(),
        lambda x, y: x - 0.05,
        lambda x, y: x.index_fill(3, torch.tensor([3]), 1.001),
        lambda x, y: torch.full_like(x, torch.nan),
        lambda x, y: torch.full_like(x, torch.inf),
        lambda x, y: x.clone().index_fill_(3, torch.tensor([0]), torch.nan),
    ],
    ids=["far", "just-outside", "below", "above", "nan", "inf", "some-nan"],
)
def test_points_that_are_not_allowed_do_not_count_and_it_is_said(model, monkeypatch, make):
    x, y = images(50)
    plant(monkeypatch, Cheat(make))
    result = evaluate(model, x, y, threat=THREAT, attacks="planted,fgsm")
    assert torch.equal(result.verdicts["planted"], result.correct)
    assert result.outcomes["planted"].rejected == int(result.correct.sum())
    assert bool(torch.isfinite(result.x_adv).all())
    assert bool(THREAT.contains(x, result.x_adv).all())
    (record,) = [r for r in result.records() if r["attack"] == "planted"]
    assert f"{int(result.correct.sum())} points were outside" in record["warnings"][0]
    (other,) = [r for r in result.records() if r["attack"] == "fgsm"]
    assert other["warnings"] == []


def in_place(x: Tensor, y: Tensor) -> Tensor:
    return x.copy_(1 - x)


def relabel(x: Tensor, y: Tensor) -> Tensor:
    y.add_(1).remainder_(10)
    return x


@pytest.mark.parametrize("make", [in_place, relabel])
def test_an_attack_cannot_move_the_goal(model, monkeypatch, make):
    # It writes into the inputs or labels it was given: the judge has its own.
    x, y = images(50)
    kept = x.clone(), y.clone()
    plant(monkeypatch, Cheat(make))
    result = evaluate(model, x, y, threat=THREAT, attacks="planted")
    assert torch.equal(x, kept[0])
    assert torch.equal(y, kept[1])
    assert torch.equal(result.verdicts["planted"], result.correct)
    assert bool(THREAT.contains(x, result.x_adv).all())


def test_points_of_another_shape_are_refused(model, monkeypatch):
    x, y = images(20)
    for make in (lambda x, y: x[:, :, :4], lambda x, y: x[:-1], lambda x, y: x.repeat(1, 3, 1, 1)):
        plant(monkeypatch, Cheat(make))
        with pytest.raises(UserError, match="expected x_adv of shape"):
            evaluate(model, x, y, threat=THREAT, attacks="planted")


def test_points_in_another_arithmetic_are_judged_as_they_are_kept(model, monkeypatch):
    x, y = images(30)
    for dtype in (torch.float64, torch.bfloat16):
        plant(monkeypatch, Cheat(lambda x, y, dtype=dtype: x.to(dtype)))
        result = evaluate(model, x, y, threat=THREAT, attacks="planted")
        with torch.no_grad():
            fooled = model(result.x_adv).argmax(1) != y
        assert torch.equal(result.robust, result.correct & ~fooled)
        assert bool(THREAT.contains(x, result.x_adv).all())


# Models that will not do


class Wrap(nn.Module):
    def __init__(self, inner: nn.Module, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.inner, self.change = inner, change

    def forward(self, x: Tensor) -> Tensor:
        return self.change(self.inner(x))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda z: z * torch.nan, "NaN"),
        (lambda z: torch.where(z > z.mean(), z, torch.nan), "NaN"),
        (lambda z: z.masked_fill(z > 0, torch.inf), "infinite"),
        (lambda z: z[:, :1], "one output"),
        (lambda z: z[:, 0], "shape"),
        (lambda z: z[:, :, None], "shape"),
        (lambda z: z[:-1], "shape"),
        (lambda z: z[:, :5], "labels must lie in"),
        (lambda z: z[0], "shape"),
    ],
)
def test_outputs_that_are_no_logits_are_refused(model, change, text):
    x, y = images(40)
    with pytest.raises(UserError, match=text):
        evaluate(Wrap(model, change), x, y, threat=THREAT, attacks="fgsm", batch_size=40)


def test_another_number_of_classes_than_the_data_has_is_refused(model):
    x, y = images(20)
    with pytest.raises(UserError, match="10 classes, the data has 3"):
        evaluate(model, x, y % 3, threat=THREAT, attacks="fgsm", classes=["a", "b", "c"])


def test_log_probabilities_are_logits(model):
    x, y = images(40)
    one = evaluate(Wrap(model, lambda z: z.log_softmax(1)), x, y, threat=THREAT)
    other = evaluate(model, x, y, threat=THREAT)
    assert abs(one.robust_accuracy - other.robust_accuracy) <= 1 / 40


def test_nan_only_near_the_inputs_is_a_wrong_answer(model):
    x, y = images(40)

    class Brittle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model

        def forward(self, points: Tensor) -> Tensor:
            known = (points.flatten(1)[:, None] == x.flatten(1)[None]).all(2).any(1)
            return torch.where(known[:, None], self.inner(points), torch.nan)

    result = evaluate(Brittle(), x, y, threat=THREAT, attacks="pgd-2")
    assert result.robust_accuracy == 0
    assert result.clean_accuracy > 0.5


# Inputs and labels that will not do


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda x, y: (x * 2 - 0.5, y), r"within \[0, 1\]"),
        (lambda x, y: (x * 255, y), r"within \[0, 1\]"),
        (lambda x, y: (x - 1e-3, y), r"within \[0, 1\]"),
        (lambda x, y: (x.masked_fill(x > 0.9, torch.nan), y), "NaN"),
        (lambda x, y: ((x * 255).byte(), y), "floats"),
        (lambda x, y: (x, nn.functional.one_hot(y, 10)), r"argmax\(1\)"),
        (lambda x, y: (x, y.float()), "int64"),
        (lambda x, y: (x, y.int()), r"y\.long\(\)"),
        (lambda x, y: (x, y[:-1]), "a label for each input"),
        (lambda x, y: (x, y + 1), r"labels must lie in 0\.\.9.*1\.\.10"),
        (lambda x, y: (x, y - 1), r"labels must lie in 0\.\.9"),
    ],
)
def test_inputs_that_will_not_do_are_refused(model, change, text):
    x, y = change(*images(60))
    with pytest.raises(UserError, match=text):
        evaluate(model, x, y, threat=THREAT, attacks="fgsm")


def test_attacks_that_do_not_exist_are_all_named(model):
    with pytest.raises(UserError, match=r"'fgms'.*did you mean 'fgsm'.*'pdg'.*did you mean 'pgd'"):
        evaluate(model, *images(5), threat=THREAT, attacks="fgms,pdg-20")
    with pytest.raises(UserError, match="batch_size"):
        evaluate(model, *images(5), threat=THREAT, batch_size=0)


def test_an_attack_that_is_not_made_for_the_norm_is_refused(model):
    with pytest.raises(UserError, match="linf"):
        evaluate(model, *images(5), threat=eq.L1(1), attacks="pgd-2,cw-inf-2")


# The edges


def test_a_model_that_is_always_wrong(model):
    x, _ = images(30)
    with torch.no_grad():
        wrong = (model(x).argmax(1) + 1) % 10
    result = evaluate(model, x, wrong, threat=THREAT, attacks="pgd-2,fgsm")
    assert result.clean_accuracy == result.robust_accuracy == 0
    assert not bool(result.robust.any())
    assert torch.equal(result.x_adv, x)
    assert [record["robust"] for record in result.records()] == [0, 0, 0, 0]


def test_one_point(model):
    x, y = images(20)
    for i in range(4):
        result = evaluate(model, x[i : i + 1], y[i : i + 1], threat=THREAT, attacks="pgd-2")
        assert result.clean_accuracy in (0, 1)
        assert result.records()[0]["n"] == 1


def test_no_points_are_refused_for_what_they_are(model):
    x, y = images(5)
    with pytest.raises(UserError, match=r"no (points|inputs|images|examples)"):
        evaluate(model, x[:0], y[:0], threat=THREAT, attacks="pgd-2")


def test_without_attacks_the_clean_accuracy_is_measured(model):
    x, y = images(40)
    result = evaluate(model, x, y, threat=THREAT, attacks="clean")
    assert result.verdicts == {}
    (record,) = result.records()
    assert record["attack"] == "clean"
    assert result.clean_accuracy > 0.5
    with pytest.raises(UserError, match="no attack was run"):
        _ = result.robust_accuracy


# The model is left as it was


def test_the_model_is_left_as_it_was(model):
    model.train()
    model[1].eval()
    model[0].weight.requires_grad_(False)
    x, y = images(40)
    model(x[:8]).sum().backward()
    grads = {n: None if p.grad is None else p.grad.clone() for n, p in model.named_parameters()}
    state = {k: v.clone() for k, v in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    before = torch.get_rng_state()
    evaluate(model, x, y, threat=THREAT, attacks="pgd-2,fgsm,mi-fgsm-2,cw-inf-2")
    assert all(torch.equal(state[k], v) for k, v in model.state_dict().items())
    assert modes == [module.training for module in model.modules()]
    assert not model[0].weight.requires_grad
    assert model[3].weight.requires_grad
    for name, parameter in model.named_parameters():
        old = grads[name]
        same = parameter.grad is None if old is None else torch.equal(parameter.grad, old)
        assert same, name
    assert torch.equal(torch.get_rng_state(), before)


def test_the_model_is_left_as_it_was_after_an_error(model, monkeypatch):
    def breaks(x: Tensor, y: Tensor) -> Tensor:
        raise RuntimeError("broken")

    model.train()
    plant(monkeypatch, Cheat(breaks))
    with pytest.raises(eq.RunError, match="broken"):
        evaluate(model, *images(5), threat=THREAT, attacks="planted")
    assert all(module.training for module in model.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())


# Records and intervals


def test_records_add_up_over_the_classes(model):
    x, y = images(120)
    names = [f"digit {k}" for k in range(10)]
    result = evaluate(model, x, y, threat=THREAT, attacks="fgsm,pgd-3", classes=names, seed=5)
    records = result.records()
    assert [r["attack"] for r in records] == ["clean", "fgsm", "pgd-3", "worst-case"]
    for record, verdict in zip(
        records, [result.correct, *result.verdicts.values(), result.robust], strict=True
    ):
        classes = record["per_class"]
        assert sum(c["n"] for c in classes.values()) == record["n"] == 120
        assert sum(c["robust"] for c in classes.values()) == record["robust"]
        assert record["robust"] == int(verdict.sum())
        assert record["accuracy"] == record["robust"] / 120
        worst = min(c["accuracy"] for c in classes.values())
        assert record["worst_class"]["accuracy"] == worst
        assert classes[record["worst_class"]["name"]]["accuracy"] == worst
        low, high = record["interval"]
        assert low <= record["accuracy"] <= high
        assert (record["norm"], record["eps"], record["seed"]) == ("linf", 0.1, 5)
        assert set(classes) <= set(names)
    assert records[-1]["attacks"] == ["fgsm", "pgd-3"]
    json.dumps(records, allow_nan=False)


@pytest.mark.parametrize("n", [1, 2, 10, 97, 500])
@pytest.mark.parametrize("confidence", [0.95, 0.99, 0.5])
def test_intervals_are_those_of_clopper_and_pearson(n, confidence):
    for k in sorted({0, 1, n // 3, n // 2, n - 1, n}):
        expected = binomtest(k, n).proportion_ci(confidence, method="exact")
        assert interval(k, n, confidence) == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_intervals_at_the_ends_have_a_closed_form():
    for n in (1, 7, 100):
        assert interval(0, n) == (0.0, pytest.approx(1 - 0.025 ** (1 / n)))
        assert interval(n, n) == (pytest.approx(0.025 ** (1 / n)), 1.0)
    assert interval(0, 0) == (0.0, 1.0)


def test_intervals_cover():
    # The exact probability that the interval covers the truth is at least what it says.
    n = 30
    for truth in (0.02, 0.2, 0.5, 0.93):
        covered = 0.0
        for k in range(n + 1):
            low, high = interval(k, n)
            if low <= truth <= high:
                covered += float(
                    torch.exp(
                        torch.distributions.Binomial(n, truth).log_prob(torch.tensor(float(k)))
                    )
                )
        assert covered >= 0.95


# As a job, in a run folder


@pytest.mark.slow
def test_the_job_says_the_same_as_the_function(trained, tmp_path):
    folder = Path(shutil.copytree(trained, tmp_path / "run"))
    records = evaluate_run(folder, attacks="pgd-3", eps=[0.05, 0.1], n=60, first=True)
    assert [(r["attack"], r["eps"]) for r in records] == [
        (name, eps) for eps in (0.05, 0.1) for name in ("clean", "pgd-3", "worst-case")
    ]
    test = data.load("digits").test
    result = evaluate(
        eq.load(folder), test.pixels()[:60], test.y[:60], threat=eq.Linf(0.1), attacks="pgd-3"
    )
    assert abs(records[-1]["robust"] - int(result.robust.sum())) <= 1
    written = [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]
    assert written == records
    assert {r["split"] for r in records} == {"test"}
    assert len({r["model_sha256"] for r in records}) == 1
    assert len(list((folder / "evaluations").glob("*.safetensors"))) == 2


@pytest.mark.parametrize("n", [0, -1, 501])
def test_the_job_refuses_a_number_of_images_that_is_not_there(trained, n):
    with pytest.raises(UserError, match=r"1\.\.500"):
        evaluate_run(trained, attacks="fgsm", n=n)
