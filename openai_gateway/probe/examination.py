"""Examines a server's upstream step by step and gives a finding for each, with what to do about a failure.

The steps go from the outside in: name and connection, base URL, key, model, each API, streams, function calls, rate
limits. A failure that every later step would meet (no connection, a refused key, an unknown model) is the last finding.

See also: probes (the calls), probe_client and remedies (what failures mean), cli.check (how all is shown).
"""

from __future__ import annotations

import dataclasses
import difflib
import socket
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from time import perf_counter, time
from typing import Final

from openai_gateway.config import ServerConfig
from openai_gateway.config.redact import mask_url
from openai_gateway.probe.probe_client import CALL_ERRORS, ErrorReply, explain_error, find_endpoint_path, to_line
from openai_gateway.probe.probes import (
    TOOL_NAME,
    Probe,
    Prober,
    describe_limit,
    describe_usage,
    is_cut_short,
    is_function_call,
    is_switched,
)
from openai_gateway.remedies import (
    FORBIDDEN,
    INVALID_REQUEST,
    KEY_REFUSED,
    MODEL_NOT_FOUND,
    NOT_FOUND,
    QUOTA_USED_UP,
    RATE_LIMITED,
    UNKNOWN_URL,
)
from openai_gateway.wire.api import Api
from openai_gateway.wire.rate_limits import read_dialect

OK: Final = "ok"
FAILED: Final = "failed"
UNKNOWN: Final = "unknown"
_ADDED_BODIES: Final = "extra_body, extra_body_responses and extra_body_chat"
_TOOL_CURE: Final = "choose a model that knows tools (vLLM: --enable-auto-tool-choice and --tool-call-parser)"
# After these, every further call would fail the same way.
_FINAL_KINDS: Final = frozenset({KEY_REFUSED, FORBIDDEN, QUOTA_USED_UP, RATE_LIMITED, MODEL_NOT_FOUND})
# Before any call names an item, both say that the path is not served.
_NO_PATH_KINDS: Final = frozenset({UNKNOWN_URL, NOT_FOUND})


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
        self, server: ServerConfig, apis: Sequence[Api], timeout_s: float, origin_of: Callable[[str], str]
    ) -> None:
        self._server = server
        self._apis = apis
        self._prober = Prober(server, timeout_s)
        self._origin_of = origin_of
        self._is_over = False

    def run(self) -> Iterator[Finding]:
        """Give each finding as soon as it is there."""
        steps = (
            self._find_host,
            self._find_url,
            self._find_key,
            self._find_model,
            self._find_apis,
            self._find_websocket,
            self._find_rate_limits,
        )
        for step in steps:
            yield from step()
            if self._is_over:
                return

    def _end(self, name: str, took_s: float, detail: str, cure: str) -> Finding:
        self._is_over = True
        return Finding(name, FAILED, took_s, detail, cure)

    def _find_host(self) -> Iterator[Finding]:
        endpoint = self._prober.endpoint
        name, started = "DNS", perf_counter()
        try:
            found = socket.getaddrinfo(endpoint.host, endpoint.port, 0, socket.SOCK_STREAM)
            addresses = ", ".join(dict.fromkeys(str(address[4][0]) for address in found))
            yield Finding(name, OK, perf_counter() - started, addresses)
            name, started = "TCP", perf_counter()
            with socket.create_connection((endpoint.host, endpoint.port), endpoint.timeout_s) as sock:
                yield Finding(name, OK, perf_counter() - started, f"connected to port {endpoint.port}")
                if endpoint.tls is not None:
                    name, started = "TLS", perf_counter()
                    with endpoint.tls.wrap_socket(sock, server_hostname=endpoint.host) as tls:
                        detail = f"{tls.version()}, certificate verified"
                        yield Finding(name, OK, perf_counter() - started, detail)
        except CALL_ERRORS as error:
            yield self._end(name, perf_counter() - started, *explain_error(error, endpoint.host, endpoint.port))

    def _find_url(self) -> Iterator[Finding]:
        models = self._prober.models()
        path = find_endpoint_path(self._url)
        if path and not models.is_ok:
            yield self._end("URL", models.took_s, f"{self._url} is one of the API's paths", self._mend_url())
        elif models.error is not None or (models.refusal is not None and models.refusal.is_redirect):
            self._is_over = True
            yield self._fail("URL", models)
        elif _has_no_path(models) and all(_has_no_path(self._prober.text(api)) for api in self._apis):
            yield self._end("URL", models.took_s, f"nothing of the API is served below {self._url}", self._mend_url())
        elif models.is_ok and models.reply is not None and not models.is_json:
            kind = to_line(models.reply.headers.get("content-type", "no content type"))
            yield self._end("URL", models.took_s, f"answers with {kind}, not with JSON", self._mend_url())
        else:
            what = "answers (it has no list of models)" if _has_no_path(models) else "answers"
            yield Finding("URL", OK, models.took_s, f"{self._url} {what}")

    @property
    def _url(self) -> str:
        return mask_url(self._server.openai_base_url)

    def _mend_url(self) -> str:
        base, mark, _ = self._url.partition("?")
        origin = self._origin_of("openai_base_url")
        path = find_endpoint_path(base)
        if path:
            right = base.removesuffix(path)
            return f"the base URL ends before {path}: set openai_base_url to {right} (now from {origin})"
        if not base.endswith("/v1") and not mark and _is_api(self._prober.models("/v1")):
            return f"{base}/v1 does answer: set openai_base_url to it (now from {origin})"
        return f"check host and path of openai_base_url, which usually ends in /v1 (now from {origin})"

    def _find_key(self) -> Iterator[Finding]:
        models = self._prober.models()
        tried = (
            [models] if models.is_ok or models.kind == KEY_REFUSED else [self._prober.text(api) for api in self._apis]
        )
        good = next((probe for probe in tried if probe.is_ok), None)
        refused = next((probe for probe in tried if probe.kind == KEY_REFUSED), None)
        if good is not None:
            yield Finding("key", OK, good.took_s, "taken")
        elif refused is not None:
            yield self._fail("key", refused)
        else:
            yield Finding("key", UNKNOWN, tried[0].took_s, "can't be told apart from what fails below")

    def _find_model(self) -> Iterator[Finding]:
        models, wanted = self._prober.models(), self._server.openai_model
        listed = models.model_names
        if wanted in listed:
            yield Finding("model", OK, models.took_s, f"{wanted} is listed")
            return
        tried = [self._prober.text(api) for api in self._apis]
        good = next((probe for probe in tried if probe.is_ok), None)
        unknown = next((probe for probe in tried if probe.kind == MODEL_NOT_FOUND), None)
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
        served: list[Api] = []
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

    def _find_websocket(self) -> Iterator[Finding]:
        if Api.RESPONSES not in self._apis or not self._prober.text(Api.RESPONSES).is_ok:
            return
        probe = self._prober.websocket()
        is_there = is_switched(probe)
        if is_there is None:
            yield dataclasses.replace(self._fail("WebSocket mode", probe), result=UNKNOWN)
            # The calls did get through.
            self._is_over = False
        else:
            without = "there is none; clients are told so (426) and use plain HTTP"
            yield Finding("WebSocket mode", OK, probe.took_s, "is there" if is_there else without)

    def _find_rate_limits(self) -> Iterator[Finding]:
        for probe in self._prober.answered:
            assert probe.reply is not None
            dialect, limits = read_dialect(probe.reply.headers, time())
            if dialect is not None:
                told = ", ".join(describe_limit(kind, limit) for kind, limit in limits.items())
                yield Finding("rate limits", OK, probe.took_s, f"told in {dialect}'s headers: {told}")
                return
        yield Finding("rate limits", OK, 0.0, "not told in headers; they are learnt from refusals")

    def _find_text(self, api: Api) -> Finding:
        name, probe = api.label, self._prober.text(api)
        if probe.is_ok and probe.reply is not None:
            fields = probe.reply.fields
            if not isinstance(fields.get(api.given), list):
                return Finding(
                    name, FAILED, probe.took_s, "answers, but not in this API's form", "look at what serves there"
                )
            if fields.get("status") == "failed":
                detail = f"the answer says that it failed: {to_line(fields.get('error'))}"
                return Finding(name, FAILED, probe.took_s, self._prober.hide(detail), "look at the upstream's log")
            return Finding(name, OK, probe.took_s, describe_usage(probe.reply))
        if "output limit was reached" in str(probe.refusal):
            # OpenAI's word for a chat whose few tokens all went into reasoning: the model did answer.
            return Finding(name, OK, probe.took_s, "answered; its few tokens went into reasoning")
        other = next((other for other in self._apis if other != api), None)
        if _has_no_path(probe) and other is not None and self._prober.text(other).is_ok:
            return Finding(name, FAILED, probe.took_s, str(probe.refusal), _advise_other_api(api, other))
        return self._fail(name, probe)

    def _find_stream(self, api: Api) -> Finding:
        name, probe = f"{api.label}, streamed", self._prober.stream(api)
        if not probe.is_ok or probe.reply is None:
            return self._fail(name, probe)
        reply = probe.reply
        if not reply.is_stream:
            cure = "this backend doesn't stream: clients that ask for a stream will get none"
            return Finding(name, FAILED, probe.took_s, "the answer is no stream of events", cure)
        count = "1 event" if len(reply.events) == 1 else f"{len(reply.events)} events"
        if not reply.is_complete(api):
            cure = "look at the upstream's log; a proxy before it may cut streams"
            return Finding(name, FAILED, probe.took_s, f"broke off after {count}", cure)
        began = f"first words after {reply.token_s * 1000:.0f} ms" if reply.token_s is not None else "no words"
        note = "; it ends without [DONE], which some clients wait for" if reply.lacks_done(api) else ""
        return Finding(name, OK, probe.took_s, f"{count}, {began}{note}")

    def _find_tool(self, api: Api) -> Finding:
        name, probe = "function calling", self._prober.tool(api)
        if not probe.is_ok or probe.reply is None:
            finding = self._fail(name, probe)
            return dataclasses.replace(finding, cure=_TOOL_CURE) if probe.kind == INVALID_REQUEST else finding
        if is_function_call(api, probe.reply):
            return Finding(name, OK, probe.took_s, f"{TOOL_NAME} was called, over {api.label}")
        if is_cut_short(probe.reply):
            return Finding(name, UNKNOWN, probe.took_s, "the model used up its tokens before it called")
        detail = "the model answered with text, though a call was required"
        return Finding(name, FAILED, probe.took_s, detail, _TOOL_CURE)

    def _fail(self, name: str, probe: Probe, hint: str = "") -> Finding:
        refusal = probe.refusal
        if refusal is not None:
            self._is_over = self._is_over or refusal.remedy.kind in _FINAL_KINDS or refusal.is_redirect
            detail, cure = str(refusal), self._tell_cure(refusal)
        else:
            endpoint = self._prober.endpoint
            error = probe.error or Exception("no answer")
            detail, cure = explain_error(error, endpoint.host, endpoint.port, is_connected=True)
        return Finding(name, FAILED, probe.took_s, self._prober.hide(detail), cure + hint)

    def _tell_cure(self, refusal: ErrorReply) -> str:
        keys = {"key": "openai_api_key", "model": "openai_model", "url": "openai_base_url"}
        names = {name: f"{key} (now from {self._origin_of(key)})" for name, key in keys.items()}
        cure = refusal.remedy.tell(**names, wait=refusal.wait)
        if refusal.remedy.kind == INVALID_REQUEST:
            named = f" ({refusal.param} is the one named)" if refusal.param else ""
            cure = f"a parameter is refused{named}; those that the config adds are in {_ADDED_BODIES}"
        return cure


def _has_no_path(probe: Probe) -> bool:
    return probe.kind in _NO_PATH_KINDS and probe.refusal is not None and not probe.refusal.is_redirect


def _is_api(models: Probe) -> bool:
    """Tell whether a list of models, or a refusal of the key, shows that this is where the API is."""
    return models.kind == KEY_REFUSED or models.is_json


def _advise_other_api(api: Api, other: Api) -> str:
    served = "Chat Completions" if other is Api.CHAT else "the Responses API"
    cure = f"this backend serves {served} only: have clients use that (check it with --api {other})"
    return f"{cure}; NeMo Gym's openai_model needs the Responses API" if api is Api.RESPONSES else cure
