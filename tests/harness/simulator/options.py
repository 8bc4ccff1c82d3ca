"""What kind of run a seed is: drawn from it, printed with it."""

from __future__ import annotations

import random
from dataclasses import dataclass, fields

FAIL_STOP = "fail-stop"
BACKUP = "backup"
ETCD = "etcd"
BOTH = "both"
STOPPED = "stopped"
REGISTERS = (FAIL_STOP, BACKUP, ETCD)


@dataclass(frozen=True)
class Options:
    """All that differs between runs but for what the dice decide on the way."""

    seed: int
    register: str
    safety_ms: int  # how long there are faults
    liveness_ms: int  # how long it may take then until all is whole again
    clients: int
    locks: int
    think_ms: int  # between two things that a client does, on average
    backup_timeout_ms: int
    promotion_timeout_ms: int
    heartbeat_ms: int
    min_backups: int
    fault_every_ms: int  # on average
    loss_per_mille: int
    spread_us: int  # of a message's way
    late_copy_percent: int  # requests of which a copy comes late
    small_limits: bool  # backlog and snapshot slices so small that they are felt
    total_loss: str  # F8: both nodes are lost at once; or one after it took over from a stopped one
    clock_ppm: int  # clocks are up to so much too fast or too slow
    opaque_percent: int  # clients whose request ids are not @client:n
    registers_every_ms: int  # clients turn to versioned registers, several at a time

    def __str__(self) -> str:
        return " ".join(f"{field.name}={getattr(self, field.name)}" for field in fields(self))


def draw(seed: int, register: str = "", safety_ms: int = 0) -> Options:
    """The options of ``seed``; those that are named are not drawn."""
    rng = random.Random(f"{seed}/options")
    kind = rng.choice((FAIL_STOP, FAIL_STOP, BACKUP, ETCD, ETCD))
    heartbeat_ms = rng.choice((200, 250, 300))
    return Options(
        seed=seed,
        register=register or kind,
        safety_ms=safety_ms or 24_000,
        liveness_ms=30_000,
        clients=rng.choice((3, 4, 5, 6)),
        locks=rng.choice((2, 3, 4)),
        think_ms=rng.choice((400, 800, 1_600)),
        backup_timeout_ms=rng.choice((1_000, 1_300, 2_000)),
        promotion_timeout_ms=rng.choice((1_100, 1_500, 2_200)),
        heartbeat_ms=heartbeat_ms,
        min_backups=int(rng.random() < 0.15),
        fault_every_ms=rng.choice((1_000, 1_500, 2_500)),
        loss_per_mille=rng.choice((0, 0, 2, 10)),
        spread_us=rng.choice((400, 2_000, 20_000)),
        late_copy_percent=rng.choice((0, 3, 10)),
        small_limits=rng.random() < 0.4,
        total_loss=rng.choice((BOTH, STOPPED)) if rng.random() < 0.06 else "",
        clock_ppm=rng.choice((0, 1_000, 10_000, 10_000)),
        opaque_percent=rng.choice((0, 30, 60)),
        registers_every_ms=random.Random(f"{seed}/registers").choice((4_000, 6_000, 10_000)),
    )
