"""Personas out and in again: by the admin's pages, and by export_personas and import_personas."""

import copy
import gzip
import io
import json
import time
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import Permission, User
from django.core.files.uploadedfile import SimpleUploadedFile
from django.core.management import CommandError, call_command
from django.test import Client

from personas import exchange
from personas.models import Influencer, PersonaVersion
from personas.versions import save_draft
from tests.personas.page import Page
from tests.test_admin_personas import LIST, PAYLOAD, assert_inert, change

IMPORT = f"{LIST}import/"
CONTENT = {
    "system_instructions": "Sei freundlich, {{user_name}}.\n\nनमस्ते 🌱 \u2028 ends",
    "language_note": "Hinglish",
    "personality_traits": {"tone": "warm", "deep": [1, 2.5, None, {"x": True}]},
    "initial_greeting": "Hi!\nHow are you?",
    "suggested_messages": ["One?", "Two “three”?"],
    "deflection": "Let's talk of something else.",
    "model": "gemini-2.5-pro",
    "temperature": 0.7,
    "max_output_tokens": 300,
}
DETAILS = {
    "name": "coach",
    "display_name": "Coach Asha",
    "avatar_url": "/static/personas/avatars/coach-veer.png",
    "description": "She trains you.",
    "category": "fitness",
    "metadata": {"a": [1]},
}
CARD: dict[str, Any] = {
    "spec": "chara_card_v2",
    "spec_version": "2.0",
    "data": {
        "name": "Kira",
        "description": "{{char}} is a sailor. <USER> is her mate.",
        "personality": "Salty, kind",
        "scenario": "At sea with {{User}}",
        "first_mes": "Ahoy, {{user}}! I'm {{char}}.",
        "mes_example": "<START>\n{{user}}: Storm?\n{{char}}: Always.",
        "creator_notes": "Best at night.",
        "system_prompt": "{{original}}Stay aboard.",
        "post_history_instructions": "Speak in short words.",
        "alternate_greetings": ["Arr."],
        "tags": ["Adventure", "Sea"],
        "creator": "someone",
        "character_version": "3",
        "extensions": {"depth": 4},
        "character_book": {
            "entries": [
                {"keys": [], "content": "{{char}}'s ship is the Gull.", "enabled": True, "constant": True},
                {"keys": ["kraken"], "content": "It sleeps.", "enabled": True},
                {"keys": [], "content": "Old.", "enabled": False, "constant": True},
            ]
        },
    },
}
Desk = Callable[[User], Client]
MakeInfluencer = Callable[..., Influencer]


def ours(*personas: dict[str, Any], **fields: Any) -> bytes:
    return json.dumps({"format": "yral-persona", "version": 1, "personas": list(personas), **fields}).encode()


def one(**content: Any) -> dict[str, Any]:
    return {"details": {**DETAILS, "name": "new-one"}, "content": {**CONTENT, **content}}


def sent(client: Client, data: bytes, name: str = "personas.json") -> Page:
    response = client.post(IMPORT, {"file": SimpleUploadedFile(name, data)})
    assert response.status_code == 200
    return Page(response)


def pressed(client: Client, shown: Page, button: str, **chosen: str) -> Any:
    form = {**shown.form("import_form"), button: "1"}
    return client.post(IMPORT, {**form, **{name.replace("_", "-", 1): value for name, value in chosen.items()}})


def drafts(influencer: Influencer) -> list[dict[str, Any]]:
    return [draft.content for draft in PersonaVersion.objects.drafts().filter(influencer=influencer.pk)]


@pytest.fixture
def client(desk: Desk, editor: User) -> Client:
    return desk(editor)


@pytest.fixture
def full(make_influencer: MakeInfluencer) -> Influencer:
    return make_influencer(**DETAILS, **CONTENT)


# Out and in


def test_a_round_trip_loses_nothing(client: Client, full: Influencer) -> None:
    exported = client.get(f"{LIST}{full.pk}/export/")
    assert exported["Content-Disposition"] == 'attachment; filename="coach.json"'
    assert json.loads(exported.content)["personas"] == [{"details": DETAILS, "content": CONTENT}]

    shown = Page(pressed(client, sent(client, exported.content), "preview", **{"0_into": "new", "0_name": "again"}))
    taken = pressed(client, shown, "take")

    made = Influencer.objects.get(name="again")
    assert taken["Location"] == change(made)
    assert made.is_active == "draft"
    assert drafts(made) == [CONTENT]
    assert {name: getattr(made, name) for name in DETAILS} == {**DETAILS, "name": "again"}
    assert LogEntry.objects.filter(object_id=made.pk).exists()


def test_several_are_exported_at_once(client: Client, full: Influencer, make_influencer: MakeInfluencer) -> None:
    other = make_influencer(name="beta")
    action = {"action": "export", "_selected_action": [full.pk, other.pk], "index": "0"}

    found = json.loads(client.post(LIST, action).content)

    assert [each["details"]["name"] for each in found["personas"]] == ["beta", "coach"]


def test_the_draft_is_exported_when_it_is_asked_for(client: Client, full: Influencer, editor: User) -> None:
    save_draft(influencer_id=full.pk, content={"initial_greeting": "Drafted"}, author=editor)

    greetings = [
        json.loads(client.get(f"{LIST}{full.pk}/export/{query}").content)["personas"][0]["content"]["initial_greeting"]
        for query in ("", "?draft")
    ]
    assert greetings == [CONTENT["initial_greeting"], "Drafted"]


# Where it goes


def test_nothing_is_chosen_by_a_name(client: Client, full: Influencer) -> None:
    shown = sent(client, ours({"details": DETAILS, "content": {**CONTENT, "deflection": "No."}}))

    assert shown.form("import_form")["0-into"] == [""]
    pressed(client, shown, "take")
    assert drafts(full) == []
    assert Influencer.objects.count() == 1


def test_an_import_shows_what_would_change_and_lands_in_the_draft_alone(
    client: Client, full: Influencer, editor: User
) -> None:
    save_draft(influencer_id=full.pk, content={"initial_greeting": "Drafted"}, author=editor)
    came = {"details": {**DETAILS, "display_name": "Another", "name": "z"}, "content": {"deflection": "Not now."}}

    looked = pressed(client, sent(client, ours(came)), "preview", **{"0_into": f"into {full.pk}"})
    shown = Page(looked)
    assert "Not now" in shown.text
    assert "Stays as it is, because it has no draft: Short name, Display name." in shown.text
    assert drafts(full)[0]["deflection"] == CONTENT["deflection"], "looking takes nothing"
    pressed(client, shown, "take")

    full.refresh_from_db()
    assert drafts(full) == [{**CONTENT, "initial_greeting": "Drafted", "deflection": "Not now."}]
    assert full.content == CONTENT, "users talk with what was live"
    assert full.display_name == "Coach Asha"
    assert PersonaVersion.objects.filter(influencer=full, set_aside_at__isnull=False).count() == 1, "nothing is lost"


def test_nothing_is_taken_that_was_not_shown(client: Client, full: Influencer, editor: User) -> None:
    shown = sent(client, ours(one(deflection="Imported.")))
    said = Page(pressed(client, shown, "take", **{"0_into": f"into {full.pk}"}))
    assert "look at what would change first" in said.text

    save_draft(influencer_id=full.pk, content={"deflection": "A colleague's"}, author=editor)
    again = Page(pressed(client, said, "take"))
    assert "look at what would change first" in again.text
    assert drafts(full)[0]["deflection"] == "A colleague's"
    pressed(client, again, "take")
    assert drafts(full)[0]["deflection"] == "Imported."


def test_a_short_name_that_is_taken_is_told(client: Client, full: Influencer) -> None:
    came = {"details": DETAILS, "content": CONTENT}
    shown = Page(pressed(client, sent(client, ours(came)), "preview", **{"0_into": "new"}))

    assert "Persona with this Short name already exists." in shown.text
    assert 'name="take"' not in shown.html
    pressed(client, shown, "take")
    assert Influencer.objects.count() == 1


def test_of_several_all_are_taken_or_none(client: Client, full: Influencer) -> None:
    other = one()
    other["details"] = {**other["details"], "name": "other"}
    shown = sent(client, ours(one(), other))
    same = Page(pressed(client, shown, "preview", **{"0_into": f"into {full.pk}", "1_into": f"into {full.pk}"}))
    assert 'name="take"' not in same.html
    both = Page(pressed(client, shown, "preview", **{"0_into": "new", "1_into": "new"}))
    assert pressed(client, both, "take")["Location"] == LIST
    assert set(Influencer.objects.values_list("name", flat=True)) == {"coach", "new-one", "other"}


def test_who_may_only_look_exports_and_imports_nothing(desk: Desk, full: Influencer, support: User) -> None:
    viewer = User.objects.create_user("viewer", is_staff=True)
    viewer.user_permissions.add(Permission.objects.get(codename="view_influencer"))
    form = {"carried": ours(one()).decode(), "take": "1", "0-into": "new"}

    assert desk(viewer).get(f"{LIST}{full.pk}/export/").status_code == 200
    assert "Import …" not in desk(viewer).get(LIST).content.decode()
    for user in (viewer, support):
        assert desk(user).get(IMPORT).status_code == 403
        assert desk(user).post(IMPORT, form).status_code == 403
    assert desk(support).get(f"{LIST}{full.pk}/export/").status_code == 403
    assert Influencer.objects.count() == 1


# Character Cards


@pytest.mark.parametrize("spec", ["chara_card_v2", "chara_card_v3"])
def test_a_character_card_becomes_a_draft_and_what_is_dropped_is_said(client: Client, db: None, spec: str) -> None:
    card = copy.deepcopy(CARD) | {"spec": spec}
    shown = Page(pressed(client, sent(client, json.dumps(card).encode()), "preview", **{"0_into": "new"}))
    for words in (
        "other greetings",
        "settings of other programs",
        "2 entries of its book",
        "the user's name in the greeting",
    ):
        assert words in shown.text
    pressed(client, shown, "take")

    made = Influencer.objects.get(name="kira")
    (content,) = drafts(made)
    assert (made.display_name, made.category, made.is_active) == ("Kira", "Adventure", "draft")
    assert made.metadata["character_card"]["creator_notes"] == "Best at night."
    assert content["initial_greeting"] == "Ahoy! I'm Kira."
    assert content["system_instructions"] == (
        "Stay aboard.\n\n{{persona_name}} is a sailor. {{user_name}} is her mate.\n\nPersonality:\nSalty, kind\n\n"
        "Scenario:\nAt sea with {{user_name}}\n\nWhat {{persona_name}} knows:\n{{persona_name}}'s ship is the Gull.\n\n"
        "How {{persona_name}} talks, by example:\n<START>\n{{user_name}}: Storm?\n{{persona_name}}: Always.\n\n"
        "Speak in short words."
    )


# Hostile files


def zipped() -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("personas.json", b" " * 10_000_000)
    return packed.getvalue()


def card(**data: Any) -> bytes:
    return json.dumps({**CARD, "data": {**CARD["data"], **data}}).encode()


HOSTILE: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "empty"),
    "no JSON": (b"personas: []", "no JSON"),
    "UTF-16": ("{}".encode("utf-16"), "no JSON"),
    "half a character": (b'{"format": "\\ud800"}', "no JSON"),
    "NaN": (ours(one()).replace(b"0.7", b"NaN"), "no JSON"),
    "large": (ours(one(system_instructions="x" * 900_000)), "larger than 900 kB"),
    "deep": (ours(one(personality_traits={"a": json.loads("[" * 30 + "]" * 30)})), "too deep"),
    "very deep": (b"[" * 200_000 + b"]" * 200_000, "too deep"),
    "a number without end": (b'{"a": ' + b"1" * 100_000 + b"}", "no JSON"),
    "NUL": (ours(one(deflection="a\x00b")), "null character"),
    "NUL in a key": (ours(one(personality_traits={"a\x00": 1})), "null character"),
    "script": (ours(one(initial_greeting="Hi <script>alert(1)</script>")), "holds a program"),
    "handler": (ours(one(deflection='<img src=x onerror="alert(1)">')), "holds a program"),
    "script in a card": (card(first_mes="<SCRIPT src=//evil.example>"), "holds a program"),
    "twice": (b'{"format": "yral-persona", "format": "x"}', "says something twice"),
    "zip": (zipped(), "archive"),
    "gzip": (gzip.compress(ours(one())), "archive"),
    "picture": (b"\x89PNG\r\n\x1a\n" + b"\x00" * 50, "picture"),
    "a list": (b"[]", "neither an export"),
    "null": (b"null", "neither an export"),
    "another version": (ours(one(), version=2), "another version"),
    "no personas": (ours(), "holds no personas"),
    "many": (ours(*[one()] * 101), "more than 100"),
    "a text for a persona": (ours("coach"), "must be an object"),  # type: ignore[arg-type]
    "unknown field": (ours(one(live_version=9)), "aren't known here: live_version"),
    "status": (ours({"details": {**DETAILS, "is_active": "active"}, "content": CONTENT}), "known here: is_active"),
    "list for text": (ours(one(deflection=["x"])), "“deflection” has the wrong type"),
    "text for list": (ours(one(suggested_messages="x")), "“suggested_messages” has the wrong type"),
    "true for a number": (ours(one(temperature=True)), "“temperature” has the wrong type"),
    "part of a token": (ours(one(max_output_tokens=1.5)), "“max_output_tokens” has the wrong type"),
    "long": (ours(one(initial_greeting="x" * 4001)), "longer than 4000"),
    "a card without a name": (card(name=""), "has no name"),
    "a card of numbers": (card(description=5), "must be a text"),
    "a card without data": (b'{"spec": "chara_card_v3", "data": []}', "has no data"),
    "a book of nothing": (card(character_book=[1]), "no list of entries"),
}


@pytest.mark.parametrize("file", HOSTILE)
def test_a_hostile_file_is_refused_with_a_sentence(client: Client, db: None, file: str, tmp_path: Path) -> None:
    data, said = HOSTILE[file]
    path = tmp_path / "personas.json"
    path.write_bytes(data)

    shown = sent(client, data)

    assert said in shown.text
    assert "import_form" not in shown.forms
    if file != "empty":
        with pytest.raises(CommandError, match=said):
            call_command("import_personas", path)
    assert not Influencer.objects.exists()


@pytest.mark.parametrize(("begin", "piece"), [("", "<"), ("<", " "), ("", "< on"), ("", "javascript ")])
def test_a_file_made_to_take_for_ever_does_not(begin: str, piece: str) -> None:
    began = time.process_time()
    assert exchange.read(ours(one(system_instructions=begin + piece * (20_000 // len(piece)))))
    assert time.process_time() - began < 0.8


@pytest.mark.parametrize("piece", ["{{//", " ", "{{comment:"])
def test_neither_does_a_card(piece: str) -> None:
    text = "a" + piece * (60_000 // len(piece)) + "x"
    began = time.process_time()
    with suppress(exchange.NotImportable):  # it's too long for a greeting
        exchange.read(card(description=text, first_mes=text))
    assert time.process_time() - began < 1


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"system_instructions": "x" * 100_001}, "System instructions: Ensure this value has at most 100000"),
        ({"personality_traits": {"x": "x" * 100_000}}, "Personality traits: This has more than 100,000"),
        ({"temperature": 9}, "Temperature: Ensure this value is less than or equal to 2"),
        ({"max_output_tokens": 10**12}, "Max output tokens: Ensure"),
        ({"suggested_messages": [1]}, "Suggested messages: Enter a list of texts"),
        ({"system_instructions": "  "}, ""),
    ],
)
def test_a_value_that_does_not_hold_is_said_before_it_is_taken(
    client: Client, db: None, content: dict[str, Any], said: str
) -> None:
    shown = Page(pressed(client, sent(client, ours(one(**content))), "preview", **{"0_into": "new"}))
    assert said in shown.text
    if said:
        pressed(client, shown, "take")
        assert not Influencer.objects.exists()


def test_markup_that_runs_nothing_is_inert(client: Client, full: Influencer) -> None:
    evil = PAYLOAD.replace("onerror", "x").replace("<script>", "<b>").replace("</script>", "</b>")
    came = {"details": {**DETAILS, "display_name": evil[:100]}, "content": {**CONTENT, "deflection": evil}}
    shown = sent(client, ours(came))
    assert_inert(shown)
    assert_inert(Page(pressed(client, shown, "preview", **{"0_into": f"into {full.pk}"})))


# Commands


def ran(*arguments: Any, **options: Any) -> str:
    said = io.StringIO()
    call_command(*arguments, stdout=said, stderr=said, **options)
    return said.getvalue()


def test_the_commands_bring_all_personas_from_one_service_to_another(
    full: Influencer, make_influencer: MakeInfluencer, tmp_path: Path
) -> None:
    make_influencer(name="beta", display_name="Beta")
    file = tmp_path / "personas.json"
    assert "2 personas written" in ran("export_personas", to=file)
    assert ran("export_personas", "coach").strip() == ran("export_personas", full.pk).strip()

    listed = ran("import_personas", file)
    assert "1  Beta (beta)" in listed
    assert "2  Coach Asha (coach)" in listed
    shown = ran("import_personas", file, "--new", "2=again", "--into", f"1={full.pk}")
    assert "Nothing was imported yet: --yes does it." in shown
    assert "- Let's talk of something else." in shown
    assert drafts(full) == []

    assert (
        ran("import_personas", file, "--new", "2=again", "--into", f"1={full.pk}", "--yes").count("In the draft") == 2
    )
    assert drafts(Influencer.objects.get(name="again")) == [CONTENT]
    assert drafts(full)[0]["deflection"] == ""
    full.refresh_from_db()
    assert full.content == CONTENT


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--new", "again"], "holds 2 personas: say which"),
        (["--new", "3=again"], "has no persona 3"),
        (["--new", "0=again"], "has no persona 0"),
        (["--into", "1=nobody"], "There is no persona nobody"),
        (["--new", "x=again"], "should be NUMBER="),
        (["--new", "1=coach", "--yes"], "Nothing was imported"),
        (["--new", "1=Not A Name", "--yes"], "Nothing was imported"),
        (["--new", "1=same", "--new", "2=same", "--yes"], "Nothing was imported"),
    ],
)
def test_a_command_that_cannot_be_says_why(
    full: Influencer, make_influencer: MakeInfluencer, tmp_path: Path, arguments: list[str], said: str
) -> None:
    make_influencer(name="beta")
    ran("export_personas", to=tmp_path / "personas.json")

    with pytest.raises(CommandError, match=said):
        ran("import_personas", tmp_path / "personas.json", *arguments)
    assert Influencer.objects.count() == 2
    with pytest.raises(CommandError, match="can't be read"):
        ran("import_personas", tmp_path / "nothing.json")
    with pytest.raises(CommandError, match="There is no persona nobody"):
        ran("export_personas", "nobody")
