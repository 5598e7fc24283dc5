from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import Error

from yral_chat import copying
from yral_chat.settings import database


class Command(BaseCommand):
    help = (
        "Copy everything from one database to another, empty one (SQLite or PostgreSQL), and compare counts and "
        "checksums of every table. Stop the service first: what is written meanwhile isn't copied."
    )
    requires_system_checks = ()

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--from", required=True, metavar="URL", dest="source", help="as in DATABASE_URL")
        parser.add_argument("--to", required=True, metavar="URL", dest="target", help="it may be new, or migrated")

    def handle(self, *args: Any, source: str, target: str, **options: Any) -> None:
        try:
            copying.use(database(source, "--from"), database(target, "--to"))
            copying.prepare()
            total = 0
            for name, digest in copying.copy():
                self.stdout.write(f"{name:32} {digest.rows:>12,} rows  {digest}")
                total += digest.rows
        except copying.CopyRefused as exc:
            raise CommandError(str(exc)) from exc
        except (Error, ValueError) as exc:
            raise CommandError(f"Nothing was copied: {copying.first_line(exc)}") from exc
        self.stdout.write(f"Copied {total:,} rows; counts and checksums of all tables are the same on both sides.")
