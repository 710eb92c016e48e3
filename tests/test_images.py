"""Pictures in folders and CSV files: what is read, what is said, what is refused, what is kept."""

import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import time
import warnings
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from equipoise import data
from equipoise.data import Reading, core, decoded
from equipoise.data.pictures import decode, header, inputs
from equipoise.data.rows import Rows
from equipoise.errors import RunError, UserError

SUFFIXES = ("png", "JPG", "bmp", "webp", "tif")


class Said:
    """A console that keeps what it is told."""

    quiet = True

    def __init__(self):
        self.lines, self.warnings = [], []
        self.say, self.warn = self.lines.append, self.warnings.append

    def advance(self, n):
        pass

    def progress(self, *given, **options):
        from contextlib import nullcontext

        return nullcontext()

    @property
    def text(self):
        return "\n".join(self.lines + self.warnings)


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    place = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("EQUIPOISE_CACHE", str(place))
    return place


def picture(path, value=0, size=(16, 12), mode="RGB", **options):
    """Write a picture of noise around a value, (height, width)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draws = np.random.default_rng(zlib.crc32(str(path).encode()))
    channels = () if mode == "L" else (3,)
    values = (draws.integers(0, 40, (*size, *channels)) + value).astype(np.uint8)
    Image.fromarray(values).save(path, **options)
    return path


def classes(root, count=5, names=("cat", "dog"), **options):
    for k, name in enumerate(names):
        for i in range(count):
            suffix = SUFFIXES[i % len(SUFFIXES)]
            picture(root / name / f"{i}.{suffix}", 60 * k, **options)
    return root


def load(place, console=None, **reading):
    return data.load(str(place), reading=Reading(**reading), console=console)


def labels_of(part):
    return sorted(part.y.tolist())


def test_a_folder_of_classes(tmp_path):
    said = Said()
    dataset = load(classes(tmp_path / "my photos", 10), said, size=8)
    assert dataset.classes == ("cat", "dog")
    assert labels_of(dataset.train) == [0] * 8 + [1] * 8
    assert labels_of(dataset.test) == [0] * 2 + [1] * 2
    assert dataset.validation is None
    assert dataset.train.x.shape == (16, 3, 8, 8)
    bright = dataset.train.x.float().mean((1, 2, 3))
    assert (bright[dataset.train.y == 1] > bright[dataset.train.y == 0].max()).all()
    assert "classes by output, sorted by name: 0 cat, 1 dog" in said.text
    assert "no test images of their own: 4 of 20 were drawn" in said.text
    assert dataset.inputs["size"] == [8, 8]
    assert dataset.inputs["resize"] == "crop"


def test_the_drawn_images_are_the_same_and_stay_when_others_come(tmp_path):
    root = classes(tmp_path / "a", 10)
    first = {bytes(x.numpy()) for x in load(root, size=8).test.x}
    assert {bytes(x.numpy()) for x in load(root, size=8).test.x} == first
    copy = shutil.copytree(root, tmp_path / "b")
    assert {bytes(x.numpy()) for x in load(copy, size=8).test.x} == first
    picture(copy / "cat" / "new.png")
    again = {bytes(x.numpy()) for x in load(copy, size=8).test.x}
    assert len(again & first) >= 3


def test_own_splits_are_honoured(tmp_path):
    said = Said()
    for split, count in (("Train", 4), ("valid", 3), ("test", 2)):
        classes(tmp_path / split, count)
    dataset = load(tmp_path, said)
    assert [len(part) for part in (dataset.train, dataset.validation, dataset.test)] == [8, 6, 4]
    assert "drawn" not in said.text
    assert {"validation_x", "validation_y"} < set(dataset.sha256)
    assert dataset.sha256 == core.fingerprint(
        dataset.train, dataset.test, 2, validation=dataset.validation
    )
    assert dataset.mean == pytest.approx(core.moments(dataset.train.x)[0])


def test_a_class_may_be_called_train(tmp_path):
    assert load(classes(tmp_path, 5, ("car", "train"))).classes == ("car", "train")


def test_test_images_alone_are_for_judging(tmp_path):
    from equipoise.settings.recipe import parse

    classes(tmp_path / "test", 3)
    dataset = load(tmp_path)
    assert (len(dataset.train), len(dataset.test)) == (0, 6)
    recipe = parse({"method": "standard", "data": str(tmp_path)})
    with pytest.raises(UserError, match="test images only: there is nothing to train on"):
        recipe.split(recipe.dataset(), torch.device("cpu"))
    said = Said()
    (tmp_path / "test").rename(tmp_path / "val")
    assert len(load(tmp_path, said).test) == 6
    assert "they are taken for testing" in said.text


def test_own_validation_images_are_those_of_the_training(tmp_path):
    from equipoise.settings.recipe import parse

    classes(tmp_path / "train", 10)
    classes(tmp_path / "val", 8)
    given = {"method": "standard", "data": str(tmp_path), "batch_size": 4}
    recipe = parse(given)
    split = recipe.split(dataset := recipe.dataset(), torch.device("cpu"))
    assert len(split.train) == len(dataset.train) == 16
    assert torch.equal(split.validation.x, dataset.validation.x)
    fewer = parse({**given, "validation": 6}).split(dataset, torch.device("cpu")).validation
    assert labels_of(fewer) == [0] * 3 + [1] * 3


# Files as cameras and tools write them


def pixels(path, size=(12, 16), mode="RGB", resize="crop"):
    return decode(lambda: path.open("rb"), size, mode, resize)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_turned_upright(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = picture(tmp_path / "a.png", exif=exif)
    upright = ImageOps.exif_transpose(Image.open(path))
    size = (upright.height, upright.width)
    assert header(lambda: path.open("rb")).size == size
    assert np.array_equal(pixels(path, size).transpose(1, 2, 0), np.asarray(upright))


def test_modes_and_bits(tmp_path):
    deep = np.arange(192, dtype=np.uint16).reshape(12, 16) * 341
    for suffix in ("png", "tif"):
        Image.fromarray(deep).save(tmp_path / f"deep.{suffix}")
        assert np.array_equal(
            pixels(tmp_path / f"deep.{suffix}", mode="L")[0], np.rint(deep / 257).astype(np.uint8)
        )
    colours = picture(tmp_path / "a.png", size=(12, 16))
    rgb = np.asarray(Image.open(colours))
    for mode, suffix in (("RGBA", "png"), ("CMYK", "tif")):
        image = Image.open(colours).convert(mode)
        image.save(tmp_path / f"{mode}.{suffix}")
        difference = pixels(tmp_path / f"{mode}.{suffix}").transpose(1, 2, 0) - rgb.astype(int)
        assert abs(difference).max() <= 1
    palette = Image.open(colours).quantize(16)
    palette.save(tmp_path / "p.png", transparency=bytes(range(16)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        got = pixels(tmp_path / "p.png").transpose(1, 2, 0)
    assert np.array_equal(got, np.asarray(palette.convert("RGB")))
    Image.open(colours).save(tmp_path / "p.jpg", progressive=True, quality=95)
    assert abs(pixels(tmp_path / "p.jpg").transpose(1, 2, 0).astype(int) - rgb).mean() < 20


@pytest.mark.parametrize("suffix", ["gif", "webp"])
def test_the_first_frame_is_taken(tmp_path, suffix):
    root = classes(tmp_path / "photos", 5, size=(12, 16))
    frames = [Image.new("RGB", (16, 12), (v, v, v)) for v in (200, 10)]
    frames[0].save(root / "cat" / f"a.{suffix}", save_all=True, append_images=frames[1:])
    said = Said()
    dataset = load(root, said)
    assert abs(pixels(root / "cat" / f"a.{suffix}").astype(int) - 200).max() <= 2
    assert len(dataset.train) + len(dataset.test) == 11
    assert "1 images are of several frames or pages, of which the first is taken" in said.text


def test_each_policy_is_one_call_of_pillow(tmp_path):
    path = picture(tmp_path / "a.png", size=(40, 20))
    image, filter_ = Image.open(path), Image.Resampling.BILINEAR
    wanted = {
        "crop": ImageOps.fit(image, (10, 10), filter_),
        "pad": ImageOps.pad(image, (10, 10), filter_),
        "stretch": image.resize((10, 10), filter_),
    }
    for resize, prepared in wanted.items():
        got = pixels(path, (10, 10), resize=resize)
        assert np.array_equal(got.transpose(1, 2, 0), np.asarray(prepared))
    assert not pixels(path, (10, 10), resize="pad")[:, :, [0, 9]].any()
    assert set(inputs((8, 8), "L", Reading())) == {
        *("size", "resize", "interpolation", "mode", "orientation", "scale")
    }


def test_grey_folders_have_one_channel_unless_three_are_wanted(tmp_path):
    classes(tmp_path, 3, mode="L")  # WebP has no grey
    assert load(tmp_path).channels == 1
    assert load(tmp_path, channels=3).channels == 3
    picture(tmp_path / "cat" / "colour.png")
    assert load(tmp_path).channels == 3
    assert load(tmp_path, channels=1).channels == 1


def test_junk_nested_folders_links_and_odd_names(tmp_path):
    root, said = tmp_path / "my photos", Said()
    names = ("a cat", 'the "dog"\n2')
    classes(root, 5, names)
    for junk in ("Thumbs.db", ".DS_Store", "._0.png"):
        (root / "a cat" / junk).write_bytes(b"junk")
    (root / "a cat" / "notes.txt").write_text("text")
    picture(root / "a cat" / "deep" / "er" / "it's.PNG")
    picture(root / "loose.png")
    outside = classes(tmp_path / "outside", 1, ("x",)) / "x"
    (root / "a cat" / "link").symlink_to(outside)
    (root / "a cat" / "loop").symlink_to(root)
    os.mkfifo(root / "a cat" / "pipe.png")
    dataset = load(root, said)
    assert dataset.classes == ("a cat", 'the "dog" 2')
    assert len(dataset.train) + len(dataset.test) == 12
    assert "files of other kinds were left out: 1 .txt" in said.text
    assert "1 images are in no folder of a class and were left out, like 'loose.png'" in said.text


def test_a_csv_file_names_labels_and_splits(tmp_path):
    for i in range(12):
        picture(tmp_path / "all" / f"{i}, {i}.png", 90 * (i % 2))
    rows = [f'"{i}, {i}.png";{"ab"[i % 2]};{("train", "val", "test")[i // 4]}' for i in range(12)]
    (tmp_path / "labels.csv").write_text("﻿File;Class;Split\n" + "\n".join(rows) + "\n\n")
    dataset = load(tmp_path / "all", labels=str(tmp_path / "labels.csv"))
    assert dataset.classes == ("a", "b")
    sizes = [len(part) for part in (dataset.train, dataset.validation, dataset.test)]
    assert sizes == [4, 4, 4]
    shutil.copy(tmp_path / "labels.csv", tmp_path / "all")
    assert load(tmp_path / "all" / "labels.csv").sha256 == dataset.sha256


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "needs a first line with the columns path and label"),
        ("a,b\n1.png,x\n", "needs a first line with the columns path and label"),
        ("path,label\n0.png\n", "line 2: expected a path, a label"),
        ("path,label,split\n0.png,a,dunno\n", "line 2: expected a path, a label"),
        ("path,label\n0.png,a\n0.png,b\n", "line 3: '0.png' has two labels"),
        ("path,label\n0.png,a\n./0.png,a\nno.png,b\n", r"1 of 3 images .*no.png' .no such file"),
        ("path,label\n", "there are no images"),
    ],
)
def test_csv_files_that_do_not_fit(tmp_path, text, message):
    picture(tmp_path / "0.png")
    (tmp_path / "l.csv").write_text(text)
    with pytest.raises(UserError, match=message):
        load(tmp_path / "l.csv")


@pytest.mark.parametrize(
    ("suffix", "text"),
    [
        ("txt", "wolf\ncat\ndog\n"),
        ("json", json.dumps(["wolf", "cat", "dog"])),
        ("json", json.dumps({"dog": 2, "cat": 1, "wolf": 0})),
        ("json", json.dumps({"0": ["n0", "wolf"], "1": ["cat", "the cat"], "2": ["dog", "d"]})),
    ],
)
def test_the_order_of_the_outputs_can_be_given(tmp_path, suffix, text):
    file = tmp_path / f"classes.{suffix}"
    file.write_text(text)
    dataset = load(classes(tmp_path / "photos"), classes=str(file))
    assert len(dataset.classes) == 3
    assert {*dataset.train.y.tolist()} == {1, 2}
    assert dataset.classes[1] in ("cat", "the cat")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cat\ndoge\n", "unknown class 'dog'; did you mean 'doge'"),
        ("cat\ncat\ndog", "all different"),
        ("", "two or more"),
    ],
)
def test_files_of_classes_that_do_not_fit(tmp_path, text, message):
    (tmp_path / "classes.txt").write_text(text)
    with pytest.raises(UserError, match=message):
        load(classes(tmp_path / "photos"), classes=str(tmp_path / "classes.txt"))


# Bad input


def test_images_that_cannot_be_read_are_named_and_refused_or_skipped(tmp_path):
    root = classes(tmp_path / "photos", 6, size=(64, 64))
    (root / "cat" / "empty.png").touch()
    (root / "cat" / "text.jpg").write_text("no picture")
    whole = (root / "cat" / "0.png").read_bytes()
    for reading in ({}, {"size": 8}):
        with pytest.raises(UserError) as error:
            load(root, **reading)
        text = str(error.value)
        assert text.startswith(f"2 of 14 images in {root} cannot be read: ")
        assert "'cat/empty.png' (an empty file)" in text
        assert "'cat/text.jpg' (no picture" in text
        assert "on_bad_image=skip" in text
        assert "\n" not in text
    (root / "dog" / "cut.png").write_bytes(whole[: len(whole) // 2])
    (root / "dog" / "gone.png").symlink_to("nowhere")
    said = Said()
    dataset = load(root, said, on_bad_image="skip")
    assert len(dataset.train) + len(dataset.test) == 12
    assert "4 images in" in said.text
    (root / "cat" / "empty.png").unlink()
    (root / "cat" / "text.jpg").unlink()
    (root / "dog" / "gone.png").unlink()
    with pytest.raises(UserError, match=r"1 of 13 .*'dog/cut.png' .damaged or cut short"):
        load(root)


def test_other_things_that_cannot_be_used(tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "readme.txt").touch()
    with pytest.raises(UserError, match=r"there are no images in .*1 \.txt"):
        load(empty)
    with pytest.raises(UserError, match="there is no folder"):
        load(tmp_path / "nowhere" / "x")
    with pytest.raises(UserError, match="of one class, 'cat'"):
        load(classes(tmp_path / "one", 3, ("cat",)))
    with pytest.raises(UserError, match=r"every class .* has one image"):
        load(classes(tmp_path / "single", 1))
    mixed = classes(tmp_path / "mixed", 5)
    picture(mixed / "cat" / "b.png", size=(100, 90))
    with pytest.raises(UserError, match=r"2 sizes, from 16 x 12 to 100 x 90: give one, .*size=32"):
        load(mixed)
    with pytest.raises(UserError, match=r"have 4 x 4 pixels.* like size=224"):
        load(classes(tmp_path / "small", 5, size=(4, 4)))
    with pytest.raises(UserError, match="resize: only for images in files, not for digits"):
        data.load("digits", reading=Reading(resize="pad"))
    with pytest.raises(UserError, match=r"size must lie in \[8, 512\], got 5"):
        Reading(size=5)


def test_a_class_without_training_images_is_refused_and_other_gaps_are_said(tmp_path):
    classes(tmp_path / "train", 3)
    classes(tmp_path / "test", 3, ("cat", "dog"))
    classes(tmp_path / "val", 3, ("cat",))
    said = Said()
    load(tmp_path, said)
    assert "there are no validation images of 1 of 2 classes, like 'dog'" in said.warnings
    classes(tmp_path / "test", 1, ("emu",))
    with pytest.raises(UserError, match="no training images of 1 of 3 classes, like 'emu'"):
        load(tmp_path)


def test_very_small_and_very_large_images(tmp_path, monkeypatch):
    root, said = classes(tmp_path / "photos", 5), Said()
    picture(root / "cat" / "dot.png", size=(1, 1))
    Image.new("1", (10_000, 10_000)).save(root / "dog" / "large.png")
    dataset = load(root, said, size=16)
    assert len(dataset.train) + len(dataset.test) == 12
    assert "images are smaller than 16 pixels and enlarged, like cat/dot.png (1 x 1)" in said.text
    png = (root / "dog" / "large.png").read_bytes()
    bomb = png[:16] + struct.pack(">II", 60_000, 60_000) + png[24:]
    bomb = bomb[:29] + struct.pack(">I", zlib.crc32(bomb[12:29])) + bomb[33:]
    (root / "dog" / "large.png").write_bytes(bomb)
    with pytest.raises(UserError, match=r"'dog/large.png' .too many pixels"):
        load(root, size=16)


def test_copies_between_splits_are_reported(tmp_path):
    classes(tmp_path / "train", 4)
    classes(tmp_path / "test", 4)
    Image.open(tmp_path / "train" / "cat" / "0.png").save(tmp_path / "test" / "cat" / "x.bmp")
    shutil.copy(tmp_path / "train" / "cat" / "0.png", tmp_path / "train" / "dog" / "y.png")
    said = Said()
    load(tmp_path, said)
    (between, labels) = said.warnings
    assert between.startswith("1 images are the same in two splits, like ")
    assert "x.bmp" in between
    assert labels.startswith("1 images are there with two labels, like ")


# The cache


def folder_of(cache):
    (place,) = (path.parent for path in cache.rglob("index.json"))
    return place


def test_images_are_decoded_once(tmp_path, cache, monkeypatch):
    root = classes(tmp_path)
    first = load(root)
    monkeypatch.setattr(decoded, "decode", None)  # nobody decodes now
    again = load(root)
    assert again.sha256 == first.sha256
    assert torch.equal(again.train.x, first.train.x)
    assert (again.mean, again.std) == (first.mean, first.std)


def test_a_cache_of_other_images_and_a_damaged_one_are_made_again(tmp_path, cache):
    root, said = classes(tmp_path), Said()
    first = load(root)
    picture(root / "cat" / "0.png", 100)
    changed = load(root, said)
    assert changed.sha256 != first.sha256
    assert "have changed: they are decoded again" in said.text
    place = folder_of(cache)
    content = bytearray((place / "images.u8").read_bytes())
    content[5] ^= 1
    for damage in (bytes(content), bytes(content[:-1]), None):
        if damage is None:
            (place / "index.json").write_text('{"key": 1}')
        else:
            (place / "images.u8").write_bytes(damage)
        said = Said()
        assert load(root, said).sha256 == changed.sha256
        assert "is damaged: the files are decoded again" in said.text
    os.utime(place / "images.u8", ns=(1, 1))  # copied, for instance
    said = Said()
    assert load(root, said).sha256 == changed.sha256
    assert "damaged" not in said.text


def test_decoding_continues_where_it_was_killed(tmp_path, cache, monkeypatch):
    root = classes(tmp_path, 40)
    whole = load(root)
    shutil.rmtree(cache)
    cache.mkdir()
    real, count = decoded.decode, 0

    def dies(*given):
        nonlocal count
        count += 1
        if count > 50:
            raise KeyboardInterrupt
        return real(*given)

    monkeypatch.setattr(decoded, "CHUNK", 16 * 16 * 12 * 3)
    monkeypatch.setattr(decoded, "decode", dies)
    with pytest.raises(KeyboardInterrupt):
        load(root)
    (part,) = cache.rglob("images.part")
    assert part.stat().st_size >= 32 * 16 * 12 * 3
    with part.open("ab") as file:
        file.write(b"half an image")
    decoded_again, count = [], -1000
    monkeypatch.setattr(decoded, "decode", lambda *g: decoded_again.append(1) or real(*g))
    said = Said()
    assert load(root, said).sha256 == whole.sha256
    assert len(decoded_again) <= 48
    assert f"decoding {len(decoded_again)} images once" in said.text
    assert sorted(path.name for path in folder_of(cache).iterdir()) == [
        ".lock",
        "images.u8",
        "index.json",
    ]


def test_a_full_disk_is_one_line_and_nothing_is_lost(tmp_path, cache, monkeypatch):
    root = classes(tmp_path)
    real = shutil.disk_usage
    monkeypatch.setattr(decoded.shutil, "disk_usage", lambda path: real(path)._replace(free=1000))
    with pytest.raises(UserError, match=r"GB are free: set EQUIPOISE_CACHE"):
        load(root)

    def full(file):
        raise OSError(28, "No space left on device")

    answers = iter([1 << 40, 0])
    monkeypatch.setattr(
        decoded.shutil, "disk_usage", lambda path: real(path)._replace(free=next(answers))
    )
    monkeypatch.setattr(decoded.os, "fsync", full)
    with pytest.raises(RunError, match=r"the disk is full: .* run the same command again"):
        load(root)
    monkeypatch.undo()
    monkeypatch.setenv("EQUIPOISE_CACHE", str(cache))
    assert len(load(root).train) == 8
    monkeypatch.setenv("EQUIPOISE_CACHE", str(tmp_path / "cat" / "0.png"))
    with pytest.raises(UserError, match="set EQUIPOISE_CACHE to a folder"):
        load(root)


def test_mapped_images_are_those_in_memory(tmp_path, monkeypatch):
    root = classes(tmp_path, 20)
    usual = load(root)
    monkeypatch.setattr(decoded, "IN_MEMORY", 0)
    mapped = load(root)
    assert isinstance(mapped.train.x, Rows)
    assert (mapped.sha256, mapped.mean, mapped.std) == (usual.sha256, usual.mean, usual.std)
    rows = torch.tensor([3, 1, 7])
    some = mapped.train.take(torch.arange(30) % 2 == 0 if len(mapped.train) == 30 else rows)
    assert isinstance(some.x, Rows)
    index = torch.tensor([2, 0, 1, 2])
    assert torch.equal(mapped.train.take(rows).to("cpu").x[index], usual.train.take(rows).x[index])
    assert torch.equal(mapped.test.pixels(slice(1, 3)), usual.test.pixels(slice(1, 3)))
    assert torch.equal(mapped.train.take(slice(2, 9)).x[:], usual.train.x[2:9])
    assert repr(mapped.train) == repr(usual.train)
    start = mapped.train.x.x.untyped_storage().data_ptr()
    assert mapped.test.take(rows).x.x.untyped_storage().data_ptr() == start  # no copy
    (drawn, sample), (other, same) = (data.draw(d.test, 4) for d in (mapped, usual))
    assert sample == same
    assert torch.equal(drawn.pixels(), other.pixels())


@pytest.mark.slow
def test_a_training_on_mapped_images_is_the_same(tmp_path, monkeypatch):
    from equipoise.jobs.train import train
    from equipoise.settings.recipe import parse

    classes(tmp_path / "photos", 20)
    given = {"method": "pgd-at", "data": str(tmp_path / "photos"), "size": 16, "rounds": 2}
    recipe = parse({**given, "batch_size": 8, "width": 0.25})
    runs = [train(recipe, tmp_path / "a")]
    monkeypatch.setattr(decoded, "IN_MEMORY", 0)
    runs.append(train(recipe, tmp_path / "b"))
    a, b = (run.path.joinpath("model.safetensors").read_bytes() for run in runs)
    assert a == b
    config = runs[0].read_json("config.json")
    assert config["inputs"]["size"] == [16, 16]


@pytest.mark.slow
def test_a_killed_decoding_continues_and_memory_stays_low(tmp_path, cache):
    """One process is killed while it decodes; the next one ends with the same images."""
    root = classes(tmp_path, 60, size=(160, 120))
    code = (
        "import sys, time\nfrom equipoise import data\nfrom equipoise.data import decoded\n"
        "decoded.CHUNK = 1 << 14\nreal = decoded.decode\n"
        "def slow(*given):\n    time.sleep(0.02)\n    return real(*given)\n"
        "decoded.decode = slow\n"
        f"data.load({str(root)!r}, reading=data.Reading(size=32))\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code])
    until = time.monotonic() + 60
    while not (logs := [*cache.rglob("chunks.jsonl")]) or not logs[0].stat().st_size:
        assert time.monotonic() < until
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    said = Said()
    killed = load(root, said, size=32)
    assert "decoding 120 images" not in said.text
    shutil.rmtree(cache / "images")
    assert load(root, size=32).sha256 == killed.sha256


def test_classes_in_another_order_than_the_outputs_are_found():
    from equipoise.evaluation.checks.outputs import class_order

    draws = torch.Generator().manual_seed(0)
    y = torch.randint(10, (200,), generator=draws)
    logits = torch.nn.functional.one_hot(y, 10).float()
    logits += 0.4 * torch.randn(200, 10, generator=draws)  # right in about two thirds
    assert class_order(logits, y) == []
    assert (
        class_order(torch.randn(200, 10, generator=draws), y) == []
    )  # a model that knows nothing
    order = torch.tensor([3, 1, 2, 0, 5, 4, 9, 8, 7, 6])
    (found,) = class_order(logits, order[y])
    assert found.status == "failed"
    assert "label 0 is output 3, 3 is output 0" in found.message
    assert "--classes FILE" in found.remedy


@pytest.mark.extras
@pytest.mark.parametrize("saved", ["splits", "one"])
def test_data_sets_of_the_hub_library(tmp_path, saved):
    datasets = pytest.importorskip("datasets")
    root = classes(tmp_path / "photos", 10)
    files = sorted(root.rglob("*.*"))
    part = datasets.Dataset.from_dict(
        {
            "picture": [*map(str, files)],
            "label": [int("dog" in p.parts) for p in files],
        },
        features=datasets.Features(
            {"picture": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])}
        ),
    )
    whole = datasets.DatasetDict(train=part, validation=part, other=part)
    (part if saved == "one" else whole).save_to_disk(tmp_path / "saved")
    said = Said()
    dataset = data.load(f"hf-datasets:{tmp_path / 'saved'}", console=said)
    assert dataset.classes == ("cat", "dog")
    assert len(dataset.train) == 16
    assert (dataset.validation is None) == (saved == "one")
    bright = dataset.train.x.float().mean((1, 2, 3))
    assert (bright[dataset.train.y == 1] > bright[dataset.train.y == 0].max()).all()
    with pytest.raises(UserError, match=r"cannot be read on this computer .* --yes"):
        data.load("hf-datasets:nobody/nothing")


def test_what_would_be_read_can_be_seen(tmp_path, capsys):
    from equipoise.jobs.show_data import show_data

    root = classes(tmp_path / "photos", 5)
    (root / "cat" / "empty.png").touch()
    shutil.copy(root / "cat" / "0.png", root / "cat" / "copy.png")
    out = tmp_path / "sheet.png"
    show_data(str(root), Reading(size=32), augment="large", out=out, console=Said())
    text = capsys.readouterr().out
    assert "sizes of the files: 11 of 16 x 12" in text
    assert "files that cannot be read: 1\n  'cat/empty.png': an empty file" in text
    assert "copies in" in text
    sheet = np.asarray(Image.open(out).convert("L"))
    assert sheet.shape == (2 * (64 + 4), 120 + 8 * (64 + 4))
    assert len({sheet[10, 130 + 68 * k] for k in range(8)}) > 4  # images, not one colour
    show_data("digits", Reading(), console=Said())
    assert "1,297" in capsys.readouterr().out


def test_the_font_of_the_picture_has_letters_with_accents():
    from equipoise.jobs.show_data import font

    drawn = {bytes(font().getmask(letter)) for letter in "eéñßЖλ"}
    missing = bytes(font().getmask("\uffff"))
    assert len(drawn) == 6
    assert missing not in drawn
