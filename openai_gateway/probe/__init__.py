"""Calls to an endpoint from the command line, one at a time and in full view: `check` and `bench` are made of them.

Blocking sockets and http.client: what is learned here depends on nothing that the gateway's own relaying does.
"""
