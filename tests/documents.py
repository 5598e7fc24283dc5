"""The documents, and the blocks of code in them."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from django.conf import settings as configured

ROOT: Path = configured.BASE_DIR
FOLDERS = [ROOT / "docs", ROOT / "deploy"]
BOOKS = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted(file for one in FOLDERS for file in one.rglob("*.md"))]
BLOCK = re.compile(r"(?:^<!-- (?P<remark>.*?) -->\n+)?^```(?P<language>.*)\n(?P<code>(?s:.*?))^```$", re.MULTILINE)
OF_ALL = re.compile(r"^<!-- all blocks (.*?) -->$", re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """`remark`: who else runs it (`run by tests/…`), why nobody does (`not run: …`), its status (`answers 503`)."""

    book: Path
    line: int
    language: str
    code: str
    remark: str

    def __str__(self) -> str:
        return f"{self.book.relative_to(ROOT)}:{self.line}"

    @property
    def runs_here(self) -> bool:
        return not self.remark.startswith(("run by ", "not run: "))

    @property
    def status(self) -> str:
        """What curl is answered in it."""
        return self.remark.removeprefix("answers ") if self.remark.startswith("answers ") else "2xx"


def blocks(book: Path) -> Iterator[Block]:
    text = book.read_text()
    of_all = OF_ALL.search(text)
    for found in BLOCK.finditer(text):
        line = text.count("\n", 0, found.start("language")) + 1
        remark = found["remark"] or (of_all[1] if of_all else "")
        yield Block(book, line, found["language"], found["code"], remark)
