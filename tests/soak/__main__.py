"""A few minutes of faults, retries and kills against the real servers; says at the end whether anything was lost.

    python -m tests.soak --minutes 3 --seed 1 [--database-url postgres://user:password@host/name]
    python -m tests.soak --ordinary [--minutes 10]

The database is a SQLite file in a temporary folder, or one that is made on that PostgreSQL server and dropped again.
An ordinary day is without faults, but with Litestream, uploads and a look at times, memory and SQLite's log (day.py).
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
from psycopg import sql


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__.partition("\n")[0])
    parser.add_argument("--ordinary", action="store_true", help="an ordinary day instead, on SQLite with Litestream")
    parser.add_argument("--minutes", type=float, help="3, of an ordinary day 10")
    parser.add_argument("--seed", type=int, default=1, help="of who does what; when it happens is up to the machine")
    parser.add_argument("--database-url", default="", help="of a PostgreSQL server where databases may be made")
    parser.add_argument("--uvicorn", action="store_true", help="as the second server; else both are gunicorn")
    parser.add_argument("--keep", action="store_true", help="the folder with the servers' logs and the SQLite file")
    asked = parser.parse_args()
    if asked.ordinary and (asked.database_url or asked.uvicorn):
        parser.error("an ordinary day is one of gunicorn on SQLite")
    if asked.minutes is None:
        asked.minutes = 10.0 if asked.ordinary else 3.0
    return asked


@contextmanager
def scratch_database(server_url: str, folder: Path) -> Iterator[str]:
    """Its address."""
    if not server_url:
        yield f"sqlite:///{folder}/disk/chat.db"
        return
    name = sql.Identifier(f"yral_soak_{os.getpid()}")
    with psycopg.connect(server_url, autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE DATABASE {}").format(name))
    try:
        yield urlsplit(server_url)._replace(path=f"/yral_soak_{os.getpid()}").geturl()
    finally:
        with psycopg.connect(server_url, autocommit=True) as connection:
            connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(name))


@contextmanager
def scratch_folder(keep: bool) -> Iterator[Path]:
    if keep:
        folder = tempfile.mkdtemp(prefix="soak-")
        print(f"Logs and data stay in {folder}")
        yield with_a_disk(Path(folder))
        return
    with tempfile.TemporaryDirectory(prefix="soak-", ignore_cleanup_errors=True) as folder:
        yield with_a_disk(Path(folder))


def with_a_disk(folder: Path) -> Path:
    (folder / "disk").mkdir()
    return folder


def main() -> int:
    asked = arguments()
    with scratch_folder(asked.keep) as folder, scratch_database(asked.database_url, folder) as database_url:
        os.environ |= {
            "ENV_FILE": "",
            "DJANGO_SETTINGS_MODULE": "yral_chat.settings",
            "ENVIRONMENT": "development",
            "DATABASE_URL": database_url,
            "JWT_SECRET_KEY": "only-for-the-soak-jwt-Hn5tRw8Yc3Vp6Dk",
        }
        import django

        django.setup()
        from tests.soak import day, run  # what they import needs the settings

        if asked.ordinary:
            return day.soak(minutes=asked.minutes, seed=asked.seed, folder=folder)
        return run.soak(
            minutes=asked.minutes, seed=asked.seed, folder=folder, database_url=database_url, uvicorn=asked.uvicorn
        )


if __name__ == "__main__":
    sys.exit(main())
