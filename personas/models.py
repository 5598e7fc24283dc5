import json
import uuid

from django.core.exceptions import ValidationError
from django.core.validators import MaxValueValidator, MinValueValidator, RegexValidator
from django.db import models
from django.db.models import Q
from django.utils import timezone

from yral_chat.database import Statement, instance
from yral_chat.errors import NotFound


def new_id() -> str:
    return str(uuid.uuid4())


def validate_texts(value: object) -> None:
    """A JSON list of non-blank strings."""
    if not isinstance(value, list) or not all(isinstance(text, str) and text.strip() for text in value):
        raise ValidationError('Enter a list of texts, for example ["What should I eat today?", "Plan my week"].')


def validate_json(value: object) -> None:
    """What Python takes for JSON and nothing else does: NaN, Infinity, half an emoji, NUL."""
    try:
        text = json.dumps(value, allow_nan=False, ensure_ascii=False).encode().decode()
    except (ValueError, TypeError) as exc:
        raise ValidationError("This can't be stored: it holds half a character or an impossible number.") from exc
    if "\\u0000" in text:
        raise ValidationError("Null characters are not allowed.")


def validate_object(value: object) -> None:
    if not isinstance(value, dict):
        raise ValidationError('Enter an object, for example {"tone": "warm"}.')


class InfluencerQuerySet(models.QuerySet["Influencer"]):
    def active(self) -> "InfluencerQuerySet":
        return self.filter(is_active=Influencer.Status.ACTIVE)

    def as_listed(self) -> "InfluencerQuerySet":
        """Active, then coming soon, then discontinued (which is their alphabetical order; a test holds it);
        the newest first within each; the id breaks ties."""
        return self.order_by("is_active", "-created_at", "id")

    def active_with_id(self, influencer_id: str) -> "InfluencerQuerySet":
        """One or none. An id is the client's text; one with a NUL can't even be asked of PostgreSQL."""
        return self.none() if "\x00" in influencer_id else self.active().filter(pk=influencer_id)

    def get_active(self, influencer_id: str) -> "Influencer":
        """Raises NotFound, for an unknown one as for a retired one."""
        row = None if "\x00" in influencer_id else _ACTIVE.first(influencer_id)
        if row is None:
            raise NotFound("Influencer not found")
        return instance(Influencer, row)


class Influencer(models.Model):
    """A persona. Turns read these rows in their own query: a change is obeyed at once by every process."""

    class Status(models.TextChoices):
        ACTIVE = "active", "Active"
        COMING_SOON = "coming_soon", "Coming soon"
        DISCONTINUED = "discontinued", "Discontinued"

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
    system_instructions = models.TextField(
        help_text="Who the persona is and how it speaks. Never shown to users. The next reply obeys a change."
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
    is_active = models.CharField("status", max_length=20, choices=Status, default=Status.ACTIVE)
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
    created_at = models.DateTimeField(default=timezone.now, editable=False)
    updated_at = models.DateTimeField(auto_now=True)
    metadata = models.JSONField(default=dict, blank=True, validators=[validate_object, validate_json])

    objects = InfluencerQuerySet.as_manager()

    class Meta:
        db_table = "ai_influencers"
        verbose_name = "persona"
        ordering = ("display_name", "id")
        constraints = (
            models.CheckConstraint(
                condition=Q(is_active__in=["active", "coming_soon", "discontinued"]), name="ai_influencers_status_known"
            ),
            models.CheckConstraint(condition=~Q(id=""), name="ai_influencers_id_not_empty"),
            models.CheckConstraint(condition=~Q(name=""), name="ai_influencers_name_not_empty"),
            models.CheckConstraint(condition=~Q(display_name=""), name="ai_influencers_display_name_not_empty"),
            models.CheckConstraint(
                condition=~Q(system_instructions=""), name="ai_influencers_system_instructions_not_empty"
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


def texts(stored: object) -> list[str]:
    """Of a stored list what is text: a fixture or a shell may have put anything there."""
    return [text for text in stored if isinstance(text, str)] if isinstance(stored, list) else []


_ACTIVE = Statement(lambda influencer_id: Influencer.objects.active().filter(pk=influencer_id).values(), "example")
