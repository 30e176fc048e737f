"""Collects the answers to a file of prompts: read as a stream, written a line at a time, resumed after any end.

The gateway makes the retries against the upstream. See also: cli.collect (the screen).
"""
