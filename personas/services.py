import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.exceptions import ValidationError
from django.db import IntegrityError, transaction
from django.utils import timezone

from personas import audit, versions
from personas.models import VERSIONED, Influencer, InfluencerQuerySet
from yral_chat.database import write_transaction
from yral_chat.errors import NotFound

SEED = settings.BASE_DIR / "fixtures" / "personas.json"


@dataclass(frozen=True, slots=True)
class Seeded:
    added: list[str]
    updated: list[str]
    kept: list[str]


@write_transaction()
def set_status(*, influencers: InfluencerQuerySet, status: Influencer.Status, author: versions.Author = None) -> int:
    """How many really changed. The next turn obeys. What was never published has to be published instead. A time to go
    live that is still to come is forgotten."""
    changing = [one for one in influencers.shown().select_for_update(no_key=True) if _differs(one, status)]
    for influencer in changing:
        before = {"is_active": influencer.is_active, "goes_live_at": influencer.goes_live_at}
        values = audit.changes(before, {"is_active": str(status), "goes_live_at": None})
        audit.record(author, influencer, f"Status set to {status}.", values)
    kept = Influencer.objects.filter(pk__in=[influencer.pk for influencer in changing])
    return kept.update(is_active=status, goes_live_at=None, updated_at=timezone.now())


def _differs(influencer: Influencer, status: Influencer.Status) -> bool:
    return influencer.is_active != status or influencer.waits_to_go_live


def seed_personas(*, path: Path = SEED, update: frozenset[str] = frozenset()) -> Seeded:
    """Add the personas that are missing; touch an existing one only if its name is in `update`.

    Raises ValidationError if a persona doesn't hold, and NotFound for an unknown name; then nothing is written.
    """
    seeded = Seeded([], [], [])
    entries = json.loads(path.read_text(encoding="utf-8"))
    if unknown := update - {entry["fields"]["name"] for entry in entries}:
        raise NotFound(f"The fixture has no persona named {', '.join(sorted(unknown))}.")
    with transaction.atomic():
        for entry in entries:
            _seed_one(entry, update, seeded)
    return seeded


def _seed_one(entry: dict[str, Any], update: frozenset[str], seeded: Seeded) -> None:
    fields = {name: value for name, value in entry["fields"].items() if name not in ("created_at", "updated_at")}
    name = fields["name"]
    existing = Influencer.objects.filter(name=name).first() or Influencer.objects.filter(pk=entry["pk"]).first()
    if existing and name not in update:
        seeded.kept.append(name)
        return
    influencer = existing or Influencer(pk=entry["pk"], created_at=entry["fields"]["created_at"])
    for field, value in fields.items():
        setattr(influencer, field, value)
    if existing:
        influencer.full_clean()
        _set_back(influencer, fields)
        seeded.updated.append(name)
        return
    try:
        with transaction.atomic():
            influencer.full_clean()
            influencer.save(force_insert=True)
            versions.catch_up(influencer_id=influencer.pk, change_note="Added by seed_personas.")
    except (IntegrityError, ValidationError):
        if not Influencer.objects.filter(pk=influencer.pk).exists():
            raise
        seeded.kept.append(name)  # another process has just added it
        return
    seeded.added.append(name)


def _set_back(influencer: Influencer, fields: dict[str, Any]) -> None:
    """The draft stays as it is."""
    details = {name: value for name, value in fields.items() if name not in VERSIONED}
    content = {name: value for name, value in fields.items() if name in VERSIONED}
    versions.save_details(influencer_id=influencer.pk, details=details)
    versions.publish_content(
        influencer_id=influencer.pk, content=content, change_note="Set back by seed_personas --update."
    )
