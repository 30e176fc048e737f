"""What may start when: the slots that cap concurrent calls, pauses, and bounds of retries.

See also: upstream (how a call is made).
"""
