"""Kept answers: recorded once, replayed as often as asked, so that an answer is paid for once.

This room knows bytes, files and who asked. See also: upstream (how a call is made).
"""
