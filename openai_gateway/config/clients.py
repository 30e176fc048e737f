"""The clients file: who may use the gateway by which key, for how much money, and until when.

A mapping of names, `policy-team: {key: gw-..., budget_usd: 20, per: day}`; a file with anything wrong in it is refused
whole. See also: watched_file (when it is read), declaration (what a line below says).
"""

from __future__ import annotations

import difflib
import hashlib
import hmac
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from typing import Any, Final

from marshmallow import Schema, ValidationError

from openai_gateway.config.checks import INPUT, Check, Integer, Number, OneOf, SecretText
from openai_gateway.config.declaration import key as setting
from openai_gateway.config.declaration import keys_of
from openai_gateway.config.parse import NotYaml, parse_yaml
from openai_gateway.config.secret import Secret
from openai_gateway.config.watched_file import BadContent, WatchedFile

CLIENT: Final = "A client in clients_file"
PERIODS: Final = ("day", "month", "total")
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class Sha256(Check):
    """A key's SHA-256 in hexadecimal digits."""

    kind = "string"

    def convert(self, value: Any) -> str:
        """Return it in small letters."""
        if not isinstance(value, str) or not re.fullmatch(r"[0-9a-fA-F]{64}", value):
            raise ValidationError("64 hexadecimal digits are wanted (value not shown)")
        return value.lower()


class Moment(Check):
    """A moment: a date, which is the end of that day, or a date and a time; UTC unless it says otherwise."""

    kind = "date"

    def convert(self, value: Any) -> float:
        """Return it as Unix time."""
        try:
            text = str(value).strip().replace("Z", "+00:00")
            moment = datetime.fromisoformat(text)
        except ValueError:
            raise ValidationError(f"a date such as 2026-12-31 or 2026-12-31T18:00Z is wanted, not {INPUT}") from None
        if len(text) == len("2026-12-31"):
            moment += timedelta(days=1)
        return (moment if moment.tzinfo is not None else moment.replace(tzinfo=timezone.utc)).timestamp()


class Names(Check):
    """A list of names."""

    kind = "list"

    def convert(self, value: Any) -> tuple[str, ...]:
        """Return them; one alone may stand for a list."""
        names = [value] if isinstance(value, str) else value
        if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
            raise ValidationError(f"a list of servers' names is wanted, not {INPUT}")
        return tuple(names)


@dataclass(frozen=True, slots=True)
class Client:
    """One client by its name. `expires` is Unix time; `servers` None are all; `digest` is its key's SHA-256."""

    name: str
    key: Secret | None = setting(SecretText(), None, "the key that it sends; or `key_sha256`", CLIENT)
    key_sha256: str | None = setting(
        Sha256(), None, "the key's SHA-256, as `openai-gateway clients add` stores it", CLIENT
    )
    budget_usd: float | None = setting(
        Number(0, 1e9), None, "US dollars that its calls may cost; more get 429 `gateway_budget_exceeded`", CLIENT
    )
    per: str = setting(OneOf(*PERIODS), "total", "what the budget is for: a day, a month (UTC), or all time", CLIENT)
    share: float = setting(Number(0.001, 1000), 1.0, "weight among the clients that wait for a limit", CLIENT)
    max_concurrent_requests: int | None = setting(
        Integer(1), None, "its calls at a time, over all workers; more get 429 `gateway_client_busy`", CLIENT
    )
    expires: float | None = setting(Moment(), None, "last day (UTC), or moment, that its key is good for", CLIENT)
    servers: tuple[str, ...] | None = setting(Names(), None, "servers that it may use; null: all", CLIENT)

    def may_use(self, server: str) -> bool:
        """Tell whether it may use a server."""
        return self.servers is None or server in self.servers

    @property
    def digest(self) -> bytes:
        """Return the SHA-256 of its key."""
        return hash_key(self.key.reveal()) if self.key is not None else bytes.fromhex(self.key_sha256 or "")


CLIENT_KEYS: Final = keys_of(Client)
_SCHEMA: Final = Schema.from_dict({name: found.check for name, found in CLIENT_KEYS.items()}, name="ClientSchema")()


@dataclass(frozen=True)
class Clients:
    """All clients of a file."""

    by_name: Mapping[str, Client] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_by_digest", {client.digest: client for client in self.by_name.values()})

    def find(self, key: bytes) -> Client | None:
        """Return the client whose key this is; how long that takes says nothing of how near a wrong key was."""
        digest = hashlib.sha256(key).digest()
        by_digest: Mapping[bytes, Client] = self._by_digest  # type: ignore[attr-defined]
        client = by_digest.get(digest)
        return client if client is not None and hmac.compare_digest(digest, client.digest) else None


ClientsFile = WatchedFile[Clients]


def open_clients(
    path: str, initial: Clients, servers: frozenset[str], looseness: Mapping[str, Sequence[str]]
) -> ClientsFile:
    """Return the clients file at `path`: emptied, or gone for good, it lets nobody in.

    `initial` is what it held when the config was read, which holds on if it can't be used now. `servers` are those that
    there are, `looseness` says why budgets can't hold at some of them: then there may be none for these.
    """

    def parse_checked(text: str) -> Clients:
        clients = parse_clients(text, servers)
        for name, client in clients.by_name.items():
            whys = [why for server, whys in looseness.items() if client.may_use(server) for why in whys]
            if client.budget_usd is not None and whys:
                raise BadContent(f"can't be used: {name}: {whys[0]}")
        return clients

    file = ClientsFile(path, parse_checked, initial, "clients file", "the last clients stay as they are")
    file.when_gone = Clients()
    return file


def hash_key(key: str) -> bytes:
    """Return a key's SHA-256."""
    return hashlib.sha256(key.encode()).digest()


def parse_clients(text: str, servers: frozenset[str]) -> Clients:
    """Return the clients that a file's text names; none if it is empty. Raises BadContent with all that is wrong."""
    try:
        tree = parse_yaml(text)
    except NotYaml as error:
        raise BadContent(f"is not valid YAML ({error}{f', line {error.line}' if error.line else ''})") from None
    if tree is None:
        return Clients()
    if not isinstance(tree, dict):
        raise BadContent("holds no mapping of names, such as policy-team: {key: gw-...}")
    clients: dict[str, Client] = {}
    problems: list[str] = []
    for name, given in tree.items():
        found = list(_find_problems(name, given, servers))
        problems += [f"{name if _NAME.fullmatch(name) else 'a client'}: {problem}" for problem in found]
        if not found:
            clients[name] = Client(name=name, **_SCHEMA.load(given))
    problems += _find_twins(clients)
    if problems:
        raise BadContent("can't be used: " + "; ".join(problems))
    return Clients(clients)


def _find_problems(name: str, given: Any, servers: frozenset[str]) -> Iterator[str]:
    if not _NAME.fullmatch(name):
        yield "a name is 1 to 64 letters, digits, '.', '_', '-', and begins with a letter or digit"
    if not isinstance(given, dict):
        yield "a mapping such as {key: gw-...} is wanted"
        return
    for unknown in given.keys() - CLIENT_KEYS.keys():
        near = difflib.get_close_matches(unknown, CLIENT_KEYS, 1)
        yield f"an unknown key; did you mean {near[0]}?" if near else "an unknown key"
    known = {each: value for each, value in given.items() if each in CLIENT_KEYS}
    for each, messages in _SCHEMA.validate(known).items():
        yield f"{each}: {messages[0].replace(INPUT, repr(known[each])[:60])}"
    if (given.get("key") is None) == (given.get("key_sha256") is None):
        yield "one of key and key_sha256 is wanted"
    if given.get("budget_usd") is None and given.get("per") is not None:
        yield "per: says what budget_usd is for, which is not there"
    named = given.get("servers")
    for server in [named] if isinstance(named, str) else named if isinstance(named, list) else []:
        if server not in servers:
            yield f"servers: {str(server)[:60]!r} names no server; there are: {', '.join(sorted(servers))}"


def _find_twins(clients: Mapping[str, Client]) -> Iterator[str]:
    owners: dict[bytes, str] = {}
    for name, client in clients.items():
        first = owners.setdefault(client.digest, name)
        if first != name:
            yield f"{name}: has the key of {first}"
