"""Node, and the packages that tests/typescript/package-lock.json pins."""

import fcntl
import hashlib
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from django.conf import settings as configured

FOLDER: Path = configured.BASE_DIR / "tests/typescript"


def node_modules() -> Path:
    """Installed as locked, once for all of the run's processes; without Node the test is skipped, and fails in CI."""
    if not shutil.which("npm"):
        _missing("Node and npm aren't installed: no TypeScript client was generated and run.")
    lock = (FOLDER / "package-lock.json").read_bytes()
    stamp = FOLDER / "node_modules/.installed"
    with (FOLDER / "package.json").open() as turnstile:
        fcntl.flock(turnstile, fcntl.LOCK_EX)
        if not stamp.exists() or stamp.read_text() != hashlib.sha256(lock).hexdigest():
            command = ["npm", "ci", "--prefer-offline", "--no-audit", "--no-fund", "--ignore-scripts"]
            done = subprocess.run(command, cwd=FOLDER, capture_output=True, text=True, timeout=240, check=False)
            if done.returncode:
                _missing(f"npm ci failed, so no TypeScript client was generated and run:\n{done.stderr[-2000:]}")
            stamp.write_text(hashlib.sha256(lock).hexdigest())
    return FOLDER / "node_modules"


def _missing(sentence: str) -> None:
    assert "CI" not in os.environ, sentence
    pytest.skip(sentence)
