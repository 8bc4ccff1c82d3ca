"""What a caller may say: every argument is looked at before anything is sent.

What a node may judge otherwise one day (the longest lease that it gives) is left to it.
"""

from __future__ import annotations

# Of a lock, an owner, a pattern.
NAME_BYTES_MAX = 512

# Of a register.
VALUE_BYTES_MAX = 65_536

# The longest lease that a node gives: 365 days.
LEASE_MS_MAX = 31_536_000_000


def lock_name(name: str | bytes) -> bytes:
    return _words("a lock's name", name)


def owner_name(owner: str | bytes | None) -> bytes | None:
    return None if owner is None else _words("an owner", owner)


def glob_pattern(match: str | bytes | None) -> bytes | None:
    return None if match is None else _words("a pattern", match)


def register_key(key: str | bytes) -> bytes:
    return _words("a register's key", key)


def register_value(value: str | bytes) -> bytes:
    encoded = _bytes("a register's value", value)
    if len(encoded) > VALUE_BYTES_MAX:
        raise ValueError(f"a register holds {VALUE_BYTES_MAX} bytes at most, not {len(encoded)}")
    return encoded


def register_version(value: int) -> int:
    """0: there is no register yet."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"a version must be an int, not {type(value).__name__}")
    if value < 0:
        raise ValueError(f"a version is not below 0, it is {value}")
    return int(value)


def length_ms(what: str, value: int) -> int:
    """A time that is not nothing."""
    if _whole_ms(what, value) <= 0:
        raise ValueError(f"{what} must be above 0, not {value}")
    return value


def lease_length_ms(value: int | None) -> int | None:
    """None: no lease, held until it is released."""
    return None if value is None else length_ms("lease_ms", value)


def wait_length_ms(value: int | None) -> int | None:
    """0: no wait. None: as long as it takes."""
    if value is not None and _whole_ms("wait_ms", value) < 0:
        raise ValueError(f"wait_ms must not be below 0, it is {value}")
    return value


def fencing_token(value: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"a fencing token must be an int, not {type(value).__name__}")
    if value <= 0:
        raise ValueError(f"a fencing token is above 0, not {value}: was the lock granted at all?")
    return int(value)


def _whole_ms(what: str, value: int) -> int:
    if type(value) is not int:
        raise TypeError(f"{what} must be an int, in milliseconds, not {type(value).__name__}")
    return value


def _words(what: str, value: str | bytes) -> bytes:
    encoded = _bytes(what, value)
    if not 1 <= len(encoded) <= NAME_BYTES_MAX:
        raise ValueError(f"{what} has 1 to {NAME_BYTES_MAX} bytes, not {len(encoded)}")
    return encoded


def _bytes(what: str, value: str | bytes) -> bytes:
    if isinstance(value, str):
        return value.encode()
    if isinstance(value, bytes):
        return value
    raise TypeError(f"{what} must be str or bytes, not {type(value).__name__}")
