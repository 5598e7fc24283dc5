import datetime as dt
from collections.abc import Iterable
from itertools import batched
from typing import Any

from django.core.management.base import BaseCommand, CommandParser
from django.utils import timezone

from media_uploads import storage
from media_uploads.models import MediaUpload
from media_uploads.services import delete_files


class Command(BaseCommand):
    help = "Find uploads that no message used within a day, and files without a row; with --delete remove them."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--delete", action="store_true", help="really delete; without it nothing is changed")
        parser.add_argument("--hours", type=int, default=24, help="how long an upload may wait for its message")

    def handle(self, *args: Any, delete: bool, hours: int, **options: Any) -> None:
        before = timezone.now() - dt.timedelta(hours=max(1, hours))
        unused = MediaUpload.objects.filter(use_count=0, created_at__lt=before)
        orphans = list(self.without_row(before))
        count = unused.count()
        if delete:
            count = self.delete_unused(before)
            delete_files(orphans)
        verb = "Deleted" if delete else "Would delete"
        self.stdout.write(f"{verb} {count} unused uploads and {len(orphans)} files without a row.")
        if not delete and (count or orphans):
            self.stdout.write("Nothing was changed. Add --delete to do it.")

    def delete_unused(self, before: dt.datetime) -> int:
        """A row first, and only if it's still unused then: a message may be using it this moment."""
        count = 0
        for key in MediaUpload.objects.filter(use_count=0, created_at__lt=before).values_list("storage_key", flat=True):
            if MediaUpload.objects.filter(storage_key=key, use_count=0).delete()[0]:
                delete_files([key])
                count += 1
        return count

    def without_row(self, before: dt.datetime) -> Iterable[str]:
        """A file is written before its row: young ones may belong to an upload under way."""
        for keys in batched(storage.all_keys(), 500):
            known = set(MediaUpload.objects.with_keys(list(keys)).values_list("storage_key", flat=True))
            for key in keys:
                if key not in known and storage.written_at(key) < before:
                    yield key
