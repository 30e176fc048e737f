"""`openai-gateway clients`: who may use the gateway: makes keys, lists clients, takes them out.

A running gateway reads the file again within a second.

See also: config.clients (what may stand in the file).
"""

from __future__ import annotations

import os
import re
import secrets
import stat
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Final, TypeVar

import click
import yaml

from openai_gateway.accounting.budgets import Budgets, derive_budgets_path
from openai_gateway.accounting.spend import NANO, Spend
from openai_gateway.config import ConfigError, load_config
from openai_gateway.config.clients import PERIODS, Client, Clients, hash_key, parse_clients
from openai_gateway.config.files import read_sources
from openai_gateway.config.load import find_servers
from openai_gateway.config.watched_file import BadContent

_DEFAULT: Final = "clients.yaml"
_Command = TypeVar("_Command", bound=Callable[..., Any])


@click.group(name="clients")
def clients_command() -> None:
    """Manage the clients file: who may use the gateway, by which key, for how much.

    The file is the config's clients_file, else clients.yaml in this folder. A running gateway reads it again within a
    second; a key that is taken out is refused from then on.

    \b
    Examples:
      openai-gateway clients add policy-team --budget 20 --per day
      openai-gateway clients list
      openai-gateway clients remove policy-team
    """


def _file_option(function: _Command) -> _Command:
    option = click.option("--file", "given", type=click.Path(path_type=Path), help="Another clients file.")
    return option(function)


@clients_command.command()
@click.argument("name")
@click.option("--budget", type=click.FloatRange(0), metavar="USD", help="US dollars that its calls may cost.")
@click.option("--per", type=click.Choice(PERIODS), help="What the budget is for (default: total).")
@click.option("--share", type=click.FloatRange(0.001, 1000), help="Weight among waiting clients (default: 1).")
@click.option("--max-concurrent", type=click.IntRange(1), metavar="N", help="Its calls at a time.")
@click.option("--expires", metavar="DATE", help="Last day that the key is good for, such as 2026-12-31 (UTC).")
@click.option("--server", "servers", multiple=True, metavar="NAME", help="A server that it may use (default: all).")
@_file_option
def add(name: str, given: Path | None, **settings: Any) -> None:
    """Make a key for a client and show it, once.

    The file keeps its SHA-256 only.
    """
    path, names, is_configured = _find(given)
    if settings["per"] is not None and settings["budget"] is None:
        raise click.UsageError("--per says what --budget is for")
    text, clients = _read(path, names)
    if name in clients.by_name:
        raise click.ClickException(f"{path} has a client {name}; remove it first, or give another name")
    key = f"gw-{secrets.token_urlsafe(32)}"
    entry = {
        "key_sha256": hash_key(key).hex(),
        "budget_usd": settings["budget"],
        "per": settings["per"],
        "share": settings["share"],
        "max_concurrent_requests": settings["max_concurrent"],
        "expires": settings["expires"],
        "servers": list(settings["servers"]) or None,
    }
    block = yaml.safe_dump({name: {each: value for each, value in entry.items() if value is not None}}, sort_keys=False)
    longer = f"{text.rstrip()}\n{block}" if text.strip() else block
    try:
        known = set(parse_clients(longer, names).by_name)
    except BadContent as error:
        raise click.ClickException(f"{path} {error}") from None
    if known != {*clients.by_name, name}:
        raise click.ClickException(f"{path} is not written as name: {{...}} a line; add this by hand:\n{block}")
    _write(path, longer)
    click.echo(f"{name} is in {path}; this is its key, shown only now:", err=True)
    click.echo(key)
    if not is_configured:
        click.echo(
            f"No config here names the file: set clients_file: {path}, or the gateway won't ask for keys", err=True
        )


@clients_command.command(name="list")
@_file_option
def list_clients(given: Path | None) -> None:
    """List the clients, without keys; with what they have spent."""
    path, names, _ = _find(given)
    _, clients = _read(path, names)
    if not clients.by_name:
        click.echo(f"{path} names no clients", err=True)
        return
    spent = _read_spend(clients)
    rows: list[tuple[str, ...]] = [
        ("client", "budget", "spent", "reserved", "share", "at a time", "good until", "servers")
    ]
    rows += [_to_row(client, spent.get(client.name)) for client in clients.by_name.values()]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


@clients_command.command()
@click.argument("name")
@_file_option
def remove(name: str, given: Path | None) -> None:
    """Take a client out; its key is refused within a second."""
    path, names, _ = _find(given)
    text, clients = _read(path, names)
    if name not in clients.by_name:
        raise click.ClickException(f"{path} has no client {name}")
    # Its line and those indented below it; comments elsewhere stay.
    begin = (
        rf"(?m)^(?:{re.escape(name)}|'{re.escape(name)}'|\"{re.escape(name)}\")[ \t]*:.*\n?(?:[ \t]+.*\n?|[ \t]*\n)*"
    )
    shorter = re.sub(begin, "", text, count=1)
    try:
        left = set(parse_clients(shorter, names).by_name)
    except BadContent:
        left = None
    if left != clients.by_name.keys() - {name}:
        raise click.ClickException(f"{path} is not written as name: {{...}} a line; take {name} out by hand")
    _write(path, shorter)
    click.echo(f"{name} is out of {path}", err=True)


def _find(given: Path | None) -> tuple[Path, frozenset[str], bool]:
    """Return the clients file, the names of the servers that the config has, and whether it names any clients file."""
    merged = read_sources(os.environ, (), Path.cwd(), [])
    servers = find_servers(merged.tree)
    named = [merged.tree.get("clients_file"), *(settings.get("clients_file") for settings in servers.values())]
    configured = next((path for path in named if isinstance(path, str) and "${" not in path), _DEFAULT)
    return given or Path(configured), frozenset(servers), any(named)


def _read(path: Path, names: frozenset[str]) -> tuple[str, Clients]:
    try:
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        return text, parse_clients(text, names)
    except BadContent as error:
        raise click.ClickException(f"{path} {error}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise click.ClickException(f"{path} can't be read ({type(error).__name__})") from None


def _write(path: Path, text: str) -> None:
    """Put the text in the file's place, whole or not at all; only the owner may read a new file."""
    target = path.resolve()
    mode = stat.S_IMODE(target.stat().st_mode) if target.exists() else 0o600
    new = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        new.touch(mode=0o600, exist_ok=False)
        new.write_text(text, encoding="utf-8")
        new.chmod(mode)
        new.replace(target)
    except OSError as error:
        new.unlink(missing_ok=True)
        raise click.ClickException(f"{path} can't be written ({error.strerror})") from None


def _read_spend(clients: Clients) -> dict[str, Spend]:
    """Return what the clients have spent; nothing where no budgets are kept, or the config doesn't say where."""
    try:
        config = load_config(os.environ)
    except ConfigError:
        return {}
    logs = [server.usage_log for server in config.servers.values() if server.usage_log is not None]
    if not logs or not os.path.exists(derive_budgets_path(logs[0])):
        return {}
    budgets = Budgets(derive_budgets_path(logs[0]))
    try:
        return budgets.read(clients.by_name)
    except OSError as error:
        click.echo(f"what was spent can't be read ({error.strerror})", err=True)
        return {}
    finally:
        budgets.close()


def _to_row(client: Client, spend: Spend | None) -> tuple[str, ...]:
    budget = "-" if client.budget_usd is None else f"${client.budget_usd:,.2f} {_to_period(client.per)}"
    until = "-"
    if client.expires is not None:
        until = datetime.fromtimestamp(client.expires, timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    most = "-" if client.max_concurrent_requests is None else str(client.max_concurrent_requests)
    money = (
        ("-", "-")
        if spend is None
        else tuple(f"${nano / NANO:,.4f}" for nano in (spend.spent[client.per], spend.reserved))
    )
    return client.name, budget, *money, f"{client.share:g}", most, until, ", ".join(client.servers or ("all",))


def _to_period(per: str) -> str:
    return "in all" if per == "total" else f"a {per}"
