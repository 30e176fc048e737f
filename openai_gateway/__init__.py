"""A small WSGI gateway between programs that speak the OpenAI API and one OpenAI-compatible endpoint."""

from __future__ import annotations

__version__ = "0.2.0.dev0"
