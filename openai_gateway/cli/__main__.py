"""Calls the command line; `python -m openai_gateway.cli` is `openai-gateway`.

No command here needs gevent's patching: servers run as gunicorn processes of their own. See also: main.
"""

from __future__ import annotations

import gc

# What is imported stays: to look for garbage in it, now and once more at the end, would take a fifth of `--help`.
gc.disable()

from openai_gateway.cli.main import main  # noqa: E402

gc.freeze()
gc.enable()

if __name__ == "__main__":
    main()
