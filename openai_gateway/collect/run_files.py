"""The names of a run's files, all beside the output, and whether they can be read and written at all.

See also: rows, journal and collection_settings (what is in them).
"""

from __future__ import annotations

from pathlib import Path

from openai_gateway.collect.shards import Shard


class BadFiles(Exception):
    """Input or output can't be what they are given as; the message says what to do."""


def derive_stem(output: Path) -> str:
    """Return an output's name without `.jsonl` and `.gz`."""
    return (output.with_suffix("") if output.suffix == ".gz" else output).stem


def derive_failures_path(output: Path) -> Path:
    """Return where the failures of an output go."""
    return output.with_name(f"{derive_stem(output)}_failures.jsonl")


def derive_metrics_path(output: Path) -> Path:
    """Return where the sums over an output go."""
    return output.with_name(f"{derive_stem(output)}_metrics.json")


def derive_gym_metrics_path(output: Path) -> Path:
    """Return where NeMo Gym's sums over an output go, in Gym's form."""
    return output.with_name(f"{derive_stem(output)}_aggregate_metrics.json")


def derive_inputs_path(output: Path) -> Path:
    """Return where every repeat of every row goes as it is asked, for NeMo Gym's tools."""
    return output.with_name(f"{derive_stem(output)}_materialized_inputs.jsonl")


def derive_settings_path(output: Path) -> Path:
    """Return where it is kept with what an output was collected."""
    return output.with_name(f"{derive_stem(output)}_settings.json")


def derive_replaced_path(output: Path) -> Path:
    """Return where answers go that are asked for again."""
    return output.with_name(f"{derive_stem(output)}_replaced.jsonl")


def derive_shard_path(output: Path, shard: Shard) -> Path:
    """Return the output of one shard."""
    stem = derive_stem(output)
    return output.with_name(f"{stem}_shard-{shard.number}-of-{shard.count}{output.name[len(stem) :]}")


def check_files(source: Path, output: Path) -> None:
    """Raise BadFiles unless input and output are regular files, and not the same; the output may be missing."""
    if not source.exists():
        raise BadFiles(f"there is no file {source}")
    if not source.is_file():
        raise BadFiles(f"--input must be a regular file, as it is read more than once, and {source} is none")
    if not output.parent.is_dir():
        raise BadFiles(f"there is no folder {output.parent} for --output; make it first")
    for written in (
        output,
        derive_failures_path(output),
        derive_metrics_path(output),
        derive_inputs_path(output),
        derive_gym_metrics_path(output),
        derive_settings_path(output),
        derive_replaced_path(output),
    ):
        if not written.exists():
            continue
        if not written.is_file():
            raise BadFiles(f"{written} is no regular file and can't be written to; give another --output")
        if written.samefile(source):
            raise BadFiles(f"--input is {written}, which is written to; give another --output")
