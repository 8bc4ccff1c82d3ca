"""Two replicas back to back, through their bytes: what the shell does, without its sockets.

A ``SimNode`` has a ``Replica``, a clock that the test moves, and what its clients were told. A
``Pair`` joins two of them by a wire whose every byte the test may hold up, split or lose. The
names follow ``server/core/pairing.py`` and ``server/node.py``: they are what is imitated here.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import hiredis

from holdfast.resp import encoder
from holdfast.resp.replies import fields_of
from holdfast.server.core import snapshot, stream
from holdfast.server.core.backlog import Point
from holdfast.server.core.executor import Executor
from holdfast.server.core.register_table import NO_KEY, STALE_TOKEN, Register
from holdfast.server.core.replica import Phase, Replica, Replies, Role
from holdfast.server.core.reply_cache import Refused
from holdfast.server.core.snapshot import digest
from holdfast.server.core.state import UNDO, UNLOCK, UNLOCK_GRANT

__all__ = ["WALL_CLOCK_US", "Pair", "SimNode", "Wire", "fields_of", "messages_of", "pack"]

WALL_CLOCK_US = 1_000_000
_AT_ONCE = (Refused.TRY_AGAIN, Refused.NO_REPLICAS, Refused.QUARANTINE)


def messages_of(data: bytes) -> list[Any]:
    """All messages in ``data``, which ends with the end of one."""
    reader = hiredis.Reader()
    reader.feed(data)
    messages = []
    while (message := reader.gets()) is not False:
        messages.append(message)
    return messages


def _text(answer: object) -> str:
    return "-" + answer.value.split()[0] if isinstance(answer, Refused) else str(answer)


def _put_text(answer: int) -> str:
    if answer == NO_KEY:
        return "-NOKEY"
    if answer == STALE_TOKEN:
        return "-STALETOKEN"
    return str(answer) if answer > 0 else f"-VERSION {-answer}"


class SimNode:
    """A node without a shell. ``said`` is what has left, as (client, reply)."""

    def __init__(self, name: str, *, now_ms: int = 1_000, min_backups: int = 0) -> None:
        self.name = name
        self.replica = Replica(name, min_backups, lambda: self.now_ms)
        self.replica.keeps_backlog = True  # it knows of a peer
        self.joins_as = name  # the incarnation under which it has asked to join
        self.now_ms = now_ms
        self.said: list[tuple[str, str]] = []
        self.closed: list[str] = []  # clients whose connections were closed without a word
        self.room_bytes = 1 << 20
        self.input_is_read = True  # at the end of a turn nothing is left in the sockets
        self.due_in_ms: int | None = None  # what the core says at the end of a turn
        self.items_per_slice = 1_000
        self.cut: snapshot.Cut | None = None
        self._held: list[tuple[str, str]] = []  # of this turn
        self.replica.begin_turn(now_ms)

    # -- clients ---------------------------------------------------------------------------------

    def lock(self, client: str, name: str, reqid: str, *options: str) -> None:
        """Options as on the wire: ``PX 100``, ``WAIT 500``, ``OWNER me``."""
        assert client not in self.waiting, "its connection is paused while it waits"
        named = dict(zip(options[::2], options[1::2], strict=True))
        answer = self._executor.lock(
            name.encode(),
            reqid.encode(),
            client,
            named.get("OWNER", "").encode(),
            int(named.get("PX", 0)),
            int(named.get("WAIT", 0)),
        )
        if answer is not None:
            self._tell(client, answer)

    def unlock(self, client: str, name: str, reqid: str) -> None:
        self._unlock(UNLOCK, client, name, reqid, "")

    def undo(self, client: str, name: str, reqid: str, undone: str) -> None:
        self._unlock(UNDO, client, name, reqid, undone)

    def unlock_grant(self, client: str, name: str, reqid: str, fencing_token: str) -> None:
        self._unlock(UNLOCK_GRANT, client, name, reqid, fencing_token)

    def renew(self, client: str, name: str, fencing_token: str, lease_ms: str) -> None:
        answer = self._executor.renew(name.encode(), int(fencing_token), int(lease_ms))
        self._tell(client, answer)

    def verify(self, client: str, name: str, fencing_token: str) -> None:
        grant = self._executor.look(name.encode())
        if not isinstance(grant, Refused):
            grant = int(grant is not None and grant[0] == int(fencing_token))
        self._tell(client, grant)

    def delete(self, client: str, name: str) -> None:
        self._tell(client, self._executor.delete(name.encode()))

    def put(self, client: str, name: str, value: str, version: str, *options: str) -> None:
        """Options as on the wire: ``[REQID] [FENCE LOCK TOKEN]``."""
        reqid = options[0] if len(options) in (1, 4) else ""
        fence = "{2} {1}".format(*options[-3:]) if len(options) >= 3 else ""
        answer = self._executor.registers.put(
            name.encode(), reqid.encode(), value.encode(), int(version), fence.encode()
        )
        if isinstance(answer, Refused):
            self._tell(client, answer)
        else:
            self._answer(client, _put_text(answer))

    def get(self, client: str, name: str) -> None:
        found = self._look(name)
        if isinstance(found, Refused):
            self._tell(client, found)
        elif found is None:
            self._answer(client, "-NOKEY")
        else:
            self._answer(client, f"{found[1].decode()} version {found[2]}")

    def expire_in(self, client: str, name: str, milliseconds: str) -> None:
        """PEXPIRE."""
        found = self._look(name)
        if isinstance(found, tuple):
            self._tell(client, self._executor.registers.end_in(name.encode(), int(milliseconds)))
        else:
            self._tell(client, found or 0)

    def persist(self, client: str, name: str) -> None:
        found = self._look(name)
        if isinstance(found, tuple):
            self._tell(client, self._executor.registers.end_never(name.encode()))
        else:
            self._tell(client, found or 0)

    def _look(self, name: str) -> Register | Refused | None:
        """The register of that name; IS_LOCK if it is one. As the commands ask for it."""
        register = self._executor.registers.look(name.encode())
        if register is not None:
            return register
        grant = self._executor.look(name.encode())
        return Refused.IS_LOCK if isinstance(grant, tuple) else grant

    def hang_up(self, client: str) -> None:
        """The client's connection is gone."""
        self._executor.hang_up(client)

    def inspect(self, client: str, name: str) -> None:
        grant = self._executor.look(name.encode())
        if isinstance(grant, Refused):
            self._tell(client, grant)
        else:
            self._answer(client, "free" if grant is None else f"held by {grant[2].decode()}")

    def _unlock(self, kind: int, client: str, name: str, reqid: str, argument: str) -> None:
        answer = self._executor.unlock(kind, name.encode(), reqid.encode(), argument.encode())
        self._tell(client, answer)

    @property
    def waiting(self) -> list[str]:
        """Clients whose connections stand in line, in the order of joining for each name."""
        queue = self.replica.executor.queue
        return [c for name in queue.lines for waiter in queue.line(name) for c in waiter.tickets]

    @property
    def _executor(self) -> Executor:
        assert self.replica.role is Role.PRIMARY, "the gate of the shell answers for the others"
        return self.replica.executor

    def _tell(self, client: str, answer: object) -> None:
        if answer in _AT_ONCE:
            self.said.append((client, _text(answer)))
        else:
            self._answer(client, _text(answer))

    def _answer(self, client: str, text: str) -> None:
        if self.replica.holding:
            self._held.append((client, text))
        else:
            self.said.append((client, text))

    # -- turns -----------------------------------------------------------------------------------

    def end_turn(self) -> bytes:
        """What goes to the peer; then the next turn begins."""
        replica = self.replica
        data = b""
        if replica.role is Role.PRIMARY:
            self.due_in_ms = replica.executor.work_off(lambda: self.input_is_read)
            for clients, answer in replica.executor.answered:
                for client in clients:
                    self._answer(client, str(answer))
            replica.executor.answered.clear()
        if self._held and replica.holding:
            held: Replies = [(client, text.encode()) for client, text in self._held]
            values_bytes = replica.executor.put_bytes
            replica.hold_back(held, sum(len(text) for _, text in held) + values_bytes)
        else:
            self.said += self._held
        self._held.clear()
        if replica.role is Role.PRIMARY:
            if self.cut is not None:
                fields = self.cut.slice(self.items_per_slice)
                if fields:
                    data = pack(stream.ITEMS, pack(*fields))
                else:
                    self.close_cut()
                    replica.snapshot_sent()
            data += replica.end_turn(self.room_bytes)
        elif replica.synced:
            data = replica.follower.ack()
        self.begin_turn()
        return data

    def begin_turn(self) -> None:
        self.replica.begin_turn(self.now_ms)

    def release(self, replies: Replies) -> None:
        self.said += [(client, data.decode()) for client, data in replies]

    def close(self, replies: Replies) -> None:
        self.closed += [client for client, _ in replies]

    def close_cut(self) -> None:
        if self.cut is not None:
            self.cut.close()
            self.cut = None

    def sleep(self, milliseconds: int) -> None:
        """Time passes on this node, and its next turn begins."""
        self.now_ms += milliseconds
        self.begin_turn()

    def be_busy(self, milliseconds: int) -> None:
        """Time passes within a turn."""
        self.now_ms += milliseconds

    # -- roles -----------------------------------------------------------------------------------

    def begin_history(self, quarantine_ms: int = 0) -> None:
        self.replica.begin_history("the history", WALL_CLOCK_US, 0, quarantine_ms)

    def attach(self, incarnation: str, at: Point | None = None) -> None:
        self.cut = self.replica.attach(incarnation, at)

    def drop_joining_backup(self) -> None:
        self.close_cut()
        self.release(self.replica.drop_joining_backup())

    def go_alone(self) -> None:
        self.close_cut()
        self.release(self.replica.go_alone(self.replica.view.alone(self.replica.incarnation)))

    def promote(self) -> None:
        view = self.replica.view
        self.replica.promote(view.alone(self.replica.incarnation), view, WALL_CLOCK_US)

    def stand_down(self, incarnation: str) -> None:
        self.close_cut()
        waiting = self.waiting
        self.close(self.replica.stand_down(incarnation))
        self.closed += waiting

    # -- messages --------------------------------------------------------------------------------

    def on_message(self, message: list[bytes]) -> None:
        if self.replica.role is Role.PRIMARY:
            self._on_backup_message(message)
        else:
            self._on_primary_message(message)

    def _on_backup_message(self, message: list[bytes]) -> None:
        replica = self.replica
        if message[0] == stream.PROBE:
            replica.echo(message[1])
            return
        assert message[0] == stream.ACK, message
        epoch, frame, offset = map(int, message[1:])
        self.release(replica.on_ack(epoch, frame, offset))
        proposal = replica.proposal()
        if proposal is not None:
            replica.propose()
            replica.admit(proposal, may_promote_itself=True)

    def _on_primary_message(self, message: list[bytes]) -> None:
        replica, follower = self.replica, self.replica.follower
        kind, *fields = message
        match kind:
            case stream.ENTRIES:
                follower.on_entries(fields[0], fields[1], fields_of(fields[1]), self.now_ms)
            case stream.BEAT:
                epoch, frame, offset = map(int, fields)
                follower.on_beat(epoch, frame, offset)
            case stream.VIEW:
                primary, members = fields[2].decode(), fields[3].decode()
                auto = fields[4] == b"1"
                follower.on_view(int(fields[0]), int(fields[1]), primary, members, auto)
            case stream.BEGIN:
                header = snapshot.Header(fields[3].decode(), *map(int, fields[4:]))
                epoch, checksum = int(fields[0]), int(fields[2])
                follower.load(epoch, fields[1].decode(), header, self.joins_as, checksum)
            case stream.ITEMS:
                follower.load_items(fields_of(fields[0]))
            case stream.END:
                epoch, frame, time_ms = map(int, fields)
                follower.load_end(epoch, frame, time_ms, self.now_ms)
            case stream.CONTINUE:
                epoch, frame, time_ms = int(fields[0]), int(fields[1]), int(fields[3])
                primary = fields[2].decode()
                follower.on_continue(epoch, frame, primary, time_ms, self.now_ms, self.joins_as)
            case stream.HANDOVER:
                follower.on_handover(int(fields[0]), int(fields[1]))
            case stream.ECHO:
                replica.stalled = False
            case other:
                raise AssertionError(other)


def pack(*fields: bytes | int | str) -> bytes:
    """An array of byte strings."""
    return encoder.pack(fields)


class Wire:
    """One direction of a link. Bytes lie here until they are delivered."""

    def __init__(self) -> None:
        self.lying = b""
        self._reader = hiredis.Reader()

    def take(self, bytes_max: int | None = None) -> Iterator[list[bytes]]:
        """Deliver the first ``bytes_max`` bytes: the messages that they complete."""
        data, self.lying = self.lying[:bytes_max], self.lying[len(self.lying[:bytes_max]) :]
        self._reader.feed(data)
        while (message := self._reader.gets()) is not False:
            yield message


class Pair:
    """A primary, and a node that may be linked to it."""

    def __init__(self, *, min_backups: int = 0, quarantine_ms: int = 0) -> None:
        self.primary = SimNode("P", min_backups=min_backups)
        self.backup = SimNode("B", now_ms=70_000)  # each machine counts from its own start
        self.primary.begin_history(quarantine_ms)
        self.to_backup = Wire()
        self.to_primary = Wire()

    def link(self, incarnation: str = "") -> None:
        """The backup dials and asks to join, as ``incarnation``, and says where it stands."""
        replica = self.backup.replica
        self.to_backup, self.to_primary = Wire(), Wire()
        self.turn()
        self.backup.joins_as = incarnation or replica.incarnation
        self.primary.attach(self.backup.joins_as, replica.point if replica.synced else None)
        self.to_backup.lying += self.primary.replica.end_turn(0)

    def turn(self) -> None:
        """The end of a turn of the primary's loop."""
        data = self.primary.end_turn()
        self.to_backup.lying += data

    def deliver(self, bytes_max: int | None = None) -> None:
        """The backup reads, in one turn of its loop; its ack is under way then."""
        for message in self.to_backup.take(bytes_max):
            self.backup.on_message(message)
        self.to_primary.lying += self.backup.end_turn()

    def ack(self) -> None:
        """What the backup has sent reaches the primary."""
        for message in self.to_primary.take():
            self.primary.on_message(message)

    def round(self) -> None:
        """A turn of the primary, of the backup, and the way back."""
        self.turn()
        self.deliver()
        self.ack()

    def settle(self) -> None:
        """Rounds until nothing more is under way."""
        for _ in range(10_000):
            self.round()
            busy = self.primary.cut or self.primary.replica.phase is Phase.CATCHING_UP
            if not busy and not self.to_backup.lying and not self.to_primary.lying:
                outbound = self.primary.replica.outbound
                if outbound is None or not (outbound.unacked or self.primary.replica._messages):
                    return
        raise AssertionError("it never settles")

    def join(self, incarnation: str = "") -> None:
        """Link, and go on until the backup is a member."""
        self.link(incarnation)
        self.settle()
        assert self.primary.replica.phase is Phase.MEMBER, self.primary.replica.phase
        assert self.backup.replica.is_member

    def lose_link(self) -> None:
        """The link breaks, and what was on the wire is lost."""
        self.to_backup, self.to_primary = Wire(), Wire()
        if self.primary.replica.phase >= Phase.PROPOSED:
            self.primary.close_cut()
            self.primary.replica.lose_link()
        elif self.primary.replica.phase is not Phase.NONE:
            self.primary.drop_joining_backup()

    def assert_agreed(self) -> None:
        """The same state on both (I5), and the same count of how it came about."""
        assert digest(self.backup.replica.state) == digest(self.primary.replica.state)
        assert self.backup.replica.point == self.primary.replica.point
