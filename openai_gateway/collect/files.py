"""Which files a run can read and write, told before anything is opened.

What is in them is `rows`' and `journal`'s.
"""

from __future__ import annotations

from pathlib import Path

from openai_gateway.collect.journal import to_failures_path, to_metrics_path


class BadFiles(Exception):
    """Input or output can't be what they are given as; the message says what to do."""


def check_files(source: Path, output: Path) -> None:
    """Raise BadFiles unless input and output are regular files, and not the same; the output may be missing."""
    if not source.exists():
        raise BadFiles(f"there is no file {source}")
    if not source.is_file():
        raise BadFiles(f"--input must be a regular file, as it is read more than once, and {source} is none")
    if not output.parent.is_dir():
        raise BadFiles(f"there is no folder {output.parent} for --output; make it first")
    for written in (output, to_failures_path(output), to_metrics_path(output)):
        if not written.exists():
            continue
        if not written.is_file():
            raise BadFiles(f"{written} is no regular file and can't be written to; give another --output")
        if written.samefile(source):
            raise BadFiles(f"--input is {written}, which is written to; give another --output")
