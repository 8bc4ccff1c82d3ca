"""What the core asks of whoever runs it: the shell of a real node, or a simulator.

The core does no IO, knows no clock and rolls no dice. What it wants done about its peer it asks
for here; nothing here calls back before it returns, and every answer comes later, by one of the
methods of ``Pairing`` that are named below.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple, Protocol

from .view import View


class Settings(NamedTuple):
    """The part of a node's configuration that the pair rests on. Times in milliseconds."""

    has_peer: bool = True
    peer_name: str = "the peer"  # for the log
    first_primary: bool = False  # started with --backup: it begins the first history
    bootstrap: bool = False
    failover_auto: bool = True
    backup_timeout_ms: int = 2000
    promotion_timeout_ms: int = 3000
    heartbeat_ms: int = 200
    quarantine_ms: int = 0
    has_register: bool = False  # a view register outside; else fail-stop
    register_name: str = "fail-stop"  # the same on both nodes


class Link(Protocol):
    """One end of a replication link. Instants are CLOCK_BOOTTIME in milliseconds."""

    peer: str  # for the log
    address: Any  # where the peer listens; opaque here
    closed: bool

    @property
    def last_heard_ms(self) -> int:
        """When something last arrived."""

    @property
    def last_taken_ms(self) -> int:
        """When the connection last took something of what was to be sent."""

    @property
    def last_drained_ms(self) -> int:
        """When it had last taken all of it."""

    @property
    def unsent_bytes(self) -> int:
        """What it has not taken yet."""

    def write(self, data: bytes) -> None:
        """Send. If it cannot be, ``Pairing.on_link_lost`` says so later."""

    def close(self) -> None:
        """Close; nothing more is heard of it."""


class Outside(Protocol):
    """The world around one node's ``Pairing``."""

    def boot_ms(self) -> int:
        """CLOCK_BOOTTIME."""

    def wall_us(self) -> int:
        """The wall clock, in microseconds."""

    def new_id(self) -> str:
        """An identity that nobody had before: of an incarnation, or of a history."""

    def random(self) -> float:
        """From 0 up to 1."""

    def ask(self, words: tuple[bytes | str | int, ...], timeout_ms: int) -> None:
        """Send ``PEER ...`` to the peer on a connection of its own; then ``on_answer``. One at a
        time."""

    def dial(self, timeout_ms: int) -> None:
        """Connect to the peer for a link; then ``on_dialled``. One at a time."""

    def view_get(self) -> None:
        """Read the view register; then ``on_view``. One request to it at a time."""

    def view_cas(self, view: View) -> None:
        """Compare-and-set on it; then ``on_view``."""

    def call_later(self, delay_ms: int) -> None:
        """Call ``proceed`` then. A new call takes the place of the one before."""

    def adopt(self, joiner: Any, incarnation: str, port: int, formerly: str = "") -> Link | None:
        """Turn the connection that asked to join into a link; None: it is gone. ``incarnation`` and
        ``formerly``: what the backup will be called from now on, and is until the stream begins."""

    def release(self, replies: Iterable[tuple[Any, bytes]]) -> None:
        """Replies of earlier turns may leave."""

    def drop(self, replies: Iterable[tuple[Any, bytes]], why: str) -> None:
        """Close the connections of these replies without a word (C2)."""

    def close_clients(self, why: str) -> None:
        """Close all clients' connections without a word (C2)."""

    def turn_away(self, tickets: list[Any]) -> None:
        """These connections waited for something that this node cannot give any more: tell them
        that nothing was done."""

    def roles_changed(self) -> None:
        """Role, phase or link are others now: what requests are answered may be too."""

    def owes_answers(self) -> bool:
        """Whether there are answers of this turn, or of earlier ones, that are not queued yet."""

    def is_from(self, joiner: Any, port: int) -> bool:
        """Whether ``joiner``, which listens on ``port``, is where our last backup was."""

    def another_turn(self) -> None:
        """Have the loop turn once more before it sleeps."""

    def abandon_digest(self) -> None:
        """A snapshot is to be cut: let go of any other cut of the state."""

    def log(self, level: str, text: str) -> None:
        """``level``: info, warning or error."""

    def fail(self, why: str) -> None:
        """The state of this process cannot be trusted: end it at once."""
