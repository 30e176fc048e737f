"""gevent finds its plugins though a worker looks for them once."""

from __future__ import annotations

from importlib import metadata

from openai_gateway.server.plugins import look_once


def test_entry_points_are_those_that_a_look_of_its_own_would_find() -> None:
    look = metadata.entry_points
    expected = {group: set(look(group=group)) for group in ("console_scripts", "pytest11", "no such group")}
    with look_once():
        found = {group: set(metadata.entry_points(group=group)) for group in expected}
    assert found == expected
    assert found["console_scripts"]
    assert metadata.entry_points is look
