"""Character Cards V2 (github.com/malfoyslastname/character-card-spec-v2)
and V3 (github.com/kwaroran/character-card-spec-v3).

Other programs' personas. What has no place here is named, so that nobody misses it without a word.
"""

import re
from typing import Any

from django.utils.text import slugify

SPECS = ("chara_card_v2", "chara_card_v3")
TEXTS = (
    *("name", "nickname", "description", "personality", "scenario", "first_mes", "mes_example", "system_prompt"),
    *("post_history_instructions", "creator_notes", "creator", "character_version"),
)
LEFT_OUT = {
    "alternate_greetings": "other greetings: a persona has one",
    "group_only_greetings": "greetings for groups: there are none",
    "extensions": "settings of other programs (extensions)",
    "assets": "pictures and sounds (assets): give the picture's address on the persona's page",
    "creator_notes_multilingual": "the creator's notes in other languages",
    "source": "where the card came from (source)",
    "creation_date": "the day it was made",
    "modification_date": "the day it was changed",
}
CHAR, USER = re.compile(r"\{\{char\}\}|<bot>", re.IGNORECASE), re.compile(r"\{\{user\}\}|<user>", re.IGNORECASE)
GONE = re.compile(
    r"\{\{original\}\}|\{\{(?://|comment:)(?:(?!\{\{|\}\}).)*+\}\}",  # in time that grows with the text alone
    re.IGNORECASE | re.DOTALL,
)


def is_card(document: Any) -> bool:
    return isinstance(document, dict) and document.get("spec") in SPECS


def read_card(document: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any], list[str]]:
    """Details, content, and what is left out, in words. Raises ValueError with a sentence."""
    card = document.get("data")
    if not isinstance(card, dict):
        raise ValueError("The card has no data.")
    said = {name: _text(card, name) for name in TEXTS}
    name = said["nickname"] or said["name"]
    if not name:
        raise ValueError("The card has no name.")
    book, left_out = _book(card.get("character_book"))
    content = {"system_instructions": _instructions(said, book), "initial_greeting": _greeting(said["first_mes"], name)}
    if USER.search(said["first_mes"]):
        left_out.append("the user's name in the greeting: greetings go out as they stand")
    return _details(card, said, name), content, [*left_out, *_unused(card)]


def _text(card: dict[str, Any], name: str) -> str:
    value = card.get(name)
    if value is not None and not isinstance(value, str):
        raise ValueError(f"“{name}” of the card must be a text.")
    return (value or "").replace("\r\n", "\n").strip()


def _instructions(said: dict[str, str], book: str) -> str:
    parts = [
        said["system_prompt"],
        said["description"],
        _headed("Personality", said["personality"]),
        _headed("Scenario", said["scenario"]),
        _headed("What {{persona_name}} knows", book),
        _headed("How {{persona_name}} talks, by example", said["mes_example"]),
        said["post_history_instructions"],
    ]
    text = "\n\n".join(part for part in parts if part)
    text = USER.sub("{{user_name}}", CHAR.sub("{{persona_name}}", GONE.sub("", text))).strip()
    if not text:
        raise ValueError("The card says nothing of who the persona is: no description, personality or system prompt.")
    return text


def _headed(title: str, text: str) -> str:
    return f"{title}:\n{text}" if text else ""


def _greeting(text: str, name: str) -> str:
    """It has no variables here: the name stands as it is, and the user's is left out."""
    without_user = re.sub(rf",?[ \t]{{0,9}}(?:{USER.pattern})", "", GONE.sub("", text), flags=re.IGNORECASE)
    return CHAR.sub(lambda _: name, without_user).strip()


def _book(book: Any) -> tuple[str, list[str]]:
    """Of a lorebook the entries that are always there. Those that wait for a word have nobody who looks for it."""
    if not book:
        return "", []
    entries = book.get("entries") if isinstance(book, dict) else None
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ValueError("The card's book (character_book) has no list of entries.")
    kept = [entry for entry in entries if entry.get("constant") is True and entry.get("enabled") is not False]
    left = len(entries) - len(kept)
    words = f"{left} entr{'y' if left == 1 else 'ies'} of its book that wait for a word, or are switched off"
    return "\n".join(filter(None, (_text(entry, "content") for entry in kept))), [words] if left else []


def _details(card: dict[str, Any], said: dict[str, str], name: str) -> dict[str, Any]:
    tags = card.get("tags") or []
    if not isinstance(tags, list) or not all(isinstance(tag, str) for tag in tags):
        raise ValueError("“tags” of the card must be a list of texts.")
    origin = {key: said[key] for key in ("name", "creator", "character_version", "creator_notes") if said[key]}
    return {
        "name": slugify(name)[:100],
        "display_name": name,
        "category": tags[0][:50] if tags else "",
        "metadata": {"character_card": {**origin, "tags": tags}},
    }


def _unused(card: dict[str, Any]) -> list[str]:
    known = {*TEXTS, "tags", "character_book"}
    return [LEFT_OUT.get(name, f"“{name[:50]}”") for name, value in card.items() if value and name not in known]
