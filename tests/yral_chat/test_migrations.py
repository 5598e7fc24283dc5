"""A release migrates while the one before still answers, and a rollback leaves newer tables: migrations only add."""

import re
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings as configured
from django_migration_linter import MigrationLinter

pytestmark = [
    pytest.mark.django_db,
    pytest.mark.skipif(
        configured.DATABASE_URL.startswith("sqlite"),
        reason="Migrations are judged by PostgreSQL's statements: SQLite's make whole tables anew (TEST_DATABASE_URL).",
    ),
]

# Written before the first release, when no earlier version could still be running. Nothing is added to this list: a
# migration that isn't safe is written in two releases (docs/operations/upgrading.md).
BEFORE_THE_FIRST_RELEASE = {"conversations.0002_turns", "personas.0003_persona_versions"}


def unsafe(capsys: Any, app: str | None = None) -> dict[str, str]:
    """Migrations that the version before can't live with, and why. One that locks a big table counts."""
    linter = MigrationLinter(
        str(configured.BASE_DIR),
        include_apps=[app] if app else ["conversations", "media_uploads", "personas"],
        no_cache=True,
        warnings_as_errors_tests=["CREATE_INDEX_EXCLUSIVE", "RUNPYTHON_REVERSIBLE"],
    )
    linter.lint_all_migrations()
    said = capsys.readouterr().out
    found = re.findall(r"\((\w+), (\w+)\)\.\.\. ERR\n((?:\t.*\n)*)", said)
    assert linter.nb_erroneous == len(found)
    assert linter.nb_total > 0
    return {f"{label}.{name}": why for label, name, why in found}


def test_the_version_before_can_live_with_every_migration(capsys: Any) -> None:
    assert unsafe(capsys).keys() - BEFORE_THE_FIRST_RELEASE == set()


@pytest.fixture
def migrate_with(tmp_path: Path, settings: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """The app of the uploads, with one migration more."""
    package = tmp_path / "with_a_bad_one"

    def add(operation: str) -> None:
        shutil.copytree(configured.BASE_DIR / "media_uploads/migrations", package)
        (package / "0099_bad.py").write_text(
            "from django.db import migrations, models\n\n\n"
            "class Migration(migrations.Migration):\n"
            '    dependencies = [("media_uploads", "0001_media_uploads")]\n'
            f"    operations = [{operation}]\n"
        )
        settings.MIGRATION_MODULES = {"media_uploads": package.name}

    monkeypatch.syspath_prepend(str(tmp_path))
    yield add
    for name in [name for name in sys.modules if name.startswith(package.name)]:
        del sys.modules[name]


@pytest.mark.parametrize(
    ("operation", "why"),
    [
        ('migrations.RemoveField("mediaupload", "size")', "DROPPING columns"),
        ('migrations.RenameField("mediaupload", "size", "bytes")', "RENAMING columns"),
        ('migrations.AddField("mediaupload", "n", models.IntegerField(default=0))', "NOT NULL constraint"),
        ('migrations.AlterModelTable("mediaupload", "files")', "RENAMING tables"),
        ('migrations.DeleteModel("mediaupload")', "DROPPING table"),
        ("migrations.RunPython(lambda apps, editor: None)", "RunPython"),
    ],
)
def test_a_migration_that_breaks_the_version_before_is_found(
    operation: str, why: str, migrate_with: Callable[[str], None], capsys: Any
) -> None:
    migrate_with(operation)
    found = unsafe(capsys, "media_uploads")
    assert why.lower() in found["media_uploads.0099_bad"].lower()


@pytest.mark.parametrize(
    "operation",
    [
        'migrations.AddField("mediaupload", "n", models.IntegerField(null=True))',
        'migrations.AddField("mediaupload", "n", models.IntegerField(default=0, db_default=0))',
        "migrations.RunPython(lambda apps, editor: None, migrations.RunPython.noop)",
    ],
)
def test_a_migration_that_only_adds_passes(operation: str, migrate_with: Callable[[str], None], capsys: Any) -> None:
    migrate_with(operation)
    assert unsafe(capsys, "media_uploads") == {}


def test_the_list_of_exceptions_names_only_what_is_one(capsys: Any) -> None:
    assert unsafe(capsys).keys() >= BEFORE_THE_FIRST_RELEASE
