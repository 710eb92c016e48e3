"""Models in files of torch.export and TorchScript, and those of transformers."""

import json

import pytest
import torch
from torch import nn

import equipoise as eq
from equipoise.data.core import Dataset, Images
from equipoise.errors import UserError
from equipoise.jobs.train import train
from equipoise.models import begin, library, origin
from equipoise.models.programs import is_program, read_program
from equipoise.settings import recipe as recipes


def net():
    torch.manual_seed(0)
    layers = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout()
    return nn.Sequential(*layers, nn.Linear(4 * 36, 10)).eval()


def exported(path, batch=None):
    x = torch.rand(batch or 2, 1, 8, 8)
    shapes = None if batch else ({0: torch.export.Dim("batch")},)
    torch.export.save(torch.export.export(net(), (x,), dynamic_shapes=shapes), path)


KINDS = {
    "any.pt2": exported,
    "two.pt2": lambda path: exported(path, batch=2),
    "net.ts": lambda path: torch.jit.trace(net(), torch.rand(2, 1, 8, 8)).save(path),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", KINDS)
def test_a_program_gives_the_logits_and_gradients_of_its_model(tmp_path, name):
    path = tmp_path / name
    KINDS[name](path)
    with pytest.raises(UserError, match="add --trust"):
        read_program(path, trust=False)
    model, x = read_program(path, trust=True), torch.rand(5, 1, 8, 8)
    assert not any(module.training for module in model.modules())
    assert torch.allclose(model(x), net()(x), atol=1e-5)
    y = torch.arange(5)
    attack = eq.attacks.parse("pgd-2")
    x_adv = attack(model, x, y, eq.Linf(0.1))
    assert torch.allclose(x_adv, attack(net(), x, y, eq.Linf(0.1)), atol=1e-4)


def test_files_that_hold_no_program(tmp_path):
    torch.save(net().state_dict(), tmp_path / "w.pt")
    (tmp_path / "x.pt2").write_bytes(b"nothing")
    assert is_program(str(tmp_path / "w.pt"))
    with pytest.raises(UserError, match=r"no TorchScript; weights are for --weights"):
        read_program(tmp_path / "w.pt", trust=True)
    with pytest.raises(UserError, match=r"no program of torch\.export"):
        read_program(tmp_path / "x.pt2", trust=True)


def test_a_library_that_is_not_there_says_what_to_install(monkeypatch):
    for name in library.PACKAGES:
        monkeypatch.setitem(library.PACKAGES, name, "no_such_package")
        with pytest.raises(UserError, match=rf"pip install 'equipoise\[{name}\]'"):
            library.make(f"{name}:x", (3, 8, 8), pretrained=True)
    with pytest.raises(UserError, match="--download is for timm:NAME"):
        library.download("nets:make")


# --- transformers, without a network ---

SMALL = {"image_size": 8, "num_channels": 1, "num_labels": 7}
VIT = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 4}
FAMILIES = {
    "ViT": VIT | {"intermediate_size": 32},
    "ResNet": {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1],
               "layer_type": "basic"},
    "ConvNext": {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2, "patch_size": 2},
}  # fmt: skip


@pytest.fixture(scope="module")
def images():
    y = torch.arange(120) % 3
    x = torch.randint(0, 90, (120, 1, 8, 8), generator=torch.Generator().manual_seed(0))
    x = (x + 80 * y[:, None, None, None] * (torch.arange(8) < 4)).to(torch.uint8)
    both = {"train": Images(x, y), "test": Images(x[:30], y[:30])}
    return Dataset(name="mine", **both, classes=tuple("abc"), eps=0.1, source="here")


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request, tmp_path_factory):
    """Return a folder of save_pretrained, of a model of 7 classes."""
    import transformers

    torch.manual_seed(0)
    config = getattr(transformers, f"{request.param}Config")(**SMALL, **FAMILIES[request.param])
    model = getattr(transformers, f"{request.param}ForImageClassification")(config)
    path = tmp_path_factory.mktemp("hub") / request.param
    model.save_pretrained(path)
    scale = {"do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True}
    about = {"image_mean": [0.4], "image_std": [0.3], **scale}
    (path / "preprocessor_config.json").write_text(json.dumps(about))
    return path


@pytest.mark.extras
def test_a_model_of_transformers_is_trained_and_built_again_without_its_folder(
    folder, images, tmp_path
):
    said = []
    model, about = begin.begin(f"hf:{folder}", shape=(1, 8, 8), classes=3, say=said.append)
    assert "mean 0.4 and std 0.3, that of its library" in said[0]
    assert "is new and untrained: Linear(16, 3) in place of Linear(16, 7)" in said[1]
    assert model.network.config.num_labels == 3
    assert about.source is None
    assert set(about.packages) == {"transformers"}
    for method in ("trades", "generalist", "a3gt"):
        short = {"rounds": 2, "validation": 20, "batch_size": 30, "validation_attack": "pgd-1"}
        recipe = recipes.parse({"method": method, "model": f"hf:{folder}", "lr": 0.01, **short})
        run = train(recipe, tmp_path / method, dataset=images)
    away = folder.rename(folder.with_name("away"))
    try:
        again = eq.load(run.path)  # runs the library's code only: it needs no --trust
    finally:
        away.rename(folder)
    assert again(images.test.pixels()).shape == (30, 3)
    assert origin.Origin.of(json.loads((run.path / "config.json").read_text())["origin"])


@pytest.mark.extras
def test_the_hub_is_not_asked_and_the_cache_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("the network was used"))
    with pytest.raises(UserError, match="no such model in the cache of transformers; --download"):
        library.make("hf:somebody/some-model", (3, 8, 8), pretrained=True)
    with pytest.raises(UserError, match=r"there is no folder \./nowhere"):
        library.make("hf:./nowhere", (3, 8, 8), pretrained=True)


def test_settings_that_could_load_code_are_not_read_from_a_folder():
    made = {"auto_map": 1, "attn_implementation": 1, "_attn_implementation": 1, "hidden_size": 1}
    assert [key for key in made if library._is_safe(key)] == ["hidden_size"]
