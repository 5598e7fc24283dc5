"""A persona's draft and its published versions: how they come about. Nothing is ever overwritten.

Each change locks the persona's row, which orders whoever edits and publishes; turns read that row and wait for nobody.
`ai_influencers` holds what is live. Other hands than these (a shell, a fixture) may change it: that is obeyed at once,
and becomes a version before the next change.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from django.contrib.admin.models import ADDITION
from django.contrib.auth.models import User
from django.core.exceptions import ValidationError
from django.db import IntegrityError, transaction
from django.db.models import Max
from django.utils import timezone

from personas import audit
from personas.models import VERSIONED, Influencer, PersonaVersion, digest_of
from yral_chat.database import write_transaction
from yral_chat.errors import Conflict, NotFound

Author = User | None
Content = Mapping[str, Any]  # of VERSIONED; what it lacks stays as it is


@dataclass(frozen=True, slots=True)
class Objection:
    """What speaks against publishing a draft; an `address` of the desk says more."""

    sentence: str
    address: str
    needs_reason: bool = False


# Other apps know more of a draft than this one, which imports none of them: they put their question here.
OBJECTORS: list[Callable[[PersonaVersion], Iterable[Objection]]] = []

OUTSIDE = "Changed outside the desk."
CHANGED_MEANWHILE = "Somebody changed this persona while you were at it."


# What there is


def draft_of(influencer: Influencer) -> PersonaVersion | None:
    return PersonaVersion.objects.drafts().filter(influencer=influencer.pk).select_related("author").first()


def live_version(influencer: Influencer) -> PersonaVersion | None:
    """What was published last; the live values are that, unless other hands changed them since."""
    return PersonaVersion.objects.published().filter(influencer=influencer.pk).order_by("-number").first()


def version_before(influencer: Influencer) -> PersonaVersion | None:
    """What a rollback brings back: what was live before this."""
    published = PersonaVersion.objects.published().filter(influencer=influencer.pk).order_by("-number")
    for version in published[:2]:
        if digest_of(version.content) != digest_of(influencer.content):
            return version
    return None


def as_drafted(influencer: Influencer, draft: PersonaVersion | None = None) -> Influencer:
    """A copy that isn't stored: the persona as its draft has it, or as it is if there is none."""
    draft = draft or draft_of(influencer)
    return influencer.with_content(draft.content) if draft else influencer


def revision_of(influencer: Influencer, draft: PersonaVersion | None) -> str:
    """Another one after each change, whoever made it. Forms carry it."""
    details = [getattr(influencer, name) for name in (*Influencer.DETAILS, "is_active")]
    drafted = [draft.pk, digest_of(draft.content)] if draft else []
    text = json.dumps([details, digest_of(influencer.content), drafted], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def objections_to(draft: PersonaVersion) -> list[Objection]:
    return [objection for ask in OBJECTORS for objection in ask(draft)]


# Writing


@write_transaction()
def create_persona(*, details: Mapping[str, Any], content: Content, author: Author = None) -> Influencer:
    """One that users don't see before its draft is published. Raises ValidationError."""
    influencer = Influencer(**details, is_active=Influencer.Status.DRAFT)
    draft = PersonaVersion(influencer=influencer, author=author).take(content)
    influencer.with_content(content).full_clean()
    try:
        with transaction.atomic():
            influencer.save(force_insert=True)
    except IntegrityError:
        influencer.validate_unique()  # somebody has just taken the name
        raise
    draft.save(force_insert=True)
    blank = Influencer().content
    values = {**audit.changes(dict.fromkeys(details), details), **audit.changes(blank, draft.content)}
    audit.record(author, influencer, "Made the persona.", values, kind=ADDITION)
    return influencer


@write_transaction()
def save_details(*, influencer_id: str, details: Mapping[str, Any], author: Author = None) -> Influencer:
    """What has no versions: live at once. Raises NotFound."""
    influencer = _locked(influencer_id)
    before = {name: getattr(influencer, name) for name in details}
    if values := audit.changes(before, details):
        for name in values:
            setattr(influencer, name, details[name])
        influencer.save(update_fields=[*values, "updated_at"])
        audit.record(author, influencer, "Changed what has no versions.", values)
    return influencer


@write_transaction()
def save_draft(
    *, influencer_id: str, content: Content, author: Author = None, revision: str | None = None
) -> PersonaVersion | None:
    """The draft with this content, begun if there is none; None where nothing differs from what is live. Raises
    Conflict if somebody changed the persona since `revision`, ValidationError, and NotFound."""
    influencer, draft = _to_change(influencer_id, revision)
    before = (draft or influencer).content
    values = audit.changes(before, content)
    if not values:
        return draft
    _caught_up(influencer)
    draft = draft or PersonaVersion(influencer=influencer, based_on=influencer.live_version).take(before)
    draft.take(content)
    draft.author, draft.saved_at = author, timezone.now()
    influencer.with_content(draft.content).clean_fields(exclude=_NOT_CONTENT)
    draft.save()
    audit.record(author, influencer, "Saved the draft.", values)
    return draft


@write_transaction()
def restore(*, version: PersonaVersion, author: Author = None, revision: str | None = None) -> PersonaVersion:
    """A new draft from what was published or set aside once. A draft that is there is set aside. Raises Conflict."""
    influencer, draft = _to_change(version.influencer_id, revision)
    before = (draft or influencer).content
    if draft and digest_of(draft.content) == digest_of(version.content):
        return draft
    _caught_up(influencer)
    if draft:
        _put_aside(draft)
    restored = PersonaVersion(influencer=influencer, based_on=influencer.live_version, author=author)
    restored.take(version.content).save(force_insert=True)
    audit.record(author, influencer, f"Began a draft from {name_of(version)}.", audit.changes(before, restored.content))
    return restored


@write_transaction()
def begin_draft(
    *, influencer_id: str, content: Content, did: str, author: Author = None, revision: str | None = None
) -> PersonaVersion:
    """A new draft, with what it doesn't name as it was. A draft that is there is set aside. Raises Conflict, also where
    nothing differs, ValidationError, and NotFound."""
    influencer, draft = _to_change(influencer_id, revision)
    before = (draft or influencer).content
    values = audit.changes(before, content)
    if not values:
        raise Conflict("This is what stands there already.", reason="nothing_changed")
    influencer.with_content({**before, **content}).clean_fields(exclude=_NOT_CONTENT)
    _caught_up(influencer)
    if draft:
        _put_aside(draft)
    begun = PersonaVersion(influencer=influencer, based_on=influencer.live_version, author=author)
    begun.take({**before, **content}).save(force_insert=True)
    audit.record(author, influencer, did, values)
    return begun


@write_transaction()
def set_draft_aside(*, influencer_id: str, author: Author = None, revision: str | None = None) -> PersonaVersion:
    """It can be restored. Raises Conflict where there is none, or another one by now."""
    influencer, draft = _to_change(influencer_id, revision)
    if draft is None:
        raise Conflict("There is no draft.", reason="no_draft")
    if influencer.is_active == Influencer.Status.DRAFT:
        raise Conflict("Of a persona that was never published the draft is all there is.", reason="never_published")
    _put_aside(draft)
    audit.record(author, influencer, "Set the draft aside.", audit.changes(draft.content, influencer.content))
    return draft


# Publishing: the next turn of every process obeys


@write_transaction()
def publish(
    *, influencer_id: str, change_note: str, author: Author = None, revision: str | None = None, despite: str = ""
) -> PersonaVersion:
    """The draft goes live, `despite` being the reason where something speaks against it. Raises Conflict if there is
    none, if it says what is live already, or if somebody changed the persona since `revision`; ValidationError without
    a note, or without a reason that is needed."""
    influencer, draft = _to_change(influencer_id, revision)
    if draft is None:
        raise Conflict("There is no draft to publish.", reason="no_draft")
    return _go_live(influencer, draft, _with_reason(draft, change_note, despite.strip()), author)


def _with_reason(draft: PersonaVersion, change_note: str, despite: str) -> str:
    """It stands in the note, which never changes."""
    against = " ".join(one.sentence for one in objections_to(draft) if one.needs_reason)
    if not against or not change_note.strip():
        return change_note
    if not despite:
        raise ValidationError({"despite": f"{against} Say why you publish it all the same."})
    return f"{change_note.strip()}\n\nPublished although: {against} {despite}"


@write_transaction()
def publish_content(
    *, influencer_id: str, content: Content, change_note: str, author: Author = None, revision: str | None = None
) -> PersonaVersion | None:
    """Live past the draft, which stays as it is: for commands. None where that is live already."""
    influencer, _ = _to_change(influencer_id, revision)
    new = PersonaVersion(influencer=influencer, author=author).take(influencer.content).take(content)
    if digest_of(new.content) == digest_of(influencer.content):
        return None
    influencer.with_content(new.content).clean_fields(exclude=_NOT_CONTENT)
    return _go_live(influencer, new, change_note, author)


@write_transaction()
def roll_back(*, influencer_id: str, author: Author = None, revision: str | None = None) -> PersonaVersion:
    """A new version that says what the one before the live one said; the draft stays. Raises Conflict."""
    influencer, _ = _to_change(influencer_id, revision)
    earlier = version_before(influencer)
    if earlier is None:
        raise Conflict("There is no earlier version to go back to.", reason="no_earlier_version")
    again = PersonaVersion(influencer=influencer, author=author).take(earlier.content)
    return _go_live(influencer, again, f"Back to version {earlier.number}.", author)


@write_transaction()
def catch_up(*, influencer_id: str, change_note: str = OUTSIDE) -> PersonaVersion | None:
    """The version that the live values are, made if other hands than these wrote them."""
    return _caught_up(_locked(influencer_id), change_note)


def name_of(version: PersonaVersion) -> str:
    return f"version {version.number}" if version.number else f"the draft of {version.created_at:%Y-%m-%d %H:%M}"


_NOT_CONTENT = {field.name for field in Influencer._meta.fields} - set(VERSIONED)


def _locked(influencer_id: str) -> Influencer:
    found = Influencer.objects.select_for_update(no_key=True).filter(pk=influencer_id).first()
    if found is None:
        raise NotFound("Influencer not found")
    return found


def _to_change(influencer_id: str, revision: str | None) -> tuple[Influencer, PersonaVersion | None]:
    influencer = _locked(influencer_id)
    draft = draft_of(influencer)
    if revision is not None and revision != revision_of(influencer, draft):
        raise Conflict(CHANGED_MEANWHILE, reason="changed_meanwhile")
    return influencer, draft


def _caught_up(influencer: Influencer, change_note: str = OUTSIDE) -> PersonaVersion | None:
    if influencer.is_active == Influencer.Status.DRAFT:
        return None
    last = live_version(influencer)
    if last is None or digest_of(last.content) != digest_of(influencer.content):
        last = PersonaVersion(influencer=influencer).take(influencer.content)
        _number(last, change_note, None)
    if (influencer.live_version, influencer.live_digest) != (last.number, digest_of(last.content)):
        influencer.live_version, influencer.live_digest = last.number, digest_of(last.content)
        influencer.save(update_fields=["live_version", "live_digest"])
    return last


def _go_live(influencer: Influencer, version: PersonaVersion, change_note: str, author: Author) -> PersonaVersion:
    if not change_note.strip():
        raise ValidationError({"change_note": "Say in a sentence what changed."})
    values = audit.changes(influencer.content, version.content)
    if not values:
        raise Conflict("This is what is live already.", reason="nothing_changed")
    _caught_up(influencer)
    _number(version, change_note.strip(), author)
    influencer.take(version.content)
    influencer.live_version, influencer.live_digest = version.number, digest_of(version.content)
    if influencer.is_active == Influencer.Status.DRAFT:
        influencer.is_active = Influencer.Status.ACTIVE
    influencer.save(update_fields=[*VERSIONED, "live_version", "live_digest", "is_active", "updated_at"])
    audit.record(author, influencer, f"Published version {version.number}.", values, note=version.change_note)
    return version


def _number(version: PersonaVersion, change_note: str, author: Author) -> None:
    last = PersonaVersion.objects.filter(influencer=version.influencer_id).aggregate(last=Max("number"))["last"]
    version.number, version.change_note = (last or 0) + 1, change_note
    version.published_at, version.published_by = timezone.now(), author
    version.save()


def _put_aside(draft: PersonaVersion) -> None:
    draft.set_aside_at = timezone.now()
    draft.save(update_fields=["set_aside_at"])
