"""One client's connection: bytes in, requests, replies, bytes out.

This file is the way of every request::

    on_readable -> decoder.feed -> _run -> command.handler -> core -> a reply
                                             |                         |
                             (end of the loop turn) flush <-- may go now, or once the backup has it

Everything here runs in callbacks of the event loop, to completion: no greenlet switch can happen
between decoding a request and queueing its reply. That is the whole locking protocol of the
server (a test traces it). A command whose answer takes time returns None after ``pause``; whoever
calls ``resume`` later looks again at epoch and role first.

The hot commands (LOCK, UNLOCK and the like) are counted, not timed: a clock would cost a tenth of
what they take. A few of them each second are, as samples. All others are timed, and a turn has only
so much time for them: what comes behind that is left for the next turn, unexecuted.

Replies leave in the order of their requests. One that may go now stands behind one that is held
back. Replies are written once per loop turn.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import socket
from collections import deque
from itertools import islice
from time import perf_counter_ns, time
from typing import TYPE_CHECKING, Any

from ..resp import encoder
from ..resp.decoder import Decoder
from .commands.table import Command, find, wrong_arity
from .core import limits
from .poller import HANG_UP, READ, WRITE

if TYPE_CHECKING:
    from .node import Node

log = logging.getLogger(__name__)

_MINUS = ord("-")  # what an error begins with
_WRITES_PER_TURN = 64
_PENDING_AT_A_TIME = 512
_FULL = encoder.error("ERR max number of clients reached")
_BEHIND_MULTI = encoder.error(
    "EXECABORT there are no transactions here: nothing between MULTI and EXEC was executed; "
    "redis-py: pipeline(transaction=False)"
)


class Connection:
    """A client. ``protocol`` is 2, or 3 after ``HELLO 3``."""

    __slots__ = (
        "_decoder",
        "_events",
        "_feed",
        "_held",
        "_held_batches",
        "_held_bytes",
        "_out",
        "_pending",
        "_pending_bytes",
        "_receive",
        "_send",
        "_unsent",
        "_unsent_bytes",
        "address",
        "bytes_in",
        "bytes_out",
        "closed",
        "closing",
        "created_s",
        "ended",
        "flags",
        "has_next_turn",
        "id",
        "last_active_s",
        "last_command",
        "last_subcommand",
        "library_name",
        "library_version",
        "local_address",
        "name",
        "node",
        "paused",
        "protocol",
        "queued",
        "silent",
        "sock",
    )

    def __init__(self, node: Node, sock: socket.socket, address: str, number: int) -> None:
        self.node = node
        self.sock = sock
        self.id = number
        self.address = address
        self.local_address = format_address(sock.getsockname())
        self.protocol = 2
        self.name = b""
        self.library_name = b""
        self.library_version = b""
        self.flags: set[str] = set()  # letters of CLIENT LIST beyond N
        self.created_s = self.last_active_s = time()
        self.last_command: Command | None = None
        self.last_subcommand: Command | None = None
        self.bytes_in = 0
        self.bytes_out = 0
        self.closed = False
        self.closing = False  # close once everything is written
        self.ended = False  # the client has closed its side
        self.paused = False  # a command is waiting: the pipeline behind it too
        self.silent = ""  # "off", "skip", "multi" or "full": see _run_silently
        self._decoder = Decoder()
        self._out: list[bytes] = []  # may go now
        self._held: list[bytes] = []  # only once the backup has this turn
        self._held_bytes = 0  # of earlier turns
        self._held_batches = 0  # how many earlier turns' replies are held back
        # What the socket did not take, as it came: one buffer that grows would leave holes in the
        # heap several times its size.
        self._unsent: deque[memoryview] = deque()
        self._unsent_bytes = 0
        self._pending: deque[list[bytes]] = deque()  # requests behind a pause
        self._pending_bytes = 0  # about: what has been read since the pause
        self.has_next_turn = False  # in the node's list for the next turn
        self.queued = False  # in the node's list for the end of this turn
        self._receive, self._send, self._feed = sock.recv, sock.send, self._decoder.feed
        self._events = READ
        node.poller.register(sock.fileno(), self.on_readable, self._on_writable)

    # -- in --------------------------------------------------------------------------------------

    def on_readable(self) -> None:
        """Take what has arrived, and answer the whole requests in it."""
        if self._events & HANG_UP:  # too much is here already: only its end means anything
            if self.paused:
                self._on_end()
            return
        try:
            data = self._receive(limits.RECEIVE_BYTES)
        except BlockingIOError:
            return
        except OSError as error:
            self.close(f"read failed: {error}")
            return
        if not data:
            self._on_end()
            return
        if self.closing:
            return  # what stands behind QUIT, or behind a fault, is never read
        self.bytes_in += len(data)
        requests = self._feed(data)
        if self.paused or self._pending:
            self._pending.extend(requests)
            self._pending_bytes += len(data)
            if (
                self._pending_bytes > limits.PENDING_BYTES_MAX
                or len(self._pending) > limits.PENDING_REQUESTS_MAX
            ):
                self._watch(self._events & ~READ | HANG_UP)
        elif requests:
            self._run(requests)
        if self._decoder.error is not None and not self._pending and not self.paused:
            self._answer_protocol_error()

    def _on_end(self) -> None:
        """The client has closed its side. What it asked for before is answered first, as long as it
        can still read (``printf ... | nc -N``); only a command that waits ends with a hang-up."""
        unanswered = self._held or self._held_batches or self._out or self._unsent
        if self._pending and not self.paused:
            unanswered = True
        if self.ended or self.closing or not unanswered:
            self.close("closed by the client")  # (asked again, with nothing to read: it hung up)
            return
        self.ended = True
        self._end_before_a_wait()
        if self.paused or not self._pending:
            self.close_after_replies()
        else:
            self._watch(self._events & ~READ)

    def _answer_protocol_error(self) -> None:
        if self.closing or self.closed:
            return
        log.info("client %s: protocol error: %s", self.address, self._decoder.error)
        self.node.stats.protocol_errors += 1
        self.reply(encoder.error(f"ERR Protocol error: {self._decoder.error}"))
        self.close_after_replies()

    def _run(self, requests: list[list[bytes]]) -> None:
        """Execute requests and queue their replies, until one has to wait or the turn is over.

        The hot commands are in ``node.hot`` while this node is the primary, and take the short
        way; all others, and all other nodes, go through ``_run_other``.
        """
        if self.silent:
            self._run_silently(requests)
            return
        node = self.node
        hot = node.hot.get
        holding = node.replica.holding
        queue = self._held if holding or self._held or self._held_batches else self._out
        sample = node.sample_due
        started = perf_counter_ns() if sample else 0
        command = None
        done = 0
        for argv in requests:
            done += 1
            command = hot(argv[0])
            if command is None:
                if not node.has_time_for(argv) or node.holds_up(self, argv):
                    done -= 1  # not even this one
                    break
                if self._run_other(argv):
                    break
                continue
            command.calls += 1
            reply = command.handler(self, argv)
            if reply is not None:
                queue.append(reply)
                if reply[0] == _MINUS:
                    self._count_error(command, reply)
            elif self.paused:
                break
        if command is not None:
            self.last_command = command
            if sample:
                node.sample_due = False
                command.add_sample(perf_counter_ns() - started, done)
        self.last_active_s = node.wall_s
        if holding:
            node.turn_holds = True
        if done < len(requests):
            self._leave(requests[done:])
        if not self.queued:
            # Writing right here would be simpler, and costs twice the system time: each write wakes
            # the client, while all of a turn's writes in a row wake it once.
            self.queued = True
            node.turn_connections.append(self)

    def _run_other(self, argv: list[bytes]) -> bool:
        """Execute any request, and queue its reply; whether to stop behind it for now."""
        reply, waits = self._execute(argv)
        if reply is not None:
            if waits:
                self._held.append(reply)
            else:
                self.reply(reply)
        return self._must_stop() or bool(self.silent)

    def _must_stop(self) -> bool:
        """Whether no further request of this connection is to be executed for now."""
        return self.paused or self.closing or self.closed

    def _execute(self, argv: list[bytes]) -> tuple[bytes | None, bool]:
        """Find, check, time and count a command; its reply, and whether that has to wait for the
        backup. All of it is charged to the turn, unknown commands too."""
        node = self.node
        waits = False
        started = perf_counter_ns()
        command = find(argv)
        if command is None:
            reply = node.unknown_command(self, argv)
        elif not command.arguments_min <= len(argv) <= command.arguments_max:
            command.rejected_calls += 1
            reply = wrong_arity(command)
        elif command.depends_on_state and node.gate is not None:
            command.rejected_calls += 1
            reply = node.gate
        else:
            self.last_command = command
            reply = command.handler(self, argv)
            spent = perf_counter_ns() - started
            command.calls += 1
            command.nanoseconds += spent
            if spent > node.slow_ns:
                node.note_slow(self, argv, spent)
            waits = command.depends_on_state and node.replica.holding
        if reply is not None and reply[0] == _MINUS:
            self._count_error(command, reply)
        spent = perf_counter_ns() - started
        if command is not None and "fast" in command.flags:
            node.turn_fast_ns += spent
        else:
            node.turn_spent_ns += spent
        return reply, waits

    def _run_silently(self, requests: list[list[bytes]]) -> None:
        """Behind CLIENT REPLY OFF or SKIP: execute, and drop the replies. Behind MULTI, which is an
        unknown command: refuse up to EXEC, or a transaction would be half executed. Beyond
        ``maxclients`` ("full"): nothing but PEER."""
        for position, argv in enumerate(requests, 1):
            silent = self.silent
            if silent == "full":
                if argv[0].upper() != b"PEER":
                    self.send_away()
                    return
                self.silent = ""
                self._leave(requests[position - 1 :])
                return
            if silent == "multi":
                self._count_error(None, _BEHIND_MULTI)
                self.reply(_BEHIND_MULTI)
                if argv[0].lower() in (b"exec", b"discard"):
                    self.silent = ""
                    self._leave(requests[position:])
                    return
                continue
            if not self.node.has_time_for(argv) or self.node.holds_up(self, argv):
                self._leave(requests[position - 1 :])
                return
            reply, _ = self._execute(argv)
            if silent == "skip" and self.silent == "skip" and reply is not None:
                self.silent = ""  # that one reply was it
            elif reply is not None and not self.silent:
                self.reply(reply)  # CLIENT REPLY ON answers
            if self._must_stop() or not self.silent:
                self._leave(requests[position:])
                return

    def _leave(self, requests: list[list[bytes]]) -> None:
        """Keep requests for when the pause is over, or for the next turn: they come first then."""
        if self.closing or self.closed:
            return
        self._pending.extendleft(reversed(requests))
        if not self.paused:
            self.node.resume_next_turn(self)

    # -- waiting ---------------------------------------------------------------------------------

    def pause(self) -> None:
        """The command being executed will be answered later: nothing behind it runs until then."""
        self.paused = True

    def resume(self, reply: bytes, *, held_back: bool = False) -> None:
        """Answer the command that paused, and go on with what came behind it."""
        if self.closed or self.closing:
            return  # it has hung up
        assert self.paused, "only a paused connection can be resumed"
        self.paused = False
        if self._is_silenced():
            pass
        elif held_back and self.node.replica.holding:
            self._held.append(reply)
            self.node.turn_holds = True
            self._queue()
        else:
            self.reply(reply)
        if self._pending:
            # Not at once: what one waiter's pipeline does may end another's wait, and so on.
            self.node.resume_next_turn(self)
        else:
            self.run_pending()

    def go_on(self) -> None:
        """What held up the next request is over: nothing of it was executed."""
        if not self.closed and self.paused:
            self.paused = False
            self.node.resume_next_turn(self)

    def run_pending(self) -> None:
        """Execute what waits behind a pause that is over."""
        self.has_next_turn = False
        if self.closed or self.paused:
            return
        pending = self._pending
        first = pending[0] if pending else None
        if first and first[0] not in self.node.hot and not self.node.has_time_for(first):
            self.node.resume_next_turn(self)  # (as it would be, after more work than this)
            return
        requests = [pending.popleft() for _ in range(min(len(pending), _PENDING_AT_A_TIME))]
        if requests:
            self._run(requests)
        if self.closed or self.paused:
            return
        if pending:
            self.node.resume_next_turn(self)
        else:
            self._pending_bytes = 0
            if self._decoder.error is not None:
                self._answer_protocol_error()
            elif self.ended:
                self.close_after_replies()
            elif not self.closing:
                self._watch(self._events & ~HANG_UP | READ)

    def _end_before_a_wait(self) -> None:
        """Forget what is left from the first request on that might wait: nobody would be there. It
        is not executed, or the repeat of a wait might be granted what it cannot give back."""
        for position, argv in enumerate(self._pending):
            if _may_wait(argv):
                self._pending = deque(islice(self._pending, position))
                return

    # -- out -------------------------------------------------------------------------------------

    def reply(self, data: bytes) -> None:
        """Queue a reply that may go now, behind whatever is held back."""
        if self.closed:
            return
        if self._held or self._held_batches:
            self._held.append(data)
            self.node.turn_holds = True
        else:
            self._out.append(data)
        self._queue()

    def reply_held_back(self, data: bytes) -> None:
        """The same for a reply that depends on the state."""
        if self.node.replica.holding and not self.closed:
            self._held.append(data)
            self.node.turn_holds = True
            self._queue()
        else:
            self.reply(data)

    def _count_error(self, command: Command | None, reply: bytes) -> None:
        self.node.stats.count_error(reply)
        if command is not None:
            command.failed_calls += 1

    def refuse(self, error: bytes) -> None:
        """Queue an error that neither depends on the state nor waits for the backup. None: what a
        handler returns that has answered by itself."""
        self.node.stats.count_error(error)
        if not self._is_silenced():
            self.reply(error)

    def _is_silenced(self) -> bool:
        """Whether the client wants none of this reply (CLIENT REPLY); SKIP is over with it."""
        silenced = self.silent in ("off", "skip")
        if self.silent == "skip":
            self.silent = ""
        return silenced

    def _queue(self) -> None:
        if not self.queued:
            self.queued = True
            self.node.turn_connections.append(self)

    def take_held(self) -> bytes:
        """The replies of this turn that must wait for the backup; empty if there are none."""
        held = self._held
        if not self._out and not self.closing:
            self.queued = False  # nothing to be written in this turn
        if not held:
            return b""
        data = held[0] if len(held) == 1 else b"".join(held)
        held.clear()
        self._held_batches += 1
        self._held_bytes += len(data)
        if self._held_bytes > limits.OUTPUT_BYTES_MAX:
            self._overflow(self._held_bytes)
        return data

    def release(self, data: bytes) -> None:
        """Replies of an earlier turn may leave now."""
        if self.closed:
            return
        self._held_batches -= 1
        self._held_bytes -= len(data)
        self._out.append(data)
        self._queue()

    def flush(self) -> None:
        """Write what may go, once in a loop turn."""
        self.queued = False
        out = self._out
        if out:
            data = out[0] if len(out) == 1 else b"".join(out)
            out.clear()
            if self._unsent:
                sent = 0
            else:
                try:
                    sent = self._send(data)
                except BlockingIOError:
                    sent = 0
                except OSError as error:
                    self.close(f"write failed: {error}")
                    return
                self.bytes_out += sent
            if sent < len(data):
                self._keep_unsent(memoryview(data)[sent:])
        if self.closing and not self._unsent and not self._held_batches and not self._held:
            self.close("closed by the server")

    def _keep_unsent(self, data: memoryview) -> None:
        """The client does not read as fast as it asks: keep the rest, within the bound."""
        self._unsent.append(data)
        self._unsent_bytes += len(data)
        if self._unsent_bytes > limits.OUTPUT_BYTES_MAX:
            self._overflow(self._unsent_bytes)
        else:
            self._watch(self._events | WRITE)

    def _overflow(self, size_bytes: int) -> None:
        self.node.stats.output_overflows += 1
        self.close(f"{size_bytes} bytes of replies wait for it to read or to be confirmed")
        _give_back_memory()

    def _watch(self, events: int) -> None:
        if events != self._events:
            self._events = events
            self.node.poller.watch(self.sock.fileno(), events)

    def _on_writable(self) -> None:
        unsent = self._unsent
        try:
            for _ in range(min(len(unsent), _WRITES_PER_TURN)):
                sent = self._send(unsent[0])
                self.bytes_out += sent
                self._unsent_bytes -= sent
                if sent < len(unsent[0]):
                    unsent[0] = unsent[0][sent:]
                    return
                unsent.popleft()
        except BlockingIOError:
            return
        except OSError as error:
            self.close(f"write failed: {error}")
            return
        if not unsent:
            self._watch(self._events & ~WRITE)
            self._queue()  # flush closes it if it is to be closed

    @property
    def has_held_back(self) -> bool:
        """Whether replies of its wait for the backup."""
        return bool(self._held or self._held_batches)

    @property
    def output_bytes(self) -> int:
        """Replies that the client has not read yet."""
        return self._unsent_bytes

    @property
    def input_bytes(self) -> int:
        """What is held of requests that are not complete yet, or wait behind a pause."""
        return self._decoder.buffered_bytes + self._pending_bytes

    # -- the end ---------------------------------------------------------------------------------

    def send_away(self) -> None:
        """There is no room for this client."""
        self.reply(_FULL)
        self.close_after_replies()

    def close_after_replies(self) -> None:
        """Close once every reply so far has left; nothing more is read, and nothing waited for."""
        self.closing = True
        self._pending.clear()
        if self.paused:
            self.paused = False
            self.node.replica.executor.hang_up(self)
        self._watch(self._events & ~(READ | HANG_UP))
        self._queue()

    def close(self, why: str) -> None:
        """Close now. Replies that are held back are dropped: "not done" is never implied."""
        if self.closed:
            return
        sock = self.detach(why)
        sock.close()

    def detach(self, why: str) -> socket.socket:
        """Take the socket away from the event loop, to close it or to make it a link."""
        self.closed = True
        self.node.poller.unregister(self.sock.fileno())
        self._out.clear()
        self._held.clear()
        self._pending.clear()
        self._unsent.clear()
        if self.paused:
            self.node.replica.executor.hang_up(self)
        self.node.forget_connection(self, why)
        return self.sock


def _may_wait(argv: list[bytes]) -> bool:
    """Whether this is a LOCK that would stand in line."""
    if argv[0].upper() != b"LOCK":
        return False
    return any(
        word.upper() == b"WAIT" and value != b"0"
        for word, value in zip(argv[3::2], argv[4::2], strict=False)
    )


def _give_back_memory() -> None:
    """Have the C library return to the system what such a client has left free in the middle of the
    heap. Where there is no such call (musl), it stays for later use."""
    with contextlib.suppress(AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def format_address(address: Any) -> str:
    """A socket address as CLIENT LIST and the log show it."""
    if isinstance(address, tuple):
        host, port = address[0], address[1]
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    return str(address) or "unix"
