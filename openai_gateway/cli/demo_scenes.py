"""What the demo shows, scene by scene: each does something to the gateway and says what came of it.

A scene returns whether it went as it should: what is printed is measured, at the client or at the simulator, which
counts what reaches it under /sim/stats.

See also: demo (the servers), simulator.settings (`sim_...`: how a call says what shall happen to it).
"""

from __future__ import annotations

import json
import shutil
import textwrap
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import click
import requests

from openai_gateway.accounting.usage_summary import Sum, sum_up
from openai_gateway.wire.usage import read_answer, read_stream

KEY: Final = "sk-demo-key-held-by-the-gateway"
MODEL: Final = "demo-model"
CAP: Final = 4
_CALLS: Final = 12
_ANY_KEY: Final = {"authorization": "Bearer any"}
_PROMPT: Final = "say what this gateway does"
_PARAMETERS: Final = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
_RESPONSES: Final = "/v1/responses"
_CHAT: Final = "/v1/chat/completions"
_TIMEOUT_S: Final = 30.0
_END_S: Final = 10.0
_INDENT: Final = "    "
_MOST_COLUMNS: Final = 80


@dataclass(frozen=True)
class Stage:
    """Where the scenes play: a client's session, the gateway, the simulator behind it, and the usage log.

    `asked` are the paths of all calls so far.
    """

    session: requests.Session
    gateway: str
    upstream: str
    usage_log: Path
    asked: list[str] = field(default_factory=list)

    def post(
        self, path: str, body: Mapping[str, Any], session: requests.Session | None = None, **metadata: str
    ) -> requests.Response:
        """Send a call through the gateway; `metadata` tells the simulator what shall happen to it."""
        script = {"metadata": metadata} if metadata else {}
        self.asked.append(path)
        return (session or self.session).post(
            self.gateway + path,
            json={"model": "any", **body, **script},
            headers=_ANY_KEY,
            stream=bool(body.get("stream")),
            timeout=_TIMEOUT_S,
        )

    def count(self) -> dict[str, Any]:
        """Return what the simulator has counted."""
        found: dict[str, Any] = self.session.get(f"{self.upstream}/sim/stats", timeout=_TIMEOUT_S).json()
        return found

    def reset_counts(self) -> None:
        """Have the simulator count anew."""
        self.session.post(f"{self.upstream}/sim/reset", timeout=_TIMEOUT_S)


def play(stage: Stage) -> bool:
    """Play every scene and return whether all went well."""
    scenes = (_show_kinds, _show_key, _show_429, _show_cap, _show_client_that_leaves, _show_cost)
    # All of them, also after one that fails.
    went_well = [_play_one(scene, stage) for scene in scenes]
    return all(went_well)


def _play_one(scene: Callable[[Stage], bool], stage: Stage) -> bool:
    try:
        return scene(stage)
    except (requests.RequestException, OSError, ValueError, LookupError) as error:
        return _conclude(f"failed: {error}", is_well=False)


def _title(text: str) -> None:
    click.secho(text, bold=True)


def _say(text: str) -> None:
    click.echo(textwrap.fill(text, _count_columns(), initial_indent=_INDENT, subsequent_indent=_INDENT))


def _type(words: Iterator[str]) -> None:
    """Show words as they come."""
    click.echo(f"{_INDENT}< ", nl=False)
    column, width = len(_INDENT) + 2, _count_columns()
    for word in words:
        if column + len(word.rstrip()) > width:
            click.echo(f"\n{_INDENT}", nl=False)
            column, word = len(_INDENT), word.lstrip()
        click.echo(word, nl=False)
        column += len(word)
    click.echo()


def _count_columns() -> int:
    return min(shutil.get_terminal_size((_MOST_COLUMNS, 24)).columns, _MOST_COLUMNS)


def _conclude(text: str, *, is_well: bool) -> bool:
    mark = click.style("ok", fg="green") if is_well else click.style("FAILED", fg="red")
    lines = textwrap.wrap(text, _count_columns() - len(_INDENT) - 3)
    click.echo(f"{_INDENT}{mark} " + f"\n{_INDENT}   ".join(lines) + "\n")
    return is_well


def _show_kinds(stage: Stage) -> bool:
    _title("Both APIs, streamed or not: bytes go through as they come")
    messages = [{"role": "user", "content": _PROMPT}]
    tool = {"type": "function", "name": "get_weather", "parameters": _PARAMETERS}
    asked: dict[str, tuple[str, dict[str, Any]]] = {
        "Responses": (_RESPONSES, {"input": _PROMPT}),
        "Responses, streamed": (_RESPONSES, {"input": _PROMPT, "stream": True}),
        "Chat": (_CHAT, {"messages": messages}),
        "Chat, streamed": (_CHAT, {"messages": messages, "stream": True, "stream_options": {"include_usage": True}}),
        "Function call": (_RESPONSES, {"input": _PROMPT, "tools": [tool]}),
    }
    went_well = [_show_kind(stage, name, path, body) for name, (path, body) in asked.items()]
    return all(went_well)


def _show_kind(stage: Stage, name: str, path: str, body: dict[str, Any]) -> bool:
    click.echo(f"{_INDENT}{click.style(name, fg='cyan')}  POST {path}")
    started = time.monotonic()
    answer = stage.post(path, body)
    answer.raise_for_status()
    if body.get("stream"):
        raw = bytearray()
        _type(_read_words(answer, raw))
        report = read_stream(bytes(raw))
    else:
        _say(f"< {_find_text(answer.json())}")
        report = read_answer(answer.content)
    took_ms = (time.monotonic() - started) * 1000
    tokens = f"{report.usage.input_tokens} tokens in, {report.usage.output_tokens} out" if report.usage else "no tokens"
    is_well = report.model == MODEL and report.usage is not None
    return _conclude(f"{answer.status_code}, {tokens}, {took_ms:.0f} ms", is_well=is_well)


def _read_words(answer: requests.Response, raw: bytearray) -> Iterator[str]:
    for line in answer.iter_lines(chunk_size=None):
        raw += line + b"\n"
        if not line.startswith(b"data: {"):
            continue
        event = json.loads(line[6:])
        if event.get("type") == "response.output_text.delta":
            yield event["delta"]
        for choice in event.get("choices", ()):
            yield choice["delta"].get("content") or ""


def _find_text(answer: dict[str, Any]) -> str:
    if "choices" in answer:
        return str(answer["choices"][0]["message"]["content"])
    item = answer["output"][0]
    is_call = item["type"] == "function_call"
    return f"{item['name']}({item['arguments']})" if is_call else str(item["content"][0]["text"])


def _show_key(stage: Stage) -> bool:
    _title("The key stays here: clients give any, the upstream gets the real one")
    answer = stage.post(_RESPONSES, {"input": _PROMPT})
    answer.raise_for_status()
    seen = dict(stage.session.get(f"{stage.upstream}/sim/last", timeout=_TIMEOUT_S).json()["headers"])
    is_held = KEY not in answer.text and KEY not in str(answer.headers)
    _say(f"client   Authorization: {_ANY_KEY['authorization']}")
    _say(f"upstream Authorization: {seen['Authorization']}")
    _say("config   openai_api_key: '***'   (and so in logs and errors)")
    return _conclude("the answer has no trace of it", is_well=is_held and seen["Authorization"] == f"Bearer {KEY}")


def _show_429(stage: Stage) -> bool:
    _title("A rate limit is waited out: the upstream says 429 twice, Retry-After: 1")
    started = time.monotonic()
    answer = stage.post(
        _RESPONSES, {"input": _PROMPT}, sim_status="429", sim_times="2", sim_retry_after="1", sim_key="limited"
    )
    attempts = answer.headers.get("x-gateway-attempts")
    took_s = time.monotonic() - started
    text = f"the client got {answer.status_code} after {attempts} attempts and {took_s:.1f} s, and saw no 429"
    return _conclude(text, is_well=answer.status_code == 200 and attempts == "3" and took_s >= 2)


def _show_cap(stage: Stage) -> bool:
    _title(f"A cap holds: max_concurrent_requests: {CAP}, {_CALLS} clients at once")
    stage.reset_counts()

    def call(number: int) -> int:
        with requests.Session() as session:
            session.trust_env = False
            return stage.post(_RESPONSES, {"input": f"client {number}"}, session, sim_latency_ms="200").status_code

    with ThreadPoolExecutor(_CALLS) as clients:
        statuses = list(clients.map(call, range(_CALLS)))
    peak = stage.count()["peak_in_flight"]
    text = f"{statuses.count(200)} of {_CALLS} answered with 200; never more than {peak} were at the upstream"
    return _conclude(text, is_well=statuses == [200] * _CALLS and peak == CAP)


def _show_client_that_leaves(stage: Stage) -> bool:
    _title("A client leaves in the middle of a long stream: so does the upstream call")
    stage.reset_counts()
    body = {"input": _PROMPT, "stream": True}
    answer = stage.post(_RESPONSES, body, sim_events="2000", sim_event_gap_ms="20")
    next(_read_words(answer, bytearray()))
    left = time.monotonic()
    answer.close()
    while not (is_ended := stage.count()["aborted"] == 1) and time.monotonic() - left < _END_S:
        time.sleep(0.02)
    took_ms = (time.monotonic() - left) * 1000
    text = f"the upstream call ended {took_ms:.0f} ms later: what nobody reads isn't paid for"
    return _conclude(text if is_ended else "the upstream call goes on", is_well=is_ended)


def _show_cost(stage: Stage) -> bool:
    _title("Every call is accounted for, as usage log, on /metrics and on the page")
    until = time.monotonic() + _END_S
    # Whoever leaves sees nothing of the end of the call, which is recorded after it.
    while (total := _sum_up_all(stage)).calls < len(stage.asked) and time.monotonic() < until:
        time.sleep(0.02)
    _say(f"{total.calls} calls, {total.input_tokens or 0:,} tokens in, {total.output_tokens or 0:,} out")
    is_well = total.cost_usd is not None and total.calls == len(stage.asked)
    return _conclude(f"${total.cost_usd or 0:.4f} by the demo's table of prices", is_well=is_well)


def _sum_up_all(stage: Stage) -> Sum:
    return sum_up(stage.usage_log.read_bytes().splitlines(), "model").total
