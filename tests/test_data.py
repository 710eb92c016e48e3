"""The data layer: readers on files written here in the official layouts, splits, downloads."""

import gzip
import hashlib
import io
import os
import pickle
import struct
import subprocess
import sys
import tarfile
import threading
import zipfile
import zlib
from collections import Counter
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from equipoise import cli
from equipoise.data import (
    DATASETS,
    Images,
    cifar,
    core,
    crop_flip,
    fetch,
    get,
    load,
    mnist,
    npz,
    status,
    stratified_split,
    svhn,
)
from equipoise.data.fetch import download
from equipoise.data.published import Remote
from equipoise.errors import RunError, UserError

REAL = Path(os.environ.get("EQUIPOISE_DATA") or Path(__file__).parents[2] / "shared" / "data")


@pytest.fixture(autouse=True)
def _alone(monkeypatch, tmp_path):
    """No dataset of this computer is in sight."""

    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.chdir(home)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    for name in ("EQUIPOISE_DATA", "EQUIPOISE_UNVERIFIED"):
        monkeypatch.delenv(name, raising=False)


def sha256(content):
    return hashlib.sha256(content).hexdigest()


# ---- files in the official layouts -----------------------------------------------------


def idx(array):
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    return header + array.astype(np.uint8).tobytes()


def fake_mnist(n=20, seed=0):
    random = np.random.default_rng(seed)
    arrays = []
    for count in (n, n // 2):
        arrays.append(random.integers(0, 256, (count, 28, 28)).astype(np.uint8))
        arrays.append((np.arange(count) % 10).astype(np.uint8))
    return dict(zip(mnist.MNIST.forms[0].files, arrays, strict=True))


def write_mnist(folder, arrays, gz=False):
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in arrays.items():
        if gz:
            (folder / f"{name}.gz").write_bytes(gzip.compress(idx(array), 1))
        else:
            (folder / name).write_bytes(idx(array))
    return folder


def known_mnist(arrays):
    """MNIST as if ``arrays`` had been published."""

    sums = {name: f"sha256:{sha256(idx(array))}" for name, array in arrays.items()}
    return with_files(mnist.MNIST, sums)


def with_files(source, files):
    """The source with other files in its first form."""

    first, *others = source.forms
    return replace(source, forms=(replace(first, files=files), *others))


def python2_batch(data, labels):
    """A batch as Python 2 pickles it: byte strings are STRING opcodes, NumPy 1 module names."""

    def string(text):
        return b"U" + bytes([len(text)]) + text

    rebuilt = (
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85"
        + string(b"b")
        + b"\x87R"
    )
    dtype = b"cnumpy\ndtype\n" + string(b"u1") + b"K\x00K\x01\x87R"
    dtype += b"(K\x03" + string(b"|") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    shape = b"M" + struct.pack("<H", len(data)) + b"M" + struct.pack("<H", 3072) + b"\x86"
    content = data.tobytes()
    raw = b"T" + struct.pack("<i", len(content)) + content
    array = rebuilt + b"(K\x01" + shape + dtype + b"\x89" + raw + b"tb"
    numbers = b"](" + b"".join(b"K" + bytes([k]) for k in labels) + b"e"
    items = string(b"data") + array + string(b"labels") + numbers
    return b"\x80\x02}(" + items + b"u."


def cifar_batches(n=4):
    random = np.random.default_rng(1)
    data = random.integers(0, 256, (6, n, 3072)).astype(np.uint8)
    labels = np.arange(6 * n).reshape(6, n) % 10
    return data, labels


def cifar_files(form, n=4):
    data, labels = cifar_batches(n)
    contents = []
    for x, y in zip(data, labels, strict=True):
        if form is cifar.BINARY:
            contents.append(np.concatenate([y[:, None].astype(np.uint8), x], axis=1).tobytes())
        else:
            contents.append(python2_batch(x, y.tolist()))
    return dict(zip(form.files, contents, strict=True))


def write_folder(folder, contents):
    folder.mkdir(parents=True)
    for name, content in contents.items():
        (folder / name).write_bytes(content)


def write_archive(path, folder, contents):
    with tarfile.open(path, "w:gz") as tar:
        for name, content in contents.items():
            member = tarfile.TarInfo(f"{folder}/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def mat(compress=False, **arrays):
    """A MATLAB 5 file of ``uint8`` arrays."""

    def element(kind, content):
        return struct.pack("<II", kind, len(content)) + content + b"\0" * (-len(content) % 8)

    out = b"MATLAB 5.0 MAT-file".ljust(124) + struct.pack("<H", 0x0100) + b"IM"
    for name, array in arrays.items():
        matrix = element(6, struct.pack("<II", 9, 0))
        matrix += element(5, struct.pack(f"<{array.ndim}i", *array.shape))
        matrix += element(1, name.encode()) + element(2, array.tobytes(order="F"))
        whole = element(14, matrix)
        if compress:
            packed = zlib.compress(whole)
            whole = struct.pack("<II", 15, len(packed)) + packed
        out += whole
    return out


def svhn_arrays(n=20):
    random = np.random.default_rng(2)
    x = random.integers(0, 256, (32, 32, 3, n)).astype(np.uint8)
    return {"X": x, "y": (np.arange(n) % 10 + 1).astype(np.uint8)[:, None]}


# ---- core ------------------------------------------------------------------------------


def test_images():
    x = torch.arange(24, dtype=torch.uint8).reshape(3, 2, 2, 2)
    images = Images(x, torch.tensor([2, 0, 1]))
    assert len(images) == 3
    assert torch.equal(images.pixels(), x.float() / 255)
    assert torch.equal(images.pixels(slice(1, 2)), x[1:2].float() / 255)
    assert images.take(torch.tensor([2, 0])).y.tolist() == [1, 2]
    assert torch.equal(images.take(slice(1, None)).x, x[1:])
    floats = Images(x.float() / 255, images.y)
    assert torch.equal(floats.pixels(torch.tensor([1])), floats.x[[1]])
    assert images.to("cpu").x.device.type == "cpu"


@pytest.mark.parametrize(
    ("x", "y"),
    [
        (torch.zeros(3, 1, 2, 2), torch.zeros(2, dtype=torch.int64)),
        (torch.zeros(3, 2, 2), torch.zeros(3, dtype=torch.int64)),
        (torch.zeros(3, 1, 2, 2, dtype=torch.float64), torch.zeros(3, dtype=torch.int64)),
        (torch.zeros(3, 1, 2, 2), torch.zeros(3)),
    ],
)
def test_images_refuses_other_shapes_and_types(x, y):
    with pytest.raises(UserError, match="images must be"):
        Images(x, y)


@pytest.mark.parametrize("seed", range(5))
def test_split_is_a_proportional_partition(seed):
    generator = torch.Generator().manual_seed(seed)
    weights = torch.rand(7, generator=generator) + 0.02
    y = torch.multinomial(weights, 300, replacement=True, generator=generator)
    for held_out in (0, 1, 50, 123, 300 - len(y.unique())):
        train, held = stratified_split(y, held_out, seed)
        assert train.dtype == held.dtype == torch.int64
        assert len(held) == held_out
        assert torch.equal(torch.cat([train, held]).sort().values, torch.arange(300))
        assert torch.equal(train, train.sort().values)
        assert torch.equal(held, held.sort().values)
        assert set(y[train].tolist()) == set(y.tolist())
        if held_out <= 123:
            share, counts = y[held].bincount(minlength=7), y.bincount(minlength=7)
            exact = counts * (held_out / 300)
            assert ((share >= exact.floor()) & (share <= exact.floor() + 1)).all()


def test_split_follows_the_largest_remainder():
    y = torch.tensor([0] * 5 + [1] * 3 + [2] * 2)
    _, held = stratified_split(y, 5, seed=0)  # quotas 2.5, 1.5, 1: the tie goes to the lower label
    assert y[held].bincount().tolist() == [3, 1, 1]


def test_split_depends_on_the_seed_alone():
    y = torch.arange(1000) % 10
    first, again, other = (stratified_split(y, 200, seed)[1] for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert stratified_split(torch.arange(40) % 2, 6, 0)[1].tolist() == [4, 11, 15, 18, 24, 33]


def test_split_spreads_over_positions():
    y = torch.zeros(1000, dtype=torch.int64)
    held = torch.cat([stratified_split(y, 100, seed)[1] for seed in range(200)])
    counts = held.bincount(minlength=1000).double()  # binomial(200, 0.1): 20 with deviation 4.2
    assert 3.5 < counts.std() < 5
    assert counts.min() > 3


@pytest.mark.parametrize("held_out", [-1, 8])
def test_split_refuses_to_empty_a_class(held_out):
    with pytest.raises(UserError, match=r"held_out must lie in \[0, 7\]"):
        stratified_split(torch.arange(10) % 3, held_out, 0)


def shifted(image, pad, dy, dx, mirror):
    """One image, the slow way."""

    channels, height, width = image.shape
    canvas = np.zeros((channels, height + 2 * pad, width + 2 * pad), image.dtype)
    canvas[:, pad : pad + height, pad : pad + width] = image
    crop = canvas[:, dy : dy + height, dx : dx + width]
    return crop[:, :, ::-1] if mirror else crop


@pytest.mark.parametrize(("pad", "flip"), [(2, True), (2, False), (0, True), (4, True)])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_crop_flip_is_a_shift_of_each_image(pad, flip, dtype):
    x = torch.randint(1, 256, (600, 2, 6, 5), generator=torch.Generator().manual_seed(0))
    x = x.to(dtype)
    before = x.clone()
    out = crop_flip(x, pad, flip, torch.Generator().manual_seed(1))
    assert torch.equal(x, before)
    assert out.dtype == dtype
    assert out.shape == x.shape
    seen = Counter()
    moves = list(product(range(2 * pad + 1), range(2 * pad + 1), (False, True)))
    for image, result in zip(x.numpy(), out.numpy(), strict=True):
        fits = [move for move in moves if np.array_equal(shifted(image, pad, *move), result)]
        assert len(fits) == 1
        seen[fits[0]] += 1
    wanted = {move for move in moves if flip or not move[2]}
    assert set(seen) <= wanted
    if pad < 4:
        assert set(seen) == wanted
    for axis in range(2):
        assert {move[axis] for move in seen} == set(range(2 * pad + 1))
    mirrored = sum(count for move, count in seen.items() if move[2])
    assert 250 < mirrored < 350 if flip else mirrored == 0


def test_crop_flip_repeats_with_its_generator_and_leaves_the_global_one():
    x = torch.rand(8, 3, 7, 7)
    state = torch.random.get_rng_state()
    first, again = (crop_flip(x, 2, True, torch.Generator().manual_seed(5)) for _ in range(2))
    assert torch.equal(first, again)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert crop_flip(x, 0, False, torch.Generator()) is x


def test_moments():
    x = torch.randint(0, 256, (50, 3, 4, 4), generator=torch.Generator().manual_seed(0))
    x = x.to(torch.uint8)
    x[:, 2] = 51
    pixels = x.double() / 255
    for images in (x, pixels.float()):
        mean, std = core.moments(images)
        torch.testing.assert_close(torch.tensor(mean), pixels.mean((0, 2, 3)).float())
        expected = pixels.std((0, 2, 3), correction=0).float()
        torch.testing.assert_close(torch.tensor(std[:2]), expected[:2])
    assert core.moments(x)[1][2] == pytest.approx(1.0)  # a constant channel


def test_fingerprint_is_of_plain_bytes():
    x = torch.arange(16, dtype=torch.uint8).reshape(2, 2, 2, 2)
    images = Images(x.permute(0, 1, 3, 2), torch.tensor([1, 300]))
    sums = core.fingerprint(images, images, 301)
    assert sums["test_x"] == sha256(x.permute(0, 1, 3, 2).contiguous().numpy().tobytes())
    assert sums["train_y"] == sha256(struct.pack("<qq", 1, 300))
    few = Images(x, torch.tensor([1, 9]))
    assert core.fingerprint(few, few, 10)["train_y"] == sha256(b"\x01\x09")


# ---- digits, names, places -------------------------------------------------------------


@pytest.mark.slow
def test_digits():
    digits = load("digits")
    assert (len(digits.train), len(digits.test)) == (1297, 500)
    assert (digits.channels, digits.size, digits.eps) == (1, (8, 8), 0.15)
    assert digits.train.x.dtype == torch.uint8
    assert set(digits.train.x.unique().tolist()) == {round(v * 255 / 16) for v in range(17)}
    assert digits.classes == tuple("0123456789")
    assert set(digits.test.y.bincount().tolist()) <= {48, 49, 50, 51}
    assert digits.sha256["train_x"].startswith("ddf0ab14fca30411")
    assert digits.sha256["train_y"].startswith("595dd15ed0d18ae1")
    assert digits.sha256["test_x"].startswith("98aac8273932223a")
    assert digits.sha256["test_y"].startswith("34e43c67a963ccba")
    assert "scikit-learn" in digits.source


@pytest.mark.slow
def test_import_is_light():
    code = (
        "import sys, equipoise.data; "
        "print([m for m in ('sklearn', 'scipy.io', 'rich') if m in sys.modules])"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert answer.stdout.strip() == "[]"


def test_unknown_name():
    with pytest.raises(UserError, match=r"did you mean 'cifar10'\?.*\.npz"):
        load("cifar-10")
    with pytest.raises(UserError, match="unknown dataset"):
        get("cifar-10")


@pytest.mark.parametrize("name", ["mnist", "cifar10", "svhn"])
def test_missing_names_the_places_and_the_remedy(name, tmp_path, monkeypatch):
    monkeypatch.setenv("EQUIPOISE_DATA", str(tmp_path / "elsewhere"))
    with pytest.raises(UserError) as caught:
        load(name, tmp_path)
    message = str(caught.value)
    for part in (
        f"{name} is not there",
        f"equipoise data get {name} --yes",
        "--data-dir",
        f"{tmp_path} (lacks",
        f"{tmp_path / name} (does not exist)",
        f"{tmp_path / 'elsewhere'} (does not exist)",
        f"{Path('data') / name} (",
        str(Path(".cache") / "equipoise" / name),
    ):
        assert part in message
    assert "\n" not in message


def test_places_are_tried_in_order(tmp_path, monkeypatch):
    arrays = fake_mnist()
    fake = known_mnist(arrays)
    monkeypatch.setitem(DATASETS, "mnist", fake)
    cache = write_mnist(Path.home() / ".cache" / "equipoise" / "mnist", arrays)
    assert load("mnist").source.endswith(f"from {cache}")
    here = write_mnist(Path("data") / "mnist", arrays)
    assert load("mnist").source.endswith(f"from {here}")
    named = write_mnist(tmp_path / "env" / "mnist", arrays)
    monkeypatch.setenv("EQUIPOISE_DATA", str(tmp_path / "env"))
    assert load("mnist").source.endswith(f"from {named}")
    given = write_mnist(tmp_path / "given", arrays, gz=True)
    assert load("mnist", given).source.endswith(f"from {given}")
    next(given.iterdir()).unlink()  # an incomplete folder is passed over
    assert load("mnist", given).source.endswith(f"from {named}")


def test_status(tmp_path):
    states = {state.name: state for state in status(tmp_path)}
    assert list(states) == list(DATASETS)
    assert states["digits"].copy
    assert not states["digits"].remedy
    assert not states["svhn"].copy
    assert "data get svhn" in states["svhn"].remedy
    assert states["svhn"].looked[:2] == (tmp_path, tmp_path / "svhn")
    assert not states["svhn"].problem
    assert "non-commercial" in DATASETS["svhn"].licence
    write_mnist(tmp_path / "mnist", fake_mnist())
    state = next(state for state in status(tmp_path) if state.name == "mnist")
    assert not state.copy
    assert "expected sha256" in state.problem


def test_every_set_states_its_size_and_source():
    assert {name: source.n for name, source in DATASETS.items()} == {
        "digits": 1797,
        "mnist": 70000,
        "fashion-mnist": 70000,
        "cifar10": 60000,
        "svhn": 99289,
    }
    for name, source in DATASETS.items():
        assert source.licence
        assert (source.remote is None) == (name == "digits")
    assert "/usr/share/datasets/fashion-mnist" in str(DATASETS["fashion-mnist"].folders)


# ---- MNIST -----------------------------------------------------------------------------


@pytest.mark.parametrize("gz", [False, True])
def test_mnist_verified(tmp_path, gz):
    arrays = fake_mnist()
    write_mnist(tmp_path, arrays, gz)
    dataset = known_mnist(arrays).read(tmp_path)
    train_x, train_y, test_x, test_y = arrays.values()
    assert np.array_equal(dataset.train.x.numpy(), train_x[:, None])
    assert np.array_equal(dataset.test.x.numpy(), test_x[:, None])
    assert dataset.train.y.tolist() == train_y.tolist()
    assert dataset.test.y.tolist() == test_y.tolist()
    assert dataset.source == f"MNIST, all files verified by SHA-256, from {tmp_path}"
    assert dataset.sha256["train_x"] == sha256(train_x.tobytes())
    assert dataset.sha256["test_y"] == sha256(test_y.tobytes())
    dataset.train.x.zero_()  # owned and writable


def test_mnist_with_unknown_checksum(tmp_path, monkeypatch):
    write_mnist(tmp_path, fake_mnist())
    with pytest.raises(UserError) as caught:
        load("mnist", tmp_path)
    expected = mnist.MNIST.forms[0].files["train-images-idx3-ubyte"].partition(":")[2]
    got = sha256((tmp_path / "train-images-idx3-ubyte").read_bytes())
    for part in ("train-images-idx3-ubyte", expected, got, "data get mnist --yes", "unverified"):
        assert part in str(caught.value)
    assert "unverified copy" in load("mnist", tmp_path, unverified=True).source
    monkeypatch.setenv("EQUIPOISE_UNVERIFIED", "1")
    dataset = load("fashion-mnist", tmp_path)
    assert "unverified copy" in dataset.source
    assert (dataset.eps, dataset.pad, dataset.flip) == (0.1, 0, False)
    with pytest.raises(UserError, match="expected sha256"):
        load("mnist", tmp_path, unverified=False)


def test_a_file_of_the_other_set_is_recognised(tmp_path, monkeypatch):
    arrays = fake_mnist()
    write_mnist(tmp_path, arrays)
    owners = dict.fromkeys(known_mnist(arrays).forms[0].files.values(), "mnist")
    assert owners
    assert set(mnist.FASHION_MNIST.owners.values()) == {"mnist", "fashion-mnist"}
    with pytest.raises(UserError, match="is a file of mnist, not of fashion-mnist"):
        replace(mnist.FASHION_MNIST, owners=owners).read(tmp_path, unverified=True)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "starts with nothing"),
        (b"\x1f\x8b\x08\x00", "starts with 1f8b0800"),
        (b"\0\0\x0d\x01\0\0\0\1", "not an idx file of bytes"),
        (b"\0\0\x08\x03\0\0\0\1\0\0", "ends within its header"),
        (idx(np.zeros((3, 28, 28)))[:-1], "announces 2352 bytes"),
        (idx(np.zeros(5)) + b"x", "announces 5 bytes"),
    ],
)
def test_malformed_idx(content, message):
    with pytest.raises(UserError, match=message):
        mnist.parse_idx(content, "file")


@pytest.mark.parametrize("damage", ["cut", "no gzip", "count", "label", "swapped"])
def test_damaged_mnist(tmp_path, damage):
    arrays = fake_mnist()
    images, labels, *_ = arrays
    if damage == "count":
        arrays[labels] = arrays[labels][:-1]
    if damage == "label":
        arrays[labels][3] = 10
    if damage == "swapped":
        arrays[images], arrays[labels] = arrays[labels], arrays[images]
    write_mnist(tmp_path, arrays, gz=True)
    file = tmp_path / f"{images}.gz"
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:-100])
    if damage == "no gzip":
        file.write_bytes(b"<html>not found</html>")
    message = {
        "cut": "is cut short.*data get mnist --yes",
        "no gzip": "no gzip file",
        "count": r"as many labels.*\(20, 28, 28\) and \(19,\)",
        "label": r"labels must lie in 0\.\.9, got 10",
        "swapped": "expected images",
    }[damage]
    with pytest.raises(UserError, match=message):
        load("mnist", tmp_path, unverified=True)


# ---- CIFAR-10 --------------------------------------------------------------------------


@pytest.mark.parametrize("form", [cifar.BINARY, cifar.PYTHON], ids=lambda form: form.title)
@pytest.mark.parametrize("container", ["folder", "inside", "archive", "archive itself"])
def test_cifar(tmp_path, form, container):
    contents, place = cifar_files(form), tmp_path
    if container in {"folder", "inside"}:
        write_folder(tmp_path / form.folder, contents)
        place = tmp_path / form.folder if container == "inside" else tmp_path
    else:
        write_archive(tmp_path / form.archive, form.folder, contents)
        place = tmp_path / form.archive if container == "archive itself" else tmp_path
    with pytest.raises(UserError, match=f"{next(iter(form.files))} is not the published file"):
        load("cifar10", place)
    dataset = load("cifar10", place, unverified=True)
    data, labels = cifar_batches()
    assert np.array_equal(dataset.train.x.numpy(), data[:5].reshape(-1, 3, 32, 32))
    assert np.array_equal(dataset.test.x.numpy(), data[5].reshape(-1, 3, 32, 32))
    assert dataset.train.y.tolist() == labels[:5].reshape(-1).tolist()
    assert dataset.test.y.tolist() == labels[5].tolist()
    assert dataset.source.startswith(f"unverified copy of {form.title}")
    assert (dataset.pad, dataset.flip, dataset.eps) == (4, True, 8 / 255)
    assert dataset.classes[3] == "cat"
    dataset.train.x.zero_()


def test_cifar_verified(tmp_path, monkeypatch):
    contents = cifar_files(cifar.BINARY)
    write_archive(tmp_path / cifar.BINARY.archive, cifar.BINARY.folder, contents)
    sums = {f: f"sha1:{hashlib.sha1(c).hexdigest()}" for f, c in contents.items()}  # noqa: S324
    monkeypatch.setitem(DATASETS, "cifar10", with_files(cifar.CIFAR10, sums))
    assert "all files verified by SHA-1" in load("cifar10", tmp_path).source


def test_cifar_batch_of_python_3():
    data, labels = cifar_batches()
    for protocol in (2, 5):  # bytes go through _codecs.encode, arrays through numpy._core
        batch = {b"data": data[0], b"labels": labels[0].tolist()}
        content = pickle.dumps(batch, protocol=protocol)
        if protocol == 5:
            with pytest.raises(UserError, match="_frombuffer, which is refused"):
                cifar.parse_python(content, "batch")
            continue
        x, y = cifar.parse_python(content, "batch")
        assert np.array_equal(x, data[0])
        assert y.tolist() == labels[0].tolist()


class Reduces:
    def __init__(self, function, *arguments):
        self.answer = (function, arguments)

    def __reduce__(self):
        return self.answer


@pytest.mark.parametrize(
    "payload",
    [
        Reduces(os.system, "touch owned"),
        Reduces(eval, "open('owned', 'w')"),
        Reduces(np.save, "owned", 1),
        Reduces(getattr, np.ndarray, "tofile"),
        Reduces(open, "owned", "w"),
    ],
    ids=["os.system", "eval", "numpy.save", "getattr", "open"],
)
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_malicious_pickle_is_refused(tmp_path, payload, protocol):
    data, labels = cifar_batches()
    evil = pickle.dumps(
        {b"data": data[0], b"labels": labels[0].tolist(), b"x": payload}, protocol=protocol
    )
    contents = cifar_files(cifar.PYTHON)
    contents["data_batch_3"] = evil
    write_folder(tmp_path / cifar.PYTHON.folder, contents)
    with pytest.raises(UserError, match=r"data_batch_3 is not a CIFAR-10 batch.*refused"):
        load("cifar10", tmp_path, unverified=True)
    assert not list(Path().glob("owned*"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a CIFAR-10 batch"),
        (b"\x80\x02}(", "not a CIFAR-10 batch"),
        (pickle.dumps([1, 2], 2), "no data and labels"),
        (pickle.dumps({b"data": 3, b"labels": [1]}, 2), "data must be uint8"),
        (pickle.dumps({b"data": np.zeros((2, 9), "u1"), b"labels": [1]}, 2), "data must be uint8"),
        (pickle.dumps({b"data": np.zeros((1, 3072), "u1"), b"labels": [-1]}, 2), "small integers"),
        (pickle.dumps({b"data": np.zeros((1, 3072), "u1"), b"labels": "a"}, 2), "small integers"),
        (pickle.dumps({b"data": np.zeros((1, 3072), "u1")}, 2), "no data and labels"),
        (b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00aX\x03\x00\x00\x00bz2\x86R.", "encoding"),
    ],
)
def test_malformed_pickle(content, message):
    with pytest.raises(UserError, match=message):
        cifar.parse_python(content, "batch")


def test_malformed_cifar(tmp_path):
    contents = cifar_files(cifar.BINARY)
    write_folder(tmp_path / cifar.BINARY.folder, contents)
    batch = tmp_path / cifar.BINARY.folder / "test_batch.bin"
    batch.write_bytes(contents["test_batch.bin"][:-1])
    with pytest.raises(UserError, match=r"test_batch.bin is cut short.*multiple of 3073"):
        load("cifar10", tmp_path, unverified=True)
    batch.write_bytes(b"\x0a" + bytes(3072))
    with pytest.raises(UserError, match=r"labels must lie in 0\.\.9, got 10"):
        load("cifar10", tmp_path, unverified=True)
    batch.unlink()
    with pytest.raises(UserError, match=r"lacks test_batch.bin\)"):
        load("cifar10", tmp_path, unverified=True)


def test_cut_or_incomplete_archive(tmp_path):
    contents = cifar_files(cifar.BINARY)
    archive = tmp_path / cifar.BINARY.archive
    write_archive(archive, cifar.BINARY.folder, contents)
    whole = archive.read_bytes()
    for length in (0, 100, len(whole) // 3, len(whole) * 2 // 3):
        archive.write_bytes(whole[:length])
        with pytest.raises(UserError, match="cut short or no archive"):
            load("cifar10", tmp_path, unverified=True)
    contents.pop("test_batch.bin")
    write_archive(archive, cifar.BINARY.folder, contents)
    with pytest.raises(UserError, match=r"lacks test_batch.bin"):
        load("cifar10", tmp_path, unverified=True)


# ---- SVHN ------------------------------------------------------------------------------


@pytest.mark.parametrize("compress", [False, True])
def test_svhn(tmp_path, compress):
    arrays = svhn_arrays()
    for file in svhn.FILES:
        (tmp_path / file).write_bytes(mat(compress, **arrays))
    with pytest.raises(UserError, match=r"train_32x32.mat is not the published file of svhn"):
        load("svhn", tmp_path)
    dataset = load("svhn", tmp_path, unverified=True)
    assert np.array_equal(dataset.train.x[7, 1].numpy(), arrays["X"][:, :, 1, 7])
    assert dataset.train.y.tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 0] * 2
    assert dataset.source.startswith("unverified copy of SVHN")
    assert (dataset.pad, dataset.flip, dataset.channels, dataset.size) == (4, False, 3, (32, 32))
    pixels = dataset.train.pixels().double()
    assert dataset.mean == pytest.approx(pixels.mean((0, 2, 3)).tolist())


def test_svhn_verified(tmp_path, monkeypatch):
    content = mat(**svhn_arrays())
    sums = dict.fromkeys(svhn.FILES, f"sha256:{sha256(content)}")
    monkeypatch.setitem(DATASETS, "svhn", with_files(svhn.SVHN, sums))
    for file in svhn.FILES:
        (tmp_path / file).write_bytes(content)
    assert "all files verified" in load("svhn", tmp_path).source


def test_malformed_svhn():
    good = svhn_arrays()
    for content, message in (
        (b"", "not a MATLAB 5 file"),
        (b"hello" * 100, "not a MATLAB 5 file"),
        (mat(**good)[:-5000], "not a MATLAB 5 file|X must be"),
        (mat(compress=True, **good)[:-5000], "not a MATLAB 5 file"),
        (mat(X=good["X"]), "expected the arrays X and y"),
        (mat(X=good["X"][:30], y=good["y"]), r"X must be uint8 \(32, 32, 3, N\)"),
        (mat(X=good["X"], y=good["y"][:-1]), r"y must hold integers \(20, 1\)"),
        (mat(X=good["X"], y=good["y"] - 1), r"labels must lie in 1\.\.10, got 0\.\.9"),
        (mat(X=good["X"], y=good["y"] + 1), r"labels must lie in 1\.\.10, got 2\.\.11"),
    ):
        with pytest.raises(UserError, match=message):
            svhn.parse_mat(content, "file")


# ---- .npz ------------------------------------------------------------------------------


def pictures(n=20, shape=(6, 5, 3), classes=4):
    x = np.random.default_rng(3).integers(0, 256, (n, *shape)).astype(np.uint8)
    return x, np.arange(n) % classes


def saved(tmp_path, **arrays):
    path = tmp_path / "mine.npz"
    np.savez(path, **arrays)
    return path


@pytest.mark.parametrize("keys", npz.SPLIT, ids=" ".join)
@pytest.mark.parametrize("layout", ["NHWC", "NCHW", "NHW"])
@pytest.mark.parametrize("kind", ["uint8", "float64"])
def test_npz_with_a_test_set(tmp_path, keys, layout, kind):
    x, y = pictures(shape=(6, 5) if layout == "NHW" else (6, 5, 3))
    first = x[:, None] if layout == "NHW" else x.transpose(0, 3, 1, 2)
    stored = first if layout == "NCHW" else x
    stored = stored / 255 if kind == "float64" else stored
    values = (stored[:12], y[:12].astype(np.int32), stored[12:], y[12:, None].astype(np.uint8))
    names = [key.format(part) for part in ("train", "test") for key in keys]
    path = saved(tmp_path, **dict(zip(names, values, strict=True)), other=np.zeros(3))
    dataset = load(path)
    expected = torch.from_numpy(np.ascontiguousarray(first))
    if kind == "float64":
        expected = (expected.double() / 255).float()
    assert torch.equal(torch.cat([dataset.train.x, dataset.test.x]), expected)
    assert torch.equal(torch.cat([dataset.train.y, dataset.test.y]), torch.from_numpy(y))
    assert dataset.name == "mine"
    assert dataset.classes == ("0", "1", "2", "3")
    assert (dataset.eps, dataset.pad, dataset.flip) == (8 / 255, 0, False)
    mean = dataset.train.pixels().double().mean((0, 2, 3))
    assert dataset.mean == pytest.approx(mean.tolist())
    assert str(path) in dataset.source


@pytest.mark.parametrize("keys", [*npz.SPLIT, ("{}_X", "{}_Y")], ids=" ".join)
@pytest.mark.parametrize("name", npz.PARTS["validation"])
def test_npz_with_validation_images(tmp_path, keys, name):
    x, y = pictures()
    parts = {"train": slice(8), name: slice(8, 14), "test": slice(14, 20)}
    arrays = {
        key.format(part): values[rows]
        for part, rows in parts.items()
        for key, values in zip(keys, (x, y), strict=True)
    }
    dataset = load(saved(tmp_path, **arrays))
    assert torch.equal(dataset.validation.y, torch.from_numpy(y[8:14]))
    assert dataset.sha256["validation_x"] == sha256(dataset.validation.x.numpy().tobytes())


def test_npz_with_test_images_alone_is_for_judging(tmp_path):
    x, y = pictures()
    dataset = load(saved(tmp_path, x_test=x, y_test=y))
    assert (len(dataset.train), len(dataset.test), dataset.channels) == (0, 20, 3)
    assert len(dataset.classes) == 4


def test_npz_of_16_bits_is_scaled_and_that_is_said(tmp_path):
    x, y = pictures()
    said = []
    deep = np.minimum(x.astype(np.uint32) * 257 + 100, 65535).astype(np.uint16)
    path = saved(tmp_path, x=deep, y=y)
    console = SimpleNamespace(say=said.append)
    dataset = load(path, console=console)
    assert torch.equal(dataset.train.x, load(saved(tmp_path, x=x, y=y)).train.x)
    assert "16 bits a value, divided by 257; the highest is" in said[0]
    assert "a fifth of the images" in said[1]


@pytest.mark.parametrize(
    ("shape", "channels"),
    [((9, 20, 20), 9), ((20, 20, 16), 16), ((8, 8, 4), 4), ((5, 12, 12), 5), ((12, 12, 2), 2)],
)
def test_npz_of_many_channels(tmp_path, shape, channels):
    x = np.zeros((20, *shape), np.uint8)
    assert load(saved(tmp_path, x=x, y=np.arange(20) % 4)).channels == channels


@pytest.mark.parametrize("keys", npz.WHOLE, ids=" ".join)
def test_npz_without_a_test_set(tmp_path, keys):
    x, y = pictures(n=40)
    path = saved(tmp_path, **dict(zip(keys, (x, y), strict=True)))
    dataset, again = load(str(path)), load(path)
    assert (len(dataset.train), len(dataset.test)) == (32, 8)
    assert dataset.test.y.bincount().tolist() == [2, 2, 2, 2]
    assert dataset.sha256 == again.sha256
    assert "fifth" in dataset.source


def test_npz_options(tmp_path):
    x, y = pictures()
    names = np.array(["ant", "bee", "cow", "dog", "eel"])
    dataset = load(saved(tmp_path, x=x, y=y, classes=names, eps=0.1, pad=2, flip=True))
    assert dataset.classes == tuple(names.tolist())
    assert (dataset.eps, dataset.pad, dataset.flip) == (0.1, 2, True)


def with_nan(x):
    x = x / 255
    x[3, 1, 1] = np.nan
    return x


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": lambda x: with_nan(x)}, "3 values of the images are not finite"),
        ({"x": lambda x: x.astype(np.float32)}, r"0\.\.255: divide by 255"),
        ({"x": lambda x: x / 128 - 1}, "normalised: undo that"),
        ({"x": lambda x: x.astype(np.int64)}, "must be uint8, uint16 or floating"),
        ({"x": lambda x: x[:, :, :, :2]}, "which axis"),
        ({"x": lambda x: x.reshape(20, 3, 10, 3)}, "which axis"),
        ({"x": lambda x: x.reshape(20, -1)}, r"\(20, 90\)"),
        ({"x": lambda x: x[:0], "y": lambda y: y[:0]}, "0 images"),
        ({"x": lambda x: x[:-1]}, "19 images.*20 labels"),
        ({"y": lambda y: np.eye(4)[y]}, "one-hot"),
        ({"y": lambda y: y + 0.5}, "labels must be integers"),
        ({"y": lambda y: y - 1}, r"labels must lie in 0\.\.K-1, got -1"),
        ({"y": lambda y: y + 1}, "the highest is 4, but 0 does not occur"),
        ({"y": lambda y: y * 10**6}, "but 1 does not occur"),
        ({"classes": lambda _: np.array(["a", "b"])}, "label 3 is out of range"),
        ({"eps": lambda _: np.float64(8)}, r"eps must lie in \(0, 1\]"),
        ({"pad": lambda _: np.array([1, 2])}, "pad must be one number"),
    ],
)
def test_npz_refuses(tmp_path, change, message):
    x, y = pictures()
    arrays = {"x": x, "y": y}
    arrays |= {key: function(arrays.get(key)) for key, function in change.items()}
    with pytest.raises(UserError, match=message) as caught:
        load(saved(tmp_path, **arrays))
    assert "mine.npz" in str(caught.value)


def test_npz_refuses_files_that_are_not_such_a_file(tmp_path):
    x, y = pictures()
    with pytest.raises(UserError, match=r"expected train_x.*there are pixels, y"):
        load(saved(tmp_path, pixels=x, y=y))
    with pytest.raises(UserError, match="differ in shape or type"):
        load(saved(tmp_path, train_x=x, train_y=y, test_x=x[:, :5], test_y=y))
    with pytest.raises(UserError, match="Object arrays"):
        load(saved(tmp_path, x=x, y=np.array([Reduces(os.system, "touch owned")] * 20)))
    assert not Path("owned").exists()
    path = saved(tmp_path, x=x, y=y)
    whole = path.read_bytes()
    for length in (0, 10, len(whole) // 2, len(whole) - 10):
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match="cut short or no"):
            load(path)
    damaged = bytearray(whole)
    damaged[400] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(UserError, match="cut short or no"):
        load(path)
    with path.open("wb") as file:
        np.save(file, x)
    with pytest.raises(UserError, match="single array"):
        load(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x", b"no array")
        archive.writestr("y", b"no array")
    with pytest.raises(UserError, match="labels must be integers"):
        load(path)
    with pytest.raises(UserError, match="cannot read"):
        load(tmp_path / "absent.npz")


# ---- downloads -------------------------------------------------------------------------


class Handler(BaseHTTPRequestHandler):
    """Serves ``server.files``; each entry of ``server.plan`` spoils one request."""

    def do_GET(self):
        server = self.server
        server.asked.append((self.path, self.headers["Range"]))
        event = server.plan.pop(0) if server.plan else None
        content = server.files.get(self.path.lstrip("/"))
        if isinstance(event, str):
            self.send_response(302)
            self.send_header("Location", event)
            return self.end_headers()
        if content is None or (event and event >= 400 and event < 600):
            return self.send_error(event or 404)
        asked = self.headers["Range"] if server.ranges else None
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked else 0
        if asked and start >= len(content):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(content)}")
            return self.end_headers()
        self.send_response(206 if asked else 200)
        if asked:
            shown = start + server.shift
            self.send_header("Content-Range", f"bytes {shown}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        self.wfile.write(content[start : -event if event else None])
        return None

    def log_message(self, *arguments):
        pass


@contextmanager
def serving(files):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.files, server.plan, server.asked = files, [], []
    server.ranges, server.shift = True, 0
    server.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


CONTENT = np.random.default_rng(4).bytes(700_000)
SUM = f"sha256:{sha256(CONTENT)}"


@pytest.fixture
def server():
    with serving({"file": CONTENT}) as running:
        yield running


def pull(server, path, checksum=SUM, **options):
    options = {"progress": False, "pause": 0.01} | options
    return download(f"{server.url}/{path.name}", path, checksum, **options)


def test_download(server, tmp_path, capsys):
    path = tmp_path / "file"
    assert pull(server, path, progress=True) == path
    assert path.read_bytes() == CONTENT
    assert "file" in capsys.readouterr().err
    assert pull(server, path).read_bytes() == CONTENT
    assert server.asked == [("/file", None)]  # what is there is not downloaded again
    assert list(tmp_path.glob("file*")) == [path]


def test_download_of_gzip_is_checked_by_content(server, tmp_path):
    server.files["file"] = gzip.compress(CONTENT, 1, mtime=7)
    path = pull(server, tmp_path / "file", gunzip=True)
    assert gzip.decompress(path.read_bytes()) == CONTENT
    server.files["other"] = CONTENT
    with pytest.raises(RunError, match="uncompressed content, got no whole gzip file"):
        pull(server, tmp_path / "other", gunzip=True)


def test_wrong_checksum(server, tmp_path):
    wrong = "sha256:" + "0" * 64
    with pytest.raises(RunError) as caught:
        pull(server, tmp_path / "file", wrong)
    for part in (server.url, "0" * 64, sha256(CONTENT), "deleted"):
        assert part in str(caught.value)
    assert not list(tmp_path.glob("file*"))


def test_a_wrong_file_makes_room(server, tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"mine")
    pull(server, path)
    assert path.read_bytes() == CONTENT
    assert (tmp_path / "file.wrong").read_bytes() == b"mine"


def test_broken_transfer_is_resumed(server, tmp_path):
    server.plan = [200_000, 503]
    pull(server, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert server.asked == [
        ("/file", None),
        ("/file", "bytes=500000-"),
        ("/file", "bytes=500000-"),
    ]


def test_broken_transfer_is_kept_for_the_next_command(server, tmp_path):
    server.plan = [300_000, 200_000, 100_000]
    with pytest.raises(RunError, match=r"failed 3 times.*600000 bytes are kept in .*file\.part"):
        pull(server, tmp_path / "file")
    assert (tmp_path / "file.part").read_bytes() == CONTENT[:600_000]
    assert not (tmp_path / "file").exists()
    pull(server, tmp_path / "file")
    assert server.asked[-1] == ("/file", "bytes=600000-")
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert not (tmp_path / "file.part").exists()


def test_server_without_ranges(server, tmp_path):
    server.ranges = False
    server.plan = [300_000]
    pull(server, tmp_path / "file")
    assert server.asked[-1] == ("/file", "bytes=400000-")
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_server_that_sends_another_range(server, tmp_path):
    server.shift = 1
    server.plan = [300_000]
    pull(server, tmp_path / "file")
    assert [asked for _, asked in server.asked] == [None, "bytes=400000-", None]
    assert (tmp_path / "file").read_bytes() == CONTENT


@pytest.mark.parametrize("extra", [b"", b"tail"])
def test_part_that_is_whole_or_too_long(server, tmp_path, extra):
    (tmp_path / "file.part").write_bytes(CONTENT + extra)
    pull(server, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert len(server.asked) == (2 if extra else 1)


def test_answers_that_are_final(server, tmp_path):
    with pytest.raises(RunError, match="HTTP 404"):
        pull(server, tmp_path / "absent")
    assert len(server.asked) == 1
    server.plan = [500, 502, 503]
    with pytest.raises(RunError, match=r"failed 3 times \(HTTP 503.*nothing is kept"):
        pull(server, tmp_path / "file")


def test_nobody_answers(tmp_path):
    with serving({}) as server:
        pass
    with pytest.raises(RunError, match="failed 2 times"):
        pull(server, tmp_path / "file", attempts=2)


def test_a_file_larger_than_the_published_one_is_cut_off(server, tmp_path):
    with pytest.raises(RunError, match="it has 700000 bytes, more than 600000; it was deleted"):
        pull(server, tmp_path / "file", largest=600_000)
    assert not list(tmp_path.glob("file*"))
    assert pull(server, tmp_path / "file", largest=len(CONTENT)).read_bytes() == CONTENT


def test_a_gzip_that_holds_more_than_the_published_file_is_not_read_to_its_end(server, tmp_path):
    bomb = gzip.compress(bytes(2**24), 1)
    server.files["file"] = bomb * 60  # a gigabyte in 4 MB
    read = []

    def counted(file, limit):
        for block in blocks(file, limit):
            read.append(len(block))
            yield block

    blocks = fetch._blocks
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fetch, "_blocks", counted)
        with pytest.raises(RunError, match="is not the published file"):
            pull(server, tmp_path / "file", gunzip=True, largest=2**23)
    assert sum(read) == 2**23 + 1
    assert not list(tmp_path.glob("file*"))


def test_only_http(server, tmp_path):
    (tmp_path / "secret").write_text("secret")
    for url in (f"file://{tmp_path}/secret", "ftp://127.0.0.1/file", "/etc/hostname", "file"):
        with pytest.raises(UserError, match="expected an http or https address"):
            download(url, tmp_path / "file", SUM, progress=False)
    for url in (f"file://{tmp_path}/secret", "ftp://127.0.0.1/file"):
        server.plan = [url]
        with pytest.raises(RunError):
            pull(server, tmp_path / "file", attempts=1)
    server.plan = [f"{server.url}/file"]
    assert pull(server, tmp_path / "file").read_bytes() == CONTENT


def test_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "svhn").write_text("a file")
    with pytest.raises(UserError, match="cannot create"):
        get("svhn", tmp_path, base="http://127.0.0.1:9", progress=False)


def published(monkeypatch, arrays):
    """Make ``arrays`` the published MNIST; return what a server of it has."""

    fake = known_mnist(arrays)
    sums = {f"{name}.gz": checksum for name, checksum in fake.forms[0].files.items()}
    remote = Remote(base="http://127.0.0.1:9/", files=sums, gunzip=True)
    monkeypatch.setitem(DATASETS, "mnist", replace(fake, remote=remote))
    return {f"mirror/{name}.gz": gzip.compress(idx(a), 1) for name, a in arrays.items()}


def test_get(tmp_path, monkeypatch):
    files = published(monkeypatch, fake_mnist())
    with serving(files) as server:
        folder = get("mnist", tmp_path, base=f"{server.url}/mirror/", progress=False)
        assert folder == tmp_path / "mnist"
        assert "verified" in load("mnist", tmp_path).source
        assert len(server.asked) == 4
        get("mnist", tmp_path, base=f"{server.url}/mirror", progress=False)
        assert len(server.asked) == 4
        name = sorted(folder.iterdir())[0]
        name.write_bytes(b"damaged")
        get("mnist", tmp_path, base=f"{server.url}/mirror", progress=False)
        assert len(server.asked) == 5
        monkeypatch.setenv("EQUIPOISE_DATA", str(tmp_path / "env"))
        where = get("mnist", base=f"{server.url}/mirror", progress=False)
        assert where == tmp_path / "env" / "mnist"
        monkeypatch.delenv("EQUIPOISE_DATA")
        where = get("mnist", base=f"{server.url}/mirror", progress=False)
        assert where == Path.home() / ".cache" / "equipoise" / "mnist"
        assert "verified" in load("mnist").source


def command(monkeypatch, capsys, *arguments):
    """Run the command line; return its exit code and the lines of standard error."""

    monkeypatch.setattr(sys, "argv", ["equipoise", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    return stopped.value.code, capsys.readouterr()


def test_get_on_the_command_line(tmp_path, monkeypatch, capsys):
    files = published(monkeypatch, fake_mnist())
    wanted = ["data", "get", "mnist", "--data-dir", tmp_path, "--quiet"]
    code, said = command(monkeypatch, capsys, *wanted)
    assert code == 2
    assert "--yes" in said.err
    assert said.err.count("\n") == 1
    with serving(files) as server:
        mirror = ["--base", f"{server.url}/mirror", "--yes"]
        code, said = command(monkeypatch, capsys, *wanted, *mirror)
        assert (code, said.err) == (0, "")
        assert str(tmp_path / "mnist") in said.out.replace("\n", "")
        code, said = command(monkeypatch, capsys, "data", "--data-dir", tmp_path)
        assert "mnist: found" in said.out
    with serving({name: gzip.compress(b"another file") for name in files}) as server:
        mirror = ["--base", f"{server.url}/mirror", "--yes"]
        wanted[4] = tmp_path / "wrong"
        code, said = command(monkeypatch, capsys, *wanted, *mirror)
    assert code == 1
    assert said.err.count("\n") == 1
    assert "expected" in said.err
    assert not list((tmp_path / "wrong").rglob("*-ubyte*"))


def test_get_what_needs_no_download():
    with pytest.raises(UserError, match="nothing to download"):
        get("digits")


def test_remotes_are_official():
    remotes = {name: source.remote for name, source in DATASETS.items() if source.remote}
    assert set(remotes) == set(DATASETS) - {"digits"}
    for remote in remotes.values():
        assert remote.base.startswith(("http://", "https://"))
        assert all(sum_.partition(":")[0] == "sha256" for sum_ in remote.files.values())
    assert list(remotes["svhn"].files) == ["train_32x32.mat", "test_32x32.mat"]


# ---- the real sets ---------------------------------------------------------------------


def real(name):
    """The real dataset, or a skip that says why."""

    if DATASETS[name].missing(REAL / name):
        pytest.skip(f"no complete {name} in {REAL / name} (set EQUIPOISE_DATA)")
    return load(name, REAL)


@pytest.mark.data
class TestReal:
    @pytest.mark.slow
    @pytest.mark.parametrize("name", ["mnist", "fashion-mnist", "cifar10", "svhn"])
    def test_set(self, name):
        dataset = real(name)
        assert "verified" in dataset.source
        assert "unverified" not in dataset.source
        assert len(dataset.train) + len(dataset.test) == DATASETS[name].n
        mean, std = core.moments(dataset.train.x)
        assert dataset.mean == pytest.approx(mean, abs=6e-5)
        assert dataset.std == pytest.approx(std, abs=6e-5)
        assert set(dataset.train.y.tolist()) == set(range(10))

    def test_mnist_is_not_fashion_mnist(self):
        real("mnist")
        with pytest.raises(UserError, match="is a file of mnist, not of fashion-mnist"):
            load("fashion-mnist", REAL / "mnist")

    def test_cifar10_fingerprints(self):
        dataset = real("cifar10")
        first = dataset.test.x[:1000].permute(0, 2, 3, 1).contiguous().numpy()
        assert sha256(first.tobytes()) == CIFAR10["first test images"]
        assert dataset.sha256["train_y"] == CIFAR10["train_y"]
        assert dataset.sha256["test_y"] == CIFAR10["test_y"]

    def test_lossless_part_of_cifar10(self):
        path = REAL / "cifar10" / "cifar10_lossless_subset.npz"
        if not path.is_file():
            pytest.skip(f"no {path}")
        dataset = load(path)
        assert (len(dataset.train), len(dataset.test)) == (8068, 1017)
        first = dataset.test.x[:1000].permute(0, 2, 3, 1).contiguous().numpy()
        assert sha256(first.tobytes()) == CIFAR10["first test images"]


CIFAR10 = {
    "first test images": "da362006b99671213d1a5d856cab2bedf64d40bad4501630ee60f4ceb2d3ec7f",
    "train_y": "2b7cd2f24487317614016b72ffd53071c3062f592f0eb300c18a770d41ae1253",
    "test_y": "cec8a24a1e92aa2ecaa0bbd3dbfa86bf6cd8759fbd209a832824c8cf0afca9d5",
}


@pytest.mark.parametrize("value", [-2.98e-8, 1.0000001])
def test_npz_brings_back_what_rounding_has_carried_out_of_the_range(tmp_path, value):
    x = np.full((20, 8, 8), 0.5, np.float32)
    x[0, 0, 0] = value
    np.savez(tmp_path / "a.npz", x=x, y=np.arange(20) % 2)
    with pytest.warns(UserWarning, match="set to the border"):
        dataset = load(tmp_path / "a.npz")
    both = torch.cat([dataset.train.x, dataset.test.x])
    assert both.min() == min(0.5, max(value, 0))
    assert both.max() == max(0.5, min(value, 1))


@pytest.mark.parametrize(
    ("value", "said"), [(1.002, "out by 0.002; x.clip"), (-0.4, "out by 0.4")]
)
def test_npz_says_by_how_much_the_range_is_left(tmp_path, value, said):
    x = np.full((20, 8, 8), 0.5, np.float64)
    x[0, 0, 0] = value
    np.savez(tmp_path / "a.npz", x=x, y=np.arange(20) % 2)
    with pytest.raises(UserError, match=said):
        load(tmp_path / "a.npz")
