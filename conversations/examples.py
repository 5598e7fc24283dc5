"""Requests and answers as the OpenAPI document shows them; tests/test_schema.py sends and compares them."""

import json
from typing import Any

from drf_spectacular.utils import OpenApiExample

from conversations import events
from yral_chat import ai
from yral_chat.ai.offline import SCENES

OPENED = events.OPENED.decode()
MOST_SHOWN = 700  # characters
QUESTION_ID = "9b2f7c1e-5d43-4c0a-8f1e-2a6b7c8d9e0f"
CONVERSATION_ID = "1d0c7e52-3b0e-4a3c-9d55-2f8e6f0a1b2c"
PERSONA_ID = "7a1e9c40-5b7f-4c58-9f2e-0d6b3a8c4e11"
PICTURE = "alice/3f6c2a9e-8b1d-4e7f-a2c5-9d0e1f2a3b4c.jpg"
SOUND = "alice/5a7d3b0f-1c2e-4d8a-b6f4-7e9c8d0a1b2f.m4a"


def _message(number: int, role: str, content: str, **changed: Any) -> dict[str, Any]:
    return {
        "id": QUESTION_ID if role == "user" else f"c4d5e6f7-0a1b-4c2d-8e3f-{number:012}",
        "conversation_id": CONVERSATION_ID,
        "role": role,
        "content": content,
        "message_type": "text",
        "media_urls": [],
        "audio_url": None,
        "audio_duration_seconds": None,
        "token_count": 12 if role == "assistant" else None,
        "created_at": f"2026-01-31T09:00:0{number}.000000+00:00",
        "blocked": False,
        "stopped": False,
        "away": False,
        **changed,
    }


GREETING = _message(0, "assistant", "Hey! Ready to move?", token_count=None)
QUESTION = _message(1, "user", "What should I eat today?")
ANSWER = _message(2, "assistant", "Start with oats, a banana and yoghurt.")
CONVERSATION = {
    "id": CONVERSATION_ID,
    "user_id": "alice",
    "influencer": {
        "id": PERSONA_ID,
        "name": "coach_asha",
        "display_name": "Coach Asha",
        "avatar_url": "https://chat.example.com/static/personas/coach_asha.svg",
        "category": "fitness",
        "suggested_messages": ["Plan my week", "What should I eat today?"],
    },
    "influencer_id": PERSONA_ID,
    "created_at": "2026-01-31T09:00:00.000000+00:00",
    "updated_at": "2026-01-31T09:00:00.000000+00:00",
    "message_count": 1,
    "unread_count": 0,
    "last_message": {name: GREETING[name] for name in ("content", "role", "created_at")},
    "recent_messages": [GREETING],
}
TURN = {"user_message": QUESTION, "assistant_message": ANSWER, "blocked": False, "away": False}
BLOCKED = {
    "user_message": QUESTION,
    "assistant_message": ANSWER
    | {
        "content": "I'd rather not go into that. Let's talk about something else!",
        "blocked": True,
        "token_count": None,
    },
    "blocked": True,
    "away": False,
}
AWAY = {
    "user_message": QUESTION,
    "assistant_message": ANSWER
    | {"content": "I'm at the gym without my phone till six. Talk then!", "away": True, "token_count": None},
    "blocked": False,
    "away": True,
}
PICTURES = {
    "user_message": QUESTION
    | {
        "message_type": "multimodal",
        "content": "What is on my plate?",
        "media_urls": [f"https://chat.example.com/media/{PICTURE}?expires=1769850900&signature=0f1e2d3c4b5a"],
    },
    "assistant_message": ANSWER,
    "blocked": False,
    "away": False,
}
VOICE = {
    "user_message": QUESTION
    | {
        "message_type": "audio",
        "content": "[Transcribed: How many squats?]",
        "audio_url": f"https://chat.example.com/media/{SOUND}?expires=1769850900&signature=5a4b3c2d1e0f",
        "audio_duration_seconds": 2,
    },
    "assistant_message": ANSWER,
    "blocked": False,
    "away": False,
}


def _event(number: int, kind: str, data: dict[str, Any]) -> str:
    return f"id: {QUESTION_ID}/{number}\nevent: {kind}\ndata: {json.dumps(data, ensure_ascii=False)}\n\n"


DONE = {**TURN, "provider": "gemini", "model": "gemini-2.5-flash", "tokens": 12}
TRANSCRIPTS = {
    "answered": _event(1, "token", {"text": "Start with oats, "})
    + _event(2, "token", {"text": "a banana and yoghurt."})
    + _event(3, "done", DONE),
    "failed": _event(1, "token", {"text": "Start with "})
    + _event(2, "error", events.error_json(ai.ModelUnavailable())),
    "kept_alive": events.ALIVE.decode() + _event(1, "token", {"text": "Done."}) + _event(2, "done", DONE),
}


# The failure simulator's scenes


def _played(scene: str) -> str:
    """The beginning of a long text."""
    text = SCENES[scene].text or "[offline] Coach Asha here. I heard you say “What should I eat today?”."
    return text if len(text) < MOST_SHOWN else text[:MOST_SHOWN] + "…"


def _turn_played(scene: str) -> dict[str, Any]:
    if SCENES[scene].blocked:
        return BLOCKED
    return TURN | {"assistant_message": ANSWER | {"content": _played(scene)}}


def _transcript_played(scene: str) -> str:
    """One token stands for all that follow each other."""
    plays = SCENES[scene]
    text = " ".join(_played(scene).split(" ")[: plays.words])
    tokens = [_event(1, "token", {"text": text})] if text and plays.first < 1 else []
    return "".join(tokens) + _event(len(tokens) + 1, *_end_played(scene))


def _end_played(scene: str) -> tuple[str, dict[str, Any]]:
    plays = SCENES[scene]
    if plays.blocked and plays.words:
        return "error", events.WITHDRAWN
    if plays.error or plays.first > 1:
        return "error", events.error_json((plays.error or ai.ModelUnavailable)(""))
    return "done", {**_turn_played(scene), "provider": "offline", "model": "offline", "tokens": 12}


def sent(name: str, summary: str, value: Any) -> OpenApiExample:
    return OpenApiExample(name, value, summary=summary, request_only=True)


def answered(name: str, summary: str, value: Any, status: int = 200) -> OpenApiExample:
    return OpenApiExample(name, value, summary=summary, response_only=True, status_codes=[str(status)])


def transcript(name: str, summary: str, text: str) -> OpenApiExample:
    return OpenApiExample(
        name,
        OPENED + text,
        summary=summary,
        response_only=True,
        media_type="text/event-stream",
        status_codes=["200"],
    )


def page(**rows: list[Any]) -> dict[str, Any]:
    return {**rows, "total": 1, "limit": 20, "offset": 0}


OPENING = [
    sent("open", "Open the conversation with a persona", {"influencer_id": PERSONA_ID}),
    answered("opened", "A new one starts with the persona's greeting", CONVERSATION, 201),
]
LISTING = [answered("conversations", "The newest first", page(conversations=[CONVERSATION]))]
DELETING = [
    answered(
        "deleted",
        "With all its messages",
        {
            "success": True,
            "message": "Conversation deleted successfully",
            "deleted_conversation_id": CONVERSATION_ID,
            "deleted_messages_count": 3,
        },
    )
]
READING = [
    answered(
        "messages",
        "The newest first",
        {"conversation_id": CONVERSATION_ID, "messages": [ANSWER, QUESTION, GREETING]}
        | {"total": 3, "limit": 50, "offset": 0},
    )
]
DRAFTS = [
    sent("text", "A text", {"message_type": "text", "content": "What should I eat today?"}),
    sent(
        "pictures",
        "Pictures with a text; the keys are of the uploads",
        {"message_type": "multimodal", "content": "What is on my plate?", "media_urls": [PICTURE]},
    ),
    sent("image", "Pictures alone", {"message_type": "image", "media_urls": [PICTURE]}),
    sent(
        "voice",
        "A voice note",
        {"message_type": "audio", "audio_url": SOUND, "audio_duration_seconds": 2},
    ),
    sent(
        "with_id",
        "With the app's own id: sent twice, it is one message",
        {"message_type": "text", "content": "What should I eat today?", "client_message_id": "device-7/42"},
    ),
]
SENDING = [
    *DRAFTS,
    answered("answer", "The question as stored, and the answer", TURN),
    answered("blocked", "A safety filter stopped it: the persona changes the subject", BLOCKED),
    answered("away", "The persona is paused, or its tokens of the day are spent: its away message", AWAY),
    answered("about_a_picture", "Files have links that are good for a while", PICTURES),
    answered("to_a_voice_note", "What it says is in the content", VOICE),
    *(
        answered(f"scene_{name}", f"X-Chat-Scenario: {name}", _turn_played(name))
        for name in SCENES
        if _end_played(name)[0] == "done"
    ),
]
STREAMING = [
    *DRAFTS,
    transcript("answered", "Tokens, then the turn as it is stored", TRANSCRIPTS["answered"]),
    transcript("kept_alive", "A comment every 10 s while nothing is said", TRANSCRIPTS["kept_alive"]),
    transcript("failed", "An error after text went out", TRANSCRIPTS["failed"]),
    *(transcript(f"scene_{name}", f"X-Chat-Scenario: {name}", _transcript_played(name)) for name in SCENES),
]
FOLLOWING = [
    transcript("answered", "From the first event, or from the one after Last-Event-ID", TRANSCRIPTS["answered"])
]
STOPPING = [
    answered(
        "stopped",
        "The text so far is the answer",
        {**TURN, "assistant_message": ANSWER | {"content": "Start with oats,", "stopped": True}, "stopped": True},
    ),
    answered("before_any_text", "No answer", {**TURN, "assistant_message": None, "stopped": True}),
]
REGENERATING = [answered("answer", "The new answer in the old one's place", TURN)]
