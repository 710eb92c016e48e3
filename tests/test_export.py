"""Exports: each gives the answers of the judged model without equipoise, or is not written."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from torch import nn

import equipoise as eq
from equipoise import data
from equipoise.data import Reading
from equipoise.errors import RunError, UserError
from equipoise.jobs.evaluate import evaluate_run
from equipoise.jobs.hub_folder import processor
from equipoise.jobs.target_model import of_model
from equipoise.models import exported, origin
from equipoise.models.core import Normalize
from equipoise.models.normalisation import Constants, in_front
from equipoise.settings import recipe
from equipoise.store.digests import model_digest
from equipoise.store.verdicts import read

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
FORMATS = (ROOT / "docs" / "formats.md").read_text(encoding="utf-8")
HALF = Constants((0.5,), (0.25,))

NETS = """
import torch
from torch import nn
def linear():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
class Noisy(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = linear()
    def forward(self, x):
        return self.inner(x + 0.5 * torch.rand_like(x))
class Fixed(Noisy):
    def forward(self, x):
        return self.inner(x.view(2, -1))
class Named(Noisy):
    def forward(self, x):
        return {"logits": self.inner(x), "features": x}
"""


def own(tmp_path, monkeypatch, name, normalise=None):
    """Return the folder of a model of the user's own, and the model with its data."""
    (tmp_path / "nets_to_export.py").write_text(NETS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "nets_to_export", raising=False)
    spec = f"nets_to_export:{name}"
    subject = of_model(
        spec, weights=None, data_name="digits", data_dir=None, out=Path("own"), normalise=normalise
    )
    return {"path": "own", "model": spec}, subject


def labels(model, n=40):
    x = data.load("digits").test.pixels()[:n]
    with torch.no_grad():
        return x, model(x).argmax(1)


def test_weights_have_the_names_of_the_users_own_class(tmp_path, monkeypatch):
    given, subject = own(tmp_path, monkeypatch, "linear", HALF)
    judged = subject.model
    assert set(judged.state_dict()) == {"0.mean", "0.std", "1.1.weight", "1.1.bias"}
    found = eq.export(**given, out="net.safetensors")
    assert (found["difference"], found["changed"], found["images"]) == (0, 0, 64)
    with safe_open("net.safetensors", "pt") as file:
        about = json.loads(file.metadata()["equipoise"])
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    assert set(state) == {"1.weight", "1.bias"}
    assert about == found["about"]
    assert about["normalise"] == {"mean": [0.5], "std": [0.25]}
    assert about["normalised"] == "in front of the model"
    assert about["sha256"] == model_digest(judged)
    assert about["inputs"]["shape"] == [1, 8, 8]
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    net.load_state_dict(state)
    x, y = labels(judged)
    assert torch.equal(net((x - 0.5) / 0.25).argmax(1), y)


class Wrapped(nn.Module):
    """A user's own part that is called `module`, around which stands a class of torch."""

    def __init__(self):
        super().__init__()
        self.module = nn.DataParallel(nn.Linear(4, 2))
        self.last = torch.compile(nn.Linear(2, 2), backend="eager")

    def forward(self, x):
        return self.last(self.module(x.flatten(1)))


def test_only_classes_around_modules_are_taken_out_of_names():
    model = in_front(nn.DataParallel(Wrapped()), HALF)
    inner, front = exported.without_front(model)
    assert (type(inner), front) == (Wrapped, HALF)
    content = exported.weights(inner, {})
    copy = exported.of_weights(content, inner)
    assert set(exported.load(content)) == {
        f"{layer}.{name}" for layer in ("module", "last") for name in ("weight", "bias")
    }
    for key, value in inner.state_dict().items():
        assert torch.equal(value, copy.network.state_dict()[key])
    twice = nn.Sequential(Normalize((0.5,), (0.5,)), nn.Identity(), nn.Flatten())
    assert exported.without_front(twice) == (twice, None)


@pytest.mark.slow
def test_a_graph_takes_any_number_of_images_and_gives_logits(tmp_path, monkeypatch):
    given, subject = own(tmp_path, monkeypatch, "Named")
    found = eq.export(**given, out="net.pt2", images=10**6)
    assert found["images"] == len(data.load("digits").test)
    extra = {"equipoise.json": ""}
    model = torch.export.load("net.pt2", extra_files=extra).module()
    assert json.loads(extra["equipoise.json"]) == found["about"]
    x, y = labels(lambda x: subject.model(x)["logits"])
    for n in (1, 2, 40):
        assert torch.equal(model(x[:n]).argmax(1), y[:n])
    assert str(tmp_path).encode() not in Path("net.pt2").read_bytes()


@pytest.mark.slow
def test_an_export_that_differs_is_not_written(tmp_path, monkeypatch):
    given, _ = own(tmp_path, monkeypatch, "Noisy")
    before = set(tmp_path.iterdir())
    with pytest.raises(RunError, match="labels changed"):
        eq.export(**given, out="net.pt2")
    with pytest.raises(RunError, match="other answers"):
        eq.export(**given, out="folder", to="hf")
    assert set(tmp_path.iterdir()) == before


def test_a_model_without_a_graph_is_one_line(tmp_path, monkeypatch):
    given, _ = own(tmp_path, monkeypatch, "Fixed")
    with pytest.raises(RunError) as error:
        eq.export(**given, out="net.pt2")
    assert "\n" not in str(error.value)
    assert "state-dict" in str(error.value)
    assert not Path("net.pt2").exists()


def test_wrong_requests_are_refused_before_anything_is_loaded(tmp_path, monkeypatch):
    for words in (
        {"out": "net.foo"},
        {"out": "net"},
        {"out": "net.foo", "to": "onnx"},
        {"out": "net.onnx", "to": "onxx"},
        {"out": "net.pt2"},
    ):
        with pytest.raises(UserError):
            eq.export(tmp_path / "nothing", **words)
    monkeypatch.setattr(exported, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'equipoise\[export\]'"):
        eq.export(tmp_path / "nothing", "net.onnx")


def test_what_is_there_is_not_replaced(command, trained, tmp_path):
    (tmp_path / "net.safetensors").write_text("somebody's")
    ended = command("export", trained, "--out", tmp_path / "net.safetensors")
    assert ended.code == 2
    assert "exists" in ended.line
    assert (tmp_path / "net.safetensors").read_text() == "somebody's"
    ended = command("export", trained, "--out", tmp_path / "a.safetensors", "--weights", "nothing")
    assert ended.code == 2


def test_each_weights_of_a_run_are_exported(command, trained, tmp_path):
    for which in ("last", "gamma-0.25", "learner-robust"):
        out = tmp_path / f"{which}.safetensors"
        ended = command("export", trained, "--out", out, "--weights", which)
        assert ended.code == 0, ended.err
        assert "no label changed" in ended.out
        with safe_open(out, "pt") as file:
            about = json.loads(file.metadata()["equipoise"])
            weight = file.get_tensor("conv1.weight")
        judged = eq.load(trained, which)
        assert (about["weights"], about["sha256"]) == (which, model_digest(judged))
        assert torch.equal(weight, judged.state_dict()["conv1.weight"])


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A folder with the exports of one evaluated model, and a picture of its data."""
    folder = tmp_path_factory.mktemp("served")
    with pytest.MonkeyPatch.context() as patch:
        given, subject = own(folder, patch, "linear", HALF)
        evaluate_run(subject, attacks="fgsm", eps=[0.05], n=50)
        eq.export(**given, out="net.safetensors")
        eq.export(**given, out="net.pt2")
        eq.export(**given, out="hf", to="hf")
    _, y = labels(subject.model)
    pixels = data.load("digits").test.x[0, 0]
    Image.fromarray(pixels.numpy()).save(folder / "picture.png")
    return folder, str(int(y[0]))


BLOCKS = dict(re.findall(r"```python\n# (\S+)\n(.*?)```", PAGE, flags=re.DOTALL))


def run_alone(folder, *names):
    """Run blocks of the page in a process that cannot import equipoise; return its lines."""
    without = "import sys\nsys.modules['equipoise'] = None\n"
    code = without + "\n".join(BLOCKS[name] for name in ("prepare", *names))
    words = (sys.executable, "-W", "ignore", "-c", code)
    ended = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.split()


@pytest.mark.slow
def test_the_page_on_serving_gives_the_same_label_without_equipoise(served):
    folder, label = served
    assert set(BLOCKS) == {"prepare", "onnx", "torch", "state-dict", "hf"}
    assert run_alone(folder, "torch", "state-dict", "hf") == [label] * 3


@pytest.mark.parametrize("resize", ["crop", "pad", "stretch"])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_a_served_picture_is_prepared_as_the_judged_ones(resize, mode, tmp_path, monkeypatch):
    monkeypatch.setenv("EQUIPOISE_CACHE", str(tmp_path / "cache"))
    draws, files = np.random.default_rng(0), []
    for number, (name, split) in enumerate([(n, s) for n in "ab" for s in ("train", "test")] * 2):
        shape = (30 + number, 25, *([3] if mode == "RGB" else []))
        image = Image.fromarray(draws.integers(0, 256, shape).astype(np.uint8))
        exif = image.getexif()
        exif[0x0112] = number % 8 + 1  # turned in each of the eight ways
        files.append(tmp_path / "photos" / split / name / f"{number}.jpg")
        files[-1].parent.mkdir(parents=True, exist_ok=True)
        image.save(files[-1], exif=exif)
    dataset = data.load(tmp_path / "photos", reading=Reading(size=16, resize=resize))
    place = {"picture": None}
    exec(BLOCKS["prepare"].partition("\npicture = ")[0], place)  # noqa: S102 - it is our own page
    inputs = {"shape": [dataset.channels, *dataset.size], **dataset.inputs}
    served = {place["prepared"](Image.open(path), inputs).tobytes() for path in files}
    judged = [*dataset.train.pixels(), *dataset.test.pixels()]
    assert {image.numpy().tobytes() for image in judged} == served
    assert len(judged) == 8


@pytest.mark.slow
def test_a_model_card_has_the_counts_of_the_stored_verdicts(served):
    import yaml

    folder, _ = served
    text = (folder / "hf" / "README.md").read_text(encoding="utf-8")
    head = yaml.safe_load(text.split("---\n")[1])
    (path,) = folder.glob("own/evaluations/*.safetensors")
    verdicts = read(path).verdicts
    metrics = head["model-index"][0]["results"][0]["metrics"]
    wanted = [verdicts.correct.mean(), verdicts.robust.mean()]
    assert [metric["value"] for metric in metrics] == pytest.approx(wanted)
    assert "at most" in metrics[1]["name"]
    assert "50" in metrics[1]["name"]
    about = json.loads((folder / "hf" / "equipoise.json").read_text())
    assert about["sha256"] in text
    assert about["classes"] == list(data.load("digits").classes)
    assert sorted(p.name for p in (folder / "hf").iterdir()) == [
        "README.md",
        "equipoise.json",
        "model.pt2",
        "model.safetensors",
    ]
    section = FORMATS.partition("## Exports\n")[2].partition("\n## ")[0]
    for field in (*about, *about["inputs"]):
        assert f"`{field}`" in section


class Net(nn.Module):
    """A net whose weights a training starts from."""

    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, 4, 3, stride=2), nn.Linear(36, 10)

    def forward(self, x):
        return {"logits": self.head(self.conv(x).relu().view(-1, 36))}


SMALL = {"method": "standard", "data": "digits", "rounds": 1, "limit": 200, "validation": 20}


@pytest.mark.slow
def test_a_training_of_an_own_model_gives_weights_for_its_own_class(tmp_path):
    net, folder = Net(), tmp_path / "run"
    given = recipe.parse(SMALL | {"normalise": "half-grey"})
    run = eq.train(given, folder, model=net)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(origin, "_given", {})  # as in a new process
        with pytest.raises(UserError, match="model"):
            eq.export(folder, tmp_path / "no.safetensors")
    eq.export(folder, tmp_path / "net.safetensors", model=net)
    eq.export(folder, tmp_path / "net.pt2", model=net)
    with safe_open(tmp_path / "net.safetensors", "pt") as file:
        about = json.loads(file.metadata()["equipoise"])
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    assert set(state) == set(net.state_dict())
    assert about["normalise"] == {"mean": [0.5], "std": [0.5]}
    assert about["normalised"] == "in front of the model"
    net.load_state_dict(state)
    x, y = labels(run.model())
    assert torch.equal(net.eval()((x - 0.5) / 0.5)["logits"].argmax(1), y)
    graph = torch.export.load(tmp_path / "net.pt2").module()
    assert torch.equal(graph(x).argmax(1), y)


@pytest.mark.slow
def test_a_model_of_transformers_is_loaded_by_transformers(tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        image_size=8, patch_size=4, num_channels=1, num_labels=10,
    )  # fmt: skip
    torch.manual_seed(0)
    net = transformers.ViTForImageClassification(config)
    given = recipe.parse(SMALL | {"normalise": "half-grey"})
    run = eq.train(given, tmp_path / "run", model=net)
    found = eq.export(run.path, tmp_path / "hf", to="hf", model=net)
    assert (found["changed"], found["difference"]) == (0, 0)
    kind = transformers.AutoModelForImageClassification
    again = kind.from_pretrained(tmp_path / "hf", local_files_only=True)
    assert again.config.id2label == {i: str(i) for i in range(10)}
    prepared = json.loads((tmp_path / "hf" / "preprocessor_config.json").read_text())
    assert prepared["do_normalize"]
    mean, std = prepared["image_mean"][0], prepared["image_std"][0]
    x, y = labels(run.model())
    assert torch.equal(again.eval()((x - mean) / std).logits.argmax(1), y)
    text = (tmp_path / "hf" / "README.md").read_text()
    assert "library_name: transformers" in text
    assert "not evaluated" in text


def test_transformers_is_told_how_pictures_are_prepared():
    inputs = {"shape": [3, 96, 96], "scale": 255, "interpolation": "bilinear"}
    crop = processor(inputs | {"resize": "crop"}, Constants((0.1,) * 3, (0.2,) * 3))
    assert (crop["size"], crop["crop_size"]["width"]) == ({"shortest_edge": 96}, 96)
    assert (crop["resample"], crop["do_center_crop"], crop["do_resize"]) == (2, True, True)
    assert crop["image_mean"] == [0.1, 0.1, 0.1]
    stretch = processor(inputs | {"resize": "stretch"}, None)
    assert (stretch["size"], stretch["do_normalize"]) == ({"height": 96, "width": 96}, False)
    assert not processor(inputs, None)["do_resize"]


@pytest.mark.extras
def test_onnx_is_run_by_onnxruntime_on_any_number_of_images(served, monkeypatch):
    import onnxruntime

    folder, label = served
    monkeypatch.chdir(folder)
    given = {"path": "own", "model": "nets_to_export:linear"}
    found = eq.export(**given, out="net.onnx")
    eq.export(**given, out="again.onnx")
    assert Path("net.onnx").read_bytes() == Path("again.onnx").read_bytes()
    assert found["changed"] == 0
    assert 0 <= found["difference"] < 1e-4
    session = onnxruntime.InferenceSession("net.onnx")
    about = json.loads(session.get_modelmeta().custom_metadata_map["equipoise"])
    assert about == found["about"]
    x, y = data.load("digits").test.pixels()[:40], None
    for n in (1, 2, 40):
        (logits,) = session.run(None, {"images": x[:n].numpy()})
        y = logits.argmax(1) if n == 40 else y
    net = torch.export.load("net.pt2").module()
    assert np.array_equal(y, net(x).argmax(1).numpy())
    assert run_alone(folder, "onnx") == [label]
    assert str(ROOT).encode() not in Path("net.onnx").read_bytes()


@pytest.mark.extras
@pytest.mark.parametrize("name", ["small-cnn", "preact-resnet-18"])
def test_networks_of_the_project_are_exported_to_onnx(name, tmp_path):
    from equipoise import models

    torch.manual_seed(0)
    settings = {"width": 0.125, "channels": 3, "size": (32, 32)}
    model = models.build(name, settings).eval()
    x = torch.rand(7, 3, 32, 32)
    content = exported.onnx(exported.graph_of(model, x[:2]), x[:2], {})
    with torch.no_grad():
        difference = (exported.of_onnx(content)(x) - model(x)).abs().max()
    assert difference < 1e-4


@pytest.mark.extras
def test_noise_in_a_model_is_found_in_onnx_and_nothing_is_written(tmp_path, monkeypatch):
    given, _ = own(tmp_path, monkeypatch, "Noisy")
    with pytest.raises(RunError, match="labels changed"):
        eq.export(**given, out="net.onnx")
    assert not Path("net.onnx").exists()
