"""The database refuses to change an entry of the log of readings. On SQLite a later migration that makes the table anew
drops the trigger without a word: run `protect` again after it (a test tells)."""

from django.db import migrations

SENTENCE = "The log of readings is only added to."
SQL = {
    "sqlite": (
        "DROP TRIGGER IF EXISTS readings_stay",
        f"CREATE TRIGGER readings_stay BEFORE UPDATE ON readings BEGIN SELECT RAISE(ABORT, '{SENTENCE}'); END",
    ),
    "postgresql": (
        f"""CREATE OR REPLACE FUNCTION readings_stay() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN RAISE EXCEPTION '{SENTENCE}' USING ERRCODE = 'integrity_constraint_violation'; END $$""",
        "DROP TRIGGER IF EXISTS readings_stay ON readings",
        "CREATE TRIGGER readings_stay BEFORE UPDATE ON readings FOR EACH ROW EXECUTE FUNCTION readings_stay()",
    ),
}


def protect(apps, schema_editor):
    for statement in SQL[schema_editor.connection.vendor]:
        schema_editor.execute(statement, params=None)


def leave_open(apps, schema_editor):
    if schema_editor.connection.vendor == "sqlite":
        schema_editor.execute("DROP TRIGGER IF EXISTS readings_stay")
    else:
        schema_editor.execute("DROP TRIGGER IF EXISTS readings_stay ON readings")
        schema_editor.execute("DROP FUNCTION IF EXISTS readings_stay()")


class Migration(migrations.Migration):
    dependencies = [("conversations", "0013_support_asks_why")]

    operations = [migrations.RunPython(protect, leave_open)]
