import time
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError, CommandParser

from conversations import deidentified


class Command(BaseCommand):
    help = (
        "Write the file that dashboards read: SQLite with the bi_ tables, which hold no text and no user. "
        "The service may run meanwhile; who reads the file of before goes on reading it."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--to", type=Path, metavar="FILE", help=f"instead of {settings.ANALYTICS_PATH}")

    def handle(self, *args: Any, to: Path | None, **options: Any) -> None:
        path, began = to or settings.ANALYTICS_PATH, time.monotonic()
        try:
            for name, rows in deidentified.export(path):
                self.stdout.write(f"{name:32} {rows:>12,} rows")
        except deidentified.ExportRefused as exc:
            raise CommandError(str(exc)) from exc
        size = path.stat().st_size / 1_000_000
        self.stdout.write(f"Wrote {path} ({size:.1f} MB) in {time.monotonic() - began:.1f} s.")
