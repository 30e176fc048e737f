"""Lets the calls of one server go, in order and within its upstream's limits; learns these from every answer.

A call is admitted once before its first attempt. A 429 of a limit costs it no retry, for nothing was paid, and the
limiter knows when to come back: it gives its slot back, waits at the front of the queue, and is admitted again, as long
as `retry_budget_s` lasts. What failed otherwise is tried again as `pacing` says, and keeps its slot meanwhile.

See also: queue (who waits), limiter (what is known of the limits), order (who goes first).
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Mapping
from time import monotonic, time
from typing import Final

import gevent

from openai_gateway.config import ServerConfig
from openai_gateway.limits.attempts import Bounds, ConfiguredLimits, SentAttempt
from openai_gateway.limits.host_exchange import UpstreamPart
from openai_gateway.limits.limiter import Limiter
from openai_gateway.limits.order import Order, Place, Rollout, Rollouts
from openai_gateway.limits.queue import Queue
from openai_gateway.limits.queued_call import QueuedCall
from openai_gateway.limits.sharing import SharedLimits, derive_limits_path
from openai_gateway.limits.slots import Admitted
from openai_gateway.limits.use import LimitUse, UnderWay
from openai_gateway.wire.head import Head
from openai_gateway.wire.headers import OF_ACCOUNT
from openai_gateway.wire.rate_limits import RateLimit, read_dialect, read_rate_limits, read_refusal
from openai_gateway.wire.retries import FINAL_QUOTA_CODES, Outcome

_log = logging.getLogger("openai_gateway")
# What the output of a call that gives no bound is taken to be; the drain learns what it really is.
_OUTPUT_TOKENS: Final = 1024
# How many hosts those that share their limits may be, until they are in touch.
_HOSTS_BY_GUESS: Final = 4
_RESPONSE_ID = re.compile(rb'"id"\s*:\s*("resp_[^"\\]{1,200}")')
_RESPONSE_KEY: Final = '"resp_'
_ID_WITHIN_BYTES: Final = 400


class Admission:
    """The queue of one server, as calls see it; one for the life of the process."""

    def __init__(self, server: ServerConfig) -> None:
        self._told = ConfiguredLimits(server.requests_per_minute, server.tokens_per_minute, server.learn_limits)
        self._learns = server.learn_limits
        self.limiter = Limiter(self._told, monotonic())
        self._shared: SharedLimits | None = None
        self._part: UpstreamPart | None = None
        bounds = Bounds(
            server.max_concurrent_requests,
            server.max_concurrent_requests_total,
            server.max_queue,
            server.queue_timeout_s,
            server.retry_budget_s,
        )
        self.queue = Queue(self.limiter, Order(is_fifo=server.schedule == "fifo"), bounds)
        self._server = server
        configured = {name.lower() for name in server.openai_default_headers}
        self._of_client = [name for name in OF_ACCOUNT if name not in configured]
        self._rollouts = Rollouts()
        self._last_head: Head | None = None
        self._answered_at = 0.0
        self._limits: dict[str, RateLimit] = {}
        self._limits_at = 0.0
        # Calls that wait for another attempt, by why the last one failed.
        self.retrying: Counter[str] = Counter()
        self._use = LimitUse(monotonic())
        # How the upstream tells of its limits.
        self._dialect = ""

    def share(self, key: str | None, workers: int) -> UpstreamPart | None:
        """Share limits and total cap with this host's other workers, if there may be any.

        Return what other hosts share, None if nothing is to be shared.
        """
        # None of these has heard of any other at their first calls.
        others = workers * (_HOSTS_BY_GUESS if self._server.limits_url is not None else 1) - 1
        if self._learns and others:
            self.limiter.window.begin_beside(others)
        return self.hand_on(key) if others or self._server.max_concurrent_requests_total is not None else None

    def hand_on(self, key: str | None) -> UpstreamPart | None:
        """Share them with whoever comes, if that is not done yet, and what was learnt so far; return as `share`."""
        server, total = self._server, self._server.max_concurrent_requests_total
        has_hosts = server.limits_url is not None
        if self._shared is not None or (total is None and not has_hosts and not self._learns):
            return None
        try:
            path = derive_limits_path(server.openai_base_url, key or "", server.openai_model)
            self._shared = SharedLimits(path, is_leased=has_hosts)
            self.queue.share(self._shared, at_once=has_hosts)
            self._part = UpstreamPart(path, self._told, total, monotonic()) if has_hosts else None
            return self._part
        except OSError as error:
            what = "limits and max_concurrent_requests_total are" if total is not None else "limits are"
            _log.warning("%s each worker's own: no file to share them (%s)", what, error)
            return None

    @property
    def _link(self) -> tuple[bool, int] | None:
        return self._shared.link if self._shared is not None and self._server.limits_url is not None else None

    def admit(self, queued: QueuedCall) -> None:
        """Admit a call, which waits if need be. Raises Saturated."""
        call = queued.call
        # A client that names another account has that one's limits, which nobody else must wait for.
        is_limited, tokens = call.is_metered, 0.0
        for name in self._of_client:
            is_limited = is_limited and name not in call.headers
        if is_limited:
            output = call.output_tokens if call.output_tokens is not None else _OUTPUT_TOKENS
            queued.tries.token_factor = factor = self.limiter.token_factor
            tokens = factor * (queued.request_bytes / 4 + output)
        # A call that names no rollout is one of its own.
        if call.rollout_key is None:
            rollout = Rollout(queued.started)
        else:
            rollout = self._rollouts.find(call.rollout_key, queued.started)
        queued.rollout = rollout
        admitted = self.queue.take_at_once(rollout, tokens, is_limited=is_limited)
        if admitted is None:
            queued.place = Place(rollout, tokens, is_limited, call.client or "", call.share)
            try:
                admitted = self.queue.take(queued.place)
            finally:
                queued.queue_reason = admitted.reason if admitted is not None else self.queue.reason
        rollout.calls += 1
        queued.admitted = admitted
        if is_limited:
            self._use.requests += 1
            self._use.tokens += tokens

    def admit_at_once(self, queued: QueuedCall, kept: Admitted | None = None) -> None:
        """Admit a call that is under way already: with what the call before it has `kept`, or a slot if one is free."""
        queued.rollout = Rollout(queued.started)
        queued.tries.token_factor = factor = self.limiter.token_factor
        if kept is not None:
            queued.admitted = kept
            self.charge_again(queued)
            return
        tokens = factor * _OUTPUT_TOKENS
        queued.admitted = self.queue.take_at_once(queued.rollout, tokens, is_limited=True)
        if queued.admitted is not None:
            self._use.requests += 1
            self._use.tokens += tokens

    def charge_again(self, queued: QueuedCall) -> None:
        """Charge a further attempt of a call that keeps its slot."""
        admitted = queued.admitted
        if admitted is not None and admitted.sent is not None:
            admitted.sent = self.queue.charge_again(admitted.sent)
            self._use.requests += 1
            self._use.tokens += admitted.sent.tokens

    def learn(self, queued: QueuedCall, head: Head, body: bytes) -> None:
        """Learn from an answer, of a refusal (429) only what its headers say; `body` is b"" if it isn't whole."""
        self._last_head, self._answered_at = head, time()
        sent = queued.admitted.sent if queued.admitted is not None else None
        if sent is None or head.status == 429:
            return
        limits: dict[str, RateLimit] = {}
        if "imit-" in head.text and self.limiter.may_refer(sent):
            limits = self._read_limits({name.lower(): value for name, value in head.headers})
        self.queue.answer(sent, limits, queued.tries if queued.tries.refusals else None)
        if body and self.queue.waiting:
            self._follow(body, queued)

    def learn_event(self, queued: QueuedCall, outcome: Outcome, text: bytes) -> None:
        """Learn from the first event of an answer over a WebSocket; one that is a refusal is its call's last."""
        sent = queued.admitted.sent if queued.admitted is not None else None
        if sent is None:
            return
        if may_readmit(outcome, is_learning=self._learns):
            self._learn_refusal(sent, queued, outcome, text)
            self.queue.learn()
            return
        self.queue.answer(sent, self._read_limits(outcome.headers) if self.limiter.may_refer(sent) else {})
        if self.queue.waiting:
            self._follow(text, queued)

    def readmit(self, queued: QueuedCall, outcome: Outcome, body: bytes, deadline: float | None) -> bool:
        """Admit a call that got this 429 once more; False if it is not to be, and the 429 goes out.

        Raises what ends the wait: a client that left, above all.
        """
        admitted, rollout = queued.admitted, queued.rollout
        if (
            admitted is None
            or admitted.sent is None
            or rollout is None
            or not may_readmit(outcome, is_learning=self._learns)
        ):
            return False
        now = monotonic()
        wait_s = self._learn_refusal(admitted.sent, queued, outcome, body)
        if wait_s is None or (deadline is not None and now + wait_s > deadline):
            self.queue.learn()
            return False
        place = queued.find_place_again(rollout, admitted.sent.tokens, self.limiter.token_factor)
        admitted.release()
        self.retrying["429"] += 1
        try:
            if wait_s > 0:
                queued.queue_reason = "pause"
                gevent.sleep(wait_s)
            queued.admitted = self.queue.take_again(place, deadline)
        finally:
            self.retrying["429"] -= 1
            queued.queue_wait_s += monotonic() - now
        if queued.admitted is None:
            return False
        queued.tries.again_at = monotonic()
        queued.retries += ("429",)
        queued.queue_reason = queued.admitted.reason or queued.queue_reason
        self._use.requests += 1
        self._use.tokens += place.tokens
        return True

    def _learn_refusal(self, sent: SentAttempt, queued: QueuedCall, outcome: Outcome, body: bytes) -> float | None:
        """Return how long the call must wait at least, None if it can't pass at all."""
        now = monotonic()
        self._use.refuse(sent.at, sent.tokens)
        refusal = read_refusal(outcome.headers, body, time())
        wait_s = self.queue.refuse(sent, self._read_limits(outcome.headers), refusal, queued.tries, now)
        if self._part is not None:
            self._part.say_refused(now)
        return wait_s

    def under_way(self) -> UnderWay:
        """Return how much is under way."""
        queue, window, now = self.queue, self.limiter.window, monotonic()
        return UnderWay(
            queue.slots.in_flight,
            len(queue.waiting),
            queue.slots.cap,
            {reason: count for reason, count in self.retrying.items() if count},
            queue.reason if queue.waiting else "",
            max(0.0, self.limiter.pause_until - now),
            self._use.find_out(self.limiter, self._dialect, now),
            window.most if window.is_held else None,
            self._use.attempts(),
            *(self._link or ()),
        )

    def rate_limits(self) -> tuple[dict[str, RateLimit], float]:
        """Return the rate limits by the last answer that had any, and when that was (Unix time, 0.0: never)."""
        said = self._last_head.headers if self._last_head is not None else ()
        limits = read_rate_limits({name.lower(): value for name, value in said})
        if limits:
            self._limits, self._limits_at = limits, self._answered_at
        return self._limits, self._limits_at

    def _read_limits(self, headers: Mapping[str, str]) -> dict[str, RateLimit]:
        dialect, limits = read_dialect(headers, time())
        self._dialect = dialect or self._dialect
        return limits

    def _follow(self, body: bytes, queued: QueuedCall) -> None:
        """Remember whose response this is: a call that names it as `previous_response_id` is of the same rollout."""
        key, rollout = queued.call.rollout_key, queued.rollout
        if rollout is None or not (key is None or key.startswith(_RESPONSE_KEY)):
            return
        found = _RESPONSE_ID.search(body, 0, _ID_WITHIN_BYTES)
        if found is not None:
            self._rollouts.remember(found[1].decode("latin-1"), rollout)


def may_readmit(outcome: Outcome, *, is_learning: bool) -> bool:
    """Tell whether an answer is a refusal that passes by itself, and no call's failure."""
    return (
        is_learning
        and outcome.status == 429
        and outcome.error_code not in FINAL_QUOTA_CODES
        and outcome.headers.get("x-should-retry") != "false"
    )
