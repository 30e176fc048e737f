"""The public name of gunicorn's settings: `gunicorn -c python:openai_gateway.gunicorn_settings`.

What they are, and why, is in `server.settings`.
"""

from openai_gateway.server.settings import *  # noqa: F403
