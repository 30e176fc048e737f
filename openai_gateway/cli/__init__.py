"""The operator's command line: one file a command, each a thin click shell around a plain function.

A command's function takes what it needs, prints, and returns an exit code; what it can't go on with it raises (exits).
Shared by commands: choosing (which config), servers and own_gateway (gunicorn), simulated, screen (tables, progress).
"""
