from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError, CommandParser
from drf_spectacular.drainage import GENERATOR_STATS
from drf_spectacular.generators import SchemaGenerator
from drf_spectacular.renderers import OpenApiJsonRenderer, OpenApiYamlRenderer
from drf_spectacular.validation import validate_schema

FOLDER = settings.BASE_DIR / "docs" / "api"


def documents() -> dict[Path, str]:
    """The schema as the two files that are kept in the repository."""
    schema = SchemaGenerator().get_schema(request=None, public=True)  # type: ignore[no-untyped-call]
    validate_schema(schema)  # type: ignore[no-untyped-call]
    return {
        FOLDER / f"openapi.{renderer.format}": renderer.render(schema, renderer_context={}).decode()
        for renderer in (OpenApiYamlRenderer(), OpenApiJsonRenderer())
    }


class Command(BaseCommand):
    help = "Write docs/api/openapi.yaml and .json. With --check write nothing and fail if they are out of date."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--check", action="store_true")

    def handle(self, *args: Any, check: bool, **options: Any) -> None:
        made = documents()
        if GENERATOR_STATS:
            GENERATOR_STATS.emit_summary()
            raise CommandError("The schema has warnings.")
        for path, text in made.items():
            if not check:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text, encoding="utf-8")
            elif not path.is_file() or path.read_text(encoding="utf-8") != text:
                raise CommandError(f"{path.name} is out of date. Run: make schema")
        self.stdout.write(
            "The OpenAPI files are up to date." if check else f"Wrote {FOLDER.relative_to(settings.BASE_DIR)}."
        )
