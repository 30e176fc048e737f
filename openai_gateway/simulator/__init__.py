"""An OpenAI-like upstream for demos, tests and dry runs: deterministic, scripted, and needing no key.

Imports nothing of the gateway, so that it proves the gateway from outside.
"""
