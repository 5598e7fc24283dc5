"""manage.py purge_media: what nobody used within a day, and files that no row knows."""

import datetime as dt
import io
import os
from pathlib import Path
from typing import Any

import pytest
from django.core.management import call_command
from django.utils import timezone

from conversations.models import Conversation
from media_uploads.models import MediaUpload
from tests.conftest import Api
from tests.media_uploads.conftest import a_key, files_below, kept

pytestmark = pytest.mark.django_db
OLD = dt.timedelta(hours=25)


def purge(*arguments: str) -> str:
    out = io.StringIO()
    call_command("purge_media", *arguments, stdout=out)
    return out.getvalue()


def age(key: str, folder: Path, by: dt.timedelta = OLD) -> None:
    then = timezone.now() - by
    MediaUpload.objects.filter(storage_key=key).update(created_at=then)
    os.utime(folder / key, (then.timestamp(), then.timestamp()))


def orphan(folder: Path, key: str = "", by: dt.timedelta = OLD) -> str:
    key = key or a_key("gone")
    (folder / key).parent.mkdir(parents=True, exist_ok=True)
    (folder / key).write_bytes(b"left behind")
    age(key, folder, by)
    return key


def keys() -> set[str]:
    return set(MediaUpload.objects.values_list("storage_key", flat=True))


def test_before_the_first_upload_there_is_nothing_to_do(folder: Path) -> None:
    assert not folder.exists()
    assert "0 unused uploads and 0 files" in purge("--delete")
    assert not folder.exists()


def test_a_dry_run_says_what_it_would_do_and_changes_nothing(alice: Api, folder: Path) -> None:
    old = kept(alice)["storage_key"]
    age(old, folder)
    orphan(folder)
    before = files_below(folder)

    said = purge()

    assert "Would delete 1 unused uploads and 1 files without a row." in said
    assert "--delete" in said
    assert (keys(), files_below(folder)) == ({old}, before)


def test_what_nobody_used_within_a_day_goes_and_young_uploads_stay(alice: Api, folder: Path) -> None:
    old, young = kept(alice)["storage_key"], kept(alice)["storage_key"]
    age(old, folder)
    age(young, folder, dt.timedelta(hours=23))

    assert "Deleted 1 unused uploads and 0 files" in purge("--delete")
    assert keys() == {young}
    assert files_below(folder) == [young]


def test_what_a_message_shows_stays(alice: Api, conversation: Conversation, folder: Path) -> None:
    used = kept(alice)["storage_key"]
    assert alice.send(conversation, "", message_type="image", media_urls=[used]).status_code == 200
    age(used, folder, dt.timedelta(days=400))

    purge("--delete")

    assert keys() == {used}
    assert files_below(folder) == [used]


def test_files_without_a_row_go_unless_they_are_young(alice: Api, folder: Path) -> None:
    kept_key = kept(alice)["storage_key"]
    orphan(folder)
    orphan(folder, a_key("~" + "0" * 32, "webm"))
    young = orphan(folder, by=dt.timedelta(hours=1))

    assert "Deleted 0 unused uploads and 2 files without a row." in purge("--delete")
    assert set(files_below(folder)) == {kept_key, young}


def test_files_that_are_none_of_ours_stay(folder: Path) -> None:
    """Somebody mounted the wrong folder."""
    strangers = {orphan(folder, name) for name in ("notes.txt", "alice/holiday.jpg", "a/b/c.png", ".keep", "x/.hidden")}

    assert "0 files" in purge("--delete")
    assert set(files_below(folder)) == strangers


def test_a_row_whose_file_is_gone_goes_too(alice: Api, folder: Path) -> None:
    old = kept(alice)["storage_key"]
    age(old, folder)
    (folder / old).unlink()

    purge("--delete")
    assert not keys()


@pytest.mark.parametrize(("hours", "left"), [("48", 1), ("25", 1), ("24", 0), ("1", 0)])
def test_how_long_it_waits_can_be_told(alice: Api, folder: Path, hours: str, left: int) -> None:
    age(kept(alice)["storage_key"], folder, dt.timedelta(hours=24, minutes=30))

    purge("--delete", "--hours", hours)
    assert len(keys()) == left


@pytest.mark.parametrize("hours", ["0", "-5"])
def test_an_upload_under_way_is_safe_whatever_is_told(alice: Api, folder: Path, hours: str) -> None:
    key = kept(alice)["storage_key"]
    young = orphan(folder, by=dt.timedelta(minutes=5))

    purge("--delete", "--hours", hours)
    assert keys() == {key}
    assert set(files_below(folder)) == {key, young}


def test_twice_is_as_good_as_once(alice: Api, folder: Path) -> None:
    age(kept(alice)["storage_key"], folder)
    orphan(folder)

    assert "Deleted 1 unused uploads and 1 files" in purge("--delete")
    assert "Deleted 0 unused uploads and 0 files" in purge("--delete")


def test_a_bucket_is_purged_like_a_folder(alice: Api, bucket: Any) -> None:
    old, young = kept(alice)["storage_key"], kept(alice)["storage_key"]
    MediaUpload.objects.filter(storage_key=old).update(created_at=timezone.now() - OLD)
    fresh = a_key("gone")
    bucket.put_object(Key=fresh, Body=b"left behind just now")
    bucket.put_object(Key="alice/holiday.jpg", Body=b"not ours")

    assert "Deleted 1 unused uploads and 0 files" in purge("--delete")
    assert keys() == {young}
    assert {found.key for found in bucket.objects.all()} == {young, fresh, "alice/holiday.jpg"}


def test_old_files_of_a_bucket_that_no_row_knows_go(bucket: Any, time_machine: Any) -> None:
    bucket.put_object(Key=a_key("gone"), Body=b"left behind")
    time_machine.move_to(timezone.now() + OLD)

    assert "Deleted 0 unused uploads and 1 files without a row." in purge("--delete")
    assert not list(bucket.objects.all())


def test_a_file_that_cannot_be_deleted_now_is_found_again(
    alice: Api, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    age(kept(alice)["storage_key"], folder)
    (folder / "alice").rename(folder / "elsewhere")
    (folder / "alice").write_bytes(b"a file where a folder was")

    purge("--delete")

    assert not keys()
    assert "stays until the next purge_media" in caplog.text
