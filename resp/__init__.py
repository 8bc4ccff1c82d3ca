"""RESP: bytes to values and back. Knows nothing of locks."""
