"""The simulator under gunicorn: `gunicorn -k gevent openai_gateway.simulator.wsgi:app`.

OPENAI_GATEWAY_SIMULATOR_CONFIG names a YAML file of settings, OPENAI_GATEWAY_SIMULATOR_OVERRIDES is a JSON object;
bad ones end the worker with one message, and gunicorn with it. State is a process's own: use one worker. See also:
app, settings.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Final

import flask

from openai_gateway.simulator.app import create_app
from openai_gateway.simulator.settings import SettingsError, load_settings

GUNICORN_APP_LOAD_ERROR: Final = 4


def _make_app() -> flask.Flask:
    path = os.environ.get("OPENAI_GATEWAY_SIMULATOR_CONFIG")
    try:
        overrides = json.loads(os.environ.get("OPENAI_GATEWAY_SIMULATOR_OVERRIDES") or "{}")
        if not isinstance(overrides, dict):
            raise SettingsError("OPENAI_GATEWAY_SIMULATOR_OVERRIDES is not a JSON object")
        return create_app(load_settings(Path(path) if path else None, overrides))
    except json.JSONDecodeError as error:
        problem = f"OPENAI_GATEWAY_SIMULATOR_OVERRIDES is not JSON: {error}"
    except (SettingsError, OSError) as error:
        problem = str(error)
    print(f"The simulator's settings are wrong: {problem}", file=sys.stderr, flush=True)
    # Any other code would make gunicorn start the worker again, for ever.
    raise SystemExit(GUNICORN_APP_LOAD_ERROR)


app = _make_app()
