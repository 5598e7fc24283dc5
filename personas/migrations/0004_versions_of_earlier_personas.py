"""Version 1 of each persona is what it was before there were versions."""

import hashlib
import json

from django.db import migrations

NOTE = "As it was before versions were kept."
CONTENT = (
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


def plain(value):
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, dict):
        return {key: plain(one) for key, one in value.items()}
    return [plain(one) for one in value] if isinstance(value, list) else value


def digest_of(content):
    text = json.dumps([plain(content[name]) for name in CONTENT], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def keep_what_is_live(apps, schema_editor):
    Influencer = apps.get_model("personas", "Influencer")
    PersonaVersion = apps.get_model("personas", "PersonaVersion")
    for influencer in Influencer.objects.filter(live_version=None).iterator():
        content = {name: getattr(influencer, name) for name in CONTENT}
        PersonaVersion.objects.create(
            influencer=influencer,
            number=1,
            change_note=NOTE,
            created_at=influencer.updated_at,
            saved_at=influencer.updated_at,
            published_at=influencer.updated_at,
            **content,
        )
        Influencer.objects.filter(pk=influencer.pk).update(live_version=1, live_digest=digest_of(content))


def keep_what_was_never_published(apps, schema_editor):
    """Without versions a persona can't be a draft: its text stays, in a persona that nobody can talk with."""
    drafts = apps.get_model("personas", "PersonaVersion").objects.filter(
        influencer__is_active="draft", published_at=None, set_aside_at=None
    )
    for draft in drafts.select_related("influencer"):
        for name in CONTENT:
            setattr(draft.influencer, name, getattr(draft, name))
        draft.influencer.is_active = "discontinued"
        draft.influencer.save()


class Migration(migrations.Migration):
    dependencies = [("personas", "0003_persona_versions")]

    operations = [migrations.RunPython(keep_what_is_live, keep_what_was_never_published)]
