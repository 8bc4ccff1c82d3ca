"""The bounds: each has its reason, and the promises that rest on two of them hold (I12)."""

from __future__ import annotations

import ast
from pathlib import Path

from holdfast.resp import decoder
from holdfast.server.core import limits, stream
from holdfast.server.core.state import State

SOURCE = Path(limits.__file__).read_text()
BOUNDS = {name: value for name, value in vars(limits).items() if name.isupper()}


def test_every_bound_is_a_positive_integer_or_a_share() -> None:
    assert len(BOUNDS) > 10
    shares = {name: value for name, value in BOUNDS.items() if name.endswith("_SHARE")}
    assert [name for name, share in shares.items() if not 0 < share < 1] == []
    rest = {name: value for name, value in BOUNDS.items() if name not in shares}
    assert [name for name, value in rest.items() if type(value) is not int or value <= 0] == []


def test_every_bound_is_followed_by_its_reason() -> None:
    body = ast.parse(SOURCE).body
    for node, after in zip(body, [*body[1:], None], strict=True):
        if isinstance(node, ast.Assign):
            assert isinstance(node.targets[0], ast.Name)
            said = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
            assert said, f"{node.targets[0].id} has no reason"


def test_every_bound_is_used() -> None:
    root = Path(limits.__file__).parent.parent
    rest = "".join(
        path.read_text() for path in root.glob("**/*.py") if path != Path(limits.__file__)
    )
    assert [name for name in BOUNDS if name not in rest] == []


def test_a_promotion_skips_more_than_may_be_unacknowledged() -> None:
    state = State("h", 1_000, 1, 0)
    assert state.next_epoch_offset(0) - state.offset > limits.UNACKED_ENTRIES_MAX


def test_a_valid_request_fits_in_what_the_decoder_takes() -> None:
    longest = 4 * limits.NAME_BYTES_MAX + 100
    assert longest < decoder.INLINE_BYTES_MAX <= decoder.REQUEST_BYTES_MAX


def test_a_turn_of_catching_up_fits_in_the_queue_of_the_link() -> None:
    assert limits.CATCH_UP_BYTES_PER_TURN < limits.LINK_BYTES_MAX
    assert limits.CATCH_UP_BYTES_PER_TURN < limits.BACKLOG_BYTES_MAX


def test_offsets_tokens_and_times_fit_in_the_stream() -> None:
    assert limits.SEQUENCE_MAX == 2**63 - 1
    stream.chain(0, 2**64 - 1, 2**64 - 1, b"", [0, 1, 2**63 - 1])
    wall_clock_us_in_the_year_2100 = 4_102_444_800_000_000
    assert wall_clock_us_in_the_year_2100 < 2**53, "a fencing token is exact in a double"


def test_a_client_is_remembered_longer_than_its_reply_may_be_held_back() -> None:
    assert limits.BLOCKED_MAX_MS < limits.REPLY_RETENTION_MS <= limits.CLIENT_RETENTION_MS
