"""Checks stored evaluations for consistency: every number, name and setting.

Checksums do not help against a person who changes a file and makes its checksums anew. So
everything that follows from the verdicts is computed again and compared, field by field.
"""

import json
import math
from collections.abc import Collection, Iterator, Mapping
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor

from equipoise.attacks import parse
from equipoise.attacks.core import Attack
from equipoise.attacks.ensemble import Audited, Ensemble
from equipoise.errors import UserError
from equipoise.evaluation.audited import unfounded
from equipoise.evaluation.outcome import TRANSFER, Outcome
from equipoise.evaluation.result import Result
from equipoise.evaluation.stored import Store, summary_of, tensors_of
from equipoise.measures import distortion
from equipoise.measures.cmmr import RAW, largest_l2
from equipoise.sample import Sample
from equipoise.settings import recipe as recipes
from equipoise.settings.schema import differences
from equipoise.store.audit import evaluation_digest
from equipoise.store.records import BALANCED, stage_of
from equipoise.store.runs import Run
from equipoise.store.scores import all_lines
from equipoise.store.sealed import file_digest, is_sealed
from equipoise.store.verdicts import FOLDER, RECORDS, UNREADABLE, read
from equipoise.threat import Norm, Threat
from equipoise.version import __version__

CLOSE = 1e-9  # the tolerance for numbers from another version of a library
TOGETHER = 256  # images that are measured at a time
PASSES = 1000  # the largest plausible number of forward passes for a verdict


def recreate(name: str, norm: Norm) -> Attack:
    """Return the attack of an outcome by its name; a UserError if it is unknown here."""
    ensemble, stage = stage_of(name)
    if not ensemble:
        return parse(name)
    stages = _stages_of(ensemble, norm)
    if stage not in stages:
        raise UserError(f"{ensemble} has no stage {stage}")
    return stages[stage]


def _stages_of(ensemble: str, norm: Norm) -> dict[str, Attack]:
    """Return the stages of an ensemble; of an audited search those of the audit, too."""
    whole = parse(ensemble)
    stages = dict(whole.stages(norm)) if isinstance(whole, Ensemble) else {}
    return stages | dict(whole.audit(norm)) if isinstance(whole, Audited) else stages


def _partial(name: str, result: Result) -> bool:
    """Return whether an attack need not attack all images that are left."""
    ensemble, stage = stage_of(name)
    if not ensemble:
        return False
    try:
        whole = parse(ensemble)
    except UserError:
        return False
    partial = ("restarts", *whole.audit(result.threat.norm)) if isinstance(whole, Audited) else ()
    return stage in partial


def folder(run: Run) -> list[str]:
    """Return the problems of the files that concern all evaluations of a folder."""
    return [*_recipe(run), *_lines(run), *_missing(run)]


def _recipe(run: Run) -> Iterator[str]:
    """Compare the recipe with that in the state of the training, if there is one."""
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
    changed = differences(trained, recipes.read(path))
    if changed:
        yield f"recipe.yaml is not the one that was trained ({'; '.join(changed)})"


def _lines(run: Run) -> Iterator[str]:
    """Compare ``records.jsonl`` with the verdicts, line by line."""
    path = run.path / RECORDS
    try:
        written = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError, RecursionError) as error:
        yield f"{RECORDS} cannot be read ({' '.join(str(error).split())[:100]})"
        return
    expected = all_lines(run.path)
    for number, (line, record) in enumerate(zip(written, expected, strict=False), 1):
        if difference := _difference(line, record):
            yield (
                f"{RECORDS}, line {number} does not follow from the verdicts of "
                f"{record['attack']} in {record['evaluation']}: {difference}"
            )
            return
    if len(written) != len(expected):
        yield f"{RECORDS} has {len(written)} lines, expected {len(expected)}"


def _missing(run: Run) -> Iterator[str]:
    """Find evaluations that are missing although another file names them."""
    stores = Store.all(run)
    names = {store.name for store in stores}
    for path in sorted((run.path / FOLDER).glob("*.json")):
        if path.stem not in names:
            yield f"the evaluation of {path.name} is missing"
    for store in stores:
        try:
            about = store.about()
            norm, which = about["norm"], about["weights"]
            sample = Sample.of_content(about["sample"])
            radii = [float(eps) for eps in about["asked"]["radii"]]
            together = [Store.of(run, Threat(norm, eps), sample, which).name for eps in radii]
        except (UserError, *UNREADABLE):
            continue  # claims() reports it
        for name in together:
            if name not in names:
                names.add(name)
                yield (
                    f"{store.name} was requested together with {name}, which is missing "
                    "(removed, or not begun: equipoise evaluate --resume)"
                )


def claims(
    store: Store, about: Mapping[str, Any], result: Result, tensors: Mapping[str, Tensor]
) -> list[str]:
    """Return what is stored of one evaluation and does not follow from its own verdicts.

    The arguments are its place and everything that :meth:`Store.read` returns.
    """
    return [
        *_summary(store),
        *_named(store, about, result),
        *_derived(result, tensors),
        *_attacks(about, result),
        *_audit(about, result, tensors),
    ]


def _summary(store: Store) -> Iterator[str]:
    """Compare the summary with the file of the verdicts."""
    try:
        content = json.loads(store.summary.read_bytes())
        whole = is_sealed(content)
        content.pop("sha256", None)
    except (OSError, ValueError, AttributeError, TypeError, RecursionError):
        whole, content = False, {}
    expected = summary_of(read(store.path), file_digest(store.path))
    difference = _difference(content, expected)
    if not whole or difference:
        where = f": {difference}" if whole else ""
        yield f"{store.summary.name} and {store.path.name} are not as they were written{where}"


def _named(store: Store, about: Mapping[str, Any], result: Result) -> Iterator[str]:
    """Compare the name and the description of an evaluation with its content."""
    n, threat = len(result.y), result.threat
    named = about.get("norm"), about.get("eps"), about.get("n"), about.get("sample", {}).get("n")
    if named != (threat.norm, repr(threat.eps), n, n):
        yield f"its description names {named}, its content is {threat} on {n} images"
    sample = Sample.of_content(about["sample"])
    name = Store.of(store.run, threat, sample, str(about.get("weights"))).name
    if name != store.name:
        yield f"its name should be {name}"
    if not 1 <= result.passes <= PASSES:
        yield f"expected 1 to {PASSES} forward passes for a verdict, got {result.passes}"
    described = store.run.described()
    if about.get("described") != described:
        yield f"{' and '.join(described)} has changed since this was evaluated"


def _derived(result: Result, tensors: Mapping[str, Tensor]) -> Iterator[str]:
    """Compute tensors that follow from others again, and compare them."""
    derived = tensors_of(result)
    for name in ("correct", "robust", "broken_by"):
        if not torch.equal(tensors[name], derived[name]):
            yield f"the tensor {name} does not follow from the verdicts"
    distance = result.threat.distance(tensors["x"], result.x_adv)
    off = (distance - result.distance).abs() > CLOSE + 1e-6 * distance
    if bool(off.any()) or bool(torch.isnan(result.distance).any()):
        yield f"the distances of {int(off.sum())} examples are not those of the examples"
    stored = {name: t for name, t in tensors.items() if name.startswith("distortion.")}
    if stored:
        values = distortion.measured(tensors["x"], tensors["x_adv"])
        again = {f"distortion.{name}": value for name, value in values.items()}
        if stored.keys() != again.keys() or not all(_near(stored[k], again[k]) for k in again):
            yield "the distortions are not those of the examples"
    for name, outcome in result.outcomes.items():
        if outcome.distortion is not None and not _possible(outcome, result.threat, tensors["x"]):
            yield f"the distortions of {name} are impossible"
    if bool(torch.isnan(result.margin).any()):
        yield "margins are NaN"
    own = int((result.correct & result.robust & (result.margin < 0)).sum())
    if own:
        yield f"{own} images count as robust and are fooled by their own example"


def _possible(outcome: Outcome, threat: Threat, x: Tensor) -> bool:
    """Return whether distortions can be those of points that fool: these are not stored."""
    given, broken = outcome.distortion, outcome.broken
    if given is None or given.shape != (len(x), len(RAW)) or given.dtype != torch.float64:
        return False
    ssim, mse, ald2, psnr = given[broken].T
    lengths = [part.double().flatten(1).norm(dim=1) for part in torch.split(x, TOGETHER)]
    length, size = torch.cat(lengths)[broken], x[0].numel()
    parts = torch.where(length > 0, (mse * size).sqrt() / length, (mse > 0).double())
    most = largest_l2(threat.norm, threat.eps + 1e-6 * max(1.0, threat.eps), size) ** 2 / size
    in_range = bool(((ssim.abs() <= 1 + CLOSE) & (mse >= 0) & (mse <= most + CLOSE)).all())
    follow = _near(ald2, parts) and _near(psnr, -10 * mse.log10())
    return in_range and follow and bool(torch.isnan(given[~broken]).all())


def _near(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.allclose(a, b, rtol=CLOSE, atol=CLOSE)


def _attacks(about: Mapping[str, Any], result: Result) -> Iterator[str]:
    """Compare the names of attacks with their settings and with the images they attacked."""
    finished = bool(about.get("finished"))
    for name, outcome in result.outcomes.items():
        if name == TRANSFER:
            continue
        missed = int((result.robust & ~outcome.attacked).sum())
        if finished and missed and not _partial(name, result):
            yield f"{missed} images count as robust under {name} and were not attacked by it"
        if bool((~outcome.verdict & result.correct & ~outcome.attacked).any()):
            yield f"images count as fooled by {name} and were not attacked by it"
        try:
            settings = str(recreate(name, result.threat.norm))
        except UserError:
            continue  # an attack of the user's own that is not registered; --again reports it
        same = outcome.settings == settings or outcome.settings.startswith(f"{settings}, searched")
        if about.get("version") == __version__ and not same:  # the text depends on the version
            yield f"{name} stands for {settings}, but its outcome has {outcome.settings}"
    yield from _stages(result) if finished else ()


def _audit(
    about: Mapping[str, Any], result: Result, tensors: Mapping[str, Tensor]
) -> Iterator[str]:
    """Repeat the audit on the stored verdicts: order, rounds and stages follow from the nonce."""
    audit = result.audit
    if audit is None:
        return
    made = audit.made({name: outcome.made for name, outcome in result.outcomes.items()})
    digest = evaluation_digest(
        model=about["model_sha256"],
        data=about["data_sha256"],
        labels=about["labels_sha256"],
        norm=about["norm"],
        eps=float(about["eps"]),
        seed=made.get("seed", result.seed),
    )
    if audit.digest != digest:
        yield "its audit is that of another evaluation"
    elif why := unfounded(result, tensors["x"]):
        yield why


def _stages(result: Result) -> Iterator[str]:
    """Find missing stages of ensembles; stages without gradients are left out and noted."""
    if not any(f.check == "gradients" and f.status == "failed" for f in result.findings):
        yield from missing_stages(result.outcomes, result.threat.norm)


def missing_stages(names: Collection[str], norm: Norm) -> Iterator[str]:
    """Yield which ensembles lack stages, by the names of the attacks that were run."""
    for ensemble in {stage_of(name)[0] for name in names} - {""}:
        try:
            whole = parse(ensemble)
        except UserError:
            continue
        wanted = whole.stages(norm) if isinstance(whole, Ensemble) else {}
        missing = [name for name in wanted if f"{ensemble}/{name}" not in names]
        if missing:
            yield f"{ensemble} lacks {', '.join(missing)}"


def _difference(a: Any, b: Any, where: str = "") -> str:
    """Return the first field in which two values differ, with both values; empty: none.

    Numbers may differ by rounding.
    """
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        for key in [*b, *(key for key in a if key not in b)]:
            missing = key not in a or key not in b
            if key == BALANCED and key not in a:
                continue
            path = f"{where}.{key}" if where else str(key)
            if text := _difference(a.get(key), b.get(key), path):
                return text
            if missing:
                return f"{path} is missing or unexpected"
        return ""
    if isinstance(a, list | tuple) and isinstance(b, list | tuple) and len(a) == len(b):
        pairs = enumerate(zip(a, b, strict=True))
        return next(filter(None, (_difference(*p, f"{where}.{i}") for i, p in pairs)), "")
    if isinstance(a, bool) or isinstance(b, bool):
        same = a is b
    elif isinstance(a, float) and isinstance(b, float):
        same = math.isclose(a, b, rel_tol=CLOSE, abs_tol=CLOSE)
    else:
        same = bool(a == b)
    return "" if same else f"{where} is {_short(a)}, expected {_short(b)}"


def _short(value: Any) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) < 60 else f"{text[:57]}..."
