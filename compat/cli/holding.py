"""A grant that is renewed in the background, and the instant until which it may be trusted.

    sent                    answered                 trusted until      expires at the server
    |--- LOCK ... PX 30000 ---|                              |           |
    |---------------------- 0.98 x lease --------------------|           |
                              |------------------- lease ----------------|   at the earliest

A lease may be trusted for its length less twice the drift of a clock (1 %), counted from the
*sending* of the request that began or renewed it: the server has begun to count no earlier than
that. Requests that were not answered count for nothing. So whoever looks at the clock knows,
without asking anybody, whether the lock can be somebody else's already.

When it is renewed, and what comes of that, is decided in `leases`, as for every other holder.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from redis.exceptions import RedisError

from ..clerk import Clerk
from ..endpoints import now_us
from ..leases import UNANSWERED, Grant, Renewal, trusted_us


def now_ms() -> int:
    """On the clock of all instants here, which goes on while the machine is suspended."""
    return now_us() // 1_000


def trusted_ms(lease_ms: int) -> int:
    """How long a lease may be trusted."""
    return trusted_us(lease_ms) // 1_000


class Holding:
    """One grant. `start` renews it from then on, in a thread, until `stop` or until it is lost.

    `renew_ms` is the lease that every renewal asks for; a longer first lease runs until two thirds
    of this are left of it.
    """

    def __init__(self, clerk: Clerk, name: bytes, grant: Grant, *, renew_ms: int) -> None:
        self.name = name
        self.token = int(grant.token)
        self.problem = ""
        self.renewals_begun = 0
        self._clerk = clerk
        self._renew_ms = renew_ms
        self._renewal = Renewal(grant, renew_ms)
        self._on_loss: Callable[[], None] = lambda: None
        self._ending = threading.Event()
        self._lock = threading.Lock()

    @property
    def trusted_until_ms(self) -> int:
        """From then on somebody else may have the lock."""
        until_us = self._renewal.grant.trusted_until_us
        assert until_us is not None
        return until_us // 1_000

    @property
    def is_trusted(self) -> bool:
        """Whether nobody else can have the lock yet, unless an operator broke it unheard. Once it
        was seen not to be trusted it never is again.
        """
        return not self._renewal.is_lost(now_us())

    @property
    def loss(self) -> str:
        """Why it is not trusted any more, in words."""
        loss = self._renewal.loss
        return f"{loss} ({self.problem})" if self.problem and loss == UNANSWERED else loss

    def start(self, on_loss: Callable[[], None]) -> None:
        """Begins to renew in a thread, which calls `on_loss` once the grant is lost. The thread is
        a daemon: it may be in a call that nobody answers.
        """
        self._on_loss = on_loss
        threading.Thread(target=self._run, name="holdfast-renew", daemon=True).start()

    def stop(self) -> None:
        """No renewal begins after this; one may be under way."""
        with self._lock:
            self._ending.set()

    def release(self) -> bool:
        """Gives the lock back; False if the grant had gone before. Raises RedisError."""
        self.stop()
        return self._clerk.release(self.name, fencing_token=self.token)

    def _run(self) -> None:
        while (wait_us := self._renewal.wait_us(now_us())) is not None:
            if self._ending.wait(wait_us / 1_000_000):
                return
            if self._renewal.wait_us(now_us()) == 0:
                self._renew()
        self._on_loss()

    def _renew(self) -> None:
        with self._lock:
            if self._ending.is_set():
                return
            self.renewals_begun += 1
        left_us = self._renewal.begin(now_us())
        try:
            sent_us = self._clerk._renew(self.name, self.token, self._renew_ms, left_us)
        except RedisError as error:
            self.problem = str(error)
            self._renewal.failed(now_us())
        else:
            self.problem = ""
            self._renewal.answered(sent_us)
