"""Pages that are made: those beside the README, and the commands with their options."""

import re
from pathlib import Path

import typer
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from typer.cli import get_docs_for_click

from equipoise import cli

ROOT = Path(__file__).resolve().parent.parent
BESIDE = {
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "security.md",
}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages; links into ``docs/`` become links within it."""
    for name, page in BESIDE.items():
        text = (ROOT / name).read_text(encoding="utf-8").replace("](docs/", "](")
        for other, target in BESIDE.items():
            text = text.replace(f"]({other}", f"]({target}")
        files.append(File.generated(config, page, content=text))
    files.append(File.generated(config, "reference/commands.md", content=commands()))
    return files


def commands() -> str:
    """Return what ``--help`` says of every command, as Markdown."""
    group = typer.main.get_command(cli.app)
    for command in getattr(group, "commands", {}).values():
        command.short_help = (command.help or "").partition("\n\n")[0]
    context = typer.Context(group, info_name="equipoise")
    text = get_docs_for_click(obj=group, ctx=context, name="equipoise")
    text = re.sub(r"\x08\n((?: +.*\n)+)", r"```text\n\1```\n", text)  # what is not to be filled
    return re.sub(r"^# `equipoise`", "# Commands", text)
