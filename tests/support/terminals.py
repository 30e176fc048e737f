"""Runs a command of `openai-gateway` on a terminal of its own, as wide as a test wants it."""

from __future__ import annotations

import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.support.processes import ROOT


def run_on_terminal(
    arguments: Sequence[str], folder: Path, environ: Mapping[str, str] | None = None, *, columns: int = 80
) -> str:
    """Run a command in `folder` to its end, which must be 0, and return what it wrote, escapes and all."""
    ours, its = pty.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    kept = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "NO_COLOR")}
    process = subprocess.Popen(
        [sys.executable, "-m", "openai_gateway.cli", *arguments],
        cwd=folder,
        env={**kept, "PYTHONPATH": str(ROOT), "TERM": "xterm-256color", **(environ or {})},
        stdin=its,
        stdout=its,
        stderr=its,
    )
    os.close(its)
    shown = b""
    try:
        while chunk := _read(ours):
            shown += chunk
        assert process.wait(60) == 0, shown.decode(errors="replace")
    finally:
        process.kill()
        process.wait(60)
        os.close(ours)
    return shown.decode(errors="replace")


def _read(fd: int) -> bytes:
    try:
        return os.read(fd, 65536)
    except OSError:
        # Nobody holds the other end any more.
        return b""
