"""The composite score: evaluate stores it, verify recomputes it, the report shows it."""

import json
import shutil

import pytest
from safetensors import safe_open
from safetensors.torch import load_file, save

from equipoise.evaluation.stored import Store
from equipoise.measures import cmmr, distortion
from equipoise.measures.over_attacks import attack_texts
from equipoise.store.runs import Run
from equipoise.store.scores import all_lines, scores
from equipoise.store.sealed import stamped
from equipoise.store.verdicts import read

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


def change(path, name, how):
    """Change a tensor in place, and make all checksums and derived files agree with it."""
    tensors = load_file(path)
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    how(tensors[name])
    arrays = {name: value.numpy() for name, value in tensors.items()}
    kept = {k: v for k, v in metadata.items() if k not in ("digests", "sha256")}
    path.write_bytes(save(tensors, metadata=stamped(arrays, kept)))
    Store(Run.open(path.parents[1]), path.stem).derive()


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
    change(path, "distortion.ssim", lambda t: t.sub_(0.1))
    ended = command("verify", run)
    assert ended.code == 1
    assert "distortions" in ended.err
    assert expected(run)[RADII[0]].score != scores([read(path)])[path.stem][0].score


@pytest.mark.slow
def test_without_strongest_points_there_is_no_score(trained, command, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    words = ("--attacks", "pgd-3", "--eps", "0.1", "-n", "60")
    assert command("evaluate", run, *words).code == 0
    assert not any("cmmr" in line for line in all_lines(run))


THREE = ("pgd-3", "mi-fgsm-3", "autoattack")


@pytest.fixture(scope="module")
def three(command, trained, tmp_path_factory):
    """Return a run that PGD, MI-FGSM and AutoAttack attacked, and what the command printed."""
    run = tmp_path_factory.mktemp("three") / "run"
    shutil.copytree(trained, run)
    words = ("--attacks", ",".join(THREE), "--eps", ",".join(map(str, RADII)), "-n", "16")
    ended = command("evaluate", run, *words, "--cmmr")
    assert ended.code == 0, ended.err
    return run, ended.out


@pytest.mark.slow
def test_the_score_over_attacks_is_that_of_each_attack_by_itself(three, command, tmp_path):
    run, printed = three
    attacks = {}
    for name in THREE:  # alone, the stored point of a fooled image is that of this attack
        copy = tmp_path / name
        shutil.copytree(run, copy, ignore=shutil.ignore_patterns("evaluations", "records*"))
        words = ("--attacks", name, "--eps", ",".join(map(str, RADII)), "-n", "16")
        ended = command("evaluate", copy, *words, "--strongest", "--no-checks")
        assert ended.code == 0, ended.err
        attacks[name] = expected(copy)
        assert not any("cmmr2" in line for line in all_lines(copy))
    found = {eps: line["cmmr2"] for eps, line in worst(all_lines(run)).items()}
    for eps in RADII:
        alone = {name: attacks[name][eps] for name in THREE}
        values = [parts.score for parts in alone.values()]
        assert found[eps]["score"] == pytest.approx(sum(values) / 3, abs=1e-9)
        ends = [found[eps]["lowest"], found[eps]["highest"]]
        assert ends == pytest.approx([min(values), max(values)], abs=1e-9)
        assert list(found[eps]["attacks"]) == list(THREE)
        for name, parts in alone.items():
            stored = found[eps]["attacks"][name]
            assert stored["fooled"] == parts.fooled > 0
            assert stored["parts"] == pytest.approx(dict(parts.parts), abs=1e-9)
        assert f"({min(values):.3f} to {max(values):.3f})" in printed
    for eps, line in worst(all_lines(run)).items():
        assert line["cmmr"]["score"] == pytest.approx(expected(run)[eps].score, abs=1e-9)


@pytest.mark.slow
def test_each_stage_on_all_images_gives_the_same_score_over_attacks(three, command, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(three[0], run, ignore=shutil.ignore_patterns("evaluations", "records*"))
    words = ("--attacks", ",".join(THREE), "--eps", RADII[0], "-n", "16", "--strongest")
    assert command("evaluate", run, *words, "--individual", "--no-checks").code == 0
    every, in_turn = (worst(all_lines(each))[RADII[0]]["cmmr2"] for each in (run, three[0]))
    assert every == in_turn


@pytest.mark.slow
def test_without_all_three_attacks_it_is_said_what_to_do(scored, three, command, tmp_path):
    run, printed = scored
    assert "--attacks pgd-20,mi-fgsm-20,autoattack" in " ".join(printed.split())
    out = tmp_path / "page.md"
    assert command("report", run, three[0], "--out", out, "--cmmr").code == 0
    page = out.read_text()
    assert "--attacks pgd-20,mi-fgsm-20,autoattack" in page
    for line in worst(all_lines(three[0])).values():
        for texts in attack_texts(line["cmmr2"]).values():
            assert " | ".join(texts) in page


@pytest.mark.slow
@pytest.mark.parametrize("column", range(4))
def test_verify_finds_impossible_distortions_of_an_attack(three, command, tmp_path, column):
    run = tmp_path / "run"
    shutil.copytree(three[0], run)
    path = sorted((run / "evaluations").glob("*.safetensors"))[0]
    change(path, "own_distortion.pgd-3", lambda t: t[:, column].mul_(-1.5).sub_(0.1))
    ended = command("verify", run)
    assert ended.code == 1
    assert "the distortions of pgd-3 are impossible" in ended.err
