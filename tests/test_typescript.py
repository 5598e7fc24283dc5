"""A TypeScript client is made from the published schema, and its types hold under the compiler's strictest rules.

The guide's client and its flow are run against the service by tests/test_documents.py.
"""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.documents import BOOKS, ROOT, blocks
from tests.node import FOLDER, node_modules

pytestmark = [pytest.mark.own_database, pytest.mark.drill]


def test_the_guide_s_client_and_the_types_hold_under_the_strictest_rules(tmp_path: Path) -> None:
    (tmp_path / "node_modules").symlink_to(node_modules())
    for name in ("tsconfig.json", "types.ts", "package.json"):
        shutil.copy(FOLDER / name, tmp_path)
    for block in (one for book in BOOKS for one in blocks(book) if one.language == "ts"):
        (tmp_path / block.code.split()[1]).write_text(block.code)

    _npx(tmp_path, "openapi-typescript", str(ROOT / "docs/api/openapi.json"), "--output", "api.ts")
    _npx(tmp_path, "tsc")

    assert {path.name for path in tmp_path.glob("*.ts")} == {"api.ts", "chat.ts", "flow.ts", "older.ts", "types.ts"}
    assert _pages_of(tmp_path, 130) == [[80, 50], [30, 50], [0, 30]], "each older message once, to the first"


def _pages_of(folder: Path, total: int) -> Any:
    walk = f"""
        import {{ before }} from "./built/older.js";
        const pages = [];
        for (let shown = 0, page; (page = before(shown, {total})); shown += page.limit)
          pages.push([page.offset, page.limit]);
        console.log(JSON.stringify(pages));
    """
    command = ["node", "--input-type=module", "--eval", walk]
    return json.loads(subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout)


def _npx(folder: Path, *command: str) -> None:
    run = subprocess.run(
        ["npx", "--no-install", *command], cwd=folder, capture_output=True, text=True, timeout=120, check=False
    )
    assert run.returncode == 0, run.stdout + run.stderr
