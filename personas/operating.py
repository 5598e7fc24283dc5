"""Operating a persona: pausing it, when it goes live, how many tokens it may take in a day.

None of it has versions. Each change locks the persona's row and is on record; turns read the row and wait for nobody.
"""

import datetime as dt
import hashlib
import json
from collections.abc import Mapping
from typing import Any

from django.core.exceptions import ValidationError
from django.db import connection
from django.utils import timezone

from personas import audit
from personas.models import Influencer, PersonaDay
from personas.versions import CHANGED_MEANWHILE, Author
from yral_chat.database import write_transaction
from yral_chat.errors import Conflict, NotFound

AWAY = "I'm away for a little while. Write to me again later!"
RETIRED = "A retired persona doesn't go live: set its status to “Coming soon” first."


def away_text(influencer: Influencer) -> str:
    return influencer.away_message.strip() or AWAY


def spent_today(influencer: Influencer) -> int:
    """Tokens, of turns that have ended."""
    today = timezone.now().date()
    found = PersonaDay.objects.filter(influencer=influencer.pk, day=today).values_list("tokens", flat=True).first()
    return found or 0


def count_tokens(influencer_id: str, tokens: int) -> None:
    """Of today. The last statement of its transaction: turns of one persona that end at once wait for each other here.
    A persona that was deleted meanwhile has no days."""
    if tokens:
        with connection.cursor() as cursor:
            cursor.execute(_COUNT, [timezone.now().date(), tokens, influencer_id])


# The first of a day makes the row; whoever comes at the same moment adds to it.
_COUNT = (
    "INSERT INTO persona_days (influencer_id, day, tokens) "
    "SELECT id, %s, %s FROM ai_influencers WHERE id = %s "
    "ON CONFLICT (influencer_id, day) DO UPDATE SET tokens = persona_days.tokens + excluded.tokens"
)


def revision_of(influencer: Influencer) -> str:
    """Another one after each change of how it is operated. Forms carry it."""
    values = [str(getattr(influencer, name)) for name in (*Influencer.OPERATED, "is_active")]
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()[:32]


@write_transaction()
def operate(
    *, influencer_id: str, values: Mapping[str, Any], author: Author = None, revision: str | None = None
) -> Influencer:
    """`values` of Influencer.OPERATED; what it lacks stays. Raises Conflict if somebody changed them since `revision`,
    ValidationError, and NotFound."""
    influencer = Influencer.objects.select_for_update(no_key=True).filter(pk=influencer_id).first()
    if influencer is None:
        raise NotFound("Influencer not found")
    if revision is not None and revision != revision_of(influencer):
        raise Conflict(CHANGED_MEANWHILE, reason="changed_meanwhile")
    before = {name: getattr(influencer, name) for name in (*Influencer.OPERATED, "is_active")}
    after = {**before, **values}
    after["is_active"] = _status_after(influencer, after["goes_live_at"])
    if changed := audit.changes(before, after):
        for name in changed:
            setattr(influencer, name, after[name])
        influencer.clean_fields(exclude={field.name for field in Influencer._meta.fields} - set(changed))
        influencer.save(update_fields=[*changed, "updated_at"])
        audit.record(author, influencer, _what_was_done(changed), changed)
    return influencer


def _status_after(influencer: Influencer, goes_live_at: dt.datetime | None) -> str:
    """What waits for its time is active from then on. Without a time it stays what users see of it now."""
    if goes_live_at == influencer.goes_live_at:
        return influencer.is_active
    if goes_live_at is None:
        return Influencer.Status.COMING_SOON if influencer.waits_to_go_live else influencer.is_active
    if influencer.is_active == Influencer.Status.DISCONTINUED:
        raise ValidationError({"goes_live_at": RETIRED})
    is_soon = influencer.is_active == Influencer.Status.COMING_SOON
    return Influencer.Status.ACTIVE if is_soon else influencer.is_active


def _what_was_done(changed: audit.Values) -> str:
    if "paused_at" not in changed:
        return "Changed how it is operated."
    return "Paused the persona." if changed["paused_at"][1] else "Ended the pause."
