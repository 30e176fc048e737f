"""Where a peer is, and which of its addresses is connected to: real sockets, names looked up by a stand-in."""

from __future__ import annotations

import _socket
import errno
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import gevent
import pytest

from openai_gateway.transport import addresses as addresses_module
from openai_gateway.transport import pool as pool_module
from openai_gateway.transport.addresses import Addresses
from openai_gateway.transport.dial import STAGGER_S, dial, keep_alive
from openai_gateway.transport.errors import NoDescriptor
from openai_gateway.transport.pool import ConnectionPool, ConnectionTerms
from tests.support.upstreams import ScriptedUpstream, answer_always, run_upstream

LookUp = Callable[[], list[tuple[str, int]]]


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> dict[str, LookUp]:
    """What each name is looked up to; any other is left to the system."""
    found: dict[str, LookUp] = {}
    real = _socket.getaddrinfo

    def look_up(host: str, port: int, *rest: Any) -> Any:
        if host not in found:
            return real(host, port, *rest)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", place) for place in found[host]()]

    monkeypatch.setattr(_socket, "getaddrinfo", look_up)
    return found


@pytest.fixture
def hole() -> Iterator[tuple[str, int]]:
    """A place where connections are never answered."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=0)
    fillers = [socket.socket() for _ in range(4)]
    for filler in fillers:
        filler.setblocking(False)
        filler.connect_ex(listener.getsockname())
    yield listener.getsockname()
    for sock in (listener, *fillers):
        sock.close()


@pytest.fixture
def closed() -> tuple[str, int]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        place: tuple[str, int] = listener.getsockname()
    return place


def _place(upstream: ScriptedUpstream) -> tuple[str, int]:
    return "127.0.0.1", int(upstream.url.rpartition(":")[2])


def test_address_that_refuses_gives_way_to_the_next(
    upstream: ScriptedUpstream, closed: tuple[str, int], names: dict[str, LookUp]
) -> None:
    names["several.test"] = lambda: [closed, _place(upstream)]
    sock, address = dial(Addresses("several.test", 1), None)
    sock.close()
    assert address[4] == _place(upstream)


def test_dead_addresses_cost_a_moment_once(
    upstream: ScriptedUpstream, hole: tuple[str, int], names: dict[str, LookUp]
) -> None:
    names["several.test"] = lambda: [hole, _place(upstream)]
    addresses = Addresses("several.test", 1)
    for most_s in (STAGGER_S * 10, STAGGER_S * 0.9):
        began = time.monotonic()
        dial(addresses, None)[0].close()
        assert time.monotonic() - began < most_s
    assert [address[4] for address in addresses.find()] == [_place(upstream), hole]


def test_slow_address_wins_if_all_others_fail(
    upstream: ScriptedUpstream, hole: tuple[str, int], closed: tuple[str, int], names: dict[str, LookUp]
) -> None:
    names["several.test"] = lambda: [hole, closed]
    addresses = Addresses("several.test", 1)
    with pytest.raises(gevent.Timeout), gevent.Timeout(STAGGER_S * 3):
        dial(addresses, None)
    names["refusing.test"] = lambda: [closed, closed]
    with pytest.raises(OSError, match="ECONNREFUSED"):
        dial(Addresses("refusing.test", 1), None)


def test_name_without_addresses_is_an_error(names: dict[str, LookUp]) -> None:
    names["none.test"] = list
    with pytest.raises(OSError, match="no address"):
        dial(Addresses("none.test", 1), None)


def test_ipv6_address_needs_no_lookup() -> None:
    try:
        listener = socket.create_server(("::1", 0), family=socket.AF_INET6)
    except OSError:
        pytest.skip("this machine has no IPv6 loopback")
    with listener:
        dial(Addresses("::1", listener.getsockname()[1]), None)[0].close()


def test_one_lookup_serves_all_who_wait_and_a_while_after(upstream: ScriptedUpstream, names: dict[str, LookUp]) -> None:
    lookups: list[int] = []

    def look_up() -> list[tuple[str, int]]:
        lookups.append(1)
        time.sleep(0.1)
        return [_place(upstream)]

    names["slow.test"] = look_up
    addresses = Addresses("slow.test", 1)
    waiting = [gevent.spawn(addresses.find) for _ in range(20)]
    gevent.joinall(waiting, timeout=60)
    assert len({str(greenlet.value) for greenlet in waiting}) == 1
    addresses.find()
    assert len(lookups) == 1


def test_lookup_that_hangs_stops_no_other_name_and_the_last_addresses_serve_meanwhile(
    upstream: ScriptedUpstream, names: dict[str, LookUp], monkeypatch: pytest.MonkeyPatch
) -> None:
    may_end, hangs = threading.Event(), [False]

    def look_up() -> list[tuple[str, int]]:
        if hangs[0]:
            may_end.wait(120)
        return [_place(upstream)]

    names["hanging.test"] = look_up
    addresses = Addresses("hanging.test", 1)
    before = addresses.find()
    hangs[0] = True
    monkeypatch.setattr(addresses_module, "FRESH_S", 0.0)
    with gevent.Timeout(5):
        assert addresses.find() == before
        waiting = [gevent.spawn(Addresses("hanging.test", 1).find) for _ in range(15)]
        gevent.sleep(0.05)
        Addresses("localhost", 1).find()
    assert not any(greenlet.ready() for greenlet in waiting)
    may_end.set()
    gevent.joinall(waiting, timeout=60)


def test_lookup_that_fails_leaves_the_last_addresses(
    upstream: ScriptedUpstream, names: dict[str, LookUp], monkeypatch: pytest.MonkeyPatch
) -> None:
    names["failing.test"] = lambda: [_place(upstream)]
    addresses = Addresses("failing.test", 1)
    before = addresses.find()

    def fail() -> list[tuple[str, int]]:
        raise socket.gaierror(-3, "Temporary failure in name resolution")

    names["failing.test"] = fail
    monkeypatch.setattr(addresses_module, "FRESH_S", 0.0)
    assert addresses.find() == before
    with pytest.raises(OSError, match="Temporary failure"):
        Addresses("failing.test", 1).find()


def test_cancelled_dial_leaves_no_socket_open_and_thinks_nobody_dead(
    hole: tuple[str, int], names: dict[str, LookUp]
) -> None:
    names["hole.test"] = lambda: [hole]
    addresses = Addresses("hole.test", 1)
    dialling = gevent.spawn(dial, addresses, None)
    gevent.sleep(0.05)
    dialling.kill()
    assert addresses._dead_until == {}


def test_lack_of_descriptors_is_told_from_a_peer_that_can_not_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(_socket, "socket", fail)
    with pytest.raises(NoDescriptor):
        ConnectionPool("127.0.0.1", 1, None).connect()


def test_kernel_probes_a_silent_connection() -> None:
    with socket.socket() as sock:
        keep_alive(sock, 60.0)
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        names = (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
        assert [sock.getsockopt(socket.IPPROTO_TCP, name) for name in names] == [60, 10, 3]


def test_name_that_has_moved_is_followed_under_load(names: dict[str, LookUp], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_module, "LOOK_EVERY_S", 0.02)
    with run_upstream(answer_always) as old, run_upstream(answer_always) as new:
        places = [_place(old)]
        names["moving.test"] = lambda: list(places)
        pool = ConnectionPool("moving.test", 1, None)
        pool.give_back(pool.connect())
        for _ in range(5):
            connection = pool.take()
            assert connection is not None, "what has not moved stays"
            gevent.sleep(0.03)
            pool.give_back(connection)
        places[:] = [_place(new)]
        with gevent.Timeout(5):
            while (connection := pool.take()) is not None:
                gevent.sleep(0.03)
                pool.give_back(connection)
        assert pool.connect().peer == _place(new)
        pool.close()


def test_name_that_gives_its_addresses_by_turns_keeps_its_connections(
    names: dict[str, LookUp], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool_module, "LOOK_EVERY_S", 0.02)
    with run_upstream(answer_always) as one, run_upstream(answer_always) as other:
        turns = [[_place(one)], [_place(other)]]

        def look_up() -> list[tuple[str, int]]:
            turns.reverse()
            return turns[0]

        names["turning.test"] = look_up
        pool = ConnectionPool("turning.test", 1, None)
        pool.give_back(pool.connect())
        for _ in range(8):
            connection = pool.take()
            assert connection is not None
            gevent.sleep(0.03)
            pool.give_back(connection)
        pool.close()


def test_connection_of_the_greatest_age_is_not_used_again(upstream: ScriptedUpstream) -> None:
    for max_age_s, is_kept in ((60.0, True), (0.01, False)):
        pool = ConnectionPool(*_place(upstream), None, ConnectionTerms(max_age_s=max_age_s))
        pool.give_back(pool.connect())
        time.sleep(0.02)
        assert (pool.take() is not None) is is_kept
        pool.close()


def test_families_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [(socket.AF_INET6, 1, 6, "", (f"::{number}", 1, 0, 0)) for number in (1, 2, 3)]
    found += [(socket.AF_INET, 1, 6, "", ("10.0.0.1", 1))]
    monkeypatch.setattr(_socket, "getaddrinfo", lambda *_: found)
    addresses = Addresses("both.test", 1)
    assert [address[4][0] for address in addresses.find()] == ["::1", "10.0.0.1", "::2", "::3"]
    addresses.note_dead(found[0])
    assert [address[4][0] for address in addresses.find()] == ["10.0.0.1", "::2", "::3", "::1"]
