"""The WSGI entry point: `gunicorn -k gevent wsgi:app`."""

from openai_gateway.wsgi import app

__all__ = ["app"]
