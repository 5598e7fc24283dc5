from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from yral_chat.diagnosis import CHECKS, Wrong, ask_model, configuration, wait_no_longer_for_connections
from yral_chat.log import told


class Command(BaseCommand):
    help = "Print the configuration without its secrets, try everything that the service needs, and say what is wrong."
    requires_system_checks = []  # it runs them itself, and goes on

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--model", action="store_true", help="also ask the model something, which costs a little")

    def handle(self, *args: Any, model: bool, **options: Any) -> None:
        for name, value in configuration():
            self.stdout.write(f"{name:32} {value}")
        self.stdout.write("")
        wait_no_longer_for_connections()
        checks = {**CHECKS, **({"Model's answer": ask_model} if model else {})}
        wrong = [name for name, check in checks.items() if not self._is_well(name, check)]
        if wrong:
            raise CommandError(f"{len(wrong)} of {len(checks)} are wrong: {', '.join(wrong)}.")
        self.stdout.write(f"All {len(checks)} are well.")

    def _is_well(self, name: str, check: Any) -> bool:
        try:
            self.stdout.write(f"ok     {name}: {check()}")
        except Wrong as exc:
            self.stdout.write(f"WRONG  {name}: {exc}")
            return False
        except Exception as exc:  # whatever it is, the other checks are wanted all the more
            self.stdout.write(f"WRONG  {name}: it can't be tried ({told(exc)}).")
            return False
        return True
