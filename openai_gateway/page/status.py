"""Serves `/status`, the page for people, and the events that keep it up to date; over all workers.

Neither is a call: no slot is taken, and no record is made. See also: access (which decides who may see them).
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from typing import Any, Final

import flask
import gevent
import jinja2

from openai_gateway.blueprints.calls import CallServer
from openai_gateway.blueprints.reply import PumpedResponse, StartResponse
from openai_gateway.blueprints.serving import FEED, SERVERS
from openai_gateway.page.access import admit
from openai_gateway.page.feed import Feed, Viewer
from openai_gateway.page.layout import CHARTS, TABLES
from openai_gateway.server import draining
from openai_gateway.server.writer import adopt

_POLICY: Final = (
    "default-src 'none'; style-src 'nonce-{nonce}'; script-src 'nonce-{nonce}'; connect-src 'self'; img-src data:;"
    " base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
# Where the app keeps the page's template, or what will be.
_TEMPLATE: Final = "openai_gateway.status_template"
_HEADERS: Final = {
    "cache-control": "no-store",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}

blueprint = flask.Blueprint("status", __name__, url_prefix="/status", template_folder=".")


class _EventsResponse(PumpedResponse):
    """A viewer's events as a response, written past werkzeug's machinery so that a viewer who left is noticed."""

    def __init__(self, viewer: Viewer) -> None:
        # A proxy must not hold events back.
        headers = {**_HEADERS, "x-accel-buffering": "no"}
        super().__init__(content_type="text/event-stream", headers=headers)
        self._source = viewer

    def __call__(self, environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        """Start the response and return its body; the server closes it."""
        try:
            self._writer = adopt(start_response, environ)
            start_response(self.status, self.headers.to_wsgi_list())
        except BaseException:
            self.close()
            raise
        return self


@blueprint.before_request
def check_access() -> None:
    """Let only those in who may see it."""
    servers: dict[str, CallServer] = flask.current_app.extensions[SERVERS]
    admit(flask.request.environ, [server.keys for server in servers.values()])


@blueprint.get("")
def page() -> flask.Response:
    """Show the page as of now; its script keeps it up to date."""
    nonce = secrets.token_urlsafe(16)
    feed: Feed = flask.current_app.extensions[FEED]
    html = flask.render_template(_find_template(), view=feed.view(), charts=CHARTS, tables=TABLES, nonce=nonce)
    headers = {**_HEADERS, "content-security-policy": _POLICY.format(nonce=nonce)}
    return flask.Response(html, headers=headers, content_type="text/html; charset=utf-8")


def _find_template() -> jinja2.Template:
    """Return the page's template, compiled when it is first asked for.

    In a thread of its own, for in this one all calls would stand still meanwhile; and only there until that is done,
    for jinja's locks are gevent's, which fail between threads.
    """
    kept = flask.current_app.extensions
    if _TEMPLATE not in kept:
        kept[_TEMPLATE] = gevent.get_hub().threadpool.spawn(_compile, flask.current_app.jinja_env)
    template: jinja2.Template = kept[_TEMPLATE].get()
    return template


def _compile(env: jinja2.Environment) -> jinja2.Template:
    """Return the page's template, compiled as are those that it includes."""
    return [env.get_template(name) for name in ("status.css", "status.js", "status.html")][-1]


@blueprint.get("/events")
def events() -> flask.Response:
    """Stream what the page shows, a server-sent event a second."""
    if flask.request.method == "HEAD":
        return flask.Response(headers=_HEADERS, content_type="text/event-stream")
    feed: Feed = flask.current_app.extensions[FEED]
    client = flask.request.environ.get("gunicorn.socket")
    viewer = feed.enter(lambda: draining.is_on, None if client is None else client.fileno())
    return _EventsResponse(viewer)
