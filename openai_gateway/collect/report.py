"""The report of an output: one page without links or scripts, with what people look at first.

Tokens, cost, latency, lengths and finish reasons as plots, failures by kind with a sample, and the same sums for each
group of rows that share a value. It is read from the output's files, so it is of all runs that made them. See also:
plots (the drawings), spread (the counting).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from html import escape
from pathlib import Path
from string import Template
from typing import Any, Final

import msgspec

from openai_gateway.collect.entries import Entry, read_entries, read_entries_and_lines
from openai_gateway.collect.estimate import Estimator
from openai_gateway.collect.plots import draw_counts, draw_spread
from openai_gateway.collect.run_files import derive_failures_path
from openai_gateway.collect.spread import Spread
from openai_gateway.collect.sums import Sums
from openai_gateway.wire.usage import read_answer

_MOST_GROUPS: Final = 200
_OTHERS: Final = "(others)"
_WITHOUT: Final = "(none)"
_PAGE: Final = Path(__file__).with_name("report.html")


class _Message(msgspec.Struct):
    content: Any = None


class _Choice(msgspec.Struct):
    message: _Message | None = None


class _Content(msgspec.Struct):
    text: Any = None


class _Item(msgspec.Struct):
    content: list[_Content] | None = None


class _Answer(msgspec.Struct):
    choices: list[_Choice] | None = None
    output: list[_Item] | None = None


class _Failed(msgspec.Struct):
    count: int = 0
    sample: Entry | None = None


class Findings(msgspec.Struct):
    """What answers come to: sums, and how single answers spread."""

    sums: Sums = msgspec.field(default_factory=Sums)
    input_tokens: Spread = msgspec.field(default_factory=Spread)
    output_tokens: Spread = msgspec.field(default_factory=Spread)
    cost_usd: Spread = msgspec.field(default_factory=Spread)
    latency_s: Spread = msgspec.field(default_factory=Spread)
    characters: Spread = msgspec.field(default_factory=Spread)

    def add(self, entry: Entry, estimator: Estimator) -> None:
        """Add an answer."""
        report = read_answer(bytes(entry.response))
        cost_usd = 0.0 if entry.is_replayed else estimator.compute_cost_usd(report)
        self.sums.add(report, cost_usd, entry.duration_s, entry.latency_s)
        if report.usage is not None:
            self.input_tokens.add(report.usage.input_tokens)
            self.output_tokens.add(report.usage.output_tokens)
        if cost_usd is not None:
            self.cost_usd.add(cost_usd)
        latency_s = entry.latency_s if entry.latency_s is not None else entry.duration_s
        if latency_s is not None:
            self.latency_s.add(latency_s)
        self.characters.add(_count_characters(bytes(entry.response)))


def write_report(path: Path, output: Path, estimator: Estimator, group_by: str | None) -> None:
    """Write the report of an output to a file. Raises OSError, JournalError."""
    findings, groups = Findings(), dict[str, Findings]()
    for entry, line in read_entries_and_lines(output):
        findings.add(entry, estimator)
        if group_by is not None:
            name = _find_group(line, group_by)
            if name not in groups and len(groups) >= _MOST_GROUPS:
                name = _OTHERS
            groups.setdefault(name, Findings()).add(entry, estimator)
    failures: dict[str, _Failed] = {}
    for entry in read_entries(derive_failures_path(output)):
        failed = failures.setdefault(entry.failure_class or "unknown", _Failed())
        failed.count += 1
        failed.sample = failed.sample or entry
    page = Template(_PAGE.read_text(encoding="utf-8")).substitute(
        title=escape(output.name),
        figures=_make_figures(findings, failures),
        plots=_make_plots(findings),
        failures=_list_failures(failures),
        groups="" if group_by is None else _list_groups(groups, group_by),
    )
    part = path.with_name(f"{path.name}.part")
    part.write_text(page, encoding="utf-8")
    part.replace(path)


def _find_group(line: bytes, key: str) -> str:
    """Return the value of a row's key, such as `subject` or `meta.subject`."""
    value: Any = msgspec.json.decode(line)
    for name in key.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    return _WITHOUT if value is None else value if isinstance(value, str) else msgspec.json.encode(value).decode()


def _count_characters(response: bytes) -> int:
    """Return how much text an answer holds."""
    try:
        answer = msgspec.json.decode(response, type=_Answer)
    except msgspec.MsgspecError:
        return 0
    texts = [choice.message.content for choice in answer.choices or () if choice.message is not None]
    texts += [content.text for item in answer.output or () for content in item.content or ()]
    return sum(len(text) for text in texts if isinstance(text, str))


def _make_figures(findings: Findings, failures: Mapping[str, _Failed]) -> str:
    sums = findings.sums
    cost_usd = sums.known_cost_usd
    figures = [
        ("answers", f"{sums.answers:,}"),
        ("failures", f"{sum(each.count for each in failures.values()):,}"),
        ("input tokens", f"{sums.input_tokens:,}"),
        ("cached", _to_share(sums.cached_tokens, sums.input_tokens)),
        ("output tokens", f"{sums.output_tokens:,}"),
        ("reasoning", _to_share(sums.reasoning_tokens, sums.output_tokens)),
        ("cost", "unknown" if cost_usd is None else to_usd(cost_usd)),
        ("cut off", _to_share(sums.cut_off, sums.answers)),
    ]
    return "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in figures)


def _make_plots(findings: Findings) -> str:
    reasons = findings.sums.finish_reasons.most_common()
    plots = [
        ("Output tokens", draw_spread(findings.output_tokens, to_count)),
        ("Input tokens", draw_spread(findings.input_tokens, to_count)),
        ("Cost of an answer", draw_spread(findings.cost_usd, to_usd)),
        ("Latency, without waiting", draw_spread(findings.latency_s, to_seconds)),
        ("Characters of text", draw_spread(findings.characters, to_count)),
        ("Finish reasons", draw_counts(reasons)),
    ]
    return "".join(f"<section><h2>{escape(title)}</h2>{plot}</section>" for title, plot in plots)


def _list_failures(failures: Mapping[str, _Failed]) -> str:
    if not failures:
        return ""
    rows = []
    for name, failed in sorted(failures.items(), key=lambda item: -item[1].count):
        sample = failed.sample
        assert sample is not None
        where = f"row {sample.task_index}, repeat {sample.rollout_index}"
        asked = bytes(sample.asked).decode(errors="replace")
        rows.append(
            [
                name,
                f"{failed.count:,}",
                where,
                sample.failure.message or "",
                sample.failure.what_to_do or "",
                asked[:300],
            ]
        )
    heads = ["kind", "failures", "a sample", "message", "what to do", "asked"]
    return f"<h2>Failures, of all runs</h2>{_make_table(heads, rows)}"


def _list_groups(groups: Mapping[str, Findings], key: str) -> str:
    rows = []
    for name, found in sorted(groups.items(), key=lambda item: (-item[1].sums.answers, item[0])):
        sums, cost_usd = found.sums, found.sums.known_cost_usd
        rows.append(
            [
                name,
                f"{sums.answers:,}",
                f"{sums.input_tokens:,}",
                f"{sums.output_tokens:,}",
                to_count(found.output_tokens.find_quantile(0.5)),
                to_count(found.output_tokens.find_quantile(0.95)),
                to_seconds(found.latency_s.find_quantile(0.5)),
                _to_share(sums.cut_off, sums.answers),
                "unknown" if cost_usd is None else to_usd(cost_usd),
            ]
        )
    heads = [key, "answers", "input tokens", "output tokens", "p50 out", "p95 out", "p50 latency", "cut off", "cost"]
    return f"<h2>By {escape(key)}</h2>{_make_table(heads, rows)}"


def _make_table(heads: list[str], rows: list[list[str]]) -> str:
    head = "".join(f"<th>{escape(each)}</th>" for each in heads)
    body = "".join(f"<tr>{''.join(f'<td>{escape(each)}</td>' for each in row)}</tr>" for row in rows)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _to_share(part: int, whole: int) -> str:
    return f"{part:,} ({100 * part / whole:.1f} %)" if whole else "0"


def to_count(number: float) -> str:
    """Return `950`, `12.3k` or `4.5M`."""
    for bound, unit in ((1e6, "M"), (1e3, "k")):
        if number >= bound:
            return f"{number / bound:.3g}{unit}"
    return f"{number:.0f}"


def to_usd(dollars: float) -> str:
    """Return dollars with the digits that count."""
    if dollars >= 1 or not dollars:
        return f"${dollars:,.2f}"
    return f"${dollars:.{1 - math.floor(math.log10(dollars))}f}"


def to_seconds(seconds: float) -> str:
    """Return a duration in the unit that fits it."""
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    return f"{seconds:.3g} s" if seconds < 120 else f"{seconds / 60:.3g} min"
