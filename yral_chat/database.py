import os
import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import date, datetime
from functools import cache, cached_property
from typing import Any
from uuid import UUID

from django.conf import settings
from django.core.signals import request_started
from django.db import DatabaseError, connection, transaction
from django.db.backends.signals import connection_created
from django.db.models import Model, QuerySet

from yral_chat import metrics


def release_connection() -> None:
    """Before a long wait: hand PostgreSQL's connection back to the pool. The next query takes one again.

    An idle SQLite connection stays with its thread: reopening one costs more than a turn's SQL.
    """
    if connection.vendor == "postgresql" and not connection.in_atomic_block:
        connection.close()


_writers = threading.Lock()


@contextmanager
def write_transaction() -> Iterator[None]:
    """A short transaction that writes. Don't wait for anybody inside.

    SQLite has one writer at a time, and who waits for its lock polls for it, at last every 0.1 s. So the threads of a
    process queue here, where they are woken in turn, and only the first of them polls.
    """
    queue = _writers if connection.vendor == "sqlite" and not connection.in_atomic_block else nullcontext()
    with queue, transaction.atomic():
        yield


_statements: ContextVar[list[int] | None] = ContextVar("statements", default=None)


def statements_so_far() -> int:
    """How many statements this thread, or what it was copied from, has sent. The difference of two is a request's."""
    count = _statements.get()
    if count is None:
        _statements.set(count := [0])
    return count[0]


def _watch(connection: Any, **_: object) -> None:
    """Each new connection's statements are counted, and so are their errors. With Litestream, the last one that closes
    leaves the WAL as it is: Litestream alone moves it into the database."""
    if settings.ENABLE_LITESTREAM and connection.vendor == "sqlite":
        connection.connection.setconfig(sqlite3.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE)
    metrics.DATABASE_CONNECTIONS.inc()
    connection.opened_file = _file_of(connection)
    if _counted not in connection.execute_wrappers:
        connection.execute_wrappers.insert(0, _counted)


def _counted(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
    if count := _statements.get():
        count[0] += 1
    try:
        return execute(sql, params, many, context)
    except DatabaseError as exc:
        metrics.DATABASE_ERRORS.labels(type(exc).__name__).inc()
        raise


def file_at(path: Any) -> tuple[int, int] | None:
    """Which file the name stands for at the moment."""
    with suppress(OSError):
        found = os.stat(path)
        return found.st_dev, found.st_ino
    return None


def _file_of(connection: Any) -> tuple[int, int] | None:
    return file_at(connection.settings_dict["NAME"]) if connection.vendor == "sqlite" else None


def leave_another_file(**_: object) -> None:
    """At the beginning of a request. A connection to SQLite goes on writing to a file that was deleted or replaced,
    where nobody ever reads it."""
    used: Any = connection
    if used.connection and not used.in_atomic_block and used.opened_file != _file_of(used):
        used.close()


connection_created.connect(_watch)
request_started.connect(leave_another_file)


class Statement:
    """A query of one shape: the ORM compiles it once per process, then it runs with other values.

    Building and compiling a queryset takes 0.2 to 0.6 ms of CPU, several times what the database takes to answer.
    `build` makes a .values() queryset of its arguments and uses each of them once, in order; `examples` are such
    arguments, unlike any constant in the query. With `for_json`, ids and times may come as the text that JSON has
    for them, which spares making an object of each.
    """

    def __init__(self, build: Callable[..., QuerySet[Any, Any]], *examples: object, for_json: bool = False) -> None:
        self.build, self.examples, self.for_json = build, examples, for_json

    @cached_property
    def compiled(self) -> "_Compiled":
        query = self.build(*self.examples).query
        compiler = query.get_compiler(connection=connection)
        sql, params = compiler.as_sql()
        expected = [_for_driver(value) for value in self.examples]
        slots = [place for place, param in enumerate(params) if param in expected]
        if [params[place] for place in slots] != expected:
            raise TypeError(f"This statement doesn't use its arguments once each, in order: {sql}")
        columns = [expression for expression, _, _ in compiler.select]
        converters = compiler.get_converters(columns)
        if self.for_json:
            converters = {place: (_as_text(convert, column), column) for place, (convert, column) in converters.items()}
        names = (*query.values_select, *query.annotation_select)
        return _Compiled(sql, list(params), slots, names, compiler, converters)

    def __call__(self, *values: object) -> list[dict[str, Any]]:
        """The rows, as .values() would give them."""
        made = self.compiled
        params = made.params.copy()
        for place, value in zip(made.slots, values, strict=True):
            params[place] = _for_driver(value)
        with connection.cursor() as cursor:
            cursor.execute(made.sql, params)
            rows: Any = cursor.fetchall()
        if made.converters:
            rows = made.compiler.apply_converters(rows, made.converters)
        return [dict(zip(made.names, row, strict=True)) for row in rows]

    def first(self, *values: object) -> dict[str, Any] | None:
        return next(iter(self(*values)), None)


@dataclass(frozen=True, slots=True)
class _Compiled:
    sql: str
    params: list[Any]
    slots: list[int]
    names: tuple[str, ...]
    compiler: Any
    converters: Any


def _as_text(converters: list[Any], column: Any) -> list[Any]:
    """SQLite keeps ids as 32 hex digits and times without an offset (PostgreSQL needs no converter for either)."""
    if connection.vendor != "sqlite":
        return converters
    text = {"UUIDField": _uuid_text, "DateTimeField": _time_text}.get(column.output_field.get_internal_type())
    return [text] if text else converters


def _uuid_text(value: str | None, *_: object) -> str | None:
    return None if value is None else f"{value[:8]}-{value[8:12]}-{value[12:16]}-{value[16:20]}-{value[20:]}"


def _time_text(value: datetime | None, *_: object) -> str | None:
    return None if value is None else value.isoformat(timespec="microseconds") + "+00:00"


def insert[M: Model](row: M) -> M:
    """What row.save(force_insert=True) does, without signals, with SQL that is made once."""
    fields = row._meta.concrete_fields
    with connection.cursor() as cursor:
        cursor.execute(_insert_sql(type(row)), _prepared(row, fields))
    row._state.adding = False
    return row


def update(row: Model, *names: str) -> None:
    """What row.save(update_fields=names) does, without signals, with SQL that is made once."""
    meta: Any = row._meta
    fields = [*(meta.get_field(name) for name in names), meta.pk]
    with connection.cursor() as cursor:
        cursor.execute(_update_sql(type(row), names), _prepared(row, fields))


@cache
def _insert_sql(model: type[Model]) -> str:
    meta: Any = model._meta
    quote = connection.ops.quote_name
    columns = [quote(field.column) for field in meta.concrete_fields]
    table = quote(meta.db_table)
    return f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({', '.join(['%s'] * len(columns))})"  # noqa: S608


@cache
def _update_sql(model: type[Model], names: tuple[str, ...]) -> str:
    meta: Any = model._meta
    quote = connection.ops.quote_name
    changes = ", ".join(f"{quote(meta.get_field(name).column)} = %s" for name in names)
    return f"UPDATE {quote(meta.db_table)} SET {changes} WHERE {quote(meta.pk.column)} = %s"  # noqa: S608


def _prepared(row: Model, fields: Iterable[Any]) -> list[Any]:
    return [field.get_db_prep_save(getattr(row, field.attname), connection) for field in fields]


def _for_driver(value: object) -> Any:
    if isinstance(value, datetime):
        return connection.ops.adapt_datetimefield_value(value)
    if isinstance(value, date):
        return connection.ops.adapt_datefield_value(value)
    return value.hex if isinstance(value, UUID) and not connection.features.has_native_uuid_field else value


def instance[M: Model](model: type[M], row: Mapping[str, Any]) -> M:
    """A model object of a row; columns that it lacks are deferred."""
    names = [field.attname for field in model._meta.concrete_fields if field.attname in row]
    return model.from_db(connection.alias, names, [row[name] for name in names])
