"""The command group: names each command, imports it only when it is called, and ends it with its exit code.

`--help` imports click and nothing else of weight. See also: exits (which error is which code).
"""

from __future__ import annotations

import gc
import importlib
import os
from typing import TYPE_CHECKING, Any, Final

import click

from openai_gateway import __version__
from openai_gateway.cli import exits

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

_COMMANDS: Final = {
    "bench": "Measure calls/s and latency of a gateway, and what it adds to its upstream.",
    "check": "Try the upstream: DNS, TLS, key, model, both APIs, streams, function calls.",
    "clients": "Manage clients: make keys with budgets, list them, take them out.",
    "collect": "Collect the answers to a file of prompts, with repeats; goes on after any interruption.",
    "completion": "Print the script that completes commands in a shell.",
    "config": "Show the resolved config, and where each value came from.",
    "demo": "Show what the gateway does, with the simulator as upstream, and serve on.",
    "docs": "Show the documentation, page by page.",
    "init": "Ask for endpoint, key and model, write env.yaml, and try it.",
    "merge": "Put the outputs of many machines into one; see that nothing is missing or doubled.",
    "recordings": "Look at kept answers, remove old ones, take them elsewhere.",
    "serve": "Serve: gunicorn with gevent workers, from one command.",
    "simulate": "Run the simulator: an OpenAI-like upstream that costs nothing.",
    "usage": "Sum up usage logs by model, client, rollout, hour or status.",
}


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
        # What is imported stays: to look for garbage meanwhile would take a tenth of the time.
        gc.disable()
        module = importlib.import_module(f"openai_gateway.cli.{cmd_name}")
        gc.freeze()
        gc.enable()
        command: click.Command = getattr(module, f"{cmd_name}_command")
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Return the command that the arguments name; of a misspelt one, say which is near."""
        if args[0] not in _COMMANDS:
            from difflib import get_close_matches

            for near in get_close_matches(args[0], _COMMANDS, 1):
                ctx.fail(f"No such command {args[0]!r} (did you mean {near!r}?)")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl(sorted(_COMMANDS.items()))

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Return what `incomplete` may become, without importing the commands."""
        from click.shell_completion import CompletionItem

        found = [CompletionItem(name, help=what) for name, what in _COMMANDS.items() if name.startswith(incomplete)]
        return [*found, *click.Command.shell_complete(self, ctx, incomplete)]

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        """Return the context, which says for all commands whether there may be colours."""
        try:
            return super().make_context(info_name, args, parent, **{"color": _may_colour(), **extra})
        except click.UsageError as error:
            raise _end_usage(error) from None

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command that was named and end with the code that it returns, or that its error stands for."""
        try:
            code = super().invoke(ctx)
        except click.UsageError as error:
            raise _end_usage(error) from None
        except click.ClickException as error:
            if type(error) is not click.ClickException:
                raise
            raise _end(error.format_message(), error.exit_code) from None
        except (click.Abort, click.exceptions.Exit):
            raise
        except (Exception, KeyboardInterrupt) as error:
            code = exits.find_exit_code(error)
            if code is None or exits.is_broken_pipe(error):
                raise
            raise _end(exits.describe_error(error), code, is_whole_page=exits.is_whole_page(error)) from None
        if code:
            ctx.exit(code)


def _end(message: str, code: int, *, is_whole_page: bool = False) -> click.exceptions.Exit:
    """Say why a command ends, its first word red on a terminal, and return what ends it."""
    start = "" if is_whole_page else f"{click.style('Error:', fg='red')} "
    click.echo(f"{start}{message}", err=True, color=_may_colour())
    return click.exceptions.Exit(code)


def _end_usage(error: click.UsageError) -> click.ClickException | click.exceptions.Exit:
    # Click's own error for "no arguments" holds the whole help.
    if type(error).__name__ == "NoArgsIsHelpError":
        return error
    path = error.ctx.command_path if error.ctx is not None else "openai-gateway"
    return _end(f"{error.format_message().rstrip('.')}; see '{path} --help'", exits.WRONG)


@click.command(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="openai-gateway")
def main() -> None:
    """A small gateway in front of one OpenAI-compatible endpoint.

    \b
    See what it does, without a key:
      openai-gateway demo
    Serve for real:
      openai-gateway init        # endpoint, key and model go into env.yaml
      openai-gateway serve
    Find out what is wrong:
      openai-gateway check
      openai-gateway docs troubleshooting

    Every command has --help with examples.

    \b
    Exit codes:
      0    done
      1    the job failed, or a part of it
      2    called or configured wrongly; nothing was done
      130  stopped by Ctrl-C
    """
