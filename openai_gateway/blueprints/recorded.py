"""The way of a create call where answers are kept: one that is there, one under way, or a call that is made and kept.

See also: recordings (which of these it is), upstream.relay (the call itself).
"""

from __future__ import annotations

import copy
import errno
import logging
from collections.abc import Callable, Iterator, Mapping
from time import monotonic
from typing import Any, Final

import gevent
import msgspec

from openai_gateway.errors import Cancelled, ClientGone, GatewayError, NoRecording
from openai_gateway.recordings.kept import KeptAnswer, decode_pieces
from openai_gateway.recordings.recordings import Bypass, Flight, Hit, Recordings, Shared
from openai_gateway.transport.watch import CallWatch
from openai_gateway.upstream.answer import Answer, write
from openai_gateway.upstream.progress import Progress
from openai_gateway.upstream.pump import Sink
from openai_gateway.upstream.relay import Relay
from openai_gateway.wire import envelope
from openai_gateway.wire.cache_control import make_call_status, make_hit_status
from openai_gateway.wire.call import Call
from openai_gateway.wire.head import Head, Header
from openai_gateway.wire.headers import OF_CLIENT, RequestHeaders
from openai_gateway.wire.sse import is_event_stream
from openai_gateway.wire.tail import Tail, make_tail
from openai_gateway.wire.timed_tail import TimedTail

_log = logging.getLogger("openai_gateway")
_MOST_BYTES: Final = 16 * 1024 * 1024
_ASKED: Final = ("cache-control", "x-gateway-run", "x-gateway-repeat", "x-stainless-retry-count")
_LIMITS: Final = ("x-ratelimit-", "anthropic-ratelimit-", "retry-after")
_ENCODING: Final = "content-encoding"
# States of a response that is no answer to keep.
_UNFINISHED: Final = frozenset({"failed", "in_progress", "queued", "cancelled"})
# After so many pieces others get a turn.
_TURN: Final = 256
_LEFT: Final = "the client left or stopped reading"


# Sets money aside for a call that is going to be made, given its body's values and the environ.
Reserve = Callable[[Call, Mapping[str, msgspec.Raw], dict[str, Any]], Call]


class RecordedRelay:
    """Answers create calls of one server from what is kept, else by `relay`, whose answers are kept."""

    def __init__(self, relay: Relay, recordings: Recordings, reserve: Reserve, *, is_paced: bool) -> None:
        self._relay = relay
        self._reserve = reserve
        self._recordings = recordings
        self._is_paced = is_paced
        self._is_failing = False

    def send(
        self, call: Call, values: Mapping[str, msgspec.Raw], environ: dict[str, Any], watch: CallWatch
    ) -> Answer | ReplayedAnswer:
        """Return an answer; `values` are those of the body. Raises GatewayError, ClientGone."""
        started = monotonic()
        try:
            found = self._begin(call, values, environ)
        except (NoRecording, Cancelled) as error:
            watch.stop()
            reason = error.reason if isinstance(error, Cancelled) else error
            if isinstance(reason, GatewayError | ClientGone):
                self._relay.refuse(call, reason, started)
            raise reason from None
        if isinstance(found, Flight):
            try:
                call = self._reserve(call, values, environ)
            except BaseException:
                found.fail()
                raise
            return self._fly(call, found, watch)
        if isinstance(found, Bypass):
            call = self._reserve(call, values, environ)
            status = make_call_status(found.why, is_stored=False)
            return self._relay.send(call, watch, _Passing(status, is_captured=call.received is not None))
        if isinstance(found, Shared) and isinstance(found.outcome, GatewayError):
            watch.stop()
            shared = copy.copy(found.outcome)
            self._relay.refuse(call, shared, started)
            raise shared
        hit = found if isinstance(found, Hit) else Hit(found.outcome, 0.0, is_joined=True)
        return ReplayedAnswer(hit, self._relay, Progress(call, len(call.body or b""), started), watch, self._is_paced)

    def _begin(self, call: Call, values: Mapping[str, msgspec.Raw], environ: Mapping[str, Any]) -> Any:
        asked = {
            name: str(value)
            for name in _ASKED
            if (value := environ.get(f"HTTP_{name.upper().replace('-', '_')}")) is not None
        }
        is_stateful = (
            envelope.is_true(values.get("background"))
            or envelope.is_true(values.get("store"))
            or any(envelope.is_given(values.get(name)) for name in ("previous_response_id", "conversation"))
        )
        try:
            found = self._recordings.begin(
                call.target, call.body or b"", asked, call.rollout_id, is_stateful=is_stateful
            )
        except OSError as error:
            if not self._is_failing:
                self._is_failing = True
                _log.error("kept answers can't be read: %s", error)
            if not self._recordings.may_call:
                raise NoRecording("The kept answers can't be read; the gateway's log says why.") from None
            return Bypass("bypass")
        self._is_failing = False
        return found

    def _fly(self, call: Call, flight: Flight, watch: CallWatch) -> Answer:
        # Whatever becomes of the call, the relay tells the follower, which ends the flight.
        follower = _Keeping(flight, self._relay, monotonic(), is_captured=call.received is not None)
        return self._relay.send(_ask_for_plain(call), watch, follower)


def _ask_for_plain(call: Call) -> Call:
    """Return the call with no encoding asked for but gzip, for others could not be undone for the next asker."""
    asked = call.headers.get("accept-encoding", "identity")
    plain = "gzip" if "gzip" in asked else "identity"
    if plain == asked:
        return call
    return msgspec.structs.replace(call, headers=RequestHeaders({**call.headers, "accept-encoding": plain}))


class _Passing:
    """Follows a call whose answer isn't kept: only says so."""

    def __init__(self, status: str, *, is_captured: bool) -> None:
        self._is_captured = is_captured
        self.added_headers: list[Header] = [("cache-status", status)]

    def make_tail(self, head: Head) -> Tail:
        return make_tail(head, monotonic, is_captured=self._is_captured)

    def is_awaited(self) -> bool:
        return False

    def end(self, progress: Progress) -> None:
        pass


class _Keeping:
    """Follows a call whose answer is kept, if it is whole, and handed to all who wait for it."""

    def __init__(self, flight: Flight, relay: Relay, started: float, *, is_captured: bool) -> None:
        self._is_captured = is_captured
        self._flight = flight
        self._relay = relay
        self._started = started
        self._tail: TimedTail | None = None
        self._headers: list[Header] = []
        self.added_headers: list[Header] = [("cache-status", make_call_status(flight.why, is_stored=flight.is_kept))]

    def make_tail(self, head: Head) -> Tail:
        """Return a tail that keeps the body, its pieces, and when they came; of a stream nobody else keeps the head."""
        self._headers = [pair for pair in head.passing if not _is_of_its_time(pair[0].lower())]
        self._tail = TimedTail(_MOST_BYTES, make_tail(head, monotonic, is_captured=self._is_captured))
        return self._tail

    def is_awaited(self) -> bool:
        """Tell whether others wait for the answer."""
        return self._flight.is_awaited()

    def end(self, progress: Progress) -> None:
        """Land or fail the flight."""
        try:
            answer = self._make_kept_answer(progress)
            if answer is None:
                self._flight.fail(progress.error)
            elif answer.status < 300 and self._is_complete(progress, answer):
                self._flight.land(answer, is_had=progress.outcome == "completed")
            elif not any(name in progress.call.headers for name in OF_CLIENT):
                self._flight.fail(answer)
        finally:
            # Whatever happened, nobody may wait for ever. (Above, those who wait get an error, too, unless a header
            # of this client's own may be the cause.)
            self._flight.fail()

    def _make_kept_answer(self, progress: Progress) -> KeptAnswer | None:
        """Return the answer, None if it isn't whole, or too long, or encoded in a way that not every client takes."""
        head, tail = progress.head, self._tail
        pieces = tail.pieces() if tail is not None else None
        if head is None or tail is None or pieces is None or not progress.is_read or progress.error is not None:
            return None
        plain = decode_pieces(pieces, head.known.get(_ENCODING, "identity"))
        if plain is None:
            return None
        record = self._relay.to_record(progress)
        is_stream = is_event_stream(head.known.get("content-type", ""))
        return KeptAnswer(
            path=progress.call.target,
            status=head.status,
            reason=head.reason,
            headers=self._headers,
            body=b"".join(plain),
            pieces=[len(piece) for piece in plain] if is_stream else [],
            times_ms=[round((time - self._started) * 1000) for time in tail.times] if is_stream else [],
            model=record.model,
            usage=record.usage,
            cost_usd=record.cost_usd,
            finish_reason=record.finish_reason,
        )

    @staticmethod
    def _is_complete(progress: Progress, answer: KeptAnswer) -> bool:
        if answer.pieces:
            last_events = answer.body.replace(b"\r\n", b"\n").rstrip(b"\n").rsplit(b"\n\n", 2)[1:]
            return any(end in event for end in progress.call.api.ends for event in last_events)
        return answer.finish_reason not in _UNFINISHED


def _is_of_its_time(name: str) -> bool:
    return name == _ENCODING or name.startswith(_LIMITS)


class ReplayedAnswer:
    """A kept answer on its way to a client: as the upstream's own, see upstream.answer."""

    def __init__(self, hit: Hit, relay: Relay, progress: Progress, watch: CallWatch, is_paced: bool) -> None:
        answer = hit.answer
        self.head = Head(answer.status, answer.reason, answer.headers)
        # A stream goes out in the pieces that it came in.
        self.body = None if answer.pieces else answer.body
        self.added_headers = [
            *relay.make_own_headers(progress),
            ("cache-status", make_hit_status(is_joined=hit.is_joined)),
            ("age", str(int(hit.age_s))),
        ]
        self._pieces = iter(self._pace(answer) if is_paced and answer.times_ms else answer.to_pieces())
        self._count = 0
        self._relay: Relay | None = relay
        self._progress = progress
        self._watch = watch
        progress.status, progress.head = answer.status, self.head
        self._tail = progress.tail = make_tail(self.head, monotonic, is_captured=progress.call.received is not None)

    def _pace(self, answer: KeptAnswer) -> Iterator[bytes]:
        began = self._progress.started
        for piece, time_ms in zip(answer.to_pieces(), answer.times_ms, strict=True):
            gevent.sleep(max(0.0, began + time_ms / 1000 - monotonic()))
            yield piece

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        """Return the next piece. Raises ConnectionResetError if the client has left."""
        self._count += 1
        try:
            if self._count % _TURN == 0:
                # No upstream is waited for here, and a fast client isn't either: without this, nobody else would run.
                gevent.sleep(0)
            piece = next(self._pieces)
        except StopIteration:
            self._progress.outcome = "completed"
            raise
        except Cancelled:
            raise ConnectionResetError(errno.ECONNRESET, _LEFT) from None
        self._tail.add(piece)
        return piece

    def pump_into(self, sink: Sink) -> None:
        """Write the body into `sink`."""
        try:
            if self.body is not None:
                self._tail.add(self.body)
                self._capture()
                write(sink, self._watch, self.body, is_last=True)
            else:
                for piece in self:
                    write(sink, self._watch, piece, is_last=False)
                self._capture()
                write(sink, self._watch, b"", is_last=True)
            self._progress.outcome = "completed"
        except Cancelled:
            raise ConnectionResetError(errno.ECONNRESET, _LEFT) from None

    def _capture(self) -> None:
        if self._relay is not None:
            self._relay.capture_whole(self._progress)

    def close(self) -> None:
        """Have the call recorded; safe to call again."""
        relay, self._relay = self._relay, None
        if relay is not None:
            self._watch.stop()
            self._progress.is_replayed = True
            relay.end(self._progress)
