"""What must hold for a persona: in the database, as loaddata and updates skip validators; the rest by full_clean."""

from collections.abc import Callable
from typing import Any

import pytest
from django.core.exceptions import ValidationError
from django.db import IntegrityError, transaction
from django.db.models import JSONNull, ProtectedError

from conversations.models import Conversation
from personas.models import Influencer
from tests.conftest import Api

MakeInfluencer = Callable[..., Influencer]


@pytest.mark.parametrize(
    ("field", "value", "constraint"),
    [
        ("is_active", "retired", "status_known"),
        ("is_active", "", "status_known"),
        ("is_active", "Active", "status_known"),
        ("id", "", "id_not_empty"),
        ("name", "", "name_not_empty"),
        ("display_name", "", "display_name_not_empty"),
        ("system_instructions", "", "system_instructions_not_empty"),
        ("temperature", -0.1, "temperature_0_to_2"),
        ("temperature", 2.1, "temperature_0_to_2"),
        ("max_output_tokens", 0, "max_output_tokens_positive"),
    ],
)
def test_the_database_itself_refuses(coach: Influencer, field: str, value: object, constraint: str) -> None:
    before = Influencer.objects.values().get()

    with pytest.raises(IntegrityError, match=f"ai_influencers_{constraint}"), transaction.atomic():
        Influencer.objects.update(**{field: value})

    assert Influencer.objects.values().get() == before


@pytest.mark.parametrize("field", ["name", "display_name", "avatar_url", "description", "category", "is_active"])
def test_the_database_itself_refuses_a_null_that_would_reach_the_apps(coach: Influencer, field: str) -> None:
    with pytest.raises(IntegrityError), transaction.atomic():
        Influencer.objects.update(**{field: None})


@pytest.mark.parametrize(
    ("field", "value"), [("temperature", 0), ("temperature", 2), ("temperature", None), ("max_output_tokens", 1)]
)
def test_the_edges_are_allowed(coach: Influencer, field: str, value: object) -> None:
    Influencer.objects.update(**{field: value})

    coach.refresh_from_db()
    assert getattr(coach, field) == value


def test_two_personas_never_share_a_name(coach: Influencer, make_influencer: MakeInfluencer) -> None:
    with pytest.raises(IntegrityError), transaction.atomic():
        make_influencer(name="coach")

    assert Influencer.objects.count() == 1


def test_a_persona_that_somebody_talks_with_is_never_deleted(coach: Influencer, conversation: Conversation) -> None:
    with pytest.raises(ProtectedError):
        coach.delete()

    assert Influencer.objects.filter(pk=coach.pk).exists()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", ""),
        ("name", "Coach"),
        ("name", "coach asha"),
        ("name", "-coach"),
        ("name", "coach\n"),
        ("name", "trainerин"),
        ("name", "a" * 101),
        ("display_name", ""),
        ("display_name", "a" * 101),
        ("system_instructions", ""),
        ("is_active", "retired"),
        ("is_active", True),
        ("avatar_url", "http://pictures.example/a.png"),
        ("avatar_url", "javascript:alert(1)"),
        ("avatar_url", "data:text/html,x"),
        ("avatar_url", "//pictures.example/a.png"),  # a host, not a path of this service
        ("avatar_url", "static/a.png"),
        ("avatar_url", "https://" + "a" * 500),
        ("category", "a" * 51),
        ("suggested_messages", {"a": 1}),
        ("suggested_messages", "Plan my week"),
        ("suggested_messages", ["Plan my week", 7]),
        ("suggested_messages", ["Plan my week", None]),
        ("suggested_messages", ["Plan my week", "  "]),
        ("suggested_messages", [["Plan my week"]]),
        ("personality_traits", ["warm"]),
        ("personality_traits", "warm"),
        ("metadata", ["x"]),
        ("temperature", 2.5),
        ("temperature", -1),
        ("temperature", "warm"),
        ("max_output_tokens", 0),
        ("max_output_tokens", 65537),
        ("model", "m" * 101),
    ],
)
def test_full_clean_refuses(coach: Influencer, field: str, value: object) -> None:
    setattr(coach, field, value)

    with pytest.raises(ValidationError) as refusal:
        coach.full_clean()

    assert set(refusal.value.message_dict) == {field}


# Either of these is valid for Python's json and for no other: a database, the wire or the model would choke on it.
@pytest.mark.parametrize("field", ["suggested_messages", "personality_traits", "metadata"])
@pytest.mark.parametrize("text", ["half an emoji \ud83d", "null \x00 inside"], ids=["surrogate", "NUL"])
def test_full_clean_refuses_text_that_nothing_can_store_or_send(coach: Influencer, field: str, text: str) -> None:
    setattr(coach, field, [text] if field == "suggested_messages" else {"tone": text})

    with pytest.raises(ValidationError) as refusal:
        coach.full_clean()

    assert set(refusal.value.message_dict) == {field}


@pytest.mark.parametrize("field", ["personality_traits", "metadata"])
@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_full_clean_refuses_numbers_that_json_does_not_have(coach: Influencer, field: str, number: float) -> None:
    setattr(coach, field, {"energy": number})

    with pytest.raises(ValidationError) as refusal:
        coach.full_clean()

    assert set(refusal.value.message_dict) == {field}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("suggested_messages", []),
        ("suggested_messages", ["मेरा दिन?", "💪"]),
        ("personality_traits", {}),
        ("personality_traits", {"tone": ["warm", "dry"], "energy": 3}),
        ("avatar_url", ""),
        ("avatar_url", "/static/personas/avatars/coach-veer.png"),
        ("avatar_url", "https://pictures.example/a.png?size=2"),
        ("name", "7-of_9"),
        ("temperature", None),
    ],
)
def test_full_clean_accepts(coach: Influencer, field: str, value: object) -> None:
    setattr(coach, field, value)

    coach.full_clean()


@pytest.mark.parametrize(
    ("stored", "shown"),
    [
        ({"a": 1}, []),
        ("Plan my week", []),
        (7, []),
        (JSONNull(), []),
        ([], []),
        (["Plan my week", 7, None, ["x"], {"y": 1}, "Stretching?"], ["Plan my week", "Stretching?"]),
    ],
)
def test_whatever_stands_in_the_row_the_apps_get_a_list_of_strings(
    alice: Api, coach: Influencer, stored: Any, shown: list[str]
) -> None:
    Influencer.objects.update(suggested_messages=stored)

    made = alice.open(coach)
    again = alice.open(coach)
    listed = alice.get("/api/v1/chat/conversations").json()["conversations"][0]

    for found in (made, again, listed):
        assert found["influencer"]["suggested_messages"] == shown
