"""How many SQL statements each call costs, whatever the number of rows. Transaction statements are not counted."""

import re
import uuid
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from django.db import connection
from django.utils import timezone

from conversations.models import Conversation, Message
from personas.models import Influencer
from tests.conftest import Api
from tests.fake_gemini import FakeGemini, blocks, fails
from yral_chat.database import Statement, insert, instance, update

PATH = "/api/v1/chat/conversations"
OF_A_TRANSACTION = re.compile(r"\s*(BEGIN|COMMIT|ROLLBACK|SAVEPOINT|RELEASE)\b", re.I)


class Statements(list[str]):
    """For connection.execute_wrapper: the SQL that ran."""

    def __call__(self, execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        if not OF_A_TRANSACTION.match(sql):
            self.append(sql)
        return execute(sql, params, many, context)


def statements_of(call: Callable[[], Any], status: int = 200) -> int:
    ran = Statements()
    with connection.execute_wrapper(ran):
        response = call()
    assert response.status_code == status, response.content
    return len(ran)


def make_conversations(make_influencer: Callable[..., Influencer], count: int, messages: int = 12) -> None:
    for _ in range(count):
        conversation = Conversation.objects.create(
            user_id="alice", influencer=make_influencer(), message_count=messages
        )
        Message.objects.bulk_create(
            Message(conversation=conversation, sequence=number, role="user", content="Hello", created_at=timezone.now())
            for number in range(1, messages + 1)
        )


@pytest.mark.parametrize("count", [0, 1, 30])
def test_influencers_cost_2(nobody: Api, make_influencer: Callable[..., Influencer], count: int) -> None:
    for _ in range(count):
        make_influencer()

    assert statements_of(lambda: nobody.get("/api/v1/influencers")) <= 2


def test_an_influencer_costs_1(nobody: Api, coach: Influencer) -> None:
    assert statements_of(lambda: nobody.get(f"/api/v1/influencers/{coach.pk}")) == 1


@pytest.mark.parametrize("count", [0, 1, 30])
def test_conversations_cost_3_whatever_their_number(
    alice: Api, make_influencer: Callable[..., Influencer], count: int
) -> None:
    make_conversations(make_influencer, count)

    assert statements_of(lambda: alice.get(PATH, limit=100)) <= 3


def test_of_long_conversations_only_the_recent_messages_are_read(db: None) -> None:
    ranges = [value for number in range(3) for value in (uuid.UUID(int=number + 1), 3990, 4000)]
    with connection.cursor() as cursor:
        if connection.vendor == "postgresql":
            cursor.execute("SET LOCAL enable_seqscan = off")  # which is the best for a table without rows

    plan = Message.objects.in_ranges(*ranges).explain()

    assert len(re.findall(r"(?:SEARCH|Index Cond:).*conversation_id ?=.*sequence ?>.*sequence ?<", plan)) == 3, plan


def test_messages_cost_2_whatever_their_number(alice: Api, make_influencer: Callable[..., Influencer]) -> None:
    make_conversations(make_influencer, 1, messages=300)
    conversation = Conversation.objects.get()

    queries: list[dict[str, Any]] = [{"limit": 1}, {"limit": 200}, {"limit": 200, "offset": 250, "order": "asc"}]
    for query in queries:
        assert statements_of(partial(alice.messages, conversation, **query)) <= 2


def test_opening_costs_4_and_again_3(alice: Api, coach: Influencer) -> None:
    body = {"influencer_id": coach.pk}

    assert statements_of(lambda: alice.post(PATH, body), 201) <= 4
    assert statements_of(lambda: alice.post(PATH, body), 201) <= 3


def test_a_turn_costs_13_and_with_a_key_14(alice: Api, conversation: Conversation, gemini: FakeGemini) -> None:
    assert statements_of(lambda: alice.send(conversation, "one")) <= 13
    assert statements_of(lambda: alice.send(conversation, "two")) <= 12, "the day's instructions are kept already"
    assert statements_of(lambda: alice.send(conversation, "three", client_message_id="3")) <= 13
    assert statements_of(lambda: alice.send(conversation, "three", client_message_id="3")) <= 4


def test_a_turn_costs_no_more_in_a_long_conversation(alice: Api, make_influencer: Callable[..., Influencer]) -> None:
    make_conversations(make_influencer, 1, messages=300)

    assert statements_of(lambda: alice.send(Conversation.objects.get())) <= 13 + 1, "one is the test's own"


def test_a_turn_that_fails_costs_12_and_its_resend_13(
    alice: Api, conversation: Conversation, gemini: FakeGemini
) -> None:
    gemini.will(fails(400))

    assert statements_of(lambda: alice.send(conversation), 503) <= 12
    assert statements_of(lambda: alice.send(conversation)) <= 13


def test_a_turn_of_a_persona_that_is_away_costs_10(alice: Api, conversation: Conversation) -> None:
    Influencer.objects.update(paused_at=timezone.now())

    assert statements_of(lambda: alice.send(conversation)) <= 10


def test_a_blocked_turn_costs_12(alice: Api, conversation: Conversation, gemini: FakeGemini) -> None:
    gemini.will(blocks())

    assert statements_of(lambda: alice.send(conversation)) <= 12


def test_deleting_costs_7_whatever_the_number_of_messages(
    alice: Api, make_influencer: Callable[..., Influencer]
) -> None:
    make_conversations(make_influencer, 1, messages=300)
    conversation = Conversation.objects.get()

    assert statements_of(lambda: alice.delete(f"{PATH}/{conversation.pk}")) <= 7


def test_a_refusal_costs_2_at_most(alice: Api, bob: Api, nobody: Api, conversation: Conversation) -> None:
    assert statements_of(lambda: nobody.send(conversation), 401) == 0
    assert statements_of(lambda: alice.send(conversation, None), 422) == 0
    assert statements_of(lambda: alice.messages(conversation, limit=0), 422) == 0
    assert statements_of(lambda: bob.send(conversation), 403) == 1
    assert statements_of(lambda: alice.send(uuid.uuid4()), 404) == 1


# yral_chat.database: SQL that is compiled once


def test_a_statement_gives_what_the_orm_gives(alice: Api, conversation: Conversation) -> None:
    alice.send(conversation, media_urls=["https://example.com/a.jpg"])
    names = [field.attname for field in Message._meta.concrete_fields]

    def build(conversation_id: uuid.UUID, after: int) -> Any:
        rows = Message.objects.of(conversation_id).filter(sequence__gt=after)
        return rows.order_by("sequence").values(*names)

    statement = Statement(build, uuid.UUID(int=1), 5)

    for after in (0, 1, 99):
        assert statement(conversation.pk, after) == list(build(conversation.pk, after))
    assert statement(uuid.uuid4(), 0) == []
    assert statement.first(conversation.pk, 1) == build(conversation.pk, 1).first()
    assert statement.first(conversation.pk, 99) is None
    assert len(statement(conversation.pk, 0)) == 3


def test_a_statement_follows_a_join_as_the_orm_does(conversation: Conversation) -> None:
    def build(user_id: str) -> Any:
        return Conversation.objects.owned_by(user_id).values("id", "influencer__name", "influencer__personality_traits")

    assert Statement(build, "example")("alice") == list(build("alice")) != []


def test_a_statement_keeps_constants_that_are_in_the_query(conversation: Conversation) -> None:
    def build(sequence: int) -> Any:
        return Message.objects.filter(role="assistant", blocked=False, sequence=sequence).values("content")

    statement = Statement(build, 7)
    assert statement(1) == [{"content": "Hi, I'm your coach!"}]
    assert statement(2) == []


def test_the_values_of_one_call_are_not_seen_by_the_next(conversation: Conversation) -> None:
    statement = Statement(lambda user_id: Conversation.objects.owned_by(user_id).values("user_id"), "example")

    assert statement("alice") == [{"user_id": "alice"}]
    assert statement("bob") == []
    assert statement("alice' OR '1'='1") == []
    assert statement("alice") == [{"user_id": "alice"}]


@pytest.mark.parametrize(
    "build",
    [
        lambda one, two: Message.objects.filter(sequence__lt=two).filter(sequence__gt=one).values("id"),
        lambda one, two: Message.objects.filter(sequence__gt=one).values("id"),
        lambda one, two: Message.objects.filter(sequence__gt=one, sequence__lt=two, token_count=one).values("id"),
        lambda one, two: Message.objects.filter(token_count=5).filter(sequence__gt=one, sequence__lt=two).values("id"),
    ],
    ids=["out of order", "not used", "used twice", "equal to a constant"],
)
def test_a_statement_refuses_a_builder_that_does_not_use_its_arguments_once_each_in_order(
    db: None, build: Callable[..., Any]
) -> None:
    with pytest.raises(TypeError, match="in order"):
        Statement(build, 5, 6)(5, 6)


def test_a_statement_wants_as_many_values_as_examples(db: None) -> None:
    statement = Statement(lambda user_id: Conversation.objects.owned_by(user_id).values("id"), "example")
    for values in ((), ("alice", "bob")):
        with pytest.raises(ValueError, match="zip"):
            statement(*values)


def test_an_instance_of_a_row_is_the_models_own(conversation: Conversation) -> None:
    row = Conversation.objects.values("id", "user_id", "message_count").get()

    made = instance(Conversation, row)

    assert made == conversation
    assert (made.user_id, made.message_count) == ("alice", 1)
    assert made.get_deferred_fields() == {
        *("influencer_id", "created_at", "updated_at", "metadata"),
        *("running_question", "running_token", "running_until"),
    }
    assert made.influencer_id == conversation.influencer_id
    assert not made._state.adding


def test_insert_and_update_do_what_save_does(conversation: Conversation) -> None:
    written = Message(
        conversation_id=conversation.pk,
        sequence=2,
        role="user",
        content="Hello 💪",
        media_urls=["https://example.com/a.jpg"],
        audio_url=None,
        audio_duration_seconds=3,
        created_at=timezone.now(),
        metadata={"a": [1, None, "ü"]},
    )

    assert insert(written) is written
    read = Message.objects.get(pk=written.pk)
    for field in Message._meta.concrete_fields:
        assert getattr(read, field.attname) == getattr(written, field.attname), field.name

    written.content, written.metadata, written.role = "Goodbye", {"b": 2}, "assistant"
    update(written, "content", "metadata")
    read.refresh_from_db()
    assert (read.content, read.metadata, read.role) == ("Goodbye", {"b": 2}, "user")
    assert Message.objects.get(sequence=1).content == "Hi, I'm your coach!"
