import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from django.apps import apps
from django.conf import settings
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db.models import Field, ForeignKey, Model

ROOT: Path = settings.BASE_DIR
FOLDER = ROOT / "docs" / "architecture"
ROOMS = ("conversations", "personas", "media_uploads", "yral_chat/ai", "yral_chat")  # the inner one first
DRAWING = re.compile(r"(<!-- drawn: (\w+) -->\n\n```mermaid\n).*?(^```\n)", re.DOTALL | re.MULTILINE)


def room_of(module: str) -> str | None:
    path = module.replace(".", "/")
    return next((room for room in ROOMS if path == room or path.startswith(f"{room}/")), None)


def imports(file: Path) -> Iterator[str]:
    """Every module that the file names, at its top or inside; a name that is imported from one may be a module, too."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                path = ROOT / whole.replace(".", "/")
                yield whole if path.is_dir() or path.with_suffix(".py").exists() else node.module


def files(room: str) -> list[Path]:
    found = (ROOT / room).rglob("*.py")
    return sorted(file for file in found if "migrations" not in file.parts and room_of(name_of(file)) == room)


def name_of(file: Path) -> str:
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def rooms() -> str:
    """Who imports whom; dotted where only urls.py and operations.py do, which know all apps."""
    lines = ["flowchart TD"]
    for room in ROOMS:
        reached = {file: {room_of(name) for name in imports(file)} for file in files(room)}
        for other in ROOMS:
            those = {file.name for file, named in reached.items() if other in named and other != room}
            if those:
                arrow = "-.->" if those <= {"urls.py", "operations.py"} else "-->"
                lines.append(f"  {_node(room)} {arrow} {_node(other)}")
    return "\n".join(lines) + "\n"


def turns() -> str:
    """The files of conversations/ between which a message goes, and the rooms that they ask."""
    inside = {name_of(file): file for file in files("conversations") if file.parent.name == "conversations"}
    shown = {name for name in inside if name.partition(".")[2] in WAY}
    lines = ["flowchart LR"]
    for name in sorted(shown):
        for other in sorted({_shown(other, shown) for other in imports(inside[name])} - {"", name}):
            lines.append(f"  {_node(name)} --> {_node(other)}")
    return "\n".join(lines) + "\n"


WAY = {"views", "services", "turns", "live", "switchboard", "board", "events", "sent", "prompts", "media", "models"}


def _shown(module: str, shown: set[str]) -> str:
    room = room_of(module)
    return module if module in shown else room if room and room != "conversations" and room != "yral_chat" else ""


def _node(module: str) -> str:
    return module.removeprefix("conversations.").replace("/", "_") + f'["{module.removeprefix("conversations.")}"]'


def tables() -> str:
    """Our tables, their columns and what they point to."""
    models = [model for model in apps.get_models() if room_of(model.__module__)]
    columns = {model: list(model._meta.concrete_fields) for model in models}
    lines = ["erDiagram"]
    for model, fields in columns.items():
        lines += [f"  {model._meta.db_table} {{", *(f"    {_column(field)}" for field in fields), "  }"]
    for model, fields in columns.items():
        lines += [_arrow(model, field) for field in fields if isinstance(field, ForeignKey)]
    return "\n".join(lines) + "\n"


def _column(field: Field) -> str:
    kind = getattr(field, "target_field", field).get_internal_type().removesuffix("Field").lower()
    marks = {"PK": field.primary_key, "FK": field.is_relation, "UK": field.unique and not field.primary_key}
    keys = ", ".join(mark for mark, true in marks.items() if true)
    return f"{kind} {field.column} {keys}".rstrip() + (' "may be null"' if field.null else "")


def _arrow(model: type[Model], field: Any) -> str:
    many = "o|" if field.unique else "o{"
    one = "|o" if field.null else "||"
    return f"  {field.related_model._meta.db_table} {one}--{many} {model._meta.db_table} : {field.name}"


DRAWN = {"rooms": rooms, "turns": turns, "tables": tables}


class Command(BaseCommand):
    help = "Draw the code's imports and the database's tables into docs/architecture. With --check only compare."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--check", action="store_true")

    def handle(self, *args: Any, check: bool, **options: Any) -> None:
        for page in sorted(FOLDER.glob("*.md")):
            written = page.read_text(encoding="utf-8")
            drawn = DRAWING.sub(lambda found: found[1] + DRAWN[found[2]]() + found[3], written)
            if check and drawn != written:
                raise CommandError(f"{page.name} is out of date. Run: make drawings")
            page.write_text(drawn, encoding="utf-8") if not check else None
        self.stdout.write("The drawings are up to date." if check else "Drew docs/architecture.")
