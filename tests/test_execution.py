"""The search form of a model: the same answers, the same gradients, and nothing changed."""

import copy

import pytest
import torch
from torch import Tensor, nn

from equipoise import models
from equipoise.attacks.core import misclassified
from equipoise.execution import Fast, choose_precision, fast
from equipoise.strided import Strided
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


CASES = [("small-cnn", 1), ("small-cnn", 3), ("resnet-18", 3), ("preact-resnet-18", 3)]


@pytest.mark.parametrize(("name", "channels"), CASES)
def test_the_float32_form_is_the_model(name, channels):
    with torch.random.fork_rng([]):
        model = lived_in(name, channels)
        x = torch.rand(6, channels, 12, 16)
    form = fast(model, x, "float32")
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
    form = fast(model, x, "bfloat16")
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
    form = fast(model, torch.rand(2, 3, 12, 16), "float32")
    assert not any(isinstance(m, nn.BatchNorm2d) for m in form.search.modules())
    preact = fast(lived_in("preact-resnet-18", 3), torch.rand(2, 3, 12, 16), "float32")
    left = [m for m in preact.search.modules() if isinstance(m, nn.BatchNorm2d)]
    assert left  # those that stand before a convolution, after a sum


def test_what_cannot_be_folded_is_not():
    class Twice(nn.Module):
        """Uses what the convolution wrote without the norm, too."""

        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4)
            self.head = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            h = self.conv(x)
            return self.head((h + self.norm(h)).mean((2, 3)))

    model = Twice().eval()
    model.norm.running_mean.fill_(0.7)
    x = torch.rand(4, 1, 8, 8)
    form = fast(model, x, "float32")
    with torch.no_grad():
        assert torch.allclose(form(x), model(x), atol=1e-6)
    assert any(isinstance(m, nn.BatchNorm2d) for m in form.search.modules())


def test_the_model_is_not_changed():
    model = copy.deepcopy(small_net()).train()
    state = {k: v.clone() for k, v in model.state_dict().items()}
    modes = [m.training for m in model.modules()]
    x, _ = held_out(8)
    form = fast(model, x, "bfloat16")
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
    form = fast(model, x, "bfloat16")
    assert (form.search, form.precision) == (model, "float32")
    double = copy.deepcopy(small_net()).double()
    assert fast(double, x.double(), "bfloat16").precision == "float32"


def test_passes_are_counted():
    x, _ = held_out(12)
    form = fast(copy.deepcopy(small_net()), x, "float32")
    assert form.spent() == (0, 0)
    gradient(form, x)
    with torch.no_grad():
        form(x[:5])
    form.decide(x[:3])
    assert form.spent() == (12 + 5 + 3, 12)
    assert form.spent() == (0, 0)


def test_finds_of_the_search_form_are_shown_to_the_model():
    x, y = held_out(30)
    model = copy.deepcopy(small_net())

    class Wrong(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return -model(x)  # takes everything for misclassified

    form = Fast(model, Wrong(), "float32")
    with torch.no_grad():
        logits, exact = form(x), model(x).argmax(1) != y
    assert bool((logits.argmax(1) != y).any())
    assert torch.equal(misclassified(form, x, logits, y), exact)
    assert 0 < int(exact.sum()) < 30


def test_the_precision_is_one_of_two():
    assert choose_precision(torch.device("cpu")) in ("float32", "bfloat16")


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
        expected, got = conv(x), Strided(conv)(x)
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
