"""The lock table: who holds what, and until when. *The* rules of a lock stand here.

Rules
-----
L1  A name is held by at most one grant (I1). ``grant`` refuses while it is held.
L2  A grant's fencing token is the offset of the entry that made it; offsets only rise, hence so
    do the tokens of a name, and of all names (I7). So ``held`` is always in the order of tokens.
L3  A grant keeps the id of the request that made it, so that exactly this one can be undone.
L4  Nothing here reads a clock: the time comes with the entry. A lease ends by an entry of its own,
    never by the time alone, and that entry is refused as a bug if the lease has not passed (I8).
L5  A renewal is for one grant, told by its token, and never shortens the lease: a late copy of it
    must not cut a later, longer one.

A grant is a plain immutable tuple: a snapshot can hold on to it while the table moves on, and the
garbage collector forgets tuples of bytes and ints after its first look. (A named tuple costs a
third of a microsecond more to make, a tenth of what a whole request takes.)
"""

from __future__ import annotations

Grant = tuple[int, bytes, bytes, int, int]
"""The right to hold a name: fencing token, request id, owner, granted at (ms, state time), and when
the lease ends (the same; 0: there is none, it is held until it is released)."""


class LockTable:
    """Held locks by name. Changed only by ``State.apply``."""

    __slots__ = ("before_cut", "held", "leases")

    def __init__(self) -> None:
        self.held: dict[bytes, Grant] = {}
        self.leases = 0  # how many of them have one
        # While a snapshot is being sent: the grants of the cut that have ended or changed since
        # (snapshot.py).
        self.before_cut: dict[bytes, Grant] | None = None

    def grant(
        self,
        name: bytes,
        fencing_token: int,
        reqid: bytes,
        owner: bytes,
        now_ms: int,
        expires_at_ms: int = 0,
    ) -> int:
        """Grant ``name`` if nobody holds it: the fencing token, or 0."""
        if name in self.held:
            return 0
        self.held[name] = (fencing_token, reqid, owner, now_ms, expires_at_ms)
        if expires_at_ms:
            self.leases += 1
        return fencing_token

    def release(self, name: bytes) -> int:
        """End the grant of ``name``, whoever has it: 1, or 0 if it was not held."""
        grant = self.held.pop(name, None)
        if grant is None:
            return 0
        if grant[4]:
            self.leases -= 1
        if self.before_cut is not None:
            self.before_cut.setdefault(name, grant)
        return 1

    delete = release  # what it is called for every kind of name

    def release_grant_of(self, name: bytes, reqid: bytes) -> int:
        """End the grant of ``name`` if it was made by the request ``reqid``: 1 or 0."""
        grant = self.held.get(name)
        return self.release(name) if grant is not None and grant[1] == reqid else 0

    def release_grant(self, name: bytes, fencing_token: int) -> int:
        """End this very grant: 1, or 0 if it has ended already."""
        return self.release(name) if self.is_current(name, fencing_token) else 0

    def expire(self, name: bytes, now_ms: int) -> int:
        """End the grant of ``name``, whose lease has passed: 1."""
        grant = self.held.get(name)
        assert grant is not None, f"{name!r} is not held: nothing can expire (I5)"
        assert 0 < grant[4] <= now_ms, f"{name!r} expires at {grant[4]}, not yet (I8)"
        return self.release(name)

    def renew(self, name: bytes, fencing_token: int, expires_at_ms: int) -> int:
        """Have the lease of this very grant end then, if that is later: 1; 0 if it has ended."""
        if not self.is_current(name, fencing_token):
            return 0
        grant = self.held[name]
        if 0 < grant[4] < expires_at_ms:
            if self.before_cut is not None:
                self.before_cut.setdefault(name, grant)
            self.held[name] = (*grant[:4], expires_at_ms)
        return 1

    def is_current(self, name: bytes, fencing_token: int) -> bool:
        """Whether the grant with this token still holds ``name``."""
        grant = self.held.get(name)
        return grant is not None and grant[0] == fencing_token
