"""The commands, one file a family; importing them fills the table."""

from __future__ import annotations


def load() -> None:
    """Declare all commands, once."""
    from . import (  # noqa: F401
        client,
        configuration,
        connection,
        debug,
        info,
        introspection,
        keys,
        locks,
        peers,
        registers,
        replication,
        server,
        walking,
    )
