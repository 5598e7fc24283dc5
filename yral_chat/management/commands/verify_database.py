from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from yral_chat import replication


class Command(BaseCommand):
    help = "Check SQLite's file: every page, index and foreign key; count the rows. It may be in use."
    requires_system_checks = []

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("path", nargs="?", type=Path, help="another file than the service's")
        parser.add_argument("--quick", action="store_true", help="every page only, as at each start")

    def handle(self, *args: Any, path: Path | None, quick: bool, **options: Any) -> None:
        try:
            path = path or replication.database()
            if not path.exists():
                raise CommandError(f"{path}: {replication.MISSING}.")
            found = replication.examine(path, quick=quick)
        except replication.Unusable as exc:
            raise CommandError(str(exc)) from exc
        for table, rows in found.rows.items():
            self.stdout.write(f"{table:32} {rows:>12}")
        if found.problems:
            raise CommandError("\n".join([f"{path} is damaged:", *found.problems]))
        self.stdout.write(f"{path} is sound ({found.seconds:.1f} s).")
