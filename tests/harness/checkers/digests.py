"""Agreement: at one offset of one history every node has the same state (I5)."""

from __future__ import annotations

from collections.abc import Iterable

from .history import Digest


def check_digests(digests: Iterable[Digest]) -> list[str]:
    """Problems: two different digests at one (history, offset)."""
    problems = []
    first: dict[tuple[str, int], Digest] = {}
    for digest in digests:
        other = first.setdefault((digest.history, digest.offset), digest)
        if other.digest != digest.digest:
            problems.append(f"two states at one offset (I5): {other} and {digest}")
    return problems
