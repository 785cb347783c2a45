"""The hand-written half of the contract: errors, retry policy, payloads, ids and topology names. No I/O.

Both ends of every wire import it; it imports the standard library, msgspec and `treadle.v1` only.
"""
