"""The lock table: who holds what. *The* rules of a lock stand here.

Rules
-----
L1  A name is held by at most one grant (I1). ``grant`` refuses while it is held.
L2  A grant's fencing token is the offset of the entry that made it; offsets only rise, hence so
    do the tokens of a name, and of all names (I7).
L3  A grant keeps the id of the request that made it, so that exactly this one can be undone.
L4  Nothing here reads a clock: the time comes with the entry.

A grant is a plain immutable tuple: a snapshot can hold on to it while the table moves on, and the
garbage collector forgets tuples of bytes and ints after its first look. (A named tuple costs a
third of a microsecond more to make, a tenth of what a whole request takes.)
"""

from __future__ import annotations

Grant = tuple[int, bytes, bytes, int]
"""The right to hold a name: fencing token, request id, owner, granted at (ms, state time)."""


class LockTable:
    """Held locks by name. Changed only by ``State.apply``."""

    __slots__ = ("before_cut", "held")

    def __init__(self) -> None:
        self.held: dict[bytes, Grant] = {}
        # While a snapshot is being sent: the grants of the cut that have ended since (snapshot.py).
        self.before_cut: dict[bytes, Grant] | None = None

    def grant(
        self, name: bytes, fencing_token: int, reqid: bytes, owner: bytes, now_ms: int
    ) -> int:
        """Grant ``name`` if nobody holds it: the fencing token, or 0."""
        if name in self.held:
            return 0
        self.held[name] = (fencing_token, reqid, owner, now_ms)
        return fencing_token

    def release(self, name: bytes) -> int:
        """End the grant of ``name``, whoever has it: 1, or 0 if it was not held."""
        grant = self.held.pop(name, None)
        if grant is None:
            return 0
        if self.before_cut is not None:
            self.before_cut.setdefault(name, grant)
        return 1

    def release_grant_of(self, name: bytes, reqid: bytes) -> int:
        """End the grant of ``name`` if it was made by the request ``reqid``: 1 or 0."""
        grant = self.held.get(name)
        if grant is None:
            return 0
        _, granted_reqid, _, _ = grant
        return self.release(name) if granted_reqid == reqid else 0
