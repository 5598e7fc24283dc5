"""Every block of code in the documents is run as it stands, against a service such as `make run` starts."""

import io
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from django.conf import settings
from django.core.management import call_command, get_commands

from tests.conftest import token
from tests.documents import BOOKS, ROOT, Block, blocks
from tests.node import node_modules
from tests.servers import Server, environment, free_port, manage, running

pytestmark = pytest.mark.own_database
ALL = [block for book in BOOKS for block in blocks(book)]
HERE = [block for block in ALL if block.runs_here]
RUN = ("sh", "python", "ts")
READ: dict[str, Callable[[str], Any]] = {"json": json.loads, "yaml": yaml.safe_load}
SHOWN = ("text", "mermaid")  # what is no code; tests of the drawings compare these with what they show
PAGES = sorted({block.book for block in HERE if block.language in RUN})
# What curl was answered goes into a file.
PRELUDE = """set -euo pipefail
curl() { command curl -sS -w '%{stderr}%{http_code}\\n' "$@" 2>>statuses; }
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, dict[str, str]]]:
    """As `make run` starts it."""
    folder = tmp_path_factory.mktemp("documents")
    changed = {"ENVIRONMENT": "development", "GEMINI_API_KEY": "", "MEDIA_UPLOAD_DIR": f"{folder}/uploads"}
    env = environment(folder, "", free_port(), **changed)
    manage(env, "prepare_development")
    with running("gunicorn", env, folder) as server:
        yield server, env


@pytest.mark.drill
@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_blocks_of_a_page_do_what_it_says(page: Path, server: Any, tmp_path: Path) -> None:
    """One after the other, as a reader would, in a folder that isn't the service's."""
    running, env = server
    mine = [block for block in HERE if block.book == page]
    folder = _front_end(tmp_path, mine, running)
    said = {**env, **_variables(running), "PATH": f"{Path(sys.executable).parent}:{env['PATH']}"}
    for kind in ("sh", "python"):
        code = [_here(block.code, running) for block in mine if block.language == kind]
        if not code:
            continue
        command = ["bash", "-c", PRELUDE + "".join(code)] if kind == "sh" else [sys.executable, "-c", "".join(code)]
        run = subprocess.run(command, cwd=folder, env=said, capture_output=True, text=True, timeout=120, check=False)
        assert run.returncode == 0, f"{run.stdout[-3000:]}\n{run.stderr[-3000:]}"
        (folder / f"{kind}.output").write_text(run.stdout)
    _answers_are_as_said(mine, folder)
    if page.name == "guide.md":
        _the_whole_flow_was_gone(folder)
    assert not running.trouble


def _front_end(folder: Path, mine: list[Block], server: Server) -> Path:
    """With the files that the blocks are, and beside it what they take from the service's folder."""
    (folder / "personas").symlink_to(ROOT / "personas")
    for block in mine:
        if block.language == "ts":
            (folder / _name(block)).write_text(_here(block.code, server))
    if any(block.language == "ts" for block in mine):
        (folder / "node_modules").symlink_to(node_modules())
        (folder / "package.json").write_text('{"type": "module"}')
    return folder


def _name(block: Block) -> str:
    named = re.match(r"// (\w+\.ts)\n", block.code)
    assert named, f"{block}: its first line says the name of the file"
    return named[1]


def _variables(server: Server) -> dict[str, str]:
    """What the pages take for granted once the guide has made it; of a persona with whom the guide has no talk."""
    conversation = server.open(server.influencers[-1], "bob")
    question = server.send(conversation, "What should I eat today?", "bob").json()["user_message"]["id"]
    api = f"http://127.0.0.1:{server.port}/api/v1"
    return {"API": api, "TOKEN": token("bob"), "CONVERSATION": conversation, "QUESTION": question}


def _here(code: str, server: Server) -> str:
    code = code.replace("127.0.0.1:8000", f"127.0.0.1:{server.port}")
    for written in (".venv/bin/python manage.py", "uv run manage.py"):
        code = code.replace(written, f"{sys.executable} {ROOT}/manage.py")
    return code


def _answers_are_as_said(mine: list[Block], folder: Path) -> None:
    calls = [block.status for block in mine if block.language == "sh" for _ in re.findall(r"\bcurl -?", block.code)]
    statuses = (folder / "statuses").read_text().split() if calls else []
    assert len(statuses) == len(calls), statuses
    for status, promised in zip(statuses, calls, strict=True):
        assert status == promised or (promised == "2xx" and status.startswith("2")), statuses


def _the_whole_flow_was_gone(folder: Path) -> None:
    curl, python = ((folder / f"{kind}.output").read_text() for kind in ("sh", "python"))
    assert '"deleted_messages_count":5' in curl.replace(" ", "")
    assert "event: token" in curl
    by_node = curl.splitlines()[-5:]
    assert by_node[1:] == ["true", "5 [ 'assistant', 'user' ]", "5", "404 not_found"], by_node
    assert "done: ['user_message', 'assistant_message'" in python
    assert python.splitlines()[-2:] == ["5 ['assistant', 'user']", "5"]


def test_every_block_says_what_it_is() -> None:
    for block in ALL:
        assert block.language in {*RUN, *READ, *SHOWN}, f"{block}: `{block.language}`"


@pytest.mark.parametrize("block", [one for one in HERE if one.language in READ], ids=str)
def test_data_can_be_read(block: Block) -> None:
    assert READ[block.language](block.code)


def test_a_block_that_another_test_runs_is_known_to_it() -> None:
    for block in ALL:
        if block.remark.startswith("run by "):
            test = ROOT / block.remark.removeprefix("run by ").split(" ")[0].rstrip(",:")
            assert test.is_file(), f"{block}: {test}"
            assert block.book.stem in test.read_text() or block.code.strip() in test.read_text(), str(block)


def test_only_these_blocks_are_not_run() -> None:
    """Each says why; whoever adds one counts it here."""
    idle = [str(block) for block in ALL if block.remark.startswith("not run: ")]
    assert len(idle) == NOT_RUN, idle


NOT_RUN = 9


# What the documents name exists


@pytest.mark.parametrize("page", BOOKS, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", page.read_text()):
        if re.match(r"https?://", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", file.read_text(), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}, target


def test_every_page_is_reached_from_the_readme() -> None:
    reached, found = {ROOT / "README.md"}, [ROOT / "README.md"]
    while found:
        page = found.pop()
        for target in re.findall(r"\]\(([^)#]+\.md)", page.read_text()):
            file = (page.parent / target).resolve()
            if file not in reached and file.suffix == ".md":
                reached.add(file)
                found.append(file)
    assert set((ROOT / "docs").rglob("*.md")) <= reached


SHOWN_PATHS = re.compile(
    r"(?:GET|POST|DELETE|`)\s?`?((?:\$API)?/(?:api/v1|openapi|health|status|metrics|docs|redoc)[\w/{}.…-]*)`"
)


@pytest.mark.parametrize("page", BOOKS, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_routes_that_a_page_names_are_some(page: Path) -> None:
    schema = json.loads((ROOT / "docs/api/openapi.json").read_text())
    known = {re.sub(r"\{\w+\}", "{}", path) for path in schema["paths"]}
    for named in SHOWN_PATHS.findall(page.read_text()):
        path = re.sub(r"\{\w+\}", "{}", named.rstrip("/"))
        assert any(one == path or one.startswith(f"{path}/") for one in known), named


@pytest.mark.parametrize("page", BOOKS, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_commands_that_a_page_names_are_some(page: Path) -> None:
    text = page.read_text()
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for target in re.findall(r"`make ([a-z-]+)", text):
        assert target in targets, f"make {target}"
    for command in re.findall(r"manage\.py ([a-z_]+)", text):
        assert command in get_commands(), f"manage.py {command}"


@pytest.mark.parametrize("page", [*(ROOT / "docs").rglob("*.md")], ids=lambda page: str(page.relative_to(ROOT)))
def test_the_settings_and_files_that_a_page_names_are_some(page: Path) -> None:
    text = page.read_text()
    deploy = "".join(
        file.read_text(errors="replace") for file in (ROOT / "deploy").rglob("*") if file.is_file()
    )  # has its own
    for name in re.findall(r"`([A-Z][A-Z0-9]*(?:_[A-Z0-9]+)+)(?:=[^`]*)?`", text):
        known = name in settings.VARIABLES or name in NO_SETTINGS or name.startswith(("SSH_", "TEST_"))
        known = known or bool(re.search(rf"\b{name}\b", deploy))
        assert known or name.endswith("_"), name
    for file in re.findall(
        r"`((?:tests|yral_chat|conversations|personas|media_uploads|docs|deploy)/[\w./-]*\w)`", text
    ):
        assert (ROOT / file).exists(), file


NO_SETTINGS = {"BLOCKED_CONTENT", "NO_PROVIDER", "MAX_TOKENS"}  # codes of events and models


@pytest.mark.drill
def test_the_drawings_are_those_of_the_code() -> None:
    call_command("draw_architecture", "--check", stdout=io.StringIO())
    pages = [(ROOT / "docs/architecture" / name).read_text() for name in ("system-design.md", "database.md")]
    assert [len(re.findall("<!-- drawn: .* -->\n\n```mermaid\n", page)) for page in pages] == [2, 1]
    assert 'views["views"] --> services["services"]' in pages[0]
    assert 'conversations["conversations"] --> personas["personas"]' in pages[0]
    assert "ai_influencers ||--o{ conversations : influencer" in pages[1]
    assert not re.search(r"(personas|media_uploads)\[.*\] --> conversations", pages[0])
