"""AutoAttack: its versions, its stages, what each column means, and what is kept of it."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import equipoise as eq
from equipoise.attacks import APGD, ATTACKS, FAB, PGD, AutoAttack, Square, parse
from equipoise.errors import UserError
from equipoise.evaluation import Protocol, Result
from equipoise.evaluation.evaluate import evaluate_by
from problems import held_out, linear_problem, small_net

RADII = {"linf": (0.03, 0.08), "l2": (0.2, 0.3), "l1": (0.5, 1.0)}


class Small(AutoAttack):
    """The standard version with small budgets."""

    def stages(self, norm):
        found = super().stages(norm)
        return {
            name: replace(attack, queries=30)
            if isinstance(attack, Square)
            else replace(attack, steps=5, restarts=1)
            for name, attack in found.items()
        }


@pytest.fixture
def net() -> nn.Module:
    return copy.deepcopy(small_net())


def small(net: nn.Module, count: int = 60, **options: object) -> eq.evaluate:
    x, y = held_out(count)
    options = {"attacks": {"autoattack": Small()}, "checks": False, **options}
    return eq.evaluate(net, x, y, threat=eq.Linf(0.08), **options)


# --- what it consists of ---


def test_the_standard_version_has_the_published_parameters():
    for norm in ("linf", "l2"):
        stages = AutoAttack().stages(norm)
        assert list(stages) == ["apgd-ce", "apgd-t", "fab-t", "square"]
        ce, targeted, fab, square = stages.values()
        assert (ce.steps, ce.restarts, ce.loss, ce.targets, ce.rho) == (100, 1, "ce", None, 0.75)
        assert (targeted.steps, targeted.restarts, targeted.targets) == (100, 1, 9)
        assert (fab.steps, fab.restarts, fab.targets) == (100, 1, 9)
        assert (fab.alpha_max, fab.eta, fab.beta) == (0.1, 1.05, 0.9)
        assert (square.queries, square.p_init, square.restarts) == (5000, 0.8, 1)
        assert square.rescale is False


def test_the_standard_version_for_l1_restarts_and_has_five_targets():
    ce, targeted, fab, _ = AutoAttack().stages("l1").values()
    assert (ce.restarts, targeted.targets, targeted.restarts, fab.targets) == (5, 5, 1, 9)


def test_the_plus_and_rand_versions():
    plus = AutoAttack(version="plus").stages("linf")
    assert list(plus) == ["apgd-ce", "apgd-dlr", "fab", "square", "apgd-t", "fab-t"]
    assert [plus[name].restarts for name in ("apgd-ce", "apgd-dlr", "fab")] == [5, 5, 5]
    assert plus["fab"].targets is None
    rand = AutoAttack(version="rand")
    assert rand.passes == 20
    assert [a.eot for a in rand.stages("linf").values()] == [20, 20]
    assert list(rand.stages("linf")) == ["apgd-ce", "apgd-dlr"]
    with pytest.raises(UserError, match="standard, plus, rand"):
        AutoAttack(version="custom")


def test_names_stand_for_the_published_attacks():
    assert parse("autoattack") == AutoAttack()
    assert parse("autoattack-plus") == AutoAttack(version="plus")
    assert parse("autoattack-rand") == AutoAttack(version="rand")
    assert parse("apgd-ce") == AutoAttack().stages("linf")["apgd-ce"]
    assert parse("apgd-t") == AutoAttack().stages("linf")["apgd-t"]
    assert parse("fab-t") == AutoAttack().stages("linf")["fab-t"]
    assert parse("square") == AutoAttack().stages("linf")["square"]
    assert parse("square-1000") == Square(queries=1000)
    assert parse("apgd-dlr-20(restarts=3)") == APGD(steps=20, restarts=3, loss="dlr")
    assert parse("fab-30(restarts=2)") == FAB(steps=30, restarts=2)
    with pytest.raises(UserError, match="did you mean 'queries'"):
        parse("square(querys=10)")


@pytest.mark.parametrize("name", sorted(ATTACKS))
def test_every_attack_says_for_which_norms_it_is(name):
    attack = parse(name)
    assert attack.norms
    assert set(attack.norms) <= {"linf", "l2", "l1"}


# --- exact answers ---


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_the_verdict_on_a_linear_classifier_is_the_exact_answer_on_every_point(norm):
    for seed, eps in enumerate(RADII[norm]):
        problem = linear_problem(seed, classes=4, count=80)
        threat = eq.Threat(norm, eps)
        result = eq.evaluate(
            problem.model, problem.x, problem.y, threat=threat, attacks="autoattack", checks=False
        )
        exact = problem.robust(threat)
        assert 0 < int(exact.sum()) < 72, (norm, eps)
        decided = problem.worst(threat).abs() > 1e-5
        wrong = ((result.robust != exact) & decided).nonzero()[:, 0].tolist()
        assert wrong == [], (norm, eps, problem.worst(threat)[wrong])


def test_a_binary_linear_classifier_is_decided_exactly_and_it_is_said_what_changed():
    problem = linear_problem(1, classes=2, count=60)
    result = eq.evaluate(
        problem.model, problem.x, problem.y, threat=eq.Linf(0.05), attacks="autoattack"
    )
    assert torch.equal(result.robust, problem.robust(eq.Linf(0.05)))
    said = [note for outcome in result.outcomes.values() for note in outcome.notes]
    assert any("2" in note and "margin" in note for note in said), said


# --- stages and columns ---


def test_stages_attack_what_withstood_those_before(net):
    result = small(net)
    left = result.correct
    for name, outcome in result.stages("autoattack").items():
        assert torch.equal(outcome.attacked, left), name
        left = left & outcome.verdict
    assert torch.equal(result.robust, left)
    assert torch.equal(result.verdicts["autoattack"], left)
    assert 0 < int(left.sum()) < int(result.correct.sum())


def test_individual_gives_both_columns_and_the_same_survivors(net):
    staged, alone = small(net), small(net, individual=True)
    left = alone.correct
    for name, outcome in alone.stages("autoattack").items():
        assert torch.equal(outcome.attacked, alone.correct), name
        entered = staged.outcomes[name].attacked
        # An attack on an example does not know of the others: the stage is a part of the whole.
        assert int((outcome.verdict[entered] != staged.outcomes[name].verdict[entered]).sum()) <= 1
        left = left & outcome.verdict
    assert int((left != staged.robust).sum()) <= 1
    names = [record["attack"] for record in alone.records()]
    stages = ["apgd-ce", "apgd-t", "fab-t", "square"]
    assert names == ["clean", *stages, "autoattack", "worst-case"]
    (ensemble,) = [r for r in alone.records() if r["attack"] == "autoattack"]
    for stage, name in zip(ensemble["stages"], stages, strict=True):
        (record,) = [r for r in alone.records() if r["attack"] == name]
        assert stage["alone"] == record["accuracy"] >= ensemble["accuracy"]


def test_staged_lists_are_ensembles_too(net):
    x, y = held_out(60)
    attacks = {"weak": PGD(steps=1), "strong": PGD(steps=10)}
    options = {"threat": eq.Linf(0.08), "attacks": attacks, "checks": False}
    staged = eq.evaluate(net, x, y, individual=False, **options)
    alone = eq.evaluate(net, x, y, **options)
    assert torch.equal(staged.outcomes["strong"].attacked, staged.outcomes["weak"].verdict)
    assert torch.equal(staged.robust, alone.robust)
    assert "strong" not in staged.verdicts
    assert set(alone.verdicts) == {"weak", "strong"}


def test_an_ensemble_is_not_helped_by_what_stands_beside_it():
    attacks = {"pgd": PGD(steps=1), "autoattack": Small()}
    protocol = Protocol(attacks=attacks, norm="linf")
    stages = protocol.stages
    assert [s.name for s in stages][:2] == ["pgd", "autoattack/apgd-ce"]
    assert stages[1].after == ()
    assert stages[3].after == ("autoattack/apgd-ce", "autoattack/apgd-t")
    assert all(stage.after == () for stage in replace(protocol, individual=True).stages)
    assert replace(protocol, individual=False).stages[1].after == ("pgd",)


def test_records_of_stages_add_up(net):
    result = small(net)
    (record,) = [r for r in result.records() if r["attack"] == "autoattack"]
    entered = int(result.correct.sum())
    for stage in record["stages"]:
        assert stage["entered"] == entered
        assert stage["robust"] == entered - stage["broken"]
        assert stage["accuracy"] == stage["robust"] / 60
        assert stage["finished"]
        low, high = stage["interval"]
        assert low <= stage["accuracy"] <= high
        entered = stage["robust"]
    assert record["robust"] == entered
    assert record["forwards"] == sum(stage["forwards"] for stage in record["stages"])
    assert record["stages"][0]["alone"] is not None
    assert record["stages"][-1]["alone"] is None
    assert record["stages"][-1]["backwards"] == 0
    assert result.records()[-1]["attacks"] == ["autoattack"]


def test_the_first_attack_that_broke_an_example_is_named(net):
    result = small(net, individual=True)
    for index, name in enumerate(result.broken_by):
        broke = [n for n, o in result.outcomes.items() if bool(o.broken[index])]
        assert name == (broke[0] if broke else "")
        assert bool(name) == bool(result.correct[index] & ~result.robust[index])


def test_distances_are_those_of_the_points(net):
    result = small(net)
    x, _ = held_out(60)
    assert torch.equal(result.distance, result.threat.distance(x, result.x_adv))
    assert float(result.distance.max()) <= 0.08 + 1e-6
    assert bool((result.distance[~result.correct] == 0).all())


def test_passes_are_counted(net):
    counted: list[int] = []
    net.register_forward_hook(lambda module, inputs, output: counted.append(len(inputs[0])))
    x, y = held_out(40)
    attacks = {"pgd": PGD(steps=3)}
    found = [
        eq.evaluate(
            net, x, y, threat=eq.Linf(0.05), attacks=attacks, checks=False, strongest=strongest
        )
        for strongest in (True, False)
    ]
    n = int(found[0].correct.sum())
    whole, short = (result.outcomes["pgd"] for result in found)
    fooled = int(whole.broken.sum())
    assert fooled > 0
    assert whole.backwards == 3 * n
    # The last point; the model once for each that is found; the form once for each other, since
    # a stranger's (a model with hooks) is compared with the model where the search has ended.
    assert whole.forwards == 4 * n + fooled + (n - fooled)
    assert short.backwards < whole.backwards
    assert short.forwards < whole.forwards


# --- metamorphic ---


def test_no_radius_is_clean_accuracy_and_larger_radii_are_never_more_robust(net):
    x, y = held_out(80)
    left = None
    for eps in (0.0, 0.02, 0.05, 0.1):
        result = eq.evaluate(
            net, x, y, threat=eq.Linf(eps), attacks={"autoattack": Small()}, checks=False
        )
        if left is None:
            assert torch.equal(result.robust, result.correct)
        else:
            assert int((result.robust & ~left).sum()) <= 1
            assert int(result.robust.sum()) <= int(left.sum())
        left = result.robust


def test_another_attack_never_raises_the_accuracy(net):
    attacks = {"autoattack": Small()}
    one = small(net, attacks=attacks)
    two = small(net, attacks={**attacks, "fgsm": parse("fgsm"), "cw-inf": parse("cw-inf-10")})
    assert not bool((two.robust & ~one.robust).any())


def test_a_permutation_of_the_classes_permutes_the_verdicts():
    x, y = held_out(80)
    order = torch.randperm(10, generator=torch.Generator().manual_seed(0))

    class Permuted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = copy.deepcopy(small_net()).double()

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x)[:, order]

    plain = copy.deepcopy(small_net()).double()
    options = {"threat": eq.Linf(0.08), "attacks": {"autoattack": Small()}, "checks": False}
    one = eq.evaluate(plain, x, y, **options)
    two = eq.evaluate(Permuted(), x, order.argsort()[y], **options)
    assert int((one.robust != two.robust).sum()) <= 1


@pytest.mark.slow
@pytest.mark.parametrize("change", ["batch", "order", "bfloat16"])
def test_batches_and_order_and_arithmetic_change_no_verdict(net, change):
    x, y = held_out(100)
    options = {"threat": eq.Linf(0.08), "attacks": {"autoattack": Small()}, "checks": False}
    whole = eq.evaluate(net, x, y, **options).robust
    order = torch.arange(100)
    if change == "order":
        order = torch.randperm(100, generator=torch.Generator().manual_seed(1))
    more = {"batch": {"batch_size": 37}, "bfloat16": {"precision": "bfloat16"}, "order": {}}
    other = eq.evaluate(net, x[order], y[order], **options, **more[change]).robust
    differ = (other[order.argsort()] != whole).nonzero()[:, 0].tolist()
    assert len(differ) <= 1 + (change == "bfloat16"), differ


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        ((3, 6, 8), torch.float32),
        ((1, 5, 9), torch.float64),
        ((20,), torch.float32),
        ((3, 6, 8), torch.float64),
    ],
)
@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_shapes_and_types(shape, dtype, norm):
    problem = linear_problem(3, classes=5, shape=shape, count=24, dtype=dtype)
    threat = eq.Threat(norm, RADII[norm][0])
    result = eq.evaluate(
        problem.model, problem.x, problem.y, threat=threat, attacks={"aa": Small()}, checks=False
    )
    assert bool((result.robust >= problem.robust(threat)).all())
    assert int((result.robust & ~problem.robust(threat)).sum()) <= 3
    assert result.x_adv.dtype == dtype


def test_short_inputs_are_judged_by_the_float32_model(net):
    x, y = held_out(40)
    options = {"threat": eq.Linf(0.08), "attacks": {"autoattack": Small()}, "checks": False}
    short = x.to(torch.bfloat16)  # sixteenths: exact in bfloat16
    one, two = (eq.evaluate(net, images, y, **options) for images in (x, short))
    assert torch.equal(one.robust, two.robust)
    assert two.x_adv.dtype == torch.float32


def test_the_edges(net):
    x, y = held_out(12)
    options = {"threat": eq.Linf(0.08), "attacks": {"autoattack": Small()}}
    with torch.no_grad():
        wrong = (net(x).argmax(1) + 1) % 10
    lost = eq.evaluate(net, x, wrong, **options)
    assert lost.clean_accuracy == lost.robust_accuracy == 0
    assert lost.finished
    assert all(not bool(o.attacked.any()) for o in lost.outcomes.values())
    one = eq.evaluate(net, x[:1], y[:1], **options)
    assert one.robust_accuracy in (0, 1)
    assert one.records()[-1]["n"] == 1


def test_what_short_arithmetic_leaves_near_a_boundary_is_searched_again(net):
    seen: list[str] = []

    class Watched(PGD):
        def __call__(self, model, x, y, threat, *, draws=None):
            seen.append(f"{model.precision} {len(x)}")
            return super().__call__(model, x, y, threat, draws=draws)

    x, y = held_out(100)
    attacks = {"pgd": Watched(steps=3, loss="margin")}
    result = eq.evaluate(
        net, x, y, threat=eq.Linf(0.06), attacks=attacks, precision="bfloat16", checks=False
    )
    assert seen[0] == f"bfloat16 {int(result.correct.sum())}"
    (again,) = seen[1:]
    assert again.startswith("float32 ")
    assert 0 < int(again.split()[1]) < 30
    full = eq.evaluate(net, x, y, threat=eq.Linf(0.06), attacks=attacks, checks=False)
    assert torch.equal(result.robust, full.robust)


def test_channels_last_inputs_and_models(net):
    x, y = held_out(40)
    options = {"threat": eq.Linf(0.08), "attacks": {"autoattack": Small()}, "checks": False}
    one = eq.evaluate(net, x, y, **options)
    last = net.to(memory_format=torch.channels_last)
    two = eq.evaluate(last, x.to(memory_format=torch.channels_last), y, **options)
    assert int((one.robust != two.robust).sum()) <= 1


@pytest.mark.slow
@pytest.mark.parametrize("classes", [2, 3, 4, 12])
def test_any_number_of_classes(classes):
    problem = linear_problem(5, classes=classes, count=40, dtype=torch.float32)
    result = eq.evaluate(
        problem.model, problem.x, problem.y, threat=eq.Linf(0.05), attacks={"aa": Small()}
    )
    assert bool((result.robust >= problem.robust(eq.Linf(0.05))).all())
    (few,) = [f for f in result.findings if f.check == "few-classes"]
    assert (few.status == "ok") == bool(few.message)


# --- as an attack of its own ---


def test_called_as_an_attack_it_returns_allowed_points(net):
    x, y = held_out(40)
    threat = eq.Linf(0.08)
    x_adv = Small()(net, x, y, threat)
    assert bool(threat.contains(x, x_adv).all())
    result = small(net, 40)
    with torch.no_grad():
        robust = net(x_adv).argmax(1) == y
    assert int((robust != result.robust).sum()) <= 1
    assert Small()(net, x[:0], y[:0], threat).shape == (0, 1, 8, 8)


def test_a_random_model_is_judged_by_its_answer_on_average():
    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = copy.deepcopy(small_net())

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x) + 2 * torch.randn(len(x), 10)

    x, y = held_out(60)
    attacks = {"apgd-ce": APGD(steps=5, eot=5)}
    before = torch.get_rng_state()
    options = {"threat": eq.Linf(0.03), "attacks": attacks, "checks": False}
    lucky = eq.evaluate(Noisy(), x, y, passes=1, **options)
    fair = eq.evaluate(Noisy(), x, y, passes=20, **options)
    again = eq.evaluate(Noisy(), x, y, passes=20, **options)
    assert torch.equal(torch.get_rng_state(), before)
    assert fair.passes == 20
    assert fair.clean_accuracy > lucky.clean_accuracy - 0.02
    assert fair.clean_accuracy == again.clean_accuracy
    assert fair.robust_accuracy > 0.3


# --- what goes wrong on the way ---


class Tired(nn.Module):
    """Raises after so many forward passes."""

    def __init__(self, passes: int) -> None:
        super().__init__()
        self.inner, self.left = copy.deepcopy(small_net()), [passes]

    def __deepcopy__(self, memo: dict[int, object]) -> "Tired":
        raise TypeError("cannot be copied")

    def forward(self, x: Tensor) -> Tensor:
        self.left[0] -= 1
        if self.left[0] < 0:
            raise RuntimeError("the disk with the lookup table is gone")
        return self.inner(x)


def test_what_was_found_before_a_model_raises_stays():
    x, y = held_out(60)
    kept: list[Result] = []
    protocol = Protocol(
        attacks={"pgd": PGD(steps=5)}, norm="linf", eps=0.08, checks=False, batch_size=10
    )
    with pytest.raises(eq.RunError, match=r"pgd failed after \d+ of 60.*lookup table") as failed:
        evaluate_by(protocol, Tired(40), x, y, after=kept.append)
    result = failed.value.result
    done = result.outcomes["pgd"]
    assert 0 < int(done.attacked.sum()) < int(result.correct.sum())
    assert not done.finished
    assert not result.finished
    assert torch.equal(kept[-1].x_adv, result.x_adv)
    whole = evaluate_by(protocol, copy.deepcopy(small_net()), x, y)
    before = result.x_adv.clone()
    resumed = evaluate_by(protocol, Tired(10_000), x, y, begun=result)
    assert torch.equal(resumed.robust, whole.robust)
    assert resumed.finished
    assert torch.equal(result.x_adv, before)  # what was begun is left as it was


def test_what_was_begun_must_fit(net):
    x, y = held_out(20)
    begun = small(net, 20)
    small_one = {"autoattack": Small()}
    protocol = Protocol(attacks=small_one, norm="linf", eps=0.08, checks=False)
    with pytest.raises(UserError, match="other inputs or labels"):
        evaluate_by(protocol, net, x, (y + 1) % 10, begun=begun)
    other = replace(protocol, attacks="autoattack")
    with pytest.raises(UserError, match="was begun as"):
        evaluate_by(other, net, x, y, begun=begun)


def test_outputs_that_are_not_finite_are_named(net):
    class Brittle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = net

        def forward(self, x: Tensor) -> Tensor:
            far = (x.flatten(1).sum(1) * 1e4).long() % 2 == 0
            known = (x.flatten(1) * 16 % 1 == 0).all(1)
            return torch.where((far & ~known)[:, None], torch.nan, self.inner(x))

    x, y = held_out(40)
    result = eq.evaluate(
        Brittle(), x, y, threat=eq.Linf(0.01), attacks={"pgd": PGD(steps=2)}, checks=False
    )
    outcome = result.outcomes["pgd"]
    assert outcome.nonfinite > 0
    (record,) = [r for r in result.records() if r["attack"] == "pgd"]
    assert "NaN or infinite" in record["warnings"][0]
