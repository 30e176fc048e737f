"""The order of things for one call: its admission, its attempts, its answer on the way to the client, its record.

Blueprints hand it frozen calls and get answers. See also: limits (what may start when), transport (bytes), wire.
"""
