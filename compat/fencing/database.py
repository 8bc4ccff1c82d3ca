"""Highest tokens in a database, beside what they guard.

A resource is a row. The transaction of a guarded body first raises the row's token, which takes the
row's lock and keeps it until the end: a racing transaction of another token stands still at its own
first statement, and then sees what this one has left. Nothing here asks for more than READ
COMMITTED:

    token 33   BEGIN, UPDATE ... 33    body    COMMIT
    token 34         BEGIN, UPDATE ... 34 (waits)    34 <- 33: goes on    body    COMMIT

    token 34   BEGIN, UPDATE ... 34    body    COMMIT
    token 33         BEGIN, UPDATE ... 33 (waits)    34 > 33: no row, refused

What the database has to know:

    UPDATE, SELECT, INSERT   with the number of rows that an UPDATE has found
    SAVEPOINT name, ROLLBACK TO SAVEPOINT name, RELEASE SAVEPOINT name
    CREATE TABLE IF NOT EXISTS, unless the table has been made beforehand:
        (resource VARCHAR(512) NOT NULL PRIMARY KEY, token BIGINT NOT NULL)
    BEGIN, COMMIT, ROLLBACK, on a connection that commits by itself
"""

from __future__ import annotations

import contextlib
import os
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType
from typing import Any
from weakref import WeakValueDictionary

from .drivers import Driver, Transaction, check_connection, check_idle
from .errors import GuardUseError, StaleTokenError
from .turnstile import Turnstile

TABLE = "holdfast_fencing"
BUSY_TIMEOUT_MS = 5_000

_TABLE_NAME = re.compile(r"([A-Za-z_][A-Za-z0-9_]{0,62}\.)?[A-Za-z_][A-Za-z0-9_]{0,62}", re.ASCII)
_SAVEPOINT = "holdfast_guard"

# The first round may find that the row was made a moment ago; the second finds it there.
_ROUNDS_MAX = 3

# One for each connection, whichever stores use it: what two threads do on one connection is one
# transaction to the database, and would guard nothing.
_turnstiles: WeakValueDictionary[int, Turnstile] = WeakValueDictionary()
_turnstiles_lock = threading.Lock()


def _after_fork() -> None:
    """Whoever had it has stayed with the parent."""
    global _turnstiles_lock
    _turnstiles_lock = threading.Lock()


os.register_at_fork(after_in_child=_after_fork)


class Table:
    """The table of highest tokens, in one driver's words."""

    def __init__(self, name: str, driver: Driver) -> None:
        if not isinstance(name, str) or not _TABLE_NAME.fullmatch(name):
            raise ValueError(
                "the name of a table is letters, digits and _, at most 63, perhaps after the name"
                f" of a schema and a dot; not {name!r}"
            )
        self._driver = driver
        self.probe = f"SELECT resource, token FROM {name} WHERE 1 = 0"
        self.create = (
            f"CREATE TABLE IF NOT EXISTS {name}"
            " (resource VARCHAR(512) NOT NULL PRIMARY KEY, token BIGINT NOT NULL)"
        )
        self._raise = driver.statement(
            f"UPDATE {name} SET token = {{}} WHERE resource = {{}} AND token <= {{}}",
            ("token", "resource", "token"),
        )
        self._select = driver.statement(
            f"SELECT token FROM {name} WHERE resource = {{}}", ("resource",)
        )
        self._insert = driver.statement(
            f"INSERT INTO {name} (resource, token) VALUES ({{}}, {{}})", ("resource", "token")
        )

    def highest(self, cursor: Any, resource: str) -> int:
        """The row's token, 0 if there is no row."""
        self._select.execute(cursor, resource=resource)
        row = cursor.fetchone()
        if row is None:
            return 0
        # Drivers without a row factory may have a kind of cursor that makes dicts of rows.
        return int(next(iter(row.values())) if isinstance(row, Mapping) else row[0])

    def raise_token(self, cursor: Any, resource: str, token: int) -> None:
        """Make `token` the row's, and hold the row's lock. Raises StaleTokenError."""
        for _ in range(_ROUNDS_MAX):
            self._raise.execute(cursor, resource=resource, token=token)
            if cursor.rowcount == 1:
                return
            highest = self.highest(cursor, resource)
            if highest > token:
                raise StaleTokenError(resource, token, highest)
            # Not higher, and yet no row was found: another transaction has just made it, so that
            # its lock is not ours. Once more.
            if highest == 0 and self._has_made(cursor, resource, token):
                return
        raise GuardUseError(
            f"{self._driver.name} does not say how many rows an UPDATE has found (cursor.rowcount);"
            " MySQL's drivers do with the client flag FOUND_ROWS"
        )

    def _has_made(self, cursor: Any, resource: str, token: int) -> bool:
        """Insert the row; False if it is there by now, made by one who has committed meanwhile."""
        cursor.execute(f"SAVEPOINT {_SAVEPOINT}")
        try:
            self._insert.execute(cursor, resource=resource, token=token)
        except self._driver.error:
            # Not every driver says IntegrityError: whether the row is there says more.
            cursor.execute(f"ROLLBACK TO SAVEPOINT {_SAVEPOINT}")
            if self.highest(cursor, resource) == 0:
                raise
            return False
        cursor.execute(f"RELEASE SAVEPOINT {_SAVEPOINT}")
        return True


class _NoTable(Exception):
    """The table cannot be read."""


class Session:
    """A table on one connection."""

    def __init__(self, connection: Any, driver: Driver, table: Table) -> None:
        self._connection = connection
        self._driver = driver
        self._table = table

    @contextmanager
    def guarded(self, resource: str, token: int) -> Iterator[Any]:
        """A transaction around a body, which gets a cursor of its own."""
        with self._transaction() as transaction:
            with self._plain_cursor() as cursor:
                self._table.raise_token(cursor, resource, token)
            # Released after the body, this shows that its transaction was ours to the end.
            transaction.execute(f"SAVEPOINT {_SAVEPOINT}")
            with self._cursor() as cursor:
                yield cursor
            self._release(transaction)

    def highest(self, resource: str) -> int:
        """The highest token seen, 0 if there was none."""
        with self._transaction(), self._plain_cursor() as cursor:
            return self._table.highest(cursor, resource)

    def create_table(self) -> None:
        """Create the table if it is not there. Two may try at once."""
        if self._has_table():
            return
        try:
            with self._transaction() as transaction:
                transaction.execute(self._table.create)
        except self._driver.error:
            # In PostgreSQL, IF NOT EXISTS or not, one of two that create it at once fails.
            if not self._has_table():
                raise

    def _has_table(self) -> bool:
        """Looked for first: one who may use the table need not be one who may create it."""
        try:
            with self._transaction() as transaction:
                self._probe(transaction)
        except _NoTable:
            return False
        return True

    def _probe(self, transaction: Transaction) -> None:
        try:
            transaction.execute(self._table.probe)
        except self._driver.error as error:
            raise _NoTable from error

    @contextmanager
    def _transaction(self) -> Iterator[Transaction]:
        check_idle(self._connection, self._driver)
        transaction = Transaction(self._connection, self._driver)
        try:
            transaction.begin()
            yield transaction
            transaction.commit()
        except BaseException:
            # The connection may be gone, and the transaction with it; the first error tells more.
            with contextlib.suppress(Exception):
                transaction.rollback()
            raise

    @contextmanager
    def _cursor(self) -> Iterator[Any]:
        cursor = self._connection.cursor()
        try:
            yield cursor
        finally:
            with contextlib.suppress(self._driver.error):
                cursor.close()

    @contextmanager
    def _plain_cursor(self) -> Iterator[Any]:
        with self._cursor() as cursor:
            self._driver.without_row_factory(cursor)
            yield cursor

    def _release(self, transaction: Transaction) -> None:
        try:
            transaction.execute(f"RELEASE SAVEPOINT {_SAVEPOINT}")
        except self._driver.error as error:
            raise GuardUseError(
                "the guarded body has ended its transaction itself (a commit, a rollback, a"
                " statement that commits), or went on after a statement in it had failed. What it"
                " committed stays, and what it did after that was not guarded; the rest is rolled"
                " back. Leave commit and rollback to the guard"
            ) from error


class DatabaseStore:
    """Tokens, and what they guard, in the database of a DB-API 2.0 connection.

    Tested with SQLite (sqlite3), and with PostgreSQL (psycopg, pg8000). Expected to work, but not
    tested: MySQL and MariaDB with InnoDB, connected with the client flag FOUND_ROWS (without it the
    first guarded body is refused with GuardUseError). Does not work with Oracle and SQL Server,
    whose savepoints are other statements. What is needed stands in this module's docstring.

    Autocommit or not, the guard makes transactions of its own: the connection must have none open
    when a guarded body begins (GuardUseError, where the driver can tell; else what is in it is
    committed or rolled back with the body), and nobody may use it otherwise meanwhile. Threads that
    share it through guards wait for one another. READ COMMITTED is enough. Under REPEATABLE READ
    and SERIALIZABLE the loser of a race may get the driver's serialization or integrity error:
    nothing was written, try again.

    table   where the tokens are, perhaps with a schema: "locks.holdfast_fencing". Made on first
            use if it is not there.
    driver  the driver's module, for a connection that hides whose it is (a pool's, say)
    """

    def __init__(
        self, connection: Any, *, table: str = TABLE, driver: ModuleType | None = None
    ) -> None:
        check_connection(connection)
        its_driver = Driver.of(connection) if driver is None else Driver(driver)
        self._session = Session(connection, its_driver, Table(table, its_driver))
        self._turnstile = _turnstile_of(connection)
        self._has_table = False

    @contextmanager
    def transaction(self, resource: str, token: int) -> Iterator[Any]:
        """See `Store`. The body gets a cursor."""
        with self._inside(), self._session.guarded(resource, token) as cursor:
            yield cursor

    def highest(self, resource: str) -> int:
        """See `Store`."""
        with self._inside():
            return self._session.highest(resource)

    def create_table(self) -> None:
        """Create the table now, if it is not there: for those who may, before those who may not."""
        with self._inside():
            pass

    @contextmanager
    def _inside(self) -> Iterator[None]:
        self._turnstile.enter("something on this connection")
        try:
            if not self._has_table:
                self._session.create_table()
                self._has_table = True
            yield
        finally:
            self._turnstile.leave()


class SQLiteStore:
    """Tokens in a SQLite file, shared by the processes of a machine; kept when they end.

    What is guarded may be in the same file (the body gets a cursor), or be anything else on the
    machine: SQLite has one writer at a time, so bodies of all resources run one after the other.
    Connections are made when needed, so that threads need no care. Nor do forks, except for a child
    that was forked while somebody was inside a guard of this store: SQLite's notes of who has
    locked the file are wrong in there, and every use raises GuardUseError. Start such a process by
    `spawn` or `forkserver`.

    busy_timeout_ms  for how long to wait for other writers before sqlite3.OperationalError
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        table: str = TABLE,
        busy_timeout_ms: int = BUSY_TIMEOUT_MS,
    ) -> None:
        import sqlite3

        self._path = os.fspath(path)
        if self._path in ("", ":memory:"):
            raise ValueError(f"{self._path!r} is no file: every connection would have its own")
        self._connect = sqlite3.connect
        self._busy_timeout_ms = busy_timeout_ms
        self._driver = Driver(sqlite3)
        self._table = Table(table, self._driver)
        self._turnstile = Turnstile()
        self._has_table = False

    @contextmanager
    def transaction(self, resource: str, token: int) -> Iterator[Any]:
        """See `Store`. The body gets a cursor on the file."""
        with self._inside() as session, session.guarded(resource, token) as cursor:
            yield cursor

    def highest(self, resource: str) -> int:
        """See `Store`."""
        with self._inside() as session:
            return session.highest(resource)

    def create_table(self) -> None:
        """Create the file and the table now, if they are not there."""
        with self._inside():
            pass

    @contextmanager
    def _inside(self) -> Iterator[Session]:
        if self._turnstile.was_forked_occupied:
            raise GuardUseError(
                f"this process was forked while something in {self._path} was being guarded, and"
                " SQLite cannot use the file in it: start the process by spawn or forkserver, or"
                " while nobody is inside a guard"
            )
        self._turnstile.enter(f"something in {self._path}")
        try:
            with contextlib.closing(self._connection()) as connection:
                session = Session(connection, self._driver, self._table)
                if not self._has_table:
                    session.create_table()
                    self._has_table = True
                yield session
        finally:
            self._turnstile.leave()

    def _connection(self) -> Any:
        return self._connect(self._path, timeout=self._busy_timeout_ms / 1000, isolation_level=None)


def _turnstile_of(connection: Any) -> Turnstile:
    # The store keeps both alive, so no other connection gets this id while the entry is there.
    with _turnstiles_lock:
        return _turnstiles.setdefault(id(connection), Turnstile())
