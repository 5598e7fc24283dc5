"""Two texts word by word."""

import random
import time

import pytest

from personas.differences import Piece, compared, differences, folded

pytestmark = pytest.mark.own_database


@pytest.mark.parametrize(
    ("before", "after", "shown"),
    [
        ("You cook well.", "You dance well.", "You [-cook-]{+dance+} well."),
        ("a b c d", "a x y d", "a [-b c-]{+x y+} d"),
        ("", "new", "{+new+}"),
        ("old", "", "[-old-]"),
        ("same", "same", "same"),
        ("हिन्दी में बोलो", "हिन्दी मे बोलो", "हिन्दी [-में-]{+मे+} बोलो"),
        ("don't stop", "don't go", "don't [-stop-]{+go+}"),
        ("One.\nTwo.\n", "One.\nTwo and a half.\n", "One.\nTwo{+ and a half+}.\n"),
        ("a\nb\n", "b\n", "[-a\n-]b\n"),
    ],
)
def test_it_shows_what_was_taken_out_and_put_in(before: str, after: str, shown: str) -> None:
    marks = {"same": "{}", "removed": "[-{}-]", "added": "{{+{}+}}"}

    assert "".join(marks[piece.kind].format(piece.text) for piece in compared(before, after)) == shown


# Passages that differ, each of few words that come again and again, between lines that don't
chance = random.Random(2)
MANY = [tuple("".join(f"{n}\n{' '.join(chance.choices('abcde', k=740))}\n" for n in range(66)) for _ in range(2))]


@pytest.mark.parametrize(
    ("before", "after"),
    [("a b\n" * 50, "a c\n" * 60), ("x" * 5000, "y"), ("w " * 4000, "v " * 4000), ("\n" * 30_000, ""), *MANY],
)
def test_nothing_is_lost_and_nobody_waits(before: str, after: str) -> None:
    began = time.process_time()

    pieces = folded(compared(before, after))

    assert "".join(piece.text for piece in pieces if piece.kind != "added") == before
    assert "".join(piece.text for piece in pieces if piece.kind != "removed") == after
    assert time.process_time() - began < 5


def test_long_unchanged_passages_are_folded_up_to_two_lines_beside_a_change() -> None:
    text = "".join(f"{number}\n" for number in range(20))

    assert folded(compared(text, text + "new\n")) == [
        Piece("same", "".join(f"{number}\n" for number in range(18)), folded=True),
        Piece("same", "18\n19\n"),
        Piece("added", "new\n"),
    ]


def test_lists_and_objects_are_compared_by_their_entries_and_equal_fields_are_left_out() -> None:
    before = {
        "suggested_messages": ["a", "b"],
        "personality_traits": {"tone": "warm"},
        "temperature": None,
        "model": "m",
    }
    after = {"suggested_messages": ["a", "c"], "personality_traits": {"tone": "dry"}, "temperature": 0.5, "model": "m"}

    found = {one.label: [(piece.kind, piece.text) for piece in one.pieces] for one in differences(before, after)}

    assert found == {
        "Suggested messages": [("same", "a\n"), ("removed", "b"), ("added", "c")],
        "Personality traits": [("same", "tone: "), ("removed", "warm"), ("added", "dry")],
        "Temperature": [("added", "0.5")],
    }
