"""GET /api/v1/influencers: what every front end starts with."""

import datetime as dt
import json
import re
from collections.abc import Callable
from typing import Any

import pytest
from pytest_django.asserts import assertNumQueries

from personas.models import Influencer
from personas.serializers import LISTED, InfluencerSerializer
from tests.conftest import CANARY, Api

URL = "/api/v1/influencers"
NOON = dt.datetime(2026, 3, 1, 12, tzinfo=dt.UTC)
MakeInfluencer = Callable[..., Influencer]


def names(response: Any) -> list[str]:
    assert response.status_code == 200, response.content
    return [item["name"] for item in response.json()["influencers"]]


def minutes_later(minutes: int) -> dt.datetime:
    return NOON + dt.timedelta(minutes=minutes)


def test_it_lists_all_statuses_active_then_coming_soon_then_discontinued(
    nobody: Api, make_influencer: MakeInfluencer
) -> None:
    # The later in the list the newer, so that nothing but the status can bring about the order.
    for minute, status in enumerate(("active", "coming_soon", "discontinued")):
        make_influencer(name=status, is_active=status, created_at=minutes_later(minute))

    response = nobody.get(URL)

    assert names(response) == ["active", "coming_soon", "discontinued"]
    assert response.json()["total"] == 3


def test_the_newest_comes_first_within_each_status(nobody: Api, make_influencer: MakeInfluencer) -> None:
    for minute, name in ((2, "middle"), (1, "oldest"), (3, "newest")):
        make_influencer(name=name, created_at=minutes_later(minute))
        make_influencer(name=f"retired-{name}", is_active="discontinued", created_at=minutes_later(minute))

    order = ["newest", "middle", "oldest"]
    assert names(nobody.get(URL)) == [*order, *(f"retired-{name}" for name in order)]


def test_the_id_breaks_ties_so_that_pages_neither_repeat_nor_lose_one(
    nobody: Api, make_influencer: MakeInfluencer
) -> None:
    ids = [make_influencer(created_at=NOON).pk for _ in range(23)]

    paged = []
    for offset in range(0, 25, 5):
        page = nobody.get(URL, limit=5, offset=offset).json()
        assert (page["total"], page["limit"], page["offset"]) == (23, 5, offset)
        paged += [item["id"] for item in page["influencers"]]

    assert paged == sorted(ids)
    assert [item["id"] for item in nobody.get(URL).json()["influencers"]] == paged


def test_a_page_is_fifty_unless_told(nobody: Api, make_influencer: MakeInfluencer) -> None:
    for _ in range(53):
        make_influencer()

    page = nobody.get(URL).json()

    assert (len(page["influencers"]), page["total"], page["limit"], page["offset"]) == (50, 53, 50, 0)
    assert len(nobody.get(URL, limit=100).json()["influencers"]) == 53


def test_a_page_behind_the_end_is_empty_and_still_counts_all(nobody: Api, coach: Influencer) -> None:
    page = nobody.get(URL, offset=7).json()

    assert page == {"influencers": [], "total": 1, "limit": 50, "offset": 7}


@pytest.mark.django_db
def test_no_persona_at_all_is_an_empty_list(nobody: Api) -> None:
    assert nobody.get(URL).json() == {"influencers": [], "total": 0, "limit": 50, "offset": 0}


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ({"limit": 0}, "limit"),
        ({"limit": 101}, "limit"),
        ({"limit": -1}, "limit"),
        ({"limit": ""}, "limit"),
        ({"limit": "ten"}, "limit"),
        ({"limit": "1.5"}, "limit"),
        ({"limit": "1e1"}, "limit"),
        ({"limit": "٣"}, "limit"),
        ({"limit": "9" * 5000}, "limit"),
        ({"limit": "5\x00"}, "limit"),
        ({"offset": -1}, "offset"),
        ({"offset": "null"}, "offset"),
        ({"offset": 99999999999999999999}, "offset"),
    ],
)
def test_a_page_out_of_range_is_refused_and_never_clamped(
    nobody: Api, coach: Influencer, query: dict[str, Any], field: str
) -> None:
    response = nobody.get(URL, **query)

    assert response.status_code == 422, response.content
    body = response.json()
    assert set(body) == {"error", "message", "details"}
    assert body["error"] == "validation_error"
    assert [error["loc"] for error in body["details"]["errors"]] == [["query", field]]
    assert set(body["details"]["errors"][0]) == {"loc", "msg", "type"}
    assert not query[field] or str(query[field]) not in json.dumps(body["details"]["errors"][0]["msg"])


@pytest.mark.parametrize("query", [{"limit": 1}, {"limit": 100}, {"offset": 0}, {"offset": 2_000_000_000}])
def test_the_bounds_themselves_are_allowed(nobody: Api, coach: Influencer, query: dict[str, int]) -> None:
    assert nobody.get(URL, **query).status_code == 200


def test_an_item_has_these_keys_and_none_is_null(nobody: Api, make_influencer: MakeInfluencer) -> None:
    bare = dict.fromkeys(("avatar_url", "description", "category", "initial_greeting", "deflection"), "")
    persona = make_influencer(name="bare", display_name="Bare", created_at=NOON, **bare)

    assert nobody.get(URL).json()["influencers"] == [
        {
            "id": persona.pk,
            "name": "bare",
            "display_name": "Bare",
            "avatar_url": "",
            "description": "",
            "category": "",
            "is_active": "active",
            "created_at": "2026-03-01T12:00:00.000000+00:00",
        }
    ]


@pytest.mark.parametrize("status", ["active", "coming_soon", "discontinued"])
def test_is_active_is_the_status_as_a_string(nobody: Api, make_influencer: MakeInfluencer, status: str) -> None:
    make_influencer(is_active=status)

    assert nobody.get(URL).json()["influencers"][0]["is_active"] == status


def test_the_list_and_the_schemas_serializer_have_one_shape(nobody: Api, make_influencer: MakeInfluencer) -> None:
    persona = make_influencer(description="Lifts.", avatar_url="https://pictures.example/a.png")

    item = nobody.get(URL).json()["influencers"][0]

    documented = InfluencerSerializer(persona).data
    assert list(item) == list(documented) == list(LISTED)
    for name in LISTED:
        assert type(item[name]) is type(documented[name]), name
        if name != "created_at":
            assert item[name] == documented[name]
    assert dt.datetime.fromisoformat(item["created_at"]) == persona.created_at
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}\+00:00", item["created_at"])


def test_a_picture_of_the_service_itself_gets_an_absolute_address(nobody: Api, make_influencer: MakeInfluencer) -> None:
    make_influencer(name="ours", avatar_url="/static/personas/avatars/coach-veer.png")
    make_influencer(name="elsewhere", avatar_url="https://pictures.example/a.png")

    found = {item["name"]: item["avatar_url"] for item in nobody.get(URL).json()["influencers"]}

    assert found == {
        "ours": "http://testserver/static/personas/avatars/coach-veer.png",
        "elsewhere": "https://pictures.example/a.png",
    }


def test_the_instructions_and_everything_else_of_the_staff_stay_inside(
    nobody: Api, make_influencer: MakeInfluencer
) -> None:
    make_influencer(
        deflection=CANARY, personality_traits={"secret": CANARY}, metadata={"note": CANARY}, model=f"model-{CANARY}"
    )

    for path in (URL, f"{URL}?limit=0", f"{URL}?limit={CANARY}"):
        content = nobody.get(path).content.decode()
        assert "system_instructions" not in content
        assert CANARY not in content.replace("%2D", "-")


@pytest.mark.parametrize(
    "header", ["Bearer not-a-token", "Bearer ", "Basic YTpi", "Bearer a b c", "", "Bearer eyJhbGciOiJub25lIn0.e30."]
)
def test_a_bad_token_is_not_even_looked_at(nobody: Api, coach: Influencer, header: str) -> None:
    assert nobody.client.get(URL, headers={"Authorization": header}).status_code == 200
    assert nobody.client.get(f"{URL}/{coach.pk}", headers={"Authorization": header}).status_code == 200


def test_a_good_token_changes_nothing(alice: Api, nobody: Api, coach: Influencer) -> None:
    assert alice.get(URL).json() == nobody.get(URL).json()


@pytest.mark.parametrize("method", ["post", "put", "patch", "delete"])
def test_nobody_writes_personas_here(nobody: Api, coach: Influencer, method: str) -> None:
    for path in (URL, f"{URL}/{coach.pk}"):
        response = getattr(nobody.client, method)(path, {"is_active": "discontinued"}, content_type="application/json")
        assert response.status_code == 405
        assert response.json()["error"] == "method_not_allowed"
    assert list(Influencer.objects.values_list("is_active", flat=True)) == ["active"]


@pytest.mark.parametrize("method", ["get", "post"])
def test_a_slash_at_the_end_is_another_address_and_no_redirect(nobody: Api, coach: Influencer, method: str) -> None:
    response = getattr(nobody.client, method)(f"{URL}/")

    assert response.status_code == 404
    assert response.json()["error"] == "not_found"


@pytest.mark.parametrize("rows", [1, 40])
def test_it_takes_two_statements_whatever_the_number(nobody: Api, make_influencer: MakeInfluencer, rows: int) -> None:
    for _ in range(rows):
        make_influencer()

    with assertNumQueries(2):
        nobody.get(URL)


def test_unknown_questions_in_the_query_are_ignored(nobody: Api, coach: Influencer) -> None:
    assert names(nobody.get(URL, order="asc", is_active="discontinued", category="cooking")) == ["coach"]
