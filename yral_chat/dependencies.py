"""Is what the service stands on well? For /health?deep=1 and /metrics.

Each answer is {"status", "latency_ms", "error"} and more; nothing here raises.
"""

import os
import shutil
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.cache import cache

from yral_chat import metric_files, replication
from yral_chat.log import told
from yral_chat.replication import LATE, sqlite_file

LEAST_FREE = 0.05  # of a disk
LEAST_FREE_BYTES = 500 * 1024 * 1024
ASKED_EVERY = 10.0  # seconds: the bucket of the replica, at most


def measured(check: Callable[[], None]) -> dict[str, Any]:
    started, error = time.perf_counter(), None
    try:
        check()
    except Exception as exc:  # whatever a backend raises
        error = told(exc)
    return shown(error, latency_ms=round((time.perf_counter() - started) * 1000, 2))


def shown(error: str | None, *, latency_ms: float = 0.0, **facts: Any) -> dict[str, Any]:
    return {"status": "down" if error else "up", "latency_ms": latency_ms, "error": error, **facts}


def cache_health() -> dict[str, Any]:
    return measured(_use_cache)


def _use_cache() -> None:
    if not cache_keeps():
        raise OSError(0, "the cache doesn't keep what it's given")


def cache_keeps() -> bool:
    """What it's given, for a moment at least. Raises what its driver raises."""
    key, value = f"health-{uuid.uuid4()}", uuid.uuid4().hex
    cache.set(key, value, 10)
    kept = cache.get(key)
    cache.delete(key)
    return bool(kept == value)


def folders() -> dict[str, Path]:
    """Those that grow; the metrics' one where it has a disk of its own."""
    found = {"media": settings.MEDIA_UPLOAD_DIR} if not settings.USE_S3 else {}
    if (database := sqlite_file()) is not None:
        found["database"] = database.parent
    if settings.LOG_FILE:
        found["logs"] = (settings.BASE_DIR / settings.LOG_FILE).parent
    there = {name: folder for name, folder in found.items() if os.path.isdir(folder)}
    with suppress(OSError):
        metrics = metric_files.home()
        if settings.METRICS_ENABLED and metrics.stat().st_dev not in {
            folder.stat().st_dev for folder in there.values()
        }:
            there["metrics"] = metrics
    return there


def sqlite_files(database: Path) -> dict[str, os.stat_result]:
    """The database's and its log's, which comes and goes."""
    found = {}
    for name, file in {"database": database, "wal": replication.beside(database, "-wal")}.items():
        with suppress(OSError):
            found[name] = file.stat()
    return found


def is_nearly_full(disk: Any) -> bool:
    """What shutil.disk_usage told of it."""
    return bool(disk.free < min(LEAST_FREE_BYTES, LEAST_FREE * disk.total))


def disk_health() -> dict[str, Any]:
    free = {}
    for name, folder in folders().items():
        with suppress(OSError):  # gone, or out of reach: who uses it says so
            free[name] = shutil.disk_usage(folder)
    full = [name for name, disk in free.items() if is_nearly_full(disk)]
    error = f"The disk of {', '.join(full)} is nearly full." if full else None
    return shown(error, free_bytes={name: disk.free for name, disk in free.items()})


def replica_health() -> dict[str, Any]:
    """Of SQLite's copy: Litestream's in the bucket, or one under REPLICA_PATH. `unknown` where it can't be told."""
    database = sqlite_file()
    if database is None or not (settings.ENABLE_LITESTREAM or settings.REPLICA_PATH):
        return {**shown(None), "status": "unknown"}
    if settings.ENABLE_LITESTREAM:
        return bucket_health(database, int(time.monotonic() / ASKED_EVERY))
    return compared(database, settings.REPLICA_PATH)


@lru_cache(maxsize=1)
def bucket_health(database: Path, moment: int) -> dict[str, Any]:
    """The same answer for the same moment: it asks over the network."""
    drill, behind, error = replication.last_drill(database), None, None
    try:
        behind = round(replication.lateness(database), 1)
    except replication.Unusable as exc:
        error = str(exc)
    if behind is not None and behind > LATE:
        error = f"The replica lacks the last {behind:.0f} s."
    if drill and not drill["ok"]:
        error = error or "The last restore drill failed: run manage.py restore_drill."
    known = ("at", "ok", "seconds", "newest_message_age_seconds", "behind_seconds")
    return shown(error, behind_seconds=behind, restore_drill=drill and {name: drill.get(name) for name in known})


def compared(database: Path, replica: str) -> dict[str, Any]:
    """How old the replica's newest file is, and how much later the database was written."""
    newest = _newest(replica)
    if newest is None:
        return shown("There is no file under REPLICA_PATH.")
    written = max((file.st_mtime for file in sqlite_files(database).values()), default=0.0)
    behind = max(0.0, written - newest)
    late = f"The replica lacks the last {behind:.0f} s." if behind > LATE else None
    return shown(late, age_seconds=round(max(0.0, time.time() - newest), 1), behind_seconds=round(behind, 1))


def _newest(path: str) -> float | None:
    """When a file under it was last written."""
    times = []
    for folder, _, names in os.walk(path):
        for name in names:
            try:
                times.append((Path(folder) / name).stat().st_mtime)
            except OSError:  # pruned meanwhile
                continue
    return max(times, default=None)
