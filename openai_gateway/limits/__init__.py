"""What may start when: the slots that cap concurrent calls, pauses, and bounds of retries.

How a call is made is `upstream`'s.
"""
