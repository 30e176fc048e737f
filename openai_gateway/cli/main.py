"""The command group; each command is imported only when it is called, so that `--help` is quick.

What a command does is in its own module; how errors look is here.
"""

from __future__ import annotations

import difflib
import importlib
import os
from typing import IO, Any, Final

import click
from click.shell_completion import CompletionItem

from openai_gateway import __version__

_COMMANDS: Final = {
    "bench": "Measure calls/s and latency of a gateway, and what it adds to its upstream.",
    "check": "Try the upstream: DNS, TLS, key, model, both APIs, streams, function calls.",
    "clients": "Manage clients: make keys with budgets, list them, take them out.",
    "collect": "Collect the answers to a file of prompts, with repeats; goes on after any interruption.",
    "completion": "Print the script that completes commands in a shell.",
    "config": "Show the resolved config, and where each value came from.",
    "demo": "Start simulator and gateway, send one request of each kind, and serve on.",
    "recordings": "Look at kept answers, remove old ones, take them elsewhere.",
    "serve": "Serve: gunicorn with gevent workers, from one command.",
    "simulate": "Run the simulator: an OpenAI-like upstream that costs nothing.",
    "usage": "Sum up usage logs by model, client, rollout, hour or status.",
}


class _OneLine(click.ClickException):
    """An error as one line, its first word red on a terminal."""

    def show(self, file: IO[Any] | None = None) -> None:
        styled = f"{click.style('Error:', fg='red')} {self.format_message()}"
        click.echo(styled, file=file, err=True, color=_may_colour())


class _WronglyCalled(_OneLine):
    exit_code = 2


def _may_colour() -> bool | None:
    """Return False if the environment says NO_COLOR (no-color.org), else None: on a terminal only."""
    return False if os.environ.get("NO_COLOR") else None


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

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Return the command that the arguments name; of a misspelt one, say which is near."""
        near = difflib.get_close_matches(args[0], _COMMANDS, 1) if args[0] not in _COMMANDS else []
        if near:
            ctx.fail(f"No such command {args[0]!r} (did you mean {near[0]!r}?)")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl(sorted(_COMMANDS.items()))

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Return what `incomplete` may become, without importing the commands."""
        found = [CompletionItem(name, help=what) for name, what in _COMMANDS.items() if name.startswith(incomplete)]
        return [*found, *click.Command.shell_complete(self, ctx, incomplete)]

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        """Return the context, which says for all commands whether there may be colours."""
        try:
            return super().make_context(info_name, args, parent, **{"color": _may_colour(), **extra})
        except click.ClickException as error:
            raise _to_one_line(error) from None

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command that was named."""
        try:
            return super().invoke(ctx)
        except click.ClickException as error:
            raise _to_one_line(error) from None


def _to_one_line(error: click.ClickException) -> click.ClickException:
    # Click's own error for "no arguments" holds the whole help.
    if isinstance(error, click.UsageError) and type(error).__name__ != "NoArgsIsHelpError":
        path = error.ctx.command_path if error.ctx is not None else "openai-gateway"
        return _WronglyCalled(f"{error.format_message().rstrip('.')}; see '{path} --help'")
    return _OneLine(error.format_message()) if type(error) is click.ClickException else error


@click.command(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="openai-gateway")
def main() -> None:
    """A small gateway in front of one OpenAI-compatible endpoint.

    \b
    Try it without a key:
      openai-gateway demo
    Serve for real, once env.yaml holds endpoint, key and model:
      openai-gateway config --validate
      openai-gateway check
      openai-gateway serve
    See what it cost:
      openai-gateway usage usage.jsonl

    Every command has --help with examples. Exit codes: 0 success, 1 the job failed, 2 called or configured wrongly,
    130 stopped by Ctrl-C (collect).
    """
