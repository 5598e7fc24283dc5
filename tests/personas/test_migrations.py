"""From before versions to now, and back: no text is lost."""

from typing import Any

import pytest
from django.core.management import call_command
from django.db import connection
from django.db.migrations.loader import MigrationLoader

from personas.models import VERSIONED, Influencer, PersonaVersion
from personas.versions import catch_up, create_persona, save_draft

BEFORE = "0002_content_editors"
NOW = MigrationLoader(None).graph.leaf_nodes("personas")[0][1]
pytestmark = pytest.mark.django_db(transaction=True)


def migrate(name: str) -> Any:
    call_command("migrate", "personas", name, verbosity=0)
    return MigrationLoader(connection).project_state([("personas", name)]).apps


@pytest.fixture
def before() -> Any:
    yield migrate(BEFORE)
    call_command("migrate", verbosity=0)


def test_each_persona_s_text_becomes_its_first_version(before: Any) -> None:
    old = before.get_model("personas", "Influencer")
    texts = {
        "system_instructions": "Be kind. नमस्ते",
        "personality_traits": {"b": 1.0, "a": [1e22, None]},
        "temperature": 1,
    }
    made = old.objects.create(name="old", display_name="Old", suggested_messages=["One?"], **texts)
    retired = old.objects.create(name="gone", display_name="Gone", is_active="discontinued", **texts)

    migrate(NOW)

    for one in (made, retired):
        live = Influencer.objects.get(pk=one.pk)
        version = PersonaVersion.objects.get(influencer=live)
        assert version.content == live.content
        assert live.content == {name: getattr(one, name, "") for name in VERSIONED}
        assert (version.number, version.published_at) == (1, one.updated_at)
        assert (live.version_number, live.updated_at) == (1, one.updated_at)
        assert catch_up(influencer_id=one.pk) == version, "it is known for what it is"


def test_on_the_way_back_what_is_live_stays_and_what_was_never_published_is_kept(before: Any) -> None:
    migrate(NOW)
    live = Influencer.objects.create(name="live", display_name="Live", system_instructions="Live.")
    save_draft(influencer_id=live.pk, content={"system_instructions": "Drafted."})
    create_persona(
        details={"name": "new", "display_name": "New"}, content={"system_instructions": "Only here.", "model": "m"}
    )

    old = migrate(BEFORE).get_model("personas", "Influencer")

    rows = old.objects.order_by("name").values_list("name", "system_instructions", "is_active")
    assert list(rows) == [("live", "Live.", "active"), ("new", "Only here.", "discontinued")]
