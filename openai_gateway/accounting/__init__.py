"""Observers of finished calls: each is called once with a CallRecord and returns at once.

They never see a body or a key.
"""
