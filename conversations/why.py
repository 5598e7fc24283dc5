"""Why a persona said something, for staff who may know: what the model was sent and what that took; and the same turn
once more, by the persona's draft, of which nothing is stored."""

import datetime as dt
import time
import uuid
from dataclasses import dataclass
from decimal import Decimal
from functools import cached_property
from typing import Any

from django.conf import settings
from django.contrib import messages
from django.contrib.admin import site
from django.contrib.admin.utils import quote
from django.core.exceptions import PermissionDenied
from django.forms import Media
from django.http import Http404, HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.views.decorators.http import require_POST

from conversations import sent, tries
from conversations.models import Message, PromptText, Turn
from conversations.reading import ask_first
from personas.models import Influencer, PersonaVersion
from personas.versions import as_drafted, draft_of
from yral_chat import ai, counters
from yral_chat.ai.prices import cost
from yral_chat.database import release_connection
from yral_chat.throttling import HOUR, window

NAME = "conversations_message_why"
NEEDED = ("conversations.view_message", "conversations.explain_message")
REPLAYS = 30  # in an hour, of one member of staff
TITLES = {
    "instructions": "Instructions",
    "personality": "Personality",
    "languages": "Languages",
    "today": "The day, and the language to answer in",
    "name": "About the user's name",
    "media": "About pictures and voice notes",
}


def urls() -> list[URLPattern]:
    return [
        path("<uuid:message_id>/why/", site.admin_view(why_page), name=NAME),
        path("<uuid:message_id>/why/replay/", site.admin_view(replay), name=f"{NAME}_replay"),
    ]


def may_explain(request: HttpRequest) -> bool:
    return all(request.user.has_perm(permission) for permission in NEEDED)


def gate(request: HttpRequest, answer: Message) -> HttpResponse | None:
    """Called before anything of a user's conversation is shown or replayed: who reads it says why first, and is logged.
    What this returns is shown instead."""
    if not may_explain(request):
        raise PermissionDenied
    return ask_first(request, answer.conversation_id)


@dataclass(frozen=True)
class Explained:
    """An answer with all that is on record of how it came about."""

    answer: Message

    @property
    def persona(self) -> Influencer:
        return self.answer.conversation.influencer

    @cached_property
    def turn(self) -> Turn | None:
        """None of a greeting."""
        turns = Turn.objects.select_related("question", "conversation")
        return turns.filter(pk=self.answer.in_reply_to_id).first() if self.answer.in_reply_to_id else None

    @cached_property
    def version(self) -> PersonaVersion | None:
        rows = PersonaVersion.objects.filter(influencer=self.persona.pk)
        return rows.filter(number=self.answer.persona_version).first() if self.answer.persona_version else None

    @cached_property
    def draft(self) -> PersonaVersion | None:
        return draft_of(self.persona)

    @property
    def was_asked(self) -> bool:
        return bool(self.turn and self.turn.sent and not self.answer.away)

    @cached_property
    def layers(self) -> list[tuple[str, str]]:
        """Of the system instruction; in one piece where it was sent before its layers were kept."""
        if self.turn is None or not self.was_asked:
            return []
        text = PromptText.objects.filter(pk=self.turn.sent["system"]).first()
        if text is None:
            return []
        found = text.by_layer() or {"The system instruction, as it was sent": text.text}
        return [(TITLES.get(name, name.capitalize()), layer) for name, layer in found.items()]

    @cached_property
    def history(self) -> list[tuple[str, str]]:
        """Who said what, as the model got it. Pictures are named, not shown."""
        if self.turn is None or not self.was_asked:
            return []
        prompt = sent.rebuilt(self.turn, see=lambda url: ai.Blob("picture", b""))
        return [
            (
                "Persona" if content.role == "model" else "User",
                "\n".join(part if isinstance(part, str) else f"({part.mime_type})" for part in content.parts),
            )
            for content in prompt.contents
        ]

    @property
    def facts(self) -> list[tuple[str, str]]:
        turn = self.turn
        if turn is None:
            return []
        said = [
            ("State", turn.get_state_display()),
            ("Model", turn.model or "none was asked"),
            ("Finish reason", turn.finish_reason or "–"),
            ("Error", turn.error_code),
            ("Attempts", f"{turn.attempts}"),
            ("Tokens", tokens(turn.prompt_tokens, turn.thinking_tokens, turn.output_tokens)),
            ("Cost", dollars(turn.cost_usd)),
            ("First token after", seconds(turn.ms_to_first_token)),
            ("Whole answer after", seconds(turn.ms_to_end)),
            ("Temperature", f"{turn.sent['temperature']}" if turn.sent else ""),
            ("Longest answer", f"{turn.sent['max_output_tokens']} tokens" if turn.sent else ""),
        ]
        return [(name, value) for name, value in said if value]


@dataclass(frozen=True)
class Replayed:
    text: str
    blocked: bool
    facts: list[tuple[str, str]]


def why_page(request: HttpRequest, message_id: uuid.UUID) -> HttpResponse:
    answer = _answer(request, message_id)
    return gate(request, answer) or _page(request, Explained(answer))


@require_POST
def replay(request: HttpRequest, message_id: uuid.UUID) -> HttpResponse:
    """The page with the draft's answer beside the one that was given. Reads, and writes nothing."""
    answer = _answer(request, message_id)
    if shown_instead := gate(request, answer):
        return shown_instead
    explained = Explained(answer)
    if not explained.was_asked:
        messages.error(request, "No model was asked for this, so there is nothing to replay.")
        return _page(request, explained)
    if not _is_within_the_limit(request):
        messages.error(request, f"That's more than {REPLAYS} replays in an hour. Go on in the next hour.")
        return _page(request, explained, status=429)
    try:
        return _page(request, explained, replayed=_replayed(explained))
    except ai.ModelError as exc:
        messages.error(request, f"The model gave no answer: {exc}. Try again.")
        return _page(request, explained)


def _is_within_the_limit(request: HttpRequest) -> bool:
    hour = window("replay_hour", HOUR, REPLAYS, time.time())
    counted = counters.of_this_process().count(f"replay {request.user.pk}", [hour])
    return counted is None or counted.passed


def _replayed(explained: Explained) -> Replayed:
    """Raises ModelError."""
    assert explained.turn is not None
    persona = as_drafted(explained.persona, explained.draft)
    prompt = sent.again_with(persona, explained.turn)
    release_connection()
    tally, began = ai.Tally(), time.monotonic()
    with ai.counted_as(tries.KIND):
        reply = ai.generate_reply(prompt, deadline=ai.Deadline(began + settings.GEMINI_TIMEOUT_SECONDS), tally=tally)
    usage = tally.usage
    today = dt.datetime.now(dt.UTC).date()
    facts = [
        ("Model", reply.model),
        ("Finish reason", reply.finish_reason),
        ("Attempts", f"{tally.attempts}"),
        ("Tokens", tokens(usage.prompt, usage.thinking, usage.output)),
        ("Cost", dollars(cost(tally.model, usage, today))),
        ("Whole answer after", seconds(round((time.monotonic() - began) * 1000))),
    ]
    return Replayed(reply.text, reply.blocked, facts)


def tokens(prompt: int, thinking: int, output: int) -> str:
    return f"{prompt:,} read, {thinking:,} thought, {output:,} written"


def dollars(price: Decimal | None) -> str:
    return "unknown" if price is None else f"${price:.6f}"


def seconds(milliseconds: int | None) -> str:
    return "" if milliseconds is None else f"{milliseconds / 1000:.1f} s"


def _answer(request: HttpRequest, message_id: uuid.UUID) -> Message:
    if not may_explain(request):
        raise PermissionDenied
    rows = Message.objects.select_related("conversation__influencer")
    found = rows.filter(pk=message_id, role=Message.Role.ASSISTANT).first()
    if found is None:
        raise Http404
    return found


def _page(
    request: HttpRequest, explained: Explained, *, replayed: Replayed | None = None, status: int = 200
) -> HttpResponse:
    admin = site._registry[Message]
    persona = explained.persona
    version = explained.version
    context: dict[str, Any] = {
        **site.each_context(request),
        "opts": Message._meta,
        "original": explained.answer,
        "title": f"Why did {persona} say that?",
        "media": admin.media + Media(css={"all": ("personas/desk.css", "conversations/why.css")}),
        "why": explained,
        "replayed": replayed,
        "left_by": REPLAYS,
    }
    if version and request.user.has_perm("personas.view_influencer"):
        context["version_page"] = reverse("admin:personas_influencer_version", args=[quote(persona.pk), version.pk])
    return TemplateResponse(request, "conversations/why.html", context, status=status)
