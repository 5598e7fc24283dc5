"""What a persona's writer should look at before users do. Pure functions; a finding stops nobody."""

import json
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum

from django.conf.locale import LANG_INFO

from personas.audit import label
from personas.models import VARIABLES, Influencer, texts

TOKEN_BUDGET = 4000  # of the instructions: they are sent, and paid for, with every message
GREETING_ON_A_PHONE = 300  # characters that a phone shows without scrolling
SUGGESTION_ON_A_PHONE = 60
PHONE_REGION = "IN"  # whose numbers are known also without a country code


class Severity(StrEnum):
    ERROR = "error"  # users or the model would get something that nobody can have meant
    WARNING = "warning"


@dataclass(frozen=True, slots=True)
class Finding:
    severity: Severity
    sentence: str
    field: str
    line: int | None = None

    @property
    def place(self) -> str:
        return f"{label(self.field)}, line {self.line}" if self.line else label(self.field)


Findings = Iterator[Finding]


def findings(persona: Influencer) -> list[Finding]:
    """Of a persona as it would be (versions.as_drafted): errors first, then as the fields stand on the page."""
    found = [finding for check in CHECKS for finding in check(persona)]
    return sorted(found, key=lambda one: (one.severity != Severity.ERROR, FIELDS.index(one.field), one.line or 0))


# What is missing or too long


def shown_to_users(persona: Influencer) -> Findings:
    if not persona.display_name.strip():
        yield Finding(Severity.ERROR, "The persona has no name that users see.", "display_name")
    if not persona.avatar_url.strip():
        yield Finding(Severity.WARNING, "The persona has no picture.", "avatar_url")
    if not texts(persona.suggested_messages):
        yield Finding(Severity.WARNING, "There are no suggestions for a first message.", "suggested_messages")
    for line, text in enumerate(texts(persona.suggested_messages), 1):
        if len(text) > SUGGESTION_ON_A_PHONE:
            sentence = f"This suggestion has {len(text)} characters; a phone shows {SUGGESTION_ON_A_PHONE}."
            yield Finding(Severity.WARNING, sentence, "suggested_messages", line)


def greeting(persona: Influencer) -> Findings:
    length = len(persona.initial_greeting.strip())
    if not length:
        yield Finding(
            Severity.WARNING, "There is no greeting: a conversation begins with an empty screen.", "initial_greeting"
        )
    elif length > GREETING_ON_A_PHONE:
        sentence = f"The greeting has {length} characters; a phone shows about {GREETING_ON_A_PHONE}."
        yield Finding(Severity.WARNING, sentence, "initial_greeting")


def token_budget(persona: Influencer) -> Findings:
    tokens = estimated_tokens(persona.system_instructions)
    if tokens > TOKEN_BUDGET:
        yield Finding(
            Severity.WARNING,
            f"The instructions have about {tokens:,} tokens, more than the {TOKEN_BUDGET:,} that are wanted: "
            "each message pays for them, and waits for them.",
            "system_instructions",
        )


def estimated_tokens(text: str) -> int:
    """As the editor counts: Gemini takes some four characters of English for a token, and fewer of most scripts."""
    wide = sum(ord(character) > 0x2FF for character in text)
    return math.ceil((len(text) - wide) / 4 + wide / 1.5)


# What stands in the texts


def variables(persona: Influencer) -> Findings:
    for field, line, text in written(persona):
        for found in ANY_VARIABLE.finditer(text):
            if field not in FILLED_IN:
                sentence = f"{found[0]} isn't replaced here: users would read it as it stands."
                yield Finding(Severity.ERROR, sentence, field, line)
            elif found[1].strip() not in VARIABLES:
                known = ", ".join(f"{{{{{name}}}}}" for name in VARIABLES)
                sentence = f"{found[0]} is no variable, and stays as it was typed. There are {known}."
                yield Finding(Severity.ERROR, sentence, field, line)


def dates(persona: Influencer) -> Findings:
    for field, line, text in written(persona):
        for found in DATE.finditer(text):
            sentence = (
                f"“{found[0].strip()}” will be wrong some day. The model is told the date; {{{{today}}}} says it."
            )
            yield Finding(Severity.WARNING, sentence, field, line)


def addresses(persona: Influencer) -> Findings:
    for field, line, text in written(persona):
        if found := EMAIL.search(text):
            sentence = f"“{found[0]}” is an e-mail address: the persona may tell it to anybody."
            yield Finding(Severity.WARNING, sentence, field, line)
        for number in phone_numbers(text):
            sentence = f"“{number}” looks like a phone number: the persona may tell it to anybody."
            yield Finding(Severity.WARNING, sentence, field, line)


def phone_numbers(text: str) -> list[str]:
    import phonenumbers  # only the desk needs its tables

    found = phonenumbers.PhoneNumberMatcher(text, PHONE_REGION, leniency=phonenumbers.Leniency.VALID, max_tries=100)
    return [match.raw_string for match in found if not A_RANGE.fullmatch(match.raw_string)]


def keys(persona: Influencer) -> Findings:
    """The sentence doesn't repeat it: it goes to pages and logs."""
    for field, line, text in written(persona):
        if KEY.search(text):
            sentence = "Here stands what looks like a key or a password. Take it out, and have it changed."
            yield Finding(Severity.ERROR, sentence, field, line)


# What the language note says


def languages(persona: Influencer) -> Findings:
    spoken = set(languages_in(persona.language_note))
    if not spoken:
        return
    for line, text in enumerate(persona.system_instructions.splitlines(), 1):
        for sentence in re.split(r"(?<=[.!?;।])\s+", text):
            yield from _contradictions(sentence, line, spoken)


def _contradictions(sentence: str, line: int, spoken: set[str]) -> Findings:
    for told in SPEAKING.finditer(sentence):
        if THE_USER.search(told["before"]):  # it's said what the user does
            continue
        named = set(languages_in(told["rest"]))
        never = NEVER.search(told["before"])
        wrong = named & spoken if never else named - spoken
        if wrong and (never or not named & spoken):
            what = "forbid" if never else "ask for"
            yield Finding(
                Severity.WARNING,
                f"The instructions {what} {' and '.join(sorted(wrong))}; the note on languages says otherwise.",
                "system_instructions",
                line,
            )


def languages_in(text: str) -> list[str]:
    return [found[0].title() for found in LANGUAGE.finditer(text)]


# The texts, line by line


def written(persona: Influencer) -> Iterator[tuple[str, int, str]]:
    """Field, line and text of all that staff wrote. Of suggestions and traits each is a line."""
    for field in ("system_instructions", "language_note", "initial_greeting", "deflection", "description"):
        for line, text in enumerate(str(getattr(persona, field)).splitlines(), 1):
            yield field, line, text
    for line, text in enumerate(texts(persona.suggested_messages), 1):
        yield "suggested_messages", line, text
    traits = persona.personality_traits
    for line, (name, value) in enumerate(traits.items() if isinstance(traits, dict) else (), 1):
        yield "personality_traits", line, f"{name}: {value if isinstance(value, str) else json.dumps(value)}"


FIELDS = (
    *("display_name", "avatar_url", "system_instructions", "language_note", "initial_greeting"),
    *("suggested_messages", "deflection", "description", "personality_traits"),
)
FILLED_IN = ("system_instructions", "language_note", "personality_traits")
CHECKS: tuple[Callable[[Influencer], Findings], ...] = (
    *(shown_to_users, greeting, token_budget, variables, dates, addresses, keys, languages),
)

ANY_VARIABLE = re.compile(r"\{\{([^{}\n]{0,60})\}\}")
A_RANGE = re.compile(r"\d{3,4}-\d{3,4}")  # of calories, say
EMAIL = re.compile(r"[\w.+-]{1,64}@[\w-]{1,63}(?:\.[\w-]{1,63})+")
# Each in time that grows with the text alone: a search holds up every thread of the process
KEY = re.compile(
    r"AIza[\w-]{30,}|\bsk-[\w-]{16,}|\bgh[pousr]_\w{20,}|\bgithub_pat_\w{20,}|\bglpat-[\w-]{16,}|\bxox[abprs]-[\w-]{10,}"
    r"|\bA[KS]IA[0-9A-Z]{16}\b|(?<![\w-])eyJ[\w-]{10,}+\.eyJ[\w-]{10}|-----BEGIN [A-Z ]{0,40}PRIVATE KEY"
    r"|\b(?:api[ _-]?key|secret|token|passw(?:or)?d|pwd)\b\s*(?:[:=]|is)\s*[\"'“]?(?=\S{0,99}?\d)[^\s\"'”]{8}",
    re.IGNORECASE,
)
_MONTH = (
    r"(?:January|February|April|June|July|August|September|October|November|December|Jan|Feb|Mar|Apr|Jun|Jul|Aug|Sept?|"
    r"Oct|Nov|Dec|enero|febrero|abril|junio|julio|agosto|septiembre|octubre|noviembre|diciembre|"
    r"जनवरी|फ़रवरी|फरवरी|अप्रैल|जुलाई|अगस्त|सितंबर|अक्टूबर|नवंबर|दिसंबर)"
)
DATE = re.compile(
    r"(?<![\d/.-])(?:(?:19|20)\d\d[-/.]\d{1,2}[-/.]\d{1,2}|\d{1,2}[-/.]\d{1,2}[-/.](?:19|20)\d\d)(?![\d/-])"
    rf"|\b\d{{1,2}}(?:st|nd|rd|th)?(?: of| de)? (?:{_MONTH}|March|May)\b"
    rf"|\b(?:{_MONTH}|March|May)\.? \d{{1,2}}(?:st|nd|rd|th)?\b"
    rf"|\b(?:{_MONTH}|March|May) (?:19|20)\d\d\b"
    rf"|\b(?:in|is|it's|since|until|till|by|this|last|next|of) (?:{_MONTH}|March|May)\b"
    r"|\b(?:in|since|until|till|by|year|of|is) 20\d\d\b"
    r"|\b(?:today|tomorrow|it) is (?:a )?(?:Mon|Tues|Wednes|Thurs|Fri|Satur|Sun)day\b",
    re.IGNORECASE,
)
_NAMES = {info["name"].split(" ")[-1] for info in LANG_INFO.values() if "name" in info} - {"Ido", "Creole"}
_NAMES |= {"Hinglish", "Tanglish", "Gujarati", "Odia", "Assamese", "Bhojpuri", "Maithili", "Punjabi", "Sinhala"}
_NAMES |= {"Mandarin", "Cantonese", "Chinese", "Farsi", "Tagalog", "Filipino", "Spanglish"}
LANGUAGE = re.compile(
    rf"\b(?:{'|'.join(sorted(re.escape(name) for name in _NAMES if name.isalpha()))})\b", re.IGNORECASE
)
SPEAKING = re.compile(
    r"^(?P<before>.*?)\b(?:answer|reply|respond|speak|write|talk|chat|converse|switch)\w*\b(?P<rest>.*)$",
    re.IGNORECASE,
)
THE_USER = re.compile(r"\b(?:users?|they|people|who|he|she|somebody|someone|anybody)\W*$", re.IGNORECASE)
NEVER = re.compile(r"\b(?:never|not|don['’]t|avoid|no|without|refuse)\b", re.IGNORECASE)
