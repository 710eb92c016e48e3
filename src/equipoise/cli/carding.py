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
        typer.Argument(
            metavar="RUN|keygen|CARD",
            help="The run folder; keygen: make a new key; or a card, to take an excerpt of it.",
        ),
    ],
    weights: Annotated[
        str | None, typer.Option(help="Which weights of the run, as for `equipoise evaluate`.")
    ] = None,
    sign: Annotated[
        Path | None,
        typer.Option(metavar="KEY", help="Sign the card with this private key (Ed25519)."),
    ] = None,
    date: Annotated[
        str | None, typer.Option(help="A date for the card, any text; default: it has none.")
    ] = None,
    examples: Annotated[
        int | None,
        typer.Option(metavar="K", help="Of a CARD: take K examples of each evaluation."),
    ] = None,
    nonce: Annotated[
        str | None, typer.Option(help="With --examples: any text; it determines which ones.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="The folder of the card; default: card. With keygen the private key."),
    ] = None,
    quiet: options.Quiet = False,
) -> None:
    """Write a card of a model's evaluations, with the examples.

    It has every count with its interval, the verdict on each image, the checks, the checksums of
    weights, code and data, and what is not known. Nothing is measured again. Whoever has the card,
    the model and the images can compute its numbers anew: equipoise verify.
    """
    console, place = Console(quiet=quiet), out or (KEY if what == KEYGEN else CARD)
    given = {"--weights": weights, "--sign": sign, "--date": date}
    names = [name for name, value in given.items() if value is not None]
    if what == KEYGEN:
        from equipoise.card.envelope import keygen

        if names or (examples, nonce) != (None, None):
            raise UserError("keygen makes a key: give no other option than --out")
        public = keygen(place)
        typer.echo(f"{place} signs cards: keep it secret. {public} checks them: give it away.")
        return
    from equipoise.jobs.card import write_card, write_excerpt

    if examples is not None:
        if names:
            raise UserError(f"an excerpt has what its card has: leave {', '.join(names)} out")
        nonce = "excerpt" if nonce is None else nonce
        write_excerpt(Path(what), place, examples=examples, nonce=nonce, console=console)
        return
    if nonce is not None or (Path(what) / "card.json").exists():
        raise UserError("an excerpt of a card needs --examples K; a card of a run has no --nonce")
    which = weights or "model"
    written = write_card(what, place, which=which, key=sign, date=date, console=console)
    state = "complete" if written.complete else "INCOMPLETE, as it says on top"
    count = len(written.evaluations)
    typer.echo(f"{place}: a card of {count} evaluation{'s' * (count > 1)}, {state}")
