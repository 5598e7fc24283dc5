"""The item of the list, as a schema and as a plain dict. A test holds the two to one shape."""

import datetime as dt
from functools import lru_cache
from typing import Any

from drf_spectacular.utils import OpenApiExample
from rest_framework import serializers

from personas.models import Influencer
from yral_chat.database import Statement
from yral_chat.pagination import Page

LISTED = ("id", "name", "display_name", "avatar_url", "description", "category", "is_active", "created_at")
_STORED = tuple(name for name in LISTED if name != "is_active")
SHOWN_STATUSES = [choice for choice in Influencer.Status.choices if choice[0] != Influencer.Status.DRAFT]


class InfluencerSerializer(serializers.ModelSerializer[Influencer]):
    class Meta:
        model = Influencer
        fields = LISTED
        read_only_fields = LISTED
        extra_kwargs = {
            **{name: {"help_text": ""} for name in LISTED},  # what is there is for staff
            "is_active": {"help_text": "", "choices": SHOWN_STATUSES},
        }


EXAMPLE = {
    "id": "7a1e9c40-5b7f-4c58-9f2e-0d6b3a8c4e11",
    "name": "coach_asha",
    "display_name": "Coach Asha",
    "avatar_url": "https://chat.example.com/static/personas/coach_asha.svg",
    "description": "Your trainer for strong mornings.",
    "category": "fitness",
    "is_active": "active",
    "created_at": "2026-01-31T09:00:00.000000+00:00",
}
PERSONA = OpenApiExample("persona", EXAMPLE, response_only=True, status_codes=["200"])
PERSONAS = OpenApiExample(
    "personas",
    {"influencers": [EXAMPLE], "total": 1, "limit": 50, "offset": 0},
    response_only=True,
    status_codes=["200"],
)


class InfluencerPageSerializer(serializers.Serializer[Any]):
    influencers = InfluencerSerializer(many=True)
    total = serializers.IntegerField()
    limit = serializers.IntegerField()
    offset = serializers.IntegerField()


@lru_cache(maxsize=64)
def listed(page: Page) -> Statement:
    """A page of the personas as they are at the moment that it's called with."""
    return Statement(
        lambda now: Influencer.objects.as_listed(now).values(*_STORED, "status")[page.offset : page.end],
        dt.datetime(2000, 1, 1, 12, tzinfo=dt.UTC),
        for_json=True,
    )


def influencer_json(row: dict[str, Any], base_url: str) -> dict[str, Any]:
    """`row` is of .values(*LISTED), or of listed(); `base_url` is put before a path of our own."""
    row = {name: row["status" if name == "is_active" and "status" in row else name] for name in LISTED}
    row["avatar_url"] = absolute(row["avatar_url"], base_url)
    return row


def absolute(url: str, base_url: str) -> str:
    return base_url + url if url.startswith("/") else url
