"""WebSockets of the Responses API once they are open: the bytes both ways, and what each response in them is as a call.

See also: blueprints.websocket (the handshake), wire.frames (what a frame is).
"""
