"""The public name of gunicorn's settings: `gunicorn -c python:openai_gateway.gunicorn_settings`.

See also: server.settings (what they are, and why).
"""

from openai_gateway.server.settings import *  # noqa: F403
