from typing import Any

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
