"""``equipoise sweep``; imports inside functions keep ``--help`` quick."""

import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from equipoise.cli import options
from equipoise.terminal.progress import Console

SWEEP_EPILOG = """The space, a file with a list or a range for each setting:

\b
  robust.beta: {low: 1, high: 12, log: true}   # on a logarithmic scale
  lr: {low: 0.01, high: 0.2, log: true}
  robust.attack.steps: [3, 5, 10]              # one of these
  rounds: {low: 10, high: 30, step: 10}        # 10, 20 or 30

All settings of `equipoise list methods METHOD` can be searched, but for those that trials have to
share to be compared: data, threat, held-out images, seed. Without --space a small space of the
method is used: learning rate, weight decay, and beta or weight where it has one. Settings as
key=value are the same for all trials.

Example: equipoise sweep trades rounds=10 --data cifar10 --trials 40 --workers 2 --out runs/sweep

The two objectives are clean accuracy, and robust accuracy under validation_attack (pgd-10), of
the kept model, on the validation images: held-out training images (validation=1000). After 10
random trials TPE of Optuna proposes the settings. The front is measured again on reserve=N
further held-out images, which chose nothing; by default N is that of validation. Test images are
not used. Optuna is needed: pip install 'equipoise[sweep]'.

DIR gets trials/NUMBER, run folders; front/NUMBER.yaml, recipes for `equipoise train`; front.svg,
table.md, sweep.json; and journal.log, which several of these commands, on several machines with
one folder, may share.
"""


def sweep(
    context: typer.Context,
    what: Annotated[
        str,
        typer.Argument(
            metavar="METHOD|RECIPE.yaml", help="The name of a method, or a recipe of all trials."
        ),
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="The folder of all trials.")],
    settings: Annotated[
        list[str] | None,
        typer.Argument(metavar="[key=value]...", help="Settings of all trials."),
    ] = None,
    space: Annotated[
        Path | None,
        typer.Option(metavar="SPACE.yaml", help="What is searched; see below."),
    ] = None,
    trials: Annotated[
        int, typer.Option(help="How many trials, those of earlier commands included.")
    ] = 40,
    on: options.On = None,
    workers: options.Workers = None,
    resources: options.Resources = None,
    data: Annotated[
        str | None, typer.Option(help="As for `equipoise train`, like the next options.")
    ] = None,
    data_dir: options.DataDir = None,
    size: options.ImageSize = None,
    resize: options.Resize = None,
    channels: options.Channels = None,
    labels: options.Labels = None,
    classes: options.Classes = None,
    on_bad_image: options.OnBadImage = None,
    model: Annotated[str | None, typer.Option(help="The network.")] = None,
    weights: Annotated[
        str | None, typer.Option(help="The weights that all trials start from.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Random seed of the search and of all trainings.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu or cuda; default: auto.")] = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Print the space, the cost and the first settings, and stop."
        ),
    ] = False,
    quiet: options.Quiet = False,
) -> None:
    """Search settings of a method for clean and robust accuracy.

    Ctrl-C saves and stops. The same command continues, also inside a training, and after kill -9;
    with more --trials it adds further ones.
    """
    from equipoise.cli.training import layers
    from equipoise.plans.sweep import sweep as job

    names = ("data", "model", "weights", "seed", "device", *options.READING)
    given: dict[str, Any] = {name: context.params[name] for name in names}
    given["data_dir"] = str(data_dir.expanduser().absolute()) if data_dir else None
    job(
        layers(what, {k: v for k, v in given.items() if v is not None}, settings),
        space,
        out,
        fixed=[item.partition("=")[0].strip() for item in settings or ()],
        trials=trials,
        on=options.place(on, workers),
        resources=resources,
        dry_run=dry_run,
        command=shlex.join(["equipoise", *sys.argv[1:]]),
        console=Console(quiet=quiet),
    )
