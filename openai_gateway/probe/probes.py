"""The small calls that `check` makes to an upstream, with the server's own key and parameters; each is made once.

Nothing here raises, whatever the form of an answer.

See also: examination (what the answers mean for the person who asked).
"""

from __future__ import annotations

import base64
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter
from typing import Any, Final

from openai_gateway.config import ServerConfig
from openai_gateway.config.key_file import UpstreamKey
from openai_gateway.config.redact import mask, reveal_all
from openai_gateway.probe.probe_client import CALL_ERRORS, ErrorReply, ProbeClient, Reply, to_line
from openai_gateway.wire.api import Api
from openai_gateway.wire.frames import HAVE_NO_WEBSOCKETS
from openai_gateway.wire.rate_limits import RateLimit
from openai_gateway.wire.usage import read_answer

# The least that the Responses API takes.
FEW_TOKENS: Final = 16
TOOL_TOKENS: Final = 512
TOOL_NAME: Final = "get_weather"
_PARAMETERS: Final = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
_PROMPT: Final = "Say hi."
_TOOL_PROMPT: Final = "What is the weather in Paris? Use the tool."


@dataclass(frozen=True)
class Probe:
    """What came of one call: a reply, or the exception there was instead."""

    took_s: float
    reply: Reply | None = None
    error: Exception | None = None

    @property
    def is_ok(self) -> bool:
        """Tell whether the answer is a success."""
        return self.reply is not None and self.reply.status < 300

    @property
    def refusal(self) -> ErrorReply | None:
        """What an error answer says, None if there is none."""
        return ErrorReply(self.reply) if self.reply is not None and not self.is_ok else None

    @property
    def kind(self) -> str:
        """The kind of an error answer, `""` if there is none."""
        return self.refusal.remedy.kind if self.refusal is not None else ""

    @property
    def is_json(self) -> bool:
        """Tell whether it is a success and the body is JSON."""
        return self.is_ok and self.reply is not None and self.reply.value is not None

    @property
    def model_names(self) -> list[str]:
        """The names in a list of models, which some send without OpenAI's `data` around it."""
        value = self.reply.value if self.reply is not None else None
        found = value.get("data") if isinstance(value, dict) else value
        models = found if isinstance(found, list) else []
        return [to_line(model.get("id")) for model in models if isinstance(model, dict)]


class Prober:
    """Calls the upstream of one server; a probe asked for again is not sent again."""

    def __init__(self, server: ServerConfig, timeout_s: float) -> None:
        key = UpstreamKey(server.openai_api_key, server.openai_api_key_file, on_change=lambda: None)
        configured = {name.lower(): value.reveal() for name, value in server.openai_default_headers.items()}
        headers = {"authorization": f"Bearer {key.reveal()}", **configured}
        bounds = (timeout_s, server.first_byte_timeout_s or timeout_s)
        self.endpoint = ProbeClient(server.openai_base_url, headers, timeout_s=min(bounds), ca_file=server.ssl_ca_file)
        self._server = server
        self._secrets = {key.reveal(), *reveal_all(server.openai_default_headers)} - {""}
        self._done: dict[tuple[str, str], Probe] = {}

    def models(self, below: str = "") -> Probe:
        """Ask for the models, which costs nothing; `below` goes between the base URL and the path."""
        return self._once("models", below, lambda: self.endpoint.call(f"{below}/models"))

    def text(self, api: Api) -> Probe:
        """Ask for a few words."""
        return self._once(api, "text", lambda: self._call(api, _PROMPT, FEW_TOKENS))

    def stream(self, api: Api) -> Probe:
        """Ask for a few words as a stream."""
        return self._once(api, "stream", lambda: self._call(api, _PROMPT, FEW_TOKENS, stream=True))

    def tool(self, api: Api) -> Probe:
        """Ask for a function call."""
        tool = {"name": TOOL_NAME, "description": "The weather in a city.", "parameters": _PARAMETERS}
        listed = {"type": "function", **tool} if api is Api.RESPONSES else {"type": "function", "function": tool}
        return self._once(
            api, "tool", lambda: self._call(api, _TOOL_PROMPT, TOOL_TOKENS, tools=[listed], tool_choice="required")
        )

    def websocket(self) -> Probe:
        """Ask for the WebSocket mode of the Responses API; nothing is sent over it, so it costs nothing."""
        handshake = {
            "connection": "Upgrade",
            "upgrade": "websocket",
            "sec-websocket-version": "13",
            "sec-websocket-key": base64.b64encode(secrets.token_bytes(16)).decode(),
        }
        return self._once("websocket", "", lambda: self.endpoint.call(Api.RESPONSES.path, added_headers=handshake))

    @property
    def answered(self) -> list[Probe]:
        """The probes that were answered, the last one first; limits are told in the answers of calls, mostly."""
        return [probe for probe in reversed(self._done.values()) if probe.reply is not None]

    def hide(self, text: str) -> str:
        """Return a text without the key in it."""
        masked: str = mask(text, self._secrets)
        return masked

    def _once(self, what: str, how: str, call: Callable[[], Reply]) -> Probe:
        if (what, how) not in self._done:
            started = perf_counter()
            try:
                reply = call()
                self._done[what, how] = Probe(reply.took_s, reply)
            except CALL_ERRORS as error:
                self._done[what, how] = Probe(perf_counter() - started, error=error)
        return self._done[what, how]

    def _call(self, api: Api, prompt: str, tokens: int, **more: Any) -> Reply:
        server = self._server
        asked = {
            api.asked: prompt if api is Api.RESPONSES else [{"role": "user", "content": prompt}],
            api.token_limit: tokens,
        }
        own = getattr(server, api.defaults_key)
        body = {**server.extra_body, **own, "stream": False, **asked, **more, "model": server.openai_model}
        reply = self.endpoint.call(api.path, body)
        if api is Api.CHAT and reply.status in (400, 422) and b"max_completion_tokens" in reply.body:
            # Some backends know only the name that it had before 2024.
            del body["max_completion_tokens"]
            reply = self.endpoint.call(api.path, {**body, "max_tokens": tokens})
        return reply


def is_function_call(api: Api, reply: Reply) -> bool:
    """Tell whether the model called a function."""
    if api is Api.CHAT:
        message = _first_choice(reply.fields).get("message")
        return isinstance(message, dict) and bool(message.get("tool_calls"))
    output = reply.fields.get("output")
    items = output if isinstance(output, list) else []
    return any(isinstance(item, dict) and item.get("type") == "function_call" for item in items)


def is_cut_short(reply: Reply) -> bool:
    """Tell whether the model had to stop before it was done."""
    return reply.fields.get("status") == "incomplete" or _first_choice(reply.fields).get("finish_reason") == "length"


def is_switched(probe: Probe) -> bool | None:
    """Tell whether an upstream took a WebSocket handshake; None if its answer doesn't say."""
    status = probe.reply.status if probe.reply is not None else None
    return True if status == 101 else False if status in HAVE_NO_WEBSOCKETS else None


def describe_usage(reply: Reply) -> str:
    """Return what an answer says that it took."""
    usage = read_answer(reply.body).usage
    if usage is None:
        return "answers; it reports no tokens"
    return f"tokens: {usage.input_tokens} in, {usage.output_tokens} out"


def describe_limit(kind: str, limit: RateLimit) -> str:
    """Return what is left of a limit, and when all of it is back."""
    left, most = (f"{number:,.0f}" if number is not None else "?" for number in (limit.remaining, limit.limit))
    again = f" (all back in {limit.reset_s:,.3g} s)" if limit.reset_s else ""
    return f"{left} of {most} {kind} left{again}"


def _first_choice(fields: dict[str, Any]) -> dict[str, Any]:
    choices = fields.get("choices")
    return choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else {}
