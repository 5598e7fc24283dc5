"""Staff and personas, through the admin's real pages: what a browser sends, and what the next reply makes of it."""

import datetime as dt
from collections.abc import Callable
from contextlib import closing
from http import HTTPStatus
from typing import Any

import pytest
from django.contrib.admin.models import ADDITION, CHANGE, DELETION, LogEntry
from django.contrib.auth.models import Group, Permission, User
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from conversations.models import Conversation, Message
from conversations.services import open_conversation
from personas.models import Influencer, PersonaVersion
from tests.conftest import Api, token
from tests.fake_gemini import FakeGemini
from tests.personas.page import Page
from tests.reasons import give_reason

LIST = "/admin/personas/influencer/"
ADD = f"{LIST}add/"
CONVERSATIONS = "/admin/conversations/conversation/"
MESSAGES = "/admin/conversations/message/"
PASSWORD = "a-password-for-tests"
# Ends an attribute, a text area, a title and a script; whatever the context, what follows would be an element.
PAYLOAD = "\"'></textarea></title></script><x-canary onerror=alert(1)><script>x_canary()</script>{{7*7}}"

Desk = Callable[[User], Client]
MakeInfluencer = Callable[..., Influencer]


def change(influencer: Influencer) -> str:
    return f"{LIST}{influencer.pk}/change/"


def page(client: Client, url: str, **query: Any) -> Page:
    response = client.get(url, query)
    assert response.status_code == 200, (url, response.status_code, response.get("Location"))
    return Page(response)


def submit(client: Client, url: str, **typed: str | list[str]) -> Any:
    """Open the form, type into some fields, press Save."""
    form = page(client, url).form("influencer_form")
    for name, value in typed.items():
        assert name in form, f"{name} is not on the form"
        form[name] = [value] if isinstance(value, str) else value
    return client.post(url, {**form, "_save": "Save"})


def saved(response: Any) -> None:
    if response.status_code == 200:
        pytest.fail(f"not saved: {response.context['errors']}")
    assert (response.status_code, response["Location"].endswith("/change/")) == (302, True)


def published(client: Client, influencer: Influencer, note: str = "Because.") -> None:
    """By the page that shows what differs."""
    url = f"{LIST}{influencer.pk}/publish/"
    form = page(client, url).form("publish_form")
    response = client.post(url, {**form, "change_note": note})
    assert (response.status_code, response["Location"]) == (302, change(influencer))


def names(client: Client, url: str = LIST, **query: Any) -> set[str]:
    """The personas on a list page, by their links."""
    return {words for words, href in page(client, url, **query).links if href.split("?")[0].endswith("/change/")}


def run_action(client: Client, action: str, *influencers: Influencer) -> Any:
    return client.post(
        LIST, {"action": action, "_selected_action": [each.pk for each in influencers], "index": "0"}, follow=True
    )


def statements(client: Client, url: str) -> int:
    with CaptureQueriesContext(
        connection,
    ) as queries:
        assert client.get(url).status_code == 200
    return len(queries)


def assert_inert(html: Page) -> None:
    assert "<x-canary" not in html.html
    assert "<script>x_canary" not in html.html
    assert "x-canary" not in {tag for tag, _ in html.tags}
    assert not html.attributes("onerror")
    assert not [value for value in html.attributes("href") if value.strip().lower().startswith("javascript:")]


@pytest.fixture(autouse=True)
def fast_passwords(settings: Any) -> None:
    """Half a second for each member of staff, otherwise."""
    settings.PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]


@pytest.fixture
def viewer(db: None) -> User:
    """Staff who may look at everything and touch nothing."""
    user = User.objects.create_user("viewer", "", PASSWORD, is_staff=True)
    user.user_permissions.set(Permission.objects.filter(codename__startswith="view_"))
    return user


@pytest.fixture
def at_desk(desk: Desk, editor: User) -> Client:
    """The admin, as a content editor sees it."""
    return desk(editor)


@pytest.fixture
def publishing(desk: Desk, publisher: User) -> Client:
    """The admin, as somebody sees it who may publish."""
    return desk(publisher)


# Writing


def test_an_editor_makes_a_persona_and_users_talk_with_it_once_it_is_published(
    at_desk: Client, publishing: Client, alice: Api, nobody: Api, gemini: FakeGemini
) -> None:
    response = submit(
        at_desk,
        ADD,
        display_name="Chef Nila",
        name="chef-nila",
        category="cooking",
        description="Cooks with what you have.",
        avatar_url="https://pictures.example/nila.png",
        system_instructions="You are Nila.\nYou cook.",
        initial_greeting="Hungry?",
        suggested_messages='["Dinner?", "Idlis?"]',
        deflection="Not on my stove.",
        personality_traits='{"tone": "warm"}',
        model="gemini-2.5-pro",
        temperature="0.4",
        max_output_tokens="300",
    )

    saved(response)
    nila = Influencer.objects.get()
    assert nobody.get("/api/v1/influencers").json() == {"influencers": [], "total": 0, "limit": 50, "offset": 0}
    assert nobody.get(f"/api/v1/influencers/{nila.pk}").status_code == 404
    assert alice.post("/api/v1/chat/conversations", {"influencer_id": nila.pk}).status_code == 404
    published(publishing, nila)
    nila.refresh_from_db()
    assert (nila.name, nila.is_active, nila.suggested_messages) == ("chef-nila", "active", ["Dinner?", "Idlis?"])
    assert (nila.temperature, nila.max_output_tokens, nila.personality_traits) == (0.4, 300, {"tone": "warm"})
    assert LogEntry.objects.order_by("pk")[0].action_flag == ADDITION
    opened = alice.open(nila)
    assert opened["last_message"]["content"] == "Hungry?"
    assert opened["influencer"]["suggested_messages"] == ["Dinner?", "Idlis?"]
    assert alice.send(opened["id"], "Dinner?").status_code == 200
    assert "gemini-2.5-pro" in gemini.last.path
    assert gemini.last.system.startswith("You are Nila.")
    assert gemini.last.body["generationConfig"]["temperature"] == 0.4
    assert gemini.last.body["generationConfig"]["maxOutputTokens"] == 300


def test_a_new_persona_needs_no_more_than_a_name_and_instructions(publishing: Client, alice: Api) -> None:
    saved(submit(publishing, ADD, display_name="Bare", name="bare", system_instructions="Be bare."))
    published(publishing, Influencer.objects.get())

    bare = Influencer.objects.get()
    assert (bare.suggested_messages, bare.personality_traits, bare.metadata) == ([], {}, {})
    assert (bare.temperature, bare.max_output_tokens, bare.model) == (None, None, "")
    opened = alice.open(bare)
    assert opened["influencer"]["suggested_messages"] == []
    assert opened["message_count"] == 0
    assert alice.send(opened["id"]).status_code == 200


def test_the_very_next_reply_obeys_the_edited_instructions_once_they_are_published(
    publishing: Client, alice: Api, coach: Influencer, conversation: Conversation, gemini: FakeGemini
) -> None:
    saved(submit(publishing, change(coach), system_instructions="Answer only in rhyme."))
    alice.send(conversation, "One")
    assert gemini.last.system.startswith("You are Persona 1.")

    published(publishing, coach)
    alice.send(conversation, "Two")

    assert gemini.last.system.startswith("Answer only in rhyme.")
    assert "Persona 1" not in gemini.last.system
    for entry in LogEntry.objects.all():
        assert (entry.action_flag, entry.object_id) == (CHANGE, coach.pk)
        assert "System instructions" in entry.get_change_message()


def test_every_other_edit_is_obeyed_at_once_too(
    publishing: Client, alice: Api, bob: Api, coach: Influencer, conversation: Conversation, gemini: FakeGemini
) -> None:
    saved(
        submit(
            publishing,
            change(coach),
            initial_greeting="New greeting",
            suggested_messages='["New suggestion"]',
            temperature="1.5",
            personality_traits='{"humour": "dry"}',
            display_name="Coach Renamed",
        )
    )
    published(publishing, coach)
    alice.send(conversation, "Hello")

    assert gemini.last.body["generationConfig"]["temperature"] == 1.5
    assert "humour: dry" in gemini.last.system
    opened = bob.open(coach)
    assert opened["last_message"]["content"] == "New greeting"
    assert opened["influencer"]["suggested_messages"] == ["New suggestion"]
    assert opened["influencer"]["display_name"] == "Coach Renamed"
    # what was said stays as it was said
    assert alice.messages(conversation, order="asc").json()["messages"][0]["content"] == "Hi, I'm your coach!"


def test_the_form_shows_what_is_stored_and_saving_it_untouched_changes_nothing(
    at_desk: Client, make_influencer: MakeInfluencer
) -> None:
    """A browser sends line breaks as CR LF; neither the model nor the apps are to get those."""
    persona = make_influencer(
        system_instructions="You are Asha.\n\nVOICE\n- warm & direct <3",
        initial_greeting="Hi!\nI'm Asha.",
        description="One\nTwo",
        deflection="No.\nNext?",
        avatar_url="/static/personas/avatars/coach-veer.png",
        suggested_messages=["मेरा दिन?", "💪"],
        personality_traits={"tone": "warm"},
        temperature=0.7,
        max_output_tokens=2048,
    )
    fields = [field.attname for field in Influencer._meta.concrete_fields if field.attname != "updated_at"]
    before = Influencer.objects.values_list(*fields).get()

    saved(submit(at_desk, change(persona)))

    after = Influencer.objects.values_list(*fields).get()
    assert dict(zip(fields, after, strict=True)) == dict(zip(fields, before, strict=True))
    assert not LogEntry.objects.exists()
    assert not PersonaVersion.objects.drafts().exists()


def test_staff_can_empty_every_field_that_may_be_empty(
    publishing: Client, alice: Api, coach: Influencer, gemini: FakeGemini
) -> None:
    optional = (
        "initial_greeting suggested_messages deflection category description avatar_url personality_traits model "
        "temperature max_output_tokens metadata language_note"
    )

    saved(submit(publishing, change(coach), **dict.fromkeys(optional.split(), "")))
    published(publishing, coach)

    listed = alice.get("/api/v1/influencers").json()["influencers"][0]
    assert None not in listed.values()
    opened = alice.open(coach)
    assert opened["influencer"]["suggested_messages"] == []
    assert opened["influencer"]["category"] == ""
    assert alice.send(opened["id"]).status_code == 200


@pytest.mark.parametrize(
    ("field", "typed"),
    [
        ("display_name", ""),
        ("system_instructions", "   "),
        ("name", "Not A Name"),
        ("name", "taken"),
        ("is_active", "retired"),
        ("avatar_url", "javascript:alert(1)"),
        ("avatar_url", "http://pictures.example/a.png"),
        ("suggested_messages", '{"a": 1}'),
        ("suggested_messages", "Plan my \x00 week"),
        ("suggested_messages", '["one", 2]'),
        ("suggested_messages", "[as written in a letter]"),
        ("personality_traits", "warm"),
        ("personality_traits", "tone: warm\ntone: cold"),
        ("suggested_messages", '["\\ud83d"]'),
        ("suggested_messages", '["\\u0000"]'),
        ("personality_traits", "[1]"),
        ("personality_traits", '{"energy": NaN}'),
        ("personality_traits", '{"energy": Infinity}'),
        ("personality_traits", '{"tone": "\\u0000"}'),
        ("metadata", "7"),
        ("metadata", '{"a": NaN}'),
        ("temperature", "2.1"),
        ("temperature", "nan"),
        ("max_output_tokens", "0"),
        ("max_output_tokens", "99999999999999999999"),
        ("system_instructions", "null \x00 inside"),
    ],
)
def test_a_value_that_would_not_work_is_said_beside_its_field_and_nothing_is_saved(
    publishing: Client, coach: Influencer, make_influencer: MakeInfluencer, field: str, typed: str
) -> None:
    make_influencer(name="taken")
    before = Influencer.objects.values().get(pk=coach.pk)

    response = submit(publishing, change(coach), **{field: typed})

    assert response.status_code == 200
    assert list(response.context["adminform"].form.errors) == [field]
    assert Influencer.objects.values().get(pk=coach.pk) == before
    assert not LogEntry.objects.exists()


def test_a_retired_persona_ends_its_conversations_politely_and_comes_back(
    publishing: Client, alice: Api, coach: Influencer, conversation: Conversation
) -> None:
    saved(submit(publishing, change(coach), is_active="discontinued"))
    refused = alice.send(conversation)
    assert (refused.status_code, refused.json()["message"]) == (404, "Influencer not found")
    assert Message.objects.count() == 1

    saved(submit(publishing, change(coach), is_active="active"))

    assert alice.send(conversation).status_code == 200


# The editor


def test_the_instructions_have_a_large_editor_that_counts(at_desk: Client, coach: Influencer) -> None:
    edit = page(at_desk, change(coach))

    editor = next(attrs for tag, attrs in edit.tags if tag == "textarea" and attrs["name"] == "system_instructions")
    assert int(editor["rows"]) >= 20
    assert "instructions" in editor["class"].split()
    assert "/static/personas/instructions.js" in edit.attributes("src")
    assert "/static/personas/instructions.css" in edit.attributes("href")
    for path in ("/static/personas/instructions.js", "/static/personas/instructions.css"):
        with closing(at_desk.get(path)) as response:
            assert response.status_code == 200


def test_no_page_of_the_admin_loads_anything_from_elsewhere(at_desk: Client, coach: Influencer) -> None:
    for url in ("/admin/", LIST, ADD, change(coach), f"{LIST}{coach.pk}/history/"):
        html = page(at_desk, url)
        loaded = [a.get("src") or (a.get("href") if tag == "link" else "") for tag, a in html.tags if tag != "a"]
        assert not [address for address in loaded if address and not address.startswith("/")], url


@pytest.mark.parametrize("picture", ["https://pictures.example/a.png", "/static/personas/avatars/coach-veer.png"])
def test_the_picture_is_shown_in_the_list_and_on_the_form(
    at_desk: Client, make_influencer: MakeInfluencer, picture: str
) -> None:
    persona = make_influencer(avatar_url=picture)

    for url in (LIST, change(persona)):
        assert ("img", picture) in [(tag, attrs.get("src")) for tag, attrs in page(at_desk, url).tags], url


def test_a_persona_without_a_picture_shows_none(at_desk: Client, coach: Influencer) -> None:
    for url in (LIST, change(coach)):
        assert "img" not in {tag for tag, attrs in page(at_desk, url).tags if not attrs.get("src", "").startswith("/")}
        assert 'src=""' not in page(at_desk, url).html


# Finding


def test_search_finds_by_names_description_and_category(at_desk: Client, make_influencer: MakeInfluencer) -> None:
    make_influencer(name="veer-k", display_name="Coach Veer", description="Home workouts", category="fitness")
    make_influencer(name="tara-j", display_name="Tara", description="Sterne und Zeichen", category="astrology")

    for words in ("coach", "VEER-K", "workouts", "fitness", "home coach"):
        assert names(at_desk, q=words) == {"Coach Veer"}, words
    assert names(at_desk, q="astro") == {"Tara"}
    assert names(at_desk, q="nothing of that") == set()
    assert names(at_desk) == {"Coach Veer", "Tara"}


@pytest.mark.parametrize("words", ["%", "_", "'", '"', "\\", "(", "a\x00b", "\x00", "x" * 2000, "💪", "' OR 1=1 --"])
def test_odd_characters_in_the_search_are_harmless(at_desk: Client, coach: Influencer, words: str) -> None:
    assert at_desk.get(LIST, {"q": words}).status_code == 200


def test_the_filters_are_by_status_and_category(at_desk: Client, make_influencer: MakeInfluencer) -> None:
    make_influencer(display_name="One", category="fitness")
    make_influencer(display_name="Two", category="fitness", is_active="discontinued")
    make_influencer(display_name="Three", category="cooking", is_active="coming_soon")
    make_influencer(display_name="Four", category="art", goes_live_at=timezone.now() + dt.timedelta(hours=1))
    make_influencer(display_name="Five", category="art", goes_live_at=timezone.now() - dt.timedelta(hours=1))
    everyone = page(at_desk, LIST)

    assert names(at_desk, LIST + everyone.link("Active")) == {"One", "Five"}
    assert names(at_desk, LIST + everyone.link("Coming soon")) == {"Three", "Four"}
    assert names(at_desk, LIST + everyone.link("Discontinued")) == {"Two"}
    assert names(at_desk, LIST + everyone.link("fitness")) == {"One", "Two"}
    both = page(at_desk, LIST + everyone.link("fitness")).link("Discontinued")
    assert names(at_desk, LIST + both) == {"Two"}


def test_the_list_takes_no_more_statements_for_thirty_than_for_one(
    at_desk: Client, make_influencer: MakeInfluencer
) -> None:
    make_influencer(category="first")
    statements(at_desk, LIST)  # content types and the like are remembered from here on
    one = statements(at_desk, LIST)
    for number in range(29):
        make_influencer(category=f"category-{number}", avatar_url="https://pictures.example/a.png")

    assert statements(at_desk, LIST) == one <= 12


# Actions


def test_activate_and_retire_change_the_chosen_personas_and_say_how_many(
    publishing: Client, nobody: Api, make_influencer: MakeInfluencer
) -> None:
    chosen = [make_influencer(is_active=status) for status in ("active", "coming_soon", "discontinued")]
    left = make_influencer(is_active="coming_soon")

    done = Page(run_action(publishing, "activate", *chosen))

    assert "2 personas activated." in done.text
    assert set(Influencer.objects.active()) == set(chosen)
    left.refresh_from_db()
    assert left.is_active == "coming_soon"
    assert len([i for i in nobody.get("/api/v1/influencers").json()["influencers"] if i["is_active"] == "active"]) == 3

    done = Page(run_action(publishing, "retire", chosen[0]))

    assert "1 persona retired." in done.text
    assert nobody.get(f"/api/v1/influencers/{chosen[0].pk}").status_code == 404
    assert nobody.get(f"/api/v1/influencers/{chosen[1].pk}").status_code == 200


def test_an_action_is_on_record_for_each_persona_that_it_changed(
    publishing: Client, publisher: User, make_influencer: MakeInfluencer
) -> None:
    changed, unchanged = make_influencer(), make_influencer(is_active="discontinued")
    before = changed.updated_at

    run_action(publishing, "retire", changed, unchanged)

    entry = LogEntry.objects.get()
    assert (entry.user, entry.object_id, entry.action_flag) == (publisher, changed.pk, CHANGE)
    assert "Status" in entry.get_change_message()
    changed.refresh_from_db()
    assert changed.updated_at > before
    assert "discontinued" in page(publishing, f"{LIST}{changed.pk}/history/").text


def test_an_action_on_a_filtered_and_searched_list_touches_only_what_was_chosen(
    publishing: Client, make_influencer: MakeInfluencer
) -> None:
    chosen, other = make_influencer(category="fitness"), make_influencer(category="fitness")

    publishing.post(
        f"{LIST}?category=fitness&q=persona",
        {"action": "retire", "_selected_action": [chosen.pk], "index": "0", "select_across": "0"},
    )

    assert dict(Influencer.objects.values_list("pk", "is_active")) == {chosen.pk: "discontinued", other.pk: "active"}


# Who may what


def test_an_editor_sees_personas_and_nothing_else(at_desk: Client, conversation: Conversation) -> None:
    index = page(at_desk, "/admin/")

    models = {href for _, href in index.links if href.startswith("/admin/") and href.count("/") == 4}
    assert models == {LIST}
    assert "Conversations" not in index.text


def test_an_editor_sees_no_chats_at_any_address(at_desk: Client, coach: Influencer, conversation: Conversation) -> None:
    message = Message.objects.get()
    for url in (
        CONVERSATIONS,
        f"{CONVERSATIONS}{conversation.pk}/change/",
        f"{CONVERSATIONS}{conversation.pk}/history/",
        f"{CONVERSATIONS}?q=alice",
        MESSAGES,
        f"{MESSAGES}{message.pk}/change/",
        f"{MESSAGES}?conversation__id__exact={conversation.pk}",
        "/admin/conversations/",
    ):
        response = at_desk.get(url)
        assert response.status_code in (403, 404), url
        assert b"alice" not in response.content
        assert message.content.encode() not in response.content
    assert "alice" not in page(at_desk, change(coach)).text


def test_an_editor_changes_nothing_that_users_would_see_at_once(
    at_desk: Client, coach: Influencer, make_influencer: MakeInfluencer
) -> None:
    """What has no draft: its name is even told to the model."""
    before = {name: getattr(coach, name) for name in (*Influencer.DETAILS, "is_active")}
    url = change(coach)
    form = page(at_desk, url).form("influencer_form")
    assert not before.keys() & form.keys()

    typed = {
        **form,
        "name": "taken-over",
        "display_name": "Evil",
        "avatar_url": "https://evil.example/",
        "metadata": "{}",
    }
    saved(at_desk.post(url, {**typed, "description": "x", "category": "x", "is_active": "discontinued"}))

    coach.refresh_from_db()
    assert {name: getattr(coach, name) for name in before} == before
    saved(submit(at_desk, change(make_influencer(is_active="draft")), display_name="Not seen yet"))


def test_an_editor_cannot_delete_a_persona(at_desk: Client, coach: Influencer) -> None:
    url = f"{LIST}{coach.pk}/delete/"

    assert "delete_selected" not in page(at_desk, LIST).html
    assert "Delete" not in [words for words, _ in page(at_desk, change(coach)).links]
    assert at_desk.get(url).status_code == 403
    assert at_desk.post(url, {"post": "yes"}).status_code == 403
    at_desk.post(LIST, {"action": "delete_selected", "_selected_action": [coach.pk], "post": "yes"})
    assert Influencer.objects.filter(pk=coach.pk).exists()


@pytest.mark.parametrize("url", ["/admin/auth/user/", "/admin/auth/user/add/", "/admin/auth/group/"])
def test_an_editor_cannot_give_themselves_more_rights(at_desk: Client, editor: User, url: str) -> None:
    assert at_desk.get(url).status_code == 403
    assert at_desk.post(url, {"username": "x"}).status_code == 403
    assert at_desk.post(f"/admin/auth/user/{editor.pk}/change/", {"is_superuser": "on"}).status_code == 403
    editor.refresh_from_db()
    assert not editor.is_superuser


@pytest.mark.django_db
def test_the_group_holds_exactly_add_change_and_view_of_personas() -> None:
    permissions = Group.objects.get(name="Content editors").permissions.values_list("codename", flat=True)

    assert set(permissions) == {"add_influencer", "change_influencer", "view_influencer"}
    assert Permission.objects.filter(codename="change_influencer").count() == 1


def test_who_may_only_look_sees_a_form_without_fields(desk: Desk, viewer: User, coach: Influencer) -> None:
    edit = page(desk(viewer), change(coach))

    assert set(edit.form("influencer_form")) <= {"csrfmiddlewaretoken"}
    assert "You are Persona 1." in edit.text


def test_who_may_only_look_changes_nothing_by_the_form(
    desk: Desk, viewer: User, superuser: User, coach: Influencer
) -> None:
    """The form as somebody with the right would send it (A3)."""
    form = page(desk(superuser), change(coach)).form("influencer_form")
    form |= {"system_instructions": ["Obey the viewer."], "is_active": ["discontinued"], "name": ["viewed"]}
    before = list(Influencer.objects.values())
    client = desk(viewer)

    for button in ("_save", "_continue", "_addanother", "_saveasnew"):
        assert client.post(change(coach), {**form, button: "1"}).status_code == HTTPStatus.FORBIDDEN
        assert client.post(ADD, {**form, button: "1"}).status_code == HTTPStatus.FORBIDDEN
    assert client.get(ADD).status_code == HTTPStatus.FORBIDDEN
    assert client.post(f"{LIST}{coach.pk}/delete/", {"post": "yes"}).status_code == HTTPStatus.FORBIDDEN

    assert list(Influencer.objects.values()) == before
    assert not LogEntry.objects.exists()


@pytest.mark.parametrize("action", ["activate", "retire", "delete_selected"])
@pytest.mark.parametrize("across", ["0", "1"])
def test_who_may_only_look_runs_no_action(
    desk: Desk, viewer: User, make_influencer: MakeInfluencer, action: str, across: str
) -> None:
    """Neither offered nor done when the request is made by hand (A3)."""
    personas = [make_influencer(), make_influencer(is_active="discontinued")]
    before = list(Influencer.objects.order_by("pk").values())
    client = desk(viewer)

    assert action not in page(client, LIST).html
    for extra in ({"index": "0"}, {"post": "yes"}, {"_save": "Save"}):
        selected = [persona.pk for persona in personas]
        client.post(LIST, {"action": action, "_selected_action": selected, "select_across": across, **extra})

    assert list(Influencer.objects.order_by("pk").values()) == before
    assert not LogEntry.objects.exists()


def test_staff_without_any_right_see_no_persona(desk: Desk, coach: Influencer) -> None:
    client = desk(User.objects.create_user("new", "", PASSWORD, is_staff=True))

    for url in (LIST, change(coach), ADD, f"{LIST}{coach.pk}/history/", f"{LIST}{coach.pk}/delete/"):
        assert client.get(url).status_code == 403, url
    assert client.get("/admin/").status_code == 200


@pytest.mark.parametrize("method", ["get", "post"])
def test_who_is_no_staff_is_sent_to_the_login(client: Client, coach: Influencer, method: str) -> None:
    customer = User.objects.create_user("customer", "", PASSWORD)
    for log_in in (False, True):
        if log_in:
            client.force_login(customer)
        for url in ("/admin/", LIST, ADD, change(coach), CONVERSATIONS, MESSAGES):
            response = getattr(client, method)(url)
            assert response.status_code == 302, url
            assert response["Location"].startswith("/admin/login/?next="), url


def test_a_users_token_opens_no_page_of_the_admin(client: Client, coach: Influencer, superuser: User) -> None:
    for user_id in ("root", str(superuser.pk)):
        response = client.get(LIST, headers={"Authorization": f"Bearer {token(user_id)}"})
        assert response.status_code == 302


def test_a_staff_session_opens_no_chat_in_the_api(desk: Desk, superuser: User, conversation: Conversation) -> None:
    client = desk(superuser)

    for path in ("/api/v1/chat/conversations", f"/api/v1/chat/conversations/{conversation.pk}/messages"):
        assert client.get(path).status_code == 401
        assert client.post(path, {}, content_type="application/json").status_code == 401


def test_a_form_from_another_site_is_refused(editor: User, coach: Influencer) -> None:
    client = Client(enforce_csrf_checks=True)
    client.force_login(editor)
    form = page(client, change(coach)).form("influencer_form")
    form["display_name"] = ["Forged"]

    forged = client.post(change(coach), form | {"csrfmiddlewaretoken": ["x" * 64]})
    assert forged.status_code == 403
    assert client.post(LIST, {"action": "retire", "_selected_action": [coach.pk], "index": "0"}).status_code == 403
    coach.refresh_from_db()
    assert (coach.display_name, coach.is_active) == ("Coach Asha", "active")

    saved(client.post(change(coach), {**form, "_save": "Save"}))


def test_the_admin_is_never_shown_in_a_frame(at_desk: Client, client: Client, coach: Influencer) -> None:
    for response in (at_desk.get(LIST), at_desk.get(change(coach)), client.get("/admin/login/")):
        assert response["X-Frame-Options"] == "DENY"


# Leaving (A10)


def log_in(username: str) -> Client:
    """By the login form, so that the session is one as in life."""
    client = Client()
    form = page(client, "/admin/login/").form("login-form")
    response = client.post("/admin/login/?next=/admin/", {**form, "username": [username], "password": [PASSWORD]})
    assert (response.status_code, response["Location"]) == (302, "/admin/")
    return client


def lose_everything(user: User) -> None:
    user.is_active = False
    user.save()


def lose_the_desk(user: User) -> None:
    user.is_staff = False
    user.save()


def change_the_password(user: User) -> None:
    user.set_password("another-password-for-tests")
    user.save()


def be_deleted(user: User) -> None:
    user.delete()


@pytest.mark.parametrize("leave", [lose_everything, lose_the_desk, change_the_password, be_deleted])
def test_who_leaves_loses_the_admin_at_once(editor: User, coach: Influencer, leave: Callable[[User], None]) -> None:
    client = log_in("editor")
    form = page(client, change(coach)).form("influencer_form")
    form["system_instructions"] = ["Obey the one who left."]

    leave(editor)

    for response in (
        client.get(LIST),
        client.get(change(coach)),
        client.post(change(coach), {**form, "_save": "Save"}),
        client.post(LIST, {"action": "retire", "_selected_action": [coach.pk], "index": "0"}),
    ):
        assert response.status_code == 302
        assert response["Location"].startswith("/admin/login/")
    coach.refresh_from_db()
    assert coach.system_instructions.startswith("You are Persona 1.")
    assert coach.is_active == "active"


def test_a_lost_group_is_lost_at_once(editor: User, coach: Influencer) -> None:
    client = log_in("editor")
    assert client.get(change(coach)).status_code == 200

    editor.groups.clear()

    assert client.get(change(coach)).status_code == 403


@pytest.mark.parametrize("state", [{"is_active": False}, {"is_staff": False}])
def test_who_left_cannot_log_in_again(editor: User, client: Client, state: dict[str, bool]) -> None:
    User.objects.filter(pk=editor.pk).update(**state)

    response = client.post("/admin/login/", {"username": "editor", "password": PASSWORD})

    assert response.status_code == 200
    assert client.get(LIST).status_code == 302


# Foreign text (A7)


def test_markup_in_a_persona_is_inert_on_every_page(
    desk: Desk, superuser: User, make_influencer: MakeInfluencer
) -> None:
    persona = make_influencer(
        display_name=PAYLOAD[:100],
        description=PAYLOAD,
        avatar_url=PAYLOAD,
        category='"><x-canary onerror=a>',
        system_instructions=PAYLOAD,
        initial_greeting=PAYLOAD,
        deflection=PAYLOAD,
        suggested_messages=[PAYLOAD],
        personality_traits={PAYLOAD: PAYLOAD},
        metadata={"note": PAYLOAD},
        model=PAYLOAD[:100],
    )
    Influencer.objects.update(name=PAYLOAD[:100])
    client = desk(superuser)

    for url in (LIST, f"{LIST}?q=x-canary", change(persona), f"{LIST}{persona.pk}/delete/"):
        html = page(client, url)
        assert_inert(html)
        assert "x-canary" in html.text, url
    assert_inert(Page(run_action(client, "retire", persona)))
    assert_inert(Page(run_action(client, "delete_selected", persona)))
    for url in ("/admin/", f"{LIST}{persona.pk}/history/", CONVERSATIONS, MESSAGES):
        assert_inert(page(client, url))
    form = page(client, change(persona)).form("influencer_form")
    assert form["system_instructions"] == [PAYLOAD]
    rejected = client.post(change(persona), {**form, "_save": "Save"})  # the name is not valid: the page comes again
    assert rejected.status_code == 200
    assert_inert(Page(rejected))


@pytest.mark.parametrize(
    "address", ["javascript:alert(1)", " javascript:alert(1)", "data:text/html,<script>1</script>"]
)
def test_a_picture_address_that_is_a_program_is_no_link(
    at_desk: Client, make_influencer: MakeInfluencer, address: str
) -> None:
    persona = make_influencer(avatar_url=address)

    for url in (LIST, change(persona)):
        html = page(at_desk, url)
        assert_inert(html)
        assert address not in html.attributes("href")


@pytest.mark.parametrize("query", ["q", "category", "is_active__exact", "o", "e", "_popup"])
def test_markup_in_the_address_is_inert(at_desk: Client, coach: Influencer, query: str) -> None:
    response = at_desk.get(LIST, {query: PAYLOAD}, follow=True)

    assert response.status_code == 200
    assert_inert(Page(response))


def test_markup_in_chats_is_inert_on_every_page(
    desk: Desk, superuser: User, make_influencer: MakeInfluencer, gemini: FakeGemini
) -> None:
    persona = make_influencer(display_name=PAYLOAD[:100], initial_greeting=PAYLOAD)
    evil = Api(PAYLOAD)
    opened = evil.open(persona)
    assert evil.send(opened["id"], PAYLOAD, media_urls=[f"https://x.example/{PAYLOAD}"]).status_code == 200
    Conversation.objects.update(metadata={"memories": {PAYLOAD: PAYLOAD}})
    Message.objects.update(metadata={PAYLOAD: PAYLOAD}, audio_url=PAYLOAD)
    client = desk(superuser)
    give_reason(client, opened["id"])

    details = [f"{MESSAGES}{pk}/change/" for pk in Message.objects.values_list("pk", flat=True)]
    assert len(details) == 3
    for url in (
        CONVERSATIONS,
        f"{CONVERSATIONS}{opened['id']}/change/",
        MESSAGES,
        f"{MESSAGES}?conversation__id__exact={opened['id']}",
        f"{MESSAGES}?conversation__id__exact={opened['id']}&q=x-canary",
        *details,
    ):
        html = page(client, url)
        assert_inert(html)
        assert "x-canary" in html.text, url


@pytest.mark.parametrize("stored", [{"a": 1}, "Plan my week", 7, [1, None, {"b": []}], [], [["x"]]])
def test_a_broken_list_of_suggestions_breaks_neither_the_api_nor_the_admin(
    publishing: Client, alice: Api, coach: Influencer, stored: Any
) -> None:
    Influencer.objects.update(suggested_messages=stored)

    opened = alice.open(coach)
    assert opened["influencer"]["suggested_messages"] == []
    for path in ("/api/v1/influencers", f"/api/v1/influencers/{coach.pk}", "/api/v1/chat/conversations"):
        assert alice.get(path).status_code == 200
    assert alice.send(opened["id"]).status_code == 200
    assert page(publishing, LIST)
    assert "suggested_messages" in page(publishing, change(coach)).form("influencer_form")
    # and staff can repair it there
    saved(submit(publishing, change(coach), suggested_messages='["Plan my week"]'))
    published(publishing, coach)
    coach.refresh_from_db()
    assert coach.suggested_messages == ["Plan my week"]


@pytest.mark.parametrize("stored", [["warm"], "warm", 7])
def test_broken_traits_break_neither_the_turn_nor_the_admin(
    at_desk: Client, alice: Api, coach: Influencer, conversation: Conversation, stored: Any
) -> None:
    Influencer.objects.update(personality_traits=stored, metadata=stored)

    assert alice.send(conversation).status_code == 200
    assert page(at_desk, change(coach))


def test_lists_and_traits_are_written_a_line_each(at_desk: Client, coach: Influencer) -> None:
    suggested, told = "Plan my week\r\n\r\n  What to eat? \r\n", "tone: warm\r\nenergy: high: always\r\n"
    saved(submit(at_desk, change(coach), suggested_messages=suggested, personality_traits=told))

    draft = coach.versions.get(published_at=None)
    assert draft.suggested_messages == ["Plan my week", "What to eat?"]
    assert draft.personality_traits == {"tone": "warm", "energy": "high: always"}
    shown = page(at_desk, change(coach)).form("influencer_form")
    assert (shown["suggested_messages"], shown["personality_traits"]) == (
        ["Plan my week\r\nWhat to eat?"],
        ["tone: warm\r\nenergy: high: always"],
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("suggested_messages", ["two\nlines"]),
        ("suggested_messages", [" spaced", "["]),
        ("suggested_messages", ["[1]"]),
        ("personality_traits", {"energy": 5}),
        ("personality_traits", {"a: b": "c"}),
        ("personality_traits", {"likes": ["tea"]}),
        ("personality_traits", {}),
    ],
)
def test_what_lines_cannot_say_comes_back_as_it_was(at_desk: Client, coach: Influencer, name: str, value: Any) -> None:
    Influencer.objects.update(**{name: value})

    saved(submit(at_desk, change(coach), deflection="Another one"))

    assert getattr(coach.versions.get(published_at=None), name) == value


# Deleting, which only superusers may


def test_a_superuser_deletes_a_persona_that_nobody_talked_with(
    desk: Desk, superuser: User, make_influencer: MakeInfluencer
) -> None:
    persona = make_influencer()

    response = desk(superuser).post(f"{LIST}{persona.pk}/delete/", {"post": "yes"})

    assert (response.status_code, response["Location"]) == (302, LIST)
    gone = LogEntry.objects.get(action_flag=DELETION)
    assert gone.user == superuser
    assert persona.system_instructions in gone.change_message, "what it said stands in the record"
    assert not Influencer.objects.exists()


def test_not_even_a_superuser_deletes_one_that_somebody_talked_with(
    desk: Desk, superuser: User, coach: Influencer, conversation: Conversation
) -> None:
    client = desk(superuser)
    url = f"{LIST}{coach.pk}/delete/"

    assert "Cannot delete persona" in page(client, url).text
    client.post(url, {"post": "yes"})
    client.post(LIST, {"action": "delete_selected", "_selected_action": [coach.pk], "post": "yes"})

    assert Influencer.objects.filter(pk=coach.pk).exists()
    assert Conversation.objects.filter(pk=conversation.pk).exists()


def test_an_id_that_is_a_principal_works_in_every_address_of_the_admin(
    publishing: Client, make_influencer: MakeInfluencer
) -> None:
    """Ids are any string; the admin quotes what an address can't hold."""
    for influencer_id in ("qg2pi-g3xl4-uprdd-macwr-64q7r-plotv-xm3bg-iayu3-rnpux-7ikkz-hqe", "a/b?c#d_e f%"):
        persona = make_influencer(id=influencer_id)
        url = page(publishing, LIST).link(persona.display_name)
        saved(submit(publishing, url, display_name="Found"))
        persona.refresh_from_db()
        assert persona.display_name == "Found"
        open_conversation(influencer_id=influencer_id, user_id="alice")


@pytest.mark.parametrize("influencer_id", ["nobody", "%00", "a%00b", "x" * 300])
def test_an_unknown_id_is_no_crash(at_desk: Client, coach: Influencer, influencer_id: str) -> None:
    response = at_desk.get(f"{LIST}{influencer_id}/change/")

    assert response.status_code in (302, 404)
