"""A key file is read again when it changes; a file that is unfit for a moment leaves the last keys in use."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from openai_gateway.config import watched_file
from openai_gateway.config.key_file import open_client_keys, open_upstream_keys, read_keys
from tests.config.folder import PLANTED_KEY


class Watched:
    """A key file, the clock that it is looked at by, and how often a change was told."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.now_s = 100.0
        self.changes = 0
        self.path.write_text(PLANTED_KEY)
        self.file = open_upstream_keys(str(path))
        self.file.on_change = self.count

    def count(self) -> None:
        self.changes += 1

    def keys_later(self, change: Callable[[], object]) -> tuple[str, ...]:
        change()
        self.now_s += 1.5
        return self.file.read()


@pytest.fixture
def watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Watched:
    made = Watched(tmp_path / "keys.txt")
    monkeypatch.setattr(watched_file, "monotonic", lambda: made.now_s)
    assert made.file.read() == (PLANTED_KEY,)
    return made


def test_changed_file_is_read_again_and_the_change_is_told_once(watched: Watched) -> None:
    assert watched.keys_later(lambda: watched.path.write_text("new-key\nsecond")) == ("new-key", "second")
    assert watched.keys_later(lambda: None) == ("new-key", "second")
    assert watched.changes == 1


def test_file_is_looked_at_once_a_second_at_most(watched: Watched) -> None:
    watched.path.write_text("new-key")
    watched.now_s += 0.5
    assert watched.file.read() == (PLANTED_KEY,)


def test_same_keys_written_anew_are_no_change(watched: Watched) -> None:
    assert watched.keys_later(lambda: watched.path.write_text(f"# rotated\n{PLANTED_KEY}")) == (PLANTED_KEY,)
    assert watched.changes == 0


@pytest.mark.parametrize("content", [b"", b"# none", b"a b", b"\xff"], ids=["empty", "no key", "a space", "no text"])
def test_unfit_file_leaves_the_last_keys_and_shows_none(
    watched: Watched, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    assert watched.keys_later(lambda: watched.path.write_bytes(content)) == (PLANTED_KEY,)
    assert str(watched.path) in caplog.text
    assert PLANTED_KEY not in caplog.text


def test_file_that_is_away_leaves_the_last_keys_until_it_is_back(watched: Watched) -> None:
    assert watched.keys_later(watched.path.unlink) == (PLANTED_KEY,)
    assert watched.keys_later(lambda: watched.path.write_text("new-key")) == ("new-key",)


def test_clients_keys_are_gone_with_their_file_after_ten_seconds(watched: Watched) -> None:
    watched.file = open_client_keys(str(watched.path))
    assert watched.file.read() == (PLANTED_KEY,)
    assert watched.keys_later(watched.path.unlink) == (PLANTED_KEY,)
    watched.now_s += 7.5
    assert watched.keys_later(lambda: None) == (PLANTED_KEY,)
    assert watched.keys_later(lambda: None) == ()
    assert watched.file.problem == "is gone"
    assert watched.keys_later(lambda: watched.path.write_text("new-key")) == ("new-key",)
    assert watched.file.problem is None


@pytest.mark.parametrize("content", ["", "# none\n\n"], ids=["empty", "comments only"])
def test_emptied_file_of_clients_keys_lets_nobody_in(watched: Watched, content: str) -> None:
    watched.file = open_client_keys(str(watched.path))
    assert watched.file.read() == (PLANTED_KEY,)
    assert watched.keys_later(lambda: watched.path.write_text(content)) == ()


def test_problem_is_logged_once_until_it_is_another(watched: Watched, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(3):
        watched.keys_later(lambda: watched.path.write_text("a b"))
    assert caplog.text.count("holds no usable key; the last keys stay in use") == 1
    watched.keys_later(watched.path.unlink)
    assert "can't be read (FileNotFoundError)" in caplog.text


def test_change_without_a_listener_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 2.0])
    monkeypatch.setattr(watched_file, "monotonic", lambda: next(clock))
    path = tmp_path / "keys.txt"
    path.write_text("first")
    file = open_upstream_keys(str(path))
    assert file.read() == ("first",)
    path.write_text("second")
    assert file.read() == ("second",)


def test_comments_and_blank_lines_are_no_keys() -> None:
    assert read_keys("# mine\n\n one \ntwo\n") == ("one", "two")
