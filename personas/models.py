import copy
import datetime as dt
import hashlib
import json
import uuid
from collections.abc import Mapping
from typing import Any, Self

from django.conf import settings
from django.core.exceptions import ValidationError
from django.core.validators import MaxLengthValidator, MaxValueValidator, MinValueValidator, RegexValidator
from django.db import models
from django.db.models import Case, Exists, F, OuterRef, Q, Subquery, Value, When
from django.utils import timezone

from yral_chat.database import Statement, instance
from yral_chat.errors import NotFound


def new_id() -> str:
    return str(uuid.uuid4())


MOST_CHARACTERS = 100_000  # of one text: to look one over and to compare two takes seconds by then


def validate_texts(value: object) -> None:
    """A JSON list of non-blank strings."""
    if not isinstance(value, list) or not all(isinstance(text, str) and text.strip() for text in value):
        raise ValidationError('Enter a list of texts, for example ["What should I eat today?", "Plan my week"].')


def validate_json(value: object) -> None:
    """Refuses what Python alone takes for JSON (NaN, Infinity, half an emoji), NUL, and too much of it."""
    try:
        text = json.dumps(value, allow_nan=False, ensure_ascii=False).encode().decode()
    except (ValueError, TypeError) as exc:
        raise ValidationError("This can't be stored: it holds half a character or an impossible number.") from exc
    if "\\u0000" in text:
        raise ValidationError("Null characters are not allowed.")
    if len(text) > MOST_CHARACTERS:
        raise ValidationError(f"This has more than {MOST_CHARACTERS:,} characters.")


def validate_object(value: object) -> None:
    if not isinstance(value, dict):
        raise ValidationError('Enter an object, for example {"tone": "warm"}.')


VARIABLES = {
    "user_name": "the user's first name, if it is known, else “the user”",
    "today": "the date, as in “Wednesday, 25 November 2026”, UTC",
    "persona_name": "the name that users see",
}
VARIABLES_HELP = (
    "Replaced in each prompt: " + "; ".join(f"{{{{{name}}}}}: {what}" for name, what in VARIABLES.items()) + "."
)


class PersonaContent(models.Model):
    """What a version holds: all that decides what the persona says. Live in `ai_influencers`, kept in each version."""

    system_instructions = models.TextField(
        validators=[MaxLengthValidator(MOST_CHARACTERS)],
        help_text=f"Who the persona is and how it speaks. Never shown to users. {VARIABLES_HELP}",
    )
    language_note = models.TextField(
        "languages",
        max_length=500,
        blank=True,
        default="",
        db_default="",
        help_text="Which languages the persona speaks, and when: “Hinglish; English to those who write English.” "
        "Told to the model below the instructions. Empty: nothing is said, and it answers in the user's language.",
    )
    personality_traits = models.JSONField(
        default=dict, blank=True, validators=[validate_object, validate_json], help_text='For example {"tone": "warm"}.'
    )
    initial_greeting = models.TextField(
        blank=True, max_length=4000, help_text="The persona's first message in a new conversation. Empty: none."
    )
    suggested_messages = models.JSONField(
        default=list,
        blank=True,
        validators=[validate_texts, validate_json],
        help_text='First messages that a user can tap, for example ["Plan my week", "What should I eat?"].',
    )
    deflection = models.TextField(
        blank=True,
        max_length=1000,
        help_text="What the persona says when a question is blocked. Empty: a neutral sentence.",
    )
    model = models.CharField("model", max_length=100, blank=True, help_text="Empty: the service's model.")
    temperature = models.FloatField(
        null=True,
        blank=True,
        validators=[MinValueValidator(0), MaxValueValidator(2)],
        help_text="0 to 2; higher is freer. Empty: the service's.",
    )
    max_output_tokens = models.PositiveIntegerField(
        null=True,
        blank=True,
        validators=[MinValueValidator(1), MaxValueValidator(65536)],
        help_text="The longest answer. Empty: the service's.",
    )

    class Meta:
        abstract = True

    @property
    def content(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in VERSIONED}

    def take(self, content: Mapping[str, Any]) -> Self:
        """Sets what it names, and saves nothing."""
        for name in VERSIONED:
            if name in content:
                setattr(self, name, content[name])
        return self


VERSIONED = tuple(field.name for field in PersonaContent._meta.local_fields)


def digest_of(content: Mapping[str, Any]) -> str:
    """The same for what is the same, however a database writes numbers and orders keys."""
    text = json.dumps([_plain(content[name]) for name in VERSIONED], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _plain(value: Any) -> Any:
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    return [_plain(one) for one in value] if isinstance(value, list) else value


class InfluencerQuerySet(models.QuerySet["Influencer"]):
    def active(self, now: dt.datetime | None = None) -> "InfluencerQuerySet":
        """Those whose time to go live has come."""
        here = Q(goes_live_at__isnull=True) | Q(goes_live_at__lte=now or timezone.now())
        return self.filter(here, is_active=Influencer.Status.ACTIVE)

    def shown(self) -> "InfluencerQuerySet":
        """To users: those that were published."""
        return self.exclude(is_active=Influencer.Status.DRAFT)

    def with_draft_state(self) -> "InfluencerQuerySet":
        """`has_draft`: somebody works on a next version."""
        return self.annotate(has_draft=Exists(PersonaVersion.objects.drafts().filter(influencer=OuterRef("pk"))))

    def with_status(self, now: dt.datetime | None = None) -> "InfluencerQuerySet":
        """`status` is what users see: coming soon until it goes live, then active without anybody's hand."""
        return self.annotate(status=_status_at(now or timezone.now()))

    def as_listed(self, now: dt.datetime | None = None) -> "InfluencerQuerySet":
        """Active, then coming soon, then discontinued (which is their alphabetical order; a test holds it);
        the newest first within each; the id breaks ties."""
        shown = self.shown().annotate(status=_status_at(now or timezone.now()))
        return shown.order_by("status", "-created_at", "id")

    def with_tokens_of(self, day: dt.date) -> "InfluencerQuerySet":
        spent = PersonaDay.objects.filter(day=day, influencer=OuterRef("pk")).values("tokens")
        return self.annotate(spent=Subquery(spent))

    def active_with_id(self, influencer_id: str) -> "InfluencerQuerySet":
        """One or none. An id is the client's text; one with a NUL can't even be asked of PostgreSQL."""
        return self.none() if "\x00" in influencer_id else self.active().filter(pk=influencer_id)

    def get_active(self, influencer_id: str) -> "Influencer":
        """Raises NotFound, for an unknown one as for a retired one."""
        now = timezone.now()
        row = None if "\x00" in influencer_id else _ACTIVE.first(now.date(), now, influencer_id)
        if row is None:
            raise NotFound("Influencer not found")
        influencer = instance(Influencer, row)
        influencer.tokens_today = row["spent"] or 0
        return influencer


def _status_at(now: dt.datetime) -> Case:
    later = {"is_active": Influencer.Status.ACTIVE, "goes_live_at__gt": now}
    return Case(When(**later, then=Value(Influencer.Status.COMING_SOON.value)), default=F("is_active"))


class Influencer(PersonaContent):
    """A persona. Turns read these rows in their own query: a change is obeyed at once by every process.

    What PersonaContent names is written by publishing a version. The other fields have no versions: they say how the
    persona is found and shown, the model never sees them (but for the name, as a variable), and a change of them is
    at once in all apps and on record in the log.
    """

    class Status(models.TextChoices):
        ACTIVE = "active", "Active"
        COMING_SOON = "coming_soon", "Coming soon"
        DISCONTINUED = "discontinued", "Discontinued"
        DRAFT = "draft", "Not published yet"

    DETAILS = ("name", "display_name", "avatar_url", "description", "category", "metadata")

    id = models.CharField(primary_key=True, max_length=255, default=new_id, editable=False)
    name = models.CharField(
        "short name",
        max_length=100,
        unique=True,
        validators=[RegexValidator(r"^[a-z0-9][a-z0-9_-]*\Z", "Use small letters, digits, - and _.")],
        help_text="Unique; small letters, digits, - and _. Used by commands, not shown to users.",
    )
    display_name = models.CharField(max_length=100, help_text="The name that users see.")
    avatar_url = models.CharField(
        "avatar",
        max_length=500,
        blank=True,
        validators=[
            RegexValidator(r"^(https://|/(?!/))", "Give an https:// address, or a /static/ path of this service.")
        ],
        help_text="https:// address of a square picture, or a /static/ path of this service.",
    )
    description = models.TextField(blank=True, max_length=1000, help_text="One or two sentences, shown in the list.")
    category = models.CharField(max_length=50, blank=True, help_text="For example fitness, astrology, cooking.")
    is_active = models.CharField("status", max_length=20, choices=Status, default=Status.ACTIVE)
    created_at = models.DateTimeField(default=timezone.now, editable=False)
    updated_at = models.DateTimeField(auto_now=True)
    metadata = models.JSONField(default=dict, blank=True, validators=[validate_object, validate_json])
    # How it is operated (operating.py). The next turn of every process obeys: these are read with the row itself.
    paused_at = models.DateTimeField("paused since", null=True, blank=True, editable=False)
    away_message = models.TextField(
        blank=True,
        max_length=1000,
        default="",
        db_default="",
        help_text="What the persona says while it's paused or its tokens of the day are spent, in its own words. "
        "No model is asked. Empty: a neutral sentence.",
    )
    goes_live_at = models.DateTimeField(
        "goes live at",
        null=True,
        blank=True,
        help_text="UTC. Until then it's coming soon in the apps; from then on users can talk with it.",
    )
    daily_token_cap = models.PositiveBigIntegerField(
        null=True,
        blank=True,
        validators=[MinValueValidator(1)],
        help_text="Tokens of a day (UTC), prompts included. Once they are spent, the away message answers until the "
        "next day; turns that run at that moment end as usual. Empty: no cap.",
    )
    # What was published last, and its digest: a row that was changed by other hands since has another one.
    live_version = models.PositiveIntegerField(null=True, blank=True, editable=False)
    live_digest = models.CharField(max_length=64, blank=True, default="", db_default="", editable=False)

    tokens_today = 0  # of a persona that get_active() gave

    OPERATED = ("paused_at", "away_message", "goes_live_at", "daily_token_cap")

    objects = InfluencerQuerySet.as_manager()

    class Meta:
        db_table = "ai_influencers"
        verbose_name = "persona"
        ordering = ("display_name", "id")
        permissions = (("publish_influencer", "Can publish, roll back, activate and retire personas"),)
        constraints = (
            models.CheckConstraint(
                condition=Q(is_active__in=["active", "coming_soon", "discontinued", "draft"]),
                name="ai_influencers_status_known",
            ),
            models.CheckConstraint(condition=~Q(id=""), name="ai_influencers_id_not_empty"),
            models.CheckConstraint(condition=~Q(name=""), name="ai_influencers_name_not_empty"),
            models.CheckConstraint(condition=~Q(display_name=""), name="ai_influencers_display_name_not_empty"),
            models.CheckConstraint(
                condition=~Q(system_instructions="") | Q(is_active="draft"),
                name="ai_influencers_system_instructions_not_empty",
            ),
            models.CheckConstraint(
                condition=Q(temperature__isnull=True) | Q(temperature__gte=0, temperature__lte=2),
                name="ai_influencers_temperature_0_to_2",
            ),
            models.CheckConstraint(
                condition=Q(max_output_tokens__isnull=True) | Q(max_output_tokens__gte=1),
                name="ai_influencers_max_output_tokens_positive",
            ),
        )

    def __str__(self) -> str:
        return self.display_name

    @property
    def version_number(self) -> int | None:
        """Of the version that the live values are; none where other hands than the desk's changed them since."""
        return self.live_version if self.live_version and digest_of(self.content) == self.live_digest else None

    @property
    def waits_to_go_live(self) -> bool:
        """Coming soon for now, though its status is active."""
        is_later = self.goes_live_at is not None and self.goes_live_at > timezone.now()
        return is_later and self.is_active == self.Status.ACTIVE

    @property
    def has_spent_its_day(self) -> bool:
        return self.daily_token_cap is not None and self.tokens_today >= self.daily_token_cap

    @property
    def is_away(self) -> bool:
        """It answers with its away message, and no model is asked."""
        return self.paused_at is not None or self.has_spent_its_day

    def with_content(self, content: Mapping[str, Any]) -> "Influencer":
        """A copy that isn't stored: this persona as it would be."""
        return copy.copy(self).take(content)


class PersonaDay(models.Model):
    """The tokens that a persona's turns took on a day of UTC: what the cap is compared with, in one row."""

    influencer = models.ForeignKey(Influencer, on_delete=models.CASCADE, related_name="days", db_index=False)
    day = models.DateField()
    tokens = models.PositiveBigIntegerField(default=0)

    class Meta:
        db_table = "persona_days"
        constraints = (models.UniqueConstraint(fields=("influencer", "day"), name="persona_days_one_per_day"),)

    def __str__(self) -> str:
        return f"{self.influencer_id} on {self.day}"


class PersonaVersionQuerySet(models.QuerySet["PersonaVersion"]):
    def drafts(self) -> Self:
        return self.filter(published_at=None, set_aside_at=None)

    def published(self) -> Self:
        return self.filter(published_at__isnull=False)

    def newest_first(self) -> Self:
        """The draft, then what was published or set aside, the latest first."""
        return self.order_by(F("number").desc(nulls_first=True), "-pk")


class PersonaVersion(PersonaContent):
    """A persona's draft, or what was published of it once. That never changes again (a trigger sees to it).

    Of a persona there is one draft at most. Drafts that gave way to another one are set aside, and can be restored.
    """

    influencer = models.ForeignKey(Influencer, on_delete=models.CASCADE, related_name="versions")
    number = models.PositiveIntegerField(null=True, blank=True, editable=False)
    based_on = models.PositiveIntegerField(
        null=True, blank=True, editable=False, help_text="The version that was live when the draft was begun."
    )
    change_note = models.TextField(blank=True, max_length=2000)
    author = models.ForeignKey(
        settings.AUTH_USER_MODEL, on_delete=models.SET_NULL, null=True, blank=True, editable=False, related_name="+"
    )
    published_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, on_delete=models.SET_NULL, null=True, blank=True, editable=False, related_name="+"
    )
    created_at = models.DateTimeField(default=timezone.now, editable=False)
    saved_at = models.DateTimeField(default=timezone.now, editable=False)
    published_at = models.DateTimeField(null=True, blank=True, editable=False)
    set_aside_at = models.DateTimeField(null=True, blank=True, editable=False)

    objects = PersonaVersionQuerySet.as_manager()

    class Meta:
        db_table = "persona_versions"
        constraints = (
            models.UniqueConstraint(fields=("influencer", "number"), name="persona_versions_one_per_number"),
            models.UniqueConstraint(
                fields=("influencer",),
                condition=Q(published_at__isnull=True, set_aside_at__isnull=True),
                name="persona_versions_one_draft",
            ),
            models.CheckConstraint(
                condition=Q(number__isnull=True, published_at__isnull=True)
                | Q(number__gte=1, published_at__isnull=False, set_aside_at__isnull=True),
                name="persona_versions_number_when_published",
            ),
            models.CheckConstraint(
                condition=Q(published_at__isnull=True) | ~Q(change_note=""), name="persona_versions_published_with_note"
            ),
            models.CheckConstraint(
                condition=~Q(system_instructions=""), name="persona_versions_system_instructions_not_empty"
            ),
            models.CheckConstraint(
                condition=Q(temperature__isnull=True) | Q(temperature__gte=0, temperature__lte=2),
                name="persona_versions_temperature_0_to_2",
            ),
            models.CheckConstraint(
                condition=Q(max_output_tokens__isnull=True) | Q(max_output_tokens__gte=1),
                name="persona_versions_max_output_tokens_positive",
            ),
        )

    def __str__(self) -> str:
        return f"version {self.number}" if self.number else "draft set aside" if self.set_aside_at else "draft"


def texts(stored: object) -> list[str]:
    """Of a stored list what is text: a fixture or a shell may have put anything there."""
    return [text for text in stored if isinstance(text, str)] if isinstance(stored, list) else []


_ACTIVE = Statement(
    lambda day, now, influencer_id: (
        Influencer.objects.with_tokens_of(day).active(now).filter(pk=influencer_id).values()
    ),
    dt.date(2000, 1, 1),
    dt.datetime(2000, 1, 1, 12, tzinfo=dt.UTC),
    "example",
)
