"""The simulator under gunicorn: `gunicorn -k gevent openai_gateway.simulator.wsgi:app`.

OPENAI_GATEWAY_SIMULATOR_CONFIG names a YAML file of settings, OPENAI_GATEWAY_SIMULATOR_OVERRIDES is a JSON object.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from openai_gateway.simulator.app import create_app
from openai_gateway.simulator.settings import load_settings

_path = os.environ.get("OPENAI_GATEWAY_SIMULATOR_CONFIG")
_overrides = os.environ.get("OPENAI_GATEWAY_SIMULATOR_OVERRIDES") or "{}"
app = create_app(load_settings(Path(_path) if _path else None, json.loads(_overrides)))
