"""A persona goes live at its time, without anybody's hand: nothing is written then, and every reader sees it."""

import datetime as dt
from collections.abc import Callable
from typing import Any

import pytest
from django.core.exceptions import ValidationError
from django.utils import timezone

from personas import operating
from personas.models import Influencer
from personas.services import set_status
from personas.versions import create_persona, publish
from tests.conftest import Api

URL = "/api/v1/influencers"
MakeInfluencer = Callable[..., Influencer]
pytestmark = pytest.mark.django_db
NOON = dt.datetime(2026, 11, 25, 12, tzinfo=dt.UTC)
NINE = NOON - dt.timedelta(hours=3)
SECOND = dt.timedelta(seconds=1)


@pytest.fixture(autouse=True)
def nine(time_machine: Any) -> Any:
    """It is nine o'clock."""
    time_machine.move_to(NINE, tick=False)
    return time_machine


def at_noon(influencer: Influencer) -> None:
    operating.operate(influencer_id=influencer.pk, values={"goes_live_at": NOON})


def listed(nobody: Api) -> list[tuple[str, str]]:
    page = nobody.get(URL).json()
    assert page["total"] == len(page["influencers"])
    return [(one["name"], one["is_active"]) for one in page["influencers"]]


@pytest.mark.parametrize("status", ["active", "coming_soon"])
def test_until_then_it_is_coming_soon_and_from_then_on_active(
    nobody: Api, alice: Api, make_influencer: MakeInfluencer, nine: Any, status: str
) -> None:
    make_influencer(name="old", created_at=NINE - dt.timedelta(days=1))
    new = make_influencer(name="new", is_active=status)
    at_noon(new)
    before = Influencer.objects.values().get(pk=new.pk)

    for moment in (NINE, NOON - SECOND):
        nine.move_to(moment, tick=False)
        assert listed(nobody) == [("old", "active"), ("new", "coming_soon")], "active ones first"
        assert nobody.get(f"{URL}/{new.pk}").status_code == 404
        opened = alice.post("/api/v1/chat/conversations", {"influencer_id": new.pk})
        assert (opened.status_code, opened.json()["message"]) == (404, "Influencer not found")
        assert nobody.get("/status").json()["statistics"]["active_influencers"] == 1

    nine.move_to(NOON, tick=False)
    assert listed(nobody) == [("new", "active"), ("old", "active")], "the newest first"
    assert nobody.get(f"{URL}/{new.pk}").json()["is_active"] == "active"
    assert alice.send(alice.open(new)["id"]).status_code == 200
    assert Influencer.objects.values().get(pk=new.pk) == before, "nobody wrote anything"


def test_who_talks_with_it_already_can_not_send_until_it_is_live_again(
    alice: Api, coach: Influencer, nine: Any
) -> None:
    talk = alice.open(coach)["id"]
    at_noon(coach)

    assert alice.send(talk).json()["message"] == "Influencer not found"
    nine.move_to(NOON, tick=False)
    assert alice.send(talk).status_code == 200


def test_a_new_persona_that_is_published_waits_for_its_time(nobody: Api, nine: Any) -> None:
    details = {"name": "new", "display_name": "New"}
    new = create_persona(details=details, content={"system_instructions": "Be new."})
    at_noon(new)
    assert listed(nobody) == []

    publish(influencer_id=new.pk, change_note="The first.")

    assert listed(nobody) == [("new", "coming_soon")]
    nine.move_to(NOON, tick=False)
    assert listed(nobody) == [("new", "active")]


def test_without_its_time_it_stays_what_users_see_of_it(
    nobody: Api, make_influencer: MakeInfluencer, nine: Any
) -> None:
    soon, live = make_influencer(name="soon"), make_influencer(name="live")
    at_noon(soon)
    operating.operate(influencer_id=soon.pk, values={"goes_live_at": None})
    operating.operate(influencer_id=live.pk, values={"goes_live_at": NINE - SECOND})
    operating.operate(influencer_id=live.pk, values={"goes_live_at": None})

    nine.move_to(NOON, tick=False)
    assert listed(nobody) == [("live", "active"), ("soon", "coming_soon")]


@pytest.mark.parametrize("status", ["active", "coming_soon", "discontinued"])
def test_a_status_set_by_hand_is_obeyed_at_once_and_for_good(
    nobody: Api, coach: Influencer, nine: Any, status: str
) -> None:
    at_noon(coach)

    changed = set_status(influencers=Influencer.objects.all(), status=Influencer.Status(status))

    assert changed == 1
    assert listed(nobody) == [("coach", status)]
    nine.move_to(NOON, tick=False)
    assert listed(nobody) == [("coach", status)]


def test_a_retired_one_does_not_go_live(make_influencer: MakeInfluencer) -> None:
    retired = make_influencer(is_active="discontinued")

    with pytest.raises(ValidationError, match="A retired persona doesn't go live"):
        at_noon(retired)


def test_it_goes_live_to_the_microsecond(nobody: Api, coach: Influencer, nine: Any) -> None:
    late = timezone.now() + dt.timedelta(microseconds=2)
    operating.operate(influencer_id=coach.pk, values={"goes_live_at": late})

    for microseconds, status in ((1, "coming_soon"), (2, "active"), (3, "active")):
        nine.move_to(NINE + dt.timedelta(microseconds=microseconds), tick=False)
        assert listed(nobody) == [("coach", status)], microseconds
