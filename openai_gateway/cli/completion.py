"""`openai-gateway completion`: the script that completes commands and options in a shell.

The script is click's; it asks `openai-gateway` itself what may come next.
"""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

_VARIABLE = "_OPENAI_GATEWAY_COMPLETE"


@click.command(name="completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def command(ctx: click.Context, shell: str) -> None:
    """Print the script that completes commands in a shell.

    \b
    Examples:
      eval "$(openai-gateway completion bash)"        # in ~/.bashrc
      eval "$(openai-gateway completion zsh)"         # in ~/.zshrc
      openai-gateway completion fish > ~/.config/fish/completions/openai-gateway.fish
    """
    maker = get_completion_class(shell)
    if maker is None:
        raise click.ClickException(f"this version of click knows no {shell}; pip install --upgrade click")
    try:
        click.echo(maker(ctx.find_root().command, {}, "openai-gateway", _VARIABLE).source())
    except RuntimeError as error:
        raise click.ClickException(str(error)) from None
