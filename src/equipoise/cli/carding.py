"""``equipoise card``: a document on a model that strangers can check."""

from pathlib import Path
from typing import Annotated

import typer

from equipoise.cli import options
from equipoise.errors import UserError
from equipoise.terminal.progress import Console

CARD_EPILOG = (
    "A pair of keys: equipoise card keygen --out me.key. A signed card: equipoise card runs/a3gt "
    "--sign me.key --out card/. A stranger checks it: equipoise verify card/ --key me.key.pub "
    "--model MODEL. Another one, who needs no equipoise: python examples/verify_card.py."
)
KEYGEN = "keygen"
KEY, CARD = Path("card.key"), Path("card")


def card(
    what: Annotated[
        str,
        typer.Argument(metavar="RUN|keygen", help="The run folder; or keygen: make a new key."),
    ],
    weights: Annotated[
        str, typer.Option(help="Which weights of the run, as for `equipoise evaluate`.")
    ] = "model",
    sign: Annotated[
        Path | None,
        typer.Option(metavar="KEY", help="Sign the card with this private key (Ed25519)."),
    ] = None,
    date: Annotated[
        str | None, typer.Option(help="A date for the card, any text; default: it has none.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="The folder of the card; default: card. With keygen the private key."),
    ] = None,
    quiet: options.Quiet = False,
) -> None:
    """Write a card of a model's evaluations: card.json and the adversarial examples.

    It has every count with its interval, the verdict on each image, the checks, the checksums of
    weights, code and data, and what is not known. Nothing is measured again. Whoever has the card,
    the model and the images can compute its numbers anew: equipoise verify.
    """
    console = Console(quiet=quiet)
    if what == KEYGEN:
        from equipoise.card.envelope import keygen

        if sign or date:
            raise UserError("keygen makes a key: leave --sign and --date out")
        place = out or KEY
        public = keygen(place)
        typer.echo(f"{place} signs cards: keep it secret. {public} checks them: give it away.")
        return
    from equipoise.jobs.card import write_card

    place = out or CARD
    written = write_card(what, place, which=weights, key=sign, date=date, console=console)
    state = "complete" if written.complete else "INCOMPLETE, as it says on top"
    typer.echo(f"{place}: a card of {len(written.evaluations)} evaluations, {state}")
