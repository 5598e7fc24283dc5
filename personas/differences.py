"""Two contents of a persona, compared word by word. Pure functions; pages escape what they show of them."""

import difflib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import regex

from personas.audit import label
from personas.models import texts

WORDS = regex.compile(r"\w+|\s+|[^\w\s]")  # with the marks of Indic scripts
MOST_WORDS = 1500  # of two passages that differ: comparing takes the product of their lengths
MOST_LINES = 5_000
CONTEXT = 2  # unchanged lines that stay beside a change
LONG = 8  # lines that are worth folding


@dataclass(frozen=True, slots=True)
class Piece:
    """Some text that is `same`, `removed` or `added`; `folded` is unchanged text far from any change."""

    kind: str
    text: str
    folded: bool = False

    @property
    def lines(self) -> int:
        return self.text.count("\n")


@dataclass(frozen=True, slots=True)
class Difference:
    field: str
    pieces: list[Piece]

    @property
    def label(self) -> str:
        return label(self.field)


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[Difference]:
    """Of the fields that differ, in the order of `after`."""
    found = []
    for name, value in after.items():
        if before.get(name) != value:
            found.append(Difference(name, folded(compared(as_text(before.get(name)), as_text(value)))))
    return found


def as_text(value: Any) -> str:
    """As a person reads it: a list by its lines, an object by its entries."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, list) and texts(value) == value:
        return "\n".join(value)
    if isinstance(value, dict):
        return "\n".join(f"{name}: {one if isinstance(one, str) else _json(one)}" for name, one in value.items())
    return _json(value)


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)


def compared(before: str, after: str) -> list[Piece]:
    """First by lines, then, where lines differ, by words."""
    pieces, left = [], 4 * MOST_WORDS**2
    old_lines, new_lines = before.splitlines(keepends=True), after.splitlines(keepends=True)
    if max(len(old_lines), len(new_lines)) > MOST_LINES:
        return [Piece(kind, text) for kind, text in (("removed", before), ("added", after)) if text]
    for kind, old, new in _blocks(old_lines, new_lines, autojunk=True):
        if kind == "equal":
            pieces.append(Piece("same", "".join(old)))
            continue
        old_words, new_words = WORDS.findall("".join(old)), WORDS.findall("".join(new))
        cost = len(old_words) * len(new_words)
        if cost > min(left, MOST_WORDS**2):
            old_words, new_words, cost = ["".join(old)], ["".join(new)], 0
        left -= cost
        pieces += _by_words(old_words, new_words)
    return _joined(pieces)


def _by_words(old_words: list[str], new_words: list[str]) -> Iterator[Piece]:
    for kind, old, new in _blocks(old_words, new_words):
        if kind == "equal":
            yield Piece("same", "".join(old))
        else:
            yield Piece("removed", "".join(old))
            yield Piece("added", "".join(new))


def _blocks(
    before: list[str], after: list[str], *, autojunk: bool = False
) -> Iterator[tuple[str, list[str], list[str]]]:
    for kind, i, j, k, m in difflib.SequenceMatcher(None, before, after, autojunk=autojunk).get_opcodes():
        yield kind, before[i:j], after[k:m]


def _joined(pieces: list[Piece]) -> list[Piece]:
    """A space between two changed words is changed with them: what was removed, then what was added, reads better
    than word for word."""
    joined: list[Piece] = []
    for kind, run in groupby((piece for piece in pieces if piece.text), key=lambda piece: piece.kind):
        joined.append(Piece(kind, "".join(piece.text for piece in run)))
    merged: list[Piece] = []
    for same, group in groupby(_with_changed_spaces(joined), key=lambda piece: piece.kind == "same"):
        changed = list(group)
        for kind in ("same",) if same else ("removed", "added"):
            if text := "".join(piece.text for piece in changed if piece.kind == kind):
                merged.append(Piece(kind, text))
    return merged


def _with_changed_spaces(pieces: list[Piece]) -> Iterator[Piece]:
    for place, piece in enumerate(pieces):
        between = 0 < place < len(pieces) - 1
        if piece.kind == "same" and between and piece.text.strip(" ") == "":
            yield Piece("removed", piece.text)
            yield Piece("added", piece.text)
        else:
            yield piece


def folded(pieces: list[Piece]) -> list[Piece]:
    """Long unchanged passages are cut: a page hides their middles until they are asked for."""
    made = []
    for place, piece in enumerate(pieces):
        lines = piece.text.splitlines(keepends=True)
        if piece.kind != "same" or len(lines) < LONG:
            made.append(piece)
            continue
        first = lines[:CONTEXT] if place else []
        last = lines[-CONTEXT:] if place < len(pieces) - 1 else []
        middle = lines[len(first) : len(lines) - len(last)]
        made += [
            Piece("same", "".join(first)),
            Piece("same", "".join(middle), folded=True),
            Piece("same", "".join(last)),
        ]
    return [piece for piece in made if piece.text]
