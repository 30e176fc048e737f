"""gunicorn's settings for thousands of long calls: `gunicorn -c conf/gunicorn.conf.py wsgi:app`.

HOST, PORT, WEB_CONCURRENCY and GRACEFUL_TIMEOUT in the environment change the most usual ones. All settings are those
of `openai-gateway serve`; set others below, as in `keepalive = 60`.
"""

from openai_gateway.server.settings import *  # noqa: F403 (each name there is a setting)
