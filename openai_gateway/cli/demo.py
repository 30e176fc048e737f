"""`openai-gateway demo`: simulator and gateway as real gunicorn processes, one request of each kind shown.

Needs no key and no network.
"""

from __future__ import annotations

import contextlib
import functools
import json
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import click
import requests
import yaml

from openai_gateway.cli.servers import NotReady, run_server

_KEY: Final = "sk-demo-key-held-by-the-gateway"
_MODEL: Final = "demo-model"
_PROMPT: Final = "What does this gateway do?"
_PARAMETERS: Final = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}


@click.command(name="demo")
@click.option("--once", is_flag=True, help="End after the requests; exit code 0 only if all went well.")
@click.option("--port", default=0, type=click.IntRange(0, 65535), help="Port of the gateway (default: a free one).")
def command(once: bool, port: int) -> None:
    """Start simulator and gateway, send one request of each kind, and serve on until Ctrl-C.

    \b
    Examples:
      openai-gateway demo
      openai-gateway demo --port 8000                  # then call http://127.0.0.1:8000/v1 as if it were OpenAI's
      openai-gateway demo --once && echo all went well
    """
    _end_servers_on_signals()
    is_all_well = False
    try:
        with tempfile.TemporaryDirectory() as folder, _run_both(Path(folder), port) as url:
            is_all_well = _show_requests(url)
            if not once and is_all_well:
                _serve_on(url)
    except (NotReady, OSError) as error:
        raise click.ClickException(str(error)) from None
    except KeyboardInterrupt:
        if not is_all_well:
            raise click.ClickException("stopped before all requests had gone through") from None
        # A closed terminal takes no more words.
        with contextlib.suppress(OSError):
            click.echo("\nStopped.")
        return
    if not is_all_well:
        raise click.ClickException("not all went well; see above")
    click.echo("All went well.")


@contextlib.contextmanager
def _run_both(folder: Path, port: int) -> Iterator[str]:
    click.echo("Starting the simulator and the gateway (gunicorn, gevent) ...")
    overrides = json.dumps({"api_key": _KEY, "latency_ms": 80, "event_gap_ms": 60})
    simulator_environ = {"OPENAI_GATEWAY_SIMULATOR_CONFIG": "", "OPENAI_GATEWAY_SIMULATOR_OVERRIDES": overrides}
    with run_server("openai_gateway.simulator.wsgi:app", simulator_environ) as upstream:
        settings = {"openai_base_url": f"{upstream}/v1", "openai_api_key": _KEY, "openai_model": _MODEL}
        config = folder / "demo.yaml"
        config.write_text(yaml.safe_dump({"policy_model": {"responses_api_models": {"openai_model": settings}}}))
        # An env.yaml of the working folder must not get into the demo.
        empty = folder / "env.yaml"
        empty.write_text("{}\n")
        environ = {
            "OPENAI_GATEWAY_CONFIG_PATHS": str(config),
            "OPENAI_GATEWAY_ENV_YAML": str(empty),
            "OPENAI_GATEWAY_SERVER": "",
        }
        with run_server("openai_gateway.wsgi:app", environ, port=port) as url:
            click.echo(f"  simulator  {upstream}/v1   (holds the place of the paid endpoint)")
            click.echo(f"  gateway    {url}/v1\n")
            yield url


def _show_requests(url: str) -> bool:
    messages = [{"role": "user", "content": _PROMPT}]
    tool = {"type": "function", "name": "get_weather", "parameters": _PARAMETERS}
    responses: dict[str, Any] = {"input": _PROMPT}
    chat: dict[str, Any] = {"messages": messages}
    streamed_chat = {**chat, "stream": True, "stream_options": {"include_usage": True}}
    with requests.Session() as session:
        # No proxy or netrc of the environment may come in between.
        session.trust_env = False
        show = functools.partial(_show, session, url)
        return all(
            [
                show("Responses", "/v1/responses", responses),
                show("Responses, streamed", "/v1/responses", {**responses, "stream": True}),
                show("Chat", "/v1/chat/completions", chat),
                show("Chat, streamed", "/v1/chat/completions", streamed_chat),
                show("Function call", "/v1/responses", {**responses, "tools": [tool]}),
            ]
        )


def _show(session: requests.Session, url: str, title: str, path: str, body: dict[str, Any]) -> bool:
    click.echo(f"{title:20} POST {path}")
    click.echo(f"{'':20} > {_PROMPT}")
    click.echo(f"{'':20} < ", nl=False)
    started = time.monotonic()
    try:
        answer = session.post(url + path, json={"model": "any", **body}, stream=True, timeout=30)
        answer.raise_for_status()
        usage = _show_stream(answer) if body.get("stream") else _show_whole(answer.json())
    except (requests.RequestException, ValueError, KeyError, LookupError) as error:
        click.echo(f"failed: {error}")
        return False
    tokens = f"{usage['in']} tokens in, {usage['out']} out"
    took_ms = (time.monotonic() - started) * 1000
    click.echo(f"\n{'':20}   {answer.status_code}, model {usage['model']}, {tokens}, {took_ms:.0f} ms\n")
    return bool(usage["model"] == _MODEL)


def _show_whole(answer: dict[str, Any]) -> dict[str, Any]:
    if "choices" in answer:
        click.echo(answer["choices"][0]["message"]["content"], nl=False)
    else:
        item = answer["output"][0]
        is_call = item["type"] == "function_call"
        click.echo(f"{item['name']}({item['arguments']})" if is_call else item["content"][0]["text"], nl=False)
    return _to_usage(answer)


def _show_stream(answer: requests.Response) -> dict[str, Any]:
    last: dict[str, Any] = {}
    for line in answer.iter_lines(chunk_size=None):
        if not line.startswith(b"data: {"):
            continue
        event = json.loads(line[6:])
        if event.get("type") == "response.output_text.delta":
            click.echo(event["delta"], nl=False)
        for choice in event.get("choices", ()):
            click.echo(choice["delta"].get("content") or "", nl=False)
        last = event
    return _to_usage(last.get("response", last))


def _to_usage(answer: dict[str, Any]) -> dict[str, Any]:
    usage = answer["usage"]
    tokens_in = usage.get("input_tokens", usage.get("prompt_tokens"))
    tokens_out = usage.get("output_tokens", usage.get("completion_tokens"))
    return {"model": answer["model"], "in": tokens_in, "out": tokens_out}


def _serve_on(url: str) -> None:
    click.echo(f"""Point a client at  {url}/v1  (any key, any model name):

  curl {url}/v1/responses -H 'content-type: application/json' -d '{{"input": "Hello"}}'

  from openai import OpenAI
  client = OpenAI(base_url="{url}/v1", api_key="any")
  print(client.responses.create(model="any", input="Hello").output_text)

Serving until Ctrl-C ...""")
    signal.pause()


def _end_servers_on_signals() -> None:
    """Have SIGTERM and a closed terminal's SIGHUP end the demo as Ctrl-C does: its servers would outlive it."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        # What nohup ignores stays ignored.
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _raise_interrupt)


def _raise_interrupt(*_: object) -> None:
    raise KeyboardInterrupt
