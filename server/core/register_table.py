"""The register table: small values with a version. *The* rules of a versioned register stand here.

Rules
-----
V1  A put names the version that it replaces: 0 creates, n > 0 writes over version n. Whatever it
    writes has the next version. So of several puts that saw the same version one writes.
V2  A put that does not fit changes nothing and says what it met: the current version, or that
    there is no register.
V3  A register that has been deleted, or has expired, is gone with its version: the next one of
    that name begins with 1.
V4  As in the lock table nothing here reads a clock: a register ends by an entry of its own, which
    is refused as a bug if its time has not come. A put leaves that time as it is.
V5  ``held`` is in the order in which the registers were created: by offset, which only rises.

What a put comes to is one int, so that the reply cache can remember it: the new version, or one of
the refusals below, which are not above 0.
"""

from __future__ import annotations

from .limits import REGISTER_OVERHEAD_BYTES

Register = tuple[int, bytes, int, int]
"""Offset of the entry that created it, value, version, and when it ends (ms, state time; 0: it
does not). A plain tuple, for the reasons given in the lock table."""

NO_KEY = 0
"""A put's answer: there is no register of this name."""

STALE_TOKEN = -(1 << 63)
"""A put's answer: the grant that it names is not the current one. (No version is that large.)"""


class RegisterTable:
    """Registers by name. Changed only by ``State.apply``."""

    __slots__ = ("before_cut", "cut_at", "expiring", "held", "size_bytes")

    def __init__(self) -> None:
        self.held: dict[bytes, Register] = {}
        self.expiring = 0  # how many of them will end
        self.size_bytes = 0
        # While a snapshot is being sent: the registers of the cut that have changed since.
        self.before_cut: dict[bytes, Register] | None = None
        self.cut_at = 0  # the offset of that cut

    def refusal(self, name: bytes, version: int) -> int | None:
        """Why a put of ``version`` would not write: NO_KEY, or the current version as a negative
        number; None: it would (V1, V2)."""
        register = self.held.get(name)
        if register is None:
            return NO_KEY if version else None
        return None if register[2] == version else -register[2]

    def write(self, name: bytes, offset: int, value: bytes, version: int) -> int:
        """Write what replaces ``version``; the new version. The caller has asked ``refusal``."""
        register = self.held.get(name)
        if register is None:
            self.size_bytes += REGISTER_OVERHEAD_BYTES + len(name) + len(value)
            self.held[name] = (offset, value, 1, 0)
            return 1
        self._save(name, register)
        created, old_value, _, expires_at_ms = register
        self.size_bytes += len(value) - len(old_value)
        self.held[name] = (created, value, version + 1, expires_at_ms)
        return version + 1

    def delete(self, name: bytes) -> int:
        """End a register: 1, or 0 if there is none."""
        register = self.held.pop(name, None)
        if register is None:
            return 0
        self._save(name, register)
        self.size_bytes -= REGISTER_OVERHEAD_BYTES + len(name) + len(register[1])
        if register[3]:
            self.expiring -= 1
        return 1

    def end_at(self, name: bytes, expires_at_ms: int) -> int:
        """Have a register end then (0: never): 1, or 0 if there is none."""
        register = self.held.get(name)
        if register is None:
            return 0
        self._save(name, register)
        self.expiring += bool(expires_at_ms) - bool(register[3])
        self.held[name] = (*register[:3], expires_at_ms)
        return 1

    def expire(self, name: bytes, now_ms: int) -> int:
        """End a register whose time has come: 1."""
        expires_at_ms = self.held[name][3]
        assert 0 < expires_at_ms <= now_ms, f"{name!r} expires at {expires_at_ms}, not yet (V4)"
        return self.delete(name)

    def load(self, name: bytes, register: Register) -> None:
        """Put in what a snapshot says, in its order."""
        self.held[name] = register
        self.expiring += bool(register[3])
        self.size_bytes += REGISTER_OVERHEAD_BYTES + len(name) + len(register[1])

    def _save(self, name: bytes, register: Register) -> None:
        if self.before_cut is not None and register[0] <= self.cut_at:
            self.before_cut.setdefault(name, register)
