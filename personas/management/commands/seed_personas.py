from typing import Any

from django.core.exceptions import ValidationError
from django.core.management.base import BaseCommand, CommandError, CommandParser

from personas.services import seed_personas
from yral_chat.errors import NotFound


class Command(BaseCommand):
    help = "Add the personas of fixtures/personas.json that are missing. What staff edited is never overwritten."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--update",
            metavar="NAME",
            action="append",
            default=[],
            help="set this persona back to the fixture, on purpose (may be given several times)",
        )

    def handle(self, *args: Any, update: list[str], **options: Any) -> None:
        try:
            seeded = seed_personas(update=frozenset(update))
        except NotFound as exc:
            raise CommandError(f"Nothing was changed: {exc}") from exc
        except ValidationError as exc:
            raise CommandError(f"Nothing was changed: {exc.message_dict}") from exc
        self.stdout.write(
            f"Personas: {len(seeded.added)} added, {len(seeded.updated)} updated, {len(seeded.kept)} kept."
        )
