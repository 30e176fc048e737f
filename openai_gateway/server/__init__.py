"""All that touches gunicorn: its worker, its parser, its response writer, its settings, its master.

Flask is unknown here; what an answer is, too: bytes and sockets only.
"""
