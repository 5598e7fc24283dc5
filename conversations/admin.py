import uuid
from typing import Any

from django.conf import settings
from django.contrib import admin
from django.contrib.auth.models import User
from django.db.models import Q, QuerySet
from django.http import HttpRequest, HttpResponse
from django.urls import URLPattern, reverse
from django.utils.html import format_html, format_html_join
from django.utils.text import Truncator

from conversations import reading, why
from conversations.models import AlternativeAnswer, Conversation, Message, Reading, Turn
from conversations.sent import rebuilt
from media_uploads import storage
from yral_chat.ai import Blob
from yral_chat.staff import ReadOnlyAdmin

PICTURE = '<img src="{}" alt="Sent picture" class="thumbnail" loading="lazy">'


class ReadWithReason(ReadOnlyAdmin):
    """Lists show the texts of conversations that this person gave a reason for; one row's page asks for it."""

    # What an address may filter by. A filter by a text tells whether somebody wrote it, which is reading.
    looked_up: tuple[str, ...] = ()

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        rows: QuerySet[Any] = super().get_queryset(request)
        known: QuerySet[Any] = rows.annotate(may_be_read=reading.may_be_read(request, "conversation_id"))
        return known

    def render_change_form(self, request: HttpRequest, context: Any, *args: Any, **kwargs: Any) -> HttpResponse:
        """Here, because by now it is certain which row would be shown, however its address was written."""
        asked = reading.ask_first(request, context["original"].conversation_id)
        return asked or super().render_change_form(request, context, *args, **kwargs)

    def lookup_allowed(self, lookup: str, value: str, request: HttpRequest) -> bool:
        return lookup.removesuffix("__exact") in self.looked_up


@admin.register(Conversation)
class ConversationAdmin(ReadOnlyAdmin):
    list_display = ("user_id", "influencer", "message_count", "updated_at", "messages_link")
    list_select_related = ("influencer",)
    list_filter = (("influencer", admin.RelatedFieldListFilter),)
    search_fields = ("user_id__exact",)
    search_help_text = "The whole user id, or the id of a conversation."
    ordering = ("-updated_at",)
    fields = readonly_fields = (
        "id",
        "user_id",
        "influencer",
        "message_count",
        "messages_link",
        "created_at",
        "updated_at",
    )

    def get_urls(self) -> list[URLPattern]:
        return [*reading.urls(), *super().get_urls()]

    def get_fields(self, request: HttpRequest, obj: Conversation | None = None) -> Any:
        """What is remembered of a user is theirs as well."""
        open_now = obj is not None and reading.may_read(request, obj.pk)
        return (*self.fields, "metadata") if open_now else self.fields

    get_readonly_fields = get_fields

    def lookup_allowed(self, lookup: str, value: str, request: HttpRequest) -> bool:
        return lookup.removesuffix("__exact") in ("influencer__id", "user_id")

    @admin.display(description="messages")
    def messages_link(self, conversation: Conversation) -> str:
        return format_html('<a href="{}">Read</a>', reading.read_address(conversation.pk))

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[Conversation], search_term: str
    ) -> tuple[QuerySet[Conversation], bool]:
        term = search_term.strip()
        if not term:
            return queryset, False
        conversation_id = _uuid(term)
        return queryset.filter(Q(user_id=term) | Q(pk=conversation_id) if conversation_id else Q(user_id=term)), False


@admin.register(Message)
class MessageAdmin(ReadWithReason):
    looked_up = (
        *("role", "blocked", "stopped", "message_type", "conversation__id", "conversation__influencer__id"),
        *("created_at__gte", "created_at__lt"),
    )
    list_display = ("sequence", "excerpt", "role", "user", "persona", "created_at", "was_blocked")
    list_display_links = ("excerpt",)
    list_select_related = ("conversation__influencer",)
    list_filter = (
        "role",
        "blocked",
        "stopped",
        "message_type",
        ("conversation__influencer", admin.RelatedFieldListFilter),
    )
    search_fields = ("content",)
    search_help_text = "The id of a conversation. While you read one: words of its texts."
    ordering = ("-created_at",)
    date_hierarchy = None
    fields = readonly_fields = (
        "id",
        "conversation",
        "sequence",
        "role",
        "content",
        "message_type",
        "media_urls",
        "audio_url",
        "files",
        "audio_duration_seconds",
        "token_count",
        "persona_version",
        "blocked",
        "stopped",
        "away",
        "in_reply_to",
        "created_at",
        "metadata",
        "why",
    )

    def get_urls(self) -> list[URLPattern]:
        return [*why.urls(), *super().get_urls()]

    def get_fields(self, request: HttpRequest, obj: Message | None = None) -> Any:
        explained = obj is not None and obj.role == Message.Role.ASSISTANT and why.may_explain(request)
        return [name for name in self.fields if name != "why" or explained]

    @admin.display(description="why did she say that?")
    def why(self, message: Message) -> str:
        address = reverse(f"admin:{why.NAME}", args=[message.pk])
        return format_html('<a href="{}">Prompt, history, cost, and what the draft says</a>', address)

    @admin.display(ordering="conversation__user_id")
    def user(self, message: Message) -> str:
        user_id = message.conversation.user_id
        return format_html('<span title="{}">{}</span>', user_id, Truncator(user_id).chars(20))

    @admin.display(ordering="conversation__influencer__display_name")
    def persona(self, message: Message) -> str:
        return message.conversation.influencer.display_name

    @admin.display(description="text")
    def excerpt(self, message: Any) -> str:
        said = message.content if message.may_be_read else ""
        text = Truncator(said).chars(120) or f"({message.message_type})"
        return format_html('<div class="excerpt">{}</div>', text)

    @admin.display(description="blocked")
    def was_blocked(self, message: Message) -> str:
        return "blocked" if message.blocked else ""

    @admin.display(description="pictures and sound")
    def files(self, message: Message) -> str:
        """Of users' uploads. Other addresses stand above as text; nobody is led there."""
        shown = []
        for key in (*message.media_urls, message.audio_url):
            if key and storage.KEY.fullmatch(key):
                player = '<audio controls preload="none" src="{}"></audio>' if key == message.audio_url else PICTURE
                shown.append(format_html(player, storage.url_for(key, settings.SCRIPT_NAME)))
        return format_html_join(" ", "{}", ((one,) for one in shown)) or "none"

    def changelist_view(self, request: HttpRequest, extra_context: Any = None) -> HttpResponse:
        conversation_id = _uuid(request.GET.get("conversation__id__exact", ""))
        if conversation_id and Conversation.objects.filter(pk=conversation_id).exists():
            asked = reading.ask_first(request, conversation_id) if self.has_view_permission(request) else None
            if asked:
                return asked
        return super().changelist_view(request, extra_context)

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[Message], search_term: str
    ) -> tuple[QuerySet[Message], bool]:
        """Nobody searches what all users said: whether a word was said is what they said."""
        if not search_term.strip():
            return queryset, False
        if conversation_id := _uuid(search_term):
            return queryset.filter(conversation=conversation_id), False
        within = _uuid(request.GET.get("conversation__id__exact", ""))
        if within is None or not reading.may_read(request, within):
            return queryset.none(), False
        return super().get_search_results(request, queryset.filter(conversation=within), search_term[:200])


@admin.register(Turn)
class TurnAdmin(ReadWithReason):
    """How turns went, for those who ask why an answer was late, dear or missing."""

    looked_up = ("state", "error_code", "conversation__influencer__id", "created_at__gte", "created_at__lt")

    list_display = ("created_at", "state", "excerpt", "persona", "model", "attempts", "total_tokens", "cost", "seconds")
    list_display_links = ("created_at",)
    list_select_related = ("question", "conversation__influencer")
    list_filter = ("state", "error_code", ("conversation__influencer", admin.RelatedFieldListFilter))
    search_fields = ("idempotency_key__exact", "client_message_id__exact")
    search_help_text = "The id of a question or a conversation, or a whole key that an app sent."
    ordering = ("-created_at",)
    fields = readonly_fields = (
        *("question", "conversation", "state", "error_code", "finish_reason", "model", "attempts"),
        *("created_at", "finished_at", "ms_to_first_token", "ms_to_end"),
        *("prompt_tokens", "output_tokens", "thinking_tokens", "total_tokens", "cost_usd"),
        *("idempotency_key", "client_message_id", "what_was_sent", "alternatives"),
    )

    @admin.display(description="question")
    def excerpt(self, turn: Any) -> str:
        said = turn.question.content if turn.may_be_read else ""
        text = Truncator(said).chars(80) or f"({turn.question.message_type})"
        return format_html('<div class="excerpt">{}</div>', text)

    @admin.display(ordering="conversation__influencer__display_name")
    def persona(self, turn: Turn) -> str:
        return turn.conversation.influencer.display_name

    @admin.display(ordering="cost_usd")
    def cost(self, turn: Turn) -> str:
        return "" if turn.cost_usd is None else f"${turn.cost_usd:.6f}"

    @admin.display(ordering="ms_to_end")
    def seconds(self, turn: Turn) -> str:
        return "" if turn.ms_to_end is None else f"{turn.ms_to_end / 1000:.1f}"

    @admin.display(description="what the model was sent last")
    def what_was_sent(self, turn: Turn) -> str:
        """Each side's texts; pictures are named, not shown."""
        if not turn.sent:
            return "nothing yet"
        prompt = rebuilt(turn, see=lambda url: Blob("picture", b""))
        said = [("instructions", prompt.system_instruction)]
        for content in prompt.contents:
            parts = [part if isinstance(part, str) else f"({part.mime_type})" for part in content.parts]
            said.append((content.role, "\n".join(parts)))
        return format_html_join("", '<p><b>{}</b></p><p class="as-written">{}</p>', said)

    @admin.display(description="answers that were replaced")
    def alternatives(self, turn: Turn) -> str:
        replaced = AlternativeAnswer.objects.filter(question=turn.pk).order_by("replaced_at")
        rows = [(f"{answer.replaced_at:%Y-%m-%d %H:%M}", answer.content) for answer in replaced]
        return format_html_join("", '<p><b>{}</b></p><p class="as-written">{}</p>', rows) or "none"

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[Turn], search_term: str
    ) -> tuple[QuerySet[Turn], bool]:
        if known := _uuid(search_term):
            return queryset.filter(Q(pk=known) | Q(conversation=known)), False
        return super().get_search_results(request, queryset, search_term[:255])


@admin.register(Reading)
class ReadingAdmin(ReadOnlyAdmin):
    """Who read what of whom, and why. Superusers look; nobody changes it."""

    list_display = ("created_at", "reader", "user_id", "persona", "purpose", "why", "address")
    list_select_related = ("reader",)
    list_filter = ("purpose", ("reader", admin.RelatedFieldListFilter))
    search_fields = ("user_id__exact", "reader__username__exact")
    search_help_text = "A whole user id, the name of a colleague, or the id of a conversation."
    ordering = ("-created_at",)
    fields = readonly_fields = (
        *("created_at", "reader", "user_id", "conversation_id", "persona", "purpose", "reason"),
        *("address", "valid_until"),
    )

    @admin.display(description="reason")
    def why(self, one: Reading) -> str:
        return format_html('<div class="excerpt">{}</div>', Truncator(one.reason).chars(120))

    def has_view_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return isinstance(request.user, User) and request.user.is_active and request.user.is_superuser

    def has_module_permission(self, request: HttpRequest) -> bool:
        return self.has_view_permission(request)

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[Reading], search_term: str
    ) -> tuple[QuerySet[Reading], bool]:
        if conversation_id := _uuid(search_term):
            return queryset.filter(Q(conversation_id=conversation_id) | Q(user_id=search_term.strip())), False
        return super().get_search_results(request, queryset, search_term[:255])


def _uuid(text: str) -> uuid.UUID | None:
    try:
        return uuid.UUID(text.strip())
    except ValueError:
        return None
