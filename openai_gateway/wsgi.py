"""The app that gunicorn's workers serve, made from the environment: `gunicorn -k gevent wsgi:app`.

Patches first; a bad config ends the worker with its one message, and gunicorn with it.
"""

# ruff: noqa: E402 (nothing may be imported before the patching)
from gevent import monkey

monkey.patch_all()

import gc
import logging
import sys
from typing import Final

from openai_gateway import reloading
from openai_gateway.app import GatewayApp, create_app
from openai_gateway.config import ConfigError

GUNICORN_APP_LOAD_ERROR: Final = 4
_GC_THRESHOLDS: Final = (50_000, 20, 100)


def _make_app() -> GatewayApp:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    try:
        made = create_app(reloading.current())
    except ConfigError as error:
        print(error, file=sys.stderr, flush=True)
        # Any other code would make gunicorn start the worker again, for ever.
        raise SystemExit(GUNICORN_APP_LOAD_ERROR) from None
    # What is loaded now lives as long as the process: no collection need look at it, and calls make few cycles.
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_GC_THRESHOLDS)
    return made


app = _make_app()
