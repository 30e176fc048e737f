"""Bytes to and from one HTTP peer: connections, TLS, the pool, one exchange, and the watch over it.

Knows no config and no endpoint; `upstream` and `collect` build on it.
"""
