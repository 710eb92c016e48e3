"""Evaluations as jobs: stopped and resumed, verified, of one's own models, refused in one line."""

import json
import random
import shlex
import shutil
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import equipoise as eq
from equipoise import data
from equipoise.errors import RunError, UserError
from equipoise.evaluation import evaluate
from equipoise.evaluation.stored import Store
from equipoise.jobs.evaluate import evaluate_run
from equipoise.jobs.verify import verify_run
from equipoise.models.foreign import import_model, load_weights
from equipoise.store.digests import model_digest
from equipoise.store.runs import Run
from equipoise.store.sealed import is_sealed, seal
from problems import small_layers, small_net

QUICK = "pgd-3,apgd-t-4,square-20"
OFTEN = """
from importlib import import_module
k = import_module("equipoise.evaluation.saving")
k.SAVE_SECONDS = k.SAVE_SHARE = 0
"""


@pytest.fixture(scope="module")
def evaluated(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run that was evaluated; whoever changes it works on a copy."""
    folder = tmp_path_factory.mktemp("evaluated") / "run"
    shutil.copytree(trained, folder)
    evaluate_run(folder, attacks=QUICK, eps=[0.1], n=80, checks=False)
    return folder


@pytest.fixture
def copy(evaluated: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(evaluated, tmp_path / "copy"))


def stored(folder: Path) -> Path:
    (path,) = (folder / "evaluations").glob("*.safetensors")
    return path


# --- stopped and resumed ---


def begun(folder: Path) -> bool:
    """Tell whether an attack is on its way: some, but not all, of its examples are attacked."""
    paths = list((folder / "evaluations").glob("*.safetensors"))
    if not paths:
        return False
    try:
        _, result, _ = Store(Run(folder), paths[0].stem).read()
    except UserError:
        return False
    return any(bool(o.attacked.any()) and not o.finished for o in result.outcomes.values())


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_stopped_inside_an_attack_it_ends_with_the_same_bits(command, trained, tmp_path, how):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    words = ("--attacks", "apgd-ce-20,square-400", "-n", 150, "--batch-size", 15, "--eps", 0.1)
    more = ("--seed", 3, "--no-checks", "--precision", "float32")
    for folder in (whole, cut):
        shutil.copytree(trained, folder)
    assert command("evaluate", whole, *words, *more).code == 0
    running = command.start("evaluate", cut, *words, *more, before=OFTEN)
    until = time.monotonic() + 60
    while not begun(cut):
        assert time.monotonic() < until, running.err
        time.sleep(0.005)
    running.signal(how)
    ended = running.wait()
    assert ended.code == (-signal.SIGKILL if how == signal.SIGKILL else 130)
    if how != signal.SIGKILL:
        assert "--resume" in ended.err
    found = load_file(stored(cut))
    attacked = sum(int(v.sum()) for k, v in found.items() if k.startswith("attacked."))
    assert attacked > 0
    resumed = command("evaluate", cut, "--resume", "--batch-size", 15, *more[2:])
    assert resumed.code == 0, resumed.err
    one, two = load_file(stored(whole)), load_file(stored(cut))
    assert one.keys() == two.keys()
    for name, value in one.items():
        assert torch.equal(value, two[name]), name
    lost = found["x_adv"][~found["robust"]]
    assert torch.equal(lost, two["x_adv"][~found["robust"]]) or bool(
        (two["margin"] <= found["margin"]).all()
    )
    records = [
        [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]
        for folder in (whole, cut)
    ]
    names = [[r["attack"] for r in found] for found in records]
    assert names[1][-1] == names[0][-1] == "worst-case"
    assert records[0][-1]["robust"] == records[1][-1]["robust"]
    verify_run(cut)


def test_what_is_done_is_not_done_again(command, copy, monkeypatch):
    ended = command(
        "evaluate", copy, "--resume", "--no-checks",
        before="import equipoise.attacks.pgd as p; p.PGD.__call__ = None",
    )  # fmt: skip
    assert ended.code == 0, ended.err


def test_radii_that_were_not_come_to_are_gone_on_with(trained, tmp_path, monkeypatch):
    folder = Path(shutil.copytree(trained, tmp_path / "run"))
    kept = Store.write

    def interrupted(self, *arguments):
        kept(self, *arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(Store, "write", interrupted)
    options = {"attacks": "fgsm,pgd-2", "n": 40, "checks": False}
    with pytest.raises(KeyboardInterrupt):
        evaluate_run(folder, eps=[0.05, 0.1, 0.2], **options)
    monkeypatch.setattr(Store, "write", kept)
    records = evaluate_run(folder, resume=True, checks=False)
    worst = {r["eps"]: r["robust"] for r in records if r["attack"] == "worst-case"}
    whole = Path(shutil.copytree(trained, tmp_path / "whole"))
    expected = evaluate_run(whole, eps=[0.05, 0.1, 0.2], **options)
    assert worst == {r["eps"]: r["robust"] for r in expected if r["attack"] == "worst-case"}


def test_nothing_to_resume(trained):
    with pytest.raises(UserError, match="no evaluation to continue"):
        evaluate_run(trained, resume=True)


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("model_sha256", "model"),
        ("data_sha256", "data"),
        ("labels_sha256", "labels"),
        ("version", "version"),
    ],
)
def test_a_resume_with_something_else_is_refused(copy, key, said):
    store = Store(Run(copy), stored(copy).stem)
    about, result, tensors = store.read()
    store.write(result, tensors["x"], {**about, key: "another", "finished": False}, {})
    with pytest.raises(UserError, match=f"cannot continue .* another {said}"):
        evaluate_run(copy, resume=True)
    # Without --resume it is evaluated anew, and what was of another does not count.
    records = evaluate_run(copy, attacks="pgd-3", eps=[0.1], n=80, checks=False)
    assert records[-1]["attacks"] == ["pgd-3"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"seed": 5}, "seed 0, not 5"),
        ({"attacks": "fgsm"}, "attacks"),
        ({"n": 30}, "no evaluation"),
    ],
)
def test_a_resume_that_asks_for_something_else_is_refused(copy, options, said):
    with pytest.raises(UserError, match=said):
        evaluate_run(copy, resume=True, **options)


@pytest.mark.slow
def test_zero_counts_as_a_seed(command, trained, tmp_path):
    folder = shutil.copytree(trained, tmp_path / "run")
    more = ("--attacks", "pgd-2", "--eps", 0.1, "-n", 20, "--no-checks", "-q")
    assert command("evaluate", folder, "--seed", 3, *more).code == 0
    for seed in (0, 5):
        ended = command("evaluate", folder, "--resume", "--seed", seed)
        assert (ended.code, "seed 3" in ended.line) == (2, True)
        with pytest.raises(UserError, match=f"seed 3, not {seed}"):
            evaluate_run(folder, resume=True, seed=seed)
    for words in ((), ("--seed", 3)):
        assert command("evaluate", folder, "--resume", "--no-checks", *words).code == 0
    _, result, _ = Store(Run(folder), stored(folder).stem).read()
    assert result.seed == 3


def test_a_damaged_file_is_not_resumed(copy):
    path = stored(copy)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"damaged .*; remove it and evaluate again"):
        evaluate_run(copy, resume=True)


def test_a_full_disk_loses_nothing(command, copy):
    before = {path.name: path.read_bytes() for path in (copy / "evaluations").iterdir()}
    limit = (
        "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (30000, 30000)); "
        "import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)"
    )
    ended = command("evaluate", copy, "--attacks", "fgsm", "-n", 80, "--eps", 0.1, "--no-checks",
                    "--quiet", before=limit)  # fmt: skip
    assert ended.code == 1
    assert "cannot write" in ended.err
    assert {path.name: path.read_bytes() for path in (copy / "evaluations").iterdir()} == before


# --- verified ---


def test_a_sound_evaluation_is_verified(command, evaluated):
    ended = command("verify", evaluated)
    assert ended.code == 0, ended.err
    result = json.loads(stored(evaluated).with_suffix(".json").read_text())
    worst = result["records"][-1]
    assert (
        f"robust accuracy at most {worst['accuracy']:.2%} ({worst['robust']} of 80)" in ended.err
    )


def test_every_flipped_byte_is_found(copy):
    generator = random.Random(0)  # noqa: S311 - any places will do
    for path in (stored(copy), stored(copy).with_suffix(".json")):
        whole = path.read_bytes()
        places = [0, 7, 8, 40, len(whole) - 1, *generator.sample(range(len(whole)), 12)]
        for place in places:
            changed = bytearray(whole)
            changed[place] ^= 1 << generator.randrange(8)
            path.write_bytes(changed)
            with pytest.raises(RunError, match="NOT VERIFIED"):
                verify_run(copy)
        path.write_bytes(whole)
    assert verify_run(copy)


def test_a_flipped_byte_is_one_line_and_an_exit_code(command, copy):
    path = stored(copy)
    changed = bytearray(path.read_bytes())
    changed[-1000] ^= 4
    path.write_bytes(changed)
    ended = command("verify", copy, "--quiet")
    assert ended.code == 1
    assert "NOT VERIFIED" in ended.line


def forge(copy: Path, change) -> None:
    """Write a result that was tampered with, with all its checksums made anew."""
    store = Store(Run(copy), stored(copy).stem)
    about, result, tensors = store.read()
    store.write(change(result), tensors["x"], about, {})


def clean_again(result):
    x = data.draw(data.load("digits").test, 80)[0].pixels()
    return replace(result, x_adv=torch.where(result.robust[:, None, None, None], result.x_adv, x))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda r: replace(r, x_adv=(r.x_adv + 0.2).clamp(0, 1)), "outside the threat"),
        (lambda r: replace(r, x_adv=r.x_adv * torch.nan), "outside the threat"),
        (lambda r: replace(r, x_adv=r.x_adv - 0.01), "outside the threat"),
        (clean_again, "classified correctly"),
        (lambda r: replace(r, y=(r.y + 1) % 10), "stored labels"),
        (
            lambda r: replace(r, prediction=(r.prediction + 1) % 10),
            "clean predictions differ|not as they were",
        ),
    ],
    ids=["far", "nan", "below", "clean", "labels", "answers"],
)
def test_forged_examples_are_found_by_forward_passes(copy, change, said):
    forge(copy, change)
    with pytest.raises(RunError, match=said):
        verify_run(copy)


def test_a_forged_number_is_found(copy):
    path = stored(copy).with_suffix(".json")
    content = json.loads(path.read_text())
    assert is_sealed(content)
    content.pop("sha256")
    content["records"][-1]["robust"] += 1
    path.write_text(json.dumps(seal(content)))
    with pytest.raises(RunError, match="not as they were written"):
        verify_run(copy)


def test_another_model_is_not_what_was_evaluated(copy):
    # One weight is another, and the checksum of the run made to fit.
    weights = load_file(copy / "model.safetensors")
    weights["linear.bias"][0] += 1e-6
    save_file(weights, copy / "model.safetensors")
    summary = json.loads((copy / "summary.json").read_text())
    model = eq.load(shutil.copytree(copy, copy.parent / "plain", dirs_exist_ok=True), "last")
    model.load_state_dict(weights)
    summary["sha256"]["model"] = model_digest(model)
    (copy / "summary.json").write_text(json.dumps(summary))
    with pytest.raises(RunError, match="weights of the model are not those"):
        verify_run(copy)


def test_there_must_be_something_to_verify(trained):
    with pytest.raises(UserError, match="holds no evaluation"):
        verify_run(trained)


# --- what is kept for people ---


def test_the_summary_has_what_was_found(evaluated):
    content = json.loads(stored(evaluated).with_suffix(".json").read_text())
    assert content["finished"]
    assert [r["attack"] for r in content["records"]] == [
        "clean", "pgd-3", "apgd-t-4", "square-20", "worst-case",
    ]  # fmt: skip
    tensors = load_file(stored(evaluated))
    assert {"x", "x_adv", "margin", "distance", "broken_by", "verdict.pgd-3"} <= set(tensors)
    broken = tensors["correct"] & ~tensors["robust"]
    assert torch.equal(tensors["broken_by"] >= 0, broken)
    assert content["memory"] > 10**7


def test_an_attack_keeps_the_name_that_was_asked_for(copy):
    name = "pgd-2(step_size=2/255)"
    records = evaluate_run(copy, attacks=name, eps=[0.05], n=20, checks=False)
    assert [record["attack"] for record in records[:2]] == ["clean", name]


# --- models of one's own ---

SOURCE = """
import torch
from torch import nn

def net():
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 16, 3, stride=2, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Dropout(0.2), nn.Flatten(), nn.Linear(256, 10),
    )

def nothing():
    return 3

def broken():
    raise OSError("no licence")

class Deaf(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))

    def forward(self, x):
        return self.net(x.detach())

class Raises(nn.Module):
    def forward(self, x):
        raise RuntimeError("no kernel for this")

class Single(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = net()

    def __deepcopy__(self, memo):
        raise TypeError("there is one of me")

    def forward(self, x):
        return {"logits": self.net(x)}
"""


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    (tmp_path / "mine.py").write_text(SOURCE)
    torch.save({"state_dict": {f"module.{k}": v for k, v in small_net().state_dict().items()}},
               tmp_path / "w.pt")  # fmt: skip
    return tmp_path


@pytest.mark.slow
def test_a_model_of_ones_own_is_evaluated_resumed_and_verified(command, mine):
    words = ("--model", "mine:net", "--data", "digits", "--weights", "w.pt", "-n", 60)
    ended = command("evaluate", *words, "--attacks", "pgd-3", "--eps", 0.1, cwd=mine)
    assert ended.code == 0, ended.err
    folder = mine / "runs" / "mine.net"
    images, _ = data.draw(data.load("digits").test, 60)
    x, y = images.pixels(), images.y
    (record,) = [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()
                 if '"worst-case"' in line]  # fmt: skip
    expected = evaluate(small_net(), x, y, threat=eq.Linf(0.1), attacks="pgd-3", checks=False)
    assert abs(record["robust"] - int(expected.robust.sum())) <= 1
    assert command("evaluate", folder, "--resume", "--trust", cwd=mine).code == 0
    assert command("verify", folder, "--model", "mine:net", cwd=mine).code == 0
    assert command("verify", folder, "--trust").code == 0  # wherever it is called
    page = command("report", folder, "--out", mine / "page.html", cwd=mine)
    assert page.code == 0, page.err
    (mine / "w.pt").write_bytes((mine / "w.pt").read_bytes() + b" ")
    assert "has changed" in command("verify", folder, "--trust", cwd=mine).line


def test_what_is_taken_for_logits_and_searched_is_said_on_the_terminal(command, mine):
    # Of 200 images a net with random weights has some right, so that there is something to search.
    words = ("mine:Single", "--data", "digits", "-n", 200, "--attacks", "pgd-2", "--eps", 0.1)
    ended = command("evaluate", *words, "--no-checks", cwd=mine)
    assert ended.code == 0, ended.err
    lines = (ended.out + ended.err).splitlines()
    assert sum("outputs: the model returns dict" in line for line in lines) == 1
    assert sum("search-form: " in line and "there is one of me" in line for line in lines) == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--model", "mine:net"), "--model package.module:function --data"),
        (("--model", "mine", "--data", "digits"), "package.module:function"),
        (("--model", "mine:nett", "--data", "digits"), "mine has no nett; it has"),
        (("--model", "yours:net", "--data", "digits"), "cannot import yours"),
        (("--model", "mine:nothing", "--data", "digits"), "returned int"),
        (("--model", "mine:broken", "--data", "digits"), "no licence"),
        (("--model", "mine:net", "--data", "digits", "--weights", "no.pt"), "no file no.pt"),
        ((), "expected a run folder, or --model"),
        (("runs/x", "--data", "digits"), "expected a run folder, or --model"),
    ],
)
def test_models_that_will_not_do_are_one_line(command, mine, words, said):
    ended = command("evaluate", *words, cwd=mine)
    assert ended.code == 2
    assert said in ended.line


def test_a_model_that_raises_is_one_line(command, mine):
    ended = command("evaluate", "--model", "mine:Raises", "--data", "digits", "-n", 20, cwd=mine)
    assert ended.code == 1
    assert "no kernel for this" in ended.err.strip().splitlines()[-1]
    assert "Traceback" not in ended.err


def test_strict_is_exit_code_1_where_a_check_failed(command, mine):
    words = ("evaluate", "mine:Deaf", "--data", "digits", "-n", 20, "--attacks", "square-5,pgd-2")
    ended = command(*words, "--eps", 0.1, "--json", mine / "r.json", "--strict", cwd=mine)
    assert ended.code == 1
    assert "--strict: failed checks: " in ended.err.splitlines()[-1]
    assert ": gradients" in ended.err.splitlines()[-1]
    assert "FAILED CHECKS: " in ended.out, "the table is there all the same"
    found = json.loads((mine / "r.json").read_text())
    assert all("gradients" in record["failed"] for record in found)
    assert command(*words, "--eps", 0.1, cwd=mine).code == 0


@pytest.mark.parametrize("key", ["", "state_dict", "net", "model", "model_state_dict"])
@pytest.mark.parametrize("prefix", ["", "module.", "model.", "module.model."])
def test_usual_weights_files_are_understood(tmp_path, key, prefix):
    state = {f"{prefix}{name}": value for name, value in small_net().state_dict().items()}
    torch.save({key: state, "epoch": 3, "loss": 0.5} if key else state, tmp_path / "w.pth")
    model = load_weights(small_layers(5), tmp_path / "w.pth")
    for name, value in small_net().state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name
    assert not model.training


@pytest.mark.parametrize("names", [("mu", "sigma"), ("model.mu", "model.sigma")])
def test_a_normalisation_in_the_file_becomes_the_first_layer(tmp_path, names):
    state = dict(small_net().state_dict())
    state |= {names[0]: torch.tensor([[[[0.3]]]]), names[1]: torch.tensor([[[[0.5]]]])}
    torch.save(state, tmp_path / "w.pth")
    model = load_weights(small_layers(5), tmp_path / "w.pth")
    x = torch.rand(4, 1, 8, 8)
    with torch.no_grad():
        assert torch.allclose(model(x), small_net()((x - 0.3) / 0.5), atol=1e-5)


def test_safetensors_too(tmp_path):
    save_file(dict(small_net().state_dict()), tmp_path / "w.safetensors")
    model = load_weights(small_layers(5), tmp_path / "w.safetensors")
    assert torch.equal(model[0].weight, small_net()[0].weight)


class Payload:
    def __reduce__(self):
        return (print, ("executed",))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"a": Payload()}, "holds more than tensors"),
        ([1, 2], "expected a state_dict"),
        ({"epoch": 3}, "holds no tensors"),
        ({"x.weight": torch.ones(2)}, "does not fit the model"),
        (b"not a file of weights", "damaged or holds more"),
    ],
)
def test_weights_that_will_not_do(tmp_path, capsys, content, said):
    path = tmp_path / "w.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(UserError, match=said):
        load_weights(small_layers(5), path)
    assert "executed" not in capsys.readouterr().out


def test_other_shapes_are_named(tmp_path):
    state = dict(small_net().state_dict())
    state["0.weight"] = torch.ones(8, 3, 3, 3)
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(UserError, match="does not fit the model"):
        load_weights(small_layers(5), tmp_path / "w.pth")


def test_a_model_may_be_given_itself(tmp_path, monkeypatch):
    (tmp_path / "made.py").write_text("from torch import nn\nnet = nn.Linear(2, 3)\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert isinstance(import_model("made:net"), nn.Linear)
    assert isinstance(import_model("torch.nn:Identity"), nn.Identity)


# --- other models' examples ---


def test_examples_of_another_run_are_tried(copy, trained, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(copy, other)
    target = tmp_path / "target"
    shutil.copytree(trained, target)
    records = evaluate_run(target, attacks="fgsm", eps=[0.1], n=80, transfer=[other], checks=False)
    (transfer,) = [r for r in records if r["attack"] == "transfer"] or [None]
    worst = records[-1]
    kept = json.loads(stored(other).with_suffix(".json").read_text())["records"][-1]
    # They are the same model: all that was broken there is broken here.
    assert worst["robust"] <= kept["robust"]
    assert transfer is None or transfer["accuracy"] >= worst["accuracy"]
    with pytest.raises(UserError, match="no adversarial examples for the same"):
        evaluate_run(target, attacks="fgsm", eps=[0.05], n=80, transfer=[other], checks=False)


# --- going on ---


@pytest.fixture
def fresh(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "fresh"))


def stop_after(place: Path, attack: str = "pgd-1") -> str:
    """Return code that interrupts an evaluation when the attack begins."""
    return f"""
from equipoise.jobs import evaluate as job
whole, calls = job.evaluate_and_save, []
def evaluate_and_save(protocol, *arguments, **settings):
    calls.append(protocol.eps)
    open({str(place)!r}, "a").write(repr(protocol.eps) + "\\n")
    if len(calls) == 2:
        raise KeyboardInterrupt
    return whole(protocol, *arguments, **settings)
job.evaluate_and_save = evaluate_and_save
"""


@pytest.mark.slow
def test_resume_goes_on_with_what_is_left_and_with_nothing_else(command, fresh, tmp_path):
    log = tmp_path / "calls"
    words = ("--attacks", "pgd-1", "-n", 20, "--no-checks")
    # One radius from before, one at its end, one interrupted, one that was not come to.
    assert command("evaluate", fresh, *words, "--eps", "0.3").code == 0
    broken = command(
        *("evaluate", fresh, *words, "--eps", "0.05,0.1,0.15"), before=stop_after(log)
    )
    assert broken.code == 130
    log.unlink()
    resumed = command("evaluate", fresh, "--resume", before=stop_after(log).replace("== 2", "< 0"))
    assert resumed.code == 0, resumed.err
    assert log.read_text().split() == ["0.1", "0.15"]
    log.unlink()
    before = {path: path.read_bytes() for path in (fresh / "evaluations").iterdir()}
    for more in ((), ("--eps", "0.1"), ("-n", 20)):
        again = command("evaluate", fresh, "--resume", *more, before=stop_after(log))
        assert again.code == 0
        assert "nothing was interrupted" in again.line
    assert not log.exists()
    assert {path: path.read_bytes() for path in (fresh / "evaluations").iterdir()} == before


def test_resume_writes_what_a_killed_process_had_no_time_for(command, fresh):
    words = ("--attacks", "pgd-1", "-n", 20, "--no-checks", "-q")
    assert command("evaluate", fresh, *words).code == 0
    whole = (fresh / "records.jsonl").read_bytes()
    (fresh / "records.jsonl").unlink()
    (summary,) = (fresh / "evaluations").glob("*.json")
    summary.unlink()
    assert command("verify", fresh, "-q").code == 1
    assert command("evaluate", fresh, "--resume", "-q").code == 0
    assert (fresh / "records.jsonl").read_bytes() == whole
    assert command("verify", fresh, "-q").code == 0


@pytest.mark.slow
@pytest.mark.parametrize("own", [False, True], ids=["a run", "a model of one's own"])
def test_a_full_disk_names_the_command_that_goes_on(command, fresh, mine, own):
    full = """
import errno, os
left = [3]
def fsync(number, real=os.fsync):
    left[0] -= 1
    if left[0] < 0:
        raise OSError(errno.ENOSPC, "No space left on device")
    real(number)
os.fsync = fsync
"""
    more = ("--attacks", "pgd-1,pgd-2,pgd-3", "-n", 20, "--no-checks", "-q")
    what = (fresh,)
    if own:
        what = ("mine:net", "--data", "digits", "--weights", "w.pt", "--out", mine / "run")
    ended = command("evaluate", *what, *more, before=full, cwd=mine)
    assert ended.code == 1
    assert "the disk is full" in ended.line
    words = shlex.split(ended.line.rpartition("with: equipoise ")[2])
    assert words[0] == "evaluate"
    assert words[-1] == "--resume"
    ended = command(*words, cwd=mine)
    assert ended.code == 0, ended.err
    folder = mine / "run" if own else fresh
    lines = [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]
    assert {line["attack"] for line in lines} == {"clean", "pgd-1", "pgd-2", "pgd-3", "worst-case"}
