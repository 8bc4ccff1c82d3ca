"""The peer: the world around a node's ``Pairing`` (``core/outside.py``), in sockets and greenlets.

What the core asks for that takes time, a question to the other node, a dial, a request to the view
register, runs in a greenlet of its own; its outcome is handed to the core in one callback, which
looks at the situation as it is then. Everything else is done at once.
"""

from __future__ import annotations

import logging
import random
import secrets
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import gevent

from ..resp import encoder
from ..resp.replies import reply_parser
from . import clock
from .config import Address, Config
from .core.failover import Answer, NoAnswer
from .core.outside import Settings
from .core.pairing import Pairing
from .core.replica import Phase, Replica
from .core.view import NO_VIEW, Cas, View
from .keeper import Keeper, encode
from .link import Link, ask, dial, request_parser
from .registers.url import EtcdUrl

if TYPE_CHECKING:
    from .connection import Connection
    from .node import Node

log = logging.getLogger(__name__)

_LOOK_S = 0.05  # how often a backup is looked for at the address that was configured


def new_id() -> str:
    """A node's identity, or a history's: 40 hexadecimal digits, as Redis' run ids."""
    return secrets.token_hex(20)


class Peer:
    """One node's other node, as far as it can be reached."""

    boot_ms = staticmethod(clock.boot_ms)
    wall_us = staticmethod(clock.wall_us)
    new_id = staticmethod(new_id)
    random = staticmethod(random.random)

    def __init__(self, node: Node, replica: Replica) -> None:
        self._node = node
        self.address: Address | None = node.config.peer
        self.keeper = Keeper(node.config)
        self.pairing = Pairing(self, replica, settings_of(node.config, self.address))
        self.spared: Connection | None = None  # whoever asked for what closes all clients
        self._timer: Any = None
        self._backup_at = ("", 0)

    def reconfigured(self) -> None:
        """The node's configuration is another one: take what is derived from it."""
        self.pairing.settings = settings_of(self._node.config, self.address)

    def follow(self, address: Address) -> None:
        """The other node is there."""
        self.address = address
        self.reconfigured()

    def start(self) -> None:
        """The node listens: begin."""
        self.pairing.port = self._node.port
        self.pairing.start()

    def stop(self) -> None:
        """Stop watching, and close the link."""
        self.pairing.stop()
        self._stop_timer()

    # -- what takes time -------------------------------------------------------------------------

    def _spawn(self, task: Callable[..., None], *arguments: Any) -> None:
        gevent.spawn(self._guarded, task, *arguments)

    def _guarded(self, task: Callable[..., None], *arguments: Any) -> None:
        try:
            task(*arguments)
        except gevent.GreenletExit:
            raise
        except BaseException:
            self._node.crash("a task about the peer failed")

    def _notice_standstill(self) -> None:
        # A wait may have ended in the very batch of events that a standstill ended in.
        self.pairing.begin_turn(clock.boot_ms() - self._node.last_turn_ms)

    def ask(self, words: tuple[bytes | str | int, ...], timeout_ms: int) -> None:
        """Ask the peer (outside.py)."""
        self._spawn(self._ask, words, timeout_ms)

    def _ask(self, words: tuple[bytes | str | int, ...], timeout_ms: int) -> None:
        address = self.address
        outcome: Answer | NoAnswer = NoAnswer.SILENT
        if address is not None:
            outcome = ask(address, timeout_ms / 1000, *words)
        self._notice_standstill()
        # (An operator may have named another peer meanwhile.)
        self.pairing.on_answer(outcome if address == self.address else NoAnswer.UNASKED)

    def dial(self, timeout_ms: int) -> None:
        """Dial the primary (outside.py)."""
        self._spawn(self._dial, timeout_ms)

    def _dial(self, timeout_ms: int) -> None:
        address = self.address
        assert address is not None, "only a node with a peer can be without a primary"
        try:
            sock = dial(address, timeout_ms / 1000)
        except (OSError, ValueError) as error:
            self.pairing.on_dialled(None, f"{address}: {error}")
            return
        if address != self.address:
            sock.close()
            self.pairing.on_dialled(None, f"{address} is not the peer any more")
            return
        link = self._new_link(sock, reply_parser(), address)
        self.pairing.on_dialled(link)

    def _new_link(self, sock: Any, parse: Any, address: Address) -> Link:
        pairing = self.pairing
        link = Link(
            self._node.loop, sock, parse, pairing.on_messages, pairing.on_link_lost, str(address)
        )
        link.address = address
        return link

    def view_get(self) -> None:
        """Read the view register (outside.py)."""
        self._spawn(self._view, None)

    def view_cas(self, view: View) -> None:
        """Change it (outside.py)."""
        self._spawn(self._view, view)

    def _view(self, proposal: View | None) -> None:
        try:
            result, view = self.keeper.request(proposal)
        except OSError as error:
            self.pairing.say(f"the view register {self.keeper.name}: {error}", "warning")
            result, view = Cas.UNDECIDED, NO_VIEW
        self._notice_standstill()
        self.pairing.on_view(result, view)

    def call_later(self, delay_ms: int) -> None:
        """Have the core look again (outside.py)."""
        self._stop_timer()
        self._timer = self._node.loop.timer(delay_ms / 1000)
        self._timer.start(self.pairing.proceed, update=True)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.stop()
            self._timer.close()
            self._timer = None

    # -- what is done at once --------------------------------------------------------------------

    def adopt(
        self, joiner: Connection, incarnation: str, port: int, formerly: str = ""
    ) -> Link | None:
        """The connection of a backup that joins becomes the link (outside.py)."""
        if joiner.closed:
            return None
        try:
            host = joiner.sock.getpeername()[0]
        except OSError:
            joiner.close("it asked to join, and is gone")
            return None
        sock = joiner.detach("it is a replication link now")
        self._backup_at = (host, port)
        self.follow(Address(host, port))
        link = self._new_link(sock, request_parser(), Address(host, port))
        self._spawn(self._learn_address, link, incarnation, formerly)
        return link

    def _learn_address(self, link: Link, incarnation: str, formerly: str) -> None:
        """Find out where to ask for this backup once its link is lost (waits): at the configured
        address if it answers there, which may lead through a proxy; else where it says it is."""
        configured, replica = self._node.config.peer, self.pairing.replica
        while configured is not None and replica.backup == incarnation:
            was_member = replica.phase is Phase.MEMBER
            answer = ask(configured, _LOOK_S * 10, "ASK")
            is_it = isinstance(answer, Answer) and answer.incarnation in (incarnation, formerly)
            if is_it and replica.backup == incarnation:
                link.address = configured
                self.follow(configured)
            if is_it or was_member:
                return
            gevent.sleep(_LOOK_S)

    def release(self, replies: Iterable[tuple[Any, bytes]]) -> None:
        """Let replies go that no longer wait for the backup (outside.py)."""
        for connection, data in replies:
            connection.release(data)

    def drop(self, replies: Iterable[tuple[Any, bytes]], why: str) -> None:
        """Close connections without a word (outside.py)."""
        for connection, _ in replies:
            connection.close(why)

    def close_clients(self, why: str) -> None:
        """Close all clients' (outside.py)."""
        self._node.close_clients(why, self.spared)

    def turn_away(self, tickets: list[Any]) -> None:
        """Tell those who wait that this node is no primary any more (outside.py)."""
        assert self._node.gate is not None
        for connection in tickets:
            connection.resume(self._node.gate)
        self._node.waits.turn_away(self._node.gate)

    def roles_changed(self) -> None:
        """Look again at what requests are answered (outside.py)."""
        self._node.role_changed()

    def owes_answers(self) -> bool:
        """Whether some of this node's answers are not even queued (outside.py)."""
        return self._node.owes_answers

    def is_from(self, joiner: Connection, port: int) -> bool:
        """Whether the backup that we had was at that host and port (outside.py)."""
        try:
            return (joiner.sock.getpeername()[0], port) == self._backup_at
        except OSError:
            return False

    def another_turn(self) -> None:
        """Have the loop turn once more (outside.py)."""
        self._node.another_turn()

    def abandon_digest(self) -> None:
        """Let go of a digest's cut (outside.py)."""
        self._node.abandon_digest()

    def log(self, level: str, text: str) -> None:
        """Log (outside.py)."""
        log.log(getattr(logging, level.upper()), "%s", text)

    def fail(self, why: str) -> None:
        """End this process (outside.py)."""
        self._node.fail(why)

    # -- the register, if it is kept here --------------------------------------------------------

    def answer_view_request(self, connection: Connection, proposal: View | None) -> None:
        """``PEER VIEW``: the other node asks the register that this one keeps."""
        connection.pause()
        self._spawn(self._answer_view_request, connection, proposal)

    def _answer_view_request(self, connection: Connection, proposal: View | None) -> None:
        try:
            result, view = self.keeper.request(proposal)
        except OSError as error:
            connection.resume(encoder.error(f"ERR {error}"))
            return
        connection.resume(encoder.pack(encode(result, view)))


def settings_of(config: Config, peer: Address | None) -> Settings:
    """What the core has to know of a node's configuration."""
    return Settings(
        has_peer=config.peer is not None,
        peer_name=str(peer) if peer is not None else "the peer",
        first_primary=config.backup is not None,
        bootstrap=config.bootstrap,
        failover_auto=config.failover == "auto",
        backup_timeout_ms=config.backup_timeout_ms,
        promotion_timeout_ms=config.promotion_timeout_ms,
        heartbeat_ms=heartbeat_ms(config),
        quarantine_ms=config.quarantine_ms,
        has_register=config.view != "fail-stop",
        register_name=register_name(config.view),
    )


def heartbeat_ms(config: Config) -> int:
    """How often a sign of life goes out."""
    return max(10, min(200, config.backup_timeout_ms // 10, config.promotion_timeout_ms // 10))


def register_name(view: str) -> str:
    """What the two nodes have to agree about: members of an etcd cluster may be listed in any
    order."""
    return view if not view.startswith("etcd://") else "etcd:" + EtcdUrl.parse(view).prefix
