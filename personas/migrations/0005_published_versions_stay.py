"""The database refuses to change what was published or set aside. On SQLite a later migration that makes the table anew
drops the trigger without a word: run `protect` again after it (a test tells)."""

from django.db import migrations

KEPT = (
    "influencer_id",
    "number",
    "change_note",
    "published_at",
    "set_aside_at",
    "system_instructions",
    "language_note",
    "personality_traits",
    "initial_greeting",
    "suggested_messages",
    "deflection",
    "model",
    "temperature",
    "max_output_tokens",
)
SENTENCE = "A version that was published or set aside is never changed."


def protect(apps, schema_editor):
    different = "IS NOT" if schema_editor.connection.vendor == "sqlite" else "IS DISTINCT FROM"
    changed = " OR ".join(f'OLD."{name}" {different} NEW."{name}"' for name in KEPT)
    when = f"(OLD.published_at IS NOT NULL OR OLD.set_aside_at IS NOT NULL) AND ({changed})"
    for statement in SQL[schema_editor.connection.vendor]:
        schema_editor.execute(statement.replace("CONDITION", when), params=None)


def leave_open(apps, schema_editor):
    if schema_editor.connection.vendor == "sqlite":
        schema_editor.execute("DROP TRIGGER IF EXISTS persona_versions_stay")
    else:
        schema_editor.execute("DROP TRIGGER IF EXISTS persona_versions_stay ON persona_versions")
        schema_editor.execute("DROP FUNCTION IF EXISTS persona_versions_stay()")


SQL = {
    "sqlite": (
        "DROP TRIGGER IF EXISTS persona_versions_stay",
        f"""CREATE TRIGGER persona_versions_stay BEFORE UPDATE ON persona_versions WHEN CONDITION
        BEGIN SELECT RAISE(ABORT, '{SENTENCE}'); END""",
    ),
    "postgresql": (
        f"""CREATE OR REPLACE FUNCTION persona_versions_stay() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN RAISE EXCEPTION '{SENTENCE}' USING ERRCODE = 'integrity_constraint_violation'; END $$""",
        "DROP TRIGGER IF EXISTS persona_versions_stay ON persona_versions",
        """CREATE TRIGGER persona_versions_stay BEFORE UPDATE ON persona_versions
        FOR EACH ROW WHEN (CONDITION) EXECUTE FUNCTION persona_versions_stay()""",
    ),
}


class Migration(migrations.Migration):
    dependencies = [("personas", "0004_versions_of_earlier_personas")]

    operations = [migrations.RunPython(protect, leave_open)]
