"""Holdfast: a replicated lock server that speaks the Redis protocol, and its client, Clerk.

    from holdfast import Clerk, IndeterminateError

The names are loaded on first use, so that a serving node does not load the client side with them.
They are imported absolutely because a test runner may load this file under another name.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from holdfast.compat import (
        AsyncClerk,
        AsyncLock,
        Clerk,
        ClerkError,
        FencingToken,
        IndeterminateError,
        Lock,
        LockLostError,
        LockNotAcquiredError,
        LockNotHeldError,
        MaybeError,
        NoKeyError,
        RegisterError,
        RegisterLock,
        StaleTokenError,
        UnavailableError,
        Versioned,
        VersionError,
    )

__version__: str
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
    "__version__",
]


def __getattr__(name: str) -> object:
    if name == "__version__":
        from importlib.metadata import version

        return version("holdfast")
    if name in __all__:
        import holdfast.compat

        return getattr(holdfast.compat, name)
    raise AttributeError(f"module 'holdfast' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
