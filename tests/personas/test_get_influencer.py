"""GET /api/v1/influencers/{id}: one persona, as in the list."""

from collections.abc import Callable
from typing import Any

import pytest
from pytest_django.asserts import assertNumQueries

from personas.models import Influencer
from tests.conftest import CANARY, Api

URL = "/api/v1/influencers"
PRINCIPAL = "qg2pi-g3xl4-uprdd-macwr-64q7r-plotv-xm3bg-iayu3-rnpux-7ikkz-hqe"
MakeInfluencer = Callable[..., Influencer]


def assert_influencer_not_found(response: Any) -> None:
    assert response.status_code == 404, response.content
    assert response.json() == {"error": "not_found", "message": "Influencer not found", "details": {}}


def test_it_is_the_item_of_the_list(nobody: Api, make_influencer: MakeInfluencer) -> None:
    persona = make_influencer(description="Lifts.", avatar_url="/static/personas/avatars/coach-veer.png")

    response = nobody.get(f"{URL}/{persona.pk}")

    assert response.status_code == 200
    assert [response.json()] == nobody.get(URL).json()["influencers"]
    assert list(response.json()) == list(nobody.get(URL).json()["influencers"][0])
    assert response.json()["avatar_url"] == "http://testserver/static/personas/avatars/coach-veer.png"
    assert None not in response.json().values()


@pytest.mark.parametrize("influencer_id", [PRINCIPAL, "x", "a" * 255, "user@host:1", "खिलाड़ी", "50%", "a b+c"])
def test_an_id_is_any_string(alice: Api, make_influencer: MakeInfluencer, influencer_id: str) -> None:
    make_influencer()
    persona = make_influencer(id=influencer_id)

    found = alice.client.get(f"{URL}/{influencer_id.replace('%', '%25')}")

    assert found.status_code == 200, found.content
    assert found.json()["id"] == influencer_id
    opened = alice.open(persona)
    assert opened["influencer_id"] == opened["influencer"]["id"] == influencer_id
    assert alice.send(opened["id"]).status_code == 200


@pytest.mark.parametrize("status", [Influencer.Status.COMING_SOON, Influencer.Status.DISCONTINUED])
def test_one_that_is_listed_but_not_active_is_not_found(
    nobody: Api, make_influencer: MakeInfluencer, status: str
) -> None:
    persona = make_influencer(is_active=status)

    assert [item["id"] for item in nobody.get(URL).json()["influencers"]] == [persona.pk]
    assert_influencer_not_found(nobody.get(f"{URL}/{persona.pk}"))


@pytest.mark.parametrize(
    "influencer_id",
    [
        "11111111-2222-3333-4444-555555555555",
        PRINCIPAL,
        "nobody",
        "%00",
        "coach%00",
        "%ff%fe",
        "%ED%A0%80",
        "%F0%9F%92%AA",
        "'%20OR%201=1--",
        "%25",
        "_",
        "null",
        "a" * 256,
        "a" * 60_000,
    ],
)
def test_an_unknown_or_absurd_id_is_not_found(nobody: Api, coach: Influencer, influencer_id: str) -> None:
    assert_influencer_not_found(nobody.client.get(f"{URL}/{influencer_id}"))


def test_the_id_is_taken_literally(nobody: Api, make_influencer: MakeInfluencer) -> None:
    make_influencer(id="Coach", name="coach")

    assert_influencer_not_found(nobody.get(f"{URL}/coach"))  # neither the name nor another case
    assert_influencer_not_found(nobody.get(f"{URL}/C%25"))
    assert_influencer_not_found(nobody.get(f"{URL}/Coach%00"))
    assert nobody.get(f"{URL}/Coach").status_code == 200


def test_the_instructions_and_everything_else_of_the_staff_stay_inside(
    nobody: Api, make_influencer: MakeInfluencer
) -> None:
    active = make_influencer(deflection=CANARY, personality_traits={"secret": CANARY}, metadata={"note": CANARY})
    retired = make_influencer(is_active="discontinued")

    for persona in (active, retired):
        content = nobody.get(f"{URL}/{persona.pk}").content.decode()
        assert "system_instructions" not in content
        assert CANARY not in content


def test_it_takes_one_statement(nobody: Api, coach: Influencer) -> None:
    with assertNumQueries(1):
        nobody.get(f"{URL}/{coach.pk}")
