"""How each named client stands: what it has spent, reserved and under way, over all workers; and files in trouble.

Asked for by the status page and the metrics only. See also: budgets (the money), totals (the calls), config.clients.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import msgspec

from openai_gateway.accounting.budgets import Budgets
from openai_gateway.accounting.spend import NANO, Spend
from openai_gateway.accounting.totals import ClientSums, Totals
from openai_gateway.config.clients import Client, ClientsFile
from openai_gateway.config.watched_file import WatchedFile

_NOTHING = Spend({"day": 0, "month": 0, "total": 0}, 0, 0)


class Standing(msgspec.Struct, frozen=True):
    """One client. `spent_usd` is that of the budget's period; `sums` are those of the calls since the start."""

    name: str
    budget_usd: float | None
    per: str
    spent_usd: float
    reserved_usd: float
    in_flight: int
    sums: ClientSums


class Standings:
    """The standings of the clients in some files; `get_key_files` gives the other files of keys, by name."""

    def __init__(
        self,
        files: Mapping[str, ClientsFile],
        budgets: Budgets,
        get_key_files: Callable[[], Iterable[WatchedFile[tuple[str, ...]]]] = tuple,
    ) -> None:
        self._files = files
        self._budgets = budgets
        self._get_key_files = get_key_files

    def read(self, total: Totals) -> list[Standing]:
        """Return how the clients stand that there are, by their names."""
        clients = {name: client for file in self._files.values() for name, client in file.read().by_name.items()}
        spent = self._budgets.read(clients) if clients else {}
        return [
            _make_standing(client, spent.get(name, _NOTHING), total.clients.get(name) or ClientSums())
            for name, client in sorted(clients.items())
        ]

    def problems(self) -> list[str]:
        """Say which files of keys and clients can't be used as they are now."""
        files: list[WatchedFile[tuple[str, ...]] | ClientsFile] = [*self._files.values(), *self._get_key_files()]
        for file in files:
            file.read()
        return [f"{file.path} {file.problem}; {file.kept}" for file in files if file.problem is not None]


def _make_standing(client: Client, spend: Spend, sums: ClientSums) -> Standing:
    return Standing(
        name=client.name,
        budget_usd=client.budget_usd,
        per=client.per,
        spent_usd=spend.spent[client.per] / NANO,
        reserved_usd=spend.reserved / NANO,
        in_flight=spend.in_flight,
        sums=sums,
    )
