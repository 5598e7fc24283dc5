from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from personas.exchange import exported
from personas.models import Influencer


class Command(BaseCommand):
    help = "Write personas as JSON: all of them, or those with the given short names or ids."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("personas", nargs="*", metavar="PERSONA", help="short names or ids; none: all")
        parser.add_argument("--draft", action="store_true", help="the drafts, where there are some, not what is live")
        parser.add_argument("--to", type=Path, metavar="FILE", help="instead of standard output")

    def handle(self, *args: Any, **options: Any) -> None:
        asked: list[str] = options["personas"]
        found = [persona_called(one) for one in asked] if asked else list(Influencer.objects.order_by("name"))
        data = exported(found, drafted=options["draft"])
        if options["to"] is None:
            self.stdout.write(data.decode())
            return
        try:
            options["to"].write_bytes(data)
        except OSError as exc:
            raise CommandError(f"{options['to']} can't be written: {exc.strerror}.") from exc
        self.stderr.write(f"{len(found)} persona{'' if len(found) == 1 else 's'} written.")


def persona_called(asked: str) -> Influencer:
    """By its id, or else by its short name."""
    found = Influencer.objects.filter(pk=asked).first() or Influencer.objects.filter(name=asked).first()
    if found is None:
        raise CommandError(f"There is no persona {asked}.")
    return found
