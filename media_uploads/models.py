import uuid
from typing import Self

from django.db import models
from django.db.models import F, Q
from django.db.models.functions import Coalesce, Now
from django.utils import timezone


class MediaUploadQuerySet(models.QuerySet["MediaUpload"]):
    def owned_by(self, user_id: str) -> Self:
        return self.filter(owner_id=user_id)

    def with_keys(self, keys: list[str]) -> Self:
        return self.filter(storage_key__in=keys)

    def count_use(self, change: int) -> None:
        """One message more (+1) or fewer (-1) shows them."""
        self.update(use_count=F("use_count") + change, first_used_at=Coalesce("first_used_at", Now()))


class MediaUpload(models.Model):
    """A file of a user. Whose it is stands here, never in the key."""

    class Kind(models.TextChoices):
        IMAGE = "image"
        AUDIO = "audio"

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    owner_id = models.CharField(max_length=255)
    storage_key = models.CharField(max_length=255, unique=True)
    kind = models.CharField(max_length=10, choices=Kind)
    size = models.PositiveIntegerField(help_text="Bytes, as stored.")
    mime_type = models.CharField(max_length=50)
    width = models.PositiveIntegerField(null=True, blank=True)
    height = models.PositiveIntegerField(null=True, blank=True)
    duration_seconds = models.FloatField(null=True, blank=True)
    sha256 = models.CharField(max_length=64)
    created_at = models.DateTimeField(default=timezone.now, editable=False)
    first_used_at = models.DateTimeField(null=True, blank=True, help_text="When a message first showed it.")
    use_count = models.PositiveIntegerField(default=0, help_text="Messages that show it now.")

    objects = MediaUploadQuerySet.as_manager()

    class Meta:
        db_table = "media_uploads"
        constraints = (
            models.CheckConstraint(condition=Q(kind__in=["image", "audio"]), name="media_uploads_kind_known"),
            models.CheckConstraint(condition=~Q(owner_id=""), name="media_uploads_owner_not_empty"),
        )
        indexes = (
            models.Index(fields=["owner_id", "created_at"], name="media_uploads_by_owner"),
            models.Index(F("created_at").desc(), name="media_uploads_latest"),
            models.Index(fields=["created_at"], condition=Q(use_count=0), name="media_uploads_unused"),
        )

    def __str__(self) -> str:
        return self.storage_key
