"""The half that does things: slots, sockets, time; gevent and requests live here.

Knows nothing of Flask; blueprints hand it frozen calls and get answers.
"""
