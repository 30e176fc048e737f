"""Renders the declared keys as Markdown tables, a group each, for the page on configuration.

`python -m openai_gateway.config.reference PAGE` puts them into a page, between its two marks.
See also: keys (the declarations).
"""

from __future__ import annotations

import sys
from itertools import groupby
from pathlib import Path
from typing import Final

from openai_gateway.config.clients import CLIENT_KEYS
from openai_gateway.config.declaration import Key
from openai_gateway.config.keys import KEYS

BEGIN: Final = "<!-- keys: made by `python -m openai_gateway.config.reference` from the declarations -->"
END: Final = "<!-- end of keys -->"


def render_tables() -> str:
    """Return the tables of all keys, those of the clients file last, in the order of their declaration."""
    groups = groupby([*KEYS.items(), *CLIENT_KEYS.items()], key=lambda item: item[1].group)
    return "\n\n".join(_render_table(title, dict(keys)) for title, keys in groups)


def put_tables(page: str) -> str:
    """Return a page with the tables between its marks made anew. Raises ValueError if it has none."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the page has no {BEGIN} ... {END}")
    return f"{before}{begin}\n\n{render_tables()}\n\n{end}{after}"


def _render_table(title: str, keys: dict[str, Key]) -> str:
    rows = [
        f"| `{name}`{' ¹' if key.is_shared else ''} | {key.check.kind} | {_to_default(key)} | {key.meaning} |"
        for name, key in keys.items()
    ]
    return "\n".join([f"### {title}", "", "| key | type | default | meaning |", "|---|---|---|---|", *rows])


def _to_default(key: Key) -> str:
    shown = key.shown_default
    return f"`{shown}`" if shown in ("{}", "[]") else shown


def main() -> int:
    """Write the tables into the page named, or out if none is."""
    if len(sys.argv) < 2:
        print(render_tables())
    else:
        page = Path(sys.argv[1])
        page.write_text(put_tables(page.read_text(encoding="utf-8")), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
