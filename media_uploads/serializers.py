from typing import Any

from drf_spectacular.utils import OpenApiExample
from rest_framework import serializers

from media_uploads import storage
from media_uploads.models import MediaUpload
from yral_chat.schema import Object


class UploadSerializer(serializers.Serializer[Any]):
    file = serializers.FileField(allow_empty_file=True, use_url=False)
    type = serializers.ChoiceField(
        choices=MediaUpload.Kind.choices, error_messages={"invalid_choice": "Must be image or audio."}
    )


class UploadedSerializer(Object):
    url = serializers.CharField(help_text="Readable for a while; every reading of a message has a new one.")
    storage_key = serializers.CharField(help_text="Send this in a message.")
    type = serializers.ChoiceField(choices=MediaUpload.Kind.choices)
    size = serializers.IntegerField(help_text="Bytes, as stored.")
    mime_type = serializers.CharField()
    duration_seconds = serializers.FloatField(allow_null=True, help_text="Of a sound, measured.")
    uploaded_at = serializers.DateTimeField()


KEY = "alice/3f6c2a9e-8b1d-4e7f-a2c5-9d0e1f2a3b4c.jpg"
EXAMPLE = OpenApiExample(
    "picture",
    {
        "url": f"https://chat.example.com/media/{KEY}?expires=1769850900&signature=0f1e2d3c4b5a",
        "storage_key": KEY,
        "type": "image",
        "size": 48213,
        "mime_type": "image/jpeg",
        "duration_seconds": None,
        "uploaded_at": "2026-01-31T09:00:00.000000+00:00",
    },
    response_only=True,
    status_codes=["200"],
)


def uploaded_json(upload: MediaUpload, base_url: str) -> dict[str, Any]:
    return {
        "url": storage.url_for(upload.storage_key, base_url),
        "storage_key": upload.storage_key,
        "type": upload.kind,
        "size": upload.size,
        "mime_type": upload.mime_type,
        "duration_seconds": upload.duration_seconds,
        "uploaded_at": upload.created_at,
    }
