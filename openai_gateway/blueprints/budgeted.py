"""Admits calls of clients and runs with budgets: sets money aside for each, and begins few while costs are unknown.

A call without a bound on its output may cost many times what is assumed of it. So until some of a client's calls to a
server have told what they cost, only a few more than those that have may be under way; the others wait here, before
they take a slot. With a bound nothing has to wait. See also: accounting.budgets (which holds the money).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec
from gevent.event import Event

from openai_gateway.accounting.budgets import BudgetReservation, Budgets, read_run_limit
from openai_gateway.accounting.estimates import Experience, measure_call
from openai_gateway.config import ServerConfig
from openai_gateway.config.client_faults import knows_costs
from openai_gateway.config.clients import Client
from openai_gateway.errors import InvalidRequest, Saturated
from openai_gateway.wire.call import Call

_FIRST_CALLS: Final = 2
_ENOUGH_ANSWERS: Final = 8


class BudgetDoor:
    """Admits the calls to one server."""

    def __init__(self, budgets: Budgets, server: ServerConfig) -> None:
        self._budgets = budgets
        self._server = server
        self._knows_costs = knows_costs(server)

    def reserve(
        self,
        call: Call,
        client: Client | None,
        values: Mapping[str, msgspec.Raw],
        defaults: Mapping[str, msgspec.Raw],
        environ: Mapping[str, Any],
    ) -> BudgetReservation:
        """Return the money set aside for a call. Raises BudgetExceeded, ClientBusy, Saturated, InvalidRequest."""
        run = read_run_limit(environ, client)
        if run is not None and not self._knows_costs:
            raise InvalidRequest(
                f"A run's budget can't hold for {self._server.openai_model}, which has no price.", code="invalid_header"
            )
        asked = measure_call(call.api, call.body or b"", values, defaults)
        is_limited = run is not None or (client is not None and client.budget_usd is not None)
        experience = self._budgets.find_experience(client, self._server)
        if is_limited and asked.output_tokens is None:
            self._await_turn(experience)
        return self._budgets.reserve(self._server, client, run, asked)

    def _await_turn(self, experience: Experience) -> None:
        """Wait until so few calls of unknown cost are under way that one more may begin."""
        while experience.answers < _ENOUGH_ANSWERS and experience.unbounded >= _FIRST_CALLS + experience.answers:
            over = Event()
            experience.awaited.append(over.set)
            try:
                if not over.wait(self._server.queue_timeout_s):
                    raise Saturated(
                        "The call waited in vain for others to tell what calls cost; max_output_tokens spares that.",
                        code="gateway_queue_timeout",
                        retry_after_s=1,
                    )
            finally:
                if over.set in experience.awaited:
                    experience.awaited.remove(over.set)
