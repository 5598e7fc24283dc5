"""Many at once, with real threads, each with a connection of its own, on the real database."""

import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any

import pytest
import time_machine
from django.db import IntegrityError, connection, connections
from django.utils import timezone

from conversations import turns
from conversations.models import Conversation, Message
from personas.models import Influencer, PersonaDay
from tests.conftest import Api
from tests.fake_gemini import REPLY, Answer, Asked, FakeGemini, fails, says
from yral_chat import ai

pytestmark = pytest.mark.django_db(transaction=True)
PATH = "/api/v1/chat/conversations"
GREETING = "Hi, I'm your coach!"


@pytest.fixture(autouse=True)
def as_in_a_running_service(gemini: FakeGemini) -> Iterator[None]:
    """The model's client is made before the first request; the test's own thread holds no connection of the pool."""
    ai.warm_up()
    connection.close()
    yield
    connection.close()


def at_once(*calls: Callable[[], Any]) -> list[Any]:
    """What each of them gave, in order, all started at the same moment; a request's connection ends with it."""
    ready = threading.Barrier(len(calls))

    def run(call: Callable[[], Any]) -> Any:
        ready.wait(timeout=20)
        try:
            return call()
        finally:
            connections.close_all()

    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(run, calls))


def slowly(text: str = REPLY, seconds: float = 0.4, **fields: Any) -> Answer:
    answer = says(text)
    answer.delay = seconds
    for name, value in fields.items():
        setattr(answer, name, value)
    return answer


def pool_of(postgresql: Any) -> Any:
    return postgresql.pool


def rows(conversation: Any) -> list[tuple[int, str, str]]:
    """Without the greeting."""
    messages = Message.objects.filter(conversation=getattr(conversation, "pk", conversation)).order_by("sequence")
    return list(messages.values_list("sequence", "role", "content"))[1:]


def assert_gapless(conversation: Conversation) -> None:
    """Sequences 1…n, the counter n, and times that rise with them by a millisecond at least."""
    conversation.refresh_from_db()
    messages = list(Message.objects.of(conversation.pk).order_by("sequence"))
    assert [message.sequence for message in messages] == list(range(1, len(messages) + 1))
    assert conversation.message_count == len(messages)
    assert conversation.updated_at == messages[-1].created_at
    steps = [later.created_at - one.created_at for one, later in zip(messages, messages[1:], strict=False)]
    assert all(step.total_seconds() >= 0.001 for step in steps)


# Opening


def test_twenty_opened_at_once_are_one_with_one_greeting(alice: Api, coach: Influencer) -> None:
    responses = at_once(*[lambda: alice.post(PATH, {"influencer_id": coach.pk})] * 20)

    assert [response.status_code for response in responses] == [201] * 20
    assert {response.json()["id"] for response in responses} == {str(Conversation.objects.get().pk)}
    assert Message.objects.count() == 1
    for response in responses:
        assert response.json()["message_count"] == 1
        assert [message["content"] for message in response.json()["recent_messages"]] == [GREETING]


def test_many_users_can_open_at_once(coach: Influencer) -> None:
    apis = [Api(f"user-{number}") for number in range(20)]
    responses = at_once(*[lambda api=api: api.post(PATH, {"influencer_id": coach.pk}) for api in apis])

    assert [response.status_code for response in responses] == [201] * 20
    assert len({response.json()["id"] for response in responses}) == 20
    assert Message.objects.count() == 20


# The same sent several times at once


@pytest.mark.parametrize("copies", [2, 8])
def test_copies_sent_at_once_are_one_turn_and_every_caller_gets_it(
    alice: Api, conversation: Conversation, gemini: FakeGemini, copies: int
) -> None:
    gemini.default = slowly()

    responses = at_once(*[lambda: alice.send(conversation, "Hello!")] * copies)

    assert [response.status_code for response in responses] == [200] * copies
    assert rows(conversation) == [(2, "user", "Hello!"), (3, "assistant", REPLY)]
    question, answer = Message.objects.of(conversation.pk).order_by("sequence")[1:]
    for response in responses:
        assert response.json()["user_message"]["id"] == str(question.pk)
        assert response.json()["assistant_message"]["id"] == str(answer.pk)
        assert response.json() == responses[0].json()
    assert_gapless(conversation)


def test_of_copies_answered_differently_the_first_answer_stands_for_all(
    alice: Api, conversation: Conversation, gemini: FakeGemini
) -> None:
    gemini.will(slowly("one", 0.5), slowly("two", 0.6), slowly("three", 0.7))

    responses = at_once(*[lambda: alice.send(conversation, "Hello!")] * 3)

    answers = {response.json()["assistant_message"]["content"] for response in responses}
    assert len(answers) == 1
    assert rows(conversation) == [(2, "user", "Hello!"), (3, "assistant", answers.pop())]


def test_a_copy_whose_model_call_fails_gets_the_answer_that_the_other_got(
    alice: Api, conversation: Conversation, gemini: FakeGemini
) -> None:
    """It would be sent again, and would then be a second turn."""
    gemini.will(slowly(seconds=0.3), Answer(fails(400).body, status=400, delay=0.8))

    responses = at_once(*[lambda: alice.send(conversation, "Hello!")] * 2)

    assert [response.status_code for response in responses] == [200, 200]
    assert responses[0].json() == responses[1].json()
    assert rows(conversation) == [(2, "user", "Hello!"), (3, "assistant", REPLY)]


def test_a_retry_while_the_first_try_still_waits_joins_its_turn(
    alice: Api, conversation: Conversation, gemini: FakeGemini
) -> None:
    gemini.default = slowly(seconds=0.6)

    def later() -> Any:
        time.sleep(0.25)
        return alice.send(conversation, "Hello!")

    first, second = at_once(lambda: alice.send(conversation, "Hello!"), later)

    assert first.json() == second.json()
    assert len(rows(conversation)) == 2


# Different ones sent at once


def test_twenty_different_questions_at_once_are_all_answered(
    alice: Api, conversation: Conversation, gemini: FakeGemini
) -> None:
    gemini.chooses = lambda asked: slowly(f"answer to {asked.question}", 0.2)
    questions = [f"question {number}" for number in range(20)]

    responses = at_once(*[lambda text=text: alice.send(conversation, text) for text in questions])

    assert [response.status_code for response in responses] == [200] * 20
    for question, response in zip(questions, responses, strict=True):
        assert response.json()["user_message"]["content"] == question
        assert response.json()["assistant_message"]["content"] == f"answer to {question}"
    assert len(rows(conversation)) == 40
    assert_gapless(conversation)
    assert alice.messages(conversation).json()["total"] == 41


def test_no_question_sees_one_that_was_stored_after_it(
    alice: Api, conversation: Conversation, gemini: FakeGemini
) -> None:
    gemini.chooses = lambda asked: slowly(seconds=0.2)
    at_once(*[lambda n=n: alice.send(conversation, f"question {n}") for n in range(5)])

    order = {content: sequence for sequence, role, content in rows(conversation) if role == "user"}
    for asked in gemini.requests:
        seen = [text for role, texts in asked.texts if role == "user" for text in texts if text in order]
        assert seen == sorted(seen, key=lambda text: order[text])
        assert seen[-1] == asked.question
        assert seen.count(asked.question) == 1


def test_of_two_questions_the_second_waits_and_sees_the_answer_to_the_first(
    alice: Api, conversation: Conversation, gemini: FakeGemini
) -> None:
    under_way = threading.Event()

    def choose(asked: Asked) -> Answer:
        if asked.question == "Q1":
            under_way.set()
            return slowly("answer to Q1", 0.6)
        return fails(400)

    def second() -> Any:
        assert under_way.wait(5)
        return alice.send(conversation, "Q2")

    gemini.chooses = choose
    first, failed = at_once(lambda: alice.send(conversation, "Q1"), second)
    assert (first.status_code, failed.status_code) == (200, 503)
    question = Message.objects.get(content="Q2")

    gemini.chooses = None
    turn = alice.send(conversation, "Q2").json()

    assert turn["user_message"]["id"] == str(question.pk)
    assert rows(conversation) == [
        (2, "user", "Q1"),
        (3, "assistant", "answer to Q1"),
        (4, "user", "Q2"),
        (5, "assistant", REPLY),
    ]
    assert [role for role, _ in gemini.last.texts] == ["user", "model", "user", "model", "user"]
    assert_gapless(conversation)


def test_many_users_talk_at_once(coach: Influencer, gemini: FakeGemini) -> None:
    gemini.default = slowly(seconds=0.2)
    apis = [Api(f"user-{number}") for number in range(12)]

    def talk(api: Api) -> list[int]:
        opened = api.open(coach)["id"]
        answers = [api.send(opened, "one"), api.send(opened, "two"), api.get(PATH), api.messages(opened)]
        return [answer.status_code for answer in answers]

    assert at_once(*[lambda api=api: talk(api) for api in apis]) == [[200] * 4] * 12
    assert Message.objects.count() == 12 * 5


# What is open while the model thinks


def test_no_transaction_and_no_lock_is_held_while_the_model_thinks(
    alice: Api, conversation: Conversation, gemini: FakeGemini
) -> None:
    """From another connection the question can be read and the same conversation written, at once."""
    seen: dict[str, Any] = {}

    def meanwhile() -> None:
        started = time.monotonic()
        try:
            seen["rows"] = rows(conversation)
            Conversation.objects.filter(pk=conversation.pk).update(metadata={"written": "meanwhile"})
            seen["seconds"] = time.monotonic() - started
        finally:
            connections.close_all()

    gemini.will(slowly(seconds=0, before=meanwhile))

    (response,) = at_once(lambda: alice.send(conversation, "Hello!"))

    assert response.status_code == 200
    assert seen["rows"] == [(2, "user", "Hello!")], "it is committed before the model is asked"
    assert seen["seconds"] < 1
    assert Conversation.objects.get().metadata == {"written": "meanwhile"}, "the answer doesn't write it back"


@pytest.mark.skipif(connection.vendor != "sqlite", reason="only SQLite has one writer")
@pytest.mark.parametrize("when", ["before it is sent", "while the model thinks"])
def test_a_lock_that_outlasts_all_patience_is_told_in_the_usual_shape_and_loses_nothing(
    when: str, alice: Api, conversation: Conversation, gemini: FakeGemini
) -> None:
    """Such as that of a shell which somebody forgot. The same message is one turn when the lock is gone."""
    with closing(sqlite3.connect(connection.settings_dict["NAME"], check_same_thread=False)) as other:
        other.isolation_level = None
        if when == "before it is sent":
            other.execute("BEGIN IMMEDIATE")
        else:
            gemini.will(slowly(seconds=0, before=lambda: other.execute("BEGIN IMMEDIATE")))
        with connection.cursor() as cursor:
            cursor.execute("PRAGMA busy_timeout=100")  # instead of 20 s

        refused = alice.send(conversation, "Is anybody there?")

        assert refused.status_code == 500
        assert refused.json()["error"] == "internal_server_error"
        assert "locked" not in str(refused.json())
        assert alice.messages(conversation).status_code == 200, "who reads doesn't wait"
        other.execute("ROLLBACK")

    kept = rows(conversation)
    assert kept == ([] if when == "before it is sent" else [(2, "user", "Is anybody there?")])
    with time_machine.travel(timezone.now() + turns.LEASE, tick=True):  # who couldn't write couldn't give up its turn
        assert alice.send(conversation, "Is anybody there?").status_code == 200
    assert rows(conversation) == [(2, "user", "Is anybody there?"), (3, "assistant", REPLY)]
    assert_gapless(conversation)


@pytest.mark.skipif(connection.vendor != "postgresql", reason="an idle SQLite connection stays with its thread")
def test_on_postgresql_no_connection_is_held_while_the_model_thinks(
    alice: Api, conversation: Conversation, gemini: FakeGemini
) -> None:
    pool = pool_of(connection)
    connection.close()
    held: list[int] = []

    def count() -> None:
        stats = pool.get_stats()
        held.append(stats["pool_size"] - stats["pool_available"])

    gemini.will(slowly(seconds=0, before=count))
    (response,) = at_once(lambda: alice.send(conversation))

    assert response.status_code == 200
    assert held == [0]


@pytest.mark.skipif(connection.vendor != "postgresql", reason="only PostgreSQL has a pool")
def test_on_postgresql_more_turns_wait_for_the_model_than_the_pool_has_connections(
    coach: Influencer, gemini: FakeGemini
) -> None:
    most = pool_of(connection).max_size
    apis = [Api(f"user-{number}") for number in range(2 * most)]
    opened = [api.open(coach)["id"] for api in apis]
    connection.close()
    gemini.chooses = lambda asked: slowly(seconds=0.8)
    started = time.monotonic()

    responses = at_once(*[lambda api=api, to=to: api.send(to) for api, to in zip(apis, opened, strict=True)])

    assert {response.status_code for response in responses} == {200}
    assert time.monotonic() - started < 10


# Deleting meanwhile


def test_deleted_while_the_model_thinks_it_is_404_and_nothing_is_stored(
    alice: Api, conversation: Conversation, gemini: FakeGemini
) -> None:
    deleted: list[Any] = []

    def delete() -> None:
        try:
            deleted.append(alice.delete(f"{PATH}/{conversation.pk}"))
        finally:
            connections.close_all()

    gemini.will(slowly(seconds=0, before=delete))

    response = alice.send(conversation)

    assert deleted[0].status_code == 200
    assert deleted[0].json()["deleted_messages_count"] == 2
    assert response.status_code == 404
    assert response.json()["error"] == "not_found"
    assert not Message.objects.exists()
    assert not Conversation.objects.exists()
    assert PersonaDay.objects.get().tokens == 52, "the persona's cap knows what it took"


def test_a_late_answer_does_not_get_into_the_conversation_made_afresh(
    alice: Api, conversation: Conversation, coach: Influencer, gemini: FakeGemini
) -> None:
    made: list[Any] = []

    def start_again() -> None:
        try:
            alice.delete(f"{PATH}/{conversation.pk}")
            made.append(alice.open(coach))
        finally:
            connections.close_all()

    gemini.will(slowly(seconds=0, before=start_again))

    assert alice.send(conversation).status_code == 404
    assert [message.content for message in Message.objects.all()] == [GREETING]
    assert alice.open(coach)["id"] == made[0]["id"]
    assert alice.open(coach)["message_count"] == 1


def test_deleted_by_several_at_once_it_goes_once(alice: Api, conversation: Conversation) -> None:
    responses = at_once(*[lambda: alice.delete(f"{PATH}/{conversation.pk}")] * 6)

    assert sorted(response.status_code for response in responses) == [200] + [404] * 5
    assert not Message.objects.exists()


def test_opening_and_deleting_in_circles_never_fails(alice: Api, coach: Influencer) -> None:
    def circle() -> list[int]:
        found = []
        for _ in range(8):
            opened = alice.post(PATH, {"influencer_id": coach.pk})
            found.append(opened.status_code)
            if opened.status_code == 201:
                deleted = alice.delete(f"{PATH}/{opened.json()['id']}")
                assert deleted.status_code in (200, 404)
        return found

    statuses = at_once(*[circle] * 6)

    assert [status for found in statuses for status in found] == [201] * 48
    assert Conversation.objects.count() <= 1
    assert Message.objects.count() == Conversation.objects.count()


def test_sending_reading_and_deleting_in_circles_never_fails(alice: Api, coach: Influencer) -> None:
    """An answer is 200, or 404 where somebody deleted it meanwhile; nothing is left over."""

    def talk() -> set[int]:
        found = set()
        for number in range(5):
            opened = alice.post(PATH, {"influencer_id": coach.pk})
            found.add(opened.status_code)
            id = opened.json().get("id", "gone")
            found |= {alice.send(id, f"{number}").status_code, alice.messages(id).status_code}
            found.add(alice.get(PATH).status_code)
        return found

    def delete() -> set[int]:
        found = set()
        for _ in range(10):
            for item in alice.get(PATH).json()["conversations"]:
                found.add(alice.delete(f"{PATH}/{item['id']}").status_code)
            time.sleep(0.02)
        return found

    statuses = set().union(*at_once(talk, talk, talk, delete))

    assert statuses <= {200, 201, 404}
    for conversation in Conversation.objects.all():
        assert_gapless(conversation)
    assert not Message.objects.exclude(conversation__in=Conversation.objects.all()).exists()


class Meddler:
    """Around every statement of the test's own thread: others do something before or after one of them.

    Makes a race that needs luck with threads alone happen every time.
    """

    def __init__(self, **steps: Callable[[], Any]) -> None:
        self.steps = steps

    def __call__(self, execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        lookup = sql.startswith("SELECT")
        if lookup and "lost" in self.steps and getattr(self, "lost", False):
            at_once(self.steps.pop("lost"))
        try:
            result = execute(sql, params, many, context)
        except IntegrityError:
            self.lost = True
            raise
        if lookup and 'FROM "conversations"' in sql and "looked" in self.steps:
            at_once(self.steps.pop("looked"))
        return result


def test_opened_by_another_request_and_deleted_again_in_between_it_is_still_opened(
    alice: Api, coach: Influencer
) -> None:
    """Between our look and our insert another request opens it; before we look again it's deleted."""

    def delete() -> None:
        Conversation.objects.get().delete()

    with connection.execute_wrapper(Meddler(looked=lambda: alice.open(coach), lost=delete)):
        response = alice.post(PATH, {"influencer_id": coach.pk})

    assert response.status_code == 201, response.content
    assert response.json()["id"] == str(Conversation.objects.get().pk)
    assert Message.objects.count() == 1


# Staff at the same time


def test_an_influencer_retired_while_the_model_thinks_still_gives_this_answer(
    alice: Api, conversation: Conversation, gemini: FakeGemini
) -> None:
    def retire() -> None:
        try:
            Influencer.objects.update(is_active="discontinued")
        finally:
            connections.close_all()

    gemini.will(slowly(seconds=0, before=retire))

    assert alice.send(conversation, "one").status_code == 200
    assert alice.send(conversation, "two").status_code == 404
