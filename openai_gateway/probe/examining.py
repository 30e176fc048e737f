"""What `check` finds about one server's upstream, one finding after another, the first failure that ends all the last.

The calls are `probes`', the advice is mostly `cures`'.
"""

from __future__ import annotations

import dataclasses
import difflib
import socket
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Final

from openai_gateway.config import ServerConfig
from openai_gateway.config.redact import mask_url
from openai_gateway.probe.cures import to_failure
from openai_gateway.probe.probes import FAILURES, TOOL_NAME, Outcome, Prober
from openai_gateway.probe.reading import find_endpoint, is_call, is_cut, to_line, to_names, to_usage

OK: Final = "ok"
FAILED: Final = "failed"
UNKNOWN: Final = "unknown"
TITLES: Final = {"responses": "Responses", "chat": "Chat"}
_TOOL_CURE: Final = "choose a model that knows tools (vLLM: --enable-auto-tool-choice and --tool-call-parser)"
# After these, every further call would fail the same way.
_FINAL_KINDS: Final = frozenset({"key", "forbidden", "quota", "rate", "model", "redirect"})


@dataclass(frozen=True)
class Finding:
    """One line of the report; `cure` says what to do about a failure."""

    name: str
    result: str
    took_s: float
    detail: str
    cure: str = ""


class Examination:
    """Examines one server; `origin_of` tells where a key of its config has its value from."""

    def __init__(
        self, server: ServerConfig, apis: Sequence[str], timeout_s: float, origin_of: Callable[[str], str]
    ) -> None:
        self._server = server
        self._apis = apis
        self._prober = Prober(server, timeout_s)
        self._origin_of = origin_of
        self._is_over = False

    def run(self) -> Iterator[Finding]:
        """Give each finding as soon as it is there."""
        for step in (self._find_host, self._find_url, self._find_key, self._find_model, self._find_apis):
            yield from step()
            if self._is_over:
                return

    def _end(self, name: str, took_s: float, detail: str, cure: str) -> Finding:
        self._is_over = True
        return Finding(name, FAILED, took_s, detail, cure)

    def _find_host(self) -> Iterator[Finding]:
        target = self._prober.target
        name, started = "DNS", perf_counter()
        try:
            found = socket.getaddrinfo(target.host, target.port, 0, socket.SOCK_STREAM)
            addresses = ", ".join(dict.fromkeys(str(address[4][0]) for address in found))
            yield Finding(name, OK, perf_counter() - started, addresses)
            name, started = "TCP", perf_counter()
            with socket.create_connection((target.host, target.port), target.timeout_s) as sock:
                yield Finding(name, OK, perf_counter() - started, f"connected to port {target.port}")
                if target.tls is not None:
                    name, started = "TLS", perf_counter()
                    with target.tls.wrap_socket(sock, server_hostname=target.host) as tls:
                        detail = f"{tls.version()}, certificate verified"
                        yield Finding(name, OK, perf_counter() - started, detail)
        except FAILURES as error:
            yield self._end(name, perf_counter() - started, *to_failure(error, target.host, target.port))

    def _find_url(self) -> Iterator[Finding]:
        models = self._prober.models()
        path = find_endpoint(self._url)
        if path and not models.is_ok:
            yield self._end("URL", models.took_s, f"{self._url} is one of the API's paths", self._mend_url())
        elif models.error is not None or models.kind == "redirect":
            self._is_over = True
            yield self._fail("URL", models)
        elif models.kind == "url" and all(self._prober.text(api).kind == "url" for api in self._apis):
            yield self._end("URL", models.took_s, f"nothing of the API is served below {self._url}", self._mend_url())
        elif models.is_ok and models.answer is not None and models.answer.to_value() is None:
            kind = to_line(models.answer.headers.get("content-type", "no content type"))
            yield self._end("URL", models.took_s, f"answers with {kind}, not with JSON", self._mend_url())
        else:
            what = "answers" if models.kind != "url" else "answers (it has no list of models)"
            yield Finding("URL", OK, models.took_s, f"{self._url} {what}")

    @property
    def _url(self) -> str:
        return mask_url(self._server.openai_base_url)

    def _mend_url(self) -> str:
        base, mark, _ = self._url.partition("?")
        origin = self._origin_of("openai_base_url")
        path = find_endpoint(base)
        if path:
            right = base.removesuffix(path)
            return f"the base URL ends before {path}: set openai_base_url to {right} (now from {origin})"
        if not base.endswith("/v1") and not mark and _is_api(self._prober.models("/v1")):
            return f"{base}/v1 does answer: set openai_base_url to it (now from {origin})"
        return f"check host and path of openai_base_url, which usually ends in /v1 (now from {origin})"

    def _find_key(self) -> Iterator[Finding]:
        models = self._prober.models()
        tried = [models] if models.is_ok or models.kind == "key" else [self._prober.text(api) for api in self._apis]
        good = next((outcome for outcome in tried if outcome.is_ok), None)
        refused = next((outcome for outcome in tried if outcome.kind == "key"), None)
        if good is not None:
            yield Finding("key", OK, good.took_s, "taken")
        elif refused is not None:
            yield self._fail("key", refused)
        else:
            yield Finding("key", UNKNOWN, tried[0].took_s, "can't be told apart from what fails below")

    def _find_model(self) -> Iterator[Finding]:
        models, wanted = self._prober.models(), self._server.openai_model
        listed = to_names(models.answer)
        if wanted in listed:
            yield Finding("model", OK, models.took_s, f"{wanted} is listed")
            return
        tried = [self._prober.text(api) for api in self._apis]
        good = next((outcome for outcome in tried if outcome.is_ok), None)
        unknown = next((outcome for outcome in tried if outcome.kind == "model"), None)
        if good is not None:
            yield Finding("model", OK, good.took_s, f"{wanted} answers")
        elif unknown is not None:
            near = difflib.get_close_matches(wanted, listed, 3, 0.5)
            hint = (
                f"; near it are: {', '.join(near)}" if near else f"; it has: {', '.join(listed[:5])}" if listed else ""
            )
            yield self._fail("model", unknown, hint)
        else:
            yield Finding("model", UNKNOWN, tried[0].took_s, "can't be told apart from what fails below")

    def _find_apis(self) -> Iterator[Finding]:
        served: list[str] = []
        for api in self._apis:
            finding = self._find_text(api)
            yield finding
            if self._is_over:
                return
            if finding.result == OK:
                served.append(api)
                yield self._find_stream(api)
        if served:
            yield self._find_tool(served[0])

    def _find_text(self, api: str) -> Finding:
        name, outcome = TITLES[api], self._prober.text(api)
        if outcome.is_ok and outcome.answer is not None:
            body = outcome.answer.to_json()
            if not isinstance(body.get("output" if api == "responses" else "choices"), list):
                return Finding(
                    name, FAILED, outcome.took_s, "answers, but not in this API's form", "look at what serves there"
                )
            if body.get("status") == "failed":
                detail = f"the answer says that it failed: {to_line(body.get('error'))}"
                return Finding(name, FAILED, outcome.took_s, self._prober.hide(detail), "look at the upstream's log")
            return Finding(name, OK, outcome.took_s, to_usage(body))
        if "output limit was reached" in str(outcome.meaning):
            # OpenAI's word for a chat whose few tokens all went into reasoning: the model did answer.
            return Finding(name, OK, outcome.took_s, "answered; its few tokens went into reasoning")
        other = next((other for other in self._apis if other != api), None)
        if outcome.kind == "url" and other is not None and self._prober.text(other).is_ok:
            return Finding(name, FAILED, outcome.took_s, str(outcome.meaning), _to_other_api(api, other))
        return self._fail(name, outcome)

    def _find_stream(self, api: str) -> Finding:
        name, outcome = f"{TITLES[api]}, streamed", self._prober.stream(api)
        if not outcome.is_ok or outcome.answer is None:
            return self._fail(name, outcome)
        answer = outcome.answer
        if not answer.is_stream:
            cure = "this backend doesn't stream: clients that ask for a stream will get none"
            return Finding(name, FAILED, outcome.took_s, "the answer is no stream of events", cure)
        if not answer.is_complete(api):
            cure = "look at the upstream's log; a proxy before it may cut streams"
            return Finding(name, FAILED, outcome.took_s, f"broke off after {len(answer.events)} events", cure)
        began = f"first words after {answer.token_s * 1000:.0f} ms" if answer.token_s is not None else "no words"
        return Finding(name, OK, outcome.took_s, f"{len(answer.events)} events, {began}")

    def _find_tool(self, api: str) -> Finding:
        name, outcome = "function calling", self._prober.tool(api)
        if not outcome.is_ok or outcome.answer is None:
            finding = self._fail(name, outcome)
            return dataclasses.replace(finding, cure=_TOOL_CURE) if outcome.kind == "request" else finding
        body = outcome.answer.to_json()
        if is_call(api, body):
            return Finding(name, OK, outcome.took_s, f"{TOOL_NAME} was called, over {TITLES[api]}")
        if is_cut(body):
            return Finding(name, UNKNOWN, outcome.took_s, "the model used up its tokens before it called")
        detail = "the model answered with text, though a call was required"
        return Finding(name, FAILED, outcome.took_s, detail, _TOOL_CURE)

    def _fail(self, name: str, outcome: Outcome, hint: str = "") -> Finding:
        if outcome.meaning is not None:
            self._is_over = self._is_over or outcome.kind in _FINAL_KINDS
            detail, cure = str(outcome.meaning), outcome.meaning.to_cure(self._origin_of)
        else:
            target = self._prober.target
            error = outcome.error or Exception("no answer")
            detail, cure = to_failure(error, target.host, target.port, is_connected=True)
        return Finding(name, FAILED, outcome.took_s, self._prober.hide(detail), cure + hint)


def _is_api(models: Outcome) -> bool:
    """Tell whether a list of models, or a refusal of the key, shows that this is where the API is."""
    return models.kind == "key" or (models.is_ok and models.answer is not None and models.answer.to_value() is not None)


def _to_other_api(api: str, other: str) -> str:
    served = "Chat Completions" if other == "chat" else "the Responses API"
    cure = f"this backend serves {served} only: have clients use that (check it with --api {other})"
    return f"{cure}; NeMo Gym's openai_model needs the Responses API" if api == "responses" else cure
