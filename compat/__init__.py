"""The client side, on redis-py. Imports neither the server nor its parser.

The names are loaded on first use: `compat.fencing` needs no redis-py, and Clerk no asyncio.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .async_clerk import AsyncClerk
    from .async_lock import AsyncLock
    from .clerk import Clerk
    from .errors import (
        ClerkError,
        IndeterminateError,
        LockLostError,
        LockNotAcquiredError,
        LockNotHeldError,
        MaybeError,
        NoKeyError,
        RegisterError,
        StaleTokenError,
        UnavailableError,
        VersionError,
    )
    from .lock import Lock
    from .outcomes import FencingToken
    from .register_lock import RegisterLock
    from .registers import Versioned

__all__ = [
    "AsyncClerk",
    "AsyncLock",
    "Clerk",
    "ClerkError",
    "FencingToken",
    "IndeterminateError",
    "Lock",
    "LockLostError",
    "LockNotAcquiredError",
    "LockNotHeldError",
    "MaybeError",
    "NoKeyError",
    "RegisterError",
    "RegisterLock",
    "StaleTokenError",
    "UnavailableError",
    "VersionError",
    "Versioned",
]

_MODULES = {
    "AsyncClerk": "async_clerk",
    "AsyncLock": "async_lock",
    "Clerk": "clerk",
    "FencingToken": "outcomes",
    "Lock": "lock",
    "RegisterLock": "register_lock",
    "Versioned": "registers",
}


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_MODULES.get(name, 'errors')}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
