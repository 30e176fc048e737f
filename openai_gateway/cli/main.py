"""The command group; each command is imported only when it is called, so that `--help` is quick.

What a command does is in its own module.
"""

from __future__ import annotations

import importlib
from typing import Final

import click

from openai_gateway import __version__

_COMMANDS: Final = {
    "collect": "Collect the answers to a file of prompts, with repeats; goes on after any interruption.",
    "demo": "Start simulator and gateway, send one request of each kind, and serve on.",
    "usage": "Sum up usage logs by model, rollout, hour or status.",
    "simulate": "Run the simulator: an OpenAI-like upstream that costs nothing.",
}


class LazyGroup(click.Group):
    """Knows its commands by name and imports them on demand."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the commands' names."""
        return sorted(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return a command by its name."""
        if cmd_name not in _COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"openai_gateway.cli.{cmd_name}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl(sorted(_COMMANDS.items()))


@click.command(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="openai-gateway")
def main() -> None:
    """A small gateway in front of one OpenAI-compatible endpoint.

    Try it without a key:  openai-gateway demo

    Serve for real:  write env.yaml, then  gunicorn -c conf/gunicorn.conf.py wsgi:app
    """
