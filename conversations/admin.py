import uuid

from django.contrib import admin
from django.db.models import Q, QuerySet
from django.http import HttpRequest
from django.urls import reverse
from django.utils.html import format_html
from django.utils.text import Truncator

from conversations.models import Conversation, Message
from yral_chat.staff import ReadOnlyAdmin


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
        "metadata",
    )

    @admin.display(description="messages")
    def messages_link(self, conversation: Conversation) -> str:
        url = reverse("admin:conversations_message_changelist")
        return format_html('<a href="{}?conversation__id__exact={}&o=0">Read</a>', url, conversation.pk)

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[Conversation], search_term: str
    ) -> tuple[QuerySet[Conversation], bool]:
        term = search_term.strip()
        if not term:
            return queryset, False
        conversation_id = _uuid(term)
        return queryset.filter(Q(user_id=term) | Q(pk=conversation_id) if conversation_id else Q(user_id=term)), False


@admin.register(Message)
class MessageAdmin(ReadOnlyAdmin):
    list_display = ("sequence", "excerpt", "role", "user", "persona", "created_at", "was_blocked")
    list_display_links = ("excerpt",)
    list_select_related = ("conversation__influencer",)
    list_filter = ("role", "blocked", "message_type", ("conversation__influencer", admin.RelatedFieldListFilter))
    search_fields = ("content",)
    search_help_text = "Words of the text, or the id of a conversation."
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
        "audio_duration_seconds",
        "token_count",
        "blocked",
        "in_reply_to",
        "created_at",
        "metadata",
    )

    @admin.display(ordering="conversation__user_id")
    def user(self, message: Message) -> str:
        user_id = message.conversation.user_id
        return format_html('<span title="{}">{}</span>', user_id, Truncator(user_id).chars(20))

    @admin.display(ordering="conversation__influencer__display_name")
    def persona(self, message: Message) -> str:
        return message.conversation.influencer.display_name

    @admin.display(description="text")
    def excerpt(self, message: Message) -> str:
        text = Truncator(message.content).chars(120) or f"({message.message_type})"
        return format_html('<div style="min-width:20rem;white-space:normal">{}</div>', text)

    @admin.display(description="blocked")
    def was_blocked(self, message: Message) -> str:
        return "blocked" if message.blocked else ""

    def lookup_allowed(self, lookup: str, value: str, request: HttpRequest) -> bool:
        return lookup == "conversation__id__exact" or super().lookup_allowed(lookup, value, request)

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[Message], search_term: str
    ) -> tuple[QuerySet[Message], bool]:
        if conversation_id := _uuid(search_term):
            return queryset.filter(conversation=conversation_id), False
        return super().get_search_results(request, queryset, search_term[:200])


def _uuid(text: str) -> uuid.UUID | None:
    try:
        return uuid.UUID(text.strip())
    except ValueError:
        return None
