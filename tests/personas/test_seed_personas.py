"""manage.py seed_personas: adds what is missing, never overwrites what staff edited."""

import json
import re
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings
from django.contrib.staticfiles import finders
from django.core.exceptions import ValidationError
from django.core.management import CommandError, call_command
from django.db import connections

from personas.models import Influencer, PersonaVersion
from personas.services import SEED, seed_personas
from personas.versions import save_draft
from tests.conftest import Api

ENTRIES: list[dict[str, Any]] = json.loads(SEED.read_text(encoding="utf-8"))
NAMES = [entry["fields"]["name"] for entry in ENTRIES]
FIRST = ENTRIES[0]["fields"]


def seed(*arguments: str) -> str:
    out = StringIO()
    call_command("seed_personas", *arguments, stdout=out)
    return out.getvalue()


def everything() -> list[Any]:
    return list(Influencer.objects.order_by("pk").values())


def entry(label: str, **fields: Any) -> dict[str, Any]:
    values = {
        "name": label,
        "display_name": label.title(),
        "system_instructions": "Be kind.",
        "created_at": "2026-01-05T09:00:00Z",
        **fields,
    }
    return {"model": "personas.influencer", "pk": f"id-of-{label}", "fields": values}


def texts_of(value: Any) -> list[str]:
    """All strings in a JSON value."""
    if isinstance(value, str):
        return [value]
    children = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [text for child in children for text in texts_of(child)]


@pytest.fixture
def fixture_of(tmp_path: Path) -> Any:
    def write(*entries: dict[str, Any]) -> Path:
        path = tmp_path / "personas.json"
        path.write_text(json.dumps(entries), encoding="utf-8")
        return path

    return write


# The command


@pytest.mark.django_db
def test_it_fills_an_empty_database_with_the_fixture_as_it_stands() -> None:
    said = seed()

    assert f"{len(ENTRIES)} added, 0 updated, 0 kept" in said
    stored = {row["id"]: row for row in everything()}
    assert set(stored) == {entry["pk"] for entry in ENTRIES}
    for seeded in ENTRIES:
        row = stored[seeded["pk"]]
        for field, value in seeded["fields"].items():
            if field not in ("created_at", "updated_at"):
                assert row[field] == value, field
        assert (
            row["created_at"].isoformat(timespec="microseconds").removesuffix("+00:00") + "Z"
            == (seeded["fields"]["created_at"])
        )


@pytest.mark.django_db
def test_the_apps_see_the_seeded_personas_active_ones_first(nobody: Api) -> None:
    seed()

    listed = nobody.get("/api/v1/influencers").json()["influencers"]

    assert [item["is_active"] for item in listed[:5]] == ["active"] * 4 + ["coming_soon"]
    assert {item["is_active"] for item in listed[5:]} == {"discontinued"}


@pytest.mark.django_db
def test_a_second_time_it_changes_nothing_at_all() -> None:
    seed()
    before = everything()

    said = seed()

    assert f"0 added, 0 updated, {len(ENTRIES)} kept" in said
    assert everything() == before


@pytest.mark.django_db
def test_it_never_overwrites_what_staff_edited() -> None:
    seed()
    persona = Influencer.objects.get(name=NAMES[0])
    persona.system_instructions, persona.initial_greeting, persona.is_active = "Only rhymes.", "", "discontinued"
    persona.suggested_messages, persona.temperature = [], None
    persona.save()
    before = everything()

    seed()

    assert everything() == before


@pytest.mark.django_db
def test_it_adds_only_what_is_missing() -> None:
    seed()
    Influencer.objects.filter(name=NAMES[1]).delete()
    Influencer.objects.filter(name=NAMES[0]).update(display_name="Edited")

    said = seed()

    assert f"1 added, 0 updated, {len(ENTRIES) - 1} kept" in said
    assert Influencer.objects.get(name=NAMES[1]).pk == ENTRIES[1]["pk"]
    assert Influencer.objects.get(name=NAMES[0]).display_name == "Edited"


@pytest.mark.django_db
def test_a_persona_that_staff_renamed_does_not_come_back_as_a_double() -> None:
    seed()
    Influencer.objects.filter(name=NAMES[0]).update(name="renamed-by-staff")

    seed()

    assert Influencer.objects.count() == len(ENTRIES)
    assert not Influencer.objects.filter(name=NAMES[0]).exists()


@pytest.mark.django_db
def test_a_persona_of_the_same_name_that_staff_made_themselves_is_kept() -> None:
    own = Influencer.objects.create(name=NAMES[0], display_name="Ours", system_instructions="Ours.")

    seed()

    own.refresh_from_db()
    assert (own.display_name, own.system_instructions) == ("Ours", "Ours.")
    assert Influencer.objects.count() == len(ENTRIES)


@pytest.mark.django_db
def test_update_sets_the_named_persona_back_and_no_other() -> None:
    seed()
    Influencer.objects.update(system_instructions="Edited.", is_active="discontinued")
    created_at = Influencer.objects.get(name=NAMES[0]).created_at

    said = seed("--update", NAMES[0])

    assert f"0 added, 1 updated, {len(ENTRIES) - 1} kept" in said
    reset = Influencer.objects.get(name=NAMES[0])
    assert reset.system_instructions == FIRST["system_instructions"]
    assert reset.is_active == FIRST["is_active"]
    assert (reset.pk, reset.created_at) == (ENTRIES[0]["pk"], created_at)
    assert set(Influencer.objects.exclude(pk=reset.pk).values_list("system_instructions", flat=True)) == {"Edited."}


@pytest.mark.django_db
def test_update_may_name_several() -> None:
    seed()
    Influencer.objects.update(display_name="Edited")

    seed("--update", NAMES[0], "--update", NAMES[1])

    assert set(Influencer.objects.exclude(display_name="Edited").values_list("name", flat=True)) == set(NAMES[:2])


@pytest.mark.django_db
def test_update_of_a_persona_that_is_missing_adds_it() -> None:
    said = seed("--update", NAMES[0])

    assert f"{len(ENTRIES)} added" in said


@pytest.mark.django_db
def test_update_of_an_unknown_name_fails_with_a_sentence_and_overwrites_nothing() -> None:
    seed()
    Influencer.objects.update(display_name="Edited")
    before = everything()

    with pytest.raises(CommandError, match=r"no persona named nobody-at-all\."):
        seed("--update", "nobody-at-all")

    assert everything() == before


@pytest.mark.django_db
def test_an_unknown_name_beside_a_known_one_changes_nothing() -> None:
    seed()
    Influencer.objects.update(display_name="Edited")
    before = everything()

    with pytest.raises(CommandError, match="no persona named typo"):
        seed("--update", NAMES[0], "--update", "typo")

    assert everything() == before


# A fixture that doesn't hold


@pytest.mark.parametrize(
    "fields",
    [
        {"suggested_messages": {"a": 1}},
        {"suggested_messages": ["Plan my week", 7]},
        {"personality_traits": ["warm"]},
        {"avatar_url": "javascript:alert(1)"},
        {"is_active": "retired"},
        {"temperature": 3},
        {"max_output_tokens": 0},
        {"system_instructions": ""},
        {"name": "Not A Name"},
        {"display_name": None},
        {"created_at": "yesterday"},
    ],
)
@pytest.mark.django_db
def test_one_bad_persona_and_nothing_is_written(fixture_of: Any, fields: dict[str, Any]) -> None:
    path = fixture_of(entry("first"), entry("second", **fields), entry("third"))

    with pytest.raises(ValidationError):
        seed_personas(path=path)

    assert not Influencer.objects.exists()


@pytest.mark.django_db
def test_one_bad_persona_and_no_update_is_written(fixture_of: Any) -> None:
    seed_personas(path=fixture_of(entry("first"), entry("second")))
    before = everything()

    with pytest.raises(ValidationError):
        seed_personas(
            path=fixture_of(entry("first", display_name="New"), entry("second", temperature=9)),
            update=frozenset({"first", "second"}),
        )

    assert everything() == before


@pytest.mark.django_db
def test_one_name_twice_in_a_fixture_is_seeded_once(fixture_of: Any) -> None:
    seeded = seed_personas(path=fixture_of(entry("first"), entry("first", display_name="Again")))

    assert (seeded.added, seeded.kept) == (["first"], ["first"])
    assert Influencer.objects.get().display_name == "First"


# The shipped personas


@pytest.mark.django_db
@pytest.mark.parametrize("label", ["personas.json", str(SEED)])
def test_plain_loaddata_works_too(label: str) -> None:
    call_command("loaddata", label, verbosity=0)

    assert set(Influencer.objects.values_list("name", flat=True)) == set(NAMES)
    for persona in Influencer.objects.all():
        persona.full_clean()
    before = everything()
    seed()
    assert everything() == before


def test_there_are_eight_or_more_with_names_ids_and_fields_of_their_own() -> None:
    assert len(ENTRIES) >= 8
    for field in ("name", "display_name", "avatar_url", "description", "category", "system_instructions"):
        assert len({entry["fields"][field] for entry in ENTRIES}) == len(ENTRIES), field
    assert len({entry["pk"] for entry in ENTRIES}) == len(ENTRIES)
    assert {entry["model"] for entry in ENTRIES} == {"personas.influencer"}


def test_four_are_active_one_is_coming_soon_and_the_rest_are_discontinued() -> None:
    statuses = Counter(entry["fields"]["is_active"] for entry in ENTRIES)

    assert statuses == {"active": 4, "coming_soon": 1, "discontinued": len(ENTRIES) - 5}


@pytest.mark.parametrize("fields", [entry["fields"] for entry in ENTRIES], ids=NAMES)
class TestEachShippedPersona:
    def test_it_has_all_that_the_screens_show(self, fields: dict[str, Any]) -> None:
        for name in ("initial_greeting", "description", "category", "deflection", "personality_traits"):
            assert fields[name], name
        assert len(fields["suggested_messages"]) == 3
        assert all(0 < len(text) <= 60 for text in fields["suggested_messages"])
        assert len(fields["initial_greeting"]) <= 300
        assert len(fields["description"]) <= 200

    def test_its_instructions_are_written_out(self, fields: dict[str, Any]) -> None:
        assert len(fields["system_instructions"]) >= 1000
        assert fields["display_name"] in fields["system_instructions"]

    def test_its_picture_is_shipped(self, fields: dict[str, Any]) -> None:
        found = finders.find(fields["avatar_url"].removeprefix(settings.STATIC_URL))

        assert found
        picture = Path(found).read_bytes()
        assert picture.startswith(b"\x89PNG\r\n\x1a\n")
        width, height = int.from_bytes(picture[16:20]), int.from_bytes(picture[20:24])
        assert width == height >= 96
        assert len(picture) <= 100_000

    def test_it_names_no_date_and_nobodys_address(self, fields: dict[str, Any]) -> None:
        """A date goes stale (the turn gives today's); addresses and numbers belong to somebody."""
        texts = "\n".join(texts_of({k: v for k, v in fields.items() if not k.endswith(("_at", "_url"))}))
        forbidden = {
            "month": r"\b(January|February|April|June|July|August|September|October|November|December"
            r"|(in|last|this|next) (March|May))\b|जनवरी|फ़रवरी|फरवरी|अप्रैल|जुलाई|अगस्त|सितंबर|अक्टूबर|नवंबर|दिसंबर"
            r"|\b(enero|febrero|abril|junio|julio|agosto|septiembre|octubre|noviembre|diciembre)\b",
            "year": r"\b(19|20)\d\d\b",
            "date": r"\b\d{1,2}[./-]\d{1,2}[./-]\d{2,4}\b",
            "email": r"\S@\S+\.\S",
            "url": r"https?://|www\.|\b\w+\.(com|org|net|in|io)\b",
            "phone": r"\+?\d(?:[ -]?\d){6,}",
        }
        for what, pattern in forbidden.items():
            found = re.search(pattern, texts, re.IGNORECASE if what in ("month", "url") else 0)
            assert not found, f"{what}: {found and texts[max(0, found.start() - 30) : found.end() + 30]}"


@pytest.mark.django_db(transaction=True)
def test_two_that_seed_at_once_both_succeed() -> None:
    """Two containers of one deployment."""

    def seed(number: int) -> int:
        try:
            seeded = seed_personas()
            return len(seeded.added) + len(seeded.kept)
        finally:
            connections.close_all()

    with ThreadPoolExecutor(3) as pool:
        counts = list(pool.map(seed, range(3)))

    assert len(set(counts)) == 1
    assert Influencer.objects.count() == counts[0]


# Versions


@pytest.mark.django_db
def test_each_seeded_persona_begins_with_version_1() -> None:
    seed()

    first = PersonaVersion.objects.all()
    assert [(version.number, version.change_note) for version in first] == [(1, "Added by seed_personas.")] * len(
        ENTRIES
    )
    assert {persona.version_number for persona in Influencer.objects.all()} == {1}


@pytest.mark.django_db
def test_update_makes_a_version_of_what_it_sets_back_and_one_of_what_stood_there_and_leaves_the_draft() -> None:
    seed()
    edited = Influencer.objects.get(name=NAMES[0])
    Influencer.objects.filter(pk=edited.pk).update(system_instructions="By a shell.")
    save_draft(influencer_id=edited.pk, content={"initial_greeting": "Drafted"})

    seed("--update", NAMES[0])

    published = PersonaVersion.objects.filter(influencer=edited).published().order_by("number")
    notes = published.values_list("number", "system_instructions", "change_note")
    original = FIRST["system_instructions"]
    assert list(notes) == [
        (1, original, "Added by seed_personas."),
        (2, "By a shell.", "Changed outside the desk."),
        (3, original, "Set back by seed_personas --update."),
    ]
    assert PersonaVersion.objects.drafts().get().initial_greeting == "Drafted"
    assert Influencer.objects.get(pk=edited.pk).version_number == 3
    seed("--update", NAMES[0])
    assert published.count() == 3, "there was nothing to set back"
