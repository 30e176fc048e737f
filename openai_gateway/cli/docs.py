"""`openai-gateway docs`: shows the documentation that is installed with the package, in a pager on a terminal.

The pages are openai_gateway/docs/*.md. Elsewhere than on a terminal they are printed as they are, in Markdown. See
also: screen.
"""

from __future__ import annotations

import difflib
import shutil
import sys
from collections.abc import Sequence
from importlib.resources import files
from typing import Final

import click
from click.shell_completion import CompletionItem

from openai_gateway.cli.exits import OK, CalledWrongly
from openai_gateway.cli.screen import is_terminal, may_colour, print_indented

_MOST_COLUMNS: Final = 100


def _complete(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> Sequence[CompletionItem]:
    return [CompletionItem(name) for name in read_pages() if name.startswith(incomplete)]


@click.command(name="docs")
@click.argument("page", required=False, shell_complete=_complete)
def docs_command(page: str | None) -> int:
    """Show a page of the documentation; without PAGE, list them.

    \b
    Examples:
      openai-gateway docs
      openai-gateway docs troubleshooting
      openai-gateway docs configuration | grep -i key     # Markdown, as it is
    """
    pages = read_pages()
    return list_pages(pages) if page is None else show_page(pages, page)


def read_pages() -> dict[str, str]:
    """Return the text of each page by its name."""
    folder = files("openai_gateway") / "docs"
    found = [entry for entry in folder.iterdir() if entry.name.endswith(".md")]
    return {entry.name.removesuffix(".md"): entry.read_text("utf-8") for entry in sorted(found, key=lambda at: at.name)}


def list_pages(pages: dict[str, str]) -> int:
    """Print each page's name and how it begins; return the exit code."""
    width = max(map(len, pages))
    for name, text in pages.items():
        start = f"  {click.style(name, bold=True)}{' ' * (width - len(name))}  "
        print_indented(_find_first_sentence(text), width + 4, start)
    click.echo("\nopenai-gateway docs PAGE shows one.")
    return OK


def show_page(pages: dict[str, str], name: str) -> int:
    """Show a page and return the exit code."""
    text = pages.get(name.removesuffix(".md"))
    if text is None:
        near = difflib.get_close_matches(name, pages, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(pages)}"
        raise CalledWrongly(f"there is no page {name!r}; {hint}")
    if is_terminal(sys.stdout):
        click.echo_via_pager(_render(text))
    else:
        click.echo(text, nl=False)
    return OK


def _render(text: str) -> str:
    from rich.console import Console
    from rich.markdown import Markdown

    width = min(shutil.get_terminal_size().columns, _MOST_COLUMNS)
    console = Console(width=width, color_system="auto" if may_colour() else None, highlight=False)
    with console.capture() as capture:
        console.print(Markdown(text, hyperlinks=False))
    return capture.get()


def _find_first_sentence(text: str) -> str:
    """Return the first sentence below the title."""
    paragraphs = [part.strip() for part in text.split("\n\n") if not part.lstrip().startswith(("#", "<", "!"))]
    first = " ".join(paragraphs[0].split()) if paragraphs else ""
    return first.partition(". ")[0].rstrip(".:")
