"""WebSockets of the Responses API once they are open: the bytes both ways, and what each response in them is as a call.

The handshake is `blueprints.websocket`'s, what a frame is `wire.frames`'.
"""
