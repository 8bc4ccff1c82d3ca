"""What RegisterLock decides, without doing it: no socket, clock, thread or dice in here.

The lock is a register. Free is `b""`, or no register at all; held is the identity of one
acquisition, which is random and never used again. There are two things to do, read the register
(get) and write it if it has a certain version (put without a request id), and this is what can come
of them:

    read       a value and its version; version 0 if there is no register
    written    the put was done
    refused    certainly not done: the register has another version (VersionError, NoKeyError)
    maybe      it has another version, perhaps since the put was done (MaybeError)
    doubtful   nobody knows (IndeterminateError), and a copy may come yet
    not done   certainly not, and no copy is under way (UnavailableError, -NOAUTH and the like)

Rules that the tests hold:

 K1  Whether an acquisition has the lock is told by its identity, never by a guess: the put was
     answered, or the identity was read in the register.
 K2  While a put of ours at version v is in doubt, the register may say our name at any moment. That
     ends when the register is seen at another version, or when another put at v is answered: of
     all puts at v one is done, and it was that one. So who gives up with a put in doubt

         reads its own identity     ──▶ writes b"" over it
         reads version v still      ──▶ writes b"" at v: a late copy does not fit any more
         reads anything else        ──▶ has nothing left there

     until one of these is answered. It is harmless to do that twice, or by two at once.
 K3  An acquisition that was given up is never taken up again, not even if its identity is read: a
     copy of the b"" that frees it may be under way. The next one has a new identity.
 K4  A release writes b"" at the version at which the lock was taken. If the first such put is
     refused, somebody else has changed the register, and the lock was lost. Of later ones nobody
     can tell whose doing it is; the lock is released when our identity is not read any more.

No rule speaks of time. They need versions that only rise: a register that is deleted, or expires,
begins again, and an old copy may fit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from .registers import Versioned

FREE = b""
NO_REGISTER = Versioned(FREE, 0)

# How long to wait before looking again while somebody else holds the lock, doubled up to the last.
LOOK_FIRST_US = 2_000
LOOK_MAX_US = 100_000


class Read(NamedTuple):
    """Do: wait `delay_us`, then read the register."""

    delay_us: int = 0


class Write(NamedTuple):
    """Do: write `value` if the register has `version`."""

    value: bytes
    version: int


class Done(NamedTuple):
    """`version` is that at which the lock is held, None if it is not."""

    version: int | None = None


Step = Read | Write | Done


class Acquiring:
    """One acquisition. While something of it is in the register, or may be, or may come yet, it has
    something `at_stake`: who leaves it then has to do what `giving_up` says.

    It looks at least once, and writes once if the lock is free; after `until_us` it does no more
    (None: it goes on as long as it takes). `jitter` gives numbers from 0 up to 1.
    """

    def __init__(
        self, identity: bytes, *, until_us: int | None, jitter: Callable[[], float]
    ) -> None:
        assert identity != FREE
        self.identity = identity
        self._until_us = until_us
        self._jitter = jitter
        self._looks = 0
        self._has_written = False
        # The version at which a put is in doubt, and whether it was before the one under way.
        self._doubt: int | None = None
        self._was_in_doubt = False
        self._held: int | None = None

    @property
    def at_stake(self) -> bool:
        return self._doubt is not None or self._held is not None

    def giving_up(self) -> Freeing:
        """K2, K3."""
        return Freeing(self.identity, doubt=self._doubt)

    def start(self) -> Step:
        return Read()

    def read(self, register: Versioned, now_us: int) -> Step:
        if register.value == self.identity:
            return self._hold(register.version)
        if register.version != self._doubt:
            self._doubt = None
        has_time = self._until_us is None or now_us < self._until_us
        if register.value == FREE and (has_time or not self._has_written):
            return self._write(register.version)
        return self._look_again(now_us) if has_time else Done()

    def written(self, version: int) -> Step:
        return self._hold(version)

    def refused(self, now_us: int) -> Step:
        """Somebody was faster; or an earlier put of ours, then reading tells."""
        self.not_done()
        return self._look_again(now_us)

    def maybe(self) -> Step:
        return Read()

    def doubtful(self) -> Step:
        return Read()

    def not_done(self) -> None:
        """What an earlier put at that version came to is as open as it was."""
        if not self._was_in_doubt:
            self._doubt = None

    def _hold(self, version: int) -> Step:
        self._held, self._doubt = version, None
        return Done(version)

    def _write(self, version: int) -> Step:
        """From here on it is in doubt: whoever is to do this may be interrupted."""
        self._was_in_doubt = self._doubt is not None
        self._doubt = version
        self._has_written = True
        return Write(self.identity, version)

    def _look_again(self, now_us: int) -> Step:
        self._looks += 1
        longest_us = min(LOOK_MAX_US, LOOK_FIRST_US << min(self._looks - 1, 16))
        delay_us = int(longest_us * (1 + self._jitter()) / 2)
        if self._until_us is not None:
            delay_us = max(0, min(delay_us, self._until_us - now_us))
        return Read(delay_us)


class Freeing:
    """Sees to it that an identity is not in the register, and will not be. `doubt` is the version
    at which it may still be written (K2), `held` that at which it is known to be there (K4).

    `is_done` once that is so; several may be at it, one after the other or at once. `was_lost` if
    somebody else had done it before.
    """

    def __init__(
        self, identity: bytes, *, doubt: int | None = None, held: int | None = None
    ) -> None:
        self.identity = identity
        self.is_done = False
        self.was_lost = False
        self._doubt = doubt
        self._held = held
        self._is_first_put = False

    def start(self) -> Step:
        if self.is_done:
            return Done()
        held, self._held = self._held, None
        self._is_first_put = held is not None
        return Read() if held is None else Write(FREE, held)

    def read(self, register: Versioned, now_us: int) -> Step:
        may_come_yet = register.value == FREE and register.version == self._doubt
        if register.value == self.identity or may_come_yet:
            return Write(FREE, register.version)
        return self._finish()

    def written(self, version: int) -> Step:
        return self._finish()

    def refused(self, now_us: int) -> Step:
        if not self._is_first_put:
            return Read()
        self.was_lost = True
        return self._finish()

    def maybe(self) -> Step:
        return self.doubtful()

    def doubtful(self) -> Step:
        self._is_first_put = False
        return Read()

    def not_done(self) -> None:
        pass

    def _finish(self) -> Step:
        self.is_done = True
        return Done()
