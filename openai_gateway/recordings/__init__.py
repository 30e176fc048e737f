"""Kept answers: recorded once, replayed as often as asked, so that an answer is paid for once.

How a call is made is `upstream`'s; this room knows bytes, files and who asked.
"""
