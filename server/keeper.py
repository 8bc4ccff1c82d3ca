"""The keeper: how a node reaches the view register of its pair, in greenlets.

``backup``   a file on the machine of the first backup: that node asks it itself, the other one asks
             that node (``PEER VIEW``)
``etcd://``  an etcd cluster, asked by each node

Registers block, so they are asked in a thread of gevent's pool. None is ever in the path of a
request.
"""

from __future__ import annotations

from typing import Any

import gevent

from .config import Address, Config
from .core.view import NO_VIEW, Cas, View
from .link import call
from .registers import EtcdRegister, FileRegister, RegisterError
from .registers.opening import open_register

_TIMEOUT_S = 3.0

Result = tuple[Cas | None, View]
"""Of a compare-and-set, or (None) of a get, with the view that stands."""


class Keeper:
    """The register, if there is one outside."""

    def __init__(self, config: Config) -> None:
        """Raises ConfigError. ``fail-stop`` has none."""
        self.name = config.view
        self._register: FileRegister | EtcdRegister | None = None
        self._keeping_node: Address | None = None
        if config.view == "backup" and config.backup is not None:
            self._keeping_node = config.backup
        elif config.view != "fail-stop":
            self._register = open_register(*config.register_flags)

    @property
    def keeps_file(self) -> bool:
        """Whether this node keeps the register for both."""
        return isinstance(self._register, FileRegister)

    def check(self) -> None:
        """Read a register that is a file, once. Raises RegisterError: a node whose file is missing
        or damaged does not start."""
        if isinstance(self._register, FileRegister):
            self._register.get()

    def request(self, proposal: View | None) -> Result:
        """Compare-and-set on the register, or (None) a get (waits). Raises OSError if there is no
        answer, which proves nothing."""
        if self._keeping_node is not None:
            return self._request_of_node(self._keeping_node, proposal)
        assert self._register is not None, "fail-stop has no register"
        result = gevent.get_hub().threadpool.apply(_request, (self._register, proposal))
        if isinstance(result, RegisterError):
            raise OSError(str(result)) from result
        return result

    def _request_of_node(self, address: Address, proposal: View | None) -> Result:
        words: tuple[str | int, ...] = ("VIEW",)
        if proposal is not None:
            words += (proposal.epoch, proposal.primary, ",".join(proposal.members))
        try:
            return _decode(call(address, _TIMEOUT_S, *words))
        except ValueError as error:
            raise OSError(f"{address} gave no view: {error}") from error


def _request(
    register: FileRegister | EtcdRegister, proposal: View | None
) -> Result | RegisterError:
    """In a thread. An error is returned: one that is raised there is reported as nobody's."""
    try:
        if proposal is None:
            return None, register.get()
        return register.cas(proposal)
    except RegisterError as error:
        return error


def encode(result: Cas | None, view: View) -> tuple[str | int, ...]:
    """The reply to ``PEER VIEW``."""
    return result.value if result else "", view.epoch, view.primary, ",".join(view.members)


def _decode(reply: Any) -> Result:
    if isinstance(reply, Exception):
        raise ValueError(str(reply))
    if not (isinstance(reply, list) and len(reply) == 4):
        raise ValueError(f"unexpected reply {reply!r:.80}")
    result, epoch, primary, members = (field.decode() for field in reply)
    view = View(int(epoch), primary, tuple(filter(None, members.split(","))))
    return Cas(result) if result else None, view if view.epoch else NO_VIEW
