"""Corruptions: each by its formula, the same bits in every batch, stored, verified and shown."""

import colorsys
import json
import re
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import save_file
from torch import nn

import equipoise as eq
import zoo
from equipoise.data.corruptions import SEVERITIES, STRENGTHS, corrupted, to_bytes
from equipoise.draws import GeneratorDraws, KeyedDraws
from equipoise.errors import RunError, UserError
from equipoise.evaluation.corruptions import CELLS, measure
from equipoise.evaluation.judge import Judge
from equipoise.evaluation.protocol import Protocol
from equipoise.jobs import corruptions as job
from equipoise.jobs.corruptions import measure_run
from equipoise.jobs.target_model import of_run
from equipoise.jobs.verify import verify_run
from equipoise.report.page import build
from equipoise.store.corruptions import NOT, NOT_DONE, Corruptions, files
from equipoise.store.sealed import read_arrays, stamped
from equipoise.terminal.progress import Console
from problems import digits

ROOT = Path(__file__).resolve().parent.parent
PLACE = torch.device("cpu"), torch.float32
WORDS = ("standard", "rounds=6", "width=0.25", "validation=60")


def pictures(n=6, channels=3, height=11, width=14):
    """Images of 8 bits, with black and white among them."""
    generator = torch.Generator().manual_seed(channels)
    pixels = torch.randint(256, (n, channels, height, width), generator=generator)
    pixels[0, :, 0], pixels[0, :, 1] = 0, 255
    return pixels.float() / 255


def made(x, kind, severity, seed=0):
    return corrupted(x, kind, severity, KeyedDraws.of(x, seed))


@pytest.fixture(scope="module")
def some():
    x, y = digits()
    return x[zoo.TRAINED_ON :][:40], y[zoo.TRAINED_ON :][:40]


@pytest.fixture(scope="module")
def trained(command, tmp_path_factory):
    folder = tmp_path_factory.mktemp("corruptions") / "run"
    assert command("train", *WORDS, "--data", "digits", "--out", folder, "eps=0.1").code == 0
    return folder


@pytest.fixture(scope="module")
def measured(command, trained):
    """A run folder with an evaluation and the corruptions of the same images, and the output."""
    words = ("evaluate", trained, "--attacks", "pgd-2", "-n", "60", "--corruptions")
    ended = command(*words, "--no-checks", "--json", trained.parent / "results.json")
    assert ended.code == 0, ended.err
    return trained, ended


@pytest.fixture
def copy(measured, tmp_path):
    import shutil

    return Path(shutil.copytree(measured[0], tmp_path / "run"))


# The images


@pytest.mark.parametrize("severity", SEVERITIES)
def test_noise_has_its_standard_deviation(severity):
    x = torch.full((4, 3, 64, 64), 128 / 255)
    x[1:] += torch.arange(1, 4).view(3, 1, 1, 1) / 255  # else all have the same noise
    noise = (made(x, "gaussian-noise", severity) - x).double()
    sigma = STRENGTHS["gaussian-noise"][severity - 1]
    assert float(noise.std()) == pytest.approx(sigma, rel=0.02)  # of 49,152 numbers: 0.3 %
    assert abs(float(noise.mean())) < 4 * sigma / 221
    assert not torch.equal(made(x, "gaussian-noise", severity, seed=1) - x, noise.float())


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("severity", [1, 5])
def test_blur_is_a_gaussian_of_the_pixels_around(channels, severity):
    x, sigma = pictures(2, channels, 6, 5), STRENGTHS["gaussian-blur"][severity - 1]
    reach = int(4 * sigma + 0.5)
    steps = range(-reach, reach + 1)
    weight = {(i, j): np.exp(-(i * i + j * j) / (2 * sigma**2)) for i in steps for j in steps}
    naive = np.zeros(x.shape)
    for b, c, row, column in np.ndindex(*x.shape):
        for (i, j), w in weight.items():
            near = x[b, c, min(max(row + i, 0), 5), min(max(column + j, 0), 4)]
            naive[b, c, row, column] += w * float(near) / sum(weight.values())
    assert torch.equal(to_bytes(made(x, "gaussian-blur", severity)), to_bytes(torch.tensor(naive)))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("severity", SEVERITIES)
def test_jpeg_is_the_round_trip_of_pillow(channels, severity):
    x = pictures(3, channels)
    for image, ours in zip(x, made(x, "jpeg", severity), strict=True):
        file, pixels = BytesIO(), (255 * image).round().byte().permute(1, 2, 0).numpy()
        source = Image.fromarray(pixels[..., 0] if channels == 1 else pixels)
        source.save(file, "JPEG", quality=STRENGTHS["jpeg"][severity - 1])
        theirs = np.asarray(Image.open(file)).reshape(pixels.shape)
        assert np.array_equal(to_bytes(ours).permute(1, 2, 0).numpy(), theirs)


@pytest.mark.parametrize("severity", SEVERITIES)
def test_brightness_adds_to_the_value_and_leaves_hue_and_saturation(severity):
    x, more = pictures(2), STRENGTHS["brightness"][severity - 1]
    x[1, :, 3] = x[1, :1, 3]  # grey
    naive = torch.empty_like(x, dtype=torch.float64)
    for b, _, row, column in np.ndindex(2, 1, *x.shape[2:]):
        hue, saturation, value = colorsys.rgb_to_hsv(*x[b, :, row, column].tolist())
        rgb = colorsys.hsv_to_rgb(hue, saturation, min(value + more, 1))
        naive[b, :, row, column] = torch.tensor(rgb, dtype=torch.float64)
    assert torch.equal(to_bytes(made(x, "brightness", severity)), to_bytes(naive))
    grey = pictures(2, 1)
    bright = made(grey, "brightness", severity)
    assert torch.equal(to_bytes(bright), to_bytes((grey.double() + more).clamp(0, 1)))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("severity", SEVERITIES)
def test_contrast_shrinks_the_distance_from_the_mean_of_the_channel(channels, severity):
    x, factor = pictures(2, channels), STRENGTHS["contrast"][severity - 1]
    mean = x.double().flatten(2).mean(2)[..., None, None]
    naive = mean + factor * (x.double() - mean)
    assert torch.equal(to_bytes(made(x, "contrast", severity)), to_bytes(naive))


@pytest.mark.parametrize("kind", STRENGTHS)
@pytest.mark.parametrize("channels", [1, 3])
def test_an_image_is_corrupted_alike_in_every_batch_and_order(kind, channels):
    x = pictures(9, channels)
    for severity in SEVERITIES:
        together, order = made(x, kind, severity), torch.randperm(9)
        alone = torch.cat([made(x[i : i + 1], kind, severity) for i in range(9)])
        assert torch.equal(together, alone)
        assert torch.equal(together[order], made(x[order], kind, severity))
        draws = KeyedDraws.of(x, 0).select(order)
        assert torch.equal(together[order], corrupted(x[order], kind, severity, draws))
        bits = to_bytes(together)
        assert torch.equal(together, bits.float() / 255)
        assert torch.equal(to_bytes(made(x.double(), kind, severity)), bits)
        assert made(x.double(), kind, severity).dtype == torch.float64


@pytest.mark.parametrize("kind", STRENGTHS)
def test_a_higher_severity_changes_more(kind):
    x = pictures(8, 3, 32, 32)
    away = [float((made(x, kind, severity) - x).norm()) for severity in SEVERITIES]
    assert away == sorted(away)
    assert away[0] > 0.1


@pytest.mark.parametrize("kind", STRENGTHS)
@pytest.mark.parametrize("shape", [(2, 1, 1, 1), (2, 3, 1, 5), (0, 3, 4, 4), (1, 3, 97, 130)])
def test_images_of_any_size(kind, shape):
    x = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    found = made(x, kind, 3)
    assert found.shape == x.shape
    assert bool(((found >= 0) & (found <= 1)).all())


def test_a_training_draws_other_noise_each_time():
    x = pictures()
    draws = GeneratorDraws(torch.Generator().manual_seed(0))
    first, second = (corrupted(x, "gaussian-noise", 3, draws) for _ in range(2))
    assert not torch.equal(first, second)
    again = GeneratorDraws(torch.Generator().manual_seed(0))
    assert torch.equal(first, corrupted(x, "gaussian-noise", 3, again))


BAD = {
    "no images": (torch.rand(4, 9), "jpeg", 1, "shape"),
    "two channels": (torch.rand(4, 2, 5, 5), "jpeg", 1, "shape"),
    "no pixels": (torch.rand(4, 1, 0, 5), "jpeg", 1, "shape"),
    "bytes": (torch.zeros(4, 1, 5, 5, dtype=torch.uint8), "jpeg", 1, "divide by 255"),
    "too large": (torch.full((4, 1, 5, 5), 2.0), "contrast", 1, r"\[2, 2\]"),
    "NaN": (torch.full((4, 1, 5, 5), torch.nan), "contrast", 1, "nan"),
    "a kind": (torch.rand(4, 1, 5, 5), "gausian-noise", 1, "did you mean 'gaussian-noise'"),
    "severity 0": (torch.rand(4, 1, 5, 5), "jpeg", 0, "1 to 5, got 0"),
    "severity 6": (torch.rand(4, 1, 5, 5), "jpeg", 6, "1 to 5, got 6"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_corruption_of_images_is_refused_in_one_line(name):
    x, kind, severity, words = BAD[name]
    with pytest.raises(UserError, match=words) as caught:
        corrupted(x, kind, severity, GeneratorDraws(torch.Generator()))
    assert "\n" not in str(caught.value)


# The accuracies


def test_numbers_are_counted_from_predictions(some):
    x, y = some
    model = zoo.undefended()
    found = measure(Judge(model, 16), x, y, place=PLACE)
    for k, kind in enumerate(STRENGTHS):
        for severity in SEVERITIES:
            with torch.no_grad():
                correct = int((model(made(x, kind, severity)).argmax(1) == y).sum())
            assert found.correct[k, severity - 1] == correct
    assert found.finished
    assert found.by_kind["jpeg"] == pytest.approx(found.accuracy[2].mean())
    assert found.mean == pytest.approx(np.mean([*found.by_kind.values()]))
    assert found.mean == pytest.approx(np.mean(found.by_severity))
    assert 0.3 < found.mean < found.clean / found.n
    content = found.content()
    json.dumps(content, allow_nan=False)
    assert [row["correct"] for row in content["corruptions"]] == found.correct.flatten().tolist()
    assert content["corruptions"][6]["strength"] == 0.6
    assert NOT in repr(found)
    assert f"{found.mean:.2%}" in repr(found).splitlines()[7]


def test_an_interrupted_measurement_ends_with_the_same_predictions(some):
    x, y = some
    whole = measure(Judge(zoo.undefended(), 16), x, y, place=PLACE)
    latest, calls = [], []

    def stop(result):
        latest.append(result)
        if result.done.sum() == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure(Judge(zoo.undefended(), 16), x, y, place=PLACE, after=stop)
    part = latest[-1]
    assert not part.finished
    assert part.sentence == "7 of 25 corruptions are measured"
    assert part.content()["mean"] is None
    assert "–" in repr(part)
    assert [len(part.content()["corruptions"]), part.by_kind["gaussian-noise"] > 0] == [7, True]
    again = measure(
        Judge(zoo.undefended(), 16), x, y, place=PLACE, begun=part, advance=calls.append
    )
    assert sum(calls) == (len(CELLS) - 7) * len(x)
    assert np.array_equal(again.prediction, whole.prediction)


def test_a_model_that_fails_is_one_line(some):
    class Fails(nn.Module):
        calls = 0

        def forward(self, x):
            self.calls += 1
            if self.calls > 3:
                raise RuntimeError("boom")
            return x.flatten(1)[:, :10]

    with pytest.raises(RunError, match="fails on images with gaussian-noise 1") as caught:
        measure(Judge(Fails(), 16), *some, place=PLACE)
    assert "boom" in str(caught.value)
    with pytest.raises(UserError, match="one output"):
        measure(Judge(nn.Sequential(nn.Flatten(), nn.Linear(64, 1)), 16), *some, place=PLACE)


def test_from_python_they_stand_beside_the_verdicts(some):
    x, y = some
    given = {"threat": zoo.THREAT, "attacks": "pgd-3", "checks": False}
    with_, without = (
        eq.evaluate(zoo.undefended(), x, y, corruptions=flag, **given) for flag in (True, False)
    )
    assert with_.robust_accuracy == without.robust_accuracy
    assert torch.equal(with_.robust, without.robust)
    assert without.corruptions is None
    alone = measure(Judge(zoo.undefended(), 7), x, y, place=PLACE)
    assert np.array_equal(with_.corruptions.prediction, alone.prediction)
    assert "corruptions, no attack: mean accuracy" in repr(with_)
    with pytest.raises(UserError, match="shape"):
        eq.evaluate(nn.Linear(64, 10), x.flatten(1), y, corruptions=True, **given)


# The stored result


def test_the_command_prints_stores_and_writes_them(measured, trained):
    folder, ended = measured
    (path,) = files(folder)
    found = Corruptions.read(path)
    (evaluation,) = (folder / "evaluations").glob("*.safetensors")
    assert evaluation.stem == f"linf-0.1-{path.stem}"  # the same sample
    assert found.finished
    assert found.n == 60
    assert f"{found.mean:.2%}" in ended.out
    assert "Corruptions are no attack" in ended.out
    *records, last = json.loads((folder.parent / "results.json").read_text())
    assert last["corruptions"]["mean"] == found.mean
    assert [record["attack"] for record in records] == ["clean", "pgd-2", "worst-case"]
    lines = (folder / "records.jsonl").read_text()
    assert not any(kind in lines for kind in STRENGTHS)
    x, y = (read_arrays(evaluation)[1][name] for name in ("x", "y"))
    model = eq.load(folder)
    with torch.no_grad():
        expected = model(made(torch.from_numpy(x), "contrast", 5)).argmax(1).numpy()
    assert np.array_equal(found.prediction[4, 4], expected)
    assert np.array_equal(found.y, y)


def test_what_was_measured_is_not_measured_again(command, copy):
    (path,) = files(copy)
    before = path.read_bytes()
    words = ("evaluate", copy, "--attacks", "clean", "-n", "60", "--corruptions")
    ended = command(*words)
    assert ended.code == 0, ended.err
    assert "measured before, mean accuracy" in ended.err
    assert "Corruptions: accuracy, a stratified sample of 60" in ended.out
    assert path.read_bytes() == before


def test_it_is_continued_after_an_interruption_and_after_the_time(copy, monkeypatch):
    (path,) = files(copy)
    whole = Corruptions.read(path)
    path.unlink()
    subject = of_run(copy, "model", None, Console(quiet=True))
    part = measure_run(subject, Protocol(n=60), limit=0.0)
    assert (part.finished, part.done.any()) == (False, False)
    assert np.array_equal(Corruptions.read(path).clean_prediction, whole.clean_prediction)

    after = job._Measuring.after

    def stop(self, result):
        after(self, result)
        if result.done.sum() == 9:
            raise KeyboardInterrupt

    monkeypatch.setattr(job._Measuring, "after", stop)
    with pytest.raises(KeyboardInterrupt):
        measure_run(subject, Protocol(n=60))
    assert Corruptions.read(path).done.sum() == 9
    monkeypatch.undo()
    found = measure_run(subject, Protocol(n=60))
    assert np.array_equal(found.prediction, whole.prediction)
    assert np.array_equal(Corruptions.read(path).prediction, whole.prediction)


def test_with_a_time_that_is_over_the_command_ends_well(command, copy):
    for path in files(copy):
        path.unlink()
    words = ("evaluate", copy, "--attacks", "clean", "-n", "60", "--corruptions")
    ended = command(*words, "--time", "0.0001")
    assert ended.code == 0, ended.err
    assert "the same command continues" in ended.err
    assert "Not finished: 0 of 25 corruptions are measured" in ended.out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--resume",), "--resume continues attacks"),
        (("--norm", "l2"), "give the radius with --eps"),
        (("--eps", "-1"), "eps"),
        (("-n", "0"), "n must lie in"),
    ],
)
def test_bad_options_are_one_line(command, trained, words, said):
    ended = command("evaluate", trained, "--corruptions", "--attacks", "pgd-2", *words)
    assert ended.code == 2
    assert said in ended.line


def test_every_field_is_described(measured):
    page = (ROOT / "docs" / "formats.md").read_text(encoding="utf-8")
    pattern = r"^## (?:corruptions/|Objects that stand).*?(?=^## )"
    sections = re.findall(pattern, page, flags=re.DOTALL | re.MULTILINE)
    assert len(sections) == 2
    known = set(re.findall(r"`([a-z_0-9]+)`", "".join(sections)))
    (path,) = files(measured[0])
    metadata, arrays = read_arrays(path)
    content = json.loads(metadata["corruptions"])
    *_, last = json.loads((measured[0].parent / "results.json").read_text())
    shown = last["corruptions"]
    names = {*metadata, *arrays, *content, *content["about"], *shown, *shown["corruptions"][0]}
    assert names <= known


# Verify


def reseal(path, change):
    """Change a stored result, and make its checksums anew."""
    metadata, arrays = read_arrays(path)
    content = json.loads(metadata["corruptions"])
    arrays = {name: value.copy() for name, value in arrays.items()}
    change(arrays, content)
    said = {"format": metadata["format"], "corruptions": json.dumps(content)}
    save_file(arrays, path, metadata=stamped(arrays, said))


def test_verify_measures_again(command, measured, copy):
    ended = command("verify", measured[0])
    assert ended.code == 0, ended.err
    (path,) = files(measured[0])
    assert f"corruptions/{path.stem}: verified, mean accuracy" in ended.err
    for file in (copy / "evaluations").iterdir():
        file.unlink()
    with pytest.raises(RunError, match=r"records\.jsonl"):
        verify_run(copy)
    (copy / "records.jsonl").unlink()
    verify_run(copy)  # the attacks were interrupted before there was a result


FORGED = {
    "a prediction": (
        lambda arrays, content: arrays["prediction"][3, 2].__setitem__(0, 11),
        "the predictions on brightness 3 differ on 1 images",
    ),
    "predictions on JPEG": (
        lambda arrays, content: arrays["prediction"][2, 0].fill(0),
        "the predictions on jpeg 1 differ",
    ),
    "a clean prediction": (
        lambda arrays, content: arrays["clean_prediction"].__setitem__(1, 11),
        "the predictions on the images themselves differ on 1 images",
    ),
    "a label": (
        lambda arrays, content: arrays["y"].__setitem__(0, 7),
        "the labels are not those that are stored",
    ),
    "an example": (
        lambda arrays, content: arrays["examples"][0, 0].fill(0),
        "its example images differ",
    ),
    "strengths": (
        lambda arrays, content: content["strengths"]["jpeg"].__setitem__(0, 95),
        "the corruptions are not those that are stored",
    ),
    "weights": (
        lambda arrays, content: content["about"].__setitem__("model_sha256", "0" * 64),
        "the weights of the model are not those that are stored",
    ),
    "other weights": (
        lambda arrays, content: content["about"].__setitem__("weights", "../../x"),
        "unknown weights '../../x'",
    ),
    "a sample": (
        lambda arrays, content: content["about"]["sample"].__setitem__("seed", 5),
        "the sample",
    ),
    "no sample": (
        lambda arrays, content: content["about"].pop("sample"),
        "is damaged (no 'sample')",
    ),
    "a class below 0": (
        lambda arrays, content: arrays["prediction"][1, 1].fill(-7),
        "is damaged (expected labels and classes from 0)",
    ),
    "an image without pixels": (
        lambda arrays, content: arrays.update(
            image=np.zeros((1, 0, 8), np.uint8), examples=np.zeros((5, 3, 1, 0, 8), np.uint8)
        ),
        "is damaged (expected example images as bytes)",
    ),
    "an image of two channels": (
        lambda arrays, content: arrays.update(
            image=np.zeros((2, 8, 8), np.uint8), examples=np.zeros((5, 3, 2, 8, 8), np.uint8)
        ),
        "is damaged (expected example images)",
    ),
    "shapes": (
        lambda arrays, content: arrays.__setitem__("y", arrays["y"][:5].copy()),
        "is damaged (expected whole numbers",
    ),
}


@pytest.mark.parametrize("name", FORGED)
def test_what_was_forged_is_found(copy, name):
    change, words = FORGED[name]
    (path,) = files(copy)
    reseal(path, change)
    with pytest.raises(RunError, match="NOT VERIFIED") as caught:
        verify_run(copy)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    build([copy], copy / "report.html")  # it shows or leaves out what it reads, and does not fail


def test_an_unfinished_result_is_verified_as_far_as_it_goes(copy):
    (path,) = files(copy)
    reseal(path, lambda arrays, content: arrays["prediction"][2:].fill(NOT_DONE))
    verify_run(copy)
    reseal(path, lambda arrays, content: arrays["prediction"][1].fill(3))
    with pytest.raises(RunError, match="gaussian-blur"):
        verify_run(copy)


def test_a_damaged_result_is_said_and_measured_anew(command, copy):
    (path,) = files(copy)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(RunError, match=r"is damaged .*; remove it and measure again"):
        verify_run(copy)
    build([copy], copy / "report.md")
    assert "is damaged" in (copy / "report.md").read_text()
    ended = command("evaluate", copy, "--attacks", "clean", "-n", "60", "--corruptions")
    assert ended.code == 0
    assert "it is measured anew" in ended.err
    assert Corruptions.read(path).finished


# The report


def test_the_report_shows_tables_and_example_images(measured, tmp_path):
    folder, _ = measured
    (path,) = files(folder)
    found = Corruptions.read(path)
    page = build([folder], tmp_path / "report.html").read_text(encoding="utf-8")
    section = page[page.index('id="corruptions"') :]
    section = section[: section.index('id="training"')]
    assert "Corruptions are no attack" in section
    for kind in STRENGTHS:
        assert f"{kind}; the first image of the sample" in section
    assert section.count("data:image/png") == 5 * 4
    assert f"{100 * found.mean:.1f}" in section
    text = build([folder], tmp_path / "report.md").read_text(encoding="utf-8")
    assert "## Corruptions" in text
    assert f"{100 * float(found.accuracy[4, 4]):.1f}" in text


def test_the_report_leaves_out_other_weights_and_says_so(copy, tmp_path):
    (path,) = files(copy)
    reseal(path, lambda arrays, content: content["about"].update(model_sha256="0" * 64))
    text = build([copy], tmp_path / "report.md").read_text(encoding="utf-8")
    assert "## Corruptions" not in text
    page = build([copy], tmp_path / "report.html").read_text(encoding="utf-8")
    assert "is of other weights than the run has now" in page


def test_several_results_are_compared(copy, command, tmp_path):
    assert command("evaluate", copy, "--attacks", "clean", "-n", "30", "--corruptions").code == 0
    text = build([copy], tmp_path / "report.md").read_text(encoding="utf-8")
    assert "| run | clean | gaussian-noise |" in text
    assert text.index("sample of 60 of") < text.index("sample of 30 of")
