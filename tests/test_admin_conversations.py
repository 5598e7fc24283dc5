"""Staff and chats, through the real pages of the admin: found quickly, read, and never written."""

import datetime as dt
import re
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import Permission, User
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from conversations.models import Conversation, Message
from conversations.services import open_conversation
from personas.models import Influencer
from tests.conftest import Api
from tests.conversations.media import take
from tests.fake_gemini import REPLY
from tests.personas.page import Page
from tests.reasons import give_reason

CONVERSATIONS = "/admin/conversations/conversation/"
MESSAGES = "/admin/conversations/message/"
PERSONAS = "/admin/personas/influencer/"

Desk = Callable[[User], Client]
MakeInfluencer = Callable[..., Influencer]


def detail(row: Conversation | Message) -> str:
    return f"{CONVERSATIONS if isinstance(row, Conversation) else MESSAGES}{row.pk}/change/"


def page(client: Client, url: str, **query: Any) -> Page:
    response = client.get(url, query)
    assert response.status_code == 200, (url, response.status_code, response.get("Location"))
    return Page(response)


def rows(client: Client, url: str, **query: Any) -> set[str]:
    """The ids of the rows on a list page, by their links."""
    addresses = [href.split("?")[0] for _, href in page(client, url, **query).links]
    listed = url.split("?")[0]
    return {a.removeprefix(listed).split("/")[0] for a in addresses if a.startswith(listed) and a.endswith("/change/")}


def statements(client: Client, url: str) -> int:
    with CaptureQueriesContext(connection) as queries:
        assert client.get(url).status_code == 200
    return len(queries)


def ways_to_write(shown: Page) -> list[str]:
    chats = [href for _, href in shown.links if href.startswith("/admin/conversations/")]
    return [href for href in chats if href.endswith(("/add/", "/delete/"))]


def everything() -> list[Any]:
    return [list(model.objects.order_by("pk").values()) for model in (Conversation, Message)]


@pytest.fixture(autouse=True)
def fast_passwords(settings: Any) -> None:
    """Half a second for each member of staff, otherwise."""
    settings.PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]


@pytest.fixture
def at_desk(desk: Desk, superuser: User) -> Client:
    """The admin, as a superuser sees it."""
    return desk(superuser)


@pytest.fixture
def chat(alice: Api, conversation: Conversation) -> Conversation:
    """alice and the coach: greeting, question, answer."""
    assert alice.send(conversation, "How do I touch my toes?").status_code == 200
    conversation.refresh_from_db()
    return conversation


@pytest.fixture
def make_chats(make_influencer: MakeInfluencer) -> Callable[[int], None]:
    """Each with a user and a persona of its own, a greeting, a question and its answer."""

    def make(number: int) -> None:
        for _ in range(number):
            influencer = make_influencer()
            conversation, _ = open_conversation(influencer_id=influencer.pk, user_id=f"user-{influencer.name}")
            question = conversation.add_message(role="user", content="Question?")
            conversation.add_message(role="assistant", content="Answer.", in_reply_to=question)

    return make


# Reading


def test_the_list_shows_who_talks_with_whom_and_leads_to_the_chat(at_desk: Client, chat: Conversation) -> None:
    listed = page(at_desk, CONVERSATIONS)

    assert "alice" in listed.text
    assert "Coach Asha" in listed.text
    assert rows(at_desk, CONVERSATIONS) == {str(chat.pk)}
    give_reason(at_desk, chat)
    assert rows(at_desk, listed.link("Read")) == {str(message.pk) for message in Message.objects.all()}
    shown = at_desk.get(listed.link("Read")).context["cl"].result_list
    assert [message.sequence for message in shown] == sorted(message.sequence for message in shown)


def test_read_leads_to_that_conversation_alone(
    at_desk: Client, alice: Api, bob: Api, chat: Conversation, coach: Influencer
) -> None:
    bobs = bob.open(coach)["id"]
    bob.send(bobs, "And me?")

    for conversation in (chat.pk, uuid.UUID(bobs)):
        give_reason(at_desk, conversation)
        read = page(at_desk, f"{CONVERSATIONS}{conversation}/change/").link("Read")
        assert rows(at_desk, read) == {str(message.pk) for message in Message.objects.of(conversation)}


def test_the_most_recently_used_conversation_comes_first(
    at_desk: Client, alice: Api, bob: Api, chat: Conversation, coach: Influencer
) -> None:
    bob.open(coach)
    alice.send(chat, "I'm back.")

    users = [words for words, href in page(at_desk, CONVERSATIONS).links if href.split("?")[0].endswith("/change/")]

    assert users == ["alice", "bob"]


def test_a_message_shows_all_that_is_known_of_it(at_desk: Client, chat: Conversation) -> None:
    give_reason(at_desk, chat)
    answer = Message.objects.get(content=REPLY)

    shown = page(at_desk, detail(answer))

    for words in (REPLY, str(answer.pk), "Assistant", "12", "gemini-2.5-flash"):
        assert words in shown.text, words
    assert detail(chat) in shown.attributes("href")
    assert answer.in_reply_to
    assert detail(answer.in_reply_to) in shown.attributes("href")


def test_a_long_text_is_cut_in_the_list_and_whole_on_its_page(at_desk: Client, alice: Api, chat: Conversation) -> None:
    give_reason(at_desk, chat)
    text = "\n".join(f"line {number}" for number in range(400))
    assert alice.send(chat, text).status_code == 200
    message = Message.objects.get(content=text)

    assert "line 399" not in page(at_desk, MESSAGES).text
    assert " ".join(text.split()) in page(at_desk, detail(message)).text


def test_a_message_without_text_can_be_opened_too(at_desk: Client, chat: Conversation) -> None:
    message = Message.objects.get(role="user")
    Message.objects.filter(pk=message.pk).update(content="", message_type="image")

    assert page(at_desk, MESSAGES).link("(image)").split("?")[0] == detail(message)


def test_a_blocked_answer_is_marked(at_desk: Client, chat: Conversation) -> None:
    Message.objects.filter(content=REPLY).update(blocked=True)

    listed = page(at_desk, MESSAGES)

    assert len(re.findall(r"field-was_blocked[^>]*>\s*blocked\s*<", listed.html)) == 1


# Not writing


def test_a_detail_page_has_nothing_to_type_into(at_desk: Client, chat: Conversation) -> None:
    give_reason(at_desk, chat)
    for row in (chat, *Message.objects.all()):
        shown = page(at_desk, detail(row))
        typed = [(t, a.get("name")) for t, a in shown.tags if t in ("input", "textarea", "select") and "name" in a]
        assert {name for _, name in typed} <= {"csrfmiddlewaretoken", "s"}, (
            f"more than the navigation's search: {typed}"
        )
        assert "submit" not in [a.get("type") for t, a in shown.tags if t == "input"]
        assert not ways_to_write(shown)


@pytest.mark.parametrize("url", [CONVERSATIONS, MESSAGES])
def test_a_list_page_offers_neither_adding_nor_actions(at_desk: Client, chat: Conversation, url: str) -> None:
    listed = page(at_desk, url)

    assert not ways_to_write(listed)
    assert "_selected_action" not in listed.html
    assert "delete_selected" not in listed.html


def test_not_even_a_superuser_adds_changes_or_deletes(at_desk: Client, chat: Conversation) -> None:
    before = everything()
    message = Message.objects.get(role="user")
    typed = {"content": "Changed", "user_id": "mallory", "role": "assistant", "message_count": "0", "_save": "Save"}

    for row in (chat, message):
        assert at_desk.post(detail(row), typed).status_code == 403
        remove = detail(row).replace("/change/", "/delete/")
        assert at_desk.get(remove).status_code == 403
        assert at_desk.post(remove, {"post": "yes"}).status_code == 403
    for url in (CONVERSATIONS, MESSAGES):
        assert at_desk.get(f"{url}add/").status_code == 403
        assert at_desk.post(f"{url}add/", typed).status_code == 403

    assert everything() == before
    assert not LogEntry.objects.exists()


@pytest.mark.parametrize("extra", [{"index": "0"}, {"post": "yes"}, {"_save": "Save", "form-TOTAL_FORMS": "1"}])
def test_no_action_made_by_hand_deletes_anything(at_desk: Client, chat: Conversation, extra: dict[str, str]) -> None:
    before = everything()
    message = Message.objects.get(role="user")

    for url, row in ((CONVERSATIONS, chat), (MESSAGES, message)):
        for across in ("0", "1"):
            chosen = {"action": "delete_selected", "_selected_action": [str(row.pk)], "select_across": across}
            at_desk.post(url, {**chosen, **extra})

    assert everything() == before
    assert not LogEntry.objects.exists()


def test_rights_given_by_name_do_not_open_what_nobody_may(desk: Desk, chat: Conversation) -> None:
    user = User.objects.create_user("clerk", "", "a-password-for-tests", is_staff=True)
    user.user_permissions.set(Permission.objects.filter(content_type__app_label="conversations"))
    client = desk(user)

    assert rows(client, CONVERSATIONS) == {str(chat.pk)}
    assert client.post(detail(chat), {"user_id": "mallory"}).status_code == 403
    assert client.post(f"{CONVERSATIONS}{chat.pk}/delete/", {"post": "yes"}).status_code == 403
    assert Conversation.objects.get().user_id == "alice"


def test_staff_need_the_right_to_look(desk: Desk, chat: Conversation) -> None:
    client = desk(User.objects.create_user("new", "", "a-password-for-tests", is_staff=True))
    message = Message.objects.get(role="user")

    for url in (CONVERSATIONS, MESSAGES, detail(chat), detail(message), f"{CONVERSATIONS}{chat.pk}/history/"):
        response = client.get(url)
        assert response.status_code == 403, url
        assert b"toes" not in response.content


def test_who_may_see_conversations_may_not_by_that_read_messages(desk: Desk, chat: Conversation) -> None:
    user = User.objects.create_user("counter", "", "a-password-for-tests", is_staff=True)
    user.user_permissions.set(Permission.objects.filter(codename="view_conversation"))
    client = desk(user)

    assert "toes" not in page(client, CONVERSATIONS).text
    assert "toes" not in page(client, detail(chat)).text
    assert client.get(page(client, CONVERSATIONS).link("Read")).status_code == 403


# Finding


def test_search_finds_conversations_by_the_whole_user_id_or_their_own_id(
    at_desk: Client, alice: Api, bob: Api, chat: Conversation, coach: Influencer
) -> None:
    bobs = bob.open(coach)["id"]
    spaced = Api("eve (new)").open(coach)["id"]

    assert rows(at_desk, CONVERSATIONS, q="alice") == {str(chat.pk)}
    assert rows(at_desk, CONVERSATIONS, q=bobs) == {bobs}
    assert rows(at_desk, CONVERSATIONS, q=f"  {bobs.upper()} ") == {bobs}
    assert rows(at_desk, CONVERSATIONS, q=bobs.replace("-", "")) == {bobs}
    assert rows(at_desk, CONVERSATIONS, q="ali") == set()
    assert rows(at_desk, CONVERSATIONS, q=str(uuid.uuid4())) == set()
    assert rows(at_desk, CONVERSATIONS, q="eve (new)") == {spaced}


def test_a_user_whose_id_is_a_uuid_is_found_too(at_desk: Client, coach: Influencer) -> None:
    user_id = str(uuid.uuid4())
    opened = Api(user_id).open(coach)["id"]

    assert rows(at_desk, CONVERSATIONS, q=user_id) == {opened}


def test_words_are_searched_within_a_conversation_that_is_read_and_ids_everywhere(
    at_desk: Client, bob: Api, chat: Conversation, coach: Influencer
) -> None:
    bobs = bob.open(coach)["id"]
    bob.send(bobs, "My शरीर hurts")
    give_reason(at_desk, chat, bobs)
    question, shabd = Message.objects.get(content__contains="toes"), Message.objects.get(content__contains="hurts")

    for words in ("touch", "TOES touch", '"touch my toes"'):
        assert rows(at_desk, MESSAGES, conversation__id__exact=chat.pk, q=words) == {str(question.pk)}
        assert rows(at_desk, MESSAGES, conversation__id__exact=bobs, q=words) == set()
        assert rows(at_desk, MESSAGES, q=words) == set(), "nobody searches what all users said"
    assert rows(at_desk, MESSAGES, conversation__id__exact=bobs, q="शरीर") == {str(shabd.pk)}
    assert rows(at_desk, MESSAGES, conversation__id__exact=chat.pk, q="100%") == set()
    assert rows(at_desk, MESSAGES, q=str(chat.pk)) == {str(pk) for pk in chat.messages.values_list("pk", flat=True)}


@pytest.mark.parametrize("url", [CONVERSATIONS, MESSAGES])
@pytest.mark.parametrize(
    "words",
    ["\x00", "ali\x00ce", "%", "_", "'", '"', '"open', "\\", "💪", "x" * 4000, "a " * 1000, "{}", "' OR 1=1 --"],
)
def test_odd_characters_in_the_search_are_harmless(at_desk: Client, chat: Conversation, url: str, words: str) -> None:
    assert at_desk.get(url, {"q": words}).status_code == 200


@pytest.mark.parametrize("value", ["not-a-uuid", "\x00", "", "1", "' OR 1=1 --", "{}"])
def test_an_absurd_conversation_in_the_address_shows_no_chat_and_no_crash(
    at_desk: Client, chat: Conversation, value: str
) -> None:
    response = at_desk.get(MESSAGES, {"conversation__id__exact": value})

    assert response.status_code in (200, 302)
    assert b"toes" not in response.content


@pytest.mark.parametrize("row_id", ["nobody", "%00", "a%00b", "1", "x" * 300, "00000000-0000-0000-0000-000000000000"])
@pytest.mark.parametrize("url", [CONVERSATIONS, MESSAGES])
def test_an_unknown_id_is_no_crash(at_desk: Client, chat: Conversation, url: str, row_id: str) -> None:
    response = at_desk.get(f"{url}{row_id}/change/")

    assert response.status_code in (302, 404)


def test_conversations_and_messages_are_filtered_by_persona(
    at_desk: Client, alice: Api, chat: Conversation, make_influencer: MakeInfluencer
) -> None:
    other = make_influencer(display_name="Chef Nila")
    alices = alice.open(other)["id"]
    alice.send(alices, "Dinner?")

    everyone = page(at_desk, CONVERSATIONS)
    assert rows(at_desk, CONVERSATIONS + everyone.link("Chef Nila")) == {alices}
    said = page(at_desk, MESSAGES)
    assert rows(at_desk, MESSAGES + said.link("Chef Nila")) == {
        str(message.pk) for message in Message.objects.of(uuid.UUID(alices))
    }


def test_messages_are_filtered_by_who_said_it_and_by_whether_it_was_blocked(
    at_desk: Client, chat: Conversation
) -> None:
    filters = {words: href for words, href in page(at_desk, MESSAGES).links if "role__exact" in href}
    question = Message.objects.get(role="user")

    assert rows(at_desk, MESSAGES + filters["User"]) == {str(question.pk)}
    assert len(rows(at_desk, MESSAGES + filters["Assistant"])) == 2
    assert rows(at_desk, f"{MESSAGES}?blocked__exact=1") == set()


@pytest.mark.parametrize("url", [CONVERSATIONS, MESSAGES])
def test_every_heading_sorts(at_desk: Client, chat: Conversation, url: str) -> None:
    everyone = rows(at_desk, url)
    headings = {href for _, href in page(at_desk, url).links if href.startswith("?o=")}

    assert headings
    for heading in headings:
        assert rows(at_desk, url + heading) == everyone
        assert rows(at_desk, url + heading.replace("o=", "o=-").replace("--", "")) == everyone


# Many rows


@pytest.mark.parametrize("url", [CONVERSATIONS, MESSAGES])
def test_a_list_takes_no_more_statements_for_thirty_than_for_one(
    at_desk: Client, make_chats: Callable[[int], None], url: str
) -> None:
    make_chats(1)
    statements(at_desk, url)  # content types and the like are remembered from here on
    one = statements(at_desk, url)
    make_chats(29)

    assert statements(at_desk, url) == one <= 12
    assert statements(at_desk, f"{url}?q=question") <= 12


def test_a_detail_page_takes_no_more_statements_for_a_long_chat(
    at_desk: Client, make_chats: Callable[[int], None]
) -> None:
    make_chats(1)
    conversation = Conversation.objects.get()
    give_reason(at_desk, conversation)
    statements(at_desk, detail(conversation))
    one = statements(at_desk, detail(conversation))
    for _ in range(30):
        conversation.add_message(role="user", content="More")

    assert statements(at_desk, detail(conversation)) == one
    assert statements(at_desk, detail(Message.objects.order_by("sequence")[5])) <= 12


@pytest.fixture
def thousands(conversation: Conversation) -> Conversation:
    """10,120 messages of one conversation, a second apart."""
    started = timezone.now()
    Message.objects.bulk_create(
        [
            Message(
                conversation=conversation,
                sequence=number,
                role="user",
                content=f"text {number}",
                created_at=started + dt.timedelta(seconds=number),
            )
            for number in range(2, 10_121)
        ],
        batch_size=1000,
    )
    Conversation.objects.update(message_count=10_120)
    return conversation


@pytest.mark.drill
def test_pages_work_with_thousands_of_messages_and_none_counts_them_all(
    at_desk: Client, thousands: Conversation
) -> None:
    give_reason(at_desk, thousands)
    with CaptureQueriesContext(connection) as queries:
        first = page(at_desk, MESSAGES)
    assert "text 10120" in first.text
    assert "text 10071" in first.text
    assert "text 10070 " not in first.text
    counts = [query["sql"] for query in queries if "COUNT(" in query["sql"]]
    assert counts
    assert all("LIMIT 10000" in sql for sql in counts), counts

    assert "text 10070" in page(at_desk, MESSAGES, p=2).text
    assert "text 5120" in page(at_desk, MESSAGES, p=101).text
    assert len(rows(at_desk, MESSAGES, p=200)) == 50
    assert at_desk.get(MESSAGES, {"p": 201}).status_code == 302  # behind the cap: back to a page that exists
    for absurd in ("0", "-1", "x", "9" * 50):
        assert at_desk.get(MESSAGES, {"p": absurd}).status_code in (200, 302)


@pytest.mark.drill
def test_what_the_cap_hides_is_found_by_search_and_filter(at_desk: Client, thousands: Conversation) -> None:
    give_reason(at_desk, thousands)
    oldest = Message.objects.get(content="text 2")

    one_chat = f"{MESSAGES}?conversation__id__exact={thousands.pk}"
    assert rows(at_desk, MESSAGES, conversation__id__exact=thousands.pk, q="Hi, I'm your coach!") == {
        str(Message.objects.get(sequence=1, conversation=thousands).pk)
    }
    oldest_first = page(at_desk, one_chat).link("Created at")
    assert str(oldest.pk) in rows(at_desk, MESSAGES + oldest_first)


@pytest.mark.parametrize("query", ["", "?_facets=1"])
@pytest.mark.parametrize("url", [CONVERSATIONS, MESSAGES])
def test_no_statement_of_a_list_page_reads_a_whole_big_table(
    at_desk: Client, make_chats: Callable[[int], None], url: str, query: str
) -> None:
    """The filters' choices and all counts included: an index, a LIMIT or both, whatever the number of rows."""
    make_chats(51)
    with CaptureQueriesContext(connection) as queries:
        page(at_desk, url + query)

    table = '"conversations"' if url == CONVERSATIONS else '"messages"'
    of_the_table = [query["sql"] for query in queries if table in query["sql"]]
    assert of_the_table
    assert [sql for sql in of_the_table if "LIMIT" not in sql] == []


@pytest.mark.parametrize("url", [CONVERSATIONS, MESSAGES])
def test_a_list_page_offers_no_counts_of_its_filters(
    at_desk: Client, make_chats: Callable[[int], None], url: str
) -> None:
    make_chats(2)

    assert "Show counts" not in page(at_desk, url).text


# Turns

TURNS = "/admin/conversations/turn/"


def test_a_turn_tells_how_it_went_and_what_was_sent(
    at_desk: Client, alice: Api, chat: Conversation, coach: Influencer
) -> None:
    give_reason(at_desk, chat)
    question = Message.objects.get(role="user")
    alice.post(f"/api/v1/chat/conversations/{chat.pk}/messages/{question.pk}/regenerate", {})

    assert rows(at_desk, TURNS) == {str(question.pk)}
    shown = page(at_desk, f"{TURNS}{question.pk}/change/").text
    for text in ("done", "gemini-2.5-flash", coach.system_instructions, "How do I touch my toes?", "0.00"):
        assert text in shown
    assert shown.count(REPLY) == 1, "the answer that was replaced"
    assert ways_to_write(page(at_desk, f"{TURNS}{question.pk}/change/")) == []


def test_a_turns_page_opens_no_pictures(
    at_desk: Client, alice: Api, conversation: Conversation, media_folder: Path
) -> None:
    give_reason(at_desk, conversation)
    (key,) = take(alice, "red")
    sent = alice.send(conversation, "Look", message_type="image", media_urls=[key]).json()
    (media_folder / key).unlink()

    shown = page(at_desk, f"{TURNS}{sent['user_message']['id']}/change/").text

    assert "(picture)" in shown
    assert "Look" in shown


def test_a_turn_is_found_by_its_ids_and_keys(at_desk: Client, alice: Api, chat: Conversation) -> None:
    keyed = alice.send(chat, "Again", client_message_id="from-the-app").json()["user_message"]["id"]
    other = str(Message.objects.filter(role="user").exclude(pk=keyed).get().pk)

    assert rows(at_desk, TURNS, q=keyed) == {keyed}
    assert rows(at_desk, TURNS, q="from-the-app") == {keyed}
    assert rows(at_desk, TURNS, q=str(chat.pk)) == {keyed, other}
    assert rows(at_desk, TURNS, q="nothing") == set()


def test_what_users_say_is_inert_on_a_turns_page(at_desk: Client, alice: Api, conversation: Conversation) -> None:
    give_reason(at_desk, conversation)
    payload = "<script>alert(1)</script><img src=x onerror=alert(1)>"
    question = alice.send(conversation, payload).json()["user_message"]["id"]

    for url in (TURNS, f"{TURNS}{question}/change/"):
        html = at_desk.get(url).content.decode()
        assert "<script>alert" not in html
        assert "<img src=x" not in html
        assert "&lt;script&gt;alert" in html
