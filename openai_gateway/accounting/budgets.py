"""Holds clients and runs to their budgets: money is set aside before a call is made, and settled when it is over.

States of a call's money: reserved (an estimate, from its admission on) -> settled: the reported cost; the estimate
where the usage isn't known; nothing for errors and calls never made. What is settled is in the usage log, too, as
`charged_usd`, and summed again at the start. See also: spend_file (the one truth for all workers), estimates.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterable, Mapping
from typing import Any, Final

from openai_gateway.accounting.estimates import Asked, Experience, guess_usd
from openai_gateway.accounting.spend import NANO, Full, Limit, Spend
from openai_gateway.accounting.spend_exchange import SpendPart
from openai_gateway.accounting.spend_file import SpendFile
from openai_gateway.accounting.spend_history import sum_up_spend
from openai_gateway.config import ServerConfig
from openai_gateway.config.clients import Client
from openai_gateway.errors import BudgetExceeded, ClientBusy, InvalidRequest, Unavailable
from openai_gateway.wire.call import CallRecord
from openai_gateway.wire.usage import Usage

_log = logging.getLogger("openai_gateway")
_NANO_CENT: Final = NANO // 100
RUN_BUDGET: Final = "HTTP_X_GATEWAY_RUN_BUDGET_USD"
_MOST_EXPERIENCES: Final = 10_000


class Budgets:
    """The money of all clients and runs; `path` None keeps it in this process, for as long as that lives.

    `usage_logs` are the files that tell of earlier spending, `names` those whose spending should be in them.
    """

    def __init__(self, path: str | None, usage_logs: Iterable[str] = (), names: Iterable[str] = ()) -> None:
        self._path = path
        self._names = tuple(names)
        self._usage_logs = tuple(dict.fromkeys(usage_logs))
        self._file: SpendFile | None = None
        self._pid = 0
        self._experiences: dict[tuple[str, str], Experience] = {}

    def reserve(
        self, server: ServerConfig, client: Client | None, run: Limit | None, asked: Asked
    ) -> BudgetReservation:
        """Set aside what a call may cost. Raises BudgetExceeded, ClientBusy."""
        limits = [run] if run is not None else []
        if client is not None:
            limits.append(find_limit(client))
        experience = self.find_experience(client, server)
        estimate_usd = experience.estimate_usd(server, asked)
        nano_usd, now = round((estimate_usd or 0.0) * NANO), time.time()
        try:
            self._open().reserve(limits, nano_usd, now)
        except Full as full:
            raise _make_refusal(full, nano_usd, now) from None
        except OSError as error:
            _log.error("budgets: %s can't be used: %s", self._path, error)
            raise Unavailable("The gateway can't look up budgets now.", code="gateway_budgets_unavailable") from None
        experience.begin(asked)
        return BudgetReservation(self, tuple(limits), nano_usd, now, (experience, asked, server))

    def find_experience(self, client: Client | None, server: ServerConfig) -> Experience:
        """Return what is known of a client's calls to a server."""
        key = (client.name if client is not None else "", server.name)
        experience = self._experiences.get(key)
        if experience is None:
            if len(self._experiences) >= _MOST_EXPERIENCES:
                self._experiences.clear()
            experience = self._experiences[key] = Experience()
        return experience

    def settle(self, limits: tuple[Limit, ...], reserved: int, charge: int, reserved_at: float) -> None:
        """Put what a call cost in the place of what was set aside for it."""
        self._open().settle(limits, reserved, charge, reserved_at)

    def read(self, names: Iterable[str]) -> dict[str, Spend]:
        """Return what these clients have spent and reserved."""
        return self._open().read(names, time.time())

    def make_part(self) -> SpendPart | None:
        """Return what other hosts share of it; None for money of this process alone."""
        return SpendPart(self._path, self._open, self._names) if self._path is not None else None

    def open(self) -> None:
        """Find what was spent before; a failure is logged, and met again by the first call."""
        try:
            self._open()
        except OSError as error:
            _log.error("budgets: %s can't be used: %s", self._path, error)

    def close(self) -> None:
        """Give up what this process has reserved."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _open(self) -> SpendFile:
        # A column of the table belongs to one process: after a fork, the child opens the file anew and gets its own.
        if self._file is None or self._pid != os.getpid():
            self._file, self._pid = SpendFile(self._path), os.getpid()
            if self._file.is_first and self._usage_logs:
                self._recall(self._file)
        return self._file

    def _recall(self, file: SpendFile) -> None:
        """Compare with the usage log, as nobody else spends yet; the larger sum counts, and a lost log is told of."""
        now = time.time()
        try:
            sums = sum_up_spend(self._usage_logs, now)
        except OSError as error:
            _log.error("budgets: the usage log can't be read (%s); what %s tells counts", error, self._path)
            return
        for name, spent in sums.items():
            more = file.raise_spent(name, spent, now)
            _log.info("budgets: %s has spent $%.2f, by the usage log", name, spent["total"] / NANO)
            if more > _NANO_CENT:
                _tell_lost(name, spent["total"] + more, spent["total"])
        for name, found in file.read(self._names, now).items():
            if name not in sums and found.spent["total"] > _NANO_CENT:
                _tell_lost(name, found.spent["total"], 0)


def derive_budgets_path(usage_log: str) -> str:
    """Return where budgets are kept beside a usage log: under a name that `usage.jsonl*` doesn't match, too."""
    folder, name = os.path.split(usage_log)
    return os.path.join(folder, f".{name}.budgets")


class BudgetReservation:
    """What is set aside for one call; settled exactly once, by whoever records the call."""

    __slots__ = ("_at", "_budgets", "_learn_from", "_limits", "_nano_usd")

    def __init__(
        self,
        budgets: Budgets,
        limits: tuple[Limit, ...],
        nano_usd: int,
        at: float,
        learn_from: tuple[Experience, Asked, ServerConfig],
    ) -> None:
        self._budgets = budgets
        self._limits = limits
        self._nano_usd = nano_usd
        self._at = at
        self._learn_from = learn_from

    def release(self) -> None:
        """Give it back for a call that was never made; does nothing once it is settled."""
        self._end(0, None)

    def settle(self, record: CallRecord | None) -> float:
        """Settle and return what is charged, in US dollars; None for a call of which nothing is known any more."""
        charge = self._nano_usd if record is None else _compute_charge(record, self._nano_usd, self._learn_from[2])
        usage = record.usage if record is not None and not record.is_replayed else None
        return self._end(charge, usage)

    def _end(self, charge: int, usage: Usage | None) -> float:
        limits, self._limits = self._limits, ()
        if not limits:
            return 0.0
        try:
            self._budgets.settle(limits, self._nano_usd, charge, self._at)
        finally:
            experience, asked, _ = self._learn_from
            experience.end(asked, usage)
        return charge / NANO


def _compute_charge(record: CallRecord, estimate: int, server: ServerConfig) -> int:
    if record.cost_usd is not None:
        return round(record.cost_usd * NANO)
    if record.attempts == 0 or record.is_replayed or (record.status or 0) >= 400:
        return 0
    if record.usage is None:
        return estimate
    # What was used is known, but not what that costs: another model, a tier without a price.
    return round((guess_usd(server, record.usage, record.service_tier) or 0.0) * NANO)


def find_limit(client: Client) -> Limit:
    """Return what bounds a client."""
    nano_usd = None if client.budget_usd is None else round(client.budget_usd * NANO)
    return Limit(client.name, nano_usd, client.per, client.max_concurrent_requests)


def read_run_limit(environ: Mapping[str, Any], client: Client | None) -> Limit | None:
    """Return what bounds the run that a request names, if it gives it a budget. Raises InvalidRequest."""
    given = environ.get(RUN_BUDGET)
    if given is None:
        return None
    run = environ.get("HTTP_X_GATEWAY_RUN")
    if not run:
        raise InvalidRequest(
            "x-gateway-run-budget-usd needs x-gateway-run, the name of the run.", code="invalid_header"
        )
    try:
        budget_usd = float(given)
    except ValueError:
        budget_usd = -1.0
    if not 0 <= budget_usd <= 1e9:
        raise InvalidRequest("x-gateway-run-budget-usd must be a number of US dollars.", code="invalid_header")
    # Each client has runs of its own.
    name = f"run {run[:200]}" + (f" of {client.name}" if client is not None else "")
    return Limit(name, round(budget_usd * NANO), is_run=True)


def _make_refusal(full: Full, nano_usd: int, now: float) -> BudgetExceeded | ClientBusy:
    limit, spend = full.limit, full.spend
    if full.is_busy:
        return ClientBusy(f"{limit.name} has {spend.in_flight} calls under way, as many as it may.")
    spent, reserved, budget = spend.spent[limit.per], spend.reserved, limit.nano_usd or 0
    when = {"day": "today", "month": "this month", "total": "in all"}[limit.per]
    reset = _describe_reset(limit.per, now)
    return BudgetExceeded(
        f"The budget of {limit.name} leaves no room for this call, which may cost {_to_usd(nano_usd)}:"
        f" {_to_usd(spent)} of {_to_usd(budget)} spent {when}, {_to_usd(reserved)} reserved for calls under way."
        f" {f'It is renewed at {reset}.' if reset else 'It is not renewed.'}"
    )


def _to_usd(nano_usd: int) -> str:
    return f"${nano_usd / NANO:,.2f}" if nano_usd % _NANO_CENT == 0 else f"${nano_usd / NANO:,.6f}"


def _describe_reset(per: str, now: float) -> str:
    date = time.gmtime(now)
    if per == "day":
        return time.strftime("%Y-%m-%dT00:00Z", time.gmtime((now // 86_400 + 1) * 86_400))
    if per == "month":
        year, month = (date.tm_year, date.tm_mon + 1) if date.tm_mon < 12 else (date.tm_year + 1, 1)
        return f"{year:04d}-{month:02d}-01T00:00Z"
    return ""


def _tell_lost(name: str, known: int, logged: int) -> None:
    _log.warning(
        "budgets: the usage log tells of $%.2f of the $%.2f that %s spent: lines were lost or moved; the latter counts",
        logged / NANO,
        known / NANO,
        name,
    )
