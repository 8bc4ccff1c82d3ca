"""FencingGuard: the rule on every store, the faults of a well-known demo, and wrong use."""

from __future__ import annotations

import pickle
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.compat.fencing import (
    RESOURCE_CHARACTERS_MAX,
    TOKEN_MAX,
    DatabaseStore,
    FencingGuard,
    GuardUseError,
    MemoryStore,
    SQLiteStore,
    StaleTokenError,
)

TIMEOUT_S = 20.0
R = "invoice-7"

# What sqlite3.connect is told: every way in which it can be made to begin transactions.
WAYS: dict[str, dict[str, Any]] = {
    "legacy": {},
    "legacy-exclusive": {"isolation_level": "EXCLUSIVE"},
    "none": {"isolation_level": None},
}
if hasattr(sqlite3, "LEGACY_TRANSACTION_CONTROL"):  # Python 3.12
    WAYS["autocommit"] = {"autocommit": True}
    WAYS["pep-249"] = {"autocommit": False}


@pytest.fixture
def connect(tmp_path: Path) -> Iterator[Callable[..., sqlite3.Connection]]:
    """Connections to one file, for any thread, closed at the end."""
    made: list[sqlite3.Connection] = []

    def connect(way: str = "legacy", **more: Any) -> sqlite3.Connection:
        options = {"check_same_thread": False, "timeout": TIMEOUT_S, **WAYS[way], **more}
        connection = sqlite3.connect(tmp_path / "guarded.db", **options)
        made.append(connection)
        return connection

    yield connect
    for connection in made:
        connection.close()


@pytest.fixture(params=["memory", "file", *WAYS])
def guard(request: pytest.FixtureRequest, tmp_path: Path, connect: Any) -> FencingGuard[Any]:
    """A guard on every kind of store."""
    if request.param == "memory":
        return FencingGuard()
    if request.param == "file":
        return FencingGuard(SQLiteStore(tmp_path / "tokens.db"))
    return FencingGuard(DatabaseStore(connect(request.param)))


def is_refused(guard: FencingGuard[Any], token: int, resource: str = R) -> bool:
    try:
        with guard.guarding(resource, token):
            return False
    except StaleTokenError:
        return True


# ---- the rule


def test_a_lower_token_is_refused_and_the_body_does_not_run(guard: FencingGuard[Any]) -> None:
    guard.check(R, 34)
    with pytest.raises(StaleTokenError) as caught, guard.guarding(R, 33):
        pytest.fail("the body ran")
    error = caught.value
    assert (error.resource, error.token, error.highest_token) == (R, 33, 34)
    assert str(error) == "fencing token 33 is stale: 'invoice-7' has seen 34"


def test_the_same_token_may_come_again_and_a_higher_one_may_come(guard: FencingGuard[Any]) -> None:
    for token in (33, 33, 34, 34, 1_000):
        assert not is_refused(guard, token)
        assert guard.highest(R) == token


def test_a_check_alone_refuses_lower_tokens_from_then_on(guard: FencingGuard[Any]) -> None:
    guard.check(R, 34)
    with pytest.raises(StaleTokenError):
        guard.check(R, 33)
    assert is_refused(guard, 33)


def test_a_refused_token_changes_nothing(guard: FencingGuard[Any]) -> None:
    guard.check(R, 34)
    assert is_refused(guard, 33)
    assert guard.highest(R) == 34
    assert not is_refused(guard, 34)


def test_resources_do_not_know_of_one_another(guard: FencingGuard[Any]) -> None:
    guard.check(R, 34)
    assert not is_refused(guard, 1, "invoice-8")
    assert (guard.highest(R), guard.highest("invoice-8"), guard.highest("new")) == (34, 1, 0)


def test_the_largest_token_is_kept_exactly(guard: FencingGuard[Any]) -> None:
    guard.check(R, TOKEN_MAX)
    assert guard.highest(R) == TOKEN_MAX == 2**63 - 1
    assert is_refused(guard, TOKEN_MAX - 1)


@pytest.mark.parametrize(
    "resource",
    [
        "a",
        " ",
        "a b",
        "Größe/été",
        "рахунок",
        "請求書",
        "🧾" * RESOURCE_CHARACTERS_MAX,
        "'; --",
        "%s",
    ],
)
def test_a_resource_may_have_any_name(guard: FencingGuard[Any], resource: str) -> None:
    guard.check(resource, 34)
    assert is_refused(guard, 33, resource)
    assert not is_refused(guard, 1, resource[:-1] + "\N{SNOWMAN}")


def test_names_that_only_look_alike_are_two_resources(guard: FencingGuard[Any]) -> None:
    names = ["\u00c9", "E\u0301", "\u00e9", "E", "e", "e ", " e"]
    for token, name in enumerate(names, 1):
        guard.check(name, 10 - token)
    assert [guard.highest(name) for name in names] == [9, 8, 7, 6, 5, 4, 3]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(1, 6)), max_size=20))
def test_accepted_tokens_of_a_resource_never_fall(requests: list[tuple[str, int]]) -> None:
    with closing(sqlite3.connect(":memory:")) as connection:
        for guard in (FencingGuard(), FencingGuard(DatabaseStore(connection))):
            highest = {"a": 0, "b": 0}
            for resource, token in requests:
                assert is_refused(guard, token, resource) == (token < highest[resource])
                highest[resource] = max(highest[resource], token)
                assert guard.highest(resource) == highest[resource]


# ---- the five faults of etcd's lock demo, whose storage accepts a write "only if the version given
# ---- equals the version kept"; versions there are lease ids


class Storage:
    """A dict with a guard: what that demo's storage would be."""

    def __init__(self, guard: FencingGuard[Any]) -> None:
        self._guard = guard
        self._values: dict[str, str] = {}

    def write(self, key: str, value: str, token: int) -> None:
        with self._guard.guarding(key, token):
            self._values[key] = value

    def read(self, key: str, token: int) -> str | None:
        with self._guard.guarding(key, token):
            return self._values.get(key)


@pytest.fixture
def storage(guard: FencingGuard[Any]) -> Storage:
    return Storage(guard)


def test_a_newer_holder_is_not_refused_because_an_older_one_has_written(storage: Storage) -> None:
    """Fault 1: versions are compared for equality, so the next holder's is wrong for ever."""
    storage.write("key0", "of client 1", 33)
    storage.write("key0", "of client 2", 34)
    assert storage.read("key0", 34) == "of client 2"


def test_it_is_the_order_of_tokens_that_counts_not_that_they_differ(storage: Storage) -> None:
    """Fault 2: lease ids are unique and say nothing about who came first."""
    storage.write("key0", "of client 2", 34)
    with pytest.raises(StaleTokenError):
        storage.write("key0", "of client 1", 33)
    storage.write("key0", "of client 3", 35)


def test_a_stale_first_write_to_a_fresh_key_is_refused(storage: Storage) -> None:
    """Fault 3: whoever writes a key first is accepted, the stale holder too."""
    assert storage.read("fresh", 34) is None
    with pytest.raises(StaleTokenError):
        storage.write("fresh", "of client 1", 33)
    assert storage.read("fresh", 34) is None


def test_what_a_newer_holder_has_read_is_not_overwritten_by_a_stale_one(storage: Storage) -> None:
    """Fault 4: reads carry no version, so a read-modify-write can lose an update."""
    storage.write("key0", "100", 33)
    seen = storage.read("key0", 34)
    with pytest.raises(StaleTokenError):
        storage.write("key0", "150", 33)
    assert storage.read("key0", 34) == seen == "100"


@pytest.mark.parametrize(("kind", "count"), [("memory", 2_000), ("file", 40)])
def test_many_threads_write_in_the_order_of_their_tokens(
    tmp_path: Path, kind: str, count: int
) -> None:
    """Fault 5: a map that threads change without a lock."""
    guard: FencingGuard[Any] = FencingGuard()
    if kind == "file":
        guard = FencingGuard(SQLiteStore(tmp_path / "tokens.db"))
    written: list[int] = []

    def write(first: int) -> None:
        for token in range(first, count, 4):
            try:
                with guard.guarding(R, token):
                    written.append(token)
            except StaleTokenError:
                pass

    in_threads(*[lambda n=n: write(n) for n in range(1, 5)])
    assert written == sorted(written)
    assert guard.highest(R) == written[-1] == count - 1


# ---- the check and the write are one step


def in_threads(*bodies: Callable[[], object]) -> None:
    """Run all of them at once; whatever one raises is raised here."""
    raised: list[BaseException] = []

    def run(body: Callable[[], object]) -> None:
        try:
            body()
        except BaseException as error:
            raised.append(error)

    threads = [threading.Thread(target=run, args=(body,), daemon=True) for body in bodies]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(TIMEOUT_S)
        assert not thread.is_alive(), "a thread hangs"
    if raised:
        raise raised[0]


@pytest.fixture(params=["memory", "file", "one-connection", "two-connections"])
def two_guards(request: pytest.FixtureRequest, tmp_path: Path, connect: Any) -> Any:
    """The guards of two threads, on the same tokens."""
    if request.param == "memory":
        store = MemoryStore()
        return FencingGuard(store), FencingGuard(store)
    if request.param == "file":
        path = tmp_path / "tokens.db"
        return FencingGuard(SQLiteStore(path)), FencingGuard(SQLiteStore(path))
    first = connect()
    second = first if request.param == "one-connection" else connect()
    return FencingGuard(DatabaseStore(first)), FencingGuard(DatabaseStore(second))


@pytest.mark.parametrize("newer_first", [False, True])
def test_another_token_waits_until_a_guarded_body_has_ended(
    two_guards: Any, newer_first: bool
) -> None:
    first, second = (34, 33) if newer_first else (33, 34)
    events: list[str] = []
    is_inside, other_comes = threading.Event(), threading.Event()

    def hold() -> None:
        with two_guards[0].guarding(R, first):
            events.append("first begins")
            is_inside.set()
            assert other_comes.wait(TIMEOUT_S)
            other_comes.clear()
            other_comes.wait(0.03)  # nothing shows that it waits: give it the time to go wrong
            events.append("first ends")

    def come() -> None:
        assert is_inside.wait(TIMEOUT_S)
        other_comes.set()
        try:
            with two_guards[1].guarding(R, second):
                events.append("second accepted")
        except StaleTokenError:
            events.append("second refused")

    in_threads(hold, come)
    fate = "second refused" if newer_first else "second accepted"
    assert events == ["first begins", "first ends", fate]


def test_in_memory_other_resources_do_not_wait() -> None:
    guard = FencingGuard()
    with guard.guarding(R, 33):
        in_threads(lambda: guard.check("invoice-8", 33))


# ---- databases: one transaction


@pytest.fixture(params=list(WAYS))
def database(request: pytest.FixtureRequest, connect: Any) -> Any:
    """A guard on a connection of every kind, and that connection."""
    connection = connect(request.param)
    connection.execute("CREATE TABLE invoices (id INTEGER PRIMARY KEY, total INTEGER)")
    connection.execute("INSERT INTO invoices VALUES (7, 100)")
    connection.commit()
    return FencingGuard(DatabaseStore(connection)), connection


@pytest.fixture
def total(connect: Any) -> Callable[[], int]:
    """What another connection sees: what is committed."""

    def total() -> int:
        return int(connect().execute("SELECT total FROM invoices").fetchone()[0])

    return total


def test_the_write_and_its_token_are_committed_together(database: Any, total: Any) -> None:
    guard, _ = database
    with guard.guarding(R, 33) as cursor:
        cursor.execute("UPDATE invoices SET total = 150")
        assert total() == 100
    assert total() == 150
    assert guard.highest(R) == 33


def test_a_body_that_fails_leaves_nothing_behind(database: Any, total: Any) -> None:
    guard, connection = database
    guard.check(R, 32)
    for error in (ValueError, KeyboardInterrupt):
        with pytest.raises(error), guard.guarding(R, 33) as cursor:
            cursor.execute("UPDATE invoices SET total = 150")
            raise error
    assert (total(), guard.highest(R)) == (100, 32)
    with guard.guarding(R, 33) as cursor:
        cursor.execute("UPDATE invoices SET total = 160")
    assert total() == 160
    assert connection.execute("SELECT total FROM invoices").fetchone() == (160,)


def test_a_statement_that_fails_is_the_drivers_error(database: Any) -> None:
    guard, _ = database
    with pytest.raises(sqlite3.IntegrityError), guard.guarding(R, 33) as cursor:
        cursor.execute("INSERT INTO invoices VALUES (7, 100)")
    assert guard.highest(R) == 0


def test_the_cursor_is_of_no_use_after_the_body(database: Any, total: Any) -> None:
    guard, _ = database
    with guard.guarding(R, 33) as cursor:
        pass
    with pytest.raises(sqlite3.ProgrammingError):
        cursor.execute("UPDATE invoices SET total = 150")
    assert total() == 100


@pytest.mark.parametrize(
    "ends",
    [
        lambda connection, cursor: cursor.execute("COMMIT"),
        lambda connection, cursor: cursor.execute("ROLLBACK"),
        lambda connection, cursor: cursor.executescript("SELECT 1"),
    ],
    ids=["commit", "rollback", "script"],
)
def test_a_body_that_ends_its_transaction_itself_is_told(connect: Any, ends: Any) -> None:
    connection = connect()
    guard = FencingGuard(DatabaseStore(connection))
    with pytest.raises(GuardUseError, match="ended its transaction"):
        with guard.guarding(R, 33) as cursor:
            ends(connection, cursor)
            cursor.execute("CREATE TABLE IF NOT EXISTS afterwards (a)")
    assert not is_refused(guard, 34)


def test_a_connection_with_an_open_transaction_is_refused(connect: Any) -> None:
    connection = connect()
    connection.execute("CREATE TABLE a (a)")
    connection.execute("INSERT INTO a VALUES (1)")
    guard = FencingGuard(DatabaseStore(connection))
    with pytest.raises(GuardUseError, match="has a transaction open"), guard.guarding(R, 33):
        pytest.fail("the body ran")
    connection.rollback()
    assert not is_refused(guard, 33)


def test_a_guard_inside_a_guard_is_refused_where_it_could_not_work(guard: Any) -> None:
    with guard.guarding(R, 33):
        with pytest.raises(GuardUseError, match="this very thread"):
            guard.check(R, 34)
    assert not is_refused(guard, 34)


def test_two_guards_on_one_connection_are_not_nested_either(connect: Any) -> None:
    connection = connect("none")
    one, other = (FencingGuard(DatabaseStore(connection, table=name)) for name in ("t1", "t2"))
    with one.guarding(R, 33), pytest.raises(GuardUseError, match="this very thread"):
        other.check("invoice-8", 33)
    other.check("invoice-8", 33)


def test_in_memory_another_resource_may_be_guarded_inside() -> None:
    guard = FencingGuard()
    with guard.guarding(R, 33), guard.guarding("invoice-8", 33):
        pass
    assert guard.highest("invoice-8") == 33


@pytest.mark.parametrize(
    "factory",
    [
        sqlite3.Row,
        lambda cursor, row: dict(zip("t", row, strict=True)),
        lambda cursor, row: row[0],
        lambda cursor, row: object(),
        None,
    ],
)
def test_rows_may_have_any_shape(connect: Any, factory: Any) -> None:
    connection = connect()
    connection.row_factory = factory
    guard = FencingGuard(DatabaseStore(connection))
    guard.check(R, 34)
    assert guard.highest(R) == 34
    assert is_refused(guard, 33)
    with guard.guarding(R, 34) as cursor:
        assert cursor.row_factory is factory, "the body's own are as its connection has them"


class RowsAsDicts(sqlite3.Cursor):
    """As other drivers have cursors for it, and no row factory."""

    row_factory = property(lambda self: self._no_such_attribute)

    def fetchone(self) -> Any:
        row = super().fetchone()
        return None if row is None else {"token": row[0]}


def test_a_driver_without_row_factories_may_make_dicts_of_rows(tmp_path: Path) -> None:
    class Connection(sqlite3.Connection):
        def cursor(self, factory: Any = RowsAsDicts) -> Any:
            return super().cursor(factory)

    with closing(sqlite3.connect(tmp_path / "a.db", factory=Connection)) as connection:
        guard = FencingGuard(DatabaseStore(connection))
        guard.check(R, 34)
        assert guard.highest(R) == 34


# ---- tables


def test_the_table_is_made_on_first_use_or_when_told(connect: Any) -> None:
    connection = connect()
    guard = FencingGuard(DatabaseStore(connection))
    tables = "SELECT name FROM sqlite_master WHERE type = 'table'"
    assert connection.execute(tables).fetchall() == []
    guard.create_table()
    guard.create_table()
    FencingGuard(DatabaseStore(connect())).create_table()
    assert connection.execute(tables).fetchall() == [("holdfast_fencing",)]
    assert connection.execute("SELECT * FROM holdfast_fencing").fetchall() == []


def test_many_may_make_the_table_at_once(connect: Any) -> None:
    guards = [FencingGuard(DatabaseStore(connect())) for _ in range(4)]
    in_threads(*[lambda guard=guard, n=n: guard.check(str(n), 1) for n, guard in enumerate(guards)])
    assert [guards[0].highest(str(n)) for n in range(4)] == [1, 1, 1, 1]


def test_a_table_of_ones_own_name_is_kept_apart(connect: Any) -> None:
    connection = connect()
    mine = FencingGuard(DatabaseStore(connection, table="main.Locks_2"))
    mine.check(R, 34)
    assert connection.execute("SELECT * FROM locks_2").fetchall() == [(R, 34)]
    assert FencingGuard(DatabaseStore(connection)).highest(R) == 0


@pytest.mark.parametrize(
    "name",
    ["", "1a", "a b", "a;b", 'a"b', "a.b.c", ".a", "a.", "a-b", "é", "a\n", "a" * 64, None, b"a"],
)
def test_a_table_name_that_is_none_is_refused(connect: Any, name: Any) -> None:
    with pytest.raises(ValueError, match="name of a table"):
        DatabaseStore(connect(), table=name)


def test_a_table_that_is_something_else_is_the_drivers_error(connect: Any) -> None:
    connection = connect()
    connection.execute("CREATE TABLE holdfast_fencing (something TEXT)")
    with pytest.raises(sqlite3.OperationalError, match="no such column"):
        FencingGuard(DatabaseStore(connection)).check(R, 33)


def test_a_locked_database_is_the_drivers_error_and_waits_once(connect: Any) -> None:
    busy = connect("none")
    busy.execute("BEGIN IMMEDIATE")
    guard = FencingGuard(DatabaseStore(connect(timeout=0.01)))
    with pytest.raises(sqlite3.OperationalError, match="locked"):
        guard.check(R, 33)
    busy.execute("ROLLBACK")
    guard.check(R, 33)


# ---- SQLite files


def test_tokens_in_a_file_outlive_the_process_that_saw_them(tmp_path: Path) -> None:
    path = tmp_path / "tokens.db"
    FencingGuard(SQLiteStore(path)).check(R, 34)
    assert is_refused(FencingGuard(SQLiteStore(str(path))), 33)


def test_what_a_file_guards_may_be_in_that_file(tmp_path: Path) -> None:
    guard = FencingGuard(SQLiteStore(tmp_path / "tokens.db"))
    with guard.guarding(R, 33) as cursor:
        cursor.execute("CREATE TABLE invoices (total INTEGER)")
        cursor.execute("INSERT INTO invoices VALUES (100)")
    with pytest.raises(ZeroDivisionError), guard.guarding(R, 34) as cursor:
        cursor.execute("UPDATE invoices SET total = ?", (1 // 0,))
    with guard.guarding(R, 33) as cursor:
        assert cursor.execute("SELECT total FROM invoices").fetchall() == [(100,)]


@pytest.mark.parametrize("path", ["", ":memory:"])
def test_a_file_that_is_none_is_refused(path: str) -> None:
    with pytest.raises(ValueError, match="no file"):
        SQLiteStore(path)


# ---- forks


def forked(when: str, kind: str, tmp_path: Path) -> str:
    """What a forked child's guard does. In an interpreter of its own: this one has threads."""
    done = subprocess.run(
        [sys.executable, "-c", FORKED, when, kind, str(tmp_path / "tokens.db")],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


FORKED = """
import os, signal, sys, threading
from holdfast.compat.fencing import FencingGuard, GuardUseError, SQLiteStore

when, kind, path = sys.argv[1:]
guard = FencingGuard(SQLiteStore(path)) if kind == "file" else FencingGuard()
inside, leave = threading.Event(), threading.Event()

def stay():
    with guard.guarding("r", 33):
        inside.set()
        leave.wait()

def work():
    guard.highest("r")
    threads = [threading.Thread(target=guard.check, args=("r", 33)) for _ in range(3)]
    for each in threads: each.start()
    for each in threads: each.join()
    with guard.guarding("r", 34):
        try: guard.check("r", 34)
        except GuardUseError: print("guarded", flush=True)

staying = threading.Thread(target=stay)
staying.start()
inside.wait()
if when == "after":
    leave.set()
    staying.join()
child = os.fork()
if child == 0:
    signal.alarm(10)
    try: work()
    except GuardUseError as error: print(error, flush=True)
    finally: os._exit(0)
leave.set()
staying.join()
assert os.waitpid(child, 0)[1] == 0
guard.check("r", 34)
"""


@pytest.mark.parametrize(("when", "kind"), [("inside", "memory"), ("after", "file")])
def test_a_forked_child_does_not_wait_for_a_thread_that_stayed_with_the_parent(
    tmp_path: Path, when: str, kind: str
) -> None:
    assert forked(when, kind, tmp_path) == "guarded"


def test_a_child_that_inherits_a_guarded_file_is_told_at_once(tmp_path: Path) -> None:
    assert "start the process by spawn" in forked("inside", "file", tmp_path)


# ---- arguments


@pytest.mark.parametrize(
    ("token", "error", "says"),
    [
        (0, ValueError, "above 0, not 0: was the lock granted"),
        (-1, ValueError, "above 0, not -1"),
        (2**63, ValueError, r"at most 2\^63-1, not 9223372036854775808"),
        (True, TypeError, "must be an int, not bool"),
        (False, TypeError, "must be an int, not bool"),
        ("33", TypeError, "must be an int, not str"),
        (b"33", TypeError, "must be an int"),
        (33.0, TypeError, "must be an int"),
        (None, TypeError, "must be an int, not NoneType"),
    ],
)
def test_what_is_no_token_is_refused_at_once(token: Any, error: Any, says: str) -> None:
    guard = FencingGuard()
    for use in (guard.guarding, guard.check):
        with pytest.raises(error, match=says):
            use(R, token)
    assert guard.highest(R) == 0


@pytest.mark.parametrize(
    ("resource", "error"),
    [
        ("", ValueError),
        ("a" * (RESOURCE_CHARACTERS_MAX + 1), ValueError),
        ("a\0b", ValueError),
        ("\ud800", ValueError),
        (b"a", TypeError),
        (7, TypeError),
        (None, TypeError),
    ],
)
def test_what_is_no_resource_is_refused_at_once(resource: Any, error: Any) -> None:
    guard = FencingGuard()
    for use in (guard.guarding, guard.check, lambda name, _: guard.highest(name)):
        with pytest.raises(error, match="resource"):
            use(resource, 33)


def test_the_error_can_be_pickled() -> None:
    error = pickle.loads(pickle.dumps(StaleTokenError(R, 33, 34)))
    assert (error.resource, error.token, error.highest_token) == (R, 33, 34)


# ---- drivers


@pytest.mark.parametrize("connection", [None, "a.db", object()])
def test_what_is_no_connection_is_refused(connection: Any) -> None:
    with pytest.raises(TypeError, match=r"DB-API 2\.0 connection"):
        DatabaseStore(connection)


class Wrapped:
    """A connection that hides whose it is, as a pool's does."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)


def test_the_driver_of_a_connection_in_disguise_is_asked_for(connect: Any) -> None:
    with pytest.raises(TypeError, match="driver=MODULE"):
        DatabaseStore(Wrapped(connect()))
    guard = FencingGuard(DatabaseStore(Wrapped(connect()), driver=sqlite3))
    guard.check(R, 34)
    assert is_refused(guard, 33)


class OtherStyle(ModuleType):
    """sqlite3 under another paramstyle. It understands ?, :1 and :name itself."""

    Error = sqlite3.Error
    sqlite_version = sqlite3.sqlite_version

    def __init__(self, paramstyle: str) -> None:
        super().__init__("other_style")
        self.paramstyle = paramstyle


@pytest.mark.parametrize("style", ["qmark", "numeric", "named"])
def test_parameters_are_given_in_the_drivers_own_style(connect: Any, style: str) -> None:
    guard = FencingGuard(DatabaseStore(connect(), driver=OtherStyle(style)))
    guard.check(R, 34)
    assert is_refused(guard, 33)


def test_a_paramstyle_that_is_none_is_refused(connect: Any) -> None:
    with pytest.raises(ValueError, match="paramstyle"):
        DatabaseStore(connect(), driver=OtherStyle("roman"))


class CountsNothing(sqlite3.Cursor):
    """PEP 249 lets a driver not know how many rows a statement has found."""

    rowcount = -1  # type: ignore[assignment]


class Uncounted(sqlite3.Connection):
    def cursor(self, *_: object) -> Any:  # type: ignore[override]
        return super().cursor(CountsNothing)


def test_a_driver_that_cannot_count_rows_is_found_out_before_the_body(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "a.db", factory=Uncounted)) as connection:
        guard = FencingGuard(DatabaseStore(connection))
        guard.check(R, 33)  # a row that was not there is inserted: nothing to count
        with pytest.raises(GuardUseError, match="FOUND_ROWS"), guard.guarding(R, 34):
            pytest.fail("the body ran")
