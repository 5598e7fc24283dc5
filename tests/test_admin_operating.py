"""Pausing a persona, its time to go live, and its tokens of a day, on the admin's real pages."""

import datetime as dt
import json
from collections.abc import Callable
from typing import Any

import pytest
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import User
from django.test import Client

from conversations.models import Conversation
from personas.models import Influencer
from tests.conftest import Api
from tests.personas.page import Page
from tests.test_admin_personas import LIST, PAYLOAD, assert_inert, change, page

Desk = Callable[[User], Client]


def place(influencer: Influencer) -> str:
    return f"{LIST}{influencer.pk}/operate/"


def form(client: Client, influencer: Influencer) -> dict[str, Any]:
    return page(client, place(influencer)).form("operate_form")


def operate(client: Client, influencer: Influencer, **values: Any) -> Page:
    response = client.post(place(influencer), {**form(client, influencer), **values}, follow=True)
    assert response.status_code == 200
    return Page(response)


def test_publishers_pause_it_and_the_next_answer_obeys(
    publisher: User, desk: Desk, alice: Api, conversation: Conversation, coach: Influencer
) -> None:
    client = desk(publisher)

    shown = operate(client, coach, paused="on", away_message="Back at six!")

    assert "Saved: the next answer obeys it." in shown.text
    assert "Paused since" in shown.text
    assert "Paused since" in page(client, change(coach)).text
    assert "Active, paused" in page(client, LIST).text
    assert alice.send(conversation).json()["assistant_message"]["content"] == "Back at six!"
    since = Influencer.objects.get().paused_at
    operate(client, coach, away_message="Back at seven!")
    assert Influencer.objects.get().paused_at == since, "it is the same pause"

    sent = {**form(client, coach)}
    del sent["paused"]
    client.post(place(coach), sent)

    assert alice.send(conversation).json()["away"] is False
    done = [json.loads(entry.change_message)[0]["changed"] for entry in LogEntry.objects.order_by("pk")]
    assert [one["did"] for one in done] == [
        "Paused the persona.",
        "Changed how it is operated.",
        "Ended the pause.",
    ]
    assert done[1]["values"] == {"away_message": ["Back at six!", "Back at seven!"]}
    assert done[2]["values"]["paused_at"] == [f"{since:%Y-%m-%d %H:%M} UTC", None]
    assert "Ended the pause." in page(client, f"{LIST}{coach.pk}/history/").text
    assert set(LogEntry.objects.values_list("user__username", flat=True)) == {"publisher"}


def test_a_cap_shows_what_is_spent_today(
    publisher: User, desk: Desk, alice: Api, conversation: Conversation, coach: Influencer
) -> None:
    client = desk(publisher)
    alice.send(conversation)
    assert "52 tokens are spent since midnight UTC" in page(client, place(coach)).text

    operate(client, coach, daily_token_cap="1000000")
    assert "52 tokens of 1,000,000 are spent" in page(client, place(coach)).text
    operate(client, coach, daily_token_cap="52")

    assert "The tokens of today are spent" in page(client, place(coach)).text
    assert alice.send(conversation).json()["away"] is True


def test_a_time_to_go_live_makes_it_coming_soon(
    publisher: User, desk: Desk, nobody: Api, coach: Influencer, time_machine: Any
) -> None:
    time_machine.move_to(dt.datetime(2026, 11, 25, 9, tzinfo=dt.UTC), tick=False)
    client = desk(publisher)

    shown = operate(client, coach, goes_live_at="2026-11-26T12:30")

    assert "it goes live on 26 November 2026, 12:30 UTC" in shown.text
    assert "Coming soon, live on 26 Nov, 12:30 UTC" in page(client, LIST).text
    assert nobody.get("/api/v1/influencers").json()["influencers"][0]["is_active"] == "coming_soon"
    assert form(client, coach)["goes_live_at"] == ["2026-11-26T12:30:00"]
    shown = operate(client, coach, goes_live_at="")
    assert Influencer.objects.get().is_active == "coming_soon", "it stays what users see of it"


def test_saving_the_persona_leaves_its_time_and_its_pause(
    publisher: User, desk: Desk, coach: Influencer, time_machine: Any
) -> None:
    time_machine.move_to(dt.datetime(2026, 11, 25, 9, tzinfo=dt.UTC), tick=False)
    client = desk(publisher)
    operate(client, coach, goes_live_at="2026-11-26T12:30", paused="on", daily_token_cap="7")
    before = Influencer.objects.values(*Influencer.OPERATED, "is_active").get()
    sent = page(client, change(coach)).form("influencer_form") | {"description": "Strong mornings."}

    assert client.post(change(coach), sent).status_code == 302

    assert Influencer.objects.get().description == "Strong mornings."
    assert Influencer.objects.values(*Influencer.OPERATED, "is_active").get() == before


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"daily_token_cap": "0"}, "greater than or equal to 1"),
        ({"daily_token_cap": "many"}, "Enter a whole number"),
        ({"goes_live_at": "tomorrow"}, "Enter a valid date/time"),
        ({"away_message": "a" * 1001}, "at most 1000 characters"),
    ],
)
def test_what_can_not_be_is_said_beside_its_field(
    publisher: User, desk: Desk, coach: Influencer, values: dict[str, str], says: str
) -> None:
    before = Influencer.objects.values().get()

    assert says in operate(desk(publisher), coach, **values, paused="on").text

    assert Influencer.objects.values().get() == before


def test_a_retired_persona_has_no_time_to_go_live(publisher: User, desk: Desk, coach: Influencer) -> None:
    Influencer.objects.update(is_active="discontinued")

    shown = operate(desk(publisher), coach, goes_live_at="2030-01-01T00:00")

    assert "A retired persona doesn't go live" in shown.text
    assert Influencer.objects.get().goes_live_at is None


def test_the_second_of_two_who_save_is_told_and_loses_nothing(publisher: User, desk: Desk, coach: Influencer) -> None:
    client = desk(publisher)
    opened = form(client, coach)
    operate(client, coach, away_message="The first.")

    second = Page(client.post(place(coach), opened | {"away_message": "The second."}))

    assert "Nothing was changed. Somebody changed this persona" in second.text
    assert second.form("operate_form")["away_message"] == ["The second."]
    assert Influencer.objects.get().away_message == "The first."
    client.post(place(coach), second.form("operate_form"))
    assert Influencer.objects.get().away_message == "The second."


def test_editors_may_not(editor: User, desk: Desk, coach: Influencer) -> None:
    client = desk(editor)

    assert client.get(place(coach)).status_code == 403
    assert client.post(place(coach), {"revision": "", "paused": "on"}).status_code == 403
    assert place(coach) not in page(client, change(coach)).attributes("href")
    assert Influencer.objects.get().paused_at is None


def test_a_page_of_elsewhere_can_not_send_it(publisher: User, coach: Influencer) -> None:
    client = Client(enforce_csrf_checks=True)
    client.force_login(publisher)

    assert client.post(place(coach), {"paused": "on"}).status_code == 403


def test_an_unknown_persona_is_404(publisher: User, desk: Desk, db: None) -> None:
    assert desk(publisher).get(f"{LIST}nobody/operate/").status_code == 404


def test_an_away_message_is_inert(publisher: User, desk: Desk, coach: Influencer) -> None:
    client = desk(publisher)
    operate(client, coach, away_message=PAYLOAD)

    assert_inert(page(client, place(coach)))
    assert Influencer.objects.get().away_message == PAYLOAD
