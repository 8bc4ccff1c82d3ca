"""The follower: a backup's end of the stream (``stream.py``), from its first message to its acks.

What arrives is checked against what is here (epoch, frame, offset, checksum) before and after it is
applied; a difference is a reason to stop (``Diverged``), never to go on with less. Rules are those
of ``replica.py``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...resp.encoder import pack
from . import snapshot, stream
from .view import View

if TYPE_CHECKING:
    from .replica import Replica


class Diverged(Exception):
    """This backup's state is not the primary's: it must stop, and never be promoted (I5)."""


class StaleStream(Exception):
    """A message of a lower epoch than ours (C3)."""


class Follower:
    """What a replica does while it is a backup."""

    def __init__(self, replica: Replica) -> None:
        self._replica = replica
        self.may_promote_itself = False
        self.synced = False  # the state is whole
        self._loading_items = 0
        self._applied_frame = 0
        self._acked_frame = 0

    # -- the way in ------------------------------------------------------------------------------

    def load(
        self,
        epoch: int,
        primary: str,
        header: snapshot.Header,
        incarnation: str = "",
        checksum: int = 0,
    ) -> None:
        """A snapshot begins: drop what is here, and be ``incarnation``, as which it joined (C4).
        Raises StaleStream."""
        replica = self._replica
        if self.synced:
            self._check_epoch(epoch)
        self.end()
        replica.begin_following(
            View(epoch, primary, (primary,)), incarnation, snapshot.restore(header)
        )
        replica.checksum = checksum
        self._loading_items = header.items

    def load_items(self, fields: list[bytes]) -> None:
        """Some of the snapshot's items."""
        self._loading_items -= snapshot.load(self._replica.state, fields)

    def load_end(self, epoch: int, frame: int, time_ms: int, now_ms: int) -> None:
        """The snapshot is complete; state time is ``time_ms``. Raises StaleStream, Diverged."""
        self._check_epoch(epoch)
        if self._loading_items:
            raise Diverged(f"snapshot ended {self._loading_items} items short")
        self.synced = True
        self._applied_frame = frame
        self._replica.set_state_time(time_ms, now_ms)

    def on_continue(
        self, epoch: int, frame: int, primary: str, time_ms: int, now_ms: int, incarnation: str = ""
    ) -> None:
        """What is here is on the primary's history: the stream goes on from it. This node is
        ``incarnation`` from now on, as which it joined (C4). Raises StaleStream."""
        assert self.synced, "only a whole state can be gone on from"
        self._check_epoch(epoch)
        self.begin_at_rest()
        self._replica.begin_following(View(epoch, primary, (primary,)), incarnation)
        self._applied_frame = frame
        self._replica.set_state_time(time_ms, now_ms)

    def begin_at_rest(self) -> None:
        """The state is whole, and nothing follows yet."""
        self.end()
        self.synced = True

    def end(self) -> None:
        """This node follows nobody, or starts afresh."""
        self.synced = self.may_promote_itself = False
        self._applied_frame = self._acked_frame = 0

    # -- the stream ------------------------------------------------------------------------------

    def on_entries(self, header: bytes, payload: bytes, fields: list[bytes], now_ms: int) -> None:
        """Apply one ENTRIES frame; ``fields`` is its payload, parsed. Raises StaleStream,
        Diverged."""
        replica = self._replica
        state = replica.state
        (stream_epoch, frame, first, last, epoch, time_ms, checksum) = stream.decode_entries(header)
        self._check_frame(stream_epoch, frame)
        assert first == state.offset + 1, (first, state.offset)  # paired: sender's seal
        try:
            answers = state.apply_batch(first, epoch, time_ms, fields[0], fields[1:])
        except (ValueError, IndexError, TypeError, StopIteration) as error:
            # Part of it may have been applied: never a mere slip of the protocol.
            raise Diverged(f"a batch at offset {first} cannot be applied: {error!r}") from error
        replica.checksum = stream.chain(replica.checksum, epoch, time_ms, payload, answers)
        if replica.checksum != checksum or state.offset != last:
            raise Diverged(
                f"at offset {state.offset} the checksum is {replica.checksum}, "
                f"the primary's at {last} is {checksum}"
            )
        self._applied_frame = frame
        replica.set_state_time(time_ms, now_ms)

    def on_beat(self, epoch: int, frame: int, offset: int) -> None:
        """A frame without entries. Raises StaleStream, Diverged."""
        self._check_frame(epoch, frame)
        if offset != self._replica.state.offset:
            raise Diverged(
                f"applied up to {self._replica.state.offset}, the primary is at {offset}"
            )
        self._applied_frame = frame

    def on_view(self, epoch: int, frame: int, primary: str, members: str, auto: bool) -> None:
        """The primary's new view. Raises StaleStream, Diverged."""
        self._check_epoch(epoch)
        if frame != self._applied_frame + 1:
            raise Diverged(f"frame {frame} after {self._applied_frame}")
        self._replica.view = View(epoch, primary, tuple(members.split(",")))
        self.may_promote_itself = auto
        self._applied_frame = frame

    def on_handover(self, epoch: int, frame: int) -> None:
        """The primary wants this node to take over. Raises StaleStream, Diverged."""
        self._check_frame(epoch, frame)
        self._applied_frame = frame

    def ack(self) -> bytes:
        """What acknowledges everything applied so far; empty if that was already said."""
        if self._applied_frame == self._acked_frame:
            return b""
        self._acked_frame = self._applied_frame
        replica = self._replica
        return pack((stream.ACK, replica.view.epoch, self._applied_frame, replica.state.offset))

    def _check_epoch(self, epoch: int) -> None:
        known = self._replica.view.epoch
        if epoch < known:
            raise StaleStream(f"stream of epoch {epoch}, here is {known}")

    def _check_frame(self, epoch: int, frame: int) -> None:
        self._check_epoch(epoch)
        known = self._replica.view.epoch
        if epoch != known or frame != self._applied_frame + 1:
            raise Diverged(
                f"frame {frame} of epoch {epoch} after frame {self._applied_frame} of epoch {known}"
            )
