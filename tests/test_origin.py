"""Models of the user's own in a training: where they come from, their heads, and their return."""

import json
import shutil
import sys
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F  # noqa: N812

import equipoise as eq
from equipoise.data.core import Dataset, Images
from equipoise.errors import UserError
from equipoise.jobs.target_model import of_run
from equipoise.jobs.train import resume, train
from equipoise.models import begin, head, origin
from equipoise.models.normalisation import Constants
from equipoise.settings import recipe as recipes
from equipoise.store.runs import Run
from equipoise.terminal.progress import Console
from equipoise.training.shares import averaged_names

NETS = """
import torch
from torch import nn
from types import SimpleNamespace

class Net(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.conv = nn.Conv2d(1, 8, 3, padding=1)
        self.norm, self.drop = nn.BatchNorm2d(8), nn.Dropout(0.3)
        self.fc = nn.Linear(8 * 16, classes)

    def forward(self, x):
        h = nn.functional.max_pool2d(torch.relu(self.norm(self.conv(x))), 2)
        return SimpleNamespace(logits=self.fc(self.drop(h.view(-1, 8 * 16))))

def seven():
    return Net(7)

def three():
    return Net(3)

def other():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 7))
"""
SMALL = {"rounds": 2, "validation": 20, "batch_size": 30, "validation_attack": "pgd-1"}


class View(nn.Module):
    """A small net with a view after a convolution, BatchNorm, dropout, and an object as output."""

    def __init__(self, classes=7):
        super().__init__()
        self.conv = nn.Conv2d(1, 8, 3, padding=1)
        self.norm, self.drop = nn.BatchNorm2d(8), nn.Dropout(0.3)
        self.fc = nn.Linear(8 * 16, classes)

    def forward(self, x):
        h = F.max_pool2d(torch.relu(self.norm(self.conv(x))), 2)
        return SimpleNamespace(logits=self.fc(self.drop(h.view(-1, 8 * 16))))


@pytest.fixture(scope="module")
def images():
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(120) % 3
    x = torch.randint(0, 60, (120, 1, 8, 8), generator=generator, dtype=torch.uint8)
    x[:, :, :4] += (y * 80).to(torch.uint8)[:, None, None, None]
    both = Images(x, y), Images(x[:30], y[:30])
    return Dataset(name="mine", train=both[0], test=both[1], classes=tuple("abc"), eps=0.1,
                   source="here")  # fmt: skip


@pytest.fixture(autouse=True)
def nothing_given(monkeypatch):
    """Begin each test as a new process does: nothing is given."""
    monkeypatch.setattr(origin, "_given", {})


def recipe(method="pgd-at", **settings):
    return recipes.parse({"method": method, **SMALL, **settings})


# --- heads ---


class Stage(nn.Module):
    """A net of which one part is given."""

    def __init__(self, last, width=6):
        super().__init__()
        self.conv, self.inner, self.last = nn.Conv2d(1, width, 3), nn.Linear(width, width), last

    def forward(self, x):
        h = torch.relu(self.conv(x))
        h = self.inner(h.mean((2, 3)))[:, :, None, None] + 0.1 * h
        return self.last(h)


class Two(nn.Module):
    """Two heads, whose logits are averaged."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(6, 5), nn.Linear(6, 5)

    def forward(self, h):
        return (self.a(h.mean((2, 3))) + self.b(h.amax((2, 3)))) / 2


def pooled(*layers):
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), *layers)


HEADS = {
    "linear": (lambda: pooled(nn.Linear(6, 5)), ["last.2"]),
    "as wide as a layer before it": (lambda: pooled(nn.Linear(6, 6)), ["last.2"]),
    "convolution, then pooled": (
        lambda: nn.Sequential(nn.Dropout(0.5), nn.Conv2d(6, 5, 1), nn.ReLU(), pooled()),
        ["last.1"],
    ),
    "two": (Two, ["last.a", "last.b"]),
    "log-softmax": (lambda: pooled(nn.Linear(6, 5), nn.LogSoftmax(1)), ["last.2"]),
    "one logit": (lambda: pooled(nn.Linear(6, 1)), ["last.2"]),
}


@pytest.mark.parametrize("name", HEADS)
def test_the_head_is_found_by_what_it_does(name):
    torch.manual_seed(0)
    last, names = HEADS[name]
    net = Stage(last())
    x = torch.rand(2, 1, 8, 8)
    assert head.heads(net, x, "it") == names
    replaced, line = head.fit(net, x, 4, "it")
    assert replaced == names
    assert "because there are 4 classes" in line
    assert net(x).shape == (2, 4)
    assert head.fit(net, x, 4, "it") == ([], "")


WITHOUT = {
    "norm after it": lambda: pooled(nn.Linear(6, 5), nn.BatchNorm1d(5)),
    "a fixed size": lambda: pooled(nn.Linear(6, 5), nn.Unflatten(1, (5, 1)), nn.Flatten()),
    "mixed outputs": lambda: pooled(nn.Linear(6, 5), nn.Softmax(1)),
    "no layer": pooled,
}


@pytest.mark.parametrize("name", WITHOUT)
def test_a_model_whose_head_cannot_be_found_gets_one_line_and_keeps_it(name):
    net, x = Stage(WITHOUT[name]()).eval(), torch.rand(2, 1, 8, 8)
    before = net(x)
    with pytest.raises(UserError, match=r"has [56] outputs for 4 classes, and no layer was found"):
        head.fit(net, x, 4, "it")
    assert torch.equal(net(x), before)


# --- weights and normalisation ---


def begun(tmp_path, monkeypatch, spec, **more):
    (tmp_path / "ownnets.py").write_text(NETS)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "ownnets", raising=False)
    said = []
    model, about = begin.begin(
        f"ownnets:{spec}", shape=(1, 8, 8), classes=3, say=said.append, **more
    )
    return model, about, said


def test_weights_are_loaded_with_their_own_head(tmp_path, monkeypatch):
    net = View(7)
    save_file({f"model.{k}": v for k, v in net.state_dict().items()}, tmp_path / "w.safetensors")
    file = str(tmp_path / "w.safetensors")
    model, about, said = begun(tmp_path, monkeypatch, "seven", weights=file)
    assert torch.equal(model.network.conv.weight, net.conv.weight)
    assert model.network.fc.out_features == 3
    assert about.heads == ("fc",)
    assert about.weights["file"] == file
    assert [line for line in said if "the head (fc) is new and untrained" in line]
    model, about, said = begun(tmp_path, monkeypatch, "three", weights=file)  # the other way
    assert torch.equal(model.network.norm.weight, net.norm.weight)
    assert model.network.fc.out_features == 3
    assert about.heads == ()
    assert "the head (fc) of" in said[-1]
    assert "has 7 outputs and that of the model 3" in said[-1]


def test_a_normalisation_stands_in_front_and_is_built_again(tmp_path, monkeypatch):
    constants = Constants((0.25,), (0.5,))
    model, about, _ = begun(tmp_path, monkeypatch, "three", normalise=constants)
    x = torch.rand(2, 1, 8, 8)
    expected = model.network((x - 0.25) / 0.5).logits
    assert torch.allclose(model(x), expected)
    written = json.loads(json.dumps(about.content()))
    again = origin.Origin.of(written).build()
    again.load_state_dict(model.state_dict())
    assert torch.equal(again(x), model(x))


def test_the_seed_determines_random_weights(tmp_path, monkeypatch):
    def weights(seed):
        with begin.seeded(seed):
            return begun(tmp_path, monkeypatch, "seven")[0].network.fc.weight

    before = torch.rand(1), torch.get_rng_state()
    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))
    assert torch.equal(before[1], torch.get_rng_state())


BAD = {
    "other weights": ({"weights": "x.safetensors"}, "does not fit the model"),
    "no file": ({"weights": "none.pt"}, "there is no file none.pt"),
    "channels": ({"normalise": Constants((0.5,) * 3, (0.5,) * 3)}, "3 values for 1 channels"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_does_not_fit_a_model_is_one_line(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    save_file({"other.weight": torch.rand(3, 4)}, tmp_path / "x.safetensors")
    more, message = BAD[name]
    with pytest.raises(UserError, match=message) as error:
        begun(tmp_path, monkeypatch, "three", **more)
    assert "\n" not in str(error.value)


class Moody(nn.Linear):
    def __init__(self):
        super().__init__(64, 3)

    def forward(self, x):
        if self.training:
            raise ValueError("not in the mood")
        return super().forward(x.flatten(1))


class TwoInputs(nn.Module):
    def forward(self, x, y):
        return x.flatten(1) + y


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (TwoInputs(), "cannot be run on images of 1 x 8 x 8"),
        (nn.Conv2d(3, 4, 3), "cannot be run on images of 1 x 8 x 8"),
        (nn.Conv2d(1, 4, 3), r"expected logits of shape \(2, K\)"),
        (nn.Sequential(nn.Flatten(), nn.Softmax(1)), "has 64 outputs for 3 classes"),
        (View().double(), r"its weights are float64: return it as model\.float\(\)"),
        (nn.Sequential(nn.Flatten(), nn.LazyLinear(3)), "has lazy layers: run it once"),
        (View(3).requires_grad_(False), "has no weight that can be trained"),
        (Moody(), "fails in training mode: ValueError: not in the mood"),
    ],
)
def test_what_is_no_classifier_of_the_images_is_refused_before_a_folder_is_made(
    images, tmp_path, model, message
):
    with pytest.raises(UserError, match=message):
        train(recipe(), tmp_path / "run", model=model, dataset=images)
    assert not (tmp_path / "run").exists()


@pytest.mark.filterwarnings("ignore")
def test_torchscript_is_evaluated_and_not_trained(images, tmp_path):
    traced = torch.jit.trace(nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), torch.rand(2, 1, 8, 8))
    with pytest.raises(UserError, match="is TorchScript: train the model that it was made of"):
        train(recipe(), tmp_path / "run", model=traced, dataset=images)


def test_a_recipe_in_a_folder_runs_nothing(tmp_path, monkeypatch):
    """A stranger's folder may have a recipe alone: no state, no config.json."""
    (tmp_path / "trapnets.py").write_text("raise SystemExit('the trap was run')")
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "run").mkdir()
    text = recipe(model="trapnets:net", data="digits").to_yaml()
    (tmp_path / "run" / "recipe.yaml").write_text(text)
    for trust in (False, True):
        with pytest.raises(UserError, match="no code is run because a folder names it"):
            resume(tmp_path / "run", trust=trust)
    assert "trapnets" not in sys.modules


DAMAGED = {
    "no mapping": "here",
    "lacks fields": {"model": "nets:make"},
    "classes": {"classes": 10**9},
    "config": {"config": 3},
    "normalise": {"normalise": {"mean": "x"}},
    "heads": {"heads": 3},
    "layers that are not there": {"heads": ["nowhere"]},
}


@pytest.fixture(scope="module")
def python_run(images, tmp_path_factory):
    """Return the folder of a training on an object of Python."""
    where = tmp_path_factory.mktemp("python") / "run"
    return train(recipe(rounds=1), where, model=View(), dataset=images).path


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_origin_is_one_line(python_run, tmp_path, name):
    shutil.copytree(python_run, tmp_path / "run")
    file = tmp_path / "run" / "config.json"
    config, change = json.loads(file.read_text()), DAMAGED[name]
    whole = isinstance(change, str) or name == "lacks fields"
    config["origin"] = change if whole else config["origin"] | change
    file.write_text(json.dumps(config))
    with pytest.raises(UserError) as error:
        eq.load(tmp_path / "run", model=View())
    assert "\n" not in str(error.value)


def test_another_version_of_a_library_is_said():
    kept = {"model": "hf:x", "classes": 3, "packages": {"transformers": "0.1"}}
    said = origin.allow(origin.Origin(**kept), None, trust=False)
    assert said.startswith("transformers was 0.1 and is ") or not origin.library.package_versions(
        "hf:x"
    )
    assert "--trust" not in said


def test_models_that_a_recipe_cannot_have_are_named():
    for name, message in {
        "resnet18": "did you mean 'resnet-18'",
        "net.pt2": "is a file",
        "a b:c": "unknown model",
    }.items():
        with pytest.raises(UserError, match=message):
            recipe(model=name)
    for given in ("nets:make", "pkg.nets:Net", "timm:resnet18.a1_in1k", "hf:google/vit", "hf:./x"):
        assert recipe(model=given).model == given
    assert recipe(normalise={"mean": [0.5], "std": [0.5]}).asked == Constants((0.5,), (0.5,))
    with pytest.raises(UserError, match="unknown normalisation"):
        recipe(normalise="imagnet")


# --- trainings ---

METHODS = {
    "pgd-at": {},
    "trades": {},
    "mart": {},
    "fat": {},
    "generalist": {"start": 1, "every": 1},
    "a3gt": {},
    "awp": {"method": "trades", "awp": 0.01},
}


@pytest.mark.parametrize("name", METHODS)
def test_a_net_of_somebody_is_trained_by_every_method(images, tmp_path, name):
    settings = dict(METHODS[name])
    net = View()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    run = train(recipe(settings.pop("method", name), **settings), tmp_path / "run", model=net,
                dataset=images)  # fmt: skip
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())
    model = run.model()
    assert model(images.test.pixels()).shape == (30, 3)
    assert not model.training
    kept = json.loads((run.path / "config.json").read_text())
    assert kept["model"].startswith("python:View-")
    assert kept["origin"]["heads"] == ["fc"]


def test_yopo_says_what_it_needs(images, tmp_path):
    with pytest.raises(UserError, match=r"\.stem and \.trunk.*choose another method"):
        train(recipe("yopo"), tmp_path / "run", model=View(), dataset=images)


def test_a_model_of_python_is_given_again_to_read_its_folder(
    images, python_run, tmp_path, monkeypatch
):
    run = Run(shutil.copytree(python_run, tmp_path / "run"))
    x = images.test.pixels()
    expected = eq.load(run.path, model=View())(x)
    monkeypatch.setattr(origin, "_given", {})
    monkeypatch.setattr("equipoise.data._given", {})
    with pytest.raises(UserError, match=r"given from Python .* give it again, as model="):
        eq.load(run.path)
    with pytest.raises(UserError, match=r"the model of the folder is python:View-.*, and this is"):
        eq.load(run.path, model=View(5))
    assert torch.equal(eq.load(run.path, model=View())(x), expected)
    with pytest.raises(UserError, match="give them again, as dataset="):
        of_run(run.path, "model", None, Console(quiet=True))
    subject = of_run(run.path, "model", None, Console(quiet=True), dataset=images)
    assert subject.eps == images.eps
    again = resume(run.path, model=View(), dataset=images)
    assert again.path == run.path


class Tied(nn.Module):
    """A net that uses one matrix twice, under two names."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(64, 64), nn.Linear(64, 64)
        self.second.weight = self.first.weight
        self.last = nn.Linear(64, 3)

    def forward(self, x):
        return self.last(torch.relu(self.second(torch.relu(self.first(x.flatten(1))))))


def test_tied_weights_are_merged_and_stored_as_one(images, tmp_path):
    assert {"first.weight", "second.weight"} <= {*averaged_names(Tied())}
    settings = {"start": 1, "every": 1, "gamma": 0.5, "horizon": 0}
    run = train(recipe("generalist", **settings), tmp_path / "run", model=Tied(), dataset=images)
    model, ends = (
        run.model("last").network,
        [run.model(f"learner-{n}") for n in ("clean", "robust")],
    )
    assert model.first.weight is model.second.weight
    middle = sum(end.network.first.weight for end in ends) / 2
    assert torch.allclose(model.first.weight, middle, atol=1e-6)


# --- the command, and the code of a stranger ---


@pytest.fixture(scope="module")
def own(command, tmp_path_factory):
    """Return the folder of a training on a function, and the file of its code."""
    home = tmp_path_factory.mktemp("own")
    (home / "mynets.py").write_text(NETS)
    torch.manual_seed(1)
    torch.save({"ema": View(7).state_dict(), "epoch": 3}, home / "net.pt")
    words = [f"{key}={value}" for key, value in SMALL.items()]
    ended = command(
        *("train", "generalist", "--model", "mynets:seven", "--weights", "net.pt:ema"),
        *("--normalise", "mnist", "--out", "run", "limit=100", *words, "start=1"),
        cwd=home,
    )
    assert ended.code == 0, ended.err
    assert "the head (fc) is new and untrained" in ended.out + ended.err
    assert "--model mynets:seven" in ended.out + ended.err  # in the command that comes next
    return home / "run"


def test_a_folder_keeps_what_builds_its_model(own):
    about = json.loads((own / "config.json").read_text())["origin"]
    assert about["model"] == "mynets:seven"
    assert about["source"]["file"] == str(own.parent / "mynets.py")
    assert about["weights"]["key"] == "ema"
    assert about["normalise"] == {"mean": [pytest.approx(0.1307)], "std": [pytest.approx(0.3081)]}
    assert about["heads"] == ["fc"]
    assert len(about["remarks"]) == 2


def test_no_folder_of_a_training_makes_its_model_by_itself(command, own, tmp_path):
    """Each command refuses, then takes the model again; any folder will do with --trust."""
    quick = ("--attacks", "pgd-1", "-n", 20, "-q")
    for words in (
        ("evaluate", own, *quick),
        ("front", own, "--points", 4, *quick),
        ("train", "--resume", own, "-q"),
        ("pick", own, "--gamma", 0.5, "--out", tmp_path / "picked", "-q"),
    ):
        ended = command(*words, cwd=tmp_path)
        assert (ended.code, ended.err.count("\n")) == (2, 1), ended.err
        assert "no code is run because a folder names it" in ended.err
        assert "--trust, or --model mynets:seven" in ended.err
        ended = command(*words, "--model", "mynets:seven", cwd=own.parent)
        assert ended.code == 0, ended.err
    ended = command("evaluate", tmp_path / "picked", *quick, "--trust", cwd=tmp_path)
    assert ended.code == 0, ended.err
    ended = command("harden", own, "--out", tmp_path / "hard", cwd=own.parent)
    assert ended.code == 2
    assert "no code is run because a folder names it" in ended.err
    assert command("card", own, "--out", tmp_path / "card").code == 0
    check = ("verify", tmp_path / "card", "--model", own, "-q")
    assert "add --trust" in command(*check, cwd=own.parent).err
    ended = command(*check, "--trust", cwd=tmp_path)
    assert ended.code == 0, ended.err
    ended = command("evaluate", own, *quick, "--model", "mynets:other", cwd=own.parent)
    assert ended.code == 2
    assert "not the model that had its head replaced" in ended.err
