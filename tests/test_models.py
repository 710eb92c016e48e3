"""Models: every entry of the table at every size, with common names and parameter counts."""

import copy

import pytest
import torch
from torch import Tensor, nn

from equipoise.errors import UserError
from equipoise.models import MODELS, build

NARROW = {
    "small-cnn": 0.5,
    "resnet-18": 1 / 16,
    "preact-resnet-18": 1 / 16,
    "wrn-28-10": 1 / 40,
    "wrn-34-10": 1 / 40,
}


def narrow(name: str, *, channels: int = 3, size: tuple[int, int] = (32, 32), classes: int = 10):
    """Return a cheap model of this name, always with the same weights, in eval mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build(
            name,
            {
                "channels": channels,
                "size": size,
                "classes": classes,
                "width": NARROW[name],
                "mean": [0.3] * channels,
                "std": [0.2] * channels,
            },
        )
    return model.eval()


def on_paper(name: str, **settings: object) -> nn.Module:
    """Return a model of full width without its weights."""
    with torch.device("meta"):
        return build(name, settings)


def size_of(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def images(count: int, channels: int, size: tuple[int, int]) -> Tensor:
    return torch.rand(count, channels, *size, generator=torch.Generator().manual_seed(0))


def test_every_model_is_tested():
    assert NARROW.keys() == MODELS.keys()


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(
    ("channels", "size", "classes"),
    [
        (3, (8, 8), 2),
        (3, (32, 32), 100),
        (1, (28, 28), 10),
        (3, (64, 64), 10),
        (3, (8, 20), 10),
        (3, (11, 13), 10),
    ],
    ids=str,
)
def test_logits_have_a_row_an_image_and_a_column_a_class(name, channels, size, classes):
    model = narrow(name, channels=channels, size=size, classes=classes)
    with torch.no_grad():
        logits = model(images(2, channels, size))
    assert logits.shape == (2, classes)
    assert torch.isfinite(logits).all()
    assert not torch.equal(logits[0], logits[1])


@pytest.mark.parametrize("name", MODELS)
def test_large_images_work(name):
    with torch.no_grad():
        assert narrow(name, size=(224, 224))(images(1, 3, (224, 224))).shape == (1, 10)


@pytest.mark.parametrize("name", MODELS)
def test_forward_is_the_trunk_after_the_stem(name):
    model, x = narrow(name), images(3, 3, (32, 32))
    with torch.no_grad():
        assert torch.equal(model.trunk(model.stem(x)), model(x))


@pytest.mark.parametrize("name", MODELS)
def test_the_stem_is_normalisation_and_one_convolution(name):
    model, x = narrow(name), images(3, 3, (32, 32))
    with torch.no_grad():
        expected = model.conv1((x - 0.3) / 0.2)
        assert torch.allclose(model.stem(x), expected, atol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_normalisation_is_the_first_layer(name):
    model, x = narrow(name), images(3, 3, (32, 32))
    raw = copy.deepcopy(model)
    raw.normalize.mean.zero_()
    raw.normalize.std.fill_(1)
    with torch.no_grad():
        assert torch.allclose(model(x), raw((x - 0.3) / 0.2), atol=1e-5)
        assert not torch.allclose(model(x), raw(x), atol=1e-3)


@pytest.mark.parametrize("name", MODELS)
def test_every_channel_has_its_own_normalisation(name):
    settings = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "width": NARROW[name]}
    model = build(name, {**settings, "channels": 3, "size": (32, 32), "classes": 10})
    found = model.normalize(torch.ones(1, 3, 2, 2))[0, :, 0, 0]
    assert found.tolist() == pytest.approx([0.9 / 0.4, 0.8 / 0.5, 0.7 / 0.6])


@pytest.mark.parametrize("name", MODELS)
def test_normalisation_travels_with_the_weights_but_is_not_trained(name):
    model = narrow(name)
    assert {"normalize.mean", "normalize.std"} <= model.state_dict().keys()
    assert not any("normalize" in key for key, _ in model.named_parameters())


@pytest.mark.parametrize("name", MODELS)
def test_every_parameter_takes_part(name):
    model = narrow(name).train()
    model(images(4, 3, (32, 32))).square().sum().backward()
    idle = [key for key, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert idle == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "keys"),
    {
        "small-cnn": ["conv1.weight", "bn1.weight", "conv2.weight", "linear.weight"],
        "resnet-18": [
            "conv1.weight",
            "bn1.weight",
            "layer1.0.conv1.weight",
            "layer1.0.bn2.running_var",
            "layer2.0.shortcut.0.weight",
            "layer2.0.shortcut.1.running_mean",
            "layer4.1.conv2.weight",
            "linear.weight",
            "linear.bias",
        ],
        "preact-resnet-18": [
            "conv1.weight",
            "layer1.0.bn1.weight",
            "layer1.0.conv1.weight",
            "layer2.0.shortcut.0.weight",
            "layer4.1.conv2.weight",
            "linear.weight",
        ],
        "wrn-34-10": [
            "conv1.weight",
            "block1.layer.0.bn1.weight",
            "block1.layer.0.conv1.weight",
            "block1.layer.0.convShortcut.weight",
            "block3.layer.4.conv2.weight",
            "bn1.weight",
            "fc.weight",
            "fc.bias",
        ],
    }.items(),
)
def test_parameters_carry_the_common_names(name, keys):
    assert set(keys) <= on_paper(name).state_dict().keys()


# Counted from the published architectures: 3x3 and 1x1 convolutions without bias, two numbers a
# feature for each BatchNorm, one linear layer.
def count_resnet(classes: int, channels: int = 3) -> int:
    total = 9 * channels * 64 + 2 * 64
    inputs = 64
    for outputs in (64, 128, 256, 512):
        total += 9 * inputs * outputs + 3 * 9 * outputs**2 + 4 * 2 * outputs
        total += 0 if inputs == outputs else inputs * outputs + 2 * outputs
        inputs = outputs
    return total + (512 + 1) * classes


def count_wide(depth: int, factor: int, classes: int) -> int:
    total, inputs = 9 * 3 * 16, 16
    blocks = (depth - 4) // 6
    for outputs in (16 * factor, 32 * factor, 64 * factor):
        for block in range(blocks):
            first = inputs if block == 0 else outputs
            total += 9 * first * outputs + 9 * outputs**2 + 2 * first + 2 * outputs
            total += first * outputs if block == 0 else 0
        inputs = outputs
    return total + 2 * inputs + (inputs + 1) * classes


def test_parameter_counts_are_the_published_ones():
    assert count_resnet(10) == 11_173_962
    assert size_of(on_paper("resnet-18")) == 11_173_962
    assert size_of(on_paper("resnet-18", classes=100, channels=1)) == count_resnet(100, 1)
    # Without norms behind the shortcuts and the stem, with one before the average.
    norms = 2 * (128 + 256 + 512) + 2 * 64
    first_norms = sum(2 * (a - b) for a, b in ((64, 128), (128, 256), (256, 512)))
    expected = 11_173_962 - norms + first_norms + 2 * 512
    assert size_of(on_paper("preact-resnet-18")) == expected == 11_172_170
    assert size_of(on_paper("wrn-28-10")) == count_wide(28, 10, 10) == 36_479_194
    assert size_of(on_paper("wrn-34-10")) == count_wide(34, 10, 10) == 46_160_474


def test_small_cnn_has_a_fifth_of_a_million_parameters():
    settings = {"channels": 1, "size": (28, 28), "mean": [0.1], "std": [0.3]}
    assert 150_000 < size_of(on_paper("small-cnn", **settings)) < 250_000


@pytest.mark.parametrize("name", MODELS)
def test_width_scales_the_number_of_features(name):
    half, full = size_of(on_paper(name, width=0.5)), size_of(on_paper(name, width=1))
    assert 3.2 < full / half < 4.4


@pytest.mark.parametrize("name", MODELS)
def test_the_narrowest_model_still_works_or_is_refused(name):
    settings = {"channels": 3, "size": (32, 32), "mean": [0.5] * 3, "std": [0.5] * 3}
    try:
        model = build(name, {**settings, "width": 0.001})
    except UserError:
        return
    assert model.eval()(images(1, 3, (32, 32))).shape == (1, 10)


def test_residual_blocks_add_their_input():
    # With the last norm of a basic block at zero, and the last convolution of a pre-activation
    # block at zero, only the shortcut is left.
    x = images(2, 4, (8, 8))
    block = narrow("resnet-18").layer1[1]
    nn.init.zeros_(block.bn2.weight)
    assert torch.allclose(block(x), x)
    for block in (narrow("preact-resnet-18").layer1[1], narrow("wrn-28-10").block1.layer[1]):
        nn.init.zeros_(block.conv2.weight)
        assert torch.equal(block(x), x)


@pytest.mark.parametrize("name", MODELS)
def test_models_need_no_random_numbers(name):
    model, x = narrow(name).train(), images(4, 3, (32, 32))
    state = torch.get_rng_state()
    model(x)
    assert torch.equal(torch.get_rng_state(), state)


def test_unknown_models_are_refused_with_the_nearest():
    with pytest.raises(UserError, match="did you mean 'resnet-18'"):
        build("resnet18", {})
    with pytest.raises(UserError, match="did you mean 'wrn-34-10'"):
        build("wrn-34", {})


@pytest.mark.parametrize("size", [(7, 32), (32, 7), (513, 32), (0, 0)])
@pytest.mark.parametrize("name", MODELS)
def test_images_of_other_sizes_are_refused(name, size):
    with pytest.raises(UserError, match="8 to 512 pixels"):
        build(name, {"size": size})


@pytest.mark.parametrize("width", [0, -1, float("nan")])
def test_widths_that_cannot_be_meant_are_refused(width):
    with pytest.raises(UserError, match="width"):
        build("resnet-18", {"width": width})


@pytest.mark.parametrize("name", MODELS)
def test_normalisation_for_other_channels_is_refused(name):
    settings = {"channels": 2, "size": (8, 8), "width": NARROW[name]}
    with pytest.raises(UserError, match="mean"):
        build(name, {**settings, "mean": [0.5] * 3, "std": [0.5] * 3})


def test_unknown_settings_are_refused_by_name():
    with pytest.raises(UserError, match="widht"):
        build("resnet-18", {"widht": 0.1})
