"""The audited search: its attacks, its bound, what widens it, and that it can be repeated."""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import equipoise as eq
import zoo
from equipoise.attacks import Audited, AutoAttack, MarginAscent, Noise, Square, parse
from equipoise.attacks.margin import nearest
from equipoise.data.sampling import image_digests
from equipoise.errors import RunError, UserError
from equipoise.evaluation import Protocol, Result
from equipoise.evaluation.audit import FIRST, PROBED, Auditing, Replay
from equipoise.evaluation.audited import unfounded
from equipoise.evaluation.evaluate import evaluate_by
from equipoise.execution import Execution
from equipoise.execution.form import guest
from equipoise.measures.audits import most_failures
from equipoise.store.audit import Audit, AuditRound, missed_together, random_order
from problems import held_out, linear_problem, small_net

STAGES = ("apgd-ce", "apgd-t", "fab-t", "square")
THREAT = eq.Linf(0.08)


@dataclass(frozen=True, kw_only=True)
class Short(Audited):
    """The audited search with a short AutoAttack."""

    def auditor(self, norm):
        return {
            name: replace(attack, queries=30)
            if isinstance(attack, Square)
            else replace(attack, steps=5, restarts=1)
            for name, attack in AutoAttack().stages(norm).items()
        }


def short(model: nn.Module, n: int = 120, within: float = 0.05, **options: object) -> Result:
    x, y = held_out(n)
    options = {"nonce": "a", "checks": False, **options}
    attacks = {"audited": Short(within=within)}
    return eq.evaluate(model, x, y, threat=THREAT, attacks=attacks, **options)


def by(audited: Audited, nonce: str = "a", **attacks: object) -> Protocol:
    return Protocol(
        attacks={**attacks, "audited": audited},
        nonce=nonce,
        checks=False,
        execution=Execution(precision="float32"),
    ).under(THREAT)


@pytest.fixture(scope="module")
def result() -> Result:
    return short(small_net())


# --- the attacks of the search ---


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_the_nearest_targets_are_those_of_a_loop_over_classes(norm):
    model, (x, y) = small_net(), held_out(12)
    threat = eq.Threat(norm, 0.1)
    with guest(model) as form:
        chosen = nearest(form, x, y, threat, 5)
    order = {"linf": 1, "l2": 2, "l1": math.inf}[norm]
    for i in range(len(x)):
        ratios = {}
        for t in set(range(10)) - {int(y[i])}:
            point = x[i : i + 1].clone().requires_grad_()
            z = model(point)[0]
            lead = z[y[i]] - z[t]
            (grad,) = torch.autograd.grad(lead, point)
            ratios[t] = float(lead.detach()) / float(
                torch.linalg.vector_norm(grad.flatten(), ord=order)
            )
        assert chosen[i].tolist() == sorted(ratios, key=ratios.get)[:5]


def test_on_a_linear_model_the_margin_reaches_the_optimum():
    problem = linear_problem(3, classes=4, count=20)
    attack = MarginAscent(steps=20, targets=3)
    x_adv = attack(problem.model, problem.x, problem.y, eq.Linf(0.05))
    assert torch.equal(problem.attained(x_adv) > 0, problem.robust(eq.Linf(0.05)))


def test_one_target_is_followed_as_by_a_plain_loop():
    model, (x, y) = small_net().double(), held_out(6)
    x = x.double()
    attack = MarginAscent(steps=6, targets=1)
    x_adv = attack(model, x, y, eq.Linf(1e-3))  # so small that no example leaves
    source = eq.attacks.core.KeyedDraws.of(x).child("restart 0")
    point = eq.Linf(1e-3).start(x, source.uniform(x))
    best, lowest = point.clone(), torch.full((len(x),), math.inf, dtype=x.dtype)
    with guest(model) as form:
        target = nearest(form, x, y, eq.Linf(1e-3), 1)
    for k in range(7):
        point = point.detach().requires_grad_()
        z = model(point)
        margins = z.gather(1, y[:, None])[:, 0] - z.scatter(1, y[:, None], -math.inf).amax(1)
        better = margins < lowest
        best = torch.where(better.view(-1, 1, 1, 1), point, best).detach()
        lowest = torch.minimum(margins, lowest).detach()
        (grad,) = torch.autograd.grad((z.gather(1, target) - z.gather(1, y[:, None])).sum(), point)
        length = 1e-3 * (0.1 + 0.45 * (1 + math.cos(math.pi * k / 6)))
        point = eq.Linf(1e-3).project(x, point + length * grad.sign())
    assert (x_adv - best).abs().max() < 1e-12
    small_net().float()


@pytest.mark.parametrize("attack", [MarginAscent(diversified=3, restarts=2), Noise(tries=3)])
@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_no_example_depends_on_its_batch(attack, norm):
    model, (x, y) = small_net(), held_out(16)
    threat = eq.Threat(norm, {"linf": 0.05, "l2": 0.3, "l1": 1.0}[norm])
    together = attack(model, x, y, threat)
    alone = torch.cat([attack(model, x[i : i + 1], y[i : i + 1], threat) for i in range(16)])
    assert (together - alone).abs().max() < 1e-5
    assert threat.contains(x, together).all()


def test_noise_moves_every_value_by_the_radius():
    model, (x, y) = small_net(), held_out(8)
    x = x.clamp(0.2, 0.8)
    moved = (Noise()(model, x, y, eq.Linf(0.1)) - x).abs()
    assert torch.allclose(moved, torch.full_like(moved, 0.1))


def test_diversified_starts_differ_from_one_restart_to_the_next():
    model, (x, y) = small_net(), held_out(4)
    x_adv = MarginAscent(steps=1, diversified=7)(model, x, y, eq.Linf(1e-3))
    again = MarginAscent(steps=1)(model, x, y, eq.Linf(1e-3))
    assert (x_adv != again).flatten(1).any(1).all()


# --- the audit of a real search ---


def test_the_audited_images_have_the_verdict_of_autoattack(result):
    x, y = held_out(120)
    whole = {"aa": _Whole()}
    full = eq.evaluate(small_net(), x, y, threat=THREAT, attacks=whole, checks=False)
    went = result.outcomes["audited/square"].attacked | ~result.robust
    audited = result.outcomes["audited/apgd-ce"].attacked
    assert int(audited.sum()) >= FIRST
    assert torch.equal(result.robust[audited & went], full.robust[audited & went])
    both = float((result.robust & full.robust).double().mean())
    assert result.audit.lower <= both <= result.audit.upper


class _Whole(AutoAttack):
    def stages(self, norm):
        return Short().auditor(norm)


def test_the_counts_follow_from_the_rounds(result):
    audit = result.audit
    assert audit.n == 120
    assert audit.finished
    assert audit.method == "anytime-valid"
    assert audit.audited == sum(r.checked for r in audit.rounds)
    (only,) = audit.rounds
    more = most_failures(only.items, only.checked, only.failed, 0.975) - only.failed
    assert audit.lower == (int(result.robust.sum()) - more) / 120
    assert audit.upper == result.robust_accuracy
    assert more / 120 <= 0.05
    assert f"{audit.audited} of {only.items} audited, none missed" in audit.sentence
    assert audit.sentence in repr(result)


def test_the_nonce_determines_the_images_and_nothing_else(result):
    other = short(small_net(), nonce="b")
    same = short(small_net(), nonce="a", batch_size=50)
    name = "audited/apgd-t"
    assert not torch.equal(other.outcomes[name].attacked, result.outcomes[name].attacked)
    assert torch.equal(same.outcomes[name].attacked, result.outcomes[name].attacked)
    assert same.audit.rounds == result.audit.rounds
    x, _ = held_out(120)
    order = random_order(result.audit.digest, "a", "round 1", image_digests(x), _left(result))
    attacked = result.outcomes[name].attacked.nonzero()[:, 0].tolist()
    assert sorted(order[: result.audit.audited]) == attacked


def _left(result: Result) -> list[int]:
    left = result.correct
    for name, outcome in result.outcomes.items():
        if name.rpartition("/")[2] not in STAGES:
            left = left & outcome.verdict
    return left.nonzero()[:, 0].tolist()


def test_a_budget_ends_the_audit_and_the_bound_says_what_is_left():
    audit = short(small_net(), within=1e-9, nonce="a").audit
    assert audit.remaining == 0
    assert audit.lower == audit.upper
    x, y = held_out(120)
    attacks = {"audited": Short(within=1e-9, budget=0.5)}
    half = eq.evaluate(small_net(), x, y, threat=THREAT, attacks=attacks, checks=False).audit
    assert half.audited == int(0.47 * half.survivors)
    assert half.lower < half.upper


def test_every_verdict_of_a_full_audit_is_that_of_search_and_autoattack():
    audited = short(small_net(), n=60, within=1e-9)
    x, y = held_out(60)
    full = eq.evaluate(small_net(), x, y, threat=THREAT, attacks={"aa": _Whole()}, checks=False)
    assert bool((audited.robust <= full.robust).all())
    assert audited.audit.remaining == 0


@pytest.mark.parametrize("at", [3, 9, 13, 20])
def test_an_interrupted_audit_continues_with_the_same_bits(result, at):
    x, y = held_out(120)
    protocol = by(Short(within=0.05), nonce="a")
    kept: list[Result] = []

    def stop(now: Result) -> None:
        kept.append(now)
        if len(kept) == at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate_by(protocol, small_net(), x, y, after=stop)
    assert not kept[-1].finished
    again = evaluate_by(protocol, small_net(), x, y, begun=kept[-1])
    assert again.audit == result.audit
    assert torch.equal(again.x_adv, result.x_adv)
    for name, outcome in result.outcomes.items():
        assert torch.equal(again.outcomes[name].verdict, outcome.verdict)
        assert torch.equal(again.outcomes[name].attacked, outcome.attacked)
        assert again.outcomes[name].forwards == outcome.forwards


def test_a_replay_of_the_verdicts_gives_the_same_audit(result):
    x, _ = held_out(120)
    assert not unfounded(result, x)
    outcome = result.outcomes["audited/fab-t"]
    attacked = outcome.attacked.clone()
    attacked[attacked.nonzero()[0]] = False
    fewer = {**result.outcomes, "audited/fab-t": replace(outcome, attacked=attacked)}
    assert "1 images for fab-t" in unfounded(replace(result, outcomes=fewer), x)


@pytest.mark.parametrize("name", ["square", "apgd-t", "pgd-50"])
def test_a_stage_that_is_taken_away_is_missed(result, name):
    x, _ = held_out(120)
    outcomes = {k: o for k, o in result.outcomes.items() if k != f"audited/{name}"}
    if name == "pgd-50":
        outcomes.pop("audited/square-200")
    assert "did not attack" in unfounded(replace(result, outcomes=outcomes), x)


def test_rounds_of_an_interrupted_audit_follow_from_the_verdicts_too(result):
    x, _ = held_out(120)
    (only,) = result.audit.rounds
    begun = replace(only, checked=FIRST)

    def interrupted(*rounds: AuditRound) -> Result:
        return replace(result, audit=replace(result.audit, rounds=rounds, finished=False))

    assert not unfounded(interrupted(), x)
    assert not unfounded(interrupted(begun), x)
    assert "does not follow" in unfounded(interrupted(replace(only, checked=only.checked + 1)), x)
    assert "does not follow" in unfounded(interrupted(replace(begun, items=50)), x)


def test_the_tenth_with_the_smallest_margin_is_searched_again(result):
    left = result.correct
    for name in ("noise", "pgd-10", "margin"):
        left = left & result.outcomes[f"audited/{name}"].verdict
    restarts = result.outcomes["audited/restarts"]
    assert int(restarts.attacked.sum()) == math.ceil(0.1 * int(left.sum()))
    assert bool((restarts.attacked <= left).all())


# --- what widens it ---


@pytest.mark.parametrize(
    ("name", "stage"),
    [("input-quantised", "square"), ("large-logits", "apgd-t"), ("signs", "square")],
)
def test_masked_models_widen_the_audit(name, stage):
    x, y = zoo.digits_below(10)
    model, x, y = zoo.DEFENCES[name](), x[:80], y[:80]
    attacks = {"audited": Short(within=0.1)}
    found = eq.evaluate(model, x, y, threat=zoo.THREAT, attacks=attacks, checks=False)
    assert stage in found.audit.widened
    assert [f.status for f in found.findings if f.check == "screens"] == ["warning"]
    assert stage in found.audit.sentence


@pytest.mark.parametrize("name", ["adversarially-trained", "linear", "plain-cnn"])
def test_honest_models_do_not_widen_it_by_a_screen(name):
    case = zoo.honest(name)
    x, y = case.x[:100], case.y[:100]
    attacks = {"audited": Short(within=0.1)}
    found = eq.evaluate(case.model, x, y, threat=case.threat, attacks=attacks, checks=False)
    assert [f.status for f in found.findings if f.check == "screens"] == ["ok"]


def test_a_miss_runs_its_stage_on_all_images_and_begins_anew():
    stages = {"apgd-ce": [], "apgd-t": [], "fab-t": [3, 50, 51, 52, 90], "square": []}
    audit = conduct(stages, items=100, nonce="x", within=0.05)
    first, second = audit.rounds
    assert first.widened == ("fab-t",)
    assert first.failed + first.found == 5
    assert (second.items, second.failed) == (100 - first.checked - first.found, 0)
    assert "fab-t broke" in first.reason
    more = most_failures(second.items, second.checked, 0, 1 - 0.05 / 4)
    assert audit.least == 95 - more


def test_when_all_stages_ran_on_all_images_it_is_autoattack():
    stages = {name: list(range(i, 100, 10)) for i, name in enumerate(STAGES)}
    audit = conduct(stages, items=100, nonce="y", within=0.02)
    assert audit.method == "full"
    assert set(audit.widened) <= set(STAGES)
    assert (audit.least, audit.most, audit.missed) == (60, 60, 40)
    assert "AutoAttack itself" in audit.sentence


# --- its bound ---


@lru_cache
def plain(items: int) -> list[bytes]:
    return [i.to_bytes(4, "big") for i in range(items)]


def conduct(
    broken: dict[str, list[int]],
    *,
    items: int,
    nonce: str,
    images: Sequence[bytes] = (),
    **settings: float,
) -> Audit:
    """Return an audit of made-up verdicts; all ``items`` images are left by the search."""
    flags = {name: np.isin(np.arange(items), rows) for name, rows in broken.items()}
    known = images or plain(items)
    subject = Replay(survivors=list(range(items)), images=known, broken=flags)
    settings = {"within": 0.02, "budget": 1.0, **settings}
    log = Audit(nonce=nonce, digest="d", stages=tuple(f"audited/{s}" for s in STAGES), **settings)
    auditing = Auditing(subject, log, items, STAGES)
    assert not list(auditing.run())
    robust = items - len(set().union(*broken.values()))
    left = auditing.log.missed
    return replace(auditing.log, n=items, robust=max(items - left, robust))


@pytest.mark.parametrize(
    "broken",
    [
        {"square": 12},
        {"square": 30},
        {"fab-t": 8, "square": 8},
        {"apgd-ce": 60, "square": 20},
        {"apgd-t": 3},
    ],
    ids=str,
)
def test_the_bound_covers_the_truth_for_nearly_all_nonces(broken):
    items, start, rows = 300, 0, {}
    for name, count in broken.items():
        rows[name] = list(range(start, start + count))
        start += count
    true = items - start
    trials = 200
    held = sum(
        audit.least <= true <= audit.most
        for audit in (conduct(rows, items=items, nonce=f"{i}") for i in range(trials))
    )
    assert held / trials >= 0.94


def test_copies_of_an_image_are_drawn_one_by_one():
    items, copies, held = 200, 30, 0
    same = [b"copy"] * copies + plain(items)[copies:]
    for number in range(200):
        audit = conduct({"square": range(copies)}, items=items, nonce=f"{number}", images=same)
        held += audit.least <= items - copies <= audit.most
    assert held / 200 >= 0.94


def test_a_blind_bound_would_not_cover():
    rows = {"square": list(range(12))}
    naive = sum(conduct(rows, items=400, nonce=f"{i}", budget=0.08).missed > 0 for i in range(200))
    assert naive / 200 < 0.9  # most small audits see no miss: the estimate alone would be wrong


def test_rounding_counts_against_both_bounds():
    audit = conduct({"square": []}, items=100, nonce="z", within=0.05)
    correct = np.ones(100, dtype=bool)
    robust, margin = correct.copy(), np.full(100, 1.0)
    robust[:2], margin[:2] = False, (-1e-6, -1.0)
    margin[3] = 1e-6
    counted = audit.counted(correct, robust, margin, {})
    assert counted.near == (1, 1)
    assert counted.most == 98 + 1
    assert counted.least == 98 - counted.remaining - 1
    assert counted.sentence.startswith("98.0% of 100 images were left by the search; ")
    missed = replace(counted, rounds=(replace(counted.rounds[0], failed=1),))
    assert "were left by the search and the audit; " in missed.sentence
    assert "rounding may decide 2 of 100 images" in counted.sentence


def test_counts_that_contradict_each_other_are_refused():
    content = conduct({"square": []}, items=50, nonce="w").content()
    assert Audit.of(content).content() == content
    content["rounds"][0]["failed"] = 51
    with pytest.raises(ValueError, match="impossible counts"):
        Audit.of(content)
    with pytest.raises(ValueError, match="expected"):
        Audit.of({"nonce": "x"})


def test_the_same_model_twice_in_a_table_is_no_more_evidence():
    audit = conduct({"square": []}, items=100, nonce="t", within=0.1)
    other = replace(audit, digest="e")
    assert missed_together([audit, audit]) == missed_together([audit])
    assert missed_together([audit, other]) < missed_together([audit])


def test_without_survivors_there_is_nothing_to_audit():
    audit = conduct({}, items=0, nonce="v")
    assert (audit.least, audit.most, audit.method) == (0, 0, "full")


def test_an_interrupted_round_has_the_bound_of_what_was_checked():
    log = Audit(
        nonce="u",
        digest="d",
        within=0.01,
        budget=1.0,
        stages=("audited/square",),
        rounds=(AuditRound(items=600, checked=60, failed=1),),
        n=1000,
        robust=599,
    )
    assert log.least == 599 - (most_failures(600, 60, 1, 0.975) - 1)
    assert "interrupted" in log.sentence


# --- other evaluations in the same place ---


def test_an_audit_with_another_nonce_attacks_its_own_images_after_a_resume(result):
    x, y = held_out(120)
    protocol = by(Short(within=0.05), nonce="other")
    again = evaluate_by(protocol, small_net(), x, y, begun=result)
    assert not unfounded(again, x)
    new = evaluate_by(protocol, small_net(), x, y)
    assert again.audit.rounds == new.audit.rounds


def test_what_a_replaced_audit_broke_stays_broken(result):
    before = copy.deepcopy(result)
    row = int(before.robust.nonzero()[0])
    before.outcomes["audited/square"].verdict[row] = False
    before.outcomes["audited/square"].attacked[row] = True
    before.margin[row] = -1.0
    joined = result.joined(before)
    assert not joined.robust[row]
    assert int(joined.robust.sum()) == int(result.robust.sum()) - 1
    assert not joined.outcomes["transfer"].verdict[row]


def test_what_an_audited_search_tries_first_stands_before_its_stages(result):
    first = {"transfer": result.outcomes["audited/noise"], **result.outcomes}
    joined = replace(result, outcomes=first).joined(result)
    assert list(joined.outcomes) == list(first)


def test_an_audit_is_kept_where_the_same_attack_gives_the_same_verdicts(result):
    noise = result.outcomes["audited/noise"]
    later = replace(result, outcomes={"audited/noise": noise}, audit=None)
    assert later.joined(result).audit.rounds == result.audit.rounds
    other = replace(noise, verdict=~noise.verdict)
    later = replace(later, outcomes={"audited/noise": other})
    assert later.joined(result).audit is None


def test_a_float64_model_has_an_audit_that_can_be_replayed():
    x, y = held_out(40)
    model = copy.deepcopy(small_net()).double()
    attacks = {"audited": Short(within=0.2)}
    found = eq.evaluate(model, x, y, threat=THREAT, attacks=attacks, checks=False)
    assert not unfounded(found, x)


def test_where_all_attacks_are_stages_a_tenth_is_searched_again():
    protocol = Protocol(attacks="audited", individual=False, norm="linf")
    assert {s.name: s.share for s in protocol.stages}["audited/restarts"] == 0.1


def test_examples_of_others_are_a_stage_of_the_audited_search():
    x, y = held_out(60)
    protocol = by(Short(within=0.2), fgsm=parse("fgsm"))
    others = {"other": eq.attacks.parse("pgd-5")(small_net(), x, y, THREAT)}
    found = evaluate_by(protocol, small_net(), x, y, others=others, warm=True)
    assert "fgsm" in found.verdicts  # on all correct images
    assert next(iter(found.stages("audited"))) == "transfer"
    assert torch.equal(found.verdicts["audited"] & found.verdicts["fgsm"], found.robust)


# --- what is refused ---


def test_settings_that_mean_nothing_are_refused():
    assert parse("audited(within=1%, budget=10%)") == Audited(within=0.01, budget=0.1)
    for spec in ("audited(within=0)", "audited(budget=0%)", "audited(within=2)"):
        with pytest.raises(UserError, match=r"within|budget"):
            parse(spec)
    for options, part in (
        ({"attacks": "audited", "nonce": " "}, "nonce is empty"),
        ({"attacks": "pgd-5", "nonce": "a"}, "add audited"),
        ({"attacks": "audited", "individual": True}, "--individual"),
        ({"attacks": "audited,audited(within=2%)"}, "one audited search"),
    ):
        with pytest.raises(UserError, match=part):
            Protocol(**options)


def test_a_random_model_is_refused():
    x, y = held_out(20)
    noisy = zoo.Noisy()
    with pytest.raises(UserError, match="autoattack-rand"):
        eq.evaluate(noisy, x, y, threat=THREAT, attacks="audited", checks=False)


def test_several_passes_are_refused():
    x, y = held_out(20)
    with pytest.raises(UserError, match="one pass"):
        eq.evaluate(small_net(), x, y, threat=THREAT, attacks="audited", passes=3, checks=False)


def test_a_model_that_fails_in_the_audit_keeps_the_search():
    class Fails(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.calls = copy.deepcopy(small_net()), 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            if self.calls > 130:
                raise RuntimeError("out of order")
            return self.net(x)

    x, y = held_out(60)
    with pytest.raises(RunError, match="out of order") as error:
        eq.evaluate(Fails(), x, y, threat=THREAT, attacks={"audited": Short()}, checks=False)
    assert error.value.result.outcomes["audited/margin"].finished
    assert PROBED > 0
