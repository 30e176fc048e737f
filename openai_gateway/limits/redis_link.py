"""This process's connection to Redis (or Valkey): commands in one round trip, each bounded in time.

Another one is made only to listen, for over one that is told what others say, Redis takes no commands.

Nobody else imports redis-py, an extra (`pip install 'openai_gateway[redis]'`). See also: redis_exchange (when to ask
what).
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Sequence
from time import monotonic
from typing import Any, Final, Protocol

from openai_gateway.config.secret import Secret

# Beyond that Redis is away: whoever exchanges every quarter of a second can't wait longer for one.
_TIMEOUT_S: Final = 1.0
# A round trip that took longer tells the time no better than is known.
_EXACT_S: Final = 0.05

Command = tuple[str | bytes | int | float, ...]


class RedisAway(Exception):
    """Redis can't be asked now; the message says why in a few words, without the URL."""


class Link(Protocol):
    """What an exchange needs of Redis."""

    def ask(self, commands: Sequence[Command]) -> list[Any]:
        """Return the commands' replies. Raises RedisAway."""

    def clock(self) -> float:
        """Return Redis's time (Unix, seconds); all hosts read the same clock. Raises RedisAway."""

    def close(self) -> None:
        """Close the connection until it is needed again."""

    def hear(self, channels: Iterable[str]) -> tuple[str, bytes] | None:
        """Return what is said next on one of these channels; None if nothing is for a second. Raises RedisAway."""

    def stop_hearing(self) -> None:
        """Listen no more until `hear` is called again."""


class RedisLink:
    """A connection that is made when it is needed, and again after a failure."""

    def __init__(self, url: Secret) -> None:
        # Here, for it takes half a second, in which no call is under way as yet.
        import redis

        self._redis: Any = redis
        self._url = url
        self._client: Any = None
        self._ear: Any = None
        self._channels: frozenset[str] = frozenset()
        # What this process's monotonic clock lacks to Redis's, and whether it is that of the Redis connected to now.
        self._ahead_s = -math.inf
        self._is_timed = False

    def ask(self, commands: Sequence[Command]) -> list[Any]:
        """Return the commands' replies, in one round trip. Raises RedisAway."""
        try:
            if self._client is None:
                self._client, self._is_timed = self._make_client(), False
            pipeline = self._client.pipeline(transaction=False)
            for command in (("TIME",), *commands):
                pipeline.execute_command(*command)
            began = monotonic()
            replies: list[Any] = pipeline.execute(raise_on_error=False)
            for command, reply in zip((("TIME",), *commands), replies, strict=True):
                # A user of Redis may have no channels: then others hear of it later.
                if isinstance(reply, Exception) and command[0] != "PUBLISH":
                    raise reply
            seconds, microseconds = replies.pop(0)
            self._learn_time(seconds + microseconds / 1e6, began)
        except Exception as error:
            self.close()
            raise RedisAway(_describe(error)) from None
        except BaseException:
            # Of a connection that was left in the midst of a reply nothing more can be read.
            self.close()
            raise
        return replies

    def clock(self) -> float:
        """Return Redis's time. Raises RedisAway if it was never reached."""
        if self._client is None or self._ahead_s == -math.inf:
            self.ask(())
        return monotonic() + self._ahead_s

    def close(self) -> None:
        """Close the connection, if there is one; one that listens is made anew, for it may be broken, too."""
        client, self._client, self._channels = self._client, None, frozenset()
        if client is not None:
            with contextlib.suppress(Exception):
                client.close()

    def hear(self, channels: Iterable[str]) -> tuple[str, bytes] | None:
        """Return what is said next on one of these channels; None if nothing is for a second. Raises RedisAway."""
        try:
            if self._channels != (wanted := frozenset(channels)):
                self.stop_hearing()
                self._ear = self._make_client().pubsub(ignore_subscribe_messages=True)
                self._ear.subscribe(*wanted)
                for _ in wanted:
                    # That it is listened to is said for each.
                    self._ear.get_message(timeout=_TIMEOUT_S)
                self._channels = wanted
            heard = self._ear.get_message(timeout=_TIMEOUT_S)
        except Exception as error:
            self.stop_hearing()
            raise RedisAway(_describe(error)) from None
        except BaseException:
            self.stop_hearing()
            raise
        return (heard["channel"].decode(), heard["data"]) if heard is not None else None

    def stop_hearing(self) -> None:
        """Close the connection that listens, if there is one."""
        ear, self._ear, self._channels = self._ear, None, frozenset()
        if ear is not None:
            with contextlib.suppress(Exception):
                ear.close()

    def _make_client(self) -> Any:
        from redis.backoff import NoBackoff
        from redis.retry import Retry

        return self._redis.Redis.from_url(
            self._url.reveal(),
            socket_timeout=_TIMEOUT_S,
            socket_connect_timeout=_TIMEOUT_S,
            retry=Retry(NoBackoff(), 0),
            protocol=2,
        )

    def _learn_time(self, told: float, began: float) -> None:
        passed_s = monotonic() - began
        if passed_s < _EXACT_S or not self._is_timed:
            self._ahead_s, self._is_timed = told - began - passed_s / 2, True


def _describe(error: Exception) -> str:
    """Say what went wrong without what was sent: a message of Redis may repeat it."""
    name, code = type(error).__name__, str(error).rpartition("caused error: ")[2].partition(" ")[0]
    cause = error if isinstance(error, OSError) else error.__cause__ or error.__context__
    if "Timeout" in name or isinstance(cause, TimeoutError):
        return f"no answer within {_TIMEOUT_S:g} s"
    if name in ("AuthenticationError", "NoPermissionError", "AuthorizationError"):
        return "it refuses the user or password, or what the user may do"
    if isinstance(cause, OSError) and cause.strerror:
        return cause.strerror.lower()
    # LOADING, READONLY, OOM and their kin.
    return code if code.isalpha() and code.isupper() else name
