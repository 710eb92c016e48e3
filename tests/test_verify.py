"""Forgeries: whatever is changed in a folder, with every checksum made anew, verify finds it."""

import json
import re
import shutil
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.numpy import load_file, save_file
from torch import nn

import equipoise as eq
from equipoise.errors import RunError, UserError
from equipoise.evaluation import evaluate
from equipoise.evaluation.stored import Store, summary_of
from equipoise.jobs.evaluate import evaluate_run
from equipoise.jobs.verify import verify_run
from equipoise.jobs.verify_stored import recreate
from equipoise.measures.audits import most_failures
from equipoise.report.runs_reader import read_run
from equipoise.store.digests import model_digest
from equipoise.store.runs import Run
from equipoise.store.scores import all_lines
from equipoise.store.sealed import read_arrays, seal, stamped, weights_digest
from equipoise.store.verdicts import read

ATTACKS = "fgsm,pgd-8(restarts=2),apgd-t-5"
N = 80


@pytest.fixture(scope="module")
def judged(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run judged at two radii; whoever changes it works on a copy."""
    folder = tmp_path_factory.mktemp("judged") / "run"
    shutil.copytree(trained, folder)
    evaluate_run(folder, attacks=ATTACKS, eps=[0.02, 0.06], n=N, checks=False)
    return folder


@pytest.fixture
def copy(judged: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(judged, tmp_path / "copy"))


def files(folder: Path) -> list[Path]:
    return sorted((folder / "evaluations").glob("*.safetensors"))


def reseal(path: Path, change: Callable[[dict, dict], None], name: str = "") -> Path:
    """Change a file of an evaluation, and make everything that is derived from it anew.

    Arguments:
        path: The file.
        change: Given its tensors and what is said of them, JSON already read.
        name: Another name for the file.
    """
    said, tensors = read_arrays(path)
    del said["sha256"], said["digests"]
    plain = ("norm", "precision")
    content = {k: v if k in plain else json.loads(v) for k, v in said.items()}
    tensors = {key: value.copy() for key, value in tensors.items()}
    change(tensors, content)
    said = {k: v if k in plain else json.dumps(v) for k, v in content.items()}
    for old in (path, path.with_suffix(".json")):
        old.unlink()
    path = path.with_name(f"{name or path.stem}.safetensors")
    tensors = {key: np.ascontiguousarray(value) for key, value in tensors.items()}
    save_file(tensors, path, metadata=stamped(tensors, said))
    derive(path.parents[1])
    return path


def derive(folder: Path) -> None:
    """Make the summaries and ``records.jsonl`` anew, as somebody who knows the code would."""
    import hashlib

    for path in files(folder):
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        try:
            summary = seal(summary_of(read(path), digest))
        except (ValueError, LookupError):
            continue
        path.with_suffix(".json").write_text(json.dumps(summary, indent=2))
    lines = (json.dumps(line) + "\n" for line in all_lines(folder))
    (folder / "records.jsonl").write_text("".join(lines))


def follow(tensors: dict, content: dict) -> None:
    """Make the tensors anew that follow from the verdicts."""
    correct = tensors["clean_prediction"] == tensors["y"]
    robust, broken_by = correct.copy(), np.full(len(correct), -1)
    for index, name in reversed([*enumerate(content["outcomes"])]):
        broken_by[tensors[f"attacked.{name}"] & ~tensors[f"verdict.{name}"]] = index
        robust &= tensors[f"verdict.{name}"]
    tensors |= {"correct": correct, "robust": robust, "broken_by": broken_by}


def refused(folder: Path, **options) -> str:
    with pytest.raises(RunError, match="NOT VERIFIED") as caught:
        verify_run(folder, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- what is sound ---


def test_the_forger_without_a_forgery_passes(copy):
    for path in files(copy):
        reseal(path, follow)
    found = verify_run(copy, again=1000, nonce="all of them")
    for verified in found:
        assert verified.again.attacked == verified.robust == verified.again.claimed
        # On the machine of then every point comes out as it was, to the bit.
        assert (verified.again.false, verified.again.odd) == (0, 0)
        assert verified.again.same == verified.robust


@pytest.mark.slow
@pytest.mark.parametrize("more", [(), ("trunk.weight=0.5", "start=0.6")])
def test_in_other_batches_too_it_is_what_was_found(command, small, tmp_path, more):
    # The second model has an image so near to a boundary that FAB goes on in float32, in a batch
    # with other such images: one bit of its point is another one in its first batch.
    folder = tmp_path / "run"
    assert command("train", *small, *more, "--out", folder).code == 0
    hard = "square-100,apgd-ce-8,fab-t-5"
    for norm, eps in (("linf", 0.03), ("l2", 0.3)):
        evaluate_run(folder, attacks=hard, norm=norm, eps=[eps], checks=False, batch_size=64)
    for verified in verify_run(folder, again=30, nonce="3"):
        assert (verified.again.false, verified.again.odd) == (0, 0)


def test_on_another_machine_bits_are_not_compared(copy):
    def change(tensors: dict, content: dict) -> None:
        for told in content["outcomes"].values():
            told["made"]["torch"] = "2.99"

    reseal(files(copy)[1], change)
    (_, verified) = verify_run(copy, again=10)
    assert (verified.again.same, verified.again.false) == (None, 0)


def test_verify_says_what_it_proves(command, judged):
    ended = command("verify", judged, "--again", 20)
    assert ended.code == 0, ended.err
    lines = [line for line in ended.err.splitlines() if ": verified" in line]
    for path, line in zip(files(judged), lines, strict=True):
        robust = read(path).verdicts.robust
        k, found = int(robust.sum()), load_file(path)
        fooled = int((found["correct"] & ~robust).sum())
        assert f"robust accuracy at most {k / N:.2%} ({k} of {N})" in line
        assert f"the {fooled} stored examples fool the model" in line
        assert "more may exist" in line
        drawn = min(20, k)
        assert f"attacked again {drawn} of the {k} images" in line
        assert f"If {most_failures(k, drawn, 0, anytime=False) + 1} or more" in line
    nonces = {re.search(r"nonce (\w+)", line)[1] for line in lines}
    other = command("verify", judged, "--again", 20)
    assert not nonces & set(re.findall(r"nonce (\w+)", other.err))


def test_the_nonce_chooses_the_points(judged):
    (first, _), (again, _) = (verify_run(judged, again=5, nonce="x") for _ in range(2))
    assert first.again == again.again


@pytest.mark.parametrize(
    ("claims", "attacked", "least"),
    [(100, 100, 1), (100, 95, 1), (100, 94, 2), (100, 0, 101), (10_000, 60, 486), (0, 0, 1)],
)
def test_how_many_false_claims_would_have_been_found(claims, attacked, least):
    assert most_failures(claims, attacked, 0, anytime=False) + 1 == least


def test_an_outcome_names_the_attack_that_ran(judged):
    for path in files(judged):
        for name, told in read(path).verdicts.outcomes.items():
            assert str(recreate(name, "linf")) == told["settings"].partition(", searched")[0]
            made = told["made"]
            assert (made["seed"], made["torch"]) == (0, torch.__version__)
            assert {"precision", "layout", "batch_size", "threads", "device"} <= set(made)
    assert str(recreate("autoattack/fab-t", "linf")) == str(eq.attacks.FABT())
    with pytest.raises(UserError, match="has no stage"):
        recreate("autoattack/nothing", "linf")


def test_a_seed_of_each_attack_is_its_own(copy):
    evaluate_run(copy, attacks="mi-fgsm-3", eps=[0.06], n=N, seed=7, checks=False)
    seeds = {r.attack: r.seed for r in read(files(copy)[1]).verdicts.records()}
    assert (seeds["fgsm"], seeds["mi-fgsm-3"]) == (0, 7)
    (_, verified) = verify_run(copy, again=10)
    assert verified.again.same == verified.again.attacked


def test_a_resumed_evaluation_comes_out_again_to_the_bit(trained, tmp_path, monkeypatch):
    folder = Path(shutil.copytree(trained, tmp_path / "run"))
    kept, saves = Store.write, []

    def interrupted(self, *arguments):
        kept(self, *arguments)
        saves.append(1)
        if len(saves) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(Store, "write", interrupted)
    evaluating = import_module("equipoise.evaluation.saving")
    monkeypatch.setattr(evaluating, "SAVE_SECONDS", 0)
    monkeypatch.setattr(evaluating, "SAVE_SHARE", 0)
    with pytest.raises(KeyboardInterrupt):
        evaluate_run(folder, attacks="pgd-5", eps=[0.04], n=N, checks=False, batch_size=16)
    monkeypatch.setattr(Store, "write", kept)
    evaluate_run(folder, resume=True, checks=False, batch_size=16)
    (verified,) = verify_run(folder, again=1000)
    assert (verified.again.false, verified.again.odd) == (0, 0)


# --- what is derived ---


def test_records_are_written_whole_and_once(copy):
    before = (copy / "records.jsonl").read_text()
    evaluate_run(copy, attacks="fgsm", eps=[0.06], n=N, checks=False)
    lines = [json.loads(line) for line in (copy / "records.jsonl").read_text().splitlines()]
    keys = [(line["attack"], line["eps"]) for line in lines]
    assert len(keys) == len(set(keys)) == len(before.splitlines())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda lines: [{**lines[0], "accuracy": 1.0}, *lines[1:]], "line 1 .* accuracy is 1.0"),
        (lambda lines: [{**lines[1], "attack": "x"} if i == 1 else line
                        for i, line in enumerate(lines)], "line 2 .* attack is"),
        (lambda lines: [*lines, lines[-1]], "lines"),
        (lambda lines: lines[:-1], "lines"),
        (lambda lines: lines[1:], "line 1"),
        (lambda lines: [], "has 0 lines"),
    ],
    ids=["edited", "renamed", "added", "removed", "first removed", "all removed"],
)  # fmt: skip
def test_changed_records_are_found(copy, change, said):
    path = copy / "records.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(line) + "\n" for line in change(lines)))
    assert re.search(said, refused(copy))


def deep(content: dict, place: str) -> None:
    """Change one value somewhere in a summary."""
    *path, last = place.split(".")
    for key in path:
        values = [*content.values()] if isinstance(content, dict) else content
        content = values[int(key)] if key.isdigit() else content[key]
    last = int(last) if isinstance(content, list) else last
    content[last] = 17 if isinstance(content[last], int | float) else "other"


@pytest.mark.parametrize(
    "place",
    [
        *("records.0.robust", "records.1.per_class.0.robust", "records.1.interval.0"),
        *("records.1.settings", "records.2.seconds", "records.4.attacks.0", "records.2.seed"),
        *("about.version", "origin.versions.torch", "memory", "records.3.worst_class.name"),
    ],
)
def test_a_summary_that_was_sealed_again_is_found(copy, place):
    path = files(copy)[0].with_suffix(".json")
    content = json.loads(path.read_text())
    del content["sha256"]
    deep(content, place)
    path.write_text(json.dumps(seal(content)))
    assert "are not as they were written" in refused(copy)


def test_another_radius_in_the_recipe_is_found(copy):
    recipe = yaml.safe_load((copy / "recipe.yaml").read_text())
    recipe["eps"] = 0.3
    (copy / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    assert "recipe.yaml has changed" in refused(copy)

    def change(tensors: dict, content: dict) -> None:
        content["about"]["described"] = Run(copy).described()

    for path in files(copy):
        reseal(path, change)
    assert "recipe.yaml is not the one that was trained (eps: " in refused(copy)


def test_numbers_of_other_weights_are_found(copy):
    last = load_file(copy / "last.safetensors")
    save_file({k: v + 1 if v.dtype == np.float32 else v for k, v in last.items()},
              copy / "model.safetensors")  # fmt: skip
    summary = json.loads((copy / "summary.json").read_text())
    summary["sha256"]["model"] = weights_digest(copy / "model.safetensors")
    (copy / "summary.json").write_text(json.dumps(summary))
    assert "the weights of the model are not those" in refused(copy)
    run = read_run(copy)  # the report leaves them out, and says so
    assert (run.records, len(run.notes)) == ((), 2)
    assert "is of other weights than the run has now" in run.notes[0]
    evaluate_run(copy, attacks="fgsm", eps=[0.06], n=N, checks=False)
    assert {r.eps for r in read_run(copy).records} == {0.06}


def test_the_digest_of_a_file_of_weights_is_that_of_the_model(trained):
    for name in ("model", "last", "learner-clean"):
        expected = model_digest(Run(trained).model(name))
        assert weights_digest(trained / f"{name}.safetensors") == expected


# --- forgeries that forward passes find ---


def rename(old: str, new: str, settings: str = "") -> Callable[[dict, dict], None]:
    def change(tensors: dict, content: dict) -> None:
        told = content["outcomes"].pop(old)
        told["settings"] = settings or told["settings"]
        content["outcomes"] = {new: told, **content["outcomes"]}
        for kind in ("verdict", "attacked"):
            tensors[f"{kind}.{new}"] = tensors.pop(f"{kind}.{old}")
        follow(tensors, content)

    return change


def robuster(tensors: dict, content: dict) -> None:
    """Say that everybody withstood, and leave the examples."""
    for name in content["outcomes"]:
        tensors[f"verdict.{name}"][:] = tensors["clean_prediction"] == tensors["y"]
    follow(tensors, content)


def weaker(tensors: dict, content: dict) -> None:
    """Say that the examples were never answered wrongly."""
    tensors["margin"] = abs(tensors["margin"])
    tensors["adversarial_prediction"] = tensors["y"].copy()
    robuster(tensors, content)


def invented(tensors: dict, content: dict) -> None:
    """Say that images are broken, without an example."""
    chosen = np.flatnonzero(tensors["robust"])[:5]
    tensors["verdict.fgsm"][chosen] = False
    follow(tensors, content)


def unattacked(tensors: dict, content: dict) -> None:
    tensors["attacked.fgsm"][:] = False
    tensors["verdict.fgsm"][:] = tensors["correct"]
    follow(tensors, content)


def numbers(tensors: dict, content: dict) -> None:
    tensors["verdict.fgsm"] = np.full(N, np.nan, np.float32)


def nan_margins(tensors: dict, content: dict) -> None:
    tensors["margin"][:3] = np.nan


def far(tensors: dict, content: dict) -> None:
    tensors["x_adv"] = np.clip(tensors["x_adv"] + 0.3, 0, 1).astype(np.float32)


def near(tensors: dict, content: dict) -> None:
    tensors["distance"] = tensors["distance"] / 2


def more_passes(tensors: dict, content: dict) -> None:
    """Ask for the slack of a random model, and use it."""
    content["passes"] = 5
    first = np.flatnonzero(tensors["correct"] & ~tensors["robust"])[0]
    tensors["x_adv"][first], tensors["distance"][first] = tensors["x"][first], 0


def endless_passes(tensors: dict, content: dict) -> None:
    content["passes"] = 10**9


def easier(tensors: dict, content: dict) -> None:
    """Take the first images again and again."""
    for name in tensors:
        tensors[name][40:] = tensors[name][:40]


def of_another_radius(tensors: dict, content: dict) -> None:
    content["about"]["eps"] = "0.5"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (rename("fgsm", "pgd-200"), r"pgd-200 stands for PGD\(steps=200"),
        (robuster, r"\d+ images .* fooled by their own example"),
        (weaker, "margins of \\d+ examples are not those of the model"),
        (invented, "5 adversarial examples are classified correctly"),
        (unattacked, "robust under fgsm and were not attacked"),
        (numbers, "expected a verdict .* image of fgsm"),
        (nan_margins, "margins are NaN"),
        (far, "outside the threat"),
        (near, "distances"),
        (more_passes, "1 adversarial examples are classified correctly"),
        (endless_passes, "1 to 1000 forward passes"),
        (easier, "stored images are not those"),
        (of_another_radius, r"\('linf', '0.5', "),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_forgery_is_found_by_forward_passes(copy, change, said):
    reseal(files(copy)[1], change)
    assert re.search(said, refused(copy))


def test_an_evaluation_that_was_removed_is_found(copy):
    path = files(copy)[0]
    for part in (path, path.with_suffix(".json")):
        part.unlink()
    derive(copy)
    assert f"together with {path.stem}, which is missing" in refused(copy)


def test_a_summary_without_its_evaluation_is_found(copy):
    files(copy)[0].unlink()
    (copy / "records.jsonl").unlink()
    derive(copy)
    assert re.search(r"\S+\.json is missing", refused(copy))


def test_an_ensemble_without_a_stage_is_found(trained, tmp_path):
    folder = Path(shutil.copytree(trained, tmp_path / "run"))
    (folder / "evaluations").mkdir()
    evaluate_run(folder, attacks="autoattack-rand", eps=[0.3], n=10, passes=1, checks=False)
    verify_run(folder)

    def change(tensors: dict, content: dict) -> None:
        gone = "autoattack-rand/apgd-dlr"
        del content["outcomes"][gone], tensors[f"verdict.{gone}"], tensors[f"attacked.{gone}"]
        follow(tensors, content)

    reseal(files(folder)[0], change)
    assert "autoattack-rand lacks apgd-dlr" in refused(folder)


# --- forgeries that only attacks find ---


def deleted(tensors: dict, content: dict) -> None:
    """Delete every example, and say that nothing was found."""
    model_free = tensors["correct"] & ~tensors["robust"]
    rows = np.flatnonzero(model_free)
    for name in content["outcomes"]:
        tensors[f"verdict.{name}"][rows] = True
    tensors["x_adv"][rows] = tensors["x"][rows]
    tensors["margin"][rows], tensors["distance"][rows] = np.inf, 0
    tensors["adversarial_prediction"][rows] = tensors["y"][rows]
    follow(tensors, content)


def measured(folder: Path, tensors: dict) -> None:
    """Make the margins and answers anew that the model of a run gives on the examples."""
    tensors["x_adv"][~tensors["correct"]] = tensors["x"][~tensors["correct"]]
    with torch.no_grad():
        logits = eq.load(folder)(torch.from_numpy(tensors["x_adv"])).double()
    y = torch.from_numpy(tensors["y"])
    true = logits.gather(1, y[:, None])[:, 0]
    rest = logits.scatter(1, y[:, None], -torch.inf).amax(1)
    tensors["margin"] = (true - rest).numpy()
    tensors["margin"][~tensors["correct"]] = np.inf
    tensors["adversarial_prediction"] = logits.argmax(1).numpy()


def test_deleted_examples_are_found_by_attacking_again(copy):
    path = reseal(files(copy)[1], deleted)
    robust = int(read(path).verdicts.robust.sum())
    found = verify_run(copy)  # each number follows from the verdicts, and no example is wrong
    assert found[1].robust == robust == int(read(path).verdicts.correct.sum())
    assert found[1].examples == 0
    assert re.search(r"\d+ of 20 images .* are fooled", refused(copy, again=20, nonce="1"))


@pytest.mark.slow
def test_a_relabelled_radius_is_found_by_attacking_again(copy):
    low, high = files(copy)
    name = high.stem
    shutil.copy(low, high)  # what is robust at 0.02 counts as robust at 0.06

    def change(tensors: dict, content: dict) -> None:
        content["eps"] = 0.06
        content["about"]["eps"] = "0.06"

    reseal(high, change, name)
    assert verify_run(copy)[1].robust == verify_run(copy)[0].robust
    assert re.search(r"\d+ of \d+ images .* are fooled", refused(copy, again=60, nonce="1"))


def test_a_relabelled_attack_is_found_by_attacking_again(trained, tmp_path):
    folder = Path(shutil.copytree(trained, tmp_path / "run"))
    evaluate_run(folder, attacks="fgsm", eps=[0.1], n=N, checks=False)
    strong = str(recreate("pgd-20", "linf"))
    made = next(iter(read(files(folder)[0]).verdicts.outcomes.values()))["settings"]
    settings = made.replace(str(recreate("fgsm", "linf")), strong)
    reseal(files(folder)[0], rename("fgsm", "pgd-20", settings))
    verify_run(folder)
    assert re.search("are fooled|are not the points", refused(folder, again=1000))


def test_examples_of_another_model_are_found(copy, trained):
    """Its verdicts are of a more robust model, its examples are made to fit this one."""
    other = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    other.load_state_dict({"1.weight": torch.zeros(10, 64), "1.bias": torch.arange(10.0)})
    path = files(copy)[1]

    def change(tensors: dict, content: dict) -> None:
        x, y = torch.from_numpy(tensors["x"]), torch.from_numpy(tensors["y"])
        result = evaluate(
            other, x, y, threat=eq.Linf(0.06), attacks="pgd-2", checks=False, precision="float32"
        )
        tensors["x_adv"] = result.x_adv.numpy()
        correct = tensors["clean_prediction"] == tensors["y"]
        for name in content["outcomes"]:
            tensors[f"verdict.{name}"] = correct.copy()
        follow(tensors, content)
        measured(copy, tensors)
        delta = torch.from_numpy(tensors["x_adv"]).double() - x.double()
        tensors["distance"] = delta.abs().flatten(1).amax(1).numpy()

    reseal(path, change)
    assert re.search("are fooled|are not the points", refused(copy, again=20, nonce="1"))


@pytest.mark.parametrize(
    ("key", "value"),
    [("batch_size", 0), ("batch_size", "all"), ("seed", {}), ("layout", "x"), ("precision", 3)],
)
def test_a_search_that_cannot_be_followed_is_said(copy, key, value):
    def change(tensors: dict, content: dict) -> None:
        for told in content["outcomes"].values():
            told["made"][key] = value

    reseal(files(copy)[1], change)
    assert "its attacks cannot be run again" in refused(copy, again=3)


def test_an_attack_that_is_not_known_here_is_left_out_and_said(copy):
    reseal(files(copy)[1], rename("fgsm", "mine-5", "Mine(steps=5)"))
    (_, verified) = verify_run(copy, again=5)
    assert verified.again.left_out == ("mine-5",)
    assert "mine-5" in str(verified.again)
