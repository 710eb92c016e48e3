"""Random changes of training images: what they do, and that each image has its own draws."""

import pytest
import torch

from equipoise.data import load
from equipoise.data.augment import RATIO, jitter, resized_crop
from equipoise.data.core import crop_flip, to_unit
from equipoise.errors import UserError
from equipoise.report.page import build
from equipoise.settings.recipe import parse
from equipoise.training.augment import CHANGES, PRESETS, Augment


def draws(seed=0):
    return torch.Generator().manual_seed(seed)


def test_a_resized_crop_is_a_part_of_the_image():
    """Of a ramp one sees where the part begins, and how wide and high it is."""
    size, least = 32, 0.25
    ramp = (torch.arange(size) + 0.5) / size
    x = ramp.expand(4000, 2, size, size).clone()
    x[:, 1] = ramp[:, None]
    out = resized_crop(x, least, draws())
    middle = slice(8, 24)
    slopes = (out[:, :, 23, 23] - out[:, :, 8, 8]) / (15 / size)  # width and height of the part
    width, height = slopes.unbind(1)
    assert torch.allclose(
        out[:, 0, 0, middle].diff(), (width / size)[:, None].expand(-1, 15), atol=1e-5
    )
    assert width.max() <= 1 + 1e-5
    assert height.max() <= 1 + 1e-5
    area = width * height
    assert area.min() > 0.2  # a side that would be longer than the image is cut
    assert area.min() < 0.3 < 0.9 < area.max()
    ratio = width / height
    assert ratio.min() >= 1 / RATIO - 1e-4
    assert ratio.max() <= RATIO + 1e-4
    left = out[:, 0, 0, 8] - (8.5 / size) * width
    assert left.min() > -1e-5
    assert (left + width).max() < 1 + 1e-5
    assert left.std() > 0.05


def test_jitter_changes_what_it_says():
    x = torch.rand(500, 3, 8, 8, generator=draws(1)) * 0.2 + 0.4
    out = jitter(x, 0.4, draws())
    assert out.shape == x.shape
    brightness = out.mean((1, 2, 3)) / x.mean((1, 2, 3))
    assert (brightness.min() > 0.55, brightness.max() < 1.45) == (True, True)
    assert brightness.std() > 0.1
    spread = out.std((1, 2, 3)) / x.std((1, 2, 3)) / brightness
    assert spread.std() > 0.1
    grey = x[:, :1].expand(-1, 3, -1, -1)
    same = jitter(grey, 0.4, draws())
    assert torch.allclose(same, same[:, :1].expand_as(same), atol=1e-6)  # grey stays grey
    assert jitter(x[:, :2], 0.4, draws()).shape == (500, 2, 8, 8)
    assert torch.allclose(jitter(x, 0.0, draws()), x, atol=1e-6)


@pytest.mark.parametrize("words", [*PRESETS, *CHANGES, "flip, jitter"])
def test_the_same_generator_gives_the_same_images(words):
    dataset = load("digits")
    augment = Augment.named(words, dataset)
    x = dataset.train.x[:20]
    a, b, other = (augment(x, draws(seed)) for seed in (1, 1, 2))
    assert torch.equal(a, b)
    assert torch.equal(a, other) == (words == "none")
    assert a.dtype == torch.float32
    assert (float(a.min()), float(a.max()) <= 1) == (0, True)


def test_the_usual_augmentation_is_that_of_the_data():
    dataset = load("digits")
    assert Augment.named("data", dataset) == Augment(dataset.pad, dataset.flip)
    x = dataset.train.x[:20]
    expected = to_unit(crop_flip(x, 2, True, draws()))
    assert torch.equal(Augment(2, True)(x, draws()), expected)
    assert parse({"method": "standard"}).augment == "data"


def test_words_that_name_no_change_are_refused():
    with pytest.raises(UserError, match=r"unknown augmentation 'flop'; did you mean 'flip'"):
        parse({"method": "standard", "augment": "crop,flop"})


def test_the_report_of_a_training_shows_its_augmentation_once(command, tmp_path):
    few = ("rounds=1", "width=0.25", "limit=60", "batch_size=24", "--data", "digits")
    for name, words in (("a", "small"), ("b", "small"), ("none", "none")):
        ended = command("train", "standard", *few, f"augment={words}", "--out", tmp_path / name)
        assert ended.code == 0, ended.err
    drawn = tmp_path / "a/augmentation.png"
    assert not (tmp_path / "none/augmentation.png").exists()
    assert drawn.read_bytes() == (tmp_path / "b/augmentation.png").read_bytes()

    def page(*names: str) -> str:
        return build([tmp_path / name for name in names], tmp_path / "r.html").read_text()

    assert page("a", "b").count("as the training sees them") == 1
    assert "as the training sees them" not in page("none")
    drawn.write_bytes(b"no picture")
    assert "augmentation.png cannot be read" in page("a")
