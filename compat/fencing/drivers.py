"""What differs between DB-API 2.0 drivers: parameters, errors, and how a transaction begins.

A connection that commits by itself (autocommit) is told BEGIN and COMMIT in SQL. Any other begins a
transaction by itself with the first statement, as PEP 249 has it, and is committed by its method.
sqlite3 is told in SQL too, in whichever of its older ways it handles transactions, except with
`autocommit=False`: there one is always open.
"""

from __future__ import annotations

import inspect
import sys
from types import ModuleType
from typing import Any, cast

from .errors import GuardUseError

_STYLES = {
    "qmark": "?",
    "numeric": ":{place}",
    "named": ":{name}",
    "format": "%s",
    "pyformat": "%({name})s",
}
_NAMED = ("named", "pyformat")

# Where drivers say that a transaction is open; some as a property, some as a method.
_IN_TRANSACTION = ("in_transaction", "_in_transaction", "transaction_in_progress")


class Driver:
    """One driver module."""

    def __init__(self, module: ModuleType) -> None:
        self.name = module.__name__
        self.error = cast("type[Exception]", module.Error)
        self.is_sqlite = hasattr(module, "sqlite_version")
        self._style = cast(str, module.paramstyle)
        if self._style not in _STYLES:
            raise ValueError(f"{self.name} has a paramstyle that is none: {self._style!r}")

    @classmethod
    def of(cls, connection: object) -> Driver:
        """The driver that made the connection: the nearest module around its class that is one."""
        for kind in type(connection).__mro__:
            name = kind.__module__
            while name:
                module = sys.modules.get(name)
                if module is not None and hasattr(module, "paramstyle"):
                    return cls(module)
                name = name.rpartition(".")[0]
        raise TypeError(
            f"{type(connection)} is of no DB-API 2.0 driver that is known by its module (none has a"
            " paramstyle); say driver=MODULE"
        )

    def without_row_factory(self, cursor: Any) -> None:
        """Has `cursor` return tuples, whatever its connection was told to make of rows."""
        if hasattr(cursor, "row_factory"):
            # psycopg asks its factory for a function, sqlite3 is content with none.
            cursor.row_factory = None if self.is_sqlite else lambda _: tuple

    def statement(self, template: str, names: tuple[str, ...]) -> Statement:
        """`template` has a {} for each of `names`, in their order."""
        style = _STYLES[self._style]
        places = [style.format(place=place, name=name) for place, name in enumerate(names, 1)]
        return Statement(template.format(*places), names, self._style in _NAMED)


class Statement:
    """SQL with places for parameters, in the driver's own style."""

    def __init__(self, sql: str, names: tuple[str, ...], by_name: bool) -> None:
        self._sql = sql
        self._names = names
        self._by_name = by_name

    def execute(self, cursor: Any, **values: str | int) -> None:
        """Run it on `cursor`. Raises what the driver raises."""
        parameters: object = {name: values[name] for name in self._names}
        if not self._by_name:
            parameters = tuple(values[name] for name in self._names)
        cursor.execute(self._sql, parameters)


class Transaction:
    """One transaction on a connection that has none open."""

    def __init__(self, connection: Any, driver: Driver) -> None:
        self._connection = connection
        self._by_sql = _commits_by_itself(connection, driver)

    def begin(self) -> None:
        """Raises what the driver raises."""
        if self._by_sql:
            self.execute("BEGIN")

    def commit(self) -> None:
        """Raises what the driver raises."""
        if self._by_sql:
            self.execute("COMMIT")
        else:
            self._connection.commit()

    def rollback(self) -> None:
        """Raises what the driver raises."""
        if self._by_sql:
            self.execute("ROLLBACK")
        else:
            self._connection.rollback()

    def execute(self, sql: str) -> None:
        """Run a statement without parameters."""
        cursor = self._connection.cursor()
        try:
            cursor.execute(sql)
        finally:
            cursor.close()


def check_connection(connection: Any) -> None:
    """Raises TypeError for what is no DB-API connection that can be used here."""
    for name in ("cursor", "commit", "rollback"):
        if not callable(getattr(connection, name, None)):
            raise TypeError(f"a DB-API 2.0 connection is needed, not {connection!r}")
    if inspect.iscoroutinefunction(connection.commit):
        raise TypeError(f"{connection!r} is for asyncio; the guard needs one that is not")


def check_idle(connection: Any, driver: Driver) -> None:
    """Raises GuardUseError if the driver can tell that a transaction is open."""
    if driver.is_sqlite and getattr(connection, "autocommit", None) is False:
        return  # one is always open, with or without anything in it
    if _in_transaction(connection):
        raise GuardUseError(
            "the connection has a transaction open, which the guard would end: commit it or roll it"
            " back first, or give the guard a connection of its own"
        )


def _in_transaction(connection: Any) -> bool:
    # psycopg and psycopg2; 0 is idle.
    status = getattr(getattr(connection, "info", None), "transaction_status", None)
    if status is not None:
        return bool(status)
    for name in _IN_TRANSACTION:
        told = getattr(connection, name, None)
        if told is not None:
            return bool(told() if callable(told) else told)
    return False


def _commits_by_itself(connection: Any, driver: Driver) -> bool:
    autocommit = getattr(connection, "autocommit", None)
    if driver.is_sqlite:
        return autocommit is not False
    if callable(autocommit):  # MySQL's drivers set with this method, and ask with another
        autocommit = getattr(connection, "get_autocommit", bool)()
    return bool(autocommit)
