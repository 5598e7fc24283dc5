"""Members of staff who run a persona's tests at once, with real threads through the admin's real pages."""

from functools import partial

import pytest
from django.test import Client

from conversations.models import SampleMessage, SampleResult, SampleRun
from personas import versions
from personas.models import Influencer
from tests.conversations.test_races import at_once
from tests.fake_gemini import FakeGemini

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("no_connection_held")]
MESSAGES = [f"Message {place}" for place in range(4)]


@pytest.fixture
def tested(coach: Influencer) -> str:
    """The address of the coach's tests, which has a draft and some messages."""
    versions.save_draft(influencer_id=coach.pk, content={"initial_greeting": "New"})
    for message in MESSAGES:
        SampleMessage.objects.create(influencer=coach, message=message, expectations=[])
    return f"/admin/personas/influencer/{coach.pk}/tests/"


def test_of_those_who_step_at_once_each_asks_another_message(
    staff: list[Client], tested: str, gemini: FakeGemini
) -> None:
    address = staff[0].post(f"{tested}run/")["Location"]
    gemini.default.delay = 0.3

    answers = at_once(*(partial(client.post, f"{address}next/") for client in staff))
    for client in staff:
        client.post(f"{address}next/")

    assert {answer.status_code for answer in answers} == {200}
    assert sorted(asked.question for asked in gemini.requests) == MESSAGES
    assert {result.state for result in SampleResult.objects.all()} == {"green"}


def test_those_who_start_at_once_share_one_run(staff: list[Client], tested: str) -> None:
    answers = at_once(*(partial(client.post, f"{tested}run/") for client in staff))

    assert len({answer["Location"] for answer in answers}) == 1
    assert SampleRun.objects.count() == 1
    assert SampleResult.objects.count() == len(MESSAGES)
