"""The item of the list, as a schema and as a plain dict. A test holds the two to one shape."""

from functools import lru_cache
from typing import Any

from rest_framework import serializers

from personas.models import Influencer
from yral_chat.database import Statement
from yral_chat.pagination import Page

LISTED = ("id", "name", "display_name", "avatar_url", "description", "category", "is_active", "created_at")


class InfluencerSerializer(serializers.ModelSerializer[Influencer]):
    class Meta:
        model = Influencer
        fields = LISTED
        read_only_fields = LISTED
        extra_kwargs = {name: {"help_text": ""} for name in LISTED}  # what is there is for staff


class InfluencerPageSerializer(serializers.Serializer[Any]):
    influencers = InfluencerSerializer(many=True)
    total = serializers.IntegerField()
    limit = serializers.IntegerField()
    offset = serializers.IntegerField()


@lru_cache(maxsize=64)
def listed(page: Page) -> Statement:
    return Statement(lambda: Influencer.objects.as_listed().values(*LISTED)[page.offset : page.end], for_json=True)


def influencer_json(row: dict[str, Any], base_url: str) -> dict[str, Any]:
    """`row` is of .values(*LISTED); `base_url` is put before a path of our own."""
    row["avatar_url"] = absolute(row["avatar_url"], base_url)
    return row


def absolute(url: str, base_url: str) -> str:
    return base_url + url if url.startswith("/") else url
