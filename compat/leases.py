"""What a grant is worth, and until when: no socket, clock, thread or dice in here either.

The node counts a lease from when it grants it; we cannot see that instant, only that it came after
we had sent the request. And our clock may run slower than the node's. So (L1) a grant is trusted
for its lease, less twice the drift that a clock may have, counted from the first sending of the
request:

    we      send LOCK a PX 1000 ───────────── trusted for 980 ms ────────────────▶|
    node            └─▶ grants: held for 1000 ms ─────────────────────────────────────────▶|

That is safe however late the answer comes, but of little use if it comes late. So (L2) a grant that
stood in line, or had to be sent for again, is renewed at once, and counted from the sending of that
renewal. If the renewal is refused, or answered too late, the grant is none: it is given back, and
what is left of the wait is used to stand in line again.

The same goes for every later renewal (L3): it counts from its first sending once it is answered,
and never shortens anything. (L4) A lock is lost when a node says so (0), or when the last
acknowledged renewal is no longer trusted; not later, whatever is still under way.

(L5) A lease is renewed when a third of it is over: two more renewals fit in. One that is longer
than what the renewals ask for (it was extended) is left alone until two thirds of that are left of
it: a lease is never shortened, so a renewal would change nothing before.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from .attempts import (
    WAIT_MS_MAX,
    Call,
    Client,
    Finish,
    Request,
    Verdict,
    acquire_request,
    renew_request,
)

# How far a clock may be off, of any time that it measures: see the server's limits.
CLOCK_DRIFT_MAX_PERCENT = 1

# A lease is renewed after one of three parts; and never sooner after the last try than one of 12.
RENEWAL_PARTS = 3
RETRY_PARTS = 12

# So long the first attempt of a renewal may wait for a reply at least: should the reply take
# longer, each attempt doubles it. And a sixth of its lease, where that is more.
RENEWAL_ATTEMPT_PARTS = 6
RENEWAL_ATTEMPT_MIN_US = 100_000

# A sleep stands still while the machine is suspended, and a lease does not.
LOOK_AT_CLOCK_US = 1_000_000

GONE = "it was released by somebody else, or its lease ran out"
UNANSWERED = "no renewal was answered in time"

# An answer that took longer than this, or than a tenth of its lease, stood in line (L2).
AT_ONCE_MAX_US = 10_000


def trusted_us(lease_ms: int) -> int:
    """For how long a lease is trusted (L1)."""
    return lease_ms * 10 * (100 - 2 * CLOCK_DRIFT_MAX_PERCENT)


def renewal_attempt_us(lease_ms: int) -> int:
    """For how long a renewal waits for a node's reply before it asks the other one."""
    lease_us = lease_ms * 1_000
    least_us = min(RENEWAL_ATTEMPT_MIN_US, lease_us // RENEWAL_PARTS)
    return max(least_us, lease_us // RENEWAL_ATTEMPT_PARTS)


class Grant(NamedTuple):
    """A lock that is ours: `lease_ms` counts from `sent_us`; None is held until it is released."""

    token: int
    lease_ms: int | None
    sent_us: int

    @property
    def trusted_until_us(self) -> int | None:
        """From then on somebody else may hold the lock; None: never."""
        return None if self.lease_ms is None else self.sent_us + trusted_us(self.lease_ms)

    def is_trusted(self, now_us: int) -> bool:
        until_us = self.trusted_until_us
        return until_us is None or now_us < until_us

    def left_ms(self, now_us: int) -> int:
        """At least so much of the lease is left."""
        assert self.lease_ms is not None
        return max(0, self.lease_ms - (now_us - self.sent_us) // 1_000)

    def renewed(self, lease_ms: int, sent_us: int) -> Grant:
        """After an acknowledged renewal, which a node never lets shorten a lease (L3)."""
        if self.lease_ms is None or trusted_us(lease_ms) + sent_us <= self._trusted_until_us:
            return self
        return self._replace(lease_ms=lease_ms, sent_us=sent_us)

    def renew_at_us(self, renew_ms: int) -> int:
        """When to ask for a lease of `renew_ms` (L5)."""
        assert self.lease_ms is not None
        third_us = self.sent_us + self.lease_ms * 1_000 // RENEWAL_PARTS
        needed_us = renew_ms * 1_000 * (RENEWAL_PARTS - 1) // RENEWAL_PARTS
        return max(third_us, self._trusted_until_us - needed_us)

    @property
    def _trusted_until_us(self) -> int:
        assert self.trusted_until_us is not None
        return self.trusted_until_us


class Renewal:
    """One grant in the hands of its holder: when it is renewed, and when it is lost.

    Whoever renews it waits for `wait_us`; when that is 0 it calls `begin`, renews, and tells what
    came of it: `answered` or `failed`. When it is None the grant is lost: `loss` says why.

    `renew_ms` is what every renewal asks for; None: nobody renews it in the background. A loss that
    somebody may have been told of is final, whatever a node says later. So with renewals a trust
    that was seen to have run out is lost for good; without any, it can be mended as long as a node
    still renews that very grant: nobody else held the lock meanwhile.
    """

    def __init__(self, grant: Grant, renew_ms: int | None = None) -> None:
        assert renew_ms is None or grant.lease_ms is not None
        self.grant = grant
        self.loss = ""
        self._renew_ms = renew_ms
        self._under_way = False
        self._not_before_us = 0

    def is_lost(self, now_us: int) -> bool:
        return self.is_lost_for_good(now_us) or not self.grant.is_trusted(now_us)

    def is_lost_for_good(self, now_us: int) -> bool:
        if self._renew_ms is not None and not self.grant.is_trusted(now_us):
            self.lose(UNANSWERED)
        return bool(self.loss)

    def lose(self, reason: str) -> None:
        """The first reason counts."""
        self.loss = self.loss or reason

    def acknowledge(self, lease_ms: int, sent_us: int | None) -> None:
        """What a node answered to a renewal sent at `sent_us`; None: the grant is gone."""
        if sent_us is None:
            self.lose(GONE)
        elif not self.loss:
            self.grant = self.grant.renewed(lease_ms, sent_us)

    # -- in the background -----------------------------------------------------------------------

    def wait_us(self, now_us: int) -> int | None:
        """How long to wait before asking again, 0 when a renewal is due; None: it is lost."""
        if self.is_lost_for_good(now_us):
            return None
        until_us = self.grant.trusted_until_us
        assert until_us is not None
        if not self._under_way:
            until_us = min(until_us, self._due_us)
        return max(0, min(until_us - now_us, LOOK_AT_CLOCK_US))

    def begin(self, now_us: int) -> int:
        """A renewal is sent now; how long it may take: an answer after that is of no use."""
        self._under_way = True
        self._put_off(now_us)
        assert self.grant.trusted_until_us is not None
        return max(1, self.grant.trusted_until_us - now_us)

    def answered(self, sent_us: int | None) -> None:
        """The end of what `begin` began; None: the grant is gone."""
        self._under_way = False
        self.acknowledge(self._renews_ms, sent_us)

    def failed(self, now_us: int) -> None:
        """It ended without an answer: it is tried again after a while."""
        self._under_way = False
        self._put_off(now_us)

    def _put_off(self, now_us: int) -> None:
        self._not_before_us = now_us + self._renews_ms * 1_000 // RETRY_PARTS

    @property
    def _due_us(self) -> int:
        return max(self.grant.renew_at_us(self._renews_ms), self._not_before_us)

    @property
    def _renews_ms(self) -> int:
        assert self._renew_ms is not None
        return self._renew_ms


@dataclass(frozen=True)
class Wanted:
    """What a caller of `acquire` wants; `wait_until_us` is None if it waits as long as it takes."""

    name: bytes
    lease_ms: int | None
    owner: bytes | None
    wait_until_us: int | None

    def request(self, client: Client) -> Request:
        return acquire_request(client, self.name, self.lease_ms, self.owner)

    def wait_of_one_request(self, now_us: int) -> int:
        """Until when the next request may stand in line; no node takes a longer wait than a day."""
        longest_us = now_us + WAIT_MS_MAX * 1_000
        return longest_us if self.wait_until_us is None else min(self.wait_until_us, longest_us)

    def may_go_on_after(self, acquisition: Acquisition, now_us: int) -> bool:
        """Whether to ask anew, after a request that brought no grant."""
        if self.wait_until_us is not None and self.wait_until_us <= now_us:
            return False
        if acquisition.came_late:
            return True
        was_all = acquisition.call.wait_until_us == self.wait_until_us
        return acquisition.finish.verdict is Verdict.ANSWERED and not was_all


class Acquisition:
    """One LOCK on its way to a grant: `take` its answer, and if that says so renew and `confirm`.

    Then `grant` is the lock, or None, and `finish` what is known of the LOCK.
    """

    finish: Finish

    def __init__(self, call: Call, lease_ms: int | None) -> None:
        self.call = call
        self.grant: Grant | None = None
        self.came_late = False
        self._lease_ms = lease_ms

    def take(self, finish: Finish, now_us: int) -> bool:
        """The end of the LOCK; True if its grant has to be renewed to be of use (L2)."""
        self.finish = finish
        if finish.verdict is not Verdict.ANSWERED or not finish.value:
            return False
        self.grant = Grant(finish.value, self._lease_ms, self.call.first_sent_us)
        if self._lease_ms is None:
            return False
        took_us = now_us - self.call.first_sent_us
        return self.call.sendings > 1 or took_us > min(AT_ONCE_MAX_US, self._lease_ms * 100)

    def renewal(self) -> Request:
        assert self.grant is not None and self._lease_ms is not None
        return renew_request(self.call.request.name, self.grant.token, self._lease_ms)

    def renewal_left_us(self, deadline_us: int) -> int:
        """An answer that comes after the renewal has lost its worth is waited for in vain."""
        assert self._lease_ms is not None
        return min(deadline_us, trusted_us(self._lease_ms))

    def confirm(self, renewal: Call, finish: Finish, now_us: int) -> None:
        """The end of the renewal."""
        assert self.grant is not None and self._lease_ms is not None
        if finish.verdict is Verdict.ANSWERED and finish.value:
            self.grant = self.grant._replace(sent_us=renewal.first_sent_us)
            if self.grant.is_trusted(now_us):
                return
            late: Exception = TimeoutError("its renewal was answered too late")
        else:
            late = finish.lost or finish.error or TimeoutError("its lease had run out")
        self.grant = None
        self.came_late = True
        if finish.verdict is Verdict.ANSWERED and not finish.value:
            self.finish = self.finish._replace(value=0)  # the node says that it is not held
        else:
            error = finish.error
            self.finish = self.finish._replace(
                verdict=Verdict.INDETERMINATE, value=None, error=error, lost=late
            )
