import argparse
from pathlib import Path
from typing import Any

from django.core.exceptions import ValidationError
from django.core.management.base import BaseCommand, CommandError, CommandParser

from personas import exchange
from personas.management.commands.export_personas import persona_called
from personas.models import Influencer
from yral_chat.database import write_transaction
from yral_chat.errors import Conflict


class Command(BaseCommand):
    help = (
        "Bring personas of a JSON file (export_personas, or a Character Card) into drafts. You say where each goes: "
        "nothing is found by its name. Shows what would change; --yes does it."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("file", type=Path)
        parser.add_argument(
            "--into", action="append", default=[], type=_place, metavar="[NUMBER=]PERSONA", help="the draft of this one"
        )
        parser.add_argument(
            "--new", action="append", default=[], type=_place, metavar="[NUMBER=]NAME", help="a new one, so named"
        )
        parser.add_argument("--yes", action="store_true", help="do it")

    def handle(self, *args: Any, **options: Any) -> None:
        arrivals = self._arrivals(options["file"])
        wanted = [(place, True) for place in options["into"]] + [(place, False) for place in options["new"]]
        if not wanted:
            self._tell(arrivals)
            return
        plans = [self._plan(arrivals, number, target, into) for (number, target), into in wanted]
        for one in plans:
            self._show(one)
        if any(one.faults for one in plans):
            raise CommandError("Nothing was imported.")
        if not options["yes"]:
            self.stdout.write("Nothing was imported yet: --yes does it.")
            return
        try:
            for made in _take_all(plans):
                self.stdout.write(f"In the draft: {made} ({made.name}, {made.pk}).")
        except Conflict as exc:
            raise CommandError(f"Nothing was imported. {exc}") from exc
        except ValidationError as exc:
            raise CommandError(f"Nothing was imported. {' '.join(exc.messages)}") from exc

    def _arrivals(self, file: Path) -> list[exchange.Arrival]:
        try:
            with file.open("rb") as opened:
                return exchange.read(opened.read(exchange.MOST_BYTES + 1))
        except OSError as exc:
            raise CommandError(f"{file} can't be read: {exc.strerror}.") from exc
        except exchange.NotImportable as exc:
            raise CommandError(str(exc)) from exc

    def _tell(self, arrivals: list[exchange.Arrival]) -> None:
        for number, arrival in enumerate(arrivals, 1):
            self.stdout.write(f"{number}  {arrival.title} ({arrival.details['name']})")
        self.stdout.write("Say where each goes: --into NUMBER=PERSONA for the draft of one, --new NUMBER=NAME.")

    def _plan(self, arrivals: list[exchange.Arrival], number: int | None, target: str, into: bool) -> exchange.Plan:
        if number is None and len(arrivals) > 1:
            raise CommandError(f"The file holds {len(arrivals)} personas: say which, as in --new 1={target}.")
        place = 1 if number is None else number
        if not 1 <= place <= len(arrivals):
            raise CommandError(f"The file has no persona {place}.")
        arrival = arrivals[place - 1]
        return exchange.plan(arrival, persona_called(target)) if into else exchange.plan(arrival, None, target)

    def _show(self, planned: exchange.Plan) -> None:
        where = f"the draft of {planned.into}" if planned.into else f"a new persona, {planned.name}"
        self.stdout.write(f"{planned.arrival.title} → {where}")
        for title, names in (("Not taken", planned.arrival.left_out), ("Stays as it is", planned.kept)):
            if names:
                self.stdout.write(f"  {title}: {'; '.join(names)}.")
        for difference in planned.differences:
            self.stdout.write(f"  {difference.label}")
            for piece in difference.pieces:
                if piece.kind != "same":
                    self.stdout.write(f"    {'-' if piece.kind == 'removed' else '+'} {piece.text.strip()}")
        for fault in planned.faults:
            self.stderr.write(f"  {fault}")


@write_transaction()
def _take_all(plans: list[exchange.Plan]) -> list[Influencer]:
    return [exchange.take(one) for one in plans]


def _place(text: str) -> tuple[int | None, str]:
    number, given, target = text.partition("=")
    if not given:
        return None, text
    if not number.isdecimal() or not target:
        raise argparse.ArgumentTypeError(f"{text} should be NUMBER=… as in 1=coach-veer")
    return int(number[:9]), target
