"""Models that were not made here: their weights, and the normalisation that belongs to them."""

import functools
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from equipoise import data
from equipoise.data.mnist import FASHION_MNIST, MNIST
from equipoise.errors import UserError
from equipoise.evaluation.checks import before
from equipoise.evaluation.checks.inputs import in_range, scaling
from equipoise.models.core import Normalize
from equipoise.models.foreign import load_weights, put_in_front
from equipoise.models.normalisation import NAMED, Constants, applied_by, asked_for, held_in, pairs
from equipoise.threat import Linf

MEAN, STD = (0.49, 0.48, 0.44), (0.24, 0.24, 0.26)
CONSTANTS = Constants(MEAN, STD)
MU, SIGMA = (torch.tensor(part).view(3, 1, 1) for part in CONSTANTS)
X = torch.rand(20, 3, 4, 4, generator=torch.Generator().manual_seed(1))

State = dict[str, Tensor]


def net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 3))
    with torch.no_grad():
        for value in layers.state_dict().values():
            if value.is_floating_point():
                value.add_(0.1 * torch.rand(value.shape))
    return layers.eval()


def prefixed(prefix: str, state: State) -> State:
    return {prefix + name: value for name, value in state.items()}


def saved(folder: Path, content: object) -> Path:
    torch.save(content, folder / "w.pt")
    return folder / "w.pt"


def normalised(model: nn.Module) -> Tensor:
    return model((X - MU) / SIGMA)


def same(model: nn.Module, logits: Tensor) -> bool:
    with torch.no_grad():
        return torch.allclose(model(X), logits, atol=1e-5)


THEIRS = net(1)
STATE: State = dict(THEIRS.state_dict())
with torch.no_grad():
    PLAIN, NORMALISED = THEIRS(X), normalised(THEIRS)
CONSTANT_NAMES: State = {"mu": MU, "sigma": SIGMA}


# --- names ---


@pytest.mark.parametrize(
    "prefix",
    [
        "_orig_mod.",
        "module._orig_mod.",
        "_orig_mod.module.",
        "model._orig_mod.",
        "model.module._orig_mod.",
        "module.model._orig_mod.module.",
        "_fsdp_wrapped_module.",
        "net.",
        "backbone.",
        "learner.classifier.",
        "module.1.",
    ],
)
def test_whatever_stands_before_the_names_is_understood(tmp_path, prefix):
    file = saved(tmp_path, {"state_dict": prefixed(prefix, STATE), "epoch": 3})
    assert same(load_weights(net(), file), PLAIN)


def test_wrappers_inside_names_are_understood_on_both_sides(tmp_path):
    inner = {name.replace("0.", "0._orig_mod.", 1): value for name, value in STATE.items()}
    assert same(load_weights(net(), saved(tmp_path, inner)), PLAIN)
    wrapped = nn.Sequential(nn.DataParallel(net()))
    assert same(load_weights(wrapped, saved(tmp_path, STATE)), PLAIN)


@pytest.mark.parametrize("first", ["normalizer", "attacker.normalize"])
def test_checkpoints_of_robustness_are_understood(tmp_path, first):
    states = prefixed("module.model.", STATE) | prefixed("module.attacker.model.", STATE)
    constants = {f"module.{first}.new_mean": MU, f"module.{first}.new_std": SIGMA}
    told: list[str] = []
    file = saved(tmp_path, {"model": states | constants, "optimizer": {"state": {}}})
    assert same(load_weights(net(), file, say=told.append), NORMALISED)
    assert len(told) == 1
    assert "--normalise none" in told[0]


def test_counters_and_losses_of_trainers_are_left_out(tmp_path):
    averaged = prefixed("module.", STATE) | {"n_averaged": torch.tensor(7)}
    assert same(load_weights(net(), saved(tmp_path, averaged)), PLAIN)
    told: list[str] = []
    lightning = prefixed("model.", STATE) | {"criterion.weight": torch.ones(3)}
    file = saved(tmp_path, {"state_dict": lightning})
    assert same(load_weights(net(), file, say=told.append), PLAIN)
    assert "criterion.weight" in told[0]


def test_weight_norm_of_former_versions_is_converted(tmp_path):
    model = nn.Sequential(nn.Flatten(), nn.utils.parametrizations.weight_norm(nn.Linear(48, 3)))
    held = model.state_dict()
    former = {
        "1.bias": held["1.bias"],
        "1.weight_g": held["1.parametrizations.weight.original0"] * 2,
        "1.weight_v": held["1.parametrizations.weight.original1"],
    }
    with torch.no_grad():
        expected = 2 * (model(X) - held["1.bias"]) + held["1.bias"]
    assert same(load_weights(model, saved(tmp_path, prefixed("model.", former))), expected)


# --- which of several weights ---

RAW: State = {name: torch.zeros_like(value) for name, value in STATE.items()}


@pytest.mark.parametrize(
    ("content", "raw"),
    [
        ({"state_dict": RAW, "state_dict_ema": STATE, "epoch": 1}, "state_dict"),
        ({"model": RAW, "model_ema": STATE}, "model"),
        ({"model": RAW, "ema": {"module": STATE, "decay": 0.999}}, "model"),
        ({"state_dict": RAW, "state_dict_ema": prefixed("module.", STATE)}, "state_dict"),
        ({"model": RAW, "ema": {"decay": 0.9, "shadow": STATE}}, "model"),
        ({"state_dict": RAW, "callbacks": {"EMA": {"ema_state_dict": STATE}}}, "state_dict"),
        (
            {
                "state_dict": RAW,
                "ema_state_dict": prefixed("module.", STATE) | {"steps": torch.tensor(9)},
            },
            "state_dict",
        ),
        (prefixed("model.", RAW) | prefixed("model_ema.module.", STATE), "model"),
        ({"state_dict": prefixed("model.", RAW) | prefixed("ema_model.", STATE)}, "model"),
    ],
)
def test_an_average_is_taken_and_said_and_the_raw_weights_on_demand(tmp_path, content, raw):
    file, told = saved(tmp_path, content), []
    assert same(load_weights(net(), file, say=told.append), PLAIN)
    assert len(told) == 1
    assert "average" in told[0]
    assert f"--weights {file}:{raw}" in told[0]
    chosen = load_weights(net(), f"{file}:{raw}")
    assert same(chosen, torch.zeros(len(X), 3))


def test_a_key_may_be_chosen_and_an_unknown_one_names_those_there(tmp_path):
    file = saved(tmp_path, {"teacher": STATE, "student": RAW})
    assert same(load_weights(net(), f"{file}:teacher"), PLAIN)
    with pytest.raises(UserError, match="'pupil'; it has teacher, student"):
        load_weights(net(), f"{file}:pupil")
    with pytest.raises(UserError, match=rf"--weights {file}:teacher"):
        load_weights(net(), file)


def test_two_sets_of_weights_that_fit_are_refused_with_their_names(tmp_path):
    file = saved(tmp_path, prefixed("student.", RAW) | prefixed("teacher.", STATE))
    with pytest.raises(UserError, match="student, teacher"):
        load_weights(net(), file)
    assert same(load_weights(net(), f"{file}:teacher"), PLAIN)


def test_a_file_with_a_colon_in_its_name_is_a_file(tmp_path):
    torch.save(STATE, tmp_path / "w:1.pt")
    assert same(load_weights(net(), tmp_path / "w:1.pt"), PLAIN)


def test_keys_in_keys_without_an_end_are_refused(tmp_path):
    content: dict[str, object] = {"epoch": 3}
    content["model"] = content
    with pytest.raises(UserError, match="holds no tensors"):
        load_weights(net(), saved(tmp_path, content))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda v: v.to(torch.complex64), "complex"),
        (lambda v: (100 * v).to(torch.int8), "int8"),
    ],
)
def test_weights_of_other_kinds_of_numbers_are_refused(tmp_path, change, said):
    content = STATE | {"0.weight": change(STATE["0.weight"])}
    with pytest.raises(UserError, match=said):
        load_weights(net(), saved(tmp_path, content))


# --- submodules ---


class Around(nn.Module):
    """A net with something beside it."""

    def __init__(self, **others: nn.Module) -> None:
        super().__init__()
        self.net = net()
        for name, other in others.items():
            setattr(self, name, other)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


@pytest.mark.parametrize(
    "content", [STATE, {"state_dict": prefixed("module.model.", STATE)}, prefixed("net.", STATE)]
)
def test_weights_of_the_net_fit_a_model_that_normalises_before_it(tmp_path, content):
    told: list[str] = []
    model = nn.Sequential(Normalize(MEAN, STD), net())
    loaded = load_weights(model, saved(tmp_path, content), say=told.append)
    assert loaded is model
    assert same(loaded, NORMALISED)
    assert any("0.mean" in line for line in told)


def test_weights_that_would_leave_a_part_untrained_are_refused(tmp_path):
    model = Around(head=nn.Linear(3, 3))
    with pytest.raises(UserError, match="it fits net, which would leave the rest"):
        load_weights(model, saved(tmp_path, STATE))


def test_two_possible_submodules_are_refused_with_their_names(tmp_path):
    with pytest.raises(UserError, match="any of net, twin"):
        load_weights(Around(twin=net()), saved(tmp_path, STATE))


# --- normalisation in the file ---


class Own(nn.Module):
    """A net that normalises by itself, in one of many ways."""

    def __init__(self, hold: Callable[[nn.Module], object]) -> None:
        super().__init__()
        self.net = net()
        hold(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.net((x - MU) / SIGMA)


class Transform:
    """Like torchvision's ``Normalize`` before it was a module."""

    def __init__(self) -> None:
        self.mean, self.std = list(MEAN), list(STD)


def at_the_class(model: nn.Module) -> None:
    model.__class__ = type("Derived", (Own,), {"means": MEAN, "stds": STD})


def as_attributes(mean: object, std: object) -> Callable[[nn.Module], None]:
    def hold(model: nn.Module) -> None:
        model.a, model.b = mean, std

    return hold


def as_buffers(model: nn.Module) -> None:
    for name, value in zip(("centre", "width"), (MU, SIGMA), strict=True):
        model.register_buffer(name, value[None], persistent=False)


def as_parameters(model: nn.Module) -> None:
    model.pre = nn.Module()
    for name, value in zip("ms", (MU, SIGMA), strict=True):
        model.pre.register_parameter(name, nn.Parameter(value, requires_grad=False))


def deep(value: object) -> Callable[[nn.Module], object]:
    return lambda model: setattr(model, "held", value)


def closed_over(mean: Tensor, std: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda x: (x - mean) / std


HOLDERS: dict[str, Callable[[nn.Module], object]] = {
    "tensors": as_attributes(MU, SIGMA),
    "lists": as_attributes(list(MEAN), list(STD)),
    "tuples of a few digits less": as_attributes(MEAN, (0.2401, 0.2403, 0.2598)),
    "arrays": as_attributes(MU.numpy(), SIGMA.numpy()),
    "lists of NumPy's numbers": as_attributes(*(list(part.numpy().flat) for part in (MU, SIGMA))),
    "one over std": as_attributes(MEAN, tuple(1 / value for value in STD)),
    "times 255": as_attributes(*(tuple(255 * v for v in part) for part in CONSTANTS)),
    "at the class": at_the_class,
    "non-persistent buffers": as_buffers,
    "a transform": deep(Transform()),
    "a composition": deep(SimpleNamespace(transforms=[object(), Transform()])),
    "a pair": deep((MEAN, STD)),
    "a dict": deep({"mean": MU, "std": SIGMA}),
    "a partial function": deep(functools.partial(closed_over, mean=MEAN, std=STD)),
    "a closure": deep(closed_over(MU, SIGMA)),
    "a module in a list": deep([Normalize(MEAN, STD)]),
}


@pytest.mark.parametrize("name", HOLDERS)
def test_a_model_that_holds_the_constants_is_not_normalised_twice(tmp_path, name):
    model, told = Own(HOLDERS[name]), []
    content = prefixed("net.", STATE) | CONSTANT_NAMES
    loaded = load_weights(model, saved(tmp_path, content), say=told.append)
    assert loaded is model
    assert same(loaded, NORMALISED)
    assert any("normalises by itself" in line for line in told)


@pytest.mark.parametrize(
    "hold",
    [
        lambda model: None,
        deep({"mean": MU}),
        deep(SimpleNamespace(default_cfg=1)),
        lambda model: setattr(model, "pretrained_cfg", {"mean": MEAN, "std": STD}),
        lambda model: setattr(model, "default_cfg", Transform()),
        as_attributes((0.1, 0.2, 0.3), (0.24, 0.24, 0.26)),
    ],
)
def test_a_model_that_holds_them_not_is_wrapped_and_that_is_said(tmp_path, hold):
    model, told = Around(), []
    hold(model)
    content = prefixed("net.", STATE) | CONSTANT_NAMES
    loaded = load_weights(model, saved(tmp_path, content), say=told.append)
    assert same(loaded, NORMALISED)
    assert len(told) == 1
    assert "first layer" in told[0]
    silent = load_weights(Around(), saved(tmp_path, content), normalise="none")
    assert same(silent, PLAIN)


def with_a_hook(model: nn.Sequential) -> nn.Module:
    model.register_forward_pre_hook(lambda module, given: (closed_over(MU, SIGMA)(given[0]),))
    return model


def by_a_convolution(model: nn.Sequential) -> nn.Module:
    first = nn.Conv2d(3, 3, 1, groups=3)
    with torch.no_grad():
        first.weight.copy_(1 / SIGMA[:, None])
        first.bias.copy_(-(MU / SIGMA).flatten())
    return nn.Sequential(first, model)


def by_a_norm(model: nn.Sequential) -> nn.Module:
    first = nn.BatchNorm2d(3, eps=0.0, affine=False)
    first.running_mean.copy_(MU.flatten())
    first.running_var.copy_(SIGMA.flatten() ** 2)
    return nn.Sequential(first, model)


class Last(nn.Module):
    """Takes the channels to the end, as code that came from other frameworks does."""

    def __init__(self, model: nn.Sequential) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        x = (x.permute(0, 2, 3, 1) - MU.flatten()) / SIGMA.flatten()
        return self.model(x.permute(0, 3, 1, 2))


@pytest.mark.parametrize(
    "make", [lambda model: Own(lambda own: None), with_a_hook, by_a_convolution, by_a_norm, Last]
)
def test_a_model_that_computes_the_normalisation_is_not_normalised_twice(tmp_path, make):
    """Constants in the source, in a hook, or as weights, which the file brings with it."""
    expected, told = make(net(1)).eval(), []
    if isinstance(expected, Own):
        expected.net = net(1)
    content = dict(expected.state_dict()) | CONSTANT_NAMES
    model = make(net()).eval()
    if make is by_a_convolution:
        nn.init.zeros_(model[0].weight)  # as long as the file has not been loaded
    loaded = load_weights(model, saved(tmp_path, content), shape=(3, 4, 4), say=told.append)
    assert loaded is model
    assert same(loaded, NORMALISED)
    assert any("normalises by itself" in line for line in told)
    asked = load_weights(model, saved(tmp_path, content), shape=(3, 4, 4), normalise=CONSTANTS)
    assert same(asked[1], NORMALISED)
    assert asked[0].mean.flatten().tolist() == pytest.approx(MEAN)


@pytest.mark.parametrize("constants", [NAMED["imagenet"], NAMED["half"]])
def test_a_model_that_computes_another_normalisation_or_none_does_not_count(constants):
    assert not applied_by(Own(lambda model: None), constants, (3, 4, 4))
    assert not applied_by(net(), constants, (3, 4, 4))
    assert not applied_by(nn.Linear(2, 2), constants, (3, 4, 4))  # it fails


def test_half_of_everything_is_found_by_name_alone():
    half = Constants((0.5,), (0.5,))
    assert not held_in(nn.Sequential(nn.Dropout(0.5), nn.Dropout(0.5)), half)
    model = nn.Sequential(nn.Dropout(0.5))
    model.mean, model.std = 0.5, 0.5
    assert held_in(model, half) == "mean and std"
    assert held_in(model, Constants((0.5,) * 3, (0.5,) * 3))


def test_constants_with_a_place_go_there(tmp_path):
    model = nn.Sequential(Normalize((0.1, 0.1, 0.1), (1.0, 1.0, 1.0)), net())
    content = prefixed("model.", STATE) | {"normalizer.new_mean": MU, "normalizer.new_std": SIGMA}
    loaded = load_weights(model, saved(tmp_path, content))
    assert loaded is model
    assert same(loaded, NORMALISED)


@pytest.mark.parametrize(
    "constants",
    [
        {"mu": MU},  # alone
        {"a.mu": MU, "b.sigma": SIGMA},  # far apart
        {"mu": MU, "b.sigma": SIGMA},
        {"mu": MU, "sigma": -SIGMA},  # no std
        {"mu": torch.rand(3, 4, 4), "sigma": torch.rand(3, 4, 4)},  # an image
        {"mu": MU, "sigma": torch.ones(1)},
        {"0.prior.mu": MU, "0.prior.sigma": SIGMA},  # deep inside: of a layer
        {"mu": MU, "sigma": SIGMA, "mean": MU / 2, "std": SIGMA},  # which?
    ],
)
def test_what_is_no_normalisation_of_the_input_does_not_become_one(tmp_path, constants):
    with pytest.raises(UserError, match="does not fit the model"):
        load_weights(net(), saved(tmp_path, STATE | constants))


@pytest.mark.parametrize(
    ("mean", "std"),
    [(MU[:1], SIGMA[:1]), (MU.repeat(2, 1, 1), SIGMA.repeat(2, 1, 1)), (255 * MU, 255 * SIGMA)],
)
def test_constants_for_other_channels_or_pixels_are_refused_with_the_remedy(tmp_path, mean, std):
    file = saved(tmp_path, STATE | {"mu": mean, "sigma": std})
    with pytest.raises(UserError, match="--normalise none"):
        load_weights(net(), file, shape=(3, 4, 4))
    assert same(load_weights(net(), file, normalise="none"), PLAIN)
    assert same(load_weights(net(), file, normalise=CONSTANTS), NORMALISED)


def test_pairs_sit_together():
    names = ["mu", "a.sigma", "b.mean", "b.std", "c.running_mean", "c.running_var", "d.new_mean"]
    assert pairs(names) == [("b.mean", "b.std")]


# --- normalisation that is asked for ---


def test_a_normalisation_is_put_in_front_in_the_arithmetic_of_the_model():
    told: list[str] = []
    model = put_in_front(THEIRS.double(), CONSTANTS, say=told.append)
    THEIRS.float()
    assert model[0].mean.dtype == torch.float64
    assert len(told) == 1
    assert not model.training
    for shape in (None, (3, 4, 4)):
        put_in_front(Own(HOLDERS["tensors"]), CONSTANTS, shape, say=told.append)
        assert "normalises twice" in told.pop()
    put_in_front(Own(lambda model: None), CONSTANTS, (3, 4, 4), say=told.append)
    assert "normalises twice" in told.pop()
    put_in_front(net(), CONSTANTS, (3, 4, 4), say=told.append)
    assert "normalises twice" not in told.pop()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("cifar1", None, None), "cifar10"),
        (("imagenet", "0.5", "0.5"), "not both"),
        ((None, "0.5,0.5,0.5", None), "belong together"),
        ((None, None, "0.5"), "belong together"),
        ((None, "0.5,0.5", "0.5"), "2 and 1 values"),
        ((None, "0.5", "0"), "positive"),
        ((None, "0.5", "-0.1"), "positive"),
        ((None, "123.7", "58.4"), "divide mean and std by 255"),
        ((None, "-0.1", "1"), r"lie in \[0, 1\]"),
        ((None, "a", "b"), "takes numbers"),
        ((None, "", ""), "takes numbers"),
    ],
)
def test_normalisations_that_cannot_be_meant(given, said):
    with pytest.raises(UserError, match=said):
        asked_for(*given)


def test_normalisations_that_are_asked_for():
    assert asked_for(None, None, None) is None
    assert asked_for("none", None, None) == "none"
    assert asked_for("imagenet", None, None) == NAMED["imagenet"]
    assert asked_for(None, "0.49,0.48,0.44", "0.24, 0.24, 0.26") == CONSTANTS
    assert Constants.of(CONSTANTS.content()) == CONSTANTS
    with pytest.raises(UserError, match="3 and 3 values for 1 channels"):
        NAMED["cifar10"].check(1)


def test_the_constants_of_data_sets_that_are_here_are_theirs():
    for name, source in (("mnist", MNIST), ("fashion-mnist", FASHION_MNIST)):
        assert NAMED[name] == Constants(source.mean, source.std)


SOURCE = """
import torch
from torch import nn

def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
"""


def test_the_command_says_and_records_what_it_chose(command, tmp_path):
    (tmp_path / "mine.py").write_text(SOURCE)
    torch.manual_seed(1)
    state = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).state_dict()
    file = saved(
        tmp_path, {"state_dict": state | {"mu": torch.ones(1) / 2, "sigma": torch.ones(1)}}
    )
    words = ("evaluate", "mine:net", "--data", "digits", "-n", 20, "--attacks", "fgsm",
             "--weights", f"{file}:state_dict", "--no-checks")  # fmt: skip
    ended = command(*words, cwd=tmp_path)
    assert ended.code == 0, ended.err
    assert "mu and sigma" in ended.err
    about = json.loads((tmp_path / "runs" / "mine.net" / "own-model.json").read_text())
    assert about["weights_key"] == "state_dict"
    assert about["normalise"] is None
    assert "mu and sigma" in about["remarks"][0]
    assert command(*words, cwd=tmp_path).code == 0
    other = command(*words, "--normalise", "none", cwd=tmp_path)
    assert other.code == 2  # another model
    assert "choose another --out" in other.line
    other = command(*words, "--mean", "0.2", "--std", "0.5", "--out", "other", cwd=tmp_path)
    assert other.code == 0, other.err
    about = json.loads((tmp_path / "other" / "own-model.json").read_text())
    assert about["normalise"] == {"mean": [0.2], "std": [0.5]}
    again = command("verify", "other", "--trust", cwd=tmp_path)
    assert again.code == 0, again.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("mine:net", "--model", "mine:net", "--data", "digits"), "given twice"),
        (("mine:net",), "--model package.module:function --data"),
        (("runs/x", "--normalise", "mnist"), "expected a run folder, or --model"),
        (("mine:net", "--data", "digits", "--normalise", "cifar10"), "3 and 3 values for 1"),
        (("mine:net", "--data", "digits", "--mean", "0.5"), "belong together"),
    ],
)
def test_models_by_position_that_will_not_do(command, tmp_path, words, said):
    (tmp_path / "mine.py").write_text(SOURCE)
    ended = command("evaluate", *words, cwd=tmp_path)
    assert ended.code == 2
    assert said in ended.line


# --- the check of the range ---


def coloured(n: int = 200) -> tuple[nn.Module, Tensor, Tensor]:
    """Return a net, images and labels that it has right only when they are normalised."""
    generator = torch.Generator().manual_seed(3)
    x = torch.rand(n, 3, 4, 4, generator=generator)
    model = net(5)
    with torch.no_grad():
        model[0].weight.mul_(3)
    return model, x, torch.zeros(n).long()


@pytest.mark.parametrize("name", ["imagenet", "cifar10", "svhn"])
def test_the_scaling_that_is_advised_is_the_best_of_those_tried(name):
    model, x, _ = coloured()
    center, scale = (torch.tensor(part).view(1, 3, 1, 1) for part in NAMED[name])
    with torch.no_grad():
        y = model((x - center) / scale).argmax(1)
    found = scaling(model, x, y, Linf(0.1), in_range(x, Linf(0.1)))
    assert found.status == "failed"
    assert f"--normalise {name}" in found.remedy
    assert "100% on" in found.message


def test_a_second_normalisation_is_found_by_the_check():
    model, x, _ = coloured()
    with torch.no_grad():
        y = model(x).argmax(1)
    twice = put_in_front(model, CONSTANTS)
    found = scaling(twice, x, y, Linf(0.1), in_range(x, Linf(0.1)))
    assert found.status == "failed"
    assert "--normalise none" in found.remedy


class Plain(nn.Module):
    """Tells apart by brightness, below and above a value."""

    def __init__(self, border: float) -> None:
        super().__init__()
        self.border = nn.Parameter(torch.tensor(border))

    def forward(self, x: Tensor) -> Tensor:
        bright = x.flatten(1).mean(1) - self.border
        return torch.stack([-bright, bright], 1)


@pytest.mark.parametrize(
    ("factor", "border", "status", "advice"),
    [
        (255, 0.5, "failed", "divide by 255"),  # bytes before a model of [0, 1]
        (255, 127.5, "failed", None),  # bytes before a model of bytes
        (1 / 255, 0.5, "warning", "divide by 255 once, not twice"),
        (1 / 255, 0.5 / 255, "warning", None),  # the model is made for them
    ],
)
def test_dividing_by_255_is_advised_only_where_it_helps(factor, border, status, advice):
    levels = torch.arange(256).repeat(2)[:, None, None, None].expand(-1, 1, 2, 2).float()
    x, y = levels / 255 * factor, (levels[:, 0, 0, 0] > 127.5).long()
    found = before(Plain(border), x, y, Linf(0.1))[0]
    assert (found.check, found.status) == ("range", status)
    assert ("divide" in found.remedy) == (advice is not None)
    assert advice is None or found.remedy == advice


@pytest.mark.slow
def test_data_sets_have_as_many_constants_as_channels():
    digits = data.load("digits")
    assert Constants(digits.mean, digits.std).check(digits.channels)


def test_a_folder_and_an_index_are_named_as_what_they_are(tmp_path):
    index = tmp_path / "model.safetensors.index.json"
    index.write_text("{}")
    for file, word in ((tmp_path, "folder"), (index, "index")):
        with pytest.raises(UserError, match=word):
            load_weights(net(), file)
