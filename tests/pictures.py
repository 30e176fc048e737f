"""Makes the README's pictures from the real thing: /status in a browser under load, and a terminal running `collect`.

    python -m tests.pictures [status] [collect]

The simulator is the upstream, with a rate limit and slow answers, so that there is something to see. Written to
.github/: status.png (Chromium, 1280 wide) and collect.svg (rich, the bytes that the command wrote to its terminal).
"""

from __future__ import annotations

import argparse
import io
import json
import re
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import requests
import yaml
from rich.console import Console
from rich.text import Text

from tests.support.chromium import run_chromium
from tests.support.processes import ROOT, Gunicorn, run_gateway, run_simulator
from tests.support.terminals import run_on_terminal

_FOLDER: Final = ROOT / ".github"
_KEY: Final = "sk-upstream-key"
_MODEL: Final = "gpt-5-mini"
_PRICES: Final = {
    "read_on": time.strftime("%Y-%m-%d"),
    "source": "made up for the picture",
    "models": {_MODEL: {"input": 0.25, "cached": 0.025, "output": 2.0}},
}
_COLUMNS: Final = 100
_LOAD_S: Final = 75.0
_CLIENTS: Final = 20
_ROWS: Final = 400
_CONCURRENCY: Final = 16
# A terminal goes back to the line's start, or clears to its end.
_BACK: Final = re.compile(r"[^\n]*\r(?!\n)")
_CLEAR: Final = "\x1b[K"
# Fonts that are fetched have no place in a picture of a repository.
_FONT_FACES: Final = re.compile(r"@font-face \{.*?\}", re.DOTALL)


def main() -> None:
    """Make the pictures that the command line names, both if none."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", nargs="*", choices=["status", "collect", []], help="which (default: both)")
    wanted = parser.parse_args().pictures or ["status", "collect"]
    _FOLDER.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        for name in wanted:
            made = _picture_status(Path(folder)) if name == "status" else _picture_collect(Path(folder))
            print(made.relative_to(ROOT))


def _picture_status(folder: Path) -> Path:
    path = _FOLDER / "status.png"
    with _run_both(folder, {"api_key": _KEY, "rpm": 2500}) as gateway, _load(gateway.url):
        time.sleep(_LOAD_S)
        with run_chromium() as browser:
            # Of this, the browser keeps some for itself.
            browser.set_window_size(1280, 900)
            browser.get(f"{gateway.url}/status")
            time.sleep(3)
            browser.execute_script("document.documentElement.style.overflow = 'hidden'")  # type: ignore[no-untyped-call]
            browser.save_screenshot(str(path))
    return path


def _picture_collect(folder: Path) -> Path:
    path = _FOLDER / "collect.svg"
    rows = [{"messages": [{"role": "user", "content": f"Question {number}: why?"}]} for number in range(_ROWS)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = "collect --input prompts.jsonl --output rollouts.jsonl --max-cost 1"
    with run_simulator(folder, {"api_key": _KEY, "latency_ms": 300, "rpm": 3000}) as simulator:
        _write_config(folder, simulator.url)
        shown = run_on_terminal(arguments.split(), folder, columns=_COLUMNS)
    console = Console(record=True, width=_COLUMNS, file=io.StringIO(), force_terminal=True)
    console.print(Text(f"$ openai-gateway {arguments}", style="bold"))
    console.print(Text.from_ansi(_settle(shown)))
    # The picture cuts the last line at its foot: what hangs below it goes.
    console.print()
    path.write_text(_FONT_FACES.sub("", console.export_svg(title="openai-gateway collect")))
    return path


def _write_config(folder: Path, upstream: str) -> None:
    (folder / "prices.yaml").write_text(yaml.safe_dump(_PRICES))
    server = {
        "openai_base_url": f"{upstream}/v1",
        "openai_api_key": _KEY,
        "openai_model": _MODEL,
        "max_concurrent_requests": _CONCURRENCY,
        "price_file": str(folder / "prices.yaml"),
        "extra_body_chat": {"max_completion_tokens": 500},
    }
    tree = {"policy_model": {"responses_api_models": {"openai_model": server}}}
    (folder / "conf").mkdir(exist_ok=True)
    (folder / "conf/openai_model.yaml").write_text(yaml.safe_dump(tree))


def _settle(shown: str) -> str:
    """Return what stands on the terminal at the end."""
    lines = shown.replace("\r\n", "\n").split("\n")
    return "\n".join(_BACK.sub("", line).replace(_CLEAR, "") for line in lines).strip("\n")


@contextmanager
def _run_both(folder: Path, settings: dict[str, Any]) -> Iterator[Gunicorn]:
    (folder / "prices.yaml").write_text(yaml.safe_dump(_PRICES))
    gateway = {
        "openai_model": _MODEL,
        "max_concurrent_requests": _CONCURRENCY,
        "price_file": str(folder / "prices.yaml"),
        "retry_ratio": None,
    }
    with run_simulator(folder, settings) as simulator, run_gateway(folder, simulator.url, gateway) as running:
        yield running


@contextmanager
def _load(url: str) -> Iterator[None]:
    """Have clients come and go for the length of a `with` block: slow and quick ones, streams, a few mistakes."""
    is_over = threading.Event()

    def call_on(number: int) -> None:
        with requests.Session() as session:
            session.trust_env = False
            turn = 0
            while not is_over.wait(0.05 * (number % 5)):
                turn += 1
                _call(session, url, number, turn)

    threads = [threading.Thread(target=call_on, args=(number,), daemon=True) for number in range(_CLIENTS)]
    for number, thread in enumerate(threads):
        thread.start()
        is_over.wait(0.2 * (number % 3))
    try:
        yield
    finally:
        is_over.set()
        for thread in threads:
            thread.join(30)


def _call(session: requests.Session, url: str, number: int, turn: int) -> None:
    script: dict[str, str] = {"sim_latency_ms": str(100 + 60 * (number % 7) + 20 * (turn % 9))}
    if (7 * number + turn) % 150 == 149:
        script |= {"sim_status": "500", "sim_key": f"{number}-{turn}"}
    body: dict[str, Any] = {"input": f"Tell me about {number}. " * (1 + turn % 12), "metadata": script}
    body["stream"] = number % 3 == 0
    with session.post(f"{url}/v1/responses", json=body, stream=True, timeout=60) as answer:
        if number % 8 == 0 and turn % 20 == 10:
            # Leaves before the answer has come.
            return
        for _ in answer.iter_content(65536):
            pass


if __name__ == "__main__":
    main()
