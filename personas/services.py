import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.exceptions import ValidationError
from django.db import IntegrityError, transaction
from django.utils import timezone

from personas.models import Influencer, InfluencerQuerySet
from yral_chat.errors import NotFound

SEED = settings.BASE_DIR / "fixtures" / "personas.json"


@dataclass(frozen=True, slots=True)
class Seeded:
    added: list[str]
    updated: list[str]
    kept: list[str]


def set_status(*, influencers: InfluencerQuerySet, status: Influencer.Status) -> int:
    """How many really changed. The next turn obeys."""
    return influencers.exclude(is_active=status).update(is_active=status, updated_at=timezone.now())


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
    try:
        with transaction.atomic():
            influencer.full_clean()
            influencer.save(force_insert=existing is None)
    except (IntegrityError, ValidationError):
        if existing or not Influencer.objects.filter(pk=influencer.pk).exists():
            raise
        seeded.kept.append(name)  # another process has just added it
        return
    (seeded.updated if existing else seeded.added).append(name)
