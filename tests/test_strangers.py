"""Models that strangers bring: the same verdicts every way, and nothing of theirs is touched."""

import copy
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import equipoise as eq
from equipoise import models
from equipoise.draws import KeyedDraws
from equipoise.evaluation import Result
from equipoise.execution import Execution, ask, fast, own
from equipoise.execution.passes import evaluating
from equipoise.models import SmallCNN
from equipoise.threat import Threat
from strangers import (
    STRANGERS,
    TIMM,
    TRANSFORMERS,
    Around,
    View,
    convolutions,
    examples,
    made,
)

N = 100
ATTACK = eq.attacks.PGD(steps=20)

# What torch says of itself on the way.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*quantize:UserWarning"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf"),
    pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad:UserWarning"),
]


def answers(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad(), evaluating(model):
        return ask(model, x)


def radius(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """Return a radius at which some of the images withstand and some do not."""
    low, high = 0.0, 0.5
    for _ in range(7):
        eps = (low + high) / 2
        x_adv = eq.attacks.PGD(steps=4)(model, x[:20], y[:20], eq.Linf(eps))
        left = int((answers(model, x_adv).argmax(1) == y[:20]).sum())
        if 7 <= left <= 13:
            break
        low, high = (eps, high) if left > 13 else (low, eps)
    return eps


def state_of(model: nn.Module) -> tuple[list[Tensor], list[bool], list[object]]:
    tensors = [t.detach().clone() for t in (*model.parameters(), *model.buffers())]
    grads = [(p.grad, p.requires_grad) for p in model.parameters()]
    return tensors, [module.training for module in model.modules()], grads


def withstood(model: nn.Module, form: nn.Module, x: Tensor, y: Tensor, threat: Threat) -> Tensor:
    """Tell who withstands the attack on some form of a model, drawn as an evaluation draws."""
    right = []
    for part in (slice(0, 64), slice(64, N)):
        draws = KeyedDraws.of(x[part]).child(str(ATTACK))
        x_adv = ATTACK(form, x[part], y[part], threat, draws=draws)
        assert bool(threat.contains(x[part], x_adv).all())
        right.append(answers(model, x_adv).argmax(1) == y[part])
    return torch.cat(right)


def agree(model: nn.Module) -> Result:
    """Assert that all ways to attack a model agree, and leave it as it was."""
    dtype = next(model.parameters()).dtype
    x = examples(N, seed=2)[0].to(dtype)
    y = answers(model, x).argmax(1)
    threat = eq.Linf(radius(model, x, y))
    mine, before = x.clone(), state_of(model)
    result = eq.evaluate(
        model, x, y, threat=threat, attacks={"pgd": ATTACK}, batch_size=64, checks=False
    )
    full = fast(model, execution=Execution(precision="float32"))
    found = [result.robust, *(withstood(model, form, x, y, threat) for form in (full, model))]
    short = eq.fast(model)
    by_fast = withstood(model, short, x, y, threat)
    if short.precision == "float32":
        found.append(by_fast)
    else:  # the rounding of bfloat16 moves ends that are next to the boundary, both ways
        assert int((by_fast ^ found[0]).sum()) <= 8
        assert abs(int(by_fast.sum() - found[0].sum())) <= 4
    apart = max(int((a ^ b).sum()) for a in found for b in found)
    assert apart <= N // 100
    assert 10 <= int(found[0].sum()) <= 90
    after = state_of(model)
    assert torch.equal(x, mine)
    assert all(torch.equal(a, b) for a, b in zip(before[0], after[0], strict=True))
    assert before[1:] == after[1:]
    return result


@pytest.mark.parametrize("name", STRANGERS)
def test_every_way_to_attack_a_stranger_agrees(name):
    agree(made(STRANGERS[name]))


@pytest.mark.slow
@pytest.mark.parametrize("name", TRANSFORMERS)
def test_every_way_to_attack_a_model_of_transformers_agrees(name):
    result = agree(made(TRANSFORMERS[name]))
    (said,) = [f.message for f in result.findings if f.check == "outputs"]
    assert "'logits'" in said


@pytest.mark.parametrize("name", TIMM)
def test_every_way_to_attack_a_model_of_timm_agrees(name):
    pytest.importorskip("timm")
    agree(made(TIMM[name]))


# --- what a form follows, and when it is given up ---


class TwoNorms(nn.Module):
    """Has a norm for clean and one for adversarial images, and a switch between them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(1, 6, 3, padding=1)
        self.clean, self.adv, self.fc = nn.BatchNorm2d(6), nn.BatchNorm2d(6), nn.Linear(96, 3)
        self.mode = "clean"
        with torch.no_grad():
            for seed, norm in enumerate((self.clean, self.adv), 1):
                g = torch.Generator().manual_seed(seed)
                norm.running_mean.copy_(torch.randn(6, generator=g) * 0.3)
                norm.running_var.copy_(torch.rand(6, generator=g) + 0.1)
                norm.weight.copy_(torch.randn(6, generator=g) * 3)
            self.fc.weight.mul_(5)

    def forward(self, x: Tensor) -> Tensor:
        norm = self.clean if self.mode == "clean" else self.adv
        return self.fc(torch.relu(norm(self.conv(x))).flatten(1))


class Masked(nn.Module):
    """Holds a mask that is neither a parameter nor a buffer, behind a strided convolution."""

    def __init__(self) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(0)
        self.weight, self.mask = nn.Parameter(torch.randn(3, 16, generator=g) * 2), torch.ones(16)

    def forward(self, x: Tensor) -> Tensor:
        return (x.flatten(1) * self.mask) @ self.weight.T


@pytest.mark.parametrize(
    ("make", "switch", "right"),
    [
        (TwoNorms, lambda m: setattr(m, "mode", "adv"), 0.890),
        (Masked, lambda m: setattr(m, "mask", torch.tensor([1.0, -1.0] * 8)), 0.715),
    ],
    ids=["two norms", "mask"],
)
def test_a_form_follows_what_is_no_parameter(make, switch, right):
    with torch.random.fork_rng([]):
        model = make().eval()
    x = torch.rand(200, 1, 4, 4, generator=torch.Generator().manual_seed(3)) * 0.4 + 0.3
    attack, threat = eq.attacks.PGD(steps=10), eq.Linf(0.03)
    held = eq.fast(model)
    attack(held, x, answers(model, x).argmax(1), threat)
    switch(model)
    y = answers(model, x).argmax(1)
    for form in (model, eq.fast(model), held):
        left = answers(model, attack(form, x, y, threat)).argmax(1) == y
        assert float(left.float().mean()) == pytest.approx(right, abs=0.006)


class FailsLater(nn.Module):
    """Works where its weights are laid out in one way, and only for so many passes."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.lasts, self.copy = convolutions(), 10**9, False

    def __deepcopy__(self, memo: dict[int, object]) -> "FailsLater":
        twin = FailsLater()
        twin.load_state_dict(self.state_dict())
        twin.lasts, twin.copy = self.lasts, True
        return twin

    def forward(self, x: Tensor) -> Tensor:
        self.lasts -= self.copy
        if self.lasts < 0:
            raise RuntimeError("no more")
        return self.net(x)


@pytest.mark.parametrize("attack", ["pgd-10", "apgd-ce", "fab(steps=3)", "square-60"])
def test_a_form_that_fails_on_the_way_is_given_up_and_nothing_is_lost(attack):
    model = made(FailsLater)
    x, _ = examples(40, seed=2)
    y = answers(model, x).argmax(1)
    given = {"threat": eq.Linf(0.1), "attacks": attack, "checks": False, "batch_size": 16}
    whole = eq.evaluate(model, x, y, **given)
    assert not [f for f in whole.findings if f.check == "search-form"]
    model.lasts = 12
    result = eq.evaluate(model, x, y, **given)
    (found,) = [f for f in result.findings if f.check == "search-form"]
    assert "RuntimeError: no more" in found.message
    assert result.finished
    assert int((result.robust ^ whole.robust).sum()) <= 1


def test_what_a_form_fails_with_is_remembered():
    model = made(FailsLater)
    model.lasts = 0
    x, _ = examples(20, seed=2)
    y = answers(model, x).argmax(1)
    form = eq.fast(model)
    ATTACK(form, x, y, eq.Linf(0.1))
    assert form.search is model
    assert "no more" in form.given_up
    assert eq.fast(model).given_up == form.given_up
    assert eq.fast(model).waiting is None


def test_channels_last_is_taken_where_it_works_and_pays():
    x, _ = examples(8)
    layouts = {}
    deep = [nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1)]
    models = {
        "deep": nn.Sequential(*convolutions()[:6], *deep, *convolutions()[6:]).eval(),
        "deep view": nn.Sequential(*convolutions()[:6], *deep, *convolutions(View())[6:]).eval(),
        "patches": made(STRANGERS["patches"]),
    }
    for name, model in models.items():
        form = fast(model, x, Execution(precision="float32"))
        layouts[name] = form.twin.memory_format
    last, contiguous = torch.preserve_format, torch.contiguous_format
    assert layouts == {"deep": last, "deep view": contiguous, "patches": contiguous}
    asked = fast(made(STRANGERS["view"]), x, Execution(layout="channels_last"))
    assert "view size is not compatible" in asked.given_up


def test_a_stranger_is_trained_contiguous_unless_it_is_asked_otherwise():
    ours = SmallCNN(size=(8, 8))
    for model, said, layout in (
        (ours, "auto", "channels_last"),
        (ours, "contiguous", "contiguous"),
        (convolutions(), "auto", "contiguous"),
        (convolutions(), "channels_last", "channels_last"),
    ):
        assert Execution(layout=said).resolved("cpu", own=own(model)).layout == layout


def test_a_model_that_was_added_is_a_stranger(monkeypatch):
    class Added(SmallCNN):
        pass

    monkeypatch.setitem(models.MODELS, "added", (Added, "for this test"))
    assert [models.house(name) for name in ("small-cnn", "wrn-28-10", "added")] == [
        True,
        True,
        False,
    ]
    assert not own(Added(size=(8, 8)))
    hooked = SmallCNN(size=(8, 8))
    assert own(hooked)
    hooked.conv2.register_forward_hook(lambda module, given, out: 2 * out)
    assert not own(hooked)


def test_a_quicker_layer_is_the_layer_that_it_stands_for():
    model = made(STRANGERS["view"])
    model[0].register_forward_hook(lambda module, given, out: out * 2)
    model[0].note = "mine"
    x, _ = examples(8)
    form = fast(model, x, Execution(precision="float32"))
    layer = form.search[0]
    assert isinstance(layer, nn.Conv2d)
    assert type(layer) is not nn.Conv2d
    assert (layer.stride, layer.padding, layer.note) == ((2, 2), (1, 1), "mine")
    assert torch.equal(layer.weight, model[0].weight)
    assert torch.allclose(answers(form, x), answers(model, x), atol=1e-4)


# --- gradients ---


def linear() -> Tensor:
    return torch.randn(3, 16, generator=torch.Generator().manual_seed(0)) * 2


def grey(n: int, seed: int = 1) -> Tensor:
    return torch.rand(n, 1, 4, 4, generator=torch.Generator().manual_seed(seed)) * 0.4 + 0.3


class Rounds(nn.Module):
    def __init__(self, *, inplace: bool) -> None:
        super().__init__()
        self.inplace, self.w = inplace, linear()

    def forward(self, x: Tensor) -> Tensor:
        x = x.mul_(31).round_().div_(31) if self.inplace else x.mul(31).round().div(31)
        return x.flatten(1) @ self.w.T


@pytest.mark.parametrize("inplace", [False, True])
def test_a_model_that_changes_its_input_changes_a_copy(inplace):
    x = grey(100)
    y, mine = (x.flatten(1) @ linear().T).argmax(1), x.clone()
    result = eq.evaluate(
        Rounds(inplace=inplace), x, y, threat=eq.Linf(0.02), attacks="square-200", checks=True
    )
    assert result.robust_accuracy == pytest.approx(0.820)
    assert torch.equal(x, mine)
    stored = Rounds(inplace=False)(result.x_adv).argmax(1) != y
    assert torch.equal(stored, ~result.robust)


class Cut(nn.Module):
    """Lets no gradient through, in one of several ways."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way, self.w = way, linear()

    def forward(self, x: Tensor) -> Tensor:
        if self.way == "detach":
            return x.detach().flatten(1) @ self.w.T
        if self.way == "numpy":
            return torch.from_numpy(x.numpy().reshape(len(x), -1)) @ self.w.T
        if self.way == "array":
            with torch.no_grad():
                return (x.flatten(1) @ self.w.T).numpy()
        return (x.flatten(1) + _Opaque.apply(x).flatten(1)) @ self.w.T / 2


class _Opaque(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: object, grad: Tensor) -> Tensor:
        raise NotImplementedError("no backward pass")


@pytest.mark.parametrize("way", ["detach", "numpy", "array", "opaque"])
def test_attacks_without_gradients_run_where_there_are_none(way):
    model, x = Cut(way), grey(100)
    y = answers(model, x).argmax(1)
    for attacks in ("square-200", "pgd-5,cw-inf-5,square-200", "fab(steps=3),square-200"):
        result = eq.evaluate(model, x, y, threat=eq.Linf(0.02), attacks=attacks, checks=False)
        assert result.robust_accuracy == pytest.approx(0.78)
        assert list(result.outcomes) == ["square-200"]
        assert "search-form" not in {f.check for f in result.findings}
        left_out = attacks.split(",")[:-1]
        told = [f for f in result.findings if f.check == "gradients"]
        assert [f.status for f in told] == ["failed"] * bool(left_out)
        assert all(name in told[0].message for name in left_out)


def test_an_ensemble_goes_on_to_its_attack_without_gradients():
    model, x = Cut("detach"), grey(30)
    y = answers(model, x).argmax(1)
    result = eq.evaluate(model, x, y, threat=eq.Linf(0.02), attacks="autoattack", checks=True)
    assert list(result.outcomes) == ["autoattack/square"]
    assert result.verdicts["autoattack"].sum() == result.robust.sum() < 30
    alone = eq.evaluate(model, x, y, threat=eq.Linf(0.02), attacks="pgd-3", checks=False)
    with pytest.raises(eq.UserError, match="no attack was run"):
        _ = alone.robust_accuracy


@pytest.mark.parametrize("name", ["pgd", "apgd-ce", "apgd-t", "fab", "cw-l2"])
def test_an_attack_on_a_model_without_gradients_says_so(name):
    threat = eq.L2(0.1) if name == "cw-l2" else eq.Linf(0.1)
    x = grey(4)
    model = Cut("detach")
    with pytest.raises(eq.UserError, match="no gradient of the model's output reaches its input"):
        eq.attacks.parse(name)(model, x, answers(model, x).argmax(1), threat)


@pytest.mark.parametrize("name", ["pgd-5", "apgd-ce", "apgd-t", "fab(steps=3)", "cw-inf-5"])
def test_checkpoints_of_both_kinds_are_searched_alike(name):
    plain, old = (made(STRANGERS[key]) for key in ("checkpoints", "reentrant checkpoints"))
    old.load_state_dict(plain.state_dict())
    x, _ = examples(12, seed=2)
    y = answers(plain, x).argmax(1)
    found = [eq.attacks.parse(name)(model, x, y, eq.Linf(0.1)) for model in (plain, old)]
    assert torch.allclose(*found, atol=1e-5)
    assert all(p.grad is None for p in old.parameters())


def test_attacks_and_evaluations_leave_inference_mode():
    x, _ = examples(30, seed=2)
    model = made(STRANGERS["view"])
    y = answers(model, x).argmax(1)
    given = {"threat": eq.Linf(0.1), "attacks": "pgd-5,apgd-ce", "checks": False}
    expected = eq.evaluate(model, x, y, **given).robust
    with torch.inference_mode():
        inside = made_in_inference(model)
        inner, labels = x.clone(), y.clone()
        results = [eq.evaluate(m, inner, labels, **given) for m in (model, inside)]
        x_adv = ATTACK(model, inner, labels, eq.Linf(0.1))
        assert torch.is_inference_mode_enabled()
    assert all(torch.equal(result.robust, expected) for result in results)
    assert not torch.equal(x_adv, x)


def made_in_inference(model: nn.Module) -> nn.Module:
    """Return a copy whose weights were made in inference mode and cannot be differentiated."""
    inside = convolutions(View())
    inside.load_state_dict(model.state_dict())
    return inside.eval()


# --- outputs and inputs ---


def test_what_is_taken_for_the_logits_is_said_once():
    for name, said in (("tuple", "tuple of 2"), ("object", "SimpleNamespace"), ("view", "")):
        model = made(STRANGERS[name])
        x, y = examples(10, seed=2)
        result = eq.evaluate(model, x, y, threat=eq.Linf(0.1), attacks="pgd-2", checks=False)
        found = [f for f in result.findings if f.check == "outputs"]
        assert len(found) == bool(said)
        assert all(said in f.message for f in found)


@pytest.mark.parametrize(
    ("out", "message"),
    [
        (lambda z: z.argmax(1), "the model returns int64"),
        (lambda z: {"features": z}, "the model returns dict with features"),
        (lambda z: None, "the model returns NoneType"),
        (lambda z: z[:, 0], "expected logits of shape"),
        (lambda z: z > 0, "the model returns bool"),
    ],
)
def test_outputs_that_are_no_logits_are_refused_in_one_line(out, message):
    model = made(lambda: Around(convolutions())).eval()
    model.last = out
    x, y = examples(10)
    for call in (
        lambda: eq.evaluate(model, x, y, threat=eq.Linf(0.1), checks=False),
        lambda: ATTACK(model, x, y, eq.Linf(0.1)),
    ):
        with pytest.raises(eq.UserError, match=message) as caught:
            call()
        assert "\n" not in str(caught.value)


def test_a_last_batch_of_one_image_is_a_batch():
    model = made(STRANGERS["squeezed"])
    x, _ = examples(9, seed=2)
    y = answers(model, x).argmax(1)
    result = eq.evaluate(model, x, y, threat=eq.Linf(0.1), batch_size=8, checks=False)
    whole = eq.evaluate(model, x, y, threat=eq.Linf(0.1), checks=False)
    assert torch.equal(result.robust, whole.robust)


def test_a_quantised_model_is_attacked_without_gradients():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated, and used
        model = torch.ao.quantization.quantize_dynamic(made(convolutions), {nn.Linear})
        x, _ = examples(20, seed=2)
        y = answers(model, x).argmax(1)
        result = eq.evaluate(
            model, x, y, threat=eq.Linf(0.3), attacks="pgd-3,square-100", checks=False
        )
    assert list(result.outcomes) == ["square-100"]
    assert result.robust_accuracy < 1


def kinds_of_examples() -> dict[str, Callable[[Tensor, Tensor], tuple[object, ...]]]:
    data = torch.utils.data
    return {
        "arrays": lambda x, y: (x.numpy(), y.numpy()),
        "double arrays": lambda x, y: (x.double().numpy(), y.int().numpy()),
        "lists": lambda x, y: (x.tolist(), y.tolist()),
        "list of tensors": lambda x, y: (list(x), tuple(y.tolist())),
        "dataset": lambda x, y: (data.TensorDataset(x, y),),
        "list-like dataset": lambda x, y: (Pairs(x, y),),
        "loader": lambda x, y: (data.DataLoader(Pairs(x, y), batch_size=7),),
    }


class Pairs(torch.utils.data.Dataset):
    """Items as torchvision has them: labels are plain numbers."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.x, self.y = x, y.tolist()

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        return self.x[i], self.y[i]


@pytest.mark.parametrize("kind", kinds_of_examples())
def test_examples_are_taken_as_people_have_them(kind):
    model = made(STRANGERS["view"])
    x, _ = examples(20, seed=2)
    y = answers(model, x).argmax(1)
    given = {"threat": eq.Linf("8/255"), "attacks": "pgd-3", "checks": False}
    expected = eq.evaluate(model, x, y, **given)
    found = kinds_of_examples()[kind](x, y)
    assert torch.equal(eq.evaluate(model, *found, **given).x_adv, expected.x_adv)
    if len(found) == 2:
        for name in ("pgd-3", "apgd-ce", "fab(steps=2)", "square-20"):
            attack = eq.attacks.parse(name)
            wanted = attack(model, x, y, eq.Linf(0.1))
            assert torch.equal(attack(model, *found, eq.Linf(0.1)), wanted)
    else:
        with pytest.raises(eq.UserError, match=r"eq\.evaluate"):
            ATTACK(model, found[0], y, eq.Linf(0.1))


def test_a_function_is_a_model():
    model = made(STRANGERS["view"])
    x, _ = examples(20, seed=2)
    y = answers(model, x).argmax(1)
    given = {"threat": eq.Linf(0.1), "attacks": "pgd-3,square-20"}
    expected = eq.evaluate(model, x, y, **given).robust
    assert torch.equal(eq.evaluate(lambda z: model(z), x, y, **given).robust, expected)
    wanted = ATTACK(model, x, y, eq.Linf(0.1))
    for form in (lambda z: model(z), eq.fast(lambda z: model(z))):
        assert torch.allclose(ATTACK(form, x, y, eq.Linf(0.1)), wanted, atol=1e-5)


class Gated(nn.Module):
    """Uses what its first convolution writes twice, but only for bright images."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.first, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.norm.running_mean.uniform_(-0.5, 0.5)
        self.norm.running_var.uniform_(0.5, 1.5)
        self.last = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        seen = self.first(x)
        normed = self.norm(seen)
        bright = (x.flatten(1).mean(1) > 0.5).view(-1, 1, 1, 1)
        maps = torch.where(bright, 4 * (normed - 2 * seen).relu(), normed.relu())
        return 20 * self.last(maps.mean((2, 3)))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_form_that_is_right_on_the_inputs_it_was_compared_on_does_not_mislead(precision):
    model, x, y = gated()
    x, y = (rows.view(8, 8, *rows.shape[1:]).transpose(0, 1).flatten(0, 1) for rows in (x, y))
    given = {"threat": eq.Linf(0.03), "attacks": ["pgd-20"], "checks": False}
    plain = eq.evaluate(lambda z: model(z), x, y, **given)
    found = eq.evaluate(model, x, y, precision=precision, **given)
    assert 0.1 < plain.robust_accuracy < 0.9
    assert int((found.robust ^ plain.robust).sum()) <= 2
    assert "search-form" in {finding.check for finding in found.findings}


def test_a_form_is_compared_on_inputs_from_all_of_a_batch():
    model, x, y = gated()
    attack, threat = eq.attacks.PGD(steps=20), eq.Linf(0.03)
    found, plain = (
        answers(model, attack(searched, x, y, threat)).argmax(1) == y
        for searched in (eq.fast(model), model)
    )
    assert 0.1 < float(plain.double().mean()) < 0.9
    assert int((found ^ plain).sum()) <= 2


def gated() -> tuple[Gated, Tensor, Tensor]:
    """Return the model, images of which the dark ones come first, and its answers."""
    x = torch.rand(64, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    x = x[x.flatten(1).mean(1).argsort()].contiguous()
    model = Gated().eval()
    centred(model, x)
    return model, x, answers(model, x).argmax(1)


def centred(model: nn.Module, x: Tensor) -> None:
    """Let the last layer of a model tell the classes of some inputs apart."""
    seen = []
    hook = model.last.register_forward_pre_hook(lambda layer, given: seen.append(given[0]))
    answers(model, x)
    hook.remove()
    with torch.no_grad():
        model.last.weight.div_(seen[0].std(0))
        model.last.bias.copy_(-(model.last.weight @ seen[0].mean(0)))


class SeesTheBatch(nn.Module):
    """Normalises by the batch, in whatever mode it is."""

    def __init__(self, counts: bool) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8, track_running_stats=counts)
        self.last = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        self.norm.train()
        return 20 * self.last(self.norm(self.first(x)).relu().mean((2, 3)))


@pytest.mark.parametrize("counts", [True, False])
def test_a_model_that_sees_the_batch_is_searched_with_the_whole_batch(counts):
    x = torch.rand(64, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    model = SeesTheBatch(counts).eval()
    centred(model, x)
    y = answers(model, x).argmax(1)
    statistics = [buffer.clone() for buffer in model.buffers()]
    given = {"threat": eq.Linf(0.008), "attacks": ["pgd-20"]}
    found = eq.evaluate(model, x, y, **given)
    searched = eq.evaluate(model, x, y, strongest=True, **given)
    assert 0.1 < found.robust_accuracy < 0.9
    assert torch.equal(found.robust, searched.robust)
    assert all(map(torch.equal, model.buffers(), statistics))


class Merged(nn.Linear):
    """Adds a low rank to its weights in eval mode, and takes it off again in training mode."""

    merged = False

    def train(self, mode: bool = True) -> "Merged":
        if self.merged == mode:
            with torch.no_grad():
                self.weight.add_(-1.0 if mode else 1.0)
            self.merged = not mode
        return super().train(mode)


def test_a_model_that_is_other_in_eval_mode_is_given_back_as_it_was():
    model = nn.Sequential(nn.Flatten(), Merged(12, 3)).train()
    before = model[1].weight.detach().clone()
    x, y = torch.rand(6, 3, 2, 2), torch.arange(6) % 3
    eq.evaluate(model, x, y, threat=eq.Linf(0.1), attacks=["pgd-2"], checks=False)
    assert model.training
    assert not model[1].merged
    assert torch.allclose(model[1].weight, before, atol=1e-6)


def test_a_model_computes_in_what_most_of_its_weights_are():
    class Tempered(nn.Module):
        def __init__(self, net: nn.Module, kind: torch.dtype) -> None:
            super().__init__()
            self.temperature = nn.Parameter(torch.ones((), dtype=kind))
            self.net = net

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x) / self.temperature.to(x.dtype)

    given = {"threat": eq.Linf(0.1), "attacks": ["pgd-2"], "checks": False}
    net = made(STRANGERS["view"])
    x, y = examples(6, seed=2)
    for kind in (torch.float64, torch.float32, torch.float16):
        assert eq.evaluate(Tempered(net, kind), x, y, **given).x_adv.dtype == torch.float32
    with pytest.raises(eq.UserError, match=r"bfloat16; .*model\.float\(\)"):
        eq.evaluate(Tempered(copy.deepcopy(net).bfloat16(), torch.float32), x, y, **given)
    with pytest.raises(eq.UserError, match="meta device"):
        eq.evaluate(copy.deepcopy(net).to("meta"), x, y, **given)


@pytest.mark.parametrize("attack", [eq.attacks.PGD(steps=3), eq.attacks.FAB(steps=2)])
def test_an_attack_inside_autocast_is_the_attack(attack):
    model = made(STRANGERS["view"])
    x, _ = examples(10, seed=2)
    y = answers(model, x).argmax(1)
    expected = attack(model, x, y, eq.L2(0.3))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(attack(model, x, y, eq.L2(0.3)), expected)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x, y, t: eq.evaluate(Masked, x, y, threat=t), "the class Masked"),
        (lambda x, y, t: eq.evaluate("resnet", x, y, threat=t), "got str"),
        (lambda x, y, t: eq.evaluate(Masked(), x, threat=t), "expected labels y"),
        (lambda x, y, t: eq.evaluate(Masked(), Pairs(x, y), y, threat=t), "expected no y"),
        (lambda x, y, t: eq.evaluate(Masked(), Pairs(x[:0], y[:0]), threat=t), "no examples"),
        (lambda x, y, t: eq.evaluate(Masked(), "images/", y, threat=t), "got str"),
        (lambda x, y, t: eq.evaluate(Masked(), [x, x[:, :, 1:]], y, threat=t), "got list"),
        (lambda x, y, t: eq.evaluate(Masked(), x, ["cat"] * len(x), threat=t), "labels y"),
        (lambda x, y, t: eq.evaluate(Masked(), (255 * x).byte().numpy(), y, threat=t), "divide"),
        (lambda x, y, t: eq.Linf("8/0"), "eps must be a number"),
        (lambda x, y, t: eq.Linf("eight"), "eps must be a number"),
        (lambda x, y, t: eq.L2(True), "eps must be a number"),
        (lambda x, y, t: eq.Linf(None), "eps must be a finite number"),
        (lambda x, y, t: eq.Threat("linf", 0.1, low="0", high="1"), "low must be a finite"),
        (lambda x, y, t: eq.Threat("l2", 0.1, high=float("inf")), "high must be a finite"),
        (lambda x, y, t: eq.evaluate(Masked(), x, y, threat=0.03), "expected a threat"),
        (lambda x, y, t: eq.evaluate(Masked(), x, y, threat=t, batch_size="3"), "batch_size"),
        (lambda x, y, t: eq.evaluate(Masked(), x, y, threat=t, batch_size=1.5), "batch_size"),
        (lambda x, y, t: eq.evaluate(Masked(), x, y, threat=t, batch_size=True), "batch_size"),
        (lambda x, y, t: eq.evaluate(Masked(), x, y, threat=t, passes=0), "passes"),
        (lambda x, y, t: eq.evaluate(Masked(), x, y, threat=t, control=y[:2] == 0), "control"),
    ],
)
def test_what_cannot_be_taken_is_refused_in_one_line(call, message):
    x = grey(6)
    with pytest.raises(eq.UserError, match=message) as caught:
        call(x, torch.zeros(6).long(), eq.Linf(0.1))
    assert "\n" not in str(caught.value)


def test_arrays_in_any_order_are_taken():
    x, y = grey(6), torch.arange(6) % 3
    given = {"threat": eq.Linf(0.1), "attacks": ["pgd-2"], "checks": False}
    found = eq.evaluate(Masked(), x.flip(0), y.flip(0), others={"a": x.flip(0).numpy()}, **given)
    backwards = eq.evaluate(Masked(), x.numpy()[::-1], y.numpy()[::-1], **given)
    assert torch.equal(found.verdicts["pgd-2"], backwards.verdicts["pgd-2"])
    assert "transfer" in found.outcomes
