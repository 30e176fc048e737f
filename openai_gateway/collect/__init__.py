"""Collects the answers to a file of prompts: read as a stream, written a line at a time, resumed after any end.

The screen is `cli.collect`'s; retries against the upstream are the gateway's.
"""
