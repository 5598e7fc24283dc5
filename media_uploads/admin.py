from django.contrib import admin
from django.utils.html import format_html

from media_uploads import storage
from media_uploads.models import MediaUpload
from yral_chat.staff import ReadOnlyAdmin


@admin.register(MediaUpload)
class MediaUploadAdmin(ReadOnlyAdmin):
    list_display = ("preview", "kind", "owner_id", "size", "mime_type", "use_count", "created_at")
    list_display_links = ("kind",)
    list_select_related = False
    list_filter = ("kind", "mime_type")
    search_fields = ("owner_id__exact", "storage_key__exact", "sha256__exact")
    search_help_text = "The whole user id, storage key or SHA-256."
    ordering = ("-created_at",)
    fields = readonly_fields = (
        "preview",
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
    def preview(self, upload: MediaUpload) -> str:
        url = storage.url_for(upload.storage_key, "")
        if upload.kind == MediaUpload.Kind.AUDIO:
            return format_html('<audio controls preload="none" src="{}"></audio>', url)
        return format_html('<img src="{}" alt="" style="max-width:96px;max-height:96px" loading="lazy">', url)
