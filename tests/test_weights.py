"""Weights by name: snapshots, learners at the end, and mixes of them; stored, found, evaluated."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from blobs import SCHEDULED
from equipoise import data
from equipoise.errors import UserError
from equipoise.evaluation.stored import Store
from equipoise.jobs.evaluate import evaluate_run
from equipoise.jobs.train import train
from equipoise.jobs.verify import verify_run
from equipoise.report.checks import cautions
from equipoise.report.gallery import gallery
from equipoise.report.runs_reader import read_run
from equipoise.settings import recipe
from equipoise.settings.recipe import parse
from equipoise.store.digests import model_digest
from equipoise.store.runs import Run, load
from equipoise.store.weight_names import canonical, learner_name, mix, stored
from equipoise.threat import Threat


@pytest.fixture(scope="module")
def small(small: tuple[str, ...]) -> dict[str, object]:
    """Return the recipe of the small run, as a mapping."""
    method, *words = small
    return {"method": method, **recipe.overrides(words)}


@pytest.fixture(scope="module")
def kept(small: dict[str, object], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the small run again, with snapshots; whoever changes it works on a copy."""
    folder = tmp_path_factory.mktemp("kept") / "run"
    return train(parse(small | {"snapshots": 3}), folder).path


@pytest.fixture
def copy(kept: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(kept, tmp_path / "copy"))


def weights_in(folder: Path) -> dict[str, bytes]:
    return {name: (folder / f"{name}.safetensors").read_bytes() for name in stored(folder)}


# --- what a training leaves ---


def test_snapshots_are_every_so_many_rounds_and_the_last_and_change_nothing(trained, kept):
    plain, more = weights_in(trained), weights_in(kept)
    assert set(plain) == {"model", "last", "learner-clean", "learner-robust"}
    assert {name: more[name] for name in plain} == plain
    assert set(more) - set(plain) == {"round-003", "round-004"}
    assert more["round-004"] == more["last"]
    assert more["round-003"] != more["last"]


def test_the_summary_has_a_digest_of_everything_stored(kept):
    digests = json.loads((kept / "summary.json").read_text())["sha256"]
    run = Run(kept)
    assert list(digests) == run.weights()
    assert digests == {name: model_digest(run.model(name)) for name in run.weights()}
    assert {name: run.digest(name) for name in digests} == digests
    (kept.parent / "bare").mkdir(exist_ok=True)
    bare = Run(shutil.copytree(kept, kept.parent / "bare" / "run", dirs_exist_ok=True))
    (bare.path / "summary.json").unlink()
    assert bare.digest("round-3") == digests["round-003"]


@pytest.mark.slow
@pytest.mark.parametrize("stop", [2, 3])
def test_a_run_stopped_at_a_snapshot_ends_with_the_same_files(command, kept, tmp_path, stop):
    # The state after round 2 or 3 cannot be written: its snapshot is there, its state is not.
    before = f"""
from equipoise.store.runs import Run
write, left = Run.write_state, [{stop}]
def write_state(self, state):
    if len(state["history"]) > left[0]:
        raise KeyboardInterrupt
    write(self, state)
Run.write_state = write_state
"""
    out = tmp_path / "run"
    ended = command("train", kept / "recipe.yaml", "--out", out, "--quiet", before=before)
    assert ended.code != 0
    present = {"round-003"} | ({"round-004"} if stop == 3 else set())
    assert {name for name in stored(out) if name.startswith("round")} == present
    assert not (out / "summary.json").exists()
    assert command("train", "--resume", out, "--quiet").code == 0
    assert weights_in(out) == weights_in(kept)


def test_without_averaging_the_learners_are_what_the_last_merge_was_made_of(small, tmp_path):
    settings = {"gamma": [1, 0.4], "horizon": 0, "rounds": 2, "start": 1, "every": 1}
    run = train(parse(small | SCHEDULED | settings), tmp_path / "run")
    line = json.loads((run.path / "log.jsonl").read_text().splitlines()[-1])
    assert not line["handover"]  # it would be due: nothing follows
    gamma = line["weights"]["robust"]
    assert 0 < gamma < 1
    found, last = run.model(f"gamma-{gamma}").state_dict(), run.model("last").state_dict()
    for name in last:
        torch.testing.assert_close(found[name], last[name], rtol=1e-5, atol=1e-6, msg=name)
    clean, robust = (run.model(f"learner-{one}").state_dict() for one in ("clean", "robust"))
    for name in ("conv1.weight", "bn1.running_mean"):
        assert not torch.equal(clean[name], robust[name]), name


def test_the_running_average_is_kept_where_that_is_merged(small, tmp_path):
    run = train(parse(small | {"rounds": 2}), tmp_path / "run")
    state = run.read_state(print)
    assert state is not None
    for name in ("clean", "robust"):
        learner, file = state["learners"][name], run.model(f"learner-{name}").state_dict()
        for key, value in learner["share"]["average"].items():
            assert torch.equal(file[key], value), key
        assert not torch.equal(file["conv1.weight"], learner["model"]["conv1.weight"])
        key = "bn1.num_batches_tracked"
        assert torch.equal(file[key], learner["model"][key])


def test_one_learner_leaves_no_file_of_its_own(small, tmp_path):
    words = {key: small[key] for key in ("width", "limit", "batch_size") if key in small}
    run = train(parse({"method": "standard", "rounds": 1, **words}), tmp_path / "run")
    assert run.weights() == ["model", "last"]
    with pytest.raises(UserError, match=r"gamma-0\.4.*learner-clean and learner-robust.*last"):
        run.model("gamma-0.4")


def test_names_that_no_file_has_are_written_out():
    assert learner_name("l2") == "learner-l2"
    assert learner_name("../a/b") == "learner-..%2Fa%2Fb"


# --- by name ---


@pytest.mark.parametrize(
    ("given", "full"),
    [
        ("model", "model"),
        ("round-5", "round-005"),
        ("round-0005", "round-005"),
        ("round-1234", "round-1234"),
        ("gamma-.40", "gamma-0.4"),
        ("gamma-1.0", "gamma-1"),
        ("gamma-0", "gamma-0"),
        ("learner-clean", "learner-clean"),
    ],
)
def test_names_have_one_full_form(given, full):
    assert canonical(given) == full


def test_rounds_are_in_their_order(tmp_path):
    for name in ("round-1000", "round-020", "last", "learner-b", "model", "round-003", "round-9"):
        (tmp_path / f"{name}.safetensors").touch()
    found = ["model", "last", "round-003", "round-020", "round-1000", "learner-b"]
    assert stored(tmp_path) == found


def test_both_ends_of_a_mix_are_the_learners(kept):
    run = Run(kept)
    assert run.digest("gamma-0") == run.digest("learner-clean")
    assert run.digest("gamma-1") == run.digest("learner-robust")
    assert run.digest("learner-clean") != run.digest("learner-robust")
    signed = {"a": torch.tensor([-0.0])}
    zero = {"a": torch.tensor([0.0])}
    assert torch.signbit(mix(signed, zero, 0)["a"]).all()
    assert torch.signbit(mix(zero, signed, 1)["a"]).all()


def test_the_middle_of_a_mix_is_the_mean(kept):
    clean, robust = (load_file(kept / f"learner-{one}.safetensors") for one in ("clean", "robust"))
    robust["bn1.num_batches_tracked"] += 1
    found = mix(clean, robust, 0.5)
    loaded = load(kept, "gamma-0.5").state_dict()
    for name, value in found.items():
        if value.is_floating_point():
            mean = ((clean[name].double() + robust[name].double()) / 2).float()
            assert torch.equal(value, mean), name
            assert torch.equal(loaded[name], mean), name
        assert value.dtype == clean[name].dtype
    assert torch.equal(found["bn1.num_batches_tracked"], robust["bn1.num_batches_tracked"])
    third = mix(clean, robust, 0.3)["conv1.weight"]  # mostly clean
    far = [(third - one["conv1.weight"]).abs().sum() for one in (clean, robust)]
    assert far[0] < far[1]


@pytest.mark.parametrize(
    ("which", "text"),
    [
        ("round-7", "unknown weights 'round-007'; did you mean 'round-00"),
        ("learner-rubust", "did you mean 'learner-robust'?"),
        ("gama-0.4", "did you mean 'gamma-0.4'?"),
        ("gamma-1.5", "of 0 (clean) to 1 (robust), got 'gamma-1.5'"),
        ("gamma-half", "got 'gamma-half'"),
        ("../kept/model", "unknown weights"),
        ("state", "unknown weights 'state'"),
    ],
)
def test_unknown_weights_are_refused_in_one_line(kept, which, text):
    with pytest.raises(UserError, match=re.escape(text)) as error:
        load(kept, which)
    assert "\n" not in str(error.value)


def test_damaged_weights_are_noticed_in_a_mix_too(copy):
    shutil.copy(copy / "learner-clean.safetensors", copy / "learner-robust.safetensors")
    for which in ("learner-robust", "gamma-0.4"):
        with pytest.raises(UserError, match=r"learner-robust\.safetensors is damaged"):
            load(copy, which)


# --- a run that is older than a field ---


def test_a_period_of_snapshots_is_at_least_one_round():
    with pytest.raises(UserError, match="snapshots must be at least 1, got 0"):
        parse({"method": "a3gt", "snapshots": 0})


# --- evaluated ---


def sample_of(n: int):
    return data.draw(data.load("digits").test, n)[1]


@pytest.mark.slow
def test_a_mix_is_evaluated_by_name_and_verified(command, copy):
    words = ("--attacks", "fgsm", "-n", 100, "--eps", 0.1, "--weights", "gamma-.5")
    ended = command("evaluate", copy, *words)
    assert ended.code == 0, ended.err
    assert "gamma-0.5, Linf(0.1), a stratified sample of 100 of" in ended.err
    lines = [json.loads(line) for line in (copy / "records.jsonl").read_text().splitlines()]
    assert {line["weights"] for line in lines} == {"gamma-0.5"}
    assert {line["model_sha256"] for line in lines} == {Run(copy).digest("gamma-0.5")}
    sample = sample_of(100)
    assert [store.name for store in Store.all(Run(copy))] == [
        f"linf-0.1-n100-{sample.short}-gamma-0.5"
    ]
    ended = command("verify", copy)
    assert ended.code == 0, ended.err
    assert f"linf-0.1-n100-{sample.short}-gamma-0.5: verified" in ended.err
    ended = command("evaluate", copy, "--resume", "--weights", "gamma-0.5", "--quiet")
    assert ended.code == 0, ended.err
    assert "no evaluation to continue" in command("evaluate", copy, "--resume").line


def test_evaluations_of_several_weights_stand_apart(copy):
    for which in ("model", "last", "round-3", "learner-clean", "gamma-1"):
        evaluate_run(copy, which=which, attacks="fgsm", eps=[0.1], n=60, checks=False)
    names = [None, "last", "round-003", "learner-clean", "gamma-1"]
    start = f"linf-0.1-n60-{sample_of(60).short}"
    places = {f"{start}-{name}" if name else start for name in names}
    found = Store.all(Run(copy))
    assert {store.name for store in found} == places
    assert {store.which for store in found} == {name or "model" for name in names}
    assert len(verify_run(copy)) == 5
    threat = Threat("linf", 0.1)
    one, other = (
        Store.of(Run(copy), threat, sample_of(60), which) for which in ("model", "learner-clean")
    )
    shutil.copy(other.path, one.path)
    shutil.copy(other.summary, one.summary)
    with pytest.raises(Exception, match="the weights of the model are not those"):
        verify_run(copy)


@pytest.mark.slow
def test_examples_of_other_weights_are_tried(copy, tmp_path):
    other = Path(shutil.copytree(copy, tmp_path / "other"))
    for which in ("model", "learner-clean"):
        evaluate_run(other, which=which, attacks="fgsm", eps=[0.1], n=60, checks=False)
    options = {"attacks": "fgsm", "eps": [0.1], "n": 60}
    evaluate_run(copy, which="gamma-0.5", transfer=[other], **options)
    (store,) = Store.all(Run(copy))
    said = store.read()[1].outcomes["transfer"].settings
    for name in (f"{other} (Linf(0.1))", f"{other} (Linf(0.1), learner-clean)"):
        assert name in said


def test_a_report_tells_of_the_kept_model_alone(copy):
    def judged(which: str) -> None:
        evaluate_run(copy, which=which, attacks="fgsm", eps=[0.1], n=60, checks=False)

    judged("round-3")
    judged("gamma-0.4")
    run = read_run(copy)
    assert (run.records, run.evaluations) == ((), ())
    assert gallery(run, ("linf", 0.1)) is None
    (said,) = [c for c in cautions([run], {}) if c[1] == "The kept model was not evaluated"]
    assert "only the weights gamma-0.4 and round-003 were evaluated" in said[2]
    judged("last")
    run = read_run(copy)
    assert {e.weights for e in run.evaluations} == {"last"}
    judged("model")
    run = read_run(copy)
    assert {e.weights for e in run.evaluations} == {"model"}
    assert set(run.others) == {"round-003", "gamma-0.4", "last"}
