"""`openai-gateway completion`: the script that completes commands and options in a shell.

click makes the script, which asks `openai-gateway` itself what may come next. See also: main (the commands).
"""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from openai_gateway.cli.exits import OK, CommandFailed

_VARIABLE = "_OPENAI_GATEWAY_COMPLETE"


@click.command(name="completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion_command(ctx: click.Context, shell: str) -> int:
    """Print the script that completes commands in a shell.

    \b
    Examples:
      eval "$(openai-gateway completion bash)"        # in ~/.bashrc
      eval "$(openai-gateway completion zsh)"         # in ~/.zshrc
      openai-gateway completion fish > ~/.config/fish/completions/openai-gateway.fish
    """
    return print_completion(ctx.find_root().command, shell)


def print_completion(root: click.Command, shell: str) -> int:
    """Print a shell's script for the commands below `root`; return the exit code."""
    maker = get_completion_class(shell)
    if maker is None:
        raise CommandFailed(f"this version of click knows no {shell}; pip install --upgrade click")
    try:
        click.echo(maker(root, {}, "openai-gateway", _VARIABLE).source())
    except RuntimeError as error:
        raise CommandFailed(str(error)) from None
    return OK
