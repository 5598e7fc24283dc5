"""The desk's playground: staff talk with a persona's draft, beside what is live. The page keeps the talk, and nothing
of it is stored: not the words, not the pictures, not the sounds."""

import time
from typing import Any

import orjson
from django import forms
from django.conf import settings
from django.contrib.auth.models import User
from django.http import HttpRequest, HttpResponse, HttpResponseBase, JsonResponse, StreamingHttpResponse

from conversations import prompts, tries
from conversations.models import Message
from conversations.persona_pages import DRAFT, LIVE, PersonaPage
from conversations.sent import CONTEXT_MESSAGES
from conversations.services import TRANSCRIPT_LIMIT
from media_uploads import pictures
from media_uploads.models import MediaUpload
from media_uploads.services import looked_at
from yral_chat import ai
from yral_chat.database import release_connection
from yral_chat.errors import BadRequest, Forbidden, StorageUnavailable, TooLarge

LONGEST = 4000 + TRANSCRIPT_LIMIT  # characters: a caption below a transcript
MOST_PICTURES = 10
TO_TRANSCRIBE = 25.0  # seconds
STATUS: dict[type[Exception], int] = {
    BadRequest: 400,
    Forbidden: 403,
    TooLarge: 413,
    tries.TooMany: 429,
    StorageUnavailable: 503,
}


class PlaygroundPage(PersonaPage):
    def get(self, request: HttpRequest) -> HttpResponse:
        sides = [
            {"which": which, "title": title, "greeting": self.persona_as(which).initial_greeting.strip()}
            for which, title in self.sides
        ]
        return self.page(
            "conversations/playground.html",
            "Try it",
            sides=sides,
            limits={"messages": CONTEXT_MESSAGES, "pictures": settings.CONTEXT_IMAGES},
            addresses={name: self.address(name) for name in ("say", "picture", "listen")},
        )

    def address(self, name: str) -> str:
        return f"{self.state.addresses['playground']}{name}/"


class Answers(PersonaPage):
    """What the page's script asks. An error is JSON with a sentence."""

    http_method_names = ["post"]

    def dispatch(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
        try:
            return super().dispatch(request, *args, **kwargs)
        except tuple(STATUS) as exc:
            refused = JsonResponse({"message": words(exc)}, status=STATUS[type(exc)])
            if isinstance(exc, tries.TooMany):
                refused["Retry-After"] = str(exc.retry_after)
            return refused

    @property
    def staff(self) -> User:
        assert isinstance(self.request.user, User)
        return self.request.user


def words(exc: Exception) -> str:
    return "The file can't be looked at right now." if isinstance(exc, StorageUnavailable) else str(exc)


class SayForm(forms.Form):
    which = forms.ChoiceField(choices=[(DRAFT, DRAFT), (LIVE, LIVE)])
    said = forms.CharField(max_length=500_000, strip=False)
    user_name = forms.CharField(max_length=100, required=False)


class Say(Answers):
    """The answer of one side to the last message, as a stream."""

    def post(self, request: HttpRequest) -> HttpResponseBase:
        form = SayForm(request.POST)
        if not form.is_valid():
            raise BadRequest("Say something first.")
        persona = self.persona_as(form.cleaned_data["which"])
        said = said_in(form.cleaned_data["said"], opened_pictures(request))
        prompt = tries.prompt_of(persona, said, user_name=form.cleaned_data["user_name"])
        tries.count_call(self.staff)
        release_connection()
        headers = {"Cache-Control": "no-cache, no-transform", "X-Accel-Buffering": "no"}
        stream = tries.Stream(persona, prompt)
        return StreamingHttpResponse(stream, content_type="text/event-stream", headers=headers)


def opened_pictures(request: HttpRequest) -> list[ai.Blob]:
    """In the order of the messages that show them. Looked at again: who sends them isn't bound to the page."""
    return [ai.Blob("image/jpeg", as_the_model_sees_it(file)) for file in request.FILES.getlist("pictures")]


def as_the_model_sees_it(file: Any) -> bytes:
    """Raises TooLarge, BadRequest and StorageUnavailable."""
    with looked_at(kind=MediaUpload.Kind.IMAGE, file=file.file, size=file.size) as inspected:
        return pictures.scaled(inspected.content.read())


def said_in(text: str, shown: list[ai.Blob]) -> list[tuple[str, prompts.Parts]]:
    """The page's own record: {"role", "content", "pictures": how many of the files are this message's, "sent": how many
    it had}. Raises BadRequest."""
    try:
        rows = orjson.loads(text)
        messages = [_message(row, shown) for row in rows[-CONTEXT_MESSAGES - 1 :]]
    except (orjson.JSONDecodeError, TypeError, KeyError, ValueError) as exc:
        raise BadRequest("The page sent something that can't be read. Reload it and try again.") from exc
    if shown or not messages or messages[-1][0] != Message.Role.USER or not messages[-1][1]:
        raise BadRequest("Say something first.")
    return [message for message in messages if message[1]]


def _message(row: dict[str, Any], shown: list[ai.Blob]) -> tuple[str, prompts.Parts]:
    """Takes its pictures out of those that came."""
    role, content, count, sent = str(Message.Role(row["role"])), row["content"], row["pictures"], row["sent"]
    if not isinstance(content, str) or len(content) > LONGEST or not 0 <= int(count) <= min(MOST_PICTURES, len(shown)):
        raise ValueError
    mine, shown[:count] = shown[:count], []
    return role, prompts.parts_of(content or (f"(sent {int(sent)} picture(s))" if sent and not mine else ""), mine)


class Picture(Answers):
    """A picture as the model will see it. The page keeps it, and shows it to the model with each message."""

    def post(self, request: HttpRequest) -> HttpResponse:
        return HttpResponse(as_the_model_sees_it(_file(request)), content_type="image/jpeg")


class Listen(Answers):
    """What a voice note says, as the content of a message."""

    def post(self, request: HttpRequest) -> HttpResponse:
        file, caption = _file(request), request.POST.get("caption", "").strip()[:4000]
        tally, deadline, started = ai.Tally(), ai.Deadline(time.monotonic() + TO_TRANSCRIBE), time.monotonic()
        outcome = tries.Outcome(tally=tally)
        with looked_at(kind=MediaUpload.Kind.AUDIO, file=file.file, size=file.size) as sound:
            tries.count_call(self.staff)
            release_connection()
            try:
                text = ai.transcribe(
                    sound.content,
                    mime_type=sound.mime_type,
                    extension=sound.extension,
                    deadline=deadline,
                    tally=tally,
                )[:TRANSCRIPT_LIMIT]
            except ai.ModelError as exc:
                text, outcome.error = "", f"The voice note couldn't be understood: {exc}."
        outcome.text = prompts.transcribed(text.replace("\x00", ""), caption)
        outcome.seconds = time.monotonic() - started
        return JsonResponse(outcome.as_json)


def _file(request: HttpRequest) -> Any:
    file = request.FILES.get("file")
    if file is None:
        raise BadRequest("Choose a file first.")
    return file
