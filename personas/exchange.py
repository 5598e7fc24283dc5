"""Personas as JSON, out and in. docs/content-desk.md describes the format.

An import lands in a draft, of a persona that somebody chose or of a new one. Names decide nothing.
"""

import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import orjson
from django.core.exceptions import ValidationError

from personas import audit, cards, versions
from personas.differences import Difference, differences
from personas.models import VERSIONED, Influencer

FORMAT, VERSION = "yral-persona", 1
MOST_BYTES, MOST_PERSONAS, MOST_DEEP = 900_000, 100, 20
ARCHIVES = (b"PK", b"\x1f\x8b", b"7z\xbc\xaf", b"BZh", b"\xfd7zXZ", b"Rar!", b"(\xb5/\xfd")
# In time that grows with the text alone: a search like this holds up every thread of the process
PROGRAM = re.compile(
    r"<\s*+/?+\s*+(?:script|iframe|object|embed)\b|<[^<>]*?\son\w+\s*+=|javascript\s*+:", re.IGNORECASE
)


class NotImportable(ValueError):
    """The text is a sentence for whoever brought the file."""


@dataclass(frozen=True)
class Arrival:
    """One persona of a file."""

    details: dict[str, Any]
    content: dict[str, Any]  # of VERSIONED; what it lacks stays as it is
    left_out: list[str] = field(default_factory=list)

    @property
    def title(self) -> str:
        return str(self.details["display_name"])


# Out


def exported(influencers: Iterable[Influencer], *, drafted: bool = False) -> bytes:
    """What is live; with `drafted` the draft where there is one. Of what was never published that is all there is."""
    personas = []
    for one in influencers:
        shown = versions.as_drafted(one) if drafted or one.is_active == Influencer.Status.DRAFT else one
        details = {name: getattr(one, name) for name in Influencer.DETAILS}
        personas.append({"details": details, "content": shown.content})
    document = {"format": FORMAT, "version": VERSION, "personas": personas}
    return json.dumps(document, indent=2, ensure_ascii=False).encode()


# In


def read(data: bytes) -> list[Arrival]:
    """Raises NotImportable."""
    document = _parsed(data)
    if cards.is_card(document):
        return [_from_card(document)]
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise NotImportable("This is neither an export of personas nor a Character Card (V2 or V3).")
    if document.get("version") != VERSION:
        raise NotImportable(f"This file has another version of the format than {VERSION}, the one that is read here.")
    found = document.get("personas")
    if not isinstance(found, list) or not found:
        raise NotImportable("The file holds no personas.")
    if len(found) > MOST_PERSONAS:
        raise NotImportable(f"The file holds more than {MOST_PERSONAS} personas.")
    return [_from_ours(one, f"Persona {number}") for number, one in enumerate(found, 1)]


def _parsed(data: bytes) -> Any:
    if len(data) > MOST_BYTES:
        raise NotImportable("The file is larger than 900 kB.")
    if data.startswith(ARCHIVES):
        raise NotImportable("This is an archive. Unpack it, and bring the JSON file.")
    if data.startswith((b"\x89PNG", b"\xff\xd8", b"RIFF")):
        raise NotImportable("This is a picture. Cards are read as JSON files, not out of pictures.")
    try:
        document = orjson.loads(data.removeprefix(b"\xef\xbb\xbf"))
        json.loads(data.removeprefix(b"\xef\xbb\xbf"), object_pairs_hook=_once)
    except RecursionError as exc:
        raise NotImportable("The file is nested too deeply.") from exc
    except NotImportable:
        raise
    except ValueError as exc:  # of orjson's and of Python's parser, which counts digits
        deep = any(word in str(exc).lower() for word in ("recursion", "depth"))
        raise NotImportable("The file is nested too deeply." if deep else "The file is no JSON in UTF-8.") from exc
    _look_through(document)
    return document


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise NotImportable("The file says something twice: a key stands more than once in the same place.")
    return found


def _look_through(document: Any) -> None:
    level, depth = [document], 0
    while level:
        depth += 1
        if depth > MOST_DEEP:
            raise NotImportable("The file is nested too deeply.")
        for value in level:
            names = list(value) if isinstance(value, dict) else [value]
            if any(isinstance(text, str) and "\x00" in text for text in names):
                raise NotImportable("The file holds a null character.")
        level = [
            inner
            for value in level
            if isinstance(value, dict | list)
            for inner in (value.values() if isinstance(value, dict) else value)
        ]


def _from_card(document: dict[str, Any]) -> Arrival:
    try:
        details, content, left_out = cards.read_card(document)
    except ValueError as exc:
        raise NotImportable(str(exc)) from exc
    return Arrival(_looked_at(details, "The card"), _looked_at(content, "The card"), left_out)


def _from_ours(one: Any, place: str) -> Arrival:
    if not isinstance(one, dict) or set(one) != {"details", "content"}:
        raise NotImportable(f"{place} must be an object of “details” and “content”, and nothing else.")
    details, content = one["details"], one["content"]
    for part, known in ((details, Influencer.DETAILS), (content, VERSIONED)):
        if not isinstance(part, dict):
            raise NotImportable(f"{place}: “details” and “content” must be objects.")
        if unknown := sorted(set(part) - set(known)):
            raise NotImportable(f"{place} has fields that aren't known here: {', '.join(unknown)[:200]}.")
    if not {"name", "display_name"} <= set(details):
        raise NotImportable(f"{place} needs a name and a display_name.")
    return Arrival(_looked_at(details, place), _looked_at(content, place))


def _looked_at(values: dict[str, Any], place: str) -> dict[str, Any]:
    for name, value in values.items():
        kind = Influencer._meta.get_field(name)
        if not FITS[kind.get_internal_type()](name, value):
            raise NotImportable(f"{place}: “{name}” has the wrong type.")
        most = getattr(kind, "max_length", None)
        if most and len(value) > most:
            raise NotImportable(f"{place}: “{name}” is longer than {most} characters.")
        if PROGRAM.search(json.dumps(value, ensure_ascii=False)):
            raise NotImportable(f"{place}: “{name}” holds a program (a script, or markup that runs one).")
    return values


def _is_number(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


FITS: dict[str, Callable[[str, Any], bool]] = {
    "CharField": lambda name, value: isinstance(value, str),
    "TextField": lambda name, value: isinstance(value, str),
    "FloatField": lambda name, value: _is_number(value),
    "PositiveIntegerField": lambda name, value: _is_number(value) and not isinstance(value, float),
    "JSONField": lambda name, value: isinstance(value, list if name == "suggested_messages" else dict),
}


# Where to


@dataclass(frozen=True)
class Plan:
    """What would become of one persona of a file, and what speaks against it."""

    arrival: Arrival
    into: Influencer | None  # none: a new one
    name: str  # of the new one
    revision: str
    differences: list[Difference]
    kept: list[str]  # what of a chosen persona stays as it is, though the file says otherwise
    faults: list[str]


def plan(arrival: Arrival, into: Influencer | None, name: str = "") -> Plan:
    name = name or arrival.details["name"]
    draft = versions.draft_of(into) if into else None
    before = (draft or into).content if into else {}
    after = {**before, **arrival.content}
    return Plan(
        arrival=arrival,
        into=into,
        name=name,
        revision=versions.revision_of(into, draft) if into else "",
        differences=differences(before, after),
        kept=_kept(arrival, into) if into else [],
        faults=_faults(arrival, into, name),
    )


def _kept(arrival: Arrival, into: Influencer) -> list[str]:
    return [audit.label(name) for name, value in arrival.details.items() if getattr(into, name) != value]


def _faults(arrival: Arrival, into: Influencer | None, name: str) -> list[str]:
    persona = into or Influencer(**{**arrival.details, "name": name})
    excluded = {one.name for one in Influencer._meta.fields} - set(VERSIONED) if into else set()
    try:
        persona.with_content(arrival.content).full_clean(exclude=excluded, validate_constraints=False)
    except ValidationError as exc:
        return [f"{audit.label(field)}: {' '.join(sentences)}" for field, sentences in exc.message_dict.items()]
    return []


def take(planned: Plan, *, author: versions.Author = None) -> Influencer:
    """Raises Conflict if the persona changed since the plan was made, or ValidationError."""
    if planned.into is None:
        details = {**planned.arrival.details, "name": planned.name}
        return versions.create_persona(details=details, content=planned.arrival.content, author=author)
    versions.begin_draft(
        influencer_id=planned.into.pk,
        content=planned.arrival.content,
        did="Imported a draft.",
        author=author,
        revision=planned.revision,
    )
    return planned.into
