"""The view in a key of an etcd cluster, 3.4 or later.

A change is one transaction: *if the key is still as it was read (same revision, same bytes), put
the new view, else say what stands*. etcd answers reads and transactions only through a majority of
its members, so what is read is never older than what was answered to anybody.

    why a lost answer does no harm:
      us    read e -> send "if e then e+1" ----x   no answer: UNDECIDED
      us    read e+1, ours: it had won             or: somebody else's, and ours can never win now
      us    read e: proves nothing, it may still arrive; so we send a like one. The first of the
            two wins, and the other finds the key changed.
"""

from __future__ import annotations

import base64
from typing import Any, NamedTuple

from ..core.view import NO_VIEW, Cas, View
from .encoding import Malformed, decode, encode
from .errors import DamagedRegister, RegisterError
from .gateway import Gateway, InDoubt, Tls
from .rules import decide, initial
from .url import EtcdUrl

TIMEOUT_S = 2.0


class _Kept(NamedTuple):
    """What the key holds; revision 0 and no value where there is no key."""

    revision: int
    value: bytes


class EtcdRegister:
    """A view register in etcd. Raises ConfigError on options that make no sense; and, when asked,
    RegisterError if etcd cannot be reached or refuses, DamagedRegister if the key is no view."""

    def __init__(
        self,
        url: str,
        ca: str = "",
        cert: str = "",
        key: str = "",
        user: str = "",
        password: str = "",
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        self._url = EtcdUrl.parse(url)
        self._gateway = Gateway(self._url.endpoints, Tls(ca, cert, key), user, password, timeout_s)
        self.reason = ""  # why the last compare-and-set ended as it did

    def __str__(self) -> str:
        return str(self._url)

    def get(self) -> View:
        """The view that is kept; NO_VIEW if the key does not exist."""
        return self._view(self._read(self._gateway.deadline_s()))

    def cas(self, view: View) -> tuple[Cas, View]:
        """Change the view to ``view`` if its epoch is one above that of the register. Undecided if
        it was sent and no answer came; an error says that nothing was sent by this call."""
        deadline_s = self._gateway.deadline_s()
        kept = self._read(deadline_s)
        standing = self._view(kept)
        result, self.reason = decide(standing, view)
        if result is not None:
            return result, standing
        try:
            after = self._replace(kept, view, deadline_s)
        except InDoubt as doubt:
            self.reason = str(doubt)
            return Cas.UNDECIDED, standing
        if after is None:
            return Cas.WON, view
        return self._lost(self._view(after), view)

    def init(self, force: bool = False, at_least: int = 0, view: View | None = None) -> View:
        """Write a vacant view, or ``view``, on the word of an operator, and return it."""
        deadline_s = self._gateway.deadline_s()
        kept = self._read(deadline_s)
        written = initial(self._standing(kept), force=force, at_least=at_least, given=view)
        try:
            after = self._replace(kept, written, deadline_s)
        except InDoubt as doubt:
            raise RegisterError(
                f"{doubt}. The view may have been written: look with 'holdfast view show'"
            ) from None
        if after is not None and after.value != encode(written):
            raise RegisterError("somebody else has changed the view meanwhile; look at it again")
        return written

    def _lost(self, standing: View, proposed: View) -> tuple[Cas, View]:
        """The key was changed since it was read: by us, if an answer was lost on the way."""
        result, self.reason = decide(standing, proposed)
        return result or Cas.LOST, standing

    def _standing(self, kept: _Kept) -> View | DamagedRegister:
        try:
            return self._view(kept)
        except DamagedRegister as damage:
            return damage

    def _view(self, kept: _Kept) -> View:
        if not kept.revision:
            return NO_VIEW
        try:
            return decode(kept.value)
        except Malformed as malformed:
            raise DamagedRegister(
                f"the value of the key {self._url.key} in etcd {malformed}"
            ) from None

    # -- calls -----------------------------------------------------------------------------------

    def _read(self, deadline_s: float) -> _Kept:
        try:
            return _kept(self._gateway.call("/v3/kv/range", self._range(), deadline_s))
        except InDoubt as doubt:
            raise RegisterError(str(doubt)) from None  # to have read changes nothing

    def _replace(self, kept: _Kept, view: View, deadline_s: float) -> _Kept | None:
        """Put ``view`` if the key is still as ``kept``, else what it is now. Raises InDoubt."""
        body = {
            "compare": self._unchanged(kept),
            "success": [{"request_put": {"key": self._key(), "value": _text(encode(view))}}],
            "failure": [{"request_range": self._range()}],
        }
        answer = self._gateway.call("/v3/kv/txn", body, deadline_s)
        if answer.get("succeeded") is True:  # what is false is left out
            return None
        try:
            return _kept(answer["responses"][0]["response_range"])
        except (KeyError, IndexError, TypeError):
            raise InDoubt("etcd answers a transaction with something else") from None

    def _unchanged(self, kept: _Kept) -> list[dict[str, str]]:
        key = {"key": self._key(), "result": "EQUAL"}
        revision = {**key, "target": "MOD", "mod_revision": str(kept.revision)}
        if not kept.revision:
            return [revision]
        return [revision, {**key, "target": "VALUE", "value": _text(kept.value)}]

    def _range(self) -> dict[str, str]:
        return {"key": self._key()}

    def _key(self) -> str:
        return _text(self._url.key.encode())


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _kept(answer: dict[str, Any]) -> _Kept:
    """Of the answer to a range; what is empty or 0 is left out. Raises InDoubt if it is none."""
    try:
        pairs = answer.get("kvs", [])
        if not pairs:
            return _Kept(0, b"")
        value = base64.b64decode(pairs[0].get("value", ""), validate=True)
        return _Kept(int(pairs[0]["mod_revision"]), value)
    except (AttributeError, KeyError, LookupError, TypeError, ValueError):
        raise InDoubt("etcd answers a read with something else") from None
