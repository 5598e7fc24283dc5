"""The embedded engine for development without a key: the same question always gets the same answer."""

from hashlib import sha256
from typing import BinaryIO

from yral_chat.ai import Blob, Prompt, Reply

ANSWERS = (
    "I heard you say “{said}”. With a model key I would answer that in my own words.",
    "“{said}” is a good start. Set GEMINI_API_KEY and I will tell you what I really think.",
    "Let us talk about “{said}” as soon as a real model stands behind me.",
)


class Offline:
    def generate(self, prompt: Prompt, deadline: float) -> Reply:
        parts = prompt.contents[-1].parts if prompt.contents else ()
        pictures = sum(isinstance(part, Blob) for part in parts)
        said = next((part for part in reversed(parts) if isinstance(part, str)), f"{pictures} picture(s)")
        short = said if len(said) <= 80 else said[:79] + "…"
        answer = ANSWERS[sha256(said.encode()).digest()[0] % len(ANSWERS)].format(said=short)
        text = f"[offline] {prompt.persona_name or 'The persona'} here. {answer}"
        return Reply(text=text, model="offline", token_count=len(text) // 4)

    def transcribe(self, audio: BinaryIO, *, mime_type: str, extension: str, deadline: float) -> str:
        return f"[offline] a voice note ({mime_type})"
