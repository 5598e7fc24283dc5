"""Text that comes in pieces, cut only where a reader sees an end: never inside an emoji, a flag or a syllable."""

import regex

GRAPHEME = regex.compile(r"\X")
LONGEST = 4096  # characters that are held back; no grapheme that anybody writes is as long


class Cutter:
    """Holds back the last grapheme, which the next piece may go on with, and the space at the end, which an answer
    loses."""

    def __init__(self) -> None:
        self.given = ""
        self._held = ""

    def add(self, text: str) -> str:
        """What can go out now; it may be blank."""
        self._held += text
        start = 0
        for match in GRAPHEME.finditer(self._held):
            start = match.start()
        if len(self._held) - start > LONGEST:
            start = len(self._held)
        return self._give(len(self._held[:start].rstrip()))

    def rest(self, whole: str) -> str:
        """What is left of the whole text at its end."""
        self._held = whole[len(self.given) :]
        return self._give(len(self._held))

    def _give(self, length: int) -> str:
        ready, self._held = self._held[:length], self._held[length:]
        self.given += ready
        return ready
