"""A persona's versions through the admin's real pages: who writes, publishes, takes back, and what users get of it."""

from collections.abc import Callable
from typing import Any
from urllib.parse import urljoin

import pytest
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import Permission, User
from django.db import DatabaseError, transaction
from django.test import Client

from conversations.models import AlternativeAnswer, Message
from personas.models import VERSIONED, Influencer, PersonaVersion
from tests.conftest import Api
from tests.fake_gemini import FakeGemini, blocks
from tests.personas.page import Page
from tests.test_admin_personas import ADD, LIST, PAYLOAD, assert_inert, change, page, published, saved, submit

Desk = Callable[[User], Client]
MakeInfluencer = Callable[..., Influencer]
PASSWORD = "a-password-for-tests"


def at(influencer: Influencer, place: str = "versions/") -> str:
    return f"{LIST}{influencer.pk}/{place}"


def numbers(influencer: Influencer) -> list[int | None]:
    return list(
        PersonaVersion.objects.filter(influencer=influencer)
        .published()
        .order_by("number")
        .values_list("number", flat=True)
    )


def live(influencer: Influencer) -> dict[str, Any]:
    return Influencer.objects.get(pk=influencer.pk).content


def draft(influencer: Influencer) -> PersonaVersion:
    return PersonaVersion.objects.drafts().get(influencer=influencer)


def revision(client: Client, influencer: Influencer, on: str = "versions/") -> str:
    return next(attrs["value"] for _, attrs in page(client, at(influencer, on)).tags if attrs.get("name") == "revision")


def press(client: Client, influencer: Influencer, place: str, on: str = "versions/") -> Page:
    """A button of one of the pages, as that page has it. Where it leads to."""
    url = at(influencer, on)
    assert at(influencer, place) in [urljoin(url, action) for action in page(client, url).attributes("action")]
    return Page(client.post(at(influencer, place), {"revision": revision(client, influencer, on)}, follow=True))


def restored(client: Client, version: PersonaVersion) -> None:
    place = f"versions/{version.pk}/"
    assert "The draft is what" in press(client, version.influencer, f"{place}restore/", on=place).text


@pytest.fixture
def client(desk: Desk, publisher: User) -> Client:
    """Somebody who writes and publishes."""
    return desk(publisher)


@pytest.fixture
def three(client: Client, coach: Influencer) -> Influencer:
    """With three versions; the first is how it was made, outside the desk."""
    for greeting in ("Second", "Third"):
        saved(submit(client, change(coach), initial_greeting=greeting))
        published(client, coach, f"{greeting} greeting.")
    coach.refresh_from_db()
    return coach


# Drafts


def test_users_talk_with_what_is_live_while_a_draft_is_written(
    client: Client, alice: Api, coach: Influencer, gemini: FakeGemini
) -> None:
    before = live(coach)

    saved(submit(client, change(coach), system_instructions="Drafted.", language_note="Hindi", temperature="2"))

    opened = alice.open(coach)
    assert alice.send(opened["id"]).status_code == 200
    assert "Drafted" not in gemini.last.system
    assert live(coach) == before
    assert (draft(coach).system_instructions, draft(coach).language_note) == ("Drafted.", "Hindi")
    form = page(client, change(coach)).form("influencer_form")
    assert (form["system_instructions"], form["language_note"]) == (["Drafted."], ["Hindi"])


def test_what_has_no_versions_is_live_at_once_and_begins_no_draft(
    client: Client, nobody: Api, coach: Influencer
) -> None:
    saved(submit(client, change(coach), display_name="Renamed", description="New."))

    item = nobody.get(f"/api/v1/influencers/{coach.pk}").json()
    assert (item["display_name"], item["description"]) == ("Renamed", "New.")
    assert not PersonaVersion.objects.exists()


def test_a_draft_is_saved_again_and_again_and_the_log_keeps_each_text(client: Client, coach: Influencer) -> None:
    for text in ("One.", "Two.", "Three."):
        saved(submit(client, change(coach), system_instructions=text))

    assert draft(coach).system_instructions == "Three."
    log = page(client, at(coach, "history/")).text
    for text in ("You are Persona 1", "One", "Two", "Three"):
        assert text in log


def test_a_draft_that_is_set_aside_is_kept_and_can_be_restored(client: Client, coach: Influencer) -> None:
    saved(submit(client, change(coach), initial_greeting="Precious"))
    kept = draft(coach)

    done = press(client, coach, "draft/set-aside/", on="change/")

    assert "The draft is set aside" in done.text
    assert page(client, change(coach)).form("influencer_form")["initial_greeting"] == ["Hi, I'm your coach!"]
    restored(client, kept)
    assert draft(coach).initial_greeting == "Precious"
    assert draft(coach).pk != kept.pk


# Publishing


def test_the_publish_page_shows_the_difference_word_by_word(client: Client, make_influencer: MakeInfluencer) -> None:
    persona = make_influencer(system_instructions="You cook well.\nYou are kind.")
    saved(submit(client, change(persona), system_instructions="You dance well.\nYou are kind."))

    html = page(client, at(persona, "publish/")).html

    assert "You <del>cook</del><ins>dance</ins> well." in html
    assert "Initial greeting" not in html, "only what differs"


def test_publishing_needs_a_note_and_says_so_beside_the_field(client: Client, coach: Influencer) -> None:
    saved(submit(client, change(coach), initial_greeting="New"))
    form = page(client, at(coach, "publish/")).form("publish_form")

    for note in ("", "   "):
        again = client.post(at(coach, "publish/"), {**form, "change_note": note})
        assert again.status_code == 200
        assert "Say in a sentence what changed." in Page(again).text
    assert live(coach)["initial_greeting"] == "Hi, I'm your coach!"
    assert draft(coach)


def test_a_version_says_who_wrote_it_who_published_it_when_and_why(
    desk: Desk, editor: User, publisher: User, coach: Influencer
) -> None:
    saved(submit(desk(editor), change(coach), initial_greeting="New"))
    published(desk(publisher), coach, "Shorter.")

    version = PersonaVersion.objects.get(number=2)
    assert (version.author, version.published_by, version.change_note) == (editor, publisher, "Shorter.")
    assert version.published_at is not None
    listed = page(desk(editor), at(coach)).text
    for words in ("Version 2", "live", "editor, published by publisher", "Shorter.", "Changed outside the desk."):
        assert words in listed


def test_a_new_persona_is_active_from_its_first_version_on(client: Client, nobody: Api) -> None:
    saved(submit(client, ADD, display_name="New", name="new", system_instructions="Be new."))
    new = Influencer.objects.get()
    assert "Users don't see this persona." in page(client, change(new)).text
    assert nobody.get("/api/v1/influencers").json()["total"] == 0

    published(client, new)

    assert numbers(new) == [1]
    assert nobody.get("/api/v1/influencers").json()["influencers"][0]["is_active"] == "active"


def test_what_was_never_published_is_not_activated_without_its_text(client: Client, nobody: Api) -> None:
    saved(submit(client, ADD, display_name="New", name="new", system_instructions="Be new."))
    new = Influencer.objects.get()

    client.post(LIST, {"action": "activate", "_selected_action": [new.pk], "index": "0"})
    form = page(client, change(new)).form("influencer_form")
    client.post(change(new), {**form, "is_active": "active"})
    refused = client.post(at(new, "draft/set-aside/"), {"revision": form["revision"][0]}, follow=True)

    assert "the draft is all there is" in Page(refused).text
    new.refresh_from_db()
    assert new.is_active == "draft"
    assert nobody.get("/api/v1/influencers").json()["total"] == 0


def test_there_is_nothing_to_publish_without_a_draft(client: Client, coach: Influencer) -> None:
    response = client.get(at(coach, "publish/"), follow=True)

    assert "There is no draft to publish." in Page(response).text
    assert not PersonaVersion.objects.exists()


# Taking back


def test_one_click_brings_the_last_version_back_and_leaves_the_draft(
    client: Client, alice: Api, three: Influencer
) -> None:
    saved(submit(client, change(three), initial_greeting="In the works"))

    done = press(client, three, "roll-back/")

    assert "The earlier version is live again" in done.text
    assert numbers(three) == [1, 2, 3, 4]
    assert live(three)["initial_greeting"] == "Second"
    assert PersonaVersion.objects.get(number=4).change_note == "Back to version 2."
    assert draft(three).initial_greeting == "In the works"
    assert alice.open(three)["last_message"]["content"] == "Second"


def test_a_second_click_on_the_same_button_does_nothing(client: Client, three: Influencer) -> None:
    pressed = {"revision": revision(client, three)}

    client.post(at(three, "roll-back/"), pressed)
    again = client.post(at(three, "roll-back/"), pressed, follow=True)

    assert "Nothing was done." in Page(again).text
    assert live(three)["initial_greeting"] == "Second"
    assert numbers(three) == [1, 2, 3, 4]


def test_an_old_version_becomes_a_draft_and_goes_live_as_a_new_one(client: Client, three: Influencer) -> None:
    first = PersonaVersion.objects.get(number=1)

    restored(client, first)
    assert live(three)["initial_greeting"] == "Third"
    published(client, three, "The first was best.")

    assert live(three) == first.content
    assert numbers(three) == [1, 2, 3, 4]


def test_restoring_sets_a_draft_aside_that_is_there(client: Client, three: Influencer) -> None:
    saved(submit(client, change(three), initial_greeting="In the works"))
    first = PersonaVersion.objects.get(number=1)

    restored(client, first)

    aside = PersonaVersion.objects.get(set_aside_at__isnull=False)
    assert aside.initial_greeting == "In the works"
    assert draft(three).initial_greeting == "Hi, I'm your coach!"
    assert "Draft set aside" in page(client, at(three)).text


def test_any_version_is_shown_beside_any_other(client: Client, three: Influencer) -> None:
    first, _, third = PersonaVersion.objects.order_by("number")

    beside_second = page(client, at(three, f"versions/{third.pk}/")).html
    beside_first = page(client, at(three, f"versions/{third.pk}/"), against=str(first.pk)).html

    assert "<del>Second</del><ins>Third</ins>" in beside_second
    assert "<ins>Third</ins>" in beside_first
    assert "<del>Hi, I&#x27;m your coach!</del>" in beside_first


# Nothing is overwritten


@pytest.mark.parametrize("field", [*VERSIONED, "change_note", "number", "influencer_id", "published_at"])
def test_the_database_itself_refuses_to_change_what_was_published(
    three: Influencer, make_influencer: MakeInfluencer, field: str
) -> None:
    """Also what a later migration would make of the table on SQLite."""
    other: dict[str, Any] = {
        "suggested_messages": ["x"],
        "personality_traits": {"x": 1},
        "temperature": 1.9,
        "max_output_tokens": 7,
        "number": 9,
        "influencer_id": make_influencer().pk,
        "published_at": three.created_at,
    }
    before = list(PersonaVersion.objects.order_by("pk").values())

    with pytest.raises(DatabaseError, match="never changed"), transaction.atomic():
        PersonaVersion.objects.filter(number=2).update(**{field: other.get(field, "x")})

    assert list(PersonaVersion.objects.order_by("pk").values()) == before


def test_the_database_itself_refuses_a_second_draft_and_a_second_version_of_one_number(three: Influencer) -> None:
    content = three.content
    PersonaVersion(influencer=three).take(content).save()
    with pytest.raises(DatabaseError), transaction.atomic():
        PersonaVersion(influencer=three).take(content).save()
    with pytest.raises(DatabaseError), transaction.atomic():
        PersonaVersion(influencer=three, number=2, change_note="x", published_at=three.created_at).take(content).save()


def test_an_author_who_leaves_leaves_the_versions(client: Client, publisher: User, three: Influencer) -> None:
    publisher.delete()

    assert numbers(three) == [1, 2, 3]


def test_a_superuser_deletes_a_persona_that_nobody_talked_with_and_its_versions(
    desk: Desk, superuser: User, three: Influencer
) -> None:
    desk(superuser).post(f"{LIST}{three.pk}/delete/", {"post": "yes"})

    assert not Influencer.objects.exists()
    assert not PersonaVersion.objects.exists()


# Two at once


def test_the_second_editor_is_told_sees_both_texts_and_loses_nothing(
    desk: Desk, editor: User, publisher: User, coach: Influencer
) -> None:
    first, second = desk(editor), desk(publisher)
    form = page(second, change(coach)).form("influencer_form")
    saved(submit(first, change(coach), initial_greeting="First wrote this", deflection="Only first wrote this"))

    mine = {**form, "initial_greeting": ["Second wrote that"], "system_instructions": ["Only second wrote that"]}
    told = second.post(change(coach), mine)

    shown = Page(told)
    assert told.status_code == 200
    assert "editor saved this persona while you were writing" in shown.text
    assert "<del>First</del><ins>Second</ins> wrote <del>this</del><ins>that</ins>" in shown.html
    assert "you see theirs now: Deflection." in shown.text
    again = shown.form("influencer_form")
    assert again["initial_greeting"] == ["Second wrote that"]
    assert again["system_instructions"] == ["Only second wrote that"]
    assert again["deflection"] == ["Only first wrote this"]
    assert draft(coach).initial_greeting == "First wrote this", "nothing of it is saved yet"

    saved(second.post(change(coach), again))

    assert draft(coach).content == coach.content | {
        "initial_greeting": "Second wrote that",
        "system_instructions": "Only second wrote that",
        "deflection": "Only first wrote this",
    }
    assert "First wrote this" in "".join(LogEntry.objects.values_list("change_message", flat=True))


def test_what_has_no_versions_is_not_overwritten_either(
    desk: Desk, superuser: User, publisher: User, coach: Influencer
) -> None:
    second = desk(publisher)
    form = page(second, change(coach)).form("influencer_form")
    saved(submit(desk(superuser), change(coach), description="First wrote this."))

    told = second.post(change(coach), {**form, "description": ["Second wrote that."]})

    assert "while you were writing" in Page(told).text
    coach.refresh_from_db()
    assert coach.description == "First wrote this."


def test_a_text_that_came_beside_a_slip_of_the_second_s_is_shown_before_it_is_replaced(
    desk: Desk, editor: User, publisher: User, coach: Influencer
) -> None:
    second = desk(publisher)
    form = page(second, change(coach)).form("influencer_form")
    saved(submit(desk(editor), change(coach), personality_traits='{"tone": "First wrote this"}', deflection="First"))

    slip = second.post(change(coach), {**form, "personality_traits": ['{"tone": "Second']})
    assert "Enter a valid JSON." in Page(slip).text
    again = Page(slip).form("influencer_form")
    told = second.post(change(coach), {**again, "personality_traits": ['{"tone": "Second wrote this"}']})

    assert "<del>First</del><ins>Second</ins> wrote this" in Page(told).html
    assert draft(coach).personality_traits == {"tone": "First wrote this"}
    saved(second.post(change(coach), Page(told).form("influencer_form")))
    assert draft(coach).personality_traits == {"tone": "Second wrote this"}
    assert draft(coach).deflection == "First"


@pytest.mark.parametrize("base", ["", "null", "[]", "{", "\x00", '{"initial_greeting": 7}', "[" * 5000])
def test_a_form_that_forgot_what_it_showed_still_loses_nothing(
    desk: Desk, editor: User, publisher: User, coach: Influencer, base: str
) -> None:
    second = desk(publisher)
    form = page(second, change(coach)).form("influencer_form")
    saved(submit(desk(editor), change(coach), initial_greeting="First"))

    told = second.post(change(coach), {**form, "base": [base], "revision": ["0"], "initial_greeting": ["Second"]})

    assert told.status_code == 200
    assert Page(told).form("influencer_form")["initial_greeting"] == ["Second"]
    assert draft(coach).initial_greeting == "First"


def test_who_publishes_a_draft_that_changed_meanwhile_sees_it_first(
    desk: Desk, editor: User, publisher: User, coach: Influencer
) -> None:
    saved(submit(desk(editor), change(coach), initial_greeting="Seen"))
    client = desk(publisher)
    form = page(client, at(coach, "publish/")).form("publish_form")
    saved(submit(desk(editor), change(coach), initial_greeting="Not seen"))

    told = client.post(at(coach, "publish/"), {**form, "change_note": "My note"})

    assert "Nothing was published." in Page(told).text
    assert "Not seen" in Page(told).text
    assert live(coach)["initial_greeting"] == "Hi, I'm your coach!"
    again = Page(told).form("publish_form")
    assert again["change_note"] == ["My note"]
    client.post(at(coach, "publish/"), again)
    assert live(coach)["initial_greeting"] == "Not seen"


# Other hands


def test_a_row_changed_outside_the_desk_is_obeyed_at_once_and_becomes_a_version_with_the_next_edit(
    client: Client, alice: Api, three: Influencer, gemini: FakeGemini
) -> None:
    Influencer.objects.filter(pk=three.pk).update(system_instructions="By a shell.")
    opened = alice.open(three)

    answer = alice.send(opened["id"]).json()["assistant_message"]

    assert gemini.last.system.startswith("By a shell.")
    assert Message.objects.get(pk=answer["id"]).persona_version is None
    assert "changed outside the desk" in page(client, change(three)).text
    assert numbers(three) == [1, 2, 3]
    saved(submit(client, change(three), initial_greeting="Fourth"))
    assert numbers(three) == [1, 2, 3, 4]
    by_shell = PersonaVersion.objects.get(number=4)
    assert (by_shell.system_instructions, by_shell.change_note) == ("By a shell.", "Changed outside the desk.")
    alice.send(opened["id"], "Again")
    assert Message.objects.latest("sequence").persona_version == 4


# Which version said it


def test_every_message_of_the_persona_records_the_version_that_said_it(
    client: Client, alice: Api, bob: Api, three: Influencer, gemini: FakeGemini
) -> None:
    opened = alice.open(three)
    alice.send(opened["id"], "Before")
    saved(submit(client, change(three), system_instructions="Four."))
    alice.send(opened["id"], "While it's drafted")
    published(client, three)
    gemini.will(blocks())
    alice.send(opened["id"], "After")

    rows = Message.objects.of(opened["id"]).order_by("sequence").values_list("role", "persona_version")
    assert list(rows) == [("assistant", 3), *[("user", None), ("assistant", 3)] * 2, ("user", None), ("assistant", 4)]


def test_a_regenerated_answer_keeps_the_version_of_each(client: Client, alice: Api, three: Influencer) -> None:
    opened = alice.open(three)
    question = alice.send(opened["id"]).json()["user_message"]["id"]
    saved(submit(client, change(three), system_instructions="Four."))
    published(client, three)

    alice.post(f"/api/v1/chat/conversations/{opened['id']}/messages/{question}/regenerate", {})

    assert AlternativeAnswer.objects.get().persona_version == 3
    assert Message.objects.latest("sequence").persona_version == 4


# Who may what (A3)


PLACES = ("publish/", "roll-back/", "draft/set-aside/", "versions/{}/restore/")


@pytest.fixture
def viewer(db: None) -> User:
    user = User.objects.create_user("viewer", "", PASSWORD, is_staff=True)
    user.user_permissions.set(Permission.objects.filter(codename__startswith="view_"))
    return user


@pytest.mark.parametrize("place", PLACES)
def test_who_may_only_look_changes_nothing_by_any_button(
    client: Client, desk: Desk, viewer: User, three: Influencer, place: str
) -> None:
    saved(submit(client, change(three), initial_greeting="In the works"))
    first = PersonaVersion.objects.get(number=1)
    before = list(PersonaVersion.objects.order_by("pk").values()), live(three)
    sent = {"revision": revision(client, three), "change_note": "Mine"}
    watching = desk(viewer)

    for url in ("versions/", f"versions/{first.pk}/", "change/"):
        shown = page(watching, at(three, url))
        assert "revision" not in shown.attributes("name"), "no button is offered"
        assert "Publish …" not in [words for words, _ in shown.links]
    refused = watching.post(at(three, place.format(first.pk)), sent)

    assert refused.status_code == 403
    assert (list(PersonaVersion.objects.order_by("pk").values()), live(three)) == before


def test_an_editor_writes_and_does_not_publish(desk: Desk, editor: User, client: Client, three: Influencer) -> None:
    writing = desk(editor)
    saved(submit(writing, change(three), initial_greeting="Drafted by the editor"))
    sent = {"revision": revision(client, three), "change_note": "Mine"}

    assert "Publish" not in [words.split(" ")[0] for words, _ in page(writing, change(three)).links]
    for place in ("publish/", "roll-back/"):
        assert writing.get(at(three, "publish/")).status_code == 403
        assert writing.post(at(three, place), sent).status_code == 403
    form = page(writing, change(three)).form("influencer_form")
    writing.post(change(three), {**form, "is_active": "discontinued"})
    writing.post(LIST, {"action": "retire", "_selected_action": [three.pk], "index": "0"})
    three.refresh_from_db()
    assert (three.is_active, three.initial_greeting) == ("active", "Third")


@pytest.mark.parametrize("place", ["publish/", "versions/", *PLACES[1:]])
def test_staff_without_any_right_and_strangers_see_no_version(desk: Desk, three: Influencer, place: str) -> None:
    newcomer = desk(User.objects.create_user("new", "", PASSWORD, is_staff=True))
    url = at(three, place.format(PersonaVersion.objects.get(number=1).pk))

    assert newcomer.get(url).status_code in (403, 405)
    assert newcomer.post(url).status_code in (403, 405)
    assert Client().get(url).status_code == 302
    assert Client().post(url).status_code == 302


@pytest.mark.parametrize("place", PLACES)
def test_a_button_on_another_site_does_nothing(publisher: User, three: Influencer, place: str) -> None:
    forging = Client(enforce_csrf_checks=True)
    forging.force_login(publisher)

    url = at(three, place.format(PersonaVersion.objects.get(number=1).pk))

    assert forging.post(url, {"change_note": "Forged"}).status_code == 403
    assert numbers(three) == [1, 2, 3]


@pytest.mark.parametrize("place", PLACES[1:])
def test_what_changes_something_is_no_link(client: Client, three: Influencer, place: str) -> None:
    assert client.get(at(three, place.format(PersonaVersion.objects.get(number=1).pk))).status_code == 405


@pytest.mark.parametrize("place", ["publish/", "versions/", "versions/1/"])
@pytest.mark.parametrize("influencer_id", ["nobody", "%00", "a%00b", "x" * 300])
def test_an_unknown_persona_has_no_pages(client: Client, place: str, influencer_id: str) -> None:
    assert client.get(f"{LIST}{influencer_id}/{place}").status_code == 404


def test_a_version_is_not_reached_through_another_persona(
    client: Client, three: Influencer, make_influencer: MakeInfluencer
) -> None:
    other, first = make_influencer(), PersonaVersion.objects.get(number=1)

    assert client.get(at(other, f"versions/{first.pk}/")).status_code == 404
    assert client.post(at(other, f"versions/{first.pk}/restore/"), {"revision": ""}).status_code == 404
    for against in (str(10**18), str(10**30), "x", "-1"):
        assert client.get(at(three, f"versions/{first.pk}/"), {"against": against}).status_code in (200, 404)
    assert client.get(at(three, f"versions/{10**30}/")).status_code == 404


# Foreign text (A7), and what pages cost


def test_markup_in_a_version_is_inert_on_every_page(client: Client, make_influencer: MakeInfluencer) -> None:
    persona = make_influencer(
        system_instructions="Before.", initial_greeting=PAYLOAD, suggested_messages=[PAYLOAD], language_note="Hindi"
    )
    Influencer.objects.update(display_name=PAYLOAD[:100])
    evil = {
        "system_instructions": PAYLOAD,
        "language_note": PAYLOAD,
        "deflection": PAYLOAD,
        "personality_traits": '{"a": "b"}',
    }
    saved(submit(client, change(persona), **evil))
    pages = [change(persona), at(persona, "publish/"), at(persona)]
    for url in pages:
        assert_inert(page(client, url))
    published(client, persona, PAYLOAD)
    version = PersonaVersion.objects.latest("pk")
    for url in (*pages[::2], at(persona, f"versions/{version.pk}/"), at(persona, "history/"), LIST):
        html = page(client, url)
        assert_inert(html)
        assert "x-canary" in html.text, url
    form = page(client, change(persona)).form("influencer_form")
    told = client.post(change(persona), {**form, "revision": "0", "base": PAYLOAD, "deflection": "x" + PAYLOAD})
    assert "while you were writing" in Page(told).text
    assert_inert(Page(told))


def test_a_persona_with_a_principal_for_its_id_has_all_pages(client: Client, make_influencer: MakeInfluencer) -> None:
    persona = make_influencer(id="a/b?c#d_e f%")
    url = page(client, LIST).link(persona.display_name)
    saved(submit(client, url, initial_greeting="New"))

    url = page(client, url).link("Publish …")
    response = client.post(url, {**page(client, url).form("publish_form"), "change_note": "Because."})

    assert response.status_code == 302
    assert live(persona)["initial_greeting"] == "New"


def test_the_list_of_versions_costs_the_same_for_forty_as_for_one(
    client: Client, three: Influencer, django_assert_max_num_queries: Any
) -> None:
    for number in range(4, 44):
        PersonaVersion(influencer=three, number=number, change_note="x", published_at=three.created_at).take(
            three.content
        ).save()

    with django_assert_max_num_queries(12):
        assert page(client, at(three)).text.count("Version ") >= 40
