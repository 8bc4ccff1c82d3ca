"""Fencing: a storage that lets no holder write whose lock is somebody else's by now.

A lease cannot stop a holder that stands still between looking at its clock and writing: a pause of
the process, of its machine, or of the network. Only what is written to can. Every grant carries a
fencing token that is larger than that of any grant before; the holder shows it with every request,
and the storage remembers, for each resource, the highest that it has seen.

The rule
    R1  A token lower than the highest seen for the resource is refused.
    R2  Any other becomes the highest seen, whether it comes with a write or with a read.
    R3  The check and the write that it guards are one step: no other token comes in between.
    R4  A holder's first request is a guarded read, or `check`. From then on no earlier holder
        changes the resource under what it has read.

Why reads count: the accident that R2 and R4 prevent.

    holder 33   reads 100 ... stands still ................ writes 150: accepted
    holder 34                                reads 100                           writes 110

150 was written under 34's feet, and is lost. With R2, 34's read makes 33's write a refused one.

    guard = FencingGuard(DatabaseStore(connection))      # or SQLiteStore(path), or nothing: memory
    with guard.guarding("invoice-7", token) as cursor:
        cursor.execute("UPDATE invoices SET total = 110 WHERE id = 7")

Locks need not have the names of resources, but all tokens of a resource must come from one lock
server pair.
"""

from .database import DatabaseStore, SQLiteStore
from .errors import FencingError, GuardUseError, StaleTokenError
from .guard import RESOURCE_CHARACTERS_MAX, TOKEN_MAX, FencingGuard, Store
from .memory import MemoryStore

__all__ = [
    "RESOURCE_CHARACTERS_MAX",
    "TOKEN_MAX",
    "DatabaseStore",
    "FencingError",
    "FencingGuard",
    "GuardUseError",
    "MemoryStore",
    "SQLiteStore",
    "StaleTokenError",
    "Store",
]
