"""What the desk says of a persona's texts before users see them: on its page after each save, and before publishing."""

import json
import time
from collections.abc import Callable
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.test import Client

from personas.lint import GREETING_ON_A_PHONE, TOKEN_BUDGET, findings
from personas.models import Influencer
from personas.services import SEED
from tests.test_admin_personas import LIST, change, page, saved, submit

SEEDED = [entry["fields"] for entry in json.loads(SEED.read_text(encoding="utf-8"))]


def persona(**fields: Any) -> Influencer:
    good = {
        "display_name": "Asha",
        "avatar_url": "/static/a.png",
        "system_instructions": "You are Asha.",
        "initial_greeting": "Hi!",
        "suggested_messages": ["Plan my week"],
    }
    return Influencer(**{**good, **fields})


def said(**fields: Any) -> list[tuple[str, str, str]]:
    return [(finding.severity.value, finding.place, finding.sentence) for finding in findings(persona(**fields))]


def test_of_a_good_persona_it_says_nothing() -> None:
    assert said() == []


@pytest.mark.parametrize("fields", SEEDED, ids=[fields["name"] for fields in SEEDED])
def test_of_the_shipped_personas_it_says_nothing(fields: dict[str, Any]) -> None:
    assert findings(Influencer(**fields)) == []


@pytest.mark.parametrize(
    ("fields", "severity", "place", "words"),
    [
        ({"initial_greeting": " \n"}, "warning", "Initial greeting", "no greeting"),
        (
            {"initial_greeting": "x" * 301},
            "warning",
            "Initial greeting",
            f"301 characters; a phone shows about {GREETING_ON_A_PHONE}",
        ),
        ({"suggested_messages": []}, "warning", "Suggested messages", "no suggestions"),
        ({"suggested_messages": ["a", "x" * 61]}, "warning", "Suggested messages, line 2", "61 characters"),
        ({"display_name": " "}, "error", "Display name", "no name"),
        ({"avatar_url": ""}, "warning", "Avatar", "no picture"),
        (
            {"system_instructions": "x" * 16_001},
            "warning",
            "System instructions",
            f"4,001 tokens, more than the {TOKEN_BUDGET:,}",
        ),
        ({"system_instructions": "न" * 6_001}, "warning", "System instructions", "4,001 tokens"),
        (
            {"system_instructions": "A\nCall {{user}}."},
            "error",
            "System instructions, line 2",
            "{{user}} is no variable",
        ),
        ({"language_note": "{{lang}}"}, "error", "Languages, line 1", "{{lang}} is no variable"),
        (
            {"personality_traits": {"tone": "{{mood}}"}},
            "error",
            "Personality traits, line 1",
            "{{mood}} is no variable",
        ),
        ({"initial_greeting": "Hi {{user_name}}"}, "error", "Initial greeting, line 1", "isn't replaced here"),
        ({"deflection": "No, {{ today }}"}, "error", "Deflection, line 1", "isn't replaced here"),
        ({"suggested_messages": ["a", "{{today}}?"]}, "error", "Suggested messages, line 2", "isn't replaced here"),
        *(
            ({"system_instructions": f"One.\nTwo: {text}"}, "warning", "System instructions, line 2", "wrong some day")
            for text in (
                *(
                    "currently it is December.",
                    "on 2026-03-14",
                    "by 14/03/2026",
                    "on 14 March",
                    "March 14th",
                    "In 2026 we",
                ),
                *(
                    "next May",
                    "Today is Monday.",
                    "since August 2025",
                    "अगस्त 2025",
                    "it's 3 Dec",
                    "el 3 de agosto de 2026",
                ),
            )
        ),
        ({"deflection": "Write to a.b+c@mail.example.org!"}, "warning", "Deflection, line 1", "a.b+c@mail.example.org"),
        (
            {"system_instructions": "Call +91 98765 43210."},
            "warning",
            "System instructions, line 1",
            "“+91 98765 43210”",
        ),
        ({"system_instructions": "Call 080-4567 8901."}, "warning", "System instructions, line 1", "phone number"),
        ({"description": "+1 650-253-0000"}, "warning", "Description, line 1", "phone number"),
        *(
            ({"system_instructions": f"\n\n{text}"}, "error", "System instructions, line 3", "a key or a password")
            for text in (
                *(
                    "AIza" + "Sy0123456789-abcdefghij_ABCDEFGHIJK",
                    "sk-" + "proj-0123456789abcdefXYZ",
                    "ghp_" + "a1" * 18,
                ),
                *("AKIA" + "ABCDEFGH12345678", "password: hunter2hunter", 'API key = "s3cr3t-and-long"'),
                *("-----BEGIN RSA PRIVATE KEY-----", "eyJhbGciOiJIUzI1NiJ9" + ".eyJzdWIiOiIxIn0.x"),
            )
        ),
    ],
)
def test_it_finds(fields: dict[str, Any], severity: str, place: str, words: str) -> None:
    found = said(**fields)

    assert [(found_severity, where) for found_severity, where, _ in found][:1] == [(severity, place)], found
    assert words in found[0][2]


@pytest.mark.parametrize(
    "text",
    [
        "May I help you? March on! You may do 3 sets.",
        "Do 3 x 10/12 reps, rest 30-60-90 s, drink 1.5-2.5 l, eat 1800-2200 kcal, walk 10,000 steps.",
        "The secret is consistency. Your password is never needed. Token of love: a smile.",
        "{{user_name}} {{ today }} {{persona_name}} {single} {{7*7}"[:50],
        "At 10:30, on Mondays, version 2.0, room 2026, 50% off",
        "Answer me @ once; tag @asha",
    ],
)
def test_it_leaves_alone_what_is_none_of_that(text: str) -> None:
    assert said(system_instructions=text) == []


@pytest.mark.parametrize(
    ("note", "instructions", "words"),
    [
        ("Hinglish", "Be kind.\nAlways answer in Tamil.", "ask for Tamil"),
        ("English and Hindi", "Never speak Hindi.", "forbid Hindi"),
        ("English only", "Be kind.\nReply in English. Switch to Urdu at night.", "ask for Urdu"),
        ("Only Bengali.", "Don't write in Bengali.", "forbid Bengali"),
    ],
)
def test_it_finds_instructions_that_contradict_the_note_on_languages(note: str, instructions: str, words: str) -> None:
    [(severity, place, sentence)] = said(language_note=note, system_instructions=instructions)

    line = instructions.count("\n") + 1
    assert (severity, place) == ("warning", f"System instructions, line {line}")
    assert words in sentence


@pytest.mark.parametrize(
    ("note", "instructions"),
    [
        ("", "Always answer in Tamil."),
        ("Whatever the user speaks.", "Always answer in Tamil."),
        ("English and Hindi", "Answer in Hindi or English. Never speak Tamil."),
        ("English", "If the user writes in Hindi, answer in English."),
        ("English", "You love Tamil films."),
    ],
)
def test_it_finds_no_contradiction_where_there_is_none(note: str, instructions: str) -> None:
    assert said(language_note=note, system_instructions=instructions) == []


@pytest.mark.parametrize("stored", [{"a": 1}, "text", 7, [1, None], [["x"]]])
def test_broken_rows_break_nothing(stored: Any) -> None:
    assert findings(persona(suggested_messages=stored, personality_traits=stored)) is not None


@pytest.mark.parametrize("piece", ["token=", "eyJaaaaaaaaaa-", "password is ", "-----BEGIN ", "98 ", "a@b."])
def test_a_text_made_to_take_for_ever_does_not(piece: str) -> None:
    began = time.process_time()
    said(system_instructions=piece * (60_000 // len(piece)))
    assert time.process_time() - began < 1.5


def test_a_key_is_not_repeated_by_the_finding() -> None:
    key = "AIza" + "Sy0123456789-abcdefghij_ABCDEFGHIJK"

    assert key not in str(said(system_instructions=key))


def test_the_page_of_the_persona_and_the_one_before_publishing_show_each_finding(
    desk: Callable[[User], Client], publisher: User, coach: Influencer
) -> None:
    client = desk(publisher)
    saved(submit(client, change(coach), initial_greeting="", system_instructions="It is\nDecember {{user}}"))

    for url in (change(coach), f"{LIST}{coach.pk}/publish/"):
        text = page(client, url).text
        assert "To look at before publishing (3)" in text
        assert "System instructions, line 2 {{user}} is no variable" in text
        assert "Initial greeting There is no greeting" in text
        assert "Avatar The persona has no picture." in text
