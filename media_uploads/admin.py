from django.contrib import admin
from django.urls import reverse
from django.utils.html import format_html

from media_uploads.models import MediaUpload
from yral_chat.staff import ReadOnlyAdmin


@admin.register(MediaUpload)
class MediaUploadAdmin(ReadOnlyAdmin):
    """What is known of files. The files themselves are private: a page of `conversations` shows them, with a reason."""

    list_display = ("kind", "owner_id", "size", "mime_type", "use_count", "created_at", "file")
    list_select_related = False
    list_filter = ("kind", "mime_type")
    search_fields = ("owner_id__exact", "storage_key__exact", "sha256__exact")
    search_help_text = "The whole user id, storage key or SHA-256."
    ordering = ("-created_at",)
    fields = readonly_fields = (
        "file",
        "id",
        "owner_id",
        "storage_key",
        "kind",
        "size",
        "mime_type",
        "width",
        "height",
        "duration_seconds",
        "sha256",
        "created_at",
        "first_used_at",
        "use_count",
    )

    @admin.display(description="file")
    def file(self, upload: MediaUpload) -> str:
        url = reverse("admin:conversations_conversation_file", args=[upload.pk])
        return format_html('<a href="{}">{}</a>', url, "Listen" if upload.kind == MediaUpload.Kind.AUDIO else "Look")
