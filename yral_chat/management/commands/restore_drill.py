from typing import Any

from django.core.management.base import BaseCommand, CommandError

from yral_chat import replication


class Command(BaseCommand):
    help = "Restore SQLite's copy to a file for the moment and compare it with the database. Run it daily."
    requires_system_checks = []

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            done = replication.drill(replication.database())
        except replication.Unusable as exc:
            raise CommandError(str(exc)) from exc
        for table, rows in done.rows.items():
            self.stdout.write(f"{table:32} {rows:>12}   {done.lacks.get(table, 0):+d} in the database")
        if not done.ok:
            raise CommandError("\n".join(["The copy is no good:", *done.problems]))
        age = "none" if done.newest_message_age_seconds is None else f"{done.newest_message_age_seconds} s old"
        self.stdout.write(f"The copy is sound; its newest message: {age}. Restored in {done.seconds} s.")
