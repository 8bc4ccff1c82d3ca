"""The replies to what the executor has refused."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...resp import encoder
from ..core.reply_cache import Refused

if TYPE_CHECKING:
    from ..connection import Connection

# Nothing was executed, and the state was not read either: these need not wait for the backup.
_AT_ONCE = frozenset((Refused.TRY_AGAIN, Refused.NO_REPLICAS, Refused.QUARANTINE))
_ERRORS = {refused: encoder.error(refused.value) for refused in Refused}


def refusal(connection: Connection, refused: object) -> bytes | None:
    """The reply to what was not executed; None if it has been sent, since it need not wait."""
    assert isinstance(refused, Refused)
    reply = _ERRORS[refused]
    if refused in _AT_ONCE:
        connection.refuse(reply)
        return None
    return reply


def error_of(refused: Refused) -> bytes:
    """Its error reply."""
    return _ERRORS[refused]
