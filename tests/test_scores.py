"""The composite score: evaluate stores it, verify recomputes it, the report shows it."""

import json
import shutil

import pytest
from safetensors import safe_open
from safetensors.torch import load_file, save

from equipoise.evaluation.stored import Store
from equipoise.measures import cmmr, distortion
from equipoise.store.runs import Run
from equipoise.store.sealed import stamped
from equipoise.store.verdicts import all_lines, read, scores

RADII = (0.05, 0.1)


@pytest.fixture(scope="module")
def scored(command, trained, tmp_path_factory):
    """Return a run that was evaluated with --cmmr, and what the command printed."""
    run = tmp_path_factory.mktemp("scored") / "run"
    shutil.copytree(trained, run)
    words = ("--attacks", "pgd-3", "--eps", ",".join(map(str, RADII)), "-n", "60")
    ended = command("evaluate", run, *words, "--cmmr", "--json", run / "records.json")
    assert ended.code == 0, ended.err
    return run, ended.out


def expected(run):
    """Return the scores by radius, worked out from the stored images."""
    radii = {}
    for store in Store.all(Run.open(run)):
        _, result, tensors = store.read()
        pair = tensors["x"], result.x_adv
        raw = {name: f(*pair).tolist() for name, f in distortion.MEASURES.items()}
        radii[result.threat.eps] = {"robust": result.robust.tolist(), **raw}
    size = tensors["x"][0].numel()
    return cmmr.sweep(result.correct.tolist(), radii, norm="linf", dimensions=size)


def worst(lines):
    return {line["eps"]: line for line in lines if line["attack"] == "worst-case"}


@pytest.mark.slow
def test_the_score_is_that_of_the_stored_images(scored):
    run, printed = scored
    wanted = expected(run)
    assert tuple(wanted) == RADII
    for lines in (all_lines(run), json.loads((run / "records.json").read_text())):
        found = worst(lines)
        for eps, parts in wanted.items():
            for name in ("score", "accuracy", "success", "distortion", "ass", "mse", "ald2"):
                assert found[eps]["cmmr"][name] == pytest.approx(getattr(parts, name), rel=1e-9)
            assert found[eps]["cmmr"]["parts"] == pytest.approx(dict(parts.parts), rel=1e-9)
        assert all("cmmr" not in line for line in lines if line["attack"] != "worst-case")
    for parts in wanted.values():
        assert 0 < parts.accuracy < parts.score < 1
        assert all(text in printed for text in cmmr.score_texts(parts.to_dict()).values())


@pytest.mark.slow
def test_the_page_shows_the_score_only_when_asked(scored, command, tmp_path):
    run, _ = scored
    texts = cmmr.score_texts(expected(run)[RADII[1]].to_dict()).values()
    for name in ("page.html", "page.md"):
        out = tmp_path / name
        assert command("report", run, "--out", out, "--cmmr").code == 0
        assert all(text in out.read_text() for text in texts)
        assert command("report", run, "--out", out).code == 0
        assert "CMMR" not in out.read_text()


@pytest.mark.slow
def test_a_run_without_a_score_is_named_with_the_command(trained, command, tmp_path):
    out = tmp_path / "page.html"
    assert command("report", trained, "--out", out, "--cmmr").code == 0
    assert f"equipoise evaluate {trained} --cmmr".replace(" --", " ") in out.read_text().replace(
        '<span class="option">--cmmr</span>', "cmmr"
    )


@pytest.mark.slow
def test_verify_recomputes_distortions_and_scores(scored, command, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(scored[0], run)
    assert command("verify", run).code == 0
    path = sorted((run / "evaluations").glob("*.safetensors"))[0]
    tensors = load_file(path)
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    tensors["distortion.ssim"] -= 0.1
    arrays = {name: value.numpy() for name, value in tensors.items()}
    kept = {k: v for k, v in metadata.items() if k not in ("digests", "sha256")}
    path.write_bytes(save(tensors, metadata=stamped(arrays, kept)))
    Store(Run.open(run), path.stem).derive()
    ended = command("verify", run)
    assert ended.code == 1
    assert "distortions" in ended.err
    assert expected(run)[RADII[0]].score != scores([read(path)])[path.stem]["score"]


@pytest.mark.slow
def test_without_strongest_points_there_is_no_score(trained, command, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    words = ("--attacks", "pgd-3", "--eps", "0.1", "-n", "60")
    assert command("evaluate", run, *words).code == 0
    assert not any("cmmr" in line for line in all_lines(run))
