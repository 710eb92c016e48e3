"""``python -m benchmarks``, in a checkout: see ``python -m benchmarks --help``."""

__all__ = ["app", "main"]

import typer

from benchmarks.command import EPILOG, bench
from equipoise.cli import run

app = typer.Typer(
    name="benchmarks",
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
)
app.command(epilog=EPILOG)(bench)


def main() -> None:
    """Run the command line."""
    run(app)


if __name__ == "__main__":
    main()
