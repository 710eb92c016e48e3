"""``equipoise evaluate`` and ``verify``: attack a model, and check the results again."""

from functools import partial
from json import dumps
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Annotated, Any

import typer

from equipoise.cli import options
from equipoise.errors import RunError, UserError
from equipoise.store.files import refuse_foreign
from equipoise.terminal.progress import Console

if TYPE_CHECKING:
    from equipoise.jobs.shards import Shard
    from equipoise.store.corruptions import Corruptions

EVALUATE_EPILOG = (
    "AutoAttack: --attacks autoattack. The same with a bound, in a fraction of its time: "
    "--attacks audited. Each attack on all images, as in the tables of papers: "
    "--attacks pgd-20,autoattack --individual. A model of your own: equipoise evaluate "
    "package.module:function --weights FILE --data cifar10 --eps 8/255."
)


def evaluate(
    context: typer.Context,
    what: options.What = None,
    attacks: options.Attacks = None,
    individual: Annotated[
        bool | None,
        typer.Option(
            "--individual/--staged",
            help="Run every attack on all correctly classified images; or each on the images that "
            "are still robust after the earlier ones. Default: attacks run on all images, the "
            "stages of an ensemble on those that are still robust.",
        ),
    ] = None,
    eps: options.Eps = None,
    norm: options.Norm = None,
    n: options.Size = None,
    first: options.First = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue an interrupted evaluation.")
    ] = False,
    shard: options.ShardText = None,
    time: options.Time = None,
    model: options.OwnModel = None,
    data: options.OwnData = None,
    size: options.ImageSize = None,
    resize: options.Resize = None,
    channels: options.Channels = None,
    labels: options.Labels = None,
    classes: options.Classes = None,
    on_bad_image: options.OnBadImage = None,
    out: Annotated[
        Path | None, typer.Option(help="With MODEL: the folder of the results.")
    ] = None,
    normalise: options.Normalise = None,
    mean: options.Mean = None,
    std: options.Std = None,
    download: options.Download = False,
    seed: Annotated[
        int | None, typer.Option(help="Random seed of the attacks; default: 0.")
    ] = None,
    batch_size: options.BatchSize = None,
    precision: options.Precision = "auto",
    layout: Annotated[
        str,
        typer.Option(help="Memory layout of the search: channels_last, contiguous or auto."),
    ] = "auto",
    compile: Annotated[  # noqa: A002 - torch's name for it
        bool,
        typer.Option(
            help="Compile the search with torch.compile: slow at first, for long evaluations."
        ),
    ] = False,
    passes: Annotated[
        int | None, typer.Option(help="Forward passes for each verdict, for random models.")
    ] = None,
    strongest: Annotated[
        bool,
        typer.Option(
            "--strongest",
            help="Keep the points with the largest loss that PGD finds, not the first that fool "
            "the model: for distortions, CMMR and --transfer. The verdicts are the same.",
        ),
    ] = False,
    cmmr: Annotated[
        bool,
        typer.Option(
            "--cmmr",
            help="Also show the composite scores CMMR of accuracy and distortion at each radius "
            "(docs/cmmr.md): cmmr-1, and with --attacks pgd-20,mi-fgsm-20,autoattack cmmr-2. "
            "Implies --strongest.",
        ),
    ] = False,
    checks: Annotated[
        bool, typer.Option(help="Check for what would make the numbers untrustworthy.")
    ] = True,
    nonce: options.Nonce = None,
    corruptions: Annotated[
        bool,
        typer.Option(
            "--corruptions",
            help="Also measure the accuracy on the same images with noise, blur, JPEG, brightness "
            "and contrast, each at five severities; with --attacks clean these alone. It is no "
            "attack, and never counts in the robust accuracy.",
        ),
    ] = False,
    transfer: Annotated[
        list[Path] | None,
        typer.Option(help="Also try the adversarial examples of this run; may be repeated."),
    ] = None,
    weights: options.Weights = None,
    json: options.Records = None,
    strict: options.Strict = False,
    trust: options.Trust = False,
    data_dir: options.DataDir = None,
    device: options.Device = "auto",
    quiet: options.Quiet = False,
) -> None:
    """Attack a model on test images; print and store the verdicts.

    In the worst case an image counts as robust only if it is robust under all attacks, including
    those of earlier evaluations of the same weights on the same images. Ctrl-C saves and stops;
    --resume continues inside the running attack. --time stops in the same way after a time, prints
    what is known by then, and ends with exit code 0.
    """
    from equipoise.jobs.audit_shards import audit_parts
    from equipoise.jobs.corruptions import measure_run
    from equipoise.jobs.evaluate import evaluate_run
    from equipoise.jobs.join import join_run
    from equipoise.jobs.tables import write_scores, write_table
    from equipoise.jobs.target_model import open_folder
    from equipoise.plugins import run_trusted

    if json is not None:
        check_json(json)
    radii, console = options.radii_of(eps), Console(quiet=quiet)
    run, _ = options.run_or_model(what, model)
    if trust and run is not None:  # first: its file may add attacks
        run_trusted(open_folder(run).made_with(), console.warn)
    fixed = {"attacks": attacks, "individual": individual, "seed": seed, "passes": passes}
    fixed["nonce"] = nonce
    given = {name: value for name, value in fixed.items() if value is not None}
    protocol = options.protocol_of(
        norm=norm,
        n=n,
        first=first,
        batch_size=batch_size,
        precision=precision,
        layout=layout,
        compile_=compile,
        strongest=strongest or cmmr,
        checks=checks,
        **given,
    )
    if corruptions and resume:
        raise UserError(
            "--resume continues attacks: leave --corruptions out, or leave --resume out, and what "
            "is missing of the corruptions is measured"
        )
    part = _part(shard, numbers=corruptions or json is not None or cmmr or strict)
    subject, until = options.subject_of(context, console, out=out), options.limit_of(time)
    common: dict[str, Any] = {"eps": radii, "device": device, "console": console}
    measured: list[Corruptions] = []
    records: list[dict[str, Any]] = []
    if corruptions:
        began = monotonic()
        measured.append(measure_run(subject, protocol, limit=until, **common))
        until = None if until is None else max(until - (monotonic() - began), 0.0)
    start = monotonic()
    if all(each.finished for each in measured):
        records = evaluate_run(
            subject,
            protocol,
            transfer=transfer or (),
            resume=resume,
            shard=part,
            limit=until,
            given=given,
            **common,
        )
    of: Any = subject.run.path, lambda which: subject
    one: dict[str, Any] = {"device": device, "console": console}
    joined = part is not None
    audited: dict[str, Any] = {"alone": shard is not None, "limit": until, "since": start}
    if part is not None and not audit_parts(subject.run.path, of[1], part, **audited, **one):
        return
    records = join_run(*of, **one) if joined else records
    if json is not None:  # first: a closed pipe ends the table
        write_json(json, [*records, *({"corruptions": each.content()} for each in measured)])
    write_table(records)
    for each in measured:
        each.shown().show()
    if cmmr:
        write_scores(records)
    options.refuse(strict, (f"{r['evaluation']}: {name}" for r in records for name in r["failed"]))


def _part(shard: str | None, *, numbers: bool) -> "Shard | None":
    """Return the shard that is asked for, or that of a process of torchrun; None: there is none.

    Arguments:
        shard: The text of ``--shard``.
        numbers: Whether another option asks for numbers.
    """
    from equipoise.jobs.shards import Shard

    if shard is None:
        return Shard.here()
    if numbers:
        raise UserError(
            "a shard has no numbers of its own: leave --corruptions, --json, --cmmr and --strict "
            "to the evaluation that `equipoise join` makes of all"
        )
    return Shard.parse(shard)


def join(
    run: options.RunFolder,
    model: options.OwnModel = None,
    json: options.Records = None,
    trust: options.Trust = False,
    data_dir: options.DataDir = None,
    device: options.Device = "auto",
    quiet: options.Quiet = False,
) -> None:
    """Join the shards of an evaluation or a front (--shard K/N).

    Copy the files of evaluations/shards, or of front/shards, of all machines into that folder of
    one run. The checks run here, on all images, and so does the audit of an audited search. The
    verdicts are those of one evaluation on one machine.
    """
    from equipoise.jobs.front import drawn
    from equipoise.jobs.front_shards import front_is_there, join_front
    from equipoise.jobs.join import join_run
    from equipoise.jobs.shards import are_there
    from equipoise.jobs.tables import write_table
    from equipoise.jobs.target_model import of_run
    from equipoise.store.runs import Run

    if json is not None:
        check_json(json)
    console, folder = Console(quiet=quiet), Run.open(run)
    folder.allow(model, trust=trust, warn=console.warn)
    one: dict[str, Any] = {"device": device, "console": console}
    there, missing = front_is_there(folder), list[RunError]()
    if are_there(folder) or not there:
        subject_of = partial(
            of_run, run, data_dir=data_dir, console=console, model=model, trust=trust
        )
        try:
            records = join_run(run, subject_of, **one)
        except RunError as error:  # a front may be complete nevertheless
            missing.append(error)
        else:
            if json is not None:
                write_json(json, records)
            write_table(records)
    if there:
        drawn(join_front(run, data_dir=data_dir, **one), folder, console).shown().show()
    if missing:
        raise missing[0]


def verify(
    run: options.RunFolder,
    model: options.OwnModel = None,
    trust: options.Trust = False,
    again: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Also attack N randomly drawn images again that are stored as robust.",
        ),
    ] = None,
    nonce: Annotated[
        str | None,
        typer.Option(
            help="With --again or --examples: any text; it determines which images are drawn. "
            "Default: random."
        ),
    ] = None,
    audit: Annotated[
        str | None,
        typer.Option(
            metavar="NONCE",
            help="Also repeat the audits of audited evaluations with this nonce, any text: other "
            "images go through AutoAttack. Nobody could prepare for a nonce that you choose now.",
        ),
    ] = None,
    key: Annotated[
        Path | None, typer.Option(help="Of a card: the public key of its signature.")
    ] = None,
    examples: Annotated[
        int | None,
        typer.Option(
            metavar="K", help="Of a card: judge K drawn examples of each evaluation; default: all."
        ),
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(
            help="Of a card, with --model: the file of its weights, or the folder of a training."
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(help="Of a card: a dataset, or the path of an .npz file. Default: its own."),
    ] = None,
    data_dir: options.DataDir = None,
    device: options.Device = "auto",
    quiet: options.Quiet = False,
) -> None:
    """Check all stored adversarial examples again.

    It needs forward passes only. Each example must be finite, in the range, in the ball (in
    float64), and misclassified by the float32 model, and every number must follow from the
    verdicts; otherwise the exit code is 1. This proves an upper bound on the robust accuracy.
    --again attacks again images that are stored as robust, --audit repeats an audit. What was
    measured with --corruptions is measured again.

    RUN may be the folder of a card: then its signature, checksums and counts are checked, with
    --model (a run folder, or package.module:function) also its images and examples.
    """
    if nonce is not None and again is None and examples is None:
        raise UserError("--nonce is for --again N, or of a card --examples K: give it, too")
    of_card = {"--key": key, "--examples": examples, "--weights": weights, "--data": data}
    if (run / "card.json").exists():
        from equipoise.jobs.verify_card import verify_card

        if again is not None or (trust and not (model and Path(model).is_dir())):
            raise UserError("a card names no code to run: no --again; --trust is for --model RUN")
        verify_card(
            run,
            key=key,
            model=model,
            weights=weights,
            trust=trust,
            data_name=data,
            data_dir=data_dir,
            device=device,
            examples=examples,
            nonce=nonce,
            audit=audit,
            console=Console(quiet=quiet),
        )
        return
    if not run.exists():
        raise UserError(f"there is no folder {run}")
    if run.name == "card.json":
        raise UserError(f"give the folder of the card: {run.parent}")
    if given := [name for name, value in of_card.items() if value is not None]:
        raise UserError(f"{run} is no card (it has no card.json): leave {', '.join(given)} out")
    from equipoise.jobs.verify import verify_run

    verify_run(
        run,
        data_dir=data_dir,
        device=device,
        model=model,
        trust=trust,
        again=again,
        nonce=nonce,
        audit=audit,
        console=Console(quiet=quiet),
    )


def check_json(path: Path) -> None:
    """Refuse a file that cannot be written, before the work."""
    there = path.exists()
    if there and not (path.is_file() or path.is_dir()):
        return  # a pipe: to open it would wait for its reader
    try:
        refuse_foreign(path, b"[\n", b"[]", b"{\n")
        path.open("ab").close()
        if not there:
            path.unlink()
    except OSError as error:
        folder = path.absolute().parent
        reason = error.strerror or error if folder.is_dir() else f"there is no folder {folder}"
        raise UserError(f"--json {path} cannot be written: {reason}") from None


def write_json(path: Path, records: Any) -> None:
    """Write the file of ``--json``."""
    try:
        path.write_text(f"{dumps(records, indent=2)}\n", encoding="utf-8")
    except BrokenPipeError:
        raise
    except OSError as error:
        reason = error.strerror or error
        raise RunError(f"cannot write {path}: {reason}; the run has the records") from None
