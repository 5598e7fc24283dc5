"""All rows of one database into another, SQLite or PostgreSQL, and proof that they arrived."""

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import batched
from pathlib import Path
from typing import Any

from django.apps import apps
from django.core.management import call_command
from django.core.management.color import no_style
from django.db import Error, connections, transaction
from django.db.migrations.executor import MigrationExecutor
from django.db.models import Model

from yral_chat import replication

SOURCE, TARGET = "source", "default"  # migrations that know of one database only must find the target
BATCH = 1000
MADE_BY_MIGRATE = {"django_content_type", "auth_permission", "auth_group", "auth_group_permissions"}
Table = type[Model]


class CopyRefused(Exception):
    """The text says why, and that nothing was copied."""


@dataclass
class Digest:
    """How many rows, and a sum of their hashes: the same in whatever order a database sorts texts."""

    rows: int = 0
    total: int = 0

    def add(self, row: tuple[Any, ...]) -> None:
        self.rows += 1
        text = json.dumps(_plain(row), default=str, sort_keys=True)
        self.total += int.from_bytes(hashlib.sha256(text.encode()).digest())

    def __str__(self) -> str:
        return f"{self.total % 2**256:064x}"[:16]


def _plain(value: Any) -> Any:
    """PostgreSQL's JSON writes 1e22 as the integer that it is."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    return [_plain(one) for one in value] if isinstance(value, list | tuple) else value


def use(source: dict[str, Any], target: dict[str, Any]) -> None:
    """These are the databases of this process from now on."""
    if all(source.get(part) == target.get(part) for part in ("NAME", "HOST", "PORT")):
        raise CopyRefused("Source and target are the same database.")
    if source["ENGINE"].endswith("sqlite3"):
        if not Path(source["NAME"]).is_file():
            raise CopyRefused(f"There is no file {source['NAME']} to copy.")
        _refuse_a_live_one(Path(source["NAME"]).resolve())
        source["OPTIONS"]["transaction_mode"] = "DEFERRED"  # who reads locks nobody out
    for database in (source, target):
        database["OPTIONS"].pop("pool", None)  # its one connection is tried at once
    connections.close_all()
    connections.settings = connections.configure_settings({SOURCE: source, TARGET: target})
    del connections[TARGET]


def _refuse_a_live_one(file: Path) -> None:
    """And let no service start on it till this process has ended."""
    try:
        replication.hold(file, patience=0)
        replication.refuse_if_open(file)
    except (replication.Unusable, OSError) as exc:
        raise CopyRefused(f"{exc} What is written during the copy isn't copied.") from exc


def tables() -> list[Table]:
    return [model for model in apps.get_models(include_auto_created=True) if not model._meta.proxy]


def prepare() -> None:
    """The target's tables. Refuses whatever would be mixed with something else."""
    executor = MigrationExecutor(connections[SOURCE])
    if executor.migration_plan(executor.loader.graph.leaf_nodes()):
        raise CopyRefused("The source isn't migrated to this version. Run migrate on it first.")
    if connections[TARGET].vendor == "sqlite" and not Path(connections[TARGET].settings_dict["NAME"]).exists():
        Path(connections[TARGET].settings_dict["NAME"]).touch(mode=0o600)
    there = set(connections[TARGET].introspection.table_names())
    strange = there - {model._meta.db_table for model in tables()} - {"django_migrations"}
    filled = [
        model._meta.db_table
        for model in tables()
        if model._meta.db_table in there - MADE_BY_MIGRATE and _of(model, TARGET).exists()
    ]
    if strange or filled:
        raise CopyRefused(f"The target isn't empty: it has {', '.join(sorted(strange) or filled)}.")
    call_command("migrate", database=TARGET, interactive=False, verbosity=0)


def copy() -> Iterator[tuple[str, Digest]]:
    """Each table's name and digest, once it's compared. What is yielded counts when the last one was taken."""
    with transaction.atomic(using=SOURCE), transaction.atomic(using=TARGET):
        _one_snapshot()
        for model in tables():  # those that migrate filled may refer to each other
            with connections[TARGET].cursor() as cursor:
                cursor.execute(f"DELETE FROM {_quoted(model._meta.db_table)}")  # noqa: S608
        sent = {model: _copied(model) for model in tables()}
        for sql in connections[TARGET].ops.sequence_reset_sql(no_style(), tables()):
            with connections[TARGET].cursor() as cursor:
                cursor.execute(sql)
        for model, digest in sent.items():
            arrived = digest_of(model, TARGET)
            if arrived != digest:
                raise CopyRefused(
                    f"{model._meta.db_table} arrived changed: {digest.rows} rows ({digest}) were read, "
                    f"{arrived.rows} ({arrived}) written. Nothing was kept."
                )
            yield model._meta.db_table, digest


def _one_snapshot() -> None:
    """SQLite's transactions have one anyway."""
    if connections[SOURCE].vendor == "postgresql":
        with connections[SOURCE].cursor() as cursor:
            cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")


def digest_of(model: Table, database: str) -> Digest:
    digest = Digest()
    for row in _rows(model, database):
        digest.add(row)
    return digest


def _copied(model: Table) -> Digest:
    digest, fields, into = Digest(), model._meta.concrete_fields, connections[TARGET]
    columns = ", ".join(_quoted(str(field.column)) for field in fields)
    slots = ", ".join(["%s"] * len(fields))
    sql = f"INSERT INTO {_quoted(model._meta.db_table)} ({columns}) VALUES ({slots})"  # noqa: S608
    try:
        for batch in batched(_rows(model, SOURCE), BATCH):
            for row in batch:
                digest.add(row)
            prepared = [
                [field.get_db_prep_save(value, into) for field, value in zip(fields, row, strict=True)] for row in batch
            ]
            with into.cursor() as cursor:
                cursor.executemany(sql, prepared)
    except (Error, ValueError) as exc:
        raise CopyRefused(f"{model._meta.db_table} can't be copied: {first_line(exc)} Nothing was kept.") from exc
    return digest


def first_line(exc: Exception) -> str:
    """The others, and what SQLite couldn't decode, may show what users wrote."""
    return f"{re.split('\n| with text ', str(exc), maxsplit=1)[0].rstrip('.')}."


def _rows(model: Table, database: str) -> Iterator[tuple[Any, ...]]:
    names = [field.attname for field in model._meta.concrete_fields]
    yield from _of(model, database).order_by().values_list(*names).iterator(BATCH)


def _of(model: Table, database: str) -> Any:
    return model._base_manager.using(database)


def _quoted(name: str) -> str:
    return connections[TARGET].ops.quote_name(name)
