"""What must hold is held by the database itself: loaddata, SQL and other processes skip our validation."""

import uuid
from typing import Any

import pytest
from django.db import DataError, IntegrityError, connection, transaction
from django.utils import timezone

from conversations.models import Conversation, Message
from personas.models import Influencer

# SQLite names a check in its error, and of a unique constraint the columns; PostgreSQL always the constraint.


def row(conversation: Conversation, **fields: Any) -> Message:
    values = {"sequence": 2, "role": "user", "content": "Hello", "created_at": timezone.now(), **fields}
    return Message(conversation=conversation, **values)


def assert_refused(*rows: Any) -> None:
    with pytest.raises((IntegrityError, DataError)):
        insert(*rows)


@transaction.atomic
def insert(*rows: Any) -> None:
    type(rows[0]).objects.bulk_create(rows)
    connection.check_constraints()  # foreign keys are looked at when a transaction ends, and the test's never does


@transaction.atomic
def delete_all_influencers() -> None:
    with connection.cursor() as cursor:
        cursor.execute("DELETE FROM ai_influencers")
    connection.check_constraints()


def test_the_row_that_the_others_are_variations_of_is_fine(conversation: Conversation) -> None:
    Message.objects.bulk_create([row(conversation)])


def test_one_conversation_a_user_and_influencer(conversation: Conversation) -> None:
    assert_refused(Conversation(user_id="alice", influencer_id=conversation.influencer_id))
    Conversation.objects.bulk_create([Conversation(user_id="bob", influencer_id=conversation.influencer_id)])


def test_no_conversation_of_nobody(coach: Influencer) -> None:
    assert_refused(Conversation(user_id="", influencer=coach))


def test_no_conversation_without_an_influencer(db: None) -> None:
    assert_refused(Conversation(user_id="alice", influencer_id="nobody"))


def test_no_negative_counter(coach: Influencer) -> None:
    assert_refused(Conversation(user_id="alice", influencer=coach, message_count=-1))


def test_an_influencer_with_conversations_cannot_be_deleted(conversation: Conversation) -> None:
    with pytest.raises(IntegrityError):
        delete_all_influencers()


def test_one_message_a_sequence(conversation: Conversation) -> None:
    assert_refused(row(conversation, sequence=1))
    assert_refused(row(conversation), row(conversation))


@pytest.mark.parametrize("sequence", [0, -1])
def test_sequences_begin_with_1(conversation: Conversation, sequence: int) -> None:
    assert_refused(row(conversation, sequence=sequence))


def test_no_message_without_a_conversation(db: None) -> None:
    assert_refused(
        Message(conversation_id=uuid.uuid4(), sequence=1, role="user", content="Hello", created_at=timezone.now())
    )


@pytest.mark.parametrize("role", ["", "system", "User", "model"])
def test_only_known_roles(conversation: Conversation, role: str) -> None:
    assert_refused(row(conversation, role=role))


@pytest.mark.parametrize("kind", ["", "video", "TEXT"])
def test_only_known_types(conversation: Conversation, kind: str) -> None:
    assert_refused(row(conversation, message_type=kind))


@pytest.mark.parametrize("seconds", [-1, 301])
def test_audio_is_0_to_300_seconds(conversation: Conversation, seconds: int) -> None:
    assert_refused(row(conversation, audio_duration_seconds=seconds))


def test_audio_of_0_and_300_seconds_is_fine(conversation: Conversation) -> None:
    Message.objects.bulk_create(
        [
            row(conversation, audio_duration_seconds=0),
            row(conversation, sequence=3, audio_duration_seconds=300),
        ]
    )


def test_one_answer_a_question(conversation: Conversation) -> None:
    question = row(conversation)
    Message.objects.bulk_create([question])
    answers = [row(conversation, sequence=n, role="assistant", in_reply_to=question) for n in (3, 4)]
    assert_refused(*answers)
    Message.objects.bulk_create(answers[:1])
    assert_refused(answers[1])


def test_only_answers_reply(conversation: Conversation) -> None:
    greeting = Message.objects.get()
    assert_refused(row(conversation, in_reply_to=greeting))


def test_an_answer_replies_to_a_message_that_is_there(conversation: Conversation) -> None:
    assert_refused(row(conversation, role="assistant", in_reply_to_id=uuid.uuid4()))


def test_a_question_is_never_marked_as_blocked(conversation: Conversation) -> None:
    assert_refused(row(conversation, blocked=True))
    Message.objects.bulk_create([row(conversation)])
    with pytest.raises(IntegrityError), transaction.atomic():
        Message.objects.filter(role="user").update(blocked=True)


def test_no_negative_token_count(conversation: Conversation) -> None:
    assert_refused(row(conversation, role="assistant", token_count=-1))


def test_an_update_is_held_to_the_same(conversation: Conversation) -> None:
    for change in ({"role": "system"}, {"message_type": "video"}, {"sequence": 0}, {"audio_duration_seconds": 301}):
        with pytest.raises(IntegrityError), transaction.atomic():
            Message.objects.update(**change)
    with pytest.raises(IntegrityError), transaction.atomic():
        Conversation.objects.update(user_id="")


@pytest.mark.parametrize("status", ["", "Active", "retired"])
def test_only_known_statuses_of_an_influencer(coach: Influencer, status: str) -> None:
    with pytest.raises(IntegrityError), transaction.atomic():
        Influencer.objects.update(is_active=status)


def test_every_constraint_and_index_has_a_name_of_its_own() -> None:
    for model in (Conversation, Message, Influencer):
        names = [*model._meta.constraints, *model._meta.indexes]
        assert all(named.name.startswith(model._meta.db_table.removesuffix("s")) for named in names)


def test_a_conversations_messages_go_with_it_in_a_few_statements(
    conversation: Conversation, django_assert_max_num_queries: Any
) -> None:
    Message.objects.bulk_create(row(conversation, sequence=n) for n in range(2, 500))
    with django_assert_max_num_queries(5):
        conversation.delete()
    assert not Message.objects.exists()
