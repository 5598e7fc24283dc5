"""What staff expect of an answer, in words of their own, and whether an answer holds it. Pure functions."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum

import regex

from conversations.languages import LANGUAGES, is_in, known_as, language_of

LONGEST_PATTERN = 300  # characters
PATIENCE = 0.5  # seconds for a pattern: some take for ever
MOST_STEPS = 20_000  # that a pattern may be compiled into: each takes memory
PIECE = regex.compile(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*+\]|\{[^{}]*\}|.", regex.DOTALL)
HIDDEN = regex.compile(r"\(\?(?:#|[a-zA-Z]*x)")  # comments, in which anything may stand
CALL = regex.compile(r"\(\?(?:R|[-+]?\d|&|P>)")  # of a pattern by itself: it takes memory without end
SHOWN = 60  # characters of a value, in a sentence


class Kind(StrEnum):
    CONTAINS = "contains"
    LACKS = "lacks"
    LANGUAGE = "language"
    AT_MOST = "at_most"
    MATCHES = "matches"


TITLES: Mapping[str, str] = {
    Kind.CONTAINS: "contains",
    Kind.LACKS: "doesn't contain",
    Kind.LANGUAGE: "is in this language",
    Kind.AT_MOST: "has at most so many words",
    Kind.MATCHES: "matches this pattern",
}


@dataclass(frozen=True, slots=True)
class Judgement:
    holds: bool
    sentence: str


def problem(kind: str, value: str) -> str:
    """Why this can't be expected, in a sentence; blank if it can."""
    if kind == Kind.AT_MOST and not (value.isascii() and value.isdigit() and 1 <= int(value[:6]) <= 2000):
        return "Give a number of words, 1 to 2000."
    if kind == Kind.LANGUAGE and not known_as(value):
        return f"One of: {', '.join(LANGUAGES)}."
    if kind == Kind.MATCHES:
        return _wrong_with(value)
    return ""


def _wrong_with(pattern: str) -> str:
    if len(pattern) > LONGEST_PATTERN:
        return f"A pattern has at most {LONGEST_PATTERN} characters."
    if CALL.search(pattern) or HIDDEN.search(pattern):
        return "A pattern can't call itself here, and holds no comments."
    if _steps(pattern) > MOST_STEPS:
        return "This pattern repeats too much: repeats within repeats multiply."
    try:
        regex.compile(pattern)
    except (regex.error, RecursionError, OverflowError, ValueError) as exc:
        return f"This is no pattern: {str(exc)[:120]}."
    return ""


def _steps(pattern: str) -> int:
    """About how many it becomes: the module writes out what is repeated, as often as it must be there and once more."""
    groups, last = [0], 0
    for piece in PIECE.findall(pattern):
        if piece == "(":
            groups.append(0)
            last = 1
        elif piece == ")" and len(groups) > 1:
            last = groups.pop() + 1
            groups[-1] += last
        elif piece == "+" or (piece[0] == "{" and piece != "{"):
            more = last * (1 if piece == "+" else _least(piece))
            groups[-1] += more
            last += more
        elif piece not in ("*", "?"):
            last = 1
            groups[-1] += 1
    return sum(groups)


def _least(count: str) -> int:
    return int("0" + "".join(filter(str.isdecimal, count.partition(",")[0])))


def judged(kind: str, value: str, answer: str) -> Judgement:
    return JUDGES[Kind(kind)](value, answer)


def _contains(value: str, answer: str) -> Judgement:
    return Judgement(_plain(value) in _plain(answer), f"Contains “{_short(value)}”")


def _lacks(value: str, answer: str) -> Judgement:
    return Judgement(_plain(value) not in _plain(answer), f"Doesn't contain “{_short(value)}”")


def _language(value: str, answer: str) -> Judgement:
    expected = known_as(value)
    holds = is_in(answer, expected)
    found = language_of(answer) or "a language that can't be told"
    return Judgement(holds, f"Is in {expected}" if holds else f"Is in {expected}: it seems to be {found}")


def _at_most(value: str, answer: str) -> Judgement:
    words = len(answer.split())
    return Judgement(words <= int(value), f"Has at most {value} words: it has {words}")


def _matches(value: str, answer: str) -> Judgement:
    sentence = f"Matches {_short(value)}"
    if _wrong_with(value):
        return Judgement(False, f"{sentence}: this is no pattern")
    try:
        return Judgement(regex.search(value, answer, timeout=PATIENCE, concurrent=True) is not None, sentence)
    except TimeoutError:
        return Judgement(False, f"{sentence}: the pattern takes too long, so it was given up")
    except (regex.error, RecursionError, OverflowError, ValueError):
        return Judgement(False, f"{sentence}: this is no pattern")


JUDGES: Mapping[Kind, Callable[[str, str], Judgement]] = {
    Kind.CONTAINS: _contains,
    Kind.LACKS: _lacks,
    Kind.LANGUAGE: _language,
    Kind.AT_MOST: _at_most,
    Kind.MATCHES: _matches,
}


def _plain(text: str) -> str:
    """However it is spaced, and in whatever case."""
    return " ".join(text.casefold().split())


def _short(text: str) -> str:
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"
