"""What must hold between the clients file and the servers, and what an operator should be told of clients' keys.

See also: clients (what a clients file may say).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from openai_gateway.config.build import PARENTS
from openai_gateway.config.clients import Client, Clients, parse_clients
from openai_gateway.config.complaints import Problem
from openai_gateway.config.keys import ServerConfig
from openai_gateway.config.merged_tree import MergedTree
from openai_gateway.config.watched_file import BadContent


def read_clients(
    servers: Mapping[str, ServerConfig], known: Sequence[str], merged: MergedTree, problems: list[Problem]
) -> dict[str, Clients]:
    """Return what the clients files hold, by path; complain of one that can't be used, or whose budgets can't hold."""
    files: dict[str, Clients] = {}
    for name, server in servers.items():
        path = server.clients_file
        if path is None:
            continue
        dotted = ".".join([name, *PARENTS, "clients_file"])
        place = merged.place_of(dotted, "clients_file")
        if path not in files:
            files[path] = Clients()
            try:
                files[path] = parse_clients(Path(path).read_text(encoding="utf-8"), frozenset(known))
            except (BadContent, OSError) as error:
                problems.append(Problem(place, dotted, f"the file {path} {error}"))
        problems += _find_loose_budgets(server, list(files[path].by_name.values()), dotted, place)
    return files


def _find_loose_budgets(server: ServerConfig, clients: Sequence[Client], dotted: str, place: str) -> Iterator[Problem]:
    """Complain of budgets at a server that can't know what calls cost, or can't remember it."""
    budgets = [client.name for client in clients if client.budget_usd is not None and client.may_use(server.name)]
    for why in find_looseness(server) if budgets else ():
        yield Problem(place, dotted, f"{', '.join(budgets)}: {why}")


def find_looseness(server: ServerConfig) -> Iterator[str]:
    """Say why budgets can't hold at a server, and what to do about it."""
    if server.usage_log is None:
        yield "a budget needs a usage log; set usage_log: without it, what is spent would be forgotten at a restart"
    if not knows_costs(server):
        said = f"a budget can't hold for {server.openai_model}, which has no price"
        yield f"{said}; add it to {server.price_file or 'a price_file'}, or set unknown_cost: allow"


def knows_costs(server: ServerConfig) -> bool:
    """Tell whether the server's model has a price, or is not to need one."""
    return server.unknown_cost != "refuse" or server.prices.find(server.openai_model) is not None


def find_open_doors(servers: Mapping[str, ServerConfig]) -> Iterator[str]:
    """Say which servers anybody may use while others ask for keys: most likely by mistake."""
    open_ones = [name for name, server in servers.items() if not _asks_for_keys(server)]
    if open_ones and len(open_ones) < len(servers):
        guarded = next(name for name in servers if name not in open_ones)
        yield (
            f"{', '.join(open_ones)}: anybody may use it without a key, while {guarded} asks for one; "
            "keys at the top level are for all servers"
        )


def _asks_for_keys(server: ServerConfig) -> bool:
    return bool(server.gateway_api_keys or server.gateway_api_keys_file or server.clients_file)
