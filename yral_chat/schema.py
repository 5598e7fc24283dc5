"""What the OpenAPI document says the same way for every operation."""

from typing import Any

from drf_spectacular.openapi import AutoSchema
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiParameter, OpenApiResponse
from rest_framework import serializers

from yral_chat.pagination import MAX_OFFSET

SENTENCES = {
    400: "The body is malformed.",
    401: "The token is missing, malformed, expired or not ours.",
    403: "It belongs to somebody else.",
    404: "It doesn't exist.",
    413: "The body is too large.",
    415: "The body is of another type.",
    422: "A value is missing or out of range; `details.errors` says where.",
    503: "The model or the storage is down. A question is kept: send the same body again.",
}


class Object(serializers.Serializer[Any]):  # an answer that no model stands behind; a docstring would be published
    pass


class ErrorSerializer(Object):
    error = serializers.CharField(help_text="A code to branch on, such as not_found.")
    message = serializers.CharField(help_text="A sentence for a person.")
    details = serializers.DictField()


class Schema(AutoSchema):
    """Operations are grouped by the `tag` of their view."""

    def get_tags(self) -> list[str]:
        return [self.view.tag] if hasattr(self.view, "tag") else super().get_tags()


def errors(*statuses: int) -> dict[int, OpenApiResponse]:
    return {status: OpenApiResponse(ErrorSerializer, SENTENCES[status]) for status in statuses}


def PAGE(*, limit: int, most: int) -> list[OpenApiParameter]:  # noqa: N802
    number = {"type": "integer", "minimum": 1, "maximum": most, "default": limit}
    start = {"type": "integer", "minimum": 0, "maximum": MAX_OFFSET, "default": 0}
    return [OpenApiParameter("limit", number), OpenApiParameter("offset", start)]


def ID(name: str) -> OpenApiParameter:  # noqa: N802
    return OpenApiParameter(name, OpenApiTypes.STR, OpenApiParameter.PATH)
