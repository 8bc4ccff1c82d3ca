"""What the guard raises, and what says of any storage that it has refused a fencing token.

`holdfast.compat.StaleTokenError`, which a put with a `fence` raises, is one of these too: whoever
has to take the lock anew needs to catch but one.
"""

from __future__ import annotations


class FencingError(Exception):
    """The guard, or another storage that looks at fencing tokens, has refused."""


class StaleTokenError(FencingError):
    """Somebody with a higher fencing token has been here: the lock is not yours any more.

    Nothing was written: the body of the `with` has not run.
    Do not try again with this token. Take the lock anew, read again, and start over.
    `highest_token` is None where the storage does not tell it; the guard always does.
    """

    def __init__(self, resource: str, token: int, highest_token: int | None) -> None:
        super().__init__(resource, token, highest_token)
        self.resource = resource
        self.token = token
        self.highest_token = highest_token

    def __str__(self) -> str:
        return (
            f"fencing token {self.token} is stale: {self.resource!r} has seen {self.highest_token}"
        )


class GuardUseError(FencingError, RuntimeError):
    """The guard is used in a way in which it cannot guard. The text says what to do instead.

    Nothing was written, unless by a body that committed what it wrote by itself.
    """
