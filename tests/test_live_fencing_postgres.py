"""FencingGuard on a real PostgreSQL, through two drivers: transactions that race."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pg8000.dbapi
import psycopg
import psycopg.rows
import pytest
from harness.postgres import DATABASE, USER, Postgres
from harness.processes import TIMEOUT_S, wait_until

from holdfast.compat.fencing import (
    RESOURCE_CHARACTERS_MAX,
    TOKEN_MAX,
    DatabaseStore,
    FencingGuard,
    GuardUseError,
    StaleTokenError,
)

R = "invoice-7"
TABLES = "holdfast_fencing, invoices"


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    with Postgres() as postgres:
        yield postgres


@pytest.fixture
def connect(postgres: Postgres) -> Iterator[Callable[..., Any]]:
    """Connections of either driver, to a database with one invoice and no tokens."""
    made: list[Any] = []

    def connect(driver: str = "psycopg", *, autocommit: bool = False, **more: Any) -> Any:
        if driver == "psycopg":
            host = str(postgres.folder)
            connection: Any = psycopg.connect(host=host, user=USER, dbname=DATABASE, **more)
        else:
            connection = pg8000.dbapi.connect(
                USER, unix_sock=str(postgres.socket_path), database=DATABASE, **more
            )
        connection.autocommit = autocommit
        made.append(connection)
        return connection

    ask = connect(autocommit=True).execute
    ask(f"DROP TABLE IF EXISTS {TABLES}")
    ask("CREATE TABLE invoices (id int PRIMARY KEY, total int NOT NULL)")
    ask("INSERT INTO invoices VALUES (7, 100)")
    yield connect
    for connection in made:
        connection.close()


@pytest.fixture
def watch(connect: Any) -> Any:
    """A query of an onlooker's: its one value."""
    onlooker = connect(autocommit=True)
    return lambda sql: onlooker.execute(sql).fetchone()[0]


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor() as pool:
        yield pool


WAYS = [("psycopg", False), ("psycopg", True), ("pg8000", False), ("pg8000", True)]
each_way = pytest.mark.parametrize(
    ("driver", "autocommit"), WAYS, ids=[f"{name}-autocommit-{on}" for name, on in WAYS]
)


@pytest.fixture(params=WAYS, ids=[f"{name}-autocommit-{on}" for name, on in WAYS])
def new_guard(request: pytest.FixtureRequest, connect: Any) -> Callable[[], FencingGuard[Any]]:
    """Makes guards, each on a connection of its own."""
    driver, autocommit = request.param
    return lambda: FencingGuard(DatabaseStore(connect(driver, autocommit=autocommit)))


WAITING = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
TOTAL = "SELECT total FROM invoices"


def add(guard: FencingGuard[Any], token: int, amount: int) -> None:
    """A holder's work: read, and write what follows from it."""
    with guard.guarding(R, token) as cursor:
        cursor.execute(TOTAL)
        (total,) = cursor.fetchone()
        cursor.execute(f"UPDATE invoices SET total = {total + amount}")


def settled(future: Future[None]) -> BaseException | None:
    return future.exception(TIMEOUT_S)


# ---- the race of two tokens


@pytest.mark.parametrize("row_is_there", [True, False])
def test_a_newer_token_waits_for_an_older_ones_transaction_and_sees_its_write(
    new_guard: Any, watch: Any, pool: ThreadPoolExecutor, row_is_there: bool
) -> None:
    older, newer = new_guard(), new_guard()
    older.create_table()
    if row_is_there:
        older.check(R, 32)
    with older.guarding(R, 33) as cursor:
        late = pool.submit(add, newer, 34, 10)
        wait_until(lambda: watch(WAITING) == 1, "34 waits for the row of 33")
        cursor.execute("UPDATE invoices SET total = 150")
        assert not late.done()
    assert settled(late) is None
    assert watch(TOTAL) == 160
    assert older.highest(R) == 34


@pytest.mark.parametrize("row_is_there", [True, False])
def test_an_older_token_waits_for_a_newer_ones_transaction_and_is_refused(
    new_guard: Any, watch: Any, pool: ThreadPoolExecutor, row_is_there: bool
) -> None:
    older, newer = new_guard(), new_guard()
    older.create_table()
    if row_is_there:
        older.check(R, 33)
    with newer.guarding(R, 34) as cursor:
        late = pool.submit(add, older, 33, 10)
        wait_until(lambda: watch(WAITING) == 1, "33 waits for the row of 34")
        cursor.execute("UPDATE invoices SET total = 110")
        assert not late.done()
    error = settled(late)
    assert isinstance(error, StaleTokenError)
    assert (error.token, error.highest_token) == (33, 34)
    assert watch(TOTAL) == 110


@pytest.mark.parametrize("row_is_there", [True, False])
def test_an_older_token_goes_on_when_the_newer_ones_transaction_fails(
    new_guard: Any, watch: Any, pool: ThreadPoolExecutor, row_is_there: bool
) -> None:
    older, newer = new_guard(), new_guard()
    older.create_table()
    if row_is_there:
        older.check(R, 33)
    with pytest.raises(ZeroDivisionError), newer.guarding(R, 34) as cursor:
        cursor.execute("UPDATE invoices SET total = 110")
        late = pool.submit(add, older, 33, 10)
        wait_until(lambda: watch(WAITING) == 1, "33 waits for the row of 34")
        raise ZeroDivisionError
    assert settled(late) is None
    assert watch(TOTAL) == 110  # 100 and 10: nothing of 34's
    assert older.highest(R) == 33


def test_a_writer_that_stood_still_in_mid_body_cannot_be_overtaken(
    new_guard: Any, watch: Any, pool: ThreadPoolExecutor
) -> None:
    """33 has read and stands still inside its transaction; 34 reads only what 33 leaves."""
    older, newer = new_guard(), new_guard()
    with older.guarding(R, 33) as cursor:
        cursor.execute(TOTAL)
        (seen,) = cursor.fetchone()
        late = pool.submit(add, newer, 34, 10)
        wait_until(lambda: watch(WAITING) == 1, "34 waits for the row of 33")
        cursor.execute(f"UPDATE invoices SET total = {seen + 50}")
    assert settled(late) is None
    with pytest.raises(StaleTokenError):
        add(older, 33, 1_000)
    assert watch(TOTAL) == 160


def test_other_resources_do_not_wait(new_guard: Any) -> None:
    one, other = new_guard(), new_guard()
    with one.guarding(R, 33):
        other.check("invoice-8", 1)


def test_many_writers_at_once_lose_no_update(new_guard: Any, watch: Any) -> None:
    """Tokens go up as grants do; every accepted addition is in the total, no refused one is."""
    guards = [new_guard() for _ in range(4)]
    accepted: list[int] = []

    def work(guard: FencingGuard[Any], tokens: range) -> None:
        for token in tokens:
            try:
                add(guard, token, 1)
            except StaleTokenError:
                continue
            accepted.append(token)

    with ThreadPoolExecutor() as pool:
        futures = [pool.submit(work, guard, range(n, 80, 4)) for n, guard in enumerate(guards, 1)]
    assert [settled(future) for future in futures] == [None] * 4
    assert watch(TOTAL) == 100 + len(accepted)
    assert guards[0].highest(R) == 79 == max(accepted)


def test_threads_that_share_a_connection_take_turns(connect: Any, watch: Any) -> None:
    guard = FencingGuard(DatabaseStore(connect()))
    inside = threading.Event()

    def second() -> None:
        assert inside.wait(TIMEOUT_S)
        add(guard, 34, 10)

    with ThreadPoolExecutor() as pool:
        late = pool.submit(second)
        with guard.guarding(R, 33) as cursor:
            cursor.execute("UPDATE invoices SET total = 150")
            inside.set()
            assert watch(TOTAL) == 100
        assert settled(late) is None
    assert watch(TOTAL) == 160


# ---- one transaction, whatever the driver does about them


def test_the_write_and_its_token_are_committed_together(new_guard: Any, watch: Any) -> None:
    guard = new_guard()
    with guard.guarding(R, 33) as cursor:
        cursor.execute("UPDATE invoices SET total = 150")
        assert watch(TOTAL) == 100
        assert watch("SELECT count(*) FROM holdfast_fencing") == 0
    assert watch(TOTAL) == 150
    assert watch("SELECT token FROM holdfast_fencing") == 33


def test_a_body_that_fails_leaves_nothing_behind(new_guard: Any, watch: Any) -> None:
    guard = new_guard()
    for error in (ValueError, KeyboardInterrupt):
        with pytest.raises(error), guard.guarding(R, 33) as cursor:
            cursor.execute("UPDATE invoices SET total = 150")
            raise error
    assert (watch(TOTAL), guard.highest(R)) == (100, 0)


def test_a_body_that_goes_on_after_a_failed_statement_is_not_committed_in_silence(
    new_guard: Any, watch: Any
) -> None:
    """PostgreSQL answers COMMIT with ROLLBACK then, and drivers take that for an answer."""
    guard = new_guard()
    with pytest.raises(GuardUseError, match="had failed"), guard.guarding(R, 33) as cursor:
        cursor.execute("UPDATE invoices SET total = 150")
        with pytest.raises((psycopg.Error, pg8000.dbapi.Error)):
            cursor.execute("SELECT nonsense")
    assert (watch(TOTAL), guard.highest(R)) == (100, 0)


@pytest.mark.parametrize("statement", ["COMMIT", "ROLLBACK"])
def test_a_body_that_ends_its_transaction_itself_is_told(new_guard: Any, statement: str) -> None:
    guard = new_guard()
    with pytest.raises(GuardUseError, match="ended its transaction"):
        with guard.guarding(R, 33) as cursor:
            cursor.execute(statement)
            cursor.execute("SELECT 1")
    guard.check(R, 34)


@each_way
def test_a_body_may_not_commit_the_connection_either(
    connect: Any, driver: str, autocommit: bool
) -> None:
    connection = connect(driver, autocommit=autocommit)
    guard = FencingGuard(DatabaseStore(connection))
    with pytest.raises(GuardUseError, match="ended its transaction"), guard.guarding(R, 33):
        connection.commit()
    guard.check(R, 34)


@each_way
def test_a_connection_with_an_open_transaction_is_refused(
    connect: Any, watch: Any, driver: str, autocommit: bool
) -> None:
    connection = connect(driver, autocommit=autocommit)
    cursor = connection.cursor()
    if autocommit:
        cursor.execute("BEGIN")
    cursor.execute("UPDATE invoices SET total = 101")
    guard = FencingGuard(DatabaseStore(connection))
    with pytest.raises(GuardUseError, match="has a transaction open"), guard.guarding(R, 33):
        pytest.fail("the body ran")
    cursor.execute("COMMIT")  # the caller's work is as it was
    assert watch(TOTAL) == 101
    guard.check(R, 33)


def test_a_guard_inside_a_guard_is_refused(new_guard: Any) -> None:
    guard = new_guard()
    with guard.guarding(R, 33), pytest.raises(GuardUseError, match="this very thread"):
        guard.check("invoice-8", 33)
    guard.check("invoice-8", 33)


def test_the_autocommit_of_a_connection_is_left_as_it_was(connect: Any, watch: Any) -> None:
    connection = connect(autocommit=True)
    FencingGuard(DatabaseStore(connection)).check(R, 33)
    connection.execute("UPDATE invoices SET total = 102")
    assert connection.autocommit is True
    assert watch(TOTAL) == 102


@pytest.mark.parametrize("row_is_there", [True, False])
@pytest.mark.parametrize("level", ["REPEATABLE READ", "SERIALIZABLE"])
def test_under_stricter_isolation_the_loser_of_a_race_gets_the_drivers_error_and_may_try_again(
    connect: Any, watch: Any, pool: ThreadPoolExecutor, level: str, row_is_there: bool
) -> None:
    options = f"-c default_transaction_isolation={level.replace(' ', chr(92) + ' ')}"
    older, newer = (FencingGuard(DatabaseStore(connect(options=options))) for _ in range(2))
    older.create_table()
    if row_is_there:
        older.check(R, 32)
    with newer.guarding(R, 34) as cursor:
        late = pool.submit(add, older, 33, 10)
        wait_until(lambda: watch(WAITING) == 1, "33 waits for the row of 34")
        cursor.execute("UPDATE invoices SET total = 110")
    lost = (psycopg.errors.SerializationFailure, psycopg.errors.UniqueViolation)
    assert isinstance(settled(late), lost)
    with pytest.raises(StaleTokenError):
        add(older, 33, 10)
    assert watch(TOTAL) == 110


def test_a_connection_that_is_gone_is_the_drivers_error(connect: Any, watch: Any) -> None:
    connection = connect()
    guard = FencingGuard(DatabaseStore(connection))
    guard.check(R, 33)
    with pytest.raises(psycopg.OperationalError), guard.guarding(R, 34) as cursor:
        watch(f"SELECT pg_terminate_backend({connection.info.backend_pid})")
        cursor.execute("UPDATE invoices SET total = 150")
    assert watch(TOTAL) == 100
    assert watch("SELECT token FROM holdfast_fencing") == 33


# ---- names, numbers, tables


def test_the_largest_token_and_any_name_are_kept_exactly(new_guard: Any) -> None:
    guard = new_guard()
    longest = "🧾" * RESOURCE_CHARACTERS_MAX
    for resource in (longest, "'; -- %s %(a)s {}", "請求書", "E\u0301"):
        guard.check(resource, TOKEN_MAX)
        assert guard.highest(resource) == TOKEN_MAX
        with pytest.raises(StaleTokenError):
            guard.check(resource, TOKEN_MAX - 1)
    assert guard.highest("\u00c9") == 0


class Anything:
    """What an application may want for a row."""

    def __init__(self, **columns: object) -> None:
        self.columns = columns


@pytest.mark.parametrize(
    "rows",
    [
        psycopg.rows.tuple_row,
        psycopg.rows.dict_row,
        psycopg.rows.namedtuple_row,
        psycopg.rows.scalar_row,
        psycopg.rows.class_row(Anything),
        psycopg.rows.args_row(lambda *columns: columns),
        psycopg.rows.kwargs_row(Anything),
    ],
)
def test_rows_may_have_any_shape(connect: Any, rows: Any) -> None:
    guard = FencingGuard(DatabaseStore(connect(row_factory=rows)))
    guard.check(R, 34)
    assert guard.highest(R) == 34
    with pytest.raises(StaleTokenError):
        guard.check(R, 33)
    with guard.guarding(R, 34) as cursor:
        assert cursor.row_factory is rows, "the body's own are as its connection has them"


def test_many_may_make_the_table_at_once(connect: Any, watch: Any) -> None:
    """PostgreSQL's CREATE TABLE IF NOT EXISTS fails for one of two that come at once."""
    connections = [connect() for _ in range(8)]
    together = threading.Barrier(len(connections))

    def make(connection: Any, table: str) -> None:
        guard = FencingGuard(DatabaseStore(connection, table=table))
        together.wait(TIMEOUT_S)
        guard.create_table()

    connect(autocommit=True).execute("CREATE SCHEMA many")
    with ThreadPoolExecutor(len(connections)) as pool:
        for n in range(5):
            futures = [pool.submit(make, each, f"many.table_{n}") for each in connections]
            assert [settled(future) for future in futures] == [None] * len(connections)
    assert watch("SELECT count(*) FROM pg_tables WHERE schemaname = 'many'") == 5
    connect(autocommit=True).execute("DROP SCHEMA many CASCADE")


def test_who_may_not_create_tables_may_use_one_that_is_there(connect: Any, watch: Any) -> None:
    FencingGuard(DatabaseStore(connect())).create_table()
    admin = connect(autocommit=True)
    admin.execute("DROP ROLE IF EXISTS app")
    admin.execute("CREATE ROLE app")
    admin.execute("GRANT SELECT, INSERT, UPDATE ON holdfast_fencing TO app")
    try:
        connection = connect(options="-c role=app")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            FencingGuard(DatabaseStore(connection, table="another")).check(R, 33)
        FencingGuard(DatabaseStore(connection)).check(R, 33)
    finally:
        connection.close()
        admin.execute("DROP OWNED BY app")
        admin.execute("DROP ROLE app")


def test_a_table_may_be_in_a_schema(connect: Any, watch: Any) -> None:
    connect(autocommit=True).execute("CREATE SCHEMA IF NOT EXISTS locks")
    FencingGuard(DatabaseStore(connect(), table="locks.tokens")).check(R, 33)
    assert watch("SELECT token FROM locks.tokens") == 33
    connect(autocommit=True).execute("DROP SCHEMA locks CASCADE")


def test_a_connection_for_asyncio_is_refused() -> None:
    class Closed(psycopg.AsyncConnection[Any]):
        def __init__(self) -> None: ...

        def __del__(self, *_: object) -> None: ...

        def __repr__(self) -> str:
            return "<AsyncConnection>"

    with pytest.raises(TypeError, match="asyncio"):
        DatabaseStore(Closed())
