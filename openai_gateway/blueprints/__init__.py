"""The half that speaks WSGI: what a client sends is checked and made a Call, an answer or error made a response.

Flask lives here; sockets of the upstream don't.
"""
