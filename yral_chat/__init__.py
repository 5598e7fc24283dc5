"""The version has one source: the newest released entry of CHANGELOG.md."""

import re
from pathlib import Path

_ROOT = Path(__file__).resolve().parent.parent
ENTRY = re.compile(r"^## (?P<version>\d+\.\d+\.\d+) – (?P<date>unreleased|\d{4}-\d\d-\d\d)$", re.MULTILINE)


def version_of(changelog: str) -> str:
    """Before the first release: the number that it will have, with -dev."""
    entries = list(ENTRY.finditer(changelog))
    released = [one["version"] for one in entries if one["date"] != "unreleased"]
    if not entries:
        raise SystemExit("Yral AI Chat can't start: CHANGELOG.md has no entry such as “## 1.2.3 – 2026-01-31”.")
    return released[0] if released else f"{entries[0]['version']}-dev"


def _of_this_folder() -> str:
    try:
        return version_of((_ROOT / "CHANGELOG.md").read_text(encoding="utf-8"))
    except OSError as exc:
        raise SystemExit("Yral AI Chat can't start: CHANGELOG.md, which holds the version, can't be read.") from exc


def _commit_of_this_folder() -> str:
    """Written by who brings the code to a server, which has no git there."""
    try:
        return (_ROOT / "COMMIT").read_text(encoding="utf-8").strip()[:12]
    except OSError:
        return ""


__version__ = _of_this_folder()
RUNNING = "+".join(filter(None, (__version__, _commit_of_this_folder())))
