import datetime as dt
import os
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from yral_chat import replication


class Command(BaseCommand):
    help = "Restore SQLite's copy from the bucket: to a file, or with --in-place as the service's database."
    requires_system_checks = []

    def add_arguments(self, parser: CommandParser) -> None:
        to = parser.add_mutually_exclusive_group(required=True)
        to.add_argument("--output", type=Path, help="the file to make; it must not be there yet")
        to.add_argument("--in-place", action="store_true", help="the service is stopped; the old file is kept aside")
        parser.add_argument("--timestamp", help="as of this moment, such as 2026-01-31T12:00:00Z")

    def handle(self, *args: Any, output: Path | None, timestamp: str | None, **options: Any) -> None:
        try:
            path, moment = replication.database(), _as_utc(timestamp)
            if output:
                for suffix in ("", "-wal", "-shm"):  # SQLite would take an old log for the copy's
                    if os.path.lexists(there := replication.beside(output, suffix)):
                        raise CommandError(f"{there} is there already.")
                replication.fetch(path, output, moment)
                self.stdout.write(f"Restored to {output}. Look at it: manage.py verify_database {output}")
            else:
                self._replace(path, moment)
        except (replication.Unusable, OSError) as exc:
            raise CommandError(str(exc)) from exc

    def _replace(self, path: Path, moment: str) -> None:
        """Litestream goes on from there: what the bucket has of later moments stays there as long as its retention."""
        replication.hold(path, patience=0)
        replication.refuse_if_open(path)
        with replication.fetched(path, moment) as restored:
            aside = replication.put_in_place(restored, path)
        kept = f" What was there is now {aside}." if aside else ""
        self.stdout.write(f"Restored.{kept} Start the service.")


def _as_utc(timestamp: str | None) -> str:
    """As Litestream reads it. Without an offset it's UTC."""
    if timestamp is None:
        return ""
    try:
        moment = dt.datetime.fromisoformat(timestamp)
        moment = moment.replace(tzinfo=moment.tzinfo or dt.UTC).astimezone(dt.UTC)
    except (ValueError, OverflowError) as exc:
        raise CommandError("--timestamp must look like 2026-01-31T12:00:00Z.") from exc
    if moment > dt.datetime.now(dt.UTC):
        raise CommandError("--timestamp is in the future. Leave it out to restore the newest state.")
    return moment.isoformat().replace("+00:00", "Z")
