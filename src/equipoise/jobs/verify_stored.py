"""What is stored of an evaluation, held against itself: every number, name and setting.

Whoever changes a file can make its checksums anew. So nothing that follows from the verdicts is
taken from anywhere else: it is worked out again and compared, field by field.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor

from equipoise.attacks import parse
from equipoise.attacks.core import Attack
from equipoise.attacks.ensemble import AutoAttack
from equipoise.errors import UserError
from equipoise.evaluation.result import Result
from equipoise.evaluation.search import TRANSFER
from equipoise.evaluation.stored import Store, summary_of
from equipoise.measures import distortion
from equipoise.sample import Sample
from equipoise.settings import recipe as recipes
from equipoise.store.records import stage_of
from equipoise.store.runs import Run
from equipoise.store.sealed import file_digest, is_sealed
from equipoise.store.verdicts import FOLDER, RECORDS, UNREADABLE, all_lines, read
from equipoise.threat import Norm, Threat
from equipoise.version import __version__

CLOSE = 1e-9  # of numbers that another version of a library works out
PASSES = 1000  # more forward passes a verdict are nobody's
_ALSO = "version"  # settings are worded by the version that ran them


def recreate(name: str, norm: Norm) -> Attack:
    """Return the attack that an outcome is of.

    Arguments:
        name: The name of the outcome: of an attack, or of an ensemble and its stage.
        norm: The norm of the threat.

    Raises:
        UserError: If there is no such attack here.
    """
    ensemble, stage = stage_of(name)
    if not ensemble:
        return parse(name)
    whole = parse(ensemble)
    stages = whole.stages(norm) if isinstance(whole, AutoAttack) else {}
    if stage not in stages:
        raise UserError(f"{ensemble} has no stage {stage}")
    return stages[stage]


def folder(run: Run) -> list[str]:
    """Return what is wrong with what a folder says of all its evaluations together."""
    return [*_recipe(run), *_lines(run), *_missing(run)]


def _recipe(run: Run) -> Iterator[str]:
    """Hold the recipe against that in the state of the training, where the folder has one."""
    path = run.path / "recipe.yaml"
    if not path.is_file():
        return
    try:
        state = run.read_state(lambda line: None)
        if state is None:
            return
        trained = state["recipe"]
    except (*UNREADABLE, RuntimeError, UnpicklingError):
        yield "the state of the training cannot be read"
        return
    changed = recipes.differences(trained, recipes.read(path))
    if changed:
        yield f"recipe.yaml is not the one that was trained ({'; '.join(changed)})"


def _lines(run: Run) -> Iterator[str]:
    """Hold ``records.jsonl`` against the verdicts, line by line."""
    path = run.path / RECORDS
    try:
        written = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError, RecursionError) as error:
        yield f"{RECORDS} cannot be read ({' '.join(str(error).split())[:100]})"
        return
    expected = all_lines(run.path)
    for number, (line, record) in enumerate(zip(written, expected, strict=False), 1):
        if not _same(line, record):
            yield (
                f"{RECORDS}, line {number} is not what the verdicts say of {record['attack']} in "
                f"{record['evaluation']}: {_differs(line, record)}"
            )
            return
    if len(written) != len(expected):
        yield f"{RECORDS} has {len(written)} lines, the verdicts come to {len(expected)}"


def _missing(run: Run) -> Iterator[str]:
    """Find evaluations that are gone although another file names them."""
    stores = Store.all(run)
    names = {store.name for store in stores}
    for path in sorted((run.path / FOLDER).glob("*.json")):
        if path.stem not in names:
            yield f"{path.name} is of an evaluation that is not there"
    for store in stores:
        try:
            about = store.about()
            norm, which = about["norm"], about["weights"]
            sample = Sample.of_content(about["sample"])
            radii = [float(eps) for eps in about["asked"]["radii"]]
            named = [Store.of(run, Threat(norm, eps), sample, which).name for eps in radii]
        except (UserError, *UNREADABLE):
            continue  # what is damaged is said where it is looked at
        for name in named:
            if name not in names:
                names.add(name)
                yield (
                    f"{store.name} was asked for together with {name}, which is not there "
                    "(removed, or not begun: equipoise evaluate --resume)"
                )


def claims(
    store: Store, about: Mapping[str, Any], result: Result, tensors: Mapping[str, Tensor]
) -> list[str]:
    """Return what one evaluation says that does not follow from its own verdicts.

    Arguments:
        store: Its place.
        about: What it is of.
        result: What it found.
        tensors: All its tensors.
    """
    return [
        *_summary(store),
        *_named(store, about, result),
        *_derived(result, tensors),
        *_attacks(about, result),
    ]


def _summary(store: Store) -> Iterator[str]:
    """Hold the summary against what follows from the file beside it."""
    try:
        content = json.loads(store.summary.read_bytes())
        whole = is_sealed(content)
        content.pop("sha256", None)
    except (OSError, ValueError, AttributeError, TypeError, RecursionError):
        whole, content = False, {}
    expected = summary_of(read(store.path), file_digest(store.path))
    if not whole or not _same(content, expected):
        where = f": {_differs(content, expected)}" if whole else ""
        yield f"{store.summary.name} and {store.path.name} are not as they were written{where}"


def _named(store: Store, about: Mapping[str, Any], result: Result) -> Iterator[str]:
    """Hold the name of the file and what it is said to be of against its content."""
    n, threat = len(result.y), result.threat
    said = about.get("norm"), about.get("eps"), about.get("n"), about.get("sample", {}).get("n")
    if said != (threat.norm, repr(threat.eps), n, n):
        yield f"it is said to be of {said}, and is of {threat} on {n} images"
    sample = Sample.of_content(about["sample"])
    name = Store.of(store.run, threat, sample, str(about.get("weights"))).name
    if name != store.name:
        yield f"its name should be {name}"
    if not 1 <= result.passes <= PASSES:
        yield f"expected 1 to {PASSES} forward passes a verdict, got {result.passes}"
    described = store.run.described()
    if about.get("described") != described:
        yield f"{' and '.join(described)} is not what it was when this was evaluated"


def _derived(result: Result, tensors: Mapping[str, Tensor]) -> Iterator[str]:
    """Hold the tensors that follow from others against them."""
    names = list(result.outcomes)
    broken_by = [names.index(name) if name else -1 for name in result.broken_by]
    derived = {
        "correct": result.correct,
        "robust": result.robust,
        "broken_by": torch.tensor(broken_by, dtype=torch.int64),
    }
    for name, value in derived.items():
        if not torch.equal(tensors[name], value):
            yield f"the tensor {name} does not follow from the verdicts"
    distance = result.threat.distance(tensors["x"], result.x_adv)
    off = (distance - result.distance).abs() > CLOSE + 1e-6 * distance
    if bool(off.any()) or bool(torch.isnan(result.distance).any()):
        yield f"the distances of {int(off.sum())} examples are not those of the examples"
    stored = {name: t for name, t in tensors.items() if name.startswith("distortion.")}
    if stored:
        values = distortion.measured(tensors["x"], tensors["x_adv"])
        again = {f"distortion.{name}": value for name, value in values.items()}
        same = stored.keys() == again.keys()
        if not same or not all(_near(stored[name], again[name]) for name in again):
            yield "the distortions are not those of the examples"
    if bool(torch.isnan(result.margin).any()):
        yield "margins are NaN"
    own = int((result.correct & result.robust & (result.margin < 0)).sum())
    if own:
        yield f"{own} images are said to withstand and are fooled by their own example"


def _near(one: Tensor, two: Tensor) -> bool:
    return one.shape == two.shape and torch.allclose(one, two, rtol=CLOSE, atol=CLOSE)


def _attacks(about: Mapping[str, Any], result: Result) -> Iterator[str]:
    """Hold the names of attacks against their settings, and against whom they attacked."""
    finished = bool(about.get("finished"))
    for name, outcome in result.outcomes.items():
        if name == TRANSFER:
            continue
        missed = int((result.robust & ~outcome.attacked).sum())
        if finished and missed:
            yield f"{missed} images are said to withstand {name} and were not attacked by it"
        if bool((~outcome.verdict & result.correct & ~outcome.attacked).any()):
            yield f"images are said to be broken by {name} and were not attacked by it"
        try:
            settings = str(recreate(name, result.threat.norm))
        except UserError:
            continue  # an attack of the user's own that is not given; --again says so
        same = outcome.settings == settings or outcome.settings.startswith(f"{settings}, searched")
        if about.get(_ALSO) == __version__ and not same:
            yield f"{name} stands for {settings}, and what ran is said to be {outcome.settings}"
    yield from _stages(result) if finished else ()


def _stages(result: Result) -> Iterator[str]:
    """Find the stages that an ensemble lacks, but for those that are said to be left out."""
    left_out = any(f.check == "gradients" and f.status == "failed" for f in result.findings)
    for ensemble in {stage_of(name)[0] for name in result.outcomes} - {""}:
        try:
            whole = parse(ensemble)
        except UserError:
            continue
        wanted = whole.stages(result.threat.norm) if isinstance(whole, AutoAttack) else {}
        lacks = [name for name in wanted if f"{ensemble}/{name}" not in result.outcomes]
        if lacks and not left_out:
            yield f"{ensemble} lacks {', '.join(lacks)}"


def _same(one: Any, two: Any) -> bool:
    """Tell whether values are the same, numbers but for what another library may round."""
    if isinstance(one, bool) or isinstance(two, bool):
        return one is two
    if isinstance(one, float) and isinstance(two, float):
        return math.isclose(one, two, rel_tol=CLOSE, abs_tol=CLOSE)
    if isinstance(one, Mapping) and isinstance(two, Mapping):
        return one.keys() == two.keys() and all(_same(one[key], two[key]) for key in one)
    if isinstance(one, list | tuple) and isinstance(two, list | tuple):
        return len(one) == len(two) and all(map(_same, one, two))
    return bool(one == two)


def _differs(one: Any, two: Any, where: Sequence[str] = ()) -> str:
    """Return the first field in which values differ, and both values."""
    if isinstance(one, Mapping) and isinstance(two, Mapping):
        for key in [*two, *(key for key in one if key not in two)]:
            if key not in one or key not in two or not _same(one[key], two[key]):
                return _differs(one.get(key), two.get(key), (*where, str(key)))
    if isinstance(one, list) and isinstance(two, list) and len(one) == len(two):
        for index, (left, right) in enumerate(zip(one, two, strict=True)):
            if not _same(left, right):
                return _differs(left, right, (*where, str(index)))
    return f"{'.'.join(where)} is {_short(one)}, expected {_short(two)}"


def _short(value: Any) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) < 60 else f"{text[:57]}..."
