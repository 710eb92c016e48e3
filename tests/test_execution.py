"""The search form of a model: the same answers, the same gradients, and nothing changed."""

import copy
import gc
import subprocess
import sys
import weakref
from functools import partial
from shutil import which

import pytest
import torch
from torch import Tensor, nn

import equipoise as eq
from equipoise import UserError, models
from equipoise.draws import KeyedDraws
from equipoise.execution import Execution, Fast, fast
from equipoise.execution.form import input_gradient, misclassified
from equipoise.execution.layers import Folded, Strided, become
from equipoise.execution.passes import padded
from equipoise.objectives.core import Batch
from equipoise.objectives.trades import TRADES
from problems import held_out, small_net


def gradient(model: nn.Module, x: Tensor) -> Tensor:
    x = x.detach().requires_grad_(True)
    (grad,) = torch.autograd.grad(model(x).float().logsumexp(1).sum(), x)
    return grad


def lived_in(name: str, channels: int) -> nn.Module:
    """Return a model whose BatchNorm has statistics and weights of its own."""
    torch.manual_seed(0)
    size = (12, 16)
    model = models.build(name, {"channels": channels, "size": size, "classes": 5, "width": 0.25})
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    return model.eval()


FULL, SHORT = Execution(precision="float32"), Execution(precision="bfloat16")

CASES = [("small-cnn", 1), ("small-cnn", 3), ("resnet-18", 3), ("preact-resnet-18", 3)]


@pytest.mark.parametrize(("name", "channels"), CASES)
def test_the_float32_form_is_the_model(name, channels):
    with torch.random.fork_rng([]):
        model = lived_in(name, channels)
        x = torch.rand(6, channels, 12, 16)
    form = fast(model, x, FULL)
    assert form.search is not model
    with torch.no_grad():
        expected = model(x)
        assert (form(x) - expected).abs().max() <= 1e-4 * expected.abs().max()
    exact, quick = gradient(model, x), gradient(form, x)
    assert (quick - exact).abs().max() <= 1e-4 * exact.abs().max()


@pytest.mark.parametrize(("name", "channels"), CASES)
def test_the_short_form_is_near_the_model(name, channels):
    with torch.random.fork_rng([]):
        model = lived_in(name, channels)
        x = torch.rand(6, channels, 12, 16)
    form = fast(model, x, SHORT)
    assert form.precision == "bfloat16"
    with torch.no_grad():
        expected = model(x)
        got = form(x)
    assert got.dtype == torch.float32  # the last layer keeps the digits
    assert (got - expected).abs().max() <= 0.1 * expected.abs().max()
    exact, quick = gradient(model, x).flatten(1), gradient(form, x).flatten(1)
    assert float(nn.functional.cosine_similarity(exact, quick).min()) > 0.98


def test_batchnorm_is_folded_where_it_reads_what_a_convolution_wrote():
    model = lived_in("resnet-18", 3)
    form = fast(model, torch.rand(2, 3, 12, 16), FULL)
    assert not any(type(m) is nn.BatchNorm2d for m in form.search.modules())
    preact = fast(lived_in("preact-resnet-18", 3), torch.rand(2, 3, 12, 16), FULL)
    left = [m for m in preact.search.modules() if type(m) is nn.BatchNorm2d]
    assert left  # those that stand before a convolution, after a sum


class Twice(nn.Module):
    """Uses what the convolution wrote without the norm, too."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv(x)
        return self.head((h + self.norm(h)).mean((2, 3)))


def test_what_cannot_be_folded_is_not():
    model = Twice().eval()
    model.norm.running_mean.fill_(0.7)
    x = torch.rand(4, 1, 8, 8)
    form = fast(model, x, FULL)
    with torch.no_grad():
        assert torch.allclose(form(x), model(x), atol=1e-6)
    assert not any(isinstance(m, Folded) for m in form.search.modules())


@pytest.mark.slow
def test_the_model_is_not_changed():
    model = copy.deepcopy(small_net()).train()
    state = {k: v.clone() for k, v in model.state_dict().items()}
    modes = [m.training for m in model.modules()]
    x, _ = held_out(8)
    form = fast(model, x, SHORT)
    form(x)
    form.decide(x)
    assert modes == [m.training for m in model.modules()]
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in state.items())
    assert all(p.requires_grad for p in model.parameters())
    assert all(p.dtype == torch.float32 for p in model.parameters())
    assert "_exact" not in dict(form.named_modules())


def test_models_that_cannot_be_copied_or_shortened_are_searched_as_they_are():
    class Stubborn(nn.Module):
        def __deepcopy__(self, memo: dict[int, object]) -> "Stubborn":
            raise TypeError("no")

        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1)[:, :3]

    x = torch.rand(4, 1, 8, 8)
    model = Stubborn()
    form = fast(model, x, SHORT)
    assert (form.search, form.precision) == (model, "float32")
    double = copy.deepcopy(small_net()).double()
    assert fast(double, x.double(), SHORT).precision == "float32"


class Shared(nn.Sequential):
    """Layers that every copy of a model shares, as of a large backbone."""

    def __deepcopy__(self, memo: object) -> "Shared":
        return self


def test_a_model_whose_copy_shares_layers_with_it_is_not_changed():
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten()
    model = nn.Sequential(Shared(*layers), nn.Linear(72, 4)).eval()
    model[0][1].running_mean.uniform_(-1, 1)
    x, kinds = torch.rand(6, 3, 8, 8), [type(module) for module in model.modules()]
    with torch.no_grad():
        before = model(x)
        kept = {name: value.clone() for name, value in model.state_dict().items()}
        form = fast(model, x)
        assert form.search is model
        assert "shares" in form.given_up
        assert torch.equal(model(x), before)
    assert [type(module) for module in model.modules()] == kinds
    assert model.state_dict().keys() == kept.keys()
    assert all(torch.equal(value, kept[name]) for name, value in model.state_dict().items())


def test_passes_are_counted():
    x, _ = held_out(12)
    form = fast(copy.deepcopy(small_net()), x, FULL)
    assert form.spent() == (0, 0)
    gradient(form, x)
    with torch.no_grad():
        form(x[:5])
    form.decide(x[:3])
    assert form.spent() == (12 + 5 + 3, 12)
    assert form.spent() == (0, 0)


def test_finds_of_the_search_form_are_shown_to_the_model():
    x, y = held_out(300)
    model = copy.deepcopy(small_net())

    class Wrong(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return -model(x)  # takes everything for misclassified

    form = Fast(model, Wrong(), "float32")
    with torch.no_grad():
        logits, exact = form(x), model(x).argmax(1) != y
    assert bool((logits.argmax(1) != y).any())
    assert torch.equal(misclassified(form, x, logits, y), exact)
    assert 0 < int(exact.sum()) < 300


# --- the policy ---


def test_what_is_left_open_is_chosen_by_the_device():
    chosen = Execution().resolved("cpu")
    assert chosen.precision in ("float32", "bfloat16")
    assert chosen.update == "float32"
    assert Execution(update="auto").resolved("cpu").update == chosen.precision
    assert (chosen.layout, chosen.compile) == ("channels_last", False)
    assert chosen.resolved("cpu") == chosen


def test_what_is_said_stays():
    said = Execution(precision="float32", update="bfloat16", layout="contiguous")
    assert said.resolved("cpu") == said
    assert said.memory_format == torch.contiguous_format
    assert str(said) == "search in float32, updates in bfloat16, contiguous"


def test_what_does_not_exist_is_refused_all_at_once():
    with pytest.raises(UserError) as caught:
        Execution(precision="float16", layout="nhwc")
    for word in ("precision must be one of", "'float16'", "layout must be one of", "'nhwc'"):
        assert word in str(caught.value)


# --- a form that follows its model ---


@pytest.mark.parametrize("execution", [FULL, SHORT], ids=str)
@pytest.mark.parametrize(("name", "channels"), CASES)
def test_a_form_follows_the_weights_and_statistics_of_its_model(name, channels, execution):
    with torch.random.fork_rng([]):
        model = lived_in(name, channels)
        x = torch.rand(6, channels, 12, 16)
        first = fast(model, execution=execution)
        with torch.no_grad():
            first(x)
            for tensor in [*model.parameters(), *model.buffers()]:
                if tensor.is_floating_point() and tensor.ndim != 4:
                    tensor.mul_(1.3).add_(0.01)
                elif tensor.is_floating_point():
                    tensor.mul_(0.8)
        again = fast(model, execution=execution)
        fresh = fast(model, x, execution)
    assert again.search is first.search is not fresh.search
    with torch.no_grad():
        assert torch.equal(again(x), fresh(x))
    assert torch.equal(gradient(again, x), gradient(fresh, x))


def test_a_form_that_waits_for_inputs_is_the_one_made_with_them():
    model, (x, _) = copy.deepcopy(small_net()), held_out(8)
    waiting = fast(model, execution=SHORT)
    assert waiting.waiting == SHORT
    with torch.no_grad():
        got = waiting(x)
        assert torch.equal(got, fast(model, x, SHORT)(x))
    assert waiting.waiting is None
    assert waiting.precision == "bfloat16"


def test_a_new_tensor_in_the_model_makes_a_new_form():
    model, (x, _) = copy.deepcopy(small_net()), held_out(8)
    with torch.no_grad():
        fast(model, execution=FULL)(x)
        model[-1].weight = nn.Parameter(torch.zeros_like(model[-1].weight))
        form = fast(model, execution=FULL)
        assert torch.allclose(form(x), model[-1].bias.expand(8, -1))


def test_a_model_that_is_cast_gets_a_new_form():
    model, (x, _) = copy.deepcopy(small_net()), held_out(8)
    with torch.no_grad():
        fast(model, execution=FULL)(x)
        model.double()
        form = fast(model, execution=FULL)
        assert torch.equal(form(x.double()), model(x.double()))
        model.float()
        again = fast(model, execution=FULL)
        again(x)
    assert again.search is not model


def test_a_form_of_a_model_with_statistics_at_their_start_is_right_later():
    """With statistics at 0 and 1 a norm does nothing: it must not pass for foldable then."""
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        model, x = Twice(), torch.rand(4, 1, 8, 8)
    fast(model, execution=FULL)(x)
    model.norm.running_mean.fill_(0.7)
    with torch.no_grad():
        assert torch.allclose(fast(model, execution=FULL)(x), model.eval()(x), atol=1e-6)


def test_forms_do_not_keep_a_model_alive():
    model, (x, _) = copy.deepcopy(small_net()), held_out(8)
    fast(model, execution=FULL)(x)
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


def test_a_form_is_its_own_form():
    form = fast(copy.deepcopy(small_net()))
    assert fast(form) is form


def test_an_attack_on_the_form_is_one_on_the_model():
    model, (x, y) = copy.deepcopy(small_net()), held_out(64)
    attack, threat = eq.attacks.PGD(steps=5, keep="last"), eq.Linf(0.1)
    with torch.no_grad():
        plain = model(attack(model, x, y, threat)).argmax(1) == y
        quick = model(attack(eq.fast(model), x, y, threat)).argmax(1) == y
    assert abs(int(plain.sum()) - int(quick.sum())) <= 2
    assert plain.float().mean() < 0.9


@pytest.fixture
def no_compiler(monkeypatch):
    """Trace and differentiate as when it is compiled, but run without a compiler."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))


COMPILED = Execution(precision="float32", compile=True)
UNTOLD = pytest.mark.filterwarnings("ignore:<class 'torch.autograd:DeprecationWarning")


@pytest.mark.slow
@UNTOLD
@pytest.mark.usefixtures("no_compiler")
def test_a_compiled_form_is_the_form_and_follows_its_model():
    with torch.random.fork_rng([]):
        model, x = lived_in("small-cnn", 1), torch.rand(6, 1, 12, 16)
    first = fast(model, x, COMPILED)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.9)
    again, expected = fast(model, execution=COMPILED), fast(model, x, FULL)
    assert again.compiled is first.compiled
    assert torch.allclose(gradient(again, x), gradient(expected, x), atol=1e-6)


@pytest.mark.slow
@UNTOLD
@pytest.mark.usefixtures("no_compiler")
@pytest.mark.parametrize("threat", [eq.Linf(0.1), eq.L2(0.5), eq.L1(3.0)], ids=str)
@pytest.mark.parametrize("attack", [eq.attacks.PGD(steps=3, keep="last"), eq.attacks.PGD(steps=3)])
def test_a_compiled_search_is_the_search(attack, threat):
    model, (x, y) = copy.deepcopy(small_net()), held_out(32)
    plain, compiled = fast(model, x, FULL), fast(model, x, COMPILED)
    expected, found = (attack(form, x, y, threat) for form in (plain, compiled))
    assert torch.allclose(found, expected, atol=1e-6)
    assert compiled.spent() == plain.spent()


@UNTOLD
@pytest.mark.usefixtures("no_compiler")
def test_a_step_is_one_graph_for_all_batches_and_weights():
    model, (x, y) = copy.deepcopy(small_net()), held_out(64)
    attack, threat = eq.attacks.PGD(steps=3, keep="last"), eq.Linf(0.1)
    counted = torch._dynamo.utils.counters
    before = sum(counted["graph_break"].values())
    attack(fast(model, x[:32], COMPILED), x[:32], y[:32], threat)
    graphs = counted["stats"]["unique_graphs"]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.9)
    found = attack(fast(model, execution=COMPILED), x[32:], y[32:], threat)
    assert counted["stats"]["unique_graphs"] == graphs
    assert sum(counted["graph_break"].values()) == before
    assert torch.allclose(found, attack(fast(model, x, FULL), x[32:], y[32:], threat), atol=1e-6)


@UNTOLD
@pytest.mark.usefixtures("no_compiler")
def test_a_training_with_compiled_steps_is_the_training():
    model, (x, y) = copy.deepcopy(small_net()), held_out(32)
    batch, found = Batch(x, y, torch.arange(32), 0.0), []
    for execution in (FULL, COMPILED):
        objective = TRADES(attack=eq.attacks.PGD(steps=3, start="noise")).bind(eq.Linf(0.1))
        objective.state.execution = execution
        found.append(objective.attacked(model, batch, KeyedDraws.of(x)))
    assert torch.allclose(found[1], found[0], atol=1e-6)


def test_a_form_that_cannot_be_compiled_says_what_is_missing(monkeypatch):
    def broken(function, mode):
        def fails(*given):
            raise RuntimeError("raised:\nno compiler\n\nat length")

        return fails

    monkeypatch.setattr(torch, "compile", broken)
    x, y = held_out(8)
    form = fast(copy.deepcopy(small_net()), x, Execution(compile=True))
    lacking = r"compile=on: .*\(raised: no compiler\); .* use compile=off"
    with pytest.raises(UserError, match=lacking):
        form(x)
    with pytest.raises(UserError, match=lacking):
        eq.attacks.PGD(steps=1)(form, x, y, eq.Linf(0.1))


@pytest.mark.slow
def test_the_compiler_is_imported_by_whoever_compiles_alone():
    asked = "import sys, equipoise.jobs.train; print('torch._dynamo' in sys.modules)"
    command = [sys.executable, "-c", asked]
    said = subprocess.run(command, capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "False"


@pytest.mark.slow
@UNTOLD
@pytest.mark.skipif(not which("c++"), reason="torch.compile needs a C++ compiler")
def test_a_step_compiled_for_this_machine_is_the_step():
    model, (x, y) = copy.deepcopy(small_net()), held_out(32)
    y = (y + 1) % 10  # of a loss near zero the gradient is rounding

    def both(attack, threat):
        return (attack(fast(model, x, how), x, y, threat) for how in (FULL, COMPILED))

    expected, compiled = both(eq.attacks.PGD(steps=3, keep="last"), eq.L2(0.5))
    assert torch.allclose(compiled, expected, atol=1e-5)
    attack, threat = eq.attacks.PGD(steps=1, keep="last"), eq.Linf(0.1)
    start = attack.start_at(x, threat, KeyedDraws.of(x).child("restart 0")).requires_grad_()
    (grad,) = torch.autograd.grad(
        nn.functional.cross_entropy(model(start), y, reduction="sum"), start
    )
    sure = grad.abs() > 1e-5 * grad.abs().max()  # of the others the sign is rounding
    assert sure.float().mean() > 0.9
    expected, compiled = both(attack, threat)
    assert torch.allclose(compiled[sure], expected[sure], atol=1e-5)


# --- strided convolutions ---


@pytest.mark.parametrize(
    ("k", "s", "p"),
    [(k, s, p) for k in (1, 2, 3, 4, 5, 7) for s in (2, 3) for p in (0, 1, 2) if p <= k // 2 + 1],
)
def test_the_gradient_of_a_strided_convolution_is_that_of_autograd(k, s, p):
    generator = torch.Generator().manual_seed(k * 10 + s)
    conv = nn.Conv2d(3, 5, k, stride=s, padding=p).double()
    assert Strided.suits(conv)
    for size in ((9, 12), (10, 11), (k + 1, k + 2)):
        x = torch.rand(2, 3, *size, generator=generator, dtype=torch.float64, requires_grad=True)
        quick = copy.deepcopy(conv)
        become(quick, Strided)
        quick.refresh()
        expected, got = conv(x), quick(x)
        assert torch.equal(expected, got)
        weight = torch.rand(expected.shape, generator=generator, dtype=torch.float64)
        (one,) = torch.autograd.grad((expected * weight).sum(), x)
        (two,) = torch.autograd.grad((got * weight).sum(), x)
        assert (one - two).abs().max() <= 1e-12


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(3, 4, 3),
        nn.Conv2d(8, 4, 3, stride=2),
        nn.Conv2d(3, 6, 3, stride=2, groups=3),
        nn.Conv2d(3, 4, 3, stride=2, dilation=2),
        nn.Conv2d(3, 4, (3, 5), stride=2),
        nn.Conv2d(3, 4, 3, stride=(2, 1)),
        nn.Conv2d(3, 4, 3, stride=2, padding=1, padding_mode="reflect"),
        nn.Linear(3, 4),
    ],
)
def test_other_layers_are_left_alone(conv):
    assert not Strided.suits(conv)


# --- sizes of batches ---


@pytest.mark.parametrize("name", ["small-cnn", "resnet-18"])
def test_batches_of_rounded_sizes_give_the_same_answers_and_gradients(name):
    model = models.build(name, {"channels": 3, "size": (16, 16), "width": 0.25}).eval()
    x = torch.rand(37, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    form = fast(model, x[:2], Execution(precision="float32"))
    assert form.twin is not None
    seen: list[int] = []
    form.search.register_forward_hook(lambda _module, inputs, _out: seen.append(len(inputs[0])))
    for n in (1, 7, 15, 17, 33, 37):
        results = []
        for form.twin.pads in (True, False):
            _, losses, grad = input_gradient(form, x[:n], lambda z: z.square().sum(1))
            results.append((form(x[:n]), losses, grad, form.decide(x[:n])))
        for rounded, plain in zip(*results, strict=True):
            assert rounded.shape == plain.shape
            assert (rounded - plain).abs().max() <= 1e-5 * plain.abs().max()
        assert seen[-4:-1] == [n + -n % max(1, 2 ** (n.bit_length() - 4)), n, n]  # once in a row
    assert form.spent() == (2 * 3 * 110, 2 * 110)  # of the inputs alone
    assert {17, 18, 33, 36, 37, 40} < set(seen)


def test_few_sizes_of_batches_remain():
    sizes: list[int] = []

    def network(x: Tensor) -> Tensor:
        sizes.append(len(x))
        return x

    for n in range(1, 1025):
        x = torch.arange(n)[:, None]
        assert torch.equal(padded(network, x), x)
        assert n <= sizes[-1] <= n * 9 / 8
    assert len(set(sizes)) < 70


def test_the_batch_of_a_model_that_looks_at_it_is_left_alone():
    class Centred(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Conv2d(16, 16, 3), nn.BatchNorm2d(16), nn.Flatten())
            self.head = nn.Linear(16 * 36, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.net(x - self.offset(x)))

        def offset(self, x: Tensor) -> Tensor:
            return x.mean(0) if self.looks else x.mean()

        looks = True

    x = torch.rand(9, 16, 8, 8)
    model = Centred().eval()
    form = fast(model, x, Execution(precision="float32"))
    assert form.twin is not None
    assert not form.twin.pads
    Centred.offset = lambda self, x: 0.5
    form = fast(copy.deepcopy(model), x, Execution(precision="float32"))
    assert form.twin is not None
    assert form.twin.pads
