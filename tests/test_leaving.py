"""Searches that show the model a point once: the verdicts of those that show it every point."""

import copy
import shutil
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import equipoise as eq
from equipoise.attacks import FGSM, MIFGSM, PGD, CWInf
from equipoise.attacks.pgd import for_verdicts
from equipoise.draws import KeyedDraws
from equipoise.evaluation.stored import Store
from equipoise.execution import Execution, Fast, fast
from equipoise.execution.form import guest, input_gradient
from equipoise.jobs.evaluate import evaluate_run
from equipoise.store.runs import Run
from equipoise.threat import Threat
from problems import held_out, small_net

FULL, SHORT = Execution(precision="float32"), Execution(precision="bfloat16")
EPS = {"linf": 0.06, "l2": 0.5, "l1": 1.5}
ATTACKS = {
    "pgd": PGD(steps=7),
    "restarts": PGD(steps=3, restarts=3),
    "momentum": MIFGSM(steps=6),
    "margin": CWInf(steps=6, confidence=0.5),
}
CASES = [(name, norm) for name, attack in ATTACKS.items() for norm in attack.norms]
FORMS = ["own", "other", "short"]


def form_of(kind: str, seed: int) -> Fast:
    """Return a search form: of the model's own weights, of another model's, or in bfloat16."""
    model, (x, _) = copy.deepcopy(small_net(seed)), held_out(8)
    if kind == "other":  # whose boundary is elsewhere: the model refuses many points
        return Fast(model, small_net(1 - seed), "float32")
    return fast(model, x, FULL if kind == "own" else SHORT)


def shown_everything(
    attack: PGD, form: Fast, x: Tensor, y: Tensor, threat: Threat
) -> tuple[Tensor, Tensor]:
    """Search the whole batch to the end of every restart, and show the model every point.

    Returns:
        Who is fooled, and the largest loss of the points at which that is so, or of all points
        of the examples that are not.
    """
    fooled, best = torch.zeros_like(y, dtype=torch.bool), torch.full(y.shape, -torch.inf)
    with guest(form), torch.no_grad():
        for restart in range(attack.restarts):
            already = fooled.clone()
            point = attack.start_at(x, threat, KeyedDraws.of(x).child(f"restart {restart}"))
            direction = torch.zeros_like(x)
            for _ in range(attack.steps + 1):
                logits, values, grad = input_gradient(form, point, lambda z: attack.losses(z, y))
                wrong = (logits.argmax(1) != y) & (form.decide(point).argmax(1) != y)
                better = ~already & ((wrong & ~fooled) | ((wrong == fooled) & (values > best)))
                best, fooled = torch.where(better, values, best), fooled | (better & wrong)
                if attack.momentum is not None:
                    mean = grad.flatten(1).abs().sum(1).clamp_min(1e-30).view(-1, 1, 1, 1)
                    grad = direction = attack.momentum * direction + grad / mean
                step = attack.step_length(threat) * threat.ascent(grad)
                point = threat.project(x, point + step)
    return fooled, best


def fooled_both(form: Fast, points: Tensor, y: Tensor) -> Tensor:
    with torch.no_grad():
        return (form.decide(points).argmax(1) != y) & (form(points).argmax(1) != y)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("kind", FORMS)
@pytest.mark.parametrize(("name", "norm"), CASES)
def test_the_same_examples_are_fooled_as_if_every_point_was_shown(name, norm, kind, seed):
    attack, threat, (x, y) = ATTACKS[name], Threat(norm, EPS[norm]), held_out(120)
    form = form_of(kind, seed)
    fooled, best = shown_everything(attack, form, x, y, threat)
    assert 0.05 < float(fooled.double().mean()) < 0.95
    strongest = attack(form, x, y, threat)
    assert torch.equal(fooled_both(form, strongest, y), fooled)
    first = replace(attack, keep="first")(form, x, y, threat)
    assert torch.equal(fooled_both(form, first, y), fooled)
    assert bool(threat.contains(x, first).all())
    with torch.no_grad():
        values = [attack.losses(form(points).float(), y) for points in (strongest, first)]
    rounding = 0.02 if kind == "short" else 1e-5  # a smaller batch is rounded differently
    assert bool((values[1] <= best + rounding).all())
    assert float((values[0] - best).abs().max()) <= rounding


@pytest.mark.parametrize("keep", ["best", "first"])
def test_each_example_is_shown_once_where_the_model_agrees(keep, monkeypatch):
    (x, y), threat = held_out(120), Threat("linf", 0.1)
    form = form_of("own", 0)
    shown: list[int] = []
    decide = form.decide
    monkeypatch.setattr(form, "decide", lambda x: (shown.append(len(x)), decide(x))[1])
    points = PGD(steps=8, keep=keep)(form, x, y, threat)
    fooled = int((decide(points).argmax(1) != y).sum())
    assert 40 < fooled < 120
    assert sum(shown) == fooled
    assert len(shown) == 1 or keep == "first"


def test_the_first_point_is_the_first():
    net, (x, y), threat = copy.deepcopy(small_net()).double(), held_out(60), Threat("linf", 0.1)
    x = x.double()
    attack = PGD(steps=6)
    first = replace(attack, keep="first")(net, x, y, threat)
    expected, seen = torch.empty_like(x), torch.zeros_like(y, dtype=torch.bool)
    for steps in range(7):  # after so many steps of the same length from the same start
        size = 2.5 * 0.1 / 6
        here = attack.start_at(x, threat, KeyedDraws.of(x).child("restart 0"))
        if steps:
            here = PGD(steps=steps, step_size=size, keep="last")(net, x, y, threat)
        wrong = net(here).argmax(1) != y
        expected[wrong & ~seen] = here[wrong & ~seen]
        seen |= wrong
    assert 10 < int(seen.sum()) < 60
    assert float((first - expected)[seen].abs().max()) <= 1e-12


def test_examples_leave_the_search_with_their_first_point():
    net, (x, y) = copy.deepcopy(small_net()), held_out(60)
    sizes: list[int] = []
    net.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    threat = Threat("linf", 0.15)
    PGD(steps=10, keep="first")(net, x, y, threat)
    assert sizes[0] == 60
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] < 20
    sizes.clear()
    PGD(steps=10, keep="first")(net, x, y, Threat("linf", 0.9))
    assert len(sizes) < 10  # nobody was left


class Noisy(nn.Module):
    """A model that draws noise onto its logits."""

    def __init__(self, net: nn.Module, size: float) -> None:
        super().__init__()
        self.net, self.size = net, size

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.net(x)
        return logits + self.size * torch.randn_like(logits)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_an_evaluation_has_the_same_verdicts_without_the_strongest_points(precision):
    net, (x, y), threat = copy.deepcopy(small_net()), held_out(150), Threat("linf", 0.06)
    names = ("fgsm", "pgd-10", "pgd-3(restarts=2)", "mi-fgsm-5", "cw-inf-10")
    found = [
        eq.evaluate(
            net, x, y, threat=threat, attacks=names, strongest=strongest, precision=precision
        )
        for strongest in (True, False)
    ]
    for name in names:
        verdicts = [result.verdicts[name] for result in found]
        assert torch.equal(*verdicts)
        assert bool(verdicts[0].any())
        spent = [result.outcomes[name].backwards for result in found]
        assert spent[0] > spent[1] or name == "fgsm"
    assert torch.equal(found[0].robust, found[1].robust)
    margins = [result.margin[result.correct].mean() for result in found]
    assert float(margins[0]) < float(margins[1])
    with torch.no_grad():
        assert torch.equal(net(found[1].x_adv).argmax(1) == y, found[1].robust)


def test_random_models_are_searched_to_the_end():
    net, (x, y), threat = Noisy(small_net(), 1.0), held_out(60), Threat("linf", 0.03)
    result = eq.evaluate(net, x, y, threat=threat, attacks="pgd-10", checks=False)
    outcome = result.outcomes["pgd-10"]
    assert outcome.backwards >= 10 * int(outcome.attacked.sum()) > 0


def test_only_pgd_that_keeps_its_best_point_is_changed():
    assert for_verdicts(PGD(steps=3, restarts=2)) == PGD(steps=3, restarts=2, keep="first")
    assert for_verdicts(FGSM()) == FGSM()

    class Own(PGD):
        pass

    assert for_verdicts(Own()).keep == "best"


@pytest.mark.slow
def test_the_command_keeps_the_strongest_points_where_they_are_asked_for(trained, tmp_path):
    margins = {}
    for strongest in (False, True):
        folder = tmp_path / str(strongest)
        shutil.copytree(trained, folder)
        evaluate_run(folder, attacks=["pgd-10"], n=60, eps=[0.2], strongest=strongest)
        _, result, _ = Store.all(Run.open(folder))[0].read()
        margins[strongest] = result.margin[result.correct & ~result.robust]
    assert len(margins[True]) == len(margins[False]) > 10
    assert float(margins[True].mean()) < float(margins[False].mean())
