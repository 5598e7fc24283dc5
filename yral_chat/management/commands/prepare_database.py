from typing import Any

from django.core.management import call_command
from django.core.management.base import BaseCommand, CommandError
from django.db import connection

from yral_chat import replication


class Command(BaseCommand):
    help = "What comes before a start: verify SQLite's file, restore it if it's missing or damaged, and migrate."
    requires_system_checks = []  # the server runs them

    def handle(self, *args: Any, **options: Any) -> None:
        if connection.vendor == "sqlite":
            path = replication.database()
            try:
                self.stdout.write(f"The database is {replication.prepare(path)}.")
                if not path.exists():
                    path.touch(mode=0o600)  # what is said in it isn't for others on this machine
            except (replication.Unusable, OSError) as exc:
                raise CommandError(f"Yral AI Chat can't start: {exc}") from exc
        call_command("migrate", interactive=False, verbosity=0)
        if connection.vendor == "sqlite":
            replication.mark(path)
