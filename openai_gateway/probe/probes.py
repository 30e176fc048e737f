"""The small calls that `check` tries an upstream with, each made once, with the server's own key and parameters.

What an answer means for the person who asked is `examining`'s.
"""

from __future__ import annotations

import http.client
from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter
from typing import Any, Final

from openai_gateway.config import ServerConfig
from openai_gateway.config.redact import mask, reveal_all
from openai_gateway.probe.calling import PATHS, Answer, BrokenAnswer, Target
from openai_gateway.probe.cures import Meaning
from openai_gateway.upstream.key import UpstreamKey

FAILURES: Final = (OSError, http.client.HTTPException, BrokenAnswer)
# The least that the Responses API takes.
FEW_TOKENS: Final = 16
TOOL_TOKENS: Final = 512
TOOL_NAME: Final = "get_weather"
_PARAMETERS: Final = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
_PROMPT: Final = "Say hi."
_TOOL_PROMPT: Final = "What is the weather in Paris? Use the tool."


@dataclass(frozen=True)
class Outcome:
    """What came of one probe: an answer, or the exception there was instead."""

    took_s: float
    answer: Answer | None = None
    error: Exception | None = None

    @property
    def is_ok(self) -> bool:
        """Tell whether the answer is a success."""
        return self.answer is not None and self.answer.status < 300

    @property
    def meaning(self) -> Meaning | None:
        """Return what an error answer means, None if there is none."""
        return Meaning(self.answer) if self.answer is not None and not self.is_ok else None

    @property
    def kind(self) -> str:
        """Return the kind of an error answer, `""` if there is none."""
        return self.meaning.kind if self.meaning is not None else ""


class Prober:
    """Calls the upstream of one server; a probe asked for again is not sent again."""

    def __init__(self, server: ServerConfig, timeout_s: float) -> None:
        key = UpstreamKey(server, on_change=lambda: None)
        configured = {name.lower(): value.reveal() for name, value in server.openai_default_headers.items()}
        headers = {"authorization": f"Bearer {key.reveal()}", **configured}
        bounds = (timeout_s, server.first_byte_timeout_s or timeout_s)
        self.target = Target(server.openai_base_url, headers, timeout_s=min(bounds), ca_file=server.ssl_ca_file)
        self._server = server
        self._secrets = {key.reveal(), *reveal_all(server.openai_default_headers)} - {""}
        self._done: dict[tuple[str, str], Outcome] = {}

    def models(self, below: str = "") -> Outcome:
        """Ask for the models, which costs nothing; `below` goes between the base URL and the path."""
        return self._once("models", below, lambda: self.target.call(f"{below}/models"))

    def text(self, api: str) -> Outcome:
        """Ask for a few words."""
        return self._once(api, "text", lambda: self._call(api, _PROMPT, FEW_TOKENS))

    def stream(self, api: str) -> Outcome:
        """Ask for a few words as a stream."""
        return self._once(api, "stream", lambda: self._call(api, _PROMPT, FEW_TOKENS, stream=True))

    def tool(self, api: str) -> Outcome:
        """Ask for a function call."""
        tool = {"name": TOOL_NAME, "description": "The weather in a city.", "parameters": _PARAMETERS}
        listed = {"type": "function", **tool} if api == "responses" else {"type": "function", "function": tool}
        return self._once(
            api, "tool", lambda: self._call(api, _TOOL_PROMPT, TOOL_TOKENS, tools=[listed], tool_choice="required")
        )

    def hide(self, text: str) -> str:
        """Return a text without the key in it."""
        masked: str = mask(text, self._secrets)
        return masked

    def _once(self, what: str, how: str, call: Callable[[], Answer]) -> Outcome:
        if (what, how) not in self._done:
            started = perf_counter()
            try:
                answer = call()
                self._done[what, how] = Outcome(answer.took_s, answer)
            except FAILURES as error:
                self._done[what, how] = Outcome(perf_counter() - started, error=error)
        return self._done[what, how]

    def _call(self, api: str, prompt: str, tokens: int, **more: Any) -> Answer:
        server = self._server
        if api == "responses":
            own = server.extra_body_responses
            asked: dict[str, Any] = {"input": prompt, "max_output_tokens": tokens}
        else:
            own = server.extra_body_chat
            asked = {"messages": [{"role": "user", "content": prompt}], "max_completion_tokens": tokens}
        body = {**server.extra_body, **own, "stream": False, **asked, **more, "model": server.openai_model}
        answer = self.target.call(PATHS[api], body)
        if api == "chat" and answer.status in (400, 422) and b"max_completion_tokens" in answer.body:
            # Its name before 2024, which some backends still know only.
            del body["max_completion_tokens"]
            answer = self.target.call(PATHS[api], {**body, "max_tokens": tokens})
        return answer
