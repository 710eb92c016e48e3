"""Which images an evaluation takes: a stratified sample that depends on nothing but the images."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from equipoise import data
from equipoise.data import Images, draw, image_digests
from equipoise.data.sampling import SEED
from equipoise.errors import RunError, UserError
from equipoise.evaluation.stored import Store
from equipoise.execution import Execution
from equipoise.fronts.front import Front
from equipoise.fronts.record import FrontRecord
from equipoise.jobs.evaluate import evaluate_run
from equipoise.jobs.verify import verify_run
from equipoise.measures.statistics import interval
from equipoise.plans.plan import parse
from equipoise.plans.prepare import Datasets, tasks
from equipoise.sample import Sample
from equipoise.store.digests import tensor_digest
from equipoise.store.runs import Run

COUNTS = {
    "even": [30] * 10,
    "one large, many small": [900, *[10] * 10],
    "long tail": [500, 250, 120, 60, 30, 15, 7, 3, 1],
    "one class": [40],
    "a class of one": [200, 1],
    "more classes than images of one": [2] * 60,
}


def images_of(counts, seed: int = 0) -> Images:
    generator = torch.Generator().manual_seed(seed)
    y = torch.cat([torch.full((n,), k) for k, n in enumerate(counts)])
    y = y[torch.randperm(len(y), generator=generator)]
    return Images(torch.randint(0, 256, (len(y), 1, 4, 4), generator=generator).byte(), y)


def shuffled(images: Images, seed: int) -> Images:
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    return images.take(order)


@pytest.mark.parametrize("counts", COUNTS.values(), ids=COUNTS)
def test_every_prefix_is_stratified_to_within_one_image_a_class(counts):
    images = images_of(counts)
    every, sample = draw(images, None)
    assert (sample.n, sample.of) == (len(images), len(images))
    taken = nn.functional.one_hot(every.y, len(counts)).cumsum(0)
    n = torch.arange(1, len(images) + 1)[:, None]
    exact = n * torch.tensor(counts)  # times the number of images: whole numbers
    assert int((taken * len(images) - exact).abs().max()) < len(images)


@pytest.mark.parametrize("counts", COUNTS.values(), ids=COUNTS)
def test_the_sample_of_n_is_the_beginning_of_every_larger_one(counts):
    images = images_of(counts)
    every, _ = draw(images, None)
    for n in {1, 2, len(images) // 3, len(images) - 1, len(images)}:
        part, sample = draw(images, n)
        assert sample.n == n
        assert torch.equal(part.x, every.x[:n])
        assert torch.equal(part.y, every.y[:n])


@pytest.mark.parametrize("counts", COUNTS.values(), ids=COUNTS)
def test_the_order_of_the_file_has_no_part_in_it(counts):
    images = images_of(counts)
    for n in (1, len(images) // 2, None):
        one, sample = draw(images, n)
        for seed in (1, 2):
            other, again = draw(shuffled(images, seed), n)
            assert again == sample
            assert torch.equal(other.x, one.x)
            assert torch.equal(other.y, one.y)


def test_bytes_and_the_same_values_as_floats_give_the_same_sample():
    images = images_of([20, 20])
    one, sample = draw(images, 15)
    other, again = draw(Images(images.pixels(), images.y), 15)
    assert again == sample
    assert torch.equal(other.x, one.pixels())


def test_all_images_are_taken_once():
    images = images_of([20, 30, 7])
    every, sample = draw(images, len(images))
    key = images.x.reshape(len(images), -1).tolist()
    assert sorted(every.x.reshape(len(images), -1).tolist()) == sorted(key)
    assert draw(images, len(images), first=True)[1] == sample == draw(images, None)[1]


def test_a_seed_draws_another_sample_and_the_same_one_again():
    images = images_of([100, 100])
    one, other = draw(images, 50, seed=1), draw(images, 50, seed=3)
    assert one[1].sha256 != other[1].sha256 != draw(images, 50)[1].sha256
    assert draw(images, 50, seed=1)[1] == one[1]
    assert draw(images, None, seed=1)[1].sha256 == draw(images, None)[1].sha256  # all: the same


def test_the_sample_does_not_follow_the_file():
    images = images_of([500] * 10)
    marked = Images(torch.arange(5000).reshape(-1, 1, 1, 1).float() / 5000, images.y)
    place = draw(marked, 1000)[0].x.reshape(-1).double()
    assert abs(float(place.mean()) - 0.5) < 4 * (1 / 12 / 1000) ** 0.5
    assert abs(float(place[:100].mean()) - 0.5) < 4 * (1 / 12 / 100) ** 0.5


def test_copies_of_an_image_do_not_stand_side_by_side():
    base = images_of([50, 50])
    ten = Images(base.x.repeat(10, 1, 1, 1), base.y.repeat(10))
    part, sample = draw(ten, 100)
    again, same = draw(shuffled(ten, 3), 100)
    assert torch.equal(part.x, again.x)
    assert sample == same
    different = len({tuple(image) for image in part.x.reshape(100, -1).tolist()})
    # 100 of 1,000 without regard for copies are 65 different ones on average.
    assert different > 50


def test_the_same_image_with_several_labels_is_drawn_the_same_whatever_the_order():
    x = torch.zeros(40, 1, 2, 2, dtype=torch.uint8)
    images = Images(x, torch.arange(40) % 4)
    labels = draw(images, 10)[0].y
    assert torch.equal(draw(shuffled(images, 5), 10)[0].y, labels)
    assert sorted(torch.bincount(labels, minlength=4).tolist()) == [2, 2, 3, 3]


def test_first_is_the_order_of_the_file():
    images = images_of([30, 30])
    part, sample = draw(images, 25, first=True)
    assert torch.equal(part.x, images.x[:25])
    assert (sample.seed, sample.short) == (None, "first")
    assert sample.words("test images") == "the first 25 of 60 test images"
    assert draw(images, 25)[1].words() == "a stratified sample of 25 of 60 images, seed 2"
    assert draw(images, None)[1].words() == "all 60 images"
    assert Sample.of_content(json.loads(json.dumps(sample.content()))) == sample


@pytest.mark.parametrize("n", [0, -1, 61])
def test_a_number_of_images_that_is_not_there_is_refused(n):
    for first in (False, True):
        with pytest.raises(UserError, match=r"1\.\.60"):
            draw(images_of([30, 30]), n, first=first)


def test_the_first_without_their_number_are_refused(command, trained, tmp_path):
    with pytest.raises(UserError, match="first: expected n"):
        draw(images_of([30, 30]), None, first=True)
    run = Path(shutil.copytree(trained, tmp_path / "run"))
    for words in (("evaluate", run, "--attacks", "fgsm"), ("front", run, "--attacks", "pgd-1")):
        ended = command(*words, "--first")
        assert (ended.code, ended.out) == (2, "")
        assert "first: expected n" in ended.err.splitlines()[-1]
    plan = {
        "base": {"data": "digits", "rounds": 2},
        "entries": {"pgd-at": {}},
        "evaluate": {"attacks": "fgsm", "first": True},
    }
    with pytest.raises(UserError, match="first: expected n"):
        tasks(parse(plan), tmp_path, Datasets())
    with pytest.raises(UserError, match=r"evaluate\.first: "):
        parse(plan | {"evaluate": {"attacks": "fgsm", "n": 5, "first": 1}})
    plan |= {"evaluate": {"attacks": "fgsm", "n": 5, "first": True}}
    (task,) = tasks(parse(plan), tmp_path, Datasets())
    sample = task.evaluations[0].sample
    assert (sample.n, sample.seed) == (5, None)


def test_a_class_that_is_not_in_the_first_images_is_warned_of(command, tmp_path):
    (tmp_path / "mine.py").write_text(
        "from torch import nn\nnet = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))\n"
    )
    images = images_of([40, 40, 40])
    own(tmp_path, images.take(images.y.argsort()), "sorted.npz")
    words = ("--model", "mine:net", "--data", "sorted.npz", "--attacks", "fgsm", "--eps", 0.1)
    for more, warned in ((("--first",), True), ((), False)):
        ended = command("evaluate", *words, "-n", 20, "--no-checks", *more, cwd=tmp_path)
        assert ended.code == 0, ended.err
        assert ("1 of 3 classes" in ended.err) == warned


# --- evaluations ---


def evaluations(folder: Path) -> dict[str, dict]:
    """Return what evaluations of a folder are of, by name."""
    return {store.name: store.about() for store in Store.all(Run(folder))}


def test_evaluations_are_named_and_verified_by_their_sample(command, trained, tmp_path):
    run = Path(shutil.copytree(trained, tmp_path / "run"))
    words = ("evaluate", run, "--attacks", "fgsm", "--no-checks", "-n", 40)
    sampled = command(*words, "--eps", "0.1,0.2", "--json", tmp_path / "a.json")
    assert sampled.code == 0, sampled.err
    first = command(*words, "--eps", 0.1, "--first", "--json", tmp_path / "b.json")
    assert first.code == 0, first.err
    test = data.load("digits").test
    sample, start = draw(test, 40)[1], draw(test, 40, first=True)[1]
    assert {*evaluations(run)} == {
        f"linf-0.1-n40-{sample.sha256[:8]}",
        f"linf-0.2-n40-{sample.sha256[:8]}",
        "linf-0.1-n40-first",
    }
    for path, expected in ((tmp_path / "a.json", sample), (tmp_path / "b.json", start)):
        for record in json.loads(path.read_text()):
            assert Sample.of_content(record["sample"]) == expected
    assert sample.words("test images") in sampled.out
    assert start.words("test images") in first.out
    verified = verify_run(run)
    assert sorted(found.images for found in verified) == sorted(
        s.words("test images") for s in (sample, sample, start)
    )


@pytest.mark.slow
def test_what_is_gone_on_with_is_on_the_same_images(trained, tmp_path, monkeypatch):
    run = Path(shutil.copytree(trained, tmp_path / "run"))
    how = {"attacks": "fgsm", "eps": [0.1], "checks": False}
    kept = Store.write

    def interrupted(self, *arguments):
        kept(self, *arguments)
        raise KeyboardInterrupt

    def begin(**options):
        monkeypatch.setattr(Store, "write", interrupted)
        with pytest.raises(KeyboardInterrupt):
            evaluate_run(run, n=30, **options, **how)
        monkeypatch.setattr(Store, "write", kept)

    begin(first=True)
    with pytest.raises(UserError, match="no evaluation to continue"):
        evaluate_run(run, n=31, resume=True)
    records = evaluate_run(run, resume=True)
    assert {record["sample"]["seed"] for record in records} == {None}
    begin()
    (name,) = {*evaluations(run)} - {"linf-0.1-n30-first"}
    assert evaluations(run)[name]["sample"]["seed"] == SEED
    records = evaluate_run(run, n=30, resume=True)
    assert {record["sample"]["seed"] for record in records} == {SEED}


def test_verdicts_on_a_sample_stay_what_they_are_in_a_larger_one(trained, tmp_path):
    run = Path(shutil.copytree(trained, tmp_path / "run"))
    how = {"attacks": "pgd-3", "eps": [0.1], "checks": False}
    how["execution"] = Execution(precision="float32")
    for n in (50, 90):
        evaluate_run(run, n=n, **how)
    small, large = (store.read() for store in Store.all(Run(run)))
    assert torch.equal(small[2]["x"], large[2]["x"][:50])
    apart = small[1].robust != large[1].robust[:50]
    assert int(apart.sum()) <= 1  # a near-tie may turn with its batch


@pytest.mark.slow
@pytest.mark.parametrize("change", ["seed", "of", "sha256", "n", "lost", "text"])
def test_another_sample_than_is_said_is_found(trained, tmp_path, change):
    run = Path(shutil.copytree(trained, tmp_path / "run"))
    evaluate_run(run, n=30, attacks="fgsm", eps=[0.1], checks=False)
    (store,) = Store.all(Run(run))
    about, result, tensors = store.read()
    said = {"seed": {"seed": None}, "of": {"of": 30}, "sha256": {"sha256": "0" * 64}}
    about["sample"] |= said.get(change, {})
    if change == "n":
        about["n"] = 10**9
    if change == "lost":
        del about["sample"]["seed"]
    if change == "text":
        about["sample"] = "all"
    store.write(result, tensors["x"], about, {})
    with pytest.raises(RunError, match=r"sample|stored images"):
        verify_run(run)


@pytest.mark.parametrize("content", [None, "all", {"n": 30}, 3])
def test_an_evaluation_that_names_no_images_is_not_verified(trained, tmp_path, content):
    run = Path(shutil.copytree(trained, tmp_path / "run"))
    evaluate_run(run, n=30, first=True, attacks="fgsm", eps=[0.1], checks=False)
    (store,) = Store.all(Run(run))
    about, result, tensors = store.read()
    about["sample"] = content
    if content is None:
        del about["sample"]
    old = Store(Run(run), "linf-0.1-n30")
    old.write(result, tensors["x"], about, {})
    store.path.unlink()
    store.summary.unlink()
    with pytest.raises(RunError, match="damaged"):
        verify_run(run)
    with pytest.raises(UserError):
        evaluate_run(run, resume=True)


def own(folder: Path, images: Images, name: str) -> None:
    """Write a dataset whose test images are these."""
    np.savez(
        folder / name,
        x_train=images.x.numpy(), y_train=images.y.numpy(),
        x_test=images.x.numpy(), y_test=images.y.numpy(),
    )  # fmt: skip


@pytest.mark.slow
def test_examples_are_found_by_image_in_another_order_and_in_a_larger_sample(command, tmp_path):
    (tmp_path / "mine.py").write_text(
        "import torch\nfrom torch import nn\n"
        "torch.manual_seed(0)\nnet = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))\n"
    )
    images = images_of([40, 40, 40])
    own(tmp_path, images, "a.npz")
    own(tmp_path, shuffled(images, 1), "b.npz")

    def evaluated(name: str, attack: str, out: str, *words) -> int:
        ended = command(
            "evaluate", "--model", "mine:net", "--data", name, "--out", out, "--eps", 0.1,
            "--no-checks", "--precision", "float32", "--attacks", attack, *words, cwd=tmp_path,
        )  # fmt: skip
        return int(ended.code)

    def robust(out: str) -> dict[bytes, bool]:
        (store,) = Store.all(Run(tmp_path / out))
        _, result, tensors = store.read()
        return dict(zip(image_digests(tensors["x"]), result.robust.tolist(), strict=True))

    assert evaluated("a.npz", "fgsm", "all") == 0
    assert evaluated("b.npz", "square-1", "first", "-n", 50, "--first", "--transfer", "all") == 0
    assert evaluated("b.npz", "square-1", "sampled", "-n", 50, "--transfer", "all") == 0
    assert evaluated("b.npz", "square-1", "other", "-n", 51, "--transfer", "sampled") == 2
    assert evaluated("b.npz", "square-1", "alone", "-n", 50) == 0
    there = robust("all")
    for name in ("first", "sampled"):
        # The same linear model: its examples fool it again, and a query at random adds nothing.
        assert robust(name) == {image: there[image] for image in robust(name)}
    assert sum(robust("sampled").values()) < sum(robust("alone").values())


# --- fronts ---


def test_a_front_is_measured_on_a_sample_of_the_held_out_images(trained, tmp_path):
    run = Path(shutil.copytree(trained, tmp_path / "run"))
    front, how = Front(run), {"attacks": "pgd-1", "points": 4, "n": 25}
    front.measure(**how)
    held_out, sampled = front.images.validation, FrontRecord.read(run)
    drawn, sample = draw(held_out, 25)
    assert sampled.sample == sample
    assert sampled.data == tensor_digest(drawn.pixels())
    assert sampled.images == sample.words("held-out images")
    front.measure(first=True, **how)
    first = FrontRecord.read(run)
    assert (first.sample.n, first.sample.seed) == (25, None)
    assert first.data == tensor_digest(held_out.pixels(slice(25)))
    content = json.loads((run / "front.json").read_text())
    assert front.pick(max_clean_drop=0.9, standard=run).choice.point is not None
    (run / "front.json").write_text(json.dumps(content | {"sample": sample.content()}))
    with pytest.raises(UserError, match="held-out images; measure it again"):
        front.pick(max_clean_drop=0.9, standard=run)


REAL = Path(os.environ.get("EQUIPOISE_DATA") or Path(__file__).parents[2] / "shared" / "data")


@pytest.mark.slow
@pytest.mark.data
@pytest.mark.skipif(not (REAL / "mnist").is_dir(), reason="MNIST is not here")
def test_a_sample_of_mnist_estimates_what_all_images_give_and_the_first_ones_do_not():
    mnist = data.load("mnist", REAL)
    x, y = mnist.train.pixels(slice(0, 8960)), mnist.train.y[:8960]
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(784, 100), nn.ReLU(), nn.Linear(100, 10))
    optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9)
    for _ in range(3):
        for i in range(0, 8960, 128):
            optimizer.zero_grad()
            cross_entropy(net(x[i : i + 128]), y[i : i + 128]).backward()
            optimizer.step()

    def robust(images: Images) -> int:
        x = images.pixels().requires_grad_()
        (gradient,) = torch.autograd.grad(cross_entropy(net(x), images.y, reduction="sum"), x)
        answers = net((x + 0.05 * gradient.sign()).clamp(0, 1)).argmax(1)
        return int((answers == images.y).sum())

    true = robust(mnist.test) / len(mnist.test)
    low, high = interval(robust(draw(mnist.test, 500)[0]), 500)
    assert low <= true <= high
    low, high = interval(robust(draw(mnist.test, 500, first=True)[0]), 500)
    assert not low <= true <= high
