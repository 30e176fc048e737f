"""The pure half: values, envelopes, headers, retry rules, HTTP/1.1 and SSE framing.

No socket, clock, Flask or gevent here; bytes and values in, bytes and values out.
"""
