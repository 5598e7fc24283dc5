"""The desk's page that shows a prompt as the model gets it, layer by layer, with a sample user and a sample chat."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from django import forms
from django.http import HttpRequest, HttpResponse
from django.utils import timezone
from unfold.widgets import (
    UnfoldAdminSelectWidget,
    UnfoldAdminTextareaWidget,
    UnfoldAdminTextInputWidget,
    UnfoldBooleanSwitchWidget,
)

from conversations import prompts
from conversations.models import Message
from conversations.persona_pages import PersonaPage
from conversations.sent import CONTEXT_MESSAGES
from personas.lint import estimated_tokens
from personas.models import Influencer
from yral_chat import ai

USER, PERSONA = "User:", "Persona:"
PICTURE_TOKENS = 258  # of a small one: https://ai.google.dev/gemini-api/docs/tokens
A_PICTURE = ai.Blob("image/jpeg", b"")
A_CHAT = f"{USER} I slept badly and have a long day.\n{PERSONA} Then we keep it easy today. Ten minutes is enough."
# What a layer is for, in the words of the desk
LAYERS = {
    "instructions": "Instructions, as written",
    "personality": "Personality, from the traits",
    "languages": "Languages, from the note",
    "today": "Today's date, and the language of the answer",
    "name": "What the user's name is to the model",
    "media": "What pictures and voice notes are to the model",
}


class SampleForm(forms.Form):
    which = forms.ChoiceField(label="Prompt of", widget=UnfoldAdminSelectWidget)
    user_name = forms.CharField(
        label="User's name", required=False, max_length=100, initial="Priya", widget=UnfoldAdminTextInputWidget
    )
    memories = forms.CharField(
        label="Remembered of the user",
        required=False,
        max_length=5000,
        initial="goal: run 5 km by March",
        widget=UnfoldAdminTextareaWidget(attrs={"rows": 2}),
        help_text="One a line, as in “goal: run 5 km by March”.",
    )
    said = forms.CharField(
        label="The chat so far",
        required=False,
        max_length=20_000,
        initial=A_CHAT,
        widget=UnfoldAdminTextareaWidget(attrs={"rows": 4}),
        help_text=f"Each message begins a line with “{USER}” or “{PERSONA}”. The greeting stands before it by itself.",
    )
    question = forms.CharField(
        label="The user's message",
        max_length=4000,
        initial="What should I do today?",
        widget=UnfoldAdminTextareaWidget(attrs={"rows": 2}),
    )
    picture = forms.BooleanField(label="With a picture", required=False, widget=UnfoldBooleanSwitchWidget)

    def __init__(self, sides: Sequence[tuple[str, str]], *args: Any) -> None:
        super().__init__(*args)
        self.fields["which"].choices = sides  # type: ignore[attr-defined]

    @property
    def sample(self) -> dict[str, Any]:
        """What was sent, or the sample that the page begins with."""
        if self.is_bound and self.is_valid():
            return self.cleaned_data
        return {name: field.initial or "" for name, field in self.fields.items()}


@dataclass(frozen=True)
class Layer:
    title: str
    text: str
    tokens: int


class PreviewPage(PersonaPage):
    for_those_who_may = ("view", "change", "publish")

    def get(self, request: HttpRequest) -> HttpResponse:
        return self._shown(SampleForm(self.sides))

    def post(self, request: HttpRequest) -> HttpResponse:
        """Changes nothing; a chat is too long for an address."""
        return self._shown(SampleForm(self.sides, request.POST))

    def _shown(self, form: SampleForm) -> HttpResponse:
        sample = form.sample
        which = sample["which"] or self.sides[0][0]
        prompt, instructed = composed(self.persona_as(which), sample)
        contents = [_layer(_speaker(content.role), content.parts) for content in prompt.contents]
        return self.page(
            "conversations/preview.html",
            "Preview of the prompt",
            form=form,
            shown=dict(self.sides)[which],
            system=instructed,
            contents=contents,
            tokens=sum(layer.tokens for layer in (*instructed, *contents)),
            prompt=ai.with_defaults(prompt),
            name_is_used=not sample["user_name"] or bool(prompts.name_in({"name": sample["user_name"]})),
        )


def composed(persona: Influencer, sample: dict[str, Any]) -> tuple[ai.Prompt, list[Layer]]:
    """By the same functions as a turn's prompt; and its system instruction in layers."""
    known = memories_in(sample)
    name = prompts.name_in(known) if prompts.names_the_user(persona) else ""
    today = timezone.now().date()
    said = _chat(persona, sample)
    prompt = prompts.compose(
        persona=persona, memories=prompts.remembered(known), said=said, today=today, user_name=name
    )
    media = any(prompts.from_media(part) for _, parts in said for part in parts)
    layers = prompts.layers(persona, today, media=media, user_name=name)
    return prompt, [_layer(LAYERS.get(name, name.capitalize()), (text,)) for name, text in layers.items()]


def memories_in(sample: dict[str, Any]) -> dict[str, object]:
    lines = [line.partition(":") for line in sample["memories"].splitlines() if line.strip()]
    named = {"name": sample["user_name"]} if sample["user_name"] else {}
    return {**named, **{key.strip(): fact.strip() for key, colon, fact in lines if colon}}


def _chat(persona: Influencer, sample: dict[str, Any]) -> list[tuple[str, prompts.Parts]]:
    """As many of the last messages as a turn sends, and the question."""
    greeting = persona.initial_greeting.strip()
    said = [(str(Message.Role.ASSISTANT), greeting)] if greeting else []
    for line in sample["said"].splitlines():
        role = {USER: Message.Role.USER, PERSONA: Message.Role.ASSISTANT}.get(line[: line.find(":") + 1].strip())
        if role:
            said.append((str(role), line.partition(":")[2].strip()))
        elif said and line.strip():  # a message of several lines
            said[-1] = (said[-1][0], f"{said[-1][1]}\n{line.strip()}")
    earlier = [(role, (text,)) for role, text in said if text][-CONTEXT_MESSAGES:]
    pictures = [A_PICTURE] if sample["picture"] else []
    return [*earlier, (str(Message.Role.USER), prompts.parts_of(sample["question"], pictures))]


def _speaker(role: str) -> str:
    return "The user's side" if role == "user" else "The persona's side"


def _layer(title: str, parts: prompts.Parts) -> Layer:
    text = "\n\n".join(part if isinstance(part, str) else "(a picture)" for part in parts)
    tokens = sum(estimated_tokens(part) if isinstance(part, str) else PICTURE_TOKENS for part in parts)
    return Layer(title, text, tokens)
