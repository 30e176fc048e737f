"""Calls the command line; `python -m openai_gateway.cli` is `openai-gateway`.

No command here needs gevent's patching: servers run as gunicorn processes of their own. See also: main.
"""

from __future__ import annotations

from openai_gateway.cli.main import main

if __name__ == "__main__":
    main()
