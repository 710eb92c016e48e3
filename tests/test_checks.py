"""The automatic checks: what is broken sets off its own check, what is honest sets off none."""

import json
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import zoo
from equipoise.attacks import APGDCE, APGDT, FABT, FGSM, MIFGSM, PGD, CWInf, Square
from equipoise.evaluation.checks import (
    CHECKS,
    Finding,
    after,
    audit,
    before,
    probes,
    transfer,
)
from equipoise.evaluation.checks.finding import finding, graded
from equipoise.execution import Execution, fast
from equipoise.threat import L2, Linf, Threat

ALARM = ("warning", "failed")
N = 200


def alarms(findings: Sequence[Finding]) -> dict[str, Finding]:
    return {found.check: found for found in findings if found.status in ALARM}


def by_name(findings: Sequence[Finding]) -> dict[str, Finding]:
    named = {found.check: found for found in findings}
    assert len(named) == len(findings)
    return named


def some(count: int = N) -> tuple[Tensor, Tensor]:
    x, y = zoo.digits_below(10)
    return x[:count], y[:count]


def checked(model: nn.Module, threat: Threat = zoo.THREAT, count: int = N) -> list[Finding]:
    x, y = some(count)
    return before(model, x, y, threat) + probes(model, x, y, threat)


# --- honest models and attacks set off nothing ---


@pytest.mark.slow
@pytest.mark.parametrize("name", zoo.HONEST_NAMES)
def test_an_honest_model_sets_off_no_check(name):
    case = zoo.honest(name)
    x, y = case.x[:N], case.y[:N]
    found = before(case.model, x, y, case.threat) + probes(case.model, x, y, case.threat)
    assert not alarms(found)
    assert set(by_name(found)) <= set(CHECKS)
    assert sum(each.status == "ok" for each in found) >= len(found) - 1


@pytest.mark.slow
def test_the_honest_models_are_worth_their_name():
    broken = zoo.honest("strongly-attacked")
    x_adv = PGD(steps=20)(broken.model, broken.x, broken.y, broken.threat)
    assert (broken.model(x_adv).argmax(1) == broken.y).float().mean() < 0.01
    robust = zoo.honest("adversarially-trained")
    x_adv = PGD(steps=20)(robust.model, robust.x, robust.y, robust.threat)
    assert (robust.model(x_adv).argmax(1) == robust.y).float().mean() > 0.5
    for name in zoo.HONEST_NAMES:
        case = zoo.honest(name)
        assert (case.model(case.x).argmax(1) == case.y).float().mean() > 0.85, name


HONEST_ATTACKS = {
    "homemade": zoo.Homemade(),
    "fgsm": FGSM(),
    "pgd": PGD(),
    "mi-fgsm": MIFGSM(),
    "cw-inf": CWInf(),
    "apgd-ce": APGDCE(),
    "apgd-t": APGDT(),
    "fab-t": FABT(steps=20),
    "square": Square(),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", HONEST_ATTACKS)
def test_an_honest_attack_sets_off_no_check(name):
    x, y = some()
    found = audit(HONEST_ATTACKS[name], zoo.undefended(), x, y, zoo.THREAT)
    assert not alarms(found)
    assert by_name(found)["attack-blind"].status == "ok"


def test_an_attack_is_not_blamed_for_the_logits_of_the_model():
    x, y = some(60)
    assert not alarms(audit(MIFGSM(), zoo.LargeLogits(), x, y, zoo.THREAT))


@pytest.mark.slow
@pytest.mark.parametrize("threat", [L2(0.7), Threat("l1", 3.0)], ids=repr)
@pytest.mark.parametrize("attack", [PGD(), APGDCE()], ids=["pgd", "apgd-ce"])
def test_an_honest_attack_sets_off_no_check_in_other_norms(attack, threat):
    x, y = some()
    assert not alarms(audit(attack, zoo.undefended(), x, y, threat))


# --- each broken defence sets off its own check ---

# The check that is made for it, a number that it measures, and the smallest and largest value.
DEFENCES: dict[str, tuple[str, str, float, float]] = {
    "input-quantised": ("gradients", "alive", 1, N),
    "jpeg-like": ("gradients", "alive", 1, N),
    "large-logits": ("saturation", "gap", 50, 1e9),
    "softmax-output": ("logits", "high", 0.5, 1.001),
    "winners-take-all": ("smooth", "cosine", -1, 0.9),
    "noisy": ("randomised", "moved", 1, N),
    "train-mode": ("eval-mode", "changed", 1, 99),
    "signs": ("gradients", "alive", 1, N),
}

# What else must be seen of it.
SYMPTOMS: dict[str, set[str]] = {
    "input-quantised": {"black-box", "unbounded", "noise"},
    "jpeg-like": {"black-box", "unbounded", "noise"},
    "large-logits": {"masking", "logit-scale"},
    "softmax-output": set(),
    "winners-take-all": {"black-box"},
    "noisy": set(),
    "train-mode": {"repeatable"},
    "signs": {"black-box", "unbounded", "noise"},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", zoo.DEFENCES)
def test_a_broken_defence_sets_off_its_own_check(name):
    check, number, least, most = DEFENCES[name]
    seen = alarms(checked(zoo.DEFENCES[name]()))
    assert check in seen
    assert least <= seen[check].measured[number] <= most
    assert seen[check].remedy
    assert seen.keys() >= SYMPTOMS[name]
    for found in seen.values():
        assert "\n" not in found.message + found.remedy


def test_probabilities_are_a_failure_and_no_warning():
    assert alarms(checked(zoo.DEFENCES["softmax-output"]()))["logits"].status == "failed"


def test_every_defence_and_every_attack_of_the_zoo_is_in_a_table():
    assert set(DEFENCES) == set(SYMPTOMS) == set(zoo.DEFENCES)
    assert set(ATTACKS) == set(zoo.ATTACKS)


# --- each broken attack sets off its own check ---

# The check that is made for it, a number that it measures, and the smallest and largest value.
ATTACKS: dict[str, tuple[str, str, float, float]] = {
    "ignored-steps": ("attack-steps", "many", 1, 20),
    "last-iterate": ("attack-lost", "lost", 18, 18),
    "no-projection": ("attack-constraint", "outside", 1, N),
    "wrong-sign": ("attack-ascent", "down", 17, N),
    "detached-loss": ("attack-blind", "won", 0, 22),
    "normalised-eps": ("attack-reach", "share", 0, 0.8),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", zoo.ATTACKS)
def test_a_broken_attack_sets_off_its_own_check(name):
    check, number, least, most = ATTACKS[name]
    x, y = some()
    seen = alarms(audit(zoo.ATTACKS[name](), zoo.undefended(), x, y, zoo.THREAT))
    assert least <= seen[check].measured[number] <= most
    assert seen[check].remedy
    alone = name != "wrong-sign"  # which also loses what it meets, and is worse than noise
    assert not alone or set(seen) == {check}


def test_an_attack_that_raises_or_does_nothing_is_a_finding():
    x, y = some(60)

    def raises(*arguments: object, **options: object) -> Tensor:
        raise RuntimeError("no such thing")

    def stays(model: nn.Module, x: Tensor, *arguments: object, **options: object) -> Tensor:
        return x.clone()

    seen = alarms(audit(raises, zoo.undefended(), x, y, zoo.THREAT))
    assert "no such thing" in seen["attack-constraint"].message
    seen = alarms(audit(stays, zoo.undefended(), x, y, zoo.THREAT))
    assert "moves 0 of 32" in seen["attack-blind"].message
    assert seen["attack-reach"].status == "failed"


def test_audits_of_several_attacks_can_be_told_apart():
    x, y = some(40)
    found = audit(PGD(steps=5), zoo.undefended(), x, y, zoo.THREAT, name="mine")
    codes = {f"{name}:mine": code for name, code in CHECKS.items() if name.startswith("attack-")}
    assert {each.check: each.code for each in found} == codes


@pytest.mark.slow
def test_no_two_stages_of_an_evaluation_use_the_same_name():
    x, y = some(40)
    model, all_true = zoo.undefended(), torch.ones(40, dtype=torch.bool)
    stages = [
        before(model, x, y, zoo.THREAT),
        probes(model, x, y, zoo.THREAT),
        after({"pgd": all_true}, all_true),
        audit(PGD(steps=5), model, x, y, zoo.THREAT),
        [transfer(model, x, y, zoo.THREAT, {"twin": x}, all_true)[0]],
    ]
    names = [each.check for stage in stages for each in stage]
    of_the_evaluation = ["outputs", "search-form", "screens", "class-order"]
    assert sorted(names + of_the_evaluation) == sorted(CHECKS)


def test_an_audit_skips_what_it_cannot_ask():
    x, y = some(20)
    found = audit(FGSM(), zoo.undefended(), x, y, Threat("l1", 1.0))
    assert {each.status for each in found} == {"skipped"}
    wrong = (zoo.undefended()(x).argmax(1) + 1) % 10
    found = audit(FGSM(), zoo.undefended(), x, wrong, zoo.THREAT)
    assert {each.status for each in found} == {"skipped"}
    found = by_name(audit(FGSM(), zoo.undefended(), x[:3], y[:3], zoo.THREAT))
    assert found["attack-reach"].status == found["attack-blind"].status == "skipped"


# --- odd models are findings, not errors ---


class Odd(nn.Module):
    """The network for digits with something done to its input or output."""

    def __init__(self, change: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.inner = deepcopy(zoo.undefended())
        self.change = change

    def forward(self, x: Tensor) -> Tensor:
        return self.change(self.inner, x)


class NoBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        raise RuntimeError("no backward pass")


def refuse(inner: nn.Module, x: Tensor) -> Tensor:
    raise RuntimeError("only 32 x 32 pixels")


def optimise(inner: nn.Module, x: Tensor) -> Tensor:
    with torch.enable_grad():
        moved = x.detach().clone().requires_grad_(True)
        inner(moved).logsumexp(1).sum().backward()
    return inner((x + 0.01 * moved.grad.sign()).clamp(0, 1))


def learn(inner: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        inner.linear.bias.add_(1e-3)
    return inner(x)


def straight_through(inner: nn.Module, x: Tensor) -> Tensor:
    return inner(x + ((3 * x).round() / 3 - x).detach())


ODD: dict[str, tuple[Callable[[nn.Module, Tensor], Tensor], str, str, str]] = {
    "raises": (refuse, "logits", "failed", "only 32 x 32 pixels"),
    "raises-backward": (lambda m, x: m(NoBackward.apply(x)), "gradients", "failed",
                        "no backward pass"),
    "detached": (lambda m, x: m(x.detach()), "gradients", "failed", "no gradient reaches"),
    "constant": (lambda m, x: m(0 * x + 0.5), "gradients", "failed", "noise does not move"),
    "nan": (lambda m, x: m(x) * torch.nan, "logits", "failed", "NaN or infinite"),
    "one-output": (lambda m, x: m(x)[:, :1], "logits", "failed", "one output"),
    "flat": (lambda m, x: m(x)[:, 0], "logits", "failed", "expected logits of shape"),
    "too-few-classes": (lambda m, x: m(x)[:, :5], "logits", "failed", "5 classes"),
    "sigmoid": (lambda m, x: m(x).sigmoid(), "logits", "warning", "as behind a sigmoid"),
    "optimises": (optimise, "dynamic", "failed", "optimises at test time"),
    "learns": (learn, "dynamic", "failed", "changed the parameters inner.linear.bias"),
    "straight-through": (straight_through, "smooth", "warning", "that of another function"),
    "255": (lambda m, x: m(x / 255), "range", "failed", "scaled to 0..255"),
    "centred": (lambda m, x: m((x + 1) / 2), "range", "failed", "the model expects those"),
    "batch": (lambda m, x: m(x - x.mean(0)), "repeatable", "failed", "depends on the batch"),
}  # fmt: skip


@pytest.mark.parametrize("name", ODD)
def test_an_odd_model_is_a_finding(name):
    change, check, status, words = ODD[name]
    found = by_name(before(Odd(change), *some(100), zoo.THREAT))
    assert (found[check].status, found[check].code) == (status, CHECKS[check])
    assert words in found[check].message
    assert found[check].remedy


@pytest.mark.slow
@pytest.mark.parametrize("name", ["raises", "raises-backward", "constant", "nan", "one-output"])
def test_probes_of_an_odd_model_break_nothing(name):
    found = probes(Odd(ODD[name][0]), *some(60), zoo.THREAT)
    assert {"black-box", "noise", "one-step"} <= set(by_name(found))


@pytest.mark.slow
def test_the_gradient_is_missed_and_the_others_still_run():
    found = by_name(probes(zoo.Signs(), *some(), zoo.THREAT))
    cut = by_name(probes(Odd(lambda m, x: m(NoBackward.apply(x))), *some(), zoo.THREAT))
    assert cut["one-step"].status == cut["unbounded"].status == "skipped"
    assert cut["noise"].status != "skipped"
    assert cut["black-box"].measured["count"] > 0
    assert found["one-step"].status != "skipped"


def test_dropout_that_stays_on_is_found_twice():
    model = nn.Sequential(deepcopy(zoo.undefended()), nn.Dropout(0.5))
    model[1].train = lambda mode=True: model[1]  # type: ignore[method-assign]
    seen = alarms(before(model, *some(60), zoo.THREAT))
    assert "1 (Dropout)" in seen["eval-mode"].message
    assert seen["randomised"].status == "failed"


def test_several_passes_turn_randomness_into_a_warning():
    found = by_name(before(zoo.Noisy(), *some(60), zoo.THREAT, passes=10))
    assert found["randomised"].status == "warning"
    assert "average of 10 passes" in found["randomised"].message


def test_a_model_in_training_mode_is_evaluated_in_eval_mode():
    model = deepcopy(zoo.undefended()).train()
    found = before(model, *some(60), zoo.THREAT, original_training=True)
    assert not alarms(found)
    assert "came in training mode" in by_name(found)["eval-mode"].message


@pytest.mark.parametrize(
    ("change", "status", "words"),
    [
        (lambda x: (255 * x).round(), "failed", "look like bytes"),
        (lambda x: (x - x.mean()) / x.std(), "failed", "normalised by the loader"),
        (lambda x: 1.5 * x, "failed", "another scale"),
        (lambda x: x / 255, "warning", "0.4% of [0, 1]"),
        (lambda x: x + torch.nan, "failed", "NaN"),
    ],
)
def test_inputs_of_another_range_are_found(change, status, words):
    x, y = some(60)
    found = before(zoo.undefended(), change(x), y, zoo.THREAT)
    ranges = [each for each in found if each.check == "range"]
    assert ranges[0].status == status
    assert words in ranges[0].message


def test_few_classes_are_told():
    for name, classes in (("two-classes", 2), ("three-classes", 3)):
        case = zoo.honest(name)
        told = by_name(before(case.model, case.x, case.y, case.threat))["few-classes"]
        assert told.message.startswith(f"{classes} classes: ")
        assert told.measured["classes"] == classes
    found = by_name(before(zoo.undefended(), *some(60), zoo.THREAT, classes=7))
    assert "the data has 7" in found["logits"].message


def test_other_types_and_shapes_are_checked_too():
    case = zoo.honest("mlp")
    x, y = case.x[:100].double().flatten(1), case.y[:100]
    model = deepcopy(case.model).double()
    assert not alarms(before(model, x, y, case.threat) + probes(model, x, y, case.threat))


# --- probes ---


@pytest.mark.slow
def test_too_few_steps_are_found():
    short = PGD(steps=5, step_size=0.01, start="zero")
    case = zoo.honest("undefended")
    found = by_name(probes(case.model, *some(), zoo.THREAT, attacks={"pgd-5": short}))
    assert found["more-steps"].status == "warning"
    assert "10 steps in place of 5" in found["more-steps"].message
    long = by_name(probes(case.model, *some(), zoo.THREAT, attacks={"pgd-20": PGD()}))
    assert long["more-steps"].status == "ok"


def test_too_few_restarts_are_found():
    noise = PGD(steps=1, step_size=1e-9)
    found = by_name(probes(zoo.undefended(), *some(), Linf(0.8), attacks={"noise": noise}))
    assert found["restarts"].status == "warning"
    assert "2 restarts in place of 1" in found["restarts"].message


def test_what_falls_to_a_smaller_eps_alone_is_found():
    found = by_name(probes(zoo.Signs(), *some(500), Linf(0.4)))["monotone"]
    assert found.status == "failed"
    assert found.measured["half"] + found.measured["double"] == found.measured["count"] > 5
    assert "rows " in found.message


def test_rows_in_messages_are_rows_of_the_caller():
    x, y = some()
    found = by_name(probes(zoo.Signs(), x, y, zoo.THREAT))
    rows = found["black-box"].message.partition("rows ")[2].partition(")")[0].split(", ")[:5]
    positions = [int(row) for row in rows if row != "..."]
    model = zoo.Signs().eval()
    assert bool((model(x[positions]).argmax(1) == y[positions]).all())


def test_eps_zero_and_wrong_models_are_skipped():
    x, y = some(40)
    found = probes(zoo.undefended(), x, y, Linf(0))
    assert {each.status for each in found} == {"skipped"}
    wrong = (zoo.undefended()(x).argmax(1) + 1) % 10
    found = probes(zoo.undefended(), x, wrong, zoo.THREAT)
    assert {each.status for each in found} == {"skipped"}
    assert not alarms(before(zoo.undefended(), x, y, Linf(0)))


@pytest.mark.slow
def test_probes_depend_neither_on_the_order_nor_on_the_search_form():
    x, y = some(120)
    plain = by_name(probes(zoo.undefended(), x, y, zoo.THREAT))
    order = torch.randperm(120, generator=torch.Generator().manual_seed(1))
    turned = by_name(probes(zoo.undefended(), x[order], y[order], zoo.THREAT))
    form = fast(zoo.undefended(), x, Execution(precision="float32"))
    quick = by_name(probes(form, x, y, zoo.THREAT))
    for name, found in plain.items():
        assert turned[name].measured == pytest.approx(found.measured, rel=1e-4), name
        assert quick[name].measured == pytest.approx(found.measured, rel=1e-4), name


# --- the price ---


class Counter:
    """Counts the examples that pass forward and backward through a model."""

    def __init__(self, model: nn.Module) -> None:
        self.forwards = self.backwards = 0
        self.handle = model.register_forward_hook(self.count)

    def count(self, _: nn.Module, inputs: tuple[Tensor, ...], out: Tensor) -> None:
        self.forwards += len(inputs[0])
        if out.requires_grad:
            out.register_hook(self.count_back)

    def count_back(self, grad: Tensor) -> None:
        self.backwards += len(grad)


@pytest.mark.slow
@pytest.mark.parametrize("n", [50, 500])
def test_checks_cost_a_tenth_of_autoattack_at_most(n):
    case = zoo.honest("adversarially-trained")
    x, y = case.x[:n], case.y[:n]
    model = deepcopy(case.model)
    robust = int((model(PGD()(model, x, y, case.threat)).argmax(1) == y).sum())
    counter = Counter(model)
    before(model, x, y, case.threat)
    probes(model, x, y, case.threat)
    price = counter.forwards + 2 * counter.backwards
    assert counter.backwards > 0
    assert price <= 0.1 * robust * (8000 + 2 * 2000)
    assert price <= 150_000


def test_a_model_without_any_robustness_costs_next_to_nothing():
    case = zoo.honest("strongly-attacked")
    model = deepcopy(case.model)
    counter = Counter(model)
    probes(model, case.x[:500], case.y[:500], case.threat)
    assert counter.forwards + 2 * counter.backwards < 30_000


# --- models and random numbers are left as they were ---


@pytest.mark.slow
@pytest.mark.parametrize("name", ["undefended", "noisy", "train-mode", "learns"])
def test_everything_is_left_as_it_was(name):
    odd = {"undefended": lambda: deepcopy(zoo.undefended()), "learns": lambda: Odd(learn)}
    model = {**zoo.DEFENCES, **odd}[name]().train()
    kept = {key: value.clone() for key, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    wanted = [parameter.requires_grad for parameter in model.parameters()]
    x, y = some(60)
    x_before, state = x.clone(), torch.random.get_rng_state()
    before(model, x, y, zoo.THREAT)
    probes(model, x, y, zoo.THREAT)
    audit(PGD(steps=5), model, x, y, zoo.THREAT)
    transfer(model, x, y, zoo.THREAT, {"own": x}, torch.ones(60, dtype=torch.bool))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(x, x_before)
    assert all(torch.equal(value, kept[key]) for key, value in model.state_dict().items())
    assert [module.training for module in model.modules()] == modes
    assert [parameter.requires_grad for parameter in model.parameters()] == wanted
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not model._forward_hooks


@pytest.mark.slow
def test_the_same_seed_says_the_same():
    model = zoo.Noisy()
    assert checked(model, count=40) == checked(model, count=40)
    x, y = some(40)
    other = by_name(before(model, x, y, zoo.THREAT, seed=1))["randomised"]
    assert other != by_name(before(model, x, y, zoo.THREAT, seed=0))["randomised"]


# --- after an evaluation ---


def flags(*true: int, n: int = 100) -> Tensor:
    out = torch.zeros(n, dtype=torch.bool)
    out[list(true)] = True
    return out


def test_a_plain_evaluation_sets_off_no_check():
    correct = ~flags(0, 1)
    left = correct & ~flags(*range(40))
    verdicts = {"pgd-20": left, "autoattack/apgd-ce": left, "autoattack/apgd-t": left & ~flags(50),
                "cw-inf": left & ~flags(51), "autoattack/square": left}  # fmt: skip
    margin = torch.where(left & ~flags(50, 51), 1.0, -0.5)
    found = after(
        verdicts, correct, margin=margin, distance=torch.full((100,), 0.1), threat=Linf(0.1),
        control=torch.zeros(100, dtype=torch.bool), rejected={"pgd-20": 0},
    )  # fmt: skip
    assert not alarms(found)
    assert {each.status for each in found} == {"ok"}
    assert by_name(found)["masking-full"].measured["count"] == 1


def test_an_undefended_model_sets_off_no_check():
    correct = ~flags(0)
    none = flags()
    found = after({"pgd-20": none, "cw-inf": none, "square": none}, correct,
                  margin=torch.full((100,), -1.0), control=0.0)  # fmt: skip
    assert not alarms(found)


def test_points_outside_the_threat_are_told():
    correct = ~flags()
    found = by_name(after({"mine": correct}, correct, rejected={"mine": 7, "pgd": 0}))
    assert found["constraint"].status == "failed"
    assert "7 of mine" in found["constraint"].message
    assert "pgd" not in found["constraint"].message


@pytest.mark.parametrize(
    ("count", "status"), [(0, "ok"), (1, "ok"), (4, "warning"), (20, "failed")]
)
def test_square_that_beats_gradients_is_told(count, status):
    correct = ~flags(0)
    verdicts = {"pgd-20": correct, "autoattack/square": correct & ~flags(*range(30, 30 + count))}
    found = by_name(after(verdicts, correct))["black-box-full"]
    assert found.status == status
    assert ("rows 30" in found.message) == (status != "ok")


def test_square_is_only_held_against_attacks_that_saw_the_example():
    correct = ~flags()
    verdicts = {"pgd-20": correct, "square": correct & ~flags(*range(20))}
    seen = {"pgd-20": ~flags(*range(20)), "square": correct}
    assert by_name(after(verdicts, correct, attacked=seen))["black-box-full"].status == "ok"
    assert by_name(after({"square": correct}, correct))["black-box-full"].status == "skipped"


def test_a_lost_point_is_told():
    correct = ~flags()
    verdicts = {"pgd-20": correct & ~flags(3, 4)}
    margin = torch.full((100,), torch.inf)
    margin[3], margin[4] = 0.2, -0.2
    found = by_name(after(verdicts, correct, margin=margin))["lost"]
    assert found.status == "failed"
    assert "rows 3)" in found.message
    assert found.measured["count"] == 1


def test_a_gap_between_losses_is_told():
    correct = ~flags()
    ce = correct & ~flags(*range(30))
    verdicts = {"autoattack/apgd-ce": ce, "autoattack/apgd-dlr": ce & ~flags(*range(30, 45))}
    found = by_name(after(verdicts, correct))["masking-full"]
    assert found.status == "warning"
    assert "(15 points)" in found.message
    named = {"pgd-20": ce, "pgd-20(loss=margin)": verdicts["autoattack/apgd-dlr"]}
    assert by_name(after(named, correct))["masking-full"].status == "warning"
    assert (
        by_name(after({"fgsm": correct, "cw-inf": ce}, correct))["masking-full"].status
        == "skipped"
    )


def test_the_control_is_told():
    correct = ~flags()
    left = correct & ~flags(*range(60))
    assert by_name(after({"pgd-20": left}, correct))["control"].status == "skipped"
    strong = by_name(after({"pgd-20": left}, correct, control=0.45))["control"]
    assert strong.status == "warning"
    assert "no gain" in strong.message
    weak = by_name(after({"pgd-20": left}, correct, control=flags(1, 2)))["control"]
    assert weak.status == "ok"
    assert weak.measured == {"control": 0.02, "robust": 0.4, "n": 100}


# --- points from elsewhere ---


def test_points_that_transfer_are_told():
    case = zoo.honest("undefended")
    x, y = case.x[:200], case.y[:200]
    x_adv = PGD()(case.model, x, y, zoo.THREAT)
    withstood = case.model(x).argmax(1) == y  # as if by a blind attack
    found, fooled = transfer(case.model, x, y, zoo.THREAT, {"twin": x_adv}, withstood)
    assert found.status == "failed"
    assert torch.equal(fooled, withstood & (case.model(x_adv).argmax(1) != y))
    assert found.measured["count"] == int(fooled.sum()) > 20
    first = int(fooled.nonzero()[0, 0])
    assert f"{int(fooled.sum())} by twin; rows {first}" in found.message


def test_points_that_are_not_allowed_do_not_transfer():
    case = zoo.honest("undefended")
    x, y = case.x[:200], case.y[:200]
    x_adv = PGD()(case.model, x, y, zoo.THREAT)
    withstood = case.model(x).argmax(1) == y
    others = {"wide": x_adv, "other": x_adv[:50]}
    found, fooled = transfer(case.model, x, y, Linf(0.05), others, withstood)
    assert (found.status, int(fooled.sum())) == ("ok", 0)
    found, _ = transfer(case.model, x, y, zoo.THREAT, {}, withstood)
    assert found.status == "skipped"


# --- findings ---


def test_a_count_is_judged_by_its_interval():
    assert graded(0, 100, amber=0.002) == "ok"
    assert graded(1, 100, amber=0.002) == "ok"
    assert graded(2, 100, amber=0.002, red=0.05) == "warning"
    assert graded(20, 100, amber=0.002, red=0.05) == "failed"
    assert graded(2, 1000, amber=0.002) == "ok"
    assert graded(0, 0, amber=0.002) == "ok"


def test_a_finding_is_one_line_and_goes_into_a_file():
    found = finding("noise", "failed", "a\n  b", "c\n d", count=3, ratio=float("nan"))
    assert (found.message, found.remedy, found.code) == ("a b", "c d", "C14")
    assert json.loads(json.dumps(found.record(), allow_nan=False)) == {
        "check": "noise", "code": "C14", "status": "failed", "message": "a b", "remedy": "c d",
        "measured": {"count": 3},
    }  # fmt: skip
    assert finding("noise", "ok", "fine", "never shown").remedy == ""
    assert replace(found, status="ok") != found


def test_all_numbers_go_into_a_file():
    for found in checked(zoo.Signs(), count=60):
        text = json.dumps(found.record(), allow_nan=False)
        assert json.loads(text) == found.record()
